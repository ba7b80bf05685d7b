//! What apply, revert and verify share: finding where the weights stand, a plan, and its execution.
//!
//! ```text
//! survey   digests of the touched tensors  ->  all at the start | all at the end | neither, and where
//! plan     what will be written, as data
//! execute  rewrite the touched tensors block by block, copy the rest meanwhile, compare digests, rename
//! ```
//!
//! Apply goes from the digests `before` to those `after`, revert the other way; nothing else differs, so both are
//! one code, and a [`Direction`] says which. Reverting takes the edited checkpoint and the patch alone. What counts is
//! the bytes: no log or name is asked in which state a checkpoint is.

mod mismatch;
mod survey;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::causes::with_causes;
use crate::checkpoint::{
    Checkpoint, CheckpointError, Output, Rewrite, TakenAlong, TensorInfo, check_in_place, pipeline,
};
use crate::digest::{PatchId, TensorDigest};
use crate::factors::{Correction, FactorError, RowsApplied, UndoLog, Update, in_blocks, undo_rows_per_block};
use crate::patch::manifest::{Binding, TensorBinding};
use crate::patch::{Patch, PatchError};
use crate::tensor::{Dtype, Element};
use crate::with_element;

pub use self::mismatch::{Difference, Mismatch};
use self::survey::locate;
pub(crate) use self::survey::{Digests, Position, position, survey_digests};
pub use self::survey::{survey_size_bytes, touched};
pub use crate::checkpoint::Progress;

/// Weights worked on at once, while as many are read and as many written, for each thread: enough for all of them to
/// have rows, and little enough to be in the cache still when they are hashed and written.
const BLOCK_BYTES_PER_THREAD: usize = 2 << 20;
/// As many threads get their share; beside a model it is little.
const BLOCK_THREADS_MAX: usize = 8;

/// Something went wrong on the way from one state to the other; no output was left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperationError {
    /// Reading the checkpoint or writing the output.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part of the patch cannot be decoded.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The arithmetic refused.
    #[error("tensor `{tensor}`")]
    Factors {
        /// The tensor.
        tensor: String,
        /// Why.
        source: FactorError,
    },
    /// The checkpoint is not the one that the plan was made for.
    #[error("`{path}` is not in the state that the plan was made for: {mismatch}")]
    OtherState {
        /// The checkpoint.
        path: PathBuf,
        /// Where it differs.
        mismatch: Box<Mismatch>,
    },
    /// A change in place failed, and the old bytes could not be put back yet.
    #[error("{}; {}", with_causes(error), with_causes(recovery))]
    Pending {
        /// What went wrong first.
        error: Box<OperationError>,
        /// Why the old bytes are not back.
        recovery: Box<CheckpointError>,
    },
    /// The plan belongs to another patch.
    #[error("the plan was made for patch {expected}, not for {found}")]
    OtherPatch {
        /// The plan's patch.
        expected: PatchId,
        /// The patch at hand.
        found: PatchId,
    },
    /// The result is not what the patch promises.
    #[error("tensor `{tensor}` came out as {found}, the patch promises {expected}")]
    WrongResult {
        /// The tensor.
        tensor: String,
        /// The digest in the patch.
        expected: TensorDigest,
        /// The digest of the result.
        found: TensorDigest,
    },
}

/// Which way an operation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From `before` to `after`.
    Apply,
    /// From `after` to `before`.
    Revert,
}

impl Direction {
    /// The other way.
    pub(crate) fn reversed(self) -> Self {
        match self {
            Direction::Apply => Direction::Revert,
            Direction::Revert => Direction::Apply,
        }
    }

    /// The digest that a tensor has at the start.
    pub fn start(self, tensor: &TensorBinding) -> TensorDigest {
        match self {
            Direction::Apply => tensor.before,
            Direction::Revert => tensor.after,
        }
    }

    /// The digest that a tensor has at the end.
    pub fn end(self, tensor: &TensorBinding) -> TensorDigest {
        self.reversed().start(tensor)
    }
}

