//! Products of integer matrices that are exact, and so the same, in any order of summation.
//!
//! ```text
//! sums[i,j] = sum_k left[i,k] * right[k,j]        for a block of rows i and columns j, written as f64
//! ```
//!
//! [`plain`] is the law: three loops in i64. [`blocked`] is what runs: a floating matrix product whose every
//! partial sum is an integer below the mantissa's limit, so that neither order, width of registers nor fused
//! multiplication can show in the result. A zero is always `+0.0`: the sign of a zero would reach the weights.

mod blocked;
mod plain;

use std::ops::Range;

use super::{FactorError, IntegerMatrix, magnitude_limit};
pub(super) use blocked::Scratch;

/// How a product is computed; the choice never shows in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// The definition, in i64.
    Plain,
    /// Floating-point matrix products of exact integers.
    Blocked,
}

/// A block of the product: `rows` of the left factor by `columns` of the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// Two factors and how deep a sum of their products stays exact in f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors<'a> {
    left: &'a IntegerMatrix,
    right: &'a IntegerMatrix,
    single_depth: usize,
}

/// The number of products whose sum is below `2^24` in magnitude whatever their signs.
///
/// Scanning both factors takes a while for large ones, so it is done once and handed to [`Factors::new`].
pub(super) fn single_depth(left: &IntegerMatrix, right: &IntegerMatrix) -> usize {
    let product_max = u64::from(left.magnitude_max()) * u64::from(right.magnitude_max());
    let depth = ((1_u64 << f32::MANTISSA_DIGITS) - 1).checked_div(product_max).unwrap_or(u64::MAX);
    usize::try_from(depth).unwrap_or(usize::MAX)
}

impl<'a> Factors<'a> {
    /// Pairs two factors with their [`single_depth`].
    pub fn new(left: &'a IntegerMatrix, right: &'a IntegerMatrix, single_depth: usize) -> Self {
        debug_assert_eq!(left.columns(), right.rows(), "the rank is shared by both factors");
        Self { left, right, single_depth }
    }

    /// Replaces `sums`, row-major, by one block of the product.
    pub fn product(self, kernel: Kernel, block: &Block, scratch: &mut Scratch, sums: &mut Vec<f64>) {
        sums.clear();
        sums.resize(block.rows.len() * block.columns.len(), 0.0);
        if sums.is_empty() {
            return;
        }
        match kernel {
            Kernel::Plain => plain::product(self.left, self.right, block, sums),
            Kernel::Blocked => blocked::product(self, block, scratch, sums),
        }
    }
}

/// Compares the fast product with its definition on this machine, over sizes at the edges of blocks and widths.
///
/// # Errors
/// [`FactorError::Kernel`] with the first size and place that differ: the processor or the build is at fault.
pub fn check_kernels() -> Result<(), FactorError> {
    for (rows, rank, columns) in [(1, 1, 1), (3, 17, 33), (64, 100, 130), (9, 1041, 65), (65, 513, 40)] {
        for bits in [2, 4, 8, 11, 16] {
            let left = sample(rows, rank, bits, 1);
            let right = sample(rank, columns, bits, 2);
            check_product(&left, &right)?;
        }
    }
    Ok(())
}

fn check_product(left: &IntegerMatrix, right: &IntegerMatrix) -> Result<(), FactorError> {
    let factors = Factors::new(left, right, single_depth(left, right));
    let block = Block { rows: 0..left.rows(), columns: 0..right.columns() };
    let (mut law, mut fast) = (Vec::new(), Vec::new());
    factors.product(Kernel::Plain, &block, &mut Scratch::default(), &mut law);
    factors.product(Kernel::Blocked, &block, &mut Scratch::default(), &mut fast);
    match law.iter().zip(&fast).position(|(law, fast)| law.to_bits() != fast.to_bits()) {
        None => Ok(()),
        Some(index) => Err(FactorError::Kernel {
            row: index / block.columns.len(),
            column: index % block.columns.len(),
            rank: left.columns(),
            expected: law[index],
            found: fast[index],
        }),
    }
}

