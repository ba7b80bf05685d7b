//! Manifests: their bytes, their rules, their limits, and the sections that they lay out.

use mpatch::digest::{SectionDigest, WeightsId};
use mpatch::patch::layout;
use mpatch::patch::manifest::{Codec, IntegersEntry, Line, Manifest, Section, SectionKind, TensorBinding};

use super::file::File;
use super::{Collection, Kind};

// Where fields of the example lie in its manifest (docs/format.md, section 11, less the prelude).
const ARCHITECTURE_SIZE: usize = 0;
const FACTS_COUNT: usize = 0x57;
const ID_TAG: usize = 0x5f;
const PROMPT_SIZE: usize = 0x60;
const PROMPT: usize = 0x68;
const LAYERS_COUNT: usize = 0xba;
const INTEGERS_VARIANT: usize = 0x1b8;
const DTYPE_VARIANT: usize = 0x20d;
const CORRECTION_TAG: usize = 0x279;
const KIND_VARIANT: usize = 0x282;
const CODEC_VARIANT: usize = 0x286;

/// The example with some bytes of its manifest replaced.
fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    File::tiny().bytes_of_manifest(|manifest| manifest[offset..offset + bytes.len()].copy_from_slice(bytes))
}

pub fn encodings() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(&format!("manifest_{name}"), reason, error, bytes);
    };
    let decoding = "malformed patch: the manifest: ";
    let one_encoding = "are not the one encoding";
    add("empty", "a manifest of no bytes", decoding, File::tiny().bytes_of_manifest(Vec::clear));
    add("option_tag_2", "an optional field with the tag 2", decoding, at(ID_TAG, &[2]));
    add("option_tag_255", "an optional field with the tag 255", decoding, at(CORRECTION_TAG, &[255]));
    add(
        "integers_unknown",
        "integers that are neither factors nor dense",
        decoding,
        at(INTEGERS_VARIANT, &[2]),
    );
    add("dtype_unknown", "a fourth element type", decoding, at(DTYPE_VARIANT, &[3]));
    add("kind_unknown", "a fifth kind of section", decoding, at(KIND_VARIANT, &[4]));
    add("codec_unknown", "a third codec", decoding, at(CODEC_VARIANT, &[2]));
    add(
        "variant_high_byte",
        "an element type whose number has a bit in its last byte",
        decoding,
        at(DTYPE_VARIANT + 3, &[1]),
    );
    add("text_not_utf8", "a prompt with the byte FF", decoding, at(PROMPT, &[0xff]));
    add("text_overlong", "a character in more bytes than it needs", decoding, at(PROMPT, &[0xc0, 0xaf]));
    add("text_surrogate", "half of a surrogate pair in UTF-8", decoding, at(PROMPT, &[0xed, 0xa0, 0x80]));
    add(
        "text_beyond_unicode",
        "a code point beyond the last one",
        decoding,
        at(PROMPT, &[0xf4, 0x90, 0x80, 0x80]),
    );
    add("text_size_largest", "a text of 2^64 - 1 bytes", decoding, at(ARCHITECTURE_SIZE, &[0xff; 8]));
    add("text_size_2_40", "a text of 2^40 bytes", decoding, at(PROMPT_SIZE, &(1_u64 << 40).to_le_bytes()));
    add(
        "text_size_below_limit",
        "a text of 16 MiB less one byte in a small file",
        decoding,
        at(PROMPT_SIZE, &((16_u64 << 20) - 1).to_le_bytes()),
    );
    add("count_largest", "2^64 - 1 facts", decoding, at(FACTS_COUNT, &[0xff; 8]));
    add("count_2_32", "2^32 layers", decoding, at(LAYERS_COUNT, &(1_u64 << 32).to_le_bytes()));
    add(
        "byte_behind",
        "a byte behind the last field",
        one_encoding,
        File::tiny().bytes_of_manifest(|manifest| manifest.push(0)),
    );
    let padded = File::tiny().bytes_of_manifest(|manifest| manifest.resize(manifest.len() + 64, 0));
    add("padded", "zeros behind the last field", one_encoding, padded);
    let cut = File::tiny().bytes_of_manifest(|manifest| manifest.truncate(manifest.len() - 1));
    add("truncated", "the last byte is missing", decoding, cut);
    let twice = File::tiny().bytes_of_manifest(|manifest| manifest.extend(manifest.clone()));
    add("twice", "the manifest twice", one_encoding, twice);
    let variable = bincode::serde::encode_to_vec(File::tiny().manifest, bincode::config::standard()).unwrap();
    add(
        "variable_width",
        "integers of variable width, as bincode has them by default",
        decoding,
        File::tiny().bytes_of_manifest(|manifest| *manifest = variable),
    );
    let big_endian = bincode::config::legacy().with_big_endian();
    let big_endian = bincode::serde::encode_to_vec(File::tiny().manifest, big_endian).unwrap();
    add(
        "big_endian",
        "integers with their high byte first",
        decoding,
        File::tiny().bytes_of_manifest(|manifest| *manifest = big_endian),
    );
    let json = serde_json::to_vec(&File::tiny().manifest).unwrap();
    add("json", "a manifest in JSON", decoding, File::tiny().bytes_of_manifest(|manifest| *manifest = json));
    vectors
}

