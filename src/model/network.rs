//! GPT-J as a whole: embedding, blocks, head; and the weights it is made of, by their names in the checkpoint.

use candle_core::{D, DType, Device, Tensor};

use super::batch::Batch;
use super::block::{Block, LayerNorm, Linear, Past, Rotary};
use super::{Config, ModelError, Precision, kernels};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::tensor::Dtype;

/// A place in the network whose vectors can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// The input of `mlp.fc_out` of a layer, `[rows, tokens, inner]`: what MEMIT calls a key.
    MlpOutputInput(usize),
    /// The output of a layer's block, `[rows, tokens, width]`.
    BlockOutput(usize),
}

/// GPT-J's weights on a device, in f32; the matrices may be stored in fewer bits ([`Precision`]).
///
/// Cloning is cheap: tensors are shared. An edited model is a clone with some tensors exchanged
/// ([`Network::with_tensor`]); the base stays as it is.
#[derive(Debug, Clone)]
pub struct Network {
    pub(crate) config: Config,
    pub(crate) device: Device,
    pub(crate) prefix: &'static str,
    pub(crate) embedding: Tensor,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: LayerNorm,
    pub(crate) head: Linear,
    pub(crate) rotary: Rotary,
}

/// Keys and values of every block for the tokens seen so far.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    past: Vec<Past>,
}

