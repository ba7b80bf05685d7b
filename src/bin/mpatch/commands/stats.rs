//! `mpatch stats`: the second moments of a model's keys, computed, merged, or imported from the reference's cache.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::edit::EditError;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::import::{layer_of_name, read_npz};
use mpatch::edit::statistics::{
    self, Amount, Drawn, Provenance, Shard, Statistics, StatisticsFile, sums_size_bytes,
};
use mpatch::model::{Device, Folder, Precision};
use serde::Serialize;

use crate::args::{corpus_path, output_path};
use crate::editing::{
    DeviceArguments, edit_error, given_or_remembered, model_error, open_folder, refuse_existing, weights_id,
};
use crate::error::{CommandError, ExitKind, with_causes};
use crate::history::StoreArguments;
use crate::interrupt::last_step;
use crate::memory::check_memory;
use crate::report::{Output, Page, Report, count, shell_word};
use crate::statistics::{
    AmountArguments, Corpus, StatisticsCache, compute_statistics, file_digest, statistics_error,
};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch stats wiki.txt --base gptj/ -o gptj.stats.safetensors\n  \
                  mpatch stats --import memit/data/stats/gptj/wikipedia_stats \\\n      \
                  --base gptj/ -o gptj.stats.safetensors\n  \
                  mpatch stats wiki.txt --base gptj/ --documents 100000 --shard 3/16 \\\n      \
                  -o part3.safetensors\n  \
                  mpatch stats --merge part*.safetensors -o gptj.stats.safetensors")]
pub struct StatsArguments {
    /// Run this corpus through the model: text or JSON lines, one document a line
    #[arg(
        required_unless_present_any = ["import", "merge"],
        conflicts_with_all = ["import", "merge"],
        value_parser = corpus_path()
    )]
    corpus: Option<PathBuf>,
    /// Import the reference's `.npz` files, or a folder of them
    #[arg(long, num_args = 1.., value_name = "PATH", conflicts_with = "merge")]
    import: Vec<PathBuf>,
    /// Add up these statistics files
    #[arg(long, num_args = 2.., value_name = "FILE")]
    merge: Vec<PathBuf>,
    /// Run this model: a folder, or a weights file with its config and tokenizer beside it; within a history, the one
    /// that it remembers by default
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    device: DeviceArguments,
    /// Collect these layers instead of those that MEMIT edits in this model, e.g. `3,4,5`
    #[arg(long, value_delimiter = ',', value_name = "LAYERS", conflicts_with_all = ["import", "merge"])]
    layers: Option<Vec<usize>>,
    /// How much of the corpus.
    #[command(flatten)]
    amount: AmountArguments,
    /// Run this part of the documents only, e.g. `3/16`; `--merge` adds the parts up
    #[arg(long, value_name = "I/N", value_parser = shard, conflicts_with_all = ["import", "merge"])]
    shard: Option<Shard>,
    /// Write the statistics here; by default they are kept where `create` finds them
    #[arg(short, long, value_name = "FILE", value_parser = output_path())]
    output: Option<PathBuf>,
}

fn shard(text: &str) -> Result<Shard, String> {
    text.parse()
}

#[derive(Debug, Serialize)]
struct StatsReport {
    output: PathBuf,
    digest: FileDigest,
    base: WeightsId,
    /// Tokens by layer.
    tokens: BTreeMap<usize, u64>,
    /// How much of the corpus was asked for.
    amount: String,
    /// Which part of that, where others hold the rest.
    shard: Option<String>,
    /// Documents that were run, where that is known.
    documents: Option<u64>,
    inner: usize,
    #[serde(skip)]
    next: Option<String>,
}

