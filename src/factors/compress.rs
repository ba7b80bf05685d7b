//! The smallest integers that say an update well enough.
//!
//! ```text
//! left · right  =  U · diag(s) · V          singular values s, of which the largest are kept
//!               =  (U √s Q) · (Qᵀ √s V)     any orthogonal Q: the gauge is ours to choose
//! ```
//!
//! A random rotation Q gives every column of the left factor, and every row of the right one, the same size, so
//! that one scale per vector serves all of its entries. Then vectors are rounded entry by entry, and what the
//! rounding of one entry lost is made good by the entries still to come: the error is measured on the product,
//! not on the factor, so the other factor's Gram matrix says how entries stand in for each other. The right factor
//! is fitted anew to the left one as it was rounded.
//!
//! All linear algebra here runs on one thread and the rotation comes from a fixed seed: the same update gives the
//! same integers.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::linalg::matmul::matmul;
use faer::linalg::qr::no_pivoting::factor::{qr_in_place, qr_in_place_scratch, recommended_block_size};
use faer::linalg::{householder, svd};
use faer::{Accum, Conj, Mat, MatRef, Par};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::quantize::{Factors, nearest_integer, quantize_dense, scale_at_least};
use super::{FactorError, IntegerMatrix, Integers, Term, magnitude_limit};

/// Width of the integers where none is asked for: the smallest that loses less than 0.1 Score on the embedded model
/// at every number of facts (`docs/memit.md`, size against Score).
pub const BITS_DEFAULT: u8 = 6;

/// Seed of the rotation. It shows in the integers of a patch but no reader needs it.
const ROTATION_SEED: u64 = 0x6d70_6174_6368;
/// Vectors rounded side by side, so that one pass over the Gram matrix serves them all.
const LANES: usize = 16;
/// Scales tried for each vector, relative to the one that fits its largest entry: a little finer pays where many
/// small entries gain more than the largest one loses.
const SCALE_FACTORS: [f64; 6] = [1.08, 1.0, 0.92, 0.84, 0.76, 0.68];
/// Added to a Gram matrix, relative to its mean diagonal, so that it can be factorised where it is singular.
const RIDGE: f64 = 1e-6;

/// How small an update is to become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compression {
    /// Width of the integers, 2 to 16.
    pub bits: u8,
    /// How many singular values are kept.
    pub limit: RankLimit,
}

/// How many singular values of an update are kept; those that are zero to f64's precision never are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankLimit {
    /// All of them.
    Full,
    /// At most so many, the largest first.
    Rank(usize),
    /// As few as leave a relative Frobenius error of at most this, before quantisation.
    Tolerance(f64),
}

/// Compresses the product of `factors` to a term.
///
/// The term is dense where factors of the rank that is kept would cost more integers. An update of zeros becomes
/// factors of rank 1 that hold zeros.
///
/// # Errors
/// [`FactorError::Bits`], [`FactorError::Size`], [`FactorError::NotFinite`], [`FactorError::Decomposition`] and,
/// for values beyond f32, [`FactorError::Scale`].
pub fn compress(factors: &Factors, compression: &Compression) -> Result<Term, FactorError> {
    let bits = compression.bits;
    factors.check(bits)?;
    let (rows, columns) = (factors.rows, factors.columns);
    let balanced = balance(factors, compression.limit)?;
    if balanced.rank() == 0 {
        return Term::zero([rows, columns], bits);
    }
    if is_stored_dense(balanced.rank(), rows, columns) {
        let dense = product(balanced.left.as_ref(), balanced.right.as_ref());
        return quantize_dense(&row_major(dense.as_ref()), rows, columns, bits);
    }
    quantize(&balanced.rotate(), bits)
}

/// Whether factors of this rank would cost more integers than the product.
pub(super) fn is_stored_dense(rank: usize, rows: usize, columns: usize) -> bool {
    rank * (rows + columns) > rows * columns
}

// --------------------------------------------------------------------------------------------- singular values --

/// Two factors that share the update's singular values evenly.
#[derive(Debug)]
pub(super) struct Balanced {
    /// `[rows, rank]`.
    pub(super) left: Mat<f64>,
    /// `[rank, columns]`.
    pub(super) right: Mat<f64>,
}

impl Balanced {
    pub(super) fn rank(&self) -> usize {
        self.left.ncols()
    }

