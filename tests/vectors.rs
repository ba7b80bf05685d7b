//! The vectors in `fixtures/vectors`: files that are wrong in exactly one way, with the exit code that they must get.
//!
//! They are published for whoever writes another reader; `fixtures/vectors/README.md` tells how to use them.
//! `MPATCH_TEST_UPDATE=1 cargo test --test vectors` writes them anew from `tests/hostile_files`.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod drafts;
mod hostile_files;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use hostile_files::{Kind, Vector, base, edited, vectors};
use mpatch::checkpoint::{Checkpoint, CheckpointError};
use mpatch::facts::{FactsErrorKind, FactsFile};
use mpatch::operation::OperationError;
use mpatch::patch::{Patch, PatchError};
use mpatch::verify::verify_form;
use mpatch::{apply, revert};
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

/// Why a file was refused: the exit code and the words.
type Refusal = (u8, String);

fn of_patch(error: &PatchError) -> Refusal {
    let code = match error {
        PatchError::UnsupportedVersion { .. }
        | PatchError::UnsupportedFlags { .. }
        | PatchError::UnsupportedFeature { .. } => 15,
        PatchError::Limit { .. } => 12,
        _ => 3,
    };
    (code, error.to_string())
}

fn of_operation(error: &OperationError) -> Refusal {
    match error {
        OperationError::Patch(error) => of_patch(error),
        OperationError::OtherState { .. } => (6, error.to_string()),
        _ => (3, error.to_string()),
    }
}

fn of_checkpoint(error: &CheckpointError) -> Refusal {
    let code = match error {
        CheckpointError::Io { .. } => 11,
        CheckpointError::Limit { .. } => 12,
        _ => 3,
    };
    (code, error.to_string())
}

/// What comes of reading a vector with the library.
fn read(vector: &Vector, folder: &Path) -> Result<(), Refusal> {
    let path = |name: &str| folder.join(name);
    let patch = || Patch::decode(vector.bytes.clone()).map_err(|error| of_patch(&error));
    match vector.kind {
        Kind::Patch => match verify_form(&patch()?).problem {
            Some(problem) => Err((3, problem)),
            None => Ok(()),
        },
        Kind::Apply => change(&patch()?, vector.kind, &path("base.safetensors"), &path("edited.safetensors")),
        Kind::Revert => {
            change(&patch()?, vector.kind, &path("edited.safetensors"), &path("base.safetensors"))
        }
        Kind::Safetensors => {
            let path = path(&vector.name);
            fs::write(&path, &vector.bytes).unwrap();
            Checkpoint::open(&path).map(|_| ()).map_err(|error| of_checkpoint(&error))
        }
        Kind::Index => {
            let path = path(&format!("{}.index.json", vector.name));
            fs::write(&path, &vector.bytes).unwrap();
            Checkpoint::open(&path).map(|_| ()).map_err(|error| of_checkpoint(&error))
        }
        Kind::Facts => FactsFile::parse(&vector.bytes).map(|_| ()).map_err(|error| {
            let code = match error.kind() {
                FactsErrorKind::Malformed => 3,
                FactsErrorKind::Conflicting => 7,
                FactsErrorKind::LimitExceeded => 12,
                FactsErrorKind::UnsupportedVersion => 15,
            };
            (code, error.to_string())
        }),
    }
}

/// Applies `patch` to `from`, or takes it back, and compares with `to`.
fn change(patch: &Patch, kind: Kind, from: &Path, to: &Path) -> Result<(), Refusal> {
    let checkpoint = Checkpoint::open(from).unwrap();
    let plan = match kind {
        Kind::Apply => match apply::plan(&checkpoint, patch).map_err(|error| of_operation(&error))? {
            apply::Answer::Applies(plan) => plan,
            apply::Answer::WrongBase(mismatch) => return Err((6, mismatch.to_string())),
            other => panic!("{other:?}"),
        },
        _ => match revert::plan(&checkpoint, patch).map_err(|error| of_operation(&error))? {
            revert::Answer::Reverts(plan) => plan,
            other => panic!("{other:?}"),
        },
    };
    let target = tempfile::tempdir().unwrap();
    let output = target.path().join("out.safetensors");
    plan.execute(&checkpoint, patch, &output, &|_| ()).map_err(|error| of_operation(&error))?;
    assert!(fs::read(output).unwrap() == fs::read(to).unwrap(), "the bytes are others");
    Ok(())
}

#[test]
fn every_vector_gets_its_exit_code_for_its_reason() {
    let folder = bench();
    let mut problems = Vec::new();
    let committed = committed();
    assert!(committed.len() >= 150, "{} vectors", committed.len());
    for (name, file) in committed {
        let vector = Vector::from_file(&name, &file);
        let (code, words) = match read(&vector, folder.path()) {
            Ok(()) => (0, String::new()),
            Err(refusal) => refusal,
        };
        if code != vector.expect || !words.contains(&vector.error) {
            problems.push(format!(
                "{name}: expected {} with `{}`, found {code}: {words}",
                vector.expect, vector.error
            ));
        }
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}
