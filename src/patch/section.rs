//! Sections: matrices and scales as bytes, and bytes as one zstd frame where that is smaller.
//!
//! Integers are laid out as byte planes and not packed to their width, because zstd's Huffman stage codes a plane of
//! small integers to their entropy, which for the bell-shaped integers of a quantised factor is below their width
//! (bytes per 409,600 gaussian integers scaled so that the largest fills the width; see `docs/format.md`).

use std::io::Read;

use zstd::zstd_safe::CParameter;

use super::layout::ZSTD_WINDOW_LOG_MAX;
use super::manifest::Codec;
use crate::factors::IntegerMatrix;

/// Widest integers that fit a single plane.
const SINGLE_PLANE_BITS_MAX: u8 = 8;
/// zstd's level. What a section holds has no repetitions to find, so this costs time and changes little.
const ZSTD_LEVEL: i32 = 19;

const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();
/// In a frame's descriptor: dictionary id (2 bits), checksum, reserved.
const ZSTD_DESCRIPTOR_FORBIDDEN: u8 = 0b0000_1111;
/// In a frame's descriptor: one segment, or two bits of content size; without any the content size is absent.
const ZSTD_DESCRIPTOR_CONTENT_SIZE: u8 = 0b1110_0000;

/// Bytes of a section of `count` integers of `bits` bits; none beyond the range of u64.
pub(super) fn planes_size_bytes(count: u64, bits: u8) -> Option<u64> {
    count.checked_mul(if bits <= SINGLE_PLANE_BITS_MAX { 1 } else { 2 })
}

/// The integers in two's complement: all low bytes, then, for more than 8 `bits`, all high bytes.
pub(super) fn planes_of(matrix: &IntegerMatrix, bits: u8) -> Vec<u8> {
    let values = matrix.values();
    let mut bytes: Vec<u8> = values.iter().map(|value| value.to_le_bytes()[0]).collect();
    if bits > SINGLE_PLANE_BITS_MAX {
        bytes.extend(values.iter().map(|value| value.to_le_bytes()[1]));
    }
    bytes
}

/// The integers of [`planes_of`].
pub(super) fn integers_of(bytes: &[u8], bits: u8) -> Vec<i16> {
    if bits <= SINGLE_PLANE_BITS_MAX {
        return bytes.iter().map(|&byte| i16::from(byte as i8)).collect();
    }
    let (low, high) = bytes.split_at(bytes.len() / 2);
    low.iter().zip(high).map(|(&low, &high)| i16::from_le_bytes([low, high])).collect()
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
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
    for parameter in
        [CParameter::ContentSizeFlag(true), CParameter::ChecksumFlag(false), CParameter::DictIdFlag(false)]
    {
        compressor.set_parameter(parameter)?;
    }
    let frame = compressor.compress(&bytes)?;
    Ok(if frame.len() < bytes.len() { (Codec::Zstd, frame) } else { (Codec::Stored, bytes) })
}

/// The `decoded_size` bytes that `stored` must hold: one frame, nothing behind it, neither more nor less in it.
pub(super) fn decompress(codec: Codec, stored: &[u8], decoded_size: u64) -> Result<Vec<u8>, String> {
    match codec {
        Codec::Stored if stored.len() as u64 == decoded_size => Ok(stored.to_vec()),
        Codec::Stored => Err(format!("{} stored bytes, expected {decoded_size}", stored.len())),
        Codec::Zstd => decompress_frame(stored, decoded_size),
    }
}

fn decompress_frame(stored: &[u8], decoded_size: u64) -> Result<Vec<u8>, String> {
    check_frame_header(stored, decoded_size)?;
    let unreadable = |error: std::io::Error| format!("zstd: {error}");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(unreadable)?.single_frame();
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(unreadable)?;
    // Grows as bytes arrive: neither the manifest nor the frame is believed about how many there will be.
    let mut bytes = Vec::new();
    decoder.by_ref().take(decoded_size.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 != decoded_size {
        return Err(format!("decodes to {} bytes or more, expected {decoded_size}", bytes.len()));
    }
    match decoder.finish().len() {
        0 => Ok(bytes),
        rest => Err(format!("{rest} bytes follow the zstd frame")),
    }
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
    match zstd::zstd_safe::get_frame_content_size(stored) {
        Ok(Some(found)) if found == decoded_size => Ok(()),
        Ok(found) => Err(format!("a zstd frame of {found:?} bytes, expected {decoded_size}")),
        Err(error) => Err(format!("a zstd frame whose size cannot be read: {error:?}")),
    }
}
