//! Patches for what a language model knows.
//!
//! ```text
//! facts.json -> facts -> model (forward, taps) -> edit (values, keys, statistics, solve) -> factors -> patch
//!                           ^    \                                                           |         ^
//!                           |     evaluate (does the model say it, and only it)              v         |
//!                       checkpoint ------------------------------------------------------> bind -------+
//!                       checkpoint <------------- apply / revert / verify ---------------- patch
//! ```
//!
//! The groups of rooms below stand in reading order, and a room imports from its own group and those above it only;
//! `docs/ARCHITECTURE.md` has the table, room by room, and `tests/tidy.rs` holds the code to it. Without the feature
//! `edit` the library still reads, checks, applies and reverts.
//!
//! Applying takes a checkpoint and a patch, and makes a new checkpoint; whether the patch is to be believed is for
//! [`sign::judge`] to say, before.
//!
//! ```no_run
//! use mpatch::checkpoint::Checkpoint;
//! use mpatch::operation::{Answer, Direction, plan};
//! use mpatch::patch::Patch;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = Checkpoint::open("gptj/")?;
//! let patch = Patch::decode(std::fs::read("edits.mpatch")?)?;
//! match plan(&checkpoint, &patch, Direction::Apply, &|_| ())? {
//!     Answer::Fits(plan) => {
//!         plan.execute(&checkpoint, &patch, "gptj.edits".as_ref(), &|_| ())?;
//!     }
//!     Answer::Done { .. } => println!("the patch is in it already"),
//!     Answer::Elsewhere(mismatch) => println!("the patch is for other weights: {mismatch}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`bind::bind`] shows how a patch is made.

// Vocabulary
pub mod calendar;
pub mod causes;
pub mod digest;
pub mod facts;
pub mod source;
pub mod tensor;

// Numbers
pub mod factors;

// Container
pub mod patch;
pub mod sign;

// Weights
pub mod checkpoint;

// Operations
pub mod operation;

pub mod adapter;
pub mod bind;
pub mod diff;
#[cfg(feature = "edit")]
pub mod extract;
pub mod rebase;
pub mod stack;
pub mod verify;

// Tests of the operations on disks that fail
#[cfg(test)]
mod crash;
// History
#[cfg(feature = "history")]
pub mod store;

// Editing
#[cfg(feature = "edit")]
pub mod edit;
#[cfg(feature = "edit")]
pub mod evaluate;
#[cfg(feature = "edit")]
pub mod model;

// The machine
#[cfg(feature = "edit")]
pub mod doctor;
