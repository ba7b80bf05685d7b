//! The promises of the file format, and that `docs/format.md` tells the truth about it.

#![allow(clippy::unwrap_used)] // a test that cannot go on has failed

mod drafts;

use mpatch::digest::{PatchId, WeightsId};
use mpatch::factors::{IntegerMatrix, Integers, Term, UndoWriter, Update};
use mpatch::patch::layout::{self, PRELUDE_SIZE_BYTES, SIGNATURE_SIZE_MAX_BYTES, SIGNATURES_MAX};
use mpatch::patch::manifest::Codec;
use mpatch::patch::{Draft, Patch, PatchError, Signature, SignatureKind, encode};
use mpatch::tensor::Dtype;
use proptest::prelude::*;

fn decoded(draft: &Draft) -> Patch {
    Patch::decode(encode(draft).unwrap()).unwrap()
}

/// A draft as the format keeps it: tensors in order of their names.
fn sorted(mut draft: Draft) -> Draft {
    for binding in &mut draft.bindings {
        binding.tensors.sort_by(|first, second| first.name.cmp(&second.name));
    }
    draft
}

#[test]
fn a_patch_says_what_was_drafted() {
    let draft = drafts::full();
    let patch = decoded(&draft);
    assert_eq!(patch.draft().unwrap(), sorted(draft));
    assert_eq!(encode(&patch.draft().unwrap()).unwrap(), patch.bytes().unwrap());
    assert_eq!(patch.id(), PatchId::derive(patch.manifest_bytes()));
}

#[test]
fn the_order_in_which_tensors_are_drafted_does_not_matter() {
    let draft = drafts::full();
    assert_ne!(draft, sorted(draft.clone()));
    assert_eq!(encode(&draft).unwrap(), encode(&sorted(draft)).unwrap());
}

#[test]
fn sections_tile_the_file() {
    let patch = decoded(&drafts::full());
    let mut offset = PRELUDE_SIZE_BYTES + patch.manifest_bytes().len();
    for (index, section) in patch.manifest().sections.iter().enumerate() {
        assert_eq!(patch.section_offset(index as u32), Some(offset));
        offset += section.stored_size as usize;
    }
    assert_eq!(offset as u64 + 4, patch.size_bytes());
}

/// Patches of every kind that the format has, small enough to damage each bit of.
fn samples() -> Vec<(&'static str, Patch)> {
    let mut numbers = drafts::Numbers(9);
    let mut of_terms = |terms: Vec<Term>, dtype: Dtype, uses: &[u32]| {
        let shape = [terms[0].rows(), terms[0].columns()];
        let weights = [numbers.weights("w", dtype, shape)];
        decoded(&drafts::draft(terms.clone(), vec![drafts::binding(&weights, &terms, &[uses])]))
    };
    let mut numbers = drafts::Numbers(10);
    let low_rank = of_terms(vec![numbers.low_rank([7, 5], 3, 6, 0.5)], Dtype::BF16, &[0]);
    let dense = of_terms(vec![numbers.dense([4, 3], 5, 0.5)], Dtype::F32, &[0]);
    let sixteen_bits = of_terms(vec![numbers.low_rank([5, 6], 2, 16, 0.5)], Dtype::F16, &[0]);
    let terms = vec![
        numbers.low_rank([6, 4], 1, 4, 0.3),
        numbers.dense([6, 4], 9, 0.3),
        numbers.dense([6, 4], 2, 0.1),
    ];
    let several_terms = of_terms(terms, Dtype::F16, &[2, 0, 1]);
    let zeros = IntegerMatrix::new("zeros", 9, 64, 8, vec![0; 9 * 64]).unwrap();
    let compressed = Term::new(Integers::Dense(zeros), vec![0.5; 9], vec![1.0; 64]).unwrap();
    let compressed = of_terms(vec![compressed], Dtype::F16, &[0]);
    assert!(
        compressed.manifest().sections.iter().filter(|section| section.codec == Codec::Zstd).count() >= 3
    );
    vec![
        ("the example", decoded(&drafts::tiny().0)),
        ("every field", decoded(&drafts::full())),
        ("low rank", low_rank),
        ("dense", dense),
        ("16 bits", sixteen_bits),
        ("several terms", several_terms),
        ("compressed sections", compressed),
        ("signed", decoded(&drafts::tiny().0).with_signatures(vec![signature(40), signature(3)]).unwrap()),
    ]
}

