//! An operation fails, for every operation and every kind of fault.

use std::path::{Path, PathBuf};
use std::sync::Once;

use super::{Act, Scene, TENSORS, quiet, values, visible};
use crate::checkpoint::disk::fault::{Fault, FaultyDisk, Schedule};
use crate::checkpoint::disk::simulated::{Fate, SimulatedDisk};
use crate::checkpoint::disk::{Access, Files};
use crate::checkpoint::{Checkpoint, CheckpointError, check_in_place};
use crate::operation::{Answer, OperationError, plan};

/// How an error leaves the disk, by its own words.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Unchanged,
    Applied,
    /// With what there is to do, where it says so itself.
    Pending(Option<&'static str>),
}

fn left(error: &OperationError) -> Left {
    match error {
        OperationError::Checkpoint(error) => left_of_checkpoint(error),
        OperationError::Pending { recovery, .. } => left_of_checkpoint(recovery),
        _ => Left::Unchanged,
    }
}

fn left_of_checkpoint(error: &CheckpointError) -> Left {
    match error {
        CheckpointError::Recovery { way_out, .. } => Left::Pending(*way_out),
        CheckpointError::NotDurable { .. } => Left::Applied,
        _ => Left::Unchanged,
    }
}

/// Whether a way out lets the next command come to the old state, and to the new one.
fn states_to_come(way_out: Option<&str>) -> [bool; 2] {
    match way_out {
        Some(way_out) if way_out.starts_with("the change is complete: ") => [false, true],
        Some(way_out) if way_out.starts_with("the old bytes are there: ") => [true, false],
        Some(way_out) => {
            assert!(
                ["puts the old ones back", "ends the change, or puts", "brings the change to its end"]
                    .iter()
                    .any(|either| way_out.contains(either))
            );
            [true, true]
        }
        // What is said of every one that says nothing itself: the next command puts the old bytes back.
        None => [true, false],
    }
}

/// A power cut after which nothing is there that was not synced.
struct NothingLasts;

impl Fate for NothingLasts {
    fn keeps(&mut self) -> bool {
        false
    }

    fn names_kept(&mut self, _: usize) -> usize {
        0
    }

    fn grain(&self) -> usize {
        512
    }
}

/// Operations of the command when nothing goes wrong.
fn operations(scene: &Scene) -> u64 {
    let disk = FaultyDisk::new(scene.disk.fork(), Schedule::NEVER);
    scene.run(&Files::on(disk.clone())).unwrap();
    disk.operations()
}

/// Runs the command with one fault, holds the disk to what the outcome says, and repairs it.
fn try_fault(scene: &Scene, schedule: Schedule) -> Option<Left> {
    try_faults_on(&scene.disk, scene, [schedule, Schedule::NEVER])
}

/// The same on another disk, with two faults: the second one is counted without the operation that the first one hits.
fn try_faults_on(disk: &SimulatedDisk, scene: &Scene, faults: [Schedule; 2]) -> Option<Left> {
    let place = format!("{}, {faults:?}", scene.name);
    let memory = disk.fork();
    let [first, second] = faults;
    let faulty = FaultyDisk::new(FaultyDisk::new(memory.clone(), second), first);
    let outcome = scene.run(&Files::on(faulty));
    let found = visible(&memory.contents());
    let said = outcome.as_ref().err().map(left);
    match said {
        None => {
            assert!(memory.contents() == scene.after, "{place}: it succeeded, and did something else");
            let left = memory.after_power_cut(&mut NothingLasts).contents();
            assert!(left == scene.after, "{place}: it succeeded, and does not last");
        }
        Some(Left::Unchanged) => {
            assert!(found == scene.before, "{place}: {}", outcome.unwrap_err());
        }
        Some(Left::Applied) => assert!(found == scene.after, "{place}: {}", outcome.unwrap_err()),
        Some(Left::Pending(way_out)) => {
            assert!(matches!(scene.act, Act::InPlace(_)), "{place}: {}", outcome.unwrap_err());
            let next = memory.fork();
            scene.repair(&Files::on(next.clone())).unwrap_or_else(|error| panic!("{place}: {error}"));
            let reached = [&scene.before, &scene.after].map(|state| next.contents() == *state);
            let is_told = states_to_come(way_out).iter().zip(reached).any(|(told, found)| *told && found);
            assert!(is_told, "{place}: {way_out:?}, and then it is {reached:?}");
        }
    }
    let repair = |disk: &SimulatedDisk| {
        let repaired = scene.repair(&Files::on(disk.clone()));
        repaired.unwrap_or_else(|error| panic!("{place}: repairing: {error}"));
        let repaired = disk.contents();
        assert!(repaired == scene.before || repaired == scene.after, "{place}: {:?}", repaired.keys());
    };
    repair(&memory);
    // A power cut may bring a name back whose folder could not be synced, but nothing of what was put right.
    repair(&memory.after_power_cut(&mut NothingLasts));
    said
}

