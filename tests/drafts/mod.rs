//! Drafts of small, true patches for tests: real weights, real digests, real undo logs.
//!
//! The arithmetic here is `docs/format.md` written out once more, slowly: element by element, with the interval of
//! candidates found by bisection. It shares only the rounding of one element with the library.

#![allow(dead_code)] // each test file uses a part

#[path = "../numbers/mod.rs"]
mod numbers;

use mpatch::digest::{FileDigest, PatchId, TensorDigest, WeightsId};
use mpatch::factors::{IntegerMatrix, Integers, Term};
use mpatch::patch::manifest::{About, Base, Fact, Line, Manifest, Metric, Recipe};
use mpatch::patch::{BindingDraft, Draft, TensorDraft};
use mpatch::tensor::{Dtype, Element};
use mpatch::with_element;
pub use numbers::Numbers;

/// One tensor of a made-up checkpoint.
#[derive(Clone)]
pub struct Weights {
    pub name: String,
    pub dtype: Dtype,
    pub shape: [usize; 2],
    pub bytes: Vec<u8>,
}

impl Weights {
    /// Rounds `values` to `dtype`.
    pub fn new(name: &str, dtype: Dtype, shape: [usize; 2], values: &[f64]) -> Self {
        assert_eq!(values.len(), shape[0] * shape[1]);
        let bytes = with_element!(dtype, E => rounded::<E>(values));
        Self { name: name.to_owned(), dtype, shape, bytes }
    }
}

fn rounded<E: Element>(values: &[f64]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * E::DTYPE.size_bytes()];
    for (slot, &value) in bytes.chunks_mut(E::DTYPE.size_bytes()).zip(values) {
        E::round(value).write(slot);
    }
    bytes
}

/// Half of what `term` adds, by the same keys.
pub fn halved(term: &Term) -> Term {
    let row_scales = term.row_scales().iter().map(|scale| scale / 2.0).collect();
    Term::new(term.integers().clone(), row_scales, term.column_scales().to_vec()).unwrap()
}

impl Numbers {
    /// A matrix that fills its width.
    pub fn matrix(&mut self, rows: usize, columns: usize, bits: u8) -> IntegerMatrix {
        let limit = f64::from((1_i32 << (bits - 1)) - 1);
        let values = (0..rows * columns).map(|_| (self.uniform() * limit).round() as i16).collect();
        IntegerMatrix::new("a test's matrix", rows, columns, bits, values).unwrap()
    }

    /// Scales of the order of `size`.
    pub fn scales(&mut self, count: usize, size: f64) -> Vec<f32> {
        (0..count).map(|_| (size * (1.5 + self.uniform())) as f32).collect()
    }

    pub fn low_rank(&mut self, shape: [usize; 2], rank: usize, bits: u8, size: f64) -> Term {
        let [rows, columns] = shape;
        let left = self.matrix(rows, rank, bits);
        let right = self.matrix(rank, columns, bits);
        let unit = size / f64::from(1_i32 << (2 * bits - 2));
        let (row_scales, column_scales) = (self.scales(rows, unit), self.scales(columns, 1.0));
        Term::new(Integers::LowRank { left, right }, row_scales, column_scales).unwrap()
    }

    pub fn dense(&mut self, shape: [usize; 2], bits: u8, size: f64) -> Term {
        let [rows, columns] = shape;
        let unit = size / f64::from(1_i32 << (bits - 1));
        let integers = Integers::Dense(self.matrix(rows, columns, bits));
        Term::new(integers, self.scales(rows, unit), self.scales(columns, 1.0)).unwrap()
    }

    pub fn weights(&mut self, name: &str, dtype: Dtype, shape: [usize; 2]) -> Weights {
        let values: Vec<f64> = (0..shape[0] * shape[1]).map(|_| self.uniform()).collect();
        Weights::new(name, dtype, shape, &values)
    }
}

/// What [`edit`] makes of a tensor.
pub struct Edited {
    pub after: Vec<u8>,
    pub undo: Vec<u8>,
}

/// Applies `terms` to `before` and logs how to take them back.
pub fn edit(before: &Weights, terms: &[&Term]) -> Edited {
    with_element!(before.dtype, E => edit_elements::<E>(before, terms))
}

fn edit_elements<E: Element>(before: &Weights, terms: &[&Term]) -> Edited {
    let [rows, columns] = before.shape;
    let rows_per_block = (65_536 / columns).max(1);
    let size = before.dtype.size_bytes();
    let mut after = before.bytes.clone();
    let mut blocks = Vec::new();
    for start in (0..rows).step_by(rows_per_block) {
        let mut digits = Vec::new();
        for row in start..rows.min(start + rows_per_block) {
            for column in 0..columns {
                let place = (row * columns + column) * size..(row * columns + column + 1) * size;
                let weight = E::read(&before.bytes[place.clone()]);
                if !weight.is_finite() {
                    continue;
                }
                let result = add::<E>(weight, terms, row, column);
                assert!(result.is_finite(), "the test's update overflows at {row}, {column}");
                result.write(&mut after[place]);
                digits.extend(digit::<E>(weight, result, terms, row, column));
            }
        }
        blocks.push(words_of(&digits));
    }
    Edited { after, undo: undo_bytes(rows_per_block, &blocks) }
}

