//! Which token of a prompt carries the fact.
//!
//! The reference splits a template at its `{}` and tokenises the parts apart, the subject with the space before it;
//! the subject's last token is then the last of prefix and word (`rome/repr_tools.py`).

use super::EditError;
use crate::model::Tokenizer;

/// A template with its subject filled in, and where the subject ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The text.
    pub text: String,
    /// Token ids of the text.
    pub ids: Vec<u32>,
    /// Index of the subject's last token, from the left.
    pub subject_last: usize,
}

/// Fills `subject`, without the blanks around it, into `template`, which holds exactly one `{}`, and finds the
/// subject's last token.
///
/// # Errors
/// [`EditError::Template`] for another number of blanks, a blank glued to the word before it, or a text that has no
/// tokens where the subject's would end. Where what follows joins the subject's last token, as the reference does, the
/// token in that place is taken.
pub fn locate(tokenizer: &Tokenizer, template: &str, subject: &str) -> Result<Located, EditError> {
    // As in the word that is looked for: one blank more in the text, and the place is that of another token.
    let subject = subject.trim();
    let refuse = |what: &str| EditError::Template { template: template.to_owned(), what: what.to_owned() };
    let Some((prefix, suffix)) = template.split_once("{}") else {
        return Err(refuse("has no `{}`"));
    };
    if suffix.contains("{}") {
        return Err(refuse("has more than one `{}`"));
    }
    let text = format!("{prefix}{subject}{suffix}");
    let ids = tokenizer.encode(&text)?;
    let (before, word) = match prefix.strip_suffix(' ') {
        Some(prefix) => (tokenizer.encode(prefix)?.len(), format!(" {subject}")),
        None if prefix.is_empty() => (0, subject.to_owned()),
        None => return Err(refuse("has no space before its `{}`")),
    };
    let through = before + tokenizer.encode(&word)?.len();
    if through == before || through > ids.len() {
        return Err(refuse(&format!("does not hold the tokens of the subject `{subject}`")));
    }
    Ok(Located { text, ids, subject_last: through - 1 })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::model::TokenizerFiles;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let checkpoint = Checkpoint::open(&folder).expect("the fixture");
        TokenizerFiles::beside(&checkpoint).expect("read").expect("a tokenizer").parse().expect("a tokenizer")
    }

    #[test]
    fn a_template_says_once_where_its_subject_goes_and_leaves_room_for_its_tokens() {
        let tokenizer = tokenizer();
        let refused = |template: &str, subject: &str| match locate(&tokenizer, template, subject) {
            Err(error) => error.to_string(),
            Ok(found) => panic!("{template}: {found:?}"),
        };
        assert!(refused("She is", "Ann").contains("has no `{}`"));
        assert!(refused("{} and {} are", "Ann").contains("has more than one `{}`"));
        assert!(refused("The{} is", "Ann").contains("has no space before its `{}`"));
        // What follows makes one token of what were several.
        let whole = "Because";
        let (subject, rest) = (1..whole.len())
            .map(|at| whole.split_at(at))
            .find(|(subject, _)| {
                let tokens = |text: &str| tokenizer.encode(text).expect("text").len();
                tokens(subject) > tokens(whole)
            })
            .expect("a beginning of more tokens than the word");
        let found = refused(&format!("{{}}{rest}"), subject);
        assert!(found.contains("does not hold the tokens of the subject"), "{found}");
    }
}
