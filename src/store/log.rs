//! Commits as data, and the walks over them.

use std::collections::BTreeSet;

use git2::{ErrorCode, Oid, Repository, Sort};

use super::error::StoreError;
use super::message::Message;
use super::objects::{Stored, is_state};
use super::operations::{self, Author, Operation};
use super::refs::{CommitId, is_foreign};
use super::{Store, View};
use crate::digest::{PatchId, WeightsId};
use crate::patch::Signed;

/// One state of the model, and what was said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub id: CommitId,
    /// The commits it was made on; two for a merge.
    pub parents: Vec<CommitId>,
    /// Its words.
    pub message: Message,
    /// The state that its words claim.
    pub state: Option<WeightsId>,
    /// Who made it, and when.
    pub author: Author,
    /// Its patches, in order of application.
    pub series: Vec<PatchId>,
}

impl Store {
    /// One commit.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn commit(&self, id: CommitId) -> Result<Commit, StoreError> {
        let commit = self.repository.find_commit(id.0).map_err(StoreError::git("read a commit"))?;
        let text = String::from_utf8_lossy(commit.message_bytes()).into_owned();
        let (message, state) = Message::parse(&text);
        let author = commit.author();
        Ok(Commit {
            id,
            parents: commit.parent_ids().map(CommitId).collect(),
            message,
            state,
            author: Author {
                name: String::from_utf8_lossy(author.name_bytes()).into_owned(),
                email: String::from_utf8_lossy(author.email_bytes()).into_owned(),
                seconds: author.when().seconds(),
                offset_minutes: author.when().offset_minutes(),
            },
            series: self.objects().read_series(commit.tree_id()).or_else(|error| self.unsound(id, error))?,
        })
    }

    /// What tells who signed a patch of a state, as that state has it; the rest of a large one is not read.
    ///
    /// # Errors
    /// [`StoreError::Missing`] for a large patch that is not here, and what else is wrong with these parts.
    pub fn signed(&self, state: CommitId, patch: PatchId) -> Result<Signed, StoreError> {
        let objects = self.objects();
        objects.read_signed(patch, objects.stored(self.tree(state)?, patch)?)
    }

    /// The patches that two states have in different files, as they do where other keys have signed them there.
    ///
    /// # Errors
    /// What is wrong with one of the states.
    pub fn differing(&self, one: CommitId, other: CommitId) -> Result<Vec<PatchId>, StoreError> {
        let (one, other) = (self.snapshot(one)?.patches, self.snapshot(other)?.patches);
        let differs =
            |(id, stored): &(PatchId, Stored)| other.get(id).is_some_and(|other| other.blob != stored.blob);
        Ok(one.into_iter().filter(differs).map(|(id, _)| id).collect())
    }

    /// The patches of a commit that none of those has which it was made of; where there are none, those that it
    /// brought signatures of.
    ///
    /// # Errors
    /// What is wrong with one of these.
    pub fn brought_by(&self, commit: &Commit) -> Result<Vec<PatchId>, StoreError> {
        let mut new = commit.series.clone();
        for parent in commit.parents.iter().filter(|parent| self.is_state(**parent)) {
            let before = self.series(*parent)?;
            // Nearly every commit goes on where the one before it ended.
            if new.starts_with(&before) {
                new.drain(..before.len());
            } else {
                let before: BTreeSet<PatchId> = before.into_iter().collect();
                new.retain(|patch| !before.contains(patch));
            }
        }
        if new.is_empty() { self.signed_by(commit) } else { Ok(new) }
    }

    /// The patches that a commit has in other files than each of those which it was made of: it brought signatures.
    ///
    /// # Errors
    /// What is wrong with one of these.
    pub fn signed_by(&self, commit: &Commit) -> Result<Vec<PatchId>, StoreError> {
        let parents = commit.parents.iter().filter(|parent| self.is_state(**parent));
        let mut differing = parents.map(|parent| self.differing(commit.id, *parent));
        let first = differing.next().transpose()?.unwrap_or_default();
        differing.try_fold(first, |mut patches, others| {
            let others = others?;
            patches.retain(|patch| others.contains(patch));
            Ok(patches)
        })
    }

    /// The states that `from` was made of, the newest first, no parent before its children; `limit` at most.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn log(&self, from: CommitId, limit: usize) -> Result<Vec<Commit>, StoreError> {
        let mut walk = self.repository.revwalk().map_err(StoreError::git("walk its commits"))?;
        let begun = walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME).and_then(|()| walk.push(from.0));
        begun.map_err(StoreError::git("walk its commits"))?;
        // What somebody else has joined to it is passed by.
        let is_foreign = |id: &Result<Oid, _>| id.as_ref().is_ok_and(|id| is_strange(&self.repository, *id));
        walk.filter(|id| !is_foreign(id))
            .take(limit)
            .map(|id| self.commit(CommitId(id.map_err(StoreError::git("walk its commits"))?)))
            .collect()
    }

    /// How many commits each of two has that the other does not.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn ahead_behind(&self, ours: CommitId, theirs: CommitId) -> Result<(usize, usize), StoreError> {
        self.repository.graph_ahead_behind(ours.0, theirs.0).map_err(StoreError::git("walk its commits"))
    }

    /// The nearest commits that one and any of the others were made of. Two that have merged each other have several,
    /// and what has no common beginning has none.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn forks(&self, one: CommitId, others: &[CommitId]) -> Result<Vec<CommitId>, StoreError> {
        let commits: Vec<Oid> = [one].iter().chain(others).map(|commit| commit.0).collect();
        match self.repository.merge_bases_many(&commits) {
            Ok(forks) => Ok(forks.iter().copied().map(CommitId).collect()),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(Vec::new()),
            Err(error) => Err(StoreError::git("walk its commits")(error)),
        }
    }

    /// The commit that a name leads to, by way of a tag object that somebody else may have written, and its words,
    /// whether it is a state of the model or not.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn named(&self, target: CommitId) -> Result<(CommitId, Message), StoreError> {
        let found = self.repository.find_object(target.0, None).and_then(|object| object.peel_to_commit());
        let commit = found.map_err(StoreError::git("read a commit"))?;
        let (message, _) = Message::parse(&String::from_utf8_lossy(commit.message_bytes()));
        Ok((CommitId(commit.id()), message))
    }

    /// Every state that a name or an operation leads to, the newest first; each is read when it is asked for, since all
    /// series of a long history do not fit in memory. One whose series cannot be read is passed by.
    ///
    /// # Errors
    /// What is wrong with the names, or with one of the commits.
    pub fn commits(&self) -> Result<impl Iterator<Item = Result<Commit, StoreError>>, StoreError> {
        let commits = self.everything()?.into_iter().map(|commit| self.commit(CommitId(commit)));
        Ok(commits.filter(|commit| !commit.as_ref().is_err_and(StoreError::is_of_content)))
    }

    /// Every commit that a name or an operation leads to and that is a state of the model.
    ///
    /// What somebody else's names lead to is passed by: whatever lies in this repository, an operation that has
    /// recorded its name stays.
    pub(super) fn everything(&self) -> Result<Vec<Oid>, StoreError> {
        let operations = operations::list(&self.repository)?;
        let view = self.view()?;
        view.standing(&self.repository)?;
        let Targets { commits, .. } = Targets::of(&self.repository, &operations, &view.targets());
        self.states(&commits)
    }

    /// Whether a commit is a state of the model, or cannot be read: others may be joined to states.
    pub fn is_state(&self, commit: CommitId) -> bool {
        !is_strange(&self.repository, commit.0)
    }

    /// The states of the model that these names lead to, the newest first.
    pub(super) fn states(&self, targets: &[Oid]) -> Result<Vec<Oid>, StoreError> {
        let mut commits = reachable(&self.repository, targets)?;
        commits.retain(|commit| !is_strange(&self.repository, *commit));
        Ok(commits)
    }
}

