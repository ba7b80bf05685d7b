//! `mpatch stats`: the second moments of a model's keys, computed, merged, or imported from the reference's cache.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::import::{layer_of_name, read_npz};
use mpatch::edit::statistics::{Provenance, Statistics, StatisticsFile};
use mpatch::model::Model;
use serde::Serialize;

use crate::editing::{
    DeviceArguments, StatisticsCache, compute_statistics, edit_error, file_digest, open_model,
    refuse_existing, weights_id,
};
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, Page, Report, count, shell_word};

/// Arguments of `stats`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch stats wiki.txt --base gptj/ -o gptj.stats.safetensors\n  \
                  mpatch stats --import memit/data/stats/gptj/wikipedia_stats --base gptj/ -o gptj.stats.safetensors\n  \
                  mpatch stats --merge part1.safetensors part2.safetensors -o gptj.stats.safetensors")]
pub struct StatsArguments {
    /// Run this corpus through the model: text or JSON lines, one document a line
    #[arg(required_unless_present_any = ["import", "merge"], conflicts_with_all = ["import", "merge"])]
    corpus: Option<PathBuf>,
    /// Import the reference's `.npz` files, or a folder of them
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "merge")]
    import: Vec<PathBuf>,
    /// Add up these statistics files
    #[arg(long, num_args = 2.., value_name = "FILE")]
    merge: Vec<PathBuf>,
    /// Run this model: a folder, or a weights file with its config and tokenizer beside it
    #[arg(long, value_name = "MODEL", required_unless_present = "merge")]
    base: Option<PathBuf>,
    /// Where the arithmetic runs.
    #[command(flatten)]
    device: DeviceArguments,
    /// Collect these layers instead of those that MEMIT edits in this model, e.g. `3,4,5`
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    layers: Option<Vec<usize>>,
    /// Write the statistics here; by default they are kept where `create` finds them
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What `stats` prints.
#[derive(Debug, Serialize)]
struct StatsReport {
    output: PathBuf,
    digest: FileDigest,
    base: WeightsId,
    /// Tokens by layer.
    tokens: BTreeMap<usize, u64>,
    inner: usize,
    #[serde(skip)]
    next: Option<String>,
}

/// Makes the statistics and writes them.
pub fn run(arguments: &StatsArguments, output: &Output) -> Result<(), CommandError> {
    if let Some(place) = &arguments.output {
        refuse_existing(place)?;
    }
    let statistics = match (&arguments.base, &arguments.corpus) {
        _ if !arguments.merge.is_empty() => merge(&arguments.merge)?,
        (Some(base), corpus) => {
            let model = open_model(base, &arguments.device.find(output)?, output)?;
            match corpus {
                Some(corpus) => compute(&model, corpus, arguments, output)?,
                None => import(&model, &arguments.import, output)?,
            }
        }
        (None, _) => return Err(CommandError::new(ExitKind::Usage, "`--base` is missing")),
    };
    let place = arguments.place(&statistics)?;
    statistics.write(&place).map_err(|error| edit_error(&place, error))?;
    let written = StatisticsFile::open(&place).map_err(|error| edit_error(&place, error))?;
    let base = arguments.base.as_deref().map_or_else(|| "MODEL".to_owned(), shell_word);
    let stats =
        arguments.output.as_ref().map_or_else(String::new, |place| format!(" --stats {}", shell_word(place)));
    output.report(&StatsReport {
        output: place,
        digest: written.digest(),
        base: written.provenance().base,
        tokens: written.counts().clone(),
        inner: statistics.inner,
        next: Some(format!("mpatch create facts.json --base {base}{stats}")),
    })
}

impl StatsArguments {
    fn place(&self, statistics: &Statistics) -> Result<PathBuf, CommandError> {
        if let Some(place) = &self.output {
            return Ok(place.clone());
        }
        let cache = StatisticsCache::of_user().ok_or_else(|| {
            CommandError::new(
                ExitKind::Usage,
                "there is no cache folder: neither HOME nor MPATCH_CACHE_DIR is set",
            )
            .hint("say where the statistics go with `-o`")
        })?;
        let layers: Vec<usize> = statistics.layers.keys().copied().collect();
        let corpora: Vec<u8> =
            statistics.provenance.corpora.iter().flat_map(|corpus| *corpus.as_bytes()).collect();
        let corpus = match statistics.provenance.corpora.as_slice() {
            [corpus] => *corpus,
            _ => FileDigest::of(&corpora),
        };
        cache.prepare()?;
        Ok(cache.path(statistics.provenance.base, corpus, &layers))
    }
}

