//! A disk that fails at its N-th operation, once or from then on, for tests.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{About, Access, Audience, Disk, Handle, Kind, Lock, Locked};

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There is no room left.
    StorageFull,
    /// The device gives up (EIO).
    Device,
    /// A signal comes in between (EINTR).
    Interrupted,
    /// Reads and writes do half of what they were asked; everything else works.
    Short,
    /// Somebody else has just removed what was asked for (ENOENT).
    Missing,
    /// The process is gone: neither this operation happens nor any later one.
    Killed,
}

impl Fault {
    fn error(self) -> Option<io::Error> {
        // Numbers as Linux has them.
        const EIO: i32 = 5;
        match self {
            Fault::StorageFull => Some(io::ErrorKind::StorageFull.into()),
            Fault::Device => Some(io::Error::from_raw_os_error(EIO)),
            Fault::Missing => Some(io::ErrorKind::NotFound.into()),
            Fault::Interrupted => Some(io::ErrorKind::Interrupted.into()),
            Fault::Killed => Some(io::Error::other("the process is gone")),
            Fault::Short => None,
        }
    }
}

/// Which operations fail.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// The first one, counted from 0.
    pub(crate) at: u64,
    pub(crate) fault: Fault,
    /// Whether all later ones fail as well.
    pub(crate) for_good: bool,
}

impl Schedule {
    /// No operation fails.
    pub(crate) const NEVER: Self = Self { at: u64::MAX, fault: Fault::Device, for_good: false };
}

#[derive(Debug)]
struct Counter {
    schedule: Schedule,
    done: AtomicU64,
}

impl Counter {
    /// Counts an operation; true for one that is to fall short.
    fn count(&self) -> io::Result<bool> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        let Schedule { at, fault, for_good } = self.schedule;
        if number != at && !(for_good && number > at) {
            return Ok(false);
        }
        fault.error().map_or(Ok(true), Err)
    }
}

/// Another disk, with faults.
#[derive(Debug, Clone)]
pub(crate) struct FaultyDisk<D> {
    disk: D,
    counter: Arc<Counter>,
}

impl<D: Disk> FaultyDisk<D> {
    pub(crate) fn new(disk: D, schedule: Schedule) -> Self {
        Self { disk, counter: Arc::new(Counter { schedule, done: AtomicU64::new(0) }) }
    }

    /// Operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.counter.done.load(Ordering::SeqCst)
    }

    fn handle(&self, handle: io::Result<Box<dyn Handle>>) -> io::Result<Box<dyn Handle>> {
        handle.map(|handle| {
            Box::new(FaultyHandle { handle, counter: Arc::clone(&self.counter) }) as Box<dyn Handle>
        })
    }
}

impl<D: Disk> Disk for FaultyDisk<D> {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Handle>> {
        self.counter.count()?;
        self.handle(self.disk.open(path, access))
    }

    fn open_folder(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        self.counter.count()?;
        self.handle(self.disk.open_folder(path))
    }

    fn about(&self, path: &Path) -> io::Result<About> {
        self.counter.count()?;
        self.disk.about(path)
    }

    fn about_name(&self, path: &Path) -> io::Result<About> {
        self.counter.count()?;
        self.disk.about_name(path)
    }

    fn mount(&self, path: &Path) -> Option<u64> {
        self.disk.mount(path)
    }

    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.counter.count()?;
        self.disk.real_path(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        self.counter.count()?;
        self.disk.list(folder)
    }

    fn create_folder(&self, path: &Path, audience: Audience) -> io::Result<()> {
        self.counter.count()?;
        self.disk.create_folder(path, audience)
    }

    fn set_folder_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.counter.count()?;
        self.disk.set_folder_mode(path, mode)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.counter.count()?;
        self.disk.remove_file(path)
    }

    /// Name by name, as the system does it: any of them may be where it fails.
    fn remove_whole_folder(&self, path: &Path) -> io::Result<()> {
        for inside in self.list(path)?.iter().map(|name| path.join(name)) {
            match self.about_name(&inside)?.kind {
                Kind::Folder => self.remove_whole_folder(&inside)?,
                _ => self.remove_file(&inside)?,
            }
        }
        self.counter.count()?;
        self.disk.remove_whole_folder(path)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.counter.count()?;
        self.disk.rename_new(from, to)
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.counter.count()?;
        self.disk.rename_over(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.counter.count()?;
        self.disk.link(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.counter.count()?;
        self.disk.sync_folder(path)
    }

    fn check_writable(&self, folder: &Path) -> io::Result<()> {
        self.counter.count()?;
        self.disk.check_writable(folder)
    }

    fn user(&self) -> u32 {
        self.disk.user()
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        self.counter.count()?;
        self.disk.free_bytes(folder)
    }
}

#[derive(Debug)]
struct FaultyHandle {
    handle: Box<dyn Handle>,
    counter: Arc<Counter>,
}

impl Handle for FaultyHandle {
    fn about(&self) -> io::Result<About> {
        self.counter.count()?;
        self.handle.about()
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        let length = if self.counter.count()? { bytes.len().div_ceil(2) } else { bytes.len() };
        self.handle.read_at(&mut bytes[..length], offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let length = if self.counter.count()? { bytes.len().div_ceil(2) } else { bytes.len() };
        self.handle.write_at(&bytes[..length], offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.counter.count()?;
        self.handle.set_size(size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.counter.count()?;
        self.handle.allocate(size)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.counter.count()?;
        self.handle.set_mode(mode)
    }

    fn sync(&self) -> io::Result<()> {
        if let Err(error) = self.counter.count() {
            if self.counter.schedule.fault == Fault::Device {
                self.handle.fail_to_sync();
            }
            return Err(error);
        }
        self.handle.sync()
    }

    fn forget(&self) -> io::Result<()> {
        self.counter.count()?;
        self.handle.forget()
    }

    fn lock(&self, lock: Lock) -> io::Result<Locked> {
        self.counter.count()?;
        self.handle.lock(lock)
    }

    fn clone_from(&self, source: &dyn Handle) -> io::Result<()> {
        self.counter.count()?;
        self.handle.clone_from(source)
    }

    fn copy_from(&self, source: &dyn Handle, offset: u64, length: u64) -> io::Result<u64> {
        let length = if self.counter.count()? { length.div_ceil(2) } else { length };
        self.handle.copy_from(source, offset, length)
    }

    fn fail_to_sync(&self) {
        self.handle.fail_to_sync();
    }

    fn system(&self) -> Option<&std::fs::File> {
        self.handle.system()
    }
}
