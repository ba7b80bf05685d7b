//! Patches: their preludes, their signature blocks, what their sections hold, and what comes of applying them.

use mpatch::digest::{PatchId, TensorDigest, WeightsId};
use mpatch::patch::layout::{FILE_SIZE_OFFSET, FLAGS_OFFSET, MANIFEST_SIZE_OFFSET, PATCH_ID_OFFSET};
use mpatch::patch::manifest::IntegersEntry;
use mpatch::tensor::Dtype;

use super::file::File;
use super::{Collection, Kind};

/// The example with some bytes replaced.
fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = File::tiny().bytes();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    file
}

pub fn preludes() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    lengths(&mut vectors);
    magics(&mut vectors);
    ids(&mut vectors);
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.unsupported(name, reason, error, bytes);
    };
    add("version_1_1", "the next minor version", "the patch needs format 1.1", at(10, &[1]));
    add("version_2_0", "the next major version", "the patch needs format 2.0", at(8, &[2]));
    add("version_0_0", "no version", "the patch needs format 0.0", at(8, &[0]));
    add(
        "version_big_endian",
        "the version's bytes are in the wrong order",
        "the patch needs format 256.0",
        at(8, &[0, 1]),
    );
    add("flags_1", "the lowest flag", "the patch sets flags 0x00000001", at(FLAGS_OFFSET, &[1]));
    add(
        "flags_highest",
        "the highest flag",
        "the patch sets flags 0x80000000",
        at(FLAGS_OFFSET + 3, &[0x80]),
    );
    vectors
}

fn lengths(vectors: &mut Collection) {
    let tiny = File::tiny().bytes();
    let size = tiny.len();
    for (name, reason, length) in [
        ("no_bytes", "an empty file", 0),
        ("truncated_in_magic", "the file ends within the magic", 7),
        ("truncated_in_prelude", "the file ends within the prelude", 63),
        ("truncated_in_manifest", "the file ends within the manifest", 500),
        ("truncated_before_signatures", "the signature block is missing", size - 4),
        ("truncated_by_one", "the last byte is missing", size - 1),
    ] {
        vectors.malformed(name, reason, &format!("truncated: {length} of at least"), &tiny[..length]);
    }
    let mut add =
        |name: &str, reason: &str, error: &str, bytes: Vec<u8>| vectors.malformed(name, reason, error, bytes);
    add(
        "extended_by_one",
        "a byte behind the file",
        "1 bytes follow the end at 1055",
        [&tiny[..], &[0]].concat(),
    );
    add("twice", "the file twice", "1055 bytes follow the end at 1055", tiny.repeat(2));
    let stating = |size: u64| at(FILE_SIZE_OFFSET, &size.to_le_bytes());
    add("file_size_one_less", "a file size one less", "1 bytes follow the end at 1054", stating(1054));
    add("file_size_one_more", "a file size one more", "truncated: 1055 of at least 1056", stating(1056));
    add("file_size_0", "a file size of 0", "1055 bytes follow the end at 0", stating(0));
    add(
        "file_size_largest",
        "a file size of 2^64 - 1",
        "truncated: 1055 of at least 18446744073709551615",
        stating(u64::MAX),
    );
    let stating = |size: u64| at(MANIFEST_SIZE_OFFSET, &size.to_le_bytes());
    add("manifest_size_one_less", "a manifest size one less", "damaged manifest", stating(941));
    add(
        "manifest_size_to_the_end",
        "a manifest that takes the signature block's bytes",
        "states a manifest of 991 bytes",
        stating(991),
    );
    vectors.beyond_limit(
        "manifest_size_beyond_limit",
        "a manifest size one above the limit",
        "the manifest's bytes: 16777217",
        stating((16 << 20) + 1),
    );
    vectors.beyond_limit(
        "manifest_size_largest",
        "a manifest size of 2^64 - 1",
        "the manifest's bytes: 18446744073709551615",
        stating(u64::MAX),
    );
}

fn magics(vectors: &mut Collection) {
    let tiny = File::tiny().bytes();
    let mut add =
        |name: &str, reason: &str, bytes: Vec<u8>| vectors.malformed(name, reason, "not a patch", bytes);
    let text_mode = [&tiny[..7], b"\r\n", &tiny[8..]].concat();
    add("magic_text_mode", "line feeds have become two characters", text_mode);
    add(
        "magic_seven_bits",
        "the highest bit of every byte is lost",
        tiny.iter().map(|byte| byte & 0x7f).collect(),
    );
    add("magic_lower_case", "the magic in lower case", at(1, b"mpatch"));
    add("magic_png", "the magic of a PNG", at(0, b"\x89PNG\r\n\x1a\n"));
    add(
        "magic_utf8",
        "the file was read as Latin-1 and written as UTF-8",
        tiny.iter().flat_map(|byte| char::from(*byte).to_string().into_bytes()).collect(),
    );
    add("magic_zstd", "the patch inside a zstd frame", [&[0x28, 0xb5, 0x2f, 0xfd], &tiny[..]].concat());
    add("safetensors", "a checkpoint", super::base());
}

