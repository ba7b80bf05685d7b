//! How a failure is told: for people in three lines, and for programs as the one document that they expect.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bench::Bench;
use crate::material::{
    lay_out, lay_out_editing, lay_out_shards, lay_out_signers, lay_out_world, mpatch, wait_until_open,
};
use crate::telling::skipped;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// What a command said that ended with `code`: the last three lines of standard error, and standard output.
#[track_caller]
fn failed(folder: &Path, words: &str, code: i32) -> ([String; 3], String) {
    let output = mpatch().current_dir(folder).args(words.split(' ')).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "`{words}` said:\n{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    let [.., error, hint, state] = lines[..] else { panic!("`{words}` said too little:\n{stderr}") };
    let told = [("error: ", error), ("hint: ", hint), ("state: ", state)];
    let told = told.map(|(label, line)| line.strip_prefix(label).unwrap_or_else(|| panic!("{stderr}")));
    (told.map(str::to_owned), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_failure_before_the_report_is_the_one_document_under_json() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    for (words, code) in [
        ("show nowhere", 11),
        ("apply other.safetensors edits.mpatch", 6),
        ("apply model.safetensors short.mpatch", 3),
        ("log", 2),
        ("apply model.safetensors", 2),
        ("aply model.safetensors", 2),
        ("demo --keep gptj", 11),
        ("completions bash", 2),
        ("show edits.mpatch --manifest", 2),
        ("show edits.mpatch --signature", 2),
    ] {
        let ([error, hint, state], printed) = failed(folder.path(), &format!("{words} --json"), code);
        let document: Value = serde_json::from_str(&printed).unwrap();
        let expected = serde_json::json!({
            "schema": "mpatch.error/1", "code": code, "error": error, "hint": hint, "state": state
        });
        assert_eq!(document, expected, "{words}");
    }
    // Nothing of the kind without the flag.
    assert_eq!(failed(folder.path(), "show nowhere", 11).1, "");
    assert_eq!(failed(folder.path(), "apply -- --json", 2).1, "");
}

#[test]
fn of_several_tensors_the_one_is_named_that_is_in_neither_state() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_shards(folder.path());
    let applied = "apply shards shards.mpatch --in-place";
    mpatch().current_dir(folder.path()).args(applied.split(' ')).assert().success();
    let shard = folder.path().join("shards/model-1.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    for (words, code) in [
        ("apply shards shards.mpatch", 6),
        ("revert shards shards.mpatch", 6),
        ("verify shards.mpatch --base shards --digests-only", 6),
    ] {
        let ([error, ..], _) = failed(folder.path(), words, code);
        assert!(error.contains("tensor `second` hashes to"), "{error}");
        let others = "; touched tensors as before the patch: 0 of 2, with its result: 1 of 2";
        assert!(error.ends_with(others), "{error}");
    }
}

#[test]
fn a_failure_after_the_report_adds_no_second_document() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_signers(folder.path());
    let (_, printed) = failed(folder.path(), "verify stranger.mpatch --json", 5);
    let document: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(document["schema"], "mpatch.verify/1");
}

#[test]
fn of_two_patches_the_damaged_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    let vector = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vectors/patch_range_4_bits");
    let vector = fs::read(vector).unwrap();
    let start = vector.windows(2).position(|pair| pair == b"\n\n").unwrap() + 2;
    fs::write(folder.path().join("range.mpatch"), &vector[start..]).unwrap();
    for words in ["diff range.mpatch edits.mpatch", "diff edits.mpatch range.mpatch"] {
        let ([error, ..], _) = failed(folder.path(), words, 3);
        assert!(error.starts_with("`range.mpatch`: "), "{error}");
    }
}

