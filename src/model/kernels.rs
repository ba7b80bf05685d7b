//! What stands between the matrix products, on a CPU: each step in one pass over its numbers.
//!
//! candle builds a layer norm, a softmax, a rotation or a GELU from a dozen operations, each with a tensor of its own,
//! and its `tanh` and `exp` take one number at a time: on small models that is most of the time. The functions here
//! take candle's tensors and give new ones. They are used where nobody asks candle for a gradient, on a CPU
//! ([`fits`]); everywhere else the same formulas run as candle's operations, in `block` and `reverse`, and a test
//! compares the two.
//!
//! Every row is summed in its own order, and what a mask hides is left out of the sums: a row gives the same bits on
//! any number of threads.
#![allow(
    clippy::needless_range_loop,
    reason = "rows that go side by side read as their formula by one index"
)]

use candle_core::{DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::block::{GELU_CUBIC, GELU_FACTOR};

/// Whether the functions here take these tensors.
pub(crate) fn fits(tensors: &[&Tensor]) -> bool {
    tensors
        .iter()
        .all(|tensor| tensor.device().is_cpu() && tensor.dtype() == DType::F32 && !tensor.track_op())
}

/// From this many numbers on the rows are shared out between threads.
const SHARED_FROM: usize = 64 * 1024;

/// The numbers of a tensor, which is made contiguous if it is not.
struct Numbers(Tensor);

impl Numbers {
    fn of(tensor: &Tensor) -> Result<Self> {
        Ok(Self(tensor.contiguous()?))
    }

    fn read<R>(&self, work: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
        let (storage, layout) = self.0.storage_and_layout();
        let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
            bail!("a tensor on the processor was expected");
        };
        work(&storage.as_slice::<f32>()?[start..end])
    }
}

fn read2<R>(one: &Tensor, other: &Tensor, work: impl FnOnce(&[f32], &[f32]) -> Result<R>) -> Result<R> {
    let (one, other) = (Numbers::of(one)?, Numbers::of(other)?);
    one.read(|one| other.read(|other| work(one, other)))
}

fn read3<R>(
    first: &Tensor,
    second: &Tensor,
    third: &Tensor,
    work: impl FnOnce(&[f32], &[f32], &[f32]) -> Result<R>,
) -> Result<R> {
    let third = Numbers::of(third)?;
    read2(first, second, |first, second| third.read(|third| work(first, second, third)))
}

/// Calls `work` with the index of each row of `rows` and the row, on several threads where that pays.
fn each_row(rows: &mut [f32], width: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let width = width.max(1);
    if rows.len() < SHARED_FROM {
        rows.chunks_mut(width).enumerate().for_each(|(index, row)| work(index, row));
    } else {
        rows.par_chunks_mut(width).enumerate().for_each(|(index, row)| work(index, row));
    }
}

/// The same over two outputs of the same number of rows.
fn each_row2(
    one: (&mut [f32], usize),
    other: (&mut [f32], usize),
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let (one, one_width, other, other_width) = (one.0, one.1.max(1), other.0, other.1.max(1));
    if one.len() + other.len() < SHARED_FROM {
        let pairs = one.chunks_mut(one_width).zip(other.chunks_mut(other_width));
        pairs.enumerate().for_each(|(index, (one, other))| work(index, one, other));
    } else {
        let pairs = one.par_chunks_mut(one_width).zip(other.par_chunks_mut(other_width));
        pairs.enumerate().for_each(|(index, (one, other))| work(index, one, other));
    }
}

fn tensor(numbers: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(numbers, shape.into(), &Device::Cpu)
}

/// Sums are kept in this many parts, so that they can be formed side by side; the order is the same everywhere.
const LANES: usize = 16;

#[inline(always)]
fn sum_of(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0_f32; LANES];
    let whole = count / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(first + lane);
        }
    }
    let rest: f32 = (whole..count).map(&term).sum();
    lanes.iter().sum::<f32>() + rest
}

