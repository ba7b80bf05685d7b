//! `mpatch verify`: climbs the ladder of checks and says how far it came, with the evidence; it never says *safe*.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::model::{Config, ModelError};
use mpatch::patch::Patch;
use mpatch::sign::Answer;
use mpatch::verify::{
    Depth, DigestEvidence, FormEvidence, State, TensorEvidence, verify, verify_form, verify_size_bytes,
};
use serde::Serialize;

use super::behaviour::{self, BehaviourEvidence};
use super::{open_checkpoint, open_patch, patch_word};
use crate::editing::DeviceArguments;
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, Page, Report, count, shell_word};
use crate::trust::{Judged, TrustArguments, TrustReport, judge};

/// Arguments of `verify`.
#[derive(Debug, Args)]
#[command(after_help = "Rungs:\n  V0  the patch is whole: every part decodes\n  \
                  V1  somebody who is trusted here signed it\n  \
                  V2  it fits this model: the digests are what it promises, and so is what it computes\n  \
                  V4  the edited model does what the patch declares\n\n\
                  Examples:\n  mpatch verify edits.mpatch\n  \
                  mpatch verify edits.mpatch --base model.safetensors\n  \
                  mpatch verify edits.mpatch --base deployed.safetensors --digests-only\n  \
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
    /// Hash the weights and stop: neither compute what the patch makes of them nor run the model
    #[arg(long, conflicts_with_all = ["weights_only", "records"])]
    digests_only: bool,
    /// Stop after V2: compute the weights before and after the patch, but do not run the model
    #[arg(long, conflicts_with = "records")]
    weights_only: bool,
    /// Where the model runs.
    #[command(flatten)]
    device: DeviceArguments,
    /// What passes although it is not trusted.
    #[command(flatten)]
    trust: TrustArguments,
}

/// What `verify` prints.
#[derive(Debug, Serialize)]
struct LadderReport {
    patch: PathBuf,
    patch_id: PatchId,
    base: Option<PathBuf>,
    trust: TrustReport,
    /// The rungs that hold.
    reached: Vec<&'static str>,
    form: FormEvidence,
    digests: Option<DigestEvidence>,
    behaviour: Option<BehaviourEvidence>,
    #[serde(skip)]
    declares_facts: bool,
    #[serde(skip)]
    runs_the_model: bool,
}

impl VerifyArguments {
    const fn runs_the_model(&self) -> bool {
        !self.digests_only && !self.weights_only
    }
}

/// Checks the patch, alone or against a model.
pub fn run(arguments: &VerifyArguments, output: &Output) -> Result<(), CommandError> {
    let patch = open_patch(&arguments.patch)?;
    let mut judged = judge(&patch, &arguments.patch, &arguments.trust, output)?;
    let report = climb(arguments, &patch, &judged, output)?;
    output.report(&report)?;
    report.outcome(&mut judged)
}

