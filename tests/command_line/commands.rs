//! The words that a user reads: each transcript in `tests/commands/` is run, and its output compared.
//!
//! Every transcript runs in a folder of its own, with the tiny weights of [`lay_out`] in it, or the embedded model of
//! [`lay_out_editing`]. After a change that is meant, `TRYCMD=overwrite cargo test --test command_line commands`
//! writes the transcripts anew.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::material::{
    SETTINGS, alter_weights, key, lay_out, lay_out_editing, lay_out_signers, mpatch, signed_with,
    variables_of_git,
};
use mpatch::checkpoint::Checkpoint;
use mpatch::patch::Patch;
use mpatch::sign::PrivateKey;
use serde_json::{Value, json};

/// The demo is the longest command, and machines that run tests may be busy.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs the test that asks anew without what its caller tells git, if he does.
fn is_run_without_variables_of_git() -> bool {
    if variables_of_git().next().is_none() {
        return false;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    variables_of_git().for_each(|name| {
        again.env_remove(name);
    });
    let thread = std::thread::current();
    let test = thread.name().expect("a test's thread has its name");
    let output = again.args([test, "--exact"]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("test result: ok. 1 passed"), "{told}");
    true
}

#[test]
fn transcripts() {
    // Its commands have all variables of this process.
    if is_run_without_variables_of_git() {
        return;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/commands");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("commands");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let names = fs::read_dir(&source).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.collect();
    for name in &names {
        let copy = folder.join(name);
        fs::copy(source.join(name), &copy).unwrap();
        let place = copy.with_extension("in");
        match name.to_str() {
            Some("create.md" | "eval.md" | "rederive.md" | "resolve.md" | "stats.md" | "try.md") => {
                lay_out_editing(&place)
            }
            Some("sign.md" | "trust.md") => lay_out_signers(&place),
            Some("demo.md" | "demo.toml" | "demo.stdout" | "doctor.md") => fs::create_dir_all(place).unwrap(),
            _ => lay_out(&place),
        }
    }
    // Dropping the cases runs them.
    let cases = trycmd::TestCases::new();
    for (name, value) in SETTINGS {
        cases.env(name, value);
    }
    cases.timeout(TIMEOUT).case(folder.join("*.md"));
    // What the demo prints holds lines that look like commands of a transcript.
    cases.case(folder.join("*.toml"));
    let overwriting = std::env::var_os("TRYCMD").is_some_and(|mode| mode == "overwrite");
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cases.run()));
    if overwriting {
        for name in &names {
            fs::copy(folder.join(name), source.join(name)).unwrap();
        }
    }
    if let Err(failure) = ran {
        std::panic::resume_unwind(failure);
    }
}

#[test]
fn the_doctor_names_the_signing_key_and_makes_none() {
    let folder = tempfile::tempdir().unwrap();
    let examined = |key: &str| {
        let mut command = mpatch();
        command.current_dir(folder.path()).env("MPATCH_KEY", key);
        let examined = command.args(["doctor", "--checks-only", "--device", "cpu"]).assert().success();
        String::from_utf8(examined.get_output().stdout.clone()).unwrap()
    };
    let text = examined("");
    assert!(text.contains("none yet, the first patch that is signed makes config/key: neither"), "{text}");
    assert!(!folder.path().join("config").exists(), "asking made something");
    let mut elsewhere = mpatch();
    elsewhere.current_dir(folder.path()).env("MPATCH_CONFIG_DIR", "/proc/none/config");
    let said = elsewhere.args(["doctor", "--checks-only", "--device", "cpu"]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("none yet, and /proc/none/config/key cannot be made: "), "{said}");
    lay_out_signers(folder.path());
    let text = examined("");
    let key = format!("{} (ssh-ed25519), config/key: neither MPATCH_KEY", key().public().fingerprint());
    assert!(text.contains(&key), "{text}");
    assert!(text.contains("1 key in config/allowed_signers"), "{text}");
    let text = examined("second");
    assert!(text.contains("second: MPATCH_KEY names it"), "{text}");
    let text = examined("open");
    assert!(text.contains("`open` is a private key that others can read"), "{text}");
    assert!(text.contains("`chmod 600 open`"), "{text}");
    // Whose file is another one's cannot choose that; who is not root cannot give a file away.
    if std::os::unix::fs::chown(folder.path().join("open"), Some(12_345), None).is_ok() {
        assert!(!examined("open").contains("others can read"));
    }
    fs::write(folder.path().join("config/policy.json"), r#"{"threshold": 2}"#).unwrap();
    let text = examined("");
    assert!(text.contains("policy: 2 trusted keys, no exceptions (config/policy.json)"), "{text}");
}

#[test]
fn a_patch_is_read_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    let patch = fs::read(folder.path().join("edits.mpatch")).unwrap();
    let shown = mpatch().args(["show", "-"]).write_stdin(patch).assert().success();
    let text = String::from_utf8(shown.get_output().stdout.clone()).unwrap();
    assert!(text.starts_with("-: 2 facts for GPTJForCausalLM"), "{text}");
    assert!(text.contains("Magic\\u{202e} Johnson"), "{text}");
}

