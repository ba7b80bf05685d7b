//! The steps that go weight by weight, on a stretch of a row at a time, compiled for each instruction set.
//!
//! ```text
//! scale    sums of integers  ->  D = (row_scale * column_scale) * S
//! apply    W  ->  round((W + D1) + D2 + ...)
//! restore  W' ->  the one W that becomes it, if its neighbours do not
//! check    W, W'  ->  is W' what becomes of W, and of no neighbour of W
//! ```
//!
//! Nothing is written for a particular processor: the loops have no branches, so the compiler makes vectors of them,
//! of the width that the enclosing function may use. Each step is the one IEEE operation that the format names, and no
//! compiler fuses them unasked, so the width never shows in the result.

use half::{bf16, f16};

use super::Kernel;
use crate::tensor::Element;

/// Longest stretch.
pub(in super::super) const STRETCH_MAX: usize = 512;

/// The weight has one candidate, which has been put in its place.
pub(in super::super) const ONE: u8 = 1;
/// The weight is NaN or infinite and stays.
pub(in super::super) const NOT_FINITE: u8 = 0;
/// The weight needs a closer look.
pub(in super::super) const LOOK: u8 = 2;

/// The terms of a stretch of weights: for each term one number per weight.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Terms<'a> {
    /// From the first term's first number on.
    pub deltas: &'a [f64],
    /// From one term's numbers to the next one's.
    pub stride: usize,
    /// Weights of the stretch.
    pub length: usize,
    /// Terms, at least one.
    pub count: usize,
}

impl<'a> Terms<'a> {
    #[inline(always)]
    fn term(&self, index: usize) -> &'a [f64] {
        &self.deltas[index * self.stride..][..self.length]
    }

    /// The terms of one weight, in the place of what `terms` held.
    pub fn of(&self, weight: usize, terms: &mut Vec<f64>) {
        terms.clear();
        terms.extend((0..self.count).map(|index| self.term(index)[weight]));
    }
}

/// What applying to a stretch met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Applied {
    pub not_finite: u64,
    pub changed: u64,
    /// Some finite weight would become infinite; the bytes are what they were.
    pub overflowed: bool,
}

/// An element type as bits and values, without branches.
pub(in super::super) trait Lane: Element {
    /// All bits but the sign.
    const MAGNITUDE: u32;
    /// The sign bit.
    const SIGN: u32;
    /// Magnitude of infinity: what is smaller is finite.
    const INFINITY: u32;
    /// The bits of each weight.
    fn unpack(bytes: &[u8], bits: &mut [u32]);
    /// The other way.
    fn pack(bits: &[u32], bytes: &mut [u8]);
    /// The value of finite bits; anything at least as large, of the same sign, for others.
    fn value(bits: u32) -> f64;
    /// [`Element::round`], for finite values.
    fn rounded(value: f64) -> u32;
}

macro_rules! lane {
    ($type:ty, $bits:ty, $infinity:expr, $value:expr, $rounded:expr) => {
        impl Lane for $type {
            const MAGNITUDE: u32 = (<$bits>::MAX >> 1) as u32;
            const SIGN: u32 = 1 << (<$bits>::BITS - 1);
            const INFINITY: u32 = $infinity;

            #[inline(always)]
            fn unpack(bytes: &[u8], bits: &mut [u32]) {
                let (bytes, _) = bytes.as_chunks::<{ size_of::<$bits>() }>();
                for (bits, bytes) in bits.iter_mut().zip(bytes) {
                    *bits = <$bits>::from_le_bytes(*bytes).into();
                }
            }

            #[inline(always)]
            fn pack(bits: &[u32], bytes: &mut [u8]) {
                let (bytes, _) = bytes.as_chunks_mut::<{ size_of::<$bits>() }>();
                for (bits, bytes) in bits.iter().zip(bytes) {
                    *bytes = (*bits as $bits).to_le_bytes();
                }
            }

            #[inline(always)]
            fn value(bits: u32) -> f64 {
                $value(bits)
            }

            #[inline(always)]
            fn rounded(value: f64) -> u32 {
                $rounded(value)
            }
        }
    };
}

lane!(f32, u32, 0x7f80_0000, |bits: u32| f64::from(f32::from_bits(bits)), |value: f64| (value as f32)
    .to_bits());
lane!(f16, u16, 0x7c00, f16_value, round_narrow::<10, 15>);
lane!(bf16, u16, 0x7f80, |bits: u32| f64::from(f32::from_bits(bits << 16)), round_narrow::<7, 127>);

const DOUBLE_MANTISSA: u32 = 52;
const DOUBLE_BIAS: u64 = 1023;
const DOUBLE_SIGN: u64 = 1 << 63;

