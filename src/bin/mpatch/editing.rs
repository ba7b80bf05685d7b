//! What the verbs that run a model do alike: open it, put a patch on it, find statistics, read facts.

use std::io::BufReader;
use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::checkpoint::CheckpointError;
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::edit::EditError;
use mpatch::edit::statistics::{Collected, Statistics, StatisticsFile, collect};
use mpatch::facts::FactsFile;
use mpatch::model::{Device, Model, ModelError, Network, TensorEdit, choose, device_name, is_out_of_memory};
use mpatch::patch::Patch;

use crate::commands::{open_checkpoint, read_input};
use crate::error::{CommandError, ExitKind, chain};
use crate::report::{Output, count};

/// The model that a command runs, and where.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Run this model: a folder, or a weights file with its config and tokenizer beside it
    #[arg(long, value_name = "MODEL")]
    pub base: PathBuf,
    /// Where the arithmetic runs.
    #[command(flatten)]
    pub device: DeviceArguments,
}

/// Where the arithmetic runs.
#[derive(Debug, Args)]
pub struct DeviceArguments {
    /// Run on `cpu`, `cuda` or `cuda:N`; a GPU where there is one by default
    #[arg(long)]
    pub device: Option<String>,
}

impl ModelArguments {
    /// Opens the model on its device.
    pub fn open(&self, output: &Output) -> Result<Model, CommandError> {
        open_model(&self.base, &self.device.find(output)?, output)
    }
}

impl DeviceArguments {
    /// The device asked for, or the best there is; says which one where there was a choice.
    pub fn find(&self, output: &Output) -> Result<Device, CommandError> {
        let choice = choose(self.device.as_deref()).map_err(|error| {
            CommandError::new(ExitKind::Device, error.to_string()).hint(
                "leave `--device` out, or run on the processor with `--device cpu`; `mpatch doctor` tells more",
            )
        })?;
        if let Some(reason) = &choice.reason {
            output.note(&format!("device: {} ({reason})", device_name(&choice.device)));
        }
        Ok(choice.device)
    }
}

/// Opens the model at `path`.
pub fn open_model(path: &Path, device: &Device, output: &Output) -> Result<Model, CommandError> {
    let size = open_checkpoint(path, output)?.weights_size_bytes();
    let progress = output.progress("loading", size);
    Model::open(path, device, &|bytes| progress.add(bytes)).map_err(|error| model_error(path, error))
}

/// The kind of device, as a recipe names it.
pub fn device_kind(device: &Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}

/// What to do when a device fails.
fn device_hint(error: &mpatch::model::DeviceError) -> &'static str {
    if is_out_of_memory(error) {
        return "its memory does not suffice: free it, name another with `--device cuda:N`, or try `--device cpu`";
    }
    "`mpatch doctor` examines the device; try `--device cpu`"
}

/// A model called `path` is refused, or failed.
pub fn model_error(path: &Path, error: ModelError) -> CommandError {
    let message = format!("`{}`: {}", path.display(), chain(&error));
    let refused = |kind, hint: &str| CommandError::new(kind, message).hint(hint);
    match error {
        // What `config.json` promises and the weights lack is the model's own fault, whatever the patch.
        ModelError::Checkpoint(error @ CheckpointError::MissingTensor { .. }) => {
            CommandError::new(ExitKind::Malformed, chain(&error)).hint(
                "the weights lack what `config.json` asks for: fetch the model again, with all its files",
            )
        }
        ModelError::Checkpoint(error) => error.into(),
        ModelError::Missing { .. } => CommandError::new(ExitKind::Malformed, chain(&error))
            .hint("give the folder that the model was downloaded to, with all its files"),
        ModelError::Config { .. } => {
            refused(ExitKind::Malformed, "give the model the `config.json` that it was published with")
        }
        ModelError::Unsupported { .. } => {
            refused(ExitKind::Unsupported, "give a GPT-J model, with its own `config.json`")
        }
        ModelError::Tokenizer { .. } => {
            refused(ExitKind::Malformed, "give the model the tokenizer files that it was published with")
        }
        ModelError::Tensor { .. } => {
            refused(ExitKind::Malformed, "give the weights and the `config.json` of one model, as floats")
        }
        ModelError::Device(error) => refused(ExitKind::Device, device_hint(&error)),
        ModelError::NoDevice { .. } => {
            refused(ExitKind::Device, "try `--device cpu`; `mpatch doctor` tells more")
        }
        ModelError::Text { .. } => refused(ExitKind::Malformed, "shorten the text, or leave it out"),
        _ => refused(ExitKind::Malformed, "`mpatch --help` tells what is expected"),
    }
}

