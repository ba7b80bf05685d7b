//! Trust, against OpenSSH's own programs: what `ssh-keygen` signs is judged here, what is signed here `ssh-keygen`
//! accepts, and what is not to be trusted is refused with its own answer and exit code. `docs/trust.md` makes the
//! claims that these tests hold.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod bench;
mod ed25519;
mod git_settings;
mod key_lists;
mod lines;
mod material;
mod telling;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bench::{Bench, openssh_is_here, said};
use ed25519::{sshsig, string};
use material::{command, key, lay_out_editing, lay_out_signers, write_key};
use mpatch::sign::allowed_signers::line_of;
use mpatch::sign::sshsig::SshSigError;
use mpatch::sign::{PrivateKey, SshSig};
use serde_json::Value;
use ssh_key::HashAlg;

const APPLY: &str = "apply model.safetensors edits.mpatch -o edited.safetensors";

// ------------------------------------------------------------------------------------- both ways with OpenSSH --

#[test]
fn ssh_keygen_accepts_what_is_signed_here() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    let signature = bench.command("show edits.mpatch --signature").output().unwrap().stdout;
    bench.write("edits.sig", signature);
    let verify = "-Y verify -f config/allowed_signers -I maker@example.org -n mpatch -s edits.sig";
    let manifest = bench.manifest("edits.mpatch");
    let good = bench.ssh_keygen(verify, &manifest);
    assert!(said(&good, verify, 0).contains("Good \"mpatch\" signature for maker@example.org"));
    assert!(!bench.ssh_keygen(verify, &manifest[1..]).status.success());
    // What is revoked here is revoked there.
    bench.run("trust revoke maker@example.org", 0);
    assert!(!bench.ssh_keygen(&format!("{verify} -r config/revoked"), &manifest).status.success());
}

#[test]
fn what_ssh_keygen_signs_is_accepted_here() {
    if !openssh_is_here() {
        return;
    }
    for kind in ["ed25519", "ecdsa -b 256", "ecdsa -b 384"] {
        let bench = Bench::new();
        bench.trust(&bench.make_key(kind, "theirs"));
        bench.sign_with_openssh("theirs", "mpatch");
        assert_eq!(bench.answer("unsigned.mpatch", 0)["answer"], "trusted", "{kind}");
        bench.run("apply model.safetensors unsigned.mpatch", 0);
        // By name, too.
        fs::rename(bench.path("unsigned.mpatch.sig"), bench.path("elsewhere")).unwrap();
        bench.run("verify unsigned.mpatch", 5);
        bench.run("verify unsigned.mpatch --signature elsewhere", 0);
        // A private key of that kind signs here, and OpenSSH accepts it.
        bench.run("sign unsigned.mpatch --key theirs", 0);
        bench.write("new.sig", bench.command("show unsigned.mpatch --signature 1").output().unwrap().stdout);
        let verify = "-Y verify -f config/allowed_signers -I someone@example.org -n mpatch -s new.sig";
        said(&bench.ssh_keygen(verify, &bench.manifest("unsigned.mpatch")), verify, 0);
    }
}

#[test]
fn a_signature_for_another_purpose_is_bad() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    bench.trust(&bench.make_key("ed25519", "theirs"));
    bench.sign_with_openssh("theirs", "git");
    let answer = bench.answer("unsigned.mpatch", 4);
    assert_eq!(answer["answer"], "bad");
    assert!(answer["reason"].as_str().unwrap().contains("namespace `git`, expected `mpatch`"), "{answer}");
}

#[test]
fn a_signature_of_another_manifest_is_bad() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    bench.trust(&bench.make_key("ed25519", "theirs"));
    let made = bench.ssh_keygen("-Y sign -f theirs -n mpatch", b"another manifest");
    bench.write("unsigned.mpatch.sig", made.stdout);
    assert_eq!(bench.answer("unsigned.mpatch", 4)["answer"], "bad");
    bench.run("apply model.safetensors unsigned.mpatch --allow-unsigned", 4);
}

