//! AVX-512: 16 sums in a register.
//!
//! With VNNI one instruction multiplies 64 pairs of bytes and sums them by fours. It wants one side unsigned, so the
//! right factor is read as `R + 128`, and each sum starts at `-128` times the sum of its row of the left factor; all of
//! that is exact modulo 2^32, and the sum fits. Without VNNI bytes are widened to words, whose products are summed by
//! twos.
#![expect(unsafe_code, reason = "vector loads and stores take pointers")]

use std::arch::x86_64::{
    __m512i, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_epi32, _mm512_cvtepi8_epi16,
    _mm512_cvtepi64_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_madd_epi16, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_epi64, _mm512_setzero_si512, _mm512_srli_epi64, _mm512_storeu_si512,
    _mm512_xor_si512,
};

use super::bytes::{GROUP, GROUP_BYTES, PANEL, Sums};

/// Rows whose sums stay in registers.
const ROWS: usize = 6;
/// Registers of one row of a panel.
const REGISTERS: usize = 4;
/// Columns that a register of words holds.
const WORD_COLUMNS: usize = 8;

/// Products by VNNI; `biases` are the sums' first values, one per row.
///
/// # Safety
/// The processor has AVX-512 F, BW and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) unsafe fn vnni(left: &[i8], right: &[i8], biases: &[i32], target: Sums<'_>) {
    let groups = target.check(left, right);
    assert!(biases.len() >= target.rows, "biases are missing");
    let depth = groups * GROUP;
    for first in (0..target.rows).step_by(ROWS) {
        let left = &left[first * depth..];
        let sums = &mut target.sums[first * target.stride..];
        let biases = &biases[first..];
        match target.rows - first {
            1 => vnni_tile::<1>(left, right, biases, groups, sums, target.stride),
            2 => vnni_tile::<2>(left, right, biases, groups, sums, target.stride),
            3 => vnni_tile::<3>(left, right, biases, groups, sums, target.stride),
            4 => vnni_tile::<4>(left, right, biases, groups, sums, target.stride),
            5 => vnni_tile::<5>(left, right, biases, groups, sums, target.stride),
            _ => vnni_tile::<ROWS>(left, right, biases, groups, sums, target.stride),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn vnni_tile<const COUNT: usize>(
    left: &[i8],
    right: &[i8],
    biases: &[i32],
    groups: usize,
    sums: &mut [i32],
    stride: usize,
) {
    let depth = groups * GROUP;
    let sign = _mm512_set1_epi8(i8::MIN);
    let mut totals = [[_mm512_setzero_si512(); REGISTERS]; COUNT];
    for (total, bias) in totals.iter_mut().zip(biases) {
        *total = [_mm512_set1_epi32(*bias); REGISTERS];
    }
    assert!(left.len() >= COUNT * depth && right.len() >= groups * GROUP_BYTES);
    for group in 0..groups {
        let mut columns = [_mm512_setzero_si512(); REGISTERS];
        for (index, register) in columns.iter_mut().enumerate() {
            // SAFETY: `right` holds `groups` groups of four registers each, checked above.
            let bytes =
                unsafe { _mm512_loadu_si512(right.as_ptr().add(group * GROUP_BYTES + index * 64).cast()) };
            *register = _mm512_xor_si512(bytes, sign);
        }
        for (row, total) in totals.iter_mut().enumerate() {
            // SAFETY: `left` holds COUNT rows of `groups` groups of four bytes each, checked above.
            let four =
                unsafe { left.as_ptr().add(row * depth + group * GROUP).cast::<i32>().read_unaligned() };
            let four = _mm512_set1_epi32(four);
            for (total, columns) in total.iter_mut().zip(columns) {
                *total = _mm512_dpbusd_epi32(*total, columns, four);
            }
        }
    }
    for (row, total) in totals.iter().enumerate() {
        let row = &mut sums[row * stride..][..PANEL];
        for (total, sums) in total.iter().zip(row.chunks_exact_mut(16)) {
            // SAFETY: the chunk holds 16 sums.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *total) };
        }
    }
}

/// Products of words.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn words(left: &[i16], right: &[i8], target: Sums<'_>) {
    let groups = target.check(left, right);
    let depth = groups * GROUP;
    for first in (0..target.rows).step_by(ROWS) {
        let left = &left[first * depth..];
        let sums = &mut target.sums[first * target.stride..];
        for column in (0..PANEL).step_by(REGISTERS * WORD_COLUMNS) {
            let (right, sums) = (&right[column * GROUP..], &mut sums[column..]);
            match target.rows - first {
                1 => words_tile::<1>(left, right, groups, sums, target.stride),
                2 => words_tile::<2>(left, right, groups, sums, target.stride),
                3 => words_tile::<3>(left, right, groups, sums, target.stride),
                4 => words_tile::<4>(left, right, groups, sums, target.stride),
                5 => words_tile::<5>(left, right, groups, sums, target.stride),
                _ => words_tile::<ROWS>(left, right, groups, sums, target.stride),
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn words_tile<const COUNT: usize>(
    left: &[i16],
    right: &[i8],
    groups: usize,
    sums: &mut [i32],
    stride: usize,
) {
    const BYTES: usize = WORD_COLUMNS * GROUP;
    let depth = groups * GROUP;
    let mut totals = [[_mm512_setzero_si512(); REGISTERS]; COUNT];
    let last = groups.saturating_sub(1) * GROUP_BYTES + REGISTERS * BYTES;
    assert!(left.len() >= COUNT * depth && (groups == 0 || right.len() >= last));
    for group in 0..groups {
        let mut columns = [_mm512_setzero_si512(); REGISTERS];
        for (index, register) in columns.iter_mut().enumerate() {
            // SAFETY: the last group of `right` still has these registers, checked above.
            let bytes =
                unsafe { _mm256_loadu_si256(right.as_ptr().add(group * GROUP_BYTES + index * BYTES).cast()) };
            *register = _mm512_cvtepi8_epi16(bytes);
        }
        for (row, total) in totals.iter_mut().enumerate() {
            // SAFETY: `left` holds COUNT rows of `groups` groups of four words each, checked above.
            let four =
                unsafe { left.as_ptr().add(row * depth + group * GROUP).cast::<i64>().read_unaligned() };
            let four = _mm512_set1_epi64(four);
            for (total, columns) in total.iter_mut().zip(columns) {
                *total = _mm512_add_epi32(*total, _mm512_madd_epi16(columns, four));
            }
        }
    }
    for (row, total) in totals.iter().enumerate() {
        let row = &mut sums[row * stride..][..REGISTERS * WORD_COLUMNS];
        for (total, sums) in total.iter().zip(row.chunks_exact_mut(WORD_COLUMNS)) {
            // SAFETY: the chunk holds 8 sums.
            unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), neighbours_summed(*total)) };
        }
    }
}

/// Each sum lies in two neighbours.
#[target_feature(enable = "avx512f")]
fn neighbours_summed(total: __m512i) -> std::arch::x86_64::__m256i {
    _mm512_cvtepi64_epi32(_mm512_add_epi32(total, _mm512_srli_epi64::<32>(total)))
}
