//! What merged patches are made of, so that a merge can deal with each original patch by itself.

use std::collections::{BTreeMap, BTreeSet};

use mpatch::digest::PatchId;
use mpatch::stack::{METHOD, Reached};
use mpatch::store::{Atlas, Store};

use crate::error::CommandError;

/// Which patches of a history stand for others.
#[derive(Debug, Default)]
pub struct Origins {
    /// The patches that a patch replaces.
    replaced: BTreeMap<PatchId, Vec<PatchId>>,
    /// Those of them that are the sum of what they replace, each part of which the history has.
    sums: BTreeSet<PatchId>,
}

impl Origins {
    /// In the states of `atlas`.
    pub fn of(store: &Store, atlas: &Atlas) -> Result<Self, CommandError> {
        // Every beginning of a series is a known one.
        let known: BTreeSet<PatchId> =
            atlas.known().iter().filter_map(|known| known.series().last()).copied().collect();
        let mut origins = Self::default();
        for id in &known {
            let manifest = store.manifest(*id)?;
            if manifest.supersedes.is_empty() {
                continue;
            }
            // What was solved for again, or bound to another state as well, is no sum.
            if manifest.recipe.method == METHOD && manifest.supersedes.iter().all(|part| known.contains(part))
            {
                origins.sums.insert(*id);
            }
            origins.replaced.insert(*id, manifest.supersedes);
        }
        Ok(origins)
    }

    fn parts(&self, id: PatchId) -> &[PatchId] {
        self.replaced.get(&id).map_or(&[], Vec::as_slice)
    }

    /// All that a patch stands for, however many merges ago, and not itself.
    pub fn below(&self, id: PatchId) -> BTreeSet<PatchId> {
        let mut found = BTreeSet::new();
        let mut open = vec![id];
        while let Some(next) = open.pop() {
            let parts = self.parts(next).iter().copied();
            open.extend(parts.filter(|part| *part != id && found.insert(*part)));
        }
        found
    }

    /// Replaces sums in these series by their parts, where one of these stands elsewhere, too: by itself, or in another
    /// sum. Each patch is there once.
    pub fn unfold(&self, all: &mut [&mut Vec<PatchId>]) {
        while let Some(sum) = self.next_to_unfold(all) {
            let parts = self.parts(sum);
            for series in &mut *all {
                let unfolded =
                    series.iter().flat_map(|id| if *id == sum { parts } else { std::slice::from_ref(id) });
                let mut seen = BTreeSet::new();
                **series = unfolded.filter(|id| seen.insert(**id)).copied().collect();
            }
        }
    }

    fn next_to_unfold(&self, all: &[&mut Vec<PatchId>]) -> Option<PatchId> {
        let ids: BTreeSet<PatchId> = all.iter().flat_map(|series| series.iter()).copied().collect();
        let below: BTreeMap<PatchId, BTreeSet<PatchId>> =
            ids.iter().filter(|id| self.replaced.contains_key(id)).map(|id| (*id, self.below(*id))).collect();
        let others =
            |id: PatchId| below.iter().filter(move |(other, _)| **other != id).map(|(_, below)| below);
        let is_outermost = |id: &PatchId| !others(*id).any(|below| below.contains(id));
        let meets = |id: &PatchId, parts: &BTreeSet<PatchId>| {
            !parts.is_disjoint(&ids) || others(*id).any(|below| !below.is_disjoint(parts))
        };
        let found =
            below.iter().find(|(id, parts)| self.sums.contains(id) && is_outermost(id) && meets(id, parts));
        found.map(|(id, _)| *id)
    }

    /// The states of a history as what is to be added to `series`, of `beyond`, to have what they have; those that
    /// have anything else are left out.
    pub fn reached(&self, atlas: &Atlas, series: &[PatchId], beyond: &[PatchId]) -> Vec<Reached> {
        let of = |known: &[PatchId]| {
            let mut patches = Vec::new();
            let mut seen = BTreeSet::new();
            let mut open = known.to_vec();
            while let Some(id) = open.pop() {
                if series.contains(&id) || !seen.insert(id) {
                    continue;
                } else if beyond.contains(&id) {
                    patches.push(id);
                } else if self.sums.contains(&id) {
                    open.extend(self.parts(id));
                } else {
                    return None;
                }
            }
            Some(patches)
        };
        let reached = atlas.known().iter().filter_map(|known| {
            let patches = of(known.series())?;
            Some(Reached { weights: known.state.weights_id(atlas.base()), patches })
        });
        reached.collect()
    }

    #[cfg(test)]
    pub fn of_sums(sums: &[(PatchId, &[PatchId])]) -> Self {
        Self {
            replaced: sums.iter().map(|(sum, parts)| (*sum, parts.to_vec())).collect(),
            sums: sums.iter().map(|(sum, _)| *sum).collect(),
        }
    }

    #[cfg(test)]
    pub fn of_solved(solved: &[(PatchId, &[PatchId])]) -> Self {
        Self { sums: BTreeSet::new(), ..Self::of_sums(solved) }
    }
}
