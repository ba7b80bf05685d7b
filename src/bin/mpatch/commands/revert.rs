//! `mpatch revert`: an edited checkpoint and its patch in, the base's exact bytes out.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::operation::{Answer, Difference, Direction, Mismatch};

use super::change::{Change, TargetArguments};
use super::{beside, infix, patch_word, place_words, without_infix};
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, shell_word};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch revert model.edits.safetensors edits.mpatch -o base.safetensors\n  \
                  mpatch revert gptj/ edits.mpatch --in-place\n  \
                  mpatch revert gptj.edits/ edits.mpatch --dry-run"
)]
pub struct RevertArguments {
    /// Take the patch out of a copy of this checkpoint
    edited: PathBuf,
    /// Take back this patch: a file, or the id or the revision of one in the history; `-` reads
    /// it from standard input
    patch: PathBuf,
    /// Where the result goes.
    #[command(flatten)]
    target: TargetArguments,
}

/// Writes the base again.
pub fn run(arguments: &RevertArguments, output: &Output) -> Result<(), CommandError> {
    let RevertArguments { edited, patch, target } = arguments;
    let change = Change::open(edited, patch, target, || free_place(edited, patch), output)?;
    match change.answer(Direction::Revert, output)? {
        Answer::Fits(plan) => {
            output.note(&format!("{} is in {} and comes out", change.patch_name(), change.input_name()));
            change.carry_out(plan, output)
        }
        Answer::Done { tensors, .. } => Err(already_base(&change, tensors)),
        Answer::Elsewhere(mismatch) => Err(unknown_state(&change, &mismatch)),
    }
}

/// The base's old name when it is free, else a new one.
fn free_place(edited: &Path, patch: &Path) -> Result<PathBuf, CommandError> {
    match without_infix(edited, &infix(patch)) {
        Some(first_name) if !first_name.exists() => Ok(first_name),
        _ => beside(edited, "reverted".as_ref()),
    }
}

fn already_base(change: &Change, tensors: usize) -> CommandError {
    let (patch, input) = (change.patch_name(), change.input_name());
    let (base, file) = (shell_word(change.checkpoint.path()), patch_word(&change.patch_path));
    let message = format!(
        "{patch} is not in {input}: the tensors it touches ({tensors}) hold what they held before it"
    );
    let place = place_words(change.checkpoint.path());
    CommandError::new(ExitKind::Conflict, message)
        .hint(format!("`mpatch apply {base} {file}{place}` puts it in"))
}

fn unknown_state(change: &Change, mismatch: &Mismatch) -> CommandError {
    let message = format!("{} is not in {}: {mismatch}", change.patch_name(), change.input_name());
    let hint = if mismatch.is_half_way() {
        "somebody stopped half-way here: begin again with a fresh copy"
    } else if let Difference::Dtype { .. } = mismatch.difference {
        "a patch is taken out of weights in the type that it was put in: give the checkpoint as it was before it was converted"
    } else {
        "if another patch was applied later, take that one back first; `mpatch rebase LATER --base RESULT` then binds it to what is left"
    };
    CommandError::new(ExitKind::WrongBase, message).hint(hint)
}
