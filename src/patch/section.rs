//! Sections: matrices and scales as bytes, and bytes as one zstd frame where that is smaller.
//!
//! Integers are laid out as byte planes and not packed to their width, because zstd's Huffman stage codes a plane of
//! small integers to within 5 % of their entropy, which for the bell-shaped integers of a quantised factor is below
//! their width. Measured on 409,600 gaussian integers, each row of 100 scaled to fill the width:
//!
//! | bits | packed | packed, zstd | planes, zstd | entropy |
//! |---|---|---|---|---|
//! | 12 | 614,400 | 610,097 | 598,693 | 590,504 |
//! | 8 | 409,600 | 388,916 | 388,385 | 387,232 |
//! | 6 | 307,200 | 300,923 | 285,134 | 283,996 |
//! | 4 | 204,800 | 176,806 | 177,065 | 175,302 |
//! | 3 | 153,600 | 137,145 | 120,179 | 115,075 |

use std::io::{BufRead, BufReader, Read, Write};

use zstd::zstd_safe::{CParameter, Strategy};

use super::layout::{ZSTD_RATIO_MAX, ZSTD_WINDOW_LOG_MAX};
use super::manifest::Codec;
use crate::factors::{IntegerMatrix, NARROW_BITS_MAX};

/// How much of a frame is read at once, and the first step of what it decodes to.
const READ_BLOCK_BYTES: usize = 1 << 20;
/// The level that searches hardest for repetitions. Gaussian integers have none worth the search: it takes two hundred
/// times as long as their Huffman code alone and saves nothing at 4 bits and more, 1 % at 3 bits, 30 % at 2 bits.
const ZSTD_SEARCH_LEVEL: i32 = 19;
/// A section is searched for repetitions as well where its Huffman code is below one such part of its size.
const SEARCH_BELOW_FRACTION: usize = 4;
/// The least block of a frame: a header, and a byte that is repeated.
const ZSTD_BLOCK_SIZE_MIN_BYTES: usize = 4;

/// A frame's magic, descriptor, window, dictionary id and content size, at their largest.
const FRAME_HEADER_SIZE_MAX_BYTES: u64 = 18;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// In a frame's descriptor: dictionary id (2 bits), checksum, reserved.
const ZSTD_DESCRIPTOR_FORBIDDEN: u8 = 0b0000_1111;
/// In a frame's descriptor: the window is the content.
const ZSTD_DESCRIPTOR_SINGLE_SEGMENT: u8 = 0b0010_0000;
/// In a frame's descriptor: one segment, or two bits of content size; without any the content size is absent.
const ZSTD_DESCRIPTOR_CONTENT_SIZE: u8 = 0b1110_0000;

/// Bytes of a section of `count` integers of `bits` bits; none beyond the range of u64.
pub(super) fn planes_size_bytes(count: u64, bits: u8) -> Option<u64> {
    count.checked_mul(if bits <= NARROW_BITS_MAX { 1 } else { 2 })
}

/// The integers in two's complement: all low bytes, then, for more than 8 `bits`, all high bytes.
pub(super) fn planes_of(matrix: &IntegerMatrix, bits: u8) -> Vec<u8> {
    let values = matrix.values();
    let mut bytes: Vec<u8> = values.iter().map(|value| value.to_le_bytes()[0]).collect();
    if bits > NARROW_BITS_MAX {
        bytes.extend(values.iter().map(|value| value.to_le_bytes()[1]));
    }
    bytes
}

/// Integers in the width that their planes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Planes {
    /// Up to 8 bits.
    One(Vec<i8>),
    /// Up to 16.
    Two(Vec<i16>),
}

/// The integers of [`planes_of`].
pub(super) fn integers_of(bytes: Vec<u8>, bits: u8) -> Planes {
    if bits <= NARROW_BITS_MAX {
        // In place: this is what keeps a large factor in memory once.
        return Planes::One(bytes.into_iter().map(|byte| byte as i8).collect());
    }
    let (low, high) = bytes.split_at(bytes.len() / 2);
    Planes::Two(low.iter().zip(high).map(|(&low, &high)| i16::from_le_bytes([low, high])).collect())
}

/// Scales as little-endian f32.
pub(super) fn scale_bytes(scales: &[f32]) -> Vec<u8> {
    scales.iter().flat_map(|scale| scale.to_le_bytes()).collect()
}

