//! Safetensors files put together by hand, so that what reads and writes them has something else to be held against.

use serde_json::{Map, Value, json};

/// The bytes of a file of these tensors: name, type, shape and bytes of each, laid out in this order.
pub fn file_of<'t, S: AsRef<[usize]>, B: AsRef<[u8]>>(
    tensors: impl IntoIterator<Item = (&'t str, &'t str, S, B)>,
) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes.as_ref());
        let entry = json!({ "dtype": dtype, "shape": shape.as_ref(), "data_offsets": [start, data.len()] });
        header.insert(name.to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}
