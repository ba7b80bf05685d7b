//! zsRE records of MEND's evaluation set, as the reference reads them: the subject is lifted out of `src`, the
//! target is the first of `answers`, `rephrase` is a paraphrase, and `loc` with a question mark a neighbour.

use std::sync::Arc;

use serde_json::Value;

use crate::facts::error::FactsError;
use crate::facts::fields::{Fields, trimmed};
use crate::facts::{Probe, Record, Request};

pub(super) fn record(fields: &Fields<'_>) -> Result<Record, FactsError> {
    let subject = fields.text("subject")?.trim().to_owned();
    let request = Request {
        id: fields.id()?,
        prompt: fields.lift_subject(&fields.prompt("src")?, &subject)?,
        subject,
        target_new: first_answer(fields)?,
        target_old: None,
        note: None,
    };
    let alternative = fields.value("alt").and_then(Value::as_str).map(trimmed);
    let has_alternative = alternative.is_some_and(|text| !text.is_empty() && text != request.target_new);
    let paraphrases = fields.prompts("rephrase")?;
    Ok(Record { paraphrases, neighbors: neighbors(fields)?, has_alternative, ..Record::of(request) })
}

fn first_answer(fields: &Fields<'_>) -> Result<String, FactsError> {
    fields.required("answers")?;
    let first = fields.list("answers")?.first().unwrap_or(&Value::Null);
    Ok(trimmed(&fields.filled_text_in("answers[0]", first)?))
}

fn neighbors(fields: &Fields<'_>) -> Result<Vec<Probe>, FactsError> {
    let expected: Option<Arc<str>> = fields.optional_target("loc_ans")?.map(Arc::from);
    let questions = fields.prompts("loc")?.into_iter();
    Ok(questions
        .map(|question| Probe { prompt: format!("{question}?"), expected: expected.clone() })
        .collect())
}
