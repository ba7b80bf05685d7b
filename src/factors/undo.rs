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

use std::ops::Range;

use rayon::prelude::*;

use super::kernels::{LOOK, Lane, STRETCH_MAX, check, restore};
use super::update::{Span, Workspace, add_in_order, task_rows};
use super::{FactorError, Update};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// Weights of one block, unless a single row has more.
const BLOCK_WEIGHTS: usize = 65_536;
/// One past the largest word.
const WORD_LIMIT: u128 = 1 << 64;
const COUNT_SIZE_BYTES: usize = size_of::<u32>();
const WORD_SIZE_BYTES: usize = size_of::<u64>();

/// Rows of one block of an undo log for a tensor of `columns` columns.
pub fn undo_rows_per_block(columns: usize) -> usize {
    (BLOCK_WEIGHTS / columns.max(1)).max(1)
}

fn fault(message: String) -> FactorError {
    FactorError::Undo(message)
}

// ---------------------------------------------------------------------------------------------- the interval --

/// The function from a weight's ordinal to the ordinal of its result, and the ordinals it is defined on.
struct Forward<'a, E> {
    terms: &'a [f64],
    lowest: i64,
    highest: i64,
    element: std::marker::PhantomData<E>,
}

impl<'a, E: Element> Forward<'a, E> {
    fn new(terms: &'a [f64]) -> Self {
        Self {
            terms,
            lowest: E::round(f64::NEG_INFINITY).ordinal() + 1,
            highest: E::round(f64::INFINITY).ordinal() - 1,
            element: std::marker::PhantomData,
        }
    }

    #[inline]
    fn result(&self, ordinal: i64) -> i64 {
        E::round(add_in_order(E::from_ordinal(ordinal).to_f64(), self.terms)).ordinal()
    }

    /// The ordinals whose result is `after`, given a `guess` that is among them or near them; may be empty.
    #[inline]
    fn interval(&self, after: i64, guess: i64) -> Range<i64> {
        let low = self.first_at_least(after, guess);
        // The result of `low` is known to reach `after`, so the search upwards begins at the larger of the two.
        let end = self.first_at_least(after + 1, guess.max(low).min(self.highest));
        low..end
    }

    /// The smallest ordinal whose result is at least `target`, or one past the highest when there is none.
    ///
    /// Doubles its step away from `start` until the target is passed, then halves the bracket: two evaluations
    /// where the guess is right, a few dozen at the worst.
    #[inline]
    fn first_at_least(&self, target: i64, start: i64) -> i64 {
        let (mut below, mut reached, mut step) = (start, start, 1);
        if self.result(start) >= target {
            loop {
                if reached == self.lowest {
                    return reached;
                }
                below = self.lowest.max(reached - step);
                if self.result(below) < target {
                    break;
                }
                reached = below;
                step *= 2;
            }
        } else {
            loop {
                if below == self.highest {
                    return below + 1;
                }
                reached = self.highest.min(below + step);
                if self.result(reached) >= target {
                    break;
                }
                below = reached;
                step *= 2;
            }
        }
        while reached - below > 1 {
            let middle = below + (reached - below) / 2;
            if self.result(middle) >= target { reached = middle } else { below = middle }
        }
        reached
    }

    /// Where to look for the weight that became `after`: its value less the update, in range.
    #[inline]
    fn guess(&self, after: E) -> i64 {
        let value = self.terms.iter().rev().fold(after.to_f64(), |value, term| value - term);
        E::round(value).ordinal().clamp(self.lowest, self.highest)
    }
}

// -------------------------------------------------------------------------------------------------- the words --

/// One place where the log has to say which of `count` weights it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Choice {
    // No element type has more than 2^32 - 2^24 finite values; a large block may have a choice at every weight.
    column: u32,
    count: u32,
    index: u32,
}

/// Packs choices into words.
#[derive(Debug)]
struct WordWriter {
    words: Vec<u64>,
    state: u64,
    product: u128,
}

impl WordWriter {
    fn new() -> Self {
        Self { words: Vec::new(), state: 0, product: 1 }
    }

