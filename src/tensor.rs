//! Tensors as a patch speaks of them: names, element types, and the one rounding that the format allows.
//!
//! [`Element`] carries what the arithmetic of a patch needs of a floating type: its exact value in f64, correct
//! rounding from f64 (to nearest, ties to even), and its *ordinal*, a signed integer that orders all bit patterns
//! of the type as their values are ordered (with −0 just below +0), so that "the next weight up" is `+ 1`.

use std::fmt;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// Element type of a tensor that a patch can touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
}

impl Dtype {
    /// Size of one element in bytes.
    pub const fn size_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// The name that safetensors uses.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
        }
    }

    /// The type that safetensors calls `name`, or none when a patch cannot touch such a tensor.
    pub fn from_name(name: &str) -> Option<Self> {
        [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The rows and columns of a tensor of `shape`, as a patch counts them; none where it has more dimensions, or none.
pub(crate) fn matrix_shape(shape: &[u64]) -> Option<[u64; 2]> {
    match *shape {
        [columns] => Some([1, columns]),
        [rows, columns] => Some([rows, columns]),
        _ => None,
    }
}

/// A floating type whose weights a patch can change exactly.
pub trait Element: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// The type's name in the format.
    const DTYPE: Dtype;
    /// Reads one element from its little-endian bytes; `bytes` holds exactly [`Dtype::size_bytes`].
    fn read(bytes: &[u8]) -> Self;
    /// Writes the element's little-endian bytes.
    fn write(self, bytes: &mut [u8]);
    /// The exact value; NaN for NaN.
    fn to_f64(self) -> f64;
    /// Rounds to nearest, ties to even, with gradual underflow; beyond the range gives an infinity.
    fn round(value: f64) -> Self;
    /// Position among all bit patterns: negative values below zero, `-0.0` is -1, `+0.0` is 0.
    fn ordinal(self) -> i64;
    /// The element at `ordinal`, which must come from within the type's range of ordinals.
    fn from_ordinal(ordinal: i64) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
}

/// Rounds to f32 so that a second rounding to a narrower type is as good as one from f64.
///
/// Rounding to odd keeps the sticky bit: truncate, then set the last bit if anything was cut off.
/// (`half`'s own conversions from f64 drop the low half of the significand first and round some ties wrongly.)
///
/// Without branches, for loops over many values.
#[inline(always)]
pub(crate) fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    // Magnitudes order as their bits do, so one less is one step towards zero; an overflow steps back to f32::MAX.
    let truncated = nearest.to_bits().wrapping_sub(u32::from(back.abs() > value.abs()));
    // Neither NaN nor an infinity differs from itself by an order.
    let cut_off = (back < value) | (back > value);
    f32::from_bits(truncated | u32::from(cut_off))
}

macro_rules! element {
    ($type:ty, $dtype:expr, $bits:ty, $signed:ty, $round:expr, $to_f64:expr) => {
        impl Element for $type {
            const DTYPE: Dtype = $dtype;

            #[inline]
            fn read(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$bits>()];
                raw.copy_from_slice(bytes);
                <$type>::from_bits(<$bits>::from_le_bytes(raw))
            }

            #[inline]
            fn write(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_bits().to_le_bytes());
            }

            #[inline]
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }

            #[inline]
            fn round(value: f64) -> Self {
                $round(value)
            }

            #[inline]
            fn ordinal(self) -> i64 {
                let bits = self.to_bits() as $signed;
                // A negative number's magnitude bits count downwards from -1.
                i64::from(if bits < 0 { !(bits & <$signed>::MAX) } else { bits })
            }

            #[inline]
            fn from_ordinal(ordinal: i64) -> Self {
                let ordinal = ordinal as $signed;
                let bits = if ordinal < 0 { !ordinal | <$signed>::MIN } else { ordinal };
                <$type>::from_bits(bits as $bits)
            }

            #[inline]
            fn is_finite(self) -> bool {
                <$type>::is_finite(self)
            }
        }
    };
}

element!(f32, Dtype::F32, u32, i32, |value: f64| value as f32, |value: f32| f64::from(value));
element!(f16, Dtype::F16, u16, i16, |value: f64| f16::from_f32(round_to_odd(value)), |value: f16| f64::from(
    value.to_f32()
));
element!(bf16, Dtype::BF16, u16, i16, |value: f64| bf16::from_f32(round_to_odd(value)), |value: bf16| {
    f64::from(value.to_f32())
});

/// Runs `$body` with the type `$element` standing for the Rust type of a [`Dtype`].
#[macro_export]
#[doc(hidden)]
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::Dtype::F32 => {
                type $element = f32;
                $body
            }
            $crate::tensor::Dtype::F16 => {
                type $element = half::f16;
                $body
            }
            $crate::tensor::Dtype::BF16 => {
                type $element = half::bf16;
                $body
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 16-bit pattern is where its ordinal says, and rounding its exact value gives it back.
    fn all_sixteen_bit_patterns<E: Element>() {
        let mut previous: Option<f64> = None;
        for ordinal in i64::from(i16::MIN)..=i64::from(i16::MAX) {
            let element = E::from_ordinal(ordinal);
            assert_eq!(element.ordinal(), ordinal);
            let value = element.to_f64();
            if value.is_nan() {
                continue;
            }
            assert_eq!(E::round(value).to_f64(), value);
            if let Some(previous) = previous {
                assert!(previous <= value, "ordinal {ordinal} is out of order");
            }
            previous = Some(value);
        }
    }

    /// Between two neighbours the nearer wins, whatever lies far below the narrow type's last bit.
    fn rounding_is_to_nearest_even<E: Element>() {
        for ordinal in (0..0x7bff).step_by(7) {
            let (low, high) = (E::from_ordinal(ordinal).to_f64(), E::from_ordinal(ordinal + 1).to_f64());
            if !high.is_finite() {
                break;
            }
            let middle = (low + high) / 2.0;
            let even = if ordinal % 2 == 0 { low } else { high };
            assert_eq!(E::round(middle).to_f64(), even);
            assert_eq!(E::round(middle.next_up()).to_f64(), high);
            assert_eq!(E::round(middle.next_down()).to_f64(), low);
            assert_eq!(E::round(-middle.next_up()).to_f64(), -high);
        }
    }

    #[test]
    fn f16_ordinals_and_rounding() {
        all_sixteen_bit_patterns::<f16>();
        rounding_is_to_nearest_even::<f16>();
        assert!(!Element::is_finite(<f16 as Element>::round(65520.0)));
        assert_eq!(<f16 as Element>::round(65_519.999_999).to_f64(), 65504.0);
    }

    #[test]
    fn bf16_ordinals_and_rounding() {
        all_sixteen_bit_patterns::<bf16>();
        rounding_is_to_nearest_even::<bf16>();
        assert!(!Element::is_finite(<bf16 as Element>::round(f64::MAX)));
    }

    #[test]
    fn f32_ordinals_step_through_zero() {
        assert_eq!(Element::ordinal(-0.0_f32), -1);
        assert_eq!(Element::ordinal(0.0_f32), 0);
        assert_eq!(<f32 as Element>::from_ordinal(-2), -f32::from_bits(1));
        assert_eq!(Element::ordinal(f32::NEG_INFINITY), -0x7f80_0001);
    }
}
