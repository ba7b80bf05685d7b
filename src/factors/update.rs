//! The change of one tensor: its terms, and the one way to add them to weights.
//!
//! ```text
//! W'[i,j] = round_to_dtype(f64(W[i,j]) + D1[i,j] + D2[i,j] + ...)        in this order, one rounding at the end
//! ```
//!
//! Work goes in tasks of a few rows, in parallel, and within a task in tiles: a strip of columns from top to bottom,
//! so that a strip of the right factor stays in the cache, and then the next strip. Memory stays small whatever the
//! tensor and the rank, and no sum crosses a tile: the result is the same for every number of threads.

use std::ops::{AddAssign, Range};

use rayon::prelude::*;

use super::kernels::{
    Applied, Block, Kernel, Lane, PANEL, Product, Scratch, Sums, Terms, apply, scale, squares,
};
use super::{FactorError, Term};
use crate::tensor::{Dtype, Element};
use crate::with_element;

/// Fewest rows of one parallel task.
const TASK_ROWS_MIN: usize = 16;
/// Fewest rows where each task reads more than this of right factors, from a cache that is far away.
const TASK_ROWS_MIN_FAR: usize = 64;
const NEAR_BYTES: usize = 4 << 20;
/// Most of them: the more rows, the fewer times the right factor is read.
const TASK_ROWS_MAX: usize = 256;
/// Tasks that each thread should get, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;
/// Rows of one tile.
const TILE_ROWS: usize = 64;
/// Rows of all terms of one tile together; an update of very many terms gets tiles of fewer rows.
const TILE_TERM_ROWS: usize = 16 * TILE_ROWS;

/// All terms of one tensor's update, in the order in which they are added, laid out for computing.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    // At least one, all of the same shape.
    terms: Vec<LaidOut>,
    kernel: Kernel,
    tile_columns: usize,
}

