//! What sets two patches, or two checkpoints, apart.
//!
//! ```text
//! patches       facts by what they are about; what else a manifest says, field by field; each tensor's update: norms,
//!               rank, angle
//! checkpoints   which tensors differ; in each how many weights, by how much, and in how many directions
//! ```
//!
//! Two updates are compared as the matrices that they add, not by their factors, which may differ for one matrix.
//! Checkpoints are read in blocks, so that memory does not grow with them.

mod checkpoints;
mod fields;
mod patches;

#[cfg(feature = "edit")]
pub(crate) use checkpoints::sketch_of;
pub use checkpoints::{
    Change, CheckpointDiff, CheckpointOptions, EffectiveRank, Kind, TensorDiff, diff_checkpoints,
    diff_checkpoints_size_bytes,
};
#[cfg(feature = "edit")]
pub(crate) use checkpoints::{DeltaReader, Differing, compare_names};
pub use fields::FieldChange;
pub use patches::{
    FactChange, FactsDiff, PatchDiff, PatchDiffError, Side, ToldOtherwise, UpdateDiff, UpdateSize,
    diff_facts, diff_patches, facts_after,
};
