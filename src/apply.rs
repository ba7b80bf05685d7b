//! Applying a patch: three answers before any work, then a copy of the checkpoint with the facts in it.
//!
//! ```text
//! plan(checkpoint, patch)  ->  Applies(plan) | AlreadyApplied | WrongBase(which tensor, and how it differs)
//! plan.execute(checkpoint, patch, target)  ->  the edited copy, digests compared before it gets its name
//! ```
//!
//! Only the touched tensors are read and compared; the rest of the checkpoint is copied as it is.

use crate::checkpoint::Checkpoint;
use crate::operation::{self, Direction, Progress, Standing};
use crate::patch::Patch;

pub use crate::operation::{Difference, Mismatch, OperationError, Plan, PlannedTensor, Written};

/// What applying would do.
#[derive(Debug)]
pub enum Answer {
    /// The patch fits; this is what will be written.
    Applies(Plan),
    /// All touched tensors hold what the patch would write.
    AlreadyApplied {
        /// The binding whose result this is.
        binding: usize,
        /// How many tensors it touches.
        tensors: usize,
    },
    /// The patch was made for other weights, or is applied half-way.
    WrongBase(Mismatch),
}

/// Reads the touched tensors and says whether the patch fits.
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
    Ok(match operation::survey(checkpoint, patch, Direction::Apply, progress)? {
        Standing::Start(binding) => Answer::Applies(Plan::new(checkpoint, patch, binding, Direction::Apply)?),
        Standing::End(binding) => {
            let tensors = patch.manifest().bindings[binding].tensors.len();
            Answer::AlreadyApplied { binding, tensors }
        }
        Standing::Elsewhere(mismatch) => Answer::WrongBase(mismatch),
    })
}
