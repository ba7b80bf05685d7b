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

use super::block::{
    Activations, Block, Frame, GELU_CUBIC, GELU_FACTOR, LayerNorm, Past, Rotary, Standardised, Turn, times,
};
use super::{Batch, ModelError, Network, gather};

/// The blocks above a layer, and the clean hidden states that enter them.
pub struct Suffix<'a> {
    network: &'a Network,
    /// First block of the suffix.
    first: usize,
    /// Clean output of the layer below, `[rows, tokens, width]`.
    hidden: Tensor,
    frame: Frame,
    /// What the tokens see of those before them, by block; empty where the rows are whole.
    past: Vec<Past>,
    /// Position of each row's first token.
    starts: Vec<usize>,
    /// Where the moved hidden states stand, one per row: `(row, token)`.
    places: Vec<(usize, usize)>,
    /// 1 at the places, 0 elsewhere, `[rows, tokens, 1]`.
    mask: Tensor,
}

impl<'a> Suffix<'a> {
    /// The blocks above `layer`, over whole rows; `places` tells where each row's hidden state is moved.
    ///
    /// # Errors
    /// [`ModelError::Layer`] or [`ModelError::Device`].
    pub fn whole(
        network: &'a Network,
        layer: usize,
        batch: &Batch,
        places: Vec<(usize, usize)>,
    ) -> Result<Self, ModelError> {
        let hidden = network.forward_to(batch, layer, &mut |_, _| Ok(()))?;
        let frame = network.rotary.frame(0, batch.tokens())?;
        let starts = vec![0; batch.rows()];
        Self::new(network, layer, hidden, frame, vec![], starts, places)
    }

    /// The same over the tokens from each row's place on. What stands before a moved hidden state does not feel it,
    /// so its keys and values are computed once, and the rows are aligned at their places.
    ///
    /// # Errors
    /// [`ModelError::Layer`] or [`ModelError::Device`].
    pub fn from_places(
        network: &'a Network,
        layer: usize,
        batch: &Batch,
        places: &[(usize, usize)],
    ) -> Result<Self, ModelError> {
        let starts: Vec<usize> = places.iter().map(|(_, token)| *token).collect();
        let before = starts.iter().copied().max().unwrap_or(0);
        let lengths = batch.lengths().iter().zip(&starts).map(|(length, start)| length - start);
        let tokens = lengths.max().unwrap_or(1);
        let below = network.forward_to(batch, layer, &mut |_, _| Ok(()))?;
        let hidden = from_starts(&below, &starts, tokens)?;
        let past = past_above(network, layer, below, before)?;
        let frame = network.rotary.frame_from(&starts, before, tokens)?;
        let places = (0..starts.len()).map(|row| (row, 0)).collect();
        Self::new(network, layer, hidden, frame, past, starts, places)
    }

    fn new(
        network: &'a Network,
        layer: usize,
        hidden: Tensor,
        frame: Frame,
        past: Vec<Past>,
        starts: Vec<usize>,
        places: Vec<(usize, usize)>,
    ) -> Result<Self, ModelError> {
        network.check_layer(layer)?;
        let (rows, tokens, _) = hidden.dims3()?;
        let mut mask = vec![0_f32; rows * tokens];
        for (row, token) in &places {
            mask[row * tokens + token] = 1.0;
        }
        let mask = Tensor::from_vec(mask, (rows, tokens, 1), hidden.device())?;
        Ok(Self { network, first: layer + 1, hidden, frame, past, starts, places, mask })
    }

    /// The clean hidden states at the places, `[rows, width]`.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn clean(&self) -> Result<Tensor, ModelError> {
        gather(&self.hidden, &self.places)
    }

    /// Where `(row, token)` of the batch stands in the outputs of this suffix.
    pub fn place(&self, (row, token): (usize, usize)) -> (usize, usize) {
        (row, token - self.starts[row])
    }

    /// Runs the suffix with `moves` `[rows, width]` added at the places, one to each row.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn forward(&self, moves: &Tensor) -> Result<SuffixPass<'_>, ModelError> {
        let entered = (&self.hidden + self.mask.broadcast_mul(&moves.unsqueeze(1)?)?)?;
        let mut activations: Vec<Activations> = Vec::with_capacity(self.network.blocks.len() - self.first);
        for (index, block) in self.network.blocks[self.first..].iter().enumerate() {
            let x = activations.last().map_or(&entered, |below| &below.output);
            activations.push(block.forward(x, &self.network.rotary, &self.frame, self.past.get(index))?);
        }
        Ok(SuffixPass { suffix: self, entered, activations })
    }
}

