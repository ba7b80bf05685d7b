//! Typed digests: a hash says what it is the hash *of*.
//!
//! All are BLAKE3. Digests of bytes that lie in a file as they are (a tensor, a section, a whole file) are the
//! plain hash, so that `b3sum` checks them; ids that mpatch composes itself are derived under a context of their
//! own, so that no other BLAKE3 value can be mistaken for one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Size of every digest in bytes.
pub(crate) const DIGEST_SIZE_BYTES: usize = 32;

/// The text is not 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a digest: expected 64 hexadecimal digits")]
pub struct DigestParseError {
    text: String,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; DIGEST_SIZE_BYTES]);

        impl $name {
            /// Wraps the 32 bytes of a digest that was read from somewhere.
            pub const fn from_bytes(bytes: [u8; DIGEST_SIZE_BYTES]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; DIGEST_SIZE_BYTES] {
                &self.0
            }

            /// The first 12 hexadecimal digits, for tables that people read.
            pub fn short(&self) -> String {
                self.to_string()[..12].to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = DigestParseError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                blake3::Hash::from_hex(text)
                    .map(|hash| Self(*hash.as_bytes()))
                    .map_err(|_| DigestParseError { text: text.to_owned() })
            }
        }

        // Hex where people read (JSON), the bare 32 bytes in the container.
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; DIGEST_SIZE_BYTES]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

/// A digest of bytes as they lie in a file: the plain BLAKE3, equal to what `b3sum` prints.
macro_rules! plain_digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        digest_type!($(#[$doc])* $name);

        impl $name {
            /// Digest of `bytes`.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// Digest of everything that `reader` still holds.
            ///
            /// # Errors
            /// Whatever reading fails with.
            pub fn of_reader(reader: impl std::io::Read) -> std::io::Result<Self> {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(reader)?;
                Ok(Self::finish(&hasher))
            }

            /// Ends a streamed hash; the hasher is a plain [`blake3::Hasher::new`].
            pub fn finish(hasher: &blake3::Hasher) -> Self {
                Self(*hasher.finalize().as_bytes())
            }
        }
    };
}

/// An id that mpatch composes: BLAKE3 `derive_key` under the context of its kind.
macro_rules! derived_digest_type {
    ($(#[$doc:meta])* $name:ident, $context:literal) => {
        digest_type!($(#[$doc])* $name);

        impl $name {
            /// The `derive_key` context string; part of the format, it never changes.
            pub const CONTEXT: &'static str = $context;

            /// The id of `material`.
            pub fn derive(material: &[u8]) -> Self {
                Self(blake3::derive_key(Self::CONTEXT, material))
            }
        }
    };
}

plain_digest_type!(
    /// BLAKE3 of one tensor's row-major little-endian bytes as they lie in the safetensors file.
    TensorDigest
);
plain_digest_type!(
    /// BLAKE3 of one section's stored (possibly compressed) bytes.
    SectionDigest
);
plain_digest_type!(
    /// BLAKE3 of a whole file: config, tokenizer, facts, corpus or statistics.
    FileDigest
);

impl FileDigest {
    /// Stands for a file that is not known, or was not there.
    pub fn of_nothing() -> Self {
        Self::of(b"")
    }

    /// Whether the file is not known.
    pub fn is_of_nothing(&self) -> bool {
        *self == Self::of_nothing()
    }
}
derived_digest_type!(
    /// Identity of all weights of a checkpoint, whatever its sharding; see [`WeightsId::of_tensors`].
    WeightsId,
    "mpatch 2026-11 weights id v1"
);
derived_digest_type!(
    /// Identity of a patch: derived from its manifest bytes, so signatures and signers do not change it.
    PatchId,
    "mpatch 2026-11 patch id v1"
);

impl WeightsId {
    /// Derives the id from `(name, dtype, shape, digest)` of every tensor, in any order.
    ///
    /// The material is, per tensor in bytewise order of names: name length (u32), name, dtype length (u32),
    /// dtype as safetensors writes it (`F16`), number of dimensions (u32), dimensions (u64 each), digest;
    /// all integers little-endian.
    pub fn of_tensors<'a>(
        tensors: impl IntoIterator<Item = (&'a str, &'a str, &'a [u64], TensorDigest)>,
    ) -> Self {
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by_key(|(name, ..)| *name);
        let mut material = Vec::new();
        let length = |material: &mut Vec<u8>, value: usize| {
            let value = u32::try_from(value).unwrap_or(u32::MAX);
            material.extend_from_slice(&value.to_le_bytes());
        };
        for (name, dtype, shape, digest) in tensors {
            length(&mut material, name.len());
            material.extend_from_slice(name.as_bytes());
            length(&mut material, dtype.len());
            material.extend_from_slice(dtype.as_bytes());
            length(&mut material, shape.len());
            for dimension in shape {
                material.extend_from_slice(&dimension.to_le_bytes());
            }
            material.extend_from_slice(digest.as_bytes());
        }
        Self::derive(&material)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_own_text() {
        let digest = TensorDigest::of(b"abc");
        assert_eq!(digest.to_string().parse::<TensorDigest>(), Ok(digest));
        assert!("abc".parse::<TensorDigest>().is_err());
    }

    #[test]
    fn a_weights_id_depends_on_names_and_not_on_order() {
        let (one, two) = (TensorDigest::of(b"1"), TensorDigest::of(b"2"));
        let shape = [1_u64];
        let id = |names: [(&str, TensorDigest); 2]| {
            WeightsId::of_tensors(names.iter().map(|(name, digest)| (*name, "F32", &shape[..], *digest)))
        };
        assert_eq!(id([("a", one), ("b", two)]), id([("b", two), ("a", one)]));
        assert_ne!(id([("a", one), ("b", two)]), id([("a", two), ("b", one)]));
    }
}
