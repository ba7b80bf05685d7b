//! Continuing texts, token by token, over cached keys and values.

use candle_core::{D, Tensor};
use rand::Rng;

use super::network::{Cache, Network};
use super::{Batch, ModelError, gather};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sampling {
    /// The most likely token.
    Greedy,
    /// One of the `k` most likely, by their probabilities among themselves (temperature 1).
    TopK(usize),
}

/// Continues each of `prompts` to `length` tokens in all; rows that are longer stay as they are.
///
/// Rows of one length run together, so no row ever sees padding. Rows draw from `random` in their order at each
/// step, so a seed gives one result for one list of prompts.
///
/// # Errors
/// [`ModelError::Text`] for an empty prompt or a length beyond the model's context.
pub(crate) fn generate(
    network: &Network,
    prompts: &[Vec<u32>],
    length: usize,
    sampling: Sampling,
    random: &mut impl Rng,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut rows = prompts.to_vec();
    let mut lengths: Vec<usize> = prompts.iter().map(Vec::len).filter(|prompt| *prompt < length).collect();
    lengths.sort_unstable();
    lengths.dedup();
    for prompt_length in lengths {
        let members: Vec<usize> =
            (0..rows.len()).filter(|&row| prompts[row].len() == prompt_length).collect();
        let group: Vec<_> = members.iter().map(|&row| prompts[row].clone()).collect();
        let continued = continue_group(network, group, length, sampling, random)?;
        for (member, row) in members.into_iter().zip(continued) {
            rows[member] = row;
        }
    }
    Ok(rows)
}

fn continue_group(
    network: &Network,
    mut rows: Vec<Vec<u32>>,
    length: usize,
    sampling: Sampling,
    random: &mut impl Rng,
) -> Result<Vec<Vec<u32>>, ModelError> {
    let mut cache = Cache::default();
    let mut ids = Batch::new(&rows, network.config.positions, &network.device)?.ids().clone();
    while rows[0].len() < length {
        let hidden = network.forward_cached(&ids, &mut cache)?;
        let last = ids.dim(1)? - 1;
        let places: Vec<_> = (0..rows.len()).map(|row| (row, last)).collect();
        let logits = network.logits(&gather(&hidden, &places)?)?;
        let next = choose(&logits, sampling, random)?;
        for (row, token) in rows.iter_mut().zip(&next) {
            row.push(*token);
        }
        ids = Tensor::from_vec(next, (rows.len(), 1), &network.device)?;
    }
    Ok(rows)
}

/// The next token of each row of `logits` `[rows, vocabulary]`.
fn choose(logits: &Tensor, sampling: Sampling, random: &mut impl Rng) -> Result<Vec<u32>, ModelError> {
    match sampling {
        Sampling::Greedy => Ok(logits.argmax(D::Minus1)?.to_vec1()?),
        Sampling::TopK(k) => {
            // All rows at once: from a GPU candle copies a whole tensor to read any part of it.
            let rows: Vec<Vec<f32>> = logits.to_vec2()?;
            Ok(rows.iter().map(|logits| sample_top_k(logits, k, random)).collect())
        }
    }
}

/// Draws one of the `k` largest logits in proportion to its exponential; ties go to the lower id.
fn sample_top_k(logits: &[f32], k: usize, random: &mut impl Rng) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let rank = |id: &u32| (std::cmp::Reverse(ordered(logits[*id as usize])), *id);
    let k = k.clamp(1, order.len());
    order.select_nth_unstable_by_key(k - 1, rank);
    order.truncate(k);
    order.sort_unstable_by_key(rank);
    let largest = f64::from(logits[order[0] as usize]);
    let weights: Vec<f64> =
        order.iter().map(|id| (f64::from(logits[*id as usize]) - largest).exp()).collect();
    let mut draw = random.random::<f64>() * weights.iter().sum::<f64>();
    for (id, weight) in order.iter().zip(&weights) {
        draw -= weight;
        if draw < 0.0 {
            return *id;
        }
    }
    order[k - 1]
}

/// Floats by size, NaN last.
fn ordered(value: f32) -> i64 {
    if value.is_nan() { i64::MIN } else { crate::tensor::Element::ordinal(value) }
}