/// The exponent is too small by the difference of the biases, for subnormal numbers as well as for others.
#[inline(always)]
fn f16_value(bits: u32) -> f64 {
    const REBIAS: f64 = f64::from_bits((DOUBLE_BIAS + DOUBLE_BIAS - 15) << DOUBLE_MANTISSA);
    let magnitude = f64::from_bits(u64::from(bits & 0x7fff) << (DOUBLE_MANTISSA - 10)) * REBIAS;
    f64::from_bits(magnitude.to_bits() | u64::from(bits & 0x8000) << 48)
}

/// Rounds to a type with `MANTISSA` stored bits of significand and the exponent's `BIAS`.
///
/// Among normal numbers the cut-off bits carry into those that stay when they are more than half, or half and odd. A
/// subnormal number is added to one whose last bit is the type's smallest value, so that the addition rounds it.
#[inline(always)]
fn round_narrow<const MANTISSA: u32, const BIAS: u64>(value: f64) -> u32 {
    let shift = DOUBLE_MANTISSA - MANTISSA;
    let infinity = (2 * BIAS + 1) << MANTISSA;
    let coarse = (DOUBLE_BIAS + 53 - BIAS - u64::from(MANTISSA)) << DOUBLE_MANTISSA;
    let bits = value.to_bits();
    let magnitude = bits & !DOUBLE_SIGN;
    let carried = magnitude + ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1);
    let normal = (carried >> shift).wrapping_sub((DOUBLE_BIAS - BIAS) << MANTISSA).min(infinity);
    let sum = f64::from_bits(magnitude) + f64::from_bits(coarse);
    let subnormal = sum.to_bits().wrapping_sub(coarse);
    let is_subnormal = magnitude < (DOUBLE_BIAS + 1 - BIAS) << DOUBLE_MANTISSA;
    let rounded = if is_subnormal { subnormal } else { normal };
    // Both narrow types have 16 bits.
    (rounded | bits >> 63 << 15) as u32
}

/// [`Element::ordinal`].
#[inline(always)]
fn ordinal<E: Lane>(bits: u32) -> i32 {
    let magnitude = (bits & E::MAGNITUDE) as i32;
    if bits & E::SIGN == 0 { magnitude } else { !magnitude }
}

/// [`Element::from_ordinal`].
#[inline(always)]
fn from_ordinal<E: Lane>(ordinal: i32) -> u32 {
    if ordinal < 0 { !ordinal as u32 | E::SIGN } else { ordinal as u32 }
}

#[inline(always)]
fn is_finite<E: Lane>(bits: u32) -> bool {
    bits & E::MAGNITUDE < E::INFINITY
}

// ----------------------------------------------------------------------------------------------------- the steps --

/// Replaces `targets` by `(row_scale * column_scale) * sum`.
#[inline(always)]
fn scale_stretch<S: Copy + Into<f64>>(
    row_scale: f32,
    column_scales: &[f32],
    sums: &[S],
    targets: &mut [f64],
) {
    let row_scale = f64::from(row_scale);
    for ((column_scale, sum), target) in column_scales.iter().zip(sums).zip(targets) {
        *target = (row_scale * f64::from(*column_scale)) * (*sum).into();
    }
}

#[inline(always)]
fn apply_stretch<E: Lane>(bytes: &mut [u8], terms: Terms<'_>) -> Applied {
    let length = terms.length;
    let (mut bits, mut values) = ([0_u32; STRETCH_MAX], [0_f64; STRETCH_MAX]);
    let (bits, values) = (&mut bits[..length], &mut values[..length]);
    E::unpack(bytes, bits);
    for (value, bits) in values.iter_mut().zip(bits.iter()) {
        *value = E::value(*bits);
    }
    for index in 0..terms.count {
        for (value, delta) in values.iter_mut().zip(terms.term(index)) {
            *value += delta;
        }
    }
    let (mut not_finite, mut changed, mut overflowed) = (0_u32, 0_u32, 0_u32);
    for (bits, value) in bits.iter_mut().zip(values.iter()) {
        let (before, after) = (*bits, E::rounded(*value));
        let finite = is_finite::<E>(before);
        overflowed |= u32::from(finite & !is_finite::<E>(after));
        not_finite += u32::from(!finite);
        changed += u32::from(finite & (before != after));
        *bits = if finite { after } else { before };
    }
    if overflowed == 0 {
        E::pack(bits, bytes);
    }
    Applied { not_finite: not_finite.into(), changed: changed.into(), overflowed: overflowed != 0 }
}

