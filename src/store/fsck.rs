//! Checking a store by reading all of it, and mending it by adding.
//!
//! Every git object is read and hashed, every commit's tree, every patch down to its last section, every Git LFS
//! object; every series is walked from the base and compared with what its commit claims. What is damaged is named.
//! Mending puts a whole object where a damaged or a missing one is; the damaged file is renamed and kept.

use std::collections::{BTreeMap, BTreeSet};

use git2::{ObjectType, Oid, Repository, RepositoryOpenFlags};
use serde::Serialize;

use super::error::StoreError;
use super::objects::{Snapshot, Stored, patch_path};
use super::operations;
use super::refs::{CommitId, View};
use super::{Atlas, Store, lfs};
use crate::digest::PatchId;
use crate::patch::Patch;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// What was read, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// git objects.
    pub objects: usize,
    /// Commits that a name or an operation leads to.
    pub commits: usize,
    /// Patches, each counted once.
    pub patches: usize,
    /// Bytes of patches.
    pub patch_size_bytes: u64,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl Checked {
    fn problem(&mut self, place: impl Into<String>, error: &dyn std::error::Error) {
        let mut what = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let words = error.to_string();
            if !what.contains(&words) {
                what = format!("{what}: {words}");
            }
            cause = error.source();
        }
        self.problems.push(Problem { place: place.into(), what });
    }
}

