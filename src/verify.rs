//! The rungs of the ladder that need neither keys nor the model: form and digests, each with its evidence.
//!
//! ```text
//! V0  well formed   every term and every undo log of the patch decodes and fits its tensor
//! V2  digests       the touched tensors have the digests that the patch names, before it or after it, and all
//!                   others those of its base; where both states are asked for, applying and reverting give the
//!                   digests it names, and undo each other
//! ```
//!
//! Nothing is written, and nothing here says *safe*: the report says what was compared, and with what outcome.
//! (V1, who signed, belongs to `sign`; V3 and up need the model.)

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::bind::norms::{self, Norms};
use crate::causes::with_causes;
use crate::checkpoint::{Checkpoint, TensorInfo, pipeline};
use crate::digest::{PatchId, TensorDigest, WeightsId};
use crate::factors::RowsApplied;
use crate::operation::{
    self, Digests, Direction, Mismatch, OperationError, Position, Progress, TensorWork, decode_undo,
};
use crate::patch::Patch;

/// What is done about V2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Hash what is there, which takes as long for a thousand facts as for one.
    Digests,
    /// Compute the touched tensors' other state as well, in memory, and come back: what the patch promises about
    /// applying and reverting.
    BothStates,
}

/// What was found about a patch and a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// The patch.
    pub patch: PatchId,
    /// V0.
    pub form: FormEvidence,
    /// V2; none when the patch is not even well formed.
    pub digests: Option<DigestEvidence>,
}

impl VerifyReport {
    /// Both rungs hold.
    pub fn holds(&self) -> bool {
        self.form.holds() && self.digests.as_ref().is_some_and(DigestEvidence::holds)
    }
}

/// V0: what was decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FormEvidence {
    /// Terms that decode.
    pub terms: usize,
    /// Undo logs that decode and fit their tensors.
    pub undo_logs: usize,
    /// The first part that does not, in words.
    pub problem: Option<String>,
}

impl FormEvidence {
    /// Everything decoded.
    pub fn holds(&self) -> bool {
        self.problem.is_none()
    }
}

/// V2: where the checkpoint stands, and what the digests came to.
#[derive(Debug, Clone, PartialEq)]
pub enum DigestEvidence {
    /// In one of the patch's states.
    Found(StateEvidence),
    /// In none of them.
    Elsewhere(Mismatch),
}

impl DigestEvidence {
    /// A state was found, and every comparison came out equal.
    pub fn holds(&self) -> bool {
        self.found().is_some_and(StateEvidence::holds)
    }

    /// What came of the state that was found.
    pub fn found(&self) -> Option<&StateEvidence> {
        match self {
            Self::Found(found) => Some(found),
            Self::Elsewhere(_) => None,
        }
    }

    /// Why no state was found.
    pub fn mismatch(&self) -> Option<&Mismatch> {
        match self {
            Self::Found(_) => None,
            Self::Elsewhere(mismatch) => Some(mismatch),
        }
    }

    /// The first thing that is not as the patch says, in words.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Found(found) => found.problem(),
            Self::Elsewhere(mismatch) => Some(mismatch.to_string()),
        }
    }
}

/// What the digests of a checkpoint in one of the patch's states came to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct StateEvidence {
    /// The state.
    pub state: State,
    /// The binding that fits.
    pub binding: usize,
    /// The id of all weights of the base; for an edited checkpoint, with the touched tensors taken back, or, where
    /// nothing was computed, with the digests that the patch says they had.
    pub weights: Compared<WeightsId>,
    /// The touched tensors, in bytewise order of their names.
    pub tensors: Vec<TensorEvidence>,
}

impl StateEvidence {
    /// Every comparison came out equal.
    fn holds(&self) -> bool {
        self.weights.is_equal() && self.tensors.iter().all(TensorEvidence::holds)
    }

    fn problem(&self) -> Option<String> {
        if let Some(problem) = self.tensors.iter().find_map(|tensor| tensor.problem(self.state)) {
            return Some(problem);
        }
        let weights = Some(self.weights).filter(|weights| !weights.is_equal())?;
        Some(format!(
            "the weights of the base have the id {}, the patch expects {}: the tensors that it touches are the promised ones, others of this checkpoint are not the base's",
            weights.found, weights.expected
        ))
    }
}

/// The state of a checkpoint as a patch sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Before the patch.
    Base,
    /// After it.
    Edited,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            State::Base => "base",
            State::Edited => "edited",
        })
    }
}