    /// Adds the choice of `index` among `count`, which is at least 2 and at most 2^32.
    fn push(&mut self, index: u64, count: u64) {
        debug_assert!(index < count && (2..=1 << 32).contains(&count), "{index} of {count}");
        if self.product * u128::from(count) > WORD_LIMIT {
            self.end_word();
        }
        // The new state is below `product * count`, which fits a word.
        self.state += index * self.product as u64;
        self.product *= u128::from(count);
    }

    fn end_word(&mut self) {
        self.words.push(self.state);
        (self.state, self.product) = (0, 1);
    }

    fn finish(mut self) -> Vec<u64> {
        if self.product > 1 {
            self.end_word();
        }
        self.words
    }
}

/// Takes choices out of words, refusing all but what [`WordWriter`] writes.
#[derive(Debug)]
struct WordReader<'a> {
    words: std::slice::Iter<'a, u64>,
    word_count: usize,
    state: u64,
    product: u128,
}

impl<'a> WordReader<'a> {
    fn new(words: &'a [u64]) -> Self {
        // A full product makes the first choice take the first word.
        Self { words: words.iter(), word_count: words.len(), state: 0, product: WORD_LIMIT }
    }

    fn choose(&mut self, count: u64) -> Result<u64, String> {
        if self.product * u128::from(count) > WORD_LIMIT {
            self.check_word_is_used_up()?;
            let next = self.words.next();
            self.state = *next.ok_or_else(|| format!("its {} words end too early", self.word_count))?;
            self.product = 1;
        }
        let index = self.state % count;
        self.state /= count;
        self.product *= u128::from(count);
        Ok(index)
    }

    /// What is left of a word after its last choice is zero: each choice has one encoding, and none is out of range.
    fn check_word_is_used_up(&self) -> Result<(), String> {
        if self.state == 0 {
            return Ok(());
        }
        let word = self.word_count - self.words.len();
        Err(format!("word {word} of {} holds {} more than its choices", self.word_count, self.state))
    }

    fn finish(self) -> Result<(), String> {
        self.check_word_is_used_up()?;
        match self.words.len() {
            0 => Ok(()),
            unused => Err(format!("{unused} of its {} words are not used", self.word_count)),
        }
    }
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

