//! The rungs of `verify` that run the model: what the patch declares against what its weights are.

#[cfg(target_os = "linux")]
mod loads;

use std::fs;

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::factors::{Integers, Term};
use mpatch::patch::{Draft, Patch, encode};
use serde_json::{Value, json};

use crate::bench::Bench;
use crate::material;

/// The embedded model with a patch of one fact, `edits.mpatch`, and one of two, `two.mpatch`.
fn bench() -> Bench {
    let bench = Bench::empty();
    material::lay_out_editing(bench.folder.path());
    let create = "create facts.json --base model --contexts contexts.json --stats statistics.safetensors";
    bench.command(&format!("{create} -o two.mpatch")).assert().success();
    bench
}

impl Bench {
    fn draft(&self, patch: &str) -> Draft {
        Patch::decode(fs::read(self.path(patch)).unwrap()).unwrap().draft().unwrap()
    }

    fn encode(&self, patch: &str, draft: &Draft) {
        fs::write(self.path(patch), encode(draft).unwrap()).unwrap();
    }

    /// Binds the draft to the model anew.
    fn rebind(&self, draft: &mut Draft) {
        let checkpoint = Checkpoint::open(self.path("model")).unwrap();
        let tensors = draft.bindings[0].tensors.iter();
        let edits: Vec<_> = tensors.map(|tensor| (tensor.name.clone(), tensor.terms.clone())).collect();
        let weights = checkpoint.weights_id().unwrap();
        draft.bindings = vec![bind(&checkpoint, weights, &edits, &draft.terms, &|_| ()).unwrap()];
    }

    /// Runs `verify` of an unsigned patch and a model, with these options, which must end with `code`; answers with
    /// what it said.
    #[track_caller]
    fn verify(&self, patch: &str, options: &str, code: i32) -> String {
        self.run(&format!("verify {patch} --allow-unsigned --base {options}"), code)
    }
}

/// What `said` has all of `words`.
#[track_caller]
fn says(said: &str, words: &[&str]) {
    for words in words {
        assert!(said.contains(words), "`{words}` is missing:\n{said}");
    }
}

#[test]
fn a_patch_that_declares_what_its_weights_do_not_say_fails_when_the_model_is_asked() {
    let bench = bench();
    let mut draft = bench.draft("edits.mpatch");
    draft.facts[0].target_new = "qzx".to_owned();
    bench.encode("lie.mpatch", &draft);
    let said = bench.verify("lie.mpatch", "model", 14);
    assert!(said.contains("`lie.mpatch` fails V4") && said.ends_with("state: unchanged\n"), "{said}");
    // One that wins against an old target does not make up for two that are not said at all.
    let mut half = bench.draft("two.mpatch");
    half.measured.clear();
    half.facts[1].target_old = None;
    half.facts[1].target_new = "qzx".to_owned();
    half.facts.push(half.facts[1].clone());
    half.facts[2].subject = "Nobody".to_owned();
    bench.encode("half.mpatch", &half);
    says(&bench.verify("half.mpatch", "model", 14), &["only 33.33 % of the declared facts win"]);
    // Whatever is written for a key lies in its span, so V3 does not see it, and V5 does.
    let said = bench.verify("lie.mpatch", "model --stats statistics.safetensors --rederive", 14);
    says(
        &said,
        &["V3 confined  holds", "V4 behaves   fails", "V5 remade    fails", "holds: V0 and V2 and V3\n"],
    );
}

