//! What can be wrong with a store, or with what is asked of it.

use std::path::{Path, PathBuf};

use git2::{ErrorClass, ErrorCode};

use super::base::Base;
use super::refs::{CommitId, Kind};
use super::state::Misfit;
use crate::digest::PatchId;
use crate::patch::PatchError;

/// A store refuses, or cannot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is none.
    #[error("{}", no_store(path, copy.as_deref()))]
    NoStore {
        /// Where one was looked for.
        path: PathBuf,
        /// A copy that git made of one, there or above.
        copy: Option<PathBuf>,
    },
    /// There is one already, or another git repository.
    #[error("`{path}` is {what} already")]
    Exists {
        /// The folder.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A later mpatch made it.
    #[error("the history `{path}` has version {found}, this program knows version {known}")]
    Version {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The one that this program knows.
        known: i64,
    },
    /// It, or its configuration, belongs to somebody else or is everybody's to write: it is not to be trusted.
    #[error(
        "the history `{path}` belongs to another user of this machine, or others can write to its configuration"
    )]
    Owner {
        /// The store.
        path: PathBuf,
    },
    /// A folder of git's into which a history is checked out; its names and objects lie elsewhere.
    #[error("`{path}` is a worktree that git made of the history `{main}`")]
    Worktree {
        /// The folder.
        path: PathBuf,
        /// The folder of the history.
        main: PathBuf,
    },
    /// Another process changes it, and did not end in time.
    #[error("the history `{path}` is being changed by another process, for {seconds} s now")]
    Busy {
        /// The store.
        path: PathBuf,
        /// How long was waited.
        seconds: f64,
    },
    /// Another program has moved a name that was to move.
    #[error("another program has moved `{name}` meanwhile")]
    Moved {
        /// The full name.
        name: String,
    },
    /// git objects or refs cannot be read or written.
    #[error("the history cannot {action}")]
    Git {
        /// What was tried.
        action: String,
        /// libgit2's words.
        source: git2::Error,
    },
    /// git, or another program, holds one of git's lock files.
    #[error("the history cannot {action}: `{lock}` is there, so another program is at work on it")]
    Locked {
        /// What was tried.
        action: String,
        /// The lock file.
        lock: String,
    },
    /// Stock git takes folders of objects away as often as they are made.
    #[error("the history cannot {action}: git takes the folders of its objects away meanwhile")]
    Swept {
        /// What was tried.
        action: &'static str,
    },
    /// A repository whose form libgit2 does not read.
    #[error("the history `{path}` cannot be read here")]
    Form {
        /// The store.
        path: PathBuf,
        /// libgit2's words.
        source: git2::Error,
    },
    /// A repository that was one, and names nothing as its head.
    #[error("the history `{path}` has lost its `HEAD`, without which it is no repository")]
    NoHead {
        /// The repository's folder.
        path: PathBuf,
    },
    /// The system refuses what git objects or refs need.
    #[error("the history cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// libgit2's words, with the system's.
        source: git2::Error,
    },
    /// A change was announced, and could be neither made nor taken back.
    #[error("the change that was begun is neither made nor taken back")]
    Pending {
        /// Why it could not be made.
        source: Box<StoreError>,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} `{path}`")]
    Io {
        /// The file.
        path: PathBuf,
        /// A verb.
        action: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
    /// Something in it is not what it should be.
    #[error("{place}: {what}")]
    Malformed {
        /// Where.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// It would become larger than can be read again.
    #[error("{what}, and no history has more than {limit}")]
    Limit {
        /// What is too large.
        what: String,
        /// The limit.
        limit: usize,
    },
    /// Nothing has this name.
    #[error("there is no revision `{revision}`{}", nearest.as_ref().map_or_else(String::new, |name| format!("; the nearest name is `{name}`")))]
    NoRevision {
        /// What was asked for.
        revision: String,
        /// The name that comes closest.
        nearest: Option<String>,
    },
    /// Several commits have ids that begin so.
    #[error("`{revision}` begins the ids of several commits")]
    Ambiguous {
        /// What was asked for.
        revision: String,
    },
    /// It names a commit, and that is none of the model's states.
    #[error("`{revision}` is {}, and no state of a model", if *is_operation { "an operation of this history" } else { "what somebody else keeps here" })]
    NoState {
        /// What was asked for.
        revision: String,
        /// The commit records a change of the names.
        is_operation: bool,
    },
    /// A name that git would not take.
    #[error("`{name}` cannot be the name of a {kind}")]
    Name {
        /// The name.
        name: String,
        /// What it is to name.
        kind: Kind,
    },
    /// A name that is taken.
    #[error("there is a {kind} `{name}` already, at {at}")]
    Taken {
        /// The name.
        name: String,
        /// What it names.
        kind: Kind,
        /// The commit it names.
        at: String,
    },
    /// A branch that cannot be deleted.
    #[error("the branch `{name}` is the current one")]
    Current {
        /// The branch.
        name: String,
    },
    /// The patch is part of this history's current state.
    #[error("the patch {} is in this state already", patch.short())]
    Recorded {
        /// The patch.
        patch: PatchId,
    },
    /// What the patch adds is part of this history's current state, in another patch.
    #[error("the patch {} has the update of {}, which is in this state already", patch.short(), present.short())]
    Present {
        /// The patch.
        patch: PatchId,
        /// The one that is there.
        present: PatchId,
    },
    /// The patch was made for another state.
    #[error("the patch {} does not fit this state: {misfit}", patch.short())]
    Misfit {
        /// The patch.
        patch: PatchId,
        /// Why.
        misfit: Misfit,
    },
    /// A commit that another program made, whose series cannot be read, or leads to no state.
    #[error("the commit {}{} holds no state that can be", commit.short(), named(names))]
    Unsound {
        /// The commit.
        commit: CommitId,
        /// The branches and tags that lead to it.
        names: Vec<String>,
        /// The head leads to it, too.
        is_current: bool,
        /// Why.
        source: Box<StoreError>,
    },
    /// A file of git's that names a commit, or where the next one goes, and says nothing that can be read.
    #[error("the name `{name}` is damaged: its file names nothing")]
    DamagedName {
        /// The full name.
        name: String,
    },
    /// The head leads to nothing: its branch is gone, or its commit is not here.
    #[error("`HEAD` is {place}, which is not there")]
    LostHead {
        /// Where the head is.
        place: String,
    },
    /// A branch that git has checked out elsewhere.
    #[error("the branch `{branch}` is checked out in the worktree `{worktree}` that git made")]
    CheckedOut {
        /// The branch.
        branch: String,
        /// The folder of the worktree.
        worktree: String,
    },
    /// A patch's own bytes are damaged.
    #[error("the patch {} cannot be read", patch.short())]
    Patch {
        /// The patch, as the store knows it.
        patch: PatchId,
        /// Why.
        source: PatchError,
    },
    /// The bytes of a large patch are not here.
    #[error("the patch {} is not here: its Git LFS object {oid} is missing", patch.short())]
    Missing {
        /// The patch.
        patch: PatchId,
        /// The object.
        oid: String,
    },
    /// The bytes of a large patch are damaged.
    #[error("the patch {} is damaged: its Git LFS object {oid} hashes to {found}", patch.short())]
    Damaged {
        /// The patch.
        patch: PatchId,
        /// The object.
        oid: String,
        /// What it hashes to.
        found: String,
    },
    /// There is no operation to take back, or to do again.
    #[error("there is nothing to {verb}")]
    NothingTo {
        /// `undo`, `redo` or `take back`.
        verb: &'static str,
    },
    /// Two histories have nothing in common.
    #[error("{what} is about another base: weights {found}, this history's base has {expected}")]
    OtherBase {
        /// The other history.
        what: String,
        /// This store's base.
        expected: String,
        /// The other one.
        found: String,
    },
    /// Two histories went apart.
    #[error(
        "`{ours}` and `{theirs}` have gone apart: {} not there, {} not here",
        commits(*ahead, "here"),
        commits(*behind, "there")
    )]
    Diverged {
        /// The branch here.
        ours: String,
        /// The branch there.
        theirs: String,
        /// Commits that only this side has.
        ahead: usize,
        /// Commits that only the other side has.
        behind: usize,
    },
}

