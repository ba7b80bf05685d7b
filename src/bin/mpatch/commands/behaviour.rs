//! Rung V4 of `verify`: does the edited model do what the patch declares?

use std::path::Path;

use mpatch::evaluate::{Extent, Scores, evaluate, prompts, texts};
use mpatch::facts::{Record, Request};
use mpatch::model::{Model, Network, Precision};
use mpatch::patch::Patch;
use mpatch::patch::manifest::{Fact, Metric};
use mpatch::verify::State;
use serde::Serialize;

use super::follow::Place;
use crate::editing::{DeviceArguments, arithmetic, both_states, model_error, open_model_in, read_questions};
use crate::error::CommandError;
use crate::report::{Output, count};

/// Percentage points that a rate may fall behind what the patch declares: another machine's last bits decide ties.
const SLACK_POINTS: f64 = 0.5;
/// A patch whose facts do not win at least this often does not do its work, whatever it declares.
const WINS_MIN_PERCENT: f64 = 50.0;

/// What was asked of the edited model, and what it answered.
#[derive(Debug, Serialize)]
pub struct BehaviourEvidence {
    /// Measured now, on the edited model.
    scores: Scores,
    /// Where it was asked: the kind of device and, where it is not f32, the precision.
    arithmetic: String,
    /// Declared rates that were measured again, over as many prompts: name, declared, found.
    compared: Vec<(String, f64, f64)>,
    /// Declared rates that were not: name, prompts that it was declared over, prompts asked now.
    not_compared: Vec<(String, u64, u64)>,
    /// Neighbours were asked, too.
    neighbors: bool,
    /// What fails.
    problem: Option<String>,
}

/// Runs the model in the state that the patch leads to, on the facts that the patch declares.
///
/// `records` may name a file with the neighbours and paraphrases of those facts; `opened` is the model, if another rung
/// has opened it in the precision that is asked for.
pub fn check(
    patch: &Patch,
    place: Place<'_>,
    records: Option<&Path>,
    opened: Option<Model>,
    (device, precision): (&DeviceArguments, Precision),
    output: &Output,
) -> Result<BehaviourEvidence, CommandError> {
    let Place { base, .. } = place;
    let model = match opened.filter(|model| model.precision == precision) {
        Some(model) => model,
        None => open_model_in(base, &device.find(output)?, precision, output)?,
    };
    let network = match place.state {
        State::Base => both_states(&model, patch, place.patch)?.after,
        State::Edited => as_it_lies(&model, patch, place.binding)?,
    };
    let records = match records {
        Some(path) => declared_among(&read_questions(path, None, output)?.records, &patch.manifest().facts),
        None => patch.manifest().facts.iter().map(|fact| Record::of(request(fact))).collect(),
    };
    let extent = Extent { generation: true, ngram_entropy_records: 0, seed: 0 };
    let progress = output.counter("asking", texts(&records, extent));
    let evaluation = evaluate(&model, &network, &records, extent, &|texts| progress.add(texts))
        .map_err(|error| model_error(base, error))?;
    Ok(BehaviourEvidence::new(evaluation.scores, &patch.manifest().measured, &records, arithmetic(&model)))
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

/// One record per declared fact: from the file where it is there, with its neighbours, else the fact alone.
fn declared_among(records: &[Record], facts: &[Fact]) -> Vec<Record> {
    let same = |record: &&Record, fact: &Fact| {
        let request = &record.request;
        (&request.prompt, &request.subject, &request.target_new)
            == (&fact.prompt, &fact.subject, &fact.target_new)
    };
    let of_fact = |fact: &Fact| match records.iter().find(|record| same(record, fact)) {
        Some(record) => record.clone(),
        None => Record::of(request(fact)),
    };
    facts.iter().map(of_fact).collect()
}

/// Says that too few of the facts that were asked win for V4 to hold, if so.
pub fn too_few_wins(scores: &Scores) -> Option<String> {
    let wins = scores.efficacy.or(scores.rewrite_accuracy).unwrap_or(0.0);
    (wins < WINS_MIN_PERCENT).then(|| format!("only {wins:.2} % of the declared facts win"))
}

impl BehaviourEvidence {
    fn new(scores: Scores, declared: &[Metric], records: &[Record], arithmetic: String) -> Self {
        let (mut compared, mut not_compared) = (Vec::new(), Vec::new());
        for metric in declared {
            let found = scores.named().into_iter().find(|(name, _)| *name == metric.name);
            let found = found.and_then(|(name, found)| Some((found?, prompts(records, name) as u64)));
            // A mean over some of the prompts is another one than that over all of them.
            match found {
                Some((found, asked)) if asked == metric.prompts => {
                    compared.push((metric.name.clone(), metric.after, found));
                }
                _ => {
                    let asked = found.map_or(0, |(_, asked)| asked);
                    not_compared.push((metric.name.clone(), metric.prompts, asked));
                }
            }
        }
        let problem = compared
            .iter()
            .find(|(_, declared, found)| *found < declared - SLACK_POINTS)
            .map(|(name, declared, found)| format!("{name} is {found:.2}, the patch declares {declared:.2}"));
        let too_few = too_few_wins(&scores);
        let neighbors = records.iter().any(|record| record.answered_neighbors().next().is_some());
        Self { scores, arithmetic, compared, not_compared, neighbors, problem: problem.or(too_few) }
    }

    /// The rung holds.
    pub fn holds(&self) -> bool {
        self.problem.is_none()
    }

    /// What fails.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The evidence in words.
    pub fn in_words(&self) -> String {
        if let Some(problem) = &self.problem {
            return format!("{problem}{}", self.precision_in_words());
        }
        let percent =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} %"));
        let neighbors = if self.neighbors {
            format!("neighbours unharmed {}", percent(self.scores.neighborhood))
        } else {
            "neighbours not asked (name their file with `--records`)".to_owned()
        };
        format!(
            "{}{}: likelier than the old {}, every token first {}, said freely {}; {neighbors}{}",
            count(self.scores.facts, "fact"),
            self.precision_in_words(),
            percent(self.scores.efficacy),
            percent(self.scores.rewrite_accuracy),
            percent(self.scores.generation),
            self.not_compared_in_words(),
        )
    }

    /// How they were asked, where it is not as usual.
    fn precision_in_words(&self) -> String {
        if self.arithmetic.contains(' ') { format!(", asked on {}", self.arithmetic) } else { String::new() }
    }

    /// What was asked of other prompts than declared; what was not asked at all has words of its own.
    fn not_compared_in_words(&self) -> String {
        let asked = self.not_compared.iter().filter(|(.., asked)| *asked > 0);
        let names: Vec<&str> = asked.map(|(name, ..)| name.as_str()).collect();
        if names.is_empty() {
            return String::new();
        }
        format!("; asked over other prompts than declared, so not compared: {}", names.join(", "))
    }
}
