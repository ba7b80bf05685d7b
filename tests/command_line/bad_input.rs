//! Whatever is wrong with what a user hands in: the error names the thing, the place, what was expected and found,
//! and what to do; the exit code is the documented one; and the folder is as it was before.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::bench::{Bench, Refusal};
use crate::material::{
    alter_header, alter_weights, command, lay_out, lay_out_editing, lay_out_shards, lay_out_world, mpatch,
    small_corpus, world,
};
use crate::telling::skipped;
use mpatch::factors::Term;
use mpatch::patch::{Patch, encode};
use serde_json::{Value, json};

/// The matrix that MEMIT edits first in the embedded model, 128 by 512 of F16.
pub const EDITED: &str = "transformer.h.0.mlp.fc_out.weight";

/// Options of `create` that say where statistics are to be computed from, which no run that is refused comes to.
const WITHOUT_STATISTICS: &str = " --layers 0 --contexts contexts.json --corpus facts.json";

/// A folder with a copy of the embedded model in `model`, one good fact, and contexts so that none are sampled.
pub fn bench_with_model() -> Bench {
    let bench = Bench::empty();
    lay_out_world(&bench.path("model"));
    bench.write("facts.json", fact("{} performs on the", "Pavel Prestellman", "flute").to_string());
    bench.write("contexts.json", r#"[["{}"]]"#);
    bench
}

/// `create` of `facts.json` on `model`, refused.
pub fn create_refuses(bench: &Bench, options: &str, code: i32) -> Refusal {
    bench.refuses(&format!("create facts.json --base model -o new.mpatch{options}"), code)
}

fn fact(prompt: &str, subject: &str, target: &str) -> Value {
    json!({"prompt": prompt, "subject": subject, "target_new": target})
}

/// Statistics of the embedded model's layers 0 and 1, made once from twenty lines.
fn statistics() -> &'static [u8] {
    // Its bytes: a folder in here would never be removed.
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("corpus.txt"), small_corpus(20)).unwrap();
        let mut command = mpatch();
        command.current_dir(folder.path()).args(["stats", "corpus.txt", "-o", "made.safetensors", "--base"]);
        command.arg(world()).args(["--layers", "0,1"]).assert().success();
        fs::read(folder.path().join("made.safetensors")).unwrap()
    })
}

// Facts

/// A facts file with this text is refused with `code` before any model is looked for.
fn facts_refused(text: &str, code: i32, words: &[&str]) {
    let bench = Bench::empty();
    bench.write("facts.json", text);
    let refusal = create_refuses(&bench, "", code);
    refusal.says(&["`facts.json`"]);
    refusal.says(words);
}

#[test]
fn facts_that_are_not_json_are_refused_at_their_place() {
    facts_refused("{\"prompt\": \"{} is\",\n \"subject\" \"Ann\"}", 3, &["line 2", "column", "expected `:`"]);
    facts_refused("Ann plays the flute", 3, &["not JSON", "line 1"]);
    facts_refused("", 3, &["empty"]);
    let lines = format!("{}\n{{\"prompt\": 1,\n", fact("{} is", "Ann", "tall"));
    facts_refused(&lines, 3, &["line 2"]);
}

#[test]
fn a_fact_without_a_field_is_refused_by_record_and_field() {
    let incomplete = json!({"prompt": "{} is", "subject": "Bob"});
    let facts = json!([fact("{} is", "Ann", "tall"), incomplete]);
    facts_refused(&facts.to_string(), 3, &["record 2", "`target_new`"]);
    facts_refused(&json!([{"question": "who?"}]).to_string(), 3, &["record 1", "`question`", "`subject`"]);
    facts_refused(&json!([fact("{} is", "Ann", "tall"), 7]).to_string(), 3, &["record 2", "a number"]);
    facts_refused(
        &json!({"prompt": "{} is", "subject": 7, "target_new": "tall"}).to_string(),
        3,
        &["record 1", "`subject`", "a number"],
    );
}

