//! The way back, weight by weight: which weights become an edited one.
//!
//! ```text
//! restore  W'     ->  how many W become it, and the lowest of them
//! check    W, W'  ->  how many become W', and which of them W is
//! ```
//!
//! What rounds to `W'` lies between the middles to its two neighbours, so what became it lies between those two less
//! the terms. Where neither of these two numbers is close to an element, the elements between them are counted by
//! subtracting one's bits from the other's.

use super::Kernel;
use super::lanes::{Bits, Doubles, GROUP, Group, Lane, Terms, compiled_for_each, each, is_finite, ordinal};

/// Of a weight: it needs a closer look. Other numbers say how many weights become it, which is 1 for NaN and infinities,
/// too: they stay.
pub(in super::super) const LOOK: u8 = 0;

/// By how many powers of two an edited weight may be larger than what became it. An error of a sum in f64, 2^-53 of the
/// larger, is then far less than a part of a step of the smaller.
const GROWTH_MAX: u32 = 10;

/// The weights that become those of a group.
struct Origins {
    /// Bits of the one with the lowest ordinal.
    lowest: Bits,
    /// How many there are; [`LOOK`] where that is not certain.
    counts: Bits,
}

#[inline(always)]
fn origins<E: Lane>(after: &Bits, terms: Terms<'_>) -> Origins {
    let outer = each!(after, E::middle, E::Wide::default());
    // The middle on the other side is that of the number before.
    let inner = each!(after, |bits: u32| E::middle(bits.wrapping_sub(1)), E::Wide::default());
    let (outer, inner) = (less_terms::<E>(&outer, terms), less_terms::<E>(&inner, terms));
    let (mut lowest, mut counts): (Bits, Bits) = (Group::of(0), Group::of(0));
    let found = lowest.iter_mut().zip(counts.iter_mut());
    for ((lowest, count), (after, (inner, outer))) in found.zip(after.iter().zip(inner.iter().zip(&outer))) {
        let (from, to) = (E::towards_zero(*inner), E::towards_zero(*outer));
        let (low, high) = (from.min(to), from.max(to));
        let (side, after) = (E::is_negative(*inner), after & E::MAGNITUDE);
        let between = high - low;
        let is_number = (after.wrapping_sub(1) < E::INFINITY - 1) & (high < E::INFINITY);
        let is_one_side = side == E::is_negative(*outer);
        let is_apart = E::is_apart(*inner) & E::is_apart(*outer);
        let is_large = after <= low + GROWTH_MAX * smallest_normal::<E>();
        let is_count = between.wrapping_sub(1) < u32::from(u8::MAX);
        let is_certain = u32::from(is_number & is_one_side & is_apart & is_large & is_count);
        // Of negative numbers the largest magnitude is the lowest.
        *lowest = if side { E::SIGN | high } else { low + 1 };
        *count = between & is_certain.wrapping_neg();
    }
    if terms.count > 1 {
        require_reach::<E>(&mut counts, after, [&inner, &outer], terms);
    }
    Origins { lowest, counts }
}

/// `values` less the terms.
#[inline(always)]
fn less_terms<E: Lane>(values: &Group<E::Wide>, terms: Terms<'_>) -> Group<E::Wide> {
    let mut values: Doubles = each!(values, E::Wide::into, 0.0);
    for index in (0..terms.count).rev() {
        for (value, delta) in values.iter_mut().zip(terms.term(index)) {
            *value -= delta;
        }
    }
    each!(&values, E::widest, E::Wide::default())
}

/// Its magnitude's bits, which are one in the exponent.
#[inline(always)]
fn smallest_normal<E: Lane>() -> u32 {
    E::INFINITY & E::INFINITY.wrapping_neg()
}

/// Clears the weights whose terms are so large that rounding their sums may lead to the other side of an element.
///
/// A single term needs no such question: it is no larger than the weight and its result together.
#[inline(always)]
fn require_reach<E: Lane>(counts: &mut Bits, after: &Bits, ends: [&Group<E::Wide>; 2], terms: Terms<'_>) {
    let mut reach: Doubles = each!(after, |bits| f64::from(E::single(bits)).abs(), 0.0);
    for index in 0..terms.count {
        for (reach, delta) in reach.iter_mut().zip(terms.term(index)) {
            *reach += delta.abs();
        }
    }
    let factor = f64::from(1 << GROWTH_MAX);
    let ends = ends[0].iter().zip(ends[1].iter());
    for ((count, reach), (inner, outer)) in counts.iter_mut().zip(&reach).zip(ends) {
        let (inner, outer): (f64, f64) = ((*inner).into(), (*outer).into());
        let is_short = reach * terms.count as f64 <= inner.abs().min(outer.abs()) * factor;
        *count &= u32::from(is_short).wrapping_neg();
    }
}

