//! What a command that is told to stop leaves, and says that it leaves.

use super::*;

/// Of signals, with the exit codes that they give, those that a command which is started here heeds: under `nohup` it
/// goes on when its terminal is closed.
fn heeded(signals: &[(&'static str, i32)]) -> Vec<(&'static str, i32)> {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    let (heeded, passed_by): (Vec<_>, Vec<_>) =
        signals.iter().partition(|(_, code)| ignored & (1 << (code - 128 - 1)) == 0);
    if !passed_by.is_empty() {
        skipped(&format!("{passed_by:?} are ignored here"));
    }
    heeded
}

#[test]
fn a_command_that_is_told_to_stop_ends_with_the_old_state() {
    needs_strace!();
    let bench = Bench::new();
    let before = bench.contents();
    for (signal, code) in heeded(&[("HUP", 129), ("INT", 130), ("TERM", 143), ("XCPU", 152)]) {
        // When room is reserved the work has begun, and the next block asks whether to stop.
        let tampering = format!("fallocate:signal={signal}:delay_exit=300000:when=1");
        for words in [
            "apply model.safetensors edits.mpatch",
            "apply shards shards.mpatch -o new",
            "apply shards shards.mpatch --in-place",
        ] {
            let output = tamper(&bench, &tampering, words);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{words}: {said}");
            assert!(said.ends_with("state: unchanged\n"), "{said}");
            assert!(bench.contents() == before, "{words}: {:?}", bench.contents().keys());
        }
    }
}

#[test]
fn a_terminal_that_is_closed_twice_over_leaves_the_old_state() {
    needs_strace!();
    let bench = Bench::new();
    let before = bench.contents();
    for (signal, code) in heeded(&[("HUP", 129), ("XCPU", 152)]) {
        let tampering =
            format!("fallocate,fsync,fdatasync,pwrite64:signal={signal}:delay_exit=100000:when=3..5");
        let output = tamper(&bench, &tampering, "apply shards shards.mpatch --in-place");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.ends_with("state: unchanged\n") && bench.contents() == before, "{said}");
    }
}

#[test]
fn a_command_under_nohup_outlives_its_terminal() {
    needs_strace!();
    let bench = Bench::new();
    let tampering = tampered("fallocate,fsync,fdatasync,pwrite64:signal=HUP:delay_exit=20000");
    let ignoring = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"];
    let before = Vec::from_iter(ignoring.into_iter().chain(tampering.iter().map(String::as_str)));
    let output = bench.command(&before, "apply shards shards.mpatch --in-place").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    bench.succeeds("revert shards shards.mpatch --in-place");
}

#[test]
fn a_command_whose_result_has_its_name_is_not_ended_by_a_second_signal() {
    needs_strace!();
    let bench = Bench::new();
    // Once its folder can be synced, the copy is, gets its name, and then its folder is synced.
    let tampering = "fsync:signal=INT:delay_exit=300000:when=3..4";
    let output = tamper(&bench, tampering, "apply model.safetensors edits.mpatch");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(bench.path("model.edits.safetensors").exists());
}

/// Runs mpatch in `place` under strace, with its system calls tampered with.
fn run_tampered(place: &Place, injection: &str, words: &str) -> Output {
    let mut command = place.command("strace");
    command.args(&tampered(injection)[1..]).arg(assert_cmd::cargo::cargo_bin!("mpatch"));
    command.args(words.split(' ')).output().unwrap()
}

#[test]
fn signals_that_come_while_a_result_gets_its_name_change_nothing() {
    needs_strace!();
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.patch("model.safetensors", "two.mpatch", 2, "The Colosseum");
    for name in ["bare.mpatch", "plain.mpatch"] {
        fs::write(place.path(name), place.unsigned("model.safetensors", 4, "The Kremlin", "Rome")).unwrap();
    }
    let bare = fs::read(place.path("bare.mpatch")).unwrap();
    for (words, result) in [
        ("stack one.mpatch two.mpatch --base model.safetensors -o stacked.mpatch", "stacked.mpatch"),
        ("sign bare.mpatch", "bare.mpatch"),
        ("sign plain.mpatch --detached", "plain.mpatch.sig"),
        ("init history --base model.safetensors", "history/.git/HEAD"),
        ("branch geography --store history", "history/.git/refs/heads/geography"),
        ("apply model.safetensors one.mpatch -o edited.safetensors", "edited.safetensors"),
        ("diff model.safetensors edited.safetensors -o found.mpatch", "found.mpatch"),
        ("checkout HEAD --store history --onto model.safetensors -o copy.safetensors", "copy.safetensors"),
    ] {
        // Every name is given by one of these calls, and each brings a signal of its own.
        let injection = "rename,renameat,renameat2,link,linkat:signal=TERM:delay_exit=20000";
        let output = run_tampered(&place, injection, words);
        assert!(output.status.success(), "{words}: {}", stderr(&output));
        assert!(!stderr(&output).contains("error:"), "{words}: {}", stderr(&output));
        assert!(place.path(result).exists(), "{words}");
    }
    assert!(fs::read(place.path("bare.mpatch")).unwrap() != bare);
}

#[test]
fn a_second_signal_in_place_says_what_it_leaves() {
    needs_strace!();
    let bench = Bench::new();
    // The folder is synced twice before anything is written.
    let tampering = "fallocate,fsync,fdatasync,pwrite64:signal=INT:delay_exit=100000:when=3..5";
    let in_place = "apply shards shards.mpatch --in-place";
    let output = tamper(&bench, tampering, in_place);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("half-way") && !said.contains("nothing changed"), "{said}");
    // Strace may have words of its own after these.
    assert!(said.contains("\nstate: recovery pending\n"), "{said}");
    bench.succeeds(in_place);
}

