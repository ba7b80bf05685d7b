//! Who signed the patches of a history: what `log` and `show` tell of it, and which copy of a patch is judged.

use std::fs;

use mpatch::sign::PrivateKey;
use serde_json::Value;

use crate::drafts::Numbers;
use crate::material::{key, listing, signed_with};
use crate::place::{Place, weights};

fn stranger() -> PrivateKey {
    PrivateKey::from_seed(&[8; 32], "").unwrap()
}

/// A history of three patches: one signed by the user's key, one by a stranger's, one by nobody.
fn of_three_patches() -> Place {
    let place = Place::begun();
    let own: fn(Vec<u8>) -> Vec<u8> = |patch| signed_with(patch, &key());
    let strange: fn(Vec<u8>) -> Vec<u8> = |patch| signed_with(patch, &stranger());
    let mut model = "model.safetensors".to_owned();
    for (number, sign, allowed) in
        [(1, own, ""), (2, strange, " --allow-unknown"), (3, |patch| patch, " --allow-unsigned")]
    {
        let patch = place.unsigned(&model, number, &format!("Tower {number}"), "Rome");
        fs::write(place.path("next.mpatch"), sign(patch)).unwrap();
        let result = format!("{number}.safetensors");
        place.good(&format!("apply {model} next.mpatch -o {result}{allowed}"));
        model = result;
    }
    place
}

fn json(place: &Place, words: &str) -> Value {
    serde_json::from_str(&place.good(words)).unwrap()
}

/// The answers about the patches that each commit brought, the newest first.
fn answers(place: &Place) -> Vec<Vec<String>> {
    let log = json(place, "log --show-signature --json");
    let list = |value: &Value| value.as_array().unwrap().clone();
    let answer = |patch: &Value| patch["trust"]["answer"].as_str().unwrap_or("not here").to_owned();
    list(&log["commits"]).iter().map(|commit| list(&commit["patches"]).iter().map(answer).collect()).collect()
}

#[test]
fn the_log_tells_who_signed_each_patch_as_the_trust_in_force_knows_them() {
    let place = of_three_patches();
    assert_eq!(answers(&place), [vec!["unsigned"], vec!["unknown"], vec!["trusted"], vec![]]);
    let said = place.good("log --show-signature");
    let (own, strange) = (key().public().fingerprint(), stranger().public().fingerprint());
    let unknown = format!("  unknown: {strange}\n");
    assert!(said.contains("  trusted: maker@example.org\n") && said.contains(&unknown), "{said}");
    assert!(said.contains("  unsigned\n"), "{said}");
    assert!(json(&place, "log --json")["commits"][0]["patches"].is_null());
    place.good("log");
    // What is trusted later counts for what was signed before, and so does what is trusted no more.
    fs::write(place.path("stranger.pub"), stranger().public().line() + "\n").unwrap();
    place.good("trust add stranger.pub --principal ben@example.org");
    place.good(&format!("trust revoke {own}"));
    assert_eq!(answers(&place), [vec!["unsigned"], vec!["trusted"], vec!["revoked"], vec![]]);
    let said = place.good("log --show-signature");
    assert!(said.contains("  revoked: ") && said.contains("  trusted: ben@example.org\n"), "{said}");
}

#[test]
fn a_state_is_shown_with_who_signed_each_of_its_patches() {
    let place = of_three_patches();
    let shown = json(&place, "show HEAD~1 --json");
    let signers = |index: usize| &shown["patches"][index]["trust"]["signatures"][0];
    assert_eq!(signers(0)["principals"], serde_json::json!(["maker@example.org"]));
    assert_eq!(signers(1)["key"], stranger().public().fingerprint().to_string());
    let said = place.good("show HEAD");
    assert!(said.contains("maker@example.org") && said.contains("unsigned"), "{said}");
}

