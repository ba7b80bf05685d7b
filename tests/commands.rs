//! The words that a user reads: each transcript in `tests/commands/` is run, and its output compared.
//!
//! Every transcript runs in a folder of its own, with the tiny weights of [`lay_out`] in it, or the embedded model of
//! [`lay_out_editing`]. After a change that is meant, `TRYCMD=overwrite cargo test --test commands` writes the
//! transcripts anew.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod material;

use std::fs;
use std::path::Path;
use std::time::Duration;

use material::{
    SETTINGS, alter_weights, key, lay_out, lay_out_editing, lay_out_signers, mpatch, signed_with,
    variables_of_git,
};
use mpatch::patch::Patch;
use mpatch::sign::PrivateKey;
use serde_json::{Value, json};

/// The demo is the longest command, and machines that run tests may be busy.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs a test of this file anew without what its caller tells git, if he does.
fn is_run_without_variables_of_git(test: &str) -> bool {
    if variables_of_git().next().is_none() {
        return false;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    variables_of_git().for_each(|name| {
        again.env_remove(name);
    });
    assert!(again.args([test, "--exact"]).status().unwrap().success());
    true
}

#[test]
fn transcripts() {
    // Its commands have all variables of this process.
    if is_run_without_variables_of_git("transcripts") {
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
    cases.env("MPATCH_CACHE_DIR", "cache").timeout(TIMEOUT).case(folder.join("*.md"));
    // Histories are made by somebody, at some time.
    cases.env("GIT_COMMITTER_NAME", "Ada").env("GIT_COMMITTER_EMAIL", "ada@example.org");
    cases.env("GIT_COMMITTER_DATE", "1764028800 +0000");
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
fn said_in(folder: &Path, words: &[&str], input: &[u8]) -> String {
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

#[test]
fn a_reader_who_leaves_early_is_no_error() {
    let mut command = material::command(assert_cmd::cargo::cargo_bin!("mpatch"));
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
