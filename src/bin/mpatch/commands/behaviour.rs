//! Rung V4 of `verify`: does the edited model do what the patch declares?

use std::path::{Path, PathBuf};

use mpatch::evaluate::{Evaluation, Extent, Measure, Scores, evaluate, texts};
use mpatch::facts::{Record, Request};
use mpatch::model::{Arithmetic, Model, Network, Precision};
use mpatch::patch::Patch;
use mpatch::patch::manifest::{Fact, Metric};
use mpatch::verify::State;
use serde::Serialize;

use super::follow::{Outcome, Place};
use crate::editing::{
    DeviceArguments, both_states, check_questions_unloaded, model_error, open_model_in, read_questions,
};
use crate::error::{CommandError, ExitKind};
use crate::report::{Output, count};

/// Percentage points that a rate may fall behind what the patch declares: another machine's last bits decide ties.
const SLACK_POINTS: f64 = 0.5;
/// A patch whose facts do not win at least this often does not do its work, whatever it declares.
const WINS_MIN_PERCENT: f64 = 50.0;

/// The measures by which facts win.
const WINS: [Measure; 2] = [Measure::Efficacy, Measure::RewriteAccuracy];

/// The measures over prompts that stand beside a fact, which a patch does not hold.
const BESIDE: [Measure; 6] = [
    Measure::Score,
    Measure::Paraphrase,
    Measure::ParaphraseAccuracy,
    Measure::Neighborhood,
    Measure::NeighborhoodAccuracy,
    Measure::PortabilityAccuracy,
];

/// What was asked of the edited model, and what it answered.
#[derive(Debug, Serialize)]
pub struct BehaviourEvidence {
    /// Measured now, on the edited model.
    scores: Scores,
    /// Percentage of the facts that win, by what is known of each.
    wins: Option<f64>,
    /// Where it was asked: the kind of device and, where it is not f32, the precision.
    arithmetic: Arithmetic,
    /// Declared rates that were measured again, over as many prompts.
    compared: Vec<ComparedRate>,
    /// Declared rates that were not.
    not_compared: Vec<OtherRate>,
    /// Neighbours were asked, too.
    neighbors: bool,
    /// The file that was named for them.
    #[serde(skip)]
    file: Option<PathBuf>,
    /// What fails.
    problem: Option<String>,
}

/// A rate that the patch declares, beside the one that was found.
#[derive(Debug, Serialize)]
struct ComparedRate {
    name: String,
    declared: f64,
    found: f64,
}

/// A rate that the patch declares, and that was asked over other prompts, or over none.
#[derive(Debug, Serialize)]
struct OtherRate {
    name: String,
    prompts_declared: u64,
    prompts_asked: u64,
}

/// What the model is asked.
#[derive(Debug, Default)]
pub struct Questions {
    /// One per fact that the patch declares.
    records: Vec<Record>,
    /// The file that was named for what stands beside them.
    file: Option<PathBuf>,
}

/// What the model is asked about the facts that `patch` declares: with their neighbours and paraphrases, where the file
/// `records` has them. Read before the ladder is climbed, so that nothing found on the way is lost to a bad file.
pub fn questions(
    patch: &Patch,
    records: Option<&Path>,
    base: &Path,
    output: &Output,
) -> Result<Questions, CommandError> {
    let facts = &patch.manifest().facts;
    let Some(path) = records else {
        let records = facts.iter().map(|fact| Record::of(request(fact))).collect();
        return Ok(Questions { records, file: None });
    };
    let file = read_questions(path, None, output)?;
    let asked = declared_among(&file.records, facts);
    let in_file = || asked.iter().filter_map(|(place, record)| Some(((*place)?, record)));
    let (found, all) = (in_file().count(), count(facts.len(), "fact"));
    if found == 0 {
        let message = format!("`{}` has none of the {all} that the patch declares", path.display());
        return Err(CommandError::new(ExitKind::Malformed, message).hint(
            "name the file that the patch was made from, or one with the same prompts, subjects and targets",
        ));
    }
    if found < facts.len() {
        output.warn(&format!("`{}` has {found} of the {all} that the patch declares", path.display()));
    }
    check_questions_unloaded(base, in_file(), path, output)?;
    let records = asked.into_iter().map(|(_, record)| record).collect();
    Ok(Questions { records, file: Some(path.to_owned()) })
}

