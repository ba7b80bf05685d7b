//! Secret halves of keys stay in their files: no command says anything of one, and no program that mpatch runs is
//! handed one in its arguments or its environment.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::material::{lay_out_signers, mpatch};

const PASSPHRASE: &str = "a phrase that nobody guesses";
/// What `lay_out_signers` makes the key `second` of.
const SEED: [u8; 32] = [9; 32];

/// Where a program lies, if it is installed.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Programs in `folder/watched` that write down how they were called before they do what the real ones do; answers with
/// the path that leads to them first.
fn watch(folder: &Path, names: &[&str]) -> String {
    let watched = folder.join("watched");
    fs::create_dir(&watched).unwrap();
    for name in names {
        let (Some(real), record) = (program(name), folder.join("record")) else { continue };
        let (real, record) = (real.display(), record.display());
        // `tr` shows what `/proc` has: the arguments as they are, whatever a shell would make of them.
        let script = format!(
            "#!/bin/sh\n{{ echo {name} \"$@\"; env; cat /proc/$$/cmdline | tr '\\0' ' '; }} >> '{record}' 2>/dev/null\nexec '{real}' \"$@\"\n"
        );
        fs::write(watched.join(name), script).unwrap();
        fs::set_permissions(watched.join(name), fs::Permissions::from_mode(0o700)).unwrap();
    }
    format!("{}:{}", watched.display(), std::env::var("PATH").unwrap())
}

/// How a secret might look: the lines of its file, and the seed as digits, base64 or a list.
fn spellings(folder: &Path, keys: &[&str]) -> Vec<String> {
    let mut spellings = vec![
        PASSPHRASE.to_owned(),
        "09".repeat(SEED.len()),
        // 32 bytes of 9 in base64, and in Rust's own words.
        "CQkJCQkJCQkJCQkJCQkJCQkJCQkJ".to_owned(),
        "9, 9, 9, 9, 9, 9, 9, 9".to_owned(),
    ];
    for key in keys {
        let text = fs::read_to_string(folder.join(key)).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('-')).map(str::to_owned);
        // The last line may be as short as a word.
        spellings.extend(lines.filter(|line| line.len() > 16));
    }
    spellings
}

#[test]
fn no_secret_is_said_or_handed_to_another_program() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    lay_out_signers(folder);
    let mut keys = vec!["config/key", "second", "broken"];
    let second = fs::read_to_string(folder.join("second")).unwrap();
    // A file that is no key any more, but still most of a secret.
    let broken = second.replace("OPENSSH", "BROKEN");
    fs::write(folder.join("broken"), broken).unwrap();
    fs::set_permissions(folder.join("broken"), fs::Permissions::from_mode(0o600)).unwrap();
    let path = watch(folder, &["ssh-keygen", "git"]);
    let mut commands = vec![
        "sign unsigned.mpatch -o one.mpatch",
        "sign unsigned.mpatch --key second -o two.mpatch --json",
        "verify two.mpatch --json",
        "sign unsigned.mpatch --key open",
        "sign unsigned.mpatch --key broken",
        "doctor --checks-only --device cpu",
        // Whoever takes one half for the other.
        "trust add second",
        "trust add broken --principal me",
        "trust revoke second",
        "trust remove second",
        "verify unsigned.mpatch --signature second",
        "verify second",
        "show second",
    ];
    if program("ssh-keygen").is_some() {
        let mut make = Command::new("ssh-keygen");
        make.current_dir(folder).args(["-q", "-t", "ed25519", "-N", PASSPHRASE, "-f", "locked"]);
        assert!(make.status().unwrap().success());
        keys.push("locked");
        commands.push("sign unsigned.mpatch --key locked -o three.mpatch");
    }
    fs::write(folder.join("ask"), format!("#!/bin/sh\necho {PASSPHRASE}\n")).unwrap();
    fs::set_permissions(folder.join("ask"), fs::Permissions::from_mode(0o700)).unwrap();
    let spellings = spellings(folder, &keys);
    let mut said = Vec::new();
    for key in ["", "second", "broken"] {
        for words in &commands {
            let mut command = mpatch();
            command.current_dir(folder).env("PATH", &path).env("MPATCH_KEY", key).env("DISPLAY", ":0");
            command.env("SSH_ASKPASS", folder.join("ask")).env("SSH_ASKPASS_REQUIRE", "force");
            let output = command.args(words.split(' ')).output().unwrap();
            write!(said, "$ {words}\n{:?}\n", output.status.code()).unwrap();
            said.extend([output.stdout, output.stderr].concat());
        }
    }
    let said = String::from_utf8_lossy(&said);
    let called = fs::read(folder.join("record")).unwrap_or_default();
    let called = String::from_utf8_lossy(&called);
    // The commands did what they were to do, and the programs were watched.
    assert!(folder.join("one.mpatch").exists() && folder.join("two.mpatch").exists(), "{said}");
    assert_eq!(called.contains("ssh-keygen -q -Y sign"), program("ssh-keygen").is_some(), "{called}");
    assert_eq!(folder.join("three.mpatch").exists(), program("ssh-keygen").is_some(), "{said}");
    for spelling in &spellings {
        assert!(!said.contains(spelling), "mpatch said `{spelling}`:\n{said}");
        assert!(!called.contains(spelling), "a program was handed `{spelling}`:\n{called}");
    }
}
