//! `mpatch diff`: what sets two patches or two checkpoints apart, or a checkpoint and a state of the history; of two
//! checkpoints it can make the patch.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::checkpoint::Checkpoint;
use mpatch::diff::{
    Change, CheckpointDiff, CheckpointOptions, FactChange, FactsDiff, FieldChange, PatchDiff, Side,
    TensorDiff, ToldOtherwise, UpdateDiff, UpdateSize, diff_checkpoints, diff_checkpoints_size_bytes,
    diff_patches,
};
use mpatch::digest::{FileDigest, PatchId};
use mpatch::extract::{ExtractError, ExtractedTensor, Form, extract};
use mpatch::facts::shortened;
use mpatch::model::{TokenizerFiles, architecture_of};
use mpatch::operation::OperationError;
use mpatch::patch::Patch;
use mpatch::patch::layout::MAGIC;
use mpatch::patch::manifest::{Base, Fact};
use serde::Serialize;

use super::create::AboutArguments;
use super::show::fact_line;
use super::{is_stdin, names_a_file, open_checkpoint, open_patch_file, patch_word, states};
use crate::args::output_path;
use crate::editing::refuse_existing;
use crate::error::{CommandError, ExitKind, with_causes};
use crate::history::{StoreArguments, state_named};
use crate::job::{TOOL, encoded};
use crate::keys::{SignatureReport, SigningArguments, write_signed};
use crate::report::{Output, Page, Report, count, shell_word, size};

#[derive(Debug, Args)]
#[command(
    after_help = "Ends with exit code 1 where the two differ, 0 where they are the same or a patch was made.\n\n\
                  Examples:\n  mpatch diff old.mpatch new.mpatch\n  \
                  mpatch diff old.mpatch main\n  \
                  mpatch diff gptj/ gptj-edited/\n  \
                  mpatch diff gptj/ gptj-edited/ -o edits.mpatch\n  \
                  mpatch diff gptj-edited/\n  \
                  mpatch diff gptj-edited/ main~2\n\n\
                  Of a file and a state that have one name, the file is meant; `refs/heads/NAME` is the branch.",
    mut_args(|argument| match argument.get_id().as_str() {
        "title" | "author" | "licence" | "key" | "no_sign" => argument.requires("output"),
        _ => argument,
    })
)]
pub struct DiffArguments {
    /// The first patch or checkpoint; a patch of the history by its id, or by a revision
    first: PathBuf,
    /// The second, of the same kind; or a state of the history, for a checkpoint; without it, all states
    second: Option<PathBuf>,
    /// Write a patch that makes the second checkpoint of the first, exactly
    #[arg(short, long, value_name = "PATCH", value_parser = output_path())]
    output: Option<PathBuf>,
    /// Look for so many singular values of each tensor's change; 0 leaves its effective rank out
    #[arg(long, value_name = "COUNT", default_value_t = 64, conflicts_with = "output")]
    singular_values: usize,
    /// What the patch says about itself.
    #[command(flatten)]
    about: AboutArguments,
    #[command(flatten)]
    signing: SigningArguments,
    #[command(flatten)]
    store: StoreArguments,
}

