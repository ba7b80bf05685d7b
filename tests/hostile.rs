//! Files made to hurt: whatever the bytes, the answer is a patch or an error, quickly and in little memory.
//!
//! The files here are sealed, that is, their sizes and digests are right, so that they get past the checks against
//! mere damage.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod drafts;

use std::io::Write;

use drafts::{manifest_bytes, seal};
use half::f16;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::SectionDigest;
use mpatch::patch::layout::{self, VERSION, Version};
use mpatch::patch::manifest::{
    Codec, Fact, IntegersEntry, Line, Manifest, Section, SectionKind, TensorBinding,
};
use mpatch::patch::{Draft, Patch, PatchError, encode};
use mpatch::verify::{Depth, DigestEvidence, OtherState, verify};

fn patch() -> Patch {
    Patch::decode(encode(&drafts::full()).unwrap()).unwrap()
}

/// The full patch with its manifest changed, sealed again.
fn changed(change: impl FnOnce(&mut Manifest)) -> Result<Patch, PatchError> {
    let patch = patch();
    let mut manifest = patch.manifest().clone();
    change(&mut manifest);
    let rest = &patch.bytes().unwrap()[64 + patch.manifest_bytes().len()..];
    Patch::decode(seal(&manifest_bytes(&manifest), rest))
}

fn is_malformed(result: &Result<Patch, PatchError>) -> bool {
    matches!(result, Err(PatchError::Malformed { .. }))
}

fn is_beyond_limit(result: &Result<Patch, PatchError>) -> bool {
    matches!(result, Err(PatchError::Limit { .. }))
}

#[test]
fn sealing_the_same_manifest_gives_the_same_file() {
    assert_eq!(changed(|_| ()).unwrap().bytes().unwrap(), patch().bytes().unwrap());
}

/// Breaks one rule of the manifest.
type Change = fn(&mut Manifest);

fn tensor(manifest: &mut Manifest) -> &mut TensorBinding {
    &mut manifest.bindings[0].tensors[0]
}

const MALFORMED: &[(&str, Change)] = &[
    ("no binding", |m| m.bindings.clear()),
    ("two bindings for one state", |m| m.bindings[1].weights = m.bindings[0].weights),
    ("a binding without tensors", |m| m.bindings[0].tensors.clear()),
    ("tensors out of order", |m| m.bindings[0].tensors.reverse()),
    ("a tensor twice", |m| m.bindings[0].tensors[1].name = m.bindings[0].tensors[0].name.clone()),
    ("a tensor without a name", |m| tensor(m).name.clear()),
    ("a name with an escape", |m| tensor(m).name.push('\u{1b}')),
    ("a name with a C1 control", |m| tensor(m).name.push('\u{9b}')),
    ("no terms", |m| tensor(m).terms.clear()),
    ("a term twice", |m| tensor(m).terms = vec![0, 0]),
    ("a term that is not there", |m| tensor(m).terms = vec![2]),
    ("a term of another shape", |m| tensor(m).terms = vec![1]),
    ("a shape that is not the term's", |m| tensor(m).shape = [10, 6]),
    ("a norm ratio that is no number", |m| tensor(m).norm_ratio = f64::NAN),
    ("a negative norm ratio", |m| tensor(m).norm_ratio = -1.0),
    ("a term that nobody uses", |m| m.terms.push(m.terms[0].clone())),
    ("no rows", |m| m.terms[0].rows = 0),
    ("one bit", |m| m.terms[0].bits = 1),
    ("17 bits", |m| m.terms[0].bits = 17),
    ("another width in planes", |m| m.terms[0].bits = 9),
    ("rank 0", |m| m.terms[0].integers = IntegersEntry::LowRank { rank: 0, left: 0, right: 1 }),
    ("another rank", |m| m.terms[0].integers = IntegersEntry::LowRank { rank: 3, left: 0, right: 1 }),
    ("factors exchanged", |m| m.terms[0].integers = IntegersEntry::LowRank { rank: 2, left: 1, right: 0 }),
    ("a section used twice", |m| m.terms[0].column_scales = m.terms[0].row_scales),
    ("a section that is not there", |m| m.terms[0].row_scales = u32::MAX),
    ("terms exchanged", |m| m.terms.swap(0, 1)),
    ("sections exchanged", |m| m.sections.swap(0, 1)),
    ("a section of another kind", |m| m.sections[2].kind = SectionKind::Integers),
    ("a section that nobody uses", |m| m.sections.push(empty_section())),
    ("a missing section", |m| m.sections.truncate(m.sections.len() - 1)),
    ("an overlapping section", |m| m.sections[0].stored_size -= 1),
    ("a section beyond the file", |m| m.sections[0].stored_size += 1 << 20),
    ("a section that ends beyond any file", |m| m.sections.iter_mut().for_each(grow)),
    ("another decoded size", |m| m.sections[0].decoded_size += 1),
    ("a correction that is not there", |m| tensor(m).correction = Some(u32::MAX)),
    ("a correction that is passed over", |m| tensor(m).correction = None),
    ("a correction of another kind", |m| {
        let correction = tensor(m).correction.unwrap() as usize;
        m.sections[correction].kind = SectionKind::Undo;
    }),
    ("layers out of order", |m| m.recipe.layers = vec![4, 3]),
    ("a layer twice", |m| m.recipe.layers = vec![3, 3]),
    ("a metric that is no number", |m| m.measured[0].after = f64::NAN),
    ("an infinite metric", |m| m.measured[0].before = f64::INFINITY),
    ("a line without a name", |m| m.line = Some(Line { name: String::new(), sequence: 1 })),
    ("a line's zeroth patch", |m| m.line = Some(Line { name: "line".into(), sequence: 0 })),
    ("a prompt with a bell", |m| m.facts[0].prompt.push('\u{7}')),
    ("a title with an escape", |m| m.about.title = Some("\u{1b}]0;title\u{7}".into())),
    ("a device on two lines", |m| m.recipe.device = "cpu\ngpu".into()),
];

