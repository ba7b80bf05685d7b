//! Signatures of one patch from two places, as one block: both sides of a merge have it, or a file lies beside it.

use std::collections::BTreeSet;

use mpatch::patch::Signature;
use mpatch::patch::layout::SIGNATURES_MAX;
use mpatch::sign::{Fingerprint, SshSig, SshSigError};

use crate::report::count;

/// All signatures of a patch.
#[derive(Debug, PartialEq, Eq)]
pub struct United {
    /// One of each key, and those of kinds that are not judged. Their order does not depend on where each was found, so
    /// that everybody who has the same ones has the same file.
    pub signatures: Vec<Signature>,
    /// How many were left out that do not fit the patch, or have no room in it.
    pub left_out: usize,
}

/// What a signature says, whoever believes it.
enum Said {
    /// This key has signed the patch.
    By(Fingerprint),
    /// Nobody here can tell.
    Unjudged,
    /// Nothing: it would spoil the others.
    Bad,
}

impl Said {
    fn of(signature: &Signature, manifest: &[u8]) -> Self {
        let parsed = SshSig::parse(&signature.bytes);
        let verified = parsed.and_then(|parsed| parsed.verify(manifest).map(|()| parsed.key().fingerprint()));
        match verified {
            Ok(key) => Said::By(key),
            Err(SshSigError::Unsupported(_)) => Said::Unjudged,
            Err(_) => Said::Bad,
        }
    }
}

impl United {
    /// Of two places; where there are more than a patch has room for, those of the first one stay.
    pub fn of(manifest: &[u8], first: &[Signature], second: &[Signature]) -> Self {
        let mut all: Vec<&Signature> = first.iter().chain(second).collect();
        all.sort_by_key(|signature| &signature.bytes);
        all.dedup();
        let (mut keys, mut left_out) = (BTreeSet::new(), 0);
        all.retain(|signature| match Said::of(signature, manifest) {
            Said::By(key) => keys.insert(key),
            Said::Unjudged => true,
            Said::Bad => {
                left_out += 1;
                false
            }
        });
        let excess = all.len().saturating_sub(SIGNATURES_MAX);
        let is_in_first = |signature: &&Signature| first.contains(signature);
        let excessive: Vec<&Signature> =
            all.iter().rev().copied().filter(|signature| !is_in_first(signature)).take(excess).collect();
        all.retain(|signature| !excessive.contains(signature));
        Self { signatures: all.into_iter().cloned().collect(), left_out: left_out + excess }
    }

    /// Says of the patch `name` that some were left out; nothing where none were.
    pub fn word_of_left_out(&self, name: &str) -> Option<String> {
        let left_out = count(self.left_out, "signature");
        let said =
            format!("{left_out} of the patch {name} left out, which do not fit it or have no room in it");
        (self.left_out > 0).then_some(said)
    }
}

/// Whether a signature is a good one of a key that has not signed among `known`.
pub fn is_news(signature: &Signature, known: &[Signature], manifest: &[u8]) -> bool {
    let key = |signature: &Signature| match Said::of(signature, manifest) {
        Said::By(key) => Some(key),
        Said::Unjudged | Said::Bad => None,
    };
    key(signature).is_some_and(|found| !known.iter().any(|known| key(known) == Some(found)))
}
