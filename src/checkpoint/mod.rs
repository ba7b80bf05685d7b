//! Weights on disk: safetensors in one file, in shards with an index, or in a model folder.
//!
//! ```text
//! open:   headers and index, checked before anything else is believed
//! read:   positioned reads into buffers: a file that changes under us is an error and never a signal
//! write:  a copy beside the target, the touched extents written into it, synced, renamed into place
//! ```
//!
//! A [`Checkpoint`] keeps the files it opened, so that what was hashed is what is copied, whatever happens to
//! their names in the meantime. Symlinks are read through and never written through.

mod blocks;
mod companion;
mod copy;
mod create;
pub(crate) mod disk;
mod error;
mod foreign;
mod header;
mod in_place;
mod index;
mod journal;
mod keep;
mod last_step;
mod locate;
mod nearest;
mod pipeline;
#[cfg(feature = "edit")]
mod records;
pub(crate) mod recover;
mod restore;
mod source;
mod space;
mod target;
#[cfg(test)]
#[path = "../../tests/telling/mod.rs"]
mod telling;
mod temporary;
mod waiting;
#[cfg(test)]
#[path = "../../tests/weights_file/mod.rs"]
mod weights_file;
mod write;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

pub use self::companion::{COMPANION_SIZE_BYTES_MAX, TakenAlong};
pub(crate) use self::create::write_new_folder;
pub use self::create::{NewTensor, replace, write_new, write_new_private, write_over, write_safetensors};
#[cfg(test)]
pub(crate) use self::create::{write_new_folder_on, write_new_on, write_safetensors_on};
pub use self::error::{Action, CheckpointError};
pub use self::foreign::{Foreign, is_lfs_pointer};
pub use self::header::{DIMENSIONS_MAX, HEADER_SIZE_BYTES_MAX, METADATA_ENTRIES_MAX, TENSOR_NAME_BYTES_MAX};
pub(crate) use self::in_place::{Rewrite, check_in_place};
pub use self::index::{INDEX_SIZE_BYTES_MAX, SHARDS_MAX, TENSORS_MAX};
pub use self::last_step::on_last_step;
#[cfg(feature = "history")]
pub(crate) use self::last_step::tell_of_last_step;
pub use self::locate::is_index;
pub(crate) use self::nearest::nearest;
pub(crate) use self::pipeline::pipeline;
#[cfg(feature = "edit")]
pub(crate) use self::records::{RecordLog, limit_folder, read_records, touch, write_records};
pub use self::recover::{Recovered, recover, recover_each};
pub use self::restore::Outcome;
pub use self::source::FileSource;
pub use self::space::free_space_bytes;
pub use self::target::check_output;
pub use self::temporary::PassingFolder;
pub(crate) use self::write::Output;
pub use self::write::{Progress, copy};

use self::disk::{Access, File, Files, Kind, Lock, Locked};
use self::header::HEADER_SIZE_FIELD_BYTES;
use self::index::Index;
use self::locate::{Located, locate};
use crate::digest::{TensorDigest, WeightsId};
use crate::tensor::{Dtype, matrix_shape};

/// How much of a tensor is read at once while hashing.
const HASH_BLOCK_BYTES: u64 = 256 << 10;

/// One tensor and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type, as safetensors writes it (`F16`).
    pub dtype: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Index into [`Checkpoint::files`].
    pub file_index: usize,
    /// Where its first byte lies in that file.
    pub offset: u64,
}

impl TensorInfo {
    /// Its element type, where it is one that a patch can touch.
    pub fn element_dtype(&self) -> Option<Dtype> {
        Dtype::from_name(&self.dtype)
    }

    /// Its rows and columns as a patch counts them: a tensor of one dimension is one row.
    pub fn matrix_shape(&self) -> Option<[u64; 2]> {
        matrix_shape(&self.shape)
    }
}

/// One safetensors file of a checkpoint, open for reading.
#[derive(Debug)]
pub struct CheckpointFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    metadata: BTreeMap<String, String>,
}

