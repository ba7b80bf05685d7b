//! How a checkpoint differs from what a patch expects.

use serde::Serialize;

use super::Direction;
use crate::digest::TensorDigest;
use crate::patch::manifest::TensorBinding;
use crate::tensor::Dtype;

/// The first tensor that is in neither of the patch's two states, else the first that is not as it should be; and how
/// the others stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("tensor `{tensor}` {difference}{}", self.standing())]
pub struct Mismatch {
    /// The tensor.
    pub tensor: String,
    /// What is wrong with it.
    pub difference: Difference,
    /// The binding that comes closest, and that all this is about.
    pub binding: usize,
    /// Touched tensors in the state that the operation starts from.
    pub at_start: usize,
    /// Touched tensors in the state that the operation leads to.
    pub at_end: usize,
    /// Touched tensors in one of the two or in both: a binding may leave a tensor as it is.
    pub in_either: usize,
    /// Touched tensors of the binding.
    pub tensors: usize,
    /// Which way leads from the one state to the other.
    #[serde(skip)]
    pub(super) direction: Direction,
}

impl Mismatch {
    /// A difference that was met on the way, where the other tensors of the binding were not looked at.
    pub(super) fn met(
        tensor: &TensorBinding,
        difference: Difference,
        binding: usize,
        tensors: usize,
        direction: Direction,
    ) -> Self {
        let tensor = tensor.name.clone();
        Self { tensor, difference, binding, at_start: 0, at_end: 0, in_either: 0, tensors, direction }
    }

    /// Each tensor is in one of the patch's two states, but not all in the same: somebody stopped half-way.
    pub fn is_half_way(&self) -> bool {
        let in_one = self.at_start.max(self.at_end);
        self.in_either == self.tensors && in_one < self.tensors
    }

    /// How the other tensors stand, where they are some of the patch's.
    fn standing(&self) -> String {
        let Self { at_start, at_end, in_either, tensors, .. } = *self;
        if self.is_half_way() {
            let in_the_other = in_either.saturating_sub(at_start);
            return format!("; {in_the_other} of {tensors} touched tensors are in the other state already");
        }
        if in_either == 0 {
            return String::new();
        }
        let before = match self.direction {
            Direction::Apply => at_start,
            Direction::Revert => at_end,
        };
        // What the patch leaves as it is says nothing of whether it was applied.
        let after = in_either.saturating_sub(before);
        format!(
            "; touched tensors as before the patch: {before} of {tensors}, with its result: {after} of {tensors}"
        )
    }
}

/// How a tensor differs from what a patch expects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// There is none of that name.
    #[error("is missing{}", nearest.as_ref().map_or_else(String::new, |name| format!("; the nearest name is `{name}`")))]
    Missing {
        /// The name that comes closest.
        nearest: Option<String>,
    },
    /// It has another element type.
    #[error("is {found}, the patch expects {expected}")]
    Dtype {
        /// The patch's.
        expected: Dtype,
        /// The checkpoint's, as safetensors writes it.
        found: String,
    },
    /// It has another shape.
    #[error("has shape {found:?}, the patch expects {expected:?}")]
    Shape {
        /// The patch's.
        expected: [u64; 2],
        /// The checkpoint's.
        found: Vec<u64>,
    },
    /// It holds other weights.
    #[error("hashes to {found}, the patch expects {expected}")]
    Digest {
        /// The patch's.
        expected: TensorDigest,
        /// The checkpoint's.
        found: TensorDigest,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_way_is_said() {
        let mismatch = |at_start, at_end, in_either| Mismatch {
            tensor: "a".to_owned(),
            difference: Difference::Shape { expected: [2, 3], found: vec![3, 2] },
            binding: 0,
            at_start,
            at_end,
            in_either,
            tensors: 3,
            direction: Direction::Revert,
        };
        let of_the_first = "tensor `a` has shape [3, 2], the patch expects [2, 3]";
        assert_eq!(mismatch(0, 0, 0).to_string(), of_the_first);
        let expected = "; touched tensors as before the patch: 0 of 3, with its result: 2 of 3";
        assert_eq!(mismatch(2, 0, 2).to_string(), format!("{of_the_first}{expected}"));
        // The second is one that the patch leaves as it is, the third is in neither state.
        assert!(!mismatch(2, 1, 2).is_half_way());
        let expected = "tensor `a` has shape [3, 2], the patch expects [2, 3]; 1 of 3 touched tensors are in the \
                        other state already";
        assert_eq!(mismatch(2, 1, 3).to_string(), expected);
        assert_eq!(mismatch(2, 2, 3).to_string(), expected);
    }
}
