//! How much room there is.

use std::path::Path;

use super::CheckpointError;

/// Bytes that whoever asks may still write to the file system that holds `path`.
///
/// # Errors
/// [`CheckpointError::Io`] names the path.
pub fn free_space_bytes(path: &Path) -> Result<u64, CheckpointError> {
    let found = rustix::fs::statvfs(path).map_err(|error| CheckpointError::Io {
        action: "ask the file system of",
        path: path.to_owned(),
        source: error.into(),
    })?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}
