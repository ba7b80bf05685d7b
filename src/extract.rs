//! A patch that makes one checkpoint of another, exactly, whatever tool edited it.
//!
//! ```text
//! D = edited - base      low rank where it is: factors of the rank that costs fewest bytes
//!                        dense where it must be, or nothing where a few weights changed
//! edited = round(base + terms) + correction      what the terms leave wrong, weight by weight
//! ```
//!
//! Rounding to the weights' type blurs an update, so the factors that are found miss some weights by a last bit. More
//! rank and wider integers cost bytes in every row and column; each weight left wrong costs bytes in the correction.
//! The choice is made on a sample of rows, by the bytes that both will take, and the result is bound to the edited
//! checkpoint's own digests.
//!
//! Memory beside the patch: two blocks of rows and the sketch (`src/factors/sketch.rs`), for 4096 by 16384 below 1 GB;
//! and 5 bytes for each weight of a tensor while a dense term is weighed for it.

use serde::Serialize;

use crate::bind::{BindError, bind_to};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::diff::{DeltaReader, Differing, Side, compare_names, sketch_of};
use crate::digest::{FileDigest, TensorDigest, WeightsId};
use crate::factors::{
    BITS_MIN, Compression, CorrectionWriter, DENSE_PASSES, FactorError, IntegerMatrix, Integers, RankLimit,
    Sketch, Term, Update, compress, corrected_of, quantize_dense, quantize_dense_rows,
};
use crate::operation::{OperationError, Progress};
use crate::patch::manifest::{About, Base, Recipe};
use crate::patch::{BindingDraft, Draft, TensorDraft};
use crate::tensor::Dtype;

/// The method that the recipe of an extracted patch names.
pub const METHOD: &str = "extract";

/// Sizes of the sketch that are tried, one after the other, while a larger one still pays.
const SKETCH_SIZES: [usize; 4] = [16, 64, 256, 1024];
/// Widths of factors that are tried: beyond 16 there are none, and below 8 bits the correction costs more.
const FACTOR_BITS: [u8; 3] = [8, 12, 16];
/// Widths of dense integers that are tried.
const DENSE_BITS: [u8; 2] = [8, 16];
/// Weights of the sample that choices are made on, at least, where a tensor has them.
const SAMPLE_WEIGHTS: usize = 1 << 18;
/// Stretches of rows that the sample is taken from.
const SAMPLE_STRETCHES: usize = 8;
/// Relative gain in bytes for which a larger sketch is tried once more.
const WORTHWHILE_GAIN: f64 = 0.02;
/// From so many rows and columns on larger sketches take long.
const LARGE: f64 = 1024.0;
/// What terms must save against corrections alone: estimates do not count what sections cost by being there.
const TERMS_GAIN_BYTES: f64 = 256.0;

/// Two checkpoints between which there is no patch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExtractError {
    /// Reading a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Comparing tensors.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Binding the terms.
    #[error(transparent)]
    Bind(BindError),
    /// The arithmetic refused.
    #[error("tensor `{tensor}`")]
    Factors {
        /// The tensor.
        tensor: String,
        /// Why.
        source: FactorError,
    },
    /// They are the same.
    #[error("both hold the same weights: there is nothing to extract")]
    Same,
    /// A patch neither adds nor removes tensors.
    #[error("tensor `{tensor}` is in the {side} checkpoint only: a patch neither adds nor removes tensors")]
    OneSided {
        /// The tensor.
        tensor: String,
        /// Which one holds it.
        side: Side,
    },
    /// A tensor that no patch can make of the other.
    #[error(
        "tensor `{tensor}` differs and is {found}: a patch changes matrices and vectors of F32, F16 and BF16"
    )]
    Kind {
        /// The tensor.
        tensor: String,
        /// What it is in both.
        found: String,
    },
    /// The edited checkpoint was changed meanwhile.
    #[error("tensor `{tensor}` comes out as {found}, the edited checkpoint has {expected}")]
    NotExact {
        /// The tensor.
        tensor: String,
        /// The edited checkpoint's digest.
        expected: TensorDigest,
        /// The patch's.
        found: TensorDigest,
    },
}

impl From<BindError> for ExtractError {
    /// What is wrong with a checkpoint, or that work on it was stopped, stands in one place.
    fn from(error: BindError) -> Self {
        match error {
            BindError::Checkpoint(error) => Self::Checkpoint(error),
            error => Self::Bind(error),
        }
    }
}

