//! Rung V3 of `verify`: does the update answer to the keys of the declared facts, and to no others?
//!
//! MEMIT's update lies in the span of its facts' keys, whatever the values are, so keys alone tell whether a fact
//! was written that is not declared. The bounds are measured ones: `docs/memit.md`, what an update may hide.

use std::collections::BTreeSet;

use mpatch::edit::kept::Kept;
use mpatch::edit::key_span::{KeySpan, KeySpans};
use mpatch::edit::{EditError, FactPrompt, Plan};
use mpatch::patch::{Patch, PatchError};
use serde::Serialize;

use super::follow::{Followed, Outcome, Place, Reason};
use crate::editing::edit_error;
use crate::error::{CommandError, ExitKind};
use crate::job::Ingredients;
use crate::report::{Output, count};
use crate::statistics::factor_cache;

/// What rounding to [`BITS`] leaves in the strongest direction outside, at most, in shares of what a fact takes; a bit
/// less leaves twice as much.
const ROUNDING: f64 = 0.25;
const BITS: i32 = 6;
/// What the arithmetic of another device may leave there, however many bits there are.
const ARITHMETIC: f64 = 0.01;
/// A fact that is hidden never leaves as little as this there.
const HIDDEN_LEAST: f64 = 0.45;
/// What is above this was written for another key.
const HIDDEN: f64 = 0.5;
/// The share of the whole update that rounding to [`BITS`] leaves outside, at most, and what is no rounding at any
/// number of bits: many weak directions add up, too.
const ROUNDING_OUTSIDE: f64 = 0.1;
const OUTSIDE_MOST: f64 = 0.3;
/// What is above this is not the update of the declared facts.
const OUTSIDE: f64 = 0.5;
/// A hidden fact has little left outside where the declared ones span more than this of a layer.
const COVERAGE_MOST: f64 = 0.4;

/// How far the updates lie outside the span of the declared facts' keys.
#[derive(Debug, Serialize)]
pub struct KeySpanEvidence {
    /// One entry per layer of the recipe, where they were measured.
    tensors: Vec<TensorSpan>,
    /// What came of the rung.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How far the update of one tensor does.
#[derive(Debug, Serialize)]
struct TensorSpan {
    name: String,
    facts: usize,
    /// Directions that the keys of the declared facts span, which may be fewer, and those that keys can have.
    directions: usize,
    inner: usize,
    /// `norm(outside) / norm(update)`.
    outside: Measured,
    /// The strongest direction outside, in shares of what a declared fact takes on average.
    strongest: Measured,
    /// The strongest direction over the next one.
    gap: f64,
    /// Its keys are those that the update was made for: no update of a layer before it was cut.
    is_told: bool,
}

/// A figure and what it tells.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measured {
    found: f64,
    /// Up to here it is rounding.
    allowed: f64,
    /// Above this it is another fact.
    refused: f64,
}

/// Measures the patch's updates against the keys of its facts.
pub fn check(
    patch: &Patch,
    place: Place<'_>,
    followed: &Followed,
    output: &Output,
) -> Result<KeySpanEvidence, CommandError> {
    if let Some(problem) = undeclared_tensor(patch, place, followed) {
        return Ok(KeySpanEvidence { tensors: Vec::new(), outcome: Outcome::Fails(problem) });
    }
    if let Some(reason) = cannot_tell(patch, followed) {
        return Ok(KeySpanEvidence::not_checked(reason));
    }
    Ok(KeySpanEvidence::of(measure(patch, place, followed, output)?))
}

/// A tensor that the patch touches although its recipe edits other layers.
fn undeclared_tensor(patch: &Patch, place: Place<'_>, followed: &Followed) -> Option<String> {
    let network = &followed.model.network;
    let layers = &followed.ingredients.hyperparameters.layers;
    let declared: BTreeSet<String> = layers.iter().map(|&layer| network.mlp_output_name(layer)).collect();
    let touched = &patch.manifest().bindings[place.binding].tensors;
    let other = touched.iter().find(|tensor| !declared.contains(&tensor.name))?;
    Some(format!("tensor `{}` is touched, expected only those of the recipe's layers {layers:?}", other.name))
}

