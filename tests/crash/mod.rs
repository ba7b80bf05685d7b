//! A folder with models and patches in it, and commands that are stopped half-way there.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod kills;
mod recovery;
mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::material::{command, lay_out, lay_out_shards, listing};

/// Files and their bytes.
pub type Contents = BTreeMap<PathBuf, Vec<u8>>;

/// A folder that commands run in.
pub struct Bench {
    pub folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        lay_out(folder.path());
        lay_out_shards(folder.path());
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Every file by its path in the folder.
    pub fn contents(&self) -> Contents {
        listing(self.folder.path()).into_iter().filter_map(|(path, bytes)| Some((path, bytes?))).collect()
    }

    /// Puts the folder into a state that it was in before.
    pub fn restore(&self, contents: &Contents) {
        for (path, _) in self.contents().iter().filter(|(path, bytes)| contents.get(*path) != Some(bytes)) {
            fs::remove_file(self.folder.path().join(path)).unwrap();
        }
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            // Folders in the making.
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !contents.keys().any(|path| path.starts_with(name)) {
                fs::remove_dir_all(path).unwrap();
            }
        }
        for (path, bytes) in contents {
            let path = self.folder.path().join(path);
            if !path.exists() {
                fs::write(path, bytes).unwrap();
            }
        }
    }

    pub fn run(&self, words: &str) -> Output {
        self.command(&[], words).output().unwrap()
    }

    /// The command, behind the words of another one, on two threads.
    pub fn command(&self, before: &[&str], words: &str) -> Command {
        let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap();
        let words = before.iter().copied().chain([program]).chain(words.split(' '));
        let words: Vec<&str> = words.collect();
        let mut command = command(words[0]);
        command.args(&words[1..]).current_dir(self.folder.path());
        command.env("RAYON_NUM_THREADS", "2");
        command
    }

    /// Runs a command that must succeed.
    pub fn succeeds(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {}", stderr(&output));
        String::from_utf8(output.stdout.clone()).unwrap() + &stderr(&output)
    }

    /// Runs a command that must fail with `code` and leave everything as it was.
    pub fn refuses(&self, words: &str, code: i32) -> String {
        let before = self.contents();
        let output = self.run(words);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{words}: {said}");
        assert!(said.ends_with("state: unchanged\n"), "{said}");
        assert!(self.contents() == before, "{words} changed something");
        said
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