/// One term, laid out.
#[derive(Debug, Clone, PartialEq)]
struct LaidOut {
    product: Product,
    row_scales: Vec<f32>,
    column_scales: Vec<f32>,
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
        Self::of(Kernel::best(), terms.into_iter().map(Ok::<_, FactorError>), |error| error)
    }

    /// As [`Update::new`] with a choice of `kernel`, from terms that are made one after the other: each is laid out
    /// before the next one is asked for, so that no two are in memory as they came.
    ///
    /// # Errors
    /// As for [`Update::new`], by way of `refuse`; and what the terms say.
    pub fn of<E>(
        kernel: Kernel,
        terms: impl IntoIterator<Item = Result<Term, E>>,
        refuse: impl Fn(FactorError) -> E,
    ) -> Result<Self, E> {
        let mut laid_out: Vec<LaidOut> = Vec::new();
        for term in terms {
            let term = term?;
            if let Some(first) = laid_out.first() {
                check_size("a column of a term", first.product.rows(), term.rows()).map_err(&refuse)?;
                check_size("a row of a term", first.product.columns(), term.columns()).map_err(&refuse)?;
            }
            let Term { integers, row_scales, column_scales } = term;
            laid_out.push(LaidOut { product: Product::new(integers, kernel), row_scales, column_scales });
        }
        if laid_out.is_empty() {
            return Err(refuse(FactorError::NoTerms));
        }
        let columns = laid_out.iter().map(|term| term.product.columns_at_once());
        let tile_columns = columns.max().unwrap_or(PANEL);
        Ok(Self { terms: laid_out, kernel, tile_columns })
    }

    /// `out`: rows of the tensor.
    pub fn rows(&self) -> usize {
        self.terms[0].product.rows()
    }

    /// `in`: columns of the tensor.
    pub fn columns(&self) -> usize {
        self.terms[0].product.columns()
    }

    /// How it is computed.
    pub(super) fn kernel(&self) -> Kernel {
        self.kernel
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

    fn apply_elements<E: Lane>(
        &self,
        rows: Range<usize>,
        weights: &mut [u8],
    ) -> Result<RowsApplied, FactorError> {
        self.check_rows(&rows, E::DTYPE, weights.len())?;
        if weights.is_empty() {
            return Ok(RowsApplied::default());
        }
        let row_size_bytes = self.columns() * E::DTYPE.size_bytes();
        let task_rows = self.task_rows(rows.len(), 1);
        let tasks = weights.par_chunks_mut(task_rows * row_size_bytes).enumerate();
        let results: Vec<_> = tasks
            .map_init(Workspace::default, |workspace, (task, weights)| {
                self.apply_task::<E>(rows.start + task * task_rows, weights, workspace)
            })
            .collect();
        // Summed in order, so that of several errors the same one is told on every run.
        results.into_iter().try_fold(RowsApplied::default(), |mut total, result| {
            total += result?;
            Ok(total)
        })
    }

    fn apply_task<E: Lane>(
        &self,
        row_first: usize,
        weights: &mut [u8],
        workspace: &mut Workspace,
    ) -> Result<RowsApplied, FactorError> {
        let size_bytes = E::DTYPE.size_bytes();
        let rows = row_first..row_first + weights.len() / (self.columns() * size_bytes);
        let mut met = Met::default();
        self.for_each_span(rows, workspace, |span| {
            met.apply::<E>(self, span, &mut weights[span.bytes(row_first, self.columns(), size_bytes)]);
        });
        met.outcome::<E>()
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
        let task_rows = self.task_rows(rows.len(), 1);
        let tasks = deltas.par_chunks_mut(task_rows * columns).enumerate();
        tasks.for_each_init(Workspace::default, |workspace, (task, deltas)| {
            let row_first = rows.start + task * task_rows;
            let rows = row_first..row_first + deltas.len() / columns;
            let mut terms = Vec::new();
            self.for_each_span(rows, workspace, |span| {
                for (index, delta) in deltas[span.bytes(row_first, columns, 1)].iter_mut().enumerate() {
                    span.terms.of(index, &mut terms);
                    *delta = add_in_order(0.0, &terms);
                }
            });
        });
        Ok(deltas)
    }

    /// Hands `visit` every weight's terms, a stretch of one row at a time; a row's stretches come left to right.
    pub(super) fn for_each_span(
        &self,
        rows: Range<usize>,
        workspace: &mut Workspace,
        mut visit: impl FnMut(&Span<'_>),
    ) {
        let tile_rows = (TILE_TERM_ROWS / self.terms.len()).clamp(1, TILE_ROWS);
        for column_first in (0..self.columns()).step_by(self.tile_columns) {
            let columns = column_first..self.columns().min(column_first + self.tile_columns);
            for row_first in rows.clone().step_by(tile_rows) {
                let block =
                    Block { rows: row_first..rows.end.min(row_first + tile_rows), columns: columns.clone() };
                self.compute_tile(&block, workspace);
                let length = columns.len();
                for (index, row) in block.rows.clone().enumerate() {
                    let deltas = &workspace.deltas[index * length..];
                    let stride = block.rows.len() * length;
                    let terms = Terms { deltas, stride, length, count: self.terms.len() };
                    visit(&Span { row, columns: columns.clone(), terms });
                }
            }
        }
    }

    /// Fills `workspace.deltas` with the tile's terms, one tile after the other, each row-major.
    fn compute_tile(&self, block: &Block, workspace: &mut Workspace) {
        let Workspace { scratch, deltas } = workspace;
        let size = block.rows.len() * block.columns.len();
        deltas.resize(size * self.terms.len(), 0.0);
        for (term, targets) in self.terms.iter().zip(deltas.chunks_exact_mut(size)) {
            match term.product.sums(block, scratch) {
                Sums::Integers { sums, stride } => self.scale_sums(term, block, sums, stride, targets),
                Sums::Floats { sums, stride } => self.scale_sums(term, block, sums, stride, targets),
            }
        }
    }

    /// `D = (row_scale * column_scale) * S`, in f64 and in that order.
    fn scale_sums<S: Copy + Into<f64>>(
        &self,
        term: &LaidOut,
        block: &Block,
        sums: &[S],
        stride: usize,
        targets: &mut [f64],
    ) {
        let column_scales = &term.column_scales[block.columns.clone()];
        let rows = sums.chunks(stride).zip(targets.chunks_exact_mut(column_scales.len()));
        for (row, (sums, targets)) in block.rows.clone().zip(rows) {
            scale(self.kernel, term.row_scales[row], column_scales, sums, targets);
        }
    }

    /// Rows of each of the parallel tasks that `rows` are cut into, a multiple of `unit`.
    pub(super) fn task_rows(&self, rows: usize, unit: usize) -> usize {
        let right: usize = self.terms.iter().map(|term| term.product.right_size_bytes()).sum();
        let rows_min = if right <= NEAR_BYTES { TASK_ROWS_MIN } else { TASK_ROWS_MIN_FAR };
        let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
        rows.div_ceil(tasks).clamp(rows_min, TASK_ROWS_MAX).next_multiple_of(unit)
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
        rows: &Range<usize>,
        dtype: Dtype,
        found: usize,
    ) -> Result<(), FactorError> {
        self.check_range(rows)?;
        let expected = rows.len().saturating_mul(self.columns()).saturating_mul(dtype.size_bytes());
        check_size("weights in bytes", expected, found)
    }
}

fn check_size(what: &'static str, expected: usize, found: usize) -> Result<(), FactorError> {
    if expected == found { Ok(()) } else { Err(FactorError::Size { what, expected, found }) }
}

/// Buffers that one thread reuses from tile to tile: about 3 MiB for one term in f32.
#[derive(Debug, Default)]
pub(super) struct Workspace {
    scratch: Scratch,
    deltas: Vec<f64>,
}

/// The terms of a stretch of one row.
#[derive(Debug)]
pub(super) struct Span<'a> {
    pub row: usize,
    pub columns: Range<usize>,
    pub terms: Terms<'a>,
}

