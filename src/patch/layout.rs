//! Where everything lies in a `.mpatch` file, and how large anything may be.
//!
//! ```text
//! 0                  64                                                                          file size
//! | prelude (64 B)   | manifest      | section 0 | section 1 | ... | signature block             |
//! | magic version    | bincode,      | one zstd frame or stored      | count, then kind size bytes |
//! | sizes patch id   | uncompressed  | bytes; they tile, no gaps     | each                        |
//! ```
//!
//! Nothing but this file knows a magic number, an offset or a limit; `docs/format.md` repeats them for people and a
//! test compares the two. The prelude repeats the patch id, which is a digest of the manifest, so that damage to an
//! unsigned patch is noticed as well: every byte up to the signature block is under some digest or an exact check.

use super::error::PatchError;
use crate::digest::{DIGEST_SIZE_BYTES, PatchId};
use crate::factors::undo_rows_per_block;
use crate::tensor::Dtype;

/// The first bytes of every patch. The high first byte shows 7-bit damage, the line feed text-mode damage.
pub const MAGIC: [u8; 8] = *b"\x89MPATCH\n";
/// The format version that this program writes and the latest that it reads.
pub const VERSION: Version = Version { major: 1, minor: 0 };

/// Offset of the magic.
pub const MAGIC_OFFSET: usize = 0;
/// Offset of the major version, a u16.
pub const VERSION_MAJOR_OFFSET: usize = MAGIC_OFFSET + MAGIC.len();
/// Offset of the minor version, a u16.
pub const VERSION_MINOR_OFFSET: usize = VERSION_MAJOR_OFFSET + size_of::<u16>();
/// Offset of the flags, a u32; version 1.0 knows none.
pub const FLAGS_OFFSET: usize = VERSION_MINOR_OFFSET + size_of::<u16>();
/// Offset of the size of the whole file, a u64.
pub const FILE_SIZE_OFFSET: usize = FLAGS_OFFSET + size_of::<u32>();
/// Offset of the size of the manifest, a u64.
pub const MANIFEST_SIZE_OFFSET: usize = FILE_SIZE_OFFSET + size_of::<u64>();
/// Offset of the patch id, 32 bytes.
pub const PATCH_ID_OFFSET: usize = MANIFEST_SIZE_OFFSET + size_of::<u64>();
/// Size of the prelude, and so the offset of the manifest.
pub const PRELUDE_SIZE_BYTES: usize = PATCH_ID_OFFSET + DIGEST_SIZE_BYTES;
const _: () = assert!(PRELUDE_SIZE_BYTES == 64);

/// Size of the count that opens the signature block.
pub const SIGNATURE_COUNT_SIZE_BYTES: usize = size_of::<u32>();
/// Size of a signature's kind and size, which precede its bytes.
pub const SIGNATURE_HEADER_SIZE_BYTES: usize = 2 * size_of::<u32>();
/// A signature in OpenSSH's binary SSHSIG form.
pub const SIGNATURE_KIND_SSHSIG: u32 = 1;

