//! `mpatch verify`: climbs the ladder of checks and says how far it came, with the evidence; it never says *safe*.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::model::{Config, ModelError};
use mpatch::patch::Patch;
use mpatch::verify::{DigestEvidence, FormEvidence, State, verify, verify_form, verify_size_bytes};
use serde::Serialize;

use super::behaviour::{self, BehaviourEvidence};
use super::{open_checkpoint, open_patch, patch_word};
use crate::editing::DeviceArguments;
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, Page, Report, count, shell_word};

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "Rungs:\n  V0  the patch is whole: every part decodes\n  \
                  V1  somebody signed it (not judged yet)\n  \
                  V2  it fits this model: digests before and after are what it promises\n  \
                  V4  the edited model does what the patch declares\n\n\
                  Examples:\n  mpatch verify edits.mpatch\n  \
                  mpatch verify edits.mpatch --base model.safetensors\n  \
                  mpatch verify edits.mpatch --base gptj.edits/ --json")]
pub struct VerifyArguments {
    /// Check this patch; `-` reads it from standard input
    patch: PathBuf,
    /// Check it against this model, before the patch or after it
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Ask the paraphrases and neighbours that this file has for the patch's facts, too
    #[arg(long, value_name = "FILE", requires = "base")]
    records: Option<PathBuf>,
    /// Stop after V2: read the weights, do not run the model
    #[arg(long)]
    digests_only: bool,
    /// Where the model runs.
    #[command(flatten)]
    device: DeviceArguments,
}

/// What `verify` prints.
#[derive(Debug, Serialize)]
struct LadderReport {
    patch: PathBuf,
    patch_id: PatchId,
    base: Option<PathBuf>,
    signatures: usize,
    /// The rungs that hold.
    reached: Vec<&'static str>,
    form: FormEvidence,
    digests: Option<DigestEvidence>,
    behaviour: Option<BehaviourEvidence>,
    #[serde(skip)]
    declares_facts: bool,
}

/// Checks the patch, alone or against a model.
pub fn run(arguments: &VerifyArguments, output: &Output) -> Result<(), CommandError> {
    let patch = open_patch(&arguments.patch)?;
    let report = climb(arguments, &patch, output)?;
    output.report(&report)?;
    report.outcome()
}

fn climb(arguments: &VerifyArguments, patch: &Patch, output: &Output) -> Result<LadderReport, CommandError> {
    let (form, digests) = match &arguments.base {
        None => (verify_form(patch), None),
        Some(base) => {
            let checkpoint = open_checkpoint(base, output)?;
            let progress = output.progress("comparing", verify_size_bytes(&checkpoint, patch));
            let report = verify(&checkpoint, patch, &|bytes| progress.add(bytes))
                .map_err(|error| CommandError::operation(&arguments.patch.to_string_lossy(), error))?;
            (report.form, report.digests)
        }
    };
    let fitting = digests.as_ref().filter(|digests| digests.holds());
    let behaviour = match (&arguments.base, fitting.and_then(|digests| digests.state)) {
        (Some(base), Some(state))
            if !arguments.digests_only && declares_facts(patch) && can_run(base, output)? =>
        {
            let records = arguments.records.as_deref();
            Some(behaviour::check(patch, &arguments.patch, base, state, records, &arguments.device, output)?)
        }
        _ => None,
    };
    let behaves = behaviour.as_ref().is_some_and(BehaviourEvidence::holds);
    let rungs = [("V0", form.holds()), ("V2", fitting.is_some()), ("V4", behaves)];
    Ok(LadderReport {
        patch: arguments.patch.clone(),
        patch_id: patch.id(),
        base: arguments.base.clone(),
        signatures: patch.signatures().len(),
        reached: rungs.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect(),
        declares_facts: declares_facts(patch),
        form,
        digests,
        behaviour,
    })
}

/// A patch that was extracted from two checkpoints says nothing that could be tested.
fn declares_facts(patch: &Patch) -> bool {
    !patch.manifest().facts.is_empty()
}

/// Weights alone cannot be run, nor can models of another architecture.
fn can_run(base: &Path, output: &Output) -> Result<bool, CommandError> {
    let config = open_checkpoint(base, output)?.companion("config.json")?;
    Ok(config.is_some_and(|bytes| !matches!(Config::parse(&bytes), Err(ModelError::Unsupported { .. }))))
}

