//! What others have: files of theirs in a history's repository, branches of another history, and a name and a clock.

use std::fs;
use std::path::PathBuf;

use mpatch::patch::Patch;

use crate::drafts::Numbers;
use crate::elsewhere::{commit, file, import, lfs_is_here};
use crate::material::{key, signed_with};
use crate::place::{Place, weights};

/// Puts bytes where Git LFS has them; with the text of the pointer to them.
fn kept(place: &Place, oid: &str, bytes: &[u8]) -> (PathBuf, String) {
    let path = place.path(".git/lfs/objects").join(oid.repeat(2)).join(oid.repeat(2));
    fs::create_dir_all(&path).unwrap();
    let oid = oid.repeat(64);
    let path = path.join(&oid);
    fs::write(&path, bytes).unwrap();
    let text = "version https://git-lfs.github.com/spec/v1";
    (path, format!("{text}\noid sha256:{oid}\nsize {}\n", bytes.len()))
}

/// Makes a branch `docs` of a file that is nothing of a model's.
fn foreign_branch(place: &Place, text: &str) {
    import(place, "docs.git", (commit("docs") + &file("readme", text)).as_bytes());
    place.git("-C docs.git push -q ../.git docs");
}

#[test]
fn only_patches_that_nobody_points_to_are_swept_away() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    let patch = fs::read(place.path("one.mpatch")).unwrap();
    let (photo, _) = kept(&place, "a", b"somebody else's");
    let (committed, pointer) = kept(&place, "b", &patch);
    foreign_branch(&place, &pointer);
    let (staged, pointer) = kept(&place, "c", &patch);
    fs::write(place.path("pointer"), pointer.replace("oid", "ext-0-x sha256:0\noid")).unwrap();
    place.git("hash-object -w pointer");
    let (spare, _) = kept(&place, "d", &patch);
    assert!(place.good("gc").contains("removed 1 large patch that nothing refers to"));
    assert!(photo.exists() && committed.exists() && staged.exists() && !spare.exists());
}

#[test]
fn what_is_no_state_is_said_to_be_none() {
    let place = Place::begun();
    foreign_branch(&place, "x");
    place.good("tag t");
    let operation = place.git("rev-parse --short=12 refs/mpatch/operations");
    for (revision, words) in [
        ("docs", "`docs` is what somebody else keeps here, and no state of a model"),
        (operation.trim(), "an operation of this history, and no state of a model\nhint: `mpatch undo`"),
    ] {
        for verb in
            ["checkout", "log", "merge", "show", "verify", "diff model.safetensors", "branch x", "tag y"]
        {
            let said = place.bad(&format!("{verb} {revision}"), 2);
            assert!(said.contains(words), "{verb}: {said}");
        }
    }
    place.git("symbolic-ref HEAD refs/heads/docs");
    assert!(place.bad("status", 2).contains("no state of a model"));
    place.good("checkout main");
    place.good("branch -d docs");
}

#[test]
fn a_branch_of_another_history_is_listed_and_becomes_one_here() {
    let place = Place::begun();
    place.good("branch geography");
    place.good("clone . mine");
    let listed = place.good("branch --store mine");
    assert!(listed.contains("* main") && listed.contains("  origin/geography"), "{listed}");
    let said = place.bad("merge geography --store mine", 2);
    assert!(said.contains("the nearest name is `origin/geography`"), "{said}");
    let dry = place.good("checkout geography --dry-run --store mine");
    assert!(dry.contains("would make the branch geography of origin/geography"), "{dry}");
    place.good("checkout geography --store mine");
    assert_eq!(place.git("-C mine symbolic-ref HEAD"), "refs/heads/geography\n");
    place.good("undo --store mine");
    assert!(!place.good("branch --store mine").contains("  geography"));
}

