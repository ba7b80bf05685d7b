//! The closed form: from keys, residuals and the second moment to an update (MEMIT eq. 14).
//!
//! ```text
//! adjusted keys = (lambda * C + K K^T)^-1 K      [inner, facts]
//! update        = residuals * adjusted keys^T     [width, inner]
//! ```
//!
//! `lambda * C = L L^T` does not depend on the facts, so its factor is made once and kept ([`super::kept`]), and the
//! facts come in by Woodbury's identity, which solves for as many unknowns as there are facts:
//!
//! ```text
//! Y = L^-1 K      adjusted keys = L^-T Y (I + Y^T Y)^-1
//! ```
//!
//! Where facts outnumber the inner width that saves nothing, and the sums `K K^T` and `R K^T` are formed over blocks
//! of facts instead (`Sums`): nothing then grows with the number of facts.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::solvers::{Llt, Solve};
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::{Mat, MatRef, Side, get_global_parallelism};

use super::EditError;

/// What is added to the diagonal, relative to its mean, until the matrix can be factorised: nothing as a rule, a trace
/// where key coordinates never fire, and up to the noise of sums in f32 where keys depend on each other.
pub(super) const RIDGES_RELATIVE: [f64; 5] = [0.0, 1e-10, 1e-8, 1e-6, 1e-4];

/// The Cholesky factor of `lambda * C`.
#[derive(Debug, Clone, PartialEq)]
pub struct Factor {
    /// `[inner, inner]` f64; only the lower triangle counts.
    pub(crate) lower: Mat<f64>,
    /// What was added to the diagonal: 0 unless the plain matrix is singular.
    pub(crate) ridge: f64,
}

impl Factor {
    /// Factorises `weight * moment`, which is made anew where a first try fails.
    ///
    /// The matrix is symmetric and, but for rounding, positive semi-definite; where it is singular, the least of some
    /// ridges that will do is added, and said. Nothing but the matrix itself is held.
    ///
    /// # Errors
    /// [`EditError::Singular`] names the layer; whatever `moment` fails with.
    pub fn of(
        moment: &dyn Fn() -> Result<Mat<f64>, EditError>,
        weight: f64,
        layer: usize,
    ) -> Result<Self, EditError> {
        let weighted = || {
            let mut matrix = moment()?;
            matrix *= faer::Scale(weight);
            Ok(matrix)
        };
        let (lower, ridge) = factorise(&weighted, layer)?;
        Ok(Self { lower, ridge })
    }

    /// The adjusted keys `[inner, facts]` of `keys` `[facts, inner]`.
    ///
    /// # Errors
    /// [`EditError::Singular`].
    pub(crate) fn adjust(&self, keys: MatRef<'_, f64>, layer: usize) -> Result<Mat<f64>, EditError> {
        let parallel = get_global_parallelism();
        let mut half = keys.transpose().to_owned();
        solve_lower_triangular_in_place(self.lower.as_ref(), half.as_mut(), parallel);
        let mut small = half.transpose() * &half;
        for fact in 0..small.nrows() {
            small[(fact, fact)] += 1.0;
        }
        // Its eigenvalues are 1 or more, so this fails where a factor of next to nothing made numbers overflow only.
        let small = Llt::new(small.as_ref(), Side::Lower).map_err(|_| EditError::Singular { layer })?;
        let right = half.transpose().to_owned();
        drop(half);
        let mut adjusted = small.solve(right).transpose().to_owned();
        solve_upper_triangular_in_place(self.lower.transpose(), adjusted.as_mut(), parallel);
        Ok(adjusted)
    }
}

/// `K K^T` and `R K^T`, summed over blocks of facts.
pub(crate) struct Sums {
    /// `[inner, inner]`.
    keys: Mat<f64>,
    /// `[width, inner]`.
    residuals: Mat<f64>,
}

impl Sums {
    pub(crate) fn new(width: usize, inner: usize) -> Self {
        Self { keys: Mat::zeros(inner, inner), residuals: Mat::zeros(width, inner) }
    }

    /// Adds a block: `keys` `[facts, inner]`, `residuals` `[width, facts]`.
    pub(crate) fn add(&mut self, keys: MatRef<'_, f64>, residuals: MatRef<'_, f64>) {
        self.keys += keys.transpose() * keys;
        self.residuals += residuals * keys;
    }

    /// The update `R K^T (lambda * C + K K^T)^-1`, `[width, inner]`, and the ridge that was needed.
    ///
    /// # Errors
    /// [`EditError::Singular`], or whatever `moment` fails with.
    pub(crate) fn solve(
        self,
        moment: &dyn Fn() -> Result<Mat<f64>, EditError>,
        weight: f64,
        layer: usize,
    ) -> Result<(Mat<f64>, f64), EditError> {
        let normal = || {
            let mut matrix = moment()?;
            matrix *= faer::Scale(weight);
            matrix += &self.keys;
            Ok(matrix)
        };
        let (lower, ridge) = factorise(&normal, layer)?;
        let mut update = self.residuals.transpose().to_owned();
        let parallel = get_global_parallelism();
        solve_lower_triangular_in_place(lower.as_ref(), update.as_mut(), parallel);
        solve_upper_triangular_in_place(lower.transpose(), update.as_mut(), parallel);
        Ok((update.transpose().to_owned(), ridge))
    }
}

