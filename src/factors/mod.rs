//! Updates of weights as integers, so that their product is exact in any order of summation.
//!
//! ```text
//! S[i,j]  = sum_k L[i,k] * R[k,j]                        L [out, rank], R [rank, in]: integers of 2 to 16 bits
//! D[i,j]  = (row_scale[i] * column_scale[j]) * S[i,j]    f64; the scales are f32
//! W'[i,j] = round_to_dtype(f64(W[i,j]) + D1[i,j] + D2[i,j] + ...)       one rounding, at the end
//! ```
//!
//! For MEMIT, `L` holds the residuals and `R` the adjusted keys; PEFT calls them `lora_B` and `lora_A`.
//! This room knows neither files nor MEMIT: any method that yields a matrix of low rank can be stored.

#[cfg(feature = "edit")]
mod compress;
mod correction;
#[cfg(feature = "edit")]
mod cut;
mod inner;
mod kernels;
#[cfg(feature = "edit")]
mod overlap;
#[cfg(feature = "edit")]
mod quantize;
#[cfg(feature = "edit")]
mod recompress;
#[cfg(test)]
mod samples;
#[cfg(feature = "edit")]
mod sketch;
#[cfg(test)]
#[allow(clippy::duplicate_mod, reason = "the rooms that tell something in tests have no room in common")]
#[path = "../../tests/telling/mod.rs"]
mod telling;
mod undo;
mod update;

use std::borrow::Cow;
use std::ops::Range;

use crate::tensor::Dtype;

#[cfg(feature = "edit")]
pub use compress::{BITS_DEFAULT, Compression, RankLimit, compress};
#[cfg(feature = "edit")]
pub(crate) use correction::corrected_of;
pub use correction::{Correction, CorrectionWriter};
#[cfg(feature = "edit")]
pub use cut::{Cut, cut_of};
pub(crate) use inner::inner_product;
pub use kernels::{Kernel, check_kernels};
#[cfg(feature = "edit")]
pub(crate) use overlap::KeySpace;
#[cfg(feature = "edit")]
pub(crate) use quantize::{DENSE_PASSES, quantize_dense, quantize_dense_rows};
#[cfg(feature = "edit")]
pub use quantize::{Factors, quantize_low_rank};
#[cfg(feature = "edit")]
pub(crate) use recompress::recompress;
#[cfg(feature = "edit")]
pub(crate) use sketch::Sketch;
pub use undo::{UndoLog, UndoWriter, undo_rows_per_block};
pub(crate) use update::sums_of_squares;
pub use update::{RowsApplied, Update};

/// Narrowest integers of a factor, in bits.
pub const BITS_MIN: u8 = 2;
/// Widest integers of a factor, in bits.
pub const BITS_MAX: u8 = 16;
/// Sums of products stay below this, so that an f64 holds every partial sum exactly.
pub(crate) const EXACT_SUM_LIMIT: u64 = 1 << 53;

/// `norm(part) / norm(whole)` from the sums of their squares; 0 of nothing, even where the whole is nothing.
pub(crate) fn relative_norm(part: f64, whole: f64) -> f64 {
    if part == 0.0 { 0.0 } else { (part / whole).sqrt() }
}

/// Ranges of so many, and a last one of what is left.
pub(crate) fn in_blocks(count: usize, block: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    (0..count).step_by(block).map(move |start| start..count.min(start + block))
}

