//! What the model says by itself.

use std::collections::HashMap;

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use super::{mean, top_tokens};
use crate::facts::Record;
use crate::facts::words::whole;
use crate::model::{Model, ModelError, Network, Sampling, generate, in_halves};

/// Tokens that a prompt is continued by beyond the target's own.
const CONTINUATION_TOKENS: usize = 8;
/// Length of a text whose n-gram entropy is taken, in tokens, its prompt included (the reference's).
pub(super) const ENTROPY_TOKENS: usize = 100;
/// The reference samples those texts from this many likeliest tokens.
const ENTROPY_TOP_K: usize = 5;
/// Prompts that are continued together.
const ROWS_PER_BATCH: usize = 64;

/// A fact's prompt, continued greedily by the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// The text after the prompt.
    pub text: String,
    /// It begins with the new target, as whole words, and the old target does not follow.
    pub success: bool,
}

/// Lets the model continue every record's own prompt.
///
/// # Errors
/// [`ModelError::Text`] for a prompt without tokens or longer than the context; [`ModelError::Tokenizer`] and
/// [`ModelError::Device`] where these fail.
pub fn continuations(
    model: &Model,
    network: &Network,
    records: &[Record],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Continuation>, ModelError> {
    let mut said = vec![None; records.len()];
    for (length, members) in by_length(model, records)? {
        for members in members.chunks(ROWS_PER_BATCH) {
            let own_end = |&(index, _): &(usize, Vec<u32>)| {
                let target = model.tokenizer.encode(&records[index].request.target_new)?;
                Ok((length + target.len() + CONTINUATION_TOKENS).min(network.config().positions).max(length))
            };
            let ends = members.iter().map(own_end).collect::<Result<Vec<usize>, ModelError>>()?;
            let end = ends.iter().copied().max().unwrap_or(length);
            let rows = in_halves(members, ModelError::is_out_of_memory, &|members| {
                let prompts: Vec<Vec<u32>> = members.iter().map(|(_, ids)| ids.clone()).collect();
                generate(network, &prompts, end, Sampling::Greedy, &mut ChaCha20Rng::seed_from_u64(0))
            })?;
            for (((index, _), end), row) in members.iter().zip(ends).zip(rows) {
                // What the model says of one fact must not depend on the targets of those beside it.
                let text = model.tokenizer.decode(&row[length..end])?;
                let request = &records[*index].request;
                let success = says(&text, &request.target_new, request.target_old.as_deref());
                said[*index] = Some(Continuation { text, success });
            }
            progress(members.len() as u64);
        }
    }
    Ok(said.into_iter().flatten().collect())
}

/// The text by which the model continues `prompt`, greedily, by `tokens` tokens or to the end of its context.
///
/// # Errors
/// As [`continuations`]; [`ModelError::NotANumber`] where the model has no answer.
pub fn continuation(
    model: &Model,
    network: &Network,
    prompt: &str,
    tokens: usize,
) -> Result<String, ModelError> {
    // Of what is no number some token is the likeliest, too, and would pass for an answer.
    top_tokens(model, network, prompt, 0)?;
    let ids = model.tokenizer.encode(prompt)?;
    let end = ids.len().saturating_add(tokens).min(network.config().positions);
    let rows = generate(
        network,
        std::slice::from_ref(&ids),
        end,
        Sampling::Greedy,
        &mut ChaCha20Rng::seed_from_u64(0),
    )?;
    model.tokenizer.decode(&rows[0][ids.len()..])
}

/// Prompts of one length, each with the index of its record.
type Prompts = Vec<(usize, Vec<u32>)>;

fn by_length(model: &Model, records: &[Record]) -> Result<Vec<(usize, Prompts)>, ModelError> {
    let mut groups: std::collections::BTreeMap<usize, Prompts> = std::collections::BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        let ids = model.tokenizer.encode(&record.request.text())?;
        groups.entry(ids.len()).or_default().push((index, ids));
    }
    Ok(groups.into_iter().collect())
}

/// `text` begins with `new`, not as the beginning of a longer `old`, and `old` does not come in the same sentence; all
/// as whole words.
fn says(text: &str, new: &str, old: Option<&str>) -> bool {
    let text = text.trim_start();
    let begins_with = |word: &str| whole(text, word).next() == Some(0);
    let goes_on_as = |old: &str| old.len() > new.len() && old.starts_with(new) && begins_with(old);
    if !begins_with(new) || old.is_some_and(goes_on_as) {
        return false;
    }
    let sentence = text[new.len()..].split(['.', '\n', '!', '?']).next().unwrap_or_default();
    old.is_none_or(|old| old == new || whole(sentence, old).next().is_none())
}

