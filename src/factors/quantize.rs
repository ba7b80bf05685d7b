//! Real matrices as integers and scales: one scale per row or column, as fine as the width allows.
//!
//! A scale is rounded to f32 first and upwards, then the values are divided by it: what is stored is what was
//! divided by, and the largest value never passes the largest integer.

use std::ops::Range;

use super::{BITS_MAX, BITS_MIN, FactorError, IntegerMatrix, Integers, Term, in_blocks, magnitude_limit};

/// Values of a dense update that are looked at together.
const BLOCK_VALUES: usize = 1 << 18;

/// An update of `rows` by `columns` as the product of two matrices, before it is rounded to integers.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// `[rows, rank]` f64, row-major.
    pub left: Vec<f64>,
    /// `[rank, columns]` f64, row-major.
    pub right: Vec<f64>,
    /// `out`: rows of the update.
    pub rows: usize,
    /// Shared dimension of the two.
    pub rank: usize,
    /// `in`: columns of the update.
    pub columns: usize,
}

impl Factors {
    /// Refuses factors that do not have their sizes, are not finite, or cannot be rounded to integers of `bits` bits.
    pub(super) fn check(&self, bits: u8) -> Result<(), FactorError> {
        check_values("the left factor", &self.left, self.rows, self.rank, bits)?;
        check_values("the right factor", &self.right, self.rank, self.columns, bits)
    }
}

/// Quantises the product of `factors` to integers of `bits` bits.
///
/// Each row of the left one and each column of the right one gets the scale that its largest magnitude asks for; each
/// value becomes the nearest integer. A row or column of zeros gets the scale 0.
///
/// # Errors
/// [`FactorError::Bits`], [`FactorError::Size`], [`FactorError::NotFinite`], [`FactorError::Scale`] where a scale
/// is beyond f32, and [`FactorError::Inexact`] where the rank is too large for the width.
#[doc(hidden)] // Tests only: what is made goes through `compress`.
pub fn quantize_low_rank(factors: &Factors, bits: u8) -> Result<Term, FactorError> {
    factors.check(bits)?;
    let &Factors { ref left, ref right, rows, rank, columns } = factors;
    let limit = magnitude_limit(bits);
    let row_scales = row_scales(left, rows, rank, limit);
    let column_scales = column_scales(right, columns, limit);
    let left = round_each(left, rank, limit, |row, _| row_scales[row]);
    let right = round_each(right, columns, limit, |_, column| column_scales[column]);
    let integers = Integers::LowRank {
        left: IntegerMatrix::new("the left factor", rows, rank, bits, left)?,
        right: IntegerMatrix::new("the right factor", rank, columns, bits, right)?,
    };
    Term::new(integers, row_scales, column_scales)
}

/// Quantises `values [rows, columns]`, row-major, to one integer of `bits` bits per entry.
///
/// Columns are first brought to one size (the root of their mean square), so that a row's scale serves small
/// columns as well as large ones.
///
/// # Errors
/// [`FactorError::Bits`], [`FactorError::Size`], [`FactorError::NotFinite`], and [`FactorError::Scale`] where a scale
/// is beyond f32.
pub(crate) fn quantize_dense(
    values: &[f64],
    rows: usize,
    columns: usize,
    bits: u8,
) -> Result<Term, FactorError> {
    check_values("the dense update", values, rows, columns, bits)?;
    quantize_dense_rows(rows, columns, bits, &mut |block: Range<usize>| {
        Ok::<_, FactorError>(values[block.start * columns..block.end * columns].to_vec())
    })
}

/// How often [`quantize_dense_rows`] reads all rows.
pub(crate) const DENSE_PASSES: u64 = 3;

