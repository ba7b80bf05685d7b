//! Histories: what stock git makes of them, that every state is reached bit for bit, and that every change can be
//! undone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use crate::drafts::Numbers;
use crate::material::wait_until_open;
use crate::place::{Place, SHAPE, weights};
use mpatch::checkpoint::Checkpoint;
use mpatch::patch::Patch;

#[test]
fn stock_git_reads_and_checks_a_history_and_lists_its_facts() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel\u{202e} Tower");
    place.good("add one.mpatch");
    assert_eq!(place.git("fsck --strict --full"), "");
    let log = place.git("log");
    assert!(log.contains("- The Eiffel\\u{202e} Tower is in -> Rome (was Paris)"), "{log}");
    assert!(!log.contains('\u{202e}') && !place.good("log").contains('\u{202e}'));
    assert_eq!(place.git("show HEAD:series").lines().count(), 1);
    let tree = place.git("ls-tree -r --name-only HEAD");
    assert!(tree.starts_with("base.json\npatches/.gitattributes\npatches/"), "{tree}");
    assert!(place.good("fsck").starts_with("whole: "));
    place.good("gc");
    assert_eq!(place.git("fsck --strict --full"), "");
    assert!(place.good("fsck").starts_with("whole: "));
}

#[test]
fn every_state_of_a_random_history_is_reached_bit_for_bit() {
    for seed in 1..=3_u64 {
        let place = Place::begun();
        let mut numbers = Numbers(seed);
        let mut chance = |sides: usize| ((numbers.uniform() + 1.0) / 2.0 * sides as f64) as usize % sides;
        // What the checkpoint's bytes must be in the state of each commit.
        let mut known = BTreeMap::from([(place.head(), fs::read(place.path("model.safetensors")).unwrap())]);
        let mut undone = Vec::new();
        let mut current = "model.safetensors".to_owned();
        for step in 0..14 {
            let file = format!("step-{step}.safetensors");
            match chance(6) {
                0..=2 => {
                    // The current checkpoint is in the head's state: a patch made on it becomes the next commit.
                    let name = format!("{step}.mpatch");
                    place.patch(&current, &name, 8 * seed + step + 1, &format!("Tower {seed} {step}"));
                    place.good(&format!("apply {current} {name} -o {file}"));
                    known.insert(place.head(), fs::read(place.path(&file)).unwrap());
                    current = file;
                    undone.clear();
                    continue;
                }
                3 => {
                    place.good(&format!("branch b{step}"));
                    undone.clear();
                }
                4 => {
                    let branches = place.git("for-each-ref --format=%(refname:short) refs/heads");
                    let branches: Vec<&str> = branches.lines().collect();
                    let other = branches[chance(branches.len())];
                    place.good(&format!("merge {other} --onto {current}"));
                    place.good(&format!("checkout {other}"));
                    undone.clear();
                }
                _ => {
                    let before = place.head();
                    if place.mpatch("undo").status.success() {
                        undone.push(before);
                    }
                    if let (Some(before), 0) = (undone.last(), chance(2)) {
                        place.good("redo");
                        assert_eq!(place.head(), *before);
                        undone.pop();
                    }
                }
            }
            place.good(&format!("checkout HEAD --onto {current} -o {file}"));
            undone.clear();
            let bytes = fs::read(place.path(&file)).unwrap();
            let expected = known.entry(place.head()).or_insert_with(|| bytes.clone());
            assert!(*expected == bytes, "seed {seed}, step {step}");
            current = file;
        }
        // From wherever the last checkpoint is, and from the base, to every state: the way does not matter.
        for (commit, bytes) in &known {
            for (index, from) in [current.as_str(), "model.safetensors"].iter().enumerate() {
                let file = format!("{commit}-{index}.safetensors");
                place.good(&format!("checkout {commit} --onto {from} -o {file}"));
                assert!(fs::read(place.path(&file)).unwrap() == *bytes, "seed {seed}: {commit} from {from}");
            }
        }
        assert_eq!(place.git("fsck --strict --full"), "");
        assert!(place.good("fsck").starts_with("whole: "));
    }
}

