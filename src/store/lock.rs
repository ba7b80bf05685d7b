//! One process at a time changes a store.
//!
//! The lock is the operating system's own on an open file, so it ends with its process, however that ends: there is
//! no stale lock to remove. But libgit2 has locks of its own, which are files whose being there is the lock, and a
//! process that is killed leaves them, and half-written files, behind:
//!
//! ```text
//! taken  ->  "at work" is written into the file  ->  names move  ->  emptied  ->  let go
//!                           killed here: whoever takes the lock next finds the words, and sweeps
//! ```
//!
//! Stock git may be at work on the same names at any time, and asks for libgit2's locks only. So such a file is
//! removed only where an mpatch died at work, and only once nobody has touched it for longer than git itself waits.

use std::fs::{DirEntry, File, Metadata, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::GIT;
use super::error::StoreError;
use super::folder::{entries_if_there, files_below};

/// The file that is locked, in the repository's folder; it stays.
const NAME: &str = "mpatch.lock";
/// What stands in it while names may be moving.
const AT_WORK: &[u8] = b"at work\n";
/// How long to sleep between two tries.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a lock of libgit2's must lie untouched: git waits for one of these a second at most.
const UNTOUCHED: Duration = Duration::from_millis(1500);

/// The right to change the store, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Lock {
    /// Waits for the lock of the repository at `folder`, for `patience` at most; sweeps up after a process that died.
    pub(super) fn take(folder: &Path, patience: Duration) -> Result<Self, StoreError> {
        let path = folder.join(NAME);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let file = file.map_err(StoreError::io(&path, "open"))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if started.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let seconds = patience.as_secs_f64();
                    return Err(StoreError::Busy { path: folder.to_owned(), seconds });
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io(&path, "lock")(error)),
            }
        }
        let mut words = Vec::new();
        (&file).take(AT_WORK.len() as u64).read_to_end(&mut words).map_err(StoreError::io(&path, "read"))?;
        if !words.is_empty() {
            // The words stay until that is done: who dies here leaves it to the next.
            sweep(folder)?;
        }
        let mut lock = Self { file };
        lock.begin().map_err(StoreError::io(&path, "write"))?;
        Ok(lock)
    }

    fn begin(&mut self) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(AT_WORK)?;
        self.file.sync_data()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Words that stay make the next process look for what there is not.
        let _ = self.file.set_len(0);
        // A process that another thread is just starting has a copy of the handle until it is another program.
        let _ = self.file.unlock();
    }
}

/// Whether the lock of a repository in `folder` was ever taken, as it is before anything is recorded.
pub(super) fn was_taken(folder: &Path) -> bool {
    [folder.join(GIT), folder.to_owned()].iter().any(|git| git.join(NAME).exists())
}

/// Removes what a process left that died while it had the lock.
fn sweep(git: &Path) -> Result<(), StoreError> {
    let of_names = named(&files_below(&git.join("refs"))?, |name| name.ends_with(".lock"));
    let others = ["HEAD.lock", "packed-refs.lock", "config.lock"].map(|name| git.join(name));
    let locks: Vec<(PathBuf, Metadata)> = of_names
        .into_iter()
        .chain(others)
        .filter_map(|path| Some((path.clone(), path.symlink_metadata().ok()?)))
        .collect();
    if !locks.is_empty() {
        std::thread::sleep(UNTOUCHED);
    }
    for (path, before) in locks {
        if path.symlink_metadata().is_ok_and(|now| is_same(&before, &now)) {
            remove(&path)?;
        }
    }
    // Objects are written under the lock only, and under names that neither git nor `git lfs` gives.
    let objects =
        named(&entries_if_there(&git.join("objects"))?, |name| name.starts_with("tmp_object_git2_"));
    let large = named(&files_below(&git.join("lfs/objects"))?, |name| name.starts_with(".tmp"));
    objects.iter().chain(&large).try_for_each(|path| remove(path))
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let about =
        |file: &Metadata| (file.ino(), file.size(), file.mtime(), file.mtime_nsec(), file.ctime_nsec());
    about(one) == about(other)
}

/// Removes a file that somebody else may remove at the same time.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(path, "remove")(error))
        }
        _ => Ok(()),
    }
}

/// The files among these that have such a name.
fn named(entries: &[DirEntry], is_meant: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let is_file = |entry: &&DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let files = entries.iter().filter(is_file);
    files.filter(|file| is_meant(&file.file_name().to_string_lossy())).map(DirEntry::path).collect()
}
