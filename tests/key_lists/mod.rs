//! Changes of the lists of keys: what is added, removed and revoked is what was meant, whoever else is at work.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use mpatch::sign::allowed_signers::line_of;
use mpatch::sign::{PrivateKey, sshsig as openssh};

use crate::bench::{Bench, openssh_is_here, said};
use crate::ed25519::{sshsig, string};
use crate::material::{
    command, key, lay_out_signers, signed_with, unsigned_patch, wait_until_open, write_key,
};

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
    let mut command = command(assert_cmd::cargo::cargo_bin!("mpatch"));
    command.current_dir(bench.folder.path()).args(["trust", "remove", "bob"]);
    let mut waiting = command.stdout(Stdio::piped()).spawn().unwrap();
    wait_until_open(&mut waiting, &bench.path("config/.lock"));
    bench.trust(&format!("{bob}\n{carol}\n"));
    lock.unlock().unwrap();
    said(&waiting.wait_with_output().unwrap(), "remove", 0);
    // It stays as a comment, by which signing with it does not put it back.
    let held = fs::read_to_string(bench.path("config/allowed_signers")).unwrap();
    assert_eq!(held, format!("# {bob}\n{carol}\n"));
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

#[test]
fn of_several_signers_of_a_patch_one_is_trusted_the_one_that_was_compared() {
    let bench = Bench::new();
    let unsigned = fs::read(bench.path("unsigned.mpatch")).unwrap();
    let [one, two] = [1, 2].map(|seed| PrivateKey::from_seed(&[seed; 32], "").unwrap());
    bench.write("both.mpatch", signed_with(signed_with(unsigned.clone(), &one), &two));
    let [one, two] = [one, two].map(|key| key.public().fingerprint().to_string());
    let refused = bench.run("apply model.safetensors both.mpatch", 5);
    assert!(refused.contains(&one) && refused.contains(&two), "{refused}");
    let way_out = "trust add both.mpatch --fingerprint FINGERPRINT --principal NAME";
    assert!(refused.contains(way_out), "{refused}");
    let asked = bench.run("trust add both.mpatch --principal alice --yes", 2);
    assert!(asked.contains(&one) && asked.contains(&two) && asked.contains("--fingerprint"), "{asked}");
    let stranger = PrivateKey::from_seed(&[3; 32], "").unwrap().public().fingerprint();
    bench.run(&format!("trust add both.mpatch --fingerprint {stranger} --principal alice --yes"), 2);
    bench.run(&format!("trust add both.mpatch --fingerprint {two} --principal alice --yes"), 0);
    let list = bench.run("trust list", 0);
    assert!(list.contains(&two) && !list.contains(&one), "{list}");
    // The other one is the only one that is left to be trusted.
    let report = bench.run("trust add both.mpatch --principal bob --yes", 0);
    assert!(report.contains(&one) && !report.contains(&two), "{report}");
}

#[test]
fn the_signer_of_a_patch_is_found_beside_it_too_and_beside_what_is_not_judged() {
    let bench = Bench::new();
    let key = PrivateKey::from_seed(&[1; 32], "").unwrap();
    let armour = openssh::sign(&key, &bench.manifest("unsigned.mpatch")).unwrap().to_armour();
    bench.write("of a friend", &armour);
    let way_out = "mpatch trust add unsigned.mpatch --signature 'of a friend' --principal NAME";
    let mut command = bench.command("verify unsigned.mpatch --signature");
    let refused = said(&command.arg("of a friend").output().unwrap(), "verify", 5);
    assert!(refused.contains(way_out), "{refused}");
    let mut command = bench.command("trust add unsigned.mpatch --principal alice --yes --signature");
    said(&command.arg("of a friend").output().unwrap(), "trust add", 0);
    bench.trust("");
    // A kind of key that nobody has heard of.
    bench.write("unsigned.mpatch.sig", sshsig(&string(b"ssh-later"), &string(b"ssh-later")));
    bench.run("trust add unsigned.mpatch --principal alice --yes", 15);
    fs::rename(bench.path("unsigned.mpatch.sig"), bench.path("later")).unwrap();
    bench.write("unsigned.mpatch.sig", &armour);
    bench.run("trust add unsigned.mpatch --principal alice --yes --signature later", 0);
    bench.run("verify unsigned.mpatch", 0);
}

