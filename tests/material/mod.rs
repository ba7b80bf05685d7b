//! What tests of the command line put into the folders that it runs in: tiny weights with patches, and the embedded
//! model, whole or altered.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../weights_file/mod.rs"]
mod weights_file;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirEntry};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::FileDigest;
use mpatch::factors::{IntegerMatrix, Integers, Term};
use mpatch::patch::manifest::{About, Base, Fact, Line, Metric, Recipe};
use mpatch::patch::{BindingDraft, Draft, Patch, Signature, SignatureKind, encode};
use mpatch::sign::allowed_signers::line_of;
use mpatch::sign::{PrivateKey, sshsig};
use serde_json::{Map, Value, json};
pub use weights_file::file_of;

/// A public key of a kind that is not supported.
pub const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDTLKFhKLRvIcl/yDlfI7U75zupSusx4bk0kDtVaZcWX+kaBjk9yWBIoCPRYtIztaWWJD6qf2u7YRcBgzEXco+383OJezOeiepbtWUNSCDJsegFnWoObrTYcxTS+WDvlwdACehCLpns1TyWXtaJID0AZUmci68M2FNu41ItFY9lUQ== rsa@example.org";

/// The one tensor of the tiny weights.
pub const TENSOR: &str = "transformer.h.0.mlp.fc_out.weight";
const ROWS: usize = 4;
const COLUMNS: usize = 6;
/// The tensors of the model in shards: several blocks of a disk each.
const SHARD_ROWS: usize = 32;
const SHARD_COLUMNS: usize = 128;

/// What keeps the command under test away from the settings of whoever runs the tests: its own lie in the folder
/// that it runs in, and so does its cache, which no run inherits from an earlier one.
pub const SETTINGS: [(&str, &str); 14] = [
    ("MPATCH_CONFIG_DIR", "config"),
    ("MPATCH_STATE_DIR", "state"),
    ("MPATCH_CACHE_DIR", "cache"),
    ("MPATCH_KEY", ""),
    ("HOME", "nowhere"),
    ("USER", ""),
    ("LOGNAME", ""),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    // Histories are made by somebody, at some time.
    ("GIT_COMMITTER_NAME", "Ada"),
    ("GIT_COMMITTER_EMAIL", "ada@example.org"),
    ("GIT_COMMITTER_DATE", "1764028800 +0000"),
    ("NO_COLOR", "1"),
    // Help is as wide as it is anywhere.
    ("COLUMNS", ""),
];

/// A program with [`SETTINGS`], and without what a git that runs the tests, in a hook, says of its own repository.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    variables_of_git().for_each(|name| {
        command.env_remove(name);
    });
    command.envs(SETTINGS);
    command
}

/// Names of what the caller of the tests tells git; where git has its own programs is as true here.
pub fn variables_of_git() -> impl Iterator<Item = OsString> {
    let is_git = |name: &OsString| name.as_encoded_bytes().starts_with(b"GIT_") && name != "GIT_EXEC_PATH";
    std::env::vars_os().map(|(name, _)| name).filter(is_git)
}

/// The command under test.
pub fn mpatch() -> assert_cmd::Command {
    assert_cmd::Command::from_std(command(assert_cmd::cargo::cargo_bin!("mpatch")))
}

/// Waits until a command has opened the file at `path`, which somebody else has locked: then it waits for the lock.
#[track_caller]
pub fn wait_until_open(child: &mut Child, path: &Path) {
    let path = path.canonicalize().unwrap();
    let files = format!("/proc/{}/fd", child.id());
    // A file may be closed while the folder is read.
    let is_open =
        || fs::read_dir(&files).is_ok_and(|files| files.flatten().any(|file| is_link_to(&file, &path)));
    while !is_open() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it opened {}", path.display());
        sleep(Duration::from_millis(5));
    }
}

fn is_link_to(link: &DirEntry, path: &Path) -> bool {
    fs::read_link(link.path()).is_ok_and(|target| target == path)
}

/// The key that signs the patches of these tests; it is no secret.
pub fn key() -> PrivateKey {
    PrivateKey::from_seed(&[7; 32], "maker@example.org").unwrap()
}

/// The settings of a user who signs with [`key`] and trusts it.
pub fn lay_out_settings(folder: &Path) {
    let config = folder.join("config");
    fs::create_dir_all(&config).unwrap();
    write_key(&config.join("key"), &key());
    fs::write(config.join("allowed_signers"), line_of("maker@example.org", key().public()) + "\n").unwrap();
}

