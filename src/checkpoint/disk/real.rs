//! The operating system's files.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{About, Access, Audience, Disk, Handle, Kind, Lock, Locked, PAGE_BYTES, access_list};

/// The bits of a mode that concern rights.
const MODE_BITS: u32 = 0o7777;

/// The operating system.
#[derive(Debug)]
pub(super) struct RealDisk;

impl About {
    fn with(metadata: Metadata, listed: Option<u32>) -> Self {
        let kind = metadata.file_type();
        let kind = if kind.is_file() {
            Kind::File
        } else if kind.is_dir() {
            Kind::Folder
        } else if kind.is_symlink() {
            Kind::Symlink
        } else {
            Kind::Other
        };
        Self {
            kind,
            size_bytes: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            links: metadata.nlink(),
            created_ns: metadata.created().ok().and_then(nanoseconds),
            mode: metadata.mode() & MODE_BITS,
            owner: metadata.uid(),
            group: metadata.gid(),
            listed,
        }
    }
}

fn nanoseconds(time: SystemTime) -> Option<u64> {
    u64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn Handle>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match access {
            Access::Read => {}
            Access::ReadWrite => _ = options.write(true).custom_flags(OFlags::NOFOLLOW.bits() as i32),
            Access::CreateNew(audience) => {
                let mode = if audience == Audience::Owner { 0o600 } else { 0o666 };
                options.write(true).create_new(true).mode(mode);
            }
            Access::Direct => return Ok(Box::new(open_direct(path)?)),
        }
        Ok(Box::new(options.open(path)?))
    }

    fn open_folder(&self, path: &Path) -> io::Result<Box<dyn Handle>> {
        Ok(Box::new(File::open(path)?))
    }

    fn about(&self, path: &Path) -> io::Result<About> {
        Ok(About::with(fs::metadata(path)?, access_list::of(path)))
    }

    fn about_name(&self, path: &Path) -> io::Result<About> {
        Ok(About::with(fs::symlink_metadata(path)?, access_list::of_name(path)))
    }

    fn mount(&self, path: &Path) -> Option<u64> {
        mount(path)
    }

    fn real_path(&self, path: &Path) -> io::Result<PathBuf> {
        fs::canonicalize(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    }

    fn create_folder(&self, path: &Path, audience: Audience) -> io::Result<()> {
        let mode = if audience == Audience::Owner { 0o700 } else { 0o777 };
        fs::DirBuilder::new().mode(mode).create(path)
    }

    fn set_folder_mode(&self, path: &Path, mode: u32) -> io::Result<()> {
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_whole_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // A file system without this flag: asking first is the best there is.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => match fs::symlink_metadata(to) {
                Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
                Err(_) => fs::rename(from, to),
            },
            outcome => Ok(outcome?),
        }
    }

    fn rename_over(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        match File::open(path)?.sync_all() {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NOSYS)) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "this file system cannot sync folders"))
            }
            outcome => outcome,
        }
    }

    fn check_writable(&self, folder: &Path) -> io::Result<()> {
        // What gets a name there lasts once the folder is synced, which not every file system can do.
        self.sync_folder(folder)?;
        // An unnamed file is the surest question about permissions, quotas and read-only mounts.
        tempfile::tempfile_in(folder).map(drop)
    }

    fn user(&self) -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn free_bytes(&self, folder: &Path) -> io::Result<u64> {
        let about = rustix::fs::statvfs(folder)?;
        Ok(about.f_bavail.saturating_mul(about.f_frsize))
    }
}

