//! A folder with settings of its own that commands run in, models and patches, and OpenSSH's programs beside mpatch.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use mpatch::patch::manifest::Line;
use serde_json::Value;
use tempfile::TempDir;

use crate::material::{key, lay_out, lay_out_settings, listing, mpatch, signed_with, unsigned_patch};
use crate::telling::skipped;

/// A folder that commands run in.
pub struct Bench {
    pub folder: TempDir,
}

/// What a command that refused had to say.
pub struct Refusal {
    pub stderr: String,
}

impl Bench {
    /// With the tiny weights and their patches in it.
    pub fn new() -> Self {
        let bench = Self::empty();
        lay_out(bench.folder.path());
        bench
    }

    /// With settings alone.
    pub fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        lay_out_settings(folder.path());
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), bytes).unwrap();
    }

    /// Changes fields of a JSON file.
    pub fn alter_json(&self, name: &str, fields: Value) {
        let mut value: Value = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        for (field, new) in fields.as_object().unwrap() {
            value[field] = new.clone();
        }
        self.write(name, value.to_string());
    }

    pub fn command(&self, words: &str) -> assert_cmd::Command {
        let mut command = mpatch();
        command.current_dir(self.folder.path()).args(words.split(' '));
        command
    }

    /// Runs mpatch, which must end with `code`; answers with what it said on both outputs.
    #[track_caller]
    pub fn run(&self, words: &str, code: i32) -> String {
        said(&self.command(words).output().unwrap(), words, code)
    }

    /// Runs a command that must fail with `code`, explain itself, and change nothing.
    pub fn refuses(&self, words: &str, code: i32) -> Refusal {
        let before = listing(self.folder.path());
        let output = self.command(words).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "`{words}` said:\n{stderr}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "`{words}` failed, yet reported");
        let lines: Vec<&str> = stderr.lines().collect();
        let [.., error, hint, state] = lines[..] else { panic!("`{words}` said too little:\n{stderr}") };
        assert!(error.starts_with("error: "), "{stderr}");
        assert!(hint.starts_with("hint: "), "{stderr}");
        assert_eq!(state, "state: unchanged", "{stderr}");
        assert!(listing(self.folder.path()) == before, "`{words}` left something behind");
        Refusal { stderr }
    }

    /// As [`Bench::run`], in a folder of the bench and with the user's own settings.
    #[track_caller]
    pub fn run_in(&self, folder: &str, words: &str, code: i32) -> String {
        let mut command = mpatch();
        command.current_dir(self.path(folder)).env("MPATCH_CONFIG_DIR", self.path("config"));
        said(&command.args(words.split(' ')).output().unwrap(), words, code)
    }

    /// The answer of `verify --json` about a patch, which must end with `code`.
    #[track_caller]
    pub fn answer(&self, patch: &str, code: i32) -> Value {
        let output = self.command(&format!("verify {patch} --json")).output().unwrap();
        said(&output, patch, code);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["trust"].clone()
    }

    /// `ssh-keygen` in the bench's folder, with `input`.
    pub fn ssh_keygen(&self, words: &str, input: &[u8]) -> Output {
        let mut command = Command::new("ssh-keygen");
        command.current_dir(self.folder.path()).args(words.split(' ')).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A key that `ssh-keygen` makes, without passphrase, and the line that trusts it.
    pub fn make_key(&self, kind: &str, name: &str) -> String {
        let mut command = Command::new("ssh-keygen");
        command.current_dir(self.folder.path());
        command.args(["-q", "-N", "", "-C", "someone@example.org", "-f", name, "-t"]);
        assert!(command.args(kind.split(' ')).status().unwrap().success());
        format!("someone@example.org {}", fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap())
    }

    /// Trusts the keys of these lines and no others.
    pub fn trust(&self, lines: &str) {
        self.write("config/allowed_signers", lines);
    }

    /// The manifest of `patch`, as mpatch prints it.
    pub fn manifest(&self, patch: &str) -> Vec<u8> {
        self.command(&format!("show {patch} --manifest")).output().unwrap().stdout
    }

    /// Has `ssh-keygen` sign the manifest of `unsigned.mpatch`, into its `.sig`.
    pub fn sign_with_openssh(&self, key: &str, namespace: &str) {
        let made =
            self.ssh_keygen(&format!("-Y sign -f {key} -n {namespace}"), &self.manifest("unsigned.mpatch"));
        assert!(made.status.success(), "{made:?}");
        self.write("unsigned.mpatch.sig", made.stdout);
    }

    /// A patch of the line `geography`, signed by the key that is trusted.
    pub fn patch_of_line(&self, name: &str, sequence: u64, title: &str) {
        let line = Line { name: "geography".into(), sequence };
        let unsigned = unsigned_patch(&self.path("model.safetensors"), Some(line), title);
        self.write(name, signed_with(unsigned, &key()));
    }
}

impl Refusal {
    /// The refusal has all these words.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        for words in words {
            assert!(self.stderr.contains(words), "`{words}` is missing:\n{}", self.stderr);
        }
    }
}

#[track_caller]
pub fn said(output: &Output, words: &str, code: i32) -> String {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "`{words}` said:\n{text}");
    text
}

/// Whether OpenSSH is here; a test that needs it says so and is skipped.
pub fn openssh_is_here() -> bool {
    let is_here = Command::new("ssh-keygen").arg("-?").stderr(Stdio::null()).status().is_ok();
    if !is_here {
        skipped("OpenSSH is not installed");
    }
    is_here
}
