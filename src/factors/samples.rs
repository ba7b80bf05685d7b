//! Random terms and weights for the tests of this room.

use std::sync::Once;

use proptest::prelude::*;

use super::telling::skipped;
use super::{IntegerMatrix, Integers, Kernel, Term, magnitude_limit};
use crate::tensor::{Dtype, Element};

/// A small generator for bulk values, so that a test of many weights needs no strategy.
pub(super) struct Generator(pub u64);

impl Generator {
    /// SplitMix64.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Close enough to a standard normal: the sum of twelve uniforms, less its mean.
    pub fn gaussian(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    pub fn integers(&mut self, rows: usize, columns: usize, bits: u8) -> IntegerMatrix {
        let limit = i64::from(magnitude_limit(bits));
        let mut value = || (self.bits() >> 1) as i64 % (2 * limit + 1) - limit;
        let values = (0..rows * columns).map(|_| value() as i16).collect();
        IntegerMatrix::new("sample", rows, columns, bits, values).unwrap()
    }

    /// Scales of about `2^exponent`, some of them zero.
    pub fn scales(&mut self, count: usize, exponent: i32) -> Vec<f32> {
        let mut scale = || match self.bits() % 16 {
            0 => 0.0,
            _ => ((0.5 + self.uniform()) * 2.0_f64.powi(exponent)) as f32,
        };
        (0..count).map(|_| scale()).collect()
    }

    pub fn term(
        &mut self,
        rows: usize,
        columns: usize,
        rank: Option<usize>,
        bits: u8,
        exponent: i32,
    ) -> Term {
        let integers = match rank {
            Some(rank) => Integers::LowRank {
                left: self.integers(rows, rank, bits),
                right: self.integers(rank, columns, bits),
            },
            None => Integers::Dense(self.integers(rows, columns, bits)),
        };
        let row_scales = self.scales(rows, exponent / 2);
        let column_scales = self.scales(columns, exponent - exponent / 2);
        Term::new(integers, row_scales, column_scales).unwrap()
    }
}

/// The kernels that this processor has. One that it lacks would be tested as the one that stands in for it, so it is
/// left out, and named once.
pub(super) fn kernels() -> impl Iterator<Item = Kernel> {
    static NAMED: Once = Once::new();
    let lacking = Kernel::ALL.into_iter().filter(|kernel| !kernel.is_available());
    NAMED.call_once(|| {
        lacking.for_each(|kernel| skipped(&format!("the kernel {kernel} is not for this processor")))
    });
    Kernel::ALL.into_iter().filter(|kernel| kernel.is_available())
}

/// Bytes of weights from values.
pub(super) fn weights<E: Element>(values: impl IntoIterator<Item = f64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        let start = bytes.len();
        bytes.resize(start + E::DTYPE.size_bytes(), 0);
        E::round(value).write(&mut bytes[start..]);
    }
    bytes
}

/// One to three terms of any kind, all of one size.
pub(super) fn terms() -> impl Strategy<Value = Vec<Term>> {
    let term = (any::<u64>(), proptest::option::of(1..5_usize), 2..=16_u8, -60..6_i32);
    (1..6_usize, 1..9_usize, proptest::collection::vec(term, 1..=3)).prop_map(|(rows, columns, terms)| {
        let term = |(seed, rank, bits, exponent)| Generator(seed).term(rows, columns, rank, bits, exponent);
        terms.into_iter().map(term).collect()
    })
}

/// Terms and weights of any bit pattern for them: NaN, infinities, both zeros, subnormals and huge values.
pub(super) fn terms_and_weights(dtype: Dtype) -> impl Strategy<Value = (Vec<Term>, Vec<u8>)> {
    (terms(), any::<u64>()).prop_map(move |(terms, seed)| {
        let mut generator = Generator(seed);
        let mut weights = Vec::new();
        for _ in 0..terms[0].rows() * terms[0].columns() {
            let bits = match generator.bits() % 8 {
                0 => 0,
                1 | 2 => generator.bits() % 4,
                // The exponent's bits all set, or the upper ones: infinities, NaN and the largest values.
                3 => generator.bits() | 0x7000_7000_7000_7000,
                _ => generator.bits(),
            };
            weights.extend_from_slice(&bits.to_le_bytes()[..dtype.size_bytes()]);
        }
        // Signs of their own, so that -0 is met as often as +0.
        for weight in weights.chunks_exact_mut(dtype.size_bytes()) {
            weight[dtype.size_bytes() - 1] ^= (generator.bits() as u8) & 0x80;
        }
        (terms, weights)
    })
}
