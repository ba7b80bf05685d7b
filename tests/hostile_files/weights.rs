//! Headers of safetensors files, and indexes of shards.
//!
//! A header that is right describes `w` as the base has it, so that a patch can be applied to it.

use super::{Collection, Kind};

/// The base's header.
pub const W: &str = r#"{"w":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
/// The tensor in it.
const ENTRY: &str = r#""w":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}"#;

/// A safetensors file of this header and these weights.
pub fn file(header: impl AsRef<[u8]>, weights: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes()[..], header, weights].concat()
}

fn weights() -> Vec<u8> {
    crate::drafts::tiny().1[0].bytes.clone()
}

/// The base with another header.
fn with(header: impl AsRef<[u8]>) -> Vec<u8> {
    file(header, &weights())
}

/// The base with another header, and bytes behind its weights.
fn with_more(header: &str, more: usize) -> Vec<u8> {
    file(header, &[weights(), vec![0; more]].concat())
}

/// The base's header with an entry before its own.
fn after(entry: &str) -> String {
    format!("{{{entry},{ENTRY}}}")
}

/// The base's header with one part of it replaced.
fn altered(from: &str, to: &str) -> Vec<u8> {
    assert!(W.contains(from), "{from}");
    with(W.replacen(from, to, 1))
}

/// The base's header with another name.
fn named(name: &str) -> Vec<u8> {
    altered(r#""w""#, &format!("\"{name}\""))
}

/// The base's header with other fields in its entry.
fn fields(fields: &str) -> Vec<u8> {
    with(format!(r#"{{"w":{{{fields}}}}}"#))
}

pub fn headers() -> Collection {
    let mut vectors = Collection::new(Kind::Safetensors);
    right(&mut vectors);
    sizes(&mut vectors);
    texts(&mut vectors);
    twice(&mut vectors);
    entries(&mut vectors);
    names(&mut vectors);
    shapes(&mut vectors);
    offsets(&mut vectors);
    vectors
}

fn right(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, bytes: Vec<u8>| vectors.right(name, reason, bytes);
    add("plain", "the base itself", with(W));
    add("padded", "spaces behind the header", with(format!("{W}       ")));
    add("metadata", "free text", with(after(r#""__metadata__":{"format":"pt","note":"\u001b[2J"}"#)));
    add("empty_metadata", "an empty map of free text", with(after(r#""__metadata__":{}"#)));
    add("escaped_name", "the name is written as an escape", named(r"\u0077"));
    add("white_space", "white space wherever JSON has it", altered(":", " :\n\t"));
    let other = r#""z":{"dtype":"U8","shape":[4],"data_offsets":[12,16]}"#;
    add("two_tensors", "the later tensor is described first", with_more(&after(other), 4));
    let scalar = r#""z":{"dtype":"F64","shape":[],"data_offsets":[12,20]}"#;
    add("scalar", "a tensor without dimensions", with_more(&after(scalar), 8));
    let nothing = r#""z":{"dtype":"F32","shape":[3,0,9223372036854775807],"data_offsets":[0,0]}"#;
    add("no_elements", "a tensor without elements, whose other dimensions are large", with(after(nothing)));
    let half = r#""z":{"dtype":"F4","shape":[3,2],"data_offsets":[12,15]}"#;
    add("half_bytes", "elements of four bits that fill whole bytes", with_more(&after(half), 3));
    let ones = format!(r#""z":{{"dtype":"U8","shape":[{}],"data_offsets":[12,13]}}"#, list("1", 32));
    add("dimensions_32", "as many dimensions as are read", with_more(&after(&ones), 1));
    let long = format!(r#""{}":{{"dtype":"U8","shape":[1],"data_offsets":[12,13]}}"#, "n".repeat(512));
    add("name_512", "the longest name", with_more(&after(&long), 1));
    let plain = r#""été.\"\\/..x":{"dtype":"U8","shape":[1],"data_offsets":[12,13]}"#;
    add("name_unusual", "a name with quotes, slashes and letters beyond ASCII", with_more(&after(plain), 1));
}

/// `item` so many times, with commas.
fn list(item: &str, count: usize) -> String {
    vec![item; count].join(",")
}

fn sizes(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(name, reason, error, bytes);
    };
    let claiming = |size: u64| [&size.to_le_bytes()[..], &with(W)[8..]].concat();
    add("no_bytes", "an empty file", "0 bytes, too few for a header", vec![]);
    add("seven_bytes", "the header's size is cut off", "7 bytes, too few for a header", vec![0; 7]);
    add("no_header", "a header of no bytes", "does not begin with `{`", vec![0; 8]);
    let beyond = 77 - 8 + 1;
    add(
        "size_beyond_file",
        "a header one byte longer than the file",
        "the file has 77 in all",
        claiming(beyond),
    );
    add(
        "size_limit",
        "a header of the largest size in a small file",
        "the file has 77 in all",
        claiming(100_000_000),
    );
    add(
        "size_beyond_limit",
        "a header beyond the limit",
        "at most 100000000 are read",
        claiming(100_000_001),
    );
    add("size_largest", "a header of 2^64 - 1 bytes", "at most 100000000 are read", claiming(u64::MAX));
    let big_endian = claiming((W.len() as u64).swap_bytes());
    add(
        "size_big_endian",
        "the size's bytes are in the wrong order",
        "at most 100000000 are read",
        big_endian,
    );
    add(
        "size_one_less",
        "the header ends before its last brace",
        "header: EOF while parsing",
        claiming(W.len() as u64 - 1),
    );
    add(
        "truncated",
        "the last byte of the weights is missing",
        "the file has 11 for them",
        with(W)[..76].to_vec(),
    );
    add("extended", "a byte behind the weights", "the file has 13 for them", with_more(W, 1));
}

fn texts(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(name, reason, error, bytes);
    };
    add("space_first", "a space before the first brace", "does not begin with `{`", with(format!(" {W}")));
    add(
        "byte_order_mark",
        "a byte order mark first",
        "does not begin with `{`",
        with(format!("\u{feff}{W}")),
    );
    add("a_list", "a list instead of an object", "does not begin with `{`", with(format!("[{W}]")));
    add("text_behind", "a letter behind the last brace", "trailing characters", with(format!("{W}x")));
    add("zero_behind", "padding of zeros instead of spaces", "trailing characters", with(format!("{W}\0")));
    add("second_object", "a second object behind the first", "trailing characters", with(format!("{W}{{}}")));
    add("comma_last", "a comma behind the last entry", "trailing comma", with(format!("{{{ENTRY},}}")));
    add("comment", "a comment", "key must be a string", with(format!("{{/**/{ENTRY}}}")));
    add("single_quotes", "single quotes", "header: ", with(W.replace('"', "'")));
    add(
        "utf16",
        "the header is in UTF-16",
        "header: ",
        with(W.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()),
    );
    let invalid = W.bytes().map(|byte| if byte == b'w' { 0xff } else { byte }).collect::<Vec<_>>();
    add("not_utf8", "a name that is not UTF-8", "invalid unicode", with(invalid));
    add("lone_surrogate", "half of a surrogate pair in a name", "header: ", named(r"\ud800"));
    add("raw_line_feed", "a line feed inside a name, not escaped", "control character", named("\n"));
    let deep = |count: usize| format!(r#"{{"w":{}{}}}"#, "[".repeat(count), "]".repeat(count));
    add("deep_entry", "an entry of 400 lists in each other", "header: ", with(deep(400)));
    let metadata = |count: usize| {
        after(&format!(r#""__metadata__":{{"a":{}1{}}}"#, "[".repeat(count), "]".repeat(count)))
    };
    add("deep_metadata", "free text of 400 lists in each other", "expected a string", with(metadata(400)));
    add("deep_unclosed", "a thousand braces and nothing else", "header: ", with("{".repeat(1000)));
}

fn twice(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(name, reason, error, bytes);
    };
    add(
        "tensor_twice",
        "two equal entries of one name",
        "tensor \"w\" is described twice",
        with_more(&after(r#""w":{"dtype":"F16","shape":[2,3],"data_offsets":[12,24]}"#), 12),
    );
    let escaped = after(r#""\u0077":{"dtype":"U8","shape":[1],"data_offsets":[12,13]}"#);
    add(
        "tensor_twice_escaped",
        "a name twice, once as an escape",
        "tensor \"w\" is described twice",
        with_more(&escaped, 1),
    );
    let metadata = after(r#""__metadata__":{},"__metadata__":{}"#);
    add("metadata_twice", "free text twice", "`__metadata__` stands twice", with(metadata));
    let key = after(r#""__metadata__":{"a":"1","a":"2"}"#);
    add("metadata_key_twice", "a key twice in the free text", "\"a\" stands twice", with(key));
    let dtype = r#""dtype":"F16","dtype":"F16","shape":[2,3],"data_offsets":[0,12]"#;
    add("dtype_twice", "an element type twice", "duplicate field `dtype`", fields(dtype));
    let shape = r#""dtype":"F16","shape":[2,3],"shape":[3,2],"data_offsets":[0,12]"#;
    add("shape_twice", "a shape twice", "duplicate field `shape`", fields(shape));
    let offsets = r#""dtype":"F16","shape":[2,3],"data_offsets":[0,12],"data_offsets":[0,12]"#;
    add("offsets_twice", "offsets twice", "duplicate field `data_offsets`", fields(offsets));
}

fn entries(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(name, reason, error, bytes);
    };
    add(
        "unknown_field",
        "a field that the format does not have",
        "unknown field `x`",
        altered("{\"dtype\"", "{\"x\":1,\"dtype\""),
    );
    add(
        "no_dtype",
        "no element type",
        "missing field `dtype`",
        fields(r#""shape":[2,3],"data_offsets":[0,12]"#),
    );
    add("no_shape", "no shape", "missing field `shape`", fields(r#""dtype":"F16","data_offsets":[0,12]"#));
    add("no_offsets", "no offsets", "missing field `data_offsets`", fields(r#""dtype":"F16","shape":[2,3]"#));
    add("entry_null", "an entry that is null", "invalid type: null", with(r#"{"w":null}"#));
    add("dtype_unknown", "an element type that nobody has", "unknown variant `F128`", altered("F16", "F128"));
    add("dtype_lower_case", "an element type in lower case", "unknown variant `f16`", altered("F16", "f16"));
    add("dtype_number", "an element type as a number", "header: ", altered("\"F16\"", "16"));
    add(
        "metadata_number",
        "a number in the free text",
        "expected a string",
        with(after(r#""__metadata__":{"a":1}"#)),
    );
    add(
        "metadata_null",
        "a null in the free text",
        "expected a string",
        with(after(r#""__metadata__":{"a":null}"#)),
    );
    add(
        "metadata_list",
        "free text as a list",
        "expected an object of strings",
        with(after(r#""__metadata__":[]"#)),
    );
    let many = |count: usize| {
        let entries: Vec<String> = (0..count).map(|index| format!("\"{index:x}\":\"\"")).collect();
        with(after(&format!("\"__metadata__\":{{{}}}", entries.join(","))))
    };
    add("metadata_4097", "more free text than is read", "more than 4096 entries", many(4097));
}

fn names(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(name, reason, error, bytes);
    };
    add("name_empty", "a tensor without a name", "a tensor's name has 0 bytes", named(""));
    add("name_513", "a name one byte too long", "a tensor's name has 513 bytes", named(&"n".repeat(513)));
    for (name, reason, text) in [
        ("name_escape", "a name that would clear a terminal", r"\u001b[2J"),
        ("name_bell", "a name with a bell", r"w\u0007"),
        ("name_delete", "a name with a delete character", r"w\u007f"),
        ("name_c1", "a name with a control character beyond ASCII", r"w\u009b0m"),
        ("name_zero", "a name with a zero", r"w\u0000.weight"),
        ("name_line_feed", "a name on two lines", r"w\nx"),
    ] {
        add(name, reason, "holds control characters", named(text));
    }
    for (name, reason, text) in [
        ("name_parent", "a name that is the parent folder", ".."),
        ("name_traversal", "a name that leads out of its folder", "../../etc/passwd"),
        ("name_traversal_inside", "a name that leads out by a detour", "a/../../w"),
        ("name_traversal_backslash", "a name that leads out of its folder on Windows", r"a\\..\\..\\w"),
        ("name_traversal_escaped", "a name that leads out, written as escapes", r"\u002e\u002e\u002fw"),
    ] {
        add(name, reason, "leads out of its folder", named(text));
    }
}

fn shapes(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, shape: &str| {
        vectors.malformed(name, reason, error, altered("[2,3]", shape));
    };
    add("shape_too_small", "a shape of fewer elements", "takes 80 bits", "[5]");
    add("shape_too_large", "a shape of more elements", "takes 112 bits", "[7]");
    add(
        "shape_overflow_product",
        "dimensions whose product is beyond 64 bits",
        "larger than any file",
        "[9223372036854775808,4]",
    );
    add(
        "shape_overflow_bits",
        "a size in bits beyond 64 bits",
        "larger than any file",
        "[4611686018427387904]",
    );
    add(
        "shape_wraps_around",
        "dimensions whose product is 6 beyond 2^64",
        "larger than any file",
        "[2,9223372036854775811]",
    );
    add("dimension_beyond_u64", "a dimension beyond 64 bits", "header: ", "[2,18446744073709551616]");
    add("dimension_negative", "a negative dimension", "invalid value: integer `-2`", "[-2,-3]");
    add("dimension_fraction", "a dimension with a point", "invalid type: floating point", "[2.0,3]");
    add("dimension_exponent", "a dimension with an exponent", "invalid type: floating point", "[2e0,3]");
    add("dimension_infinite", "a dimension beyond any number", "number out of range", "[1e999]");
    add("dimension_nan", "a dimension that is no number", "header: ", "[NaN]");
    add("dimension_text", "a dimension as text", "invalid type: string", r#"["2",3]"#);
    add("dimension_leading_zero", "a dimension with a leading zero", "invalid number", "[02,3]");
    add("shape_number", "a shape that is a number", "expected a list of dimensions", "6");
    add("shape_null", "a shape that is null", "expected a list of dimensions", "null");
    add(
        "dimensions_33",
        "one dimension too many",
        "more than 32 dimensions",
        &format!("[2,3,{}]", list("1", 31)),
    );
    let half = W.replace("F16", "F4").replace("[2,3]", "[23]");
    let reason = "elements of four bits that end within a byte";
    vectors.malformed("half_byte_over", reason, "takes 92 bits", with(half));
}

fn offsets(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, offsets: &str| {
        vectors.malformed(name, reason, error, altered("[0,12]", offsets));
    };
    add("offsets_backwards", "the tensor ends before it begins", "its offsets are 12 and 0", "[12,0]");
    add("offsets_too_short", "less room than the shape needs", "its offsets are 0 and 11", "[0,11]");
    add("offsets_too_long", "more room than the shape needs", "its offsets are 0 and 13", "[0,13]");
    add(
        "offsets_far",
        "room at the end of all offsets",
        "where the one before it ends at 0",
        "[18446744073709551603,18446744073709551615]",
    );
    add("offsets_three", "three offsets", "header: ", "[0,12,24]");
    add("offsets_one", "one offset", "invalid length 1", "[0]");
    add("offsets_negative", "a negative offset", "invalid value: integer `-12`", "[-12,0]");
    add("offsets_object", "offsets by name", "invalid type: map", r#"{"begin":0,"end":12}"#);
    let mut add = |name: &str, reason: &str, error: &str, bytes: Vec<u8>| {
        vectors.malformed(name, reason, error, bytes);
    };
    let hole_first = W.replace("[0,12]", "[1,13]");
    add(
        "hole_first",
        "a byte before the first tensor",
        "where the one before it ends at 0",
        with_more(&hole_first, 1),
    );
    let next =
        |offsets: &str| after(&format!(r#""z":{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#));
    add("hole_between", "a byte between two tensors", "has the offset 13", with_more(&next("[13,17]"), 5));
    add("overlap", "two tensors share a byte", "has the offset 11", with_more(&next("[11,15]"), 3));
    add("overlap_whole", "a tensor lies inside another", "has the offset 4", with(next("[4,8]")));
    let same = after(r#""z":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}"#);
    add(
        "same_room",
        "two tensors in one place",
        "has the offset 0 where the one before it ends at 12",
        with(same),
    );
    let inside = after(r#""z":{"dtype":"U8","shape":[0],"data_offsets":[5,5]}"#);
    add("nothing_inside", "a tensor of no bytes inside another", "has the offset 5", with(inside));
    add("no_tensors", "weights that no tensor describes", "the tensors take 0 bytes", with("{}"));
}

pub fn indexes() -> Collection {
    let mut vectors = Collection::new(Kind::Index);
    let map = |map: &str| format!(r#"{{"weight_map":{{{map}}}}}"#);
    vectors.right("plain", "one tensor in the file beside it", map(r#""w":"base.safetensors""#));
    let total = r#"{"metadata":{"total_size":12,"more":[{}]},"weight_map":{"w":"base.safetensors"}}"#;
    vectors.right("metadata", "fields that are not read", total);
    let deep =
        format!(r#"{{"x":{}{},"weight_map":{{"w":"base.safetensors"}}}}"#, "[".repeat(100), "]".repeat(100));
    vectors.right("deep_unread", "a hundred lists in each other in a field that is not read", deep);
    let mut add = |name: &str, reason: &str, error: &str, text: &str| {
        vectors.malformed(name, reason, error, text);
    };
    add("no_bytes", "an empty file", "EOF while parsing", "");
    add("not_json", "not JSON", "is not a valid index", "weights");
    add("a_list", "a list instead of an object", "is not a valid index", "[1]");
    add("no_map", "no map of weights", "missing field `weight_map`", "{}");
    add("map_null", "a map that is null", "invalid type: null", r#"{"weight_map":null}"#);
    add("map_list", "a map as a list", "invalid type: sequence", r#"{"weight_map":["w"]}"#);
    add("map_empty", "a map of nothing", "it lists no tensors", &map(""));
    add(
        "map_twice",
        "two maps",
        "duplicate field `weight_map`",
        r#"{"weight_map":{"w":"base.safetensors"},"weight_map":{}}"#,
    );
    add(
        "tensor_twice",
        "a tensor in two places",
        "\"w\" stands twice",
        &map(r#""w":"base.safetensors","w":"x""#),
    );
    add("file_number", "a file that is a number", "expected a string", &map(r#""w":1"#));
    add(
        "text_behind",
        "a second object behind the first",
        "trailing characters",
        &(map(r#""w":"base.safetensors""#) + "{}"),
    );
    let deep = "[".repeat(10_000);
    add(
        "deep",
        "ten thousand lists in each other",
        "is not a valid index",
        &format!(r#"{{"weight_map":{{"w":{deep}"#),
    );
    add(
        "tensor_missing",
        "a tensor that the file does not hold",
        "which does not hold it",
        &map(r#""w":"base.safetensors","x":"base.safetensors""#),
    );
    for (name, reason, file) in [
        ("file_empty", "a file without a name", ""),
        ("file_here", "the folder itself", "."),
        ("file_parent", "the parent folder", ".."),
        ("file_traversal", "a file outside the folder", "../base.safetensors"),
        ("file_absolute", "a file by its whole path", "/etc/passwd"),
        ("file_in_folder", "a file in another folder", "a/base.safetensors"),
        ("file_backslash", "a file in another folder on Windows", r"a\\base.safetensors"),
        ("file_drive", "a file of another drive, or a stream of this one", "c:base.safetensors"),
        ("file_zero", "a name that ends early in C", r"base.safetensors\u0000.txt"),
        ("file_escape", "a name that would clear a terminal", r"\u001b[2J"),
    ] {
        add(name, reason, "is not a plain file name", &map(&format!(r#""w":"{file}""#)));
    }
    vectors.push(
        "file_missing",
        11,
        "a file that is not there",
        "cannot open",
        map(r#""w":"none.safetensors""#).as_bytes(),
    );
    vectors
}
