//! `mpatch rebase`: the same update, bound to another state of the weights.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::{PatchId, WeightsId};
use mpatch::operation::survey_size_bytes;
use mpatch::patch::Patch;
use mpatch::patch::manifest::Line;
use mpatch::rebase::{RebaseError, RebaseOptions, first_missing, rebase, shared_update};
use mpatch::sign::Answer;
use serde::Serialize;

use super::stack::touched_size_bytes;
use super::{named_after, open_checkpoint, open_patch, open_patches, patch_word};
use crate::args::output_path;
use crate::editing::{given_or_remembered, refuse_existing};
use crate::error::{CommandError, ExitKind, bind_error, with_causes};
use crate::history::StoreArguments;
use crate::job::encoded;
use crate::keys::{SignatureReport, Signer, SigningArguments, write_signed};
use crate::report::{Output, Page, Report, count, shell_word, size};
use crate::trust::{self, TrustArguments, TrustReport, require};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch rebase b.mpatch --base gptj-with-a/ --after a.mpatch \\\n      \
                  -o b-on-a.mpatch\n  \
                  mpatch rebase edits.mpatch --base gptj-bf16/ --keep -o edits.mpatch.new")]
pub struct RebaseArguments {
    /// Bind this patch: a file, or the id or the revision of one in the history; `-` reads
    /// it from standard input
    patch: PathBuf,
    /// Bind it to this checkpoint; within a history, the one that it remembers by default
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Write the result here; `PATCH.rebased.mpatch` by default
    #[arg(short, long, value_name = "PATCH", value_parser = output_path())]
    output: Option<PathBuf>,
    /// Keep the bindings that the patch has, so that the result fits all states
    #[arg(long)]
    keep: bool,
    /// Record that this patch is in the checkpoint already, after checking that it is; may be given several times, for
    /// those that were applied last, in any order
    #[arg(long, value_name = "PATCH")]
    after: Vec<PathBuf>,
    /// Leave out what an extracted patch corrects weight by weight: the result is then not exactly its own
    #[arg(long)]
    drop_corrections: bool,
    /// The number of the result in the line of the patch; the next after the highest known by default
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    sequence: Option<u64>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    signing: SigningArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

/// Binds the patch and writes the result.
pub fn run(arguments: &RebaseArguments, output: &Output) -> Result<(), CommandError> {
    let patch = open_patch(&arguments.patch, &arguments.store)?;
    let place = arguments.place();
    refuse_existing(&place)?;
    let trust = require(&patch, &arguments.patch, &arguments.trust, output)?.report;
    let mut signer = arguments.signing.signer()?;
    let line = arguments.place_in_line(&patch, &trust, signer.as_ref(), output)?;
    let base = given_or_remembered(arguments.base.as_deref(), &arguments.store, output)?;
    let base = open_checkpoint(&base, output)?;
    let parents = arguments.parents(&patch, &base, output)?;
    let (keep, drop_corrections) = (arguments.keep, arguments.drop_corrections);
    let options = RebaseOptions { keep, drop_corrections, parents, line };
    let progress = output.progress("binding", base.weights_size_bytes() + survey_size_bytes(&base, &patch));
    let draft = rebase(&base, &patch, &options, &|bytes| progress.add(bytes));
    let draft = draft.map_err(|error| rebase_error(arguments, base.path(), error))?;
    drop(progress);
    let mut bound = encoded(&draft, "the rebased patch")?;
    let signature = write_signed(&mut bound, signer.as_mut(), arguments.sequence, &place)?;
    let line = bound.manifest().line.clone();
    let bindings = bound.manifest().bindings.iter().map(|binding| BindingReport {
        weights: binding.weights,
        tensors: binding
            .tensors
            .iter()
            .map(|tensor| TensorReport {
                name: tensor.name.clone(),
                dtype: tensor.dtype.to_string(),
                norm_ratio: tensor.norm_ratio,
            })
            .collect(),
    });
    let report = RebaseReport {
        output: place,
        base: base.path().to_owned(),
        patch_id: bound.id(),
        size_bytes: bound.size_bytes(),
        signature,
        left_line: patch.manifest().line.clone().filter(|_| line.is_none()),
        line,
        kept: arguments.keep,
        trust,
        bindings: bindings.collect(),
        parents: bound.manifest().parents.clone(),
    };
    output.report_done(&report)
}

impl RebaseArguments {
    fn place(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| named_after(&self.patch, ".rebased.mpatch"))
    }

    /// The ids of the patches that the checkpoint holds, none of which has the update of `patch`.
    fn parents(
        &self,
        patch: &Patch,
        base: &Checkpoint,
        output: &Output,
    ) -> Result<Vec<PatchId>, CommandError> {
        let paths = &self.after;
        let patches = open_patches(paths, &self.store)?;
        if let Some(held) = shared_update(patch, &patches).and_then(|index| paths.get(index)) {
            let message = format!(
                "`{}` has the update of `{}`, which is in `{}` already",
                self.patch.display(),
                held.display(),
                base.path().display()
            );
            let (base, held) = (shell_word(base.path()), patch_word(held));
            return Err(CommandError::new(ExitKind::Conflict, message)
                .hint(format!("`mpatch revert {base} {held} -o MODEL` takes that back first")));
        }
        let progress = output.progress("comparing", touched_size_bytes(base, patches.iter()));
        let missing = first_missing(base, &patches, &|bytes| progress.add(bytes))?;
        let Some(path) = missing.and_then(|index| paths.get(index)) else {
            return Ok(patches.iter().map(Patch::id).collect());
        };
        let (name, base) = (path.display(), base.path().display());
        let message = match paths.len() {
            1 => format!("`{name}` is not in `{base}`: its result is not what the checkpoint holds"),
            _ => {
                format!(
                    "`{name}` is not in `{base}`, nor in what it was before the others that were found there"
                )
            }
        };
        Err(CommandError::new(ExitKind::WrongBase, message).hint(
            "give the checkpoint that the patch was applied to last, or each patch that came after it with `--after`, too, or leave `--after` out",
        ))
    }

