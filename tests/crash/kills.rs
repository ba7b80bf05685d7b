//! Commands are killed at every system call, and at any time.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mpatch::checkpoint::recover;

use super::{Bench, stderr};
use crate::drafts::Numbers;
use crate::material::{self, key, signed_with};
use crate::place::{Place, weights};
use crate::{tamper, tell, variable};

/// What is killed, and what may be there after the next command.
struct Killed {
    words: &'static str,
    /// Comes next; it repairs, and may itself be refused since the work is done.
    next: &'static str,
}

const KILLED: [Killed; 7] = [
    Killed {
        words: "apply model.safetensors edits.mpatch -o new",
        next: "apply model.safetensors edits.mpatch -o new",
    },
    Killed { words: "apply shards shards.mpatch -o new", next: "apply shards shards.mpatch -o new" },
    Killed {
        words: "apply shards shards.mpatch --in-place",
        next: "verify shards.mpatch --base shards --digests-only",
    },
    Killed {
        words: "apply model.safetensors edits.mpatch --in-place",
        next: "verify edits.mpatch --base model.safetensors --digests-only",
    },
    Killed {
        words: "revert shards shards.mpatch --in-place",
        next: "verify shards.mpatch --base shards --digests-only",
    },
    Killed { words: "sign unsigned.mpatch", next: "sign unsigned.mpatch" },
    Killed { words: TRUST_ADD, next: TRUST_ADD },
];

const TRUST_ADD: &str = "trust add edits.mpatch --principal editor@example.org --yes";

#[test]
fn a_command_killed_at_any_system_call_leaves_one_of_two_states() {
    needs_strace!();
    let stride = variable("MPATCH_KILL_STRIDE", 29);
    for Killed { words, next } in KILLED {
        let bench = Bench::new();
        if words.starts_with("revert") {
            bench.succeeds("apply shards shards.mpatch --in-place");
        }
        let before = bench.contents();
        let calls = system_calls(&bench, words);
        let after = bench.contents();
        let (mut kills, mut done) = (0, 0);
        for (name, number) in calls.iter().step_by(stride) {
            bench.restore(&before);
            let place = format!("{words}, {name} number {number}");
            let output = tamper(&bench, &format!("{name}:signal=KILL:when={number}"), words);
            if output.status.success() {
                // Threads do not always make the same calls.
                assert!(bench.contents() == after, "{place}");
                continue;
            }
            kills += 1;
            let output = bench.run(next);
            let is_done = matches!(output.status.code(), Some(7 | 11)) && next == words;
            let expected = output.status.success() || is_done;
            assert!(expected, "{place}, then: {}", stderr(&output));
            let left = bench.contents();
            assert!(left == before || left == after, "{place}: {:?}", left.keys());
            done += usize::from(left == after);
        }
        let calls = calls.len();
        tell(&format!(
            "{words}: killed at {kills} of {calls} system calls; the work was done in the end after {done}"
        ));
        assert!(kills > calls / stride / 2, "{words} was hardly killed");
    }
}

#[test]
fn a_commit_killed_at_any_system_call_is_there_or_is_not() {
    needs_strace!();
    let stride = variable("MPATCH_KILL_STRIDE", 9);
    kill_commits(&Bench::new(), "add edits.mpatch", stride);
    // A patch that git does not keep itself; it takes longer, for few calls more.
    let stride = variable("MPATCH_KILL_STRIDE", 45);
    let (bench, place, shape) = (Bench::new(), Place::new(), [700, 1_200]);
    fs::write(place.path("model.safetensors"), weights(shape)).unwrap();
    let edits = vec![("b".to_owned(), vec![0])];
    let term = Numbers(3).dense(shape, 14, 0.05);
    let patch = place.bound("model.safetensors", edits, vec![term], "The Colosseum", "Rome");
    assert!(patch.len() > 1 << 20);
    fs::write(bench.path("large.mpatch"), signed_with(patch, &key())).unwrap();
    fs::copy(place.path("model.safetensors"), bench.path("model.safetensors")).unwrap();
    kill_commits(&bench, "add large.mpatch", stride);
}

