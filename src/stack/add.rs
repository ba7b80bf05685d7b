//! Adding the updates of a plan's patches: their terms in order, bound to the base with one rounding.

use std::collections::BTreeMap;

#[cfg(feature = "edit")]
use rayon::prelude::*;
use serde::Serialize;

use super::{Named, Plan, PlannedPatch, StackError};
use crate::bind::{NotFinite, bind_with};
use crate::checkpoint::Checkpoint;
use crate::digest::{FileDigest, PatchId};
use crate::factors::Term;
#[cfg(feature = "edit")]
use crate::factors::{FactorError, Integers, KeySpace, recompress};
use crate::operation::Progress;
use crate::patch::manifest::{About, Manifest, Recipe, Update};
use crate::patch::{Draft, Patch};

/// The method that the recipe of a stacked patch names.
pub const METHOD: &str = "stack";

/// How updates are added.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AddOptions {
    /// The program that the recipe names, e.g. `mpatch 0.1.0`.
    pub tool: String,
    /// Add the update of a patch that lost some of its facts, too: the weights then hold what no fact declares.
    pub keep_partly_lost: bool,
    /// Leave corrections out, so that patches which carry some can be added.
    pub drop_corrections: bool,
    /// Recompress each tensor's terms to one.
    pub squash: Option<Squash>,
    /// Measure how the key spaces of any two patches lie to each other.
    pub overlaps: bool,
    /// Free text for the result.
    pub about: About,
}

/// How far terms may be recompressed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Squash {
    /// Largest relative Frobenius error of a tensor's update, quantisation included.
    pub tolerance: f64,
}

/// The result of adding.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stacked {
    /// What was planned.
    pub plan: Plan,
    /// The patch; [`crate::patch::encode`] gives its bytes.
    pub draft: Draft,
    /// How the key spaces of any two patches lie to each other, for each tensor that both touch, if asked for.
    pub overlaps: Vec<Overlap>,
    /// What became of each tensor's terms where they were recompressed.
    pub squashed: Vec<Squashed>,
}

/// Two patches that answer to the same keys.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Overlap {
    /// The tensor.
    pub tensor: String,
    /// Names of the two patches, in the order of their terms.
    pub patches: [String; 2],
    /// Dimensions of their key spaces.
    pub ranks: [usize; 2],
    /// Smallest principal angle between the row spaces of the right factors, in degrees: 0 where they share a
    /// direction, 90 where they share none.
    pub angle_degrees: f64,
    /// Mean of the squared cosines of all principal angles: the share of the smaller space that lies in the larger.
    pub shared: f64,
    /// What `shared` comes to for spaces of these dimensions that have nothing to do with each other.
    pub shared_by_chance: f64,
}

/// What recompressing came to for one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Squashed {
    /// The tensor.
    pub tensor: String,
    /// Ranks of its terms in all, before.
    pub rank_before: usize,
    /// Rank of the one term; none where it is stored dense.
    pub rank_after: Option<usize>,
    /// Width of its integers.
    pub bits: u8,
    /// Relative Frobenius error of the one term against the sum of those before.
    pub error: f64,
}

/// The terms of all patches, and for each tensor which of them are added, and whose they are.
#[derive(Default)]
struct Terms {
    terms: Vec<Term>,
    edits: BTreeMap<String, Vec<u32>>,
    /// Parallel to `terms`: the patch, by its place in the plan.
    #[cfg_attr(not(feature = "edit"), allow(dead_code, reason = "only overlaps ask whose a term is"))]
    owners: Vec<usize>,
}