/// Why keys would tell nothing.
fn cannot_tell(patch: &Patch, followed: &Followed) -> Option<Reason> {
    let (facts, inner) = (patch.manifest().facts.len(), followed.model.network.config().inner);
    let too_many = facts as f64 > COVERAGE_MOST * inner as f64;
    too_many.then(|| format!("{facts} facts span most of the {inner} directions that a key can have"))
}

fn measure(
    patch: &Patch,
    place: Place<'_>,
    followed: &Followed,
    output: &Output,
) -> Result<Vec<TensorSpan>, CommandError> {
    let failed = |error: EditError| edit_error(place.base, error);
    let malformed = |error: PatchError| CommandError::patch(&place.patch.to_string_lossy(), &error);
    let Followed { model, ingredients, facts } = followed;
    let Ingredients { hyperparameters, contexts, statistics, .. } = ingredients;
    let facts: Vec<FactPrompt> = facts.requests().map(FactPrompt::from).collect();
    let factors = factor_cache(output);
    let kept = Kept { factors: factors.as_ref(), values: None };
    let plan = Plan::new(model, hyperparameters, contexts, &facts).map_err(failed)?;
    let mut spans = KeySpans::new(plan, statistics, kept);
    let progress = output.counter("keys, layers", hyperparameters.layers.len() as u64);
    let width = model.network.config().width;
    let touched = &patch.manifest().bindings[place.binding].tensors;
    let mut is_told = true;
    let mut measured = Vec::new();
    for &layer in &hyperparameters.layers {
        let name = model.network.mlp_output_name(layer);
        // What a patch leaves as it is changes no later layer's keys either.
        let Some(index) = touched.iter().position(|tensor| tensor.name == name) else {
            progress.add(1);
            continue;
        };
        let term = patch.term(touched[index].terms[0]).map_err(malformed)?;
        let (rank, bits) = (term.rank(), term.bits());
        drop(term);
        let update = patch.update(place.binding, index).map_err(malformed)?;
        let rows = update.delta_rows(0..update.rows());
        let rows = rows.map_err(|error| CommandError::new(ExitKind::Malformed, error.to_string()))?;
        let span = spans.measure(layer, &rows).map_err(failed)?;
        let is_cut = rank < span.directions.min(width);
        measured.push(TensorSpan::new(span, bits, is_told));
        is_told &= !is_cut;
        progress.add(1);
    }
    Ok(measured)
}

impl Measured {
    /// `rounding` is what rounding to [`BITS`] comes to at most; a bit less makes it twice as much.
    fn new(found: f64, bits: u8, rounding: f64, allowed_most: f64, refused_least: f64) -> Self {
        let rounding = rounding * f64::from(BITS - i32::from(bits)).exp2();
        let (allowed, refused) = (rounding.clamp(ARITHMETIC, allowed_most), rounding.max(refused_least));
        Self { found, allowed, refused }
    }
}

impl TensorSpan {
    fn new(span: KeySpan, bits: u8, is_told: bool) -> Self {
        let KeySpan { tensor: name, facts, directions, inner, outside, strongest, gap, .. } = span;
        let outside = Measured::new(outside, bits, ROUNDING_OUTSIDE, OUTSIDE_MOST, OUTSIDE);
        let strongest = Measured::new(strongest, bits, ROUNDING, HIDDEN_LEAST, HIDDEN);
        Self { name, facts, directions, inner, outside, strongest, gap, is_told }
    }

    fn problem(&self) -> Option<String> {
        let Self { name, facts, outside, strongest, .. } = self;
        let facts = count(*facts, "declared fact");
        if self.is_told && strongest.found > strongest.refused {
            let Measured { found, allowed, .. } = strongest;
            return Some(format!(
                "tensor `{name}` answers to a key beside those of the {facts}: one direction outside their span \
                 has {found:.2} of what a fact takes, expected {allowed:.2} at most"
            ));
        }
        let Measured { found, allowed, refused } = outside;
        (self.is_told && found > refused).then(|| {
            format!(
                "tensor `{name}` answers to keys beside those of the {facts}: {found:.2} of its update lies outside \
                 their span, expected {allowed:.2} at most"
            )
        })
    }

