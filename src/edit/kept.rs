//! What a long run keeps for later ones: the factors of `lambda * C`, and the values found so far.
//!
//! Both can be made again, so neither is believed unread: every record carries its digest and every file says what
//! it was made from (see `src/checkpoint/records.rs`). What is damaged or was made from something else is made anew,
//! and what was kept gives the same bits as what is made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use faer::Mat;

use super::contexts::Contexts;
use super::hyperparameters::Hyperparameters;
use super::solve::{Factor, RIDGES_RELATIVE};
use super::value::Value;
use super::{EditError, FactPrompt};
use crate::checkpoint::{CheckpointError, RecordLog, limit_folder, read_records, touch, write_records};
use crate::digest::{FileDigest, WeightsId};

/// What an edit may use of earlier runs and keep for later ones; nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept<'a> {
    /// Factors of `lambda * C`.
    pub factors: Option<&'a FactorCache>,
    /// Values found so far.
    pub values: Option<&'a ValueLog>,
}

/// A folder of Cholesky factors of `lambda * C`, by the statistics, the layer and lambda that they belong to, and by
/// what computed them.
#[derive(Debug, Clone)]
pub struct FactorCache {
    folder: PathBuf,
    maker: String,
    limit_bytes: u64,
}

/// How files of factors end.
const FACTOR_ENDING: &str = "factor";
/// Columns of a factor are written together up to about this size.
const RECORD_SIZE_BYTES: usize = 4 << 20;

impl FactorCache {
    /// The cache in `folder`, which exists; its files take `limit_bytes` at most, those used longest ago go first.
    ///
    /// `maker` names the program and the processor's instructions: one home may be shared by machines, and another
    /// version or another instruction set rounds otherwise.
    pub fn new(folder: &Path, limit_bytes: u64, maker: &str) -> Self {
        Self { folder: folder.to_owned(), maker: maker.to_owned(), limit_bytes }
    }

    /// The factor kept for these statistics, or the one that `make` makes, which is then kept.
    ///
    /// A cache that cannot be written is no reason to stop: the factor is used and not kept.
    pub(crate) fn find_or(
        &self,
        statistics: FileDigest,
        layer: usize,
        weight: f64,
        inner: usize,
        make: impl FnOnce() -> Result<Factor, EditError>,
    ) -> Result<Factor, EditError> {
        let origin = format!(
            "mpatch factor 1; maker {}; statistics {statistics}; layer {layer}; weight {weight:?}; inner {inner}; \
             ridges {RIDGES_RELATIVE:?}",
            self.maker
        );
        let name = FileDigest::of(origin.as_bytes()).short();
        let path = self.folder.join(format!("{name}.{FACTOR_ENDING}"));
        if let Some(factor) = read_factor(&path, origin.as_bytes(), inner) {
            touch(&path);
            return Ok(factor);
        }
        let factor = make()?;
        let size_bytes = (inner * (inner + 1) / 2 * size_of::<f64>()) as u64;
        if size_bytes <= self.limit_bytes && write_factor(&path, origin.as_bytes(), &factor).is_ok() {
            limit_folder(&self.folder, FACTOR_ENDING, self.limit_bytes, &path);
        }
        Ok(factor)
    }
}

/// The ridge, then the lower triangle column after column; f64, little-endian.
fn write_factor(
    path: &Path,
    origin: &[u8],
    factor: &Factor,
) -> Result<(), crate::checkpoint::CheckpointError> {
    write_records(path, origin, |sink| {
        sink(&factor.ridge.to_le_bytes())?;
        let mut block = Vec::new();
        for column in 0..factor.lower.ncols() {
            block.extend(
                (column..factor.lower.nrows()).flat_map(|row| factor.lower[(row, column)].to_le_bytes()),
            );
            if block.len() >= RECORD_SIZE_BYTES || column + 1 == factor.lower.ncols() {
                sink(&block)?;
                block.clear();
            }
        }
        Ok(())
    })
}

/// The factor in the file, if all of it is there and sound.
fn read_factor(path: &Path, origin: &[u8], inner: usize) -> Option<Factor> {
    let mut ridge = None;
    let mut lower: Option<Mat<f64>> = None;
    let mut places = (0..inner).flat_map(|column| (column..inner).map(move |row| (row, column)));
    let mut surplus = false;
    read_records(path, origin, |payload| {
        let mut numbers = payload.chunks_exact(size_of::<f64>()).map(|bytes| {
            let mut number = [0; size_of::<f64>()];
            number.copy_from_slice(bytes);
            f64::from_le_bytes(number)
        });
        if ridge.is_none() {
            ridge = Some(numbers.next().unwrap_or(f64::NAN));
            return;
        }
        let lower = lower.get_or_insert_with(|| Mat::zeros(inner, inner));
        for number in numbers {
            match places.next() {
                Some(place) => lower[place] = number,
                None => surplus = true,
            }
        }
    })
    .ok()?;
    let whole = !surplus && places.next().is_none();
    Some(Factor { lower: lower.filter(|_| whole)?, ridge: ridge.filter(|ridge| ridge.is_finite())? })
}