#[test]
fn a_clone_that_is_stopped_leaves_nothing() {
    let place = Place::begun();
    let git = "#!/bin/sh\nkill -TERM $PPID\nsleep 1\n";
    fs::create_dir(place.path("programs")).unwrap();
    fs::write(place.path("programs/git"), git).unwrap();
    set_mode(&place.path("programs/git"), 0o755);
    fs::create_dir(place.path("there")).unwrap();
    let path = format!("{}:{}", place.path("programs").display(), std::env::var("PATH").unwrap());
    for (words, is_left) in [("clone . new", false), ("clone . there", true)] {
        let mut command = place.command(assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap());
        let output = command.env("PATH", &path).args(words.split(' ')).output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(143), "{words}: {said}");
        assert!(said.ends_with("state: unchanged\n"), "{said}");
        let folder = place.path(words.rsplit(' ').next().unwrap());
        assert_eq!(folder.exists(), is_left, "{words}");
        assert!(!is_left || fs::read_dir(folder).unwrap().next().is_none(), "{words}");
    }
}

#[test]
fn an_examination_and_a_demonstration_that_are_stopped_leave_nothing() {
    needs_strace!();
    let place = Place::new();
    let passing = place.path("passing");
    fs::create_dir(&passing).unwrap();
    for (signal, code) in heeded(&[("HUP", 129), ("INT", 130), ("TERM", 143)]) {
        // The first file has its name, or the key and the model of the demonstration.
        for (words, renamed) in [("doctor --checks-only --device cpu", 1), ("demo", 1), ("demo", 7)] {
            let injection = format!("renameat2:signal={signal}:delay_exit=300000:when={renamed}");
            let mut command = place.command("strace");
            command.args(&tampered(&injection)[1..]).arg(assert_cmd::cargo::cargo_bin!("mpatch"));
            let output = command.args(words.split(' ')).env("TMPDIR", &passing).output().unwrap();
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(code), "{words}: {said}");
            assert!(said.ends_with("state: unchanged\n"), "{said}");
            assert!(fs::read_dir(&passing).unwrap().next().is_none(), "{words}");
        }
    }
}

#[test]
fn a_command_that_is_stopped_while_it_makes_its_folder_leaves_none() {
    needs_strace!();
    let place = Place::begun();
    for words in ["init new --base model.safetensors", "clone . new"] {
        // The first is the folder's, and whether its signal comes before the next step is up to the system.
        for call in [1, 1, 1, 1, 2, 3, 4, 5] {
            let injection = format!("mkdir,mkdirat:signal=TERM:delay_exit=20000:when={call}");
            let output = run_tampered(&place, &injection, words);
            let (said, is_there) = (stderr(&output), place.path("new").exists());
            assert_eq!(output.status.success(), is_there, "{words}, call {call}: {said}");
            assert!(is_there || said.ends_with("state: unchanged\n"), "{words}, call {call}: {said}");
            if is_there {
                fs::remove_dir_all(place.path("new")).unwrap();
            }
        }
    }
}