/// Largest manifest in bytes.
pub const MANIFEST_SIZE_MAX_BYTES: usize = 16 << 20;
/// Most facts in a patch; as many of the smallest facts fit into a manifest.
pub const FACTS_MAX: usize = 500_000;
/// Most terms in a patch.
pub const TERMS_MAX: usize = 65_536;
/// Most states of weights that one patch fits.
pub const BINDINGS_MAX: usize = 16;
/// Most tensors that one binding touches.
pub const TENSORS_MAX: usize = 4_096;
/// Most sections: four to a term, two to a touched tensor.
pub const SECTIONS_MAX: usize = 4 * TERMS_MAX + 2 * BINDINGS_MAX * TENSORS_MAX;
/// Most measured quantities.
pub const METRICS_MAX: usize = 1_024;
/// Most edited layers in the recipe.
pub const LAYERS_MAX: usize = 4_096;
/// Most context templates in the recipe, over all groups, and most groups.
pub const CONTEXTS_MAX: usize = 4_096;
/// Most parents, and most superseded patches.
pub const PARENTS_MAX: usize = 256;
/// Longest name (of a tensor, metric, method, line, ...) in bytes of UTF-8.
pub const NAME_SIZE_MAX_BYTES: usize = 512;
/// Longest text (a prompt, note, title, ...) in bytes of UTF-8.
pub const TEXT_SIZE_MAX_BYTES: usize = 4 << 10;
/// Longest hyperparameters in bytes of UTF-8.
pub const HYPERPARAMETERS_SIZE_MAX_BYTES: usize = 64 << 10;
/// Most rows or columns of a tensor.
pub const DIMENSION_MAX: u64 = 1 << 31;
/// Largest section once decoded: four times the largest embedding matrix known (2^17 by 2^14, bf16).
pub const SECTION_DECODED_SIZE_MAX_BYTES: u64 = 1 << 34;
/// Largest window of a zstd frame, as a power of two: 8 MiB, what every zstd decoder must support.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Most bytes that a zstd frame may decode to for each of its own, so that reading a file costs what its size lets
/// expect; zstd itself goes up to 32768.
pub const ZSTD_RATIO_MAX: u64 = 2_048;
/// Most signatures.
pub const SIGNATURES_MAX: usize = 16;
/// Largest signature in bytes.
pub const SIGNATURE_SIZE_MAX_BYTES: usize = 64 << 10;

/// Largest signature block.
pub const SIGNATURE_BLOCK_SIZE_MAX_BYTES: usize =
    SIGNATURE_COUNT_SIZE_BYTES + SIGNATURES_MAX * (SIGNATURE_HEADER_SIZE_BYTES + SIGNATURE_SIZE_MAX_BYTES);

// The smallest fact is three empty strings and three absent ones.
const _: () = assert!(FACTS_MAX * (3 * 8 + 3) <= MANIFEST_SIZE_MAX_BYTES);
const _: () = assert!(SECTIONS_MAX <= u32::MAX as usize);

/// A version of the format: a reader refuses what is later than it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when the framing does.
    pub major: u16,
    /// Changes when anything else does.
    pub minor: u16,
}

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// The first 64 bytes, without what is the same in every patch of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prelude {
    /// Size of the whole file.
    pub(super) file_size: u64,
    /// Size of the manifest.
    pub(super) manifest_size: usize,
    /// What the manifest's bytes must hash to.
    pub(super) patch_id: PatchId,
}

impl Prelude {
    /// The prelude's bytes.
    pub(super) fn to_bytes(self) -> [u8; PRELUDE_SIZE_BYTES] {
        let mut bytes = [0; PRELUDE_SIZE_BYTES];
        put(&mut bytes, MAGIC_OFFSET, &MAGIC);
        put(&mut bytes, VERSION_MAJOR_OFFSET, &VERSION.major.to_le_bytes());
        put(&mut bytes, VERSION_MINOR_OFFSET, &VERSION.minor.to_le_bytes());
        put(&mut bytes, FILE_SIZE_OFFSET, &self.file_size.to_le_bytes());
        put(&mut bytes, MANIFEST_SIZE_OFFSET, &(self.manifest_size as u64).to_le_bytes());
        put(&mut bytes, PATCH_ID_OFFSET, self.patch_id.as_bytes());
        bytes
    }

    /// Reads the prelude from the `start` of a file and checks all of it against the file's size.
    pub(super) fn parse(start: &[u8], size_bytes: u64) -> Result<Self, PatchError> {
        let (bytes, file_size) = stated_size(start)?;
        check_file_size(file_size, size_bytes)?;
        let manifest_size = u64::from_le_bytes(get(bytes, MANIFEST_SIZE_OFFSET));
        let patch_id = PatchId::from_bytes(get(bytes, PATCH_ID_OFFSET));
        Ok(Self { file_size, manifest_size: check_manifest_size(manifest_size, file_size)?, patch_id })
    }
}

