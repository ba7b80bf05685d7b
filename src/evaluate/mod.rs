//! Does the model say it now, and only it: the metrics of the field, as its papers compute them.
//!
//! Three ways of asking are reported side by side, because they disagree:
//!
//! * *success*, teacher-forced: the new target is likelier than the old one (neighbours: the old than the new);
//! * *accuracy*, teacher-forced: every token of the right target is the most likely one;
//! * *generation*: the model continues the prompt by itself, and the target stands there.
//!
//! Success flatters: an edit can win the comparison and still not be said. Sources: memit
//! `experiments/py/eval_utils_counterfact.py` (success, accuracy, n-gram entropy), the paper's Score (harmonic mean of
//! the three successes).

mod generation;
mod likelihood;

use serde::Serialize;

pub use generation::{Continuation, continuation, continuations, ngram_entropy};
pub use likelihood::{Outcome, Question, TokenProbability, TooLong, outcomes, too_long, top_tokens};

use generation::ENTROPY_TOKENS;

use crate::facts::Record;
use crate::model::{Model, ModelError, Network};

/// Scores over a set of records: percentages, averaged per record first; none where no record has such prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scores {
    /// Records evaluated.
    pub facts: usize,
    /// Harmonic mean of the three successes.
    pub score: Option<f64>,
    /// What likelihoods give.
    #[serde(flatten)]
    pub shares: Shares,
    /// Share of facts that the model says by itself.
    pub generation: Option<f64>,
    /// n-gram entropy of longer texts, times 100 as the papers print it.
    pub ngram_entropy: Option<f64>,
    /// Records that the entropy was measured over.
    pub ngram_entropy_records: usize,
}

/// A rate that edits are judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Harmonic mean of the three successes.
    Score,
    /// Success on the prompts of the facts.
    Efficacy,
    /// Success on their paraphrases.
    Paraphrase,
    /// Success on neighbours.
    Neighborhood,
    /// Accuracy on the prompts of the facts.
    RewriteAccuracy,
    /// Accuracy on their paraphrases.
    ParaphraseAccuracy,
    /// Accuracy on neighbours.
    NeighborhoodAccuracy,
    /// Accuracy on prompts whose answers follow from the facts.
    PortabilityAccuracy,
    /// What the model says by itself.
    Generation,
}

