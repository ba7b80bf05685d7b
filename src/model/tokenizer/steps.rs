//! What the steps of a tokenizer's file can make of a text, told before any of them is run: a few that each write
//! thirty letters for one would fill all memory with a prompt. And those steps with which the `tokenizers` crate
//! panics.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// Bytes that the steps may make of one byte at most. NFKC makes eleven, and byte level two of each of those.
const GROWTH_MAX: f64 = 64.0;

/// The parts of the file that change text.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Steps {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
}

/// Refuses a file that is no JSON, or whose steps let a text grow too much, in words.
///
/// # Errors
/// What is wrong, by the names that the file has for it.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    let steps: Steps = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    let encoding = growth_of::<NormalizerWrapper>("normalizer", &steps.normalizer)?
        * growth_of::<PreTokenizerWrapper>("pre_tokenizer", &steps.pre_tokenizer)?;
    let decoding = growth_of::<DecoderWrapper>("decoder", &steps.decoder)?;
    for (growth, parts) in [(encoding, "`normalizer` and `pre_tokenizer`"), (decoding, "`decoder`")] {
        if growth > GROWTH_MAX {
            return Err(format!(
                "its {parts} could make {growth:.0} bytes of one, where {GROWTH_MAX} are allowed"
            ));
        }
    }
    Ok(())
}

/// Bytes that a part of the file makes of one at most, as the crate that runs it reads that part.
fn growth_of<Part: DeserializeOwned + Serialize>(name: &str, part: &Value) -> Result<f64, String> {
    let named = |error: serde_json::Error| format!("its `{name}`: {error}");
    refuse_precompiled(part).map_err(|problem| format!("its `{name}` {problem}"))?;
    let read: Option<Part> = Option::deserialize(part).map_err(named)?;
    let Some(read) = read else { return Ok(1.0) };
    growth(&serde_json::to_value(&read).map_err(named)?).map_err(|problem| format!("its `{name}` {problem}"))
}

/// `Precompiled` maps text as it likes, and the crate panics on one without its map.
fn refuse_precompiled(part: &Value) -> Result<(), String> {
    match part {
        Value::Array(steps) => steps.iter().try_for_each(refuse_precompiled),
        Value::Object(fields) => {
            if fields.get("type").is_some_and(|name| name == "Precompiled") {
                return Err("has a step `Precompiled`, which is not run".to_owned());
            }
            fields.values().try_for_each(refuse_precompiled)
        }
        _ => Ok(()),
    }
}