/// The prelude at the `start` of a file, and the size of the file that it states.
pub(super) fn stated_size(start: &[u8]) -> Result<(&[u8; PRELUDE_SIZE_BYTES], u64), PatchError> {
    check_magic(start)?;
    let Some(bytes) = start.first_chunk::<PRELUDE_SIZE_BYTES>() else {
        return Err(truncated(PRELUDE_SIZE_BYTES as u64, start.len() as u64));
    };
    check_version(bytes)?;
    Ok((bytes, u64::from_le_bytes(get(bytes, FILE_SIZE_OFFSET))))
}

fn put(bytes: &mut [u8; PRELUDE_SIZE_BYTES], offset: usize, field: &[u8]) {
    bytes[offset..offset + field.len()].copy_from_slice(field);
}

fn get<const SIZE: usize>(bytes: &[u8; PRELUDE_SIZE_BYTES], offset: usize) -> [u8; SIZE] {
    let mut field = [0; SIZE];
    field.copy_from_slice(&bytes[offset..offset + SIZE]);
    field
}

fn truncated(expected: u64, found: u64) -> PatchError {
    PatchError::Truncated { expected, found }
}

fn check_magic(file: &[u8]) -> Result<(), PatchError> {
    let start = &file[..file.len().min(MAGIC.len())];
    match (MAGIC.starts_with(start), start.len() == MAGIC.len()) {
        (true, true) => Ok(()),
        (true, false) => Err(truncated(PRELUDE_SIZE_BYTES as u64, file.len() as u64)),
        (false, _) => Err(PatchError::NotAPatch { found: start.escape_ascii().to_string() }),
    }
}

fn check_version(prelude: &[u8; PRELUDE_SIZE_BYTES]) -> Result<(), PatchError> {
    let major = u16::from_le_bytes(get(prelude, VERSION_MAJOR_OFFSET));
    let minor = u16::from_le_bytes(get(prelude, VERSION_MINOR_OFFSET));
    let version = Version { major, minor };
    if version != VERSION {
        return Err(PatchError::UnsupportedVersion { found: version });
    }
    match u32::from_le_bytes(get(prelude, FLAGS_OFFSET)) {
        0 => Ok(()),
        found => Err(PatchError::UnsupportedFlags { found }),
    }
}

fn check_file_size(stated: u64, found: u64) -> Result<(), PatchError> {
    if found < stated {
        return Err(truncated(stated, found));
    }
    if found > stated {
        let what = format!("{} bytes follow the end at {stated} that the prelude states", found - stated);
        return Err(PatchError::malformed("the file", what));
    }
    Ok(())
}

fn check_manifest_size(stated: u64, file_size: u64) -> Result<usize, PatchError> {
    let limit = MANIFEST_SIZE_MAX_BYTES as u64;
    if stated > limit {
        return Err(PatchError::Limit { what: "the manifest's bytes".into(), limit, found: stated });
    }
    // Below the limit nothing overflows.
    let end = PRELUDE_SIZE_BYTES as u64 + stated + SIGNATURE_COUNT_SIZE_BYTES as u64;
    if end > file_size {
        let what = format!("states a manifest of {stated} bytes in a file of {file_size}");
        return Err(PatchError::malformed("the prelude", what));
    }
    Ok(stated as usize)
}

/// Largest undo log for a tensor of `rows` by `columns`: a word per weight, and what says where blocks begin.
pub(super) fn undo_size_max_bytes(rows: u64, columns: u64) -> u64 {
    let block_rows = undo_rows_per_block(usize::try_from(columns).unwrap_or(usize::MAX)) as u64;
    let words = rows.saturating_mul(columns).saturating_mul(8);
    let table = rows.div_ceil(block_rows).saturating_mul(4).saturating_add(8);
    words.saturating_add(table).min(SECTION_DECODED_SIZE_MAX_BYTES)
}

/// Largest correction for a tensor of `rows` by `columns`: a bit per weight and a difference for each.
pub(super) fn correction_size_max_bytes(rows: u64, columns: u64, dtype: Dtype) -> u64 {
    let weights = rows.saturating_mul(columns);
    let differences = weights.saturating_mul(dtype.size_bytes() as u64);
    weights.div_ceil(8).saturating_add(differences).saturating_add(1).min(SECTION_DECODED_SIZE_MAX_BYTES)
}
