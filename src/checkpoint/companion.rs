//! The small files beside the weights: config, tokenizer, hyperparameters, and the index of shards.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::copy::{Source, Target, copy_ranges, share_or_reserve};
use super::disk::{File, Kind};
use super::foreign::{by_ending, is_lfs_pointer};
use super::journal::JOURNAL_SUFFIX;
use super::keep::Told;
use super::locate::is_safetensors;
use super::source::open_regular;
use super::temporary::is_temporary;
use super::write::{create_new, untouched};
use super::{Action, Checkpoint, CheckpointError, folder_of, hash_range};
use crate::digest::FileDigest;

/// No config or tokenizer file comes near this; what is larger is something else.
pub const COMPANION_SIZE_BYTES_MAX: u64 = 256 << 20;

/// How what no operation touches came into a copy; nothing where nothing was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TakenAlong {
    /// What of the base's folder was not taken along: weights in other forms, which nobody edited, links that lead out
    /// of it or nowhere, and what is no file.
    pub left_out: Vec<String>,
    /// Untouched shards that are the base's own files under a second name, where blocks cannot be shared.
    pub linked: Vec<String>,
    /// Untouched shards that could not be shared with the base and were copied.
    pub copied: Vec<String>,
}

impl TakenAlong {
    /// What has come to `next` through this one, a copy on the way to it.
    pub fn and_then(mut self, next: Self) -> Self {
        // Only what was linked each time is still the file that was there at first.
        self.linked.retain(|name| next.linked.contains(name));
        for (all, more) in [(&mut self.left_out, next.left_out), (&mut self.copied, next.copied)] {
            all.extend(more);
            all.sort_unstable();
            all.dedup();
        }
        self
    }
}

impl Checkpoint {
    /// Copies what lies beside the weights into the folder `target`; returns the names of what does not go along.
    pub(super) fn copy_companions(&self, target: &Path) -> Result<Vec<String>, CheckpointError> {
        let (going_along, left_out) = self.companions()?;
        for name in going_along {
            let (source, target) = (self.folder().join(&name), target.join(&name));
            match &self.index {
                Some((index, file)) if index.file_name() == Some(&name) => {
                    self.copy_companion(&source, file, &target)?;
                }
                _ => {
                    let file = open_regular(&self.disk, &source);
                    let file = file.map_err(CheckpointError::io(&source, Action::Open))?;
                    self.copy_companion(&source, &file, &target)?;
                }
            }
        }
        Ok(left_out)
    }

    /// Bytes of what lies beside the weights and goes along, as far as the system tells.
    pub(super) fn companions_size_bytes(&self) -> u64 {
        let (going_along, _) = self.companions().unwrap_or_default();
        let size = |name| self.disk.about(&self.folder().join(name)).map_or(0, |about| about.size_bytes);
        going_along.into_iter().map(size).sum()
    }

    /// What lies beside the weights: the names of what goes along into a copy, and of what does not.
    fn companions(&self) -> Result<(Vec<OsString>, Vec<String>), CheckpointError> {
        let (disk, base) = (&self.disk, self.folder());
        let shards: BTreeSet<_> = self.files.iter().filter_map(|file| file.path.file_name()).collect();
        let homes = self.homes();
        let (mut going_along, mut left_out) = (Vec::new(), Vec::new());
        for name in disk.list(base).map_err(CheckpointError::io(base, Action::List))? {
            let is_shard = shards.contains(name.as_os_str());
            let text = name.to_string_lossy();
            if is_shard || text.ends_with(JOURNAL_SUFFIX) || is_temporary(&text) {
                continue;
            }
            // What the index said made the folder a checkpoint, so it goes along wherever it was found.
            let is_index = self.index.as_ref().is_some_and(|(index, _)| index.file_name() == Some(&name));
            if is_index || self.takes_along(&base.join(&name), &homes)? {
                going_along.push(name);
            } else {
                left_out.push(text.into_owned());
            }
        }
        Ok((going_along, left_out))
    }

