//! Second moments of the keys: what the model's memory already holds (MEMIT's `C`).
//!
//! ```text
//! C = (sum over the tokens of a corpus of k k^T) / count        k: the input of mlp.fc_out, not centred
//! ```
//!
//! An artifact of its own: a safetensors file with the *sums* (so that files can be merged), the counts, and the
//! digests of what they were made from. All layers are collected in one pass, over the whole corpus ([`collect`]) or
//! a part of it ([`collect_part`]), which may be shared out between machines.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Seek, SeekFrom};
use std::path::Path;

use candle_core::Tensor;
use faer::Mat;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;

use super::EditError;
pub use super::drawn::{Amount, Drawn, Shard};
use crate::checkpoint::{Checkpoint, NewTensor, TensorInfo, write_safetensors};
use crate::digest::{FileDigest, WeightsId};
use crate::model::{Batch, Model, Site, gather};
use crate::tensor::Dtype;

/// Says in a file's header what the file is.
const FORMAT: &str = "mpatch statistics 1";
/// Tokens that go through the network together: the reference's three contexts, for GPT-J's context.
const TOKENS_PER_BATCH: usize = 6144;
/// Documents read ahead and sorted by length, so that batches need little padding.
const DOCUMENTS_READ_AHEAD: usize = 512;

/// What statistics were made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The model's weights.
    pub base: WeightsId,
    /// The tokenizer.
    pub tokenizer: FileDigest,
    /// Digests of the corpora, in the order they were added; of the imported file, where that is all there is.
    pub corpora: Vec<FileDigest>,
    /// What was drawn from them.
    pub drawn: Drawn,
}

/// The sum over tokens of one layer's keys with themselves.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSum {
    /// `sum k k^T`, `[inner, inner]` row-major.
    pub sum: Vec<f32>,
    /// How many tokens were added.
    pub count: u64,
}

/// Statistics in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// By layer.
    pub layers: BTreeMap<usize, LayerSum>,
    /// Width of a key.
    pub inner: usize,
    /// What they were made from.
    pub provenance: Provenance,
}

/// How far [`collect`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collected {
    /// Documents run.
    pub documents: u64,
    /// Tokens run.
    pub tokens: u64,
    /// Bytes of the corpus read.
    pub bytes: u64,
}

/// Runs all of `corpus` through the model once and sums the keys of all `layers`.
///
/// The corpus holds one document a line: plain text, or JSON objects with a `text`. Documents longer than the
/// model's context are cut, as in the reference.
///
/// # Errors
/// [`EditError::Corpus`] names the line; [`EditError::Model`].
pub fn collect(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    corpus: &mut dyn BufRead,
    progress: &dyn Fn(Collected),
) -> Result<Statistics, EditError> {
    let mut documents = InOrder { reader: Lines::new(corpus), shard: None };
    let (sums, done) = run(model, layers, &mut |model| documents.next(model), progress)?;
    let corpus = FileDigest::finish(&documents.reader.hasher);
    sums.finish(
        base,
        corpus,
        Drawn { amount: Amount::All, shard: None, documents: done.documents },
        done.tokens,
    )
}

/// Runs a part of `corpus`: an amount that is drawn, and of that a shard.
///
/// Documents are drawn without regard to where they stand, always the same ones: the reference, too, draws a subset,
/// and a corpus is often sorted. The corpus is read once to find and hash its lines, and keeps 8 bytes for each.
///
/// # Errors
/// As [`collect`].
pub fn collect_part(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    corpus: &mut (impl BufRead + Seek),
    amount: Amount,
    shard: Option<Shard>,
    progress: &dyn Fn(Collected),
) -> Result<Statistics, EditError> {
    let (sums, digest, done) = if amount == Amount::All {
        let mut documents = InOrder { reader: Lines::new(corpus), shard };
        let (sums, done) = run(model, layers, &mut |model| documents.next(model), progress)?;
        (sums, FileDigest::finish(&documents.reader.hasher), done)
    } else {
        let (starts, digest) = line_starts(corpus)?;
        let mut order: Vec<usize> = (0..starts.len()).collect();
        order.shuffle(&mut ChaCha20Rng::seed_from_u64(DRAWING_SEED));
        let mut documents = Documents { corpus, starts, order, next: 0, drawn: 0, tokens: 0, amount, shard };
        let (sums, done) = run(model, layers, &mut |model| documents.next(model), progress)?;
        (sums, digest, done)
    };
    sums.finish(base, digest, Drawn { amount, shard, documents: done.documents }, done.tokens)
}