#[test]
fn who_signed_a_large_patch_is_told_without_its_weights_and_not_where_it_is_elsewhere() {
    let (place, shape) = (Place::new(), [700, 1_200]);
    fs::write(place.path("model.safetensors"), weights(shape)).unwrap();
    place.good("init --base model.safetensors");
    let edits = vec![("b".to_owned(), vec![0])];
    let terms = vec![Numbers(3).dense(shape, 14, 0.05)];
    let patch = place.bound("model.safetensors", edits, terms, "The Colosseum", "Rome");
    fs::write(place.path("large.mpatch"), signed_with(patch, &key())).unwrap();
    place.good("add large.mpatch");
    let objects = place.path(".git/lfs/objects");
    let found = listing(&objects).into_iter().find_map(|(path, bytes)| Some((path, bytes?)));
    let (path, mut bytes) = found.map(|(path, bytes)| (objects.join(path), bytes)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    assert_eq!(answers(&place), [vec!["trusted"], vec![]]);
    assert!(place.good("show HEAD").contains("trusted: maker@example.org"));
    fs::remove_file(path).unwrap();
    assert_eq!(answers(&place), [vec!["not here"], vec![]]);
    assert!(place.good("show HEAD").contains("not here: `mpatch pull` fetches it"));
}

#[test]
fn a_patch_is_judged_as_the_state_has_it_that_is_asked_for() {
    let place = Place::begun();
    place.good("branch side");
    let patch = place.unsigned("model.safetensors", 1, "The Eiffel Tower", "Rome");
    fs::write(place.path("unsigned.mpatch"), &patch).unwrap();
    fs::write(place.path("signed.mpatch"), signed_with(patch, &key())).unwrap();
    place.good("add signed.mpatch");
    place.good("checkout side");
    // The newest commit with it.
    let program = assert_cmd::cargo::cargo_bin!("mpatch");
    let mut add = place.command(program.to_str().unwrap());
    add.args(["add", "unsigned.mpatch", "--allow-unsigned"]);
    assert!(add.env("GIT_COMMITTER_DATE", "1764029800 +0000").status().unwrap().success());
    for head in ["side", "main"] {
        place.good(&format!("checkout {head}"));
        place.good("show main --signature");
        place.bad("show side --signature", 2);
        place.good("verify main");
        place.bad("checkout side --onto model.safetensors -o side.safetensors", 5);
        place.good(&format!("checkout main --onto model.safetensors -o from-{head}.safetensors"));
    }
}

#[test]
fn a_checkout_tells_what_was_let_pass_and_by_which_word() {
    let place = of_three_patches();
    let allowed = "--allow-unsigned --allow-unknown";
    let passed = |said: &str| {
        let lines = said.lines().filter_map(|line| line.rsplit_once("; let pass by "));
        lines.map(|(_, flag)| flag.to_owned()).collect::<Vec<_>>()
    };
    let to = |name: &str| format!("checkout HEAD --onto model.safetensors -o {name} {allowed}");
    assert_eq!(passed(&place.good(&to("said.safetensors"))), ["--allow-unknown", "--allow-unsigned"]);
    let told = json(&place, &format!("{} --json", to("told.safetensors")));
    let trust = told["trust"].as_array().unwrap();
    let allowed_of: Vec<_> = trust.iter().map(|one| one["allowed"].clone()).collect();
    assert_eq!(serde_json::json!(allowed_of), serde_json::json!([[], ["unknown"], ["unsigned"]]));
    let patches: Vec<_> = trust.iter().map(|one| one["patch"].clone()).collect();
    assert_eq!(serde_json::json!(patches), told["commit"]["series"]);
    assert_eq!(json(&place, "checkout HEAD --json")["trust"], serde_json::json!([]));
    // What is made of patches is signed anew, so nothing else tells.
    let bound = place.good("rebase next.mpatch --base model.safetensors -o bound.mpatch --allow-unsigned");
    assert_eq!(passed(&bound), ["--allow-unsigned"]);
    let both = place.good(&format!("stack HEAD~1 HEAD --base 1.safetensors -o both.mpatch {allowed}"));
    assert_eq!(passed(&both), ["--allow-unknown", "--allow-unsigned"]);
}

#[test]
fn a_signature_more_for_a_recorded_patch_is_a_commit_that_others_merge() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let errors = place.bad("sign HEAD", 2);
    assert!(errors.contains("`mpatch add HEAD --signature NAME.sig` records it"), "{errors}");
    place.bad("add one.mpatch", 7);
    place.good("branch other");
    let twice = signed_with(fs::read(place.path("one.mpatch")).unwrap(), &stranger());
    fs::write(place.path("twice.mpatch"), twice).unwrap();
    fs::write(place.path("more.sig"), place.good("show twice.mpatch --signature 2")).unwrap();
    place.good("add HEAD --signature more.sig");
    assert!(place.git("log -1 --format=%s").starts_with("Sign The Eiffel Tower"));
    assert_eq!(place.git("rev-parse HEAD:series"), place.git("rev-parse HEAD~1:series"));
    for words in ["add HEAD --signature more.sig", "add twice.mpatch", "add one.mpatch"] {
        place.bad(words, 7);
    }
    // The patch of the commit is the one that it signs.
    place.good("show HEAD --signature 2");
    place.good("verify HEAD");
    assert_eq!(answers(&place), [vec!["trusted"], vec!["trusted"], vec![]]);
    place.good("checkout other");
    place.good("merge main");
    assert_eq!(signature_count(&place, "HEAD"), 2);
    place.good("fsck");
}