impl CheckpointFile {
    /// The path it was opened under.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The free text in its header, e.g. `format: pt`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All of it, to be copied.
    fn contents(&self) -> copy::Source<'_> {
        copy::Source { file: &self.file, path: &self.path, size_bytes: self.size_bytes }
    }
}

/// What a checkpoint is on disk; its output is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One safetensors file, named by itself.
    File,
    /// A folder: shards with their index, or a model folder, with config and tokenizer beside the weights.
    Folder,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: PathBuf,
    layout: Layout,
    disk: Files,
    files: Vec<CheckpointFile>,
    /// The index that named the shards, where there is one.
    index: Option<(PathBuf, File)>,
    /// Set by whoever wants work on this checkpoint to end.
    stop: Option<Arc<AtomicBool>>,
    /// Called by whoever makes an output last.
    before_last_step: Option<fn()>,
    /// In bytewise order of names, each once.
    tensors: Vec<TensorInfo>,
}

impl Checkpoint {
    /// Opens a `.safetensors` file, an `.index.json` with its shards, or a model folder.
    ///
    /// A folder holds `model.safetensors`, else `model.safetensors.index.json`, else exactly one `.safetensors`
    /// file or index of such that is no adapter. Headers and index are checked in full; no tensor is read.
    ///
    /// Its files are held with a shared lock until it is dropped. Where a change in place stopped half-way, it is
    /// not opened before [`recover`] has brought that to an end.
    ///
    /// # Errors
    /// [`CheckpointError`], naming the file and what is wrong with it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_on(&Files::real(), path.as_ref())
    }

    pub(crate) fn open_on(disk: &Files, path: &Path) -> Result<Self, CheckpointError> {
        let Located { weights, layout, folder } = locate(disk, path)?;
        let (opened, index) = if is_index(&weights) {
            let (index, file) = Index::read(disk, &weights)?;
            (open_shards(disk, &weights, &index, &folder)?, Some((weights, file)))
        } else {
            (open_single(disk, &weights)?, None)
        };
        let (files, tensors) = opened;
        let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
        recover::refuse_pending(disk, &paths)?;
        let (path, disk) = (path.to_owned(), disk.clone());
        Ok(Self { path, folder, layout, disk, files, index, stop: None, before_last_step: None, tensors })
    }

    /// Ends all work on this checkpoint with [`CheckpointError::Stopped`] once `stop` is set.
    ///
    /// It is asked before each block that is read, copied or written, so what follows is what follows any error:
    /// the old state.
    #[must_use]
    pub fn stopping_on(mut self, stop: Arc<AtomicBool>) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Has `told` called just before an output made of this checkpoint gets its name, or a change in place is final:
    /// from there on the work is not stopped any more.
    #[must_use]
    pub fn before_last_step(mut self, told: fn()) -> Self {
        self.before_last_step = Some(told);
        self
    }

    fn tell_of_last_step(&self) {
        if let Some(told) = self.before_last_step {
            told();
        }
    }

    /// Whether it is time to stop.
    pub(crate) fn check_stop(&self) -> Result<(), CheckpointError> {
        match &self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => {
                Err(CheckpointError::Stopped { path: self.path.clone() })
            }
            _ => Ok(()),
        }
    }

    /// The disk it lies on.
    pub(crate) fn disk(&self) -> &Files {
        &self.disk
    }

    /// The path it was opened from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that the weights lie in, with `config.json` and the tokenizer beside them.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it is on disk.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The safetensors files, in order of their names.
    pub fn files(&self) -> &[CheckpointFile] {
        &self.files
    }

    /// All tensors, in bytewise order of their names.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], with the nearest name there is.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo, CheckpointError> {
        self.find(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
            nearest: self.nearest_name(name),
        })
    }

    /// The tensor called `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(self.place(name)?)
    }

    /// Where in [`Checkpoint::tensors`] the tensor called `name` stands, if there is one.
    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// The name of a tensor that is most like `name`, as [`nearest`] has it. Looks at all.
    pub(crate) fn nearest_name(&self, name: &str) -> Option<String> {
        nearest(name, self.tensors.iter().map(|tensor| tensor.name.as_str())).map(str::to_owned)
    }

    /// Bytes of all tensors together: what [`Checkpoint::weights_id_with`] reports progress towards.
    pub fn weights_size_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.size_bytes).sum()
    }

    /// All bytes of one tensor of this checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`], [`CheckpointError::Io`], [`CheckpointError::Stopped`].
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>, CheckpointError> {
        // The header was checked against the file's size, so this is no larger than the file.
        let mut bytes = Vec::new();
        self.make_room(tensor, &mut bytes, tensor.size_bytes as usize)?;
        self.read_at(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with the tensor's bytes from `offset` on.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], also where the tensor ends before `bytes` is full; [`CheckpointError::Stopped`].
    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        self.check_stop()?;
        let file = &self.files[tensor.file_index];
        let inside = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= tensor.size_bytes);
        let outcome = if inside {
            file.file.read_exact_at(bytes, tensor.offset + offset)
        } else {
            Err(std::io::ErrorKind::UnexpectedEof.into())
        };
        outcome.map_err(CheckpointError::io(&file.path, Action::Read))
    }

    /// Digest of one tensor, read in blocks.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Stopped`].
    pub fn digest(&self, tensor: &TensorInfo) -> Result<TensorDigest, CheckpointError> {
        self.digest_with(tensor, &|_| ())
    }

    /// As [`Checkpoint::digest`]; `progress` is told the bytes of each block as it is done.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Stopped`].
    fn digest_with(
        &self,
        tensor: &TensorInfo,
        progress: Progress<'_>,
    ) -> Result<TensorDigest, CheckpointError> {
        let hashed = hash_range(tensor.size_bytes, |bytes, offset| {
            self.read_at(tensor, offset, bytes)?;
            progress(bytes.len() as u64);
            Ok(())
        });
        hashed.map(|hasher| TensorDigest::finish(&hasher))
    }

    /// Identity of all weights, whatever their sharding.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Stopped`].
    pub fn weights_id(&self) -> Result<WeightsId, CheckpointError> {
        self.weights_id_with(&|_| ())
    }

    /// As [`Checkpoint::weights_id`]; `progress` is told the bytes of each block as it is done, from any thread.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Stopped`].
    pub fn weights_id_with(&self, progress: Progress<'_>) -> Result<WeightsId, CheckpointError> {
        let digests = self.digests_with(&Vec::from_iter(self.tensors()), progress)?;
        Ok(self.weights_id_of(&digests))
    }

    /// Digests of `tensors` in their order, several at a time.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Stopped`].
    pub fn digests_with(
        &self,
        tensors: &[&TensorInfo],
        progress: Progress<'_>,
    ) -> Result<Vec<TensorDigest>, CheckpointError> {
        // The largest first and each on its own, so that no thread is left with much when the others are done.
        let mut order = Vec::from_iter(0..tensors.len());
        order.sort_by_key(|&index| Reverse(tensors[index].size_bytes));
        let digest = |index: usize| Ok((index, self.digest_with(tensors[index], progress)?));
        let found: Result<Vec<_>, _> = order.into_par_iter().with_max_len(1).map(digest).collect();
        let mut found = found?;
        found.sort_unstable_by_key(|(index, _)| *index);
        Ok(found.into_iter().map(|(_, digest)| digest).collect())
    }

    /// The weights id that these digests, one per tensor of [`Checkpoint::tensors`], give.
    pub(crate) fn weights_id_of(&self, digests: &[TensorDigest]) -> WeightsId {
        assert_eq!(digests.len(), self.tensors.len(), "one digest per tensor");
        WeightsId::of_tensors(self.tensors.iter().zip(digests).map(|(tensor, digest)| {
            (tensor.name.as_str(), tensor.dtype.as_str(), tensor.shape.as_slice(), *digest)
        }))
    }
}

