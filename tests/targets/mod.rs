//! What is done with the bytes of each fuzz target: they are read, and what is read is held to a promise.
//!
//! `fuzz/` runs these under libFuzzer, with digests not compared; `tests/fuzz_smoke.rs` runs them on every change, over
//! the committed corpus and some mutations of it. A target panics when a promise is broken and returns otherwise.

#![allow(dead_code, reason = "the fuzzer has one target to a program")]
#![allow(clippy::unwrap_used, reason = "a broken promise is to be found")]

#[cfg(feature = "edit")]
pub mod editing;
#[cfg(feature = "history")]
pub mod history;
mod journal;

use std::path::PathBuf;
use std::sync::OnceLock;

use mpatch::checkpoint::{shards_of_bytes, tensors_of_bytes};
use mpatch::digest::PatchId;
use mpatch::factors::{
    Correction, CorrectionWriter, IntegerMatrix, Integers, Term, UndoLog, UndoWriter, Update,
};
use mpatch::facts::{FactsFile, PLACEHOLDER};
use mpatch::patch::layout::{FILE_SIZE_OFFSET, MANIFEST_SIZE_OFFSET, PATCH_ID_OFFSET, PRELUDE_SIZE_BYTES};
use mpatch::patch::manifest::Codec;
use mpatch::patch::{Patch, decode_section, encode};
use mpatch::sign::allowed_signers::{line_of, parse_keys, principal_of};
use mpatch::sign::{AllowedSigners, KnownLines, NAMESPACE, Policy, PublicKey, SshSig};
use mpatch::tensor::Dtype;
use mpatch::verify::verify_form;

pub use journal::journal;

/// A target: its name, which is that of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// Every target that needs neither editing nor histories.
pub const TARGETS: [Target; 11] = [
    ("patch", patch),
    ("manifest", manifest),
    ("section", section),
    ("signatures", signatures),
    ("undo", undo),
    ("correction", correction),
    ("header", header),
    ("index", index),
    ("facts", facts),
    ("trust", trust),
    ("journal", journal),
];

/// Decoded bytes of a patch beyond which its sections are left alone: a bomb is slow by right.
const DECODED_SIZE_MAX_BYTES: u64 = 1 << 16;

/// The example of `docs/format.md`.
const TINY: &[u8] = include_bytes!("../../fixtures/patches/tiny.mpatch");

/// A folder for what is read from files only; in memory where the system has such a place, as writing waits for disks.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a folder")
}

/// A whole patch file, its size and id made right.
pub fn patch(data: &[u8]) {
    let mut file = data.to_vec();
    fix_prelude(&mut file);
    let Ok(patch) = Patch::decode(file) else { return };
    let decoded =
        patch.manifest().sections.iter().fold(0_u64, |sum, section| sum.saturating_add(section.decoded_size));
    if decoded > DECODED_SIZE_MAX_BYTES || !verify_form(&patch).holds() {
        return;
    }
    // What is whole can be taken apart, and written again by this program, to say the same.
    let draft = patch.draft().expect("every part has been decoded");
    let bytes = encode(&draft).expect("what the rules let in they let out");
    let again = Patch::decode(bytes).expect("what was written can be read");
    assert_eq!(again.draft().expect("every part has been encoded"), draft);
}

/// A mutation changes sizes and bytes; what the prelude says of them follows.
fn fix_prelude(file: &mut [u8]) {
    let size = file.len() as u64;
    let Some((prelude, rest)) = file.split_first_chunk_mut::<PRELUDE_SIZE_BYTES>() else { return };
    prelude[FILE_SIZE_OFFSET..FILE_SIZE_OFFSET + 8].copy_from_slice(&size.to_le_bytes());
    let stated =
        u64::from_le_bytes(prelude[MANIFEST_SIZE_OFFSET..MANIFEST_SIZE_OFFSET + 8].try_into().unwrap());
    let Some(manifest) = usize::try_from(stated).ok().and_then(|size| rest.get(..size)) else { return };
    prelude[PATCH_ID_OFFSET..].copy_from_slice(PatchId::derive(manifest).as_bytes());
}

/// A file of `manifest`, with a right prelude, and `rest`.
pub fn seal(manifest: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut file = b"\x89MPATCH\n\x01\0\0\0\0\0\0\0".to_vec();
    file.extend([0; 8]);
    file.extend((manifest.len() as u64).to_le_bytes());
    file.extend([0; 32]);
    file.extend(manifest);
    file.extend(rest);
    fix_prelude(&mut file);
    file
}

/// A manifest alone; one that has sections finds none.
pub fn manifest(data: &[u8]) {
    let _ = Patch::decode(seal(data, &[0; 4]));
}

