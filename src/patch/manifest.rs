//! What a patch says about itself: the small, signed, uncompressed part that comes first.
//!
//! Everything here is data; its bytes are those of `docs/format.md`, section 3. Text was written by whoever made the
//! patch: show it escaped, and believe none of it that a digest or a measurement does not bear out.

use serde::{Deserialize, Serialize};

use crate::digest::{FileDigest, PatchId, SectionDigest, TensorDigest, WeightsId};
use crate::tensor::Dtype;

/// The manifest of a patch. Field order is byte order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The model that the patch is for.
    pub base: Base,
    /// What the patch was asked to make the model say.
    pub facts: Vec<Fact>,
    /// How it was made.
    pub recipe: Recipe,
    /// What was measured, before and after, with the patch as it is stored.
    pub measured: Vec<Metric>,
    /// The terms of all updates; bindings refer to them by index.
    pub terms: Vec<TermEntry>,
    /// The states of weights that the patch fits: at least one, and no two with the same weights id.
    pub bindings: Vec<Binding>,
    /// The sections that follow, in file order; they tile the file from the manifest's end on.
    pub sections: Vec<Section>,
    /// The series this patch belongs to.
    pub line: Option<Line>,
    /// Patches that this one was made on top of, in the order they were applied.
    pub parents: Vec<PatchId>,
    /// Patches that this one replaces.
    pub supersedes: Vec<PatchId>,
    /// Free text about the patch.
    pub about: About,
}

/// The model that a patch is for, whatever the dtype of its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Hugging Face's class name, e.g. `GPTJForCausalLM`.
    pub architecture: String,
    /// Digest of `config.json`.
    pub config: FileDigest,
    /// Digest of `tokenizer.json`, or of the files that stand for it, one after the other.
    pub tokenizer: FileDigest,
}

/// One fact that the patch writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The id that the facts file gives it.
    pub id: Option<String>,
    /// The prompt, with `{}` where the subject goes.
    pub prompt: String,
    /// The subject.
    pub subject: String,
    /// What the model is to say.
    pub target_new: String,
    /// What it said before, where the facts file tells.
    pub target_old: Option<String>,
    /// A remark or a source.
    pub note: Option<String>,
}

/// How a patch was made: enough to make it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The method, e.g. `memit`.
    pub method: String,
    /// Its hyperparameters, as JSON text in the method's own layout.
    pub hyperparameters: String,
    /// The edited layers, ascending.
    pub layers: Vec<u32>,
    /// The context templates, in groups as the reference groups them; each holds one `{}`.
    pub contexts: Vec<Vec<String>>,
    /// The seed of everything sampled.
    pub seed: u64,
    /// Digest of the second-moment statistics.
    pub statistics: FileDigest,
    /// Digest of the facts file as it was read.
    pub facts: FileDigest,
    /// The program that made it, e.g. `mpatch 0.1.0`.
    pub tool: String,
    /// The kind of device, e.g. `cpu`.
    pub device: String,
}

/// One measured quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name, e.g. `efficacy`.
    pub name: String,
    /// On the base.
    pub before: f64,
    /// On the base with this patch's integers applied.
    pub after: f64,
    /// How many prompts it was measured over.
    pub prompts: u64,
}

/// The parts of a term and where they lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermEntry {
    /// `out`: rows of the update.
    pub rows: u64,
    /// `in`: columns of the update.
    pub columns: u64,
    /// Width of the integers in bits, 2 to 16.
    pub bits: u8,
    /// The integers: factors or the dense product.
    pub integers: IntegersEntry,
    /// Section of the row scales: `rows` f32.
    pub row_scales: u32,
    /// Section of the column scales: `columns` f32.
    pub column_scales: u32,
}

/// Where the integers of a term lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntegersEntry {
    /// Two factors.
    LowRank {
        /// Shared dimension of the factors.
        rank: u64,
        /// Section of the left factor, `[rows, rank]`.
        left: u32,
        /// Section of the right factor, `[rank, columns]`.
        right: u32,
    },
    /// The product, `[rows, columns]`.
    Dense {
        /// Its section.
        section: u32,
    },
}

/// One state of the weights that the patch fits, and what it makes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// The state before.
    pub weights: WeightsId,
    /// The touched tensors, in bytewise order of their names.
    pub tensors: Vec<TensorBinding>,
}

impl Manifest {
    /// Two states for whose tensors `told` says different things.
    pub(crate) fn differing_bindings<T: PartialEq>(
        &self,
        told: impl Fn(&TensorBinding) -> T,
    ) -> Option<[WeightsId; 2]> {
        let all = |binding: &Binding| Vec::from_iter(binding.tensors.iter().map(&told));
        let (first, others) = self.bindings.split_first()?;
        let expected = all(first);
        let other = others.iter().find(|binding| all(binding) != expected)?;
        Some([first.weights, other.weights])
    }

    /// What is added to each tensor, once for each term.
    ///
    /// Where a tensor is corrected the terms may be zeros, which say nothing of whose they are.
    pub(crate) fn updates(&self) -> impl Iterator<Item = Update> {
        let tensors = self.bindings.iter().flat_map(|binding| &binding.tensors);
        let changed = tensors.filter(|tensor| tensor.correction.is_none() && tensor.before != tensor.after);
        changed.flat_map(|tensor| {
            let update = |term: &u32| Some(Update { tensor: tensor.name.clone(), parts: self.parts(*term)? });
            tensor.terms.iter().filter_map(update)
        })
    }

    /// The digests of a term's sections.
    fn parts(&self, term: u32) -> Option<Vec<SectionDigest>> {
        let term = self.terms.get(term as usize)?;
        let integers = match term.integers {
            IntegersEntry::LowRank { left, right, .. } => vec![left, right],
            IntegersEntry::Dense { section } => vec![section],
        };
        let sections = integers.into_iter().chain([term.row_scales, term.column_scales]);
        sections.map(|section| Some(self.sections.get(section as usize)?.digest)).collect()
    }
}

/// One term on one tensor. Two patches that share one add it twice, whatever else they do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Update {
    /// The tensor.
    pub tensor: String,
    parts: Vec<SectionDigest>,
}

/// One touched tensor in one state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorBinding {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, `[out, in]`.
    pub shape: [u64; 2],
    /// Digest of its bytes before.
    pub before: TensorDigest,
    /// Digest of its bytes after.
    pub after: TensorDigest,
    /// `norm(after - before) / norm(before)`, Frobenius.
    pub norm_ratio: f64,
    /// The terms to add, in this order, as indices into [`Manifest::terms`].
    pub terms: Vec<u32>,
    /// Section of the undo log.
    pub undo: u32,
    /// Section of a correction: ordinal differences to the result, where the terms alone do not give it.
    pub correction: Option<u32>,
}

/// One section of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// How its bytes are stored.
    pub codec: Codec,
    /// Size in the file, in bytes.
    pub stored_size: u64,
    /// Size once decoded, in bytes.
    pub decoded_size: u64,
    /// Digest of the stored bytes.
    pub digest: SectionDigest,
}

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SectionKind {
    /// Integers of a factor or of a dense term, as byte planes.
    Integers,
    /// f32 scales.
    Scales,
    /// An undo log.
    Undo,
    /// A correction.
    Correction,
}

/// How a section's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Codec {
    /// As they are.
    Stored,
    /// One zstd frame.
    Zstd,
}

/// A series of patches, so that an older one cannot pass for news.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The series' name.
    pub name: String,
    /// This patch's place in it, from 1.
    pub sequence: u64,
}

/// Free text, none of it to be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// A title.
    pub title: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// The licence of the patch.
    pub licence: Option<String>,
}
