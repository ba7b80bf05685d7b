//! Patches of a large rank: in memory a part at a time, and one result from every kernel and number of threads.
#![cfg(all(target_os = "linux", feature = "cli"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where it stands; clippy sees only `#[test]` functions as tests"
)]

mod drafts;
mod resources;
mod telling;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use drafts::Numbers;
use mpatch::bind::bind;
use mpatch::checkpoint::{Checkpoint, FileSource, NewTensor, write_safetensors};
use mpatch::factors::{Kernel, Term};
use mpatch::operation::{Answer, Direction, plan};
use mpatch::patch::{Patch, PatchError, encode};
use mpatch::source::Source;
use mpatch::tensor::Dtype;
use resources::memory_peak_bytes;
use telling::skipped;

fn quiet(_: u64) {}

struct Shape {
    tensors: usize,
    rows: usize,
    columns: usize,
    rank: usize,
    bits: u8,
    dtype: Dtype,
}

/// A checkpoint of random weights, and a patch of random factors for it.
fn write(folder: &Path, shape: &Shape) -> (PathBuf, PathBuf) {
    let Shape { tensors, rows, columns, rank, bits, dtype } = *shape;
    let (base, patch) = (folder.join("base.safetensors"), folder.join("edits.mpatch"));
    let new: Vec<NewTensor> = (0..tensors)
        .map(|index| NewTensor {
            name: format!("w{index:02}"),
            dtype,
            shape: vec![rows as u64, columns as u64],
        })
        .collect();
    write_safetensors(&base, &BTreeMap::new(), &new, |index, sink| {
        sink.write_all(&Numbers(index as u64).weights("", dtype, [rows, columns]).bytes)
    })
    .unwrap();
    let size = 0.1 / (rank as f64).sqrt();
    let term = |index| Numbers(100 + index as u64).low_rank([rows, columns], rank, bits, size);
    let terms: Vec<Term> = (0..tensors).map(term).collect();
    let checkpoint = Checkpoint::open(&base).unwrap();
    let edits: Vec<(String, Vec<u32>)> =
        (0..tensors).map(|index| (format!("w{index:02}"), vec![index as u32])).collect();
    let binding = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    std::fs::write(&patch, encode(&drafts::draft(terms, vec![binding])).unwrap()).unwrap();
    (base, patch)
}

/// The most memory that the command held, as far as looking at it often tells.
fn peak_memory_bytes(arguments: &[&str], paths: &[&Path]) -> u64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpatch"));
    let mut child = command.args(arguments).args(paths).stdout(Stdio::null()).spawn().unwrap();
    let mut peak = 0;
    loop {
        peak = memory_peak_bytes(child.id()).map_or(peak, |seen| seen.max(peak));
        if let Some(outcome) = child.try_wait().unwrap() {
            assert!(outcome.success(), "{arguments:?}: {outcome}");
            assert!(peak > 0, "{arguments:?} ended before anybody looked");
            return peak;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn a_patch_of_a_large_rank_is_never_in_memory_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { tensors: 16, rows: 512, columns: 16_384, rank: 512, bits: 8, dtype: Dtype::F16 };
    let (base, patch) = write(folder.path(), &shape);
    let patch_size_bytes = std::fs::metadata(&patch).unwrap().len();
    assert!(patch_size_bytes > 16 * 512 * 16_384, "its integers are not to be compressed away");
    let (edited, reverted) = (folder.path().join("edited"), folder.path().join("reverted"));
    let base_text = base.to_str().unwrap().to_owned();
    for (arguments, paths) in [
        (vec!["apply", "--allow-unsigned"], vec![base.as_path(), &patch, Path::new("-o"), &edited]),
        (vec!["revert"], vec![edited.as_path(), &patch, Path::new("-o"), &reverted]),
        (
            vec!["verify", "--allow-unsigned", "--weights-only", "--base", base_text.as_str()],
            vec![patch.as_path()],
        ),
        (vec!["show"], vec![patch.as_path()]),
    ] {
        let peak = peak_memory_bytes(&arguments, &paths);
        assert!(peak < patch_size_bytes, "{arguments:?}: {peak} bytes, the patch has {patch_size_bytes}");
    }
    assert!(std::fs::read(&base).unwrap() == std::fs::read(&reverted).unwrap());
}

/// The best kernel with every number of threads, and the others with one or another: the product of both would test
/// no more.
fn runs() -> Vec<(Kernel, usize)> {
    let best = (1..=8).map(|threads| (Kernel::best(), threads));
    let others = Kernel::ALL.into_iter().filter(|kernel| kernel.is_available() && *kernel != Kernel::best());
    best.chain(others.zip((1..=8).cycle())).collect()
}

#[test]
fn every_kernel_and_number_of_threads_gives_one_digest() {
    for kernel in Kernel::ALL.into_iter().filter(|kernel| !kernel.is_available()) {
        skipped(&format!("the kernel {kernel} is not for this processor"));
    }
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for bits in [6, 12] {
            let folder = tempfile::tempdir().unwrap();
            let shape = Shape { tensors: 2, rows: 70, columns: 700, rank: 65, bits, dtype };
            let (base, patch) = write(folder.path(), &shape);
            for (kernel, threads) in runs() {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let source = Arc::new(FileSource::open(&patch).unwrap());
                let patch = Patch::open(source).unwrap().computed_by(kernel);
                let (edited, reverted) =
                    ["", "-back"].map(|end| folder.path().join(format!("{kernel}-{threads}{end}"))).into();
                // Both compare the digests that the patch promises, which another kernel computed.
                pool.install(|| {
                    for (direction, from, target) in
                        [(Direction::Apply, &base, &edited), (Direction::Revert, &edited, &reverted)]
                    {
                        let checkpoint = Checkpoint::open(from).unwrap();
                        let Answer::Fits(plan) = plan(&checkpoint, &patch, direction, &quiet).unwrap() else {
                            panic!("{kernel}: refused")
                        };
                        plan.execute(&checkpoint, &patch, target, &quiet).unwrap();
                    }
                });
                assert!(std::fs::read(&base).unwrap() == std::fs::read(&reverted).unwrap());
            }
        }
    }
}