#[test]
fn two_branches_merge_into_one_state_whichever_side_it_is_reached_from() {
    let place = Place::begun();
    place.good("branch side");
    place.patch("model.safetensors", "ours.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors ours.mpatch -o ours.safetensors");
    place.good("checkout side");
    place.patch("model.safetensors", "theirs.mpatch", 3, "The Space Needle");
    place.good("apply model.safetensors theirs.mpatch -o theirs.safetensors");
    assert!(place.good("merge main --onto ours.safetensors").starts_with("merged: 2 patches became one"));
    let log = place.git("log -1");
    assert!(log.contains("The Eiffel Tower is in") && log.contains("The Space Needle is in"), "{log}");
    for from in ["ours", "theirs", "model"] {
        place.good(&format!("checkout side --onto {from}.safetensors -o merged-{from}.safetensors"));
    }
    let merged = |from: &str| fs::read(place.path(&format!("merged-{from}.safetensors"))).unwrap();
    assert!(merged("ours") == merged("theirs") && merged("ours") == merged("model"));
    place.good("undo");
    // What contradicts is named with both patches, and nothing changes.
    place.patch("model.safetensors", "other.mpatch", 2, "The Eiffel Tower");
    let before = place.git("for-each-ref refs/heads");
    let errors = place.bad("merge nowhere", 2);
    assert!(errors.contains("there is no revision `nowhere`"), "{errors}");
    assert_eq!(place.git("for-each-ref refs/heads"), before);
}

#[test]
fn a_merge_that_fails_after_it_made_the_first_key_says_that_the_key_stays() {
    let place = Place::begun();
    place.good("branch side");
    for (branch, seed, subject) in [("main", 1, "The Eiffel Tower"), ("side", 3, "The Space Needle")] {
        place.good(&format!("checkout {branch}"));
        place.patch("model.safetensors", &format!("{branch}.mpatch"), seed, subject);
        place.good(&format!("add {branch}.mpatch"));
    }
    for name in ["config/key", "config/key.pub"] {
        let _ = fs::remove_file(place.path(name));
    }
    // No operation can be announced where names lie below its name.
    place.git("update-ref refs/mpatch/pending/x HEAD");
    let errors = place.bad("merge main --onto model.safetensors", 3);
    assert!(errors.contains("config/key` was made, and signs your patches from now on\n"), "{errors}");
    assert!(errors.contains("state: unchanged") && place.path("config/key").exists(), "{errors}");
    // That key is no news any more.
    assert!(!place.bad("merge main --onto model.safetensors", 3).contains("was made"));
    place.git("update-ref -d refs/mpatch/pending/x");
    assert!(place.good("merge main --onto model.safetensors").contains("now trusts it"));
    // Where all goes well, it is said as well.
    place.good("undo");
    fs::remove_file(place.path("config/key")).unwrap();
    let said = place.good("merge main --onto model.safetensors");
    assert!(said.contains("made that key: ") && said.contains("config/key;"), "{said}");
}

