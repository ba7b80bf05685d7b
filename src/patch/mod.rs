//! The `.mpatch` container; `docs/format.md` is the law.
//!
//! ```text
//! Draft --encode--> bytes --Patch::decode--> Patch { manifest, signatures; terms and undo logs on demand }
//! ```
//!
//! A patch is a small manifest, uncompressed and first, which commits to every later byte but the signatures: so its
//! digest is the patch's name, and signing the manifest signs the patch. This room knows neither files nor MEMIT,
//! and reads bytes from anybody: whatever they are, it answers with a [`Patch`] or a [`PatchError`].

pub mod layout;
pub mod manifest;

mod draft;

mod encode;

mod decode;

mod encoding;
mod error;
mod rules;
mod section;
mod signature;

pub use decode::{Patch, Signed};
pub use draft::{BindingDraft, Draft, TensorDraft};
pub use encode::encode;
pub use error::PatchError;
pub use manifest::Manifest;
pub use rules::{check_line_name, check_text};
pub use signature::{Signature, SignatureKind};

// For fuzzers and vectors, which have one section's bytes and no file around them.
#[doc(hidden)]
pub use section::decode_section;