/// Whether `damaged` is refused. What lies in a signature is for the room `sign` to judge: damage there leaves the
/// same patch, with other signatures.
fn is_noticed(damaged: Vec<u8>, whole: &Patch) -> bool {
    match Patch::decode(damaged) {
        Ok(read) => read.id() == whole.id() && read.signatures() != whole.signatures(),
        Err(_) => true,
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for (name, patch) in samples() {
        let bits = patch.bytes().unwrap().len() * 8;
        for index in 0..bits {
            let mut damaged = patch.bytes().unwrap().to_vec();
            damaged[index / 8] ^= 1 << (index % 8);
            assert!(is_noticed(damaged, &patch), "{name}: bit {index} of {bits}");
        }
    }
}

#[test]
fn every_other_byte_is_noticed() {
    let patch = decoded(&drafts::tiny().0);
    for index in 0..patch.bytes().unwrap().len() {
        for difference in 1..=u8::MAX {
            let mut damaged = patch.bytes().unwrap().to_vec();
            damaged[index] ^= difference;
            assert!(Patch::decode(damaged).is_err(), "byte {index}: {difference:#x} flipped");
        }
    }
}

#[test]
fn every_two_flipped_bits_of_the_prelude_are_noticed() {
    let bytes = encode(&drafts::tiny().0).unwrap();
    let mut damaged = bytes.clone();
    let flip = |damaged: &mut Vec<u8>, index: usize| damaged[index / 8] ^= 1 << (index % 8);
    for first in 0..PRELUDE_SIZE_BYTES * 8 {
        flip(&mut damaged, first);
        for second in 0..first {
            flip(&mut damaged, second);
            assert!(Patch::decode(damaged.clone()).is_err(), "bits {first} and {second}");
            flip(&mut damaged, second);
        }
        flip(&mut damaged, first);
    }
}

#[test]
fn every_truncation_is_noticed() {
    for (name, patch) in samples() {
        for size in 0..patch.bytes().unwrap().len() {
            let error = Patch::decode(patch.bytes().unwrap()[..size].to_vec()).unwrap_err();
            let is_told = matches!(error, PatchError::Truncated { found, .. } if found == size as u64);
            assert!(is_told, "{name}: {error}");
        }
    }
}

#[test]
fn every_additional_byte_is_noticed() {
    for (name, patch) in samples() {
        for byte in 0..=u8::MAX {
            let error = Patch::decode([patch.bytes().unwrap(), &[byte]].concat()).unwrap_err();
            assert!(matches!(error, PatchError::Malformed { .. }), "{name}: {error}");
        }
    }
}

/// All orders of `0..count`.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![vec![]] };
    let shorter = permutations(last);
    let insert = |order: &Vec<usize>, place: usize| [&order[..place], &[last], &order[place..]].concat();
    shorter.iter().flat_map(|order| (0..count).map(move |place| insert(order, place))).collect()
}

#[test]
fn sections_in_another_order_are_noticed() {
    for (name, patch) in samples() {
        let manifest = patch.manifest();
        let start = |index: usize| patch.section_offset(index as u32).unwrap();
        let parts: Vec<&[u8]> = (0..manifest.sections.len())
            .map(|index| {
                &patch.bytes().unwrap()[start(index)..][..manifest.sections[index].stored_size as usize]
            })
            .collect();
        let (head, tail) = (&patch.bytes().unwrap()[..start(0)], parts.concat().len() + start(0));
        // All orders of the first six; of more there would be too many.
        for order in permutations(parts.len().min(6)) {
            let moved: Vec<u8> = order.iter().flat_map(|index| parts[*index]).copied().collect();
            let rest = parts[order.len()..].concat();
            let file = [head, &moved, &rest, &patch.bytes().unwrap()[tail..]].concat();
            if file != patch.bytes().unwrap() {
                let error = Patch::decode(file).unwrap_err();
                assert!(matches!(error, PatchError::Digest { .. }), "{name}, {order:?}: {error}");
            }
        }
    }
}

