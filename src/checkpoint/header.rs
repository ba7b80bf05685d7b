//! The header of one safetensors file, read strictly.
//!
//! ```text
//! header size: u64 little-endian | `{` JSON `}` and padding | tensor bytes, tiled without holes
//! ```
//!
//! The safetensors crate takes the last of two entries of one name and leaves names as they come; a patch must
//! not depend on which of two tensors a reader picks, so this one refuses both. Whatever is read here is read alike
//! by the crate, which a fuzzer compares. Reading takes at most four times the header's size in memory (the crate:
//! sixteen times), because entries are parsed into their last form and sorted where they lie.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Size of the number in front of the header, in bytes.
pub(super) const HEADER_SIZE_FIELD_BYTES: u64 = 8;
/// Largest header, the limit of the safetensors library.
pub const HEADER_SIZE_BYTES_MAX: u64 = 100_000_000;
/// Longest name of a tensor, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 512;
/// Most dimensions of a tensor, as many as NumPy long had.
pub const DIMENSIONS_MAX: usize = 32;
/// Most entries of the free text map.
pub const METADATA_ENTRIES_MAX: usize = 4_096;
/// The shortest description of a tensor: `"":{"dtype":"U8","shape":[],"data_offsets":[0,0]},`.
const ENTRY_SIZE_BYTES_MIN: usize = 50;

/// One tensor as the header describes it; offsets count from the end of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    pub(super) offset: u64,
    pub(super) size_bytes: u64,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    /// In bytewise order of names.
    pub(super) entries: Vec<Entry>,
    /// The free text map, e.g. `format: pt`.
    pub(super) metadata: BTreeMap<String, String>,
}

/// Checks the size in front of the header against the file and the limit.
pub(super) fn check_size(header_size: u64, file_size: u64) -> Result<(), String> {
    if header_size > HEADER_SIZE_BYTES_MAX {
        return Err(format!(
            "the header claims {header_size} bytes, at most {HEADER_SIZE_BYTES_MAX} are read"
        ));
    }
    if HEADER_SIZE_FIELD_BYTES + header_size > file_size {
        return Err(format!("the header claims {header_size} bytes, the file has {file_size} in all"));
    }
    Ok(())
}

/// Parses the header's text; the tensors must fill `data_size` bytes exactly.
pub(super) fn parse(text: &[u8], data_size: u64) -> Result<Header, String> {
    if text.first() != Some(&b'{') {
        return Err("the header does not begin with `{`".to_owned());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let entries = Entries { capacity: capacity(text) };
    let mut header = deserializer
        .deserialize_map(entries)
        .and_then(|header| deserializer.end().map(|()| header))
        .map_err(|error| format!("header: {error}"))?;
    let entries = &mut header.entries;
    // A name that stands twice is told as that, and not by what it does to the offsets.
    entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    check_names(entries)?;
    entries.sort_unstable_by_key(|entry| (entry.offset, entry.size_bytes));
    check_tiling(entries, data_size)?;
    entries.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Ok(header)
}

/// How many tensors `text` can describe: each takes a brace and some bytes, and the braces may stand in names.
fn capacity(text: &[u8]) -> usize {
    let braces = text.iter().filter(|byte| **byte == b'{').count();
    braces.min(text.len() / ENTRY_SIZE_BYTES_MIN)
}

/// Every tensor begins where the one before it ends, and the last ends with the file.
fn check_tiling(entries: &[Entry], data_size: u64) -> Result<(), String> {
    let mut end = 0;
    for entry in entries {
        if entry.offset != end {
            let Entry { name, offset, .. } = entry;
            return Err(format!(
                "tensor {name:?} has the offset {offset} where the one before it ends at {end}"
            ));
        }
        // Both come from the two offsets that the header states, so their sum is the second of them.
        end += entry.size_bytes;
    }
    if end != data_size {
        return Err(format!("the tensors take {end} bytes, the file has {data_size} for them"));
    }
    Ok(())
}

/// Refuses names twice, too long, with characters that a terminal would obey, or that lead out of a folder.
fn check_names(entries: &[Entry]) -> Result<(), String> {
    if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(format!("tensor {:?} is described twice", pair[0].name));
    }
    for Entry { name, .. } in entries {
        if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX {
            let size = name.len();
            return Err(format!("a tensor's name has {size} bytes, 1 to {TENSOR_NAME_BYTES_MAX} are read"));
        }
        if name.chars().any(char::is_control) {
            return Err(format!("the name {name:?} holds control characters"));
        }
        // Names are never paths here, but other programs make files of them.
        if name.split(['/', '\\']).any(|part| part == "..") {
            return Err(format!("the name {name:?} leads out of its folder"));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl RawTensor {
    /// The entry, if its size is what shape and type give.
    fn entry(self, name: String) -> Result<Entry, String> {
        let (start, end) = self.data_offsets;
        let shape = self.shape.0;
        let elements = shape.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
        let bits = elements.and_then(|count| count.checked_mul(self.dtype.bitsize() as u64));
        let Some(bits) = bits else {
            return Err(format!("tensor {name:?} of {} {shape:?} is larger than any file", self.dtype));
        };
        if !bits.is_multiple_of(8) || end.checked_sub(start) != Some(bits / 8) {
            return Err(format!(
                "tensor {name:?} of {} {shape:?} takes {bits} bits, its offsets are {start} and {end}",
                self.dtype
            ));
        }
        Ok(Entry { name, dtype: self.dtype, shape, offset: start, size_bytes: bits / 8 })
    }
}

/// A few dimensions; no list grows with what the header claims.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Dimensions)
    }
}

struct Dimensions;

impl<'de> Visitor<'de> for Dimensions {
    type Value = Shape;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
        let mut dimensions = [0; DIMENSIONS_MAX];
        let mut count = 0;
        while let Some(dimension) = list.next_element()? {
            let Some(place) = dimensions.get_mut(count) else {
                return Err(A::Error::custom(format_args!("more than {DIMENSIONS_MAX} dimensions")));
            };
            *place = dimension;
            count += 1;
        }
        Ok(Shape(dimensions[..count].to_vec()))
    }
}

