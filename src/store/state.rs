//! States of a model's weights, and the way from one to another; no files, no git.
//!
//! ```text
//! base  --apply a-->  [a]  --apply b-->  [a b]          a series is a list of patches, in order of application
//!    \--apply c-->  [c]                                 a state is what the tensors hash to after a series
//! ```
//!
//! Digests decide which state a checkpoint is in; the log is never asked. From a series to another one the way is to
//! take back what they do not share, last patch first, and to apply the rest: each step starts in a state that its
//! patch was bound to, so each ends bit for bit where the patch says.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::base::{Base, BaseTensor};
use super::error::StoreError;
use crate::digest::{PatchId, TensorDigest, WeightsId};
use crate::patch::manifest::{Binding, TensorBinding};

/// What the tensors hash to, where that differs from the base.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct State(BTreeMap<String, TensorDigest>);

/// A patch that does not fit a state: the first tensor that differs from what the nearest binding expects.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// The base has no such tensor, or one of another type or shape.
    #[error("tensor `{tensor}` is not in the base with this type and shape")]
    Tensor {
        /// The tensor.
        tensor: String,
    },
    /// The base has been given the patch before the history began.
    #[error("the weights of this state hold what the patch makes of them already")]
    Present,
    /// The tensor holds other weights in this state.
    #[error("tensor `{tensor}` hashes to {found} here, the patch expects {expected}")]
    Digest {
        /// The tensor.
        tensor: String,
        /// What the patch was made for.
        expected: TensorDigest,
        /// What the state has.
        found: TensorDigest,
    },
}

impl State {
    /// The digest of one of the base's tensors in this state.
    pub fn digest(&self, tensor: &BaseTensor) -> TensorDigest {
        self.0.get(&tensor.name).copied().unwrap_or(tensor.digest)
    }

    /// Names of the tensors that are not as in the base.
    pub fn changed(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The id of all weights in this state.
    pub fn weights_id(&self, base: &Base) -> WeightsId {
        WeightsId::of_tensors(base.tensors.iter().map(|tensor| {
            (tensor.name.as_str(), tensor.dtype.as_str(), tensor.shape.as_slice(), self.digest(tensor))
        }))
    }

    /// The state after a patch with these bindings.
    ///
    /// # Errors
    /// [`Misfit`] where no binding starts in this state.
    pub fn after(&self, base: &Base, bindings: &[Binding]) -> Result<State, Misfit> {
        let index = self.binding(base, bindings)?;
        Ok(self.with(base, &bindings[index].tensors))
    }

    /// Which of a patch's bindings starts in this state.
    ///
    /// # Errors
    /// [`Misfit`] where none does.
    pub fn binding(&self, base: &Base, bindings: &[Binding]) -> Result<usize, Misfit> {
        let mut first = None;
        for (index, binding) in bindings.iter().enumerate() {
            match binding.tensors.iter().find_map(|tensor| self.misfit(base, tensor)) {
                None => return Ok(index),
                Some(misfit) => first = first.or(Some(misfit)),
            }
        }
        let holds_result = |binding: &Binding| {
            let holds = |tensor: &TensorBinding| {
                base.tensor(&tensor.name).is_some_and(|known| self.digest(known) == tensor.after)
            };
            binding.tensors.iter().all(holds)
        };
        if bindings.iter().any(holds_result) {
            return Err(Misfit::Present);
        }
        Err(first.unwrap_or(Misfit::Tensor { tensor: String::new() }))
    }

    fn misfit(&self, base: &Base, tensor: &TensorBinding) -> Option<Misfit> {
        let name = || tensor.name.clone();
        let known = base
            .tensor(&tensor.name)
            .filter(|known| known.dtype == tensor.dtype.name() && known.matrix_shape() == Some(tensor.shape));
        let Some(known) = known else { return Some(Misfit::Tensor { tensor: name() }) };
        let found = self.digest(known);
        let expected = tensor.before;
        (found != expected).then(|| Misfit::Digest { tensor: name(), expected, found })
    }

    fn with(&self, base: &Base, tensors: &[TensorBinding]) -> State {
        let mut state = self.clone();
        for tensor in tensors {
            match base.tensor(&tensor.name).is_some_and(|known| known.digest == tensor.after) {
                true => state.0.remove(&tensor.name),
                false => state.0.insert(tensor.name.clone(), tensor.after),
            };
        }
        state
    }
}

/// One step of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "do", content = "patch", rename_all = "lowercase")]
pub enum Step {
    /// Apply this patch.
    Apply(PatchId),
    /// Take this patch back.
    Revert(PatchId),
}

/// The way from the state after one series to the state after another.
pub fn way(from: &[PatchId], to: &[PatchId]) -> Vec<Step> {
    let shared = from.iter().zip(to).take_while(|(one, other)| one == other).count();
    let back = from[shared..].iter().rev().copied().map(Step::Revert);
    back.chain(to[shared..].iter().copied().map(Step::Apply)).collect()
}

/// A series that is recorded somewhere, or the beginning of one, and the state it leads to.
#[derive(Debug, Clone)]
pub struct Known {
    /// A series that begins with this one; all its beginnings share it, or a long history would not fit in memory.
    whole: Arc<[PatchId]>,
    length: usize,
    /// What the patches lead to.
    pub state: State,
}

impl Known {
    /// The patches, in order of application.
    pub fn series(&self) -> &[PatchId] {
        &self.whole[..self.length]
    }
}

/// The states along series: what several begin with is walked, and kept, once.
#[derive(Debug)]
pub(super) struct Paths {
    base: Base,
    /// The base first, then each state behind one that stands before it.
    states: Vec<State>,
    /// Which state a patch leads to from another one, by their places.
    next: HashMap<(usize, PatchId), usize>,
}

impl Paths {
    pub(super) fn new(base: Base) -> Self {
        Self { base, states: vec![State::default()], next: HashMap::new() }
    }

