//! Writing a new safetensors file, tensor after tensor, so that none but the current one is in memory.
//!
//! The safetensors crate's own writer neither syncs nor keeps what it replaces safe; here the file appears under
//! its name only when all of it is on disk.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::disk::{Audience, Files, Sink};
use super::last_step::tell_of_last_step;
use super::temporary::Temporary;
use super::{Action, CheckpointError, folder_of};
use crate::tensor::Dtype;

/// A tensor to be written: its name, type and shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
}

impl NewTensor {
    fn size_bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * self.dtype.size_bytes() as u64
    }
}

/// Writes a safetensors file with `tensors` in their order and `metadata` in its header.
///
/// `bytes(index, sink)` writes the little-endian bytes of one tensor. An existing file is replaced in one step.
///
/// # Errors
/// [`CheckpointError::Io`]; the old file, if there was one, is then still there. [`CheckpointError::NotDurable`].
pub fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[NewTensor],
    bytes: impl FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    write_safetensors_on(&Files::real(), path, metadata, tensors, bytes)
}

pub(crate) fn write_safetensors_on(
    files: &Files,
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[NewTensor],
    mut bytes: impl FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    let header = header(metadata, tensors);
    let temporary = written_beside(files, path, |sink| {
        sink.write_all(&(header.len() as u64).to_le_bytes())?;
        sink.write_all(&header)?;
        (0..tensors.len()).try_for_each(|index| bytes(index, sink))
    })?;
    temporary.place_over(path)
}

/// Writes `bytes` as a whole new file that must not exist yet.
///
/// # Errors
/// [`CheckpointError::OutputExists`] or [`CheckpointError::Io`]; no part of a file is left behind.
/// [`CheckpointError::NotDurable`], where it is there.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    tell_of_last_step();
    write_new_on(&Files::real(), path, bytes)
}

pub(crate) fn write_new_on(files: &Files, path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let temporary = written_beside(files, path, |sink| sink.write_all(bytes))?;
    temporary.place_new(path).map(drop)
}

/// Writes `bytes` as a whole file, which replaces one of its name in one step.
///
/// # Errors
/// [`CheckpointError::Io`]; the old file, if there was one, is then still there. [`CheckpointError::NotDurable`].
pub fn write_over(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    written_beside(&Files::real(), path, |sink| sink.write_all(bytes))?.place_over(path)
}

/// Writes `bytes` as a whole file that only its owner can read; one that is there is replaced in one step and keeps its
/// mode, and a link its target.
///
/// # Errors
/// [`CheckpointError::Io`]; the old file, if there was one, is then still there. [`CheckpointError::NotDurable`].
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    tell_of_last_step();
    let files = Files::real();
    let target = files.real_path(path).unwrap_or_else(|_| path.to_owned());
    let temporary = written_for(Audience::Owner, &files, &target, |sink| sink.write_all(bytes))?;
    if let Ok(old) = files.about(&target) {
        let file = temporary.handle();
        let moded = file.about().and_then(|made| file.give_mode(&made, old.mode_for(&made)));
        moded.map_err(CheckpointError::io(path, Action::SetMode))?;
    }
    temporary.place_over(&target)
}

/// As [`write_new`], of a file that only its owner can read.
///
/// # Errors
/// [`CheckpointError::OutputExists`] or [`CheckpointError::Io`]; no part of a file is left behind.
/// [`CheckpointError::NotDurable`], where it is there.
pub fn write_new_private(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    tell_of_last_step();
    let temporary = written_for(Audience::Owner, &Files::real(), path, |sink| sink.write_all(bytes))?;
    temporary.place_new(path).map(drop)
}

/// Has `fill` write files into a folder that must not exist yet; it gets its name when all of them are there.
///
/// # Errors
/// That of `fill`, [`CheckpointError::OutputExists`] or [`CheckpointError::Io`]; no part of a folder is left behind.
/// [`CheckpointError::NotDurable`], where it is there.
pub fn write_new_folder(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    tell_of_last_step();
    write_new_folder_on(&Files::real(), path, fill)
}

pub(crate) fn write_new_folder_on(
    files: &Files,
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let parent = folder_of(path);
    let temporary = Temporary::folder(files, parent, Audience::All)
        .map_err(CheckpointError::io(parent, Action::CreateFolder))?;
    fill(temporary.path()).map_err(|error| error.by_its_name(temporary.path(), path))?;
    files.sync_folder(temporary.path()).map_err(CheckpointError::io(path, Action::Sync))?;
    temporary.place_new(path).map(drop)
}

/// A temporary file in the folder of `path`, on disk to its last byte; it goes away unless it is put in place.
///
/// It may be read by all whom the process's umask does not keep out, as files are.
pub(super) fn written_beside(
    files: &Files,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<Temporary, CheckpointError> {
    written_for(Audience::All, files, path, write)
}

/// The same, for whom it says.
fn written_for(
    audience: Audience,
    files: &Files,
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<Temporary, CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let temporary = Temporary::file(files, folder_of(path), audience);
    let temporary = temporary.map_err(failed(Action::CreateTemporary))?;
    let file = temporary.handle();
    let mut sink = BufWriter::new(Sink::new(file));
    write(&mut sink).and_then(|()| sink.flush()).map_err(failed(Action::Write))?;
    drop(sink);
    file.sync().map_err(failed(Action::Sync))?;
    Ok(temporary)
}

/// The JSON header, padded with spaces so that the first tensor starts at a multiple of 8 bytes.
fn header(metadata: &BTreeMap<String, String>, tensors: &[NewTensor]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".to_owned(), json!(metadata));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.size_bytes();
        let entry =
            json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end]});
        entries.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    text
}
