//! A commit's tree: the base, the series and its patches.
//!
//! ```text
//! base.json                 the model, with the digest of each tensor
//! series                    patch ids, one a line, in order of application
//! patches/<id>.mpatch       the patch; a large one is a Git LFS pointer
//! patches/<id>.manifest     the manifest of a large one, so that states can be told without it
//! patches/.gitattributes    which files LFS keeps
//! ```
//!
//! The tree is the state: files that somebody else adds beside these are carried along and never read, but by a merge.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use git2::{Commit, ErrorClass, ObjectType, Odb, Oid, Repository, Tree, TreeBuilder};

use super::base::Base;
use super::error::StoreError;
use super::lfs::{Absent, INLINE_SIZE_MAX_BYTES, Objects, POINTER_SIZE_MAX_BYTES, Pointer};
use super::message::Message;
use super::operations::Author;
use crate::digest::{PatchId, WeightsId};
use crate::patch::manifest::Binding;
use crate::patch::{Manifest, Patch, Signed};

const BASE: &str = "base.json";
const SERIES: &str = "series";
const PATCHES: &str = "patches";
const ATTRIBUTES: &str = ".gitattributes";
/// What of a tree is the history's own.
const OWN: [&str; 3] = [BASE, SERIES, PATCHES];
/// What git is told of all patches.
const ATTRIBUTES_OF_ALL: &str = "* -text";
/// And of those that LFS keeps, behind their names.
const ATTRIBUTES_OF_LARGE: &str = " filter=lfs diff=lfs merge=lfs -text";
/// Mode of a file in a tree.
pub(super) const FILE: i32 = 0o100_644;
/// Mode of a folder in a tree.
const FOLDER: i32 = 0o040_000;
/// Most patches in a series.
pub const SERIES_MAX: usize = 65_536;
/// Largest `base.json` and `series`, in bytes.
const TEXT_SIZE_MAX_BYTES: usize = 64 << 20;
/// Largest patch that is read from a blob: more than mpatch writes there, for those who commit by other means.
const BLOB_SIZE_MAX_BYTES: usize = 256 << 20;

/// Where a patch's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stored {
    /// The patch, or the pointer to it.
    pub(super) blob: Oid,
    /// The manifest of a patch that LFS keeps.
    pub(super) manifest: Option<Oid>,
}

/// What a tree says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) base: Oid,
    pub(super) series: Vec<PatchId>,
    pub(super) patches: BTreeMap<PatchId, Stored>,
}

/// Reads and writes the objects of a store.
#[derive(Clone, Copy)]
pub(super) struct ObjectStore<'r> {
    pub(super) repository: &'r Repository,
    pub(super) lfs: &'r Objects,
}

impl<'r> ObjectStore<'r> {
    /// Writes `base.json`.
    pub(super) fn write_base(&self, base: &Base) -> Result<Oid, StoreError> {
        let text = base.to_json().map_err(|error| StoreError::malformed(BASE, error.to_string()))?;
        if text.len() > TEXT_SIZE_MAX_BYTES {
            let what = format!("`{BASE}` would have {} bytes", text.len());
            return Err(StoreError::Limit { what, limit: TEXT_SIZE_MAX_BYTES });
        }
        self.write_blob(text.as_bytes())
    }

    /// Reads `base.json`.
    pub(super) fn read_base(&self, blob: Oid) -> Result<Base, StoreError> {
        let bytes = self.read_blob(blob, BASE, TEXT_SIZE_MAX_BYTES)?;
        Base::parse(&bytes).map_err(|what| StoreError::malformed(BASE, what))
    }

    /// Writes a patch: into git, or beside it with a pointer in git.
    pub(super) fn write_patch(&self, patch: &Patch) -> Result<Stored, StoreError> {
        let bytes = bytes_of(patch)?;
        if bytes.len() <= INLINE_SIZE_MAX_BYTES {
            return Ok(Stored { blob: self.write_blob(&bytes)?, manifest: None });
        }
        let pointer = self.lfs.write(&bytes)?;
        let manifest = Some(self.write_blob(patch.manifest_bytes())?);
        Ok(Stored { blob: self.write_blob(pointer.text().as_bytes())?, manifest })
    }

