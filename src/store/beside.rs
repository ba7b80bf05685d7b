//! What somebody else keeps beside the states of a model, in the same trees, and what a merge makes of it.
//!
//! It is merged as git merges files: against what both sides come from. Where both have changed a file, and not alike,
//! that of our side stays.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use git2::{Index, IndexConflict, IndexEntry, MergeOptions, Oid, Tree};

use super::error::StoreError;
use super::objects::{OWN, written};
use super::{CommitId, Store};

/// The bits of an index entry's flags that say which side of a conflict it is.
const STAGE: u16 = 0x3000;

impl Store {
    /// A tree with all that is kept beside two states, as a merge has it, and what ours stands against.
    pub(super) fn beside_both(&self, ours: CommitId, theirs: CommitId) -> Result<(Oid, Beside), StoreError> {
        if !self.has_any_beside(ours)? && !self.has_any_beside(theirs)? {
            return Ok((self.tree(ours)?, Beside::default()));
        }
        let (our, their) = (self.beside(ours)?, self.beside(theirs)?);
        let fork = self.beside_forks(&self.forks(ours, &[theirs])?)?;
        self.joined(&fork, &our, &their)
    }

    /// What several commits, from which both sides come, had beside their states: what any of them changed.
    fn beside_forks(&self, forks: &[CommitId]) -> Result<Tree<'_>, StoreError> {
        let Some((first, others)) = forks.split_first() else { return self.without_any(None) };
        let mut tree = self.beside(*first)?;
        if others.is_empty() {
            return Ok(tree);
        }
        let before = match self.forks(*first, others)?.first() {
            Some(before) => self.beside(*before)?,
            None => self.without_any(None)?,
        };
        for other in others {
            let (joined, _) = self.joined(&before, &tree, &self.beside(*other)?)?;
            tree = self.repository.find_tree(joined).map_err(StoreError::git("read a tree"))?;
        }
        Ok(tree)
    }

    fn has_any_beside(&self, commit: CommitId) -> Result<bool, StoreError> {
        let tree = self.whole_tree(commit)?;
        Ok(tree.iter().any(|entry| !OWN.iter().any(|own| own.as_bytes() == entry.name_bytes())))
    }

    fn whole_tree(&self, commit: CommitId) -> Result<Tree<'_>, StoreError> {
        self.repository.find_tree(self.tree(commit)?).map_err(StoreError::git("read a tree"))
    }

    /// The tree of a commit without what is the history's own.
    fn beside(&self, commit: CommitId) -> Result<Tree<'_>, StoreError> {
        self.without_any(Some(&self.whole_tree(commit)?))
    }

    fn without_any(&self, tree: Option<&Tree<'_>>) -> Result<Tree<'_>, StoreError> {
        let failed = || StoreError::git("write a tree");
        let mut beside = self.repository.treebuilder(tree).map_err(failed())?;
        for name in OWN.iter().filter(|name| tree.is_some_and(|tree| tree.get_name(name).is_some())) {
            beside.remove(name).map_err(failed())?;
        }
        let tree = written("write a tree", || beside.write())?;
        self.repository.find_tree(tree).map_err(failed())
    }

    /// Both trees as one, and what ours stands against.
    fn joined(
        &self,
        fork: &Tree<'_>,
        ours: &Tree<'_>,
        theirs: &Tree<'_>,
    ) -> Result<(Oid, Beside), StoreError> {
        let failed = || StoreError::git("merge the files beside its states");
        let mut options = MergeOptions::new();
        options.find_renames(false);
        let mut index = self.repository.merge_trees(fork, ours, theirs, Some(&options)).map_err(failed())?;
        let conflicts = index.conflicts().and_then(|conflicts| conflicts.collect::<Result<Vec<_>, _>>());
        let conflicts = conflicts.map_err(failed())?;
        let mut theirs = paths(&index);
        let mut kept = BTreeSet::new();
        for conflict in conflicts {
            let Some(path) = path_of(&conflict) else { continue };
            for stage in 1..=3 {
                // Which of the three are there differs.
                let _ = index.remove(Path::new(OsStr::from_bytes(&path)), stage);
            }
            match conflict.our {
                Some(ours) => {
                    let is_theirs = conflict.their.is_some() || conflict.ancestor.is_some();
                    index.add(&IndexEntry { flags: ours.flags & !STAGE, ..ours }).map_err(failed())?;
                    kept.extend(is_theirs.then_some(path));
                }
                // Where it has no room, that is what keeps it out, and not a change of ours.
                None => _ = theirs.insert(path),
            }
        }
        let tree = written("write a tree", || index.write_tree_to(&self.repository))?;
        let stays = paths(&index);
        let mut beside = Beside::default();
        for path in theirs.into_iter().filter(|path| !stays.contains(path)) {
            match stays.iter().find(|other| has_no_room(&path, other)) {
                Some(other) => _ = beside.left_out.insert(in_words(&path), in_words(other)),
                None => _ = kept.insert(path),
            }
        }
        beside.kept = kept.iter().map(|path| in_words(path)).collect();
        Ok((tree, beside))
    }
}

/// What a merge made of files that one of the two sides cannot have as it has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Files that both sides have changed, and that are as on the head's.
    pub kept: Vec<String>,
    /// Files that have no room, each with the one in its way.
    pub left_out: BTreeMap<String, String>,
}

fn path_of(conflict: &IndexConflict) -> Option<Vec<u8>> {
    let entry = conflict.our.as_ref().or(conflict.their.as_ref()).or(conflict.ancestor.as_ref())?;
    Some(entry.path.clone())
}

/// The paths of what is no conflict.
fn paths(index: &Index) -> BTreeSet<Vec<u8>> {
    let merged = index.iter().filter(|entry| entry.flags & STAGE == 0);
    merged.map(|entry| entry.path).collect()
}

/// A name is that of a file or of a folder.
fn has_no_room(path: &[u8], other: &[u8]) -> bool {
    let is_below =
        |path: &[u8], other: &[u8]| path.strip_prefix(other).is_some_and(|rest| rest.starts_with(b"/"));
    is_below(path, other) || is_below(other, path)
}

fn in_words(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}