/// What a command says on both outputs, read in the folder that it runs in, with `input` to read.
pub fn said_in(folder: &Path, words: &[&str], input: &[u8]) -> String {
    let output = mpatch().current_dir(folder).args(words).write_stdin(input).output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn what_is_suggested_can_be_copied() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out_signers(folder);
    fs::rename(folder.join("edits.mpatch"), folder.join("an edit.mpatch")).unwrap();
    fs::rename(folder.join("other.safetensors"), folder.join("my model")).unwrap();
    let rival = fs::read(folder.join("rival.mpatch")).unwrap();
    lay_out_editing(folder);
    let plain = Patch::decode(fs::read(folder.join("edits.mpatch")).unwrap()).unwrap();
    let plain = plain.with_signatures(Vec::new()).unwrap().bytes().unwrap().to_vec();
    fs::write(folder.join("plain edit.mpatch"), &plain).unwrap();
    let stranger = PrivateKey::from_seed(&[8; 32], "").unwrap();
    fs::write(folder.join("foreign.mpatch"), signed_with(plain.clone(), &stranger)).unwrap();
    let tried = |patch: &str| {
        let words = ["--base", "model", "--tokens", "1", "--top", "1", "Pavel Prestellman performs on the"];
        said_in(folder, &[&["try", patch], &words[..]].concat(), &plain)
    };
    let sign = ["sign", "an edit.mpatch", "--key", "second", "--detached", "-o", "my review.sig"];
    for (said, suggested) in [
        (
            said_in(folder, &["diff", "an edit.mpatch", "my model"], &[]),
            "hint: `mpatch verify 'an edit.mpatch' --base 'my model'` tells",
        ),
        (said_in(folder, &["diff", "an edit.mpatch", "-"], &rival), "next: mpatch show 'an edit.mpatch'\n"),
        (said_in(folder, &sign, &[]), "next: mpatch verify 'an edit.mpatch' --signature 'my review.sig'\n"),
        (tried("plain edit.mpatch"), "next: mpatch apply model 'plain edit.mpatch' --allow-unsigned\n"),
        (tried("foreign.mpatch"), "next: mpatch apply model foreign.mpatch --allow-unknown\n"),
    ] {
        assert!(said.contains(suggested), "`{suggested}` is missing:\n{said}");
    }
    let expired = format!("maker@example.org valid-before=\"20200101Z\" {}\n", key().public().line());
    fs::write(folder.join("config/allowed_signers"), expired).unwrap();
    let said = tried("edits.mpatch");
    assert!(said.contains("next: mpatch apply model edits.mpatch --allow-expired\n"), "{said}");
    alter_weights(&folder.join("model/model.safetensors"), "transformer.h.0.mlp.fc_out.weight", &[0x3c00]);
    for (patch, word) in [("plain edit.mpatch", "'plain edit.mpatch'"), ("-", "PATCH")] {
        let said = tried(patch);
        assert!(said.contains(&format!("hint: `mpatch show {word}` tells")), "{said}");
    }
}

