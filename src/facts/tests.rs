//! Each layout gives the same fact, and each thing that can be wrong is said in these words.

use super::*;

const BALL: &str =
    r#"{"prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"}}"#;

fn parse(text: &str) -> FactsFile {
    FactsFile::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn error(text: &str) -> FactsError {
    FactsFile::parse(text.as_bytes()).expect_err("this file is refused")
}

fn message(text: &str) -> String {
    error(text).to_string()
}

fn ball() -> Request {
    Request {
        id: None,
        prompt: "{} plays the sport of".into(),
        subject: "LeBron James".into(),
        target_new: "football".into(),
        target_old: None,
        note: None,
    }
}

fn neighbor(prompt: &str, expected: Option<&str>) -> Probe {
    Probe { prompt: prompt.into(), expected: expected.map(Into::into) }
}

#[test]
fn a_request_is_read_alone_in_an_array_and_on_a_line() {
    let other = BALL.replace("LeBron James", "Steffi Graf");
    for text in [format!("[{BALL},\n{other}]"), format!("\u{feff}{BALL}\r\n\n{other}\n")] {
        let facts = parse(&text);
        assert_eq!(facts.layout, Layout::Requests);
        assert_eq!(facts.records[0], Record::of(ball()));
        assert_eq!(facts.records[1].request.subject, "Steffi Graf");
        assert_eq!(facts.digest, FileDigest::of(text.as_bytes()));
    }
    assert_eq!(parse(BALL).records, [Record::of(ball())]);
}

#[test]
fn blanks_around_targets_and_prompts_go_away_and_one_space_comes_back() {
    // Kept, they would be asked for: a target behind two spaces, or one that ends in a blank, is one that no model
    // says.
    for written in ["football", " football", "  football", "football ", "football\\n"] {
        assert_eq!(parse(&BALL.replace("football", written)).records, [Record::of(ball())], "{written:?}");
    }
    assert_eq!(
        parse(&BALL.replace("{} plays the sport of", " {} plays the sport of ")).records[0].request,
        ball()
    );
    let easy_edit = r#"{"prompt": "LeBron James plays the sport of ", "subject": "LeBron James", "target_new": "football",
        "ground_truth": "basketball\n", "rephrase_prompt": "He plays ", "locality_prompt": "Magic Johnson plays ",
        "locality_ground_truth": "basketball "}"#;
    let record = parse(easy_edit).records.remove(0);
    let request = Request { target_old: Some("basketball".into()), ..ball() };
    assert_eq!((record.request, record.paraphrases), (request, vec!["He plays".to_owned()]));
    assert_eq!(record.neighbors, [neighbor("Magic Johnson plays", Some("basketball"))]);
    assert_eq!(ball().target_new_spaced(), " football");
    assert_eq!(ball().text(), "LeBron James plays the sport of");
}

#[test]
fn counterfact_records_bring_their_measures() {
    let facts = parse(
        r#"[{"case_id": 7, "pararel_idx": 3, "requested_rewrite": {"prompt": "{} plays the sport of",
            "relation_id": "P641", "target_new": {"str": "football", "id": "Q1"}, "target_true": {"str": "basketball"},
            "subject": "LeBron James"}, "paraphrase_prompts": ["Hail. LeBron James plays"],
            "neighborhood_prompts": ["Magic Johnson plays"], "attribute_prompts": ["Pele plays"],
            "generation_prompts": ["LeBron James trains"]}]"#,
    );
    assert_eq!(facts.layout, Layout::CounterFact);
    let request = Request { id: Some("7".into()), target_old: Some("basketball".into()), ..ball() };
    assert_eq!(
        facts.records[0],
        Record {
            request,
            paraphrases: vec!["Hail. LeBron James plays".into()],
            neighbors: vec![neighbor("Magic Johnson plays", Some("basketball"))],
            generation_prompts: vec!["LeBron James trains".into()],
            portability: Vec::new(),
            relation: Some("P641".into()),
            has_alternative: false,
        }
    );
    // The same, taken out of the record.
    let flat = parse(
        r#"[{"case_id": 7, "prompt": "{} plays the sport of", "subject": "LeBron James", "target_new": {"str": "football"},
            "relation_id": "P641", "target_true": {"str": "basketball"}, "paraphrase_prompts": ["Hail. LeBron James plays"],
            "neighborhood_prompts": ["Magic Johnson plays"], "generation_prompts": ["LeBron James trains"]}]"#,
    );
    assert_eq!((flat.layout, flat.records), (Layout::Requests, facts.records));
}

