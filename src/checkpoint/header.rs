//! The header of one safetensors file, read strictly.
//!
//! ```text
//! header size: u64 little-endian | `{` JSON `}` and padding | tensor bytes, tiled without holes
//! ```
//!
//! The safetensors crate takes the last of two entries of one name and leaves names as they come; a patch must
//! not depend on which of two tensors a reader picks, so this one refuses both. Tiling, sizes and element types
//! are still checked by the crate.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

/// Size of the number in front of the header, in bytes.
pub(super) const HEADER_SIZE_FIELD_BYTES: u64 = 8;
/// Largest header, the limit of the safetensors library.
pub const HEADER_SIZE_BYTES_MAX: u64 = 100_000_000;
/// Longest name of a tensor, in bytes.
pub const TENSOR_NAME_BYTES_MAX: usize = 512;

/// One tensor as the header describes it; offsets count from the end of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: String,
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
    let raw: RawHeader = serde_json::from_slice(text).map_err(|error| format!("header: {error}"))?;
    check_names(&raw.tensors)?;
    let metadata = raw.metadata;
    let mut tensors = raw.tensors;
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let tensors = tensors.into_iter().map(|(name, tensor)| (name, TensorInfo::from(tensor))).collect();
    // Tiling without holes or overlaps, and every size equal to what shape and type give.
    let layout = Metadata::new(None, tensors).map_err(|error| error.to_string())?;
    let tensors_size = layout.data_len() as u64;
    if tensors_size != data_size {
        return Err(format!("the tensors take {tensors_size} bytes, the file has {data_size} for them"));
    }
    let mut entries: Vec<Entry> =
        layout.tensors().into_iter().map(|(name, info)| entry(name, info)).collect();
    entries.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(Header { entries, metadata })
}

fn entry(name: String, info: &TensorInfo) -> Entry {
    let (start, end) = info.data_offsets;
    Entry {
        name,
        dtype: info.dtype.to_string(),
        shape: info.shape.iter().map(|&dimension| dimension as u64).collect(),
        offset: start as u64,
        size_bytes: (end - start) as u64,
    }
}

/// Refuses names twice, too long, or with characters that a terminal would obey.
fn check_names(tensors: &[(String, RawTensor)]) -> Result<(), String> {
    let mut names: Vec<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("tensor {:?} is described twice", pair[0]));
    }
    for name in names {
        if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX {
            let size = name.len();
            return Err(format!("a tensor's name has {size} bytes, 1 to {TENSOR_NAME_BYTES_MAX} are read"));
        }
        if name.chars().any(char::is_control) {
            return Err(format!("the name {name:?} holds control characters"));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl From<RawTensor> for TensorInfo {
    fn from(raw: RawTensor) -> Self {
        TensorInfo { dtype: raw.dtype, shape: raw.shape, data_offsets: raw.data_offsets }
    }
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut metadata: Option<BTreeMap<String, String>> = None;
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name != "__metadata__" {
                        tensors.push((name, map.next_value()?));
                    } else if metadata.is_some() {
                        return Err(A::Error::custom("`__metadata__` stands twice"));
                    } else {
                        metadata = Some(map.next_value::<UniqueMap>()?.0);
                    }
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// A JSON object of strings in which no key stands twice.
pub(super) struct UniqueMap(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = UniqueMap;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("{key:?} stands twice")));
                    }
                    entries.insert(key, value);
                }
                Ok(UniqueMap(entries))
            }
        }

        deserializer.deserialize_map(Entries)
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
            Entry { name: "a".to_owned(), dtype: "F32".to_owned(), shape: vec![2], offset: 0, size_bytes: 8 };
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
