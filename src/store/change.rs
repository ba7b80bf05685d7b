//! A change of a store: new states as commits, names that move, and the one recorded step that makes both so.

use std::collections::{BTreeMap, BTreeSet};

use git2::Oid;

use super::Store;
use super::base::Base;
use super::beside::Beside;
use super::error::StoreError;
use super::message::Message;
use super::objects::{Snapshot, Stored, check_length, write_commit};
use super::operations::{self, Deed, Journal, Operation};
use super::refs::{CommitId, Head, Kind, View};
use super::state::{Atlas, State};
use crate::digest::{PatchId, WeightsId};
use crate::patch::Patch;
use crate::patch::manifest::Update;

/// A change of a store in the making; dropped before [`Change::finish`], it changes nothing.
#[derive(Debug)]
pub struct Change<'s> {
    pub(super) store: &'s Store,
    pub(super) journal: Journal,
    /// The last commit that [`Change::add`] has made, and its state: to walk to it once more for each patch of many
    /// would take the square of their number.
    pub(super) added: Option<(CommitId, Reached)>,
    /// Patches whose files the next merge has as they were written here, and not as either side has them.
    pub(super) signed_anew: BTreeMap<PatchId, Stored>,
    /// Weights were written with it.
    pub(super) with_weights: bool,
}

/// Where a series leads to.
#[derive(Debug)]
pub(super) struct Reached {
    base: Base,
    state: State,
    /// What its patches add.
    updates: BTreeMap<Update, PatchId>,
}

/// Which way an operation is gone once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// Back.
    Undo,
    /// Forward again.
    Redo,
}

impl Replay {
    const fn verb(self) -> &'static str {
        match self {
            Replay::Undo => "undo",
            Replay::Redo => "redo",
        }
    }
}

impl Reached {
    fn weights_id(&self) -> WeightsId {
        self.state.weights_id(&self.base)
    }

    /// Goes on by a patch, which must fit the state and add nothing that is in it.
    fn go_on(&mut self, patch: &Patch) -> Result<(), StoreError> {
        let (id, manifest) = (patch.id(), patch.manifest());
        let after = self.state.after(&self.base, &manifest.bindings);
        self.state = after.map_err(|misfit| StoreError::Misfit { patch: id, misfit })?;
        for update in manifest.updates() {
            let present = *self.updates.entry(update).or_insert(id);
            if present != id {
                return Err(StoreError::Present { patch: id, present });
            }
        }
        Ok(())
    }
}

impl Store {
    /// Refuses a patch that [`Change::add`] would refuse where the head is at `commit`: told before the work that is
    /// to be recorded.
    ///
    /// # Errors
    /// [`StoreError::Recorded`], [`StoreError::Misfit`], [`StoreError::Present`], [`StoreError::Limit`], or what is
    /// wrong with the commit.
    pub fn check_addition(&self, commit: CommitId, patch: &Patch) -> Result<(), StoreError> {
        let snapshot = self.snapshot(commit)?;
        if snapshot.series.contains(&patch.id()) {
            return Err(StoreError::Recorded { patch: patch.id() });
        }
        check_length(snapshot.series.len() + 1)?;
        self.reached(&snapshot)?.go_on(patch)
    }

    /// The base, and where the series of `snapshot` leads from it.
    fn reached(&self, snapshot: &Snapshot) -> Result<Reached, StoreError> {
        let series: BTreeSet<&PatchId> = snapshot.series.iter().collect();
        let mut updates = BTreeMap::new();
        let mut bindings = BTreeMap::new();
        for (id, stored) in &snapshot.patches {
            let manifest = self.objects().read_manifest(*id, *stored)?;
            if series.contains(id) {
                updates.extend(manifest.updates().map(|update| (update, *id)));
            }
            bindings.insert(*id, manifest.bindings);
        }
        let atlas = Atlas::new(self.base()?, [snapshot.series.as_slice()], &bindings)?;
        let state = atlas.state_after(&snapshot.series).cloned().unwrap_or_default();
        Ok(Reached { base: atlas.base().clone(), state, updates })
    }
}

