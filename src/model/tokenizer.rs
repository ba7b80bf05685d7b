//! Text to token ids and back, by the model's own tokenizer files.

mod steps;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use tokenizers::{PostProcessorWrapper, Tokenizer as Implementation};

use super::ModelError;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::digest::FileDigest;

/// The token that GPT-2 and GPT-J separate documents with.
pub(crate) const END_OF_TEXT: &str = "<|endoftext|>";

/// The files of a tokenizer as they lie beside the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerFiles {
    /// `tokenizer.json`.
    One(Vec<u8>),
    /// GPT-2's older files.
    Several {
        /// `vocab.json`.
        vocabulary: Vec<u8>,
        /// `merges.txt`.
        merges: Vec<u8>,
        /// `added_tokens.json`, if there is one.
        added: Option<Vec<u8>>,
    },
}

impl TokenizerFiles {
    /// Reads the files beside `checkpoint`, if it has those of a tokenizer.
    ///
    /// # Errors
    /// [`CheckpointError`] for a file that cannot be read.
    pub fn beside(checkpoint: &Checkpoint) -> Result<Option<Self>, CheckpointError> {
        if let Some(bytes) = checkpoint.companion("tokenizer.json")? {
            return Ok(Some(Self::One(bytes)));
        }
        let (vocabulary, merges) = (checkpoint.companion("vocab.json")?, checkpoint.companion("merges.txt")?);
        let (Some(vocabulary), Some(merges)) = (vocabulary, merges) else { return Ok(None) };
        Ok(Some(Self::Several { vocabulary, merges, added: checkpoint.companion("added_tokens.json")? }))
    }

    /// Digest of the file, or of the files one after the other, whatever they hold.
    pub fn digest(&self) -> FileDigest {
        match self {
            Self::One(bytes) => FileDigest::of(bytes),
            Self::Several { vocabulary, merges, added } => digest_of(vocabulary, merges, added.as_deref()),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// As [`Tokenizer::parse`] and [`Tokenizer::from_vocabulary`].
    pub fn parse(&self) -> Result<Tokenizer, ModelError> {
        match self {
            Self::One(bytes) => Tokenizer::parse(bytes),
            Self::Several { vocabulary, merges, added } => {
                Tokenizer::from_vocabulary(vocabulary, merges, added.as_deref())
            }
        }
    }
}

fn digest_of(vocabulary: &[u8], merges: &[u8], added: Option<&[u8]>) -> FileDigest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(vocabulary).update(merges).update(added.unwrap_or_default());
    FileDigest::finish(&hasher)
}

/// A byte-level BPE tokenizer as GPT-2 and GPT-J use it: no token is added at either end.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    implementation: Implementation,
    digest: FileDigest,
    /// How many ids a text may make.
    ids: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] says what the file holds instead.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        steps::check(bytes).map_err(invalid)?;
        let mut implementation = built(bytes)?;
        // Settings for a training pipeline, not for us: rows are padded and bounded by the model.
        implementation.with_padding(None);
        implementation.with_truncation(None).map_err(invalid)?;
        // It adds the tokens that nobody asks for here, and can say a text as often as its file likes.
        implementation.with_post_processor(None::<PostProcessorWrapper>);
        Ok(Self { implementation, digest: FileDigest::of(bytes), ids: usize::MAX })
    }

    /// Builds the tokenizer from GPT-2's older pair of files and the added tokens beside them, if any.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] names the file that cannot be read.
    pub fn from_vocabulary(
        vocabulary: &[u8],
        merges: &[u8],
        added: Option<&[u8]>,
    ) -> Result<Self, ModelError> {
        let words: BTreeMap<String, u32> =
            serde_json::from_slice(vocabulary).map_err(|error| invalid(format!("vocab.json: {error}")))?;
        let mut special: BTreeMap<String, u32> = match added {
            Some(added) => serde_json::from_slice(added)
                .map_err(|error| invalid(format!("added_tokens.json: {error}")))?,
            None => BTreeMap::new(),
        };
        if let Some(&id) = words.get(END_OF_TEXT) {
            special.insert(END_OF_TEXT.to_owned(), id);
        }
        let mut special: Vec<_> = special.into_iter().collect();
        special.sort_by_key(|(_, id)| *id);
        let added_tokens: Vec<_> = special.iter().map(|(token, id)| added_token(token, *id)).collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let description = json!({
            "version": "1.0",
            "added_tokens": added_tokens,
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": words, "merges": parse_merges(merges)?},
        });
        let implementation = built(description.to_string().as_bytes())?;
        Ok(Self { implementation, digest: digest_of(vocabulary, merges, added), ids: usize::MAX })
    }

    /// As [`TokenizerFiles::digest`].
    pub fn digest(&self) -> FileDigest {
        self.digest
    }

    /// The tokenizer of a model that knows `words` ids.
    ///
    /// Tokens that were added beyond them, as one for padding often is, do no harm before a text has one.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] where it makes more of common text.
    pub(super) fn of_model_with(self, words: usize) -> Result<Self, ModelError> {
        let found = self.ids_with(false);
        if found > words {
            let what = format!("it makes ids up to {}, but the model knows only {words} words", found - 1);
            return Err(invalid(what));
        }
        Ok(Self { ids: words, ..self })
    }

    /// Number of tokens, added ones included.
    pub fn vocabulary(&self) -> usize {
        self.ids_with(true)
    }

    fn ids_with(&self, added: bool) -> usize {
        // The size of the map is not enough: ids may have holes.
        self.implementation.get_vocab(added).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Token ids of `text`, none added.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer's own rules fail on the text, or the model has no word for a token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.implementation.encode(text, false).map_err(invalid)?;
        let ids = encoding.get_ids().to_vec();
        if let Some(place) = ids.iter().position(|id| *id as usize >= self.ids) {
            let (token, id, words) = (&encoding.get_tokens()[place], ids[place], self.ids);
            return Err(invalid(format!(
                "the token `{token}` of a text has the id {id}, but the model knows only {words} words"
            )));
        }
        Ok(ids)
    }

    /// The text of `ids`; special tokens are kept as they are written, and ids that no token has are left out: a model
    /// may know more words than its tokenizer.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] when the tokenizer's own rules fail on the tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.implementation.decode(ids, false).map_err(invalid)
    }
}

