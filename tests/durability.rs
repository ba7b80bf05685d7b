//! Nothing lost: commands are killed, stopped and starved, and what they leave is held to `docs/durability.md`.
//!
//! What needs `strace` is skipped, and says so, where there is none. Two variables make the runs longer, and
//! `tests/crash/kill_everywhere.sh` sets them: `MPATCH_KILL_STRIDE` is the distance between the system calls at which
//! a command is killed, or refused, `MPATCH_RANDOM_KILLS` how often one is killed at any time.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails where it stands; clippy sees only `#[test]` functions as tests"
)]

/// Ends a test where commands cannot be run under strace, and tells so.
macro_rules! needs_strace {
    () => {
        if !crate::can_trace() {
            return crate::telling::skipped("strace is not there, or may not trace");
        }
    };
}

mod crash;
mod drafts;
mod material;
mod place;
mod signals;
mod telling;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crash::{Bench, Contents, stderr};
use material::lay_out_shards;
use mpatch::checkpoint::{Checkpoint, CheckpointError, Outcome, recover};
use mpatch::operation::{Answer, Direction, plan};
use mpatch::patch::Patch;
use place::Place;
use telling::{skipped, tell};

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Whether commands can be run under strace here.
fn can_trace() -> bool {
    static CAN_TRACE: OnceLock<bool> = OnceLock::new();
    *CAN_TRACE.get_or_init(|| {
        let mut command = Command::new("strace");
        command.args(["-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    })
}

/// The words that run a command under strace, with its system calls tampered with.
fn tampered(injection: &str) -> [String; 6] {
    ["strace", "-f", "-qq", "-o", "/dev/null", &format!("--inject={injection}")].map(str::to_owned)
}

/// Runs a command on a bench like that.
fn tamper(bench: &Bench, injection: &str, words: &str) -> Output {
    let before = tampered(injection);
    bench.command(&before.each_ref().map(String::as_str), words).output().unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Opens what lies on a bench to every user, whatever the umask is; a key stays its owner's.
fn open_to_all(folder: &Path) {
    set_mode(folder, 0o755);
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => open_to_all(&path),
            false if path.ends_with("config/key") => {}
            false => set_mode(&path, 0o644),
        }
    }
}

/// Runs a command for which permissions count: as another user where this one is root.
fn run_as_a_mere_user(bench: &Bench, words: &str) -> Output {
    const NOBODY: u32 = 65_534;
    let mut command = bench.command(&[], words);
    if fs::metadata(bench.folder.path()).unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

/// Whether [`run_as_a_mere_user`] can run commands: another user may not come where root has built them.
fn can_run_as_a_mere_user() -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|about| about.uid() == 0);
    let program = assert_cmd::cargo::cargo_bin!("mpatch");
    !root || program.ancestors().all(|path| fs::metadata(path).unwrap().permissions().mode() & 1 != 0)
}

#[test]
fn a_history_made_under_any_umask_lets_its_maker_in() {
    let bench = Bench::new();
    let open_to_all = ["sh", "-c", "umask 000; exec \"$@\"", "sh"];
    let output = bench.command(&open_to_all, "init --base model.safetensors").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    bench.succeeds("add edits.mpatch");
    for name in ["", "config", "objects", "refs/heads"] {
        let about = fs::metadata(bench.path(".git").join(name)).unwrap();
        assert_eq!(about.mode() & 0o002, 0, "`{name}` is everybody's to write");
    }
}

#[test]
fn a_history_is_read_by_whom_the_umask_lets_in() {
    let bench = Bench::new();
    for (umask, mode) in [("022", 0o755), ("077", 0o700)] {
        for words in [format!("init {umask} --base model.safetensors"), format!("clone {umask} {umask}.copy")]
        {
            let script = format!("umask {umask}; exec \"$@\"");
            let output = bench.command(&["sh", "-c", &script, "sh"], &words).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
        }
        for name in ["", "objects", "refs/heads"] {
            for history in [umask.to_owned(), format!("{umask}.copy")] {
                let about = fs::metadata(bench.path(&history).join(".git").join(name)).unwrap();
                assert_eq!(about.mode() & 0o777, mode, "`{name}` of {history}");
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------ in place --

#[test]
fn a_change_in_place_gives_the_bytes_of_a_copy_and_goes_back() {
    let bench = Bench::new();
    let before = bench.contents();
    for (model, patch) in
        [("model.safetensors", "edits.mpatch"), ("gptj", "edits.mpatch"), ("shards", "shards.mpatch")]
    {
        let inode = fs::metadata(bench.path(model)).unwrap().ino();
        bench.succeeds(&format!("apply {model} {patch} -o copy"));
        let said = bench.succeeds(&format!("apply {model} {patch} --in-place"));
        assert!(said.contains(&format!("changed {model} in place: ")), "{said}");
        assert_eq!(fs::metadata(bench.path(model)).unwrap().ino(), inode);
        let edited = bench.contents();
        let of = |name: &str| -> Vec<(PathBuf, Vec<u8>)> {
            let inside = |(path, bytes): (&PathBuf, &Vec<u8>)| {
                Some((path.strip_prefix(name).ok()?.to_owned(), bytes.clone()))
            };
            edited.iter().filter_map(inside).collect()
        };
        assert!(of(model) == of("copy"), "{model}");
        bench.succeeds(&format!("revert {model} {patch} --in-place"));
        let copy = bench.path("copy");
        if copy.is_dir() {
            fs::remove_dir_all(copy).unwrap()
        } else {
            fs::remove_file(copy).unwrap()
        }
        assert!(bench.contents() == before, "{model}");
    }
}

#[test]
fn a_dry_run_in_place_changes_nothing() {
    let bench = Bench::new();
    let before = bench.contents();
    let said = bench.succeeds("apply shards shards.mpatch --in-place --dry-run");
    assert!(said.contains("would change shards in place: 2 tensors"), "{said}");
    assert!(bench.contents() == before);
}

#[test]
fn what_is_shared_or_protected_is_not_changed_in_place() {
    let bench = Bench::new();
    let apply = "apply model.safetensors edits.mpatch --in-place";
    fs::hard_link(bench.path("model.safetensors"), bench.path("other name")).unwrap();
    let said = bench.refuses(apply, 11);
    assert!(
        said.contains("it has 2 names (hard links)") && said.contains("leave `--in-place` out"),
        "{said}"
    );
    fs::remove_file(bench.path("other name")).unwrap();
    fs::create_dir(bench.path("snapshot")).unwrap();
    symlink("../model.safetensors", bench.path("snapshot/model.safetensors")).unwrap();
    for model in ["snapshot", "snapshot/model.safetensors"] {
        let said = bench.refuses(&format!("apply {model} edits.mpatch --in-place"), 11);
        assert!(said.contains("it is a symlink"), "{said}");
    }
    let taken = bench.path("model.safetensors.mpatch-journal");
    fs::create_dir(&taken).unwrap();
    assert!(bench.refuses(&format!("{apply} --dry-run"), 11).contains("move it away"));
    fs::remove_dir(taken).unwrap();
    fs::set_permissions(bench.path("model.safetensors"), fs::Permissions::from_mode(0o444)).unwrap();
    assert!(bench.refuses(apply, 11).contains("it is read-only"));
    assert!(
        bench.refuses("apply model.safetensors edits.mpatch --in-place --dry-run", 11).contains("read-only")
    );
}

#[test]
fn names_that_are_no_text_are_changed_in_place_and_not_reported_in_json() {
    let bench = Bench::new();
    let folder = bench.folder.path().join(OsStr::from_bytes(b"na\xefve"));
    fs::create_dir(&folder).unwrap();
    let model = folder.join("model.safetensors");
    fs::copy(bench.path("model.safetensors"), &model).unwrap();
    let run = |words: &str| bench.command(&[], words).arg(&model).arg("edits.mpatch").output().unwrap();
    let before = bench.contents();
    assert_eq!(run("apply --in-place --json").status.code(), Some(2));
    assert!(bench.contents() == before);
    let changed = run("apply --in-place");
    assert!(changed.status.success(), "{}", stderr(&changed));
}

#[test]
fn a_file_that_is_mounted_by_itself_is_not_changed_in_place() {
    let bench = Bench::new();
    fs::write(bench.path("mounted.safetensors"), "").unwrap();
    let mut mount = Command::new("mount");
    mount.args(["--bind", "model.safetensors", "mounted.safetensors"]).current_dir(bench.folder.path());
    if !mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return skipped("mounting needs root");
    }
    let output = bench.run("apply mounted.safetensors edits.mpatch --in-place");
    let unmounted = Command::new("umount").arg(bench.path("mounted.safetensors")).status();
    assert!(unmounted.unwrap().success());
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(said.contains("it is mounted here by itself"), "{said}");
}

#[test]
fn a_checkpoint_in_use_is_left_alone() {
    let bench = Bench::new();
    let apply = "apply shards shards.mpatch --in-place";
    let shard = fs::File::open(bench.path("shards/model-1.safetensors")).unwrap();
    shard.lock_shared().unwrap();
    let said = bench.refuses(apply, 10);
    assert!(said.contains("model-1.safetensors` is in use by another mpatch"), "{said}");
    bench.succeeds("verify shards.mpatch --base shards --digests-only");
    shard.unlock().unwrap();
    shard.lock().unwrap();
    bench.refuses("verify shards.mpatch --base shards --digests-only", 10);
    bench.refuses("apply shards shards.mpatch -o copy", 10);
    shard.unlock().unwrap();
    bench.succeeds(apply);
}

// ------------------------------------------------------------------------------------------------------- copies --

#[test]
fn shards_on_another_file_system_are_copied_with_a_word() {
    let bench = Bench::new();
    let elsewhere = Path::new("/dev/shm");
    let device = |path: &Path| fs::metadata(path).map(|about| about.dev()).ok();
    if device(elsewhere).is_none_or(|other| Some(other) == device(bench.folder.path())) {
        return skipped("there is no second file system at /dev/shm");
    }
    let folder = tempfile::tempdir_in(elsewhere).unwrap();
    let target = folder.path().join("edited");
    let said = bench.succeeds(&format!("apply shards shards.mpatch -o {}", target.display()));
    assert!(said.contains("copied, since they can be neither shared nor linked"), "{said}");
    assert!(said.contains("model-2.safetensors"), "{said}");
    let untouched = "model-2.safetensors";
    assert!(
        fs::read(target.join(untouched)).unwrap() == fs::read(bench.path("shards").join(untouched)).unwrap()
    );
    bench.succeeds(&format!("verify shards.mpatch --base {} --digests-only", target.display()));
}

#[test]
fn a_checkout_says_which_shards_are_the_models_own_files() {
    let bench = Bench::new();
    bench.succeeds("init history --base shards");
    bench.succeeds("add shards.mpatch --store history");
    // One step, and none.
    for (target, revision) in [("edited", "HEAD"), ("copy", "HEAD~1")] {
        let words = format!("checkout {revision} --onto shards -o {target} --store history --json");
        let report: serde_json::Value = serde_json::from_str(&bench.succeeds(&words)).unwrap();
        let linked = report["checkpoint"]["linked"].as_array().unwrap();
        for shard in ["model-0.safetensors", "model-1.safetensors", "model-2.safetensors"] {
            let [ours, theirs] =
                ["shards", target].map(|folder| fs::metadata(bench.path(folder).join(shard)).unwrap().ino());
            assert_eq!(linked.iter().any(|name| name == shard), ours == theirs, "{target}: {report:#}");
        }
    }
    let said = bench.succeeds("checkout HEAD --onto shards -o another --store history");
    assert!(said.contains("wrote another from shards: it is in this state already"), "{said}");
}

#[test]
fn what_a_killed_copy_leaves_is_swept_by_the_next() {
    let bench = Bench::new();
    fs::write(bench.path(".mpatch-tmp-0"), "half a model").unwrap();
    fs::create_dir(bench.path(".mpatch-tmp-1")).unwrap();
    fs::write(bench.path(".mpatch-tmp-1/model.safetensors"), "half a shard").unwrap();
    fs::write(bench.path(".mpatch-tmp-2"), "somebody works on this").unwrap();
    let alive = fs::File::open(bench.path(".mpatch-tmp-2")).unwrap();
    alive.lock().unwrap();
    bench.succeeds("apply model.safetensors edits.mpatch");
    assert!(!bench.path(".mpatch-tmp-0").exists() && !bench.path(".mpatch-tmp-1").exists());
    assert!(bench.path(".mpatch-tmp-2").exists());
    drop(alive);
    bench.succeeds("verify edits.mpatch --base model.safetensors --digests-only");
    assert!(!bench.path(".mpatch-tmp-2").exists());
    // A copy of a model folder is made beside it.
    fs::create_dir(bench.path(".mpatch-tmp-3")).unwrap();
    bench.succeeds("verify edits.mpatch --base gptj --digests-only");
    assert!(!bench.path(".mpatch-tmp-3").exists());
}

#[test]
fn new_files_and_folders_are_open_to_whom_the_umask_leaves() {
    let bench = Bench::new();
    bench.succeeds("apply model.safetensors edits.mpatch -o edited.safetensors");
    for (umask, file, folder) in [("077", 0o600, 0o700), ("002", 0o664, 0o775)] {
        let mode = |words: &str, name: &str| {
            let script = format!("umask {umask}; exec \"$@\"");
            let output = bench.command(&["sh", "-c", &script, "sh"], words).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            fs::metadata(bench.path(name)).unwrap().mode() & 0o777
        };
        let words = format!("diff model.safetensors edited.safetensors -o {umask}.mpatch");
        assert_eq!(mode(&words, &format!("{umask}.mpatch")), file);
        assert_eq!(mode(&format!("export edits.mpatch -o {umask}"), umask), folder);
    }
}

#[test]
fn what_others_lay_beside_a_model_stops_nobody() {
    if !can_run_as_a_mere_user() {
        return skipped("another user cannot come to the command under test");
    }
    let bench = Bench::new();
    open_to_all(bench.folder.path());
    let gptj = bench.path("gptj");
    fs::create_dir(bench.path("closed")).unwrap();
    fs::write(bench.path("closed/vocabulary"), "").unwrap();
    symlink("../closed/vocabulary", gptj.join("vocabulary")).unwrap();
    fs::write(gptj.join("other.safetensors.mpatch-journal"), "whatever it holds").unwrap();
    fs::write(gptj.join("junk.mpatch-journal"), "never one").unwrap();
    fs::write(gptj.join("zzz.mpatch-journal"), "mpatch-journal\n2 and more").unwrap();
    fs::create_dir(bench.path("theirs")).unwrap();
    for (name, mode) in [
        ("theirs", 0o777),
        ("closed", 0),
        ("gptj/other.safetensors.mpatch-journal", 0),
        ("gptj", 0o555),
        ("", 0o555),
    ] {
        set_mode(&bench.path(name), mode);
    }
    let output = run_as_a_mere_user(&bench, "apply gptj edits.mpatch -o theirs/edited");
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("or are no files: vocabulary\n"), "{told}");

    // Nothing can be put beside it either, which a dry run tells like the real one.
    for words in ["apply gptj edits.mpatch --in-place", "apply gptj edits.mpatch --in-place --dry-run"] {
        let output = run_as_a_mere_user(&bench, words);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(11), "{words}: {said}");
        assert!(said.contains("no journal can be made beside it: Permission denied"), "{said}");
        assert!(said.contains("hint: leave `--in-place` out"), "{said}");
    }

    // One that bears the model's own name may hold its old bytes.
    set_mode(&gptj, 0o755);
    let journal = gptj.join("model.safetensors.mpatch-journal");
    fs::rename(gptj.join("other.safetensors.mpatch-journal"), &journal).unwrap();
    let output = run_as_a_mere_user(&bench, "apply gptj edits.mpatch -o theirs/again");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.contains("and cannot be opened: Permission denied"), "{said}");
    assert!(
        said.contains("hint: have the user whose journal it is run an mpatch command on the model"),
        "{said}"
    );
    assert!(said.ends_with("state: recovery pending\n"), "{said}");
    for name in ["", "closed"] {
        set_mode(&bench.path(name), 0o755);
    }
}

// ----------------------------------------------------------------------------------------------------- recovery --

/// A bench with a change in place that was killed after its last byte, before the journal was gone.
fn half_way(model: &str, patch: &str) -> (Bench, Contents) {
    let bench = Bench::new();
    let before = bench.contents();
    // The folder twice as it is asked about, the journal, its folder, then the checkpoint's own sync.
    let ended = tamper(&bench, "fsync:signal=KILL:when=5", &format!("apply {model} {patch} --in-place"));
    assert!(!ended.status.success(), "it was not killed");
    let journals = bench.contents().keys().filter(|path| path.to_string_lossy().ends_with("journal")).count();
    assert_eq!(journals, 1);
    (bench, before)
}

#[test]
fn the_next_command_brings_a_change_that_stopped_half_way_to_an_end() {
    needs_strace!();
    let (bench, before) = half_way("shards", "shards.mpatch");
    // Some of the new bytes did not make it.
    let path = bench.path("shards/model-1.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let old = &before[Path::new("shards/model-1.safetensors")];
    let middle = bytes.len() / 2;
    bytes[middle..].copy_from_slice(&old[middle..]);
    fs::write(&path, bytes).unwrap();
    // The library says so and waits to be asked; any path to the weights will do.
    for path in ["shards", "shards/model-0.safetensors", "shards/model.safetensors.index.json"] {
        let refused = Checkpoint::open(bench.path(path)).unwrap_err();
        assert!(matches!(refused, CheckpointError::Recovery { .. }), "{refused}");
    }
    let other = Checkpoint::open(bench.path("model.safetensors"));
    assert!(other.is_ok(), "another checkpoint is nobody's concern");
    // A copy has files of its own: its bytes say whether the old ones belong there.
    let copied = Command::new("cp").arg("-r").args([bench.path("shards"), bench.path("copy")]).status();
    assert!(copied.unwrap().success());
    let shard = bench.path("copy/model-0.safetensors");
    let half_way = fs::read(&shard).unwrap();
    let mut other = half_way.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&shard, &other).unwrap();
    let output = bench.run("verify shards.mpatch --base copy --digests-only");
    assert_eq!(output.status.code(), Some(9));
    let said = stderr(&output);
    assert!(
        said.contains("hint: if this is a copy of the model, open the one that it was copied from"),
        "{said}"
    );
    assert!(fs::read(&shard).unwrap() == other);
    fs::write(&shard, half_way).unwrap();
    let said = bench.succeeds("verify shards.mpatch --base copy --digests-only --quiet");
    assert!(said.contains("the old bytes are back"), "{said}");
    assert!(said.contains("warning: `/") && said.contains("copy/model-1.safetensors`: recovered"), "{said}");
    for name in ["model-0.safetensors", "model-1.safetensors"] {
        let whole = &before[&Path::new("shards").join(name)];
        assert!(fs::read(bench.path("copy").join(name)).unwrap() == *whole, "{name}");
    }
    fs::remove_dir_all(bench.path("copy")).unwrap();
    let said = bench.succeeds("verify shards.mpatch --base shards --digests-only");
    assert!(said.contains("which had stopped half-way: the old bytes are back"), "{said}");
    assert!(said.contains("this is its base"), "{said}");
    assert!(bench.contents() == before);
}

#[test]
fn a_journal_is_found_where_nobody_may_look_around() {
    needs_strace!();
    if !can_run_as_a_mere_user() {
        return skipped("another user cannot come to the command under test");
    }
    let (bench, _) = half_way("shards", "shards.mpatch");
    open_to_all(bench.folder.path());
    set_mode(&bench.path("shards"), 0o111);
    let output = run_as_a_mere_user(&bench, "verify shards.mpatch --base shards --digests-only");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.ends_with("state: recovery pending\n"), "{said}");
    set_mode(&bench.path("shards"), 0o755);
}

#[test]
fn a_change_whose_bytes_are_all_there_is_finished() {
    needs_strace!();
    let (bench, before) = half_way("model.safetensors", "edits.mpatch");
    let [recovered] = &recover(bench.path("model.safetensors")).unwrap()[..] else { panic!("one journal") };
    assert_eq!(recovered.outcome, Outcome::Finished);
    assert!(recovered.label.starts_with("apply "), "{}", recovered.label);
    assert!(bench.contents() != before && bench.contents().len() == before.len());
    bench.succeeds("revert model.safetensors edits.mpatch --in-place");
    assert!(bench.contents() == before);
    assert!(recover(bench.path("model.safetensors")).unwrap().is_empty(), "once is enough");
}

#[test]
fn a_renamed_checkpoint_gets_its_old_bytes_back_whatever_has_its_old_name() {
    needs_strace!();
    let (bench, before) = half_way("model.safetensors", "edits.mpatch");
    let old = &before[Path::new("model.safetensors")];
    let (path, renamed) = (bench.path("model.safetensors"), bench.path("renamed.safetensors"));
    // One byte of the new state is left.
    let mut bytes = fs::read(&path).unwrap();
    let first = bytes.iter().zip(old).position(|(new, old)| new != old).unwrap();
    bytes[first + 1..].copy_from_slice(&old[first + 1..]);
    fs::write(&path, bytes).unwrap();
    fs::rename(&path, &renamed).unwrap();
    fs::write(&path, old).unwrap();
    let [recovered] = &recover(&renamed).unwrap()[..] else { panic!("one journal") };
    assert_eq!(recovered.outcome, Outcome::RolledBack);
    assert!(fs::read(&renamed).unwrap() == *old);
    fs::remove_file(renamed).unwrap();
    assert!(bench.contents() == before);
}

/// What a command says that cannot put old bytes back.
fn waits_for_recovery(bench: &Bench) -> String {
    let output = bench.run("apply model.safetensors edits.mpatch");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.ends_with("state: recovery pending\n"), "{said}");
    said
}

