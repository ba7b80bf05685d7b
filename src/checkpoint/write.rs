//! Where the new bytes of a checkpoint go: into a copy, which is the rule, or where it lies.
//!
//! ```text
//! copy      temporary beside the target  ->  the rest of the base copied into it  ->  fsync  ->  rename,
//!               |                              touched tensors written              replacing nothing
//!               |                                                                   ->  fsync of the folder
//! in place  journal beside the base      ->  old bytes into the journal  ->  fsync  ->  journal removed
//!                                              touched tensors written
//! ```
//!
//! What stands below each other happens at the same time, in [`Output::fill`].
//!
//! Whatever happens to a copy before the rename leaves the target absent: the temporary goes when [`Output`] is
//! dropped, or, after a kill, when the next one is made. It lies in the target's own folder, because only there is
//! a rename one step. The base is copied from the handles that were hashed, by reflink where the file system can.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;

use super::companion::TakenAlong;
use super::copy::{Target, copy_ranges, share_contents, share_or_reserve};
use super::disk::{Access, Audience, DirectWay, File, Files, Gather};
use super::in_place::InPlace;
use super::journal::reserve;
use super::keep::Told;
use super::space::{copied_size_bytes, no_room};
use super::temporary::Temporary;
use super::{
    Action, Checkpoint, CheckpointError, CheckpointFile, Layout, Rewrite, TensorInfo, check_output, folder_of,
};

/// Told bytes as they are done, from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// A checkpoint in the making; dropped before [`Output::commit`], it leaves everything as it was.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    kind: OutputKind<'a>,
    /// Some of the work has failed, so that the rest is for nothing.
    given_up: AtomicBool,
}