// ------------------------------------------------------------------------------------------------- one tensor --

/// One touched tensor with all that changing it needs.
pub(crate) struct TensorWork<'a> {
    pub(crate) binding: &'a TensorBinding,
    pub(crate) info: &'a TensorInfo,
    update: Update,
    undo: UndoLog,
    correction: Option<Correction>,
}

impl<'a> TensorWork<'a> {
    /// Decodes the terms and the undo log of one tensor.
    pub(crate) fn load(
        checkpoint: &'a Checkpoint,
        patch: &'a Patch,
        binding_index: usize,
        tensor_index: usize,
    ) -> Result<Self, OperationError> {
        let bindings = &patch.manifest().bindings;
        let binding = &bindings[binding_index].tensors[tensor_index];
        let info = locate(checkpoint, binding).map_err(|difference| OperationError::OtherState {
            path: checkpoint.path().to_owned(),
            mismatch: Box::new(Mismatch::met(
                binding,
                difference,
                binding_index,
                bindings[binding_index].tensors.len(),
                Direction::Apply,
            )),
        })?;
        let update = patch.update(binding_index, tensor_index)?;
        let (undo, correction) = decode_undo(patch, binding_index, tensor_index)?;
        Ok(Self { binding, info, update, undo, correction })
    }

    /// Ranges of rows to work on one after the other.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        row_blocks(self.update.rows(), self.update.columns(), self.binding.dtype)
    }

    /// Reads the checkpoint's bytes of `rows` into `bytes`.
    pub(crate) fn read_rows(
        &self,
        checkpoint: &Checkpoint,
        rows: &Range<usize>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), OperationError> {
        checkpoint.make_room(self.info, bytes, rows.len() * self.row_size_bytes())?;
        Ok(checkpoint.read_at(self.info, self.offset(rows), bytes)?)
    }

    /// Turns the bytes of `rows` into those of the other state.
    pub(crate) fn change_rows(
        &self,
        direction: Direction,
        rows: Range<usize>,
        bytes: &mut [u8],
    ) -> Result<RowsApplied, OperationError> {
        let dtype = self.binding.dtype;
        let changed = match direction {
            Direction::Apply => self.apply_rows(dtype, rows, bytes),
            Direction::Revert => self.revert_rows(dtype, rows, bytes).map(|()| RowsApplied::default()),
        };
        changed.map_err(|source| factors_error(&self.binding.name, source))
    }

    /// Turns the base's bytes of `rows` into those of the edited state, and proves on the way that the patch takes them
    /// back.
    pub(crate) fn prove_rows(
        &self,
        rows: Range<usize>,
        bytes: &mut [u8],
    ) -> Result<RowsApplied, OperationError> {
        if self.correction.is_some() {
            let before = bytes.to_vec();
            let applied = self.change_rows(Direction::Apply, rows.clone(), bytes)?;
            let mut back = bytes.to_vec();
            self.change_rows(Direction::Revert, rows.clone(), &mut back)?;
            if back == before {
                return Ok(applied);
            }
            let source = FactorError::Undo(format!("rows {rows:?} are not what they were"));
            return Err(factors_error(&self.binding.name, source));
        }
        let proved = self.undo.prove_rows(&self.update, self.binding.dtype, rows, bytes);
        proved.map_err(|source| factors_error(&self.binding.name, source))
    }

    /// The terms with their one rounding, then the correction.
    fn apply_rows(
        &self,
        dtype: Dtype,
        rows: Range<usize>,
        bytes: &mut [u8],
    ) -> Result<RowsApplied, FactorError> {
        let Some(correction) = &self.correction else {
            return self.update.apply_rows(dtype, rows, bytes);
        };
        let before = bytes.to_vec();
        let mut applied = self.update.apply_rows(dtype, rows.clone(), bytes)?;
        correction.apply_rows(dtype, rows, bytes)?;
        // What the terms changed and the correction changed back has not changed, and what is not finite and the terms
        // left alone the correction may have changed.
        let pairs = || before.chunks_exact(dtype.size_bytes()).zip(bytes.chunks_exact(dtype.size_bytes()));
        applied.changed = pairs().filter(|(before, after)| before != after).count() as u64;
        if applied.not_finite > 0 {
            applied.not_finite = with_element!(dtype, E => {
                let stays = |(before, after): &(&[u8], &[u8])| before == after && !E::read(before).is_finite();
                pairs().filter(stays).count() as u64
            });
        }
        Ok(applied)
    }

    /// The other way round: the undo log speaks of what the terms gave.
    fn revert_rows(&self, dtype: Dtype, rows: Range<usize>, bytes: &mut [u8]) -> Result<(), FactorError> {
        if let Some(correction) = &self.correction {
            correction.revert_rows(dtype, rows.clone(), bytes)?;
        }
        self.undo.revert_rows(&self.update, dtype, rows, bytes)
    }

    fn row_size_bytes(&self) -> usize {
        self.update.columns() * self.binding.dtype.size_bytes()
    }

    fn offset(&self, rows: &Range<usize>) -> u64 {
        rows.start as u64 * self.row_size_bytes() as u64
    }
}

