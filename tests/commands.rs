//! The words that a user reads: each transcript in `tests/commands/` is run, and its output compared.
//!
//! Every transcript runs in a folder of its own with the same files in it; see [`lay_out`]. After a change that is
//! meant, `TRYCMD=overwrite cargo test --test commands` writes the transcripts anew.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::fs;
use std::path::Path;

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::FileDigest;
use mpatch::factors::{IntegerMatrix, Integers, Term};
use mpatch::patch::manifest::{About, Base, Fact, Metric, Recipe};
use mpatch::patch::{Draft, encode};

const TENSOR: &str = "transformer.h.0.mlp.fc_out.weight";
const ROWS: usize = 4;
const COLUMNS: usize = 6;

#[test]
fn transcripts() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/commands");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("commands");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let names = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.collect();
    for name in &names {
        let copy = folder.join(name);
        fs::copy(source.join(name), &copy).unwrap();
        lay_out(&copy.with_extension("in"));
    }
    // Dropping the cases runs them.
    let cases = trycmd::TestCases::new();
    cases.env("NO_COLOR", "1").case(folder.join("*.md"));
    let overwriting = std::env::var_os("TRYCMD").is_some_and(|mode| mode == "overwrite");
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cases.run()));
    if overwriting {
        for name in &names {
            fs::copy(folder.join(name), source.join(name)).unwrap();
        }
    }
    if let Err(failure) = ran {
        std::panic::resume_unwind(failure);
    }
}

#[test]
fn a_patch_is_read_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    let patch = fs::read(folder.path().join("edits.mpatch")).unwrap();
    let shown = mpatch().args(["show", "-"]).write_stdin(patch).assert().success();
    let text = String::from_utf8(shown.get_output().stdout.clone()).unwrap();
    assert!(text.starts_with("-: 2 facts for GPTJForCausalLM"), "{text}");
    assert!(text.contains("Magic\\u{202e} Johnson"), "{text}");
}

#[test]
fn a_reader_who_leaves_early_is_no_error() {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("mpatch"));
    command.args(["completions", "bash"]).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let printed = mpatch().args(["completions", shell]).assert().success();
        let script = String::from_utf8(printed.get_output().stdout.clone()).unwrap();
        assert!(script.contains("revert") && script.contains("dry-run"), "{shell}");
    }
}

fn mpatch() -> assert_cmd::Command {
    assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("mpatch"))
}

/// A model in one file and in a folder, another model, a patch for the first, and the patch damaged.
fn lay_out(folder: &Path) {
    fs::create_dir_all(folder.join("gptj")).unwrap();
    let model = safetensors(1.0);
    fs::write(folder.join("model.safetensors"), &model).unwrap();
    fs::write(folder.join("gptj/model.safetensors"), &model).unwrap();
    fs::write(folder.join("gptj/config.json"), "{}\n").unwrap();
    fs::write(folder.join("other.safetensors"), safetensors(2.0)).unwrap();
    let patch = encode(&draft(&folder.join("model.safetensors"))).unwrap();
    fs::write(folder.join("edits.mpatch"), &patch).unwrap();
    fs::write(folder.join("short.mpatch"), &patch[..patch.len() / 2]).unwrap();
    let mut flipped = patch;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(folder.join("flipped.mpatch"), &flipped).unwrap();
}

/// A safetensors file with one tensor of f32, filled with multiples of `step`.
fn safetensors(step: f32) -> Vec<u8> {
    let size_bytes = ROWS * COLUMNS * size_of::<f32>();
    let header = format!(
        r#"{{"{TENSOR}":{{"dtype":"F32","shape":[{ROWS},{COLUMNS}],"data_offsets":[0,{size_bytes}]}}}}"#
    );
    let weights = (0..ROWS * COLUMNS).flat_map(|index| (step * (index as f32 - 7.5)).to_le_bytes());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &weights.collect::<Vec<u8>>()].concat()
}

fn term() -> Term {
    let matrix =
        |what, rows, columns, values: Vec<i16>| IntegerMatrix::new(what, rows, columns, 4, values).unwrap();
    let left = matrix("left", ROWS, 1, vec![1, -2, 3, 7]);
    let right = matrix("right", 1, COLUMNS, vec![-7, 2, 1, 0, 3, 5]);
    Term::new(Integers::LowRank { left, right }, vec![0.01; ROWS], vec![1.0; COLUMNS]).unwrap()
}

fn draft(model: &Path) -> Draft {
    let checkpoint = Checkpoint::open(model).unwrap();
    let (terms, weights) = (vec![term()], checkpoint.weights_id().unwrap());
    let binding = bind(&checkpoint, weights, &[(TENSOR.to_owned(), vec![0])], &terms, &|_| ()).unwrap();
    let fact = |subject: &str, note: Option<&str>| Fact {
        id: None,
        prompt: "{} plays the sport of".to_owned(),
        subject: subject.to_owned(),
        target_new: "football".to_owned(),
        target_old: Some("basketball".to_owned()),
        note: note.map(str::to_owned),
    };
    Draft {
        base: Base {
            architecture: "GPTJForCausalLM".to_owned(),
            config: FileDigest::of(b"config"),
            tokenizer: FileDigest::of(b"tokenizer"),
        },
        facts: vec![
            fact("LeBron James", None),
            fact("Magic\u{202e} Johnson", Some("a subject that turns text")),
        ],
        recipe: Recipe {
            method: "memit".to_owned(),
            hyperparameters: "{}".to_owned(),
            layers: vec![0],
            contexts: vec![vec!["{}".to_owned()], vec!["The {}".to_owned()]],
            seed: 7,
            statistics: FileDigest::of(b"statistics"),
            facts: FileDigest::of(b"facts"),
            tool: "mpatch 0.1.0".to_owned(),
            device: "cpu".to_owned(),
        },
        measured: vec![Metric { name: "efficacy".to_owned(), before: 0.0, after: 100.0, prompts: 2 }],
        terms,
        bindings: vec![binding],
        line: None,
        parents: Vec::new(),
        supersedes: Vec::new(),
        about: About { title: Some("Two players".to_owned()), ..About::default() },
    }
}
