//! The judgement: one answer about a patch, from its signatures, the believed keys, the revoked ones and the time.
//!
//! Each signature is judged by itself, in this order: does it fit the manifest, is its key revoked, is its key
//! believed for patches, is it believed now. One bad signature spoils the patch, because somebody has tampered with
//! it; otherwise what counts is how many distinct believed keys signed, and who they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::allowed_signers::{AllowedSigners, Entry, OWN_PRINCIPAL, Patterns};
use super::key::{Fingerprint, PublicKey};
use super::policy::Policy;
use super::sshsig::{NAMESPACE, SshSig, SshSigError};

/// Believed keys and where they were found, and keys that are believed no more.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// The files of believed keys, by name.
    pub sources: Vec<(String, AllowedSigners)>,
    /// The revoked keys, with the name of the file that revokes them.
    pub revoked: Vec<(String, PublicKey)>,
    /// Files of keys that are believed only once their reader has accepted them.
    pub unaccepted: Vec<Unaccepted>,
}

impl Keyring {
    /// Whether the key of this fingerprint is believed for patches at `now`, in seconds since 1970.
    pub fn trusts(&self, fingerprint: Fingerprint, now: u64) -> bool {
        let mut entries = self.sources.iter().flat_map(|(_, signers)| &signers.entries);
        let found = entries.find(|entry| entry.key.fingerprint() == fingerprint);
        found.is_some_and(|entry| Worth::of(&entry.key, self, now).answer == Answer::Trusted)
    }
}

/// A file of keys that believes nobody, because whoever reads it has not accepted it. It only helps to say why a key is
/// unknown.
#[derive(Debug, Clone)]
pub struct Unaccepted {
    /// Its name.
    pub file: String,
    /// Its keys.
    pub signers: AllowedSigners,
    /// What keeps it from counting, in words that go on after its name.
    pub lack: String,
}

/// The one answer about a patch, or about one of its signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Answer {
    /// Signed by a key that is believed, as the policy asks.
    Trusted,
    /// The signature is good, but nobody said that its key is to be believed.
    Unknown,
    /// The key is believed, but not at this time.
    Expired,
    /// The key is believed no more.
    Revoked,
    /// A signature does not fit: somebody has tampered with it.
    Bad,
    /// There is no signature.
    Unsigned,
    /// The only signatures are of a kind that is not judged.
    Unsupported,
    /// There are trusted signatures, but not all that the policy asks for.
    Insufficient,
}

impl Answer {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Answer::Trusted => "trusted",
            Answer::Unknown => "unknown",
            Answer::Expired => "expired",
            Answer::Revoked => "revoked",
            Answer::Bad => "bad",
            Answer::Unsigned => "unsigned",
            Answer::Unsupported => "unsupported",
            Answer::Insufficient => "insufficient",
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What was found about one signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// Where the signature stands: `signature 1`, or the name of its own file.
    pub place: String,
    /// Its key; none if the signature cannot be read.
    pub key: Option<Fingerprint>,
    /// The algorithm of its key.
    pub algorithm: Option<String>,
    /// The answer about this signature alone.
    pub answer: Answer,
    /// Whom its key stands for, in the words of whoever believes it.
    #[serde(serialize_with = "as_list")]
    pub principals: Arc<[String]>,
    /// The files that the answer rests on.
    #[serde(serialize_with = "as_list")]
    pub sources: Arc<[String]>,
    /// Why the answer is not better; none for a trusted signature.
    pub reason: Option<String>,
    /// For whom the key speaks, now, as the entries that believe it say.
    #[serde(skip)]
    speaks_for: Arc<[Patterns]>,
}

fn as_list<S: Serializer>(texts: &Arc<[String]>, serializer: S) -> Result<S::Ok, S::Error> {
    texts.as_ref().serialize(serializer)
}

/// What was found about a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Judgement {
    /// The one answer.
    pub answer: Answer,
    /// Why it is not better; none for a trusted patch.
    pub reason: Option<String>,
    /// What the policy asks for beyond the trusted signatures.
    #[serde(skip)]
    pub missing: Missing,
    /// The signatures, those in the patch first.
    pub signatures: Vec<Finding>,
}

/// What a policy asks for and the trusted signatures of a patch do not give.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// So many more trusted keys.
    pub keys: usize,
    /// The signatures of these principals.
    pub principals: Vec<String>,
}

