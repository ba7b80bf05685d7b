//! `mpatch verify`: climbs the ladder of checks and says how far it came, with the evidence; it never says *safe*.

use std::path::PathBuf;

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::model::{Model, Precision};
use mpatch::operation::Difference;
use mpatch::patch::Patch;
use mpatch::sign::policy::Rung;
use mpatch::verify::{
    Depth, DigestEvidence, FormEvidence, OtherState, State, StateEvidence, TensorEvidence, verify,
    verify_form, verify_size_bytes,
};
use serde::{Serialize, Serializer};

use super::behaviour::{self, BehaviourEvidence, Questions};
use super::companions::Companions;
use super::follow::{Outcome, Place, Reason, follow, no_recipe};
use super::key_span::{self, KeySpanEvidence};
use super::remake::{self, RemadeEvidence};
use super::{hint_of_type, open_checkpoint, open_patch, patch_word, place_words};
use crate::editing::{DeviceArguments, given_or_remembered, precision_by_name};
use crate::error::{CommandError, ExitKind};
use crate::history::StoreArguments;
use crate::report::{Output, Page, Report, count, shell_word};
use crate::trust::{Judged, Permitted, TrustArguments, TrustReport, judge};

#[derive(Debug, Clone, Args)]
#[command(after_help = "Rungs:\n  V0  the patch is whole: every part decodes\n  \
                  V1  somebody who is trusted here signed it\n  \
                  V2  it fits this model: digests and results are what it promises\n  \
                  V3  the update answers to the keys of the declared facts alone (`--stats`)\n  \
                  V4  the edited model does what the patch declares\n  \
                  V5  its recipe gives the patch again (`--rederive`: takes as long as `create`)\n\n\
                  Examples:\n  mpatch verify edits.mpatch\n  \
                  mpatch verify edits.mpatch --base model.safetensors\n  \
                  mpatch verify edits.mpatch --base deployed.safetensors --digests-only\n  \
                  mpatch verify edits.mpatch --base gptj/ --stats gptj.stats.safetensors \\\n      \
                  --rederive\n  \
                  mpatch verify edits.mpatch --base gptj.edits/ --json")]
pub struct VerifyArguments {
    /// Check this patch: a file, or the id or the revision of one in the history; `-` reads
    /// it from standard input
    patch: PathBuf,
    /// Check it against this model, before the patch or after it; the options below that need one take the history's
    /// by default
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Ask the paraphrases and neighbours that this file has for the patch's facts, too
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    /// Hold the update against the keys of the declared facts (V3), with these second-moment statistics: those that
    /// the patch was made with
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Make the patch again from its recipe and compare (V5, and V3 first), with the statistics of `--stats`, or
    /// those in the cache that the recipe names
    #[arg(long)]
    rederive: bool,
    /// Hash the weights and stop: neither compute what the patch makes of them nor run the model
    #[arg(long, conflicts_with_all = ["weights_only", "records", "stats", "rederive"])]
    digests_only: bool,
    /// Stop after V2: compute the weights before and after the patch, but do not run the model
    #[arg(long, conflicts_with_all = ["records", "stats", "rederive"])]
    weights_only: bool,
    /// Where the model runs.
    #[command(flatten)]
    device: DeviceArguments,
    /// Ask the model (V4) with its matrices in `f32`, in `bf16` for half the memory, or multiplied in `tf32` on CUDA;
    /// V3 and V5 follow the recipe
    #[arg(long, default_value = "f32", value_parser = precision_by_name)]
    precision: Precision,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

#[derive(Debug, Serialize)]
struct LadderReport {
    patch: PathBuf,
    patch_id: PatchId,
    base: Option<PathBuf>,
    trust: TrustReport,
    /// The rungs that hold.
    reached: Vec<Rung>,
    /// Every rung, with what people read of it.
    rungs: Vec<RungReport>,
    form: FormEvidence,
    digests: Option<DigestEvidence>,
    /// None where it was not asked for, or no model fits.
    key_span: Option<KeySpanEvidence>,
    behaviour: Option<BehaviourEvidence>,
    /// As `key_span`.
    remade: Option<RemadeEvidence>,
    #[serde(skip)]
    declares_facts: bool,
    #[serde(skip)]
    stop: Option<Stop>,
    #[serde(skip)]
    companions: Companions,
    /// Why V3 and V5 cannot be climbed, whatever is asked for.
    #[serde(skip)]
    no_recipe: Option<Reason>,
    #[serde(skip)]
    follows_recipe: bool,
    /// It may have been made on other weights and bound to these later: then its recipe tells nothing of them.
    #[serde(skip)]
    may_be_rebased: bool,
    #[serde(skip)]
    rederives: bool,
    /// Nothing that was looked at is wrong, and nothing that is asked for is missing.
    #[serde(skip)]
    passes: bool,
}

/// What came of one rung.
#[derive(Debug, Serialize)]
struct RungReport {
    rung: Rung,
    #[serde(skip)]
    name: &'static str,
    #[serde(serialize_with = "name_of_outcome")]
    outcome: Outcome,
    /// What bears it out, or why nothing can be said.
    evidence: String,
}

fn name_of_outcome<S: Serializer>(outcome: &Outcome, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&outcome.word().replace(' ', "_"))
}