    /// The singular values, largest first.
    pub(super) fn strengths(&self) -> Vec<f64> {
        self.left.col_iter().map(|column| column.squared_norm_l2()).collect()
    }

    /// Rotates the rank space by a random orthogonal matrix; the product stays the same.
    fn rotate(&self) -> Self {
        let rank = self.rank();
        let mut random = ChaCha8Rng::seed_from_u64(ROTATION_SEED);
        // Column by column, so that the order of the draws is fixed.
        let mut entries = Mat::zeros(rank, rank);
        for column in 0..rank {
            for row in 0..rank {
                entries[(row, column)] = random.random_range(-1.0..1.0);
            }
        }
        let rotation = Orthogonal::of(entries).multiply(Mat::identity(rank, rank).as_ref());
        Self {
            left: product(self.left.as_ref(), rotation.as_ref()),
            right: product(rotation.transpose(), self.right.as_ref()),
        }
    }
}

/// Both factors, whose sizes have been checked.
fn matrices(Factors { left, right, rows, rank, columns }: &Factors) -> (MatRef<'_, f64>, MatRef<'_, f64>) {
    let left = MatRef::from_row_major_slice(left, *rows, *rank);
    (left, MatRef::from_row_major_slice(right, *rank, *columns))
}

/// Decomposes the product without forming it, and keeps as many singular values as `limit` says.
pub(super) fn balance(factors: &Factors, limit: RankLimit) -> Result<Balanced, FactorError> {
    let (left, right) = matrices(factors);
    let left_basis = Orthogonal::of(left.to_owned());
    let right_basis = Orthogonal::of(right.transpose().to_owned());
    let core = product(left_basis.triangle().as_ref(), right_basis.triangle().transpose());
    let core = Singular::of(core.as_ref())?;
    let rank = kept_rank(&core.values, left.ncols(), limit);
    let share = |vectors: &Mat<f64>| {
        let entry = |row: usize, column: usize| vectors[(row, column)] * core.values[column].sqrt();
        Mat::from_fn(vectors.nrows(), rank, entry)
    };
    Ok(Balanced {
        left: left_basis.multiply(share(&core.left).as_ref()),
        right: right_basis.multiply(share(&core.right).as_ref()).transpose().to_owned(),
    })
}

/// How many of the singular values, largest first, are kept.
fn kept_rank(singular_values: &[f64], rank: usize, limit: RankLimit) -> usize {
    let largest = singular_values.first().copied().unwrap_or(0.0);
    let present = present(singular_values, rank);
    match limit {
        RankLimit::Full => present,
        RankLimit::Rank(rank) => present.min(rank),
        RankLimit::Tolerance(tolerance) => {
            let energy =
                |values: &[f64]| values.iter().rev().map(|value| (value / largest).powi(2)).sum::<f64>();
            let allowed = tolerance * tolerance * energy(singular_values);
            (0..present).find(|rank| energy(&singular_values[*rank..present]) <= allowed).unwrap_or(present)
        }
    }
}

/// How many singular values are not zero to f64's precision, of a matrix of at most `rank`.
fn present(singular_values: &[f64], rank: usize) -> usize {
    let largest = singular_values.first().copied().unwrap_or(0.0);
    // What a singular value that is zero comes to in f64.
    let noise = largest * f64::EPSILON * rank as f64;
    singular_values.iter().take_while(|value| **value > noise).count()
}

/// A QR decomposition, its orthogonal factor kept as reflections.
#[derive(Debug)]
pub(super) struct Orthogonal {
    // The reflections below the diagonal, the triangle on and above it.
    packed: Mat<f64>,
    coefficients: Mat<f64>,
}