/// The first touched tensor.
fn tensor(manifest: &mut Manifest) -> &mut TensorBinding {
    &mut manifest.bindings[0].tensors[0]
}

/// Breaks one rule.
type Change = fn(&mut Manifest);

/// Rules of section 3 about what the manifest says, on the example.
const BROKEN: &[(&str, &str, &str, Change)] = &[
    ("tensor_without_name", "a tensor without a name", "a tensor without a name", |m| tensor(m).name.clear()),
    ("tensor_name_escape", "a tensor's name that would clear a terminal", "holds control characters", |m| {
        tensor(m).name = "\u{1b}[2J".into()
    }),
    ("tensor_name_line_feed", "a tensor's name on two lines", "holds control characters", |m| {
        tensor(m).name = "w\nx".into()
    }),
    ("tensor_name_delete", "a tensor's name with a delete character", "holds control characters", |m| {
        tensor(m).name = "w\u{7f}".into()
    }),
    (
        "tensor_name_c1",
        "a tensor's name with a control character beyond ASCII",
        "holds control characters",
        |m| tensor(m).name = "w\u{9b}2J".into(),
    ),
    ("no_terms", "a tensor without terms", "no terms", |m| tensor(m).terms.clear()),
    ("term_twice", "a tensor that names a term twice", "names term 0 twice", |m| {
        tensor(m).terms = vec![0, 0]
    }),
    ("term_missing", "a tensor that names a term that is not there", "names term 1 of 1", |m| {
        tensor(m).terms = vec![0, 1]
    }),
    ("term_other_rows", "a tensor with more rows than its term", "3 by 3, term 0 is 2 by 3", |m| {
        tensor(m).shape = [3, 3]
    }),
    ("term_other_columns", "a tensor with more columns than its term", "2 by 4, term 0 is 2 by 3", |m| {
        tensor(m).shape = [2, 4]
    }),
    ("term_transposed", "a tensor whose term is transposed", "3 by 2, term 0 is 2 by 3", |m| {
        tensor(m).shape = [3, 2]
    }),
    ("norm_ratio_nan", "a norm ratio that is no number", "norm ratio NaN", |m| {
        tensor(m).norm_ratio = f64::NAN
    }),
    ("norm_ratio_negative", "a negative norm ratio", "norm ratio -1", |m| tensor(m).norm_ratio = -1.0),
    ("norm_ratio_minus_0", "a norm ratio of minus zero", "norm ratio -0", |m| tensor(m).norm_ratio = -0.0),
    ("norm_ratio_minus_infinity", "a norm ratio of minus infinity", "norm ratio -inf", |m| {
        tensor(m).norm_ratio = f64::NEG_INFINITY
    }),
    ("rows_0", "a term without rows", "terms[0].rows: 0", |m| m.terms[0].rows = 0),
    ("columns_0", "a term without columns", "terms[0].columns: 0", |m| m.terms[0].columns = 0),
    ("tensor_rows_0", "a tensor without rows", "shape[0]: 0", |m| tensor(m).shape[0] = 0),
    ("bits_0", "integers of no bits", "0 bits: integers have 2 to 16", |m| m.terms[0].bits = 0),
    ("bits_1", "integers of one bit", "1 bits: integers have 2 to 16", |m| m.terms[0].bits = 1),
    ("bits_17", "integers of 17 bits", "17 bits: integers have 2 to 16", |m| m.terms[0].bits = 17),
    ("bits_255", "integers of 255 bits", "255 bits: integers have 2 to 16", |m| m.terms[0].bits = 255),
    ("rank_0", "factors of rank 0", "rank 0", |m| {
        m.terms[0].integers = IntegersEntry::LowRank { rank: 0, left: 0, right: 1 }
    }),
    ("layers_backwards", "layers that descend", "recipe.layers: not ascending", |m| {
        m.recipe.layers = vec![4, 3]
    }),
    ("layers_twice", "a layer twice", "recipe.layers: not ascending", |m| m.recipe.layers = vec![3, 3]),
    ("metric_nan", "a measure that is no number", "measured[0]: 0.25 before and NaN after", |m| {
        m.measured[0].after = f64::NAN
    }),
    ("metric_infinite", "a measure that is infinite", "measured[0]: inf before", |m| {
        m.measured[0].before = f64::INFINITY
    }),
    ("metric_name_tab", "a measure's name with a tab", "measured[0].name", |m| {
        m.measured[0].name = "a\tb".into()
    }),
    ("line_sequence_0", "a line's patch number 0", "a sequence number from 1", |m| {
        m.line = Some(Line { name: "line".into(), sequence: 0 })
    }),
    ("line_without_name", "a line without a name", "needs a name", |m| {
        m.line = Some(Line { name: String::new(), sequence: 1 })
    }),
    ("line_name_escape", "a line's name with an escape character", "line.name", |m| {
        m.line = Some(Line { name: "\u{1b}".into(), sequence: 1 })
    }),
    ("architecture_escape", "an architecture with an escape character", "base.architecture", |m| {
        m.base.architecture = "\u{1b}[31m".into()
    }),
    ("method_line_feed", "a method on two lines", "recipe.method", |m| m.recipe.method = "memit\n".into()),
    ("tool_escape", "a tool with an escape character", "recipe.tool", |m| m.recipe.tool = "\u{1b}".into()),
    ("device_carriage_return", "a device that goes back to the start of its line", "recipe.device", |m| {
        m.recipe.device = "cpu\rgpu".into()
    }),
    ("hyperparameters_zero", "hyperparameters with a zero", "recipe.hyperparameters", |m| {
        m.recipe.hyperparameters = "\0".into()
    }),
    ("fact_id_escape", "an id with an escape character", "facts[0].id", |m| {
        m.facts[0].id = Some("\u{1b}".into())
    }),
    ("prompt_bell", "a prompt with a bell", "facts[0].prompt", |m| m.facts[0].prompt.push('\u{7}')),
    ("subject_carriage_return", "a subject with a carriage return", "facts[0].subject", |m| {
        m.facts[0].subject.push('\r')
    }),
    ("target_backspace", "a target with a backspace", "facts[0].target_new", |m| {
        m.facts[0].target_new.push('\u{8}')
    }),
    ("target_old_c1", "an old target with a control character beyond ASCII", "facts[0].target_old", |m| {
        m.facts[0].target_old = Some("\u{85}".into())
    }),
    ("note_delete", "a note with a delete character", "facts[0].note", |m| {
        m.facts[0].note = Some("\u{7f}".into())
    }),
    ("title_escape", "a title that would rename a window", "about.title", |m| {
        m.about.title = Some("\u{1b}]0;x\u{7}".into())
    }),
    ("author_form_feed", "an author with a form feed", "about.author", |m| {
        m.about.author = Some("\u{c}".into())
    }),
    ("licence_escape", "a licence with an escape character", "about.licence", |m| {
        m.about.licence = Some("MIT\u{1b}c".into())
    }),
];