/// Kills a commit to a new history at its system calls, and holds what is left to the promise.
fn kill_commits(bench: &Bench, words: &str, stride: usize) {
    // A history has its one thread, and git, which is asked who is at work, is not to be killed.
    let traced = |injection: &str| {
        ["strace", "-qq", "-o", "/dev/null", &format!("--inject={injection}")].map(str::to_owned)
    };
    let git = |words: &str| {
        let mut git = material::command("git");
        git.args(words.split(' ')).current_dir(bench.folder.path());
        git.output().unwrap()
    };
    bench.succeeds("init --base model.safetensors");
    let (before, log_before) = (bench.contents(), bench.succeeds("log"));
    let calls = system_calls_with(bench, words, &[]);
    let (after, log_after) = (bench.contents(), bench.succeeds("log"));
    assert!(log_before != log_after && fs::read(bench.path(".git/mpatch.lock")).unwrap().is_empty());
    let (mut kills, mut done, mut locks) = (0, 0, 0);
    for (name, number) in calls.iter().step_by(stride) {
        bench.restore(&before);
        let place = format!("{words}, {name} number {number}");
        let tampering = traced(&format!("{name}:signal=KILL:when={number}"));
        let tampering: Vec<&str> = tampering.iter().map(String::as_str).collect();
        let output = bench.command(&tampering, words).output().unwrap();
        if output.status.success() {
            assert!(bench.contents() == after, "{place}");
            continue;
        }
        kills += 1;
        let is_lock = |path: &&PathBuf| path.to_string_lossy().ends_with(".lock");
        locks +=
            usize::from(bench.contents().keys().any(|path| is_lock(&path) && !before.contains_key(path)));
        // Whoever only looks sees one of two histories, and git finds nothing wrong with it.
        let checked = git("fsck --strict --full --no-dangling");
        let quiet = checked.stdout.is_empty() && checked.stderr.is_empty();
        assert!(checked.status.success() && quiet, "{place}: {}", stderr(&checked));
        let log = bench.succeeds("log");
        assert!(log == log_before || log == log_after, "{place}: {log}");
        done += usize::from(log == log_after);
        // The same command, with no flag: it does the work, or says that it is done.
        let output = bench.run(words);
        let said = stderr(&output);
        match output.status.code() {
            Some(0) => assert!(log == log_before, "{place}: recorded twice"),
            Some(7) => assert!(said.contains("is in this state already"), "{place}: {said}"),
            code => panic!("{place}, then {code:?}: {said}"),
        }
        let left = bench.contents();
        assert!(left == after, "{place}: {:?}", left.keys());
    }
    let calls = calls.len();
    tell(&format!(
        "{words}: killed at {kills} of {calls} system calls, {locks} times with a lock of git's in place; \
         recorded before the next command after {done}"
    ));
    assert!(kills > calls / stride / 2, "{words} was hardly killed");
}