/// Runs the model in the state that the patch leads to, on `questions`, about the facts that the patch declares.
///
/// `opened` is the model, if another rung has opened it in the precision that is asked for.
pub fn check(
    patch: &Patch,
    place: Place<'_>,
    questions: &Questions,
    opened: Option<Model>,
    (device, precision): (&DeviceArguments, Precision),
    output: &Output,
) -> Result<BehaviourEvidence, CommandError> {
    let Place { base, .. } = place;
    let records = questions.records.as_slice();
    let model = match opened.filter(|model| model.precision == precision) {
        Some(model) => model,
        None => open_model_in(base, &device.find(output)?, precision, output)?,
    };
    let network = match place.state {
        State::Base => both_states(&model, patch, place.patch, output)?.after,
        State::Edited => as_it_lies(&model, patch, place.binding)?,
    };
    let extent = Extent { generation: true, ngram_entropy_records: 0, seed: 0 };
    let progress = output.counter("asking", texts(records, extent));
    let evaluation = evaluate(&model, &network, records, extent, &|texts| progress.add(texts))
        .map_err(|error| model_error(base, error))?;
    Ok(BehaviourEvidence::new(evaluation, &patch.manifest().measured, questions, model.arithmetic()))
}

/// The network with the tensors of the patch as the weights have them: another rung may have taken them back.
fn as_it_lies(model: &Model, patch: &Patch, binding: usize) -> Result<Network, CommandError> {
    let names = patch.manifest().bindings[binding].tensors.iter().map(|tensor| tensor.name.as_str());
    model.with_own(names).map_err(|error| model_error(model.checkpoint.path(), error))
}

fn request(fact: &Fact) -> Request {
    Request {
        id: fact.id.clone(),
        prompt: fact.prompt.clone(),
        subject: fact.subject.clone(),
        target_new: fact.target_new.clone(),
        target_old: fact.target_old.clone(),
        note: fact.note.clone(),
    }
}

/// One record per declared fact, with what the file has beside it and its place there, where it is there. The fact
/// itself is the patch's: another old target would be easier to beat, and none at all nothing to beat.
fn declared_among(records: &[Record], facts: &[Fact]) -> Vec<(Option<usize>, Record)> {
    let same = |one: &Request, other: &Request| {
        (&one.prompt, &one.subject, &one.target_new) == (&other.prompt, &other.subject, &other.target_new)
    };
    let of_fact = |fact: &Fact| {
        let request = request(fact);
        let found = records.iter().enumerate().find(|(_, record)| same(&record.request, &request));
        match found {
            Some((place, record)) => (Some(place), Record { request, ..record.clone() }),
            None => (None, Record::of(request)),
        }
    };
    facts.iter().map(of_fact).collect()
}

/// A patch may name any measure.
fn is_among(name: &str, measures: &[Measure]) -> bool {
    Measure::named(name).is_some_and(|measure| measures.contains(&measure))
}

/// A rate with its name, if it was measured.
fn in_percent(name: &str, rate: Option<f64>) -> Option<String> {
    rate.map(|rate| format!("{name} {rate:.1} %"))
}

/// Says that `wins`, what [`Evaluation::wins`] gives, are too few for V4 to hold, if so.
pub fn too_few_wins(wins: Option<f64>) -> Option<String> {
    let wins = wins.unwrap_or(0.0);
    (wins < WINS_MIN_PERCENT).then(|| format!("only {wins:.2} % of the declared facts win"))
}

