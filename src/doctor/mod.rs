//! What a machine can do, and whether it does it right: checks with evidence, and ceilings to hold speeds against.
//!
//! A device is compared with the processor, which is compared with slower ways to the same numbers ([`compare`]): one
//! product, one forward pass, one reverse step, and the same again for the same bits. [`ceilings()`] measures what a
//! device reaches at best, so that a speed can be given as a share of it.

mod agreement;
mod ceilings;
mod processor;

pub use agreement::{Comparison, compare};
pub use ceilings::{Ceilings, ceilings};
pub use processor::{Processor, processor};
