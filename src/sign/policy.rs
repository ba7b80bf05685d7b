//! What a folder asks of patches beyond one trusted signature. A policy can only ask for more.
//!
//! ```json
//! { "threshold": 2, "required": ["release@example.org"], "minimal_rung": "V4", "unsigned": "refuse" }
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most signatures that a policy may ask for: as many as a patch holds.
const THRESHOLD_MAX: usize = 16;

/// A policy that cannot be read; it asks for something, so nothing must pass.
#[derive(Debug, thiserror::Error)]
#[error("not a policy: {0}")]
pub struct PolicyError(String);

/// Requirements, all of which must be met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Policy {
    /// So many distinct trusted keys must have signed.
    pub threshold: usize,
    /// Each of these principals must be among the signers.
    pub required: Vec<String>,
    /// `verify` must come this far.
    pub minimal_rung: Rung,
    /// Whether a user may let patches pass that nobody trusted has signed.
    pub unsigned: Unsigned,
}

/// A rung of the ladder that `verify` climbs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Rung {
    /// The patch is whole: every part decodes.
    #[default]
    V0,
    /// Somebody who is trusted here signed it.
    V1,
    /// It fits the model: digests and results are what it promises.
    V2,
    /// The update answers to the keys of the declared facts alone.
    V3,
    /// The edited model does what the patch declares.
    V4,
    /// Its recipe gives the patch again.
    V5,
    /// Somebody who has climbed V5 signed it, too; nothing climbs this one yet.
    V6,
}

impl fmt::Display for Rung {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// What becomes of a patch that nobody trusted has signed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unsigned {
    /// It is refused unless the user says otherwise.
    #[default]
    Ask,
    /// It is refused, whatever the user says.
    Refuse,
}

impl Default for Policy {
    fn default() -> Self {
        Self { threshold: 1, required: Vec::new(), minimal_rung: Rung::V0, unsigned: Unsigned::Ask }
    }
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`PolicyError`], for unknown fields and repeated ones, too: a requirement that is not understood is not met.
    pub fn parse(json: &[u8]) -> Result<Self, PolicyError> {
        let refused = |error: serde_json::Error| PolicyError(error.to_string());
        // Straight from the text, where a field that stands twice is seen.
        let policy: Self = serde_json::from_slice(json).map_err(refused)?;
        // A list would do for a record, too, and be read by its order.
        if !json.trim_ascii_start().starts_with(b"{") {
            return Err(PolicyError("expected an object".to_owned()));
        }
        if !(1..=THRESHOLD_MAX).contains(&policy.threshold) {
            return Err(PolicyError(format!(
                "threshold {}, expected 1 to {THRESHOLD_MAX}",
                policy.threshold
            )));
        }
        Ok(policy)
    }

    /// Both policies at once.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.threshold = self.threshold.max(other.threshold);
        self.minimal_rung = self.minimal_rung.max(other.minimal_rung);
        self.unsigned = self.unsigned.max(other.unsigned);
        for principal in other.required {
            if !self.required.contains(&principal) {
                self.required.push(principal);
            }
        }
        self
    }

    /// The user may not let a patch pass that nobody trusted has signed.
    pub fn forbids_exceptions(&self) -> bool {
        self.unsigned == Unsigned::Refuse
            || self.threshold > 1
            || !self.required.is_empty()
            || self.minimal_rung >= Rung::V1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Policy {
        Policy::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn policies_together_ask_for_all_that_each_asks_for() {
        let one = parse(r#"{"threshold": 2, "required": ["alice"], "minimal_rung": "V2"}"#);
        let other = parse(r#"{"required": ["bob", "alice"], "unsigned": "refuse"}"#);
        let both = one.clone().and(other.clone());
        assert_eq!((both.threshold, both.minimal_rung, both.unsigned), (2, Rung::V2, Unsigned::Refuse));
        assert_eq!(both.required, ["alice", "bob"]);
        assert_eq!(one.clone().and(Policy::default()), one);
        assert_eq!(other.and(one.clone()).threshold, 2);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for json in [
            "",
            "[]",
            r#"[2, [], "V2", "refuse"]"#,
            r#"{"threshold": 2, "threshold": 1}"#,
            r#"{"threshold": 0}"#,
            r#"{"threshold": 17}"#,
            r#"{"treshold": 2}"#,
            r#"{"minimal_rung": "V9"}"#,
        ] {
            assert!(Policy::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn whatever_asks_for_more_allows_no_exceptions() {
        assert!(!parse("{}").forbids_exceptions());
        for json in [
            r#"{"unsigned": "refuse"}"#,
            r#"{"threshold": 2}"#,
            r#"{"required": ["a"]}"#,
            r#"{"minimal_rung": "V1"}"#,
        ] {
            assert!(parse(json).forbids_exceptions(), "{json}");
        }
    }
}
