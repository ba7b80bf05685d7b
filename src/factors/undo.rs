//! Exact undo: what the base held, from the edited weights, the update and a log far smaller than either.
//!
//! ```text
//! W  ->  W' = round(f64(W) + D1 + D2 + ...)      never falls as W rises, so the W that give one W' are an interval
//!
//! ordinals of W:   ... [ low  low+1  ...  high ] ...          the log holds W - low where high > low, and only there
//! ```
//!
//! Where the sum does not move up a binade the interval has one member and costs nothing; no positions are
//! stored, because the reader finds the same intervals. A weight that is NaN or infinite was left alone and has
//! no entry.
//!
//! # The bytes
//!
//! | field | type |
//! |---|---|
//! | rows per block: `max(1, 65536 / columns)` | u32 |
//! | number of blocks | u32 |
//! | number of words of each block | u32 each |
//! | words of all blocks | u64 each |
//!
//! All little-endian. A word holds as many choices as fit: in row-major order, `state += index * product` and
//! `product *= n` for a choice of one among `n`; when `product * n` would pass 2^64 the word is written and a new
//! one begins. Each block begins a new word, so blocks are undone independently.

mod interval;
mod words;

use std::ops::Range;

use rayon::prelude::*;

use self::interval::{for_each_not_one, interval_of};
use self::words::{Choice, WordReader, WordWriter};
use super::kernels::{LOOK, Lane, Members, STRETCH_MAX, log, restore};
use super::update::{Met, Span, Workspace};
use super::{FactorError, RowsApplied, Update};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// Weights of one block, unless a single row has more.
const BLOCK_WEIGHTS: usize = 65_536;
const COUNT_SIZE_BYTES: usize = size_of::<u32>();
const WORD_SIZE_BYTES: usize = size_of::<u64>();

/// Rows of one block of an undo log for a tensor of `columns` columns.
pub fn undo_rows_per_block(columns: usize) -> usize {
    (BLOCK_WEIGHTS / columns.max(1)).max(1)
}

fn fault(message: String) -> FactorError {
    FactorError::Undo(message)
}

// -------------------------------------------------------------------------------------------------- the writer --

/// Builds the undo log of one tensor, some rows at a time, while the update is applied.
#[derive(Debug)]
pub struct UndoWriter {
    rows: usize,
    columns: usize,
    row_next: usize,
    word_counts: Vec<u32>,
    words: Vec<u64>,
}

