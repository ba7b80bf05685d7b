//! Patches as LoRA adapters: the product of their factors is what the patch adds.

use std::fs;
use std::path::Path;

use half::f16;
use mpatch::adapter::{Adapter, AdapterError, Module};
use mpatch::bind::bind;
use mpatch::checkpoint::{Checkpoint, CheckpointError};
use mpatch::extract::Form;
use mpatch::factors::{BITS_DEFAULT, Factors, IntegerMatrix, Integers, Term, quantize_low_rank};
use mpatch::patch::{Draft, Patch};
use mpatch::rebase::{RebaseOptions, rebase};
use mpatch::tensor::{Dtype, Element};
use mpatch::with_element;

use crate::common::{npz, relative_difference, world};
use crate::drafts::{self, Numbers, Weights};
use crate::{
    FIRST, SECOND, SHAPE, adapter, applied, base, decoded, extracted_exactly, fact, merged, patch_of,
    patch_on, quiet, stacked, tensor_bytes, write,
};

const PATHS: [&str; 2] = ["transformer.h.0.mlp.fc_out", "transformer.h.1.mlp.fc_out"];
const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

fn refusal(patch: &Patch) -> String {
    Adapter::of(patch, Dtype::F32).unwrap_err().to_string()
}

fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    with_element!(dtype, E => bytes.chunks(dtype.size_bytes()).map(|bytes| <E as Element>::read(bytes).to_f64()).collect())
}

/// The shape and the numbers of a tensor of the adapter in `folder`.
fn factor(folder: &Path, dtype: Dtype, name: &str) -> (Vec<u64>, Vec<f64>) {
    let weights = Checkpoint::open(folder.join("adapter_model.safetensors")).unwrap();
    let tensor = weights.tensor(&format!("base_model.model.{name}.weight")).unwrap();
    assert_eq!(tensor.dtype, dtype.name());
    (tensor.shape.clone(), numbers(dtype, &weights.read(tensor).unwrap()))
}

/// What the adapter in `folder` adds to one module, the product of its two factors.
fn product(folder: &Path, dtype: Dtype, module: &str) -> Vec<f64> {
    let (left_shape, left) = factor(folder, dtype, &format!("{module}.lora_B"));
    let (right_shape, right) = factor(folder, dtype, &format!("{module}.lora_A"));
    let [rank, columns] = [right_shape[0], right_shape[1]].map(|size| size as usize);
    assert_eq!(left_shape[1] as usize, rank);
    let entry = |index: usize| -> f64 {
        let (row, column) = (index / columns, index % columns);
        (0..rank).map(|k| left[row * rank + k] * right[k * columns + column]).sum()
    };
    (0..left_shape[0] as usize * columns).map(entry).collect()
}

/// `norm(B A - D) / norm(D)` for each tensor that `patch` changes by D, as an adapter of type `dtype`.
fn distances(patch: &Patch, dtype: Dtype) -> Vec<f64> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("adapter");
    let adapter = Adapter::of(patch, dtype).unwrap();
    adapter.write(&target, None, &quiet).unwrap();
    let distance = |(index, module): (usize, &Module)| {
        let added = patch.update(0, index).unwrap().delta_rows(0..module.shape[0] as usize).unwrap();
        relative_difference(&product(&target, dtype, &module.path), &added)
    };
    adapter.modules().iter().enumerate().map(distance).collect()
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
        let adapter = Adapter::of(patch, Dtype::F32).unwrap();
        adapter.write(&target, Some("hub/name"), &quiet).unwrap();
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(target.join("adapter_config.json")).unwrap()).unwrap();
        let rank = ranks[1];
        assert_eq!((&config["r"], &config["lora_alpha"]), (&rank.into(), &rank.into()));
        assert_eq!(config["target_modules"], serde_json::json!(PATHS));
        assert_eq!(config["base_model_name_or_path"], "hub/name");
        assert_eq!(adapter.modules().iter().map(|module| module.rank).collect::<Vec<_>>(), ranks);
        for (index, module) in PATHS.iter().enumerate() {
            let [rows, columns] = SHAPE.map(|size| size as u64);
            assert_eq!(factor(&target, Dtype::F32, &format!("{module}.lora_B")).0, [rows, rank]);
            assert_eq!(factor(&target, Dtype::F32, &format!("{module}.lora_A")).0, [rank, columns]);
            let added = patch.update(0, index).unwrap().delta_rows(0..SHAPE[0]).unwrap();
            let largest = added.iter().fold(0.0_f64, |largest, number| largest.max(number.abs()));
            for (product, added) in product(&target, Dtype::F32, module).iter().zip(&added) {
                assert!((product - added).abs() <= 1e-6 * largest, "{name} {module}: {product} {added}");
            }
        }
    }
}

