//! Changes of the lists of keys: what is added, removed and revoked is what was meant, whoever else is at work.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use mpatch::sign::PrivateKey;
use mpatch::sign::allowed_signers::line_of;

use crate::bench::{Bench, said};
use crate::material::SETTINGS;

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
