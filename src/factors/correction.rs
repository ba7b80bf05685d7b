//! What the terms of a tensor leave wrong, weight by weight: differences in ordinals.
//!
//! ```text
//! W  -- terms, one rounding -->  W1  -- correction -->  W'          ordinal(W') = ordinal(W1) + difference
//! ```
//!
//! An ordinal counts the bit patterns of a type in the order of their values, so a difference of 1 is the next weight
//! up. Differences wrap around within the type's width, so that any weight can become any other, NaN and infinities
//! included; and the way back is exact without knowing anything about the terms.
//!
//! # The bytes
//!
//! | field | size |
//! |---|---|
//! | bytes of a difference: 1, 2 or 4, the fewest that hold the largest | 1 |
//! | a bit for each weight, row-major, lowest bit of a byte first: set where there is a difference | `ceil(weights / 8)` |
//! | the differences of the weights whose bits are set: their lowest bytes, then their next, and so on | the rest |
//!
//! A difference `d`, which is not 0, is stored as `2 d` where it is positive and as `-2 d - 1` where it is negative:
//! a small number where it is near 0. Bits behind the last weight are 0.

use std::ops::Range;

use rayon::prelude::*;

use super::undo::check_whole_blocks;
use super::{FactorError, undo_rows_per_block};
use crate::tensor::{Dtype, Element};
use crate::with_element;

const BYTE_BITS: usize = 8;

fn fault(message: String) -> FactorError {
    FactorError::Correction(message)
}

/// Which way a correction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Forward,
    Back,
}

/// The difference in the type's width, wrapped around.
fn wrapped<E: Element>(ordinal: i64) -> i64 {
    let unused = i64::BITS - (E::DTYPE.size_bytes() * BYTE_BITS) as u32;
    (ordinal << unused) >> unused
}

/// A difference other than 0 as a number from 1 on: small where the difference is near 0.
fn folded(difference: i64) -> u32 {
    // The most negative difference of 32 bits gives the largest u32.
    if difference > 0 { (2 * difference) as u32 } else { (-2 * difference - 1) as u32 }
}

fn unfolded(folded: u32) -> i64 {
    let folded = i64::from(folded);
    if folded % 2 == 0 { folded / 2 } else { -(folded + 1) / 2 }
}

/// Builds the correction of one tensor, some rows at a time.
#[derive(Debug)]
pub struct CorrectionWriter {
    rows: usize,
    columns: usize,
    row_next: usize,
    bits: Vec<u8>,
    folded: Vec<u32>,
}

impl CorrectionWriter {
    /// No corrections for a tensor of this shape.
    pub fn new(rows: usize, columns: usize) -> Self {
        let bits = vec![0; (rows * columns).div_ceil(BYTE_BITS)];
        Self { rows, columns, row_next: 0, bits, folded: Vec::new() }
    }

    /// Adds the next rows: the little-endian bytes of what the terms give and of what is wanted.
    ///
    /// # Errors
    /// [`FactorError::Correction`] when rows are out of order, [`FactorError::Size`] for the wrong number of bytes.
    pub fn push_rows(
        &mut self,
        dtype: Dtype,
        rows: Range<usize>,
        given: &[u8],
        wanted: &[u8],
    ) -> Result<(), FactorError> {
        if rows.start != self.row_next || rows.end > self.rows {
            return Err(fault(format!("rows {rows:?} were given, expected them from {}", self.row_next)));
        }
        let expected = rows.len() * self.columns * dtype.size_bytes();
        for (what, found) in
            [("corrected weights in bytes", given.len()), ("wanted weights in bytes", wanted.len())]
        {
            if found != expected {
                return Err(FactorError::Size { what, expected, found });
            }
        }
        with_element!(dtype, E => self.push_elements::<E>(rows.start * self.columns, given, wanted));
        self.row_next = rows.end;
        Ok(())
    }

