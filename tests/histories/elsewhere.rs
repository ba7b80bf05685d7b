//! Histories that are shared, damaged, or come from strangers: what is named, what is mended, and what is refused.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::drafts::Numbers;
use crate::material::{key, signed_with};
use crate::place::{Place, weights};
use mpatch::patch::Patch;
use mpatch::sign::PrivateKey;
use mpatch::store::{Author, Message, Store};

pub fn lfs_is_here() -> bool {
    let here =
        Command::new("git").args(["lfs", "version"]).output().is_ok_and(|output| output.status.success());
    if !here {
        let _ = writeln!(std::io::stderr(), "skipped: git-lfs is not installed");
    }
    here
}

#[test]
fn large_patches_travel_by_git_lfs_and_a_missing_one_is_named_and_mended() {
    if !lfs_is_here() {
        return;
    }
    let place = Place::new();
    let shape = [700, 1_200];
    fs::write(place.path("model.safetensors"), weights(shape)).unwrap();
    place.good("init --base model.safetensors");
    let term = Numbers(3).dense(shape, 14, 0.05);
    let edits = vec![("b".to_owned(), vec![0])];
    let patch = place.bound("model.safetensors", edits, vec![term], "The Colosseum", "Rome");
    let patch = signed_with(patch, &key());
    assert!(patch.len() > 1 << 20);
    fs::write(place.path("large.mpatch"), &patch).unwrap();
    place.good("add large.mpatch");
    let oid = place.git("cat-file -p HEAD:patches/");
    assert!(oid.contains(".manifest"));
    let listed = place.git("lfs ls-files --long HEAD");
    let oid = listed.split(' ').next().unwrap();
    let object = place.path(&format!(".git/lfs/objects/{}/{}/{oid}", &oid[..2], &oid[2..4]));
    assert_eq!(fs::read(&object).unwrap(), patch);

    place.git("clone -q . stock");
    let away = tempfile::tempdir().unwrap();
    place.git(&format!("clone -q . {}", away.path().display()));
    let errors = place.bad(&format!("log --store {}", away.path().display()), 2);
    assert!(errors.contains("a copy that git made") && errors.contains("`mpatch clone /"), "{errors}");
    place.git("-C stock lfs install --local");
    place.git("-C stock lfs pull");
    let copied = fs::read_dir(place.path("stock/patches")).unwrap().map(|entry| entry.unwrap().path());
    let mut copied = copied.filter(|path| path.to_str().unwrap().ends_with(".mpatch"));
    assert_eq!(fs::read(copied.next().unwrap()).unwrap(), patch);
    assert_eq!(place.git("-C stock status --porcelain"), "");

    place.good("clone . mine");
    place.good("checkout HEAD --store mine --onto model.safetensors -o edited.safetensors");
    // What is lost comes again; what is here is not read again for a pull, which `fsck` is for.
    let here = place.path("mine").join(object.strip_prefix(place.path("")).unwrap());
    fs::remove_file(&here).unwrap();
    place.good("pull --store mine");
    fs::remove_file(&here).unwrap();
    fs::write(&here, vec![0; patch.len()]).unwrap();
    assert!(place.good("pull --store mine").contains("fetched 0 new commits"));
    place.bad("fsck --store mine", 3);
    place.good("fsck --store mine --repair large.mpatch");
    fs::remove_file(&object).unwrap();
    let errors = place.bad("checkout HEAD --onto model.safetensors -o other.safetensors", 3);
    assert!(errors.contains(oid) && errors.contains("state: unchanged"), "{errors}");
    assert!(!place.path("other.safetensors").exists());
    // States are told without it.
    assert_eq!(place.mpatch("status edited.safetensors").status.code(), Some(0));
    assert!(place.bad("fsck", 3).contains(oid));
    fs::write(&object, b"damaged").unwrap();
    assert!(place.good("fsck --repair large.mpatch").contains("mended: patch"));
    assert_eq!(fs::read(&object).unwrap(), patch);
    fs::remove_file(&object).unwrap();
    assert!(place.good("fsck --repair mine").contains("mended: patch"));

    place.git("init -q --bare bare.git");
    place.good("push --to bare.git");
    place.good("clone bare.git again");
    assert!(place.good("fsck --store again").starts_with("whole: "));
}