/// One section: a byte for its codec, three for its decoded size, then what is stored.
pub fn section(data: &[u8]) {
    let Some(([codec, size @ ..], stored)) = data.split_first_chunk::<4>() else { return };
    let decoded_size = u32::from_le_bytes([size[0], size[1], size[2], 0]);
    let codec = if codec % 2 == 0 { Codec::Zstd } else { Codec::Stored };
    let Ok(decoded) = decode_section(codec, stored, u64::from(decoded_size)) else { return };
    assert_eq!(decoded.len(), decoded_size as usize);
    match codec {
        Codec::Stored => assert_eq!(decoded, stored),
        // Whatever is read one block at a time is what zstd reads in one go.
        Codec::Zstd => assert_eq!(zstd::bulk::decompress(stored, decoded.len()).unwrap(), decoded),
    }
}

/// A signature block behind a patch that is right.
pub fn signatures(data: &[u8]) {
    static BEFORE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (manifest, sections) = BEFORE.get_or_init(|| {
        let patch = Patch::decode(TINY.to_vec()).expect("the example is right");
        let sections = PRELUDE_SIZE_BYTES + patch.manifest_bytes().len()..TINY.len() - 4;
        (patch.manifest_bytes().to_vec(), TINY[sections].to_vec())
    });
    let Ok(patch) = Patch::decode(seal(manifest, &[sections, data].concat())) else { return };
    let signatures = patch.signatures().to_vec();
    let file = patch.bytes().unwrap().to_vec();
    assert_eq!(patch.with_signatures(signatures).expect("they were read").bytes().unwrap(), file);
}

/// An undo log and weights: a byte for shape and type, then the weights, then the log.
///
/// Where the log takes the weights back, the update brings them forth again, and only this log does.
pub fn undo(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let dtype = [Dtype::F16, Dtype::F32, Dtype::BF16][usize::from(choice) % 3];
    let update = &updates()[usize::from(choice / 3) % updates().len()];
    let (rows, columns) = (update.rows(), update.columns());
    let Some((weights, log)) = rest.split_at_checked(rows * columns * dtype.size_bytes()) else { return };
    let Ok(parsed) = UndoLog::parse(log.to_vec(), rows, columns) else { return };
    let mut base = weights.to_vec();
    if parsed.revert_rows(update, dtype, 0..rows, &mut base).is_err() {
        return;
    }
    let mut writer = UndoWriter::new(rows, columns);
    writer.apply_rows(update, dtype, 0..rows, &mut base).expect("the weights came from somewhere");
    assert!(base == weights, "taken back and applied, the weights are others");
    assert_eq!(writer.finish().expect("all rows were given"), log, "two logs for one thing");
}

/// A correction and weights: a byte for shape and type, then the weights, then the correction.
///
/// It is taken back exactly, and what it does to the weights is written as it was read.
pub fn correction(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let dtype = [Dtype::F16, Dtype::F32, Dtype::BF16][usize::from(choice) % 3];
    let (rows, columns) = [(2, 3), (1, 8), (5, 5)][usize::from(choice / 3) % 3];
    let Some((weights, bytes)) = rest.split_at_checked(rows * columns * dtype.size_bytes()) else { return };
    let Ok(parsed) = Correction::parse(bytes.to_vec(), dtype, rows, columns) else { return };
    let mut corrected = weights.to_vec();
    parsed.apply_rows(dtype, 0..rows, &mut corrected).expect("all rows were given");
    let mut writer = CorrectionWriter::new(rows, columns);
    writer.push_rows(dtype, 0..rows, weights, &corrected).expect("all rows were given");
    assert_eq!(writer.corrected(), parsed.corrected());
    assert_eq!(writer.finish().expect("all rows were given").as_deref(), Some(bytes), "two for one thing");
    parsed.revert_rows(dtype, 0..rows, &mut corrected).expect("all rows were given");
    assert!(corrected == weights, "taken back, the weights are others");
}

/// Updates of several shapes: one that loses much to rounding, one that loses little, one with two terms.
fn updates() -> &'static [Update] {
    static UPDATES: OnceLock<Vec<Update>> = OnceLock::new();
    UPDATES.get_or_init(|| {
        let matrix = |rows, columns, values: &[i16]| {
            IntegerMatrix::new("a target's matrix", rows, columns, 4, values.to_vec()).unwrap()
        };
        let low_rank = |size: f32| {
            let integers =
                Integers::LowRank { left: matrix(2, 1, &[7, -3]), right: matrix(1, 3, &[5, -2, 1]) };
            Term::new(integers, vec![size, 2.0 * size], vec![1.0, 0.5, 0.002]).unwrap()
        };
        let dense =
            Term::new(Integers::Dense(matrix(2, 3, &[1, 0, -7, 3, 3, 0])), vec![0.5, 0.1], vec![0.1; 3])
                .unwrap();
        let updates = [vec![low_rank(0.03125)], vec![low_rank(1e-4)], vec![low_rank(0.5), dense]];
        updates.into_iter().map(|terms| Update::new(terms).unwrap()).collect()
    })
}