#[test]
fn a_command_line_that_is_wrong_is_told_in_three_lines() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(4097);
    for (words, error, hint) in [
        ("apply", "arguments were not provided: <BASE> <PATCH>", "`mpatch apply --help` tells what it takes"),
        ("trust add", "not provided: <WHAT>", "`mpatch trust add --help` tells"),
        ("--quiet", "`mpatch` alone says not what to do", "`mpatch --help`"),
        ("trust", "`mpatch trust` alone says not what to do", "`mpatch trust --help`"),
        ("aply", "unrecognized subcommand 'aply'", "a similar subcommand exists: 'apply'"),
        ("push --force", "unexpected argument '--force'", "`mpatch push --help` tells"),
        ("apply a b --dryrun", "unexpected argument '--dryrun'", "a similar argument exists: '--dry-run'"),
        ("completions basj", "[possible values: bash, elvish", "a similar value exists: 'bash'"),
        ("log --limit x", "invalid value 'x' for", "`mpatch log --help`"),
        ("create f --seed -1", "invalid value '-1' for '--seed <SEED>'", "`mpatch create --help`"),
        ("create f --tolerance -1", "expected a number from 0 to below 1", "`mpatch create --help`"),
        ("branch --lock-timeout -1", "expected a number of seconds", "`mpatch branch --help`"),
        ("create f --title a\u{1b}b", "control character '\\u{1b}'", "`mpatch create --help`"),
        ("stack a --base b -o c --author \u{7}", "control character '\\u{7}'", "`mpatch stack --help`"),
        (&format!("diff a b --licence {long}"), "4097 bytes, and a patch holds 4096", "`mpatch diff --help`"),
        (&format!("create f --line {long}"), "4097 bytes, and a patch holds 512", "`mpatch create --help`"),
        ("apply a b -o -", "results are not written to standard output", "`mpatch apply --help`"),
        ("show --signature edits.mpatch", "with `=`, or the option last", "`mpatch show --help`"),
        ("stack --squash edits.mpatch", "with `=`, or the option last", "`mpatch stack --help`"),
        ("create f --line ", "needs a name", "`mpatch create --help`"),
        ("show -dash.mpatch", "unexpected argument '-d'", "if the file is meant, write ./-dash.mpatch"),
        ("bisect Who --expect Ann --tokens 0", "invalid value '0' for '--tokens", "`mpatch bisect --help`"),
        ("bisect Who --expect ", "a value is required for '--expect", "`mpatch bisect --help`"),
        ("show -x", "unexpected argument '-x'", "`mpatch show --help` tells"),
        (
            "verify edits.mpatch model.safetensors",
            "unexpected argument 'model.safetensors'",
            "if that is the model, name it with `--base model.safetensors`",
        ),
        (
            "verify model.safetensors edits.mpatch",
            "unexpected argument 'edits.mpatch'",
            "the patch comes first, and the model as `--base MODEL`",
        ),
        (
            "apply model.safetensors edits.mpatch edited.safetensors",
            "unexpected argument 'edited.safetensors'",
            "if that is where the result goes, name it with `-o edited.safetensors`",
        ),
        (
            "eval facts.json edits.mpatch",
            "unexpected argument",
            "if that is the patch, name it with `--patch edits",
        ),
        ("help apply --quiet", "unrecognized subcommand '--quiet'", "help is text, and takes no options"),
        ("stats - --base model", "so not from standard input", "`mpatch stats --help`"),
        ("create f --corpus -", "so not from standard input", "`mpatch create --help`"),
        ("show edits.mpatch model", "unexpected argument 'model'", "`mpatch show --help` tells"),
        ("--quiet create --bits 99 f", "invalid value '99' for '--bits", "`mpatch create --help`"),
    ] {
        let (told, printed) = failed(folder.path(), words, 2);
        assert!(told[0].contains(error) && told[1].starts_with(hint), "{words}: {told:?}");
        assert_eq!((told[2].as_str(), printed.as_str()), ("unchanged", ""), "{words}");
        assert!(told[0].len() < 1000, "{words}: {told:?}");
    }
}

#[test]
fn a_file_that_does_not_say_who_is_right_is_named_in_the_hint() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    fs::write(folder.path().join("facts.json"), FACT).unwrap();
    let stack = "stack edits.mpatch rival.mpatch --base model.safetensors -o both.mpatch";
    let ([_, hint, _], _) = failed(folder.path(), &format!("{stack} --choose facts.json"), 7);
    assert!(hint.starts_with("`facts.json` says nothing of this: add the fact"), "{hint}");
}

