//! All work on files, behind one small trait, so that whatever a disk can do to it can be tried.
//!
//! ```text
//! checkpoint (open, read, copy, journal)  ->  Files, File  ->  Disk, Handle:  real       the operating system
//!                       (retries, whole reads and writes)                     fault      fails at operation N
//!                                                                             simulated  what a power cut may leave
//! ```
//!
//! [`Disk`] and [`Handle`] are what an implementation has to do, one system call or nearly so each; they may stop
//! short and be interrupted, as calls do. [`Files`] and [`File`] are what the rest of `checkpoint` uses: they go on
//! after an interruption, and read and write all of what they were given. The two other disks are for tests.

mod access_list;
mod direct;
#[cfg(test)]
pub(crate) mod fault;
mod modes;
mod real;
#[cfg(test)]
pub(crate) mod simulated;

use std::ffi::OsString;
use std::fmt::Debug;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use std::fs::File as SystemFile;

pub(crate) use self::direct::{DirectWay, Gather, PAGE_BYTES, Pages, write_whole_pages};

/// What a name leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Symlink,
    /// A pipe, a device, a socket.
    Other,
}

/// What the system knows about a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) kind: Kind,
    pub(crate) size_bytes: u64,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// How many names it has.
    pub(crate) links: u64,
    /// When it was made, in nanoseconds since 1970, where the file system knows.
    pub(crate) created_ns: Option<u64>,
    /// All bits of its mode that concern rights.
    pub(crate) mode: u32,
    /// The user and the group that it belongs to.
    pub(crate) owner: u32,
    pub(crate) group: u32,
    /// Where an access-control list says more than the mode, whose bits of the group then limit the list: the rights
    /// that each of its entries gives, the owner's left out.
    pub(crate) listed: Option<u32>,
}

impl About {
    /// Whether both are about one and the same file.
    pub(crate) fn is_same_file(&self, other: &About) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Reading and writing a file that exists; the name must not be a symlink.
    ReadWrite,
    /// Reading and writing a file that must not exist yet.
    CreateNew(Audience),
    /// Writing whole pages of a file that exists, past the system's memory; refused where that is not known to be
    /// faster. The name must not be a symlink.
    Direct,
}

/// Whom a new file or folder is for, until it is given another mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Its owner alone.
    Owner,
    /// All whom the process's umask does not keep out.
    All,
}

/// How a file is held; a lock ends with its handle, and with the process at the latest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    Shared,
    Exclusive,
}

/// How asking for a lock went; nobody waits for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locked {
    Held,
    /// Somebody else holds it.
    Busy,
    /// This file system knows no locks.
    Unsupported,
}

/// Names and folders.
pub(crate) trait Disk: Debug + Send + Sync {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Handle>>;
    /// A folder, to be locked; [`Handle::lock`] and [`Handle::about`] are all that works on it.
    fn open_folder(&self, path: &Path) -> io::Result<Box<dyn Handle>>;
    /// Of what the name leads to in the end.
    fn about(&self, path: &Path) -> io::Result<About>;
    /// Of the name itself, a symlink included.
    fn about_name(&self, path: &Path) -> io::Result<About>;
    /// The mount that a path leads into, by a number of its own, where the system tells.
    fn mount(&self, _path: &Path) -> Option<u64> {
        None
    }
    /// The path without symlinks.
    fn real_path(&self, path: &Path) -> io::Result<PathBuf>;
    /// The names in a folder, in no order.
    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>>;
    fn create_folder(&self, path: &Path, audience: Audience) -> io::Result<()>;
    fn set_folder_mode(&self, path: &Path, mode: u32) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with all that is in it; symlinks in it are removed and never followed, whoever puts them there
    /// meanwhile.
    fn remove_whole_folder(&self, path: &Path) -> io::Result<()>;
    /// Gives a file or folder another name, which must be free.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file another name, in place of a file that may have it.
    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a folder last.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
    /// Asks whether new files may be made in a folder, and made to last, and leaves no trace.
    fn check_writable(&self, folder: &Path) -> io::Result<()>;
    /// The user in whose name all this is done.
    fn user(&self) -> u32;
    /// Room that is left on the file system of a folder.
    fn free_bytes(&self, folder: &Path) -> io::Result<u64>;
}