#[test]
fn a_line_that_brings_its_own_principals_is_not_added_as_somebody_else() {
    let bench = Bench::new();
    let anybody = format!("* {}\n", PrivateKey::from_seed(&[1; 32], "").unwrap().public().line());
    bench.write("anybody", &anybody);
    let refused = bench.run("trust add anybody --principal alice@example.org", 2);
    assert!(refused.contains("stands for, `*`"), "{refused}");
    // Whoever could read the file still can.
    let signers = bench.path("config/allowed_signers");
    fs::set_permissions(&signers, fs::Permissions::from_mode(0o644)).unwrap();
    bench.run("trust add anybody", 0);
    assert!(fs::read_to_string(&signers).unwrap().ends_with(&anybody));
    assert_eq!(fs::metadata(&signers).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn a_key_that_is_trusted_already_is_not_added_again_because_its_comment_is_another() {
    let bench = Bench::new();
    let key = PrivateKey::from_seed(&[1; 32], "").unwrap().public().line();
    bench.write("home.pub", format!("{key} at home\n"));
    bench.write("work.pub", format!("{key} at work\n{key}\n"));
    bench.run("trust add home.pub --principal alice", 0);
    let refused = bench.run("trust add work.pub --principal alice", 7);
    assert!(refused.contains("config/allowed_signers` trusts 2 such keys already"), "{refused}");
    // Another name says more, and once.
    bench.run("trust add work.pub --principal bob", 0);
    let signers = fs::read_to_string(bench.path("config/allowed_signers")).unwrap();
    assert_eq!(signers.lines().filter(|line| line.contains(&key)).count(), 2, "{signers}");
}

#[test]
fn every_key_of_a_file_is_revoked_and_what_is_written_can_be_read() {
    let bench = Bench::new();
    let [one, two, three] = [1, 2, 3].map(|seed| PrivateKey::from_seed(&[seed; 32], "").unwrap());
    let bare = |key: &PrivateKey| key.public().line();
    bench.write("keys", format!("# theirs\n{} a\u{1b}[2Jcomment\n\n* {}\n", bare(&one), bare(&two)));
    bench.run("trust revoke keys", 0);
    let revoked = format!("{} a[2Jcomment\n{}\n", bare(&one), bare(&two));
    assert_eq!(fs::read_to_string(bench.path("config/revoked")).unwrap(), revoked);
    bench.run("trust list", 0);
    // A large file is a patch only if it begins as one.
    bench.write("large", vec![b'x'; 5 << 20]);
    let refused = bench.run("trust add large --principal carol", 12);
    assert!(refused.contains("hint: give a public key file (`.pub`), lines of"), "{refused}");
    bench.write("half", format!("{}\nnonsense\n", bare(&three)));
    let refused = bench.run("trust revoke half", 3);
    assert!(refused.contains("`half`, line 2: neither a public key"), "{refused}");
    // As a shell hands over what another program prints.
    bench.trust(&line("carol", 3));
    for verb in ["revoke", "remove"] {
        let mut command = bench.command(&format!("trust {verb} /dev/stdin"));
        said(&command.write_stdin(bare(&three)).output().unwrap(), verb, 0);
    }
}

#[test]
fn a_projects_links_are_never_written_through() {
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    fs::create_dir(bench.path("mine")).unwrap();
    let revoke = "trust revoke ../second.pub --project";
    let add = "trust add ../second.pub --principal eve@example.org --project";
    let refuse = |words: &str| {
        let refused = bench.run_in("project", words, 11);
        assert!(refused.contains("through which nothing of a project is changed"), "{words}: {refused}");
    };
    for (link, target, words) in [
        (".mpatch/revoked", "revoked", revoke),
        (".mpatch/allowed_signers", "allowed_signers", add),
        (".mpatch/.lock", "missing", revoke),
        (".mpatch", "", add),
    ] {
        ["revoked", "allowed_signers"].iter().for_each(|name| bench.write(&format!("mine/{name}"), ""));
        let link = bench.path("project").join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(bench.path("mine").join(target), link).unwrap();
        refuse(words);
        let sizes =
            fs::read_dir(bench.path("mine")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
        assert_eq!(sizes.collect::<Vec<_>>(), [0, 0], "{words}");
        fs::remove_dir_all(bench.path("project")).unwrap();
    }
    // A pipe under the name of the lock keeps nobody waiting.
    fs::create_dir_all(bench.path("project/.mpatch")).unwrap();
    let mut command = Command::new("mkfifo");
    assert!(command.arg(bench.path("project/.mpatch/.lock")).status().unwrap().success());
    refuse(revoke);
}

#[test]
fn a_line_that_is_no_text_is_told_and_left_as_it_is() {
    let bench = Bench::new();
    let latin = b"# Jos\xe9\njos\xe9@example.org ".as_slice();
    let held = [latin, key().public().line().as_bytes(), b"\n", line("maker", 7).as_bytes()].concat();
    bench.write("config/allowed_signers", &held);
    let warned = bench.run("verify edits.mpatch", 0);
    assert!(warned.contains("line 2: it is not text in UTF-8; ignored"), "{warned}");
    bench
        .write("second.pub", PrivateKey::from_seed(&[9; 32], "second").unwrap().public().line_with_comment());
    bench.run("trust add second.pub", 0);
    bench.run("trust remove second", 0);
    let left = fs::read(bench.path("config/allowed_signers")).unwrap();
    assert!(left.starts_with(&[&held[..], b"\n# second "].concat()));
}

#[test]
fn what_lies_beside_a_patch_and_is_no_ssh_signature_is_left_out() {
    let bench = Bench::new();
    for other in ["", "-----BEGIN PGP SIGNATURE-----\n", "\u{88}u\u{4}"] {
        bench.write("edits.mpatch.sig", other);
        let warned = bench.run("verify edits.mpatch", 0);
        assert!(warned.contains("`edits.mpatch.sig` is not an SSH signature, and is left out"), "{warned}");
    }
    // What the user names is what was meant.
    bench.run("verify edits.mpatch --signature edits.mpatch.sig", 4);
    bench.write("edits.mpatch.sig", "SSHSIG, or what is left of it");
    bench.run("verify edits.mpatch", 4);
    // Beside standard input lies nothing.
    fs::rename(bench.path("edits.mpatch.sig"), bench.path("-.sig")).unwrap();
    let patch = fs::read(bench.path("edits.mpatch")).unwrap();
    said(&bench.command("verify -").write_stdin(patch).output().unwrap(), "verify -", 0);
}

#[test]
fn a_patch_that_is_full_of_signatures_gets_one_beside_it() {
    let bench = Bench::new();
    let keys = (20..36).map(|seed| PrivateKey::from_seed(&[seed; 32], "").unwrap());
    let unsigned = fs::read(bench.path("unsigned.mpatch")).unwrap();
    bench.write("full.mpatch", keys.fold(unsigned, |patch, key| signed_with(patch, &key)));
    assert!(bench.run("sign full.mpatch", 12).contains("`mpatch sign --detached` writes it"));
    bench.run("sign full.mpatch --detached", 0);
    bench.run("verify full.mpatch", 0);
}

#[test]
fn a_variable_need_not_be_utf_8_to_be_heeded() {
    let bench = Bench::new();
    let folder = OsStr::from_bytes(b"own\xff");
    fs::rename(bench.path("config"), bench.folder.path().join(folder)).unwrap();
    for (words, code) in [("verify edits.mpatch", 0), ("trust add stranger --json", 0)] {
        bench.write("stranger", PrivateKey::from_seed(&[1; 32], "me").unwrap().public().line_with_comment());
        let mut command = bench.command(words);
        said(&command.env("MPATCH_CONFIG_DIR", folder).output().unwrap(), words, code);
    }
    let words = "sign unsigned.mpatch";
    let mut command = bench.command(words);
    let refused = said(&command.env("MPATCH_KEY", folder).output().unwrap(), words, 11);
    assert!(refused.contains("MPATCH_KEY names this key"), "{refused}");
}

#[test]
fn keys_are_read_from_standard_input_and_a_patch_of_the_history_has_nothing_beside_it() {
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    let fed = |words: &str, name: &str, code: i32| {
        let bytes = fs::read(bench.path(name)).unwrap();
        said(&bench.command(words).write_stdin(bytes).output().unwrap(), words, code)
    };
    fed("trust add - --principal second@example.org", "second.pub", 0);
    assert!(fed("trust add - --principal stranger", "stranger.mpatch", 5).contains("say `--yes`"));
    fed("trust add - --principal stranger --yes", "stranger.mpatch", 0);
    bench.run("verify stranger.mpatch", 0);
    bench.run("init --base model.safetensors", 0);
    bench.run("add edits.mpatch", 0);
    fs::copy(bench.path("second.pub"), bench.path("HEAD.sig")).unwrap();
    assert!(!bench.run("verify HEAD", 0).contains("HEAD.sig"));
}

#[test]
fn a_key_is_trusted_once_what_it_signed_is_there_and_not_before() {
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    bench.trust("");
    // What is larger than a block or four cannot be written.
    let limited = "ulimit -f 4; exec \"$@\"";
    let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap();
    let title = "t".repeat(4000);
    let words = ["diff", "model.safetensors", "other.safetensors", "-o", "new.mpatch", "--key", "second"];
    let mut command = crate::material::command("sh");
    command.current_dir(bench.folder.path()).args(["-c", limited, "sh", program]);
    let output = command.args(words).args(["--title", &title]).output().unwrap();
    assert!(said(&output, "diff", 11).ends_with("state: unchanged\n"));
    assert!(!bench.path("new.mpatch").exists());
    assert_eq!(fs::read_to_string(bench.path("config/allowed_signers")).unwrap(), "");
    // What stands stands, also where its key cannot be trusted.
    fs::create_dir(bench.path("config/.lock")).unwrap();
    let told = bench.run(&words.join(" "), 11);
    assert!(told.contains("state: applied") && bench.path("new.mpatch").exists(), "{told}");
    fs::remove_dir(bench.path("config/.lock")).unwrap();
    assert!(told.contains("hint: see to that; then `mpatch trust add` with the patch"), "{told}");
    bench.run("trust add new.mpatch --principal second@example.org --yes", 0);
}

#[test]
fn keys_of_ones_own_fill_no_role_of_a_policy_and_one_that_was_removed_stays_so() {
    let bench = Bench::new();
    for (name, seed) in [("ceo", 3), ("second-key", 4)] {
        write_key(&bench.path(name), &PrivateKey::from_seed(&[seed; 32], "ceo@example.org").unwrap());
    }
    let apply = "apply model.safetensors unsigned.mpatch --dry-run";
    let said = bench.run("sign unsigned.mpatch --key ceo", 0);
    assert!(said.contains("now trusts it, as me"), "{said}");
    bench.run(apply, 0);
    bench.write("config/policy.json", r#"{"required": ["ceo@example.org"]}"#);
    assert!(bench.run(apply, 5).contains("for the signature of `ceo@example.org`"));
    bench.write("config/policy.json", r#"{"threshold": 2}"#);
    bench.run("sign unsigned.mpatch --key second-key", 0);
    assert!(bench.run(apply, 5).contains("for 2 trusted keys, 1 signed"));
    // Somebody else's counts beside them.
    bench.run("sign unsigned.mpatch", 0);
    bench.run(apply, 0);
    fs::remove_file(bench.path("config/policy.json")).unwrap();
    bench.run("trust remove me", 0);
    let said = bench.run("sign edits.mpatch --key ceo", 0);
    assert!(said.contains("does not trust it: it was taken out there"), "{said}");
    assert!(!bench.run("trust list", 0).contains("  me  "));
}

#[test]
fn a_private_key_that_others_can_read_is_refused_by_its_public_half_too() {
    let bench = Bench::new();
    let key = PrivateKey::from_seed(&[3; 32], "").unwrap();
    write_key(&bench.path("open"), &key);
    bench.write("open.pub", key.public().line_with_comment());
    fs::set_permissions(bench.path("open"), Permissions::from_mode(0o644)).unwrap();
    let refused = bench.run("sign unsigned.mpatch --key open.pub", 11);
    assert!(refused.contains("`open` is a private key that others can read"), "{refused}");
}

#[test]
fn those_who_sign_at_once_without_a_key_make_one() {
    let bench = Bench::new();
    fs::remove_dir_all(bench.path("config")).unwrap();
    let copies: Vec<String> = (0..8).map(|number| format!("{number}.mpatch")).collect();
    copies.iter().for_each(|copy| _ = fs::copy(bench.path("unsigned.mpatch"), bench.path(copy)).unwrap());
    std::thread::scope(|scope| {
        let bench = &bench;
        for copy in &copies {
            scope.spawn(move || bench.run(&format!("sign {copy}"), 0));
        }
    });
    copies.iter().for_each(|copy| assert_eq!(bench.answer(copy, 0)["answer"], "trusted"));
}

#[test]
fn a_signature_beside_a_history_counts_for_the_patch_that_it_signs() {
    let bench = Bench::new();
    let second = PrivateKey::from_seed(&[3; 32], "").unwrap();
    write_key(&bench.path("reviewer"), &second);
    let lines = [key(), second].map(|key| line_of("maker@example.org", key.public()) + "\n");
    bench.trust(&lines.concat());
    bench.run("init --base model.safetensors", 0);
    bench.run("apply model.safetensors edits.mpatch -o one.safetensors", 0);
    bench.write(
        "next.mpatch",
        signed_with(unsigned_patch(&bench.path("one.safetensors"), None, "next"), &key()),
    );
    bench.run("apply one.safetensors next.mpatch -o two.safetensors", 0);
    bench.write("config/policy.json", r#"{"threshold": 2}"#);
    for (state, name) in [("HEAD~1", "one.sig"), ("HEAD", "two.sig")] {
        bench.run(&format!("sign {state} --key reviewer --detached -o {name}"), 0);
    }
    let checkout = "checkout HEAD --onto model.safetensors -o new.safetensors --signature one.sig";
    let refused = bench.run(checkout, 5);
    assert!(refused.contains("--key FILE --detached -o NAME.sig` writes a signature"), "{refused}");
    bench.run(&format!("{checkout} --signature two.sig"), 0);
}