impl Network {
    /// Loads the weights of `config` from `checkpoint`, each made f32 on `device`, or what `precision` says; of the
    /// blocks the first `blocks` only, which are all of them or as many as [`Network::forward_to`] is to run.
    ///
    /// Tensors may carry the prefix `transformer.` or not; what the model has no use for (old `attn.bias` buffers)
    /// is left alone. `progress` is called with the bytes of each tensor read.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] for a missing tensor or a failed read, [`ModelError::Tensor`] for one of another
    /// shape, of a type that is no float, or of a block that `config` does not count.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        device: &Device,
        precision: Precision,
        blocks: usize,
        progress: &dyn Fn(u64),
    ) -> Result<Self, ModelError> {
        let matrices = if precision == Precision::Bf16 { DType::BF16 } else { DType::F32 };
        let prefix = if checkpoint.tensor("transformer.wte.weight").is_ok() { "transformer." } else { "" };
        let loader = Loader { checkpoint, device, prefix, progress };
        no_block_beyond(checkpoint, config.layers)?;
        let (width, inner, words) = (config.width, config.inner, config.vocabulary);
        let epsilon = config.layer_norm_epsilon;
        let norm = |name: &str| {
            let weight = loader.body(&format!("{name}.weight"), &[width])?;
            let bias = loader.body(&format!("{name}.bias"), &[width])?;
            Ok::<_, ModelError>(LayerNorm { weight, bias, epsilon })
        };
        let block = |layer: usize| {
            let matrix = |name: &str, out: usize, input: usize| {
                Ok::<_, ModelError>(Linear {
                    weight: loader
                        .body(&format!("h.{layer}.{name}.weight"), &[out, input])?
                        .to_dtype(matrices)?,
                    bias: None,
                })
            };
            let affine = |name: &str, out: usize, input: usize| {
                let bias = loader.body(&format!("h.{layer}.{name}.bias"), &[out])?;
                Ok::<_, ModelError>(Linear { bias: Some(bias), ..matrix(name, out, input)? })
            };
            Ok::<_, ModelError>(Block {
                norm: norm(&format!("h.{layer}.ln_1"))?,
                query: matrix("attn.q_proj", width, width)?,
                key: matrix("attn.k_proj", width, width)?,
                value: matrix("attn.v_proj", width, width)?,
                attention_output: matrix("attn.out_proj", width, width)?,
                mlp_input: affine("mlp.fc_in", inner, width)?,
                mlp_output: affine("mlp.fc_out", width, inner)?,
                heads: config.heads,
            })
        };
        Ok(Self {
            config: config.clone(),
            device: device.clone(),
            prefix,
            embedding: loader.body("wte.weight", &[words, width])?.to_dtype(matrices)?,
            blocks: (0..blocks.min(config.layers)).map(block).collect::<Result<_, _>>()?,
            final_norm: norm("ln_f")?,
            head: Linear {
                weight: loader.tensor("lm_head.weight", &[words, width])?.to_dtype(matrices)?,
                bias: Some(loader.tensor("lm_head.bias", &[words])?),
            },
            rotary: Rotary::new(config.positions, config.rotary, device)?,
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The checkpoint's name of the matrix that MEMIT edits in `layer`.
    pub fn mlp_output_name(&self, layer: usize) -> String {
        format!("{}h.{layer}.mlp.fc_out.weight", self.prefix)
    }

    /// The matrix that MEMIT edits in `layer`, `[width, inner]`, as it is stored.
    ///
    /// # Errors
    /// [`ModelError::Layer`] when there is no such layer.
    pub fn mlp_output(&self, layer: usize) -> Result<&Tensor, ModelError> {
        self.check_layer(layer)?;
        Ok(&self.blocks[layer].mlp_output.weight)
    }

    /// This model with one weight exchanged; all others are shared.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when `name` is no weight of the model or `tensor` has another shape.
    pub fn with_tensor(&self, name: &str, tensor: Tensor) -> Result<Self, ModelError> {
        let mut edited = self.clone();
        let Some(slot) = edited.slot(name) else {
            return Err(ModelError::Tensor {
                name: name.to_owned(),
                what: "is no weight of this model".to_owned(),
            });
        };
        if slot.dims() != tensor.dims() {
            let what = format!("has the shape {:?}, expected {:?}", tensor.dims(), slot.dims());
            return Err(ModelError::Tensor { name: name.to_owned(), what });
        }
        *slot = tensor;
        Ok(edited)
    }

    /// This model with one weight given by its little-endian bytes in a checkpoint's type, in the precision that it has
    /// where the checkpoint is loaded.
    ///
    /// # Errors
    /// As [`Network::with_tensor`].
    pub(crate) fn with_bytes(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Self, ModelError> {
        let tensor = Tensor::from_raw_buffer(bytes, candle_dtype(dtype), shape, &self.device)?;
        let stored = self.clone().slot(name).map_or(DType::F32, |slot| slot.dtype());
        self.with_tensor(name, tensor.to_dtype(DType::F32)?.to_dtype(stored)?)
    }

    fn slot(&mut self, name: &str) -> Option<&mut Tensor> {
        match name {
            "lm_head.weight" => return Some(&mut self.head.weight),
            "lm_head.bias" => return self.head.bias.as_mut(),
            _ => {}
        }
        let name = name.strip_prefix(self.prefix)?;
        match name {
            "wte.weight" => return Some(&mut self.embedding),
            "ln_f.weight" => return Some(&mut self.final_norm.weight),
            "ln_f.bias" => return Some(&mut self.final_norm.bias),
            _ => {}
        }
        let (layer, name) = name.strip_prefix("h.")?.split_once('.')?;
        let block = self.blocks.get_mut(layer.parse::<usize>().ok()?)?;
        match name {
            "ln_1.weight" => Some(&mut block.norm.weight),
            "ln_1.bias" => Some(&mut block.norm.bias),
            "attn.q_proj.weight" => Some(&mut block.query.weight),
            "attn.k_proj.weight" => Some(&mut block.key.weight),
            "attn.v_proj.weight" => Some(&mut block.value.weight),
            "attn.out_proj.weight" => Some(&mut block.attention_output.weight),
            "mlp.fc_in.weight" => Some(&mut block.mlp_input.weight),
            "mlp.fc_in.bias" => block.mlp_input.bias.as_mut(),
            "mlp.fc_out.weight" => Some(&mut block.mlp_output.weight),
            "mlp.fc_out.bias" => block.mlp_output.bias.as_mut(),
            _ => None,
        }
    }

    pub(crate) fn check_layer(&self, layer: usize) -> Result<(), ModelError> {
        if layer < self.blocks.len() {
            return Ok(());
        }
        Err(ModelError::Layer { layer, layers: self.blocks.len() })
    }

    /// Runs blocks `0..=last` over `batch` and shows every site on the way to `tap`; returns the last block's output.
    ///
    /// # Errors
    /// [`ModelError::Layer`], or whatever `tap` or the device fails with.
    pub fn forward_to(
        &self,
        batch: &Batch,
        last: usize,
        tap: &mut dyn FnMut(Site, &Tensor) -> Result<(), ModelError>,
    ) -> Result<Tensor, ModelError> {
        self.check_layer(last)?;
        let mut hidden = self.embed(batch)?;
        let frame = self.rotary.frame(0, batch.tokens())?;
        for (layer, block) in self.blocks.iter().enumerate().take(last + 1) {
            let activations = block.forward(&hidden, &self.rotary, &frame, None)?;
            tap(Site::MlpOutputInput(layer), &activations.mlp_output_input)?;
            tap(Site::BlockOutput(layer), &activations.output)?;
            hidden = activations.output;
        }
        Ok(hidden)
    }

    /// Runs all blocks; the last block's output `[rows, tokens, width]`.
    ///
    /// # Errors
    /// [`ModelError::Device`]; [`ModelError::Layer`] where not all blocks are loaded.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor, ModelError> {
        self.forward_to(batch, self.config.layers - 1, &mut |_, _| Ok(()))
    }

    /// Continues the rows that `cache` holds by `ids` `[rows, tokens]`; the last block's output for those tokens,
    /// `[rows, tokens, width]`.
    ///
    /// # Errors
    /// [`ModelError::Device`]; [`ModelError::Text`] when the context is full; [`ModelError::Layer`] where not all
    /// blocks are loaded.
    pub fn forward_cached(&self, ids: &Tensor, cache: &mut Cache) -> Result<Tensor, ModelError> {
        self.check_layer(self.config.layers - 1)?;
        let seen = cache.past.first().map_or(Ok(0), |past| past.keys.dim(2))?;
        if seen + ids.dim(1)? > self.config.positions {
            return Err(ModelError::Text {
                what: format!("the context of {} tokens is full", self.config.positions),
            });
        }
        let mut hidden = self.embed_ids(ids)?;
        let frame = self.rotary.frame(seen, ids.dim(1)?)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            let activations = block.forward(&hidden, &self.rotary, &frame, cache.past.get(layer))?;
            let past = Past { keys: activations.key, values: activations.value };
            match cache.past.get_mut(layer) {
                Some(slot) => *slot = past,
                None => cache.past.push(past),
            }
            hidden = activations.output;
        }
        Ok(hidden)
    }

    /// Logits `[.., vocabulary]` of block outputs `[.., width]`: final norm, then head.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let (normal, _) = self.final_norm.forward(hidden)?;
        Ok(self.head.forward(&normal)?)
    }

    /// Logarithms of the probabilities of the next token, and the probabilities, `[places, vocabulary]` each, after
    /// block outputs `[places, width]`.
    ///
    /// # Errors
    /// [`ModelError::Device`].
    pub(crate) fn probabilities(&self, hidden: &Tensor) -> Result<[Tensor; 2], ModelError> {
        if let Some(bias) = self.head.bias.as_ref().filter(|bias| kernels::fits(&[hidden, bias])) {
            let (normal, _) = self.final_norm.forward(hidden)?;
            return Ok(kernels::log_softmax(&self.head.product(&normal)?, bias)?);
        }
        let logarithms = log_softmax(&self.logits(hidden)?)?;
        let probabilities = logarithms.exp()?;
        Ok([logarithms, probabilities])
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor, ModelError> {
        self.embed_ids(batch.ids())
    }

    fn embed_ids(&self, ids: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, tokens) = ids.dims2()?;
        let embedded = self.embedding.index_select(&ids.flatten_all()?, 0)?.to_dtype(DType::F32)?;
        Ok(embedded.reshape((rows, tokens, self.config.width))?)
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    prefix: &'static str,
    progress: &'a dyn Fn(u64),
}

impl Loader<'_> {
    /// A tensor of the transformer's body, which may be prefixed.
    fn body(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        self.tensor(&format!("{}{name}", self.prefix), shape)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ModelError> {
        let info = self.checkpoint.tensor(name)?;
        check_shape(info, shape)?;
        let dtype = info.element_dtype().map(candle_dtype).ok_or_else(|| ModelError::Tensor {
            name: info.name.clone(),
            what: format!("has the type {}; weights are read as F32, F16 or BF16", info.dtype),
        })?;
        let bytes = self.checkpoint.read(info)?;
        (self.progress)(bytes.len() as u64);
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, self.device)?.to_dtype(DType::F32)?)
    }
}