/// One open file.
pub(crate) trait Handle: Debug + Send + Sync {
    fn about(&self) -> io::Result<About>;
    /// May read less than asked; 0 at the end.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;
    /// May write less than asked.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Reserves room for the first `size` bytes, and makes the file that long.
    fn allocate(&self, size: u64) -> io::Result<()>;
    fn set_mode(&self, mode: u32) -> io::Result<()>;
    /// Makes what was written last.
    fn sync(&self) -> io::Result<()>;
    /// Asks the system to begin to put this range on disk and not to wait for it; a later [`Handle::sync`] has less to
    /// do.
    fn begin_sync(&self, _offset: u64, _size: u64) {}
    /// Asks the system to forget what it keeps in memory, so that the next read is one of the disk.
    fn forget(&self) -> io::Result<()>;
    /// Takes a lock, or turns the one that is held into this one.
    fn lock(&self, lock: Lock) -> io::Result<Locked>;
    /// Gives up the lock that is held, if any, whoever else has the open file in hand.
    fn unlock(&self) {}
    /// Becomes a copy of `source` that shares its blocks.
    fn clone_from(&self, source: &dyn Handle) -> io::Result<()>;
    /// Copies up to `length` bytes from `offset` on inside the system; returns how many.
    fn copy_from(&self, source: &dyn Handle, offset: u64, length: u64) -> io::Result<u64>;
    /// A sync that fails: systems take what was not written for written, and forget it.
    #[cfg(test)]
    fn fail_to_sync(&self) {}
    /// The system's own handle, where there is one.
    fn system(&self) -> Option<&SystemFile> {
        None
    }
}

/// What is told of a path, if anything is there.
fn there<T>(told: io::Result<T>) -> io::Result<Option<T>> {
    match told {
        Ok(about) => Ok(Some(about)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// How often a call that is interrupted is made again: no real one ever needs that many.
const RETRIES: usize = 1000;

fn retried<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..RETRIES {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
    // Not of the kind that others would go on to retry for ever.
    Err(io::Error::other("the call was interrupted again and again"))
}

/// A disk to work on; clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct Files(Arc<dyn Disk>);

impl Files {
    /// The operating system's.
    pub(crate) fn real() -> Self {
        Self(Arc::new(real::RealDisk))
    }

    #[cfg(test)]
    pub(crate) fn on(disk: impl Disk + 'static) -> Self {
        Self(Arc::new(disk))
    }

    pub(crate) fn open(&self, path: &Path, access: Access) -> io::Result<File> {
        retried(|| self.0.open(path, access)).map(File)
    }

    pub(crate) fn open_folder(&self, path: &Path) -> io::Result<File> {
        retried(|| self.0.open_folder(path)).map(File)
    }

    pub(crate) fn about(&self, path: &Path) -> io::Result<About> {
        retried(|| self.0.about(path))
    }

    pub(crate) fn about_name(&self, path: &Path) -> io::Result<About> {
        retried(|| self.0.about_name(path))
    }

    /// Whether the name is taken, by whatever.
    pub(crate) fn is_taken(&self, path: &Path) -> io::Result<bool> {
        Ok(there(self.about_name(path))?.is_some())
    }

    /// Whether the name is still that of this very file.
    pub(crate) fn is_named(&self, path: &Path, file: &File) -> io::Result<bool> {
        there(self.about_name(path))?.map_or(Ok(false), |named| Ok(named.is_same_file(&file.about()?)))
    }

    /// Whether the path leads to a regular file; a symlink to nowhere does not.
    pub(crate) fn is_regular(&self, path: &Path) -> io::Result<bool> {
        Ok(there(self.about(path))?.is_some_and(|about| about.kind == Kind::File))
    }

    pub(crate) fn mount(&self, path: &Path) -> Option<u64> {
        self.0.mount(path)
    }

    pub(crate) fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        retried(|| self.0.real_path(path))
    }

    /// The names in a folder, ascending.
    pub(crate) fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        let mut names = retried(|| self.0.list(folder))?;
        names.sort();
        Ok(names)
    }

    pub(crate) fn create_folder(&self, path: &Path, audience: Audience) -> io::Result<()> {
        retried(|| self.0.create_folder(path, audience))
    }

    /// As [`File::give_mode`].
    pub(crate) fn give_folder_mode(&self, path: &Path, made: &About, wanted: u32) -> io::Result<()> {
        modes::given(made, wanted, 0o777, || retried(|| self.0.set_folder_mode(path, wanted)))
    }

    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        retried(|| self.0.remove_file(path))
    }

    pub(crate) fn remove_whole_folder(&self, path: &Path) -> io::Result<()> {
        retried(|| self.0.remove_whole_folder(path))
    }

    pub(crate) fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        retried(|| self.0.rename_new(from, to))
    }

    pub(crate) fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        retried(|| self.0.rename_over(from, to))
    }

    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        retried(|| self.0.link(from, to))
    }

    pub(crate) fn sync_folder(&self, path: &Path) -> io::Result<()> {
        retried(|| self.0.sync_folder(path))
    }

    pub(crate) fn check_writable(&self, folder: &Path) -> io::Result<()> {
        retried(|| self.0.check_writable(folder))
    }

    pub(crate) fn user(&self) -> u32 {
        self.0.user()
    }

    pub(crate) fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        retried(|| self.0.free_bytes(folder))
    }
}