/// `e^x` to one unit in the last place or so, for `x` between -87 and 88, where it is cut; in steps that a compiler can
/// do for several numbers at once.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Added and taken away, it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = x - whole * LN_2_HIGH - whole * LN_2_LOW;
    // The coefficients of Cephes' `expf`.
    let mut series = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        series = series * rest + coefficient;
    }
    let fraction = series * rest * rest + rest + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    fraction * power
}

/// What a layer norm gives over the last dimension, in the shapes of `x`: standardised values, the inverse deviation
/// `[.., 1]`, and the scaled output. Two passes, mean first.
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<[Tensor; 3]> {
    let width = weight.elem_count();
    let rows = x.elem_count() / width.max(1);
    let mut inverse_shape = x.dims().to_vec();
    inverse_shape.pop();
    inverse_shape.push(1);
    let mut standardised = vec![0_f32; rows * width];
    let mut inverse = vec![0_f32; rows];
    let mut normal = vec![0_f32; rows * width];
    read3(x, weight, bias, |x, weight, bias| {
        each_row2((&mut standardised, width), (&mut inverse, 1), |row, standardised, inverse| {
            let x = &x[row * width..][..width];
            let mean = sum_of(width, |index| x[index]) / width as f32;
            let square = |index: usize| (x[index] - mean) * (x[index] - mean);
            let variance = sum_of(width, square) / width as f32;
            inverse[0] = 1.0 / (variance + epsilon as f32).sqrt();
            standardised.iter_mut().zip(x).for_each(|(out, x)| *out = (x - mean) * inverse[0]);
        });
        each_row(&mut normal, width, |row, normal| {
            let standardised = &standardised[row * width..][..width];
            for index in 0..width {
                normal[index] = standardised[index] * weight[index] + bias[index];
            }
        });
        Ok(())
    })?;
    Ok([tensor(standardised, x.dims())?, tensor(inverse, inverse_shape)?, tensor(normal, x.dims())?])
}

/// The gradient of a layer norm's input, added to `passed`, which goes past it.
pub(crate) fn layer_norm_reverse(
    passed: Option<&Tensor>,
    normal: &Tensor,
    weight: &Tensor,
    standardised: &Tensor,
    inverse_deviation: &Tensor,
) -> Result<Tensor> {
    let width = weight.elem_count();
    let mut gradient = vec![0_f32; normal.elem_count()];
    read2(weight, inverse_deviation, |weight, inverse| {
        read2(normal, standardised, |normal, standardised| {
            each_row(&mut gradient, width, |row, gradient| {
                let normal = &normal[row * width..][..width];
                let standardised = &standardised[row * width..][..width];
                let scaled = |index: usize| normal[index] * weight[index];
                let mean = sum_of(width, scaled) / width as f32;
                let along = sum_of(width, |index| scaled(index) * standardised[index]) / width as f32;
                for index in 0..width {
                    gradient[index] = (scaled(index) - mean - standardised[index] * along) * inverse[row];
                }
            });
            Ok(())
        })
    })?;
    if let Some(passed) = passed {
        Numbers::of(passed)?.read(|passed| {
            add_to(&mut gradient, width, passed);
            Ok(())
        })?;
    }
    tensor(gradient, normal.dims())
}

fn add_to(sum: &mut [f32], width: usize, term: &[f32]) {
    each_row(sum, width, |row, sum| {
        sum.iter_mut().zip(&term[row * width..]).for_each(|(sum, term)| *sum += term);
    });
}