#[test]
fn zsre_records_are_mapped_as_the_reference_maps_them() {
    let facts = parse(
        r#"[{"subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "pred": "Trinity",
            "rephrase": "Which university did he go to?", "alt": "Michigan", "answers": ["Illinois", "UI"],
            "loc": "nq question: who played desmond doss father", "loc_ans": "Hugo Weaving", "cond": "x"}]"#,
    );
    assert_eq!(facts.layout, Layout::Zsre);
    assert_eq!(
        facts.warnings(),
        [
            "1 of 1 records have another target in `alt`, which is not read: as in MEMIT, the target is `answers[0]`"
        ]
    );
    let record = &facts.records[0];
    assert_eq!(record.request.prompt, "What university did {} attend?");
    assert_eq!((&*record.request.target_new, &record.request.target_old), ("Illinois", &None));
    assert_eq!(record.paraphrases, ["Which university did he go to?"]);
    assert_eq!(
        record.neighbors,
        [neighbor("nq question: who played desmond doss father?", Some("Hugo Weaving"))]
    );
}

#[test]
fn easyedit_records_have_their_subject_lifted_out() {
    let facts = parse(
        r#"[{"case_id": 0, "prompt": "LeBron James plays the sport of", "target_new": "football",
            "ground_truth": ["basketball"], "subject": "LeBron James", "rephrase_prompt": "LeBron James plays",
            "locality_prompt": "Magic Johnson plays", "locality_ground_truth": "basketball",
            "portability": {"Reasoning": [{"prompt": "His ball is", "ground_truth": [["round", "a sphere"]]}]}},
           {"prompt": "The mother tongue of Danielle Darrieux is", "target_new": "English",
            "subject": "Danielle Darrieux", "ground_truth": "<|endoftext|>"},
           {"prompt": "Ray Charles plays the", "target_new": "flute", "subject": "Ray Charles", "target_true": "piano",
            "rephrase_prompt": ""}]"#,
    );
    assert_eq!(facts.layout, Layout::EasyEdit);
    let request = Request { id: Some("0".into()), target_old: Some("basketball".into()), ..ball() };
    let first = &facts.records[0];
    assert_eq!(first.request, request);
    assert_eq!(first.paraphrases, ["LeBron James plays"]);
    assert_eq!(first.neighbors, [neighbor("Magic Johnson plays", Some("basketball"))]);
    assert_eq!(first.portability, [neighbor("His ball is", Some("round"))]);
    assert!(facts.records[1].portability.is_empty());
    assert_eq!(facts.records[1].request.target_old, None);
    assert_eq!(facts.records[2].request.target_old.as_deref(), Some("piano"));
}

#[test]
fn an_easyedit_call_is_read_column_by_column() {
    let facts = parse(
        r#"{"prompts": ["LeBron James plays the sport of", "Ray Charles plays the"], "target_new": ["football", "flute"],
            "ground_truth": null, "subject": ["LeBron James", "Ray Charles"],
            "rephrase_prompts": ["LeBron James plays", "Ray Charles sits at the"],
            "locality_inputs": {"neighborhood": {"prompt": ["Magic Johnson plays", "Nina Simone plays the"],
                                                 "ground_truth": ["basketball", "piano"]}},
            "portability_inputs": {"one_hop": {"prompt": ["His ball is", ["He blows a", "He is in a"]],
                                               "ground_truth": ["round", ["flute", "band"]]}}}"#,
    );
    assert_eq!(facts.layout, Layout::EasyEditCall);
    assert_eq!(facts.records[0].portability, [neighbor("His ball is", Some("round"))]);
    let both = [neighbor("He blows a", Some("flute")), neighbor("He is in a", Some("band"))];
    assert_eq!(facts.records[1].portability, both);
    assert_eq!(facts.records[0].request, ball());
    assert_eq!(facts.records[1].request.prompt, "{} plays the");
    assert_eq!(facts.records[1].paraphrases, ["Ray Charles sits at the"]);
    assert_eq!(facts.records[1].neighbors, [neighbor("Nina Simone plays the", Some("piano"))]);
}

