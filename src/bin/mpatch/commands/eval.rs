//! `mpatch eval`: the field's metrics of a model, or of a model before and after a patch.

use std::path::PathBuf;

use clap::Args;
use mpatch::evaluate::{Evaluation, Extent, RecordUnlikeliness, Scores, Shares, evaluate, texts};
use mpatch::facts::Record;
use mpatch::model::Network;
use serde::Serialize;

use super::create::{Counts, counts, write_scores};
use super::open_patch;
use crate::editing::{
    ModelArguments, at_least_one, both_states, check_questions, model_error, read_questions,
};
use crate::error::CommandError;
use crate::report::{Output, Page, Report, count};

/// Records whose texts the n-gram entropy is taken over, where nothing else is asked for.
const ENTROPY_RECORDS_DEFAULT: usize = 20;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch eval records.json --base gptj/\n  \
                  mpatch eval records.json --base gptj/ --patch edits.mpatch\n  \
                  mpatch eval records.json --base gptj/ --patch edits.mpatch --json")]
pub struct EvalArguments {
    /// Evaluate on these records (CounterFact, zsRE, EasyEdit, memit or mpatch layout); `-` reads standard input
    records: PathBuf,
    /// The model to evaluate.
    #[command(flatten)]
    model: ModelArguments,
    /// Evaluate the model before and after this patch, whichever of the two it holds: a file, or the id or the revision
    /// of one in the history
    #[arg(long, value_name = "PATCH")]
    patch: Option<PathBuf>,
    /// Take only this many records, the first of the file
    #[arg(long, value_name = "COUNT", value_parser = at_least_one())]
    limit: Option<usize>,
    /// Measure the n-gram entropy over this many records, evenly spread; 0 leaves it out, and with it most of the time
    /// that few records take
    #[arg(long, value_name = "COUNT", default_value_t = ENTROPY_RECORDS_DEFAULT)]
    entropy_records: usize,
    /// Seed the sampled texts
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What `eval` prints: the scores of the model as it is asked about, and those before a patch.
#[derive(Debug, Serialize)]
struct EvalReport {
    base: PathBuf,
    patch: Option<PathBuf>,
    layout: String,
    #[serde(flatten)]
    scores: Scores,
    before: Option<Scores>,
    /// What each rate is over.
    counts: Counts,
    /// One entry per record.
    records: Vec<RecordReport>,
}

/// How one record fared, as the model is asked about, and before a patch.
#[derive(Debug, Serialize)]
struct RecordReport {
    id: Option<String>,
    subject: String,
    /// The prompt with its subject.
    prompt: String,
    target: String,
    #[serde(flatten)]
    found: RecordScores,
    before: Option<RecordScores>,
}

/// What one model makes of a record.
#[derive(Debug, Serialize)]
struct RecordScores {
    #[serde(flatten)]
    shares: Shares,
    /// What the model says by itself.
    says: String,
    /// The target stands first in that, and the old one does not follow.
    is_said: bool,
    nll: RecordUnlikeliness,
}

/// Every record with its scores.
fn of_records(records: &[Record], found: &Evaluation, before: Option<&Evaluation>) -> Vec<RecordReport> {
    let before = |index| before.and_then(|before| of_record(before, index));
    let report = |(index, record): (usize, &Record)| {
        let request = &record.request;
        Some(RecordReport {
            id: request.id.clone(),
            subject: request.subject.clone(),
            prompt: request.text(),
            target: request.target_new.clone(),
            found: of_record(found, index)?,
            before: before(index),
        })
    };
    records.iter().enumerate().filter_map(report).collect()
}

fn of_record(evaluation: &Evaluation, index: usize) -> Option<RecordScores> {
    let (outcome, said) = (evaluation.records.get(index)?, evaluation.said.get(index)?);
    let shares = Shares::of(std::slice::from_ref(outcome));
    let (says, is_said) = (said.text.clone(), said.success);
    Some(RecordScores { shares, says, is_said, nll: outcome.unlikeliness() })
}

/// Evaluates the model.
pub fn run(arguments: &EvalArguments, output: &Output) -> Result<(), CommandError> {
    let facts = read_questions(&arguments.records, arguments.limit, output)?;
    let patch = arguments
        .patch
        .as_deref()
        .map(|path| Ok::<_, CommandError>((path, open_patch(path, &arguments.model.store)?)))
        .transpose()?;
    let model = arguments.model.open(output)?;
    check_questions(&model, &facts, &arguments.records)?;
    let states = patch.as_ref().map(|(path, patch)| both_states(&model, patch, path, output)).transpose()?;
    let extent =
        Extent { generation: true, ngram_entropy_records: arguments.entropy_records, seed: arguments.seed };
    let runs = 1 + u64::from(states.is_some());
    let progress = output.counter("asking", runs * texts(&facts.records, extent));
    let evaluated = |network: &Network| {
        evaluate(&model, network, &facts.records, extent, &|texts| progress.add(texts))
            .map_err(|error| model_error(model.checkpoint.path(), error))
    };
    let (found, before) = match &states {
        None => (evaluated(&model.network)?, None),
        Some(states) => {
            let before = evaluated(&states.before)?;
            (evaluated(&states.after)?, Some(before))
        }
    };
    drop(progress);
    output.report(&EvalReport {
        base: model.checkpoint.path().to_owned(),
        patch: arguments.patch.clone(),
        layout: facts.layout.to_string(),
        counts: counts(&facts.records),
        records: of_records(&facts.records, &found, before.as_ref()),
        scores: found.scores,
        before: before.map(|before| before.scores),
    })
}

impl Report for EvalReport {
    const SCHEMA: &'static str = "mpatch.eval/1";

    fn write(&self, page: &mut Page) {
        let facts = count(self.scores.facts, "record");
        page.title(&match &self.patch {
            Some(patch) => format!("{facts}: {} before and after {}", self.base.display(), patch.display()),
            None => format!("{facts}: {}", self.base.display()),
        });
        match &self.before {
            Some(before) => write_scores(page, before, &self.scores),
            None => {
                let rows = self
                    .scores
                    .described()
                    .filter_map(|(name, value)| Some(vec![name.to_owned(), format!("{:.2}", value?)]));
                page.table(&rows.collect::<Vec<_>>());
            }
        }
        if self.scores.ngram_entropy_records > 0 {
            page.line(&format!("n-gram entropy over {}", count(self.scores.ngram_entropy_records, "record")));
        }
    }
}
