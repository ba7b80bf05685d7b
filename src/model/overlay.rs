//! A model with updates on its weights, exactly as an applied patch has them.

use std::collections::BTreeMap;

use crate::checkpoint::TensorInfo;
use crate::factors::{Correction, FactorError, Term, Update};
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
        self.with_edits(edits.into_iter().map(|(name, terms)| TensorEdit { name, terms, correction: None }))
    }

    /// As [`Model::with_terms`], for terms that are corrected after their rounding.
    ///
    /// # Errors
    /// As for [`Model::with_terms`].
    pub fn with_edits<'a>(
        &self,
        edits: impl IntoIterator<Item = TensorEdit<'a>>,
    ) -> Result<Network, ModelError> {
        self.with_series([edits])
    }

    /// The model's network after several patches, one after the other, with a rounding after each.
    ///
    /// # Errors
    /// As for [`Model::with_terms`].
    pub fn with_series<'a, E>(&self, patches: impl IntoIterator<Item = E>) -> Result<Network, ModelError>
    where
        E: IntoIterator<Item = TensorEdit<'a>>,
    {
        let mut changed: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
        for TensorEdit { name, terms, correction } in patches.into_iter().flatten() {
            let info = self.checkpoint.tensor(name)?;
            let dtype = self.dtype(info)?;
            let refuse = |source: FactorError| ModelError::Update { tensor: name.to_owned(), source };
            let update = Update::new(terms).map_err(refuse)?;
            let shape = [update.rows(), update.columns()];
            if info.matrix_shape() != Some(shape.map(|size| size as u64)) {
                let what = format!("has the shape {:?}, the update has {shape:?}", info.shape);
                return Err(ModelError::Tensor { name: name.to_owned(), what });
            }
            let mut bytes = match changed.remove(name) {
                Some(bytes) => bytes,
                None => self.checkpoint.read(info)?,
            };
            update.apply_rows(dtype, 0..update.rows(), &mut bytes).map_err(refuse)?;
            if let Some(correction) = correction {
                let correction = Correction::parse(correction, dtype, update.rows(), update.columns());
                let corrected = correction
                    .and_then(|correction| correction.apply_rows(dtype, 0..update.rows(), &mut bytes));
                corrected.map_err(refuse)?;
            }
            changed.insert(name, bytes);
        }
        let mut network = self.network.clone();
        for (name, bytes) in changed {
            let info = self.checkpoint.tensor(name)?;
            let shape: Vec<usize> = info.shape.iter().map(|size| *size as usize).collect();
            network = network.with_bytes(name, self.dtype(info)?, &shape, &bytes)?;
        }
        Ok(network)
    }

    fn dtype(&self, info: &TensorInfo) -> Result<Dtype, ModelError> {
        info.element_dtype().ok_or_else(|| ModelError::Tensor {
            name: info.name.clone(),
            what: format!("has the type {}, which a patch cannot touch", info.dtype),
        })
    }
}