/// An extracted patch and how it came out.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Extracted {
    /// The patch; [`crate::patch::encode`] gives its bytes.
    pub draft: Draft,
    /// Its tensors, in bytewise order of names.
    pub tensors: Vec<ExtractedTensor>,
}

/// How the change of one tensor is stored.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExtractedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, as rows and columns.
    pub shape: [u64; 2],
    /// How its terms are stored.
    pub form: Form,
    /// Weights that the correction corrects.
    pub corrected: u64,
    /// All weights.
    pub weights: u64,
    /// Size of the tensor itself in bytes.
    pub tensor_size_bytes: u64,
}

/// How the terms of a change are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Factors.
    LowRank {
        /// Their rank.
        rank: usize,
        /// Width of their integers.
        bits: u8,
    },
    /// One integer for each weight.
    Dense {
        /// Its width.
        bits: u8,
    },
    /// No terms to speak of: the correction says everything.
    Corrections,
}

/// Extracts the patch that makes `edited` of `base`; `model` is what the patch is for.
///
/// `progress` is told bytes: all weights of both, and what `announce` is told before it is read: how often that is what
/// differs shows only on the way.
///
/// # Errors
/// [`ExtractError::Same`], [`ExtractError::OneSided`] and [`ExtractError::Kind`] where no patch leads from one to the
/// other; [`ExtractError::NotExact`] where the edited one changes meanwhile;
/// [`ExtractError::Checkpoint`] where either cannot
/// be read; the others where the arithmetic fails.
pub fn extract(
    base: &Checkpoint,
    edited: &Checkpoint,
    model: Base,
    tool: &str,
    about: About,
    announce: Progress<'_>,
    progress: Progress<'_>,
) -> Result<Extracted, ExtractError> {
    let names = compare_names(base, edited, progress)?;
    for (tensors, side) in [(&names.removed, Side::First), (&names.added, Side::Second)] {
        if let Some(tensor) = tensors.first() {
            return Err(ExtractError::OneSided { tensor: tensor.clone(), side });
        }
    }
    if names.differing.is_empty() {
        return Err(ExtractError::Same);
    }
    let mut works = Vec::new();
    for tensor in &names.differing {
        let reader = DeltaReader::new([base, edited], tensor, announce, progress);
        let work =
            reader.and_then(|reader| Some(Work { shape: reader.shape()?, reader, result: tensor.result }));
        works.push(work.ok_or_else(|| of_no_patch(tensor))?);
    }
    // Every tensor is sketched once at least, and bound.
    works.iter().for_each(|work| work.reader.announce(Sketch::PASSES + 1));
    let (terms, binding, tensors) = bind_each(base, edited, names.weights[0], &works, progress)?;
    check_unchanged(&binding, &works)?;
    let recipe = recipe(names.weights[1].to_string(), tool);
    let draft = Draft { about, ..Draft::new(model, recipe, terms, vec![binding]) };
    Ok(Extracted { draft, tensors })
}

/// A tensor that differs.
struct Work<'a> {
    reader: DeltaReader<'a>,
    /// Its rows and columns.
    shape: [usize; 2],
    /// Its digest in the edited checkpoint.
    result: TensorDigest,
}

fn of_no_patch(Differing { first, second, .. }: &Differing<'_>) -> ExtractError {
    let [one, other] = [first, second].map(|info| format!("{} {:?}", info.dtype, info.shape));
    let found = if one == other { one } else { format!("{one} in one and {other} in the other") };
    ExtractError::Kind { tensor: first.name.clone(), found }
}