#[test]
fn a_fault_at_any_operation_leaves_what_the_error_says() {
    for scene in Scene::all() {
        let operations = operations(&scene);
        assert!(operations > 5, "{}: {operations}", scene.name);
        for at in 0..operations {
            for fault in [Fault::StorageFull, Fault::Device, Fault::Interrupted, Fault::Short] {
                for for_good in [false, true] {
                    let said = try_fault(&scene, Schedule { at, fault, for_good });
                    let harmless = fault == Fault::Short || (fault == Fault::Interrupted && !for_good);
                    assert!(!harmless || said.is_none(), "{}, {fault:?} at {at}: {said:?}", scene.name);
                }
            }
        }
    }
}

#[test]
fn a_device_that_dies_for_good_while_weights_are_overwritten_leaves_a_journal_that_repairs_them() {
    let mut pending = 0;
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        for at in 0..operations(scene) {
            let said = try_fault(scene, Schedule { at, fault: Fault::Device, for_good: true });
            pending += u32::from(matches!(said, Some(Left::Pending(_))));
        }
    }
    assert!(pending > 20, "only {pending} faults came while the journal lay there");
}

#[test]
fn a_sync_that_failed_is_not_believed_where_another_program_has_the_weights_mapped() {
    let mut tried = 0;
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let mapped = scene.disk.fork();
        mapped.map_all();
        for at in 0..operations(scene) {
            for for_good in [false, true] {
                let schedule = Schedule { at, fault: Fault::Device, for_good };
                try_faults_on(&mapped, scene, [schedule, Schedule::NEVER]);
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

#[test]
fn two_faults_around_the_end_of_a_change_in_place_leave_what_the_error_says() {
    // From the syncs of the new bytes on, which a fault doubles.
    const LAST: u64 = 20;
    const FAULTS_APART: u64 = 60;
    let (mut unchanged, mut applied) = (0, 0);
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let once = |at| Schedule { at, fault: Fault::Device, for_good: false };
        let operations = operations(scene);
        for at in operations - LAST..operations {
            for apart in 0..FAULTS_APART {
                let said = try_faults_on(&scene.disk, scene, [once(at), once(at + apart)]);
                unchanged += u32::from(said == Some(Left::Unchanged));
                applied += u32::from(said == Some(Left::Applied));
            }
        }
    }
    assert!(unchanged > 0 && applied > 0, "{unchanged} of the pairs are taken back, and {applied} are not");
}

/// The disk of a change in place that was killed after half of the new bytes.
fn half_way(scene: &Scene) -> SimulatedDisk {
    let killed = (0..operations(scene)).rev().map(|at| {
        let memory = scene.disk.fork();
        let schedule = Schedule { at, fault: Fault::Killed, for_good: true };
        _ = scene.run(&Files::on(FaultyDisk::new(memory.clone(), schedule)));
        memory
    });
    let is_half_way = |memory: &SimulatedDisk| {
        let found = memory.contents();
        let journals = found.keys().filter(|path| path.to_string_lossy().ends_with("journal")).count();
        let new = |(path, bytes): (_, &Vec<u8>)| found[path] == *bytes;
        let changed = scene.after.iter().filter(|(path, bytes)| scene.before[*path] != **bytes);
        journals == 1
            && changed.clone().any(|(path, _)| found[path] != scene.before[path])
            && !changed.clone().all(new)
    };
    let mut killed = killed.filter(is_half_way);
    killed.next().expect("one of the operations is half-way")
}

#[test]
fn a_journal_is_followed_only_of_one_who_could_have_written_to_the_weights() {
    const ROOT: u32 = 0;
    const STRANGER: u32 = 2000;
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let broken = half_way(scene);
        let contents = broken.contents();
        let is_journal = |path: &&PathBuf| path.to_string_lossy().ends_with("journal");
        let journal = contents.keys().find(is_journal).unwrap();
        broken.give_away(journal, STRANGER);
        let refused = scene.repair(&Files::on(broken.clone())).unwrap_err();
        assert!(matches!(left(&refused), Left::Pending(_)), "{refused}");
        assert!(refused.to_string().contains("user 2000 wrote it, who does not own `/m/"), "{refused}");
        assert!(broken.contents() == contents, "{}", scene.name);
        let theirs = broken.fork();
        contents.keys().for_each(|path| theirs.give_away(path, STRANGER));
        scene.repair(&Files::on(theirs.clone())).unwrap();
        broken.give_away(journal, ROOT);
        scene.repair(&Files::on(broken.clone())).unwrap();
        assert!(theirs.contents() == scene.before && broken.contents() == scene.before, "{}", scene.name);
    }
}

/// The journal of a disk, the journal's file under the name that it had, and what that holds.
fn journal_and_target(disk: &SimulatedDisk) -> (PathBuf, PathBuf, Vec<u8>) {
    let contents = disk.contents();
    let journal = contents.keys().find(|path| path.to_string_lossy().ends_with("journal")).unwrap();
    let target = PathBuf::from(journal.to_string_lossy().strip_suffix(".mpatch-journal").unwrap());
    let bytes = contents[&target].clone();
    (journal.clone(), target, bytes)
}

/// Changes one byte of a file where it lies.
fn flip(disk: &SimulatedDisk, path: &Path, at: usize) {
    let file = Files::on(disk.clone()).open(path, Access::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
}

/// Where the first tensor of a safetensors file begins.
fn data_at(bytes: &[u8]) -> usize {
    8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

/// What repairing refuses because another file has the name, and leaves as it is.
fn is_left_as_another_file(scene: &Scene, disk: &SimulatedDisk) {
    let before = disk.contents();
    let refused = scene.repair(&Files::on(disk.clone())).unwrap_err();
    assert!(refused.to_string().contains("it was written for another file"), "{}: {refused}", scene.name);
    assert!(disk.contents() == before, "{}", scene.name);
}

#[test]
fn a_half_way_file_with_a_new_inode_gets_its_old_bytes_back_and_another_model_is_left() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let broken = half_way(scene);
        let (_, path, bytes) = journal_and_target(&broken);
        let with = |bytes: &[u8]| {
            let memory = broken.fork();
            Files::on(memory.clone()).remove_file(&path).unwrap();
            memory.put(path.to_str().unwrap(), bytes);
            memory
        };
        let copied = with(&bytes);
        scene.repair(&Files::on(copied.clone())).unwrap();
        assert!(copied.contents() == scene.before, "{}", scene.name);
        // All of the old bytes are in the journal, which says nothing about what is under the name.
        let other = with(&bytes);
        flip(&other, &path, data_at(&bytes) + 4000);
        is_left_as_another_file(scene, &other);
        // Nor does it matter that it got the inode of the file that was there.
        let again = broken.fork();
        flip(&again, &path, data_at(&bytes) + 4000);
        again.set_created(&path, Some(u64::MAX));
        is_left_as_another_file(scene, &again);
        // Nobody begins with the second tensor as long as the first one waits.
        if path == Path::new(scene.path) {
            let early = with(&scene.before[&path]);
            flip(&early, &path, data_at(&bytes) + values(0).len());
            is_left_as_another_file(scene, &early);
        }
    }
}

#[test]
fn a_journal_that_goes_while_its_files_are_waited_for_is_not_followed() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let broken = half_way(scene);
        let (journal, ..) = journal_and_target(&broken);
        broken.take_before_lock(&journal);
        let mut expected = broken.contents();
        expected.remove(&journal);
        scene.repair(&Files::on(broken.clone())).unwrap();
        assert!(broken.contents() == expected, "{}", scene.name);
    }
}

