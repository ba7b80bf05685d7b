//! The largest singular values of a matrix that is read some rows at a time.
//!
//! ```text
//! Y = D Ω          a few random combinations of the columns span nearly what the largest singular vectors span
//! Z = Dᵀ Y         once more there and back, so that small singular values blur them less
//! D ≈ Q (Qᵀ D)     Q spans D Z; what is left to decompose has as many rows as Ω has columns
//! ```
//!
//! (Halko, Martinsson and Tropp 2011, algorithm 4.3 with one iteration.) Four passes over the rows. Memory is two
//! matrices of `size` rows or columns and one block of rows: for 4096 by 16384 and a size of 256 about 200 MB. The
//! random numbers come from a fixed seed and sums run in a fixed order: the same matrix gives the same factors.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::compress::{Orthogonal, Singular};
use super::{FactorError, Factors, in_blocks};

const SEED: u64 = 0x736b_6574_6368;
/// Numbers of one block of rows.
const BLOCK_ENTRIES: usize = 1 << 22;
/// Rows or columns of one parallel product.
const STRIPE: usize = 512;

/// The largest singular values of a matrix, with their vectors, and what they leave.
#[derive(Debug, Clone)]
pub struct Sketch {
    /// `[rows, rank]`: left singular vectors.
    left: Mat<f64>,
    /// Singular values, from the largest down.
    values: Vec<f64>,
    /// `[rank, columns]`: right singular vectors.
    right: Mat<f64>,
    /// Squared Frobenius norm of the whole matrix.
    energy: f64,
}

impl Sketch {
    /// How often all rows are read.
    pub(crate) const PASSES: u64 = 4;

    /// Sketches a matrix of `rows` by `columns` with `size` random combinations; `read` gives some rows, row-major.
    ///
    /// The first values are nearly exact, the last of `size` are too small where more follow.
    ///
    /// # Errors
    /// What `read` fails with, and [`FactorError::Decomposition`].
    pub fn of<E: From<FactorError>>(
        rows: usize,
        columns: usize,
        size: usize,
        read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f64>, E>,
    ) -> Result<Self, E> {
        let size = size.min(rows).min(columns);
        let mut source = Source { rows, columns, read };
        let mut random = ChaCha8Rng::seed_from_u64(SEED);
        // Row by row, so that the order of the draws is fixed.
        let mut start = Mat::zeros(columns, size);
        for row in 0..columns {
            for column in 0..size {
                start[(row, column)] = random.random_range(-1.0..1.0);
            }
        }
        let (combined, energy) = source.times(start.as_ref())?;
        let there = source.transposed_times(basis(combined).as_ref())?;
        let (combined, _) = source.times(basis(there).as_ref())?;
        let left_basis = basis(combined);
        let rest = source.transposed_times(left_basis.as_ref())?;
        let reflections = Orthogonal::of(rest);
        let core = Singular::of(reflections.triangle().as_ref())?;
        let rank = core.present();
        // Dᵀ Q = P T = P U s Vᵀ, so D ≈ (Q V) s (P U)ᵀ.
        let mut left = Mat::zeros(rows, rank);
        let vectors = core.right.get(.., ..rank);
        matmul(left.as_mut(), Accum::Replace, left_basis.as_ref(), vectors, 1.0, Par::Seq);
        let right = reflections.multiply(core.left.get(.., ..rank)).transpose().to_owned();
        Ok(Self { left, values: core.values[..rank].to_vec(), right, energy })
    }

    /// The singular values that were found, from the largest down.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Frobenius norm of the whole matrix.
    pub fn norm(&self) -> f64 {
        self.energy.sqrt()
    }

    /// How many singular values hold this share of the squared norm; none where it takes more than were found.
    pub fn effective_rank(&self, share: f64) -> Option<usize> {
        let mut held = 0.0;
        if self.energy == 0.0 {
            return Some(0);
        }
        self.values
            .iter()
            .position(|value| {
                held += value * value;
                held >= share * self.energy
            })
            .map(|index| index + 1)
    }

    /// The best matrix of `rank` that the sketch knows.
    pub fn factors(&self, rank: usize) -> Factors {
        let rank = rank.min(self.values.len());
        let (rows, columns) = (self.left.nrows(), self.right.ncols());
        let root = |index: usize| self.values[index].sqrt();
        let left = (0..rows).flat_map(|row| (0..rank).map(move |k| self.left[(row, k)] * root(k)));
        let right = (0..rank).flat_map(|k| (0..columns).map(move |column| root(k) * self.right[(k, column)]));
        Factors { left: left.collect(), right: right.collect(), rows, rank, columns }
    }
}

/// An orthonormal basis of the columns of `matrix`, which has no more columns than rows.
fn basis(matrix: Mat<f64>) -> Mat<f64> {
    let size = matrix.ncols();
    Orthogonal::of(matrix).multiply(Mat::identity(size, size).as_ref())
}

/// The matrix, some rows at a time.
struct Source<'a, E> {
    rows: usize,
    columns: usize,
    read: &'a mut dyn FnMut(Range<usize>) -> Result<Vec<f64>, E>,
}