/// Adds the terms to `ordinals` moved by `step`, and returns whether each result is below, at or above `after`.
#[inline(always)]
fn compare_moved<E: Lane>(
    ordinals: &[i32],
    after: &[i32],
    step: i32,
    terms: Terms<'_>,
    values: &mut [f64],
    holds: impl Fn(i32, i32) -> bool,
    status: &mut [u32],
) {
    for (value, ordinal) in values.iter_mut().zip(ordinals) {
        *value = E::value(from_ordinal::<E>(ordinal + step));
    }
    for index in 0..terms.count {
        for (value, delta) in values.iter_mut().zip(terms.term(index)) {
            *value += delta;
        }
    }
    for ((status, value), after) in status.iter_mut().zip(values.iter()).zip(after) {
        *status &= u32::from(holds(ordinal::<E>(E::rounded(*value)), *after));
    }
}

/// Says of each weight whether `candidates` become `after` and neither of their neighbours does.
#[inline(always)]
fn only_candidates<E: Lane>(
    candidates: &[i32],
    after: &[i32],
    terms: Terms<'_>,
    values: &mut [f64],
    status: &mut [u32],
) {
    status.fill(1);
    compare_moved::<E>(candidates, after, 0, terms, values, |found, after| found == after, status);
    compare_moved::<E>(candidates, after, -1, terms, values, |found, after| found < after, status);
    compare_moved::<E>(candidates, after, 1, terms, values, |found, after| found > after, status);
}

#[inline(always)]
fn restore_stretch<E: Lane>(bytes: &mut [u8], terms: Terms<'_>, outcomes: &mut [u8]) {
    let length = terms.length;
    let (mut bits, mut values) = ([0_u32; STRETCH_MAX], [0_f64; STRETCH_MAX]);
    let (mut after, mut candidates) = ([0_i32; STRETCH_MAX], [0_i32; STRETCH_MAX]);
    let mut status = [0_u32; STRETCH_MAX];
    let (bits, values, status) = (&mut bits[..length], &mut values[..length], &mut status[..length]);
    let (after, candidates) = (&mut after[..length], &mut candidates[..length]);
    E::unpack(bytes, bits);
    for ((after, value), bits) in after.iter_mut().zip(values.iter_mut()).zip(bits.iter()) {
        *after = ordinal::<E>(*bits);
        *value = E::value(*bits);
    }
    for index in (0..terms.count).rev() {
        for (value, delta) in values.iter_mut().zip(terms.term(index)) {
            *value -= delta;
        }
    }
    // One step from infinity, so that both neighbours are numbers.
    let highest = E::INFINITY as i32 - 2;
    for (candidate, value) in candidates.iter_mut().zip(values.iter()) {
        *candidate = ordinal::<E>(E::rounded(*value)).clamp(!highest, highest);
    }
    only_candidates::<E>(candidates, after, terms, values, status);
    for (((bits, outcome), status), candidate) in
        bits.iter_mut().zip(outcomes.iter_mut()).zip(status.iter()).zip(candidates.iter())
    {
        let finite = is_finite::<E>(*bits);
        let only = finite & (*status == 1);
        *outcome = if only { ONE } else { LOOK } * u8::from(finite);
        *bits = if only { from_ordinal::<E>(*candidate) } else { *bits };
    }
    E::pack(bits, bytes);
}

#[inline(always)]
fn check_stretch<E: Lane>(before: &[u8], after: &[u8], terms: Terms<'_>, outcomes: &mut [u8]) {
    let length = terms.length;
    let (mut bits, mut values) = ([0_u32; STRETCH_MAX], [0_f64; STRETCH_MAX]);
    let (mut ends, mut starts) = ([0_i32; STRETCH_MAX], [0_i32; STRETCH_MAX]);
    let mut status = [0_u32; STRETCH_MAX];
    let (bits, values, status) = (&mut bits[..length], &mut values[..length], &mut status[..length]);
    let (ends, starts) = (&mut ends[..length], &mut starts[..length]);
    E::unpack(after, bits);
    for (end, bits) in ends.iter_mut().zip(bits.iter()) {
        *end = ordinal::<E>(*bits);
    }
    E::unpack(before, bits);
    let highest = E::INFINITY as i32 - 2;
    for (start, bits) in starts.iter_mut().zip(bits.iter()) {
        // A weight next to infinity is not its own candidate then, and gets a closer look.
        *start = ordinal::<E>(*bits).clamp(!highest, highest);
    }
    only_candidates::<E>(starts, ends, terms, values, status);
    for (((bits, outcome), status), (start, end)) in
        bits.iter().zip(outcomes.iter_mut()).zip(status.iter()).zip(starts.iter().zip(ends.iter()))
    {
        let finite = is_finite::<E>(*bits);
        let only = finite & (*status == 1) & (*start == ordinal::<E>(*bits));
        let untouched = !finite & (*end == ordinal::<E>(*bits));
        let outcome_found = if only { ONE } else { LOOK };
        *outcome = if untouched { NOT_FINITE } else { outcome_found };
    }
}

