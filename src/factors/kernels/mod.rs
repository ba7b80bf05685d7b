//! Products of integer matrices that are exact, and so the same, in any order of summation.
//!
//! ```text
//! sums[i,j] = sum_k left[i,k] * right[k,j]        for a block of rows i and columns j
//! ```
//!
//! [`plain`] is the law: three loops in i64. What runs is chosen when an update is laid out: factors whose integers fit
//! a byte go through a kernel of integer instructions where the processor has one, all others through [`blocked`], a
//! floating matrix product whose every partial sum is an integer below the mantissa's limit. Neither order, width of
//! registers nor fused multiplication can show in the result. A zero is always `+0.0`: the sign of a zero would reach
//! the weights.

mod blocked;
mod bytes;
mod halves;
mod inverse;
mod lanes;
mod peak;
mod plain;
mod squares;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;

use std::fmt;
use std::ops::Range;

use super::{FactorError, IntegerMatrix, Integers, magnitude_limit};
use bytes::Bytes;
pub(super) use bytes::PANEL;
pub(super) use inverse::{LOOK, Members, log, restore};
pub(super) use lanes::{Applied, Lane, STRETCH_MAX, Terms, apply, result, scale};
pub(super) use squares::squares;

/// How updates are computed. The choice never shows in the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// The definition, in i64.
    Plain,
    /// Floating-point matrix products of exact integers, on every processor.
    Blocked,
    /// Integers of up to 8 bits by AVX2.
    Avx2,
    /// Integers of up to 8 bits by AVX-512 F and BW.
    Avx512,
    /// Integers of up to 8 bits by AVX-512 VNNI.
    Vnni,
    /// Integers of up to 8 bits by NEON.
    Neon,
}

impl Kernel {
    /// All of them, the fastest last on each kind of processor.
    pub const ALL: [Self; 6] = [Self::Plain, Self::Blocked, Self::Avx2, Self::Avx512, Self::Vnni, Self::Neon];

    /// The fastest that this processor has.
    pub fn best() -> Self {
        let available = |kernel: &Self| kernel.is_available();
        Self::ALL.into_iter().rev().find(available).unwrap_or(Self::Blocked)
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Plain | Self::Blocked => true,
            Self::Neon => cfg!(all(target_arch = "aarch64", target_endian = "little")),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 | Self::Vnni => false,
        }
    }

    /// This kernel, or the one for every processor where this one is not available.
    fn supported(self) -> Self {
        if self.is_available() { self } else { Self::Blocked }
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Blocked => "blocked",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Vnni => "vnni",
            Self::Neon => "neon",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A block of the product: `rows` of the left factor by `columns` of the right one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub rows: Range<usize>,
    pub columns: Range<usize>,
}

/// The integers of a term, laid out for a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Product {
    kernel: Kernel,
    layout: Layout,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Layout {
    /// Factors for a byte kernel.
    Bytes(Bytes),
    /// Factors, and how deep a sum of their products stays exact in f32.
    Factors { left: IntegerMatrix, right: IntegerMatrix, single_depth: usize },
    /// The product itself.
    Dense(IntegerMatrix),
}

/// A block of sums, row-major, each row `stride` long.
#[derive(Debug)]
pub(super) enum Sums<'a> {
    /// Of a byte kernel.
    Integers { sums: &'a [i32], stride: usize },
    /// Of any other.
    Floats { sums: &'a [f64], stride: usize },
}

/// Buffers that one thread reuses from block to block.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    slices: blocked::Scratch,
    integers: Vec<i32>,
    floats: Vec<f64>,
}

impl Product {
    /// Lays `integers` out for `kernel`, or for the one that runs everywhere where `kernel` cannot take them.
    pub fn new(integers: Integers, kernel: Kernel) -> Self {
        let kernel = kernel.supported();
        let layout = match integers {
            Integers::Dense(dense) => Layout::Dense(dense),
            Integers::LowRank { left, right } => match Bytes::new(&left, &right, kernel) {
                Some(bytes) => Layout::Bytes(bytes),
                None => Layout::Factors { single_depth: single_depth(&left, &right), left, right },
            },
        };
        Self { kernel, layout }
    }

    pub fn rows(&self) -> usize {
        match &self.layout {
            Layout::Bytes(bytes) => bytes.rows(),
            Layout::Factors { left, .. } => left.rows(),
            Layout::Dense(dense) => dense.rows(),
        }
    }

    pub fn columns(&self) -> usize {
        match &self.layout {
            Layout::Bytes(bytes) => bytes.columns(),
            Layout::Factors { right, .. } => right.columns(),
            Layout::Dense(dense) => dense.columns(),
        }
    }