/// Everything that values depend on.
#[derive(Debug, Clone, Copy)]
pub struct ValueInputs<'a> {
    /// The base's weights.
    pub weights: WeightsId,
    /// Its config.
    pub config: FileDigest,
    /// Its tokenizer.
    pub tokenizer: FileDigest,
    /// MEMIT's hyperparameters.
    pub hyperparameters: &'a Hyperparameters,
    /// The context templates.
    pub contexts: &'a Contexts,
    /// The facts, in their order.
    pub facts: &'a [FactPrompt],
    /// Whatever may change the bits of the arithmetic: kind and product of the device, or its instruction set, and the
    /// precision.
    pub device: &'a str,
    /// The program and its version.
    pub tool: &'a str,
}

impl ValueInputs<'_> {
    /// One digest of it all; none where it cannot be written down, so that no other edit's values are taken for its
    /// own.
    pub fn digest(&self) -> Option<FileDigest> {
        let facts: Vec<_> =
            self.facts.iter().map(|fact| (&fact.prompt, &fact.subject, &fact.target)).collect();
        let material = (
            "mpatch values 1",
            (self.weights, self.config, self.tokenizer),
            (self.hyperparameters, self.contexts.groups(), facts),
            (self.device, self.tool),
        );
        // JSON of plain data: text, numbers and lists, each with its own quotes and brackets.
        serde_json::to_vec(&material).ok().map(|text| FileDigest::of(&text))
    }
}

/// The batches of values that earlier runs of the same edit finished, and a log for the next.
#[derive(Debug)]
pub struct ValueLog {
    path: PathBuf,
    open: Mutex<OpenLog>,
}

#[derive(Debug)]
struct OpenLog {
    log: RecordLog,
    /// The batches found, by their facts.
    found: BTreeMap<Vec<usize>, Vec<Value>>,
    state: LogState,
}

/// Whether a log takes more values.
#[derive(Debug)]
enum LogState {
    Open,
    /// A record could not be written, and nobody was told yet why.
    Failed(CheckpointError),
    /// No more is written: what follows a record that was cut short would not be read again.
    Closed,
}

impl OpenLog {
    fn batch(&self, facts: &[usize], width: usize) -> Option<&Vec<Value>> {
        self.found.get(facts).filter(|values| values.iter().all(|value| value.hidden.len() == width))
    }

    /// Adds a record by `append`, unless an earlier one failed.
    fn add(&mut self, append: impl FnOnce(&mut RecordLog) -> Result<(), CheckpointError>) {
        if matches!(self.state, LogState::Open)
            && let Err(error) = append(&mut self.log)
        {
            self.state = LogState::Failed(error);
        }
    }
}

/// How logs of values end.
const LOG_ENDING: &str = "values";

impl ValueLog {
    /// Opens the log of these inputs in `folder`, which exists; older logs go where they take more than
    /// `limit_bytes`. `None` means that another process is making the same edit.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`].
    pub fn open(folder: &Path, inputs: FileDigest, limit_bytes: u64) -> Result<Option<Self>, EditError> {
        let path = folder.join(format!("{}.{LOG_ENDING}", inputs.short()));
        let origin = format!("mpatch values 1; inputs {inputs}");
        let mut found = BTreeMap::new();
        let log = RecordLog::open(&path, origin.as_bytes(), |payload| found.extend(decode(&payload)))?;
        limit_folder(folder, LOG_ENDING, limit_bytes, &path);
        Ok(log.map(|log| Self { path, open: Mutex::new(OpenLog { log, found, state: LogState::Open }) }))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many values it holds.
    pub fn values(&self) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.found.keys().map(Vec::len).sum()
    }