/// Hashes `size_bytes` bytes; `read` fills a block of them, from the offset that it is given.
fn hash_range<E>(
    size_bytes: u64,
    mut read: impl FnMut(&mut [u8], u64) -> Result<(), E>,
) -> Result<blake3::Hasher, E> {
    let mut hasher = blake3::Hasher::new();
    let mut block = vec![0; size_bytes.min(HASH_BLOCK_BYTES) as usize];
    let mut offset = 0;
    while offset < size_bytes {
        let bytes = &mut block[..HASH_BLOCK_BYTES.min(size_bytes - offset) as usize];
        read(bytes, offset)?;
        hasher.update(bytes);
        offset += bytes.len() as u64;
    }
    Ok(hasher)
}

/// The folder that a path lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn is_file(disk: &Files, path: &Path) -> Result<bool, CheckpointError> {
    disk.is_regular(path).map_err(CheckpointError::io(path, Action::Examine))
}

type Opened = (Vec<CheckpointFile>, Vec<TensorInfo>);

fn open_single(disk: &Files, path: &Path) -> Result<Opened, CheckpointError> {
    let (file, tensors) = open_file(disk, path, 0)?;
    Ok((vec![file], tensors))
}

fn open_shards(
    disk: &Files,
    index_path: &Path,
    index: &Index,
    folder: &Path,
) -> Result<Opened, CheckpointError> {
    let mut file_names = Vec::new();
    let mut files = Vec::new();
    let mut tensors = Vec::new();
    let mut shard_of_file = BTreeMap::new();
    for (file_index, name) in index.shards().into_iter().enumerate() {
        let (file, mut shard_tensors) = open_file(disk, &folder.join(name), file_index)?;
        let about = file.file.about().map_err(CheckpointError::io(&file.path, Action::Examine))?;
        // Thousands of names for one header would have it in memory as often, before a tensor is seen twice.
        if let Some(other) = shard_of_file.insert((about.device, about.inode), name) {
            let reason = format!("its shards {other:?} and {name:?} are one file");
            return Err(CheckpointError::Index { path: index_path.to_owned(), reason });
        }
        file_names.push(name);
        files.push(file);
        tensors.append(&mut shard_tensors);
    }
    tensors.sort_by(|left, right| left.name.cmp(&right.name));
    check_against_index(index_path, index, &file_names, &files, &tensors)?;
    Ok((files, tensors))
}

