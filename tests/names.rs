//! Names: branches, tags, heads, ids and addresses, as git and others make and move them.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod drafts;
mod material;
mod place;

use std::fs;

use git2::{ObjectType, Oid};
use place::Place;

/// A history of one patch, and an empty repository `bare.git` beside it.
fn of_one_patch() -> Place {
    let place = Place::begun();
    place.git("init -q --bare bare.git");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place
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
fn several_names_are_deleted_at_once_or_none() {
    let place = Place::begun();
    for name in ["a", "b", "c"] {
        place.good(&format!("branch {name}"));
    }
    place.bad("branch -d a nowhere", 2);
    place.bad("branch d HEAD b", 2);
    let refs = place.git("for-each-ref refs/heads");
    assert_eq!(refs.lines().count(), 4);
    let said = place.good("branch -d a b c");
    assert!(said.contains("deleted the branch a;") && said.contains("deleted the branch c;"), "{said}");
    assert_eq!(place.git("for-each-ref --format=%(refname:short) refs/heads"), "main\n");
    place.good("undo");
    assert_eq!(place.git("for-each-ref refs/heads"), refs);
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
