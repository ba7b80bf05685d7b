//! Temporaries beside their targets, and what killed processes left of theirs.
//!
//! A temporary is locked for as long as its process works on it. A temporary that nobody holds belongs to a process
//! that is gone, so the next one that writes to the folder takes it away: no litter, no stale locks, no clock.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Access, Audience, File, Files, Kind, Lock, Locked};
use super::{Action, CheckpointError, folder_of};

/// How temporaries begin; a number follows.
const PREFIX: &str = ".mpatch-tmp-";
/// Most temporaries of one folder at a time.
const TEMPORARIES_MAX: u32 = 10_000;

/// A file or folder in the making; it goes away when dropped, unless it got its name.
#[derive(Debug)]
pub(super) struct Temporary {
    files: Files,
    path: PathBuf,
    kind: Kind,
    handle: Option<File>,
}

impl Temporary {
    /// A new empty file in `folder`.
    pub(super) fn file(files: &Files, folder: &Path, audience: Audience) -> io::Result<Self> {
        Self::new(files, folder, Kind::File, |path| files.open(path, Access::CreateNew(audience)).map(Some))
    }

    /// A new empty folder in `folder`.
    pub(super) fn folder(files: &Files, folder: &Path, audience: Audience) -> io::Result<Self> {
        Self::new(files, folder, Kind::Folder, |path| {
            files.create_folder(path, audience)?;
            match files.open_folder(path) {
                // Somebody swept it away before it was opened.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                opened => opened.map(Some),
            }
        })
    }

    /// `create` makes and opens it; none where it is gone already.
    fn new(
        files: &Files,
        folder: &Path,
        kind: Kind,
        create: impl Fn(&Path) -> io::Result<Option<File>>,
    ) -> io::Result<Self> {
        sweep(files, folder);
        for number in 0..TEMPORARIES_MAX {
            let path = folder.join(format!("{PREFIX}{number}"));
            let handle = match create(&path) {
                Ok(Some(handle)) => handle,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            let temporary = Self { files: files.clone(), path, kind, handle: Some(handle) };
            if temporary.is_ours()? {
                return Ok(temporary);
            }
            // Somebody swept it away before it was locked.
            temporary.forget();
        }
        Err(io::Error::other("there are too many temporaries"))
    }

    /// Locks it, and asks whether it is still the one under its name.
    fn is_ours(&self) -> io::Result<bool> {
        let handle = self.handle();
        if handle.lock(Lock::Exclusive)? == Locked::Busy {
            return Ok(false);
        }
        self.files.is_named(&self.path, handle)
    }

    /// Where it lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, or folder.
    pub(super) fn handle(&self) -> &File {
        self.handle.as_ref().expect("it is there until the temporary is used up")
    }

    /// Gives it the name `target`, which must be free, for good.
    ///
    /// What it holds must be synced already. After an error the name is free again, but for
    /// [`CheckpointError::NotDurable`].
    pub(super) fn place_new(mut self, target: &Path) -> Result<File, CheckpointError> {
        match self.files.rename_new(&self.path, target) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CheckpointError::OutputExists { path: target.to_owned() });
            }
            Err(error) => return Err(CheckpointError::io(target, Action::Create)(error)),
        }
        // Without this a power cut could take the new name away again.
        let synced = self.files.sync_folder(folder_of(target));
        let handle = self.handle.take().expect("it is there until the temporary is used up");
        let Err(error) = synced else { return Ok(handle) };
        let removed = match self.kind {
            Kind::Folder => self.files.remove_whole_folder(target),
            _ => self.files.remove_file(target),
        };
        match removed {
            Ok(()) => Err(CheckpointError::io(folder_of(target), Action::Sync)(error)),
            Err(_) => Err(CheckpointError::NotDurable { path: target.to_owned(), source: error }),
        }
    }

    /// Gives it the name `target`, in place of a file that has it.
    pub(super) fn place_over(self, target: &Path) -> Result<(), CheckpointError> {
        self.files
            .rename_over(&self.path, target)
            .map_err(CheckpointError::io(target, Action::PutInPlace))?;
        let synced = self.files.sync_folder(folder_of(target));
        self.forget();
        synced.map_err(|source| CheckpointError::NotDurable { path: target.to_owned(), source })
    }

    /// Leaves whatever is under its name alone.
    fn forget(mut self) {
        self.handle = None;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // The handle goes last: it keeps others from removing the same.
        let Some(_handle) = &self.handle else { return };
        // A temporary that cannot be removed is left to whoever comes next.
        _ = match self.kind {
            Kind::Folder => self.files.remove_whole_folder(&self.path),
            _ => self.files.remove_file(&self.path),
        };
    }
}

