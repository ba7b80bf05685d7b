//! Files that only help: logs of work done and results kept for later, which can be made again and are never believed
//! unread.
//!
//! ```text
//! file = record*      record = payload size (u64, little-endian) || payload || BLAKE3 of size and payload
//! ```
//!
//! The first record says what the others were made from. A record that is cut short or does not match its digest
//! ends the file: what stands before it is used, what follows is forgotten.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::create::written_beside;
use super::disk::Files;
use super::folder_of;
use super::{Action, CheckpointError};

const SIZE_FIELD_BYTES: u64 = 8;
const DIGEST_BYTES: u64 = 32;

/// A log that one process appends to; each record is on disk before [`RecordLog::append`] returns.
#[derive(Debug)]
pub(crate) struct RecordLog {
    path: PathBuf,
    file: File,
}

impl Drop for RecordLog {
    /// Whatever another thread is just starting has a copy of the handle until it has become another program, and a
    /// lock that is not given up ends with the last.
    fn drop(&mut self) {
        _ = self.file.unlock();
    }
}

impl RecordLog {
    /// Opens the log at `path`, making it where there is none, and hands the payloads of its sound records to `read`.
    ///
    /// A log that begins with another `origin`, or is damaged there, is begun anew. `None` means that another process
    /// holds the log.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn open(
        path: &Path,
        origin: &[u8],
        mut read: impl FnMut(Vec<u8>),
    ) -> Result<Option<Self>, CheckpointError> {
        let failed = |action| CheckpointError::io(path, action);
        let file = loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let file = file.map_err(failed(Action::Open))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(failed(Action::Lock)(error)),
            }
            // Whoever held it may have removed it meanwhile: what was written to it would be lost with it.
            if has_name(&file, path).map_err(failed(Action::Examine))? {
                break file;
            }
        };
        let mut records = Records::over(&file).map_err(failed(Action::Read))?;
        let known = records.next().map_err(failed(Action::Read))?.is_some_and(|first| first == origin);
        let mut end = 0;
        if known {
            end = records.position;
            while let Some(payload) = records.next().map_err(failed(Action::Read))? {
                end = records.position;
                read(payload);
            }
        }
        file.set_len(end).map_err(failed(Action::Cut))?;
        let mut log = Self { path: path.to_owned(), file };
        log.file.seek(SeekFrom::Start(end)).map_err(failed(Action::Read))?;
        if !known {
            log.append(origin)?;
            Files::real().sync_folder(folder_of(path)).map_err(failed(Action::SyncFolder))?;
        }
        Ok(Some(log))
    }

    /// Adds a record and waits until it is on disk.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn append(&mut self, payload: &[u8]) -> Result<(), CheckpointError> {
        let mut record = Vec::with_capacity(payload.len() + (SIZE_FIELD_BYTES + DIGEST_BYTES) as usize);
        write_record(&mut record, payload)
            .and_then(|()| self.file.write_all(&record))
            .map_err(CheckpointError::io(&self.path, Action::Write))?;
        self.file.sync_data().map_err(CheckpointError::io(&self.path, Action::Sync))
    }

    /// Removes the log: what it helped with is done.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn remove(self) -> Result<(), CheckpointError> {
        std::fs::remove_file(&self.path).map_err(CheckpointError::io(&self.path, Action::Remove))
    }
}

