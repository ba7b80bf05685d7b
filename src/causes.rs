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
    use std::fmt;

    use super::*;

    /// One layer's words, and what brought it about.
    #[derive(Debug)]
    struct Layer(&'static str, Option<Box<Layer>>);

    impl fmt::Display for Layer {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str(self.0)
        }
    }

    impl Error for Layer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn each_layer_says_its_own_part_from_the_outermost_in() {
        let disk = || Some(Box::new(Layer("the disk is gone", None)));
        assert_eq!(with_causes(&Layer("alone", None)), "alone");
        assert_eq!(
            with_causes(&Layer("cannot sync `model`", disk())),
            "cannot sync `model`: the disk is gone"
        );
        let deep = Layer("fact 2", Some(Box::new(Layer("cannot sync `model`", disk()))));
        assert_eq!(with_causes(&deep), "fact 2: cannot sync `model`: the disk is gone");
    }
}
