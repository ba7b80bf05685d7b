//! Merging what was merged before: a branch that goes on, takes something back, or meets itself on another way.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::material::{key, signed_with};
use crate::place::Place;
use mpatch::patch::manifest::Line;
use mpatch::patch::{Patch, encode};

/// `main` has `p` and `fix` has `q`, both made on the base, and `main` has merged `fix`.
///
/// `p.safetensors`, `q.safetensors` and `m.safetensors` are the weights of the three states.
fn merged() -> Place {
    let place = Place::begun();
    place.good("branch fix");
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors p.mpatch -o p.safetensors");
    place.good("checkout fix");
    place.patch("model.safetensors", "q.mpatch", 3, "The Space Needle");
    place.good("apply model.safetensors q.mpatch -o q.safetensors");
    place.good("checkout main");
    place.good("merge fix --onto model.safetensors");
    place.good("checkout main --onto model.safetensors -o m.safetensors");
    place
}

/// What the commit at the head says, after its weights were written to `file` from the base.
fn checked_out(place: &Place, file: &str) -> String {
    place.good(&format!("checkout HEAD --onto model.safetensors -o {file}"));
    assert!(place.good("fsck").starts_with("whole: "));
    place.git("log -1")
}

#[test]
fn what_a_branch_took_back_after_it_was_merged_is_taken_back_by_the_next_merge() {
    let place = merged();
    place.good("checkout fix");
    place.good("revert q.safetensors q.mpatch -o reverted.safetensors");
    place.good("checkout main");
    place.good("merge fix --onto model.safetensors");
    let log = checked_out(&place, "without.safetensors");
    assert!(log.contains("Eiffel Tower") && !log.contains("Space Needle"), "{log}");
    let weights = |name: &str| fs::read(place.path(name)).unwrap();
    assert!(weights("without.safetensors") == weights("p.safetensors"));
    // Once something was made on the merged state, its update cannot be taken out from below that.
    (0..2).for_each(|_| drop(place.good("undo")));
    place.patch("m.safetensors", "d.mpatch", 5, "The Shard");
    place.good("add d.mpatch");
    let refs = place.git("for-each-ref refs/heads");
    let errors = place.bad("merge fix --onto model.safetensors", 7);
    let id = Patch::decode(fs::read(place.path("d.mpatch")).unwrap()).unwrap().id().short();
    assert!(errors.contains(&format!("`{id}` was made on weights ")), "{errors}");
    assert_eq!(place.git("for-each-ref refs/heads"), refs);
    // The way out that is told.
    place.good("checkout main --onto m.safetensors -o d.safetensors");
    place.good(&format!("revert d.safetensors {id} -o m2.safetensors"));
    place.good("merge fix --onto model.safetensors");
    place.good("checkout main --onto model.safetensors -o without2.safetensors");
    place.good(&format!("rebase {id} --base without2.safetensors -o again.mpatch"));
    place.good("add again.mpatch");
    place.good("merge fix --onto model.safetensors");
    let said = String::from_utf8(place.mpatch("diff model.safetensors main").stdout).unwrap();
    assert!(said.contains("facts: 2 to add") && !said.contains("+ The Space Needle"), "{said}");
}

#[test]
fn what_one_of_two_that_merged_each_other_took_back_stays_so_whichever_is_merged_into_which() {
    let place = merged();
    place.good("checkout fix");
    place.good("merge main~1 --onto model.safetensors");
    place.good("checkout main");
    let id = place.git("show HEAD:series");
    place.good(&format!("revert m.safetensors {} -o reverted.safetensors", id.trim()));
    assert_eq!(place.git("merge-base --all main fix").lines().count(), 2);
    for (into, from) in [("main", "fix"), ("fix", "main")] {
        place.good(&format!("checkout {into}"));
        place.good(&format!("merge {from} --onto model.safetensors"));
        assert_eq!(place.git("show HEAD:series"), "", "{from} into {into}");
        place.good("undo");
    }
}

#[test]
fn what_a_patch_holds_that_the_other_side_has_is_not_added_whatever_else_lies_here() {
    let place = Place::begun();
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.patch("model.safetensors", "q.mpatch", 3, "The Space Needle");
    place.good("stack p.mpatch q.mpatch --base model.safetensors -o m.mpatch");
    for name in ["fix", "passing"] {
        place.good(&format!("branch {name}"));
    }
    place.good("add m.mpatch --allow-unsigned");
    place.good("checkout fix");
    place.good("add p.mpatch");
    // Both parts are here, one of them where neither side leads to.
    place.good("checkout passing");
    place.good("add q.mpatch");
    place.good("checkout main");
    place.good("branch -d passing");
    place.good("merge fix --onto model.safetensors");
    assert_eq!(place.git("show HEAD:series"), place.git("show HEAD^1:series"));
}