/// As [`quantize_dense`], of values that `read` gives for some rows at a time, all of them [`DENSE_PASSES`] times: only
/// what comes of it is ever in memory as a whole.
///
/// # Errors
/// As for [`quantize_dense`], with the index of a value that is not finite counted within the rows that were read; what
/// `read` fails with.
pub(crate) fn quantize_dense_rows<E: From<FactorError>>(
    rows: usize,
    columns: usize,
    bits: u8,
    read: &mut dyn FnMut(Range<usize>) -> Result<Vec<f64>, E>,
) -> Result<Term, E> {
    check_values("the dense update", &[], 0, columns, bits)?;
    let limit = magnitude_limit(bits);
    let step = (BLOCK_VALUES / columns.max(1)).max(1);
    let mut of_each_row = |of_row: &mut dyn FnMut(&[f64])| -> Result<(), E> {
        for block in in_blocks(rows, step) {
            let values = read(block.clone())?;
            check_values("the dense update", &values, block.len(), columns, bits)?;
            rows_of(&values, columns).for_each(&mut *of_row);
        }
        Ok(())
    };
    let mut largest = 0.0_f64;
    of_each_row(&mut |row| largest = largest.max(largest_of(row)))?;
    let mut squares = vec![0.0_f64; columns];
    of_each_row(&mut |row| {
        for (square, value) in squares.iter_mut().zip(row) {
            *square += quotient(*value, largest).powi(2);
        }
    })?;
    let column_scales = column_sizes(&squares);
    let (mut row_scales, mut integers) = (Vec::with_capacity(rows), Vec::with_capacity(rows * columns));
    of_each_row(&mut |row| {
        // What a column's scale leaves for the row's; a column of zeros leaves zeros.
        let pairs = row.iter().zip(&column_scales);
        let balanced: Vec<f64> = pairs.map(|(value, scale)| quotient(*value, f64::from(*scale))).collect();
        let scale = scale_at_least(largest_of(&balanced) / f64::from(limit));
        row_scales.push(scale);
        integers.extend(balanced.iter().map(|value| nearest_integer(*value, f64::from(scale), limit)));
    })?;
    row_scales.resize(rows, 0.0);
    let dense = IntegerMatrix::new("the dense update", rows, columns, bits, integers)?;
    Ok(Term::new(Integers::Dense(dense), row_scales, column_scales)?)
}

pub(super) fn check_values(
    what: &'static str,
    values: &[f64],
    rows: usize,
    columns: usize,
    bits: u8,
) -> Result<(), FactorError> {
    if !(BITS_MIN..=BITS_MAX).contains(&bits) {
        return Err(FactorError::Bits { found: bits });
    }
    if rows.checked_mul(columns) != Some(values.len()) {
        let expected = rows.saturating_mul(columns);
        return Err(FactorError::Size { what, expected, found: values.len() });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(FactorError::NotFinite { what, index, found: values[index] }),
        None => Ok(()),
    }
}

/// The smallest f32 that is at least `value`, which is not negative.
pub(super) fn scale_at_least(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) < value { nearest.next_up() } else { nearest }
}

/// The integer nearest to `value / scale` within `limit`; 0 where the scale is 0.
pub(super) fn nearest_integer(value: f64, scale: f64, limit: i16) -> i16 {
    let limit = f64::from(limit);
    // A float to integer cast saturates, and the clamp keeps the value in range before it.
    quotient(value, scale).round_ties_even().clamp(-limit, limit) as i16
}

fn quotient(value: f64, scale: f64) -> f64 {
    if scale == 0.0 { 0.0 } else { value / scale }
}

/// Chunks of one row each; none where rows are empty.
fn rows_of(values: &[f64], row_length: usize) -> impl Iterator<Item = &[f64]> {
    values.chunks_exact(row_length.max(1))
}

/// The largest magnitude.
fn largest_of(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()))
}

fn row_scales(values: &[f64], rows: usize, row_length: usize, limit: i16) -> Vec<f32> {
    let mut scales: Vec<f32> =
        rows_of(values, row_length).map(|row| scale_at_least(largest_of(row) / f64::from(limit))).collect();
    scales.resize(rows, 0.0);
    scales
}

fn column_scales(values: &[f64], columns: usize, limit: i16) -> Vec<f32> {
    let mut largest = vec![0.0_f64; columns];
    for row in rows_of(values, columns) {
        for (largest, value) in largest.iter_mut().zip(row) {
            *largest = largest.max(value.abs());
        }
    }
    largest.into_iter().map(|largest| scale_at_least(largest / f64::from(limit))).collect()
}

/// Each column's size relative to the largest column's, so that the sizes lie in 0..=1, from the sums of their squares.
fn column_sizes(squares: &[f64]) -> Vec<f32> {
    let largest = largest_of(squares);
    squares.iter().map(|square| quotient(*square, largest).sqrt() as f32).collect()
}

