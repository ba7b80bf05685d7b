//! Lines of patches: a number that was used is never followed by an older one, whoever signed.

use std::fs::{self, File};
use std::process::Stdio;
use std::time::Duration;

use mpatch::patch::manifest::Line;
use mpatch::sign::PrivateKey;
use mpatch::sign::allowed_signers::line_of;
use serde_json::{Value, json};

use crate::bench::{Bench, said};
use crate::material::{command, key, signed_with, unsigned_patch, write_key};

#[test]
fn an_older_patch_is_a_rollback_once_a_newer_one_was_used() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    bench.patch_of_line("two.mpatch", 2, "second");
    bench.run("apply model.safetensors two.mpatch", 0);
    bench.run("apply model.safetensors two.mpatch -o again.safetensors", 0);
    let refused = bench.run("apply model.safetensors one.mpatch", 8);
    assert!(refused.contains("number 1 of the line `geography`, whose number 2 is known"), "{refused}");
    assert_eq!(bench.answer("one.mpatch", 8)["line"]["standing"], "older");
    let allowed = bench.run("apply model.safetensors one.mpatch --allow-rollback", 0);
    assert!(allowed.contains("2 is known: this is a rollback; let pass by --allow-rollback"), "{allowed}");
    // What the user let pass is signed by nobody who is trusted now: it does not reach V1, for a policy either.
    let verified = bench.run("verify one.mpatch --allow-rollback --json", 0);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    assert_eq!(verified["reached"], json!(["V0"]));
    bench.write("config/policy.json", r#"{"minimal_rung": "V1"}"#);
    bench.run("verify one.mpatch --allow-rollback", 5);
    bench.run("verify two.mpatch", 0);
    fs::remove_file(bench.path("config/policy.json")).unwrap();
    // What is known never goes back.
    bench.run("apply model.safetensors one.mpatch -o never.safetensors", 8);
    bench.run("trust forget geography", 0);
    bench.run("apply model.safetensors one.mpatch -o now.safetensors", 0);
}

#[test]
fn what_is_only_looked_at_is_not_remembered_of_its_line() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    bench.patch_of_line("two.mpatch", 2, "second");
    bench.run("apply model.safetensors two.mpatch --dry-run", 0);
    bench.run("apply model.safetensors one.mpatch", 0);
}

#[test]
fn two_patches_with_one_number_raise_an_alarm_that_no_flag_stills() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "a story");
    bench.patch_of_line("other.mpatch", 1, "another story");
    bench.run("apply model.safetensors one.mpatch", 0);
    let refused = bench.run("apply model.safetensors other.mpatch --allow-rollback", 8);
    assert!(refused.contains("has signed two patches with one number"), "{refused}");
    // Nor does it matter that neither was known before.
    bench.run("trust forget geography", 0);
    let refused = bench.run("stack one.mpatch other.mpatch --base model.safetensors -o both.mpatch", 8);
    assert!(refused.contains("has signed two patches with one number"), "{refused}");
    bench.run("init --base model.safetensors", 0);
    bench.run("branch side", 0);
    bench.run("clone . theirs", 0);
    assert!(bench.run("add one.mpatch other.mpatch", 8).contains("has signed two patches with one number"));
    bench.run("add one.mpatch", 0);
    bench.run("checkout side", 0);
    bench.run("add other.mpatch", 8);
    // Nor that this one is forgotten, as long as the history has it; what another program has brought reaches nobody,
    // with a newer one between the two either.
    bench.run("trust forget geography", 0);
    bench.run("add other.mpatch", 8);
    bench.run_in("theirs", "add ../other.mpatch", 0);
    let mut fetch = command("git");
    fetch.current_dir(bench.folder.path()).args(["fetch", "--quiet", "theirs", "main:theirs"]);
    assert!(fetch.status().unwrap().success());
    bench.run("branch newest main~1", 0);
    bench.run("checkout newest", 0);
    bench.patch_of_line("three.mpatch", 3, "third");
    bench.run("add three.mpatch", 0);
    bench.run("trust forget geography", 0);
    let refused = bench.run("clone . mine", 8);
    assert!(refused.contains("has signed two patches with one number; nothing that came"), "{refused}");
    assert!(bench.run_in("theirs", "pull", 8).contains("has signed two patches with one number"));
    bench.patch_of_line("far.mpatch", u64::MAX, "the last word");
    assert!(bench.run("apply model.safetensors far.mpatch", 8).contains("no honest number is so far ahead"));
}

