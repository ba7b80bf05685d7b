//! Blocks on their way from one file to another: while one is computed, the one before it is written and the one
//! after it is read.

use std::panic::resume_unwind;
use std::sync::mpsc::sync_channel;
use std::thread;

/// Takes `blocks` through the three steps, in their order; three of them are in memory at a time.
///
/// `read` fills a buffer that may hold anything, `compute` changes it, and `write` gets what `compute` left there. All
/// reading and writing is done by one thread, which waits for the disk, in the same order on every run; `compute` has
/// the caller's. Where the system has no thread, the caller's does it all.
pub(crate) fn pipeline<B: Sync, E: Send>(
    blocks: &[B],
    mut read: impl FnMut(&B, &mut Vec<u8>) -> Result<(), E> + Send,
    mut compute: impl FnMut(&B, &mut Vec<u8>) -> Result<(), E>,
    mut write: impl FnMut(&B, &[u8]) -> Result<(), E> + Send,
) -> Result<(), E> {
    let moved = thread::scope(|scope| {
        let (to_compute, computable) = sync_channel::<Vec<u8>>(1);
        let (to_write, writable) = sync_channel::<Vec<u8>>(1);
        let (read, write) = (&mut read, &mut write);
        let mover = thread::Builder::new().spawn_scoped(scope, move || {
            let mut spare = vec![Vec::new(), Vec::new()];
            for index in 0..=blocks.len() {
                if let Some(block) = blocks.get(index) {
                    let mut bytes = spare.pop().unwrap_or_default();
                    read(block, &mut bytes)?;
                    // Nobody computes any more after an error there.
                    let Ok(()) = to_compute.send(bytes) else { break };
                }
                if let Some(before) = index.checked_sub(1) {
                    let Ok(bytes) = writable.recv() else { break };
                    write(&blocks[before], &bytes)?;
                    spare.push(bytes);
                }
            }
            Ok(())
        });
        let mover = mover.ok()?;
        let mut computed = Ok(());
        for block in blocks {
            // Nobody reads any more after an error there.
            let Ok(mut bytes) = computable.recv() else { break };
            computed = compute(block, &mut bytes);
            if computed.is_err() || to_write.send(bytes).is_err() {
                break;
            }
        }
        drop((computable, to_write));
        let moved = mover.join().unwrap_or_else(|panic| resume_unwind(panic));
        Some(computed.and(moved))
    });
    moved.unwrap_or_else(|| {
        let mut bytes = Vec::new();
        blocks.iter().try_for_each(|block| {
            read(block, &mut bytes)?;
            compute(block, &mut bytes)?;
            write(block, &bytes)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What was done to `count` blocks, of which each step fails at the block named for it.
    fn run(count: u8, fail: [Option<u8>; 3]) -> (Result<(), &'static str>, Vec<u8>) {
        let written = Mutex::new(Vec::new());
        let blocks: Vec<u8> = (0..count).collect();
        let check = |step: usize, block: u8| match fail[step] {
            Some(at) if at == block => Err(["read", "compute", "write"][step]),
            _ => Ok(()),
        };
        let outcome = pipeline(
            &blocks,
            |block, bytes| {
                bytes.clear();
                bytes.push(*block);
                check(0, *block)
            },
            |block, bytes| {
                bytes.push(bytes[0] + 100);
                check(1, *block)
            },
            |block, bytes| {
                written.lock().unwrap().extend_from_slice(bytes);
                check(2, *block)
            },
        );
        (outcome, written.into_inner().unwrap())
    }

    #[test]
    fn every_block_passes_every_step_once_and_in_order() {
        for count in 0..6 {
            let expected: Vec<u8> = (0..count).flat_map(|block| [block, block + 100]).collect();
            assert_eq!(run(count, [None; 3]), (Ok(()), expected));
        }
    }

    #[test]
    fn the_first_error_ends_it_and_nothing_behind_it_is_written() {
        for at in 0..5 {
            for (step, name) in ["read", "compute", "write"].into_iter().enumerate() {
                let mut fail = [None; 3];
                fail[step] = Some(at);
                let (outcome, written) = run(5, fail);
                assert_eq!(outcome, Err(name));
                let behind = if step == 2 { at + 1 } else { at };
                assert!(written.len() <= 2 * usize::from(behind), "{name} {at}: {written:?}");
            }
        }
    }
}