#[test]
fn a_section_of_another_patch_is_noticed() {
    let mut numbers = drafts::Numbers(11);
    let [one, other] = [0.5, 0.5].map(|scale| {
        let terms = vec![numbers.dense([4, 3], 16, scale)];
        let weights = [numbers.weights("w", Dtype::F32, [4, 3])];
        decoded(&drafts::draft(terms.clone(), vec![drafts::binding(&weights, &terms, &[&[0]])]))
    });
    let range = |patch: &Patch| {
        let start = patch.section_offset(0).unwrap();
        start..start + patch.manifest().sections[0].stored_size as usize
    };
    let mut mixed = one.bytes().unwrap().to_vec();
    mixed.splice(range(&one), other.bytes().unwrap()[range(&other)].iter().copied());
    let sizes = [&one, &other].map(|patch| range(patch).len());
    assert_eq!(sizes[0], sizes[1], "else the size would tell");
    assert!(matches!(Patch::decode(mixed), Err(PatchError::Digest { .. })));
}

#[test]
fn signatures_do_not_change_the_patch() {
    let patch = decoded(&drafts::full());
    let signatures: Vec<_> = (1..=SIGNATURES_MAX).map(signature).collect();
    let signed = patch.clone().with_signatures(signatures.clone()).unwrap();
    let read = Patch::decode(signed.bytes().unwrap().to_vec()).unwrap();
    assert_eq!((read.id(), read.signatures()), (patch.id(), &signatures[..]));
    assert_eq!(read.with_signatures(vec![]).unwrap().bytes().unwrap(), patch.bytes().unwrap());
}

fn signature(size_bytes: usize) -> Signature {
    Signature { kind: SignatureKind::SshSig, bytes: vec![0xa5; size_bytes] }
}

#[test]
fn signatures_have_limits() {
    let patch = decoded(&drafts::full());
    let too_many = vec![signature(1); SIGNATURES_MAX + 1];
    let largest = vec![signature(SIGNATURE_SIZE_MAX_BYTES)];
    let too_large = vec![signature(SIGNATURE_SIZE_MAX_BYTES + 1)];
    let signed = patch.clone().with_signatures(largest).unwrap();
    assert!(Patch::decode(signed.bytes().unwrap().to_vec()).is_ok());
    for signatures in [too_many, too_large] {
        let error = patch.clone().with_signatures(signatures).unwrap_err();
        assert!(matches!(error, PatchError::Limit { .. }), "{error}");
    }
    assert!(patch.with_signatures(vec![signature(0)]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_draft_survives_being_written(
        seed: u64,
        shape in [1_usize..20, 1_usize..20],
        bits in 2_u8..=16,
        rank in 1_usize..8,
        texts in prop::collection::vec("[^\\p{Cc}]{0,40}", 4),
        layers in prop::collection::btree_set(any::<u32>(), 0..5),
        signature_size in 1_usize..200,
    ) {
        let mut numbers = drafts::Numbers(seed);
        let rank = rank.min(shape[0]).min(shape[1]);
        let terms = vec![numbers.low_rank(shape, rank, bits, 0.3), numbers.dense(shape, bits, 0.3)];
        let dtype = [Dtype::F32, Dtype::BF16][seed as usize % 2];
        let weights = [numbers.weights("w", dtype, shape)];
        let mut draft = drafts::draft(terms.clone(), vec![drafts::binding(&weights, &terms, &[&[1, 0]])]);
        draft.recipe.layers = layers.into_iter().collect();
        draft.recipe.seed = seed;
        draft.about.title = Some(texts[0].clone());
        draft.recipe.contexts = vec![texts];
        let patch = decoded(&draft);
        prop_assert_eq!(patch.draft().unwrap(), draft.clone());
        let signed = patch.with_signatures(vec![signature(signature_size)]).unwrap();
        let read = Patch::decode(signed.bytes().unwrap().to_vec()).unwrap();
        prop_assert_eq!(encode(&read.draft().unwrap()).unwrap(), encode(&draft).unwrap());
    }
}

/// The file at `path` in this repository, which `MPATCH_TEST_UPDATE` makes the test write first.
fn pinned(path: &str, bytes: &[u8]) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("MPATCH_TEST_UPDATE").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    std::fs::read(path).unwrap()
}

#[test]
fn the_example_has_the_bytes_it_always_had() {
    let (draft, _) = drafts::tiny();
    let bytes = encode(&draft).unwrap();
    // Nothing in it is compressed, so that no version of zstd can change it.
    assert_eq!(bytes, pinned("fixtures/patches/tiny.mpatch", &bytes));
    assert_eq!(Patch::decode(bytes).unwrap().draft().unwrap(), draft);
}

/// The document that everything here is held against.
fn document() -> String {
    std::fs::read_to_string(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md")).unwrap()
}

/// `text` between two marks, the second after the first.
fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).unwrap_or_else(|| panic!("`{start}` is missing")).1;
    rest.split_once(end).unwrap_or_else(|| panic!("`{end}` is missing")).0
}

