//! The journal of a change in place: the old bytes, until the new ones are known to be on disk.
//!
//! ```text
//! lock  ->  headers into a temporary, with room for all old bytes  ->  fsync  ->  rename to NAME.mpatch-journal
//!       ->  fsync of the folder  ->  part by part: old bytes into the journal, fsync, new bytes into the checkpoint
//!       ->  fsync  ->  journal removed  ->  fsync of the folder
//! ```
//!
//! As long as the journal lies under its name the old state can be had back, whatever happened: a kill, a power
//! cut, a full disk. One journal covers all files of a checkpoint that a change touches, so a set of shards goes
//! from one state to the other as a whole. [`recover`] asks the bytes, not a log, where the checkpoint stands; it
//! can itself be interrupted anywhere and be run again.
//!
//! The bytes of a journal are in `docs/durability.md`.

use std::io;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::blocks::{BLOCK_BYTES, BlockHash};
use super::disk::{About, Access, File, Files, Kind, Lock, Locked, PAGE_BYTES};
use super::temporary::{Temporary, sweep};
use super::{Checkpoint, CheckpointError, HASH_BLOCK_BYTES, folder_of};
use crate::digest::TensorDigest;

/// What is added to the name of the checkpoint's file, or of its index.
pub(super) const JOURNAL_SUFFIX: &str = ".mpatch-journal";
const MAGIC: &[u8; 16] = b"mpatch-journal\n3";
pub(super) const HASH_BYTES: u64 = 32;
/// Magic and size of the header.
const FRAME_BYTES: u64 = 24;
/// No header of a true journal comes near this.
const HEADER_BYTES_MAX: u64 = 64 << 20;
/// The `derive_key` context of the header's hash.
const HEADER_CONTEXT: &str = "mpatch 2026 journal header";

/// What a journal is about; written twice, at its start and at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// What was being done, in words.
    pub(super) label: String,
    /// The files that are changed, all in the journal's folder.
    pub(super) files: Vec<JournaledFile>,
}

/// One file that is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JournaledFile {
    pub(super) name: String,
    pub(super) device: u64,
    pub(super) inode: u64,
    /// When the file was made, where the file system knows: inodes are used again.
    pub(super) created_ns: Option<u64>,
    pub(super) size_bytes: u64,
    pub(super) extents: Vec<Extent>,
}

/// One tensor that is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extent {
    pub(super) tensor: String,
    pub(super) offset: u64,
    pub(super) size_bytes: u64,
    pub(super) start: TensorDigest,
    pub(super) end: TensorDigest,
}

impl JournaledFile {
    /// Devices may be numbered otherwise after a restart, so they are recorded and not compared.
    fn is_described_by(&self, about: &About) -> bool {
        (self.inode, self.created_ns, self.size_bytes) == (about.inode, about.created_ns, about.size_bytes)
    }
}

impl Header {
    pub(super) fn extents(&self) -> impl Iterator<Item = (usize, &Extent)> {
        let numbered = self.files.iter().enumerate();
        numbered.flat_map(|(index, file)| file.extents.iter().map(move |extent| (index, extent)))
    }

    /// Every block of old bytes, in the order in which they stand in the journal.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        self.extents().flat_map(|(file, extent)| extent.blocks(file))
    }

    /// Sizes and places that fit each other and the files; a header from the disk is believed after this.
    fn is_sound(&self) -> bool {
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        let inside = |file: &JournaledFile, extent: &Extent| {
            extent.offset.checked_add(extent.size_bytes).is_some_and(|end| end <= file.size_bytes)
        };
        !self.files.is_empty()
            && self.files.iter().all(|file| {
                plain(&file.name)
                    && !file.extents.is_empty()
                    && file.extents.iter().all(|extent| inside(file, extent))
            })
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec(self)?)
    }
}

impl Extent {
    pub(super) fn block_count(&self) -> usize {
        self.size_bytes.div_ceil(BLOCK_BYTES) as usize
    }

    fn blocks(&self, file: usize) -> impl Iterator<Item = Block> + use<> {
        let (offset, size) = (self.offset, self.size_bytes);
        (0..size).step_by(BLOCK_BYTES as usize).map(move |start| Block {
            file,
            offset: offset + start,
            tensor_offset: start,
            size_bytes: BLOCK_BYTES.min(size - start),
        })
    }
}

/// A part of a file whose old bytes share one hash.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) file: usize,
    pub(super) offset: u64,
    /// Where it begins within its tensor.
    pub(super) tensor_offset: u64,
    pub(super) size_bytes: u64,
}