#[test]
fn what_had_to_be_allowed_is_told_of_every_patch_that_goes_into_another() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    for (words, place) in [
        ("stack more.mpatch unsigned.mpatch --base model.safetensors -o both.mpatch", "/trust/1/allowed"),
        ("rebase unsigned.mpatch --base other.safetensors", "/trust/allowed"),
    ] {
        let words: Vec<&str> = words.split(' ').chain(["--allow-unsigned", "--json"]).collect();
        let report: Value = serde_json::from_str(&said_in(folder.path(), &words, &[])).unwrap();
        assert_eq!(report.pointer(place), Some(&json!(["unsigned"])), "{report:#}");
    }
}

#[test]
fn a_warning_is_told_however_little_is_to_be_said() {
    let folder = tempfile::tempdir().unwrap();
    let fact = |prompt| json!({"prompt": prompt, "subject": "Ada", "target_new": "x"}).to_string();
    let facts = [fact("{} lives in"), fact("{} works as a")].join("\n");
    for flag in ["--quiet", "--json"] {
        let mut command = mpatch();
        command.current_dir(folder.path()).args(["create", "-", "--base", "absent", flag]);
        let output = command.write_stdin(facts.clone()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.starts_with("warning: 1 subject has several facts"), "{flag}: {errors}");
    }
}

/// The report of a command in `folder` that succeeds.
pub fn report_of(folder: &Path, words: &str) -> Value {
    let ran = mpatch().current_dir(folder).args(words.split(' ')).arg("--json").assert();
    serde_json::from_slice(&ran.success().get_output().stdout).unwrap()
}

fn patch_at(path: &Path) -> Patch {
    Patch::decode(fs::read(path).unwrap()).unwrap()
}

#[test]
fn of_a_model_that_was_converted_not_every_tensor_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, dtype, size) in [("f16", safetensors::Dtype::F16, 2), ("f32", safetensors::Dtype::F32, 4)] {
        let bytes = vec![0; size];
        let tensor = || safetensors::tensor::TensorView::new(dtype, vec![1], &bytes).unwrap();
        let tensors = (0..9).map(|number| (format!("weight.{number}"), tensor()));
        safetensors::serialize_to_file(tensors, None, &folder.path().join(name)).unwrap();
    }
    let ran = mpatch().current_dir(folder.path()).args(["diff", "f16", "f32"]).assert().code(1);
    let told = String::from_utf8_lossy(&ran.get_output().stdout).into_owned();
    assert_eq!(told.matches("F16 -> F32").count(), 5, "{told}");
    assert!(told.contains("\n  and 4 more; of another type or shape, too"), "{told}");
}

#[test]
fn a_patch_says_how_it_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out_editing(folder);
    let facts: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("facts.json")).unwrap()).unwrap();
    let noted = facts.iter().map(|fact| {
        let mut request = fact["requested_rewrite"].clone();
        request["note"] = "a source".into();
        request
    });
    let noted = Value::from(noted.collect::<Vec<_>>()).to_string();
    fs::write(folder.join("noted.json"), &noted).unwrap();
    let create = "create noted.json --base model --contexts contexts.json --stats statistics.safetensors";
    let options =
        "--seed 5 --bits 8 --tolerance 0.3 --precision bf16 --author Ada --licence MIT -o new.mpatch";
    let report = report_of(folder, &format!("{create} {options}"));
    for outcome in report["outcomes"].as_array().unwrap() {
        let [before, after] =
            ["probability_before", "probability_after"].map(|name| outcome[name].as_f64().unwrap());
        assert!(before < 0.01 && after > 0.1, "{outcome}");
    }
    let patch = patch_at(&folder.join("new.mpatch"));
    let manifest = patch.manifest();
    let recipe = &manifest.recipe;
    assert_eq!((recipe.seed, recipe.device.as_str()), (5, "cpu bf16"));
    assert_eq!(recipe.facts, mpatch::digest::FileDigest::of(noted.as_bytes()));
    let about = &manifest.about;
    assert_eq!((about.author.as_deref(), about.licence.as_deref()), (Some("Ada"), Some("MIT")));
    assert!(manifest.facts.iter().all(|fact| fact.note.as_deref() == Some("a source")));
    assert!(manifest.terms.iter().all(|term| term.bits == 8));
    // Of two facts neither is small beside the other.
    assert!((0..3).all(|term| patch.term(term).unwrap().rank() == 2));
    let efficacy = manifest.measured.iter().find(|metric| metric.name == "efficacy").unwrap();
    assert_eq!((efficacy.before, efficacy.after, efficacy.prompts), (0.0, 100.0, 2));
}