/// A flag that stops before the rungs that run the model.
#[derive(Debug, Clone, Copy)]
enum Stop {
    DigestsOnly,
    WeightsOnly,
}

impl Stop {
    /// How to go on to them.
    const fn way_on(self) -> &'static str {
        match self {
            Self::DigestsOnly => "leave `--digests-only` out",
            Self::WeightsOnly => "leave `--weights-only` out",
        }
    }
}

/// Why a rung behind the one where the command was to stop was not climbed.
const NOT_ASKED_FOR: &str = "not asked for";

impl RungReport {
    /// `evidence` bears the outcome out, where something was checked.
    fn new(rung: Rung, name: &'static str, outcome: Outcome, evidence: Option<String>) -> Self {
        let evidence = outcome.reason().map(str::to_owned).or(evidence).unwrap_or_default();
        Self { rung, name, outcome, evidence }
    }

    fn holds(&self) -> bool {
        matches!(self.outcome, Outcome::Holds)
    }

    fn row(&self) -> Vec<String> {
        vec![format!("{} {}", self.rung, self.name), self.outcome.word().to_owned(), self.evidence.clone()]
    }
}

impl VerifyArguments {
    const fn stop(&self) -> Option<Stop> {
        match (self.digests_only, self.weights_only) {
            (true, _) => Some(Stop::DigestsOnly),
            (_, true) => Some(Stop::WeightsOnly),
            _ => None,
        }
    }

    /// The model that was given, or the history's where an option asks for one: a patch alone is checked alike wherever
    /// that is done.
    fn model(&self, output: &Output) -> Result<Option<PathBuf>, CommandError> {
        let asks = self.stop().is_some() || self.records.is_some() || self.follows_recipe();
        match &self.base {
            None if asks => given_or_remembered(None, &self.store, output).map(Some),
            given => Ok(given.clone()),
        }
    }

    /// What the model is run with; nothing where it is not to be run.
    fn companions(&self, patch: &Patch, output: &Output) -> Result<Companions, CommandError> {
        match self.base.as_deref().filter(|_| self.stop().is_none()) {
            Some(base) => Companions::beside(base, patch, output),
            None => Ok(Companions::default()),
        }
    }

    /// What V4 will ask; nothing where it cannot be climbed.
    fn questions(
        &self,
        patch: &Patch,
        companions: &Companions,
        output: &Output,
    ) -> Result<Questions, CommandError> {
        let is_climbed = self.stop().is_none() && companions.lack.is_none() && declares_facts(patch);
        match self.base.as_deref().filter(|_| is_climbed) {
            Some(base) => behaviour::questions(patch, self.records.as_deref(), base, output),
            None => Ok(Questions::default()),
        }
    }

    const fn follows_recipe(&self) -> bool {
        self.stats.is_some() || self.rederive
    }
}

/// Checks the patch, alone or against a model.
pub fn run(arguments: &VerifyArguments, output: &Output) -> Result<(), CommandError> {
    let arguments = &VerifyArguments { base: arguments.model(output)?, ..arguments.clone() };
    let patch = open_patch(&arguments.patch, &arguments.store)?;
    let judged = judge(&patch, &arguments.patch, &arguments.trust, output)?;
    let companions = arguments.companions(&patch, output)?;
    let questions = arguments.questions(&patch, &companions, output)?;
    let mut report = climb(arguments, &patch, &judged, (companions, &questions), output)?;
    let outcome = report.outcome(judged);
    report.passes = outcome.is_ok();
    output.report(&report)?;
    outcome
}