impl Block {
    /// What its old bytes take up, with their hash, in whole pages.
    pub(super) fn journaled_size_bytes(&self) -> u64 {
        whole_pages(self.size_bytes + HASH_BYTES)
    }
}

/// What the header takes up at the start, where pages follow it.
fn first_frame_size_bytes(header_size_bytes: u64) -> u64 {
    whole_pages(FRAME_BYTES + header_size_bytes + HASH_BYTES)
}

fn whole_pages(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(PAGE_BYTES as u64)
}

/// A journal under its name.
#[derive(Debug)]
pub(super) struct Journal {
    pub(super) files: Files,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) header: Header,
    header_size_bytes: u64,
    header_hash: [u8; 32],
}

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

// ------------------------------------------------------------------------------------------------------ writing --

impl Journal {
    /// Makes a journal under its name, with room for the old bytes of all extents and none of them in it yet.
    pub(super) fn create(files: &Files, path: &Path, header: Header) -> Result<Self, CheckpointError> {
        let failed = |action| CheckpointError::io(path, action);
        let text = header.encode().map_err(failed("write"))?;
        let temporary = Temporary::file(files, folder_of(path)).map_err(failed("create"))?;
        let (size, hash) = ((text.len() as u64).to_le_bytes(), blake3::derive_key(HEADER_CONTEXT, &text));
        let first_frame = [MAGIC, &size[..], &text, &hash].concat();
        let last_frame = [&text[..], &hash, &size, MAGIC].concat();
        let old_bytes: u64 = header.blocks().map(|block| block.journaled_size_bytes()).sum();
        let last_frame_at = first_frame_size_bytes(text.len() as u64) + old_bytes;
        let file = temporary.handle();
        reserve(files, file, path, last_frame_at + last_frame.len() as u64)?;
        file.write_all_at(&first_frame, 0).map_err(failed("write"))?;
        file.write_all_at(&last_frame, last_frame_at).map_err(failed("write"))?;
        file.sync().map_err(failed("sync"))?;
        match temporary.place_new(path) {
            Ok(file) => {
                let (files, path, header_size_bytes) = (files.clone(), path.to_owned(), text.len() as u64);
                Ok(Self { files, path, file, header, header_size_bytes, header_hash: hash })
            }
            // Nothing has been changed yet, which is what the next command will find.
            Err(CheckpointError::NotDurable { source, .. }) => Err(CheckpointError::Recovery {
                path: folder_of(path).join(&header.files[0].name),
                journal: path.to_owned(),
                reason: source.to_string(),
            }),
            Err(error) => Err(error),
        }
    }

    /// Every block of old bytes and where it stands in the journal.
    pub(super) fn placed_blocks(&self) -> impl Iterator<Item = (u64, Block)> {
        let first = first_frame_size_bytes(self.header_size_bytes);
        self.header.blocks().scan(first, |at, block| {
            let place = *at;
            *at += block.journaled_size_bytes();
            Some((place, block))
        })
    }

    /// Where a file of the header lies.
    pub(super) fn target_path(&self, file: usize) -> PathBuf {
        folder_of(&self.path).join(&self.header.files[file].name)
    }
}

/// Reserves room for all of a file before any work; a full disk is told with the numbers.
pub(super) fn reserve(files: &Files, file: &File, path: &Path, size: u64) -> Result<(), CheckpointError> {
    file.allocate(size).map_err(|source| {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match files.free_bytes(folder_of(path)) {
            Ok(free_bytes) if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) => {
                CheckpointError::Space { path: path.to_owned(), needed_bytes: size, free_bytes, source }
            }
            _ => CheckpointError::io(path, "reserve room for")(source),
        }
    })
}

// ------------------------------------------------------------------------------------------------------ reading --

impl Journal {
    /// Opens the journal at `path`; none when it is gone, or neither of its headers is whole.
    fn open(files: &Files, path: &Path) -> Result<Option<Self>, CheckpointError> {
        let failed = |action| CheckpointError::io(path, action);
        let file = match files.open(path, Access::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open")(error)),
        };
        let size = file.about().map_err(failed("examine"))?.size_bytes;
        for at_end in [false, true] {
            let found = read_header(&file, size, at_end).map_err(failed("read"))?;
            if let Some((header, header_size_bytes, header_hash)) = found {
                let (files, path) = (files.clone(), path.to_owned());
                return Ok(Some(Self { files, path, file, header, header_size_bytes, header_hash }));
            }
        }
        Ok(None)
    }

