//! What others have: files of theirs in a history's repository, branches of another history, and a name and a clock.

use std::fs;
use std::path::PathBuf;

use mpatch::store::lfs::Pointer;

use crate::place::Place;
use crate::{commit, file, import};

/// Puts bytes where Git LFS has them; with the text of the pointer to them.
fn kept(place: &Place, oid: &str, bytes: &[u8]) -> (PathBuf, String) {
    let pointer = Pointer { oid: oid.repeat(64), size_bytes: bytes.len() as u64 };
    let path = place.path(".git/lfs/objects").join(&pointer.oid[..2]).join(&pointer.oid[2..4]);
    fs::create_dir_all(&path).unwrap();
    let path = path.join(&pointer.oid);
    fs::write(&path, bytes).unwrap();
    let text = "version https://git-lfs.github.com/spec/v1";
    (path, format!("{text}\noid sha256:{}\nsize {}\n", pointer.oid, pointer.size_bytes))
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