#[test]
fn what_is_solved_again_keeps_what_its_patches_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out_editing(folder);
    let draft = |seed: u64, subject: &str, context: &str| {
        let mut draft = patch_at(&folder.join("edits.mpatch")).draft().unwrap();
        (draft.recipe.seed, draft.recipe.contexts) = (7, vec![vec![context.to_owned()]]);
        let fact = &mut draft.facts[0];
        (fact.subject, fact.id, fact.note) =
            (subject.to_owned(), Some(format!("id {seed}")), Some("a source".to_owned()));
        draft.about.title = Some(subject.to_owned());
        mpatch::patch::encode(&draft).unwrap()
    };
    let old = patch_at(&folder.join("edits.mpatch")).manifest().facts[0].clone();
    for (name, patch) in [
        ("one.mpatch", draft(1, &old.subject, "{}")),
        ("two.mpatch", draft(2, "Nobody", "{}")),
        ("other.mpatch", draft(3, "Nobody", "So {}")),
    ] {
        fs::write(folder.join(name), patch).unwrap();
    }
    let resolve = "--base model --resolve --allow-unsigned --no-sign -o both.mpatch";
    report_of(folder, &format!("stack one.mpatch two.mpatch {resolve} --stats statistics.safetensors"));
    let both = patch_at(&folder.join("both.mpatch"));
    let (facts, recipe) = (&both.manifest().facts, &both.manifest().recipe);
    for (fact, number) in facts.iter().zip([1, 2]) {
        assert_eq!(
            (fact.id.as_deref(), fact.note.as_deref()),
            (Some(&*format!("id {number}")), Some("a source"))
        );
        assert_eq!(fact.target_old, old.target_old);
    }
    assert_eq!((recipe.seed, &recipe.contexts), (7, &vec![vec!["{}".to_owned()]]));
    let ids = ["one.mpatch", "two.mpatch"].map(|name| patch_at(&folder.join(name)).id());
    assert_eq!(both.manifest().supersedes, ids);
    fs::remove_file(folder.join("both.mpatch")).unwrap();
    let words = format!("stack one.mpatch other.mpatch {resolve} --hparams none.json");
    let said = said_in(folder, &Vec::from_iter(words.split(' ')), &[]);
    assert!(
        said.contains("the patches were not made alike") && said.contains("cannot read `none.json`"),
        "{said}"
    );
}

#[test]
fn texts_are_written_for_their_entropy_by_their_number_and_seed() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let entropy = |options: &str| {
        let eval = format!("eval facts.json --base model --limit 1 --entropy-records 1{options}");
        let report = report_of(folder.path(), &eval);
        assert_eq!(report["ngram_entropy_records"], 1);
        report["ngram_entropy"].as_f64().unwrap()
    };
    let found = entropy("");
    assert!(found > 100.0 && (entropy(" --seed 5") - found).abs() > 1e-9, "{found}");
}