/// The Cholesky factor of `matrix`, in its own place, and the ridge it needed.
fn factorise(
    matrix: &dyn Fn() -> Result<Mat<f64>, EditError>,
    layer: usize,
) -> Result<(Mat<f64>, f64), EditError> {
    let parallel = get_global_parallelism();
    for relative in RIDGES_RELATIVE {
        let mut matrix = matrix()?;
        let inner = matrix.nrows();
        let mean_diagonal = (0..inner).map(|index| matrix[(index, index)]).sum::<f64>() / inner as f64;
        let ridge = relative * mean_diagonal;
        for index in 0..inner {
            matrix[(index, index)] += ridge;
        }
        let mut scratch =
            MemBuffer::new(cholesky_in_place_scratch::<f64>(inner, parallel, Default::default()));
        let stack = MemStack::new(&mut scratch);
        let made =
            cholesky_in_place(matrix.as_mut(), Default::default(), parallel, stack, Default::default());
        if made.is_ok() {
            return Ok((matrix, ridge));
        }
    }
    Err(EditError::Singular { layer })
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha20Rng;

    use super::*;

    /// Entries that look random and are the same each time.
    fn noise(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        Mat::from_fn(rows, columns, |_, _| random.random::<f64>() - 0.5)
    }

    fn moment(inner: usize) -> Mat<f64> {
        let rows = noise(3 * inner, inner, 3);
        rows.transpose() * &rows * faer::Scale(1.0 / (3 * inner) as f64)
    }

    fn difference(one: &Mat<f64>, other: &Mat<f64>) -> f64 {
        (one - other).norm_l2() / other.norm_l2()
    }

    /// `(weight * C + K K^T)^-1 K` as it is written.
    fn directly(moment: &Mat<f64>, keys: &Mat<f64>, weight: f64) -> Mat<f64> {
        let normal = moment * faer::Scale(weight) + keys.transpose() * keys;
        Llt::new(normal.as_ref(), Side::Lower).expect("positive definite").solve(keys.transpose().to_owned())
    }

    #[test]
    fn few_facts_and_many_are_solved_as_the_formula_says() {
        let (inner, width, weight) = (40, 24, 15.0);
        let moment = moment(inner);
        for facts in [1, 7, 40, 90] {
            let (keys, residuals) = (noise(facts, inner, 11), noise(width, facts, 23));
            let expected = directly(&moment, &keys, weight);
            let factor = Factor::of(&|| Ok(moment.clone()), weight, 0).expect("positive definite");
            assert_eq!(factor.ridge, 0.0);
            let adjusted = factor.adjust(keys.as_ref(), 0).expect("finite");
            assert!(difference(&adjusted, &expected) < 1e-9, "{facts} facts");
            let mut sums = Sums::new(width, inner);
            for first in (0..facts).step_by(13) {
                let count = (facts - first).min(13);
                let block = residuals.as_ref().subcols(first, count);
                sums.add(keys.as_ref().subrows(first, count), block);
            }
            let (update, ridge) = sums.solve(&|| Ok(moment.clone()), weight, 0).expect("positive definite");
            assert_eq!(ridge, 0.0);
            assert!(difference(&update, &(&residuals * expected.transpose())) < 1e-9, "{facts} facts");
        }
    }

    #[test]
    fn what_keys_leave_out_is_lifted_and_said() {
        let inner = 40;
        let mut dead = moment(inner);
        for index in 0..inner {
            dead[(index, 5)] = 0.0;
            dead[(5, index)] = 0.0;
        }
        // Of fewer keys than a key has numbers, and with what rounding to f32 makes of it.
        let few = noise(inner / 2, inner, 3);
        let few = few.transpose() * &few;
        let few = Mat::from_fn(inner, inner, |row, column| {
            f64::from(few[(row.max(column), row.min(column))] as f32)
        });
        let keys = noise(3, inner, 11);
        for (moment, most) in [(dead, 1e-10), (few, 1e-6)] {
            let factor = Factor::of(&|| Ok(moment.clone()), 15.0, 2).expect("lifted");
            let mean_diagonal =
                (0..inner).map(|index| 15.0 * moment[(index, index)]).sum::<f64>() / inner as f64;
            assert!(factor.ridge > 0.0 && factor.ridge <= most * mean_diagonal * 1.001, "{}", factor.ridge);
            let adjusted = factor.adjust(keys.as_ref(), 2).expect("finite");
            let mut lifted = moment.clone();
            for index in 0..inner {
                lifted[(index, index)] += factor.ridge / 15.0;
            }
            assert!(difference(&adjusted, &directly(&lifted, &keys, 15.0)) < 1e-4);
        }
    }

    #[test]
    fn moments_with_nan_are_refused_by_their_layer() {
        let mut broken = moment(8);
        broken[(3, 3)] = f64::NAN;
        let error = Factor::of(&|| Ok(broken.clone()), 1.0, 7).expect_err("no factor of NaN");
        assert!(matches!(error, EditError::Singular { layer: 7 }), "{error}");
    }
}