/// Rules about several bindings, tensors and terms, on the full patch.
const BROKEN_FULL: &[(&str, &str, &str, Change)] = &[
    ("no_binding", "no binding", "bindings: none", |m| m.bindings.clear()),
    ("binding_twice", "two bindings for one state of the weights", "a second binding for weights", |m| {
        m.bindings[1].weights = m.bindings[0].weights
    }),
    ("binding_without_tensors", "a binding without tensors", "bindings[0].tensors: none", |m| {
        m.bindings[0].tensors.clear()
    }),
    ("tensors_backwards", "tensors in descending order of names", "bytewise order", |m| {
        m.bindings[0].tensors.reverse()
    }),
    ("tensor_twice", "two tensors of one name", "bytewise order", |m| {
        m.bindings[0].tensors[1].name = m.bindings[0].tensors[0].name.clone()
    }),
    ("tensors_by_locale", "tensors in an order that minds no case", "bytewise order", |m| {
        for (tensor, name) in m.bindings[0].tensors.iter_mut().zip(["a", "B"]) {
            tensor.name = name.into();
        }
    }),
    ("term_of_another_tensor", "a tensor with the term of another shape", "6 by 10, term 1 is 4 by 3", |m| {
        tensor(m).terms = vec![1]
    }),
];

pub fn rules() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    vectors.right("plain", "the example of docs/format.md", File::tiny().bytes());
    vectors.right("full", "every field in use, two bindings, a dense term of 12 bits", File::full().bytes());
    for &(name, reason, error, change) in BROKEN {
        vectors.malformed(name, reason, error, File::tiny().bytes_after(change));
    }
    for &(name, reason, error, change) in BROKEN_FULL {
        vectors.malformed(name, reason, error, File::full().bytes_after(change));
    }
    let right: &[(&str, &str, Change)] = &[
        ("norm_ratio_infinite", "an infinite norm ratio: the tensor was zero", |m| {
            tensor(m).norm_ratio = f64::INFINITY
        }),
        ("text_line_breaks", "line feeds and tabs in a note", |m| m.facts[0].note = Some("a\n\tb".into())),
        ("text_bidirectional", "characters that turn text, which are escaped where they are shown", |m| {
            m.facts[0].note = Some("\u{202e}x\u{2066}".into())
        }),
        ("context_control", "any character in a context, for a model spoke it", |m| {
            m.recipe.contexts = vec![vec!["\u{1b}\0{}".into()]]
        }),
        ("context_group_empty", "a group of no contexts", |m| m.recipe.contexts = vec![vec![]]),
        ("nothing_optional", "no facts, no measures, no contexts, empty texts", |m| {
            (m.facts, m.measured, m.recipe.contexts) = (vec![], vec![], vec![]);
            (m.recipe.method, m.recipe.tool, m.recipe.device) = Default::default();
            (m.recipe.hyperparameters, m.base.architecture, m.recipe.layers) = Default::default();
        }),
        ("line_sequence_largest", "the last number that a line can have", |m| {
            m.line = Some(Line { name: "é".into(), sequence: u64::MAX })
        }),
        ("parent_twice", "a parent twice, for a patch may have been applied twice", |m| {
            m.parents = vec![mpatch::digest::PatchId::derive(b"x"); 2]
        }),
    ];
    for &(name, reason, change) in right {
        vectors.right(name, reason, File::tiny().bytes_after(change));
    }
    let correction = File::tiny().bytes_after(|m| tensor(m).correction = Some(5));
    vectors.malformed("correction", "a correction without a section", "names section 5 of 5", correction);
    vectors
}