/// Two digests that should be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Compared<D> {
    /// The patch's.
    pub expected: D,
    /// The one that was computed.
    pub found: D,
}

impl<D: PartialEq> Compared<D> {
    /// They are one.
    fn is_equal(&self) -> bool {
        self.expected == self.found
    }
}

/// What one touched tensor came to.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorEvidence {
    /// Its name.
    pub name: String,
    /// Its digest as it was read, the patch's of that state: by it the state was found.
    pub read: TensorDigest,
    /// Its other state.
    pub other: OtherState,
}

/// What the other state of a tensor came to, before the patch or after it.
#[derive(Debug, Clone, PartialEq)]
pub enum OtherState {
    /// It was not asked for.
    NotComputed,
    /// What stopped the computation, in words.
    Stopped(String),
    /// It was computed, and changed back.
    Computed {
        /// Its digest.
        digest: Compared<TensorDigest>,
        /// Weights that the patch changes.
        changed: u64,
        /// Weights that are NaN or infinite and stay as they are.
        not_finite: u64,
        /// `norm(after - before) / norm(before)`.
        norm_ratio: Compared<f64>,
    },
}

impl TensorEvidence {
    /// What was computed, if anything was, has the patch's digest, and changes as much as it says.
    pub fn holds(&self) -> bool {
        match self.other {
            OtherState::NotComputed => true,
            OtherState::Stopped(_) => false,
            OtherState::Computed { digest, norm_ratio, .. } => digest.is_equal() && is_true(norm_ratio),
        }
    }

    /// The digest before the patch, of a tensor that was read in `state`.
    fn before(&self, state: State) -> Option<TensorDigest> {
        match (state, &self.other) {
            (State::Base, _) => Some(self.read),
            (State::Edited, OtherState::Computed { digest, .. }) => Some(digest.found),
            (State::Edited, _) => None,
        }
    }

    fn problem(&self, state: State) -> Option<String> {
        let name = &self.name;
        match self.other {
            OtherState::NotComputed => None,
            OtherState::Stopped(ref problem) => Some(problem.clone()),
            OtherState::Computed { digest: Compared { expected, found }, .. } if expected != found => {
                let when = match state {
                    State::Base => "after",
                    State::Edited => "before",
                };
                Some(format!(
                    "tensor `{name}` {when} the patch hashes to {found}, the patch expects {expected}"
                ))
            }
            OtherState::Computed { norm_ratio: ratio, .. } => (!is_true(ratio)).then(|| {
                let Compared { expected, found } = ratio;
                // Digits enough to show any difference beyond the tolerance.
                format!(
                    "tensor `{name}` changes by {found:.7e} of its norm, the patch says by {expected:.7e}"
                )
            }),
        }
    }
}

fn is_true(ratio: Compared<f64>) -> bool {
    norms::is_stated_truly(ratio.expected, ratio.found)
}

/// Climbs V0 and V2 with a checkpoint that is the patch's base or was edited with it.
///
/// `progress` is told bytes, [`verify_size_bytes`] in all.
///
/// # Errors
/// [`OperationError::Checkpoint`] when the weights cannot be read; whatever is wrong with the patch is part of the
/// report.
pub fn verify(
    checkpoint: &Checkpoint,
    patch: &Patch,
    depth: Depth,
    progress: Progress<'_>,
) -> Result<VerifyReport, OperationError> {
    let form = || verify_form(patch);
    let survey = || Ok::<_, OperationError>(operation::survey_digests(checkpoint, patch, progress)?);
    let judge = |touched| verify_digests(checkpoint, patch, touched, depth, progress);
    let (form, digests) = match depth {
        // Of the patch no more than its manifest is asked here, so nobody waits for the rest of it.
        Depth::Digests => {
            let (form, digests) = rayon::join(form, || survey().and_then(judge));
            let digests = Some(digests?).filter(|_| form.holds());
            (form, digests)
        }
        Depth::BothStates => {
            let (form, touched) = rayon::join(form, survey);
            let digests = if form.holds() { Some(judge(touched?)?) } else { None };
            (form, digests)
        }
    };
    Ok(VerifyReport { patch: patch.id(), form, digests })
}

/// Bytes that [`verify`] reports to its progress: all weights once, the touched tensors twice where both of their
/// states are asked for.
pub fn verify_size_bytes(checkpoint: &Checkpoint, patch: &Patch, depth: Depth) -> u64 {
    let computed = match depth {
        Depth::Digests => 0,
        Depth::BothStates => operation::survey_size_bytes(checkpoint, patch),
    };
    checkpoint.weights_size_bytes() + computed
}

