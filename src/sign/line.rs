//! What has been seen of lines of patches, so that an old patch cannot pass for news.
//!
//! ```text
//!              sequence > known          -> newer         (or first, where nothing is known)
//! patch ─────▶ sequence = known, same id -> same
//!              sequence = known, other   -> conflicting   the signer has told two stories
//!              sequence < known          -> older         a rollback
//!              sequence ≫ known          -> far ahead     would make every later patch an old one
//! ```
//!
//! A line is a name and a key: nobody can age the line of another. What is known only ever grows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::key::Fingerprint;
use crate::digest::PatchId;
use crate::patch::manifest::Line;

/// Sequence numbers grow by at most so much at once.
pub const STEP_MAX: u64 = 1 << 32;

const SCHEMA: &str = "mpatch.lines/1";

/// What is known of a line: its highest number, and the patch that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The highest sequence number seen.
    pub sequence: u64,
    /// Its patch.
    pub patch: PatchId,
}

/// How a patch stands to what is known of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// Nothing is known of this line.
    First,
    /// It comes after all that is known.
    Newer,
    /// It is the newest one known.
    Same,
    /// A newer one is known: this is a rollback.
    Older(Known),
    /// Another patch has this number: the line's key has signed two.
    Conflicting(Known),
    /// Its number is further ahead than any honest one.
    FarAhead,
}

impl Succession {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Succession::First => "first",
            Succession::Newer => "newer",
            Succession::Same => "same",
            Succession::Older(_) => "older",
            Succession::Conflicting(_) => "conflicting",
            Succession::FarAhead => "far ahead",
        }
    }
}

/// A state file that cannot be read; nothing may be concluded from it.
#[derive(Debug, thiserror::Error)]
#[error("not a record of lines: {0}")]
pub struct LinesError(String);

/// Everything that is known of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownLines {
    lines: BTreeMap<(String, Fingerprint), Known>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    lines: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    line: String,
    key: String,
    sequence: u64,
    patch: String,
}

impl KnownLines {
    /// What is known of the line `name` of `key`.
    pub fn get(&self, name: &str, key: Fingerprint) -> Option<Known> {
        self.lines.get(&(name.to_owned(), key)).copied()
    }

    /// A line of this name is known of some key that is not among `keys`.
    pub fn is_known_beside(&self, name: &str, keys: &[Fingerprint]) -> bool {
        self.lines.keys().any(|(known, key)| known == name && !keys.contains(key))
    }

    /// The number for the next patch of a line.
    pub fn next_sequence(&self, name: &str, key: Fingerprint) -> u64 {
        self.get(name, key).map_or(1, |known| known.sequence.saturating_add(1))
    }

    /// How `patch` stands to what is known.
    pub fn standing(&self, line: &Line, key: Fingerprint, patch: PatchId) -> Succession {
        match self.standing_of_new(line, key) {
            Succession::Conflicting(known) if known.patch == patch => Succession::Same,
            standing => standing,
        }
    }

    /// How a patch that is still to be made would stand to what is known.
    pub fn standing_of_new(&self, line: &Line, key: Fingerprint) -> Succession {
        let known = self.get(&line.name, key);
        let step = line.sequence.saturating_sub(known.map_or(0, |known| known.sequence));
        match known {
            _ if step > STEP_MAX => Succession::FarAhead,
            None => Succession::First,
            Some(known) if line.sequence < known.sequence => Succession::Older(known),
            Some(known) if line.sequence > known.sequence => Succession::Newer,
            Some(known) => Succession::Conflicting(known),
        }
    }

