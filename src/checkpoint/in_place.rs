//! A checkpoint changed where it lies, under the cover of a journal.
//!
//! Asked for explicitly only. The files must be nobody else's: not shared by links, which would change with them,
//! not behind symlinks, which mostly lead into a cache, and not in use by another mpatch.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::disk::{Access, File, Files, Kind, Lock, Locked};
use super::journal::{Extent, Header, Journal, JournaledFile, journal_of};
use super::keep::{Cover, Told};
use super::restore::{Ended, Goal, Outcome, Syncs};
use super::{Action, Checkpoint, CheckpointError, TensorInfo, folder_of};
use crate::digest::TensorDigest;

/// A tensor that is to be rewritten where it lies: what it holds now, and what it is to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rewrite<'a> {
    /// The tensor.
    pub tensor: &'a TensorInfo,
    /// Its digest now.
    pub start: TensorDigest,
    /// Its digest afterwards.
    pub end: TensorDigest,
}

/// A checkpoint that is being changed; dropped before it is committed, it gets its old bytes back.
#[derive(Debug)]
pub(super) struct InPlace<'a> {
    checkpoint: &'a Checkpoint,
    /// The touched files, open for writing, by index into the checkpoint's files.
    targets: BTreeMap<usize, File>,
    /// None once it is done with.
    journal: Option<Journal>,
    /// Where in the journal's order the old bytes of each tensor begin.
    places: BTreeMap<String, u64>,
    cover: Cover,
}

/// Refuses files that cannot be changed in place: asked before any work is done.
///
/// # Errors
/// [`CheckpointError::InPlace`], in words; [`CheckpointError::Io`] where a file cannot be examined.
pub(crate) fn check_in_place<'t>(
    checkpoint: &Checkpoint,
    touched: impl IntoIterator<Item = &'t TensorInfo>,
) -> Result<(), CheckpointError> {
    let mut indices: Vec<usize> = touched.into_iter().map(|tensor| tensor.file_index).collect();
    indices.sort_unstable();
    indices.dedup();
    indices.iter().try_for_each(|&index| check_file(checkpoint, index))?;
    let Some(first) = indices.first() else { return Ok(()) };
    let (disk, path) = (checkpoint.disk(), checkpoint.files()[*first].path());
    let writable = disk.check_writable(checkpoint.folder());
    // Asked for, since the system may have no names as long as the journal's.
    let reason = match writable.and_then(|()| disk.is_taken(&journal_of(path))) {
        Ok(false) => return Ok(()),
        Ok(true) => "what has the name of its journal is none of its own: move it away".to_owned(),
        Err(error) => format!("no journal can be made beside it: {error}"),
    };
    Err(CheckpointError::InPlace { path: path.to_owned(), reason })
}

fn check_file(checkpoint: &Checkpoint, index: usize) -> Result<(), CheckpointError> {
    let file = &checkpoint.files()[index];
    let path = file.path();
    let examined = CheckpointError::io(path, Action::Examine);
    let about = checkpoint.disk().about_name(path).map_err(examined)?;
    let opened = file.file.about().map_err(CheckpointError::io(path, Action::Examine))?;
    let reason = if about.kind == Kind::Symlink {
        "it is a symlink, and the file behind it belongs to a cache or to another model".to_owned()
    } else if !about.is_same_file(&opened) {
        "it was replaced by another file meanwhile".to_owned()
    } else if about.links > 1 {
        format!("it has {} names (hard links), and all of them would change", about.links)
    } else if is_mounted_alone(checkpoint.disk(), path) {
        "it is mounted here by itself, and whoever opens it where it lies would find no journal beside it"
            .to_owned()
    } else if about.mode & 0o222 == 0 {
        "it is read-only".to_owned()
    } else if path.file_name().is_none_or(|name| name.to_str().is_none()) {
        "its name is not valid UTF-8".to_owned()
    } else {
        return Ok(());
    };
    Err(CheckpointError::InPlace { path: path.to_owned(), reason })
}

/// Whether a file is on another mount than its folder, which is not the one that it lies in then.
fn is_mounted_alone(disk: &Files, path: &Path) -> bool {
    matches!((disk.mount(path), disk.mount(folder_of(path))), (Some(own), Some(other)) if own != other)
}

