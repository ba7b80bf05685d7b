//! Numbers of F16 and F32 into each other, a group at a time: the one step for which processors have an instruction
//! that no compiler makes of a loop.

use super::lanes::{Bits, Group, Singles, each, f16_narrow, f16_single};

/// One way to do it; all give the same for all that is finite.
pub(in super::super) trait Halves: Copy {
    /// Whether it takes an instruction or two, and not a dozen.
    const ARE_QUICK: bool;
    /// The values of bits of F16; anything for NaN and infinities.
    fn singles(self, bits: &Bits) -> Singles;
    /// Bits of the nearest number of F16, ties to even; an infinity's beyond the largest.
    fn bits(self, singles: &Singles) -> Bits;
}

/// For every processor.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByLoops;

impl Halves for ByLoops {
    const ARE_QUICK: bool = false;

    #[inline(always)]
    fn singles(self, bits: &Bits) -> Singles {
        each!(bits, f16_single, 0.0)
    }

    #[inline(always)]
    fn bits(self, singles: &Singles) -> Bits {
        each!(singles, f16_narrow, 0)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx512::ByAvx512;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector loads and stores take pointers")]
mod avx512 {
    use std::arch::x86_64::{
        _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_cvtepi32_epi16, _mm512_cvtepu16_epi32,
        _mm512_cvtph_ps, _mm512_cvtps_ph, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_storeu_ps,
        _mm512_storeu_si512,
    };

    use super::{Bits, Group, Halves, Singles};

    /// Numbers of a register.
    const LANES: usize = 16;

    /// By the instructions of AVX-512; whoever has one runs on a processor that has them.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct ByAvx512(());

    impl ByAvx512 {
        #[target_feature(enable = "avx512f")]
        #[inline]
        pub(in super::super) fn new() -> Self {
            Self(())
        }
    }

    impl Halves for ByAvx512 {
        const ARE_QUICK: bool = true;

        #[inline(always)]
        fn singles(self, bits: &Bits) -> Singles {
            // SAFETY: the processor has AVX-512 F, because there is a `self`.
            unsafe { singles(bits) }
        }

        #[inline(always)]
        fn bits(self, singles: &Singles) -> Bits {
            // SAFETY: as above.
            unsafe { bits(singles) }
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn singles(bits: &Bits) -> Singles {
        let mut singles: Singles = Group::of(0.0);
        let registers = bits.as_chunks::<LANES>().0.iter().zip(singles.as_chunks_mut::<LANES>().0);
        for (bits, singles) in registers {
            // SAFETY: both hold as many numbers as a register.
            unsafe {
                let halves = _mm512_cvtepi32_epi16(_mm512_loadu_si512(bits.as_ptr().cast()));
                _mm512_storeu_ps(singles.as_mut_ptr(), _mm512_cvtph_ps(halves));
            }
        }
        singles
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn bits(singles: &Singles) -> Bits {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        let mut bits: Bits = Group::of(0);
        let registers = singles.as_chunks::<LANES>().0.iter().zip(bits.as_chunks_mut::<LANES>().0);
        for (singles, bits) in registers {
            // SAFETY: both hold as many numbers as a register.
            unsafe {
                let halves = _mm512_cvtps_ph::<NEAREST>(_mm512_loadu_ps(singles.as_ptr()));
                _mm512_storeu_si512(bits.as_mut_ptr().cast(), _mm512_cvtepu16_epi32(halves));
            }
        }
        bits
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::super::super::samples::kernels;
    use super::super::Kernel;
    use super::super::lanes::GROUP;
    use super::*;

    /// All of F16, and singles at and around all of it and all middles.
    #[expect(unsafe_code, reason = "the processor is asked first")]
    #[test]
    fn the_processor_converts_as_the_loops_do() {
        #[target_feature(enable = "avx512f")]
        fn compare() {
            let finite: Vec<u32> =
                (0..0x7c00).flat_map(|magnitude| [magnitude, magnitude | 0x8000]).collect();
            for group in finite.chunks_exact(GROUP) {
                let mut bits: Bits = Group::of(0);
                bits.copy_from_slice(group);
                let (expected, found) = (ByLoops.singles(&bits), ByAvx512::new().singles(&bits));
                assert_eq!(expected.map(f32::to_bits), found.map(f32::to_bits));
                let half_step = expected.map(f32::to_bits).map(|bits| f32::from_bits(bits | 0x1000));
                for offset in -2..=2 {
                    for middle in [*expected, half_step] {
                        let mut singles: Singles = Group::of(0.0);
                        *singles =
                            middle.map(|single| f32::from_bits(single.to_bits().wrapping_add_signed(offset)));
                        let (expected, found) = (ByLoops.bits(&singles), ByAvx512::new().bits(&singles));
                        let is_number = |index: &usize| !singles[*index].is_nan();
                        for index in (0..GROUP).filter(is_number) {
                            assert_eq!(expected[index], found[index], "{:e}", singles[index]);
                        }
                    }
                }
            }
        }
        if kernels().any(|kernel| kernel == Kernel::Avx512) {
            // SAFETY: it is available.
            unsafe { compare() }
        }
    }
}