/// The scales of [`scale_bytes`].
pub(super) fn scales_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&scale| f32::from_le_bytes(scale)).collect()
}

/// `bytes` as one zstd frame if that is smaller, else as they are.
pub(super) fn compress(bytes: Vec<u8>) -> std::io::Result<(Codec, Vec<u8>)> {
    let mut frame = frame_of(&bytes, &huffman_parameters())?;
    if frame.len() < bytes.len() / SEARCH_BELOW_FRACTION {
        let searched = frame_of(&bytes, &[CParameter::CompressionLevel(ZSTD_SEARCH_LEVEL)])?;
        frame = if searched.len() < frame.len() { searched } else { frame };
    }
    if bytes.len().div_ceil(frame.len()) > ZSTD_RATIO_MAX as usize {
        frame = frame_of_short_blocks(&bytes)?;
    }
    Ok(if frame.len() < bytes.len() { (Codec::Zstd, frame) } else { (Codec::Stored, bytes) })
}

/// The least search for repetitions that zstd has, which leaves almost everything to its Huffman code.
fn huffman_parameters() -> [CParameter; 6] {
    [
        CParameter::CompressionLevel(1),
        CParameter::Strategy(Strategy::ZSTD_fast),
        CParameter::WindowLog(20),
        CParameter::HashLog(6),
        CParameter::MinMatch(7),
        // Above 0 this strategy gives up its Huffman code.
        CParameter::TargetLength(0),
    ]
}

fn frame_of(bytes: &[u8], parameters: &[CParameter]) -> std::io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_SEARCH_LEVEL)?;
    for &parameter in parameters {
        compressor.set_parameter(parameter)?;
    }
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.set_parameter(CParameter::ChecksumFlag(false))?;
    compressor.set_parameter(CParameter::DictIdFlag(false))?;
    compressor.compress(bytes)
}

/// A frame of blocks that are so short that none of them holds more for its size than a reader takes.
fn frame_of_short_blocks(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
    for parameter in huffman_parameters() {
        encoder.set_parameter(parameter)?;
    }
    encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
    encoder.include_contentsize(true)?;
    encoder.include_checksum(false)?;
    encoder.include_dictid(false)?;
    let blocks = bytes.chunks(ZSTD_BLOCK_SIZE_MIN_BYTES * ZSTD_RATIO_MAX as usize);
    for (number, block) in blocks.enumerate() {
        if number > 0 {
            encoder.flush()?;
        }
        encoder.write_all(block)?;
    }
    encoder.finish()
}

/// The `decoded_size` bytes that `stored` must hold.
///
/// # Errors
/// What is wrong with them, in words.
pub fn decode_section(codec: Codec, stored: &[u8], decoded_size: u64) -> Result<Vec<u8>, String> {
    decompress(codec, &mut &*stored, stored.len() as u64, decoded_size)
}

/// The `decoded_size` bytes that the `stored_size` bytes of `stored` must hold: one frame, nothing behind it, neither
/// more nor less in it.
pub(super) fn decompress(
    codec: Codec,
    stored: &mut dyn Read,
    stored_size: u64,
    decoded_size: u64,
) -> Result<Vec<u8>, String> {
    match codec {
        Codec::Stored if stored_size == decoded_size => grown(stored, decoded_size),
        Codec::Stored => Err(format!("{stored_size} stored bytes, expected {decoded_size}")),
        Codec::Zstd => decompress_frame(stored, stored_size, decoded_size),
    }
}