#[test]
fn a_signature_that_adds_nothing_to_a_trusted_one_is_named_all_the_same() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    for (kind, words) in [("ed25519", "and one by a key that is unknown, SHA256:"), ("rsa", "`ssh-rsa` keys")]
    {
        bench.make_key(kind, kind);
        let made = bench.ssh_keygen(&format!("-Y sign -f {kind} -n mpatch"), &bench.manifest("edits.mpatch"));
        bench.write("theirs.sig", made.stdout);
        let report = bench.run("verify edits.mpatch --signature theirs.sig", 0);
        assert!(report.contains("V1 signed    holds") && report.contains(words), "{report}");
    }
}

#[test]
fn kinds_of_keys_that_are_not_judged_are_named() {
    if !openssh_is_here() {
        return;
    }
    for (kind, name) in [("rsa -b 2048", "ssh-rsa"), ("ecdsa -b 521", "ecdsa-sha2-nistp521")] {
        let bench = Bench::new();
        bench.trust(&bench.make_key(kind, "theirs"));
        bench.sign_with_openssh("theirs", "mpatch");
        let answer = bench.answer("unsigned.mpatch", 15);
        assert_eq!(answer["answer"], "unsupported");
        assert!(
            answer["reason"].as_str().unwrap().contains(&format!("`{name}` keys are not supported")),
            "{answer}"
        );
        let refused = bench.run("sign unsigned.mpatch --key theirs", 15);
        assert!(refused.contains("not supported"), "{refused}");
    }
}

#[test]
fn a_certificate_is_not_taken_for_a_key() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    let authority = bench.make_key("ed25519", "authority");
    bench.make_key("ed25519", "theirs");
    said(&bench.ssh_keygen("-q -s authority -I theirs -n someone@example.org theirs.pub", b""), "certify", 0);
    bench.trust(&authority.replacen(' ', " cert-authority ", 1));
    bench.sign_with_openssh("theirs-cert.pub", "mpatch");
    let answer = bench.answer("unsigned.mpatch", 15);
    assert!(
        answer["reason"].as_str().unwrap().contains("-cert-v01@openssh.com` keys are not supported"),
        "{answer}"
    );
    let refused = bench.run("sign unsigned.mpatch --key theirs-cert.pub", 15);
    assert!(refused.contains("hint: name its key, `theirs.pub`, with `--key`"), "{refused}");
}

#[test]
fn a_signature_of_a_security_key_is_judged_as_openssh_judges_it() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    let manifest = bench.manifest("unsigned.mpatch");
    // What the key does in hardware: it signs the hashes, with its flags and counter between them.
    let secret = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let (name, application) = (b"sk-ssh-ed25519@openssh.com".as_slice(), b"ssh:".as_slice());
    let to_sign = ssh_key::SshSig::signed_data("mpatch", HashAlg::Sha512, &manifest).unwrap();
    let public = [string(name), string(secret.verifying_key().as_bytes()), string(application)].concat();
    let signed = |algorithm: &[u8], trailer: &[u8]| {
        let hashes = [application, &to_sign].map(|part| HashAlg::Sha256.digest(part));
        let hashed = [hashes[0].as_slice(), trailer, &hashes[1]].concat();
        let signature = ed25519_dalek::Signer::sign(&secret, &hashed).to_bytes();
        sshsig(&public, &[string(algorithm), string(&signature), trailer.to_vec()].concat())
    };
    let bytes = signed(name, &[1, 0, 0, 0, 7]);
    let read = SshSig::parse(&bytes).unwrap();
    assert_eq!(read.verify(&manifest), Ok(()));
    bench.trust(&format!("hardware@example.org {}\n", read.key().line()));
    bench.write("unsigned.mpatch.sig", read.to_armour());
    assert_eq!(bench.answer("unsigned.mpatch", 0)["answer"], "trusted");
    let verify =
        "-Y verify -f config/allowed_signers -I hardware@example.org -n mpatch -s unsigned.mpatch.sig";
    said(&bench.ssh_keygen(verify, &manifest), verify, 0);
    // The flags and the counter are signed, too, and there is no signature without them.
    every_bit_counts(&bytes, &manifest);
    let bare = SshSig::parse(&signed(b"ssh-ed25519", &[])).unwrap();
    assert_eq!(bare.verify(&manifest), Err(SshSigError::Mismatch));
}

