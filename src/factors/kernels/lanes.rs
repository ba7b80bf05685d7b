//! The steps that go weight by weight, on a stretch of a row at a time, compiled for each instruction set.
//!
//! ```text
//! scale    sums of integers  ->  D = (row_scale * column_scale) * S
//! apply    W  ->  round((W + D1) + D2 + ...)
//! ```
//!
//! The way back is in [`inverse`](super::inverse).
//!
//! Nothing but the conversions of F16 is written for a particular processor: the loops have no branches, so the
//! compiler makes vectors of them, of the width that the enclosing function may use. Each step is the one IEEE
//! operation that the format names, and no compiler fuses them unasked, so the width never shows in the result.

use std::ops::{Add, Deref, DerefMut, Sub};

use half::{bf16, f16};

use super::Kernel;
use super::halves::Halves;
use crate::tensor::{Element, round_to_odd};

/// Longest stretch.
pub(in super::super) const STRETCH_MAX: usize = 512;

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
    pub fn term(&self, index: usize) -> &'a [f64] {
        &self.deltas[index * self.stride..][..self.length]
    }

    /// One [`GROUP`] after the other.
    #[inline(always)]
    pub(super) fn groups(self) -> impl Iterator<Item = Terms<'a>> {
        (0..self.length).step_by(GROUP).map(move |first| Self {
            deltas: &self.deltas[first..],
            length: GROUP.min(self.length - first),
            ..self
        })
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
    /// From where on to look for the finite weight that would become infinite; from there the bytes are as they were.
    pub overflow_from: Option<usize>,
}

/// An element type as bits and values, without branches.
pub(in super::super) trait Lane: Element {
    /// A type with so many more bits that it holds what lies between two elements, and parts of it.
    type Wide: Copy + Default + Add<Output = Self::Wide> + Sub<Output = Self::Wide>;
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
    fn single(bits: u32) -> f32;
    /// What stands between a finite value and its rounding: [`Lane::narrow`] of it is [`Element::round`].
    fn halfway(value: f64) -> f32;
    /// Bits of the nearest element, ties to even.
    fn narrow(halfway: f32) -> u32;
    /// [`Lane::single`] of each.
    fn singles(bits: &Bits, halves: impl Halves) -> Singles;
    /// [`Lane::narrow`] of each.
    fn narrowed(halfway: &Singles, halves: impl Halves) -> Bits;
    /// The same in the wide type.
    fn wides(bits: &Bits, halves: impl Halves) -> Group<Self::Wide>;
    /// Bits of the nearest element of each.
    fn nearests(values: &Group<Self::Wide>, halves: impl Halves) -> Bits;
    /// Whether rounding two sums of the wide type takes fewer steps than rounding one in f64.
    fn is_quick<H: Halves>() -> bool;
    /// More than what `sum`, of a weight and `change`, and `change` itself lose in the wide type.
    fn margin(sum: Self::Wide, change: Self::Wide) -> Self::Wide;
    /// The middles between a magnitude and the numbers before and after it; before 0 there is none, and anything.
    fn middles(magnitude: u32) -> [Self::Wide; 2];
    /// The nearest value of the wide type.
    fn widest(value: f64) -> Self::Wide;
    /// `value` with its sign changed where `bits` has one.
    fn with_sign_of(value: Self::Wide, bits: u32) -> Self::Wide;
    /// The magnitude's bits of the nearest element towards zero; at least [`Lane::INFINITY`] where that is not finite.
    fn towards_zero(value: Self::Wide) -> u32;
    /// Whether no element is closer than a small part of the step from one to the next, 2^-12 of it.
    fn is_apart(value: Self::Wide) -> bool;
    /// Whether the sign bit is set.
    fn is_negative(value: Self::Wide) -> bool;
}

/// Parts of the step from one element to the next, as a power of two.
const PART_BITS: u32 = 12;

