//! AVX2: bytes are widened to words, whose products one instruction sums by twos; 8 sums in a register.
#![expect(unsafe_code, reason = "vector loads and stores take pointers")]

use std::arch::x86_64::{
    _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_hadd_epi32, _mm256_madd_epi16,
    _mm256_permute4x64_epi64, _mm256_set1_epi64x, _mm256_setzero_si256, _mm256_storeu_si256,
};

use super::bytes::{GROUP, GROUP_BYTES, PANEL, Sums};

/// Rows whose sums stay in registers.
const ROWS: usize = 4;
/// Columns that a register of words holds; two registers of them are worked on at once.
const COLUMNS: usize = 4;
const BYTES: usize = COLUMNS * GROUP;

/// Products of words.
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn words(left: &[i16], right: &[i8], target: Sums<'_>) {
    let groups = target.check(left, right);
    let depth = groups * GROUP;
    for first in (0..target.rows).step_by(ROWS) {
        let left = &left[first * depth..];
        let sums = &mut target.sums[first * target.stride..];
        for column in (0..PANEL).step_by(2 * COLUMNS) {
            let (right, sums) = (&right[column * GROUP..], &mut sums[column..]);
            match target.rows - first {
                1 => tile::<1>(left, right, groups, sums, target.stride),
                2 => tile::<2>(left, right, groups, sums, target.stride),
                3 => tile::<3>(left, right, groups, sums, target.stride),
                _ => tile::<ROWS>(left, right, groups, sums, target.stride),
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn tile<const COUNT: usize>(left: &[i16], right: &[i8], groups: usize, sums: &mut [i32], stride: usize) {
    let depth = groups * GROUP;
    let mut totals = [[_mm256_setzero_si256(); 2]; COUNT];
    let last = groups.saturating_sub(1) * GROUP_BYTES + 2 * BYTES;
    assert!(left.len() >= COUNT * depth && (groups == 0 || right.len() >= last));
    for group in 0..groups {
        let mut columns = [_mm256_setzero_si256(); 2];
        for (index, register) in columns.iter_mut().enumerate() {
            // SAFETY: the last group of `right` still has both registers, checked above.
            let bytes =
                unsafe { _mm_loadu_si128(right.as_ptr().add(group * GROUP_BYTES + index * BYTES).cast()) };
            *register = _mm256_cvtepi8_epi16(bytes);
        }
        for (row, total) in totals.iter_mut().enumerate() {
            // SAFETY: `left` holds COUNT rows of `groups` groups of four words each, checked above.
            let four =
                unsafe { left.as_ptr().add(row * depth + group * GROUP).cast::<i64>().read_unaligned() };
            let four = _mm256_set1_epi64x(four);
            for (total, columns) in total.iter_mut().zip(columns) {
                *total = _mm256_add_epi32(*total, _mm256_madd_epi16(columns, four));
            }
        }
    }
    for (row, [low, high]) in totals.into_iter().enumerate() {
        // Each sum lies in two neighbours; summing them leaves columns 0 1 4 5 2 3 6 7.
        let summed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high));
        let sums = &mut sums[row * stride..][..2 * COLUMNS];
        // SAFETY: `sums` holds 8 of them.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), summed) };
    }
}