#[test]
fn a_file_that_was_replaced_since_it_was_opened_is_not_changed_in_place() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let files = Files::on(scene.disk.clone());
        let checkpoint = Checkpoint::open_on(&files, Path::new(scene.path)).unwrap();
        let first = checkpoint.tensors().iter().find(|tensor| tensor.name == TENSORS[0]).unwrap();
        check_in_place(&checkpoint, [first]).unwrap();
        let path = checkpoint.files()[first.file_index].path();
        files.remove_file(path).unwrap();
        scene.disk.put(path.to_str().unwrap(), &scene.before[path]);
        let refused = check_in_place(&checkpoint, [first]).unwrap_err().to_string();
        assert!(refused.contains("it was replaced by another file meanwhile"), "{refused}");
    }
}

#[test]
fn a_file_whose_name_another_one_gets_meanwhile_keeps_its_old_bytes() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let Act::InPlace(direction) = scene.act else { continue };
        let memory = scene.disk.fork();
        let files = Files::on(memory.clone());
        let checkpoint = Checkpoint::open_on(&files, Path::new(scene.path)).unwrap();
        let Answer::Fits(plan) = plan(&checkpoint, &scene.patch, direction, &quiet).unwrap() else {
            panic!("{} does not fit", scene.name)
        };
        let (path, moved) = (checkpoint.files()[0].path(), Path::new("/m/moved"));
        let is_moved = Once::new();
        let move_away = |_| {
            is_moved.call_once(|| {
                files.rename_new(path, moved).unwrap();
                memory.put(path.to_str().unwrap(), b"another model");
            });
        };
        let refused = plan.execute_in_place(&checkpoint, &scene.patch, &move_away).unwrap_err();
        assert!(refused.to_string().contains("it was moved away or replaced meanwhile"), "{refused}");
        let mut expected = scene.before.clone();
        let whole = expected.insert(path.to_owned(), b"another model".to_vec()).unwrap();
        expected.insert(moved.to_owned(), whole);
        assert!(memory.contents() == expected, "{}", scene.name);
    }
}

