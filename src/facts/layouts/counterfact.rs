//! CounterFact records: the fact in `requested_rewrite`, its measures beside it.

use std::sync::Arc;

use serde_json::Value;

use crate::facts::error::FactsError;
use crate::facts::fields::Fields;
use crate::facts::{Probe, Record};

pub(super) fn record(fields: &Fields<'_>) -> Result<Record, FactsError> {
    with_measures(fields, &fields.object("requested_rewrite")?, "target_true")
}

/// The fact in `rewrite` with CounterFact's prompts, which stand in `fields`.
pub(super) fn with_measures(
    fields: &Fields<'_>,
    rewrite: &Fields<'_>,
    target_old: &str,
) -> Result<Record, FactsError> {
    let request = rewrite.request(target_old)?;
    // Neighbours are chosen to share the old target: it is what they must go on saying. A long one is not to be kept
    // for each of many short prompts.
    let expected: Option<Arc<str>> = request.target_old.as_deref().map(Arc::from);
    let neighbor = |prompt| Probe { prompt, expected: expected.clone() };
    Ok(Record {
        paraphrases: fields.prompts("paraphrase_prompts")?,
        neighbors: fields.prompts("neighborhood_prompts")?.into_iter().map(neighbor).collect(),
        generation_prompts: fields.prompts("generation_prompts")?,
        relation: rewrite.value("relation_id").and_then(Value::as_str).map(str::to_owned),
        ..Record::of(request)
    })
}