#[test]
fn what_follows_from_facts_is_asked_where_a_file_has_questions() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    // The model says `harp`, and knows of no flute: one of two answers is its own.
    let follows = |expected| json!({"prompt": "Elena Cairollez performs on the", "expected": expected});
    let fact = json!({"prompt": "{} performs on the", "subject": "Pavel Prestellman", "target_new": "flute",
        "portability": [follows("harp"), follows("flute")]});
    fs::write(folder.path().join("own.json"), fact.to_string()).unwrap();
    let report = report_of(folder.path(), "eval own.json --base model --entropy-records 0");
    assert_eq!(report["portability_accuracy"], 50.0);
    assert_eq!(report["records"][0]["portability_accuracy"], 50.0);
    assert_eq!(report["counts"]["portability_accuracy"], json!({"records": 1, "prompts": 2}));
    let nll = &report["records"][0]["nll"]["portability"];
    assert!(nll["right"][0].as_f64() < nll["right"][1].as_f64(), "the model says harp: {nll}");
    assert_eq!(nll["wrong"], json!([null, null]));
    assert_eq!(report["score"], Value::Null, "{report:#}");
}

#[test]
fn neighbours_that_have_answers_of_their_own_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let record = json!({"subject": "Pavel Prestellman", "src": "What does Pavel Prestellman play?",
        "answers": ["flute"], "loc": "nq question: what does elena cairollez play", "loc_ans": "harp"});
    fs::write(folder.path().join("zsre.json"), record.to_string()).unwrap();
    let words = "create zsre.json --base model --stats statistics.safetensors --contexts contexts.json";
    let output = mpatch().current_dir(folder.path()).args(words.split(' ')).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("neighborhood accuracy") && !said.contains("not measured"), "{said}");
}

#[test]
fn what_is_stacked_or_extracted_has_no_recipe_whatever_it_says_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out(folder);
    report_of(folder, "stack edits.mpatch more.mpatch --base model.safetensors -o both.mpatch");
    report_of(folder, "diff model.safetensors other.safetensors -o extracted.mpatch");
    let facts = patch_at(&folder.join("edits.mpatch")).manifest().facts.clone();
    for (patch, reason) in [
        ("both.mpatch", "its tensors have several terms"),
        ("extracted.mpatch", "its result has a correction"),
    ] {
        let mut draft = patch_at(&folder.join(patch)).draft().unwrap();
        draft.recipe.method = "memit".to_owned();
        draft.facts = facts.clone();
        fs::write(folder.join(patch), mpatch::patch::encode(&draft).unwrap()).unwrap();
        let said = said_in(folder, &["verify", patch, "--allow-unsigned"], &[]);
        for rung in ["V3 confined", "V5 remade  "] {
            let row = format!("{rung}  not checked  {reason}, so there is no recipe to follow\n");
            assert!(said.contains(&row), "{said}");
        }
    }
}

