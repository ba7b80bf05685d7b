//! The weights that one edited weight may come from: an interval of ordinals, found by asking what becomes of them.

use std::ops::Range;

use super::super::kernels::{Lane, result};

/// The function from a weight's ordinal to the ordinal of its result, and the ordinals it is defined on.
pub(super) struct Forward<'a, E> {
    terms: &'a [f64],
    lowest: i64,
    highest: i64,
    element: std::marker::PhantomData<E>,
}

impl<'a, E: Lane> Forward<'a, E> {
    pub fn new(terms: &'a [f64]) -> Self {
        Self {
            terms,
            lowest: E::round(f64::NEG_INFINITY).ordinal() + 1,
            highest: E::round(f64::INFINITY).ordinal() - 1,
            element: std::marker::PhantomData,
        }
    }

    #[inline]
    pub fn result(&self, ordinal: i64) -> i64 {
        // Ordinals of every type fit an i32; the search goes one past them.
        result::<E>(ordinal as i32, self.terms).into()
    }

    /// The ordinals whose result is `after`, given a `guess` that is among them or near them; may be empty.
    #[inline]
    pub fn interval(&self, after: i64, guess: i64) -> Range<i64> {
        let low = self.first_at_least(after, guess);
        // The result of `low` is known to reach `after`, so the search upwards begins at the larger of the two.
        let end = self.first_at_least(after + 1, guess.max(low).min(self.highest));
        low..end
    }

    /// The smallest ordinal whose result is at least `target`, or one past the highest when there is none.
    ///
    /// Doubles its step away from `start` until the target is passed, then halves the bracket: two evaluations
    /// where the guess is right, a few dozen at the worst.
    #[inline]
    fn first_at_least(&self, target: i64, start: i64) -> i64 {
        let (mut below, mut reached, mut step) = (start, start, 1);
        if self.result(start) >= target {
            loop {
                if reached == self.lowest {
                    return reached;
                }
                below = self.lowest.max(reached - step);
                if self.result(below) < target {
                    break;
                }
                reached = below;
                step *= 2;
            }
        } else {
            loop {
                if below == self.highest {
                    return below + 1;
                }
                reached = self.highest.min(below + step);
                if self.result(reached) >= target {
                    break;
                }
                below = reached;
                step *= 2;
            }
        }
        while reached - below > 1 {
            let middle = below + (reached - below) / 2;
            if self.result(middle) >= target { reached = middle } else { below = middle }
        }
        reached
    }

    /// Where to look for the weight that became `after`: its value less the update, in range.
    #[inline]
    pub fn guess(&self, after: E) -> i64 {
        let value = self.terms.iter().rev().fold(after.to_f64(), |value, term| value - term);
        E::round(value).ordinal().clamp(self.lowest, self.highest)
    }
}

/// The ordinals of the weights that become `after`; may be empty.
pub(super) fn interval_of<E: Lane>(after: E, terms: &[f64]) -> Range<i64> {
    let forward = Forward::<E>::new(terms);
    forward.interval(after.ordinal(), forward.guess(after))
}

