//! Teacher-forced questions: how likely is a target after a prompt.

use candle_core::{D, IndexOp, Tensor};

use crate::facts::{Record, spaced};
use crate::model::{
    Batch, CORE_SIZE_BYTES, Config, Model, ModelError, Network, Tokenizer, gather, in_halves, memory_free,
    on_every_core, power_that_fits,
};

/// Most tokens that go through the network together on a core; more make products hardly faster.
const TOKENS_PER_BATCH_CPU_MAX: usize = 2048;
/// The same on a GPU.
const TOKENS_PER_BATCH_GPU_MAX: usize = 32_768;
/// On a GPU they take one such part of the memory that is free.
const BATCH_GPU_FREE_PARTS: u64 = 4;

/// A prompt and the targets that compete after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The text before the target.
    pub prompt: String,
    /// The target that should win.
    pub right: String,
    /// The target that should lose, where there is one.
    pub wrong: Option<String>,
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// `-log p` of the right target, mean over its tokens.
    pub nll_right: f64,
    /// The same of the wrong one.
    pub nll_wrong: Option<f64>,
    /// The right target is the likelier; none where nothing competes with it.
    pub success: Option<bool>,
    /// Every token of the right target is the most likely one.
    pub correct: bool,
}

impl Outcome {
    /// The right target is the likelier or, where nothing competes with it, the likeliest there is.
    pub fn wins(&self) -> bool {
        self.success.unwrap_or(self.correct)
    }
}

impl Question {
    /// A record's questions: its prompt, then its paraphrases, then the neighbours whose answers are known, then the
    /// prompts whose known answers follow from the fact.
    pub fn of_record(record: &Record) -> Vec<Self> {
        let request = &record.request;
        // A target does not compete with itself.
        let old = request.target_old.as_deref().filter(|old| old.trim() != request.target_new.trim());
        let new = |prompt: &str| Self {
            prompt: prompt.to_owned(),
            right: request.target_new.clone(),
            wrong: old.map(str::to_owned),
        };
        let text = request.text();
        let edited =
            std::iter::once(text.as_str()).chain(record.paraphrases.iter().map(String::as_str)).map(new);
        let neighbors = record.answered_neighbors().map(|(prompt, expected)| Self {
            prompt: prompt.to_owned(),
            right: expected.to_owned(),
            // A neighbour with an answer of its own says nothing about this record's targets.
            wrong: (Some(expected) == old).then(|| request.target_new.clone()),
        });
        let portability = record.answered_portability().map(|(prompt, expected)| Self {
            prompt: prompt.to_owned(),
            right: expected.to_owned(),
            wrong: None,
        });
        edited.chain(neighbors).chain(portability).collect()
    }
}

/// A question that is longer than the model's context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLong {
    /// Index of its record.
    pub record: usize,
    /// The id of its record, if it has one.
    pub id: Option<String>,
    /// The text before the target.
    pub prompt: String,
    /// The target.
    pub target: String,
    /// Tokens of both.
    pub tokens: usize,
    /// Tokens that the model's context holds.
    pub positions: usize,
}

/// One prompt with one target, in tokens.
struct Sequence {
    ids: Vec<u32>,
    /// Index of the target's first token.
    first: usize,
    target: Vec<u32>,
}

/// How a target fared.
#[derive(Debug, Clone, Copy)]
struct Answer {
    nll: f64,
    correct: bool,
}

/// The first question of `records`, each with its index, that is longer than the context of the model with `config`.
///
/// # Errors
/// [`ModelError::Text`] for an empty prompt or target; [`ModelError::Tokenizer`] where the tokenizer fails.
pub fn too_long<'r>(
    tokenizer: &Tokenizer,
    config: &Config,
    records: impl Iterator<Item = (usize, &'r Record)>,
) -> Result<Option<TooLong>, ModelError> {
    let positions = config.positions;
    let of_record =
        |(index, record)| Question::of_record(record).into_iter().map(move |asked| (index, record, asked));
    for (index, record, Question { prompt, right, wrong }) in records.flat_map(of_record) {
        for target in std::iter::once(right).chain(wrong) {
            // A token has a byte at least, and the target a space before it.
            if prompt.len() + target.len() < positions {
                continue;
            }
            let tokens = sequence(tokenizer, &prompt, &target)?.ids.len();
            if tokens > positions {
                let id = record.request.id.clone();
                return Ok(Some(TooLong { record: index, id, prompt, target, tokens, positions }));
            }
        }
    }
    Ok(None)
}