fn empty_section() -> Section {
    let digest = SectionDigest::of(b"");
    Section { kind: SectionKind::Undo, codec: Codec::Stored, stored_size: 0, decoded_size: 0, digest }
}

/// Sizes whose sum is beyond u64, each of them legal for an undo log's codec.
fn grow(section: &mut Section) {
    section.stored_size = u64::MAX / 2;
}

#[test]
fn manifests_that_break_a_rule_are_refused() {
    for (what, change) in MALFORMED {
        let result = changed(change);
        assert!(is_malformed(&result), "{what}: {result:?}");
    }
}

#[test]
fn sections_in_another_order_are_refused() {
    // Sections 2 and 3 exchanged in the file, the table and the references: all digests are right.
    let patch = patch();
    let mut manifest = patch.manifest().clone();
    manifest.sections.swap(2, 3);
    (manifest.terms[0].row_scales, manifest.terms[0].column_scales) = (3, 2);
    let mut bytes = patch.bytes().unwrap().to_vec();
    let at = |index| patch.section_offset(index).unwrap();
    let (start, middle, end) = (at(2), at(3), at(4));
    bytes[start..end].rotate_left(middle - start);
    let rest = bytes.split_off(64 + patch.manifest_bytes().len());
    assert!(is_malformed(&Patch::decode(seal(&manifest_bytes(&manifest), &rest))));
}

/// Puts a manifest at a limit when given the limit, past it when given more.
type Fill = fn(&mut Manifest, usize);

