//! Two checkpoints, tensor by tensor, in blocks.

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, TensorInfo};
use crate::digest::{TensorDigest, WeightsId};
use crate::factors::relative_norm;
#[cfg(feature = "edit")]
use crate::factors::{FactorError, Sketch};
use crate::operation::{OperationError, Progress};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// Bytes of each checkpoint that are compared at once.
const BLOCK_BYTES: u64 = 16 << 20;
/// Weights of one parallel task.
const TASK_WEIGHTS: usize = 1 << 16;

/// What sets two checkpoints apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CheckpointDiff {
    /// The states of both.
    pub weights: [WeightsId; 2],
    /// Tensors that both have, with the same bytes.
    pub same: usize,
    /// Tensors that only the first has.
    pub removed: Vec<String>,
    /// Tensors that only the second has.
    pub added: Vec<String>,
    /// Tensors that differ, in bytewise order of names.
    pub tensors: Vec<TensorDiff>,
}

impl CheckpointDiff {
    /// Their weights are the same, however they are cut into files.
    pub fn is_same(&self) -> bool {
        self.weights[0] == self.weights[1]
    }
}

/// A tensor that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorDiff {
    /// Its name.
    pub name: String,
    /// What it is in the first.
    pub first: Kind,
    /// What it is in the second.
    pub second: Kind,
    /// How its weights differ; none where they are of another kind, or of a type that no patch touches.
    pub change: Option<Change>,
}

/// Type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Kind {
    /// As safetensors writes it.
    pub dtype: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
}

impl Kind {
    fn of(info: &TensorInfo) -> Self {
        Self { dtype: info.dtype.clone(), shape: info.shape.clone() }
    }
}

/// How the weights of a tensor differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Change {
    /// Weights of the tensor.
    pub weights: u64,
    /// Weights whose bits differ.
    pub changed: u64,
    /// `norm(second - first) / norm(first)`, Frobenius, over weights that are finite in both.
    pub relative_norm: f64,
    /// Largest distance of two weights in ordinals: how many values of the type lie between, plus one.
    pub ulps_max: u64,
    /// Mean distance of the weights that differ.
    pub ulps_mean: f64,
    /// Weights that are NaN or infinite in either.
    pub not_finite: u64,
    /// In how many directions; none where it was not asked for, or the tensor is no matrix.
    pub effective_rank: Option<EffectiveRank>,
}

/// How many singular values hold nearly all of a change.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EffectiveRank {
    /// The share of the squared norm.
    pub share: f64,
    /// That many values hold it; where `is_more`, more than these.
    pub rank: usize,
    /// Not even all values that were looked for hold it.
    pub is_more: bool,
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CheckpointOptions {
    /// How many singular values are looked for in each change; 0 for none.
    pub singular_values: usize,
    /// The share of a change's squared norm that its effective rank holds.
    pub share: f64,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self { singular_values: 64, share: 0.99 }
    }
}

/// Bytes that [`diff_checkpoints`] reads before it knows which tensors differ: all weights of both.
pub fn diff_checkpoints_size_bytes(first: &Checkpoint, second: &Checkpoint) -> u64 {
    first.weights_size_bytes() + second.weights_size_bytes()
}

/// Compares two checkpoints.
///
/// `progress` is told bytes: [`diff_checkpoints_size_bytes`], and what `announce` is told before it is read, once it is
/// known which tensors differ.
///
/// # Errors
/// [`OperationError::Checkpoint`], and [`OperationError::Factors`] where singular values do not converge.
pub fn diff_checkpoints(
    first: &Checkpoint,
    second: &Checkpoint,
    options: CheckpointOptions,
    announce: Progress<'_>,
    progress: Progress<'_>,
) -> Result<CheckpointDiff, OperationError> {
    let names = compare_names(first, second, progress)?;
    let readers = names.differing.iter();
    let readers: Vec<_> =
        readers.map(|tensor| DeltaReader::new([first, second], tensor, announce, progress)).collect();
    for reader in readers.iter().flatten() {
        reader.announce(passes(reader, options));
    }
    let mut tensors = Vec::new();
    for (tensor, reader) in names.differing.iter().zip(readers) {
        tensors.push(TensorDiff {
            name: tensor.first.name.clone(),
            first: Kind::of(tensor.first),
            second: Kind::of(tensor.second),
            change: reader.map(|reader| change(&reader, options)).transpose()?,
        });
    }
    Ok(CheckpointDiff {
        weights: names.weights,
        same: names.same,
        removed: names.removed,
        added: names.added,
        tensors,
    })
}

