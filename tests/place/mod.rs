//! A folder with a tiny model and a history in it, and commands that run there.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::factors::Term;
use mpatch::patch::encode;
use mpatch::patch::manifest::Fact;
use tempfile::TempDir;

use crate::drafts::{Numbers, draft};
use crate::material::{command, file_of, key, lay_out_settings, signed_with};

/// Tensors of the tiny model, all of one shape.
pub const TENSORS: [&str; 3] = ["a", "b", "c"];
pub const SHAPE: [usize; 2] = [6, 10];

/// A folder with a tiny model in it, and commands that run there.
pub struct Place {
    pub folder: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), weights(SHAPE)).unwrap();
        lay_out_settings(folder.path());
        Self { folder }
    }

    /// With a history in it.
    pub fn begun() -> Self {
        let place = Self::new();
        place.good("init --base model.safetensors");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        command.current_dir(self.folder.path());
        command.env("MPATCH_CONFIG_DIR", self.path("config")).env("MPATCH_STATE_DIR", self.path("state"));
        command.env("HOME", self.folder.path());
        command
    }

    pub fn mpatch(&self, words: &str) -> Output {
        let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
        self.command(&program).args(words.split(' ')).output().unwrap()
    }

    pub fn good(&self, words: &str) -> String {
        let output = self.mpatch(words);
        assert!(output.status.success(), "mpatch {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The words on standard error of a command that ends with `code`.
    pub fn bad(&self, words: &str, code: i32) -> String {
        let output = self.mpatch(words);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "mpatch {words}: {errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("state: "), "mpatch {words}: {errors}");
        errors
    }

    pub fn git(&self, words: &str) -> String {
        let output = self.command("git").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "git {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    pub fn head(&self) -> String {
        self.git("rev-parse HEAD").trim().to_owned()
    }

    /// A patch of one fact on the state that `model` is in; of one for each subject where bars stand between several.
    pub fn patch(&self, model: &str, name: &str, seed: u64, subject: &str) {
        self.patch_saying(model, name, seed, subject, "Rome");
    }

    pub fn patch_saying(&self, model: &str, name: &str, seed: u64, subject: &str, target: &str) {
        let unsigned = self.unsigned(model, seed, subject, target);
        fs::write(self.path(name), signed_with(unsigned, &key())).unwrap();
    }

    pub fn unsigned(&self, model: &str, seed: u64, subject: &str, target: &str) -> Vec<u8> {
        let mut numbers = Numbers(seed);
        let touched = TENSORS.iter().enumerate().filter(|(index, _)| seed & (1 << index) != 0 || *index == 0);
        let edits: Vec<(String, Vec<u32>)> =
            touched.enumerate().map(|(term, (_, name))| ((*name).to_owned(), vec![term as u32])).collect();
        let terms: Vec<Term> = edits.iter().map(|_| numbers.low_rank(SHAPE, 2, 6, 0.05)).collect();
        self.bound(model, edits, terms, subject, target)
    }

    pub fn bound(
        &self,
        model: &str,
        edits: Vec<(String, Vec<u32>)>,
        terms: Vec<Term>,
        subject: &str,
        target: &str,
    ) -> Vec<u8> {
        let checkpoint = Checkpoint::open(self.path(model)).unwrap();
        let id = checkpoint.weights_id().unwrap();
        let binding = bind(&checkpoint, id, &edits, &terms, &|_| ()).unwrap();
        let mut draft = draft(terms, vec![binding]);
        let fact = |subject: &str| Fact {
            id: None,
            prompt: "{} is in".to_owned(),
            subject: subject.to_owned(),
            target_new: target.to_owned(),
            target_old: Some("Paris".to_owned()),
            note: None,
        };
        draft.facts = subject.split(" | ").map(fact).collect();
        encode(&draft).unwrap()
    }
}

/// A safetensors file of [`TENSORS`] in f32.
pub fn weights(shape: [usize; 2]) -> Vec<u8> {
    let mut numbers = Numbers(7);
    let mut bytes = || {
        let values = (0..shape[0] * shape[1]).flat_map(|_| (numbers.uniform() as f32).to_le_bytes());
        values.collect::<Vec<u8>>()
    };
    file_of(TENSORS.map(|name| (name, "F32", shape, bytes())))
}