    /// The pointer to a patch that LFS keeps; none for one that lies in git.
    ///
    /// What is larger than a pointer is not read: thousands of ids may name one blob.
    pub(super) fn pointer(&self, id: PatchId, stored: Stored) -> Result<Option<Pointer>, StoreError> {
        let place = patch_path(id);
        let odb = self.repository.odb().map_err(StoreError::git("open its objects"))?;
        let header = odb.read_header(stored.blob);
        let (size, _) = header.map_err(StoreError::git(format!("read `{place}` ({})", stored.blob)))?;
        if size > POINTER_SIZE_MAX_BYTES {
            return Ok(None);
        }
        Ok(Pointer::parse(&self.read_blob(stored.blob, &place, POINTER_SIZE_MAX_BYTES)?))
    }

    /// The patch, checked down to its last section, and of this id.
    pub(super) fn read_patch(&self, id: PatchId, stored: Stored) -> Result<Patch, StoreError> {
        let mut bytes = self.read_blob(stored.blob, &patch_path(id), BLOB_SIZE_MAX_BYTES)?;
        if let Some(pointer) = Pointer::parse(&bytes) {
            bytes = self.lfs.read(&pointer).map_err(|absent| match absent {
                Absent::Missing => StoreError::Missing { patch: id, oid: pointer.oid().to_owned() },
                Absent::Damaged { found } => {
                    StoreError::Damaged { patch: id, oid: pointer.oid().to_owned(), found }
                }
                Absent::Io(error) => error,
            })?;
        }
        let patch = Patch::decode(bytes).map_err(|source| StoreError::Patch { patch: id, source })?;
        check_id(id, patch.id()).map(|()| patch)
    }

    /// The manifest and the signatures of a patch, of which nothing else is read that lies in a file of its own.
    pub(super) fn read_signed(&self, id: PatchId, stored: Stored) -> Result<Signed, StoreError> {
        let signed = match self.pointer(id, stored)? {
            Some(pointer) => {
                let missing = || StoreError::Missing { patch: id, oid: pointer.oid().to_owned() };
                let file = self.lfs.open(&pointer)?.ok_or_else(missing)?;
                Signed::read(&file)
            }
            None => Signed::read(&self.read_blob(stored.blob, &patch_path(id), BLOB_SIZE_MAX_BYTES)?),
        };
        let signed = signed.map_err(|source| StoreError::Patch { patch: id, source })?;
        check_id(id, signed.id).map(|()| signed)
    }

    /// Where a tree has a patch, which is to be there.
    pub(super) fn stored(&self, tree: Oid, id: PatchId) -> Result<Stored, StoreError> {
        let tree = self.repository.find_tree(tree).map_err(StoreError::git("read a tree"))?;
        let blob = |path: &str| tree.get_path(Path::new(path)).ok().map(|entry| entry.id());
        let patch = blob(&patch_path(id)).ok_or_else(|| no_patch(id))?;
        Ok(Stored { blob: patch, manifest: blob(&manifest_path(id)) })
    }

    /// The bindings of a patch, which states are told by: of a large one those of the manifest beside it, which is here
    /// without the rest. `patch` is the patch where it could be read.
    pub(super) fn bindings(
        &self,
        id: PatchId,
        stored: Stored,
        patch: Option<&Patch>,
    ) -> Result<Vec<Binding>, StoreError> {
        match (patch, stored.manifest) {
            (Some(patch), None) => Ok(patch.manifest().bindings.clone()),
            _ => Ok(self.read_manifest(id, stored)?.bindings),
        }
    }

    /// The manifest of a patch, without its LFS object where it has one.
    pub(super) fn read_manifest(&self, id: PatchId, stored: Stored) -> Result<Manifest, StoreError> {
        let Some(blob) = stored.manifest else {
            return Ok(self.read_patch(id, stored)?.manifest().clone());
        };
        let bytes = self.read_blob(blob, &manifest_path(id), BLOB_SIZE_MAX_BYTES)?;
        let (found, manifest) =
            Manifest::decode(&bytes).map_err(|source| StoreError::Patch { patch: id, source })?;
        if found != id {
            return Err(StoreError::malformed(manifest_path(id), format!("it is that of {found}")));
        }
        Ok(manifest)
    }