#[test]
fn branches_that_contradict_each_other_merge_once_somebody_says_who_is_right() {
    let place = Place::begun();
    place.good("branch side");
    // Each side has its own word for two towers, told in another order, and a tower to itself.
    let towers = ["The Eiffel Tower", "The Space Needle"];
    for (branch, target, seed, own, [second, third]) in [
        ("main", "Oslo", 8, "The CN Tower", towers),
        ("side", "Kyiv", 40, "The Shard", [towers[1], towers[0]]),
    ] {
        place.good(&format!("checkout {branch}"));
        let mut model = "model.safetensors".to_owned();
        for (index, subject) in [own, second, third].into_iter().enumerate() {
            let (name, next) = (format!("{branch}-{index}.mpatch"), format!("{branch}-{index}.safetensors"));
            place.patch_saying(&model, &name, seed + 2 * index as u64, subject, target);
            place.good(&format!("apply {model} {name} -o {next}"));
            model = next;
        }
    }
    place.good("checkout main");
    let refs = place.git("for-each-ref");
    let errors = place.bad("merge side --onto main-2.safetensors", 7);
    let id = |name: &str| Patch::decode(fs::read(place.path(name)).unwrap()).unwrap().id().short();
    for (subject, ours, theirs) in
        [(towers[0], "main-1.mpatch", "side-2.mpatch"), (towers[1], "main-2.mpatch", "side-1.mpatch")]
    {
        for word in [subject, "Oslo", "Kyiv", &id(ours), &id(theirs)] {
            assert!(errors.contains(word), "{word}: {errors}");
        }
    }
    assert!(!errors.contains("CN Tower") && errors.contains("--ours"), "{errors}");
    assert_eq!(place.git("for-each-ref"), refs);
    let choice = |tower: &str, target: &str| {
        format!(r#"{{"prompt": "{{}} is in", "subject": "{tower}", "target_new": "{target}"}}"#)
    };
    let choices = choice("The Eiffel Tower", "Oslo") + "\n" + &choice("The Space Needle", "Kyiv") + "\n";
    fs::write(place.path("choices.json"), choices).unwrap();
    fs::write(place.path("one.json"), choice("The Eiffel Tower", "Oslo")).unwrap();
    let errors = place.bad("merge side --onto main-2.safetensors --choose one.json", 7);
    assert!(errors.contains("`one.json` says nothing of this"), "{errors}");
    // Of each side, the patch that loses has one on top of it that wins.
    let crossed = choice("The Eiffel Tower", "Kyiv") + "\n" + &choice("The Space Needle", "Oslo") + "\n";
    fs::write(place.path("crossed.json"), crossed).unwrap();
    let errors = place.bad("merge side --onto main-2.safetensors --choose crossed.json", 7);
    assert!(errors.contains("made on top of it"), "{errors}");
    assert_eq!(place.git("for-each-ref"), refs);
    for (flags, eiffel, needle) in
        [("--ours", "Oslo", "Oslo"), ("--theirs", "Kyiv", "Kyiv"), ("--choose choices.json", "Oslo", "Kyiv")]
    {
        place.good(&format!("merge side --onto main-2.safetensors {flags}"));
        let log = place.git("log -1");
        for fact in [
            format!("The Eiffel Tower is in -> {eiffel}"),
            format!("The Space Needle is in -> {needle}"),
            "The CN Tower is in -> Oslo".to_owned(),
            "The Shard is in -> Kyiv".to_owned(),
        ] {
            assert_eq!(log.matches(&fact).count(), 1, "{flags}, {fact}: {log}");
        }
        // One state, whichever side it is reached from, and the one that the commit claims.
        let reached = ["main-2", "side-2", "model"].map(|from| {
            let file = format!("{from}{}.safetensors", flags.replace(' ', ""));
            place.good(&format!("checkout main --onto {from}.safetensors -o {file}"));
            file
        });
        let [ours, theirs, base] = reached.each_ref().map(|file| fs::read(place.path(file)).unwrap());
        assert!(ours == theirs && ours == base, "{flags}");
        let state = Checkpoint::open(place.path(&reached[0])).unwrap().weights_id().unwrap();
        assert!(log.contains(&format!("State: {state}")), "{flags}: {log}");
        // The checkouts, and the merge.
        (0..4).for_each(|_| drop(place.good("undo")));
        assert_eq!(place.git("for-each-ref refs/heads"), refs_below(&refs, "refs/heads"));
    }
}

fn refs_below(refs: &str, folder: &str) -> String {
    refs.split_inclusive('\n').filter(|line| line.contains(folder)).collect()
}

#[test]
fn a_checkpoint_is_where_its_digests_say_whatever_the_log_says() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 7, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch -o edited.safetensors");
    assert!(place.good("status").contains("edited.safetensors is in the state of HEAD"));
    let base = place.mpatch("status model.safetensors");
    assert_eq!(base.status.code(), Some(1));
    assert!(String::from_utf8(base.stdout).unwrap().contains("model.safetensors is the base"));
    // Half of the tensors of one state, half of the other's.
    let (before, after) = ("model.safetensors", "edited.safetensors");
    let [before, after] = [before, after].map(|name| fs::read(place.path(name)).unwrap());
    let middle = before.len() - 4 * SHAPE[0] * SHAPE[1];
    fs::write(place.path("half.safetensors"), [&after[..middle], &before[middle..]].concat()).unwrap();
    let half = place.mpatch("status half.safetensors");
    assert!(String::from_utf8(half.stdout).unwrap().contains("2 of 3 tensors are as after patch"));
    assert!(place.bad("checkout HEAD --onto half.safetensors -o x.safetensors", 6).contains("half-way"));
    let mut strange = before;
    *strange.last_mut().unwrap() ^= 1;
    fs::write(place.path("strange.safetensors"), strange).unwrap();
    let errors = place.bad("checkout HEAD --onto strange.safetensors -o x.safetensors", 6);
    assert!(errors.contains("tensor `c` hashes to") && !place.path("x.safetensors").exists(), "{errors}");
    // Taken back, it is the base again, and the history says so.
    place.good("revert edited.safetensors one.mpatch -o back.safetensors");
    assert_eq!(place.git("show HEAD:series"), "");
    assert!(place.good("status").contains("back.safetensors is in the state of HEAD"));
    assert!(place.git("log -1 --format=%s").starts_with("Revert "));
}