/// Bytes that a step makes of one at most; what it adds to a text once is counted as if each byte were a text.
fn growth(step: &Value) -> Result<f64, String> {
    let size = |field: &str| step[field].as_str().map_or(0, str::len) as f64;
    let number = |field: &str| step[field].as_u64().unwrap_or(0);
    Ok(match step["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            let steps = ["normalizers", "pretokenizers", "decoders"].map(|field| step[field].as_array());
            let mut product = 1.0;
            for step in steps.into_iter().flatten().flatten() {
                product *= growth(step)?;
            }
            product
        }
        "Replace" => match step["pattern"]["String"].as_str().map_or(0, str::len) {
            // It may fit before every byte, and at the end.
            0 => 2.0 * size("content") + 1.0,
            pattern => (size("content") / pattern as f64).max(1.0),
        },
        "Prepend" => size("prepend") + 1.0,
        "Metaspace" => size("replacement") + 1.0,
        // A space before the text is one of these two bytes more.
        "ByteLevel" if step["add_prefix_space"] == true => 4.0,
        "ByteLevel" => 2.0,
        // As Unicode's own table of expansion factors has them.
        "NFC" | "NFD" => 3.0,
        "NFKC" | "NFKD" => 11.0,
        // Two spaces about a sign of three bytes, NFD, lower case.
        "BertNormalizer" => 7.5,
        "Lowercase" => 1.5,
        // A space between all bytes, and at both ends, or before a token.
        "BPEDecoder" | "CTC" => 3.0,
        "WordPiece" => 2.0,
        "FixedLength" if number("length") == 0 => {
            return Err("has a step `FixedLength` of no length".to_owned());
        }
        "Strip" if number("stop") > 0 => {
            return Err("has a step `Strip` that cuts at the end, which is not run".to_owned());
        }
        "Strip" | "StripAccents" | "Nmt" | "BertPreTokenizer" | "CharDelimiterSplit" | "Whitespace"
        | "Split" | "Punctuation" | "WhitespaceSplit" | "Digits" | "UnicodeScripts" | "FixedLength"
        | "ByteFallback" | "Fuse" => 1.0,
        other => return Err(format!("has a step `{other}`, which is not run")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one part.
    fn checked(part: &str, steps: &str) -> Result<(), String> {
        check(format!(r#"{{"version":"1.0","{part}":{steps},"model":{{}}}}"#).as_bytes())
    }

    #[test]
    fn steps_that_published_tokenizers_take_are_taken() {
        let byte_level = r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true}"#;
        let llama = r#"{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
            {"type":"Replace","pattern":{"String":" "},"content":"▁"}]}"#;
        let back = r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
            {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#;
        let split = r#"{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\p{L}+"},
            "behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true}]}"#;
        let metaspace = r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always"}"#;
        let bert =
            r#"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"lowercase":true}"#;
        for (part, steps) in [
            ("normalizer", "null"),
            ("normalizer", r#"{"type":"NFKC"}"#),
            ("normalizer", llama),
            ("normalizer", bert),
            ("pre_tokenizer", byte_level),
            ("pre_tokenizer", split),
            ("pre_tokenizer", metaspace),
            ("decoder", byte_level),
            ("decoder", back),
        ] {
            assert_eq!(checked(part, steps), Ok(()), "{part}: {steps}");
        }
    }

    #[test]
    fn steps_that_let_a_text_grow_without_end_are_refused_by_name() {
        let many = |field: &str, step: &str, count| {
            format!(r#"{{"type":"Sequence","{field}":[{}]}}"#, vec![step; count].join(","))
        };
        let long = "x".repeat(30);
        let replace = format!(r#"{{"type":"Replace","pattern":{{"String":"x"}},"content":"{long}"}}"#);
        let anywhere = format!(r#"{{"type":"Replace","pattern":{{"Regex":""}},"content":"{long}{long}"}}"#);
        let byte_level = r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true}"#;
        let spaced = r#"{"type":"BPEDecoder","suffix":""}"#;
        for (part, steps, words) in [
            (
                "normalizer",
                many("normalizers", &replace, 6),
                "`normalizer` and `pre_tokenizer` could make 7290000",
            ),
            ("normalizer", many("normalizers", byte_level, 24), "could make 16777216 bytes of one, where 64"),
            ("normalizer", anywhere, "could make 121 bytes"),
            ("normalizer", format!(r#"{{"prepend":"{long}{long}{long}"}}"#), "could make 91 bytes"),
            ("normalizer", r#"{"type":"Precompiled"}"#.to_owned(), "`normalizer` has a step `Precompiled`"),
            ("pre_tokenizer", many("pretokenizers", byte_level, 4), "could make 256 bytes"),
            (
                "pre_tokenizer",
                r#"{"type":"FixedLength","length":0}"#.to_owned(),
                "`FixedLength` of no length",
            ),
            ("decoder", many("decoders", &replace, 6), "`decoder` could make 7290000"),
            ("decoder", many("decoders", spaced, 30), "`decoder` could make"),
            ("decoder", r#"{"type":"Strip","content":" ","start":0,"stop":1}"#.to_owned(), "cuts at the end"),
            ("decoder", r#"{"type":"#.to_owned(), "expected"),
        ] {
            let problem = checked(part, &steps).unwrap_err();
            assert!(problem.contains(words), "{part}: {problem}");
        }
    }
}
