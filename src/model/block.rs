//! One GPT-J block, forwards: attention and MLP side by side on one layer norm.
//!
//! ```text
//! normal = layer_norm(x)
//! output = x + attention(normal) + mlp(normal)          mlp(n) = W_out * gelu(W_in * n + b_in) + b_out
//! ```

use std::ops::Range;

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::{ModelError, kernels};

/// A matrix `[out, in]` and, where the model has one, a bias `[out]`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
}

impl Linear {
    /// `x * weight^T` over the last dimension.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        over_last_dimension(x, |x| {
            let stands_first = stands_first(&self.weight, x);
            let product = |rows: &Range<usize>| {
                let weight = widened(&self.weight, rows, x)?;
                if stands_first { weight.matmul(&x.t()?) } else { x.matmul(&weight.t()?) }
            };
            let product = match parts(&self.weight, x).as_slice() {
                [all] => product(all)?,
                parts => {
                    let products = parts.par_iter().map(product).collect::<candle_core::Result<Vec<_>>>()?;
                    Tensor::cat(&products, usize::from(!stands_first))?
                }
            };
            if stands_first { product.t()?.contiguous() } else { Ok(product) }
        })
    }

    /// `x * weight^T + bias` over the last dimension.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = self.product(x)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// `x * matrix` over the last dimension of `x`.
pub(crate) fn times(x: &Tensor, matrix: &Tensor) -> candle_core::Result<Tensor> {
    over_last_dimension(x, |x| {
        let product =
            |rows: &Range<usize>| x.narrow(1, rows.start, rows.len())?.matmul(&widened(matrix, rows, x)?);
        let parts = parts(matrix, x);
        parts[1..].iter().try_fold(product(&parts[0])?, |sum, rows| sum + product(rows)?)
    })
}

/// One product of two matrices, `[rows, features]` and another, in the shape that `x` has but for its last dimension.
fn over_last_dimension(
    x: &Tensor,
    product: impl FnOnce(&Tensor) -> candle_core::Result<Tensor>,
) -> candle_core::Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let features = shape.pop().unwrap_or(1);
    let rows: usize = shape.iter().product();
    let product = product(&x.reshape((rows, features))?)?;
    shape.push(product.dim(D::Minus1)?);
    product.reshape(shape)
}

/// Weights that are widened at once on a processor: little enough to stay in its caches, and in memory that was used
/// before. A matrix of GPT-J's as a whole, 268 MB in f32, took longer to widen, for the pages of its new memory, than
/// to multiply a fact's tokens by.
const WIDENED_WEIGHTS: usize = 1 << 20;

/// Whether `weight * x^T`, turned around, is less work than `x * weight^T` with the same sums: on a processor the
/// product would turn a large matrix around to multiply few rows by it.
fn stands_first(weight: &Tensor, x: &Tensor) -> bool {
    const WEIGHTS_MIN: usize = 1 << 20;
    const ROWS_MAX: usize = 256;
    let is_large =
        weight.elem_count() >= WEIGHTS_MIN && x.dims().first().is_some_and(|rows| *rows <= ROWS_MAX);
    is_large && weight.device().is_cpu()
}

/// The ranges of rows in which a matrix is multiplied, at least one: all at once, unless a processor has to widen it
/// for `x`.
fn parts(matrix: &Tensor, x: &Tensor) -> Vec<Range<usize>> {
    let (rows, columns) = matrix.dims2().unwrap_or_default();
    let is_widened = matrix.dtype() != x.dtype() && matrix.device().is_cpu();
    let part = if is_widened { (WIDENED_WEIGHTS / columns.max(1)).max(1) } else { rows.max(1) };
    (0..rows.max(1)).step_by(part).map(|start| start..rows.min(start + part)).collect()
}

/// Some rows of a matrix in the type of `x`.
fn widened(matrix: &Tensor, rows: &Range<usize>, x: &Tensor) -> candle_core::Result<Tensor> {
    matrix.narrow(0, rows.start, rows.len())?.to_dtype(x.dtype())
}

/// Scale and shift of a layer norm.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