    /// Adds the next rows: the little-endian bytes of their weights before and after `update`.
    ///
    /// Rows come in order; each call brings whole blocks of [`undo_rows_per_block`] rows, except at the tensor's
    /// end. Every weight is checked: the log is only written if undoing gives `before` again.
    ///
    /// # Errors
    /// [`FactorError::Undo`] when rows are out of order or `after` is not what the update makes of `before`;
    /// [`FactorError::Rows`] and [`FactorError::Size`] as for [`Update::apply_rows`].
    pub fn push_rows(
        &mut self,
        update: &Update,
        dtype: Dtype,
        rows: Range<usize>,
        before: &[u8],
        after: &[u8],
    ) -> Result<(), FactorError> {
        check_shape(update, self.rows, self.columns)?;
        update.check_rows("weights before, in bytes", &rows, dtype.size_bytes(), before.len())?;
        update.check_rows("weights after, in bytes", &rows, dtype.size_bytes(), after.len())?;
        if rows.start != self.row_next {
            return Err(fault(format!("rows from {} were given, expected {}", rows.start, self.row_next)));
        }
        check_whole_blocks(&rows, self.rows, self.columns)?;
        let blocks = with_element!(dtype, E => blocks_of_rows::<E>(update, &rows, before, after))?;
        for words in blocks {
            let count = u32::try_from(words.len());
            self.word_counts.push(count.map_err(|_| fault(format!("{} words in one block", words.len())))?);
            self.words.extend(words);
        }
        self.row_next = rows.end;
        Ok(())
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

fn check_shape(update: &Update, rows: usize, columns: usize) -> Result<(), FactorError> {
    if (update.rows(), update.columns()) == (rows, columns) {
        return Ok(());
    }
    let found = format!("{} by {}", update.rows(), update.columns());
    Err(fault(format!("the update is {found}, the log is for {rows} by {columns}")))
}

fn check_whole_blocks(rows: &Range<usize>, rows_total: usize, columns: usize) -> Result<(), FactorError> {
    let rows_per_block = undo_rows_per_block(columns);
    let whole = |row: usize| row.is_multiple_of(rows_per_block) || row == rows_total;
    if whole(rows.start) && whole(rows.end) {
        return Ok(());
    }
    Err(fault(format!("rows {}..{} are not whole blocks of {rows_per_block} rows", rows.start, rows.end)))
}

/// The words of each block of `rows`.
fn blocks_of_rows<E: Lane>(
    update: &Update,
    rows: &Range<usize>,
    before: &[u8],
    after: &[u8],
) -> Result<Vec<Vec<u64>>, FactorError> {
    let task_rows = task_rows(rows.len(), undo_rows_per_block(update.columns()));
    let starts: Vec<usize> = rows.clone().step_by(task_rows).collect();
    let row_size_bytes = update.columns() * E::DTYPE.size_bytes();
    let tasks = starts.into_par_iter().map_init(Workspace::default, |workspace, row_first| {
        let task = row_first..rows.end.min(row_first + task_rows);
        let bytes = (task.start - rows.start) * row_size_bytes..(task.end - rows.start) * row_size_bytes;
        blocks_of_task::<E>(update, task, &before[bytes.clone()], &after[bytes], workspace)
    });
    // Collected in order, so that of several errors the same one is told on every run.
    let results: Vec<Result<Vec<Vec<u64>>, FactorError>> = tasks.collect();
    let blocks: Result<Vec<Vec<Vec<u64>>>, FactorError> = results.into_iter().collect();
    Ok(blocks?.into_iter().flatten().collect())
}

fn blocks_of_task<E: Lane>(
    update: &Update,
    rows: Range<usize>,
    before: &[u8],
    after: &[u8],
    workspace: &mut Workspace,
) -> Result<Vec<Vec<u64>>, FactorError> {
    let mut choices: Vec<Vec<Choice>> = vec![Vec::new(); rows.len()];
    let mut faults = Faults::default();
    update.for_each_span(rows.clone(), workspace, |span| {
        let bytes = span.bytes(rows.start, update.columns(), E::DTYPE.size_bytes());
        let choices = &mut choices[span.row - rows.start];
        faults.note(span, choices_of_span::<E>(update, span, &before[bytes.clone()], &after[bytes], choices));
    });
    faults.first()?;
    let blocks = choices.chunks(undo_rows_per_block(update.columns())).map(|block| {
        let mut writer = WordWriter::new();
        for choice in block.iter().flatten() {
            writer.push(choice.index.into(), choice.count.into());
        }
        writer.finish()
    });
    Ok(blocks.collect())
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

fn choices_of_span<E: Lane>(
    update: &Update,
    span: &Span<'_>,
    before: &[u8],
    after: &[u8],
    choices: &mut Vec<Choice>,
) -> Result<(), FactorError> {
    let mut outcomes = [0; STRETCH_MAX];
    let outcomes = &mut outcomes[..span.columns.len()];
    check::<E>(update.kernel(), before, after, span.terms, outcomes);
    let size_bytes = E::DTYPE.size_bytes();
    let mut terms = Vec::new();
    for index in places_to_look(outcomes) {
        let column = span.columns.start + index;
        let read = |weights: &[u8]| E::read(&weights[index * size_bytes..][..size_bytes]);
        let (before, after) = (read(before), read(after));
        span.terms.of(index, &mut terms);
        let forward = Forward::<E>::new(&terms);
        let expected = if before.is_finite() { forward.result(before.ordinal()) } else { before.ordinal() };
        if after.ordinal() != expected {
            return Err(fault(format!(
                "row {}, column {column}: {before:?} becomes {:?}, and {after:?} was given",
                span.row,
                E::from_ordinal(expected),
            )));
        }
        if !before.is_finite() {
            continue;
        }
        if !after.is_finite() {
            return Err(fault(format!("row {}, column {column}: {before:?} overflows", span.row)));
        }
        let interval = forward.interval(after.ordinal(), before.ordinal());
        if interval.end - interval.start > 1 {
            choices.push(Choice::new(column, &interval, before.ordinal() - interval.start));
        }
    }
    Ok(())
}

impl Choice {
    /// The member `index` of an interval of ordinals. Columns and ordinals fit what holds them.
    fn new(column: usize, interval: &Range<i64>, index: i64) -> Self {
        Self { column: column as u32, count: (interval.end - interval.start) as u32, index: index as u32 }
    }
}

/// The weights of a stretch that are not settled yet.
fn places_to_look(outcomes: &[u8]) -> impl Iterator<Item = usize> {
    outcomes.iter().enumerate().filter(|(_, outcome)| **outcome == LOOK).map(|(index, _)| index)
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
        check_shape(update, self.rows, self.columns)?;
        update.check_rows("weights in bytes", &rows, dtype.size_bytes(), weights.len())?;
        check_whole_blocks(&rows, self.rows, self.columns)?;
        with_element!(dtype, E => self.revert_elements::<E>(update, rows, weights))
    }

    fn revert_elements<E: Lane>(
        &self,
        update: &Update,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<(), FactorError> {
        let task_rows = task_rows(rows.len(), undo_rows_per_block(self.columns));
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
        let mut choices: Vec<Vec<Choice>> = vec![Vec::new(); rows.len()];
        let mut faults = Faults::default();
        update.for_each_span(rows.clone(), workspace, |span| {
            let weights = &mut weights[span.bytes(row_first, self.columns, size_bytes)];
            let choices = &mut choices[span.row - row_first];
            faults.note(span, lowest_of_span::<E>(update, span, weights, choices));
        });
        faults.first()?;
        let rows_per_block = undo_rows_per_block(self.columns);
        let blocks = weights.chunks_mut(rows_per_block * row_size_bytes).zip(choices.chunks(rows_per_block));
        for (index, (weights, choices)) in blocks.enumerate() {
            let block = row_first / rows_per_block + index;
            let words = &self.words[self.word_starts[block]..self.word_starts[block + 1]];
            choose::<E>(words, choices, weights, row_size_bytes)
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

fn lowest_of_span<E: Lane>(
    update: &Update,
    span: &Span<'_>,
    weights: &mut [u8],
    choices: &mut Vec<Choice>,
) -> Result<(), FactorError> {
    let mut outcomes = [0; STRETCH_MAX];
    let outcomes = &mut outcomes[..span.columns.len()];
    restore::<E>(update.kernel(), weights, span.terms, outcomes);
    let size_bytes = E::DTYPE.size_bytes();
    let mut terms = Vec::new();
    for index in places_to_look(outcomes) {
        let column = span.columns.start + index;
        let bytes = &mut weights[index * size_bytes..][..size_bytes];
        let after = E::read(bytes);
        span.terms.of(index, &mut terms);
        let forward = Forward::<E>::new(&terms);
        let interval = forward.interval(after.ordinal(), forward.guess(after));
        if interval.is_empty() {
            let row = span.row;
            return Err(fault(format!("row {row}, column {column}: no weight becomes {after:?}")));
        }
        E::from_ordinal(interval.start).write(bytes);
        if interval.end - interval.start > 1 {
            choices.push(Choice::new(column, &interval, 0));
        }
    }
    Ok(())
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
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::super::samples::{Generator, terms_and_weights, weights};
    use super::super::{Kernel, Term};
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
        writer.push_rows(update, dtype, 0..update.rows(), base, edited).unwrap();
        writer.finish().unwrap()
    }

    fn apply_then_revert_restores(terms: Vec<Term>, dtype: Dtype, base: &[u8]) {
        let mut first_log = None;
        for kernel in Kernel::ALL {
            let update = Update::of(kernel, terms.iter().cloned().map(Ok), |error| error).unwrap();
            let mut base = base.to_vec();
            let edited = apply(&update, dtype, &mut base);
            let bytes = log_of(&update, dtype, &base, &edited);
            assert_eq!(first_log.get_or_insert(bytes.clone()), &bytes, "{kernel}");
            let log = UndoLog::parse(bytes, update.rows(), update.columns()).unwrap();
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

        #[test]
        fn words_give_back_every_choice(seeds in proptest::collection::vec((any::<u64>(), 1..=32_u32), 0..200)) {
            let choice = |(seed, bits): &(u64, u32)| {
                let count = (seed % (1 << bits)).max(1) + 1;
                (Generator(*seed).bits() % count, count)
            };
            let choices: Vec<(u64, u64)> = seeds.iter().map(choice).collect();
            let mut writer = WordWriter::new();
            choices.iter().for_each(|(index, count)| writer.push(*index, *count));
            let words = writer.finish();
            let mut reader = WordReader::new(&words);
            for (index, count) in choices {
                prop_assert_eq!(reader.choose(count), Ok(index));
            }
            prop_assert_eq!(reader.finish(), Ok(()));
        }
    }

    /// Compares intervals with the enumeration of all ordinals of a type of 16 bits.
    fn intervals_agree_with_enumeration<E: Element>(seed: u64) {
        let mut generator = Generator(seed);
        for _ in 0..30 {
            let terms: Vec<f64> = (0..1 + generator.bits() % 3)
                .map(|_| generator.gaussian() * 2.0_f64.powi((generator.bits() % 50) as i32 - 35))
                .collect();
            let forward = Forward::<E>::new(&terms);
            let results: Vec<i64> =
                (forward.lowest..=forward.highest).map(|ordinal| forward.result(ordinal)).collect();
            assert!(results.is_sorted(), "the result falls somewhere for {terms:?}");
            let span = (forward.highest - forward.lowest) as u64;
            for target in 0..300 {
                let target = match target {
                    0 => -1,
                    1 => 0,
                    2 => forward.lowest,
                    3 => forward.highest,
                    _ => forward.lowest + (generator.bits() % span) as i64,
                };
                let expected = results.partition_point(|result| *result < target) as i64
                    ..results.partition_point(|result| *result <= target) as i64;
                let expected = expected.start + forward.lowest..expected.end + forward.lowest;
                let guess = forward.guess(E::from_ordinal(target));
                assert_eq!(forward.interval(target, guess), expected, "{terms:?}, {target}");
                let guess = forward.lowest + (generator.bits() % span) as i64;
                assert_eq!(forward.interval(target, guess), expected, "{terms:?}, {target}, bad guess");
            }
        }
    }

    #[test]
    fn f16_intervals_agree_with_enumeration() {
        intervals_agree_with_enumeration::<f16>(1);
    }

    #[test]
    fn bf16_intervals_agree_with_enumeration() {
        intervals_agree_with_enumeration::<bf16>(2);
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
                let (before, after) = (&base[bytes(&rows)], &edited[bytes(&rows)]);
                pool.install(|| writer.push_rows(&update, Dtype::F16, rows.clone(), before, after)).unwrap();
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
    fn weights_that_the_update_does_not_give_are_refused() {
        let (rows, columns) = (8, 100);
        let (update, base, edited) = gaussian_edit(rows, columns, 0.3);
        let mut other = edited.clone();
        other[2 * 105] ^= 1;
        let mut writer = UndoWriter::new(rows, columns);
        let pushed = writer.push_rows(&update, Dtype::F16, 0..rows, &base, &other);
        assert!(matches!(pushed, Err(FactorError::Undo(_))), "{pushed:?}");
        assert!(matches!(writer.finish(), Err(FactorError::Undo(_))));
        let mut writer = UndoWriter::new(rows, columns);
        let late = writer.push_rows(&update, Dtype::F16, 1..rows, &base[200..], &edited[200..]);
        assert!(matches!(late, Err(FactorError::Undo(_))), "{late:?}");
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
