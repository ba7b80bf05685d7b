//! Facts: what a model is to be made to say, read from the file formats that people already have.
//!
//! ```text
//! bytes ── source ──▶ JSON elements ── layouts ──▶ records ── check ──▶ FactsFile
//!          (array, object, lines)      (by content)            (twice? contradicting?)
//! ```
//!
//! Everything that is wrong with a request whatever the model is found here, before one is loaded. Nothing here opens a
//! file: bytes go in, values come out, and [`FactsFile::digest`] is the digest of exactly those bytes.

mod check;
mod error;
mod fields;
mod layouts;
pub(crate) mod repeated;
mod source;
#[cfg(test)]
mod tests;
mod things;
pub(crate) mod words;

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::digest::FileDigest;

pub(crate) use check::same_target;
pub use error::{Clash, FactsError, FactsErrorKind, Place, excerpt, shortened};
pub use layouts::{Layout, SCHEMA};
pub use things::Targets;
pub(crate) use things::Things;

/// Largest text of one field, in bytes.
pub const TEXT_SIZE_MAX_BYTES: usize = 4096;

/// Largest number of facts in one file.
pub const FACTS_MAX: usize = 500_000;

/// Where the subject goes in a prompt.
pub const PLACEHOLDER: &str = "{}";

/// A facts file, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactsFile {
    /// The layout that was recognised.
    pub layout: Layout,
    /// The records, in the file's order.
    pub records: Vec<Record>,
    /// Digest of the bytes as they were read.
    pub digest: FileDigest,
}

/// One requested fact, and the prompts that tell whether it was learned well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// The fact.
    #[serde(flatten)]
    pub request: Request,
    /// Other ways to ask for the same fact, with the subject filled in.
    pub paraphrases: Vec<String>,
    /// Prompts about other things, whose answers must stay as they are.
    pub neighbors: Vec<Probe>,
    /// Openings for free text about the subject.
    pub generation_prompts: Vec<String>,
    /// Prompts whose answers follow from the new fact.
    pub portability: Vec<Probe>,
    /// What the fact says of its subject, by the name that CounterFact has for it, e.g. `P641`.
    #[serde(skip)]
    pub relation: Option<String>,
    /// The file names another target beside this one, too: the `alt` of zsRE records. Nothing here reads it.
    #[serde(skip)]
    pub has_alternative: bool,
}

/// One fact: this prompt, filled with this subject, is to go on with the new target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// The id that the file gives it.
    pub id: Option<String>,
    /// The prompt, without blanks around it; holds `{}` exactly once.
    pub prompt: String,
    /// The subject; not empty, and without blanks around it.
    pub subject: String,
    /// What the model is to say, without blanks around it.
    pub target_new: String,
    /// What it says now, where the file tells.
    ///
    /// zsRE records tell nothing; nothing then competes with the new target, and accuracy is what counts.
    pub target_old: Option<String>,
    /// A remark or a source.
    pub note: Option<String>,
}

/// A prompt beside the fact, and its answer where the file tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// The prompt.
    pub prompt: String,
    /// The answer, without blanks around it; neighbours that share one have it once.
    #[serde(serialize_with = "as_text")]
    pub expected: Option<Arc<str>>,
}

impl FactsFile {
    /// Reads a facts file of any known layout.
    ///
    /// # Errors
    /// The first thing that is wrong, with its record, field and line; see [`FactsError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FactsError> {
        Self::parse_first(bytes, usize::MAX)
    }

    /// As [`FactsFile::parse`], but takes the first `limit` records only: those after them may contradict them.
    ///
    /// # Errors
    /// As [`FactsFile::parse`].
    pub fn parse_first(bytes: &[u8], limit: usize) -> Result<Self, FactsError> {
        Self::parse_checked(bytes, limit, true)
    }

    /// As [`FactsFile::parse_first`], for records that a model is only asked about: they may contradict each other.
    ///
    /// # Errors
    /// As [`FactsFile::parse`], but for facts that exclude each other.
    pub fn parse_questions(bytes: &[u8], limit: usize) -> Result<Self, FactsError> {
        Self::parse_checked(bytes, limit, false)
    }

    fn parse_checked(bytes: &[u8], limit: usize, are_facts: bool) -> Result<Self, FactsError> {
        let elements = source::elements(bytes)?;
        let (layout, mut placed) = layouts::records(&elements)?;
        placed.truncate(limit);
        if are_facts {
            check::no_fact_twice(&placed)?;
        }
        let records = placed.into_iter().map(|(_, record)| record).collect();
        Ok(Self { layout, records, digest: FileDigest::of(bytes) })
    }

    /// The requests, in order.
    pub fn requests(&self) -> impl ExactSizeIterator<Item = &Request> {
        self.records.iter().map(|record| &record.request)
    }

    /// What is allowed and yet worth knowing before a long run, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        check::warnings(&self.records)
    }
}

impl Record {
    /// A record of `request` alone, with nothing beside it to measure.
    pub fn of(request: Request) -> Self {
        Self {
            request,
            paraphrases: Vec::new(),
            neighbors: Vec::new(),
            generation_prompts: Vec::new(),
            portability: Vec::new(),
            relation: None,
            has_alternative: false,
        }
    }

    /// The prompts of neighbours whose answers are known, each with its answer.
    ///
    /// Of the others nothing says what they must go on saying, the record's old target least of all.
    pub fn answered_neighbors(&self) -> impl Iterator<Item = (&str, &str)> {
        answered(&self.neighbors)
    }

    /// The prompts whose answers follow from the new fact and are known, each with its answer.
    pub fn answered_portability(&self) -> impl Iterator<Item = (&str, &str)> {
        answered(&self.portability)
    }
}

fn answered(probes: &[Probe]) -> impl Iterator<Item = (&str, &str)> {
    probes.iter().filter_map(|probe| Some((probe.prompt.as_str(), probe.expected.as_deref()?)))
}

impl Request {
    /// The prompt with the subject filled in.
    pub fn text(&self) -> String {
        self.prompt.replacen(PLACEHOLDER, &self.subject, 1)
    }

    /// The new target as it follows the prompt: with one space before it.
    pub fn target_new_spaced(&self) -> String {
        spaced(&self.target_new)
    }
}

fn as_text<S: Serializer>(text: &Option<Arc<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(serializer)
}

/// A target with the one space before it that sets it off from the prompt.
pub fn spaced(target: &str) -> String {
    format!(" {target}")
}