#[derive(Debug)]
enum OutputKind<'a> {
    Copy(CheckpointCopy<'a>),
    InPlace(InPlace<'a>),
}

/// Says that an output has all its bytes: what [`Output::fill`] gives, and [`Output::commit`] asks for.
#[derive(Debug)]
#[must_use]
pub(crate) struct Filled(());

/// Copies a checkpoint to the new `target`, with what else is in its folder.
///
/// No file of the copy is one of the base's under a second name: whoever changes one of the two changes no other.
/// `progress` is told all bytes of the weights.
///
/// # Errors
/// As [`check_output`], and whatever goes wrong with copying; there is no `target` then.
pub fn copy(
    checkpoint: &Checkpoint,
    target: &Path,
    progress: Progress<'_>,
) -> Result<TakenAlong, CheckpointError> {
    let all = (0..checkpoint.files().len()).map(|file_index| (file_index, Vec::new())).collect();
    let copy = CheckpointCopy::create(checkpoint, target, all, progress)?;
    let output = Output::of(OutputKind::Copy(copy));
    let ((), filled) = output.fill(progress, || Ok::<_, CheckpointError>(()))?;
    output.commit(filled)
}

impl<'a> Output<'a> {
    /// Makes a temporary beside `target`, into which [`Output::fill`] copies the base but for the tensors of `touched`.
    ///
    /// Untouched shards are shared with the base. `progress` is told bytes that need no copying.
    ///
    /// # Errors
    /// As [`check_output`], and whatever goes wrong with making files.
    pub fn create<'t>(
        checkpoint: &'a Checkpoint,
        target: &Path,
        touched: impl IntoIterator<Item = &'t TensorInfo>,
        progress: Progress<'_>,
    ) -> Result<Self, CheckpointError> {
        let mut ranges: Touched = BTreeMap::new();
        for tensor in touched {
            let range = tensor.offset..tensor.offset + tensor.size_bytes;
            ranges.entry(tensor.file_index).or_default().push(range);
        }
        let copy = CheckpointCopy::create(checkpoint, target, ranges, progress)?;
        Ok(Self::of(OutputKind::Copy(copy)))
    }

    /// Makes a journal, into which [`Output::fill`] puts the old bytes of the tensors of `rewrites`.
    ///
    /// `label` says in words what is being done.
    ///
    /// # Errors
    /// [`CheckpointError::InPlace`] for files that must not be changed, [`CheckpointError::Busy`] for files in use, and
    /// whatever goes wrong with the journal; nothing was changed then.
    pub fn in_place(
        checkpoint: &'a Checkpoint,
        rewrites: &[Rewrite<'_>],
        label: &str,
    ) -> Result<Self, CheckpointError> {
        Ok(Self::of(OutputKind::InPlace(InPlace::create(checkpoint, rewrites, label)?)))
    }

    fn of(kind: OutputKind<'a>) -> Self {
        Self { kind, given_up: AtomicBool::new(false) }
    }

    /// Has `rewrite` write all of the touched tensors, and meanwhile copies what is not touched, or keeps what they
    /// overwrite.
    ///
    /// In place, [`Output::write_at`] waits until the old bytes of its part are kept, in the order of the rewrites and
    /// of their files. `progress` is told those bytes as they are copied or kept.
    ///
    /// # Errors
    /// That of `rewrite`; [`CheckpointError::Changed`] for tensors that are not at their start; whatever goes wrong
    /// with copying and keeping. What is to be done then is [`Output::abandon`].
    pub fn fill<T, E: From<CheckpointError>>(
        &self,
        progress: Progress<'_>,
        rewrite: impl FnOnce() -> Result<T, E>,
    ) -> Result<(T, Filled), E> {
        let stop = || self.check_given_up().and_then(|()| self.checkpoint().check_stop());
        let told = Told { progress, stop: &stop };
        let give_up_if = |failed| self.given_up.fetch_or(failed, Ordering::Relaxed);
        let others = || {
            let done = match &self.kind {
                OutputKind::Copy(copy) => copy.copy_rest(&told).map_err(|error| copy.by_its_name(error)),
                OutputKind::InPlace(in_place) => in_place.keep(&told),
            };
            give_up_if(done.is_err());
            done
        };
        std::thread::scope(|scope| {
            let Ok(others) = Builder::new().spawn_scoped(scope, others) else {
                // Where the system has no thread, one comes after the other.
                others()?;
                return rewrite().map(|rewritten| (rewritten, Filled(())));
            };
            let rewritten = rewrite();
            give_up_if(rewritten.is_err());
            match (others.join().unwrap_or_else(|panic| resume_unwind(panic)), rewritten) {
                // Told to stop because the rewriting failed, or like it.
                (Err(CheckpointError::Stopped { .. }), Err(error)) => Err(error),
                (Err(error), _) => Err(error.into()),
                (Ok(()), rewritten) => rewritten.map(|rewritten| (rewritten, Filled(()))),
            }
        })
    }

    fn check_given_up(&self) -> Result<(), CheckpointError> {
        match self.given_up.load(Ordering::Relaxed) {
            true => Err(CheckpointError::Stopped { path: self.path().to_owned() }),
            false => Ok(()),
        }
    }

    fn checkpoint(&self) -> &'a Checkpoint {
        match &self.kind {
            OutputKind::Copy(copy) => copy.checkpoint,
            OutputKind::InPlace(in_place) => in_place.checkpoint(),
        }
    }

    /// Bytes of an output with these tensors that are not shared with the base: the sizes of the files they lie in.
    pub fn copy_size_bytes<'t>(
        checkpoint: &Checkpoint,
        touched: impl IntoIterator<Item = &'t TensorInfo>,
    ) -> u64 {
        let files: BTreeSet<usize> = touched.into_iter().map(|tensor| tensor.file_index).collect();
        files.into_iter().map(|index| checkpoint.files()[index].size_bytes()).sum()
    }

    /// Writes `bytes` at `offset` within the tensor.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Output`] for bytes outside the touched tensors;
    /// [`CheckpointError::Stopped`].
    pub fn write_at(&self, tensor: &TensorInfo, offset: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.check_given_up()?;
        let inside = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= tensor.size_bytes);
        let written = match &self.kind {
            _ if !inside => None,
            OutputKind::Copy(copy) => copy.write_at(tensor, offset, bytes),
            OutputKind::InPlace(in_place) => in_place.write_at(tensor, offset, bytes),
        };
        written.unwrap_or_else(|| {
            Err(CheckpointError::Output {
                path: self.path().to_owned(),
                reason: format!("tensor `{}` was not to be written there", tensor.name),
            })
        })
    }

    /// Makes it last: gives the copy its name, or removes the journal.
    ///
    /// # Errors
    /// [`CheckpointError::OutputExists`] if the name was taken meanwhile, [`CheckpointError::NotDurable`] if it is
    /// all there but may not last, [`CheckpointError::Recovery`] if old bytes could not be put back, else
    /// [`CheckpointError::Io`].
    pub fn commit(self, _: Filled) -> Result<TakenAlong, CheckpointError> {
        match self.kind {
            OutputKind::Copy(copy) => copy.commit(),
            OutputKind::InPlace(in_place) => {
                in_place.commit()?;
                Ok(TakenAlong::default())
            }
        }
    }

    /// Leaves everything as it was, and says so if that fails.
    ///
    /// # Errors
    /// [`CheckpointError::Recovery`] if old bytes could not be put back.
    pub fn abandon(self) -> Result<(), CheckpointError> {
        match self.kind {
            // The temporary goes as it is dropped; one that stays does no harm and is swept later.
            OutputKind::Copy(_) => Ok(()),
            OutputKind::InPlace(in_place) => in_place.abandon(),
        }
    }

    /// Whether writing changes what the checkpoint reads.
    pub fn overwrites_its_input(&self) -> bool {
        matches!(self.kind, OutputKind::InPlace(_))
    }

    /// Where it is, or will be.
    pub fn path(&self) -> &Path {
        match &self.kind {
            OutputKind::Copy(copy) => &copy.target,
            OutputKind::InPlace(in_place) => in_place.path(),
        }
    }
}

