//! What somebody else keeps beside the states of a model, in the same trees, and what a merge makes of it.
//!
//! It is merged as git merges files: against what both sides come from. Where both have changed a file, and not alike,
//! that of our side stays.

use git2::{IndexConflict, IndexEntry, MergeOptions, Oid, Tree};

use super::error::StoreError;
use super::objects::{OWN, written};
use super::{CommitId, Store};

/// The bits of an index entry's flags that say which side of a conflict it is.
const STAGE: u16 = 0x3000;

impl Store {
    /// A tree with all that is kept beside two states, as a merge has it, and the paths where ours stands against
    /// theirs.
    pub(super) fn beside_both(
        &self,
        ours: CommitId,
        theirs: CommitId,
    ) -> Result<(Oid, Vec<String>), StoreError> {
        if !self.has_any_beside(ours)? && !self.has_any_beside(theirs)? {
            return Ok((self.tree(ours)?, Vec::new()));
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

    /// Both trees as one, and the paths where ours stands against theirs.
    fn joined(
        &self,
        fork: &Tree<'_>,
        ours: &Tree<'_>,
        theirs: &Tree<'_>,
    ) -> Result<(Oid, Vec<String>), StoreError> {
        let failed = || StoreError::git("merge the files beside its states");
        let mut options = MergeOptions::new();
        options.find_renames(false);
        let mut index = self.repository.merge_trees(fork, ours, theirs, Some(&options)).map_err(failed())?;
        let conflicts = index.conflicts().and_then(|conflicts| conflicts.collect::<Result<Vec<_>, _>>());
        let mut kept = Vec::new();
        for conflict in conflicts.map_err(failed())? {
            let Some(path) = path_of(&conflict) else { continue };
            for stage in 1..=3 {
                // Which of the three are there differs.
                let _ = index.remove(path.as_ref(), stage);
            }
            if let Some(ours) = conflict.our {
                index.add(&IndexEntry { flags: ours.flags & !STAGE, ..ours }).map_err(failed())?;
            }
            kept.push(path);
        }
        Ok((index.write_tree_to(&self.repository).map_err(failed())?, kept))
    }
}

fn path_of(conflict: &IndexConflict) -> Option<String> {
    let entry = conflict.our.as_ref().or(conflict.their.as_ref()).or(conflict.ancestor.as_ref())?;
    Some(String::from_utf8_lossy(&entry.path).into_owned())
}