    pub(super) fn base(&self) -> &Base {
        &self.base
    }

    /// The state that a series of patches leads to from the base, given the bindings of each.
    ///
    /// # Errors
    /// [`StoreError::Misfit`]: the patch that does not fit where the series says it was applied, and why.
    pub(super) fn after(
        &mut self,
        series: &[PatchId],
        bindings: &BTreeMap<PatchId, Vec<Binding>>,
    ) -> Result<&State, StoreError> {
        let none = Vec::new();
        let mut place = 0;
        for &id in series {
            place = match self.next.get(&(place, id)) {
                Some(known) => *known,
                None => {
                    let after = self.states[place].after(&self.base, bindings.get(&id).unwrap_or(&none));
                    self.states.push(after.map_err(|misfit| StoreError::Misfit { patch: id, misfit })?);
                    let new = self.states.len() - 1;
                    self.next.insert((place, id), new);
                    new
                }
            };
        }
        Ok(&self.states[place])
    }
}

/// Where a checkpoint stands among the known states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In a known state; the indices of all series that lead to it, the shortest first.
    At(Vec<usize>),
    /// Every tensor is in some known state, but not all in the same one.
    HalfWay(HalfWay),
    /// A tensor holds weights that no known state has, or is not there.
    Unknown(Stranger),
}

/// Tensors in two states, or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HalfWay {
    /// The patch between the two states, where one patch explains it.
    pub patch: Option<PatchId>,
    /// Tensors that this patch has changed already.
    pub changed: usize,
    /// Tensors that it changes.
    pub tensors: usize,
}

/// A tensor that no known state has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stranger {
    /// Its name.
    pub tensor: String,
    /// Its digest, unless it is not there with the base's type and shape.
    pub found: Option<TensorDigest>,
    /// How many of the tensors that were compared no known state has.
    pub strangers: usize,
    /// How many were compared.
    pub tensors: usize,
}

/// All known states of one base.
#[derive(Debug, Clone)]
pub struct Atlas {
    base: Base,
    known: Vec<Known>,
}