#[test]
fn a_journal_of_another_layout_is_left_to_the_mpatch_that_wrote_it() {
    needs_strace!();
    let (bench, before) = half_way("model.safetensors", "edits.mpatch");
    let journal = bench.path("model.safetensors.mpatch-journal");
    let whole = fs::read(&journal).unwrap();
    let mut other = whole.clone();
    // Its version is the last byte of the words at either end.
    for place in [15, whole.len() - 1] {
        other[place] = b'2';
    }
    fs::write(&journal, &other).unwrap();
    let half_way = bench.contents();
    let said = waits_for_recovery(&bench);
    assert!(
        said.contains("an mpatch whose journals have layout `2` wrote it, and this one's have `3`"),
        "{said}"
    );
    assert!(bench.contents() == half_way);
    fs::write(&journal, &whole).unwrap();
    bench.succeeds("revert model.safetensors edits.mpatch --in-place");
    assert!(bench.contents() == before);
}

#[test]
fn a_damaged_journal_is_never_taken_away() {
    needs_strace!();
    let (bench, before) = half_way("model.safetensors", "edits.mpatch");
    let [journal, other] =
        ["model", "other"].map(|name| bench.path(&format!("{name}.safetensors.mpatch-journal")));
    let whole = fs::read(&journal).unwrap();
    let mut both_headers = whole.clone();
    both_headers[0] ^= 1;
    *both_headers.last_mut().unwrap() ^= 1;
    for damaged in [&[][..], b"notes", &vec![0; whole.len()], &both_headers] {
        fs::write(&journal, damaged).unwrap();
        let said = waits_for_recovery(&bench);
        assert!(said.contains("neither of its two headers is whole"), "{said}");
        assert!(fs::read(&journal).unwrap() == damaged);
    }
    // Beside other weights it is nobody's concern.
    fs::rename(&journal, &other).unwrap();
    bench.succeeds("verify edits.mpatch --base model.safetensors --digests-only");
    fs::remove_file(&other).unwrap();
    fs::write(&journal, whole).unwrap();
    bench.succeeds("revert model.safetensors edits.mpatch --in-place");
    assert!(bench.contents() == before);
}