impl Orthogonal {
    pub(super) fn of(mut matrix: Mat<f64>) -> Self {
        let (rows, columns) = matrix.shape();
        let block_size = recommended_block_size::<f64>(rows, columns);
        let mut coefficients = Mat::zeros(block_size, rows.min(columns));
        let scratch = qr_in_place_scratch::<f64>(rows, columns, block_size, Par::Seq, Default::default());
        let mut buffer = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut buffer);
        qr_in_place(matrix.as_mut(), coefficients.as_mut(), Par::Seq, stack, Default::default());
        Self { packed: matrix, coefficients }
    }

    /// The upper triangle (or trapezium), `[min(rows, columns), columns]`.
    pub(super) fn triangle(&self) -> Mat<f64> {
        let entry = |row: usize, column: usize| if row <= column { self.packed[(row, column)] } else { 0.0 };
        Mat::from_fn(self.coefficients.ncols(), self.packed.ncols(), entry)
    }

    /// The orthonormal columns times `matrix [min(rows, columns), any]`.
    pub(super) fn multiply(&self, matrix: MatRef<'_, f64>) -> Mat<f64> {
        let (rows, size) = (self.packed.nrows(), self.coefficients.ncols());
        let mut result = Mat::zeros(rows, matrix.ncols());
        result.get_mut(..size, ..).copy_from(matrix);
        let scratch = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
            rows,
            self.coefficients.nrows(),
            matrix.ncols(),
        );
        let mut buffer = MemBuffer::new(scratch);
        householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
            self.packed.get(.., ..size),
            self.coefficients.as_ref(),
            Conj::No,
            result.as_mut(),
            Par::Seq,
            MemStack::new(&mut buffer),
        );
        result
    }
}

/// `matrix = left · diag(values) · rightᵀ`, the values from the largest down.
#[derive(Debug)]
pub(super) struct Singular {
    pub(super) left: Mat<f64>,
    pub(super) values: Vec<f64>,
    pub(super) right: Mat<f64>,
}

impl Singular {
    pub(super) fn of(matrix: MatRef<'_, f64>) -> Result<Self, FactorError> {
        let (rows, columns) = matrix.shape();
        let size = rows.min(columns);
        let (mut left, mut right) = (Mat::zeros(rows, size), Mat::zeros(columns, size));
        let mut values = Diag::<f64>::zeros(size);
        let thin = svd::ComputeSvdVectors::Thin;
        let scratch = svd::svd_scratch::<f64>(rows, columns, thin, thin, Par::Seq, Default::default());
        let mut buffer = MemBuffer::new(scratch);
        let outcome = svd::svd(
            matrix,
            values.as_mut(),
            Some(left.as_mut()),
            Some(right.as_mut()),
            Par::Seq,
            MemStack::new(&mut buffer),
            Default::default(),
        );
        let values: Vec<f64> = (0..size).map(|index| values[index]).collect();
        if outcome.is_err() || values.iter().any(|value| !value.is_finite()) {
            return Err(FactorError::Decomposition { rows, columns });
        }
        Ok(Self { left, values, right })
    }

    /// How many of the values are not zero to f64's precision.
    pub(super) fn present(&self) -> usize {
        present(&self.values, self.values.len())
    }
}

pub(super) fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut result = Mat::zeros(left.nrows(), right.ncols());
    matmul(result.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    result
}

fn row_major(matrix: MatRef<'_, f64>) -> Vec<f64> {
    (0..matrix.nrows()).flat_map(|row| (0..matrix.ncols()).map(move |column| matrix[(row, column)])).collect()
}

// ---------------------------------------------------------------------------------------------------- rounding --

/// Rounds the left factor so that the product suffers least, then fits and rounds the right factor to it.
fn quantize(factors: &Balanced, bits: u8) -> Result<Term, FactorError> {
    let (rows, rank, columns) = (factors.left.nrows(), factors.rank(), factors.right.ncols());
    let right_gram = Gram::of(product(factors.right.as_ref(), factors.right.transpose()))?;
    let left = Rounded::of(factors.left.transpose(), &right_gram, bits);
    let left_rounded = left.values(rank);
    let left_gram = Gram::of(product(left_rounded.as_ref(), left_rounded.transpose()))?;
    let mut fitted =
        product(product(left_rounded.as_ref(), factors.left.as_ref()).as_ref(), factors.right.as_ref());
    left_gram.solve(&mut fitted);
    let right = Rounded::of(fitted.as_ref(), &left_gram, bits);
    let transposed =
        (0..rank * columns).map(|index| right.integers[index % columns * rank + index / columns]);
    let integers = Integers::LowRank {
        left: IntegerMatrix::new("the left factor", rows, rank, bits, left.integers)?,
        right: IntegerMatrix::new("the right factor", rank, columns, bits, transposed.collect())?,
    };
    Term::new(integers, left.scales, right.scales)
}

