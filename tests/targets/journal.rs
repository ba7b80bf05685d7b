//! The journal of a change in place, on a real disk: whatever it says, recovering keeps its promise.
//!
//! ```text
//! choice (1 byte) || size of the header (2 bytes) || header || old bytes
//! ```
//!
//! A mutation cannot find a digest, nor what the system calls a file. Unless the choice says otherwise, digests that
//! read `old` and `new`, an `inode` and a `created_ns` of 1 are made the true ones, and the old bytes are those of the
//! old contents; the hashes of the journal itself always fit.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::time::UNIX_EPOCH;

use blake3::hazmat::HasherExt;
use mpatch::checkpoint::{CheckpointError, Outcome, recover};
use mpatch::digest::TensorDigest;
use serde_json::{Value, json};

/// Smaller than a block of the journal, so every extent is one.
const SIZE_BYTES: usize = 96;
/// What old bytes begin at multiples of in a journal.
const PAGE_BYTES: usize = 4096;
const NAME: &str = "model.safetensors";
const MAGIC: &[u8] = b"mpatch-journal\n3";

/// What the bits of the choice change; the lowest two say which contents the checkpoint has.
const RAW_HEADER: u8 = 4;
const GIVEN_BYTES: u8 = 8;
const DAMAGED_START: u8 = 16;
const DAMAGED_END: u8 = 32;
const CUT: u8 = 64;
const DAMAGED_BLOCKS: u8 = 128;

fn old_contents() -> Vec<u8> {
    (0..SIZE_BYTES as u8).collect()
}

fn new_contents() -> Vec<u8> {
    (0..SIZE_BYTES as u8).map(|byte| byte ^ 0x80).collect()
}

/// Before the change, after it, half-way, and neither.
fn contents(choice: u8) -> Vec<u8> {
    let (old, new) = (old_contents(), new_contents());
    match choice % 4 {
        0 => old,
        1 => new,
        2 => [&new[..SIZE_BYTES / 2], &old[SIZE_BYTES / 2..]].concat(),
        _ => vec![0x55; SIZE_BYTES],
    }
}

/// Recovers under a journal made of `data`.
///
/// What is put back has the digests that the journal states, nothing else changes, no other file is touched, and the
/// journal stays until that is done.
pub fn journal(data: &[u8]) {
    let Some(([choice, size @ ..], rest)) = data.split_first_chunk::<3>() else { return };
    let (text, given) = rest.split_at(usize::from(u16::from_le_bytes(*size)).min(rest.len()));
    let folder = super::folder();
    let path = folder.path().join(NAME);
    let before = contents(*choice);
    let (bystander, stands) = (folder.path().join("other"), old_contents());
    fs::write(&path, &before).unwrap();
    fs::write(&bystander, &stands).unwrap();
    let about = fs::metadata(&path).unwrap();
    let inode = about.ino();
    let header = header(text, *choice, &about);
    let journal = folder.path().join(format!("{NAME}.mpatch-journal"));
    fs::write(&journal, file(&header, given, *choice, inode)).unwrap();

    let outcome = recover(&path);
    let after = fs::read(&path).expect("the checkpoint stays");
    assert_eq!(fs::read(&bystander).expect("it stays"), stands, "another file was written");
    assert_eq!(after.len(), before.len());
    let extents = extents(&header, inode);
    for at in 0..SIZE_BYTES {
        let is_journaled = extents.iter().any(|extent| extent.range.contains(&at));
        assert!(is_journaled || after[at] == before[at], "byte {at} was nobody's to write");
    }
    match outcome.as_deref() {
        Ok([]) => assert_eq!(after, before),
        Ok([one]) => {
            assert!(!journal.exists() && one.journal == journal);
            assert!(one.outcome == Outcome::RolledBack || after == before);
            for extent in extents {
                let side = if one.outcome == Outcome::Finished { extent.end } else { extent.start };
                assert_eq!(TensorDigest::of(&after[extent.range]).to_string(), side);
            }
        }
        Ok(more) => panic!("one journal, recovered as {more:?}"),
        Err(CheckpointError::NotDurable { .. }) => {}
        Err(error) => assert!(journal.exists() && !error.to_string().is_empty()),
    }
}