    /// Why nothing can be said.
    fn reason(&self) -> Option<String> {
        let Self { name, outside, strongest, .. } = self;
        if !self.is_told {
            return Some(format!(
                "the rank of a tensor before `{name}` was cut, so its keys are not those it was made for"
            ));
        }
        if strongest.found > strongest.allowed {
            return Some(format!(
                "in `{name}` one direction outside the span has {:.2} of what a fact takes: more than rounding \
                 leaves ({:.2}), less than a fact that is not declared",
                strongest.found, strongest.allowed
            ));
        }
        (outside.found > outside.allowed).then(|| {
            format!(
                "in `{name}` {:.2} of the update lies outside the span: more than rounding leaves ({:.2}), in no \
                 direction as much as a fact",
                outside.found, outside.allowed
            )
        })
    }
}

impl KeySpanEvidence {
    /// The rung was not climbed.
    pub fn not_checked(reason: Reason) -> Self {
        Self { tensors: Vec::new(), outcome: Outcome::NotChecked(reason) }
    }

    fn of(tensors: Vec<TensorSpan>) -> Self {
        let problem = || tensors.iter().find_map(TensorSpan::problem).map(Outcome::Fails);
        let reason = || tensors.iter().find_map(TensorSpan::reason).map(Outcome::NotChecked);
        let outcome = problem().or_else(reason).unwrap_or(Outcome::Holds);
        Self { tensors, outcome }
    }

    /// The evidence in words, which go on from the rung's name: *confined to 9 of 512 directions*.
    pub fn in_words(&self) -> String {
        if let Some(words) = self.outcome.words() {
            return words.clone();
        }
        let largest = |of: fn(&TensorSpan) -> f64| self.tensors.iter().map(of).fold(0.0, f64::max);
        let allowed =
            self.tensors.iter().map(|tensor| tensor.strongest.allowed).fold(f64::INFINITY, f64::min);
        let (directions, inner) =
            self.tensors.first().map_or((0, 0), |tensor| (tensor.directions, tensor.inner));
        format!(
            "to {directions} of {inner} directions; outside {:.1} %, strongest {:.3} (limit {allowed:.2})",
            100.0 * largest(|tensor| tensor.outside.found),
            largest(|tensor| tensor.strongest.found),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_evidence_of_a_model_of_gpt_js_size_fits_in_a_line() {
        let tensor = TensorSpan {
            name: "transformer.h.3.mlp.fc_out.weight".to_owned(),
            facts: 1010,
            directions: 1000,
            inner: 16384,
            outside: Measured { found: 0.021, allowed: 0.1, refused: 0.5 },
            strongest: Measured { found: 0.03, allowed: 0.25, refused: 0.5 },
            gap: 1.1,
            is_told: true,
        };
        let words = KeySpanEvidence::of(vec![tensor]).in_words();
        assert_eq!(words, "to 1000 of 16384 directions; outside 2.1 %, strongest 0.030 (limit 0.25)");
        let columns_before = "  V3 confined  not checked  ".len();
        assert!(columns_before + words.len() <= 100, "{words}");
    }

    /// What is found of an update of 6 bits, or of another number, of which so much lies outside.
    fn found(outside: f64, strongest: f64, bits: u8) -> KeySpanEvidence {
        let span = KeySpan {
            layer: 3,
            tensor: "a".to_owned(),
            facts: 10,
            inner: 512,
            directions: 10,
            outside,
            strongest,
            gap: 1.0,
        };
        KeySpanEvidence::of(vec![TensorSpan::new(span, bits, true)])
    }

    #[test]
    fn an_update_is_confined_or_not_or_nothing_can_be_told() {
        for (outside, strongest, expected) in [
            (0.09, 0.24, "holds"),
            (0.09, 0.26, "not checked"),
            (0.09, 0.51, "fails"),
            (0.11, 0.24, "not checked"),
            (0.51, 0.24, "fails"),
        ] {
            assert_eq!(found(outside, strongest, 6).outcome.word(), expected, "{outside} {strongest}");
        }
    }

    #[test]
    fn a_bit_more_leaves_half_as_much_to_rounding() {
        let holds = |strongest, bits| matches!(found(0.0, strongest, bits).outcome, Outcome::Holds);
        assert!(holds(0.12, 7) && !holds(0.13, 7));
        assert!(holds(0.44, 5) && !holds(0.46, 5));
    }
}
