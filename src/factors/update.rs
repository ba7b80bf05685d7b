//! The change of one tensor: its terms, and the one way to add them to weights.
//!
//! ```text
//! W'[i,j] = round_to_dtype(f64(W[i,j]) + D1[i,j] + D2[i,j] + ...)        in this order, one rounding at the end
//! ```
//!
//! Work goes in tasks of a few rows, in parallel, and within a task in tiles of a few hundred columns, so that
//! memory stays small whatever the tensor and the rank. No sum crosses a tile: the result is the same for every
//! number of threads.

use std::ops::{AddAssign, Range};

use rayon::prelude::*;

use super::kernels::{Block, Factors, Kernel, Scratch, single_depth};
use super::{FactorError, Integers, Term};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// Rows of one parallel task and of one tile: enough for a fast matrix product.
pub(super) const TASK_ROWS: usize = 64;
/// Columns of one tile.
const TILE_COLUMNS: usize = 512;

/// All terms of one tensor's update, in the order in which they are added.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    // At least one, all of the same shape.
    terms: Vec<Term>,
    // For each term the depth at which f32 sums stay exact; 0 for dense terms, which have no sums.
    single_depths: Vec<usize>,
}

/// What adding an update to some rows met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowsApplied {
    /// Weights that are NaN or infinite, and were left as they are.
    pub not_finite: u64,
    /// Weights whose bits changed.
    pub changed: u64,
}

impl AddAssign for RowsApplied {
    fn add_assign(&mut self, other: Self) {
        self.not_finite += other.not_finite;
        self.changed += other.changed;
    }
}

impl Update {
    /// Checks that there is at least one term and that all have the same shape.
    ///
    /// # Errors
    /// [`FactorError::NoTerms`] or [`FactorError::Size`].
    pub fn new(terms: Vec<Term>) -> Result<Self, FactorError> {
        let Some(first) = terms.first() else {
            return Err(FactorError::NoTerms);
        };
        let (rows, columns) = (first.rows(), first.columns());
        for term in &terms {
            check_size("a term's column of rows", rows, term.rows())?;
            check_size("a term's row of columns", columns, term.columns())?;
        }
        let depth = |term: &Term| match term.integers() {
            Integers::LowRank { left, right } => single_depth(left, right),
            Integers::Dense(_) => 0,
        };
        let single_depths = terms.iter().map(depth).collect();
        Ok(Self { terms, single_depths })
    }

    /// `out`: rows of the tensor.
    pub fn rows(&self) -> usize {
        self.terms[0].rows()
    }

    /// `in`: columns of the tensor.
    pub fn columns(&self) -> usize {
        self.terms[0].columns()
    }