#[test]
fn the_document_shows_the_example_whole() {
    let (draft, _) = drafts::tiny();
    let bytes = encode(&draft).unwrap();
    let document = document();
    let mut shown = Vec::new();
    for line in between(&document, "```hexdump\n", "```").lines() {
        let (offset, rest) = line.split_once("  ").unwrap();
        assert_eq!(usize::from_str_radix(offset, 16), Ok(shown.len()), "{line}");
        let digits = rest.split("  ").next().unwrap();
        shown.extend(digits.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()));
    }
    assert_eq!(shown, bytes);
}

#[test]
fn the_document_states_the_limits_that_hold() {
    let document = document();
    let table = between(&document, "## 9. Limits", "## 10.");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let stated: Vec<(&str, u64)> = rows
        .map(|row| {
            let (name, rest) = row.split_once("` | ").unwrap();
            (name, rest.split(' ').next().unwrap().parse().unwrap())
        })
        .collect();
    macro_rules! limits {
        ($($name:ident)*) => { vec![$((stringify!($name), layout::$name as u64)),*] };
    }
    let held = limits![
        MANIFEST_SIZE_MAX_BYTES FACTS_MAX TERMS_MAX BINDINGS_MAX TENSORS_MAX SECTIONS_MAX METRICS_MAX LAYERS_MAX
        CONTEXTS_MAX PARENTS_MAX NAME_SIZE_MAX_BYTES TEXT_SIZE_MAX_BYTES HYPERPARAMETERS_SIZE_MAX_BYTES
        DIMENSION_MAX SECTION_DECODED_SIZE_MAX_BYTES ZSTD_WINDOW_LOG_MAX ZSTD_RATIO_MAX SIGNATURES_MAX
        SIGNATURE_SIZE_MAX_BYTES
    ];
    assert_eq!(stated, held);
}

#[test]
fn the_document_states_the_offsets_that_hold() {
    let document = document();
    let table = between(&document, "## 2. Prelude", "## 3.");
    let stated: Vec<usize> =
        table.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok()).collect();
    let held = [
        layout::MAGIC_OFFSET,
        layout::VERSION_MAJOR_OFFSET,
        layout::VERSION_MINOR_OFFSET,
        layout::FLAGS_OFFSET,
        layout::FILE_SIZE_OFFSET,
        layout::MANIFEST_SIZE_OFFSET,
        layout::PATCH_ID_OFFSET,
        layout::PRELUDE_SIZE_BYTES,
    ];
    assert_eq!(stated, held);
    let magic: Vec<String> = layout::MAGIC.iter().map(|byte| format!("{byte:02X}")).collect();
    assert!(table.contains(&format!("`{}`", magic.join(" "))));
}

#[test]
fn the_document_names_the_contexts_of_the_ids() {
    let document = document();
    assert!(document.contains(&format!("| patch id | `{}` |", PatchId::CONTEXT)));
    assert!(document.contains(&format!("| weights id | `{}` |", WeightsId::CONTEXT)));
    assert!(document.contains(&format!("version {}\n", layout::VERSION)));
}

#[test]
fn the_library_adds_and_logs_as_the_document_says() {
    for (seed, dtype) in [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().enumerate() {
        let mut numbers = drafts::Numbers(seed as u64);
        let shape = [70, 1000];
        let terms = vec![numbers.low_rank(shape, 9, 7, 0.5), numbers.dense(shape, 12, 0.01)];
        let mut weights = numbers.weights("w", dtype, shape);
        let special = drafts::Weights::new("w", dtype, [1, 4], &[0.0, -0.0, f64::NAN, f64::INFINITY]);
        weights.bytes[..special.bytes.len()].copy_from_slice(&special.bytes);
        let slow = drafts::edit(&weights, &terms.iter().collect::<Vec<_>>());

        let update = Update::new(terms).unwrap();
        let mut after = weights.bytes.clone();
        update.apply_rows(dtype, 0..70, &mut after).unwrap();
        assert!(after == slow.after, "{dtype}: another result");
        let mut writer = UndoWriter::new(shape[0], shape[1]);
        writer.apply_rows(&update, dtype, 0..70, &mut weights.bytes).unwrap();
        assert!(weights.bytes == slow.after, "{dtype}: another result while logging");
        assert!(writer.finish().unwrap() == slow.undo, "{dtype}: another undo log");
    }
}
