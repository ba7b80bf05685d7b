//! Statistics from the command line: from what they are computed, where they are kept, and what else is kept between
//! runs.

use std::cell::Cell;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::checkpoint::{CheckpointError, PassingFolder};
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::edit::EditError;
use mpatch::edit::kept::{FactorCache, ValueLog};
use mpatch::edit::statistics::{
    Amount, Collected, Drawn, Provenance, Shard, Statistics, StatisticsFile, StatisticsHeader, collect_part,
    sums_size_bytes,
};
use mpatch::model::{Arithmetic, Device, Model};

use crate::editing::edit_error;
use crate::error::{CommandError, ExitKind, with_causes};
use crate::job::{TOOL, product};
use crate::memory::check_memory;
use crate::places::cache_folder;
use crate::report::{Output, count};

/// How much of a corpus is run.
#[derive(Debug, Clone, Copy, Args)]
pub struct AmountArguments {
    /// Run documents of the corpus until they have this many tokens, or `all` of it; ten times the width of a key by
    /// default
    #[arg(long, value_name = "TOKENS", value_parser = amount_of_tokens)]
    tokens: Option<Amount>,
    /// Run this many documents of the corpus; the paper's own number is 100000
    #[arg(long, value_name = "COUNT", conflicts_with = "tokens", value_parser = clap::value_parser!(u64).range(1..))]
    documents: Option<u64>,
}

fn amount_of_tokens(text: &str) -> Result<Amount, String> {
    match text.parse::<u64>() {
        Ok(count) if count > 0 => Ok(Amount::Tokens(count)),
        _ if text == "all" => Ok(Amount::All),
        _ => Err("expected a number of tokens, or `all`".to_owned()),
    }
}

impl AmountArguments {
    /// Refuses an amount where there is no corpus that it could be of. The parser's own `requires` gives way as soon as
    /// something is given that the corpus excludes.
    pub fn check(self, corpus: Option<&Path>) -> Result<(), CommandError> {
        let name = match self {
            Self { tokens: Some(_), .. } => "--tokens",
            Self { documents: Some(_), .. } => "--documents",
            _ => return Ok(()),
        };
        if corpus.is_some() {
            return Ok(());
        }
        let message = format!("`{name}` says how much of a corpus is run, and there is none");
        Err(CommandError::new(ExitKind::Usage, message).hint("give the corpus, or leave the amount out"))
    }

    /// What was asked for, else what is enough for keys of this width.
    pub fn amount(self, inner: usize) -> Amount {
        let asked = self.tokens.or(self.documents.map(Amount::Documents));
        asked.unwrap_or_else(|| Amount::enough(inner))
    }
}

/// A part of a corpus that is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Corpus<'a> {
    /// The file.
    pub path: &'a Path,
    /// How much of it.
    pub amount: Amount,
    /// Which part of that, where others run the rest.
    pub shard: Option<Shard>,
}

/// What was given as a file of statistics is refused.
pub fn statistics_error(path: &Path, error: EditError) -> CommandError {
    let is_another_file = matches!(
        &error,
        EditError::Checkpoint(
            CheckpointError::Header { .. }
                | CheckpointError::Foreign { .. }
                | CheckpointError::NotACheckpoint { .. }
        )
    );
    let refused = edit_error(path, error);
    if is_another_file {
        refused.hint("give a file of statistics: `mpatch stats` makes them")
    } else {
        refused
    }
}

