//! The small files beside the weights: config, tokenizer, hyperparameters.

use super::source::open_regular;
use super::{Checkpoint, CheckpointError, HASH_BLOCK_BYTES};
use crate::digest::FileDigest;

/// No config or tokenizer file comes near this; what is larger is something else.
pub const COMPANION_SIZE_BYTES_MAX: u64 = 256 << 20;

impl Checkpoint {
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