#[test]
fn the_branch_that_somebody_else_is_on_is_not_moved_by_a_push() {
    let place = Place::begun();
    place.good("clone . mine");
    place.git("clone -q . stock");
    place.git("init -q --bare bare.git");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let refs = place.git("-C mine for-each-ref");
    for there in ["mine", "mine/.git", "stock"] {
        let errors = place.bad(&format!("push --to {there}"), 7);
        assert!(
            errors.contains("`main` is the branch that `/") && errors.contains("/mine") != (there == "stock")
        );
        assert!(errors.contains("`pull` over there") && errors.contains("state: unchanged"), "{errors}");
    }
    assert_eq!(place.git("-C mine for-each-ref"), refs);
    // Nothing of theirs moves: another branch, a tag, theirs where they are elsewhere, or what is there already.
    place.good("branch news");
    place.good("tag v1");
    place.good("push news v1 --to mine");
    place.good("merge news --store mine");
    place.good("push --to mine");
    place.good("checkout news --store mine");
    place.patch("model.safetensors", "two.mpatch", 2, "The Space Needle");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    place.good("rebase two.mpatch --base one.safetensors --after one.mpatch -o bound.mpatch");
    place.good("add bound.mpatch");
    place.good("push --to mine");
    assert_eq!(place.git("-C mine rev-parse main").trim(), place.head());
    place.good("push --to bare.git");
}

#[test]
fn a_name_that_has_no_room_is_reported_and_is_in_nobodys_way() {
    let place = Place::begun();
    place.good("clone . mine");
    place.good("tag v");
    place.good("branch topic/one");
    place.good("tag v/1 --store mine");
    let said = place.good("pull --store mine");
    assert!(said.contains("refs/tags/v was left out: git has no room for it beside refs/tags/v/1"), "{said}");
    place.good("tag after --store mine");
    // A branch whose folder was a branch's, which is gone there.
    place.good("branch -d topic/one");
    place.good("branch topic --store mine");
    place.good("push topic --store mine");
    let remotes = place.git("-C mine for-each-ref --format=%(refname) refs/remotes");
    assert_eq!(remotes, "refs/remotes/origin/main\nrefs/remotes/origin/topic\n");
    // What was announced and is impossible is taken back by whoever comes next.
    place.good("tag w --store mine");
    let announced = place.git("-C mine rev-parse refs/mpatch/operations");
    place.good("undo --store mine");
    place.git("-C mine update-ref refs/tags/w/x HEAD");
    place.git(format!("-C mine update-ref refs/mpatch/pending {announced}").trim_end());
    let lock = place.path("mine/.git/refs/mpatch/pending.lock");
    fs::write(&lock, "").unwrap();
    let said = place.bad("tag z --store mine", 9);
    assert!(said.ends_with("state: recovery pending\n"), "{said}");
    fs::remove_file(&lock).unwrap();
    place.good("tag z --store mine");
    place.bad("tag w --store mine", 7);
    let tags = place.git("-C mine for-each-ref --format=%(refname:short) refs/tags refs/mpatch/pending");
    assert_eq!(tags, "after\nv/1\nw/x\nz\n");
}

#[test]
fn what_somebody_else_keeps_in_the_repository_is_passed_by() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    let as_x = "-c user.name=x -c user.email=y";
    place.git("init -q other");
    place.git(&format!("-C other {as_x} commit -q --allow-empty -m readme"));
    place.git("-C other push -q ../.git HEAD:refs/heads/docs");
    place.good("undo");
    place.good("redo");
    place.git("tag tree HEAD^{tree}");
    place.git(&format!("{as_x} tag -a -m x object"));
    place.good("branch q");
    assert_eq!(place.good("tag").lines().count(), 1);
    place.bad("tag tree", 7);
    place.git("tag -d object");
    place.good("branch r");
    place.git("gc -q --prune=now");
    for words in [
        "status",
        "gc",
        "branch",
        "show HEAD",
        "verify HEAD",
        "checkout HEAD --onto model.safetensors -o again.safetensors",
    ] {
        place.good(words);
    }
    let said = place.good("fsck");
    for words in ["whole: ", "it is no state of a model", "refs/tags/tree  ", "which alone kept it"] {
        assert!(said.contains(words), "`{words}`: {said}");
    }
    // Nor does it come along.
    place.good("clone . mine");
    let names = place.git("-C mine for-each-ref --format=%(refname) refs/remotes refs/tags");
    assert_eq!(names.lines().count(), 3, "{names}");
    place.good("tag last");
    (0..6).for_each(|_| drop(place.good("undo")));
    place.good("fsck");
}