/// A term that cannot be part of a patch, or a result that cannot be stored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FactorError {
    /// The width of the integers is outside 2..=16.
    #[error("integers of {found} bits: a term's integers have {BITS_MIN} to {BITS_MAX} bits")]
    Bits {
        /// The width asked for.
        found: u8,
    },
    /// A matrix or a vector of scales does not have the size that its place asks for.
    #[error("{what} has {found} entries, expected {expected}")]
    Size {
        /// Which part of the term.
        what: &'static str,
        /// Entries it must have.
        expected: usize,
        /// Entries it has.
        found: usize,
    },
    /// An integer does not fit the stated width.
    #[error("{what} holds {found}, outside the range of {bits} bits (at most {limit} in magnitude)")]
    Range {
        /// Which matrix.
        what: &'static str,
        /// The integer.
        found: i16,
        /// The stated width.
        bits: u8,
        /// The largest magnitude of that width.
        limit: i16,
    },
    /// A scale is negative, infinite or NaN.
    #[error("{what} {index} is {found}: scales are finite and not negative")]
    Scale {
        /// Row scale or column scale.
        what: &'static str,
        /// Its index.
        index: usize,
        /// Its value.
        found: f32,
    },
    /// `rank * max|L| * max|R|` reaches 2^53, so that sums might not be exact.
    #[error("rank {rank} with integers up to {left_max} and {right_max} can sum to 2^53 or more")]
    Inexact {
        /// Shared dimension of the factors.
        rank: usize,
        /// Largest magnitude in the left factor.
        left_max: u16,
        /// Largest magnitude in the right factor.
        right_max: u16,
    },
    /// A sum leaves the range of the weights' type.
    #[error("row {row}, column {column}: {value:e} does not fit {dtype}")]
    Overflow {
        /// Row of the tensor.
        row: usize,
        /// Column of the tensor.
        column: usize,
        /// The sum before rounding.
        value: f64,
        /// The weights' type.
        dtype: Dtype,
    },
    /// A matrix that is to be quantised holds NaN or an infinity.
    #[error("{what} holds {found} at index {index}: only finite values can be quantised")]
    NotFinite {
        /// Which matrix.
        what: &'static str,
        /// Its row-major index.
        index: usize,
        /// The value.
        found: f64,
    },
    /// An update without any term.
    #[error("an update needs at least one term")]
    NoTerms,
    /// Rows that the tensor does not have.
    #[error("rows {start}..{end} of a tensor of {rows} rows")]
    Rows {
        /// First row asked for.
        start: usize,
        /// End of the rows asked for.
        end: usize,
        /// Rows of the tensor.
        rows: usize,
    },
    /// A decomposition did not converge.
    #[error("the singular values of a {rows} by {columns} matrix did not converge")]
    Decomposition {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
    },
    /// A fast product differs from its definition on this machine.
    #[error(
        "row {row}, column {column} of a product of rank {rank} is {found} by the kernel `{kernel}`, expected {expected}"
    )]
    Kernel {
        /// How it was computed.
        kernel: Kernel,
        /// Row of the product.
        row: usize,
        /// Column of the product.
        column: usize,
        /// Shared dimension of the factors.
        rank: usize,
        /// The sum by definition.
        expected: f64,
        /// The sum as computed.
        found: f64,
    },
    /// An undo log that does not belong to these weights.
    #[error("undo log: {0}")]
    Undo(String),
    /// A correction that does not belong to these weights.
    #[error("correction: {0}")]
    Correction(String),
}

/// A row-major matrix of integers of `bits` bits: magnitudes up to `2^(bits-1) - 1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerMatrix {
    rows: usize,
    columns: usize,
    bits: u8,
    values: Values,
}

/// Integers in the narrowest type for their width, so that equal matrices are stored alike.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Values {
    /// Up to [`NARROW_BITS_MAX`] bits.
    Narrow(Vec<i8>),
    /// Beyond.
    Wide(Vec<i16>),
}

/// Widest integers that are kept in a byte each.
pub(crate) const NARROW_BITS_MAX: u8 = 8;

/// The largest magnitude that an integer of `bits` bits has here: `2^(bits-1) - 1`, the same on both sides.
pub const fn magnitude_limit(bits: u8) -> i16 {
    ((1_i32 << (bits - 1)) - 1) as i16
}

impl IntegerMatrix {
    /// Checks and wraps `values`, row-major; `what` names the matrix in errors.
    ///
    /// # Errors
    /// [`FactorError::Bits`], [`FactorError::Size`] or [`FactorError::Range`].
    pub fn new(
        what: &'static str,
        rows: usize,
        columns: usize,
        bits: u8,
        values: Vec<i16>,
    ) -> Result<Self, FactorError> {
        check_count(what, rows, columns, bits, values.len())?;
        let limit = magnitude_limit(bits);
        if let Some(&found) = values.iter().find(|value| value.unsigned_abs() > limit.unsigned_abs()) {
            return Err(FactorError::Range { what, found, bits, limit });
        }
        let values = match bits {
            // Within the limit no integer of such a width loses anything.
            ..=NARROW_BITS_MAX => Values::Narrow(values.into_iter().map(|value| value as i8).collect()),
            _ => Values::Wide(values),
        };
        Ok(Self { rows, columns, bits, values })
    }

