//! The fields of every document that `--json` prints: `docs/json.md` lists them, and this holds it to what is printed.
//!
//! Every command runs once or twice on tiny files. After a change that is meant,
//! `MPATCH_TEST_UPDATE=1 cargo test --test command_line json` writes the list anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::material::{command, lay_out_editing, lay_out_signers, mpatch};
use crate::telling::skipped;
use serde_json::Value;

/// What is said before the list.
const HEAD: &str = "\
# What `--json` prints

Each document has a `schema`, which names it and a version.
A version may gain fields, and none goes or changes its meaning.
A number that JSON cannot say, such as the ratio of a change to weights that are all 0, which is infinite, is `null`.
A `time` is as RFC 3339 has it, to the second; the `date` beside it is what people are shown, to the minute.
A field that says nothing is there as `null`; where an object is one of several kinds (`is`, `do`, or a single field that is its kind's name), it has the fields of its kind.
What `trust.line` and `trust.policy` hold in `mpatch.verify/1`, they hold in every `trust` that has them.
The list is of what the test's commands print: what was `null`, empty or one kind there may be filled or another elsewhere, so take a list of nothing for one of which no example came up.
On a GPU, which the tests do not have, `mpatch.create-estimate/1` has `device_memory_size_bytes` and `host_memory_size_bytes` instead of `memory_size_bytes`.
Each row is an object and its fields; `[]` stands for every entry of a list, and `*` for names that are data.
`MPATCH_TEST_UPDATE=1 cargo test --test command_line json` writes this file, and `cargo test --test command_line json` holds it to what the commands print.
";

/// What is said before the words.
const HEAD_OF_WORDS: &str = "
These strings are words for a script to compare with; a version may gain some here, too.

| schema | field | words |
|---|---|---|
";

/// What is said behind the words: the fields whose names leave something open.
const MEANINGS: &str = "
These fields say more, or less, than their names.

| field | meaning |
|---|---|
| `probability_before`, `probability_after` | probability of the target after the prompt, per token: the geometric mean over its tokens, `exp` of minus the mean of their `-log p`; that of the whole target is this to the power of its tokens |
| `probability_of_value` | the same over all contexts, in the base with nothing but the fact's value in its hidden state: what the update aims at |
| `holds`, `holds_before` of an outcome | the new target is likelier than the old one or, where no old one is known, every token of it is the likeliest; asked with the target given |
| `is_said`, `is_said_before` | the model, continuing the prompt by itself, begins with the target, and the old one does not follow in the sentence |
| `nll`, `nll_before`, `nll_after` | `right` and `wrong` have one number for each prompt, in the file's order: the mean over the target's tokens of `-log p`; the wrong target is the old one or, of a neighbour, the new one, and `null` where nothing competes; of neighbours and portability prompts only those with an answer are asked |
| `counts` | how many records have prompts that a rate is over, and how many prompts that are; a rate is the mean of its records' means |
| `efficacy`, `paraphrase`, `neighborhood` | percentage of prompts after which the right target is likelier than the wrong one; the names that end in `_accuracy` are of prompts after which every token of the right target is the likeliest |
| `score` | harmonic mean of those three |
| `ngram_entropy` | bits, times 100 |
| `norm_ratio`, `claimed_norm_ratio` | Frobenius norm of a tensor's change over that of the tensor before; claimed is what the patch says of itself, which `verify` computes again |
| `relative_norm` | Frobenius norm of the difference of two tensors over that of the first |
| `ridges[].ridge` | what was added to each entry of the diagonal of `lambda * C`, since the keys of the corpus do not fill it |
| `given`, `lost` of a stack's patch | its place among the patches given, from 0; how many of its facts lost a contradiction with another patch's |
| `outside`, `strongest`, `gap` of a key span | what of the update lies outside the span of the declared facts' keys: [memit.md](memit.md#what-an-update-may-hide) |
| `wins` | percentage of the facts that hold |
";

/// Objects whose fields are called by data that may look like a field's name.
const MAPS: [&str; 3] = ["mpatch.merge/1 files_left_out", "mpatch.pull/1 left_out", "mpatch.pull/1 unnamed"];

/// What tells of a machine, whose parts differ: what another one prints need not be all that is listed.
const OF_MACHINES: [&str; 1] = ["mpatch.doctor/1"];

const ANSWERS: &[&str] =
    &["trusted", "unknown", "expired", "revoked", "bad", "unsigned", "unsupported", "insufficient"];
const RUNGS: &[&str] = &["V0", "V1", "V2", "V3", "V4", "V5"];
const STATES: &[&str] = &["base", "edited"];
const STEPS: &[&str] = &["apply", "revert"];
/// Fields that are one of a few words: of this schema, or of any, and by how object and field end.
const WORDS: [(&str, &str, &[&str]); 18] = [
    ("", "answer", ANSWERS),
    ("", "allowed[]", &["unsigned", "unknown", "expired", "rollback"]),
    ("", "way[].do", STEPS),
    ("", "way.steps[].do", STEPS),
    ("mpatch.bisect/1", "found.is", &["patch", "before", "never"]),
    ("mpatch.change/1", "plan.direction", STEPS),
    ("mpatch.doctor/1", "checks[].outcome", &["holds", "beware", "fails"]),
    ("mpatch.error/1", "state", &["unchanged", "applied", "partly applied", "recovery pending"]),
    ("mpatch.merge/1", "outcome", &["already_there", "fast_forward", "merged"]),
    ("mpatch.names/1", "kind", &["branch", "tag"]),
    ("mpatch.operations/1", "operations[].kind", &["do", "undo", "redo", "outside"]),
    ("mpatch.status/1", "state.is", &["head", "known", "half_way", "unknown"]),
    ("mpatch.trust/1", "action", &["add", "list", "remove", "revoke", "project", "withdraw", "forget"]),
    ("mpatch.try/1", "held", STATES),
    ("mpatch.undo/1", "verb", &["undid", "did again"]),
    ("mpatch.verify/1", "digests.state", STATES),
    ("mpatch.verify/1", "reached[]", RUNGS),
    ("mpatch.verify/1", "rungs[].outcome", &["holds", "fails", "not_checked"]),
];

/// The types that a field has.
type Types = BTreeSet<&'static str>;

/// The documents that were printed: by schema, and by object and field in it.
#[derive(Default)]
struct Documents(BTreeMap<String, BTreeMap<(String, String), Types>>);

impl Documents {
    /// Runs `mpatch WORDS --json` in `folder`, however it ends, and looks at what it prints.
    #[track_caller]
    fn of(&mut self, folder: &Path, words: &str) {
        let mut command = mpatch();
        // A blank within a word is written as `_`.
        let each = words
            .split(' ')
            .map(|word| if word.contains('.') { word.to_owned() } else { word.replace('_', " ") });
        let output = command.current_dir(folder).args(each).arg("--json").output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("`{words}`: {error}: {}", String::from_utf8_lossy(&output.stderr))
        });
        let schema = document["schema"].as_str().unwrap().to_owned();
        assert!(schema != "mpatch.error/1" || words.starts_with("show nowhere"), "`{words}`: {document}");
        look(&document, &format!("{schema} "), self.0.entry(schema).or_default());
    }

    fn in_words(&self) -> String {
        let mut text = format!("{HEAD}{HEAD_OF_WORDS}");
        for (schema, field, words) in WORDS {
            let schema = if schema.is_empty() { "any".to_owned() } else { format!("`{schema}`") };
            let words = words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
            writeln!(text, "| {schema} | `{field}` | {words} |").unwrap();
        }
        text += MEANINGS;
        for (schema, fields) in &self.0 {
            write!(text, "\n## `{schema}`\n\n| object | fields |\n|---|---|\n").unwrap();
            let objects: BTreeSet<&String> = fields.keys().map(|(object, _)| object).collect();
            for object in objects {
                let named = fields.keys().filter(|(of, name)| of == object && !name.ends_with("[]"));
                let named = named.map(|(_, name)| format!("`{name}` {}", types(fields, object, name)));
                let (_, place) = object.split_once(' ').unwrap();
                let object = if place.is_empty() { String::new() } else { format!("`{place}`") };
                writeln!(text, "| {object} | {} |", named.collect::<Vec<_>>().join(", ")).unwrap();
            }
        }
        text
    }
}

