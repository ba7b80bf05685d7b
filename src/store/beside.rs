//! What somebody else keeps beside the states of a model, in the same trees, and what a merge makes of it.
//!
//! It is merged as git merges files: against what both sides come from. Where both have changed a file, and not alike,
//! that of our side stays.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use git2::{Index, IndexConflict, IndexEntry, MergeOptions, Tree, TreeBuilder};

use super::error::StoreError;
use super::objects::written;
use super::{CommitId, Store};

/// The bits of an index entry's flags that say which side of a conflict it is.
const STAGE: u16 = 0x3000;

impl Store {
    /// All that is kept beside two states, as a merge has it, and what ours stands against.
    pub(super) fn beside_both(
        &self,
        ours: CommitId,
        theirs: CommitId,
    ) -> Result<(TreeBuilder<'_>, Beside), StoreError> {
        let (our, their) = (self.beside(ours)?, self.beside(theirs)?);
        if our.is_empty() && their.is_empty() {
            return Ok((our, Beside::default()));
        }
        let fork = self.beside_forks(&self.forks(ours, &[theirs])?)?;
        let (tree, beside) = self.joined(&fork, &self.written(&our)?, &self.written(&their)?)?;
        let tree = self.repository.treebuilder(Some(&tree)).map_err(StoreError::git("write a tree"))?;
        Ok((tree, beside))
    }

    /// What several commits, from which both sides come, had beside their states: what any of them changed.
    fn beside_forks(&self, forks: &[CommitId]) -> Result<Tree<'_>, StoreError> {
        let beside = |commit: Option<&CommitId>| {
            let nothing = || self.repository.treebuilder(None).map_err(StoreError::git("write a tree"));
            self.written(&commit.map_or_else(nothing, |commit| self.beside(*commit))?)
        };
        let Some((first, others)) = forks.split_first() else { return beside(None) };
        let mut tree = beside(Some(first))?;
        if others.is_empty() {
            return Ok(tree);
        }
        let before = beside(self.forks(*first, others)?.first())?;
        for other in others {
            (tree, _) = self.joined(&before, &tree, &beside(Some(other))?)?;
        }
        Ok(tree)
    }

    /// What the tree of a commit holds beside the history's own.
    pub(super) fn beside(&self, commit: CommitId) -> Result<TreeBuilder<'_>, StoreError> {
        let tree = self.repository.find_tree(self.tree(commit)?).map_err(StoreError::git("read a tree"))?;
        self.objects().beside(&tree)
    }

    fn written(&self, tree: &TreeBuilder<'_>) -> Result<Tree<'_>, StoreError> {
        let tree = written("write a tree", || tree.write())?;
        self.repository.find_tree(tree).map_err(StoreError::git("read a tree"))
    }

    /// Both trees as one, and what ours stands against.
    fn joined(
        &self,
        fork: &Tree<'_>,
        ours: &Tree<'_>,
        theirs: &Tree<'_>,
    ) -> Result<(Tree<'_>, Beside), StoreError> {
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
        let tree = self.repository.find_tree(tree).map_err(failed())?;
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