fn round_each(values: &[f64], columns: usize, limit: i16, scale: impl Fn(usize, usize) -> f32) -> Vec<i16> {
    let place = |index: usize| (index / columns.max(1), index % columns.max(1));
    let integer = |(index, value): (usize, &f64)| {
        let (row, column) = place(index);
        nearest_integer(*value, f64::from(scale(row, column)), limit)
    };
    values.iter().enumerate().map(integer).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Update;
    use super::super::samples::Generator;
    use super::*;

    fn gaussian(generator: &mut Generator, count: usize) -> Vec<f64> {
        (0..count).map(|_| generator.gaussian()).collect()
    }

    fn product(left: &[f64], right: &[f64], rank: usize, columns: usize) -> Vec<f64> {
        let entry = |row: &[f64], column: usize| -> f64 {
            row.iter().enumerate().map(|(k, value)| value * right[k * columns + column]).sum()
        };
        left.chunks_exact(rank).flat_map(|row| (0..columns).map(move |column| entry(row, column))).collect()
    }

    /// Frobenius norm of the difference, relative to the wanted matrix.
    fn relative_error(term: Term, wanted: &[f64]) -> f64 {
        let rows = term.rows();
        let found = Update::new(vec![term]).unwrap().delta_rows(0..rows).unwrap();
        let difference: f64 = found.iter().zip(wanted).map(|(found, wanted)| (found - wanted).powi(2)).sum();
        (difference / wanted.iter().map(|wanted| wanted.powi(2)).sum::<f64>()).sqrt()
    }

    #[test]
    fn the_error_of_low_rank_factors_halves_with_each_bit() {
        let (rows, rank, columns) = (64, 20, 96);
        let mut generator = Generator(1);
        let (left, right) = (gaussian(&mut generator, rows * rank), gaussian(&mut generator, rank * columns));
        let wanted = product(&left, &right, rank, columns);
        let factors = Factors { left, right, rows, rank, columns };
        for bits in [4, 6, 8, 12] {
            let term = quantize_low_rank(&factors, bits).unwrap();
            let error = relative_error(term, &wanted);
            // A value is off by a uniform in half a step either way, a step is the largest (about 2.2) over the
            // limit, and both factors contribute.
            let expected = 2.2 / f64::from(magnitude_limit(bits)) / 12.0_f64.sqrt() * 2.0_f64.sqrt();
            assert!((error / expected - 1.0).abs() < 0.15, "{bits} bits: {error}, about {expected} expected");
        }
    }

    #[test]
    fn dense_columns_of_unlike_sizes_are_balanced() {
        let (rows, columns) = (50, 80);
        let mut generator = Generator(2);
        let size = |column: usize| 10.0_f64.powi(column as i32 % 4 - 2);
        let values: Vec<f64> =
            (0..rows * columns).map(|index| generator.gaussian() * size(index % columns)).collect();
        let term = quantize_dense(&values, rows, columns, 8).unwrap();
        let small: Vec<usize> = (0..columns).step_by(4).collect();
        let found = Update::new(vec![term]).unwrap().delta_rows(0..rows).unwrap();
        let (mut difference, mut wanted) = (0.0, 0.0);
        for row in 0..rows {
            for column in &small {
                difference += (found[row * columns + column] - values[row * columns + column]).powi(2);
                wanted += values[row * columns + column].powi(2);
            }
        }
        let error: f64 = f64::sqrt(difference / wanted);
        assert!(error < 0.01, "the smallest columns are off by {error}");
    }

    #[test]
    fn zeros_get_the_scale_zero() {
        let (left, right) = (vec![0.0, 0.0, 1.0, 2.0], vec![3.0, 0.0, 4.0, 0.0]);
        let term = quantize_low_rank(&Factors { left, right, rows: 2, rank: 2, columns: 2 }, 8).unwrap();
        assert_eq!((term.row_scales()[0], term.column_scales()[1]), (0.0, 0.0));
        let term = quantize_dense(&[0.0, 0.0, 0.0, 5.0], 2, 2, 8).unwrap();
        assert_eq!((term.row_scales()[0], term.column_scales()[0]), (0.0, 0.0));
        assert_eq!(Update::new(vec![term]).unwrap().delta_rows(1..2).unwrap()[0], 0.0);
        quantize_dense(&[], 0, 3, 8).unwrap();
        quantize_low_rank(&Factors { left: vec![], right: vec![], rows: 2, rank: 0, columns: 3 }, 8).unwrap();
    }

    #[test]
    fn a_scale_is_never_below_what_the_largest_value_needs() {
        for value in [1.0 / 3.0, 1e-45, 3.3e-46, 0.1, 1e30] {
            assert!(f64::from(scale_at_least(value)) >= value);
        }
        let term = quantize_dense(&[1e-44, -2e-45], 1, 2, 16).unwrap();
        assert!(term.row_scales()[0] > 0.0);
    }

    #[test]
    fn values_that_are_not_finite_or_too_large_are_refused() {
        let found = quantize_dense(&[1.0, f64::NAN], 1, 2, 8);
        assert!(matches!(found, Err(FactorError::NotFinite { index: 1, .. })), "{found:?}");
        let large = Factors { left: vec![1e60], right: vec![1.0], rows: 1, rank: 1, columns: 1 };
        let found = quantize_low_rank(&large, 8);
        assert!(matches!(found, Err(FactorError::Scale { .. })), "{found:?}");
        assert_eq!(quantize_dense(&[1.0], 1, 1, 1), Err(FactorError::Bits { found: 1 }));
        assert!(matches!(quantize_dense(&[1.0], 1, 2, 8), Err(FactorError::Size { .. })));
    }
}