/// A safetensors header: two bytes for the size of the weights, then the text. Whatever is accepted the safetensors
/// crate accepts, and reads alike.
pub fn header(data: &[u8]) {
    let Some((size, text)) = data.split_first_chunk::<2>() else { return };
    let weights = vec![0; usize::from(u16::from_le_bytes(*size))];
    let file = [&(text.len() as u64).to_le_bytes()[..], text, &weights].concat();
    let Ok(found) = tensors_of_bytes(&file) else { return };
    let theirs = safetensors::SafeTensors::deserialize(&file).expect("the stricter reader accepts it");
    assert_eq!(theirs.len(), found.len());
    for tensor in found {
        let expected = theirs.tensor(&tensor.name).expect("they have it");
        assert_eq!(tensor.dtype, expected.dtype().to_string());
        assert!(tensor.shape.iter().copied().eq(expected.shape().iter().map(|size| *size as u64)));
        let offset = expected.data().as_ptr() as usize - file.as_ptr() as usize;
        assert_eq!((tensor.offset, tensor.size_bytes), (offset as u64, expected.data().len() as u64));
    }
}

/// An index of shards: every file it names lies beside it.
pub fn index(data: &[u8]) {
    let Ok(shards) = shards_of_bytes(data) else { return };
    for file in shards.values() {
        let mut parts = std::path::Path::new(file).components();
        assert!(
            matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none(),
            "{file:?}"
        );
    }
}

/// A facts file, in whatever layout: every request can be run.
pub fn facts(data: &[u8]) {
    match FactsFile::parse(data) {
        Ok(file) => {
            for request in file.requests() {
                assert_eq!(request.prompt.matches(PLACEHOLDER).count(), 1, "{:?}", request.prompt);
                assert!(!request.subject.is_empty() && request.subject.trim() == request.subject);
                assert!(request.text().contains(&request.subject));
            }
            // At most one each about subjects within words, shared subjects, relations, ids, neighbours,
            // portability and `alt`.
            assert!(!file.records.is_empty() && file.warnings().len() <= 7);
        }
        Err(error) => assert!(!error.to_string().is_empty() && !error.hint().is_empty()),
    }
}

/// A file that decides about trust: a byte for its kind, then its bytes.
pub fn trust(data: &[u8]) {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 6 {
        0 => drop(SshSig::parse(bytes).map(|read| signature(&read, bytes))),
        1 => known_lines(bytes),
        2 => policy(bytes),
        kind => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            match kind {
                3 => allowed_signers(text),
                4 => drop(parse_keys(text).map(|keys| keys.iter().for_each(key))),
                _ => drop(SshSig::from_armour(text).map(|read| signature(&read, read.bytes()))),
            }
        }
    }
}

/// A signature is what its bytes say, armour changes nothing, and it signs no message but its own.
fn signature(read: &SshSig, bytes: &[u8]) {
    assert_eq!(read.bytes(), bytes);
    assert_eq!(SshSig::from_armour(&read.to_armour()).expect("its own armour").bytes(), bytes);
    let _ = read.verify(b"a message that nobody signed").expect_err("no such signature can be found");
    key(read.key());
}

/// A key is the key that its own line says.
fn key(key: &PublicKey) {
    assert_eq!(PublicKey::parse(&key.line()).expect("its own line"), *key);
}

/// What is known of lines is the same after it was written.
fn known_lines(json: &[u8]) {
    let Ok(known) = KnownLines::parse(json) else { return };
    let written = known.to_json().expect("plain data");
    assert_eq!(KnownLines::parse(&written).expect("its own text"), known);
}

/// A policy says the same after it was written, and together with another only ever asks for more.
fn policy(json: &[u8]) {
    let Ok(policy) = Policy::parse(json) else { return };
    let written = serde_json::to_vec(&policy).expect("plain data");
    assert_eq!(Policy::parse(&written).expect("its own text"), policy);
    let both = Policy::default().and(policy.clone());
    assert!(both.threshold >= policy.threshold && both.minimal_rung >= policy.minimal_rung);
    assert!(policy.required.iter().all(|principal| both.required.contains(principal)));
    assert!(both.forbids_exceptions() || !policy.forbids_exceptions());
}

/// Every line that says something is an entry or a problem; a key that is found, written down for one principal, is
/// believed for that one and for patches only.
fn allowed_signers(text: &str) {
    let signers = AllowedSigners::parse(text);
    // To OpenSSH these are blanks, and a form feed is not.
    let lines = text.split('\n').map(|line| line.trim_matches([' ', '\t', '\r']));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).count();
    assert_eq!(signers.entries.len() + signers.problems.len(), lines);
    for entry in signers.entries {
        key(&entry.key);
        // It stands for somebody.
        assert!(entry.principals.as_str().split(',').any(|pattern| entry.principals.matches(pattern)));
        let Some(principal) = principal_of(entry.principals.as_str()) else { continue };
        let again = AllowedSigners::parse(&line_of(&principal, &entry.key));
        let [found] = &again.entries[..] else { panic!("{principal:?} is written as {again:?}") };
        assert!(again.problems.is_empty() && found.key == entry.key && !found.is_authority);
        assert!(found.principals.matches(&principal) && !found.principals.matches("somebody else"));
        let namespaces = found.namespaces.as_ref().expect("it is written with one");
        assert!(namespaces.matches(NAMESPACE) && !namespaces.matches("git"));
    }
}