/// Compares the two, or makes the patch.
pub fn run(arguments: &DiffArguments, output: &Output) -> Result<ExitKind, CommandError> {
    let first = &arguments.first;
    let kept = recorded(arguments, first)?;
    let is_first_patch = kept.is_some() || is_patch(first)?;
    let second = match &arguments.second {
        Some(second) if names_a_file(second) || is_first_patch => second,
        revision if !is_first_patch => return with_history(arguments, revision.as_deref(), output),
        _ => {
            let message =
                format!("`{}` is a patch, and there is no second one to compare it with", first.display());
            return Err(CommandError::new(ExitKind::Usage, message)
                .hint("name another patch; states of the history are compared with checkpoints"));
        }
    };
    if is_stdin(first) && is_stdin(second) {
        return Err(CommandError::new(ExitKind::Usage, "both patches are to come from standard input")
            .hint("name a file for one of them"));
    }
    let kept = (kept, recorded(arguments, second)?);
    match (is_first_patch, kept.1.is_some() || is_patch(second)?, &arguments.output) {
        (true, true, None) => patches(arguments, second, kept, output),
        (true, true, Some(_)) => Err(CommandError::new(
            ExitKind::Usage,
            "a patch can be made of two checkpoints, not of two patches",
        )
        .hint("`mpatch stack` makes one patch of several")),
        (false, false, None) => checkpoints(arguments, second, output),
        (false, false, Some(place)) => extracted(arguments, second, place, output).map(|()| ExitKind::Done),
        (true, false, _) if kept.0.is_some() => {
            let message = format!(
                "`{}` is a state of the history, or a patch of it, and `{}` is a checkpoint",
                first.display(),
                second.display()
            );
            let (revision, checkpoint) = (shell_word(first), shell_word(second));
            Err(CommandError::new(ExitKind::Usage, message)
                .hint(format!("`mpatch diff {checkpoint} {revision}` compares a checkpoint with a state")))
        }
        (one, _, _) => {
            let (patch, other) = if one { (first, second) } else { (second, first) };
            let message =
                format!("`{}` is a patch and `{}` is a checkpoint", patch.display(), other.display());
            let (patch, other) = (patch_word(patch), shell_word(other));
            Err(CommandError::new(ExitKind::Usage, message)
                .hint(format!("`mpatch verify {patch} --base {other}` tells whether they belong together")))
        }
    }
}

/// The patch that the history has by a name which is that of no file.
fn recorded(arguments: &DiffArguments, name: &Path) -> Result<Option<Patch>, CommandError> {
    if names_a_file(name) { Ok(None) } else { arguments.store.recorded_patch(name) }
}

/// A checkpoint against what the history knows of.
fn with_history(
    arguments: &DiffArguments,
    revision: Option<&Path>,
    output: &Output,
) -> Result<ExitKind, CommandError> {
    let first = &arguments.first;
    if arguments.output.is_some() {
        let message =
            "a patch can be made of two checkpoints, not of a checkpoint and a state of the history";
        return Err(CommandError::new(ExitKind::Usage, message)
            .hint("`mpatch checkout REVISION -o MODEL` writes the state's checkpoint"));
    }
    let missing = |path: &Path| {
        let error = std::fs::File::open(path).err().unwrap_or(std::io::ErrorKind::NotFound.into());
        CommandError::io("open", path, &error)
            .hint("name a file; or a state of the history: `mpatch log` lists what there is")
    };
    let store = match (arguments.store.open(), revision) {
        // Whoever names two things and is in no history means two files.
        (Err(error), Some(path)) if error.kind == ExitKind::Usage && arguments.store.store.is_none() => {
            return Err(missing(path));
        }
        (store, _) => store?,
    };
    let revision = match revision {
        None => None,
        Some(path) => {
            let name = path.to_str().unwrap_or_default();
            let found = state_named(&store, name)?.map(|commit| (name, commit));
            Some(found.ok_or_else(|| missing(path))?)
        }
    };
    states::run(&store, first, revision, output)
}

/// Told by the first bytes; what comes through a pipe can be read once, and can only be a patch.
fn is_patch(path: &Path) -> Result<bool, CommandError> {
    if is_stdin(path) {
        return Ok(true);
    }
    let failed = |error: std::io::Error| CommandError::io("open", path, &error);
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() {
        return Ok(!about.is_dir());
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut start).map_err(failed)?;
    Ok(start == MAGIC)
}

fn answer(is_same: bool) -> ExitKind {
    if is_same { ExitKind::Done } else { ExitKind::Differs }
}

/// `kept` are those that the history has.
fn patches(
    arguments: &DiffArguments,
    second: &Path,
    kept: (Option<Patch>, Option<Patch>),
    output: &Output,
) -> Result<ExitKind, CommandError> {
    let first = &arguments.first;
    let read = |kept: Option<Patch>, path: &Path| kept.map_or_else(|| open_patch_file(path), Ok);
    let (one, other) = (read(kept.0, first)?, read(kept.1, second)?);
    let diff = diff_patches(&one, &other).map_err(|error| {
        let path = match error.side {
            Side::First => first,
            Side::Second => second,
        };
        CommandError::operation(&path.to_string_lossy(), error.source)
    })?;
    let answer = answer(diff.is_same());
    // What came by standard input is gone.
    let shown = if is_stdin(second) { first } else { second };
    let shown = shown.to_owned();
    output.report(&PatchReport { first: first.to_owned(), second: second.to_owned(), diff, shown })?;
    Ok(answer)
}

