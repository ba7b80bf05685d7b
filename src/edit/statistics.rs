//! Second moments of the keys: what the model's memory already holds (MEMIT's `C`).
//!
//! ```text
//! C = (sum over the tokens of a corpus of k k^T) / count        k: the input of mlp.fc_out, not centred
//! ```
//!
//! An artifact of its own: a safetensors file with the *sums* (so that files can be merged), the counts, and the
//! digests of what they were made from. All layers are collected in one pass over the corpus, or a part of it
//! ([`collect_part`]), which may be shared out between machines.

use std::collections::BTreeMap;
use std::path::Path;

use faer::Mat;

use super::EditError;
pub use super::collect::{Collected, collect_part, sums_size_bytes};
pub use super::drawn::{Amount, Drawn, Shard};
use crate::checkpoint::{Checkpoint, NewTensor, TensorInfo, write_safetensors};
use crate::digest::{FileDigest, WeightsId};
use crate::model::Arithmetic;
use crate::tensor::Dtype;

/// Says in a file's header what the file is.
const FORMAT: &str = "mpatch statistics 1";

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
    /// What the keys were computed with; none where the file does not say.
    pub arithmetic: Option<Arithmetic>,
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

/// Adds up the statistics in `files`: all shards of one whole, whose order does not count, or different text.
///
/// One file is in memory beside the sum.
///
/// # Errors
/// [`EditError::Repeated`] names the files that hold the same text; [`EditError::Statistics`] says which shard is
/// missing, or what differs; reading the files.
pub fn merge(files: &[StatisticsFile]) -> Result<Statistics, EditError> {
    let mut sum: Option<Statistics> = None;
    for index in merge_order(files)? {
        let loaded = files[index].load()?;
        match &mut sum {
            Some(sum) => sum.add(&loaded).map_err(|what| {
                let path = files[index].path().display();
                EditError::Statistics { what: format!("`{path}` cannot be merged: {what}") }
            })?,
            None => sum = Some(loaded),
        }
    }
    sum.ok_or_else(|| EditError::Statistics { what: "there is nothing to merge".to_owned() })
}

impl Statistics {
    /// Adds the sums and counts of `other`, which must be of the same model, layers and width, or says what differs.
    ///
    /// [`merge_order`] has seen that it is of other text, or of another shard of the same whole.
    fn add(&mut self, other: &Self) -> Result<(), String> {
        let refuse = |what: &str| Err(format!("{what} differ"));
        if self.provenance.base != other.provenance.base {
            return refuse("their bases");
        }
        if self.provenance.tokenizer != other.provenance.tokenizer {
            return refuse("their tokenizers");
        }
        if self.inner != other.inner || !self.layers.keys().eq(other.layers.keys()) {
            return refuse("their layers");
        }
        // Before anything is added, so that what cannot be added stays as it was.
        let fits = |(layer, added): (&usize, &LayerSum)| {
            self.layers.get(layer).is_some_and(|mine| mine.count.checked_add(added.count).is_some())
        };
        let documents = self.provenance.drawn.documents_with(&other.provenance.drawn);
        let Some(documents) = documents.filter(|_| other.layers.iter().all(fits)) else {
            return Err("their counts add up to more than any corpus holds".to_owned());
        };
        for (layer, added) in &other.layers {
            if let Some(mine) = self.layers.get_mut(layer) {
                mine.sum.iter_mut().zip(&added.sum).for_each(|(sum, term)| *sum += term);
                mine.count += added.count;
            }
        }
        let (mine, theirs) = (&mut self.provenance, &other.provenance);
        mine.drawn.documents = documents;
        if mine.arithmetic != theirs.arithmetic {
            mine.arithmetic = Some(Arithmetic::mixed());
        }
        if mine.drawn.shard.is_some() || theirs.drawn.shard.is_some() {
            // All of them are there, as [`merge_order`] has seen, too.
            mine.drawn.shard = None;
            return Ok(());
        }
        if mine.drawn.amount != theirs.drawn.amount {
            mine.drawn.amount = None;
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
            ("amount".to_owned(), self.provenance.drawn.amount_in_words()),
        ]);
        let Drawn { shard, documents, .. } = self.provenance.drawn;
        metadata.extend(shard.map(|shard| ("shard".to_owned(), shard.to_string())));
        metadata.extend((documents > 0).then(|| ("documents".to_owned(), documents.to_string())));
        let arithmetic = self.provenance.arithmetic.as_ref();
        metadata.extend(arithmetic.map(|arithmetic| ("arithmetic".to_owned(), arithmetic.to_string())));
        metadata.extend(self.layers.iter().map(|(layer, sum)| (count_name(*layer), sum.count.to_string())));
        metadata
    }
}

