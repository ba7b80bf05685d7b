//! How much of a corpus is run, and which part of that: the words of `mpatch stats` and of its artifacts.

use std::fmt;
use std::str::FromStr;

/// How much of a corpus is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Amount {
    /// All of it, in its order.
    #[default]
    All,
    /// Documents drawn until they have this many tokens.
    Tokens(u64),
    /// This many documents, drawn.
    Documents(u64),
}

impl Amount {
    /// What the literature finds enough: ten times the width of a key (arXiv 2506.04226).
    pub fn enough(inner: usize) -> Self {
        Self::Tokens(10 * inner as u64)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => formatter.write_str("all"),
            Self::Tokens(count) => write!(formatter, "tokens {count}"),
            Self::Documents(count) => write!(formatter, "documents {count}"),
        }
    }
}

impl FromStr for Amount {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let count = |text: &str| text.parse().map_err(|_| format!("`{text}` is no number"));
        match text.split_once(' ') {
            None if text == "all" => Ok(Self::All),
            Some(("tokens", rest)) => Ok(Self::Tokens(count(rest)?)),
            Some(("documents", rest)) => Ok(Self::Documents(count(rest)?)),
            _ => Err(format!("`{text}` is no amount of text")),
        }
    }
}

/// One of several parts that a corpus is shared out in: of the documents drawn, every `count`th.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard {
    /// Which part, from 1.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(format!("`{text}` is no part such as `3/16`")),
        }
    }
}

/// What was drawn from a corpus, or from each of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// How much was asked for; none where it was not the same of each.
    pub amount: Option<Amount>,
    /// Which part of that, where it is not all.
    pub shard: Option<Shard>,
    /// Documents that were run; 0 where that is not known.
    pub documents: u64,
}

/// What stands for an amount that was not the same of each corpus.
const MIXED: &str = "mixed";

impl Drawn {
    /// The amount as it is written in a file's header.
    pub fn amount_in_words(&self) -> String {
        self.amount.map_or_else(|| MIXED.to_owned(), |amount| amount.to_string())
    }

    /// Documents of both; none where that is beyond counting.
    pub(super) fn documents_with(&self, other: &Self) -> Option<u64> {
        match (self.documents, other.documents) {
            // Of one it is not known, so it is not of both.
            (0, _) | (_, 0) => Some(0),
            (mine, theirs) => mine.checked_add(theirs),
        }
    }

    /// Reads what [`Drawn::amount_in_words`] gives.
    pub(super) fn amount_of(words: &str) -> Result<Option<Amount>, String> {
        if words == MIXED { Ok(None) } else { words.parse().map(Some) }
    }
}

impl Default for Drawn {
    /// All of a corpus, in one part.
    fn default() -> Self {
        Self { amount: Some(Amount::All), shard: None, documents: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_from_one_to_their_number() {
        assert_eq!("3/3".parse(), Ok(Shard { index: 3, count: 3 }));
        for text in ["0/3", "4/3", "1/0", "1", "one/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