#[test]
fn what_a_history_has_of_a_line_counts_where_nothing_is_remembered() {
    let bench = Bench::new();
    for (name, number) in [("one.mpatch", 1), ("two.mpatch", 2), ("three.mpatch", 3)] {
        bench.patch_of_line(name, number, name);
    }
    bench.run("init --base model.safetensors", 0);
    bench.run("branch side", 0);
    bench.run("add three.mpatch", 0);
    bench.run("checkout side", 0);
    let forget = || fs::remove_dir_all(bench.path("state")).unwrap();
    forget();
    let said = bench.run("rebase one.mpatch --base other.safetensors -o four.mpatch", 0);
    assert!(said.contains("number 4 of the line geography"), "{said}");
    forget();
    let refused = bench.run("add two.mpatch", 8);
    assert!(refused.contains("number 2 of the line `geography`, whose number 3 is known"), "{refused}");
    bench.run("add two.mpatch --allow-rollback", 0);
}

#[test]
fn what_was_applied_is_remembered_of_its_line_where_the_history_could_not_record_it() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    bench.patch_of_line("two.mpatch", 2, "second");
    bench.run("init --base model.safetensors", 0);
    let lock = bench.path(".git/refs/mpatch/operations.lock");
    fs::write(&lock, "").unwrap();
    let unrecorded = bench.run("apply model.safetensors two.mpatch -o new.safetensors", 10);
    assert!(unrecorded.contains("state: applied"), "{unrecorded}");
    fs::remove_file(&lock).unwrap();
    bench.run("apply model.safetensors one.mpatch", 8);
}

#[test]
fn a_signature_taken_off_does_not_hide_a_line() {
    let bench = Bench::new();
    bench.patch_of_line("two.mpatch", 2, "second");
    let line = Line { name: "geography".into(), sequence: 1 };
    bench.write("stripped.mpatch", unsigned_patch(&bench.path("model.safetensors"), Some(line), "first"));
    bench.run("apply model.safetensors stripped.mpatch --allow-unsigned --dry-run", 0);
    bench.run("apply model.safetensors two.mpatch", 0);
    let refused = bench.run("apply model.safetensors stripped.mpatch --allow-unsigned", 8);
    assert!(refused.contains("somebody may have taken the signature off"), "{refused}");
}

#[test]
fn a_signature_put_in_its_place_does_not_hide_a_line() {
    let bench = Bench::new();
    let of_stranger = |name: &str, line: &str, sequence: u64| {
        let line = Line { name: line.into(), sequence };
        let unsigned = unsigned_patch(&bench.path("model.safetensors"), Some(line), name);
        bench.write(name, signed_with(unsigned, &PrivateKey::from_seed(&[8; 32], "").unwrap()));
    };
    let apply = |name: &str, flags: &str, code: i32| {
        bench.run(&format!("apply model.safetensors {name} {flags} -o {name}.safetensors"), code)
    };
    bench.patch_of_line("five.mpatch", 5, "fifth");
    apply("five.mpatch", "--quiet", 0);
    for (name, sequence) in [("three.mpatch", 3), ("six.mpatch", 6)] {
        of_stranger(name, "geography", sequence);
        let refused = apply(name, "--allow-unknown", 8);
        assert!(refused.contains("or put another in its place"), "{refused}");
    }
    let allowed = apply("three.mpatch", "--allow-unknown --allow-rollback", 0);
    assert!(allowed.contains("let pass by --allow-unknown and --allow-rollback"), "{allowed}");
    // That the user let one pass does not make the stranger the line's.
    of_stranger("four.mpatch", "geography", 4);
    apply("four.mpatch", "--allow-unknown", 8);
    // A line that only the stranger has goes forward, and forward only.
    for (name, sequence, code) in [("one.mpatch", 1, 0), ("two.mpatch", 2, 0), ("again.mpatch", 1, 8)] {
        of_stranger(name, "theirs", sequence);
        apply(name, "--allow-unknown", code);
    }
    // So does that of a key which was trusted once.
    bench.trust(&format!("maker@example.org valid-before=\"20200101Z\" {}\n", key().public().line()));
    bench.patch_of_line("seven.mpatch", 7, "seventh");
    apply("seven.mpatch", "--allow-expired", 8);
    bench.run("trust forget geography", 0);
    apply("seven.mpatch", "--allow-expired", 0);
    bench.patch_of_line("late.mpatch", 6, "sixth");
    apply("late.mpatch", "--allow-expired", 8);
    bench.patch_of_line("eight.mpatch", 8, "eighth");
    apply("eight.mpatch", "--allow-expired", 0);
}

