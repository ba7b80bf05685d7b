//! Writing a new safetensors file, tensor after tensor, so that none but the current one is in memory.
//!
//! The safetensors crate's own writer neither syncs nor keeps what it replaces safe; here the file appears under
//! its name only when all of it is on disk.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::CheckpointError;
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
/// [`CheckpointError::Io`]; the old file, if there was one, is then still there.
pub fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[NewTensor],
    mut bytes: impl FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    let header = header(metadata, tensors);
    let file = written_beside(path, |sink| {
        sink.write_all(&(header.len() as u64).to_le_bytes())?;
        sink.write_all(&header)?;
        (0..tensors.len()).try_for_each(|index| bytes(index, sink))
    })?;
    file.persist(path).map_err(|error| CheckpointError::io(path, "put in place")(error.error))?;
    sync_folder(folder_of(path))
}

/// Writes `bytes` as a whole new file that must not exist yet.
///
/// # Errors
/// [`CheckpointError::OutputExists`] or [`CheckpointError::Io`]; no part of a file is left behind.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let file = written_beside(path, |sink| sink.write_all(bytes))?;
    match file.persist_noclobber(path) {
        Ok(_) => sync_folder(folder_of(path)),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(CheckpointError::OutputExists { path: path.to_owned() })
        }
        Err(error) => Err(CheckpointError::io(path, "put in place")(error.error)),
    }
}

/// A temporary file in the folder of `path`, on disk to its last byte; it goes away unless it is put in place.
pub(super) fn written_beside(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<NamedTempFile, CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let mut file = tempfile::Builder::new()
        .prefix(".mpatch-")
        .tempfile_in(folder_of(path))
        .map_err(failed("create a temporary file for"))?;
    let mut sink = BufWriter::new(file.as_file_mut());
    write(&mut sink).and_then(|()| sink.flush()).map_err(failed("write"))?;
    drop(sink);
    // Temporary files are private to their maker; what they become is an ordinary file.
    let mode = Permissions::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(failed("set the mode of"))?;
    file.as_file().sync_all().map_err(failed("sync"))?;
    Ok(file)
}

pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A rename lasts only once its folder is on disk.
pub(super) fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    let opened = std::fs::File::open(folder).map_err(CheckpointError::io(folder, "open"))?;
    opened.sync_all().map_err(CheckpointError::io(folder, "sync"))
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