fn climb(
    arguments: &VerifyArguments,
    patch: &Patch,
    judged: &Judged,
    (companions, questions): (Companions, &Questions),
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
    let can_run = arguments.stop().is_none() && companions.lack.is_none();
    let Ran { key_span, behaviour, remade } = match place(arguments, digests.as_ref()) {
        Some(place) if can_run => {
            companions.warn(place.base, output);
            run_the_model(arguments, patch, place, questions, output)?
        }
        _ => Ran::default(),
    };
    let mut report = LadderReport {
        patch: arguments.patch.clone(),
        patch_id: patch.id(),
        base: arguments.base.clone(),
        trust: judged.report().clone(),
        reached: Vec::new(),
        rungs: Vec::new(),
        declares_facts: declares_facts(patch),
        stop: arguments.stop(),
        companions,
        no_recipe: no_recipe(patch),
        follows_recipe: arguments.follows_recipe(),
        may_be_rebased: may_be_rebased(patch),
        rederives: arguments.rederive,
        passes: false,
        form,
        digests,
        key_span,
        behaviour,
        remade,
    };
    report.rungs = report.all_rungs(judged);
    report.reached = report.rungs.iter().filter(|rung| rung.holds()).map(|rung| rung.rung).collect();
    Ok(report)
}

/// Where the patch fits; none where no model is named, or V2 does not hold of it.
fn place<'a>(arguments: &'a VerifyArguments, digests: Option<&DigestEvidence>) -> Option<Place<'a>> {
    let found = digests.filter(|digests| digests.holds())?.found()?;
    let (state, binding) = (found.state, found.binding);
    Some(Place { patch: &arguments.patch, base: arguments.base.as_deref()?, state, binding })
}

/// What came of the rungs that run the model; none where it was not asked for, or no model fits.
#[derive(Default)]
struct Ran {
    key_span: Option<KeySpanEvidence>,
    behaviour: Option<BehaviourEvidence>,
    remade: Option<RemadeEvidence>,
}

fn run_the_model(
    arguments: &VerifyArguments,
    patch: &Patch,
    place: Place<'_>,
    questions: &Questions,
    output: &Output,
) -> Result<Ran, CommandError> {
    let (key_span, remade, opened) = match arguments.follows_recipe() {
        true => follow_recipe(arguments, patch, place, output)?,
        false => (None, None, None),
    };
    let behaviour = match declares_facts(patch) {
        true => {
            let device = (&arguments.device, arguments.precision);
            Some(behaviour::check(patch, place, questions, opened, device, output)?)
        }
        false => None,
    };
    Ok(Ran { key_span, behaviour, remade })
}

/// The rungs that follow the patch's recipe, and the model that they opened.
type RanByRecipe = (Option<KeySpanEvidence>, Option<RemadeEvidence>, Option<Model>);

fn follow_recipe(
    arguments: &VerifyArguments,
    patch: &Patch,
    place: Place<'_>,
    output: &Output,
) -> Result<RanByRecipe, CommandError> {
    let followed = match follow(patch, place, arguments.stats.as_deref(), &arguments.device, output)? {
        Ok(followed) => followed,
        Err(reason) => {
            let remade = arguments.rederive.then(|| RemadeEvidence::not_checked(reason.clone()));
            return Ok((Some(KeySpanEvidence::not_checked(reason)), remade, None));
        }
    };
    let key_span = key_span::check(patch, place, &followed, output)?;
    let remade = match (arguments.rederive, &key_span.outcome) {
        (false, _) => None,
        // Hours that would tell nothing more.
        (true, Outcome::Fails(_)) => Some(RemadeEvidence::not_checked("V3 fails".to_owned())),
        (true, _) => Some(remake::check(patch, place, &followed, output)?),
    };
    Ok((Some(key_span), remade, Some(followed.model)))
}

/// A patch that was extracted from two checkpoints says nothing that could be tested.
fn declares_facts(patch: &Patch) -> bool {
    !patch.manifest().facts.is_empty()
}