fn compute(
    model: &Model,
    corpus: &Path,
    arguments: &StatsArguments,
    output: &Output,
) -> Result<Statistics, CommandError> {
    let layers = match &arguments.layers {
        Some(layers) => layers.clone(),
        None => match model.checkpoint.companion("memit.json")? {
            Some(bytes) => {
                let path = model.checkpoint.folder().join("memit.json");
                Hyperparameters::parse(&bytes).map_err(|error| edit_error(&path, error))?.layers
            }
            None => Hyperparameters::for_model(model.network.config()).0.layers,
        },
    };
    compute_statistics(model, weights_id(model, output)?, &layers, corpus, output)
}

fn merge(paths: &[PathBuf]) -> Result<Statistics, CommandError> {
    let mut sum: Option<Statistics> = None;
    for path in paths {
        let loaded = StatisticsFile::open(path)
            .and_then(|file| file.load())
            .map_err(|error| edit_error(path, error))?;
        match &mut sum {
            Some(sum) => sum.merge(&loaded).map_err(|error| {
                CommandError::new(ExitKind::Malformed, format!("`{}`: {error}", path.display()))
                    .hint("merge statistics of one model and the same layers")
            })?,
            None => sum = Some(loaded),
        }
    }
    sum.ok_or_else(|| CommandError::new(ExitKind::Usage, "nothing to merge"))
}

/// The files named, and those of the reference's names in the folders named.
fn npz_files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CommandError> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|error| CommandError::io("read", path, &error))?;
        let named = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let mut found: Vec<_> =
            named.filter(|path| path.extension().is_some_and(|ending| ending == "npz")).collect();
        found.sort();
        files.extend(found);
    }
    if files.is_empty() {
        return Err(CommandError::new(
            ExitKind::Usage,
            "there is no `.npz` file among what is to be imported",
        )
        .hint("the reference keeps them in `data/stats/MODEL/DATASET_stats`"));
    }
    Ok(files)
}

fn import(model: &Model, paths: &[PathBuf], output: &Output) -> Result<Statistics, CommandError> {
    let inner = model.network.config().inner;
    let mut layers = BTreeMap::new();
    let mut corpora = Vec::new();
    for path in npz_files(paths)? {
        let refuse = |what: String| {
            CommandError::new(ExitKind::Malformed, format!("`{}` {what}", path.display()))
                .hint("give the reference's own `.npz` files for this model")
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let layer = layer_of_name(&name).ok_or_else(|| {
            refuse(
                "does not say its layer, as in `transformer.h.3.mlp.fc_out_float32_mom2_100000.npz`"
                    .to_owned(),
            )
        })?;
        let file = std::fs::File::open(&path).map_err(|error| CommandError::io("open", &path, &error))?;
        let imported = read_npz(file).map_err(|error| refuse(format!("cannot be imported: {error}")))?;
        if imported.inner != inner {
            return Err(refuse(format!("holds keys of width {}, the model's have {inner}", imported.inner)));
        }
        if layers.insert(layer, imported.sum).is_some() {
            return Err(refuse(format!("is the second file of layer {layer}")));
        }
        corpora.push(file_digest(&path)?);
    }
    output.note("imported statistics do not name their model: that they are of this one is taken on trust");
    let provenance =
        Provenance { base: weights_id(model, output)?, tokenizer: model.tokenizer.digest(), corpora };
    Ok(Statistics { layers, inner, provenance })
}

impl Report for StatsReport {
    const SCHEMA: &'static str = "mpatch.stats/1";

    fn write(&self, page: &mut Page) {
        let layers = count(self.tokens.len(), "layer");
        page.title(&format!("wrote {}: {layers}, keys of width {}", self.output.display(), self.inner));
        let rows = self
            .tokens
            .iter()
            .map(|(layer, tokens)| vec![format!("layer {layer}"), format!("{tokens} tokens")]);
        page.table(&rows.collect::<Vec<_>>());
        page.line(&format!("digest {}, of base {}", self.digest.short(), self.base.short()));
    }

    fn next(&self) -> Option<String> {
        self.next.clone()
    }
}
