//! Factors of at most 8 bits, laid out so that a byte kernel reads them from front to back.
//!
//! ```text
//! left   [row][rank]                        a group of 4 ranks of one row is what a kernel broadcasts
//! right  [panel][rank / 4][64 columns][4]   a group of 4 ranks of 64 columns is what it multiplies that with
//! ```
//!
//! The rank is padded with zeros to whole groups and the columns to whole panels. Sums are i32: factors whose sums
//! might not fit are left to the floating-point kernel.
#![cfg_attr(
    not(any(target_arch = "x86_64", all(target_arch = "aarch64", target_endian = "little"))),
    allow(dead_code, unused, unreachable_code, reason = "other processors have no byte kernel here")
)]

use rayon::prelude::*;

use super::{Block, IntegerMatrix, Kernel};

/// Ranks that one instruction sums.
pub(super) const GROUP: usize = 4;
/// Columns of one panel: a row of sums fills the registers of the widest kernel.
pub(in super::super) const PANEL: usize = 64;
/// Bytes of one group of one panel.
pub(super) const GROUP_BYTES: usize = GROUP * PANEL;

/// Two factors, laid out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Bytes {
    rows: usize,
    columns: usize,
    groups: usize,
    left: Left,
    right: Vec<i8>,
}

/// The left factor as the kernel that it is laid out for broadcasts it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Left {
    /// Groups of bytes.
    #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
    Neon(Vec<i8>),
    /// Groups of bytes; and for each row, what making the right factor unsigned adds to each of its sums, negative.
    #[cfg(target_arch = "x86_64")]
    Vnni(Vec<i8>, Vec<i32>),
    /// Groups of words.
    #[cfg(target_arch = "x86_64")]
    Avx2(Vec<i16>),
    /// Groups of words.
    #[cfg(target_arch = "x86_64")]
    Avx512(Vec<i16>),
}

/// Where a kernel writes the sums of some rows and one panel.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    /// From the first sum on.
    pub sums: &'a mut [i32],
    pub rows: usize,
    /// From one row's first sum to the next one's.
    pub stride: usize,
}

impl Sums<'_> {
    /// Checks what every kernel's pointers rely on, and returns the number of groups.
    pub fn check<T>(&self, left: &[T], right: &[i8]) -> usize {
        let groups = right.len() / GROUP_BYTES;
        assert!(left.len() >= self.rows * groups * GROUP, "rows of the left factor are missing");
        let last = self.rows.saturating_sub(1) * self.stride;
        assert!(self.stride >= PANEL && self.sums.len() >= last + PANEL, "sums are missing");
        groups
    }
}

impl Bytes {
    /// Lays factors out for `kernel`, if it is a byte kernel that the processor has, and all their integers and sums
    /// are small enough.
    pub fn new(left: &IntegerMatrix, right: &IntegerMatrix, kernel: Kernel) -> Option<Self> {
        let (left_max, right_max, rank) = (left.magnitude_max(), right.magnitude_max(), left.columns());
        let largest = u128::from(left_max) * u128::from(right_max) * rank as u128;
        let byte = i8::MAX as u16;
        if left_max > byte
            || right_max > byte
            || largest > i32::MAX as u128
            || rank == 0
            || !kernel.is_available()
        {
            return None;
        }
        let groups = rank.div_ceil(GROUP);
        let left_factor = match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => {
                let padded = padded_rows(left, groups, |value| value, |value| value as i8);
                let depth = groups * GROUP;
                // Modulo 2^32, as the sums that begin here are.
                let sum = |row: &[i8]| row.iter().map(|value| i32::from(*value)).sum::<i32>();
                let bias = |row: &[i8]| sum(row).wrapping_mul(-128);
                let biases = padded.chunks_exact(depth).map(bias).collect();
                Left::Vnni(padded, biases)
            }
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Kernel::Neon => Left::Neon(padded_rows(left, groups, |value| value, |value| value as i8)),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => Left::Avx2(padded_rows(left, groups, i16::from, |value| value)),
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => Left::Avx512(padded_rows(left, groups, i16::from, |value| value)),
            _ => return None,
        };
        let (rows, columns) = (left.rows(), right.columns());
        Some(Self { rows, columns, groups, left: left_factor, right: panels(right, groups) })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Ranks, padded; at least one group.
    pub fn depth(&self) -> usize {
        self.groups * GROUP
    }

