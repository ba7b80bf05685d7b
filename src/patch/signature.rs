//! The signature block: the last bytes of a file, outside the patch id, so that signing changes no patch.
//!
//! ```text
//! u32 count    then, count times:    u32 kind    u32 size    size bytes
//! ```
//!
//! What a signature says is for the room `sign` to judge; here it is bytes of a known kind and size.

use super::error::PatchError;
use super::layout::{
    SIGNATURE_COUNT_SIZE_BYTES, SIGNATURE_HEADER_SIZE_BYTES, SIGNATURE_KIND_SSHSIG, SIGNATURE_SIZE_MAX_BYTES,
    SIGNATURES_MAX,
};

/// What form a signature has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignatureKind {
    /// OpenSSH's binary SSHSIG over the manifest's bytes.
    SshSig,
}

impl SignatureKind {
    const fn code(self) -> u32 {
        match self {
            SignatureKind::SshSig => SIGNATURE_KIND_SSHSIG,
        }
    }
}

/// One signature, not yet judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Its form.
    pub kind: SignatureKind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The bytes of a block of `signatures`.
pub(super) fn block_of(signatures: &[Signature]) -> Result<Vec<u8>, PatchError> {
    check_count(signatures.len() as u64)?;
    let mut block = (signatures.len() as u32).to_le_bytes().to_vec();
    for (index, signature) in signatures.iter().enumerate() {
        check_size(index, signature.bytes.len() as u64)?;
        block.extend_from_slice(&signature.kind.code().to_le_bytes());
        block.extend_from_slice(&(signature.bytes.len() as u32).to_le_bytes());
        block.extend_from_slice(&signature.bytes);
    }
    Ok(block)
}

/// The signatures of `block`, which must be used up exactly.
pub(super) fn parse_block(block: &[u8]) -> Result<Vec<Signature>, PatchError> {
    let Some((count, mut rest)) = block.split_first_chunk::<SIGNATURE_COUNT_SIZE_BYTES>() else {
        return Err(malformed(format!("{} bytes where the count needs 4", block.len())));
    };
    let count = u32::from_le_bytes(*count);
    check_count(u64::from(count))?;
    let mut signatures = Vec::new();
    for index in 0..count as usize {
        let (signature, behind) = parse_signature(index, rest)?;
        signatures.push(signature);
        rest = behind;
    }
    match rest.len() {
        0 => Ok(signatures),
        rest => Err(malformed(format!("{rest} bytes follow the last signature"))),
    }
}

fn parse_signature(index: usize, block: &[u8]) -> Result<(Signature, &[u8]), PatchError> {
    let missing = || malformed(format!("ends within signature {index}"));
    let (header, rest) = block.split_at_checked(SIGNATURE_HEADER_SIZE_BYTES).ok_or_else(missing)?;
    let kind = u32_at(header, 0);
    if kind != SIGNATURE_KIND_SSHSIG {
        let (place, feature) = (format!("signature {index}"), format!("kind {kind}"));
        return Err(PatchError::UnsupportedFeature { place, feature });
    }
    let size_bytes = u32_at(header, size_of::<u32>());
    check_size(index, u64::from(size_bytes))?;
    let (bytes, rest) = rest.split_at_checked(size_bytes as usize).ok_or_else(missing)?;
    Ok((Signature { kind: SignatureKind::SshSig, bytes: bytes.to_vec() }, rest))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; size_of::<u32>()];
    field.copy_from_slice(&bytes[offset..offset + size_of::<u32>()]);
    u32::from_le_bytes(field)
}

fn check_count(found: u64) -> Result<(), PatchError> {
    let limit = SIGNATURES_MAX as u64;
    if found > limit {
        return Err(PatchError::Limit { what: "signatures".into(), limit, found });
    }
    Ok(())
}

fn check_size(index: usize, found: u64) -> Result<(), PatchError> {
    let limit = SIGNATURE_SIZE_MAX_BYTES as u64;
    match found {
        0 => Err(malformed(format!("signature {index} is empty"))),
        found if found > limit => {
            Err(PatchError::Limit { what: format!("bytes of signature {index}"), limit, found })
        }
        _ => Ok(()),
    }
}

fn malformed(what: String) -> PatchError {
    PatchError::malformed("the signature block", what)
}