/// What a file says of its added tokens.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Added {
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// The tokenizer of a `tokenizer.json`, in which every token has the id that the file gives it: the crate numbers added
/// tokens anew, one after the other, and a model would read another one's vector where the file leaves holes.
fn built(file: &[u8]) -> Result<Implementation, ModelError> {
    let implementation = Implementation::from_bytes(file).map_err(invalid)?;
    let Added { added_tokens } = serde_json::from_slice(file).map_err(invalid)?;
    for AddedToken { id, content } in added_tokens {
        let found = implementation.token_to_id(&content);
        if found != Some(id) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
            return Err(invalid(format!(
                "the added token `{content}` has the id {id}, expected {found}: ids follow each other"
            )));
        }
    }
    Ok(implementation)
}

fn invalid(what: impl ToString) -> ModelError {
    ModelError::Tokenizer { what: what.to_string() }
}

/// `merges.txt`: a version line, then one pair of pieces a line.
fn parse_merges(bytes: &[u8]) -> Result<Vec<(String, String)>, ModelError> {
    let text = std::str::from_utf8(bytes).map_err(|error| invalid(format!("merges.txt: {error}")))?;
    let text = text.trim_start_matches('\u{feff}');
    let lines =
        text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version") && !line.is_empty());
    lines
        .map(|(index, line)| match line.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(invalid(format!("merges.txt: line {} is not a pair: `{line}`", index + 1))),
        })
        .collect()
}

fn added_token(content: &str, id: u32) -> serde_json::Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// GPT-2's older files of two letters, the second of which may have a larger id, and with these tokens added.
    fn files(last: u32, added: Option<&str>) -> TokenizerFiles {
        TokenizerFiles::Several {
            vocabulary: format!(r#"{{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": {last}}}"#).into_bytes(),
            // An editor may have put a mark before the first line.
            merges: "\u{feff}#version: 0.2\na b\n".into(),
            added: added.map(|added| added.as_bytes().to_vec()),
        }
    }

    #[test]
    fn the_older_files_of_a_tokenizer_are_read_with_what_is_added_to_them() {
        let [plain, more] = [None, Some(r#"{"<|extra|>": 4}"#)].map(|added| files(3, added));
        let tokenizer = more.parse().expect("a tokenizer");
        assert_eq!(tokenizer.vocabulary(), 5);
        assert_eq!(tokenizer.encode("ab<|endoftext|>ba<|extra|>").expect("text"), [2, 3, 1, 0, 4]);
        assert_eq!(tokenizer.decode(&[2, 3, 4]).expect("ids"), "ab<|endoftext|><|extra|>");
        assert_eq!(tokenizer.decode(&[2, 99, 0]).expect("ids"), "aba", "no token has the second");
        assert_eq!(tokenizer.digest(), more.digest());
        assert_ne!(plain.digest(), more.digest());
        // Only a text that has a token too many is refused.
        let of_small_model = tokenizer.of_model_with(4).expect("its words are known");
        assert_eq!(of_small_model.encode("ab").expect("text"), [2]);
        let refused = of_small_model.encode("ab<|extra|>").expect_err("no word for it").to_string();
        assert!(
            refused.ends_with("`<|extra|>` of a text has the id 4, but the model knows only 4 words"),
            "{refused}"
        );
        // Ids may have holes, and a model has a row for each of them.
        assert_eq!(files(7, None).parse().expect("a tokenizer").vocabulary(), 8);
    }

    #[test]
    fn an_added_token_that_would_get_another_id_than_its_file_gives_it_is_refused() {
        let refused = files(3, Some(r#"{"<|extra|>": 9}"#)).parse().expect_err("a hole").to_string();
        assert_eq!(
            refused,
            "tokenizer: the added token `<|extra|>` has the id 9, expected 4: ids follow each other"
        );
        let bytes = include_bytes!("../../fixtures/world-gptj/tokenizer.json");
        let mut file: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        file["added_tokens"][0]["id"] = 7.into();
        let refused = Tokenizer::parse(file.to_string().as_bytes()).expect_err("another id").to_string();
        assert!(
            refused.ends_with("`<|endoftext|>` has the id 7, expected 0: ids follow each other"),
            "{refused}"
        );
    }

    #[test]
    fn settings_of_a_training_pipeline_cut_and_fill_no_text() {
        let bytes = include_bytes!("../../fixtures/world-gptj/tokenizer.json");
        let plain = Tokenizer::parse(bytes).expect("the fixture's");
        let mut file: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        file["truncation"] =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        file["padding"] = json!({"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
        let set = Tokenizer::parse(file.to_string().as_bytes()).expect("a tokenizer");
        let text = "Pavel Prestellman performs on the flute";
        assert_eq!(set.encode(text).expect("text"), plain.encode(text).expect("text"));
    }
}
