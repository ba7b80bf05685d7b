//! Typed access to the fields of one record, where every refusal knows its record and its field's full path.

use serde_json::{Map, Value};

use super::error::{FactsError, Place, excerpt};
use super::source::kind_of;
use super::{PLACEHOLDER, Request, TEXT_SIZE_MAX_BYTES, words};

/// The fields of one JSON object within a record.
pub(super) struct Fields<'a> {
    pub object: &'a Map<String, Value>,
    pub place: &'a Place,
    /// Path of this object within its record, ending with a dot unless it is the record itself.
    prefix: String,
}

impl<'a> Fields<'a> {
    pub fn new(object: &'a Map<String, Value>, place: &'a Place) -> Self {
        Self { object, place, prefix: String::new() }
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The field's value; null counts as absent, as in files that Python wrote.
    pub fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    pub fn required(&self, name: &str) -> Result<&'a Value, FactsError> {
        let missing = || FactsError::MissingField { place: self.place.clone(), field: self.path(name) };
        self.value(name).ok_or_else(missing)
    }

    pub fn wrong_type(&self, name: &str, expected: &'static str, found: &Value) -> FactsError {
        let (place, field) = (self.place.clone(), self.path(name));
        FactsError::WrongType { place, field, expected, found: kind_of(found) }
    }

    /// The object in field `name`, which must be there.
    pub fn object(&self, name: &str) -> Result<Fields<'a>, FactsError> {
        let value = self.required(name)?;
        let object = value.as_object().ok_or_else(|| self.wrong_type(name, "an object", value))?;
        Ok(Fields { object, place: self.place, prefix: format!("{}.", self.path(name)) })
    }

    /// The text in `value`, which stands in field `name`.
    pub fn text_in(&self, name: &str, value: &Value) -> Result<String, FactsError> {
        let text = value.as_str().ok_or_else(|| self.wrong_type(name, "a text", value))?;
        self.checked(name, text)
    }

    fn checked(&self, name: &str, text: &str) -> Result<String, FactsError> {
        let (place, field) = (|| self.place.clone(), || self.path(name));
        if text.len() > TEXT_SIZE_MAX_BYTES {
            return Err(FactsError::TextTooLong { place: place(), field: field(), size: text.len() });
        }
        // A patch carries the text to other people's terminals.
        match text.chars().find(|&c| c.is_control() && c != '\n' && c != '\t') {
            Some(c) => Err(FactsError::ControlCharacter { place: place(), field: field(), code: c.into() }),
            None => Ok(text.to_owned()),
        }
    }

    /// A text that must be there and say something.
    pub fn text(&self, name: &str) -> Result<String, FactsError> {
        self.filled_text_in(name, self.required(name)?)
    }

    /// The text in `value`, which stands in field `name` and must say something.
    pub fn filled_text_in(&self, name: &str, value: &Value) -> Result<String, FactsError> {
        let text = self.text_in(name, value)?;
        self.not_blank(name, text)
    }

    fn not_blank(&self, name: &str, text: String) -> Result<String, FactsError> {
        if is_blank(&text) {
            return Err(FactsError::EmptyText { place: self.place.clone(), field: self.path(name) });
        }
        Ok(text)
    }

    pub fn optional_text(&self, name: &str) -> Result<Option<String>, FactsError> {
        self.value(name).map(|value| self.text_in(name, value)).transpose()
    }

    /// A prompt: a text without the blanks around it, for a target follows behind one space, and the model says other
    /// things behind two.
    pub fn prompt(&self, name: &str) -> Result<String, FactsError> {
        Ok(trimmed(&self.text(name)?))
    }

    /// A target, as text or in the reference's `{"str": text}`, without the blanks around it.
    pub fn target(&self, name: &str) -> Result<String, FactsError> {
        match self.required(name)? {
            Value::Object(_) => self.object(name)?.target("str"),
            Value::String(text) => Ok(trimmed(&self.not_blank(name, self.checked(name, text)?)?)),
            other => Err(self.wrong_type(name, r#"a text or {"str": text}"#, other)),
        }
    }

    pub fn optional_target(&self, name: &str) -> Result<Option<String>, FactsError> {
        self.value(name).map(|_| self.target(name)).transpose()
    }

    /// The list in field `name`; empty when there is none.
    pub fn list(&self, name: &str) -> Result<&'a [Value], FactsError> {
        match self.value(name) {
            None => Ok(&[]),
            Some(Value::Array(values)) => Ok(values),
            Some(other) => Err(self.wrong_type(name, "a list", other)),
        }
    }

    /// Prompts in field `name`, without the blanks around them: a list, one alone, or none. Each must say something.
    pub fn prompts(&self, name: &str) -> Result<Vec<String>, FactsError> {
        let texts = self.prompts_or_blanks(name)?;
        let Some(index) = texts.iter().position(|text| is_blank(text)) else { return Ok(texts) };
        let is_list = self.value(name).is_some_and(Value::is_array);
        let field = if is_list { format!("{}[{index}]", self.path(name)) } else { self.path(name) };
        Err(FactsError::EmptyText { place: self.place.clone(), field })
    }

    /// As [`Fields::prompts`], with those that say nothing.
    pub fn prompts_or_blanks(&self, name: &str) -> Result<Vec<String>, FactsError> {
        match self.value(name) {
            Some(Value::String(text)) => Ok(vec![trimmed(&self.checked(name, text)?)]),
            Some(Value::Array(values)) => {
                values.iter().map(|value| Ok(trimmed(&self.text_in(name, value)?))).collect()
            }
            Some(other) => Err(self.wrong_type(name, "a list of texts", other)),
            None => Ok(Vec::new()),
        }
    }

    /// A list of objects, each with the fields of a record.
    pub fn objects(&self, name: &str) -> Result<Vec<Fields<'a>>, FactsError> {
        let fields = |(index, value): (usize, &'a Value)| match value.as_object() {
            Some(object) => {
                Ok(Fields { object, place: self.place, prefix: format!("{}[{index}].", self.path(name)) })
            }
            None => Err(self.wrong_type(&format!("{name}[{index}]"), "an object", value)),
        };
        self.list(name)?.iter().enumerate().map(fields).collect()
    }

    /// The fact in the fields `prompt`, `subject` and `target_new`, its prompt with `{}`.
    pub fn request(&self, target_old: &str) -> Result<Request, FactsError> {
        let prompt = self.one_placeholder(self.prompt("prompt")?)?;
        let (prompt, subject) = set_apart(&prompt, &self.text("subject")?);
        Ok(Request {
            id: self.id()?,
            prompt,
            subject,
            target_new: self.target("target_new")?,
            target_old: self.optional_target(target_old)?,
            note: self.optional_text("note")?,
        })
    }

    /// The record's id.
    pub fn id(&self) -> Result<Option<String>, FactsError> {
        self.place.id.as_deref().map(|id| self.checked("id", id)).transpose()
    }

    /// `prompt` itself, if it says exactly once where the subject goes.
    pub fn one_placeholder(&self, prompt: String) -> Result<String, FactsError> {
        let found = prompt.matches(PLACEHOLDER).count();
        if found == 1 {
            return Ok(prompt);
        }
        let (place, prompt) = (self.place.clone(), excerpt(&prompt));
        Err(FactsError::Placeholders { place, prompt, found })
    }

    /// The list in field `name` is not as long as the prompts.
    pub fn list_length(&self, name: &str, expected: usize, found: usize) -> FactsError {
        FactsError::ListLength { place: self.place.clone(), field: self.path(name), expected, found }
    }

    /// `text` with the subject that is written out in it replaced by `{}`: where it is a word of its own, before
    /// others.
    pub fn lift_subject(&self, text: &str, subject: &str) -> Result<String, FactsError> {
        let mut places: Vec<usize> = words::whole(text, subject).collect();
        if places.is_empty() {
            places = text.match_indices(subject).map(|(start, _)| start).collect();
        }
        if let [start] = places[..] {
            let (before, after) = (&text[..start], &text[start + subject.len()..]);
            // The text may have held a placeholder of its own.
            return self.one_placeholder(format!("{before}{PLACEHOLDER}{after}"));
        }
        let found = places.len();
        let (place, subject, prompt) = (self.place.clone(), excerpt(subject), excerpt(text));
        Err(FactsError::SubjectInPrompt { place, subject, prompt, found })
    }
}