fn checkpoints(arguments: &DiffArguments, second: &Path, output: &Output) -> Result<ExitKind, CommandError> {
    let first = &arguments.first;
    let (one, other) = (open_checkpoint(first, output)?, open_checkpoint(second, output)?);
    let options =
        CheckpointOptions { singular_values: arguments.singular_values, ..CheckpointOptions::default() };
    let progress = output.progress("comparing", diff_checkpoints_size_bytes(&one, &other));
    let (announce, read) = (|bytes| progress.expect(bytes), |bytes| progress.add(bytes));
    let diff = diff_checkpoints(&one, &other, options, &announce, &read).map_err(difference_error)?;
    drop(progress);
    let answer = answer(diff.is_same());
    output.report(&WeightsReport { first: first.to_owned(), second: second.to_owned(), diff })?;
    Ok(answer)
}

fn extracted(
    arguments: &DiffArguments,
    second: &Path,
    place: &Path,
    output: &Output,
) -> Result<(), CommandError> {
    refuse_existing(place)?;
    let mut signer = arguments.signing.signer()?;
    let (base, edited) = (open_checkpoint(&arguments.first, output)?, open_checkpoint(second, output)?);
    let progress = output.progress("extracting", diff_checkpoints_size_bytes(&base, &edited));
    let about = arguments.about.about();
    let (announce, read) = (|bytes| progress.expect(bytes), |bytes| progress.add(bytes));
    let found = extract(&base, &edited, model_of(&base)?, TOOL, about, &announce, &read);
    let found = found.map_err(|error| extract_error(&arguments.first, second, error))?;
    drop(progress);
    let mut patch = encoded(&found.draft, "the extracted patch")?;
    let signature = write_signed(&mut patch, signer.as_mut(), None, place)?;
    let stored = |index: u32| patch.manifest().sections[index as usize].stored_size;
    let tensors =
        patch.manifest().bindings[0].tensors.iter().zip(found.tensors).map(|(tensor, extracted)| {
            let terms = tensor.terms.iter().map(|&index| &patch.manifest().terms[index as usize]);
            let terms = terms.flat_map(|term| {
                use mpatch::patch::manifest::IntegersEntry;
                let integers = match term.integers {
                    IntegersEntry::LowRank { left, right, .. } => vec![left, right],
                    IntegersEntry::Dense { section } => vec![section],
                };
                integers.into_iter().chain([term.row_scales, term.column_scales])
            });
            ExtractedReport {
                extracted,
                terms_size_bytes: terms.map(stored).sum(),
                correction_size_bytes: tensor.correction.map_or(0, stored),
                undo_size_bytes: stored(tensor.undo),
            }
        });
    let report = ExtractReport {
        output: place.to_owned(),
        base: arguments.first.clone(),
        patch_id: patch.id(),
        size_bytes: patch.size_bytes(),
        signature,
        tensors: tensors.collect(),
    };
    output.report_done(&report)
}

/// What the patch is for, as far as files beside the weights tell.
fn model_of(base: &Checkpoint) -> Result<Base, CommandError> {
    let config = base.companion("config.json")?.unwrap_or_default();
    // As `create` has it, so that `stack` knows patches of both kinds as those of one model.
    let tokenizer = TokenizerFiles::beside(base)?;
    let tokenizer = tokenizer.map_or_else(FileDigest::of_nothing, |files| files.digest());
    let architecture = architecture_of(&config).unwrap_or_else(|| "unknown".to_owned());
    Ok(Base { architecture, config: FileDigest::of(&config), tokenizer })
}

/// Two checkpoints that cannot be compared: no patch is to blame.
fn difference_error(error: OperationError) -> CommandError {
    match error {
        OperationError::Factors { .. } => CommandError::new(ExitKind::Malformed, with_causes(&error))
            .hint("`--singular-values 0` leaves out in how many directions tensors change"),
        error => CommandError::operation("the difference", error),
    }
}

