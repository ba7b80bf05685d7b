//! How a failure is told: three lines on standard error; and, where a report in JSON was asked for and none has been
//! printed, one document of the same on standard output.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use serde::Serialize;

use super::{Document, escaped, escaped_json, raw, say, shell_word, stderr_colour, stdout_colour};
use crate::error::{CommandError, ExitKind, State};

/// JSON was asked for, and nothing has been printed yet. Signals and panics end a command, too, and know no
/// [`Output`](super::Output).
static DOCUMENT_IS_OWED: AtomicBool = AtomicBool::new(false);

/// How to go on after a signal: where part of the work is kept, or could be, the command says so.
static WAY_ON: Mutex<WayOn> = Mutex::new(WayOn::Again);

/// How to go on with what a signal has ended.
#[derive(Debug, Clone, Copy)]
pub enum WayOn {
    /// From the beginning.
    Again,
    /// From the beginning, or in parts: statistics are being made.
    InParts,
    /// From the last value that was found.
    FromValues,
}

impl WayOn {
    const fn hint(self) -> &'static str {
        match self {
            Self::Again => "run the same command again",
            Self::InParts => {
                "nothing is kept of unfinished statistics: run the same command again, or make them in parts, each of which is kept, by `mpatch stats CORPUS --shard I/N`"
            }
            Self::FromValues => "run the same command again: the values that were found are kept and used",
        }
    }
}

/// From here on this is what helps after a signal.
pub fn go_on(way: WayOn) {
    *WAY_ON.lock().unwrap_or_else(PoisonError::into_inner) = way;
}

/// Whoever reads standard output expects one document.
pub fn owe_document() {
    DOCUMENT_IS_OWED.store(true, Ordering::SeqCst);
}

/// The document is being printed: there will be no other.
pub fn document_is_printed() {
    DOCUMENT_IS_OWED.store(false, Ordering::SeqCst);
}

/// What a failure says as JSON.
#[derive(Serialize)]
struct FailureReport<'a> {
    code: u8,
    error: &'a str,
    hint: &'a str,
    state: &'static str,
}

/// Tells a failure; the last line is for programs.
pub fn tell(error: &CommandError) -> ExitKind {
    let CommandError { kind, message, hint, state } = error;
    let label = if stderr_colour() { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" };
    say(&format!("{label} {}", escaped(message)));
    // What nobody has advice on should not happen.
    let hint = hint.as_deref().unwrap_or("please report it, with the command and this message");
    say(&format!("hint: {}", escaped(hint)));
    say(&format!("state: {}", state.name()));
    if DOCUMENT_IS_OWED.swap(false, Ordering::SeqCst) {
        let (code, state) = (kind.code(), state.name());
        let report = FailureReport { code, error: message, hint, state };
        let document = Document { schema: "mpatch.error/1", report: &report };
        if let Ok(text) = serde_json::to_string_pretty(&document) {
            // Where it cannot be written, the exit code still tells.
            let _ = raw(format!("{}\n", escaped_json(&text)).as_bytes());
        }
    }
    *kind
}

/// Tells that a signal ended the command, and what it leaves behind.
pub fn stopped(kind: ExitKind, state: State) -> ExitKind {
    let stopped = |what: &str| CommandError::new(kind, format!("{}; {what}", kind.meaning()));
    tell(&match state {
        State::RecoveryPending => {
            let pending = stopped("what was being changed is half-way").with_recovery_pending();
            CommandError { kind, ..pending }
        }
        _ => {
            let way = *WAY_ON.lock().unwrap_or_else(PoisonError::into_inner);
            stopped("nothing changed").hint(way.hint())
        }
    })
}

/// Prints what clap has to say: help and versions, or what is wrong with the command line, of the command of this
/// name.
pub fn usage(error: &clap::Error, (name, command): &(String, clap::Command)) -> ExitKind {
    if !error.use_stderr() {
        let text = error.render();
        let text = if stdout_colour() { text.ansi().to_string() } else { text.to_string() };
        return match raw(text.as_bytes()) {
            Ok(()) => ExitKind::Done,
            Err(error) => tell(&error),
        };
    }
    if std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json") {
        owe_document();
    }
    let help = format!("`{name} --help` tells what it takes");
    let is_bare = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    // With an option it is called another error, and has no help to print.
    if is_bare || error.kind() == ErrorKind::MissingSubcommand {
        if is_bare {
            let _ = error.print();
        }
        let refused = CommandError::new(ExitKind::Usage, format!("`{name}` alone says not what to do"));
        return tell(&refused.hint(help));
    }
    let words = Words::of(&error.render().to_string());
    words.usage.iter().for_each(|line| say(&escaped(line)));
    let tips = words.tips.iter().filter(|_| is_slip(error));
    let tips: Vec<String> = tips.filter_map(|tip| way_out(tip)).collect();
    let hint = stray_word(error, command).unwrap_or_else(|| match tips.is_empty() {
        true => help,
        false => tips.join("; "),
    });
    tell(&CommandError::new(ExitKind::Usage, shortened(words.message)).hint(hint))
}