impl StoreError {
    pub(super) fn git(action: impl Into<String>) -> impl FnOnce(git2::Error) -> Self {
        let action = action.into();
        move |source| match (lock_file(&source), source.code(), source.class()) {
            (Some(lock), _, _) => Self::Locked { lock: lock.to_owned(), action },
            // What is not there is damage, not a refusal.
            (None, ErrorCode::NotFound, _) => Self::Git { action, source },
            (None, _, ErrorClass::Os) => Self::System { action, source },
            (None, _, _) => Self::Git { action, source },
        }
    }

    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// Whether git's configuration cannot be read: no copy has it, and no history is opened without.
    pub fn is_of_configuration(&self) -> bool {
        matches!(self, Self::Git { source, .. } if source.class() == ErrorClass::Config)
    }

    /// Whether git carries what is wrong as it carries everything: somebody has committed it, and no copy is better.
    pub(super) fn is_of_content(&self) -> bool {
        matches!(
            self,
            Self::Unsound { .. }
                | Self::Malformed { .. }
                | Self::Misfit { .. }
                | Self::Patch { .. }
                | Self::OtherBase { .. }
        )
    }

    pub(super) fn other_base(what: impl Into<String>, expected: &Base, found: &Base) -> Self {
        let (expected, found) = (expected.weights.short(), found.weights.short());
        Self::OtherBase { what: what.into(), expected, found }
    }

    pub(super) fn malformed(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), what: what.into() }
    }
}

/// The branches and tags behind the commit that they lead to.
pub(super) fn named(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (of {})", names.join(", ")) }
}

/// So many commits of one side, with their verb.
fn commits(count: usize, side: &str) -> String {
    match count {
        1 => format!("1 commit {side} is"),
        _ => format!("{count} commits {side} are"),
    }
}

fn no_store(path: &Path, copy: Option<&Path>) -> String {
    match copy {
        None => format!("`{}` is no history of mpatch, nor is any folder above it", path.display()),
        Some(copy) => {
            format!("`{}` is a copy that git made of a history, and no history itself", copy.display())
        }
    }
}

/// The lock file in whose way another program's was, in libgit2's words: it says "locked" of what may not be read, too.
fn lock_file(error: &git2::Error) -> Option<&str> {
    let path = error.message().split('\'').nth(1)?;
    (error.code() == ErrorCode::Locked && path.ends_with(".lock")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_commit_is_told_as_one() {
        let error =
            StoreError::Diverged { ours: "main".into(), theirs: "origin/main".into(), ahead: 1, behind: 2 };
        let said = "`main` and `origin/main` have gone apart: 1 commit here is not there, 2 commits there are not here";
        assert_eq!(error.to_string(), said);
    }
}