impl<E: From<FactorError>> Source<'_, E> {
    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<E> {
        in_blocks(self.rows, (BLOCK_ENTRIES / self.columns.max(1)).max(1))
    }

    fn read(&mut self, rows: Range<usize>) -> Result<Vec<f64>, E> {
        let expected = rows.len() * self.columns;
        let block = (self.read)(rows)?;
        if block.len() != expected {
            return Err(FactorError::Size { what: "a block of rows", expected, found: block.len() }.into());
        }
        Ok(block)
    }

    /// `D · right`, and the squared norm of `D`.
    fn times(&mut self, right: MatRef<'_, f64>) -> Result<(Mat<f64>, f64), E> {
        let mut result = Mat::zeros(self.rows, right.ncols());
        let mut energy = 0.0;
        for rows in self.blocks() {
            let block = self.read(rows.clone())?;
            energy += block.iter().map(|value| value * value).sum::<f64>();
            let block = MatRef::from_row_major_slice(&block, rows.len(), self.columns);
            // Stripes of rows: no sum crosses one.
            let mut stripes = Vec::new();
            let mut rest = result.as_mut().subrows_mut(rows.start, rows.len());
            let mut first = 0;
            while rest.nrows() > 0 {
                let size = rest.nrows().min(STRIPE / 8);
                let (stripe, others) = rest.split_at_row_mut(size);
                stripes.push((block.subrows(first, size), stripe));
                (rest, first) = (others, first + size);
            }
            stripes.into_par_iter().for_each(|(block, stripe)| {
                matmul(stripe, Accum::Replace, block, right, 1.0, Par::Seq);
            });
        }
        Ok((result, energy))
    }

    /// `Dᵀ · left`.
    fn transposed_times(&mut self, left: MatRef<'_, f64>) -> Result<Mat<f64>, E> {
        let mut result = Mat::<f64>::zeros(self.columns, left.ncols());
        for rows in self.blocks() {
            let block = self.read(rows.clone())?;
            let block = MatRef::from_row_major_slice(&block, rows.len(), self.columns).transpose();
            let left = left.subrows(rows.start, rows.len());
            let mut stripes: Vec<(MatRef<'_, f64>, MatMut<'_, f64>)> = Vec::new();
            let (mut rest, mut first) = (result.as_mut(), 0);
            while rest.nrows() > 0 {
                let size = rest.nrows().min(STRIPE);
                let (stripe, others) = rest.split_at_row_mut(size);
                stripes.push((block.subrows(first, size), stripe));
                (rest, first) = (others, first + size);
            }
            stripes.into_par_iter().for_each(|(block, stripe)| {
                matmul(stripe, Accum::Add, block, left, 1.0, Par::Seq);
            });
        }
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Generator;
    use super::*;

    /// A matrix with these singular values, row-major.
    fn with_values(rows: usize, columns: usize, values: &[f64]) -> Vec<f64> {
        let mut generator = Generator(9);
        let mut gaussian = |size| basis(Mat::from_fn(size, values.len(), |_, _| generator.gaussian()));
        let (left, right) = (gaussian(rows), gaussian(columns));
        let entry = |row: usize, column: usize| {
            (0..values.len()).map(|k| left[(row, k)] * values[k] * right[(column, k)]).sum()
        };
        (0..rows)
            .flat_map(|row| (0..columns).map(move |column| (row, column)))
            .map(|(r, c)| entry(r, c))
            .collect()
    }

    fn sketch(matrix: &[f64], rows: usize, columns: usize, size: usize) -> Sketch {
        let mut read = |rows: Range<usize>| {
            Ok::<_, FactorError>(matrix[rows.start * columns..rows.end * columns].to_vec())
        };
        Sketch::of(rows, columns, size, &mut read).unwrap()
    }

    #[test]
    fn a_matrix_of_low_rank_is_found_whole() {
        for (rows, columns) in [(30, 70), (70, 30), (700, 40)] {
            let values = [9.0, 5.0, 2.0, 0.25];
            let matrix = with_values(rows, columns, &values);
            let found = sketch(&matrix, rows, columns, 10);
            assert_eq!(found.values().len(), 4);
            for (found, expected) in found.values().iter().zip(values) {
                assert!((found / expected - 1.0).abs() < 1e-10, "{found} for {expected}");
            }
            let Factors { left, right, .. } = found.factors(4);
            for (index, expected) in matrix.iter().enumerate() {
                let (row, column) = (index / columns, index % columns);
                let entry: f64 = (0..4).map(|k| left[row * 4 + k] * right[k * columns + column]).sum();
                assert!((entry - expected).abs() < 1e-10, "{row}, {column}: {entry} for {expected}");
            }
            assert!(
                (found.norm() - values.iter().map(|value| value * value).sum::<f64>().sqrt()).abs() < 1e-9
            );
            assert_eq!((found.effective_rank(0.7), found.effective_rank(0.99)), (Some(1), Some(3)));
        }
    }

    #[test]
    fn the_largest_values_stand_out_from_many_small_ones() {
        let mut values = vec![5.0, 4.0, 3.0];
        values.extend([0.05; 40]);
        let matrix = with_values(60, 90, &values);
        let found = sketch(&matrix, 60, 90, 12);
        for (found, expected) in found.values().iter().zip([5.0, 4.0, 3.0]) {
            assert!((found / expected - 1.0).abs() < 1e-3, "{found} for {expected}");
        }
        assert_eq!(found.effective_rank(0.999_9), None);
    }

    #[test]
    fn nothing_has_rank_zero() {
        let found = sketch(&[0.0; 12], 3, 4, 3);
        assert_eq!((found.values().len(), found.effective_rank(0.99)), (0, Some(0)));
        assert!(found.factors(2).left.is_empty());
    }
}
