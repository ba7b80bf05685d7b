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

use super::disk::{About, Access, File, Files};
use super::journal::{
    ASK_ITS_AUTHOR, Found, JOURNAL_SUFFIX, Journal, JournaledFile, Kept, Outcome, Standing, Syncs,
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
    /// Somebody put another file under the name: fine if it is in one of the two states, else it is not touched.
    fn allow_another_file(&self, targets: &[&File], name: &str) -> Result<(), CheckpointError> {
        let stands = standing(&self.header, targets).map_err(|error| self.unfinished(error.to_string()))?;
        if stands != Standing::Between {
            return Ok(());
        }
        let way_out = "if this is a copy of the model, open the one that it was copied from, where the next mpatch \
                       command puts the old bytes back, and copy it again; if it is another model, remove the journal";
        let reason = format!("it was written for another file that was called `{name}` then");
        Err(self.unfinished_until(way_out, reason))
    }
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