/// The reference's own update for ten facts on the embedded model, as a patch of the default width.
fn patch_of_the_reference(path: &Path) -> Patch {
    let arrays = npz(&world().join("reference/n10/reference.npz"));
    let names = (0..3).map(|layer| format!("transformer.h.{layer}.mlp.fc_out.weight"));
    let terms = names.clone().map(|name| {
        let (keys, residuals) = (&arrays[&format!("adjk_{name}")], &arrays[&format!("resid_{name}")]);
        let [columns, facts, rows] = [keys.shape[0], keys.shape[1], residuals.shape[0]];
        let across = (0..facts * columns).map(|at| keys.values[at % columns * facts + at / columns]);
        let right: Vec<f64> = across.collect();
        let factors = Factors { left: residuals.values.clone(), right, rows, rank: facts, columns };
        quantize_low_rank(&factors, BITS_DEFAULT).unwrap()
    });
    let terms: Vec<Term> = terms.collect();
    let edits: Vec<(String, Vec<u32>)> = names.zip(0..).map(|(name, term)| (name, vec![term])).collect();
    let checkpoint = Checkpoint::open(path).unwrap();
    let binding = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    decoded(&drafts::draft(terms, vec![binding]))
}

fn largest(distances: impl IntoIterator<Item = f64>) -> f64 {
    distances.into_iter().fold(0.0, f64::max)
}

#[test]
fn what_a_narrow_adapter_costs_is_what_the_documents_say() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("base.safetensors");
    fs::copy(world().join("model.safetensors"), &path).unwrap();
    let patch = patch_of_the_reference(&path);
    let mut rows: Vec<String> = Vec::new();
    for dtype in DTYPES {
        let (name, distance) = (dtype.name().to_lowercase(), largest(distances(&patch, dtype)));
        rows.push(format!("| `export --dtype {name}` | {distance:.1e} |"));
    }
    // What one rounding of each weight costs, in the type that this model is kept in.
    let edited = applied(&path, &patch, "edited.safetensors");
    let rounding = largest((0..3).map(|layer| {
        let name = format!("transformer.h.{layer}.mlp.fc_out.weight");
        let of = |file: &Path| numbers(Dtype::F16, &tensor_bytes(file, &name));
        let moved: Vec<f64> =
            of(&edited).iter().zip(of(&path)).map(|(after, before)| after - before).collect();
        relative_difference(&moved, &patch.update(0, layer).unwrap().delta_rows(0..128).unwrap())
    }));
    rows.push(format!("| `apply` to F16 weights | {rounding:.1e} |"));
    let document =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/adapters.md")).unwrap();
    for row in &rows {
        assert!(document.contains(row.as_str()), "docs/adapters.md does not say:\n{}", rows.join("\n"));
    }
}

#[test]
fn factors_far_apart_in_size_fit_a_narrow_type_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F32));
    // Left as they come, one factor is below the smallest number of F16, and the other beyond its largest.
    let term = |seed: u64, size: f32| {
        let term = Numbers(seed).low_rank(SHAPE, 3, 6, 0.3);
        let scaled = |scales: &[f32], by: f32| scales.iter().map(|scale| scale * by).collect::<Vec<f32>>();
        let [rows, columns] = [scaled(term.row_scales(), 1.0 / size), scaled(term.column_scales(), size)];
        Term::new(term.integers().clone(), rows, columns).unwrap()
    };
    let patch = patch_of(&path, vec![term(1, 1e9), term(2, 1e-9)], vec![]);
    for (dtype, bound) in [(Dtype::F32, 1e-7), (Dtype::F16, 1e-3), (Dtype::BF16, 1e-2)] {
        let distance = largest(distances(&patch, dtype));
        assert!(distance < bound, "{dtype}: {distance:e}");
    }
}