const LIMITS: &[(&str, usize, Fill)] = &[
    ("facts", layout::FACTS_MAX, |m, count| m.facts = vec![smallest_fact(); count]),
    ("metrics", layout::METRICS_MAX, |m, count| m.measured = vec![m.measured[0].clone(); count]),
    ("layers", layout::LAYERS_MAX, |m, count| m.recipe.layers = (0..count as u32).collect()),
    ("contexts", layout::CONTEXTS_MAX, |m, count| m.recipe.contexts = vec![vec!["{}".into(); count]]),
    ("groups of contexts", layout::CONTEXTS_MAX, |m, count| m.recipe.contexts = vec![vec![]; count]),
    ("parents", layout::PARENTS_MAX, |m, count| m.parents = vec![m.parents[0]; count]),
    ("superseded patches", layout::PARENTS_MAX, |m, count| m.supersedes = vec![m.parents[0]; count]),
    ("a tensor's name", layout::NAME_SIZE_MAX_BYTES, |m, size| {
        m.bindings[0].tensors[1].name = "x".repeat(size)
    }),
    ("the architecture", layout::NAME_SIZE_MAX_BYTES, |m, size| m.base.architecture = "x".repeat(size)),
    ("a note", layout::TEXT_SIZE_MAX_BYTES, |m, size| m.facts[0].note = Some("x".repeat(size))),
    ("a context", layout::TEXT_SIZE_MAX_BYTES, |m, size| m.recipe.contexts = vec![vec!["x".repeat(size)]]),
    ("the title", layout::TEXT_SIZE_MAX_BYTES, |m, size| m.about.title = Some("x".repeat(size))),
    ("hyperparameters", layout::HYPERPARAMETERS_SIZE_MAX_BYTES, |m, size| {
        m.recipe.hyperparameters = "x".repeat(size);
    }),
];

fn smallest_fact() -> Fact {
    let empty = String::new;
    Fact { id: None, prompt: empty(), subject: empty(), target_new: empty(), target_old: None, note: None }
}

#[test]
fn limits_hold_at_the_limit_and_one_past_it() {
    for &(what, limit, fill) in LIMITS {
        let result = changed(|manifest| fill(manifest, limit));
        assert!(result.is_ok(), "{what} at the limit: {}", result.unwrap_err());
        let result = changed(|manifest| fill(manifest, limit + 1));
        assert!(is_beyond_limit(&result), "{what} past the limit: {result:?}");
    }
}

#[test]
fn dimensions_ranks_and_sizes_have_limits() {
    let beyond: &[(&str, Change)] = &[
        ("rows", |m| m.terms[0].rows = layout::DIMENSION_MAX + 1),
        ("columns", |m| m.bindings[0].tensors[0].shape[1] = layout::DIMENSION_MAX + 1),
        ("rank", |m| m.terms[0].integers = IntegersEntry::LowRank { rank: 7, left: 0, right: 1 }),
        ("decoded bytes", |m| {
            m.sections[0].decoded_size = layout::SECTION_DECODED_SIZE_MAX_BYTES + 1;
        }),
        ("undo log", |m| {
            let undo = tensor(m).undo as usize;
            m.sections[undo].codec = Codec::Zstd;
            m.sections[undo].decoded_size = 8 + 4 + 8 * 60 + 1;
        }),
        ("correction", |m| {
            let correction = tensor(m).correction.unwrap() as usize;
            m.sections[correction].codec = Codec::Zstd;
            m.sections[correction].decoded_size = CORRECTION_SIZE_MAX_BYTES + 1;
        }),
        ("bindings", |m| m.bindings = vec![m.bindings[0].clone(); layout::BINDINGS_MAX + 1]),
        ("terms", |m| m.terms = vec![m.terms[0].clone(); layout::TERMS_MAX + 1]),
        ("tensors", |m| m.bindings[0].tensors = vec![tensor(m).clone(); layout::TENSORS_MAX + 1]),
    ];
    for (what, change) in beyond {
        let result = changed(change);
        assert!(is_beyond_limit(&result), "{what}: {result:?}");
    }
    // Every weight of the draft's corrected tensor has a difference of two bytes: that is the limit.
    let manifest = patch().manifest().clone();
    let correction = manifest.bindings[0].tensors[0].correction.unwrap() as usize;
    assert_eq!(manifest.sections[correction].decoded_size, CORRECTION_SIZE_MAX_BYTES);
    // At the limit a dimension is only wrong in that nothing else has it.
    assert!(is_malformed(&changed(|m| m.terms[0].rows = layout::DIMENSION_MAX)));
}

/// The largest correction of 6 by 10 weights in F16.
const CORRECTION_SIZE_MAX_BYTES: u64 = 1 + 8 + 2 * 60;

