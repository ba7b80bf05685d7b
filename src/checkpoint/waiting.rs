//! Threads that wait for the disk while the others compute.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

/// As many keep a disk busy: one hands over what another one has just read.
const THREADS: usize = 2;

/// Does `work` to each of `items`, beginning in their order, and returns what came of them in that order.
///
/// Each thread has a state of its own. After an error nothing more is begun, and the earliest item's is returned.
pub(super) fn map_waiting<T: Sync, S: Default, R: Send, E: Send>(
    items: &[T],
    work: impl Fn(&mut S, &T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        let mut state = S::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return };
            let outcome = work(&mut state, item);
            if outcome.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, outcome));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(items.len()) {
            // Where the system has no thread, those that there are do it all.
            _ = Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once_and_in_its_place() {
        for count in [0, 1, 2, 100] {
            let items: Vec<usize> = (0..count).collect();
            let done = map_waiting(&items, |(): &mut (), item| Ok::<_, ()>(item * 2));
            assert_eq!(done, Ok(items.iter().map(|item| item * 2).collect()));
        }
    }

    #[test]
    fn the_earliest_error_is_told_and_nothing_is_begun_after_it() {
        let items: Vec<usize> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let done = map_waiting(&items, |(): &mut (), item| {
            begun.fetch_add(1, Ordering::Relaxed);
            if *item >= 10 { Err(*item) } else { Ok(()) }
        });
        assert_eq!(done, Err(10));
        assert!(begun.into_inner() < 20);
    }
}
