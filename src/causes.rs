//! What errors say together.
//!
//! An error of this library says what its own layer knows, and gives what brought it about as its
//! [`source`](std::error::Error::source) instead of repeating it: whoever tells people puts the words together, here.

use std::error::Error;

/// The words of an error and of all that brought it about, outermost first.
pub fn with_causes(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |words, cause| format!("{words}: {cause}"))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;
    use crate::checkpoint::CheckpointError;
    use crate::operation::OperationError;

    fn lost(path: &str) -> CheckpointError {
        let source = io::Error::other("the disk is gone");
        CheckpointError::Io { path: PathBuf::from(path), action: "sync", source }
    }

    #[test]
    fn each_layer_says_its_own_part_once() {
        let error = OperationError::Checkpoint(lost("model"));
        assert_eq!(error.to_string(), "cannot sync `model`");
        assert_eq!(with_causes(&error), "cannot sync `model`: the disk is gone");
        assert_eq!(with_causes(&io::Error::other("alone")), "alone");
    }

    #[test]
    fn what_failed_twice_is_told_with_both_causes() {
        let (error, recovery) = (Box::new(lost("first").into()), Box::new(lost("second")));
        let expected = "cannot sync `first`: the disk is gone; cannot sync `second`: the disk is gone";
        assert_eq!(with_causes(&OperationError::Pending { error, recovery }), expected);
    }
}
