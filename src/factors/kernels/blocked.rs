//! The product by floating-point matrix multiplication, a slice of the rank at a time.
//!
//! ```text
//! sums (f64)  +=  left[rows, k..k+depth] · right[k..k+depth, columns]      in f32 or f64, each slice exact
//! ```
//!
//! A slice in f32 is as deep as `depth * max|L| * max|R| < 2^24` allows, so integers of 8 bits run in f32 at any
//! rank; where that would leave slices too thin to be worth it, the slice is computed in f64. The slices are
//! added up in f64, where [`super::super::EXACT_SUM_LIMIT`] keeps every partial sum exact.

use super::{Block, IntegerMatrix};

/// Deepest slice: bounds the scratch memory, and is deep enough for full speed.
const DEPTH_MAX: usize = 512;
/// Thinnest slice that f32 computes faster than f64 computes a deep one.
const SINGLE_DEPTH_MIN: usize = 64;

/// Buffers that one thread reuses from block to block.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    single: Slices<f32>,
    double: Slices<f64>,
}

/// One slice of each factor as floating-point numbers, and their product; all row-major.
#[derive(Debug, Default)]
struct Slices<T> {
    left: Vec<T>,
    right: Vec<T>,
    product: Vec<T>,
}

/// Writes one block of the product into `sums`, which are `+0.0` on entry.
pub(super) fn product(
    left: &IntegerMatrix,
    right: &IntegerMatrix,
    single_depth: usize,
    block: &Block,
    scratch: &mut Scratch,
    sums: &mut [f64],
) {
    if sums.is_empty() {
        return;
    }
    if single_depth >= SINGLE_DEPTH_MIN.min(left.columns()) {
        sum_slices(left, right, block, single_depth.min(DEPTH_MAX), &mut scratch.single, sums);
    } else {
        sum_slices(left, right, block, DEPTH_MAX, &mut scratch.double, sums);
    }
}

fn sum_slices<T: Float>(
    left: &IntegerMatrix,
    right: &IntegerMatrix,
    block: &Block,
    depth: usize,
    slices: &mut Slices<T>,
    sums: &mut [f64],
) {
    let rank = left.columns();
    for start in (0..rank).step_by(depth.max(1)) {
        let slice = start..rank.min(start.saturating_add(depth));
        copy(left, &Block { rows: block.rows.clone(), columns: slice.clone() }, &mut slices.left);
        copy(right, &Block { rows: slice.clone(), columns: block.columns.clone() }, &mut slices.right);
        multiply(block.rows.len(), slice.len(), block.columns.len(), slices);
        for (sum, product) in sums.iter_mut().zip(&slices.product) {
            // From +0.0, so that a product of -0.0 leaves +0.0.
            *sum += (*product).into();
        }
    }
}

fn copy<T: Float>(matrix: &IntegerMatrix, block: &Block, target: &mut Vec<T>) {
    target.clear();
    for row in block.rows.clone() {
        matrix.append(row, block.columns.clone(), target, T::from, T::from);
    }
}

/// f32 or f64, whose products of integers this file keeps exact.
trait Float: Copy + From<i8> + From<i16> + Into<f64> + Default + 'static {
    const ONE: Self;
}

impl Float for f32 {
    const ONE: Self = 1.0;
}

impl Float for f64 {
    const ONE: Self = 1.0;
}

/// `product [rows, columns] = left [rows, depth] * right [depth, columns]`.
#[expect(unsafe_code, reason = "the gemm crate takes pointers and strides")]
fn multiply<T: Float>(rows: usize, depth: usize, columns: usize, slices: &mut Slices<T>) {
    slices.product.clear();
    slices.product.resize(rows * columns, T::default());
    assert_eq!(slices.left.len(), rows * depth, "the left slice is [rows, depth]");
    assert_eq!(slices.right.len(), depth * columns, "the right slice is [depth, columns]");
    let stride =
        |entries: usize| isize::try_from(entries).expect("a slice in memory is shorter than isize::MAX");
    // SAFETY: with row stride = row length and column stride 1, the three matrices cover exactly the entries of
    // the three buffers, whose lengths are checked above; `product` is a buffer of its own, borrowed mutably.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            slices.product.as_mut_ptr(),
            1,
            stride(columns),
            false,
            slices.left.as_ptr(),
            1,
            stride(depth),
            slices.right.as_ptr(),
            1,
            stride(columns),
            T::default(),
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