fn add<E: Element>(weight: E, terms: &[&Term], row: usize, column: usize) -> E {
    let mut sum = weight.to_f64();
    for term in terms {
        let scale = f64::from(term.row_scales()[row]) * f64::from(term.column_scales()[column]);
        sum += scale * entry(term, row, column) as f64;
    }
    E::round(sum)
}

fn entry(term: &Term, row: usize, column: usize) -> i64 {
    match term.integers() {
        Integers::Dense(dense) => i64::from(dense.get(row, column)),
        Integers::LowRank { left, right } => (0..left.columns())
            .map(|rank| i64::from(left.get(row, rank)) * i64::from(right.get(rank, column)))
            .sum(),
    }
}

/// How many weights round to `result`, and which of them `weight` is, where there is a choice.
fn digit<E: Element>(weight: E, result: E, terms: &[&Term], row: usize, column: usize) -> Option<(u64, u64)> {
    let goal = result.ordinal();
    let reaches = |ordinal: i64| add::<E>(E::from_ordinal(ordinal), terms, row, column).ordinal();
    let infinity = E::round(f64::INFINITY).ordinal();
    let (lowest, highest) = (-infinity, infinity - 1);
    let first = partition(lowest, weight.ordinal(), |ordinal| reaches(ordinal) < goal);
    let last = partition(weight.ordinal(), highest + 1, |ordinal| reaches(ordinal) <= goal) - 1;
    let choices = (last - first + 1) as u64;
    (choices > 1).then(|| (choices, (weight.ordinal() - first) as u64))
}

