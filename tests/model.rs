//! GPT-J against Hugging Face's own numbers, and the reverse pass against finite differences.
#![cfg(feature = "edit")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::cell::Cell;

use candle_core::{Device, Tensor};
use common::{npz, random_model, world, world_model};
use mpatch::factors::{CorrectionWriter, IntegerMatrix, Integers, Term, UndoWriter, Update};
use mpatch::model::{
    Batch, Cache, Folder, Model, ModelError, Precision, Suffix, TensorEdit, WayBack, gather,
};
use mpatch::tensor::Dtype;

/// Hugging Face's logits and token ids for the fixture's texts (`GPTJForCausalLM`, f32).
#[test]
fn logits_and_token_ids_are_those_of_hugging_face() {
    let model = world_model();
    let arrays = npz(&world().join("reference/logits.npz"));
    let texts: Vec<String> =
        serde_json::from_slice(&std::fs::read(world().join("reference/texts.json")).unwrap()).unwrap();
    for (index, text) in texts.iter().enumerate() {
        let ids = model.tokenizer.encode(text).unwrap();
        let expected: Vec<u32> = arrays[&format!("ids_{index}")].values.iter().map(|id| *id as u32).collect();
        assert_eq!(ids, expected, "token ids of {text:?}");
        let batch = model.batch(std::slice::from_ref(text)).unwrap();
        let logits = model.network.logits(&model.network.forward(&batch).unwrap()).unwrap();
        let found: Vec<f32> = logits.flatten_all().unwrap().to_vec1().unwrap();
        let expected = &arrays[&format!("logits_{index}")].values;
        let largest = found.iter().zip(expected).map(|(one, other)| (f64::from(*one) - other).abs());
        let largest = largest.fold(0.0, f64::max);
        assert!(largest < 1e-4, "logits of {text:?} differ by {largest:e}");
    }
}

#[test]
fn a_model_loaded_up_to_a_block_runs_so_far_and_no_further() {
    const LAST: usize = 2;
    let (whole, folder) = (world_model(), Folder::open(&world()).unwrap());
    let (announced, told) = (folder.size_bytes_up_to(LAST), Cell::new(0));
    let lower = folder.load_up_to(LAST, &Device::Cpu, &|bytes| told.set(told.get() + bytes)).unwrap();
    assert_eq!(told.get(), announced);
    assert!(announced < whole.checkpoint.weights_size_bytes());
    let batch = whole.batch(&["The mother tongue of Dmitri Prufski is".to_owned()]).unwrap();
    let output = |model: &Model| -> Vec<f32> {
        let output = model.network.forward_to(&batch, LAST, &mut |_, _| Ok(())).unwrap();
        output.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(output(&lower), output(&whole));
    let refused = |outcome: Result<Tensor, ModelError>| {
        assert!(matches!(outcome, Err(ModelError::Layer { layers: 3, .. })), "{outcome:?}");
    };
    refused(lower.network.forward(&batch));
    refused(lower.network.forward_cached(batch.ids(), &mut Cache::default()));
}

#[test]
fn padding_does_not_reach_a_shorter_row() {
    let model = world_model();
    let texts = ["The mother tongue of Dmitri Prufski is".to_owned(), "The".to_owned()];
    let together = model.network.forward(&model.batch(&texts).unwrap()).unwrap();
    let alone = model.network.forward(&model.batch(&texts[1..]).unwrap()).unwrap();
    let found: Vec<f32> = gather(&together, &[(1, 0)]).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
    let expected: Vec<f32> = gather(&alone, &[(0, 0)]).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
    let largest = found.iter().zip(&expected).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
    assert!(largest < 1e-5, "{largest:e}");
}

#[test]
fn cached_generation_sees_what_one_forward_pass_sees() {
    let model = world_model();
    let ids = model.tokenizer.encode("The mother tongue of Dmitri Prufski is").unwrap();
    let batch = Batch::new(std::slice::from_ref(&ids), 256, model.network.device()).unwrap();
    let whole = model.network.forward(&batch).unwrap();
    let mut cache = Cache::default();
    for (token, id) in ids.iter().enumerate() {
        let id = Tensor::new(&[[*id]], model.network.device()).unwrap();
        let step = model.network.forward_cached(&id, &mut cache).unwrap();
        let found: Vec<f32> = step.flatten_all().unwrap().to_vec1().unwrap();
        let expected: Vec<f32> =
            gather(&whole, &[(0, token)]).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let largest = found.iter().zip(&expected).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-4, "token {token}: {largest:e}");
    }
}