/// Each tensor stands in one shard, and where the index speaks of it, in the one it names.
fn check_against_index(
    index_path: &Path,
    index: &Index,
    file_names: &[&str],
    files: &[CheckpointFile],
    tensors: &[TensorInfo],
) -> Result<(), CheckpointError> {
    if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(CheckpointError::InTwoShards {
            tensor: pair[0].name.clone(),
            first: files[pair[0].file_index].path.clone(),
            second: files[pair[1].file_index].path.clone(),
        });
    }
    for (name, shard) in &index.weight_map {
        let found = tensors.binary_search_by(|tensor| tensor.name.cmp(name));
        if !found.is_ok_and(|place| file_names[tensors[place].file_index] == shard) {
            return Err(CheckpointError::NotInShard {
                index: index_path.to_owned(),
                tensor: name.clone(),
                shard: PathBuf::from(shard),
            });
        }
    }
    Ok(())
}

/// Opens one safetensors file and reads its header.
fn open_file(
    disk: &Files,
    path: &Path,
    file_index: usize,
) -> Result<(CheckpointFile, Vec<TensorInfo>), CheckpointError> {
    let refuse = |reason: String| CheckpointError::Header { path: path.to_owned(), reason };
    // Asked before opening: opening a named pipe would wait for a writer.
    if disk.about(path).map_err(CheckpointError::io(path, Action::Open))?.kind != Kind::File {
        return Err(refuse("it is not a regular file".to_owned()));
    }
    let file = disk.open(path, Access::Read).map_err(CheckpointError::io(path, Action::Open))?;
    // Held as long as the checkpoint is open: nobody changes it in place meanwhile.
    if file.lock(Lock::Shared).map_err(CheckpointError::io(path, Action::Lock))? == Locked::Busy {
        return Err(CheckpointError::Busy { path: path.to_owned() });
    }
    let size_bytes = file.about().map_err(CheckpointError::io(path, Action::Examine))?.size_bytes;
    if size_bytes < HEADER_SIZE_FIELD_BYTES {
        return Err(refuse(format!("it has {size_bytes} bytes, too few for a header")));
    }
    let mut header_size = [0; HEADER_SIZE_FIELD_BYTES as usize];
    file.read_exact_at(&mut header_size, 0).map_err(CheckpointError::io(path, Action::Read))?;
    if let Some(found) = Foreign::of(header_size) {
        return Err(CheckpointError::Foreign { path: path.to_owned(), found });
    }
    let header_size = u64::from_le_bytes(header_size);
    header::check_size(header_size, size_bytes).map_err(refuse)?;
    let mut text = vec![0; header_size as usize];
    file.read_exact_at(&mut text, HEADER_SIZE_FIELD_BYTES)
        .map_err(CheckpointError::io(path, Action::Read))?;
    let data_start = HEADER_SIZE_FIELD_BYTES + header_size;
    let header = header::parse(&text, size_bytes - data_start).map_err(refuse)?;
    // The text may be large, and so may be what follows.
    drop(text);
    let tensors = tensors_of(header.entries, file_index, data_start);
    Ok((CheckpointFile { path: path.to_owned(), file, size_bytes, metadata: header.metadata }, tensors))
}

