//! From bytes to JSON elements: an array of them, one alone, or one on each line.

use serde_json::Value;

use super::error::{FactsError, excerpt, shortened};
use super::repeated::{RepeatedKey, repeated_key};

/// One JSON value that should be a record.
#[derive(Debug)]
pub(super) struct Element {
    pub value: Value,
    /// Its line, from 1, in a file of JSON lines.
    pub line: Option<usize>,
}

/// Splits a file into its elements, whichever of the three ways it is written.
pub(super) fn elements(bytes: &[u8]) -> Result<Vec<Element>, FactsError> {
    // Editors on Windows put a byte order mark before the first brace.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(FactsError::Empty);
    }
    if is_utf16(bytes) {
        return Err(FactsError::Utf16);
    }
    let read = serde_json::from_slice(bytes);
    if read.is_ok()
        && let Some(repeated) = repeated_key(bytes)
    {
        return Err(key_twice(repeated, None));
    }
    let elements = match read {
        Ok(Value::Array(values)) => values.into_iter().map(|value| Element { value, line: None }).collect(),
        Ok(value @ Value::Object(_)) => vec![Element { value, line: None }],
        Ok(other) => return Err(FactsError::NotRecords { found: kind_of(&other) }),
        Err(_) if first_line_is_a_value(bytes) => lines(bytes)?,
        Err(error) => return Err(other_language(bytes).unwrap_or_else(|| not_json(&error, error.line()))),
    };
    if elements.is_empty() { Err(FactsError::Empty) } else { Ok(elements) }
}

/// Told by its byte order mark, or by the half of an ASCII character that is zero.
fn is_utf16(bytes: &[u8]) -> bool {
    let start = bytes.get(..2).unwrap_or_default();
    matches!(start, [0xff, 0xfe] | [0xfe, 0xff]) || start.contains(&0)
}

/// Says what the file begins with where that is neither an object nor an array: no place in it can be mended then.
fn other_language(bytes: &[u8]) -> Option<FactsError> {
    let (line, found) = numbered_lines(bytes).next()?;
    let found = String::from_utf8_lossy(found.trim_ascii());
    let is_other = !found.starts_with(['{', '[']);
    // What is shown of it is in a sentence.
    is_other.then(|| FactsError::OtherLanguage { line, found: shortened(&found, 20).into_owned() })
}

/// The file as a whole is no JSON, but its first line is: then each line stands for itself.
fn first_line_is_a_value(bytes: &[u8]) -> bool {
    numbered_lines(bytes).next().is_some_and(|(_, line)| serde_json::from_slice::<Value>(line).is_ok())
}

fn lines(bytes: &[u8]) -> Result<Vec<Element>, FactsError> {
    let element = |(number, line): (usize, &[u8])| {
        let value = serde_json::from_slice(line).map_err(|error| not_json(&error, number))?;
        match repeated_key(line) {
            Some(repeated) => Err(key_twice(repeated, Some(number))),
            None => Ok(Element { value, line: Some(number) }),
        }
    };
    numbered_lines(bytes).map(element).collect()
}

fn numbered_lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate().map(|(index, line)| (index + 1, line));
    lines.filter(|(_, line)| !line.iter().all(u8::is_ascii_whitespace))
}

/// In JSON lines, `line` is which one of them it is.
fn key_twice(RepeatedKey { key, line: line_within, column }: RepeatedKey, line: Option<usize>) -> FactsError {
    FactsError::KeyTwice { key: excerpt(&key), line: line.unwrap_or(line_within), column }
}

fn not_json(error: &serde_json::Error, line: usize) -> FactsError {
    let whole = error.to_string();
    // serde_json ends its message with the place, which in JSON lines is counted from the wrong line.
    let problem = whole.split(" at line ").next().unwrap_or(&whole).to_owned();
    FactsError::NotJson { line, column: error.column(), problem }
}

/// A JSON value's kind, as a sentence has it.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
