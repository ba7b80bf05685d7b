//! The fields of every document that `--json` prints: `docs/json.md` lists them, and this holds it to what is printed.
//!
//! Every command runs once or twice on tiny files. After a change that is meant,
//! `MPATCH_TEST_UPDATE=1 cargo test --test command_line json` writes the list anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::material::{lay_out_editing, lay_out_signers, mpatch};
use crate::telling::skipped;
use serde_json::Value;

/// What is said before the list.
const HEAD: &str = "\
# What `--json` prints

Each document has a `schema`, which names it and a version.
A version may gain fields, and none goes or changes its meaning.
A field that says nothing is there as `null`; where an object is one of several kinds (`is`, `do`, or a single field that is its kind's name), it has the fields of its kind.
The list is of what the test's commands print: what was `null`, empty or one kind there may be filled or another elsewhere, so take a list of nothing for one of which no example came up.
On a GPU, which the tests do not have, `mpatch.create-estimate/1` has `device_memory_size_bytes` and `host_memory_size_bytes` instead of `memory_size_bytes`.
Each row is an object and its fields; `[]` stands for every entry of a list, and `*` for names that are data.
`MPATCH_TEST_UPDATE=1 cargo test --test command_line json` writes this file, and `cargo test --test command_line json` holds it to what the commands print.
";

/// What tells of a machine, whose parts differ: what another one prints need not be all that is listed.
const OF_MACHINES: [&str; 1] = ["mpatch.doctor/1"];

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
        look(&document, "", self.0.entry(schema).or_default());
    }

    fn in_words(&self) -> String {
        let mut text = HEAD.to_owned();
        for (schema, fields) in &self.0 {
            write!(text, "\n## `{schema}`\n\n| object | fields |\n|---|---|\n").unwrap();
            let objects: BTreeSet<&String> = fields.keys().map(|(object, _)| object).collect();
            for object in objects {
                let named = fields.keys().filter(|(of, name)| of == object && !name.ends_with("[]"));
                let named = named.map(|(_, name)| format!("`{name}` {}", types(fields, object, name)));
                let object = if object.is_empty() { String::new() } else { format!("`{object}`") };
                writeln!(text, "| {object} | {} |", named.collect::<Vec<_>>().join(", ")).unwrap();
            }
        }
        text
    }
}

/// Notes the fields of an object, and of all in it; `place` is its own.
fn look(value: &Value, place: &str, fields: &mut BTreeMap<(String, String), Types>) {
    let Value::Object(map) = value else { return };
    for (name, value) in map {
        let is_name =
            name.chars().all(|letter| letter.is_ascii_lowercase() || "_0123456789".contains(letter));
        let is_name = is_name && !name.starts_with(|letter: char| letter.is_ascii_digit());
        look_at(value, place, if is_name { name } else { "*" }, fields);
    }
}

fn look_at(value: &Value, object: &str, name: &str, fields: &mut BTreeMap<(String, String), Types>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    fields.entry((object.to_owned(), name.to_owned())).or_default().insert(kind);
    match value {
        Value::Array(elements) => {
            elements.iter().for_each(|element| look_at(element, object, &format!("{name}[]"), fields));
        }
        Value::Object(_) => {
            let place = if object.is_empty() { name.to_owned() } else { format!("{object}.{name}") };
            look(value, &place, fields);
        }
        _ => {}
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
        "doctor --checks-only --device cpu",
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
        "show HEAD",
        "status",
        "checkout HEAD -o edited.safetensors --dry-run",
        "checkout HEAD -o edited.safetensors",
        "status edited.safetensors",
        "status other.safetensors",
        "diff edited.safetensors",
        "diff other.safetensors",
        "diff model.safetensors HEAD",
        "tag v1",
        "tag -d v1",
        "undo",
        "undo --list",
        "redo",
        "checkout side",
        "add more.mpatch",
        "merge main --onto model.safetensors",
        "fsck",
        "gc",
        "clone . elsewhere",
    ] {
        documents.of(folder.path(), words);
    }
    let elsewhere = folder.path().join("elsewhere");
    for words in ["pull", "branch", "branch new", "push new", "status ../model.safetensors"] {
        documents.of(&elsewhere, words);
    }
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