/// The gradient of a fixed linear functional of two blocks' outputs, against central differences along directions.
#[test]
fn the_reverse_pass_agrees_with_finite_differences() {
    let model = world_model();
    let network = &model.network;
    let texts = ["The mother tongue of Dmitri Prufski is".to_owned(), "Dmitri Prufski is a".to_owned()];
    let batch = model.batch(&texts).unwrap();
    let (layer, last) = (2, network.config().layers - 1);
    let suffix = Suffix::whole(network, layer, &batch, vec![(0, 5), (1, 2)]).unwrap();
    let shape = (batch.rows(), batch.tokens(), network.config().width);
    let width = network.config().width;
    let wave = |seed: usize, size: usize| -> Vec<f32> {
        (0..size).map(|index| ((index * 7919 + seed * 104_729) as f32 * 0.618).sin()).collect()
    };
    let weights =
        |seed| Tensor::from_vec(wave(seed, shape.0 * shape.1 * shape.2), shape, network.device()).unwrap();
    let (middle, top) = (weights(1), weights(2));
    let moves = |delta: &[f32]| Tensor::new(vec![delta, delta], network.device()).unwrap();
    let functional = |delta: &[f32]| -> f64 {
        let pass = suffix.forward(&moves(delta)).unwrap();
        let part = |layer, weights: &Tensor| -> f64 {
            let product: Vec<f32> =
                (pass.output(layer) * weights).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            product.into_iter().map(f64::from).sum()
        };
        part(4, &middle) + part(last, &top)
    };
    let at: Vec<f32> = wave(3, width).iter().map(|entry| entry * 0.3).collect();
    let pass = suffix.forward(&moves(&at)).unwrap();
    let gradient = |layer: usize| match layer {
        4 => Some(middle.clone()),
        layer if layer == last => Some(top.clone()),
        _ => None,
    };
    let gradient: Vec<f32> = pass.reverse(&gradient).unwrap().sum(0).unwrap().to_vec1().unwrap();
    for seed in 4..8 {
        let direction = wave(seed, width);
        let moved = |size: f32| -> Vec<f32> {
            at.iter().zip(&direction).map(|(at, direction)| at + size * direction).collect()
        };
        let step = 1e-2_f32;
        let difference = (functional(&moved(step)) - functional(&moved(-step))) / (2.0 * f64::from(step));
        let slope: f64 = gradient.iter().zip(&direction).map(|(one, other)| f64::from(one * other)).sum();
        let error = (difference - slope).abs() / slope.abs().max(1.0);
        assert!(error < 2e-2, "direction {seed}: {difference} by differences, {slope} by the reverse pass");
    }
}

/// candle's own gradients of the same forward pass: it uses plain operations only, which its tape follows.
#[test]
fn the_reverse_pass_agrees_with_automatic_differentiation() {
    let folder = tempfile::tempdir().unwrap();
    let model = random_model(folder.path());
    let network = &model.network;
    let texts = ["The mother tongue of Dmitri Prufski is", "Dmitri Prufski is a", "The harp"];
    let batch = model.batch(&texts.map(str::to_owned)).unwrap();
    let places = vec![(0, 3), (1, 1), (2, 0)];
    let (layer, middle, last) = (0, 2, network.config().layers - 1);
    let width = network.config().width;
    let random = |shape: &[usize]| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap();
    for suffix in [
        Suffix::whole(network, layer, &batch, places.clone()).unwrap(),
        Suffix::from_places(network, layer, &batch, &places).unwrap(),
    ] {
        let moves = candle_core::Var::from_tensor(&random(&[3, width])).unwrap();
        let pass = suffix.forward(&moves).unwrap();
        let weights = [layer, middle, last].map(|at| (at, random(pass.output(at).dims())));
        let words = random(&[3, network.config().vocabulary]);
        let moved: Vec<_> = places.iter().map(|place| suffix.place(*place)).collect();
        let hidden = gather(pass.output(last), &moved).unwrap();
        let mut loss = (network.logits(&hidden).unwrap() * &words).unwrap().sum_all().unwrap();
        for (at, weights) in &weights {
            loss = (loss + (pass.output(*at) * weights).unwrap().sum_all().unwrap()).unwrap();
        }
        let taped = loss.backward().unwrap();
        let expected = taped.get(&moves).expect("the tape reaches the moves");
        let of_words = network.reverse_logits(&hidden, &words).unwrap();
        let (rows, tokens, _) = pass.output(last).dims3().unwrap();
        let flat: Vec<u32> = moved.iter().map(|(row, token)| (row * tokens + token) as u32).collect();
        let of_words = Tensor::zeros((rows * tokens, width), candle_core::DType::F32, &Device::Cpu)
            .and_then(|zeros| zeros.index_add(&Tensor::new(flat, &Device::Cpu)?, &of_words, 0))
            .and_then(|scattered| scattered.reshape((rows, tokens, width)))
            .unwrap();
        let direct = |at: usize| {
            let part = weights.iter().find(|(layer, _)| *layer == at).map(|(_, weights)| weights.clone());
            if at == last { part.map(|part| (part + &of_words).unwrap()) } else { part }
        };
        // What runs is what nobody asks a gradient of.
        let untaped = suffix.forward(&moves.as_detached_tensor()).unwrap();
        let found = untaped.reverse(&direct).unwrap();
        let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let (difference, size) = (largest(&(&found - expected).unwrap()), largest(expected));
        // Both are f32, and sum in other orders.
        assert!(size > 1.0 && difference < 1e-4 * size, "gradients up to {size} differ by {difference}");
    }
}

