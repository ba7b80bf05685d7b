//! The reference's own statistics files: `.npz` archives of one layer each (`util/runningstats.py`).

use std::io::{Cursor, Read, Seek};

use npyz::NpyFile;
use zip::ZipArchive;

use super::EditError;
use super::statistics::LayerSum;

/// A layer's sum as the reference caches it.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The sum and the count.
    pub sum: LayerSum,
    /// Width of a key.
    pub inner: usize,
}

/// Reads one archive; `mom2.mom2` is the sum, `mom2.count` the number of tokens.
///
/// # Errors
/// [`EditError::Statistics`] says what the archive lacks.
pub fn read_npz(archive: impl Read + Seek) -> Result<Imported, EditError> {
    let refuse = |what: String| EditError::Statistics { what: format!("the archive {what}") };
    let mut archive =
        ZipArchive::new(archive).map_err(|error| refuse(format!("is no .npz file: {error}")))?;
    let sum = member(&mut archive, "mom2.mom2")?;
    let shape = sum.shape().to_vec();
    let &[rows, columns] = shape.as_slice() else {
        return Err(refuse(format!("has sums of shape {shape:?}, expected a square matrix")));
    };
    if rows != columns || rows == 0 {
        return Err(refuse(format!("has sums of shape {shape:?}, expected a square matrix")));
    }
    let sum = floats(sum).map_err(|error| refuse(format!("has unreadable sums: {error}")))?;
    let count = member(&mut archive, "mom2.count")?;
    let count: Vec<i64> = count
        .into_vec()
        .map_err(|error| refuse(format!("has a count that is no 64-bit integer: {error}")))?;
    match count.as_slice() {
        [count] if *count > 0 => {
            let count = count.unsigned_abs();
            Ok(Imported { sum: LayerSum { sum, count }, inner: rows as usize })
        }
        _ => Err(refuse(format!("has the count {count:?}, expected one positive number"))),
    }
}

/// The layer that a file of the reference is about, by its name: `transformer.h.3.mlp.fc_out_float32_mom2_100000.npz`.
pub fn layer_of_name(file_name: &str) -> Option<usize> {
    let (_, rest) = file_name.split_once("h.")?;
    let (layer, _) = rest.split_once(".mlp.fc_out")?;
    layer.parse().ok()
}

fn member(
    archive: &mut ZipArchive<impl Read + Seek>,
    name: &str,
) -> Result<NpyFile<Cursor<Vec<u8>>>, EditError> {
    let refuse = |what: String| EditError::Statistics { what: format!("the archive {what}") };
    let mut entry = archive
        .by_name(&format!("{name}.npy"))
        .map_err(|error| refuse(format!("has no `{name}`: {error}")))?;
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| refuse(format!("cannot be read at `{name}`: {error}")))?;
    if npy_header_size_bytes(&bytes) > bytes.len() {
        return Err(refuse(format!("has a `{name}` that ends within its header")));
    }
    NpyFile::new(Cursor::new(bytes)).map_err(|error| refuse(format!("has an invalid `{name}`: {error}")))
}

/// What an array says that its header takes; the reader would make room for it before it looks.
fn npy_header_size_bytes(array: &[u8]) -> usize {
    match array {
        [_, _, _, _, _, _, 1, _, low, high, ..] => usize::from(u16::from_le_bytes([*low, *high])),
        [_, _, _, _, _, _, _, _, size @ ..] => match size.first_chunk() {
            Some(size) => u32::from_le_bytes(*size) as usize,
            None => 0,
        },
        _ => 0,
    }
}

/// Sums may be f32 or f64, by the precision they were collected with.
fn floats(array: NpyFile<Cursor<Vec<u8>>>) -> std::io::Result<Vec<f32>> {
    let is_double = array.dtype().descr().contains("f8");
    if is_double {
        let values: Vec<f64> = array.into_vec()?;
        return Ok(values.into_iter().map(|value| value as f32).collect());
    }
    array.into_vec()
}