/// A vector brought to mean 0 and variance 1, and what it was divided by.
pub(crate) struct Standardised {
    /// `[.., width]`.
    pub(crate) values: Tensor,
    /// `1 / sqrt(variance + epsilon)`, `[.., 1]`.
    pub(crate) inverse_deviation: Tensor,
}

impl LayerNorm {
    /// Two passes, mean first: the one-pass formula loses the small features of a hidden state with large outliers.
    fn standardise(&self, x: &Tensor) -> candle_core::Result<Standardised> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let inverse_deviation = (variance + self.epsilon)?.sqrt()?.recip()?;
        Ok(Standardised { values: centred.broadcast_mul(&inverse_deviation)?, inverse_deviation })
    }

    /// `standardise(x) * weight + bias`, and what it was made from.
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<(Tensor, Standardised)> {
        if kernels::fits(&[x, &self.weight, &self.bias]) {
            let [values, inverse_deviation, normal] =
                kernels::layer_norm(x, &self.weight, &self.bias, self.epsilon)?;
            return Ok((normal, Standardised { values, inverse_deviation }));
        }
        let standardised = self.standardise(x)?;
        let normal = standardised.values.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?;
        Ok((normal, standardised))
    }
}

/// Sines and cosines of the rotary positions, `[positions, rotary / 2]` each.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    pub(crate) sine: Tensor,
    pub(crate) cosine: Tensor,
    /// Leading features of a head that turn.
    pub(crate) features: usize,
}

/// Which way [`Rotary::turn`] goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Forward,
    /// The transpose, which is the inverse: for gradients.
    Back,
}