impl Span<'_> {
    /// Where the stretch lies in a buffer that starts with the row `row_first`, in units of one entry's size.
    pub fn bytes(&self, row_first: usize, columns: usize, size_bytes: usize) -> Range<usize> {
        let start = (self.row - row_first) * columns;
        (start + self.columns.start) * size_bytes..(start + self.columns.end) * size_bytes
    }
}

/// What applying to one stretch after the other met.
#[derive(Debug, Default)]
pub(super) struct Met {
    total: RowsApplied,
    first: Option<Overflow>,
}

impl Met {
    /// Applies `update` to a stretch.
    pub fn apply<E: Lane>(&mut self, update: &Update, span: &Span<'_>, weights: &mut [u8]) {
        let applied = apply::<E>(update.kernel, weights, span.terms);
        self.count(applied);
        let overflow = applied.overflow_from.and_then(|from| overflow_of_span::<E>(span, from, weights));
        if let Some(overflow) = overflow {
            self.note(overflow);
        }
    }

    /// What a finite weight becomes, if that is finite.
    pub fn apply_to_one<E: Element>(
        &mut self,
        span: &Span<'_>,
        place: usize,
        before: E,
        terms: &[f64],
    ) -> Option<E> {
        let value = add_in_order(before.to_f64(), terms);
        let after = E::round(value);
        if !after.is_finite() {
            self.note(Overflow { row: span.row, column: span.columns.start + place, value });
            return None;
        }
        self.total.changed += u64::from(after.ordinal() != before.ordinal());
        Some(after)
    }

    /// Adds what a kernel has counted.
    pub fn count(&mut self, applied: Applied) {
        self.total += RowsApplied { not_finite: applied.not_finite, changed: applied.changed };
    }

