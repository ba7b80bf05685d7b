//! Binding terms to a checkpoint: the digests before and after, and the undo log, for each tensor they touch.
//!
//! A patch says beforehand which bytes it will give. Here is where that is found out: the terms are added to the
//! weights as they lie in the file, block by block, with the arithmetic that applying uses; nothing is written.

pub(crate) mod norms;

use std::collections::BTreeSet;

use rayon::prelude::*;

use self::norms::Norms;
use crate::checkpoint::{Checkpoint, CheckpointError, TensorInfo};
use crate::digest::{TensorDigest, WeightsId};
use crate::factors::{Correction, CorrectionWriter, FactorError, Kernel, Term, UndoWriter, Update};
use crate::operation::{Progress, row_blocks};
use crate::patch::{BindingDraft, TensorDraft};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// Terms that cannot be bound to a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Reading the weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The same tensor is edited twice; its terms belong into one list.
    #[error("tensor `{tensor}` is listed twice")]
    Twice {
        /// The tensor.
        tensor: String,
    },
    /// A term that is not there.
    #[error("tensor `{tensor}` asks for term {index} of {terms}")]
    NoSuchTerm {
        /// The tensor.
        tensor: String,
        /// The index.
        index: u32,
        /// How many terms there are.
        terms: usize,
    },
    /// An element type that a patch cannot touch.
    #[error("tensor `{tensor}` is {found}: a patch can change F32, F16 and BF16")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// Its element type, as safetensors writes it.
        found: String,
    },
    /// Two checkpoints have a tensor in two types.
    #[error("tensor `{tensor}` is {found} in the edited checkpoint, and {expected} in the base")]
    OtherDtype {
        /// The tensor.
        tensor: String,
        /// Its element type in the base, as safetensors writes it.
        expected: String,
        /// That in the other.
        found: String,
    },
    /// The terms have another shape than the tensor.
    #[error("tensor `{tensor}` has shape {found:?}, the update has {expected:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The terms' shape, `[out, in]`.
        expected: [u64; 2],
        /// The tensor's.
        found: Vec<u64>,
    },
    /// The weights are broken already.
    #[error(
        "tensor `{tensor}` holds {count} NaN or infinite weights, the first at row {row}, column {column}: \
         a patch is not made on broken weights"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Row of the first one.
        row: usize,
        /// Column of the first one.
        column: usize,
        /// How many there are.
        count: u64,
    },
    /// The arithmetic refused.
    #[error("tensor `{tensor}`")]
    Factors {
        /// The tensor.
        tensor: String,
        /// Why.
        source: FactorError,
    },
}

/// What to do about weights that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotFinite {
    /// Make no patch on them.
    Refuse,
    /// Leave them as they are, as applying does.
    Keep,
}

/// Refuses tensors that hold NaN or infinity: no patch can be made on such weights.
///
/// [`bind`] refuses them too, but only when everything else is done.
///
/// # Errors
/// [`BindError::NotFinite`] or [`BindError::Checkpoint`].
pub fn check_finite(checkpoint: &Checkpoint, tensors: &[String]) -> Result<(), BindError> {
    for name in tensors {
        let info = checkpoint.tensor(name)?;
        let Some(dtype) = info.element_dtype() else { continue };
        if let Some((first, count)) = with_element!(dtype, E => not_finite_of::<E>(checkpoint, info))? {
            let columns = info.shape.last().map_or(1, |columns| (*columns).max(1) as usize);
            let (row, column) = (first / columns, first % columns);
            return Err(BindError::NotFinite { tensor: name.clone(), row, column, count });
        }
    }
    Ok(())
}

/// Bytes of a tensor that are looked through at once, a whole number of weights of any type.
const FINITE_BLOCK_BYTES: u64 = 2 << 20;

/// As [`not_finite`], of a tensor in its file, several blocks at a time.
fn not_finite_of<E: Element>(
    checkpoint: &Checkpoint,
    info: &TensorInfo,
) -> Result<Option<(usize, u64)>, CheckpointError> {
    let look = |bytes: &mut Vec<u8>, block: u64| {
        let offset = block * FINITE_BLOCK_BYTES;
        bytes.resize(FINITE_BLOCK_BYTES.min(info.size_bytes - offset) as usize, 0);
        checkpoint.read_at(info, offset, bytes)?;
        let first = offset as usize / E::DTYPE.size_bytes();
        Ok(not_finite::<E>(bytes).map(|(index, count)| (first + index, count)))
    };
    let blocks = (0..info.size_bytes.div_ceil(FINITE_BLOCK_BYTES)).into_par_iter();
    let found: Vec<_> = blocks.map_init(Vec::new, look).collect::<Result<_, CheckpointError>>()?;
    let broken = found.into_iter().flatten();
    Ok(broken.reduce(|(first, before), (_, count)| (first, before + count)))
}