fn ids(vectors: &mut Collection) {
    let tiny = File::tiny().bytes();
    let manifest = &tiny[64..64 + 942];
    let id = *PatchId::derive(manifest).as_bytes();
    let mut add = |name: &str, reason: &str, id: [u8; 32]| {
        vectors.malformed(name, reason, "damaged manifest", at(PATCH_ID_OFFSET, &id))
    };
    let mut flipped = id;
    flipped[0] ^= 0x80;
    add("id_flipped", "a patch id with one bit flipped", flipped);
    add("id_zero", "a patch id of zeros", [0; 32]);
    add("id_plain", "the plain BLAKE3 of the manifest", *blake3::hash(manifest).as_bytes());
    add(
        "id_of_weights",
        "the manifest's id in the context of weights",
        *WeightsId::derive(manifest).as_bytes(),
    );
    let with_prelude = *PatchId::derive(&tiny[..64 + 942]).as_bytes();
    add("id_with_prelude", "an id of prelude and manifest", with_prelude);
    let mut damaged = at(64, &[0x0e]);
    damaged[64 + 8 + 15] ^= 0;
    vectors.malformed("manifest_flipped", "one bit of the manifest is flipped", "damaged manifest", damaged);
}

pub fn signature_blocks() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    let with = |block: &[u8]| File::tiny().with(|file| file.block = block.to_vec()).bytes();
    let one = |kind: u32, size: u32, bytes: &[u8]| {
        [&1_u32.to_le_bytes()[..], &kind.to_le_bytes(), &size.to_le_bytes(), bytes].concat()
    };
    let mut add = |name: &str, reason: &str, error: &str, block: &[u8]| {
        vectors.malformed(&format!("signatures_{name}"), reason, error, with(block));
    };
    // Without a block the prelude's sizes leave no room for one, which is seen first.
    add("three_bytes", "a block of three bytes", "do not fit a file of 1054", &[0; 3]);
    add("byte_behind", "a byte behind a block of none", "1 bytes follow the last signature", &[0; 5]);
    add("one_missing", "a block of one that ends behind its count", "ends within signature 0", &[1, 0, 0, 0]);
    add("header_cut", "a signature's size is cut off", "ends within signature 0", &one(1, 1, &[])[..11]);
    add("empty", "a signature of no bytes", "signature 0 is empty", &one(1, 0, &[]));
    add("cut", "a signature that ends early", "ends within signature 0", &one(1, 2, &[0xaa]));
    add(
        "behind_one",
        "a byte behind the only signature",
        "1 bytes follow the last signature",
        &one(1, 1, &[0xaa, 0]),
    );
    let two = [&2_u32.to_le_bytes()[..], &one(1, 1, &[0xaa])[4..]].concat();
    add("second_missing", "two signatures, of which one is there", "ends within signature 1", &two);
    vectors.unsupported("signatures_kind_0", "a signature of kind 0", "kind 0", with(&one(0, 1, &[0xaa])));
    vectors.unsupported(
        "signatures_kind_2",
        "a signature of a later kind",
        "kind 2",
        with(&one(2, 1, &[0xaa])),
    );
    let beyond = |count: u32| with(&count.to_le_bytes());
    vectors.beyond_limit("signatures_17", "a signature too many", "signatures: 17", beyond(17));
    vectors.beyond_limit(
        "signatures_largest",
        "2^32 - 1 signatures",
        "signatures: 4294967295",
        beyond(u32::MAX),
    );
    let error = "bytes of signature 0: 65537";
    vectors.beyond_limit(
        "signatures_size_65537",
        "a signature one byte too long",
        error,
        with(&one(1, 65_537, &[0xaa])),
    );
    let error = "bytes of signature 0: 4294967295";
    vectors.beyond_limit(
        "signatures_size_largest",
        "a signature of 2^32 - 1 bytes",
        error,
        with(&one(1, u32::MAX, &[0xaa])),
    );
    vectors
}

/// The example with other bytes in one section, the first factor of `bits` bits.
fn holding(section: usize, bytes: &[u8]) -> Vec<u8> {
    File::tiny().with(|file| file.sections[section] = bytes.to_vec()).bytes()
}

/// The example with both factors in integers of `bits` bits.
fn wide(bits: u8, left: [i16; 2], right: [i16; 3]) -> Vec<u8> {
    let planes = |values: &[i16]| -> Vec<u8> {
        let byte = |index: usize| values.iter().map(move |value| value.to_le_bytes()[index]);
        byte(0).chain(byte(1)).take(if bits > 8 { 2 } else { 1 } * values.len()).collect()
    };
    let file = File::tiny().with(|file| {
        file.manifest.terms[0].bits = bits;
        (file.sections[0], file.sections[1]) = (planes(&left), planes(&right));
    });
    file.bytes()
}