/// The order in which files are to be added up: that of their shards, where they are shards of one whole, whatever
/// the order they are named in, so that the sums are the same; else as they stand.
///
/// # Errors
/// As [`merge`].
fn merge_order(files: &[StatisticsFile]) -> Result<Vec<usize>, EditError> {
    let refuse = |what: String| Err(EditError::Statistics { what: format!("cannot be merged: {what}") });
    let mut order: Vec<usize> = (0..files.len()).collect();
    let drawn = |index: usize| &files[index].provenance().drawn;
    let Some(count) = order.iter().find_map(|&index| drawn(index).shard).map(|shard| shard.count) else {
        different_text(files)?;
        return Ok(order);
    };
    let of_one_whole = |index: &usize| {
        let (first, this) = (files[0].provenance(), files[*index].provenance());
        first.corpora == this.corpora
            && first.drawn.amount == this.drawn.amount
            && this.drawn.shard.is_some_and(|shard| shard.count == count)
    };
    if let Some(other) = order.iter().find(|index| !of_one_whole(index)) {
        let path = files[*other].path().display();
        return refuse(format!("`{path}` is no shard of the same {count} of the same text"));
    }
    order.sort_by_key(|&index| drawn(index).shard);
    if let Some(twice) = order.windows(2).find(|pair| drawn(pair[0]).shard == drawn(pair[1]).shard) {
        let shard = drawn(twice[0]).shard.map(|shard| shard.to_string()).unwrap_or_default();
        return Err(repeated([&files[twice[0]], &files[twice[1]]], &format!("shard {shard}")));
    }
    let held: Vec<u32> =
        order.iter().filter_map(|&index| drawn(index).shard).map(|shard| shard.index).collect();
    if let Some(missing) = (1..=count).find(|index| !held.contains(index)) {
        return refuse(format!("shard {missing}/{count} is missing"));
    }
    Ok(order)
}

/// Refuses a corpus that two files were made from: adding them up would count it twice.
fn different_text(files: &[StatisticsFile]) -> Result<(), EditError> {
    let mut seen: BTreeMap<FileDigest, usize> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        for corpus in &file.provenance().corpora {
            let first = *seen.entry(*corpus).or_insert(index);
            if first != index {
                return Err(repeated([&files[first], file], &format!("corpus {}", corpus.short())));
            }
        }
    }
    Ok(())
}

fn repeated(files: [&StatisticsFile; 2], what: &str) -> EditError {
    let [first, second] = files.map(|file| file.path().display().to_string());
    EditError::Repeated { what: format!("`{first}` and `{second}` both hold {what}") }
}

fn tensor_name(layer: usize) -> String {
    format!("layer.{layer}.second_moment_sum")
}

/// The layers that a file holds, whose sums are all squares of F32 of one size; or what they are instead, in words.
fn layers_of(tensors: &[TensorInfo]) -> Result<Vec<usize>, String> {
    let mut layers = Vec::new();
    let mut expected = None;
    for tensor in tensors {
        let Some(layer) = layer_of(&tensor.name) else { continue };
        let side = *expected.get_or_insert(tensor.shape.first().copied().unwrap_or_default());
        if side == 0 || tensor.shape != [side, side] || tensor.element_dtype() != Some(Dtype::F32) {
            let (dtype, shape) = (&tensor.dtype, &tensor.shape);
            return Err(format!(
                "holds {dtype} of shape {shape:?} in layer {layer}, expected squares of F32 of one size"
            ));
        }
        layers.push(layer);
    }
    Ok(layers)
}

/// The layer of a tensor with exactly the name that [`tensor_name`] gives.
fn layer_of(name: &str) -> Option<usize> {
    let layer = name.strip_prefix("layer.")?.strip_suffix(".second_moment_sum")?.parse().ok()?;
    (tensor_name(layer) == name).then_some(layer)
}

