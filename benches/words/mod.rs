//! The command lines of programs that work long and write much: a word that they do not know stops them before that.
#![allow(dead_code, reason = "each program uses its own part")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

/// Why a program does not begin.
#[derive(Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was asked how it is used.
    Help,
    /// This is wrong with its words.
    Wrong(String),
}

impl Stopped {
    /// As `mpatch` has it.
    pub fn code(&self) -> u8 {
        match self {
            Stopped::Help => 0,
            Stopped::Wrong(_) => 2,
        }
    }

    /// Prints what is wrong, and how the program is used.
    #[allow(clippy::print_stdout, clippy::print_stderr, reason = "the programs print")]
    fn tell(self, usage: &str) -> ExitCode {
        match &self {
            Stopped::Help => println!("{usage}"),
            Stopped::Wrong(what) => eprintln!("error: {what}\n{usage}"),
        }
        ExitCode::from(self.code())
    }
}

/// Does a program's `work`, unless its words stop it before.
pub fn run<A>(read: Result<A, Stopped>, usage: &str, work: impl FnOnce(&A)) -> ExitCode {
    match read {
        Ok(arguments) => {
            work(&arguments);
            ExitCode::SUCCESS
        }
        Err(stopped) => stopped.tell(usage),
    }
}

/// A word that is none of the program's flags, where it takes nothing else.
pub fn none(word: &str) -> Result<(), Stopped> {
    match word {
        "--help" | "-h" => Err(Stopped::Help),
        _ => Err(Stopped::Wrong(format!("there is no `{word}`"))),
    }
}

/// A word that is none of the program's flags: a folder, unless it looks like a flag.
pub fn folder(word: &str) -> Result<PathBuf, Stopped> {
    match word {
        "--help" | "-h" => Err(Stopped::Help),
        _ if word.starts_with('-') => Err(Stopped::Wrong(format!("there is no `{word}`"))),
        _ => Ok(PathBuf::from(word)),
    }
}

/// The word behind a flag.
pub fn value(flag: &str, words: &mut impl Iterator<Item = String>) -> Result<String, Stopped> {
    words.next().ok_or_else(|| Stopped::Wrong(format!("nothing stands behind `{flag}`")))
}

/// The word behind a flag, as what it says.
pub fn parsed<T: FromStr>(flag: &str, words: &mut impl Iterator<Item = String>) -> Result<T, Stopped> {
    let word = value(flag, words)?;
    word.parse().map_err(|_| Stopped::Wrong(format!("`{flag}` cannot be `{word}`")))
}

/// The numbers behind a flag, with commas between them.
pub fn numbers(flag: &str, words: &mut impl Iterator<Item = String>) -> Result<Vec<usize>, Stopped> {
    let word = value(flag, words)?;
    let numbers = word.split(',').filter(|number| !number.is_empty()).map(str::parse);
    numbers.collect::<Result<_, _>>().map_err(|_| Stopped::Wrong(format!("`{flag}` cannot be `{word}`")))
}
