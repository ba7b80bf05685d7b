//! A file as a [`Source`]: read where it is asked for, and never as a whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::CheckpointError;
use crate::source::Source;

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
        // Asked before opening: opening a named pipe would wait for a writer.
        let about = std::fs::metadata(path).map_err(CheckpointError::io(path, "read"))?;
        if !about.is_file() {
            let refused = std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file");
            return Err(CheckpointError::io(path, "read")(refused));
        }
        Self::of(File::open(path).map_err(CheckpointError::io(path, "read"))?)
            .map_err(CheckpointError::io(path, "examine"))
    }

    /// Takes a file that is open, of the size that it has now.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn of(file: File) -> std::io::Result<Self> {
        let size_bytes = file.metadata()?.len();
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
