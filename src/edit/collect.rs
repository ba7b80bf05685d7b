//! Collecting second moments: the documents of a corpus run through the model, and the sums of their keys.
//!
//! ```text
//! corpus -> documents (all in order, or drawn; of these a shard) -> batches of like lengths -> k k^T, on the device
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Seek, SeekFrom};

use candle_core::{DType, Device, Tensor};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;

use super::EditError;
use super::drawn::{Amount, Drawn, Shard};
use super::statistics::{LayerSum, Provenance, Statistics};
use crate::digest::{FileDigest, WeightsId};
use crate::model::{Batch, Model, Site, gather};

/// Tokens that go through the network together: the reference's three contexts, for GPT-J's context.
const TOKENS_PER_BATCH: usize = 6144;
/// Documents read ahead and sorted by length, so that batches need little padding.
const DOCUMENTS_READ_AHEAD: usize = 512;

/// How far [`collect_part`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Documents run.
    pub documents: u64,
    /// Tokens run.
    pub tokens: u64,
    /// Bytes of the corpus read.
    pub bytes: u64,
    /// Documents that were longer than the model's context.
    pub documents_cut: u64,
    /// Tokens of theirs that were left out.
    pub tokens_cut: u64,
}

/// Runs `corpus`, all of it or an amount that is drawn, and of that a shard, through the model once and sums the keys
/// of all `layers`.
///
/// The corpus holds one document a line: plain text, or JSON objects with a `text`, as its first line has it. It is
/// read once to check, find and hash its lines, and keeps 16 bytes for each: what cannot be read is told before the
/// model runs for hours. Documents longer than the model's context are cut, as in the reference.
///
/// A part's documents are drawn without regard to where they stand, always the same ones: the reference, too, draws a
/// subset, and a corpus is often sorted.
///
/// # Errors
/// [`EditError::Corpus`] names the line; [`EditError::Model`].
pub fn collect_part(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    corpus: &mut (impl BufRead + Seek),
    amount: Amount,
    shard: Option<Shard>,
    progress: &dyn Fn(Collected),
) -> Result<Statistics, EditError> {
    let Survey { layout, starts, digest } = Survey::of(corpus)?;
    let (sums, done) = if amount == Amount::All {
        corpus.rewind().map_err(|error| refuse(1, error))?;
        let mut documents = InOrder { reader: Lines::new(corpus), layout, shard };
        run(model, layers, &mut |model| documents.next(model), progress)?
    } else {
        let mut order: Vec<usize> = (0..starts.len()).collect();
        order.shuffle(&mut ChaCha20Rng::seed_from_u64(DRAWING_SEED));
        let (next, drawn, tokens) = (0, 0, 0);
        let mut documents = Documents { corpus, layout, starts, order, next, drawn, tokens, amount, shard };
        run(model, layers, &mut |model| documents.next(model), progress)?
    };
    if done.tokens == 0 {
        let what = match shard {
            Some(shard) => {
                format!("shard {shard} gets no document, for there are too few: take fewer shards")
            }
            None => "there is no text to run".to_owned(),
        };
        return Err(EditError::Corpus { line: 1, what });
    }
    sums.finish(base, digest, Drawn { amount: Some(amount), shard, documents: done.documents }, done.tokens)
}

/// A document, and how far the corpus is run with it; none at the end.
type NextDocument = Result<Option<(Document, u64)>, EditError>;

/// A document in tokens.
struct Document {
    ids: Vec<u32>,
    /// Tokens that did not fit the model's context.
    cut: u64,
}

/// Runs the documents that `next` gives until it gives none; in the progress, bytes are those of the documents.
fn run<'a>(
    model: &'a Model,
    layers: &[usize],
    next: &mut dyn FnMut(&Model) -> NextDocument,
    progress: &dyn Fn(Collected),
) -> Result<(Sums<'a>, Collected), EditError> {
    let mut sums = Sums::new(model, layers)?;
    let mut done = Collected::default();
    loop {
        let mut documents = Vec::new();
        while documents.len() < DOCUMENTS_READ_AHEAD {
            let Some((document, end)) = next(model)? else { break };
            done.bytes = end;
            done.documents_cut += u64::from(document.cut > 0);
            done.tokens_cut += document.cut;
            documents.push(document.ids);
        }
        if documents.is_empty() {
            break;
        }
        for batch in batches(documents) {
            done.documents += batch.len() as u64;
            done.tokens += batch.iter().map(|row| row.len() as u64).sum::<u64>();
            sums.add(&batch)?;
            progress(done);
        }
    }
    Ok((sums, done))
}