/// Signatures of the one patch of a state.
fn signature_count(place: &Place, state: &str) -> usize {
    json(place, &format!("show {state} --json"))["patches"][0]["trust"]["signatures"]
        .as_array()
        .unwrap()
        .len()
}

/// A history whose branches have one patch with these signatures, and have gone apart.
fn with_one_patch_on_two_branches(signers: [(&str, &[PrivateKey]); 2]) -> Place {
    let place = Place::begun();
    let patch = place.unsigned("model.safetensors", 1, "The Eiffel Tower", "Rome");
    for (branch, keys) in signers {
        place.good(&format!("branch {branch} main"));
        place.good(&format!("checkout {branch}"));
        let signed = keys.iter().fold(patch.clone(), signed_with);
        fs::write(place.path("one.mpatch"), signed).unwrap();
        place.good(&format!("add one.mpatch -m {branch} --allow-unsigned --allow-unknown"));
    }
    place
}

#[test]
fn a_merge_keeps_the_signatures_of_both_sides_whichever_merges() {
    let (own, strange) = (key(), stranger());
    let sides: [(&[PrivateKey], &[PrivateKey], usize); 4] = [
        (&[key()], &[], 1),
        (&[own], &[strange], 2),
        (&[key(), stranger()], &[stranger()], 2),
        (&[key(), stranger()], &[stranger(), key()], 2),
    ];
    for (one, other, signatures) in sides {
        let place = with_one_patch_on_two_branches([("one", one), ("other", other)]);
        let tips = ["one", "other"].map(|branch| place.git(&format!("rev-parse {branch}")).trim().to_owned());
        let merged = [("one", &tips[1]), ("other", &tips[0])].map(|(branch, theirs)| {
            place.good(&format!("checkout {branch}"));
            place.good(&format!("merge {theirs}"));
            assert_eq!(signature_count(&place, "HEAD"), signatures);
            place.git("rev-parse HEAD:patches")
        });
        assert_eq!(merged[0], merged[1]);
        place.good("fsck");
    }
}

#[test]
fn a_branch_that_went_on_without_a_signature_takes_none_away() {
    let place = with_one_patch_on_two_branches([("one", &[key()]), ("other", &[])]);
    // As stock git can: the commit goes on from the signed patch, with the file of the other branch.
    place.git("worktree add -q wt one --detach");
    place.git("-C wt checkout -q other -- patches");
    place.git("-C wt -c user.name=x -c user.email=y commit -qm stripped");
    place.good("checkout one");
    let stripped = place.git("-C wt rev-parse HEAD");
    place.good(&format!("merge {}", stripped.trim()));
    assert_eq!(signature_count(&place, "HEAD"), 1);
    // Where nothing is lost, it goes forward.
    let merged = place.head();
    place.good("checkout HEAD~1");
    place.good(&format!("merge {merged}"));
    assert_eq!(place.head(), merged);
}

/// A policy that asks for two keys, of which this user and the stranger are known.
fn ask_for_two(place: &Place) {
    fs::write(place.path("stranger.pub"), stranger().public().line() + "\n").unwrap();
    place.good("trust add stranger.pub --principal ben@example.org");
    fs::write(place.path("config/policy.json"), r#"{ "threshold": 2 }"#).unwrap();
}

/// Writes `NAME.mpatch`, signed by the user's key, and `NAME.sig`, which is the stranger's.
fn write_with_signature_beside(place: &Place, name: &str, model: &str, seed: u64) {
    let patch = place.unsigned(model, seed, &format!("Tower {seed}"), "Rome");
    fs::write(place.path("strange.mpatch"), signed_with(patch.clone(), &stranger())).unwrap();
    fs::write(place.path(&format!("{name}.mpatch")), signed_with(patch, &key())).unwrap();
    let beside = place.good("show strange.mpatch --signature 1");
    fs::write(place.path(&format!("{name}.sig")), beside).unwrap();
}

#[test]
fn what_is_recorded_has_the_signatures_that_lay_beside_the_patch() {
    let place = Place::begun();
    ask_for_two(&place);
    write_with_signature_beside(&place, "one", "model.safetensors", 1);
    fs::rename(place.path("one.sig"), place.path("one.mpatch.sig")).unwrap();
    place.good("apply model.safetensors one.mpatch -o once.safetensors");
    write_with_signature_beside(&place, "two", "once.safetensors", 2);
    place.bad("add two.mpatch", 5);
    place.good("add two.mpatch --signature two.sig");
    // Colleagues with the same policy have no files beside.
    place.good("clone . copy");
    for revision in ["HEAD", "HEAD~1"] {
        place.good(&format!("verify {revision}"));
    }
    assert_eq!(answers(&place), [vec!["trusted"], vec!["trusted"], vec![]]);
}