    fn push_elements<E: Element>(&mut self, first: usize, given: &[u8], wanted: &[u8]) {
        let size_bytes = E::DTYPE.size_bytes();
        let pairs = given.chunks_exact(size_bytes).zip(wanted.chunks_exact(size_bytes));
        for (index, (given, wanted)) in pairs.enumerate().filter(|(_, (given, wanted))| given != wanted) {
            let difference = wrapped::<E>(E::read(wanted).ordinal() - E::read(given).ordinal());
            self.bits[(first + index) / BYTE_BITS] |= 1 << ((first + index) % BYTE_BITS);
            self.folded.push(folded(difference));
        }
    }

    /// How many weights are corrected so far.
    pub fn corrected(&self) -> u64 {
        self.folded.len() as u64
    }

    /// The bytes of the correction; none where nothing is to be corrected.
    ///
    /// # Errors
    /// [`FactorError::Correction`] when rows are missing.
    pub fn finish(self) -> Result<Option<Vec<u8>>, FactorError> {
        if self.row_next != self.rows {
            return Err(fault(format!("{} of {} rows were given", self.row_next, self.rows)));
        }
        if self.folded.is_empty() {
            return Ok(None);
        }
        let mut bytes = vec![self.width() as u8];
        bytes.extend(&self.bits);
        self.planes().for_each(|plane| bytes.extend(plane));
        Ok(Some(bytes))
    }

    fn width(&self) -> usize {
        self.folded.iter().max().map_or(0, |largest| width_of(*largest))
    }

    /// The differences so far: their lowest bytes, then their next, and so on.
    pub(crate) fn planes(&self) -> impl Iterator<Item = Vec<u8>> {
        let plane = |plane: usize| self.folded.iter().map(|folded| folded.to_le_bytes()[plane]).collect();
        (0..self.width()).map(plane)
    }
}

/// How many weights of a tensor of so many the `correction` corrects that [`CorrectionWriter::finish`] gave.
#[cfg(feature = "edit")]
pub(crate) fn corrected_of(correction: Option<&[u8]>, weights: u64) -> u64 {
    let bits = correction.map_or(&[][..], |bytes| &bytes[1..1 + weights.div_ceil(BYTE_BITS as u64) as usize]);
    bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
}

/// The fewest of 1, 2 and 4 bytes that hold `folded`.
fn width_of(folded: u32) -> usize {
    match folded {
        0..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 4,
    }
}

/// The correction of one tensor, read and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Correction {
    rows: usize,
    columns: usize,
    /// As in the file.
    bytes: Vec<u8>,
    width: usize,
    /// For each block of [`undo_rows_per_block`] rows how many weights before it are corrected, and all in all.
    block_starts: Vec<usize>,
}

impl Correction {
    /// Reads the bytes of [`CorrectionWriter::finish`] for a tensor of `rows` by `columns`.
    ///
    /// # Errors
    /// [`FactorError::Correction`] for anything but what the writer writes.
    pub fn parse(bytes: Vec<u8>, dtype: Dtype, rows: usize, columns: usize) -> Result<Self, FactorError> {
        let weights =
            rows.checked_mul(columns).ok_or_else(|| fault(format!("{rows} by {columns} weights")))?;
        let Some((&width, rest)) = bytes.split_first() else { return Err(fault("it is empty".to_owned())) };
        let width = usize::from(width);
        if ![1, 2, 4].contains(&width) || width > dtype.size_bytes() {
            return Err(fault(format!("differences of {width} bytes for {dtype}")));
        }
        let Some((bits, planes)) = rest.split_at_checked(weights.div_ceil(BYTE_BITS)) else {
            return Err(fault(format!("{} bytes, too few for {weights} weights", bytes.len())));
        };
        let padding = bits.len() * BYTE_BITS - weights;
        if padding > 0 && bits[bits.len() - 1].leading_zeros() < padding as u32 {
            return Err(fault("a bit is set behind the last weight".to_owned()));
        }
        let block_starts = block_starts(bits, rows, columns);
        // One start more than there are blocks.
        let count = block_starts.last().copied().unwrap_or(0);
        if count == 0 {
            return Err(fault("it corrects nothing".to_owned()));
        }
        if planes.len() != count * width {
            return Err(fault(format!("{count} differences of {width} bytes, {} bytes found", planes.len())));
        }
        let correction = Self { rows, columns, bytes, width, block_starts };
        correction.check_differences()?;
        Ok(correction)
    }

