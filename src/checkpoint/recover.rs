//! What the next command does about a change in place that stopped half-way.
//!
//! ```text
//! journals beside the weights  ->  those about them  ->  locks of their files  ->  back to one of the two states
//! ```
//!
//! A journal says which bytes go where, so it is believed only of one who could have written there himself. One that
//! cannot be read speaks by its name alone: whose weights' name it bears, theirs are the old bytes in it.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::blocks::{BlockHash, digest_of_blocks};
use super::disk::{About, Access, File, Files, Kind, PAGE_BYTES};
use super::journal::{
    ASK_ITS_AUTHOR, Found, JOURNAL_SUFFIX, Journal, JournaledFile, Kept, Outcome, Standing, Stuck, Syncs,
    journal_of, lock_exclusive, standing,
};
use super::temporary::sweep;
use super::{Checkpoint, CheckpointError, folder_of};

/// A change that had stopped half-way and no longer does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recovered {
    /// The journal that is gone now.
    pub journal: PathBuf,
    /// What was being done.
    pub label: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// Brings every change in place of the checkpoint at `path` that stopped half-way to an end.
///
/// All old bytes are put back, unless all new ones are there already. Where no change stopped, nothing happens and
/// none is returned. Temporaries that killed processes left beside the checkpoint go, too.
///
/// # Errors
/// Those of opening a checkpoint that is none; [`CheckpointError::Busy`] while somebody works on it;
/// [`CheckpointError::Recovery`] when the old bytes cannot be put back now: the journal is then kept, and the next
/// call tries again.
pub fn recover(path: impl AsRef<Path>) -> Result<Vec<Recovered>, CheckpointError> {
    recover_on(&Files::real(), path.as_ref())
}

pub(crate) fn recover_on(files: &Files, path: &Path) -> Result<Vec<Recovered>, CheckpointError> {
    let mut recovered = Vec::new();
    let weights = Checkpoint::weights_files(files, path)?;
    let real = real_paths(files, &weights);
    for folder in folders_of(&real) {
        sweep(files, folder);
        for journal in journals_in(files, folder, &real)? {
            recovered.extend(recover_one(files, &journal, &weights, &real)?);
        }
    }
    Ok(recovered)
}

/// Refuses a checkpoint with a change that stopped half-way.
pub(super) fn refuse_pending(files: &Files, weights: &[PathBuf]) -> Result<(), CheckpointError> {
    let real = real_paths(files, weights);
    for folder in folders_of(&real) {
        for path in journals_in(files, folder, &real)? {
            match Journal::open(files, &path)? {
                Found::Whole(journal) if journal.is_about(weights) => {
                    return Err(journal.unfinished("it has to be recovered first".to_owned()));
                }
                Found::Closed { reason, way_out } => refuse_closed(&path, &real, reason, way_out)?,
                Found::Whole(_) | Found::Nothing => {}
            }
        }
    }
    Ok(())
}

/// Where the files really lie; a journal lies beside the file itself, not beside a link to it.
fn real_paths(files: &Files, weights: &[PathBuf]) -> Vec<PathBuf> {
    weights.iter().map(|path| files.real_path(path).unwrap_or_else(|_| path.clone())).collect()
}

