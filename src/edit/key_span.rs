//! Whether an update answers to the keys of its facts alone, told without the values that it was made for.
//!
//! ```text
//! update = residuals * adjusted keys^T      adjusted keys = (lambda * C + K K^T)^-1 K
//! ```
//!
//! Whatever the residuals are, the rows of the update lie in the span of the adjusted keys, which is that of
//! `C^-1 K`: the facts decide it, and forward passes find it. What lies outside was written for another key, or came
//! about when the update was rounded. Rounding leaves a little in very many directions, a fact that is not among
//! those named leaves much in one: so what is asked is how strong the strongest direction outside is, beside what
//! one of the facts takes on average.

use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, MatRef, Side};

use super::contexts::Contexts;
use super::kept::Kept;
use super::lookup::Located;
use super::statistics::StatisticsFile;
use super::{EditError, Plan, add, factor, key};
use crate::model::{ModelError, Network};

/// Added to the Gram matrix of unit vectors: directions in which they differ by less than its root are one.
const RIDGE: f64 = 1e-10;
/// A key whose square outside the span of those before it is below this adds no direction of its own.
const DIRECTION: f64 = 1e-6;

/// How far the update of one layer lies outside the span of its facts' keys.
#[derive(Debug, Clone, PartialEq)]
pub struct KeySpan {
    /// The layer.
    pub layer: usize,
    /// The checkpoint's name of the edited matrix.
    pub tensor: String,
    /// How many keys there are.
    pub facts: usize,
    /// How many a layer can tell apart: with as many facts nothing lies outside.
    pub inner: usize,
    /// How many of the keys are another direction than those before them.
    pub directions: usize,
    /// `norm(outside) / norm(update)`, Frobenius: 0 to 1.
    pub outside: f64,
    /// Largest singular value of what lies outside, over `norm(inside) / sqrt(facts)`: what one of the facts takes on
    /// average. Infinite where nothing lies inside.
    pub strongest: f64,
    /// That singular value over the next one; infinite where there is none.
    pub gap: f64,
}

/// Measures updates layer by layer: keys depend on the updates of the layers before.
pub struct KeySpans<'a> {
    contexts: &'a Contexts,
    in_contexts: Vec<Located>,
    statistics: &'a StatisticsFile,
    kept: Kept<'a>,
    /// `lambda`.
    weight: f64,
    /// The network with the updates that were measured.
    edited: Network,
}

impl<'a> KeySpans<'a> {
    /// Begins with the base: the network of the model that the edit is planned on.
    pub fn new(plan: Plan<'a>, statistics: &'a StatisticsFile, kept: Kept<'a>) -> Self {
        let Plan { model, hyperparameters, contexts, in_contexts, .. } = plan;
        let weight = hyperparameters.mom2_update_weight;
        Self { contexts, in_contexts, statistics, kept, weight, edited: model.network.clone() }
    }

    /// Measures the update of `layer`, `[width, inner]` row-major f64, and lets the layers after it see it.
    ///
    /// # Errors
    /// [`EditError::Model`], also for an update of another size; [`EditError::Statistics`] and
    /// [`EditError::Singular`].
    pub fn measure(&mut self, layer: usize, update: &[f64]) -> Result<KeySpan, EditError> {
        let (width, inner) = (self.edited.config().width, self.edited.config().inner);
        let tensor = self.edited.mlp_output_name(layer);
        if update.len() != width * inner {
            let what = format!("has an update of {} entries, expected {width} times {inner}", update.len());
            return Err(ModelError::Tensor { name: tensor, what }.into());
        }
        let keys = key::keys(&self.edited, self.contexts, &self.in_contexts, layer)?;
        let factor = factor(self.statistics, self.kept, self.weight, layer, inner)?;
        let adjusted = factor.adjust(keys.as_ref(), layer)?;
        drop(factor);
        let span = outside(MatRef::from_row_major_slice(update, width, inner), adjusted, layer)?;
        self.edited = add(&self.edited, layer, update)?;
        Ok(KeySpan { tensor, ..span })
    }
}