/// Index of the first weight that is NaN or infinite, and the number of them, where there are any.
fn not_finite<E: Element>(bytes: &[u8]) -> Option<(usize, u64)> {
    let weights = bytes.chunks_exact(E::DTYPE.size_bytes()).map(E::read).enumerate();
    let mut broken = weights.filter(|(_, weight)| !weight.is_finite());
    let (first, _) = broken.next()?;
    Some((first, 1 + broken.count() as u64))
}

/// Binds `edits`, tensor names with indices into `terms`, to a checkpoint whose weights have the id `weights`.
///
/// `progress` is told bytes, the sizes of the edited tensors in all.
///
/// ```
/// use mpatch::bind::bind;
/// use mpatch::checkpoint::{Checkpoint, NewTensor, write_safetensors};
/// use mpatch::digest::FileDigest;
/// use mpatch::factors::{IntegerMatrix, Integers, Term};
/// use mpatch::patch::manifest::{Base, Recipe};
/// use mpatch::patch::{Draft, Patch, encode};
/// use mpatch::tensor::Dtype;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("model.safetensors");
/// # let tensor = NewTensor { name: "h.0.weight".to_owned(), dtype: Dtype::F32, shape: vec![2, 3] };
/// # let weights = 1.0_f32.to_le_bytes().repeat(6);
/// # write_safetensors(&path, &Default::default(), &[tensor], |_, sink| sink.write_all(&weights))?;
/// let checkpoint = Checkpoint::open(&path)?;
/// // Integers of four bits, which the scales of their rows and columns make the update.
/// let integers = IntegerMatrix::new("the update", 2, 3, 4, vec![7, -7, 0, 1, 2, 3])?;
/// let terms = vec![Term::new(Integers::Dense(integers), vec![0.5; 2], vec![0.25; 3])?];
/// let edits = [("h.0.weight".to_owned(), vec![0])];
/// let binding = bind(&checkpoint, checkpoint.weights_id()?, &edits, &terms, &|_| ())?;
///
/// # let nothing = FileDigest::of_nothing();
/// let base = Base { architecture: "GPTJForCausalLM".to_owned(), config: nothing, tokenizer: nothing };
/// let recipe = Recipe {
///     method: "by hand".to_owned(),
///     hyperparameters: String::new(),
///     layers: vec![0],
///     contexts: vec![],
///     seed: 0,
///     statistics: nothing,
///     facts: nothing,
///     tool: "an example".to_owned(),
///     device: "cpu".to_owned(),
/// };
/// let bytes = encode(&Draft::new(base, recipe, terms, vec![binding]))?;
/// assert_eq!(Patch::decode(bytes)?.manifest().bindings[0].tensors[0].name, "h.0.weight");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`BindError::Twice`], [`BindError::NoSuchTerm`], [`BindError::Dtype`], [`BindError::Shape`] and
/// [`BindError::Factors`] where the terms do not fit the tensors, [`BindError::NotFinite`] for weights that are NaN or
/// infinite, [`BindError::Checkpoint`] where they cannot be read or a tensor is missing.
pub fn bind(
    checkpoint: &Checkpoint,
    weights: WeightsId,
    edits: &[(String, Vec<u32>)],
    terms: &[Term],
    progress: Progress<'_>,
) -> Result<BindingDraft, BindError> {
    bind_with(checkpoint, weights, edits, terms, NotFinite::Refuse, progress)
}

/// As [`bind`], with a choice about weights that are NaN or infinite.
///
/// # Errors
/// As [`bind`]; [`BindError::NotFinite`] only with [`NotFinite::Refuse`].
pub fn bind_with(
    checkpoint: &Checkpoint,
    weights: WeightsId,
    edits: &[(String, Vec<u32>)],
    terms: &[Term],
    not_finite: NotFinite,
    progress: Progress<'_>,
) -> Result<BindingDraft, BindError> {
    let works = works(checkpoint, edits, terms)?;
    let tensors = works.iter().map(|work| work.bind(checkpoint, None, not_finite, progress));
    Ok(BindingDraft { weights, tensors: tensors.collect::<Result<_, _>>()? })
}