/// V0 alone: needs no checkpoint.
pub fn verify_form(patch: &Patch) -> FormEvidence {
    let mut evidence = FormEvidence::default();
    let manifest = patch.manifest();
    for index in 0..manifest.terms.len() as u32 {
        if let Err(error) = patch.term(index) {
            evidence.problem = Some(with_causes(&error));
            return evidence;
        }
        evidence.terms += 1;
    }
    for (binding_index, binding) in manifest.bindings.iter().enumerate() {
        for tensor_index in 0..binding.tensors.len() {
            // Its terms have been decoded above, and have its shape: that is a rule of the manifest.
            if let Err(error) = decode_undo(patch, binding_index, tensor_index) {
                evidence.problem = Some(with_causes(&error));
                return evidence;
            }
            evidence.undo_logs += 1;
        }
    }
    evidence
}

/// V2, given the digests of the tensors that the patch could be about.
fn verify_digests(
    checkpoint: &Checkpoint,
    patch: &Patch,
    touched: Digests<'_>,
    depth: Depth,
    progress: Progress<'_>,
) -> Result<DigestEvidence, OperationError> {
    let bindings = &patch.manifest().bindings;
    let (binding_index, direction) =
        match operation::position(checkpoint, bindings, &touched, Direction::Apply) {
            Position::Start(binding) => (binding, Direction::Apply),
            Position::End(binding) => (binding, Direction::Revert),
            Position::Elsewhere(mismatch) => return Ok(DigestEvidence::Elsewhere(mismatch)),
        };
    let state = match direction {
        Direction::Apply => State::Base,
        Direction::Revert => State::Edited,
    };
    let binding = &bindings[binding_index];
    let is_other = |tensor: &&TensorInfo| !touched.contains_key(tensor.name.as_str());
    let others = Vec::from_iter(checkpoint.tensors().iter().filter(is_other));
    // At once, because computing leaves threads idle between its steps, and hashing tensor by tensor fills them.
    let (tensors, hashed) = rayon::join(
        || match depth {
            Depth::Digests => Ok(Vec::from_iter(binding.tensors.iter().map(|tensor| TensorEvidence {
                name: tensor.name.clone(),
                read: direction.start(tensor),
                other: OtherState::NotComputed,
            }))),
            Depth::BothStates => recompute_all(checkpoint, patch, binding_index, direction, progress),
        },
        || checkpoint.digests_with(&others, progress),
    );
    let (tensors, hashed) = (tensors?, hashed?);
    let mut digests: Digests<'_> = touched;
    digests.extend(others.iter().map(|tensor| tensor.name.as_str()).zip(hashed));
    let before = binding.tensors.iter().zip(&tensors).filter_map(|(promised, evidence)| {
        let before = match depth {
            Depth::Digests => promised.before,
            Depth::BothStates => evidence.before(state)?,
        };
        Some((promised.name.as_str(), before))
    });
    digests.extend(before);
    let all = checkpoint.tensors().iter().map(|tensor| digests[tensor.name.as_str()]);
    let found = checkpoint.weights_id_of(&Vec::from_iter(all));
    let weights = Compared { expected: binding.weights, found };
    Ok(DigestEvidence::Found(StateEvidence { state, binding: binding_index, weights, tensors }))
}

fn recompute_all(
    checkpoint: &Checkpoint,
    patch: &Patch,
    binding_index: usize,
    direction: Direction,
    progress: Progress<'_>,
) -> Result<Vec<TensorEvidence>, OperationError> {
    let tensors = 0..patch.manifest().bindings[binding_index].tensors.len();
    let recompute = |index| {
        let work = TensorWork::load(checkpoint, patch, binding_index, index)?;
        recompute(checkpoint, &work, direction, progress)
    };
    tensors.map(recompute).collect()
}

