//! A model with updates on its weights, exactly as an applied patch has them.

use crate::factors::{FactorError, Term, Update};

use super::{Model, ModelError, Network};

impl Model {
    /// The model's network with `terms` added to its tensors and rounded to their type in the checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Checkpoint`] for a missing tensor, [`ModelError::Update`] for terms that do not fit one.
    pub fn with_terms<'a>(
        &self,
        edits: impl IntoIterator<Item = (&'a str, Vec<Term>)>,
    ) -> Result<Network, ModelError> {
        let mut network = self.network.clone();
        for (name, terms) in edits {
            let info = self.checkpoint.tensor(name)?;
            let dtype = info.element_dtype().ok_or_else(|| ModelError::Tensor {
                name: name.to_owned(),
                what: format!("has the type {}, which a patch cannot touch", info.dtype),
            })?;
            let refuse = |source: FactorError| ModelError::Update { tensor: name.to_owned(), source };
            let update = Update::new(terms).map_err(refuse)?;
            let shape = [update.rows(), update.columns()];
            if info.shape != shape.map(|size| size as u64) {
                let what = format!("has the shape {:?}, the update has {shape:?}", info.shape);
                return Err(ModelError::Tensor { name: name.to_owned(), what });
            }
            let mut bytes = self.checkpoint.read(info)?;
            update.apply_rows(dtype, 0..update.rows(), &mut bytes).map_err(refuse)?;
            network = network.with_bytes(name, dtype, &shape, &bytes)?;
        }
        Ok(network)
    }
}