impl Plan {
    /// Refuses two patches with one update. Where facts are solved again it does no harm.
    fn check_shared(&self, patches: &[Named<'_>]) -> Result<(), StackError> {
        let mut updates: BTreeMap<Update, (PatchId, &str)> = BTreeMap::new();
        for Named { name, patch } in self.added().filter_map(|planned| patches.get(planned.given)) {
            for update in patch.manifest().updates() {
                let (id, first) = *updates.entry(update).or_insert((patch.id(), name));
                if id != patch.id() {
                    return Err(StackError::Shared { first: first.to_owned(), second: (*name).to_owned() });
                }
            }
        }
        Ok(())
    }

    /// Adds the updates and binds the sum to `base`, which is in the state that was planned for.
    ///
    /// `patches` are those of [`super::plan`], in the same order. `progress` is told bytes, the sizes of the touched
    /// tensors in all.
    ///
    /// # Errors
    /// [`StackError::OtherPatches`] for others than planned;
    /// [`StackError::PartlyLost`] and [`StackError::Correction`] unless the options allow them,
    /// [`StackError::Shared`] where one update would be added twice,
    /// [`StackError::NothingLeft`] where no patch is left; [`StackError::Patch`] and [`StackError::Factors`] where
    /// terms cannot be decoded or added, [`StackError::Bind`] where their sum does not fit the base,
    /// [`StackError::Checkpoint`] where that cannot be read.
    pub fn add(
        self,
        base: &Checkpoint,
        patches: &[Named<'_>],
        options: &AddOptions,
        progress: Progress<'_>,
    ) -> Result<Stacked, StackError> {
        let is_planned = |planned: &PlannedPatch| {
            patches.get(planned.given).is_some_and(|named| named.patch.id() == planned.id)
        };
        if !self.patches.iter().all(is_planned) {
            return Err(StackError::OtherPatches);
        }
        self.check_lost(options)?;
        self.check_shared(patches)?;
        let mut terms = self.terms(patches, options)?;
        let overlaps = if options.overlaps { self.overlaps(&terms)? } else { Vec::new() };
        let squashed = terms.squash(options.squash)?;
        let edits: Vec<_> = terms.edits.into_iter().collect();
        // The patches apply to these weights, broken ones included; so does their sum.
        let binding = bind_with(base, self.weights, &edits, &terms.terms, NotFinite::Keep, progress)?;
        let manifests: Vec<&Manifest> =
            self.added().map(|patch| patches[patch.given].patch.manifest()).collect();
        // A patch that was extracted from weights alone does not know its model; all are for one.
        let is_known = |manifest: &&&Manifest| !manifest.base.config.is_of_nothing();
        let known = manifests.iter().find(is_known).or(manifests.first()).ok_or(StackError::NothingLeft)?;
        let ids: Vec<PatchId> = self.added().map(|patch| patch.id).collect();
        let draft = Draft {
            base: known.base.clone(),
            facts: self.facts.clone(),
            recipe: recipe(&manifests, &ids, options),
            // The integers are the same, but nobody has measured their sum.
            measured: Vec::new(),
            terms: terms.terms,
            bindings: vec![binding],
            line: None,
            parents: Vec::new(),
            supersedes: ids,
            about: options.about.clone(),
        };
        Ok(Stacked { plan: self, draft, overlaps, squashed })
    }

    fn check_lost(&self, options: &AddOptions) -> Result<(), StackError> {
        if self.added().next().is_none() {
            return Err(StackError::NothingLeft);
        }
        match self.partly_lost().next() {
            Some(patch) if !options.keep_partly_lost => {
                Err(StackError::PartlyLost { name: patch.name.clone(), lost: patch.lost, facts: patch.facts })
            }
            _ => Ok(()),
        }
    }

    fn terms(&self, patches: &[Named<'_>], options: &AddOptions) -> Result<Terms, StackError> {
        let mut all = Terms::default();
        for (owner, planned) in self.patches.iter().enumerate().filter(|(_, patch)| !patch.left_out) {
            all.take(owner, planned, patches[planned.given].patch, options)?;
        }
        Ok(all)
    }

    #[cfg(feature = "edit")]
    fn overlaps(&self, terms: &Terms) -> Result<Vec<Overlap>, StackError> {
        let mut overlaps = Vec::new();
        for (tensor, indices) in &terms.edits {
            let space = |(owner, of_patch): (usize, Vec<&Term>)| {
                let space =
                    KeySpace::of(&of_patch).map_err(|source| self.factors_error(owner, tensor, source))?;
                Ok(space.map(|space| (owner, space)))
            };
            let spaces = terms.by_owner(indices).into_par_iter().map(space);
            let spaces: Vec<_> =
                spaces.collect::<Result<Vec<_>, StackError>>()?.into_iter().flatten().collect();
            let later = |index: usize| spaces.iter().skip(index + 1);
            let pairs = spaces
                .iter()
                .enumerate()
                .flat_map(|(index, one)| later(index).map(move |other| (one, other)));
            let pairs: Vec<_> = pairs.collect();
            let found = pairs.into_par_iter().map(|(one, other)| self.overlap(tensor, one, other));
            overlaps.append(&mut found.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(overlaps)
    }

    #[cfg(feature = "edit")]
    fn overlap(
        &self,
        tensor: &str,
        (one, first): &(usize, KeySpace),
        (other, second): &(usize, KeySpace),
    ) -> Result<Overlap, StackError> {
        let name = |owner: usize| self.patches[owner].name.clone();
        let found = first.overlap(second).map_err(|source| self.factors_error(*one, tensor, source))?;
        Ok(Overlap {
            tensor: tensor.to_owned(),
            patches: [name(*one), name(*other)],
            ranks: [first.rank(), second.rank()],
            angle_degrees: found.angle_degrees,
            shared: found.shared,
            shared_by_chance: found.shared_by_chance,
        })
    }

    #[cfg(feature = "edit")]
    fn factors_error(&self, owner: usize, tensor: &str, source: FactorError) -> StackError {
        let patch = Some(self.patches[owner].name.clone());
        StackError::Factors { patch, tensor: tensor.to_owned(), source }
    }

    /// Without the feature `edit` there is no linear algebra to find them with.
    #[cfg(not(feature = "edit"))]
    fn overlaps(&self, _: &Terms) -> Result<Vec<Overlap>, StackError> {
        Err(StackError::NoLinearAlgebra)
    }
}

impl Terms {
    /// Adds the terms of one patch, each once, to the tensors that its binding names.
    fn take(
        &mut self,
        owner: usize,
        planned: &PlannedPatch,
        patch: &Patch,
        options: &AddOptions,
    ) -> Result<(), StackError> {
        let mut taken: BTreeMap<u32, u32> = BTreeMap::new();
        for tensor in &patch.manifest().bindings[planned.binding].tensors {
            let name = || planned.name.clone();
            if tensor.correction.is_some() && !options.drop_corrections {
                return Err(StackError::Correction { name: name(), tensor: tensor.name.clone() });
            }
            for &index in &tensor.terms {
                let place = match taken.get(&index) {
                    Some(&place) => place,
                    None => {
                        let term =
                            patch.term(index).map_err(|source| StackError::Patch { name: name(), source })?;
                        // The format's limit on terms refuses the result long before an index saturates.
                        let place = u32::try_from(self.terms.len()).unwrap_or(u32::MAX);
                        self.terms.push(term);
                        self.owners.push(owner);
                        taken.insert(index, place);
                        place
                    }
                };
                self.edits.entry(tensor.name.clone()).or_default().push(place);
            }
        }
        Ok(())
    }

    /// The terms at `indices` by patch, in order.
    #[cfg(feature = "edit")]
    fn by_owner(&self, indices: &[u32]) -> Vec<(usize, Vec<&Term>)> {
        let mut groups: Vec<(usize, Vec<&Term>)> = Vec::new();
        for &index in indices {
            let (owner, term) = (self.owners[index as usize], &self.terms[index as usize]);
            match groups.last_mut() {
                Some((last, group)) if *last == owner => group.push(term),
                _ => groups.push((owner, vec![term])),
            }
        }
        groups
    }

    /// Makes one term of each tensor's terms, if asked to.
    #[cfg(feature = "edit")]
    fn squash(&mut self, squash: Option<Squash>) -> Result<Vec<Squashed>, StackError> {
        let Some(Squash { tolerance }) = squash else { return Ok(Vec::new()) };
        let mut squashed = Vec::new();
        let mut terms = Vec::new();
        for (tensor, indices) in &mut self.edits {
            let of_tensor: Vec<&Term> = indices.iter().map(|index| &self.terms[*index as usize]).collect();
            let failed =
                |source: FactorError| StackError::Factors { patch: None, tensor: tensor.clone(), source };
            let (term, error) = recompress(&of_tensor, tolerance).map_err(failed)?;
            squashed.push(Squashed {
                tensor: tensor.clone(),
                rank_before: of_tensor.iter().map(|term| term.rank()).sum(),
                rank_after: match term.integers() {
                    Integers::LowRank { .. } => Some(term.rank()),
                    Integers::Dense(_) => None,
                },
                bits: term.bits(),
                error,
            });
            *indices = vec![u32::try_from(terms.len()).unwrap_or(u32::MAX)];
            terms.push(term);
        }
        self.terms = terms;
        self.owners.clear();
        Ok(squashed)
    }

    /// Without the feature `edit` there is no linear algebra to recompress with.
    #[cfg(not(feature = "edit"))]
    fn squash(&mut self, squash: Option<Squash>) -> Result<Vec<Squashed>, StackError> {
        match squash {
            None => Ok(Vec::new()),
            Some(_) => Err(StackError::NoLinearAlgebra),
        }
    }
}

/// How the stacked patch was made: from which patches. What they have in common is kept.
fn recipe(manifests: &[&Manifest], ids: &[PatchId], options: &AddOptions) -> Recipe {
    let recipes = || manifests.iter().map(|manifest| &manifest.recipe);
    let of_patch = |(manifest, id): (&&Manifest, &PatchId)| {
        serde_json::json!({
            "id": id.to_string(), "method": manifest.recipe.method, "facts": manifest.facts.len(),
        })
    };
    let patches: Vec<_> = manifests.iter().zip(ids).map(of_patch).collect();
    let hyperparameters = serde_json::json!({
        "patches": patches, "squash": options.squash.map(|squash| squash.tolerance),
    });
    let mut layers: Vec<u32> = recipes().flat_map(|recipe| recipe.layers.iter().copied()).collect();
    layers.sort_unstable();
    layers.dedup();
    let nothing = FileDigest::of_nothing();
    Recipe {
        method: METHOD.to_owned(),
        hyperparameters: hyperparameters.to_string(),
        layers,
        contexts: common(recipes().map(|recipe| &recipe.contexts)).cloned().unwrap_or_default(),
        seed: common(recipes().map(|recipe| &recipe.seed)).copied().unwrap_or_default(),
        statistics: common(recipes().map(|recipe| &recipe.statistics)).copied().unwrap_or(nothing),
        facts: nothing,
        tool: options.tool.clone(),
        device: common(recipes().map(|recipe| &recipe.device))
            .cloned()
            .unwrap_or_else(|| "several".to_owned()),
    }
}

/// The value that all have, if they have one.
fn common<'a, T: PartialEq>(mut values: impl Iterator<Item = &'a T>) -> Option<&'a T> {
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}