    /// A difference of 0 would be a second way to say nothing, and so would a width that nobody needs.
    fn check_differences(&self) -> Result<(), FactorError> {
        let count = self.corrected() as usize;
        let largest = (0..count).into_par_iter().map(|index| self.folded(index));
        let (least, most) = largest
            .fold(|| (u32::MAX, 0), |(least, most), folded| (folded.min(least), folded.max(most)))
            .reduce(|| (u32::MAX, 0), |one, other| (one.0.min(other.0), one.1.max(other.1)));
        if least == 0 {
            return Err(fault("a difference of 0".to_owned()));
        }
        if width_of(most) != self.width {
            return Err(fault(format!(
                "differences of {} bytes, of which {} would do",
                self.width,
                width_of(most)
            )));
        }
        Ok(())
    }

    /// How many weights are corrected.
    pub fn corrected(&self) -> u64 {
        self.block_starts.last().copied().unwrap_or(0) as u64
    }

    fn bits(&self) -> &[u8] {
        &self.bytes[1..1 + (self.rows * self.columns).div_ceil(BYTE_BITS)]
    }

    fn folded(&self, index: usize) -> u32 {
        let planes = &self.bytes[1 + self.bits().len()..];
        let count = planes.len() / self.width;
        let byte = |plane: usize| u32::from(planes[plane * count + index]) << (plane * BYTE_BITS);
        (0..self.width).map(byte).sum()
    }

    /// Corrects `rows`, whole blocks of [`undo_rows_per_block`] rows except at the tensor's end: `weights` are the
    /// little-endian bytes of what the terms gave.
    ///
    /// # Errors
    /// [`FactorError::Rows`] or [`FactorError::Size`], and [`FactorError::Correction`] for rows that are no whole
    /// blocks.
    pub fn apply_rows(
        &self,
        dtype: Dtype,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<(), FactorError> {
        with_element!(dtype, E => self.step_rows::<E>(Step::Forward, rows, weights))
    }

    /// Takes the correction of `rows` back: what [`Correction::apply_rows`] was given.
    ///
    /// # Errors
    /// As for [`Correction::apply_rows`].
    pub fn revert_rows(
        &self,
        dtype: Dtype,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<(), FactorError> {
        with_element!(dtype, E => self.step_rows::<E>(Step::Back, rows, weights))
    }

    fn step_rows<E: Element>(
        &self,
        step: Step,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<(), FactorError> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(FactorError::Rows { start: rows.start, end: rows.end, rows: self.rows });
        }
        let row_size_bytes = self.columns * E::DTYPE.size_bytes();
        let (expected, found) = (rows.len() * row_size_bytes, weights.len());
        if expected != found {
            return Err(FactorError::Size { what: "weights in bytes", expected, found });
        }
        check_whole_blocks(&rows, self.rows, self.columns).map_err(fault)?;
        if weights.is_empty() {
            return Ok(());
        }
        let rows_per_block = undo_rows_per_block(self.columns);
        weights.par_chunks_mut(rows_per_block * row_size_bytes).enumerate().for_each(|(index, weights)| {
            self.step_block::<E>(step, rows.start / rows_per_block + index, weights);
        });
        Ok(())
    }

    fn step_block<E: Element>(&self, step: Step, block: usize, weights: &mut [u8]) {
        let size_bytes = E::DTYPE.size_bytes();
        let first = block * undo_rows_per_block(self.columns) * self.columns;
        let places = set_bits(self.bits(), first..first + weights.len() / size_bytes);
        for (place, index) in places.zip(self.block_starts[block]..) {
            let bytes = &mut weights[(place - first) * size_bytes..][..size_bytes];
            let difference = unfolded(self.folded(index));
            let ordinal = E::read(bytes).ordinal();
            let corrected = match step {
                Step::Forward => ordinal + difference,
                Step::Back => ordinal - difference,
            };
            E::from_ordinal(wrapped::<E>(corrected)).write(bytes);
        }
    }
}

/// The places in `range` whose bits are set, ascending.
fn set_bits(bits: &[u8], range: Range<usize>) -> impl Iterator<Item = usize> + '_ {
    let bytes = range.start / BYTE_BITS..range.end.div_ceil(BYTE_BITS);
    let places = bytes.flat_map(move |index| {
        let mut byte = bits[index];
        std::iter::from_fn(move || {
            let bit = (byte != 0).then(|| byte.trailing_zeros() as usize)?;
            byte &= byte - 1;
            Some(index * BYTE_BITS + bit)
        })
    });
    // The range may begin and end within a byte.
    places
        .skip_while({
            let start = range.start;
            move |place| *place < start
        })
        .take_while(move |place| *place < range.end)
}

