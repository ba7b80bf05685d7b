//! A model with updates on its weights, exactly as an applied patch has them.

use std::collections::BTreeMap;

use crate::checkpoint::TensorInfo;
use crate::digest::TensorDigest;
use crate::factors::{Correction, FactorError, Term, UndoLog, Update};
use crate::tensor::Dtype;

use super::{Model, ModelError, Network};

/// What a patch does to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorEdit<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// The terms that are added, in order.
    pub terms: Vec<Term>,
    /// The bytes of its correction, where it has one.
    pub correction: Option<Vec<u8>>,
    /// What takes all of that back, where the weights have it already.
    pub way_back: Option<WayBack>,
}

/// What a tensor was before a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WayBack {
    /// The bytes of its undo log.
    pub undo: Vec<u8>,
    /// Its digest.
    pub before: TensorDigest,
}

/// A model's tensors as one patch after the other leaves them, with a rounding after each.
pub struct Series<'m> {
    model: &'m Model,
    /// Their bytes, by their names.
    changed: BTreeMap<&'m str, Vec<u8>>,
}

impl Series<'_> {
    /// Does what the next patch does to each of its tensors.
    ///
    /// # Errors
    /// As for [`Model::with_terms`]; [`ModelError::Tensor`] for one that did not come back to what it was.
    pub fn carry_out<'a>(
        &mut self,
        edits: impl IntoIterator<Item = TensorEdit<'a>>,
    ) -> Result<(), ModelError> {
        let model = self.model;
        for edit in edits {
            let info = model.checkpoint.tensor(edit.name)?;
            let mut bytes = match self.changed.remove(edit.name) {
                Some(bytes) => bytes,
                None => model.checkpoint.read(info)?,
            };
            edit.carry_out(info, model.dtype(info)?, &mut bytes)?;
            self.changed.insert(&info.name, bytes);
        }
        Ok(())
    }

    /// The model's network with these tensors.
    ///
    /// # Errors
    /// As for [`Model::with_terms`].
    pub fn network(self) -> Result<Network, ModelError> {
        let mut network = self.model.network.clone();
        for (name, bytes) in self.changed {
            network = self.model.with_bytes(&network, self.model.checkpoint.tensor(name)?, &bytes)?;
        }
        Ok(network)
    }
}

impl Model {
    /// The model's network with `terms` added to its tensors and rounded to their type in the checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] for a missing tensor, [`ModelError::Update`] for terms that do not fit one.
    pub fn with_terms<'a>(
        &self,
        edits: impl IntoIterator<Item = (&'a str, Vec<Term>)>,
    ) -> Result<Network, ModelError> {
        self.with_edits(edits.into_iter().map(|(name, terms)| TensorEdit {
            name,
            terms,
            correction: None,
            way_back: None,
        }))
    }

    /// As [`Model::with_terms`], for terms that are corrected after their rounding.
    ///
    /// # Errors
    /// As for [`Model::with_terms`].
    pub fn with_edits<'a>(
        &self,
        edits: impl IntoIterator<Item = TensorEdit<'a>>,
    ) -> Result<Network, ModelError> {
        let mut series = self.series();
        series.carry_out(edits)?;
        series.network()
    }

    /// The model before several patches, which are applied or taken back one after the other.
    pub fn series(&self) -> Series<'_> {
        Series { model: self, changed: BTreeMap::new() }
    }

    /// The model's network with these tensors as they are in the checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] for a missing tensor.
    pub fn with_own<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<Network, ModelError> {
        let mut network = self.network.clone();
        for name in names {
            let info = self.checkpoint.tensor(name)?;
            network = self.with_bytes(&network, info, &self.checkpoint.read(info)?)?;
        }
        Ok(network)
    }

    fn with_bytes(&self, network: &Network, info: &TensorInfo, bytes: &[u8]) -> Result<Network, ModelError> {
        let shape: Vec<usize> = info.shape.iter().map(|size| *size as usize).collect();
        network.with_bytes(&info.name, self.dtype(info)?, &shape, bytes)
    }

    fn dtype(&self, info: &TensorInfo) -> Result<Dtype, ModelError> {
        info.element_dtype().ok_or_else(|| ModelError::Tensor {
            name: info.name.clone(),
            what: format!("has the type {}, which a patch cannot touch", info.dtype),
        })
    }
}

impl TensorEdit<'_> {
    /// Changes the tensor's bytes, all of them.
    fn carry_out(self, info: &TensorInfo, dtype: Dtype, bytes: &mut [u8]) -> Result<(), ModelError> {
        let Self { name, terms, correction, way_back } = self;
        let refuse = |source: FactorError| ModelError::Update { tensor: name.to_owned(), source };
        let update = Update::new(terms).map_err(refuse)?;
        let (rows, columns) = (update.rows(), update.columns());
        if info.matrix_shape() != Some([rows, columns].map(|size| size as u64)) {
            let what = format!("has the shape {:?}, the update has {:?}", info.shape, [rows, columns]);
            return Err(ModelError::Tensor { name: name.to_owned(), what });
        }
        let parse = |bytes| Correction::parse(bytes, dtype, rows, columns);
        let correction = correction.map(parse).transpose().map_err(refuse)?;
        let Some(WayBack { undo, before }) = way_back else {
            update.apply_rows(dtype, 0..rows, bytes).map_err(refuse)?;
            let corrected = correction.map(|correction| correction.apply_rows(dtype, 0..rows, bytes));
            return corrected.transpose().map(drop).map_err(refuse);
        };
        // The last step there is the first step back.
        let corrected = correction.map(|correction| correction.revert_rows(dtype, 0..rows, bytes));
        corrected.transpose().map_err(refuse)?;
        let undo = UndoLog::parse(undo, rows, columns).map_err(refuse)?;
        undo.revert_rows(&update, dtype, 0..rows, bytes).map_err(refuse)?;
        let found = TensorDigest::of(bytes);
        if found == before {
            return Ok(());
        }
        let what = format!("hashes to {found} with the patch taken back, the patch expects {before}");
        Err(ModelError::Tensor { name: name.to_owned(), what })
    }
}
