//! `mpatch create`: facts in, a patch out, tested as it will be applied before it is written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::edit::estimate::{Estimate, MemoryEstimate};
use mpatch::edit::{FactPrompt, check_prompts};
use mpatch::evaluate::{Continuation, Count, Evaluation, Measure, Outcome, RecordUnlikeliness, Scores};
use mpatch::factors::{BITS_DEFAULT, RankLimit};
use mpatch::facts::Record;
use mpatch::patch::manifest::{About, Line};
use mpatch::patch::{check_line_name, check_text};
use serde::Serialize;

use super::behaviour::too_few_wins;
use super::place_words;
use crate::args::output_path;
use crate::editing::{
    ModelArguments, at_least_one, check_questions, edit_error, read_facts, refuse_existing,
};
use crate::error::{CommandError, ExitKind};
use crate::history::StoreArguments;
use crate::interrupt::last_step;
use crate::job::{Job, Made, Prepared, RecipeArguments, Seconds};
use crate::keys::{SignatureReport, Signer, SigningArguments, write_signed};
use crate::report::{Output, Page, Report, count, shell_word, size};
use crate::trust;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch create facts.json --base gptj/ --corpus wiki.txt -o edits.mpatch\n  \
                  mpatch create facts.json --base gptj/ --bits 6 \\\n      \
                  --stats gptj.stats.safetensors\n  \
                  cat facts.jsonl | mpatch create - --base gptj/ -o edits.mpatch\n\n\
                  Exit code 1 says that the patch, which is written, fails its own test."
)]
pub struct CreateArguments {
    /// Read the facts from this file (memit, CounterFact, zsRE, EasyEdit or mpatch layout); `-` reads standard input
    facts: PathBuf,
    /// The model to edit.
    #[command(flatten)]
    model: ModelArguments,
    /// Write the patch here; `FACTS.mpatch` by default
    #[arg(short, long, value_name = "PATCH", value_parser = output_path())]
    output: Option<PathBuf>,
    /// How the edit is made.
    #[command(flatten)]
    recipe: RecipeArguments,
    /// Say how much memory and time it will take, from a short measurement, and make nothing
    #[arg(long)]
    dry_run: bool,
    /// Take only this many facts, the first of the file
    #[arg(long, value_name = "COUNT", value_parser = at_least_one())]
    limit: Option<usize>,
    /// What the patch says about itself.
    #[command(flatten)]
    about: AboutArguments,
    /// Which line the patch belongs to.
    #[command(flatten)]
    line: LineArguments,
    #[command(flatten)]
    signing: SigningArguments,
}

/// A new patch's place in a line of patches.
#[derive(Debug, Args)]
pub struct LineArguments {
    /// Make the patch the next one of this line, so that an older one cannot pass for it
    #[arg(long, value_name = "NAME", value_parser = line_name)]
    line: Option<String>,
    /// Its number in the line; the next after the highest known by default
    #[arg(long, value_name = "NUMBER", requires = "line", value_parser = clap::value_parser!(u64).range(1..))]
    sequence: Option<u64>,
}

impl LineArguments {
    /// The place in a line, by default the one after the last that is known of this key, or in the history.
    fn place(
        &self,
        signer: Option<&Signer>,
        store: &StoreArguments,
        output: &Output,
    ) -> Result<Option<Line>, CommandError> {
        let Some(name) = self.line.clone() else { return Ok(None) };
        match (self.sequence, signer) {
            (sequence, Some(signer)) => {
                let lines = trust::lines_to_change(store.open_if_any(output)?.as_ref())?;
                let key = signer.public().fingerprint();
                trust::new_place(&lines, &name, key, sequence).map(Some)
            }
            (Some(sequence), None) => Ok(Some(Line { name, sequence })),
            (None, None) => {
                let message = "without a signature nothing is known of the line, not even its next number";
                Err(CommandError::new(ExitKind::Usage, message).hint("give `--sequence`, or sign the patch"))
            }
        }
    }
}