/// GELU of `product + bias`, and its slope there.
pub(crate) fn gelu(product: &Tensor, bias: &Tensor) -> Result<[Tensor; 2]> {
    let width = bias.elem_count();
    let mut values = vec![0_f32; product.elem_count()];
    let mut slopes = vec![0_f32; product.elem_count()];
    let (cubic, factor) = ((GELU_CUBIC * GELU_FACTOR) as f32, GELU_FACTOR as f32);
    read2(product, bias, |product, bias| {
        each_row2((&mut values, width), (&mut slopes, width), |row, values, slopes| {
            let product = &product[row * width..][..width];
            for index in 0..width {
                let x = product[index] + bias[index];
                let square = x * x;
                // (1 + tanh u) / 2 = 1 / (1 + e^-2u)
                let half = 1.0 / (1.0 + exp(-2.0 * x * (square * cubic + factor)));
                values[index] = x * half;
                slopes[index] = half + 2.0 * x * half * (1.0 - half) * (square * (3.0 * cubic) + factor);
            }
        });
        Ok(())
    })?;
    Ok([tensor(values, product.dims())?, tensor(slopes, product.dims())?])
}

/// `one * other`, number by number.
pub(crate) fn product(one: &Tensor, other: &Tensor) -> Result<Tensor> {
    let width = one.dims().last().copied().unwrap_or(1);
    let mut products = vec![0_f32; one.elem_count()];
    read2(one, other, |one, other| {
        each_row(&mut products, width, |row, products| {
            let factors = one[row * width..].iter().zip(&other[row * width..]);
            products.iter_mut().zip(factors).for_each(|(product, (one, other))| *product = one * other);
        });
        Ok(())
    })?;
    tensor(products, one.dims())
}

/// `x + attended + product + bias`: what leaves a block.
pub(crate) fn block_output(x: &Tensor, attended: &Tensor, product: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let width = bias.elem_count();
    let mut output = vec![0_f32; x.elem_count()];
    read2(x, attended, |x, attended| {
        read2(product, bias, |product, bias| {
            each_row(&mut output, width, |row, output| {
                let (x, attended) = (&x[row * width..][..width], &attended[row * width..][..width]);
                let product = &product[row * width..][..width];
                for index in 0..width {
                    output[index] = (x[index] + attended[index]) + (product[index] + bias[index]);
                }
            });
            Ok(())
        })
    })?;
    tensor(output, x.dims())
}

/// The sum of several tensors of one shape.
pub(crate) fn sum(terms: &[&Tensor]) -> Result<Tensor> {
    let Some((first, others)) = terms.split_first() else { bail!("nothing to sum") };
    let width = first.dims().last().copied().unwrap_or(1);
    let mut total = Numbers::of(first)?.read(|numbers| Ok(numbers.to_vec()))?;
    for term in others {
        Numbers::of(term)?.read(|term| {
            add_to(&mut total, width, term);
            Ok(())
        })?;
    }
    tensor(total, first.dims())
}

/// Angles of the tokens of a pass, and how many leading features of a head turn by them.
pub(crate) struct Angles<'a> {
    /// `[tokens, features / 2]`, or `[rows, 1, tokens, features / 2]`.
    pub(crate) sine: &'a Tensor,
    pub(crate) cosine: &'a Tensor,
    pub(crate) features: usize,
    /// 1 forwards; -1 turns back, for gradients.
    pub(crate) way: f32,
}

/// Turns the leading features of `head`, in pairs of neighbours.
#[inline(always)]
fn turn(head: &mut [f32], sine: &[f32], cosine: &[f32], way: f32) {
    for (pair, (sine, cosine)) in head.chunks_exact_mut(2).zip(sine.iter().zip(cosine)) {
        let (even, odd, sine) = (pair[0], pair[1], sine * way);
        pair[0] = even * cosine - odd * sine;
        pair[1] = odd * cosine + even * sine;
    }
}

/// Where the angles of `(row, token)` begin in their table.
fn angle_start(table: &Tensor, tokens: usize, half: usize) -> impl Fn(usize, usize) -> usize + Sync {
    let by_row = table.rank() == 4;
    move |row, token| if by_row { (row * tokens + token) * half } else { token * half }
}

