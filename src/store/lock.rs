//! One process at a time changes a store.
//!
//! The lock is the operating system's own on an open file, so it ends with its process, however that ends: there is
//! no stale lock to remove.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use super::error::StoreError;

/// The file that is locked, in the repository's folder; it stays.
const NAME: &str = "mpatch.lock";
/// How long to sleep between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// The right to change the store, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock of the repository at `folder`, for `patience` at most.
    pub(super) fn take(folder: &Path, patience: Duration) -> Result<Self, StoreError> {
        let path = folder.join(NAME);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::io(&path, "open"))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if started.elapsed() < patience => std::thread::sleep(PAUSE),
                Err(TryLockError::WouldBlock) => {
                    let seconds = patience.as_secs_f64();
                    return Err(StoreError::Busy { path: folder.to_owned(), seconds });
                }
                Err(TryLockError::Error(error)) => return Err(StoreError::io(&path, "lock")(error)),
            }
        }
    }
}