#[test]
fn who_and_when_are_as_they_were_asked_for_or_nothing_is_recorded() {
    let place = Place::begun();
    let with = |variables: &[(&str, Option<&str>)], words: &str| {
        let mut command = place.command(assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap());
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let output = command.args(words.split(' ')).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let date = "GIT_COMMITTER_DATE";
    for variables in [
        &[(date, Some("nonsense"))][..],
        &[(date, Some("@4294967296 +0000"))],
        &[(date, None), ("SOURCE_DATE_EPOCH", Some("-1000000"))],
        &[(date, None), ("SOURCE_DATE_EPOCH", Some("4294967296"))],
        &[(date, None), ("SOURCE_DATE_EPOCH", Some("today"))],
    ] {
        let (code, said) = with(variables, "tag t");
        assert!(code == Some(2) && said.contains("state: unchanged"), "{variables:?}: {said}");
    }
    // What git lacks is made up, and the rest is taken from it.
    fs::write(place.path(".gitconfig"), "[user]\nuseConfigOnly = true\n").unwrap();
    let nobody = [("GIT_COMMITTER_EMAIL", None), ("EMAIL", None), ("USER", Some("bob"))];
    assert_eq!(with(&nobody, "tag t").0, Some(0));
    let committer = place.git("log -1 --format=%cn,%ce,%ct refs/mpatch/operations");
    assert_eq!(committer, "Ada,bob@localhost,1764028800\n");
}

#[test]
fn a_shallow_repository_is_refused_and_what_is_known_of_it_stays() {
    let place = Place::begun();
    place.good("clone . mine");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.git(&format!("clone -q --bare --depth 1 file://{} shallow.git", place.folder.path().display()));
    place.git(&format!("-C mine config remote.origin.url {}", place.path("shallow.git").display()));
    let refs = place.git("-C mine for-each-ref");
    for words in ["pull --store mine", "clone shallow.git other"] {
        let said = place.bad(words, 3);
        assert!(said.contains("is shallow") && said.contains("`git fetch --unshallow` over there"), "{said}");
    }
    assert_eq!(place.git("-C mine for-each-ref"), refs);
}

#[test]
fn patches_of_the_history_are_compared_by_their_ids_and_revisions() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    place.patch("one.safetensors", "two.mpatch", 2, "The Space Needle");
    place.good("add two.mpatch");
    for words in ["one.mpatch main~1", "main~1 one.mpatch"] {
        place.good(&format!("diff {words}"));
    }
    for words in ["main main~1", "one.mpatch main"] {
        let output = place.mpatch(&format!("diff {words}"));
        assert_eq!(output.status.code(), Some(1), "{words}: {output:?}");
    }
    let said = place.bad("diff main model.safetensors", 2);
    assert!(said.contains("`mpatch diff model.safetensors main` compares"), "{said}");
    assert!(place.bad("diff main", 2).contains("no second one"));
    place.bad("diff one.mpatch nothing", 11);
}

#[test]
fn what_operations_name_outlasts_gits_own_sweeping() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let added = place.head();
    place.good("undo");
    place.git("reflog expire --expire=now --all");
    place.git("gc -q --prune=now");
    place.good("redo");
    assert_eq!(place.head(), added);
    assert!(place.good("fsck").starts_with("whole: "));
}

#[test]
fn a_manifest_beside_a_pointer_is_that_of_the_patch() {
    if !lfs_is_here() {
        return;
    }
    let place = Place::new();
    let other = Patch::decode(place.unsigned("model.safetensors", 1, "The Eiffel Tower", "Rome")).unwrap();
    let shape = [700, 1_200];
    fs::write(place.path("model.safetensors"), weights(shape)).unwrap();
    place.good("init --base model.safetensors");
    let term = Numbers(3).dense(shape, 14, 0.05);
    let edits = vec![("b".to_owned(), vec![0])];
    let large = place.bound("model.safetensors", edits, vec![term], "The Colosseum", "Rome");
    fs::write(place.path("large.mpatch"), signed_with(large, &key())).unwrap();
    place.good("add large.mpatch");
    let series = place.git("show HEAD:series");
    let manifest = other.manifest_bytes();
    let mut stream = commit("main") + "from refs/heads/main^0\n";
    stream += &format!("M 100644 inline patches/{}.manifest\ndata {}\n", series.trim(), manifest.len());
    import(&place, "liar.git", &[stream.as_bytes(), manifest, b"\n"].concat());
    assert!(place.command("cp").args(["-a", ".git/lfs", "liar.git"]).status().unwrap().success());
    let errors = place.bad("clone liar.git mine", 3);
    assert!(errors.contains(&format!("it is that of {}", other.id())), "{errors}");
    assert!(!place.path("mine").exists());
}

#[test]
fn a_history_whose_names_git_keeps_in_reftables_is_whole_and_not_read() {
    let place = Place::begun();
    let migrate = |format: &str| {
        let words = ["refs", "migrate", &format!("--ref-format={format}")];
        place.command("git").args(words).output().unwrap().status.success()
    };
    // Older versions of git have none.
    if migrate("reftable") {
        let said = place.bad("log", 15);
        assert!(said.contains("refs migrate --ref-format=files` makes files of them"), "{said}");
        assert!(migrate("files"));
    }
    place.good("log");
}

#[test]
fn a_history_of_another_model_is_not_pulled_and_its_branch_is_named() {
    let (place, other) = (Place::begun(), Place::new());
    fs::write(other.path("model.safetensors"), weights([5, 3])).unwrap();
    other.good("init --base model.safetensors");
    let pull = format!("pull --from {}", other.folder.path().display());
    let errors = place.bad(&pull, 6);
    assert!(errors.contains("(of branch `main`) is about another base"), "{errors}");
    assert!(errors.contains("clone the other one") && errors.ends_with("state: unchanged\n"), "{errors}");
    // It is not remembered; and what is about this model comes, whatever else is there.
    assert!(place.bad("pull", 2).contains("knows no other one"));
    other.git(&format!("fetch -q {} main:refs/heads/same", place.folder.path().display()));
    let errors = place.bad(&pull, 6);
    assert!(errors.contains("(of branch `main`)") && errors.contains("it is about another base"), "{errors}");
    assert!(errors.contains("clone the other one"), "{errors}");
    assert!(place.good("branch").contains("origin/same"));
}