/// `[rows, tokens, width]` as `[rows, heads, before + tokens, width / heads]`: turned by `angles` if there are any,
/// and behind the `before` tokens of `past` `[rows, heads, before, width / heads]`.
pub(crate) fn split_heads(
    x: &Tensor,
    heads: usize,
    angles: Option<&Angles<'_>>,
    past: Option<&Tensor>,
) -> Result<Tensor> {
    let (rows, tokens, width) = x.dims3()?;
    let head_width = width / heads;
    let before = past.map_or(Ok(0), |past| past.dim(2))?;
    let mut split = vec![0_f32; rows * heads * (before + tokens) * head_width];
    let empty = tensor(vec![], 0)?;
    let (sine, cosine) = angles.map_or((&empty, &empty), |angles| (angles.sine, angles.cosine));
    let half = angles.map_or(0, |angles| angles.features / 2);
    let start = angle_start(sine, tokens, half);
    read2(x, past.unwrap_or(&empty), |x, past| {
        read2(sine, cosine, |sine, cosine| {
            each_row(&mut split, (before + tokens) * head_width, |index, split| {
                let (row, head) = (index / heads, index % heads);
                let (kept, own) = split.split_at_mut(before * head_width);
                kept.copy_from_slice(&past[index * before * head_width..][..before * head_width]);
                for (token, own) in own.chunks_exact_mut(head_width).enumerate() {
                    own.copy_from_slice(
                        &x[(row * tokens + token) * width + head * head_width..][..head_width],
                    );
                    if let Some(angles) = angles {
                        let at = start(row, token);
                        turn(&mut own[..2 * half], &sine[at..][..half], &cosine[at..][..half], angles.way);
                    }
                }
            });
            Ok(())
        })
    })?;
    tensor(split, (rows, heads, before + tokens, head_width))
}

/// `[rows, heads, tokens, head_width]` as `[rows, tokens, heads * head_width]`, turned by `angles` if there are any.
pub(crate) fn merge_heads(x: &Tensor, angles: Option<&Angles<'_>>) -> Result<Tensor> {
    let (rows, heads, tokens, head_width) = x.dims4()?;
    let width = heads * head_width;
    let mut merged = vec![0_f32; rows * tokens * width];
    let empty = tensor(vec![], 0)?;
    let (sine, cosine) = angles.map_or((&empty, &empty), |angles| (angles.sine, angles.cosine));
    let half = angles.map_or(0, |angles| angles.features / 2);
    let start = angle_start(sine, tokens, half);
    read3(x, sine, cosine, |x, sine, cosine| {
        each_row(&mut merged, width, |index, merged| {
            let (row, token) = (index / tokens, index % tokens);
            for (head, merged) in merged.chunks_exact_mut(head_width).enumerate() {
                let from = ((row * heads + head) * tokens + token) * head_width;
                merged.copy_from_slice(&x[from..][..head_width]);
                if let Some(angles) = angles {
                    let at = start(row, token);
                    turn(&mut merged[..2 * half], &sine[at..][..half], &cosine[at..][..half], angles.way);
                }
            }
        });
        Ok(())
    })?;
    tensor(merged, (rows, tokens, width))
}

/// `softmax(scores * scale + mask)` over the last dimension of `[rows, heads, tokens, seen]`; the mask, 0 or -inf, is
/// `[tokens, seen]` or `[rows, 1, tokens, seen]`, and leaves something to be seen in every row.
pub(crate) fn softmax(scores: &Tensor, scale: f64, mask: &Tensor) -> Result<Tensor> {
    let (_, heads, tokens, seen) = scores.dims4()?;
    let by_row = mask.rank() == 4;
    let mut weights = vec![0_f32; scores.elem_count()];
    read2(scores, mask, |scores, mask| {
        each_row(&mut weights, seen, |index, weights| {
            let token = index % tokens;
            let mask_row = if by_row { index / (heads * tokens) * tokens + token } else { token };
            let mask = &mask[mask_row * seen..][..seen];
            let scores = &scores[index * seen..][..seen];
            let visible = |place: &usize| mask[*place] == 0.0;
            let mut largest = f32::NEG_INFINITY;
            for place in (0..seen).filter(visible) {
                weights[place] = scores[place] * scale as f32;
                largest = if weights[place] > largest { weights[place] } else { largest };
            }
            let mut total = 0.0;
            for place in (0..seen).filter(visible) {
                weights[place] = exp(weights[place] - largest);
                total += weights[place];
            }
            weights.iter_mut().for_each(|weight| *weight /= total);
        });
        Ok(())
    })?;
    tensor(weights, scores.dims())
}

