//! How much room there is, on disk and in memory.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::Files;
use super::{Action, Checkpoint, CheckpointError, CheckpointFile, Layout, TensorInfo, folder_of};

/// Bytes that whoever asks may still write to the file system that holds `path`.
///
/// # Errors
/// [`CheckpointError::Io`] names the path.
pub fn free_space_bytes(path: &Path) -> Result<u64, CheckpointError> {
    Files::real().free_bytes(path).map_err(CheckpointError::io(path, Action::AskFileSystem))
}

impl Checkpoint {
    /// Makes `bytes` of the tensor so long; what they hold then is to be overwritten.
    ///
    /// # Errors
    /// [`CheckpointError::Memory`], where a vector's own growth would end the process.
    pub(crate) fn make_room(
        &self,
        tensor: &TensorInfo,
        bytes: &mut Vec<u8>,
        size: usize,
    ) -> Result<(), CheckpointError> {
        let more = size.saturating_sub(bytes.len());
        bytes.try_reserve_exact(more).map_err(|_| CheckpointError::Memory {
            path: self.files()[tensor.file_index].path.clone(),
            tensor: tensor.name.clone(),
            needed_bytes: size as u64,
        })?;
        bytes.resize(size, 0);
        Ok(())
    }
}

/// There was no room for `path`, which takes so much; what is free is asked now.
pub(super) fn no_room(files: &Files, path: &Path, needed_bytes: u64, source: io::Error) -> CheckpointError {
    let folder = folder_of(path);
    let Ok(free_bytes) = files.free_bytes(folder) else {
        return CheckpointError::io(path, Action::ReserveRoom)(source);
    };
    let file_system = file_system_of(files, folder);
    CheckpointError::Space { path: path.to_owned(), needed_bytes, free_bytes, file_system, source }
}

/// What all of a copy of `checkpoint` to `target` takes where no blocks can be shared: the files with these indices,
/// those that cannot be linked, and what lies beside the weights.
pub(super) fn copied_size_bytes(
    checkpoint: &Checkpoint,
    target: &Path,
    touched: &BTreeSet<usize>,
    may_link: bool,
) -> u64 {
    if checkpoint.layout() == Layout::File {
        return checkpoint.files().iter().map(CheckpointFile::size_bytes).sum();
    }
    let there = checkpoint.disk().about(folder_of(target)).ok().map(|about| about.device);
    let is_linked =
        |file: &CheckpointFile| may_link && file.file.about().ok().map(|about| about.device) == there;
    let files = checkpoint.files().iter().enumerate();
    let copied = files.filter(|(index, file)| touched.contains(index) || !is_linked(file));
    copied.map(|(_, file)| file.size_bytes()).sum::<u64>() + checkpoint.companions_size_bytes()
}

/// The topmost folder of the file system that holds `folder`.
fn file_system_of(files: &Files, folder: &Path) -> PathBuf {
    let Ok(real) = files.real_path(folder) else { return folder.to_owned() };
    let device = |path: &Path| files.about(path).ok().map(|about| about.device);
    let own = device(&real);
    let within = real.ancestors().take_while(|folder| device(folder) == own);
    within.last().unwrap_or(folder).to_owned()
}
