//! Two patches: what they say, how they were made, and what they add to each tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::fields::{FieldChange, RESULTS, WEIGHTS, fact_changes, manifest_changes, recipe_changes};
use crate::digest::PatchId;
use crate::factors::{FactorError, Term, Update, in_blocks, inner_product, relative_norm};
use crate::facts::{PLACEHOLDER, Things, same_target};
use crate::operation::OperationError;
use crate::patch::Patch;
use crate::patch::manifest::{Fact, IntegersEntry, TermEntry};
use crate::tensor::Dtype;

/// Rows of two updates that are compared at once: a few MiB.
const BLOCK_ENTRIES: usize = 1 << 19;

/// Entries that are looked at for each byte of the patches. Real ones have at most a few thousand, a rank of 1 in the
/// largest tensors; what a kibibyte claims to be a matrix of 20,000 by 20,000 has four hundred thousand.
const ENTRIES_PER_BYTE: u64 = 1 << 13;

/// What sets two patches apart.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PatchDiff {
    /// The two patches.
    pub patches: [PatchId; 2],
    /// What they say.
    #[serde(flatten)]
    pub facts: FactsDiff,
    /// Facts about the same thing of which they tell something else beside the target.
    pub told_otherwise: Vec<ToldOtherwise>,
    /// Fields of the manifest beside facts, recipe and terms that differ.
    pub manifest: Vec<FieldChange>,
    /// Fields of the recipe that differ.
    pub recipe: Vec<FieldChange>,
    /// Every tensor that either touches, in bytewise order of names.
    pub tensors: Vec<UpdateDiff>,
}

impl PatchDiff {
    /// They are one patch; or declare the same facts, say the same of themselves, were made alike, and add the same to
    /// every tensor.
    pub fn is_same(&self) -> bool {
        self.patches[0] == self.patches[1]
            || self.facts.is_same()
                && self.told_otherwise.is_empty()
                && self.manifest.is_empty()
                && self.recipe.is_empty()
                && self.tensors.iter().all(UpdateDiff::is_same)
    }
}

/// One of two patches has a part that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("the {side} patch")]
#[non_exhaustive]
pub struct PatchDiffError {
    /// Which of them.
    pub side: Side,
    /// What is wrong with it.
    pub source: OperationError,
}

/// One of the two that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    First,
    /// The second.
    Second,
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Side::First => "first",
            Side::Second => "second",
        })
    }
}

impl PatchDiffError {
    fn of(side: Side, source: impl Into<OperationError>) -> Self {
        Self { side, source: source.into() }
    }
}

/// What sets two lists of facts apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FactsDiff {
    /// Facts that only the second has.
    pub added: Vec<Fact>,
    /// Facts that only the first has.
    pub removed: Vec<Fact>,
    /// Facts about the same thing that say something else.
    pub changed: Vec<FactChange>,
    /// Facts that both have.
    pub same_facts: usize,
}

impl FactsDiff {
    /// Both say the same.
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

/// A fact with two targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FactChange {
    /// The prompt with its subject.
    pub text: String,
    /// What the first patch says.
    pub first: String,
    /// What the second says.
    pub second: String,
}

/// What two patches tell of one fact, field by field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ToldOtherwise {
    /// The prompt with its subject, as the first patch has it.
    pub text: String,
    /// The fields that differ: none of them is a target that says something else.
    pub fields: Vec<FieldChange>,
}

/// Two updates of one tensor, each of the patch's first binding that touches it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UpdateDiff {
    /// The tensor.
    pub name: String,
    /// The first patch's update, if it touches the tensor.
    pub first: Option<UpdateSize>,
    /// The second's.
    pub second: Option<UpdateSize>,
    /// The angle between the two as vectors of all their entries, in degrees; none unless both are there, of one shape,
    /// and not zero.
    pub angle_degrees: Option<f64>,
    /// `norm(second - first) / norm(first)`.
    pub relative_difference: Option<f64>,
}