impl Atlas {
    /// The states along every series, given the bindings of each patch.
    ///
    /// # Errors
    /// [`StoreError::Misfit`]: the patch that does not fit where its series says it was applied, and why.
    pub fn new<'s>(
        base: Base,
        series: impl IntoIterator<Item = &'s [PatchId]>,
        bindings: &BTreeMap<PatchId, Vec<Binding>>,
    ) -> Result<Self, StoreError> {
        let (atlas, misfits) = Self::of_what_fits(base, series, bindings);
        misfits.into_iter().next().map_or(Ok(atlas), |(_, misfit)| Err(misfit))
    }

    /// As [`Atlas::new`], of each series as far as its patches fit; with those that do not fit to their ends, by their
    /// places.
    pub(super) fn of_what_fits<'s>(
        base: Base,
        series: impl IntoIterator<Item = &'s [PatchId]>,
        bindings: &BTreeMap<PatchId, Vec<Binding>>,
    ) -> (Self, Vec<(usize, StoreError)>) {
        let mut series: Vec<(usize, &[PatchId])> = series.into_iter().enumerate().collect();
        // The longest first, so that the shorter ones find their states there.
        series.sort_by_key(|(_, series)| std::cmp::Reverse(series.len()));
        let (mut paths, mut misfits) = (Paths::new(base), Vec::new());
        let mut beginnings: Vec<(Arc<[PatchId]>, usize)> = vec![(Arc::from([]), 0)];
        for (place, series) in series {
            let mut fitting = series.len();
            if let Err(error) = paths.after(series, bindings).map(drop) {
                if let StoreError::Misfit { patch, .. } = &error {
                    fitting = series.iter().position(|id| id == patch).unwrap_or(fitting);
                }
                misfits.push((place, error));
            }
            // What is new in a series is its end.
            let new = paths.states.len() - beginnings.len();
            if new > 0 {
                let whole: Arc<[PatchId]> = series.into();
                let lengths = fitting - new + 1..=fitting;
                beginnings.extend(lengths.map(|length| (Arc::clone(&whole), length)));
            }
        }
        let with_state = |((whole, length), state)| Known { whole, length, state };
        let mut known: Vec<Known> = beginnings.into_iter().zip(paths.states).map(with_state).collect();
        known.sort_by(|one, other| (one.length, one.series()).cmp(&(other.length, other.series())));
        (Self { base: paths.base, known }, misfits)
    }

    /// The base.
    pub fn base(&self) -> &Base {
        &self.base
    }

    /// All known states, those after short series first.
    pub fn known(&self) -> &[Known] {
        &self.known
    }

    /// The state after `series`, if it is a known one.
    pub fn state_after(&self, series: &[PatchId]) -> Option<&State> {
        self.known.iter().find(|known| known.series() == series).map(|known| &known.state)
    }

    /// The base's tensors that differ between known states: comparing these tells the states apart.
    pub fn needed(&self) -> Vec<&BaseTensor> {
        let names: BTreeSet<&str> = self.known.iter().flat_map(|known| known.state.changed()).collect();
        self.base.tensors.iter().filter(|tensor| names.contains(tensor.name.as_str())).collect()
    }

    /// Finds the state in which these tensors, of those of the base, have these digests.
    pub fn locate(&self, digests: &BTreeMap<String, TensorDigest>) -> Location {
        let compared: Vec<&BaseTensor> =
            self.base.tensors.iter().filter(|tensor| digests.contains_key(&tensor.name)).collect();
        let agrees = |state: &State, tensor: &BaseTensor| digests[&tensor.name] == state.digest(tensor);
        let at = |known: &Known| compared.iter().all(|tensor| agrees(&known.state, tensor));
        let found: Vec<usize> = (0..self.known.len()).filter(|&index| at(&self.known[index])).collect();
        if !found.is_empty() {
            return Location::At(found);
        }
        let is_stranger =
            |tensor: &&&BaseTensor| !self.known.iter().any(|known| agrees(&known.state, tensor));
        let strangers: Vec<&&BaseTensor> = compared.iter().filter(is_stranger).collect();
        if let Some(first) = strangers.first() {
            return Location::Unknown(Stranger {
                tensor: first.name.clone(),
                found: Some(digests[&first.name]),
                strangers: strangers.len(),
                tensors: compared.len(),
            });
        }
        Location::HalfWay(self.half_way(&compared, &agrees))
    }

    /// The step that explains a mixture: every tensor is as before it or as after it.
    fn half_way(&self, compared: &[&BaseTensor], agrees: &dyn Fn(&State, &BaseTensor) -> bool) -> HalfWay {
        for after in self.known.iter().filter(|known| known.length > 0) {
            let (last, before) = after.series().split_last().map_or((None, &[][..]), |(l, b)| (Some(*l), b));
            let Some(before) = self.state_after(before) else { continue };
            let mixed = |tensor: &&BaseTensor| agrees(before, tensor) || agrees(&after.state, tensor);
            if compared.iter().all(mixed) {
                let touched = compared.iter().filter(|t| before.digest(t) != after.state.digest(t));
                let (mut changed, mut tensors) = (0, 0);
                for tensor in touched {
                    tensors += 1;
                    changed += usize::from(agrees(&after.state, tensor));
                }
                return HalfWay { patch: last, changed, tensors };
            }
        }
        HalfWay { patch: None, changed: 0, tensors: compared.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    fn digest(text: &str) -> TensorDigest {
        TensorDigest::of(text.as_bytes())
    }

    fn base() -> Base {
        let tensor = |name: &str| BaseTensor {
            name: name.to_owned(),
            dtype: "F32".to_owned(),
            shape: vec![2, 3],
            digest: digest("base"),
        };
        Base::new(None, None, None, ["a", "b", "c"].map(tensor).to_vec())
    }

    fn binding(tensors: &[(&str, &str, &str)]) -> Binding {
        let tensor = |&(name, before, after): &(&str, &str, &str)| TensorBinding {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: [2, 3],
            before: digest(before),
            after: digest(after),
            norm_ratio: 0.0,
            terms: vec![0],
            undo: 0,
            correction: None,
        };
        Binding { weights: WeightsId::derive(b""), tensors: tensors.iter().map(tensor).collect() }
    }

    fn id(name: &str) -> PatchId {
        PatchId::derive(name.as_bytes())
    }

    fn atlas() -> Atlas {
        let bindings = BTreeMap::from([
            (id("one"), vec![binding(&[("a", "base", "1"), ("b", "base", "1")])]),
            (id("two"), vec![binding(&[("a", "1", "2")])]),
            (id("other"), vec![binding(&[("c", "base", "3")])]),
        ]);
        let series = [vec![id("one"), id("two")], vec![id("other")], vec![id("one"), id("other")]];
        Atlas::new(base(), series.iter().map(Vec::as_slice), &bindings).unwrap()
    }

    fn found(digests: [(&str, &str); 3]) -> BTreeMap<String, TensorDigest> {
        digests.iter().map(|(name, text)| ((*name).to_owned(), digest(text))).collect()
    }

    #[test]
    fn the_way_takes_back_what_is_not_shared_and_applies_the_rest() {
        let (one, two, three) = (id("1"), id("2"), id("3"));
        assert_eq!(way(&[one, two], &[one, three]), [Step::Revert(two), Step::Apply(three)]);
        assert_eq!(way(&[one], &[one]), []);
        assert_eq!(way(&[one, two], &[]), [Step::Revert(two), Step::Revert(one)]);
    }

    #[test]
    fn states_are_told_by_digests_alone() {
        let atlas = atlas();
        let at = |digests| match atlas.locate(&found(digests)) {
            Location::At(found) => {
                found.into_iter().map(|index| atlas.known()[index].series().to_vec()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(at([("a", "base"), ("b", "base"), ("c", "base")]), [vec![]]);
        assert_eq!(at([("a", "2"), ("b", "1"), ("c", "base")]), [vec![id("one"), id("two")]]);
        assert_eq!(at([("a", "1"), ("b", "1"), ("c", "3")]), [vec![id("one"), id("other")]]);
        assert_eq!(atlas.needed().len(), 3);
    }

    #[test]
    fn what_series_begin_with_is_kept_once_whichever_comes_first() {
        let ids: Vec<PatchId> = (0..100).map(|number| id(&number.to_string())).collect();
        let names: Vec<String> =
            (0..=100).map(|number| if number == 0 { "base".into() } else { number.to_string() }).collect();
        let step = |place: usize| vec![binding(&[("a", names[place].as_str(), names[place + 1].as_str())])];
        let bindings: BTreeMap<_, _> = ids.iter().enumerate().map(|(place, id)| (*id, step(place))).collect();
        // As a history has them, the newest first, and the other way round.
        let newest_first: Vec<&[PatchId]> = (0..=100).rev().map(|end| &ids[..end]).collect();
        let oldest_first: Vec<&[PatchId]> = newest_first.iter().rev().copied().collect();
        for series in [newest_first, oldest_first] {
            let atlas = Atlas::new(base(), series, &bindings).unwrap();
            assert_eq!(atlas.known().len(), 101);
            for (length, known) in atlas.known().iter().enumerate() {
                assert_eq!(known.series(), &ids[..length]);
                assert!(length == 0 || Arc::ptr_eq(&known.whole, &atlas.known()[100].whole));
                assert_eq!(known.state.changed().count(), length.min(1));
            }
        }
    }

    #[test]
    fn half_way_and_unknown_are_told_apart() {
        let atlas = atlas();
        let standing = atlas.locate(&found([("a", "1"), ("b", "base"), ("c", "base")]));
        let half = HalfWay { patch: Some(id("one")), changed: 1, tensors: 2 };
        assert_eq!(standing, Location::HalfWay(half));
        let Location::Unknown(stranger) = atlas.locate(&found([("a", "1"), ("b", "9"), ("c", "base")]))
        else {
            panic!("a digest that nobody knows")
        };
        assert_eq!((stranger.tensor.as_str(), stranger.strangers), ("b", 1));
    }

    #[test]
    fn a_patch_for_another_state_is_refused_by_name() {
        let atlas = atlas();
        let misfit = State::default().after(atlas.base(), &[binding(&[("a", "1", "2")])]).unwrap_err();
        assert!(misfit.to_string().starts_with("tensor `a` hashes to"), "{misfit}");
        let misfit = State::default().after(atlas.base(), &[binding(&[("z", "1", "2")])]).unwrap_err();
        assert_eq!(misfit, Misfit::Tensor { tensor: "z".to_owned() });
    }

    #[test]
    fn a_state_that_came_back_is_the_base() {
        let (there, back) = (binding(&[("a", "base", "1")]), binding(&[("a", "1", "base")]));
        let state = State::default().after(&base(), &[there]).unwrap();
        assert_ne!(state.weights_id(&base()), base().weights);
        let state = state.after(&base(), &[back]).unwrap();
        assert_eq!((state.clone(), state.weights_id(&base())), (State::default(), base().weights));
    }
}
