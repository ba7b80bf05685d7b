//! How much room there is.

use std::path::Path;

use super::CheckpointError;
use super::disk::Files;

/// Bytes that whoever asks may still write to the file system that holds `path`.
///
/// # Errors
/// [`CheckpointError::Io`] names the path.
pub fn free_space_bytes(path: &Path) -> Result<u64, CheckpointError> {
    let failed =
        |source| CheckpointError::Io { action: "ask for free space at", path: path.to_owned(), source };
    Files::real().free_bytes(path).map_err(failed)
}