#[test]
fn records_of_some_facts_are_not_compared_with_what_those_of_all_gave() {
    let bench = bench();
    let facts: Vec<Value> = serde_json::from_slice(&fs::read(bench.path("facts.json")).unwrap()).unwrap();
    fs::write(bench.path("some.json"), serde_json::to_vec(&facts[1..]).unwrap()).unwrap();
    let mut draft = bench.draft("two.mpatch");
    // What an honest patch may declare whose other fact does better.
    for metric in draft.measured.iter_mut().filter(|metric| metric.name.starts_with("neighborhood")) {
        metric.after = 101.0;
    }
    bench.encode("honest.mpatch", &draft);
    let said = bench.verify("honest.mpatch", "model --records some.json", 0);
    let names = "score, paraphrase, neighborhood, paraphrase_accuracy, neighborhood_accuracy";
    says(&said, &["V4 behaves   holds", &format!("so not compared: {names}\n")]);
    says(&said, &["`some.json` has 1 of the 2 facts that the patch declares"]);
    says(&bench.verify("honest.mpatch", "model --records facts.json", 14), &["the patch declares 101.00"]);
    // Whatever the file says of old targets, those of the patch count; here it has one of two.
    let mut other = facts.clone();
    for record in &mut other {
        record["requested_rewrite"]["target_true"]["str"] = "zzz".into();
        record["neighborhood_prompts"] = Value::Array(Vec::new());
    }
    fs::write(bench.path("easy.json"), serde_json::to_vec(&other).unwrap()).unwrap();
    draft.facts[1].target_old = None;
    bench.encode("half.mpatch", &draft);
    let said = bench.verify("half.mpatch", "model --records easy.json", 0);
    says(&said, &["other prompts than declared, so not compared: efficacy, "]);
    // The file was named, so what it lacks is said, and not that a file is to be named.
    says(&said, &["`easy.json` has no neighbours", "; declared and not asked: score, neighborhood"]);
    assert!(!said.contains("name their file"), "{said}");
    draft.facts[0].target_old = None;
    bench.encode("none.mpatch", &draft);
    says(&bench.verify("none.mpatch", "model", 0), &["; declared and not asked: efficacy"]);
    // What cannot be asked is told before the rungs are climbed.
    let long = format!("Ann {}", "Ann ".repeat(300));
    for (change, words) in [
        (("subject", "Nobody"), "`other.json` has none of the 2 facts that the patch declares"),
        (("paraphrase_prompts", long.as_str()), "`other.json`, record 1"),
    ] {
        let mut other = facts[..1].to_vec();
        match change {
            ("subject", name) => other[0]["requested_rewrite"]["subject"] = name.into(),
            (field, text) => other[0][field] = text.into(),
        }
        fs::write(bench.path("other.json"), serde_json::to_vec(&other).unwrap()).unwrap();
        says(&bench.verify("honest.mpatch", "model --records other.json", 3), &[words]);
    }
}

#[test]
fn a_patch_that_hides_a_fact_fails_where_its_keys_are_counted() {
    let bench = bench();
    let mut draft = bench.draft("two.mpatch");
    draft.facts.truncate(1);
    bench.encode("hidden.mpatch", &draft);
    let said = bench.verify("hidden.mpatch", "model", 0);
    says(&said, &["V3 confined  not checked  name the statistics", "V4 behaves   holds"]);
    for rederive in ["", " --rederive"] {
        let options = format!("model --stats statistics.safetensors{rederive}");
        let said = bench.verify("hidden.mpatch", &options, 14);
        says(&said, &["V3 confined  fails", "V4 behaves   holds", "`hidden.mpatch` fails V3: tensor `"]);
        says(
            &said,
            &[
                "a key beside those of the 1 declared fact",
                "expected 0.25 at most",
                "declared facts alone: do not rely",
            ],
        );
        if !rederive.is_empty() {
            says(&said, &["V5 remade    not checked  V3 fails"]);
        }
    }
    draft.recipe.layers = vec![0, 1];
    draft.recipe.hyperparameters = draft.recipe.hyperparameters.replace("[0,1,2]", "[0,1]");
    bench.encode("layers.mpatch", &draft);
    let said = bench.verify("layers.mpatch", "model --stats statistics.safetensors", 14);
    says(&said, &["fails V3: tensor `transformer.h.2.mlp.fc_out.weight` is touched, expected only those of"]);
}

#[test]
fn an_honest_patch_is_confined_and_made_again_byte_for_byte() {
    let bench = bench();
    let options = "--stats statistics.safetensors --rederive";
    bench.command("apply model/model.safetensors two.mpatch -o model/edited.safetensors").assert().success();
    for base in ["model", "model/edited.safetensors"] {
        let said = bench.verify("two.mpatch", &format!("{base} {options}"), 0);
        says(
            &said,
            &["V3 confined  holds", "V5 remade    holds", "on cpu: 3 tensors, the same, byte for byte"],
        );
        says(&said, &["to 2 of 512 directions; outside ", "holds: V0 and V1 and V2 and V3 and V4 and V5"]);
    }
    // Of a tensor that is cut no later key is known, and the recipe gives the same nevertheless.
    let create = "create facts.json --base model --contexts contexts.json --stats statistics.safetensors";
    bench.command(&format!("{create} --rank 1 -o cut.mpatch")).assert().success();
    let said = bench.verify("cut.mpatch", &format!("model {options}"), 0);
    says(
        &said,
        &[
            "V3 confined  not checked  the rank of a tensor before `transformer.h.1",
            "the same, byte for byte; cut to rank 1 of 2, which leaves out 0.",
        ],
    );
}

