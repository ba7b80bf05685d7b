//! Changes in place where single system calls are refused: what is told, and what the next command does.

use std::fs;
use std::path::Path;
use std::process::Output;

use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::patch::encode;

use super::{Bench, stderr};
use crate::drafts::{Numbers, draft};
use crate::material::{file_of, key, signed_with};
use crate::telling::tell;
use crate::{can_run_as_a_mere_user, half_way, open_to_all, run_as_a_mere_user, set_mode, skipped, tampered};

/// Runs a command whose calls on one path are tampered with.
fn tamper_at(bench: &Bench, path: &Path, injection: &str, words: &str) -> Output {
    let before = tampered(injection);
    let at_path =
        [before.each_ref().map(String::as_str).as_slice(), &["-P", path.to_str().unwrap()]].concat();
    bench.command(&at_path, words).output().unwrap()
}

#[test]
fn what_was_recovered_is_told_where_the_folder_cannot_be_synced() {
    needs_strace!();
    let verify = "verify shards.mpatch --base shards --digests-only --json --quiet";
    let is_told = |output: Output| {
        let said = stderr(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("model-1.safetensors`: recovered from `apply "), "{said}");
    };
    let (bench, _) = half_way("shards", "shards.mpatch");
    let folder = bench.path("shards");
    is_told(tamper_at(&bench, &folder, "fsync:error=EIO", verify));
    assert!(!bench.path("shards/model-0.safetensors.mpatch-journal").exists());

    if !can_run_as_a_mere_user() {
        return skipped("another user cannot come to the command under test");
    }
    let (bench, _) = half_way("shards", "shards.mpatch");
    open_to_all(bench.folder.path());
    for name in ["shards/model-0.safetensors", "shards/model-1.safetensors"] {
        set_mode(&bench.path(name), 0o666);
    }
    set_mode(&bench.path("shards"), 0o733);
    is_told(run_as_a_mere_user(&bench, verify));
    // Nothing new can be made to last there, which is found out before the work.
    for words in ["revert shards shards.mpatch --in-place", "revert shards shards.mpatch -o shards/copy"] {
        let said = stderr(&run_as_a_mere_user(&bench, words));
        let refused =
            ["no journal can be made beside it: Permission", "cannot write to `shards`: Permission"];
        assert!(refused.iter().any(|expected| said.contains(expected)), "{words}: {said}");
    }
    set_mode(&bench.path("shards"), 0o755);
}

#[test]
fn memory_that_is_refused_leaves_what_the_next_command_puts_right() {
    // Of a tensor with so wide rows the buffers are what takes the memory.
    const SHAPE: [usize; 2] = [2, 2_000_000];
    let bench = Bench::new();
    let wide = bench.path("wide.safetensors");
    fs::write(&wide, file_of([("a", "F32", SHAPE, vec![0; 4 * SHAPE[0] * SHAPE[1]])])).unwrap();
    let terms = [Numbers(1).low_rank(SHAPE, 1, 6, 0.05)];
    let checkpoint = Checkpoint::open(&wide).unwrap();
    let id = checkpoint.weights_id().unwrap();
    let binding = bind(&checkpoint, id, &[("a".to_owned(), vec![0])], &terms, &|_| ()).unwrap();
    let patch = encode(&draft(terms.to_vec(), vec![binding])).unwrap();
    fs::write(bench.path("wide.mpatch"), signed_with(patch, &key())).unwrap();
    drop(checkpoint);
    let (before, mut half_way) = (bench.contents(), 0);
    for kilobytes in (40_000..=80_000).step_by(8_000) {
        let limited = format!("ulimit -c 0; ulimit -v {kilobytes}; exec \"$@\"");
        let apply = "apply wide.safetensors wide.mpatch --in-place";
        let output = bench.command(&["sh", "-c", &limited, "sh"], apply).output().unwrap();
        if output.status.success() {
            break;
        }
        assert!([None, Some(13), Some(127)].contains(&output.status.code()), "{}", stderr(&output));
        half_way += usize::from(bench.contents().len() > before.len());
        bench.succeeds("verify wide.mpatch --base wide.safetensors --digests-only");
        assert!(bench.contents() == before, "{kilobytes}");
    }
    tell(&format!("{half_way} changes in place were cut short for lack of memory"));
}

#[test]
fn a_journal_that_cannot_be_read_or_followed_now_waits() {
    needs_strace!();
    let (bench, _) = half_way("model.safetensors", "edits.mpatch");
    let [model, journal] =
        ["model.safetensors", "model.safetensors.mpatch-journal"].map(|name| bench.path(name));
    let folder = bench.folder.path();
    let verify = "verify edits.mpatch --base model.safetensors --digests-only";
    for (path, injection, way_out) in [
        (journal.as_path(), "pread64:error=EIO", "see that the system can read the journal"),
        (journal.as_path(), "openat:error=EMFILE", "see that the system can read the journal"),
        (folder, "getdents64:error=EIO", "see that the system can read the journal"),
        (model.as_path(), "flock:error=ENOLCK", "open the model where its files can be locked"),
    ] {
        let output = tamper_at(&bench, path, injection, verify);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(9), "{injection}: {said}");
        assert!(said.contains(&format!("hint: {way_out}")), "{injection}: {said}");
        assert!(said.ends_with("state: recovery pending\n"), "{said}");
    }
    // The other header is as good.
    let output = tamper_at(&bench, &journal, "pread64:error=EIO:when=1", verify);
    assert!(output.status.success() && stderr(&output).contains("recovered from"), "{}", stderr(&output));
}

#[test]
fn a_change_in_place_that_stands_is_recorded_whatever_its_last_sync_says() {
    needs_strace!();
    let bench = Bench::new();
    bench.succeeds("init --base gptj");
    let log = bench.succeeds("log");
    let apply = "apply gptj edits.mpatch --in-place";
    let output = tamper_at(&bench, &bench.path("gptj"), "fsync:error=EIO:when=4", apply);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(said.contains("is complete, but") && said.ends_with("state: applied\n"), "{said}");
    assert!(bench.succeeds("status gptj").contains("gptj is in the state of HEAD"), "{said}");
    assert_ne!(bench.succeeds("log"), log);
}
