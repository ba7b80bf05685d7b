//! How large a change is beside the weights that it changes: the ratio that a patch states for each tensor.

use rayon::prelude::*;

use crate::factors::{relative_norm, sums_of_squares};
use crate::tensor::{Dtype, Element};

/// Weights whose squares one thread adds up.
const PART_WEIGHTS: usize = 1 << 16;

/// What two computations of one ratio may differ by, relative to it.
///
/// The ratio is that of the bytes before and after, so nothing is uncertain but the order in which squares are added
/// up. Any order in f64 gives a sum of `n` of them to within `n * 2^-53` of itself, and a ratio of two roots of such
/// sums to the same; so two programs agree to within `n * 2^-52`, which is less than this up to 2^32 weights.
const TOLERANCE: f64 = 1e-6;

/// Whether a patch may state `claimed` where the weights give `found`.
pub(crate) fn is_stated_truly(claimed: f64, found: f64) -> bool {
    claimed == found || (found.is_finite() && (claimed - found).abs() <= TOLERANCE * found)
}

/// Squared Frobenius norms, over finite weights.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Norms {
    before: f64,
    change: f64,
}

/// Weights that are NaN or infinite.
#[derive(Debug, Default)]
pub(super) struct Broken {
    pub(super) count: u64,
    pub(super) first: Option<usize>,
}

impl Norms {
    /// Adds a block, weight after weight: the same sum on every machine.
    pub(super) fn add<E: Element>(&mut self, before: &[u8], after: &[u8]) -> Broken {
        let size_bytes = E::DTYPE.size_bytes();
        let mut broken = Broken::default();
        let pairs = before.chunks_exact(size_bytes).zip(after.chunks_exact(size_bytes));
        for (index, (before, after)) in pairs.enumerate() {
            let (before, after) = (E::read(before), E::read(after));
            if !before.is_finite() {
                broken.count += 1;
                broken.first.get_or_insert(index);
                continue;
            }
            let (before, after) = (before.to_f64(), after.to_f64());
            self.before += before * before;
            // Only a correction makes a weight infinite or NaN, and then it has no norm.
            if !after.is_finite() {
                continue;
            }
            self.change += (after - before) * (after - before);
        }
        broken
    }

    /// As [`Norms::add`], a part on each thread; the order of the sums does not depend on how many there are.
    pub(crate) fn add_parts(&mut self, dtype: Dtype, before: &[u8], after: &[u8]) {
        let size_bytes = PART_WEIGHTS * dtype.size_bytes();
        let parts = before.par_chunks(size_bytes).zip(after.par_chunks(size_bytes));
        let parts: Vec<[f64; 2]> =
            parts.map(|(before, after)| sums_of_squares(dtype, before, after)).collect();
        for [before, change] in parts {
            self.before += before;
            self.change += change;
        }
    }

    /// `norm(change) / norm(before)`; infinite for a change of nothing but zeros.
    pub(crate) fn ratio(&self) -> f64 {
        relative_norm(self.change, self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::with_element;

    #[test]
    fn the_norm_ratio_of_nothing_is_zero() {
        assert_eq!(Norms::default().ratio(), 0.0);
        assert_eq!(Norms { before: 4.0, change: 1.0 }.ratio(), 0.5);
        assert_eq!(Norms { before: 0.0, change: 1.0 }.ratio(), f64::INFINITY);
    }

    #[test]
    fn broken_weights_are_counted_and_kept_out_of_the_norms() {
        let bytes = |values: [f32; 4]| values.map(f32::to_le_bytes).concat();
        let mut norms = Norms::default();
        let before = bytes([1.0, f32::NAN, f32::INFINITY, 2.0]);
        let broken = norms.add::<f32>(&before, &bytes([1.0, f32::NAN, f32::INFINITY, 3.0]));
        assert_eq!((broken.count, broken.first), (2, Some(1)));
        assert_eq!((norms.before, norms.change), (5.0, 1.0));
    }

    #[test]
    fn parts_give_the_norms_of_the_whole() {
        // All bit patterns of a half, NaN and infinities among them.
        let weights: Vec<u8> =
            (0..4 * PART_WEIGHTS as u32 + 6).flat_map(|at| (at as u16).to_le_bytes()).collect();
        let changed: Vec<u8> =
            (0..4 * PART_WEIGHTS as u32 + 6).flat_map(|at| (at as u16 ^ 5).to_le_bytes()).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            let (mut whole, mut parts) = (Norms::default(), Norms::default());
            with_element!(dtype, E => whole.add::<E>(&weights, &changed));
            parts.add_parts(dtype, &weights, &changed);
            assert!(is_stated_truly(whole.ratio(), parts.ratio()), "{dtype}");
            let sums = [(parts.before, whole.before), (parts.change, whole.change)];
            assert!(
                sums.iter().all(|(one, other)| *one > 0.0 && (one - other).abs() <= 1e-12 * other),
                "{dtype}: {sums:?}"
            );
        }
    }

    #[test]
    fn a_ratio_is_true_but_for_the_order_of_its_sums() {
        for (claimed, found) in [(0.0, 0.0), (f64::INFINITY, f64::INFINITY), (0.1, 0.1 + 1e-9)] {
            assert!(is_stated_truly(claimed, found), "{claimed} {found}");
        }
        for (claimed, found) in [
            (1e-9, 0.0),
            (0.0, 1e-9),
            (1e300, 0.1),
            (0.1, f64::INFINITY),
            (f64::INFINITY, 0.1),
            (0.1, 0.100_001),
        ] {
            assert!(!is_stated_truly(claimed, found), "{claimed} {found}");
        }
    }
}
