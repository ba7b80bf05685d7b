//! From the path that a user gives to the file or the index of the weights.

use std::path::{Path, PathBuf};

use super::disk::{Files, Kind};
use super::foreign::pytorch_in;
use super::index::Index;
use super::{CheckpointError, Layout, folder_of, is_file};

/// Where a checkpoint's weights are found.
pub(super) struct Located {
    /// A safetensors file, or an index.
    pub(super) weights: PathBuf,
    pub(super) layout: Layout,
    pub(super) folder: PathBuf,
}

impl Located {
    /// The files that hold the weights.
    pub(super) fn files(&self, disk: &Files) -> Result<Vec<PathBuf>, CheckpointError> {
        if !is_index(&self.weights) {
            return Ok(vec![self.weights.clone()]);
        }
        let (index, _) = Index::read(disk, &self.weights)?;
        Ok(index.shards().into_iter().map(|name| self.folder.join(name)).collect())
    }
}

pub(super) fn locate(disk: &Files, path: &Path) -> Result<Located, CheckpointError> {
    let about = disk.about(path).map_err(CheckpointError::io(path, "open"))?;
    let (weights, layout) = if about.kind == Kind::Folder {
        (find_weights(disk, path)?, Layout::Folder)
    } else {
        (path.to_owned(), if is_index(path) { Layout::Folder } else { Layout::File })
    };
    let folder = folder_of(&weights).to_owned();
    Ok(Located { weights, layout, folder })
}

/// The file of weights in a model folder.
fn find_weights(disk: &Files, folder: &Path) -> Result<PathBuf, CheckpointError> {
    for name in ["model.safetensors", "model.safetensors.index.json"] {
        let candidate = folder.join(name);
        if is_file(disk, &candidate)? {
            return Ok(candidate);
        }
    }
    let mut candidates = Vec::new();
    for name in disk.list(folder).map_err(CheckpointError::io(folder, "list"))? {
        let path = folder.join(name);
        if path.extension().is_some_and(|extension| extension == "safetensors") && is_file(disk, &path)? {
            candidates.push(path);
        }
    }
    if candidates.is_empty()
        && let Some(refusal) = pytorch_in(disk, folder)?
    {
        return Err(refusal);
    }
    match <[PathBuf; 1]>::try_from(candidates) {
        Ok([only]) => Ok(only),
        Err(found) => Err(CheckpointError::NotACheckpoint {
            path: folder.to_owned(),
            reason: format!(
                "it holds neither `model.safetensors` nor `model.safetensors.index.json`, and {} other \
                 `.safetensors` files where one would do",
                found.len()
            ),
        }),
    }
}

pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"))
}