#[test]
fn a_half_way_file_that_was_renamed_gets_its_old_bytes_back_whatever_has_its_name() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        for is_told in [true, false] {
            if !is_told {
                scene.before.keys().for_each(|path| scene.disk.set_created(path, None));
            }
            let broken = half_way(scene);
            let (_, path, bytes) = journal_and_target(&broken);
            let renamed = PathBuf::from("/m/renamed");
            Files::on(broken.clone()).rename_new(&path, &renamed).unwrap();
            broken.put(path.to_str().unwrap(), &scene.before[&path]);
            let other = broken.fork();
            scene.repair(&Files::on(broken.clone())).unwrap();
            let mut expected = scene.before.clone();
            expected.insert(renamed.clone(), scene.before[&path].clone());
            assert!(broken.contents() == expected, "{}", scene.name);
            // Where the system does not tell when a file was made, one with its inode may be another model.
            if !is_told {
                flip(&other, &renamed, data_at(&bytes) + 4000);
                is_left_as_another_file(scene, &other);
            }
        }
    }
}

#[test]
fn what_was_not_overwritten_needs_no_room_to_be_put_back() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let memory = scene.disk.fork();
        // For one of the two tensors.
        memory.fill_up_to(1);
        let outcome = scene.run(&Files::on(memory.clone()));
        let error = outcome.unwrap_err();
        assert_eq!(left(&error), Left::Unchanged, "{}: {error}", scene.name);
        assert!(memory.contents() == scene.before, "{}", scene.name);
    }
}

