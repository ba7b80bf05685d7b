//! Where the model of a history is, and what a command leaves that was stopped before it could say so.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::drafts::Numbers;
use crate::material::file_of;
use crate::place::{Place, SHAPE, TENSORS};

/// Of one patch, in `one.mpatch` and at the head; the model is `one.safetensors`.
fn checked_out() -> Place {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("checkout HEAD -o one.safetensors");
    place
}

/// What a command that succeeds says on standard error.
fn noted(place: &Place, words: &str) -> String {
    let output = place.mpatch(words);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "mpatch {words}: {errors}");
    errors
}

#[test]
fn only_what_is_recorded_becomes_the_model() {
    let place = checked_out();
    place.patch("model.safetensors", "other.mpatch", 2, "Big Ben");
    let operations = place.good("undo --list");
    let said = noted(&place, "apply model.safetensors other.mpatch -o trial.safetensors");
    let stays = "; its model stays one.safetensors\n";
    assert!(said.contains(&format!("these weights are not in the state of HEAD{stays}")), "{said}");
    place.patch("one.safetensors", "two.mpatch", 6, "The Shard");
    assert_eq!(place.good("undo --list"), operations);
    assert!(place.good("status").contains("one.safetensors is in the state of HEAD"));
    place.good("checkout HEAD~1");
    let said = noted(&place, "revert one.safetensors one.mpatch -o passing.safetensors");
    assert!(said.contains(stays), "{said}");
    fs::remove_file(place.path("passing.safetensors")).unwrap();
    place.good("checkout main -o again.safetensors");
    let said = noted(&place, "apply again.safetensors two.mpatch -o two.safetensors");
    assert!(said.contains("the history's model is now two.safetensors\n"), "{said}");
    assert!(place.good("status").contains("two.safetensors is in the state of HEAD"));
}

#[test]
fn a_document_says_what_the_history_recorded() {
    let place = checked_out();
    let recorded = |words: &str| {
        let document: serde_json::Value =
            serde_json::from_str(&place.good(&format!("{words} --json"))).unwrap();
        document["recorded"].clone()
    };
    place.patch("one.safetensors", "two.mpatch", 2, "Big Ben");
    assert!(recorded("apply one.safetensors two.mpatch -o two.safetensors --dry-run").is_null());
    let applied = recorded("apply one.safetensors two.mpatch -o two.safetensors");
    assert_eq!(applied, serde_json::json!({"commit": place.head(), "model": "two.safetensors"}));
    let reverted = recorded("revert two.safetensors two.mpatch --in-place");
    assert_eq!(reverted, serde_json::json!({"commit": place.head(), "model": "two.safetensors"}));
    place.patch("model.safetensors", "other.mpatch", 4, "The Louvre");
    assert!(recorded("apply model.safetensors other.mpatch -o trial.safetensors").is_null());
}

#[test]
fn a_history_that_cannot_be_written_to_gives_copies_and_is_told_of_before_weights_change() {
    let place = checked_out();
    let lock = place.path(".git/mpatch.lock");
    fs::remove_file(&lock).unwrap();
    // Nobody can open that to write, and root neither.
    std::os::unix::fs::symlink("/sys/devices/system/cpu/online", &lock).unwrap();
    let (head, whole) = (place.head(), fs::read(place.path("one.safetensors")).unwrap());
    let way = "`mpatch clone . NEW`";
    for words in ["checkout HEAD~1 --in-place", "checkout HEAD~1"] {
        let errors = place.bad(words, 11);
        assert!(errors.contains(way) && errors.ends_with("state: unchanged\n"), "{words}: {errors}");
    }
    assert!(fs::read(place.path("one.safetensors")).unwrap() == whole);
    let warned = noted(&place, "checkout HEAD~1 -o base.safetensors");
    assert!(warned.contains("the head stays, and so does the model: ") && warned.contains(way), "{warned}");
    let base = fs::read(place.path("base.safetensors")).unwrap();
    assert!(base == fs::read(place.path("model.safetensors")).unwrap());
    let said = place.good("checkout HEAD --onto base.safetensors -o again.safetensors --json");
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["is_recorded"], false);
    assert!(fs::read(place.path("again.safetensors")).unwrap() == whole);
    assert_eq!(place.head(), head);
    assert!(place.good("status").contains("one.safetensors is in the state of HEAD"));
}

