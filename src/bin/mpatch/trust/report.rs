//! What a command tells of a patch's signatures.

use std::collections::BTreeSet;

use mpatch::patch::manifest::Line;
use mpatch::sign::line::{KnownLines, Succession};
use mpatch::sign::policy::Rung;
use mpatch::sign::trust::Finding;
use mpatch::sign::{Answer, Fingerprint, Judgement, Policy};
use serde::Serialize;

use super::Allowance;
use crate::report::Page;

/// What a command tells of a patch's signatures.
#[derive(Debug, Clone, Serialize)]
pub struct TrustReport {
    /// The judgement itself.
    #[serde(flatten)]
    pub judgement: Judgement,
    /// The patch's line, if it has one.
    pub line: Option<LineReport>,
    /// What was asked of the signatures, if a policy was found.
    pub policy: Option<PolicyReport>,
    /// What the user had to allow for this patch, e.g. `unsigned`.
    pub allowed: Vec<Allowance>,
    /// The user's own words for that, at the end of a suggested command that will ask again: ` --allow-unsigned`.
    #[serde(skip)]
    pub words: String,
}

/// What is asked of patches here beyond one trusted signature.
#[derive(Debug, Clone, Serialize)]
pub struct PolicyReport {
    /// All that the files ask for.
    #[serde(flatten)]
    pub policy: Policy,
    /// The files.
    pub files: Vec<String>,
}

impl PolicyReport {
    /// What is asked, and by which files.
    pub fn in_words(&self) -> String {
        let Policy { threshold, required, minimal_rung, .. } = &self.policy;
        let keys = (*threshold > 1).then(|| format!("{threshold} trusted keys"));
        let signers = required.iter().map(|principal| format!("the signature of {principal}"));
        let rung = (*minimal_rung > Rung::V0).then(|| format!("{minimal_rung} of `verify`"));
        let exceptions = self.policy.forbids_exceptions().then(|| "no exceptions".to_owned());
        let asked: Vec<String> = keys.into_iter().chain(signers).chain(rung).chain(exceptions).collect();
        let asked = if asked.is_empty() { "nothing more".to_owned() } else { asked.join(", ") };
        format!("{asked} ({})", self.files.join(", "))
    }
}

/// What a command tells of a patch's line.
#[derive(Debug, Clone, Serialize)]
pub struct LineReport {
    /// The line's name.
    pub name: String,
    /// The patch's number in it.
    pub sequence: u64,
    /// How it stands to what is remembered: `first`, `newer`, `same`, `older`, `conflicting`, `far ahead`.
    pub standing: &'static str,
    /// The highest number remembered.
    pub known: Option<u64>,
    /// A higher one of another key that is trusted, if there is one.
    pub behind: Option<Behind>,
    /// What is wrong with the number, if anything is.
    #[serde(skip)]
    pub problem: Option<String>,
}

/// What a trusted key that did not sign a patch is known to have in a line of the same name.
#[derive(Debug, Clone, Serialize)]
pub struct Behind {
    /// The key.
    pub key: Fingerprint,
    /// Its highest number.
    pub sequence: u64,
}

impl Behind {
    /// The highest number above that of a patch, of the keys that count.
    pub fn find(line: &Line, known: &KnownLines, counts: impl Fn(Fingerprint) -> bool) -> Option<Self> {
        let of_line = known.iter().filter(|(name, ..)| *name == line.name);
        let above = of_line.filter(|(_, key, known)| known.sequence > line.sequence && counts(*key));
        let highest = above.max_by_key(|(_, _, known)| known.sequence);
        highest.map(|(_, key, known)| Self { key, sequence: known.sequence })
    }

    /// The warning: two keys may go on one line, and then it is a rollback, or have one of their own each.
    pub fn in_words(&self, patch: &str, line: &LineReport) -> String {
        let Self { key, sequence } = self;
        let LineReport { name, sequence: own, .. } = line;
        format!(
            "`{patch}` is number {own} of the line `{name}`, whose number {sequence} is known of another key, {key}: if both keys go on one line, this is a rollback, and that key's signature may have been taken off"
        )
    }
}

/// Why a number that stands so is refused, if it is.
pub fn problem_of_number(standing: Succession) -> Option<String> {
    match standing {
        Succession::First | Succession::Newer | Succession::Same => None,
        Succession::Older(known) => Some(format!("number {} is known: this is a rollback", known.sequence)),
        Succession::Conflicting(known) => {
            Some(format!("patch {} is known by that number", known.patch.short()))
        }
        Succession::FarAhead => Some("no honest number is so far ahead".to_owned()),
    }
}

impl TrustReport {
    /// The outcome in one line.
    pub fn in_words(&self) -> String {
        let judgement = &self.judgement;
        let words = match (&judgement.answer, &judgement.reason) {
            (Answer::Trusted, _) => {
                let is_trusted = |found: &&Finding| found.answer == Answer::Trusted;
                let (trusted, others): (Vec<_>, Vec<_>) = judgement.signatures.iter().partition(is_trusted);
                // A key that signed twice is named once.
                let mut keys = BTreeSet::new();
                let named = trusted.into_iter().chain(others);
                let named = named.filter(|found| found.key.is_none_or(|key| keys.insert(key)));
                named.map(signature_in_words).collect::<Vec<_>>().join("; ")
            }
            (answer, Some(reason)) => {
                let key = judgement
                    .signatures
                    .iter()
                    .find(|found| found.answer == *answer)
                    .and_then(|found| found.key);
                let key = key.map(|key| format!(" ({key})")).unwrap_or_default();
                format!("{answer}{key}: {reason}")
            }
            (answer, None) => answer.to_string(),
        };
        match &self.line {
            Some(line) => {
                let problem =
                    line.problem.as_ref().map_or_else(String::new, |problem| format!(", but {problem}"));
                format!("{words}; number {} of the line {}{problem}", line.sequence, line.name)
            }
            None => words,
        }
    }

    /// Who signed and what the user had to allow, in a line of its own.
    pub fn write(&self, page: &mut Page) {
        page.line(&self.line());
    }

    /// That line.
    pub fn line(&self) -> String {
        let flags: Vec<_> = self.allowed.iter().map(|allowance| allowance.flag()).collect();
        let flags = flags.join(" and ");
        let words = match self.judgement.answer {
            Answer::Trusted => format!("signed by {}", self.in_words()),
            _ => self.in_words(),
        };
        if flags.is_empty() { words } else { format!("{words}; let pass by {flags}") }
    }
}

/// One of the signatures of a patch that is trusted: also one that adds nothing, since somebody may ask about just it.
fn signature_in_words(found: &Finding) -> String {
    let key = found.key.map(|key| key.to_string()).unwrap_or_default();
    let reason = found.reason.as_deref().unwrap_or_default();
    match found.answer {
        Answer::Trusted => {
            format!("{} with {key} ({})", found.principals.join(" and "), found.sources.join(", "))
        }
        Answer::Unsupported => format!("and one that is not judged: {reason}"),
        answer => format!("and one by a key that is {answer}, {key}: {reason}"),
    }
}