/// An edit on the model called `path` is refused, or failed.
pub fn edit_error(path: &Path, error: EditError) -> CommandError {
    let malformed = |error: EditError| CommandError::new(ExitKind::Malformed, error.to_string());
    match error {
        EditError::Model(error) => model_error(path, error),
        EditError::Checkpoint(error) => error.into(),
        EditError::Fact { position, subject, source } => {
            if let EditError::Model(ModelError::Device(error)) = source.as_ref() {
                return CommandError::new(ExitKind::Device, chain(source.as_ref())).hint(device_hint(error));
            }
            // Whatever is wrong may well be that these texts are long.
            let problem = match *source {
                EditError::Template { template, what } => format!("{} {what}", excerpt(&template)),
                other => chain(&other),
            };
            let message = format!("fact {position}, {}: {problem}", excerpt(&subject));
            CommandError::new(ExitKind::Malformed, message)
                .hint("mend this fact in the facts file, or leave it out")
        }
        EditError::Statistics { .. } => malformed(error).hint("`mpatch stats` makes statistics for a model"),
        EditError::Hyperparameters { .. } | EditError::Contexts { .. } => {
            let message = format!("`{}`: {error}", path.display());
            CommandError::new(ExitKind::Malformed, message).hint("mend the file, or leave the option out")
        }
        EditError::Corpus { line, what } => {
            let message = format!("`{}`, line {line}: {what}", path.display());
            CommandError::new(ExitKind::Malformed, message)
                .hint("give text in UTF-8, or JSON objects with a `text`, one document a line")
        }
        _ => malformed(error).hint("`mpatch stats` makes statistics anew, of more text"),
    }
}

/// `text` in backticks, cut to a length that fits in a sentence.
pub fn excerpt(text: &str) -> String {
    const LENGTH_MAX: usize = 80;
    match text.char_indices().nth(LENGTH_MAX) {
        Some((cut, _)) => format!("`{}...`", &text[..cut]),
        None => format!("`{text}`"),
    }
}

/// Reads a facts file, or standard input for `-`; says which layout it is in, and what to beware of.
pub fn read_facts(path: &Path, limit: Option<usize>, output: &Output) -> Result<FactsFile, CommandError> {
    let name = path.to_string_lossy();
    let mut facts =
        FactsFile::parse(&read_input(path)?).map_err(|error| CommandError::facts(&name, &error))?;
    facts.records.truncate(limit.unwrap_or(usize::MAX));
    output.note(&format!("{name}: {} ({})", count(facts.records.len(), "fact"), facts.layout));
    for warning in facts.warnings() {
        output.note(&format!("warning: {warning}"));
    }
    Ok(facts)
}

/// `model` with `patch` on it; the model must be in the state that the patch is for.
pub fn with_patch(model: &Model, patch: &Patch, patch_path: &Path) -> Result<Network, CommandError> {
    let name = patch_path.to_string_lossy();
    let answer = mpatch::apply::plan(&model.checkpoint, patch)
        .map_err(|error| CommandError::operation(&name, error))?;
    let binding = match answer {
        mpatch::apply::Answer::Applies(plan) => plan.binding,
        mpatch::apply::Answer::AlreadyApplied { .. } => {
            let message = format!("`{name}` is already applied to `{}`", model.checkpoint.path().display());
            return Err(CommandError::new(ExitKind::Conflict, message).hint("give the base itself"));
        }
        mpatch::apply::Answer::WrongBase(mismatch) => {
            let message = format!("`{name}` is not for `{}`: {mismatch}", model.checkpoint.path().display());
            let hint = format!("`mpatch show {name}` tells which base it is for");
            return Err(CommandError::new(ExitKind::WrongBase, message).hint(hint));
        }
    };
    let tensors = &patch.manifest().bindings[binding].tensors;
    let edits: Vec<TensorEdit<'_>> = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| {
            let terms = tensor.terms.iter().map(|&index| patch.term(index)).collect::<Result<_, _>>()?;
            let correction = patch.correction(binding, index)?;
            Ok(TensorEdit { name: &tensor.name, terms, correction })
        })
        .collect::<Result<_, mpatch::patch::PatchError>>()
        .map_err(|error| CommandError::patch(&name, &error))?;
    model.with_edits(edits).map_err(|error| model_error(model.checkpoint.path(), error))
}

/// The state that the model's weights are in; reads all of them.
pub fn weights_id(model: &Model, output: &Output) -> Result<WeightsId, CommandError> {
    let progress = output.progress("hashing", model.checkpoint.weights_size_bytes());
    Ok(model.checkpoint.weights_id_with(&|bytes| progress.add(bytes))?)
}

/// Computes the statistics of `layers` over `corpus`, with progress.
pub fn compute_statistics(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    corpus: &Path,
    output: &Output,
) -> Result<Statistics, CommandError> {
    let failed = |error: std::io::Error| CommandError::io("read", corpus, &error);
    let file = std::fs::File::open(corpus).map_err(failed)?;
    let progress = output.progress("statistics", file.metadata().map_err(failed)?.len());
    let mut reader = BufReader::new(file);
    let tell = |collected: Collected| progress.reach(collected.bytes);
    collect(model, base, layers, &mut reader, &tell).map_err(|error| match error {
        EditError::Corpus { .. } => edit_error(corpus, error),
        error => edit_error(model.checkpoint.path(), error),
    })
}

/// Where statistics are kept between runs: by base, corpus and layers.
#[derive(Debug)]
pub struct StatisticsCache {
    folder: PathBuf,
}

