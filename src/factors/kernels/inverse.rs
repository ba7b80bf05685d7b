//! The way back, weight by weight: which weights become an edited one.
//!
//! ```text
//! restore  W'  ->  how many W become it, and the lowest of them
//! log      W   ->  W', how many become it, and which of them W is
//! ```
//!
//! What rounds to `W'` lies between the middles to its two neighbours, so what became it lies between those two less
//! the terms. Where neither of these two numbers is close to an element, the elements between them are counted by
//! subtracting one's bits from the other's.
//!
//! Logging needs no exact sum: whether `W` lies between the two numbers of what it seems to become says whether it
//! does.

use super::Kernel;
use super::halves::Halves;
use super::lanes::{
    Applied, Bits, Doubles, GROUP, Group, Lane, Terms, change, compiled_for_each, each, is_finite, ordinal,
};

/// Of a weight: it needs a closer look. Other numbers say how many weights become it, which is 1 for NaN and
/// infinities, too: they stay.
pub(in super::super) const LOOK: u8 = 0;

/// The weights that become those of a group.
struct Origins {
    /// Bits of the one with the lowest ordinal.
    lowest: Bits,
    /// How many there are; [`LOOK`] where that is not certain.
    counts: Bits,
}

/// Magnitudes are those of the edited weights' side: what lies on the other one is negative.
///
/// A middle less an element is a number of the wide type as long as few elements lie between two middles, and rounding
/// keeps the order of numbers: so the change, rounded to that type, is not on the other side of that difference, nor is
/// the middle less the change on the other side of the element. It may come to lie on it, or, where an element is
/// thousands of times its result, a last place beside it. The sums in f64, on the way there and here, are off by less
/// than a part of a step.
#[inline(always)]
fn origins<E: Lane>(after: &Bits, changes: &Group<E::Wide>, terms: Terms<'_>) -> Origins {
    let (mut lowest, mut counts): (Bits, Bits) = (Group::of(0), Group::of(0));
    let found = lowest.iter_mut().zip(counts.iter_mut());
    for ((lowest, count), (after, change)) in found.zip(after.iter().zip(changes)) {
        let change = E::with_sign_of(*change, *after);
        let magnitude = after & E::MAGNITUDE;
        let [inner, outer] = E::middles(magnitude).map(|middle| middle - change);
        let (from, to) = (E::towards_zero(inner), E::towards_zero(outer));
        let (low, high) = (from.min(to), from.max(to));
        let between = high - low;
        let is_number = (magnitude.wrapping_sub(1) < E::INFINITY - 1) & (high < E::INFINITY);
        let is_one_side = E::is_negative(inner) == E::is_negative(outer);
        let is_apart = E::is_apart(inner) & E::is_apart(outer);
        let is_count = between.wrapping_sub(1) < u32::from(u8::MAX);
        let is_certain = u32::from(is_number & is_one_side & is_apart & is_count);
        let is_negative = E::is_negative(inner) != (after & E::SIGN != 0);
        // Of negative numbers the largest magnitude is the lowest.
        *lowest = if is_negative { E::SIGN | high } else { low + 1 };
        *count = between & is_certain.wrapping_neg();
    }
    if terms.count > 1 {
        require_reach::<E>(&mut counts, after, &lowest, terms);
    }
    Origins { lowest, counts }
}

/// Clears the weights whose terms are so large that rounding their sums may lead to the other side of an element.
///
/// A single term needs no such question: it is no larger than the weight and its result together. An error of a sum in
/// f64 is 2^-53 of it, far less than a part of a step of a weight that is this much smaller.
#[inline(always)]
fn require_reach<E: Lane>(counts: &mut Bits, after: &Bits, lowest: &Bits, terms: Terms<'_>) {
    const REACH_MAX: f64 = 1024.0;
    let mut reach: Doubles = each!(after, |bits| f64::from(E::single(bits)).abs(), 0.0);
    for index in 0..terms.count {
        for (reach, delta) in reach.iter_mut().zip(terms.term(index)) {
            *reach += delta.abs();
        }
    }
    for ((count, reach), lowest) in counts.iter_mut().zip(&reach).zip(lowest) {
        let is_short = reach * terms.count as f64 <= f64::from(E::single(*lowest)).abs() * REACH_MAX;
        *count &= u32::from(is_short).wrapping_neg();
    }
}