/// Puts a manifest past a limit.
const BEYOND: &[(&str, &str, &str, Change)] = &[
    ("rows_beyond_limit", "a row more than a tensor may have", "terms[0].rows: 2147483649", |m| {
        m.terms[0].rows = layout::DIMENSION_MAX + 1
    }),
    ("columns_beyond_limit", "2^64 - 1 columns", "terms[0].columns: 18446744073709551615", |m| {
        m.terms[0].columns = u64::MAX
    }),
    ("rank_beyond_rows", "a rank above the number of rows", "rank (store it dense instead): 3", |m| {
        m.terms[0].integers = IntegersEntry::LowRank { rank: 3, left: 0, right: 1 }
    }),
    ("rank_largest", "a rank of 2^64 - 1", "rank (store it dense instead)", |m| {
        m.terms[0].integers = IntegersEntry::LowRank { rank: u64::MAX, left: 0, right: 1 }
    }),
    (
        "decoded_beyond_limit",
        "a section that decodes to more than 16 GiB",
        "decoded bytes of section 0",
        |m| m.sections[0].decoded_size = layout::SECTION_DECODED_SIZE_MAX_BYTES + 1,
    ),
    ("undo_beyond_limit", "an undo log larger than any for its tensor", "bytes of undo log", |m| {
        m.sections[4].codec = Codec::Zstd;
        m.sections[4].decoded_size = 8 + 4 + 8 * 6 + 1;
    }),
    ("layers_4097", "a layer too many", "recipe.layers: 4097", |m| m.recipe.layers = (0..4097).collect()),
    ("context_groups_4097", "a group of contexts too many", "recipe.contexts: 4097", |m| {
        m.recipe.contexts = vec![vec![]; 4097]
    }),
    ("metrics_1025", "a measure too many", "measured: 1025", |m| {
        m.measured[0].name.clear();
        m.measured = vec![m.measured[0].clone(); 1025];
    }),
    ("parents_257", "a parent too many", "parents: 257", |m| {
        m.parents = vec![mpatch::digest::PatchId::derive(b"x"); 257]
    }),
    ("supersedes_257", "a superseded patch too many", "supersedes: 257", |m| {
        m.supersedes = vec![mpatch::digest::PatchId::derive(b"x"); 257]
    }),
    ("bindings_17", "a binding too many", "bindings: 17", |m| m.bindings = vec![m.bindings[0].clone(); 17]),
    ("tensor_name_513", "a tensor's name one byte too long", "tensors[0].name: 513", |m| {
        tensor(m).name = "n".repeat(513)
    }),
    ("line_name_513", "a line's name one byte too long", "line.name: 513", |m| {
        m.line = Some(Line { name: "n".repeat(513), sequence: 1 })
    }),
    ("note_4097", "a note one byte too long", "facts[0].note: 4097", |m| {
        m.facts[0].note = Some("x".repeat(4097))
    }),
    ("context_4097", "a context one byte too long", "recipe.contexts[0][0]: 4097", |m| {
        m.recipe.contexts = vec![vec!["x".repeat(4097)]]
    }),
    ("hyperparameters_65537", "hyperparameters one byte too long", "recipe.hyperparameters: 65537", |m| {
        m.recipe.hyperparameters = " ".repeat(65_537)
    }),
];