/// The undo log and the correction of a tensor of a binding; both indices are in range.
pub(crate) fn decode_undo(
    patch: &Patch,
    binding_index: usize,
    tensor_index: usize,
) -> Result<(UndoLog, Option<Correction>), OperationError> {
    let binding = &patch.manifest().bindings[binding_index].tensors[tensor_index];
    let undo = patch.undo(binding_index, tensor_index)?;
    let correction = patch.correction(binding_index, tensor_index)?;
    // A dimension beyond this machine's memory fits no log.
    let [rows, columns] = binding.shape.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let failed = |source| factors_error(&binding.name, source);
    let undo = UndoLog::parse(undo, rows, columns).map_err(failed)?;
    let parse = |bytes| Correction::parse(bytes, binding.dtype, rows, columns);
    let correction = correction.map(parse).transpose().map_err(failed)?;
    Ok((undo, correction))
}

fn factors_error(tensor: &str, source: FactorError) -> OperationError {
    OperationError::Factors { tensor: tensor.to_owned(), source }
}

/// Ranges of about [`BLOCK_BYTES_PER_THREAD`] for each thread, in whole blocks of the undo log.
pub(crate) fn row_blocks(
    rows: usize,
    columns: usize,
    dtype: Dtype,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let undo_rows = undo_rows_per_block(columns);
    let undo_block_bytes = undo_rows.saturating_mul(columns.max(1)).saturating_mul(dtype.size_bytes());
    let threads = rayon::current_num_threads().clamp(2, BLOCK_THREADS_MAX);
    let block_rows = (threads * BLOCK_BYTES_PER_THREAD / undo_block_bytes).max(1) * undo_rows;
    in_blocks(rows, block_rows)
}

// ------------------------------------------------------------------------------------------ plan and execution --

/// What an operation would do.
#[derive(Debug)]
pub enum Answer {
    /// The patch fits; this is what will be written.
    Fits(Plan),
    /// All touched tensors hold what would be written: the patch is applied already, or was never there to revert.
    Done {
        /// The binding that it is done for.
        binding: usize,
        /// How many tensors it touches.
        tensors: usize,
    },
    /// The weights are neither: the patch was made for others, another one came on top, or it is applied half-way.
    Elsewhere(Mismatch),
}

/// Reads the touched tensors and says whether `patch` can be applied to `checkpoint`, or taken back from it.
///
/// `progress` is told bytes, [`survey_size_bytes`] in all.
///
/// # Errors
/// [`OperationError::Checkpoint`] when the weights cannot be read.
pub fn plan(
    checkpoint: &Checkpoint,
    patch: &Patch,
    direction: Direction,
    progress: Progress<'_>,
) -> Result<Answer, OperationError> {
    let bindings = &patch.manifest().bindings;
    let digests = survey_digests(checkpoint, patch, progress)?;
    Ok(match position(checkpoint, bindings, &digests, direction) {
        Position::Start(binding) => Answer::Fits(Plan::new(checkpoint, patch, binding, direction)?),
        Position::End(binding) => Answer::Done { binding, tensors: bindings[binding].tensors.len() },
        Position::Elsewhere(mismatch) => Answer::Elsewhere(mismatch),
    })
}

