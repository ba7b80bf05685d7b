//! One product, one forward pass and one reverse step of a device, beside the same numbers reached another way.

use candle_core::{Device, Tensor};
use faer::Mat;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::{
    Batch, Cache, Model, ModelError, Network, Suffix, gather, log_softmax, scatter, target_gradient,
};

/// Two ways to the same numbers.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// What was computed.
    pub what: &'static str,
    /// What it was compared with.
    pub against: &'static str,
    /// Largest difference, relative to the largest number.
    pub difference: f64,
    /// What a difference may be: far above rounding in f32, far below a fault or arithmetic of fewer bits.
    pub limit: f64,
}

impl Comparison {
    /// Whether they agree. What is no number agrees with nothing.
    pub fn holds(&self) -> bool {
        self.difference <= self.limit
    }

    fn new(what: &'static str, against: &'static str, limit: f64, found: &[f32], expected: &[f64]) -> Self {
        Self { what, against, difference: difference(found, expected), limit }
    }
}

/// `max |found - expected| / max |expected|`; infinite where either is no number, or the sizes differ.
fn difference(found: &[f32], expected: &[f64]) -> f64 {
    let size = expected.iter().map(|entry| entry.abs()).fold(0.0, f64::max);
    let comparable = found.len() == expected.len() && size > 0.0 && size.is_finite();
    if !comparable || found.iter().any(|entry| !entry.is_finite()) {
        return f64::INFINITY;
    }
    let differences =
        found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
    differences.fold(0.0, f64::max) / size
}

/// Texts of different lengths, so that rows are padded.
const TEXTS: [&str; 3] =
    ["The capital of France is the city of Paris", "Paris is a", "Football is played by"];

/// Rounding of f32 sums leaves about 1e-6; TF32, which keeps 10 bits of each factor, about 1e-4.
const PRODUCT_LIMIT: f64 = 1e-5;
/// Rounding grows through the blocks.
const FORWARD_LIMIT: f64 = 1e-4;
const REVERSE_LIMIT: f64 = 1e-3;
/// Central differences of f32 losses keep about three digits.
const SLOPE_LIMIT: f64 = 2e-2;

/// Checks `device`, a model's network on the device under test, against `processor`, the same model on the
/// processor. Where `device` is that model's own network, it is checked against slower ways to the same numbers.
///
/// # Errors
/// [`ModelError`] when the model cannot be run at all.
pub fn compare(processor: &Model, device: &Network) -> Result<Vec<Comparison>, ModelError> {
    let alone = std::ptr::eq(&processor.network, device);
    let texts: Vec<Vec<u32>> =
        TEXTS.iter().map(|text| processor.tokenizer.encode(text)).collect::<Result<_, _>>()?;
    let found = Pass::run(device, &texts)?;
    let again = Pass::run(device, &texts)?;
    let (forward, reverse) = if alone {
        let slope = Comparison {
            what: "reverse step",
            against: "finite differences",
            difference: slope_error(device, &texts, &found.gradient)?,
            limit: SLOPE_LIMIT,
        };
        let stepped = token_by_token(device, &texts)?;
        (Comparison::new("forward pass", "token by token", FORWARD_LIMIT, &found.logits, &stepped), slope)
    } else {
        let expected = Pass::run(&processor.network, &texts)?;
        let compared = |what, limit, found: &[f32], expected: &[f32]| {
            let expected: Vec<f64> = expected.iter().map(|entry| f64::from(*entry)).collect();
            Comparison::new(what, "the processor", limit, found, &expected)
        };
        (
            compared("forward pass", FORWARD_LIMIT, &found.logits, &expected.logits),
            compared("reverse step", REVERSE_LIMIT, &found.gradient, &expected.gradient),
        )
    };
    Ok(vec![product(device.device())?, forward, reverse, repetition(&found, &again)])
}

/// `[33, 4096] * [4096, 515]` in f32 beside the product of the same numbers in f64.
fn product(device: &Device) -> Result<Comparison, ModelError> {
    let (rows, depth, columns) = (33, 4096, 515);
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut matrix =
        |size: usize| -> Vec<f32> { (0..size).map(|_| random.random_range(-1.0..1.0)).collect() };
    let (left, right) = (matrix(rows * depth), matrix(columns * depth));
    // The second factor lies transposed in memory, as weights do.
    let on_device = |values: &[f32], rows: usize| Tensor::from_slice(values, (rows, depth), device);
    let found = on_device(&left, rows)?.matmul(&on_device(&right, columns)?.t()?)?;
    let found: Vec<f32> = found.flatten_all()?.to_vec1()?;
    let wide = |values: &[f32], rows: usize| {
        Mat::<f64>::from_fn(rows, depth, |row, column| f64::from(values[row * depth + column]))
    };
    let exact = wide(&left, rows) * wide(&right, columns).transpose();
    let expected: Vec<f64> = (0..rows * columns).map(|at| exact[(at / columns, at % columns)]).collect();
    Ok(Comparison::new("product", "f64", PRODUCT_LIMIT, &found, &expected))
}