#[test]
fn a_prompt_says_once_where_its_subject_goes() {
    let prompt = |prompt: &str| fact(prompt, "Ann", "tall").to_string();
    facts_refused(
        &prompt("She is"),
        3,
        &["record 1", "0 times", "exactly once", "write the prompt with `{}`"],
    );
    facts_refused(&prompt("{} and {} are"), 3, &["record 1", "2 times", "exactly once"]);
}

#[test]
fn an_empty_subject_or_target_is_refused() {
    facts_refused(&fact("{} is", "", "tall").to_string(), 3, &["record 1", "`subject`", "empty"]);
    facts_refused(&fact("{} is", "  ", "tall").to_string(), 3, &["record 1", "`subject`"]);
    facts_refused(&fact("{} is", "Ann", "").to_string(), 3, &["record 1", "`target_new`", "empty"]);
}

#[test]
fn the_same_fact_twice_and_contradicting_facts_are_refused() {
    let twice = json!([fact("{} is", "Ann", "tall"), fact("{} is", "Ann", "tall")]);
    facts_refused(&twice.to_string(), 7, &["record 2", "the same fact as record 1", "Ann is"]);
    let against = json!([fact("{} is", "Ann", "tall"), fact("{} is", "Ann", "small")]);
    facts_refused(&against.to_string(), 7, &["record 2", "contradicts record 1", "`small`", "`tall`"]);
    // Behind the limit, or where nothing is edited, the model is what is missing.
    let bench = Bench::empty();
    bench.write("facts.json", against.to_string());
    create_refuses(&bench, " --limit 1", 11).says(&["`model`"]);
    bench.refuses("eval facts.json --base model", 11).says(&["`model`"]);
}

#[test]
fn facts_that_are_not_there_are_an_error_of_reading() {
    let bench = Bench::empty();
    create_refuses(&bench, "", 11).says(&["cannot read `facts.json`", "check the path"]);
}

#[test]
fn texts_longer_than_the_context_are_refused_before_the_long_work() {
    let bench = bench_with_model();
    let long = "Ann ".repeat(300);
    // A text that only tests the edit counts as well.
    let mut tested = fact("{} is", "Ann", "tall");
    (tested["id"], tested["paraphrases"]) = ("a".into(), json!(["So Ann is", long]));
    for (fact, place) in
        [(fact("{} is", &long, "tall"), "record 1: `Ann"), (tested, "record 1 (id `a`): `Ann")]
    {
        bench.write("facts.json", fact.to_string());
        let words = ["`facts.json`, ", place, "...` with `tall` has 60", "tokens", "context only 256"];
        create_refuses(&bench, "", 3).says(&words);
        bench.refuses("eval facts.json --base model", 3).says(&words);
    }
    bench.write("facts.json", fact("{} is", "Ann", "tall").to_string());
    bench.write("contexts.json", json!([[long + "{}"]]).to_string());
    create_refuses(&bench, WITHOUT_STATISTICS, 3).says(&["fact 1", "tokens", "context only 256", "..."]);
}

#[test]
fn an_edit_that_the_weights_type_cannot_hold_is_refused_with_what_helps() {
    let bench = Bench::empty();
    crate::material::lay_out_editing(bench.folder.path());
    bench.alter_json("model/memit.json", json!({"v_lr": 1e8, "clamp_norm_factor": 1e8}));
    let create = "create facts.json --limit 1 --base model --contexts contexts.json -o new.mpatch";
    let refused = bench.command(&format!("{create} --stats statistics.safetensors")).assert().code(3);
    let stderr = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
    let hint = "does not fit F16\nhint: edit fewer facts at once";
    assert!(stderr.contains(hint) && !bench.path("new.mpatch").exists(), "{stderr}");
}