/// Which tensors of two checkpoints are where.
pub(crate) struct Names<'a> {
    pub(crate) weights: [WeightsId; 2],
    pub(crate) same: usize,
    pub(crate) removed: Vec<String>,
    pub(crate) added: Vec<String>,
    pub(crate) differing: Vec<Differing<'a>>,
}

/// Tensors of one name whose type, shape or bytes differ.
pub(crate) struct Differing<'a> {
    pub(crate) first: &'a TensorInfo,
    pub(crate) second: &'a TensorInfo,
    /// Digest of the second.
    #[cfg(feature = "edit")]
    pub(crate) result: TensorDigest,
}

/// Compares two checkpoints by the digests of their tensors.
pub(crate) fn compare_names<'a>(
    first: &'a Checkpoint,
    second: &'a Checkpoint,
    progress: Progress<'_>,
) -> Result<Names<'a>, CheckpointError> {
    let digests = |checkpoint: &Checkpoint| -> Result<Vec<TensorDigest>, CheckpointError> {
        checkpoint.digests_with(&Vec::from_iter(checkpoint.tensors()), progress)
    };
    let (one, other) = (digests(first)?, digests(second)?);
    let mut names = Names {
        weights: [first.weights_id_of(&one), second.weights_id_of(&other)],
        same: 0,
        removed: Vec::new(),
        added: Vec::new(),
        differing: Vec::new(),
    };
    for (info, digest) in first.tensors().iter().zip(&one) {
        let Some(place) = second.place(&info.name) else {
            names.removed.push(info.name.clone());
            continue;
        };
        let tensor = &second.tensors()[place];
        if (&tensor.dtype, &tensor.shape, &other[place]) == (&info.dtype, &info.shape, digest) {
            names.same += 1;
        } else {
            names.differing.push(Differing {
                first: info,
                second: tensor,
                #[cfg(feature = "edit")]
                result: other[place],
            });
        }
    }
    let new = second.tensors().iter().filter(|info| first.find(&info.name).is_none());
    names.added = new.map(|info| info.name.clone()).collect();
    Ok(names)
}