/// What an operation will write.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// Which way it goes.
    pub direction: Direction,
    /// The patch.
    pub patch: PatchId,
    /// The binding that fits the checkpoint.
    pub binding: usize,
    /// The tensors that are rewritten, in bytewise order of their names.
    pub tensors: Vec<PlannedTensor>,
    /// The base's files that hold them; others are linked.
    pub files: Vec<PathBuf>,
    /// Size of those files: what is copied.
    pub copy_size_bytes: u64,
    /// Size of the tensors: what is rewritten in the copy.
    pub tensor_size_bytes: u64,
}

/// One tensor of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, `[out, in]`.
    pub shape: [u64; 2],
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its digest now.
    pub start: TensorDigest,
    /// Its digest afterwards.
    pub end: TensorDigest,
    /// `norm(after - before) / norm(before)`, as the patch says: `verify` computes it, a plan does not.
    pub claimed_norm_ratio: f64,
}

/// What an operation has written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Written {
    /// The output.
    pub path: PathBuf,
    /// How many tensors were rewritten.
    pub tensors: usize,
    /// Their size in bytes.
    pub tensor_size_bytes: u64,
    /// Weights that are NaN or infinite in the base and were left as they are; none when reverting, which does not
    /// count them.
    pub not_finite: Option<u64>,
    /// Weights whose bits changed; none when reverting.
    pub changed: Option<u64>,
    /// How what it does not touch came into a copy.
    #[serde(flatten)]
    pub taken_along: TakenAlong,
}

impl Plan {
    /// A plan for a checkpoint whose tensors are at the start of `binding`.
    fn new(
        checkpoint: &Checkpoint,
        patch: &Patch,
        binding_index: usize,
        direction: Direction,
    ) -> Result<Self, OperationError> {
        let mut tensors = Vec::new();
        let mut infos = Vec::new();
        for tensor in &patch.manifest().bindings[binding_index].tensors {
            let info = checkpoint.tensor(&tensor.name)?;
            tensors.push(PlannedTensor {
                name: tensor.name.clone(),
                dtype: tensor.dtype,
                shape: tensor.shape,
                size_bytes: info.size_bytes,
                start: direction.start(tensor),
                end: direction.end(tensor),
                claimed_norm_ratio: tensor.norm_ratio,
            });
            infos.push(info);
        }
        let files: BTreeSet<usize> = infos.iter().map(|info| info.file_index).collect();
        Ok(Self {
            direction,
            patch: patch.id(),
            binding: binding_index,
            files: files.into_iter().map(|index| checkpoint.files()[index].path().to_owned()).collect(),
            copy_size_bytes: Output::copy_size_bytes(checkpoint, infos.iter().copied()),
            tensor_size_bytes: infos.iter().map(|info| info.size_bytes).sum(),
            tensors,
        })
    }

    /// Writes the output: a copy of the checkpoint with the touched tensors in the other state.
    ///
    /// Every digest is compared before the output gets its name; after an error there is no output. `progress` is told
    /// bytes, [`Plan::copy_size_bytes`] in all.
    ///
    /// # Errors
    /// [`OperationError::Checkpoint`] where the checkpoint cannot be read, the output cannot be written, or there is
    /// one already; [`OperationError::OtherPatch`] and [`OperationError::OtherState`] where the plan was made for
    /// others; [`OperationError::Patch`] and [`OperationError::Factors`] where the patch's terms or undo logs are
    /// damaged; [`OperationError::WrongResult`] where a digest is not the promised one.
    pub fn execute(
        &self,
        checkpoint: &Checkpoint,
        patch: &Patch,
        target: &Path,
        progress: Progress<'_>,
    ) -> Result<Written, OperationError> {
        let binding = self.binding_of(patch)?;
        let infos = touched_infos(checkpoint, binding)?;
        let output = Output::create(checkpoint, target, infos, progress)?;
        self.write_into(output, checkpoint, patch, progress)
    }