impl Change<'_> {
    /// The names as this change will leave them.
    pub fn view(&self) -> &View {
        &self.journal.after
    }

    /// The first commit: the base, and no patch.
    pub(super) fn start(&mut self, base: &Base) -> Result<CommitId, StoreError> {
        let objects = self.store.objects();
        let snapshot = Snapshot { base: objects.write_base(base)?, series: vec![], patches: BTreeMap::new() };
        let nothing = self.store.repository.treebuilder(None).map_err(StoreError::git("write a tree"))?;
        let tree = objects.write_tree(&snapshot, nothing)?;
        let architecture = base.architecture.as_deref().unwrap_or("weights without a config");
        let title = format!("Start from {architecture}, weights {}", base.weights.short());
        let text = Message { title, ..Message::default() }.text(base.weights);
        self.commit(tree, &text, &[])
    }

    /// Adds `patch` after the patches of the head's state.
    ///
    /// # Errors
    /// [`StoreError::Recorded`], [`StoreError::Misfit`], [`StoreError::Present`], or what goes wrong with writing.
    pub fn add(&mut self, patch: &Patch, mut message: Message) -> Result<CommitId, StoreError> {
        let id = patch.id();
        let (head, mut snapshot) = self.head()?;
        if snapshot.series.contains(&id) {
            return Err(StoreError::Recorded { patch: id });
        }
        let mut reached = match self.added.take() {
            Some((commit, reached)) if commit == head => reached,
            _ => self.store.reached(&snapshot)?,
        };
        self.put_on_top(&mut snapshot, &mut reached, patch)?;
        message.patches = vec![id];
        let text = message.text(reached.weights_id());
        let commit = self.commit_snapshot(&snapshot, head, &text, &[head.0])?;
        self.added = Some((commit, reached));
        Ok(commit)
    }

    /// Takes the last patch of the head's state back: a commit whose state is the one before it.
    ///
    /// # Errors
    /// [`StoreError::NothingTo`] where there is no patch, or what goes wrong with writing.
    pub fn take_back_last(&mut self, mut message: Message) -> Result<CommitId, StoreError> {
        let (head, mut snapshot) = self.head()?;
        let Some(last) = snapshot.series.pop() else {
            return Err(StoreError::NothingTo { verb: "take back" });
        };
        message.reverted = vec![last];
        let reached = self.store.reached(&snapshot)?;
        snapshot.patches.remove(&last);
        let text = message.text(reached.weights_id());
        self.commit_snapshot(&snapshot, head, &text, &[head.0])
    }

    /// A patch of the head's state, as that has it; none where it has no such patch.
    ///
    /// # Errors
    /// What is wrong with the state, or with the patch.
    pub fn recorded(&self, id: PatchId) -> Result<Option<Patch>, StoreError> {
        let (_, snapshot) = self.head()?;
        let stored = snapshot.patches.get(&id);
        stored.map(|stored| self.store.objects().read_patch(id, *stored)).transpose()
    }

    /// Records other signatures of a patch that the head's state has: a commit of the same state.
    ///
    /// # Errors
    /// What goes wrong with writing.
    pub fn sign(&mut self, patch: &Patch, message: &Message) -> Result<CommitId, StoreError> {
        let (head, mut snapshot) = self.head()?;
        snapshot.patches.insert(patch.id(), self.store.objects().write_patch(patch)?);
        let text = message.text(self.store.reached(&snapshot)?.weights_id());
        self.commit_snapshot(&snapshot, head, &text, &[head.0])
    }

    /// Writes a patch with other signatures than either side of a merge has it with: the merge has it so.
    ///
    /// # Errors
    /// What goes wrong with writing.
    pub fn sign_anew(&mut self, patch: &Patch) -> Result<(), StoreError> {
        let stored = self.store.objects().write_patch(patch)?;
        self.signed_anew.insert(patch.id(), stored);
        // It is judged so, too, before it goes into the merge.
        self.store.places.borrow_mut().insert(patch.id(), stored);
        Ok(())
    }

    /// Joins another history to the head's: `series` is one whose states are known, and `stacked` one patch on top of
    /// it of everything else that is to be in the result. Tells what has become of the files beside
    /// the states.
    ///
    /// # Errors
    /// [`StoreError::Misfit`], or what goes wrong with writing.
    pub fn merge(
        &mut self,
        theirs: CommitId,
        series: &[PatchId],
        stacked: Option<&Patch>,
        mut message: Message,
    ) -> Result<Beside, StoreError> {
        let (head, mut snapshot) = self.head()?;
        // Of a patch that both have, with other signatures, that of our side stays unless it was written anew.
        for (id, stored) in self.store.snapshot(theirs)?.patches {
            snapshot.patches.entry(id).or_insert(stored);
        }
        snapshot.patches.append(&mut self.signed_anew);
        snapshot.series = series.to_vec();
        let mut reached = self.store.reached(&snapshot)?;
        if let Some(stacked) = stacked {
            self.put_on_top(&mut snapshot, &mut reached, stacked)?;
            message.patches = vec![stacked.id()];
        }
        let text = message.text(reached.weights_id());
        let (tree, beside) = self.store.beside_both(head, theirs)?;
        let tree = self.store.objects().write_tree(&snapshot, tree)?;
        self.commit(tree, &text, &[head.0, theirs.0])?;
        Ok(beside)
    }

    /// Moves the head, and the branch it is on, to a commit that already contains it.
    pub fn fast_forward(&mut self, to: CommitId) {
        self.move_head(to);
    }

    /// Writes a patch, and puts it at the end of a series.
    fn put_on_top(
        &self,
        snapshot: &mut Snapshot,
        reached: &mut Reached,
        patch: &Patch,
    ) -> Result<(), StoreError> {
        reached.go_on(patch)?;
        snapshot.patches.insert(patch.id(), self.store.objects().write_patch(patch)?);
        snapshot.series.push(patch.id());
        Ok(())
    }

    fn head(&self) -> Result<(CommitId, Snapshot), StoreError> {
        let head = self.view().standing(&self.store.repository)?;
        Ok((head, self.store.snapshot(head)?))
    }

    fn commit_snapshot(
        &mut self,
        snapshot: &Snapshot,
        before: CommitId,
        text: &str,
        parents: &[Oid],
    ) -> Result<CommitId, StoreError> {
        let tree = self.store.objects().write_tree(snapshot, self.store.beside(before)?)?;
        self.commit(tree, text, parents)
    }

    fn commit(&mut self, tree: Oid, text: &str, parents: &[Oid]) -> Result<CommitId, StoreError> {
        let repository = &self.store.repository;
        let failed = || StoreError::git("write a commit");
        let tree = repository.find_tree(tree).map_err(failed())?;
        let parents: Vec<git2::Commit<'_>> = parents
            .iter()
            .map(|parent| repository.find_commit(*parent))
            .collect::<Result<_, _>>()
            .map_err(failed())?;
        let parents: Vec<&git2::Commit<'_>> = parents.iter().collect();
        let commit = write_commit(repository, &self.journal.author, text, &tree, &parents)?;
        self.move_head(CommitId(commit));
        Ok(CommitId(commit))
    }

    fn move_head(&mut self, to: CommitId) {
        match self.journal.after.head.clone() {
            Head::Branch(name) => {
                self.journal.after.refs.insert(format!("{}{name}", Kind::Branch.prefix()), to.0);
            }
            Head::Detached(_) => self.journal.after.head = Head::Detached(to),
        }
    }

    /// Puts the head on a branch, or on a commit.
    ///
    /// # Errors
    /// [`StoreError::NoRevision`] for a branch that is not there.
    pub fn switch(&mut self, head: Head) -> Result<(), StoreError> {
        if let Head::Branch(name) = &head {
            let full = Kind::Branch.full_name(name)?;
            if !self.journal.after.refs.contains_key(&full) {
                return Err(self.view().no_revision(&[Kind::Branch], name));
            }
            self.store.check_free(name)?;
        }
        self.journal.after.head = head;
        Ok(())
    }

    /// Names a commit; a name is never moved by this.
    ///
    /// # Errors
    /// [`StoreError::Name`] or [`StoreError::Taken`].
    pub fn name(&mut self, kind: Kind, name: &str, commit: CommitId) -> Result<(), StoreError> {
        let full = self.journal.after.check_new(kind, name)?;
        if let Some(at) = self.target(&full) {
            return Err(kind.taken(name, at));
        }
        self.journal.after.refs.insert(full, commit.0);
        Ok(())
    }

    /// What a name leads to; those that lead to no commit are in no view.
    pub(super) fn target(&self, full: &str) -> Option<Oid> {
        let Journal { before, after, .. } = &self.journal;
        let is_known = before.refs.contains_key(full);
        let foreign = || self.store.repository.refname_to_id(full).ok().filter(|_| !is_known);
        after.refs.get(full).copied().or_else(foreign)
    }

    /// Takes a name away; what it named stays, for as long as the operation is known.
    ///
    /// # Errors
    /// [`StoreError::NoRevision`] or [`StoreError::Current`].
    pub fn forget(&mut self, kind: Kind, name: &str) -> Result<CommitId, StoreError> {
        let full = kind.full_name(name)?;
        if kind == Kind::Branch && self.journal.after.head == Head::Branch(name.to_owned()) {
            return Err(StoreError::Current { name: name.to_owned() });
        }
        let removed = self.journal.after.refs.remove(&full);
        removed.map(CommitId).ok_or_else(|| self.view().no_revision(&[kind], name))
    }

    /// Says that weights were written with the change, which stay as they are where it is undone.
    pub fn set_with_weights(&mut self) {
        self.with_weights = true;
    }

    /// Says which checkpoint commands take when none is given.
    pub fn set_model(&mut self, model: Option<String>) {
        self.journal.after.model = model;
    }

    /// Moves all names back to where they were before the last operation that is not undone, or does the one again that
    /// was undone last; tells which one it was.
    ///
    /// # Errors
    /// [`StoreError::NothingTo`].
    pub fn replay(mut self, replay: Replay) -> Result<Operation, StoreError> {
        let operations = self.store.operations()?;
        let (done, undone) = operations::stacks(&operations);
        let chosen = match replay {
            Replay::Undo => done.last(),
            Replay::Redo => undone.last(),
        };
        let verb = replay.verb();
        let nothing = || StoreError::NothingTo { verb };
        let chosen = chosen.copied().cloned().ok_or_else(nothing)?;
        let (view, deed) = match replay {
            Replay::Undo => (&chosen.before, Deed::Undo(chosen.id)),
            Replay::Redo => (&chosen.after, Deed::Redo(chosen.id)),
        };
        // Before its first operation a store is nothing. A head that was on a branch which is not there comes back,
        // too.
        if view.refs.is_empty() && view.head_commit().is_none() {
            return Err(nothing());
        }
        if let Head::Branch(name) = &view.head
            && view.head != self.journal.before.head
        {
            self.store.check_free(name)?;
        }
        self.journal.after = view.clone().without_lost(&self.journal.before, &self.store.repository);
        self.journal.finish(&self.store.repository, &format!("{verb} {}", chosen.title), deed)?;
        Ok(chosen)
    }

    /// Moves the names and records it under `title`; from here on it is durable.
    ///
    /// # Errors
    /// [`StoreError::Git`]; the next change finishes what an error here left.
    pub fn finish(self, title: &str) -> Result<(), StoreError> {
        if self.journal.after == self.journal.before {
            return Ok(());
        }
        let deed = Deed::Do { with_weights: self.with_weights };
        self.journal.finish(&self.store.repository, title, deed)
    }
}