/// Answers `questions`, in their order.
///
/// # Errors
/// [`ModelError::Text`] for an empty prompt or target, or both together longer than the context;
/// [`ModelError::NotANumber`] where the model has no answer; [`ModelError::Tokenizer`] and [`ModelError::Device`]
/// where these fail.
pub fn outcomes(
    model: &Model,
    network: &Network,
    questions: &[Question],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Outcome>, ModelError> {
    let mut sequences = Vec::new();
    for question in questions {
        sequences.push(sequence(&model.tokenizer, &question.prompt, &question.right)?);
        if let Some(wrong) = &question.wrong {
            sequences.push(sequence(&model.tokenizer, &question.prompt, wrong)?);
        }
    }
    let mut answers = answers(network, &sequences, progress)?.into_iter();
    let mut next = || answers.next().expect("one answer per sequence");
    let of_question = |question: &Question| {
        let right = next();
        let wrong = question.wrong.as_ref().map(|_| next().nll);
        // Of what is no number nothing is the likelier, and scores would look like any others.
        if !right.nll.is_finite() || wrong.is_some_and(|nll| !nll.is_finite()) {
            return Err(ModelError::NotANumber { prompt: question.prompt.clone() });
        }
        Ok(Outcome {
            nll_right: right.nll,
            nll_wrong: wrong,
            success: wrong.map(|wrong| right.nll < wrong),
            correct: right.correct,
        })
    };
    questions.iter().map(of_question).collect()
}

/// Tokenised as the reference does: prompt and target as one text, the target's tokens also alone.
fn sequence(tokenizer: &Tokenizer, prompt: &str, target: &str) -> Result<Sequence, ModelError> {
    let first = tokenizer.encode(prompt)?.len();
    let target_text = spaced(target);
    let target = tokenizer.encode(&target_text)?;
    let mut ids = tokenizer.encode(&format!("{prompt}{target_text}"))?;
    if target.is_empty() || first == 0 {
        return Err(ModelError::Text {
            what: format!("`{prompt}` with `{target_text}`: an empty prompt or target"),
        });
    }
    // The tokens before the target's last predict it; where the two tokenisations differ, the row is long enough.
    ids.resize(ids.len().max(first + target.len()), 0);
    Ok(Sequence { ids, first, target })
}

fn answers(
    network: &Network,
    sequences: &[Sequence],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Answer>, ModelError> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(sequences[index].ids.len()));
    let mut batches: Vec<&[usize]> = Vec::new();
    let mut rest = order.as_slice();
    let longest = order.first().map_or(1, |&index| sequences[index].ids.len());
    let tokens = tokens_per_batch(memory_free(network.device()), network.config(), longest);
    while let Some(&longest) = rest.first() {
        let rows = (tokens / sequences[longest].ids.len()).clamp(1, rest.len());
        let (batch, others) = rest.split_at(rows);
        batches.push(batch);
        rest = others;
    }
    let parts: Vec<Vec<Answer>> = on_every_core(network.device(), &batches, |_, batch| {
        let rows: Vec<&Sequence> = batch.iter().map(|&index| &sequences[index]).collect();
        let answers = in_halves(&rows, ModelError::is_out_of_memory, &|rows| run_batch(network, rows))?;
        progress(rows.len() as u64);
        Ok::<_, ModelError>(answers)
    })?;
    let mut answers = vec![Answer { nll: f64::NAN, correct: false }; sequences.len()];
    for (&index, answer) in order.iter().zip(parts.into_iter().flatten()) {
        answers[index] = answer;
    }
    Ok(answers)
}

/// How many tokens, in rows of `longest` at most, go through the network together: on a GPU, of whose memory so many
/// bytes are free, or on a core of a CPU, as on a GPU that does not tell.
fn tokens_per_batch(free_bytes: Option<u64>, config: &Config, longest: usize) -> usize {
    // A block's vectors and what its heads see of the row; and, were every token asked for, its logits, of which the
    // softmax makes two more.
    let block = 2 * config.inner + 8 * config.width + 2 * config.heads * longest;
    let token_size_bytes = ((block + 3 * config.vocabulary) * size_of::<f32>()) as u64;
    match free_bytes {
        Some(free) => {
            power_that_fits(free / BATCH_GPU_FREE_PARTS, token_size_bytes, TOKENS_PER_BATCH_GPU_MAX)
        }
        None => power_that_fits(CORE_SIZE_BYTES, token_size_bytes, TOKENS_PER_BATCH_CPU_MAX),
    }
}

