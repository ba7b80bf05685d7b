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
//! from one state to the other as a whole. [`super::recover`] asks the bytes, not a log, where the checkpoint stands;
//! it can itself be interrupted anywhere and be run again.
//!
//! The bytes of a journal are in `docs/durability.md`.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::blocks::{BLOCK_BYTES, BlockHash};
use super::disk::{About, Access, Audience, File, Files, Kind, PAGE_BYTES};
use super::space::no_room;
use super::temporary::Temporary;
use super::{Action, CheckpointError, folder_of};
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

/// What there is to do about a journal that only another user can follow.
pub(super) const ASK_ITS_AUTHOR: &str = "have the user whose journal it is run an mpatch command on the model, or \
                                         remove the journal if nobody knows of a change that stopped";

/// What there is to do about one that says nothing any more.
pub(super) const PUT_BACK_AND_REMOVE: &str = "it may be damaged, and hold the only old bytes of a change that stopped: \
                                              compare the model with a copy of it, and take the journal away once the model is \
                                              whole";

/// The journal of a change whose first file is `first`.
pub(super) fn journal_of(first: &Path) -> PathBuf {
    let mut path = first.as_os_str().to_owned();
    path.push(JOURNAL_SUFFIX);
    path.into()
}

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
    /// Inside the file, and none over another: what is read for them all is no more than the file.
    fn has_extents_apart(&self) -> bool {
        let mut ranges: Vec<_> =
            self.extents.iter().map(|extent| (extent.offset, extent.size_bytes)).collect();
        ranges.sort_unstable();
        let end = ranges.iter().try_fold(0_u64, |end, (offset, size)| {
            (*offset >= end).then(|| offset.checked_add(*size)).flatten()
        });
        end.is_some_and(|end| end <= self.size_bytes)
    }

    /// Devices may be numbered otherwise after a restart, so they are recorded and not compared.
    pub(super) fn is_described_by(&self, about: &About) -> bool {
        (self.inode, self.created_ns, self.size_bytes) == (about.inode, about.created_ns, about.size_bytes)
    }
}

impl Header {
    pub(super) fn extents(&self) -> impl Iterator<Item = (usize, &Extent)> {
        let numbered = self.files.iter().enumerate();
        numbered.flat_map(|(index, file)| file.extents.iter().map(move |extent| (index, extent)))
    }