#[inline(always)]
fn restore_stretch<E: Lane>(bytes: &mut [u8], terms: Terms<'_>, counts: &mut [u8]) {
    let groups = bytes.chunks_mut(GROUP * E::DTYPE.size_bytes()).zip(counts.chunks_mut(GROUP));
    for ((bytes, counts), terms) in groups.zip(terms.groups()) {
        restore_group::<E>(bytes, terms, counts);
    }
}

#[inline(always)]
fn restore_group<E: Lane>(bytes: &mut [u8], terms: Terms<'_>, counts: &mut [u8]) {
    let mut bits: Bits = Group::of(0);
    E::unpack(bytes, &mut *bits);
    let mut found = origins::<E>(&bits, terms);
    for ((bits, lowest), count) in bits.iter_mut().zip(&found.lowest).zip(found.counts.iter_mut()) {
        let stays = u32::from(!is_finite::<E>(*bits));
        *bits = if *count == u32::from(LOOK) { *bits } else { *lowest };
        *count |= stays;
    }
    write_bytes(&found.counts, counts);
    E::pack(&*bits, bytes);
}

#[inline(always)]
fn write_bytes(numbers: &Bits, bytes: &mut [u8]) {
    for (byte, number) in bytes.iter_mut().zip(numbers) {
        *byte = *number as u8;
    }
}

/// Which of several a weight is.
#[derive(Debug)]
pub(in super::super) struct Members<'a> {
    /// How many there are, or [`LOOK`].
    pub counts: &'a mut [u8],
    /// Which it is, from the lowest on; anything where there are not several.
    pub indices: &'a mut [u8],
}

#[inline(always)]
fn check_stretch<E: Lane>(before: &[u8], after: &[u8], terms: Terms<'_>, members: Members<'_>) {
    let size_bytes = GROUP * E::DTYPE.size_bytes();
    let groups = before.chunks(size_bytes).zip(after.chunks(size_bytes)).zip(terms.groups());
    let members = members.counts.chunks_mut(GROUP).zip(members.indices.chunks_mut(GROUP));
    for (((before, after), terms), (counts, indices)) in groups.zip(members) {
        check_group::<E>(before, after, terms, counts, indices);
    }
}

#[inline(always)]
fn check_group<E: Lane>(
    before: &[u8],
    after: &[u8],
    terms: Terms<'_>,
    counts: &mut [u8],
    indices: &mut [u8],
) {
    let (mut starts, mut ends): (Bits, Bits) = (Group::of(0), Group::of(0));
    E::unpack(before, &mut *starts);
    E::unpack(after, &mut *ends);
    let mut found = origins::<E>(&ends, terms);
    let mut members: Bits = Group::of(0);
    let weights = starts.iter().zip(&found.lowest);
    for ((start, lowest), (count, member)) in weights.zip(found.counts.iter_mut().zip(members.iter_mut())) {
        let stays = u32::from(!is_finite::<E>(*start));
        *member = ordinal::<E>(*start).wrapping_sub(ordinal::<E>(*lowest)) as u32;
        *count &= u32::from(*member < *count).wrapping_neg();
        *count |= stays;
    }
    write_bytes(&found.counts, counts);
    write_bytes(&members, indices);
}

compiled_for_each!(
    /// Replaces weights by the lowest of those that become them, and says how many do; where it says [`LOOK`], they
    /// stay.
    restore, restore_stretch, <E: Lane>, (bytes: &mut [u8], terms: Terms<'_>, counts: &mut [u8])
);
compiled_for_each!(
    /// Says how many weights become `after`, and which of them `before` is.
    check, check_stretch, <E: Lane>, (before: &[u8], after: &[u8], terms: Terms<'_>, members: Members<'_>)
);
