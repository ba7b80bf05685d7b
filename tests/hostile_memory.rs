//! Small files that ask for much: refused in little memory and time. Alone in its process, which has one peak.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod drafts;

use std::time::{Duration, Instant};

use mpatch::digest::PatchId;
use mpatch::patch::{Patch, encode};

/// What a hostile file of a kibibyte may cost beyond an honest one.
const MEMORY_MAX_BYTES: usize = 8 << 20;
/// On the mean, since a busy machine may stop any single one for longer.
const TIME_MAX: Duration = Duration::from_millis(10);

/// A file whose prelude is right for what follows it.
fn seal(manifest: &[u8], rest: &[u8]) -> Vec<u8> {
    let size = (64 + manifest.len() + rest.len()) as u64;
    let mut file = b"\x89MPATCH\n\x01\0\0\0\0\0\0\0".to_vec();
    file.extend(size.to_le_bytes());
    file.extend((manifest.len() as u64).to_le_bytes());
    file.extend(PatchId::derive(manifest).as_bytes());
    [&file[..], manifest, rest].concat()
}

/// Peak resident memory of this process so far; none where the system does not say.
fn peak_memory_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|kibibytes| kibibytes * 1024)
}

#[test]
fn a_small_file_that_claims_much_costs_little() {
    let (draft, _) = drafts::tiny();
    let patch = Patch::decode(encode(&draft).unwrap()).unwrap();
    let manifest = patch.manifest_bytes();
    let rest = &patch.bytes()[64 + manifest.len()..];
    let before = peak_memory_bytes();
    let (start, mut files) = (Instant::now(), 0);
    // Among the places are all lengths of strings and vectors; among the values are lengths just below each limit.
    for offset in 0..manifest.len() - 8 {
        for value in [u64::MAX, 1 << 62, (1 << 40) + 1, 1 << 31, (16 << 20) - 1, 65_000] {
            let mut hostile = manifest.to_vec();
            hostile[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
            let _ = Patch::decode(seal(&hostile, rest));
            files += 1;
        }
    }
    let mean = start.elapsed() / files;
    assert!(mean < TIME_MAX, "{mean:?} for each of {files} files");
    let grown = before.zip(peak_memory_bytes()).map(|(before, after)| after - before);
    assert!(grown.is_none_or(|grown| grown < MEMORY_MAX_BYTES), "{grown:?} bytes");
}