#[test]
fn old_bytes_that_cannot_be_put_back_keep_their_journal() {
    needs_strace!();
    let (bench, before) = half_way("model.safetensors", "edits.mpatch");
    let path = bench.path("model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 4]).unwrap();
    let said = waits_for_recovery(&bench);
    assert!(said.contains("has 189 bytes, and had 193 when the journal was written"), "{said}");
    fs::write(&path, &whole).unwrap();
    let said = bench.succeeds("verify edits.mpatch --base model.safetensors --digests-only");
    assert!(said.contains("everything had been changed already"), "{said}");
    assert_eq!(bench.contents().len(), before.len());
}

#[test]
fn a_change_of_which_only_its_journal_could_not_be_removed_is_complete() {
    needs_strace!();
    let bench = Bench::new();
    let output = tamper(&bench, "unlink,unlinkat:error=EIO", "apply shards shards.mpatch --in-place");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(9), "{said}");
    assert!(said.contains("has not come to its end") && said.contains("cannot remove it: "), "{said}");
    assert!(said.contains("hint: the change is complete: the next mpatch command that opens"), "{said}");
    assert!(said.ends_with("state: recovery pending\n"), "{said}");
    let said = bench.succeeds("verify shards.mpatch --base shards --digests-only");
    assert!(said.contains("everything had been changed already"), "{said}");
    assert!(!bench.path("shards/model-0.safetensors.mpatch-journal").exists());
}