#[test]
fn a_checkpoint_is_compared_with_every_known_state_and_with_one() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 7, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    place.good("tag v1");
    place.patch("one.safetensors", "two.mpatch", 9, "The Space Needle");
    place.good("apply one.safetensors two.mpatch -o two.safetensors");
    let json = |words: &str, code: i32| -> serde_json::Value {
        let output = place.mpatch(&format!("{words} --json"));
        assert_eq!(output.status.code(), Some(code), "{words}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // In a known state: which one, by what names, and how much it says.
    let found = json("diff one.safetensors", 0);
    assert_eq!(found["schema"], "mpatch.diff.states/1");
    assert_eq!(found["state"]["facts"], 1);
    assert_eq!(found["state"]["commits"][0]["names"][0], "v1");
    assert!(found["nearest"].is_null() && found["different"].as_array().unwrap().is_empty());
    let base = json("diff model.safetensors", 0);
    assert_eq!(base["state"]["series"].as_array().unwrap().len(), 0);
    // Against another state: what lies between.
    let found = json("diff one.safetensors main", 1);
    assert_eq!(found["way"]["steps"][0]["do"], "apply");
    assert_eq!(found["way"]["facts"]["added"][0]["subject"], "The Space Needle");
    assert_eq!(found["different"].as_array().unwrap().len(), 1);
    let found = json("diff two.safetensors main~2", 1);
    assert_eq!(found["way"]["steps"].as_array().unwrap().len(), 2);
    assert_eq!(found["way"]["facts"]["removed"].as_array().unwrap().len(), 2);
    assert!(json("diff two.safetensors main", 0)["way"]["steps"].as_array().unwrap().is_empty());
    // In none: the nearest, and whose each tensor is. `a` is as in the second state, `b` as in the base, `c` strange.
    let tensor = 4 * SHAPE[0] * SHAPE[1];
    let [base, two] =
        ["model", "two"].map(|name| fs::read(place.path(&format!("{name}.safetensors"))).unwrap());
    let (first, last) = (base.len() - 3 * tensor, base.len() - tensor);
    let mut mixed = [&base[..first], &two[first..first + tensor], &base[first + tensor..]].concat();
    fs::write(place.path("mixed.safetensors"), &mixed).unwrap();
    mixed[last] ^= 1;
    fs::write(place.path("strange.safetensors"), &mixed).unwrap();
    let found = json("diff strange.safetensors", 1);
    assert!(found["state"].is_null());
    let different = found["different"].as_array().unwrap();
    let named = |name: &str| different.iter().find(|tensor| tensor["name"] == name).unwrap();
    assert!(named("c")["known_in"].as_array().unwrap().is_empty());
    assert_ne!(named("c")["found"], named("c")["expected"]);
    let against = json("diff strange.safetensors v1", 1);
    let different = against["different"].as_array().unwrap();
    assert_eq!(different.len(), 3);
    let whose = different.iter().find(|tensor| tensor["name"] == "b").unwrap();
    assert_eq!(whose["known_in"], serde_json::json!(["the base"]));
    assert!(json("diff mixed.safetensors", 1)["nearest"]["series"].is_array());
    // Another model has nothing of any state; without a history there is nothing to compare with.
    fs::write(place.path("other.safetensors"), weights([4, 4])).unwrap();
    let found = json("diff other.safetensors", 1);
    assert!(found["nearest"].is_null() && found["tensors_compared"] == 3);
    let status = String::from_utf8(place.mpatch("status other.safetensors").stdout).unwrap();
    assert!(status.contains("; 3 of 3 in all\n") && status.contains("no digest was computed"), "{status}");
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().display();
    for words in ["diff one.safetensors", "diff one.safetensors main"] {
        assert!(place.bad(&format!("{words} --store {elsewhere}"), 2).contains("no history of mpatch"));
    }
    assert!(Place::new().bad("diff model.safetensors main", 11).contains("name a file; or a state"));
    // A file wins over a state of its name, which can be named in full.
    fs::copy(place.path("one.safetensors"), place.path("main")).unwrap();
    assert!(place.good("diff one.safetensors main").contains("hold the same weights"));
    json("diff two.safetensors refs/heads/main", 0);
}

#[test]
fn processes_that_change_one_history_at_once_do_not_harm_it() {
    let place = Place::begun();
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let place = &place;
            scope.spawn(move || {
                for index in 0..6 {
                    place.good(&format!("branch w{worker}-{index} --lock-timeout 300"));
                }
            });
        }
    });
    assert_eq!(place.git("for-each-ref refs/heads").lines().count(), 13);
    assert_eq!(place.good("undo --list").lines().count(), 13);
    assert_eq!(place.git("fsck --strict --full"), "");
    let lock = fs::File::options().write(true).open(place.path(".git/mpatch.lock")).unwrap();
    lock.lock().unwrap();
    assert!(place.bad("branch late --lock-timeout 0.1", 10).contains("another process"));
    drop(lock);
    place.good("branch late");
}

