//! Where the weights stand: the three answers, from the digests of the touched tensors.

use std::collections::{BTreeMap, BTreeSet};

use super::{Difference, Direction, Mismatch, Progress};
use crate::checkpoint::{Checkpoint, CheckpointError, TensorInfo};
use crate::digest::TensorDigest;
use crate::patch::Patch;
use crate::patch::manifest::{Binding, TensorBinding};

/// The three answers, the same for both directions.
#[derive(Debug)]
pub(crate) enum Position {
    /// All touched tensors of this binding are at the start.
    Start(usize),
    /// All touched tensors of this binding are at the end.
    End(usize),
    /// Neither.
    Elsewhere(Mismatch),
}

/// Digests of tensors by name.
pub(crate) type Digests<'a> = BTreeMap<&'a str, TensorDigest>;

/// The digests of the checkpoint's tensors that any binding could be about.
pub(crate) fn survey_digests<'c>(
    checkpoint: &'c Checkpoint,
    patch: &Patch,
    progress: Progress<'_>,
) -> Result<Digests<'c>, CheckpointError> {
    let touched = fitting_tensors(checkpoint, patch);
    let digests = checkpoint.digests_with(&touched, progress)?;
    Ok(touched.iter().map(|tensor| tensor.name.as_str()).zip(digests).collect())
}

/// Finds which binding's start, or else which binding's end, the checkpoint stands at; a tensor without a digest counts
/// as missing.
pub(crate) fn position(
    checkpoint: &Checkpoint,
    bindings: &[Binding],
    digests: &Digests<'_>,
    direction: Direction,
) -> Position {
    let compared: Vec<_> =
        bindings.iter().map(|binding| Comparison::new(checkpoint, binding, digests, direction)).collect();
    if let Some(index) = compared.iter().position(|found| found.at_start == found.tensors) {
        return Position::Start(index);
    }
    if let Some(index) = compared.iter().position(|found| found.at_end == found.tensors) {
        return Position::End(index);
    }
    Position::Elsewhere(closest(checkpoint, compared, direction))
}

/// The comparison with most tensors in either state; the earliest among equals.
fn closest(checkpoint: &Checkpoint, compared: Vec<Comparison>, direction: Direction) -> Mismatch {
    let mut best: Option<(usize, Comparison)> = None;
    for (binding, found) in compared.into_iter().enumerate() {
        if best.as_ref().is_none_or(|(_, best)| best.in_either < found.in_either) {
            best = Some((binding, found));
        }
    }
    let (binding, found) = best.unwrap_or_default();
    let (tensor, difference) =
        found.odd.or(found.first).unwrap_or_else(|| (String::new(), Difference::Missing { nearest: None }));
    let difference = with_nearest(checkpoint, &tensor, difference);
    let Comparison { at_start, at_end, in_either, tensors, .. } = found;
    Mismatch { tensor, difference, binding, at_start, at_end, in_either, tensors, direction }
}

#[derive(Debug, Default)]
struct Comparison {
    at_start: usize,
    at_end: usize,
    in_either: usize,
    tensors: usize,
    /// The first tensor that is at the end, and not at the start.
    first: Option<(String, Difference)>,
    /// The first tensor that is neither at the start nor at the end: the patch is not what made it so.
    odd: Option<(String, Difference)>,
}

impl Comparison {
    fn new(checkpoint: &Checkpoint, binding: &Binding, digests: &Digests<'_>, direction: Direction) -> Self {
        let mut comparison = Comparison { tensors: binding.tensors.len(), ..Comparison::default() };
        for tensor in &binding.tensors {
            let found = fitting(checkpoint, tensor).and_then(|info| {
                let found = digests.get(info.name.as_str()).copied();
                found.ok_or(Difference::Missing { nearest: None })
            });
            let expected = direction.start(tensor);
            let (at_start, at_end) = (found == Ok(expected), found == Ok(direction.end(tensor)));
            comparison.at_start += usize::from(at_start);
            comparison.at_end += usize::from(at_end);
            comparison.in_either += usize::from(at_start || at_end);
            let difference = match found {
                Ok(found) if found == expected => continue,
                Ok(found) => Difference::Digest { expected, found },
                Err(difference) => difference,
            };
            let named = if at_end { &mut comparison.first } else { &mut comparison.odd };
            named.get_or_insert_with(|| (tensor.name.clone(), difference));
        }
        comparison
    }
}

/// The checkpoint's tensor that a binding speaks of, if type and shape fit.
pub(super) fn locate<'c>(
    checkpoint: &'c Checkpoint,
    tensor: &TensorBinding,
) -> Result<&'c TensorInfo, Difference> {
    fitting(checkpoint, tensor).map_err(|difference| with_nearest(checkpoint, &tensor.name, difference))
}

/// A difference as it is reported: where there is no such tensor, with the nearest name, which takes a look at all.
fn with_nearest(checkpoint: &Checkpoint, name: &str, difference: Difference) -> Difference {
    match difference {
        Difference::Missing { .. } if checkpoint.find(name).is_none() => {
            Difference::Missing { nearest: checkpoint.nearest_name(name) }
        }
        difference => difference,
    }
}

/// As [`locate`], without a nearest name.
fn fitting<'c>(checkpoint: &'c Checkpoint, tensor: &TensorBinding) -> Result<&'c TensorInfo, Difference> {
    let info = checkpoint.find(&tensor.name).ok_or(Difference::Missing { nearest: None })?;
    if info.element_dtype() != Some(tensor.dtype) {
        return Err(Difference::Dtype { expected: tensor.dtype, found: info.dtype.clone() });
    }
    if info.matrix_shape() != Some(tensor.shape) {
        return Err(Difference::Shape { expected: tensor.shape, found: info.shape.clone() });
    }
    Ok(info)
}

/// The checkpoint's tensors that any of `patches` names, whatever type and shape it expects of them.
pub fn touched<'c, 'p>(
    checkpoint: &'c Checkpoint,
    patches: impl IntoIterator<Item = &'p Patch>,
) -> Vec<&'c TensorInfo> {
    let bindings = patches.into_iter().flat_map(|patch| &patch.manifest().bindings);
    let names: BTreeSet<&str> =
        bindings.flat_map(|binding| &binding.tensors).map(|tensor| tensor.name.as_str()).collect();
    checkpoint.tensors().iter().filter(|info| names.contains(info.name.as_str())).collect()
}

/// The checkpoint's tensors that any binding could be about.
fn fitting_tensors<'c>(checkpoint: &'c Checkpoint, patch: &Patch) -> Vec<&'c TensorInfo> {
    let bindings = patch.manifest().bindings.iter().flat_map(|binding| &binding.tensors);
    let located = bindings.filter_map(|tensor| fitting(checkpoint, tensor).ok());
    let by_name: BTreeMap<&str, &TensorInfo> = located.map(|info| (info.name.as_str(), info)).collect();
    by_name.into_values().collect()
}

/// Bytes that planning an operation reads: the touched tensors.
pub fn survey_size_bytes(checkpoint: &Checkpoint, patch: &Patch) -> u64 {
    fitting_tensors(checkpoint, patch).iter().map(|tensor| tensor.size_bytes).sum()
}