    /// Every line with its key, and what is known of it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Fingerprint, Known)> {
        self.lines.iter().map(|((name, key), known)| (name.as_str(), *key, *known))
    }

    /// Remembers `patch` if it is news; says whether it was.
    pub fn record(&mut self, line: &Line, key: Fingerprint, patch: PatchId) -> bool {
        let is_news = matches!(self.standing(line, key, patch), Succession::First | Succession::Newer);
        if is_news {
            let known = Known { sequence: line.sequence, patch };
            self.lines.insert((line.name.clone(), key), known);
        }
        is_news
    }

    /// Forgets the line `name` of every key; says how many there were.
    pub fn forget(&mut self, name: &str) -> usize {
        let before = self.lines.len();
        self.lines.retain(|(known, _), _| known != name);
        before - self.lines.len()
    }

    /// Reads the state file.
    ///
    /// # Errors
    /// [`LinesError`] for what is no such JSON, another schema, a key or an id that is none, and a line that stands
    /// twice.
    pub fn parse(json: &[u8]) -> Result<Self, LinesError> {
        let refused = |what: String| LinesError(what);
        let document: Document = serde_json::from_slice(json).map_err(|error| refused(error.to_string()))?;
        if document.schema != SCHEMA {
            return Err(refused(format!("schema `{}`, expected `{SCHEMA}`", document.schema)));
        }
        let mut lines = BTreeMap::new();
        for record in document.lines {
            let key: Fingerprint = record.key.parse().map_err(|error| refused(format!("{error}")))?;
            let patch = record.patch.parse().map_err(|error| refused(format!("{error}")))?;
            let known = Known { sequence: record.sequence, patch };
            if lines.insert((record.line.clone(), key), known).is_some() {
                return Err(refused(format!("the line `{}` of {key} stands twice", record.line)));
            }
        }
        Ok(Self { lines })
    }

    /// The state file's bytes.
    ///
    /// # Errors
    /// [`LinesError`] if the serialiser refuses, which it has no reason for.
    pub fn to_json(&self) -> Result<Vec<u8>, LinesError> {
        let record = |((line, key), known): (&(String, Fingerprint), &Known)| Record {
            line: line.clone(),
            key: key.to_string(),
            sequence: known.sequence,
            patch: known.patch.to_string(),
        };
        let document = Document { schema: SCHEMA.to_owned(), lines: self.lines.iter().map(record).collect() };
        let mut json = serde_json::to_vec_pretty(&document).map_err(|error| LinesError(error.to_string()))?;
        json.push(b'\n');
        Ok(json)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::sign::PrivateKey;

    fn key(seed: u8) -> Fingerprint {
        PrivateKey::from_seed(&[seed; 32], "").unwrap().public().fingerprint()
    }

    fn patch(name: u8) -> PatchId {
        PatchId::derive(&[name])
    }

    fn line(name: &str, sequence: u64) -> Line {
        Line { name: name.to_owned(), sequence }
    }

    #[test]
    fn an_older_patch_and_a_second_story_are_told_apart() {
        let mut known = KnownLines::default();
        assert_eq!(known.next_sequence("world", key(1)), 1);
        assert_eq!(known.standing(&line("world", 4), key(1), patch(4)), Succession::First);
        assert!(known.record(&line("world", 4), key(1), patch(4)));
        let newest = Known { sequence: 4, patch: patch(4) };
        assert_eq!(known.standing(&line("world", 4), key(1), patch(4)), Succession::Same);
        assert_eq!(known.standing(&line("world", 4), key(1), patch(9)), Succession::Conflicting(newest));
        assert_eq!(known.standing(&line("world", 3), key(1), patch(3)), Succession::Older(newest));
        assert_eq!(known.standing(&line("world", 3), key(2), patch(3)), Succession::First);
        assert_eq!(known.standing(&line("other", 3), key(1), patch(3)), Succession::First);
        assert_eq!(known.standing(&line("world", 5), key(1), patch(5)), Succession::Newer);
        assert_eq!(known.next_sequence("world", key(1)), 5);
        assert!(known.is_known_beside("world", &[]) && !known.is_known_beside("other", &[]));
        assert!(known.is_known_beside("world", &[key(2)]) && !known.is_known_beside("world", &[key(1)]));
        assert!(known.record(&line("world", 1), key(2), patch(1)));
        assert_eq!((known.forget("world"), known.forget("world")), (2, 0));
    }

    #[test]
    fn nobody_exhausts_the_numbers_of_a_line() {
        let mut known = KnownLines::default();
        assert_eq!(known.standing(&line("world", STEP_MAX), key(1), patch(1)), Succession::First);
        assert_eq!(known.standing(&line("world", STEP_MAX + 1), key(1), patch(1)), Succession::FarAhead);
        assert!(!known.record(&line("world", u64::MAX), key(1), patch(1)));
    }

    #[test]
    fn a_state_file_is_read_whole_or_not_at_all() {
        for json in [
            "",
            "{}",
            r#"{"schema": "mpatch.lines/2", "lines": []}"#,
            r#"{"schema": "mpatch.lines/1", "lines": [{"line": "a", "key": "x", "sequence": 1, "patch": ""}]}"#,
        ] {
            assert!(KnownLines::parse(json.as_bytes()).is_err(), "{json}");
        }
        let record = |sequence: u64| {
            let (key, patch) = (key(1), patch(1));
            format!(r#"{{"line": "a", "key": "{key}", "sequence": {sequence}, "patch": "{patch}"}}"#)
        };
        let read = |records: &[String]| {
            let json = format!(r#"{{"schema": "{SCHEMA}", "lines": [{}]}}"#, records.join(", "));
            KnownLines::parse(json.as_bytes())
        };
        let twice = read(&[record(4), record(3)]).unwrap_err().to_string();
        assert!(twice.contains("the line `a` of ") && twice.ends_with(" stands twice"), "{twice}");
        // Whoever wrote the last number there is into it.
        assert_eq!(read(&[record(u64::MAX)]).unwrap().next_sequence("a", key(1)), u64::MAX);
    }

    /// What the law says of one line, straight from the whole list of what was accepted.
    fn model(accepted: &[(u64, u8)], sequence: u64, patch: u8) -> &'static str {
        let Some(highest) = accepted.iter().map(|(sequence, _)| *sequence).max() else {
            return if sequence > STEP_MAX { "far ahead" } else { "first" };
        };
        if sequence < highest {
            "older"
        } else if sequence == highest {
            if accepted.contains(&(sequence, patch)) { "same" } else { "conflicting" }
        } else if sequence - highest > STEP_MAX {
            "far ahead"
        } else {
            "newer"
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_history_lets_an_older_patch_pass(
            events in proptest::collection::vec((0_u8..2, 0_u8..2, prop_oneof![1_u64..6, Just(STEP_MAX + 3), Just(u64::MAX)], 0_u8..3), 1..40)
        ) {
            let keys = [key(1), key(2)];
            let mut known = KnownLines::default();
            let mut accepted: HashMap<(u8, u8), Vec<(u64, u8)>> = HashMap::new();
            for (name, signer, sequence, id) in events {
                let seen = accepted.entry((name, signer)).or_default();
                let line = line(&name.to_string(), sequence);
                let expected = model(seen, sequence, id);
                prop_assert_eq!(known.standing(&line, keys[usize::from(signer)], patch(id)).name(), expected);
                let before = known.get(&line.name, keys[usize::from(signer)]);
                if known.record(&line, keys[usize::from(signer)], patch(id)) {
                    seen.push((sequence, id));
                    prop_assert!(before.is_none_or(|before| before.sequence < sequence));
                } else {
                    prop_assert_eq!(known.get(&line.name, keys[usize::from(signer)]), before);
                }
                let json = known.to_json().unwrap();
                prop_assert_eq!(&KnownLines::parse(&json).unwrap(), &known);
            }
        }
    }
}