/// Sums on the device while a corpus runs.
struct Sums<'a> {
    model: &'a Model,
    sums: BTreeMap<usize, KeySum>,
    last: usize,
}

impl<'a> Sums<'a> {
    fn new(model: &'a Model, layers: &[usize]) -> Result<Self, EditError> {
        let Some(&last) = layers.iter().max() else {
            return Err(EditError::Statistics { what: "no layer was asked for".to_owned() });
        };
        let (inner, device) = (model.network.config().inner, model.network.device());
        let sum = |layer: &usize| Ok((*layer, KeySum::new(inner, COLUMNS_PER_BLOCK, device)?));
        Ok(Self { model, sums: layers.iter().map(sum).collect::<Result<_, EditError>>()?, last })
    }

    fn add(&mut self, rows: &[Vec<u32>]) -> Result<(), EditError> {
        let network = &self.model.network;
        let batch = Batch::new(rows, network.config().positions, network.device())?;
        let real = batch.real_tokens();
        let sums = &mut self.sums;
        network.forward_to(&batch, self.last, &mut |site, vectors| {
            let Site::MlpOutputInput(layer) = site else { return Ok(()) };
            match sums.get_mut(&layer) {
                Some(sum) => Ok(sum.add(&gather(vectors, &real)?)?),
                None => Ok(()),
            }
        })?;
        Ok(())
    }

    fn finish(
        self,
        base: WeightsId,
        corpus: FileDigest,
        drawn: Drawn,
        count: u64,
    ) -> Result<Statistics, EditError> {
        let tokenizer = self.model.tokenizer.digest();
        let arithmetic = Some(self.model.arithmetic());
        let provenance = Provenance { base, tokenizer, corpora: vec![corpus], drawn, arithmetic };
        let inner = self.model.network.config().inner;
        let layers =
            self.sums.into_iter().map(|(layer, sum)| Ok((layer, LayerSum { sum: sum.whole()?, count })));
        Ok(Statistics { layers: layers.collect::<Result<_, EditError>>()?, inner, provenance })
    }
}

/// Bytes that the second moments of so many layers take in the end, as f32; on the way it is less.
pub const fn sums_size_bytes(inner: usize, layers: usize) -> u64 {
    4 * (inner as u64).pow(2) * layers as u64
}

/// Columns of a second moment that are summed together: GPT-J's has eight blocks of them.
const COLUMNS_PER_BLOCK: usize = 2048;

/// `sum k k^T` of one layer on the device: it is symmetric, so of each block of columns nothing below the diagonal
/// block is kept or computed, which of many blocks is nearly half.
struct KeySum {
    inner: usize,
    /// The first column of each block, and its rows down to the end of the diagonal block, f32.
    blocks: Vec<(usize, Tensor)>,
}

impl KeySum {
    fn new(inner: usize, columns_per_block: usize, device: &Device) -> candle_core::Result<Self> {
        let block = |start: usize| {
            let end = inner.min(start + columns_per_block);
            Ok((start, Tensor::zeros((end, end - start), DType::F32, device)?))
        };
        let blocks = (0..inner).step_by(columns_per_block).map(block);
        Ok(Self { inner, blocks: blocks.collect::<candle_core::Result<_>>()? })
    }

    /// Adds `keys` `[tokens, inner]`.
    fn add(&mut self, keys: &Tensor) -> candle_core::Result<()> {
        // Turned around once, so that every block is contiguous, as CUDA wants it.
        let keys = keys.t()?.contiguous()?;
        for (start, sum) in &mut self.blocks {
            let (rows, columns) = sum.dims2()?;
            let product = keys.narrow(0, 0, rows)?.matmul(&keys.narrow(0, *start, columns)?.t()?)?;
            *sum = (&*sum + product)?;
        }
        Ok(())
    }