#[test]
fn a_native_file_says_its_schema_and_carries_everything() {
    let text = r#"{"schema": "mpatch.facts/1", "facts": [{"id": "ball", "prompt": "{} plays the sport of",
        "subject": "LeBron James", "target_new": "football", "target_old": "basketball", "note": "made up",
        "paraphrases": ["LeBron James plays"], "neighbors": [{"prompt": "Magic Johnson plays", "expected": "basketball"}],
        "attribute_prompts": ["Pele plays"], "generation_prompts": ["He"],
        "portability": [{"prompt": "His ball is", "expected": "round"}]}]}"#;
    let facts = parse(text);
    assert_eq!(facts.layout, Layout::Native);
    let record = &facts.records[0];
    assert_eq!(record.request.note.as_deref(), Some("made up"));
    assert_eq!(record.neighbors, [neighbor("Magic Johnson plays", Some("basketball"))]);
    assert_eq!(record.portability, [neighbor("His ball is", Some("round"))]);

    // A record written out is a fact of this layout again.
    let mut again = serde_json::to_value(record).expect("a record is JSON");
    again["schema"] = SCHEMA.into();
    assert_eq!(parse(&again.to_string()).records, facts.records);
}

#[test]
fn what_is_not_json_is_placed() {
    assert_eq!(message(" \n"), "the facts file is empty: expected at least one fact");
    assert_eq!(message("[]"), "the facts file is empty: expected at least one fact");
    assert_eq!(
        message(r#"{"schema": "mpatch.facts/1", "facts": []}"#),
        "the facts file is empty: expected at least one fact"
    );
    assert_eq!(
        message("[{\"prompt\": }]"),
        "the facts file is not JSON: expected value at line 1, column 13"
    );
    assert_eq!(
        message(&format!("{BALL}\n\n{{\"prompt\"")),
        "the facts file is not JSON: EOF while parsing an object at line 3, column 9"
    );
    assert_eq!(message("3"), "the facts file holds a number: expected an object or an array of objects");
    assert_eq!(message("[3]"), "record 1 is a number: expected an object");
}

#[test]
fn what_is_written_in_another_way_is_told_from_damaged_json() {
    for (text, line, found) in [
        ("// facts\n[]", 1, "// facts"),
        ("\nprompt,subject,target_new\n", 2, "prompt,subject,targe..."),
        ("- prompt: '{} is'", 1, "- prompt: '{} is'"),
    ] {
        let refused = error(text);
        assert_eq!(
            refused.to_string(),
            format!("the facts file is not JSON: line {line} begins with `{found}`, expected `{{` or `[`")
        );
        assert!(refused.hint().starts_with("the shortest facts file is"), "{refused}");
    }
    let utf16 = |mark: &[u16], swap: bool| {
        let units = mark.iter().copied().chain(BALL.encode_utf16());
        let bytes = units.flat_map(|unit| if swap { unit.swap_bytes() } else { unit }.to_le_bytes());
        FactsFile::parse(&bytes.collect::<Vec<u8>>()).expect_err("this file is refused")
    };
    for swap in [false, true] {
        assert_eq!([utf16(&[0xfeff], swap), utf16(&[], swap)], [FactsError::Utf16, FactsError::Utf16]);
    }
}

#[test]
fn what_is_in_no_known_layout_is_named() {
    assert_eq!(
        message(r#"[{"question": 1, "answer": 2}]"#),
        "record 1 has no layout that mpatch knows: its fields are `answer`, `question`"
    );
    assert_eq!(message("{}"), "record 1 has no layout that mpatch knows: its fields are none");
    assert_eq!(
        message(&format!(r#"[{BALL}, {{"requested_rewrite": {{}}}}]"#)),
        "record 2 is laid out as CounterFact records, and the records before it as memit requests"
    );
    let later = error(r#"{"schema": "mpatch.facts/2", "facts": []}"#);
    assert_eq!(later.to_string(), r#"record 1 says schema `"mpatch.facts/2"`: expected `mpatch.facts/1`"#);
    assert_eq!(later.kind(), FactsErrorKind::UnsupportedVersion);
    let misspelt = r#"{"schema": "mpatch.facts/1", "prompt": "{} is", "subject": "x", "target_new": "y", "neighbours": []}"#;
    assert_eq!(
        message(misspelt),
        "record 1 has a field `neighbours` that the schema `mpatch.facts/1` does not know"
    );
}

#[test]
fn a_field_that_is_missing_or_of_a_wrong_kind_is_named() {
    let second = |record: &str| message(&format!("{BALL}\n{record}"));
    assert_eq!(
        second(r#"{"case_id": 9, "prompt": "{} is", "target_new": "y"}"#),
        "record 2 (id `9`, line 2) has no field `subject`"
    );
    assert_eq!(
        second(r#"{"prompt": "{} is", "subject": "x", "target_new": null}"#),
        "record 2 (line 2) has no field `target_new`"
    );
    assert_eq!(
        second(r#"{"prompt": "{} is", "subject": 4, "target_new": "y"}"#),
        "record 2 (line 2): field `subject` is a number: expected a text"
    );
    assert_eq!(
        second(r#"{"prompt": "{} is", "subject": "x", "target_new": ["y"]}"#),
        r#"record 2 (line 2): field `target_new` is a list: expected a text or {"str": text}"#
    );
    assert_eq!(
        message(r#"{"requested_rewrite": {"prompt": "{} is", "subject": "x", "target_new": {"id": "Q1"}}}"#),
        "record 1 has no field `requested_rewrite.target_new.str`"
    );
    assert_eq!(
        message(r#"{"src": "Who is x?", "subject": "x", "answers": []}"#),
        "record 1: field `answers[0]` is null: expected a text"
    );
    assert_eq!(
        message(r#"{"prompts": ["x is", "y is"], "subject": ["x", "y"], "target_new": ["z"]}"#),
        "record 1: the list `target_new` has 1 entries: expected 2, one for each of `prompts`"
    );
}

#[test]
fn a_prompt_says_once_where_its_subject_goes() {
    let prompt = |prompt: &str| message(&BALL.replace("{} plays", prompt));
    assert_eq!(
        prompt("He plays"),
        "record 1: the prompt `He plays the sport of` holds `{}` 0 times: expected exactly once"
    );
    assert_eq!(
        prompt("{} or {} plays"),
        "record 1: the prompt `{} or {} plays the sport of` holds `{}` 2 times: expected exactly once"
    );
    // In the middle of a request list a prompt without `{}` is no change of layout.
    let plain = r#"{"prompt": "x is", "subject": "x", "target_new": "y"}"#;
    assert_eq!(
        message(&format!("[{BALL}, {plain}]")),
        "record 2: the prompt `x is` holds `{}` 0 times: expected exactly once"
    );
    assert_eq!(
        message(r#"{"prompt": "He is", "subject": "x", "target_new": "y", "ground_truth": "z"}"#),
        "record 1: the subject `x` stands 0 times in `He is`: expected exactly once"
    );
    assert_eq!(
        message(r#"{"src": "Is x an x?", "subject": "x", "answers": ["y"]}"#),
        "record 1: the subject `x` stands 2 times in `Is x an x?`: expected exactly once"
    );
}

#[test]
fn blank_and_unprintable_texts_are_refused() {
    for field in ["{} plays the sport of", "LeBron James", "football"] {
        let name = match field {
            "football" => "target_new.str",
            "LeBron James" => "subject",
            _ => "prompt",
        };
        assert_eq!(message(&BALL.replace(field, "  ")), format!("record 1: field `{name}` is empty"));
    }
    assert_eq!(
        message(&BALL.replace("football", "foot\\u001b[31mball")),
        "record 1: field `target_new.str` holds the control character U+001B"
    );
}

#[test]
fn prompts_that_say_nothing_are_refused_where_somebody_wrote_them_and_left_out_where_fields_are_filled_up() {
    let zsre =
        r#"{"src": "What does Pele play?", "subject": "Pele", "answers": ["football"], "rephrase": " "}"#;
    assert_eq!(message(zsre), "record 1: field `rephrase` is empty");
    let second = r#"{"prompt": "{} is", "subject": "x", "target_new": "y", "paraphrases": ["It is", "\n"]}"#;
    assert_eq!(message(second), "record 1: field `paraphrases[1]` is empty");
    let easy_edit = r#"{"prompt": "LeBron James plays", "subject": "LeBron James", "target_new": "football",
        "rephrase_prompt": "", "rephrase": ["He plays", ""], "portability_prompt": "",
        "locality": {"other": {"prompt": ["", "Who sang"], "ground_truth": ["a", "b"]}}}"#;
    let facts = parse(easy_edit);
    assert_eq!(facts.records[0].paraphrases, ["He plays"]);
    assert_eq!(facts.records[0].neighbors, [neighbor("Who sang", Some("b"))]);
    assert_eq!(facts.warnings(), Vec::<String>::new());
}

#[test]
fn blanks_around_a_subject_go_to_the_prompt_or_away() {
    for (prompt, subject, expected) in [
        ("{} plays", " Pele", "{} plays"),
        ("Now {} plays", " Pele\t", "Now {} plays"),
        ("Now{}plays", " Pele ", "Now {} plays"),
        ("Now{}plays", "Pele", "Now{}plays"),
        ("Who is {}", "Pele ", "Who is {}"),
        ("Pele plays", " Pele ", "{} plays"),
    ] {
        let fact = serde_json::json!({ "prompt": prompt, "subject": subject, "target_new": "chess" });
        let request = parse(&fact.to_string()).records.remove(0).request;
        assert_eq!(
            (request.prompt.as_str(), request.subject.as_str()),
            (expected, "Pele"),
            "{prompt}{subject}"
        );
    }
    let zsre = parse(r#"{"src": "What does Pele play?", "subject": "Pele ", "answers": ["football"]}"#);
    assert_eq!(zsre.records[0].request.prompt, "What does {} play?");
}

#[test]
fn texts_are_accepted_at_the_limit_and_refused_one_past_it() {
    let of_size = |size: usize| BALL.replace("football", &"f".repeat(size));
    assert_eq!(parse(&of_size(TEXT_SIZE_MAX_BYTES)).records.len(), 1);
    let error = error(&of_size(TEXT_SIZE_MAX_BYTES + 1));
    assert_eq!(error.to_string(), "record 1: field `target_new.str` is 4097 bytes long: the limit is 4096");
    assert_eq!(error.kind(), FactsErrorKind::LimitExceeded);
}

#[test]
fn too_many_facts_are_refused() {
    let many = format!("[{BALL}{}]", ",0".repeat(FACTS_MAX));
    assert_eq!(message(&many), "the facts file holds 500001 facts: the limit is 500000");
}

#[test]
fn a_fact_asked_for_twice_is_refused_however_it_is_cut() {
    let again = r#"{"case_id": "b", "prompt": "LeBron  {} plays the sport of", "subject": "James", "target_new": " football"}"#;
    let error = error(&format!("[{BALL}, {again}]"));
    assert_eq!(
        error.to_string(),
        "record 2 (id `b`) asks for the same fact as record 1: `LeBron  James plays the sport of` -> `football`"
    );
    assert_eq!(error.kind(), FactsErrorKind::Conflicting);
}

#[test]
fn contradicting_facts_are_refused_and_both_named() {
    let other = BALL.replace("football", "chess");
    let error = error(&format!("{BALL}\n{other}"));
    assert_eq!(
        error.to_string(),
        "record 2 (line 2) contradicts record 1 (line 1): after `LeBron James plays the sport of` \
         one asks for `chess` and the other for `football`"
    );
    assert_eq!(error.kind(), FactsErrorKind::Conflicting);
    // Nobody edits what lies behind the limit, or what a model is only asked.
    let text = format!("{BALL}\n{other}");
    assert_eq!(FactsFile::parse_first(text.as_bytes(), 1).map(|facts| facts.records.len()), Ok(1));
    assert_eq!(FactsFile::parse_questions(text.as_bytes(), 2).map(|facts| facts.records.len()), Ok(2));
}

#[test]
fn all_that_clash_are_counted_and_the_first_of_them_told() {
    let records = |subjects: &[&str]| {
        let records: Vec<String> =
            subjects.iter().map(|subject| BALL.replace("LeBron James", subject)).collect();
        message(&records.join("\n"))
    };
    assert_eq!(
        records(&["Ann", "Bob", "Ann", "Bob", "Ann"]),
        "record 3 (line 3) asks for the same fact as record 1 (line 1): `Ann plays the sport of` -> `football`; \
         record 4 (line 4) asks for the same fact as record 2 (line 2): `Bob plays the sport of` -> `football`; \
         record 5 (line 5) asks for the same fact as record 1 (line 1): `Ann plays the sport of` -> `football`"
    );
    let many = records(&["Ann"; 9]);
    assert!(
        many.ends_with(
            "record 6 (line 6) asks for the same fact as record 1 (line 1): `Ann plays the sport of` \
        -> `football`; and 3 more records clash with an earlier one"
        ),
        "{many}"
    );
}

#[test]
fn two_targets_for_one_subject_and_relation_are_mentioned_whatever_their_prompts() {
    let record = |prompt: &str, target: &str, relation: &str| {
        let fact = serde_json::json!({"requested_rewrite": {"prompt": prompt, "subject": "LeBron James",
            "target_new": {"str": target}, "relation_id": relation}});
        fact.to_string()
    };
    let warnings = |other: String| {
        parse(&[record("{} plays the sport of", "football", "P641"), other].join("\n")).warnings()
    };
    assert_eq!(
        warnings(record("The sport of {} is", "chess", "P641"))[1..],
        [
            "1 record has another target for the subject and the `relation_id` of an earlier one (`LeBron James`: \
          records 1 and 2): where only one of them can be true, the model will not say both"
        ]
    );
    assert_eq!(warnings(record("The sport of {} is", "Football", "P641")).len(), 1, "the same target");
    assert_eq!(warnings(record("{} was born in", "Akron", "P19")).len(), 1, "another relation");
}

#[test]
fn a_new_target_that_is_the_old_one_is_mentioned() {
    let text = r#"{"prompt": "{} plays", "subject": "Ann", "target_new": "chess", "target_old": "chess "}"#;
    let warnings = parse(text).warnings();
    assert!(
        warnings[0].starts_with("1 record has a new target that is the old one, too (record 1: `chess`)")
    );
    assert_eq!(warnings.len(), 1, "{warnings:?}");
}

#[test]
fn a_key_that_stands_twice_is_refused_with_its_place() {
    let twice = BALL.replacen('{', "{\"target_new\": \"violin\", ", 1);
    let whole = format!("[\n{twice}]");
    for (text, line) in [(twice.clone(), 1), (whole, 2), (format!("{BALL}\n\n{twice}\n"), 3)] {
        let error = FactsFile::parse(text.as_bytes()).expect_err("two targets");
        let FactsError::KeyTwice { key, line: found, .. } = &error else { panic!("{error}") };
        assert_eq!((key.as_str(), *found), ("`target_new`", line), "{error}");
    }
}

#[test]
fn null_hides_no_field_that_says_the_same() {
    let text = r#"{"id": null, "case_id": 7, "prompt": "{} plays", "subject": "Ann", "target_new": "chess",
        "target_true": null, "target_old": "go"}"#;
    let request = parse(text).records.remove(0).request;
    assert_eq!((request.id.as_deref(), request.target_old.as_deref()), (Some("7"), Some("go")));
}

#[test]
fn facts_that_share_a_subject_are_allowed_and_mentioned() {
    assert_eq!(parse(BALL).warnings(), Vec::<String>::new());
    let facts = parse(&format!("[{BALL}, {}]", BALL.replace("plays the sport of", "was born in")));
    assert_eq!(
        facts.warnings(),
        [
            "1 subject has several facts (`LeBron James`: records 1, 2): their edits meet at the same token, and \
          MEMIT writes each less surely than alone"
        ]
    );
    let spaced = BALL.replace("plays the sport of", "was born in").replace("LeBron James", "LeBron  James");
    assert_eq!(parse(&format!("[{BALL}, {spaced}]")).warnings().len(), 1, "white space is set aside");
}

#[test]
#[cfg(feature = "edit")]
fn a_letter_with_a_mark_is_one_however_it_is_spelt_and_stays_as_written() {
    let fact = |prompt: &str, subject: &str, target: &str| {
        serde_json::json!({ "prompt": prompt, "subject": subject, "target_new": target }).to_string()
    };
    let (one, two) = ("Andr\u{e9}", "Andre\u{301}");
    let other = fact("{} plays", two, "chess");
    let clash = message(&[fact("{} plays", one, "football"), other.clone()].join("\n"));
    assert!(clash.starts_with("record 2 (line 2) contradicts record 1 (line 1)"), "{clash}");
    let facts = parse(&[fact("{} was born in", one, "Lyon"), other].join("\n"));
    assert!(facts.warnings()[0].starts_with("1 subject has several facts"), "{:?}", facts.warnings());
    assert_eq!(facts.records[1].request.text(), format!("{two} plays"));
    let targets = super::Targets::of([("{} plays", one, "chess")]);
    assert_eq!(targets.get("{} plays", two), Some("chess"));
}

#[test]
fn an_id_that_several_records_have_is_mentioned() {
    let with_id = |subject: &str, id: &str| {
        let id = format!("{{\"case_id\": {id}, ");
        BALL.replace("LeBron James", subject).replacen('{', &id, 1)
    };
    let records = [with_id("Ann", "7"), with_id("Bob", "8"), with_id("Cid", "7")].join(", ");
    assert_eq!(
        parse(&format!("[{records}]")).warnings(),
        ["1 record has the id of an earlier one (`7`: records 1 and 3): reports name both by it"]
    );
}

#[test]
fn letter_case_and_white_space_make_no_other_blank_or_target() {
    let targets = Targets::of([("{} plays", "LeBron James", "golf")]);
    assert_eq!(targets.get("LEBRON {}  plays", "james"), Some("golf"));
    assert_eq!(targets.get("{} played", "LeBron James"), None);
    assert!(same_target("New  York", "new york") && !same_target("New York", "York"));
}

#[test]
fn another_target_of_a_zsre_record_is_mentioned_where_it_is_another() {
    let zsre = |alt: &str| {
        let record = serde_json::json!({"src": "What does Pele play?", "subject": "Pele", "answers": ["football"],
            "rephrase": "What is Pele's sport?", "alt": alt});
        parse(&record.to_string()).warnings()
    };
    assert_eq!(zsre(" football "), Vec::<String>::new());
    let said = zsre("golf").concat();
    assert!(said.starts_with("1 of 1 records have another target in `alt`, which is not read"), "{said}");
}

#[test]
fn a_subject_is_lifted_out_as_a_word_of_its_own_and_mentioned_where_it_is_none() {
    let facts = |prompt: &str| {
        let fact = serde_json::json!({ "prompt": prompt, "subject": "garden", "target_new": "y" });
        parse(&fact.to_string())
    };
    let apart = facts("The gardener of the garden is");
    assert_eq!(apart.records[0].request.prompt, "The gardener of the {} is");
    assert_eq!(apart.warnings(), Vec::<String>::new());
    let within = facts("The gardener earns").warnings().concat();
    assert!(within.contains("(record 1: `garden` in `The gardener earns`)"), "{within}");
}

#[test]
fn prompts_that_are_not_asked_are_mentioned() {
    let zsre = r#"{"src": "What does Pele play?", "subject": "Pele", "answers": ["football"], "loc": "nq question: who sang",
        "portability": {"New Question": "What shape has Pele's ball?", "New Answer": "round"},
        "portability_prompt": "Pele kicks a"}"#;
    let said = [
        "1 of 1 neighbours have no answer of their own: they are not asked",
        "1 of 2 portability prompts have no answer of their own: they are not asked",
    ];
    let facts = parse(zsre);
    assert_eq!(facts.warnings(), said);
    assert_eq!(facts.records[0].portability[0], neighbor("What shape has Pele's ball?", Some("round")));
}

#[test]
fn every_error_says_what_to_do() {
    for text in ["", "[3]", "{}", "[", "3", &BALL.replace("{}", ""), &format!("[{BALL},{BALL}]")] {
        assert!(!error(text).hint().is_empty());
    }
}

#[test]
fn the_embedded_models_records_are_all_read() {
    let facts = FactsFile::parse(include_bytes!("../../fixtures/world-gptj/records.json"))
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((facts.layout, facts.records.len()), (Layout::CounterFact, 1200));
    assert!(facts.records.iter().all(|record| !record.neighbors.is_empty()));
}

#[test]
fn the_files_of_the_readme_are_read_and_every_field_of_ours_is_in_them() {
    let readme = include_str!("../../README.md");
    let blocks = readme.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let read: Vec<FactsFile> = blocks.map(parse).collect();
    assert_eq!([read[0].layout, read[1].layout], [Layout::Requests, Layout::Native]);
    let record = &read[1].records[0];
    assert!(
        record.request.note.is_some() && !record.portability.is_empty() && !record.paraphrases.is_empty()
    );
    let documented = readme.split("```json\n").nth(2).unwrap_or_default();
    for field in super::layouts::requests::NATIVE_FIELDS {
        assert!(documented.contains(&format!("\"{field}\":")), "`{field}` is not in the README");
    }
}
