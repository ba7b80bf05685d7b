//! Which rank of an update a term was cut to: factors say it by their shape, a dense product does not.
//!
//! ```text
//! update = sum over k of s_k u_k v_k^T                                        singular values s, largest first
//! |stored - first r of these|^2 = |stored|^2 + sum over k < r of (s_k^2 - 2 s_k c_k)       c_k = u_k^T stored v_k
//! ```
//!
//! A direction that was kept has a `c_k` of about `s_k` and brings the two nearer; one that was left out has what
//! rounding put there, about 0, and takes them apart. So the rank is the one at which the two are nearest. Of
//! directions that are weaker than what rounding puts there it makes no difference whether they were left out.

use faer::MatRef;

use super::compress::{Balanced, RankLimit, balance, is_stored_dense, product};
use super::quantize::Factors;
use super::{FactorError, Integers, Term, Update};

/// What a term leaves out of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cut {
    /// How many singular values the term keeps.
    pub rank: usize,
    /// How many the update has.
    pub of: usize,
    /// `norm(left out) / norm(update)`, Frobenius.
    pub left_out: f64,
}

/// The cut that makes of the product of `factors` what is nearest to `term`, of those that [`super::compress`] stores
/// as `term` is.
///
/// # Errors
/// As for [`super::compress`]; [`FactorError::Size`] for a term of another shape.
pub fn cut_of(factors: &Factors, term: &Term) -> Result<Cut, FactorError> {
    factors.check(term.bits())?;
    let (rows, columns) = (factors.rows, factors.columns);
    if (term.rows(), term.columns()) != (rows, columns) {
        let (expected, found) = (rows.saturating_mul(columns), term.rows().saturating_mul(term.columns()));
        return Err(FactorError::Size { what: "the term", expected, found });
    }
    let whole = balance(factors, RankLimit::Full)?;
    let kept = match term.integers() {
        Integers::LowRank { .. } => term.rank().min(whole.rank()),
        Integers::Dense(_) => nearest_rank(&whole, term)?,
    };
    Ok(Cut { rank: kept, of: whole.rank(), left_out: left_out(&whole.strengths(), kept) })
}

/// The rank at which `whole` is nearest to the dense `term`; all of it where no cut would be stored dense.
fn nearest_rank(whole: &Balanced, term: &Term) -> Result<usize, FactorError> {
    let (rows, columns) = (term.rows(), term.columns());
    let entries = Update::new(vec![term.clone()])?.delta_rows(0..rows)?;
    let stored = MatRef::from_row_major_slice(&entries, rows, columns);
    // Each of the two factors has the root of `s_k`.
    let read = product(whole.left.transpose(), stored);
    let mut square = 0.0;
    let mut nearest = (f64::INFINITY, whole.rank());
    for (direction, strength) in whole.strengths().into_iter().enumerate() {
        let shared: f64 =
            (0..columns).map(|column| read[(direction, column)] * whole.right[(direction, column)]).sum();
        square += strength * strength - 2.0 * shared;
        let rank = direction + 1;
        if is_stored_dense(rank, rows, columns) && square <= nearest.0 {
            nearest = (square, rank);
        }
    }
    Ok(nearest.1)
}

/// The share of the singular values behind the first `kept`.
fn left_out(strengths: &[f64], kept: usize) -> f64 {
    // The largest is 1, so that no square is too small to count.
    let largest = strengths.first().copied().unwrap_or(1.0);
    let energy = |values: &[f64]| values.iter().rev().map(|value| (value / largest).powi(2)).sum::<f64>();
    let tail = strengths.get(kept..).unwrap_or_default();
    if tail.is_empty() { 0.0 } else { (energy(tail) / energy(strengths)).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Generator;
    use super::super::{Compression, compress};
    use super::*;

    const ROWS: usize = 40;
    const COLUMNS: usize = 60;
    const FACTS: usize = 38;

    /// Gaussian factors, each direction a little weaker than the one before.
    fn factors() -> Factors {
        let mut generator = Generator(5);
        let decay = |index: usize| 0.95_f64.powi((index % FACTS) as i32);
        let left = (0..ROWS * FACTS).map(|index| generator.gaussian() * decay(index)).collect();
        let right = (0..FACTS * COLUMNS).map(|_| generator.gaussian() * 1e-3).collect();
        Factors { left, right, rows: ROWS, rank: FACTS, columns: COLUMNS }
    }

    fn term(bits: u8, limit: RankLimit) -> Term {
        compress(&factors(), &Compression { bits, limit }).unwrap()
    }

    fn cut(term: &Term) -> Cut {
        cut_of(&factors(), term).unwrap()
    }

    #[test]
    fn the_rank_of_a_term_is_told_whether_it_is_dense_or_not() {
        // 40 * 60 / (40 + 60) = 24 is the last rank whose factors are not larger than the matrix.
        for bits in [5, 6, 8] {
            for rank in [1, 10, 24, 25, 26, 30, 37] {
                let term = term(bits, RankLimit::Rank(rank));
                assert_eq!(matches!(term.integers(), Integers::Dense(_)), rank > 24);
                let found = cut(&term);
                assert_eq!((found.rank, found.of), (rank, FACTS), "{bits} bits");
                assert!(found.left_out > 0.0 && found.left_out < 1.0, "{found:?}");
            }
            assert_eq!(cut(&term(bits, RankLimit::Full)), Cut { rank: FACTS, of: FACTS, left_out: 0.0 });
        }
    }

    #[test]
    fn what_is_left_out_is_within_the_tolerance_that_was_asked_for() {
        for tolerance in [0.02, 0.1, 0.3] {
            let found = cut(&term(8, RankLimit::Tolerance(tolerance)));
            assert!(found.rank < FACTS && found.left_out <= tolerance, "{tolerance}: {found:?}");
        }
    }

    #[test]
    fn a_term_of_another_shape_is_refused_and_one_of_another_update_has_some_rank() {
        let other = Generator(7).term(COLUMNS, ROWS, None, 6, 0);
        let refused = cut_of(&factors(), &Generator(7).term(3, 4, None, 6, 0));
        assert!(matches!(refused, Err(FactorError::Size { what: "the term", .. })), "{refused:?}");
        assert!(cut_of(&factors(), &other).is_err());
        let found = cut(&Generator(7).term(ROWS, COLUMNS, None, 6, 0));
        assert!(found.rank > 24 && found.rank <= FACTS, "{found:?}");
        let zeros = Factors { left: vec![0.0; 12], right: vec![1.0; 20], rows: 3, rank: 4, columns: 5 };
        let nothing = cut_of(&zeros, &Generator(7).term(3, 5, None, 6, 0)).unwrap();
        assert_eq!(nothing, Cut { rank: 0, of: 0, left_out: 0.0 });
    }
}