/// Computes the other state of a tensor that is known to be where `direction` starts, in memory, and comes back.
fn recompute(
    checkpoint: &Checkpoint,
    work: &TensorWork<'_>,
    direction: Direction,
    progress: Progress<'_>,
) -> Result<TensorEvidence, OperationError> {
    let mut gathered = Gathered::default();
    let mut total = RowsApplied::default();
    let mut problem = None;
    let outcome = pipeline(
        &Vec::from_iter(work.blocks()),
        |rows, bytes| work.read_rows(checkpoint, rows, bytes),
        |rows, bytes| {
            if problem.is_none() {
                match there_and_back(work, direction, rows.clone(), bytes, &mut gathered) {
                    Ok(applied) => total += applied,
                    Err(found) => problem = Some(found),
                }
            }
            progress(bytes.len() as u64);
            Ok(())
        },
        |_, _| Ok(()),
    );
    outcome?;
    // A computation that stopped half-way has no digest.
    let other = problem.map_or_else(
        || OtherState::Computed {
            digest: Compared {
                expected: direction.end(work.binding),
                found: TensorDigest::finish(&gathered.hasher),
            },
            changed: total.changed,
            not_finite: total.not_finite,
            norm_ratio: Compared { expected: work.binding.norm_ratio, found: gathered.norms.ratio() },
        },
        OtherState::Stopped,
    );
    Ok(TensorEvidence { name: work.binding.name.clone(), read: direction.start(work.binding), other })
}

/// What is gathered over the blocks of one tensor.
#[derive(Default)]
struct Gathered {
    /// The other state's bytes.
    hasher: blake3::Hasher,
    norms: Norms,
    /// The block as it was read.
    start: Vec<u8>,
}

/// Changes a block, hashes it, and shows that it can be changed back; what goes wrong is told in words.
fn there_and_back(
    work: &TensorWork<'_>,
    direction: Direction,
    rows: std::ops::Range<usize>,
    bytes: &mut Vec<u8>,
    gathered: &mut Gathered,
) -> Result<RowsApplied, String> {
    let in_words = |error: OperationError| with_causes(&error);
    let Gathered { hasher, norms, start } = gathered;
    let dtype = work.binding.dtype;
    start.clone_from(bytes);
    if direction == Direction::Apply {
        let applied = work.prove_rows(rows, bytes).map_err(in_words)?;
        rayon::join(|| hasher.update_rayon(bytes), || norms.add_parts(dtype, start, bytes));
        return Ok(applied);
    }
    work.change_rows(Direction::Revert, rows.clone(), bytes).map_err(in_words)?;
    rayon::join(|| hasher.update_rayon(bytes), || norms.add_parts(dtype, bytes, start));
    let applied = work.change_rows(Direction::Apply, rows.clone(), bytes).map_err(in_words)?;
    if bytes != start {
        let name = &work.binding.name;
        return Err(format!(
            "tensor `{name}`, rows {rows:?}: changed and changed back, they are not the same"
        ));
    }
    Ok(applied)
}

// -------------------------------------------------------------------------------------------------------- as JSON --

/// One object of all fields, in which those that say nothing are null.
impl Serialize for DigestEvidence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let found = self.found();
        let mut fields = serializer.serialize_struct("DigestEvidence", 5)?;
        fields.serialize_field("state", &found.map(|found| found.state))?;
        fields.serialize_field("binding", &found.map(|found| found.binding))?;
        fields.serialize_field("mismatch", &self.mismatch())?;
        fields.serialize_field("weights", &found.map(|found| found.weights))?;
        let tensors = found.map_or_else(Vec::new, |found| {
            found.tensors.iter().map(|tensor| TensorFields::of(tensor, found.state)).collect()
        });
        fields.serialize_field("tensors", &tensors)?;
        fields.end()
    }
}

#[derive(Serialize)]
struct TensorFields<'a> {
    name: &'a str,
    before: Option<Compared<TensorDigest>>,
    after: Option<Compared<TensorDigest>>,
    changed: Option<u64>,
    not_finite: Option<u64>,
    norm_ratio: Option<Compared<f64>>,
    problem: Option<&'a str>,
}

impl<'a> TensorFields<'a> {
    fn of(tensor: &'a TensorEvidence, state: State) -> Self {
        let read = Some(Compared { expected: tensor.read, found: tensor.read });
        let (other, changed, not_finite, norm_ratio, problem) = match &tensor.other {
            OtherState::NotComputed => (None, None, None, None, None),
            OtherState::Stopped(problem) => (None, None, None, None, Some(problem.as_str())),
            OtherState::Computed { digest, changed, not_finite, norm_ratio } => {
                (Some(*digest), Some(*changed), Some(*not_finite), Some(*norm_ratio), None)
            }
        };
        let (before, after) = match state {
            State::Base => (read, other),
            State::Edited => (other, read),
        };
        Self { name: &tensor.name, before, after, changed, not_finite, norm_ratio, problem }
    }
}
