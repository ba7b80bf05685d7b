//! The reference's request list, and mpatch's own layout, which gives a request all that a [`Record`] has.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use super::{Object, SCHEMA, counterfact};
use crate::facts::error::{FactsError, excerpt};
use crate::facts::fields::Fields;
use crate::facts::{Probe, Record};

/// Every field of a fact in mpatch's own layout. Others are refused: a misspelt list of neighbours would
/// otherwise be left out without a word. Of `attribute_prompts` there is nothing that needs them.
pub(in crate::facts) const NATIVE_FIELDS: &[&str] = &[
    "schema",
    "id",
    "prompt",
    "subject",
    "target_new",
    "target_old",
    "note",
    "paraphrases",
    "neighbors",
    "attribute_prompts",
    "generation_prompts",
    "portability",
];

/// The facts of a native container, or the one fact that says its schema itself.
pub(super) fn facts_of(fields: Fields<'_>) -> Result<Vec<Cow<'_, Object>>, FactsError> {
    match fields.object.get("schema") {
        Some(Value::String(schema)) if schema == SCHEMA => {}
        Some(other) => {
            let found = excerpt(&other.to_string());
            return Err(FactsError::UnknownSchema { place: fields.place.clone(), found });
        }
        None => return Err(FactsError::MissingField { place: fields.place.clone(), field: "schema".into() }),
    }
    if !fields.object.contains_key("facts") {
        return Ok(vec![Cow::Borrowed(fields.object)]);
    }
    no_other_field(&fields, &["schema", "facts"])?;
    Ok(fields.objects("facts")?.into_iter().map(|fact| Cow::Borrowed(fact.object)).collect())
}

pub(super) fn native_record(fields: &Fields<'_>) -> Result<Record, FactsError> {
    no_other_field(fields, NATIVE_FIELDS)?;
    record(fields)
}

fn no_other_field(fields: &Fields<'_>, known: &[&str]) -> Result<(), FactsError> {
    match fields.object.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(FactsError::UnknownField { place: fields.place.clone(), field: excerpt(name) }),
        None => Ok(()),
    }
}

/// A request; fields of mpatch's own layout beside it are read too, and the prompts of CounterFact, which somebody may
/// have taken it out of.
pub(super) fn record(fields: &Fields<'_>) -> Result<Record, FactsError> {
    let target_old = if fields.value("target_true").is_some() { "target_true" } else { "target_old" };
    let mut record = counterfact::with_measures(fields, fields, target_old)?;
    record.paraphrases.extend(fields.prompts("paraphrases")?);
    record.neighbors.extend(neighbors(fields)?);
    Ok(record)
}

/// Prompts with their answers: texts, or objects with `prompt` and `expected`.
fn neighbors(fields: &Fields<'_>) -> Result<Vec<Probe>, FactsError> {
    const NAME: &str = "neighbors";
    if fields.list(NAME)?.iter().all(Value::is_string) {
        let prompts = fields.prompts(NAME)?.into_iter();
        return Ok(prompts.map(|prompt| Probe { prompt, expected: None }).collect());
    }
    let neighbor = |fields: Fields<'_>| {
        let expected = fields.optional_target("expected")?.map(Arc::from);
        Ok(Probe { prompt: fields.prompt("prompt")?, expected })
    };
    fields.objects(NAME)?.into_iter().map(neighbor).collect()
}