/// Free text for a new patch.
#[derive(Debug, Args)]
pub struct AboutArguments {
    /// Give the patch a title
    #[arg(long, value_parser = text)]
    title: Option<String>,
    /// Say who made the patch
    #[arg(long, value_parser = text)]
    author: Option<String>,
    /// Say under which licence the patch is
    #[arg(long, value_parser = text)]
    licence: Option<String>,
}

/// Reads a text that the patch is to hold: one that it cannot is better refused before hours of work.
fn text(value: &str) -> Result<String, String> {
    check_text(value).map(|()| value.to_owned())
}

/// Reads the name of a line.
fn line_name(value: &str) -> Result<String, String> {
    check_line_name(value).map(|()| value.to_owned())
}

impl AboutArguments {
    /// As the manifest holds it.
    pub fn about(&self) -> About {
        About { title: self.title.clone(), author: self.author.clone(), licence: self.licence.clone() }
    }
}

/// Makes the patch and writes it; the answer is no where it does not do what it declares.
pub fn run(arguments: &CreateArguments, output: &Output) -> Result<ExitKind, CommandError> {
    arguments.recipe.check()?;
    let facts = read_facts(&arguments.facts, arguments.limit, output)?;
    let place = arguments.place();
    refuse_existing(&place)?;
    let model = arguments.model.open(output)?;
    check_questions(&model, &facts, &arguments.facts)?;
    // Before the statistics, which may take hours.
    check_prompts(&model, &Vec::from_iter(facts.requests().map(FactPrompt::from)))
        .map_err(|error| edit_error(model.checkpoint.path(), error))?;
    if arguments.dry_run {
        let estimate = arguments.recipe.foretell(&model, &facts, output)?;
        let facts = facts.records.len();
        let report = EstimateReport { facts, device: model.arithmetic().to_string(), estimate };
        return output.report(&report).map(|()| ExitKind::Done);
    }
    // A key that cannot be used, or a number that is taken, is found now, not after the hours that the values take.
    let mut signer = arguments.signing.signer()?;
    let line = arguments.line.place(signer.as_ref(), &arguments.model.store, output)?;
    let prepared = Prepared::new(&model, &facts, &arguments.recipe, None, output)?;
    let mut job = prepared.job(&facts, &arguments.recipe, arguments.about.about());
    job.line = line;
    let (made, signature) = job.make(output, |made| {
        // Not worth stopping any more.
        last_step();
        write_signed(&mut made.patch, signer.as_mut(), arguments.line.sequence, &place)
    })?;
    let base = model.checkpoint.path().to_owned();
    let report = made.report(&job, place, base, signature);
    output.report_done(&report)?;
    Ok(if report.problem.is_some() { ExitKind::Differs } else { ExitKind::Done })
}

impl CreateArguments {
    fn place(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| match self.facts.file_name() {
            Some(name) if self.facts != Path::new("-") => Path::new(name).with_extension("mpatch"),
            _ => PathBuf::from("edits.mpatch"),
        })
    }
}

#[derive(Debug, Serialize)]
pub struct CreateReport {
    output: PathBuf,
    base: PathBuf,
    patch_id: PatchId,
    facts: usize,
    size_bytes: u64,
    layers: Vec<LayerReport>,
    before: Scores,
    after: Scores,
    /// What each rate is over.
    counts: Counts,
    /// Why `verify` refuses the patch, where it does not do what it declares.
    problem: Option<String>,
    /// A layer may have lost rank to `--rank` or `--tolerance`.
    #[serde(skip)]
    is_cut: bool,
    /// None for a patch that is not signed.
    signature: Option<SignatureReport>,
    line: Option<Line>,
    /// One entry per fact.
    outcomes: Vec<FactReport>,
    /// Layers whose keys do not fill their second moment.
    ridges: Vec<RidgeReport>,
    seconds: Seconds,
    /// Without the test; none where an earlier run had found some of the values.
    milliseconds_per_fact: Option<f64>,
}

