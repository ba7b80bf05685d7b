//! What is told of two patches, or of two checkpoints, at the edges: nothing added, other shapes, one side alone.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use half::f16;
use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::diff::{
    Change, CheckpointDiff, CheckpointOptions, UpdateDiff, diff_checkpoints, diff_checkpoints_size_bytes,
    diff_patches,
};
use mpatch::factors::{Integers, Term};
use mpatch::patch::Patch;
use mpatch::tensor::Dtype;

use crate::drafts::{Numbers, Weights, draft};
use crate::{FIRST, SECOND, SHAPE, base, base_file, decoded, extraction, patch_of, quiet, write};

/// A patch on the checkpoint at `path` that changes one of its tensors.
fn patch_of_one(path: &Path, name: &str, term: Term) -> Patch {
    let checkpoint = Checkpoint::open(path).unwrap();
    let (edits, terms) = ([(name.to_owned(), vec![0])], vec![term]);
    let binding = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    decoded(&draft(terms, vec![binding]))
}

/// The same term with other scales of its rows.
fn scaled(term: &Term, factor: f32) -> Term {
    let rows = term.row_scales().iter().map(|scale| factor * scale).collect();
    Term::new(term.integers().clone(), rows, term.column_scales().to_vec()).unwrap()
}

/// Bytes that were told of: those that were to be read, and those that were.
#[derive(Default)]
pub struct Told {
    all: AtomicU64,
    read: AtomicU64,
}

