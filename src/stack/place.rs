//! Where each patch stands: on the base, or on what patches before it make of the base.

use std::collections::BTreeMap;

use super::{Named, PlannedPatch, Reached, StackError};
use crate::checkpoint::Checkpoint;
use crate::digest::{PatchId, TensorDigest, WeightsId};
use crate::patch::manifest::{Binding, TensorBinding};

/// Refuses what is wrong whatever the base: nothing, a patch twice, one inside another.
pub(super) fn check_given(patches: &[Named<'_>]) -> Result<(), StackError> {
    if patches.is_empty() {
        return Err(StackError::Empty);
    }
    let mut names: BTreeMap<PatchId, &str> = BTreeMap::new();
    for Named { name, patch } in patches {
        if let Some(first) = names.insert(patch.id(), name) {
            let (first, second) = (first.to_owned(), (*name).to_owned());
            return Err(StackError::Twice { first, second, id: patch.id() });
        }
    }
    for Named { name, patch } in patches {
        if let Some(held) = patch.manifest().supersedes.iter().find_map(|id| names.get(id)) {
            return Err(StackError::Held { name: (*name).to_owned(), held: (*held).to_owned() });
        }
    }
    Ok(())
}

/// Where the weights do not tell, what the patch says of its model must do.
fn check_model(first: &Named<'_>, Named { name, patch }: &Named<'_>) -> Result<(), StackError> {
    let (one, other) = (&first.patch.manifest().base, &patch.manifest().base);
    let parts = [
        ("the architecture", one.architecture == other.architecture),
        ("the tokenizer", one.tokenizer == other.tokenizer),
    ];
    match parts.into_iter().find(|(_, equal)| !equal) {
        None => Ok(()),
        Some((what, _)) => {
            let (name, first) = ((*name).to_owned(), first.name.to_owned());
            Err(StackError::OtherModel { name, first, what })
        }
    }
}

/// The weights after some patches, one applied after the other.
struct State {
    weights: WeightsId,
    /// Digests of the tensors that are not as in the base, by their place there.
    changed: BTreeMap<usize, TensorDigest>,
    /// The patches, by their place in the order of terms.
    applied: Vec<usize>,
}

/// Finds the order: as given, but a patch comes after those that it was made on top of.
pub(super) fn place(
    base: &Checkpoint,
    digests: Vec<TensorDigest>,
    patches: &[Named<'_>],
    reached: &[Reached],
) -> Result<Vec<PlannedPatch>, StackError> {
    let weights = base.weights_id_of(&digests);
    let mut states = vec![State { weights, changed: BTreeMap::new(), applied: Vec::new() }];
    let mut placed: Vec<PlannedPatch> = Vec::new();
    let mut waiting: Vec<usize> = (0..patches.len()).collect();
    while !waiting.is_empty() {
        let next = waiting.iter().enumerate().find_map(|(at, &given)| {
            let patch = &patches[given];
            let place = on_a_state(&states, patch)
                .or_else(|| on_a_reached_state(reached, &placed, patch))
                .or_else(|| on_its_parents(&placed, patch));
            Some((at, given, place?))
        });
        let Some((at, given, place)) = next else {
            return Err(refusal(base, weights, &digests, &patches[waiting[0]], patches));
        };
        waiting.remove(at);
        let Named { name, patch } = patches[given];
        match (place.state, placed.first()) {
            (Some(state), _) => {
                let binding = &patch.manifest().bindings[place.binding];
                states.push(state_after(base, &digests, &states[state], binding, placed.len()));
            }
            (None, Some(first)) => check_model(&patches[first.given], &patches[given])?,
            (None, None) => {}
        }
        placed.push(PlannedPatch {
            given,
            name: name.to_owned(),
            id: patch.id(),
            binding: place.binding,
            on_top_of: place.on_top_of,
            facts: patch.manifest().facts.len(),
            lost: 0,
            left_out: false,
        });
    }
    Ok(placed)
}

struct Place {
    binding: usize,
    /// The state that it was made on, where it is known.
    state: Option<usize>,
    on_top_of: Vec<usize>,
}

/// The patch was made on a state that is reached by applying patches before it.
fn on_a_state(states: &[State], Named { patch, .. }: &Named<'_>) -> Option<Place> {
    states.iter().enumerate().find_map(|(index, state)| {
        let bindings = &patch.manifest().bindings;
        let binding = bindings.iter().position(|binding| binding.weights == state.weights)?;
        Some(Place { binding, state: Some(index), on_top_of: state.applied.clone() })
    })
}

/// The patch was made on a state that is known to come of patches which are all there, however it was rounded.
fn on_a_reached_state(
    reached: &[Reached],
    placed: &[PlannedPatch],
    Named { patch, .. }: &Named<'_>,
) -> Option<Place> {
    let bindings = &patch.manifest().bindings;
    reached.iter().find_map(|reached| {
        let binding = bindings.iter().position(|binding| binding.weights == reached.weights)?;
        Some(Place { binding, state: None, on_top_of: places(placed, &reached.patches)? })
    })
}

/// The patch names its parents, and all of them are there: the state they gave may have been rounded otherwise.
fn on_its_parents(placed: &[PlannedPatch], Named { patch, .. }: &Named<'_>) -> Option<Place> {
    let on_top_of = places(placed, &patch.manifest().parents)?;
    // To which of several states it adds what is to be added here, nobody could say.
    let added = |tensor: &TensorBinding| (tensor.name.clone(), tensor.terms.clone());
    if patch.manifest().differing_bindings(added).is_some() {
        return None;
    }
    (!on_top_of.is_empty()).then_some(Place { binding: 0, state: None, on_top_of })
}

/// Where these patches are in the order of terms, if all of them are there.
fn places(placed: &[PlannedPatch], ids: &[PatchId]) -> Option<Vec<usize>> {
    ids.iter().map(|id| placed.iter().position(|placed| placed.id == *id)).collect()
}

fn state_after(
    base: &Checkpoint,
    digests: &[TensorDigest],
    state: &State,
    binding: &Binding,
    patch: usize,
) -> State {
    let mut changed = state.changed.clone();
    for tensor in &binding.tensors {
        // A binding whose weights id is the state's names tensors of the state, unless it lies; binding tells then.
        if let Some(place) = base.place(&tensor.name) {
            changed.insert(place, tensor.after);
        }
    }
    let of = |(place, digest)| changed.get(&place).copied().unwrap_or(digest);
    let all: Vec<TensorDigest> = digests.iter().copied().enumerate().map(of).collect();
    let applied = state.applied.iter().copied().chain([patch]).collect();
    State { weights: base.weights_id_of(&all), changed, applied }
}

fn refusal(
    base: &Checkpoint,
    weights: WeightsId,
    digests: &[TensorDigest],
    refused: &Named<'_>,
    patches: &[Named<'_>],
) -> StackError {
    let manifest = refused.patch.manifest();
    let is_given = |id: &&PatchId| patches.iter().any(|given| given.patch.id() == **id);
    let parents = manifest.parents.iter().filter(|id| !is_given(id)).copied().collect();
    let holds = |binding: &Binding| {
        let mut tensors = binding.tensors.iter();
        tensors.all(|tensor| base.place(&tensor.name).is_some_and(|place| digests[place] == tensor.after))
    };
    StackError::OtherBase {
        name: refused.name.to_owned(),
        // The format asks for at least one binding.
        expected: manifest.bindings.first().map_or(weights, |binding| binding.weights),
        found: weights,
        parents,
        is_applied: manifest.bindings.iter().any(holds),
    }
}