/// Reads the same tensor of two checkpoints, and what one of them is less the other.
#[derive(Clone, Copy)]
pub(crate) struct DeltaReader<'a> {
    checkpoints: [&'a Checkpoint; 2],
    infos: [&'a TensorInfo; 2],
    announce: Progress<'a>,
    progress: Progress<'a>,
    pub(crate) dtype: Dtype,
}

impl<'a> DeltaReader<'a> {
    /// None for tensors of unlike kinds, or of a type that no patch touches. `progress` is told what is read, in bytes
    /// of both.
    pub(crate) fn new(
        checkpoints: [&'a Checkpoint; 2],
        tensor: &Differing<'a>,
        announce: Progress<'a>,
        progress: Progress<'a>,
    ) -> Option<Self> {
        let (first, second) = (tensor.first, tensor.second);
        let dtype = first.element_dtype()?;
        let alike = (&first.dtype, &first.shape) == (&second.dtype, &second.shape);
        alike.then_some(Self { checkpoints, infos: [first, second], announce, progress, dtype })
    }

    /// Tells that all of the tensor, in both, is about to be read so many times.
    pub(crate) fn announce(&self, passes: u64) {
        (self.announce)(passes * self.infos.map(|info| info.size_bytes).iter().sum::<u64>());
    }

    /// As [`DeltaReader::announce`], of the weights in `range`.
    #[cfg(feature = "edit")]
    pub(crate) fn announce_range(&self, range: &Range<u64>) {
        (self.announce)(2 * (range.end - range.start) * self.dtype.size_bytes() as u64);
    }

    /// The weights of both in `range`, counted row-major, as bytes.
    pub(crate) fn read(&self, range: Range<u64>) -> Result<(Vec<u8>, Vec<u8>), CheckpointError> {
        let size_bytes = self.dtype.size_bytes() as u64;
        let read = |side: usize| {
            let mut bytes = vec![0; ((range.end - range.start) * size_bytes) as usize];
            self.checkpoints[side].read_at(self.infos[side], range.start * size_bytes, &mut bytes)?;
            (self.progress)(bytes.len() as u64);
            Ok(bytes)
        };
        Ok((read(0)?, read(1)?))
    }

    /// `second - first` for the weights of both, as they were read; 0 where either is not finite.
    #[cfg(feature = "edit")]
    pub(crate) fn deltas(&self, first: &[u8], second: &[u8]) -> Vec<f64> {
        let size_bytes = self.dtype.size_bytes();
        with_element!(self.dtype, E => {
            let pairs = first.par_chunks_exact(size_bytes).zip(second.par_chunks_exact(size_bytes));
            pairs.map(|(first, second)| {
                let (first, second) = (E::read(first), E::read(second));
                let finite = first.is_finite() && second.is_finite();
                if finite { second.to_f64() - first.to_f64() } else { 0.0 }
            }).collect()
        })
    }

    /// What `work` makes of the differences, which it reads some rows of `columns` weights at a time.
    #[cfg(feature = "edit")]
    pub(crate) fn by_rows<T>(
        &self,
        columns: usize,
        work: impl FnOnce(&mut dyn FnMut(Range<usize>) -> Result<Vec<f64>, DeltaError>) -> Result<T, DeltaError>,
    ) -> Result<T, OperationError> {
        let mut read = |rows: Range<usize>| {
            let range = (rows.start * columns) as u64..(rows.end * columns) as u64;
            let (first, second) = self.read(range).map_err(DeltaError::Read)?;
            Ok(self.deltas(&first, &second))
        };
        work(&mut read).map_err(|error| match error {
            DeltaError::Read(error) => error.into(),
            DeltaError::Factors(source) => OperationError::Factors { tensor: self.name().to_owned(), source },
        })
    }

    pub(crate) fn weights(&self) -> u64 {
        self.infos[0].size_bytes / self.dtype.size_bytes() as u64
    }

    #[cfg(feature = "edit")]
    pub(crate) fn name(&self) -> &str {
        &self.infos[0].name
    }

    /// Rows and columns; a vector is one row.
    #[cfg(feature = "edit")]
    pub(crate) fn shape(&self) -> Option<[usize; 2]> {
        self.infos[0].matrix_shape().map(|shape| shape.map(|size| size as usize))
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    changed: u64,
    not_finite: u64,
    ulps_max: u64,
    ulps: f64,
    first: f64,
    difference: f64,
}

impl Sums {
    fn of<E: Element>(first: &[u8], second: &[u8]) -> Self {
        let size_bytes = E::DTYPE.size_bytes();
        let mut sums = Self::default();
        for (first, second) in first.chunks_exact(size_bytes).zip(second.chunks_exact(size_bytes)) {
            let (first, second) = (E::read(first), E::read(second));
            let distance = (second.ordinal() - first.ordinal()).unsigned_abs();
            sums.changed += u64::from(distance > 0);
            sums.ulps_max = sums.ulps_max.max(distance);
            sums.ulps += distance as f64;
            if !(first.is_finite() && second.is_finite()) {
                sums.not_finite += 1;
                continue;
            }
            let (first, second) = (first.to_f64(), second.to_f64());
            sums.first += first * first;
            sums.difference += (second - first) * (second - first);
        }
        sums
    }

    fn add(&mut self, other: Self) {
        self.changed += other.changed;
        self.not_finite += other.not_finite;
        self.ulps_max = self.ulps_max.max(other.ulps_max);
        self.ulps += other.ulps;
        self.first += other.first;
        self.difference += other.difference;
    }
}

fn change(reader: &DeltaReader<'_>, options: CheckpointOptions) -> Result<Change, OperationError> {
    let (weights, size_bytes) = (reader.weights(), reader.dtype.size_bytes());
    let block = BLOCK_BYTES / size_bytes as u64;
    let mut total = Sums::default();
    for start in (0..weights).step_by(block as usize) {
        let (first, second) = reader.read(start..weights.min(start + block))?;
        let task_bytes = TASK_WEIGHTS * size_bytes;
        let tasks = first.par_chunks(task_bytes).zip(second.par_chunks(task_bytes));
        let sums: Vec<Sums> = with_element!(reader.dtype, E => {
            tasks.map(|(first, second)| Sums::of::<E>(first, second)).collect()
        });
        // Added in order: the same numbers on any number of threads.
        sums.into_iter().for_each(|sums| total.add(sums));
    }
    Ok(Change {
        weights,
        changed: total.changed,
        relative_norm: relative_norm(total.difference, total.first),
        ulps_max: total.ulps_max,
        ulps_mean: if total.changed == 0 { 0.0 } else { total.ulps / total.changed as f64 },
        not_finite: total.not_finite,
        effective_rank: effective_rank(reader, options)?,
    })
}

/// How often [`change`] reads all of a tensor.
#[cfg(feature = "edit")]
fn passes(reader: &DeltaReader<'_>, options: CheckpointOptions) -> u64 {
    1 + sketched_shape(reader, options).map_or(0, |_| Sketch::PASSES)
}

#[cfg(not(feature = "edit"))]
fn passes(_: &DeltaReader<'_>, _: CheckpointOptions) -> u64 {
    1
}

/// Of a matrix whose singular values are looked for.
#[cfg(feature = "edit")]
fn sketched_shape(reader: &DeltaReader<'_>, options: CheckpointOptions) -> Option<[usize; 2]> {
    reader.shape().filter(|shape| options.singular_values > 0 && shape[0] > 1)
}

#[cfg(feature = "edit")]
fn effective_rank(
    reader: &DeltaReader<'_>,
    options: CheckpointOptions,
) -> Result<Option<EffectiveRank>, OperationError> {
    let CheckpointOptions { singular_values, share } = options;
    let Some(shape) = sketched_shape(reader, options) else { return Ok(None) };
    let sketch = sketch_of(reader, shape, singular_values)?;
    let found = sketch.effective_rank(share);
    let rank = found.unwrap_or(sketch.values().len());
    Ok(Some(EffectiveRank { share, rank, is_more: found.is_none() }))
}

/// Without the feature `edit` there is no linear algebra to find it with.
#[cfg(not(feature = "edit"))]
fn effective_rank(
    _: &DeltaReader<'_>,
    _: CheckpointOptions,
) -> Result<Option<EffectiveRank>, OperationError> {
    Ok(None)
}

/// The largest singular values of what a tensor of the second checkpoint is less that of the first.
#[cfg(feature = "edit")]
pub(crate) fn sketch_of(
    reader: &DeltaReader<'_>,
    [rows, columns]: [usize; 2],
    size: usize,
) -> Result<Sketch, OperationError> {
    reader.by_rows(columns, |read| Sketch::of(rows, columns, size, read))
}

/// The two ways in which work on differences can fail.
#[cfg(feature = "edit")]
pub(crate) enum DeltaError {
    Read(CheckpointError),
    Factors(FactorError),
}

#[cfg(feature = "edit")]
impl From<FactorError> for DeltaError {
    fn from(error: FactorError) -> Self {
        Self::Factors(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_that_are_no_numbers_are_counted_and_left_out_of_the_size_of_a_change() {
        let bytes = |weights: [f32; 4]| weights.map(f32::to_le_bytes).concat();
        let mut total = Sums::default();
        for _ in 0..2 {
            let [first, second] = [[3.0, f32::NAN, 1.0, f32::INFINITY], [4.0, 1.0, f32::NAN, f32::INFINITY]];
            total.add(Sums::of::<f32>(&bytes(first), &bytes(second)));
        }
        assert_eq!((total.not_finite, total.changed), (6, 6));
        assert_eq!((total.first, total.difference), (18.0, 2.0));
    }
}