fn block_starts(bits: &[u8], rows: usize, columns: usize) -> Vec<usize> {
    let rows_per_block = undo_rows_per_block(columns);
    let starts: Vec<usize> = (0..rows).step_by(rows_per_block).collect();
    let counts: Vec<usize> = starts
        .into_par_iter()
        .map(|row| {
            let end = rows.min(row + rows_per_block);
            set_bits(bits, row * columns..end * columns).count()
        })
        .collect();
    let mut total = 0;
    let ends = counts.into_iter().map(|count| {
        total += count;
        total
    });
    std::iter::once(0).chain(ends).collect()
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::super::samples::Generator;
    use super::*;

    fn correction_of(dtype: Dtype, shape: [usize; 2], given: &[u8], wanted: &[u8]) -> Option<Correction> {
        let [rows, columns] = shape;
        let mut writer = CorrectionWriter::new(rows, columns);
        writer.push_rows(dtype, 0..rows, given, wanted).unwrap();
        let bytes = writer.finish().unwrap()?;
        Some(Correction::parse(bytes, dtype, rows, columns).unwrap())
    }

    #[test]
    fn differences_fold_to_numbers_from_one_on() {
        let pairs =
            [(1, 2), (-1, 1), (2, 4), (-2, 3), (127, 254), (-128, 255), (32_767, 65_534), (-32_768, 65_535)];
        let farthest = [(i64::from(i32::MAX), u32::MAX - 1), (i64::from(i32::MIN), u32::MAX)];
        for (difference, number) in pairs.into_iter().chain(farthest) {
            assert_eq!((folded(difference), unfolded(number)), (number, difference));
        }
    }

    proptest! {
        #[test]
        fn any_weights_become_any_others_and_come_back(
            seed in any::<u64>(),
            dtype in prop_oneof![Just(Dtype::F32), Just(Dtype::F16), Just(Dtype::BF16)],
            rows in 1..40_usize,
            columns in 1..40_usize,
            density in 1..8_u64,
        ) {
            let mut generator = Generator(seed);
            let size = rows * columns * dtype.size_bytes();
            let given: Vec<u8> = (0..size).map(|_| generator.bits() as u8).collect();
            let mut wanted = given.clone();
            for weight in wanted.chunks_exact_mut(dtype.size_bytes()) {
                if generator.bits() % 8 < density {
                    weight.iter_mut().for_each(|byte| *byte = generator.bits() as u8);
                }
            }
            if let Some(correction) = correction_of(dtype, [rows, columns], &given, &wanted) {
                let mut found = given.clone();
                correction.apply_rows(dtype, 0..rows, &mut found).unwrap();
                prop_assert!(found == wanted);
                correction.revert_rows(dtype, 0..rows, &mut found).unwrap();
                prop_assert!(found == given);
            } else {
                prop_assert!(given == wanted);
            }
        }
    }

    #[test]
    fn every_pattern_reaches_every_other() {
        fn farthest<E: Element>(lowest: i64, highest: i64) {
            let size = E::DTYPE.size_bytes();
            let ordinals = [lowest, lowest + 1, -1, 0, 1, highest - 1, highest];
            for (given, wanted) in ordinals.iter().flat_map(|one| ordinals.map(|other| (*one, other))) {
                let mut bytes = [vec![0; size], vec![0; size]];
                E::from_ordinal(given).write(&mut bytes[0]);
                E::from_ordinal(wanted).write(&mut bytes[1]);
                let Some(correction) = correction_of(E::DTYPE, [1, 1], &bytes[0], &bytes[1]) else {
                    assert_eq!(given, wanted);
                    continue;
                };
                let mut found = bytes[0].clone();
                correction.apply_rows(E::DTYPE, 0..1, &mut found).unwrap();
                assert_eq!(found, bytes[1], "{given} to {wanted}");
                correction.revert_rows(E::DTYPE, 0..1, &mut found).unwrap();
                assert_eq!(found, bytes[0], "{wanted} back to {given}");
            }
        }
        farthest::<f32>(i64::from(i32::MIN), i64::from(i32::MAX));
        farthest::<f16>(i64::from(i16::MIN), i64::from(i16::MAX));
        farthest::<bf16>(i64::from(i16::MIN), i64::from(i16::MAX));
    }

    #[test]
    fn blocks_are_corrected_each_for_itself() {
        // Blocks of 65536 / 13000 = 5 rows, whose bits begin within bytes.
        let (rows, columns) = (17, 13_001);
        let mut generator = Generator(1);
        let given: Vec<u8> = (0..rows * columns * 2).map(|_| generator.bits() as u8).collect();
        let mut wanted = given.clone();
        for weight in wanted.chunks_exact_mut(2).step_by(7) {
            weight[0] ^= 1;
        }
        let correction = correction_of(Dtype::F16, [rows, columns], &given, &wanted).unwrap();
        let mut found = Vec::new();
        for block in (0..rows).step_by(5) {
            let block = block..rows.min(block + 5);
            let mut weights = given[block.start * columns * 2..block.end * columns * 2].to_vec();
            correction.apply_rows(Dtype::F16, block, &mut weights).unwrap();
            found.extend(weights);
        }
        assert!(found == wanted);
        for ragged in [1..2, 0..1] {
            let refused = correction.apply_rows(Dtype::F16, ragged, &mut vec![0; columns * 2]);
            assert!(matches!(refused, Err(FactorError::Correction(_))), "{refused:?}");
        }
    }

    #[test]
    fn the_example_of_the_format_reads_as_it_says() {
        let correction = Correction::parse(vec![0x01, 0x05, 0x02, 0x03], Dtype::F16, 2, 2).unwrap();
        let ordinals = |bytes: &[u8]| -> Vec<i64> {
            bytes.chunks_exact(2).map(|weight| <f16 as Element>::read(weight).ordinal()).collect()
        };
        let mut weights = vec![0x10, 0, 0x20, 0, 0x30, 0, 0x40, 0];
        correction.apply_rows(Dtype::F16, 0..2, &mut weights).unwrap();
        assert_eq!(ordinals(&weights), [0x11, 0x20, 0x2e, 0x40]);
    }

    #[test]
    fn anything_but_the_one_encoding_is_refused() {
        let message =
            |bytes: &[u8]| Correction::parse(bytes.to_vec(), Dtype::F16, 1, 3).unwrap_err().to_string();
        // The first and the last of three weights.
        Correction::parse(vec![1, 0b101, 1, 2], Dtype::F16, 1, 3).unwrap();
        Correction::parse(vec![2, 0b101, 1, 2, 0, 1], Dtype::F16, 1, 3).unwrap();
        for (bytes, words) in [
            (&[][..], "it is empty"),
            (&[3, 0b101, 1, 2], "differences of 3 bytes for F16"),
            (&[4, 0b001, 1, 0, 0, 1], "differences of 4 bytes for F16"),
            (&[1], "1 bytes, too few for 3 weights"),
            (&[1, 0b1101, 1, 2, 3], "a bit is set behind the last weight"),
            (&[1, 0], "it corrects nothing"),
            (&[1, 0b101, 1], "2 differences of 1 bytes, 1 bytes found"),
            (&[1, 0b101, 1, 2, 3], "2 differences of 1 bytes, 3 bytes found"),
            (&[1, 0b101, 1, 0], "a difference of 0"),
            (&[2, 0b101, 1, 2, 0, 0], "differences of 2 bytes, of which 1 would do"),
        ] {
            assert_eq!(message(bytes), format!("correction: {words}"));
        }
    }
}