pub fn contents() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    for (name, reason, error, bits, value) in [
        ("range_4_bits", "8 among integers of 4 bits", "holds 8, outside the range of 4 bits", 4, 8),
        ("range_4_bits_minus", "-8 among integers of 4 bits", "holds -8, outside the range of 4 bits", 4, -8),
        ("range_2_bits_minus", "-2 among integers of 2 bits", "holds -2, outside the range of 2 bits", 2, -2),
        (
            "range_8_bits_minus",
            "-128 among integers of 8 bits",
            "holds -128, outside the range of 8 bits",
            8,
            -128,
        ),
        ("range_9_bits", "256 among integers of 9 bits", "holds 256, outside the range of 9 bits", 9, 256),
        (
            "range_16_bits_minus",
            "-32768 among integers of 16 bits",
            "holds -32768, outside the range of 16 bits",
            16,
            i16::MIN,
        ),
    ] {
        vectors.malformed(name, reason, error, wide(bits, [value, 0], [0; 3]));
        let reason = format!("{reason}, in the right factor");
        vectors.malformed(&format!("{name}_right"), &reason, error, wide(bits, [0; 2], [0, 1, value]));
    }
    let largest = |bits: u8| ((1_i32 << (bits - 1)) - 1) as i16;
    for bits in [2, 8, 9, 16] {
        let limit = largest(bits);
        let reason = format!("the largest integers of {bits} bits");
        vectors.right(
            &format!("largest_{bits}_bits"),
            &reason,
            wide(bits, [limit, -limit], [limit, -limit, 0]),
        );
    }
    for (name, reason, error, scale) in [
        ("scale_nan", "a scale that is no number", "scale 1 is NaN", 0x7fc0_0000_u32),
        ("scale_signalling_nan", "a scale that is no number, and signals", "scale 1 is NaN", 0x7f80_0001),
        ("scale_infinite", "an infinite scale", "scale 1 is inf", 0x7f80_0000),
        ("scale_minus_infinity", "a scale of minus infinity", "scale 1 is -inf", 0xff80_0000),
        ("scale_negative", "a negative scale", "scale 1 is -1", 0xbf80_0000),
        ("scale_smallest_negative", "the negative scale next to zero", "scale 1 is -0.0", 0x8000_0001),
    ] {
        let row = [&0x3d00_0000_u32.to_le_bytes()[..], &scale.to_le_bytes()].concat();
        vectors.malformed(&format!("row_{name}"), reason, &format!("row {error}"), holding(2, &row));
        let column = [&row[..], &[0; 4]].concat();
        vectors.malformed(&format!("column_{name}"), reason, &format!("column {error}"), holding(3, &column));
    }
    let scales = |scale: u32| holding(2, &scale.to_le_bytes().repeat(2));
    vectors.right("scale_0", "scales of zero", scales(0));
    vectors.right("scale_minus_0", "scales of minus zero, which is not negative", scales(0x8000_0000));
    vectors.right("scale_subnormal", "the smallest scales", scales(1));
    vectors.right("scale_largest", "the largest scales", scales(0x7f7f_ffff));
    vectors.right("dense", "a dense term", dense());
    vectors
}

/// The example's shape with a dense term.
fn dense() -> Vec<u8> {
    let file = File::tiny().with(|file| {
        file.manifest.terms[0].integers = IntegersEntry::Dense { section: 0 };
        (file.manifest.terms[0].row_scales, file.manifest.terms[0].column_scales) = (1, 2);
        file.manifest.bindings[0].tensors[0].undo = 3;
        file.manifest.sections.remove(1);
        file.sections.remove(1);
        file.sections[0] = vec![0, 1, 2, 0xff, 0xfe, 7];
    });
    file.bytes()
}

/// An undo log of the example's tensor: rows to a block, blocks, words of each, words.
fn log(rows: u32, blocks: u32, counts: &[u32], words: &[u64]) -> Vec<u8> {
    let head = [rows, blocks].into_iter().chain(counts.iter().copied()).flat_map(u32::to_le_bytes);
    head.chain(words.iter().flat_map(|word| word.to_le_bytes())).collect()
}