/// A document in tokens, and how far the corpus is run with it; none at the end.
type NextDocument = Result<Option<(Vec<u32>, u64)>, EditError>;

/// Runs the documents that `next` gives until it gives none; in the progress, bytes are those of the documents.
fn run<'a>(
    model: &'a Model,
    layers: &[usize],
    next: &mut dyn FnMut(&Model) -> NextDocument,
    progress: &dyn Fn(Collected),
) -> Result<(Sums<'a>, Collected), EditError> {
    let mut sums = Sums::new(model, layers)?;
    let mut done = Collected { documents: 0, tokens: 0, bytes: 0 };
    loop {
        let mut documents = Vec::new();
        while documents.len() < DOCUMENTS_READ_AHEAD {
            let Some((ids, end)) = next(model)? else { break };
            done.bytes = end;
            documents.push(ids);
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
    if done.tokens == 0 {
        return Err(EditError::Corpus { line: 1, what: "there is no text to run".to_owned() });
    }
    Ok((sums, done))
}

/// Sums on the device while a corpus runs.
struct Sums<'a> {
    model: &'a Model,
    /// `[inner, inner]` f32 by layer.
    sums: BTreeMap<usize, Tensor>,
    last: usize,
}

impl<'a> Sums<'a> {
    fn new(model: &'a Model, layers: &[usize]) -> Result<Self, EditError> {
        let Some(&last) = layers.iter().max() else {
            return Err(EditError::Statistics { what: "no layer was asked for".to_owned() });
        };
        let inner = model.network.config().inner;
        let zeros = Tensor::zeros((inner, inner), candle_core::DType::F32, model.network.device())?;
        Ok(Self { model, sums: layers.iter().map(|layer| (*layer, zeros.clone())).collect(), last })
    }

    fn add(&mut self, rows: &[Vec<u32>]) -> Result<(), EditError> {
        let network = &self.model.network;
        let batch = Batch::new(rows, network.config().positions, network.device())?;
        let real = batch.real_tokens();
        let sums = &mut self.sums;
        network.forward_to(&batch, self.last, &mut |site, vectors| {
            let Site::MlpOutputInput(layer) = site else { return Ok(()) };
            if let Some(sum) = sums.get_mut(&layer) {
                let keys = gather(vectors, &real)?;
                *sum = (&*sum + keys.t()?.matmul(&keys)?)?;
            }
            Ok(())
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
        let provenance = Provenance { base, tokenizer, corpora: vec![corpus], drawn };
        let inner = self.model.network.config().inner;
        let layers = self
            .sums
            .into_iter()
            .map(|(layer, sum)| Ok((layer, LayerSum { sum: sum.flatten_all()?.to_vec1()?, count })))
            .collect::<Result<_, EditError>>()?;
        Ok(Statistics { layers, inner, provenance })
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

/// The lines of a corpus from where it stands, and the digest of all bytes read.
struct Lines<'a> {
    corpus: &'a mut dyn BufRead,
    hasher: blake3::Hasher,
    number: usize,
    bytes: u64,
}

impl<'a> Lines<'a> {
    fn new(corpus: &'a mut dyn BufRead) -> Self {
        Self { corpus, hasher: blake3::Hasher::new(), number: 0, bytes: 0 }
    }

    /// The next line with its end, if there is one.
    fn next(&mut self, line: &mut Vec<u8>) -> Result<bool, EditError> {
        line.clear();
        let size = self.corpus.read_until(b'\n', line).map_err(|error| refuse(self.number + 1, error))?;
        self.number += 1;
        self.hasher.update(line);
        self.bytes += size as u64;
        Ok(size > 0)
    }
}

fn refuse(line: usize, what: impl fmt::Display) -> EditError {
    EditError::Corpus { line, what: what.to_string() }
}

/// The tokens of the document on a line, cut at the model's context; none for an empty one.
fn tokens(model: &Model, line: &[u8], number: usize) -> Result<Option<Vec<u32>>, EditError> {
    let text = std::str::from_utf8(line).map_err(|error| refuse(number, error))?;
    let text = document(text).map_err(|what| refuse(number, what))?;
    let mut ids = model.tokenizer.encode(&text)?;
    ids.truncate(model.network.config().positions);
    Ok(Some(ids).filter(|ids| !ids.is_empty()))
}

/// Whether the document at `place` of those drawn belongs to the shard.
fn belongs(place: usize, shard: Option<Shard>) -> bool {
    shard.is_none_or(|shard| place % shard.count as usize == shard.index as usize - 1)
}

/// All documents of a corpus in their order, or every so-manyth of them.
struct InOrder<'a> {
    reader: Lines<'a>,
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
            if let Some(ids) = tokens(model, &line, self.reader.number)? {
                return Ok(Some((ids, self.reader.bytes)));
            }
        }
        Ok(None)
    }
}

/// Draws the same documents of a corpus each time.
const DRAWING_SEED: u64 = 0;

/// Where each line of a corpus starts, and the digest of all of it.
fn line_starts(corpus: &mut (impl BufRead + Seek)) -> Result<(Vec<u64>, FileDigest), EditError> {
    let mut lines = Lines::new(corpus);
    let mut starts = Vec::new();
    let mut line = Vec::new();
    loop {
        let start = lines.bytes;
        if !lines.next(&mut line)? {
            return Ok((starts, FileDigest::finish(&lines.hasher)));
        }
        starts.push(start);
    }
}

/// Documents drawn from a corpus.
struct Documents<'a, C> {
    corpus: &'a mut C,
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
                Amount::All | Amount::Mixed => false,
            };
            if enough {
                return Ok(None);
            }
            self.next += 1;
            let mut bytes = Vec::new();
            let read = self.corpus.seek(SeekFrom::Start(self.starts[line]));
            read.and_then(|_| self.corpus.read_until(b'\n', &mut bytes))
                .map_err(|error| refuse(line + 1, error))?;
            let Some(ids) = tokens(model, &bytes, line + 1)? else { continue };
            let place = self.drawn as usize;
            self.drawn += 1;
            self.tokens += ids.len() as u64;
            if belongs(place, self.shard) {
                return Ok(Some((ids, self.tokens)));
            }
        }
        Ok(None)
    }
}

