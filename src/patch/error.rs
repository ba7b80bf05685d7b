//! What can be wrong with a patch, each kind apart, so that a caller can tell damage from age from malice.

use super::layout::{VERSION, Version};
use crate::digest::{PatchId, SectionDigest};

/// A patch that cannot be read, or a draft that cannot become one. The caller knows the file's name and adds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// The file begins with something else.
    #[error("not a patch: it begins with `{found}`; a damaged start may come from a transfer in text mode")]
    NotAPatch {
        /// The first bytes, escaped.
        found: String,
    },
    /// The bytes cannot be read.
    #[error("cannot read the patch at byte {offset}: {problem}")]
    Read {
        /// Where.
        offset: u64,
        /// What kind of error it was.
        kind: std::io::ErrorKind,
        /// What the system says.
        problem: String,
    },
    /// A copy of the patch cannot be written.
    #[error("cannot write the patch: {problem}")]
    Write {
        /// What kind of error it was.
        kind: std::io::ErrorKind,
        /// What the system says.
        problem: String,
    },
    /// The file ends early.
    #[error("truncated: {found} of at least {expected} bytes are there")]
    Truncated {
        /// Bytes there must be, as far as known.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The bytes break a rule of the format.
    #[error("malformed patch: {place}: {what}")]
    Malformed {
        /// Where, as a path into the manifest or a part of the file.
        place: String,
        /// What was found there.
        what: String,
    },
    /// The manifest was damaged or changed.
    #[error("damaged manifest: it hashes to {found}, the prelude says {expected}")]
    ManifestDigest {
        /// The id in the prelude.
        expected: PatchId,
        /// The id of the manifest's bytes.
        found: PatchId,
    },
    /// A section was damaged or changed.
    #[error("damaged section {section}: it hashes to {found}, the manifest says {expected}")]
    Digest {
        /// Its index in the manifest.
        section: usize,
        /// The digest in the manifest.
        expected: SectionDigest,
        /// The digest of the stored bytes.
        found: SectionDigest,
    },
    /// The format version is not the one that this program knows.
    #[error("the patch needs format {found}, this program reads {VERSION}")]
    UnsupportedVersion {
        /// The patch's version.
        found: Version,
    },
    /// The prelude sets flags that this version does not know.
    #[error("the patch sets flags {found:#010x}, which format {VERSION} does not know")]
    UnsupportedFlags {
        /// All flags that are set.
        found: u32,
    },
    /// The patch uses something that this version reserves for a later one.
    #[error("{place} uses {feature}, which format {VERSION} only reserves")]
    UnsupportedFeature {
        /// Where.
        place: String,
        /// What.
        feature: String,
    },
    /// Something is larger than the format allows.
    #[error("{what}: {found}, the format allows {limit}")]
    Limit {
        /// What was counted.
        what: String,
        /// The most there may be.
        limit: u64,
        /// What there is.
        found: u64,
    },
}

impl PatchError {
    pub(super) fn malformed(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), what: what.into() }
    }

    pub(super) fn write(error: std::io::Error) -> Self {
        Self::Write { kind: error.kind(), problem: error.to_string() }
    }

    pub(super) fn read(offset: u64) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Read { offset, kind: error.kind(), problem: error.to_string() }
    }
}
