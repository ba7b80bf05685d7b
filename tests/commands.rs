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

use material::{SETTINGS, key, lay_out, lay_out_editing, lay_out_signers, mpatch};

/// The demo is the longest command, and machines that run tests may be busy.
const TIMEOUT: Duration = Duration::from_secs(600);

#[test]
fn transcripts() {
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

#[test]
fn a_reader_who_leaves_early_is_no_error() {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("mpatch"));
    command.envs(SETTINGS).args(["completions", "bash"]).stdout(std::process::Stdio::piped());
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
    mpatch().args(["man", "--output"]).arg(folder.path()).assert().success();
    let help = mpatch().arg("--help").assert().success();
    let help = String::from_utf8_lossy(&help.get_output().stdout).into_owned();
    let listed =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: Vec<&str> = listed
        .filter(|line| !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(names.contains(&"apply"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        let page = fs::read_to_string(folder.path().join(format!("mpatch-{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH mpatch-{name} 1")) && page.contains(".SH OPTIONS"), "{page}");
        let printed = mpatch().args(["man", name]).assert().success();
        assert_eq!(String::from_utf8_lossy(&printed.get_output().stdout), page);
    }
}
