//! The power goes at any operation, and again while what it left is repaired.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::numbers::Numbers;
use super::{Act, Contents, Direction, Scene};
use crate::checkpoint::disk::fault::{Fault, FaultyDisk, Schedule};
use crate::checkpoint::disk::simulated::{Fate, Lie, SimulatedDisk};
use crate::checkpoint::disk::{Access, Audience, Files};

/// Fates by number: the extremes first, then chance.
struct Chance {
    numbers: Numbers,
    /// Of 256 blocks so many are kept.
    kept_in_256: u64,
    /// Whether all, none or some names are kept.
    names: Option<bool>,
    grain: usize,
}

impl Chance {
    fn new(number: u64) -> Self {
        let (kept_in_256, names) = match number {
            0 => (0, Some(false)),
            1 => (256, Some(true)),
            2 => (256, Some(false)),
            3 => (0, Some(true)),
            _ => ([16, 64, 128, 192, 240][number as usize % 5], None),
        };
        let grain = if number.is_multiple_of(2) { 512 } else { 4096 };
        Self { numbers: Numbers(number), kept_in_256, names, grain }
    }
}

impl Fate for Chance {
    fn keeps(&mut self) -> bool {
        self.numbers.bits() % 256 < self.kept_in_256
    }

    fn names_kept(&mut self, changes: usize) -> usize {
        match self.names {
            Some(all) => changes * usize::from(all),
            None => self.numbers.below(changes + 1),
        }
    }

    fn grain(&self) -> usize {
        self.grain
    }
}

/// What was tried for one command.
#[derive(Debug, Default)]
struct Tally {
    states: u64,
    distinct: HashSet<[u8; 32]>,
    repairs_cut: u64,
}