macro_rules! lane {
    (
        $type:ty: $bits:ty, $infinity:expr, $single:expr, $halfway:expr, $narrow:expr;
        $wide:ty: $wide_bits:ty, $shift:expr, $scale:expr;
        $halves:ident: $singles:expr, $narrowed:expr, $is_quick:expr
    ) => {
        impl Lane for $type {
            type Wide = $wide;
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
            fn single(bits: u32) -> f32 {
                $single(bits)
            }

            #[inline(always)]
            fn halfway(value: f64) -> f32 {
                $halfway(value)
            }

            #[inline(always)]
            fn narrow(halfway: f32) -> u32 {
                $narrow(halfway)
            }

            #[inline(always)]
            fn singles(bits: &Bits, $halves: impl Halves) -> Singles {
                $singles(bits)
            }

            #[inline(always)]
            fn narrowed(halfway: &Singles, $halves: impl Halves) -> Bits {
                $narrowed(halfway)
            }

            #[inline(always)]
            fn wides(bits: &Bits, halves: impl Halves) -> Group<$wide> {
                each!(&Self::singles(bits, halves), <$wide>::from, 0.0)
            }

            #[inline(always)]
            fn nearests(values: &Group<$wide>, halves: impl Halves) -> Bits {
                Self::narrowed(&each!(values, |value| value as f32, 0.0), halves)
            }

            #[inline(always)]
            fn is_quick<H: Halves>() -> bool {
                $is_quick
            }

            #[inline(always)]
            fn margin(sum: $wide, change: $wide) -> $wide {
                (sum.abs() + change.abs()) * (2.0 * <$wide>::EPSILON) + <$wide>::MIN_POSITIVE
            }

            #[inline(always)]
            fn middles(magnitude: u32) -> [$wide; 2] {
                const HALF: $wide_bits = 1 << ($shift - 1);
                let value = <$wide_bits>::from(magnitude) << $shift;
                [value.wrapping_sub(HALF), value + HALF].map(|bits| <$wide>::from_bits(bits) * $scale)
            }

            #[inline(always)]
            fn widest(value: f64) -> $wide {
                value as $wide
            }

            #[inline(always)]
            fn with_sign_of(value: $wide, bits: u32) -> $wide {
                let sign = <$wide_bits>::from(bits & Self::SIGN) << (<$wide_bits>::BITS - <$bits>::BITS);
                <$wide>::from_bits(value.to_bits() ^ sign)
            }

            #[inline(always)]
            fn towards_zero(value: $wide) -> u32 {
                // Beyond all elements, and not so far that what is compared with it would overflow.
                const LIMIT: $wide_bits = 1 << 31;
                ((value.abs() / $scale).to_bits() >> $shift).min(LIMIT) as u32
            }

            #[inline(always)]
            fn is_apart(value: $wide) -> bool {
                // One part on both sides of an element has none of these bits once it is moved up by one.
                const PART: $wide_bits = 1 << ($shift - PART_BITS);
                const BEYOND: $wide_bits = (1 << $shift) - 2 * PART;
                ((value.abs() / $scale).to_bits() + PART) & BEYOND != 0
            }

            #[inline(always)]
            fn is_negative(value: $wide) -> bool {
                value.is_sign_negative()
            }
        }
    };
}

/// The difference between the significands of f32 and f16, in bits.
const F16_SHIFT: u32 = 13;
/// The difference between their exponents' biases.
const F16_REBIAS: u32 = 127 - 15;
/// The same as a factor.
const F16_SCALE: f32 = f32::from_bits((127 + F16_REBIAS) << 23);
const BF16_SHIFT: u32 = 16;
/// The difference between the significands of f64 and f32, in bits.
const F32_SHIFT: u32 = 29;
/// The difference between their exponents' biases, as a factor.
const F32_SCALE: f64 = f64::from_bits((1023 + 1023 - 127) << 52);

lane!(
    f32: u32, 0x7f80_0000, f32::from_bits, |value: f64| value as f32, f32::to_bits;
    f64: u64, F32_SHIFT, F32_SCALE;
    _halves: |bits: &Bits| each!(bits, f32::from_bits, 0.0), |values: &Singles| each!(values, f32::to_bits, 0), false
);
lane!(
    f16: u16, 0x7c00, f16_single, round_to_odd, f16_narrow;
    f32: u32, F16_SHIFT, F16_SCALE;
    halves: |bits| halves.singles(bits), |values| halves.bits(values), H::ARE_QUICK
);
lane!(
    bf16: u16, 0x7f80, bf16_single, round_to_odd, bf16_narrow;
    f32: u32, BF16_SHIFT, 1.0;
    _halves: |bits: &Bits| each!(bits, bf16_single, 0.0), |values: &Singles| each!(values, bf16_narrow, 0), true
);