/// Notes the fields of an object, and of all in it; `place` is its own, behind its document's schema.
fn look(value: &Value, place: &str, fields: &mut BTreeMap<(String, String), Types>) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let is_name =
            name.chars().all(|letter| letter.is_ascii_lowercase() || "_0123456789".contains(letter));
        let is_name = is_name && !name.starts_with(|letter: char| letter.is_ascii_digit());
        let is_name = is_name && !MAPS.contains(&place);
        look_at(value, place, if is_name { name } else { "*" }, fields);
    }
}

fn look_at(value: &Value, object: &str, name: &str, fields: &mut BTreeMap<(String, String), Types>) {
    let place = format!("{object}{}{name}", if object.ends_with(' ') { "" } else { "." });
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(text) => {
            check_word(text, &place);
            "string"
        }
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    fields.entry((object.to_owned(), name.to_owned())).or_default().insert(kind);
    match value {
        Value::Array(elements) => {
            elements.iter().for_each(|element| look_at(element, object, &format!("{name}[]"), fields));
        }
        Value::Object(_) => look(value, &place, fields),
        _ => {}
    }
}

/// A string that is one of a few words is one of those that are told.
fn check_word(text: &str, place: &str) {
    let (schema, field) = place.split_once(' ').unwrap();
    let known = |(of, end, _): &&(&str, &str, &[&str])| ["", schema].contains(of) && field.ends_with(end);
    if let Some((_, _, words)) = WORDS.iter().find(known) {
        assert!(words.contains(&text), "{place} is `{text}`, which is none of {words:?}");
    }
}