/// The text of a line: a JSON object's `text`, else the line itself.
fn document(line: &str) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    struct Object {
        text: String,
    }
    let line = line.trim_end_matches(['\n', '\r']);
    if !line.starts_with('{') {
        return Ok(line.to_owned());
    }
    let object: Object = serde_json::from_str(line)
        .map_err(|error| format!("expected a JSON object with a `text`, or plain text: {error}"))?;
    Ok(object.text)
}

impl Statistics {
    /// Adds the sums and counts of `other`, which must be of the same model, layers and width, and another corpus.
    ///
    /// # Errors
    /// [`EditError::Statistics`] says what differs.
    pub fn merge(&mut self, other: &Self) -> Result<(), EditError> {
        let refuse =
            |what: &str| Err(EditError::Statistics { what: format!("cannot be merged: {what} differ") });
        if self.provenance.base != other.provenance.base {
            return refuse("their bases");
        }
        if self.provenance.tokenizer != other.provenance.tokenizer {
            return refuse("their tokenizers");
        }
        if self.inner != other.inner || !self.layers.keys().eq(other.layers.keys()) {
            return refuse("their layers");
        }
        for (layer, added) in &other.layers {
            if let Some(mine) = self.layers.get_mut(layer) {
                mine.sum.iter_mut().zip(&added.sum).for_each(|(sum, term)| *sum += term);
                mine.count += added.count;
            }
        }
        let (mine, theirs) = (&mut self.provenance, &other.provenance);
        mine.drawn.documents += theirs.drawn.documents;
        if mine.drawn.shard.is_some() || theirs.drawn.shard.is_some() {
            // [`merge_order`] has seen that these are shards of one whole.
            mine.drawn.shard = None;
            return Ok(());
        }
        if mine.drawn.amount != theirs.drawn.amount {
            mine.drawn.amount = Amount::Mixed;
        }
        mine.corpora.extend(&theirs.corpora);
        Ok(())
    }