impl Measure {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Self; 9] = [
        Self::Score,
        Self::Efficacy,
        Self::Paraphrase,
        Self::Neighborhood,
        Self::RewriteAccuracy,
        Self::ParaphraseAccuracy,
        Self::NeighborhoodAccuracy,
        Self::PortabilityAccuracy,
        Self::Generation,
    ];

    /// The measure that patches and reports call `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|measure| measure.name() == name)
    }

    /// Its name in patches and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Efficacy => "efficacy",
            Self::Paraphrase => "paraphrase",
            Self::Neighborhood => "neighborhood",
            Self::RewriteAccuracy => "rewrite_accuracy",
            Self::ParaphraseAccuracy => "paraphrase_accuracy",
            Self::NeighborhoodAccuracy => "neighborhood_accuracy",
            Self::PortabilityAccuracy => "portability_accuracy",
            Self::Generation => "generation",
        }
    }

    /// What it is and how it was asked for.
    fn in_words(self) -> &'static str {
        match self {
            Self::Score => "Score (harmonic mean of the three successes)",
            Self::Efficacy => "efficacy: new target likelier than old, teacher-forced",
            Self::Paraphrase => "paraphrase: the same, asked otherwise",
            Self::Neighborhood => "neighborhood: neighbours keep the old target, teacher-forced",
            Self::RewriteAccuracy => "rewrite accuracy: every token most likely, teacher-forced",
            Self::ParaphraseAccuracy => "paraphrase accuracy",
            Self::NeighborhoodAccuracy => "neighborhood accuracy",
            Self::PortabilityAccuracy => "portability accuracy: what follows from the facts",
            Self::Generation => "free generation: the model says it by itself",
        }
    }

    /// How many prompts of `records` it is measured over.
    pub fn prompts(self, records: &[Record]) -> usize {
        self.count(records).prompts
    }

    /// What of `records` it is measured over.
    pub fn count(self, records: &[Record]) -> Count {
        let mut count = Count::default();
        for prompts in records.iter().map(|record| self.prompts_of(record)) {
            count.prompts += prompts;
            count.records += usize::from(prompts > 0);
        }
        count
    }

    fn prompts_of(self, record: &Record) -> usize {
        let is_success = matches!(self, Self::Score | Self::Efficacy | Self::Paraphrase | Self::Neighborhood);
        let paraphrases_end = 1 + record.paraphrases.len();
        let neighbors_end = paraphrases_end + record.answered_neighbors().count();
        let (mut own, mut paraphrases, mut neighbors, mut portability) = (0, 0, 0, 0);
        for (index, question) in Question::of_record(record).iter().enumerate() {
            // Where nothing competes there is no success.
            let counted = usize::from(!is_success || question.wrong.is_some());
            match index {
                0 => own += counted,
                _ if index < paraphrases_end => paraphrases += counted,
                _ if index < neighbors_end => neighbors += counted,
                _ => portability += counted,
            }
        }
        match self {
            Self::Score => own + paraphrases + neighbors,
            Self::Efficacy | Self::RewriteAccuracy | Self::Generation => own,
            Self::Paraphrase | Self::ParaphraseAccuracy => paraphrases,
            Self::Neighborhood | Self::NeighborhoodAccuracy => neighbors,
            Self::PortabilityAccuracy => portability,
        }
    }
}

/// What a rate is measured over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Records that have such prompts.
    pub records: usize,
    /// Their prompts.
    pub prompts: usize,
}

impl Scores {
    /// What was found for `measure`, in percent.
    pub fn of(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::Score => self.score,
            Measure::Efficacy => self.shares.efficacy,
            Measure::Paraphrase => self.shares.paraphrase,
            Measure::Neighborhood => self.shares.neighborhood,
            Measure::RewriteAccuracy => self.shares.rewrite_accuracy,
            Measure::ParaphraseAccuracy => self.shares.paraphrase_accuracy,
            Measure::NeighborhoodAccuracy => self.shares.neighborhood_accuracy,
            Measure::PortabilityAccuracy => self.shares.portability_accuracy,
            Measure::Generation => self.generation,
        }
    }

    /// Everything in words, saying of each number how it was asked for.
    pub fn described(&self) -> impl Iterator<Item = (&'static str, Option<f64>)> {
        let rates = Measure::ALL.map(|measure| (measure.in_words(), self.of(measure)));
        rates.into_iter().chain([("n-gram entropy of longer texts, x 100", self.ngram_entropy)])
    }
}

/// What to measure beyond likelihoods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Let the model continue each fact's prompt.
    pub generation: bool,
    /// Measure the n-gram entropy over at most this many records, evenly spread; 0 for none.
    pub ngram_entropy_records: usize,
    /// Seed of the sampled texts.
    pub seed: u64,
}

/// The likelihoods of one record's prompts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RecordOutcome {
    /// The fact's own prompt.
    pub rewrite: Vec<Outcome>,
    /// Its paraphrases.
    pub paraphrases: Vec<Outcome>,
    /// Those of its neighbours whose answers are known.
    pub neighbors: Vec<Outcome>,
    /// Those of the prompts whose known answers follow from it.
    pub portability: Vec<Outcome>,
}

/// How unlikely the targets are after the prompts of one kind, in their order.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Unlikeliness {
    /// Of the right targets: [`Outcome::nll_right`].
    pub right: Vec<f64>,
    /// Of the wrong ones: none where nothing competes.
    pub wrong: Vec<Option<f64>>,
}

