//! The reference's own statistics files: `.npz` archives of one layer each (`util/runningstats.py`).

use std::io::{Cursor, Read, Seek};

use npyz::NpyFile;
use zip::ZipArchive;

use super::EditError;
use super::statistics::{LayerSum, check_row};

/// What stands before an array's header at most: magic, version and the header's size.
const NPY_PREFIX_SIZE_BYTES_MAX: usize = 12;
/// Largest header of an array; NumPy's own for plain numbers take 128 bytes.
const NPY_HEADER_SIZE_BYTES_MAX: usize = 4096;
/// Widest numbers that are read: f64 and i64.
const NUMBER_SIZE_BYTES_MAX: u64 = 8;

/// A layer's sum as the reference caches it.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The sum and the count.
    pub sum: LayerSum,
    /// Width of a key.
    pub inner: usize,
    /// How many documents it was asked to draw, where the archive says so.
    pub documents: Option<u64>,
}

/// Reads one archive; `mom2.mom2` is the sum, `mom2.count` the number of tokens, `sample_size` that of documents.
///
/// A member may be small and grow without end: of each no more is decompressed than its header's shape takes, and of
/// the sum no shape but that of keys of width `inner` is believed, where that is known.
///
/// # Errors
/// [`EditError::Statistics`] says what the archive lacks, or which of its sums no keys have.
pub fn read_npz(archive: impl Read + Seek, inner: Option<usize>) -> Result<Imported, EditError> {
    let mut archive =
        ZipArchive::new(archive).map_err(|error| refuse(&format!("is no .npz file: {error}")))?;
    let is_square = |shape: &[u64]| match shape {
        &[rows, columns] if rows == columns && rows > 0 && inner.is_none_or(|inner| rows == inner as u64) => {
            Ok(())
        }
        _ => {
            let side = inner.map_or_else(String::new, |inner| format!(" of {inner} rows"));
            Err(refuse(&format!("has sums of shape {shape:?}, expected a square matrix{side}")))
        }
    };
    let sum = member(&mut archive, "mom2.mom2", is_square)?;
    let rows = sum.shape().first().copied().unwrap_or_default();
    let sum = floats(sum).map_err(|error| refuse(&format!("has unreadable sums: {error}")))?;
    // Hours before a solve would fail on them.
    let mut checked = sum.chunks(rows as usize).enumerate().map(|(row, sums)| check_row(row, sums));
    checked.try_for_each(|row| row).map_err(|what| refuse(&what))?;
    check_symmetric(rows as usize, &sum).map_err(|what| refuse(&what))?;
    let count = integer(&mut archive, "mom2.count")?;
    let documents = match archive.index_for_name("sample_size.npy") {
        Some(_) => Some(integer(&mut archive, "sample_size")?),
        None => None,
    };
    Ok(Imported { sum: LayerSum { sum, count }, inner: rows as usize, documents })
}

/// A positive number that stands alone in an array.
fn integer(archive: &mut ZipArchive<impl Read + Seek>, name: &str) -> Result<u64, EditError> {
    let is_one = |shape: &[u64]| match shape.iter().all(|dimension| *dimension == 1) {
        true => Ok(()),
        false => Err(refuse(&format!("has a `{name}` of shape {shape:?}, expected one positive number"))),
    };
    let array = member(archive, name, is_one)?;
    let numbers =
        integers(array).map_err(|error| refuse(&format!("has a `{name}` that is no integer: {error}")))?;
    match numbers.as_slice() {
        [number] if *number > 0 => Ok(number.unsigned_abs()),
        [number] => Err(refuse(&format!("has the `{name}` {number}, expected a positive number"))),
        _ => Err(refuse(&format!("has {} of `{name}`, expected one positive number", numbers.len()))),
    }
}

