//! Mending a history takes what it lacks, and needs no copy of what nothing refers to.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod drafts;
mod material;
mod place;

use std::fs;

use place::Place;

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
    // What cannot be read may be what the patch is kept for.
    place.bad("gc", 3);
    assert!(place.bad("fsck", 3).contains(&format!("git object {oid}")));
    let said = place.good("fsck --repair copy");
    assert!(said.contains(&format!("mended: git object {oid}, which nothing refers to")), "{said}");
    assert!(place.path(&format!(".git/damaged/{oid}.1")).exists());
    place.good("gc");
    assert!(!spare.exists());
}
