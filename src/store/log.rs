//! Commits as data, and the walks over them.

use git2::{Oid, Repository, Sort};

use super::error::StoreError;
use super::message::Message;
use super::operations::{self, Author};
use super::refs::CommitId;
use super::{Store, View};
use crate::digest::{PatchId, WeightsId};

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
            series: self.objects().read_series(commit.tree_id())?,
        })
    }

    /// The commits that `from` was made of, the newest first, no parent before its children; `limit` at most.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn log(&self, from: CommitId, limit: usize) -> Result<Vec<Commit>, StoreError> {
        let mut walk = self.repository.revwalk().map_err(StoreError::git("walk its commits"))?;
        let begun = walk.set_sorting(Sort::TOPOLOGICAL | Sort::TIME).and_then(|()| walk.push(from.0));
        begun.map_err(StoreError::git("walk its commits"))?;
        walk.take(limit)
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

    /// The nearest commit that both were made of, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn fork(&self, ours: CommitId, theirs: CommitId) -> Result<Option<CommitId>, StoreError> {
        match self.repository.merge_base(ours.0, theirs.0) {
            Ok(fork) => Ok(Some(CommitId(fork))),
            Err(error) if error.code() == git2::ErrorCode::NotFound => Ok(None),
            Err(error) => Err(StoreError::git("walk its commits")(error)),
        }
    }

    /// Every commit that a name or an operation leads to, the newest first.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn commits(&self) -> Result<Vec<Commit>, StoreError> {
        self.everything()?.into_iter().map(|commit| self.commit(CommitId(commit))).collect()
    }

    /// Every commit that a name or an operation leads to.
    pub(super) fn everything(&self) -> Result<Vec<Oid>, StoreError> {
        let operations = operations::list(&self.repository)?;
        let views = operations.iter().flat_map(|operation| [&operation.before, &operation.after]);
        let now = self.view()?;
        let mut targets: Vec<Oid> = views.chain([&now]).flat_map(View::targets).collect();
        targets.sort_unstable();
        targets.dedup();
        reachable(&self.repository, &targets)
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