impl UndoWriter {
    /// An empty log for a tensor of this shape.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self { rows, columns, row_next: 0, word_counts: Vec::new(), words: Vec::new() }
    }

    /// Applies `update` to the next rows, as [`Update::apply_rows`] does, and logs what takes it back.
    ///
    /// Rows come in order; each call brings whole blocks of [`undo_rows_per_block`] rows, except at the tensor's
    /// end. Every weight is checked: undoing gives what `weights` held again.
    ///
    /// # Errors
    /// [`FactorError::Undo`] when rows are out of order; otherwise as for [`Update::apply_rows`].
    pub fn apply_rows(
        &mut self,
        update: &Update,
        dtype: Dtype,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<RowsApplied, FactorError> {
        if rows.start != self.row_next {
            return Err(fault(format!("rows from {} were given, expected {}", rows.start, self.row_next)));
        }
        check_block_rows(update, [self.rows, self.columns], dtype, &rows, weights.len())?;
        let (applied, blocks) = with_element!(dtype, E => apply_and_log::<E>(update, &rows, weights))?;
        for words in blocks {
            let count = u32::try_from(words.len());
            self.word_counts.push(count.map_err(|_| fault(format!("{} words in one block", words.len())))?);
            self.words.extend(words);
        }
        self.row_next = rows.end;
        Ok(applied)
    }

    /// The bytes of the log.
    ///
    /// # Errors
    /// [`FactorError::Undo`] when rows are missing.
    pub fn finish(self) -> Result<Vec<u8>, FactorError> {
        if self.row_next != self.rows {
            return Err(fault(format!("{} of {} rows were given", self.row_next, self.rows)));
        }
        let header = [undo_rows_per_block(self.columns), self.word_counts.len()];
        let mut bytes = Vec::new();
        for value in header {
            let value = u32::try_from(value).map_err(|_| fault(format!("{value} blocks")))?;
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        bytes.extend(self.word_counts.iter().flat_map(|count| count.to_le_bytes()));
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        Ok(bytes)
    }
}

/// Checks that a log and an update are of one shape, that `rows` are whole blocks of it, and that a buffer of `found`
/// bytes holds exactly them.
fn check_block_rows(
    update: &Update,
    [rows_total, columns]: [usize; 2],
    dtype: Dtype,
    rows: &Range<usize>,
    found: usize,
) -> Result<(), FactorError> {
    check_shape(update, rows_total, columns)?;
    update.check_rows(rows, dtype, found)?;
    check_whole_blocks(rows, rows_total, columns).map_err(fault)
}

fn check_shape(update: &Update, rows: usize, columns: usize) -> Result<(), FactorError> {
    if (update.rows(), update.columns()) == (rows, columns) {
        return Ok(());
    }
    let found = format!("{} by {}", update.rows(), update.columns());
    Err(fault(format!("the update is {found}, the log is for {rows} by {columns}")))
}

/// Says what is wrong with rows that are no whole blocks of [`undo_rows_per_block`] rows, the last block apart.
pub(super) fn check_whole_blocks(
    rows: &Range<usize>,
    rows_total: usize,
    columns: usize,
) -> Result<(), String> {
    let rows_per_block = undo_rows_per_block(columns);
    let whole = |row: usize| row.is_multiple_of(rows_per_block) || row == rows_total;
    if whole(rows.start) && whole(rows.end) {
        return Ok(());
    }
    Err(format!("rows {}..{} are not whole blocks of {rows_per_block} rows", rows.start, rows.end))
}

/// Applies `update` to the weights of `rows`, and returns the words of each of their blocks.
fn apply_and_log<E: Lane>(
    update: &Update,
    rows: &Range<usize>,
    weights: &mut [u8],
) -> Result<(RowsApplied, Vec<Vec<u64>>), FactorError> {
    let rows_per_block = undo_rows_per_block(update.columns());
    let mut total = RowsApplied::default();
    if weights.is_empty() {
        return Ok((total, vec![Vec::new(); rows.len().div_ceil(rows_per_block)]));
    }
    let task_rows = update.task_rows(rows.len(), rows_per_block);
    let tasks = weights.par_chunks_mut(task_rows * update.columns() * E::DTYPE.size_bytes()).enumerate();
    let results: Vec<_> = tasks
        .map_init(Workspace::default, |workspace, (task, weights)| {
            log_task::<E>(update, rows.start + task * task_rows, weights, workspace)
        })
        .collect();
    let mut blocks = Vec::new();
    // In order, so that of several errors the same one is told on every run.
    for result in results {
        let (applied, words) = result?;
        total += applied;
        blocks.extend(words);
    }
    Ok((total, blocks))
}

fn log_task<E: Lane>(
    update: &Update,
    row_first: usize,
    weights: &mut [u8],
    workspace: &mut Workspace,
) -> Result<(RowsApplied, Vec<Vec<u64>>), FactorError> {
    let (columns, size_bytes) = (update.columns(), E::DTYPE.size_bytes());
    let rows = row_first..row_first + weights.len() / (columns * size_bytes);
    let mut choices = no_choices(rows.len(), columns);
    let (mut met, mut buffers) = (Met::default(), Buffers::default());
    update.for_each_span(rows, workspace, |span| {
        let weights = &mut weights[span.bytes(row_first, columns, size_bytes)];
        log_span::<E>(update, span, weights, &mut buffers, &mut met, &mut choices[span.row - row_first]);
    });
    let applied = met.outcome::<E>()?;
    let blocks = choices.chunks(undo_rows_per_block(columns)).map(|block| {
        let mut writer = WordWriter::new();
        for choice in block.iter().flatten() {
            writer.push(choice.index.into(), choice.count.into());
        }
        writer.finish()
    });
    Ok((applied, blocks.collect()))
}

/// For each row nothing yet, with room for what an edit commonly has: more than that costs time only.
fn no_choices(rows: usize, columns: usize) -> Vec<Vec<Choice>> {
    (0..rows).map(|_| Vec::with_capacity(columns / 16)).collect()
}

/// What is found about one stretch of weights; the next one overwrites it.
struct Buffers {
    counts: [u8; STRETCH_MAX],
    indices: [u8; STRETCH_MAX],
    terms: Vec<f64>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { counts: [0; STRETCH_MAX], indices: [0; STRETCH_MAX], terms: Vec::new() }
    }
}