/// Whether `path` is still the name of `file`.
fn has_name(file: &File, path: &Path) -> std::io::Result<bool> {
    let here = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (here.dev(), here.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes a whole file of records, `origin` first, replacing what stands there in one step.
///
/// `payloads(sink)` calls the sink once for each record.
///
/// # Errors
/// [`CheckpointError::Io`].
pub(crate) fn write_records(
    path: &Path,
    origin: &[u8],
    payloads: impl FnOnce(&mut dyn FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()>,
) -> Result<(), CheckpointError> {
    let temporary = written_beside(&Files::real(), path, |sink| {
        write_record(sink, origin)?;
        payloads(&mut |payload| write_record(sink, payload))
    })?;
    temporary.place_over(path)
}

/// Hands the sound records of a file that begins with `origin` to `read`; whether there was such a file.
///
/// # Errors
/// [`CheckpointError::Io`]; a file that is not there is no error.
pub(crate) fn read_records(
    path: &Path,
    origin: &[u8],
    mut read: impl FnMut(Vec<u8>),
) -> Result<bool, CheckpointError> {
    let failed = |action| CheckpointError::io(path, action);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(Action::Open)(error)),
    };
    let mut records = Records::over(&file).map_err(failed(Action::Read))?;
    if records.next().map_err(failed(Action::Read))?.is_none_or(|first| first != origin) {
        return Ok(false);
    }
    while let Some(payload) = records.next().map_err(failed(Action::Read))? {
        read(payload);
    }
    Ok(true)
}

/// Removes the files of `folder` that end in `ending`, oldest first, until those left take `limit` bytes at most;
/// `kept` stays whatever its age, and so does a log that a process holds. A file that cannot be removed is left.
pub(crate) fn limit_folder(folder: &Path, ending: &str, limit_bytes: u64, kept: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let described = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let about = std::fs::metadata(&path).ok()?;
        let ours = about.is_file() && path.extension().is_some_and(|found| found == ending);
        ours.then(|| (about.modified().unwrap_or(SystemTime::UNIX_EPOCH), path, about.len()))
    });
    let mut files: Vec<_> = described.collect();
    files.sort();
    let mut total: u64 = files.iter().map(|(_, _, size)| size).sum();
    for (_, path, size) in files {
        if total <= limit_bytes {
            return;
        }
        if path == kept {
            continue;
        }
        // Locked until it is gone, so that nobody takes it for a log of theirs meanwhile.
        let file = File::open(&path);
        let is_held =
            file.as_ref().is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        if !is_held && std::fs::remove_file(&path).is_ok() {
            total -= size;
        }
    }
}

/// Marks a file as used now, for [`limit_folder`]; where that is not allowed, its age stays.
pub(crate) fn touch(path: &Path) {
    if let Ok(file) = OpenOptions::new().append(true).open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn write_record(sink: &mut (impl Write + ?Sized), payload: &[u8]) -> std::io::Result<()> {
    let size = (payload.len() as u64).to_le_bytes();
    sink.write_all(&size)?;
    sink.write_all(payload)?;
    sink.write_all(record_digest(&size, payload).as_bytes())
}

fn record_digest(size: &[u8], payload: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(size).update(payload).finalize()
}

/// The records of a file, up to the first that is not whole.
struct Records<'a> {
    reader: BufReader<&'a File>,
    /// Where the last record read ends.
    position: u64,
    file_size_bytes: u64,
}

impl<'a> Records<'a> {
    fn over(file: &'a File) -> std::io::Result<Self> {
        let file_size_bytes = file.metadata()?.len();
        Ok(Self { reader: BufReader::with_capacity(1 << 20, file), position: 0, file_size_bytes })
    }

    fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let left = self.file_size_bytes.saturating_sub(self.position);
        if left < SIZE_FIELD_BYTES + DIGEST_BYTES {
            return Ok(None);
        }
        let mut size = [0; SIZE_FIELD_BYTES as usize];
        self.reader.read_exact(&mut size)?;
        let payload_size_bytes = u64::from_le_bytes(size);
        // The size is only believed as far as the file reaches.
        if payload_size_bytes > left - SIZE_FIELD_BYTES - DIGEST_BYTES {
            return Ok(None);
        }
        let mut payload = vec![0; payload_size_bytes as usize];
        let mut digest = [0; DIGEST_BYTES as usize];
        self.reader.read_exact(&mut payload)?;
        self.reader.read_exact(&mut digest)?;
        if *record_digest(&size, &payload).as_bytes() != digest {
            return Ok(None);
        }
        self.position += SIZE_FIELD_BYTES + payload_size_bytes + DIGEST_BYTES;
        Ok(Some(payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(path: &Path, origin: &[u8]) -> (RecordLog, Vec<Vec<u8>>) {
        let mut found = Vec::new();
        let log = RecordLog::open(path, origin, |payload| found.push(payload)).expect("a log");
        (log.expect("nobody else holds it"), found)
    }

    #[test]
    fn a_log_cut_anywhere_gives_the_records_that_are_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("work.log");
        let payloads = [vec![1; 5], vec![], vec![3; 70]];
        let (mut log, found) = opened(&path, b"origin");
        assert!(found.is_empty());
        payloads.iter().for_each(|payload| log.append(payload).expect("written"));
        drop(log);
        let whole = std::fs::read(&path).expect("the log");
        let ends: Vec<usize> = payloads
            .iter()
            .scan(46, |end, payload| {
                *end += payload.len() + 40;
                Some(*end)
            })
            .collect();
        assert_eq!(ends.last(), Some(&whole.len()));
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("written");
            let expected = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(opened(&path, b"origin").1, payloads[..expected], "cut at {cut}");
            // What was left is sound, and can be gone on with.
            let (mut log, _) = opened(&path, b"origin");
            log.append(b"more").expect("written");
            drop(log);
            assert_eq!(opened(&path, b"origin").1.len(), expected + 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_log_is_free_when_it_is_closed_whoever_has_a_copy_of_its_handle() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("work.log");
        let (log, _) = opened(&path, b"origin");
        let _copy = log.file.try_clone().expect("a copy");
        assert!(RecordLog::open(&path, b"origin", drop).expect("readable").is_none(), "it is in use");
        drop(log);
        assert!(RecordLog::open(&path, b"origin", drop).expect("readable").is_some());
    }

    #[test]
    fn a_flipped_bit_anywhere_is_never_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("work.log");
        let payloads = [b"one".to_vec(), b"two".to_vec()];
        write_records(&path, b"origin", |sink| payloads.iter().try_for_each(|payload| sink(payload)))
            .expect("written");
        let whole = std::fs::read(&path).expect("the file");
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, damaged).expect("written");
            let mut found = Vec::new();
            read_records(&path, b"origin", |payload| found.push(payload)).expect("readable");
            assert!(found.len() < 2 && payloads.starts_with(&found), "bit of byte {at}: {found:?}");
        }
    }

    #[test]
    fn a_log_of_other_origin_is_begun_anew_and_one_in_use_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("work.log");
        let (mut log, _) = opened(&path, b"origin");
        log.append(b"payload").expect("written");
        let second = RecordLog::open(&path, b"origin", |_| ()).expect("readable");
        assert!(second.is_none(), "two processes hold one log");
        drop(log);
        assert_eq!(opened(&path, b"another").1, Vec::<Vec<u8>>::new());
        assert_eq!(opened(&path, b"another").1, Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_folder_over_its_limit_loses_its_oldest_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for (age, name) in ["old.log", "kept.log", "new.log", "other.txt"].iter().enumerate() {
            std::fs::write(path(name), [0; 10]).expect("written");
            let file = OpenOptions::new().append(true).open(path(name)).expect("there");
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + age as u64);
            file.set_modified(time).expect("an age");
        }
        limit_folder(folder.path(), "log", 20, &path("kept.log"));
        assert!(!path("old.log").exists() && path("kept.log").exists() && path("new.log").exists());
        limit_folder(folder.path(), "log", 5, &path("kept.log"));
        assert!(path("kept.log").exists() && !path("new.log").exists() && path("other.txt").exists());
        let (held, _) = opened(&path("held.log"), b"origin");
        limit_folder(folder.path(), "log", 0, &path("kept.log"));
        assert!(has_name(&held.file, &path("held.log")).expect("readable"), "it is in use");
        drop(held);
        limit_folder(folder.path(), "log", 0, &path("kept.log"));
        assert!(!path("held.log").exists());
    }
}
