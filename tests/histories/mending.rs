//! Mending a history takes what it lacks, and needs no copy of what nothing refers to.

use std::fs;

use crate::place::Place;
use mpatch::checkpoint::PassingFolder;

#[test]
fn what_is_packed_is_found_where_there_were_no_packs_and_what_nobody_works_on_goes() {
    let place = Place::begun();
    let git = place.path(".git");
    let live = PassingFolder::create(&git).unwrap();
    let left = git.join(".mpatch-tmp-7");
    fs::create_dir(&left).unwrap();
    fs::remove_dir(git.join("objects/pack")).unwrap();
    place.good("gc");
    assert!(live.path().exists() && !left.exists());
    assert!(place.good("fsck").starts_with("whole: "));
}

#[test]
fn what_was_mended_is_said_where_something_else_was_not() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let name = place.git("ls-tree --name-only HEAD patches/");
    let name = name.lines().find(|name| name.ends_with(".mpatch")).unwrap();
    let object = |name: &str| {
        let oid = place.git(&format!("rev-parse {name}"));
        place.path(&format!(".git/objects/{}/{}", &oid[..2], oid[2..].trim()))
    };
    let (patch, base) = (object(&format!("HEAD:{name}")), object("HEAD~1"));
    fs::remove_file(&patch).unwrap();
    // All sources are looked at before anything is mended.
    let errors = place.bad("fsck --repair one.mpatch --repair nothere", 11);
    assert!(errors.ends_with("state: unchanged\n") && !patch.exists(), "{errors}");
    let whole = fs::read(&base).unwrap();
    fs::remove_file(&base).unwrap();
    let errors = place.bad("fsck --repair one.mpatch", 3);
    assert!(errors.ends_with("state: applied\n") && patch.exists(), "{errors}");
    fs::write(&base, whole).unwrap();
    place.good("fsck");
}

#[test]
fn a_file_beside_a_state_that_is_missing_is_named_and_comes_back_from_a_copy() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("clone . copy");
    let oid = place.git("rev-parse HEAD:patches/.gitattributes").trim().to_owned();
    fs::remove_file(place.path(&format!(".git/objects/{}/{}", &oid[..2], &oid[2..]))).unwrap();
    let errors = place.bad("fsck", 3);
    assert!(errors.contains(&format!("git object {oid}: it is missing")), "{errors}");
    assert!(place.good("fsck --repair copy").contains(&format!("mended: git object {oid}")));
}

#[test]
fn nothing_is_taken_that_is_not_missing_and_what_nothing_refers_to_is_moved_aside() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("clone . copy");
    // What a copy has beyond that, such as its operations, is its own.
    assert!(place.good("fsck --repair copy").starts_with("whole: "));
    let lfs = place.path(".git/lfs/objects/ab/ab");
    fs::create_dir_all(&lfs).unwrap();
    let spare = lfs.join("ab".repeat(32));
    fs::copy(place.path("one.mpatch"), &spare).unwrap();
    let oid = "ab".repeat(20);
    let folder = place.path(".git/objects/ab");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(&oid[2..]), "").unwrap();
    // Where something is missing, nobody can say what is referred to.
    let base = place.git("rev-parse HEAD:base.json").trim().to_owned();
    let base = place.path(&format!(".git/objects/{}/{}", &base[..2], &base[2..]));
    let whole = fs::read(&base).unwrap();
    fs::remove_file(&base).unwrap();
    place.bad("fsck --repair one.mpatch", 3);
    assert!(folder.join(&oid[2..]).exists());
    fs::write(&base, whole).unwrap();
    // What cannot be read may be what the patch is kept for.
    place.bad("gc", 3);
    assert!(place.bad("fsck", 3).contains(&format!("git object {oid}")));
    let said = place.good("fsck --repair copy");
    assert!(said.contains(&format!("mended: git object {oid}, which nothing refers to")), "{said}");
    assert!(place.path(&format!(".git/damaged/{oid}.1")).exists());
    place.good("gc");
    assert!(!spare.exists());
}

#[test]
fn operations_that_no_copy_has_begin_anew_and_where_they_ended_is_kept() {
    let place = Place::begun();
    place.good("tag v1");
    place.good("clone . copy");
    let last = place.git("rev-parse refs/mpatch/operations").trim().to_owned();
    fs::remove_file(place.path(&format!(".git/objects/{}/{}", &last[..2], &last[2..]))).unwrap();
    place.bad("undo", 3);
    assert!(place.good("fsck --repair copy").contains("mended: the list of operations, which begins anew"));
    let mut kept = fs::read_dir(place.path(".git/damaged")).unwrap();
    let kept = fs::read_to_string(kept.next().unwrap().unwrap().path()).unwrap();
    assert_eq!(kept, format!("refs/mpatch/operations {last}\n"));
}