impl UpdateDiff {
    /// Both add the same numbers, correct the same weights and touch the same type.
    pub fn is_same(&self) -> bool {
        let is_alike = |first: &UpdateSize, second: &UpdateSize| {
            (first.dtype, &first.correction) == (second.dtype, &second.correction)
        };
        self.relative_difference == Some(0.0)
            && self
                .first
                .as_ref()
                .zip(self.second.as_ref())
                .is_some_and(|(first, second)| is_alike(first, second))
    }
}

/// How large an update is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct UpdateSize {
    /// The tensor's element type.
    pub dtype: Dtype,
    /// Frobenius norm of what is added.
    pub norm: f64,
    /// `norm(after - before) / norm(before)`, as the patch says.
    pub norm_ratio: f64,
    /// Sum of the ranks of its low-rank terms.
    pub rank: usize,
    /// Terms that are stored dense.
    pub dense_terms: usize,
    /// Width of the widest integers.
    pub bits: u8,
    /// Digest of its correction's section, if it has one.
    pub correction: Option<String>,
}

/// Compares two patches.
///
/// # Errors
/// [`OperationError::Patch`] or [`OperationError::Factors`] for parts that do not decode, with whose they are.
pub fn diff_patches(first: &Patch, second: &Patch) -> Result<PatchDiff, PatchDiffError> {
    let mut diff = PatchDiff {
        patches: [first.id(), second.id()],
        facts: diff_facts(&first.manifest().facts, &second.manifest().facts),
        told_otherwise: told_otherwise(&first.manifest().facts, &second.manifest().facts),
        manifest: manifest_changes(first.manifest(), second.manifest()),
        recipe: recipe_changes(&first.manifest().recipe, &second.manifest().recipe),
        tensors: Vec::new(),
    };
    let names: BTreeSet<&str> = [first, second].into_iter().flat_map(touched).collect();
    let mut comparison = Comparison::of(first, second);
    for name in names {
        diff.tensors.push(update_diff(name, &mut comparison)?);
    }
    // Of other weights, or by another update, other results are no news.
    let is_news = diff.tensors.iter().all(UpdateDiff::is_same)
        && !diff.manifest.iter().any(|change| change.field == WEIGHTS);
    diff.manifest.retain(|change| is_news || change.field != RESULTS);
    Ok(diff)
}

/// Compares two lists of facts, by what they are about; each in its own order.
pub fn diff_facts(first: &[Fact], second: &[Fact]) -> FactsDiff {
    let (pairs, added) = paired(first, second);
    let mut diff = FactsDiff { added: added.into_iter().cloned().collect(), ..FactsDiff::default() };
    for (fact, second) in pairs {
        match second {
            None => diff.removed.push(fact.clone()),
            Some(second) if same_target(&second.target_new, &fact.target_new) => diff.same_facts += 1,
            Some(second) => diff.changed.push(FactChange {
                text: text_of(fact),
                first: fact.target_new.clone(),
                second: second.target_new.clone(),
            }),
        }
    }
    diff
}

/// The facts of both lists that are told of otherwise, in the order of the first.
fn told_otherwise(first: &[Fact], second: &[Fact]) -> Vec<ToldOtherwise> {
    let (pairs, _) = paired(first, second);
    let told = pairs.into_iter().filter_map(|(fact, second)| {
        Some(ToldOtherwise { text: text_of(fact), fields: fact_changes(fact, second?) })
    });
    told.filter(|told| !told.fields.is_empty()).collect()
}

/// Each fact of the first list with that of the second about the same thing, and those that only the second has.
fn paired<'f>(first: &'f [Fact], second: &'f [Fact]) -> (Vec<(&'f Fact, Option<&'f Fact>)>, Vec<&'f Fact>) {
    let mut things = Things::default();
    let first_numbers = things.number(first.iter().map(about));
    let second_numbers = things.number(second.iter().map(about));
    let mut in_second: BTreeMap<usize, &Fact> = second_numbers.iter().copied().zip(second).collect();
    let pairs = first.iter().zip(first_numbers).map(|(fact, number)| (fact, in_second.remove(&number)));
    let pairs = pairs.collect();
    let added = second_numbers.iter().filter_map(|number| in_second.remove(number));
    (pairs, added.collect())
}