fn documents(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is no number of documents"))
}

fn count_name(layer: usize) -> String {
    format!("layer.{layer}.count")
}

/// What the header of a statistics file says: enough to tell whether it fits, before gigabytes are hashed.
#[derive(Debug)]
pub struct StatisticsHeader {
    file: Checkpoint,
    /// Tokens by layer.
    counts: BTreeMap<usize, u64>,
    provenance: Provenance,
}

/// A statistics file, opened; sums are read one layer at a time.
#[derive(Debug)]
pub struct StatisticsFile {
    header: StatisticsHeader,
    digest: FileDigest,
}

impl StatisticsHeader {
    /// Opens the artifact at `path`.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`], or [`EditError::Statistics`] when the file is something else.
    pub fn open(path: &Path) -> Result<Self, EditError> {
        let file = Checkpoint::open(path)?;
        let refuse = |what: String| EditError::Statistics { what: format!("`{}` {what}", path.display()) };
        // What is hashed is a file, so that its digest is that of all sums.
        let [only] = file.files() else {
            let found = file.files().len();
            return Err(refuse(format!("is {found} files, expected one: statistics are not sharded")));
        };
        let metadata = only.metadata().clone();
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
                    .map_or(Ok(Some(Amount::All)), |words| Drawn::amount_of(words))
                    .map_err(refuse)?,
                shard: metadata.get("shard").map(|text| text.parse()).transpose().map_err(refuse)?,
                documents: metadata.get("documents").map_or(Ok(0), |text| documents(text)).map_err(refuse)?,
            },
            arithmetic: metadata.get("arithmetic").map(|text| text.parse()).transpose().map_err(refuse)?,
        };
        let mut counts = BTreeMap::new();
        for layer in layers_of(file.tensors()).map_err(refuse)? {
            let count = field(&count_name(layer))?.parse().ok().filter(|count| *count > 0);
            counts.insert(layer, count.ok_or_else(|| refuse(format!("has no tokens in layer {layer}")))?);
        }
        Ok(Self { file, counts, provenance })
    }

    /// The file with its digest.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`].
    pub fn hash(self) -> Result<StatisticsFile, EditError> {
        Ok(StatisticsFile { digest: self.file.file_digest(0)?, header: self })
    }

    fn path(&self) -> &Path {
        self.file.path()
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
        let path = self.path().display();
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
}

impl std::ops::Deref for StatisticsFile {
    type Target = StatisticsHeader;

    fn deref(&self) -> &StatisticsHeader {
        &self.header
    }
}

impl StatisticsFile {
    /// Opens the artifact at `path` and hashes it.
    ///
    /// # Errors
    /// As [`StatisticsHeader::open`].
    pub fn open(path: &Path) -> Result<Self, EditError> {
        StatisticsHeader::open(path)?.hash()
    }

    /// Digest of the whole file.
    pub fn digest(&self) -> FileDigest {
        self.digest
    }

    /// One layer's sum and count.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`] or [`EditError::Statistics`].
    pub fn layer(&self, layer: usize) -> Result<LayerSum, EditError> {
        let bytes = self.header.file.read(self.tensor(layer)?)?;
        let count = self.counts().get(&layer).copied().unwrap_or_default();
        Ok(LayerSum { sum: floats(&bytes).collect(), count })
    }

    fn tensor(&self, layer: usize) -> Result<&TensorInfo, EditError> {
        Ok(self.header.file.tensor(&tensor_name(layer))?)
    }