impl Missing {
    fn of(signatures: &[Finding], policy: &Policy) -> Self {
        let trusted = signatures.iter().filter(|found| found.answer == Answer::Trusted);
        let trusted: Vec<&Finding> = trusted.collect();
        let is_own = |all: &Patterns| all.as_str() == OWN_PRINCIPAL;
        // All of the user's own keys are one of them.
        let keys: BTreeSet<Option<Fingerprint>> =
            trusted.iter().map(|found| found.key.filter(|_| !found.speaks_for.iter().all(is_own))).collect();
        let speaks_for = |principal: &str| {
            let all = trusted.iter().flat_map(|found| found.speaks_for.iter());
            all.filter(|all| !is_own(all)).any(|all| all.matches(principal))
        };
        let missing = policy.required.iter().filter(|principal| !speaks_for(principal));
        let keys = policy.threshold.saturating_sub(keys.len());
        Self { keys, principals: missing.cloned().collect() }
    }

    /// Every demand that is not met; none where all are.
    fn in_words(&self, policy: &Policy) -> Option<String> {
        let mut demands = Vec::new();
        if self.keys > 0 {
            let (wanted, found) = (policy.threshold, policy.threshold.saturating_sub(self.keys));
            demands.push(format!("for {wanted} trusted keys, {found} signed"));
        }
        let missing = self.principals.iter().map(|principal| format!("for the signature of `{principal}`"));
        demands.extend(missing);
        (!demands.is_empty()).then(|| format!("the policy asks {}", demands.join("; and ")))
    }
}