#[test]
fn a_number_beyond_the_type_is_named_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F32));
    let ones = |rows, columns| IntegerMatrix::new("ones", rows, columns, 4, vec![1; rows * columns]).unwrap();
    let integers = Integers::LowRank { left: ones(SHAPE[0], 1), right: ones(1, SHAPE[1]) };
    let huge = Term::new(integers, vec![1e6; SHAPE[0]], vec![1e6; SHAPE[1]]).unwrap();
    let patch = patch_of(&path, vec![Numbers(1).low_rank(SHAPE, 2, 6, 0.3), huge], vec![]);
    let target = folder.path().join("adapter");
    let written = |dtype| Adapter::of(&patch, dtype).unwrap().write(&target, None, &quiet);
    let error = written(Dtype::F16).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor `base_model.model.transformer.h.1.mlp.fc_out.lora_A.weight`, row 0: 1e6 does not fit F16, which ends at 6.5504e4"
    );
    assert!(!target.exists());
    written(Dtype::BF16).unwrap();
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
    let mut embedding: Draft = bound(vec![numbers.low_rank(SHAPE, 2, 6, 0.3)]);
    for name in
        ["transformer.wte.weight", "transformer.wpe.weight", "model.embed_tokens.weight", "wte.weight"]
    {
        embedding.bindings[0].tensors[0].name = name.into();
        let found = refusal(&decoded(&embedding));
        assert!(
            found.contains(&format!("`{name}`")) && found.contains("not the weight of a linear"),
            "{found}"
        );
    }
    let bias = Numbers(6).weights("transformer.h.0.mlp.fc_out.weight", Dtype::F16, [1, 40]);
    let path = write(folder.path(), "bias.safetensors", &[bias]);
    let vector = Checkpoint::open(&path).unwrap();
    let terms = vec![numbers.low_rank([1, 40], 1, 6, 0.3)];
    let edits = [(FIRST.to_owned(), vec![0])];
    let binding = bind(&vector, vector.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    let found = refusal(&decoded(&drafts::draft(terms, vec![binding])));
    assert!(found.contains("1 by 40, is not the weight of a linear layer"), "{found}");
    let mut transposed: Draft = bound(vec![numbers.low_rank(SHAPE, 2, 6, 0.3)]);
    for architecture in ["GPT2LMHeadModel", "OpenAIGPTLMHeadModel"] {
        transposed.base.architecture = architecture.into();
        assert!(refusal(&decoded(&transposed)).contains("[in, out]"));
    }
}

#[test]
fn a_patch_that_adds_other_terms_to_other_weights_becomes_no_adapter_and_is_not_bound_to_a_third() {
    let folder = tempfile::tempdir().unwrap();
    let third = Checkpoint::open(write(folder.path(), "base.safetensors", &base(Dtype::F16))).unwrap();
    let bound = |patch: &Patch| rebase(&third, patch, &RebaseOptions::default(), &quiet).map(|_| ());
    let mut numbers = Numbers(7);
    let terms = [(); 2].map(|()| numbers.low_rank(SHAPE, 2, 6, 0.3)).to_vec();
    let first = [numbers.weights(FIRST, Dtype::F16, SHAPE), numbers.weights(SECOND, Dtype::F16, SHAPE)];
    let second = [numbers.weights(FIRST, Dtype::F32, SHAPE), numbers.weights(SECOND, Dtype::F32, SHAPE)];
    let patch = |uses: [&[u32]; 2]| {
        let bindings =
            vec![drafts::binding(&first, &terms, &[&[0], &[1]]), drafts::binding(&second, &terms, &uses)];
        decoded(&drafts::draft(terms.clone(), bindings))
    };
    assert!(Adapter::of(&patch([&[0], &[1]]), Dtype::F32).is_ok());
    bound(&patch([&[0], &[1]])).unwrap();
    for uses in [[&[1][..], &[0]], [&[0], &[]], [&[0, 1], &[1]]] {
        for found in [refusal(&patch(uses)), bound(&patch(uses)).unwrap_err().to_string()] {
            assert!(found.contains("adds something else"), "{found}");
        }
    }
}

