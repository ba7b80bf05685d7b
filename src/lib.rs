//! Patches for what a language model knows.
//!
//! ```text
//! facts.json -> facts -> model (forward, taps) -> edit (values, keys, statistics, solve) -> factors -> patch
//!                           ^                                                                  |
//!                       checkpoint <----------------------- bind / apply / revert / verify ----+
//! ```
//!
//! The rooms in reading order, each importing only from those above it (`tests/tidy.rs` holds the table of
//! `docs/ARCHITECTURE.md`). Without the feature `edit` the library still reads, checks, applies and reverts.

// Vocabulary
pub mod digest;
pub mod facts;
pub mod tensor;

// Numbers
pub mod factors;

// Container
pub mod patch;

// Weights
pub mod checkpoint;

// Operations
pub mod operation;

pub mod apply;
pub mod bind;
pub mod revert;
pub mod verify;

// Editing
#[cfg(feature = "edit")]
pub mod edit;
#[cfg(feature = "edit")]
pub mod evaluate;
#[cfg(feature = "edit")]
pub mod model;