fn tensors_of(entries: Vec<header::Entry>, file_index: usize, data_start: u64) -> Vec<TensorInfo> {
    let tensor = |entry: header::Entry| TensorInfo {
        name: entry.name,
        dtype: entry.dtype.to_string(),
        shape: entry.shape,
        size_bytes: entry.size_bytes,
        file_index,
        offset: data_start + entry.offset,
    };
    entries.into_iter().map(tensor).collect()
}

/// The tensors of a safetensors file whose bytes are at hand: for fuzzers and vectors.
#[doc(hidden)]
pub fn tensors_of_bytes(file: &[u8]) -> Result<Vec<TensorInfo>, String> {
    let (size, rest) = file.split_first_chunk().ok_or("too few bytes for a header")?;
    let header_size = u64::from_le_bytes(*size);
    header::check_size(header_size, file.len() as u64)?;
    let (text, data) = rest.split_at(header_size as usize);
    let header = header::parse(text, data.len() as u64)?;
    Ok(tensors_of(header.entries, 0, HEADER_SIZE_FIELD_BYTES + header_size))
}

/// The tensors of an index of shards, and the file of each: for fuzzers and vectors.
#[doc(hidden)]
pub fn shards_of_bytes(index: &[u8]) -> Result<BTreeMap<String, String>, String> {
    index::parse(index).map(|index| index.weight_map)
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::weights_file::file_of;
    use super::*;

    /// The bytes of a safetensors file of F32 tensors `(name, values)`.
    pub(crate) fn file_bytes(tensors: &[(&str, &[f32])]) -> Vec<u8> {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        file_of(tensors.iter().map(|(name, values)| (*name, "F32", [values.len()], bytes(values))))
    }

    pub(crate) fn write(folder: &tempfile::TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Two shards, `b` before `a`, and an index with this weight map.
    pub(crate) fn sharded(weight_map: serde_json::Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        write(&folder, "one.safetensors", file_bytes(&[("b", &[1.0, 2.0])]));
        write(&folder, "two.safetensors", file_bytes(&[("a", &[3.0]), ("c", &[4.0])]));
        let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
        write(&folder, "model.safetensors.index.json", index.to_string());
        folder
    }

    fn message(path: &Path) -> String {
        Checkpoint::open(path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read_tensor_by_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, "x.safetensors", file_bytes(&[("b", &[1.0, 2.0]), ("a", &[3.0])]));
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.layout(), Layout::File);
        assert_eq!(checkpoint.folder(), folder.path());
        let names: Vec<_> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let tensor = checkpoint.tensor("b").unwrap();
        let bytes = checkpoint.read(tensor).unwrap();
        assert_eq!(bytes, [1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat());
        assert_eq!(checkpoint.digest(tensor).unwrap(), TensorDigest::of(&bytes));
        let mut second = [0; 4];
        checkpoint.read_at(tensor, 4, &mut second).unwrap();
        assert_eq!(second, 2.0_f32.to_le_bytes());
        assert!(checkpoint.read_at(tensor, 5, &mut second).is_err());
    }

    #[test]
    fn the_weights_id_does_not_depend_on_the_sharding() {
        let map = serde_json::json!({"a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors"});
        let shards = sharded(map);
        let single = tempfile::tempdir().unwrap();
        let all: [(&str, &[f32]); 3] = [("a", &[3.0]), ("b", &[1.0, 2.0]), ("c", &[4.0])];
        let path = write(&single, "only.safetensors", file_bytes(&all));
        let id = Checkpoint::open(&path).unwrap().weights_id().unwrap();
        let read = std::sync::atomic::AtomicU64::new(0);
        let from_folder = Checkpoint::open(shards.path()).unwrap();
        let add = |bytes| _ = read.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(from_folder.weights_id_with(&add).unwrap(), id);
        assert_eq!(read.into_inner(), from_folder.weights_size_bytes());
        assert_eq!(from_folder.layout(), Layout::Folder);
        let from_index = Checkpoint::open(shards.path().join("model.safetensors.index.json")).unwrap();
        assert_eq!(from_index.layout(), Layout::Folder);
        assert_eq!(from_index.weights_id().unwrap(), id);
        assert_eq!(Checkpoint::open(single.path()).unwrap().weights_id().unwrap(), id);
    }

    #[test]
    fn a_missing_tensor_is_named_with_its_nearest_relative() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, "x.safetensors", file_bytes(&[("h.3.mlp.fc_out.weight", &[1.0])]));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let found = checkpoint.tensor("transformer.h.3.mlp.fc_out.weight").unwrap_err().to_string();
        let expected = format!(
            "`{}` holds no tensor `transformer.h.3.mlp.fc_out.weight`; the nearest name is \
             `h.3.mlp.fc_out.weight`",
            path.display()
        );
        assert_eq!(found, expected);
        assert!(checkpoint.tensor("q").unwrap_err().to_string().ends_with("no tensor `q`"));
    }

    #[test]
    fn an_index_and_its_shards_must_agree() {
        let folder = sharded(serde_json::json!({"a": "one.safetensors", "c": "two.safetensors"}));
        let found = message(folder.path());
        assert!(found.ends_with("places tensor `a` in `one.safetensors`, which does not hold it"), "{found}");
        let folder = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        write(&folder, "one.safetensors", file_bytes(&[("a", &[1.0]), ("b", &[1.0])]));
        let found = message(folder.path());
        assert!(found.starts_with("tensor `a` stands in two shards: `"), "{found}");
        assert!(found.contains("one.safetensors") && found.contains("two.safetensors"), "{found}");
        let folder = sharded(serde_json::json!({"a": "../two.safetensors"}));
        assert!(message(folder.path()).ends_with("shard \"../two.safetensors\" is not a plain file name"));
    }

    #[test]
    fn one_file_is_not_two_shards() {
        let folder = sharded(
            serde_json::json!({"a": "two.safetensors", "b": "one.safetensors", "c": "three.safetensors"}),
        );
        std::os::unix::fs::symlink("two.safetensors", folder.path().join("three.safetensors")).unwrap();
        let found = message(folder.path());
        let expected = "its shards \"three.safetensors\" and \"two.safetensors\" are one file";
        assert!(found.ends_with(expected), "{found}");
    }

    #[test]
    fn every_truncation_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = file_bytes(&[("a", &[1.0, 2.0]), ("b", &[3.0])]);
        for size in 0..bytes.len() {
            let path = write(&folder, "x.safetensors", &bytes[..size]);
            let found = message(&path);
            assert!(found.contains("x.safetensors` is not a valid safetensors file: "), "{size}: {found}");
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_said_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(message(folder.path()).contains("and 0 other `.safetensors` files"));
        assert!(message(&folder.path().join("no")).starts_with("cannot open `"));
        for name in ["p.safetensors", "q.safetensors"] {
            write(&folder, name, file_bytes(&[("a", &[1.0])]));
        }
        assert!(message(folder.path()).contains("and 2 other `.safetensors` files"));
        write(&folder, "model.safetensors", file_bytes(&[("a", &[1.0])]));
        assert!(Checkpoint::open(folder.path()).is_ok());
    }
}
