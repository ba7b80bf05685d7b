//! EasyEdit's two layouts: flat records, and the parallel lists of its editor's call, which are turned into flat
//! records first. The subject is written out in the prompt; a prompt that already holds `{}` is taken as it is.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Object;
use crate::facts::error::FactsError;
use crate::facts::fields::{Fields, is_blank, set_apart, trimmed};
use crate::facts::{PLACEHOLDER, Probe, Record, Request};

/// Fields that no other layout has.
pub(super) const MARKS: &[&str] = &[
    "ground_truth",
    "rephrase_prompt",
    "rephrase",
    "locality",
    "locality_prompt",
    "locality_ground_truth",
    "portability_prompt",
];

/// Longest name of a set of probes that each record gets.
const SET_NAME_BYTES_MAX: usize = 32;

/// The field of a question whose answer follows from the fact, in the zsRE records that EasyEdit extended.
const NEW_QUESTION: &str = "New Question";

/// The answer of a probe in a list, by EasyEdit's name and by mpatch's.
const ANSWERS: [&str; 2] = ["ground_truth", "expected"];

/// What EasyEdit writes where it knows no old target.
const NO_TARGET: &str = "<|endoftext|>";

pub(super) fn record(fields: &Fields<'_>) -> Result<Record, FactsError> {
    let request = request(fields)?;
    let mut paraphrases = fields.prompts_or_blanks("rephrase_prompt")?;
    paraphrases.extend(fields.prompts_or_blanks("rephrase")?);
    // Fields that every record of a data set has are left blank where there is nothing to say.
    paraphrases.retain(|text| !is_blank(text));
    let mut neighbors = named_probes(fields, "locality")?;
    neighbors.extend(flat_probes(fields, "locality_prompt", &["locality_ground_truth", "locality_answer"])?);
    Ok(Record { paraphrases, neighbors, ..Record::of(request) })
}

/// Prompts whose answers follow from the new fact, which every layout may have: as EasyEdit's data sets write them, or
/// a list as in mpatch's own layout.
pub(super) fn portability(fields: &Fields<'_>) -> Result<Vec<Probe>, FactsError> {
    const NAME: &str = "portability";
    let is_one_question = fields.value(NAME).is_some_and(|value| value.get(NEW_QUESTION).is_some());
    let mut probes = if is_one_question {
        flat_probes(&fields.object(NAME)?, NEW_QUESTION, &["New Answer"])?
    } else {
        named_probes(fields, NAME)?
    };
    let answers = ["portability_ground_truth", "portability_answer"];
    probes.extend(flat_probes(fields, "portability_prompt", &answers)?);
    Ok(probes)
}

fn request(fields: &Fields<'_>) -> Result<Request, FactsError> {
    let (prompt, subject) = (fields.prompt("prompt")?, fields.text("subject")?);
    let (prompt, subject) = if prompt.contains(PLACEHOLDER) {
        set_apart(&fields.one_placeholder(prompt)?, &subject)
    } else {
        let subject = subject.trim();
        (fields.lift_subject(&prompt, subject)?, subject.to_owned())
    };
    Ok(Request {
        id: fields.id()?,
        prompt,
        subject,
        target_new: fields.target("target_new")?,
        target_old: target_old(fields)?,
        note: None,
    })
}

/// The first of the fields for it that knows one.
fn target_old(fields: &Fields<'_>) -> Result<Option<String>, FactsError> {
    for name in ["ground_truth", "target_true", "target_old"] {
        // As in requests.
        let value = fields.value(name).map(|value| value.get("str").unwrap_or(value));
        if let Some(known) = answer(fields, name, value.and_then(first_text))? {
            return Ok(Some(known));
        }
    }
    Ok(None)
}

/// A known answer, or none where the text says that none is known.
fn answer(fields: &Fields<'_>, name: &str, text: Option<&Value>) -> Result<Option<String>, FactsError> {
    let text = text.map(|value| fields.text_in(name, value)).transpose()?;
    let known = text.filter(|text| !text.trim().is_empty() && text.trim() != NO_TARGET);
    Ok(known.map(|text| trimmed(&text)))
}

/// The first text in a value that may be a text or lists of texts, as answers with aliases are.
fn first_text(value: &Value) -> Option<&Value> {
    match value {
        Value::String(_) => Some(value),
        Value::Array(values) => values.first().and_then(first_text),
        _ => None,
    }
}

