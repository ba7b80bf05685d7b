//! Several terms as one, as small as an error allows.

use super::compress::{BITS_DEFAULT, Compression, RankLimit, compress};
use super::quantize::{Factors, quantize_dense};
use super::{BITS_MAX, FactorError, Integers, Term, Update, in_blocks, relative_norm};

/// Rows that are compared at once.
const BLOCK_ROWS: usize = 64;

/// The sum of `terms` as one term whose relative Frobenius error is at most `tolerance`, and that error.
///
/// Half of the squared error goes to the rank, the rest to the width: the narrowest from the default on that keeps
/// within the tolerance, measured on the integers. Where 16 bits do not suffice they are taken nevertheless; the error
/// tells.
///
/// # Errors
/// [`FactorError::NoTerms`], [`FactorError::Size`] for terms of unlike shapes, [`FactorError::Decomposition`] and,
/// for values beyond f32, [`FactorError::Scale`].
pub fn recompress(terms: &[&Term], tolerance: f64) -> Result<(Term, f64), FactorError> {
    let update = Update::new(terms.iter().map(|term| (*term).clone()).collect())?;
    let sum = Sum::of(terms, &update)?;
    let mut bits = BITS_DEFAULT;
    loop {
        let term = sum.quantized(bits, tolerance * 0.5_f64.sqrt())?;
        let error = relative_error(&update, &term)?;
        if error <= tolerance || bits == BITS_MAX {
            return Ok((term, error));
        }
        bits += 2;
    }
}

/// A sum of terms in f64.
enum Sum {
    /// The terms' factors side by side.
    LowRank(Factors),
    /// The matrix itself.
    Dense { values: Vec<f64>, rows: usize, columns: usize },
}

impl Sum {
    fn of(terms: &[&Term], update: &Update) -> Result<Self, FactorError> {
        let (rows, columns) = (update.rows(), update.columns());
        let factors: Option<Vec<_>> = terms
            .iter()
            .map(|term| match term.integers() {
                Integers::LowRank { left, right } => Some((term, left, right)),
                Integers::Dense(_) => None,
            })
            .collect();
        let rank: usize = terms.iter().map(|term| term.rank()).sum();
        let Some(factors) = factors.filter(|_| rank <= rows.min(columns)) else {
            return Ok(Self::Dense { values: update.delta_rows(0..rows)?, rows, columns });
        };
        let mut left_sum = Vec::with_capacity(rows * rank);
        for row in 0..rows {
            for (term, left, _) in &factors {
                let scale = f64::from(term.row_scales()[row]);
                left_sum.extend(left.row(row).iter().map(|value| scale * f64::from(*value)));
            }
        }
        let mut right_sum = Vec::with_capacity(rank * columns);
        for (term, _, right) in &factors {
            for row in 0..right.rows() {
                let integers = right.row(row);
                let scaled = integers.iter().zip(term.column_scales());
                right_sum.extend(scaled.map(|(value, scale)| f64::from(*value) * f64::from(*scale)));
            }
        }
        Ok(Self::LowRank(Factors { left: left_sum, right: right_sum, rows, rank, columns }))
    }

    fn quantized(&self, bits: u8, tolerance: f64) -> Result<Term, FactorError> {
        match self {
            Sum::LowRank(factors) => {
                compress(factors, &Compression { bits, limit: RankLimit::Tolerance(tolerance) })
            }
            Sum::Dense { values, rows, columns } => quantize_dense(values, *rows, *columns, bits),
        }
    }
}

/// `norm(term - update) / norm(update)`; 0 where both are zero.
fn relative_error(update: &Update, term: &Term) -> Result<f64, FactorError> {
    let found = Update::new(vec![term.clone()])?;
    let (mut difference, mut size) = (0.0, 0.0);
    for rows in in_blocks(update.rows(), BLOCK_ROWS) {
        let (found, wanted) = (found.delta_rows(rows.clone())?, update.delta_rows(rows)?);
        for (found, wanted) in found.iter().zip(&wanted) {
            difference += (found - wanted).powi(2);
            size += wanted.powi(2);
        }
    }
    Ok(relative_norm(difference, size))
}

#[cfg(test)]
mod tests {
    use super::super::samples::Generator;
    use super::*;

    #[test]
    fn several_terms_become_one_within_the_tolerance() {
        let mut generator = Generator(3);
        let ranks = [Some(5), Some(3), Some(5)];
        let terms: Vec<Term> = ranks.map(|rank| generator.term(40, 60, rank, 6, -12)).into();
        // The last one twice: the sum has the rank of three terms only.
        let all = [&terms[0], &terms[1], &terms[2], &terms[2]];
        for tolerance in [0.2, 0.02, 0.002] {
            let (term, error) = recompress(&all, tolerance).unwrap();
            assert!(error <= tolerance, "{error} for {tolerance}");
            assert!(term.rank() <= 13, "rank {}", term.rank());
        }
    }

    #[test]
    fn dense_terms_and_terms_of_full_rank_give_a_dense_one() {
        let mut generator = Generator(4);
        let low = generator.term(10, 12, Some(7), 6, -12);
        let dense = generator.term(10, 12, None, 6, -12);
        for terms in [[&low, &dense], [&low, &low]] {
            let (term, error) = recompress(&terms, 0.01).unwrap();
            assert!(matches!(term.integers(), Integers::Dense(_)) && error <= 0.01, "{error}");
        }
    }
}