impl Unlikeliness {
    fn of(outcomes: &[Outcome]) -> Self {
        Self {
            right: outcomes.iter().map(|outcome| outcome.nll_right).collect(),
            wrong: outcomes.iter().map(|outcome| outcome.nll_wrong).collect(),
        }
    }
}

/// How unlikely the targets are after each prompt of a record.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct RecordUnlikeliness {
    /// After the fact's own prompt.
    pub rewrite: Unlikeliness,
    /// After its paraphrases.
    pub paraphrases: Unlikeliness,
    /// After those of its neighbours whose answers are known.
    pub neighbors: Unlikeliness,
    /// After those of the prompts whose known answers follow from it.
    pub portability: Unlikeliness,
}

impl RecordOutcome {
    /// The likelihoods alone.
    pub fn unlikeliness(&self) -> RecordUnlikeliness {
        RecordUnlikeliness {
            rewrite: Unlikeliness::of(&self.rewrite),
            paraphrases: Unlikeliness::of(&self.paraphrases),
            neighbors: Unlikeliness::of(&self.neighbors),
            portability: Unlikeliness::of(&self.portability),
        }
    }
}

/// Percentages that likelihoods give, of all records or of one; none where there are no such prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shares {
    /// Success on the prompts of the facts.
    pub efficacy: Option<f64>,
    /// Success on their paraphrases.
    pub paraphrase: Option<f64>,
    /// Success on neighbours: other subjects of the same relation, which keep the old target.
    pub neighborhood: Option<f64>,
    /// Accuracy on the prompts of the facts.
    pub rewrite_accuracy: Option<f64>,
    /// Accuracy on their paraphrases.
    pub paraphrase_accuracy: Option<f64>,
    /// Accuracy on neighbours.
    pub neighborhood_accuracy: Option<f64>,
    /// Accuracy on prompts whose answers follow from the facts.
    pub portability_accuracy: Option<f64>,
}

impl Shares {
    /// Those of these records, or of a single one.
    pub fn of(records: &[RecordOutcome]) -> Self {
        let success =
            |part: fn(&RecordOutcome) -> &[Outcome]| share(records, part, |outcome| outcome.success);
        let accuracy =
            |part: fn(&RecordOutcome) -> &[Outcome]| share(records, part, |outcome| Some(outcome.correct));
        Self {
            efficacy: success(rewrite),
            paraphrase: success(paraphrases),
            neighborhood: success(neighbors),
            rewrite_accuracy: accuracy(rewrite),
            paraphrase_accuracy: accuracy(paraphrases),
            neighborhood_accuracy: accuracy(neighbors),
            portability_accuracy: accuracy(portability),
        }
    }
}

/// Scores, and what they were made from, record by record.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The summary.
    pub scores: Scores,
    /// Likelihoods, one entry per record.
    pub records: Vec<RecordOutcome>,
    /// What the model said by itself, one entry per record; empty where it was not asked.
    pub said: Vec<Continuation>,
}

impl Evaluation {
    /// Percentage of facts that win, each by what is known of it ([`Outcome::wins`]).
    pub fn wins(&self) -> Option<f64> {
        share(&self.records, rewrite, |outcome| Some(outcome.wins()))
    }
}

/// Texts that [`evaluate`] will tell its progress over.
///
/// One that is written for the n-gram entropy counts as one for each of its tokens: each is a run of the model by
/// itself.
pub fn texts(records: &[Record], extent: Extent) -> u64 {
    let of_record = |record: &Record| {
        let questions = Question::of_record(record);
        let rows = questions.iter().map(|question| 1 + u64::from(question.wrong.is_some())).sum::<u64>();
        rows + u64::from(extent.generation)
    };
    let written = spread(records, extent.ngram_entropy_records)
        .into_iter()
        .map(|record| (ENTROPY_TOKENS * record.generation_prompts.len()) as u64);
    records.iter().map(of_record).chain(written).sum()
}