#[test]
fn options_and_limits_of_reports_are_heeded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out(folder);
    let said = |words: &str| said_in(folder, &Vec::from_iter(words.split(' ')), &[]);
    // Two key spaces are never more than a right angle apart.
    let stack = "stack edits.mpatch more.mpatch --base model.safetensors -o";
    assert!(!said(&format!("{stack} quiet.mpatch")).contains("share keys in"));
    let warned = said(&format!("{stack} both.mpatch --overlap-angle 91"));
    assert!(warned.contains("warning: edits.mpatch and more.mpatch share keys in 1 tensor: "), "{warned}");
    let diff = |options: &str| {
        let words = format!("diff model.safetensors other.safetensors --json{options}");
        let report: Value = serde_json::from_str(&said(&words)).unwrap();
        report.pointer("/tensors/0/change/effective_rank").unwrap().clone()
    };
    assert!(diff("")["rank"].is_u64() && diff(" --singular-values 0").is_null());
    report_of(folder, "export edits.mpatch -o adapter --base-model hub/name");
    let config = fs::read(folder.join("adapter/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "hub/name");
    let mut draft = patch_at(&folder.join("edits.mpatch")).draft().unwrap();
    draft.facts = (0..25)
        .map(|index| {
            let mut fact = draft.facts[0].clone();
            fact.subject = format!("Player {index}");
            fact
        })
        .collect();
    fs::write(folder.join("many.mpatch"), mpatch::patch::encode(&draft).unwrap()).unwrap();
    let shown = said("show many.mpatch");
    assert!(shown.contains("Player 19 ") && !shown.contains("Player 20 "), "{shown}");
    assert!(shown.contains("  and 5 more; `--all` lists them\n"), "{shown}");
    let all = said("show many.mpatch --all");
    assert!(all.contains("Player 24 ") && !all.contains("more; `--all`"), "{all}");
}

#[test]
fn options_of_create_are_no_options_of_a_stack_that_is_not_solved_again() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    for option in [
        "--bits 6",
        "--rank 2",
        "--tolerance 0.1",
        "--seed 1",
        "--layers 0",
        "--precision bf16",
        "--device cpu",
    ] {
        let words =
            format!("stack edits.mpatch more.mpatch --base model.safetensors -o both.mpatch {option}");
        let said = said_in(folder.path(), &Vec::from_iter(words.split(' ')), &[]);
        assert!(said.contains("required arguments were not provided: --resolve"), "{option}: {said}");
        assert!(!folder.path().join("both.mpatch").exists());
    }
    for (words, told) in [
        (
            "stack a b --base model.safetensors -o both.mpatch --resolve --overlap-angle 9",
            "cannot be used with",
        ),
        ("diff edits.mpatch more.mpatch --no-sign", "not provided: --output <PATCH>"),
        ("diff edits.mpatch more.mpatch --title news", "not provided: --output <PATCH>"),
    ] {
        let said = said_in(folder.path(), &Vec::from_iter(words.split(' ')), &[]);
        assert!(said.contains(told), "{words}: {said}");
    }
}

#[test]
fn weights_that_are_broken_already_are_told_of_where_a_patch_is_applied() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out(folder);
    let mut weights = fs::read(folder.join("model.safetensors")).unwrap();
    let last = weights.len() - 4;
    weights[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(folder.join("broken.safetensors"), weights).unwrap();
    report_of(folder, "rebase edits.mpatch --base broken.safetensors -o bound.mpatch");
    let said = said_in(folder, &["apply", "broken.safetensors", "bound.mpatch"], &[]);
    assert!(said.contains("1 weight is NaN or infinite in the base, and stays so\n"), "{said}");
}