#[test]
fn a_side_that_loses_all_leaves_the_other_ones_state_and_no_new_patch() {
    let place = Place::begun();
    place.good("branch fix");
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.good("add p.mpatch");
    place.good("checkout fix");
    place.patch_saying("model.safetensors", "q.mpatch", 3, "The Eiffel Tower", "Oslo");
    place.good("add q.mpatch");
    place.good("apply model.safetensors q.mpatch -o q.safetensors");
    place.good("checkout main");
    let said = place.good("merge fix --ours --onto model.safetensors");
    assert!(said.starts_with("merged\n") && said.contains("\"Rome\" of "), "{said}");
    assert_eq!(place.git("show HEAD:series"), place.git("show HEAD^1:series"));
    // What goes on from there was made on what is not in the merged state.
    place.good("checkout fix");
    place.patch("q.safetensors", "r.mpatch", 5, "The Shard");
    place.good("add r.mpatch");
    place.good("checkout main");
    let errors = place.bad("merge fix --onto model.safetensors", 7);
    assert!(errors.contains("left out by an earlier merge"), "{errors}");
}

#[test]
fn a_side_that_has_all_in_another_order_is_the_result_whichever_is_merged_into_which() {
    let place = merged();
    // `fix` has `q` and then `p`, in one patch, and something made on top of that.
    place.good("checkout fix");
    place.good("merge main~1 --onto model.safetensors");
    place.good("checkout HEAD --onto model.safetensors -o fix.safetensors");
    place.patch("fix.safetensors", "d.mpatch", 5, "The Shard");
    place.good("add d.mpatch");
    let series = place.git("show fix:series");
    // What `main` has of its own contradicts it.
    place.good("branch old main~1");
    place.good("checkout old");
    place.patch_saying("p.safetensors", "c.mpatch", 8, "The Space Needle", "Oslo");
    place.good("add c.mpatch");
    for (into, from, side) in [("old", "fix", "theirs"), ("fix", "old", "ours")] {
        place.good(&format!("checkout {into}"));
        let said = place.good(&format!("merge {from} --{side} --onto model.safetensors"));
        assert!(said.starts_with("merged\n"), "{from} into {into}: {said}");
        assert_eq!(place.git("show HEAD:series"), series, "{from} into {into}");
        place.good("undo");
    }
}

/// Commits files to a branch, as somebody does who keeps them beside a history; one without a text is taken away.
fn keep(place: &Place, branch: &str, files: &[(impl AsRef<[u8]>, &str)]) {
    place.git(&format!("worktree add -q tree {branch}"));
    for (name, text) in files {
        let path = place.path("tree").join(OsStr::from_bytes(name.as_ref()));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if text.is_empty() { fs::remove_file(path).unwrap() } else { fs::write(path, text).unwrap() }
    }
    place.git("-C tree add -A");
    place.git("-C tree -c user.name=x -c user.email=y commit -q -m files");
    place.git("worktree remove tree");
}

#[test]
fn what_somebody_keeps_beside_a_history_is_merged_with_it() {
    let place = Place::begun();
    place.good("branch docs");
    keep(&place, "docs", &[("README.md", "one"), ("notes/a", "a"), ("LICENSE", "all")]);
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.good("add p.mpatch");
    keep(&place, "main", &[("notes/b", "b")]);
    let kept = |branch: &str| {
        let listed = place.git(&format!("ls-tree -r --name-only {branch}"));
        let others = ["LICENSE", "README.md", "notes/a", "notes/b"];
        others.map(|name| listed.lines().any(|line| line == name))
    };
    for (into, from) in [("main", "docs"), ("docs", "main")] {
        place.good(&format!("checkout {into}"));
        assert!(!place.good(&format!("merge {from} --onto model.safetensors")).contains("warning"));
        assert_eq!(kept("HEAD"), [true; 4], "{from} into {into}");
        assert_eq!(place.git("show HEAD:series"), place.git("show main:series"));
        place.good("undo");
    }
    // What one side alone changes it decides, and of what both change the head's stays.
    place.good("merge main --onto model.safetensors");
    place.good("checkout main");
    place.good("merge docs");
    keep(&place, "main", &[("README.md", "two"), ("LICENSE", "none")]);
    keep(&place, "docs", &[("README.md", "three"), ("notes/a", "A")]);
    let said = place.good("merge docs --onto model.safetensors");
    assert!(
        said.contains("warning: both sides have changed `README.md`, and it stays as it is here"),
        "{said}"
    );
    assert_eq!(
        ["README.md", "LICENSE", "notes/a"].map(|name| place.git(&format!("show HEAD:{name}"))),
        ["two", "none", "A"]
    );
    assert!(place.good("fsck").starts_with("whole: "));
}