#[test]
fn facts_that_share_a_key_are_not_taken_for_an_edit_that_was_cut() {
    let bench = Bench::empty();
    crate::material::lay_out_editing(bench.folder.path());
    bench.alter_json("model/memit.json", json!({"v_num_grad_steps": 1, "clamp_norm_factor": 0.01}));
    // What a model has read up to a subject at the beginning is the same, whatever follows.
    let facts =
        ["{} performs on the", "{} was born in"].map(|prompt| fact(prompt, "Pavel Prestellman", "flute"));
    bench.write("shared.json", json!(facts).to_string());
    let create = "create shared.json --base model --contexts contexts.json -o new.mpatch --no-sign";
    let made = bench.command(&format!("{create} --stats statistics.safetensors")).assert().code(1);
    let stdout = String::from_utf8(made.get_output().stdout.clone()).unwrap();
    assert!(stdout.contains("refuses the patch (V4): no value that says its target was found"), "{stdout}");
    // What may have been lost to a cut, or to few bits, is looked for there first.
    let create = "create shared.json --base model --contexts contexts.json --stats statistics.safetensors";
    for (option, patch) in [("--bits 5", "coarse.mpatch"), ("--rank 1", "cut.mpatch")] {
        let made = bench.command(&format!("{create} {option} --no-sign -o {patch}")).assert().code(1);
        let stdout = String::from_utf8(made.get_output().stdout.clone()).unwrap();
        assert!(stdout.contains("refuses the patch (V4): more `--bits`, a higher `--rank`"), "{stdout}");
    }
}

#[test]
fn a_state_in_which_a_patch_overflows_is_refused_with_a_type_that_holds_it() {
    let bench = Bench::new();
    let mut draft = Patch::decode(fs::read(bench.path("unsigned.mpatch")).unwrap()).unwrap().draft().unwrap();
    let term = &draft.terms[0];
    let strong = term.row_scales().iter().map(|scale| scale * 1000.0).collect();
    draft.terms[0] = Term::new(term.integers().clone(), strong, term.column_scales().to_vec()).unwrap();
    fs::write(bench.path("strong.mpatch"), encode(&draft).unwrap()).unwrap();
    let tensor = &draft.bindings[0].tensors[0];
    let bytes = 0x7bff_u16.to_le_bytes().repeat((tensor.shape[0] * tensor.shape[1]) as usize);
    let entry = json!({ "dtype": "F16", "shape": tensor.shape, "data_offsets": [0, bytes.len()] });
    let header = json!({ tensor.name.as_str(): entry }).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    fs::write(bench.path("half.safetensors"), file).unwrap();
    let rebase = "rebase strong.mpatch --allow-unsigned --no-sign -o bound.mpatch --base";
    let refusal = bench.refuses(&format!("{rebase} half.safetensors"), 6);
    refusal.says(&["does not fit F16", "hint: bind it to the model in BF16 or F32"]);
    bench.command(&format!("{rebase} other.safetensors")).assert().success();
}

// Statistics, hyperparameters, contexts

#[test]
fn statistics_that_do_not_fit_are_refused() {
    let bench = bench_with_model();
    bench.write("stats.safetensors", statistics());
    let options = " --stats stats.safetensors";
    create_refuses(&bench, options, 3).says(&["`stats.safetensors`", "[0, 1]", "expected layer 2"]);
    create_refuses(&bench, " --stats model/model.safetensors", 3)
        .says(&["has the format `pt`", "`mpatch statistics 1`"]);
    create_refuses(&bench, " --stats none.safetensors", 11).says(&["`none.safetensors`", "check the path"]);
    create_refuses(&bench, "", 2).says(&["no statistics of this model", "`--corpus FILE`"]);
    for (amount, name) in [("--tokens 5", "`--tokens`"), ("--documents 5", "`--documents`")] {
        create_refuses(&bench, &format!("{options} {amount}"), 2).says(&[name, "there is none"]);
        bench.refuses(&format!("stats --import moments --base model -o new {amount}"), 2).says(&[name]);
    }
    alter_weights(&bench.path("model/model.safetensors"), EDITED, &[0x3c00]);
    let refusal = create_refuses(&bench, options, 6);
    refusal.says(&[
        "`stats.safetensors`",
        "made on another base",
        "expected",
        "`mpatch stats`",
        "`mpatch rebase PATCH",
    ]);
}

