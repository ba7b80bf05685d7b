//! The copy that becomes the output.
//!
//! ```text
//! temporary beside the target  ->  base copied into it  ->  touched extents written  ->  fsync
//!     ->  rename, replacing nothing  ->  fsync of the folder
//! ```
//!
//! Whatever happens before the rename leaves the target absent: the temporary goes when [`Output`] is dropped.
//! It lies in the target's own folder, because only there is a rename one step. The base is copied from the
//! handles that were hashed, by reflink where the file system can.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata, Permissions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;
use tempfile::{NamedTempFile, TempDir};

use super::{Checkpoint, CheckpointError, Layout, TensorInfo};

/// How temporaries begin, so that people know what a killed process left behind.
const TEMPORARY_PREFIX: &str = ".mpatch-";
/// How much is copied at once, where the system cannot copy by itself.
const COPY_BLOCK_BYTES: u64 = 4 << 20;
/// The bits of a mode that are kept: never set-user-id and its like.
const MODE_BITS: u32 = 0o777;
/// Endings of files that hold weights in another form: unedited, they would lie in an edited model's folder.
const OTHER_WEIGHTS: [&str; 10] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "gguf", "onnx", "ot"];

/// Refuses a target that exists, or whose folder cannot be written: asked before any work is done.
///
/// # Errors
/// [`CheckpointError::OutputExists`], [`CheckpointError::Output`] or [`CheckpointError::Io`].
pub fn check_output(checkpoint: &Checkpoint, target: &Path) -> Result<(), CheckpointError> {
    if std::fs::symlink_metadata(target).is_ok() {
        return Err(CheckpointError::OutputExists { path: target.to_owned() });
    }
    let refuse =
        |reason: &str| CheckpointError::Output { path: target.to_owned(), reason: reason.to_owned() };
    if target.file_name().is_none() {
        return Err(refuse("it is not a name for a new file or folder"));
    }
    let looks_like_file =
        target.extension().is_some_and(|extension| extension == "safetensors" || extension == "json");
    if checkpoint.layout() == Layout::Folder && looks_like_file {
        return Err(refuse("the base has several files, so the output is a folder"));
    }
    let folder = folder_of(target);
    // An unnamed file is the surest question about permissions, quotas and read-only mounts, and leaves no trace.
    tempfile::tempfile_in(folder).map_err(CheckpointError::io(folder, "write to"))?;
    Ok(())
}

/// A copy of a checkpoint in the making; dropped before [`Output::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Output<'a> {
    checkpoint: &'a Checkpoint,
    target: PathBuf,
    // Open handles on the copies of the touched files, by index into the checkpoint's files.
    copies: BTreeMap<usize, FileCopy>,
    left_out: Vec<String>,
    // Last, so that the handles close before it is removed.
    temporary: Temporary,
}

#[derive(Debug)]
enum Temporary {
    File(NamedTempFile),
    Folder(TempDir),
}

#[derive(Debug)]
struct FileCopy {
    path: PathBuf,
    file: File,
}

/// A finished output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Where it lies.
    pub path: PathBuf,
    /// Files of the base's folder that were not taken along: weights in other forms, which nobody edited.
    pub left_out: Vec<String>,
}