#[test]
fn files_that_one_side_alone_has_come_with_it_and_the_historys_own_are_no_concern_of_theirs() {
    let place = Place::begun();
    place.good("branch docs");
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.good("add p.mpatch");
    place.good("checkout docs");
    place.patch("model.safetensors", "q.mpatch", 3, "The Space Needle");
    place.good("add q.mpatch");
    keep(&place, "docs", &[("README.md", "one")]);
    for (into, from) in [("docs", "main"), ("main", "docs")] {
        place.good(&format!("checkout {into}"));
        let said = place.good(&format!("merge {from} --onto model.safetensors"));
        assert!(!said.contains("both sides have changed"), "{from} into {into}: {said}");
        assert_eq!(place.git("show HEAD:README.md"), "one", "{from} into {into}");
        place.good("undo");
    }
}

#[test]
fn attributes_that_somebody_keeps_stay_and_those_of_earlier_versions_make_room() {
    let place = Place::begun();
    let former = |id: u8| {
        let id = format!("{id:02x}").repeat(32);
        format!("* -text\npatches/{id}.mpatch filter=lfs diff=lfs merge=lfs -text\n")
    };
    let own = format!("{}*.bin binary\n", former(1));
    let patches = [("main", "p.mpatch", 1), ("fix", "q.mpatch", 3)];
    place.good("branch fix");
    for (branch, patch, seed) in patches {
        place.good(&format!("checkout {branch}"));
        place.patch("model.safetensors", patch, seed, &format!("The tower of {branch}"));
        place.good(&format!("add {patch}"));
        assert_eq!(place.git("show HEAD:patches/.gitattributes"), "* -text\n");
        let file = former(seed as u8);
        keep(&place, branch, &[(".gitattributes", file.as_str()), ("patches/.gitattributes", "")]);
    }
    // Nor do they stand against each other.
    let said = place.good("merge main --onto model.safetensors");
    assert!(!said.contains("both sides have changed"), "{said}");
    let merged = place.head();
    let listed = || place.git("ls-tree -r --name-only HEAD");
    assert!(listed().starts_with("base.json\npatches/.gitattributes\n"), "{}", listed());
    for text in [own.as_str(), "*.bin binary\n", "* -text\n"] {
        keep(&place, "fix", &[(".gitattributes", text)]);
        place.good("checkout HEAD --onto model.safetensors -o now.safetensors");
        place.good(&format!("revert now.safetensors {merged} -o before.safetensors"));
        assert_eq!(place.git("show HEAD:.gitattributes"), text);
        place.good("undo");
        fs::remove_file(place.path("now.safetensors")).unwrap();
        fs::remove_file(place.path("before.safetensors")).unwrap();
    }
    assert!(place.good("fsck").starts_with("whole: "));
}

#[test]
fn what_one_side_takes_away_stays_away_whatever_the_other_makes_of_it() {
    let place = Place::begun();
    let text = "a line of many\n".repeat(20);
    keep(&place, "main", &[("guide", &text)]);
    place.good("branch docs");
    keep(&place, "docs", &[("guide", &format!("{text}and one more\n"))]);
    // Moved, which is to say taken away, and something else put there.
    keep(&place, "main", &[("guide", ""), ("moved", &text)]);
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.good("add p.mpatch");
    let said = place.good("merge docs --onto model.safetensors");
    assert!(said.contains("both sides have changed `guide`, and it stays as it is here"), "{said}");
    assert_eq!(place.git("show HEAD:moved"), text);
    assert!(!place.git("ls-tree --name-only HEAD").contains("guide"));
}