#[test]
fn a_change_that_a_lock_of_gits_stops_is_not_made_later() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    let locked = |name: &str, words: &str| {
        let lock = place.path(name);
        fs::write(&lock, "").unwrap();
        let said = place.bad(words, 10);
        assert!(said.contains(&format!("left `{}`: remove it", lock.display())), "{said}");
        fs::remove_file(&lock).unwrap();
        said
    };
    // The weights are changed by then, and what is suggested records it.
    let words = "apply model.safetensors one.mpatch --in-place";
    let said = locked(".git/refs/mpatch/operations.lock", words);
    assert!(said.contains("; `mpatch add one.mpatch` records the patch\nstate: applied\n"), "{said}");
    place.good("add one.mpatch");
    place.good("status");
    let said = locked(".git/HEAD.lock", "checkout HEAD~1");
    assert!(said.ends_with("state: unchanged\n"), "{said}");
    place.good("tag after");
    assert_eq!(place.git("symbolic-ref HEAD"), "refs/heads/main\n");
    // What can be seen before the work stops it there.
    let before = fs::read(place.path("model.safetensors")).unwrap();
    fs::remove_file(place.path(".git/mpatch.lock")).unwrap();
    fs::create_dir(place.path(".git/mpatch.lock")).unwrap();
    place.bad("revert model.safetensors one.mpatch --in-place", 11);
    assert!(fs::read(place.path("model.safetensors")).unwrap() == before);
}

#[test]
fn a_repository_that_is_no_history_is_passed_by_even_where_it_cannot_be_opened() {
    let place = Place::new();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    let passed_by = |how: &str| {
        place.good(&format!("apply model.safetensors one.mpatch -o {how}.safetensors"));
        place.bad("init --base model.safetensors", 7);
    };
    place.git("init -q --object-format=sha256 .");
    passed_by("sha256");
    fs::write(place.path(".git/config"), "[broken").unwrap();
    passed_by("broken");
    fs::remove_dir_all(place.path(".git")).unwrap();
    fs::write(place.path(".git"), "").unwrap();
    passed_by("empty");
    fs::remove_file(place.path(".git")).unwrap();
    place.good("init --base model.safetensors");
    place.git("worktree add -q --detach tree");
    let said = place.bad("log --store tree", 2);
    assert!(said.contains("is a worktree that git made of the history"), "{said}");
    // Of a history it is an error.
    fs::write(place.path(".git/config"), "[broken").unwrap();
    place.bad("log", 3);
}