    /// How many columns a block should have: the more, the longer the pieces in which weights are read from memory,
    /// and all of them are needed for the speed of a floating product; a byte kernel reads its right factor once for
    /// every few rows, and wants that to stay in the cache.
    pub fn columns_at_once(&self) -> usize {
        const CACHE_BYTES: usize = 256 << 10;
        const _: () = assert!(STRETCH_MAX.is_multiple_of(PANEL));
        match &self.layout {
            Layout::Bytes(bytes) => (CACHE_BYTES / bytes.depth() / PANEL * PANEL).clamp(PANEL, STRETCH_MAX),
            Layout::Factors { .. } | Layout::Dense(_) => STRETCH_MAX,
        }
    }

    /// Bytes that every task reads, however few rows it has.
    pub fn right_size_bytes(&self) -> usize {
        match &self.layout {
            Layout::Bytes(bytes) => bytes.depth() * bytes.columns(),
            Layout::Factors { right, .. } => size_of::<i16>() * right.rows() * right.columns(),
            Layout::Dense(_) => 0,
        }
    }

    /// Computes one block, whose columns begin with a [`PANEL`].
    pub fn sums<'s>(&self, block: &Block, scratch: &'s mut Scratch) -> Sums<'s> {
        let Scratch { slices, integers, floats } = scratch;
        let stride = block.columns.len();
        if let Layout::Bytes(bytes) = &self.layout {
            let stride = bytes.product(block, integers);
            return Sums::Integers { sums: integers, stride };
        }
        floats.clear();
        match &self.layout {
            Layout::Factors { left, right, .. } if self.kernel == Kernel::Plain => {
                floats.resize(block.rows.len() * stride, 0.0);
                plain::product(left, right, block, floats);
            }
            Layout::Factors { left, right, single_depth } => {
                floats.resize(block.rows.len() * stride, 0.0);
                blocked::product(left, right, *single_depth, block, slices, floats);
            }
            Layout::Dense(dense) => {
                for row in block.rows.clone() {
                    dense.append(row, block.columns.clone(), floats, f64::from, f64::from);
                }
            }
            Layout::Bytes(_) => {}
        }
        Sums::Floats { sums: floats, stride }
    }
}

/// The number of products whose sum is below `2^24` in magnitude whatever their signs.
fn single_depth(left: &IntegerMatrix, right: &IntegerMatrix) -> usize {
    let product_max = u64::from(left.magnitude_max()) * u64::from(right.magnitude_max());
    let depth = ((1_u64 << f32::MANTISSA_DIGITS) - 1).checked_div(product_max).unwrap_or(u64::MAX);
    usize::try_from(depth).unwrap_or(usize::MAX)
}

/// Compares the products of every kernel that this processor has with their definition, over sizes at the edges of
/// blocks and widths.
///
/// # Errors
/// [`FactorError::Kernel`] with the first size and place that differ: the processor or the build is at fault.
pub fn check_kernels() -> Result<(), FactorError> {
    for (rows, rank, columns) in [(1, 1, 1), (3, 17, 33), (64, 100, 130), (9, 1041, 65), (65, 513, 40)] {
        for bits in [2, 4, 8, 11, 16] {
            let left = sample(rows, rank, bits, 1);
            let right = sample(rank, columns, bits, 2);
            for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
                check_product(&left, &right, kernel)?;
            }
        }
    }
    Ok(())
}

fn check_product(left: &IntegerMatrix, right: &IntegerMatrix, kernel: Kernel) -> Result<(), FactorError> {
    let block = Block { rows: 0..left.rows(), columns: 0..right.columns() };
    check_block(left, right, kernel, &block)
}