    /// The terms in the order in which they are added; at least one.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Adds the update to `rows` of the tensor, whose little-endian bytes `weights` are replaced by the result.
    ///
    /// NaN and infinite weights stay as they are and are counted. After an error `weights` hold a mixture of old
    /// and new values and must be thrown away.
    ///
    /// # Errors
    /// [`FactorError::Rows`], [`FactorError::Size`] for the wrong number of bytes, and [`FactorError::Overflow`]
    /// for a finite weight whose result is not finite.
    pub fn apply_rows(
        &self,
        dtype: Dtype,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<RowsApplied, FactorError> {
        with_element!(dtype, E => self.apply_elements::<E>(rows, weights))
    }

    fn apply_elements<E: Element>(
        &self,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<RowsApplied, FactorError> {
        self.check_rows("weights in bytes", &rows, E::DTYPE.size_bytes(), weights.len())?;
        if weights.is_empty() {
            return Ok(RowsApplied::default());
        }
        let row_size_bytes = self.columns() * E::DTYPE.size_bytes();
        let tasks = weights.par_chunks_mut(TASK_ROWS * row_size_bytes).enumerate();
        let results: Vec<_> = tasks
            .map_init(Workspace::default, |workspace, (task, weights)| {
                self.apply_task::<E>(rows.start + task * TASK_ROWS, weights, workspace)
            })
            .collect();
        // Summed in order, so that of several errors the same one is told on every run.
        results.into_iter().try_fold(RowsApplied::default(), |mut total, result| {
            total += result?;
            Ok(total)
        })
    }

    fn apply_task<E: Element>(
        &self,
        row_first: usize,
        weights: &mut [u8],
        workspace: &mut Workspace,
    ) -> Result<RowsApplied, FactorError> {
        let size_bytes = E::DTYPE.size_bytes();
        let rows = row_first..row_first + weights.len() / (self.columns() * size_bytes);
        let mut total = RowsApplied::default();
        self.for_each_span(rows, workspace, |span| {
            let weights = &mut weights[span.bytes(row_first, self.columns(), size_bytes)];
            total += apply_span::<E>(span, weights)?;
            Ok(())
        })?;
        Ok(total)
    }

    /// The update `D1 + D2 + ...` of `rows`, row-major.
    ///
    /// For looking at an update and for adding it to other arithmetic. With several terms it is *not* what
    /// [`Update::apply_rows`] adds: there each term is added to the weight in turn.
    ///
    /// # Errors
    /// [`FactorError::Rows`] for rows that the tensor does not have.
    pub fn delta_rows(&self, rows: Range<usize>) -> Result<Vec<f64>, FactorError> {
        self.check_range(&rows)?;
        let columns = self.columns();
        let mut deltas = vec![0.0; rows.len() * columns];
        if deltas.is_empty() {
            return Ok(deltas);
        }
        let tasks = deltas.par_chunks_mut(TASK_ROWS * columns).enumerate();
        tasks.try_for_each_init(Workspace::default, |workspace, (task, deltas)| {
            let row_first = rows.start + task * TASK_ROWS;
            let rows = row_first..row_first + deltas.len() / columns;
            self.for_each_span(rows, workspace, |span| {
                let deltas = &mut deltas[span.bytes(row_first, columns, 1)];
                for (delta, terms) in deltas.iter_mut().zip(span.weights()) {
                    *delta = add_in_order(0.0, terms);
                }
                Ok(())
            })
        })?;
        Ok(deltas)
    }

    /// Hands `visit` every weight's terms, a stretch of one row at a time; a row's stretches come left to right.
    pub(super) fn for_each_span(
        &self,
        rows: Range<usize>,
        workspace: &mut Workspace,
        mut visit: impl FnMut(&Span<'_>) -> Result<(), FactorError>,
    ) -> Result<(), FactorError> {
        for row_first in rows.clone().step_by(TASK_ROWS) {
            for column_first in (0..self.columns()).step_by(TILE_COLUMNS) {
                let block = Block {
                    rows: row_first..rows.end.min(row_first + TASK_ROWS),
                    columns: column_first..self.columns().min(column_first + TILE_COLUMNS),
                };
                self.compute_tile(&block, workspace);
                let span_length = block.columns.len() * self.terms.len();
                for (row, deltas) in block.rows.zip(workspace.deltas.chunks_exact(span_length)) {
                    let columns = block.columns.clone();
                    visit(&Span { row, columns, deltas, terms: self.terms.len() })?;
                }
            }
        }
        Ok(())
    }

    /// Fills `workspace.deltas` with the tile's terms, row-major, the terms of one weight side by side.
    fn compute_tile(&self, block: &Block, workspace: &mut Workspace) {
        let Workspace { scratch, sums, deltas } = workspace;
        deltas.clear();
        deltas.resize(block.rows.len() * block.columns.len() * self.terms.len(), 0.0);
        for (index, (term, depth)) in self.terms.iter().zip(&self.single_depths).enumerate() {
            match term.integers() {
                Integers::LowRank { left, right } => {
                    Factors::new(left, right, *depth).product(Kernel::Blocked, block, scratch, sums);
                }
                Integers::Dense(dense) => {
                    sums.clear();
                    for row in block.rows.clone() {
                        sums.extend(dense.row(row)[block.columns.clone()].iter().map(|sum| f64::from(*sum)));
                    }
                }
            }
            let targets = deltas[index..].iter_mut().step_by(self.terms.len());
            scale_sums(term, block, sums, targets);
        }
    }

    fn check_range(&self, rows: &Range<usize>) -> Result<(), FactorError> {
        if rows.start > rows.end || rows.end > self.rows() {
            return Err(FactorError::Rows { start: rows.start, end: rows.end, rows: self.rows() });
        }
        Ok(())
    }

    /// Checks that `rows` exist and that a buffer of `found` bytes holds exactly them.
    pub(super) fn check_rows(
        &self,
        what: &'static str,
        rows: &Range<usize>,
        size_bytes: usize,
        found: usize,
    ) -> Result<(), FactorError> {
        self.check_range(rows)?;
        check_size(what, rows.len().saturating_mul(self.columns()).saturating_mul(size_bytes), found)
    }
}

fn check_size(what: &'static str, expected: usize, found: usize) -> Result<(), FactorError> {
    if expected == found { Ok(()) } else { Err(FactorError::Size { what, expected, found }) }
}

/// `D = (row_scale * column_scale) * S`, in f64 and in that order.
fn scale_sums<'a>(term: &Term, block: &Block, sums: &[f64], mut targets: impl Iterator<Item = &'a mut f64>) {
    let column_scales = &term.column_scales()[block.columns.clone()];
    for (row, sums) in block.rows.clone().zip(sums.chunks_exact(block.columns.len())) {
        let row_scale = f64::from(term.row_scales()[row]);
        // `targets` comes last in the zip, so that the end of a row takes none.
        for ((column_scale, sum), target) in column_scales.iter().zip(sums).zip(targets.by_ref()) {
            *target = (row_scale * f64::from(*column_scale)) * sum;
        }
    }
}

/// Buffers that one thread reuses from tile to tile: about 3 MiB for one term in f32.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    scratch: Scratch,
    sums: Vec<f64>,
    deltas: Vec<f64>,
}

/// The terms of a stretch of one row.
#[derive(Debug)]
pub(super) struct Span<'a> {
    pub row: usize,
    pub columns: Range<usize>,
    deltas: &'a [f64],
    terms: usize,
}

