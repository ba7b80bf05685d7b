//! Bringing what a journal is about to one of its two states, whatever it holds now.
//!
//! ```text
//! sync  ->  where do the tensors stand?  at one side   written once more, where a sync may have failed
//!                                        in between    old bytes out of the journal, sync, compared
//!       ->  journal removed  ->  fsync of the folder
//! ```

use std::io;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;

use super::blocks::{BlockHash, digest_of_blocks};
use super::disk::File;
use super::journal::{Extent, Header, Journal, PUT_BACK_AND_REMOVE};
use super::{Action, CheckpointError, folder_of, hash_range};
use crate::digest::TensorDigest;

/// What there is to do where the old bytes find no room.
const FREE_ROOM: &str = "free room on the model's file system, and leave the journal: the next mpatch command on the \
                         model then brings the change to its end";

/// What there is to do where the shell that runs the command limits the size of files.
const LIFT_THE_LIMIT: &str = "lift the limit that `ulimit -f` tells, and leave the journal: the next mpatch command on \
                              the model then brings the change to its end";

/// What there is to do for one who may not write to the model.
const ASK_A_WRITER: &str = "have someone who may write to the model run any mpatch command on it";

/// What there is to do where one of the two states is reached, and only the journal is still there.
const IS_COMPLETE: &str =
    "the change is complete: the next mpatch command that opens the model removes the journal";
const IS_BACK: &str =
    "the old bytes are there: the next mpatch command that opens the model removes the journal";

/// The same where the new bytes are there, and may not be on the disk.
const AT_END: &str = "the new bytes are there: the next mpatch command that opens the model writes them once more, or \
                      puts the old ones back";

/// The same where nobody knows what is there.
const EITHER_WAY: &str = "let no other program read it meanwhile; the next mpatch command that opens it ends the change, \
                          or puts the old bytes back";

/// How a change that had stopped half-way was brought to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing had been changed yet.
    Untouched,
    /// The old bytes were put back.
    RolledBack,
    /// Everything had been changed already.
    Finished,
}

/// Which of its two states a change is brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The new one if all of it is there, else the old one.
    Either,
    /// The old one, since whoever made the change takes it back.
    Old,
}

/// A change that has come to its end, and whose journal has no name any more.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) outcome: Outcome,
    /// Whether that lasts. Should a power cut bring the journal back, it says no more than that everything is done.
    pub(super) removal: io::Result<()>,
}

/// Where the tensors of a journal stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    Start,
    End,
    Between,
}

/// Whether all extents have the digests of one side, in those files that `is_asked` takes by their numbers.
pub(super) fn position(
    header: &Header,
    targets: &[&File],
    is_asked: impl Fn(usize) -> bool,
) -> io::Result<Position> {
    let extents: Vec<_> = header.extents().filter(|(file, _)| is_asked(*file)).collect();
    let digests = digests(&extents, targets)?;
    let all = |side: fn(&Extent) -> TensorDigest| {
        extents.iter().zip(&digests).all(|((_, extent), found)| side(extent) == *found)
    };
    Ok(if all(|extent| extent.end) {
        Position::End
    } else if all(|extent| extent.start) {
        Position::Start
    } else {
        Position::Between
    })
}

/// What the extents hold now.
fn digests(extents: &[(usize, &Extent)], targets: &[&File]) -> io::Result<Vec<TensorDigest>> {
    extents.par_iter().map(|(file, extent)| digest(targets[*file], extent)).collect()
}

fn digest(file: &File, extent: &Extent) -> io::Result<TensorDigest> {
    let read = |bytes: &mut [u8], offset| file.read_exact_at(bytes, extent.offset + offset);
    hash_range(extent.size_bytes, read).map(|hasher| TensorDigest::finish(&hasher))
}

/// Makes what was written last, and the next reads ones of the disk.
fn settle(targets: &[&File]) -> io::Result<()> {
    targets.iter().try_for_each(|file| file.sync())?;
    targets.iter().try_for_each(|file| file.forget())
}

/// Whether a sync that succeeds says that the disk holds what the system has in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Syncs {
    /// None failed since the first byte was changed.
    AllWell,
    /// One failed, or may have: systems tell of it once, take what they lost for written, and where another program
    /// has it mapped go on showing it. Only what is written anew is on the disk after the next sync.
    Doubted,
}

/// How much of the old bytes, in the journal's order, is known to have been kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Whoever kept them is gone: what is in the journal as it was written, and every tensor has to be at its start.
    Unknown,
    /// So many bytes, and nothing was written over any other. A tensor of which some are missing may never have been at
    /// its start: another program has written to it since it was surveyed, and what that wrote is left.
    Bytes(u64),
}

impl Kept {
    /// Whether what ends at `end` is known to be kept.
    fn has(self, end: u64) -> bool {
        matches!(self, Self::Bytes(bytes) if end <= bytes)
    }

    /// Whether what ends at `end` is known not to be, or not as a whole.
    fn is_without(self, end: u64) -> bool {
        matches!(self, Self::Bytes(bytes) if end > bytes)
    }
}