// ------------------------------------------------------------------------------------------------------ a copy --

#[derive(Debug)]
struct CheckpointCopy<'a> {
    checkpoint: &'a Checkpoint,
    target: PathBuf,
    /// What is yet to be copied.
    rest: Vec<Rest>,
    /// Of the file that a tensor was written to last.
    writer: Mutex<Option<Writer>>,
    /// Copies of shards by index into the checkpoint's files; the copy of a single file is the temporary itself.
    shards: BTreeMap<usize, ShardCopy>,
    taken_along: TakenAlong,
    /// Last, so that the handles close before it is removed.
    temporary: Temporary,
}

#[derive(Debug)]
struct ShardCopy {
    path: PathBuf,
    file: File,
}

/// Writes tensors of one file, in whole pages where there is a direct way.
#[derive(Debug)]
struct Writer {
    file_index: usize,
    way: DirectWay,
    gather: Gather,
}

impl Writer {
    fn write_at(&mut self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.way.is_there() {
            self.gather.write_at(&self.way, file, bytes, offset)
        } else {
            file.write_and_begin_sync_at(bytes, offset)
        }
    }
}

/// Touched ranges, by index into the checkpoint's files.
type Touched = BTreeMap<usize, Vec<Range<u64>>>;

/// Parts of a file that are yet to be copied.
#[derive(Debug)]
struct Rest {
    file_index: usize,
    ranges: Vec<Range<u64>>,
    /// Whether it is among the bytes of [`Output::copy_size_bytes`].
    counts: bool,
}

impl<'a> CheckpointCopy<'a> {
    fn create(
        checkpoint: &'a Checkpoint,
        target: &Path,
        touched: Touched,
        progress: Progress<'_>,
    ) -> Result<Self, CheckpointError> {
        check_output(checkpoint, target)?;
        let (disk, folder) = (checkpoint.disk(), folder_of(target));
        let temporary = match checkpoint.layout() {
            Layout::File => Temporary::file(disk, folder, Audience::Owner),
            Layout::Folder => Temporary::folder(disk, folder, Audience::Owner),
        };
        let temporary = temporary.map_err(CheckpointError::io(folder, Action::WriteTo))?;
        let (rest, writer, taken_along) = (Vec::new(), Mutex::new(None), TakenAlong::default());
        let (shards, named) = (BTreeMap::new(), target.to_owned());
        let mut copy = Self { checkpoint, target: named, rest, writer, shards, taken_along, temporary };
        let touched_files: BTreeSet<usize> = touched.keys().copied().collect();
        match copy.make_files(touched, progress) {
            Ok(()) => Ok(copy),
            Err(CheckpointError::Space { source, .. }) => {
                let may_link = copy.taken_along.copied.is_empty();
                // What was reserved so far is free again.
                drop(copy);
                let needed_bytes = copied_size_bytes(checkpoint, target, &touched_files, may_link);
                Err(no_room(disk, target, needed_bytes, source))
            }
            Err(error) => Err(copy.by_its_name(error)),
        }
    }