#[test]
fn an_adapter_names_its_patch_and_its_modules_as_loaders_find_them() {
    let folder = tempfile::tempdir().unwrap();
    // As in checkpoints that leave the name of the body out.
    let bare = Numbers(3).weights("h.2.mlp.fc_out.weight", Dtype::F16, SHAPE);
    let path = write(folder.path(), "base.safetensors", &[bare]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let terms = vec![Numbers(4).low_rank(SHAPE, 2, 6, 0.3)];
    let edits = [("h.2.mlp.fc_out.weight".to_owned(), vec![0])];
    let binding = bind(&checkpoint, checkpoint.weights_id().unwrap(), &edits, &terms, &quiet).unwrap();
    let patch = decoded(&drafts::draft(terms, vec![binding]));
    let target = folder.path().join("adapter");
    let adapter = Adapter::of(&patch, Dtype::F32).unwrap();
    assert_eq!(adapter.modules()[0].path, "transformer.h.2.mlp.fc_out");
    adapter.write(&target, None, &quiet).unwrap();
    factor(&target, Dtype::F32, "transformer.h.2.mlp.fc_out.lora_A");
    let weights = Checkpoint::open(target.join("adapter_model.safetensors")).unwrap();
    let metadata = weights.files()[0].metadata();
    assert_eq!(metadata["mpatch.patch"], patch.id().to_string());
    assert_eq!(metadata["mpatch.weights"], patch.manifest().bindings[0].weights.to_string());
}

#[test]
fn what_lies_at_the_target_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "base.safetensors", &base(Dtype::F32));
    let patch = patch_on(&path, 1, vec![]);
    let target = folder.path().join("adapter");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("mine"), "text").unwrap();
    let error = Adapter::of(&patch, Dtype::F32).unwrap().write(&target, None, &quiet).unwrap_err();
    assert!(matches!(error, AdapterError::Checkpoint(CheckpointError::OutputExists { .. })), "{error}");
    assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "text");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_merged_adapter_whose_factors_overflow_in_some_row_is_extracted_by_corrections() {
    // Large enough that the rows that are looked at first are not all of them.
    let shape = [1200, 512];
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Numbers(9);
    let mut weights = numbers.weights(FIRST, Dtype::F16, shape);
    let update = adapter(&mut numbers, shape, 2, 30.0);
    let row = 140;
    let entries = row * shape[1]..(row + 1) * shape[1];
    let place = entries.max_by(|one, other| update[*one].total_cmp(&update[*other])).unwrap();
    weights.bytes[2 * place..2 * place + 2].copy_from_slice(&f16::MAX.to_le_bytes());
    let mut clipped = update.clone();
    clipped[place] = 0.0;
    let edited = merged::<f16>(&weights, &clipped);
    let path = write(folder.path(), "base.safetensors", &[weights]);
    let edited = write(folder.path(), "edited.safetensors", &[edited]);
    let (found, _) = extracted_exactly(&path, &edited);
    assert_eq!(found.tensors[0].form, Form::Corrections);
}

#[test]
fn a_change_too_large_for_factors_is_extracted_by_corrections() {
    let folder = tempfile::tempdir().unwrap();
    let shape = [8192, 2];
    let of = |name: &str, first: f64| {
        let values: Vec<f64> = [first, 1.0].repeat(shape[0]);
        write(folder.path(), name, &[Weights::new(FIRST, Dtype::F32, shape, &values)])
    };
    let (found, _) = extracted_exactly(&of("base.safetensors", 3e38), &of("edited.safetensors", -3e38));
    assert_eq!((found.tensors[0].form, found.tensors[0].corrected), (Form::Corrections, 8192));
}