/// The block that a tensor of this name belongs to.
pub(super) fn block_of(name: &str) -> Option<usize> {
    let name = name.strip_prefix("transformer.").unwrap_or(name).strip_prefix("h.")?;
    name.split_once('.')?.0.parse().ok()
}

/// Refuses weights with more blocks than the model is said to have: without them it is another one.
fn no_block_beyond(checkpoint: &Checkpoint, layers: usize) -> Result<(), ModelError> {
    let is_beyond = |info: &&TensorInfo| block_of(&info.name).is_some_and(|block| block >= layers);
    let Some(info) = checkpoint.tensors().iter().find(is_beyond) else { return Ok(()) };
    let what = format!("is of a block beyond the {layers} that `config.json` counts in `n_layer`, from 0");
    Err(ModelError::Tensor { name: info.name.clone(), what })
}

fn check_shape(info: &TensorInfo, expected: &[usize]) -> Result<(), ModelError> {
    if info.shape.iter().map(|size| *size as usize).eq(expected.iter().copied()) {
        return Ok(());
    }
    let what = format!("has the shape {:?}, but `config.json` asks for {expected:?}", info.shape);
    Err(ModelError::Tensor { name: info.name.clone(), what })
}

fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
    }
}

/// `log softmax` over the last dimension.
///
/// # Errors
/// [`ModelError::Device`].
pub(crate) fn log_softmax(logits: &Tensor) -> Result<Tensor, ModelError> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?;
    let sum = shifted.exp()?.sum_keepdim(D::Minus1)?;
    Ok(shifted.broadcast_sub(&sum.log()?)?)
}

