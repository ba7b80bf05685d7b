//! A second reader, written in Python from `docs/format.md` alone, agrees with this one about every byte.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod drafts;
mod telling;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use drafts::{Numbers, Weights};
use mpatch::patch::{Draft, encode};
use mpatch::tensor::Dtype;
use telling::skipped;

/// The interpreter: `MPATCH_TEST_PYTHON` names one that has the packages, else whatever `python3` is.
fn python() -> String {
    std::env::var("MPATCH_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

/// Whether the reader can run here; says so where it cannot.
fn reader_can_run() -> bool {
    let found = Command::new(python()).args(["-c", "import numpy, zstandard, blake3"]).output();
    let runs = found.is_ok_and(|output| output.status.success());
    if !runs {
        skipped(&format!("{} lacks numpy, zstandard or blake3", python()));
    }
    runs
}

/// Runs the reader; what it printed, or the error it ended with.
fn read(patch: &Path, base: &Path) -> Result<String, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader.py");
    let output = Command::new(python()).arg(script).arg(patch).arg(base).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// A folder with a patch and its base.
struct Case {
    _folder: tempfile::TempDir,
    patch: PathBuf,
    base: PathBuf,
}

impl Case {
    fn new(patch: &[u8], weights: &[Weights]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (patch_path, base_path) =
            (folder.path().join("p.mpatch"), folder.path().join("base.safetensors"));
        fs::write(&patch_path, patch).unwrap();
        fs::write(&base_path, safetensors_of(weights)).unwrap();
        Self { _folder: folder, patch: patch_path, base: base_path }
    }

    fn read(&self) -> Result<String, String> {
        read(&self.patch, &self.base)
    }
}

fn safetensors_of(weights: &[Weights]) -> Vec<u8> {
    let views = weights.iter().map(|tensor| {
        let dtype = match tensor.dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::BF16 => safetensors::Dtype::BF16,
        };
        let view = safetensors::tensor::TensorView::new(dtype, tensor.shape.to_vec(), &tensor.bytes);
        (tensor.name.as_str(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// Tensors of every kind of term, one of them untouched, one with NaN and infinities, one with ties and zeros.
fn draft(dtype: Dtype) -> (Draft, Vec<Weights>) {
    let mut numbers = Numbers(dtype as u64 + 11);
    let mut weights = vec![
        numbers.weights("layer.1", dtype, [200, 400]),
        numbers.weights("layer.2", dtype, [2, 70_000]),
        numbers.weights("untouched", dtype, [3, 5]),
        Weights::new(
            "special",
            dtype,
            [2, 4],
            &[0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0, 0.1, 1e-30],
        ),
    ];
    weights[1].name = "layer.2/zwölf".into();
    let terms = vec![
        numbers.low_rank([200, 400], 20, 8, 0.5),
        numbers.dense([200, 400], 11, 1e-3),
        numbers.low_rank([200, 400], 3, 4, 1e-6),
        numbers.low_rank([2, 70_000], 2, 6, 1.0),
        numbers.dense([2, 4], 3, 4.0),
    ];
    let binding = drafts::binding(&weights, &terms, &[&[2, 0, 1], &[3], &[], &[4]]);
    (drafts::draft(terms, vec![binding]), weights)
}

#[test]
fn a_reader_written_from_the_document_agrees() {
    if !reader_can_run() {
        return;
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let (draft, weights) = draft(dtype);
        let printed = Case::new(&encode(&draft).unwrap(), &weights).read().unwrap();
        assert_eq!(printed.lines().count(), 1 + 3, "{printed}");
        assert_eq!(printed.matches("result and undo exact").count(), 3, "{printed}");
    }
}

#[test]
fn it_agrees_about_corrections() {
    if !reader_can_run() {
        return;
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let mut numbers = Numbers(77);
        let weights = [
            numbers.weights("few", dtype, [30, 41]),
            Weights::new("special", dtype, [1, 5], &[0.0, -0.0, f64::NAN, f64::INFINITY, 1.0]),
        ];
        let terms = vec![numbers.low_rank([30, 41], 3, 6, 0.5), numbers.dense([1, 5], 4, 1.0)];
        let mut binding = drafts::binding(&weights, &terms, &[&[0], &[1]]);
        for ((tensor, before), every) in binding.tensors.iter_mut().zip(&weights).zip([5, 1]) {
            // A few weights, and every one, also to and from what is not finite.
            let patterns = (0..before.bytes.len()).map(|index| match index % every {
                0 => (numbers.uniform() * 128.0 + 128.0) as u8,
                _ => before.bytes[index],
            });
            let wanted: Vec<u8> = patterns.collect();
            drafts::correct(tensor, before, &terms, &wanted);
        }
        let patch = encode(&drafts::draft(terms, vec![binding])).unwrap();
        let printed = Case::new(&patch, &weights).read().unwrap();
        assert_eq!(printed.matches("result and undo exact").count(), 2, "{printed}");
    }
}

#[test]
fn it_reads_the_example_of_the_document() {
    if !reader_can_run() {
        return;
    }
    let (_, weights) = drafts::tiny();
    let patch = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/patches/tiny.mpatch")).unwrap();
    Case::new(&patch, &weights).read().unwrap();
}

#[test]
fn it_notices_a_lie_in_every_digest() {
    if !reader_can_run() {
        return;
    }
    type Lie = fn(&mut Draft);
    let lies: [(&str, Lie); 3] = [
        ("not what the patch promises", |draft| draft.bindings[0].tensors[0].after = tensor_digest()),
        ("not the one the patch is for", |draft| draft.bindings[0].tensors[0].before = tensor_digest()),
        ("the undo log", |draft| {
            let undo = &mut draft.bindings[0].tensors[0].undo;
            *undo.last_mut().unwrap() ^= 1;
        }),
    ];
    for (message, lie) in lies {
        let (mut draft, weights) = drafts::tiny();
        lie(&mut draft);
        let error = Case::new(&encode(&draft).unwrap(), &weights).read().unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    let (draft, mut weights) = drafts::tiny();
    weights[0].bytes[0] ^= 1;
    let error = Case::new(&encode(&draft).unwrap(), &weights).read().unwrap_err();
    assert!(error.contains("no binding"), "{error}");
}

fn tensor_digest() -> mpatch::digest::TensorDigest {
    mpatch::digest::TensorDigest::of(b"another")
}
