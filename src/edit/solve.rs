//! The closed form: from keys, residuals and the second moment to a low-rank update (MEMIT eq. 14).
//!
//! ```text
//! adjusted keys = (lambda * C + K K^T)^-1 K      [inner, facts]
//! update        = residuals * adjusted keys^T     [width, inner]
//! ```

use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, MatRef, Side};

use super::EditError;

/// A ridge that lifts dead key coordinates, relative to the mean of the diagonal.
pub const RIDGE_RELATIVE: f64 = 1e-10;

/// The adjusted keys and the ridge that was needed for them.
pub struct Adjusted {
    /// `[inner, facts]` f64.
    pub keys: Mat<f64>,
    /// What was added to the diagonal: 0 unless the plain matrix is singular.
    pub ridge: f64,
}

/// Solves for the adjusted keys.
///
/// `keys` is `[facts, inner]` f64; `moment` the uncentred second moment `sum k k^T / count`, `[inner, inner]`
/// f64; `weight` is lambda. The matrix is symmetric and positive semi-definite; where a coordinate never fires it
/// is singular, and [`RIDGE_RELATIVE`] of its mean diagonal is added, and said.
///
/// # Errors
/// [`EditError::Singular`] names the layer.
pub(crate) fn adjust(
    keys: MatRef<'_, f64>,
    mut moment: Mat<f64>,
    weight: f64,
    layer: usize,
) -> Result<Adjusted, EditError> {
    let inner = moment.nrows();
    moment *= faer::Scale(weight);
    moment += keys.transpose() * keys;
    let mean_diagonal = (0..inner).map(|index| moment[(index, index)]).sum::<f64>() / inner as f64;
    for ridge in [0.0, RIDGE_RELATIVE * mean_diagonal] {
        for index in 0..inner {
            moment[(index, index)] += ridge;
        }
        if let Ok(factor) = Llt::new(moment.as_ref(), Side::Lower) {
            return Ok(Adjusted { keys: factor.solve(keys.transpose().to_owned()), ridge });
        }
    }
    Err(EditError::Singular { layer })
}
