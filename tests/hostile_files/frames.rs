//! zstd frames, written out by hand so that no version of zstd changes them (RFC 8878).

use mpatch::patch::layout::ZSTD_RATIO_MAX;
use mpatch::patch::manifest::{Codec, IntegersEntry, Recipe, Section, TensorBinding};

use super::file::File;
use super::{Collection, Kind};

const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// In the descriptor: the content's size in one byte, and no window.
const SINGLE_SEGMENT: u8 = 0x20;
/// In the descriptor: the content's size, less 256, in two bytes.
const SIZE_IN_TWO: u8 = 0x40;
/// In the descriptor: the content's size in eight bytes, behind a window.
const SIZE_IN_EIGHT: u8 = 0xc0;
/// A window of 8 MiB, the largest that is read.
const WINDOW_8_MIB: u8 = 13 << 3;
/// The byte that the sections below are full of; four of it are the scale 0.01149.
const FILL: u8 = 0x3c;
/// Decoded bytes of the section that is a frame: the scales of 60 columns.
const DECODED: u8 = 240;

/// A block: its type (0 raw, 1 one byte repeated, 2 compressed), its size, what it holds, and whether it is the last.
fn block(kind: u32, size: u32, content: &[u8], last: bool) -> Vec<u8> {
    let header = (u32::from(last) | kind << 1 | size << 3).to_le_bytes();
    [&header[..3], content].concat()
}

/// `size` bytes [`FILL`].
fn run(size: u32) -> Vec<u8> {
    block(1, size, &[FILL], true)
}

/// The frame that every vector here differs from in one thing.
fn plain() -> Vec<u8> {
    [&MAGIC[..], &[SINGLE_SEGMENT, DECODED], &run(u32::from(DECODED))].concat()
}

/// A frame of `size` bytes [`FILL`], 256 at least, its size in two bytes.
fn run_of_two_size_bytes(size: u32) -> Vec<u8> {
    [&MAGIC[..], &[SINGLE_SEGMENT | SIZE_IN_TWO], &(size as u16 - 256).to_le_bytes(), &run(size)].concat()
}

fn with_window(window: u8, size: u64) -> Vec<u8> {
    [&MAGIC[..], &[SIZE_IN_EIGHT, window], &size.to_le_bytes(), &run(u32::from(DECODED))].concat()
}

/// A patch of a 2 by 60 matrix whose column scales are `frame`.
fn patch(frame: &[u8]) -> Vec<u8> {
    file(frame).bytes()
}

fn file(frame: &[u8]) -> File {
    file_of(u64::from(DECODED) / 4, frame)
}

/// A patch of a 2 by `columns` matrix whose column scales are `frame`.
fn file_of(columns: u64, frame: &[u8]) -> File {
    File::tiny().with(|file| {
        file.manifest.terms[0].columns = columns;
        file.manifest.bindings[0].tensors[0].shape[1] = columns;
        file.sections[1] = vec![1; columns as usize];
        file.sections[3] = frame.to_vec();
        file.sections[4] =
            [&(65_536 / columns as u32).to_le_bytes()[..], &1_u32.to_le_bytes(), &[0; 4]].concat();
        let scales = &mut file.manifest.sections[3];
        (scales.codec, scales.decoded_size) = (Codec::Zstd, 4 * columns);
    })
}

pub fn frames() -> Collection {
    let mut vectors = Collection::new(Kind::Patch);
    vectors.right("zstd_single_segment", "a frame without a window, its size in one byte", patch(&plain()));
    let largest = with_window(WINDOW_8_MIB, u64::from(DECODED));
    vectors.right(
        "zstd_window_8_mib",
        "a frame with the largest window, its size in eight bytes",
        patch(&largest),
    );
    let halves = [&block(1, 120, &[FILL], false)[..], &block(1, 120, &[FILL], true)].concat();
    let two_blocks = [&MAGIC[..], &[SINGLE_SEGMENT, DECODED], &halves].concat();
    vectors.right("zstd_two_blocks", "a frame of two blocks", patch(&two_blocks));
    let raw_nothing = [&MAGIC[..], &[SINGLE_SEGMENT, DECODED], &block(0, 0, &[], false), &run(240)].concat();
    vectors.right("zstd_raw_nothing", "a raw block of no bytes", patch(&raw_nothing));
    let ratio = |columns: u32| file_of(columns.into(), &run_of_two_size_bytes(4 * columns)).bytes();
    let most = 11 * ZSTD_RATIO_MAX as u32 / 4;
    vectors.right("zstd_ratio_2048", "a frame of 11 bytes that decodes to 2048 times as many", ratio(most));
    vectors.beyond_limit(
        "zstd_ratio_2049",
        "a frame of 11 bytes that decodes to four more than 2048 times as many",
        "decoded bytes for each stored one in section 3: 2049",
        ratio(most + 1),
    );
    malformed_frames(&mut vectors);
    malformed_descriptors(&mut vectors);
    let stored =
        file(&[FILL; DECODED as usize]).bytes_after(|manifest| manifest.sections[3].stored_size = 240);
    let reason = "a frame that is not smaller than what it holds";
    vectors.malformed("zstd_not_smaller", reason, "240 bytes stored (Zstd) for 240 decoded", stored);
    vectors
}