pub fn undo_logs() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    let mut add = |name: &str, reason: &str, error: &str, log: &[u8]| {
        vectors.malformed(&format!("undo_{name}"), reason, error, holding(4, log));
    };
    add("empty", "an undo log of no bytes", "the header is cut short", &[]);
    add(
        "header_cut",
        "the number of blocks is cut off",
        "the header is cut short",
        &[0x55, 0x55, 0, 0, 1, 0, 0],
    );
    add(
        "rows_one_less",
        "blocks of one row less",
        "blocks of 21844 rows, expected 21845",
        &log(21844, 1, &[1], &[0x3006]),
    );
    add("rows_0", "blocks of no rows", "blocks of 0 rows, expected 21845", &log(0, 1, &[1], &[0x3006]));
    add("no_block", "no block", "0 blocks, expected 1", &log(21845, 0, &[], &[]));
    add("two_blocks", "a block too many", "2 blocks, expected 1", &log(21845, 2, &[1, 0], &[0x3006]));
    add(
        "blocks_largest",
        "2^32 - 1 blocks",
        "4294967295 blocks, expected 1",
        &log(21845, u32::MAX, &[1], &[]),
    );
    add("counts_cut", "the numbers of words are cut off", "too few for 1 blocks", &log(21845, 1, &[], &[]));
    add(
        "word_missing",
        "a word is missing",
        "1 words announced, 0 bytes of words found",
        &log(21845, 1, &[1], &[]),
    );
    add(
        "word_cut",
        "a word is cut off",
        "1 words announced, 7 bytes of words found",
        &log(21845, 1, &[1], &[0x3006])[..19],
    );
    add(
        "word_behind",
        "a word that no block has",
        "0 words announced, 8 bytes of words found",
        &log(21845, 1, &[0], &[0x3006]),
    );
    add(
        "byte_behind",
        "a byte behind the words",
        "1 words announced, 9 bytes of words found",
        &[&log(21845, 1, &[1], &[0x3006])[..], &[0]].concat(),
    );
    add(
        "words_largest",
        "2^32 - 1 words",
        "4294967295 words announced",
        &log(21845, 1, &[u32::MAX], &[0x3006]),
    );
    let no_words = log(21845, 1, &[0], &[]);
    vectors.right(
        "undo_no_words",
        "an undo log without words, which may fit other weights",
        holding(4, &no_words),
    );
    vectors
}

pub fn applied() -> Collection {
    let mut vectors = Collection::new(Kind::Apply);
    vectors.right("plain", "the example of docs/format.md", File::tiny().bytes());
    let change = |change: fn(&mut mpatch::patch::manifest::TensorBinding)| {
        File::tiny().bytes_after(|manifest| change(&mut manifest.bindings[0].tensors[0]))
    };
    let mut add = |name: &str, expect: u8, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.push(name, expect, reason, error, &bytes);
    };
    let other = change(|tensor| tensor.after = TensorDigest::of(b"something else"));
    add("result", 3, "another digest after", "came out as", other);
    let other = change(|tensor| tensor.before = TensorDigest::of(b"something else"));
    add("base", 6, "another digest before", "hashes to", other);
    let other = change(|tensor| tensor.name = "v".into());
    add("name", 6, "a tensor that the base does not have", "tensor `v`", other);
    add("dtype", 6, "another element type", "tensor `w`", change(|tensor| tensor.dtype = Dtype::BF16));
    let transposed = File::tiny().with(|file| {
        (file.manifest.terms[0].rows, file.manifest.terms[0].columns) = (3, 2);
        file.manifest.bindings[0].tensors[0].shape = [3, 2];
        file.sections.swap(0, 1);
        file.sections.swap(2, 3);
        file.sections[4][..4].copy_from_slice(&32_768_u32.to_le_bytes());
    });
    add("shape", 6, "another shape of as many weights", "tensor `w`", transposed.bytes());
    let integer = File::tiny().with(|file| file.sections[0][0] = 6);
    add("integer", 3, "one integer is another, and nothing else knows", "came out as", integer.bytes());
    let scale = File::tiny().with(|file| file.sections[2][2] ^= 1);
    add("scale", 3, "one scale is the next one, and nothing else knows", "came out as", scale.bytes());
    let overflow = File::tiny().with(|file| file.sections[2] = 1e6_f32.to_le_bytes().repeat(2));
    add("overflow", 3, "a result that the element type cannot hold", "does not fit F16", overflow.bytes());
    vectors
}

pub fn taken_back() -> Collection {
    let mut vectors = Collection::new(Kind::Revert);
    vectors.right("plain", "the example of docs/format.md", File::tiny().bytes());
    let mut add = |name: &str, reason: &str, error: &str, counts: &[u32], words: &[u64]| {
        vectors.malformed(name, reason, error, holding(4, &log(21845, 1, counts, words)));
    };
    add("no_words", "the log has no words for its choices", "its 0 words end too early", &[0], &[]);
    add("word_too_many", "a word that no choice needs", "1 of its 2 words are not used", &[2], &[0x3006, 0]);
    add(
        "remainder",
        "a word that says more than its choices",
        "more than its choices",
        &[1],
        &[0x3006 + 4 * 12_293],
    );
    add("another_choice", "another of the weights that give the result", "came out as", &[1], &[0x3005]);
    vectors
}