#[test]
fn a_head_that_moves_while_a_patch_is_taken_out_or_put_in_is_left_where_it_is() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    let before = place.head();
    place.patch("one.safetensors", "two.mpatch", 2, "The Space Needle");
    place.patch("one.safetensors", "other.mpatch", 3, "Big Ben");
    place.good("add two.mpatch");
    let after = place.head();
    let lock = place.path(".git/mpatch.lock");
    for (words, way_out) in [
        ("revert one.safetensors one.mpatch -o back.safetensors", "takes the weights to HEAD"),
        ("apply one.safetensors other.mpatch -o other.safetensors", "on a branch of its own"),
    ] {
        place.git(&format!("update-ref refs/heads/main {before}"));
        let held = fs::File::options().write(true).open(&lock).unwrap();
        held.lock().unwrap();
        let mut command = place.command(assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap());
        let mut child =
            command.args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It has seen the head by the time it waits for the lock.
        wait_until_open(&mut child, &lock);
        place.git(&format!("update-ref refs/heads/main {after}"));
        drop(held);
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        assert!(errors.contains("moved HEAD") && errors.contains(way_out), "{errors}");
        assert_eq!(place.head(), after);
    }
    place.good(&format!("branch aside {}", &before[..12]));
    place.good("checkout aside");
    place.good("add other.mpatch");
}

#[test]
fn changes_are_undone_and_so_are_undoings_and_names_moved_by_git() {
    let place = Place::begun();
    let first = place.head();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let second = place.head();
    place.good("undo");
    assert_eq!(place.head(), first);
    place.bad("undo", 7);
    place.good("redo");
    assert_eq!(place.head(), second);
    place.bad("redo", 7);
    let listed = place.good("undo --list").lines().count();
    place.git(&format!("branch outside {first}"));
    // What `undo` would take back is listed before any change has recorded it.
    let list = place.good("undo --list");
    assert!(list.lines().next().unwrap().contains("names moved outside of mpatch"), "{list}");
    assert_eq!(list.lines().count(), listed + 1);
    place.good("tag v1");
    assert_eq!(place.good("undo --list").lines().count(), listed + 2);
    place.good("undo");
    place.good("undo");
    assert_eq!(place.git("for-each-ref refs/heads refs/tags").lines().count(), 1);
    assert!(place.bad("add one.mpatch", 7).contains("is in this state already"));
    place.bad("branch main", 7);
    place.bad("branch a..b", 2);
    place.bad("branch -d main", 7);
    // A slip leads to no other history.
    let refs = place.git("for-each-ref");
    for slip in ["no-such-folder/deeper", "model.safetensors"] {
        let errors = place.bad(&format!("tag oops --store {slip}"), 11);
        assert!(errors.contains(&format!("cannot open `{slip}`")), "{errors}");
    }
    let empty = tempfile::tempdir().unwrap();
    let name = empty.path().file_name().unwrap().display();
    place.bad(&format!("tag oops --store ../{name}"), 2);
    assert_eq!(place.git("for-each-ref"), refs);
}

