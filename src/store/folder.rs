//! What lies in folders.

use std::fs::DirEntry;
use std::io::ErrorKind;
use std::path::Path;

use super::error::StoreError;

/// What a folder lists.
pub(super) fn entries(folder: &Path) -> Result<Vec<DirEntry>, StoreError> {
    let listed = std::fs::read_dir(folder).and_then(Iterator::collect);
    listed.map_err(StoreError::io(folder, "list"))
}

/// What a folder lists that may not be there, or that stock git may sweep away meanwhile.
pub(super) fn entries_if_there(folder: &Path) -> Result<Vec<DirEntry>, StoreError> {
    match entries(folder) {
        Err(StoreError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed,
    }
}

/// Everything in a folder that may not be there, and below it, but the folders themselves.
pub(super) fn files_below(folder: &Path) -> Result<Vec<DirEntry>, StoreError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in entries_if_there(&folder)? {
            match entry.file_type().map_err(StoreError::io(&folder, "list"))?.is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry),
            }
        }
    }
    Ok(found)
}
