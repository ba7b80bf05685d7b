//! Sums of squares of weights and of their changes, for the ratio that `verify` holds a patch to.

use super::Kernel;
use super::halves::Halves;
use super::lanes::{Bits, Doubles, GROUP, Group, Lane, compiled_for_each, is_finite, values};

/// Of the weights before, and of what became of them; pairs that are not finite add nothing. The order of the sums is
/// the same on every machine: one for each place in a group, then those.
#[inline(always)]
fn squares_stretch<E: Lane>(halves: impl Halves, before: &[u8], after: &[u8]) -> [f64; 2] {
    let (mut of_weights, mut of_changes): (Doubles, Doubles) = (Group::of(0.0), Group::of(0.0));
    let group_size_bytes = GROUP * E::DTYPE.size_bytes();
    for (before, after) in before.chunks(group_size_bytes).zip(after.chunks(group_size_bytes)) {
        let (mut old_bits, mut new_bits): (Bits, Bits) = (Group::of(0), Group::of(0));
        E::unpack(before, &mut *old_bits);
        E::unpack(after, &mut *new_bits);
        let (old, new) = (values::<E>(&old_bits, halves), values::<E>(&new_bits, halves));
        for place in 0..GROUP {
            let is_weight = is_finite::<E>(old_bits[place]);
            let is_change = is_weight & is_finite::<E>(new_bits[place]);
            let weight = if is_weight { old[place] } else { 0.0 };
            let change = if is_change { new[place] - old[place] } else { 0.0 };
            of_weights[place] += weight * weight;
            of_changes[place] += change * change;
        }
    }
    [of_weights.iter().sum(), of_changes.iter().sum()]
}

compiled_for_each!(
    /// Sums of squares over pairs of finite weights: of those before, and of their changes.
    squares, squares_stretch, <E: Lane>, (before: &[u8], after: &[u8]) -> [f64; 2]
);