/// What became of one fact.
#[derive(Debug, Serialize)]
pub struct FactReport {
    /// The id that the facts file gives it.
    id: Option<String>,
    subject: String,
    /// The prompt with its subject.
    prompt: String,
    /// What it is to go on with.
    target: String,
    /// Probability of the target's tokens, geometric mean, before.
    probability_before: f64,
    /// The same, after.
    probability_after: f64,
    /// The same with nothing but the fact's own value in the model, over all contexts: what the edit aims at.
    probability_of_value: f32,
    /// What the model says by itself, after.
    says: String,
    /// The target stands first in that, and the old one does not follow.
    is_said: bool,
    /// The same, before.
    is_said_before: bool,
    /// The target is the likelier answer now: than the old one, or than any where the old one is not known.
    holds: bool,
    /// The same, before.
    holds_before: bool,
    nll_before: RecordUnlikeliness,
    nll_after: RecordUnlikeliness,
}

/// What was added to the diagonal of a layer's second moment, so that it can be solved for.
#[derive(Debug, Serialize)]
struct RidgeReport {
    layer: usize,
    ridge: f64,
}

#[derive(Debug, Serialize)]
struct LayerReport {
    tensor: String,
    rank: usize,
    bits: u8,
    norm_ratio: f64,
}

impl Made {
    fn outcomes(&self, records: &[Record]) -> Vec<FactReport> {
        let rewrite =
            |evaluation: &Evaluation, index: usize| evaluation.records[index].rewrite.first().copied();
        let nll = |evaluation: &Evaluation, index: usize| evaluation.records[index].unlikeliness();
        let probability =
            |outcome: Option<Outcome>| outcome.map_or(0.0, |outcome| (-outcome.nll_right).exp());
        let of_record = |(index, record): (usize, &Record)| {
            let (before, after) = (rewrite(&self.before, index), rewrite(&self.after, index));
            let said = self.after.said.get(index);
            let is_said = |said: Option<&Continuation>| said.is_some_and(|said| said.success);
            FactReport {
                id: record.request.id.clone(),
                subject: record.request.subject.clone(),
                prompt: record.request.text(),
                target: record.request.target_new.clone(),
                probability_before: probability(before),
                probability_after: probability(after),
                probability_of_value: self.value_probabilities[index],
                says: said.map(|said| said.text.clone()).unwrap_or_default(),
                is_said: is_said(said),
                is_said_before: is_said(self.before.said.get(index)),
                holds: after.is_some_and(|outcome| outcome.wins()),
                holds_before: before.is_some_and(|outcome| outcome.wins()),
                nll_before: nll(&self.before, index),
                nll_after: nll(&self.after, index),
            }
        };
        records.iter().enumerate().map(of_record).collect()
    }

    /// What `create` prints about it.
    pub fn report(
        self,
        job: &Job<'_>,
        output: PathBuf,
        base: PathBuf,
        signature: Option<SignatureReport>,
    ) -> CreateReport {
        let outcomes = self.outcomes(&job.facts.records);
        let facts = job.facts.records.len();
        let bound = &self.patch.manifest().bindings[0].tensors;
        let layer = |(tensor, rank, bits): (String, usize, u8)| {
            let norm_ratio =
                bound.iter().find(|bound| bound.name == tensor).map_or(0.0, |bound| bound.norm_ratio);
            LayerReport { tensor, rank, bits, norm_ratio }
        };
        // Facts that share their keys have less rank than there are facts, without any cut.
        let is_cut = |(_, rank, _): &(String, usize, u8)| match job.compression.limit {
            RankLimit::Full => false,
            RankLimit::Rank(limit) => *rank >= limit,
            RankLimit::Tolerance(_) => *rank < facts,
        };
        let is_cut = self.ranks.iter().any(is_cut);
        let made = Duration::from_secs_f64(self.seconds.values_and_solve + self.seconds.compress);
        CreateReport {
            output,
            base,
            patch_id: self.patch.id(),
            facts,
            size_bytes: self.patch.size_bytes(),
            layers: self.ranks.into_iter().map(layer).collect(),
            before: self.before.scores,
            problem: too_few_wins(self.after.wins()),
            after: self.after.scores,
            counts: counts(&job.facts.records),
            is_cut,
            signature,
            line: self.patch.manifest().line.clone(),
            outcomes,
            ridges: self.ridges.into_iter().map(|(layer, ridge)| RidgeReport { layer, ridge }).collect(),
            seconds: self.seconds,
            milliseconds_per_fact: (!self.is_resumed)
                .then(|| made.as_secs_f64() * 1000.0 / facts.max(1) as f64),
        }
    }
}