#[test]
fn a_corpus_that_cannot_be_read_is_refused_at_its_line() {
    let bench = bench_with_model();
    bench.write("corpus.txt", "{\"text\": \"One good line.\"}\n{\"title\": \"no text\"}\n");
    let stats = "stats corpus.txt --base model -o new.safetensors";
    bench.refuses(stats, 3).says(&["`corpus.txt`", "line 2", "`text`"]);
    bench.write("corpus.txt", "");
    bench.refuses(stats, 3).says(&["`corpus.txt`", "no text"]);
    fs::write(bench.path("corpus.txt"), b"caf\xe9\n").unwrap();
    bench.refuses(stats, 3).says(&["`corpus.txt`", "line 1", "utf-8", "UTF-8"]);
    bench.refuses("stats none.txt --base model -o new.safetensors", 11).says(&["`none.txt`"]);
}

#[test]
fn hyperparameters_that_make_no_sense_are_refused_by_field() {
    let bench = bench_with_model();
    let options = " --hparams h.json";
    bench.write("h.json", "layers: 3");
    create_refuses(&bench, options, 3).says(&["`h.json`", "expected JSON", "line 1"]);
    for (fields, words) in [
        (json!({"layers": [0, 9]}), ["`layers` names 9", "the model has 8"]),
        (json!({"layers": [2, 1]}), ["`layers`", "ascending"]),
        (json!({"layers": "all"}), ["`layers` is the text \"all\"", "expected a list"]),
        (json!({"fact_token": "first"}), ["`first`", "`subject_last`"]),
        (json!({"v_num_grad_step": 9}), ["no field `v_num_grad_step`", "name is `v_num_grad_steps`"]),
        (json!({"v_num_grad_steps": 0}), ["`v_num_grad_steps` is 0", "at least 1"]),
        (json!({"v_lr": -1.0}), ["`v_lr` is -1", "positive"]),
        (json!({"layers": [1, 1]}), ["`layers` is [1, 1]", "ascending"]),
        (json!({"v_loss_layer": 8}), ["`v_loss_layer` is 8", "the model has 8 layers"]),
        (
            json!({"rewrite_module_tmp": "h.{}.mlp.fc_in"}),
            ["`h.{}.mlp.fc_in`", "expected `transformer.h.{}."],
        ),
        (json!({"clamp_norm_factor": 0.0}), ["`clamp_norm_factor` is 0", "positive"]),
        (json!({"kl_factor": -0.5}), ["`kl_factor` is -0.5", "0 or more"]),
        (json!({"mom2_update_weight": 1e300}), ["`mom2_update_weight` is 1e300", "at most 1e12"]),
    ] {
        fs::copy(world().join("memit.json"), bench.path("h.json")).unwrap();
        bench.alter_json("h.json", fields);
        let refusal = create_refuses(&bench, options, 3);
        refusal.says(&["`h.json`"]);
        refusal.says(&words);
    }
    // What the option has not set is wrong where it stands.
    create_refuses(&bench, &format!("{options} --layers 0"), 3).says(&["`h.json`"]);
    create_refuses(&bench, " --layers 8", 2).says(&["`--layers`", "names 8", "the model has 8"]);
    let stats = bench.refuses("stats facts.json --base model --layers 8 -o new.safetensors", 2);
    stats.says(&["`--layers` names 8", "the model has 8"]);
    create_refuses(&bench, " --hparams none.json", 11).says(&["`none.json`"]);
}

