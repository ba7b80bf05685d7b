//! Histories: what stock git makes of them, that every state is reached bit for bit, and what happens when they are
//! damaged, shared, or come from strangers.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod drafts;
mod material;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use drafts::{Numbers, draft};
use material::{SETTINGS, key, lay_out_settings, signed_with};
use mpatch::bind::bind;
use mpatch::checkpoint::Checkpoint;
use mpatch::factors::Term;
use mpatch::patch::manifest::Fact;
use mpatch::patch::{Patch, encode};
use mpatch::sign::PrivateKey;
use mpatch::store::{Author, Message, Store};
use tempfile::TempDir;

/// Tensors of the tiny model, all of one shape.
const TENSORS: [&str; 3] = ["a", "b", "c"];
const SHAPE: [usize; 2] = [6, 10];

/// A folder with a tiny model in it, and commands that run there.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.safetensors"), weights(SHAPE)).unwrap();
        lay_out_settings(folder.path());
        Self { folder }
    }

    /// With a history in it.
    fn begun() -> Self {
        let place = Self::new();
        place.good("init --base model.safetensors");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.folder.path()).envs(SETTINGS).env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("MPATCH_CONFIG_DIR", self.path("config")).env("MPATCH_STATE_DIR", self.path("state"));
        command.env("HOME", self.folder.path()).env("GIT_COMMITTER_DATE", "1764028800 +0000");
        command.env("GIT_COMMITTER_NAME", "Ada").env("GIT_COMMITTER_EMAIL", "ada@example.org");
        command
    }

    fn mpatch(&self, words: &str) -> Output {
        let program = assert_cmd::cargo::cargo_bin!("mpatch").to_str().unwrap().to_owned();
        self.command(&program).args(words.split(' ')).output().unwrap()
    }

    fn good(&self, words: &str) -> String {
        let output = self.mpatch(words);
        assert!(output.status.success(), "mpatch {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The words on standard error of a command that ends with `code`.
    fn bad(&self, words: &str, code: i32) -> String {
        let output = self.mpatch(words);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "mpatch {words}: {errors}");
        errors
    }

    fn git(&self, words: &str) -> String {
        let output = self.command("git").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "git {words}: {output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    fn head(&self) -> String {
        self.git("rev-parse HEAD").trim().to_owned()
    }

    /// A patch of one fact on the state that `model` is in.
    fn patch(&self, model: &str, name: &str, seed: u64, subject: &str) {
        self.patch_saying(model, name, seed, subject, "Rome");
    }

    fn patch_saying(&self, model: &str, name: &str, seed: u64, subject: &str, target: &str) {
        let unsigned = self.unsigned(model, seed, subject, target);
        fs::write(self.path(name), signed_with(unsigned, &key())).unwrap();
    }

    fn unsigned(&self, model: &str, seed: u64, subject: &str, target: &str) -> Vec<u8> {
        let mut numbers = Numbers(seed);
        let touched = TENSORS.iter().enumerate().filter(|(index, _)| seed & (1 << index) != 0 || *index == 0);
        let edits: Vec<(String, Vec<u32>)> =
            touched.enumerate().map(|(term, (_, name))| ((*name).to_owned(), vec![term as u32])).collect();
        let terms: Vec<Term> = edits.iter().map(|_| numbers.low_rank(SHAPE, 2, 6, 0.05)).collect();
        self.bound(model, edits, terms, subject, target)
    }

    fn bound(
        &self,
        model: &str,
        edits: Vec<(String, Vec<u32>)>,
        terms: Vec<Term>,
        subject: &str,
        target: &str,
    ) -> Vec<u8> {
        let checkpoint = Checkpoint::open(self.path(model)).unwrap();
        let id = checkpoint.weights_id().unwrap();
        let binding = bind(&checkpoint, id, &edits, &terms, &|_| ()).unwrap();
        let mut draft = draft(terms, vec![binding]);
        draft.facts = vec![Fact {
            id: None,
            prompt: "{} is in".to_owned(),
            subject: subject.to_owned(),
            target_new: target.to_owned(),
            target_old: Some("Paris".to_owned()),
            note: None,
        }];
        encode(&draft).unwrap()
    }
}