#[test]
fn a_commit_that_claims_another_state_than_its_series_leads_to_is_named() {
    let place = Place::begun();
    let message = place.git("log -1 --format=%B");
    let (words, _) = message.split_once("State: ").unwrap();
    fs::write(place.path("lie"), format!("{words}State: {}\n", "0".repeat(64))).unwrap();
    let lie = place.git("-c user.name=x -c user.email=y commit-tree HEAD^{tree} -p HEAD -F lie");
    place.git(&format!("update-ref refs/heads/main {}", lie.trim()));
    let errors = place.bad("fsck", 3);
    let named = format!("commit {} (of branch `main`): it claims the state 0000", lie.trim());
    assert!(errors.contains(&named), "{errors}");
}

#[test]
fn a_state_that_only_a_tag_object_leads_to_is_read_and_mended() {
    let place = Place::begun();
    let id = place.head();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let patches = place.git("ls-tree HEAD patches/");
    let patch = patches.lines().find(|line| line.ends_with(".mpatch")).unwrap();
    let blob = patch.split_whitespace().nth(2).unwrap();
    place.git("-c user.name=x -c user.email=y tag -a v1 -m words");
    // As in a history that was fetched by git: no operation tells of the state.
    place.git(&format!("update-ref refs/heads/main {}", id.trim()));
    place.git("update-ref -d refs/mpatch/operations");
    let said = place.good("fsck");
    assert!(said.contains("2 commits") && said.contains("1 patch"), "{said}");
    fs::remove_file(place.path(&format!(".git/objects/{}/{}", &blob[..2], &blob[2..]))).unwrap();
    let errors = place.bad("fsck", 3);
    assert!(errors.contains(&blob[..12]), "{errors}");
    assert!(place.good("fsck --repair one.mpatch").contains("mended: patch"));
}

#[test]
fn names_whose_files_a_crash_has_cut_off_are_told_and_mended() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("branch other");
    let whole = place.git("for-each-ref refs/heads");
    for (name, text) in [
        ("refs/heads/main", ""),
        ("refs/heads/other", "0123456789abcdef0123"),
        ("HEAD", "nonsense\n"),
        ("refs/mpatch/operations", ""),
    ] {
        fs::write(place.path(&format!(".git/{name}")), text).unwrap();
        for command in ["log", "tag v1", "undo", "fsck"] {
            let errors = place.bad(command, 3);
            assert!(errors.contains(&format!("`{name}` is damaged")), "{command}: {errors}");
        }
        let said = place.good("fsck --repair .");
        assert!(said.contains(&format!("mended: `{name}`")), "{said}");
        place.good("log");
        assert_eq!(place.git("for-each-ref refs/heads"), whole);
        assert_eq!(place.git("symbolic-ref HEAD"), "refs/heads/main\n");
    }
}

#[test]
fn a_head_that_leads_to_nothing_is_told_and_mended() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("tag v2");
    place.good("branch feat");
    place.good("checkout feat");
    place.good("add one.mpatch");
    let (feat, main) = (place.head(), place.git("rev-parse main").trim().to_owned());
    let absent = "1".repeat(40);
    let zeros = "0".repeat(40);
    let write_head = |text: &str| fs::write(place.path(".git/HEAD"), format!("{text}\n")).unwrap();
    let told = |is_damaged: bool| {
        for command in [
            "log",
            "status model.safetensors",
            "add one.mpatch",
            "show HEAD",
            "show HEAD~1",
            "pull --from x",
            "fsck",
        ] {
            let errors = place.bad(command, 3);
            assert!(
                errors.contains("`mpatch fsck --repair") && errors.contains("HEAD"),
                "{command}: {errors}"
            );
            assert!(is_damaged || errors.contains("`mpatch undo`"), "{command}: {errors}");
        }
    };
    for text in ["ref: refs/heads/nope", &zeros, &absent] {
        write_head(text);
        told(false);
        place.good("undo");
        assert_eq!(place.git("symbolic-ref HEAD"), "refs/heads/feat\n");
        write_head(text);
        assert!(place.good("fsck --repair .").contains("mended: `HEAD`, on the branch `feat`\n"));
        assert_eq!(place.head(), feat);
        // The next change records where it is.
        place.good("branch next");
        place.good("branch -d next");
    }
    write_head("ref: refs/tags/v2");
    told(true);
    assert!(place.good("fsck --repair .").contains("mended: `HEAD`, on the branch `feat`"));
    // Its branch is gone: only the commit is left to go to.
    place.git("update-ref -d refs/heads/feat");
    told(false);
    place.good("undo");
    assert_eq!(place.git("rev-parse feat").trim(), feat);
    place.git("update-ref -d refs/heads/feat");
    assert!(place.good("fsck --repair .").contains(&format!("mended: `HEAD`, at {feat}\n")));
    place.good("checkout main");
    // Nothing tells of any operation: a branch that is there has to do.
    place.git("update-ref -d refs/mpatch/operations");
    write_head("ref: refs/heads/nope");
    assert!(place.good("fsck --repair .").contains("mended: `HEAD`, on the branch `main`\n"));
    assert_eq!(place.head(), main);
    place.git("update-ref -d refs/heads/main");
    place.git("update-ref -d refs/mpatch/operations");
    assert!(place.bad("fsck --repair .", 3).contains("HEAD"));
}