impl Tally {
    /// Counts a state; true if it is a new one.
    fn add(&mut self, contents: &Contents) -> bool {
        let mut hasher = blake3::Hasher::new();
        for (path, bytes) in contents {
            hasher.update(path.as_os_str().as_bytes());
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        self.states += 1;
        self.distinct.insert(*hasher.finalize().as_bytes())
    }
}

/// With what every check begins that finds neither of the two states, so that it is told from any other panic.
const NEITHER: &str = "neither state is left";

/// Runs `work` until operation `at`, where the power goes, and returns the disk as it is then.
fn cut<T>(disk: &SimulatedDisk, at: u64, work: impl Fn(&Files) -> T) -> (SimulatedDisk, bool) {
    let memory = disk.fork();
    let faulty = FaultyDisk::new(memory.clone(), Schedule { at, fault: Fault::Killed, for_good: true });
    _ = work(&Files::on(faulty.clone()));
    (memory, faulty.operations() > at)
}

/// Holds a disk to the promises after a power cut, then cuts the power again in each operation of its repair.
fn hold(scene: &Scene, left: &SimulatedDisk, fates_again: u64, tally: &mut Tally, place: &str) {
    if !tally.add(&left.contents()) {
        return;
    }
    if !matches!(scene.act, Act::InPlace(_)) {
        assert!(scene.is_whole(&left.contents()), "{NEITHER}: {place}: {:?}", left.contents().keys());
    }
    for at in 0.. {
        let (memory, was_cut) = cut(left, at, |files| scene.repair(files));
        if !was_cut {
            assert_whole(scene, &memory, place);
            return;
        }
        tally.repairs_cut += 1;
        let fates = if memory.is_settled() { 1 } else { fates_again };
        for fate in 0..fates {
            let number = if fate < 2 { fate } else { tally.repairs_cut * 31 + fate };
            let left = memory.after_power_cut(&mut Chance::new(number));
            if tally.add(&left.contents()) {
                scene
                    .repair(&Files::on(left.clone()))
                    .unwrap_or_else(|error| panic!("{NEITHER}: {place}, {at}: {error}"));
                assert_whole(scene, &left, place);
            }
        }
    }
}

/// A repaired disk is in one of the two states, with no litter.
fn assert_whole(scene: &Scene, disk: &SimulatedDisk, place: &str) {
    let contents = disk.contents();
    assert!(contents == scene.before || contents == scene.after, "{NEITHER}: {place}: {:?}", contents.keys());
}

/// Fates that are tried in every operation of a command, in one round.
const FATES: u64 = 40;
/// As many again in every operation of the repair of each state that they leave.
const FATES_AGAIN: u64 = 4;

/// Cuts the power in every operation of the command, round after round, until so many states were held.
fn cut_everywhere(scene: &Scene, states: u64) -> Tally {
    let mut tally = Tally::default();
    let mut round = 0;
    while tally.states < states {
        cut_once_everywhere(scene, round, &mut tally);
        round += 1;
    }
    tally
}

fn cut_once_everywhere(scene: &Scene, round: u64, tally: &mut Tally) {
    for at in 0.. {
        let (memory, was_cut) = cut(&scene.disk, at, |files| scene.run(files));
        let fates = if memory.is_settled() { 1 } else { FATES };
        for fate in 0..fates {
            // The first ones are the extremes.
            let number = if round == 0 && fate < 4 { fate } else { (round << 32) + (at << 16) + fate + 4 };
            let left = memory.after_power_cut(&mut Chance::new(number));
            let place = format!("{}, operation {at}, fate {number}", scene.name);
            hold(scene, &left, FATES_AGAIN, tally, &place);
        }
        if !was_cut {
            // What succeeded survives at once.
            let left = memory.after_power_cut(&mut Chance::new(0));
            assert!(left.contents() == scene.after, "{NEITHER}: {}, done", scene.name);
            return;
        }
    }
}

#[test]
fn an_untouched_shard_that_its_writer_did_not_sync_lasts_in_a_copy() {
    let scene = Scene::new("apply, a copy of shards", Act::Copy(Direction::Apply), "/m");
    let (files, name) = (Files::on(scene.disk.clone()), Path::new("/m/untouched.safetensors"));
    files.remove_file(name).unwrap();
    let written = files.open(name, Access::CreateNew(Audience::All)).unwrap();
    written.write_all_at(&scene.before[name], 0).unwrap();
    scene.run(&files).unwrap();
    let left = scene.disk.after_power_cut(&mut Chance::new(0)).contents();
    assert!(left[Path::new("/out/untouched.safetensors")] == scene.before[name]);
}

#[expect(clippy::print_stderr, reason = "what was tried is worth telling")]
fn cut_all(states: u64) {
    for scene in Scene::all() {
        let tally = cut_everywhere(&scene, states);
        let Tally { states, distinct, repairs_cut } = tally;
        // Shown with `--nocapture`; `docs/durability.md` has the numbers.
        eprintln!("{}: {states} states, {} distinct, {repairs_cut} repairs cut", scene.name, distinct.len());
    }
}

#[test]
fn a_power_cut_at_any_operation_leaves_one_of_two_states() {
    cut_all(5_000);
}

#[test]
fn a_disk_that_lies_about_its_syncs_is_caught() {
    for lie in [Lie::SyncOfFiles, Lie::SyncOfFolders] {
        for scene in Scene::all() {
            scene.disk.tell(lie);
            let tried =
                catch_unwind(AssertUnwindSafe(|| cut_once_everywhere(&scene, 0, &mut Tally::default())));
            let said = tried.expect_err(&format!("{}, {lie:?}: nobody noticed", scene.name));
            let said = said.downcast_ref::<String>().map_or("", String::as_str);
            assert!(said.starts_with(NEITHER), "{}, {lie:?}: something else went wrong: {said}", scene.name);
        }
    }
}

#[test]
#[ignore = "takes a minute; run it with `cargo test --release --lib crash -- --ignored --nocapture`"]
fn a_hundred_thousand_power_cuts_of_every_command_leave_one_of_two_states() {
    cut_all(100_000);
}