    /// As [`IntegerMatrix::new`], from integers in a byte each, of a width that fits one.
    ///
    /// # Errors
    /// As [`IntegerMatrix::new`].
    pub fn narrow(
        what: &'static str,
        rows: usize,
        columns: usize,
        bits: u8,
        values: Vec<i8>,
    ) -> Result<Self, FactorError> {
        if bits > NARROW_BITS_MAX {
            return Self::new(what, rows, columns, bits, values.into_iter().map(i16::from).collect());
        }
        check_count(what, rows, columns, bits, values.len())?;
        let limit = magnitude_limit(bits);
        // The largest magnitude is found many at a time; whose it is, only where it is too large.
        if u16::from(largest(&values)) <= limit.unsigned_abs() {
            return Ok(Self { rows, columns, bits, values: Values::Narrow(values) });
        }
        let found =
            values.into_iter().map(i16::from).find(|value| value.unsigned_abs() > limit.unsigned_abs());
        Err(FactorError::Range { what, found: found.unwrap_or_default(), bits, limit })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Width of the integers in bits.
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// All integers, row after row.
    pub fn values(&self) -> Cow<'_, [i16]> {
        self.range(0..self.rows * self.columns)
    }

    /// One row.
    ///
    /// # Panics
    /// For a row that there is not.
    pub fn row(&self, index: usize) -> Cow<'_, [i16]> {
        self.range(index * self.columns..(index + 1) * self.columns)
    }

    /// One integer.
    ///
    /// # Panics
    /// For a row or a column that there is not.
    pub fn get(&self, row: usize, column: usize) -> i16 {
        let index = row * self.columns + column;
        match &self.values {
            Values::Narrow(values) => values[index].into(),
            Values::Wide(values) => values[index],
        }
    }

    /// Largest magnitude present; 0 for an empty matrix.
    pub(crate) fn magnitude_max(&self) -> u16 {
        match &self.values {
            Values::Narrow(values) => largest(values).into(),
            Values::Wide(values) => values.iter().map(|value| value.unsigned_abs()).max().unwrap_or(0),
        }
    }

    fn range(&self, range: Range<usize>) -> Cow<'_, [i16]> {
        match &self.values {
            Values::Narrow(values) => values[range].iter().map(|value| i16::from(*value)).collect(),
            Values::Wide(values) => Cow::Borrowed(&values[range]),
        }
    }

    /// Appends the integers of some columns of a row to `target`, each turned into what is asked for.
    fn append<T>(
        &self,
        row: usize,
        columns: Range<usize>,
        target: &mut Vec<T>,
        narrow: impl Fn(i8) -> T,
        wide: impl Fn(i16) -> T,
    ) {
        let range = row * self.columns + columns.start..row * self.columns + columns.end;
        match &self.values {
            Values::Narrow(values) => target.extend(values[range].iter().map(|value| narrow(*value))),
            Values::Wide(values) => target.extend(values[range].iter().map(|value| wide(*value))),
        }
    }
}

/// The largest magnitude of all; 0 where there are none.
fn largest(values: &[i8]) -> u8 {
    values.iter().map(|value| value.unsigned_abs()).max().unwrap_or(0)
}

fn check_count(
    what: &'static str,
    rows: usize,
    columns: usize,
    bits: u8,
    found: usize,
) -> Result<(), FactorError> {
    if !(BITS_MIN..=BITS_MAX).contains(&bits) {
        return Err(FactorError::Bits { found: bits });
    }
    if rows.checked_mul(columns) != Some(found) {
        return Err(FactorError::Size { what, expected: rows.saturating_mul(columns), found });
    }
    Ok(())
}