    /// How many facts the batches have that it holds.
    pub(crate) fn batch_sizes(&self) -> BTreeSet<usize> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.found.keys().map(Vec::len).collect()
    }

    /// Of how many facts in these batches it holds the values.
    pub(crate) fn known<'b>(&self, batches: impl Iterator<Item = &'b [usize]>, width: usize) -> usize {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        batches.filter(|batch| open.batch(batch, width).is_some()).map(<[usize]>::len).sum()
    }

    /// Forgets what it holds of other batches than these; on disk it stays.
    pub(crate) fn forget_all_but(&self, batches: &[&[usize]]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted: BTreeSet<&[usize]> = batches.iter().copied().collect();
        open.found.retain(|batch, _| wanted.contains(batch.as_slice()));
    }

    /// The values of a batch, where the log holds them.
    pub(crate) fn batch(&self, facts: &[usize], width: usize) -> Option<Vec<Value>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.batch(facts, width).cloned()
    }

    /// Adds a finished batch; it is on disk when this returns.
    ///
    /// A log that cannot be written is no reason to stop hours of work: from then on values are used and not kept.
    pub(crate) fn keep(&self, facts: &[usize], values: &[Value]) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.add(|log| log.append(&encode(facts, values)));
    }

    /// Why no more values are kept, if that is so; told once.
    pub fn take_failure(&self) -> Option<CheckpointError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut open.state, LogState::Closed) {
            LogState::Failed(error) => Some(error),
            state => {
                open.state = state;
                None
            }
        }
    }

    /// Removes the log: the edit that it was for is made.
    ///
    /// # Errors
    /// [`EditError::Checkpoint`].
    pub fn remove(self) -> Result<(), EditError> {
        Ok(self.open.into_inner().unwrap_or_else(PoisonError::into_inner).log.remove()?)
    }
}

/// A batch: how many facts, which, and of each its value; integers u64 and numbers f32, little-endian.
fn encode(facts: &[usize], values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let integer = |value: usize, bytes: &mut Vec<u8>| bytes.extend((value as u64).to_le_bytes());
    integer(facts.len(), &mut bytes);
    facts.iter().for_each(|fact| integer(*fact, &mut bytes));
    for value in values {
        integer(value.steps, &mut bytes);
        integer(value.hidden.len(), &mut bytes);
        let numbers = [value.loss, value.probability].into_iter().chain(value.hidden.iter().copied());
        bytes.extend(numbers.flat_map(f32::to_le_bytes));
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Vec<usize>, Vec<Value>)> {
    let mut rest = bytes;
    let count = take_integer(&mut rest)?;
    let facts = (0..count).map(|_| take_integer(&mut rest)).collect::<Option<Vec<_>>>()?;
    let value = |rest: &mut &[u8]| {
        let (steps, width) = (take_integer(rest)?, take_integer(rest)?);
        let (loss, probability) = (take_number(rest)?, take_number(rest)?);
        let hidden = (0..width).map(|_| take_number(rest)).collect::<Option<Vec<_>>>()?;
        Some(Value { hidden, loss, probability, steps })
    };
    let values = (0..count).map(|_| value(&mut rest)).collect::<Option<Vec<_>>>()?;
    rest.is_empty().then_some((facts, values))
}

fn take_integer(bytes: &mut &[u8]) -> Option<usize> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    usize::try_from(u64::from_le_bytes(*first)).ok()
}

