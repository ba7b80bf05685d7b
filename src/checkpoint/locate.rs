//! From the path that a user gives to the file or the index of the weights.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::disk::{Files, Kind};
use super::foreign::{pytorch_in, refusal_of};
use super::index::Index;
use super::{Action, CheckpointError, Layout, folder_of, is_file};

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
    let about = disk.about(path).map_err(CheckpointError::io(path, Action::Open))?;
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
    let (mut candidates, mut adapters) = (Vec::new(), Vec::new());
    for name in disk.list(folder).map_err(CheckpointError::io(folder, Action::List))? {
        let path = folder.join(&name);
        if !(is_safetensors(&path) || is_safetensors_index(&path)) || !is_file(disk, &path)? {
            continue;
        }
        let name = name.to_string_lossy().into_owned();
        if name.starts_with(ADAPTER_NAME) { adapters.push(name) } else { candidates.push(path) }
    }
    leave_out_shards(disk, &mut candidates)?;
    if candidates.is_empty()
        && let Some(refusal) = refusal_of(disk, folder)?
    {
        return Err(refusal);
    }
    let refuse = |reason| Err(CheckpointError::NotACheckpoint { path: folder.to_owned(), reason });
    match <[PathBuf; 1]>::try_from(candidates) {
        Ok([only]) => match pytorch_in(disk, folder)? {
            Some(other) if !name_of(&only).starts_with("model") => refuse(format!(
                "it holds both `{}` and `{other}`, and nothing says that the first is the model",
                name_of(&only)
            )),
            _ => Ok(only),
        },
        Err(found) if found.is_empty() && !adapters.is_empty() => {
            refuse(format!("it holds an adapter, `{}`, and no model", adapters[0]))
        }
        Err(found) => refuse(format!(
            "it holds neither `model.safetensors` nor `model.safetensors.index.json`, and {} other \
             `.safetensors` files where one would do",
            found.len()
        )),
    }
}

/// How the names of PEFT's weights begin.
const ADAPTER_NAME: &str = "adapter_model";

/// An index stands for its shards.
fn leave_out_shards(disk: &Files, candidates: &mut Vec<PathBuf>) -> Result<(), CheckpointError> {
    let indexes = Vec::from_iter(candidates.iter().filter(|path| is_index(path)).cloned());
    for index in indexes {
        let (index, _) = Index::read(disk, &index)?;
        let shards = index.shards();
        candidates.retain(|path| !shards.contains(name_of(path).as_ref()));
    }
    Ok(())
}

fn name_of(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

pub(super) fn is_safetensors(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// Whether a file is an index of shards, by its name: `x.index.json`, or that of a variant,
/// `model.safetensors.index.fp16.json`.
pub fn is_index(path: &Path) -> bool {
    name_of(path).ends_with(".index.json") || is_safetensors_index(path)
}

fn is_safetensors_index(path: &Path) -> bool {
    let name = name_of(path);
    name.ends_with(".json") && name.contains(".safetensors.index.")
}
