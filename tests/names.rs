//! Names: branches, tags, heads, ids and addresses, as git and others make and move them.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod drafts;
mod material;
mod place;

use place::Place;

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