fn decompress_frame(stored: &mut dyn Read, stored_size: u64, decoded_size: u64) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("zstd: {error}");
    let mut start = Vec::new();
    (&mut *stored).take(FRAME_HEADER_SIZE_MAX_BYTES).read_to_end(&mut start).map_err(unreadable)?;
    check_frame_header(&start, decoded_size)?;
    let walked = WalkedFrame { reader: Read::chain(start.as_slice(), stored), walk: BlockWalk::default() };
    let stored = BufReader::with_capacity(stored_size.clamp(1, READ_BLOCK_BYTES as u64) as usize, walked);
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(unreadable)?.single_frame();
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(unreadable)?;
    let mut bytes = grown(&mut decoder, decoded_size).map_err(|error| format!("zstd: {error}"))?;
    // One more byte shows a frame that holds more than it may, and lets the decoder come to the frame's end.
    if bytes.len() as u64 == decoded_size && decoder.read(&mut [0]).map_err(unreadable)? > 0 {
        bytes.push(0);
    }
    if bytes.len() as u64 != decoded_size {
        return Err(format!("decodes to {} bytes or more, expected {decoded_size}", bytes.len()));
    }
    let mut rest = 0;
    let mut behind = decoder.finish();
    while let length @ 1.. = behind.fill_buf().map_err(unreadable)?.len() {
        behind.consume(length);
        rest += length;
    }
    match rest {
        0 => Ok(bytes),
        rest => Err(format!("{rest} bytes follow the zstd frame")),
    }
}

/// What an error says where the system gives no memory: zstd's own words.
pub(super) const NO_MEMORY: &str = "not enough memory";

/// Reads up to `size` bytes. The buffer grows as they arrive: neither the manifest nor the frame is believed about how
/// many there will be. But it never grows beyond `size`, so that a large factor costs its own size and not twice it.
fn grown(reader: &mut dyn Read, size: u64) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| error.to_string();
    let size = usize::try_from(size).map_err(|_| format!("{size} bytes do not fit this machine's memory"))?;
    let mut bytes = Vec::new();
    while bytes.len() < size {
        let length = bytes.len();
        let more = length.max(READ_BLOCK_BYTES).min(size - length);
        bytes.try_reserve_exact(more).map_err(|_| format!("{NO_MEMORY} for {size} bytes"))?;
        reader.take(more as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() < length + more {
            break;
        }
    }
    Ok(bytes)
}

/// A plain frame that states the expected size: no skippable frame, dictionary or checksum.
fn check_frame_header(stored: &[u8], decoded_size: u64) -> Result<(), String> {
    let Some((&descriptor, _)) = stored.strip_prefix(&ZSTD_MAGIC).and_then(<[u8]>::split_first) else {
        return Err("not a zstd frame".to_owned());
    };
    if descriptor & ZSTD_DESCRIPTOR_FORBIDDEN != 0 || descriptor & ZSTD_DESCRIPTOR_CONTENT_SIZE == 0 {
        return Err(format!(
            "a zstd frame with descriptor {descriptor:#04x}: it must state its content's size and have neither dictionary nor checksum"
        ));
    }
    check_window(stored, decoded_size)?;
    match zstd::zstd_safe::get_frame_content_size(stored) {
        Ok(Some(found)) if found == decoded_size => Ok(()),
        Ok(found) => Err(format!("a zstd frame of {found:?} bytes, expected {decoded_size}")),
        Err(error) => Err(format!("a zstd frame whose size cannot be read: {error:?}")),
    }
}

/// Asked here because the decoder asks only for frames that it cannot decode in one piece. A frame of one segment has a
/// window of its content's size (RFC 8878, 3.1.1.1.2).
fn check_window(stored: &[u8], decoded_size: u64) -> Result<(), String> {
    let [descriptor, window, ..] = stored[ZSTD_MAGIC.len()..] else {
        return Err("not a zstd frame".to_owned());
    };
    let size = if descriptor & ZSTD_DESCRIPTOR_SINGLE_SEGMENT != 0 {
        decoded_size
    } else {
        let base = 1_u64 << (10 + (window >> 3));
        base + base / 8 * u64::from(window & 0b111)
    };
    let limit = 1_u64 << ZSTD_WINDOW_LOG_MAX;
    match size <= limit {
        true => Ok(()),
        false => Err(format!("zstd: a window of {size} bytes, at most {limit} are read")),
    }
}

/// A frame on its way to the decoder.
struct WalkedFrame<R> {
    reader: R,
    walk: BlockWalk,
}

impl<R: Read> Read for WalkedFrame<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let size = self.reader.read(bytes)?;
        self.walk.feed(&bytes[..size]).map_err(std::io::Error::other)?;
        Ok(size)
    }
}