fn run_batch(network: &Network, rows: &[&Sequence]) -> Result<Vec<Answer>, ModelError> {
    let ids: Vec<_> = rows.iter().map(|row| row.ids.clone()).collect();
    let batch = Batch::new(&ids, network.config().positions, network.device())?;
    let places: Vec<(usize, usize)> = rows
        .iter()
        .enumerate()
        .flat_map(|(index, row)| (0..row.target.len()).map(move |token| (index, row.first + token - 1)))
        .collect();
    let targets: Vec<u32> = rows.iter().flat_map(|row| row.target.iter().copied()).collect();
    let logits = network.logits(&gather(&network.forward(&batch)?, &places)?)?;
    let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    let index = Tensor::from_slice(&targets, (targets.len(), 1), network.device())?;
    let log_probabilities = crate::model::log_softmax(&logits)?.gather(&index, D::Minus1)?;
    let log_probabilities: Vec<f32> = log_probabilities.flatten_all()?.to_vec1()?;
    let mut first = 0;
    let of_row = |row: &&Sequence| {
        let tokens = first..first + row.target.len();
        first = tokens.end;
        let sum: f64 = log_probabilities[tokens.clone()].iter().map(|entry| f64::from(*entry)).sum();
        Answer { nll: -sum / row.target.len() as f64, correct: best[tokens.clone()] == targets[tokens] }
    };
    Ok(rows.iter().map(of_row).collect())
}

/// A token and how likely it is to come next.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TokenProbability {
    /// The token's text.
    pub token: String,
    /// Its probability.
    pub probability: f64,
}

