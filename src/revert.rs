//! Taking a patch back, bit for bit, from the edited checkpoint and the patch alone.
//!
//! ```text
//! plan(checkpoint, patch)  ->  Reverts(plan) | AlreadyBase | UnknownState(which tensor, and how it differs)
//! plan.execute(checkpoint, patch, target)  ->  the base again, equal to the digests from before the edit
//! ```

use crate::checkpoint::Checkpoint;
use crate::operation::{self, Direction, Progress, Standing};
use crate::patch::Patch;

pub use crate::operation::{Difference, Mismatch, OperationError, Plan, PlannedTensor, Written};

/// What reverting would do.
#[derive(Debug)]
pub enum Answer {
    /// The patch is in the weights; this is what will be written.
    Reverts(Plan),
    /// All touched tensors hold what they held before the patch.
    AlreadyBase {
        /// The binding whose base this is.
        binding: usize,
        /// How many tensors it touches.
        tensors: usize,
    },
    /// The weights are neither: another patch came on top, or this one was never there.
    UnknownState(Mismatch),
}

/// Reads the touched tensors and says whether the patch can be taken back.
///
/// # Errors
/// [`OperationError::Checkpoint`] when the weights cannot be read.
pub fn plan(checkpoint: &Checkpoint, patch: &Patch) -> Result<Answer, OperationError> {
    plan_with(checkpoint, patch, &|_| ())
}

/// As [`plan`]; `progress` is told bytes, [`operation::survey_size_bytes`] in all.
///
/// # Errors
/// As [`plan`].
pub fn plan_with(
    checkpoint: &Checkpoint,
    patch: &Patch,
    progress: Progress<'_>,
) -> Result<Answer, OperationError> {
    Ok(match operation::survey(checkpoint, patch, Direction::Revert, progress)? {
        Standing::Start(binding) => {
            Answer::Reverts(Plan::new(checkpoint, patch, binding, Direction::Revert)?)
        }
        Standing::End(binding) => {
            let tensors = patch.manifest().bindings[binding].tensors.len();
            Answer::AlreadyBase { binding, tensors }
        }
        Standing::Elsewhere(mismatch) => Answer::UnknownState(mismatch),
    })
}