fn malformed_frames(vectors: &mut Collection) {
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0xaa];
    let mut add = |name: &str, reason: &str, error: &str, frame: &[u8]| {
        vectors.malformed(&format!("zstd_{name}"), reason, error, patch(frame));
    };
    let behind = |rest: &[u8]| [&plain()[..], rest].concat();
    add("empty", "no bytes where a frame is expected", "not a zstd frame", &[]);
    add("magic", "another magic", "not a zstd frame", &[&[0x27][..], &plain()[1..]].concat());
    add(
        "skippable_before",
        "a skippable frame first",
        "not a zstd frame",
        &[&skippable, &plain()[..]].concat(),
    );
    add("skippable_behind", "a skippable frame behind", "9 bytes follow the zstd frame", &behind(&skippable));
    let empty = [&MAGIC[..], &[SINGLE_SEGMENT, 0], &block(0, 0, &[], true)].concat();
    add("second_frame", "an empty second frame", "9 bytes follow the zstd frame", &behind(&empty));
    add("byte_behind", "a byte behind the frame", "1 bytes follow the zstd frame", &behind(&[0]));
    add("truncated", "the last byte is missing", "zstd: ", &plain()[..plain().len() - 1]);
    add("only_header", "a header without blocks", "zstd: ", &plain()[..6]);
    let of_block = |block: &[u8]| [&MAGIC[..], &[SINGLE_SEGMENT, DECODED], block].concat();
    add("too_little", "a block of one byte less than stated", "zstd: ", &of_block(&run(239)));
    add("too_much", "a block of one byte more than stated", "zstd: ", &of_block(&run(241)));
    add("reserved_block", "a block of the reserved type", "zstd: ", &of_block(&block(3, 240, &[FILL], true)));
    add(
        "no_last_block",
        "no block is marked as the last",
        "zstd: ",
        &of_block(&block(1, 240, &[FILL], false)),
    );
    let nothing = [&block(2, 0, &[], false)[..], &run(240)].concat();
    add(
        "compressed_nothing",
        "a compressed block of no bytes",
        "compressed block of no bytes",
        &of_block(&nothing),
    );
    let bomb: Vec<u8> = (0..200).flat_map(|_| block(1, 131_072, &[FILL], false)).collect();
    let bomb =
        [&MAGIC[..], &[SIZE_IN_EIGHT, WINDOW_8_MIB], &u64::from(DECODED).to_le_bytes(), &bomb].concat();
    let long = file(&bomb[..214]).bytes();
    vectors.malformed(
        "zstd_bomb",
        "blocks of 128 KiB each in a frame that admits to 240 bytes",
        "zstd: ",
        long,
    );
}

fn malformed_descriptors(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, frame: &[u8]| {
        vectors.malformed(&format!("zstd_{name}"), reason, error, patch(frame));
    };
    let described = |descriptor: u8, rest: &[u8]| [&MAGIC[..], &[descriptor], rest].concat();
    let after = |fields: &[u8]| [fields, &run(u32::from(DECODED))].concat();
    // XXH64 of the 240 bytes, its low half: right, so that nothing but its presence is wrong.
    let checksum = CHECKSUM.to_le_bytes();
    let with_checksum = [&described(SINGLE_SEGMENT | 4, &after(&[DECODED]))[..], &checksum].concat();
    add("checksum", "a frame with a checksum", "descriptor 0x24", &with_checksum);
    add(
        "dictionary",
        "a frame that names a dictionary",
        "descriptor 0x21",
        &described(0x21, &after(&[7, DECODED])),
    );
    add("reserved_bit", "the reserved bit is set", "descriptor 0x28", &described(0x28, &after(&[DECODED])));
    add(
        "no_size",
        "the content's size is not stated",
        "descriptor 0x00",
        &described(0, &after(&[WINDOW_8_MIB])),
    );
    add(
        "size_less",
        "the stated size is one less",
        "a zstd frame of Some(239)",
        &described(0x20, &after(&[239])),
    );
    add(
        "size_more",
        "the stated size is one more",
        "a zstd frame of Some(241)",
        &described(0x20, &after(&[241])),
    );
    add("size_huge", "the stated size is 2^62", "a zstd frame of Some(", &with_window(WINDOW_8_MIB, 1 << 62));
    let window = |log: u8| with_window((log - 10) << 3, u64::from(DECODED));
    add("window_16_mib", "a window of 16 MiB", "zstd: ", &window(24));
    add("window_2_gib", "a window of 2 GiB", "zstd: ", &window(31));
    add(
        "window_largest",
        "the largest window that can be stated",
        "zstd",
        &with_window(0xff, u64::from(DECODED)),
    );
}