impl Judgement {
    /// The keys whose signatures are good and have `answer`, each once.
    pub fn keys(&self, answer: Answer) -> Vec<Fingerprint> {
        let mut keys: Vec<_> = self
            .signatures
            .iter()
            .filter(|found| found.answer == answer)
            .filter_map(|found| found.key)
            .collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

/// Judges `signatures`, each in binary form with the name of its place, over `manifest`, at `now` in seconds since
/// 1970.
///
/// ```
/// use mpatch::sign::allowed_signers::line_of;
/// use mpatch::sign::sshsig::sign;
/// use mpatch::sign::{AllowedSigners, Answer, Keyring, Policy, PrivateKey, judge};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let manifest = b"what `Patch::manifest_bytes` gives";
/// let key = PrivateKey::from_seed(&[7; 32], "")?;
/// let signatures = [("signature 1".to_owned(), sign(&key, manifest)?.bytes().to_vec())];
///
/// let believed = AllowedSigners::parse(&line_of("release@example.org", key.public()));
/// let sources = vec![("allowed_signers".to_owned(), believed)];
/// let keyring = Keyring { sources, ..Keyring::default() };
/// let now = 1_764_028_800;
/// let answer = |manifest: &[u8]| judge(manifest, &signatures, &keyring, &Policy::default(), now).answer;
/// assert_eq!(answer(manifest), Answer::Trusted);
/// assert_eq!(answer(b"another one"), Answer::Bad);
/// # Ok(())
/// # }
/// ```
pub fn judge(
    manifest: &[u8],
    signatures: &[(String, Vec<u8>)],
    keyring: &Keyring,
    policy: &Policy,
    now: u64,
) -> Judgement {
    // A key may have signed many times, and be listed many times: it is looked up once, and what was found is shared.
    let mut known: BTreeMap<Vec<u8>, Worth> = BTreeMap::new();
    let mut worth = |key: &PublicKey| {
        known.entry(key.wire().to_vec()).or_insert_with(|| Worth::of(key, keyring, now)).clone()
    };
    let findings = signatures.iter().map(|(place, bytes)| finding(place, bytes, manifest, &mut worth));
    let signatures: Vec<Finding> = findings.collect();
    let missing = Missing::of(&signatures, policy);
    let (answer, reason) = overall(&signatures, missing.in_words(policy));
    Judgement { answer, reason, missing, signatures }
}

fn finding(
    place: &str,
    bytes: &[u8],
    manifest: &[u8],
    worth: &mut dyn FnMut(&PublicKey) -> Worth,
) -> Finding {
    let mut found = Finding {
        place: place.to_owned(),
        key: None,
        algorithm: None,
        answer: Answer::Bad,
        principals: Arc::default(),
        sources: Arc::default(),
        reason: None,
        speaks_for: Arc::default(),
    };
    let signature = match SshSig::parse(bytes) {
        Ok(signature) => signature,
        Err(error) => return found.with_error(&error),
    };
    let key = signature.key();
    found.key = Some(key.fingerprint());
    found.algorithm = Some(key.algorithm());
    match signature.verify(manifest) {
        Ok(()) => found.with_worth(worth(key)),
        Err(error) => found.with_error(&error),
    }
}

impl Finding {
    fn with_error(self, error: &SshSigError) -> Self {
        let answer = match error {
            SshSigError::Unsupported(_) => Answer::Unsupported,
            _ => Answer::Bad,
        };
        Self { answer, reason: Some(error.to_string()), ..self }
    }

    /// The signature is good, and so it is worth what its key is.
    fn with_worth(self, worth: Worth) -> Self {
        let Worth { answer, principals, sources, reason, speaks_for } = worth;
        Self { answer, principals, sources, reason, speaks_for, ..self }
    }
}

/// What a key is worth, whatever it signed; cheap to copy, however often the key is listed.
#[derive(Debug, Clone)]
struct Worth {
    answer: Answer,
    principals: Arc<[String]>,
    sources: Arc<[String]>,
    reason: Option<String>,
    speaks_for: Arc<[Patterns]>,
}

impl Worth {
    fn of(key: &PublicKey, keyring: &Keyring, now: u64) -> Self {
        if let Some((source, _)) = keyring.revoked.iter().find(|(_, revoked)| revoked == key) {
            let reason = Some(format!("the key is revoked by `{source}`"));
            return Self { reason, sources: Arc::new([source.clone()]), ..Self::new(Answer::Revoked, &[]) };
        }
        let all = keyring
            .sources
            .iter()
            .flat_map(|(source, signers)| signers.entries.iter().map(move |entry| (source, entry)));
        let of_key = all.filter(|(_, entry)| entry.key == *key && !entry.is_authority);
        let (ours, others): (Vec<_>, Vec<_>) = of_key.partition(|(_, entry)| entry.may_sign_patches());
        let (valid, invalid): (Vec<_>, Vec<_>) =
            ours.into_iter().partition(|(_, entry)| is_valid(entry, now));
        if valid.is_empty() {
            return Self::without_valid_entry(&invalid, &others, now).or_unaccepted(key, keyring);
        }
        let speaks_for = valid.iter().map(|(_, entry)| entry.principals.clone()).collect();
        Self { speaks_for, ..Self::new(Answer::Trusted, &valid) }
    }

    fn without_valid_entry(invalid: &[(&String, &Entry)], others: &[(&String, &Entry)], now: u64) -> Self {
        if let Some((source, entry)) = invalid.first() {
            let when = if entry.valid_after.is_some_and(|after| now < after) {
                "is not valid yet"
            } else {
                "is not valid any more"
            };
            let reason = Some(format!("the key {when}, says `{source}`, line {}", entry.line));
            return Self { reason, ..Self::new(Answer::Expired, invalid) };
        }
        let reason = Some(match others.first() {
            Some((source, entry)) => {
                format!("the key may not sign for `{NAMESPACE}`, says `{source}`, line {}", entry.line)
            }
            None => "nobody has said that the key is to be trusted".to_owned(),
        });
        Self { reason, ..Self::new(Answer::Unknown, &[]) }
    }

    /// Says of an unknown key that it is listed where nobody has accepted it, if it is.
    fn or_unaccepted(mut self, key: &PublicKey, keyring: &Keyring) -> Self {
        let lists = |file: &&Unaccepted| {
            let mut entries = file.signers.entries.iter();
            entries.any(|entry| entry.key == *key && entry.may_sign_patches())
        };
        if self.answer == Answer::Unknown
            && let Some(file) = keyring.unaccepted.iter().find(lists)
        {
            self.reason = Some(format!("its key is listed in `{}`, {}", file.file, file.lack));
        }
        self
    }

    /// An answer that rests on these entries.
    fn new(answer: Answer, entries: &[(&String, &Entry)]) -> Self {
        let principals = each_once(entries.iter().map(|(_, entry)| entry.principals.as_str()));
        let sources = each_once(entries.iter().map(|(source, _)| source.as_str()));
        let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
        let (principals, sources) = (owned(principals), owned(sources));
        Self { answer, principals, sources, reason: None, speaks_for: Arc::default() }
    }
}

/// The items in their order, each once: a file may list a key tens of thousands of times.
fn each_once<T: Ord + Clone>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    items.filter(|item| seen.insert(item.clone())).collect()
}

fn is_valid(entry: &Entry, now: u64) -> bool {
    entry.valid_after.is_none_or(|after| now >= after)
        && entry.valid_before.is_none_or(|before| now <= before)
}

/// The answer about all signatures; `unmet` is what the policy asks for beyond those that are trusted.
fn overall(signatures: &[Finding], unmet: Option<String>) -> (Answer, Option<String>) {
    let first = |answer: Answer| signatures.iter().find(|found| found.answer == answer);
    let because = |found: &Finding| {
        let reason = found.reason.as_deref().unwrap_or_default();
        // Of several it matters which one it is.
        Some(if signatures.len() == 1 { reason.to_owned() } else { format!("{}: {reason}", found.place) })
    };
    if let Some(bad) = first(Answer::Bad) {
        return (Answer::Bad, because(bad));
    }
    if first(Answer::Trusted).is_some() {
        return match unmet {
            None => (Answer::Trusted, None),
            unmet => (Answer::Insufficient, unmet),
        };
    }
    let worst_first = [Answer::Revoked, Answer::Expired, Answer::Unknown, Answer::Unsupported];
    match worst_first.into_iter().find_map(first) {
        Some(found) => (found.answer, because(found)),
        None => (Answer::Unsigned, Some("there is no signature".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use super::*;
    use crate::sign::allowed_signers::line_of;
    use crate::sign::{PrivateKey, sshsig};

    const MANIFEST: &[u8] = b"a manifest";
    const NOW: u64 = 1_800_000_000;

    fn key(seed: u8) -> PrivateKey {
        PrivateKey::from_seed(&[seed; 32], "").unwrap()
    }

    fn signature(seed: u8) -> (String, Vec<u8>) {
        let signature = sshsig::sign(&key(seed), MANIFEST).unwrap();
        (format!("signature {seed}"), signature.bytes().to_vec())
    }

    fn keyring(lines: &[String]) -> Keyring {
        let signers = AllowedSigners::parse(&lines.join("\n"));
        assert_eq!(signers.problems, []);
        Keyring { sources: vec![("signers".into(), signers)], ..Keyring::default() }
    }

    fn trusting(seeds: &[u8]) -> Keyring {
        let line = |seed: &u8| line_of(&format!("signer{seed}@example.org"), key(*seed).public());
        keyring(&seeds.iter().map(line).collect::<Vec<_>>())
    }

    fn answer(signatures: &[(String, Vec<u8>)], keyring: &Keyring, policy: &str) -> Answer {
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        judge(MANIFEST, signatures, keyring, &policy, NOW).answer
    }

    #[test]
    fn the_five_answers_are_never_confused() {
        let trusting = trusting(&[1]);
        assert_eq!(answer(&[signature(1)], &trusting, "{}"), Answer::Trusted);
        assert_eq!(answer(&[signature(2)], &trusting, "{}"), Answer::Unknown);
        assert_eq!(answer(&[], &trusting, "{}"), Answer::Unsigned);
        let (place, mut bytes) = signature(1);
        *bytes.last_mut().unwrap() ^= 1;
        assert_eq!(answer(&[(place, bytes)], &trusting, "{}"), Answer::Bad);
        let revoking = Keyring { revoked: vec![("revoked".into(), key(1).public().clone())], ..trusting };
        assert_eq!(answer(&[signature(1)], &revoking, "{}"), Answer::Revoked);
        let line = |option: &str| keyring(&[format!("a {option} {}", key(1).public().line())]);
        assert_eq!(answer(&[signature(1)], &line("valid-before=\"20200101Z\""), "{}"), Answer::Expired);
        assert_eq!(answer(&[signature(1)], &line("valid-after=\"20400101Z\""), "{}"), Answer::Expired);
        assert_eq!(answer(&[signature(1)], &line("valid-before=\"20400101Z\""), "{}"), Answer::Trusted);
        assert_eq!(answer(&[signature(1)], &line("namespaces=\"git,file\""), "{}"), Answer::Unknown);
        assert_eq!(answer(&[signature(1)], &line("cert-authority"), "{}"), Answer::Unknown);
    }

    #[test]
    fn a_validity_has_a_first_and_a_last_second() {
        let validity = "valid-after=\"20260101Z\",valid-before=\"20270101Z\"";
        let keyring = keyring(&[format!("a {validity} {}", key(1).public().line())]);
        let (first, last) = (1_767_225_600, 1_798_761_600);
        for (now, answer) in [
            (first - 1, Answer::Expired),
            (first, Answer::Trusted),
            (last, Answer::Trusted),
            (last + 1, Answer::Expired),
        ] {
            let judged = judge(MANIFEST, &[signature(1)], &keyring, &Policy::default(), now);
            assert_eq!(judged.answer, answer, "{now}");
        }
    }

    #[test]
    fn a_revoked_key_is_told_before_one_that_has_expired() {
        let expired = format!("a valid-before=\"20200101Z\" {}", key(1).public().line());
        let revoked = vec![("revoked".into(), key(2).public().clone())];
        let keyring = Keyring { revoked, ..keyring(&[expired]) };
        assert_eq!(answer(&[signature(1), signature(2)], &keyring, "{}"), Answer::Revoked);
    }

    #[test]
    fn a_file_that_is_not_accepted_believes_nobody_and_is_named() {
        let authority = format!("a cert-authority {}", key(4).public().line());
        let lines = [line_of("signer1@example.org", key(1).public()), authority];
        let [(_, signers)] = keyring(&lines).sources.try_into().expect("one file");
        let unaccepted =
            Unaccepted { file: "project".into(), signers, lack: "which nobody has accepted".into() };
        let keyring = Keyring { unaccepted: vec![unaccepted], ..trusting(&[2]) };
        let judged = |seed| judge(MANIFEST, &[signature(seed)], &keyring, &Policy::default(), NOW);
        assert_eq!(judged(1).answer, Answer::Unknown);
        let reason = judged(1).reason.unwrap();
        assert_eq!(reason, "its key is listed in `project`, which nobody has accepted");
        for other in [3, 4] {
            assert!(!judged(other).reason.unwrap().contains("project"), "{other}");
        }
        assert_eq!(judged(2).answer, Answer::Trusted);
    }

    #[test]
    fn one_bad_signature_spoils_the_patch_and_one_unknown_does_not() {
        let trusting = trusting(&[1]);
        assert_eq!(answer(&[signature(2), signature(1)], &trusting, "{}"), Answer::Trusted);
        let bad = ("bad".to_owned(), b"SSHSIG".to_vec());
        assert_eq!(answer(&[signature(1), bad], &trusting, "{}"), Answer::Bad);
    }

    #[test]
    fn a_threshold_counts_keys_and_not_signatures() {
        let two = r#"{"threshold": 2}"#;
        let trusting = trusting(&[1, 2]);
        assert_eq!(answer(&[signature(1), signature(1)], &trusting, two), Answer::Insufficient);
        assert_eq!(answer(&[signature(1), signature(3)], &trusting, two), Answer::Insufficient);
        assert_eq!(answer(&[signature(1), signature(2)], &trusting, two), Answer::Trusted);
    }

    #[test]
    fn a_required_principal_must_have_signed() {
        let policy = r#"{"required": ["signer2@example.org"]}"#;
        assert_eq!(answer(&[signature(1)], &trusting(&[1, 2]), policy), Answer::Insufficient);
        assert_eq!(answer(&[signature(2)], &trusting(&[1, 2]), policy), Answer::Trusted);
        // A pattern that excludes the name is not its signature.
        let lines = [format!("*@example.org,!signer2@* {}", key(1).public().line())];
        assert_eq!(answer(&[signature(1)], &keyring(&lines), policy), Answer::Insufficient);
    }

    #[test]
    fn a_key_is_looked_up_once_however_often_it_signed_and_is_listed() {
        let line = |name: usize| line_of(&format!("signer{name}@example.org"), key(1).public());
        let lines: Vec<String> = (0..1000).chain(0..1000).map(line).collect();
        let judged = judge(MANIFEST, &vec![signature(1); 16], &keyring(&lines), &Policy::default(), NOW);
        assert_eq!(judged.answer, Answer::Trusted);
        let first = &judged.signatures[0];
        assert_eq!((first.principals.len(), first.sources.len()), (1000, 1));
        assert_eq!(first.principals[999], "signer999@example.org");
        for other in &judged.signatures[1..] {
            assert!(Arc::ptr_eq(&first.principals, &other.principals), "the names are there twice");
            assert!(Arc::ptr_eq(&first.speaks_for, &other.speaks_for), "the patterns are there twice");
        }
    }

    /// A number that counts how often it is compared.
    #[derive(Clone)]
    struct Counted<'a>(u32, &'a Cell<usize>);

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other) == Ordering::Equal
        }
    }

    impl Eq for Counted<'_> {}

    #[test]
    fn names_are_told_apart_in_few_steps_each() {
        let (steps, names) = (Cell::new(0), 10_000);
        let kept = each_once((0..names).rev().chain(0..names).map(|name| Counted(name, &steps)));
        assert!(kept.iter().map(|kept| kept.0).eq((0..names).rev()));
        // A tree of this many names is at most 6 nodes deep, of 11 names each; all pairs would be 50 million.
        assert!(steps.get() <= 2 * 10_000 * 6 * 11, "{} comparisons", steps.get());
    }

    #[test]
    fn the_reason_names_the_place() {
        let both = [signature(2), signature(3)];
        let judged = judge(MANIFEST, &both, &trusting(&[1]), &Policy::default(), NOW);
        assert!(judged.reason.unwrap().starts_with("signature 2: nobody"), "{:?}", judged.signatures);
        assert_eq!(judged.signatures[0].key, Some(key(2).public().fingerprint()));
    }
}