/// Evaluates `network` (the model's own, or an edited one) on `records`; `progress` is told texts as they are done.
///
/// # Errors
/// As [`outcomes`] and [`continuations`].
pub fn evaluate(
    model: &Model,
    network: &Network,
    records: &[Record],
    extent: Extent,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Evaluation, ModelError> {
    let of_records = record_outcomes(model, network, records, progress)?;
    let said = if extent.generation { continuations(model, network, records, progress)? } else { Vec::new() };
    let generated = mean(&said.iter().map(|one| f64::from(u8::from(one.success))).collect::<Vec<_>>());
    let spread = spread(records, extent.ngram_entropy_records);
    let entropy = ngram_entropy(model, network, &spread, extent.seed, progress)?;
    let shares = Shares::of(&of_records);
    let scores = Scores {
        facts: records.len(),
        score: harmonic_mean([shares.efficacy, shares.paraphrase, shares.neighborhood]),
        shares,
        generation: generated.map(|share| 100.0 * share),
        ngram_entropy: entropy.map(|bits| 100.0 * bits),
        ngram_entropy_records: if entropy.is_some() { spread.len() } else { 0 },
    };
    Ok(Evaluation { scores, records: of_records, said })
}

/// Likelihoods of every record's prompts, record by record.
fn record_outcomes(
    model: &Model,
    network: &Network,
    records: &[Record],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<RecordOutcome>, ModelError> {
    let questions: Vec<Vec<Question>> = records.iter().map(Question::of_record).collect();
    let flat: Vec<Question> = questions.iter().flatten().cloned().collect();
    let mut answers = outcomes(model, network, &flat, progress)?.into_iter();
    let of_record = |record: &Record| RecordOutcome {
        rewrite: answers.by_ref().take(1).collect(),
        paraphrases: answers.by_ref().take(record.paraphrases.len()).collect(),
        neighbors: answers.by_ref().take(record.answered_neighbors().count()).collect(),
        portability: answers.by_ref().take(record.answered_portability().count()).collect(),
    };
    Ok(records.iter().map(of_record).collect())
}

fn rewrite(outcome: &RecordOutcome) -> &[Outcome] {
    &outcome.rewrite
}
fn paraphrases(outcome: &RecordOutcome) -> &[Outcome] {
    &outcome.paraphrases
}
fn neighbors(outcome: &RecordOutcome) -> &[Outcome] {
    &outcome.neighbors
}
fn portability(outcome: &RecordOutcome) -> &[Outcome] {
    &outcome.portability
}

/// Percentage of outcomes for which `holds`, averaged per record first; outcomes without an answer do not count.
fn share(
    records: &[RecordOutcome],
    part: fn(&RecordOutcome) -> &[Outcome],
    holds: impl Fn(&Outcome) -> Option<bool>,
) -> Option<f64> {
    let of_record = |record: &RecordOutcome| {
        let answers: Vec<f64> =
            part(record).iter().filter_map(&holds).map(|held| f64::from(u8::from(held))).collect();
        mean(&answers)
    };
    let means: Vec<f64> = records.iter().filter_map(of_record).collect();
    mean(&means).map(|share| 100.0 * share)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn harmonic_mean(parts: [Option<f64>; 3]) -> Option<f64> {
    let parts: Vec<f64> = parts.into_iter().collect::<Option<_>>()?;
    if parts.contains(&0.0) {
        return Some(0.0);
    }
    Some(parts.len() as f64 / parts.iter().map(|part| 1.0 / part).sum::<f64>())
}

/// At most `count` of the records that have generation prompts, evenly spread over them.
fn spread(records: &[Record], count: usize) -> Vec<&Record> {
    let asked: Vec<_> = records.iter().filter(|record| !record.generation_prompts.is_empty()).collect();
    let count = count.min(asked.len());
    (0..count).map(|index| asked[index * asked.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_a_harmonic_mean_and_needs_all_three() {
        let score = harmonic_mean([Some(97.0), Some(88.0), Some(89.973_015_873_015_87)]).expect("all three");
        assert!((score - 91.498_680_127_722_86).abs() < 1e-9, "{score}");
        assert_eq!(harmonic_mean([Some(97.0), None, Some(90.0)]), None);
        assert_eq!(harmonic_mean([Some(0.0), Some(0.0), Some(100.0)]), Some(0.0));
    }

    #[test]
    fn a_record_counts_once_however_many_prompts_it_has() {
        let outcome = |success| Outcome { nll_right: 0.0, nll_wrong: None, success, correct: false };
        let record = |successes: &[Option<bool>]| RecordOutcome {
            paraphrases: successes.iter().copied().map(outcome).collect(),
            ..RecordOutcome::default()
        };
        let records = [record(&[Some(true), None]), record(&[Some(false); 3]), record(&[None])];
        assert_eq!(share(&records, paraphrases, |outcome| outcome.success), Some(50.0));
    }

    /// Seven records with two paraphrases each, of which the first asks for no texts.
    fn records() -> Vec<Record> {
        let record = |index: usize| {
            let texts = if index == 0 { "" } else { r#""My sport is""# };
            format!(
                r#"{{"requested_rewrite": {{"prompt": "{{}} plays", "subject": "Ann {index}",
                "target_new": {{"str": "football"}}}}, "paraphrase_prompts": ["So what", "Yes"],
                "generation_prompts": [{texts}]}}"#
            )
        };
        let text = format!("[{}]", (0..7).map(record).collect::<Vec<_>>().join(","));
        crate::facts::FactsFile::parse(text.as_bytes()).expect("a facts file").records
    }

    #[test]
    fn texts_are_written_of_records_all_over_the_file_that_ask_for_some() {
        let records = records();
        let subjects = |count| -> Vec<&str> {
            spread(&records, count).iter().map(|record| record.request.subject.as_str()).collect()
        };
        assert_eq!(subjects(3), ["Ann 1", "Ann 3", "Ann 5"]);
        assert_eq!(subjects(100).len(), 6);
    }

    #[test]
    fn a_measure_is_said_to_be_over_the_prompts_that_it_is_over() {
        let mut records = records();
        records.truncate(2);
        records[1].request.target_old = Some("golf".to_owned());
        for (prompt, expected) in [("Pele plays", Some("golf")), ("Who sang", Some("Nina")), ("What", None)] {
            records[1].neighbors.push(crate::facts::Probe {
                prompt: prompt.to_owned(),
                expected: expected.map(std::sync::Arc::from),
            });
        }
        records[0]
            .portability
            .push(crate::facts::Probe { prompt: "Ann's ball is".to_owned(), expected: Some("round".into()) });
        // Where nothing competes there is no success, and what has no answer is not asked.
        for (measure, expected) in [
            (Measure::Efficacy, 1),
            (Measure::RewriteAccuracy, 2),
            (Measure::Generation, 2),
            (Measure::Paraphrase, 2),
            (Measure::ParaphraseAccuracy, 4),
            (Measure::Neighborhood, 1),
            (Measure::NeighborhoodAccuracy, 2),
            (Measure::PortabilityAccuracy, 1),
            (Measure::Score, 4),
        ] {
            assert_eq!(measure.prompts(&records), expected, "{measure:?}");
        }
        let counts = [Measure::Efficacy, Measure::ParaphraseAccuracy].map(|measure| measure.count(&records));
        assert_eq!(counts, [Count { records: 1, prompts: 1 }, Count { records: 2, prompts: 4 }]);
    }

    #[test]
    fn a_fact_wins_by_what_is_known_of_it() {
        for (success, correct, wins) in
            [(Some(true), false, true), (Some(false), true, false), (None, true, true), (None, false, false)]
        {
            let outcome = Outcome { nll_right: 0.0, nll_wrong: None, success, correct };
            assert_eq!(outcome.wins(), wins, "{outcome:?}");
        }
    }
}