/// Makes the statistics and writes them.
pub fn run(arguments: &StatsArguments, output: &Output) -> Result<(), CommandError> {
    arguments.amount.check(arguments.corpus.as_deref())?;
    let place = Place::of(arguments.output.as_deref())?;
    let statistics = if arguments.merge.is_empty() {
        let base = given_or_remembered(arguments.base.as_deref(), &arguments.store, output)?;
        let folder = open_folder(&base, output)?;
        match &arguments.corpus {
            Some(corpus) => compute(folder, corpus, arguments, output)?,
            None => import(&folder, &arguments.import, output)?,
        }
    } else {
        let merged = merge(&arguments.merge)?;
        if let Some(base) = &arguments.base {
            check_base(&merged, base, output)?;
        }
        merged
    };
    // Not worth stopping any more.
    last_step();
    let (place, written) = place.write(&statistics)?;
    // What is merged names no model.
    let base = match &arguments.base {
        Some(base) => format!(" --base {}", shell_word(base)),
        None if !arguments.merge.is_empty() => " --base MODEL".to_owned(),
        None => String::new(),
    };
    let drawn = written.provenance().drawn;
    let stats =
        arguments.output.as_ref().map_or_else(String::new, |place| format!(" --stats {}", shell_word(place)));
    output.report_done(&StatsReport {
        output: place,
        digest: written.digest(),
        base: written.provenance().base,
        tokens: written.counts().clone(),
        amount: drawn.amount_in_words(),
        shard: drawn.shard.map(|shard| shard.to_string()),
        documents: Some(drawn.documents).filter(|documents| *documents > 0),
        inner: statistics.inner,
        next: Some(match drawn.shard {
            Some(_) => "mpatch stats --merge PART... -o FILE".to_owned(),
            None => format!("mpatch create facts.json{base}{stats}"),
        }),
    })
}

impl StatsArguments {
    fn layers(&self, folder: &Folder) -> Result<Vec<usize>, CommandError> {
        if let Some(layers) = &self.layers {
            check_layers(layers, folder.config.layers)?;
            return Ok(layers.clone());
        }
        let Some(bytes) = folder.checkpoint.companion("memit.json")? else {
            return Ok(Hyperparameters::for_model(&folder.config).0.layers);
        };
        let path = folder.checkpoint.folder().join("memit.json");
        Ok(Hyperparameters::parse(&bytes).map_err(|error| edit_error(&path, error))?.layers)
    }
}

/// Where statistics go.
enum Place<'a> {
    /// A new file.
    File(&'a Path),
    /// Where `create` finds them.
    Cache(StatisticsCache),
}

impl<'a> Place<'a> {
    /// The place asked for, once it is known that it can be written: statistics may take hours.
    fn of(output: Option<&'a Path>) -> Result<Self, CommandError> {
        match output {
            Some(path) => refuse_existing(path).map(|()| Self::File(path)),
            None => StatisticsCache::writable().map(Self::Cache),
        }
    }

    fn write(&self, statistics: &Statistics) -> Result<(PathBuf, StatisticsFile), CommandError> {
        match self {
            Self::Cache(cache) => cache.store(statistics),
            Self::File(path) => {
                let written = statistics.write(path).and_then(|()| StatisticsFile::open(path));
                Ok((path.to_path_buf(), written.map_err(|error| edit_error(path, error))?))
            }
        }
    }
}

/// Loads the blocks that the keys come from, and no others: of GPT-J nine of 28.
fn compute(
    folder: Folder,
    corpus: &Path,
    arguments: &StatsArguments,
    output: &Output,
) -> Result<Statistics, CommandError> {
    let layers = arguments.layers(&folder)?;
    let device = arguments.device.find(output)?;
    let amount = arguments.amount.amount(folder.config.inner);
    let last = layers.iter().copied().max().unwrap_or_default();
    let path = folder.checkpoint.path().to_owned();
    let needed = folder
        .memory_size_bytes(last, Precision::F32)
        .saturating_add(sums_size_bytes(folder.config.inner, layers.len()));
    check_memory(
        &format!("`{}`: its weights and their second moments as f32", path.display()),
        needed,
        &device,
    )?;
    let base = weights_id(&folder.checkpoint, output)?;
    let model = {
        let progress = output.progress("loading", folder.size_bytes_up_to(last));
        let model = folder.load_up_to(last, &device, &|bytes| progress.add(bytes));
        model.map_err(|error| model_error(&path, error))?
    };
    compute_statistics(&model, base, &layers, Corpus { path: corpus, amount, shard: arguments.shard }, output)
}

fn merge(paths: &[PathBuf]) -> Result<Statistics, CommandError> {
    let open = |path: &PathBuf| StatisticsFile::open(path).map_err(|error| statistics_error(path, error));
    let files = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    statistics::merge(&files).map_err(|error| match error {
        EditError::Repeated { .. } => CommandError::new(ExitKind::Conflict, error.to_string())
            .hint("give each part and each text once: what is counted twice weighs twice"),
        EditError::Statistics { .. } => CommandError::new(ExitKind::Malformed, error.to_string())
            .hint("merge all shards of one run, or different text: of one model and the same layers"),
        error => edit_error(&paths[0], error),
    })
}

