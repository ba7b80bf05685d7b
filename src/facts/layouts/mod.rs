//! The layouts of facts files, recognised by their fields.
//!
//! | layout | told by | where the fact stands |
//! |---|---|---|
//! | [`Layout::Requests`] | `prompt`, `subject`, `target_new` | in those fields, the prompt with `{}` |
//! | [`Layout::CounterFact`] | `requested_rewrite` | in that object |
//! | [`Layout::Zsre`] | `src` | `src` with the subject taken out; the first of `answers` |
//! | [`Layout::EasyEdit`] | `rephrase_prompt`, `ground_truth`, ... | like requests, the subject written out in the prompt |
//! | [`Layout::EasyEditCall`] | `prompts` | parallel lists, one entry a fact |
//! | [`Layout::Native`] | `schema` | in `facts`, with fields named as in [`Record`] |

mod counterfact;
mod easyedit;
pub(super) mod requests;
mod zsre;

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::error::{FactsError, Place, excerpt};
use super::fields::{Fields, id_of};
use super::source::{Element, kind_of};
use super::{FACTS_MAX, PLACEHOLDER, Record};

/// What mpatch's own facts files say in their field `schema`.
pub const SCHEMA: &str = "mpatch.facts/1";

/// A layout of facts files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The reference implementation's request list.
    Requests,
    /// CounterFact or MultiCounterFact records.
    CounterFact,
    /// zsRE records of MEND's evaluation set, mapped as the reference maps them: the target is the first answer
    /// (EasyEdit takes `alt` instead, so a warning says so where there is one).
    Zsre,
    /// EasyEdit's flat records.
    EasyEdit,
    /// EasyEdit's call: parallel lists.
    EasyEditCall,
    /// mpatch's own.
    Native,
}

impl Layout {
    /// What people call it.
    pub const fn name(self) -> &'static str {
        match self {
            Layout::Requests => "memit requests",
            Layout::CounterFact => "CounterFact records",
            Layout::Zsre => "zsRE records",
            Layout::EasyEdit => "EasyEdit records",
            Layout::EasyEditCall => "an EasyEdit call",
            Layout::Native => "mpatch facts",
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

type Object = Map<String, Value>;

/// Reads all elements in the layout of the first; each record comes with its place.
pub(super) fn records(elements: &[Element]) -> Result<(Layout, Vec<(Place, Record)>), FactsError> {
    let mut layout = None;
    let mut records = Vec::new();
    for element in elements {
        let place = place_of(records.len(), &Object::new(), element.line);
        let object = element.value.as_object().ok_or_else(|| {
            let found = kind_of(&element.value);
            FactsError::NotAnObject { place: place.clone(), found }
        })?;
        let place = Place { id: id_of(object), ..place };
        let found = recognise(object, layout, &place)?;
        same_layout(layout.replace(found), found, &place)?;
        let facts = expand(found, object, &place)?;
        let count = records.len() + facts.len();
        if count.max(elements.len()) > FACTS_MAX {
            return Err(FactsError::TooManyFacts { found: count.max(elements.len()) });
        }
        for fact in facts {
            let place = place_of(records.len(), &fact, element.line);
            let record = read(found, Fields::new(&fact, &place))?;
            records.push((place, record));
        }
    }
    match layout {
        Some(layout) if !records.is_empty() => Ok((layout, records)),
        _ => Err(FactsError::Empty),
    }
}

fn place_of(records_before: usize, object: &Object, line: Option<usize>) -> Place {
    Place { position: records_before + 1, id: id_of(object), line }
}

fn same_layout(expected: Option<Layout>, found: Layout, place: &Place) -> Result<(), FactsError> {
    match expected {
        Some(expected) if expected != found => {
            Err(FactsError::MixedLayouts { place: place.clone(), expected, found })
        }
        _ => Ok(()),
    }
}

/// The layout of `object`, a record of a file that so far is laid out as `before`.
fn recognise(object: &Object, before: Option<Layout>, place: &Place) -> Result<Layout, FactsError> {
    let has = |names: &[&str]| names.iter().any(|name| object.contains_key(*name));
    if has(&["schema"]) {
        Ok(Layout::Native)
    } else if has(&["requested_rewrite"]) {
        Ok(Layout::CounterFact)
    } else if has(&["prompts"]) {
        Ok(Layout::EasyEditCall)
    } else if has(&["src"]) && has(&["subject", "answers", "loc", "rephrase"]) {
        Ok(Layout::Zsre)
    } else if has(easyedit::MARKS) {
        Ok(Layout::EasyEdit)
    } else if object.get("target_new").is_some_and(Value::is_object) {
        Ok(Layout::Requests)
    } else if has(&["prompt", "subject", "target_new"]) {
        // A bare record may be either: the file's first record decides, so that a prompt without `{}` in the
        // middle of a request list is called that.
        let undecided = before.filter(|layout| matches!(layout, Layout::Requests | Layout::EasyEdit));
        let by_prompt = if subject_is_written_out(object) { Layout::EasyEdit } else { Layout::Requests };
        Ok(undecided.unwrap_or(by_prompt))
    } else {
        let names: Vec<String> = object.keys().take(8).map(|name| excerpt(name)).collect();
        let fields = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Err(FactsError::UnknownLayout { place: place.clone(), fields })
    }
}

fn subject_is_written_out(object: &Object) -> bool {
    let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::trim);
    match (text("prompt"), text("subject")) {
        (Some(prompt), Some(subject)) => {
            !prompt.contains(PLACEHOLDER) && !subject.is_empty() && prompt.contains(subject)
        }
        _ => false,
    }
}

/// The facts in one element: itself, unless it is a container of facts.
fn expand<'a>(
    layout: Layout,
    object: &'a Object,
    place: &'a Place,
) -> Result<Vec<Cow<'a, Object>>, FactsError> {
    match layout {
        Layout::Native => requests::facts_of(Fields::new(object, place)),
        Layout::EasyEditCall => {
            let facts = easyedit::transpose(&Fields::new(object, place))?;
            Ok(facts.into_iter().map(Cow::Owned).collect())
        }
        _ => Ok(vec![Cow::Borrowed(object)]),
    }
}

fn read(layout: Layout, fields: Fields<'_>) -> Result<Record, FactsError> {
    let record = match layout {
        Layout::Requests => requests::record(&fields),
        Layout::Native => requests::native_record(&fields),
        Layout::CounterFact => counterfact::record(&fields),
        Layout::Zsre => zsre::record(&fields),
        Layout::EasyEdit | Layout::EasyEditCall => easyedit::record(&fields),
    };
    Ok(Record { portability: easyedit::portability(&fields)?, ..record? })
}
