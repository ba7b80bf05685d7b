//! Where an output may go.

use std::path::Path;

use super::{Action, Checkpoint, CheckpointError, Layout, folder_of};

/// Refuses a target that exists, or whose folder cannot be written: asked before any work is done.
///
/// # Errors
/// [`CheckpointError::OutputExists`], [`CheckpointError::Output`] or [`CheckpointError::Io`].
pub fn check_output(checkpoint: &Checkpoint, target: &Path) -> Result<(), CheckpointError> {
    let disk = checkpoint.disk();
    if disk.is_taken(target).map_err(CheckpointError::io(target, Action::Examine))? {
        return Err(CheckpointError::OutputExists { path: target.to_owned() });
    }
    let refuse =
        |reason: &str| CheckpointError::Output { path: target.to_owned(), reason: reason.to_owned() };
    let text = target.as_os_str().as_encoded_bytes();
    // A path drops the dot of `x/.`, and the system knows no such name for something new.
    if target.file_name().is_none() || ends_in_a_dot(text) {
        return Err(refuse("it is not a name for a new file or folder"));
    }
    if checkpoint.layout() == Layout::File && text.ends_with(b"/") {
        return Err(refuse("the base is one file, so the output is no folder"));
    }
    let looks_like_file =
        target.extension().is_some_and(|extension| extension == "safetensors" || extension == "json");
    if checkpoint.layout() == Layout::Folder && looks_like_file {
        return Err(refuse("the base has several files, so the output is a folder"));
    }
    let folder = folder_of(target);
    disk.check_writable(folder).map_err(CheckpointError::io(folder, Action::WriteTo))
}

/// Whether a path ends in `/.`, with or without more slashes.
fn ends_in_a_dot(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty()) == Some(b".")
}
