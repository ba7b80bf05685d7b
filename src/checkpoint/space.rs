//! How much room there is.

use std::path::Path;

use super::disk::Files;
use super::{Action, CheckpointError};

/// Bytes that whoever asks may still write to the file system that holds `path`.
///
/// # Errors
/// [`CheckpointError::Io`] names the path.
pub fn free_space_bytes(path: &Path) -> Result<u64, CheckpointError> {
    Files::real().free_bytes(path).map_err(CheckpointError::io(path, Action::AskFileSystem))
}
