//! Rung V5 of `verify`: does the patch's recipe, followed again, give the patch?

use mpatch::edit::LayerUpdate;
use mpatch::factors::{Compression, Cut, FactorError, Integers, RankLimit, Term, Update, cut_of};
use mpatch::patch::{Patch, PatchError};
use serde::Serialize;

use super::follow::{Followed, Outcome, Place, Reason};
use crate::error::{CommandError, ExitKind};
use crate::job::compressed;
use crate::report::{Output, count};

/// How far an update may be from the one made again, beyond the rounding that this one needs itself: devices add up
/// in different orders, and the descent to the values carries that on.
const DISTANCE_MOST: f64 = 0.01;

/// What making the patch again gave.
#[derive(Debug, Serialize)]
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
    /// The same of the one made again, cut and rounded as the stored one is.
    rounding: f64,
    /// How the one made again was cut; none where it was not.
    cut: Option<CutReport>,
    /// How large `distance` may be.
    #[serde(skip)]
    most: f64,
}

/// What of an update a term does not hold.
#[derive(Debug, Serialize)]
struct CutReport {
    /// The rank that it holds.
    rank: usize,
    /// The rank that the update has.
    of: usize,
    /// `norm(left out) / norm(update)`.
    left_out: f64,
}

/// Follows the recipe as `create` does, and compares what comes of it with what the patch holds.
pub fn check(
    patch: &Patch,
    place: Place<'_>,
    followed: &Followed,
    output: &Output,
) -> Result<RemadeEvidence, CommandError> {
    let Followed { model, ingredients, facts } = followed;
    let (tensors, problem) = ingredients.with_value_log(model, facts, output, |plan, log| {
        let edit = ingredients.edit(model, plan, log, output)?;
        compare(patch, place, &edit.layers)
    })?;
    Ok(RemadeEvidence {
        recorded_device: patch.manifest().recipe.device.clone(),
        device: model.arithmetic().to_string(),
        tensors,
        outcome: problem.into(),
    })
}

/// Each tensor that the patch holds and the recipe makes again, and the first problem.
fn compare(
    patch: &Patch,
    place: Place<'_>,
    layers: &[LayerUpdate],
) -> Result<(Vec<Remade>, Option<String>), CommandError> {
    let mut tensors = Vec::with_capacity(layers.len());
    let mut problem = untouched(patch, place, layers);
    for update in layers {
        let Some(stored) = stored(patch, place, &update.tensor)? else { continue };
        let remade = Remade::of(update, &stored)?;
        problem = problem.or_else(|| remade.problem());
        tensors.push(remade);
    }
    Ok((tensors, problem))
}

/// A tensor that the recipe edits and the patch leaves as it was. One that the patch touches and the recipe does not
/// fails V3, without which this rung is not climbed.
fn untouched(patch: &Patch, place: Place<'_>, layers: &[LayerUpdate]) -> Option<String> {
    let touched = &patch.manifest().bindings[place.binding].tensors;
    let is_left = |update: &&LayerUpdate| !touched.iter().any(|tensor| tensor.name == update.tensor);
    let left = layers.iter().find(is_left)?;
    Some(format!("tensor `{}` is left as it was, the recipe edits it", left.tensor))
}

/// The patch's one term for the tensor.
fn stored(patch: &Patch, place: Place<'_>, name: &str) -> Result<Option<Term>, CommandError> {
    let tensors = &patch.manifest().bindings[place.binding].tensors;
    let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name) else { return Ok(None) };
    let malformed = |error: PatchError| CommandError::patch(&place.patch.to_string_lossy(), &error);
    patch.term(tensor.terms[0]).map(Some).map_err(malformed)
}

/// The update made again, cut and rounded as the stored one is, and how it was cut.
///
/// The recipe does not say how an update was cut, so that is told by what is stored.
fn again(update: &LayerUpdate, stored: &Term) -> Result<(Term, Option<Cut>), CommandError> {
    let rounded = |limit| compressed(update, &Compression { bits: stored.bits(), limit });
    if matches!(stored.integers(), Integers::Dense(_)) {
        let whole = rounded(RankLimit::Full)?;
        if whole == *stored {
            return Ok((whole, None));
        }
    }
    let cut = cut(update, stored)?;
    Ok((rounded(RankLimit::Rank(cut.rank))?, Some(cut).filter(|cut| cut.rank < cut.of)))
}

fn cut(update: &LayerUpdate, stored: &Term) -> Result<Cut, CommandError> {
    cut_of(&update.factors(), stored).map_err(|error| malformed(&error))
}