impl<'a> Span<'a> {
    /// Where the stretch lies in a buffer that starts with the row `row_first`, in units of one entry's size.
    pub fn bytes(&self, row_first: usize, columns: usize, size_bytes: usize) -> Range<usize> {
        let start = (self.row - row_first) * columns;
        (start + self.columns.start) * size_bytes..(start + self.columns.end) * size_bytes
    }

    /// For each weight of the stretch its terms `D1, D2, ...`.
    pub fn weights(&self) -> impl Iterator<Item = &'a [f64]> + use<'a> {
        self.deltas.chunks_exact(self.terms)
    }
}

/// The sum before rounding: each term added in turn, plain f64.
#[inline]
pub(super) fn add_in_order(weight: f64, terms: &[f64]) -> f64 {
    terms.iter().fold(weight, |sum, term| sum + term)
}

fn apply_span<E: Element>(span: &Span<'_>, weights: &mut [u8]) -> Result<RowsApplied, FactorError> {
    let mut applied = RowsApplied::default();
    let weights = weights.chunks_exact_mut(E::DTYPE.size_bytes());
    for (index, (bytes, terms)) in weights.zip(span.weights()).enumerate() {
        let before = E::read(bytes);
        if !before.is_finite() {
            applied.not_finite += 1;
            continue;
        }
        let value = add_in_order(before.to_f64(), terms);
        let after = E::round(value);
        if !after.is_finite() {
            let (row, column) = (span.row, span.columns.start + index);
            return Err(FactorError::Overflow { row, column, value, dtype: E::DTYPE });
        }
        applied.changed += u64::from(after.ordinal() != before.ordinal());
        after.write(bytes);
    }
    Ok(applied)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::super::IntegerMatrix;
    use super::super::samples::{Generator, update_and_weights, weights};
    use super::*;

    /// The format's formula, weight by weight, in i64 and f64.
    fn apply_by_definition<E: Element>(update: &Update, weights: &[u8]) -> Option<Vec<u8>> {
        let mut result = weights.to_vec();
        for (index, bytes) in result.chunks_exact_mut(E::DTYPE.size_bytes()).enumerate() {
            let (row, column) = (index / update.columns(), index % update.columns());
            let before = E::read(bytes);
            if !before.is_finite() {
                continue;
            }
            let mut value = before.to_f64();
            for term in update.terms() {
                let sum: i64 = match term.integers() {
                    Integers::Dense(dense) => i64::from(dense.row(row)[column]),
                    Integers::LowRank { left, right } => (0..left.columns())
                        .map(|k| i64::from(left.row(row)[k]) * i64::from(right.row(k)[column]))
                        .sum(),
                };
                let scale = f64::from(term.row_scales()[row]) * f64::from(term.column_scales()[column]);
                value += scale * sum as f64;
            }
            let after = E::round(value);
            if !after.is_finite() {
                return None;
            }
            after.write(bytes);
        }
        Some(result)
    }

    fn applies_as_defined<E: Element>(update: &Update, weights: &[u8]) {
        let mut found = weights.to_vec();
        let applied = update.apply_rows(E::DTYPE, 0..update.rows(), &mut found);
        match apply_by_definition::<E>(update, weights) {
            Some(expected) => {
                let size_bytes = E::DTYPE.size_bytes();
                let pairs = || weights.chunks_exact(size_bytes).zip(expected.chunks_exact(size_bytes));
                let not_finite = pairs().filter(|(before, _)| !E::read(before).is_finite()).count() as u64;
                let changed = pairs().filter(|(before, after)| before != after).count() as u64;
                assert_eq!(applied, Ok(RowsApplied { not_finite, changed }));
                assert_eq!(found, expected);
            }
            None => assert!(matches!(applied, Err(FactorError::Overflow { .. })), "{applied:?}"),
        }
    }

    proptest! {
        #[test]
        fn f32_rows_get_what_the_formula_says((update, weights) in update_and_weights(Dtype::F32)) {
            applies_as_defined::<f32>(&update, &weights);
        }

        #[test]
        fn f16_rows_get_what_the_formula_says((update, weights) in update_and_weights(Dtype::F16)) {
            applies_as_defined::<f16>(&update, &weights);
        }

        #[test]
        fn bf16_rows_get_what_the_formula_says((update, weights) in update_and_weights(Dtype::BF16)) {
            applies_as_defined::<bf16>(&update, &weights);
        }
    }

    /// Shapes past the edges of tasks and tiles, with terms of both kinds.
    fn large_update() -> (Update, Vec<u8>) {
        let mut generator = Generator(5);
        let (rows, columns) = (TASK_ROWS * 2 + 3, TILE_COLUMNS + 7);
        let terms = vec![
            generator.term(rows, columns, Some(40), 8, -24),
            generator.term(rows, columns, None, 16, -20),
            generator.term(rows, columns, Some(3), 12, -30),
        ];
        let weights = weights::<f16>((0..rows * columns).map(|_| generator.gaussian() * 0.02));
        (Update::new(terms).unwrap(), weights)
    }

    #[test]
    fn every_number_of_threads_and_every_split_gives_the_same_bytes() {
        let (update, weights) = large_update();
        let expected = apply_by_definition::<f16>(&update, &weights).unwrap();
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut found = weights.clone();
            pool.install(|| update.apply_rows(Dtype::F16, 0..update.rows(), &mut found)).unwrap();
            assert!(found == expected, "{threads} threads give other bytes");
        }
        let row_size_bytes = update.columns() * 2;
        for split in [1, 63, 64, 65] {
            let mut found = weights.clone();
            for (index, rows) in found.chunks_mut(split * row_size_bytes).enumerate() {
                let first = index * split;
                update.apply_rows(Dtype::F16, first..first + rows.len() / row_size_bytes, rows).unwrap();
            }
            assert!(found == expected, "rows by {split} give other bytes");
        }
    }

    #[test]
    fn delta_rows_are_the_sum_of_the_terms() {
        let (update, _) = large_update();
        let alone: Vec<Vec<f64>> = update
            .terms()
            .iter()
            .map(|term| Update::new(vec![term.clone()]).unwrap().delta_rows(0..update.rows()).unwrap())
            .collect();
        let found = update.delta_rows(70..update.rows()).unwrap();
        let skipped = 70 * update.columns();
        for (index, delta) in found.iter().enumerate() {
            let expected = alone.iter().fold(0.0, |sum, term| sum + term[skipped + index]);
            assert_eq!(*delta, expected);
        }
    }

    #[test]
    fn an_overflow_names_its_place() {
        let ones = IntegerMatrix::new("ones", 2, 3, 2, vec![1; 6]).unwrap();
        let term = Term::new(Integers::Dense(ones), vec![1.0, 100.0], vec![1.0, 1.0, 1.0]).unwrap();
        let update = Update::new(vec![term]).unwrap();
        let mut weights = weights::<f16>([65504.0, 0.0, 0.0, 0.0, f64::INFINITY, 65504.0]);
        assert_eq!(
            update.apply_rows(Dtype::F16, 0..2, &mut weights),
            Err(FactorError::Overflow { row: 1, column: 2, value: 65604.0, dtype: Dtype::F16 })
        );
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let (update, weights) = large_update();
        let end = update.rows();
        let mut weights = weights[..update.columns() * 2].to_vec();
        assert!(matches!(
            update.apply_rows(Dtype::F16, end..end + 1, &mut weights),
            Err(FactorError::Rows { .. })
        ));
        assert!(matches!(update.apply_rows(Dtype::F32, 0..1, &mut weights), Err(FactorError::Size { .. })));
        assert_eq!(Update::new(Vec::new()), Err(FactorError::NoTerms));
        let other = Generator(1).term(1, update.columns(), None, 2, 0);
        let terms = vec![update.terms()[0].clone(), other];
        assert!(matches!(Update::new(terms), Err(FactorError::Size { .. })));
        assert_eq!(update.apply_rows(Dtype::F16, 4..4, &mut []), Ok(RowsApplied::default()));
    }
}