    fn copy_companion(&self, path: &Path, file: &File, target: &Path) -> Result<(), CheckpointError> {
        let about = file.about().map_err(CheckpointError::io(path, Action::Examine))?;
        let copy = create_new(&self.disk, target)?;
        let source = Source { file, path, size_bytes: about.size_bytes };
        let into = Target { disk: &self.disk, file: &copy, path: target };
        if !share_or_reserve(&source, &into)? {
            let told = Told { progress: &|_| (), stop: &|| self.check_stop() };
            copy_ranges(&source, &into, &untouched(about.size_bytes, Vec::new()), &told)?;
        }
        let made = copy.about().map_err(CheckpointError::io(target, Action::Examine))?;
        let moded = copy.give_mode(&made, about.mode_for(&made));
        moded.map_err(CheckpointError::io(target, Action::SetMode))?;
        copy.sync().map_err(CheckpointError::io(target, Action::Sync))
    }

    /// Whether something beside the weights goes along into a copy of their folder: it is a file that holds no weights,
    /// and no link that whoever made the folder laid to something of the user's.
    ///
    /// `homes` are those of [`Checkpoint::homes`].
    fn takes_along(&self, path: &Path, homes: &BTreeSet<PathBuf>) -> Result<bool, CheckpointError> {
        // Weights in another form: unedited, they would lie in an edited model's folder.
        if is_safetensors(path) || by_ending(path).is_some() {
            return Ok(false);
        }
        match self.disk.about_name(path).map_err(CheckpointError::io(path, Action::Examine))?.kind {
            Kind::Symlink => {}
            kind => return Ok(kind == Kind::File),
        }
        // One that leads round in a circle, or where the user may not go, is no better than one that leads nowhere.
        let (Ok(real), Ok(about)) = (self.disk.real_path(path), self.disk.about(path)) else {
            return Ok(false);
        };
        if about.kind != Kind::File {
            return Ok(false);
        }
        Ok(homes.contains(folder_of(&real)))
    }

    /// The folders that a link beside the weights may lead into: those that the weights really lie in, and their own.
    ///
    /// A hub's cache links the companions into the folder that it links the weights into.
    fn homes(&self) -> BTreeSet<PathBuf> {
        let weights = self.files.iter().filter_map(|file| self.disk.real_path(&file.path).ok());
        let homes = weights.map(|weights| folder_of(&weights).to_owned());
        homes.chain(self.disk.real_path(self.folder())).collect()
    }