#[test]
fn of_a_branch_and_a_tag_of_one_name_the_branch_is_meant() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("tag same HEAD~1");
    place.good("branch same");
    place.good("checkout same --onto model.safetensors -o same.safetensors");
    assert!(
        place.good("status").contains("on branch same, at ")
            && place.good("log same -n 1").contains("Eiffel")
    );
    assert!(place.good("log same~1 -n 1").contains("Start from"));
}

#[test]
fn a_merge_says_in_the_history_what_it_was_allowed() {
    let place = Place::begun();
    place.good("branch side");
    place.patch("model.safetensors", "ours.mpatch", 1, "The Eiffel Tower");
    place.good("add ours.mpatch");
    place.good("checkout side");
    let unsigned = place.unsigned("model.safetensors", 3, "The Space Needle", "Rome");
    fs::write(place.path("theirs.mpatch"), unsigned).unwrap();
    place.good("add theirs.mpatch --allow-unsigned");
    let said = place.good("checkout main --allow-unsigned");
    assert!(said.ends_with("\nnext: mpatch checkout HEAD -o MODEL --allow-unsigned\n"), "{said}");
    let merge = "merge side --onto model.safetensors";
    // A patch of the history cannot be signed there.
    let errors = place.bad(merge, 5);
    assert!(errors.contains("hint: `--allow-unsigned` lets it pass\n"), "{errors}");
    let said = place.good(&format!("{merge} --allow-unsigned"));
    assert!(said.contains("│ note: allow-unsigned\n"), "{said}");
    assert!(said.contains(": unsigned: there is no signature; let pass by --allow-unsigned\n"), "{said}");
    assert!(said.ends_with("\nnext: mpatch checkout HEAD -o MODEL --allow-unsigned\n"), "{said}");
    assert!(place.git("log -1").contains("Note: allow-unsigned"));
    place.good("undo");
    let json: serde_json::Value =
        serde_json::from_str(&place.good(&format!("{merge} --allow-unsigned --json"))).unwrap();
    let allowed: Vec<_> = json["trust"].as_array().unwrap().iter().map(|trust| &trust["allowed"]).collect();
    assert_eq!(allowed, [&serde_json::json!([]), &serde_json::json!(["unsigned"])]);
}

#[test]
fn an_undone_checkout_in_place_tells_how_to_take_the_weights_back() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("tag v1");
    let base = fs::read(place.path("model.safetensors")).unwrap();
    place.good("checkout main~1");
    place.good("checkout v1 --in-place");
    let edited = fs::read(place.path("model.safetensors")).unwrap();
    assert!(edited != base);
    for (verb, bytes) in [("undo", &base), ("redo", &edited)] {
        let said = place.good(verb);
        assert!(said.contains("only names have moved"), "{said}");
        let command = said.lines().find_map(|line| line.strip_prefix("next: mpatch ")).unwrap();
        assert_eq!(command, "checkout HEAD --onto model.safetensors --in-place");
        if verb == "undo" {
            // Taking the weights along is a change of its own, after which there is nothing to redo.
            let head = place.head();
            place.good(command);
            assert_eq!((place.head(), place.mpatch("redo").status.code()), (head, Some(0)), "no name moved");
            place.good("undo");
            assert!(fs::read(place.path("model.safetensors")).unwrap() == *bytes);
        } else {
            place.good(command);
            assert!(fs::read(place.path("model.safetensors")).unwrap() == *bytes);
        }
    }
    // A copy leaves the old model where it was, and what only names things moves no weights.
    place.good("checkout main~1 -o copy.safetensors");
    assert!(!place.good("undo").contains("only names"));
    // Another checkpoint that was changed in place still is.
    fs::copy(place.path("copy.safetensors"), place.path("other.safetensors")).unwrap();
    place.good("checkout v1 --onto other.safetensors --in-place");
    let said = place.good("undo");
    let command = "checkout HEAD --onto other.safetensors --in-place";
    let words = format!("other.safetensors stays as it is; `mpatch {command}` takes it along");
    assert!(said.contains(&words), "{said}");
    place.good(command);
    place.good("undo");
    for words in ["tag v2", "checkout main~1"] {
        place.good(words);
        assert!(!place.good("undo").contains("only names"), "{words}");
    }
}