/// No bit of a signature is free, be it of the frame, the key or what the key signed.
#[track_caller]
fn every_bit_counts(signature: &[u8], manifest: &[u8]) {
    let outcome = |bytes: &[u8]| SshSig::parse(bytes).and_then(|signature| signature.verify(manifest));
    assert_eq!(outcome(signature), Ok(()));
    for bit in 0..8 * signature.len() {
        let mut flipped = signature.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(outcome(&flipped).is_err(), "bit {bit} does not matter");
    }
}

#[test]
fn every_bit_of_an_ecdsa_signature_counts() {
    if !openssh_is_here() {
        return;
    }
    for kind in ["ecdsa -b 256", "ecdsa -b 384"] {
        let bench = Bench::new();
        bench.make_key(kind, "theirs");
        bench.sign_with_openssh("theirs", "mpatch");
        let armour = fs::read_to_string(bench.path("unsigned.mpatch.sig")).unwrap();
        let signature = SshSig::from_armour(&armour).unwrap();
        every_bit_counts(signature.bytes(), &bench.manifest("unsigned.mpatch"));
    }
}

// --------------------------------------------------------------------------- keys that are not simply a file --

/// An agent with a socket of its own, until dropped.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(folder: &Path) -> Self {
        let socket = folder.join("agent");
        let mut command = Command::new("ssh-agent");
        let process = command.arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn().unwrap();
        while !socket.exists() {
            std::thread::yield_now();
        }
        Self { process, socket }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_key_in_an_agent_signs() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    bench.make_key("ed25519", "theirs");
    let agent = Agent::start(bench.folder.path());
    let mut add = Command::new("ssh-add");
    add.env("SSH_AUTH_SOCK", &agent.socket).arg("-q").arg(bench.path("theirs"));
    assert!(add.status().unwrap().success());
    fs::remove_file(bench.path("theirs")).unwrap();
    let with_agent = |words: &str| {
        let output = bench.command(words).env("SSH_AUTH_SOCK", &agent.socket).output().unwrap();
        said(&output, words, 0)
    };
    with_agent("sign unsigned.mpatch --key theirs.pub -o one.mpatch");
    assert_eq!(bench.answer("one.mpatch", 0)["answer"], "trusted");
    // The same by git's settings, where the key is named in words.
    let public = fs::read_to_string(bench.path("theirs.pub")).unwrap();
    let signing = format!("[gpg]\n\tformat = ssh\n[user]\n\tsigningkey = key::{}\n", public.trim());
    bench.write("gitconfig", signing);
    let by_git = |name: &str, socket: &Path, code: i32| {
        let mut command = bench.command(&format!("sign unsigned.mpatch -o {name}"));
        command.env("SSH_AUTH_SOCK", socket).env("GIT_CONFIG_GLOBAL", bench.path("gitconfig"));
        said(&command.output().unwrap(), "sign by git's key", code)
    };
    by_git("two.mpatch", &agent.socket, 0);
    let refused = by_git("four.mpatch", Path::new("nowhere"), 11);
    assert!(refused.contains("did not sign with git's `user.signingkey`, the key SHA256:"), "{refused}");
    assert_eq!(fs::read(bench.path("one.mpatch")).unwrap(), fs::read(bench.path("two.mpatch")).unwrap());
    // Without the agent there is no signature, and no file.
    let words = bench.run("sign unsigned.mpatch --key theirs.pub -o three.mpatch", 11);
    assert!(words.contains("`ssh-add -l`") && words.contains("`theirs` has to lie beside it"), "{words}");
    assert!(!bench.path("three.mpatch").exists());
}