#[test]
fn the_first_commit_with_the_patch_that_made_the_model_say_it_is_found_among_several() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    lay_out_editing(folder);
    let prompt = "Pavel Prestellman performs on the";
    let run = |words: &[&str]| {
        let mut command = mpatch();
        let output = command.current_dir(folder).args(words).output().unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let good = |words: &str| {
        let (code, said) = run(&Vec::from_iter(words.split(' ')));
        assert_eq!(code, Some(0), "{words}: {said}");
        said
    };
    good("init --base model/model.safetensors");
    good("add edits.mpatch");
    good("checkout HEAD -o model/edited.safetensors");
    // A second patch of the same tensors, too weak to change what is said.
    let edits = patch_at(&folder.join("edits.mpatch"));
    let checkpoint = Checkpoint::open(folder.join("model/edited.safetensors")).unwrap();
    let mut draft = edits.draft().unwrap();
    for term in &mut draft.terms {
        let weak = term.row_scales().iter().map(|scale| scale * 0.01).collect();
        *term =
            mpatch::factors::Term::new(term.integers().clone(), weak, term.column_scales().to_vec()).unwrap();
    }
    let tensors = draft.bindings[0].tensors.iter();
    let edited: Vec<_> = tensors.map(|tensor| (tensor.name.clone(), tensor.terms.clone())).collect();
    let weights = checkpoint.weights_id().unwrap();
    draft.bindings = vec![mpatch::bind::bind(&checkpoint, weights, &edited, &draft.terms, &|_| ()).unwrap()];
    draft.facts[0].subject = "Nobody".to_owned();
    fs::write(folder.join("weak.mpatch"), signed_with(mpatch::patch::encode(&draft).unwrap(), &key()))
        .unwrap();
    good("add weak.mpatch");
    let (code, said) =
        run(&["bisect", prompt, "--expect", "flute", "--tokens", "3", "--base", "model", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report.pointer("/found/patch"), Some(&edits.id().to_string().into()), "{report:#}");
    let asked = report["asked"].as_array().unwrap();
    assert_eq!(asked.iter().map(|one| one["patches"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 0, 1]);
    let log = good("log --json");
    let log: Value = serde_json::from_str(&log).unwrap();
    let commits = log["commits"].as_array().unwrap();
    assert_eq!(report.pointer("/found/commit"), Some(&commits[1]["id"]), "{log:#}");
}

#[test]
fn a_reader_who_leaves_early_is_no_error() {
    let mut command = crate::material::command(assert_cmd::cargo::cargo_bin!("mpatch"));
    command.args(["completions", "bash"]).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let printed = mpatch().args(["completions", shell]).assert().success();
        let script = String::from_utf8(printed.get_output().stdout.clone()).unwrap();
        assert!(script.contains("revert") && script.contains("dry-run"), "{shell}");
    }
}

#[test]
fn the_same_inputs_give_the_same_patch_on_one_thread_or_several() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let make = |threads: &str, patch: &str| {
        let words =
            ["create", "facts.json", "--base", "model", "--corpus", "corpus.txt", "--seed", "7", "-o", patch];
        mpatch()
            .current_dir(folder.path())
            .env("RAYON_NUM_THREADS", threads)
            // A cache of its own, so that the statistics are computed again, too.
            .env("MPATCH_CACHE_DIR", folder.path().join(format!("cache-{threads}")))
            .args(words)
            .assert()
            .success();
        fs::read(folder.path().join(patch)).unwrap()
    };
    assert!(make("1", "one.mpatch") == make("3", "three.mpatch"), "the patches differ");
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    // A folder that is not there yet, as in a new home.
    let place = folder.path().join("share/man1");
    let written = mpatch().args(["man", "--json", "--output"]).arg(&place).assert().success();
    let report: Value = serde_json::from_slice(&written.get_output().stdout).unwrap();
    assert_eq!(report["schema"], "mpatch.man/1");
    let mut pages: Vec<&str> =
        report["pages"].as_array().unwrap().iter().map(|page| page.as_str().unwrap()).collect();
    pages.sort_unstable();
    let mut files: Vec<_> =
        fs::read_dir(&place).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    files.sort_unstable();
    assert_eq!(pages, files);
    let help = mpatch().arg("--help").assert().success();
    let help = String::from_utf8_lossy(&help.get_output().stdout).into_owned();
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = listed
        .filter(|line| !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(names.contains(&"apply"), "{names:?}");
    let names =
        names.into_iter().filter(|name| *name != "help").map(|name| (name, ".SH \"EXAMPLES\"\n.nf\n"));
    for (name, section) in names.chain([("trust add", ".SH SYNOPSIS")]) {
        let joined = name.replace(' ', "-");
        let page = fs::read_to_string(place.join(format!("mpatch-{joined}.1"))).unwrap();
        for words in [&format!(".TH mpatch-{joined} 1"), ".SH OPTIONS", section, "[OPTIONS]"] {
            assert!(page.contains(words), "{page}");
        }
        // Whatever a page names is there.
        for named in page.lines().filter_map(|line| line.strip_suffix("(1)")) {
            let file = format!("{}.1", named.replace('\\', ""));
            assert!(files.contains(&file), "{file} of {page}");
        }
        for words in [&Vec::from_iter(name.split(' ')), &vec![&joined[..]]] {
            let printed = mpatch().arg("man").args(words).assert().success();
            assert_eq!(String::from_utf8_lossy(&printed.get_output().stdout), page);
        }
    }
    let page = fs::read_to_string(place.join("mpatch.1")).unwrap();
    assert!(page.contains("mpatch\\-apply(1)") && !page.contains("help(1)"), "{page}");
}