    /// Makes all files; what they are yet to hold is in `rest` then.
    fn make_files(&mut self, mut touched: Touched, progress: Progress<'_>) -> Result<(), CheckpointError> {
        let checkpoint = self.checkpoint;
        if checkpoint.layout() == Layout::File {
            let target = Target {
                disk: checkpoint.disk(),
                file: self.temporary.handle(),
                path: self.temporary.path(),
            };
            let rest = begin(checkpoint, 0, &target, touched.remove(&0).unwrap_or_default(), progress)?;
            self.rest.extend(rest);
            return Ok(());
        }
        for (file_index, source) in checkpoint.files().iter().enumerate() {
            let path = self.temporary.path().join(source.path.file_name().unwrap_or_default());
            let file = match touched.remove(&file_index) {
                Some(touched) => {
                    let file = create_new(checkpoint.disk(), &path)?;
                    let target = Target { disk: checkpoint.disk(), file: &file, path: &path };
                    self.rest.extend(begin(checkpoint, file_index, &target, touched, progress)?);
                    Some(file)
                }
                None => self.share(file_index, source, &path)?,
            };
            if let Some(file) = file {
                self.shards.insert(file_index, ShardCopy { path, file });
            }
        }
        self.taken_along.left_out = checkpoint.copy_companions(self.temporary.path())?;
        Ok(())
    }

    /// An untouched shard: its blocks shared, else the file itself linked, else to be copied; open where it is new.
    fn share(
        &mut self,
        file_index: usize,
        source: &CheckpointFile,
        path: &Path,
    ) -> Result<Option<File>, CheckpointError> {
        let disk = self.checkpoint.disk();
        let file = create_new(disk, path)?;
        if share_contents(&source.contents(), &file) {
            return Ok(Some(file));
        }
        drop(file);
        disk.remove_file(path).map_err(CheckpointError::io(path, Action::Remove))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if link(disk, source, path) {
            // Nobody knows whether whoever wrote it has waited for the disk, and the copy is to last.
            source.file.sync().map_err(CheckpointError::io(&source.path, Action::Sync))?;
            self.taken_along.linked.push(name);
            return Ok(None);
        }
        let file = create_new(disk, path)?;
        reserve(disk, &file, path, source.size_bytes)?;
        let ranges = untouched(source.size_bytes, Vec::new());
        self.rest.push(Rest { file_index, ranges, counts: false });
        self.taken_along.copied.push(name);
        Ok(Some(file))
    }

    fn copy_rest(&self, told: &Told<'_>) -> Result<(), CheckpointError> {
        for Rest { file_index, ranges, counts } in &self.rest {
            let Some((path, file)) = self.copy_of(*file_index) else { continue };
            let target = Target { disk: self.checkpoint.disk(), file, path };
            let told = Told { progress: if *counts { told.progress } else { &|_| () }, stop: told.stop };
            copy_ranges(&self.checkpoint.files()[*file_index].contents(), &target, ranges, &told)?;
        }
        Ok(())
    }

    /// An error of the temporary as one of the output: its user asked for that, and never saw the other.
    fn by_its_name(&self, error: CheckpointError) -> CheckpointError {
        error.by_its_name(self.temporary.path(), &self.target)
    }

    /// The open copy of a file; none where it was not to be written.
    fn copy_of(&self, file_index: usize) -> Option<(&Path, &File)> {
        match self.checkpoint.layout() {
            Layout::File => Some((self.temporary.path(), self.temporary.handle())),
            Layout::Folder => self.shards.get(&file_index).map(|shard| (shard.path.as_path(), &shard.file)),
        }
    }

    fn write_at(
        &self,
        tensor: &TensorInfo,
        offset: u64,
        bytes: &[u8],
    ) -> Option<Result<(), CheckpointError>> {
        let (path, file) = self.copy_of(tensor.file_index)?;
        let written = self.checkpoint.check_stop().and_then(|()| {
            let mut last = self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mut writer = match last.take() {
                Some(writer) if writer.file_index == tensor.file_index => writer,
                other => {
                    self.finish_writing(other)?;
                    let way = DirectWay::open(self.checkpoint.disk(), file, path);
                    Writer { file_index: tensor.file_index, way, gather: Gather::default() }
                }
            };
            let written = writer.write_at(file, bytes, tensor.offset + offset);
            *last = Some(writer);
            written.map_err(CheckpointError::io(path, Action::Write))
        });
        Some(written.map_err(|error| self.by_its_name(error)))
    }