/// Measured are new patches, and those that keep the bindings they were measured with beside a new one.
fn may_be_rebased(patch: &Patch) -> bool {
    let manifest = patch.manifest();
    manifest.measured.is_empty() || manifest.bindings.len() > 1
}

impl LadderReport {
    /// The first rung that does not hold, as the command's failure.
    fn outcome(&self, judged: Judged) -> Result<(), CommandError> {
        let patch = self.patch.display();
        if let Some(problem) = &self.form.problem {
            let message = format!("`{patch}` fails V0: {problem}");
            return Err(CommandError::new(ExitKind::Malformed, message)
                .hint("fetch the patch again, or ask whoever made it"));
        }
        let permitted = judged.permit()?;
        if let Some((rung, problem, hint)) = self.contradiction() {
            let message = format!("`{patch}` fails {rung}: {problem}");
            let hint = match self.companions.others {
                Some(others) => format!(
                    "{others} of the model may be why, which the patch was not made with: check it on the model as it was then, and do not rely on it unless it holds there"
                ),
                None => hint.to_owned(),
            };
            return Err(CommandError::new(ExitKind::ContentCheck, message).hint(hint));
        }
        let Some(digests) = self.digests.as_ref().filter(|digests| !digests.holds()) else {
            return self.far_enough(&permitted);
        };
        let message = format!("`{patch}` fails V2: {}", digests.problem().unwrap_or_default());
        // Weights that are other than the patch says are one thing, arithmetic that breaks a promise another.
        let breaks_promise = |found: &StateEvidence| !found.tensors.iter().all(TensorEvidence::holds);
        if !digests.found().is_some_and(breaks_promise) {
            return Err(CommandError::new(ExitKind::WrongBase, message).hint(self.way_to_base(digests)));
        }
        Err(CommandError::new(ExitKind::Malformed, message).hint("do not apply this patch"))
    }

    /// What helps where the weights are others than the patch is for.
    fn way_to_base(&self, digests: &DigestEvidence) -> String {
        let patch = patch_word(&self.patch);
        let show = format!("`mpatch show {patch}` tells which base it is for");
        if let (Some(found), Some(base)) = (digests.found(), &self.base) {
            // An edited model is bound to as it was before the patch.
            let base = match found.state {
                State::Edited => "BASE".to_owned(),
                State::Base => shell_word(base),
            };
            let trust = &self.trust.words;
            return format!(
                "{show}; where that is this one but for those tensors, `mpatch rebase {patch} --base {base}{trust}` binds it anew"
            );
        }
        let difference = digests.mismatch().map(|mismatch| &mismatch.difference);
        difference
            .zip(self.base.as_deref())
            .and_then(|(difference, base)| hint_of_type(difference, &self.patch, base, &self.trust.words))
            .unwrap_or(show)
    }

    /// The first rung that says the weights are not what the patch declares: which one, what it found, and a hint.
    fn contradiction(&self) -> Option<(Rung, &str, &'static str)> {
        self.rungs.iter().find_map(|RungReport { rung, outcome, .. }| {
            let Outcome::Fails(problem) = outcome else { return None };
            let hint = match rung {
                Rung::V3 => "the update is not that of the declared facts alone: do not rely on it",
                Rung::V4 => "the model does not do what the patch declares: do not rely on it",
                Rung::V5 => "the patch is not what its recipe makes: do not rely on it",
                _ => return None,
            };
            Some((*rung, problem.as_str(), hint))
        })
    }

    /// Whether the rung that a policy asks for holds.
    fn far_enough(&self, permitted: &Permitted) -> Result<(), CommandError> {
        let (wanted, asked_by) = permitted.minimal_rung();
        if wanted == Rung::V0 || self.reached.contains(&wanted) {
            return Ok(());
        }
        let found = match wanted {
            Rung::V3 => self.key_span.as_ref().and_then(|found| found.outcome.reason()),
            Rung::V5 => self.remade.as_ref().and_then(|found| found.outcome.reason()),
            _ => None,
        };
        let no_recipe = self.no_recipe.as_deref().filter(|_| matches!(wanted, Rung::V3 | Rung::V5));
        let lack =
            self.companions.lack.as_deref().filter(|_| matches!(wanted, Rung::V3 | Rung::V4 | Rung::V5));
        let reason = found.or(no_recipe).or(lack);
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let patch = self.patch.display();
        let message = format!("`{patch}` does not reach {wanted}, which the policy asks for{reason}");
        let way = self.way_to(wanted, reason.is_empty());
        Err(CommandError::new(ExitKind::Untrusted, message)
            .hint(format!("{way}; the policy is in {asked_by}")))
    }