/// An open file of some disk.
#[derive(Debug)]
pub(crate) struct File(Box<dyn Handle>);

impl Drop for File {
    /// A lock ends with the last handle, and a process that another thread is just starting has a copy of each: until
    /// it has become another program, it would keep the file in use.
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl From<SystemFile> for File {
    fn from(file: SystemFile) -> Self {
        Self(Box::new(file))
    }
}

impl File {
    pub(crate) fn about(&self) -> io::Result<About> {
        retried(|| self.0.about())
    }

    /// Fills `bytes` from `offset` on, or fails.
    pub(crate) fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match retried(|| self.0.read_at(&mut bytes[done..], offset + done as u64))? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                more => done += more,
            }
        }
        Ok(())
    }

    /// All bytes up to the end, but no more than `limit`.
    pub(crate) fn read_to_end(&self, limit: u64) -> io::Result<Vec<u8>> {
        const STEP_BYTES: u64 = 1 << 20;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < limit {
            let start = bytes.len();
            bytes.resize(start + STEP_BYTES.min(limit - start as u64) as usize, 0);
            let more = retried(|| self.0.read_at(&mut bytes[start..], start as u64))?;
            bytes.truncate(start + more);
            if more == 0 {
                break;
            }
        }
        Ok(bytes)
    }

    /// Writes all of `bytes` at `offset`, or fails.
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match retried(|| self.0.write_at(&bytes[done..], offset + done as u64))? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                more => done += more,
            }
        }
        Ok(())
    }

    pub(crate) fn set_size(&self, size: u64) -> io::Result<()> {
        retried(|| self.0.set_size(size))
    }

    /// Reserves room for `size` bytes where the file system can; the file is that long in any case.
    pub(crate) fn allocate(&self, size: u64) -> io::Result<()> {
        match retried(|| self.0.allocate(size)) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.set_size(size),
            outcome => outcome,
        }
    }

    /// Gives it the rights `wanted`, which it keeps from then on; `made` is what is known of it so far.
    ///
    /// A file system without rights may refuse: then those stay that it was made with, where they let nobody read or
    /// write who is to be kept out.
    pub(crate) fn give_mode(&self, made: &About, wanted: u32) -> io::Result<()> {
        modes::given(made, wanted, 0o666, || retried(|| self.0.set_mode(wanted)))
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        retried(|| self.0.sync())
    }

    /// Writes all of `bytes` at `offset` and has the system begin to put them on disk: for what a sync will wait for.
    pub(crate) fn write_and_begin_sync_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)?;
        self.0.begin_sync(offset, bytes.len() as u64);
        Ok(())
    }

    pub(crate) fn forget(&self) -> io::Result<()> {
        retried(|| self.0.forget())
    }

    pub(crate) fn lock(&self, lock: Lock) -> io::Result<Locked> {
        retried(|| self.0.lock(lock))
    }

    pub(crate) fn unlock(&self) {
        self.0.unlock();
    }

    pub(crate) fn clone_from(&self, source: &File) -> io::Result<()> {
        retried(|| self.0.clone_from(source.0.as_ref()))
    }

    pub(crate) fn copy_from(&self, source: &File, offset: u64, length: u64) -> io::Result<u64> {
        retried(|| self.0.copy_from(source.0.as_ref(), offset, length))
    }
}

/// Bytes that go to a file one after the other.
#[derive(Debug)]
pub(crate) struct Sink<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> Sink<'a> {
    /// Begins at the file's start.
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
