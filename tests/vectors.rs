//! The vectors in `fixtures/vectors`: files that are wrong in exactly one way, with the exit code that they must get.
//!
//! The library says what is wrong with each, and the command gives the code.
//!
//! They are published for whoever writes another reader; `fixtures/vectors/README.md` tells how to use them.
//! `MPATCH_TEST_UPDATE=1 cargo test --test vectors` writes them anew from `tests/hostile_files`.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod drafts;
mod hostile_files;
#[cfg(feature = "cli")]
mod material;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hostile_files::{Kind, Vector, base, edited, vectors};
use mpatch::causes::with_causes;
use mpatch::checkpoint::Checkpoint;
use mpatch::facts::FactsFile;
use mpatch::operation::{Answer, Direction, plan};
use mpatch::patch::Patch;
use mpatch::verify::verify_form;
use tempfile::TempDir;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors")
}

/// All vectors on disk, by name.
fn committed() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let named =
        entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()));
    named.filter(|(name, _)| !name.contains('.')).collect()
}

#[test]
fn the_files_are_those_that_are_defined() {
    let defined = vectors();
    let names: BTreeSet<&str> = defined.iter().map(|vector| vector.name.as_str()).collect();
    assert_eq!(names.len(), defined.len(), "a name stands twice");
    let expected: BTreeMap<String, Vec<u8>> =
        defined.iter().map(|vector| (vector.name.clone(), vector.to_file())).collect();
    if std::env::var_os("MPATCH_TEST_UPDATE").is_some() {
        committed().keys().for_each(|name| fs::remove_file(folder().join(name)).unwrap());
        expected.iter().for_each(|(name, file)| fs::write(folder().join(name), file).unwrap());
        fs::write(folder().join("base.safetensors"), base()).unwrap();
        fs::write(folder().join("edited.safetensors"), edited()).unwrap();
    }
    let committed = committed();
    for (name, file) in &expected {
        assert!(committed.get(name) == Some(file), "{name}: the file is missing or another");
    }
    assert_eq!(committed.len(), expected.len(), "there are files that nothing defines");
    assert!(expected.len() >= 150);
    assert_eq!(fs::read(folder().join("base.safetensors")).unwrap(), base());
    assert_eq!(fs::read(folder().join("edited.safetensors")).unwrap(), edited());
}

/// A folder with the two checkpoints in it.
fn bench() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("base.safetensors"), base()).unwrap();
    fs::write(folder.path().join("edited.safetensors"), edited()).unwrap();
    folder
}

/// What comes of reading a vector with the library.
fn read(vector: &Vector, folder: &Path) -> Result<(), String> {
    let path = |name: &str| folder.join(name);
    let patch = || Patch::decode(vector.bytes.clone()).map_err(in_words);
    match vector.kind {
        Kind::Patch => verify_form(&patch()?).problem.map_or(Ok(()), Err),
        Kind::Apply => {
            change(&patch()?, Direction::Apply, &path("base.safetensors"), &path("edited.safetensors"))
        }
        Kind::Revert => {
            change(&patch()?, Direction::Revert, &path("edited.safetensors"), &path("base.safetensors"))
        }
        Kind::Safetensors => {
            let path = path(&vector.name);
            fs::write(&path, &vector.bytes).unwrap();
            Checkpoint::open(&path).map(drop).map_err(in_words)
        }
        Kind::Index => {
            let path = path(&format!("{}.index.json", vector.name));
            fs::write(&path, &vector.bytes).unwrap();
            Checkpoint::open(&path).map(drop).map_err(in_words)
        }
        Kind::Facts => FactsFile::parse(&vector.bytes).map(drop).map_err(in_words),
    }
}

fn in_words(error: impl std::error::Error) -> String {
    with_causes(&error)
}

/// Applies `patch` to `from`, or takes it back, and compares with `to`.
fn change(patch: &Patch, direction: Direction, from: &Path, to: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(from).unwrap();
    let plan = match plan(&checkpoint, patch, direction, &|_| ()).map_err(in_words)? {
        Answer::Fits(plan) => plan,
        Answer::Elsewhere(mismatch) => return Err(mismatch.to_string()),
        other => panic!("{other:?}"),
    };
    let target = tempfile::tempdir().unwrap();
    let output = target.path().join("out.safetensors");
    plan.execute(&checkpoint, patch, &output, &|_| ()).map_err(in_words)?;
    assert!(fs::read(output).unwrap() == fs::read(to).unwrap(), "the bytes are others");
    Ok(())
}

/// All vectors, as `outcome` of each and those that have another one than they say.
fn walk(outcome: impl Fn(&Vector) -> Result<(), String>) {
    let committed = committed();
    assert!(committed.len() >= 150, "{} vectors", committed.len());
    let vectors = committed.iter().map(|(name, file)| Vector::from_file(name, file));
    let problems = vectors.filter_map(|vector| {
        let problem = outcome(&vector).err()?;
        Some(format!("{}: expected {} with `{}`, {problem}", vector.name, vector.expect, vector.error))
    });
    let problems: Vec<String> = problems.collect();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_vector_is_refused_for_its_reason() {
    let folder = bench();
    walk(|vector| match read(vector, folder.path()) {
        Ok(()) if vector.expect == 0 => Ok(()),
        Err(words) if vector.expect != 0 && words.contains(&vector.error) => Ok(()),
        other => Err(format!("found {other:?}")),
    });
}

/// The command that reads a vector, which lies in the file that is named, and makes nothing that stays.
#[cfg(feature = "cli")]
fn command(vector: &Vector, file: &str) -> String {
    match vector.kind {
        Kind::Patch => format!("verify {file} --allow-unsigned --json"),
        Kind::Apply => format!("apply base.safetensors {file} --allow-unsigned --allow-unknown -o out"),
        Kind::Revert => format!("revert edited.safetensors {file} -o out"),
        Kind::Safetensors | Kind::Index => format!("diff {file} {file}"),
        Kind::Facts => format!("create {file} --base base.safetensors --no-sign -o out"),
    }
}

/// Whether the report of `verify` says that the patch holds on this rung.
#[cfg(feature = "cli")]
fn has_reached(report: &[u8], rung: &str) -> bool {
    let report: serde_json::Value = serde_json::from_slice(report).unwrap();
    report["reached"].as_array().unwrap().iter().any(|reached| reached == rung)
}

#[cfg(feature = "cli")]
#[test]
fn every_vector_gets_its_exit_code_for_its_reason() {
    let folder = bench();
    walk(|vector| {
        let ending = if vector.kind == Kind::Index { ".index.json" } else { ".safetensors" };
        let file = format!("{}{ending}", vector.name);
        fs::write(folder.path().join(&file), &vector.bytes).unwrap();
        let mut mpatch = material::mpatch();
        mpatch.current_dir(folder.path()).args(command(vector, &file).split(' '));
        let output = mpatch.output().unwrap();
        let _ = fs::remove_file(folder.path().join("out"));
        let (code, errors) = (output.status.code(), String::from_utf8_lossy(&output.stderr));
        let is_as_it_should = match (vector.expect, vector.kind) {
            // Who signed it is not asked here, and facts alone make no patch: there is no model.
            (0, Kind::Patch) => has_reached(&output.stdout, "V0"),
            (0, Kind::Facts) => errors.contains("`config.json`"),
            (0, _) => code == Some(0),
            (expected, _) => {
                code == Some(expected.into())
                    && errors.contains(&vector.error)
                    && errors.contains("\nstate: unchanged\n")
            }
        };
        if is_as_it_should { Ok(()) } else { Err(format!("found {code:?}: {errors}")) }
    });
}