/// How errors in the entries of a vector add up in the product: `error · G · error`, factorised.
#[derive(Debug)]
struct Gram {
    // G = lower · lowerᵀ.
    lower: Mat<f64>,
    // Row j: what an error of 1 in entry j asks of each earlier entry.
    feedback: Vec<f64>,
    // What an error of 1 costs once earlier entries have answered for it.
    costs: Vec<f64>,
}

impl Gram {
    fn of(mut gram: Mat<f64>) -> Result<Self, FactorError> {
        let size = gram.nrows();
        let trace: f64 = (0..size).map(|index| gram[(index, index)]).sum();
        for index in 0..size {
            gram[(index, index)] += RIDGE * trace / size as f64;
        }
        let scratch = llt::factor::cholesky_in_place_scratch::<f64>(size, Par::Seq, Default::default());
        let mut buffer = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut buffer);
        llt::factor::cholesky_in_place(
            gram.as_mut(),
            Default::default(),
            Par::Seq,
            stack,
            Default::default(),
        )
        .map_err(|_| FactorError::Decomposition { rows: size, columns: size })?;
        let feedback = |index: usize| {
            let (row, column) = (index / size, index % size);
            if column < row { gram[(row, column)] / gram[(column, column)] } else { 0.0 }
        };
        Ok(Self {
            feedback: (0..size * size).map(feedback).collect(),
            costs: (0..size).map(|index| gram[(index, index)].powi(2)).collect(),
            lower: gram,
        })
    }

    /// Replaces `right_hand` by `G⁻¹ · right_hand`.
    fn solve(&self, right_hand: &mut Mat<f64>) {
        let scratch =
            llt::solve::solve_in_place_scratch::<f64>(self.costs.len(), right_hand.ncols(), Par::Seq);
        let mut buffer = MemBuffer::new(scratch);
        let stack = MemStack::new(&mut buffer);
        llt::solve::solve_in_place(self.lower.as_ref(), right_hand.as_mut(), Par::Seq, stack);
    }
}

/// Vectors as integers, one vector after another, and one scale each.
#[derive(Debug)]
struct Rounded {
    integers: Vec<i16>,
    scales: Vec<f32>,
}

impl Rounded {
    /// Rounds each column of `vectors`.
    fn of(vectors: MatRef<'_, f64>, gram: &Gram, bits: u8) -> Self {
        let count = vectors.ncols();
        let firsts: Vec<usize> = (0..count).step_by(LANES).collect();
        let batches: Vec<Batch> = firsts
            .into_par_iter()
            .map(|first| Batch::best(vectors.get(.., first..count.min(first + LANES)), gram, bits))
            .collect();
        let mut rounded = Self { integers: Vec::new(), scales: Vec::new() };
        for (index, batch) in batches.iter().enumerate() {
            for lane in 0..LANES.min(count - index * LANES) {
                rounded.integers.extend(batch.integers.iter().map(|lanes| lanes[lane]));
                rounded.scales.push(batch.scales[lane]);
            }
        }
        rounded
    }

    /// The values that the integers stand for, one vector per column.
    fn values(&self, rank: usize) -> Mat<f64> {
        Mat::from_fn(rank, self.scales.len(), |entry, vector| {
            f64::from(self.scales[vector]) * f64::from(self.integers[vector * rank + entry])
        })
    }
}

/// Up to [`LANES`] vectors side by side, rounded; lanes without a vector hold zeros.
#[derive(Debug, Clone)]
struct Batch {
    integers: Vec<[i16; LANES]>,
    scales: [f32; LANES],
    errors: [f64; LANES],
}

impl Batch {
    /// Rounds with several scales and keeps, for each vector, the one with the smallest error in the product.
    fn best(vectors: MatRef<'_, f64>, gram: &Gram, bits: u8) -> Self {
        let entry = |row: usize, lane: usize| if lane < vectors.ncols() { vectors[(row, lane)] } else { 0.0 };
        let values: Vec<[f64; LANES]> =
            (0..vectors.nrows()).map(|row| std::array::from_fn(|lane| entry(row, lane))).collect();
        let largest: [f64; LANES] = std::array::from_fn(|lane| {
            values.iter().fold(0.0, |largest: f64, lanes| largest.max(lanes[lane].abs()))
        });
        let limit = magnitude_limit(bits);
        let scales = |factor: f64| largest.map(|largest| scale_at_least(factor * largest / f64::from(limit)));
        let mut best = Self::round(&values, scales(SCALE_FACTORS[0]), gram, limit);
        for factor in &SCALE_FACTORS[1..] {
            best.take_better(&Self::round(&values, scales(*factor), gram, limit));
        }
        best
    }