/// As [`bind_with`], keeping broken weights, with a correction wherever the terms alone do not give `edited`: the
/// result is exactly that checkpoint's tensors.
///
/// `progress` is told bytes, the sizes of the edited tensors of both.
///
/// # Errors
/// [`BindError`]; [`BindError::Shape`] also, and [`BindError::OtherDtype`], where the two checkpoints differ.
#[cfg(any(test, feature = "edit"))]
pub(crate) fn bind_to(
    checkpoint: &Checkpoint,
    edited: &Checkpoint,
    weights: WeightsId,
    edits: &[(String, Vec<u32>)],
    terms: &[Term],
    progress: Progress<'_>,
) -> Result<BindingDraft, BindError> {
    let works = works(checkpoint, edits, terms)?;
    let targets = works.iter().map(|work| work.target(edited)).collect::<Result<Vec<_>, _>>()?;
    let pairs = works.iter().zip(&targets);
    let tensors = pairs.map(|(work, target)| work.bind(checkpoint, Some(target), NotFinite::Keep, progress));
    Ok(BindingDraft { weights, tensors: tensors.collect::<Result<_, _>>()? })
}

/// What there is to do for each of `edits`: what headers can tell is told here, before the first weight is read.
fn works<'a>(
    checkpoint: &'a Checkpoint,
    edits: &'a [(String, Vec<u32>)],
    terms: &'a [Term],
) -> Result<Vec<Work<'a>>, BindError> {
    let mut names = BTreeSet::new();
    if let Some((name, _)) = edits.iter().find(|(name, _)| !names.insert(name)) {
        return Err(BindError::Twice { tensor: name.clone() });
    }
    edits.iter().map(|(name, indices)| Work::new(checkpoint, name, indices, terms)).collect()
}

/// One tensor and the terms for it.
struct Work<'a> {
    info: &'a TensorInfo,
    dtype: Dtype,
    shape: [u64; 2],
    indices: &'a [u32],
    terms: &'a [Term],
}

/// The tensor that one is to become.
struct Target<'a> {
    checkpoint: &'a Checkpoint,
    info: &'a TensorInfo,
}

