//! Openings that a prompt is put behind, so that a key does not depend on one context.
//!
//! The reference samples five openings from the model itself, without a seed, and forgets them
//! (`memit_main.py: get_context_templates`). Here they are seeded and recorded in the patch.

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use unicode_normalization::UnicodeNormalization;

use super::EditError;
use crate::model::{END_OF_TEXT, Model, Sampling, generate};

/// Groups of templates, each with one `{}`; a key is the mean over groups of the mean within a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts(Vec<Vec<String>>);

/// What the reference lets the model continue.
const OPENINGS: [&str; 5] = ["The", "Therefore", "Because", "I", "You"];
/// Tokens of an opening, the given word included.
const OPENING_TOKENS: usize = 10;
/// The next token is one of this many.
const OPENING_TOP_K: usize = 5;

impl Contexts {
    /// Reads the reference's list of lists.
    ///
    /// # Errors
    /// [`EditError::Contexts`] when it is no such list, or a template does not hold exactly one `{}`.
    pub fn parse(bytes: &[u8]) -> Result<Self, EditError> {
        let groups = serde_json::from_slice(bytes).map_err(|error| EditError::Contexts {
            what: format!("expected a list of lists of text: {error}"),
        })?;
        Self::new(groups)
    }

    /// Checks that there is a template in every group and one `{}` in every template, at its beginning or behind a
    /// space.
    ///
    /// # Errors
    /// [`EditError::Contexts`].
    pub fn new(groups: Vec<Vec<String>>) -> Result<Self, EditError> {
        let refuse = |what: String| Err(EditError::Contexts { what });
        if groups.is_empty() || groups.iter().any(Vec::is_empty) {
            return refuse("an empty list: expected groups of at least one template each".to_owned());
        }
        for template in groups.iter().flatten() {
            let blanks = template.matches("{}").count();
            if blanks != 1 {
                return refuse(format!("the template `{template}` has {blanks} `{{}}`, expected one"));
            }
            // A prompt that begins with its subject would have it glued to a word.
            let before = template.split("{}").next().unwrap_or_default();
            if !before.is_empty() && !before.ends_with(' ') {
                return refuse(format!("the template `{template}` has no space before its `{{}}`"));
            }
        }
        Ok(Self(groups))
    }

    /// Samples the five openings as the reference does: ten tokens in all, each of the five most likely.
    ///
    /// # Errors
    /// [`EditError::Model`].
    pub fn sample(model: &Model, seed: u64) -> Result<Self, EditError> {
        let prompts: Vec<_> =
            OPENINGS.iter().map(|opening| model.tokenizer.encode(opening)).collect::<Result<_, _>>()?;
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let rows =
            generate(&model.network, &prompts, OPENING_TOKENS, Sampling::TopK(OPENING_TOP_K), &mut random)?;
        let openings = rows
            .iter()
            .map(|row| Ok(format!("{}. {{}}", tidy(&model.tokenizer.decode(row)?))))
            .collect::<Result<Vec<_>, EditError>>()?;
        Self::new(vec![vec!["{}".to_owned()], openings])
    }

    /// The groups.
    pub fn groups(&self) -> &[Vec<String>] {
        &self.0
    }

    /// All templates, group after group.
    pub fn templates(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flatten().map(String::as_str)
    }
}

/// The reference's clean-up of generated text, and braces made spaces so that only our own `{}` is a blank.
fn tidy(text: &str) -> String {
    let text: String = text.nfkd().collect();
    text.replace("\n\n", " ").replace(END_OF_TEXT, "").replace(['{', '}'], " ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;

    #[test]
    fn what_a_model_writes_is_cleaned_of_what_would_be_a_blank_or_an_end() {
        assert_eq!(tidy("The {} of\n\n[{x}]<|endoftext|> \u{fb01}n"), "The    of [ x ] fin");
    }

    #[test]
    fn openings_are_sampled_by_the_seed_behind_the_plain_prompt() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let model = Model::open(&folder, &Device::Cpu, &|_| ()).expect("the fixture is a model");
        let sampled = |seed| Contexts::sample(&model, seed).expect("contexts");
        let found = sampled(1);
        let [plain, openings] = found.groups() else { panic!("{found:?}") };
        assert_eq!((plain.as_slice(), openings.len()), (&["{}".to_owned()][..], 5));
        for (opening, begins) in openings.iter().zip(OPENINGS) {
            assert!(opening.starts_with(begins) && opening.ends_with(". {}"), "{opening}");
        }
        let tokens = |opening: &String| {
            let text = opening.strip_suffix(". {}").expect("as above");
            model.tokenizer.encode(text).expect("text").len()
        };
        assert_eq!(openings.iter().map(tokens).max(), Some(OPENING_TOKENS));
        assert_eq!(found, sampled(1));
        assert_ne!(found, sampled(2));
    }
}