fn take_number(bytes: &mut &[u8]) -> Option<f32> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(f32::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Action;
    use crate::edit::key::in_contexts;
    use crate::edit::value::PlannedValues;
    use crate::model::{Device, Model};

    fn factor() -> Factor {
        let moment =
            || {
                Ok(Mat::from_fn(30, 30, |row, column| {
                    if row == column { 3.0 } else { 1.0 / (1.0 + (row + column) as f64) }
                }))
            };
        Factor::of(&moment, 15.0, 1).expect("positive definite")
    }

    /// The lower triangles, bit for bit.
    fn same(one: &Factor, other: &Factor) -> bool {
        let bits = |factor: &Factor| -> Vec<u64> {
            let places = (0..30).flat_map(|column| (column..30).map(move |row| (row, column)));
            places.map(|place| factor.lower[place].to_bits()).chain([factor.ridge.to_bits()]).collect()
        };
        bits(one) == bits(other)
    }

    #[test]
    fn a_factor_kept_is_the_factor_made_and_a_damaged_one_is_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = FactorCache::new(folder.path(), 1 << 20, "this");
        let digest = FileDigest::of(b"statistics");
        let made = factor();
        let first = cache.find_or(digest, 1, 15.0, 30, || Ok(factor())).expect("made");
        let not_wanted = || panic!("the factor is kept");
        let second = cache.find_or(digest, 1, 15.0, 30, not_wanted).expect("kept");
        assert!(same(&first, &made) && same(&second, &made));
        let file =
            std::fs::read_dir(folder.path()).expect("a folder").next().expect("a file").expect("an entry");
        let whole = std::fs::read(file.path()).expect("the file");
        for at in (0..whole.len()).step_by(97) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(file.path(), damaged).expect("written");
            let mut again = false;
            let third = cache.find_or(digest, 1, 15.0, 30, || {
                again = true;
                Ok(factor())
            });
            assert!(again && same(&third.expect("made"), &made), "damage at byte {at} was not seen");
        }
        let mut other = false;
        cache
            .find_or(FileDigest::of(b"other"), 1, 15.0, 30, || {
                other = true;
                Ok(factor())
            })
            .expect("made");
        assert!(other, "the factor of other statistics was taken");
    }

    #[test]
    fn factors_that_do_not_fit_their_cache_are_not_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let cache = FactorCache::new(folder.path(), 1000, "this");
        cache.find_or(FileDigest::of(b"statistics"), 1, 15.0, 30, || Ok(factor())).expect("made");
        assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
    }

    #[test]
    fn values_are_read_back_bit_for_bit() {
        let folder = tempfile::tempdir().expect("a folder");
        let inputs = FileDigest::of(b"inputs");
        let open = || ValueLog::open(folder.path(), inputs, 1 << 20).expect("a log").expect("nobody else's");
        let value = |seed: f32| Value {
            hidden: vec![seed, -0.0, f32::MIN_POSITIVE, 1.0 / 3.0],
            loss: 0.1,
            probability: 0.9,
            steps: 7,
        };
        let log = open();
        log.keep(&[4, 1], &[value(1.0), value(2.0)]);
        assert_eq!(log.batch(&[4, 1], 4), None, "a log is read when it is opened");
        drop(log);
        let log = open();
        assert_eq!(log.values(), 2);
        assert_eq!(log.batch(&[4, 1], 4), Some(vec![value(1.0), value(2.0)]));
        assert_eq!(log.batch(&[4], 4), None);
        assert_eq!(log.batch(&[4, 1], 5), None, "of another width");
        log.remove().expect("removed");
        assert_eq!(open().values(), 0);
    }

    #[test]
    fn an_interrupted_run_is_gone_on_with_in_batches_of_its_own_size() {
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let model = Model::open(&model, &Device::Cpu, &|_| ()).expect("the fixture is a model");
        let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).expect("contexts");
        let fact = |number: usize| FactPrompt {
            prompt: "{} performs on the".to_owned(),
            subject: format!("Bo{}", " the".repeat(number)),
            target: " flute".to_owned(),
        };
        let facts: Vec<FactPrompt> = (0..8).map(fact).collect();
        let located = in_contexts(&model, &contexts, &facts).expect("facts");
        let hyperparameters = Hyperparameters::for_model(model.network.config()).0;
        let planned = |size: usize| {
            let mut planned =
                PlannedValues::new(&model, &hyperparameters, &located, &facts).expect("planned");
            planned.facts_per_batch = size;
            planned
        };
        let folder = tempfile::tempdir().expect("a folder");
        let log = || {
            let log = ValueLog::open(folder.path(), FileDigest::of(b"inputs"), 1 << 20);
            log.expect("a log").expect("nobody else's")
        };
        let hidden = vec![0.5; model.network.config().width];
        let value = Value { hidden, loss: 0.1, probability: 0.9, steps: 7 };
        let keep = |batch: &[usize]| log().keep(batch, &vec![value.clone(); batch.len()]);
        let resumed = |size: usize| {
            let (mut planned, log) = (planned(size), log());
            planned.resume(&log);
            (planned.facts_per_batch, log.values())
        };
        // Batches that nobody makes: nothing is known.
        keep(&[7, 0]);
        assert_eq!(resumed(3), (3, 0));
        let earlier = planned(4);
        keep(earlier.batches()[0]);
        for size in [2, 4, 8] {
            assert_eq!(resumed(size), (4, 4), "{size} facts would fit now");
        }
        // The last of several batches is shorter, and may be done first.
        keep(planned(5).batches()[1]);
        assert_eq!(resumed(5), (4, 4));
    }

    #[test]
    fn a_full_disk_ends_the_log_and_is_told_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let inputs = FileDigest::of(b"inputs");
        let open = || ValueLog::open(folder.path(), inputs, 1 << 20).expect("a log").expect("nobody else's");
        let value = || vec![Value { hidden: vec![1.0], loss: 0.1, probability: 0.9, steps: 7 }];
        let log = open();
        log.keep(&[0], &value());
        assert!(log.take_failure().is_none(), "nothing has failed yet");
        let full = || CheckpointError::Io {
            path: log.path().to_owned(),
            action: Action::Write,
            source: std::io::ErrorKind::StorageFull.into(),
        };
        log.open.lock().expect("nobody fell").add(|_| Err(full()));
        log.keep(&[1], &value());
        let told = log.take_failure().expect("why it ended").to_string();
        assert!(told.contains("write"), "{told}");
        log.keep(&[2], &value());
        assert!(log.take_failure().is_none(), "it is told once");
        drop(log);
        assert_eq!(open().values(), 1, "what follows a failure is not written");
    }

    #[test]
    fn a_factor_is_that_of_its_own_layer_weight_and_maker() {
        let folder = tempfile::tempdir().expect("a folder");
        let digest = FileDigest::of(b"statistics");
        for (layer, weight, maker) in
            [(1, 15.0, "this"), (2, 15.0, "this"), (1, 16.0, "this"), (1, 15.0, "other")]
        {
            let cache = FactorCache::new(folder.path(), 1 << 20, maker);
            let mut made = false;
            let make = || {
                made = true;
                Ok(factor())
            };
            cache.find_or(digest, layer, weight, 30, make).expect("made");
            assert!(made, "layer {layer}, weight {weight}, {maker}: the factor of another one was taken");
        }
    }

    #[test]
    fn the_factor_that_was_used_longest_ago_goes_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = || -> Vec<PathBuf> {
            let entries = std::fs::read_dir(folder.path()).expect("a folder");
            entries.map(|entry| entry.expect("an entry").path()).collect()
        };
        let made = |limit_bytes, layer: usize| {
            let mut made = false;
            let make = || {
                made = true;
                Ok(factor())
            };
            let cache = FactorCache::new(folder.path(), limit_bytes, "this");
            cache.find_or(FileDigest::of(b"statistics"), layer, 15.0, 30, make).expect("a factor");
            made
        };
        assert!(made(1 << 20, 0) && made(1 << 20, 1));
        let two = 2 * std::fs::metadata(&files()[0]).expect("a file").len();
        for file in files() {
            let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            std::fs::File::options()
                .write(true)
                .open(file)
                .and_then(|file| file.set_modified(long_ago))
                .expect("set");
        }
        assert!(!made(two, 1) && made(two, 2));
        assert_eq!(files().len(), 2);
        assert!(!made(two, 1) && made(two, 0), "what was used last stays");
    }

    #[test]
    fn logs_beyond_the_limit_go() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |inputs: &[u8], limit_bytes| {
            ValueLog::open(folder.path(), FileDigest::of(inputs), limit_bytes).expect("a log").expect("ours")
        };
        let value = Value { hidden: vec![1.0; 1000], loss: 0.1, probability: 0.9, steps: 7 };
        let first = open(b"one", 1 << 20);
        first.keep(&[0], &[value]);
        let path = first.path().to_owned();
        drop(first);
        let second = open(b"other", 1 << 20);
        assert!(path.exists() && second.values() == 0);
        drop(open(b"third", 1000));
        assert!(!path.exists(), "an old log stays beyond the limit");
    }

    #[test]
    fn values_are_resumed_only_from_a_run_with_all_the_same_inputs() {
        let hyperparameters = Hyperparameters::gpt_j_6b();
        let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).expect("contexts");
        let fact = |target: &str| {
            let [prompt, subject, target] = ["{} is", "Ann", target].map(str::to_owned);
            [FactPrompt { prompt, subject, target }]
        };
        let (facts, other_facts) = (fact(" tall"), fact(" small"));
        let other = FileDigest::of(b"other");
        let inputs = ValueInputs {
            weights: WeightsId::from_bytes([0; 32]),
            config: FileDigest::of(b"config"),
            tokenizer: FileDigest::of(b"tokenizer"),
            hyperparameters: &hyperparameters,
            contexts: &contexts,
            facts: &facts,
            device: "cpu",
            tool: "mpatch 1",
        };
        let others = [
            ValueInputs { weights: WeightsId::from_bytes([1; 32]), ..inputs },
            ValueInputs { config: other, ..inputs },
            ValueInputs { tokenizer: other, ..inputs },
            ValueInputs {
                hyperparameters: &Hyperparameters { v_lr: 0.1, ..hyperparameters.clone() },
                ..inputs
            },
            ValueInputs {
                contexts: &Contexts::new(vec![vec!["So {}".to_owned()]]).expect("contexts"),
                ..inputs
            },
            ValueInputs { facts: &other_facts, ..inputs },
            ValueInputs { device: "cuda", ..inputs },
            ValueInputs { tool: "mpatch 2", ..inputs },
        ];
        let all = others.iter().chain([&inputs]);
        let mut digests: Vec<String> =
            all.map(|inputs| inputs.digest().expect("plain data").to_string()).collect();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), 9);
        assert_eq!(inputs.digest(), ValueInputs { ..inputs }.digest());
    }
}
