//! What the machine could do: the multiplications of a kernel with everything in registers.
//!
//! A benchmark times this beside the real product. It is the same instruction as often as registers allow, so no
//! kernel that has to load its numbers gets past it.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "only a check by the caller makes a function for other processors safe")
)]

use super::Kernel;

impl Kernel {
    /// Multiplies `rounds` times as much as fits in registers, on this thread, and returns the number of products that
    /// were summed; none where this kernel has no instruction of its own, or the processor lacks it.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(unused_variables, reason = "no instruction is measured here")
    )]
    pub fn multiply_in_registers(self, rounds: u64) -> Option<u64> {
        if !self.is_available() {
            return None;
        }
        match self {
            // SAFETY: the processor has what these ask for.
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => Some(unsafe { x86::vnni(rounds) }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Some(unsafe { x86::avx512(rounds) }),
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Some(unsafe { x86::avx2(rounds) }),
            // SAFETY: asked here.
            #[cfg(target_arch = "x86_64")]
            Self::Blocked if Self::Avx512.is_available() => Some(unsafe { x86::floats(rounds) }),
            _ => None,
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_epi32, _mm256_madd_epi16, _mm256_set1_epi16, _mm256_setzero_si256, _mm512_add_epi32,
        _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_madd_epi16, _mm512_set1_epi8, _mm512_set1_epi16,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    };
    use std::hint::black_box;

    /// Sums that do not wait for each other.
    const SUMS: usize = 12;

    macro_rules! rounds {
        ($(#[$doc:meta])* $name:ident, $features:literal, $zero:expr, $operand:expr, $products:literal, $step:expr) => {
            $(#[$doc])*
            #[target_feature(enable = $features)]
            pub(super) fn $name(rounds: u64) -> u64 {
                let mut sums = [$zero; SUMS];
                let operand = black_box($operand);
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $step(*sum, operand);
                    }
                }
                black_box(sums);
                rounds * SUMS as u64 * $products
            }
        };
    }

    rounds!(
        /// 64 products of bytes by one instruction.
        vnni, "avx512f,avx512bw,avx512vnni", _mm512_setzero_si512(), _mm512_set1_epi8(3), 64,
        |sum, operand| _mm512_dpbusd_epi32(sum, operand, operand)
    );
    rounds!(
        /// 32 products of words by one instruction, and their addition.
        avx512, "avx512f,avx512bw", _mm512_setzero_si512(), _mm512_set1_epi16(3), 32,
        |sum, operand| _mm512_add_epi32(sum, _mm512_madd_epi16(sum, operand))
    );
    rounds!(
        /// 16 products of words by one instruction, and their addition.
        avx2, "avx2", _mm256_setzero_si256(), _mm256_set1_epi16(3), 16,
        |sum, operand| _mm256_add_epi32(sum, _mm256_madd_epi16(sum, operand))
    );
    rounds!(
        /// 16 products of f32 by one fused instruction.
        floats, "avx512f", _mm512_setzero_ps(), _mm512_set1_ps(1.0), 16,
        |sum, operand| _mm512_fmadd_ps(operand, operand, sum)
    );
}