impl<'a> Output<'a> {
    /// Copies the base to a temporary beside `target`, ready for the tensors of `touched` to be written.
    ///
    /// Untouched shards are linked. `progress` is told the bytes of touched files as they are copied.
    ///
    /// # Errors
    /// As [`check_output`], and whatever goes wrong with copying.
    pub fn create<'t>(
        checkpoint: &'a Checkpoint,
        target: &Path,
        touched: impl IntoIterator<Item = &'t TensorInfo>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, CheckpointError> {
        check_output(checkpoint, target)?;
        let touched: BTreeSet<usize> = touched.into_iter().map(|tensor| tensor.file_index).collect();
        let folder = folder_of(target);
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        let temporary = match checkpoint.layout() {
            Layout::File => builder.tempfile_in(folder).map(Temporary::File),
            Layout::Folder => builder.tempdir_in(folder).map(Temporary::Folder),
        };
        let temporary = temporary.map_err(CheckpointError::io(folder, "write to"))?;
        let (copies, left_out) = (BTreeMap::new(), Vec::new());
        let mut output = Self { checkpoint, target: target.to_owned(), copies, left_out, temporary };
        output.fill(&touched, progress).map_err(|error| output.by_its_name(error))?;
        Ok(output)
    }

    /// Bytes that [`Output::create`] copies for these tensors: the sizes of the files they lie in.
    pub fn copy_size_bytes<'t>(
        checkpoint: &Checkpoint,
        touched: impl IntoIterator<Item = &'t TensorInfo>,
    ) -> u64 {
        let files: BTreeSet<usize> = touched.into_iter().map(|tensor| tensor.file_index).collect();
        files.into_iter().map(|index| checkpoint.files()[index].size_bytes()).sum()
    }

    fn fill(
        &mut self,
        touched: &BTreeSet<usize>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), CheckpointError> {
        match &self.temporary {
            Temporary::File(file) => {
                let path = file.path().to_owned();
                let file = file.as_file().try_clone().map_err(CheckpointError::io(&path, "open"))?;
                let source = &self.checkpoint.files()[0];
                copy_contents(&source.file, &source.path, source.size_bytes, &file, &path, progress)?;
                self.copies.insert(0, FileCopy { path, file });
            }
            Temporary::Folder(folder) => {
                let folder = folder.path();
                self.copies = fill_with_shards(self.checkpoint, touched, folder, progress)?;
                self.left_out = fill_with_companions(self.checkpoint, folder)?;
            }
        }
        Ok(())
    }

    /// An error of the temporary as one of the output: its user asked for that, and never saw the other.
    fn by_its_name(&self, error: CheckpointError) -> CheckpointError {
        let temporary = match &self.temporary {
            Temporary::File(file) => file.path(),
            Temporary::Folder(folder) => folder.path(),
        };
        match error {
            CheckpointError::Io { path, action, source } if path.starts_with(temporary) => {
                CheckpointError::Io { path: self.target.clone(), action, source }
            }
            error => error,
        }
    }

    /// Writes `bytes` into the copy, at `offset` within the tensor.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Output`] for bytes outside the touched tensors.
    pub fn write_at(&self, tensor: &TensorInfo, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let inside = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= tensor.size_bytes);
        match self.copies.get(&tensor.file_index) {
            Some(copy) if inside => copy
                .file
                .write_all_at(bytes, tensor.offset + offset)
                .map_err(CheckpointError::io(&copy.path, "write"))
                .map_err(|error| self.by_its_name(error)),
            _ => Err(CheckpointError::Output {
                path: self.target.clone(),
                reason: format!("tensor `{}` was not to be written there", tensor.name),
            }),
        }
    }

    /// Makes the copy last and gives it its name.
    ///
    /// # Errors
    /// [`CheckpointError::OutputExists`] if the name was taken meanwhile, else [`CheckpointError::Io`].
    pub fn commit(self) -> Result<Committed, CheckpointError> {
        for (file_index, copy) in &self.copies {
            let mode = mode_of(&self.checkpoint.files()[*file_index])?;
            let moded =
                copy.file.set_permissions(mode).map_err(CheckpointError::io(&copy.path, "set the mode of"));
            moded.and_then(|()| sync(&copy.file, &copy.path)).map_err(|error| self.by_its_name(error))?;
        }
        let target = self.target;
        match self.temporary {
            Temporary::File(file) => commit_file(file, &target)?,
            Temporary::Folder(folder) => commit_folder(folder, self.checkpoint.folder(), &target)?,
        }
        // Without this a power cut could take the new name away again.
        sync_folder(folder_of(&target))?;
        Ok(Committed { path: target, left_out: self.left_out })
    }
}

/// The folder that a path lies in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn mode_of(file: &super::CheckpointFile) -> Result<Permissions, CheckpointError> {
    let metadata = file.file.metadata().map_err(CheckpointError::io(&file.path, "examine"))?;
    Ok(Permissions::from_mode(metadata.mode() & MODE_BITS))
}

fn sync(file: &File, path: &Path) -> Result<(), CheckpointError> {
    file.sync_all().map_err(CheckpointError::io(path, "sync"))
}

fn sync_folder(path: &Path) -> Result<(), CheckpointError> {
    sync(&File::open(path).map_err(CheckpointError::io(path, "open"))?, path)
}

fn commit_file(temporary: NamedTempFile, target: &Path) -> Result<(), CheckpointError> {
    match temporary.persist_noclobber(target) {
        Ok(_) => Ok(()),
        Err(failure) => Err(name_error(target, failure.error)),
    }
}