impl Store {
    /// Reads everything there is.
    ///
    /// # Errors
    /// [`StoreError`] only where the store cannot be looked at; damage is in the answer.
    pub fn check(&self) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        for oid in self.object_ids()? {
            checked.objects += 1;
            if let Err(error) = self.read_object(oid) {
                checked.problem(format!("git object {oid}"), &error);
            }
        }
        let mut snapshots = Vec::new();
        for commit in self.commits_there(&mut checked) {
            checked.commits += 1;
            match self.snapshot(CommitId(commit)) {
                Ok(snapshot) => snapshots.push((CommitId(commit), snapshot)),
                Err(error) => checked.problem(format!("commit {commit}"), &error),
            }
        }
        self.check_patches(&snapshots, &mut checked);
        self.check_states(&snapshots, &mut checked);
        checked.problems.sort();
        checked.problems.dedup();
        Ok(checked)
    }

    fn read_object(&self, oid: Oid) -> Result<(), git2::Error> {
        self.repository.odb()?.read(oid).map(drop)
    }

    fn object_ids(&self) -> Result<BTreeSet<Oid>, StoreError> {
        let failed = || StoreError::git("list its objects");
        let mut found = BTreeSet::new();
        let odb = self.repository.odb().map_err(failed())?;
        let listed = odb.foreach(|oid| {
            found.insert(*oid);
            true
        });
        listed.map_err(failed())?;
        Ok(found)
    }

    /// All commits that can be reached, past those that cannot be read.
    fn commits_there(&self, checked: &mut Checked) -> Vec<Oid> {
        let mut waiting = Vec::new();
        match operations::list(&self.repository) {
            Ok(operations) => {
                let views = operations.iter().flat_map(|operation| [&operation.before, &operation.after]);
                waiting.extend(views.flat_map(View::targets));
            }
            Err(error) => checked.problem("the operations", &error),
        }
        match View::of(&self.repository, None) {
            Ok(view) => waiting.extend(view.targets()),
            Err(error) => checked.problem("the names", &error),
        }
        let mut seen = BTreeSet::new();
        while let Some(oid) = waiting.pop() {
            if !seen.insert(oid) {
                continue;
            }
            let object = self.repository.find_object(oid, None);
            match object.and_then(|object| object.peel_to_commit()) {
                Ok(commit) => waiting.extend(commit.parent_ids()),
                Err(error) => {
                    checked.problem(format!("commit {oid}"), &error);
                    seen.remove(&oid);
                }
            }
        }
        seen.into_iter().filter(|oid| self.repository.find_commit(*oid).is_ok()).collect()
    }

    fn check_patches(&self, snapshots: &[(CommitId, Snapshot)], checked: &mut Checked) {
        for (id, stored) in distinct_patches(snapshots) {
            checked.patches += 1;
            let outcome = self.objects().read_patch(id, stored).and_then(|patch| {
                checked.patch_size_bytes += patch.size_bytes() as u64;
                self.objects().read_manifest(id, stored).map(drop)
            });
            if let Err(error) = outcome {
                checked.problem(format!("patch {id}"), &error);
            }
        }
    }

    fn check_states(&self, snapshots: &[(CommitId, Snapshot)], checked: &mut Checked) {
        let mut bindings = BTreeMap::new();
        for (id, stored) in distinct_patches(snapshots) {
            // What cannot be read has been named already.
            if let Ok(manifest) = self.objects().read_manifest(id, stored) {
                bindings.insert(id, manifest.bindings);
            }
        }
        for (commit, snapshot) in snapshots {
            let place = || format!("commit {commit}");
            let base = match self.objects().read_base(snapshot.base) {
                Ok(base) => base,
                Err(error) => {
                    checked.problem(place(), &error);
                    continue;
                }
            };
            if !snapshot.series.iter().all(|id| bindings.contains_key(id)) {
                continue;
            }
            let atlas = Atlas::new(base, [snapshot.series.as_slice()], &bindings);
            let atlas = atlas.map_err(|(patch, misfit)| StoreError::Misfit { patch, misfit });
            match (atlas, self.commit(*commit)) {
                (Ok(atlas), Ok(commit)) => {
                    let state =
                        atlas.state_after(&snapshot.series).map(|state| state.weights_id(atlas.base()));
                    if let (Some(claimed), Some(state)) = (commit.state, state)
                        && claimed != state
                    {
                        let what = format!("it claims the state {claimed}, its series leads to {state}");
                        checked.problems.push(Problem { place: place(), what });
                    }
                }
                (Err(error), _) | (_, Err(error)) => checked.problem(place(), &error),
            }
        }
    }

    /// Puts whole copies of damaged and missing parts where they belong: from these patches, and from another git
    /// repository. Tells what was mended.
    ///
    /// # Errors
    /// What goes wrong with writing.
    pub fn mend(
        &self,
        patches: &[Patch],
        other: Option<&std::path::Path>,
    ) -> Result<Vec<String>, StoreError> {
        let mut mended = Vec::new();
        let other = other.map(|path| {
            let none: [&std::path::Path; 0] = [];
            Repository::open_ext(path, RepositoryOpenFlags::empty(), none)
        });
        let other = other.transpose().map_err(StoreError::git("open the other repository"))?;
        if let Some(other) = &other {
            let theirs = other.odb().map_err(StoreError::git("read the other repository"))?;
            let mut ids = self.object_ids()?;
            // What is missing altogether is in the other repository's list only.
            let listed = theirs.foreach(|oid| {
                ids.insert(*oid);
                true
            });
            listed.map_err(StoreError::git("list the other repository"))?;
            for oid in ids.into_iter().filter(|oid| self.read_object(*oid).is_err()) {
                if let Ok(object) = theirs.read(oid) {
                    self.put(oid, object.kind(), object.data())?;
                    mended.push(format!("git object {oid}"));
                }
            }
        }
        for patch in patches {
            let blob = Oid::hash_object(ObjectType::Blob, patch.bytes());
            let blob = blob.map_err(StoreError::git("hash a blob"))?;
            // A loose file of this name that cannot be read is the damaged one.
            if self.read_object(blob).is_err() && self.loose_path(blob).symlink_metadata().is_ok() {
                self.put(blob, ObjectType::Blob, patch.bytes())?;
                mended.push(format!("patch {}", patch.id()));
            }
        }
        let everything = self.everything()?;
        let snapshots = everything.into_iter().filter_map(|commit| {
            let commit = CommitId(commit);
            Some((commit, self.snapshot(commit).ok()?))
        });
        let snapshots: Vec<_> = snapshots.collect();
        for (id, stored) in distinct_patches(&snapshots) {
            let Ok(Some(pointer)) = self.objects().pointer(id, stored) else { continue };
            if self.lfs.read(&pointer).is_ok() {
                continue;
            }
            let theirs = other.as_ref().and_then(|other| lfs::Objects::of(other.path()).read(&pointer).ok());
            let given = patches.iter().map(|patch| patch.bytes().to_vec());
            let mut whole = theirs.into_iter().chain(given);
            if let Some(bytes) = whole.find(|bytes| lfs::Pointer::to(bytes) == pointer) {
                self.lfs.write(&bytes)?;
                mended.push(format!("patch {id}"));
            }
        }
        Ok(mended)
    }

    fn loose_path(&self, oid: Oid) -> std::path::PathBuf {
        let name = oid.to_string();
        self.repository.path().join("objects").join(&name[..2]).join(&name[2..])
    }

    /// Writes an object whose loose file is damaged or missing.
    fn put(&self, oid: Oid, kind: ObjectType, data: &[u8]) -> Result<(), StoreError> {
        let failed = || StoreError::git(format!("write the object {oid}"));
        let loose = self.loose_path(oid);
        if loose.symlink_metadata().is_ok() {
            lfs::set_aside(&loose)?;
        }
        let odb = self.repository.odb().map_err(failed())?;
        odb.refresh().map_err(failed())?;
        let written = odb.write(kind, data).map_err(failed())?;
        if written != oid {
            return Err(StoreError::malformed(format!("git object {oid}"), format!("its copy is {written}")));
        }
        Ok(())
    }
}

/// Every patch with every place it is kept in.
pub(super) fn distinct_patches(snapshots: &[(CommitId, Snapshot)]) -> Vec<(PatchId, Stored)> {
    let mut found: Vec<(PatchId, Stored)> = Vec::new();
    let mut seen = BTreeSet::new();
    for (id, stored) in snapshots.iter().flat_map(|(_, snapshot)| &snapshot.patches) {
        if seen.insert((patch_path(*id), stored.blob, stored.manifest)) {
            found.push((*id, *stored));
        }
    }
    found
}
