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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::super::samples::Generator;
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
}
