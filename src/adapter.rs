//! A patch as a LoRA adapter in PEFT's layout, for programs that add adapters to a model while it runs.
//!
//! ```text
//! D = (row_scale * column_scale) * (L R)   ->   lora_B = row_scale * L / p    [out, rank]
//!                                               lora_A = p * R * column_scale [rank, in]
//! ```
//!
//! `p` holds a power of two for each of the rank's components. It changes no product, and brings a component's largest
//! numbers in A and B to about one size: as they come, one may be too small for a narrow type, or too large.
//!
//! Loaders scale the product by `lora_alpha / r`, and some of them take the rank of the file for `r`: so all modules
//! get the same rank, with zeros behind their own, and it stands for both. An adapter is near the patch and no more:
//! its loader adds `B (A x)` in the type that it computes in, and digests, undo logs and signatures stay behind.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::json;

use crate::checkpoint::{CheckpointError, NewTensor, write_new, write_new_folder, write_safetensors};
use crate::digest::WeightsId;
use crate::factors::{Integers, Term};
use crate::operation::Progress;
use crate::patch::manifest::{IntegersEntry, TensorBinding};
use crate::patch::{Patch, PatchError};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// The two files of an adapter.
const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What loaders put before the path of a module.
const PREFIX: &str = "base_model.model.";
/// How the name of a linear layer's matrix ends.
const WEIGHT_ENDING: &str = ".weight";
/// Layers of GPT-J as they are called where the checkpoint leaves `transformer.` out.
const BARE_LAYER: &str = "h.";
/// Last names of matrices that tokens or positions are looked up in: such layers have factors of other names.
const EMBEDDINGS: [&str; 3] = ["wte", "wpe", "embed_tokens"];
/// Architectures whose matrices are stored `[in, out]`.
const TRANSPOSED: [&str; 2] = ["GPT2", "OpenAIGPT"];

/// A patch that no adapter can stand for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// Writing it.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A part of the patch cannot be decoded.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The patch is more than factors.
    #[error("tensor `{tensor}` is changed by {what}, which an adapter cannot hold")]
    NotFactors {
        /// The tensor.
        tensor: String,
        /// What else there is.
        what: &'static str,
    },
    /// Adapters are for linear layers.
    #[error("tensor `{tensor}`, {rows} by {columns}, is not the weight of a linear layer")]
    NotLinear {
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: u64,
        /// Its columns.
        columns: u64,
    },
    /// The matrices lie the other way round.
    #[error("`{architecture}` stores its matrices as [in, out], which this does not write adapters for")]
    Transposed {
        /// The base's architecture.
        architecture: String,
    },
    /// The patch adds something else to one state of the weights than to another.
    #[error(
        "to the weights {first} it adds something else than to the weights {other}, and an adapter is added to either"
    )]
    BindingsDiffer {
        /// One state.
        first: WeightsId,
        /// The other.
        other: WeightsId,
    },
    /// A number of a factor is beyond the type that was asked for.
    #[error("tensor `{tensor}`, row {row}: {value:e} does not fit {dtype}, which ends at {largest:e}")]
    TooLarge {
        /// The adapter's tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// The number before rounding.
        value: f64,
        /// The type.
        dtype: Dtype,
        /// The largest number of that type.
        largest: f64,
    },
}

/// One linear layer that the adapter changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its path in the model, e.g. `transformer.h.3.mlp.fc_out`.
    pub path: String,
    /// Its shape, `[out, in]`.
    pub shape: [u64; 2],
    /// The rank of its own change.
    pub rank: u64,
    terms: Vec<u32>,
}

/// What a patch is as an adapter.
#[derive(Debug)]
pub struct Adapter<'p> {
    patch: &'p Patch,
    modules: Vec<Module>,
    rank: u64,
    dtype: Dtype,
}