fn commit_folder(temporary: TempDir, base: &Path, target: &Path) -> Result<(), CheckpointError> {
    let path = temporary.path();
    let mode = std::fs::metadata(base).map_err(CheckpointError::io(base, "examine"))?.mode() & MODE_BITS;
    // The owner keeps his rights: without them neither the sync nor a later removal would work.
    let permissions = Permissions::from_mode(mode | 0o700);
    std::fs::set_permissions(path, permissions).map_err(CheckpointError::io(path, "set the mode of"))?;
    sync_folder(path)?;
    match rustix::fs::renameat_with(CWD, path, CWD, target, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // A file system without this flag: a plain rename replaces a folder only if that is empty.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) if std::fs::symlink_metadata(target).is_err() => {
            std::fs::rename(path, target).map_err(|error| name_error(target, error))?;
        }
        Err(error) => return Err(name_error(target, error.into())),
    }
    // It has another name now, there is nothing left to remove.
    _ = temporary.keep();
    Ok(())
}

fn name_error(target: &Path, error: std::io::Error) -> CheckpointError {
    match error.kind() {
        std::io::ErrorKind::AlreadyExists => CheckpointError::OutputExists { path: target.to_owned() },
        _ => CheckpointError::io(target, "create")(error),
    }
}

/// Touched shards as copies, open for writing; the others as links.
fn fill_with_shards(
    checkpoint: &Checkpoint,
    touched: &BTreeSet<usize>,
    folder: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<BTreeMap<usize, FileCopy>, CheckpointError> {
    let mut copies = BTreeMap::new();
    for (file_index, source) in checkpoint.files().iter().enumerate() {
        let path = folder.join(source.path.file_name().unwrap_or_default());
        if !touched.contains(&file_index) && link(&source.file, &source.path, &path) {
            continue;
        }
        let file = create_new(&path)?;
        // Only touched files count: the others are linked nearly always.
        let progress: &(dyn Fn(u64) + Sync) = if touched.contains(&file_index) { progress } else { &|_| () };
        copy_contents(&source.file, &source.path, source.size_bytes, &file, &path, progress)?;
        copies.insert(file_index, FileCopy { path, file });
    }
    Ok(copies)
}

/// Links the very file that was opened; false where that is not possible.
fn link(source: &File, source_path: &Path, path: &Path) -> bool {
    // A link to a symlink would be a second symlink, with a relative target that no longer fits.
    let linked = std::fs::canonicalize(source_path).and_then(|real| std::fs::hard_link(real, path));
    if linked.is_err() {
        return false;
    }
    let same = |left: &Metadata, right: &Metadata| (left.dev(), left.ino()) == (right.dev(), right.ino());
    match (source.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(opened), Ok(named)) if same(&opened, &named) => true,
        // The name meant another file by now.
        _ => {
            _ = std::fs::remove_file(path);
            false
        }
    }
}

/// Copies the files that lie beside the weights; returns the names of those left out.
fn fill_with_companions(checkpoint: &Checkpoint, folder: &Path) -> Result<Vec<String>, CheckpointError> {
    let base = checkpoint.folder();
    let mut left_out = Vec::new();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(base).map_err(CheckpointError::io(base, "list"))? {
        names.push(entry.map_err(CheckpointError::io(base, "list"))?.file_name());
    }
    names.sort();
    for name in names {
        let (source, target) = (base.join(&name), folder.join(&name));
        let is_shard = checkpoint.files().iter().any(|file| file.path.file_name() == Some(&name));
        let is_file = std::fs::metadata(&source).is_ok_and(|about| about.is_file());
        if is_shard || !is_file {
            continue;
        }
        if holds_other_weights(&source) {
            left_out.push(name.to_string_lossy().into_owned());
        } else {
            copy_companion(&source, &target)?;
        }
    }
    Ok(left_out)
}

fn holds_other_weights(path: &Path) -> bool {
    path.extension().is_some_and(|extension| OTHER_WEIGHTS.iter().any(|other| extension == *other))
}

fn copy_companion(source: &Path, target: &Path) -> Result<(), CheckpointError> {
    let opened = File::open(source).map_err(CheckpointError::io(source, "open"))?;
    let about = opened.metadata().map_err(CheckpointError::io(source, "examine"))?;
    let file = create_new(target)?;
    copy_contents(&opened, source, about.len(), &file, target, &|_| ())?;
    let mode = Permissions::from_mode(about.mode() & MODE_BITS);
    file.set_permissions(mode).map_err(CheckpointError::io(target, "set the mode of"))?;
    sync(&file, target)
}

