//! Names: branches, tags, heads, ids and addresses, as git and others make and move them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::Duration;

use crate::place::{Place, weights};
use git2::{ObjectType, Oid};
use mpatch::store::{Author, Kind, Store, StoreError};

/// A history of one patch, and an empty repository `bare.git` beside it.
fn of_one_patch() -> Place {
    let place = Place::begun();
    place.git("init -q --bare bare.git");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place
}

#[test]
fn commands_that_take_a_patch_or_a_model_take_them_out_of_the_history_that_is_named() {
    let place = Place::new();
    place.good("init know --base model.safetensors");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch --store know");
    let said = place.good("apply model.safetensors main -o one.safetensors --store know");
    let next = said.trim_end().rsplit_once("\nnext: mpatch ").unwrap().1;
    assert!(next.ends_with(" --base one.safetensors --store know"), "{said}");
    // What is checked out is the history's model from now on.
    place.good("checkout HEAD --onto model.safetensors -o known.safetensors --store know");
    let status: serde_json::Value = serde_json::from_str(&place.good("status --json --store know")).unwrap();
    assert_eq!(
        (&status["checkpoint"], &status["state"]["is"]),
        (&"known.safetensors".into(), &"head".into())
    );
    for words in [
        next,
        "verify main --digests-only --store know",
        "show main --signature --store know",
        "revert one.safetensors main -o back.safetensors --store know",
    ] {
        place.good(words);
    }
    // Without a model, or without a history, these say so.
    for (words, code, said) in [
        ("verify one.mpatch --digests-only", 2, "no model is named"),
        ("rebase one.mpatch", 2, "no model is named"),
        ("stack one.mpatch one.mpatch -o two.mpatch", 2, "no model is named"),
        ("verify main --store nowhere", 11, "`nowhere`"),
        (
            "verify maim --store know",
            11,
            "hint: name a file, or a patch of the history by its id or a revision",
        ),
        ("export main~1 -o adapter --store know", 15, "is not the weight of a linear layer"),
        ("rebase main~1 --store know", 7, "fits"),
    ] {
        let errors = place.bad(words, code);
        assert!(errors.contains(said), "{words}: {errors}");
    }
}

#[test]
fn what_git_did_to_the_branch_of_the_head_is_undone_as_well() {
    let place = Place::begun();
    place.good("branch side");
    place.git("symbolic-ref HEAD refs/heads/nowhere");
    place.good("checkout main");
    let refs = place.git("for-each-ref refs/heads");
    place.git("update-ref -d refs/heads/main");
    place.good("checkout side");
    for (head, has_main) in [("main", false), ("main", true), ("nowhere", true), ("main", true)] {
        place.good("undo");
        assert_eq!(place.git("symbolic-ref HEAD"), format!("refs/heads/{head}\n"));
        assert_eq!(place.git("for-each-ref refs/heads") == refs, has_main);
    }
    place.good("undo");
    assert!(place.bad("undo", 7).contains("nothing to undo"));
    (0..5).for_each(|_| drop(place.good("redo")));
    assert_eq!(place.git("symbolic-ref HEAD"), "refs/heads/side\n");
}

#[test]
fn what_changes_nothing_leaves_nothing_to_undo() {
    let place = of_one_patch();
    let operations = place.git("rev-parse refs/mpatch/operations");
    place.good("checkout main");
    assert_eq!(place.git("rev-parse refs/mpatch/operations"), operations);
}

#[test]
fn several_names_are_deleted_at_once_or_none() {
    let place = Place::begun();
    for name in ["a", "b", "c"] {
        place.good(&format!("branch {name}"));
    }
    place.good("tag nowhere/else");
    assert!(!place.bad("branch -d a nowhere", 2).contains("nearest"));
    place.good("branch geography");
    assert!(place.bad("branch -d geograpy", 2).contains("the nearest name is `geography`"));
    place.good("branch -d geography");
    place.bad("branch d HEAD b", 2);
    let refs = place.git("for-each-ref refs/heads");
    assert_eq!(refs.lines().count(), 4);
    let said = place.good("branch -d a b c");
    assert!(said.contains("deleted the branch a;") && said.contains("deleted the branch c;"), "{said}");
    assert_eq!(place.git("for-each-ref --format=%(refname:short) refs/heads"), "main\n");
    place.good("undo");
    assert_eq!(place.git("for-each-ref refs/heads"), refs);
    // What cannot be told has been done all the same.
    fs::write(place.path(".git/refs/heads/damaged"), "1".repeat(40)).unwrap();
    let said = place.bad("branch made", 3);
    assert!(said.ends_with("state: applied\n") && place.path(".git/refs/heads/made").exists(), "{said}");
}