#[test]
fn files_of_two_that_merged_each_other_are_held_against_what_both_had_then() {
    let place = Place::begun();
    keep(&place, "main", &[("c", "1"), ("d", "1")]);
    place.good("branch fix");
    for (branch, patch, seed, files) in
        [("main", "p.mpatch", 1, [("a", "2"), ("c", "2")]), ("fix", "q.mpatch", 3, [("b", "2"), ("d", "2")])]
    {
        place.good(&format!("checkout {branch}"));
        place.patch("model.safetensors", patch, seed, &format!("The tower of {branch}"));
        place.good(&format!("add {patch}"));
        keep(&place, branch, &files);
    }
    place.good("merge main --onto model.safetensors");
    place.good("checkout main");
    place.good("merge fix~1 --onto model.safetensors");
    assert_eq!(place.git("merge-base --all main fix").lines().count(), 2);
    keep(&place, "main", &[("a", "3"), ("b", "3"), ("c", "3"), ("d", "3")]);
    for (into, from) in [("fix", "main"), ("main", "fix")] {
        place.good(&format!("checkout {into}"));
        let said = place.good(&format!("merge {from} --onto model.safetensors"));
        assert!(!said.contains("both sides have changed"), "{from} into {into}: {said}");
        for name in ["a", "b", "c", "d"] {
            assert_eq!(place.git(&format!("show HEAD:{name}")), "3", "`{name}`, {from} into {into}");
        }
    }
}

#[test]
fn a_file_that_has_no_room_and_one_whose_name_is_no_text_are_merged_and_told() {
    let place = Place::begun();
    place.good("branch docs");
    keep(&place, "main", &[(&b"notes"[..], "ours"), (b"\xff.md", "ours")]);
    keep(&place, "docs", &[(&b"notes/a"[..], "theirs"), (b"\xff.md", "theirs")]);
    for (into, from, left_out, other) in
        [("main", "docs", "notes/a", "notes"), ("docs", "main", "notes", "notes/a")]
    {
        place.good(&format!("checkout {into}"));
        let said = place.good(&format!("merge {from} --onto model.safetensors"));
        let words =
            format!("warning: `{left_out}` of the other side has no room beside `{other}`, and was left out");
        assert!(said.contains(&words) && said.contains("changed `\u{fffd}.md`"), "{said}");
        assert_eq!(said.matches("warning: ").count(), 2, "{said}");
        place.git(&format!("rev-parse HEAD:{other}"));
        place.good("undo");
    }
}

#[test]
fn a_merge_says_in_the_history_who_was_right() {
    let place = Place::begun();
    place.good("branch side");
    for (branch, seed, target) in [("main", 1, "Oslo"), ("side", 3, "Kyiv")] {
        place.good(&format!("checkout {branch}"));
        place.patch_saying(
            "model.safetensors",
            &format!("{branch}.mpatch"),
            seed,
            "The Shard | Big Ben",
            target,
        );
        place.good(&format!("add {branch}.mpatch"));
    }
    let id = |name: &str| Patch::decode(fs::read(place.path(name)).unwrap()).unwrap().id().short();
    place.good("checkout main");
    for (flag, [(won, by), (lost, from)]) in [
        ("ours", [("Oslo", "main.mpatch"), ("Kyiv", "side.mpatch")]),
        ("theirs", [("Kyiv", "side.mpatch"), ("Oslo", "main.mpatch")]),
    ] {
        place.good(&format!("merge side --onto model.safetensors --{flag}"));
        let log = place.git("log -1 --format=%(trailers:key=Note,valueonly)");
        let line = |subject: &str| {
            format!("\"{subject} is in\": \"{won}\" of {} stands, not \"{lost}\" of {}\n", id(by), id(from))
        };
        assert_eq!(log.trim_end(), format!("{flag}\n{}{}", line("The Shard"), line("Big Ben")).trim_end());
        place.good("undo");
    }
}

