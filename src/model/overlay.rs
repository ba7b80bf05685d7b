//! A model with updates on its weights, exactly as an applied patch has them.

use crate::factors::{Correction, FactorError, Term, Update};

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
        let mut network = self.network.clone();
        for TensorEdit { name, terms, correction } in edits {
            let info = self.checkpoint.tensor(name)?;
            let dtype = info.element_dtype().ok_or_else(|| ModelError::Tensor {
                name: name.to_owned(),
                what: format!("has the type {}, which a patch cannot touch", info.dtype),
            })?;
            let refuse = |source: FactorError| ModelError::Update { tensor: name.to_owned(), source };
            let update = Update::new(terms).map_err(refuse)?;
            let shape = [update.rows(), update.columns()];
            if info.matrix_shape() != Some(shape.map(|size| size as u64)) {
                let what = format!("has the shape {:?}, the update has {shape:?}", info.shape);
                return Err(ModelError::Tensor { name: name.to_owned(), what });
            }
            let mut bytes = self.checkpoint.read(info)?;
            update.apply_rows(dtype, 0..update.rows(), &mut bytes).map_err(refuse)?;
            if let Some(correction) = correction {
                let correction = Correction::parse(correction, dtype, update.rows(), update.columns());
                let corrected = correction
                    .and_then(|correction| correction.apply_rows(dtype, 0..update.rows(), &mut bytes));
                corrected.map_err(refuse)?;
            }
            let shape: Vec<usize> = info.shape.iter().map(|size| *size as usize).collect();
            network = network.with_bytes(name, dtype, &shape, &bytes)?;
        }
        Ok(network)
    }
}