fn text_of(fact: &Fact) -> String {
    fact.prompt.replacen(PLACEHOLDER, &fact.subject, 1)
}

fn about(fact: &Fact) -> (&str, &str) {
    (&fact.prompt, &fact.subject)
}

/// What several lists of facts say one after the other: of facts about the same thing the last one stands.
pub fn facts_after<'f>(lists: impl IntoIterator<Item = &'f [Fact]>) -> Vec<Fact> {
    let mut standing: Vec<Fact> = Vec::new();
    let mut things = Things::default();
    for list in lists {
        for (fact, number) in list.iter().zip(things.number(list.iter().map(about))) {
            match standing.get_mut(number) {
                Some(earlier) => *earlier = fact.clone(),
                None => standing.push(fact.clone()),
            }
        }
    }
    standing
}

fn touched(patch: &Patch) -> impl Iterator<Item = &str> {
    let tensors = patch.manifest().bindings.iter().flat_map(|binding| &binding.tensors);
    tensors.map(|tensor| tensor.name.as_str())
}

/// A patch's update of one tensor, as its manifest describes it.
struct Part {
    binding: usize,
    /// Its place among the binding's tensors.
    place: usize,
    shape: [u64; 2],
    /// Indices of its terms.
    terms: Vec<u32>,
    size: UpdateSize,
}

fn part(patch: &Patch, name: &str) -> Option<Part> {
    let manifest = patch.manifest();
    let (binding, place) = manifest.bindings.iter().enumerate().find_map(|(binding, found)| {
        Some((binding, found.tensors.iter().position(|tensor| tensor.name == name)?))
    })?;
    let tensor = &manifest.bindings[binding].tensors[place];
    let entries = || tensor.terms.iter().filter_map(|&index| manifest.terms.get(index as usize));
    let rank = |entry: &TermEntry| match entry.integers {
        IntegersEntry::LowRank { rank, .. } => Some(rank as usize),
        IntegersEntry::Dense { .. } => None,
    };
    let correction = tensor.correction.and_then(|index| manifest.sections.get(index as usize));
    let size = UpdateSize {
        dtype: tensor.dtype,
        norm: 0.0,
        norm_ratio: tensor.norm_ratio,
        rank: entries().filter_map(rank).sum(),
        dense_terms: entries().filter(|entry| rank(entry).is_none()).count(),
        bits: entries().map(|entry| entry.bits).max().unwrap_or(0),
        correction: correction.map(|section| section.digest.to_string()),
    };
    Some(Part { binding, place, shape: tensor.shape, terms: tensor.terms.clone(), size })
}

/// Sums over the entries of two updates.
#[derive(Clone, Copy, Default)]
struct Sums {
    first: f64,
    second: f64,
    product: f64,
    difference: f64,
}

/// Two patches, and what has been found of their updates so far.
struct Comparison<'p> {
    patches: [&'p Patch; 2],
    /// Entries that may still be looked at one by one.
    entries: u64,
    /// By the terms of both: many tensors may have the same.
    known: BTreeMap<[Vec<u32>; 2], Sums>,
}

