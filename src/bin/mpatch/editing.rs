//! What the verbs that run a model do alike: open it, put a patch on it, read facts.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use mpatch::checkpoint::{Checkpoint, CheckpointError};
use mpatch::digest::WeightsId;
use mpatch::edit::EditError;
use mpatch::evaluate::{TooLong, too_long};
use mpatch::facts::{FactsError, FactsFile, Place, Record, excerpt};
use mpatch::model::{
    Device, Folder, Model, ModelError, Network, Precision, TensorEdit, WayBack, choose, device_name,
    is_device_name, is_out_of_memory,
};
use mpatch::operation::{Answer, Direction};
use mpatch::patch::{Patch, PatchError};
use mpatch::verify::State;

use crate::commands::{open_checkpoint, patch_word, planned, read_input, refuse_folder};
use crate::error::{CommandError, ExitKind, output_hint, refuse_lfs_pointer, with_causes};
use crate::history::StoreArguments;
use crate::memory::check_memory;
use crate::places::folder_of;
use crate::report::{Output, count};
use crate::standing::model_path_by;

/// The model that a command runs, and where.
#[derive(Debug, Args)]
pub struct ModelArguments {
    /// Run this model: a folder, or a weights file with its config and tokenizer beside it; within a history, the one
    /// that it remembers by default
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArguments,
    #[command(flatten)]
    pub device: DeviceArguments,
    #[command(flatten)]
    pub precision: PrecisionArguments,
}

/// Where the arithmetic runs.
#[derive(Debug, Clone, Args)]
pub struct DeviceArguments {
    /// Run on `cpu`, `cuda` or `cuda:N`; a GPU where there is one by default
    #[arg(long, value_parser = name_of_device)]
    pub device: Option<String>,
}

/// What a model's matrices are kept and multiplied in.
#[derive(Debug, Clone, Copy, Args)]
pub struct PrecisionArguments {
    /// Keep the frozen matrices in `f32`, in `bf16` for half the memory, or multiply them in `tf32` on CUDA
    #[arg(long, default_value = "f32", value_parser = precision_by_name)]
    pub precision: Precision,
}

/// Reads a precision.
pub fn precision_by_name(text: &str) -> Result<Precision, String> {
    text.parse()
}

fn name_of_device(text: &str) -> Result<String, String> {
    match is_device_name(text) {
        true => Ok(text.to_owned()),
        false => Err("expected `cpu`, `cuda` or `cuda:N`".to_owned()),
    }
}

/// Reads the number of facts, records or commits that are taken: at least one.
pub fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

impl ModelArguments {
    /// No model is named.
    pub fn is_left_out(&self) -> bool {
        self.base.is_none()
    }

    /// Opens the model that was given, or the one of the history, on its device.
    pub fn open(&self, output: &Output) -> Result<Model, CommandError> {
        let path = given_or_remembered(self.base.as_deref(), &self.store, output)?;
        open_model_in(&path, &self.device.find(output)?, self.precision.precision, output)
    }
}

