//! The command line, in one program: linking takes longer than most of its tests, and the embedded model is laid out
//! once for all.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

#[path = "../bench/mod.rs"]
mod bench;
#[path = "../material/mod.rs"]
mod material;
#[path = "../telling/mod.rs"]
mod telling;

mod bad_input;
mod commands;
mod failures;
mod json;
mod ladder;
mod models;
mod readme;
mod secrets;
mod statistics;