    /// Strips come before rows here; the first in the order of the weights is told.
    fn note(&mut self, found: Overflow) {
        if self.first.is_none_or(|first| found.place() < first.place()) {
            self.first = Some(found);
        }
    }

    /// What was met in all, or the first overflow.
    pub fn outcome<E: Element>(self) -> Result<RowsApplied, FactorError> {
        match self.first {
            None => Ok(self.total),
            Some(Overflow { row, column, value }) => {
                Err(FactorError::Overflow { row, column, value, dtype: E::DTYPE })
            }
        }
    }
}

/// A weight whose result is not finite.
#[derive(Debug, Clone, Copy)]
struct Overflow {
    row: usize,
    column: usize,
    value: f64,
}

impl Overflow {
    fn place(&self) -> (usize, usize) {
        (self.row, self.column)
    }
}

/// The first weight of a stretch that overflows, given the weights as they were `from` one on.
fn overflow_of_span<E: Lane>(span: &Span<'_>, from: usize, before: &[u8]) -> Option<Overflow> {
    let mut terms = Vec::new();
    for (index, bytes) in before.chunks_exact(E::DTYPE.size_bytes()).enumerate().skip(from) {
        let before = E::read(bytes);
        span.terms.of(index, &mut terms);
        let value = add_in_order(before.to_f64(), &terms);
        if before.is_finite() && !E::round(value).is_finite() {
            return Some(Overflow { row: span.row, column: span.columns.start + index, value });
        }
    }
    None
}

/// Sums of squares, in f64, of the weights `before` and of their changes to `after`; pairs that are not finite add
/// nothing.
pub(crate) fn sums_of_squares(dtype: Dtype, before: &[u8], after: &[u8]) -> [f64; 2] {
    with_element!(dtype, E => squares::<E>(Kernel::best(), before, after))
}