impl Rotary {
    /// Angles as Hugging Face computes them: `position / 10000^(2i / rotary)`, in f32.
    pub(crate) fn new(
        positions: usize,
        features: usize,
        device: &candle_core::Device,
    ) -> candle_core::Result<Self> {
        let half = features / 2;
        let mut angles = Vec::with_capacity(positions * half);
        for position in 0..positions {
            for pair in 0..half {
                let frequency = 1.0 / 10000_f32.powf((2 * pair) as f32 / features as f32);
                angles.push(position as f32 * frequency);
            }
        }
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            Tensor::from_vec(values, (positions, half), device)
        };
        Ok(Self { sine: table(f32::sin)?, cosine: table(f32::cos)?, features })
    }

    /// The frame of rows whose first token stands at position `before`, after `before` tokens that all of them see.
    pub(crate) fn frame(&self, before: usize, tokens: usize) -> candle_core::Result<Frame> {
        let seen = before + tokens;
        let visible =
            |token: usize, other: usize| if other <= before + token { 0_f32 } else { f32::NEG_INFINITY };
        let mask = (0..tokens).flat_map(|token| (0..seen).map(move |other| visible(token, other))).collect();
        Ok(Frame {
            sine: self.sine.narrow(0, before, tokens)?,
            cosine: self.cosine.narrow(0, before, tokens)?,
            mask: Tensor::from_vec(mask, (tokens, seen), self.sine.device())?,
        })
    }

    /// The frame of rows that each begin at a position of their own, `starts`: a row sees its own first `start` of
    /// the `before` tokens that are kept for all rows, and of its `tokens` those up to each one.
    pub(crate) fn frame_from(
        &self,
        starts: &[usize],
        before: usize,
        tokens: usize,
    ) -> candle_core::Result<Frame> {
        let (rows, device) = (starts.len(), self.sine.device());
        let last = self.sine.dim(0)? - 1;
        // Padding may reach past the last position; what stands there is never read.
        let positions: Vec<u32> = starts
            .iter()
            .flat_map(|start| (0..tokens).map(move |token| (start + token).min(last) as u32))
            .collect();
        let index = Tensor::from_vec(positions, rows * tokens, device)?;
        let table =
            |table: &Tensor| table.index_select(&index, 0)?.reshape((rows, 1, tokens, self.features / 2));
        let mut mask = Vec::with_capacity(rows * tokens * (before + tokens));
        for &start in starts {
            for token in 0..tokens {
                let kept = (0..before).map(|other| other < start);
                let own = (0..tokens).map(|other| other <= token);
                mask.extend(kept.chain(own).map(|visible| if visible { 0_f32 } else { f32::NEG_INFINITY }));
            }
        }
        let mask = Tensor::from_vec(mask, (rows, 1, tokens, before + tokens), device)?;
        Ok(Frame { sine: table(&self.sine)?, cosine: table(&self.cosine)?, mask })
    }

    /// The angles of a frame's tokens, for [`kernels`].
    fn angles<'a>(&self, frame: &'a Frame, way: Turn) -> kernels::Angles<'a> {
        let way = if way == Turn::Back { -1.0 } else { 1.0 };
        kernels::Angles { sine: &frame.sine, cosine: &frame.cosine, features: self.features, way }
    }

    /// `[rows, tokens, width]` as `[rows, heads, tokens, head_width]`, turned, and behind the tokens of `past`.
    fn split_turned(
        &self,
        x: &Tensor,
        heads: usize,
        frame: &Frame,
        past: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        if kernels::fits(&[x]) {
            return kernels::split_heads(x, heads, Some(&self.angles(frame, Turn::Forward)), past);
        }
        behind(past, self.turn(&split(x, heads, None)?, frame, Turn::Forward)?)
    }

    /// `[rows, heads, tokens, head_width]`, turned back, as `[rows, tokens, width]`.
    pub(crate) fn merge_turned_back(&self, x: &Tensor, frame: &Frame) -> candle_core::Result<Tensor> {
        if kernels::fits(&[x]) {
            return kernels::merge_heads(x, Some(&self.angles(frame, Turn::Back)));
        }
        merge(&self.turn(x, frame, Turn::Back)?)
    }

    /// Turns each pair of neighbouring features (2i, 2i + 1) of `x` `[rows, heads, tokens, head_width]`.
    fn turn(&self, x: &Tensor, frame: &Frame, way: Turn) -> candle_core::Result<Tensor> {
        let (rows, heads, tokens, width) = x.dims4()?;
        let half = self.features / 2;
        let sine = if way == Turn::Back { frame.sine.neg()? } else { frame.sine.clone() };
        let pairs = x.narrow(3, 0, self.features)?.contiguous()?.reshape((rows, heads, tokens, half, 2))?;
        let even = pairs.narrow(4, 0, 1)?.squeeze(4)?;
        let odd = pairs.narrow(4, 1, 1)?.squeeze(4)?;
        let turned_even = (even.broadcast_mul(&frame.cosine)? - odd.broadcast_mul(&sine)?)?;
        let turned_odd = (odd.broadcast_mul(&frame.cosine)? + even.broadcast_mul(&sine)?)?;
        let turned =
            Tensor::stack(&[turned_even, turned_odd], 4)?.reshape((rows, heads, tokens, self.features))?;
        if width == self.features {
            return Ok(turned);
        }
        // candle joins along the last dimension in transposed order, which its matmul does not take.
        Tensor::cat(&[turned, x.narrow(3, self.features, width - self.features)?], 3)?.contiguous()
    }
}

/// Where the tokens of a pass stand, and what each may look at.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Of each token's angles, `[tokens, rotary / 2]` or `[rows, 1, tokens, rotary / 2]`.
    sine: Tensor,
    cosine: Tensor,
    /// 0 where a token may look and -inf where not, `[tokens, seen]` or `[rows, 1, tokens, seen]`.
    mask: Tensor,
}

impl Frame {
    /// The frame of some of its rows, `index` u32; one that is the same for all rows stays.
    pub(crate) fn rows(&self, index: &Tensor) -> candle_core::Result<Self> {
        if self.mask.rank() == 2 {
            return Ok(self.clone());
        }
        let of = |tensor: &Tensor| tensor.index_select(index, 0);
        Ok(Self { sine: of(&self.sine)?, cosine: of(&self.cosine)?, mask: of(&self.mask)? })
    }
}

/// Keys and values of the tokens seen so far, `[rows, heads, tokens, head_width]` each.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// One block's weights.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) norm: LayerNorm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) mlp_input: Linear,
    pub(crate) mlp_output: Linear,
    pub(crate) heads: usize,
}

