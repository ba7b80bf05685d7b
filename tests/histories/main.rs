//! Histories, in one program: linking takes longer than most of their tests.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../drafts/mod.rs"]
mod drafts;
#[path = "../material/mod.rs"]
mod material;
#[path = "../place/mod.rs"]
mod place;

mod elsewhere;
mod foreign;
mod history;
mod mending;
mod merging;
mod names;
mod odd_commits;
mod odd_files;
mod signers;
mod standing;