/// Each row's `tokens` vectors from its start on; what lies beyond a row is some vector that nobody reads.
fn from_starts(hidden: &Tensor, starts: &[usize], tokens: usize) -> Result<Tensor, ModelError> {
    let (rows, all, width) = hidden.dims3()?;
    let places: Vec<(usize, usize)> = starts
        .iter()
        .enumerate()
        .flat_map(|(row, start)| (0..tokens).map(move |token| (row, (start + token).min(all - 1))))
        .collect();
    Ok(gather(hidden, &places)?.reshape((rows, tokens, width))?)
}

/// Keys and values of the first `tokens` tokens in every block above `layer`, whose output is `hidden`.
fn past_above(
    network: &Network,
    layer: usize,
    hidden: Tensor,
    tokens: usize,
) -> Result<Vec<Past>, ModelError> {
    if tokens == 0 {
        return Ok(vec![]);
    }
    let frame = network.rotary.frame(0, tokens)?;
    let mut hidden = hidden.narrow(1, 0, tokens)?.contiguous()?;
    let mut past = Vec::with_capacity(network.blocks.len() - layer - 1);
    for block in &network.blocks[layer + 1..] {
        let activations = block.forward(&hidden, &network.rotary, &frame, None)?;
        past.push(Past { keys: activations.key, values: activations.value });
        hidden = activations.output;
    }
    Ok(past)
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

    /// Gradient of the loss with respect to the moves, `[rows, width]`, from its gradients with respect to block
    /// outputs.
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
                let (block, suffix) = (&network.blocks[layer], self.suffix);
                flowing = Some(reverse_block(block, &network.rotary, &suffix.frame, activations, output)?);
            }
        }
        flowing = add(flowing, gradient(self.suffix.first - 1))?;
        let flowing = match flowing {
            Some(flowing) => flowing,
            None => self.entered.zeros_like()?,
        };
        gather(&flowing, &self.suffix.places)
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
    frame: &Frame,
    activations: &Activations,
    output: &Tensor,
) -> candle_core::Result<Tensor> {
    let mlp = reverse_mlp(block, activations, output)?;
    let normal = (mlp + reverse_attention(block, rotary, frame, activations, output)?)?;
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
    let slope = gelu_slope(&activations.before_gelu, &activations.gelu_tanh)?;
    times(&(activated * slope)?, &block.mlp_input.weight)
}

/// Derivative of `gelu(x) = x/2 * (1 + tanh(u))`, `u = sqrt(2/pi) * (x + 0.044715 x^3)`:
/// `(1 + tanh u) / 2 + x/2 * (1 - tanh^2 u) * u'`.
fn gelu_slope(x: &Tensor, tanh: &Tensor) -> candle_core::Result<Tensor> {
    let inner_slope = x.sqr()?.affine(3.0 * GELU_CUBIC * GELU_FACTOR, GELU_FACTOR)?;
    let steep = ((x * tanh.sqr()?.affine(-0.5, 0.5)?)? * inner_slope)?;
    tanh.affine(0.5, 0.5)? + steep
}

fn reverse_attention(
    block: &Block,
    rotary: &Rotary,
    frame: &Frame,
    activations: &Activations,
    output: &Tensor,
) -> candle_core::Result<Tensor> {
    let context = block.split(&times(output, &block.attention_output.weight)?)?;
    let own = activations.attention.dim(3)? - context.dim(2)?;
    let attention_to_own = activations.attention.narrow(3, own, context.dim(2)?)?;
    let value = attention_to_own.t()?.contiguous()?.matmul(&context)?;
    let attention = context.matmul(&activations.value.t()?)?;
    let weighted = (&attention * &activations.attention)?;
    let row_sums = weighted.sum_keepdim(D::Minus1)?;
    let scores = (weighted - activations.attention.broadcast_mul(&row_sums)?)?;
    let head_width = activations.query.dim(D::Minus1)? as f64;
    let scores = (scores / head_width.sqrt())?;
    let query = rotary.turn(&scores.matmul(&activations.key)?, frame, Turn::Back)?;
    // Only the suffix's own tokens move: the gradient of what was kept from before them is not wanted.
    let tokens = scores.dim(2)?;
    let kept = scores.dim(3)? - tokens;
    let own_scores = scores.narrow(3, kept, tokens)?.t()?.contiguous()?;
    let key = rotary.turn(&own_scores.matmul(&activations.query)?, frame, Turn::Back)?;
    let through = |heads: &Tensor, weight: &Tensor| times(&merge(heads)?, weight);
    (through(&query, &block.query.weight)? + through(&key, &block.key.weight)?)?
        + through(&value, &block.value.weight)?
}

/// `[rows, heads, tokens, head_width]` to `[rows, tokens, width]`.
fn merge(heads: &Tensor) -> candle_core::Result<Tensor> {
    heads.transpose(1, 2)?.contiguous()?.flatten_from(2)
}
