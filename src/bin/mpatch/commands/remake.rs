//! Rung V5 of `verify`: does the patch's recipe, followed again, give the patch?

use mpatch::edit::LayerUpdate;
use mpatch::factors::{BITS_DEFAULT, Compression, Integers, RankLimit, Term, Update};
use mpatch::patch::manifest::About;
use mpatch::patch::{Patch, PatchError};
use serde::Serialize;

use super::follow::{Followed, Outcome, Place, Reason};
use crate::editing::arithmetic;
use crate::error::{CommandError, ExitKind};
use crate::job::{Job, compressed};
use crate::report::{Output, count};

/// How far an update may be from the one made again, beyond the rounding that this one needs itself: devices add up
/// in different orders, and the descent to the values carries that on.
const DISTANCE_MOST: f64 = 0.01;

/// What making the patch again gave.
#[derive(Debug, Default, Serialize)]
pub struct RemadeEvidence {
    /// The kind of device that the recipe names.
    recorded_device: String,
    /// The kind of device that it was made again on.
    device: String,
    /// One entry per edited tensor.
    tensors: Vec<Remade>,
    /// What came of the rung.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// One tensor's update against the one made again.
#[derive(Debug, Serialize)]
struct Remade {
    name: String,
    /// Integers and scales are the same.
    same: bool,
    /// `norm(stored - again) / norm(stored)`, the one made again not rounded to integers.
    distance: f64,
    /// The same of the one made again, rounded as the stored one is.
    rounding: f64,
}

/// Follows the recipe as `create` does, and compares what comes of it with what the patch holds.
pub fn check(
    patch: &Patch,
    place: Place<'_>,
    followed: &Followed,
    output: &Output,
) -> Result<RemadeEvidence, CommandError> {
    let recipe = &patch.manifest().recipe;
    let job = Job {
        model: &followed.model,
        weights: followed.weights,
        facts: &followed.facts,
        hyperparameters: followed.hyperparameters.clone(),
        contexts: followed.contexts.clone(),
        statistics: &followed.statistics,
        seed: recipe.seed,
        // Each tensor is rounded as the patch's own is.
        compression: Compression { bits: BITS_DEFAULT, limit: RankLimit::Full },
        supersedes: Vec::new(),
        line: None,
        about: About::default(),
    };
    let log = job.value_log(output);
    let edit = job.edit(log.as_ref(), output)?;
    let mut tensors = Vec::with_capacity(edit.layers.len());
    let mut problem = unexpected(patch, place, &edit.layers);
    for update in &edit.layers {
        let Some(stored) = stored(patch, place, &update.tensor)? else { continue };
        let remade = Remade::of(update, &stored)?;
        problem = problem.or_else(|| remade.problem(&stored));
        tensors.push(remade);
    }
    if let Some(log) = log {
        // Compared already; that a log is left behind is no failure.
        let _ = log.remove();
    }
    Ok(RemadeEvidence {
        recorded_device: recipe.device.clone(),
        device: arithmetic(&followed.model),
        tensors,
        outcome: Outcome { not_checked: None, problem },
    })
}

/// Tensors that the patch touches and the recipe does not, or the other way round.
fn unexpected(patch: &Patch, place: Place<'_>, layers: &[LayerUpdate]) -> Option<String> {
    let touched: Vec<&str> =
        patch.manifest().bindings[place.binding].tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let expected: Vec<&str> = layers.iter().map(|layer| layer.tensor.as_str()).collect();
    let other = touched.iter().find(|name| !expected.contains(name));
    let missing = expected.iter().find(|name| !touched.contains(name));
    other
        .map(|name| format!("tensor `{name}` is touched, expected only those of the recipe's layers"))
        .or_else(|| missing.map(|name| format!("tensor `{name}` is left as it was, the recipe edits it")))
}

/// The patch's one term for the tensor.
fn stored(patch: &Patch, place: Place<'_>, name: &str) -> Result<Option<Term>, CommandError> {
    let tensors = &patch.manifest().bindings[place.binding].tensors;
    let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name) else { return Ok(None) };
    let malformed = |error: PatchError| CommandError::patch(&place.patch.to_string_lossy(), &error);
    patch.term(tensor.terms[0]).map(Some).map_err(malformed)
}

/// How the stored term was rounded: a low-rank one tells its rank, and a dense one is of all ranks unless it was cut.
fn compression_of(stored: &Term) -> Compression {
    let limit = match stored.integers() {
        Integers::LowRank { .. } => RankLimit::Rank(stored.rank()),
        Integers::Dense(_) => RankLimit::Full,
    };
    Compression { bits: stored.bits(), limit }
}

impl Remade {
    fn of(update: &LayerUpdate, stored: &Term) -> Result<Self, CommandError> {
        let again = compressed(update, &compression_of(stored))?;
        let exact = update.product();
        Ok(Self {
            name: update.tensor.clone(),
            same: again == *stored,
            distance: distance(stored, &exact)?,
            rounding: distance(&again, &exact)?,
        })
    }

    fn most(&self) -> f64 {
        self.rounding + DISTANCE_MOST
    }

    fn problem(&self, stored: &Term) -> Option<String> {
        let (name, distance, most) = (&self.name, self.distance, self.most());
        let is_dense = matches!(stored.integers(), Integers::Dense(_));
        let dense = if is_dense { "; a dense term that was cut to a rank cannot be made again" } else { "" };
        let is_near = self.same || distance <= most;
        (!is_near).then(|| {
            format!(
                "tensor `{name}` is {distance:.3} of its size away from what the recipe gives, expected {most:.3} at \
                 most{dense}"
            )
        })
    }
}

/// `norm(term - exact) / norm(term)`, Frobenius; `exact` is row-major.
fn distance(term: &Term, exact: &[f64]) -> Result<f64, CommandError> {
    let malformed = |error: mpatch::factors::FactorError| {
        CommandError::new(ExitKind::Malformed, error.to_string())
            .hint("do not use this patch; `mpatch verify` tells more")
    };
    let update = Update::new(vec![term.clone()]).map_err(malformed)?;
    let entries = update.delta_rows(0..update.rows()).map_err(malformed)?;
    let difference: f64 = entries.iter().zip(exact).map(|(one, other)| (one - other).powi(2)).sum();
    let size: f64 = entries.iter().map(|entry| entry.powi(2)).sum();
    // What is no number stays none, and is no match.
    Ok(if difference == 0.0 { 0.0 } else { (difference / size).sqrt() })
}

impl RemadeEvidence {
    /// The rung was not climbed.
    pub fn not_checked(reason: Reason) -> Self {
        Self { outcome: Outcome::not_checked(reason), ..Self::default() }
    }

    /// The evidence in words.
    pub fn in_words(&self) -> String {
        if let Some(words) = self.outcome.words() {
            return words.clone();
        }
        let tensors = count(self.tensors.len(), "tensor");
        let on = &self.device;
        if self.tensors.iter().all(|tensor| tensor.same) {
            return format!("made again from its recipe on {on}: {tensors}, the same, byte for byte");
        }
        let worst = self.tensors.iter().max_by(|one, other| one.distance.total_cmp(&other.distance));
        let (distance, most) = worst.map_or((0.0, 0.0), |tensor| (tensor.distance, tensor.most()));
        format!(
            "made again from its recipe on {on} (the patch: {}): {tensors}, not the same bytes, {distance:.4} apart \
             at most (allowed {most:.3})",
            self.recorded_device
        )
    }
}
