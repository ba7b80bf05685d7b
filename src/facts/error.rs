//! What can be wrong with a facts file: each error names the record, the field, what was expected and what stands
//! there; [`FactsError::hint`] says what to do about it.

use std::borrow::Cow;
use std::fmt;

use super::check::normalized;
use super::{FACTS_MAX, Layout, SCHEMA, TEXT_SIZE_MAX_BYTES};

/// Where a record stands in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its position among the records, from 1.
    pub position: usize,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its line, from 1, in a file of JSON lines.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "record {}", self.position)?;
        match (&self.id, self.line) {
            (Some(id), Some(line)) => write!(formatter, " (id {}, line {line})", excerpt(id)),
            (Some(id), None) => write!(formatter, " (id {})", excerpt(id)),
            (None, Some(line)) => write!(formatter, " (line {line})"),
            (None, None) => Ok(()),
        }
    }
}

/// Two records that cannot both stand: one fact asked for twice, or two targets for one prompt and subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clash {
    /// The earlier record.
    pub first: Place,
    /// The later record.
    pub second: Place,
    /// The filled prompt that they share.
    pub text: String,
    /// What the earlier one asks for.
    pub first_target: String,
    /// What the later one asks for.
    pub second_target: String,
}

impl fmt::Display for Clash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, second, text, first_target, second_target } = self;
        let (text, target) = (excerpt(text), excerpt(second_target));
        if normalized(first_target) == normalized(second_target) {
            return write!(formatter, "{second} asks for the same fact as {first}: {text} -> {target}");
        }
        let other = excerpt(first_target);
        write!(
            formatter,
            "{second} contradicts {first}: after {text} one asks for {target} and the other for {other}"
        )
    }
}

/// The broad kind of a [`FactsError`], for choosing an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FactsErrorKind {
    /// The file is not what it should be.
    Malformed,
    /// Records are well formed but exclude each other.
    Conflicting,
    /// A documented limit is exceeded.
    LimitExceeded,
    /// A later version of the facts schema.
    UnsupportedVersion,
}

/// Something is wrong with a facts file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    /// Nothing in the file.
    #[error("the facts file is empty: expected at least one fact")]
    Empty,
    /// Text of another encoding.
    #[error("the facts file is UTF-16: expected UTF-8")]
    Utf16,
    /// Nothing of JSON: a table, or another language.
    #[error("the facts file is not JSON: line {line} begins with {}, expected `{{` or `[`", excerpt(.found))]
    OtherLanguage {
        /// Line, from 1.
        line: usize,
        /// The line.
        found: String,
    },
    /// Not JSON.
    #[error("the facts file is not JSON: {problem} at line {line}, column {column}")]
    NotJson {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },
    /// An object with two values of one name.
    #[error(
        "the key {key} stands twice in one object, again at line {line}, column {column}: expected each once"
    )]
    KeyTwice {
        /// The key, quoted.
        key: String,
        /// Line of the second, from 1.
        line: usize,
        /// Its column, from 1.
        column: usize,
    },
    /// The file's outermost value is neither an object nor an array.
    #[error("the facts file holds {found}: expected an object or an array of objects")]
    NotRecords {
        /// The kind of value found.
        found: &'static str,
    },
    /// An element that is not an object.
    #[error("{place} is {found}: expected an object")]
    NotAnObject {
        /// The record.
        place: Place,
        /// The kind of value found.
        found: &'static str,
    },
    /// No layout has such a record.
    #[error("{place} has no layout that mpatch knows: its fields are {fields}")]
    UnknownLayout {
        /// The record.
        place: Place,
        /// Its fields, as text.
        fields: String,
    },
    /// The file begins in one layout and goes on in another.
    #[error("{place} is laid out as {found}, and the records before it as {expected}")]
    MixedLayouts {
        /// The first record that differs.
        place: Place,
        /// The layout of the records before.
        expected: Layout,
        /// The layout of this one.
        found: Layout,
    },
    /// mpatch's own layout in a version of the future, or of nobody.
    #[error("{place} says schema {found}: expected `{SCHEMA}`")]
    UnknownSchema {
        /// The record.
        place: Place,
        /// The schema as text.
        found: String,
    },
    /// A field is not there.
    #[error("{place} has no field `{field}`")]
    MissingField {
        /// The record.
        place: Place,
        /// The field.
        field: String,
    },
    /// A field that mpatch's own layout does not have.
    #[error("{place} has a field {field} that the schema `{SCHEMA}` does not know")]
    UnknownField {
        /// The record.
        place: Place,
        /// The field, quoted.
        field: String,
    },
    /// A field holds the wrong kind of value.
    #[error("{place}: field `{field}` is {found}: expected {expected}")]
    WrongType {
        /// The record.
        place: Place,
        /// The field.
        field: String,
        /// The kind of value expected.
        expected: &'static str,
        /// The kind of value found.
        found: &'static str,
    },
    /// A field that must say something is blank.
    #[error("{place}: field `{field}` is empty")]
    EmptyText {
        /// The record.
        place: Place,
        /// The field.
        field: String,
    },
    /// A field holds a control character.
    #[error("{place}: field `{field}` holds the control character U+{code:04X}")]
    ControlCharacter {
        /// The record.
        place: Place,
        /// The field.
        field: String,
        /// Its code point.
        code: u32,
    },
    /// The prompt does not say, once, where the subject goes.
    #[error("{place}: the prompt {prompt} holds `{{}}` {found} times: expected exactly once")]
    Placeholders {
        /// The record.
        place: Place,
        /// The prompt, quoted.
        prompt: String,
        /// How often it is there.
        found: usize,
    },
    /// A layout that writes the subject out in the prompt, and does not, or does so more than once.
    #[error("{place}: the subject {subject} stands {found} times in {prompt}: expected exactly once")]
    SubjectInPrompt {
        /// The record.
        place: Place,
        /// The subject, quoted.
        subject: String,
        /// The prompt, quoted.
        prompt: String,
        /// How often it is there.
        found: usize,
    },
    /// Parallel lists of different lengths.
    #[error(
        "{place}: the list `{field}` has {found} entries: expected {expected}, one for each of `prompts`"
    )]
    ListLength {
        /// The record.
        place: Place,
        /// The list.
        field: String,
        /// Length of `prompts`.
        expected: usize,
        /// Its own length.
        found: usize,
    },
    /// A text is longer than a patch can carry.
    #[error("{place}: field `{field}` is {size} bytes long: the limit is {TEXT_SIZE_MAX_BYTES}")]
    TextTooLong {
        /// The record.
        place: Place,
        /// The field.
        field: String,
        /// Its size in bytes.
        size: usize,
    },
    /// More facts than a patch can carry.
    #[error("the facts file holds {found} facts: the limit is {FACTS_MAX}")]
    TooManyFacts {
        /// How many there are.
        found: usize,
    },
    /// Records that cannot stand together.
    #[error("{}", clashes_in_words(.told, *.more))]
    Clashes {
        /// The first of them, in the order of the later records.
        told: Vec<Clash>,
        /// How many more there are.
        more: usize,
    },
}

