//! The same terms on another state of the weights: new digests, a new undo log.
//!
//! A patch fits the states that its bindings name, byte for byte. Binding it once more lets it be applied after another
//! patch, or to the same model in another type. What it adds is the same; what that does to the facts may not be, so
//! measurements are not taken along unless the old binding is kept beside the new one.

use std::collections::BTreeSet;

use crate::bind::{BindError, NotFinite, bind_with};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::digest::{PatchId, WeightsId};
use crate::operation::{Digests, Direction, Position, Progress, position, touched};
use crate::patch::manifest::{Line, TensorBinding, Update};
use crate::patch::{Draft, Patch, PatchError};

/// A patch that cannot be bound to a state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebaseError {
    /// Reading the weights.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part of the patch cannot be decoded.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The terms do not fit the weights.
    #[error(transparent)]
    Bind(BindError),
    /// It fits already.
    #[error("the patch fits weights {} already", weights.short())]
    Fits {
        /// The state.
        weights: WeightsId,
    },
    /// It is in them already: bound to its own result, it would change the weights twice.
    #[error("the patch is in weights {} already", weights.short())]
    Applied {
        /// The state.
        weights: WeightsId,
    },
    /// Some of its tensors are in them already, and others are not.
    #[error("tensor `{tensor}` has the patch's update already, and others do not")]
    PartlyApplied {
        /// The first such tensor.
        tensor: String,
    },
    /// It does not say what to add to a new state.
    #[error("to the weights {first} it adds something else than to the weights {other}")]
    BindingsDiffer {
        /// One state.
        first: WeightsId,
        /// The other.
        other: WeightsId,
    },
    /// A patch that is more than its terms.
    #[error("the patch corrects tensor `{tensor}` weight by weight, which holds on its own base only")]
    Correction {
        /// The tensor.
        tensor: String,
    },
}

impl From<BindError> for RebaseError {
    /// What is wrong with a checkpoint, or that work on it was stopped, stands in one place.
    fn from(error: BindError) -> Self {
        match error {
            BindError::Checkpoint(error) => Self::Checkpoint(error),
            error => Self::Bind(error),
        }
    }
}

/// How a patch is bound anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RebaseOptions {
    /// Keep the bindings that it has: the result fits all states.
    pub keep: bool,
    /// Leave corrections out of the new binding.
    pub drop_corrections: bool,
    /// Patches that led to the new state. With the old bindings the parents that it has are kept as well.
    pub parents: Vec<PatchId>,
    /// The place of the result in its line, which it then takes as the successor of the patch: with the number of the
    /// patch itself it would be a second one of that number. Without a place it belongs to no line.
    pub line: Option<Line>,
}

/// `patch` bound to `checkpoint`.
///
/// With its old bindings kept, or as the next of its line, it replaces the patch; without the bindings it has not been
/// measured.
/// `progress` is told bytes: all weights once, and the touched tensors once more.
///
/// # Errors
/// [`RebaseError::Fits`] and [`RebaseError::Applied`] where there is nothing to do;
/// [`RebaseError::PartlyApplied`] where some of it is done; [`RebaseError::BindingsDiffer`] and
/// [`RebaseError::Correction`] where the patch does not say what to add; [`RebaseError::Bind`] where its terms do not
/// fit the weights; [`RebaseError::Checkpoint`] and [`RebaseError::Patch`] where they cannot be read.
pub fn rebase(
    checkpoint: &Checkpoint,
    patch: &Patch,
    options: &RebaseOptions,
    progress: Progress<'_>,
) -> Result<Draft, RebaseError> {
    let digests = checkpoint.digests_with(&Vec::from_iter(checkpoint.tensors()), progress)?;
    let weights = checkpoint.weights_id_of(&digests);
    let bindings = &patch.manifest().bindings;
    if bindings.iter().any(|binding| binding.weights == weights) {
        return Err(RebaseError::Fits { weights });
    }
    let digests: Digests<'_> =
        checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).zip(digests).collect();
    if let Position::End(_) = position(checkpoint, bindings, &digests, Direction::Apply) {
        return Err(RebaseError::Applied { weights });
    }
    let is_at_end = |tensor: &&TensorBinding| {
        tensor.before != tensor.after && digests.get(tensor.name.as_str()) == Some(&tensor.after)
    };
    if let Some(tensor) = bindings.iter().flat_map(|binding| &binding.tensors).find(is_at_end) {
        return Err(RebaseError::PartlyApplied { tensor: tensor.name.clone() });
    }
    let added = |tensor: &TensorBinding| (tensor.name.clone(), tensor.terms.clone());
    if let Some([first, other]) = patch.manifest().differing_bindings(added) {
        return Err(RebaseError::BindingsDiffer { first, other });
    }
    let tensors = bindings.iter().take(1).flat_map(|binding| &binding.tensors);
    let mut edits = Vec::new();
    for tensor in tensors {
        if tensor.correction.is_some() && !options.drop_corrections {
            return Err(RebaseError::Correction { tensor: tensor.name.clone() });
        }
        edits.push((tensor.name.clone(), tensor.terms.clone()));
    }
    let mut draft = patch.draft()?;
    let binding = bind_with(checkpoint, weights, &edits, &draft.terms, NotFinite::Keep, progress)?;
    if options.keep {
        draft.bindings.push(binding);
    } else {
        draft.bindings = vec![binding];
        draft.measured = Vec::new();
        // What it was made on need not be in the new state.
        draft.parents = Vec::new();
    }
    let is_successor = options.keep || options.line.is_some();
    draft.supersedes = if is_successor { vec![patch.id()] } else { Vec::new() };
    draft.line.clone_from(&options.line);
    for parent in &options.parents {
        if !draft.parents.contains(parent) {
            draft.parents.push(*parent);
        }
    }
    Ok(draft)
}

/// The first of `others` whose update is a part of `patch`, too: together they would add it twice.
pub fn shared_update(patch: &Patch, others: &[Patch]) -> Option<usize> {
    let updates: BTreeSet<Update> = patch.manifest().updates().collect();
    others.iter().position(|other| other.manifest().updates().any(|update| updates.contains(&update)))
}

/// The first of `patches` that is not among the patches which were put into `checkpoint` last; in which order they were
/// is found out.
///
/// One whose results are there is taken back in thought: by its digests, to those of what it was applied to.
/// `progress` is told bytes, the sizes of the touched tensors in all.
///
/// # Errors
/// [`CheckpointError`] where the touched tensors cannot be read.
pub fn first_missing(
    checkpoint: &Checkpoint,
    patches: &[Patch],
    progress: Progress<'_>,
) -> Result<Option<usize>, CheckpointError> {
    let touched = touched(checkpoint, patches);
    let digests = checkpoint.digests_with(&touched, progress)?;
    let mut digests: Digests<'_> = touched.iter().map(|tensor| tensor.name.as_str()).zip(digests).collect();
    let mut waiting: Vec<usize> = (0..patches.len()).collect();
    while !waiting.is_empty() {
        let found = waiting.iter().enumerate().find_map(|(at, &patch)| {
            let bindings = &patches[patch].manifest().bindings;
            match position(checkpoint, bindings, &digests, Direction::Revert) {
                Position::Start(binding) => Some((at, &bindings[binding])),
                _ => None,
            }
        });
        let Some((at, binding)) = found else { break };
        for tensor in &binding.tensors {
            if let Some(digest) = digests.get_mut(tensor.name.as_str()) {
                *digest = tensor.before;
            }
        }
        waiting.remove(at);
    }
    Ok(waiting.first().copied())
}