    /// Replaces `sums` by the block's rows, each as long as the whole panels that its columns lie in, and returns that
    /// length; the block's columns begin with a panel.
    #[cfg_attr(
        target_arch = "x86_64",
        expect(
            unsafe_code,
            reason = "only a check by the caller makes a function for other processors safe"
        )
    )]
    pub fn product(&self, block: &Block, sums: &mut Vec<i32>) -> usize {
        debug_assert!(block.columns.start.is_multiple_of(PANEL), "a block begins with a panel");
        let stride = block.columns.len().next_multiple_of(PANEL);
        let rows = block.rows.len();
        // What an earlier block left there is overwritten: every kernel fills whole panels.
        sums.resize(rows * stride, 0);
        let depth = self.depth();
        let panel_size = self.groups * GROUP_BYTES;
        let range = block.rows.start * depth..block.rows.end * depth;
        for (index, column) in block.columns.clone().step_by(PANEL).enumerate() {
            let right = &self.right[column / PANEL * panel_size..][..panel_size];
            let target = Sums { sums: &mut sums[index * PANEL..], rows, stride };
            match self.left {
                #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
                Left::Neon(ref left) => super::neon::bytes(&left[range.clone()], right, target),
                #[cfg(target_arch = "x86_64")]
                Left::Vnni(ref left, ref biases) => {
                    let biases = &biases[block.rows.clone()];
                    // SAFETY: `new` lays out for a kernel only where the processor has it.
                    unsafe { super::avx512::vnni(&left[range.clone()], right, biases, target) }
                }
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Left::Avx2(ref left) => unsafe { super::avx2::words(&left[range.clone()], right, target) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                Left::Avx512(ref left) => unsafe {
                    super::avx512::words(&left[range.clone()], right, target)
                },
            }
        }
        stride
    }
}

/// The rows of a left factor, each padded to whole groups.
fn padded_rows<T: Default + Clone>(
    left: &IntegerMatrix,
    groups: usize,
    narrow: impl Fn(i8) -> T,
    wide: impl Fn(i16) -> T,
) -> Vec<T> {
    let depth = groups * GROUP;
    let mut padded = Vec::with_capacity(left.rows() * depth);
    for row in 0..left.rows() {
        left.append(row, 0..left.columns(), &mut padded, &narrow, &wide);
        padded.resize((row + 1) * depth, T::default());
    }
    padded
}

/// The panels of a right factor, in parallel.
fn panels(right: &IntegerMatrix, groups: usize) -> Vec<i8> {
    let count = right.columns().div_ceil(PANEL);
    let mut bytes = vec![0_i8; count * groups * GROUP_BYTES];
    if bytes.is_empty() {
        return bytes;
    }
    bytes.par_chunks_mut(groups * GROUP_BYTES).enumerate().for_each(|(panel, bytes)| {
        let columns = panel * PANEL..right.columns().min((panel + 1) * PANEL);
        let mut row = Vec::with_capacity(PANEL);
        for rank in 0..right.rows() {
            row.clear();
            right.append(rank, columns.clone(), &mut row, |value| value, |value| value as i8);
            let group = &mut bytes[rank / GROUP * GROUP_BYTES..][..GROUP_BYTES];
            let targets = group[rank % GROUP..].iter_mut().step_by(GROUP);
            targets.zip(&row).for_each(|(target, value)| *target = *value);
        }
    });
    bytes
}
