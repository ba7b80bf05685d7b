//! What lists of facts are about: which facts of several lists fill the same blank.

use std::collections::{BTreeMap, BTreeSet};

use super::check::filled;

/// The things that facts are about, numbered from 0 in the order in which they first came.
///
/// The facts of one list are about as many things, however alike they are: it is one person's, who may tell `Apple`
/// from `apple`. Between lists the same text is the same thing, and where there is none, a text that differs in letter
/// case only: between lists of several people that is an accident.
#[derive(Debug, Default)]
pub(crate) struct Things {
    /// The text by which each was told last.
    texts: Vec<String>,
    by_text: BTreeMap<String, usize>,
    /// By texts without letter case.
    by_blank: BTreeMap<String, Vec<usize>>,
}

impl Things {
    /// The numbers of what the facts of one more list are about, each given by its prompt and its subject.
    pub(crate) fn number<'f>(&mut self, list: impl IntoIterator<Item = (&'f str, &'f str)>) -> Vec<usize> {
        let texts: Vec<String> = list.into_iter().map(|(prompt, subject)| filled(prompt, subject)).collect();
        let own: BTreeSet<&String> = texts.iter().collect();
        // What no other fact of this list is about, the first at the end.
        let mut free: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut numbers = Vec::with_capacity(texts.len());
        for text in &texts {
            let number = self.by_text.get(text).copied().unwrap_or_else(|| {
                let blank = text.to_lowercase();
                let alike = self.by_blank.get(&blank).map(Vec::as_slice).unwrap_or_default();
                let others = alike.iter().rev().copied().filter(|&number| !own.contains(&self.texts[number]));
                free.entry(blank).or_insert_with(|| others.collect()).pop().unwrap_or(self.texts.len())
            });
            self.tell(number, text);
            numbers.push(number);
        }
        numbers
    }

    fn tell(&mut self, number: usize, text: &str) {
        match self.texts.get_mut(number) {
            Some(earlier) if earlier == text => return,
            Some(earlier) => {
                self.by_text.remove(earlier);
                text.clone_into(earlier);
            }
            None => {
                self.texts.push(text.to_owned());
                self.by_blank.entry(text.to_lowercase()).or_default().push(number);
            }
        }
        self.by_text.insert(text.to_owned(), number);
    }
}

/// What the facts of one list say, to be asked about facts of others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    by_text: BTreeMap<String, String>,
    /// By texts without letter case; none where the list tells several apart by it.
    by_blank: BTreeMap<String, Option<String>>,
}

impl Targets {
    /// What the facts of a list say, each given by its prompt, its subject and its target.
    pub fn of<'f>(list: impl IntoIterator<Item = (&'f str, &'f str, &'f str)>) -> Self {
        let mut targets = Self::default();
        for (prompt, subject, target) in list {
            let text = filled(prompt, subject);
            let alike = targets.by_blank.entry(text.to_lowercase());
            alike.and_modify(|alike| *alike = None).or_insert_with(|| Some(target.to_owned()));
            targets.by_text.insert(text, target.to_owned());
        }
        targets
    }

    /// The target for the same text, or where there is none, for the only one that differs in letter case alone.
    pub fn get(&self, prompt: &str, subject: &str) -> Option<&str> {
        let text = filled(prompt, subject);
        let alike = || self.by_blank.get(&text.to_lowercase())?.as_ref();
        self.by_text.get(&text).or_else(alike).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letter_case_tells_facts_of_one_list_apart_and_those_of_two_lists_where_nothing_is_nearer() {
        for (lists, expected) in [
            ([&["Apple", "apple"][..], &["apple", "Apple"]], [[0, 1], [1, 0]]),
            ([&["Apple", "pear"], &["apple", "Apple"]], [[0, 1], [2, 0]]),
            ([&["APPLE", "pear"], &["apple", "Apple"]], [[0, 1], [0, 2]]),
            ([&["Apple", "apple"], &["APPLE", "PEAR"]], [[0, 1], [0, 2]]),
        ] {
            let mut things = Things::default();
            let numbers = lists.map(|list| things.number(list.iter().map(|subject| ("{} is  a", *subject))));
            assert_eq!(numbers, expected.map(Vec::from), "{lists:?}");
        }
    }

    #[test]
    fn letter_case_chooses_between_the_targets_of_a_list_where_it_tells_them_apart() {
        let targets = Targets::of([
            ("{} is", "Apple", "a firm"),
            ("{} is", "apple", "a fruit"),
            ("{} is", "Pear", "red"),
        ]);
        for (subject, expected) in [
            ("Apple", Some("a firm")),
            ("apple", Some("a fruit")),
            ("APPLE", None),
            ("pear", Some("red")),
            ("fig", None),
        ] {
            assert_eq!(targets.get("{}  is", subject), expected, "{subject}");
        }
    }
}