/// Mean n-gram entropy in bits over the records' generation prompts; none where there are none.
///
/// Each prompt is continued to 100 tokens by top-5 sampling; per text, half of `2/3 * H2 + 4/3 * H3`, with H the
/// Shannon entropy of its word bigrams and trigrams (`ngram_entropy` of the reference). Words are runs of letters
/// and digits, or single other signs; the reference uses nltk's tokeniser, which differs at contractions.
///
/// `progress` is told a text as one for each of its tokens.
///
/// # Errors
/// As [`continuations`].
pub fn ngram_entropy(
    model: &Model,
    network: &Network,
    records: &[&Record],
    seed: u64,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Option<f64>, ModelError> {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    let mut means = Vec::new();
    for record in records {
        let prompts: Vec<_> = record
            .generation_prompts
            .iter()
            .map(|prompt| model.tokenizer.encode(prompt))
            .collect::<Result<_, _>>()?;
        let length = ENTROPY_TOKENS.min(network.config().positions);
        let rows = generate(network, &prompts, length, Sampling::TopK(ENTROPY_TOP_K), &mut random)?;
        let texts = rows.iter().map(|row| model.tokenizer.decode(row)).collect::<Result<Vec<_>, _>>()?;
        means.extend(mean(&texts.iter().map(|text| entropy(text)).collect::<Vec<_>>()));
        progress((ENTROPY_TOKENS * prompts.len()) as u64);
    }
    Ok(mean(&means))
}

fn entropy(text: &str) -> f64 {
    let words = words(text);
    (2.0 / 3.0 * ngram_bits(&words, 2) + 4.0 / 3.0 * ngram_bits(&words, 3)) / 2.0
}

fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first.is_alphanumeric() {
            true => rest.find(|next: char| !next.is_alphanumeric()).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        words.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    words
}

fn ngram_bits(words: &[&str], size: usize) -> f64 {
    let mut counts: HashMap<&[&str], f64> = HashMap::new();
    for ngram in words.windows(size) {
        *counts.entry(ngram).or_default() += 1.0;
    }
    let total: f64 = counts.values().sum();
    // Summed in a fixed order: a hash map's own order would change the last bits from run to run.
    let mut terms: Vec<f64> = counts.values().map(|count| count / total).map(|p| -p * p.log2()).collect();
    terms.sort_by(f64::total_cmp);
    terms.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_must_stand_first_and_whole() {
        assert!(says(" French. He speaks", "French", Some("Dutch")));
        assert!(!says(" Frenchwoman", "French", None));
        assert!(!says(" the French", "French", None));
        assert!(!says(" French and Dutch", "French", Some("Dutch")));
        assert!(says(" French. Dutch", "French", Some("Dutch")));
        assert!(says(" French and Dutchman", "French", Some("Dutch")));
        assert!(!says(" New York City is", "New York", Some("New York City")));
        assert!(says(" New York is a City", "New York", Some("New York City")));
        // Other scripts write no blank behind a word, and a mark ends one.
        assert!(says(" 東京です", "東京", None));
        assert!(says(" C++17", "C++", None));
    }

    #[test]
    fn entropy_of_repetition_is_low() {
        assert_eq!(entropy("a a a a a a"), 0.0);
        assert!(entropy("one two three four five six seven") > 2.0);
        assert_eq!(words("It's 9 o'clock."), ["It", "'", "s", "9", "o", "'", "clock", "."]);
    }

    #[test]
    fn a_target_that_is_the_old_one_too_may_come_again() {
        assert!(says(" French, French and French", "French", Some("French")));
    }

    #[test]
    fn entropy_weighs_trigrams_twice_as_much_as_bigrams() {
        // Of "a b a b" the bigrams are ab, ba, ab, and the trigrams aba, bab: log2(3) - 2/3 bits, and 1 bit.
        let expected = (2.0 / 3.0 * (3.0_f64.log2() - 2.0 / 3.0) + 4.0 / 3.0) / 2.0;
        assert!((entropy("a b a b") - expected).abs() < 1e-12);
    }
}
