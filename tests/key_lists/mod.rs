//! Changes of the lists of keys: what is added, removed and revoked is what was meant, whoever else is at work.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use mpatch::sign::PrivateKey;
use mpatch::sign::allowed_signers::line_of;

use crate::bench::{Bench, openssh_is_here, said};
use crate::material::{SETTINGS, lay_out_signers};

/// The line that trusts the key of `seed` as `name`.
fn line(name: &str, seed: u8) -> String {
    line_of(name, PrivateKey::from_seed(&[seed; 32], "").unwrap().public())
}

#[test]
fn a_key_is_removed_by_what_it_is_and_not_by_where_it_was() {
    let bench = Bench::new();
    let [alice, bob, carol] = [("alice", 1), ("bob", 2), ("carol", 3)].map(|(name, seed)| line(name, seed));
    bench.trust(&format!("{alice}\n{bob}\n{carol}\n"));
    // Another mpatch is at work on the file, and removes Alice.
    let lock = fs::File::create(bench.path("config/.lock")).unwrap();
    lock.lock().unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mpatch"));
    command.current_dir(bench.folder.path()).envs(SETTINGS).args(["trust", "remove", "bob"]);
    let waiting = command.stdout(Stdio::piped()).spawn().unwrap();
    sleep(Duration::from_millis(500));
    bench.trust(&format!("{bob}\n{carol}\n"));
    lock.unlock().unwrap();
    said(&waiting.wait_with_output().unwrap(), "remove", 0);
    assert_eq!(fs::read_to_string(bench.path("config/allowed_signers")).unwrap(), format!("{carol}\n"));
}

/// Signs `unsigned.mpatch` with a key that `ssh-keygen` has to be asked for, which takes so long that `other` has been
/// copied over the patch when it answers.
#[track_caller]
fn sign_while_copied_over(bench: &Bench, other: &str, code: i32) -> String {
    bench.make_key("ed25519", "theirs");
    let path = std::env::var("PATH").unwrap();
    let slow = format!("#!/bin/sh\ncp {other} unsigned.mpatch\nPATH='{path}' exec ssh-keygen \"$@\"\n");
    bench.write("slow/ssh-keygen", slow);
    fs::set_permissions(bench.path("slow/ssh-keygen"), fs::Permissions::from_mode(0o700)).unwrap();
    let slow = format!("{}:{path}", bench.path("slow").display());
    let words = "sign unsigned.mpatch --key theirs.pub";
    said(&bench.command(words).env("PATH", slow).output().unwrap(), words, code)
}

#[test]
fn a_signature_goes_into_the_patch_that_is_there_and_never_over_another() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    // The same patch, which somebody else has signed meanwhile: both signatures stay.
    let report = sign_while_copied_over(&bench, "stranger.mpatch", 0);
    assert!(report.contains("unsigned.mpatch: 2 signatures"), "{report}");
    assert_eq!(bench.answer("unsigned.mpatch", 0)["signatures"].as_array().unwrap().len(), 2);
    // Another patch stays as it is.
    let bench = Bench::new();
    let refused = sign_while_copied_over(&bench, "more.mpatch", 7);
    assert!(refused.contains("`unsigned.mpatch` is another patch now"), "{refused}");
    let [now, other] = ["unsigned.mpatch", "more.mpatch"].map(|name| fs::read(bench.path(name)).unwrap());
    assert_eq!(now, other);
}