/// The integers of a term: two factors, or the product itself where that is smaller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Integers {
    /// `S = left * right`, with left `[out, rank]` and right `[rank, in]`.
    LowRank {
        /// `[out, rank]`.
        left: IntegerMatrix,
        /// `[rank, in]`.
        right: IntegerMatrix,
    },
    /// `S` itself, `[out, in]`.
    Dense(IntegerMatrix),
}

/// One term `D` of an update: integers and the scales that give them their size.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    integers: Integers,
    row_scales: Vec<f32>,
    column_scales: Vec<f32>,
}

impl Term {
    /// Checks that the parts fit each other and that every sum will be exact.
    ///
    /// # Errors
    /// [`FactorError::Size`], [`FactorError::Scale`] or [`FactorError::Inexact`].
    pub fn new(
        integers: Integers,
        row_scales: Vec<f32>,
        column_scales: Vec<f32>,
    ) -> Result<Self, FactorError> {
        if let Integers::LowRank { left, right } = &integers {
            let (rank, found) = (left.columns(), right.rows());
            if rank != found {
                return Err(FactorError::Size { what: "the right factor's rows", expected: rank, found });
            }
            let (left_max, right_max) = (left.magnitude_max(), right.magnitude_max());
            let bound = u128::from(left_max) * u128::from(right_max) * rank as u128;
            if bound >= u128::from(EXACT_SUM_LIMIT) {
                return Err(FactorError::Inexact { rank, left_max, right_max });
            }
        }
        let term = Self { integers, row_scales, column_scales };
        check_scales("row scale", &term.row_scales, term.rows())?;
        check_scales("column scale", &term.column_scales, term.columns())?;
        Ok(term)
    }

    /// A term of this shape that changes nothing.
    ///
    /// # Errors
    /// [`FactorError::Bits`].
    #[cfg(any(test, feature = "edit"))]
    pub(crate) fn zero([rows, columns]: [usize; 2], bits: u8) -> Result<Self, FactorError> {
        let integers = Integers::LowRank {
            left: IntegerMatrix::new("the left factor", rows, 1, bits, vec![0; rows])?,
            right: IntegerMatrix::new("the right factor", 1, columns, bits, vec![0; columns])?,
        };
        Self::new(integers, vec![0.0; rows], vec![0.0; columns])
    }

    /// `out`: rows of the update.
    pub fn rows(&self) -> usize {
        match &self.integers {
            Integers::LowRank { left, .. } => left.rows(),
            Integers::Dense(dense) => dense.rows(),
        }
    }

    /// `in`: columns of the update.
    pub fn columns(&self) -> usize {
        match &self.integers {
            Integers::LowRank { right, .. } => right.columns(),
            Integers::Dense(dense) => dense.columns(),
        }
    }

    /// Shared dimension of the factors; for a dense product the most that its shape allows.
    pub fn rank(&self) -> usize {
        match &self.integers {
            Integers::LowRank { left, .. } => left.columns(),
            Integers::Dense(dense) => dense.rows().min(dense.columns()),
        }
    }

    /// Width of the integers in bits; the wider one's where factors differ.
    pub fn bits(&self) -> u8 {
        match &self.integers {
            Integers::LowRank { left, right } => left.bits().max(right.bits()),
            Integers::Dense(dense) => dense.bits(),
        }
    }

    /// The integers.
    pub fn integers(&self) -> &Integers {
        &self.integers
    }

    /// One scale per row, `[out]`.
    pub fn row_scales(&self) -> &[f32] {
        &self.row_scales
    }

    /// One scale per column, `[in]`.
    pub fn column_scales(&self) -> &[f32] {
        &self.column_scales
    }
}

fn check_scales(what: &'static str, scales: &[f32], expected: usize) -> Result<(), FactorError> {
    if scales.len() != expected {
        return Err(FactorError::Size { what, expected, found: scales.len() });
    }
    match scales.iter().position(|scale| !(scale.is_finite() && *scale >= 0.0)) {
        Some(index) => Err(FactorError::Scale { what, index, found: scales[index] }),
        None => Ok(()),
    }
}
