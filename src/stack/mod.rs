//! Several patches as one: the facts of all, their terms in order, one rounding, its own digests and undo.
//!
//! ```text
//! place    each patch on the base, or on what patches before it make of the base: gives the order of the terms
//! agree    facts by what they are about: agreeing ones are merged, contradicting ones are named or decided
//! add      W' = round(((W + D of the first) + D of the second) + ...), bound to the base
//! ```
//!
//! Adding updates is not the same as writing the facts again: each update was made as if it were alone, so what they
//! do to each other's keys adds up (`docs/stacking.md` has the measurement). A fact that loses a contradiction
//! cannot be subtracted from a sum either: a patch that loses all its facts is left out whole, and one that loses
//! some is refused unless the caller accepts that the weights hold both updates.

mod add;
mod agree;
mod error;
mod place;

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::digest::{PatchId, WeightsId};
use crate::facts::Targets;
use crate::operation::Progress;
use crate::patch::Patch;
use crate::patch::layout::PARENTS_MAX;
use crate::patch::manifest::Fact;

pub use add::{AddOptions, METHOD, Overlap, Squash, Squashed, Stacked};
pub use error::StackError;

/// A patch and the name that messages call it by.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its path, or whatever else its owner knows it by.
    pub name: &'a str,
    /// The patch.
    pub patch: &'a Patch,
}

/// A state of the weights that somebody knows to come of some patches, by whatever steps and roundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// The state.
    pub weights: WeightsId,
    /// The patches that lead to it from the base of the stack.
    pub patches: Vec<PatchId>,
}

/// Which of two contradicting facts stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sides {
    /// Neither: contradictions are an error that names them all.
    #[default]
    Refuse,
    /// That of the patch which comes first.
    Ours,
    /// That of the patch which comes later.
    Theirs,
    /// The one whose target stands here; others are an error.
    ByFact(Targets),
}

/// What stacking some patches on a base comes to, found out before any update is read.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The state of the base.
    pub weights: WeightsId,
    patches: Vec<PlannedPatch>,
    /// The facts of the result.
    #[serde(skip)]
    pub facts: Vec<Fact>,
    /// Facts that two patches hold alike; the result declares each once, and its weights hold both updates.
    pub duplicates: Vec<Clash>,
    /// Facts that a patch made on top of another changes: the later one stands.
    pub changed: Vec<Clash>,
    /// Contradictions that were decided; [`Decision::second_stands`] tells for whom.
    pub decided: Vec<Decision>,
}

/// One patch of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlannedPatch {
    /// Its place among the patches that were given.
    pub given: usize,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: PatchId,
    /// Which of its bindings fits.
    pub binding: usize,
    /// The patches that it was made on top of, by their place in [`Plan::patches()`].
    pub on_top_of: Vec<usize>,
    /// How many facts it declares.
    pub facts: usize,
    /// How many of them lost a contradiction.
    pub lost: usize,
    /// It lost all its facts and nothing builds on it: its update is not added.
    pub left_out: bool,
}

/// Two facts about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Clash {
    /// The prompt with its subject.
    pub text: String,
    /// The one that comes first in the order of the terms.
    pub first: Side,
    /// The later one.
    pub second: Side,
}

/// One of two facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Side {
    /// The patch's name.
    pub name: String,
    /// The patch.
    pub patch: PatchId,
    /// What its fact says.
    pub target: String,
}

/// A contradiction and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Decision {
    /// The two facts.
    pub clash: Clash,
    /// The later one stands.
    pub second_stands: bool,
}

/// Plans the stack of `patches` on `base`: their order, and the facts of all.
///
/// Reads all weights of the base once to know its state; `progress` is told bytes,
/// [`Checkpoint::weights_size_bytes`] in all.
///
/// # Errors
/// [`StackError`]: a patch for another base, one given twice or held by another, contradictions that `sides` does not
/// decide, more patches than one can replace.
pub fn plan(
    base: &Checkpoint,
    patches: &[Named<'_>],
    sides: &Sides,
    progress: Progress<'_>,
) -> Result<Plan, StackError> {
    plan_among(base, patches, &[], sides, progress)
}

/// As [`plan`], for patches of which some may have been made on one of the states in `reached`.
///
/// # Errors
/// As [`plan`].
pub fn plan_among(
    base: &Checkpoint,
    patches: &[Named<'_>],
    reached: &[Reached],
    sides: &Sides,
    progress: Progress<'_>,
) -> Result<Plan, StackError> {
    place::check_given(patches)?;
    let digests = base.digests_with(&Vec::from_iter(base.tensors()), progress)?;
    let weights = base.weights_id_of(&digests);
    let mut placed = place::place(base, digests, patches, reached)?;
    let agreed = agree::agree(&mut placed, patches, sides)?;
    let plan = Plan {
        weights,
        patches: placed,
        facts: agreed.facts,
        duplicates: agreed.duplicates,
        changed: agreed.changed,
        decided: agreed.decided,
    };
    // What the result replaces stands in its manifest: encoding would refuse it, but only when all is added.
    match plan.added().count() {
        ..=PARENTS_MAX => Ok(plan),
        found => Err(StackError::TooMany { found, limit: PARENTS_MAX }),
    }
}

/// Plans and adds in one step.
///
/// `progress` is told bytes: all weights of the base once, and the touched tensors once more.
///
/// # Errors
/// As [`plan`] and [`Plan::add`].
pub fn stack(
    base: &Checkpoint,
    patches: &[Named<'_>],
    sides: &Sides,
    options: &AddOptions,
    progress: Progress<'_>,
) -> Result<Stacked, StackError> {
    let plan = plan(base, patches, sides, progress)?;
    plan.add(base, patches, options, progress)
}

impl Plan {
    /// All patches, in the order of their terms.
    pub fn patches(&self) -> &[PlannedPatch] {
        &self.patches
    }

    /// The patches whose updates are added, in order.
    pub fn added(&self) -> impl Iterator<Item = &PlannedPatch> {
        self.patches.iter().filter(|patch| !patch.left_out)
    }

    /// Patches that lost some of their facts and keep the others: their updates cannot be told apart.
    pub fn partly_lost(&self) -> impl Iterator<Item = &PlannedPatch> {
        self.added().filter(|patch| patch.lost > 0)
    }

    /// The order of the terms is not the order in which the patches were given.
    pub fn is_reordered(&self) -> bool {
        !self.patches.is_sorted_by_key(|patch| patch.given)
    }
}