fn extract_error(first: &Path, second: &Path, error: ExtractError) -> CommandError {
    let names = format!("`{}` and `{}`", first.display(), second.display());
    let message = format!("{names}: {}", with_causes(&error));
    match error {
        ExtractError::Checkpoint(error) => error.into(),
        ExtractError::Operation(error) => difference_error(error),
        ExtractError::Same => {
            CommandError::new(ExitKind::Conflict, message).hint("give the edited checkpoint second")
        }
        ExtractError::OneSided { .. } => {
            CommandError::new(ExitKind::WrongBase, message).hint("give two checkpoints of one model")
        }
        ExtractError::Kind { .. } => CommandError::new(ExitKind::Unsupported, message).hint(
            "bring both to one type and shape; `mpatch diff` without `-o` lists all tensors that differ",
        ),
        ExtractError::NotExact { .. } => CommandError::new(ExitKind::WrongBase, message)
            .hint("a checkpoint was changed meanwhile: wait until nobody writes to it, and try again"),
        _ => CommandError::new(ExitKind::Malformed, message).hint("`mpatch diff` without `-o` tells more"),
    }
}

// ----------------------------------------------------------------------------------------------------- reports --

/// What `diff` prints about two patches.
#[derive(Debug, Serialize)]
struct PatchReport {
    first: PathBuf,
    second: PathBuf,
    #[serde(flatten)]
    diff: PatchDiff,
    /// The one that can be looked at next.
    #[serde(skip)]
    shown: PathBuf,
}

/// Facts that are shown one by one.
const FACTS_SHOWN: usize = 20;
/// Most of a field's value that is shown in a line.
const VALUE_LENGTH_MAX: usize = 40;

impl Report for PatchReport {
    const SCHEMA: &'static str = "mpatch.diff.patches/1";

    fn write(&self, page: &mut Page) {
        let PatchDiff { facts, told_otherwise, manifest, recipe, tensors, .. } = &self.diff;
        let FactsDiff { added, removed, changed, same_facts, .. } = facts;
        let (first, second) = (self.first.display(), self.second.display());
        if self.diff.is_same() {
            let same = if self.diff.patches[0] == self.diff.patches[1] { "the same patch" } else { "alike" };
            page.title(&format!("{first} and {second} are {same}"));
            return;
        }
        page.title(&format!("{first} and {second} differ"));
        page.line(&format!(
            "facts: {} added, {} removed, {} changed, {same_facts} the same",
            added.len(),
            removed.len(),
            changed.len()
        ));
        write_facts(page, removed, added, changed);
        for ToldOtherwise { text, fields, .. } in told_otherwise.iter().take(FACTS_SHOWN) {
            write_changes(page, &format!("{text}, told otherwise"), fields);
        }
        write_changes(page, "manifest", manifest);
        write_changes(page, "recipe", recipe);
        page.blank();
        page.title("updates");
        let names = ["tensor", "first", "second", "angle", "difference"];
        page.table_under(names, tensors.iter().map(update_row));
    }

    fn next(&self) -> Option<String> {
        Some(format!("mpatch show {}", patch_word(&self.shown)))
    }
}

fn write_changes(page: &mut Page, title: &str, changes: &[FieldChange]) {
    if changes.is_empty() {
        return;
    }
    page.blank();
    page.title(title);
    for FieldChange { field, first, second, .. } in changes {
        let [first, second] = [first, second].map(|value| shortened(value, VALUE_LENGTH_MAX));
        // Where values begin alike, what is shown of them would say that they are.
        let told = if first == second {
            "differs; `--json` has both".to_owned()
        } else {
            format!("{first} -> {second}")
        };
        page.quote(&format!("{field}: {told}"));
    }
}

/// Facts that went, that came and that say something else, each with its sign.
pub fn write_facts(page: &mut Page, removed: &[Fact], added: &[Fact], changed: &[FactChange]) {
    let line = |sign: &str, fact: &Fact| format!("{sign} {}", fact_line(fact));
    let mut lines: Vec<String> = removed.iter().map(|fact| line("-", fact)).collect();
    lines.extend(added.iter().map(|fact| line("+", fact)));
    lines.extend(
        changed.iter().map(|change| {
            format!("~ {} -> {} (was {} in the first)", change.text, change.second, change.first)
        }),
    );
    lines.iter().take(FACTS_SHOWN).for_each(|line| page.quote(line));
    page.and_more(lines.len(), FACTS_SHOWN, "`--json` lists all");
}