#[test]
fn what_variables_say_of_git_stops_nothing() {
    let place = Place::begun();
    let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
    let with = |name: &str, value: &str, words: &str| {
        let mut command = place.command(&program);
        let output = command.env(name, value).args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "{name}={value} mpatch {words}: {output:?}");
    };
    with("GIT_COMMITTER_EMAIL", "", "tag a");
    let committer = place.git("log -1 --format=%cn,%ce refs/mpatch/operations");
    assert_eq!(committer, "Ada,mpatch@localhost\n");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    fs::write(place.path("git-settings"), "[user]\n").unwrap();
    let mut command = place.command(&program);
    command.env("GIT_CONFIG_GLOBAL", "git-settings").env("GIT_CONFIG_COUNT", "x");
    let output = command.args(["verify", "one.mpatch"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    with("MPATCH_STATE_DIR", "/dev/null", "verify one.mpatch");
}

#[test]
fn tracking_names_say_where_the_remembered_history_is() {
    let place = Place::begun();
    place.git("init -q --bare bare.git");
    place.good("clone . mine");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("push --to bare.git");
    let refs = place.git("-C mine for-each-ref refs/remotes");
    let said = place.good("pull --from bare.git --store mine");
    assert!(said.contains("main went forward") && said.contains("which have no names here"), "{said}");
    assert_eq!(place.git("-C mine for-each-ref refs/remotes"), refs);
    // Names that only end alike are no counterparts.
    place.good("branch feature/main");
    place.good("push feature/main");
    let said = String::from_utf8(place.mpatch("status").stdout).unwrap();
    assert!(said.contains("ahead of origin/main") && !said.contains("origin/feature/main"), "{said}");
    for words in ["push main~1", "push main main~1"] {
        let errors = place.bad(words, 2);
        assert!(errors.contains("`main~1` is no branch and no tag"), "{errors}");
    }
    // What is there is there, though nobody can write that down.
    place.good("branch late");
    let lock = fs::File::options().write(true).open(place.path(".git/mpatch.lock")).unwrap();
    lock.lock().unwrap();
    let errors = place.bad("push late --lock-timeout 0.1", 10);
    assert!(errors.contains("state: applied"), "{errors}");
    place.git("-C bare.git rev-parse late");
}

#[test]
fn nobody_works_in_a_mirror_and_its_branch_moves() {
    let place = Place::begun();
    let file = format!("file://{}/second.git", place.folder.path().display());
    for mirror in ["first.git", "second.git"] {
        place.git(&format!("clone -q --mirror . {mirror}"));
        assert!(place.git(&format!("-C {mirror} for-each-ref")).contains("refs/mpatch/operations"));
    }
    place.good("clone . mine");
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    place.good("push --to first.git");
    place.good(&format!("push --to {file}"));
    for mirror in ["first.git", "second.git"] {
        assert_eq!(place.git(&format!("-C {mirror} rev-parse main")).trim(), place.head());
    }
    // In a history, and in a whole copy of one, somebody may be at work.
    fs::rename(place.path("mine/.git"), place.path("moved.git")).unwrap();
    assert!(place.bad("push --to moved.git", 7).contains("`main` is the branch"));
}

/// The key of somebody whom nobody here trusts.
fn stranger() -> PrivateKey {
    PrivateKey::from_seed(&[8; 32], "").unwrap()
}

#[test]
fn what_comes_from_elsewhere_is_judged_by_its_signatures() {
    let place = Place::begun();
    place.patch("model.safetensors", "0.mpatch", 1, "Tower 0");
    place.good("apply model.safetensors 0.mpatch -o 0.safetensors");
    let said = place.good("clone . mine");
    assert!(said.contains("1 new patch, all signed by who is trusted here"), "{said}");
    assert!(said.contains("  trusted: maker@example.org  │ "), "{said}");
    let next = |number: u64, key: Option<PrivateKey>, flags: &str| {
        let before = format!("{}.safetensors", number - 1);
        let unsigned = place.unsigned(&before, 8 * number, &format!("Tower {number}"), "Rome");
        let patch = key.map_or(unsigned.clone(), |key| signed_with(unsigned, &key));
        fs::write(place.path(&format!("{number}.mpatch")), patch).unwrap();
        place.good(&format!("apply {before} {number}.mpatch -o {number}.safetensors{flags}"));
    };
    // Unknown and unsigned come, are pointed out, and are asked about again by whoever applies them.
    next(1, Some(stranger()), " --allow-unknown");
    next(2, None, " --allow-unsigned");
    let said = place.good("pull --store mine");
    assert!(said.contains("warning: 2 new patches, 2 not trusted"), "{said}");
    assert!(said.contains("  unknown (SHA256:") && said.contains("  unsigned: "), "{said}");
    assert_eq!(place.git("-C mine rev-parse HEAD").trim(), place.head());
    let errors = place.bad("checkout HEAD --store mine --onto 0.safetensors -o x.safetensors", 5);
    assert!(errors.contains("--allow-unknown"), "{errors}");
    let json = place.good("clone . told --json");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let answers: Vec<&str> = json["patches"].as_array().unwrap().iter().map(answer).collect();
    assert_eq!(answers.iter().filter(|answer| **answer == "trusted").count(), 1);
    assert!(answers.contains(&"unknown") && answers.contains(&"unsigned"), "{answers:?}");
    // Keys that were trusted once.
    let signers = place.path("config/allowed_signers");
    let trusted = fs::read_to_string(&signers).unwrap();
    let expired = trusted.replacen("namespaces=", "valid-before=\"20200101Z\",namespaces=", 1);
    fs::write(&signers, &expired).unwrap();
    assert!(place.good("clone . late").contains("  expired (SHA256:"));
    fs::write(&signers, &trusted).unwrap();
    fs::write(place.path("config/revoked"), key().public().line() + "\n").unwrap();
    assert!(place.good("clone . withdrawn").contains("  revoked (SHA256:"));
    // A policy that lets nothing unsigned pass is about what comes, not about what is here.
    let policy = place.path("config/policy.json");
    fs::write(&policy, r#"{"unsigned": "refuse"}"#).unwrap();
    assert!(place.bad("clone . refused", 5).contains("; 2 more are refused"));
    fs::remove_file(place.path("config/revoked")).unwrap();
    let errors = place.bad("clone . refused", 5);
    assert!(errors.contains("the policy allows no exceptions; 1 more are refused"), "{errors}");
    assert!(errors.contains("hint: have it signed as the policy asks") && !place.path("refused").exists());
    next(3, Some(key()), "");
    place.good("pull --store mine");
    fs::remove_file(&policy).unwrap();
    next(4, None, " --allow-unsigned");
    fs::write(&policy, r#"{"threshold": 2}"#).unwrap();
    let refs = place.git("-C mine for-each-ref");
    place.bad("pull --store mine", 5);
    assert_eq!(place.git("-C mine for-each-ref"), refs);
    fs::remove_file(&policy).unwrap();
    place.good("pull --store mine");
    assert_eq!(place.git("-C mine rev-parse HEAD").trim(), place.head());
    // Somebody has changed a signature, and records the patch without asking mpatch.
    let unsigned = place.unsigned("4.safetensors", 48, "Tower 5", "Rome");
    let mut bad = signed_with(unsigned, &key());
    *bad.last_mut().unwrap() ^= 1;
    let store = Store::open(place.folder.path()).unwrap();
    let author = Author { name: "x".into(), email: "y".into(), seconds: 1, offset_minutes: 0 };
    let mut change = store.change(Duration::ZERO, author).unwrap();
    change.add(&Patch::decode(bad).unwrap(), Message { title: "bad".into(), ..Message::default() }).unwrap();
    change.finish("add").unwrap();
    let refs = place.git("-C mine for-each-ref");
    let errors = place.bad("pull --store mine", 4);
    assert!(errors.contains("has a bad signature") && errors.contains("state: unchanged"), "{errors}");
    assert_eq!(place.git("-C mine for-each-ref"), refs);
    place.bad("clone . tampered", 4);
    assert!(!place.path("tampered").exists());
    place.good("fsck --store mine");
}

fn answer(patch: &serde_json::Value) -> &str {
    patch["trust"]["answer"].as_str().unwrap()
}

/// The one pack of the history in `place`, and where the object begins and how many bytes it has in it.
fn packed(place: &Place, oid: &str) -> (PathBuf, usize, usize) {
    let folder = place.path(".git/objects/pack");
    let packs = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let packs: Vec<PathBuf> = packs.filter(|path| path.extension().unwrap() == "pack").collect();
    let [pack] = packs.as_slice() else { panic!("{packs:?}") };
    let listed = place.git(&format!("verify-pack -v {}", pack.with_extension("idx").display()));
    let line = listed.lines().find(|line| line.starts_with(oid)).unwrap();
    let numbers: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    (pack.clone(), numbers[2], numbers[1])
}

fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn damage_to_git_objects_is_named_and_mended_by_adding() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("apply model.safetensors one.mpatch -o one.safetensors");
    place.patch("one.safetensors", "two.mpatch", 3, "The Space Needle");
    place.good("apply one.safetensors two.mpatch -o two.safetensors");
    place.good("clone . copy");
    let one = Patch::decode(fs::read(place.path("one.mpatch")).unwrap()).unwrap().id();
    let blob = place.git(&format!("rev-parse HEAD:patches/{one}.mpatch")).trim().to_owned();
    let is_whole = |place: &Place| {
        assert!(place.good("fsck").starts_with("whole: "));
        assert_eq!(place.git("fsck --strict --full --no-dangling"), "");
        place.good("checkout HEAD --onto model.safetensors -o again.safetensors");
        assert!(
            fs::read(place.path("again.safetensors")).unwrap()
                == fs::read(place.path("two.safetensors")).unwrap()
        );
        fs::remove_file(place.path("again.safetensors")).unwrap();
        place.good("undo");
    };

    // A patch in a pack; its file brings it back.
    place.good("gc");
    let (pack, begin, size) = packed(&place, &blob);
    damage(&pack, |bytes| bytes[begin + size / 2] ^= 1);
    let errors = place.bad("fsck", 3);
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(
        errors.contains(&format!("git object {blob} in {name}")) && errors.contains("--repair"),
        "{errors}"
    );
    place.bad("checkout HEAD --onto model.safetensors -o x.safetensors", 3);
    place.bad("fsck --repair two.mpatch", 3);
    assert!(pack.exists(), "what helps nobody changes nothing");
    // Of a folder one file is open at a time, and what cannot be read is passed by with a word.
    fs::create_dir(place.path("many")).unwrap();
    for number in 0..40 {
        fs::copy(place.path("two.mpatch"), place.path(&format!("many/{number}.mpatch"))).unwrap();
    }
    fs::copy(place.path("one.mpatch"), place.path("many/last.mpatch")).unwrap();
    fs::write(place.path("many/damaged.mpatch"), "").unwrap();
    let mpatch = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap();
    let script = format!("ulimit -n 32; exec {mpatch} fsck --repair many 2>&1");
    let said = place.command("sh").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains(&format!("mended: patch {one}")), "{said}");
    assert!(said.contains("skipped: ") && said.contains("damaged.mpatch"), "{said}");
    assert!(!pack.exists() && place.path(&format!(".git/damaged/{name}.1")).exists());
    is_whole(&place);

    // A pack that is cut off takes the operations along, which only a whole copy has.
    place.good("gc");
    assert!(place.command("cp").args(["-a", ".git", "backup"]).status().unwrap().success());
    let (pack, begin, _) = packed(&place, &blob);
    damage(&pack, |bytes| bytes.truncate(begin));
    place.bad("fsck", 3);
    assert!(place.good("fsck --repair backup").contains("mended: git object"));
    is_whole(&place);
    assert!(place.good("undo --list").lines().count() > 2);

    // An index that cannot be read hides a whole pack.
    place.good("gc");
    let (pack, ..) = packed(&place, &blob);
    damage(&pack.with_extension("idx"), |bytes| bytes.truncate(100));
    assert!(place.bad("fsck", 3).contains("its index cannot be read"));
    let said = place.good("fsck --repair copy");
    assert!(said.contains("mended: the list of operations, which begins anew"), "{said}");
    is_whole(&place);

    // A loose object, in a clone: the hint names where it came from.
    let head = place.head();
    let loose = place.path(&format!(".git/objects/{}/{}", &head[..2], &head[2..]));
    damage(&loose, |bytes| *bytes.last_mut().unwrap() ^= 1);
    assert!(place.bad("fsck", 3).contains(&format!("git object {head}")));
    assert!(place.good("fsck --repair copy").contains(&format!("mended: git object {head}")));
    is_whole(&place);
    fs::remove_file(&loose).unwrap();
    assert!(place.good("fsck --repair copy").contains("mended: git object"));
    let copied = place.path(&format!("copy/.git/objects/{}/{}", &blob[..2], &blob[2..]));
    if !copied.exists() {
        let folder = place.path("copy/.git/objects/pack");
        let packs = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        for pack in packs.filter(|path| path.extension().is_some_and(|ending| ending == "pack")) {
            damage(&pack, |bytes| bytes.truncate(40));
        }
    }
    let errors = place.bad("fsck --store copy", 3);
    assert!(errors.contains("`mpatch clone /"), "{errors}");
    place.good("fsck --store copy --repair .");
}

/// Adds to a copy of the history in `place` what `stream` says to `git fast-import`.
pub fn import(place: &Place, repository: &str, stream: &[u8]) {
    place.git(&format!("clone -q --bare .git {repository}"));
    let mut command = place.command("git");
    let git = command.args(["-C", repository, "fast-import", "--quiet"]).stdin(Stdio::piped()).spawn();
    let mut git = git.unwrap();
    git.stdin.take().unwrap().write_all(stream).unwrap();
    assert!(git.wait().unwrap().success());
}

/// A commit on `branch` for `git fast-import`, and a file of it.
pub fn commit(branch: &str) -> String {
    format!("commit refs/heads/{branch}\ncommitter x <x@x> 1764028800 +0000\ndata 1\nx\n")
}

pub fn file(name: &str, text: &str) -> String {
    format!("M 100644 inline {name}\ndata {}\n{text}\n", text.len())
}

#[test]
fn a_small_history_that_unpacks_to_much_is_refused_soon() {
    let place = Place::begun();
    // A thousand ids name one blob of 32 MiB, in each of two thousand commits: half a MiB of pack.
    let ids: Vec<String> = (0..1_000).map(|id| format!("{id:064x}")).collect();
    let mut stream = format!("blob\nmark :1\ndata {}\n", 32 << 20).into_bytes();
    stream.extend(vec![0; 32 << 20]);
    stream.extend(format!("\n{}from refs/heads/main^0\n", commit("main")).bytes());
    stream.extend(file("series", &ids.iter().map(|id| format!("{id}\n")).collect::<String>()).bytes());
    stream.extend(ids.iter().flat_map(|id| format!("M 100644 :1 patches/{id}.mpatch\n").into_bytes()));
    stream.extend(commit("main").repeat(2_000).bytes());
    import(&place, "bomb.git", &stream);
    let start = Instant::now();
    let errors = place.bad("clone bomb.git mine", 3);
    // Unpacked for every id, and kept for every commit, this takes minutes.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(errors.contains(&ids[0][..12]) && !place.path("mine").exists(), "{errors}");
}

#[test]
fn a_history_of_two_bases_is_not_cloned() {
    let place = Place::begun();
    let base = place.git("show HEAD:base.json");
    let other = base.replacen("\"architecture\": null", "\"architecture\": \"another\"", 1);
    assert_ne!(base, other);
    let begin = format!("{}from refs/heads/main^0\n", commit("main"));
    import(&place, "two.git", [begin, file("base.json", &other)].concat().as_bytes());
    assert!(place.bad("clone two.git mine", 6).contains("(of branch `main`) is about another base"));
    assert!(!place.path("mine").exists());
}

#[test]
fn a_history_cannot_say_where_git_lfs_is_to_look() {
    if !lfs_is_here() {
        return;
    }
    let place = Place::begun();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let visitors = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&visitors);
    std::thread::spawn(move || listener.incoming().for_each(|_| _ = counted.fetch_add(1, Ordering::SeqCst)));
    let id = "1".repeat(64);
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 2000000\n", "a".repeat(64));
    // `git lfs` reads the settings that lie on the branch which the head is on.
    let stream = [
        format!("{}from refs/heads/main^0\n", commit("master")),
        file(".lfsconfig", &format!("[lfs]\n\turl = http://{address}/evil\n")),
        file(".gitattributes", "*.mpatch filter=lfs diff=lfs merge=lfs -text\n"),
        file("series", &format!("{id}\n")),
        file(&format!("patches/{id}.mpatch"), &pointer),
    ];
    import(&place, "evil.git", stream.concat().as_bytes());
    place.git("-C evil.git symbolic-ref HEAD refs/heads/master");
    place.bad("clone evil.git mine", 11);
    assert_eq!(visitors.load(Ordering::SeqCst), 0, "somebody called at the address that the history names");
}

