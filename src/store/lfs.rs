//! Large patches as Git LFS keeps them: a pointer in git, the bytes in a file named by their SHA-256.
//!
//! ```text
//! git blob          version https://git-lfs.github.com/spec/v1
//!                   oid sha256:4d7a...
//!                   size 41943040
//! .git/lfs/objects/4d/7a/4d7a...                      the bytes, as `git lfs` itself lays them out
//! ```

use std::fs::{DirEntry, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::StoreError;
use super::folder::files_below;
use crate::checkpoint::FileSource;
use crate::patch::layout::MAGIC;

/// Patches above this size are kept by LFS: libgit2 holds a blob twice in memory, and hosts refuse large ones.
pub(super) const INLINE_SIZE_MAX_BYTES: usize = 1 << 20;
/// No pointer is larger.
pub(super) const POINTER_SIZE_MAX_BYTES: usize = 1024;
/// Digits of an object's id.
const ID_LENGTH: usize = 64;
const VERSION_LINE: &str = "version https://git-lfs.github.com/spec/v1";

/// What stands in git for a large file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pointer {
    /// SHA-256 of the bytes, in lower-case hex: 64 digits, which [`Objects::path`] takes apart.
    oid: String,
    /// Their number.
    size_bytes: u64,
}

impl Pointer {
    /// The id of the object: SHA-256 of the bytes, 64 digits in lower-case hex.
    pub fn oid(&self) -> &str {
        &self.oid
    }

    /// The pointer to `bytes`.
    pub(super) fn to(bytes: &[u8]) -> Self {
        Self { oid: format!("{:x}", Sha256::digest(bytes)), size_bytes: bytes.len() as u64 }
    }

    /// The pointer that `blob` is, if it is one.
    #[doc(hidden)] // for fuzzers
    pub fn parse(blob: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(blob.get(..blob.len().min(POINTER_SIZE_MAX_BYTES))?).ok()?;
        let mut lines = text.lines();
        if blob.len() > POINTER_SIZE_MAX_BYTES || lines.next()? != VERSION_LINE {
            return None;
        }
        let oid = lines.next()?.strip_prefix("oid sha256:")?;
        let size_bytes = lines.next()?.strip_prefix("size ")?.parse().ok()?;
        let is_hex =
            oid.len() == ID_LENGTH && oid.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        is_hex.then(|| Self { oid: oid.to_owned(), size_bytes })
    }

    /// The pointer's own bytes.
    #[doc(hidden)] // for fuzzers
    pub fn text(&self) -> String {
        format!("{VERSION_LINE}\noid sha256:{}\nsize {}\n", self.oid, self.size_bytes)
    }
}

/// Everything in a pointer's bytes that can be the id of an object: pointers of earlier versions and of extensions of
/// Git LFS have more lines than [`Pointer::parse`] knows.
pub(super) fn ids_in(blob: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(blob);
    let ids = text.split("sha256:").skip(1).filter_map(|rest| rest.get(..ID_LENGTH));
    ids.map(str::to_ascii_lowercase).collect()
}

/// Whether a file among the objects is a patch, and named as LFS names objects.
pub(super) fn is_patch(path: &Path) -> Result<bool, StoreError> {
    if path.file_name().is_none_or(|name| name.len() != ID_LENGTH) {
        return Ok(false);
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(StoreError::io(path, "open"))?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(StoreError::io(path, "read"))?;
    Ok(start == MAGIC)
}

/// The LFS objects of a repository.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    folder: PathBuf,
}

/// Why an object cannot be had.
#[derive(Debug)]
pub(super) enum Absent {
    /// It is not there.
    Missing,
    /// It is there, and is something else.
    Damaged {
        /// What it hashes to.
        found: String,
    },
    /// The system said no.
    Io(StoreError),
}

impl Objects {
    /// Those of the git folder `repository`.
    pub(super) fn of(repository: &Path) -> Self {
        Self { folder: repository.join("lfs") }
    }

    /// The folder that `git lfs` calls its storage.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the object lies, or would.
    pub(super) fn path(&self, pointer: &Pointer) -> PathBuf {
        self.folder.join("objects").join(&pointer.oid[..2]).join(&pointer.oid[2..4]).join(&pointer.oid)
    }

    /// Whether a file of the object's size lies in its place; its bytes are not read.
    pub(super) fn has(&self, pointer: &Pointer) -> bool {
        let about = std::fs::metadata(self.path(pointer));
        about.is_ok_and(|about| about.is_file() && about.len() == pointer.size_bytes)
    }