#[test]
fn the_start_of_an_id_names_the_state_whose_id_begins_so_alone() {
    let place = of_one_patch();
    let head = place.head();
    let start = &head[..4];
    let text = |number: &u32| format!("{number}");
    let is_alike = |number: &u32| {
        let oid = Oid::hash_object(ObjectType::Blob, text(number).as_bytes()).unwrap();
        oid.to_string().starts_with(start)
    };
    fs::write(place.path("blob"), text(&(0..).find(is_alike).unwrap())).unwrap();
    place.git("hash-object -w blob");
    for revision in [start.to_owned(), start.to_uppercase()] {
        assert!(place.good(&format!("log {revision}")).starts_with(&head[..12]));
    }
    place.good(&format!("tag first {start}~1"));
    assert_eq!(place.git("rev-parse first"), place.git("rev-parse HEAD~1"));
}

#[test]
fn a_tag_with_words_of_its_own_travels_whole() {
    let place = of_one_patch();
    place.git("-c user.name=x -c user.email=y tag -a -m words v1");
    place.good("tag plain");
    place.good("push main v1 plain main --to bare.git");
    place.good("clone bare.git mine");
    assert!(!place.good("pull --store mine").contains("warning"));
    for there in [".", "bare.git", "mine"] {
        assert_eq!(place.git(&format!("-C {there} rev-parse v1")), place.git("rev-parse v1"));
        assert_eq!(place.git(&format!("-C {there} cat-file -t v1")), "tag\n");
    }
    assert!(place.good("log --store mine").contains("plain, v1"));
    place.good("tag -d v1 --store mine");
    assert!(!place.good("undo --store mine").contains("warning"));
    assert_eq!(place.git("-C mine cat-file -t v1"), "tag\n");
    // Its name alone keeps it.
    place.good("tag -d v1 --store mine");
    place.git("-C mine gc -q --prune=now");
    let said = place.good("undo --store mine");
    assert!(said.contains("warning: the tag v1 is not back: git has swept away what it named"), "{said}");
    place.good("fsck --store mine");
    // What the others know by a name does not become something else.
    place.good("tag -d plain");
    place.good("tag plain main~1");
    let said = place.bad("push plain", 7);
    assert!(said.contains("the tag `plain` names something else in `/"), "{said}");
    assert!(place.good("pull").contains("warning: the tag plain names something else there"));
    // The same state is the same, with words and without.
    place.good("tag -d v1");
    place.good("tag v1 main");
    place.good("push v1");
    assert_eq!(place.git("-C bare.git cat-file -t v1"), "tag\n");
}

#[test]
fn a_name_that_cannot_be_made_is_said_before_weights_are_written() {
    let place = of_one_patch();
    place.good("branch x");
    place.good("clone . mine");
    place.good("branch x/1 --store mine");
    let before = fs::read(place.path("model.safetensors")).unwrap();
    for words in ["--in-place --dry-run", "--in-place", "-o copy.safetensors"] {
        let said = place.bad(&format!("checkout x --onto model.safetensors {words} --store mine"), 7);
        assert!(said.contains("there is a branch `x/1` already") && said.ends_with("unchanged\n"), "{said}");
    }
    assert!(fs::read(place.path("model.safetensors")).unwrap() == before);
    assert!(!place.path("copy.safetensors").exists());
    place.good("checkout HEAD~1");
    let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
    let odd = OsStr::from_bytes(b"odd\xff");
    for words in ["checkout HEAD --onto model.safetensors -o", "apply model.safetensors one.mpatch -o"] {
        let output = place.command(&program).args(words.split(' ')).arg(odd).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("is not UTF-8") && said.ends_with("state: unchanged\n"), "{words}: {said}");
        assert!(!place.folder.path().join(odd).exists(), "{words}");
    }
}

