//! How two updates share keys: principal angles between the row spaces of their right factors.
//!
//! An update answers to a key as far as the key lies in the row space of its right factor. Two updates whose row
//! spaces are at right angles do not feel each other's keys; where they share a direction, a key along it gets both.

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use super::compress::{Orthogonal, Singular};
use super::{FactorError, Integers, Term};

/// An orthonormal basis of the keys that some terms answer to.
#[derive(Debug)]
pub struct KeySpace {
    /// `[columns, rank]`.
    basis: Mat<f64>,
}

/// Two key spaces against each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpaceOverlap {
    /// Smallest principal angle, in degrees.
    pub angle_degrees: f64,
    /// Mean squared cosine of the principal angles: the share of the smaller space that lies in the larger.
    pub shared: f64,
    /// What `shared` comes to on average for random spaces of these dimensions.
    pub shared_by_chance: f64,
}

impl KeySpace {
    /// The space of the sum of `terms`, all of one shape; none where one is dense, and answers to every key, or where
    /// all are zero.
    ///
    /// # Errors
    /// [`FactorError::Decomposition`].
    pub fn of(terms: &[&Term]) -> Result<Option<Self>, FactorError> {
        let mut rows: Vec<(&Term, Cow<'_, [i16]>)> = Vec::new();
        for term in terms {
            let Integers::LowRank { right, .. } = term.integers() else { return Ok(None) };
            rows.extend((0..right.rows()).map(|row| (*term, right.row(row))));
        }
        let columns = terms.first().map_or(0, |term| term.columns());
        // More rows than columns can only span what there is.
        if rows.is_empty() || rows.len() > columns {
            return Ok(None);
        }
        let entry = |column: usize, row: usize| {
            let (term, integers) = &rows[row];
            f64::from(integers[column]) * f64::from(term.column_scales()[column])
        };
        let reflections = Orthogonal::of(Mat::from_fn(columns, rows.len(), entry));
        let core = Singular::of(reflections.triangle().as_ref())?;
        let rank = core.present();
        if rank == 0 {
            return Ok(None);
        }
        Ok(Some(Self { basis: reflections.multiply(core.left.get(.., ..rank)) }))
    }

    /// Its dimension.
    pub fn rank(&self) -> usize {
        self.basis.ncols()
    }

    /// The principal angles between this space and another of as many columns.
    ///
    /// # Errors
    /// [`FactorError::Size`] for another number of columns, [`FactorError::Decomposition`].
    pub fn overlap(&self, other: &Self) -> Result<SpaceOverlap, FactorError> {
        let (expected, found) = (self.basis.nrows(), other.basis.nrows());
        if expected != found {
            return Err(FactorError::Size { what: "a key", expected, found });
        }
        let mut cosines = Mat::zeros(self.rank(), other.rank());
        let (one, other_basis) = (self.basis.transpose(), other.basis.as_ref());
        matmul(cosines.as_mut(), Accum::Replace, one, other_basis, 1.0, Par::Seq);
        let values = Singular::of(cosines.as_ref())?.values;
        let largest = values.first().copied().unwrap_or(0.0).min(1.0);
        let squares: f64 = values.iter().map(|cosine| cosine * cosine).sum();
        Ok(SpaceOverlap {
            angle_degrees: largest.acos().to_degrees(),
            shared: squares / values.len().max(1) as f64,
            shared_by_chance: self.rank().max(other.rank()) as f64 / expected as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::IntegerMatrix;
    use super::*;

    fn term(rows: &[[i16; 4]]) -> Term {
        let right = rows.concat();
        let left = IntegerMatrix::new("left", 1, rows.len(), 8, vec![1; rows.len()]).unwrap();
        let right = IntegerMatrix::new("right", rows.len(), 4, 8, right).unwrap();
        Term::new(Integers::LowRank { left, right }, vec![1.0], vec![1.0; 4]).unwrap()
    }

    fn overlap(one: &[[i16; 4]], other: &[[i16; 4]]) -> SpaceOverlap {
        let space = |rows| KeySpace::of(&[&term(rows)]).unwrap().unwrap();
        space(one).overlap(&space(other)).unwrap()
    }

    #[test]
    fn angles_are_those_of_geometry() {
        let found = overlap(&[[1, 0, 0, 0]], &[[1, 1, 0, 0]]);
        assert!(
            (found.angle_degrees - 45.0).abs() < 1e-12 && (found.shared - 0.5).abs() < 1e-12,
            "{found:?}"
        );
        let found = overlap(&[[3, 0, 0, 0], [5, 7, 0, 0]], &[[0, 0, 2, 0]]);
        assert!((found.angle_degrees - 90.0).abs() < 1e-12 && found.shared < 1e-24, "{found:?}");
        let found = overlap(&[[3, 0, 0, 0], [0, 7, 0, 0]], &[[0, 1, 0, 0], [0, 0, 0, 1]]);
        assert!(found.angle_degrees < 1e-6 && (found.shared - 0.5).abs() < 1e-12, "{found:?}");
        assert_eq!(found.shared_by_chance, 0.5);
    }

    #[test]
    fn rows_that_add_nothing_do_not_count() {
        let space = KeySpace::of(&[&term(&[[1, 2, 0, 0], [2, 4, 0, 0], [0, 0, 0, 0]])]).unwrap().unwrap();
        assert_eq!(space.rank(), 1);
        assert!(KeySpace::of(&[&term(&[[0; 4]])]).unwrap().is_none());
        let dense = IntegerMatrix::new("dense", 1, 4, 8, vec![1; 4]).unwrap();
        let dense = Term::new(Integers::Dense(dense), vec![1.0], vec![1.0; 4]).unwrap();
        assert!(KeySpace::of(&[&dense]).unwrap().is_none());
    }
}
