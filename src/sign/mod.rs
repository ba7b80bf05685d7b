//! Who signed a patch, and whether that is somebody to believe; `docs/trust.md` tells it to people.
//!
//! ```text
//! manifest + signatures ─┐
//! allowed_signers ───────┼─▶ judge ─▶ trusted | unknown | expired | revoked | bad | unsigned   (V1)
//! revoked, policy, now ──┘                                 │
//! line, sequence ───────────────────────── KnownLines ─▶ new | same | older | conflicting
//! ```
//!
//! Signatures are OpenSSH's, over the manifest's bytes, so that `ssh-keygen` checks ours and we check its own.
//! This room takes bytes and the time as arguments: it opens no file, asks no clock and keeps no key.

pub mod allowed_signers;
pub mod key;
pub mod line;
pub mod policy;
pub mod sshsig;
pub mod trust;

mod time;
mod wire;

pub use allowed_signers::AllowedSigners;
pub use key::{Fingerprint, KeyError, PrivateKey, PublicKey};
pub use line::KnownLines;
pub use policy::Policy;
pub use sshsig::{NAMESPACE, SshSig, SshSigError};
pub use trust::{Answer, Judgement, Keyring, Missing, Unaccepted, judge};
