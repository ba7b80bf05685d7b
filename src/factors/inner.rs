//! The inner product of two low-rank updates, from their factors: work that grows with what is stored.
//!
//! ```text
//! <D, E>  =  sum over i, j of D[i,j] * E[i,j]  =  sum over a, b of (L'M)[a,b] * (RS')[a,b]
//! ```
//!
//! `D = L R` and `E = M S`, with the scales in the factors; the matrices themselves are never made.

use rayon::prelude::*;

use super::{IntegerMatrix, Integers, Term};

/// The sum over all entries of the products of two updates of one shape; none where a term is dense.
pub fn inner_product(first: &[Term], second: &[Term]) -> Option<f64> {
    let mut sum = 0.0;
    for first in first {
        for second in second {
            sum += Factors::of(first)?.inner_product(&Factors::of(second)?);
        }
    }
    Some(sum)
}

/// A low-rank term.
struct Factors<'t> {
    left: &'t IntegerMatrix,
    right: &'t IntegerMatrix,
    row_scales: &'t [f32],
    column_scales: &'t [f32],
}

impl<'t> Factors<'t> {
    fn of(term: &'t Term) -> Option<Self> {
        let Integers::LowRank { left, right } = term.integers() else { return None };
        Some(Self { left, right, row_scales: term.row_scales(), column_scales: term.column_scales() })
    }

    fn inner_product(&self, other: &Self) -> f64 {
        let rank = self.left.columns();
        let parts: Vec<f64> = (0..rank).into_par_iter().map(|index| self.part(index, other)).collect();
        // Summed in order, so that every number of threads gives the same.
        parts.iter().sum()
    }

    /// What the direction at `index` gives with all of the other's.
    fn part(&self, index: usize, other: &Self) -> f64 {
        let mut left = vec![0.0; other.left.columns()];
        for row in 0..self.left.rows() {
            let own = f64::from(self.row_scales[row]) * f64::from(self.left.get(row, index));
            let scaled = own * f64::from(other.row_scales[row]);
            for (sum, integer) in left.iter_mut().zip(other.left.row(row).iter()) {
                *sum += scaled * f64::from(*integer);
            }
        }
        let own = self.right.row(index);
        let scales = self.column_scales.iter().zip(other.column_scales);
        let scales = scales.map(|(own, other)| f64::from(*own) * f64::from(*other));
        let scaled: Vec<f64> = own.iter().zip(scales).map(|(own, scale)| scale * f64::from(*own)).collect();
        let right = |index: usize| {
            let row = other.right.row(index);
            row.iter().zip(&scaled).map(|(integer, scaled)| f64::from(*integer) * scaled).sum::<f64>()
        };
        left.iter().enumerate().map(|(index, left)| left * right(index)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Update;
    use super::super::samples::Generator;
    use super::*;

    #[test]
    fn the_factors_give_what_the_entries_give() {
        let mut generator = Generator(7);
        let (rows, columns) = (37, 53);
        let mut update = |ranks: &[usize]| -> Vec<Term> {
            ranks.iter().map(|rank| generator.term(rows, columns, Some(*rank), 8, -20)).collect()
        };
        let updates = [update(&[1]), update(&[5, 2]), update(&[16])];
        let entries = |terms: &[Term]| {
            let update = Update::new(terms.to_vec()).expect("terms of one shape");
            update.delta_rows(0..rows).expect("these rows are there")
        };
        for first in &updates {
            for second in &updates {
                let found = inner_product(first, second).expect("no term is dense");
                let (first, second) = (entries(first), entries(second));
                let norm = |entries: &[f64]| entries.iter().map(|entry| entry * entry).sum::<f64>().sqrt();
                let expected: f64 = first.iter().zip(&second).map(|(one, other)| one * other).sum();
                // Rounding of 2000 products, against the largest that there can be.
                assert!(
                    (found - expected).abs() < 1e-13 * norm(&first) * norm(&second),
                    "{found} {expected}"
                );
            }
        }
        let dense = [generator.term(rows, columns, None, 8, -20)];
        assert_eq!(inner_product(&updates[0], &dense), None);
    }
}