fn clashes_in_words(told: &[Clash], more: usize) -> String {
    let mut words: Vec<String> = told.iter().map(Clash::to_string).collect();
    words.extend((more > 0).then(|| format!("and {more} more records clash with an earlier one")));
    words.join("; ")
}

impl FactsError {
    /// The broad kind, for choosing an exit code.
    pub fn kind(&self) -> FactsErrorKind {
        match self {
            FactsError::Clashes { .. } => FactsErrorKind::Conflicting,
            FactsError::TextTooLong { .. } | FactsError::TooManyFacts { .. } => FactsErrorKind::LimitExceeded,
            FactsError::UnknownSchema { .. } => FactsErrorKind::UnsupportedVersion,
            _ => FactsErrorKind::Malformed,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            FactsError::Utf16 => "write it as UTF-8",
            FactsError::Empty
            | FactsError::OtherLanguage { .. }
            | FactsError::NotRecords { .. }
            | FactsError::NotAnObject { .. } => {
                r#"the shortest facts file is {"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": "football"}"#
            }
            FactsError::NotJson { .. } => {
                "mend the file at that place; a JSON array, one object, or one object per line will do"
            }
            FactsError::KeyTwice { .. } => "keep the one that is meant, and take the other out",
            FactsError::UnknownLayout { .. } => {
                "give each record the fields `prompt`, `subject` and `target_new`, or use CounterFact, zsRE or EasyEdit records whole"
            }
            FactsError::MixedLayouts { .. } => "put records of different layouts into files of their own",
            FactsError::UnknownSchema { .. } => {
                "a newer mpatch may know it; this one reads the version named here"
            }
            FactsError::MissingField { .. } => "add the field to that record",
            FactsError::UnknownField { .. } => "correct its name, or take it out",
            FactsError::WrongType { .. } => "change the field's value in that record",
            FactsError::EmptyText { .. } => "write what is meant, or take the record out",
            FactsError::ControlCharacter { .. } => "take the character out; line breaks and tabs may stay",
            FactsError::Placeholders { .. } => "write the prompt with `{}` where the subject goes",
            FactsError::SubjectInPrompt { .. } => {
                "spell the subject in the prompt as in `subject`, once; or write `{}` in its place"
            }
            FactsError::ListLength { .. } => "give the list one entry for each prompt",
            FactsError::TextTooLong { .. } => "shorten the text",
            FactsError::TooManyFacts { .. } => "split the file and make several patches",
            FactsError::Clashes { .. } => "of each two keep the one that is meant, and take the other out",
        }
    }
}

/// `text` in backticks, cut to a length that fits in a sentence.
pub fn excerpt(text: &str) -> String {
    format!("`{}`", shortened(text, 80))
}

/// `text`, cut after `length_max` characters.
pub fn shortened(text: &str, length_max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(length_max) {
        Some((cut, _)) => format!("{}...", &text[..cut]).into(),
        None => text.into(),
    }
}
