//! Changing a checkpoint where it lies: the pass that compares its tensors is the pass that keeps their old bytes.

use super::survey::{locate, survey};
use super::{Direction, OperationError, Plan, Progress, Standing, Written, touched_infos};
use crate::checkpoint::{Checkpoint, CheckpointError, Output, Rewrite};
use crate::patch::Patch;

/// A plan whose tensors' old bytes are put down, in a journal that has no name yet. Nothing has been changed, and
/// nothing will have been if this is dropped.
#[derive(Debug)]
pub struct Kept<'a> {
    plan: Plan,
    checkpoint: &'a Checkpoint,
    output: Output<'a>,
}

impl Plan {
    /// Locks the files that are to be changed where they lie, and puts their old bytes down, comparing digests.
    ///
    /// `progress` is told the bytes of the tensors.
    ///
    /// # Errors
    /// [`OperationError`]; nothing was changed then.
    pub fn keep<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        patch: &Patch,
        progress: Progress<'_>,
    ) -> Result<Kept<'a>, OperationError> {
        let plan = self.clone();
        let binding = plan.binding_of(patch)?;
        let infos = touched_infos(checkpoint, binding)?;
        let rewrites = infos.iter().zip(&binding.tensors).map(|(&tensor, binding)| Rewrite {
            tensor,
            start: plan.direction.start(binding),
            end: plan.direction.end(binding),
        });
        let rewrites: Vec<_> = rewrites.collect();
        let verb = match plan.direction {
            Direction::Apply => "apply",
            Direction::Revert => "revert",
        };
        let output = Output::in_place(checkpoint, &rewrites, &format!("{verb} {}", plan.patch), progress)?;
        Ok(Kept { plan, checkpoint, output })
    }
}

impl Kept<'_> {
    /// Writes the new bytes over the old ones.
    ///
    /// `progress` is told the bytes of the tensors. After an error the old bytes are back, but for
    /// [`OperationError::Pending`] and [`CheckpointError::Recovery`], where [`recover`](crate::checkpoint::recover)
    /// puts them back later. The checkpoint stays open, and reads what it holds now.
    ///
    /// # Errors
    /// [`OperationError`].
    pub fn execute(mut self, patch: &Patch, progress: Progress<'_>) -> Result<Written, OperationError> {
        self.plan.binding_of(patch)?;
        self.output.begin()?;
        self.plan.write_into(self.output, self.checkpoint, patch, progress)
    }
}

/// As [`survey`] with old bytes put down on the way, where the answer is a start.
///
/// It begins with the binding that fits by names, types and shapes, and compares as it goes, so that a checkpoint is
/// read once and not twice. Where that fails, for whatever reason, a survey says how things stand.
pub(crate) fn survey_and_keep<'a>(
    checkpoint: &'a Checkpoint,
    patch: &Patch,
    direction: Direction,
    progress: Progress<'_>,
) -> Result<(Standing, Option<Kept<'a>>), OperationError> {
    let keep = |binding| Plan::new(checkpoint, patch, binding, direction)?.keep(checkpoint, patch, progress);
    let fits = |index: &usize| {
        patch.manifest().bindings[*index].tensors.iter().all(|tensor| locate(checkpoint, tensor).is_ok())
    };
    match (0..patch.manifest().bindings.len()).find(fits).map(|binding| (binding, keep(binding))) {
        Some((binding, Ok(kept))) => return Ok((Standing::Start(binding), Some(kept))),
        Some((_, Err(error @ OperationError::Checkpoint(CheckpointError::Stopped { .. })))) => {
            return Err(error);
        }
        _ => {}
    }
    let standing = survey(checkpoint, patch, direction, &|_| ())?;
    let kept = if let Standing::Start(binding) = standing { Some(keep(binding)?) } else { None };
    Ok((standing, kept))
}