fn update_row(update: &UpdateDiff) -> Vec<String> {
    let dtype = |size: &Option<UpdateSize>| size.as_ref().map(|size| size.dtype);
    let types_differ =
        dtype(&update.first).zip(dtype(&update.second)).is_some_and(|(one, other)| one != other);
    let of = |size: &Option<UpdateSize>| match size {
        None => "-".to_owned(),
        Some(size) => {
            let dtype = if types_differ { format!("{}, ", size.dtype) } else { String::new() };
            let dense =
                if size.dense_terms > 0 { format!(" + {} dense", size.dense_terms) } else { String::new() };
            let corrected = if size.correction.is_some() { ", corrected" } else { "" };
            format!("{dtype}norm {:.3e}, rank {}{dense}, {} bits{corrected}", size.norm, size.rank, size.bits)
        }
    };
    vec![
        update.name.clone(),
        of(&update.first),
        of(&update.second),
        update.angle_degrees.map_or_else(|| "-".to_owned(), |angle| format!("{angle:.1}°")),
        update.relative_difference.map_or_else(|| "-".to_owned(), |difference| format!("{difference:.2e}")),
    ]
}

/// Tensors of another type or shape that are shown one by one: of a model that was converted, all are.
const OTHERS_SHOWN: usize = 5;

/// What `diff` prints about two checkpoints.
#[derive(Debug, Serialize)]
struct WeightsReport {
    first: PathBuf,
    second: PathBuf,
    #[serde(flatten)]
    diff: CheckpointDiff,
}

impl Report for WeightsReport {
    const SCHEMA: &'static str = "mpatch.diff.checkpoints/1";

    fn write(&self, page: &mut Page) {
        let CheckpointDiff { same, removed, added, tensors, .. } = &self.diff;
        let (first, second) = (self.first.display(), self.second.display());
        if self.diff.is_same() {
            page.title(&format!("{first} and {second} hold the same weights: {}", count(*same, "tensor")));
            return;
        }
        let differ = if tensors.len() == 1 {
            "1 tensor differs"
        } else {
            &format!("{} tensors differ", tensors.len())
        };
        page.title(&format!("{first} and {second}: {differ}, {same} are the same"));
        for (tensors, where_) in [(removed, "first"), (added, "second")] {
            for tensor in tensors {
                page.line(&format!("  only in the {where_}: {tensor}"));
            }
        }
        if tensors.is_empty() {
            return;
        }
        let names = ["tensor", "dtype", "shape", "changed", "relative change", "ulps, mean and most", "rank"];
        let (compared, others): (Vec<_>, Vec<_>) = tensors.iter().partition(|tensor| tensor.change.is_some());
        let shown = others.iter().take(OTHERS_SHOWN);
        page.table_under(names, compared.iter().chain(shown).map(|tensor| tensor_row(tensor)));
        page.and_more(others.len(), OTHERS_SHOWN, "of another type or shape, too; `--json` lists all");
        let share = tensors.iter().filter_map(|tensor| tensor.change.as_ref()?.effective_rank).next();
        if let Some(rank) = share {
            page.line(&format!(
                "rank: singular values that hold {:.0} % of the squared change",
                100.0 * rank.share
            ));
        }
        let broken: u64 =
            tensors.iter().filter_map(|tensor| tensor.change.as_ref()).map(|change| change.not_finite).sum();
        if broken > 0 {
            page.line(&format!("{broken} weights are NaN or infinite in one of them"));
        }
    }

    fn next(&self) -> Option<String> {
        let (first, second) = (shell_word(&self.first), shell_word(&self.second));
        let CheckpointDiff { removed, added, tensors, .. } = &self.diff;
        // A patch changes matrices and vectors, and nothing else.
        let holds =
            |tensor: &TensorDiff| tensor.change.is_some() && matches!(tensor.first.shape.len(), 1 | 2);
        let is_patch = removed.is_empty() && added.is_empty() && tensors.iter().all(holds);
        (is_patch && !self.diff.is_same()).then(|| format!("mpatch diff {first} {second} -o PATCH"))
    }
}