impl<'p> Adapter<'p> {
    /// Looks whether an adapter can hold what the patch adds, told by its manifest. Its numbers will be of type
    /// `dtype`, each rounded once, to nearest and ties to even.
    ///
    /// # Errors
    /// [`AdapterError::NotFactors`], [`AdapterError::NotLinear`], [`AdapterError::Transposed`] or
    /// [`AdapterError::BindingsDiffer`].
    pub fn of(patch: &'p Patch, dtype: Dtype) -> Result<Self, AdapterError> {
        let manifest = patch.manifest();
        let architecture = &manifest.base.architecture;
        if TRANSPOSED.iter().any(|start| architecture.starts_with(start)) {
            return Err(AdapterError::Transposed { architecture: architecture.clone() });
        }
        let mut modules = Vec::new();
        // Of the first binding; whether the others add the same is asked below.
        for tensor in manifest.bindings.iter().take(1).flat_map(|binding| &binding.tensors) {
            let refused = |what| AdapterError::NotFactors { tensor: tensor.name.clone(), what };
            if tensor.correction.is_some() {
                return Err(refused("a correction weight by weight"));
            }
            let mut rank = 0;
            for &index in &tensor.terms {
                match manifest.terms.get(index as usize).map(|term| &term.integers) {
                    Some(IntegersEntry::LowRank { rank: own, .. }) => rank += own,
                    _ => return Err(refused("a dense term")),
                }
            }
            let [rows, columns] = tensor.shape;
            let is_linear = |path: &&str| {
                rows > 1 && path.rsplit('.').next().is_some_and(|name| !EMBEDDINGS.contains(&name))
            };
            let path = tensor.name.strip_suffix(WEIGHT_ENDING).filter(is_linear);
            let Some(path) = path else {
                return Err(AdapterError::NotLinear { tensor: tensor.name.clone(), rows, columns });
            };
            let bare = path.starts_with(BARE_LAYER);
            let path = if bare { format!("transformer.{path}") } else { path.to_owned() };
            modules.push(Module { path, shape: tensor.shape, rank, terms: tensor.terms.clone() });
        }
        // An adapter does not ask which weights it meets.
        let added =
            |tensor: &TensorBinding| (tensor.name.clone(), tensor.terms.clone(), tensor.correction.is_some());
        if let Some([first, other]) = manifest.differing_bindings(added) {
            return Err(AdapterError::BindingsDiffer { first, other });
        }
        let rank = modules.iter().map(|module| module.rank).max().unwrap_or(0);
        Ok(Self { patch, modules, rank, dtype })
    }

    /// The layers that it changes, in bytewise order of their tensors' names.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The rank of all of them.
    pub fn rank(&self) -> u64 {
        self.rank
    }

    /// Size of its weights in bytes.
    pub fn size_bytes(&self) -> u64 {
        let numbers = |module: &Module| module.shape.iter().sum::<u64>() * self.rank;
        self.modules.iter().map(numbers).sum::<u64>() * self.dtype.size_bytes() as u64
    }

    /// Writes it into the new folder `target`, with `base_model` as the name under which loaders find its base.
    ///
    /// One tensor's factors are in memory at a time. `progress` is told bytes, [`Adapter::size_bytes`] in all.
    ///
    /// # Errors
    /// [`AdapterError::Checkpoint`], [`AdapterError::Patch`] or [`AdapterError::TooLarge`]; there is no folder then.
    pub fn write(
        &self,
        target: &Path,
        base_model: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<(), AdapterError> {
        let mut refused = None;
        let written = write_new_folder(target, |folder| {
            write_new(&folder.join(CONFIG_FILE), &self.config(base_model))?;
            self.write_weights(&folder.join(WEIGHTS_FILE), &mut refused, progress)
        });
        refused.map_or(Ok(()), Err)?;
        Ok(written?)
    }

    fn config(&self, base_model: Option<&str>) -> Vec<u8> {
        let paths: Vec<&str> = self.modules.iter().map(|module| module.path.as_str()).collect();
        let config = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "revision": null,
            "r": self.rank,
            "lora_alpha": self.rank,
            "use_rslora": false,
            "use_dora": false,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "modules_to_save": null,
            "rank_pattern": {},
            "alpha_pattern": {},
            "target_modules": paths,
        });
        format!("{config:#}\n").into_bytes()
    }

    /// What cannot be written goes into `refused`: the writers know no errors but the system's.
    fn write_weights(
        &self,
        path: &Path,
        refused: &mut Option<AdapterError>,
        progress: Progress<'_>,
    ) -> Result<(), CheckpointError> {
        let manifest = self.patch.manifest();
        let weights = manifest.bindings.first().map(|binding| binding.weights.to_string());
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("mpatch.patch".to_owned(), self.patch.id().to_string()),
            ("mpatch.weights".to_owned(), weights.unwrap_or_default()),
        ]);
        let mut refuse = |error: AdapterError| {
            *refused = Some(error);
            io::Error::from(io::ErrorKind::InvalidData)
        };
        let tensors = self.tensors();
        write_safetensors(path, &metadata, &tensors, |index, sink| {
            let tensor = &tensors[index];
            let factor = self.factor(index).map_err(|error| refuse(error.into()))?;
            (0..tensor.shape[0] as usize).try_for_each(|row| {
                let bytes = with_element!(self.dtype, E => rounded::<E>(&factor.row(row)));
                let bytes = bytes.map_err(|value| refuse(self.too_large(tensor, row, value)))?;
                sink.write_all(&bytes)?;
                progress(bytes.len() as u64);
                Ok(())
            })
        })
    }

    fn too_large(&self, tensor: &NewTensor, row: usize, value: f64) -> AdapterError {
        let (tensor, dtype) = (tensor.name.clone(), self.dtype);
        let largest = with_element!(dtype, E => largest::<E>());
        AdapterError::TooLarge { tensor, row, value, dtype, largest }
    }

    /// Both factors of each module, A first.
    fn tensors(&self) -> Vec<NewTensor> {
        let of_module = |module: &Module| {
            let [rows, columns] = module.shape;
            [("A", [self.rank, columns]), ("B", [rows, self.rank])].map(|(factor, shape)| NewTensor {
                name: format!("{PREFIX}{}.lora_{factor}{WEIGHT_ENDING}", module.path),
                dtype: self.dtype,
                shape: shape.to_vec(),
            })
        };
        self.modules.iter().flat_map(of_module).collect()
    }

    /// What the tensor at `index` of [`Adapter::tensors`] holds.
    fn factor(&self, index: usize) -> Result<Factor, PatchError> {
        let module = &self.modules[index / 2];
        let terms = module.terms.iter().map(|&term| self.patch.term(term).map(BalancedTerm::new));
        let terms = terms.collect::<Result<_, _>>()?;
        Ok(match index.is_multiple_of(2) {
            true => Factor { terms, row: right_row, columns: module.shape[1] as usize },
            false => Factor { terms, row: left_row, columns: self.rank as usize },
        })
    }
}