/// Says nothing.
pub(super) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// `text` without the blanks around it.
pub(super) fn trimmed(text: &str) -> String {
    text.trim().to_owned()
}

/// A prompt and its subject without the blanks around it, at which the model would be edited instead of at the
/// subject's end; where the prompt has none in their place, it gets one.
pub(super) fn set_apart(prompt: &str, subject: &str) -> (String, String) {
    let (before, after) = prompt.split_once(PLACEHOLDER).unwrap_or((prompt, ""));
    let is_bare = |text: &str, end: Option<char>| !text.is_empty() && !end.is_some_and(char::is_whitespace);
    let begins = subject.starts_with(char::is_whitespace) && is_bare(before, before.chars().next_back());
    let ends = subject.ends_with(char::is_whitespace) && is_bare(after, after.chars().next());
    let space = |needed| if needed { " " } else { "" };
    let prompt = format!("{before}{}{PLACEHOLDER}{}{after}", space(begins), space(ends));
    (prompt, subject.trim().to_owned())
}

/// The id of a record, whichever of the usual names and kinds it has; null counts as absent.
pub(super) fn id_of(object: &Map<String, Value>) -> Option<String> {
    let known = |name: &&str| object.get(*name).filter(|id| !id.is_null());
    match ["id", "case_id"].iter().find_map(known) {
        Some(Value::String(id)) => Some(id.clone()),
        Some(Value::Number(id)) => Some(id.to_string()),
        _ => None,
    }
}