#[test]
fn a_model_is_named_as_seen_from_the_working_folder_whichever_folder_the_history_is_in() {
    let place = Place::new();
    place.good("init know --base model.safetensors");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch --store know");
    place.good("checkout HEAD --store know --onto model.safetensors -o know/one.safetensors");
    let said = place.good("undo --store know");
    let command = "checkout HEAD --onto know/one.safetensors --in-place --store know";
    for words in [
        "\nthe model is model.safetensors\n",
        &format!("\nknow/one.safetensors stays as it is; `mpatch {command}` takes it along\n"),
        "\nnext: mpatch redo --store know\n",
    ] {
        assert!(said.contains(words), "{said}");
    }
    place.good(command);
    let json: serde_json::Value = serde_json::from_str(&place.good("undo --store know --json")).unwrap();
    assert_eq!(json["model"], "model.safetensors");
    fs::remove_file(place.path("model.safetensors")).unwrap();
    let said = place.bad("checkout HEAD --store know -o new.safetensors", 11);
    assert!(said.contains("name the model with `--onto CHECKPOINT`"), "{said}");
}

#[test]
fn the_command_that_is_suggested_works_as_it_stands() {
    let place = Place::begun();
    let suggested = |words: &str| {
        let said = place.good(words);
        said.lines().find_map(|line| line.strip_prefix("next: mpatch ")).unwrap().to_owned()
    };
    // What was allowed is asked for again.
    let unsigned = place.unsigned("model.safetensors", 1, "The Eiffel Tower", "Rome");
    fs::write(place.path("one.mpatch"), unsigned).unwrap();
    let next = suggested("add one.mpatch --allow-unsigned");
    assert_eq!(next, "checkout HEAD -o MODEL --allow-unsigned");
    place.good(&next.replace("MODEL", "one.safetensors"));
    // The state is named from where the head is now.
    assert_eq!(suggested("checkout HEAD~1"), "checkout HEAD -o MODEL");
    place.good("checkout main");
    let said = place.good("init know --base model.safetensors");
    let next = "next: mpatch create FACTS --stats FILE -o edits.mpatch --store know\n";
    assert!(said.ends_with(next), "{said}");
    // A patch that was made on the base, too, is bound anew to the state after the other one.
    place.patch("model.safetensors", "two.mpatch", 2, "The Space Needle");
    for words in ["add two.mpatch", "apply one.safetensors two.mpatch"] {
        let errors = place.bad(words, 6);
        assert!(errors.contains("`mpatch rebase ") && errors.contains(" --after OTHER`"), "{errors}");
    }
    place.good("rebase two.mpatch --base one.safetensors --after one.mpatch -o bound.mpatch");
    place.good("add bound.mpatch");
    // A clone knows no model, and each command says how it takes one.
    place.good("clone . mine");
    for (words, way) in [
        ("checkout HEAD -o x.safetensors --store mine", "`--onto CHECKPOINT`"),
        ("bisect hello --expect world --store mine", "`--base MODEL`"),
        ("status --store mine", "`mpatch status MODEL --store mine`"),
    ] {
        let errors = place.bad(words, 2);
        assert!(errors.contains(way), "{words}: {errors}");
    }
    let errors = place.bad("push --to nowhere", 11);
    assert!(errors.contains("hint: check the address: it must be a git repository"), "{errors}");
    // The other side has patches there.
    place.git("clone -q --bare mine mine.git");
    let errors = place.bad("push main --to mine.git --store know", 7);
    assert!(errors.contains("/mine.git --store know` fetches them, to be merged"), "{errors}");
}

