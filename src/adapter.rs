//! A patch as a LoRA adapter in PEFT's layout, for programs that add adapters to a model while it runs.
//!
//! ```text
//! D = (row_scale * column_scale) * (L R)   ->   lora_B = row_scale * L   [out, rank]
//!                                               lora_A = R * column_scale [rank, in]
//! ```
//!
//! Loaders scale the product by `lora_alpha / r`, and some of them take the rank of the file for `r`: so all modules get
//! the same rank, with zeros behind their own, and it stands for both. An adapter is near the patch and no more: its
//! loader adds `B (A x)` in the type that it computes in, and digests, undo logs and signatures stay behind.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use crate::checkpoint::{CheckpointError, NewTensor, write_new, write_new_folder, write_safetensors};
use crate::factors::{Integers, Term};
use crate::operation::Progress;
use crate::patch::manifest::IntegersEntry;
use crate::patch::{Patch, PatchError};
use crate::tensor::Dtype;

/// The two files of an adapter.
const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What loaders put before the path of a module.
const PREFIX: &str = "base_model.model.";
/// How the name of a linear layer's matrix ends.
const WEIGHT_ENDING: &str = ".weight";
/// Layers of GPT-J as they are called where the checkpoint leaves `transformer.` out.
const BARE_LAYER: &str = "h.";
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
}

impl<'p> Adapter<'p> {
    /// Looks whether an adapter can hold what the patch adds, told by its manifest.
    ///
    /// # Errors
    /// [`AdapterError::NotFactors`], [`AdapterError::NotLinear`] or [`AdapterError::Transposed`].
    pub fn of(patch: &'p Patch) -> Result<Self, AdapterError> {
        let manifest = patch.manifest();
        let architecture = &manifest.base.architecture;
        if TRANSPOSED.iter().any(|start| architecture.starts_with(start)) {
            return Err(AdapterError::Transposed { architecture: architecture.clone() });
        }
        let mut modules = Vec::new();
        // All bindings add the same terms; what tells them apart are digests and undo logs.
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
            let path = tensor.name.strip_suffix(WEIGHT_ENDING).filter(|_| rows > 1);
            let Some(path) = path else {
                return Err(AdapterError::NotLinear { tensor: tensor.name.clone(), rows, columns });
            };
            let bare = path.starts_with(BARE_LAYER);
            let path = if bare { format!("transformer.{path}") } else { path.to_owned() };
            modules.push(Module { path, shape: tensor.shape, rank, terms: tensor.terms.clone() });
        }
        let rank = modules.iter().map(|module| module.rank).max().unwrap_or(0);
        Ok(Self { patch, modules, rank })
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
        self.modules.iter().map(numbers).sum::<u64>() * Dtype::F32.size_bytes() as u64
    }

    /// Writes it into the new folder `target`, with `base_model` as the name under which loaders find its base.
    ///
    /// One tensor's factors are in memory at a time. `progress` is told bytes, [`Adapter::size_bytes`] in all.
    ///
    /// # Errors
    /// [`AdapterError::Checkpoint`] or [`AdapterError::Patch`]; there is no folder then.
    pub fn write(
        &self,
        target: &Path,
        base_model: Option<&str>,
        progress: Progress<'_>,
    ) -> Result<(), AdapterError> {
        let mut undecodable = None;
        let written = write_new_folder(target, |folder| {
            write_new(&folder.join(CONFIG_FILE), &self.config(base_model))?;
            self.write_weights(&folder.join(WEIGHTS_FILE), &mut undecodable, progress)
        });
        undecodable.map_or(Ok(()), Err)?;
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

    /// What cannot be decoded goes into `undecodable`: the writers know no errors but the system's.
    fn write_weights(
        &self,
        path: &Path,
        undecodable: &mut Option<PatchError>,
        progress: Progress<'_>,
    ) -> Result<(), CheckpointError> {
        let manifest = self.patch.manifest();
        let weights = manifest.bindings.first().map(|binding| binding.weights.to_string());
        let metadata = BTreeMap::from([
            ("format".to_owned(), "pt".to_owned()),
            ("mpatch.patch".to_owned(), self.patch.id().to_string()),
            ("mpatch.weights".to_owned(), weights.unwrap_or_default()),
        ]);
        write_safetensors(path, &metadata, &self.tensors(), |index, sink| {
            let module = &self.modules[index / 2];
            let terms = module.terms.iter().map(|&term| self.patch.term(term));
            match terms.collect::<Result<Vec<Term>, _>>() {
                Ok(terms) if index.is_multiple_of(2) => self.write_right(module, &terms, sink, progress),
                Ok(terms) => self.write_left(module, &terms, sink, progress),
                Err(error) => {
                    *undecodable = Some(error);
                    Err(io::ErrorKind::InvalidData.into())
                }
            }
        })
    }

    /// Both factors of each module, A first.
    fn tensors(&self) -> Vec<NewTensor> {
        let of_module = |module: &Module| {
            let [rows, columns] = module.shape;
            [("A", [self.rank, columns]), ("B", [rows, self.rank])].map(|(factor, shape)| NewTensor {
                name: format!("{PREFIX}{}.lora_{factor}{WEIGHT_ENDING}", module.path),
                dtype: Dtype::F32,
                shape: shape.to_vec(),
            })
        };
        self.modules.iter().flat_map(of_module).collect()
    }

    /// `lora_A`: the right factors of all terms, one below the other.
    fn write_right(
        &self,
        module: &Module,
        terms: &[Term],
        sink: &mut dyn Write,
        progress: Progress<'_>,
    ) -> io::Result<()> {
        for term in terms {
            (0..term.rank()).try_for_each(|row| write_row(&right_row(term, row), sink, progress))?;
        }
        let zeros = vec![0.0; module.shape[1] as usize];
        (module.rank..self.rank).try_for_each(|_| write_row(&zeros, sink, progress))
    }

    /// `lora_B`: the left factors of all terms, side by side.
    fn write_left(
        &self,
        module: &Module,
        terms: &[Term],
        sink: &mut dyn Write,
        progress: Progress<'_>,
    ) -> io::Result<()> {
        (0..module.shape[0] as usize).try_for_each(|row| {
            let mut numbers: Vec<f32> = terms.iter().flat_map(|term| left_row(term, row)).collect();
            numbers.resize(self.rank as usize, 0.0);
            write_row(&numbers, sink, progress)
        })
    }
}

fn write_row(numbers: &[f32], sink: &mut dyn Write, progress: Progress<'_>) -> io::Result<()> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    sink.write_all(&bytes)?;
    progress(bytes.len() as u64);
    Ok(())
}

/// A row of the right factor with its columns' scales, `[in]`.
fn right_row(term: &Term, row: usize) -> Vec<f32> {
    let Integers::LowRank { right, .. } = term.integers() else { return Vec::new() };
    let integers = right.row(row);
    let scaled = integers.iter().zip(term.column_scales());
    scaled.map(|(integer, scale)| f32::from(*integer) * scale).collect()
}

/// A row of the left factor with its scale, `[rank]`.
fn left_row(term: &Term, row: usize) -> Vec<f32> {
    let Integers::LowRank { left, .. } = term.integers() else { return Vec::new() };
    left.row(row).iter().map(|integer| f32::from(*integer) * term.row_scales()[row]).collect()
}