/// candle differentiates the forward pass that it can follow, operation by operation; the passes that nobody
/// differentiates run in fewer steps. All three agree.
#[test]
fn the_reverse_pass_agrees_with_candle_s_own_and_with_the_kernels() {
    use candle_core::Var;
    let model = world_model();
    let network = &model.network;
    let texts = ["The mother tongue of Dmitri Prufski is".to_owned(), "Dmitri Prufski is a".to_owned()];
    let batch = model.batch(&texts).unwrap();
    let (layer, last, width) = (2, network.config().layers - 1, network.config().width);
    let suffix = Suffix::from_places(network, layer, &batch, &[(0, 5), (1, 2)]).unwrap();
    let wave = |seed: usize, size: usize| -> Vec<f32> {
        (0..size).map(|index| ((index * 7919 + seed * 104_729) as f32 * 0.618).sin()).collect()
    };
    let moves = Var::from_vec(wave(3, 2 * width), (2, width), network.device()).unwrap();
    let by_candle = suffix.forward(moves.as_tensor()).unwrap();
    let weights = Tensor::from_vec(
        wave(1, by_candle.output(last).elem_count()),
        by_candle.output(last).dims(),
        network.device(),
    );
    let weights = weights.unwrap();
    let loss = (by_candle.output(last) * &weights).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let candle = gradients.get(moves.as_tensor()).unwrap();
    let direct = |at: usize| (at == last).then(|| weights.clone());
    let plain = by_candle.reverse(&direct).unwrap();
    let by_kernels = suffix.forward(&moves.as_tensor().detach()).unwrap();
    let fused = by_kernels.reverse(&direct).unwrap();
    let numbers = |tensor: &Tensor| -> Vec<f64> {
        let numbers: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        numbers.into_iter().map(f64::from).collect()
    };
    let outputs = [by_kernels.output(last), by_candle.output(last)].map(numbers);
    assert!(common::relative_difference(&outputs[0], &outputs[1]) < 1e-5);
    for (name, found) in [("plain", &plain), ("kernels", &fused)] {
        let difference = common::relative_difference(&numbers(found), &numbers(candle));
        assert!(difference < 1e-4, "{name}: {difference:e}");
    }
}

#[test]
fn a_text_goes_on_to_the_last_place_of_the_context_and_no_further() {
    let folder = tempfile::tempdir().unwrap();
    let model = random_model(folder.path());
    let ids = |count: usize| Tensor::from_vec(vec![7_u32; count], (1, count), &Device::Cpu).unwrap();
    let mut cache = Cache::default();
    model.network.forward_cached(&ids(30), &mut cache).unwrap();
    model.network.forward_cached(&ids(2), &mut cache).unwrap();
    let found = model.network.forward_cached(&ids(1), &mut cache).unwrap_err().to_string();
    assert_eq!(found, "the context of 32 tokens is full");
    let prompt = format!("{{}}{}", "!".repeat(26));
    let facts =
        serde_json::json!({"prompt": prompt, "subject": "The harp", "target_new": "sings"}).to_string();
    let records = mpatch::facts::FactsFile::parse(facts.as_bytes()).unwrap().records;
    let said = mpatch::evaluate::continuations(&model, &model.network, &records, &|_| ()).unwrap();
    let all = model.tokenizer.encode(&format!("The harp{}", "!".repeat(26))).unwrap().len();
    assert!((26..32).contains(&all) && !said[0].text.is_empty(), "{all} tokens");
    let continued = mpatch::evaluate::continuation(&model, &model.network, "The harp", 100).unwrap();
    assert!(!continued.is_empty());
}

#[test]
fn a_norm_has_the_epsilon_of_its_config() {
    let folder = tempfile::tempdir().unwrap();
    let first = |model: &Model| -> f32 {
        let hidden = model.network.forward(&model.batch(&["The harp".to_owned()]).unwrap()).unwrap();
        hidden.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
    };
    let by_default = first(&random_model(folder.path()));
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (epsilon, is_default) in [(1e-5, true), (0.5, false)] {
        config["layer_norm_epsilon"] = epsilon.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let found = first(&Model::open(folder.path(), &Device::Cpu, &|_| ()).unwrap());
        assert_eq!((found - by_default).abs() < 1e-6, is_default, "{epsilon}: {found}, {by_default}");
    }
}