/// Refuses what was merged where the model that is named is another one.
fn check_base(merged: &Statistics, base: &Path, output: &Output) -> Result<(), CommandError> {
    let (made_on, found) =
        (merged.provenance.base, weights_id(&open_folder(base, output)?.checkpoint, output)?);
    if made_on == found {
        return Ok(());
    }
    let (path, made_on, found) = (base.display(), made_on.short(), found.short());
    let message = format!("the statistics were made on weights {made_on}, and `{path}` has {found}");
    Err(CommandError::new(ExitKind::WrongBase, message)
        .hint("name the model that they were made on, or none"))
}

/// The layers come by the command line, so that is what is wrong.
fn check_layers(layers: &[usize], count: usize) -> Result<(), CommandError> {
    let Some(missing) = layers.iter().find(|layer| **layer >= count) else { return Ok(()) };
    let message = format!("`--layers` names {missing}, but the model has {count}, counted from 0");
    Err(CommandError::new(ExitKind::Usage, message).hint("name layers that the model has"))
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
        // The reference puts other layers' inputs into the same folder.
        let mut found: Vec<_> = named
            .filter(|path| {
                path.extension().is_some_and(|ending| ending == "npz")
                    && layer_of_name(&name_of(path)).is_some()
            })
            .collect();
        found.sort();
        files.extend(found);
    }
    if files.is_empty() {
        return Err(CommandError::new(
            ExitKind::Usage,
            "there is no `.npz` file of an `mlp.fc_out` among what is to be imported",
        )
        .hint("the reference keeps them in `data/stats/MODEL/DATASET_stats`"));
    }
    Ok(files)
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn import(folder: &Folder, paths: &[PathBuf], output: &Output) -> Result<Statistics, CommandError> {
    let (inner, layers_of_model) = (folder.config.inner, folder.config.layers);
    let (mut layers, mut files) = (BTreeMap::new(), BTreeMap::new());
    let (mut corpora, mut samples) = (Vec::new(), BTreeSet::new());
    let paths = npz_files(paths)?;
    // Each layer's, and what one is read from.
    let sums = sums_size_bytes(inner, paths.len().min(layers_of_model) + 1);
    check_memory("the second moments", sums, &Device::Cpu)?;
    for path in paths {
        // Before its name is judged: of what is not there, nothing else is wrong.
        let file = std::fs::File::open(&path).map_err(|error| CommandError::io("open", &path, &error))?;
        let refuse = |what: String| {
            CommandError::new(ExitKind::Malformed, format!("`{}` {what}", path.display()))
                .hint("give the reference's own `.npz` files for this model")
        };
        let layer = layer_of_name(&name_of(&path)).ok_or_else(|| {
            refuse(
                "does not say its layer, as in `transformer.h.3.mlp.fc_out_float32_mom2_100000.npz`"
                    .to_owned(),
            )
        })?;
        if layer >= layers_of_model {
            let what = format!("is of layer {layer}, but the model has {layers_of_model}, counted from 0");
            return Err(refuse(what));
        }
        let imported = read_npz(file, Some(inner)).map_err(|error| {
            refuse(format!("cannot be imported as layer {layer}: {}", with_causes(&error)))
        })?;
        if let Some(first) = files.insert(layer, path.clone()) {
            let what =
                format!("is of layer {layer}, as `{}` is: name the files, one for each", first.display());
            return Err(refuse(what));
        }
        layers.insert(layer, imported.sum);
        samples.insert(imported.documents);
        corpora.push(file_digest(&path)?);
    }
    output.note("imported statistics do not name their model: that they are of this one is taken on trust");
    let amount = match Vec::from_iter(samples).as_slice() {
        [Some(documents)] => Some(Amount::Documents(*documents)),
        _ => None,
    };
    let provenance = Provenance {
        base: weights_id(&folder.checkpoint, output)?,
        tokenizer: folder.tokenizer.digest(),
        corpora,
        drawn: Drawn { amount, shard: None, documents: 0 },
        arithmetic: None,
    };
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
        if let Some(documents) = self.documents {
            let documents = count(documents as usize, "document");
            page.line(&format!("{documents} (asked for: {})", self.amount));
        }
        if let Some(shard) = &self.shard {
            page.line(&format!("shard {shard}: merge it with the others"));
        }
        page.line(&format!("digest {}, of base {}", self.digest.short(), self.base.short()));
    }

    fn next(&self) -> Option<String> {
        self.next.clone()
    }
}
