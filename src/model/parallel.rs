//! Independent pieces of work, one per core.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::Builder;

use super::{Device, ModelError};

/// Runs `work` on every item and returns the results in the items' order.
///
/// On a CPU each core takes whole items and computes them alone: splitting each small matrix product over all cores,
/// as candle does by itself, costs more than it gains. A GPU takes one item after the other. The first error of an
/// item in order is returned; what an item gives does not depend on what runs beside it.
///
/// # Errors
/// Whatever `work` fails with, or [`ModelError::Device`] when a thread cannot be started.
pub(crate) fn on_every_core<T: Sync, R: Send, E: Send + From<ModelError>>(
    device: &Device,
    items: &[T],
    work: impl Fn(usize, &T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    if !device.is_cpu() {
        return items.iter().enumerate().map(|(index, item)| work(index, item)).collect();
    }
    let results: Vec<Mutex<Option<Result<R, E>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(usize::MAX);
    let take_items = || loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        // Items after a failed one are not wanted any more; those before it may fail first.
        if index >= items.len() || index > failed.load(Ordering::Relaxed) {
            return;
        }
        let result = work(index, &items[index]);
        if result.is_err() {
            failed.fetch_min(index, Ordering::Relaxed);
        }
        if let Ok(mut slot) = results[index].lock() {
            *slot = Some(result);
        }
    };
    let cores = rayon::current_num_threads().min(items.len());
    std::thread::scope(|scope| {
        let start = || Builder::new().spawn_scoped(scope, || alone(take_items));
        let mut threads = Vec::with_capacity(cores);
        for _ in 0..cores {
            match start() {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => return Err(no_thread(error)),
                // Fewer do it all, too.
                Err(_) => break,
            }
        }
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    results.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}

/// Runs `work` over all of `items`, or over each half of them where the device's memory does not hold them.
pub(crate) fn in_halves<T, R, E, W: Fn(&[T]) -> Result<Vec<R>, E>>(
    items: &[T],
    lacks_memory: fn(&E) -> bool,
    work: &W,
) -> Result<Vec<R>, E> {
    match work(items) {
        Err(error) if items.len() > 1 && lacks_memory(&error) => {
            let (first, second) = items.split_at(items.len() / 2);
            let mut results = in_halves(first, lacks_memory, work)?;
            results.extend(in_halves(second, lacks_memory, work)?);
            Ok(results)
        }
        outcome => outcome,
    }
}

/// The largest power of two, from 1 to `most`, so many times `size_bytes` fit into `room_bytes`.
///
/// Only powers, because a batch's size may show in the last bits of its results, and the memory that is free is never
/// twice the same to the byte.
pub(crate) fn power_that_fits(room_bytes: u64, size_bytes: u64, most: usize) -> usize {
    let fits = (room_bytes / size_bytes.max(1)).clamp(1, most.max(1) as u64);
    1 << fits.ilog2()
}

/// What the tokens that one core runs together take on a CPU, at most: each core has its own, beside the weights.
pub(crate) const CORE_SIZE_BYTES: u64 = 256 << 20;

/// Runs `work` with this thread as the only one of its pool, so that whatever it calls stays on this core.
fn alone(work: impl FnOnce() + Send) -> Result<(), ModelError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    pool.map_err(no_thread)?.install(work);
    Ok(())
}

fn no_thread(error: impl std::fmt::Display) -> ModelError {
    candle_core::Error::msg(format!("cannot start a thread: {error}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_memory_does_not_hold_is_halved_until_it_does() {
        let items: Vec<usize> = (0..11).collect();
        let largest = std::cell::Cell::new(0);
        let lack = || {
            let error = candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
            ModelError::Device(error)
        };
        let work = |items: &[usize]| {
            if items.len() > 3 {
                return Err(lack());
            }
            largest.set(largest.get().max(items.len()));
            Ok(items.iter().map(|item| item * 10).collect())
        };
        let results = in_halves(&items, ModelError::is_out_of_memory, &work).expect("three fit");
        assert_eq!(results, items.iter().map(|item| item * 10).collect::<Vec<_>>());
        assert_eq!(largest.get(), 3);
        let tried = std::cell::Cell::new(0);
        let never = |_: &[usize]| -> Result<Vec<usize>, ModelError> {
            tried.set(tried.get() + 1);
            Err(lack())
        };
        assert!(in_halves(&items, ModelError::is_out_of_memory, &never).is_err(), "one that does not fit");
        assert_eq!(tried.replace(0), 4, "11, 5, 2 and 1 of them, no other half");
        let other = |_: &[usize]| -> Result<Vec<usize>, ModelError> {
            tried.set(tried.get() + 1);
            Err(ModelError::Text { what: "CUDA_ERROR_OUT_OF_MEMORY is a text here".to_owned() })
        };
        assert!(in_halves(&items, ModelError::is_out_of_memory, &other).is_err());
        assert_eq!(tried.get(), 1, "another failure is not tried again");
    }

    #[test]
    fn batches_are_powers_of_two_that_fit() {
        for (room_bytes, expected) in
            [(0, 1), (99, 1), (100, 1), (399, 2), (400, 4), (6_400, 64), (1 << 60, 64)]
        {
            assert_eq!(power_that_fits(room_bytes, 100, 64), expected, "{room_bytes}");
        }
        assert_eq!(power_that_fits(1000, 0, 48), 32);
        assert_eq!(power_that_fits(1000, 1, 0), 1);
    }

    #[test]
    fn results_come_in_order_and_the_first_error_wins() {
        let items: Vec<usize> = (0..100).collect();
        let doubled = on_every_core(&Device::Cpu, &items, |_, item| Ok::<_, ModelError>(item * 2));
        assert_eq!(doubled.expect("nothing fails"), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        let refuse = |index: usize, _: &usize| match index {
            30 | 70 => Err(ModelError::Text { what: format!("item {index}") }),
            _ => Ok(()),
        };
        let error = on_every_core(&Device::Cpu, &items, refuse).expect_err("two fail");
        assert_eq!(error.to_string(), "item 30");
    }
}