/// Why old bytes are not back, and what there is to do first, if anything.
#[derive(Debug)]
pub(super) struct Stuck {
    reason: String,
    way_out: Option<&'static str>,
}

impl Stuck {
    /// What the system said when it was to do something.
    pub(super) fn at(action: &str, error: &io::Error) -> Self {
        Self { reason: format!("{action}: {error}"), way_out: way_out_of(error) }
    }

    /// What there is to do where nothing has to be done first.
    fn or_then(self, way_out: &'static str) -> Self {
        Self { way_out: self.way_out.or(Some(way_out)), ..self }
    }
}

impl From<String> for Stuck {
    fn from(reason: String) -> Self {
        Self { reason, way_out: None }
    }
}

impl From<io::Error> for Stuck {
    fn from(error: io::Error) -> Self {
        Self { reason: error.to_string(), way_out: way_out_of(&error) }
    }
}

fn way_out_of(error: &io::Error) -> Option<&'static str> {
    use io::ErrorKind::{FileTooLarge, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded => Some(FREE_ROOM),
        FileTooLarge => Some(LIFT_THE_LIMIT),
        PermissionDenied | ReadOnlyFilesystem => Some(ASK_A_WRITER),
        _ => None,
    }
}

impl Journal {
    /// Makes the new bytes last.
    pub(super) fn sync(&self, targets: &[&File]) -> Result<(), CheckpointError> {
        let synced = targets.iter().try_for_each(|file| file.sync());
        synced.map_err(CheckpointError::io(&self.first_target(), Action::Sync))
    }

    /// Brings the targets to `goal`, whatever they hold now, and removes the journal.
    ///
    /// Each set has all files of the header, in its order; there are several where a file has a copy, which comes to
    /// the same state.
    ///
    /// # Errors
    /// [`CheckpointError::Recovery`], with the journal still there.
    pub(super) fn roll_back(
        &self,
        sets: &[Vec<&File>],
        goal: Goal,
        syncs: Syncs,
        kept: Kept,
    ) -> Result<Ended, CheckpointError> {
        let outcome = self.restore(sets, goal, syncs, kept).map_err(|stuck| self.unfinished_as(stuck))?;
        self.remove(outcome)
    }

    fn restore(&self, sets: &[Vec<&File>], goal: Goal, syncs: Syncs, kept: Kept) -> Result<Outcome, Stuck> {
        let is_settled = sets.iter().all(|targets| settle(targets).is_ok()) && syncs == Syncs::AllWell;
        let stands = self.common_position(sets).map_err(|error| Stuck::from(error).or_then(EITHER_WAY))?;
        match (stands, goal) {
            (Position::Start, _) => self.confirm(sets, stands, is_settled).map(|()| Outcome::Untouched),
            (Position::End, Goal::Either) => match self.confirm(sets, stands, is_settled) {
                Ok(()) => Ok(Outcome::Finished),
                Err(stuck) => Err(stuck.or_then(AT_END)),
            },
            (Position::End, Goal::Old) => {
                self.put_all_back(sets, is_settled, kept).map_err(|stuck| stuck.or_then(EITHER_WAY))
            }
            (Position::Between, _) => self.put_all_back(sets, is_settled, kept),
        }
    }

    /// Makes what is there last; written once more where the targets are not settled.
    fn confirm(&self, sets: &[Vec<&File>], stands: Position, is_settled: bool) -> Result<(), Stuck> {
        if is_settled {
            return Ok(());
        }
        sets.iter().try_for_each(|targets| self.write_again(targets))?;
        match self.common_position(sets)? == stands {
            true => Ok(()),
            false => Err(Stuck::from("what was written again did not come out as it was".to_owned())),
        }
    }

    fn put_all_back(&self, sets: &[Vec<&File>], is_settled: bool, kept: Kept) -> Result<Outcome, Stuck> {
        sets.iter().try_for_each(|targets| self.check_old_bytes(targets, kept))?;
        sets.iter().try_for_each(|targets| self.put_back(targets, is_settled, kept))?;
        Ok(Outcome::RolledBack)
    }

    /// Where all sets stand, if that is on one side.
    fn common_position(&self, sets: &[Vec<&File>]) -> io::Result<Position> {
        let found = sets.iter().map(|targets| position(&self.header, targets, |_| true));
        let found = found.collect::<io::Result<Vec<_>>>()?;
        let first = found.first().filter(|first| found.iter().all(|other| other == *first));
        Ok(first.copied().unwrap_or(Position::Between))
    }

    /// Writes what the system shows, so that the disk gets it.
    fn write_again(&self, targets: &[&File]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for block in self.header.blocks() {
            bytes.resize(block.size_bytes as usize, 0);
            targets[block.file].read_exact_at(&mut bytes, block.offset)?;
            targets[block.file].write_all_at(&bytes, block.offset)?;
        }
        settle(targets)
    }