fn create_new(path: &Path) -> Result<File, CheckpointError> {
    let mut options = File::options();
    options.read(true).write(true).create_new(true).open(path).map_err(CheckpointError::io(path, "create"))
}

/// Copies exactly `size` bytes from the start of `source`, without moving any file's position.
fn copy_contents(
    source: &File,
    source_path: &Path,
    size: u64,
    target: &File,
    target_path: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), CheckpointError> {
    if clone_contents(source, size, target) {
        progress(size);
        return Ok(());
    }
    target.set_len(0).map_err(CheckpointError::io(target_path, "write"))?;
    let offset = copy_inside_the_system(source, size, target, progress);
    copy_by_hand(source, source_path, offset..size, target, target_path, progress)
}

fn copy_by_hand(
    source: &File,
    source_path: &Path,
    range: Range<u64>,
    target: &File,
    target_path: &Path,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), CheckpointError> {
    let Range { start: mut offset, end: size } = range;
    let mut block = vec![0; (size - offset).min(COPY_BLOCK_BYTES) as usize];
    while offset < size {
        let length = COPY_BLOCK_BYTES.min(size - offset);
        let bytes = &mut block[..length as usize];
        source.read_exact_at(bytes, offset).map_err(CheckpointError::io(source_path, "read"))?;
        target.write_all_at(bytes, offset).map_err(CheckpointError::io(target_path, "write"))?;
        offset += length;
        progress(length);
    }
    Ok(())
}

/// Shares the source's blocks where the file system can; false where the copy must be made by hand.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn clone_contents(source: &File, size: u64, target: &File) -> bool {
    if rustix::fs::ioctl_ficlone(target, source).is_err() {
        return false;
    }
    // A source that changed its size since its header was read is for the reading and writing to notice.
    target.metadata().is_ok_and(|about| about.len() == size)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn clone_contents(_: &File, _: u64, _: &File) -> bool {
    false
}