/// The same inputs on the same device give the same bits, which a patch that is made again is promised.
fn repetition(one: &Pass, other: &Pass) -> Comparison {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let same = bits(&one.logits) == bits(&other.logits) && bits(&one.gradient) == bits(&other.gradient);
    let difference = if same { 0.0 } else { f64::INFINITY };
    Comparison { what: "both again", against: "their own bits", difference, limit: 0.0 }
}

/// The logits of each row's last token, and with moved hidden states the gradient of a loss like a value's.
struct Pass {
    /// `[rows, vocabulary]`.
    logits: Vec<f32>,
    /// With respect to the moves, `[rows, width]`.
    gradient: Vec<f32>,
}

impl Pass {
    fn run(network: &Network, texts: &[Vec<u32>]) -> Result<Self, ModelError> {
        let logits = last_logits(network, &Batch::new(texts, network.config().positions, network.device())?)?;
        Ok(Self { logits: logits.flatten_all()?.to_vec1()?, gradient: gradient(network, texts)? })
    }
}

fn last_logits(network: &Network, batch: &Batch) -> Result<Tensor, ModelError> {
    let last: Vec<_> = batch.lengths().iter().enumerate().map(|(row, length)| (row, length - 1)).collect();
    network.logits(&gather(&network.forward(batch)?, &last)?)
}

/// The same logits with each row alone and one token after the other, over cached keys and values.
fn token_by_token(network: &Network, texts: &[Vec<u32>]) -> Result<Vec<f64>, ModelError> {
    let mut logits = Vec::new();
    for text in texts {
        let mut cache = Cache::default();
        let mut hidden = None;
        for id in text {
            let id = Tensor::from_slice(&[*id], (1, 1), network.device())?;
            hidden = Some(network.forward_cached(&id, &mut cache)?);
        }
        if let Some(hidden) = hidden {
            let row: Vec<f32> = network.logits(&hidden)?.flatten_all()?.to_vec1()?;
            logits.extend(row.into_iter().map(f64::from));
        }
    }
    Ok(logits)
}

/// Half way up, each row's first token but one is moved, as a value's would be.
fn suffix<'a>(network: &'a Network, texts: &[Vec<u32>]) -> Result<Suffix<'a>, ModelError> {
    let batch = Batch::new(texts, network.config().positions, network.device())?;
    let places: Vec<_> =
        texts.iter().enumerate().map(|(row, text)| (row, usize::from(text.len() > 1))).collect();
    Suffix::from_places(network, (network.config().layers - 1) / 2, &batch, &places)
}

/// Fixed numbers between -1 and 1.
fn random(network: &Network, seed: u64, shape: (usize, usize)) -> Result<Tensor, ModelError> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|_| random.random_range(-1.0..1.0)).collect();
    Ok(Tensor::from_vec(values, shape, network.device())?)
}

/// How much a target weighs beside the words, of which there are far more.
const TARGET_SHARE: f32 = 20.0;

/// What each row is to say: its own first token.
fn targets(texts: &[Vec<u32>]) -> Vec<u32> {
    texts.iter().filter_map(|text| text.first().copied()).collect()
}

/// The gradient of `sum(words * logits) - share * sum(log p(target))` at the rows' last tokens.
fn gradient(network: &Network, texts: &[Vec<u32>]) -> Result<Vec<f32>, ModelError> {
    let (width, last) = (network.config().width, network.config().layers - 1);
    let suffix = suffix(network, texts)?;
    let pass = suffix.forward(&random(network, 2, (texts.len(), width))?)?;
    let places = last_places(&suffix, texts);
    let output = pass.output(last);
    let hidden = gather(output, &places)?;
    let words = random(network, 3, (texts.len(), network.config().vocabulary))?;
    let [_, probabilities] = network.probabilities(&hidden)?;
    let of_targets = target_gradient(&probabilities, &targets(texts), &vec![TARGET_SHARE; texts.len()])?;
    let of_hidden = network.reverse_logits(&hidden, &(words + of_targets)?)?;
    let of_output = scatter(&of_hidden, &places, output)?;
    let reversed = pass.reverse(&|layer| (layer == last).then(|| of_output.clone()))?;
    Ok(reversed.flatten_all()?.to_vec1()?)
}

fn last_places(suffix: &Suffix<'_>, texts: &[Vec<u32>]) -> Vec<(usize, usize)> {
    texts.iter().enumerate().map(|(row, text)| suffix.place((row, text.len() - 1))).collect()
}