    /// Refuses to begin what could not be brought to an end: the whole blocks have to give the old state.
    ///
    /// One that is not whole may not have been kept yet, and so not been overwritten.
    fn check_old_bytes(&self, targets: &[&File], kept: Kept) -> Result<(), Stuck> {
        let mut blocks = self.placed_blocks();
        let (mut damaged, mut is_whole, mut end) = (0, true, 0);
        for (file, extent) in self.header.extents() {
            let mut hashes = Vec::with_capacity(extent.block_count());
            for (at, block) in blocks.by_ref().take(extent.block_count()) {
                end += block.size_bytes;
                let bytes = match self.old_bytes(at, block)? {
                    Some(bytes) => bytes,
                    None => {
                        (damaged, is_whole) = (damaged + 1, is_whole && !kept.has(end));
                        let mut bytes = vec![0; block.size_bytes as usize];
                        targets[file].read_exact_at(&mut bytes, block.offset)?;
                        bytes
                    }
                };
                hashes.push(BlockHash::of(block.tensor_offset, &bytes));
            }
            let is_old = digest_of_blocks(extent.size_bytes, &hashes) == extent.start;
            is_whole &= is_old || kept.is_without(end);
        }
        let reason = match damaged {
            _ if is_whole => return Ok(()),
            0 => "what it holds is not the old state".to_owned(),
            _ => format!("{damaged} of its blocks are damaged"),
        };
        Err(Stuck { reason, way_out: Some(PUT_BACK_AND_REMOVE) })
    }

    /// Writes the old bytes over what differs from them; where the targets are not settled over all, since what the
    /// system shows may not be on the disk then.
    ///
    /// What was never overwritten may have no room of its own on a full disk, where it is a hole, or shared.
    fn put_back(&self, targets: &[&File], is_settled: bool, kept: Kept) -> Result<(), Stuck> {
        let mut found = Vec::new();
        for (at, block) in self.placed_blocks() {
            // One that was not kept has not been overwritten: that was checked.
            let Some(bytes) = self.old_bytes(at, block)? else { continue };
            found.resize(bytes.len(), 0);
            targets[block.file].read_exact_at(&mut found, block.offset)?;
            if !is_settled || found != bytes {
                targets[block.file].write_all_at(&bytes, block.offset)?;
            }
        }
        settle(targets)?;
        let mut end = 0;
        let extents: Vec<_> = self.header.extents().collect();
        let found = digests(&extents, targets)?;
        let is_back = extents.iter().zip(found).all(|((_, extent), found)| {
            end += extent.size_bytes;
            found == extent.start || kept.is_without(end)
        });
        match is_back {
            true => Ok(()),
            false => {
                Err(Stuck::from("the bytes that were put back did not come out as they were".to_owned()))
            }
        }
    }

    /// Takes it away, when the targets are in one of the two states for good.
    ///
    /// # Errors
    /// [`CheckpointError::Recovery`], with the journal still there.
    pub(super) fn remove(&self, outcome: Outcome) -> Result<Ended, CheckpointError> {
        let removed = self.files.remove_file(&self.path);
        removed.map_err(|error| {
            let without_it = if outcome == Outcome::Finished { IS_COMPLETE } else { IS_BACK };
            self.unfinished_as(Stuck::at("cannot remove it", &error).or_then(without_it))
        })?;
        Ok(Ended { outcome, removal: self.files.sync_folder(folder_of(&self.path)) })
    }

    pub(super) fn unfinished(&self, reason: String) -> CheckpointError {
        let (path, journal) = (self.first_target(), self.path.clone());
        CheckpointError::Recovery { path, journal, reason, way_out: None }
    }

    /// The same where no command can do it before its user has done something.
    pub(super) fn unfinished_until(&self, way_out: &'static str, reason: String) -> CheckpointError {
        let (path, journal) = (self.first_target(), self.path.clone());
        CheckpointError::Recovery { path, journal, reason, way_out: Some(way_out) }
    }

    pub(super) fn unfinished_as(&self, stuck: Stuck) -> CheckpointError {
        let (path, journal) = (self.first_target(), self.path.clone());
        CheckpointError::Recovery { path, journal, reason: stuck.reason, way_out: stuck.way_out }
    }

    fn first_target(&self) -> PathBuf {
        self.target_path(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn what_somebody_has_to_do_first_is_told_before_what_the_next_command_does() {
        for (kind, expected) in [
            (ErrorKind::StorageFull, FREE_ROOM),
            (ErrorKind::QuotaExceeded, FREE_ROOM),
            (ErrorKind::FileTooLarge, LIFT_THE_LIMIT),
            (ErrorKind::PermissionDenied, ASK_A_WRITER),
            (ErrorKind::ReadOnlyFilesystem, ASK_A_WRITER),
            (ErrorKind::NotFound, AT_END),
        ] {
            for stuck in [Stuck::from(io::Error::from(kind)), Stuck::at("cannot", &kind.into())] {
                assert_eq!(stuck.or_then(AT_END).way_out, Some(expected), "{kind:?}");
            }
        }
    }
}