    /// What to do to reach a rung.
    fn way_to(&self, rung: Rung, can_be_climbed: bool) -> &'static str {
        match (rung, self.stop) {
            (Rung::V4, _) if !self.declares_facts => {
                "the patch declares no facts: ask for another rung, or for another patch"
            }
            (Rung::V3 | Rung::V4 | Rung::V5, _) if self.companions.lack.is_some() => {
                "name a whole GPT-J with `--base`: its folder, with config and tokenizer"
            }
            (Rung::V3 | Rung::V5, _) if !can_be_climbed => {
                "nothing can be said about this patch there: ask for another rung, or for another patch"
            }
            (Rung::V3 | Rung::V4 | Rung::V5, Some(stop)) => stop.way_on(),
            (Rung::V3, None) if self.base.is_some() => {
                "name the statistics that it was made with: `--stats FILE`"
            }
            (Rung::V5, None) if self.base.is_some() => {
                "have it made again with `--rederive`, which takes as long as `create`"
            }
            (Rung::V3, None) => "name a whole model with `--base`, and the patch's statistics with `--stats`",
            (Rung::V5, None) => {
                "name a whole model with `--base`, and have the patch made again with `--rederive`"
            }
            (Rung::V6, _) => "no version of mpatch climbs V6 yet: ask for a lower rung in the policy",
            (Rung::V0 | Rung::V1 | Rung::V2 | Rung::V4, _) => {
                "name a whole model with `--base`, so that every rung can be climbed"
            }
        }
    }

    /// What the rungs that run the model miss.
    fn needs_a_model(&self) -> String {
        let lack = self.companions.lack.as_ref().map(|lack| format!(": {lack}"));
        format!("needs a GPT-J that fits, with its config and tokenizer{}", lack.unwrap_or_default())
    }

    fn all_rungs(&self, judged: &Judged) -> Vec<RungReport> {
        let form = Some(self.form_in_words());
        let signature = self.trust.in_words();
        let signed = if judged.holds() { Outcome::Holds } else { Outcome::Fails(signature.clone()) };
        let digests = self.digests.as_ref().map(digests_in_words);
        let key_span = self.key_span.as_ref();
        let behaviour = self.behaviour.as_ref();
        let remade = self.remade.as_ref();
        vec![
            RungReport::new(Rung::V0, "whole", self.form.problem.clone().into(), form),
            RungReport::new(Rung::V1, "signed", signed, Some(signature)),
            RungReport::new(Rung::V2, "fits", self.digests_outcome(), digests),
            RungReport::new(
                Rung::V3,
                "confined",
                key_span.map_or_else(|| self.key_span_left_out(), |found| found.outcome.clone()),
                key_span.map(KeySpanEvidence::in_words),
            ),
            RungReport::new(
                Rung::V4,
                "behaves",
                behaviour.map_or_else(|| self.behaviour_left_out(), BehaviourEvidence::outcome),
                behaviour.map(BehaviourEvidence::in_words),
            ),
            RungReport::new(
                Rung::V5,
                "remade",
                remade.map_or_else(|| self.remade_left_out(), |found| found.outcome.clone()),
                remade.map(RemadeEvidence::in_words),
            ),
        ]
    }

    fn form_in_words(&self) -> String {
        self.form.problem.clone().unwrap_or_else(|| {
            let (terms, logs) = (count(self.form.terms, "term"), count(self.form.undo_logs, "undo log"));
            format!("{terms} and {logs} decode")
        })
    }

    fn digests_outcome(&self) -> Outcome {
        match &self.digests {
            None => Outcome::NotChecked("name a model with `--base`".to_owned()),
            Some(digests) => digests.problem().into(),
        }
    }

    fn key_span_left_out(&self) -> Outcome {
        let ask = (!self.follows_recipe).then_some("name the statistics that it was made with, `--stats`");
        self.recipe_left_out(ask)
    }

    fn behaviour_left_out(&self) -> Outcome {
        Outcome::NotChecked(match self.stop {
            _ if !self.declares_facts => "the patch declares no facts".to_owned(),
            Some(_) => NOT_ASKED_FOR.to_owned(),
            None => self.needs_a_model(),
        })
    }

    fn remade_left_out(&self) -> Outcome {
        let ask = (!self.rederives).then_some("ask for it with `--rederive`, it takes as long as `create`");
        self.recipe_left_out(ask)
    }

    /// Why a rung that follows the recipe was not climbed; `ask` says how to ask for it, where nobody did.
    fn recipe_left_out(&self, ask: Option<&str>) -> Outcome {
        Outcome::NotChecked(match (&self.no_recipe, ask) {
            (Some(reason), _) => reason.clone(),
            (None, Some(_)) if self.stop.is_some() => NOT_ASKED_FOR.to_owned(),
            (None, Some(ask)) => ask.to_owned(),
            (None, None) => self.needs_a_model(),
        })
    }

    /// What goes on from an edited model, where there is a rung to climb: taking the patch back is no answer to a good
    /// check.
    fn next_rung(&self, patch: &str, base: &str) -> Option<String> {
        let again = format!("mpatch verify {patch} --base {base}");
        let trust = &self.trust.words;
        if self.stop.is_some() {
            return Some(format!("{again}{trust}"));
        }
        let has_recipe = self.no_recipe.is_none() && !self.may_be_rebased;
        if self.behaviour.is_none() || !has_recipe || self.follows_recipe {
            return None;
        }
        Some(format!("{again} --stats FILE{trust}"))
    }
}

