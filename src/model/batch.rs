//! Rows of tokens of different lengths, padded on the right.
//!
//! Attention looks back only, so what stands in the padding never reaches a real token: no mask is needed beyond
//! the causal one, and positions count from the left.

use candle_core::{Device, Tensor};

use super::ModelError;

/// Token ids `[rows, tokens]`, padded with 0 on the right to the longest row.
#[derive(Debug, Clone)]
pub struct Batch {
    ids: Tensor,
    lengths: Vec<usize>,
}

impl Batch {
    /// Pads `rows`, none of which is empty.
    ///
    /// # Errors
    /// [`ModelError::Text`] for an empty row or a row longer than `positions` tokens.
    pub fn new(rows: &[Vec<u32>], positions: usize, device: &Device) -> Result<Self, ModelError> {
        let lengths: Vec<usize> = rows.iter().map(Vec::len).collect();
        let tokens = lengths.iter().copied().max().unwrap_or(0);
        if lengths.contains(&0) || tokens == 0 {
            return Err(ModelError::Text { what: "a text has no tokens".to_owned() });
        }
        if tokens > positions {
            let what = format!("a text of {tokens} tokens is longer than the model's context of {positions}");
            return Err(ModelError::Text { what });
        }
        let mut ids = Vec::with_capacity(rows.len() * tokens);
        for row in rows {
            ids.extend_from_slice(row);
            ids.resize(ids.len() + tokens - row.len(), 0);
        }
        Ok(Self { ids: Tensor::from_vec(ids, (rows.len(), tokens), device)?, lengths })
    }

    /// Token ids, `[rows, tokens]` u32.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of the longest row.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Real tokens of each row.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// `(row, token)` of every real token.
    pub(crate) fn real_tokens(&self) -> Vec<(usize, usize)> {
        let of_row = |(row, length): (usize, &usize)| (0..*length).map(move |token| (row, token));
        self.lengths.iter().enumerate().flat_map(of_row).collect()
    }
}

/// Picks the vectors at `(row, token)` of `hidden` `[rows, tokens, features]`: `[places, features]`.
///
/// # Errors
/// [`ModelError::Device`] when a place lies outside the tensor.
pub fn gather(hidden: &Tensor, places: &[(usize, usize)]) -> Result<Tensor, ModelError> {
    let (rows, tokens, features) = hidden.dims3()?;
    let index = flat_index(places, tokens, hidden.device())?;
    Ok(hidden.reshape((rows * tokens, features))?.index_select(&index, 0)?)
}

/// The reverse of [`gather`]: adds `vectors` `[places, features]` up at their `(row, token)` in `[rows, tokens,
/// features]`, the shape of `hidden`, which is 0 elsewhere.
///
/// # Errors
/// [`ModelError::Device`] when a place lies outside that shape.
pub(crate) fn scatter(
    vectors: &Tensor,
    places: &[(usize, usize)],
    hidden: &Tensor,
) -> Result<Tensor, ModelError> {
    let (rows, tokens, features) = hidden.dims3()?;
    let index = flat_index(places, tokens, vectors.device())?;
    let zeros = Tensor::zeros((rows * tokens, features), vectors.dtype(), vectors.device())?;
    Ok(zeros.index_add(&index, vectors, 0)?.reshape((rows, tokens, features))?)
}

/// `row * tokens + token` of each place, u32.
fn flat_index(places: &[(usize, usize)], tokens: usize, device: &Device) -> Result<Tensor, ModelError> {
    let flat: Vec<u32> = places.iter().map(|(row, token)| (row * tokens + token) as u32).collect();
    Ok(Tensor::from_vec(flat, places.len(), device)?)
}