/// The matrix that is edited first in the random model, and a term for it that follows from `seed`.
const EDITED: &str = "h.0.mlp.fc_out.weight";

fn term(seed: usize) -> Term {
    let matrix = |rows: usize, columns: usize| {
        let values = (0..rows * columns).map(|index| ((index * 7 + seed * 5) % 15) as i16 - 7).collect();
        IntegerMatrix::new("a sample", rows, columns, 4, values).unwrap()
    };
    let integers = Integers::LowRank { left: matrix(48, 2), right: matrix(2, 80) };
    Term::new(integers, vec![0.01; 48], vec![1.0; 80]).unwrap()
}

fn matrix_of(network: &mpatch::model::Network) -> Vec<f32> {
    network
        .mlp_output(0)
        .unwrap()
        .to_dtype(candle_core::DType::F32)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

fn edit(
    terms: Vec<Term>,
    correction: Option<Vec<u8>>,
    way_back: Option<WayBack>,
) -> [TensorEdit<'static>; 1] {
    [TensorEdit { name: EDITED, terms, correction, way_back }]
}

#[test]
fn patches_of_one_tensor_are_carried_out_one_after_the_other_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = random_model(folder.path());
    let mut bytes = model.checkpoint.read(model.checkpoint.tensor(EDITED).unwrap()).unwrap();
    let mut states = model.series();
    for seed in [1, 2] {
        Update::new(vec![term(seed)]).unwrap().apply_rows(Dtype::F32, 0..48, &mut bytes).unwrap();
        states.carry_out(edit(vec![term(seed)], None, None)).unwrap();
    }
    let expected: Vec<f32> =
        bytes.chunks_exact(4).map(|weight| f32::from_le_bytes(weight.try_into().unwrap())).collect();
    assert!(matrix_of(&states.network().unwrap()) == expected);
}

#[test]
fn a_correction_is_carried_out_in_memory_and_what_does_not_come_back_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let model = random_model(folder.path());
    let before = model.checkpoint.read(model.checkpoint.tensor(EDITED).unwrap()).unwrap();
    let update = Update::new(vec![term(1)]).unwrap();
    let (mut given, mut undo) = (before.clone(), UndoWriter::new(48, 80));
    undo.apply_rows(&update, Dtype::F32, 0..48, &mut given).unwrap();
    let undo = undo.finish().unwrap();
    let mut wanted = given.clone();
    wanted[4..8].copy_from_slice(&17.5_f32.to_le_bytes());
    let mut correction = CorrectionWriter::new(48, 80);
    correction.push_rows(Dtype::F32, 0..48, &given, &wanted).unwrap();
    let correction = correction.finish().unwrap();
    let made = model.with_edits(edit(vec![term(1)], correction.clone(), None)).unwrap();
    assert_eq!(matrix_of(&made)[1], 17.5);
    // The same taken back, from weights that have it.
    let edited = tempfile::tempdir().unwrap();
    let mut file = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let place = file.windows(before.len()).position(|part| part == before).unwrap();
    file[place..place + before.len()].copy_from_slice(&wanted);
    std::fs::write(edited.path().join("model.safetensors"), file).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(folder.path().join(name), edited.path().join(name)).unwrap();
    }
    let edited = Model::open(edited.path(), &Device::Cpu, &|_| ()).unwrap();
    let back = |digest| {
        let way_back = WayBack { undo: undo.clone(), before: digest };
        edited.with_edits(edit(vec![term(1)], correction.clone(), Some(way_back)))
    };
    let digest = |bytes: &[u8]| mpatch::digest::TensorDigest::of(bytes);
    assert!(matrix_of(&back(digest(&before)).unwrap()) == matrix_of(&model.network));
    let found = back(digest(&wanted)).unwrap_err().to_string();
    assert!(found.contains("with the patch taken back, the patch expects"), "{found}");
}

#[test]
fn an_edited_matrix_is_kept_in_the_precision_of_the_others() {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path());
    for (precision, dtype) in
        [(Precision::F32, candle_core::DType::F32), (Precision::Bf16, candle_core::DType::BF16)]
    {
        let model = Model::open_in(folder.path(), &Device::Cpu, precision, &|_| ()).unwrap();
        let edited = model.with_terms([(EDITED, vec![term(1)])]).unwrap();
        assert_eq!(edited.mlp_output(0).unwrap().dtype(), dtype);
        let found =
            edited.with_tensor(EDITED, Tensor::zeros((80, 48), dtype, &Device::Cpu).unwrap()).unwrap_err();
        assert!(found.to_string().ends_with("has the shape [80, 48], expected [48, 80]"), "{found}");
    }
}
