//! Who signed the patches of a history, as the trust in force now knows them: nothing is let pass or refused by it.

use mpatch::digest::PatchId;
use mpatch::sign::trust::Finding;
use mpatch::sign::{Answer, Judgement};
use mpatch::store::{CommitId, Store, StoreError};
use serde::Serialize;

use crate::error::CommandError;
use crate::trust::{TrustFiles, judge_recorded};

/// A patch of a history, and what its signatures say.
#[derive(Debug, Serialize)]
pub struct SignedPatch {
    patch: PatchId,
    trust: Option<Judgement>,
}

impl SignedPatch {
    /// The patch as the state `state` has it.
    pub fn of(
        store: &Store,
        state: CommitId,
        patch: PatchId,
        files: &TrustFiles,
    ) -> Result<Self, CommandError> {
        Ok(Self { patch, trust: judgement(store, state, patch, files)? })
    }

    /// The patch and who signed it, as cells of a row.
    pub fn row(&self) -> Vec<String> {
        vec![self.patch.short(), in_words(self.trust.as_ref())]
    }
}

/// What the signatures of a patch say, as the state `state` has it; none where its bytes are not here.
pub fn judgement(
    store: &Store,
    state: CommitId,
    patch: PatchId,
    files: &TrustFiles,
) -> Result<Option<Judgement>, CommandError> {
    match store.signed(state, patch) {
        Ok(signed) => judge_recorded(&signed, files).map(Some),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The answer, and everybody who signed: `trusted: alice@example.org`.
pub fn in_words(judgement: Option<&Judgement>) -> String {
    let Some(Judgement { answer, signatures, .. }) = judgement else {
        return "not here: `mpatch pull` fetches it".to_owned();
    };
    let signers: Vec<String> = signatures.iter().map(|found| signer(found, *answer)).collect();
    if signers.is_empty() { answer.to_string() } else { format!("{answer}: {}", signers.join("; ")) }
}

/// Whom the key of a signature stands for, or which one it is; with what is to be said of it alone, where that is
/// another thing than `answer`.
fn signer(found: &Finding, answer: Answer) -> String {
    let key = || found.key.map_or_else(|| "a key that cannot be read".to_owned(), |key| key.to_string());
    let who = if found.principals.is_empty() { key() } else { found.principals.join(" and ") };
    if found.answer == answer { who } else { format!("{who} ({})", found.answer) }
}
