//! Running `git`: in the folder that it is asked about, whatever repository the caller was started from.

use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::CommandError;

/// Variables that would lead `git` to another repository, or to other objects: what `git rev-parse --local-env-vars`
/// lists, but for settings, which are the user's, and two that say what may be seen and written.
const ELSEWHERE: [&str; 15] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_NO_REPLACE_OBJECTS",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// Why `git` gave no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// There is none.
    NotFound,
    /// It cannot be run.
    Failed(Error),
    /// It ended with this code, and these words.
    Refused { code: Option<i32>, said: String },
}

impl Unanswered {
    /// The error where `git` is there and cannot be run.
    pub fn failed(error: &Error) -> CommandError {
        CommandError::io("run", Path::new("git"), error)
    }
}

/// `git` in this folder; its words are the same everywhere, so that they can be read.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new("git");
    ELSEWHERE.iter().for_each(|name| _ = command.env_remove(name));
    command.current_dir(folder).env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// What it prints.
pub fn answer<W: AsRef<OsStr>>(
    command: &mut Command,
    words: impl IntoIterator<Item = W>,
) -> Result<String, Unanswered> {
    let output = command.args(words).output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => Unanswered::NotFound,
        _ => Unanswered::Failed(error),
    })?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
            let said = lines.collect::<Vec<_>>().join("\n");
            Err(Unanswered::Refused { code: output.status.code(), said })
        }
    }
}

/// What was said, on one line.
pub fn on_one_line(said: &str) -> String {
    said.replace('\n', "; ")
}