impl<'a> Work<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        name: &str,
        indices: &'a [u32],
        terms: &'a [Term],
    ) -> Result<Self, BindError> {
        let info = checkpoint.tensor(name)?;
        let tensor = || name.to_owned();
        let dtype = info
            .element_dtype()
            .ok_or_else(|| BindError::Dtype { tensor: tensor(), found: info.dtype.clone() })?;
        let count = terms.len();
        let mut shape = None;
        for &index in indices {
            let Some(term) = terms.get(index as usize) else {
                return Err(BindError::NoSuchTerm { tensor: tensor(), index, terms: count });
            };
            let expected = [term.rows() as u64, term.columns() as u64];
            if info.matrix_shape() != Some(expected) {
                return Err(BindError::Shape { tensor: tensor(), expected, found: info.shape.clone() });
            }
            shape = Some(expected);
        }
        let no_terms = || BindError::Factors { tensor: tensor(), source: FactorError::NoTerms };
        let shape = shape.ok_or_else(no_terms)?;
        Ok(Self { info, dtype, shape, indices, terms })
    }

    /// The same tensor of another checkpoint, if it is one of the same kind.
    #[cfg_attr(
        not(feature = "edit"),
        allow(dead_code, reason = "only extracting binds to another checkpoint")
    )]
    fn target<'t>(&self, checkpoint: &'t Checkpoint) -> Result<Target<'t>, BindError> {
        let info = checkpoint.tensor(&self.info.name)?;
        let tensor = || self.info.name.clone();
        if info.dtype != self.info.dtype {
            let (expected, found) = (self.info.dtype.clone(), info.dtype.clone());
            return Err(BindError::OtherDtype { tensor: tensor(), expected, found });
        }
        if info.shape != self.info.shape {
            let (expected, found) = (self.shape, info.shape.clone());
            return Err(BindError::Shape { tensor: tensor(), expected, found });
        }
        Ok(Target { checkpoint, info })
    }

    fn bind(
        &self,
        checkpoint: &Checkpoint,
        target: Option<&Target<'_>>,
        not_finite: NotFinite,
        progress: Progress<'_>,
    ) -> Result<TensorDraft, BindError> {
        let terms = self.indices.iter().map(|index| Ok(self.terms[*index as usize].clone()));
        let update = Update::of(Kernel::best(), terms, |source| self.factors_error(source))?;
        let (rows, columns) = (update.rows(), update.columns());
        let mut totals = Totals::new(rows, columns);
        let mut correction = target.map(|_| CorrectionWriter::new(rows, columns));
        let (mut before, mut given, mut after) = (Vec::new(), Vec::new(), Vec::new());
        let row_size_bytes = columns * self.dtype.size_bytes();
        for block in row_blocks(rows, columns, self.dtype) {
            before.resize(block.len() * row_size_bytes, 0);
            let offset = block.start as u64 * row_size_bytes as u64;
            checkpoint.read_at(self.info, offset, &mut before)?;
            given.clone_from(&before);
            let failed = |source| self.factors_error(source);
            // The undo log takes back what the terms gave; a correction is taken back before.
            totals.undo.apply_rows(&update, self.dtype, block.clone(), &mut given).map_err(failed)?;
            let result = match (target, &mut correction) {
                (Some(target), Some(correction)) => {
                    after.resize(before.len(), 0);
                    target.checkpoint.read_at(target.info, offset, &mut after)?;
                    correction.push_rows(self.dtype, block.clone(), &given, &after).map_err(failed)?;
                    prove_corrected(self.dtype, columns, &given, &after).map_err(failed)?;
                    &after
                }
                _ => &given,
            };
            totals.add(self.dtype, block.start * columns, columns, &before, result);
            progress((before.len() + after.len()) as u64);
        }
        if let (NotFinite::Refuse, Some((row, column))) = (not_finite, totals.first_not_finite) {
            let (tensor, count) = (self.info.name.clone(), totals.not_finite);
            return Err(BindError::NotFinite { tensor, row, column, count });
        }
        self.draft(totals, correction)
    }

    fn draft(&self, totals: Totals, correction: Option<CorrectionWriter>) -> Result<TensorDraft, BindError> {
        let correction = correction.map_or(Ok(None), CorrectionWriter::finish);
        Ok(TensorDraft {
            name: self.info.name.clone(),
            dtype: self.dtype,
            shape: self.shape,
            before: TensorDigest::finish(&totals.before),
            after: TensorDigest::finish(&totals.after),
            norm_ratio: totals.norms.ratio(),
            terms: self.indices.to_vec(),
            undo: totals.undo.finish().map_err(|source| self.factors_error(source))?,
            correction: correction.map_err(|source| self.factors_error(source))?,
        })
    }

    fn factors_error(&self, source: FactorError) -> BindError {
        BindError::Factors { tensor: self.info.name.clone(), source }
    }
}

/// Proves that a correction, as it is written and read, makes the `wanted` bytes of some rows of the `given`: what
/// binding to a checkpoint promises is its tensors, and not only the digests that were computed from them.
fn prove_corrected(dtype: Dtype, columns: usize, given: &[u8], wanted: &[u8]) -> Result<(), FactorError> {
    let rows = given.len() / (columns * dtype.size_bytes()).max(1);
    let mut writer = CorrectionWriter::new(rows, columns);
    writer.push_rows(dtype, 0..rows, given, wanted)?;
    let mut made = given.to_vec();
    if let Some(bytes) = writer.finish()? {
        Correction::parse(bytes, dtype, rows, columns)?.apply_rows(dtype, 0..rows, &mut made)?;
    }
    if made == wanted {
        return Ok(());
    }
    Err(FactorError::Correction("what is written does not give the edited weights".to_owned()))
}

/// What is gathered over the blocks of one tensor.
struct Totals {
    before: blake3::Hasher,
    after: blake3::Hasher,
    undo: UndoWriter,
    norms: Norms,
    not_finite: u64,
    first_not_finite: Option<(usize, usize)>,
}