/// The gradient of `-share * log p(target)` by row with respect to the logits, from the rows' probabilities.
pub(crate) fn target_gradient(
    probabilities: &Tensor,
    targets: &[u32],
    shares: &[f32],
) -> Result<Tensor, ModelError> {
    if kernels::fits(&[probabilities]) {
        return Ok(kernels::target_gradient(probabilities, targets, shares)?);
    }
    let device = probabilities.device();
    let shares = Tensor::from_vec(shares.to_vec(), (shares.len(), 1), device)?;
    let index = Tensor::from_vec(targets.to_vec(), (targets.len(), 1), device)?;
    let expected = probabilities.broadcast_mul(&shares)?;
    Ok(expected.scatter_add(&index, &shares.neg()?, D::Minus1)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::model::Model;

    /// `tensor` as one that our kernels leave to candle's operations.
    fn left_to_candle(tensor: &Tensor) -> Tensor {
        let left = Var::from_tensor(tensor).expect("a copy").as_tensor().clone();
        assert!(kernels::fits(&[tensor]) && !kernels::fits(&[&left]));
        left
    }

    fn agree(found: &Tensor, expected: &Tensor) {
        let numbers = |tensor: &Tensor| -> Vec<f32> {
            tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("floats")
        };
        let (found, expected) = (numbers(found), numbers(expected));
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                "{found} instead of {expected}"
            );
        }
    }

    #[test]
    fn the_loss_and_its_gradient_are_the_same_by_kernels_and_by_candle() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let network = Model::open(&folder, &Device::Cpu, &|_| ()).expect("the fixture is a model").network;
        let width = network.config.width;
        let hidden = (0..3 * width).map(|index| 3.0 * (index as f32 * 0.618).sin()).collect();
        let hidden = Tensor::from_vec(hidden, (3, width), &Device::Cpu).expect("three places");
        let [logarithms, probabilities] = network.probabilities(&hidden).expect("by kernels");
        let candle = network.probabilities(&left_to_candle(&hidden)).expect("by candle");
        agree(&candle[0], &logarithms);
        agree(&candle[1], &probabilities);
        // A token may be the target of several places, and the last one of a row counts as any other.
        let last = network.config.vocabulary as u32 - 1;
        let (targets, shares) = ([7, 7, last], [0.5, 0.25, 1.0]);
        let gradient = target_gradient(&probabilities, &targets, &shares).expect("by kernels");
        let candle = target_gradient(&left_to_candle(&probabilities), &targets, &shares).expect("by candle");
        agree(&candle, &gradient);
    }
}