#[test]
fn what_git_moves_during_a_change_stays_and_nothing_is_changed() {
    for moved in ["heads/main {}", "-d heads/main", "heads/old {}", "tags/new {}"] {
        let place = of_one_patch();
        place.good("branch old");
        let other = place.git("-c user.name=x -c user.email=y commit-tree HEAD^{tree} -p HEAD -m other");
        let store = Store::open(place.folder.path()).unwrap();
        let author = Author { name: "x".into(), email: "y".into(), seconds: 1, offset_minutes: 0 };
        let mut change = store.change(Duration::ZERO, author).unwrap();
        let first = store.resolve("HEAD~1").unwrap();
        change.forget(Kind::Branch, "old").unwrap();
        change.name(Kind::Tag, "new", first).unwrap();
        change.fast_forward(first);
        let words = moved.replace("heads/", "refs/heads/").replace("tags/", "refs/tags/");
        place.git(&format!("update-ref {}", words.replace("{}", other.trim())));
        let refs = place.git("for-each-ref");
        let error = change.finish("change").unwrap_err();
        assert!(matches!(error, StoreError::Moved { .. }), "{moved}: {error:?}");
        assert_eq!(place.git("for-each-ref"), refs, "{moved}");
        if !moved.starts_with("-d") {
            place.good("tag after");
            assert!(place.good("fsck").starts_with("whole: "));
        }
    }
}

#[test]
fn a_branch_that_moves_while_its_weights_are_written_is_not_gone_to() {
    let place = of_one_patch();
    place.good("checkout HEAD~1");
    let lock = fs::File::options().write(true).open(place.path(".git/mpatch.lock")).unwrap();
    lock.lock().unwrap();
    let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
    let words = "checkout main --onto model.safetensors -o copy.safetensors --lock-timeout 300";
    let mut command = place.command(&program);
    let child = command.args(words.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let is_missing = |_: &u32| !place.path("copy.safetensors").exists();
    (0..6_000).take_while(is_missing).for_each(|_| std::thread::sleep(Duration::from_millis(10)));
    let written = place.git("rev-parse main");
    place.git("update-ref refs/heads/main main~1");
    lock.unlock().unwrap();
    let output = child.wait_with_output().unwrap();
    let [said, noted] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success() && said.starts_with(&format!("at {}", &place.head()[..12])), "{said}");
    let way_on = "`mpatch checkout main --onto copy.safetensors -o MODEL` takes the weights to it";
    let moved = format!("has moved main from {} meanwhile; {way_on}", &written[..12]);
    assert!(noted.contains(&moved), "{noted}");
    assert!(place.command("git").args(["symbolic-ref", "-q", "HEAD"]).output().unwrap().stdout.is_empty());
    place.good("checkout main --onto copy.safetensors -o main.safetensors");
    // Git's other word for the head.
    assert!(place.good("checkout @").starts_with("on branch main, "));
}

#[test]
fn commits_of_somebody_else_that_are_joined_to_states_are_passed_by() {
    let place = Place::begun();
    place.good("clone . mine");
    place.good("branch side");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.git("clone -q . stock");
    let stock = |words: &str| place.git(&format!("-C stock -c user.name=x -c user.email=y {words}"));
    stock("checkout -q --orphan docs");
    stock("rm -rfq .");
    fs::write(place.path("stock/README.md"), "words\n").unwrap();
    stock("add README.md");
    stock("commit -q -m readme");
    for branch in ["main", "side"] {
        stock(&format!("checkout -q -b joined-{branch} docs"));
        stock(&format!("merge -q --allow-unrelated-histories -m joined origin/{branch}"));
        stock(&format!("push -q origin HEAD:refs/heads/{branch}"));
    }
    assert_eq!(place.good("log").matches("readme").count(), 0);
    assert!(place.bad("verify HEAD", 2).contains("brought no patch"));
    place.good("pull --store mine");
    place.good("clone . whole");
    place.good("merge side");
    assert!(place.good("fsck").starts_with("whole: "));
}

#[test]
fn who_is_at_work_is_what_git_says_in_the_history() {
    let place = Place::begun();
    place.git("init -q work");
    for (folder, name) in [("work", "Worker"), (".", "Keeper")] {
        place.git(&format!("-C {folder} config user.name {name}"));
        place.git(&format!("-C {folder} config user.email {name}@example.org"));
    }
    let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
    let mut command = place.command(&program);
    command
        .current_dir(place.path("work"))
        .env_remove("GIT_COMMITTER_NAME")
        .env_remove("GIT_COMMITTER_EMAIL");
    assert!(command.args(["tag", "v1", "--store", ".."]).status().unwrap().success());
    assert_eq!(place.git("log -1 --format=%cn refs/mpatch/operations"), "Keeper\n");
}

#[test]
fn a_copy_that_undo_leaves_is_named() {
    let place = of_one_patch();
    place.good("checkout HEAD~1");
    place.good("apply model.safetensors one.mpatch -o x.safetensors");
    let said = place.good("undo");
    assert!(
        said.contains("x.safetensors stays as it is; `mpatch checkout HEAD --onto x.safetensors"),
        "{said}"
    );
}