// ------------------------------------------------------------------------------------------- one for each machine --

/// Defines `$name` as `$body` compiled for what the kernel's processor has.
macro_rules! compiled_for_each {
    ($(#[$doc:meta])* $name:ident, $body:ident, <$generic:ident: $($bound:path),+>, ($($argument:ident: $type:ty),*) $(-> $result:ty)?) => {
        $(#[$doc])*
        #[expect(unsafe_code, reason = "only a check by the caller makes a function for other processors safe")]
        pub(in super::super) fn $name<$generic: $($bound +)+>(kernel: Kernel, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$generic: $($bound +)+>($($argument: $type),*) $(-> $result)? {
                $body::<$generic>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$generic: $($bound +)+>($($argument: $type),*) $(-> $result)? {
                $body::<$generic>($($argument),*)
            }
            match kernel.supported() {
                // SAFETY: `supported` has asked the processor for what these kernels need.
                #[cfg(target_arch = "x86_64")]
                Kernel::Vnni | Kernel::Avx512 => unsafe { avx512::<$generic>($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => unsafe { avx2::<$generic>($($argument),*) },
                _ => $body::<$generic>($($argument),*),
            }
        }
    };
}

compiled_for_each!(
    /// Replaces `targets` by `(row_scale * column_scale) * sum`.
    scale, scale_stretch, <S: Copy, Into<f64>>,
    (row_scale: f32, column_scales: &[f32], sums: &[S], targets: &mut [f64])
);
compiled_for_each!(
    /// Replaces weights by what the terms make of them.
    apply, apply_stretch, <E: Lane>, (bytes: &mut [u8], terms: Terms<'_>) -> Applied
);
compiled_for_each!(
    /// Replaces the weights that only one weight becomes by that weight, and says which they are.
    restore, restore_stretch, <E: Lane>, (bytes: &mut [u8], terms: Terms<'_>, outcomes: &mut [u8])
);
compiled_for_each!(
    /// Says which weights become `after` and have no neighbour that does.
    check, check_stretch, <E: Lane>, (before: &[u8], after: &[u8], terms: Terms<'_>, outcomes: &mut [u8])
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    /// Values around every boundary between two values of a type, and far from all of them.
    fn values<E: Element>() -> impl Iterator<Item = f64> {
        let step = if E::DTYPE == Dtype::F32 { 65_521 } else { 1 };
        let highest = E::round(f64::INFINITY).ordinal();
        let around = (0..highest).step_by(step).flat_map(|ordinal| {
            let low = E::from_ordinal(ordinal).to_f64();
            let high = E::from_ordinal(ordinal + 1).to_f64();
            // Beyond the largest value stands what would be the next one.
            let high =
                if high.is_finite() { high } else { 2.0 * low - E::from_ordinal(ordinal - 1).to_f64() };
            let middle = (low + high) / 2.0;
            [low, low.next_up(), middle.next_down(), middle, middle.next_up(), high.next_down()]
        });
        around
            .chain([0.0, f64::MIN_POSITIVE, 5e-324, 1e-60, 1e30, 1e60, f64::MAX])
            .flat_map(|value| [value, -value])
    }

    fn lanes_are_the_element<E: Lane>() {
        for value in values::<E>() {
            let (expected, found) = (E::round(value).ordinal(), i64::from(ordinal::<E>(E::rounded(value))));
            assert_eq!(expected, found, "{value:e} as {:?}", E::DTYPE);
        }
        let highest = E::round(f64::INFINITY).ordinal() - 1;
        let step = if E::DTYPE == Dtype::F32 { 65_521 } else { 1 };
        for number in (!highest..=highest).step_by(step) {
            let bits = from_ordinal::<E>(number as i32);
            assert_eq!(i64::from(ordinal::<E>(bits)), number);
            assert!(is_finite::<E>(bits));
            assert_eq!(E::value(bits).to_bits(), E::from_ordinal(number).to_f64().to_bits());
        }
        assert!(!is_finite::<E>(from_ordinal::<E>(highest as i32 + 1)));
    }

    #[test]
    fn bits_of_f32_are_read_and_rounded_as_the_element_is() {
        lanes_are_the_element::<f32>();
    }

    #[test]
    fn bits_of_f16_are_read_and_rounded_as_the_element_is() {
        lanes_are_the_element::<f16>();
    }

    #[test]
    fn bits_of_bf16_are_read_and_rounded_as_the_element_is() {
        lanes_are_the_element::<bf16>();
    }
}