    /// Every block of old bytes, in the order in which they stand in the journal.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        self.extents().flat_map(|(file, extent)| extent.blocks(file))
    }

    /// Sizes and places that fit each other and the files; a header from the disk is believed after this.
    fn is_sound(&self) -> bool {
        let plain = |name: &str| !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        let is_sound =
            |file: &JournaledFile| plain(&file.name) && !file.extents.is_empty() && file.has_extents_apart();
        !self.files.is_empty() && self.files.iter().all(is_sound)
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

// ------------------------------------------------------------------------------------------------------ writing --

impl Journal {
    /// Makes a journal under its name, with room for the old bytes of all extents and none of them in it yet.
    ///
    /// It is for those who may read all of `targets`, whose bytes it will hold.
    pub(super) fn create(
        files: &Files,
        path: &Path,
        header: Header,
        targets: &[&File],
    ) -> Result<Self, CheckpointError> {
        let failed = |action| CheckpointError::io(path, action);
        let text = header.encode().map_err(failed(Action::Write))?;
        let temporary =
            Temporary::file(files, folder_of(path), Audience::Owner).map_err(failed(Action::Create))?;
        let (size, hash) = ((text.len() as u64).to_le_bytes(), blake3::derive_key(HEADER_CONTEXT, &text));
        let first_frame = [MAGIC, &size[..], &text, &hash].concat();
        let last_frame = [&text[..], &hash, &size, MAGIC].concat();
        let old_bytes: u64 = header.blocks().map(|block| block.journaled_size_bytes()).sum();
        let last_frame_at = first_frame_size_bytes(text.len() as u64) + old_bytes;
        let file = temporary.handle();
        give_common_mode(targets, file).map_err(failed(Action::SetMode))?;
        reserve(files, file, path, last_frame_at + last_frame.len() as u64)?;
        file.write_all_at(&first_frame, 0).map_err(failed(Action::Write))?;
        file.write_all_at(&last_frame, last_frame_at).map_err(failed(Action::Write))?;
        file.sync().map_err(failed(Action::Sync))?;
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
                way_out: None,
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
    file.allocate(size).map_err(|source| match source.kind() {
        io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull => {
            // What was reserved of it is not in the way of anything else.
            _ = file.set_size(0);
            no_room(files, path, size, source)
        }
        _ => CheckpointError::io(path, Action::ReserveRoom)(source),
    })
}

/// The rights that all of `targets` give.
fn give_common_mode(targets: &[&File], journal: &File) -> io::Result<()> {
    let made = journal.about()?;
    let common = |mode, target: &&File| io::Result::Ok(mode & target.about()?.mode_for(&made));
    journal.give_mode(&made, targets.iter().try_fold(0o666, common)?)
}

// ------------------------------------------------------------------------------------------------------ reading --

/// What has the name of a journal.
pub(super) enum Found {
    Whole(Journal),
    /// One that this user may not read, that has another layout, or is damaged: why, and what there is to do.
    Closed {
        reason: String,
        way_out: &'static str,
    },
    /// It is gone by now, or is no file.
    Nothing,
}

impl Journal {
    /// Opens what lies at `path` under a journal's name.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] where the system does not say now what it is.
    pub(super) fn open(files: &Files, path: &Path) -> Result<Found, CheckpointError> {
        let failed = |action| CheckpointError::io(path, action);
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let owner = match files.about_name(path) {
            Ok(about) if about.kind == Kind::File => about.owner,
            // Opening a pipe would wait for somebody to write to it.
            Ok(_) => return Ok(Found::Nothing),
            Err(error) if is_gone(&error) => return Ok(Found::Nothing),
            Err(error) => return Err(failed(Action::Examine)(error)),
        };
        let file = match files.open(path, Access::Read) {
            Ok(file) => file,
            Err(error) if is_gone(&error) => return Ok(Found::Nothing),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let reason = format!("it is user {owner}'s, and cannot be opened: {error}");
                return Ok(Found::Closed { reason, way_out: ASK_ITS_AUTHOR });
            }
            Err(error) => return Err(failed(Action::Open)(error)),
        };
        let size = file.about().map_err(failed(Action::Examine))?.size_bytes;
        let mut unread = None;
        for at_end in [false, true] {
            match read_header(&file, size, at_end) {
                Ok(Some((header, header_size_bytes, header_hash))) => {
                    let (files, path) = (files.clone(), path.to_owned());
                    return Ok(Found::Whole(Self {
                        files,
                        path,
                        file,
                        header,
                        header_size_bytes,
                        header_hash,
                    }));
                }
                Ok(None) => {}
                Err(error) => unread = unread.or(Some(error)),
            }
        }
        // What could not be read may be whole.
        unread.map_or(Ok(()), Err).map_err(failed(Action::Read))?;
        let (reason, way_out) = match other_layout(&file).map_err(failed(Action::Read))? {
            Some(reason) => (reason, "open it with the mpatch that wrote the journal"),
            // A true one gets its name when all of it is on disk, so no crash leaves a part of one.
            None => ("neither of its two headers is whole".to_owned(), PUT_BACK_AND_REMOVE),
        };
        Ok(Found::Closed { reason, way_out })
    }

    /// The old bytes of a block, or none where the journal itself is damaged.
    pub(super) fn old_bytes(&self, at: u64, block: Block) -> io::Result<Option<Vec<u8>>> {
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

/// In which other layout a file is a journal, in words; none if it begins as none does, or as this mpatch's do.
fn other_layout(file: &File) -> io::Result<Option<String>> {
    let start = file.read_to_end(MAGIC.len() as u64)?;
    // The last byte is the version of the layout.
    let is_other = start.len() == MAGIC.len() && start[..15] == MAGIC[..15] && start != MAGIC;
    Ok(is_other.then(|| {
        format!(
            "an mpatch whose journals have layout `{}` wrote it, and this one's have `{}`",
            start[15..].escape_ascii(),
            MAGIC[15..].escape_ascii(),
        )
    }))
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