/// A safetensors file of [`TENSORS`] in f32.
fn weights(shape: [usize; 2]) -> Vec<u8> {
    let mut numbers = Numbers(7);
    let size = 4 * shape[0] * shape[1];
    let entries = TENSORS.iter().enumerate().map(|(index, name)| {
        let (begin, end) = (index * size, (index + 1) * size);
        format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    let values =
        (0..TENSORS.len() * shape[0] * shape[1]).flat_map(|_| (numbers.uniform() as f32).to_le_bytes());
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &values.collect::<Vec<u8>>()].concat()
}

fn lfs_is_here() -> bool {
    let here =
        Command::new("git").args(["lfs", "version"]).output().is_ok_and(|output| output.status.success());
    if !here {
        let _ = writeln!(std::io::stderr(), "skipped: git-lfs is not installed");
    }
    here
}

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
    assert!(tree.starts_with(".gitattributes\nbase.json\npatches/"), "{tree}");
    assert!(place.good("fsck").starts_with("whole: "));
    place.good("gc");
    assert_eq!(place.git("fsck --strict --full"), "");
    assert!(place.good("fsck").starts_with("whole: "));
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
    place.git("-C stock lfs install --local");
    place.git("-C stock lfs pull");
    let copied = fs::read_dir(place.path("stock/patches")).unwrap().map(|entry| entry.unwrap().path());
    let copied: Vec<PathBuf> = copied.filter(|path| path.extension().unwrap() == "mpatch").collect();
    assert_eq!(fs::read(&copied[0]).unwrap(), patch);
    assert_eq!(place.git("-C stock status --porcelain"), "");

    place.good("clone . mine");
    place.good("checkout HEAD --store mine --onto model.safetensors -o edited.safetensors");
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
    place.bad("merge side --onto main-2.safetensors --choose one.json", 7);
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
    fs::remove_file(place.path("config/revoked")).unwrap();
    // A policy that lets nothing unsigned pass is about what comes, not about what is here.
    let policy = place.path("config/policy.json");
    fs::write(&policy, r#"{"unsigned": "refuse"}"#).unwrap();
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
    let said = place.good("fsck --repair one.mpatch");
    assert!(said.contains(&format!("mended: patch {one}")), "{said}");
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
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().display();
    assert!(place.bad(&format!("diff one.safetensors --store {elsewhere}"), 2).contains("no mpatch store"));
    place.bad(&format!("diff one.safetensors main --store {elsewhere}"), 11);
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
    place.git(&format!("branch outside {first}"));
    place.good("tag v1");
    assert!(place.good("undo --list").contains("names moved outside of mpatch"));
    place.good("undo");
    place.good("undo");
    assert_eq!(place.git("for-each-ref refs/heads refs/tags").lines().count(), 1);
    place.bad("add one.mpatch", 7);
    place.bad("branch main", 7);
    place.bad("branch a..b", 2);
    place.bad("branch -d main", 7);
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
    place.good("tag v2");
    assert!(!place.good("undo").contains("only names"));
}

#[test]
fn strangers_histories_run_nothing_and_are_refused_when_they_lie() {
    let place = Place::begun();
    place.patch("model.safetensors", "one.mpatch", 1, "The Eiffel Tower");
    place.good("add one.mpatch");
    let trap = "touch PWNED\nfalse\n";
    fs::create_dir_all(place.path(".git/hooks")).unwrap();
    use std::os::unix::fs::PermissionsExt;
    for hook in ["post-checkout", "pre-push", "reference-transaction", "post-update", "pre-receive"] {
        let path = place.path(&format!(".git/hooks/{hook}"));
        fs::write(&path, format!("#!/bin/sh\n{trap}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let config = place.path(".git/config");
    let hostile = "[core]\n\tfsmonitor = touch PWNED\n\tsshCommand = touch PWNED\n\thooksPath = .git/hooks\n\
                   [credential]\n\thelper = !touch PWNED\n[uploadpack]\n\tpackObjectsHook = touch PWNED\n";
    fs::write(&config, fs::read_to_string(&config).unwrap() + hostile).unwrap();
    place.git("init -q --bare bare.git");
    place.good("clone . mine");
    place.good("push --to bare.git");
    place.good("pull --store mine");
    place.good("branch other");
    place.good("gc");
    let touched = ["PWNED", "mine/PWNED", ".git/PWNED", "bare.git/PWNED"];
    assert!(touched.iter().all(|name| !place.path(name).exists()));
    let errors = place.bad("clone ext::sh%20-c%20touch%20PWNED elsewhere", 11);
    assert!(errors.contains("ext") && !place.path("PWNED").exists() && !place.path("elsewhere").exists());

    // A commit whose series does not follow from its patches is fetched, found out, and named by nothing.
    place.git("clone -q -b main bare.git liar");
    fs::write(place.path("liar/series"), format!("{}\n", "0".repeat(64))).unwrap();
    place.git("-C liar -c user.name=x -c user.email=y commit -qam lie");
    place.git("-C liar push -q origin HEAD:main");
    let before = place.git("-C mine for-each-ref");
    place.bad("pull --store mine --from bare.git", 3);
    assert_eq!(place.git("-C mine for-each-ref"), before);

    place.git("init -q other");
    assert!(place.bad("log --store /", 2).contains("no mpatch store"));
    place.bad("init other --base model.safetensors", 7);
    place.git("config mpatch.version 2");
    assert!(place.bad("log", 15).contains("version 2"));
}

#[test]
fn the_story_in_the_documents_is_what_happens() {
    let place = Place { folder: tempfile::tempdir().unwrap() };
    material::lay_out_editing(place.folder.path());
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
