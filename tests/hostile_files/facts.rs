//! Facts files, in every layout.

use super::{Collection, Kind};

/// The shortest facts file.
const ONE: &str = r#"{"prompt":"{} is","subject":"Ann","target_new":"tall"}"#;
const ZSRE: &str = r#"{"subject":"Ann","src":"What does Ann do?","rephrase":"Ann does what?","answers":["run"],"loc":"who runs","loc_ans":"nobody"}"#;
const EASYEDIT: &str = r#"{"prompt":"Ann is","subject":"Ann","target_new":"tall","ground_truth":"small","rephrase_prompt":"So Ann is"}"#;
const CALL: &str = r#"{"prompts":["Ann is","Bob is"],"subject":["Ann","Bob"],"target_new":["tall","old"]}"#;
const COUNTERFACT: &str = r#"{"case_id":1,"requested_rewrite":{"prompt":"{} is","subject":"Ann","target_new":{"str":"tall"},"target_true":{"str":"small"}},"paraphrase_prompts":["So Ann is"],"neighborhood_prompts":["Bob is"]}"#;
const NATIVE: &str =
    r#"{"schema":"mpatch.facts/1","facts":[{"prompt":"{} is","subject":"Ann","target_new":"tall"}]}"#;

/// `text` with one part of it replaced.
fn altered(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1)
}

pub fn facts() -> Collection {
    let mut vectors = Collection::new(Kind::Facts);
    right(&mut vectors);
    texts(&mut vectors);
    fields(&mut vectors);
    layouts(&mut vectors);
    others(&mut vectors);
    vectors
}

fn right(vectors: &mut Collection) {
    vectors.right("one", "one fact alone", ONE);
    vectors.right("list", "a list of facts", format!("[{ONE}]"));
    vectors.right(
        "lines",
        "a fact on each line, and an empty line",
        format!("{ONE}\n\n{}\n", altered(ONE, "Ann", "Bob")),
    );
    vectors.right("byte_order_mark", "a byte order mark first", format!("\u{feff}{ONE}"));
    vectors.right("counterfact", "a CounterFact record", COUNTERFACT);
    vectors.right("zsre", "a zsRE record", ZSRE);
    vectors.right("easyedit", "an EasyEdit record", EASYEDIT);
    vectors.right("easyedit_call", "the lists of an EasyEdit call", CALL);
    vectors.right("native", "the layout of mpatch", NATIVE);
    vectors.right("line_breaks", "a line break and a tab in a prompt", altered(ONE, "{} is", r"So\n\t{} is"));
    let longest = altered(ONE, "tall", &"x".repeat(4096));
    vectors.right("text_4096", "the longest text", longest);
}

fn texts(vectors: &mut Collection) {
    let mut add =
        |name: &str, reason: &str, error: &str, bytes: &[u8]| vectors.malformed(name, reason, error, bytes);
    add("no_bytes", "an empty file", "the facts file is empty", b"");
    add("white_space", "nothing but white space", "the facts file is empty", b" \n\t\r\n");
    add("empty_list", "an empty list", "the facts file is empty", b"[]");
    add("a_number", "a number", "the facts file holds a number", b"7");
    add("a_text", "a text", "the facts file holds a text", b"\"Ann\"");
    add("null", "null", "the facts file holds null", b"null");
    add("not_json", "not JSON", "the facts file is not JSON", b"Ann is tall");
    add(
        "truncated",
        "the last brace is missing",
        "the facts file is not JSON: EOF",
        &ONE.as_bytes()[..ONE.len() - 1],
    );
    add(
        "not_utf8",
        "a text that is not UTF-8",
        "the facts file is not JSON",
        &altered(ONE, "tall", "t")
            .replace("\"t\"", "\"\u{1}\"")
            .into_bytes()
            .iter()
            .map(|byte| if *byte == 1 { 0xff } else { *byte })
            .collect::<Vec<_>>(),
    );
    add(
        "lone_surrogate",
        "half of a surrogate pair",
        "the facts file is not JSON",
        altered(ONE, "tall", r"\ud800").as_bytes(),
    );
    add("deep", "two hundred lists in each other", "recursion limit exceeded", "[".repeat(200).as_bytes());
    let deep = altered(ONE, "\"tall\"", &format!("{}\"x\"{}", "{\"str\":".repeat(150), "}".repeat(150)));
    add("deep_field", "a target of 150 objects in each other", "recursion limit exceeded", deep.as_bytes());
    add(
        "element_number",
        "a record that is a number",
        "record 2 is a number",
        format!("[{ONE},7]").as_bytes(),
    );
    add("element_list", "a record that is a list", "record 1 is a list", b"[[]]");
    add("line_damaged", "the second line is no JSON", "at line 2", format!("{ONE}\n{{\n").as_bytes());
    add(
        "second_object_behind",
        "two facts on one line",
        "the facts file is not JSON",
        format!("{ONE}{ONE}").as_bytes(),
    );
}