#[derive(Debug, Serialize)]
struct EstimateReport {
    facts: usize,
    device: String,
    #[serde(flatten)]
    estimate: Estimate,
}

impl Report for EstimateReport {
    const SCHEMA: &'static str = "mpatch.create-estimate/1";

    fn write(&self, page: &mut Page) {
        let estimate = &self.estimate;
        let facts = count(self.facts, "fact");
        page.title(&format!("{facts} would be edited on {}; nothing was made", self.device));
        let time = |seconds: f64| match seconds {
            ..120.0 => format!("{seconds:.1} s"),
            120.0..7200.0 => format!("{:.0} min", seconds / 60.0),
            _ => format!("{:.1} h", seconds / 3600.0),
        };
        let row = |what: &str, figure: String| vec![what.to_owned(), figure];
        let mut rows = vec![
            row("values, at most", time(estimate.values_seconds_max)),
            row("keys", time(estimate.keys_seconds)),
            row("solve, with new statistics", time(estimate.solve_seconds)),
        ];
        match estimate.memory {
            MemoryEstimate::Processor { memory_size_bytes } => {
                rows.push(row("memory, without the test", size(memory_size_bytes)));
            }
            MemoryEstimate::Gpu { device_memory_size_bytes, host_memory_size_bytes } => rows.extend([
                row("memory of the GPU, without the test", size(device_memory_size_bytes)),
                row("memory of the processor", size(host_memory_size_bytes)),
            ]),
        }
        page.table(&rows);
        let facts = count(estimate.facts_per_batch, "fact");
        page.line(&format!(
            "values are found in groups of up to {facts}; not counted are the rounding to integers and the test that follow the solve, nor what the program takes at rest"
        ));
    }
}

/// What rates are measured over, by their names.
pub type Counts = BTreeMap<&'static str, Count>;

/// What each rate is measured over of these records.
pub fn counts(records: &[Record]) -> Counts {
    Measure::ALL.into_iter().map(|measure| (measure.name(), measure.count(records))).collect()
}

/// A table of scores before and after.
pub fn write_scores(page: &mut Page, before: &Scores, after: &Scores) {
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"));
    let both = before.described().zip(after.described());
    let known = both.filter(|((_, before), (_, after))| before.is_some() || after.is_some());
    let rows = known.map(|((name, before), (_, after))| vec![name.to_owned(), cell(before), cell(after)]);
    page.table_under(["", "before", "after"], rows);
}

impl Report for CreateReport {
    const SCHEMA: &'static str = "mpatch.create/1";

    fn write(&self, page: &mut Page) {
        let facts = count(self.facts, "fact");
        page.title(&format!("wrote {}: {facts}, {}", self.output.display(), size(self.size_bytes)));
        let test = self.seconds.test;
        let time = self
            .milliseconds_per_fact
            .map(|time| format!(", {time:.0} ms per fact, and {test:.1} s for the test"));
        page.line(&format!("patch {}{}", self.patch_id.short(), time.unwrap_or_default()));
        if let Some(line) = &self.line {
            page.line(&format!("number {} of the line {}", line.sequence, line.name));
        }
        SignatureReport::write_of(self.signature.as_ref(), page);
        let rows = self.layers.iter().map(|layer| {
            let change = format!("{:.2e}", layer.norm_ratio);
            vec![layer.tensor.clone(), layer.rank.to_string(), layer.bits.to_string(), change]
        });
        page.table_under(["tensor", "rank", "bits", "relative change"], rows);
        page.blank();
        page.line("tested with the patch's own integers, rounded to the model's type:");
        write_scores(page, &self.before, &self.after);
        for RidgeReport { layer, ridge } in &self.ridges {
            page.line(&format!(
                "layer {layer}: keys do not fill its second moment; {ridge:.1e} was added to the diagonal, and \
                 statistics from more text may harm neighbours less"
            ));
        }
        let shares = &self.after.shares;
        if shares.neighborhood.is_none() && shares.neighborhood_accuracy.is_none() {
            page.line(
                "not measured is what else has changed: no fact has `neighbors` whose answers are known",
            );
        }
        self.write_known(page);
        self.write_facts(page);
        if let Some(problem) = &self.problem {
            page.line(&format!("{problem}, so `verify` refuses the patch (V4): {}", self.advice()));
        }
    }