/// `lora_A` or `lora_B` of one module.
struct Factor {
    terms: Vec<BalancedTerm>,
    /// The terms' own numbers in one row.
    row: fn(&[BalancedTerm], usize) -> Vec<f64>,
    columns: usize,
}

impl Factor {
    /// The exact numbers of a row, with zeros behind the terms' own.
    fn row(&self, row: usize) -> Vec<f64> {
        let mut numbers = (self.row)(&self.terms, row);
        numbers.resize(self.columns, 0.0);
        numbers
    }
}

/// A term, and what each of its components is multiplied by in A and divided by in B: a power of two.
struct BalancedTerm {
    term: Term,
    powers: Vec<f64>,
}

impl BalancedTerm {
    fn new(term: Term) -> Self {
        let Integers::LowRank { left, right } = term.integers() else {
            return Self { term, powers: Vec::new() };
        };
        let mut largest_left = vec![0.0_f64; term.rank()];
        for (row, scale) in term.row_scales().iter().enumerate() {
            for (largest, integer) in largest_left.iter_mut().zip(left.row(row).iter()) {
                *largest = largest.max(product(*integer, *scale).abs());
            }
        }
        let powers = largest_left.into_iter().enumerate().map(|(component, left)| {
            let integers = right.row(component);
            let numbers = integers.iter().zip(term.column_scales());
            let right = numbers.map(|(integer, scale)| product(*integer, *scale).abs()).fold(0.0, f64::max);
            power_between(left, right)
        });
        let powers = powers.collect();
        Self { term, powers }
    }
}

/// The power of two by which `right` is multiplied and `left` divided so that they come to about one size.
fn power_between(left: f64, right: f64) -> f64 {
    if left == 0.0 || right == 0.0 {
        return 1.0;
    }
    let exponent = |value: f64| (value.to_bits() >> 52) as i32;
    2.0_f64.powi((exponent(left) - exponent(right)) / 2)
}

/// Exact: 15 bits times 24.
fn product(integer: i16, scale: f32) -> f64 {
    f64::from(integer) * f64::from(scale)
}

/// `lora_A`: the right factors of all terms, one below the other; nothing where they have ended.
fn right_row(terms: &[BalancedTerm], mut row: usize) -> Vec<f64> {
    for BalancedTerm { term, powers } in terms {
        let Integers::LowRank { right, .. } = term.integers() else { continue };
        let Some(power) = powers.get(row) else {
            row -= powers.len();
            continue;
        };
        let integers = right.row(row);
        let numbers = integers.iter().zip(term.column_scales());
        return numbers.map(|(integer, scale)| product(*integer, *scale) * power).collect();
    }
    Vec::new()
}

/// `lora_B`: the left factors of all terms, side by side.
fn left_row(terms: &[BalancedTerm], row: usize) -> Vec<f64> {
    let mut numbers = Vec::new();
    for BalancedTerm { term, powers } in terms {
        let Integers::LowRank { left, .. } = term.integers() else { continue };
        let (integers, scale) = (left.row(row), term.row_scales()[row]);
        numbers.extend(integers.iter().zip(powers).map(|(integer, power)| product(*integer, scale) / power));
    }
    numbers
}

/// The little-endian bytes of `numbers`, or the first of them that is beyond the type.
fn rounded<E: Element>(numbers: &[f64]) -> Result<Vec<u8>, f64> {
    let mut bytes = vec![0; numbers.len() * E::DTYPE.size_bytes()];
    for (bytes, number) in bytes.chunks_exact_mut(E::DTYPE.size_bytes()).zip(numbers) {
        let element = E::round(*number);
        if !element.is_finite() {
            return Err(*number);
        }
        element.write(bytes);
    }
    Ok(bytes)
}

/// The largest number of a type.
fn largest<E: Element>() -> f64 {
    E::from_ordinal(E::round(f64::INFINITY).ordinal() - 1).to_f64()
}