    /// Writes the artifact, replacing what stands there.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`].
    pub fn write(&self, path: &Path) -> Result<(), EditError> {
        let side = self.inner as u64;
        let tensors: Vec<_> = self
            .layers
            .keys()
            .map(|layer| NewTensor { name: tensor_name(*layer), dtype: Dtype::F32, shape: vec![side, side] })
            .collect();
        let layers: Vec<&LayerSum> = self.layers.values().collect();
        Ok(write_safetensors(path, &self.metadata(), &tensors, |index, sink| {
            for row in layers[index].sum.chunks(self.inner.max(1)) {
                let bytes: Vec<u8> = row.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                sink.write_all(&bytes)?;
            }
            Ok(())
        })?)
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let corpora: Vec<_> = self.provenance.corpora.iter().map(ToString::to_string).collect();
        let mut metadata = BTreeMap::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("base".to_owned(), self.provenance.base.to_string()),
            ("tokenizer".to_owned(), self.provenance.tokenizer.to_string()),
            ("corpora".to_owned(), corpora.join(",")),
            ("amount".to_owned(), self.provenance.drawn.amount.to_string()),
        ]);
        let Drawn { shard, documents, .. } = self.provenance.drawn;
        metadata.extend(shard.map(|shard| ("shard".to_owned(), shard.to_string())));
        metadata.extend((documents > 0).then(|| ("documents".to_owned(), documents.to_string())));
        metadata.extend(self.layers.iter().map(|(layer, sum)| (count_name(*layer), sum.count.to_string())));
        metadata
    }
}

/// The order in which files are to be added up: that of their shards, where they are shards of one whole, whatever
/// the order they are named in, so that the sums are the same; else as they stand.
///
/// # Errors
/// [`EditError::Statistics`] says which shard is missing or there twice, or what differs.
pub fn merge_order(files: &[StatisticsFile]) -> Result<Vec<usize>, EditError> {
    let refuse = |what: String| Err(EditError::Statistics { what: format!("cannot be merged: {what}") });
    let mut order: Vec<usize> = (0..files.len()).collect();
    let drawn = |index: usize| &files[index].provenance.drawn;
    let Some(count) = order.iter().find_map(|&index| drawn(index).shard).map(|shard| shard.count) else {
        return Ok(order);
    };
    let of_one_whole = |index: &usize| {
        let (first, this) = (&files[0].provenance, &files[*index].provenance);
        first.corpora == this.corpora
            && first.drawn.amount == this.drawn.amount
            && this.drawn.shard.is_some_and(|shard| shard.count == count)
    };
    if let Some(other) = order.iter().find(|index| !of_one_whole(index)) {
        let path = files[*other].file.path().display();
        return refuse(format!("`{path}` is no shard of the same {count} of the same text"));
    }
    order.sort_by_key(|&index| drawn(index).shard);
    let held: Vec<u32> =
        order.iter().filter_map(|&index| drawn(index).shard).map(|shard| shard.index).collect();
    if let Some(twice) = held.windows(2).find(|pair| pair[0] == pair[1]) {
        return refuse(format!("shard {}/{count} is there twice", twice[0]));
    }
    if let Some(missing) = (1..=count).find(|index| !held.contains(index)) {
        return refuse(format!("shard {missing}/{count} is missing"));
    }
    Ok(order)
}

fn tensor_name(layer: usize) -> String {
    format!("layer.{layer}.second_moment_sum")
}

fn count_name(layer: usize) -> String {
    format!("layer.{layer}.count")
}

/// A statistics file, opened; sums are read one layer at a time.
#[derive(Debug)]
pub struct StatisticsFile {
    file: Checkpoint,
    digest: FileDigest,
    /// Tokens by layer.
    counts: BTreeMap<usize, u64>,
    provenance: Provenance,
}

impl StatisticsFile {
    /// Opens the artifact at `path` and hashes it.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`], or [`EditError::Statistics`] when the file is something else.
    pub fn open(path: &Path) -> Result<Self, EditError> {
        let file = Checkpoint::open(path)?;
        let refuse = |what: String| EditError::Statistics { what: format!("`{}` {what}", path.display()) };
        let metadata = file.files()[0].metadata().clone();
        let field = |name: &str| {
            metadata
                .get(name)
                .ok_or_else(|| refuse(format!("is no statistics file: its header has no `{name}`")))
        };
        if field("format")? != FORMAT {
            return Err(refuse(format!("has the format `{}`, expected `{FORMAT}`", field("format")?)));
        }
        let digest = |text: &str| text.parse::<FileDigest>().map_err(|error| refuse(error.to_string()));
        let provenance = Provenance {
            base: field("base")?
                .parse()
                .map_err(|error: crate::digest::DigestParseError| refuse(error.to_string()))?,
            tokenizer: digest(field("tokenizer")?)?,
            corpora: field("corpora")?.split(',').map(digest).collect::<Result<_, _>>()?,
            // Files of earlier versions do not say.
            drawn: Drawn {
                amount: metadata
                    .get("amount")
                    .map_or(Ok(Amount::All), |text| text.parse())
                    .map_err(refuse)?,
                shard: metadata.get("shard").map(|text| text.parse()).transpose().map_err(refuse)?,
                documents: metadata.get("documents").and_then(|text| text.parse().ok()).unwrap_or(0),
            },
        };
        let mut counts = BTreeMap::new();
        for tensor in file.tensors() {
            let layer =
                tensor.name.strip_prefix("layer.").and_then(|rest| rest.strip_suffix(".second_moment_sum"));
            let Some(layer) = layer.and_then(|layer| layer.parse().ok()) else { continue };
            let count = field(&count_name(layer))?.parse().ok().filter(|count| *count > 0);
            counts.insert(layer, count.ok_or_else(|| refuse(format!("has no tokens in layer {layer}")))?);
        }
        Ok(Self { digest: file.file_digest(0)?, file, counts, provenance })
    }