#[test]
fn a_draft_that_breaks_a_rule_is_not_written() {
    let breaks: [fn(&mut Draft); 4] = [
        |draft| draft.bindings.clear(),
        |draft| draft.bindings[0].tensors[0].terms = vec![9],
        |draft| draft.about.title = Some("\u{1b}[2J".into()),
        |draft| draft.about.author = Some("x".repeat(layout::TEXT_SIZE_MAX_BYTES + 1)),
    ];
    for change in breaks {
        let mut draft = drafts::full();
        change(&mut draft);
        assert!(encode(&draft).is_err());
    }
}

/// A checkpoint of the one tensor of the tiny draft.
fn checkpoint(weights: &[u8]) -> Checkpoint {
    let header = br#"{"w":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
    let mut file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    file.write_all(&[&(header.len() as u64).to_le_bytes(), &header[..], weights].concat()).unwrap();
    Checkpoint::open(file.path()).unwrap()
}

/// By how much those weights change. The sixth one is infinite: it has no norm.
fn norm_ratio(before: &[u8], after: &[u8]) -> f64 {
    let number = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f64();
    let norm = |value: &dyn Fn(usize) -> f64| (0..5).map(|at| value(at).powi(2)).sum::<f64>().sqrt();
    norm(&|at| number(after, at) - number(before, at)) / norm(&|at| number(before, at))
}

/// What computing both states gives, and the problem in words.
fn computed(checkpoint: &Checkpoint, draft: &Draft) -> (DigestEvidence, String) {
    let patch = Patch::decode(encode(draft).unwrap()).unwrap();
    let found = verify(checkpoint, &patch, Depth::BothStates, &|_| ()).unwrap().digests.unwrap();
    let problem = found.problem().unwrap_or_default();
    (found, problem)
}

#[test]
fn an_undo_log_beside_a_correction_that_says_something_else_fails_v2() {
    let (mut draft, weights) = drafts::tiny();
    let before = &weights[0].bytes;
    let mut after = drafts::edit(&weights[0], &[&draft.terms[0]]).after;
    // The correction makes a number of the weight that is none.
    after[10..].copy_from_slice(&f16::ONE.to_le_bytes());
    drafts::correct(&mut draft.bindings[0].tensors[0], &weights[0], &draft.terms, &after);
    draft.bindings[0].tensors[0].norm_ratio = norm_ratio(before, &after);
    let [base, edited] = [before, &after].map(|bytes| checkpoint(bytes));
    for checkpoint in [&base, &edited] {
        let (found, problem) = computed(checkpoint, &draft);
        assert!(found.holds(), "{problem}");
        let other = &found.found().unwrap().tensors[0].other;
        assert!(matches!(other, OtherState::Computed { not_finite: 0, .. }), "{other:?}");
    }
    // Another of the weights that become the one that is there.
    *draft.bindings[0].tensors[0].undo.last_chunk_mut::<8>().unwrap().first_mut().unwrap() ^= 1;
    let (found, problem) = computed(&base, &draft);
    assert!(!found.holds() && problem.contains("are not what they were"), "{problem}");
    let (found, problem) = computed(&edited, &draft);
    assert!(!found.holds() && problem.contains("before the patch hashes to"), "{problem}");
}

#[test]
fn a_norm_ratio_that_is_not_that_of_the_change_fails_v2() {
    let (mut draft, weights) = drafts::tiny();
    let before = &weights[0].bytes;
    let after = drafts::edit(&weights[0], &[&draft.terms[0]]).after;
    let states = [before, &after].map(|bytes| checkpoint(bytes));
    let ratio = norm_ratio(before, &after);
    let stated =
        [(ratio, true), (ratio * 1.000_002, false), (1e-9, false), (1e300, false), (f64::INFINITY, false)];
    for (stated, holds) in stated {
        draft.bindings[0].tensors[0].norm_ratio = stated;
        let patch = Patch::decode(encode(&draft).unwrap()).unwrap();
        for checkpoint in &states {
            let verified = |depth| verify(checkpoint, &patch, depth, &|_| ()).unwrap().digests.unwrap();
            assert!(verified(Depth::Digests).holds(), "only computing can tell");
            let found = verified(Depth::BothStates);
            let words =
                format!("tensor `w` changes by {ratio:.7e} of its norm, the patch says by {stated:.7e}");
            assert!(holds || format!("{ratio:.7e}") != format!("{stated:.7e}"), "both are told alike");
            assert_eq!((found.holds(), found.problem()), (holds, (!holds).then_some(words)));
        }
    }
}

