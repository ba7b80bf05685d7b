//! Patches as LoRA adapters: the product of their factors is what the patch adds.

use std::fs;
use std::path::Path;

use mpatch::adapter::{Adapter, AdapterError};
use mpatch::bind::bind;
use mpatch::checkpoint::{Checkpoint, CheckpointError};
use mpatch::factors::Term;
use mpatch::patch::{Draft, Patch};
use mpatch::tensor::Dtype;

use crate::drafts::{self, Numbers};
use crate::{FIRST, SECOND, SHAPE, base, decoded, extracted_exactly, fact, patch_on, quiet, stacked, write};

const PATHS: [&str; 2] = ["transformer.h.0.mlp.fc_out", "transformer.h.1.mlp.fc_out"];

fn refusal(patch: &Patch) -> String {
    Adapter::of(patch).unwrap_err().to_string()
}

/// The shape and the numbers of a tensor of the adapter in `folder`.
fn factor(folder: &Path, name: &str) -> (Vec<u64>, Vec<f32>) {
    let weights = Checkpoint::open(folder.join("adapter_model.safetensors")).unwrap();
    let tensor = weights.tensor(&format!("base_model.model.{name}.weight")).unwrap();
    let bytes = weights.read(tensor).unwrap();
    let (numbers, _) = bytes.as_chunks::<4>();
    (tensor.shape.clone(), numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

#[test]
fn an_adapter_multiplies_to_what_a_patch_and_a_stack_add() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F16));
    let one = patch_on(&path, 1, vec![fact("A", "golf")]);
    let other = patch_on(&path, 2, vec![fact("B", "chess")]);
    let both = decoded(&stacked(&path, &[&one, &other]).unwrap().draft);
    for (name, patch, ranks) in [("one", &one, [2, 3]), ("both", &both, [4, 6])] {
        let target = folder.path().join(name);
        let adapter = Adapter::of(patch).unwrap();
        adapter.write(&target, Some("hub/name"), &quiet).unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(target.join("adapter_config.json")).unwrap()).unwrap();
        let rank = ranks[1];
        assert_eq!((&config["r"], &config["lora_alpha"]), (&rank.into(), &rank.into()));
        assert_eq!(config["target_modules"], serde_json::json!(PATHS));
        assert_eq!(config["base_model_name_or_path"], "hub/name");
        assert_eq!(adapter.modules().iter().map(|module| module.rank).collect::<Vec<_>>(), ranks);
        for (index, module) in PATHS.iter().enumerate() {
            let (left_shape, left) = factor(&target, &format!("{module}.lora_B"));
            let (right_shape, right) = factor(&target, &format!("{module}.lora_A"));
            let [rows, columns] = SHAPE;
            assert_eq!((left_shape, right_shape), (vec![rows as u64, rank], vec![rank, columns as u64]));
            let added = patch.update(0, index).unwrap().delta_rows(0..rows).unwrap();
            let largest = added.iter().fold(0.0_f64, |largest, number| largest.max(number.abs()));
            for (place, added) in added.iter().enumerate() {
                let (row, column) = (place / columns, place % columns);
                let product: f64 = (0..rank as usize)
                    .map(|k| {
                        f64::from(left[row * rank as usize + k]) * f64::from(right[k * columns + column])
                    })
                    .sum();
                assert!((product - added).abs() <= 1e-6 * largest, "{name} {module}: {product} {added}");
            }
        }
    }
}

#[test]
fn a_patch_that_is_more_than_factors_becomes_no_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F16));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut numbers = Numbers(5);
    let bound = |terms: Vec<Term>| {
        let edits = [(FIRST.to_owned(), vec![0])];
        let binding = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
        drafts::draft(terms, vec![binding])
    };
    let dense = bound(vec![numbers.dense(SHAPE, 8, 0.2)]);
    assert!(refusal(&decoded(&dense)).contains("by a dense term"));
    let mut corrected = base(Dtype::F16);
    corrected[1].bytes[7] ^= 1;
    let edited = write(folder.path(), "edited.safetensors", &corrected);
    let (_, extracted) = extracted_exactly(&path, &edited);
    let found = refusal(&extracted);
    assert!(found.contains("a correction") && found.contains(SECOND), "{found}");
    let mut transposed: Draft = bound(vec![numbers.low_rank(SHAPE, 2, 6, 0.3)]);
    transposed.base.architecture = "GPT2LMHeadModel".into();
    assert!(refusal(&decoded(&transposed)).contains("[in, out]"));
}

#[test]
fn what_lies_at_the_target_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F32));
    let patch = patch_on(&path, 1, vec![]);
    let target = folder.path().join("adapter");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "text").unwrap();
    let error = Adapter::of(&patch).unwrap().write(&target, None, &quiet).unwrap_err();
    assert!(matches!(error, AdapterError::Checkpoint(CheckpointError::OutputExists { .. })), "{error}");
    assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "text");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}