/// Computes the statistics of `layers` over `corpus`, with progress.
pub fn compute_statistics(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    corpus: Corpus<'_>,
    output: &Output,
) -> Result<Statistics, CommandError> {
    let network = &model.network;
    let sums = sums_size_bytes(network.config().inner, layers.len());
    // Wherever they are summed, what is written is laid out in the processor's memory.
    check_memory("the second moments", sums, &Device::Cpu)?;
    let failed = |error: std::io::Error| CommandError::io("read", corpus.path, &error);
    let file = std::fs::File::open(corpus.path).map_err(failed)?;
    let progress = match corpus.amount {
        Amount::Tokens(count) => output.counter("statistics, tokens", count),
        Amount::Documents(count) => output.counter("statistics, documents", count),
        Amount::All => output.progress("statistics", file.metadata().map_err(failed)?.len()),
    };
    let shards = corpus.shard.map_or(1, |shard| u64::from(shard.count));
    let last = Cell::new(Collected::default());
    let tell = |collected: Collected| {
        last.set(collected);
        match corpus.amount {
            Amount::Tokens(_) => progress.reach(collected.tokens * shards),
            Amount::Documents(_) => progress.reach(collected.documents * shards),
            Amount::All => progress.reach(collected.bytes),
        }
    };
    let mut reader = BufReader::new(file);
    let collected = collect_part(model, base, layers, &mut reader, corpus.amount, corpus.shard, &tell);
    let statistics = collected.map_err(|error| match error {
        EditError::Corpus { .. } => edit_error(corpus.path, error),
        error => edit_error(model.checkpoint.path(), error),
    })?;
    drop(progress);
    note_of_long_documents(last.get(), model, corpus, output);
    warn_of_little_text(&statistics, corpus, output);
    Ok(statistics)
}

/// Says what of the documents was left out: a corpus without line breaks is one document.
fn note_of_long_documents(collected: Collected, model: &Model, corpus: Corpus<'_>, output: &Output) {
    let Collected { documents, documents_cut, tokens_cut, .. } = collected;
    if documents_cut > 0 {
        output.note(&format!(
            "{documents_cut} of {} of `{}` are longer than the model's context, {} tokens, and were cut: {tokens_cut} \
             tokens of theirs are left out, which shorter lines would keep",
            count(documents as usize, "document"),
            corpus.path.display(),
            model.network.config().positions
        ));
    }
}

/// Warns where there was less text than asked for, and where it does not fill a second moment. A shard tells
/// nothing of either.
fn warn_of_little_text(statistics: &Statistics, corpus: Corpus<'_>, output: &Output) {
    if corpus.shard.is_some() {
        return;
    }
    let documents = statistics.provenance.drawn.documents;
    let tokens = statistics.layers.values().map(|layer| layer.count).max().unwrap_or_default();
    let missing = match corpus.amount {
        Amount::Tokens(asked) if tokens < asked => Some(format!("{tokens} of {asked} tokens")),
        Amount::Documents(asked) if documents < asked => Some(format!("{documents} of {asked} documents")),
        _ => None,
    };
    if let Some(missing) = missing {
        output.warn(&format!("`{}` gives only {missing} that were asked for", corpus.path.display()));
    }
    if tokens < statistics.inner as u64 {
        output.warn(&format!(
            "{tokens} tokens are fewer than a key has numbers, {}: a ridge is added, and neighbours are harmed more",
            statistics.inner
        ));
    }
}

/// Most that kept factors take: those of ten layers of GPT-J-6B.
const FACTORS_SIZE_BYTES_MAX: u64 = 11 << 30;
/// Most that logs of interrupted runs take: the values of 60 000 facts of GPT-J-6B.
const VALUES_SIZE_BYTES_MAX: u64 = 1 << 30;

/// The folder of this name in the cache, made if need be; none where there is no place for one. What is `lost` where it
/// cannot be made is told.
fn kept_in(name: &str, lost: &str, output: &Output) -> Option<PathBuf> {
    let folder = cache_folder()?.join(name);
    match std::fs::create_dir_all(&folder) {
        Ok(()) => Some(folder),
        Err(error) => {
            output.warn(&format!("{lost}: cannot create `{}`: {error}", folder.display()));
            None
        }
    }
}

/// The cache of factors; none where there is no place for one.
pub fn factor_cache(output: &Output) -> Option<FactorCache> {
    let folder = kept_in("factors", "no factors are kept, every run computes them anew", output)?;
    // Whatever device the model is on, the processor solves.
    Some(FactorCache::new(&folder, FACTORS_SIZE_BYTES_MAX, &format!("{TOOL} {}", product(&Device::Cpu))))
}

/// What is lost without a log of values.
const NO_LOG: &str = "no log of values is kept, an interrupted run begins anew";