    /// One layer's second moment, `sum / count`, `[inner, inner]`; divided in f32 as the reference does.
    ///
    /// Read row by row, so that no more than the matrix itself is held.
    ///
    /// # Errors
    /// As [`StatisticsFile::layer`]; [`EditError::Statistics`] for a sum that no keys have.
    pub fn moment(&self, layer: usize) -> Result<Mat<f64>, EditError> {
        let info = self.tensor(layer)?;
        let inner = info.shape.first().map_or(0, |side| *side as usize);
        let count = self.counts().get(&layer).copied().unwrap_or_default() as f32;
        let mut moment = Mat::zeros(inner, inner);
        let mut bytes = vec![0; inner * size_of::<f32>()];
        for row in 0..inner {
            self.header.file.read_at(info, (row * bytes.len()) as u64, &mut bytes)?;
            let sums: Vec<f32> = floats(&bytes).collect();
            check_row(row, &sums).map_err(|what| EditError::Statistics {
                what: format!("`{}`, layer {layer}, {what}", self.path().display()),
            })?;
            for (column, entry) in sums.into_iter().enumerate() {
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
            .counts()
            .keys()
            .map(|layer| Ok((*layer, self.layer(*layer)?)))
            .collect::<Result<_, EditError>>()?;
        let entries = layers.values().next().map_or(0, |layer| layer.sum.len());
        Ok(Statistics { layers, inner: entries.isqrt(), provenance: self.provenance().clone() })
    }
}

/// Refuses a row of sums that no keys have: what is no number, or a sum of squares that is negative.
pub(super) fn check_row(row: usize, sums: &[f32]) -> Result<(), String> {
    let is_wrong = |(column, sum): &(usize, &f32)| !sum.is_finite() || (row == *column && **sum < 0.0);
    let Some((column, sum)) = sums.iter().enumerate().find(is_wrong) else { return Ok(()) };
    let expected = if sum.is_finite() { "0 or more on the diagonal" } else { "a finite number" };
    Err(format!("has the sum {sum} at row {row}, column {column}, expected {expected}"))
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|entry| f32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(layers: &[(usize, usize, u64)]) -> Statistics {
        let sum = |side: usize, count| LayerSum { sum: vec![1.0; side * side], count };
        let digest = FileDigest::of(b"");
        Statistics {
            layers: layers.iter().map(|&(layer, side, count)| (layer, sum(side, count))).collect(),
            inner: layers[0].1,
            provenance: Provenance {
                base: WeightsId::from_bytes([0; 32]),
                tokenizer: digest,
                corpora: vec![digest],
                drawn: Drawn::default(),
                arithmetic: None,
            },
        }
    }

    /// What opening a file of these tensors, each with its type and shape, is refused with.
    fn refused(metadata: &BTreeMap<String, String>, tensors: &[(&str, Dtype, &[u64])]) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("statistics.safetensors");
        let new = |&(name, dtype, shape): &(&str, Dtype, &[u64])| NewTensor {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let tensors: Vec<NewTensor> = tensors.iter().map(new).collect();
        write_safetensors(&path, metadata, &tensors, |index, sink| {
            let size =
                tensors[index].shape.iter().product::<u64>() as usize * tensors[index].dtype.size_bytes();
            sink.write_all(&vec![0; size])
        })
        .expect("written");
        StatisticsFile::open(&path).expect_err("no statistics").to_string()
    }

    #[test]
    fn sums_that_are_not_squares_of_one_size_are_refused_when_they_are_opened() {
        const FIRST: &str = "layer.0.second_moment_sum";
        const SECOND: &str = "layer.1.second_moment_sum";
        let square = (FIRST, Dtype::F32, &[2, 2][..]);
        for (tensors, expected) in [
            (vec![(FIRST, Dtype::F32, &[1, 4][..])], "holds F32 of shape [1, 4] in layer 0"),
            (vec![(FIRST, Dtype::F32, &[4][..])], "holds F32 of shape [4] in layer 0"),
            (vec![(FIRST, Dtype::F32, &[0, 9][..])], "holds F32 of shape [0, 9] in layer 0"),
            (vec![(FIRST, Dtype::F16, &[2, 2][..])], "holds F16 of shape [2, 2] in layer 0"),
            (vec![square, (SECOND, Dtype::F32, &[1, 1][..])], "holds F32 of shape [1, 1] in layer 1"),
        ] {
            let found = refused(&statistics(&[(0, 1, 7), (1, 1, 7)]).metadata(), &tensors);
            assert!(found.contains(expected) && found.contains("expected squares of F32"), "{found}");
        }
    }

    #[test]
    fn a_header_whose_words_for_the_text_cannot_be_read_is_refused() {
        for (name, expected) in [
            ("amount", "`many` is no amount of text"),
            ("shard", "`many` is no part such as `3/16`"),
            ("documents", "`many` is no number of documents"),
            ("arithmetic", "`../many` is no arithmetic such as `cpu bf16`"),
        ] {
            let mut metadata = statistics(&[(0, 1, 7)]).metadata();
            let word = if name == "arithmetic" { "../many" } else { "many" };
            metadata.insert(name.to_owned(), word.to_owned());
            let found = refused(&metadata, &[(&tensor_name(0), Dtype::F32, &[1, 1])]);
            assert!(found.ends_with(expected), "{found}");
        }
    }

    #[test]
    fn sums_in_several_files_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut map = serde_json::Map::new();
        for layer in [0, 1] {
            let name = format!("{layer}.safetensors");
            statistics(&[(layer, 1, 7)]).write(&folder.path().join(&name)).expect("written");
            map.insert(tensor_name(layer), name.into());
        }
        let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("written");
        let found = StatisticsFile::open(folder.path()).expect_err("not all of it is hashed").to_string();
        assert!(found.ends_with("is 2 files, expected one: statistics are not sharded"), "{found}");
    }

    #[test]
    fn text_that_two_files_hold_is_not_counted_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, corpus: &[u8], shard: Option<&str>| {
            let path = folder.path().join(name);
            let mut statistics = statistics(&[(0, 1, 7)]);
            statistics.provenance.corpora = vec![FileDigest::of(corpus)];
            statistics.provenance.drawn.shard = shard.map(|text| text.parse().expect("a shard"));
            statistics.write(&path).expect("written");
            StatisticsFile::open(&path).expect("statistics")
        };
        let refused = |files: [StatisticsFile; 2]| match merge(&files) {
            Err(EditError::Repeated { what }) => what,
            other => panic!("{other:?}"),
        };
        let what = refused([file("one", b"text", None), file("two", b"text", None)]);
        assert!(what.contains("one` and `") && what.contains("two` both hold corpus"), "{what}");
        let what = refused([file("one", b"text", Some("1/2")), file("two", b"text", Some("1/2"))]);
        assert!(what.ends_with("both hold shard 1/2"), "{what}");
        let sum = merge(&[file("one", b"text", None), file("two", b"other text", None)]).expect("merged");
        assert_eq!((sum.layers[&0].count, sum.provenance.corpora.len()), (14, 2));
    }