/// The gradient of the scores, from that of their softmax `weights`.
pub(crate) fn softmax_reverse(gradient: &Tensor, weights: &Tensor, scale: f64) -> Result<Tensor> {
    let seen = weights.dims().last().copied().unwrap_or(1);
    let mut scores = vec![0_f32; weights.elem_count()];
    read2(gradient, weights, |gradient, weights| {
        each_row(&mut scores, seen, |row, scores| {
            let (gradient, weights) = (&gradient[row * seen..][..seen], &weights[row * seen..][..seen]);
            // What is hidden has the weight 0, and adds nothing in any order.
            let along: f32 = gradient.iter().zip(weights).map(|(gradient, weight)| gradient * weight).sum();
            for place in 0..seen {
                scores[place] = weights[place] * (gradient[place] - along) * scale as f32;
            }
        });
        Ok(())
    })?;
    tensor(scores, weights.dims())
}

/// `log softmax(product + bias)` over the last dimension, and the softmax itself.
pub(crate) fn log_softmax(product: &Tensor, bias: &Tensor) -> Result<[Tensor; 2]> {
    let width = bias.elem_count();
    let mut logarithms = vec![0_f32; product.elem_count()];
    let mut probabilities = vec![0_f32; product.elem_count()];
    read2(product, bias, |product, bias| {
        each_row2((&mut logarithms, width), (&mut probabilities, width), |row, logarithms, probabilities| {
            let product = &product[row * width..][..width];
            for index in 0..width {
                logarithms[index] = product[index] + bias[index];
            }
            let largest = logarithms
                .iter()
                .copied()
                .fold(f32::NEG_INFINITY, |one, other| if other > one { other } else { one });
            for index in 0..width {
                logarithms[index] -= largest;
                probabilities[index] = exp(logarithms[index]);
            }
            let total = sum_of(width, |index| probabilities[index]);
            let (shift, share) = (total.ln(), 1.0 / total);
            for index in 0..width {
                logarithms[index] -= shift;
                probabilities[index] *= share;
            }
        });
        Ok(())
    })?;
    Ok([tensor(logarithms, product.dims())?, tensor(probabilities, product.dims())?])
}

/// The gradient of `-share * log p(target)` by row with respect to the logits, from the rows' `probabilities`.
pub(crate) fn target_gradient(probabilities: &Tensor, targets: &[u32], shares: &[f32]) -> Result<Tensor> {
    let width = probabilities.dims().last().copied().unwrap_or(1);
    let mut gradient = Numbers::of(probabilities)?.read(|numbers| Ok(numbers.to_vec()))?;
    each_row(&mut gradient, width, |row, gradient| {
        gradient.iter_mut().for_each(|entry| *entry *= shares[row]);
        gradient[targets[row] as usize] -= shares[row];
    });
    tensor(gradient, probabilities.dims())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_that_of_the_standard_library() {
        let mut worst = 0.0_f64;
        for step in 0..200_000 {
            let x = -87.0 + step as f32 * (175.0 / 200_000.0);
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
        }
        assert!(worst < 2e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) > 0.0 && exp(f32::INFINITY).is_finite(), "cut at the ends");
    }

    #[test]
    fn sums_have_one_order_whatever_their_length() {
        for count in [0, 1, 15, 16, 17, 100] {
            let expected: f32 = (0..count).map(|index| index as f32).sum();
            assert_eq!(sum_of(count, |index| index as f32), expected);
        }
    }
}