    /// The bytes of the file `name` beside the weights, or none when there is no such file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Limit`] or [`CheckpointError::LfsPointer`].
    pub fn companion(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let path = self.folder().join(name);
        let file = match open_regular(&self.disk, &path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CheckpointError::io(&path, Action::Open)(error)),
        };
        let bytes = file
            .read_to_end(COMPANION_SIZE_BYTES_MAX + 1)
            .map_err(CheckpointError::io(&path, Action::Read))?;
        if bytes.len() as u64 > COMPANION_SIZE_BYTES_MAX {
            let (limit, found) = (COMPANION_SIZE_BYTES_MAX, bytes.len() as u64);
            return Err(CheckpointError::Limit { path, what: "a size in bytes", limit, found });
        }
        if is_lfs_pointer(&bytes) {
            return Err(CheckpointError::LfsPointer { path });
        }
        Ok(Some(bytes))
    }

    /// Digest of all bytes of the file at `index` of [`Checkpoint::files`], header included.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn file_digest(&self, index: usize) -> Result<FileDigest, CheckpointError> {
        let file = &self.files[index];
        let hashed = hash_range(file.size_bytes, |bytes, offset| file.file.read_exact_at(bytes, offset));
        hashed
            .map(|hasher| FileDigest::finish(&hasher))
            .map_err(CheckpointError::io(&file.path, Action::Read))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::checkpoint::tests::{sharded, write};

    const INDEX: &str = "model.safetensors.index.json";

    #[test]
    fn what_leads_nowhere_or_is_no_file_is_named_and_left_out_and_the_index_never_is() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors"}));
        let (path, elsewhere) = (folder.path(), tempfile::tempdir().unwrap());
        write(&folder, "config.json", "{}");
        let index = std::fs::read(path.join(INDEX)).unwrap();
        std::fs::remove_file(path.join(INDEX)).unwrap();
        for (name, target) in [
            ("circle", PathBuf::from("circle")),
            ("in a file", "config.json/x".into()),
            (INDEX, write(&elsewhere, "index", &index)),
            ("nowhere", "nothing".into()),
            ("to a folder", "folder".into()),
            ("up", "..".into()),
        ] {
            symlink(target, path.join(name)).unwrap();
        }
        std::fs::create_dir(path.join("folder")).unwrap();
        write(&folder, "other.safetensors.mpatch-journal", "of something else");
        let pipe = std::process::Command::new("mkfifo").arg(path.join("pipe")).status();
        assert!(pipe.unwrap().success());
        let checkpoint = Checkpoint::open(path).unwrap();
        // What was read is what is copied.
        write(&elsewhere, "other", "something else");
        std::fs::rename(elsewhere.path().join("other"), elsewhere.path().join("index")).unwrap();
        let target = tempfile::tempdir().unwrap();
        let left_out = checkpoint.copy_companions(target.path()).unwrap();
        let expected =
            ["circle", "folder", "in a file", "nowhere", "one.safetensors", "pipe", "to a folder", "up"];
        assert_eq!(left_out, expected);
        assert_eq!(std::fs::read(target.path().join(INDEX)).unwrap(), index);
        assert!(target.path().join("config.json").is_file());
        assert_eq!(std::fs::read_dir(target.path()).unwrap().count(), 2);
    }

    #[test]
    fn weights_in_another_form_are_named_and_left_out() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        let endings = ["bin", "ckpt", "gguf", "h5", "msgpack", "onnx", "ot", "pt", "pth", "safetensors"];
        let names = endings.map(|ending| format!("unedited.{ending}"));
        names.iter().for_each(|name| drop(write(&folder, name, "weights")));
        let target = tempfile::tempdir().unwrap();
        let left_out = Checkpoint::open(folder.path()).unwrap().copy_companions(target.path()).unwrap();
        assert_eq!(left_out, names);
    }

    #[test]
    fn links_are_followed_to_where_the_weights_are_and_within_their_folder() {
        let blobs = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        write(&blobs, "of the cache", "{}");
        let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["one.safetensors", "two.safetensors", INDEX, "of the cache"] {
            symlink(blobs.path().join(name), folder.path().join(name)).unwrap();
        }
        write(&folder, "its own", "{}");
        symlink("its own", folder.path().join("the same again")).unwrap();
        symlink(write(&elsewhere, "secret", "of the user"), folder.path().join("secret")).unwrap();
        let target = tempfile::tempdir().unwrap();
        let left_out = Checkpoint::open(folder.path()).unwrap().copy_companions(target.path()).unwrap();
        assert_eq!(left_out, ["secret"]);
        for name in [INDEX, "its own", "of the cache", "the same again"] {
            assert!(target.path().join(name).symlink_metadata().unwrap().is_file(), "{name}");
        }
    }

    #[test]
    fn the_copy_of_what_lies_beside_the_weights_is_stopped_like_any_other() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors"}));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let checkpoint = checkpoint.stopping_on(Arc::new(AtomicBool::new(true)));
        let stopped = checkpoint.copy_companions(tempfile::tempdir().unwrap().path());
        assert!(matches!(stopped, Err(CheckpointError::Stopped { .. })), "{stopped:?}");
    }
}