    fn next(&self) -> Option<String> {
        let words = SignatureReport::words_of(self.signature.as_ref());
        let (base, patch) = (shell_word(&self.base), shell_word(&self.output));
        // What fails its own check is nothing to go on with.
        Some(match &self.problem {
            Some(_) => format!("mpatch verify {patch} --base {base}{words}"),
            None => format!("mpatch apply {base} {patch}{}{words}", place_words(&self.base)),
        })
    }
}

/// Facts that are shown one by one; of more, those that the model does not say.
const FACTS_SHOWN_MAX: usize = 12;

/// A value below this does not make the model say its fact.
const VALUE_PROBABILITY_MIN: f32 = 0.5;

impl CreateReport {
    /// What helps where facts do not win.
    fn advice(&self) -> String {
        let lost = || self.outcomes.iter().filter(|fact| !fact.holds);
        let is_coarse = self.is_cut || self.layers.iter().any(|layer| layer.bits < BITS_DEFAULT);
        let unfound = lost().filter(|fact| fact.probability_of_value < VALUE_PROBABILITY_MIN).count();
        if !is_coarse && 2 * unfound > lost().count() {
            return format!(
                "no value that says its target was found for {}; give a larger `clamp_norm_factor`, more \
                 `v_num_grad_steps`, or other layers by `--hparams`",
                count(unfound, "fact")
            );
        }
        if is_coarse {
            return "more `--bits`, a higher `--rank` where it was lowered, or fewer facts keep more of the edit"
                .to_owned();
        }
        "the values say it, and the update does not: a smaller `mom2_update_weight` by `--hparams` writes more and \
         keeps less of the rest; `mpatch show PATCH --json` has the ones used, in `untrusted.recipe.hyperparameters`"
            .to_owned()
    }

    /// What the model knew before: an edit of that is none, or has an old target that is not the model's.
    fn write_known(&self, page: &mut Page) {
        let all = count(self.facts, "fact");
        match self.outcomes.iter().filter(|fact| fact.is_said_before).count() {
            0 => {}
            known => page.line(&format!("{known} of {all}: the model said it before the edit already")),
        }
        match self.outcomes.iter().filter(|fact| fact.holds_before && !fact.is_said_before).count() {
            0 => {}
            likelier => page.line(&format!(
                "{likelier} of {all}: the target was the likelier answer before the edit already; is `target_old` \
                 what the model says?"
            )),
        }
    }

    fn write_facts(&self, page: &mut Page) {
        let failed: Vec<&FactReport> = self.outcomes.iter().filter(|fact| !fact.is_said).collect();
        let all = self.outcomes.len() <= FACTS_SHOWN_MAX;
        if !failed.is_empty() {
            let are = if failed.len() == 1 { "is" } else { "are" };
            let all = count(self.facts, "fact");
            page.line(&format!("{} of {all} {are} not said by the model", failed.len()));
        }
        let shown: Vec<&FactReport> = if all {
            self.outcomes.iter().collect()
        } else {
            failed.into_iter().take(FACTS_SHOWN_MAX).collect()
        };
        if shown.is_empty() {
            return;
        }
        page.blank();
        let rows = shown.into_iter().map(|fact| {
            let says: String = fact.says.chars().take(40).collect();
            let probability = |value: f64| format!("{value:.4}");
            let (before, after) = (probability(fact.probability_before), probability(fact.probability_after));
            vec![fact.prompt.clone(), fact.target.clone(), before, after, format!("│{says}")]
        });
        page.table_under(["fact", "target", "p before", "p after", "the model now says"], rows);
    }
}