#[test]
fn a_file_system_without_modes_is_written_to_and_one_that_cannot_sync_folders_is_refused_first() {
    needs_strace!();
    let bench = Bench::new();
    for words in ["apply shards shards.mpatch -o copy", "apply shards shards.mpatch --in-place"] {
        let output = tamper(&bench, "fchmod,chmod:error=EPERM", words);
        assert!(output.status.success(), "{words}: {}", stderr(&output));
    }
    let bench = Bench::new();
    let before = bench.contents();
    let output = tamper(&bench, "fsync:error=EINVAL", "apply model.safetensors edits.mpatch -o copy");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(said.contains("cannot write to `.`: this file system cannot sync folders\n"), "{said}");
    assert!(said.contains("hint: choose another place with `-o`\n"), "{said}");
    assert!(bench.contents() == before);
}

// ------------------------------------------------------------------------------------------------------ limits --

#[test]
fn a_file_that_may_not_grow_is_an_error_and_no_signal() {
    let bench = Bench::new();
    for words in ["apply model.safetensors edits.mpatch", "apply shards shards.mpatch --in-place"] {
        let before = bench.contents();
        let limited = bench.command(&["sh", "-c", "ulimit -f 0; exec \"$@\"", "sh"], words).output().unwrap();
        let said = stderr(&limited);
        assert_eq!(limited.status.code(), Some(11), "{words}: {said}");
        assert!(said.contains("File too large") && said.ends_with("state: unchanged\n"), "{said}");
        assert!(said.contains("`ulimit -f` limits the size of files"), "{said}");
        assert!(bench.contents() == before);
    }
}

