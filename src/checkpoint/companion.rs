//! The small files beside the weights: config, tokenizer, hyperparameters.

use std::path::Path;

use super::disk::Kind;
use super::source::open_regular;
use super::{Checkpoint, CheckpointError, HASH_BLOCK_BYTES, folder_of};
use crate::digest::FileDigest;

/// No config or tokenizer file comes near this; what is larger is something else.
pub const COMPANION_SIZE_BYTES_MAX: u64 = 256 << 20;
/// Endings of files that hold weights in another form: unedited, they would lie in an edited model's folder.
const OTHER_WEIGHTS: [&str; 10] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "gguf", "onnx", "ot"];

impl Checkpoint {
    /// Whether a file beside the weights goes along into a copy of their folder: it holds no weights, and is not a link
    /// that whoever made the folder laid to something of the user's.
    ///
    /// A hub's cache links the companions into the folder that it links the weights into.
    pub(super) fn takes_along(&self, path: &Path) -> Result<bool, CheckpointError> {
        let ending = path.extension().unwrap_or_default();
        if OTHER_WEIGHTS.iter().any(|other| ending == *other) {
            return Ok(false);
        }
        let examined = |error| CheckpointError::io(path, "examine")(error);
        if self.disk.about_name(path).map_err(examined)?.kind != Kind::Symlink {
            return Ok(true);
        }
        let real = self.disk.real_path(path).map_err(examined)?;
        let weights = self.files.iter().filter_map(|file| self.disk.real_path(&file.path).ok());
        let mut homes = Vec::from_iter(weights.map(|weights| folder_of(&weights).to_owned()));
        homes.extend(self.disk.real_path(self.folder()));
        Ok(homes.iter().any(|home| home == folder_of(&real)))
    }

    /// The bytes of the file `name` beside the weights, or none when there is no such file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] or [`CheckpointError::Limit`].
    pub fn companion(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        let path = self.folder().join(name);
        let file = match open_regular(&self.disk, &path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CheckpointError::io(&path, "open")(error)),
        };
        let bytes =
            file.read_to_end(COMPANION_SIZE_BYTES_MAX + 1).map_err(CheckpointError::io(&path, "read"))?;
        if bytes.len() as u64 > COMPANION_SIZE_BYTES_MAX {
            let (limit, found) = (COMPANION_SIZE_BYTES_MAX, bytes.len() as u64);
            return Err(CheckpointError::Limit { path, what: "a size in bytes", limit, found });
        }
        Ok(Some(bytes))
    }

    /// Digest of all bytes of the file at `index` of [`Checkpoint::files`], header included.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn file_digest(&self, index: usize) -> Result<FileDigest, CheckpointError> {
        let file = &self.files[index];
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; HASH_BLOCK_BYTES.min(file.size_bytes) as usize];
        let mut offset = 0;
        while offset < file.size_bytes {
            let size = HASH_BLOCK_BYTES.min(file.size_bytes - offset) as usize;
            file.file
                .read_exact_at(&mut block[..size], offset)
                .map_err(CheckpointError::io(&file.path, "read"))?;
            hasher.update(&block[..size]);
            offset += size as u64;
        }
        Ok(FileDigest::finish(&hasher))
    }
}