fn update_diff(name: &str, comparison: &mut Comparison<'_>) -> Result<UpdateDiff, PatchDiffError> {
    let [first, second] = comparison.patches.map(|patch| part(patch, name));
    let comparable = matches!((&first, &second), (Some(first), Some(second)) if first.shape == second.shape);
    let sums = comparison.sums(name, [first.as_ref(), second.as_ref()])?;
    let norms = [sums.first.sqrt(), sums.second.sqrt()];
    let sized = |part: Option<Part>, norm: f64| part.map(|part| UpdateSize { norm, ..part.size });
    let angle = (comparable && norms[0] > 0.0 && norms[1] > 0.0).then(|| {
        let cosine = (sums.product / (norms[0] * norms[1])).clamp(-1.0, 1.0);
        cosine.acos().to_degrees()
    });
    let relative = comparable.then(|| relative_norm(sums.difference, sums.first));
    Ok(UpdateDiff {
        name: name.to_owned(),
        first: sized(first, norms[0]),
        second: sized(second, norms[1]),
        angle_degrees: angle,
        relative_difference: relative,
    })
}

impl<'p> Comparison<'p> {
    fn of(first: &'p Patch, second: &'p Patch) -> Self {
        let entries = (first.size_bytes() + second.size_bytes()).saturating_mul(ENTRIES_PER_BYTE);
        Self { patches: [first, second], entries, known: BTreeMap::new() }
    }

    fn sums(&mut self, name: &str, parts: [Option<&Part>; 2]) -> Result<Sums, PatchDiffError> {
        let key = parts.map(|part| part.map(|part| part.terms.clone()).unwrap_or_default());
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let sums = match parts {
            [Some(first), Some(second)] if first.shape == second.shape => {
                self.of_both(name, [first, second])?
            }
            // Updates that cannot be compared: their norms alone. Each is looked at as suits it, for one may hold all
            // its entries, and the other only speak of very many.
            [first, second] => {
                let mut norm = |side, part: Option<&Part>| {
                    part.map_or(Ok(0.0), |part| self.squared_norm(name, side, part))
                };
                Sums {
                    first: norm(Side::First, first)?,
                    second: norm(Side::Second, second)?,
                    ..Sums::default()
                }
            }
        };
        self.known.insert(key, sums);
        Ok(sums)
    }

    /// The sums over two updates of one shape.
    fn of_both(&mut self, name: &str, parts: [&Part; 2]) -> Result<Sums, PatchDiffError> {
        if !self.takes_entries(&parts) {
            return Ok(Sums::of_factors(&[
                self.terms(Side::First, parts[0])?,
                self.terms(Side::Second, parts[1])?,
            ]));
        }
        let updates = [self.update(Side::First, parts[0])?, self.update(Side::Second, parts[1])?];
        Sums::of(&updates[0], &updates[1]).map_err(|(side, source)| failed(side, name, source))
    }

    /// The squared norm of one update.
    fn squared_norm(&mut self, name: &str, side: Side, part: &Part) -> Result<f64, PatchDiffError> {
        if !self.takes_entries(&[part]) {
            return Ok(squared_norm_of_factors(&self.terms(side, part)?));
        }
        squared_norm(&self.update(side, part)?).map_err(|source| failed(side, name, source))
    }

    /// Whether to look at every entry of `parts`, which have one shape, and not at their factors: unless that would be
    /// more work than the patches have bytes for, and where a term is dense, for then its entries are in the patch.
    fn takes_entries(&mut self, parts: &[&Part]) -> bool {
        let [rows, columns] = parts[0].shape;
        match self.entries.checked_sub(rows.saturating_mul(columns)) {
            Some(rest) => {
                self.entries = rest;
                true
            }
            None => parts.iter().any(|part| part.size.dense_terms > 0),
        }
    }

    fn update(&self, side: Side, part: &Part) -> Result<Update, PatchDiffError> {
        let update = self.patches[side as usize].update(part.binding, part.place);
        update.map_err(|error| PatchDiffError::of(side, error))
    }

    fn terms(&self, side: Side, part: &Part) -> Result<Vec<Term>, PatchDiffError> {
        let terms = part.terms.iter().map(|&index| self.patches[side as usize].term(index));
        terms.collect::<Result<_, _>>().map_err(|error| PatchDiffError::of(side, error))
    }
}

