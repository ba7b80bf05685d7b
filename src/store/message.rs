//! A commit's words: a title, the facts, and trailers for programs.
//!
//! ```text
//! Two towers
//!
//! - The Eiffel Tower is in -> Rome (was Paris)
//!
//! Patch: 3f2a...
//! State: 9c1b...
//! ```
//!
//! Titles and facts are strangers' words. Each stands on one line, facts behind a dash so that none can pass for a
//! trailer, and no control character gets in, because `git log` hands a message to the terminal as it is.

use crate::digest::{PatchId, WeightsId};

/// Facts that a message lists; of more it tells the number.
const FACTS_LISTED_MAX: usize = 1_000;

/// Key of the trailer that names a patch that came in.
const PATCH: &str = "Patch";
/// Key of the trailer that names a patch that was taken back.
const REVERTED: &str = "Reverted";
/// Key of the trailer that names the state of the weights.
const STATE: &str = "State";
/// Key of the trailer for what the command was told.
const NOTE: &str = "Note";

/// What goes into a commit's message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The first line.
    pub title: String,
    /// The facts, one a line.
    pub facts: Vec<String>,
    /// Patches that came in.
    pub patches: Vec<PatchId>,
    /// Patches that were taken back.
    pub reverted: Vec<PatchId>,
    /// What the command was told that a reader should know, e.g. `allow-unsigned`.
    pub notes: Vec<String>,
}

impl Message {
    /// The text of the message of a commit whose weights have the id `state`.
    #[doc(hidden)] // for fuzzers
    pub fn text(&self, state: WeightsId) -> String {
        let mut text = format!("{}\n", one_line(&self.title));
        if !self.facts.is_empty() {
            text.push('\n');
        }
        for fact in self.facts.iter().take(FACTS_LISTED_MAX) {
            text.push_str(&format!("- {}\n", one_line(fact)));
        }
        let hidden = self.facts.len().saturating_sub(FACTS_LISTED_MAX);
        if hidden > 0 {
            text.push_str(&format!("- and {hidden} more\n"));
        }
        text.push('\n');
        self.patches.iter().for_each(|patch| text.push_str(&format!("{PATCH}: {patch}\n")));
        self.reverted.iter().for_each(|patch| text.push_str(&format!("{REVERTED}: {patch}\n")));
        text.push_str(&format!("{STATE}: {state}\n"));
        self.notes.iter().for_each(|note| text.push_str(&format!("{NOTE}: {}\n", one_line(note))));
        text
    }

    /// Reads a message, whoever wrote it, and the state it claims.
    #[doc(hidden)] // for fuzzers
    pub fn parse(text: &str) -> (Self, Option<WeightsId>) {
        let mut message = Message::default();
        let mut state = None;
        let mut lines = text.lines();
        message.title = lines.next().unwrap_or_default().to_owned();
        for line in lines {
            if let Some(fact) = line.strip_prefix("- ") {
                message.facts.push(fact.to_owned());
                continue;
            }
            match line.split_once(": ") {
                Some((PATCH, id)) => message.patches.extend(id.parse::<PatchId>()),
                Some((REVERTED, id)) => message.reverted.extend(id.parse::<PatchId>()),
                Some((STATE, id)) => state = id.parse().ok(),
                Some((NOTE, note)) => message.notes.push(note.to_owned()),
                _ => {}
            }
        }
        (message, state)
    }
}

/// `text` on one line, without characters that a terminal would act on, or not show.
fn one_line(text: &str) -> String {
    let visible = |character: char| if is_invisible(character) { '\u{fffd}' } else { character };
    text.trim().chars().map(visible).collect()
}

/// Whether a character changes how others are shown, or is one that nobody sees (Unicode's Cc, Cf, Zl, Zp, and private
/// tags): no stranger's text may bring it to a terminal.
pub fn is_invisible(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
            | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_its_own_text() {
        let message = Message {
            title: "Two towers".to_owned(),
            facts: vec!["A is in -> B (was C)".to_owned(), "D is in -> E".to_owned()],
            patches: vec![PatchId::derive(b"1")],
            reverted: vec![PatchId::derive(b"2")],
            notes: vec!["allow-unsigned".to_owned()],
        };
        let state = WeightsId::derive(b"state");
        assert_eq!(Message::parse(&message.text(state)), (message, Some(state)));
    }

    #[test]
    fn no_word_of_a_stranger_becomes_a_trailer_or_moves_the_cursor() {
        let state = WeightsId::derive(b"state");
        let lie = "Patch: 0000000000000000000000000000000000000000000000000000000000000000";
        let message = Message {
            title: format!("x\n\n{lie}\u{1b}[31m"),
            facts: vec![format!("y\r\n{lie}\u{202e}\u{61c}\u{200b}\u{3164}")],
            ..Message::default()
        };
        let text = message.text(state);
        assert!(text.chars().all(|sign| sign == '\n' || !is_invisible(sign)), "{text:?}");
        assert!(!text.contains(['\u{61c}', '\u{200b}', '\u{3164}']), "{text:?}");
        let (read, claimed) = Message::parse(&text);
        assert_eq!((read.patches.len(), claimed), (0, Some(state)));
    }

    #[test]
    fn a_message_lists_no_more_than_people_read() {
        let facts = vec!["fact".to_owned(); FACTS_LISTED_MAX + 5];
        let text = Message { facts, ..Message::default() }.text(WeightsId::derive(b""));
        assert!(text.contains("\n- and 5 more\n"));
        assert_eq!(text.lines().filter(|line| *line == "- fact").count(), FACTS_LISTED_MAX);
    }
}