/// Calls `visit` with the places where `counts` has anything but 1; eight of them at a time, for there are few.
pub(super) fn for_each_not_one(counts: &[u8], mut visit: impl FnMut(usize)) {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let (eights, rest) = counts.as_chunks::<8>();
    for (index, eight) in eights.iter().enumerate() {
        let mut left = u64::from_le_bytes(*eight) ^ ONES;
        while left != 0 {
            let place = left.trailing_zeros() / 8;
            visit(8 * index + place as usize);
            left &= !(0xff << (8 * place));
        }
    }
    (8 * eights.len()..).zip(rest).filter(|(_, count)| **count != 1).for_each(|(place, _)| visit(place));
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::super::kernels::{Kernel, LOOK, Members, STRETCH_MAX, Terms, log, restore};
    use super::super::super::samples::{Generator, kernels};
    use super::*;

    /// Compares intervals with the enumeration of all ordinals of a type of 16 bits.
    fn intervals_agree_with_enumeration<E: Lane>(seed: u64) {
        let mut generator = Generator(seed);
        for _ in 0..30 {
            let terms: Vec<f64> = (0..1 + generator.bits() % 3)
                .map(|_| generator.gaussian() * 2.0_f64.powi((generator.bits() % 50) as i32 - 35))
                .collect();
            let forward = Forward::<E>::new(&terms);
            let results: Vec<i64> =
                (forward.lowest..=forward.highest).map(|ordinal| forward.result(ordinal)).collect();
            assert!(results.is_sorted(), "the result falls somewhere for {terms:?}");
            let span = (forward.highest - forward.lowest) as u64;
            for target in 0..300 {
                let target = match target {
                    0 => -1,
                    1 => 0,
                    2 => forward.lowest,
                    3 => forward.highest,
                    _ => forward.lowest + (generator.bits() % span) as i64,
                };
                let expected = results.partition_point(|result| *result < target) as i64
                    ..results.partition_point(|result| *result <= target) as i64;
                let expected = expected.start + forward.lowest..expected.end + forward.lowest;
                let guess = forward.guess(E::from_ordinal(target));
                assert_eq!(forward.interval(target, guess), expected, "{terms:?}, {target}");
                let guess = forward.lowest + (generator.bits() % span) as i64;
                assert_eq!(forward.interval(target, guess), expected, "{terms:?}, {target}, bad guess");
            }
        }
    }

    #[test]
    fn f16_intervals_agree_with_enumeration() {
        intervals_agree_with_enumeration::<f16>(1);
    }

    #[test]
    fn bf16_intervals_agree_with_enumeration() {
        intervals_agree_with_enumeration::<bf16>(2);
    }

    /// Weights, each with its own of `terms`: what [`restore`] and [`log`] are certain of is what the search finds.
    /// Returns how many weights they leave to the search.
    fn weights_are_found<E: Lane>(kernel: Kernel, weights: &[i64], terms: Terms<'_>) -> usize {
        let size_bytes = E::DTYPE.size_bytes();
        let terms_of: Vec<Vec<f64>> = (0..weights.len())
            .map(|index| {
                let mut found = Vec::new();
                terms.of(index, &mut found);
                found
            })
            .collect();
        let forward: Vec<_> = terms_of.iter().map(|terms| Forward::<E>::new(terms)).collect();
        let results: Vec<i64> =
            weights.iter().zip(&forward).map(|(weight, forward)| forward.result(*weight)).collect();
        let bytes_of = |ordinals: &[i64]| {
            let mut bytes = vec![0; size_bytes * ordinals.len()];
            for (bytes, ordinal) in bytes.chunks_exact_mut(size_bytes).zip(ordinals) {
                E::from_ordinal(*ordinal).write(bytes);
            }
            bytes
        };
        let (before, after, length) = (bytes_of(weights), bytes_of(&results), weights.len());
        let (mut restored, mut counts) = (after.clone(), vec![0; length]);
        restore::<E>(kernel, &mut restored, terms, &mut counts);
        let (mut logged, mut logged_counts, mut indices) = (before.clone(), vec![0; length], vec![0; length]);
        let members = Members { counts: &mut logged_counts, indices: &mut indices };
        log::<E>(kernel, &mut logged, terms, members);
        let mut looked = 0;
        for (index, forward) in forward.iter().enumerate() {
            let bytes = size_bytes * index..size_bytes * (index + 1);
            let (terms, weight, result) = (forward.terms, weights[index], results[index]);
            if logged_counts[index] == LOOK {
                assert_eq!(
                    &logged[bytes.clone()],
                    &before[bytes.clone()],
                    "{kernel}: {weight} and {terms:?}"
                );
                looked += 1;
            } else {
                assert_eq!(&logged[bytes.clone()], &after[bytes.clone()], "{kernel}: {weight} and {terms:?}");
                assert_eq!(logged_counts[index], counts[index], "{kernel}: {weight} and {terms:?}");
            }
            if !(forward.lowest..=forward.highest).contains(&result) {
                assert_eq!(
                    (logged_counts[index], counts[index]),
                    (LOOK, 1),
                    "{kernel}: {weight} and {terms:?}"
                );
                assert_eq!(&restored[bytes.clone()], &after[bytes]);
                continue;
            }
            let lowest = E::read(&restored[bytes]).ordinal();
            if counts[index] == LOOK {
                assert_eq!(lowest, result, "{kernel}: {weight} and {terms:?}");
                continue;
            }
            let found = lowest..lowest + i64::from(counts[index]);
            assert_eq!(found, forward.interval(result, weight), "{kernel}: {weight} and {terms:?}");
            if logged_counts[index] != LOOK {
                assert_eq!(lowest + i64::from(indices[index]), weight, "{kernel}: {terms:?}");
            }
        }
        looked
    }

    /// The same with weights `step` apart that all have the same terms.
    fn all_weights_are_found<E: Lane>(kernel: Kernel, step: usize, terms: &[f64]) -> usize {
        let forward = Forward::<E>::new(terms);
        let weights: Vec<i64> = (forward.lowest..=forward.highest).step_by(step).collect();
        let deltas: Vec<f64> = terms.iter().flat_map(|term| [*term; STRETCH_MAX]).collect();
        let looked = weights.chunks(STRETCH_MAX).map(|weights| {
            let (stride, length, count) = (STRETCH_MAX, weights.len(), terms.len());
            weights_are_found::<E>(kernel, weights, Terms { deltas: &deltas, stride, length, count })
        });
        looked.sum()
    }

    /// A weight and a change that leads it so near to where two results part that arithmetic of fewer bits misses the
    /// side.
    fn near_an_edge<E: Lane>(generator: &mut Generator) -> (i64, f64) {
        let significand_bits = E::INFINITY.trailing_zeros();
        let highest = E::round(f64::INFINITY).ordinal() - 2;
        let weight = (generator.bits() % highest as u64) as i64;
        let exponents = (generator.bits() % 28) as i64 - 4;
        let sign = if generator.bits().is_multiple_of(4) { -1.0 } else { 1.0 };
        let after = (weight + (exponents << significand_bits)).clamp(0, highest);
        let [from, after, next] = [weight, after, after + 1].map(|ordinal| E::from_ordinal(ordinal).to_f64());
        let miss = -f64::from(significand_bits + 6 + (generator.bits() % 15) as u32);
        (weight, sign * (after + next) / 2.0 - from + generator.gaussian() * from * miss.exp2())
    }

    fn weights_near_edges_are_found<E: Lane>() {
        let mut generator = Generator(4);
        for _ in 0..1000 {
            let (weights, deltas): (Vec<i64>, Vec<f64>) =
                (0..STRETCH_MAX).map(|_| near_an_edge::<E>(&mut generator)).unzip();
            let terms = Terms { deltas: &deltas, stride: STRETCH_MAX, length: STRETCH_MAX, count: 1 };
            kernels().for_each(|kernel| _ = weights_are_found::<E>(kernel, &weights, terms));
        }
    }

    #[test]
    fn weights_near_edges_are_found_for_f16() {
        weights_near_edges_are_found::<f16>();
    }

    #[test]
    fn weights_near_edges_are_found_for_bf16() {
        weights_near_edges_are_found::<bf16>();
    }

    #[test]
    fn weights_near_edges_are_found_for_f32() {
        weights_near_edges_are_found::<f32>();
    }

    fn weights_are_found_by_every_kernel<E: Lane>(step: usize) {
        let odd = [
            vec![0.0],
            vec![-0.0, 1e-300],
            vec![1e6, 0.01 - 1e6],
            vec![3e-8],
            vec![0.1; 40],
            vec![1e300, -1e300],
            vec![1e300],
            vec![-3e38, 1e10],
        ];
        let mut generator = Generator(3);
        let drawn = (0..12).map(|count| -> Vec<f64> {
            let scale = 2.0_f64.powi((generator.bits() % 40) as i32 - 30);
            (0..1 + count % 3).map(|_| generator.gaussian() * scale).collect()
        });
        for terms in odd.into_iter().chain(drawn) {
            let looked: Vec<_> =
                kernels().map(|kernel| all_weights_are_found::<E>(kernel, step, &terms)).collect();
            assert!(looked.windows(2).all(|pair| pair[0] == pair[1]), "{looked:?}");
        }
        // Beside a small change only the smallest weights are left to the search, and few others.
        let all = 2 * E::round(f64::INFINITY).ordinal() as usize / step;
        let smallest = E::from_ordinal(1).to_f64();
        let looked = all_weights_are_found::<E>(Kernel::Blocked, step, &[smallest / 2.0]);
        assert!(looked < all / 10, "{looked} of {all} needed a closer look");
    }

    #[test]
    fn every_weight_of_f16_is_found() {
        weights_are_found_by_every_kernel::<f16>(1);
    }

    #[test]
    fn weights_of_f32_are_found() {
        weights_are_found_by_every_kernel::<f32>(65_521);
    }

    #[test]
    fn every_weight_of_bf16_is_found() {
        weights_are_found_by_every_kernel::<bf16>(1);
    }
}
