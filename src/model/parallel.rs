//! Independent pieces of work, one per core.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

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
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(|| alone(take_items))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    results.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}

/// Runs `work` with this thread as the only one of its pool, so that whatever it calls stays on this core.
fn alone(work: impl FnOnce() + Send) -> Result<(), ModelError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
    let pool = pool.map_err(|error| candle_core::Error::msg(format!("cannot start a thread: {error}")))?;
    pool.install(work);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