    /// All of it, `[inner, inner]` row-major.
    fn whole(self) -> candle_core::Result<Vec<f32>> {
        // Rows of a block that are turned around together, so that what is written is close together.
        const ROWS: usize = 32;
        let inner = self.inner;
        let mut whole = vec![0.0; inner * inner];
        for (start, sum) in self.blocks {
            let columns = sum.dim(1)?;
            let sum: Vec<f32> = sum.flatten_all()?.to_vec1()?;
            for (index, rows) in sum.chunks(ROWS * columns).enumerate() {
                let first = index * ROWS;
                for column in 0..columns {
                    for (row, entries) in (first..).zip(rows.chunks(columns)) {
                        whole[row * inner + start + column] = entries[column];
                        whole[(start + column) * inner + row] = entries[column];
                    }
                }
            }
        }
        Ok(whole)
    }
}

/// Splits documents, sorted by length, so that rows times the longest stays within [`TOKENS_PER_BATCH`].
fn batches(mut documents: Vec<Vec<u32>>) -> Vec<Vec<Vec<u32>>> {
    documents.sort_by_key(|document| std::cmp::Reverse(document.len()));
    let mut batches: Vec<Vec<Vec<u32>>> = Vec::new();
    for document in documents {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * batch[0].len() <= TOKENS_PER_BATCH => batch.push(document),
            _ => batches.push(vec![document]),
        }
    }
    batches
}

/// The lines of a corpus from where it stands.
struct Lines<'a> {
    corpus: &'a mut dyn BufRead,
    number: usize,
    bytes: u64,
}

impl<'a> Lines<'a> {
    fn new(corpus: &'a mut dyn BufRead) -> Self {
        Self { corpus, number: 0, bytes: 0 }
    }

    /// The next line with its end, if there is one.
    fn next(&mut self, line: &mut Vec<u8>) -> Result<bool, EditError> {
        line.clear();
        let size = self.corpus.read_until(b'\n', line).map_err(|error| refuse(self.number + 1, error))?;
        self.number += 1;
        self.bytes += size as u64;
        Ok(size > 0)
    }
}

fn refuse(line: usize, what: impl fmt::Display) -> EditError {
    EditError::Corpus { line, what: what.to_string() }
}

/// How the lines of a corpus hold its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A line is one.
    Text,
    /// A line is a JSON object, and its `text` is one.
    Objects,
}

impl Layout {
    /// As the first line that is not empty has it: later ones may begin with any bracket, as wiki markup does.
    fn of(line: &str) -> Result<Self, String> {
        let begins = |bracket| line.trim_start().strip_prefix(bracket).map(str::trim_start);
        if begins('[').is_some_and(|rest| rest.is_empty() || rest.starts_with('{')) {
            return Err("a JSON array of objects, expected one JSON object a line".to_owned());
        }
        let is_object = begins('{').is_some_and(|rest| rest.is_empty() || rest.starts_with(['"', '}']));
        Ok(if is_object { Self::Objects } else { Self::Text })
    }

    /// The text of a line; none of an empty one.
    fn text(self, line: &str) -> Result<Option<Cow<'_, str>>, String> {
        #[derive(serde::Deserialize)]
        struct Object {
            text: String,
        }
        if line.trim().is_empty() {
            return Ok(None);
        }
        if self == Self::Text {
            return Ok(Some(line.into()));
        }
        let object: Object = serde_json::from_str(line.trim_start()).map_err(|error| {
            format!("expected a JSON object with a `text`, as in the first line: {error}")
        })?;
        Ok(Some(object.text.into()))
    }
}

/// The characters of the line with this number, from 1.
fn characters(line: &[u8], number: usize) -> Result<&str, EditError> {
    let line = std::str::from_utf8(line).map_err(|error| refuse(number, error))?;
    let line = line.trim_end_matches(['\n', '\r']);
    // What some editors begin a file with, to say that it is Unicode.
    Ok(line.strip_prefix('\u{feff}').filter(|_| number == 1).unwrap_or(line))
}

