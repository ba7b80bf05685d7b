//! Suggested commands, as they have to be typed: with the history that this one was given.
//!
//! Reports and hints are written as for the history that lies here. One that was named by `--store` has to be named
//! again, or what is suggested fails, or works on another one. It is said in one place, since half of the hints come
//! from the library's errors, which know nothing of arguments. A command that is meant for elsewhere is not written
//! as `mpatch VERB`.

use std::path::PathBuf;

use clap::ArgMatches;

use crate::history::StoreArguments;

/// What has to be said with every suggested command.
#[derive(Debug, Clone, Default)]
pub struct Suggestions {
    /// The history, where it was named.
    store: StoreArguments,
    /// The commands that take `--store`, as they are typed.
    commands: Vec<String>,
}

/// The name of `command` and of all below it that take `--store`, each with `before` in front.
fn takers_of_store(before: &str, command: &clap::Command) -> Vec<String> {
    let name = format!("{before}{}", command.get_name());
    let below = command.get_subcommands().flat_map(|below| takers_of_store(&format!("{name} "), below));
    let mut takers: Vec<String> = below.collect();
    if command.get_arguments().any(|argument| argument.get_long() == Some("store")) {
        takers.push(name);
    }
    takers
}

impl Suggestions {
    /// Of a command line and what was found in it.
    pub fn of(command: &clap::Command, mut matches: &ArgMatches) -> Self {
        while let Some((_, below)) = matches.subcommand() {
            matches = below;
        }
        let store = matches.try_get_one::<PathBuf>("store").ok().flatten().cloned();
        Self { store: StoreArguments { store }, commands: takers_of_store("", command) }
    }

    /// A whole command.
    pub fn command(&self, command: &str) -> String {
        let is_of = |taker: &String| {
            command
                .strip_prefix(taker.as_str())
                .is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b' ')))
        };
        let names_one = command.split(' ').any(|word| word == "--store");
        match self.commands.iter().any(is_of) && !names_one {
            true => format!("{command}{}", self.store.words()),
            false => command.to_owned(),
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
        assert_eq!(named.command("mpatch show abc"), "mpatch show abc --store know");
        assert_eq!(named.command("mpatch trust add abc"), "mpatch trust add abc --store know");
        for without in ["mpatch trust list", "mpatch doctor", "git log"] {
            assert_eq!(named.command(without), without);
        }
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