/// Chooses a term for each tensor and binds it.
fn bind_each(
    base: &Checkpoint,
    edited: &Checkpoint,
    weights: WeightsId,
    works: &[Work<'_>],
    progress: Progress<'_>,
) -> Result<(Vec<Term>, BindingDraft, Vec<ExtractedTensor>), ExtractError> {
    let (mut terms, mut tensors) = (Vec::new(), Vec::new());
    let mut binding = BindingDraft { weights, tensors: Vec::new() };
    for Work { reader, shape, .. } in works {
        let name = reader.name();
        let (term, mut form) = choose(name, reader, *shape)?;
        // Tensors are far fewer than a u32 counts.
        let edits = [(name.to_owned(), vec![terms.len() as u32])];
        terms.push(term);
        let bind = |terms: &[Term]| bind_to(base, edited, weights, &edits, terms, progress);
        let bound = match bind(&terms) {
            // In a row that the sample does not have.
            Err(BindError::Factors { source: FactorError::Overflow { .. }, .. }) => {
                let zero = Term::zero(*shape, BITS_MIN);
                terms.pop();
                terms.push(zero.map_err(|source| ExtractError::Factors { tensor: name.to_owned(), source })?);
                form = Form::Corrections;
                reader.announce(1);
                bind(&terms)?
            }
            bound => bound?,
        };
        tensors.extend(bound.tensors.iter().map(|tensor| came_out(tensor, form)));
        binding.tensors.extend(bound.tensors);
    }
    Ok((terms, binding, tensors))
}

/// The edited checkpoint is bound to as it was when it was compared.
fn check_unchanged(binding: &BindingDraft, works: &[Work<'_>]) -> Result<(), ExtractError> {
    for (tensor, work) in binding.tensors.iter().zip(works) {
        if tensor.after != work.result {
            let (tensor, expected, found) = (tensor.name.clone(), work.result, tensor.after);
            return Err(ExtractError::NotExact { tensor, expected, found });
        }
    }
    Ok(())
}

fn came_out(tensor: &TensorDraft, form: Form) -> ExtractedTensor {
    let weights = tensor.shape[0] * tensor.shape[1];
    ExtractedTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape,
        form,
        corrected: corrected_of(tensor.correction.as_deref(), weights),
        weights,
        tensor_size_bytes: weights * tensor.dtype.size_bytes() as u64,
    }
}

fn recipe(edited: String, tool: &str) -> Recipe {
    let nothing = FileDigest::of_nothing();
    Recipe {
        method: METHOD.to_owned(),
        hyperparameters: serde_json::json!({ "edited": edited }).to_string(),
        layers: Vec::new(),
        contexts: Vec::new(),
        seed: 0,
        statistics: nothing,
        facts: nothing,
        tool: tool.to_owned(),
        device: "cpu".to_owned(),
    }
}

// ---------------------------------------------------------------------------------------------------- the choice --

/// A way to store a change, and the bytes that it is estimated to take, correction included.
struct Candidate {
    term: Term,
    form: Form,
    size_bytes: f64,
}

fn choose(name: &str, reader: &DeltaReader<'_>, shape: [usize; 2]) -> Result<(Term, Form), ExtractError> {
    let failed = |source| ExtractError::Factors { tensor: name.to_owned(), source };
    let sample = Sample::read(reader, shape)?;
    let zero = Term::zero(shape, BITS_MIN).map_err(failed)?;
    let mut best = sample.estimate(zero, Form::Corrections).map_err(failed)?;
    best.size_bytes -= TERMS_GAIN_BYTES;
    let corrections_alone = best.size_bytes;
    for size in SKETCH_SIZES.into_iter().filter(|size| *size <= sketch_size_max(shape)) {
        if size > SKETCH_SIZES[0] {
            reader.announce(Sketch::PASSES);
        }
        let Some(sketch) = unless_refused(sketch_of(reader, shape, size))? else { break };
        let before = best.size_bytes;
        for candidate in low_rank(&sketch, &sample) {
            if candidate.size_bytes < best.size_bytes {
                best = candidate;
            }
        }
        let is_done = sketch.values().len() < size || is_flat(&sketch, shape);
        // A small sketch of a change of high rank gains nothing yet; the next one may.
        let worthwhile =
            best.size_bytes < (1.0 - WORTHWHILE_GAIN) * before || best.size_bytes == corrections_alone;
        if is_done || !worthwhile {
            break;
        }
    }
    if let Some(bits) = dense_bits(&sample, best.size_bytes) {
        let [rows, columns] = shape;
        reader.announce(DENSE_PASSES);
        let term = reader.by_rows(columns, |read| quantize_dense_rows(rows, columns, bits, read));
        // The whole may turn out otherwise than its sample.
        let dense = unless_refused(term)?.and_then(|term| sample.estimate(term, Form::Dense { bits }).ok());
        best = dense.filter(|dense| dense.size_bytes < best.size_bytes).unwrap_or(best);
    }
    Ok((best.term, best.form))
}

/// What came out, unless the arithmetic refused it: that is no candidate, for corrections alone always do.
fn unless_refused<T>(found: Result<T, OperationError>) -> Result<Option<T>, OperationError> {
    match found {
        Err(OperationError::Factors { .. }) => Ok(None),
        found => found.map(Some),
    }
}

/// The singular values of a large matrix hold little more than random ones would: there is no low rank to be found,
/// and looking for it with a larger sketch would take minutes.
fn is_flat(sketch: &Sketch, [rows, columns]: [usize; 2]) -> bool {
    let (size, smaller) = (sketch.values().len() as f64, rows.min(columns) as f64);
    let held: f64 = sketch.values().iter().map(|value| value * value).sum();
    // The largest squared singular value of a random square matrix is four times their mean.
    smaller > LARGE && held < 4.0 * size / smaller * sketch.norm().powi(2)
}

/// Beyond it a dense term is smaller than factors.
fn sketch_size_max([rows, columns]: [usize; 2]) -> usize {
    let rank = rows * columns / (rows + columns);
    SKETCH_SIZES.into_iter().find(|size| *size >= rank).unwrap_or(SKETCH_SIZES[SKETCH_SIZES.len() - 1])
}

/// Factors of several ranks at the width that suits the likeliest rank best.
fn low_rank(sketch: &Sketch, sample: &Sample) -> Vec<Candidate> {
    let candidate = |rank: usize, bits: u8| {
        let term = compress(&sketch.factors(rank), &Compression { bits, limit: RankLimit::Full })?;
        let form = match term.integers() {
            Integers::LowRank { .. } => Form::LowRank { rank: term.rank(), bits },
            Integers::Dense(_) => Form::Dense { bits },
        };
        sample.estimate(term, form)
    };
    let Some(likeliest) = likeliest_rank(sketch.values()) else { return Vec::new() };
    // A rank whose update overflows somewhere is not a candidate; others may be.
    let mut found: Vec<Candidate> =
        FACTOR_BITS.into_iter().filter_map(|bits| candidate(likeliest, bits).ok()).collect();
    let Some(best) = found.iter().min_by(|one, other| one.size_bytes.total_cmp(&other.size_bytes)) else {
        return found;
    };
    let (Form::LowRank { bits, .. } | Form::Dense { bits }) = best.form else { return found };
    let all = sketch.values().len();
    let others = [all, all / 2, all / 4, likeliest / 2];
    let others = others.into_iter().filter(|rank| *rank > 0 && *rank != likeliest);
    found.extend(others.filter_map(|rank| candidate(rank, bits).ok()));
    found
}

/// The rank after which singular values fall most steeply.
fn likeliest_rank(values: &[f64]) -> Option<usize> {
    let falls = values.windows(2).map(|pair| pair[0] / pair[1]);
    let steepest = falls.enumerate().max_by(|one, other| one.1.total_cmp(&other.1));
    match steepest {
        Some((index, fall)) if fall > 2.0 => Some(index + 1),
        _ => (!values.is_empty()).then_some(values.len()),
    }
}

/// The width at which a dense term would take fewer bytes than `size_bytes`, by the sample's rows alone.
fn dense_bits(sample: &Sample, size_bytes: f64) -> Option<u8> {
    let mut best = (size_bytes, None);
    for bits in DENSE_BITS {
        match sample.estimate_dense(bits) {
            Ok(size) if size < best.0 => best = (size, Some(bits)),
            // A term that overflows, or that no scales fit, is no candidate.
            _ => {}
        }
    }
    best.1
}

/// Some rows that follow each other, before and after.
struct Stretch {
    row_first: usize,
    before: Vec<u8>,
    after: Vec<u8>,
}

/// Stretches of rows that stand for a tensor.
struct Sample {
    dtype: Dtype,
    shape: [usize; 2],
    stretches: Vec<Stretch>,
    /// What is after less what is before, all stretches in turn.
    deltas: Vec<f64>,
    rows: usize,
}

impl Sample {
    fn read(reader: &DeltaReader<'_>, shape: [usize; 2]) -> Result<Self, ExtractError> {
        let [rows, columns] = shape;
        let stretch = SAMPLE_WEIGHTS.div_ceil(columns).div_ceil(SAMPLE_STRETCHES).min(rows);
        let mut sample =
            Self { dtype: reader.dtype, shape, stretches: Vec::new(), deltas: Vec::new(), rows: 0 };
        let mut next = 0;
        for index in 0..SAMPLE_STRETCHES {
            // Evenly spread, none twice.
            let first = next.max(index * rows / SAMPLE_STRETCHES);
            let end = rows.min(first + stretch);
            if first >= end {
                continue;
            }
            let range = (first * columns) as u64..(end * columns) as u64;
            reader.announce_range(&range);
            let (before, after) = reader.read(range)?;
            sample.deltas.extend(reader.deltas(&before, &after));
            sample.stretches.push(Stretch { row_first: first, before, after });
            sample.rows += end - first;
            next = end;
        }
        Ok(sample)
    }

    /// How many bytes `term` and the correction of what it leaves wrong will take.
    fn estimate(&self, term: Term, form: Form) -> Result<Candidate, FactorError> {
        let update = Update::new(vec![term.clone()])?;
        let mut correction = CorrectionWriter::new(self.rows, self.shape[1]);
        let mut row = 0;
        for Stretch { row_first, before, after } in &self.stretches {
            let rows = before.len() / (self.shape[1] * self.dtype.size_bytes());
            let mut given = before.clone();
            update.apply_rows(self.dtype, *row_first..row_first + rows, &mut given)?;
            correction.push_rows(self.dtype, row..row + rows, &given, after)?;
            row += rows;
        }
        let size_bytes = term_size_bytes(&term) + self.scaled(&correction);
        Ok(Candidate { term, form, size_bytes })
    }

    /// As [`Sample::estimate`], of a dense term for the sample's rows alone.
    fn estimate_dense(&self, bits: u8) -> Result<f64, FactorError> {
        let columns = self.shape[1];
        let term = quantize_dense(&self.deltas, self.rows, columns, bits)?;
        let integers = term_size_bytes(&term);
        let update = Update::new(vec![term])?;
        let mut given =
            self.stretches.iter().map(|stretch| stretch.before.as_slice()).collect::<Vec<_>>().concat();
        let after =
            self.stretches.iter().map(|stretch| stretch.after.as_slice()).collect::<Vec<_>>().concat();
        let mut correction = CorrectionWriter::new(self.rows, columns);
        update.apply_rows(self.dtype, 0..self.rows, &mut given)?;
        correction.push_rows(self.dtype, 0..self.rows, &given, &after)?;
        Ok(self.scaled(&correction) + integers * self.shape[0] as f64 / self.rows as f64)
    }

    /// Bytes of the whole tensor's correction, from those of the sample's.
    fn scaled(&self, correction: &CorrectionWriter) -> f64 {
        let weights = self.rows * self.shape[1];
        let planes: f64 = correction.planes().map(entropy_bytes).sum();
        // What zstd makes of bits that are set now and then: a little more than their entropy.
        let share = correction.corrected() as f64 / weights as f64;
        let bits = weights as f64 / 8.0 * 1.25 * binary_entropy(share);
        (bits + planes) * self.shape[0] as f64 / self.rows as f64
    }
}

/// Bytes of a term's sections, by the entropy of its integers.
fn term_size_bytes(term: &Term) -> f64 {
    let scales = 4.0 * (term.rows() + term.columns()) as f64;
    let bytes = |matrix: &IntegerMatrix| {
        let planes = if matrix.bits() <= 8 { 1 } else { 2 };
        // Row by row: as a whole the integers would be in memory once more.
        let plane = |plane: usize| {
            let rows = (0..matrix.rows()).map(|row| matrix.row(row).into_owned());
            rows.flatten().map(move |value| value.to_le_bytes()[plane])
        };
        (0..planes).map(|index| entropy_bytes(plane(index))).sum::<f64>()
    };
    scales
        + match term.integers() {
            Integers::LowRank { left, right } => bytes(left) + bytes(right),
            Integers::Dense(dense) => bytes(dense),
        }
}

fn entropy_bytes(bytes: impl IntoIterator<Item = u8>) -> f64 {
    let mut counts = [0_usize; 256];
    bytes.into_iter().for_each(|byte| counts[usize::from(byte)] += 1);
    let size = counts.iter().sum::<usize>() as f64;
    let part = |count: &usize| {
        let count = *count as f64;
        if count == 0.0 { 0.0 } else { count * (size / count).log2() }
    };
    counts.iter().map(part).sum::<f64>() / 8.0
}

fn binary_entropy(share: f64) -> f64 {
    let part = |share: f64| if share <= 0.0 { 0.0 } else { -share * share.log2() };
    part(share) + part(1.0 - share)
}
