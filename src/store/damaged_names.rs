//! Names whose files a crash has cut off: libgit2 passes them by without a word, as if nobody had ever given them.

use git2::{ErrorCode, Oid, Reference, Repository};

use super::Store;
use super::error::StoreError;
use super::folder::files_below;
use super::operations;
use super::refs::{CommitId, HEAD, Head, Kind, View};

/// The folders of those names that are a history's concern; its own is the first.
const FOLDERS: [&str; 4] = ["refs/mpatch", "refs/heads", "refs/tags", "refs/remotes"];

/// What is said of the file of a name that was mended.
const KEPT: &str = "the damaged file is in `.git/damaged`";

/// Names whose files are there and name nothing.
pub(super) fn damaged(repository: &Repository) -> Result<Vec<String>, StoreError> {
    let git = repository.path();
    let mut names = Vec::new();
    for folder in FOLDERS {
        let files = files_below(&git.join(folder))?.into_iter().map(|file| file.path());
        names.extend(files.filter_map(|path| Some(path.strip_prefix(git).ok()?.to_str()?.to_owned())));
    }
    names.push(HEAD.to_owned());
    // What ends in `.lock` is no name.
    names.retain(|name| Reference::is_valid_name(name) && is_damaged(repository, name));
    Ok(names)
}

fn is_damaged(repository: &Repository, name: &str) -> bool {
    match name {
        // A head that is on a tag is neither on a branch nor at a commit.
        HEAD => Head::of(repository).is_err(),
        _ => repository.find_reference(name).is_err_and(|error| error.code() != ErrorCode::NotFound),
    }
}

impl Store {
    /// Puts damaged names where the last operation left them, or where another copy has them; their files are kept. One
    /// that neither knows is a name no more.
    pub(super) fn mend_names(
        &self,
        other: Option<&Repository>,
        mended: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let failed = || StoreError::git("move its refs");
        for name in damaged(&self.repository)?.into_iter().filter(|name| name != HEAD) {
            // The list of operations, which is tried first, says where the others were.
            let last = operations::last(&self.repository).ok().flatten();
            self.keep_damaged(&self.git_folder().join(&name), mended)?;
            let is_there = |target: &Oid| self.repository.find_object(*target, None).is_ok();
            let known = last.as_ref().and_then(|last| last.after.refs.get(&name).copied());
            let theirs = || other?.refname_to_id(&name).ok();
            let to = if let Some(target) = known.filter(is_there).or_else(theirs).filter(is_there) {
                self.repository.reference(&name, target, true, "mpatch").map_err(failed())?;
                format!("at {target}")
            } else if name.starts_with(FOLDERS[0]) {
                "which begins anew: what was done before cannot be undone".to_owned()
            } else {
                "which nothing here or there knows, and is no name now".to_owned()
            };
            mended.push(format!("`{name}`, {to}; {KEPT}"));
        }
        self.mend_head(other, mended)
    }

    /// Puts a head that leads to nothing where it was last, and never on a branch that is not there.
    fn mend_head(&self, other: Option<&Repository>, mended: &mut Vec<String>) -> Result<(), StoreError> {
        let is_damaged = is_damaged(&self.repository, HEAD);
        if !is_damaged && !self.has_lost_head(other)? {
            return Ok(());
        }
        let Some(head) = self.last_head(other)? else { return Ok(()) };
        if is_damaged {
            self.keep_damaged(&self.git_folder().join(HEAD), mended)?;
        }
        head.install(&self.repository)?;
        let kept = if is_damaged { format!("; {KEPT}") } else { String::new() };
        mended.push(format!("`{HEAD}`, {}{kept}", head.place()));
        Ok(())
    }

    /// The commit of a head that leads to nothing, where it is at one.
    pub(super) fn lost_commit(&self) -> Option<Oid> {
        let view = View::of(&self.repository, None).ok()?;
        let is_lost = view.standing(&self.repository).is_err();
        view.head_commit().filter(|_| is_lost).map(|commit| commit.0)
    }

    /// Whether the head leads to nothing; a commit that the other copy has is mended with all others.
    fn has_lost_head(&self, other: Option<&Repository>) -> Result<bool, StoreError> {
        let view = View::of(&self.repository, None)?;
        let is_theirs = |commit: CommitId| other.is_some_and(|other| other.find_commit(commit.0).is_ok());
        let is_lost = view.standing(&self.repository).is_err();
        Ok(is_lost && !view.head_commit().is_some_and(is_theirs))
    }

    /// Where the head was last, of what is still there: a branch, or else the commit that it was at. Where no operation
    /// tells, as the other copy has it, or on a branch that there is.
    fn last_head(&self, other: Option<&Repository>) -> Result<Option<Head>, StoreError> {
        let branch = |name: &str| format!("{}{name}", Kind::Branch.prefix());
        let is_there = |head: &Head| match head {
            Head::Branch(name) => self.repository.find_reference(&branch(name)).is_ok(),
            Head::Detached(commit) => self.repository.find_commit(commit.0).is_ok(),
        };
        let operations = operations::list(&self.repository).unwrap_or_default();
        let views = operations.iter().rev().flat_map(|operation| [&operation.after, &operation.before]);
        let recorded =
            views.flat_map(|view| [Some(view.head.clone()), view.head_commit().map(Head::Detached)]);
        let theirs = other.and_then(|other| Head::of(other).ok());
        let names =
            self.repository.references_glob(&branch("*")).map_err(StoreError::git("read its refs"))?;
        let names = names.filter_map(|found| Some(found.ok()?.shorthand().ok()?.to_owned()));
        let branches = ["main".to_owned()].into_iter().chain(names).map(Head::Branch);
        Ok(recorded.flatten().chain(theirs).chain(branches).find(is_there))
    }
}
