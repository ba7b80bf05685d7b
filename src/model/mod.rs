//! GPT-J on candle, as Hugging Face's `GPTJForCausalLM` computes it, and the tokenizer beside it.
//!
//! A [`Model`] is a Hugging Face folder (or a weights file with its config and tokenizer beside it) opened for
//! reading: the checkpoint, its digests, the tokenizer and the [`Network`] on a device. Any layer's vectors can be
//! read on the way ([`Site`]); edited weights are an overlay ([`Network::with_tensor`]).

mod batch;
mod block;
mod config;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod generate;
mod kernels;
mod network;
mod overlay;
mod parallel;
pub(crate) mod plain;
mod reverse;
mod tokenizer;

use std::path::Path;

pub(crate) use batch::scatter;
pub use batch::{Batch, gather};
pub use candle_core::{Device, Error as DeviceError};
pub use config::{Config, architecture_of};
pub use device::{
    Choice, CudaVersions, Gpu, choose, cuda_versions, device, device_name, gpu_of, gpus, is_device_name,
    is_out_of_memory, memory_free, memory_taken,
};
pub(crate) use generate::{Sampling, generate};
pub use network::{Cache, Network, Site};
pub(crate) use network::{log_softmax, target_gradient};
pub use overlay::{Series, TensorEdit, WayBack};
pub(crate) use parallel::{CORE_SIZE_BYTES, in_halves, on_every_core, power_that_fits};
pub use reverse::{Suffix, SuffixPass};
pub(crate) use tokenizer::END_OF_TEXT;
pub use tokenizer::{Tokenizer, TokenizerFiles};

use crate::checkpoint::{Checkpoint, CheckpointError, TensorInfo};
use crate::digest::FileDigest;

/// Why a model cannot be opened or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The weights cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file that belongs to the model is not there.
    #[error("`{folder}` has no {file}: a model folder holds weights, `config.json` and `tokenizer.json`")]
    Missing {
        /// The folder.
        folder: std::path::PathBuf,
        /// The file, with its backticks.
        file: &'static str,
    },
    /// `config.json` cannot be read, or contradicts itself.
    #[error("config.json: {what}")]
    Config {
        /// What is wrong.
        what: String,
    },
    /// `config.json` is that of a model which mpatch does not run.
    #[error("config.json: {what}")]
    Unsupported {
        /// What it asks for.
        what: String,
    },
    /// The tokenizer files cannot be used.
    #[error("tokenizer: {what}")]
    Tokenizer {
        /// What is wrong.
        what: String,
    },
    /// A tensor is not what the model needs.
    #[error("tensor `{name}` {what}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no such layer, or it is not loaded.
    #[error("there is no layer {layer}: {layers} of the model are loaded, counted from 0")]
    Layer {
        /// The layer asked for.
        layer: usize,
        /// How many are loaded.
        layers: usize,
    },
    /// An update does not fit a tensor.
    #[error("tensor `{tensor}`")]
    Update {
        /// The tensor.
        tensor: String,
        /// Why.
        source: crate::factors::FactorError,
    },
    /// A text cannot be run.
    #[error("{what}")]
    Text {
        /// What is wrong.
        what: String,
    },
    /// A text that the model has no answer to.
    #[error("after `{prompt}` the model's output is not a number; its weights hold NaN or infinities")]
    NotANumber {
        /// The text.
        prompt: String,
    },
    /// There is no such device.
    #[error("{what}")]
    NoDevice {
        /// What is missing.
        what: String,
    },
    /// The device failed, or ran out of memory.
    #[error("device: {}", device::first_line(.0))]
    Device(candle_core::Error),
}

impl ModelError {
    /// Whether the device had too little memory: less at once may do.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Device(error) if is_out_of_memory(error))
    }
}

impl From<candle_core::Error> for ModelError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error)
    }
}

/// What the frozen matrices are stored and multiplied in; everything between the products is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// Stored in f32, multiplied in TF32, which keeps 10 bits of a factor: on CUDA only.
    Tf32,
    /// Stored in bf16, half the memory, and widened for each product.
    Bf16,
}

impl Precision {
    /// Its name, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes that a weight of a matrix takes in memory.
    pub(crate) fn weight_size_bytes(self) -> u64 {
        match self {
            Self::F32 | Self::Tf32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl std::str::FromStr for Precision {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::F32, Self::Tf32, Self::Bf16];
        let found = known.into_iter().find(|precision| precision.name() == text);
        found.ok_or_else(|| "expected `f32`, `tf32` or `bf16`".to_owned())
    }
}

/// What may change the last digits of what a model computes: the kind of device and, where it is not f32, the
/// precision of its matrices, e.g. `cpu bf16`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Arithmetic(String);

impl Arithmetic {
    fn of(device: &Device, precision: Precision) -> Self {
        let device = if device.is_cuda() { "cuda" } else { "cpu" };
        match precision {
            Precision::F32 => Self(device.to_owned()),
            precision => Self(format!("{device} {}", precision.name())),
        }
    }

    /// That of a sum over several kinds.
    pub(crate) fn mixed() -> Self {
        Self("mixed".to_owned())
    }

    /// The same kind of device with every matrix in f32.
    #[must_use]
    pub fn in_f32(&self) -> Self {
        Self(self.0.split(' ').next().unwrap_or_default().to_owned())
    }

