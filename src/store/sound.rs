//! Which commits hold a state that can be: stock git joins files, and takes any line out of a series.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use git2::Oid;

use super::base::Base;
use super::error::StoreError;
use super::log::is_strange;
use super::objects::ObjectStore;
use super::refs::{CommitId, Kind};
use super::state::{Atlas, Paths};
use super::{Store, View};
use crate::digest::PatchId;
use crate::patch::manifest::Binding;

impl Store {
    /// Every state that any commit, or any operation that can be taken back, has led to; with the commits that hold no
    /// state that can be, of those that have a name: [`StoreError::Unsound`].
    ///
    /// # Errors
    /// [`StoreError::Unsound`] of one that is asked for, and what else is wrong with a commit or a patch.
    pub fn atlas(&self, asked: &[CommitId]) -> Result<(Atlas, Vec<StoreError>), StoreError> {
        self.atlas_along(self.everything()?, asked)
    }

    /// Every state that the commits which these ones were made of have led to, and these: the same in every copy.
    ///
    /// # Errors
    /// As [`Store::atlas`], with all of them asked for.
    pub fn atlas_behind(&self, ends: &[CommitId]) -> Result<Atlas, StoreError> {
        let targets: Vec<Oid> = ends.iter().map(|end| end.0).collect();
        Ok(self.atlas_along(self.states(&targets)?, ends)?.0)
    }

    /// Refuses what no other history would take: names that lead to a commit which holds no state that can be.
    ///
    /// # Errors
    /// [`StoreError::Unsound`], and what else is wrong with a commit or a patch.
    pub fn check_sound(&self, ends: &[CommitId]) -> Result<(), StoreError> {
        let targets: Vec<Oid> = ends.iter().map(|end| end.0).collect();
        let (_, unsound) = self.atlas_along(self.states(&targets)?, &[])?;
        unsound.into_iter().next().map_or(Ok(()), Err)
    }

    /// The branches and tags that lead to a commit, each with its kind.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn leading_to(&self, view: &View, commit: CommitId) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for kind in Kind::ALL {
            for (name, target) in view.names(kind) {
                let (target, _) = self.named(target)?;
                if self.leads_to(target, commit)? {
                    names.push(format!("{kind} `{name}`"));
                }
            }
        }
        Ok(names)
    }

    fn leads_to(&self, from: CommitId, commit: CommitId) -> Result<bool, StoreError> {
        let is_behind = || self.repository.graph_descendant_of(from.0, commit.0);
        Ok(from == commit || is_behind().map_err(StoreError::git("walk its commits"))?)
    }

    fn is_current(&self, view: &View, commit: CommitId) -> Result<bool, StoreError> {
        view.head_commit().map_or(Ok(false), |head| self.leads_to(head, commit))
    }

    /// The branches and tags that lead to a commit, and whether one of them or the head does.
    pub(super) fn led_to(&self, view: &View, commit: CommitId) -> Result<(Vec<String>, bool), StoreError> {
        let names = self.leading_to(view, commit)?;
        let is_led_to = !names.is_empty() || self.is_current(view, commit)?;
        Ok((names, is_led_to))
    }

    /// Says of what is wrong with a commit's content which one that is.
    pub(super) fn unsound<T>(&self, commit: CommitId, error: StoreError) -> Result<T, StoreError> {
        if !error.is_of_content() {
            return Err(error);
        }
        let view = self.view()?;
        let (names, is_current) = (self.leading_to(&view, commit)?, self.is_current(&view, commit)?);
        Err(StoreError::Unsound { commit, names, is_current, source: Box::new(error) })
    }

    fn atlas_along(
        &self,
        commits: Vec<Oid>,
        asked: &[CommitId],
    ) -> Result<(Atlas, Vec<StoreError>), StoreError> {
        let (mut bindings, mut unsound) = (BTreeMap::new(), BTreeMap::new());
        let mut lines: Vec<(CommitId, Vec<PatchId>)> = Vec::new();
        for commit in commits.into_iter().map(CommitId) {
            match self.new_series(commit, &lines, &mut bindings) {
                Ok(series) => lines.extend(series.map(|series| (commit, series))),
                Err(error) if error.is_of_content() => _ = unsound.insert(commit, error),
                Err(error) => return Err(error),
            }
        }
        let series = lines.iter().map(|(_, series)| series.as_slice());
        let (atlas, misfits) = Atlas::of_what_fits(self.base()?, series, &bindings);
        unsound.extend(misfits.into_iter().map(|(place, misfit)| (lines[place].0, misfit)));
        for commit in asked {
            if !unsound.contains_key(commit)
                && let series = self.series(*commit)?
                && let Err(misfit) = Paths::new(atlas.base().clone()).after(&series, &bindings)
            {
                // A longer series which begins with this one stands for both.
                unsound.insert(*commit, misfit);
            }
        }
        let (view, mut told) = (self.view()?, Vec::new());
        for (commit, source) in unsound {
            let names = self.leading_to(&view, commit)?;
            let (is_asked, is_named) = (asked.contains(&commit), !names.is_empty());
            let is_current = self.is_current(&view, commit)?;
            let error = StoreError::Unsound { commit, names, is_current, source: Box::new(source) };
            match (is_asked, is_named) {
                (true, _) => return Err(error),
                (false, true) => told.push(error),
                // Nobody can come to it but by its id, and then it is asked for.
                (false, false) => {}
            }
        }
        Ok((atlas, told))
    }

    /// The series of a commit, unless a newer one begins with it, whose tree has its patches, too: so is nearly every
    /// one of a long history. The bindings of its patches are added to `bindings`.
    fn new_series(
        &self,
        commit: CommitId,
        newer: &[(CommitId, Vec<PatchId>)],
        bindings: &mut BTreeMap<PatchId, Vec<Binding>>,
    ) -> Result<Option<Vec<PatchId>>, StoreError> {
        let series = self.series(commit)?;
        if newer.iter().any(|(_, newer)| newer.starts_with(&series)) {
            return Ok(None);
        }
        add_bindings(self.objects(), self.tree(commit)?, bindings)?;
        Ok(Some(series))
    }
}

