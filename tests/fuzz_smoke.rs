//! The fuzz targets on every change, without a fuzzer: the committed corpus, and mutations of it that a seed repeats.
//!
//! `fuzz/run` is the real thing, `docs/fuzzing.md` tells how long it ran. What it finds gets an input in the corpus, so
//! that it is tried here for ever.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod numbers;
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use numbers::Numbers;
use targets::{TARGETS, Target};

/// Mutations of each target's corpus.
const MUTATIONS: usize = 10_000;
/// The same ones every time.
const SEED: u64 = 0x6d70_6174_6368;

fn all_targets() -> Vec<Target> {
    #[cfg(feature = "edit")]
    let more: [Target; 3] = [
        ("npz", targets::editing::npz),
        ("settings", targets::editing::settings),
        ("statistics", targets::editing::statistics),
    ];
    #[cfg(not(feature = "edit"))]
    let more: [Target; 0] = [];
    #[cfg(feature = "history")]
    let more = more.into_iter().chain([("history", targets::history::history as fn(&[u8]))]);
    TARGETS.into_iter().chain(more).collect()
}

/// The committed inputs of a target, in order of their names.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Changes `input` in one to four places, sometimes with a part of `other`.
fn mutated(input: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1);
        let end = at + numbers.below(bytes.len() + 1 - at).min(16);
        match numbers.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{'][numbers.below(7)],
            2 => drop(bytes.drain(at..end)),
            3 => bytes.insert(at, numbers.below(256) as u8),
            4 => {
                let copied = bytes[at..end].to_vec();
                bytes.splice(at..at, copied);
            }
            5 => {
                let from = numbers.below(other.len());
                let part = &other[from..other.len().min(from + 32)];
                bytes.splice(at..end, part.iter().copied());
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
    bytes
}

/// Runs a target on one input, and shows the input if it breaks a promise.
fn run((name, target): Target, input: &[u8]) {
    let outcome = catch_unwind(|| target(input));
    assert!(
        outcome.is_ok(),
        "`{name}` breaks a promise on \"{}\"",
        String::from_utf8_lossy(input).escape_debug()
    );
}

#[test]
fn the_corpus_and_mutations_of_it_break_no_promise() {
    for target in all_targets() {
        let corpus = corpus(target.0);
        assert!(!corpus.is_empty(), "{}", target.0);
        corpus.iter().for_each(|input| run(target, input));
        let mut numbers = Numbers(SEED);
        for _ in 0..MUTATIONS {
            let input = &corpus[numbers.below(corpus.len())];
            let other = &corpus[numbers.below(corpus.len())];
            run(target, &mutated(input, other, &mut numbers));
        }
    }
}

#[test]
fn every_corpus_belongs_to_a_target() {
    let known: Vec<&str> = all_targets()
        .iter()
        .map(|target| target.0)
        .chain(["npz", "settings", "statistics", "history"])
        .collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for entry in fs::read_dir(folder.join("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name.as_str()), "{name}");
        assert!(folder.join("fuzz_targets").join(format!("{name}.rs")).exists(), "{name}");
    }
}
