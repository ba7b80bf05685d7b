//! Suggested commands, as they have to be typed: with the history that this one was given.
//!
//! Reports and hints are written as for the history that lies here. One that was named by `--store` has to be named
//! again, or what is suggested fails, or works on another one. It is said in one place, since half of the hints come
//! from the library's errors, which know nothing of arguments. A command that is meant for elsewhere is not written
//! as `mpatch VERB`.

use std::path::{Path, PathBuf};

use clap::ArgMatches;

use crate::history::store_words;
use crate::report::shell_word;

/// Verbs that take things out of the history here, and no other one.
const ONLY_HERE: [&str; 1] = ["show"];

/// What has to be said with every suggested command.
#[derive(Debug, Clone, Default)]
pub struct Suggestions {
    /// The history, where it was named.
    store: PathBuf,
    /// The verbs that take `--store`.
    verbs: Vec<String>,
}

impl Suggestions {
    /// Of a command line and what was found in it.
    pub fn of(command: &clap::Command, matches: &ArgMatches) -> Self {
        let given =
            matches.subcommand().and_then(|(_, matches)| matches.try_get_one::<PathBuf>("store").ok()?);
        let takes_store =
            |verb: &&clap::Command| verb.get_arguments().any(|it| it.get_long() == Some("store"));
        let verbs = command.get_subcommands().filter(takes_store).map(|verb| verb.get_name().to_owned());
        Self { store: given.cloned().unwrap_or_default(), verbs: verbs.collect() }
    }

    /// A whole command.
    pub fn command(&self, command: &str) -> String {
        let is_here = self.store.as_os_str().is_empty() || self.store == Path::new(".");
        let mut words = command.split(' ');
        let (Some("mpatch"), Some(verb)) = (words.next(), words.next()) else { return command.to_owned() };
        match verb {
            _ if is_here || words.clone().any(|word| word == "--store") => command.to_owned(),
            _ if self.verbs.iter().any(|known| known == verb) => {
                format!("{command}{}", store_words(&self.store))
            }
            // An absolute path is that of a file, wherever the command is called.
            _ if words.next().is_some_and(|word| word.trim_start_matches('\'').starts_with('/')) => {
                command.to_owned()
            }
            _ if ONLY_HERE.contains(&verb) => format!("cd {} && {command}", shell_word(&self.store)),
            _ => command.to_owned(),
        }
    }

    /// All commands between backticks of a hint.
    pub fn hint(&self, hint: &str) -> String {
        let parts = hint.split('`').enumerate().map(|(index, part)| match index % 2 {
            // A quotation that is open here holds a backtick itself.
            1 if part.matches('\'').count() % 2 == 0 => self.command(part),
            _ => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &str) -> Suggestions {
        let command = crate::args::command();
        let matches = command.clone().try_get_matches_from(words.split(' ')).expect("a command line");
        Suggestions::of(&command, &matches)
    }

    #[test]
    fn a_named_history_is_named_in_what_is_suggested() {
        let named = of("mpatch status --store know");
        assert_eq!(named.command("mpatch log"), "mpatch log --store know");
        assert_eq!(named.command("mpatch log --store other"), "mpatch log --store other");
        assert_eq!(named.command("mpatch show abc"), "cd know && mpatch show abc");
        for show in ["mpatch show /a.mpatch", "mpatch show '/an edit.mpatch'"] {
            assert_eq!(named.command(show), show);
        }
        assert_eq!(named.command("mpatch verify a.mpatch"), "mpatch verify a.mpatch");
        assert_eq!(
            named.hint("`mpatch branch` and `git log` list them, `--ours` not; it's `mpatch undo`"),
            "`mpatch branch --store know` and `git log` list them, `--ours` not; it's `mpatch undo --store know`"
        );
        let odd = "`mpatch checkout HEAD --onto 'a`b' -o MODEL` goes on";
        assert_eq!(named.hint(odd), odd, "what cannot be told apart is left alone");
        for here in ["mpatch status", "mpatch status --store .", "mpatch show a.mpatch"] {
            assert_eq!(of(here).command("mpatch log"), "mpatch log", "{here}");
        }
    }
}
