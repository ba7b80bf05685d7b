//! What git's own settings say of signing: whose keys it allows, and which it revokes.

use std::fs;

use crate::bench::{Bench, openssh_is_here, said};

#[test]
fn without_git_settings_that_may_revoke_a_key_are_refused_and_others_are_not() {
    let bench = Bench::new();
    for (settings, code) in [
        ("[user]\n\temail = ada@example.org\n[gpg]\n\tformat = ssh\n", 0),
        ("[gpg \"ssh\"]\n\tREVOCATIONFILE = /gone\n", 11),
        ("[includeIf \"gitdir:~/work/\"]\n\tpath = work\n", 11),
    ] {
        bench.write("gitconfig", settings);
        let mut command = bench.command("verify edits.mpatch");
        command.env("GIT_CONFIG_GLOBAL", bench.path("gitconfig")).env("PATH", bench.path("nowhere"));
        let told = said(&command.output().unwrap(), settings, code);
        assert_eq!(told.contains("so it may name revoked keys, and `git`"), code == 11, "{told}");
    }
}

#[test]
fn a_broken_repository_at_hand_stops_only_settings_that_may_hang_on_it() {
    let bench = Bench::new();
    bench.write(".git/HEAD", "ref: refs/heads/main\n");
    bench.write(".git/config", "[core\n");
    ["objects", "refs"].iter().for_each(|name| fs::create_dir(bench.path(".git").join(name)).unwrap());
    bench.write("more", "[user]\n\temail = ada@example.org\n");
    let more = bench.path("more").display().to_string();
    for (condition, code) in [("include", 0), ("includeIf \"gitdir:~/work/\"", 3)] {
        bench.write("gitconfig", format!("[{condition}]\n\tpath = {more}\n"));
        let mut command = bench.command("verify edits.mpatch");
        command.env("GIT_CONFIG_GLOBAL", bench.path("gitconfig"));
        said(&command.output().unwrap(), condition, code);
    }
}

#[test]
fn the_signers_that_git_allows_are_trusted_and_those_it_revokes_are_not() {
    if !openssh_is_here() {
        return;
    }
    let bench = Bench::new();
    let line = bench.make_key("ed25519", "theirs");
    bench.write("git_signers", &line);
    bench.sign_with_openssh("theirs", "mpatch");
    bench.run("verify unsigned.mpatch", 5);
    let with_git = |settings: &str, code: i32| {
        let files = format!(
            "[gpg \"ssh\"]\n\tallowedSignersFile = {}\n{settings}",
            bench.path("git_signers").display()
        );
        bench.write("gitconfig", files);
        let mut command = bench.command("verify unsigned.mpatch");
        let output = command.env("GIT_CONFIG_GLOBAL", bench.path("gitconfig")).output().unwrap();
        said(&output, settings, code)
    };
    with_git("", 0);
    fs::copy(bench.path("theirs.pub"), bench.path("gone")).unwrap();
    let revocation = format!("\trevocationFile = {}\n", bench.path("gone").display());
    assert!(with_git(&revocation, 5).contains("revoked"));
    // A list that is not found, or settings that cannot be read, are not taken for an empty list.
    let relative = with_git("\trevocationFile = gone\n", 3);
    assert!(relative.contains("git's revoked keys `gone` are not an absolute path"), "{relative}");
    let missing = format!("\trevocationFile = {}\n", bench.path("nowhere").display());
    assert!(with_git(&missing, 11).contains("nowhere`: No such file or directory"));
    assert!(with_git(&format!("{revocation}[user\n"), 3).contains("git cannot read its settings in `"));
    // An address is no path.
    assert!(with_git(&format!("{revocation}[user]\n\temail = ~nobody@example.org\n"), 5).contains("revoked"));
    // Nor is a binary one, which cannot be read here.
    said(&bench.ssh_keygen("-q -k -f krl theirs.pub", b""), "make a list", 0);
    let binary = format!("\trevocationFile = {}\n", bench.path("krl").display());
    assert!(with_git(&binary, 3).contains("in binary, which is not read here"));
    // Nor is a file believed that whoever made the folder at hand wrote.
    bench.write("gitconfig", "[gpg \"ssh\"]\n\tallowedSignersFile = git_signers\n");
    let output =
        bench.command("verify unsigned.mpatch").env("GIT_CONFIG_GLOBAL", bench.path("gitconfig")).output();
    assert!(said(&output.unwrap(), "a relative path", 5).contains("are not an absolute path"));
    // Git reads both of the user's files, and the home's own counts.
    bench.write("home/.config/git/config", format!("[gpg \"ssh\"]\n{revocation}"));
    bench.write("home/git_signers", &line);
    bench.write("home/.gitconfig", "[gpg \"ssh\"]\n\tallowedSignersFile = ~/git_signers\n");
    let mut command = bench.command("verify unsigned.mpatch");
    command.env_remove("GIT_CONFIG_GLOBAL").env_remove("XDG_CONFIG_HOME").env("HOME", bench.path("home"));
    assert!(said(&command.output().unwrap(), "both files", 5).contains("revoked"));
    // What a repository says of itself is not heeded.
    let git = |words: &str| {
        crate::material::command("git").current_dir(bench.folder.path()).args(words.split(' ')).status()
    };
    if git("init -q .").is_ok_and(|status| status.success()) {
        git("config gpg.ssh.allowedSignersFile git_signers").unwrap();
        bench.run("verify unsigned.mpatch", 5);
        // What the user says of repositories that lie here is.
        bench.write("here", format!("[gpg \"ssh\"]\n{revocation}"));
        let (folder, here) = (bench.folder.path().display(), bench.path("here"));
        let settings = format!("[includeIf \"gitdir:{folder}/\"]\n\tpath = {}\n", here.display());
        assert!(with_git(&settings, 5).contains("revoked"));
    }
}