/// The log of values of these inputs; none where there is no place for one, or another process writes it.
pub fn value_log(inputs: FileDigest, output: &Output) -> Option<ValueLog> {
    let folder = kept_in("values", NO_LOG, output)?;
    match ValueLog::open(&folder, inputs, VALUES_SIZE_BYTES_MAX) {
        Ok(Some(log)) => Some(log),
        Ok(None) => {
            output.warn("another process is making this very patch; this one keeps no log of its values");
            None
        }
        Err(error) => {
            output.warn(&format!("{NO_LOG}: {}", with_causes(&error)));
            None
        }
    }
}

/// What to do where there is no place for cached statistics.
const NO_CACHE_HINT: &str = "set MPATCH_CACHE_DIR or XDG_CACHE_HOME to a folder that can be written, or make statistics with `mpatch stats -o FILE`";

/// Where statistics are kept between runs: by what they were made from and computed with.
#[derive(Debug)]
pub struct StatisticsCache {
    folder: PathBuf,
}

impl StatisticsCache {
    /// The cache of this user.
    pub fn of_user() -> Option<Self> {
        Some(Self { folder: cache_folder()?.join("statistics") })
    }

    /// The cache of this user, where nothing can be done without one.
    pub fn needed() -> Result<Self, CommandError> {
        Self::of_user().ok_or_else(|| {
            let message = "there is no place for cached statistics: neither HOME nor MPATCH_CACHE_DIR is set";
            CommandError::new(ExitKind::Io, message).hint(NO_CACHE_HINT)
        })
    }

    /// The cache of this user, for statistics that are still to be computed: that there is no place for them is told
    /// before those hours, not after them.
    pub fn writable() -> Result<Self, CommandError> {
        let cache = Self::needed()?;
        let tried =
            std::fs::create_dir_all(&cache.folder).and_then(|()| tempfile::tempfile_in(&cache.folder));
        tried.map_err(|error| CommandError::io("write to", &cache.folder, &error).hint(NO_CACHE_HINT))?;
        Ok(cache)
    }

    /// The folder, which need not be there yet.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file for statistics of these layers that were made from and computed with this.
    fn path(&self, provenance: &Provenance, layers: impl Iterator<Item = usize>) -> PathBuf {
        let Provenance { base, tokenizer, corpora, drawn, arithmetic } = provenance;
        let corpus = match corpora.as_slice() {
            [corpus] => *corpus,
            several => {
                FileDigest::of(&several.iter().flat_map(|corpus| *corpus.as_bytes()).collect::<Vec<_>>())
            }
        };
        let mut name = format!("{}-{}-{}-", base.short(), corpus.short(), tokenizer.short());
        if drawn.amount != Some(Amount::All) {
            name += &format!("{}-", drawn.amount_in_words().replace(' ', "_"));
        }
        if let Some(shard) = drawn.shard {
            name += &format!("shard_{}_of_{}-", shard.index, shard.count);
        }
        if let Some(arithmetic) = arithmetic {
            name += &format!("{}-", arithmetic.to_string().replace(' ', "_"));
        }
        let layers: Vec<_> = layers.map(|layer| layer.to_string()).collect();
        self.folder.join(format!("{name}{}.safetensors", layers.join("_")))
    }

    /// The cached file of this base that holds `layers`; of several one made with the model's own tokenizer, of those
    /// one computed no more coarsely than the model's own would be, and of those the one made from most tokens. Headers
    /// decide; no other file is hashed.
    pub fn find(
        &self,
        model: &Model,
        base: WeightsId,
        layers: &[usize],
    ) -> Option<(PathBuf, StatisticsFile)> {
        let (inner, tokenizer) = (model.network.config().inner, model.tokenizer.digest());
        let own = model.arithmetic();
        let ours = self.paths().into_iter().filter(|path| is_of_base(path, base));
        let fitting = ours.filter_map(|path| {
            let file = StatisticsHeader::open(&path).ok()?;
            file.check(base, inner, layers).ok()?;
            // A shard is no statistics of anything by itself.
            file.provenance().drawn.shard.is_none().then_some(())?;
            let tokens = file.counts().values().copied().max()?;
            let arithmetic = file.provenance().arithmetic.as_ref();
            let is_own = arithmetic == Some(&own);
            let is_fine = is_own || arithmetic.is_none_or(Arithmetic::is_f32);
            // The path decides between equals, so that the choice does not depend on the order of a folder.
            let rank = (file.provenance().tokenizer == tokenizer, is_fine, tokens, is_own, path);
            Some((rank, file))
        });
        let mut fitting = Vec::from_iter(fitting);
        fitting.sort_by(|(one, _), (other, _)| other.cmp(one));
        fitting.into_iter().find_map(|((.., path), file)| Some((path, file.hash().ok()?)))
    }

