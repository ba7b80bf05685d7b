//! What can only be seen across records: a fact asked for twice, two that contradict, subjects that are shared.

use std::collections::HashMap;
use std::hash::Hash;

#[cfg(feature = "edit")]
use unicode_normalization::UnicodeNormalization;

use super::error::{Clash, FactsError, Place, excerpt};
use super::{PLACEHOLDER, Probe, Record, Request, words};

/// `text` with every run of white space as one space, none at the ends, and letters with marks spelt in one way.
pub(super) fn normalized(text: &str) -> String {
    composed(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `text` with `é` as one character, where it may be two. What the model is given stays as it was written.
#[cfg(feature = "edit")]
fn composed(text: String) -> String {
    if text.is_ascii() { text } else { text.nfc().collect() }
}

/// Where nothing is edited, the tables that it takes are not there.
#[cfg(not(feature = "edit"))]
fn composed(text: String) -> String {
    text
}

/// Clashes that are told one by one.
const CLASHES_TOLD_MAX: usize = 5;

/// Refuses a file that asks for one fact twice, or for two that exclude each other.
///
/// Two facts are about the same thing when their filled prompts are the same text, wherever the subject begins.
pub(super) fn no_fact_twice(records: &[(Place, Record)]) -> Result<(), FactsError> {
    let mut firsts: HashMap<String, (&Place, &Request)> = HashMap::with_capacity(records.len());
    let (mut told, mut more) = (Vec::new(), 0);
    for (place, Record { request, .. }) in records {
        let (first_place, first) = *firsts.entry(normalized(&request.text())).or_insert((place, request));
        if std::ptr::eq(first, request) {
            continue;
        }
        if told.len() == CLASHES_TOLD_MAX {
            more += 1;
            continue;
        }
        told.push(Clash {
            first: first_place.clone(),
            second: place.clone(),
            text: request.text(),
            first_target: first.target_new.clone(),
            second_target: request.target_new.clone(),
        });
    }
    if told.is_empty() { Ok(()) } else { Err(FactsError::Clashes { told, more }) }
}

/// A filled prompt, wherever its subject begins, with white space set aside: facts with the same one fill the same
/// blank.
pub(super) fn filled(prompt: &str, subject: &str) -> String {
    normalized(&prompt.replacen(PLACEHOLDER, subject, 1))
}

/// Two targets that fill a blank alike, white space and letter case set aside.
pub(crate) fn same_target(one: &str, other: &str) -> bool {
    normalized(one).to_lowercase() == normalized(other).to_lowercase()
}

pub(super) fn warnings(records: &[Record]) -> Vec<String> {
    let warnings = [
        cut_out_warning(records),
        shared_warning(records),
        relation_warning(records),
        same_id_warning(records),
        same_target_warning(records),
        unanswered_warning("neighbours", records, |record| &record.neighbors),
        unanswered_warning("portability prompts", records, |record| &record.portability),
        alternative_warning(records),
    ];
    warnings.into_iter().flatten().collect()
}

fn records_have(count: usize) -> String {
    if count == 1 { "1 record has".to_owned() } else { format!("{count} records have") }
}

/// Subjects that are a part of a longer word, whose token is another than the subject's.
fn cut_out_warning(records: &[Record]) -> Option<String> {
    let is_cut_out = |request: &Request| {
        let (before, after) = request.prompt.split_once(PLACEHOLDER).unwrap_or_default();
        words::is_cut_out(before, &request.subject, after)
    };
    let found = records.iter().enumerate().filter(|(_, record)| is_cut_out(&record.request));
    let found: Vec<_> = found.collect();
    let (index, first) = found.first()?;
    let records_have = records_have(found.len());
    let (subject, text) = (excerpt(&first.request.subject), excerpt(&first.request.text()));
    Some(format!(
        "{records_have} a subject that is a part of a longer word (record {}: {subject} in {text}): the edit is made at the \
         subject's own tokens, which the word may not have",
        index + 1
    ))
}

/// Subjects that get several targets for one relation, whatever their prompts are.
fn relation_warning(records: &[Record]) -> Option<String> {
    let thing = |record: &Record| Some((normalized(&record.request.subject), record.relation.clone()?));
    let is_other =
        |one: &Record, other: &Record| !same_target(&one.request.target_new, &other.request.target_new);
    let (again, first, second) = repeats(records, thing, is_other)?;
    let records_have = records_have(again);
    Some(format!(
        "{records_have} another target for the subject and the `relation_id` of an earlier one ({}: records {} and {}): where \
         only one of them can be true, the model will not say both",
        excerpt(&records[first].request.subject),
        first + 1,
        second + 1
    ))
}

/// New targets that are the old ones, too: nothing competes with them.
fn same_target_warning(records: &[Record]) -> Option<String> {
    let is_same = |request: &Request| request.target_old.as_ref() == Some(&request.target_new);
    let mut same = records.iter().enumerate().filter(|(_, record)| is_same(&record.request));
    let (index, first) = same.next()?;
    Some(format!(
        "{} a new target that is the old one, too (record {}: {}): it does not compete with itself, so efficacy, paraphrase and \
         neighborhood leave that record out",
        records_have(1 + same.count()),
        index + 1,
        excerpt(&first.request.target_new)
    ))
}

/// Ids that several records have, by which reports name them.
fn same_id_warning(records: &[Record]) -> Option<String> {
    let (again, first, second) = repeats(records, |record| record.request.id.as_deref(), |_, _| true)?;
    let records_have = records_have(again);
    Some(format!(
        "{records_have} the id of an earlier one ({}: records {} and {}): reports name both by it",
        excerpt(records[first].request.id.as_deref().unwrap_or_default()),
        first + 1,
        second + 1
    ))
}

/// How many records have the key of an earlier one and clash with the first that has it, and the first such two by
/// their indices.
fn repeats<'r, Key: Eq + Hash>(
    records: &'r [Record],
    key: impl Fn(&'r Record) -> Option<Key>,
    clash: impl Fn(&Record, &Record) -> bool,
) -> Option<(usize, usize, usize)> {
    let mut firsts: HashMap<Key, usize> = HashMap::new();
    let (mut again, mut example) = (0, None);
    for (index, record) in records.iter().enumerate() {
        let Some(key) = key(record) else { continue };
        let first = *firsts.entry(key).or_insert(index);
        if first != index && clash(&records[first], record) {
            again += 1;
            example.get_or_insert((first, index));
        }
    }
    example.map(|(first, second)| (again, first, second))
}

/// Prompts that cannot be asked, which would otherwise be missed in the scores only.
fn unanswered_warning(what: &str, records: &[Record], of: fn(&Record) -> &[Probe]) -> Option<String> {
    let all: usize = records.iter().map(|record| of(record).len()).sum();
    let unanswered = |record| of(record).iter().filter(|probe| probe.expected.is_none()).count();
    let unanswered: usize = records.iter().map(unanswered).sum();
    (unanswered > 0)
        .then(|| format!("{unanswered} of {all} {what} have no answer of their own: they are not asked"))
}

/// A target that other programs take from the same records.
fn alternative_warning(records: &[Record]) -> Option<String> {
    let having = records.iter().filter(|record| record.has_alternative).count();
    let all = records.len();
    (having > 0).then(|| {
        format!(
            "{having} of {all} records have another target in `alt`, which is not read: as in MEMIT, the target is `answers[0]`"
        )
    })
}

fn shared_warning(records: &[Record]) -> Option<String> {
    let mut positions: HashMap<String, Vec<usize>> = HashMap::new();
    for (index, Record { request, .. }) in records.iter().enumerate() {
        positions.entry(normalized(&request.subject)).or_default().push(index + 1);
    }
    let shared = || positions.values().filter(|positions| positions.len() > 1);
    let first = shared().min_by_key(|positions| positions[0])?;
    let subjects = match shared().count() {
        1 => "1 subject has".to_owned(),
        count => format!("{count} subjects have"),
    };
    let more = if first.len() > 4 { ", ..." } else { "" };
    let shown: Vec<String> = first.iter().take(4).map(usize::to_string).collect();
    Some(format!(
        "{subjects} several facts (`{}`: records {}{more}): their edits meet at the same token, and MEMIT writes \
         each less surely than alone",
        records[first[0] - 1].request.subject,
        shown.join(", "),
    ))
}