fn folders_of(real: &[PathBuf]) -> Vec<&Path> {
    let mut folders = Vec::new();
    for folder in real.iter().map(|path| folder_of(path)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// The journals in one of the folders that files lie in, of whatever files they are.
fn journals_in(files: &Files, folder: &Path, real: &[PathBuf]) -> Result<Vec<PathBuf>, CheckpointError> {
    match files.list(folder) {
        Ok(names) => {
            let journals = names.iter().filter(|name| name.to_string_lossy().ends_with(JOURNAL_SUFFIX));
            Ok(journals.map(|name| folder.join(name)).collect())
        }
        // Where nobody may look around, what has a name that is known is still found.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let inside = real.iter().filter(|path| folder_of(path) == folder);
            Ok(inside.map(|path| journal_of(path)).collect())
        }
        Err(error) => Err(CheckpointError::io(folder, "list")(error)),
    }
}

/// Refuses weights whose name a journal bears that cannot be read; any other such journal is somebody else's concern,
/// and anybody may lay one there.
fn refuse_closed(
    journal: &Path,
    real: &[PathBuf],
    reason: String,
    way_out: &'static str,
) -> Result<(), CheckpointError> {
    let Some(path) = real.iter().find(|path| journal_of(path) == journal) else { return Ok(()) };
    let (path, journal) = (path.clone(), journal.to_owned());
    Err(CheckpointError::Recovery { path, journal, reason, way_out: Some(way_out) })
}

impl Journal {
    /// Whether any of `weights` is among its files, under the name that it had then or under another one.
    fn is_about(&self, weights: &[PathBuf]) -> bool {
        weights.iter().any(|path| {
            let real = self.files.real_path(path).unwrap_or_else(|_| path.clone());
            let about = self.files.about(path).ok();
            self.header.files.iter().any(|file| {
                folder_of(&self.path).join(&file.name) == real
                    || about.as_ref().is_some_and(|about| file.is_described_by(about))
            })
        })
    }

    /// Its files, locked and open for writing, with whether each is the very file that the journal was made for.
    ///
    /// Of `weights` one may be that file under the name that it has now, whatever bears its old one.
    fn targets(&self, weights: &[PathBuf]) -> Result<Vec<(File, bool)>, CheckpointError> {
        self.header.files.iter().map(|file| self.target(file, weights)).collect()
    }

    fn target(
        &self,
        journaled: &JournaledFile,
        weights: &[PathBuf],
    ) -> Result<(File, bool), CheckpointError> {
        let named = folder_of(&self.path).join(&journaled.name);
        let path = self.renamed(journaled, &named, weights)?.unwrap_or_else(|| named.clone());
        let opened = self.files.open(&path, Access::ReadWrite);
        let file = opened.map_err(|error| {
            self.unfinished_as(Stuck::at(&format!("cannot open `{}`", path.display()), &error))
        })?;
        lock_exclusive(&file, &path)?;
        let about = file.about().map_err(CheckpointError::io(&path, "examine"))?;
        self.require_author(&path, &about)?;
        if about.size_bytes != journaled.size_bytes {
            return Err(self.unfinished(format!(
                "`{}` has {} bytes, and had {} when the journal was written",
                path.display(),
                about.size_bytes,
                journaled.size_bytes
            )));
        }
        // Where the system does not tell when a file was made, another one may have got its inode.
        let is_certain = path == named || journaled.created_ns.is_some();
        Ok((file, journaled.is_described_by(&about) && is_certain))
    }

    /// Where a file of the journal lies now if its own name, `named`, is gone or another file's: one of `weights`, or
    /// whatever is beside the journal.
    ///
    /// With the journal its old bytes would be gone, so nobody who cannot look for it takes the journal away.
    fn renamed(
        &self,
        journaled: &JournaledFile,
        named: &Path,
        weights: &[PathBuf],
    ) -> Result<Option<PathBuf>, CheckpointError> {
        let is_it = |about: About| about.kind == Kind::File && journaled.is_described_by(&about);
        if self.files.about_name(named).is_ok_and(is_it) {
            return Ok(None);
        }
        let opened = weights.iter().find(|path| self.files.about(path).is_ok_and(is_it));
        if let Some(path) = opened.and_then(|path| self.files.real_path(path).ok()) {
            return Ok(Some(path));
        }
        let folder = folder_of(&self.path);
        let names = self.files.list(folder).map_err(|error| {
            let action = format!("cannot look for what was called `{}` then", journaled.name);
            self.unfinished_as(Stuck::at(&action, &error))
        })?;
        let mut beside = names.iter().map(|name| folder.join(name));
        Ok(beside.find(|path| self.files.about_name(path).is_ok_and(is_it)))
    }
}

impl Journal {
    /// Refuses the journal of somebody who could not have changed the target: it says which bytes go where, and we may
    /// be allowed what its author is not.
    fn require_author(&self, path: &Path, target: &About) -> Result<(), CheckpointError> {
        const ROOT: u32 = 0;
        let author = self.file.about().map_err(CheckpointError::io(&self.path, "examine"))?.owner;
        if [self.files.user(), ROOT, target.owner].contains(&author) {
            return Ok(());
        }
        let reason = format!("user {author} wrote it, who does not own `{}`", path.display());
        Err(self.unfinished_until(ASK_ITS_AUTHOR, reason))
    }
}

fn recover_one(
    files: &Files,
    path: &Path,
    weights: &[PathBuf],
    real: &[PathBuf],
) -> Result<Option<Recovered>, CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let journal = match Journal::open(files, path)? {
        Found::Whole(journal) if journal.is_about(weights) => journal,
        Found::Whole(_) | Found::Nothing => return Ok(None),
        Found::Closed { reason, way_out } => {
            return refuse_closed(path, real, reason, way_out).map(|()| None);
        }
    };
    let targets = journal.targets(weights)?;
    // With the locks in hand, whoever was at it is gone; perhaps he has finished meanwhile, and another one begun.
    if !files.is_named(path, &journal.file).map_err(failed("examine"))? {
        return Ok(None);
    }
    let handles: Vec<&File> = targets.iter().map(|(file, _)| file).collect();
    if let Some((_, file)) =
        targets.iter().zip(&journal.header.files).find(|((_, is_the_same), _)| !is_the_same)
    {
        journal.allow_another_file(&handles, &file.name)?;
    }
    // Nobody knows what whoever was at it had been told.
    let outcome = journal.roll_back(&handles, Syncs::Doubted, Kept::Unknown)?;
    Ok(Some(Recovered { journal: path.to_owned(), label: journal.header.label.clone(), outcome }))
}

