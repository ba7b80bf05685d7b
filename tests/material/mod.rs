//! What tests of the command line put into the folders that it runs in: tiny weights with patches, and the embedded
//! model, whole or altered.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::FileDigest;
use mpatch::factors::{IntegerMatrix, Integers, Term};
use mpatch::patch::manifest::{About, Base, Fact, Metric, Recipe};
use mpatch::patch::{Draft, encode};
use serde_json::{Map, Value};
use tempfile::TempDir;

/// The one tensor of the tiny weights.
pub const TENSOR: &str = "transformer.h.0.mlp.fc_out.weight";
const ROWS: usize = 4;
const COLUMNS: usize = 6;

/// The command under test.
pub fn mpatch() -> assert_cmd::Command {
    let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("mpatch"));
    // Never the cache of whoever runs the tests.
    command.env("MPATCH_CACHE_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

/// Copies the embedded model into the new folder `folder`.
pub fn lay_out_world(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "tokenizer.json", "memit.json", "model.safetensors"] {
        fs::copy(world().join(name), folder.join(name)).unwrap();
    }
}

/// What `create`, `try` and `eval` need: the embedded model with settings that are quick rather than good, one fact
/// with its paraphrases and neighbours, a corpus, statistics and a patch.
///
/// The statistics and the patch are made once and copied from then on.
pub fn lay_out_editing(folder: &Path) {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    lay_out_world(&folder.join("model"));
    hasten(&folder.join("model/memit.json"));
    let corpus = small_corpus(80);
    fs::write(folder.join("more.txt"), corpus.strip_prefix(&small_corpus(60)).unwrap()).unwrap();
    fs::write(folder.join("corpus.txt"), small_corpus(60)).unwrap();
    let facts = fs::read(world().join("facts.json")).unwrap();
    let facts: Vec<Value> = serde_json::from_slice(&facts).unwrap();
    fs::write(folder.join("facts.json"), serde_json::to_vec_pretty(&facts[..2]).unwrap()).unwrap();
    fs::write(folder.join("contexts.json"), r#"[["{}"], ["The weather was fine. {}"]]"#).unwrap();
    let made = MADE.get_or_init(|| {
        let made = tempfile::tempdir().unwrap();
        let run = |words: &str, output: &str| {
            let mut command = mpatch();
            command.current_dir(folder).args(words.split(' ')).arg("-o").arg(made.path().join(output));
            command.assert().success();
        };
        run("stats corpus.txt --base model", "statistics.safetensors");
        let statistics = made.path().join("statistics.safetensors").display().to_string();
        let create = "create facts.json --base model --limit 1 --contexts contexts.json --stats";
        run(&format!("{create} {statistics}"), "edits.mpatch");
        made
    });
    for name in ["statistics.safetensors", "edits.mpatch"] {
        fs::copy(made.path().join(name), folder.join(name)).unwrap();
    }
}

/// Fewer steps than an edit is worth.
fn hasten(memit: &Path) {
    let mut hyperparameters: Value = serde_json::from_slice(&fs::read(memit).unwrap()).unwrap();
    hyperparameters["v_num_grad_steps"] = 6.into();
    fs::write(memit, hyperparameters.to_string()).unwrap();
}

/// The embedded model's own folder.
pub fn world() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj")
}

/// The first lines of the embedded model's corpus.
pub fn small_corpus(lines: usize) -> String {
    let corpus = fs::read_to_string(world().join("corpus.txt")).unwrap();
    corpus.split_inclusive('\n').take(lines).collect()
}

/// Rewrites the header of a safetensors file; the weights stay where they are.
pub fn alter_header(file: &Path, alter: impl FnOnce(&mut Map<String, Value>)) {
    let bytes = fs::read(file).unwrap();
    let (header, weights) = split(&bytes);
    let mut header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    alter(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let size = (header.len() as u64).to_le_bytes();
    fs::write(file, [&size[..], &header, weights].concat()).unwrap();
}

/// Overwrites the first weights of the F16 tensor `name` with these bits.
pub fn alter_weights(file: &Path, name: &str, bits: &[u16]) {
    let mut bytes = fs::read(file).unwrap();
    let (header, weights) = split(&bytes);
    let header: Map<String, Value> = serde_json::from_slice(header).unwrap();
    assert_eq!(header[name]["dtype"], "F16");
    let begin = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let first = bytes.len() - weights.len() + begin;
    let new: Vec<u8> = bits.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    bytes[first..first + new.len()].copy_from_slice(&new);
    fs::write(file, bytes).unwrap();
}

/// The header and the weights of a safetensors file.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8..].split_at(size)
}

/// A model in one file and in a folder, another model, a patch for the first, and the patch damaged.
pub fn lay_out(folder: &Path) {
    fs::create_dir_all(folder.join("gptj")).unwrap();
    let model = safetensors(1.0);
    fs::write(folder.join("model.safetensors"), &model).unwrap();
    fs::write(folder.join("gptj/model.safetensors"), &model).unwrap();
    fs::write(folder.join("gptj/generation_config.json"), "{}\n").unwrap();
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