    /// The cached file of this base that was made from `corpus`.
    fn find_of(
        &self,
        model: &Model,
        base: WeightsId,
        layers: &[usize],
        corpus: Corpus<'_>,
    ) -> Result<Option<(PathBuf, StatisticsFile)>, CommandError> {
        let made = Provenance {
            base,
            tokenizer: model.tokenizer.digest(),
            corpora: vec![file_digest(corpus.path)?],
            drawn: Drawn { amount: Some(corpus.amount), shard: corpus.shard, documents: 0 },
            arithmetic: None,
        };
        // Those of f32 are as good for a model in fewer bits, and may have taken hours.
        for arithmetic in [model.arithmetic(), model.arithmetic().in_f32()] {
            let made = Provenance { arithmetic: Some(arithmetic), ..made.clone() };
            let path = self.path(&made, layers.iter().copied());
            if let Ok(file) = StatisticsFile::open(&path) {
                file.check(base, model.network.config().inner, layers)
                    .map_err(|error| edit_error(&path, error))?;
                return Ok(Some((path, file)));
            }
        }
        Ok(None)
    }

    /// All cached files, those of this base first, opened and hashed one by one; what is no statistics is left out.
    pub fn files(&self, base: WeightsId) -> impl Iterator<Item = (PathBuf, StatisticsFile)> {
        let mut paths = self.paths();
        paths.sort_by_cached_key(|path| (!is_of_base(path, base), path.clone()));
        paths.into_iter().filter_map(|path| StatisticsFile::open(&path).ok().map(|file| (path, file)))
    }

    fn paths(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    /// Whether something is kept of this base, by the names of the files: to read them takes too long for a hint.
    pub fn names(&self, base: WeightsId) -> bool {
        self.paths().iter().any(|path| is_of_base(path, base))
    }

    /// Writes statistics into the cache, and says where they are.
    ///
    /// A patch is bound to the bytes of its statistics, so what is there stays, and others that would have its name get
    /// a name that ends in their digest.
    pub fn store(&self, statistics: &Statistics) -> Result<(PathBuf, StatisticsFile), CommandError> {
        let written = |path: &Path| {
            statistics.write(path)?;
            StatisticsFile::open(path)
        };
        let path = self.path(&statistics.provenance, statistics.layers.keys().copied());
        let Ok(there) = StatisticsFile::open(&path) else {
            let file = written(&path).map_err(|error| edit_error(&path, error))?;
            return Ok((path, file));
        };
        let passing = PassingFolder::create(&self.folder)?;
        let beside = passing.path().join("new.safetensors");
        let file = written(&beside).map_err(|error| edit_error(&beside, error))?;
        if file.digest() == there.digest() {
            return Ok((path, there));
        }
        let path = path.with_extension(format!("{}.safetensors", file.digest().short()));
        std::fs::rename(&beside, &path).map_err(|error| CommandError::io("write", &path, &error))?;
        let file = StatisticsFile::open(&path).map_err(|error| edit_error(&path, error))?;
        Ok((path, file))
    }
}

/// Whether a cached file is of this base, by its name.
fn is_of_base(path: &Path, base: WeightsId) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&base.short()))
}