/// Probes in two fields: prompts and their answers, texts or lists.
fn flat_probes(fields: &Fields<'_>, prompt: &str, answers: &[&str]) -> Result<Vec<Probe>, FactsError> {
    let name = answers.iter().find(|name| fields.value(name).is_some()).copied().unwrap_or_default();
    let answer_at = |index: usize| match fields.value(name) {
        Some(Value::Array(values)) => values.get(index).and_then(first_text),
        other => other.filter(|_| index == 0).and_then(first_text),
    };
    let prompts = fields.prompts_or_blanks(prompt)?.into_iter().enumerate();
    let probe = |(index, prompt)| {
        let expected = answer(fields, name, answer_at(index))?.map(Arc::from);
        Ok(Probe { prompt, expected })
    };
    prompts.filter(|(_, prompt)| !is_blank(prompt)).map(probe).collect()
}

/// Probes by name: `{"neighborhood": {"prompt": ..., "ground_truth": ...}}`, or a list of such under each name.
fn named_probes(fields: &Fields<'_>, name: &str) -> Result<Vec<Probe>, FactsError> {
    let Some(value) = fields.value(name) else { return Ok(Vec::new()) };
    if value.is_array() {
        return probe_list(fields, name);
    }
    let sets = fields.object(name)?;
    let mut probes = Vec::new();
    for (set, value) in sets.object {
        match value {
            Value::Array(_) => probes.extend(probe_list(&sets, set)?),
            Value::Null => {}
            _ => probes.extend(flat_probes(&sets.object(set)?, "prompt", &ANSWERS)?),
        }
    }
    Ok(probes)
}

fn probe_list(fields: &Fields<'_>, name: &str) -> Result<Vec<Probe>, FactsError> {
    let mut probes = Vec::new();
    for probe in fields.objects(name)? {
        probes.extend(flat_probes(&probe, "prompt", &ANSWERS)?);
    }
    Ok(probes)
}

/// Turns the lists of a call into flat records.
pub(super) fn transpose(call: &Fields<'_>) -> Result<Vec<Object>, FactsError> {
    const COLUMNS: &[(&str, &str)] = &[
        ("subject", "subject"),
        ("target_new", "target_new"),
        ("ground_truth", "ground_truth"),
        ("rephrase_prompts", "rephrase_prompt"),
    ];
    let prompts = column(call, "prompts", None)?;
    let count = prompts.len();
    for name in ["subject", "target_new"] {
        call.required(name)?;
    }
    let mut records = vec![Object::new(); count];
    set(&mut records, "prompt", prompts);
    for &(name, field) in COLUMNS {
        if call.value(name).is_some() {
            set(&mut records, field, column(call, name, Some(count))?);
        }
    }
    for (inputs, field) in [("locality_inputs", "locality"), ("portability_inputs", "portability")] {
        if call.value(inputs).is_some() {
            transpose_probes(&call.object(inputs)?, field, &mut records)?;
        }
    }
    Ok(records)
}

fn transpose_probes(sets: &Fields<'_>, field: &str, records: &mut [Object]) -> Result<(), FactsError> {
    let mut named: Vec<Object> = vec![Object::new(); records.len()];
    for (index, set_name) in sets.object.keys().filter(|name| sets.value(name).is_some()).enumerate() {
        let set = sets.object(set_name)?;
        let prompts = column(&set, "prompt", Some(records.len()))?;
        let answers = column(&set, "ground_truth", Some(records.len()))?;
        // The name is only for messages, and a long one is not to be kept for each of many records.
        let key = if set_name.len() > SET_NAME_BYTES_MAX { format!("set {index}") } else { set_name.clone() };
        for ((named, prompt), answer) in named.iter_mut().zip(prompts).zip(answers) {
            named.insert(key.clone(), json!({ "prompt": prompt, "ground_truth": answer }));
        }
    }
    set(records, field, named.into_iter().map(Value::Object).collect());
    Ok(())
}

/// The entries of a parallel list; a text alone is a list of one, as in EasyEdit.
fn column(fields: &Fields<'_>, name: &str, count: Option<usize>) -> Result<Vec<Value>, FactsError> {
    let values = match fields.required(name)? {
        Value::String(text) => vec![Value::String(text.clone())],
        _ => fields.list(name)?.to_vec(),
    };
    match count {
        Some(expected) if expected != values.len() => Err(fields.list_length(name, expected, values.len())),
        _ => Ok(values),
    }
}

fn set(records: &mut [Object], field: &str, values: Vec<Value>) {
    for (record, value) in records.iter_mut().zip(values) {
        record.insert(field.to_owned(), value);
    }
}