/// Refuses sums whose two halves differ by more than rounding: keys times keys do not, and a solve reads one half only.
fn check_symmetric(rows: usize, sums: &[f32]) -> Result<(), String> {
    // Sums of 100 million products in f32, in another order on each side, stay far below it.
    const DIFFERENCE_MAX: f32 = 1e-3;
    // So many rows and columns together that what is read stays close together.
    const SIDE: usize = 64;
    let differs = |row: usize, column: usize| {
        let scale = sums[row * rows + row].sqrt() * sums[column * rows + column].sqrt();
        (sums[row * rows + column] - sums[column * rows + row]).abs() > DIFFERENCE_MAX * scale
    };
    for first_row in (0..rows).step_by(SIDE) {
        for first_column in (0..=first_row).step_by(SIDE) {
            for row in first_row..rows.min(first_row + SIDE) {
                let end = row.min(first_column + SIDE);
                if let Some(column) = (first_column..end).find(|column| differs(row, *column)) {
                    let (sum, other) = (sums[row * rows + column], sums[column * rows + row]);
                    return Err(format!(
                        "has the sum {sum} at row {row}, column {column}, and {other} at row {column}, column {row}, \
                         expected the same"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The layer that a file of the reference is about, by its name: `transformer.h.3.mlp.fc_out_float32_mom2_100000.npz`.
pub fn layer_of_name(file_name: &str) -> Option<usize> {
    let (block, _) = file_name.split_once(".mlp.fc_out")?;
    let (_, layer) = block.rsplit_once("h.")?;
    layer.parse().ok()
}

fn member(
    archive: &mut ZipArchive<impl Read + Seek>,
    name: &str,
    check_shape: impl FnOnce(&[u64]) -> Result<(), EditError>,
) -> Result<NpyFile<Cursor<Vec<u8>>>, EditError> {
    let mut entry = archive
        .by_name(&format!("{name}.npy"))
        .map_err(|error| refuse(&format!("has no `{name}`: {error}")))?;
    let size = entry.size();
    let unreadable = |error: std::io::Error| refuse(&format!("cannot be read at `{name}`: {error}"));
    let invalid = |what: String| refuse(&format!("has a `{name}` {what}"));
    let mut bytes = Vec::new();
    let first = NPY_PREFIX_SIZE_BYTES_MAX + NPY_HEADER_SIZE_BYTES_MAX;
    (&mut entry).take(first as u64).read_to_end(&mut bytes).map_err(unreadable)?;
    let Claimed { header_end, shape, numbers } = claimed(&bytes).map_err(invalid)?;
    let refused = || invalid(format!("of {size} bytes that claims the shape {shape:?}"));
    // No number is smaller than a byte, and what a member says of its size is not believed for more than a refusal.
    let numbers = numbers.filter(|numbers| *numbers <= size).ok_or_else(refused)?;
    check_shape(&shape)?;
    let size_max = (header_end as u64).saturating_add(numbers.saturating_mul(NUMBER_SIZE_BYTES_MAX));
    // One more, so that the end is met and the checksum compared.
    let rest = size_max.saturating_add(1).saturating_sub(bytes.len() as u64);
    (&mut entry).take(rest).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > size_max {
        return Err(invalid(format!("that goes on where its shape {shape:?} ends")));
    }
    if (bytes.len() as u64) < numbers {
        return Err(refused());
    }
    NpyFile::new(Cursor::new(bytes)).map_err(|error| refuse(&format!("has an invalid `{name}`: {error}")))
}

/// What an array's header says of it.
struct Claimed {
    header_end: usize,
    shape: Vec<u64>,
    /// How many numbers the shape has; none beyond the range of u64.
    numbers: Option<u64>,
}

/// The archive is refused; what its own words make of the message is cut.
fn refuse(what: &str) -> EditError {
    const LENGTH_MAX: usize = 300;
    let what = match what.char_indices().nth(LENGTH_MAX) {
        Some((cut, _)) => format!("{}...", &what[..cut]),
        None => what.to_owned(),
    };
    EditError::Statistics { what: format!("the archive {what}") }
}

/// Refuses, before the crate reads it, an array whose header is not the short and flat one that NumPy writes for
/// plain numbers: `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3), }`.
///
/// The crate's parser tries brackets within brackets again at every depth, which takes time without end, makes room
/// for a header before it looks, and multiplies a shape's dimensions unchecked.
fn claimed(array: &[u8]) -> Result<Claimed, String> {
    let (size, start) = npy_header(array).ok_or("that ends within its header")?;
    if size > NPY_HEADER_SIZE_BYTES_MAX {
        return Err(format!("with a header of {size} bytes, at most {NPY_HEADER_SIZE_BYTES_MAX} are read"));
    }
    let header_end = start + size;
    let header = array.get(start..header_end).ok_or("that ends within its header")?;
    let count = |bracket: u8| header.iter().filter(|byte| **byte == bracket).count();
    if count(b'[') > 0 || count(b'(') != 1 || count(b'{') != 1 {
        return Err("of something else than plain numbers".to_owned());
    }
    let shape = std::str::from_utf8(header).ok().and_then(shape_in);
    let shape = shape.ok_or("whose shape is no list of numbers")?;
    // Zeros aside, since strides are products of the other dimensions.
    let numbers = shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul((*dimension).max(1)));
    Ok(Claimed { header_end, shape, numbers })
}

/// The dimensions between a header's only parentheses.
fn shape_in(header: &str) -> Option<Vec<u64>> {
    let (_, rest) = header.split_once('(')?;
    let (shape, _) = rest.split_once(')')?;
    let dimensions = shape.split(',').map(str::trim).filter(|dimension| !dimension.is_empty());
    dimensions.map(|dimension| dimension.parse().ok()).collect()
}

/// What an array says that its header takes, and where that begins.
fn npy_header(array: &[u8]) -> Option<(usize, usize)> {
    match array {
        [_, _, _, _, _, _, 1, _, low, high, ..] => Some((u16::from_le_bytes([*low, *high]).into(), 10)),
        [_, _, _, _, _, _, _, _, size @ ..] => Some((u32::from_le_bytes(*size.first_chunk()?) as usize, 12)),
        _ => None,
    }
}

/// Sums may be f32 or f64, by the precision they were collected with; of GPT-J's, two gigabytes a layer, no second copy
/// in f64 is made.
fn floats(array: NpyFile<Cursor<Vec<u8>>>) -> std::io::Result<Vec<f32>> {
    if !array.dtype().descr().contains("f8") {
        return array.into_vec();
    }
    let values = array.data::<f64>().map_err(std::io::Error::other)?;
    values.map(|value| value.map(|value| value as f32)).collect()
}

/// A count is what NumPy takes for an integer where it ran: 32 bits on some systems.
fn integers(array: NpyFile<Cursor<Vec<u8>>>) -> std::io::Result<Vec<i64>> {
    if array.dtype().descr().contains("i4") {
        let values: Vec<i32> = array.into_vec()?;
        return Ok(values.into_iter().map(i64::from).collect());
    }
    array.into_vec()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const DOCUMENTS: u64 = 7;

    /// An archive of one array with this header and data, and a count.
    fn archive(header: &str, data: &[u8]) -> Cursor<Vec<u8>> {
        archive_counted(header, data, "<i8", &5_i64.to_le_bytes())
    }

    fn archive_counted(header: &str, data: &[u8], descr: &str, count: &[u8]) -> Cursor<Vec<u8>> {
        let array = |header: &str, data: &[u8]| {
            let size = u16::try_from(header.len()).expect("short headers only").to_le_bytes();
            [&b"\x93NUMPY\x01\x00"[..], &size, header.as_bytes(), data].concat()
        };
        let alone = |descr, number| {
            array(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (), }}\n"), number)
        };
        let (count, documents) = (alone(descr, count), alone("<i8", &DOCUMENTS.to_le_bytes()));
        let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
        let stored =
            zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in [
            ("mom2.mom2.npy", array(header, data)),
            ("mom2.count.npy", count),
            ("sample_size.npy", documents),
        ] {
            archive.start_file(name, stored).expect("memory is enough");
            archive.write_all(&bytes).expect("memory is enough");
        }
        archive.finish().expect("memory is enough")
    }

    fn refusal(header: &str) -> String {
        let found = read_npz(archive(header, &[0; 16]), None);
        found.expect_err("must be refused").to_string()
    }

    #[test]
    fn an_array_as_numpy_writes_it_is_read() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }        \n";
        let data: Vec<u8> = [1.0_f32, 2.0, 2.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let found = read_npz(archive(header, &data), Some(2)).expect("it is right");
        let sum = LayerSum { sum: vec![1.0, 2.0, 2.0, 4.0], count: 5 };
        assert_eq!(found, Imported { sum, inner: 2, documents: Some(DOCUMENTS) });
        let narrow = archive_counted(header, &data, "<i4", &5_i32.to_le_bytes());
        assert_eq!(read_npz(narrow, Some(2)).expect("a count of 32 bits"), found);
        let found = read_npz(archive(header, &data), Some(3)).expect_err("of another width").to_string();
        assert!(found.ends_with("shape [2, 2], expected a square matrix of 3 rows"), "{found}");
    }

    #[test]
    fn sums_that_no_keys_have_are_refused_with_their_place() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }        \n";
        for (sums, expected) in [
            ([1.0, f32::NAN, 0.0, 1.0], "the sum NaN at row 0, column 1, expected a finite number"),
            ([1.0, 0.0, f32::NEG_INFINITY, 1.0], "the sum -inf at row 1, column 0, expected a finite number"),
            ([1.0, 0.0, 0.0, -1.0], "the sum -1 at row 1, column 1, expected 0 or more on the diagonal"),
            (
                [1.0, 0.0, 0.5, 1.0],
                "the sum 0.5 at row 1, column 0, and 0 at row 0, column 1, expected the same",
            ),
        ] {
            let data: Vec<u8> = sums.iter().flat_map(|sum: &f32| sum.to_le_bytes()).collect();
            let found = read_npz(archive(header, &data), None).expect_err("must be refused").to_string();
            assert!(found.ends_with(expected), "{found}");
        }
        assert_eq!([check_row(0, &[-0.0, -1.0]), check_row(1, &[-1.0, 0.0])], [Ok(()), Ok(())]);
    }

    #[test]
    fn a_header_that_would_take_time_without_end_is_refused_at_once() {
        for depth in [1, 20, 1000] {
            for (open, close) in [("[", "]"), ("(", ")"), ("{", "}")] {
                let descr = format!("{}{}", open.repeat(depth), close.repeat(depth));
                let header = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': (2, 2), }}\n");
                let found = refusal(&header);
                assert!(found.contains("of something else than plain numbers"), "{found}");
            }
        }
        let long = format!("{{'descr': '{}', 'shape': (2, 2), }}\n", "x".repeat(60_000));
        assert!(refusal(&long).contains("at most 4096 are read"));
    }

    #[test]
    fn an_archive_s_own_words_do_not_fill_the_message() {
        let found = refusal(&format!("{{'descr': '{}', 'shape': (2, 2), }}\n", "x".repeat(4000)));
        assert!(found.len() < 500, "{} bytes", found.len());
    }

    #[test]
    fn a_shape_beyond_the_data_is_refused() {
        for shape in [
            "4294967296, 4294967296",
            "18446744073709551615, 18446744073709551615",
            "0, 4294967296, 4294967296",
            "4096, 4096",
        ] {
            let header =
                format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}{:60}\n", "");
            let found = refusal(&header);
            assert!(found.contains("that claims the shape"), "{shape}: {found}");
        }
        for shape in ["18446744073709551616,", "-1, -1", "0x2, 0x2", "a, b"] {
            let found =
                refusal(&format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n"));
            assert!(found.contains("whose shape is no list of numbers"), "{shape}: {found}");
        }
    }

    #[test]
    fn sums_in_f64_are_read_as_f32() {
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 1), }        \n";
        let found = read_npz(archive(header, &2.5_f64.to_le_bytes()), Some(1)).expect("it is right");
        assert_eq!(found.sum.sum, [2.5]);
    }

    #[test]
    fn an_array_that_goes_on_beyond_its_shape_is_refused() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }        \n";
        let found = read_npz(archive(header, &[0; 5000]), None).expect_err("too long").to_string();
        assert!(found.ends_with("`mom2.mom2` that goes on where its shape [1, 1] ends"), "{found}");
    }

    #[test]
    fn a_count_of_no_tokens_is_refused() {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }        \n";
        for count in [0, -1] {
            let archive = archive_counted(header, &1_f32.to_le_bytes(), "<i8", &i64::to_le_bytes(count));
            let found = read_npz(archive, None).expect_err("of nothing").to_string();
            assert!(
                found.ends_with(&format!("has the `mom2.count` {count}, expected a positive number")),
                "{found}"
            );
        }
    }
}