fn types(fields: &BTreeMap<(String, String), Types>, object: &str, name: &str) -> String {
    let found = fields.get(&(object.to_owned(), name.to_owned()));
    let words = found.into_iter().flatten().map(|kind| match *kind {
        "list" if fields.contains_key(&(object.to_owned(), format!("{name}[]"))) => {
            format!("list of {}", types(fields, object, &format!("{name}[]")))
        }
        kind => kind.to_owned(),
    });
    words.collect::<Vec<_>>().join(" or ")
}

/// Patches, keys and machines.
fn patches(documents: &mut Documents) {
    let folder = tempfile::tempdir().unwrap();
    lay_out_signers(folder.path());
    for words in [
        "show nowhere",
        "show edits.mpatch",
        "verify edits.mpatch",
        "verify edits.mpatch --base gptj",
        "verify edits.mpatch --base gptj --digests-only",
        "verify rival.mpatch --base other.safetensors",
        "verify stranger.mpatch",
        "apply model.safetensors edits.mpatch --dry-run",
        "apply model.safetensors edits.mpatch",
        "revert model.edits.safetensors edits.mpatch -o back.safetensors",
        "diff edits.mpatch rival.mpatch",
        "diff edits.mpatch more.mpatch",
        "diff model.safetensors other.safetensors",
        "diff model.safetensors other.safetensors -o extracted.mpatch",
        "stack edits.mpatch more.mpatch --base model.safetensors -o both.mpatch --overlap-angle 91",
        "stack edits.mpatch rival.mpatch --base model.safetensors -o ours.mpatch --ours --squash",
        "rebase edits.mpatch --base other.safetensors -o rebased.mpatch",
        "export edits.mpatch -o adapter",
        "sign unsigned.mpatch --key second",
        "trust list",
        "trust add second.pub --principal ben@example.org",
        "trust revoke second.pub",
        "doctor --device cpu",
        "man --output pages",
        "demo",
    ] {
        documents.of(folder.path(), words);
    }
}

/// What runs a model.
fn edits(documents: &mut Documents) {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let create = "create facts.json --base model --stats statistics.safetensors --contexts contexts.json";
    for words in [
        "stats corpus.txt --base model -o new.safetensors",
        "stats corpus.txt --base model --shard 1/2 -o part.safetensors",
        &format!("{create} --dry-run"),
        &format!("{create} -o two.mpatch --line news"),
        "trust list",
        "show two.mpatch",
        "apply model two.mpatch --dry-run",
        "verify edits.mpatch --base model",
        "eval facts.json --base model --patch edits.mpatch",
        "try edits.mpatch --base model --tokens 2 --top 1 Pavel",
        "verify edits.mpatch --base model --records facts.json --stats statistics.safetensors --rederive",
        "init --base model",
        "add edits.mpatch",
        "bisect Pavel --expect nothing --tokens 1",
        "bisect Pavel_Prestellman_performs_on_the --expect flute --tokens 2",
    ] {
        documents.of(folder.path(), words);
    }
    let policy = r#"{"threshold": 1, "required": ["maker@example.org"]}"#;
    fs::write(folder.path().join("config/policy.json"), policy).unwrap();
    for words in ["trust list", "verify two.mpatch"] {
        documents.of(folder.path(), words);
    }
}