#[test]
fn a_file_that_may_not_grow_as_it_is_copied_up_into_an_overlay_is_an_error_at_once() {
    const ON_OVERLAY: &str = "mount -t tmpfs none \"$0\" && cd \"$0\" && mkdir upper work merged && \
        mount -t overlay none -o \"lowerdir=$OLDPWD,upperdir=upper,workdir=work\" merged && cd merged && \
        ulimit -f 0 && exec timeout 60 \"$@\"";
    let (bench, mounted) = (Bench::new(), tempfile::tempdir().unwrap());
    let before = ["unshare", "-rm", "sh", "-c", ON_OVERLAY, mounted.path().to_str().unwrap()];
    let can = bench.command(&before, "--version").output().is_ok_and(|output| output.status.success());
    if !can {
        return skipped("there are no overlays here, or not for this user");
    }
    let output = bench.command(&before, "apply model.safetensors edits.mpatch --in-place").output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(11), "{said}");
    assert!(said.contains("File too large") && said.ends_with("state: unchanged\n"), "{said}");
}

// -------------------------------------------------------------------------------------------------- power cuts --

#[test]
#[ignore = "for tests/crash/power_cut.sh, which names a folder in MPATCH_MATERIAL"]
fn lays_out_material() {
    let folder = PathBuf::from(std::env::var_os("MPATCH_MATERIAL").unwrap());
    lay_out_shards(&folder);
    let status = Command::new("cp").arg("-a").arg(folder.join("shards")).arg(folder.join("edited")).status();
    assert!(status.unwrap().success());
    let checkpoint = Checkpoint::open(folder.join("edited")).unwrap();
    let patch = Patch::decode(fs::read(folder.join("shards.mpatch")).unwrap()).unwrap();
    let Answer::Fits(plan) = plan(&checkpoint, &patch, Direction::Apply, &|_| ()).unwrap() else {
        panic!("refused")
    };
    plan.execute_in_place(&checkpoint, &patch, &|_| ()).unwrap();
}