/// The arithmetic refused the update of tensor `name`.
fn failed(side: Side, name: &str, source: FactorError) -> PatchDiffError {
    PatchDiffError::of(side, OperationError::Factors { tensor: name.to_owned(), source })
}

impl Sums {
    /// Over two updates of one shape; or which of the two is wrong.
    fn of(first: &Update, second: &Update) -> Result<Self, (Side, FactorError)> {
        let mut sums = Self::default();
        for rows in blocks(first) {
            let of = |side, update: &Update| update.delta_rows(rows.clone()).map_err(|error| (side, error));
            let (first, second) = (of(Side::First, first)?, of(Side::Second, second)?);
            for (first, second) in first.iter().zip(&second) {
                sums.first += first * first;
                sums.second += second * second;
                sums.product += first * second;
                sums.difference += (second - first) * (second - first);
            }
        }
        Ok(sums)
    }

    /// As [`Sums::of`], from factors. A difference is that of large numbers here: of updates that are not the same it
    /// is never less than what rounding could hide.
    fn of_factors([first, second]: &[Vec<Term>; 2]) -> Self {
        let mut sums = Self {
            first: squared_norm_of_factors(first),
            second: squared_norm_of_factors(second),
            product: inner_product(first, second).unwrap_or_default(),
            difference: 0.0,
        };
        if first != second {
            let least = f64::EPSILON * sums.first.max(sums.second);
            sums.difference = (sums.first + sums.second - 2.0 * sums.product).max(least);
        }
        sums
    }
}

fn squared_norm_of_factors(terms: &[Term]) -> f64 {
    inner_product(terms, terms).unwrap_or_default().max(0.0)
}

fn squared_norm(update: &Update) -> Result<f64, FactorError> {
    let mut sum = 0.0;
    for rows in blocks(update) {
        sum += update.delta_rows(rows)?.iter().map(|entry| entry * entry).sum::<f64>();
    }
    Ok(sum)
}