/// So many facts that their updates are stored dense even if they are cut to rank 103: 102 = 128 * 512 / (128 + 512) is
/// the last one whose factors are not larger.
fn lay_out_many_facts(bench: &Bench) {
    let records = fs::read(material::world().join("records.json")).unwrap();
    let records: Vec<Value> = serde_json::from_slice(&records).unwrap();
    let requests: Vec<&Value> = records[..130].iter().map(|record| &record["requested_rewrite"]).collect();
    bench.write("many.json", serde_json::to_string(&requests).unwrap());
}

#[test]
fn a_dense_patch_that_was_cut_is_made_again_to_the_rank_that_it_was_cut_to() {
    let bench = bench();
    lay_out_many_facts(&bench);
    let create = "create many.json --base model --contexts contexts.json --stats statistics.safetensors";
    bench.command(&format!("{create} --rank 103 -o cut.mpatch")).assert().success();
    let draft = bench.draft("cut.mpatch");
    let is_dense = |term: &Term| matches!(term.integers(), Integers::Dense(_));
    // The last one: keys of layers behind it would be others, and V3 fail.
    assert!(draft.terms.last().is_some_and(is_dense), "103 is too much for factors");
    let options = "model --stats statistics.safetensors --rederive";
    let said = bench.verify("cut.mpatch", options, 0);
    says(
        &said,
        &["V5 remade    holds", "the same, byte for byte; cut to rank 103 of 128, which leaves out 0.0"],
    );
    // What is no cut does not pass for one.
    bench.encode("weak.mpatch", &weakened(&bench, "cut.mpatch", draft.terms.len() - 1));
    let said = bench.verify("weak.mpatch", options, 14);
    says(&said, &["V5 remade    fails", "of its size away from what the recipe gives"]);
}

/// The patch with one of its terms at half its size, bound to the model anew.
fn weakened(bench: &Bench, patch: &str, index: usize) -> Draft {
    let mut draft = bench.draft(patch);
    let term = &draft.terms[index];
    let halves = term.row_scales().iter().map(|scale| scale / 2.0).collect();
    draft.terms[index] = Term::new(term.integers().clone(), halves, term.column_scales().to_vec()).unwrap();
    bench.rebind(&mut draft);
    draft.measured.clear();
    draft
}

#[test]
fn a_patch_that_its_recipe_does_not_give_fails_when_it_is_made_again() {
    let bench = bench();
    bench.encode("weak.mpatch", &weakened(&bench, "two.mpatch", 0));
    let said = bench.verify("weak.mpatch", "model --stats statistics.safetensors --rederive", 14);
    says(&said, &["V4 behaves   holds", "V5 remade    fails"]);
    says(
        &said,
        &["fails V5: tensor `transformer.h.0.mlp.fc_out.weight`", "of its size away", "expected 0.02"],
    );
}

#[test]
fn a_layer_of_the_recipe_that_is_left_out_is_missed_when_the_patch_is_made_again() {
    let bench = bench();
    let mut draft = bench.draft("two.mpatch");
    draft.bindings[0].tensors.pop();
    draft.terms.pop();
    draft.measured.clear();
    bench.rebind(&mut draft);
    bench.encode("less.mpatch", &draft);
    let said = bench.verify("less.mpatch", "model --stats statistics.safetensors --rederive", 14);
    says(&said, &["V3 confined  holds", "V5 remade    fails"]);
    says(&said, &["tensor `transformer.h.2.mlp.fc_out.weight` is left as it was, the recipe edits it"]);
}

#[test]
fn facts_that_span_most_of_a_layer_tell_nothing_of_its_keys() {
    let bench = bench();
    let mut draft = bench.draft("two.mpatch");
    draft.measured.clear();
    let fact = draft.facts[0].clone();
    draft.facts.extend((0..203).map(|index| {
        let mut fact = fact.clone();
        fact.subject = format!("Ann {index}");
        fact
    }));
    bench.encode("many.mpatch", &draft);
    let verify = "verify many.mpatch --allow-unsigned --base model --stats statistics.safetensors";
    let output = bench.command(verify).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    says(&said, &["V3 confined  not checked  205 facts span most of the 512 directions that a key can have"]);
}