/// What is to be known of a corpus before any of it is run.
struct Survey {
    layout: Layout,
    /// Where each line starts.
    starts: Vec<u64>,
    /// Of all of it.
    digest: FileDigest,
}

impl Survey {
    /// Reads all of `corpus`, from where it stands, and refuses it where a line holds no document.
    fn of(corpus: &mut dyn BufRead) -> Result<Self, EditError> {
        let mut lines = Lines::new(corpus);
        let (mut layout, mut starts, mut hasher) = (None, Vec::new(), blake3::Hasher::new());
        let mut line = Vec::new();
        loop {
            let start = lines.bytes;
            if !lines.next(&mut line)? {
                let layout = layout.unwrap_or(Layout::Text);
                return Ok(Self { layout, starts, digest: FileDigest::finish(&hasher) });
            }
            starts.push(start);
            hasher.update(&line);
            let text = characters(&line, lines.number)?;
            if layout.is_none() && !text.trim().is_empty() {
                layout = Some(Layout::of(text).map_err(|what| refuse(lines.number, what))?);
            }
            if let Some(layout) = layout {
                layout.text(text).map_err(|what| refuse(lines.number, what))?;
            }
        }
    }
}

/// The document on a line, cut at the model's context; none on an empty one.
fn document(
    model: &Model,
    layout: Layout,
    line: &[u8],
    number: usize,
) -> Result<Option<Document>, EditError> {
    let text = layout.text(characters(line, number)?).map_err(|what| refuse(number, what))?;
    let Some(text) = text else { return Ok(None) };
    let mut ids = model.tokenizer.encode(&text)?;
    let cut = ids.len().saturating_sub(model.network.config().positions) as u64;
    ids.truncate(model.network.config().positions);
    Ok(Some(Document { ids, cut }).filter(|document| !document.ids.is_empty()))
}

/// Whether the document at `place` of those drawn belongs to the shard.
fn belongs(place: usize, shard: Option<Shard>) -> bool {
    shard.is_none_or(|shard| place % shard.count as usize == shard.index as usize - 1)
}

/// All documents of a corpus in their order, or every so-manyth of them.
struct InOrder<'a> {
    reader: Lines<'a>,
    layout: Layout,
    shard: Option<Shard>,
}

impl InOrder<'_> {
    /// The next document in tokens, and where in the corpus it ends.
    fn next(&mut self, model: &Model) -> NextDocument {
        let mut line = Vec::new();
        while self.reader.next(&mut line)? {
            if !belongs(self.reader.number - 1, self.shard) {
                continue;
            }
            if let Some(document) = document(model, self.layout, &line, self.reader.number)? {
                return Ok(Some((document, self.reader.bytes)));
            }
        }
        Ok(None)
    }
}

/// Draws the same documents of a corpus each time.
const DRAWING_SEED: u64 = 0;

/// Documents drawn from a corpus.
struct Documents<'a, C> {
    corpus: &'a mut C,
    layout: Layout,
    starts: Vec<u64>,
    order: Vec<usize>,
    /// Place in `order` of the next line.
    next: usize,
    /// Documents drawn so far, and their tokens.
    drawn: u64,
    tokens: u64,
    amount: Amount,
    shard: Option<Shard>,
}