pub fn limits() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    for &(name, reason, error, change) in BEYOND {
        vectors.beyond_limit(name, reason, error, File::tiny().bytes_after(change));
    }
    let name = |m: &mut Manifest| tensor(m).name = "n".repeat(512);
    vectors.right("tensor_name_512", "the longest name", File::tiny().bytes_after(name));
    let note = |m: &mut Manifest| m.facts[0].note = Some("x".repeat(4096));
    vectors.right("note_4096", "the longest text", File::tiny().bytes_after(note));
    let parents = |m: &mut Manifest| m.parents = vec![mpatch::digest::PatchId::derive(b"x"); 256];
    vectors.right("parents_256", "as many parents as there may be", File::tiny().bytes_after(parents));
    vectors
}

/// Breaks the rule that sections tile the file, one use each, in order.
const TILED: &[(&str, &str, &str, Change)] = &[
    ("section_missing", "a section that is not in the table", "names section 4 of 4", |m| {
        m.sections.truncate(4)
    }),
    ("section_unused", "a section that nothing uses", "1 at the end are not used", |m| {
        m.sections.push(empty_section())
    }),
    (
        "section_twice",
        "row and column scales in one section",
        "names section 2 where section 3 is next",
        |m| m.terms[0].column_scales = 2,
    ),
    ("section_far", "a section of the number 2^32 - 1", "names section 4294967295", |m| {
        m.terms[0].row_scales = u32::MAX
    }),
    (
        "factors_exchanged",
        "the right factor before the left",
        "names section 1 where section 0 is next",
        |m| {
            m.terms[0].integers = IntegersEntry::LowRank { rank: 1, left: 1, right: 0 };
        },
    ),
    ("section_kind", "scales in a section of integers", "needs Scales, section 2 holds Integers", |m| {
        m.sections[2].kind = SectionKind::Integers
    }),
    (
        "section_correction",
        "a correction where the undo log belongs",
        "needs Undo, section 4 holds Correction",
        |m| m.sections[4].kind = SectionKind::Correction,
    ),
    ("section_overlap", "a section that begins a byte early", "1 bytes stored (Stored) for 2 decoded", |m| {
        m.sections[0].stored_size -= 1
    }),
    ("section_hole", "a byte between two sections", "3 bytes stored (Stored) for 2 decoded", |m| {
        m.sections[0].stored_size += 1
    }),
    ("section_shape", "a section whose size is not the shape's", "the shape needs 2", |m| {
        m.sections[0].stored_size += 1;
        m.sections[0].decoded_size += 1;
    }),
    ("section_bits", "integers of nine bits in sections of one plane", "the shape needs 4", |m| {
        m.terms[0].bits = 9
    }),
    ("section_rank", "factors of rank 2 in sections of rank 1", "the shape needs 4", |m| {
        m.terms[0].integers = IntegersEntry::LowRank { rank: 2, left: 0, right: 1 };
    }),
    ("section_dense", "a dense term in the sections of factors", "the shape needs 6", |m| {
        m.terms[0].integers = IntegersEntry::Dense { section: 0 }
    }),
    ("section_beyond_file", "a section that ends behind the file", "do not fit a file of", |m| {
        m.sections[4].stored_size += 8;
        m.sections[4].decoded_size += 8;
    }),
    (
        "section_into_signatures",
        "a section that takes the signature block's bytes",
        "do not fit a file of",
        |m| {
            m.sections[4].stored_size += 4;
            m.sections[4].decoded_size += 4;
        },
    ),
    (
        "section_short",
        "a section that ends early, before bytes that nothing speaks of",
        "damaged section 4",
        |m| {
            m.sections[4].stored_size -= 8;
            m.sections[4].decoded_size -= 8;
        },
    ),
    ("section_size_largest", "a section of 2^64 - 1 bytes", "decoded bytes", |m| {
        m.sections[4].stored_size = u64::MAX;
        m.sections[4].decoded_size = u64::MAX;
    }),
    ("section_digest", "a digest with one bit flipped", "damaged section 2", |m| {
        let mut digest = *m.sections[2].digest.as_bytes();
        digest[31] ^= 1;
        m.sections[2].digest = SectionDigest::from_bytes(digest);
    }),
    ("section_digest_zero", "a digest of zeros", "damaged section 0", |m| {
        m.sections[0].digest = SectionDigest::from_bytes([0; 32])
    }),
    ("section_digest_derived", "a digest of the right bytes in another mode", "damaged section 0", |m| {
        m.sections[0].digest = SectionDigest::from_bytes(*WeightsId::derive(&[7, 0xfd]).as_bytes());
    }),
    ("sections_exchanged", "the table in another order than the file", "needs Integers", |m| {
        m.sections.swap(1, 2)
    }),
];