#[test]
fn the_model_is_asked_in_the_precision_that_was_asked_for_whatever_the_recipe_s_is() {
    let bench = bench();
    let options = "model --stats statistics.safetensors --precision bf16";
    says(&bench.verify("two.mpatch", options, 0), &["V3 confined  holds", ", asked on cpu bf16"]);
}

#[test]
fn rungs_that_follow_the_recipe_need_its_own_statistics() {
    let bench = bench();
    bench.command("stats more.txt --base model -o other.safetensors").assert().success();
    let said = bench.verify("two.mpatch", "model --stats other.safetensors", 6);
    says(&said, &["`other.safetensors`: statistics ", "the patch was made with", "hint: give the file"]);
    let said = bench.verify("two.mpatch", "model --rederive", 2);
    says(&said, &["no statistics of this model", "hint: give the file", "`--stats FILE`"]);
    bench.verify("two.mpatch", "model --stats model/model.safetensors", 3);
}

#[test]
fn the_recipes_own_statistics_are_found_among_those_that_are_cached() {
    let bench = bench();
    // Of more tokens, so that `create` would take them.
    bench.command("stats more.txt --base model -o more.safetensors").assert().success();
    bench.command("stats --merge statistics.safetensors more.safetensors").assert().success();
    let digest = |bytes: &[u8]| FileDigest::of(bytes).short();
    let own = digest(&fs::read(bench.path("statistics.safetensors")).unwrap());
    let merged = fs::read_dir(bench.path("cache/statistics")).unwrap().next().unwrap().unwrap().path();
    let said = bench.verify("two.mpatch", "model --rederive", 6);
    let place = merged.strip_prefix(bench.folder.path()).unwrap();
    let found = format!("{}` ({})", place.display(), digest(&fs::read(&merged).unwrap()));
    says(&said, &[&format!("made with statistics {own}, cached"), &found, "hint: give the file that"]);
    // Whatever lies there and is something else is passed over.
    bench.write("cache/statistics/note.txt", "no statistics");
    bench.command("stats corpus.txt --base model").assert().success();
    let said = bench.verify("two.mpatch", "model --rederive", 0);
    says(&said, &["V5 remade    holds", "the same, byte for byte"]);
    // The name of a cached file says which weights it is of, and decides nothing.
    let cached = bench.path("cache/statistics/of-another-model.safetensors");
    fs::remove_dir_all(bench.path("cache")).unwrap();
    fs::create_dir_all(cached.parent().unwrap()).unwrap();
    fs::copy(bench.path("statistics.safetensors"), &cached).unwrap();
    says(&bench.verify("two.mpatch", "model --rederive", 0), &["V5 remade    holds"]);
}

