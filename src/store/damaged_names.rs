//! Names whose files a crash has cut off: libgit2 passes them by without a word, as if nobody had ever given them.

use git2::{ErrorCode, Oid, Reference, Repository};

use super::Store;
use super::error::StoreError;
use super::folder::files_below;
use super::operations;
use super::refs::{HEAD, Head};

/// The folders of those names that are a history's concern; its own is the first.
const FOLDERS: [&str; 4] = ["refs/mpatch", "refs/heads", "refs/tags", "refs/remotes"];

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
    repository.find_reference(name).is_err_and(|error| error.code() != ErrorCode::NotFound)
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
        for name in damaged(&self.repository)? {
            // The list of operations, which is tried first, says where the others were.
            let last = operations::last(&self.repository).ok().flatten();
            self.keep_damaged(&self.git_folder().join(&name), mended)?;
            let is_there = |target: &Oid| self.repository.find_object(*target, None).is_ok();
            let known = last.as_ref().and_then(|last| last.after.refs.get(&name).copied());
            let theirs = || other?.refname_to_id(&name).ok();
            let to = if name == HEAD {
                let head = match (last, other) {
                    (Some(last), _) => Some(last.after.head),
                    (None, other) => other.and_then(|other| Head::of(other).ok()),
                };
                head.unwrap_or(Head::Branch("main".to_owned())).install(&self.repository)?
            } else if let Some(target) = known.filter(is_there).or_else(theirs).filter(is_there) {
                self.repository.reference(&name, target, true, "mpatch").map_err(failed())?;
                format!("at {target}")
            } else if name.starts_with(FOLDERS[0]) {
                "which begins anew: what was done before cannot be undone".to_owned()
            } else {
                "which nothing here or there knows, and is no name now".to_owned()
            };
            mended.push(format!("`{name}`, {to}; the damaged file is in `.git/damaged`"));
        }
        Ok(())
    }
}
