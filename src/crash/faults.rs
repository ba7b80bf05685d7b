//! An operation fails, for every operation and every kind of fault.

use super::{Act, Scene, visible};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::disk::Files;
use crate::checkpoint::disk::fault::{Fault, FaultyDisk, Schedule};
use crate::operation::OperationError;

/// How an error leaves the disk, by its own words.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Unchanged,
    Applied,
    Pending,
}

fn left(error: &OperationError) -> Left {
    match error {
        OperationError::Pending { .. } | OperationError::Checkpoint(CheckpointError::Recovery { .. }) => {
            Left::Pending
        }
        OperationError::Checkpoint(CheckpointError::NotDurable { .. }) => Left::Applied,
        _ => Left::Unchanged,
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
    let place = format!("{}, {schedule:?}", scene.name);
    let memory = scene.disk.fork();
    let outcome = scene.run(&Files::on(FaultyDisk::new(memory.clone(), schedule)));
    let found = visible(&memory.contents());
    let said = outcome.as_ref().err().map(left);
    match said {
        None => assert!(memory.contents() == scene.after, "{place}: it succeeded, and did something else"),
        Some(Left::Unchanged) => {
            assert!(found == scene.before, "{place}: {}", outcome.unwrap_err());
        }
        Some(Left::Applied) => assert!(found == scene.after, "{place}: {}", outcome.unwrap_err()),
        Some(Left::Pending) => {
            assert!(matches!(scene.act, Act::InPlace(_)), "{place}: {}", outcome.unwrap_err());
        }
    }
    scene.repair(&Files::on(memory.clone())).unwrap_or_else(|error| panic!("{place}: repairing: {error}"));
    let repaired = memory.contents();
    assert!(repaired == scene.before || repaired == scene.after, "{place}: {:?}", repaired.keys());
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
            pending += u32::from(said == Some(Left::Pending));
        }
    }
    assert!(pending > 20, "only {pending} faults came while the journal lay there");
}

#[test]
fn a_fault_while_repairing_is_repaired_by_the_next_command() {
    for scene in Scene::all().iter().filter(|scene| matches!(scene.act, Act::InPlace(_))) {
        // Killed after half of the new bytes are written.
        let broken = (0..operations(scene)).rev().find_map(|at| {
            let memory = scene.disk.fork();
            let schedule = Schedule { at, fault: Fault::Killed, for_good: true };
            _ = scene.run(&Files::on(FaultyDisk::new(memory.clone(), schedule)));
            let found = visible(&memory.contents());
            let is_half_way =
                !scene.is_whole(&found) && scene.after.iter().any(|(path, after)| found[path] != *after);
            is_half_way.then_some(memory)
        });
        let broken = broken.unwrap();
        let counting = FaultyDisk::new(broken.fork(), Schedule::NEVER);
        scene.repair(&Files::on(counting.clone())).unwrap();
        for at in 0..counting.operations() {
            for fault in [Fault::StorageFull, Fault::Device, Fault::Interrupted, Fault::Short] {
                for for_good in [false, true] {
                    let memory = broken.fork();
                    let schedule = Schedule { at, fault, for_good };
                    let tried = scene.repair(&Files::on(FaultyDisk::new(memory.clone(), schedule)));
                    assert!(
                        tried.is_err() || scene.is_whole(&memory.contents()),
                        "{}, {schedule:?}: it says that it is repaired",
                        scene.name
                    );
                    scene.repair(&Files::on(memory.clone())).unwrap();
                    assert!(scene.is_whole(&memory.contents()), "{}, {schedule:?}", scene.name);
                }
            }
        }
    }
}