fn tensor_row(tensor: &TensorDiff) -> Vec<String> {
    let TensorDiff { name, first, second, change, .. } = tensor;
    let shape = |shape: &[u64]| shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
    let both = |one: String, other: String| if one == other { one } else { format!("{one} -> {other}") };
    let mut row = vec![
        name.clone(),
        both(first.dtype.clone(), second.dtype.clone()),
        both(shape(&first.shape), shape(&second.shape)),
    ];
    match change {
        None => row.push("not compared".to_owned()),
        Some(Change { weights, changed, relative_norm, ulps_max, ulps_mean, effective_rank, .. }) => {
            row.push(format!("{changed} ({:.1} %)", 100.0 * *changed as f64 / *weights as f64));
            row.push(format!("{relative_norm:.2e}"));
            row.push(format!("{ulps_mean:.1}, {ulps_max}"));
            row.push(effective_rank.map_or_else(String::new, |found| {
                let more = if found.is_more { "over " } else { "" };
                format!("{more}{}", found.rank)
            }));
        }
    }
    row
}

#[derive(Debug, Serialize)]
struct ExtractReport {
    output: PathBuf,
    base: PathBuf,
    patch_id: PatchId,
    size_bytes: u64,
    /// None for a patch that is not signed.
    signature: Option<SignatureReport>,
    tensors: Vec<ExtractedReport>,
}

#[derive(Debug, Serialize)]
struct ExtractedReport {
    #[serde(flatten)]
    extracted: ExtractedTensor,
    terms_size_bytes: u64,
    correction_size_bytes: u64,
    undo_size_bytes: u64,
}

impl Report for ExtractReport {
    const SCHEMA: &'static str = "mpatch.extract/1";

    fn write(&self, page: &mut Page) {
        let tensors = count(self.tensors.len(), "tensor");
        page.title(&format!("wrote {}: {tensors}, {}", self.output.display(), size(self.size_bytes)));
        page.line(&format!(
            "patch {}, exact: every tensor comes out with the edited checkpoint's digest",
            self.patch_id.short()
        ));
        SignatureReport::write_of(self.signature.as_ref(), page);
        let names = ["tensor", "stored as", "corrected", "terms", "correction", "undo", "the tensor"];
        let rows = self.tensors.iter().map(|report| {
            let ExtractedReport { extracted, terms_size_bytes, correction_size_bytes, undo_size_bytes } =
                report;
            let form = match extracted.form {
                Form::LowRank { rank, bits } => format!("rank {rank}, {bits} bits"),
                Form::Dense { bits } => format!("dense, {bits} bits"),
                Form::Corrections => "corrections alone".to_owned(),
            };
            let share = 100.0 * extracted.corrected as f64 / extracted.weights as f64;
            let mut row =
                vec![extracted.name.clone(), form, format!("{} ({share:.1} %)", extracted.corrected)];
            let sizes =
                [*terms_size_bytes, *correction_size_bytes, *undo_size_bytes, extracted.tensor_size_bytes];
            row.extend(sizes.map(size));
            row
        });
        page.table_under(names, rows);
    }

    fn next(&self) -> Option<String> {
        let words = SignatureReport::words_of(self.signature.as_ref());
        let (output, base) = (shell_word(&self.output), shell_word(&self.base));
        Some(format!("mpatch verify {output} --base {base}{words}"))
    }
}

#[cfg(test)]
mod tests {
    use mpatch::model::Tokenizer;

    use super::*;

    #[test]
    fn an_extracted_patch_names_the_tokenizer_as_a_made_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let header = br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        let (vocabulary, merges) = (br#"{"a":0,"b":1,"ab":2}"#, b"#version: 0.2\na b\n");
        let files: [(&str, &[u8]); 3] =
            [("model.safetensors", &weights), ("vocab.json", vocabulary), ("merges.txt", merges)];
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let found = model_of(&Checkpoint::open(folder.path()).unwrap()).unwrap();
        let made = Tokenizer::from_vocabulary(vocabulary, merges, None).unwrap();
        assert_eq!(found.tokenizer, made.digest());
    }
}