/// Writes a private key's file, which only its owner may read.
pub fn write_key(path: &Path, key: &PrivateKey) {
    fs::write(path, key.to_openssh().unwrap().as_bytes()).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The patch with a signature by `key` more.
pub fn signed_with(patch: Vec<u8>, key: &PrivateKey) -> Vec<u8> {
    let patch = Patch::decode(patch).unwrap();
    let signature = sshsig::sign(key, patch.manifest_bytes()).unwrap().bytes().to_vec();
    let mut signatures = patch.signatures().to_vec();
    signatures.push(Signature { kind: SignatureKind::SshSig, bytes: signature });
    patch.with_signatures(signatures).unwrap().bytes().unwrap().to_vec()
}

/// Copies the embedded model into the new folder `folder`.
pub fn lay_out_world(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "tokenizer.json", "memit.json", "model.safetensors"] {
        fs::copy(world().join(name), folder.join(name)).unwrap();
    }
}

/// What `create`, `try` and `eval` need: the embedded model with settings that are quick rather than good, one fact
/// with its paraphrases and neighbours, a corpus, statistics and a patch; statistics that name another tokenizer, and
/// recorded moments under the name of a layer that the model does not have.
///
/// The statistics and the patch are made once and copied from then on.
pub fn lay_out_editing(folder: &Path) {
    // Their bytes: a folder in here would never be removed.
    static MADE: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    const NAMES: [&str; 2] = ["statistics.safetensors", "edits.mpatch"];
    lay_out_settings(folder);
    lay_out_world(&folder.join("model"));
    hasten(&folder.join("model/memit.json"));
    let corpus = small_corpus(80);
    fs::write(folder.join("more.txt"), corpus.strip_prefix(&small_corpus(60)).unwrap()).unwrap();
    fs::write(folder.join("corpus.txt"), small_corpus(60)).unwrap();
    let facts = fs::read(world().join("facts.json")).unwrap();
    let facts: Vec<Value> = serde_json::from_slice(&facts).unwrap();
    for (name, count) in [("facts.json", 2), ("several.json", 5)] {
        fs::write(folder.join(name), serde_json::to_vec_pretty(&facts[..count]).unwrap()).unwrap();
    }
    fs::write(folder.join("contexts.json"), r#"[["{}"], ["The weather was fine. {}"]]"#).unwrap();
    let made = MADE.get_or_init(|| {
        let made = tempfile::tempdir().unwrap();
        lay_out_settings(made.path());
        let from = folder.display();
        // In a folder of its own: what is cached is to lie in none of a test's.
        let run = |words: &str| {
            let words = format!("{words} --base {from}/model");
            mpatch().current_dir(made.path()).args(words.split(' ')).assert().success();
        };
        run(&format!("stats {from}/corpus.txt -o statistics.safetensors"));
        let create = "-o edits.mpatch --limit 1 --stats statistics.safetensors";
        run(&format!("create {from}/facts.json --contexts {from}/contexts.json {create}"));
        NAMES.map(|name| fs::read(made.path().join(name)).unwrap())
    });
    for (name, bytes) in NAMES.iter().zip(made) {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let other = folder.join("other-tokenizer.safetensors");
    fs::copy(folder.join("statistics.safetensors"), &other).unwrap();
    alter_header(&other, |header| header["__metadata__"]["tokenizer"] = "0".repeat(64).into());
    fs::create_dir(folder.join("moments")).unwrap();
    let moments = world().join("reference/moments/transformer.h.0.mlp.fc_out_float32_mom2_4000.npz");
    fs::copy(moments, folder.join("moments/transformer.h.8.mlp.fc_out_float32_mom2_4000.npz")).unwrap();
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

/// Every file and folder below `folder` by its path there, files with their bytes.
pub fn listing(folder: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for path in fs::read_dir(next).unwrap().map(|entry| entry.unwrap().path()) {
            let is_folder = path.is_dir() && !path.is_symlink();
            let bytes = (!is_folder).then(|| fs::read(&path).unwrap());
            found.insert(path.strip_prefix(folder).unwrap().to_owned(), bytes);
            folders.extend(is_folder.then_some(path));
        }
    }
    found
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

/// A model in one file and in a folder, another model, a signed patch for the first, and the patch damaged; another
/// patch, and one that contradicts the first.
pub fn lay_out(folder: &Path) {
    lay_out_settings(folder);
    fs::create_dir_all(folder.join("gptj")).unwrap();
    let model = safetensors(1.0);
    fs::write(folder.join("model.safetensors"), &model).unwrap();
    fs::write(folder.join("gptj/model.safetensors"), &model).unwrap();
    fs::write(folder.join("gptj/generation_config.json"), "{}\n").unwrap();
    fs::write(folder.join("other.safetensors"), safetensors(2.0)).unwrap();
    let model = folder.join("model.safetensors");
    let unsigned = unsigned_patch(&model, None, TITLE);
    fs::write(folder.join("unsigned.mpatch"), &unsigned).unwrap();
    let patch = signed_with(unsigned, &key());
    fs::write(folder.join("edits.mpatch"), &patch).unwrap();
    for (name, subject, target, column) in
        [("more.mpatch", "Steffi Graf", "tennis", 3), ("rival.mpatch", "lebron james", "golf", 5)]
    {
        let other = encode(&other_draft(&model, subject, target, column)).unwrap();
        fs::write(folder.join(name), signed_with(other, &key())).unwrap();
    }
    fs::write(folder.join("short.mpatch"), &patch[..patch.len() / 2]).unwrap();
    let mut flipped = patch;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(folder.join("flipped.mpatch"), &flipped).unwrap();
}

/// A model in shards, two of which a patch touches: `shards` and `shards.mpatch`.
pub fn lay_out_shards(folder: &Path) {
    const NAMES: [&str; 3] = ["first", "second", "untouched"];
    lay_out_settings(folder);
    let shards = folder.join("shards");
    fs::create_dir_all(&shards).unwrap();
    let mut map = Map::new();
    for (number, name) in NAMES.iter().enumerate() {
        let file = format!("model-{number}.safetensors");
        let weights =
            (0..SHARD_ROWS * SHARD_COLUMNS).flat_map(|index| ((index + number) as f32).to_le_bytes());
        let weights: Vec<u8> = weights.collect();
        let shape = [SHARD_ROWS, SHARD_COLUMNS];
        fs::write(shards.join(&file), file_of([(*name, "F32", shape, weights)])).unwrap();
        map.insert((*name).to_owned(), file.into());
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(shards.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(shards.join("config.json"), "{}\n").unwrap();
    let checkpoint = Checkpoint::open(&shards).unwrap();
    let ones =
        |what, rows, columns| IntegerMatrix::new(what, rows, columns, 4, vec![1; rows * columns]).unwrap();
    let (left, right) = (ones("left", SHARD_ROWS, 1), ones("right", 1, SHARD_COLUMNS));
    let integers = Integers::LowRank { left, right };
    let terms = vec![Term::new(integers, vec![0.25; SHARD_ROWS], vec![1.0; SHARD_COLUMNS]).unwrap()];
    let touched = [("first".to_owned(), vec![0]), ("second".to_owned(), vec![0])];
    let weights = checkpoint.weights_id().unwrap();
    let binding = bind(&checkpoint, weights, &touched, &terms, &|_| ()).unwrap();
    let draft = draft_with(terms, binding);
    fs::write(folder.join("shards.mpatch"), signed_with(encode(&draft).unwrap(), &key())).unwrap();
}

/// The patch of [`lay_out`], as a member of `line` and with this title, without a signature. With titles of other
/// lengths it is another update, for one that is in the weights is not added once more.
pub fn unsigned_patch(model: &Path, line: Option<Line>, title: &str) -> Vec<u8> {
    let about = About { title: Some(title.to_owned()), ..About::default() };
    let row_scale = ROW_SCALE * title.len() as f32 / TITLE.len() as f32;
    encode(&Draft { line, about, ..draft(model, row_scale) }).unwrap()
}

/// What [`lay_out`] has, with keys and patches of others: `stranger.mpatch` is signed by nobody who is trusted,
/// `bad.mpatch` has a signature that does not fit, `second` is one more key, `open` one that others can read.
pub fn lay_out_signers(folder: &Path) {
    lay_out(folder);
    let unsigned = fs::read(folder.join("unsigned.mpatch")).unwrap();
    let stranger = PrivateKey::from_seed(&[8; 32], "").unwrap();
    fs::write(folder.join("stranger.mpatch"), signed_with(unsigned, &stranger)).unwrap();
    let mut bad = fs::read(folder.join("edits.mpatch")).unwrap();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(folder.join("bad.mpatch"), bad).unwrap();
    let second = PrivateKey::from_seed(&[9; 32], "").unwrap();
    write_key(&folder.join("second"), &second);
    fs::write(folder.join("second.pub"), second.public().line() + "\n").unwrap();
    write_key(&folder.join("open"), &second);
    fs::set_permissions(folder.join("open"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(folder.join("rsa.pub"), format!("{RSA}\n")).unwrap();
}

/// A safetensors file with one tensor of f32, filled with multiples of `step`.
fn safetensors(step: f32) -> Vec<u8> {
    let weights = (0..ROWS * COLUMNS).flat_map(|index| (step * (index as f32 - 7.5)).to_le_bytes());
    file_of([(TENSOR, "F32", [ROWS, COLUMNS], weights.collect::<Vec<u8>>())])
}

fn term(row_scale: f32) -> Term {
    let matrix =
        |what, rows, columns, values: Vec<i16>| IntegerMatrix::new(what, rows, columns, 4, values).unwrap();
    let left = matrix("left", ROWS, 1, vec![1, -2, 3, 7]);
    let right = matrix("right", 1, COLUMNS, vec![-7, 2, 1, 0, 3, 5]);
    Term::new(Integers::LowRank { left, right }, vec![row_scale; ROWS], vec![1.0; COLUMNS]).unwrap()
}

/// The title of the patch of [`lay_out`], and its row scale.
const TITLE: &str = "Two players";
const ROW_SCALE: f32 = 0.01;

fn draft(model: &Path, row_scale: f32) -> Draft {
    let checkpoint = Checkpoint::open(model).unwrap();
    let (terms, weights) = (vec![term(row_scale)], checkpoint.weights_id().unwrap());
    let binding = bind(&checkpoint, weights, &[(TENSOR.to_owned(), vec![0])], &terms, &|_| ()).unwrap();
    draft_with(terms, binding)
}

fn draft_with(terms: Vec<Term>, binding: BindingDraft) -> Draft {
    let fact = |subject: &str, note: Option<&str>| Fact {
        id: None,
        prompt: "{} plays the sport of".to_owned(),
        subject: subject.to_owned(),
        target_new: "football".to_owned(),
        target_old: Some("basketball".to_owned()),
        note: note.map(str::to_owned),
    };
    let base = Base {
        architecture: "GPTJForCausalLM".to_owned(),
        config: FileDigest::of(b"config"),
        tokenizer: FileDigest::of(b"tokenizer"),
    };
    let recipe = Recipe {
        method: "memit".to_owned(),
        hyperparameters: "{}".to_owned(),
        layers: vec![0],
        contexts: vec![vec!["{}".to_owned()], vec!["The {}".to_owned()]],
        seed: 7,
        statistics: FileDigest::of(b"statistics"),
        facts: FileDigest::of(b"facts"),
        tool: "mpatch 0.1.0".to_owned(),
        device: "cpu".to_owned(),
    };
    let subjects = [("LeBron James", None), ("Magic\u{202e} Johnson", Some("a subject that turns text"))];
    Draft {
        facts: subjects.map(|(subject, note)| fact(subject, note)).to_vec(),
        measured: vec![Metric { name: "efficacy".to_owned(), before: 0.0, after: 100.0, prompts: 2 }],
        ..Draft::new(base, recipe, terms, vec![binding])
    }
}

/// A patch with one fact that adds to two columns.
fn other_draft(model: &Path, subject: &str, target: &str, column: usize) -> Draft {
    let mut draft = draft(model, ROW_SCALE);
    let mut right = vec![0; 2 * COLUMNS];
    (right[column], right[COLUMNS + column - 1]) = (7, 5);
    let left = IntegerMatrix::new("left", ROWS, 2, 4, vec![1, 2, -3, 0, 5, -7, 2, 2]).unwrap();
    let right = IntegerMatrix::new("right", 2, COLUMNS, 4, right).unwrap();
    let term = Term::new(Integers::LowRank { left, right }, vec![0.02; ROWS], vec![1.0; COLUMNS]).unwrap();
    let checkpoint = Checkpoint::open(model).unwrap();
    draft.terms = vec![term];
    let edits = [(TENSOR.to_owned(), vec![0])];
    let weights = checkpoint.weights_id().unwrap();
    draft.bindings = vec![bind(&checkpoint, weights, &edits, &draft.terms, &|_| ()).unwrap()];
    let fact = &mut draft.facts[0];
    (fact.subject, fact.target_new) = (subject.to_owned(), target.to_owned());
    draft.facts.truncate(1);
    draft.recipe.seed = 8;
    draft.about = About::default();
    draft
}