/// Integers over the whole range of `bits`, many of them at its ends, from a fixed sequence.
fn sample(rows: usize, columns: usize, bits: u8, seed: u64) -> IntegerMatrix {
    let limit = i64::from(magnitude_limit(bits));
    let mut state = seed;
    let mut next = || {
        // Knuth's multiplier; the upper bits are good enough to pick test values.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match state >> 62 {
            0 => limit,
            1 => -limit,
            _ => ((state >> 33) as i64).rem_euclid(2 * limit + 1) - limit,
        }
    };
    let values = (0..rows * columns).map(|_| next() as i16).collect();
    IntegerMatrix::new("sample", rows, columns, bits, values).expect("values lie within the width's limit")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract of a kernel: every block of the product equals the definition, bit for bit.
    fn kernel_agrees_with_the_law(kernel: Kernel) {
        let mut scratch = Scratch::default();
        let (mut law, mut found) = (Vec::new(), Vec::new());
        for rank in [1, 2, 7, 511, 512, 513, 1040, 1041] {
            for bits in [2, 8, 9, 10, 13, 16] {
                let (left, right) = (sample(5, rank, bits, rank as u64), sample(rank, 33, bits, 7));
                let factors = Factors::new(&left, &right, single_depth(&left, &right));
                for rows in [0..0, 0..1, 1..5, 0..5] {
                    for columns in [0..0, 0..1, 3..20, 16..33, 0..33] {
                        let block = Block { rows: rows.clone(), columns: columns.clone() };
                        factors.product(Kernel::Plain, &block, &mut scratch, &mut law);
                        factors.product(kernel, &block, &mut scratch, &mut found);
                        let bits_of = |sums: &[f64]| sums.iter().map(|sum| sum.to_bits()).collect::<Vec<_>>();
                        assert_eq!(bits_of(&law), bits_of(&found), "rank {rank}, {bits} bits, {block:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_blocked_kernel_agrees_with_the_law() {
        kernel_agrees_with_the_law(Kernel::Blocked);
    }

    #[test]
    fn every_size_of_block_agrees() {
        for size in [15, 16, 17, 31, 32, 33, 63, 64, 65] {
            check_product(&sample(size, 40, 8, 3), &sample(40, size, 8, 4)).unwrap();
            check_product(&sample(size, 40, 16, 3), &sample(40, size, 16, 4)).unwrap();
        }
    }

    #[test]
    fn sums_at_the_limit_of_f32_are_exact() {
        for rank in [1040, 1041] {
            let left = IntegerMatrix::new("left", 1, rank, 8, vec![127; rank]).unwrap();
            let right = IntegerMatrix::new("right", rank, 1, 8, vec![-127; rank]).unwrap();
            let depth = single_depth(&left, &right);
            assert_eq!(depth, 1040);
            let block = Block { rows: 0..1, columns: 0..1 };
            let mut sums = Vec::new();
            let factors = Factors::new(&left, &right, depth);
            factors.product(Kernel::Blocked, &block, &mut Scratch::default(), &mut sums);
            assert_eq!(sums, [-(127.0 * 127.0 * rank as f64)]);
        }
    }

    #[test]
    fn sums_just_below_the_limit_of_f64_are_exact() {
        let rank = 8_000_000;
        let left = IntegerMatrix::new("left", 1, rank, 16, vec![32_767; rank]).unwrap();
        let right = IntegerMatrix::new("right", rank, 1, 16, vec![32_767; rank]).unwrap();
        check_product(&left, &right).unwrap();
    }

    #[test]
    fn a_zero_sum_is_positive_zero() {
        let left = IntegerMatrix::new("left", 1, 1, 8, vec![-1]).unwrap();
        let right = IntegerMatrix::new("right", 1, 2, 8, vec![0, 0]).unwrap();
        let mut sums = Vec::new();
        let factors = Factors::new(&left, &right, single_depth(&left, &right));
        for kernel in [Kernel::Plain, Kernel::Blocked] {
            factors.product(kernel, &Block { rows: 0..1, columns: 0..2 }, &mut Scratch::default(), &mut sums);
            assert!(sums.iter().all(|sum| sum.to_bits() == 0), "{sums:?}");
        }
    }

    #[test]
    fn the_self_check_passes_here() {
        check_kernels().unwrap();
    }
}