/// Low half of the XXH64 (seed 0) of 240 bytes 0x3c.
const CHECKSUM: u32 = 0x78fc_9166;

/// A frame of `size` bytes [`FILL`] in blocks of at most `block_size`.
fn runs(size: u64, block_size: u64) -> Vec<u8> {
    let mut frame = [&MAGIC[..], &[SIZE_IN_EIGHT, 7 << 3], &size.to_le_bytes()].concat();
    // A window of 128 KiB, the largest block.
    let mut left = size;
    while left > 0 {
        let length = left.min(block_size);
        left -= length;
        frame.extend(block(1, length as u32, &[FILL], left == 0));
    }
    frame
}

/// A right patch of rank 1 for a matrix of `side` by `side` weights, that says nothing else: its file grows with the
/// side, and what it speaks of with the side's square. `tensors` have the one term.
pub fn hollow(side: u64, tensors: usize) -> Vec<u8> {
    let file = silent().with(|file| {
        let manifest = &mut file.manifest;
        let term = &mut manifest.terms[0];
        (term.rows, term.columns, term.bits) = (side, side, 8);
        term.integers = IntegersEntry::LowRank { rank: 1, left: 0, right: 1 };
        manifest.bindings[0].tensors[0].shape = [side, side];
        let tensor = manifest.bindings[0].tensors[0].clone();
        let further = (1..tensors).map(|index| format!("{}.{index:05}", tensor.name));
        let further = further.zip(tensor.undo + 1..);
        let further = further.map(|(name, undo)| TensorBinding { name, undo, ..tensor.clone() });
        manifest.bindings[0].tensors.extend(further);
        let rows = (65_536 / side).max(1);
        let blocks = side.div_ceil(rows);
        let head = [(rows as u32).to_le_bytes(), (blocks as u32).to_le_bytes()].concat();
        let undo = framed(8 + 4 * blocks, &block(0, 8, &head, false), 0);
        let sizes = [&[side, side, 4 * side, 4 * side][..], &vec![8 + 4 * blocks; tensors]].concat();
        let undos = vec![undo; tensors];
        file.sections = sizes[..4].iter().map(|size| runs(*size, 8 << 10)).chain(undos).collect();
        manifest.sections.resize(sizes.len(), manifest.sections[4].clone());
        for (section, size) in manifest.sections.iter_mut().zip(sizes) {
            *section = Section { codec: Codec::Zstd, decoded_size: size, ..*section };
        }
    });
    file.bytes()
}

/// A frame of `size` bytes that begins with `first`, a block of 8 bytes, and goes on with `fill` in blocks of 8 KiB.
fn framed(size: u64, first: &[u8], fill: u8) -> Vec<u8> {
    let mut frame = [&MAGIC[..], &[SIZE_IN_EIGHT, 7 << 3], &size.to_le_bytes(), first].concat();
    let mut left = size - 8;
    while left > 0 {
        let length = left.min(8 << 10);
        left -= length;
        frame.extend(block(1, length as u32, &[fill], left == 0));
    }
    frame
}

/// The example without what could be left out.
fn silent() -> File {
    File::tiny().with(|file| {
        let manifest = &mut file.manifest;
        manifest.facts.clear();
        manifest.measured.clear();
        let Recipe { method, hyperparameters, layers, contexts, tool, device, .. } = &mut manifest.recipe;
        [method, hyperparameters, tool, device].into_iter().for_each(String::clear);
        layers.clear();
        contexts.clear();
        manifest.base.architecture.clear();
    })
}

/// A right patch of `side` by `side` integers of 16 bits, all of its sections in blocks of `block_size`, that says
/// nothing else. Its size is what its sections take, and a little more than half a kibibyte.
pub fn grown(side: u64, block_size: u64) -> Vec<u8> {
    let zeros = |count: u64| vec![0; count as usize];
    let file = silent().with(|file| {
        let manifest = &mut file.manifest;
        let term = &mut manifest.terms[0];
        (term.rows, term.columns, term.bits) = (side, side, 16);
        (term.row_scales, term.column_scales) = (1, 2);
        term.integers = IntegersEntry::Dense { section: 0 };
        let tensor = &mut manifest.bindings[0].tensors[0];
        (tensor.shape, tensor.undo) = ([side, side], 3);
        manifest.sections.remove(1);
        let rows = (65_536 / side).max(1);
        let blocks = side.div_ceil(rows);
        let undo = [&(rows as u32).to_le_bytes()[..], &(blocks as u32).to_le_bytes(), &zeros(4 * blocks)];
        file.sections = vec![
            runs(2 * side * side, block_size),
            runs(4 * side, block_size),
            runs(4 * side, block_size),
            undo.concat(),
        ];
        let decoded = [2 * side * side, 4 * side, 4 * side];
        for (section, size) in file.manifest.sections.iter_mut().zip(decoded) {
            *section = Section { codec: Codec::Zstd, decoded_size: size, ..*section };
        }
    });
    file.bytes()
}