#[test]
fn an_address_is_remembered_with_what_came_from_there_or_not_at_all() {
    let place = of_one_patch();
    place.good("init know --base model.safetensors");
    let lock = place.path("know/.git/refs/mpatch/pending.lock");
    fs::write(&lock, "").unwrap();
    assert!(place.bad("pull --from . --store know", 10).ends_with("state: unchanged\n"));
    let known = place.command("git").args(["-C", "know", "config", "remote.origin.url"]).output().unwrap();
    assert!(!known.status.success(), "{known:?}");
    fs::remove_file(lock).unwrap();
    place.good("pull --from . --store know");
    place.good("pull --store know");
}

#[test]
fn a_branch_that_is_gone_over_there_is_no_longer_listed_and_one_that_reads_as_an_option_does_not_come() {
    let place = Place::begun();
    place.good("branch late");
    place.good("clone . mine");
    let listed = || place.git("-C mine for-each-ref --format=%(refname) refs/remotes");
    assert_eq!(listed(), "refs/remotes/origin/late\nrefs/remotes/origin/main\n");
    place.good("branch -d late");
    place.good("pull --store mine");
    assert_eq!(listed(), "refs/remotes/origin/main\n");
    place.git("update-ref refs/heads/-d HEAD");
    assert!(place.bad("pull --store mine", 2).contains("`-d` cannot be the name of a branch"));
    assert_eq!(listed(), "refs/remotes/origin/main\n");
}

#[test]
fn an_address_on_this_machine_is_what_git_takes_it_for() {
    let place = of_one_patch();
    place.good("push --to bare");
    place.good("clone bare mine");
    place.git("-C mine config remote.origin.url ../bare.git");
    place.good("branch news");
    place.good("push news");
    assert!(place.good("pull --store mine").contains("/bare.git, every patch checked"));
    place.git("-C mine rev-parse origin/news");
    place.good("push --store mine");
    // What has the remembered address in other words is no other history.
    let url = format!("file://{}/bare.git", place.folder.path().display());
    assert!(!place.good(&format!("pull --from {url} --store mine")).contains("have no names here"));
    place.good("branch a");
    place.git("bundle create -q all.bundle HEAD a main");
    for words in ["clone all second", "clone all.bundle"] {
        assert!(place.good(words).contains("(HEAD -> main, origin/a, origin/main)"), "{words}");
    }
    place.good("log --store all");
    let said = place.bad("clone nowhere x", 11);
    assert!(said.contains(&format!("{}/nowhere", place.folder.path().display())), "{said}");
}

#[test]
fn a_clone_of_a_head_on_no_branch_is_at_the_same_state() {
    let place = of_one_patch();
    place.good("checkout main~1");
    place.patch("model.safetensors", "two.mpatch", 2, "The Space Needle");
    place.good("add two.mpatch");
    let said = place.good("clone . mine");
    assert!(said.contains("the head is on no branch, as it is there"), "{said}");
    assert_eq!(place.git("-C mine rev-parse HEAD").trim(), place.head());
    place.bad("undo --store mine", 7);
    place.good("checkout main --store mine");
    assert!(place.good("fsck --store mine").starts_with("whole: "));
    // Git takes such a head for a name that can be deleted.
    place.git("update-ref -d HEAD");
    let said = place.bad("log", 3);
    assert!(said.contains("has lost its `HEAD`") && said.contains("`echo ref: refs/heads/main > "), "{said}");
    fs::write(place.path(".git/HEAD"), "ref: refs/heads/main\n").unwrap();
    place.good("log");
}

#[test]
fn a_model_that_is_none_of_the_history_is_found_before_it_is_cloned() {
    let place = of_one_patch();
    fs::write(place.path("other.safetensors"), weights([4, 4])).unwrap();
    for (model, code) in [("nowhere", 11), ("other.safetensors", 6)] {
        place.bad(&format!("clone . mine --base {model}"), code);
        assert!(!place.path("mine").exists());
    }
    place.good("clone . mine --base model.safetensors");
    let moves = place.good("checkout HEAD --store mine --in-place --dry-run");
    assert!(moves.contains("would change model.safetensors in place"), "{moves}");
}

#[test]
fn a_patch_that_the_base_of_a_history_has_already_is_told_as_that() {
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch --in-place");
    place.good("init --base model.safetensors");
    let said = place.bad("add one.mpatch", 7);
    assert!(said.contains("`mpatch revert MODEL PATCH -o BASE` makes one without it"), "{said}");
}