impl Remade {
    fn of(update: &LayerUpdate, stored: &Term) -> Result<Self, CommandError> {
        let (again, cut) = again(update, stored)?;
        let exact = update.product();
        let rounding = Distance::of(&again, &exact)?;
        let left_out = cut.map_or(0.0, |cut| cut.left_out) * norm(exact.iter().copied());
        Ok(Self {
            name: update.tensor.clone(),
            same: again == *stored,
            distance: Distance::of(stored, &exact)?.share(),
            rounding: rounding.share(),
            cut: cut.map(|Cut { rank, of, left_out }| CutReport { rank, of, left_out }),
            most: most(rounding.share(), left_out / rounding.size),
        })
    }

    fn problem(&self) -> Option<String> {
        let Self { name, distance, most, .. } = self;
        let is_near = self.same || distance <= most;
        let cut = self.cut.as_ref().map_or_else(String::new, |cut| format!(", {}", cut.in_words()));
        (!is_near).then(|| {
            format!(
                "tensor `{name}` is {distance:.3} of its size away from what the recipe gives{cut}, expected \
                 {most:.3} at most"
            )
        })
    }
}

impl CutReport {
    fn in_words(&self) -> String {
        let Self { rank, of, left_out } = self;
        format!("cut to rank {rank} of {of}, which leaves out {left_out:.3} of an update")
    }
}

fn malformed(error: &FactorError) -> CommandError {
    CommandError::new(ExitKind::Malformed, error.to_string())
        .hint("do not use this patch; `mpatch verify` tells more")
}

/// How far a term is from an update that was not rounded, Frobenius.
struct Distance {
    /// `norm(term - exact)`.
    difference: f64,
    /// `norm(term)`.
    size: f64,
}

impl Distance {
    /// `exact` is row-major.
    fn of(term: &Term, exact: &[f64]) -> Result<Self, CommandError> {
        let update = Update::new(vec![term.clone()]).map_err(|error| malformed(&error))?;
        let entries = update.delta_rows(0..update.rows()).map_err(|error| malformed(&error))?;
        let difference = norm(entries.iter().zip(exact).map(|(one, other)| one - other));
        Ok(Self { difference, size: norm(entries.iter().copied()) })
    }

    /// Of the term's size; what is no number stays none, and is no match.
    fn share(&self) -> f64 {
        if self.difference == 0.0 { 0.0 } else { self.difference / self.size }
    }
}

fn norm(entries: impl Iterator<Item = f64>) -> f64 {
    entries.map(|entry| entry.powi(2)).sum::<f64>().sqrt()
}

/// How far an update may be from the one made again, where cutting and rounding take `rounding` of it, and cutting
/// alone `left_out`: [`DISTANCE_MOST`] is added to what rounding alone takes, for a cut is the same on every device.
fn most(rounding: f64, left_out: f64) -> f64 {
    let rounding_alone = (rounding.powi(2) - left_out.powi(2)).max(0.0).sqrt();
    (rounding.powi(2) + 2.0 * rounding_alone * DISTANCE_MOST + DISTANCE_MOST.powi(2)).sqrt()
}

impl RemadeEvidence {
    /// The rung was not climbed.
    pub fn not_checked(reason: Reason) -> Self {
        let outcome = Outcome::NotChecked(reason);
        Self { recorded_device: String::new(), device: String::new(), tensors: Vec::new(), outcome }
    }

    /// The evidence in words.
    pub fn in_words(&self) -> String {
        if let Some(words) = self.outcome.words() {
            return words.clone();
        }
        let (tensors, on) = (count(self.tensors.len(), "tensor"), &self.device);
        let deepest = self
            .tensors
            .iter()
            .filter_map(|tensor| tensor.cut.as_ref())
            .max_by(|one, other| one.left_out.total_cmp(&other.left_out));
        let cut = deepest.map_or_else(String::new, |cut| format!("; {}", cut.in_words()));
        if self.tensors.iter().all(|tensor| tensor.same) {
            return format!("made again from its recipe on {on}: {tensors}, the same, byte for byte{cut}");
        }
        let worst = self.tensors.iter().max_by(|one, other| one.distance.total_cmp(&other.distance));
        let (distance, most) = worst.map_or((0.0, 0.0), |tensor| (tensor.distance, tensor.most));
        format!(
            "made again from its recipe on {on} (the patch: {}): {tensors}, not the same bytes, {distance:.4} apart \
             at most (allowed {most:.3}){cut}",
            self.recorded_device
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cut_leaves_out_gives_no_room_for_anything_else() {
        assert!((most(0.02, 0.0) - 0.03).abs() < 1e-12);
        // How much may be there beside what cutting and rounding take.
        let room = |left_out: f64| {
            let rounding = left_out.hypot(0.02);
            (most(rounding, left_out).powi(2) - rounding.powi(2)).sqrt()
        };
        for left_out in [0.1, 1.0, 7.0] {
            assert!((room(left_out) - room(0.0)).abs() < 1e-6, "{left_out}: {}", room(left_out));
        }
        assert!(most(0.5, 0.6) >= 0.5 && most(0.0, f64::NAN) < 0.011);
    }
}