    /// The object's file as it is, not checked; none where it is not there.
    pub(super) fn open(&self, pointer: &Pointer) -> Result<Option<FileSource>, StoreError> {
        let path = self.path(pointer);
        match File::open(&path).and_then(FileSource::of) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some).map_err(StoreError::io(&path, "read")),
        }
    }

    /// The object's bytes, checked.
    pub(super) fn read(&self, pointer: &Pointer) -> Result<Vec<u8>, Absent> {
        let path = self.path(pointer);
        let failed = |error| Absent::Io(StoreError::io(&path, "read")(error));
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Absent::Missing),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        // One byte more than there should be shows what is too long, and bounds what is read.
        let limit = pointer.size_bytes.saturating_add(1);
        file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
        let found = Pointer::to(&bytes);
        if found != *pointer {
            return Err(Absent::Damaged { found: found.oid });
        }
        Ok(bytes)
    }

    /// Writes an object through to the disk; one that is there and damaged is moved aside.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<Pointer, StoreError> {
        let pointer = Pointer::to(bytes);
        match self.read(&pointer) {
            Ok(_) => return Ok(pointer),
            Err(Absent::Missing) => {}
            Err(Absent::Damaged { .. }) => set_aside(&self.path(&pointer))?,
            Err(Absent::Io(error)) => return Err(error),
        }
        let path = self.path(&pointer);
        let Some(folder) = path.parent() else { return Ok(pointer) };
        create_folder(folder)?;
        let mut builder = tempfile::Builder::new();
        // As the objects of git, beside which it lies: the umask says who else may read it.
        let file = builder.permissions(Permissions::from_mode(0o444)).tempfile_in(folder);
        let mut file = file.map_err(StoreError::io(folder, "write to"))?;
        file.write_all(bytes).map_err(StoreError::io(&path, "write"))?;
        file.as_file().sync_all().map_err(StoreError::io(&path, "write"))?;
        file.persist(&path).map_err(|error| StoreError::io(&path, "write")(error.error))?;
        sync(folder)?;
        Ok(pointer)
    }

    /// The paths of all files among the objects, whether LFS gave them their names or not.
    pub(super) fn list(&self) -> Result<Vec<PathBuf>, StoreError> {
        let found = files_below(&self.folder.join("objects"))?;
        let mut found: Vec<PathBuf> = found.iter().map(DirEntry::path).collect();
        found.sort();
        Ok(found)
    }
}

/// Renames a damaged file, so that a whole one can take its place and nothing is deleted.
pub(super) fn set_aside(path: &Path) -> Result<(), StoreError> {
    let aside = first_free(|number| path.with_extension(format!("damaged-{number}")));
    std::fs::rename(path, aside).map_err(StoreError::io(path, "rename"))
}

/// The first of numbered places where nothing is yet.
pub(super) fn first_free(place: impl Fn(u64) -> PathBuf) -> PathBuf {
    let mut number = 1;
    loop {
        let place = place(number);
        if place.symlink_metadata().is_err() {
            return place;
        }
        number += 1;
    }
}

/// Creates a folder and those above it, each written through to the disk.
pub(super) fn create_folder(folder: &Path) -> Result<(), StoreError> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folder(parent)?;
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io(folder, "create")(error));
            }
            _ => sync(parent)?,
        }
    }
    Ok(())
}

/// Writes a file's contents, or a folder's list of names, through to the disk.
pub(super) fn sync(path: &Path) -> Result<(), StoreError> {
    let opened = File::open(path).map_err(StoreError::io(path, "open"))?;
    opened.sync_all().map_err(StoreError::io(path, "sync"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_survives_its_own_text() {
        let pointer = Pointer::to(b"abc");
        assert_eq!(pointer.oid, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Pointer::parse(pointer.text().as_bytes()), Some(pointer));
        assert_eq!(Pointer::parse(b"\x89MPATCH\n"), None);
        let escape = Pointer { oid: format!("../../{}", "0".repeat(58)), size_bytes: 1 };
        assert_eq!(Pointer::parse(escape.text().as_bytes()), None);
    }

    #[test]
    fn an_object_is_read_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::of(folder.path());
        let pointer = objects.write(b"the bytes").unwrap();
        assert_eq!(objects.read(&pointer).unwrap(), b"the bytes");
        let path = objects.path(&pointer);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for other in [&b"the byte"[..], b"the bytes and more", b"the Bytes"] {
            let as_files_are = folder.path().join("other");
            std::fs::write(&as_files_are, other).unwrap();
            assert_eq!(mode(&path), mode(&as_files_are) & 0o444, "whom the umask leaves may read it");
            std::fs::remove_file(&path).unwrap();
            std::fs::copy(&as_files_are, &path).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(mode(&path) & 0o444)).unwrap();
            assert!(matches!(objects.read(&pointer), Err(Absent::Damaged { .. })));
        }
        assert_eq!(objects.write(b"the bytes").unwrap(), pointer);
        assert_eq!(objects.read(&pointer).unwrap(), b"the bytes");
        assert_eq!(objects.list().unwrap().len(), 2, "the damaged one was kept");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(objects.read(&pointer), Err(Absent::Missing)));
    }
}