    /// The old bytes of a block, or none where the journal itself is damaged.
    fn old_bytes(&self, at: u64, block: Block) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; (block.size_bytes + HASH_BYTES) as usize];
        match self.file.read_exact_at(&mut bytes, at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            outcome => outcome?,
        }
        let check = bytes.split_off(block.size_bytes as usize);
        let hash = BlockHash::of(block.tensor_offset, &bytes);
        Ok((check == self.check(at, &hash)).then_some(bytes))
    }

    /// What stands behind a block at `at`: its hash, under a key that no journal with other old bytes has.
    ///
    /// A crash may leave what the disk held before in parts that were not synced, even blocks of an earlier journal.
    pub(super) fn check(&self, at: u64, block: &BlockHash) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.header_hash);
        *hasher.update(&at.to_le_bytes()).update(&block.branch).finalize().as_bytes()
    }
}

/// One of the two headers, if it is whole.
fn read_header(file: &File, size: u64, at_end: bool) -> io::Result<Option<(Header, u64, [u8; 32])>> {
    let Some(frame_at) = (if at_end { size.checked_sub(FRAME_BYTES) } else { Some(0) }) else {
        return Ok(None);
    };
    if size < 2 * (FRAME_BYTES + HASH_BYTES) {
        return Ok(None);
    }
    let mut frame = [0; FRAME_BYTES as usize];
    file.read_exact_at(&mut frame, frame_at)?;
    let (magic, length) = if at_end {
        let (length, magic) = frame.split_at(8);
        (magic, length)
    } else {
        frame.split_at(16)
    };
    let length = u64::from_le_bytes(length.try_into().unwrap_or_default());
    if magic != MAGIC || length > HEADER_BYTES_MAX.min(size - 2 * (FRAME_BYTES + HASH_BYTES)) {
        return Ok(None);
    }
    let mut text = vec![0; (length + HASH_BYTES) as usize];
    let text_at = if at_end { frame_at - HASH_BYTES - length } else { FRAME_BYTES };
    file.read_exact_at(&mut text, text_at)?;
    let found = text.split_off(length as usize);
    let hash = blake3::derive_key(HEADER_CONTEXT, &text);
    if found != hash {
        return Ok(None);
    }
    let header = serde_json::from_slice::<Header>(&text).ok().filter(Header::is_sound);
    Ok(header.map(|header| (header, length, hash)))
}

// --------------------------------------------------------------------------------------------------- recovering --

/// Where the tensors of a journal stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Start,
    End,
    Between,
}

/// Whether all extents have the digests of one side.
fn standing(header: &Header, targets: &[&File]) -> io::Result<Standing> {
    let digests = digests(header, targets)?;
    let all = |side: fn(&Extent) -> TensorDigest| {
        header.extents().zip(&digests).all(|((_, extent), found)| side(extent) == *found)
    };
    Ok(if all(|extent| extent.end) {
        Standing::End
    } else if all(|extent| extent.start) {
        Standing::Start
    } else {
        Standing::Between
    })
}

/// What the extents hold now.
fn digests(header: &Header, targets: &[&File]) -> io::Result<Vec<TensorDigest>> {
    let extents: Vec<_> = header.extents().collect();
    extents.par_iter().map(|(file, extent)| digest(targets[*file], extent)).collect()
}

fn digest(file: &File, extent: &Extent) -> io::Result<TensorDigest> {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; extent.size_bytes.min(HASH_BLOCK_BYTES) as usize];
    let mut done = 0;
    while done < extent.size_bytes {
        let size = HASH_BLOCK_BYTES.min(extent.size_bytes - done) as usize;
        file.read_exact_at(&mut bytes[..size], extent.offset + done)?;
        hasher.update(&bytes[..size]);
        done += size as u64;
    }
    Ok(TensorDigest::finish(&hasher))
}

/// Makes what was written last, and the next reads ones of the disk.
fn settle(targets: &[&File]) -> io::Result<()> {
    targets.iter().try_for_each(|file| file.sync())?;
    targets.iter().try_for_each(|file| file.forget())
}

impl Journal {
    /// Ends a change whose bytes are all written, and were compared: syncs them, and removes the journal.
    ///
    /// # Errors
    /// With the journal still there, except for [`CheckpointError::NotDurable`].
    pub(super) fn finish(&self, targets: &[&File]) -> Result<(), CheckpointError> {
        let synced = targets.iter().try_for_each(|file| file.sync());
        synced.map_err(CheckpointError::io(&self.first_target(), "sync"))?;
        self.remove()
    }