fn blocks(update: &Update) -> impl Iterator<Item = Range<usize>> + use<> {
    in_blocks(update.rows(), (BLOCK_ENTRIES / update.columns().max(1)).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::{IntegerMatrix, Integers};

    #[test]
    fn the_same_numbers_on_another_type_are_another_update() {
        let size = |dtype| {
            Some(UpdateSize {
                dtype,
                norm: 1.0,
                norm_ratio: 0.1,
                rank: 1,
                dense_terms: 0,
                bits: 6,
                correction: None,
            })
        };
        let same = |first, second| {
            let (name, angle_degrees, relative_difference) = ("a".to_owned(), Some(0.0), Some(0.0));
            UpdateDiff { name, first, second, angle_degrees, relative_difference }.is_same()
        };
        assert!(same(size(Dtype::F16), size(Dtype::F16)));
        assert!(!same(size(Dtype::F16), size(Dtype::F32)));
        assert!(!same(size(Dtype::F16), None));
        let corrected =
            size(Dtype::F16).map(|size| UpdateSize { correction: Some("digest".to_owned()), ..size });
        assert!(same(corrected.clone(), corrected.clone()) && !same(size(Dtype::F16), corrected));
    }

    /// A term of rank 2 whose integers follow from `seed`.
    fn term(rows: usize, columns: usize, seed: usize) -> Term {
        let matrix = |rows: usize, columns: usize, step: usize| {
            let integers = (0..rows * columns).map(|index| ((index * step + seed) % 15) as i16 - 7).collect();
            IntegerMatrix::new("sample", rows, columns, 4, integers).expect("of four bits")
        };
        let integers = Integers::LowRank { left: matrix(rows, 2, 7), right: matrix(2, columns, 11) };
        let scales = |count: usize| (0..count).map(|index| 1.0 + index as f32 / 64.0).collect();
        Term::new(integers, scales(rows), scales(columns)).expect("a right term")
    }

    #[test]
    fn factors_give_the_figures_that_all_entries_give() {
        let terms = [vec![term(40, 70, 1), term(40, 70, 2)], vec![term(40, 70, 5)]];
        let [first, second] = terms.clone().map(|terms| Update::new(terms).expect("of one shape"));
        let (found, expected) = (Sums::of_factors(&terms), Sums::of(&first, &second).expect("of one shape"));
        let pairs = [
            (found.first, expected.first),
            (found.second, expected.second),
            (found.product, expected.product),
            (found.difference, expected.difference),
        ];
        for (found, expected) in pairs {
            assert!((found - expected).abs() < 1e-12 * expected.abs(), "{found} {expected}");
        }
        let same = Sums::of_factors(&[terms[0].clone(), terms[0].clone()]);
        assert_eq!((same.difference, same.product), (0.0, same.first));
        // The terms in another order add the same, which factors cannot tell.
        let other = Sums::of_factors(&[terms[0].clone(), terms[0].iter().rev().cloned().collect()]);
        assert!(other.difference > 0.0 && other.difference < 1e-12 * other.first);
    }

    fn fact(subject: &str, target: &str) -> Fact {
        let [prompt, subject, target_new] = ["{} plays", subject, target].map(str::to_owned);
        Fact { id: None, prompt, subject, target_new, target_old: None, note: None }
    }

    #[test]
    fn a_target_in_other_letters_is_no_change() {
        let diff = diff_facts(
            &[fact("Ann", "Golf"), fact("Bob", "chess")],
            &[fact("ann", "golf"), fact("Bob", "go")],
        );
        assert_eq!((diff.same_facts, diff.changed.len()), (1, 1));
        assert!(!diff.is_same());
        let [one, both] = [vec![fact("Ann", "golf")], vec![fact("Ann", "Golf"), fact("Bob", "go")]];
        assert!(diff_facts(&both, &both).is_same() && diff_facts(&one, &both[..1]).is_same());
        assert!(!diff_facts(&one, &both).is_same() && !diff_facts(&both, &one).is_same());
        assert_eq!(diff.changed[0].text, "Bob plays");
    }

    #[test]
    fn what_is_told_of_a_fact_beside_its_target_is_compared() {
        let one = Fact { id: Some("a".to_owned()), ..fact("Ann", "golf") };
        let other = Fact { target_old: Some("chess".to_owned()), ..fact("ann", "Golf") };
        let [told] = &told_otherwise(&[one.clone(), fact("Bob", "go")], &[other, fact("Bob", "polo")])[..]
        else {
            panic!("one fact is told otherwise")
        };
        assert_eq!(told.text, "Ann plays");
        let fields =
            told.fields.iter().map(|change| (change.field, change.first.as_str(), change.second.as_str()));
        let expected = [("id", "a", "none"), ("target_old", "none", "chess")];
        assert_eq!(fields.collect::<Vec<_>>(), expected);
        let noted = Fact { note: Some("why".to_owned()), ..one.clone() };
        let (one, noted) = ([one], [noted]);
        assert_eq!(told_otherwise(&one, &noted)[0].fields[0].field, "note");
        assert_eq!(told_otherwise(&one, &one), []);
    }

    #[test]
    fn of_facts_about_one_thing_the_last_stands() {
        let lists = [vec![fact("Ann", "golf"), fact("Bob", "chess")], vec![fact("ann", "polo")]];
        let standing = facts_after(lists.iter().map(Vec::as_slice));
        assert_eq!(standing, [fact("ann", "polo"), fact("Bob", "chess")]);
    }

    #[test]
    fn patches_of_other_facts_are_not_the_same() {
        let diff = |facts| PatchDiff {
            patches: [PatchId::derive(b"1"), PatchId::derive(b"2")],
            facts,
            told_otherwise: Vec::new(),
            manifest: Vec::new(),
            recipe: Vec::new(),
            tensors: Vec::new(),
        };
        assert!(diff(FactsDiff::default()).is_same());
        assert!(!diff(diff_facts(&[], &[fact("Ann", "golf")])).is_same());
    }
}