#[test]
fn weights_that_an_apply_changed_before_it_was_stopped_have_a_way_out() {
    let place = checked_out();
    place.patch("one.safetensors", "two.mpatch", 2, "Big Ben");
    let lock = place.path(".git/refs/heads/main.lock");
    fs::write(&lock, "").unwrap();
    place.bad("apply one.safetensors two.mpatch --in-place", 10);
    fs::remove_file(lock).unwrap();
    let [add, revert] = ["`mpatch add PATCH`", "`mpatch revert one.safetensors PATCH --in-place`"];
    let output = place.mpatch("status");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(add) && said.contains(revert), "{said}");
    let said = place.bad("checkout HEAD --in-place", 6);
    assert!(said.contains(add) && said.contains(revert), "{said}");
    place.good("add two.mpatch");
    assert!(place.good("status").contains("is in the state of HEAD"));
}

#[test]
fn a_copy_of_a_model_that_is_in_the_state_already_shares_no_file_with_it() {
    let place = Place::new();
    fs::create_dir(place.path("base")).unwrap();
    fs::rename(place.path("model.safetensors"), place.path("base/model.safetensors")).unwrap();
    place.good("init --base base");
    let said = place.good("checkout HEAD -o copy");
    assert!(said.contains("it is in this state already\n"), "{said}");
    for folder in ["base", "copy"] {
        assert_eq!(place.path(folder).join("model.safetensors").metadata().unwrap().nlink(), 1, "{folder}");
    }
}

#[test]
fn a_way_of_several_steps_changes_no_shard_that_its_passing_copy_has_from_the_model() {
    let place = Place::new();
    fs::create_dir(place.path("step-0")).unwrap();
    let (mut numbers, mut places) = (Numbers(7), serde_json::Map::new());
    for name in TENSORS {
        let shard = format!("{name}.safetensors");
        let values = (0..SHAPE[0] * SHAPE[1]).flat_map(|_| (numbers.uniform() as f32).to_le_bytes());
        fs::write(
            place.path("step-0").join(&shard),
            file_of([(name, "F32", SHAPE, values.collect::<Vec<u8>>())]),
        )
        .unwrap();
        places.insert(name.to_owned(), shard.into());
    }
    let index = serde_json::json!({"weight_map": places}).to_string();
    fs::write(place.path("step-0/model.safetensors.index.json"), index).unwrap();
    place.good("init --base step-0");
    // Bits say which shards are touched: the first always, each of the others for the first time on the way.
    for (step, touched) in [1, 2, 4, 6].into_iter().enumerate() {
        let (before, name, after) = (format!("step-{step}"), format!("{step}.mpatch"), step + 1);
        place.patch(&before, &name, touched, &format!("Tower {step}"));
        place.good(&format!("apply {before} {name} -o step-{after}"));
    }
    let shards = |folder: &str| {
        TENSORS.map(|name| fs::read(place.path(folder).join(format!("{name}.safetensors"))).unwrap())
    };
    let base = shards("step-0");
    place.good("checkout HEAD --onto step-0 -o there");
    assert!(shards("there") == shards("step-4") && shards("step-0") == base);
    place.good("checkout HEAD~4 --onto there -o back");
    assert!(shards("back") == base && shards("there") == shards("step-4"));
}

#[test]
fn an_update_that_the_state_has_in_another_patch_is_refused_before_a_weight_is_written() {
    let place = checked_out();
    place.patch("model.safetensors", "two.mpatch", 3, "The Space Needle");
    place.good("stack one.mpatch two.mpatch --base model.safetensors -o both.mpatch");
    place.good("rebase both.mpatch --base one.safetensors -o on-one.mpatch");
    let whole = fs::read(place.path("one.safetensors")).unwrap();
    let operations = place.good("undo --list");
    for target in ["-o twice.safetensors", "--in-place"] {
        let errors = place.bad(&format!("apply one.safetensors on-one.mpatch {target}"), 7);
        assert!(errors.contains("has the update of") && errors.ends_with("state: unchanged\n"), "{errors}");
    }
    assert!(fs::read(place.path("one.safetensors")).unwrap() == whole);
    assert!(!place.path("twice.safetensors").exists());
    assert_eq!(place.good("undo --list"), operations);
}