    /// Writes what still waits for the rest of its page.
    fn finish_writing(&self, writer: Option<Writer>) -> Result<(), CheckpointError> {
        let Some(mut writer) = writer else { return Ok(()) };
        let Some((path, file)) = self.copy_of(writer.file_index) else { return Ok(()) };
        writer.gather.finish(file).map_err(CheckpointError::io(path, Action::Write))
    }

    fn commit(self) -> Result<TakenAlong, CheckpointError> {
        let writer = self.writer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let settled = self.finish_writing(writer).and_then(|()| self.settle());
        settled.map_err(|error| self.by_its_name(error))?;
        let Self { checkpoint, target, taken_along, shards, temporary, .. } = self;
        drop(shards);
        checkpoint.tell_of_last_step();
        temporary.place_new(&target)?;
        Ok(taken_along)
    }

    /// Gives the copies the modes of their originals, and makes them last.
    fn settle(&self) -> Result<(), CheckpointError> {
        for (file_index, source) in self.checkpoint.files().iter().enumerate() {
            let Some((path, copy)) = self.copy_of(file_index) else { continue };
            let about = source.file.about().map_err(CheckpointError::io(&source.path, Action::Examine))?;
            let made = copy.about().map_err(CheckpointError::io(path, Action::Examine))?;
            let moded = copy.give_mode(&made, about.mode_for(&made));
            moded.map_err(CheckpointError::io(path, Action::SetMode))?;
            copy.sync().map_err(CheckpointError::io(path, Action::Sync))?;
        }
        if self.checkpoint.layout() == Layout::File {
            return Ok(());
        }
        let (disk, base, path) = (self.checkpoint.disk(), self.checkpoint.folder(), self.temporary.path());
        let about = disk.about(base).map_err(CheckpointError::io(base, Action::Examine))?;
        let made = disk.about(path).map_err(CheckpointError::io(path, Action::Examine))?;
        // The owner keeps his rights: without them neither the sync nor a later removal would work.
        let moded = disk.give_folder_mode(path, &made, about.mode_for(&made) | 0o700);
        moded.map_err(CheckpointError::io(path, Action::SetMode))?;
        disk.sync_folder(path).map_err(CheckpointError::io(path, Action::Sync))
    }
}

/// Makes the copy of a file with touched ranges; returns what of it is yet to be copied.
fn begin(
    checkpoint: &Checkpoint,
    file_index: usize,
    target: &Target<'_>,
    touched: Vec<Range<u64>>,
    progress: Progress<'_>,
) -> Result<Option<Rest>, CheckpointError> {
    let source = checkpoint.files()[file_index].contents();
    let ranges = untouched(source.size_bytes, touched);
    if share_or_reserve(&source, target)? {
        progress(ranges.iter().map(|range| range.end - range.start).sum());
        return Ok(None);
    }
    Ok(Some(Rest { file_index, ranges, counts: true }))
}

/// What is left of a file of `size_bytes` without the `touched` ranges, which do not overlap.
pub(super) fn untouched(size_bytes: u64, mut touched: Vec<Range<u64>>) -> Vec<Range<u64>> {
    touched.sort_unstable_by_key(|range| range.start);
    let starts = std::iter::once(0).chain(touched.iter().map(|range| range.end));
    let ends = touched.iter().map(|range| range.start).chain(std::iter::once(size_bytes));
    starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
}

/// Links the very file that was opened; false where that is not possible.
fn link(disk: &Files, source: &CheckpointFile, path: &Path) -> bool {
    // A link to a symlink would be a second symlink, with a relative target that no longer fits.
    let linked = disk.real_path(&source.path).and_then(|real| disk.link(&real, path));
    if linked.is_err() {
        return false;
    }
    match (source.file.about(), disk.about_name(path)) {
        (Ok(opened), Ok(named)) if opened.is_same_file(&named) => true,
        // The name meant another file by now.
        _ => {
            _ = disk.remove_file(path);
            false
        }
    }
}