#[test]
fn what_a_later_version_needs_is_said() {
    for (major, minor) in [(1, 1), (2, 0), (0, 9), (u16::MAX, u16::MAX)] {
        let mut bytes = patch().bytes().unwrap().to_vec();
        bytes[layout::VERSION_MAJOR_OFFSET..][..2].copy_from_slice(&u16::to_le_bytes(major));
        bytes[layout::VERSION_MINOR_OFFSET..][..2].copy_from_slice(&u16::to_le_bytes(minor));
        let error = Patch::decode(bytes).unwrap_err();
        let found = Version { major, minor };
        assert_eq!(error, PatchError::UnsupportedVersion { found });
        let text = format!("the patch needs format {major}.{minor}, this program reads {VERSION}");
        assert_eq!(error.to_string(), text);
    }
    let mut bytes = patch().bytes().unwrap().to_vec();
    bytes[layout::FLAGS_OFFSET] = 2;
    assert_eq!(Patch::decode(bytes).unwrap_err(), PatchError::UnsupportedFlags { found: 2 });
    assert!(is_malformed(&changed(|manifest| tensor(manifest).correction = Some(9))));
}

#[test]
fn signature_blocks_that_do_not_end_with_the_file_are_refused() {
    let patch = patch();
    let bytes = patch.bytes().unwrap();
    let sections = &bytes[64 + patch.manifest_bytes().len()..bytes.len() - 4];
    let decode = |block: &[u8]| Patch::decode(seal(patch.manifest_bytes(), &[sections, block].concat()));
    assert!(decode(&[0; 4]).is_ok());
    assert!(decode(&[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0xaa]).is_ok());
    assert!(is_malformed(&decode(&[0; 3])));
    assert!(is_malformed(&decode(&[0; 5])));
    assert!(is_malformed(&decode(&[1, 0, 0, 0, 1, 0, 0, 0])));
    assert!(is_malformed(&decode(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])));
    assert!(is_malformed(&decode(&[1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0xaa])));
    assert!(is_beyond_limit(&decode(&[17, 0, 0, 0])));
    assert!(is_beyond_limit(&decode(&[0xff; 4])));
    assert!(is_beyond_limit(&decode(&[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])));
    let unknown = decode(&[1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0xaa]);
    assert!(matches!(unknown, Err(PatchError::UnsupportedFeature { .. })), "{unknown:?}");
}

#[test]
fn whatever_is_accepted_has_one_encoding() {
    // Tags, options and UTF-8 can be wrong: every byte of the manifest gets many values, those near its own included.
    let patch = patch();
    let rest = &patch.bytes().unwrap()[64 + patch.manifest_bytes().len()..];
    for index in 0..patch.manifest_bytes().len() {
        for value in [0, 1, 2, 3, 4, 0x7f, 0x80, 0xc0, 0xff] {
            let mut manifest = patch.manifest_bytes().to_vec();
            manifest[index] = value;
            if let Ok(read) = Patch::decode(seal(&manifest, rest)) {
                assert_eq!(manifest_bytes(read.manifest()), manifest);
            }
        }
    }
}

#[test]
fn the_threat_model_states_the_limits_of_checkpoints() {
    use mpatch::checkpoint;
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/threat-model.md");
    let document = std::fs::read_to_string(path).unwrap();
    let table = document.split("## Limits of checkpoints").nth(1).unwrap().split("\n## ").next().unwrap();
    macro_rules! rows {
        ($($name:ident)*) => { vec![$(format!("| `{}` | {} |", stringify!($name), checkpoint::$name)),*] };
    }
    let rows = rows![
        HEADER_SIZE_BYTES_MAX TENSOR_NAME_BYTES_MAX DIMENSIONS_MAX METADATA_ENTRIES_MAX INDEX_SIZE_BYTES_MAX
        SHARDS_MAX TENSORS_MAX COMPANION_SIZE_BYTES_MAX
    ];
    assert_eq!(table.lines().filter(|line| line.starts_with("| `")).count(), rows.len());
    for row in rows {
        assert!(table.contains(&row), "{row}");
    }
}