#[test]
fn a_loss_that_feels_nothing_of_a_value_is_refused() {
    let bench = bench_with_model();
    bench.write("empty.txt", "");
    bench.alter_json("model/memit.json", json!({"v_loss_layer": 2, "layers": [1, 2]}));
    let options = " --contexts contexts.json --corpus empty.txt";
    let refusal = create_refuses(&bench, options, 3);
    refusal.says(&[
        "fact 1, `Pavel Prestellman`: the prompt goes on",
        "`v_loss_layer`, which is 2,",
        ", 2: ",
    ]);
    refusal.says(&["hint: edit earlier layers, or raise `v_loss_layer`"]);
    create_refuses(&bench, &format!("{options} --layers 7"), 3)
        .says(&["not above the last edited layer, 7:"]);
    // Behind a subject that the prompt ends in, the loss reads the very token that the value is put into.
    bench.write("ends.json", fact("On stage: {}", "Pavel Prestellman", "flute").to_string());
    let said = bench.run(&format!("create ends.json --base model -o new.mpatch{options}"), 3);
    assert!(!said.contains("v_loss_layer") && said.contains("no text"), "{said}");
}

#[test]
fn statistics_of_other_layers_are_refused_with_the_way_to_those_asked_for() {
    let bench = Bench::empty();
    lay_out_editing(bench.folder.path());
    fs::copy(bench.path("model/memit.json"), bench.path("h.json")).unwrap();
    bench.alter_json("h.json", json!({"layers": [3, 4]}));
    for option in ["--layers 3,4", "--hparams h.json"] {
        let create = "create facts.json --base model --stats statistics.safetensors --contexts contexts.json";
        let refusal = bench.refuses(&format!("{create} {option} -o new.mpatch"), 3);
        refusal.says(&["holds the layers [0, 1, 2], expected layer 3 among them"]);
        refusal.says(&["`mpatch stats CORPUS --base model --layers 3,4 -o FILE`"]);
    }
}