/// Applies `update` to a stretch, and notes every weight that shares what becomes of it with others.
fn log_span<E: Lane>(
    update: &Update,
    span: &Span<'_>,
    weights: &mut [u8],
    buffers: &mut Buffers,
    met: &mut Met,
    choices: &mut Vec<Choice>,
) {
    let Buffers { counts, indices, terms } = buffers;
    let (counts, indices) = (&mut counts[..span.columns.len()], &mut indices[..span.columns.len()]);
    let members = Members { counts: &mut *counts, indices: &mut *indices };
    met.count(log::<E>(update.kernel(), weights, span.terms, members));
    let size_bytes = E::DTYPE.size_bytes();
    for_each_not_one(counts, |place| {
        let (mut count, mut index) = (i64::from(counts[place]), i64::from(indices[place]));
        if counts[place] == LOOK {
            span.terms.of(place, terms);
            let bytes = &mut weights[place * size_bytes..][..size_bytes];
            let before = E::read(bytes);
            let Some(after) = met.apply_to_one(span, place, before, terms) else { return };
            after.write(bytes);
            let interval = interval_of(after, terms);
            (count, index) = (interval.end - interval.start, before.ordinal() - interval.start);
        }
        if count > 1 {
            choices.push(Choice::new(span.columns.start + place, count, index));
        }
    });
}

// -------------------------------------------------------------------------------------------------- the reader --

/// The undo log of one tensor, read and checked as far as it can be without the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UndoLog {
    rows: usize,
    columns: usize,
    // For each block where its words start, and the end of the last.
    word_starts: Vec<usize>,
    words: Vec<u64>,
}

impl UndoLog {
    /// Reads the bytes of [`UndoWriter::finish`] for a tensor of `rows` by `columns`.
    ///
    /// # Errors
    /// [`FactorError::Undo`] when counts do not fit the shape, or bytes are missing or left over.
    pub fn parse(bytes: Vec<u8>, rows: usize, columns: usize) -> Result<Self, FactorError> {
        let (rows_per_block, rest) = take_count(&bytes)?;
        let (block_count, rest) = take_count(rest)?;
        let expected = undo_rows_per_block(columns);
        if rows_per_block != expected {
            return Err(fault(format!("blocks of {rows_per_block} rows, expected {expected}")));
        }
        let expected = rows.div_ceil(rows_per_block);
        if block_count != expected {
            return Err(fault(format!("{block_count} blocks, expected {expected} for {rows} rows")));
        }
        let counts_size_bytes = block_count.saturating_mul(COUNT_SIZE_BYTES);
        let Some((counts, words)) = rest.split_at_checked(counts_size_bytes) else {
            return Err(fault(format!("{} bytes, too few for {block_count} blocks", bytes.len())));
        };
        let word_starts = word_starts(counts);
        let word_count = word_starts.last().copied().unwrap_or(0);
        if word_count.checked_mul(WORD_SIZE_BYTES) != Some(words.len()) {
            return Err(fault(format!("{word_count} words announced, {} bytes of words found", words.len())));
        }
        let (words, _) = words.as_chunks::<WORD_SIZE_BYTES>();
        Ok(Self {
            rows,
            columns,
            word_starts,
            words: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        })
    }

