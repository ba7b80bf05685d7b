//! Making a store small without losing anything of it.
//!
//! Loose objects are packed, and removed one by one once the pack has been read back. Git LFS objects go only when
//! they are patches, which are this program's own, and no git object speaks of them: somebody else's files in the same
//! repository have their pointers on branches that are no model's, and in indexes of worktrees.

use std::collections::BTreeSet;
use std::path::PathBuf;

use git2::{ObjectType, Oid};
use serde::Serialize;

use super::error::StoreError;
use super::folder::{entries, entries_if_there};
use super::incoming::move_packs;
use super::objects::odb_alone;
use super::{Change, CommitId, Store, lfs, lock, passing_folder};

/// What was put in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tidied {
    /// Loose objects that are in a pack now.
    pub packed: usize,
    /// Patches among the Git LFS objects that nothing referred to.
    pub removed: usize,
    /// Bytes of those.
    pub removed_size_bytes: u64,
}

impl Change<'_> {
    /// Packs loose objects, and removes patches from Git LFS that nothing refers to.
    ///
    /// # Errors
    /// What goes wrong with reading or writing; nothing that is referred to is lost.
    pub fn tidy(&self) -> Result<Tidied, StoreError> {
        let packed = self.store.pack()?;
        let mut tidied = Tidied { packed, ..Tidied::default() };
        for path in self.store.spare_patches()? {
            let size = std::fs::metadata(&path).map_err(StoreError::io(&path, "examine"))?.len();
            std::fs::remove_file(&path).map_err(StoreError::io(&path, "remove"))?;
            tidied.removed += 1;
            tidied.removed_size_bytes += size;
        }
        Ok(tidied)
    }
}

impl Store {
    /// Git LFS objects that are patches and that nothing refers to.
    fn spare_patches(&self) -> Result<Vec<PathBuf>, StoreError> {
        let commits: Vec<CommitId> = self.everything()?.into_iter().map(CommitId).collect();
        // Asked first: where a pointer is missing or damaged, nobody can say what it refers to.
        let large = self.large_patches(&commits)?;
        let needed: BTreeSet<PathBuf> = large.iter().map(|pointer| self.lfs.path(pointer)).collect();
        let mut spare = self.lfs.list()?;
        spare.retain(|path| !needed.contains(path));
        let mut patches = Vec::new();
        for path in spare {
            if lfs::is_patch(&path)? {
                patches.push(path);
            }
        }
        // All objects are read for this, which is seldom worth the time.
        let spoken_of = if patches.is_empty() { BTreeSet::new() } else { self.spoken_of()? };
        let is_spoken_of = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| spoken_of.contains(name))
        };
        patches.retain(|path| !is_spoken_of(path));
        Ok(patches)
    }

    /// The ids that stand in any blob which is short enough for a pointer, whoever wrote it, and whether a name leads
    /// to it or not.
    fn spoken_of(&self) -> Result<BTreeSet<String>, StoreError> {
        let failed = || StoreError::git("read its objects");
        let odb = self.repository.odb().map_err(failed())?;
        let mut oids = Vec::new();
        odb.foreach(|oid| {
            oids.push(*oid);
            true
        })
        .map_err(failed())?;
        let mut ids = BTreeSet::new();
        for oid in oids {
            let (size, kind) = odb.read_header(oid).map_err(failed())?;
            if kind == ObjectType::Blob && size <= lfs::POINTER_SIZE_MAX_BYTES {
                ids.extend(lfs::ids_in(odb.read(oid).map_err(failed())?.data()));
            }
        }
        Ok(ids)
    }

    /// Packs all loose objects that are whole; tells how many.
    fn pack(&self) -> Result<usize, StoreError> {
        let failed = || StoreError::git("pack its objects");
        let git = self.git_folder();
        // Made where there is nothing to pack, too: what killed processes left goes with it.
        let folder = passing_folder(git)?;
        let odb = self.repository.odb().map_err(failed())?;
        let loose: Vec<(Oid, PathBuf)> =
            self.loose()?.into_iter().filter(|(oid, _)| odb.read(*oid).is_ok()).collect();
        if loose.is_empty() {
            return Ok(0);
        }
        let packs = folder.path().join("objects/pack");
        lfs::create_folder(&packs)?;
        let mut builder = self.repository.packbuilder().map_err(failed())?;
        for (oid, _) in &loose {
            builder.insert_object(*oid, None).map_err(failed())?;
        }
        builder.write(&packs, 0o444).map_err(failed())?;
        // Read back from the pack alone, hashed by libgit2, before anything loose goes.
        let alone = odb_alone(&folder.path().join("objects"), "pack its objects")?;
        for (oid, _) in &loose {
            alone.read(*oid).map_err(failed())?;
        }
        drop(alone);
        move_packs(folder.path(), git)?;
        odb.refresh().map_err(failed())?;
        // Stock git may sweep at the same time.
        loose.iter().try_for_each(|(_, path)| lock::remove(path))?;
        Ok(loose.len())
    }

    /// Loose objects and their files.
    pub(super) fn loose(&self) -> Result<Vec<(Oid, PathBuf)>, StoreError> {
        let objects = self.git_folder().join("objects");
        let mut found = Vec::new();
        for entry in entries(&objects)? {
            let folder = entry.path();
            let start =
                folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if start.len() != 2 || !folder.is_dir() {
                continue;
            }
            for entry in entries_if_there(&folder)? {
                let path = entry.path();
                let end =
                    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                // Temporary and damaged files have other names.
                if let Ok(oid) = format!("{start}{end}").parse::<Oid>()
                    && end.len() == 38
                {
                    found.push((oid, path));
                }
            }
        }
        Ok(found)
    }
}