fn climb(
    arguments: &VerifyArguments,
    patch: &Patch,
    judged: &Judged,
    output: &Output,
) -> Result<LadderReport, CommandError> {
    let (form, digests) = match &arguments.base {
        None => (verify_form(patch), None),
        Some(base) => {
            let checkpoint = open_checkpoint(base, output)?;
            let depth = if arguments.digests_only { Depth::Digests } else { Depth::BothStates };
            let progress = output.progress("comparing", verify_size_bytes(&checkpoint, patch, depth));
            let report = verify(&checkpoint, patch, depth, &|bytes| progress.add(bytes))
                .map_err(|error| CommandError::operation(&arguments.patch.to_string_lossy(), error))?;
            (report.form, report.digests)
        }
    };
    let fitting = digests.as_ref().filter(|digests| digests.holds());
    let behaviour = match (&arguments.base, fitting.and_then(|digests| digests.state)) {
        (Some(base), Some(state))
            if arguments.runs_the_model() && declares_facts(patch) && can_run(base, output)? =>
        {
            let records = arguments.records.as_deref();
            Some(behaviour::check(patch, &arguments.patch, base, state, records, &arguments.device, output)?)
        }
        _ => None,
    };
    let behaves = behaviour.as_ref().is_some_and(BehaviourEvidence::holds);
    let rungs = [("V0", form.holds()), ("V1", judged.holds()), ("V2", fitting.is_some()), ("V4", behaves)];
    Ok(LadderReport {
        patch: arguments.patch.clone(),
        patch_id: patch.id(),
        base: arguments.base.clone(),
        trust: judged.report.clone(),
        reached: rungs.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name).collect(),
        declares_facts: declares_facts(patch),
        runs_the_model: arguments.runs_the_model(),
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
    fn outcome(&self, judged: &mut Judged) -> Result<(), CommandError> {
        let patch = self.patch.display();
        if let Some(problem) = &self.form.problem {
            let message = format!("`{patch}` fails V0: {problem}");
            return Err(CommandError::new(ExitKind::Malformed, message)
                .hint("fetch the patch again, or ask whoever made it"));
        }
        judged.permit()?;
        if let Some(problem) = self.behaviour.as_ref().and_then(BehaviourEvidence::problem) {
            let message = format!("`{patch}` fails V4: {problem}");
            return Err(CommandError::new(ExitKind::ContentCheck, message)
                .hint("the model does not do what the patch declares: do not rely on it"));
        }
        let Some(digests) = self.digests.as_ref().filter(|digests| !digests.holds()) else {
            return self.far_enough(judged);
        };
        let problem = digests.problem().unwrap_or_else(|| "the patch touches nothing".to_owned());
        let message = format!("`{patch}` fails V2: {problem}");
        // Weights that are other than the patch says are one thing, arithmetic that breaks a promise another.
        let tensors_hold = digests.tensors.iter().all(TensorEvidence::holds);
        if tensors_hold {
            let hint = format!("`mpatch show {}` tells which base it is for", patch_word(&self.patch));
            return Err(CommandError::new(ExitKind::WrongBase, message).hint(hint));
        }
        Err(CommandError::new(ExitKind::Malformed, message).hint("do not apply this patch"))
    }

    /// Whether the rung that a policy asks for holds.
    fn far_enough(&self, judged: &Judged) -> Result<(), CommandError> {
        let wanted = judged.minimal_rung().to_string();
        if wanted == "V0" || self.reached.contains(&wanted.as_str()) {
            return Ok(());
        }
        let message =
            format!("`{}` does not reach {wanted}, which the policy asks for", self.patch.display());
        Err(CommandError::new(ExitKind::Untrusted, message)
            .hint("name a whole model with `--base`, so that every rung can be climbed"))
    }

    fn form_row(&self) -> [String; 3] {
        let evidence = self.form.problem.clone().unwrap_or_else(|| {
            let (terms, logs) = (count(self.form.terms, "term"), count(self.form.undo_logs, "undo log"));
            format!("{terms} and {logs} decode")
        });
        ["V0 whole".to_owned(), holds(self.form.holds()), evidence]
    }

    fn signature_row(&self) -> [String; 3] {
        let outcome = match (self.trust.judgement.answer, self.reached.contains(&"V1")) {
            (_, true) => "holds",
            (Answer::Unsigned, _) => "does not hold",
            _ => "fails",
        };
        ["V1 signed".to_owned(), outcome.to_owned(), self.trust.in_words()]
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
            None if !self.runs_the_model => ("not checked".to_owned(), "not asked for".to_owned()),
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
    let tensors = count(digests.tensors.len(), "tensor");
    let changed: Option<u64> = digests.tensors.iter().map(|tensor| tensor.changed).sum();
    match (digests.state, changed) {
        (Some(State::Base), None) => {
            format!(
                "this is its base: {tensors} and the weights id are the promised ones; nothing was computed"
            )
        }
        (Some(State::Base), Some(changed)) => {
            format!(
                "this is its base: in memory, {tensors} ({changed} weights change) came out as promised, and came back"
            )
        }
        (Some(State::Edited), None) => {
            format!(
                "the patch is in it: {tensors} are the promised ones, all others the base's; nothing was computed"
            )
        }
        (Some(State::Edited), Some(_)) => {
            format!(
                "the patch is in it: in memory, {tensors} came back to the base, whose weights id is the promised one"
            )
        }
        (None, _) => "the patch touches nothing".to_owned(),
    }
}

impl Report for LadderReport {
    const SCHEMA: &'static str = "mpatch.verify/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("{}: patch {}", self.patch.display(), self.patch_id.short()));
        page.table(
            &[self.form_row(), self.signature_row(), self.digests_row(), self.behaviour_row()].map(Vec::from),
        );
        if !self.trust.allowed.is_empty() {
            self.trust.write(page);
        }
        let reached = if self.reached.is_empty() { "nothing".to_owned() } else { self.reached.join(" and ") };
        page.line(&format!("holds: {reached}"));
    }

    fn next(&self) -> Option<String> {
        let (patch, trust) = (patch_word(&self.patch), &self.trust.words);
        let Some(base) = &self.base else {
            return Some(format!("mpatch verify {patch} --base MODEL{trust}"));
        };
        let digests = self.digests.as_ref().filter(|digests| digests.holds())?;
        let base = shell_word(base);
        match digests.state? {
            State::Base => Some(format!("mpatch apply {base} {patch}{trust}")),
            State::Edited => Some(format!("mpatch revert {base} {patch}")),
        }
    }
}