fn fields(vectors: &mut Collection) {
    let mut add = |name: &str, reason: &str, error: &str, from: &str, to: &str| {
        vectors.malformed(name, reason, error, altered(ONE, from, to));
    };
    add("no_target", "no target", "has no field `target_new`", r#","target_new":"tall""#, "");
    add("no_subject", "no subject", "has no field `subject`", r#""subject":"Ann","#, "");
    add("no_prompt", "no prompt", "has no field `prompt`", r#""prompt":"{} is","#, "");
    add("target_null", "a target that is null", "has no field `target_new`", r#""tall""#, "null");
    add("target_number", "a target that is a number", "field `target_new` is a number", r#""tall""#, "7");
    add("target_list", "a target that is a list", "field `target_new` is a list", r#""tall""#, r#"["tall"]"#);
    add("target_empty", "an empty target", "field `target_new` is empty", "tall", "");
    add(
        "target_no_text",
        "an object without text for a target",
        "has no field `target_new.str`",
        r#""tall""#,
        "{}",
    );
    add("subject_blank", "a subject of spaces", "field `subject` is empty", "Ann", r"  ");
    add("subject_object", "a subject that is an object", "field `subject` is an object", r#""Ann""#, "{}");
    add(
        "no_placeholder",
        "a prompt that does not say where the subject goes",
        "holds `{}` 0 times",
        "{} is",
        "She is",
    );
    add(
        "two_placeholders",
        "a prompt that says twice where the subject goes",
        "holds `{}` 2 times",
        "{} is",
        "{} and {} are",
    );
    for (name, reason, code) in [
        ("escape", "an escape character in a prompt", "001b"),
        ("bell", "a bell in a prompt", "0007"),
        ("zero", "a zero in a prompt", "0000"),
        ("delete", "a delete character in a prompt", "007f"),
        ("c1", "a control character beyond ASCII in a prompt", "009b"),
        ("carriage_return", "a carriage return in a prompt", "000d"),
    ] {
        let error = format!("holds the control character U+{}", code.to_uppercase());
        add(name, reason, &error, "{} is", &format!(r"{{}} is\u{code}"));
    }
    let long = altered(ONE, "tall", &"x".repeat(4097));
    vectors.beyond_limit(
        "text_4097",
        "a text one byte too long",
        "is 4097 bytes long: the limit is 4096",
        long,
    );
}

fn layouts(vectors: &mut Collection) {
    let mut add =
        |name: &str, reason: &str, error: &str, text: String| vectors.malformed(name, reason, error, text);
    add(
        "unknown_layout",
        "fields that no layout has",
        "no layout that mpatch knows",
        r#"{"question":"who?"}"#.into(),
    );
    add("empty_object", "an object without fields", "no layout that mpatch knows", "{}".into());
    add(
        "mixed_layouts",
        "two layouts in one file",
        "is laid out as CounterFact records",
        format!("[{ONE},{COUNTERFACT}]"),
    );
    add(
        "counterfact_text",
        "a CounterFact record whose request is a text",
        "field `requested_rewrite` is a text",
        r#"{"requested_rewrite":"x"}"#.into(),
    );
    add("zsre_no_answer", "a zsRE record without answers", "`answers", altered(ZSRE, "[\"run\"]", "[]"));
    add(
        "zsre_subject_absent",
        "a zsRE question without the subject",
        "stands 0 times",
        altered(ZSRE, "What does Ann do?", "What?"),
    );
    add(
        "zsre_subject_twice",
        "a zsRE question with the subject twice",
        "stands 2 times",
        altered(ZSRE, "do?", "do to Ann?"),
    );
    add(
        "zsre_placeholder",
        "a zsRE question that holds a placeholder of its own",
        "holds `{}` 2 times",
        altered(ZSRE, "do?", "do to {}?"),
    );
    add(
        "easyedit_subject_absent",
        "an EasyEdit prompt without the subject",
        "stands 0 times",
        altered(EASYEDIT, "Ann is", "She is"),
    );
    add(
        "call_lengths",
        "lists of different lengths",
        "has 1 entries: expected 2",
        altered(CALL, "[\"tall\",\"old\"]", "[\"tall\"]"),
    );
    add(
        "call_no_subjects",
        "a call without subjects",
        "has no field `subject`",
        altered(CALL, "subject", "subjects"),
    );
    add(
        "native_unknown_field",
        "a field that the schema does not have",
        "a field `neighbours` that the schema",
        altered(NATIVE, "\"prompt\"", "\"neighbours\":[],\"prompt\""),
    );
    add(
        "native_beside_facts",
        "a field beside the facts",
        "a field `model` that the schema",
        altered(NATIVE, "\"facts\"", "\"model\":1,\"facts\""),
    );
    add(
        "native_no_facts",
        "a schema and no facts",
        "the facts file is empty",
        altered(NATIVE, r#"{"prompt":"{} is","subject":"Ann","target_new":"tall"}"#, ""),
    );
}

fn others(vectors: &mut Collection) {
    let schema = |schema: &str| altered(NATIVE, "\"mpatch.facts/1\"", schema);
    vectors.unsupported(
        "schema_later",
        "a later schema",
        "says schema `\"mpatch.facts/2\"`",
        schema("\"mpatch.facts/2\""),
    );
    vectors.unsupported("schema_number", "a schema that is a number", "says schema `1`", schema("1"));
    vectors.push(
        "twice",
        7,
        "a fact twice",
        "record 2 asks for the same fact",
        format!("[{ONE},{ONE}]").as_bytes(),
    );
    let spaced = altered(ONE, "{} is", " {}  is ");
    vectors.push(
        "twice_spaced",
        7,
        "a fact twice, spaced otherwise",
        "record 2 asks for the same fact",
        format!("[{ONE},{spaced}]").as_bytes(),
    );
    let other = altered(ONE, "tall", "small");
    vectors.push(
        "contradiction",
        7,
        "two targets for one prompt",
        "record 2 contradicts record 1",
        format!("[{ONE},{other}]").as_bytes(),
    );
}