fn empty_section() -> Section {
    let digest = SectionDigest::of(b"");
    Section { kind: SectionKind::Undo, codec: Codec::Stored, stored_size: 0, decoded_size: 0, digest }
}

pub fn tilings() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    for &(name, reason, error, change) in TILED {
        let expect = if name == "section_size_largest" { 12 } else { 3 };
        vectors.push(name, expect, reason, error, &File::tiny().bytes_after(change));
    }
    let unused = File::full().bytes_after(|m| m.bindings.iter_mut().for_each(|b| b.tensors.truncate(1)));
    vectors.malformed(
        "term_unused",
        "a term and its undo logs that no tensor names",
        "names section",
        unused,
    );
    // Scales exchanged in the file, the table and the term: every digest is right, and only the order is not.
    let exchanged = File::tiny().with(|file| {
        file.sections.swap(2, 3);
        (file.manifest.terms[0].row_scales, file.manifest.terms[0].column_scales) = (3, 2);
    });
    vectors.malformed(
        "sections_in_another_order",
        "column scales before row scales, rightly described",
        "names section 3 where section 2 is next",
        exchanged.bytes(),
    );
    let moved = File::tiny()
        .with(|file| file.sections[1].rotate_left(1))
        .bytes_after(|m| m.sections[1].digest = File::tiny().manifest.sections[1].digest);
    vectors.malformed(
        "section_rotated",
        "the right bytes of a section in another order",
        "damaged section 1",
        moved,
    );
    vectors
}