    /// Turns the edited weights of `rows` back into the base's, in place.
    ///
    /// `weights` are the little-endian bytes of exactly those rows, which are whole blocks of
    /// [`undo_rows_per_block`] rows except at the tensor's end. After an error `weights` hold a mixture and must
    /// be thrown away.
    ///
    /// # Errors
    /// [`FactorError::Undo`] when no weight becomes the one that is there, or the log does not say exactly one;
    /// [`FactorError::Rows`] and [`FactorError::Size`] as for [`Update::apply_rows`].
    pub fn revert_rows(
        &self,
        update: &Update,
        dtype: Dtype,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<(), FactorError> {
        check_block_rows(update, [self.rows, self.columns], dtype, &rows, weights.len())?;
        with_element!(dtype, E => self.revert_elements::<E>(update, rows, weights))
    }

    /// Applies `update` to the base's weights of `rows`, as [`Update::apply_rows`] does, and compares what would be
    /// logged with what this log says: where the two are the same, [`UndoLog::revert_rows`] takes the result back.
    ///
    /// # Errors
    /// [`FactorError::Undo`] when the log says something else; otherwise as for [`Update::apply_rows`].
    pub(crate) fn prove_rows(
        &self,
        update: &Update,
        dtype: Dtype,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<RowsApplied, FactorError> {
        check_block_rows(update, [self.rows, self.columns], dtype, &rows, weights.len())?;
        let (applied, blocks) = with_element!(dtype, E => apply_and_log::<E>(update, &rows, weights))?;
        let first = rows.start / undo_rows_per_block(self.columns);
        for (block, words) in (first..).zip(blocks) {
            if words != self.words_of(block) {
                return Err(fault(format!("block {block}: it does not say what the weights were")));
            }
        }
        Ok(applied)
    }

    fn words_of(&self, block: usize) -> &[u64] {
        &self.words[self.word_starts[block]..self.word_starts[block + 1]]
    }

    fn revert_elements<E: Lane>(
        &self,
        update: &Update,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<(), FactorError> {
        let task_rows = update.task_rows(rows.len(), undo_rows_per_block(self.columns));
        let row_size_bytes = self.columns * E::DTYPE.size_bytes();
        if row_size_bytes == 0 {
            return self.check_empty_blocks(&rows);
        }
        let tasks = weights.par_chunks_mut(task_rows * row_size_bytes).enumerate();
        let results: Vec<Result<(), FactorError>> = tasks
            .map_init(Workspace::default, |workspace, (task, weights)| {
                self.revert_task::<E>(update, rows.start + task * task_rows, weights, workspace)
            })
            .collect();
        results.into_iter().collect()
    }

    /// Puts the lowest candidate in every place, then raises those that the log has a choice for.
    fn revert_task<E: Lane>(
        &self,
        update: &Update,
        row_first: usize,
        weights: &mut [u8],
        workspace: &mut Workspace,
    ) -> Result<(), FactorError> {
        let size_bytes = E::DTYPE.size_bytes();
        let row_size_bytes = self.columns * size_bytes;
        let rows = row_first..row_first + weights.len() / row_size_bytes;
        let mut choices = no_choices(rows.len(), self.columns);
        let (mut faults, mut buffers) = (Faults::default(), Buffers::default());
        update.for_each_span(rows.clone(), workspace, |span| {
            let weights = &mut weights[span.bytes(row_first, self.columns, size_bytes)];
            let choices = &mut choices[span.row - row_first];
            faults.note(span, lowest_of_span::<E>(update, span, weights, &mut buffers, choices));
        });
        faults.first()?;
        let rows_per_block = undo_rows_per_block(self.columns);
        let blocks = weights.chunks_mut(rows_per_block * row_size_bytes).zip(choices.chunks(rows_per_block));
        for (index, (weights, choices)) in blocks.enumerate() {
            let block = row_first / rows_per_block + index;
            choose::<E>(self.words_of(block), choices, weights, row_size_bytes)
                .map_err(|message| fault(format!("block {block}: {message}")))?;
        }
        Ok(())
    }

    /// Rows without columns have no choices, so their blocks have no words.
    fn check_empty_blocks(&self, rows: &Range<usize>) -> Result<(), FactorError> {
        match self.words.len() {
            0 => Ok(()),
            count => {
                Err(fault(format!("{count} words for rows {}..{} without columns", rows.start, rows.end)))
            }
        }
    }
}

/// Where each block's words start, from the bytes of their counts; one entry more than there are blocks.
fn word_starts(counts: &[u8]) -> Vec<usize> {
    let (counts, _) = counts.as_chunks::<COUNT_SIZE_BYTES>();
    let mut end = 0_usize;
    let ends = counts.iter().map(|count| {
        end = end.saturating_add(u32::from_le_bytes(*count) as usize);
        end
    });
    std::iter::once(0).chain(ends).collect()
}

fn take_count(bytes: &[u8]) -> Result<(usize, &[u8]), FactorError> {
    let Some((count, rest)) = bytes.split_first_chunk::<COUNT_SIZE_BYTES>() else {
        return Err(fault("the header is cut short".to_owned()));
    };
    Ok((u32::from_le_bytes(*count) as usize, rest))
}

/// The first of several faults in the order of the weights; tiles come in another.
#[derive(Default)]
struct Faults(Option<(usize, usize, FactorError)>);

impl Faults {
    fn note(&mut self, span: &Span<'_>, outcome: Result<(), FactorError>) {
        let place = (span.row, span.columns.start);
        let is_first = self.0.as_ref().is_none_or(|(row, column, _)| place < (*row, *column));
        if let (Err(error), true) = (outcome, is_first) {
            self.0 = Some((place.0, place.1, error));
        }
    }

    fn first(self) -> Result<(), FactorError> {
        self.0.map_or(Ok(()), |(.., error)| Err(error))
    }
}

fn lowest_of_span<E: Lane>(
    update: &Update,
    span: &Span<'_>,
    weights: &mut [u8],
    buffers: &mut Buffers,
    choices: &mut Vec<Choice>,
) -> Result<(), FactorError> {
    let Buffers { counts, terms, .. } = buffers;
    let counts = &mut counts[..span.columns.len()];
    restore::<E>(update.kernel(), weights, span.terms, counts);
    let size_bytes = E::DTYPE.size_bytes();
    let mut outcome = Ok(());
    for_each_not_one(counts, |place| {
        let (mut count, column) = (i64::from(counts[place]), span.columns.start + place);
        if counts[place] == LOOK {
            let bytes = &mut weights[place * size_bytes..][..size_bytes];
            let after = E::read(bytes);
            span.terms.of(place, terms);
            let interval = interval_of(after, terms);
            count = interval.end - interval.start;
            if count == 0 {
                let message = format!("row {}, column {column}: no weight becomes {after:?}", span.row);
                outcome = std::mem::replace(&mut outcome, Ok(())).and(Err(fault(message)));
                return;
            }
            E::from_ordinal(interval.start).write(bytes);
        }
        if count > 1 {
            choices.push(Choice::new(column, count, 0));
        }
    });
    outcome
}

/// Raises each weight that has a choice from its lowest candidate to the one that `words` name.
fn choose<E: Element>(
    words: &[u64],
    choices: &[Vec<Choice>],
    weights: &mut [u8],
    row_size_bytes: usize,
) -> Result<(), String> {
    let size_bytes = E::DTYPE.size_bytes();
    let mut reader = WordReader::new(words);
    for (choices, weights) in choices.iter().zip(weights.chunks_exact_mut(row_size_bytes)) {
        for choice in choices {
            let bytes = &mut weights[choice.column as usize * size_bytes..][..size_bytes];
            let index = reader.choose(choice.count.into())?;
            E::from_ordinal(E::read(bytes).ordinal() + index as i64).write(bytes);
        }
    }
    reader.finish()
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::super::Term;
    use super::super::samples::{Generator, kernels, terms_and_weights, weights};
    use super::*;

    /// Applies the update; where a weight would overflow, the base gets a NaN instead.
    fn apply(update: &Update, dtype: Dtype, base: &mut [u8]) -> Vec<u8> {
        loop {
            let mut edited = base.to_vec();
            match update.apply_rows(dtype, 0..update.rows(), &mut edited) {
                Ok(_) => return edited,
                Err(FactorError::Overflow { row, column, .. }) => {
                    let start = (row * update.columns() + column) * dtype.size_bytes();
                    base[start..start + dtype.size_bytes()].fill(0xff);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn log_of(update: &Update, dtype: Dtype, base: &[u8], edited: &[u8]) -> Vec<u8> {
        let mut writer = UndoWriter::new(update.rows(), update.columns());
        let mut weights = base.to_vec();
        let applied = writer.apply_rows(update, dtype, 0..update.rows(), &mut weights);
        assert!(weights == edited, "logged on the way, the result is another");
        assert_eq!(applied, update.apply_rows(dtype, 0..update.rows(), &mut base.to_vec()));
        writer.finish().unwrap()
    }

    fn apply_then_revert_restores(terms: Vec<Term>, dtype: Dtype, base: &[u8]) {
        let mut first_log = None;
        for kernel in kernels() {
            let update = Update::of(kernel, terms.iter().cloned().map(Ok), |error| error).unwrap();
            let mut base = base.to_vec();
            let edited = apply(&update, dtype, &mut base);
            let bytes = log_of(&update, dtype, &base, &edited);
            assert_eq!(first_log.get_or_insert(bytes.clone()), &bytes, "{kernel}");
            let log = UndoLog::parse(bytes, update.rows(), update.columns()).unwrap();
            let mut proved = base.clone();
            log.prove_rows(&update, dtype, 0..update.rows(), &mut proved).unwrap();
            assert_eq!(proved, edited, "{kernel}");
            let mut reverted = edited;
            log.revert_rows(&update, dtype, 0..update.rows(), &mut reverted).unwrap();
            assert_eq!(reverted, base, "{kernel}");
        }
    }

    proptest! {
        #[test]
        fn revert_restores_every_f32_byte((terms, weights) in terms_and_weights(Dtype::F32)) {
            apply_then_revert_restores(terms, Dtype::F32, &weights);
        }

        #[test]
        fn revert_restores_every_f16_byte((terms, weights) in terms_and_weights(Dtype::F16)) {
            apply_then_revert_restores(terms, Dtype::F16, &weights);
        }

        #[test]
        fn revert_restores_every_bf16_byte((terms, weights) in terms_and_weights(Dtype::BF16)) {
            apply_then_revert_restores(terms, Dtype::BF16, &weights);
        }
    }

    /// A dense update of `ratio` times the weights' size, f16 weights as a model has them, and the result.
    fn gaussian_edit(rows: usize, columns: usize, ratio: f64) -> (Update, Vec<u8>, Vec<u8>) {
        let mut generator = Generator(3);
        let mut base = weights::<f16>((0..rows * columns).map(|_| generator.gaussian() * 0.02));
        let values = (0..rows * columns).map(|_| (generator.gaussian() * 4000.0) as i16).collect();
        let dense = super::super::IntegerMatrix::new("dense", rows, columns, 16, values).unwrap();
        let scale = (0.02 * ratio / 4000.0) as f32;
        let integers = super::super::Integers::Dense(dense);
        let term = super::super::Term::new(integers, vec![scale; rows], vec![1.0; columns]).unwrap();
        let update = Update::new(vec![term]).unwrap();
        let edited = apply(&update, Dtype::F16, &mut base);
        (update, base, edited)
    }

    #[test]
    fn an_edit_of_a_hundredth_costs_less_than_three_hundredths_of_a_bit_per_weight() {
        let (rows, columns) = (256, 1024);
        let (update, base, edited) = gaussian_edit(rows, columns, 1e-2);
        let bits = log_of(&update, Dtype::F16, &base, &edited).len() as f64 * 8.0;
        let bits_per_weight = bits / (rows * columns) as f64;
        // The entropy of the choices is 0.0244; the header and the last words come on top.
        assert!(bits_per_weight <= 0.03, "{bits_per_weight} bits per weight");
    }

    #[test]
    fn blocks_can_be_written_and_undone_apart_on_any_number_of_threads() {
        let (rows, columns) = (3 * 64 + 5, 1000);
        let (update, base, edited) = gaussian_edit(rows, columns, 0.3);
        let whole = log_of(&update, Dtype::F16, &base, &edited);
        let block_rows = undo_rows_per_block(columns);
        assert_eq!(block_rows, 65);
        let blocks = || (0..rows).step_by(block_rows).map(|first| first..rows.min(first + block_rows));
        let bytes = |rows: &Range<usize>| rows.start * columns * 2..rows.end * columns * 2;
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut writer = UndoWriter::new(rows, columns);
            for rows in blocks() {
                let mut weights = base[bytes(&rows)].to_vec();
                pool.install(|| writer.apply_rows(&update, Dtype::F16, rows, &mut weights)).unwrap();
            }
            assert!(writer.finish().unwrap() == whole);
            let log = UndoLog::parse(whole.clone(), rows, columns).unwrap();
            let mut reverted = edited.clone();
            for rows in blocks().collect::<Vec<_>>().into_iter().rev() {
                let weights = &mut reverted[bytes(&rows)];
                pool.install(|| log.revert_rows(&update, Dtype::F16, rows, weights)).unwrap();
            }
            assert!(reverted == base, "{threads} threads give other bytes");
        }
    }

    #[test]
    fn a_log_that_is_cut_or_longer_is_refused() {
        let (rows, columns) = (80, 1000);
        let (update, base, edited) = gaussian_edit(rows, columns, 0.3);
        let bytes = log_of(&update, Dtype::F16, &base, &edited);
        for end in (0..bytes.len()).step_by(7).chain(bytes.len() - 9..bytes.len()) {
            let found = UndoLog::parse(bytes[..end].to_vec(), rows, columns);
            assert!(matches!(found, Err(FactorError::Undo(_))), "{end} bytes of {}", bytes.len());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(UndoLog::parse(longer, rows, columns), Err(FactorError::Undo(_))));
        assert!(matches!(UndoLog::parse(bytes.clone(), 200, columns), Err(FactorError::Undo(_))));
        assert!(matches!(UndoLog::parse(bytes, rows, 900), Err(FactorError::Undo(_))));
    }

    #[test]
    fn a_log_that_says_anything_but_one_thing_is_refused() {
        let (rows, columns) = (80, 1000);
        let (update, base, edited) = gaussian_edit(rows, columns, 0.3);
        let log = UndoLog::parse(log_of(&update, Dtype::F16, &base, &edited), rows, columns).unwrap();
        let refused = |log: &UndoLog| {
            let result = log.revert_rows(&update, Dtype::F16, 0..rows, &mut edited.clone());
            assert!(matches!(result, Err(FactorError::Undo(_))), "{result:?}");
            let result = log.prove_rows(&update, Dtype::F16, 0..rows, &mut base.clone());
            assert!(matches!(result, Err(FactorError::Undo(_))), "{result:?}");
        };
        let mut too_large = log.clone();
        // The last word of a block holds few choices, so its highest bits are never used.
        *too_large.words.last_mut().unwrap() = u64::MAX;
        refused(&too_large);
        let mut moved = log.clone();
        moved.word_starts[1] -= 1;
        refused(&moved);
        let mut longer = log.clone();
        longer.words.push(0);
        *longer.word_starts.last_mut().unwrap() += 1;
        refused(&longer);
    }

    #[test]
    fn rows_out_of_order_and_missing_rows_are_refused() {
        let (rows, columns) = (8, 100);
        let (update, mut base, _) = gaussian_edit(rows, columns, 0.3);
        let mut writer = UndoWriter::new(rows, columns);
        let late = writer.apply_rows(&update, Dtype::F16, 1..rows, &mut base[200..]);
        assert!(matches!(late, Err(FactorError::Undo(_))), "{late:?}");
        assert!(matches!(writer.finish(), Err(FactorError::Undo(_))));
    }

    #[test]
    fn a_value_that_no_weight_becomes_is_refused() {
        // Weights near -1024 lie a half or a whole apart, so that small results have no weight behind them.
        let dense = super::super::IntegerMatrix::new("dense", 1, 1, 12, vec![1024]).unwrap();
        let integers = super::super::Integers::Dense(dense);
        let term = super::super::Term::new(integers, vec![1.0], vec![1.0]).unwrap();
        let update = Update::new(vec![term]).unwrap();
        let log = UndoLog::parse([1_u32, 1, 0].map(u32::to_le_bytes).concat(), 1, 1);
        assert!(matches!(log, Err(FactorError::Undo(_))), "one row per block is not what this shape has");
        let log = UndoLog::parse([65_536_u32, 1, 0].map(u32::to_le_bytes).concat(), 1, 1).unwrap();
        // 2^-20 = W + 1024 needs a W between -1024 and its neighbour.
        let mut edited = weights::<f16>([2.0_f64.powi(-20)]);
        let result = log.revert_rows(&update, Dtype::F16, 0..1, &mut edited);
        assert!(matches!(result, Err(FactorError::Undo(_))), "{result:?}");
    }
}