impl BehaviourEvidence {
    fn new(
        evaluation: Evaluation,
        declared: &[Metric],
        questions: &Questions,
        arithmetic: Arithmetic,
    ) -> Self {
        let Questions { records, file } = questions;
        let wins = evaluation.wins();
        let scores = evaluation.scores;
        let (mut compared, mut not_compared) = (Vec::new(), Vec::new());
        for metric in declared {
            let found = Measure::named(&metric.name)
                .and_then(|measure| Some((scores.of(measure)?, measure.prompts(records) as u64)));
            // A mean over some of the prompts is another one than that over all of them.
            match found {
                Some((found, asked)) if asked == metric.prompts => {
                    let (name, declared) = (metric.name.clone(), metric.after);
                    compared.push(ComparedRate { name, declared, found });
                }
                _ => {
                    not_compared.push(OtherRate {
                        name: metric.name.clone(),
                        prompts_declared: metric.prompts,
                        prompts_asked: found.map_or(0, |(_, asked)| asked),
                    });
                }
            }
        }
        let problem = compared.iter().find(|rate| rate.found < rate.declared - SLACK_POINTS).map(
            |ComparedRate { name, declared, found }| {
                format!("{name} is {found:.2}, the patch declares {declared:.2}")
            },
        );
        let too_few = too_few_wins(wins);
        let neighbors = records.iter().any(|record| record.answered_neighbors().next().is_some());
        let (file, problem) = (file.clone(), problem.or(too_few));
        Self { scores, wins, arithmetic, compared, not_compared, neighbors, file, problem }
    }

    /// What came of the rung.
    pub fn outcome(&self) -> Outcome {
        self.problem.clone().into()
    }

    /// The evidence in words.
    pub fn in_words(&self) -> String {
        if let Some(problem) = &self.problem {
            return format!("{problem}{}", self.precision_in_words());
        }
        let scores = &self.scores;
        let rates = [
            ("likelier than the old", scores.shares.efficacy),
            ("every token first", scores.shares.rewrite_accuracy),
            ("said freely", scores.generation),
        ];
        let rates: Vec<String> =
            rates.into_iter().filter_map(|(name, rate)| in_percent(name, rate)).collect();
        // Where nothing competes with a neighbour's answer, that it is still the model's first is all there is.
        let neighbors = in_percent("neighbours unharmed", scores.shares.neighborhood)
            .or_else(|| in_percent("neighbours' every token first", scores.shares.neighborhood_accuracy))
            .filter(|_| self.neighbors)
            .unwrap_or_else(|| match &self.file {
                Some(file) => format!("`{}` has no neighbours to ask", file.display()),
                None => "neighbours not asked (name their file with `--records`)".to_owned(),
            });
        format!(
            "{}{}: {}; {neighbors}{}{}",
            count(scores.facts, "fact"),
            self.precision_in_words(),
            rates.join(", "),
            self.not_compared_in_words(),
            self.rule_in_words(),
        )
    }

    /// What was enough, where the patch says nothing to hold the facts to and not all of them win.
    fn rule_in_words(&self) -> String {
        let is_held_to = self.compared.iter().any(|rate| is_among(&rate.name, &WINS));
        if is_held_to || self.wins == Some(100.0) {
            return String::new();
        }
        format!("; the patch declares no rate for its facts, so {WINS_MIN_PERCENT} % is enough")
    }

    /// How they were asked, where it is not as usual.
    fn precision_in_words(&self) -> String {
        if self.arithmetic.is_f32() { String::new() } else { format!(", asked on {}", self.arithmetic) }
    }

    /// What the patch declares and nothing was compared with.
    fn not_compared_in_words(&self) -> String {
        let names = |is_named: &dyn Fn(&str, u64) -> bool| {
            let named = self.not_compared.iter().filter(|rate| is_named(&rate.name, rate.prompts_asked));
            named.map(|rate| rate.name.as_str()).collect::<Vec<_>>().join(", ")
        };
        let others = names(&|_, asked| asked > 0);
        // Where no file of neighbours is named, that is said already.
        let is_expected = |name: &str| self.file.is_some() || !is_among(name, &BESIDE);
        let unasked = names(&|name, asked| asked == 0 && is_expected(name));
        [
            ("asked over other prompts than declared, so not compared", others),
            ("declared and not asked", unasked),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("; {what}: {names}"))
        .collect()
    }
}