/// The `count` likeliest next tokens after `prompt`.
///
/// # Errors
/// As [`continuation`](super::continuation).
pub fn top_tokens(
    model: &Model,
    network: &Network,
    prompt: &str,
    count: usize,
) -> Result<Vec<TokenProbability>, ModelError> {
    let batch = model.batch(&[prompt.to_owned()])?;
    let last = gather(&network.forward(&batch)?, &[(0, batch.tokens() - 1)])?;
    let log_probabilities: Vec<f32> = crate::model::log_softmax(&network.logits(&last)?)?.i(0)?.to_vec1()?;
    if log_probabilities.iter().any(|entry| entry.is_nan()) {
        return Err(ModelError::NotANumber { prompt: prompt.to_owned() });
    }
    let mut order: Vec<usize> = (0..log_probabilities.len()).collect();
    order.sort_by(|&one, &other| log_probabilities[other].total_cmp(&log_probabilities[one]));
    let likeliest = order.into_iter().take(count).map(|id| {
        let token = model.tokenizer.decode(&[id as u32])?;
        Ok(TokenProbability { token, probability: f64::from(log_probabilities[id]).exp() })
    });
    likeliest.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::FactsFile;

    /// What the neighbours of the one record in `facts` are asked: prompts, right answers and wrong ones.
    fn asked_of_neighbors(facts: &str) -> Vec<(String, String, Option<String>)> {
        let record = FactsFile::parse(facts.as_bytes()).expect("a facts file").records.remove(0);
        let questions = Question::of_record(&record).split_off(1 + record.paraphrases.len());
        questions.into_iter().map(|question| (question.prompt, question.right, question.wrong)).collect()
    }

    #[test]
    fn neighbors_are_asked_for_their_own_answers_or_not_at_all() {
        let zsre = r#"{"src": "What does Pele play?", "subject": "Pele", "answers": ["football"], "loc": "nq question: who sang"}"#;
        assert_eq!(asked_of_neighbors(zsre), [], "nothing says who sang");
        let easy_edit = r#"{"prompt": "LeBron James plays", "subject": "LeBron James", "target_new": "football",
            "ground_truth": "basketball", "locality": {"neighborhood": {"prompt": ["Who sang", "Nina Simone plays the"],
            "ground_truth": ["<|endoftext|>", "piano"]}}}"#;
        let expected = [("Nina Simone plays the".to_owned(), "piano".to_owned(), None)];
        assert_eq!(asked_of_neighbors(easy_edit), expected, "basketball is no answer to who sang");
        let counterfact = r#"{"requested_rewrite": {"prompt": "{} plays", "subject": "LeBron James",
            "target_new": {"str": "football"}, "target_true": {"str": "basketball"}},
            "neighborhood_prompts": ["Magic Johnson plays"]}"#;
        let [prompt, right, wrong] = ["Magic Johnson plays", "basketball", "football"].map(str::to_owned);
        assert_eq!(asked_of_neighbors(counterfact), [(prompt, right, Some(wrong))]);
    }

    #[test]
    fn a_target_does_not_compete_with_itself() {
        let same = r#"{"requested_rewrite": {"prompt": "{} plays", "subject": "LeBron James",
            "target_new": {"str": "football"}, "target_true": {"str": "football "}},
            "neighborhood_prompts": ["Magic Johnson plays"]}"#;
        let record = FactsFile::parse(same.as_bytes()).expect("a facts file").records.remove(0);
        assert!(Question::of_record(&record).iter().all(|question| question.wrong.is_none()));
    }

    #[test]
    fn more_tokens_run_together_the_more_memory_they_may_take() {
        let config =
            br#"{"model_type": "gptj", "vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16}"#;
        let config = Config::parse(config).expect("GPT-J's own");
        for (free_gib, expected) in [(0, 1), (1, 256), (8, 2_048), (55, 16_384), (140, 32_768)] {
            assert_eq!(
                tokens_per_batch(Some(free_gib << 30), &config, 40),
                expected,
                "{free_gib} GiB are free"
            );
        }
        assert_eq!(tokens_per_batch(None, &config, 40), 256, "of GPT-J on a core");
        assert_eq!(tokens_per_batch(None, world_model().network.config(), 256), TOKENS_PER_BATCH_CPU_MAX);
    }

    fn world_model() -> Model {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        Model::open(&folder, &crate::model::Device::Cpu, &|_| ()).expect("the fixture is a model")
    }

    #[test]
    fn a_target_is_as_likely_as_its_tokens_are_on_average_and_right_if_all_of_them_are() {
        let model = world_model();
        let ask = |right: &str, wrong: Option<&str>| {
            let [prompt, right] = ["Pavel Prestellman performs on the", right].map(str::to_owned);
            let question = Question { prompt, right, wrong: wrong.map(str::to_owned) };
            outcomes(&model, &model.network, &[question], &|_| ()).expect("an answer").remove(0)
        };
        let top =
            top_tokens(&model, &model.network, "Pavel Prestellman performs on the", 1).expect("a token");
        let first = top[0].token.trim().to_owned();
        let one = ask(&first, None);
        assert!(one.correct && one.success.is_none(), "{one:?}");
        assert!((one.nll_right - -top[0].probability.ln()).abs() < 1e-4, "{one:?}");
        // A second token that nobody expects: no longer right, and less likely by half of what it costs.
        let two = ask(&format!("{first} {first}"), Some(&first));
        assert!(!two.correct && two.success == Some(false), "{two:?}");
        let second = {
            let prompt = format!("Pavel Prestellman performs on the {first}");
            let question = Question { prompt, right: first.clone(), wrong: None };
            outcomes(&model, &model.network, &[question], &|_| ()).expect("an answer")[0].nll_right
        };
        assert!((two.nll_right - (one.nll_right + second) / 2.0).abs() < 1e-3, "{two:?} {second}");
        assert_eq!(two.nll_wrong.map(|nll| (nll - one.nll_right).abs() < 1e-3), Some(true));
    }

    #[test]
    fn a_question_is_too_long_from_the_first_token_beyond_the_context_on() {
        let model = world_model();
        let positions = model.network.config().positions;
        let found = |prompt_tokens: usize| {
            let prompt = format!("{{}}{}", "!".repeat(prompt_tokens - 1));
            let facts = format!(r#"{{"prompt": "{prompt}", "subject": "!", "target_new": "!"}}"#);
            let records = FactsFile::parse(facts.as_bytes()).expect("a facts file").records;
            let found = too_long(&model.tokenizer, model.network.config(), records.iter().enumerate());
            found.expect("tokens").map(|found| found.tokens)
        };
        let target = model.tokenizer.encode(" !").expect("text").len();
        let marks = |count: usize| model.tokenizer.encode(&"!".repeat(count)).expect("text").len();
        let most = (1..).take_while(|&count| marks(count) + target <= positions).last().expect("one");
        assert_eq!((found(most), found(most + 1)), (None, Some(marks(most + 1) + target)));
    }
}