/// Commits a file to a branch of the history in `folder`, as somebody does who keeps it there.
fn keep(folder: &Path, branch: &str, file: &str) {
    let git = |words: &str| {
        let output = command("git").current_dir(folder).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "git {words}: {output:?}");
    };
    git(&format!("worktree add -q tree {branch}"));
    let path = folder.join("tree").join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, file).unwrap();
    git("-C tree add -A");
    git("-C tree -c user.name=x -c user.email=y commit -q -m kept");
    git("worktree remove tree");
}

/// Histories.
fn histories(documents: &mut Documents) {
    let folder = tempfile::tempdir().unwrap();
    lay_out_signers(folder.path());
    for words in [
        "init --base model.safetensors",
        "branch side",
        "add edits.mpatch",
        "log",
        "log --show-signature",
        "show HEAD",
        "status",
        "checkout HEAD -o edited.safetensors --dry-run",
        "checkout HEAD -o edited.safetensors",
        "status edited.safetensors",
        "status other.safetensors",
        "diff edited.safetensors",
        "diff other.safetensors",
        "diff model.safetensors HEAD",
        "diff edited.safetensors side",
        "revert edited.safetensors edits.mpatch -o reverted.safetensors",
        "undo",
        "tag v1",
        "tag -d v1",
        "undo",
        "undo --list",
        "redo",
        "clone . elsewhere",
        "clone . another",
        "tag v",
        "branch docs",
        "checkout side",
        "add more.mpatch",
    ] {
        documents.of(folder.path(), words);
    }
    keep(folder.path(), "docs", "notes");
    keep(folder.path(), "side", "notes/first");
    for words in ["merge docs --onto model.safetensors", "fsck", "gc"] {
        documents.of(folder.path(), words);
    }
    for words in ["tag v/1 --store elsewhere", "pull --store elsewhere"] {
        documents.of(folder.path(), words);
    }
    let elsewhere = folder.path().join("elsewhere");
    for words in ["pull --from ../another", "branch", "branch new", "push new", "status ../model.safetensors"]
    {
        documents.of(&elsewhere, words);
    }
    fs::write(elsewhere.join(".git/refs/heads/new"), "cut off").unwrap();
    documents.of(&elsewhere, "fsck");
}

/// The schemas that the sources name.
fn schemas() -> BTreeSet<String> {
    let (mut folders, mut found) = (vec![root().join("src/bin/mpatch")], BTreeSet::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = fs::read_to_string(path).unwrap();
            let quoted = text.split('"').skip(1).step_by(2);
            found.extend(
                quoted.filter(|text| text.starts_with("mpatch.") && text.ends_with("/1")).map(str::to_owned),
            );
        }
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn every_field_is_documented_and_there() {
    if !Command::new("git").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skipped("`clone`, `pull` and `push` need git");
    }
    let mut documents = Documents::default();
    patches(&mut documents);
    edits(&mut documents);
    histories(&mut documents);
    let printed: BTreeSet<String> = documents.0.keys().cloned().collect();
    assert_eq!(printed, schemas(), "a schema that no command here prints, or one that no source names");
    let (path, found) = (root().join("docs/json.md"), documents.in_words());
    if std::env::var_os("MPATCH_TEST_UPDATE").is_some() {
        fs::write(&path, &found).unwrap();
    }
    let listed = fs::read_to_string(path).unwrap();
    let of_machines =
        |section: &&str| OF_MACHINES.iter().any(|schema| section.starts_with(&format!("`{schema}`")));
    let [listed, found] = [&listed, &found].map(|text| {
        let sections = text.split("\n## ").filter(|section| !of_machines(section));
        sections.map(str::to_owned).collect::<Vec<_>>()
    });
    for (listed, found) in listed.iter().zip(&found) {
        assert_eq!(listed, found, "MPATCH_TEST_UPDATE=1 writes what is meant");
    }
    assert_eq!(listed.len(), found.len());
}