/// The sum before rounding: each term added in turn, plain f64.
#[inline]
pub(super) fn add_in_order(weight: f64, terms: &[f64]) -> f64 {
    terms.iter().fold(weight, |sum, term| sum + term)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::super::kernels::STRETCH_MAX;
    use super::super::samples::{Generator, kernels, terms_and_weights, weights};
    use super::super::{IntegerMatrix, Integers, UndoWriter};
    use super::*;
    use crate::tensor::Element;

    /// The format's formula, weight by weight, in i64 and f64.
    fn apply_by_definition<E: Element>(terms: &[Term], weights: &[u8]) -> Option<Vec<u8>> {
        let mut result = weights.to_vec();
        let columns = terms[0].columns();
        for (index, bytes) in result.chunks_exact_mut(E::DTYPE.size_bytes()).enumerate() {
            let (row, column) = (index / columns, index % columns);
            let before = E::read(bytes);
            if !before.is_finite() {
                continue;
            }
            let mut value = before.to_f64();
            for term in terms {
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

    fn update_by(kernel: Kernel, terms: &[Term]) -> Update {
        Update::of(kernel, terms.iter().cloned().map(Ok), |error| error).unwrap()
    }

    fn applies_as_defined<E: Element>(terms: &[Term], weights: &[u8]) {
        let expected = apply_by_definition::<E>(terms, weights);
        for kernel in kernels() {
            let update = update_by(kernel, terms);
            let mut found = weights.to_vec();
            let applied = update.apply_rows(E::DTYPE, 0..update.rows(), &mut found);
            let Some(expected) = &expected else {
                assert!(matches!(applied, Err(FactorError::Overflow { .. })), "{kernel}: {applied:?}");
                continue;
            };
            let size_bytes = E::DTYPE.size_bytes();
            let pairs = || weights.chunks_exact(size_bytes).zip(expected.chunks_exact(size_bytes));
            let not_finite = pairs().filter(|(before, _)| !E::read(before).is_finite()).count() as u64;
            let changed = pairs().filter(|(before, after)| before != after).count() as u64;
            assert_eq!(applied, Ok(RowsApplied { not_finite, changed }), "{kernel}");
            assert_eq!(&found, expected, "{kernel}");
        }
    }

    proptest! {
        #[test]
        fn f32_rows_get_what_the_formula_says((terms, weights) in terms_and_weights(Dtype::F32)) {
            applies_as_defined::<f32>(&terms, &weights);
        }

        #[test]
        fn f16_rows_get_what_the_formula_says((terms, weights) in terms_and_weights(Dtype::F16)) {
            applies_as_defined::<f16>(&terms, &weights);
        }

        #[test]
        fn bf16_rows_get_what_the_formula_says((terms, weights) in terms_and_weights(Dtype::BF16)) {
            applies_as_defined::<bf16>(&terms, &weights);
        }
    }

    /// Shapes past the edges of tasks and tiles, with terms of both kinds.
    fn large_update() -> (Vec<Term>, Vec<u8>) {
        let mut generator = Generator(5);
        let (rows, columns) = (TASK_ROWS_MIN_FAR * 2 + 3, STRETCH_MAX + 7);
        let terms = vec![
            generator.term(rows, columns, Some(40), 8, -24),
            generator.term(rows, columns, None, 16, -20),
            generator.term(rows, columns, Some(3), 12, -30),
        ];
        let weights = weights::<f16>((0..rows * columns).map(|_| generator.gaussian() * 0.02));
        (terms, weights)
    }

    #[test]
    fn every_number_of_threads_and_every_split_gives_the_same_bytes() {
        let (terms, weights) = large_update();
        let expected = apply_by_definition::<f16>(&terms, &weights).unwrap();
        for kernel in kernels() {
            // The first term alone goes through narrow tiles.
            for terms in [&terms[..1], &terms] {
                let expected = apply_by_definition::<f16>(terms, &weights).unwrap();
                let update = update_by(kernel, terms);
                for threads in 1..=8 {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let mut found = weights.clone();
                    pool.install(|| update.apply_rows(Dtype::F16, 0..update.rows(), &mut found)).unwrap();
                    assert!(found == expected, "{threads} threads by {kernel} give other bytes");
                }
            }
        }
        let update = Update::new(terms).unwrap();
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
        let (terms, _) = large_update();
        let update = Update::new(terms.clone()).unwrap();
        let alone: Vec<Vec<f64>> = terms
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
        let weights = weights::<f16>([65504.0, 0.0, 0.0, 0.0, f64::INFINITY, 65504.0]);
        let overflow = Err(FactorError::Overflow { row: 1, column: 2, value: 65604.0, dtype: Dtype::F16 });
        assert_eq!(update.apply_rows(Dtype::F16, 0..2, &mut weights.clone()), overflow);
        let mut writer = UndoWriter::new(2, 3);
        assert_eq!(writer.apply_rows(&update, Dtype::F16, 0..2, &mut weights.clone()), overflow);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let (terms, weights) = large_update();
        let update = Update::new(terms.clone()).unwrap();
        let end = update.rows();
        let mut weights = weights[..update.columns() * 2].to_vec();
        assert!(matches!(
            update.apply_rows(Dtype::F16, end..end + 1, &mut weights),
            Err(FactorError::Rows { .. })
        ));
        assert!(matches!(update.apply_rows(Dtype::F32, 0..1, &mut weights), Err(FactorError::Size { .. })));
        assert_eq!(Update::new(Vec::new()), Err(FactorError::NoTerms));
        let other = Generator(1).term(1, update.columns(), None, 2, 0);
        let terms = vec![terms[0].clone(), other];
        assert!(matches!(Update::new(terms), Err(FactorError::Size { .. })));
        assert_eq!(update.apply_rows(Dtype::F16, 4..4, &mut []), Ok(RowsApplied::default()));
    }
}