#[test]
fn a_patch_without_a_recipe_is_not_made_again() {
    let bench = bench();
    bench.command("apply model/model.safetensors two.mpatch -o model/edited.safetensors").assert().success();
    let diff = "diff model/model.safetensors model/edited.safetensors -o extracted.mpatch";
    bench.command(diff).assert().success();
    let said = bench.verify("extracted.mpatch", "model --stats statistics.safetensors --rederive", 0);
    says(&said, &["V3 confined  not checked  it was extracted from two checkpoints, so there is no recipe"]);
    says(&said, &["V5 remade    not checked  it was extracted", "holds: V0 and V1 and V2\n"]);
    bench.write("config/policy.json", r#"{"minimal_rung": "V4"}"#);
    says(
        &bench.verify("extracted.mpatch", "model", 5),
        &["hint: the patch declares no facts: ask for another"],
    );
    fs::remove_file(bench.path("config/policy.json")).unwrap();
    // Keys on other weights are other keys.
    bench.command("apply model/model.safetensors edits.mpatch -o model/other.safetensors").assert().success();
    let rebase = "rebase two.mpatch --base model/other.safetensors -o rebased.mpatch";
    bench.command(rebase).assert().success();
    let said = bench.verify("rebased.mpatch", "model/other.safetensors --stats statistics.safetensors", 0);
    says(&said, &["V3 confined  not checked  it was made on other weights, ", "bound to these later"]);
    // So nothing is suggested that would check it.
    bench
        .command("apply model/other.safetensors rebased.mpatch -o model/both.safetensors")
        .assert()
        .success();
    let said = bench.verify("rebased.mpatch", "model/both.safetensors", 0);
    assert!(said.contains("V4 behaves   holds") && !said.contains("next: "), "{said}");
}

#[test]
fn a_false_promise_is_told_from_a_base_that_is_another_one() {
    let bench = bench();
    let mut draft = bench.draft("edits.mpatch");
    draft.bindings[0].tensors[0].norm_ratio *= 2.0;
    bench.encode("lie.mpatch", &draft);
    says(&bench.verify("lie.mpatch", "model", 3), &["fails V2: tensor `", "hint: do not apply this patch"]);
    let mut draft = bench.draft("edits.mpatch");
    draft.bindings[0].weights = WeightsId::of_tensors([]);
    bench.encode("other.mpatch", &draft);
    let said = bench.verify("other.mpatch", "model", 6);
    says(&said, &["fails V2: the weights of the base have the id", "tells which base it is for"]);
}

#[test]
fn what_lies_beside_the_weights_and_is_another_file_is_named_before_the_patch_is_blamed() {
    let bench = bench();
    bench.alter_json("model/tokenizer.json", json!({"normalizer": {"type": "Lowercase"}}));
    let said = bench.verify("two.mpatch", "model --stats statistics.safetensors", 14);
    let warning =
        "warning: `model`: the tokenizer beside the weights: not the bytes that the patch was made with";
    says(&said, &[warning, "fails V3: ", "hint: the tokenizer of the model may be why"]);
    bench.alter_json("model/config.json", json!({"rotary_dim": 8}));
    let said = bench.verify("two.mpatch", "model --stats statistics.safetensors", 14);
    says(&said, &["hint: `config.json` and the tokenizer of the model may be why"]);
    // What is only saved anew is another file, too, and no reason to refuse.
    material::lay_out_world(&bench.path("model"));
    bench.alter_json("model/config.json", json!({"_name_or_path": "elsewhere"}));
    says(
        &bench.verify("two.mpatch", "model", 0),
        &["`config.json` beside the weights", "V4 behaves   holds"],
    );
    assert!(!bench.verify("two.mpatch", "model --weights-only", 0).contains("warning: `model`"));
}

#[test]
fn a_model_that_cannot_be_run_is_checked_as_weights_and_what_it_lacks_is_named() {
    let bench = bench();
    let lacks = |words: &str| {
        let said = bench.verify("two.mpatch", "model --stats statistics.safetensors --records facts.json", 0);
        let row = format!("not checked  needs a GPT-J that fits, with its config and tokenizer: {words}");
        says(
            &said,
            &[&format!("V3 confined  {row}"), &format!("V4 behaves   {row}"), "holds: V0 and V1 and V2\n"],
        );
    };
    fs::rename(bench.path("model/tokenizer.json"), bench.path("away.json")).unwrap();
    lacks("there is no `tokenizer.json` beside");
    bench.write("config/policy.json", r#"{"minimal_rung": "V4"}"#);
    let output = bench.command("verify two.mpatch --base model").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    says(&said, &["V4, which the policy asks for: there is no `tok", "hint: name a whole GPT-J"]);
    fs::remove_file(bench.path("config/policy.json")).unwrap();
    bench.alter_json(
        "model/config.json",
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}),
    );
    lacks("config.json: the architecture is `LlamaForCausalLM`; mpatch edits GPT-J");
    fs::remove_file(bench.path("model/config.json")).unwrap();
    lacks("there is no `config.json` beside");
}

#[test]
fn a_policy_can_ask_for_the_rungs_that_follow_the_recipe() {
    let bench = bench();
    bench.write("config/policy.json", r#"{"minimal_rung": "V3"}"#);
    let said = |options: &str, code: i32| {
        let output = bench.command(&format!("verify two.mpatch --base model{options}")).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        stderr
    };
    says(&said("", 5), &["does not reach V3, which the policy asks for", "hint: name the statistics"]);
    said(" --stats statistics.safetensors", 0);
    bench.write("config/policy.json", r#"{"minimal_rung": "V4"}"#);
    says(&said(" --digests-only", 5), &["does not reach V4", "hint: leave `--digests-only` out"]);
    says(&said(" --weights-only", 5), &["does not reach V4", "hint: leave `--weights-only` out"]);
    bench.write("config/policy.json", r#"{"minimal_rung": "V5"}"#);
    says(&said(" --stats statistics.safetensors", 5), &["does not reach V5", "`--rederive`"]);
    said(" --stats statistics.safetensors --rederive", 0);
}
