//! A file as a [`Source`]: read where it is asked for, and never as a whole.

use std::path::Path;

use super::disk::{Access, File, Files, Kind, SystemFile};
use super::{Action, CheckpointError};
use crate::source::Source;

/// Opens the regular file at `path` for reading.
pub(super) fn open_regular(disk: &Files, path: &Path) -> std::io::Result<File> {
    // Asked before opening: opening a named pipe would wait for a writer.
    if disk.about(path)?.kind != Kind::File {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    disk.open(path, Access::Read)
}

/// A file that is open for reading.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    size_bytes: u64,
}

impl FileSource {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = open_regular(&Files::real(), path).map_err(CheckpointError::io(path, Action::Read))?;
        Self::with(file).map_err(CheckpointError::io(path, Action::Examine))
    }

    /// Takes a file that is open, of the size that it has now.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn of(file: SystemFile) -> std::io::Result<Self> {
        Self::with(file.into())
    }

    fn with(file: File) -> std::io::Result<Self> {
        let size_bytes = file.about()?.size_bytes;
        Ok(Self { file, size_bytes })
    }
}

impl Source for FileSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }
}