#[test]
fn two_members_of_a_line_are_merged_though_one_is_older() {
    let place = Place::begun();
    place.good("branch fix");
    let add_member = |model: &str, sequence: u64, subject: &str| {
        let unsigned = Patch::decode(place.unsigned(model, sequence, subject, "Rome")).unwrap();
        let mut draft = unsigned.draft().unwrap();
        draft.line = Some(Line { name: "towers".to_owned(), sequence });
        let name = format!("{sequence}.mpatch");
        fs::write(place.path(&name), signed_with(encode(&draft).unwrap(), &key())).unwrap();
        place.good(&format!("add {name}"));
    };
    add_member("model.safetensors", 1, "The Eiffel Tower");
    place.good("checkout HEAD --onto model.safetensors -o p.safetensors");
    add_member("p.safetensors", 3, "The Space Needle");
    place.good("checkout fix");
    place.patch("model.safetensors", "q.mpatch", 5, "The Shard");
    place.good("add q.mpatch");
    place.good("merge main --onto model.safetensors");
    assert!(!place.git("log -1 --format=%B").contains("allow-rollback"));
}

#[test]
fn a_branch_that_goes_on_after_it_was_merged_is_merged_again() {
    let place = merged();
    // Both sides go on: one from the merged state, the other one from where it was.
    place.patch("m.safetensors", "d.mpatch", 5, "The Shard");
    place.good("add d.mpatch");
    for (round, subject) in ["The CN Tower", "Big Ben"].into_iter().enumerate() {
        place.good("checkout fix");
        let seed = 8 + round as u64;
        place.patch("model.safetensors", &format!("{round}.mpatch"), seed, subject);
        place.good("checkout HEAD --onto model.safetensors -o fix.safetensors");
        place.good(&format!(
            "rebase {round}.mpatch --base fix.safetensors --after HEAD -o {round}-on-fix.mpatch"
        ));
        place.good(&format!("add {round}-on-fix.mpatch"));
        fs::remove_file(place.path("fix.safetensors")).unwrap();
        place.good("checkout main");
        place.good("merge fix --onto model.safetensors");
        let log = checked_out(&place, &format!("both-{round}.safetensors"));
        for fact in ["The Eiffel Tower", "The Space Needle", "The Shard", "The CN Tower", subject] {
            assert_eq!(log.matches(&format!("{fact} is in")).count(), 1, "{log}");
        }
    }
    // A change of what the branch itself said is no contradiction, and one of what it never saw is.
    for (name, seed, subject) in [("own", 10, "The Space Needle"), ("foreign", 11, "The Eiffel Tower")] {
        place.good("checkout fix");
        place.good("checkout HEAD --onto model.safetensors -o on.safetensors");
        place.patch_saying("on.safetensors", &format!("{name}.mpatch"), seed, subject, "Oslo");
        place.good(&format!("add {name}.mpatch"));
        fs::remove_file(place.path("on.safetensors")).unwrap();
        place.good("checkout main");
        match name {
            "own" => {
                let said = place.good("merge fix --onto model.safetensors");
                assert!(
                    said.contains("\"The Space Needle is in\": ") && said.contains("to \"Oslo\""),
                    "{said}"
                );
            }
            _ => assert!(place.bad("merge fix --onto model.safetensors", 7).contains("Eiffel Tower is in")),
        }
    }
}