/// A file that somebody writes to after it was checked.
#[derive(Debug)]
struct Changing {
    bytes: std::sync::Mutex<Vec<u8>>,
}

impl Source for Changing {
    fn size_bytes(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.bytes.lock().unwrap().read_exact_at(bytes, offset)
    }
}

#[test]
fn a_patch_that_changes_after_it_was_opened_is_refused_when_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { tensors: 1, rows: 8, columns: 64, rank: 4, bits: 8, dtype: Dtype::F16 };
    let (_, patch) = write(folder.path(), &shape);
    let source = Arc::new(Changing { bytes: std::sync::Mutex::new(std::fs::read(&patch).unwrap()) });
    let patch = Patch::open(source.clone()).unwrap();
    patch.update(0, 0).unwrap();
    let offset = patch.section_offset(1).unwrap();
    source.bytes.lock().unwrap()[offset] ^= 1;
    let refused = |found: Result<(), PatchError>| {
        assert!(matches!(found, Err(PatchError::Digest { section: 1, .. })), "{found:?}");
    };
    refused(patch.update(0, 0).map(drop));
    refused(patch.term(0).map(drop));
    refused(patch.write_to(&mut Vec::new()));
    source.bytes.lock().unwrap().truncate(offset);
    for found in [patch.update(0, 0).map(drop), patch.write_to(&mut Vec::new())] {
        assert!(matches!(found, Err(PatchError::Read { .. })), "{found:?}");
    }
}

#[test]
fn a_patch_opened_in_its_file_is_copied_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let shape = Shape { tensors: 2, rows: 8, columns: 64, rank: 4, bits: 12, dtype: Dtype::F32 };
    let (_, path) = write(folder.path(), &shape);
    let patch = Patch::open(Arc::new(FileSource::open(&path).unwrap())).unwrap();
    let mut copy = Vec::new();
    patch.write_to(&mut copy).unwrap();
    assert!(copy == std::fs::read(&path).unwrap());
    assert_eq!((patch.bytes(), patch.to_bytes().unwrap().into_owned() == copy), (None, true));
    let decoded = Patch::decode(copy.clone()).unwrap();
    assert_eq!(decoded.bytes().unwrap(), copy);
    assert_eq!(patch.with_signatures(Vec::new()).unwrap().bytes().unwrap(), copy);
}