#[test]
fn a_key_with_a_passphrase_signs_once_ssh_keygen_knows_it() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    said(&bench.ssh_keygen("-q -t ed25519 -N secret -C me@example.org -f locked", b""), "make a key", 0);
    bench.write("ask", "#!/bin/sh\necho secret\n");
    fs::set_permissions(bench.path("ask"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = bench.command("sign unsigned.mpatch --key locked");
    // Nobody is there to be asked.
    let unasked =
        command.env("SSH_ASKPASS", "/bin/false").env("SSH_ASKPASS_REQUIRE", "force").output().unwrap();
    let words = said(&unasked, "sign without a passphrase", 11);
    assert!(
        words.contains("passphrase is asked for on a terminal") && words.contains("`ssh-add locked`"),
        "{words}"
    );
    let mut command = bench.command("sign unsigned.mpatch --key locked");
    let command = command.env("SSH_ASKPASS", bench.path("ask")).env("SSH_ASKPASS_REQUIRE", "force");
    let words = said(&command.env("DISPLAY", ":0").output().unwrap(), "sign with a passphrase", 0);
    assert!(!words.contains("secret"), "{words}");
    assert_eq!(bench.answer("unsigned.mpatch", 0)["answer"], "trusted");
}

/// An ECDSA key whose secret, 2^240 + 12345, takes a byte less than others; it signs nothing else.
const SHORT: &str = "-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQQbodBN2sXibCxJ9mIG4u1Fr1AwJVm4
6ysA7A2xxgMSbxoYWbaWwukwDgaW1BQQRaWp6J0unU7yqJ+1fZ3/4Ql8AAAAmM7DGInOwx
iJAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBBuh0E3axeJsLEn2
Ygbi7UWvUDAlWbjrKwDsDbHGAxJvGhhZtpbC6TAOBpbUFBBFpanonS6dTvKon7V9nf/hCX
wAAAAfAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAwOQAAAAAB
-----END OPENSSH PRIVATE KEY-----
";

#[test]
fn a_key_whose_secret_is_short_signs_and_is_kept_from_others_as_any() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    bench.write("short", SHORT);
    for (mode, code) in [(0o644, 11), (0o600, 0)] {
        fs::set_permissions(bench.path("short"), fs::Permissions::from_mode(mode)).unwrap();
        let output = bench.run("sign unsigned.mpatch --key short", code);
        assert_eq!(output.contains("`chmod 600 short`"), code == 11, "{output}");
    }
    bench.run("verify unsigned.mpatch", 0);
}

#[test]
fn a_key_of_gits_settings_that_cannot_sign_is_called_so() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    bench.make_key("rsa", "theirs");
    let setting =
        format!("[gpg]\n\tformat = ssh\n[user]\n\tsigningkey = {}\n", bench.path("theirs").display());
    bench.write("gitconfig", setting);
    let compare = "diff model.safetensors model.safetensors -o new.mpatch";
    for (words, ways) in
        [("sign unsigned.mpatch", "with `--key`\n"), (compare, "with `--key`, or give `--no-sign`\n")]
    {
        let output = bench.command(words).env("GIT_CONFIG_GLOBAL", bench.path("gitconfig")).output().unwrap();
        let said = said(&output, words, 15);
        assert!(said.contains("; git's `user.signingkey` names this key") && said.contains(ways), "{said}");
    }
    // Unless git signs with SSH keys, its key is one of another kind.
    bench.write("gitconfig", format!("[user]\n\tsigningkey = {}\n", bench.path("theirs").display()));
    let mut command = bench.command("sign unsigned.mpatch");
    let output = command.env("GIT_CONFIG_GLOBAL", bench.path("gitconfig")).output().unwrap();
    said(&output, "sign with a key of mpatch's own", 0);
}

// --------------------------------------------------------------------------------------------- the five answers --

#[test]
fn each_answer_has_its_word_and_its_exit_code() {
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    let line = |option: &str| format!("maker@example.org {option} {}\n", key().public().line());
    for (patch, signers, answer, code) in [
        ("edits.mpatch", line(""), "trusted", 0),
        ("edits.mpatch", line("namespaces=\"git,mpatch\""), "trusted", 0),
        ("edits.mpatch", line("valid-before=\"29991231Z\""), "trusted", 0),
        ("bad.mpatch", line(""), "bad", 4),
        ("stranger.mpatch", line(""), "unknown", 5),
        ("edits.mpatch", String::new(), "unknown", 5),
        ("edits.mpatch", line("namespaces=\"git\""), "unknown", 5),
        ("edits.mpatch", line("cert-authority"), "unknown", 5),
        ("edits.mpatch", line("unheard-of"), "unknown", 5),
        ("edits.mpatch", line("valid-before=\"20200101Z\""), "expired", 5),
        ("edits.mpatch", line("valid-after=\"29990101Z\""), "expired", 5),
        ("unsigned.mpatch", line(""), "unsigned", 5),
    ] {
        bench.trust(&signers);
        let found = bench.answer(patch, code);
        assert_eq!(found["answer"], answer, "{patch} {signers}");
        let applied = bench.run(&format!("apply model.safetensors {patch} --dry-run"), code);
        assert!(code == 0 || applied.contains("state: unchanged"), "{applied}");
    }
    bench.trust(&line(""));
    bench.run("trust revoke maker@example.org", 0);
    assert_eq!(bench.answer("edits.mpatch", 5)["answer"], "revoked");
    // Nothing lets a revoked key or a bad signature pass.
    let all = "--allow-unsigned --allow-unknown --allow-expired --allow-rollback";
    bench.run(&format!("{APPLY} {all}"), 5);
    bench.run(&format!("apply model.safetensors bad.mpatch {all}"), 4);
}