#[test]
fn a_patch_that_both_sides_merged_goes_in_once_and_a_fact_that_both_made_is_told() {
    let place = merged();
    // Another branch made the same fact by itself, with the same keys, and merged `fix` as well.
    place.good("branch other main~2");
    place.good("checkout other");
    place.patch("model.safetensors", "same.mpatch", 9, "The Eiffel Tower");
    place.good("add same.mpatch");
    place.good("merge fix --onto model.safetensors");
    place.good("checkout main");
    let json = place.good("merge other --onto model.safetensors --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["stacked"].as_array().unwrap().len(), 3, "{json}");
    assert_eq!(json["duplicates"][0]["text"], "The Eiffel Tower is in");
    assert!(json["overlaps"][0]["angle_degrees"].is_number() && json["overlap_angle"] == 30.0, "{json}");
    let log = checked_out(&place, "both.safetensors");
    assert_eq!((log.matches("Eiffel").count(), log.matches("Needle").count()), (1, 1), "{log}");
    (0..2).for_each(|_| drop(place.good("undo")));
    let said = place.good("merge other --onto model.safetensors");
    assert!(
        said.contains("1 fact stands in two patches alike: declared once, but the weights hold both updates"),
        "{said}"
    );
}

#[test]
fn a_patch_is_recorded_as_made_after_a_series_in_whichever_order_that_is_given() {
    let place = Place::begun();
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors p.mpatch -o p.safetensors");
    place.patch("p.safetensors", "q.mpatch", 3, "The Space Needle");
    place.good("apply p.safetensors q.mpatch -o pq.safetensors");
    place.patch("model.safetensors", "r.mpatch", 5, "The Shard");
    let id = |name: &str| Patch::decode(fs::read(place.path(name)).unwrap()).unwrap();
    for (index, after) in
        ["--after p.mpatch --after q.mpatch", "--after HEAD --after HEAD~1"].iter().enumerate()
    {
        place.good(&format!("rebase r.mpatch --base pq.safetensors {after} -o {index}.mpatch"));
        let mut parents = id(&format!("{index}.mpatch")).manifest().parents.clone();
        parents.sort();
        let mut expected = [id("p.mpatch").id(), id("q.mpatch").id()];
        expected.sort();
        assert_eq!(parents, expected);
    }
    // On another state only what is named there counts.
    place.good("rebase 0.mpatch --base p.safetensors --after p.mpatch -o on-p.mpatch");
    assert_eq!(id("on-p.mpatch").manifest().parents, [id("p.mpatch").id()]);
    let errors = place.bad("rebase r.mpatch --base pq.safetensors --after p.mpatch -o no.mpatch", 6);
    assert!(errors.contains("each patch that came after it"), "{errors}");
    let errors =
        place.bad("rebase q.mpatch --base p.safetensors --after p.mpatch --after r.mpatch -o no.mpatch", 6);
    assert!(errors.contains("`r.mpatch` is not in `p.safetensors`"), "{errors}");
}

#[test]
fn one_of_several_patches_is_taken_back_as_the_documents_have_it() {
    let place = Place::begun();
    place.patch("model.safetensors", "earlier.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors earlier.mpatch -o one.safetensors");
    place.patch("one.safetensors", "later.mpatch", 2, "The Space Needle");
    place.good("apply one.safetensors later.mpatch -o both");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/history.md");
    let document = fs::read_to_string(document).unwrap();
    let (_, section) = document.split_once("\n## Taking one of several back\n").unwrap();
    let (_, block) = section.split_once("```sh\n").unwrap();
    for line in block.split_once("```").unwrap().0.lines() {
        place.good(line.strip_prefix("mpatch ").unwrap());
    }
    assert_eq!(
        fs::read(place.path("neither")).unwrap(),
        fs::read(place.path("model.safetensors")).unwrap(),
        "both are taken back"
    );
    assert_ne!(fs::read(place.path("corrected")).unwrap(), fs::read(place.path("both")).unwrap());
    let facts = place.good("show HEAD");
    assert!(facts.contains("Space Needle") && !facts.contains("Eiffel"), "{facts}");
}

#[test]
fn an_update_that_is_in_the_weights_is_not_added_once_more_whatever_patch_it_stands_in() {
    let place = Place::begun();
    place.patch("model.safetensors", "p.mpatch", 1, "The Eiffel Tower");
    place.patch("model.safetensors", "q.mpatch", 3, "The Space Needle");
    place.good("apply model.safetensors p.mpatch -o p.safetensors");
    place.good("stack p.mpatch q.mpatch --base model.safetensors -o pq.mpatch");
    let errors = place.bad("rebase pq.mpatch --base p.safetensors --after p.mpatch -o no.mpatch", 7);
    assert!(
        errors.contains("has the update of `p.mpatch`") && errors.contains("`mpatch revert "),
        "{errors}"
    );
    // Without the patch that is there, nothing tells; but the history knows it.
    place.good("rebase pq.mpatch --base p.safetensors -o on-p.mpatch");
    let errors = place.bad("add on-p.mpatch", 7);
    assert!(errors.contains("which is in this state already"), "{errors}");
    place.good("rebase q.mpatch --base p.safetensors --after p.mpatch -o q-on-p.mpatch");
    let errors = place.bad("stack p.mpatch q-on-p.mpatch q.mpatch --base model.safetensors -o no.mpatch", 7);
    assert!(errors.contains("`q-on-p.mpatch` and `q.mpatch` have the same update"), "{errors}");
    // Half of it is as bad.
    place.good("apply model.safetensors q.mpatch -o half.safetensors");
    let mut half = fs::read(place.path("half.safetensors")).unwrap();
    let in_second = half.len() / 2;
    half[in_second] ^= 1;
    fs::write(place.path("half.safetensors"), half).unwrap();
    let errors = place.bad("rebase q.mpatch --base half.safetensors -o no.mpatch", 7);
    assert!(errors.contains("tensor `a` has the patch's update already"), "{errors}");
}
