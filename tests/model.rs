//! GPT-J against Hugging Face's own numbers, and the reverse pass against finite differences.
#![cfg(feature = "edit")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use candle_core::Tensor;
use common::{npz, world, world_model};
use mpatch::model::{Batch, Suffix, gather};

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
    use mpatch::model::Cache;
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