/// The model that was given, or the one of the history.
pub fn given_or_remembered(
    given: Option<&Path>,
    store: &StoreArguments,
    output: &Output,
) -> Result<PathBuf, CommandError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    match store.open_if_any(output)? {
        Some(store) => model_path_by("--base MODEL", &store, None),
        None => Err(CommandError::new(ExitKind::Usage, "no model is named")
            .hint("give it with `--base MODEL`, or begin a history with `mpatch init --base MODEL`")),
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

/// Opens the model at `path`, its matrices in this precision.
pub fn open_model_in(
    path: &Path,
    device: &Device,
    precision: Precision,
    output: &Output,
) -> Result<Model, CommandError> {
    let folder = open_folder(path, output)?;
    let weights = format!("`{}`: its weights as {}", path.display(), precision.name());
    check_memory(&weights, folder.memory_size_bytes(usize::MAX, precision), device)?;
    let progress = output.progress("loading", folder.checkpoint.weights_size_bytes());
    let model = folder.load(device, precision, &|bytes| progress.add(bytes));
    model.map_err(|error| model_error(path, error))
}

/// Opens the folder of the model at `path`, and loads nothing yet.
pub fn open_folder(path: &Path, output: &Output) -> Result<Folder, CommandError> {
    // Puts right what an interrupted change in place left.
    open_checkpoint(path, output)?;
    Folder::open(path).map_err(|error| model_error(path, error))
}

/// What to do where weights are no numbers.
const NAN_HINT: &str = "fetch the model again, or take it as it was before it was changed";

/// What to do when a device fails.
fn device_hint(error: &mpatch::model::DeviceError) -> &'static str {
    if is_out_of_memory(error) {
        return "its memory does not suffice: `--precision bf16` takes half of what f32 does where a command has it; else free it, name another with `--device cuda:N`, or try `--device cpu`";
    }
    "`mpatch doctor` examines the device; try `--device cpu`"
}

/// A model called `path` is refused, or failed.
pub fn model_error(path: &Path, error: ModelError) -> CommandError {
    let message = format!("`{}`: {}", path.display(), with_causes(&error));
    let refused = |kind, hint: &str| CommandError::new(kind, message).hint(hint);
    match error {
        // What `config.json` promises and the weights lack is the model's own fault, whatever the patch.
        ModelError::Checkpoint(error @ CheckpointError::MissingTensor { .. }) => {
            CommandError::new(ExitKind::Malformed, with_causes(&error)).hint(
                "the weights lack what `config.json` asks for: fetch the model again, with all its files",
            )
        }
        ModelError::Checkpoint(error) => error.into(),
        ModelError::Missing { .. } => CommandError::new(ExitKind::Malformed, with_causes(&error))
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
            let hint = "give the weights and the `config.json` of one model, as F32, F16 or BF16";
            refused(ExitKind::Malformed, hint)
        }
        ModelError::Device(error) => refused(ExitKind::Device, device_hint(&error)),
        // Devices are found before, so this is a precision that the device does not have.
        ModelError::NoDevice { .. } => {
            refused(ExitKind::Device, "leave `--precision` out, or name a GPU with `--device cuda`")
        }
        ModelError::NotANumber { .. } => refused(ExitKind::Malformed, NAN_HINT),
        ModelError::Text { .. } => refused(ExitKind::Malformed, "shorten the text, or leave it out"),
        ModelError::Update { .. } => {
            refused(ExitKind::Malformed, "do not use this patch; `mpatch verify` tells more")
        }
        _ => refused(ExitKind::Malformed, "`mpatch --help` tells what is expected"),
    }
}