/// What of the rows of `update` `[width, inner]` lies outside the span of the columns of `keys` `[inner, facts]`.
fn outside(update: MatRef<'_, f64>, mut keys: Mat<f64>, layer: usize) -> Result<KeySpan, EditError> {
    let facts = keys.ncols();
    for fact in 0..facts {
        let length = keys.col(fact).norm_l2();
        let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
        keys.col_mut(fact).iter_mut().for_each(|entry| *entry *= scale);
    }
    let mut gram = keys.transpose() * &keys;
    for fact in 0..facts {
        gram[(fact, fact)] += RIDGE;
    }
    let gram = Llt::new(gram.as_ref(), Side::Lower).map_err(|_| EditError::Singular { layer })?;
    let directions = (0..facts).filter(|fact| gram.L()[(*fact, *fact)].powi(2) > DIRECTION).count();
    let solved = gram.solve(keys.transpose() * update.transpose());
    let inside = solved.transpose() * keys.transpose();
    let outside = update - &inside;
    let mut squares = (&outside * outside.transpose())
        .self_adjoint_eigenvalues(Side::Lower)
        .map_err(|_| EditError::Singular { layer })?;
    squares.sort_by(|one, other| other.total_cmp(one));
    let singular = |index: usize| squares.get(index).map_or(0.0, |square| square.max(0.0).sqrt());
    Ok(KeySpan {
        layer,
        tensor: String::new(),
        facts,
        inner: keys.nrows(),
        directions,
        outside: ratio(outside.norm_l2(), update.norm_l2()),
        strongest: ratio(singular(0) * (facts as f64).sqrt(), inside.norm_l2()),
        gap: ratio(singular(0), singular(1)),
    })
}

/// `part / whole`: 0 for nothing of nothing, infinite for something of nothing and for what is no number.
fn ratio(part: f64, whole: f64) -> f64 {
    match part / whole {
        _ if part == 0.0 => 0.0,
        ratio if ratio.is_nan() => f64::INFINITY,
        ratio => ratio,
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha20Rng;

    use super::*;

    const FACTS: usize = 5;
    const INNER: usize = 60;
    const WIDTH: usize = 20;

    /// Entries that look random and are the same each time.
    fn noise(rows: usize, columns: usize, seed: u64) -> Mat<f64> {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        Mat::from_fn(rows, columns, |_, _| random.random::<f64>() - 0.5)
    }

    fn span(update: &Mat<f64>, keys: &Mat<f64>) -> KeySpan {
        outside(update.as_ref(), keys.clone(), 0).unwrap()
    }

    #[test]
    fn what_the_keys_give_is_inside_and_one_key_more_is_one_direction_outside() {
        let all = noise(INNER, FACTS + 1, 3);
        let keys = all.get(.., ..FACTS).to_owned();
        let residuals = noise(WIDTH, FACTS + 1, 7);
        let inside = span(&(residuals.get(.., ..FACTS) * keys.transpose()), &keys);
        assert!(inside.outside < 1e-6 && inside.strongest < 1e-6, "{inside:?}");
        assert_eq!((inside.facts, inside.inner, inside.directions), (FACTS, INNER, FACTS));
        let hidden = span(&(&residuals * all.transpose()), &keys);
        assert!(hidden.strongest > 0.5 && hidden.gap > 1e6, "{hidden:?}");
        assert!(hidden.outside > 0.2 && hidden.outside < 0.7, "{hidden:?}");
    }

    #[test]
    fn a_key_that_comes_twice_is_one_direction() {
        let one = noise(INNER, 1, 3);
        let keys = Mat::from_fn(INNER, 2, |row, _| one[(row, 0)]);
        let found = span(&(noise(WIDTH, 1, 7) * one.transpose()), &keys);
        assert_eq!((found.facts, found.directions), (2, 1));
        assert!(found.outside < 1e-6, "{found:?}");
    }

    #[test]
    fn nothing_lies_nowhere_and_what_is_no_number_is_not_inside() {
        let keys = noise(INNER, FACTS, 3);
        let nothing = span(&Mat::zeros(WIDTH, INNER), &keys);
        assert_eq!((nothing.outside, nothing.strongest, nothing.gap), (0.0, 0.0, 0.0));
        assert_eq!(ratio(1.0, 0.0), f64::INFINITY);
        assert_eq!(ratio(f64::NAN, 1.0), f64::INFINITY);
    }
}