/// How far the slope along `gradient` is from what central differences of the loss say, relative to the slope.
fn slope_error(network: &Network, texts: &[Vec<u32>], gradient: &[f32]) -> Result<f64, ModelError> {
    let (width, last) = (network.config().width, network.config().layers - 1);
    let suffix = suffix(network, texts)?;
    let words = random(network, 3, (texts.len(), network.config().vocabulary))?;
    let (at, along) = (
        random(network, 2, (texts.len(), width))?,
        Tensor::from_slice(gradient, (texts.len(), width), network.device())?,
    );
    let norm = gradient.iter().map(|entry| f64::from(*entry).powi(2)).sum::<f64>().sqrt();
    let sum_at = |step: f64| -> Result<f64, ModelError> {
        let pass = suffix.forward(&(&at + (&along * (step / norm))?)?)?;
        let hidden = gather(pass.output(last), &last_places(&suffix, texts))?;
        let logits = network.logits(&hidden)?;
        let terms: Vec<f32> = (&logits * &words)?.flatten_all()?.to_vec1()?;
        let logarithms: Vec<Vec<f32>> = log_softmax(&logits)?.to_vec2()?;
        let picked = logarithms.iter().zip(targets(texts)).map(|(row, target)| row[target as usize]);
        let targets = f64::from(TARGET_SHARE) * picked.map(f64::from).sum::<f64>();
        Ok(terms.into_iter().map(f64::from).sum::<f64>() - targets)
    };
    // Long enough to stand above the rounding of the sums, short enough for the slope to stay.
    let step = 1e-2 * (texts.len() as f64).sqrt();
    let slope = (sum_at(step)? - sum_at(-step)?) / (2.0 * step);
    Ok(((slope - norm) / norm).abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_agrees_with_nothing() {
        assert_eq!(difference(&[1.0, -2.0], &[1.0, -4.0]), 0.5);
        for (found, expected) in [
            (&[f32::NAN][..], &[1.0][..]),
            (&[1.0], &[f64::NAN]),
            (&[f32::INFINITY], &[f64::INFINITY]),
            (&[1.0, 2.0], &[1.0]),
            (&[0.0], &[0.0]),
        ] {
            let comparison = Comparison::new("x", "y", 1e30, found, expected);
            assert!(!comparison.holds(), "{found:?} {expected:?}");
        }
    }

    #[test]
    fn a_device_that_computes_something_else_is_found_out() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let model = Model::open(&folder, &Device::Cpu, &|_| ()).expect("the fixture is a model");
        let agree = |device: &Network| -> Vec<(&str, bool)> {
            let compared = compare(&model, device).expect("a processor runs it");
            compared.iter().map(|comparison| (comparison.what, comparison.holds())).collect()
        };
        assert!(agree(&model.network).into_iter().all(|(_, holds)| holds));
        assert!(agree(&model.network.clone()).into_iter().all(|(_, holds)| holds));
        // A hundred weights of 65,536 are doubled.
        let layer = model.network.config().layers - 2;
        let weight = model.network.mlp_output(layer).expect("a layer");
        let mut values: Vec<f32> = weight.flatten_all().and_then(|flat| flat.to_vec1()).expect("floats");
        values.iter_mut().step_by(655).for_each(|value| *value *= 2.0);
        let off = Tensor::from_vec(values, weight.dims(), &Device::Cpu).expect("as many");
        let off = model.network.with_tensor(&model.network.mlp_output_name(layer), off).expect("a weight");
        let found = agree(&off);
        assert_eq!(found[..2], [("product", true), ("forward pass", false)]);
        assert_eq!(found[3], ("both again", true));
    }

    #[test]
    fn a_product_of_fewer_bits_is_told_from_rounding() {
        assert!(product(&Device::Cpu).expect("a processor multiplies").holds());
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut values =
            |size: usize| -> Vec<f32> { (0..size).map(|_| random.random_range(-1.0..1.0)).collect() };
        let (left, right) = (values(4096), values(4096 * 64));
        let narrow = |value: f32| f32::from_bits((value.to_bits() + (1 << 12)) & !((1 << 13) - 1));
        let sum = |column: usize, round: fn(f32) -> f32| -> f64 {
            let column = &right[column * 4096..][..4096];
            left.iter()
                .zip(column)
                .map(|(one, other)| f64::from(round(*one)) * f64::from(round(*other)))
                .sum()
        };
        let exact: Vec<f64> = (0..64).map(|column| sum(column, |value| value)).collect();
        let found: Vec<f32> = (0..64).map(|column| sum(column, narrow) as f32).collect();
        assert!(!Comparison::new("TF32", "f64", PRODUCT_LIMIT, &found, &exact).holds());
    }
}
