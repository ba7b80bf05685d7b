//! NEON: products of bytes are words, which one instruction sums by twos; 4 sums in a register.
#![expect(unsafe_code, reason = "vector loads and stores take pointers")]

use std::arch::aarch64::{
    vdup_n_s32, vdupq_n_s32, vget_low_s8, vld1q_s8, vmull_high_s8, vmull_s8, vpadalq_s16, vpaddq_s32,
    vreinterpret_s8_s32, vreinterpretq_s8_s32, vst1q_s32,
};

use super::bytes::{GROUP, GROUP_BYTES, PANEL, Sums};

/// Rows whose sums stay in registers.
const ROWS: usize = 4;
/// Columns in one register of bytes; two of them are worked on at once.
const COLUMNS: usize = 4;
const BYTES: usize = COLUMNS * GROUP;

/// Products of bytes.
pub(super) fn bytes(left: &[i8], right: &[i8], target: Sums<'_>) {
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

fn tile<const COUNT: usize>(left: &[i8], right: &[i8], groups: usize, sums: &mut [i32], stride: usize) {
    let depth = groups * GROUP;
    let last = groups.saturating_sub(1) * GROUP_BYTES + 2 * BYTES;
    assert!(left.len() >= COUNT * depth && (groups == 0 || right.len() >= last));
    // SAFETY: NEON is part of every 64-bit ARM processor that Rust's targets know; the last group of `right` still
    // has both registers, and `left` COUNT rows of `groups` groups, both checked above; each store has its own slice.
    unsafe {
        let mut totals = [[vdupq_n_s32(0); 4]; COUNT];
        for group in 0..groups {
            let right = right.as_ptr().add(group * GROUP_BYTES);
            let columns = [vld1q_s8(right), vld1q_s8(right.add(BYTES))];
            for (row, total) in totals.iter_mut().enumerate() {
                let four = left.as_ptr().add(row * depth + group * GROUP).cast::<i32>().read_unaligned();
                let (half, whole) =
                    (vreinterpret_s8_s32(vdup_n_s32(four)), vreinterpretq_s8_s32(vdupq_n_s32(four)));
                for (index, columns) in columns.into_iter().enumerate() {
                    let low = vmull_s8(vget_low_s8(columns), half);
                    total[2 * index] = vpadalq_s16(total[2 * index], low);
                    let high = vmull_high_s8(columns, whole);
                    total[2 * index + 1] = vpadalq_s16(total[2 * index + 1], high);
                }
            }
        }
        for (row, total) in totals.into_iter().enumerate() {
            let sums = &mut sums[row * stride..][..2 * COLUMNS];
            // Each sum lies in two neighbours.
            vst1q_s32(sums.as_mut_ptr(), vpaddq_s32(total[0], total[1]));
            vst1q_s32(sums[COLUMNS..].as_mut_ptr(), vpaddq_s32(total[2], total[3]));
        }
    }
}
