//! Writing a new safetensors file, tensor after tensor, so that none but the current one is in memory.
//!
//! The safetensors crate's own writer neither syncs nor keeps what it replaces safe; here the file appears under
//! its name only when all of it is on disk.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

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
pub fn write_safetensors<E: From<CheckpointError>>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[NewTensor],
    mut bytes: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |action| CheckpointError::io(path, action);
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".mpatch-")
        .tempfile_in(folder)
        .map_err(failed("create a temporary file for"))?;
    let header = header(metadata, tensors);
    let mut sink = Sink { writer: std::io::BufWriter::new(file.as_file_mut()), failure: None };
    sink.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed("write"))?;
    sink.write_all(&header).map_err(failed("write"))?;
    for index in 0..tensors.len() {
        bytes(index, &mut sink).map_err(|error| match sink.failure.take() {
            Some(failure) => failed("write")(failure).into(),
            None => error,
        })?;
    }
    sink.flush().map_err(failed("write"))?;
    drop(sink);
    publish(file, path, folder)?;
    Ok(())
}

/// Keeps the system's own words for a failed write, whatever the caller in between makes of them.
struct Sink<W> {
    writer: W,
    failure: Option<std::io::Error>,
}

impl<W: Write> Write for Sink<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes).map_err(|error| {
            let copy = match error.raw_os_error() {
                Some(code) => std::io::Error::from_raw_os_error(code),
                None => error.kind().into(),
            };
            self.failure = Some(error);
            copy
        })
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

/// Writes `bytes` as a whole new file that must not exist yet.
///
/// # Errors
/// [`CheckpointError::OutputExists`] or [`CheckpointError::Io`]; no part of a file is left behind.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".mpatch-")
        .tempfile_in(folder)
        .map_err(failed("create a temporary file for"))?;
    file.write_all(bytes).map_err(failed("write"))?;
    readable_as_usual(&file, path)?;
    file.as_file().sync_all().map_err(failed("sync"))?;
    match file.persist_noclobber(path) {
        Ok(_) => sync_folder(folder),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(CheckpointError::OutputExists { path: path.to_owned() })
        }
        Err(error) => Err(CheckpointError::io(path, "put in place")(error.error)),
    }
}

fn publish(file: tempfile::NamedTempFile, path: &Path, folder: &Path) -> Result<(), CheckpointError> {
    readable_as_usual(&file, path)?;
    file.as_file().sync_all().map_err(CheckpointError::io(path, "sync"))?;
    file.persist(path).map_err(|error| CheckpointError::io(path, "put in place")(error.error))?;
    sync_folder(folder)
}

/// Temporary files are private to their maker; what they become is an ordinary file.
fn readable_as_usual(file: &tempfile::NamedTempFile, path: &Path) -> Result<(), CheckpointError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(CheckpointError::io(path, "set the mode of"))
}

/// A rename lasts only once its folder is on disk.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
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
