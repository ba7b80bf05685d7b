//! What the next command does about a change in place that stopped half-way.
//!
//! ```text
//! journals beside the weights  ->  those about them  ->  locks of their files  ->  back to one of the two states
//! ```
//!
//! A journal says which bytes go where, so it is believed only of one who could have written there himself.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::disk::{About, Access, File, Files, Lock, Locked};
use super::journal::{
    Found, JOURNAL_SUFFIX, Journal, JournaledFile, MAGIC, Outcome, Standing, Syncs, lock_exclusive, standing,
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
    for folder in real_folders(files, &weights) {
        sweep(files, &folder);
        for journal in journals_in(files, &folder)? {
            recovered.extend(recover_one(files, &journal, &weights)?);
        }
    }
    Ok(recovered)
}

/// Refuses a checkpoint with a change that stopped half-way.
pub(super) fn refuse_pending(files: &Files, weights: &[PathBuf]) -> Result<(), CheckpointError> {
    for folder in real_folders(files, weights) {
        for path in journals_in(files, &folder)? {
            match Journal::open(files, &path)? {
                Found::Whole(journal) if journal.is_about(weights) => {
                    return Err(journal.unfinished("it has to be recovered first".to_owned()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// The folders that the files really lie in; a journal lies beside the file itself, not beside a link to it.
fn real_folders(files: &Files, weights: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = Vec::new();
    for path in weights {
        let real = files.real_path(path).unwrap_or_else(|_| path.clone());
        let folder = folder_of(&real).to_owned();
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

fn journals_in(files: &Files, folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let names = match files.list(folder) {
        Ok(names) => names,
        // Where nobody may look, nobody has changed anything in place either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Vec::new(),
        Err(error) => return Err(CheckpointError::io(folder, "list")(error)),
    };
    let journals = names.iter().filter(|name| name.to_string_lossy().ends_with(JOURNAL_SUFFIX));
    Ok(journals.map(|name| folder.join(name)).collect())
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
        let is_it =
            |path: &&PathBuf| self.files.about(path).is_ok_and(|about| journaled.is_described_by(&about));
        let renamed = weights.iter().find(is_it).and_then(|path| self.files.real_path(path).ok());
        let path = renamed.unwrap_or_else(|| folder_of(&self.path).join(&journaled.name));
        let file = self
            .files
            .open(&path, Access::ReadWrite)
            .map_err(|error| self.unfinished(format!("cannot open `{}`: {error}", path.display())))?;
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
        Ok((file, journaled.is_described_by(&about)))
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
        Err(self.unfinished(format!(
            "user {author} wrote it, who does not own `{}`; have that user run a command on it, or remove it if \
             nobody knows of a change that stopped",
            path.display()
        )))
    }
}

fn recover_one(
    files: &Files,
    path: &Path,
    weights: &[PathBuf],
) -> Result<Option<Recovered>, CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let journal = match Journal::open(files, path)? {
        Found::Whole(journal) if journal.is_about(weights) => journal,
        Found::Whole(_) | Found::Nothing => return Ok(None),
        Found::Invalid(file) => return remove_invalid(files, path, &file).map(|()| None),
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
    let outcome = journal.roll_back(&handles, Syncs::Doubted)?;
    Ok(Some(Recovered { journal: path.to_owned(), label: journal.header.label.clone(), outcome }))
}

/// Removes what has a journal's name and no journal in it: a true one gets its name only when all of it is on disk,
/// so nothing was changed under the cover of this one.
///
/// Whoever else is about to remove it waits for its lock in vain, so the name cannot be given to a true one between our
/// asking and our removing.
fn remove_invalid(files: &Files, path: &Path, file: &File) -> Result<(), CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let is_ours = file.lock(Lock::Exclusive).map_err(failed("lock"))? != Locked::Busy;
    if !is_ours || !files.is_named(path, file).map_err(failed("examine"))? {
        return Ok(());
    }
    let start = file.read_to_end(MAGIC.len() as u64).map_err(failed("read"))?;
    // The last byte is the version of the layout.
    if start.len() == MAGIC.len() && start[..15] == MAGIC[..15] && start != MAGIC {
        return Err(CheckpointError::Recovery {
            path: PathBuf::from(path.to_string_lossy().trim_end_matches(JOURNAL_SUFFIX)),
            journal: path.to_owned(),
            reason: format!(
                "an mpatch whose journals have layout `{}` wrote it, and this one's have `{}`; the next command of \
                 that one puts them back",
                start[15..].escape_ascii(),
                MAGIC[15..].escape_ascii(),
            ),
        });
    }
    files.remove_file(path).map_err(failed("remove"))?;
    files.sync_folder(folder_of(path)).map_err(CheckpointError::io(folder_of(path), "sync"))
}

impl Journal {
    /// Somebody put another file under the name: fine if it is in one of the two states, else it is not touched.
    fn allow_another_file(&self, targets: &[&File], name: &str) -> Result<(), CheckpointError> {
        let stands = standing(&self.header, targets).map_err(|error| self.unfinished(error.to_string()))?;
        if stands != Standing::Between {
            return Ok(());
        }
        Err(self.unfinished(format!("it was written for another file that was called `{name}` then")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_taken_the_name_of_an_invalid_journal_is_left_alone() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("model.mpatch-journal");
        std::fs::write(&path, "never one").unwrap();
        let Found::Invalid(file) = Journal::open(&files, &path).unwrap() else { panic!("it is one") };
        let other = folder.path().join("true one");
        std::fs::write(&other, "a true one").unwrap();
        std::fs::rename(&other, &path).unwrap();
        remove_invalid(&files, &path, &file).unwrap();
        assert!(files.is_taken(&path).unwrap());
        let held = files.open(&path, Access::Read).unwrap();
        let other = files.open(&path, Access::Read).unwrap();
        held.lock(Lock::Exclusive).unwrap();
        remove_invalid(&files, &path, &other).unwrap();
        assert!(files.is_taken(&path).unwrap(), "another process is about to remove it");
        drop(held);
        remove_invalid(&files, &path, &other).unwrap();
        assert!(!files.is_taken(&path).unwrap());
    }

    #[test]
    fn a_pipe_under_the_name_of_a_journal_keeps_nobody_waiting() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("model.mpatch-journal");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(matches!(Journal::open(&files, &path).unwrap(), Found::Nothing));
    }
}