    /// The place of the result in the line that the patch belongs to: a new one, which only a key that has signed the
    /// patch may take.
    fn place_in_line(
        &self,
        patch: &Patch,
        trust: &TrustReport,
        signer: Option<&Signer>,
        output: &Output,
    ) -> Result<Option<Line>, CommandError> {
        let key = signer.map(|signer| signer.public().fingerprint()).filter(|key| {
            let is_good = |answer| !matches!(answer, Answer::Bad | Answer::Unsupported | Answer::Revoked);
            let mut signatures = trust.judgement.signatures.iter();
            signatures.any(|found| found.key == Some(*key) && is_good(found.answer))
        });
        match (&patch.manifest().line, key) {
            (Some(line), Some(key)) => {
                let mut lines = trust::lines_to_change(self.store.open_if_any(output)?.as_ref())?;
                // The patch itself may be the first that is seen of the line here.
                lines.record(line, key, patch.id());
                trust::new_place(&lines, &line.name, key, self.sequence).map(Some)
            }
            _ if self.sequence.is_some() => {
                let message = "only what the key of a line signs has a number in it";
                Err(CommandError::new(ExitKind::Usage, message)
                    .hint("leave `--sequence` out, or sign with the key that has signed a member of a line"))
            }
            _ => Ok(None),
        }
    }
}

fn rebase_error(arguments: &RebaseArguments, base: &Path, error: RebaseError) -> CommandError {
    let patch = arguments.patch.display();
    let refused = |kind, hint: &str| {
        CommandError::new(kind, format!("`{patch}` on `{}`: {}", base.display(), with_causes(&error)))
            .hint(hint)
    };
    match error {
        RebaseError::Checkpoint(error) => error.into(),
        RebaseError::Patch(error) => CommandError::patch(&patch.to_string(), &error),
        RebaseError::Fits { .. } => refused(ExitKind::Conflict, "apply it as it is"),
        RebaseError::Applied { .. } => {
            let (base, patch) = (shell_word(base), patch_word(&arguments.patch));
            refused(ExitKind::Conflict, &format!("`mpatch revert {base} {patch}` takes it back"))
        }
        RebaseError::PartlyApplied { .. } => refused(
            ExitKind::Conflict,
            "what stopped half-way, or was put together of two states, has to be made whole first: fetch the base again, or apply the patch to a copy of it",
        ),
        RebaseError::Correction { .. } => refused(
            ExitKind::Conflict,
            "`--drop-corrections` binds its terms alone: nearly the same change, not exactly",
        ),
        RebaseError::Bind(ref error) => {
            let (kind, hint) = bind_error(error);
            refused(kind, hint)
        }
        _ => refused(ExitKind::Malformed, "`mpatch verify` tells what holds of the patch"),
    }
}

#[derive(Debug, Serialize)]
struct RebaseReport {
    output: PathBuf,
    base: PathBuf,
    patch_id: PatchId,
    size_bytes: u64,
    /// None for a patch that is not signed.
    signature: Option<SignatureReport>,
    /// Its place in the line of the patch that was bound.
    line: Option<Line>,
    /// The place of that patch, where the result does not go on with its line.
    left_line: Option<Line>,
    /// The old bindings are still there.
    kept: bool,
    /// Who signed the patch that was bound, and what had to be allowed.
    trust: TrustReport,
    bindings: Vec<BindingReport>,
    parents: Vec<PatchId>,
}

#[derive(Debug, Serialize)]
struct BindingReport {
    weights: WeightsId,
    tensors: Vec<TensorReport>,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    dtype: String,
    norm_ratio: f64,
}

impl Report for RebaseReport {
    const SCHEMA: &'static str = "mpatch.rebase/1";

    fn write(&self, page: &mut Page) {
        let states = count(self.bindings.len(), "state");
        page.title(&format!("wrote {}: fits {states}, {}", self.output.display(), size(self.size_bytes)));
        page.line(&format!("patch {}", self.patch_id.short()));
        if let Some(line) = &self.line {
            page.line(&format!("number {} of the line {}", line.sequence, line.name));
        }
        SignatureReport::write_of(self.signature.as_ref(), page);
        if let Some(line) = &self.left_line {
            page.line(&format!("belongs to no line: what was bound is number {} of {}, which only whoever has signed it goes on with", line.sequence, line.name));
        }
        let rows = self.bindings.iter().flat_map(|binding| {
            binding.tensors.iter().enumerate().map(|(index, tensor)| {
                let weights = if index == 0 { binding.weights.short() } else { String::new() };
                let change = format!("{:.2e}", tensor.norm_ratio);
                vec![weights, tensor.name.clone(), tensor.dtype.clone(), change]
            })
        });
        page.table_under(["weights", "tensor", "dtype", "relative change"], rows);
        if !self.trust.allowed.is_empty() {
            self.trust.write(page);
        }
        if !self.kept {
            page.line("what its maker measured was on other weights, and is left out");
        }
    }

    fn next(&self) -> Option<String> {
        let words = SignatureReport::words_of(self.signature.as_ref());
        let (output, base) = (patch_word(&self.output), shell_word(&self.base));
        Some(format!("mpatch verify {output} --base {base}{words}"))
    }
}