    /// As [`Plan::execute`], but changes the checkpoint where it lies.
    ///
    /// Its old bytes are put into a journal first. `progress` is told twice [`Plan::tensor_size_bytes`]. After an error
    /// the old bytes are back, but for [`OperationError::Pending`] and [`CheckpointError::Recovery`], where
    /// [`recover`](crate::checkpoint::recover) puts them back later. The checkpoint stays open, and reads what it holds
    /// now.
    ///
    /// # Errors
    /// As [`Plan::execute`], and [`OperationError::Pending`]; [`CheckpointError::InPlace`] says why a checkpoint
    /// cannot be changed where it lies.
    pub fn execute_in_place(
        &self,
        checkpoint: &Checkpoint,
        patch: &Patch,
        progress: Progress<'_>,
    ) -> Result<Written, OperationError> {
        let binding = self.binding_of(patch)?;
        let infos = touched_infos(checkpoint, binding)?;
        let rewrites = infos.iter().zip(&binding.tensors).map(|(&tensor, binding)| Rewrite {
            tensor,
            start: self.direction.start(binding),
            end: self.direction.end(binding),
        });
        let verb = match self.direction {
            Direction::Apply => "apply",
            Direction::Revert => "revert",
        };
        let label = format!("{verb} {}", self.patch);
        let output = Output::in_place(checkpoint, &Vec::from_iter(rewrites), &label)?;
        self.write_into(output, checkpoint, patch, progress)
    }

    /// Refuses a checkpoint that cannot be changed in place: asked before any work is done.
    ///
    /// # Errors
    /// [`CheckpointError::InPlace`], in words; [`CheckpointError::Io`] and [`CheckpointError::MissingTensor`] for what
    /// is not there.
    pub fn check_in_place(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let infos = self.tensors.iter().map(|tensor| checkpoint.tensor(&tensor.name));
        check_in_place(checkpoint, infos.collect::<Result<Vec<_>, _>>()?)
    }