/// Reads the header's object into entries, with room for so many from the start.
struct Entries {
    capacity: usize,
}

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut metadata: Option<BTreeMap<String, String>> = None;
        let mut entries = Vec::with_capacity(self.capacity);
        while let Some(name) = map.next_key::<String>()? {
            if name != "__metadata__" {
                let tensor: RawTensor = map.next_value()?;
                entries.push(tensor.entry(name).map_err(A::Error::custom)?);
            } else if metadata.is_some() {
                return Err(A::Error::custom("`__metadata__` stands twice"));
            } else {
                metadata = Some(map.next_value::<UniqueMap<METADATA_ENTRIES_MAX>>()?.0);
            }
        }
        Ok(Header { entries, metadata: metadata.unwrap_or_default() })
    }
}

/// A JSON object of at most so many strings in which no key stands twice.
pub(super) struct UniqueMap<const COUNT_MAX: usize>(pub(super) BTreeMap<String, String>);

impl<'de, const COUNT_MAX: usize> Deserialize<'de> for UniqueMap<COUNT_MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings<const COUNT_MAX: usize>;

        impl<'de, const COUNT_MAX: usize> Visitor<'de> for Strings<COUNT_MAX> {
            type Value = UniqueMap<COUNT_MAX>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("{key:?} stands twice")));
                    }
                    if entries.len() == COUNT_MAX {
                        return Err(A::Error::custom(format_args!("more than {COUNT_MAX} entries")));
                    }
                    entries.insert(key, value);
                }
                Ok(UniqueMap(entries))
            }
        }

        deserializer.deserialize_map(Strings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

    fn reason(text: &str) -> String {
        parse(text.as_bytes(), 8).unwrap_err()
    }

    #[test]
    fn a_plain_header_is_read() {
        let text = format!(r#"{{"__metadata__":{{"format":"pt"}},{ONE}}}   "#);
        let header = parse(text.as_bytes(), 8).unwrap();
        assert_eq!(header.metadata["format"], "pt");
        let expected =
            Entry { name: "a".to_owned(), dtype: Dtype::F32, shape: vec![2], offset: 0, size_bytes: 8 };
        assert_eq!(header.entries, [expected]);
    }

    #[test]
    fn what_readers_would_disagree_on_is_refused() {
        assert_eq!(reason(&format!("{{{ONE},{ONE}}}")), r#"tensor "a" is described twice"#);
        assert_eq!(reason(&format!(" {{{ONE}}}")), "the header does not begin with `{`");
        let twice = r#"{"__metadata__":{"x":"1","x":"2"}}"#;
        assert!(reason(twice).contains(r#""x" stands twice"#), "{}", reason(twice));
        let metadata_twice = r#"{"__metadata__":{},"__metadata__":{}}"#;
        assert!(reason(metadata_twice).contains("`__metadata__` stands twice"));
        let unknown = ONE.replace("}", r#","more":1}"#);
        assert!(reason(&format!("{{{unknown}}}")).contains("unknown field `more`"));
    }

    #[test]
    fn names_are_short_and_printable() {
        assert!(reason(&format!("{{{}}}", ONE.replace("\"a\"", r#""\u001b]0;""#))).contains("control"));
        assert!(reason(&format!("{{{}}}", ONE.replace("\"a\"", "\"\""))).contains("0 bytes"));
        let name =
            |size: usize| format!("{{{}}}", ONE.replace("\"a\"", &format!("\"{}\"", "n".repeat(size))));
        assert!(parse(name(TENSOR_NAME_BYTES_MAX).as_bytes(), 8).is_ok());
        assert!(reason(&name(TENSOR_NAME_BYTES_MAX + 1)).contains("513 bytes"));
    }

    #[test]
    fn tensors_tile_the_file() {
        let text = format!("{{{ONE}}}");
        let found = parse(text.as_bytes(), 9).unwrap_err();
        assert_eq!(found, "the tensors take 8 bytes, the file has 9 for them");
        assert!(reason(&text.replace("[0,8]", "[1,9]")).contains("offset"));
        assert!(parse(text.replace("[2]", "[3]").as_bytes(), 8).is_err());
        assert!(parse(text.replace("[2]", "[9223372036854775808,4]").as_bytes(), 8).is_err());
    }

    #[test]
    fn sizes_are_checked_at_their_limits() {
        assert!(check_size(HEADER_SIZE_BYTES_MAX, HEADER_SIZE_BYTES_MAX + 8).is_ok());
        assert!(check_size(HEADER_SIZE_BYTES_MAX + 1, u64::MAX).unwrap_err().contains("at most"));
        assert!(check_size(10, 17).unwrap_err().contains("17 in all"));
        assert!(check_size(u64::MAX, 17).is_err());
    }
}