pub(super) fn create_new(disk: &Files, path: &Path) -> Result<File, CheckpointError> {
    disk.open(path, Access::CreateNew(Audience::Owner)).map_err(CheckpointError::io(path, Action::Create))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;
    use crate::checkpoint::telling::skipped;
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
        let write = |offset, value: f32| output.write_at(tensor, offset, &value.to_le_bytes());
        let (_, filled) = output.fill(&none, || write(4, 9.0).and_then(|()| write(0, 2.0))).unwrap();
        assert!(output.write_at(tensor, 5, &[0; 4]).is_err(), "beyond the tensor's end");
        assert!(!target.exists());
        assert_eq!(output.commit(filled).unwrap(), TakenAlong::default());
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
        let (_, filled) = output.fill(&none, || Ok::<_, CheckpointError>(())).unwrap();
        std::os::unix::fs::symlink("nowhere", &target).unwrap();
        let expected = format!("`{}` exists already and is not replaced", target.display());
        assert_eq!(check_output(&checkpoint, &target).unwrap_err().to_string(), expected);
        assert_eq!(output.commit(filled).unwrap_err().to_string(), expected);
        assert_eq!(std::fs::read_link(&target).unwrap(), Path::new("nowhere"));
        assert_eq!(names(folder.path()), ["base.safetensors", "out"]);
    }

    #[test]
    fn a_folder_takes_links_copies_and_companions() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors", "b": "one.safetensors"}));
        write(&folder, "config.json", "{}");
        write(&folder, "pytorch_model.bin", "unedited");
        let elsewhere = tempfile::tempdir().unwrap();
        write(&elsewhere, "secret", "of the user's");
        std::os::unix::fs::symlink(elsewhere.path().join("secret"), folder.path().join("README.md")).unwrap();
        let _others = Temporary::file(&Files::real(), folder.path(), Audience::Owner).unwrap();
        std::fs::create_dir(folder.path().join("onnx")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        let target = outside.path().join("edited");
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let tensor = checkpoint.tensor("a").unwrap();
        let output = Output::create(&checkpoint, &target, [tensor], &none).unwrap();
        let (_, filled) = output.fill(&none, || output.write_at(tensor, 0, &[0; 4])).unwrap();
        let committed = output.commit(filled).unwrap();
        assert_eq!(committed.left_out, ["README.md", "onnx", "pytorch_model.bin"]);
        assert_eq!(committed.linked, ["one.safetensors"]);
        let expected = ["config.json", "model.safetensors.index.json", "one.safetensors", "two.safetensors"];
        assert_eq!(names(&target), expected);
        let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
        let same = |name: &str| inode(target.join(name)) == inode(folder.path().join(name));
        assert_eq!(expected.map(same), [false, false, true, false]);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&target), mode(folder.path()));
    }

    #[test]
    fn a_copy_gives_no_group_what_the_base_gives_another_one() {
        let folder = sharded(serde_json::json!({"a": "two.safetensors"}));
        let config = write(&folder, "config.json", "{}");
        let outside = tempfile::tempdir().unwrap();
        let other = std::fs::metadata(outside.path()).unwrap().gid() + 1;
        for path in [folder.path().to_owned(), folder.path().join("two.safetensors"), config] {
            std::fs::set_permissions(&path, Permissions::from_mode(0o750)).unwrap();
            if std::os::unix::fs::chown(path, None, Some(other)).is_err() {
                return skipped("only root may give files to any group");
            }
        }
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let target = outside.path().join("copy");
        let output = Output::create(&checkpoint, &target, checkpoint.tensors(), &none).unwrap();
        let (_, filled) = output.fill(&none, || Ok::<_, CheckpointError>(())).unwrap();
        output.commit(filled).unwrap();
        for path in [target.clone(), target.join("two.safetensors"), target.join("config.json")] {
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700, "{}", path.display());
        }
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
        let (_, filled) = output.fill(&none, || output.write_at(tensor, 0, &[0; 4])).unwrap();
        output.commit(filled).unwrap();
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
        assert!(check_output(&checkpoint, &folder.path().join("x/")).is_ok());
        let single = Checkpoint::open(folder.path().join("two.safetensors")).unwrap();
        for (base, name, reason) in [
            (&checkpoint, "x/.", "it is not a name for a new file or folder"),
            (&checkpoint, "x/.//", "it is not a name for a new file or folder"),
            (&single, "x/", "the base is one file, so the output is no folder"),
        ] {
            let found = check_output(base, &folder.path().join(name)).unwrap_err().to_string();
            assert!(found.ends_with(reason), "{name}: {found}");
        }
        let found = check_output(&checkpoint, Path::new("/no/such/place/x")).unwrap_err().to_string();
        assert_eq!(found, "cannot write to `/no/such/place`");
    }
}