/// What one block computed, kept for the reverse pass and for taps.
pub(crate) struct Activations {
    /// The standardised input of the layer norm.
    pub(crate) standardised: Standardised,
    /// Turned queries and keys, and values, `[rows, heads, tokens, head_width]`.
    pub(crate) query: Tensor,
    pub(crate) key: Tensor,
    pub(crate) value: Tensor,
    /// Attention weights, `[rows, heads, tokens, all tokens]`.
    pub(crate) attention: Tensor,
    /// What the slope of the MLP's activation is made from.
    pub(crate) gelu: Gelu,
    /// The input of `mlp.fc_out`, which is MEMIT's key, `[rows, tokens, inner]`.
    pub(crate) mlp_output_input: Tensor,
    /// The block's output, `[rows, tokens, width]`.
    pub(crate) output: Tensor,
}

/// What the slope of a GELU is made from, `[rows, tokens, inner]`.
pub(crate) enum Gelu {
    /// The slope itself.
    Slope(Tensor),
    /// What went in, and the tanh within.
    Inside { x: Tensor, tanh: Tensor },
}

impl Block {
    /// Runs the block over `x` `[rows, tokens, width]`, which stands in `frame` and continues `past` if there is one.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rotary: &Rotary,
        frame: &Frame,
        past: Option<&Past>,
    ) -> Result<Activations, ModelError> {
        let (normal, standardised) = self.norm.forward(x)?;
        let query = rotary.split_turned(&self.query.forward(&normal)?, self.heads, frame, None)?;
        let past_keys = past.map(|past| &past.keys);
        let key = rotary.split_turned(&self.key.forward(&normal)?, self.heads, frame, past_keys)?;
        let value = split(&self.value.forward(&normal)?, self.heads, past.map(|past| &past.values))?;
        let attention = attention_weights(&query, &key, &frame.mask)?;
        let attended = self.attention_output.forward(&merge(&attention.matmul(&value)?)?)?;
        let (mlp_output_input, gelu) = self.activate(&normal)?;
        let output = self.output(x, &attended, &mlp_output_input)?;
        Ok(Activations { standardised, query, key, value, attention, gelu, mlp_output_input, output })
    }

    /// GELU of the MLP's first product.
    fn activate(&self, normal: &Tensor) -> candle_core::Result<(Tensor, Gelu)> {
        if let Some(bias) = self.mlp_input.bias.as_ref().filter(|bias| kernels::fits(&[normal, bias])) {
            let [values, slope] = kernels::gelu(&self.mlp_input.product(normal)?, bias)?;
            return Ok((values, Gelu::Slope(slope)));
        }
        let x = self.mlp_input.forward(normal)?;
        let (values, tanh) = gelu(&x)?;
        Ok((values, Gelu::Inside { x, tanh }))
    }

    /// `x + attended + mlp`.
    fn output(&self, x: &Tensor, attended: &Tensor, activated: &Tensor) -> candle_core::Result<Tensor> {
        if let Some(bias) = self.mlp_output.bias.as_ref().filter(|bias| kernels::fits(&[x, activated, bias]))
        {
            return kernels::block_output(x, attended, &self.mlp_output.product(activated)?, bias);
        }
        (x + attended)? + self.mlp_output.forward(activated)?
    }
}

/// `[rows, tokens, width]` as `[rows, heads, tokens, head_width]`, behind the tokens of `past`.
pub(crate) fn split(x: &Tensor, heads: usize, past: Option<&Tensor>) -> candle_core::Result<Tensor> {
    if kernels::fits(&[x]) {
        return kernels::split_heads(x, heads, None, past);
    }
    let (rows, tokens, width) = x.dims3()?;
    let split = x.reshape((rows, tokens, heads, width / heads))?.transpose(1, 2)?.contiguous()?;
    behind(past, split)
}

/// `[rows, heads, tokens, head_width]` as `[rows, tokens, width]`.
pub(crate) fn merge(x: &Tensor) -> candle_core::Result<Tensor> {
    if kernels::fits(&[x]) {
        return kernels::merge_heads(x, None);
    }
    x.transpose(1, 2)?.contiguous()?.flatten_from(2)
}

fn behind(past: Option<&Tensor>, own: Tensor) -> candle_core::Result<Tensor> {
    match past {
        Some(past) => Tensor::cat(&[past, &own], 2),
        None => Ok(own),
    }
}