    /// Whether every matrix is in f32.
    pub fn is_f32(&self) -> bool {
        matches!(self.0.as_str(), "cpu" | "cuda")
    }
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::str::FromStr for Arithmetic {
    type Err = String;

    /// Takes words that are not known yet as well, as long as they can be a part of a file's name.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if text.len() <= 32 && text.split(' ').all(is_word) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{text}` is no arithmetic such as `cpu bf16`"))
    }
}

/// A model folder whose weights are still on the disk.
pub struct Folder {
    /// The weights.
    pub checkpoint: Checkpoint,
    /// What `config.json` says.
    pub config: Config,
    /// Digest of `config.json`.
    pub config_digest: FileDigest,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
}

impl Folder {
    /// Opens the model at `path`, a folder or a weights file with its config and tokenizer beside it.
    ///
    /// # Errors
    /// Any [`ModelError`] but those of the device and of single tensors; nothing is changed anywhere.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(path)?;
        let missing = |file| ModelError::Missing { folder: checkpoint.folder().to_owned(), file };
        let config_bytes = checkpoint.companion("config.json")?.ok_or_else(|| missing("`config.json`"))?;
        let config = Config::parse(&config_bytes)?;
        let tokenizer = TokenizerFiles::beside(&checkpoint)?
            .ok_or_else(|| missing("`tokenizer.json` (nor `vocab.json` with `merges.txt`)"))?
            .parse()?
            .of_model_with(config.vocabulary)?;
        Ok(Self { checkpoint, config, config_digest: FileDigest::of(&config_bytes), tokenizer })
    }

    /// Loads all weights, the matrices in `precision`; `progress` is told the bytes of each tensor.
    ///
    /// # Errors
    /// Any [`ModelError`]; [`ModelError::NoDevice`] for TF32 without CUDA.
    pub fn load(
        self,
        device: &Device,
        precision: Precision,
        progress: &dyn Fn(u64),
    ) -> Result<Model, ModelError> {
        let layers = self.config.layers;
        self.load_blocks(device, precision, layers, progress)
    }

    /// Loads what the blocks up to `last` need, in f32: enough for [`Network::forward_to`] as far as that.
    ///
    /// # Errors
    /// Any [`ModelError`].
    pub fn load_up_to(
        self,
        last: usize,
        device: &Device,
        progress: &dyn Fn(u64),
    ) -> Result<Model, ModelError> {
        self.load_blocks(device, Precision::F32, last.saturating_add(1), progress)
    }

    /// Bytes that [`Folder::load_up_to`] tells, or a few more where the file has tensors that no model needs.
    pub fn size_bytes_up_to(&self, last: usize) -> u64 {
        self.needed_up_to(last).map(|tensor| tensor.size_bytes).sum()
    }

    /// Bytes that the weights take in memory, up to the block `last`, with every matrix in `precision`.
    pub fn memory_size_bytes(&self, last: usize, precision: Precision) -> u64 {
        let weights = self
            .needed_up_to(last)
            .filter_map(|tensor| Some(tensor.size_bytes / tensor.element_dtype()?.size_bytes() as u64));
        weights.sum::<u64>().saturating_mul(precision.weight_size_bytes())
    }

    fn needed_up_to(&self, last: usize) -> impl Iterator<Item = &TensorInfo> {
        let is_needed = move |name: &str| network::block_of(name).is_none_or(|block| block <= last);
        self.checkpoint.tensors().iter().filter(move |tensor| is_needed(&tensor.name))
    }

    fn load_blocks(
        self,
        device: &Device,
        precision: Precision,
        blocks: usize,
        progress: &dyn Fn(u64),
    ) -> Result<Model, ModelError> {
        let is_tf32 = precision == Precision::Tf32;
        if is_tf32 && !device.is_cuda() {
            let what = "`tf32` is a precision of CUDA, and this is the processor".to_owned();
            return Err(ModelError::NoDevice { what });
        }
        // Of the whole process: what the last model that was opened wants holds for all.
        candle_core::cuda::set_gemm_reduced_precision_f32(is_tf32);
        let Self { checkpoint, config, config_digest, tokenizer } = self;
        let network = Network::load(&checkpoint, &config, device, precision, blocks, progress)?;
        Ok(Model { checkpoint, config_digest, tokenizer, network, precision })
    }
}

/// A model folder, opened.
pub struct Model {
    /// The weights on disk.
    pub checkpoint: Checkpoint,
    /// Digest of `config.json`.
    pub config_digest: FileDigest,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The weights on the device.
    pub network: Network,
    /// What its matrices are stored and multiplied in.
    pub precision: Precision,
}

impl Model {
    /// Opens the model at `path`, a folder or a weights file with its config and tokenizer beside it.
    ///
    /// # Errors
    /// Any [`ModelError`]; nothing is changed anywhere.
    pub fn open(path: &Path, device: &Device, progress: &dyn Fn(u64)) -> Result<Self, ModelError> {
        Self::open_in(path, device, Precision::F32, progress)
    }

    /// [`Model::open`] with its matrices in another precision.
    ///
    /// # Errors
    /// As [`Model::open`]; [`ModelError::NoDevice`] for TF32 without CUDA.
    pub fn open_in(
        path: &Path,
        device: &Device,
        precision: Precision,
        progress: &dyn Fn(u64),
    ) -> Result<Self, ModelError> {
        Folder::open(path)?.load(device, precision, progress)
    }

    /// What it computes with.
    pub fn arithmetic(&self) -> Arithmetic {
        Arithmetic::of(self.network.device(), self.precision)
    }

    /// Token ids of several texts as one batch on the model's device.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`], or [`ModelError::Text`] for a text without tokens or longer than the context.
    pub fn batch(&self, texts: &[String]) -> Result<Batch, ModelError> {
        let rows: Vec<_> = texts.iter().map(|text| self.tokenizer.encode(text)).collect::<Result<_, _>>()?;
        Batch::new(&rows, self.network.config.positions, &self.network.device)
    }
}