/// An edit on the model called `path` is refused, or failed.
pub fn edit_error(path: &Path, error: EditError) -> CommandError {
    let malformed = |error: EditError| CommandError::new(ExitKind::Malformed, with_causes(&error));
    match error {
        EditError::Model(error) => model_error(path, error),
        EditError::Checkpoint(error) => error.into(),
        EditError::Fact { position, subject, source } => {
            if let EditError::Model(ModelError::Device(error)) = source.as_ref() {
                return CommandError::new(ExitKind::Device, with_causes(source.as_ref()))
                    .hint(device_hint(error));
            }
            let hint = match source.as_ref() {
                EditError::NotANumber { steps: 0 } => NAN_HINT,
                EditError::NotANumber { .. } => "lower `v_lr` in the hyperparameters",
                EditError::LossLayer { .. } => {
                    "edit earlier layers, or raise `v_loss_layer` in the hyperparameters: the model's last layer is the rule"
                }
                _ => "mend this fact in the facts file, or leave it out",
            };
            // Whatever is wrong may well be that these texts are long.
            let problem = match *source {
                EditError::Template { template, what } => format!("{} {what}", excerpt(&template)),
                other => with_causes(&other),
            };
            let message = format!("fact {position}, {}: {problem}", excerpt(&subject));
            CommandError::new(ExitKind::Malformed, message).hint(hint)
        }
        EditError::Statistics { .. } => malformed(error).hint("`mpatch stats` makes statistics for a model"),
        EditError::Layers { .. } | EditError::Hyperparameters { .. } | EditError::Contexts { .. } => {
            let message = format!("`{}`: {error}", path.display());
            let is_yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
            CommandError::new(ExitKind::Malformed, message).hint(match is_yaml {
                true => "EasyEdit's YAML is not read: give JSON, such as memit's `hparams/MEMIT/EleutherAI_gpt-j-6B.json`",
                false => "mend the file, or name another",
            })
        }
        EditError::Corpus { line, what } => {
            let message = format!("`{}`, line {line}: {what}", path.display());
            CommandError::new(ExitKind::Malformed, message)
                .hint("give text in UTF-8, or JSON objects with a `text`, one document a line")
        }
        EditError::Singular { .. } => malformed(error)
            .hint("no text gives sums such as the statistics hold: `mpatch stats` makes them anew"),
        EditError::NotANumber { .. } => {
            let message = format!("`{}`: {error}", path.display());
            CommandError::new(ExitKind::Malformed, message).hint(NAN_HINT)
        }
        _ => malformed(error).hint("`mpatch --help` tells what is expected"),
    }
}

/// Reads a facts file, or standard input for `-`; says which layout it is in, and what to beware of.
pub fn read_facts(path: &Path, limit: Option<usize>, output: &Output) -> Result<FactsFile, CommandError> {
    read_facts_by(FactsFile::parse_first, path, limit, output)
}

/// As [`read_facts`], for records that a model is only asked about: they may contradict each other.
pub fn read_questions(path: &Path, limit: Option<usize>, output: &Output) -> Result<FactsFile, CommandError> {
    read_facts_by(FactsFile::parse_questions, path, limit, output)
}

fn read_facts_by(
    parse: fn(&[u8], usize) -> Result<FactsFile, FactsError>,
    path: &Path,
    limit: Option<usize>,
    output: &Output,
) -> Result<FactsFile, CommandError> {
    let name = path.to_string_lossy();
    refuse_folder(path, "a file of facts")?;
    let bytes = read_input(path)?;
    refuse_lfs_pointer(path, &bytes)?;
    let facts =
        parse(&bytes, limit.unwrap_or(usize::MAX)).map_err(|error| CommandError::facts(&name, &error))?;
    output.note(&format!("{name}: {} ({})", count(facts.records.len(), "fact"), facts.layout));
    for warning in facts.warnings() {
        output.warn(&warning);
    }
    Ok(facts)
}

/// Refuses facts of `path` with a question that the model cannot be asked: now, not after the hours that an edit takes.
pub fn check_questions(model: &Model, facts: &FactsFile, path: &Path) -> Result<(), CommandError> {
    let records = facts.records.iter().enumerate();
    check_length(too_long(&model.tokenizer, model.network.config(), records), path, model.checkpoint.path())
}

/// As [`check_questions`], of the records at these places in the file `path`, and before the model at `base` is loaded.
pub fn check_questions_unloaded<'r>(
    base: &Path,
    records: impl Iterator<Item = (usize, &'r Record)>,
    path: &Path,
    output: &Output,
) -> Result<(), CommandError> {
    let folder = open_folder(base, output)?;
    check_length(too_long(&folder.tokenizer, &folder.config, records), path, base)
}