/// Holds one block of a product, whose columns begin with a panel, to the definition.
fn check_block(
    left: &IntegerMatrix,
    right: &IntegerMatrix,
    kernel: Kernel,
    block: &Block,
) -> Result<(), FactorError> {
    let mut law = vec![0.0; block.rows.len() * block.columns.len()];
    if law.is_empty() {
        return Ok(());
    }
    plain::product(left, right, block, &mut law);
    let mut scratch = Scratch::default();
    let product = Product::new(Integers::LowRank { left: left.clone(), right: right.clone() }, kernel);
    let columns = block.columns.len();
    let fast: Vec<f64> = match product.sums(block, &mut scratch) {
        Sums::Integers { sums, stride } => {
            sums.chunks(stride).flat_map(|row| row[..columns].iter().map(|sum| f64::from(*sum))).collect()
        }
        Sums::Floats { sums, .. } => sums.to_vec(),
    };
    match law.iter().zip(&fast).position(|(law, fast)| law.to_bits() != fast.to_bits()) {
        None => Ok(()),
        Some(index) => Err(FactorError::Kernel {
            kernel: product.kernel,
            row: block.rows.start + index / columns,
            column: block.columns.start + index % columns,
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
    use super::super::samples::kernels;
    use super::*;

    /// The contract of a kernel: every block of the product equals the definition, bit for bit.
    fn agrees_with_the_law(kernel: Kernel) {
        if !kernels().any(|available| available == kernel) {
            return;
        }
        for rank in [1, 2, 7, 100, 511, 513, 1041] {
            for bits in [2, 5, 8, 9, 13, 16] {
                let (left, right) = (sample(13, rank, bits, rank as u64), sample(rank, 150, bits, 7));
                for rows in [0..0, 0..1, 1..5, 2..8, 0..13] {
                    for columns in [0..0, 0..1, 64..83, 0..64, 0..150, 128..150] {
                        let block = Block { rows: rows.clone(), columns };
                        check_block(&left, &right, kernel, &block).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn the_blocked_kernel_agrees_with_the_law() {
        agrees_with_the_law(Kernel::Blocked);
    }

    #[test]
    fn the_avx2_kernel_agrees_with_the_law() {
        agrees_with_the_law(Kernel::Avx2);
    }

    #[test]
    fn the_avx512_kernel_agrees_with_the_law() {
        agrees_with_the_law(Kernel::Avx512);
    }

    #[test]
    fn the_vnni_kernel_agrees_with_the_law() {
        agrees_with_the_law(Kernel::Vnni);
    }

    #[test]
    fn the_neon_kernel_agrees_with_the_law() {
        agrees_with_the_law(Kernel::Neon);
    }

    #[test]
    fn every_size_of_block_agrees() {
        // Miri takes far longer, and looks at every access of a few blocks, too.
        let sizes: &[usize] = if cfg!(miri) { &[15, 17] } else { &[15, 16, 17, 31, 32, 33, 63, 64, 65] };
        for kernel in kernels() {
            for &size in sizes {
                check_product(&sample(size, 40, 8, 3), &sample(40, size, 8, 4), kernel).unwrap();
                check_product(&sample(size, 40, 16, 3), &sample(40, size, 16, 4), kernel).unwrap();
            }
        }
    }

    /// One row and one column of a rank, all of one magnitude.
    fn extreme(rank: usize, bits: u8, sign: i16) -> (IntegerMatrix, IntegerMatrix) {
        let value = magnitude_limit(bits);
        let left = IntegerMatrix::new("left", 1, rank, bits, vec![value; rank]).unwrap();
        let right = IntegerMatrix::new("right", rank, 1, bits, vec![sign * value; rank]).unwrap();
        (left, right)
    }

    #[test]
    fn sums_at_the_limit_of_f32_are_exact() {
        for rank in [1040, 1041] {
            let (left, right) = extreme(rank, 8, -1);
            assert_eq!(single_depth(&left, &right), 1040);
            for kernel in kernels() {
                check_product(&left, &right, kernel).unwrap();
            }
        }
    }

    #[test]
    fn sums_at_the_limit_of_i32_are_exact() {
        // 133,144 products of 127 by 127 fit, and one more does not; 66,312 unsigned ones would not.
        for rank in [66_311, 66_312, 133_144, 133_145] {
            for sign in [1, -1] {
                let (left, right) = extreme(rank, 8, sign);
                for kernel in kernels() {
                    check_product(&left, &right, kernel).unwrap();
                    let is_of_bytes = !matches!(kernel, Kernel::Plain | Kernel::Blocked);
                    let fits = is_of_bytes && rank <= 133_144;
                    assert_eq!(Bytes::new(&left, &right, kernel).is_some(), fits, "{kernel}");
                }
            }
        }
    }

    #[test]
    fn sums_just_below_the_limit_of_f64_are_exact() {
        let (left, right) = extreme(8_000_000, 16, 1);
        check_product(&left, &right, Kernel::Blocked).unwrap();
    }

    #[test]
    fn a_zero_sum_is_positive_zero() {
        let left = IntegerMatrix::new("left", 1, 1, 8, vec![-1]).unwrap();
        let right = IntegerMatrix::new("right", 1, 2, 8, vec![0, 0]).unwrap();
        for kernel in kernels() {
            check_product(&left, &right, kernel).unwrap();
        }
        let mut sums = [1.0; 2];
        plain::product(&left, &right, &Block { rows: 0..1, columns: 0..2 }, &mut sums);
        assert!(sums.iter().all(|sum| sum.to_bits() == 0), "{sums:?}");
    }

    #[test]
    fn the_self_check_passes_here() {
        check_kernels().unwrap();
    }
}