impl<'a> InPlace<'a> {
    /// Locks the touched files, and makes a journal for their old bytes.
    pub(super) fn create(
        checkpoint: &'a Checkpoint,
        rewrites: &[Rewrite<'_>],
        label: &str,
    ) -> Result<Self, CheckpointError> {
        check_in_place(checkpoint, rewrites.iter().map(|rewrite| rewrite.tensor))?;
        let (places, cover) = (BTreeMap::new(), Cover::default());
        let mut in_place = Self { checkpoint, targets: BTreeMap::new(), journal: None, places, cover };
        for index in rewrites.iter().map(|rewrite| rewrite.tensor.file_index) {
            in_place.hold(index)?;
        }
        let header = in_place.header(rewrites, label)?;
        let mut place = 0;
        for (_, extent) in header.extents() {
            in_place.places.insert(extent.tensor.clone(), place);
            place += extent.size_bytes;
        }
        let path = in_place.journal_path();
        let targets: Vec<&File> = in_place.targets.values().collect();
        in_place.journal = Some(Journal::create(checkpoint.disk(), &path, header, &targets)?);
        Ok(in_place)
    }

    /// Puts the old bytes down; new ones are written behind it.
    pub(super) fn keep(&self, told: &Told<'_>) -> Result<(), CheckpointError> {
        let sources: Vec<&File> = self.targets.values().collect();
        self.journal.as_ref().map_or(Ok(()), |journal| journal.keep(&sources, &self.cover, told))
    }

    /// Locks a file and opens it for writing.
    fn hold(&mut self, index: usize) -> Result<(), CheckpointError> {
        let file = &self.checkpoint.files()[index];
        let path = file.path();
        if self.targets.contains_key(&index) {
            return Ok(());
        }
        let opened = self.checkpoint.disk().open(path, Access::ReadWrite);
        let target = opened.map_err(CheckpointError::io(path, Action::OpenForWriting))?;
        let examined = |file: &File| file.about().map_err(CheckpointError::io(path, Action::Examine));
        if !examined(&target)?.is_same_file(&examined(&file.file)?) {
            let reason = "it was replaced by another file meanwhile".to_owned();
            return Err(CheckpointError::InPlace { path: path.to_owned(), reason });
        }
        // Network file systems give an exclusive lock only to who may write, so it is not the one that the checkpoint
        // has held since it was opened: that one would stand in its way. What changes in between, the digests tell.
        file.file.unlock();
        if let Err(error) = lock_exclusive(&target, path) {
            _ = file.file.lock(Lock::Shared);
            return Err(error);
        }
        self.targets.insert(index, target);
        Ok(())
    }

    fn header(&self, rewrites: &[Rewrite<'_>], label: &str) -> Result<Header, CheckpointError> {
        let mut files = Vec::new();
        for (&index, target) in &self.targets {
            let path = self.checkpoint.files()[index].path();
            let about = target.about().map_err(CheckpointError::io(path, Action::Examine))?;
            let touched = rewrites.iter().filter(|rewrite| rewrite.tensor.file_index == index);
            let extents = touched.map(|rewrite| Extent {
                tensor: rewrite.tensor.name.clone(),
                offset: rewrite.tensor.offset,
                size_bytes: rewrite.tensor.size_bytes,
                start: rewrite.start,
                end: rewrite.end,
            });
            files.push(JournaledFile {
                name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                device: about.device,
                inode: about.inode,
                created_ns: about.created_ns,
                size_bytes: about.size_bytes,
                extents: extents.collect(),
            });
        }
        Ok(Header { label: label.to_owned(), files })
    }

    /// Beside the weights, named after their file, or after the first where there are several.
    fn journal_path(&self) -> PathBuf {
        let first = self.targets.keys().next().map(|index| self.checkpoint.files()[*index].path());
        journal_of(first.unwrap_or(self.checkpoint.path()))
    }

    pub(super) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// What is changed, as it was opened.
    pub(super) fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// Overwrites a part of a touched tensor, which was checked to lie inside it, once its old bytes are kept; none
    /// where they will not be.
    pub(super) fn write_at(
        &self,
        tensor: &TensorInfo,
        offset: u64,
        bytes: &[u8],
    ) -> Option<Result<(), CheckpointError>> {
        let place = self.places.get(&tensor.name)?;
        if !self.cover.wait_for(place + offset + bytes.len() as u64) {
            // Whoever keeps has been stopped, or has an error that says more than any here.
            return self.checkpoint.check_stop().err().map(Err);
        }
        let target = self.targets.get(&tensor.file_index)?;
        let path = self.checkpoint.files()[tensor.file_index].path();
        Some(self.checkpoint.check_stop().and_then(|()| {
            target
                .write_and_begin_sync_at(bytes, tensor.offset + offset)
                .map_err(CheckpointError::io(path, Action::Write))
        }))
    }

    /// Makes the new bytes last; if they do not even when they are written again, or are no longer those of the files'
    /// names, the old ones are put back.
    pub(super) fn commit(mut self) -> Result<(), CheckpointError> {
        let Some(journal) = self.journal.take() else { return Ok(()) };
        let targets: Vec<&File> = self.targets.values().collect();
        let synced = journal.sync(&targets);
        let syncs = if synced.is_ok() { Syncs::AllWell } else { Syncs::Doubted };
        if let Err(error) = self.check_names() {
            let put_back = journal.roll_back(&[targets], Goal::Old, syncs, self.cover.kept());
            return Err(put_back.err().unwrap_or(error));
        }
        let removed = synced.and_then(|()| {
            self.checkpoint.tell_of_last_step();
            journal.remove(Outcome::Finished)
        });
        let (error, ended) = match removed {
            Ok(ended) => return lasting(&journal, ended),
            Err(error) => (error, journal.roll_back(&[targets], Goal::Either, syncs, self.cover.kept())?),
        };
        match ended.outcome {
            // All new bytes are there, after all.
            Outcome::Finished => lasting(&journal, ended),
            Outcome::Untouched | Outcome::RolledBack => Err(error),
        }
    }

    /// Refuses to end a change of files that other paths lead to by now: whoever opens the checkpoint would not see it.
    fn check_names(&self) -> Result<(), CheckpointError> {
        for (index, target) in &self.targets {
            let path = self.checkpoint.files()[*index].path();
            let is_named = self.checkpoint.disk().is_named(path, target);
            if !is_named.map_err(CheckpointError::io(path, Action::Examine))? {
                let reason = "it was moved away or replaced meanwhile".to_owned();
                return Err(CheckpointError::InPlace { path: path.to_owned(), reason });
            }
        }
        Ok(())
    }

    /// Puts the old bytes back.
    pub(super) fn abandon(mut self) -> Result<(), CheckpointError> {
        self.undo()
    }

    fn undo(&mut self) -> Result<(), CheckpointError> {
        let Some(journal) = self.journal.take() else { return Ok(()) };
        let targets: Vec<&File> = self.targets.values().collect();
        journal.roll_back(&[targets], Goal::Old, Syncs::AllWell, self.cover.kept()).map(drop)
    }
}

/// Takes the lock of a file that is about to be written.
fn lock_exclusive(file: &File, path: &Path) -> Result<(), CheckpointError> {
    match file.lock(Lock::Exclusive).map_err(CheckpointError::io(path, Action::Lock))? {
        Locked::Held => Ok(()),
        Locked::Busy => Err(CheckpointError::Busy { path: path.to_owned() }),
        Locked::Unsupported => Err(CheckpointError::InPlace {
            path: path.to_owned(),
            reason: "its file system has no locks, so nothing would keep others away".to_owned(),
        }),
    }
}

/// Tells of a change that is complete, and whose journal may come back.
fn lasting(journal: &Journal, ended: Ended) -> Result<(), CheckpointError> {
    ended.removal.map_err(|source| CheckpointError::NotDurable { path: journal.target_path(0), source })
}

impl Drop for InPlace<'_> {
    fn drop(&mut self) {
        // What cannot be put back now is put back by the next command: the journal is still there.
        _ = self.undo();
        for (index, target) in std::mem::take(&mut self.targets) {
            drop(target);
            // Others may read again while this checkpoint stays open.
            _ = self.checkpoint.files()[index].file.lock(Lock::Shared);
        }
    }
}