/// `softmax(query * key^T / sqrt(head_width) + mask)`.
fn attention_weights(query: &Tensor, key: &Tensor, mask: &Tensor) -> Result<Tensor, ModelError> {
    let head_width = query.dim(D::Minus1)? as f64;
    let scores = query.matmul(&key.t()?)?;
    if kernels::fits(&[&scores]) {
        return Ok(kernels::softmax(&scores, head_width.sqrt().recip(), mask)?);
    }
    let scores = (scores / head_width.sqrt())?.broadcast_add(mask)?;
    let largest = scores.max_keepdim(D::Minus1)?;
    let weights = scores.broadcast_sub(&largest)?.exp()?;
    Ok(weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?)
}

/// `gelu(x) = x/2 * (1 + tanh(u))` and the `tanh(u)` that its slope needs again,
/// with `u = sqrt(2/pi) * (x + 0.044715 x^3)`.
fn gelu(x: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
    let tanh = (x * x.sqr()?.affine(GELU_CUBIC * GELU_FACTOR, GELU_FACTOR)?)?.tanh()?;
    let gelu = (x * tanh.affine(0.5, 0.5)?)?;
    Ok((gelu, tanh))
}

impl Gelu {
    /// Derivative of `gelu(x) = x/2 * (1 + tanh(u))`, `u = sqrt(2/pi) * (x + 0.044715 x^3)`:
    /// `(1 + tanh u) / 2 + x/2 * (1 - tanh^2 u) * u'`.
    pub(crate) fn slope(&self) -> candle_core::Result<Tensor> {
        let (x, tanh) = match self {
            Self::Slope(slope) => return Ok(slope.clone()),
            Self::Inside { x, tanh } => (x, tanh),
        };
        let inner_slope = x.sqr()?.affine(3.0 * GELU_CUBIC * GELU_FACTOR, GELU_FACTOR)?;
        let steep = ((x * tanh.sqr()?.affine(-0.5, 0.5)?)? * inner_slope)?;
        tanh.affine(0.5, 0.5)? + steep
    }
}

/// `sqrt(2 / pi)`.
pub(crate) const GELU_FACTOR: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// Weight of the cube in gelu's argument.
pub(crate) const GELU_CUBIC: f64 = 0.044715;

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn wave(rows: usize, columns: usize, step: f32) -> Tensor {
        let entries = (0..rows * columns).map(|index| (index as f32 * step).sin()).collect();
        Tensor::from_vec(entries, (rows, columns), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_large_matrix_gives_few_rows_what_it_gives_many() {
        let weight = wave(1_100, 1_024, 0.618);
        let x = wave(300, 1_024, 0.71);
        let few = x.narrow(0, 0, 7).unwrap();
        assert_eq!([stands_first(&weight, &x), stands_first(&weight, &few)], [false, true]);
        let linear = Linear { weight, bias: None };
        let (found, expected) = (linear.product(&few).unwrap(), linear.product(&x).unwrap());
        assert_eq!(found.dims(), [7, 1_100]);
        let expected = expected.narrow(0, 0, 7).unwrap();
        for (found, expected) in numbers(&found).iter().zip(numbers(&expected)) {
            assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
        }
    }

    #[test]
    fn a_matrix_widened_in_parts_gives_the_products_of_the_whole() {
        // Two parts, and one that is not full.
        let (out, input) = (1_100, WIDENED_WEIGHTS / 512);
        let narrow = wave(out, input, 0.618).to_dtype(DType::BF16).unwrap();
        let wide = narrow.to_dtype(DType::F32).unwrap();
        let (x, y) = (wave(3, input, 0.71), wave(3, out, 0.37));
        assert_eq!([parts(&narrow, &x).len(), parts(&wide, &x).len()], [3, 1]);
        let product = |weight: &Tensor| Linear { weight: weight.clone(), bias: None }.product(&x).unwrap();
        for (found, expected) in
            [(product(&narrow), product(&wide)), (times(&y, &narrow).unwrap(), y.matmul(&wide).unwrap())]
        {
            assert_eq!(found.dims(), expected.dims());
            for (found, expected) in numbers(&found).iter().zip(numbers(&expected)) {
                assert!((found - expected).abs() < 1e-3, "{found} instead of {expected}");
            }
        }
    }
}