#[test]
fn a_journal_with_one_flipped_bit_is_repaired_with_or_kept() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let broken = half_way(scene);
        let contents = broken.contents();
        let (path, journal) =
            contents.iter().find(|(path, _)| path.to_string_lossy().ends_with("journal")).unwrap();
        let mut kept = 0;
        for at in 0..journal.len() {
            let mut flipped = journal.clone();
            flipped[at] ^= 1 << (at % 8);
            let memory = broken.fork();
            Files::on(memory.clone())
                .open(path, Access::ReadWrite)
                .unwrap()
                .write_all_at(&flipped, 0)
                .unwrap();
            match scene.repair(&Files::on(memory.clone())) {
                Ok(()) => {
                    let left = memory.contents();
                    assert!(left == scene.before || left == scene.after, "{}, byte {at}", scene.name);
                }
                Err(error) => {
                    kept += 1;
                    assert!(matches!(left(&error), Left::Pending(_)), "{}, byte {at}: {error}", scene.name);
                    assert_eq!(memory.contents()[path], flipped, "{}, byte {at}: it is kept", scene.name);
                }
            }
        }
        assert!(kept > 0 && kept < journal.len(), "{}: {kept} of {}", scene.name, journal.len());
    }
}

/// How many operations come before the folder of the weights is listed.
fn operations_until_listed(scene: &Scene, disk: &SimulatedDisk) -> u64 {
    let is_told = |at| {
        let schedule = Schedule { at, fault: Fault::Device, for_good: true };
        let tried = scene.repair(&Files::on(FaultyDisk::new(disk.fork(), schedule)));
        matches!(left(&tried.unwrap_err()), Left::Pending(_))
    };
    (0..).find(|at| is_told(*at)).unwrap()
}

#[test]
fn a_fault_while_repairing_is_repaired_by_the_next_command() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        let broken = half_way(scene);
        let (journal, ..) = journal_and_target(&broken);
        let seen = operations_until_listed(scene, &broken);
        let counting = FaultyDisk::new(broken.fork(), Schedule::NEVER);
        scene.repair(&Files::on(counting.clone())).unwrap();
        assert!(seen < counting.operations() / 2);
        for at in 0..counting.operations() {
            for fault in [Fault::StorageFull, Fault::Device, Fault::Interrupted, Fault::Short] {
                for for_good in [false, true] {
                    let memory = broken.fork();
                    let schedule = Schedule { at, fault, for_good };
                    let tried = scene.repair(&Files::on(FaultyDisk::new(memory.clone(), schedule)));
                    let place = format!("{}, {schedule:?}: {tried:?}", scene.name);
                    match tried.as_ref().map_err(left) {
                        Ok(()) => assert!(scene.is_whole(&memory.contents()), "{place}"),
                        // As long as the journal lies there, and no longer.
                        Err(Left::Pending(_)) => assert!(memory.contents().contains_key(&journal), "{place}"),
                        // Before anybody could see it.
                        Err(said) => assert!(said == Left::Unchanged && at <= seen, "{place}"),
                    }
                    scene.repair(&Files::on(memory.clone())).unwrap();
                    assert!(scene.is_whole(&memory.contents()), "{}, {schedule:?}", scene.name);
                }
            }
        }
    }
}