impl Told {
    pub fn announce(&self, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn progress(&self, bytes: u64) {
        let read = self.read.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.all.load(Ordering::Relaxed);
        assert!(read <= all, "{read} bytes are read, of {all}");
    }

    pub fn check_done(&self) {
        assert_eq!(self.read.load(Ordering::Relaxed), self.all.load(Ordering::Relaxed));
    }
}

#[test]
fn updates_have_an_angle_only_where_both_are_there_of_one_shape_and_something() {
    let (folder, path) = base_file();
    let mut numbers = Numbers(4);
    let term = numbers.low_rank(SHAPE, 2, 6, 0.3);
    let one = patch_of_one(&path, FIRST, term.clone());
    let nothing = patch_of_one(&path, FIRST, scaled(&term, 0.0));
    let wide = [SHAPE[0], SHAPE[1] + 1];
    let other = write(folder.path(), "wide.safetensors", &[numbers.weights(FIRST, Dtype::F16, wide)]);
    let wide = patch_of_one(&other, FIRST, numbers.low_rank(wide, 2, 6, 0.3));
    let second = base(Dtype::F16)[1].name.clone();
    let elsewhere = patch_of_one(&path, &second, term.clone());
    let compared = |one: &Patch, other: &Patch| -> UpdateDiff {
        let diff = diff_patches(one, other).unwrap();
        assert!(!diff.is_same() || one.id() == other.id());
        diff.tensors.into_iter().find(|tensor| tensor.name == FIRST).unwrap()
    };
    for (one, other, relative) in [
        (&one, &nothing, Some(1.0)),
        (&nothing, &one, Some(f64::INFINITY)),
        (&nothing, &nothing, Some(0.0)),
        (&one, &wide, None),
        (&one, &elsewhere, None),
        (&elsewhere, &one, None),
    ] {
        let found = compared(one, other);
        assert_eq!((found.angle_degrees, found.relative_difference), (None, relative), "{found:?}");
        assert_eq!(found.is_same(), relative == Some(0.0));
    }
    let norm = |patch: &Patch| compared(patch, patch).first.unwrap().norm;
    let found = compared(&one, &wide);
    assert_eq!([found.first, found.second].map(|size| size.unwrap().norm), [norm(&one), norm(&wide)]);
}

#[test]
fn updates_of_one_direction_have_an_angle_however_their_sums_are_rounded() {
    let (_folder, path) = base_file();
    let mut numbers = Numbers(6);
    for _ in 0..40 {
        let term = numbers.low_rank(SHAPE, 2, 6, 0.3);
        let patches = [1.0, 3.0].map(|factor| patch_of_one(&path, FIRST, scaled(&term, factor)));
        for other in &patches {
            let found = diff_patches(&patches[0], other).unwrap().tensors[0].angle_degrees;
            assert!(found.is_some_and(|found| found < 1e-4), "{found:?}");
        }
    }
}

#[test]
fn dense_terms_and_those_of_low_rank_are_counted_apart() {
    let (_folder, path) = base_file();
    let mut numbers = Numbers(8);
    let terms = vec![numbers.dense(SHAPE, 8, 0.2), numbers.low_rank(SHAPE, 3, 6, 0.3)];
    assert!(matches!(terms[0].integers(), Integers::Dense(_)));
    let patch = patch_of(&path, terms, vec![]);
    let found = diff_patches(&patch, &patch).unwrap().tensors;
    let counted = found.iter().map(|tensor| tensor.first.as_ref().unwrap());
    let counted: Vec<_> = counted.map(|size| (size.rank, size.dense_terms, size.bits)).collect();
    assert_eq!(counted, [(0, 1, 8), (3, 0, 6)]);
}

/// What sets two checkpoints of one tensor each apart.
fn compared(first: Weights, second: Weights, options: CheckpointOptions) -> CheckpointDiff {
    let folder = tempfile::tempdir().unwrap();
    let opened = |name: &str, weights| Checkpoint::open(write(folder.path(), name, &[weights])).unwrap();
    let (first, second) = (opened("first.safetensors", first), opened("second.safetensors", second));
    diff_checkpoints(&first, &second, options, &quiet, &quiet).unwrap()
}

fn change(first: Weights, second: Weights, singular_values: usize) -> Change {
    let options = CheckpointOptions { singular_values, ..CheckpointOptions::default() };
    compared(first, second, options).tensors.remove(0).change.unwrap()
}

#[test]
fn the_same_bytes_of_another_type_or_shape_are_another_tensor() {
    let zeros = |dtype, shape: [usize; 2]| Weights {
        name: FIRST.to_owned(),
        dtype,
        shape,
        bytes: vec![0; 2 * shape[0] * shape[1]],
    };
    for other in [zeros(Dtype::BF16, [2, 3]), zeros(Dtype::F16, [3, 2])] {
        let diff = compared(zeros(Dtype::F16, [2, 3]), other, CheckpointOptions::default());
        assert!(!diff.is_same() && diff.same == 0, "{diff:?}");
        assert!(diff.tensors[0].first != diff.tensors[0].second && diff.tensors[0].change.is_none());
    }
}

#[test]
fn a_change_is_counted_to_the_last_weight_and_measured_where_nothing_was() {
    let weights = |shape: [usize; 2], changed: &[(usize, f64)]| {
        let mut values = vec![0.0; shape[0] * shape[1]];
        changed.iter().for_each(|(index, value)| values[*index] = *value);
        Weights::new(FIRST, Dtype::F32, shape, &values)
    };
    // Of 16 MiB and some more, which are not read at once.
    let (shape, last) = ([4200, 1000], (16 << 20) / 4 - 1);
    let found = change(weights(shape, &[]), weights(shape, &[(5, 1.0), (last, -0.0)]), 0);
    let one = u64::from(1.0_f32.to_bits());
    assert_eq!((found.weights, found.changed, found.ulps_max), (4_200_000, 2, one));
    assert_eq!((found.relative_norm, found.effective_rank), (f64::INFINITY, None));
    // Another sign of nothing is a change of no size.
    let found = change(weights([2, 2], &[]), weights([2, 2], &[(1, -0.0)]), 4);
    assert_eq!((found.changed, found.relative_norm, found.ulps_mean), (1, 0.0, 1.0));
    // A vector has no rank, and a matrix may have more than is looked for.
    let full: Vec<_> = (0..8).map(|index| (9 * index, 1.0)).collect();
    assert_eq!(change(weights([1, 8], &[]), weights([1, 8], &[(1, 1.0)]), 4).effective_rank, None);
    let rank = |singular_values| {
        let found = change(weights([8, 8], &[]), weights([8, 8], &full), singular_values);
        found.effective_rank.map(|rank| (rank.rank, rank.is_more))
    };
    assert_eq!([rank(0), rank(4), rank(8)], [None, Some((4, true)), Some((8, false))]);
}

#[test]
fn an_extracted_patch_names_the_weights_that_it_was_made_of() {
    let (folder, path) = base_file();
    let mut changed = base(Dtype::F16);
    changed[0].bytes[0] ^= 1;
    let edited = write(folder.path(), "edited.safetensors", &changed);
    let found = extraction(&path, &edited).unwrap().draft;
    let weights = |path: &Path| Checkpoint::open(path).unwrap().weights_id().unwrap();
    assert_eq!(found.bindings[0].weights, weights(&path));
    let edited = format!("{{\"edited\":\"{}\"}}", weights(&edited));
    assert_eq!(found.recipe.hyperparameters, edited);
}

#[test]
fn checkpoints_are_compared_weight_by_weight() {
    let folder = tempfile::tempdir().unwrap();
    let tensors = base(Dtype::F16);
    let path = write(folder.path(), "base.safetensors", &tensors);
    let difference = |path: &Path, other: &Path| {
        let (one, other) = (Checkpoint::open(path).unwrap(), Checkpoint::open(other).unwrap());
        let told = Told::default();
        told.announce(diff_checkpoints_size_bytes(&one, &other));
        let (announce, progress) = (|bytes| told.announce(bytes), |bytes| told.progress(bytes));
        let diff =
            diff_checkpoints(&one, &other, CheckpointOptions::default(), &announce, &progress).unwrap();
        told.check_done();
        diff
    };
    let compare = |other: &Path| difference(&path, other);
    let same = compare(&path);
    assert!(same.is_same() && same.same == 2 && same.tensors.is_empty());
    let mut edited = tensors.clone();
    // One value up, two values down in one row, and from the smallest negative to the smallest positive subnormal.
    edited[1].bytes[0..6]
        .copy_from_slice(&[1.0_f64, 1.0, 0.0].map(|value| f16::from_f64(value).to_le_bytes()).concat());
    let mut before = tensors.clone();
    let values = [1.0 + 2.0_f64.powi(-10), 1.0 - 2.0_f64.powi(-10), 0.0];
    before[1].bytes[0..6].copy_from_slice(&values.map(|value| f16::from_f64(value).to_le_bytes()).concat());
    before[1].bytes[5] |= 0x80;
    let path = write(folder.path(), "before.safetensors", &before);
    let after = write(folder.path(), "after.safetensors", &edited);
    let diff = difference(&path, &after);
    assert!(!diff.is_same() && diff.same == 1);
    let change = diff.tensors[0].change.as_ref().unwrap();
    // 1 + 2^-10 is the next value after 1; before 1 values are twice as dense; -0 and +0 are neighbours.
    assert_eq!((change.changed, change.ulps_max, change.ulps_mean), (3, 2, 4.0 / 3.0));
    assert_eq!(change.effective_rank.unwrap().rank, 1);
    assert!(change.relative_norm > 0.0 && change.not_finite == 0);
    let added = write(
        folder.path(),
        "added.safetensors",
        &[tensors[0].clone(), Numbers(1).weights("new", Dtype::F32, [1, 2])],
    );
    let diff = compare(&added);
    assert_eq!((diff.added, diff.removed), (vec!["new".to_owned()], vec![SECOND.to_owned()]));
}