/// Adds the bindings of all patches of a tree that are not known yet; tells its base and its series.
fn add_bindings(
    objects: ObjectStore<'_>,
    tree: Oid,
    bindings: &mut BTreeMap<PatchId, Vec<Binding>>,
) -> Result<(Oid, Vec<PatchId>), StoreError> {
    let snapshot = objects.read_tree(tree)?;
    for (id, stored) in snapshot.patches {
        if let Entry::Vacant(new) = bindings.entry(id) {
            new.insert(objects.read_manifest(id, stored)?.bindings);
        }
    }
    Ok((snapshot.base, snapshot.series))
}

/// What is known of the commits that came from elsewhere.
pub(super) struct Soundness<'r> {
    objects: ObjectStore<'r>,
    /// None while there is no base that all have to be about.
    paths: Option<Paths>,
    /// Where that base is kept.
    bases: BTreeSet<Oid>,
    bindings: BTreeMap<PatchId, Vec<Binding>>,
    sound: BTreeSet<Oid>,
}

impl<'r> Soundness<'r> {
    pub(super) fn new(objects: ObjectStore<'r>, base: Option<Base>) -> Self {
        Self {
            objects,
            paths: base.map(Paths::new),
            bases: BTreeSet::new(),
            bindings: BTreeMap::new(),
            sound: BTreeSet::new(),
        }
    }

    /// The first of these commits that holds no state that can be, and why.
    pub(super) fn first_unsound(
        &mut self,
        commits: &[Oid],
    ) -> Result<Option<(CommitId, StoreError)>, StoreError> {
        for commit in commits {
            match self.check(*commit) {
                // A large patch without its manifest tells only once Git LFS has brought it.
                Ok(()) | Err(StoreError::Missing { .. }) => {}
                Err(error) if error.is_of_content() => return Ok(Some((CommitId(*commit), error))),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn check(&mut self, commit: Oid) -> Result<(), StoreError> {
        if self.sound.contains(&commit) || is_strange(self.objects.repository, commit) {
            return Ok(());
        }
        let found = self.objects.repository.find_commit(commit).map_err(StoreError::git("read a commit"))?;
        let (base, series) = add_bindings(self.objects, found.tree_id(), &mut self.bindings)?;
        self.check_base(base)?;
        let Some(paths) = &mut self.paths else { return Ok(()) };
        let state = paths.after(&series, &self.bindings)?.clone().weights_id(paths.base());
        if let Some(what) = self.objects.false_claim(commit, state)? {
            return Err(StoreError::malformed("its message", what));
        }
        self.sound.insert(commit);
        Ok(())
    }

    /// Refuses another base than the first, beside which no series of ours or of theirs makes sense.
    fn check_base(&mut self, base: Oid) -> Result<(), StoreError> {
        if self.bases.contains(&base) {
            return Ok(());
        }
        let found = self.objects.read_base(base)?;
        let expected = self.paths.get_or_insert_with(|| Paths::new(found.clone())).base();
        if *expected != found {
            return Err(StoreError::other_base("it", expected, &found));
        }
        self.bases.insert(base);
        Ok(())
    }
}