    /// What a tree holds beside the history's own, which is yet to be put in its place.
    pub(super) fn beside(&self, tree: &Tree<'_>) -> Result<TreeBuilder<'r>, StoreError> {
        let failed = || StoreError::git("write a tree");
        let mut beside = self.repository.treebuilder(Some(tree)).map_err(failed())?;
        let former = self.has_former_attributes(tree).then_some(ATTRIBUTES);
        for name in OWN.into_iter().chain(former).filter(|name| tree.get_name(name).is_some()) {
            beside.remove(name).map_err(failed())?;
        }
        Ok(beside)
    }

    /// Whether the attributes at the root are nothing but what earlier versions wrote there, before they stood with the
    /// patches: all others are somebody's.
    fn has_former_attributes(&self, tree: &Tree<'_>) -> bool {
        let blob = |path: &str| {
            let entry = tree.get_path(Path::new(path)).ok()?;
            self.repository.find_blob(entry.id()).ok()
        };
        let is_former = |line: &[u8]| {
            let line = line.strip_suffix(ATTRIBUTES_OF_LARGE.as_bytes());
            line.is_some_and(|path| path.starts_with(PATCHES.as_bytes()))
        };
        let former = blob(ATTRIBUTES).filter(|_| blob(&format!("{PATCHES}/{ATTRIBUTES}")).is_none());
        former.is_some_and(|former| {
            let mut lines =
                former.content().split_inclusive(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
            lines.next() == Some(ATTRIBUTES_OF_ALL.as_bytes()) && lines.all(is_former)
        })
    }

    /// Writes the tree of `snapshot`: puts it into `tree`, which holds what is kept beside it.
    pub(super) fn write_tree(
        &self,
        snapshot: &Snapshot,
        mut tree: TreeBuilder<'_>,
    ) -> Result<Oid, StoreError> {
        let failed = || StoreError::git("write a tree");
        check_length(snapshot.series.len())?;
        let series: String = snapshot.series.iter().map(|id| format!("{id}\n")).collect();
        tree.insert(BASE, snapshot.base, FILE).map_err(failed())?;
        tree.insert(SERIES, self.write_blob(series.as_bytes())?, FILE).map_err(failed())?;
        if !snapshot.series.is_empty() {
            tree.insert(PATCHES, self.write_patches(snapshot)?, FOLDER).map_err(failed())?;
        }
        written("write a tree", || tree.write())
    }

    /// Writes the folder of the patches of `snapshot`.
    fn write_patches(&self, snapshot: &Snapshot) -> Result<Oid, StoreError> {
        let failed = || StoreError::git("write a tree");
        let mut patches = self.repository.treebuilder(None).map_err(failed())?;
        let mut attributes = format!("{ATTRIBUTES_OF_ALL}\n");
        for id in &snapshot.series {
            let Some(stored) = snapshot.patches.get(id) else {
                return Err(StoreError::malformed(SERIES, format!("there is no patch {id}")));
            };
            patches.insert(format!("{id}.mpatch"), stored.blob, FILE).map_err(failed())?;
            if let Some(manifest) = stored.manifest {
                patches.insert(format!("{id}.manifest"), manifest, FILE).map_err(failed())?;
                attributes.push_str(&format!("{id}.mpatch{ATTRIBUTES_OF_LARGE}\n"));
            }
        }
        patches.insert(ATTRIBUTES, self.write_blob(attributes.as_bytes())?, FILE).map_err(failed())?;
        written("write a tree", || patches.write())
    }

    /// Reads the series alone, and not whether the tree has the patches that it names: of a long history that takes far
    /// less.
    pub(super) fn read_series(&self, tree: Oid) -> Result<Vec<PatchId>, StoreError> {
        self.series_of(&self.repository.find_tree(tree).map_err(StoreError::git("read a tree"))?)
    }

    fn series_of(&self, tree: &Tree<'_>) -> Result<Vec<PatchId>, StoreError> {
        series_of_bytes(&self.read_blob(
            entry(tree, SERIES, ObjectType::Blob)?,
            SERIES,
            TEXT_SIZE_MAX_BYTES,
        )?)
    }

    /// Reads what a tree says, and that it has all it names.
    pub(super) fn read_tree(&self, tree: Oid) -> Result<Snapshot, StoreError> {
        let tree = self.repository.find_tree(tree).map_err(StoreError::git("read a tree"))?;
        let base = entry(&tree, BASE, ObjectType::Blob)?;
        let series = self.series_of(&tree)?;
        let mut patches = BTreeMap::new();
        if !series.is_empty() {
            let folder = self.repository.find_tree(entry(&tree, PATCHES, ObjectType::Tree)?);
            let folder = folder.map_err(StoreError::git("read a tree"))?;
            for &id in &series {
                let blob = |ending: &str| Some(folder.get_name(&format!("{id}.{ending}"))?.id());
                let patch = blob("mpatch").ok_or_else(|| no_patch(id))?;
                patches.insert(id, Stored { blob: patch, manifest: blob("manifest") });
            }
        }
        Ok(Snapshot { base, series, patches })
    }

    /// What a commit claims of its state, where that is not the one with the id `state`, which its series leads to.
    ///
    /// # Errors
    /// Reading the commit.
    pub(super) fn false_claim(&self, commit: Oid, state: WeightsId) -> Result<Option<String>, StoreError> {
        let found = self.repository.find_commit(commit).map_err(StoreError::git("read a commit"))?;
        let (_, claimed) = Message::parse(&String::from_utf8_lossy(found.message_bytes()));
        let claimed = claimed.filter(|claimed| *claimed != state);
        Ok(claimed.map(|claimed| format!("it claims the state {claimed}, its series leads to {state}")))
    }

    fn write_blob(&self, bytes: &[u8]) -> Result<Oid, StoreError> {
        written("write a blob", || self.repository.blob(bytes))
    }

    /// The bytes of a blob; its size is asked before it is read.
    fn read_blob(&self, blob: Oid, place: &str, limit: usize) -> Result<Vec<u8>, StoreError> {
        let odb = self.repository.odb().map_err(StoreError::git("open its objects"))?;
        let (size, kind) =
            odb.read_header(blob).map_err(StoreError::git(format!("read `{place}` ({blob})")))?;
        if kind != ObjectType::Blob || size > limit {
            return Err(StoreError::malformed(
                place,
                format!("{size} bytes, expected a file of at most {limit}"),
            ));
        }
        let object = odb.read(blob).map_err(StoreError::git(format!("read `{place}` ({blob})")))?;
        Ok(object.data().to_vec())
    }
}

/// Whether a tree is that of a state, and not of something else in the same repository.
pub(super) fn is_state(tree: &Tree<'_>) -> bool {
    [BASE, SERIES].iter().all(|name| tree.get_name(name).is_some())
}

/// The `base.json` of a state.
pub(super) fn base_of(tree: &Tree<'_>) -> Result<Oid, StoreError> {
    entry(tree, SERIES, ObjectType::Blob)?;
    entry(tree, BASE, ObjectType::Blob)
}

/// What a tree has of this name, which must be of this kind.
fn entry(tree: &Tree<'_>, name: &str, kind: ObjectType) -> Result<Oid, StoreError> {
    match tree.get_name(name) {
        Some(entry) if entry.kind() == Some(kind) => Ok(entry.id()),
        _ => Err(StoreError::malformed("the tree", format!("it has no `{name}`"))),
    }
}

/// A database of what lies in one folder of objects alone, so that no other copy of an object answers for one there.
pub(super) fn odb_alone(objects: &Path, action: &str) -> Result<Odb<'static>, StoreError> {
    let odb = Odb::new().map_err(StoreError::git(action))?;
    let path = objects.to_str().ok_or_else(|| {
        StoreError::malformed(objects.display().to_string(), "libgit2 cannot name this folder")
    })?;
    odb.add_disk_alternate(path).map_err(StoreError::git(action))?;
    Ok(odb)
}

/// How often an object is written before its writer gives up.
const TRIES: usize = 5;
/// How long to wait between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Writes an object. Stock git takes emptied folders of objects away, also one that has just been made for this object:
/// then it is written once more.
pub(super) fn written(
    action: &'static str,
    mut write: impl FnMut() -> Result<Oid, git2::Error>,
) -> Result<Oid, StoreError> {
    // Of libgit2's errors only the words tell this one, which are the system's.
    let is_swept = |error: &git2::Error| {
        error.class() == ErrorClass::Os && error.message().ends_with("No such file or directory")
    };
    for _ in 0..TRIES {
        match write() {
            Err(error) if is_swept(&error) => std::thread::sleep(PAUSE),
            ended => return ended.map_err(StoreError::git(action)),
        }
    }
    Err(StoreError::Swept { action })
}

/// Writes a commit. libgit2's own function for that tells of no error where the object could not be written.
pub(super) fn write_commit(
    repository: &Repository,
    author: &Author,
    text: &str,
    tree: &Tree<'_>,
    parents: &[&Commit<'_>],
) -> Result<Oid, StoreError> {
    let failed = || StoreError::git("write a commit");
    let author = author.signature().map_err(failed())?;
    let buffer = repository.commit_create_buffer(&author, &author, text, tree, parents).map_err(failed())?;
    let odb = repository.odb().map_err(failed())?;
    written("write a commit", || odb.write(ObjectType::Commit, &buffer))
}

/// The whole file of a patch, wherever its sections lie.
pub(super) fn bytes_of(patch: &Patch) -> Result<Cow<'_, [u8]>, StoreError> {
    patch.to_bytes().map_err(|source| StoreError::Patch { patch: patch.id(), source })
}

/// Where a patch lies in the tree.
pub(super) fn patch_path(id: PatchId) -> String {
    format!("{PATCHES}/{id}.mpatch")
}

fn manifest_path(id: PatchId) -> String {
    format!("{PATCHES}/{id}.manifest")
}

fn no_patch(id: PatchId) -> StoreError {
    StoreError::malformed(SERIES, format!("it names {id}, and there is no `{}`", patch_path(id)))
}

/// Refuses another patch than the one with the id that it lies under.
fn check_id(expected: PatchId, found: PatchId) -> Result<(), StoreError> {
    match found == expected {
        true => Ok(()),
        false => Err(StoreError::malformed(patch_path(expected), format!("it holds the patch {found}"))),
    }
}

/// Refuses to write a series that could not be read again.
pub(super) fn check_length(patches: usize) -> Result<(), StoreError> {
    match patches > SERIES_MAX {
        true => Err(StoreError::Limit {
            what: format!("the series would have {patches} patches"),
            limit: SERIES_MAX,
        }),
        false => Ok(()),
    }
}

/// The patches of a series whose bytes are at hand.
pub fn series_of_bytes(bytes: &[u8]) -> Result<Vec<PatchId>, StoreError> {
    let refuse = |what: String| StoreError::malformed(SERIES, what);
    let text = std::str::from_utf8(bytes).map_err(|error| refuse(error.to_string()))?;
    let mut series: Vec<PatchId> = Vec::new();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let id = line.parse().map_err(|error| refuse(format!("{error}")))?;
        if !seen.insert(id) {
            return Err(refuse(format!("{id} stands there twice")));
        }
        series.push(id);
        if series.len() > SERIES_MAX {
            return Err(refuse(format!("it is longer than {SERIES_MAX} patches")));
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_whose_folder_git_takes_away_is_written_once_more() {
        let swept = || {
            let words = "failed to rename lockfile to 'objects/01/f5': No such file or directory";
            git2::Error::new(git2::ErrorCode::GenericError, ErrorClass::Os, words)
        };
        let mut tries = 0;
        let mut write = |needed: usize| {
            tries = 0;
            written("write a blob", || {
                tries += 1;
                if tries < needed { Err(swept()) } else { Ok(Oid::ZERO_SHA1) }
            })
        };
        assert!(write(TRIES).is_ok());
        assert!(matches!(write(TRIES + 1), Err(StoreError::Swept { .. })));
        let full = git2::Error::new(git2::ErrorCode::GenericError, ErrorClass::Os, "No space left on device");
        let mut full = Some(full);
        let refused = written("write a blob", || Err(full.take().expect("one try")));
        assert!(matches!(refused, Err(StoreError::System { .. })));
    }

    #[test]
    fn a_series_names_each_patch_once() {
        let (one, two) = (PatchId::derive(b"1"), PatchId::derive(b"2"));
        assert_eq!(series_of_bytes(format!("{one}\n{two}\n").as_bytes()).unwrap(), [one, two]);
        assert!(series_of_bytes(format!("{one}\n{one}\n").as_bytes()).is_err());
        let series = |patches: usize| -> String {
            (0..patches).map(|number| format!("{}\n", PatchId::derive(&number.to_le_bytes()))).collect()
        };
        for patches in [SERIES_MAX, SERIES_MAX + 1] {
            let is_read = series_of_bytes(series(patches).as_bytes()).is_ok();
            assert_eq!(
                (is_read, check_length(patches).is_ok()),
                (patches == SERIES_MAX, patches == SERIES_MAX)
            );
        }
        assert!(series_of_bytes(b"one\n").is_err() && series_of_bytes(b"\xff\n").is_err());
    }
}