    fn binding_of<'p>(&self, patch: &'p Patch) -> Result<&'p Binding, OperationError> {
        let binding = patch.manifest().bindings.get(self.binding).filter(|_| patch.id() == self.patch);
        binding.ok_or(OperationError::OtherPatch { expected: self.patch, found: patch.id() })
    }

    /// Rewrites all touched tensors and commits, or leaves everything as it was.
    fn write_into(
        &self,
        output: Output<'_>,
        checkpoint: &Checkpoint,
        patch: &Patch,
        progress: Progress<'_>,
    ) -> Result<Written, OperationError> {
        let rewrite = || self.rewrite_all(checkpoint, patch, &output, progress);
        let (total, filled) = match output.fill(progress, rewrite) {
            Ok(filled) => filled,
            Err(error) => {
                return Err(match output.abandon() {
                    Ok(()) => error,
                    Err(recovery) => {
                        OperationError::Pending { error: Box::new(error), recovery: Box::new(recovery) }
                    }
                });
            }
        };
        let path = output.path().to_owned();
        let taken_along = output.commit(filled)?;
        let is_counted = self.direction == Direction::Apply;
        Ok(Written {
            path,
            tensors: self.tensors.len(),
            tensor_size_bytes: self.tensor_size_bytes,
            not_finite: is_counted.then_some(total.not_finite),
            changed: is_counted.then_some(total.changed),
            taken_along,
        })
    }

    /// Rewrites all touched tensors; while one is rewritten, the factors of the next one are decoded.
    fn rewrite_all(
        &self,
        checkpoint: &Checkpoint,
        patch: &Patch,
        output: &Output<'_>,
        progress: Progress<'_>,
    ) -> Result<RowsApplied, OperationError> {
        let count = self.binding_of(patch)?.tensors.len();
        let load = |index: usize| TensorWork::load(checkpoint, patch, self.binding, index);
        let mut total = RowsApplied::default();
        let mut next = (count > 0).then(|| load(0));
        let mut index = 0;
        while let Some(work) = next.take() {
            let work = work?;
            index += 1;
            let (rewritten, loaded) = rayon::join(
                || self.rewrite(checkpoint, &work, output, progress),
                || (index < count).then(|| load(index)),
            );
            total += rewritten?;
            next = loaded;
        }
        Ok(total)
    }

    /// Rewrites one tensor in the output and compares its digest.
    fn rewrite(
        &self,
        checkpoint: &Checkpoint,
        work: &TensorWork<'_>,
        output: &Output<'_>,
        progress: Progress<'_>,
    ) -> Result<RowsApplied, OperationError> {
        let mut hasher = blake3::Hasher::new();
        let mut total = RowsApplied::default();
        let rewritten = pipeline(
            &Vec::from_iter(work.blocks()),
            |rows, bytes| work.read_rows(checkpoint, rows, bytes),
            |rows, bytes| {
                total += work.change_rows(self.direction, rows.clone(), bytes)?;
                hasher.update_rayon(bytes);
                Ok(())
            },
            |rows, bytes| {
                output.write_at(work.info, work.offset(rows), bytes)?;
                progress(bytes.len() as u64);
                Ok(())
            },
        );
        rewritten.map_err(|error| self.explain(checkpoint, work, output, error))?;
        let (expected, found) = (self.direction.end(work.binding), TensorDigest::finish(&hasher));
        if expected == found {
            return Ok(total);
        }
        let tensor = work.binding.name.clone();
        Err(self.explain(checkpoint, work, output, OperationError::WrongResult { tensor, expected, found }))
    }

    /// Tells a base that changed under us from arithmetic that went wrong.
    fn explain(
        &self,
        checkpoint: &Checkpoint,
        work: &TensorWork<'_>,
        output: &Output<'_>,
        error: OperationError,
    ) -> OperationError {
        if output.overwrites_its_input() {
            // The input was compared as its journal was written, and is by now half output.
            return error;
        }
        let expected = self.direction.start(work.binding);
        match checkpoint.digest(work.info) {
            Ok(found) if found != expected => OperationError::OtherState {
                path: checkpoint.path().to_owned(),
                mismatch: Box::new(Mismatch::met(
                    work.binding,
                    Difference::Digest { expected, found },
                    self.binding,
                    self.tensors.len(),
                    self.direction,
                )),
            },
            _ => error,
        }
    }
}

fn touched_infos<'c>(
    checkpoint: &'c Checkpoint,
    binding: &Binding,
) -> Result<Vec<&'c TensorInfo>, CheckpointError> {
    binding.tensors.iter().map(|tensor| checkpoint.tensor(&tensor.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Action;

    #[test]
    fn what_failed_twice_is_told_with_both_causes() {
        let lost = |path: &str| {
            let source = std::io::Error::other("the disk is gone");
            CheckpointError::Io { path: path.into(), action: Action::Sync, source }
        };
        let (error, recovery) = (Box::new(lost("first").into()), Box::new(lost("second")));
        let expected = "cannot sync `first`: the disk is gone; cannot sync `second`: the disk is gone";
        assert_eq!(with_causes(&OperationError::Pending { error, recovery }), expected);
    }

    #[test]
    fn blocks_cover_all_rows_in_whole_undo_blocks() {
        for (rows, columns) in [(1, 1), (5, 65_537), (1_000, 70), (4_096, 16_384), (100_000, 3)] {
            let undo_rows = undo_rows_per_block(columns);
            let mut next = 0;
            for block in row_blocks(rows, columns, Dtype::F32) {
                assert_eq!(block.start, next);
                assert!(block.end == rows || block.len().is_multiple_of(undo_rows), "{block:?}");
                let largest = BLOCK_THREADS_MAX * BLOCK_BYTES_PER_THREAD;
                assert!(block.len() * columns * 4 <= largest || block.len() == undo_rows);
                next = block.end;
            }
            assert_eq!(next, rows);
        }
    }
}
