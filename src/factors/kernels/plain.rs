//! The definition of the product: three loops over i64. Slow, short, and the law.

use super::{Block, IntegerMatrix};

/// Writes one block of `left * right`; the sums are below `2^53`, so the f64 is exact and a zero is `+0.0`.
pub(super) fn product(left: &IntegerMatrix, right: &IntegerMatrix, block: &Block, sums: &mut [f64]) {
    for (row, sums) in block.rows.clone().zip(sums.chunks_exact_mut(block.columns.len())) {
        for (column, sum) in block.columns.clone().zip(sums) {
            let product = |k: usize| i64::from(left.get(row, k)) * i64::from(right.get(k, column));
            let exact: i64 = (0..left.columns()).map(product).sum();
            *sum = exact as f64;
        }
    }
}