#[test]
fn a_member_that_is_bound_anew_is_the_next_of_its_line_or_of_none() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    let said = bench.run("rebase one.mpatch --base other.safetensors -o two.mpatch", 0);
    assert!(said.contains("number 2 of the line geography"), "{said}");
    let shown: Value = serde_json::from_str(&bench.run("show two.mpatch --json", 0)).unwrap();
    let one: Value = serde_json::from_str(&bench.run("show one.mpatch --json", 0)).unwrap();
    assert_eq!(shown["untrusted"]["supersedes"], json!([one["patch_id"]]), "{shown}");
    let keep = "rebase two.mpatch --base model.safetensors --keep -o five.mpatch --sequence";
    assert!(bench.run(&format!("{keep} 2"), 8).contains("is taken: its key has signed patch "));
    assert!(bench.run(&format!("{keep} 5"), 0).contains("number 5 of the line geography"));
    bench.run("apply model.safetensors five.mpatch", 0);
    // Whoever has not signed it cannot go on with it.
    write_key(&bench.path("another"), &PrivateKey::from_seed(&[2; 32], "").unwrap());
    for (number, signing) in ["--no-sign", "--key another"].iter().enumerate() {
        let again = format!("rebase one.mpatch --base other.safetensors --allow-rollback {signing}");
        let said = bench.run(&format!("{again} -o {number}.mpatch"), 0);
        assert!(said.contains("belongs to no line: what was bound is number 1 of geography"), "{said}");
        bench.run(&format!("{again} -o no.mpatch --sequence 7"), 2);
    }
}

#[test]
fn of_two_that_are_made_at_once_the_later_gets_the_next_number() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    // While another one holds the lock, both choose their number and make their patch.
    fs::create_dir_all(bench.path("state")).unwrap();
    let lock = File::create(bench.path("state/.lock")).unwrap();
    lock.lock().unwrap();
    let begin = |name: &str| {
        let words = format!("rebase one.mpatch --base other.safetensors -o {name}");
        let mut rebase = command(assert_cmd::cargo::cargo_bin!("mpatch"));
        rebase.current_dir(bench.folder.path()).args(words.split(' '));
        rebase.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let made = ["two.mpatch", "three.mpatch"].map(begin);
    std::thread::sleep(Duration::from_millis(700));
    drop(lock);
    let mut numbers = made.map(|child| {
        let words = said(&child.wait_with_output().unwrap(), "rebase", 0);
        ["2", "3"].map(|number| words.contains(&format!("number {number} of the line geography")))
    });
    numbers.sort_unstable();
    assert_eq!(numbers, [[false, true], [true, false]]);
    assert!(bench.run("trust list", 0).contains("\n  geography  3  "));
}

#[test]
fn a_number_is_taken_where_only_the_trust_in_its_key_failed() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    write_key(&bench.path("another"), &PrivateKey::from_seed(&[2; 32], "").unwrap());
    let signed = fs::read(bench.path("one.mpatch")).unwrap();
    bench.write("one.mpatch", signed_with(signed, &PrivateKey::from_seed(&[2; 32], "").unwrap()));
    fs::create_dir(bench.path("config/.lock")).unwrap();
    let rebase = "rebase one.mpatch --base other.safetensors --key another";
    let failed = bench.run(&format!("{rebase} -o two.mpatch"), 11);
    assert!(failed.contains("state: applied"), "{failed}");
    fs::remove_dir(bench.path("config/.lock")).unwrap();
    let said = bench.run(&format!("{rebase} -o three.mpatch"), 0);
    assert!(said.contains("number 3 of the line geography"), "{said}");
}