#[test]
fn contexts_that_are_no_templates_are_refused() {
    let bench = bench_with_model();
    for (text, words) in [
        ("{}", "expected a list of lists"),
        (r#"["{}"]"#, "expected a list of lists"),
        ("[]", "an empty list"),
        (r#"[["{}"], ["Therefore. "]]"#, "the template `Therefore. ` has 0 `{}`, expected one"),
        (r#"[["{} {}"]]"#, "has 2 `{}`, expected one"),
        (r#"[["{}"], ["The{}"]]"#, "the template `The{}` has no space before its `{}`"),
    ] {
        bench.write("contexts.json", text);
        create_refuses(&bench, WITHOUT_STATISTICS, 3).says(&["`contexts.json`", words]);
    }
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let bench = bench_with_model();
    create_refuses(&bench, " --device cuda:99", 13).says(&["`cuda:99`", "`--device cpu`"]);
    // What is no device anywhere is a slip on the command line, and so is none of the facts.
    create_refuses(&bench, " --device tpu", 2).says(&["'tpu'", "`cpu`", "`cuda:N`"]);
    create_refuses(&bench, " --limit 0", 2).says(&["'--limit <COUNT>'", "0 is not in 1.."]);
    bench.refuses("eval facts.json --base model --limit 0", 2).says(&["'--limit <COUNT>'"]);
    bench.refuses("log -n 0", 2).says(&["'--limit <COUNT>'", "0 is not in 1.."]);
}

// Patches

/// A patch with these bytes is refused by every verb that takes one.
fn patch_refused(alter: impl FnOnce(&mut Vec<u8>), code: i32, words: &[&str]) {
    let bench = Bench::new();
    // Without a signature, so that the last section lies where the changes look for it.
    let mut bytes = fs::read(bench.path("unsigned.mpatch")).unwrap();
    alter(&mut bytes);
    fs::write(bench.path("bad.mpatch"), bytes).unwrap();
    for verb in [
        "show bad.mpatch",
        "verify bad.mpatch --base model.safetensors",
        "apply model.safetensors bad.mpatch",
        "revert model.safetensors bad.mpatch",
        "try bad.mpatch --base gptj Hello",
    ] {
        let refusal = bench.refuses(verb, code);
        refusal.says(&["`bad.mpatch`"]);
        refusal.says(words);
    }
}

/// The vectors of a kind, as their exit code, what mpatch says, and the file.
fn vectors(kind: &str) -> Vec<(i32, String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors");
    let files = fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    let of_kind = files.filter(|file| file.starts_with(format!("kind: {kind}\n").as_bytes()));
    let vector = |file: Vec<u8>| {
        let end = file.windows(2).position(|pair| pair == b"\n\n").unwrap();
        let head = String::from_utf8(file[..end].to_vec()).unwrap();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        (field("expect: ").parse().unwrap(), field("error: ").to_owned(), file[end + 2..].to_vec())
    };
    of_kind.map(vector).collect()
}

#[test]
fn vectors_get_their_exit_codes_from_the_command() {
    let bench = Bench::empty();
    let mut refused = 0;
    for (name, verb) in [("patch", "show bad"), ("facts", "create bad --base none")] {
        for (code, words, bytes) in vectors(name) {
            // What only shows when sections are decoded does not hinder `show`.
            if code == 0 || (name == "patch" && Patch::decode(bytes.clone()).is_ok()) {
                continue;
            }
            fs::write(bench.path("bad"), bytes).unwrap();
            bench.refuses(verb, code).says(&["`bad`", &words]);
            refused += 1;
        }
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn a_truncated_patch_is_refused_with_both_sizes() {
    patch_refused(
        |bytes| bytes.truncate(bytes.len() - 1),
        3,
        &["truncated", "of at least", "fetch the patch again"],
    );
    patch_refused(|bytes| bytes.truncate(10), 3, &["truncated", "10 of at least 64 bytes"]);
    patch_refused(Vec::clear, 3, &["truncated", "0 of at least 64 bytes"]);
}

#[test]
fn a_patch_with_a_flipped_bit_is_refused() {
    patch_refused(|bytes| bytes[100] ^= 1, 3, &["damaged manifest", "it hashes to", "fetch the patch again"]);
    // The last bytes but a few are the last section's.
    patch_refused(
        |bytes| {
            let place = bytes.len() - 12;
            bytes[place] ^= 1;
        },
        3,
        &["damaged section", "it hashes to"],
    );
    patch_refused(|bytes| bytes[0] ^= 1, 3, &["not a patch", "it begins with", "`.mpatch`"]);
}

#[test]
fn a_patch_of_a_later_version_is_refused_as_such() {
    patch_refused(|bytes| bytes[8] = 2, 15, &["needs format 2.0", "reads 1.0", "update mpatch"]);
    patch_refused(|bytes| bytes[12] = 1, 15, &["flags 0x00000001", "update mpatch"]);
}

#[test]
fn a_patch_for_another_base_is_refused_with_both_digests() {
    let bench = Bench::new();
    for verb in ["apply other.safetensors edits.mpatch", "revert other.safetensors edits.mpatch"] {
        let refusal = bench.refuses(verb, 6);
        refusal.says(&[
            "`edits.mpatch`",
            "`other.safetensors`",
            crate::material::TENSOR,
            "hashes to",
            "the patch expects",
        ]);
    }
    fs::remove_file(bench.path("edits.mpatch")).unwrap();
    bench.refuses("apply model.safetensors edits.mpatch", 11).says(&["`edits.mpatch`", "check the path"]);
}

#[test]
fn a_patch_for_another_type_is_bound_to_it_by_the_command_of_the_hint() {
    let bench = Bench::new();
    alter_header(&bench.path("other.safetensors"), |header| {
        let tensor =
            |begin: usize| json!({"dtype": "F16", "shape": [4, 6], "data_offsets": [begin, begin + 48]});
        header.insert(crate::material::TENSOR.to_owned(), tensor(0));
        header.insert("other".to_owned(), tensor(48));
    });
    let rebase = "rebase edits.mpatch --base other.safetensors";
    for verb in ["apply other.safetensors edits.mpatch", "verify edits.mpatch --base other.safetensors"] {
        let refused = bench.command(verb).assert().code(6);
        let told = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(told.contains("is F16, the patch expects F32"), "{told}");
        assert!(told.contains(&format!("`mpatch {rebase}`")), "{told}");
    }
    bench.command(rebase).assert().success();
    bench.command("apply other.safetensors edits.rebased.mpatch").assert().success();
}

#[test]
fn a_patch_that_is_already_in_is_refused() {
    let bench = Bench::new();
    bench.command("apply model.safetensors edits.mpatch").assert().success();
    let refusal = bench.refuses("apply model.edits.safetensors edits.mpatch", 7);
    refusal.says(&["already applied", "`model.edits.safetensors`", "`mpatch revert"]);
    bench.refuses("revert model.safetensors edits.mpatch", 7).says(&["is not in", "`mpatch apply"]);
}

#[test]
fn a_prompt_that_cannot_be_run_is_refused() {
    let bench = Bench::empty();
    crate::material::lay_out_editing(bench.folder.path());
    let prompt = |prompt: &str| {
        let mut command = bench.command("try edits.mpatch --base model");
        let output = command.arg(prompt).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        stderr
    };
    let empty = prompt("");
    assert!(empty.contains("the prompt ``: a text has no tokens") && empty.contains("hint: "), "{empty}");
    let long = prompt(&"Ann ".repeat(300));
    assert!(long.contains("Ann ...`") && long.contains("context of 256"), "{long}");
}

// Outputs

#[test]
fn an_output_that_exists_is_never_replaced() {
    let bench = Bench::new();
    bench.write("taken", "mine");
    let words = ["`taken` exists already and is not replaced", "choose another name"];
    bench.refuses("apply model.safetensors edits.mpatch -o taken", 11).says(&words);
    bench.refuses("revert model.safetensors edits.mpatch -o taken", 11).says(&words);
    bench.write("facts.json", fact("{} is", "Ann", "tall").to_string());
    bench.refuses("create facts.json --base gptj -o taken", 11).says(&words);
    bench.refuses("stats facts.json --base gptj -o taken", 11).says(&words);
    bench.refuses("demo --keep taken", 11).says(&["`taken`", "exists", "choose another name"]);
    let over_itself = bench.refuses("apply model.safetensors edits.mpatch -o model.safetensors", 11);
    over_itself.says(&["`model.safetensors` exists already"]);
}

#[test]
fn what_is_of_another_kind_is_named_with_what_is_expected() {
    let bench = bench_with_model();
    lay_out(bench.folder.path());
    for words in ["show gptj", "verify gptj", "sign gptj"] {
        bench.refuses(words, 11).says(&["cannot read `gptj`", "this is a folder: give a patch file"]);
    }
    bench.refuses("create gptj --base model", 11).says(&["this is a folder: give a file of facts"]);
    bench.refuses("trust add gptj", 11).says(&["this is a folder: give a public key file"]);
    let refused = create_refuses(&bench, " --stats edits.mpatch", 3);
    refused.says(&["give a file of statistics: `mpatch stats` makes them"]);
}

#[test]
fn a_folder_that_is_read_only_is_refused_before_the_work() {
    let bench = Bench::new();
    bench.write("facts.json", fact("{} is", "Ann", "tall").to_string());
    fs::create_dir(bench.path("locked")).unwrap();
    let Some(_lock) = Mount::tmpfs(bench.path("locked"), "ro,size=64k") else {
        return skipped("a read-only folder needs root and mount");
    };
    let words = ["`locked`", "Read-only file system", "`-o`"];
    bench.refuses("apply model.safetensors edits.mpatch -o locked/new.safetensors", 11).says(&words);
    bench.refuses("apply gptj edits.mpatch -o locked/new", 11).says(&words);
    bench.refuses("create facts.json --base gptj -o locked/new.mpatch", 11).says(&words);
    bench.refuses("stats facts.json --base gptj -o locked/new.safetensors", 11).says(&words);
}

fn size_of(entry: std::io::Result<fs::DirEntry>) -> u64 {
    entry.unwrap().metadata().unwrap().len()
}

#[test]
fn a_disk_that_is_full_is_said_and_nothing_is_left_on_it() {
    let bench = Bench::new();
    lay_out_world(&bench.path("world"));
    bench.write("corpus.txt", small_corpus(2));
    fs::create_dir(bench.path("full")).unwrap();
    let Some(_mount) = Mount::tmpfs(bench.path("full"), "size=64k") else {
        return skipped("a full disk needs root and mount");
    };
    let fill = || {
        let mut filler = fs::File::create(bench.path("full/filler")).unwrap();
        while filler.write(&[0; 4096]).is_ok_and(|size| size > 0) {}
    };
    fill();
    let place =
        format!("free on the file system at `{}`", bench.path("full").canonicalize().unwrap().display());
    let words = ["`full/new.safetensors` takes 193 bytes, and 0 bytes are ", &place, "free 193 bytes there"];
    bench.refuses("apply model.safetensors edits.mpatch -o full/new.safetensors", 11).says(&words);
    bench.refuses("apply gptj edits.mpatch -o full/new", 11).says(&[
        "`full/new` takes ",
        "0 bytes are ",
        &place,
    ]);
    // All of a folder is told at once, and what is free without it.
    bench.write("full/filler", [0; 32_768]);
    lay_out_shards(bench.folder.path());
    let needed: u64 = fs::read_dir(bench.path("shards")).unwrap().map(size_of).sum();
    let told = format!("`full/new` takes {:.1} KB, and 32.8 KB are {place}", needed as f64 / 1000.0);
    bench.refuses("apply shards shards.mpatch -o full/new", 11).says(&[&told]);
    fill();
    let words = ["cannot write `full/new", "No space left on device", "free some space"];
    bench.refuses("stats corpus.txt --base world --layers 0 -o full/new.safetensors", 11).says(&words);
}

#[test]
fn a_full_standard_output_is_an_error_that_tells_whether_the_work_was_done() {
    let bench = Bench::new();
    let run = |arguments: &[&str]| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = command(assert_cmd::cargo::cargo_bin!("mpatch"));
        command.current_dir(bench.folder.path()).args(arguments).stdout(full).stderr(Stdio::piped());
        let ended = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(11));
        String::from_utf8(ended.stderr).unwrap()
    };
    for words in [&["show", "edits.mpatch"][..], &["--help"], &["apply", "-h"], &["--version"]] {
        let shown = run(words);
        assert!(shown.contains("`stdout`") && shown.ends_with("state: unchanged\n"), "{shown}");
        assert!(
            shown.contains("hint: free some space where the output goes, or send it elsewhere"),
            "{shown}"
        );
    }
    bench.write("corpus.txt", small_corpus(2));
    let stats = format!("stats corpus.txt --layers 0 --base {} -o sums", world().display());
    for words in ["apply model.safetensors edits.mpatch -o new", &stats] {
        let words = Vec::from_iter(words.split(' '));
        let done = run(&words);
        assert!(done.contains("`stdout`") && done.ends_with("state: applied\n"), "{done}");
        assert!(bench.path(words[words.len() - 1]).exists());
    }
}

#[test]
fn the_readme_lists_every_exit_code_as_the_help_does() {
    let help = String::from_utf8(mpatch().arg("--help").output().unwrap().stdout).unwrap();
    let (_, table) = help.split_once("Exit codes:\n").unwrap();
    let of_help: Vec<(&str, &str)> = table.lines().filter_map(|line| line.trim().split_once("  ")).collect();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, section) = readme.split_once("## Exit codes\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let of_readme: Vec<(&str, &str)> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "))
        .filter(|(code, _)| code.chars().all(|digit| digit.is_ascii_digit()))
        .collect();
    assert!(of_help.len() > 10, "{help}");
    assert_eq!(of_readme, of_help);
}

/// A file system of its own at a folder, until dropped.
struct Mount {
    folder: PathBuf,
}

impl Mount {
    /// None where the system does not let us.
    fn tmpfs(folder: PathBuf, options: &str) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&folder).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success()).then_some(Self { folder })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.folder).status();
    }
}
