//! Commands on a history whose system calls are refused, one after the other.

use std::fs;

use super::kills::system_calls_with;
use super::{Bench, Contents, stderr};
use crate::material::lay_out_signers;
use crate::{tamper, tell, variable};

/// Calls that change something on the disk, or wait for it.
const CALLS: [&str; 10] =
    ["fdatasync", "fsync", "ftruncate", "link", "linkat", "mkdir", "rename", "renameat2", "unlink", "write"];

#[test]
fn a_history_refused_at_any_system_call_is_as_the_command_says() {
    needs_strace!();
    let stride = variable("MPATCH_KILL_STRIDE", 7);
    for words in ["add edits.mpatch", "tag v1", "undo"] {
        let bench = Bench::new();
        bench.succeeds("init --base model.safetensors");
        if words != "add edits.mpatch" {
            bench.succeeds("add edits.mpatch");
        }
        let (before, log_before) = (bench.contents(), bench.succeeds("log"));
        // A history has its one thread, and git, which is asked who is at work, is left alone.
        let mut calls = system_calls_with(&bench, words, &[]);
        calls.retain(|(name, _)| CALLS.contains(&name.as_str()));
        let logs = [log_before, bench.succeeds("log")];
        assert!(logs[0] != logs[1]);
        let mut refused = 0;
        for (name, number) in calls.iter().step_by(stride) {
            // libgit2 writes an object a second time where the first one is refused.
            let twice = format!("{number}..{}", number + 1);
            for fault in [format!("EIO:when={number}"), format!("ENOSPC:when={twice}")] {
                bench.restore(&before);
                let injection = format!("{name}:error={fault}");
                refused += usize::from(refuse(&bench, &injection, words, &logs));
            }
        }
        tell(&format!("{words}: {} calls, refused {refused} times with an error", calls.len()));
        assert!(refused > 0, "{words} was hardly refused");
    }
}

/// Files and their bytes but for locks, which may stay.
fn settled(bench: &Bench) -> Contents {
    let mut contents = bench.contents();
    contents.retain(|path, _| !path.to_string_lossy().ends_with(".lock"));
    contents
}

#[test]
fn a_command_whose_files_or_folders_are_not_synced_says_what_it_left() {
    needs_strace!();
    for (words, has_key) in [
        ("init --base model.safetensors", true),
        ("clone history copy", true),
        ("sign unsigned.mpatch", true),
        ("sign unsigned.mpatch -o new.mpatch", false),
        ("trust add second.pub --principal second@example.org", true),
        ("trust add second.pub --principal second@example.org --project", true),
        ("trust remove maker@example.org", true),
        ("trust revoke maker@example.org", true),
        ("fsck --repair copy", true),
    ] {
        let bench = Bench::new();
        lay_out_signers(bench.folder.path());
        if words.starts_with("clone") {
            bench.succeeds("init history --base model.safetensors");
        }
        if words.starts_with("fsck") {
            bench.succeeds("init --base model.safetensors");
            bench.succeeds("clone . copy");
            fs::create_dir_all(bench.path(".git/objects/ab")).unwrap();
            fs::create_dir(bench.path(".git/damaged")).unwrap();
            fs::write(bench.path(".git/objects/ab").join("ab".repeat(19)), "").unwrap();
        }
        if !has_key {
            fs::remove_dir_all(bench.path("config")).unwrap();
        }
        let before = settled(&bench);
        let mut refused = 0;
        loop {
            let output = tamper(&bench, &format!("fsync:error=EIO:when={}", refused + 1), words);
            if output.status.success() {
                break;
            }
            refused += 1;
            let said = stderr(&output);
            let place = format!("{words}, number {refused}: {said}");
            assert_eq!(output.status.code(), Some(11), "{place}");
            let is_unchanged = settled(&bench) == before;
            if said.ends_with("state: unchanged\n") {
                // A new key has its own word.
                assert!(is_unchanged || said.contains("the key `config/key` was made"), "{place}");
            } else {
                assert!(said.ends_with("state: applied\n") && !is_unchanged, "{place}");
            }
            assert!(!said.contains("nothing was changed"), "{place}");
            bench.restore(&before);
        }
        assert!(refused > 0, "{words} was not refused");
    }
}

/// Runs a command with a refusal, and holds what is left to what it says; `logs` are those before it and after it.
/// Tells whether it failed.
fn refuse(bench: &Bench, injection: &str, words: &str, logs: &[String; 2]) -> bool {
    let tracing = ["strace", "-qq", "-o", "/dev/null", &format!("--inject={injection}")];
    let output = bench.command(&tracing, words).output().unwrap();
    let (code, said) = (output.status.code(), stderr(&output));
    let place = format!("{words}, {injection}, {code:?}: {said}");
    assert!(matches!(code, Some(0 | 9 | 11)), "{place}");
    let log = bench.succeeds("log");
    let state = said.lines().last().and_then(|line| line.strip_prefix("state: "));
    match (code, state) {
        (Some(0), _) | (_, Some("applied")) => assert!(log == logs[1], "{place}\n{log}"),
        (_, Some("unchanged")) => assert!(log == logs[0], "{place}\n{log}"),
        // Where telling of it was refused, either may be so.
        (_, Some("recovery pending") | None) => assert!(logs.contains(&log), "{place}\n{log}"),
        (_, Some(_)) => panic!("{place}"),
    }
    bench.succeeds("fsck");
    let main = || fs::read_to_string(bench.path(".git/refs/heads/main")).unwrap();
    let left = main();
    // What comes next does its own work, and not this one's.
    let next = bench.run("tag next");
    if next.status.code() == Some(10) && injection.starts_with("unlink") {
        // A lock of git's that could not be removed: it is for its user to do, who is told so.
        let said = stderr(&next);
        fs::remove_file(said.split('`').find(|word| word.ends_with(".lock")).unwrap()).unwrap();
        bench.succeeds("tag next");
    } else {
        assert!(next.status.success(), "{place}, then: {}", stderr(&next));
    }
    assert!(main() == left || state == Some("recovery pending"), "{place}");
    code != Some(0)
}