fn check_length(
    found: Result<Option<TooLong>, ModelError>,
    path: &Path,
    model: &Path,
) -> Result<(), CommandError> {
    let Some(found) = found.map_err(|error| model_error(model, error))? else { return Ok(()) };
    let TooLong { record, id, prompt, target, tokens, positions } = found;
    let place = Place { position: record + 1, id, line: None };
    let message = format!(
        "`{}`, {place}: {} with {} has {tokens} tokens, and the model's context only {positions}",
        path.display(),
        excerpt(&prompt),
        excerpt(&target),
    );
    Err(CommandError::new(ExitKind::Malformed, message).hint("shorten that text, or leave it out"))
}

/// What a patch does to each tensor of one of its bindings.
pub fn edits_of(patch: &Patch, binding: usize) -> Result<Vec<TensorEdit<'_>>, PatchError> {
    let tensors = patch.manifest().bindings[binding].tensors.iter().enumerate();
    let edit = tensors.map(|(index, tensor)| {
        let terms = tensor.terms.iter().map(|&index| patch.term(index)).collect::<Result<_, _>>()?;
        let correction = patch.correction(binding, index)?;
        Ok(TensorEdit { name: &tensor.name, terms, correction, way_back: None })
    });
    edit.collect()
}

/// What taking a patch back does to each tensor of one of its bindings.
pub fn edits_back(patch: &Patch, binding: usize) -> Result<Vec<TensorEdit<'_>>, PatchError> {
    let tensors = patch.manifest().bindings[binding].tensors.iter().enumerate();
    let back = tensors.zip(edits_of(patch, binding)?).map(|((index, tensor), edit)| {
        let way_back = WayBack { undo: patch.undo(binding, index)?, before: tensor.before };
        Ok(TensorEdit { way_back: Some(way_back), ..edit })
    });
    back.collect()
}

/// A model without a patch and with it, whichever of the two its weights hold.
pub struct BothStates {
    /// What the weights hold.
    pub held: State,
    /// Without the patch.
    pub before: Network,
    /// With it.
    pub after: Network,
}

/// `model` without `patch` and with it: the state that its weights are not in is made in memory.
pub fn both_states(
    model: &Model,
    patch: &Patch,
    patch_path: &Path,
    output: &Output,
) -> Result<BothStates, CommandError> {
    let name = patch_path.to_string_lossy();
    let (held, edits) = match planned(&model.checkpoint, patch, &name, Direction::Apply, output)? {
        Answer::Fits(plan) => (State::Base, edits_of(patch, plan.binding)),
        Answer::Done { binding, .. } => (State::Edited, edits_back(patch, binding)),
        Answer::Elsewhere(mismatch) => {
            let message = format!("`{name}` is not for `{}`: {mismatch}", model.checkpoint.path().display());
            let word = patch_word(patch_path);
            let hint = format!("`mpatch show {word}` tells which base it is for");
            return Err(CommandError::new(ExitKind::WrongBase, message).hint(hint));
        }
    };
    let edits = edits.map_err(|error| CommandError::patch(&name, &error))?;
    let made = model.with_edits(edits).map_err(|error| model_error(model.checkpoint.path(), error))?;
    let network = model.network.clone();
    Ok(match held {
        State::Base => BothStates { held, before: network, after: made },
        State::Edited => BothStates { held, before: made, after: network },
    })
}

/// The state that weights are in; reads all of them.
pub fn weights_id(weights: &Checkpoint, output: &Output) -> Result<WeightsId, CommandError> {
    let progress = output.progress("hashing", weights.weights_size_bytes());
    Ok(weights.weights_id_with(&|bytes| progress.add(bytes))?)
}

/// Output of a command that will write `path`: refuses a file that exists before any work is done.
pub fn refuse_existing(path: &Path) -> Result<(), CommandError> {
    if path.symlink_metadata().is_ok() {
        return Err(CheckpointError::OutputExists { path: path.to_owned() }.into());
    }
    let folder = folder_of(path);
    // A file that can be created here now can be created after hours of work, too.
    tempfile::tempfile_in(folder)
        .map(|_| ())
        .map_err(|error| CommandError::io("create a file in", folder, &error).hint(output_hint(&error)))
}