impl<C: BufRead + Seek> Documents<'_, C> {
    /// The next document in tokens, and the bytes drawn so far: every shard draws all, and keeps its own.
    fn next(&mut self, model: &Model) -> NextDocument {
        while let Some(&line) = self.order.get(self.next) {
            let enough = match self.amount {
                Amount::Tokens(count) => self.tokens >= count,
                Amount::Documents(count) => self.drawn >= count,
                Amount::All => false,
            };
            if enough {
                return Ok(None);
            }
            self.next += 1;
            let mut bytes = Vec::new();
            let read = self.corpus.seek(SeekFrom::Start(self.starts[line]));
            read.and_then(|_| self.corpus.read_until(b'\n', &mut bytes))
                .map_err(|error| refuse(line + 1, error))?;
            let Some(document) = document(model, self.layout, &bytes, line + 1)? else { continue };
            let place = self.drawn as usize;
            self.drawn += 1;
            self.tokens += document.ids.len() as u64;
            if belongs(place, self.shard) {
                return Ok(Some((document, self.tokens)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(corpus: &str) -> Result<Vec<String>, String> {
        let survey = Survey::of(&mut corpus.as_bytes()).map_err(|error| error.to_string())?;
        let lines = corpus.split_inclusive('\n').enumerate().map(|(index, line)| {
            let line = characters(line.as_bytes(), index + 1).unwrap();
            survey.layout.text(line).unwrap().map(Cow::into_owned)
        });
        Ok(lines.flatten().collect())
    }

    #[test]
    fn the_first_line_says_whether_a_corpus_is_text_or_json() {
        for (corpus, expected) in [
            (
                "Plain text.\r\n\n {{Infobox}}\n{\"text\": 1}",
                vec!["Plain text.", " {{Infobox}}", "{\"text\": 1}"],
            ),
            ("{{Infobox}}\n[1] as it stands", vec!["{{Infobox}}", "[1] as it stands"]),
            ("\n \t{\"text\": \"a\"}\n\n{ \"text\": \"b\", \"id\": 1}\n", vec!["a", "b"]),
            ("\u{feff}{\"text\": \"a\"}", vec!["a"]),
            ("\u{feff}Plain text.\n\u{feff}Plain text.", vec!["Plain text.", "\u{feff}Plain text."]),
            ("\n\n", vec![]),
        ] {
            assert_eq!(texts(corpus), Ok(expected.into_iter().map(str::to_owned).collect()), "{corpus:?}");
        }
    }

    #[test]
    fn what_holds_no_document_is_refused_before_the_model_runs_with_its_line() {
        let object = "expected a JSON object with a `text`, as in the first line";
        for (corpus, line, expected) in [
            ("[{\"text\": \"a\"}, {\"text\": \"b\"}]\n", 1, "one JSON object a line"),
            ("[\n {\"text\": \"a\"}\n]", 1, "one JSON object a line"),
            ("\n{\n  \"text\": \"a\"\n}", 2, object),
            ("{\"txt\": \"a\"}", 1, object),
            ("{\"text\": \"a\"}\nPlain text.", 2, object),
            ("{\"text\": \"a\"}\n{\"text\": \"b\"},", 2, object),
        ] {
            let error = texts(corpus).unwrap_err();
            assert!(
                error.contains(&format!("line {line}:")) && error.contains(expected),
                "{corpus:?}: {error}"
            );
        }
        let error = Survey::of(&mut &b"Plain text.\n\xff\n"[..]).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("line 2:"), "{error}");
    }

    #[test]
    fn blocks_of_columns_sum_up_to_the_whole_second_moment() {
        const INNER: usize = 70;
        let keys = |seed: usize| {
            let entries =
                (0..5 * INNER).map(|index| ((index * 31 + seed * 7) as f32 * 0.618).sin()).collect();
            Tensor::from_vec(entries, (5, INNER), &Device::Cpu).unwrap()
        };
        let all = Tensor::cat(&[keys(1), keys(2)], 0).unwrap();
        let expected: Vec<Vec<f32>> = all.t().unwrap().matmul(&all).unwrap().to_vec2().unwrap();
        for columns_per_block in [1, 16, 35, INNER, 2 * INNER] {
            let mut sum = KeySum::new(INNER, columns_per_block, &Device::Cpu).unwrap();
            sum.add(&keys(1)).unwrap();
            sum.add(&keys(2)).unwrap();
            let found = sum.whole().unwrap();
            for (row, expected) in expected.iter().enumerate() {
                for (column, expected) in expected.iter().enumerate() {
                    let entry = found[row * INNER + column];
                    assert!((entry - expected).abs() < 1e-5, "{entry} instead of {expected}");
                    assert_eq!(entry, found[column * INNER + row], "{row}, {column}");
                }
            }
        }
    }
}