/// Digest of a whole file, read in blocks.
pub fn file_digest(path: &Path) -> Result<FileDigest, CommandError> {
    let failed = |error: std::io::Error| CommandError::io("read", path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    FileDigest::of_reader(file).map_err(failed)
}

/// Warns of statistics that were made with another tokenizer than the model's.
///
/// They are no error: one tokenizer comes as one file or as several, with other digests.
pub fn warn_of_tokenizer(model: &Model, statistics: &StatisticsFile, output: &Output) {
    let (made_with, ours) = (statistics.provenance().tokenizer, model.tokenizer.digest());
    if made_with != ours {
        output.warn(&format!(
            "the statistics were made with the tokenizer {}, the model's is {}: they are of use only where \
             both are the same in other files",
            made_with.short(),
            ours.short()
        ));
    }
}

/// What was found of the statistics of a model.
pub enum Found<'a> {
    /// All that is asked for.
    Kept(Box<StatisticsFile>),
    /// Nothing: they are to be computed from this.
    ToCompute(Corpus<'a>),
}

/// Looks for statistics of `layers` of `model`: the file given, else one cached for this base.
pub fn find_statistics<'a>(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    given: Option<&Path>,
    corpus: Option<Corpus<'a>>,
    output: &Output,
) -> Result<Found<'a>, CommandError> {
    if let Some(path) = given {
        return given_statistics(model, base, layers, path).map(Box::new).map(Found::Kept);
    }
    let cache = StatisticsCache::needed()?;
    let found = match corpus {
        Some(corpus) => cache.find_of(model, base, layers, corpus)?,
        None => cache.find(model, base, layers),
    };
    match (found, corpus) {
        (Some((path, file)), _) => {
            tell_cached(model, &path, &file, output);
            Ok(Found::Kept(Box::new(file)))
        }
        (None, Some(corpus)) => Ok(Found::ToCompute(corpus)),
        (None, None) => {
            let message = "there are no statistics of this model: MEMIT needs the second moments of its keys";
            Err(CommandError::new(ExitKind::Usage, message)
                .hint("give `--corpus FILE` (text, one document a line) to compute them, or `--stats FILE`"))
        }
    }
}

/// The statistics in the file at `path`, which have to be of `layers` of this base, and all of their text.
fn given_statistics(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    path: &Path,
) -> Result<StatisticsFile, CommandError> {
    let file = StatisticsFile::open(path).map_err(|error| statistics_error(path, error))?;
    if let Some(shard) = file.provenance().drawn.shard {
        let path = path.display();
        let message =
            format!("`{path}` is shard {shard} of a text's statistics, and no statistics by itself");
        let hint = "put all shards together: `mpatch stats --merge SHARD... -o FILE`";
        return Err(CommandError::new(ExitKind::Usage, message).hint(hint));
    }
    file.check(base, model.network.config().inner, layers).map_err(|error| {
        let refused = edit_error(path, error);
        if file.provenance().base == base {
            return refused;
        }
        // A model with patches in it needs no statistics of its own, which may take hours.
        CommandError { kind: ExitKind::WrongBase, ..refused }.hint(
            "where they are of this model without its patches, make the patch on that one, `--base BASE`, and bind it to this one with `mpatch rebase PATCH --base MODEL --after OTHER`; else `mpatch stats` makes statistics for a model",
        )
    })?;
    Ok(file)
}

/// Computes the statistics of `layers` of `model` from `corpus`, and keeps them.
pub fn make_statistics(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    corpus: Corpus<'_>,
    output: &Output,
) -> Result<StatisticsFile, CommandError> {
    let cache = StatisticsCache::writable()?;
    output.note(&format!("statistics: computing them from {} ({})", corpus.path.display(), corpus.amount));
    let statistics = compute_statistics(model, base, layers, corpus, output)?;
    let (path, file) = cache.store(&statistics)?;
    output.note(&format!("statistics: kept in {}", path.display()));
    Ok(file)
}

/// Says which cached statistics are taken, and with what they were computed where the model would do it otherwise.
fn tell_cached(model: &Model, path: &Path, file: &StatisticsFile, output: &Output) {
    let other = file.provenance().arithmetic.as_ref().filter(|arithmetic| **arithmetic != model.arithmetic());
    let made = other.map_or_else(String::new, |arithmetic| format!(", computed on {arithmetic}"));
    output.note(&format!("statistics: {} (cached{made})", path.display()));
}