    #[test]
    fn counts_beyond_every_corpus_are_not_added() {
        let mut statistics = statistics(&[(0, 1, 7), (1, 1, u64::MAX)]);
        let before = statistics.clone();
        let found = statistics.add(&before).expect_err("more than any count");
        assert!(found.contains("more than any corpus holds"), "{found}");
        assert_eq!(statistics, before, "a merge that is refused adds nothing");
    }

    /// The file that `alter` makes of statistics of two tokens in a layer of one number.
    fn file_of(folder: &Path, name: &str, alter: impl FnOnce(&mut Statistics)) -> StatisticsFile {
        let mut statistics = statistics(&[(0, 1, 2)]);
        statistics.provenance.corpora = vec![FileDigest::of(name.as_bytes())];
        alter(&mut statistics);
        statistics.write(&folder.join(name)).expect("written");
        StatisticsFile::open(&folder.join(name)).expect("statistics")
    }

    #[test]
    fn only_what_was_made_on_one_model_by_one_tokenizer_is_merged() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = |alter: fn(&mut Statistics)| {
            let files = [file_of(folder.path(), "one", |_| ()), file_of(folder.path(), "other", alter)];
            merge(&files).expect_err("of two models").to_string()
        };
        let found = refused(|other| other.provenance.base = WeightsId::from_bytes([1; 32]));
        assert!(found.ends_with("other` cannot be merged: their bases differ"), "{found}");
        let found = refused(|other| other.provenance.tokenizer = FileDigest::of(b"another"));
        assert!(found.ends_with("their tokenizers differ"), "{found}");
    }

    #[test]
    fn what_is_merged_of_unlike_amounts_says_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let of =
            |name, amount| file_of(folder.path(), name, |file| file.provenance.drawn.amount = Some(amount));
        let amount = |files: [StatisticsFile; 2]| merge(&files).expect("merged").provenance.drawn.amount;
        assert_eq!(amount([of("a", Amount::Tokens(2)), of("b", Amount::Tokens(2))]), Some(Amount::Tokens(2)));
        assert_eq!(amount([of("a", Amount::Tokens(2)), of("b", Amount::All)]), None);
    }

    #[test]
    fn what_is_merged_says_what_it_was_computed_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let of = |name, arithmetic: Option<&str>| {
            let arithmetic = arithmetic.map(|words| words.parse().expect("words"));
            file_of(folder.path(), name, |file| file.provenance.arithmetic = arithmetic)
        };
        let merged = |one, other| {
            let sum = merge(&[of("a", one), of("b", other)]).expect("merged");
            sum.provenance.arithmetic.map(|arithmetic| arithmetic.to_string())
        };
        assert_eq!(merged(Some("cpu bf16"), Some("cpu bf16")).as_deref(), Some("cpu bf16"));
        assert_eq!(merged(Some("cpu bf16"), Some("cuda")).as_deref(), Some("mixed"));
        assert_eq!(merged(None, None), None);
    }

    #[test]
    fn shards_make_a_whole_only_of_one_text_and_one_amount_and_all_together() {
        let folder = tempfile::tempdir().expect("a folder");
        let of = |index: u32, corpus: &[u8], amount| {
            file_of(folder.path(), &index.to_string(), |file| {
                file.provenance.corpora = vec![FileDigest::of(corpus)];
                file.provenance.drawn =
                    Drawn { amount: Some(amount), shard: Some(Shard { index, count: 2 }), documents: 1 };
            })
        };
        let first = || of(1, b"text", Amount::All);
        let whole = merge(&[of(2, b"text", Amount::All), first()]).expect("both shards");
        assert_eq!(whole.provenance.drawn, Drawn { documents: 2, ..Drawn::default() });
        for other in [of(2, b"other text", Amount::All), of(2, b"text", Amount::Tokens(2))] {
            let found = merge(&[first(), other]).expect_err("no whole").to_string();
            assert!(found.contains("is no shard of the same 2 of the same text"), "{found}");
        }
        let found = merge(&[first()]).expect_err("half of it").to_string();
        assert!(found.ends_with("shard 2/2 is missing"), "{found}");
    }

    #[test]
    fn a_moment_is_the_sum_over_the_tokens_of_its_own_layer() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = file_of(folder.path(), "file", |file| *file = statistics(&[(0, 1, 2), (3, 1, 8)]));
        assert_eq!(file.moment(0).expect("a moment")[(0, 0)], 0.5);
        assert_eq!(file.moment(3).expect("a moment")[(0, 0)], 0.125);
    }

    #[test]
    fn sums_that_no_keys_have_are_refused_by_file_and_layer_when_they_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        for (sum, expected) in [(f32::NAN, "a finite number"), (-1.0, "0 or more on the diagonal")] {
            let file = file_of(folder.path(), "file", |file| {
                *file = statistics(&[(0, 1, 2), (3, 1, 8)]);
                file.layers.get_mut(&3).expect("a layer").sum[0] = sum;
            });
            assert!(file.moment(0).is_ok(), "the other layer is sound");
            let found = file.moment(3).expect_err("no sum of keys").to_string();
            let words = format!("file`, layer 3, has the sum {sum} at row 0, column 0, expected {expected}");
            assert!(found.ends_with(&words), "{found}");
        }
    }

    #[test]
    fn statistics_of_no_tokens_and_of_another_width_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("none");
        statistics(&[(0, 1, 0)]).write(&path).expect("written");
        let found = StatisticsHeader::open(&path).expect_err("of nothing").to_string();
        assert!(found.ends_with("has no tokens in layer 0"), "{found}");
        let file = file_of(folder.path(), "file", |_| ());
        let base = file.provenance().base;
        file.check(base, 1, &[0]).expect("it fits");
        let found = file.check(base, 2, &[0]).expect_err("of another width").to_string();
        assert!(found.ends_with("has moments of shape [1, 1], expected [2, 2]"), "{found}");
    }

    #[test]
    fn only_the_names_that_are_written_name_layers() {
        assert_eq!(layer_of("layer.3.second_moment_sum"), Some(3));
        for other in
            ["layer.03.second_moment_sum", "layer.+3.second_moment_sum", "layer.3.second_moment_sum.2"]
        {
            assert_eq!(layer_of(other), None, "{other}");
        }
    }
}