/// What to do about a word more than the command takes: a model that stands alone, as `apply` takes it, a patch behind
/// the model, or the place of the result.
fn stray_word(error: &clap::Error, command: &clap::Command) -> Option<String> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let is_option = |word: &&str| word.starts_with('-');
    if error.kind() == ErrorKind::InvalidSubcommand {
        let option = text(ContextKind::InvalidSubcommand).filter(is_option)?;
        return Some(format!("help is text, and takes no options: leave `{option}` out"));
    }
    let stray = text(ContextKind::InvalidArg).filter(|_| error.kind() == ErrorKind::UnknownArgument);
    let word = stray.filter(|word| !is_option(word))?;
    let takes = |name: &str| command.get_arguments().any(|argument| argument.get_long() == Some(name));
    let file = shell_word(word);
    let begins_with_patch = command.get_positionals().next().is_some_and(|first| first.get_id() == "patch");
    match word.ends_with(".mpatch") {
        true if takes("patch") => Some(format!("if that is the patch, name it with `--patch {file}`")),
        true if begins_with_patch && takes("base") => {
            Some("the patch comes first, and the model as `--base MODEL`".to_owned())
        }
        false if takes("base") => Some(format!("if that is the model, name it with `--base {file}`")),
        _ if takes("output") => Some(format!("if that is where the result goes, name it with `-o {file}`")),
        _ => None,
    }
}

/// Whether the option that clap takes for the one that is meant may be it, cut short or mistyped: `--store` has letters
/// of `--force` and nothing to do with it.
fn is_slip(error: &clap::Error) -> bool {
    let option = |kind| match error.get(kind) {
        Some(ContextValue::String(name)) => Some(name.replace('-', "")),
        _ => None,
    };
    let Some((given, known)) = option(ContextKind::InvalidArg).zip(option(ContextKind::SuggestedArg)) else {
        return true;
    };
    let alike = given.bytes().zip(known.bytes()).take_while(|(one, other)| one == other).count();
    2 * alike >= given.len().min(known.len())
}

/// A tip of clap's as it is of use. What looks like an option it would have put behind `--`, where it is often no value
/// either, and cut off; a word that looks like a file's name, too, has a better one.
fn way_out(tip: &str) -> Option<String> {
    let Some(rest) = tip.strip_prefix("to pass '") else { return Some(tip.to_owned()) };
    let (start, _) = rest.split_once('\'')?;
    let is_meant = |word: &String| word.starts_with(start) && word.contains('.');
    let file = std::env::args_os().skip(1).filter_map(|word| word.into_string().ok()).find(is_meant)?;
    Some(format!("if the file is meant, write {}", shell_word(file)))
}

/// The beginning and the end of a message with a long value in it.
fn shortened(message: String) -> String {
    const SIDE: usize = 300;
    let mut starts = message.char_indices().map(|(index, _)| index);
    match (starts.clone().nth(SIDE), starts.nth_back(SIDE - 1)) {
        (Some(head), Some(tail)) if head < tail => format!("{} ... {}", &message[..head], &message[tail..]),
        _ => message,
    }
}

/// The parts of a text of clap's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    message: String,
    tips: Vec<String>,
    usage: Vec<String>,
}

impl Words {
    fn of(text: &str) -> Self {
        let mut words = Self::default();
        for paragraph in text.split("\n\n") {
            let lines = paragraph.lines().map(str::trim);
            match paragraph.trim() {
                start if start.starts_with("For more information") => {}
                start if start.starts_with("Usage:") => {
                    words.usage.extend(paragraph.lines().map(str::to_owned));
                }
                start if start.starts_with("tip: ") => {
                    words.tips.extend(lines.map(|line| line.trim_start_matches("tip: ").to_owned()));
                }
                _ => words.message.extend(lines.flat_map(|line| [" ", line])),
            }
        }
        words.message = words.message.trim().trim_start_matches("error: ").to_owned();
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_says_is_told_in_three_lines() {
        let text = "error: the following required arguments were not provided:\n  <PATCH>\n  --base <MODEL>\n\n  \
                    tip: one\n  tip: two\n\nUsage: mpatch x\n       mpatch y\n\nFor more information, try '--help'.\n";
        let expected = Words {
            message: "the following required arguments were not provided: <PATCH> --base <MODEL>".to_owned(),
            tips: vec!["one".to_owned(), "two".to_owned()],
            usage: vec!["Usage: mpatch x".to_owned(), "       mpatch y".to_owned()],
        };
        assert_eq!(Words::of(text), expected);
    }
}