impl LadderReport {
    /// The first rung that does not hold, as the command's failure.
    fn outcome(&self) -> Result<(), CommandError> {
        let patch = self.patch.display();
        if let Some(problem) = &self.form.problem {
            let message = format!("`{patch}` fails V0: {problem}");
            return Err(CommandError::new(ExitKind::Malformed, message)
                .hint("fetch the patch again, or ask whoever made it"));
        }
        if let Some(problem) = self.behaviour.as_ref().and_then(BehaviourEvidence::problem) {
            let message = format!("`{patch}` fails V4: {problem}");
            return Err(CommandError::new(ExitKind::ContentCheck, message)
                .hint("the model does not do what the patch declares: do not rely on it"));
        }
        let Some(digests) = self.digests.as_ref().filter(|digests| !digests.holds()) else { return Ok(()) };
        let problem = digests.problem().unwrap_or_else(|| "the patch touches nothing".to_owned());
        let message = format!("`{patch}` fails V2: {problem}");
        // Weights that are other than the patch says are one thing, arithmetic that breaks a promise another.
        let tensors_hold = digests.tensors.iter().all(mpatch::verify::TensorEvidence::holds);
        if tensors_hold {
            let hint = format!("`mpatch show {}` tells which base it is for", patch_word(&self.patch));
            return Err(CommandError::new(ExitKind::WrongBase, message).hint(hint));
        }
        Err(CommandError::new(ExitKind::Malformed, message).hint("do not apply this patch"))
    }

    fn form_row(&self) -> [String; 3] {
        let evidence = self.form.problem.clone().unwrap_or_else(|| {
            let (terms, logs) = (count(self.form.terms, "term"), count(self.form.undo_logs, "undo log"));
            format!("{terms} and {logs} decode")
        });
        ["V0 whole".to_owned(), holds(self.form.holds()), evidence]
    }

    fn signature_row(&self) -> [String; 3] {
        let evidence = match self.signatures {
            0 => "unsigned".to_owned(),
            signatures => format!("{}, not judged", count(signatures, "signature")),
        };
        ["V1 signed".to_owned(), "not checked".to_owned(), evidence]
    }

    fn digests_row(&self) -> [String; 3] {
        let (outcome, evidence) = match &self.digests {
            None => ("not checked".to_owned(), "name a model with `--base`".to_owned()),
            Some(digests) => (holds(digests.holds()), digests_in_words(digests)),
        };
        ["V2 fits".to_owned(), outcome, evidence]
    }

    fn behaviour_row(&self) -> [String; 3] {
        let (outcome, evidence) = match &self.behaviour {
            None if !self.declares_facts => {
                ("not checked".to_owned(), "the patch declares no facts".to_owned())
            }
            None => (
                "not checked".to_owned(),
                "needs a GPT-J that fits, with its config and tokenizer".to_owned(),
            ),
            Some(behaviour) => (holds(behaviour.holds()), behaviour.in_words()),
        };
        ["V4 behaves".to_owned(), outcome, evidence]
    }
}

fn holds(holds: bool) -> String {
    if holds { "holds" } else { "fails" }.to_owned()
}

fn digests_in_words(digests: &DigestEvidence) -> String {
    if let Some(mismatch) = &digests.mismatch {
        return format!("tensor `{}` is not as the patch expects", mismatch.tensor);
    }
    if let Some(problem) = digests.problem() {
        return problem;
    }
    let changed: u64 = digests.tensors.iter().map(|tensor| tensor.changed).sum();
    let tensors = count(digests.tensors.len(), "tensor");
    match digests.state {
        Some(State::Base) => {
            format!(
                "this is its base: in memory, {tensors} ({changed} weights change) came out as promised, and came back"
            )
        }
        Some(State::Edited) => {
            format!(
                "the patch is in it: in memory, {tensors} came back to the base, whose weights id is the promised one"
            )
        }
        None => "the patch touches nothing".to_owned(),
    }
}

impl Report for LadderReport {
    const SCHEMA: &'static str = "mpatch.verify/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("{}: patch {}", self.patch.display(), self.patch_id.short()));
        page.table(
            &[self.form_row(), self.signature_row(), self.digests_row(), self.behaviour_row()].map(Vec::from),
        );
        let reached = if self.reached.is_empty() { "nothing".to_owned() } else { self.reached.join(" and ") };
        page.line(&format!("holds: {reached}"));
    }

    fn next(&self) -> Option<String> {
        let patch = patch_word(&self.patch);
        let Some(base) = &self.base else { return Some(format!("mpatch verify {patch} --base MODEL")) };
        let digests = self.digests.as_ref().filter(|digests| digests.holds())?;
        let base = shell_word(base);
        match digests.state? {
            State::Base => Some(format!("mpatch apply {base} {patch}")),
            State::Edited => Some(format!("mpatch revert {base} {patch}")),
        }
    }
}
