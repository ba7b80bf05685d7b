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
    columns: usize,
    /// `[columns, rank]`; none for the whole space, which dense terms are said to answer to.
    basis: Option<Mat<f64>>,
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
    /// The space of the sum of `terms`, all of one shape; none where all are zero, and answer to no key.
    ///
    /// # Errors
    /// [`FactorError::Decomposition`].
    pub fn of(terms: &[&Term]) -> Result<Option<Self>, FactorError> {
        let columns = terms.first().map_or(0, |term| term.columns());
        let mut rows: Vec<(&Term, Cow<'_, [i16]>)> = Vec::new();
        for term in terms {
            match term.integers() {
                Integers::LowRank { right, .. } => {
                    rows.extend((0..right.rows()).map(|row| (*term, right.row(row))));
                }
                Integers::Dense(dense) if dense.values().iter().any(|value| *value != 0) => {
                    return Ok(Some(Self { columns, basis: None }));
                }
                Integers::Dense(_) => {}
            }
        }
        if rows.is_empty() {
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
        let basis = reflections.multiply(core.left.get(.., ..rank));
        Ok(Some(Self { columns, basis: Some(basis) }))
    }

    /// Its dimension.
    pub fn rank(&self) -> usize {
        self.basis.as_ref().map_or(self.columns, Mat::ncols)
    }

    /// The principal angles between this space and another of as many columns.
    ///
    /// # Errors
    /// [`FactorError::Size`] for another number of columns, [`FactorError::Decomposition`].
    pub fn overlap(&self, other: &Self) -> Result<SpaceOverlap, FactorError> {
        let (expected, found) = (self.columns, other.columns);
        if expected != found {
            return Err(FactorError::Size { what: "a key", expected, found });
        }
        let shared_by_chance = self.rank().max(other.rank()) as f64 / expected as f64;
        let (Some(one), Some(two)) = (&self.basis, &other.basis) else {
            return Ok(SpaceOverlap { angle_degrees: 0.0, shared: 1.0, shared_by_chance });
        };
        let mut cosines = Mat::zeros(self.rank(), other.rank());
        matmul(cosines.as_mut(), Accum::Replace, one.transpose(), two.as_ref(), 1.0, Par::Seq);
        let values = Singular::of(cosines.as_ref())?.values;
        let largest = values.first().copied().unwrap_or(0.0).min(1.0);
        let squares: f64 = values.iter().map(|cosine| cosine * cosine).sum();
        Ok(SpaceOverlap {
            angle_degrees: largest.acos().to_degrees(),
            shared: squares / values.len().max(1) as f64,
            shared_by_chance,
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
        assert!(KeySpace::of(&[&dense(0)]).unwrap().is_none());
        // More rows than there are columns, of which two say something of their own.
        let space = KeySpace::of(&[&term(&[[1, 2, 0, 0]; 4]), &term(&[[0, 0, 3, 0]; 3])]).unwrap().unwrap();
        assert_eq!(space.rank(), 2);
    }

    fn dense(value: i16) -> Term {
        let dense = IntegerMatrix::new("dense", 1, 4, 8, vec![value; 4]).unwrap();
        Term::new(Integers::Dense(dense), vec![1.0], vec![1.0; 4]).unwrap()
    }

    #[test]
    fn a_dense_term_shares_every_key() {
        let whole = KeySpace::of(&[&term(&[[1, 0, 0, 0]]), &dense(1)]).unwrap().unwrap();
        let line = KeySpace::of(&[&term(&[[1, 2, 0, 0]])]).unwrap().unwrap();
        assert_eq!((whole.rank(), line.rank()), (4, 1));
        for found in [whole.overlap(&line), line.overlap(&whole), whole.overlap(&whole)] {
            let expected = SpaceOverlap { angle_degrees: 0.0, shared: 1.0, shared_by_chance: 1.0 };
            assert_eq!(found, Ok(expected));
        }
    }
}