    /// Digest of the whole file.
    pub fn digest(&self) -> FileDigest {
        self.digest
    }

    /// Tokens by layer.
    pub fn counts(&self) -> &BTreeMap<usize, u64> {
        &self.counts
    }

    /// What the statistics were made from.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Checks that the statistics are of this model and hold `layers`.
    ///
    /// # Errors
    /// [`EditError::Statistics`] says what was expected and what was found.
    pub fn check(&self, base: WeightsId, inner: usize, layers: &[usize]) -> Result<(), EditError> {
        let path = self.file.path().display();
        let refuse = |what: String| Err(EditError::Statistics { what: format!("`{path}` {what}") });
        if self.provenance.base != base {
            return refuse(format!(
                "was made on another base: weights {}, expected {}",
                self.provenance.base.short(),
                base.short()
            ));
        }
        for layer in layers {
            if !self.counts.contains_key(layer) {
                let held: Vec<_> = self.counts.keys().collect();
                return refuse(format!("holds the layers {held:?}, expected layer {layer} among them"));
            }
            let shape = &self.file.tensor(&tensor_name(*layer))?.shape;
            if *shape != [inner as u64, inner as u64] {
                return refuse(format!("has moments of shape {shape:?}, expected [{inner}, {inner}]"));
            }
        }
        Ok(())
    }

    /// One layer's sum and count.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`] or [`EditError::Statistics`].
    pub fn layer(&self, layer: usize) -> Result<LayerSum, EditError> {
        let bytes = self.file.read(self.tensor(layer)?)?;
        let count = self.counts.get(&layer).copied().unwrap_or_default();
        Ok(LayerSum { sum: floats(&bytes).collect(), count })
    }

    fn tensor(&self, layer: usize) -> Result<&TensorInfo, EditError> {
        let info = self.file.tensor(&tensor_name(layer))?;
        if info.element_dtype() == Some(Dtype::F32) {
            return Ok(info);
        }
        let path = self.file.path().display();
        let what = format!("`{path}` holds {} in layer {layer}, expected F32", info.dtype);
        Err(EditError::Statistics { what })
    }

    /// One layer's second moment, `sum / count`, `[inner, inner]`; divided in f32 as the reference does.
    ///
    /// Read row by row, so that no more than the matrix itself is held.
    ///
    /// # Errors
    /// As [`StatisticsFile::layer`].
    pub fn moment(&self, layer: usize) -> Result<Mat<f64>, EditError> {
        let info = self.tensor(layer)?;
        let inner = info.shape.first().map_or(0, |side| *side as usize);
        let count = self.counts.get(&layer).copied().unwrap_or_default() as f32;
        let mut moment = Mat::zeros(inner, inner);
        let mut bytes = vec![0; inner * size_of::<f32>()];
        for row in 0..inner {
            self.file.read_at(info, (row * bytes.len()) as u64, &mut bytes)?;
            for (column, entry) in floats(&bytes).enumerate() {
                // It is symmetric, and a column is what lies together in memory.
                moment[(column, row)] = f64::from(entry / count);
            }
        }
        Ok(moment)
    }

    /// All layers in memory, for merging.
    ///
    /// # Errors
    /// As [`StatisticsFile::layer`].
    pub fn load(&self) -> Result<Statistics, EditError> {
        let layers: BTreeMap<_, _> = self
            .counts
            .keys()
            .map(|layer| Ok((*layer, self.layer(*layer)?)))
            .collect::<Result<_, EditError>>()?;
        let entries = layers.values().next().map_or(0, |layer| layer.sum.len());
        Ok(Statistics { layers, inner: entries.isqrt(), provenance: self.provenance.clone() })
    }
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|entry| f32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]))
}
