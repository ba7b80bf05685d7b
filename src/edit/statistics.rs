//! Second moments of the keys: what the model's memory already holds (MEMIT's `C`).
//!
//! ```text
//! C = (sum over the tokens of a corpus of k k^T) / count        k: the input of mlp.fc_out, not centred
//! ```
//!
//! An artifact of its own: a safetensors file with the *sums* (so that files can be merged), the counts, and the
//! digests of what they were made from. All layers are collected in one pass.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use candle_core::Tensor;

use super::EditError;
use crate::checkpoint::{Checkpoint, NewTensor, write_safetensors};
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

/// Runs `corpus` through the model once and sums the keys of all `layers`.
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
    let mut sums = Sums::new(model, layers)?;
    let mut reader = Documents { corpus, hasher: blake3::Hasher::new(), line: 0, bytes: 0 };
    let mut done = Collected { documents: 0, tokens: 0, bytes: 0 };
    loop {
        let documents = reader.read(&model.tokenizer, model.network.config().positions)?;
        if documents.is_empty() {
            break;
        }
        for batch in batches(documents) {
            done.documents += batch.len() as u64;
            done.tokens += batch.iter().map(|row| row.len() as u64).sum::<u64>();
            done.bytes = reader.bytes;
            sums.add(&batch)?;
            progress(done);
        }
    }
    if done.tokens == 0 {
        return Err(EditError::Corpus { line: 1, what: "the corpus holds no text".to_owned() });
    }
    let corpora = vec![FileDigest::finish(&reader.hasher)];
    let provenance = Provenance { base, tokenizer: model.tokenizer.digest(), corpora };
    sums.finish(done.tokens, provenance)
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

    fn finish(self, count: u64, provenance: Provenance) -> Result<Statistics, EditError> {
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

/// Documents of a corpus, and the digest of all bytes read.
struct Documents<'a> {
    corpus: &'a mut dyn BufRead,
    hasher: blake3::Hasher,
    line: usize,
    bytes: u64,
}

impl Documents<'_> {
    /// The next documents as tokens, cut at `positions`; empty at the end of the corpus.
    fn read(
        &mut self,
        tokenizer: &crate::model::Tokenizer,
        positions: usize,
    ) -> Result<Vec<Vec<u32>>, EditError> {
        let mut documents = Vec::new();
        let mut line = Vec::new();
        while documents.len() < DOCUMENTS_READ_AHEAD {
            line.clear();
            self.line += 1;
            let refuse = |what: String| EditError::Corpus { line: self.line, what };
            let size = self.corpus.read_until(b'\n', &mut line).map_err(|error| refuse(error.to_string()))?;
            if size == 0 {
                break;
            }
            self.hasher.update(&line);
            self.bytes += size as u64;
            let text = std::str::from_utf8(&line).map_err(|error| refuse(error.to_string()))?;
            let mut ids = tokenizer.encode(&document(text).map_err(refuse)?)?;
            ids.truncate(positions);
            if !ids.is_empty() {
                documents.push(ids);
            }
        }
        Ok(documents)
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
        self.provenance.corpora.extend(&other.provenance.corpora);
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
        ]);
        metadata.extend(self.layers.iter().map(|(layer, sum)| (count_name(*layer), sum.count.to_string())));
        metadata
    }
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
        let info = self.file.tensor(&tensor_name(layer))?;
        if info.element_dtype() != Some(Dtype::F32) {
            let what = format!(
                "`{}` holds {} in layer {layer}, expected F32",
                self.file.path().display(),
                info.dtype
            );
            return Err(EditError::Statistics { what });
        }
        let bytes = self.file.read(info)?;
        let sum =
            bytes.chunks_exact(4).map(|entry| f32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]));
        Ok(LayerSum { sum: sum.collect(), count: self.counts.get(&layer).copied().unwrap_or_default() })
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