/// Follows the blocks of a frame as its bytes come by, in pieces of any size.
///
/// zstd's streaming decoder passes over a compressed block of no bytes, which RFC 8878 does not allow and zstd's
/// one-pass decoder refuses; whether a patch can be read must not depend on that.
#[derive(Debug, Default)]
struct BlockWalk {
    /// Bytes of the frame's header, and then of the current block's, seen so far.
    header: Vec<u8>,
    /// Whether the frame's own header is behind us.
    in_blocks: bool,
    /// Bytes of the current block still to come.
    content: usize,
    /// The current block is the last.
    is_last: bool,
}

impl BlockWalk {
    const BLOCK_HEADER_SIZE_BYTES: usize = 3;
    const RUN: u32 = 1;
    const COMPRESSED: u32 = 2;

    /// The next bytes of a frame whose magic and descriptor have been checked. What follows its last block is for the
    /// decoder to notice.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let skipped = self.content.min(bytes.len());
            self.content -= skipped;
            bytes = &bytes[skipped..];
            let Some((&next, rest)) = bytes.split_first().filter(|_| !self.is_last) else { break };
            self.header.push(next);
            bytes = rest;
            if !self.in_blocks && self.header.len() == frame_header_size_bytes(&self.header) {
                self.in_blocks = true;
                self.header.clear();
            } else if self.in_blocks && self.header.len() == Self::BLOCK_HEADER_SIZE_BYTES {
                self.enter_block()?;
            }
        }
        Ok(())
    }

    fn enter_block(&mut self) -> Result<(), String> {
        let word = self.header.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
        let (kind, size) = (word >> 1 & 0b11, (word >> 3) as usize);
        if kind == Self::COMPRESSED && size == 0 {
            return Err("a compressed block of no bytes".to_owned());
        }
        self.content = if kind == Self::RUN { 1 } else { size };
        self.is_last = word & 1 == 1;
        self.header.clear();
        Ok(())
    }
}