/// Lets the system copy without passing the bytes through this process; returns how far it came.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn copy_inside_the_system(source: &File, size: u64, target: &File, progress: &(dyn Fn(u64) + Sync)) -> u64 {
    const STEP_BYTES: u64 = 256 << 20;
    let (mut from, mut to) = (0, 0);
    while from < size {
        let length = STEP_BYTES.min(size - from) as usize;
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(copied) if copied > 0 => progress(copied as u64),
            // Not supported here, or a fault that reading and writing will meet and name.
            _ => break,
        }
    }
    from
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn copy_inside_the_system(_: &File, _: u64, _: &File, _: &(dyn Fn(u64) + Sync)) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::{file_bytes, sharded, write};

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn none(_: u64) {}

    #[test]
    fn the_copy_appears_whole_and_with_the_mode_of_the_base() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = file_bytes(&[("a", &[1.0]), ("b", &[2.0, 3.0])]);
        let path = write(&folder, "base.safetensors", &bytes);
        std::fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let tensor = checkpoint.tensor("b").unwrap();
        let target = folder.path().join("edited.safetensors");
        let output = Output::create(&checkpoint, &target, [tensor], &none).unwrap();
        output.write_at(tensor, 4, &9.0_f32.to_le_bytes()).unwrap();
        assert!(output.write_at(tensor, 5, &[0; 4]).is_err(), "beyond the tensor's end");
        assert!(!target.exists());
        let committed = output.commit().unwrap();
        assert_eq!(committed, Committed { path: target.clone(), left_out: vec![] });
        let found = std::fs::read(&target).unwrap();
        assert_eq!(found[..found.len() - 4], bytes[..bytes.len() - 4]);
        assert_eq!(found[found.len() - 4..], 9.0_f32.to_le_bytes());
        assert_eq!(std::fs::metadata(&target).unwrap().mode() & 0o7777, 0o440);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        assert_eq!(names(folder.path()), ["base.safetensors", "edited.safetensors"]);
    }

    #[test]
    fn an_output_given_up_leaves_nothing_behind() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        let outside = tempfile::tempdir().unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let touched = [checkpoint.tensor("a").unwrap()];
        drop(Output::create(&checkpoint, &outside.path().join("x"), touched, &none).unwrap());
        let single = Checkpoint::open(folder.path().join("one.safetensors")).unwrap();
        drop(Output::create(&single, &outside.path().join("x"), single.tensors(), &none).unwrap());
        assert!(names(outside.path()).is_empty());
    }

    #[test]
    fn a_target_that_exists_is_refused_before_and_after_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(&folder, "base.safetensors", file_bytes(&[("a", &[1.0])]));
        let checkpoint = Checkpoint::open(&path).unwrap();
        let target = folder.path().join("out");
        let output = Output::create(&checkpoint, &target, checkpoint.tensors(), &none).unwrap();
        std::os::unix::fs::symlink("nowhere", &target).unwrap();
        let expected = format!("`{}` exists already and is not replaced", target.display());
        assert_eq!(check_output(&checkpoint, &target).unwrap_err().to_string(), expected);
        assert_eq!(output.commit().unwrap_err().to_string(), expected);
        assert_eq!(std::fs::read_link(&target).unwrap(), Path::new("nowhere"));
        assert_eq!(names(folder.path()), ["base.safetensors", "out"]);
    }

    #[test]
    fn a_folder_takes_links_copies_and_companions() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        write(&folder, "config.json", "{}");
        write(&folder, "pytorch_model.bin", "unedited");
        std::fs::create_dir(folder.path().join("onnx")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("edited");
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let tensor = checkpoint.tensor("a").unwrap();
        let output = Output::create(&checkpoint, &target, [tensor], &none).unwrap();
        output.write_at(tensor, 0, &[0; 4]).unwrap();
        assert_eq!(output.commit().unwrap().left_out, ["pytorch_model.bin"]);
        let expected = ["config.json", "model.safetensors.index.json", "one.safetensors", "two.safetensors"];
        assert_eq!(names(&target), expected);
        let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
        let same = |name: &str| inode(target.join(name)) == inode(folder.path().join(name));
        assert_eq!(expected.map(same), [false, false, true, false]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & MODE_BITS;
        assert_eq!(mode(&target), mode(folder.path()));
    }

    #[test]
    fn a_cache_of_symlinks_is_read_through_and_not_written_through() {
        let blobs = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        let outside = tempfile::tempdir().unwrap();
        let snapshot = outside.path().join("snapshot");
        std::fs::create_dir(&snapshot).unwrap();
        for name in names(blobs.path()) {
            std::os::unix::fs::symlink(blobs.path().join(&name), snapshot.join(&name)).unwrap();
        }
        let checkpoint = Checkpoint::open(&snapshot).unwrap();
        let before = checkpoint.weights_id().unwrap();
        let tensor = checkpoint.tensor("a").unwrap();
        let target = outside.path().join("edited");
        let output = Output::create(&checkpoint, &target, [tensor], &none).unwrap();
        output.write_at(tensor, 0, &[0; 4]).unwrap();
        output.commit().unwrap();
        for name in names(&target) {
            assert!(std::fs::symlink_metadata(target.join(&name)).unwrap().is_file(), "{name}");
        }
        assert_eq!(Checkpoint::open(blobs.path()).unwrap().weights_id().unwrap(), before);
        assert_ne!(Checkpoint::open(&target).unwrap().weights_id().unwrap(), before);
    }

    #[test]
    fn the_output_of_shards_is_not_a_file() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors"}));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let found = check_output(&checkpoint, &folder.path().join("x.safetensors")).unwrap_err().to_string();
        assert!(found.ends_with("the base has several files, so the output is a folder"), "{found}");
        let found = check_output(&checkpoint, Path::new("/no/such/place/x")).unwrap_err().to_string();
        assert!(found.starts_with("cannot write to `/no/such/place`: "), "{found}");
    }

    #[test]
    fn copying_by_hand_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..2 * COPY_BLOCK_BYTES + 7).map(|n| (n % 251) as u8).collect();
        let (source_path, path) = (write(&folder, "source", &bytes), folder.path().join("copy"));
        let (source, file) = (File::open(&source_path).unwrap(), create_new(&path).unwrap());
        let size = bytes.len() as u64;
        copy_by_hand(&source, &source_path, 0..size, &file, &path, &none).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
        copy_contents(&source, &source_path, size, &file, &path, &none).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
        // A source that ends early is an error, whichever way it is copied.
        let found = copy_contents(&source, &source_path, size + 1, &file, &path, &none).unwrap_err();
        assert!(found.to_string().starts_with("cannot read `"), "{found}");
    }
}