/// A folder for what is only passed through, such as the states between two that are asked for.
///
/// It goes away when dropped, and when its process is killed, by the next one that writes beside it.
#[derive(Debug)]
pub struct PassingFolder(Temporary);

impl PassingFolder {
    /// Makes one in `folder`.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] where that is not possible.
    pub fn create(folder: &Path) -> Result<Self, CheckpointError> {
        Self::make(folder).map_err(CheckpointError::io(folder, Action::WriteTo))
    }

    /// The same, with the system's own error.
    pub(crate) fn make(folder: &Path) -> io::Result<Self> {
        Temporary::folder(&Files::real(), folder, Audience::Owner).map(Self)
    }

    /// It has got another name, and stays.
    #[cfg(feature = "history")]
    pub(crate) fn keep(self) {
        self.0.forget();
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Removes temporaries of this user's that no living process holds; what cannot be judged or removed is left.
pub(super) fn sweep(files: &Files, folder: &Path) {
    let Ok(names) = files.list(folder) else { return };
    for name in names.iter().filter(|name| is_temporary(&name.to_string_lossy())) {
        _ = sweep_one(files, &folder.join(name));
    }
}

/// Whether a temporary is called so.
pub(super) fn is_temporary(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|number| number.parse::<u32>().is_ok())
}

fn sweep_one(files: &Files, path: &Path) -> io::Result<()> {
    let named = files.about_name(path)?;
    let handle = match named.kind {
        // Network file systems want write access for an exclusive lock.
        Kind::File => files.open(path, Access::ReadWrite)?,
        Kind::Folder => files.open_folder(path)?,
        _ => return Ok(()),
    };
    let is_free = handle.lock(Lock::Exclusive)? == Locked::Held;
    if !is_free || !files.is_named(path, &handle)? {
        return Ok(());
    }
    // What another user has laid there is his to remove, and his to rearrange meanwhile; even root leaves it to him.
    if handle.about()?.owner != files.user() {
        return Ok(());
    }
    match named.kind {
        Kind::Folder => files.remove_whole_folder(path),
        _ => files.remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::fault::{Fault, FaultyDisk, Schedule};
    use super::super::disk::simulated::SimulatedDisk;
    use super::*;

    #[test]
    fn a_folder_that_is_swept_away_before_it_is_opened_is_made_again() {
        // What was there is listed, a folder is made, and opening it fails.
        let schedule = Schedule { at: 2, fault: Fault::Missing, for_good: false };
        let files = Files::on(FaultyDisk::new(SimulatedDisk::new(), schedule));
        let made = Temporary::folder(&files, Path::new("/"), Audience::Owner).unwrap();
        assert_eq!(made.path(), Path::new("/.mpatch-tmp-1"));
    }

    #[test]
    fn what_another_user_has_laid_there_is_not_swept() {
        const STRANGER: u32 = 2000;
        let disk = SimulatedDisk::new();
        for name in ["/.mpatch-tmp-0", "/.mpatch-tmp-1"] {
            disk.put(name, b"half a model");
        }
        disk.give_away(Path::new("/.mpatch-tmp-1"), STRANGER);
        sweep(&Files::on(disk.clone()), Path::new("/"));
        assert_eq!(Vec::from_iter(disk.contents().into_keys()), [Path::new("/.mpatch-tmp-1")]);
    }
}