#[test]
fn threads_that_cannot_be_started_are_no_bug() {
    needs_strace!();
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    let words = "apply model.safetensors one.mpatch -o edited.safetensors";
    let output = run_tampered(&place, "clone,clone3:error=EAGAIN", words);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(13), "{said}");
    assert!(said.contains("set RAYON_NUM_THREADS=1") && said.ends_with("state: unchanged\n"), "{said}");
    place.good(words);
    // One listens to signals and one computes; what other threads would have done, the first one does.
    for words in [
        "revert edited.safetensors one.mpatch -o again.safetensors",
        "revert edited.safetensors one.mpatch --in-place",
    ] {
        let mut command = place.command("strace");
        command.args(&tampered("clone,clone3:error=EAGAIN:when=3+")[1..]).env("RAYON_NUM_THREADS", "1");
        command.arg(assert_cmd::cargo::cargo_bin!("mpatch")).args(words.split(' '));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{words}: {}", stderr(&output));
    }
    let bytes = |name: &str| fs::read(place.path(name)).unwrap();
    let base = bytes("model.safetensors");
    assert!(bytes("again.safetensors") == base && bytes("edited.safetensors") == base);
}

#[test]
fn a_way_of_several_steps_that_is_told_to_stop_leaves_a_known_state_and_no_litter() {
    needs_strace!();
    let place = Place::begun();
    let model = || fs::read(place.path("model.safetensors")).unwrap();
    let names = || {
        let entries = fs::read_dir(place.folder.path()).unwrap();
        let mut names = Vec::from_iter(entries.map(|entry| entry.unwrap().file_name()));
        names.sort();
        names
    };
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("checkout HEAD -o one.safetensors");
    place.patch("one.safetensors", "two.mpatch", 2, "The Colosseum");
    place.good("add two.mpatch");
    place.good("checkout HEAD -o two.safetensors");
    let [base, one, two] =
        ["model", "one", "two"].map(|name| fs::read(place.path(&format!("{name}.safetensors"))).unwrap());
    // Each step reserves room once; the second one is told to stop.
    let tampering = "fallocate:signal=INT:delay_exit=300000:when=2";
    let stopped = |words: &str| {
        let output = run_tampered(&place, tampering, words);
        assert_eq!(output.status.code(), Some(130), "{words}: {}", stderr(&output));
        stderr(&output)
    };
    let before = names();
    let said = stopped("checkout HEAD --onto model.safetensors -o copy.safetensors");
    assert!(said.ends_with("state: unchanged\n"), "{said}");
    assert!(names() == before && model() == base);
    let in_place = "checkout HEAD --onto model.safetensors --in-place";
    let said = stopped(in_place);
    assert!(said.contains("1 of 2 steps to `model.safetensors` are done"), "{said}");
    assert!(said.ends_with("state: partly applied\n"), "{said}");
    assert!(names() == before && model() == one);
    place.good(in_place);
    assert!(names() == before && model() == two);
    // However many steps a copy takes, one passing copy is made.
    place.patch("two.safetensors", "three.mpatch", 4, "Big Ben");
    place.good("add three.mpatch");
    place.good("checkout HEAD -o three.safetensors");
    let (trace, mut command) = (place.path("trace"), place.command("strace"));
    command.args(["-f", "-qq", "-e", "trace=file", "-o"]).arg(&trace);
    command.arg(assert_cmd::cargo::cargo_bin!("mpatch")).args([
        "checkout",
        "HEAD~3",
        "-o",
        "back.safetensors",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let traced = fs::read_to_string(trace).unwrap();
    assert!(traced.contains("/step-1.safetensors") && !traced.contains("/step-2.safetensors"));
    assert!(fs::read(place.path("back.safetensors")).unwrap() == base);
}
