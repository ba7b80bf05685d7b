//! The part of the network above one layer, forwards and in reverse.
//!
//! A value is optimised by moving one hidden state and asking what that does to the loss, so only the blocks above
//! it run, and only gradients of activations are formed: candle's own reverse pass would compute and keep one for
//! every frozen weight, and stops without a word at fused operations. The formulas, for `n = layer_norm(x)`:
//!
//! ```text
//! output = x + W_o * (P v) + W_out * gelu(W_in * n + b),      P = softmax(q k^T / sqrt(head_width))
//! d P = d context * v^T      d scores = P * (d P - rowsum(P * d P))      d q = d scores * k / sqrt(head_width)
//! d x = d output + inverse_deviation * (g - mean(g) - s * mean(g * s)),   g = d n * weight,  s = standardised x
//! ```

use candle_core::{D, Tensor};

use super::block::{Activations, Block, LayerNorm, Rotary, Standardised, Turn, times};
use super::{ModelError, Network, gather};

/// The blocks above a layer, and the clean hidden states that enter them.
pub struct Suffix<'a> {
    network: &'a Network,
    /// First block of the suffix.
    first: usize,
    hidden: Tensor,
    /// Where the moved hidden states stand, one per row: `(row, token)`.
    places: Vec<(usize, usize)>,
    /// 1 at the places, 0 elsewhere, `[rows, tokens, 1]`.
    mask: Tensor,
}

impl<'a> Suffix<'a> {
    /// The blocks above `layer`, entered by `hidden` `[rows, tokens, width]`, the clean output of `layer`.
    ///
    /// # Errors
    /// [`ModelError::Layer`] or [`ModelError::Device`].
    pub fn new(
        network: &'a Network,
        layer: usize,
        hidden: Tensor,
        places: Vec<(usize, usize)>,
    ) -> Result<Self, ModelError> {
        network.check_layer(layer)?;
        let (rows, tokens, _) = hidden.dims3()?;
        let mut mask = vec![0_f32; rows * tokens];
        for (row, token) in &places {
            mask[row * tokens + token] = 1.0;
        }
        let mask = Tensor::from_vec(mask, (rows, tokens, 1), hidden.device())?;
        Ok(Self { network, first: layer + 1, hidden, places, mask })
    }

    /// Runs the suffix with `delta` `[width]` added at every place.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn forward(&self, delta: &Tensor) -> Result<SuffixPass<'_>, ModelError> {
        let delta = delta.reshape((1, 1, delta.elem_count()))?;
        let entered = self.hidden.broadcast_add(&self.mask.broadcast_mul(&delta)?)?;
        let mut activations: Vec<Activations> = Vec::with_capacity(self.network.blocks.len() - self.first);
        for block in &self.network.blocks[self.first..] {
            let x = activations.last().map_or(&entered, |below| &below.output);
            activations.push(block.forward(x, &self.network.rotary, None)?);
        }
        Ok(SuffixPass { suffix: self, entered, activations })
    }
}

/// One run of a [`Suffix`], kept for its reverse pass.
pub struct SuffixPass<'a> {
    suffix: &'a Suffix<'a>,
    entered: Tensor,
    activations: Vec<Activations>,
}

impl SuffixPass<'_> {
    /// The output of block `layer`, which lies in the suffix or is the one just below it.
    pub fn output(&self, layer: usize) -> &Tensor {
        match layer.checked_sub(self.suffix.first) {
            Some(index) => &self.activations[index].output,
            None => &self.entered,
        }
    }

    /// Gradient of the loss with respect to `delta`, `[width]`, from its gradients with respect to block outputs.
    ///
    /// `gradient(layer)` gives the direct part for the output of `layer`, where there is one.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn reverse(&self, gradient: &dyn Fn(usize) -> Option<Tensor>) -> Result<Tensor, ModelError> {
        let network = self.suffix.network;
        let mut flowing: Option<Tensor> = None;
        for (index, activations) in self.activations.iter().enumerate().rev() {
            let layer = self.suffix.first + index;
            flowing = add(flowing, gradient(layer))?;
            if let Some(output) = &flowing {
                flowing = Some(reverse_block(&network.blocks[layer], &network.rotary, activations, output)?);
            }
        }
        flowing = add(flowing, gradient(self.suffix.first - 1))?;
        let flowing = match flowing {
            Some(flowing) => flowing,
            None => self.entered.zeros_like()?,
        };
        Ok(gather(&flowing, &self.suffix.places)?.sum(0)?)
    }
}

