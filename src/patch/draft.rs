//! A patch before it has bytes: what [`super::encode`] lays out.

use super::manifest::{About, Base, Fact, Line, Metric, Recipe};
use crate::digest::{PatchId, TensorDigest, WeightsId};
use crate::factors::Term;
use crate::tensor::Dtype;

/// All that goes into a patch.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The model that the patch is for.
    pub base: Base,
    /// What the patch was asked to make the model say.
    pub facts: Vec<Fact>,
    /// How it was made.
    pub recipe: Recipe,
    /// What was measured with the terms below.
    pub measured: Vec<Metric>,
    /// The terms of all updates.
    pub terms: Vec<Term>,
    /// The states that the patch fits; at least one.
    pub bindings: Vec<BindingDraft>,
    /// The series this patch belongs to.
    pub line: Option<Line>,
    /// Patches that this one was made on top of.
    pub parents: Vec<PatchId>,
    /// Patches that this one replaces.
    pub supersedes: Vec<PatchId>,
    /// Free text.
    pub about: About,
}

impl Draft {
    /// What a patch has to say, and nothing else: no facts, nothing measured, no line, no relatives, no free text.
    pub fn new(base: Base, recipe: Recipe, terms: Vec<Term>, bindings: Vec<BindingDraft>) -> Self {
        Self {
            base,
            facts: Vec::new(),
            recipe,
            measured: Vec::new(),
            terms,
            bindings,
            line: None,
            parents: Vec::new(),
            supersedes: Vec::new(),
            about: About::default(),
        }
    }
}

/// One state of the weights and what the patch makes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct BindingDraft {
    /// The state before.
    pub weights: WeightsId,
    /// The touched tensors, in any order.
    pub tensors: Vec<TensorDraft>,
}

/// One touched tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorDraft {
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
    /// The terms to add, in this order, as indices into [`Draft::terms`].
    pub terms: Vec<u32>,
    /// The undo log, as [`crate::factors::UndoLog`] writes it.
    pub undo: Vec<u8>,
    /// What the terms leave wrong, as [`crate::factors::CorrectionWriter`] writes it; none where they give the result.
    pub correction: Option<Vec<u8>>,
}