    /// Rounds entries from the last to the first, each making good what later ones lost.
    fn round(values: &[[f64; LANES]], scales: [f32; LANES], gram: &Gram, limit: i16) -> Self {
        let rank = values.len();
        let mut wanted = values.to_vec();
        let mut batch = Self { integers: vec![[0; LANES]; rank], scales, errors: [0.0; LANES] };
        for index in (0..rank).rev() {
            let mut errors = [0.0; LANES];
            for lane in 0..LANES {
                let scale = f64::from(scales[lane]);
                let integer = nearest_integer(wanted[index][lane], scale, limit);
                batch.integers[index][lane] = integer;
                let residual = wanted[index][lane] - scale * f64::from(integer);
                batch.errors[lane] += gram.costs[index] * residual * residual;
                errors[lane] = values[index][lane] - scale * f64::from(integer);
            }
            let feedback = &gram.feedback[index * rank..index * rank + index];
            for (wanted, feedback) in wanted.iter_mut().zip(feedback) {
                for (wanted, error) in wanted.iter_mut().zip(errors) {
                    *wanted += feedback * error;
                }
            }
        }
        batch
    }

    fn take_better(&mut self, other: &Self) {
        for lane in 0..LANES {
            if other.errors[lane] >= self.errors[lane] {
                continue;
            }
            self.errors[lane] = other.errors[lane];
            self.scales[lane] = other.scales[lane];
            for (integers, other) in self.integers.iter_mut().zip(&other.integers) {
                integers[lane] = other[lane];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::Generator;
    use super::super::{Update, quantize_low_rank};
    use super::*;

    struct Sample(Factors);

    impl Sample {
        /// Gaussian factors; `decay` is the ratio of one rank's size to the one before.
        fn new(rows: usize, rank: usize, columns: usize, decay: f64) -> Self {
            let mut generator = Generator(11);
            let left = (0..rows * rank)
                .map(|index| generator.gaussian() * decay.powi((index % rank) as i32))
                .collect();
            let right = (0..rank * columns).map(|_| generator.gaussian() * 1e-3).collect();
            Self(Factors { left, right, rows, rank, columns })
        }

        fn compress(&self, bits: u8, limit: RankLimit) -> Term {
            compress(&self.0, &Compression { bits, limit }).unwrap()
        }

        /// What a rotation and nearest integers alone come to.
        fn rotate_and_round(&self, bits: u8) -> Term {
            let rotated = balance(&self.0, RankLimit::Full).unwrap().rotate();
            let (left, right) = (row_major(rotated.left.as_ref()), row_major(rotated.right.as_ref()));
            let factors = Factors { left, right, rank: rotated.rank(), ..self.0 };
            quantize_low_rank(&factors, bits).unwrap()
        }

        /// Frobenius norm of what the term misses, relative to the update.
        fn error(&self, term: Term) -> f64 {
            let (left, right) = matrices(&self.0);
            let wanted = row_major(product(left, right).as_ref());
            let found = Update::new(vec![term]).unwrap().delta_rows(0..self.0.rows).unwrap();
            let missed: f64 = found.iter().zip(&wanted).map(|(found, wanted)| (found - wanted).powi(2)).sum();
            (missed / wanted.iter().map(|wanted| wanted.powi(2)).sum::<f64>()).sqrt()
        }
    }

    fn rank_of(term: &Term) -> Option<usize> {
        match term.integers() {
            Integers::LowRank { left, .. } => Some(left.columns()),
            Integers::Dense(_) => None,
        }
    }

    #[test]
    fn every_width_misses_little_of_a_gaussian_update() {
        // A rotation and nearest integers alone leave 0.0078, 0.032 and 0.141.
        let sample = Sample::new(128, 100, 512, 1.0);
        for (bits, largest) in [(8, 0.006), (6, 0.025), (4, 0.1)] {
            let error = sample.error(sample.compress(bits, RankLimit::Full));
            assert!(error < largest, "{bits} bits miss {error}, expected less than {largest}");
        }
    }

    #[test]
    fn feedback_beats_rounding_each_integer_alone() {
        for (rows, columns, decay) in [(128, 512, 0.97), (256, 512, 0.97), (300, 600, 1.0)] {
            let sample = Sample::new(rows, 60, columns, decay);
            for bits in [3, 4, 8, 16] {
                let error = sample.error(sample.compress(bits, RankLimit::Full));
                let alone = sample.error(sample.rotate_and_round(bits));
                assert!(error < 0.95 * alone, "{rows} by {columns}, {bits} bits: {error} against {alone}");
            }
        }
    }

    #[test]
    fn the_same_update_gives_the_same_integers_on_any_number_of_threads() {
        let sample = Sample::new(70, 20, 90, 0.9);
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| sample.compress(6, RankLimit::Full))
        };
        assert_eq!(on(1), on(2));
        assert_eq!(on(1), on(5));
    }

    #[test]
    fn a_tolerance_is_honoured_with_the_smallest_rank() {
        let sample = Sample::new(60, 25, 200, 0.8);
        for tolerance in [0.3, 0.1, 0.01] {
            let term = sample.compress(16, RankLimit::Tolerance(tolerance));
            let rank = rank_of(&term).unwrap();
            let error = sample.error(term);
            assert!(error <= tolerance + 1e-4, "rank {rank} misses {error}, allowed {tolerance}");
            let fewer = sample.error(sample.compress(16, RankLimit::Rank(rank - 1)));
            assert!(fewer > tolerance, "rank {} would have done: {fewer}", rank - 1);
        }
    }

    #[test]
    fn ranks_that_are_zero_or_more_than_the_shape_has_are_dropped() {
        // Rank 40 of factors whose product has only the rank 3.
        let mut sample = Sample::new(50, 40, 30, 1.0);
        for (index, value) in sample.0.left.iter_mut().enumerate() {
            if index % 40 >= 3 {
                *value = 0.0;
            }
        }
        assert_eq!(rank_of(&sample.compress(8, RankLimit::Full)), Some(3));
        assert_eq!(rank_of(&sample.compress(8, RankLimit::Rank(2))), Some(2));
    }

    #[test]
    fn an_update_of_rank_one_keeps_its_rank() {
        let sample = Sample::new(40, 1, 60, 1.0);
        let term = sample.compress(8, RankLimit::Full);
        assert_eq!(rank_of(&term), Some(1));
        let error = sample.error(term);
        assert!(error < 1e-6, "one integer per vector is exact but for the scales, found {error}");
    }

    #[test]
    fn a_rank_that_costs_more_than_the_matrix_is_stored_dense() {
        let sample = Sample::new(20, 50, 30, 1.0);
        let term = sample.compress(8, RankLimit::Full);
        assert_eq!(rank_of(&term), None);
        let error = sample.error(term);
        assert!(error < 0.01, "{error}");
        // 20 * 30 / (20 + 30) = 12 is the last rank whose factors are not larger.
        assert_eq!(rank_of(&sample.compress(8, RankLimit::Rank(12))), Some(12));
        assert_eq!(rank_of(&sample.compress(8, RankLimit::Rank(13))), None);
    }

    #[test]
    fn an_update_of_zeros_stays_zero() {
        let compression = Compression { bits: 4, limit: RankLimit::Tolerance(0.1) };
        let zeros = Factors { left: vec![0.0; 12], right: vec![1.0; 20], rows: 3, rank: 4, columns: 5 };
        let term = compress(&zeros, &compression).unwrap();
        assert_eq!(rank_of(&term), Some(1));
        assert_eq!(Update::new(vec![term]).unwrap().delta_rows(0..3).unwrap(), [0.0; 15]);
        let nothing = Factors { left: vec![], right: vec![], rows: 3, rank: 0, columns: 5 };
        let term = compress(&nothing, &compression).unwrap();
        assert_eq!(rank_of(&term), Some(1));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let found = |left: f64, bits: u8| {
            let factors = Factors { left: vec![left], right: vec![1.0], rows: 1, rank: 1, columns: 1 };
            compress(&factors, &Compression { bits, limit: RankLimit::Full })
        };
        assert!(matches!(found(f64::INFINITY, 8), Err(FactorError::NotFinite { .. })));
        assert_eq!(found(1.0, 17), Err(FactorError::Bits { found: 17 }));
    }
}