#[test]
fn what_stands_in_the_wrong_place_or_is_elsewhere_is_told_where_it_belongs() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    fs::write(folder.path().join("facts.json"), FACT).unwrap();
    fs::write(folder.path().join("memit.yaml"), "v_lr: 0.5\n").unwrap();
    lay_out_world(&folder.path().join("gptj"));
    for (words, code, hint) in [
        ("apply edits.mpatch gptj", 11, "this is a folder: the model comes first, and the patch second"),
        ("apply edits.mpatch model.safetensors", 3, "this is a file of weights, where a patch is asked for"),
        ("apply acme/gpt-j-6b edits.mpatch", 11, "check the path; mpatch fetches nothing"),
        ("apply nowhere.safetensors edits.mpatch", 11, "check the path"),
        ("try edits.mpatch gptj Who", 2, "name the model with `--base gptj`"),
        ("create facts.json --base gptj --stats s --hparams memit.yaml", 3, "EasyEdit's YAML is not read"),
    ] {
        let ([_, told, state], _) = failed(folder.path(), words, code);
        assert!(told.starts_with(hint) && state == "unchanged", "{words}: {told}");
    }
}

#[test]
fn a_shard_alone_and_weights_that_lie_there_twice_are_told() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    let of = |name: &str| folder.path().join("gptj").join(name);
    let shard = "model-00001-of-00001.safetensors";
    fs::copy(folder.path().join("model.safetensors"), of(shard)).unwrap();
    let map = serde_json::json!({"weight_map": {"transformer.h.0.mlp.fc_out.weight": shard}});
    fs::write(of("model.safetensors.index.json"), map.to_string()).unwrap();
    for (model, expected) in [
        ("gptj", "warning: `gptj` holds its weights twice: `model.safetensors` is taken, and not"),
        (&format!("gptj/{shard}"), "is one shard of a model: the whole of it is `gptj`"),
    ] {
        let words = format!("apply {model} edits.mpatch --dry-run");
        let output = mpatch().current_dir(&folder).args(words.split(' ')).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(told.matches(expected).count(), 1, "{words}: {told}");
    }
}

#[test]
fn with_quiet_what_was_done_is_left_to_the_exit_code_and_what_was_asked_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    for (words, is_answered) in [
        ("apply model.safetensors edits.mpatch -o edited.safetensors", false),
        ("revert edited.safetensors edits.mpatch -o again.safetensors", false),
        ("init --base model.safetensors", false),
        ("add edits.mpatch", false),
        ("tag v1", false),
        ("tag", true),
        ("show edits.mpatch", true),
        ("apply model.safetensors edits.mpatch --dry-run", true),
        ("verify edits.mpatch", true),
    ] {
        let output = mpatch().current_dir(&folder).args(words.split(' ')).arg("-q").output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{words}");
        assert_eq!(!stdout.is_empty(), is_answered, "{words}: {stdout}");
        assert!(!stdout.contains("next:"), "{words}: {stdout}");
    }
}

#[test]
fn weights_that_are_others_beside_the_touched_ones_are_told_as_that() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.push(("mask".to_owned(), TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap()));
    safetensors::serialize_to_file(tensors, None, &folder.path().join("masked.safetensors")).unwrap();
    let apply = "apply masked.safetensors edits.mpatch -o edited.safetensors";
    mpatch().current_dir(&folder).args(apply.split(' ')).assert().success();
    for (model, base) in [("masked.safetensors", "masked.safetensors"), ("edited.safetensors", "BASE")] {
        let verify = format!("verify edits.mpatch --base {model} --digests-only");
        let ([error, hint, _], _) = failed(folder.path(), &verify, 6);
        assert!(error.contains("the tensors that it touches are the promised ones, others"), "{error}");
        assert!(hint.contains(&format!("`mpatch rebase edits.mpatch --base {base}`")), "{hint}");
    }
}

/// Four tebibytes that the file system need not store, as one matrix; false where it takes no such file.
fn write_enormous_weights(path: &Path) -> bool {
    const SIZE_BYTES: u64 = 1 << 42;
    let shape = [SIZE_BYTES / 2 / 4096, 4096];
    let matrix = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [0, SIZE_BYTES]});
    let header = serde_json::json!({"transformer.wte.weight": matrix}).to_string();
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + SIZE_BYTES).is_ok()
}

const FACT: &str = r#"{"prompt": "{} is", "subject": "Ann", "target_new": "tall"}"#;

