//! The index of a sharded checkpoint: which tensor lies in which file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::disk::{File, Files};
use super::foreign::is_lfs_pointer;
use super::header::UniqueMap;
use super::source::open_regular;
use super::{Action, CheckpointError};

/// Largest index file.
pub const INDEX_SIZE_BYTES_MAX: u64 = 64 << 20;
/// Most shards of one checkpoint.
pub const SHARDS_MAX: usize = 10_000;

/// Most tensors of one checkpoint with an index.
pub const TENSORS_MAX: usize = 1_000_000;

/// A checked index: tensor name to file name, the file names plain and beside the index.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap<TENSORS_MAX>,
}

impl Index {
    /// Reads and checks the index at `path`; the file stays open.
    pub(super) fn read(disk: &Files, path: &Path) -> Result<(Self, File), CheckpointError> {
        let file = open_regular(disk, path).map_err(CheckpointError::io(path, Action::Open))?;
        let text =
            file.read_to_end(INDEX_SIZE_BYTES_MAX + 1).map_err(CheckpointError::io(path, Action::Read))?;
        let found = text.len() as u64;
        if found > INDEX_SIZE_BYTES_MAX {
            let what = "a size in bytes";
            return Err(CheckpointError::Limit {
                path: path.to_owned(),
                what,
                limit: INDEX_SIZE_BYTES_MAX,
                found,
            });
        }
        if is_lfs_pointer(&text) {
            return Err(CheckpointError::LfsPointer { path: path.to_owned() });
        }
        match parse(&text) {
            Ok(index) => Ok((index, file)),
            Err(reason) => Err(CheckpointError::Index { path: path.to_owned(), reason }),
        }
    }

    /// The shards' file names, ascending.
    pub(super) fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// Reads and checks an index's text.
pub(super) fn parse(text: &[u8]) -> Result<Index, String> {
    let raw: RawIndex = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let index = Index { weight_map: raw.weight_map.0 };
    check_shards(&index.shards())?;
    Ok(index)
}

fn check_shards(shards: &BTreeSet<&str>) -> Result<(), String> {
    if shards.is_empty() {
        return Err("it lists no tensors".to_owned());
    }
    if shards.len() > SHARDS_MAX {
        return Err(format!("it names {} shards, at most {SHARDS_MAX} are read", shards.len()));
    }
    match shards.iter().find(|name| !is_plain_file_name(name)) {
        Some(name) => Err(format!("shard {name:?} is not a plain file name")),
        None => Ok(()),
    }
}

/// One path component on every system, and nothing that a terminal would obey.
fn is_plain_file_name(name: &str) -> bool {
    let special = name.is_empty() || name == "." || name == "..";
    !special && !name.chars().any(|character| matches!(character, '/' | '\\' | ':') || character.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_files_beside_the_index() {
        let plain = parse(br#"{"weight_map":{"a":"model-1.safetensors"}}"#).unwrap();
        assert_eq!(plain.weight_map["a"], "model-1.safetensors");
        for name in ["", ".", "..", "../x", "/etc/passwd", "a\\b", "c:x", "nul\u{0}"] {
            let text = serde_json::json!({ "weight_map": { "a": name } }).to_string();
            let reason = parse(text.as_bytes()).unwrap_err();
            assert_eq!(reason, format!("shard {name:?} is not a plain file name"));
        }
    }

    #[test]
    fn an_index_says_each_thing_once_and_something() {
        assert!(parse(br#"{"weight_map":{"a":"x","a":"y"}}"#).unwrap_err().contains("stands twice"));
        assert_eq!(parse(br#"{"weight_map":{}}"#).unwrap_err(), "it lists no tensors");
        assert!(parse(b"{}").unwrap_err().contains("weight_map"));
    }

    #[test]
    fn the_number_of_shards_is_bounded() {
        let text = |count: usize| {
            let map: BTreeMap<_, _> = (0..count).map(|n| (n.to_string(), n.to_string())).collect();
            serde_json::json!({ "weight_map": map }).to_string()
        };
        assert!(parse(text(SHARDS_MAX).as_bytes()).is_ok());
        assert!(parse(text(SHARDS_MAX + 1).as_bytes()).unwrap_err().contains("10001 shards"));
    }
}