#[test]
fn a_power_cut_of_a_real_file_system_leaves_one_of_two_states() {
    let folder = tempfile::tempdir().unwrap();
    let cuts = variable("MPATCH_POWER_CUTS", 4);
    fs::create_dir(folder.path().join("place")).unwrap();
    let mounted = folder.path().join("place");
    let image = folder.path().join("image");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let try_to = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let (image, mounted) = (image.to_str().unwrap(), mounted.to_str().unwrap());
    let can = try_to(&["mkfs.ext4", "-q", "-F", image]) && try_to(&["mount", "-o", "loop", image, mounted]);
    if !can {
        return skipped("mounting a file system of our own needs root, loop devices and mkfs.ext4");
    }
    assert!(try_to(&["umount", mounted]));
    let material = folder.path().join("material");
    fs::create_dir(&material).unwrap();
    let mut lay_out = Command::new(std::env::current_exe().unwrap());
    lay_out.args(["lays_out_material", "--ignored", "--exact", "--quiet"]).env("MPATCH_MATERIAL", &material);
    assert!(lay_out.stdout(Stdio::null()).status().unwrap().success());
    for flag in ["1", "2"] {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/power_cut.py");
        let mpatch = assert_cmd::cargo::cargo_bin!("mpatch");
        let mut command = material::command("python3");
        command.env("MPATCH_CONFIG_DIR", material.join("config"));
        command.arg(script).arg(mpatch).arg(&material).args(["ext4", flag, &cuts.to_string()]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        tell(&String::from_utf8_lossy(&output.stdout));
    }
}