#[test]
fn what_an_init_killed_at_any_system_call_leaves_the_next_one_takes_away() {
    needs_strace!();
    let (bench, words) = (Bench::new(), "init --base model.safetensors");
    let before = bench.contents();
    let calls = system_calls_with(&bench, words, &[]);
    bench.restore(&before);
    let mut litter = 0;
    for (name, number) in calls.iter().step_by(variable("MPATCH_KILL_STRIDE", 29)) {
        let injection = format!("--inject={name}:signal=KILL:when={number}");
        bench.command(&["strace", "-qq", "-o", "/dev/null", &injection], words).output().unwrap();
        let names = || fs::read_dir(bench.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let is_litter = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(".mpatch-tmp-");
        litter += names().filter(is_litter).count();
        let output = bench.run(words);
        assert!(matches!(output.status.code(), Some(0 | 7)), "{name} number {number}: {}", stderr(&output));
        assert_eq!(names().filter(is_litter).count(), 0, "{name} number {number}");
        bench.succeeds("fsck");
        fs::remove_dir_all(bench.path(".git")).unwrap();
    }
    assert!(litter > 0, "init was hardly killed");
}

/// How long the lock may lie untouched for the test to say something: well below what mpatch waits.
const TOUCHED_WITHIN: Duration = Duration::from_secs(1);

#[test]
fn a_lock_that_git_may_hold_is_left_alone() {
    // On a busy machine whoever touches the lock may come too late; such a round tells nothing.
    assert!((0..10).any(|_| touched_lock_is_left_alone()), "the machine is too busy to tell");
}

/// Whether the lock was touched in time, so that what was seen counts.
fn touched_lock_is_left_alone() -> bool {
    let bench = Bench::new();
    bench.succeeds("init --base model.safetensors");
    // Nobody of ours died: whose lock this is, nobody knows.
    let lock = bench.path(".git/refs/heads/main.lock");
    fs::write(&lock, "").unwrap();
    let output = bench.run("add edits.mpatch");
    assert!(!output.status.success() && lock.exists());
    // One of ours did, and somebody is at work on the lock.
    fs::write(bench.path(".git/mpatch.lock"), "at work\n").unwrap();
    let busy = std::sync::atomic::AtomicBool::new(true);
    let (output, untouched) = std::thread::scope(|scope| {
        let toucher = scope.spawn(|| touch_while(&lock, &busy));
        let output = bench.run("add edits.mpatch");
        busy.store(false, std::sync::atomic::Ordering::Relaxed);
        (output, toucher.join().unwrap())
    });
    if untouched > TOUCHED_WITHIN {
        return false;
    }
    assert!(!output.status.success() && lock.exists());
    fs::write(bench.path(".git/mpatch.lock"), "at work\n").unwrap();
    bench.succeeds("tag swept");
    assert!(!lock.exists() && fs::read(bench.path(".git/mpatch.lock")).unwrap().is_empty());
    true
}

/// Touches `lock` for as long as `busy`, or it is there; the longest time that it lay untouched.
fn touch_while(lock: &Path, busy: &std::sync::atomic::AtomicBool) -> Duration {
    let (mut touched, mut longest) = (Instant::now(), Duration::ZERO);
    while busy.load(std::sync::atomic::Ordering::Relaxed) {
        let Ok(mut file) = fs::File::options().append(true).open(lock) else { break };
        file.write_all(b"x").unwrap();
        longest = longest.max(touched.elapsed());
        touched = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
    }
    longest.max(touched.elapsed())
}

/// Every system call that a command makes: its name, and how many of that name its thread has made by then.
fn system_calls(bench: &Bench, words: &str) -> Vec<(String, usize)> {
    system_calls_with(bench, words, &["-f"])
}

pub(super) fn system_calls_with(bench: &Bench, words: &str, flags: &[&str]) -> Vec<(String, usize)> {
    let trace = bench.folder.path().with_extension("trace");
    let tracing: Vec<&str> =
        ["strace", "-qq", "-o", trace.to_str().unwrap()].iter().chain(flags).copied().collect();
    let output = bench.command(&tracing, words).output();
    assert!(output.unwrap().status.success(), "{words}");
    let text = fs::read_to_string(&trace).unwrap();
    fs::remove_file(trace).unwrap();
    let mut made: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        // The number of the thread comes first where there may be several.
        let named = if flags.is_empty() { Some(("", line)) } else { line.split_once(' ') };
        let Some((process, call)) = named else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        // What begins otherwise tells of signals and of calls that go on.
        if !name.starts_with(|first: char| first.is_ascii_lowercase()) {
            continue;
        }
        let number = made.entry((process.to_owned(), name.to_owned())).or_default();
        *number += 1;
        // Another thread that makes the same call is reached by the same words.
        if !calls.contains(&(name.to_owned(), *number)) {
            calls.push((name.to_owned(), *number));
        }
    }
    calls
}

#[test]
fn a_command_killed_at_any_time_leaves_one_of_two_states() {
    let kills = variable("MPATCH_RANDOM_KILLS", 60);
    let bench = Bench::new();
    let before = bench.contents();
    bench.succeeds("apply shards shards.mpatch --in-place");
    let after = bench.contents();
    let start = |verb: &str| {
        let mut command = bench.command(&[], &format!("{verb} shards shards.mpatch --in-place --quiet"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // Kills are spread over the time that a run takes here, and half of that again.
    let timed = ["revert", "apply", "revert"].map(|verb| {
        let began = Instant::now();
        assert!(start(verb).wait().unwrap().success());
        began.elapsed().as_micros() as u64
    });
    let span_us = timed.into_iter().sum::<u64>() / 2;
    let (mut numbers, mut recovered, mut killed, mut runs) = (Numbers(1), 0, 0, 0);
    while killed < kills {
        runs += 1;
        assert!(runs < 20 * kills, "only {killed} of {runs} runs were killed before they ended");
        let verb = if bench.contents() == before { "apply" } else { "revert" };
        let mut child = start(verb);
        std::thread::sleep(Duration::from_micros(numbers.bits() % span_us));
        killed += usize::from(child.kill().is_ok() && child.wait().unwrap().code().is_none());
        recovered += recover(bench.path("shards")).unwrap().len();
        let left = bench.contents();
        assert!(left == before || left == after, "{verb}: {:?}", left.keys());
    }
    tell(&format!(
        "{runs} runs, {killed} killed at any time, {recovered} of them half-way; all in one of two states"
    ));
    // A few kills may all miss the moments in which a change is half-way; so many do not.
    assert!(kills < 1_000 || recovered > 0, "none of {killed} kills left a change half-way");
}