/// A part of the checkpoint that the journal is about, as far as it can be one.
struct Part {
    range: std::ops::Range<usize>,
    start: String,
    end: String,
}

/// The parts of the checkpoint in a header, in their order; it may have had another name then.
fn extents(header: &[u8], inode: u64) -> Vec<Part> {
    let part = |extent: &Value| {
        let number = |field: &str| usize::try_from(extent[field].as_u64()?).ok();
        let (offset, size) = (number("offset")?, number("size_bytes")?);
        let range = offset..offset.checked_add(size).filter(|end| *end <= SIZE_BYTES)?;
        let text = |field: &str| extent[field].as_str().map(str::to_lowercase);
        Some(Part { range, start: text("start")?, end: text("end")? })
    };
    let header: Value = serde_json::from_slice(header).unwrap_or_default();
    let files = header["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|file| file["name"] == NAME || file["inode"] == inode);
    files.flat_map(|file| file["extents"].as_array().into_iter().flatten()).filter_map(part).collect()
}

/// The header's bytes, with what no mutation could find.
fn header(text: &[u8], choice: u8, about: &Metadata) -> Vec<u8> {
    let Ok(mut header) = serde_json::from_slice::<Value>(text) else { return text.to_vec() };
    if choice & RAW_HEADER != 0 {
        return text.to_vec();
    }
    let created = about.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    let set = |value: Option<&mut Value>, known: &Value, truth: Value| match value {
        Some(value) if *value == *known => *value = truth,
        _ => {}
    };
    let digest = |bytes: Option<&[u8]>| json!(bytes.map(TensorDigest::of));
    for file in header.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        set(file.get_mut("inode"), &json!(1), json!(about.ino()));
        set(file.get_mut("created_ns"), &json!(1), json!(created.map(|time| time.as_nanos() as u64)));
        for extent in file.get_mut("extents").and_then(Value::as_array_mut).into_iter().flatten() {
            let number = |field: &str| extent.get(field)?.as_u64()?.try_into().ok();
            let (offset, size): (Option<usize>, Option<usize>) = (number("offset"), number("size_bytes"));
            let range = offset.zip(size).map(|(offset, size)| offset..offset.saturating_add(size));
            let (old, new) = (old_contents(), new_contents());
            for side in ["start", "end"] {
                let part = |bytes: &'static str, contents| {
                    (json!(bytes), digest(range.clone().and_then(|range| <[u8]>::get(contents, range))))
                };
                for (known, truth) in [part("old", &old), part("new", &new)] {
                    set(extent.get_mut(side), &known, truth);
                }
            }
        }
    }
    header.to_string().into_bytes()
}

/// A journal of `header`, as `docs/durability.md` lays it out.
fn file(header: &[u8], given: &[u8], choice: u8, inode: u64) -> Vec<u8> {
    let is = |bit: u8| choice & bit != 0;
    let size = (header.len() as u64).to_le_bytes();
    let hash = blake3::derive_key("mpatch 2026 journal header", header);
    let mut file = [MAGIC, &size, header, &hash].concat();
    file.resize(file.len().next_multiple_of(PAGE_BYTES), 0);
    file[0] ^= u8::from(is(DAMAGED_START));
    let (old, mut given) = (old_contents(), given);
    for extent in extents(header, inode) {
        let size = extent.range.len();
        let bytes = if is(GIVEN_BYTES) {
            let (bytes, rest) = given.split_at(size.min(given.len()));
            given = rest;
            bytes
        } else {
            &old[extent.range]
        };
        if bytes.is_empty() {
            continue;
        }
        let branch = blake3::Hasher::new().update(bytes).finalize_non_root();
        let at = (file.len() as u64).to_le_bytes();
        file.extend(bytes);
        file.extend(blake3::Hasher::new_keyed(&hash).update(&at).update(&branch).finalize().as_bytes());
        *file.last_mut().unwrap() ^= u8::from(is(DAMAGED_BLOCKS));
        file.resize(file.len().next_multiple_of(PAGE_BYTES), 0);
    }
    let end = [header, &hash[..], &size, MAGIC].concat();
    file.extend(end);
    *file.last_mut().unwrap() ^= u8::from(is(DAMAGED_END));
    if is(CUT) {
        file.truncate(file.len() - given.len().min(file.len()));
    }
    file
}
