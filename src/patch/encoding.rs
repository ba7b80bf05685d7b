//! The manifest's bytes: bincode with fixed-width little-endian integers, and no other file names that crate.
//!
//! What does not encode to the very bytes that were read is refused, so that a manifest has one spelling, and its
//! digest one meaning, whatever the crate would let pass. `docs/format.md` spells the encoding out.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::serde::{decode_from_slice, encode_to_vec};

use super::error::PatchError;
use super::layout::MANIFEST_SIZE_MAX_BYTES;
use super::manifest::Manifest;

/// Manifests up to this size are read under a limit of this size.
const SMALL_SIZE_BYTES: usize = 64 << 10;
const _: () = assert!(SMALL_SIZE_BYTES < MANIFEST_SIZE_MAX_BYTES);

const fn config<const LIMIT: usize>() -> Configuration<LittleEndian, Fixint, Limit<LIMIT>> {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

/// The bytes of `manifest`.
pub(super) fn encode(manifest: &Manifest) -> Result<Vec<u8>, PatchError> {
    encode_to_vec(manifest, config::<MANIFEST_SIZE_MAX_BYTES>())
        .map_err(|error| PatchError::malformed("the manifest", error.to_string()))
}

/// The manifest that `bytes` are the one encoding of.
pub(super) fn decode(bytes: &[u8]) -> Result<Manifest, PatchError> {
    // The limit bounds what a stated string length can allocate before its bytes are found missing: no more than
    // the manifest's own order of size. (Vectors grow as their elements arrive, whatever length they state.)
    let decoded = if bytes.len() <= SMALL_SIZE_BYTES {
        decode_from_slice(bytes, config::<SMALL_SIZE_BYTES>())
    } else {
        decode_from_slice(bytes, config::<MANIFEST_SIZE_MAX_BYTES>())
    };
    let (manifest, size_bytes) =
        decoded.map_err(|error| PatchError::malformed("the manifest", error.to_string()))?;
    if size_bytes != bytes.len() || encode(&manifest)? != bytes {
        let what = format!("{} bytes that are not the one encoding of what they say", bytes.len());
        return Err(PatchError::malformed("the manifest", what));
    }
    Ok(manifest)
}
