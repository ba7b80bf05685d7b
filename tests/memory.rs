//! Memory is bounded by blocks of one tensor: a tensor larger than the bound goes through every operation.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where it stands; clippy sees only `#[test]` functions as tests"
)]

mod drafts;
mod resources;

use std::fs;
use std::io::Write;
use std::path::Path;

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::factors::{IntegerMatrix, Integers, Term};
use mpatch::operation::{Answer, Direction, plan};
use mpatch::patch::{Patch, encode};
use mpatch::verify::{Depth, verify};

const ROWS: usize = 4_096;
const COLUMNS: usize = 8_192;
const TENSOR_SIZE_BYTES: usize = ROWS * COLUMNS * 4;
/// Three blocks of 16 MiB, the kernels' buffers and the process itself stay below; one whole tensor would not.
const MEMORY_LIMIT_BYTES: usize = TENSOR_SIZE_BYTES;

fn quiet(_: u64) {}

/// One tensor of zeros, which the file system need not store.
fn write_base(path: &Path) {
    let text = format!(
        r#"{{"w":{{"dtype":"F32","shape":[{ROWS},{COLUMNS}],"data_offsets":[0,{TENSOR_SIZE_BYTES}]}}}}"#
    );
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&(text.len() as u64).to_le_bytes()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_len((8 + text.len() + TENSOR_SIZE_BYTES) as u64).unwrap();
}

/// A term of rank one that changes a row in 256, each by another amount, so that no block passes for another.
fn term() -> Term {
    let matrix = |what, rows, columns| {
        IntegerMatrix::new(what, rows, columns, 2, vec![1; ROWS.max(COLUMNS)][..rows * columns].to_vec())
    };
    let left = matrix("left", ROWS, 1).unwrap();
    let right = matrix("right", 1, COLUMNS).unwrap();
    let row_scales = (0..ROWS).map(|row| if row % 256 == 0 { row as f32 } else { 0.0 }).collect();
    Term::new(Integers::LowRank { left, right }, row_scales, vec![1.0; COLUMNS]).unwrap()
}

fn patch_for(checkpoint: &Checkpoint) -> Patch {
    let terms = vec![term()];
    let weights = checkpoint.weights_id().unwrap();
    let binding = bind(checkpoint, weights, &[("w".to_owned(), vec![0])], &terms, &quiet).unwrap();
    Patch::decode(encode(&drafts::draft(terms, vec![binding])).unwrap()).unwrap()
}

#[test]
fn a_tensor_larger_than_the_bound_goes_through_every_operation() {
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("base.safetensors");
    write_base(&base);
    let checkpoint = Checkpoint::open(&base).unwrap();
    let patch = patch_for(&checkpoint);
    assert!(verify(&checkpoint, &patch, Depth::BothStates, &quiet).unwrap().holds());
    let (edited, reverted) = (folder.path().join("edited"), folder.path().join("reverted"));
    for (direction, from, target) in
        [(Direction::Apply, &base, &edited), (Direction::Revert, &edited, &reverted)]
    {
        let checkpoint = Checkpoint::open(from).unwrap();
        let Answer::Fits(plan) = plan(&checkpoint, &patch, direction, &quiet).unwrap() else {
            panic!("refused")
        };
        plan.execute(&checkpoint, &patch, target, &quiet).unwrap();
    }
    let peak = resources::memory_peak_bytes("self").unwrap() as usize;
    assert!(peak < MEMORY_LIMIT_BYTES, "{peak} bytes at the peak, at most {MEMORY_LIMIT_BYTES} are allowed");
}