#[inline(always)]
fn restore_stretch<E: Lane>(_: impl Halves, bytes: &mut [u8], terms: Terms<'_>, counts: &mut [u8]) {
    let groups = bytes.chunks_mut(GROUP * E::DTYPE.size_bytes()).zip(counts.chunks_mut(GROUP));
    for ((bytes, counts), terms) in groups.zip(terms.groups()) {
        restore_group::<E>(bytes, terms, counts);
    }
}

#[inline(always)]
fn restore_group<E: Lane>(bytes: &mut [u8], terms: Terms<'_>, counts: &mut [u8]) {
    let mut bits: Bits = Group::of(0);
    E::unpack(bytes, &mut *bits);
    let mut found = origins::<E>(&bits, &change::<E>(terms), terms);
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
fn log_stretch<E: Lane>(
    halves: impl Halves,
    bytes: &mut [u8],
    terms: Terms<'_>,
    members: Members<'_>,
) -> Applied {
    let mut total = Applied::default();
    let groups = bytes.chunks_mut(GROUP * E::DTYPE.size_bytes()).zip(terms.groups());
    let members = members.counts.chunks_mut(GROUP).zip(members.indices.chunks_mut(GROUP));
    for ((bytes, terms), (counts, indices)) in groups.zip(members) {
        log_group::<E>(halves, bytes, terms, Members { counts, indices }, &mut total);
    }
    total
}

#[inline(always)]
fn log_group<E: Lane>(
    halves: impl Halves,
    bytes: &mut [u8],
    terms: Terms<'_>,
    found_members: Members<'_>,
    total: &mut Applied,
) {
    let mut before: Bits = Group::of(0);
    E::unpack(bytes, &mut *before);
    let changes = change::<E>(terms);
    let mut sums = E::wides(&before, halves);
    for (sum, change) in sums.iter_mut().zip(&changes) {
        *sum = *sum + *change;
    }
    let mut after = E::nearests(&sums, halves);
    let mut found = origins::<E>(&after, &changes, terms);
    let mut members: Bits = Group::of(0);
    let (mut not_finite, mut changed) = (0_u32, 0_u32);
    let weights = before.iter().zip(after.iter_mut()).zip(&found.lowest);
    for (((before, after), lowest), (count, member)) in
        weights.zip(found.counts.iter_mut().zip(members.iter_mut()))
    {
        let stays = u32::from(!is_finite::<E>(*before));
        *member = ordinal::<E>(*before).wrapping_sub(ordinal::<E>(*lowest)) as u32;
        *count &= u32::from((*member < *count) & (stays == 0)).wrapping_neg();
        *after = if *count == u32::from(LOOK) { *before } else { *after };
        *count |= stays;
        not_finite += stays;
        changed += u32::from(before != after);
    }
    write_bytes(&found.counts, found_members.counts);
    write_bytes(&members, found_members.indices);
    E::pack(&*after, bytes);
    total.not_finite += u64::from(not_finite);
    total.changed += u64::from(changed);
}

compiled_for_each!(
    /// Replaces weights by the lowest of those that become them, and says how many do; where it says [`LOOK`], they
    /// stay.
    restore, restore_stretch, <E: Lane>, (bytes: &mut [u8], terms: Terms<'_>, counts: &mut [u8])
);
compiled_for_each!(
    /// Replaces weights by what the terms make of them, and says how many become that, and which of them each was;
    /// where it says [`LOOK`], they stay, and are in no sum.
    log, log_stretch, <E: Lane>, (bytes: &mut [u8], terms: Terms<'_>, members: Members<'_>) -> Applied
);