/// The exponent is too small by the difference of the biases, for subnormal numbers as well as for others.
#[inline(always)]
pub(super) fn f16_single(bits: u32) -> f32 {
    let magnitude = f32::from_bits((bits & 0x7fff) << F16_SHIFT) * F16_SCALE;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Among normal numbers the cut-off bits carry into those that stay when they are more than half, or half and odd. A
/// subnormal number is added to one whose last bit is the type's smallest value, so that the addition rounds it.
#[inline(always)]
pub(super) fn f16_narrow(halfway: f32) -> u32 {
    const COARSE: f32 = 0.5;
    const SMALLEST_NORMAL: u32 = (F16_REBIAS + 1) << 23;
    let bits = halfway.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let carried = magnitude + ((1 << (F16_SHIFT - 1)) - 1) + ((magnitude >> F16_SHIFT) & 1);
    let normal = (carried >> F16_SHIFT).wrapping_sub(F16_REBIAS << 10).min(f16::INFINITY.to_bits().into());
    let subnormal = (f32::from_bits(magnitude) + COARSE).to_bits().wrapping_sub(COARSE.to_bits());
    let rounded = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    rounded | bits >> 31 << 15
}

#[inline(always)]
fn bf16_single(bits: u32) -> f32 {
    f32::from_bits(bits << BF16_SHIFT)
}

#[inline(always)]
fn bf16_narrow(halfway: f32) -> u32 {
    let bits = halfway.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let carried = magnitude + 0x7fff + ((magnitude >> 16) & 1);
    carried >> 16 | bits >> 31 << 15
}

/// [`Element::ordinal`].
#[inline(always)]
pub(super) fn ordinal<E: Lane>(bits: u32) -> i32 {
    let magnitude = (bits & E::MAGNITUDE) as i32;
    if bits & E::SIGN == 0 { magnitude } else { !magnitude }
}

/// [`Element::from_ordinal`].
#[inline(always)]
fn from_ordinal<E: Lane>(ordinal: i32) -> u32 {
    if ordinal < 0 { !ordinal as u32 | E::SIGN } else { ordinal as u32 }
}

#[inline(always)]
pub(super) fn is_finite<E: Lane>(bits: u32) -> bool {
    bits & E::MAGNITUDE < E::INFINITY
}

/// The ordinal of what the weight at a finite `number` becomes.
#[inline]
pub(in super::super) fn result<E: Lane>(number: i32, terms: &[f64]) -> i32 {
    let value = f64::from(E::single(from_ordinal::<E>(number)));
    ordinal::<E>(E::narrow(E::halfway(terms.iter().fold(value, |sum, term| sum + term))))
}

// ----------------------------------------------------------------------------------------------------- the steps --

/// Weights whose buffers fit the nearest cache; vectors of every width divide it.
pub(super) const GROUP: usize = 64;

pub(in super::super) type Bits = Group<u32>;
pub(in super::super) type Singles = Group<f32>;
pub(super) type Doubles = Group<f64>;

/// A number for each weight of a group, aligned so that no vector lies on two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in super::super) struct Group<T>([T; GROUP]);

impl<T: Copy> Group<T> {
    #[inline(always)]
    pub fn of(value: T) -> Self {
        Self([value; GROUP])
    }
}

impl<T> Deref for Group<T> {
    type Target = [T; GROUP];

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<T> DerefMut for Group<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl<'a, T> IntoIterator for &'a Group<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    #[inline(always)]
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// What `$step` makes of each; a loop in the caller's body, because a closure would not be compiled for its processor.
macro_rules! each {
    ($items:expr, $step:expr, $zero:expr) => {{
        let mut results = Group::of($zero);
        for (result, item) in results.iter_mut().zip($items) {
            *result = $step(*item);
        }
        results
    }};
}
pub(super) use each;

/// The values of `bits`.
#[inline(always)]
pub(super) fn values<E: Lane>(bits: &Bits, halves: impl Halves) -> Doubles {
    each!(&E::singles(bits, halves), f64::from, 0.0)
}

/// The bits of `values`, rounded; in two loops, so that each width fills its registers.
#[inline(always)]
fn rounded<E: Lane>(values: &Doubles, halves: impl Halves) -> Bits {
    E::narrowed(&each!(values, E::halfway, 0.0), halves)
}

/// What a single term makes of weights, from sums of the wide type; none where one of them is so near to where two
/// results part that only the exact sum tells.
///
/// Rounding never falls as its argument rises: where the least and the greatest number that the exact sum may be have
/// one result, that is its result as well.
#[inline(always)]
fn quickly_rounded<E: Lane, H: Halves>(before: &Bits, terms: Terms<'_>, halves: H) -> Option<Bits> {
    if !E::is_quick::<H>() || terms.count != 1 {
        return None;
    }
    let (mut least, mut greatest) = (Group::of(E::Wide::default()), Group::of(E::Wide::default()));
    let sums = E::wides(before, halves);
    let bounds = least.iter_mut().zip(greatest.iter_mut());
    for ((least, greatest), (weight, change)) in bounds.zip(sums.iter().zip(&change::<E>(terms))) {
        let sum = *weight + *change;
        let margin = E::margin(sum, *change);
        (*least, *greatest) = (sum - margin, sum + margin);
    }
    let (least, greatest) = (E::nearests(&least, halves), E::nearests(&greatest, halves));
    let mut differing = 0;
    for (least, greatest) in least.iter().zip(&greatest) {
        differing |= least ^ greatest;
    }
    (differing == 0).then_some(least)
}

/// The sum of the terms.
#[inline(always)]
pub(super) fn change<E: Lane>(terms: Terms<'_>) -> Group<E::Wide> {
    if terms.count == 1 {
        return each!(terms.term(0), E::widest, E::Wide::default());
    }
    let mut sums: Doubles = Group::of(0.0);
    for index in 0..terms.count {
        for (sum, delta) in sums.iter_mut().zip(terms.term(index)) {
            *sum += delta;
        }
    }
    each!(&sums, E::widest, E::Wide::default())
}

#[inline(always)]
fn add_terms(mut values: Doubles, terms: Terms<'_>) -> Doubles {
    for index in 0..terms.count {
        for (value, delta) in values.iter_mut().zip(terms.term(index)) {
            *value += delta;
        }
    }
    values
}

/// Replaces `targets` by `(row_scale * column_scale) * sum`.
#[inline(always)]
fn scale_stretch<S: Copy + Into<f64>>(
    _: impl Halves,
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
fn apply_stretch<E: Lane>(halves: impl Halves, bytes: &mut [u8], terms: Terms<'_>) -> Applied {
    let mut total = Applied::default();
    let groups = bytes.chunks_mut(GROUP * E::DTYPE.size_bytes()).zip(terms.groups());
    for (index, (bytes, terms)) in groups.enumerate() {
        if !apply_group::<E>(halves, bytes, terms, &mut total) {
            total.overflow_from = Some(index * GROUP);
            break;
        }
    }
    total
}

/// Changes nothing and says no where a finite weight would become infinite.
#[inline(always)]
fn apply_group<E: Lane>(
    halves: impl Halves,
    bytes: &mut [u8],
    terms: Terms<'_>,
    total: &mut Applied,
) -> bool {
    let mut before: Bits = Group::of(0);
    E::unpack(bytes, &mut *before);
    let mut after = match quickly_rounded::<E, _>(&before, terms, halves) {
        Some(after) => after,
        None => rounded::<E>(&add_terms(values::<E>(&before, halves), terms), halves),
    };
    let (mut not_finite, mut changed, mut overflowed) = (0_u32, 0_u32, 0_u32);
    for (before, after) in before.iter().zip(after.iter_mut()) {
        let finite = is_finite::<E>(*before);
        overflowed |= u32::from(finite & !is_finite::<E>(*after));
        not_finite += u32::from(!finite);
        *after = if finite { *after } else { *before };
        changed += u32::from(before != after);
    }
    if overflowed != 0 {
        return false;
    }
    E::pack(&*after, bytes);
    total.not_finite += u64::from(not_finite);
    total.changed += u64::from(changed);
    true
}

// ------------------------------------------------------------------------------------------- one for each machine --

/// Defines `$name` as `$body` compiled for what the kernel's processor has.
macro_rules! compiled_for_each {
    ($(#[$doc:meta])* $name:ident, $body:ident, <$generic:ident: $($bound:path),+>, ($($argument:ident: $type:ty),*) $(-> $result:ty)?) => {
        $(#[$doc])*
        #[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "only a check by the caller makes a function for other processors safe"))]
        pub(in super::super) fn $name<$generic: $($bound +)+>(kernel: Kernel, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$generic: $($bound +)+>($($argument: $type),*) $(-> $result)? {
                $body::<$generic>(super::halves::ByAvx512::new(), $($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$generic: $($bound +)+>($($argument: $type),*) $(-> $result)? {
                $body::<$generic>(super::halves::ByLoops, $($argument),*)
            }
            match kernel.supported() {
                // SAFETY: `supported` has asked the processor for what these kernels need.
                #[cfg(target_arch = "x86_64")]
                Kernel::Vnni | Kernel::Avx512 => unsafe { avx512::<$generic>($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Kernel::Avx2 => unsafe { avx2::<$generic>($($argument),*) },
                _ => $body::<$generic>(super::halves::ByLoops, $($argument),*),
            }
        }
    };
}

pub(super) use compiled_for_each;

compiled_for_each!(
    /// Replaces `targets` by `(row_scale * column_scale) * sum`.
    scale, scale_stretch, <S: Copy, Into<f64>>,
    (row_scale: f32, column_scales: &[f32], sums: &[S], targets: &mut [f64])
);
compiled_for_each!(
    /// Replaces weights by what the terms make of them.
    apply, apply_stretch, <E: Lane>, (bytes: &mut [u8], terms: Terms<'_>) -> Applied
);

#[cfg(test)]
mod tests {
    use super::super::super::samples::{Generator, kernels};
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
            let (expected, found) =
                (E::round(value).ordinal(), i64::from(ordinal::<E>(E::narrow(E::halfway(value)))));
            assert_eq!(expected, found, "{value:e} as {:?}", E::DTYPE);
        }
        let highest = E::round(f64::INFINITY).ordinal() - 1;
        let step = if E::DTYPE == Dtype::F32 { 65_521 } else { 1 };
        for number in (!highest..=highest).step_by(step) {
            let bits = from_ordinal::<E>(number as i32);
            assert_eq!(i64::from(ordinal::<E>(bits)), number);
            assert!(is_finite::<E>(bits));
            assert_eq!(f64::from(E::single(bits)).to_bits(), E::from_ordinal(number).to_f64().to_bits());
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

    /// A change of a weight; now and then it leads to within a few last places of f32 of where two results part.
    fn delta_of<E: Element>(weight: i64, generator: &mut Generator) -> f64 {
        let value = |number: i64| E::from_ordinal(number).to_f64();
        let after = weight + (generator.bits() % 7) as i64 - 3;
        let (low, high) = (value(after), value(after + 1));
        let part = match generator.bits() % 32 {
            0 => 0.5 * (low.abs() + high.abs()) * 2.0_f64.powi(-24) * (generator.gaussian() * 6.0).round(),
            _ => 0.4 * (high - low) * (2.0 * generator.uniform() - 1.0),
        };
        (low + high) / 2.0 + part - value(weight)
    }

    /// Enough groups for some to have nothing near a middle, and some to have that and nothing nearer.
    fn applied_as_the_sum_in_f64<E: Lane>() {
        let mut generator = Generator(7);
        let highest = E::round(f64::INFINITY).ordinal() as u64 - 8;
        for _ in 0..1000 {
            let weights: Vec<i64> = (0..STRETCH_MAX)
                .map(|_| (generator.bits() % highest) as i64 * [1, -1][(generator.bits() % 2) as usize])
                .collect();
            let deltas: Vec<f64> =
                weights.iter().map(|weight| delta_of::<E>(*weight, &mut generator)).collect();
            let written = |numbers: &mut dyn Iterator<Item = i64>| -> Vec<u8> {
                let mut bytes = vec![0; STRETCH_MAX * E::DTYPE.size_bytes()];
                let weights = bytes.chunks_exact_mut(E::DTYPE.size_bytes());
                weights.zip(numbers).for_each(|(bytes, number)| E::from_ordinal(number).write(bytes));
                bytes
            };
            let results = weights
                .iter()
                .zip(&deltas)
                .map(|(weight, delta)| E::round(E::from_ordinal(*weight).to_f64() + delta).ordinal());
            let (before, expected) = (written(&mut weights.iter().copied()), written(&mut { results }));
            let terms = Terms { deltas: &deltas, stride: STRETCH_MAX, length: STRETCH_MAX, count: 1 };
            for kernel in kernels() {
                let mut found = before.clone();
                apply::<E>(kernel, &mut found, terms);
                assert!(found == expected, "{kernel}");
            }
        }
    }

    #[test]
    fn f16_is_applied_as_the_sum_in_f64() {
        applied_as_the_sum_in_f64::<f16>();
    }

    #[test]
    fn bf16_is_applied_as_the_sum_in_f64() {
        applied_as_the_sum_in_f64::<bf16>();
    }
}