    /// Brings the targets to one of the two states, whatever they hold now, and removes the journal.
    ///
    /// # Errors
    /// With the journal still there, except for [`CheckpointError::NotDurable`].
    pub(super) fn roll_back(&self, targets: &[&File]) -> Result<Outcome, CheckpointError> {
        let outcome = self.restore(targets).map_err(|reason| self.unfinished(reason))?;
        self.remove().map(|()| outcome)
    }

    fn restore(&self, targets: &[&File]) -> Result<Outcome, String> {
        let words = |error: io::Error| error.to_string();
        // After a sync that failed nobody knows what is on disk, so all of it is written again.
        let is_settled = settle(targets).is_ok();
        match standing(&self.header, targets).map_err(words)? {
            Standing::Start if is_settled => return Ok(Outcome::Untouched),
            Standing::End if is_settled => return Ok(Outcome::Finished),
            _ => {}
        }
        let mut damaged = 0;
        for (at, block) in self.placed_blocks() {
            match self.old_bytes(at, block).map_err(words)? {
                Some(bytes) => targets[block.file].write_all_at(&bytes, block.offset).map_err(words)?,
                // It may be one that was not kept yet, and so not overwritten; the digests will tell.
                None => damaged += 1,
            }
        }
        settle(targets).map_err(words)?;
        match standing(&self.header, targets).map_err(words)? {
            Standing::Start => Ok(Outcome::RolledBack),
            _ if damaged > 0 => Err(format!("{damaged} of its blocks are damaged")),
            _ => Err("the bytes that were put back did not come out as they were".to_owned()),
        }
    }

    fn remove(&self) -> Result<(), CheckpointError> {
        let removed = self.files.remove_file(&self.path);
        removed.map_err(|error| self.unfinished(format!("cannot remove it: {error}")))?;
        let synced = self.files.sync_folder(folder_of(&self.path));
        // Should it come back, it says no more than that everything is done.
        synced.map_err(|source| CheckpointError::NotDurable { path: self.first_target(), source })
    }

    fn unfinished(&self, reason: String) -> CheckpointError {
        CheckpointError::Recovery { path: self.first_target(), journal: self.path.clone(), reason }
    }

    fn first_target(&self) -> PathBuf {
        self.target_path(0)
    }
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
            if let Some(journal) = Journal::open(files, &path)?.filter(|journal| journal.is_about(weights)) {
                return Err(journal.unfinished("it has to be recovered first".to_owned()));
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

/// Takes the lock of a file that is about to be written.
pub(super) fn lock_exclusive(file: &File, path: &Path) -> Result<(), CheckpointError> {
    match file.lock(Lock::Exclusive).map_err(CheckpointError::io(path, "lock"))? {
        Locked::Held => Ok(()),
        Locked::Busy => Err(CheckpointError::Busy { path: path.to_owned() }),
        Locked::Unsupported => Err(CheckpointError::InPlace {
            path: path.to_owned(),
            reason: "its file system has no locks, so nothing would keep others away".to_owned(),
        }),
    }
}

fn recover_one(
    files: &Files,
    path: &Path,
    weights: &[PathBuf],
) -> Result<Option<Recovered>, CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let Some(journal) = Journal::open(files, path)? else {
        return remove_invalid(files, path).map(|()| None);
    };
    if !journal.is_about(weights) {
        return Ok(None);
    }
    let targets = journal.targets(weights)?;
    // With the locks in hand, whoever was at it is gone; perhaps he has finished meanwhile.
    if !files.is_taken(path).map_err(failed("examine"))? {
        return Ok(None);
    }
    let handles: Vec<&File> = targets.iter().map(|(file, _)| file).collect();
    if let Some((_, file)) =
        targets.iter().zip(&journal.header.files).find(|((_, is_the_same), _)| !is_the_same)
    {
        journal.allow_another_file(&handles, &file.name)?;
    }
    let outcome = journal.roll_back(&handles)?;
    Ok(Some(Recovered { journal: path.to_owned(), label: journal.header.label.clone(), outcome }))
}

/// Removes what has a journal's name and no journal in it: a true one gets its name only when all of it is on disk,
/// so nothing was changed under the cover of this one.
fn remove_invalid(files: &Files, path: &Path) -> Result<(), CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    match files.about_name(path) {
        Ok(about) if about.kind == Kind::File => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("examine")(error)),
    }
    let start = files.open(path, Access::Read).and_then(|file| file.read_to_end(MAGIC.len() as u64));
    let start = start.map_err(failed("read"))?;
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