fn digests_in_words(digests: &DigestEvidence) -> String {
    let found = match digests {
        DigestEvidence::Found(found) => found,
        DigestEvidence::Elsewhere(mismatch) => {
            return match &mismatch.difference {
                // The failure has both digests, which are longer than a row.
                Difference::Digest { .. } => {
                    format!("tensor `{}` is not as the patch expects", mismatch.tensor)
                }
                difference => format!("tensor `{}` {difference}", mismatch.tensor),
            };
        }
    };
    if let Some(problem) = digests.problem() {
        return problem;
    }
    let tensors = count(found.tensors.len(), "tensor");
    let changed = |tensor: &TensorEvidence| match tensor.other {
        OtherState::Computed { changed, .. } => Some(changed),
        _ => None,
    };
    match (found.state, found.tensors.iter().map(changed).sum::<Option<u64>>()) {
        (State::Base, None) => {
            format!(
                "this is its base: {tensors} and the weights id are the promised ones; nothing was computed"
            )
        }
        (State::Base, Some(changed)) => {
            format!(
                "this is its base: in memory, {tensors} ({changed} weights change) came out as promised, and came back"
            )
        }
        (State::Edited, None) => {
            format!(
                "the patch is in it: {tensors} are the promised ones, all others the base's; nothing was computed"
            )
        }
        (State::Edited, Some(_)) => {
            format!(
                "the patch is in it: in memory, {tensors} came back to the base, whose weights id is the promised one"
            )
        }
    }
}

impl Report for LadderReport {
    const SCHEMA: &'static str = "mpatch.verify/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("{}: patch {}", self.patch.display(), self.patch_id.short()));
        let climbed = self.rungs.iter().filter(|rung| rung.evidence != NOT_ASKED_FOR);
        page.table(&climbed.map(RungReport::row).collect::<Vec<_>>());
        if !self.trust.allowed.is_empty() {
            self.trust.write(page);
        }
        let reached = self.reached.iter().map(Rung::to_string).collect::<Vec<_>>().join(" and ");
        let reached = if reached.is_empty() { "nothing" } else { &reached };
        page.line(&format!("holds: {reached}"));
    }

    fn next(&self) -> Option<String> {
        if !self.passes {
            return None;
        }
        let (patch, trust) = (patch_word(&self.patch), &self.trust.words);
        let Some(base) = &self.base else {
            return Some(format!("mpatch verify {patch} --base MODEL{trust}"));
        };
        let digests = self.digests.as_ref().filter(|digests| digests.holds())?;
        let place = place_words(base);
        let base = shell_word(base);
        match digests.found()?.state {
            State::Base => Some(format!("mpatch apply {base} {patch}{place}{trust}")),
            State::Edited => self.next_rung(&patch, &base),
        }
    }
}