/// Has stock git leave `PWNED` where anything runs that the repository asks for.
fn lay_traps(place: &Place, git: &str) {
    let trap = |name: &str| format!("echo {name} >> '{}'; false", place.path("PWNED").display());
    let path = |name: &str| place.path(&format!("{git}/{name}"));
    fs::create_dir_all(path("hooks")).unwrap();
    for hook in ["post-checkout", "pre-push", "reference-transaction", "post-update", "pre-receive", "update"]
    {
        fs::write(path(&format!("hooks/{hook}")), format!("#!/bin/sh\n{}\n", trap(hook))).unwrap();
        fs::set_permissions(path(&format!("hooks/{hook}")), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut config = fs::read_to_string(path("config")).unwrap();
    config += &format!("[core]\n\thooksPath = {}\n", path("hooks").display());
    for name in
        ["core fsmonitor", "core sshCommand", "core alternateRefsCommand", "uploadpack packObjectsHook"]
    {
        let (section, key) = name.split_once(' ').unwrap();
        config += &format!("[{section}]\n\t{key} = \"{}\"\n", trap(key));
    }
    config += &format!("[credential]\n\thelper = \"!{}\"\n", trap("helper"));
    fs::write(path("config"), config).unwrap();
    let behind = format!("{}\n", place.path("behind.git/objects").display());
    fs::write(path("objects/info/alternates"), behind).unwrap();
}

#[test]
fn strangers_histories_run_nothing_and_are_refused_when_they_lie() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let config = place.path(".git/config");
    place.git("init -q --bare -b main bare.git");
    place.git("init -q --bare behind.git");
    lay_traps(&place, ".git");
    lay_traps(&place, "bare.git");
    place.good("clone . mine");
    place.good("push --to bare.git");
    place.good("pull --store mine");
    place.good("branch other");
    place.good(&format!("push --to file://{} other", place.path("bare.git").display()));
    place.good("pull --store mine --from bare.git");
    place.good("gc");
    assert!(!place.path("PWNED").exists(), "{}", fs::read_to_string(place.path("PWNED")).unwrap());
    let errors = place.bad("clone ext::sh%20-c%20touch%20PWNED elsewhere", 11);
    assert!(errors.contains("ext") && !place.path("PWNED").exists() && !place.path("elsewhere").exists());

    // A commit whose series does not follow from its patches is fetched, found out, and named by nothing.
    fs::remove_dir_all(place.path("bare.git/hooks")).unwrap();
    place.git("clone -q -b main bare.git liar");
    fs::write(place.path("liar/series"), format!("{}\n", "0".repeat(64))).unwrap();
    place.git("-C liar -c user.name=x -c user.email=y commit -qam lie");
    place.git("-C liar push -q origin HEAD:main");
    let before = place.git("-C mine for-each-ref");
    place.bad("pull --store mine --from bare.git", 3);
    assert_eq!(place.git("-C mine for-each-ref"), before);

    // So is one whose message claims another state than its series leads to.
    place.git("-C liar reset -q --hard HEAD~");
    let message = place.git("-C liar log -1 --format=%B");
    let (words, claim) = message.split_once("State: ").unwrap();
    let lie = format!("{words}State: {}{}", "0".repeat(64), &claim[64..]);
    fs::write(place.path("lie"), lie).unwrap();
    place.git("-C liar -c user.name=x -c user.email=y commit -q --amend -F ../lie");
    place.git("-C liar push -qf origin HEAD:main");
    assert!(place.bad("pull --store mine --from bare.git", 3).contains("it claims the state 0000"));
    assert!(place.bad("clone bare.git elsewhere", 3).contains("it claims the state 0000"));
    // And one that has another patch under the id of one that it lists.
    place.git("-C liar reset -q --hard HEAD@{1}");
    place.patch("model.safetensors", "other.mpatch", 2, "The Eiffel Tower");
    let listed = place.git("-C liar ls-files patches/*.mpatch");
    fs::copy(place.path("other.mpatch"), place.path("liar").join(listed.lines().next().unwrap())).unwrap();
    place.git("-C liar -c user.name=x -c user.email=y commit -qa --amend -C HEAD");
    place.git("-C liar push -qf origin HEAD:main");
    for command in ["pull --store mine --from bare.git", "clone bare.git elsewhere"] {
        let errors = place.bad(command, 3);
        assert!(errors.contains("it holds the patch"), "{errors}");
    }
    assert_eq!(place.git("-C mine for-each-ref"), before);
    assert!(!place.path("elsewhere").exists());

    // What others can have written is not read for settings; who is not root cannot give a file away.
    let set_mode =
        |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for (path, mode) in [(place.path(".git"), 0o700), (config.clone(), 0o644)] {
        set_mode(&path, 0o777);
        assert!(place.bad("log", 11).contains("others can write to its configuration"));
        set_mode(&path, mode);
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_ok() {
            assert!(place.bad("log", 11).contains("belongs to another user"));
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        }
        place.good("log");
    }

    place.git("init -q other");
    assert!(place.bad("log --store /", 2).contains("no history of mpatch"));
    place.bad("init other --base model.safetensors", 7);
    place.git("config mpatch.version 2");
    assert!(place.bad("log", 15).contains("version 2"));
}