impl Journal {
    /// Somebody put another file under the name: fine if it is in one of the two states, or is the journal's file in
    /// all but its inode; else it is not touched.
    fn allow_another_file(&self, targets: &[&File], name: &str) -> Result<(), CheckpointError> {
        let stuck = |error: io::Error| self.unfinished_as(Stuck::from(error));
        let stands = standing(&self.header, targets).map_err(stuck)?;
        if stands != Standing::Between || self.is_half_way(targets).map_err(stuck)? {
            return Ok(());
        }
        let way_out = "if this is a copy of the model, open the one that it was copied from, where the next mpatch \
                       command puts the old bytes back, and copy it again; if it is another model, move the journal \
                       to the file that it was written for: it holds the only old bytes";
        let reason = format!("it was written for another file that was called `{name}` then");
        Err(self.unfinished_until(way_out, reason))
    }

    /// Whether the targets are what a kill leaves, asked of their bytes, for inodes change: where a folder was copied
    /// with its journal, restored from a backup, or lies on an overlay that was mounted again.
    ///
    /// The whole blocks of the journal have to give the tensors at their start. That says nothing about the bytes under
    /// them, which may be another model's and the only ones. So each tensor has to be at one of its two digests, which
    /// whoever has the patch can make again, but for the one that was being written, whose end is still as it was; in
    /// the order in which they are written all before that one are changed, and none behind it is.
    fn is_half_way(&self, targets: &[&File]) -> io::Result<bool> {
        let mut blocks = self.placed_blocks();
        let mut found = Vec::new();
        for (file, extent) in self.header.extents() {
            let size_bytes = extent.size_bytes;
            let (mut now, mut old) = (Vec::new(), Vec::new());
            // Of the last block that differs, the end of what does.
            let (mut first_other, mut end_of_other) = (None, 0);
            for (at, block) in blocks.by_ref().take(extent.block_count()) {
                let mut bytes = vec![0; block.size_bytes as usize];
                targets[file].read_exact_at(&mut bytes, block.offset)?;
                now.push(BlockHash::of(block.tensor_offset, &bytes));
                let Some(old_bytes) = self.old_bytes(at, block)? else {
                    old.push(BlockHash::of(block.tensor_offset, &bytes));
                    continue;
                };
                old.push(BlockHash::of(block.tensor_offset, &old_bytes));
                let differs = |index: &usize| bytes[*index] != old_bytes[*index];
                let first = (0..bytes.len()).find(differs);
                if let (Some(first), Some(last)) = (first, (0..bytes.len()).rfind(differs)) {
                    first_other = first_other.or(Some(block.tensor_offset + first as u64));
                    end_of_other = block.tensor_offset + last as u64 + 1;
                }
            }
            if digest_of_blocks(size_bytes, &old) != extent.start {
                return Ok(false);
            }
            let now = digest_of_blocks(size_bytes, &now);
            let stage = if now == extent.end {
                Stage::Written
            } else if now == extent.start {
                Stage::Waiting
            } else if first_other.is_some_and(|first| first < PAGE_BYTES as u64)
                && size_bytes - end_of_other >= PAGE_BYTES as u64
            {
                Stage::Begun
            } else {
                return Ok(false);
            };
            found.push((&extent.tensor, stage));
        }
        if found.iter().all(|(_, stage)| *stage != Stage::Begun) {
            return Ok(true);
        }
        // Tensors are written in the order of their names, whichever files they are in.
        found.sort_unstable();
        let stages = found.iter().map(|(_, stage)| *stage);
        let begun = stages.clone().filter(|stage| *stage == Stage::Begun).count();
        Ok(begun == 1 && stages.is_sorted())
    }
}

/// How far a change has come with a tensor; in this order from the first tensor to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Written,
    Begun,
    Waiting,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_under_the_name_of_a_journal_keeps_nobody_waiting() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("model.mpatch-journal");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(matches!(Journal::open(&files, &path).unwrap(), Found::Nothing));
    }
}
