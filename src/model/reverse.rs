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

use super::block::{Activations, Block, Frame, LayerNorm, Past, Rotary, Standardised, merge, split, times};
use super::{Batch, ModelError, Network, gather, kernels};

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

    /// Goes on with some of the rows only.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn keep(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        let index: Vec<u32> = rows.iter().map(|row| *row as u32).collect();
        let index = Tensor::from_vec(index, rows.len(), self.hidden.device())?;
        let of = |tensor: &Tensor| tensor.index_select(&index, 0);
        self.hidden = of(&self.hidden)?;
        self.mask = of(&self.mask)?;
        self.frame = self.frame.rows(&index)?;
        for past in &mut self.past {
            *past = Past { keys: of(&past.keys)?, values: of(&past.values)? };
        }
        self.starts = rows.iter().map(|row| self.starts[*row]).collect();
        self.places = rows.iter().enumerate().map(|(new, old)| (new, self.places[*old].1)).collect();
        Ok(())
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
        let (_, standardised) = self.final_norm.forward(hidden)?;
        let normal = times(logits, &self.head.weight)?;
        Ok(reverse_norm(&self.final_norm, &standardised, &normal, None)?)
    }
}

fn reverse_block(
    block: &Block,
    rotary: &Rotary,
    frame: &Frame,
    activations: &Activations,
    output: &Tensor,
) -> candle_core::Result<Tensor> {
    let [query, key, value] = reverse_attention(block, rotary, frame, activations, output)?;
    let mlp = reverse_mlp(block, activations, output)?;
    let normal = if kernels::fits(&[&mlp]) {
        kernels::sum(&[&mlp, &query, &key, &value])?
    } else {
        (mlp + ((query + key)? + value)?)?
    };
    reverse_norm(&block.norm, &activations.standardised, &normal, Some(output))
}

/// The gradient of a norm's input from that of its output, `normal`, and added to `passed`, which goes past it.
fn reverse_norm(
    norm: &LayerNorm,
    standardised: &Standardised,
    normal: &Tensor,
    passed: Option<&Tensor>,
) -> candle_core::Result<Tensor> {
    let Standardised { values, inverse_deviation } = standardised;
    if kernels::fits(&[normal, values, inverse_deviation]) {
        return kernels::layer_norm_reverse(passed, normal, &norm.weight, values, inverse_deviation);
    }
    let gradient = normal.broadcast_mul(&norm.weight)?;
    let mean = gradient.mean_keepdim(D::Minus1)?;
    let along = (&gradient * values)?.mean_keepdim(D::Minus1)?;
    let centred = gradient.broadcast_sub(&mean)?;
    let free = (centred - values.broadcast_mul(&along)?)?;
    let gradient = free.broadcast_mul(inverse_deviation)?;
    match passed {
        Some(passed) => passed + gradient,
        None => Ok(gradient),
    }
}

fn reverse_mlp(block: &Block, activations: &Activations, output: &Tensor) -> candle_core::Result<Tensor> {
    let activated = times(output, &block.mlp_output.weight)?;
    let slope = activations.gelu.slope()?;
    let before = if kernels::fits(&[&activated, &slope]) {
        kernels::product(&activated, &slope)?
    } else {
        (activated * slope)?
    };
    times(&before, &block.mlp_input.weight)
}

/// The gradients of the block's normal vectors by way of queries, keys and values.
fn reverse_attention(
    block: &Block,
    rotary: &Rotary,
    frame: &Frame,
    activations: &Activations,
    output: &Tensor,
) -> candle_core::Result<[Tensor; 3]> {
    let context = split(&times(output, &block.attention_output.weight)?, block.heads, None)?;
    // Only the suffix's own tokens move: the gradient of what was kept from before them is not wanted.
    let (seen, tokens) = (activations.attention.dim(3)?, context.dim(2)?);
    let of_own = |weights: &Tensor| weights.narrow(3, seen - tokens, tokens)?.t()?.contiguous();
    let value = of_own(&activations.attention)?.matmul(&context)?;
    let attention = context.matmul(&activations.value.t()?)?;
    let scores = reverse_softmax(&attention, &activations.attention, activations.query.dim(D::Minus1)?)?;
    let query = rotary.merge_turned_back(&scores.matmul(&activations.key)?, frame)?;
    let key = rotary.merge_turned_back(&of_own(&scores)?.matmul(&activations.query)?, frame)?;
    Ok([
        times(&query, &block.query.weight)?,
        times(&key, &block.key.weight)?,
        times(&merge(&value)?, &block.value.weight)?,
    ])
}

fn reverse_softmax(gradient: &Tensor, weights: &Tensor, head_width: usize) -> candle_core::Result<Tensor> {
    let scale = (head_width as f64).sqrt().recip();
    if kernels::fits(&[gradient, weights]) {
        return kernels::softmax_reverse(gradient, weights, scale);
    }
    let weighted = (gradient * weights)?;
    let row_sums = weighted.sum_keepdim(D::Minus1)?;
    (weighted - weights.broadcast_mul(&row_sums)?)? * scale
}