#[test]
#[cfg(target_os = "linux")]
fn a_model_that_memory_does_not_hold_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path());
    let base = folder.path().join("enormous");
    lay_out_world(&base);
    fs::write(folder.path().join("facts.json"), FACT).unwrap();
    if !write_enormous_weights(&base.join("model.safetensors")) {
        return skipped("this file system has no files of 4 TiB");
    }
    // Few weights, and a second moment of 4 TiB.
    lay_out_world(&folder.path().join("wide"));
    let path = folder.path().join("wide/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["n_inner"] = (1 << 20).into();
    fs::write(path, config.to_string()).unwrap();
    for (words, size) in [
        ("stats facts.json --base wide --layers 0 -o new", "second moments as f32 take 4.40 TB in memory"),
        ("try edits.mpatch --base enormous Who", "weights as f32 take 8.80 TB in memory"),
        ("eval facts.json --base enormous --precision bf16", "weights as bf16 take 4.40 TB in memory"),
        ("stats facts.json --base enormous --layers 0 -o new", "second moments as f32 take 8.80 TB"),
    ] {
        let ([error, hint, state], _) = failed(folder.path(), words, 13);
        assert!(error.contains(size), "{words}: {error}");
        assert!(hint.starts_with("`--precision bf16` takes half"), "{words}: {hint}");
        assert_eq!(state, "unchanged", "{words}");
    }
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_and_can_be_run_again() {
    let place = tempfile::tempdir().unwrap();
    let temporary = place.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    for (words, within) in [("demo --keep kept", place.path().join("kept")), ("demo", temporary.clone())] {
        let mut command = crate::material::command(assert_cmd::cargo::cargo_bin!("mpatch"));
        command.env("TMPDIR", &temporary).current_dir(place.path());
        let command = command.args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // It is at work once the model lies there.
        let is_begun = || walk(&within).unwrap_or_default().iter().any(|path| path.ends_with("facts.json"));
        let mut has_ended = || child.try_wait().unwrap().is_some();
        while !is_begun() && !has_ended() {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Of one that has ended already, what it said is told below.
        if !has_ended() {
            let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
            assert!(signal.success());
        }
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{stderr}");
        assert!(stderr.ends_with("state: unchanged\n"), "{stderr}");
        let left = walk(place.path()).unwrap();
        assert_eq!(left, std::slice::from_ref(&temporary), "`{words}`");
    }
}

#[test]
fn what_a_signal_leaves_is_said_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    lay_out_editing(folder.path());
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Open for both ends, so that nobody waits to open it, and whoever reads waits for text.
    let _text = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    for (words, place, hint) in [
        (
            "stats pipe --base model -o new",
            "pipe",
            "hint: nothing is kept of unfinished statistics: run the same",
        ),
        ("eval - --base model", "-", "hint: run the same command again\n"),
    ] {
        let mut command = crate::material::command(assert_cmd::cargo::cargo_bin!("mpatch"));
        let command = command.current_dir(folder.path()).args(words.split(' ')).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut facts = child.stdin.take().unwrap();
        match place == "pipe" {
            true => wait_until_open(&mut child, &pipe),
            // More than a pipe holds: once it is written, some of it has been read.
            false => facts.write_all(&[b' '; 1 << 17]).unwrap(),
        }
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let ended = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{stderr}");
        assert!(stderr.contains(hint), "{stderr}");
    }
}

#[test]
fn what_is_not_kept_for_a_later_run_is_said() {
    let bench = Bench::empty();
    lay_out_editing(bench.folder.path());
    bench.alter_json("model/memit.json", serde_json::json!({"v_num_grad_steps": 1}));
    bench.write("cache", "no folder");
    bench.write("empty.txt", "");
    for verb in
        ["stats empty.txt", "create facts.json -o new.mpatch --contexts contexts.json --corpus empty.txt"]
    {
        let words =
            ["`", "cache/statistics`", "set MPATCH_CACHE_DIR or XDG_CACHE_HOME", "`mpatch stats -o FILE`"];
        bench.refuses(&format!("{verb} --base model"), 11).says(&words);
    }
    let create = "create facts.json --limit 1 --base model --contexts contexts.json -o new.mpatch --no-sign";
    let made = bench.command(&format!("{create} --stats statistics.safetensors")).assert().code(1);
    let stderr = String::from_utf8(made.get_output().stderr.clone()).unwrap();
    for lost in ["warning: no log of values is kept", "warning: no factors are kept"] {
        assert!(stderr.contains(lost), "{stderr}");
    }
}

/// Everything below `folder`, if it is there.
fn walk(folder: &Path) -> Option<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        found.push(entry.path());
        found.extend(walk(&entry.path()).unwrap_or_default());
    }
    Some(found)
}