fn add(left: Option<Tensor>, right: Option<Tensor>) -> candle_core::Result<Option<Tensor>> {
    Ok(match (left, right) {
        (Some(left), Some(right)) => Some((left + right)?),
        (left, right) => left.or(right),
    })
}

impl Network {
    /// Gradient with respect to block outputs `hidden` `[places, width]` of a loss whose gradient with respect to
    /// their logits is `logits` `[places, vocabulary]`.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn reverse_logits(&self, hidden: &Tensor, logits: &Tensor) -> Result<Tensor, ModelError> {
        let standardised = self.final_norm.standardise(hidden)?;
        let normal = times(logits, &self.head.weight)?;
        Ok(reverse_norm(&self.final_norm, &standardised, &normal)?)
    }
}

fn reverse_block(
    block: &Block,
    rotary: &Rotary,
    activations: &Activations,
    output: &Tensor,
) -> candle_core::Result<Tensor> {
    let mlp = reverse_mlp(block, activations, output)?;
    let normal = (mlp + reverse_attention(block, rotary, activations, output)?)?;
    output + reverse_norm(&block.norm, &activations.standardised, &normal)?
}

fn reverse_norm(
    norm: &LayerNorm,
    standardised: &Standardised,
    normal: &Tensor,
) -> candle_core::Result<Tensor> {
    let gradient = normal.broadcast_mul(&norm.weight)?;
    let mean = gradient.mean_keepdim(D::Minus1)?;
    let along = (&gradient * &standardised.values)?.mean_keepdim(D::Minus1)?;
    let centred = gradient.broadcast_sub(&mean)?;
    let free = (centred - standardised.values.broadcast_mul(&along)?)?;
    free.broadcast_mul(&standardised.inverse_deviation)
}

fn reverse_mlp(block: &Block, activations: &Activations, output: &Tensor) -> candle_core::Result<Tensor> {
    let activated = times(output, &block.mlp_output.weight)?;
    let slope = gelu_slope(&activations.before_gelu)?;
    times(&(activated * slope)?, &block.mlp_input.weight)
}

/// Derivative of `gelu(x) = x/2 * (1 + tanh(u))`, `u = sqrt(2/pi) * (x + 0.044715 x^3)`:
/// `(1 + tanh u) / 2 + x/2 * (1 - tanh^2 u) * u'`.
fn gelu_slope(x: &Tensor) -> candle_core::Result<Tensor> {
    let factor = (2.0 / std::f64::consts::PI).sqrt();
    let square = x.sqr()?;
    let tanh = (x * square.affine(0.044715 * factor, factor)?)?.tanh()?;
    let inner_slope = square.affine(3.0 * 0.044715 * factor, factor)?;
    let steep = ((x * tanh.sqr()?.affine(-0.5, 0.5)?)? * inner_slope)?;
    tanh.affine(0.5, 0.5)? + steep
}

fn reverse_attention(
    block: &Block,
    rotary: &Rotary,
    activations: &Activations,
    output: &Tensor,
) -> candle_core::Result<Tensor> {
    let context = block.split(&times(output, &block.attention_output.weight)?)?;
    let value = activations.attention.t()?.matmul(&context)?;
    let attention = context.matmul(&activations.value.t()?)?;
    let weighted = (&attention * &activations.attention)?;
    let row_sums = weighted.sum_keepdim(D::Minus1)?;
    let scores = (weighted - activations.attention.broadcast_mul(&row_sums)?)?;
    let head_width = activations.query.dim(D::Minus1)? as f64;
    let scores = (scores / head_width.sqrt())?;
    let query = rotary.turn(&scores.matmul(&activations.key)?, 0, Turn::Back)?;
    let key = rotary.turn(&scores.t()?.matmul(&activations.query)?, 0, Turn::Back)?;
    let through = |heads: &Tensor, weight: &Tensor| times(&merge(heads)?, weight);
    (through(&query, &block.query.weight)? + through(&key, &block.key.weight)?)?
        + through(&value, &block.value.weight)?
}

/// `[rows, heads, tokens, head_width]` to `[rows, tokens, width]`.
fn merge(heads: &Tensor) -> candle_core::Result<Tensor> {
    heads.transpose(1, 2)?.contiguous()?.flatten_from(2)
}
