//! `mpatch apply`: a checkpoint and a patch in, an edited copy out.

use std::path::PathBuf;

use clap::Args;
use mpatch::operation::{Answer, Difference, Direction, Mismatch};

use super::change::{Change, TargetArguments};
use super::{beside, hint_of_type, infix, patch_word, place_words};
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, shell_word};
use crate::trust::{TrustArguments, require};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch apply model.safetensors edits.mpatch\n  \
                  mpatch apply gptj/ edits.mpatch -o gptj-edited\n  \
                  mpatch apply gptj/ edits.mpatch --in-place\n  \
                  mpatch apply gptj/ edits.mpatch --dry-run --json")]
pub struct ApplyArguments {
    /// Edit a copy of this checkpoint: a safetensors file, an index of shards, or a model folder
    base: PathBuf,
    /// Apply this patch: a file, or the id or the revision of one in the history; `-` reads
    /// it from standard input
    patch: PathBuf,
    /// Where the result goes.
    #[command(flatten)]
    target: TargetArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

/// Writes the edited copy.
pub fn run(arguments: &ApplyArguments, output: &Output) -> Result<(), CommandError> {
    let ApplyArguments { base, patch, target, trust } = arguments;
    let mut change = Change::open(base, patch, target, || beside(base, &infix(patch)), output)?;
    let judged = require(&change.patch, patch, trust, output)?;
    judged.warn_of_rung(output);
    change.trust = Some(judged);
    match change.answer(Direction::Apply, output)? {
        Answer::Fits(plan) => {
            output.note(&format!("{} applies to {}", change.patch_name(), change.input_name()));
            change.carry_out(plan, output)
        }
        Answer::Done { tensors, .. } => Err(already_applied(&change, tensors)),
        Answer::Elsewhere(mismatch) => Err(wrong_base(&change, &mismatch)),
    }
}

fn already_applied(change: &Change, tensors: usize) -> CommandError {
    let (patch, input) = (change.patch_name(), change.input_name());
    let (base, file) = (shell_word(change.checkpoint.path()), patch_word(&change.patch_path));
    let place = place_words(change.checkpoint.path());
    let message =
        format!("{patch} is already applied to {input}: the tensors it touches ({tensors}) hold its result");
    CommandError::new(ExitKind::Conflict, message)
        .hint(format!("`mpatch revert {base} {file}{place}` takes it back"))
}

fn wrong_base(change: &Change, mismatch: &Mismatch) -> CommandError {
    let message = format!("{} is not for {}: {mismatch}", change.patch_name(), change.input_name());
    let trust = change.trust.as_ref().map_or("", |judged| &judged.report.words);
    let of_type = hint_of_type(&mismatch.difference, &change.patch_path, change.checkpoint.path(), trust);
    let patch = patch_word(&change.patch_path);
    let hint = if let Some(name) = other_name(change, mismatch) {
        format!(
            "the same tensors are called `{name}` and so on here: the patch fits a copy of this model that has its names"
        )
    } else if let Difference::Missing { .. } = mismatch.difference {
        format!("`mpatch show {patch}` tells which base it is for")
    } else if mismatch.is_half_way() {
        "somebody stopped half-way here: begin again with a fresh copy of the base".to_owned()
    } else if let Some(hint) = of_type {
        hint
    } else {
        let base = shell_word(change.checkpoint.path());
        format!(
            "`mpatch show {patch}` tells which base it is for; where that is this one without other patches, `mpatch rebase {patch} --base {base} --after OTHER` binds it anew"
        )
    };
    CommandError::new(ExitKind::WrongBase, message).hint(hint)
}

/// What the missing tensor is called in a checkpoint that has all names but for what transformers puts before those of
/// a model with a head, or leaves out.
fn other_name(change: &Change, mismatch: &Mismatch) -> Option<String> {
    const PREFIX: &str = "transformer.";
    let Difference::Missing { .. } = mismatch.difference else { return None };
    let other = |name: &str| match name.strip_prefix(PREFIX) {
        Some(rest) => rest.to_owned(),
        None => format!("{PREFIX}{name}"),
    };
    let is_there = |name: &str| change.checkpoint.find(&other(name)).is_some();
    let tensors = &change.patch.manifest().bindings.get(mismatch.binding)?.tensors;
    tensors.iter().all(|tensor| is_there(&tensor.name)).then(|| other(&mismatch.tensor))
}