impl StatisticsCache {
    /// The cache of this user: `MPATCH_CACHE_DIR`, else `XDG_CACHE_HOME/mpatch`, else `~/.cache/mpatch`.
    pub fn of_user() -> Option<Self> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("MPATCH_CACHE_DIR")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("mpatch")))
            .or_else(|| Some(set("HOME")?.join(".cache/mpatch")))?;
        Some(Self { folder: root.join("statistics") })
    }

    /// The folder, which need not be there yet.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file for one base, corpus and choice of layers.
    pub fn path(&self, base: WeightsId, corpus: FileDigest, layers: &[usize]) -> PathBuf {
        let layers: Vec<_> = layers.iter().map(ToString::to_string).collect();
        self.folder.join(format!("{}-{}-{}.safetensors", base.short(), corpus.short(), layers.join("_")))
    }

    /// The cached file of this base that holds `layers`, the one made from most tokens where there are several.
    pub fn find(&self, base: WeightsId, inner: usize, layers: &[usize]) -> Option<(PathBuf, StatisticsFile)> {
        let entries = std::fs::read_dir(&self.folder).ok()?;
        let named = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let ours = named.filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&base.short()))
        });
        let fitting = ours.filter_map(|path| {
            let file = StatisticsFile::open(&path).ok()?;
            file.check(base, inner, layers).ok()?;
            let tokens = file.counts().values().copied().max()?;
            Some((tokens, path, file))
        });
        // The path decides between equals, so that the choice does not depend on the order of a folder.
        let best = fitting.max_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        best.map(|(_, path, file)| (path, file))
    }

    /// Makes sure that the folder is there.
    pub fn prepare(&self) -> Result<(), CommandError> {
        std::fs::create_dir_all(&self.folder)
            .map_err(|error| CommandError::io("create", &self.folder, &error))
    }

    /// Writes statistics into the cache.
    pub fn store(&self, path: &Path, statistics: &Statistics) -> Result<(), CommandError> {
        self.prepare()?;
        statistics.write(path).map_err(|error| edit_error(path, error))
    }
}

/// Digest of a whole file, read in blocks.
pub fn file_digest(path: &Path) -> Result<FileDigest, CommandError> {
    let failed = |error: std::io::Error| CommandError::io("read", path, &error);
    let file = std::fs::File::open(path).map_err(failed)?;
    FileDigest::of_reader(file).map_err(failed)
}

/// Statistics for `layers` of `model`: the file given, else one cached for this base, else computed from `corpus`.
pub fn find_statistics(
    model: &Model,
    base: WeightsId,
    layers: &[usize],
    given: Option<&Path>,
    corpus: Option<&Path>,
    output: &Output,
) -> Result<StatisticsFile, CommandError> {
    let inner = model.network.config().inner;
    let open = |path: &Path| StatisticsFile::open(path).map_err(|error| edit_error(path, error));
    if let Some(path) = given {
        let file = open(path)?;
        file.check(base, inner, layers).map_err(|error| {
            let refused = edit_error(path, error);
            let of_another_base = file.provenance().base != base;
            CommandError { kind: if of_another_base { ExitKind::WrongBase } else { refused.kind }, ..refused }
        })?;
        return Ok(file);
    }
    let Some(cache) = StatisticsCache::of_user() else {
        let message = "there is no place for cached statistics: neither HOME nor MPATCH_CACHE_DIR is set";
        return Err(CommandError::new(ExitKind::Io, message).hint("make them with `mpatch stats -o FILE`"));
    };
    let Some(corpus) = corpus else {
        let Some((path, file)) = cache.find(base, inner, layers) else {
            let message = "there are no statistics of this model: MEMIT needs the second moments of its keys";
            return Err(CommandError::new(ExitKind::Usage, message).hint(
                "give `--corpus FILE` (text, one document a line) to compute them, or `--stats FILE`",
            ));
        };
        output.note(&format!("statistics: {} (cached)", path.display()));
        return Ok(file);
    };
    let path = cache.path(base, file_digest(corpus)?, layers);
    if let Ok(file) = StatisticsFile::open(&path) {
        file.check(base, inner, layers).map_err(|error| edit_error(&path, error))?;
        output.note(&format!("statistics: {} (cached)", path.display()));
        return Ok(file);
    }
    output.note(&format!("statistics: computing them from {}", corpus.display()));
    let statistics = compute_statistics(model, base, layers, corpus, output)?;
    cache.store(&path, &statistics)?;
    output.note(&format!("statistics: kept in {}", path.display()));
    open(&path)
}

/// Output of a command that will write `path`: refuses a file that exists before any work is done.
pub fn refuse_existing(path: &Path) -> Result<(), CommandError> {
    if path.symlink_metadata().is_ok() {
        return Err(CheckpointError::OutputExists { path: path.to_owned() }.into());
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A file that can be created here now can be created after hours of work, too.
    tempfile::tempfile_in(folder)
        .map(|_| ())
        .map_err(|error| CommandError::io("create a file in", folder, &error))
}
