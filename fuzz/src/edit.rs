//! The import of the reference's statistics, without the room around it, which takes long to build.

/// Stands for the room's own error.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// As there.
    #[error("statistics: {what}")]
    Statistics {
        /// As there.
        what: String,
    },
}

/// Stands for the room's own statistics.
pub mod statistics {
    /// As there.
    #[derive(Debug, Clone, PartialEq)]
    pub struct LayerSum {
        /// As there.
        pub sum: Vec<f32>,
        /// As there.
        pub count: u64,
    }
}

#[path = "../../src/edit/import.rs"]
pub mod import;