/// Size of the header that begins with `start`, as far as that tells: magic, descriptor, window, size of the content.
fn frame_header_size_bytes(start: &[u8]) -> usize {
    let Some(descriptor) = start.get(ZSTD_MAGIC.len()) else { return usize::MAX };
    let is_single_segment = descriptor & ZSTD_DESCRIPTOR_SINGLE_SEGMENT != 0;
    let content_size = match descriptor >> 6 {
        0 => usize::from(is_single_segment),
        flag => 1 << flag,
    };
    ZSTD_MAGIC.len() + 1 + usize::from(!is_single_segment) + content_size
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 64 KiB of two letters in no short period.
    fn letters() -> Vec<u8> {
        (0..65_536_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 31) as u8).collect()
    }

    fn decompress(codec: Codec, mut stored: &[u8], decoded_size: u64) -> Result<Vec<u8>, String> {
        let stored_size = stored.len() as u64;
        super::decompress(codec, &mut stored, stored_size, decoded_size)
    }

    fn refused(frame: &[u8], decoded_size: u64) -> String {
        decompress(Codec::Zstd, frame, decoded_size).unwrap_err()
    }

    #[test]
    fn planes_keep_integers_of_every_width() {
        for bits in 2..=16 {
            let limit = crate::factors::magnitude_limit(bits);
            let values = vec![limit, -limit, 0, 1, -1, limit / 2];
            let matrix = IntegerMatrix::new("test", 2, 3, bits, values.clone()).unwrap();
            let bytes = planes_of(&matrix, bits);
            assert_eq!(Some(bytes.len() as u64), planes_size_bytes(6, bits));
            let expected = match bits {
                ..=8 => Planes::One(values.iter().map(|&value| value as i8).collect()),
                _ => Planes::Two(values),
            };
            assert_eq!(integers_of(bytes, bits), expected);
        }
    }

    #[test]
    fn the_smaller_form_is_stored() {
        let (codec, stored) = compress(letters()).unwrap();
        assert_eq!((codec, decompress(codec, &stored, 65_536)), (Codec::Zstd, Ok(letters())));
        for incompressible in [vec![], vec![1, 2, 3]] {
            let (codec, stored) = compress(incompressible.clone()).unwrap();
            assert_eq!((codec, stored), (Codec::Stored, incompressible));
        }
    }

    #[test]
    fn what_hardly_takes_room_is_stored_in_blocks_that_are_read() {
        for size_bytes in [1_usize, 50_000, 131_072, (8 << 20) + 5] {
            for byte in [0, 7] {
                let bytes = vec![byte; size_bytes];
                let (codec, stored) = compress(bytes.clone()).unwrap();
                let ratio = size_bytes.div_ceil(stored.len());
                assert!(ratio <= ZSTD_RATIO_MAX as usize, "{size_bytes} bytes in {}", stored.len());
                // The blocks are as large as they may be, but for what stands before them and between them.
                assert!(stored.len() <= size_bytes / 1_000 + 32, "{size_bytes} bytes in {}", stored.len());
                assert!(decompress(codec, &stored, size_bytes as u64) == Ok(bytes));
            }
        }
    }

    #[test]
    fn a_section_larger_than_the_window_can_be_read() {
        let size_bytes = (2 << ZSTD_WINDOW_LOG_MAX) + 1;
        for parameters in [&huffman_parameters()[..], &[]] {
            let frame = frame_of(&vec![7; size_bytes], parameters).unwrap();
            let bytes = decompress(Codec::Zstd, &frame, size_bytes as u64).unwrap();
            assert!(bytes.len() == size_bytes && bytes.iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn every_other_decoded_size_is_refused() {
        let frame = frame_of(&letters(), &[]).unwrap();
        for size in [0, 1, 65_535, 65_537, u64::MAX] {
            refused(&frame, size);
            assert!(decompress(Codec::Stored, &frame, size).is_err());
        }
    }

    #[test]
    fn only_one_plain_frame_is_read() {
        let frame = frame_of(&letters(), &[]).unwrap();
        let empty = frame_of(&[], &[]).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0xaa];
        for other in [&frame[..], &empty, &skippable, &[0]] {
            assert!(refused(&[&frame, other].concat(), 65_536).contains("follow"));
            refused(&[other, &frame].concat(), 65_536);
        }
        refused(&skippable, 0);
        for end in 0..frame.len() {
            refused(&frame[..end], 65_536);
        }
    }

    #[test]
    fn a_compressed_block_of_no_bytes_is_refused_wherever_it_stands() {
        let frame = frame_of(&letters(), &[]).unwrap();
        let size = frame_header_size_bytes(&frame);
        let empty = |kind: u8| [&frame[..size], &[kind << 1, 0, 0], &frame[size..]].concat();
        assert_eq!(decompress(Codec::Zstd, &empty(0), 65_536), Ok(letters()), "nothing, raw, is nothing");
        assert!(refused(&empty(2), 65_536).contains("compressed block of no bytes"));
        for piece in 1..9 {
            let mut walk = BlockWalk::default();
            assert!(empty(2).chunks(piece).any(|bytes| walk.feed(bytes).is_err()), "in pieces of {piece}");
        }
    }

    #[test]
    fn frames_with_a_checksum_or_without_a_size_are_refused() {
        for parameter in [CParameter::ChecksumFlag(true), CParameter::ContentSizeFlag(false)] {
            let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
            compressor.set_parameter(parameter).unwrap();
            let frame = compressor.compress(&letters()).unwrap();
            assert!(refused(&frame, 65_536).contains("descriptor"));
        }
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        // No single segment, content size in 8 bytes; then one run of zeros as the last block.
        let frame = |window_log: u8| {
            let size = 65_536_u64.to_le_bytes();
            let block = (65_536_u32 << 3) | 0b011;
            [&ZSTD_MAGIC[..], &[0b1100_0000, (window_log - 10) << 3], &size, &block.to_le_bytes()[..3], &[0]]
                .concat()
        };
        assert_eq!(decompress(Codec::Zstd, &frame(23), 65_536), Ok(vec![0; 65_536]));
        for window_log in [24, 27, 31, 41] {
            assert!(refused(&frame(window_log), 65_536).contains("zstd"));
        }
    }

    #[test]
    fn a_frame_that_lies_about_its_size_does_not_get_further() {
        // 32 KiB that grow to a gibibyte, under a header that admits to 256 bytes or to 2^62.
        for claimed in [256, 1 << 34, 1 << 62] {
            let mut frame = [&ZSTD_MAGIC[..], &[0b1100_0000, 13 << 3], &u64::to_le_bytes(claimed)].concat();
            for _ in 0..8_192 {
                frame.extend([&((131_072_u32 << 3) | 0b010).to_le_bytes()[..3], &[0]].concat());
            }
            refused(&frame, 256);
        }
    }
}