impl Handle for File {
    fn about(&self) -> io::Result<About> {
        Ok(About::with(self.metadata()?, access_list::of_file(self)))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        allocate(self, size)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.set_permissions(Permissions::from_mode(mode))
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn begin_sync(&self, offset: u64, size: u64) {
        begin_sync(self, offset, size);
    }

    fn forget(&self) -> io::Result<()> {
        forget(self)
    }

    fn unlock(&self) {
        _ = rustix::fs::flock(self, FlockOperation::Unlock);
    }

    fn lock(&self, lock: Lock) -> io::Result<Locked> {
        let operation = match lock {
            Lock::Shared => FlockOperation::NonBlockingLockShared,
            Lock::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(self, operation) {
            Ok(()) => Ok(Locked::Held),
            Err(Errno::WOULDBLOCK) => Ok(Locked::Busy),
            // A network file system wants write access for an exclusive lock, or knows none at all.
            Err(Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL | Errno::BADF) => {
                Ok(Locked::Unsupported)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn clone_from(&self, source: &dyn Handle) -> io::Result<()> {
        clone_contents(source.system().ok_or(io::ErrorKind::Unsupported)?, self)
    }

    fn copy_from(&self, source: &dyn Handle, offset: u64, length: u64) -> io::Result<u64> {
        copy_inside_the_system(source.system().ok_or(io::ErrorKind::Unsupported)?, self, offset, length)
    }

    fn system(&self) -> Option<&File> {
        Some(self)
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn mount(path: &Path) -> Option<u64> {
    use rustix::fs::{AtFlags, StatxFlags};
    let about = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    // Before version 5.8, Linux leaves it out.
    (about.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(about.stx_mnt_id)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn mount(_: &Path) -> Option<u64> {
    None
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn allocate(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return file.set_len(0);
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Err(Errno::NOTSUP | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
        outcome => Ok(outcome?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn allocate(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// File systems on disks of this machine that write from where the bytes are. Others copy them, or ask a server that
/// could do better.
#[cfg(any(target_os = "linux", target_os = "android"))]
const DIRECT_FILE_SYSTEMS: [u64; 2] = [0xef53 /* ext4 */, 0x5846_5342 /* XFS */];

#[cfg(any(target_os = "linux", target_os = "android"))]
fn open_direct(path: &Path) -> io::Result<File> {
    // With larger pages, what is written directly and what is written the common way could share one.
    if rustix::param::page_size() > PAGE_BYTES {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let flags = OFlags::DIRECT | OFlags::NOFOLLOW;
    let file = OpenOptions::new().write(true).custom_flags(flags.bits() as i32).open(path)?;
    let kind = rustix::fs::fstatfs(&file)?.f_type;
    if DIRECT_FILE_SYSTEMS.iter().any(|known| i128::from(*known) == i128::from(kind)) {
        return Ok(file);
    }
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn open_direct(_: &Path) -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Linux begins to write what it is told to forget, and does not forget it before that is done.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn begin_sync(file: &File, offset: u64, size: u64) {
    let Some(size) = std::num::NonZeroU64::new(size) else { return };
    _ = rustix::fs::fadvise(file, offset, Some(size), rustix::fs::Advice::DontNeed);
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn begin_sync(_: &File, _: u64, _: u64) {}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn forget(file: &File) -> io::Result<()> {
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn forget(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn clone_contents(source: &File, target: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(target, source)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn clone_contents(_: &File, _: &File) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn copy_inside_the_system(source: &File, target: &File, offset: u64, length: u64) -> io::Result<u64> {
    let (mut from, mut to) = (offset, offset);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Ok(rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length)? as u64)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn copy_inside_the_system(_: &File, _: &File, _: u64, _: u64) -> io::Result<u64> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::super::{File, Lock, Locked, SystemFile};

    #[test]
    fn a_lock_ends_with_its_file_whoever_has_a_copy_of_the_handle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let opened = SystemFile::create(&path).unwrap();
        // As a process has one that was started by another thread just now.
        let _copy = opened.try_clone().unwrap();
        let file = File::from(opened);
        assert_eq!(file.lock(Lock::Exclusive).unwrap(), Locked::Held);
        let other = File::from(SystemFile::open(&path).unwrap());
        assert_eq!(other.lock(Lock::Shared).unwrap(), Locked::Busy);
        drop(file);
        assert_eq!(other.lock(Lock::Shared).unwrap(), Locked::Held);
    }
}