impl Totals {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            before: blake3::Hasher::new(),
            after: blake3::Hasher::new(),
            undo: UndoWriter::new(rows, columns),
            norms: Norms::default(),
            not_finite: 0,
            first_not_finite: None,
        }
    }

    /// Adds a block whose first weight is `weight_first`: the tensor's bytes before and after.
    fn add(&mut self, dtype: Dtype, weight_first: usize, columns: usize, before: &[u8], after: &[u8]) {
        let Self { norms, before: before_hasher, after: after_hasher, .. } = self;
        // The norms are summed weight after weight, and so on one thread: the others hash.
        let (broken, _) = rayon::join(
            || with_element!(dtype, E => norms.add::<E>(before, after)),
            || rayon::join(|| before_hasher.update_rayon(before), || after_hasher.update_rayon(after)),
        );
        if let (Some(first), None) = (broken.first, self.first_not_finite) {
            let first = weight_first + first;
            self.first_not_finite = Some((first / columns, first % columns));
        }
        self.not_finite += broken.count;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::checkpoint::{NewTensor, write_safetensors};

    #[test]
    fn a_broken_weight_is_named_by_its_place_however_far_into_a_tensor_it_lies() {
        const ROWS: usize = 4300;
        const COLUMNS: usize = 1000;
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let shape = vec![ROWS as u64, COLUMNS as u64];
        let tensor = NewTensor { name: "a".to_owned(), dtype: Dtype::F16, shape };
        write_safetensors(&path, &BTreeMap::new(), &[tensor], |_, sink| {
            let mut bytes = vec![0; 2 * ROWS * COLUMNS];
            for (row, column) in [(2150, 7), (ROWS - 1, COLUMNS - 1)] {
                let place = 2 * (row * COLUMNS + column);
                bytes[place..place + 2].copy_from_slice(&0x7e00_u16.to_le_bytes());
            }
            sink.write_all(&bytes)
        })
        .expect("written");
        let checkpoint = Checkpoint::open(&path).expect("weights");
        let seen = check_finite(&checkpoint, &["a".to_owned()]).expect_err("NaN");
        let (edits, terms) = ([("a".to_owned(), vec![0])], [Term::zero([ROWS, COLUMNS], 2).expect("zeros")]);
        let weights = checkpoint.weights_id().expect("weights");
        // Of two threads, which read the first of them behind their first block.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
        let bound = pool.install(|| bind(&checkpoint, weights, &edits, &terms, &|_| ())).expect_err("NaN");
        for found in [seen, bound].map(|error| error.to_string()) {
            assert!(found.contains("2 NaN or infinite weights, the first at row 2150, column 7"), "{found}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_by_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let opened = |name: &str, dtype: Dtype, shape: [u64; 2]| {
            let path = folder.path().join(name);
            let tensor = NewTensor { name: "a".to_owned(), dtype, shape: shape.to_vec() };
            let bytes = vec![0; dtype.size_bytes() * (shape[0] * shape[1]) as usize];
            write_safetensors(&path, &BTreeMap::new(), &[tensor], |_, sink| sink.write_all(&bytes))
                .expect("written");
            Checkpoint::open(&path).expect("weights")
        };
        let base = opened("base.safetensors", Dtype::F16, [2, 3]);
        let weights = base.weights_id().expect("weights");
        let terms = [Term::zero([2, 3], 2).expect("zeros")];
        let edit = |indices: &[u32]| ("a".to_owned(), indices.to_vec());
        let twice = bind(&base, weights, &[edit(&[0]), edit(&[0])], &terms, &|_| ()).expect_err("twice");
        assert_eq!(twice.to_string(), "tensor `a` is listed twice");
        let none = bind(&base, weights, &[edit(&[0, 1])], &terms, &|_| ()).expect_err("no such term");
        assert_eq!(none.to_string(), "tensor `a` asks for term 1 of 1");
        for (name, dtype, shape, told) in [
            ("wide", Dtype::F32, [2, 3], "tensor `a` is F32 in the edited checkpoint, and F16 in the base"),
            ("turned", Dtype::F16, [3, 2], "tensor `a` has shape [3, 2], the update has [2, 3]"),
        ] {
            let edited = opened(name, dtype, shape);
            let found = bind_to(&base, &edited, weights, &[edit(&[0])], &terms, &|_| ()).expect_err(name);
            assert_eq!(found.to_string(), told);
        }
    }
}