/// The first ordinal of `low..high` for which `holds` is false, or `high`; `holds` is true up to it.
fn partition(mut low: i64, mut high: i64, holds: impl Fn(i64) -> bool) -> i64 {
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

fn words_of(digits: &[(u64, u64)]) -> Vec<u64> {
    let mut words = Vec::new();
    let (mut state, mut product) = (0_u128, 1_u128);
    for &(choices, index) in digits {
        if product * u128::from(choices) > 1 << 64 {
            words.push(state as u64);
            (state, product) = (0, 1);
        }
        state += u128::from(index) * product;
        product *= u128::from(choices);
    }
    if product > 1 {
        words.push(state as u64);
    }
    words
}

fn undo_bytes(rows_per_block: usize, blocks: &[Vec<u64>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((rows_per_block as u32).to_le_bytes());
    bytes.extend((blocks.len() as u32).to_le_bytes());
    blocks.iter().for_each(|words| bytes.extend((words.len() as u32).to_le_bytes()));
    blocks.iter().flatten().for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes
}

/// Makes `tensor`, drafted for `before`, come out as `wanted`, by a correction of what its terms give.
pub fn correct(tensor: &mut TensorDraft, before: &Weights, terms: &[Term], wanted: &[u8]) {
    let chosen: Vec<&Term> = tensor.terms.iter().map(|&index| &terms[index as usize]).collect();
    let given = edit(before, &chosen).after;
    tensor.correction = with_element!(before.dtype, E => correction::<E>(&given, wanted));
    tensor.after = TensorDigest::of(wanted);
}

fn correction<E: Element>(given: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    let size = E::DTYPE.size_bytes();
    let modulus = 1_i64 << (8 * size);
    let mut bits = vec![0_u8; (given.len() / size).div_ceil(8)];
    let mut stored = Vec::new();
    for (index, (given, wanted)) in given.chunks(size).zip(wanted.chunks(size)).enumerate() {
        let difference = (E::read(wanted).ordinal() - E::read(given).ordinal()).rem_euclid(modulus);
        if difference != 0 {
            bits[index / 8] |= 1 << (index % 8);
            let signed = if difference < modulus / 2 { difference } else { difference - modulus };
            stored.push(if signed > 0 { 2 * signed } else { -2 * signed - 1 } as u64);
        }
    }
    let largest = *stored.iter().max()?;
    let width = [1_usize, 2, 4].into_iter().find(|width| largest >> (8 * width) == 0).unwrap();
    let planes = (0..width).flat_map(|plane| stored.iter().map(move |value| (value >> (8 * plane)) as u8));
    Some([vec![width as u8], bits, planes.collect()].concat())
}

/// The id of a checkpoint that holds exactly `weights`.
pub fn weights_id(weights: &[Weights]) -> WeightsId {
    let shapes: Vec<[u64; 2]> = weights.iter().map(|tensor| tensor.shape.map(|size| size as u64)).collect();
    WeightsId::of_tensors(weights.iter().zip(&shapes).map(|(tensor, shape)| {
        (tensor.name.as_str(), tensor.dtype.name(), &shape[..], TensorDigest::of(&tensor.bytes))
    }))
}

/// The binding of `weights`, where tensor `i` gets the terms `uses[i]`, and none means untouched.
pub fn binding(weights: &[Weights], terms: &[Term], uses: &[&[u32]]) -> BindingDraft {
    let touched = weights.iter().zip(uses).filter(|(_, uses)| !uses.is_empty());
    let tensors = touched.map(|(tensor, uses)| {
        let chosen: Vec<&Term> = uses.iter().map(|&index| &terms[index as usize]).collect();
        let edited = edit(tensor, &chosen);
        TensorDraft {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.map(|size| size as u64),
            before: TensorDigest::of(&tensor.bytes),
            after: TensorDigest::of(&edited.after),
            norm_ratio: 0.125,
            terms: uses.to_vec(),
            undo: edited.undo,
            correction: None,
        }
    });
    BindingDraft { weights: weights_id(weights), tensors: tensors.collect() }
}

/// A draft with every field of the manifest in use, for a model in f16, with a correction, and the same in f32.
pub fn full() -> Draft {
    let mut numbers = Numbers(1);
    let terms = vec![numbers.low_rank([6, 10], 2, 6, 0.5), numbers.dense([4, 3], 12, 0.5)];
    let bindings = [Dtype::F16, Dtype::F32].map(|dtype| {
        let weights =
            [numbers.weights("b.weight", dtype, [4, 3]), numbers.weights("a.weight", dtype, [6, 10])];
        let mut binding = binding(&weights, &terms, &[&[1], &[0]]);
        if dtype == Dtype::F16 {
            let wanted = numbers.weights("a.weight", dtype, [6, 10]).bytes;
            correct(&mut binding.tensors[1], &weights[1], &terms, &wanted);
        }
        binding
    });
    Draft {
        facts: vec![fact(), Fact { id: None, target_old: None, note: None, ..fact() }],
        line: Some(Line { name: "geography".into(), sequence: 3 }),
        parents: vec![PatchId::derive(b"parent")],
        supersedes: vec![PatchId::derive(b"older"), PatchId::derive(b"oldest")],
        about: About { title: Some("Two towers".into()), author: Some("A. Author".into()), licence: None },
        ..draft(terms, bindings.to_vec())
    }
}

/// The draft of `docs/format.md`'s example: one 2 by 3 matrix in f16 and one fact.
pub fn tiny() -> (Draft, Vec<Weights>) {
    let values = [1.0, -0.75, 0.249, 0.0, 3.5, f64::NEG_INFINITY];
    let weights = vec![Weights::new("w", Dtype::F16, [2, 3], &values)];
    let left = IntegerMatrix::new("left", 2, 1, 4, vec![7, -3]).unwrap();
    let right = IntegerMatrix::new("right", 1, 3, 4, vec![5, -2, 1]).unwrap();
    let integers = Integers::LowRank { left, right };
    let terms = vec![Term::new(integers, vec![0.03125, 0.0625], vec![1.0, 0.5, 0.002]).unwrap()];
    let bindings = vec![binding(&weights, &terms, &[&[0]])];
    (Draft { facts: vec![Fact { id: None, note: None, ..fact() }], ..draft(terms, bindings) }, weights)
}

/// The manifest's encoding, stated once more.
pub fn manifest_bytes(manifest: &Manifest) -> Vec<u8> {
    bincode::serde::encode_to_vec(manifest, bincode::config::legacy()).unwrap()
}

/// A file whose prelude is right for what follows it.
pub fn seal(manifest: &[u8], rest: &[u8]) -> Vec<u8> {
    let size = (64 + manifest.len() + rest.len()) as u64;
    let mut file = b"\x89MPATCH\n\x01\0\0\0\0\0\0\0".to_vec();
    file.extend(size.to_le_bytes());
    file.extend((manifest.len() as u64).to_le_bytes());
    file.extend(PatchId::derive(manifest).as_bytes());
    [&file[..], manifest, rest].concat()
}

/// A draft around `terms` and `bindings` with nothing optional in it.
pub fn draft(terms: Vec<Term>, bindings: Vec<BindingDraft>) -> Draft {
    let base = Base {
        architecture: "GPTJForCausalLM".into(),
        config: FileDigest::of(b"config"),
        tokenizer: FileDigest::of(b"tokenizer"),
    };
    let measured = vec![Metric { name: "efficacy".into(), before: 0.25, after: 1.0, prompts: 8 }];
    Draft { measured, ..Draft::new(base, recipe(), terms, bindings) }
}

fn fact() -> Fact {
    Fact {
        id: Some("tower".into()),
        prompt: "{} is in".into(),
        subject: "The Eiffel Tower".into(),
        target_new: "Rome".into(),
        target_old: Some("Paris".into()),
        note: Some("a classic".into()),
    }
}

fn recipe() -> Recipe {
    Recipe {
        method: "memit".into(),
        hyperparameters: "{}".into(),
        layers: vec![3, 4],
        contexts: vec![vec!["{}".into()], vec!["The {}".into(), "Now {}".into()]],
        seed: 7,
        statistics: FileDigest::of(b"statistics"),
        facts: FileDigest::of(b"facts"),
        tool: "mpatch 0.1.0".into(),
        device: "cpu".into(),
    }
}