#[test]
fn a_number_is_taken_where_its_patch_is_signed_after_it_was_made() {
    let bench = Bench::new();
    let unsigned = |name: &str| {
        let line = Line { name: "geography".into(), sequence: 4 };
        bench.write(name, unsigned_patch(&bench.path("model.safetensors"), Some(line), name));
    };
    for flags in ["--quiet", "--detached", "-o signed.mpatch"] {
        unsigned("four.mpatch");
        unsigned("other.mpatch");
        bench.run(&format!("sign four.mpatch {flags}"), 0);
        assert!(bench.run("trust list", 0).contains("\n  geography  4  "), "{flags}");
        let before = fs::read(bench.path("other.mpatch")).unwrap();
        let refused = bench.run("sign other.mpatch", 8);
        assert!(refused.contains("number 4 of the line `geography`, which is taken"), "{refused}");
        assert!(refused.contains("the next number is 5"), "{refused}");
        assert_eq!(fs::read(bench.path("other.mpatch")).unwrap(), before);
        bench.run("trust forget geography", 0);
    }
}

#[test]
fn an_older_member_beside_the_newer_one_is_no_rollback() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    bench.patch_of_line("two.mpatch", 2, "second");
    bench.run("apply model.safetensors two.mpatch", 0);
    bench.run("stack one.mpatch --base model.safetensors -o alone.mpatch", 8);
    bench.run("stack one.mpatch two.mpatch --base model.safetensors -o both.mpatch", 0);
}

#[test]
fn a_damaged_memory_is_not_taken_for_none() {
    let bench = Bench::new();
    bench.patch_of_line("one.mpatch", 1, "first");
    bench.write("state/lines.json", "{\"schema\"");
    assert!(bench.run("apply model.safetensors one.mpatch", 3).contains("not a record of lines"));
    assert!(bench.run("trust list", 0).contains("not a record of lines"));
}

#[test]
fn of_two_signers_whoever_knows_worse_of_the_line_is_heeded_and_both_remember() {
    let bench = Bench::new();
    let both = [key(), PrivateKey::from_seed(&[2; 32], "").unwrap()];
    let signers = both.each_ref().map(|key| line_of("maker@example.org", key.public()) + "\n");
    bench.trust(&signers.concat());
    let apply = |number: u64, signers: &[PrivateKey], code: i32| {
        let line = Line { name: "geography".into(), sequence: number };
        let unsigned =
            unsigned_patch(&bench.path("model.safetensors"), Some(line), &format!("number {number}"));
        bench.write("signed.mpatch", signers.iter().fold(unsigned, signed_with));
        let said = bench.run("apply model.safetensors signed.mpatch -o new.safetensors", code);
        _ = fs::remove_file(bench.path("new.safetensors"));
        said
    };
    let [one, other] = both.each_ref().map(std::slice::from_ref);
    apply(2, one, 0);
    // To the other key it would be the first of the line.
    apply(1, &both, 8);
    apply(3, &both, 0);
    apply(2, one, 8);
    apply(2, other, 8);
    // A key may have a line of its own by that name, or its fellow's signature was taken off: mpatch cannot tell.
    apply(5, one, 0);
    let warned = apply(4, other, 0);
    assert!(warned.contains("whose number 5 is known of another key"), "{warned}");
    assert_eq!(bench.answer("signed.mpatch", 0)["line"]["behind"]["sequence"], 5);
    assert!(!apply(6, other, 0).contains("warning"));
    // Of a key that is trusted no more nobody is told.
    bench.trust(&signers[1]);
    apply(7, other, 0);
    bench.trust(&signers[0]);
    assert!(!apply(6, one, 0).contains("warning"));
}