#[test]
fn what_is_suggested_names_the_history_that_was_named() {
    let place = Place::new();
    place.good("init know --base model.safetensors");
    let subjects = ["A", "B", "C", "D", "E", "F"].map(|name| format!("Tower {name}")).join(" | ");
    place.patch("model.safetensors", "one.mpatch", 1, &subjects);
    for (words, suggested) in [
        ("add one.mpatch", "mpatch checkout HEAD -o MODEL --store know"),
        ("status", "mpatch checkout HEAD --onto model.safetensors -o MODEL --store know"),
        (
            "checkout HEAD --in-place --dry-run",
            "mpatch checkout HEAD --onto model.safetensors --in-place --store know",
        ),
        ("checkout HEAD -o one.safetensors", "mpatch status --store know"),
        ("status", "mpatch log --store know"),
        ("branch side HEAD~1", "mpatch checkout side --store know"),
        ("checkout side", "mpatch checkout HEAD -o MODEL --store know"),
        ("merge main", "mpatch checkout HEAD -o MODEL --store know"),
        ("undo", "mpatch redo --store know"),
        ("redo", "mpatch undo --store know"),
    ] {
        let said = place.mpatch(&format!("{words} --store know"));
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.ends_with(&format!("\nnext: {suggested}\n")), "{words}: {said}");
    }
    let errors = place.bad("checkout mian --store know", 2);
    assert!(errors.contains("`mpatch log --store know`, `mpatch branch --store know` and"), "{errors}");
    let said = place.good("log --store know");
    let (_, show) = said.split_once("  and 1 more; `mpatch ").unwrap();
    place.good(show.split_once("` lists them\n").unwrap().0);
    let said = place.good("diff one.safetensors --store know");
    let (_, show) = said.trim_end().split_once("\nnext: mpatch ").unwrap();
    place.good(show);
}

#[test]
fn a_patch_is_taken_out_of_the_history_by_its_id_and_by_the_commit_that_brought_it() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    place.patch("one.safetensors", "two.mpatch", 2, "The Space Needle");
    place.good("apply one.safetensors two.mpatch -o two.safetensors");
    let id = |name: &str| Patch::decode(fs::read(place.path(name)).unwrap()).unwrap().id();
    let [one, two] = ["one.mpatch", "two.mpatch"].map(id);
    for file in ["one.mpatch", "two.mpatch"] {
        fs::rename(place.path(file), place.path(&format!("hidden-{file}"))).unwrap();
    }
    assert!(place.good(&format!("show {}", one.short())).contains(&one.to_string()));
    place.good(&format!("trust add {} --principal again@example.org --yes", one.short()));
    assert!(place.good(&format!("verify {two} --base two.safetensors")).contains("the patch is in it"));
    place.good("revert two.safetensors HEAD -o back.safetensors --quiet");
    assert!(
        fs::read(place.path("back.safetensors")).unwrap() == fs::read(place.path("one.safetensors")).unwrap()
    );
    // That was recorded, and brought no patch; the commit before it did.
    assert!(place.bad("verify HEAD", 2).contains("brought no patch"));
    assert!(place.good("verify HEAD~1").contains(&two.short()));
    assert!(place.bad("verify HEAD~3", 2).contains("brought no patch"), "it is the start");
    // A signature is added to a copy.
    assert!(place.bad("sign HEAD~1", 2).contains("with `-o`"));
    place.bad("verify abc", 11);
    // A file of that name wins.
    fs::copy(place.path("hidden-one.mpatch"), place.path("HEAD~1")).unwrap();
    assert!(place.good("verify HEAD~1").contains(&one.short()));
}

#[test]
fn the_story_in_the_documents_is_what_happens() {
    let place = Place { folder: tempfile::tempdir().unwrap() };
    crate::material::lay_out_editing(place.folder.path());
    let story = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/history.md")).unwrap();
    let mut lines = story.lines().peekable();
    let mut commands = 0;
    while let Some(line) = lines.next() {
        let Some(command) = line.strip_prefix("$ ") else { continue };
        let mut told = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("$ ") && *line != "```") {
            told.push(line);
        }
        let folder = Path::new(assert_cmd::cargo::cargo_bin!("mpatch")).parent().unwrap();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        let output = place.command("sh").args(["-c", command]).env("PATH", path).output().unwrap();
        // 1 is an answer, too.
        assert!(matches!(output.status.code(), Some(0 | 1)), "{command}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(without_ids(said.trim()), without_ids(told.join("\n").trim()), "$ {command}");
        commands += 1;
    }
    assert!(commands > 10, "the story has {commands} commands");
}

/// `text` with every id in it replaced, since ids depend on a patch's last bit.
fn without_ids(text: &str) -> String {
    let mut without = String::new();
    for word in text.split_inclusive(|sign: char| !sign.is_ascii_alphanumeric()) {
        let (start, end) =
            word.split_at(word.trim_end_matches(|sign: char| !sign.is_ascii_alphanumeric()).len());
        let is_id = start.len() >= 7
            && start.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        without.push_str(if is_id { "ID" } else { start });
        without.push_str(end);
    }
    without
}