#[test]
fn what_the_user_allows_is_in_the_report_and_allows_nothing_else() {
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    bench.trust(&format!("maker@example.org valid-before=\"20200101Z\" {}\n", key().public().line()));
    let cases = [("unsigned", "unsigned"), ("stranger", "unknown"), ("edits", "expired")];
    for (patch, flag) in cases {
        for (_, other) in cases.iter().filter(|(_, other)| *other != flag) {
            bench.run(&format!("apply model.safetensors {patch}.mpatch --dry-run --allow-{other}"), 5);
        }
        let words = format!("apply model.safetensors {patch}.mpatch --json --allow-{flag}");
        let report: Value = serde_json::from_slice(&bench.command(&words).output().unwrap().stdout).unwrap();
        assert_eq!(report["trust"]["answer"], flag, "{report}");
        assert_eq!(report["trust"]["allowed"], serde_json::json!([flag]));
    }
    // Taking a patch back lets nothing new in, so it needs no trust.
    bench.run("revert model.unsigned.safetensors unsigned.mpatch -o again.safetensors", 0);
    assert_eq!(
        fs::read(bench.path("again.safetensors")).unwrap(),
        fs::read(bench.path("model.safetensors")).unwrap()
    );
}

#[test]
fn a_policy_asks_for_more_and_no_flag_for_less() {
    let bench = Bench::new();
    lay_out_signers(bench.folder.path());
    bench.run("trust add second.pub --principal reviewer@example.org", 0);
    bench.write(".mpatch/policy.json", r#"{"threshold": 2, "required": ["reviewer@example.org"]}"#);
    let refused = bench.run(APPLY, 5);
    for words in [
        "asks for 2 trusted keys, 1 signed; and for the signature of `reviewer@example.org`\n",
        "signed by `reviewer@example.org`, as the policy in `.mpatch/policy.json` asks: `mpatch sign edits.mpatch --key",
    ] {
        assert!(refused.contains(words), "{refused}");
    }
    assert_eq!(bench.answer("edits.mpatch", 5)["answer"], "insufficient");
    let policy =
        "policy: 2 trusted keys, the signature of reviewer@example.org, no exceptions (.mpatch/policy.json)";
    assert!(bench.run("trust list", 0).contains(policy));
    bench.write(".mpatch/policy.json", r#"{"threshold": 2}"#);
    assert!(bench.run(APPLY, 5).contains("hint: have it signed with 1 more trusted key, as the policy"));
    bench.write(".mpatch/policy.json", r#"{"threshold": 2, "required": ["reviewer@example.org"]}"#);
    bench.run("apply model.safetensors unsigned.mpatch --allow-unsigned", 5);
    bench.run("sign edits.mpatch --key second", 0);
    bench.run(APPLY, 0);
    // One key twice is one key.
    bench.run("sign edits.mpatch --key second", 7);
    bench.write(".mpatch/policy.json", r#"{"required": ["release@example.org"]}"#);
    assert!(bench.run("verify edits.mpatch", 5).contains("signature of `release@example.org`"));
    for policy in [
        r#"{"unsigned": "refuse"}"#,
        r#"{"threshold": 2}"#,
        r#"{"required": ["a"]}"#,
        r#"{"minimal_rung": "V1"}"#,
    ] {
        bench.write(".mpatch/policy.json", policy);
        let refused = bench.run("apply model.safetensors unsigned.mpatch --allow-unsigned", 5);
        assert!(refused.contains("the policy allows no exceptions"), "{policy}: {refused}");
        // Nor is one offered.
        for patch in ["unsigned", "stranger"] {
            let refused = bench.run(&format!("apply model.safetensors {patch}.mpatch"), 5);
            assert!(!refused.contains("--allow-"), "{policy}: {refused}");
        }
    }
    bench.write(".mpatch/policy.json", r#"{"minimal_rung": "V2"}"#);
    assert!(bench.run("verify edits.mpatch", 5).contains("does not reach V2"));
    bench.run("verify edits.mpatch --base model.safetensors", 0);
    let told = bench.run("apply model.safetensors edits.mpatch --dry-run", 0);
    assert!(told.contains("asks for V2, which only `mpatch verify` looks at"), "{told}");
    // What cannot be read cannot be met.
    bench.write(".mpatch/policy.json", r#"{"treshold": 2}"#);
    bench.run("verify edits.mpatch", 3);
}

/// A bench with a project whose `.mpatch` trusts the key of `edits.mpatch`, while the user trusts nobody: what a clone
/// or an archive brings along.
fn bench_with_project() -> Bench {
    let bench = Bench::new();
    bench.write("project/.mpatch/allowed_signers", fs::read(bench.path("config/allowed_signers")).unwrap());
    fs::create_dir(bench.path("project/deep")).unwrap();
    bench.trust("");
    bench
}

#[test]
fn a_strangers_project_trusts_nobody_until_its_user_accepts_it() {
    let bench = bench_with_project();
    let apply = "apply ../model.safetensors ../edits.mpatch -o ../edited.safetensors";
    let refused = bench.run_in("project", apply, 5);
    assert!(refused.contains("which you have not accepted: `mpatch trust project`"), "{refused}");
    assert!(!bench.path("edited.safetensors").exists());
    let listed = bench.run_in("project", "trust list", 0);
    assert!(listed.contains("0 keys, 0 revoked") && listed.contains("not accepted, so nobody"), "{listed}");
    let fingerprint = key().public().fingerprint().to_string();
    let accepted = bench.run_in("project/deep", "trust project", 0);
    assert!(accepted.contains("it trusts 1 key") && accepted.contains(&fingerprint), "{accepted}");
    bench.run_in("project", apply, 0);
    bench.run_in("project/deep", "verify ../../edits.mpatch", 0);
    // It is accepted where it lies, and nowhere else; a link of a stranger's does not lead there.
    bench.run("verify edits.mpatch", 5);
    fs::create_dir(bench.path("clone")).unwrap();
    std::os::unix::fs::symlink("../project/.mpatch", bench.path("clone/.mpatch")).unwrap();
    bench.run_in("clone", "verify ../edits.mpatch", 5);
    // What a pull changes is asked about again.
    let signers = bench.path("project/.mpatch/allowed_signers");
    let before = fs::read(&signers).unwrap();
    fs::write(&signers, [&before[..], b"\n"].concat()).unwrap();
    let refused = bench.run_in("project", "verify ../edits.mpatch", 5);
    assert!(refused.contains("which has changed since you accepted it"), "{refused}");
    fs::write(&signers, before).unwrap();
    bench.run_in("project", "verify ../edits.mpatch", 0);
    bench.run_in("project", "trust project --withdraw", 0);
    bench.run_in("project", "verify ../edits.mpatch", 5);
}

#[test]
fn what_a_user_writes_into_a_project_counts_and_nothing_beside_it() {
    let bench = bench_with_project();
    lay_out_signers(bench.folder.path());
    bench.trust("");
    let add = "trust add ../second.pub --principal second@example.org --project";
    let refused = bench.run_in("project", add, 5);
    assert!(refused.contains("lists keys that you have not accepted"), "{refused}");
    // Taking a key out vouches for none of the others.
    let other =
        format!("other@example.org {}\n", PrivateKey::from_seed(&[5; 32], "").unwrap().public().line());
    let signers = bench.path("project/.mpatch/allowed_signers");
    fs::write(&signers, fs::read_to_string(&signers).unwrap() + &other).unwrap();
    bench.run_in("project", "trust remove other@example.org --project", 0);
    bench.run_in("project", "verify ../edits.mpatch", 5);
    bench.run_in("project", "trust project", 0);
    bench.run_in("project", add, 0);
    bench.run_in("project", "verify ../edits.mpatch", 0);
    bench.run_in("project", "trust remove second@example.org --project", 0);
    bench.run_in("project", "verify ../edits.mpatch", 0);
    // A project that the user begins is the user's.
    fs::create_dir(bench.path("own")).unwrap();
    bench.run_in("own", add, 0);
    bench.run_in("own", "sign ../unsigned.mpatch --key ../second -o ../signed.mpatch", 0);
    bench.run_in("own", "verify ../signed.mpatch", 0);
    assert_eq!(fs::read_to_string(bench.path("config/allowed_signers")).unwrap(), "");
}

#[test]
fn what_a_project_revokes_or_asks_for_counts_whoever_wrote_it() {
    let bench = bench_with_project();
    bench.write("project/.mpatch/revoked", key().public().line());
    for accepted in [false, true] {
        let refused = bench.run_in("project", "verify ../edits.mpatch", 5);
        assert!(refused.contains("revoked by"), "{accepted}: {refused}");
        bench.run_in("project", "trust project", 0);
    }
    // The project may take its word back; what its user revokes as well stays revoked.
    bench.write("maker.pub", key().public().line());
    bench.run_in("project", "trust revoke ../maker.pub", 0);
    let refused = bench.run_in("project", "trust revoke ../maker.pub", 7);
    assert!(refused.contains("config/revoked` revokes `../maker.pub` already"), "{refused}");
    fs::remove_file(bench.path("config/revoked")).unwrap();
    bench.write("project/.mpatch/revoked", "nonsense");
    bench.run_in("project", "verify ../edits.mpatch", 3);
    fs::remove_file(bench.path("project/.mpatch/revoked")).unwrap();
    bench.write("project/.mpatch/policy.json", r#"{"threshold": 2}"#);
    bench.run_in("project", "trust project --withdraw", 0);
    let refused = bench.run_in("project", "verify ../edits.mpatch --allow-unknown", 5);
    assert!(refused.contains("the policy allows no exceptions"), "{refused}");
}

#[test]
fn a_folder_in_between_hides_no_policy_and_an_empty_one_no_keys() {
    let bench = bench_with_project();
    bench.run_in("project", "trust project", 0);
    fs::create_dir(bench.path("project/deep/.mpatch")).unwrap();
    bench.run_in("project/deep", "verify ../../edits.mpatch", 0);
    bench.write("project/.mpatch/policy.json", r#"{"threshold": 2}"#);
    bench.run_in("project/deep", "verify ../../edits.mpatch", 5);
    // Another project has keys of its own, and the policy above it still counts, and what is revoked there.
    bench.write("project/deep/.mpatch/policy.json", r#"{"threshold": 1}"#);
    let listed = bench.run_in("project/deep", "trust list", 0);
    assert!(listed.starts_with("0 keys"), "{listed}");
    let refused = bench.run_in("project/deep", "verify ../../edits.mpatch --allow-unknown", 5);
    assert!(refused.contains("the policy allows no exceptions"), "{refused}");
    fs::remove_file(bench.path("project/.mpatch/policy.json")).unwrap();
    bench.write("project/.mpatch/revoked", key().public().line());
    assert!(bench.run_in("project/deep", "verify ../../edits.mpatch", 5).contains("revoked by"));
}

#[test]
fn a_project_whose_keys_cannot_be_read_stops_those_who_rely_on_them_and_nobody_else() {
    let bench = bench_with_project();
    bench.trust(&line_of("maker@example.org", key().public()));
    let signers = bench.path("project/.mpatch/allowed_signers");
    let whole = fs::read(&signers).unwrap();
    let too_large = vec![b'#'; 20 << 20];
    fs::write(&signers, &too_large).unwrap();
    for words in ["trust list", "verify ../edits.mpatch"] {
        let said = bench.run_in("project", words, 0);
        assert!(said.contains("you have not accepted it, and its keys are left out"), "{said}");
    }
    fs::write(&signers, &whole).unwrap();
    bench.run_in("project", "trust project", 0);
    fs::write(&signers, &too_large).unwrap();
    for words in ["trust list", "verify ../edits.mpatch"] {
        let output = bench.run_in("project", words, 12);
        assert!(output.contains("allowed_signers` is"), "{output}");
    }
}

#[test]
fn text_of_keys_cannot_move_the_cursor() {
    let bench = Bench::new();
    bench.trust(&format!("maker\u{1b}[2J\u{202e}@example.org {}\n", key().public().line()));
    for words in ["verify edits.mpatch", "trust list", APPLY] {
        let words = bench.run(words, 0);
        assert!(words.contains("maker\\u{1b}[2J\\u{202e}@example.org"), "{words}");
    }
}

// ------------------------------------------------------------------------------------------- creating and documents --

#[test]
fn a_patch_is_signed_with_a_key_made_on_first_use_and_trusted_by_its_maker() {
    let bench = Bench { folder: tempfile::tempdir().unwrap() };
    lay_out_editing(bench.folder.path());
    fs::remove_dir_all(bench.path("config")).unwrap();
    let create =
        "create facts.json --base model --limit 1 --contexts contexts.json --stats statistics.safetensors";
    // Work that fails leaves no key behind that nobody has been told of.
    bench.run(&create.replace("statistics.safetensors", "facts.json"), 3);
    assert_eq!(fs::read_dir(bench.path("config")).unwrap().count(), 0);
    let made = bench.run(&format!("{create} --line world -o one.mpatch"), 0);
    for words in
        ["made that key: config/key;", "config/allowed_signers now trusts it", "number 1 of the line world"]
    {
        assert!(made.contains(words), "`{words}` is missing:\n{made}");
    }
    assert_eq!(fs::metadata(bench.path("config/key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(bench.path("config")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(bench.answer("one.mpatch", 0)["answer"], "trusted");
    bench.run("apply model/model.safetensors one.mpatch -o edited.safetensors", 0);
    // The second use says nothing, and takes the next number.
    let made = bench.run(&format!("{create} --line world -o two.mpatch"), 0);
    assert!(made.contains("number 2 of the line world") && !made.contains("made that key"), "{made}");
    bench.run("apply model/model.safetensors one.mpatch -o late.safetensors", 8);
    // A number that the key has signed is not signed again: neither work nor a file is begun.
    for (number, words) in [
        (2_u64, "is taken: its key has signed patch "),
        (1, "is behind: its key has signed number 2"),
        (1 << 40_u64, "is further ahead than any honest one"),
    ] {
        let words = format!("number {number} of the line `world` {words}");
        let refused = bench.run(&format!("{create} --line world --sequence {number} -o again.mpatch"), 8);
        assert!(refused.contains(&words) && refused.contains("the next number is 3"), "{refused}");
        assert!(!bench.path("again.mpatch").exists());
    }
    let listed = bench.run("trust list", 0);
    assert!(listed.contains("lines of patches") && listed.contains("\n  world  2  "), "{listed}");
    // A key that cannot sign does not cost the work.
    bench.write("absent.pub", format!("{}\n", PrivateKey::from_seed(&[5; 32], "").unwrap().public().line()));
    let kept = bench.run(&format!("{create} --key absent.pub -o three.mpatch"), 11);
    assert!(kept.contains("without a signature") && kept.contains("state: applied"), "{kept}");
    // What is suggested is what will be done.
    let tried = "try three.mpatch --base model --tokens 1 --top 1 Pavel";
    assert!(bench.run(tried, 0).contains(" three.mpatch --allow-unsigned"));
    bench.write("config/policy.json", r#"{"unsigned": "refuse"}"#);
    assert!(!bench.run(tried, 0).contains("next: "));
    fs::remove_file(bench.path("config/policy.json")).unwrap();
    bench.run("sign three.mpatch", 0);
    bench.run("verify three.mpatch", 0);
}

#[test]
fn the_document_on_trust_tells_how_to_check_with_openssh_alone() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    let document = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trust.md")).unwrap();
    let blocks = document.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let scripts: Vec<&str> = blocks.filter(|block| block.contains("ssh-keygen -Y")).collect();
    assert_eq!(scripts.len(), 2, "one to check what mpatch signed, one to sign what mpatch checks");
    write_key(&bench.path("id_ed25519"), &key());
    bench.write("allowed_signers", line_of("maker@example.org", key().public()) + "\n");
    let binary = Path::new(assert_cmd::cargo::cargo_bin!("mpatch")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    for script in scripts {
        let mut command = command("sh");
        command.current_dir(bench.folder.path()).env("PATH", &path).args(["-euc", script]);
        said(&command.output().unwrap(), script, 0);
    }
}