/// Whether a commit is no state of the model, but somebody else's; one that cannot be read is not.
pub(super) fn is_strange(repository: &Repository, commit: Oid) -> bool {
    let tree = repository.find_commit(commit).and_then(|commit| commit.tree());
    tree.is_ok_and(|tree| !is_state(&tree))
}

/// What operations and names lead to.
#[derive(Debug, Default)]
pub(super) struct Targets {
    /// Commits, and what cannot be read: whoever walks there says so.
    pub(super) commits: Vec<Oid>,
    /// Somebody else's trees and files.
    pub(super) foreign: Vec<Oid>,
    /// What only a name kept that is there no more.
    pub(super) gone: Vec<Oid>,
}

impl Targets {
    /// Of `operations`, and of the names `now`.
    pub(super) fn of(repository: &Repository, operations: &[Operation], now: &[Oid]) -> Self {
        let views = operations.iter().flat_map(|operation| [&operation.before, &operation.after]);
        let all: BTreeSet<Oid> = views.flat_map(View::targets).chain(now.iter().copied()).collect();
        let is_missing = |target: &Oid| {
            let found = repository.find_object(*target, None);
            found.is_err_and(|error| error.code() == ErrorCode::NotFound)
        };
        let (missing, mut commits): (Vec<Oid>, Vec<Oid>) = all.into_iter().partition(is_missing);
        let kept =
            if missing.is_empty() { BTreeSet::new() } else { operations::kept(repository, operations) };
        let (damage, gone): (Vec<Oid>, Vec<Oid>) =
            missing.into_iter().partition(|target| kept.contains(target) || now.contains(target));
        commits.extend(damage);
        let (foreign, commits) = commits.into_iter().partition(|target| is_foreign(repository, *target));
        Self { commits, foreign, gone }
    }
}

/// All commits that these names lead to, the newest first; a name may be that of a tag object.
pub(super) fn reachable(repository: &Repository, targets: &[Oid]) -> Result<Vec<Oid>, StoreError> {
    let failed = || StoreError::git("walk its commits");
    let mut walk = repository.revwalk().map_err(failed())?;
    walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME).map_err(failed())?;
    for target in targets {
        walk.push(*target).map_err(failed())?;
    }
    walk.collect::<Result<_, _>>().map_err(failed())
}
