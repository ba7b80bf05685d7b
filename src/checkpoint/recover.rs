//! What the next command does about a change in place that stopped half-way.
//!
//! ```text
//! journals beside the weights  ->  those about them  ->  locks of their files  ->  back to one of the two states
//! ```
//!
//! A journal says which bytes go where, so it is believed only of one who could have written there himself. One that
//! cannot be read speaks by its name alone: whose weights' name it bears, theirs are the old bytes in it.

mod evidence;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::disk::{About, Access, File, Files, Kind, Lock, Locked};
use super::journal::{ASK_ITS_AUTHOR, Found, JOURNAL_SUFFIX, Journal, JournaledFile, journal_of};
use super::locate::locate;
use super::restore::{Goal, Kept, Outcome, Stuck, Syncs};
use super::temporary::sweep;
use super::{Action, CheckpointError, Layout, folder_of};
use crate::causes::with_causes;

/// What there is to do where a file is not there, or is not what it was.
const PUT_FILE_BACK: &str = "put the file back that had this name then, or fetch it again in its old state: the next \
                             mpatch command on the model then puts the old bytes back; if all of the model was \
                             replaced, move the journal away";

/// What there is to do where files cannot be locked.
const OPEN_WHERE_LOCKED: &str = "open the model where its files can be locked, as on the machine whose disk they are on: \
                                 the next mpatch command there brings the change to its end";

/// What there is to do about a journal that may be whole.
const LET_IT_BE_READ: &str = "see that the system can read the journal, and the folder that it is in: the next mpatch \
                              command on the model then brings the change to its end";

/// A change that had stopped half-way and no longer does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Recovered {
    /// The journal that is gone now.
    pub journal: PathBuf,
    /// The files that it was about, where they lie now.
    pub files: Vec<PathBuf>,
    /// What was being done.
    pub label: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// Brings every change in place of the checkpoint at `path` that stopped half-way to an end.
///
/// All old bytes are put back, unless all new ones are there already. Where no change stopped, nothing happens and
/// none is returned. Temporaries that killed processes left beside the checkpoint go, too.
///
/// # Errors
/// Those of opening a checkpoint that is none; [`CheckpointError::Busy`] while somebody works on it;
/// [`CheckpointError::Recovery`] when the old bytes cannot be put back now: the journal is then kept, and the next
/// call tries again.
pub fn recover(path: impl AsRef<Path>) -> Result<Vec<Recovered>, CheckpointError> {
    let mut recovered = Vec::new();
    recover_each(path, |one| recovered.push(one))?;
    Ok(recovered)
}

/// Does what [`recover`] does, and tells of each change as soon as it has come to its end: of those, too, that did
/// before one that cannot.
///
/// # Errors
/// Those of [`recover`].
pub fn recover_each(path: impl AsRef<Path>, mut told: impl FnMut(Recovered)) -> Result<(), CheckpointError> {
    recover_on(&Files::real(), path.as_ref(), &mut told)
}

pub(crate) fn recover_on(
    files: &Files,
    path: &Path,
    told: &mut dyn FnMut(Recovered),
) -> Result<(), CheckpointError> {
    let located = locate(files, path)?;
    let weights = located.files(files)?;
    let places = places_of(files, &weights);
    if located.layout == Layout::Folder {
        // Where a copy of it is made that is not told to go elsewhere.
        sweep(files, &beside(files, &located.folder));
    }
    for folder in folders_of(&places) {
        sweep(files, folder);
        for journal in journals_in(files, folder, &places)? {
            if let Some(recovered) = recover_one(files, &journal, &weights, &places)? {
                told(recovered);
            }
        }
    }
    Ok(())
}

/// Refuses a checkpoint with a change that stopped half-way.
pub(super) fn refuse_pending(files: &Files, weights: &[PathBuf]) -> Result<(), CheckpointError> {
    let places = places_of(files, weights);
    for folder in folders_of(&places) {
        for path in journals_in(files, folder, &places)? {
            match open_journal(files, &path, &places)? {
                Found::Whole(journal) if journal.is_about(weights, &places) => {
                    return Err(journal.unfinished("it has to be recovered first".to_owned()));
                }
                Found::Closed { reason, way_out } => refuse_closed(&path, &places, reason, way_out)?,
                Found::Whole(_) | Found::Nothing => {}
            }
        }
    }
    Ok(())
}

/// Where the files really lie, and where their names do: a journal lies beside the file itself, and stays there when
/// the file is moved and a link to it left in its place.
fn places_of(files: &Files, weights: &[PathBuf]) -> Vec<PathBuf> {
    let real = |path: &Path| files.real_path(path).unwrap_or_else(|_| path.to_owned());
    let named = |path: &PathBuf| path.file_name().map(|name| real(folder_of(path)).join(name));
    let mut places: Vec<_> =
        weights.iter().map(|path| real(path)).chain(weights.iter().filter_map(named)).collect();
    places.sort();
    places.dedup();
    places
}

/// The folder that a model folder lies in.
fn beside(files: &Files, folder: &Path) -> PathBuf {
    match folder.file_name() {
        Some(_) => folder_of(folder).to_owned(),
        // `.` and its like.
        None => {
            files.real_path(folder).map_or_else(|_| folder.to_owned(), |real| folder_of(&real).to_owned())
        }
    }
}

fn folders_of(places: &[PathBuf]) -> Vec<&Path> {
    let mut folders = Vec::new();
    for folder in places.iter().map(|path| folder_of(path)) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// The journals in one of the folders that files lie in, of whatever files they are.
fn journals_in(files: &Files, folder: &Path, places: &[PathBuf]) -> Result<Vec<PathBuf>, CheckpointError> {
    match files.list(folder) {
        Ok(names) => {
            let journals = names.iter().filter(|name| name.to_string_lossy().ends_with(JOURNAL_SUFFIX));
            Ok(journals.map(|name| folder.join(name)).collect())
        }
        Err(error) => {
            let inside = places.iter().filter(|path| folder_of(path) == folder);
            let mut known = inside.map(|path| journal_of(path));
            // Where nobody may look around, what has a name that is known is still found.
            if error.kind() == io::ErrorKind::PermissionDenied {
                return Ok(known.collect());
            }
            let there = known.find(|journal| files.is_taken(journal).unwrap_or(false));
            let error = CheckpointError::io(folder, Action::List)(error);
            Err(match there {
                Some(journal) => waiting_for(&journal, places, error),
                None => error,
            })
        }
    }
}

fn open_journal(files: &Files, path: &Path, places: &[PathBuf]) -> Result<Found, CheckpointError> {
    Journal::open(files, path).map_err(|error| waiting_for(path, places, error))
}

/// What an error says that keeps anybody from reading a journal now: one that bears the name of weights at hand may
/// hold their old bytes.
fn waiting_for(journal: &Path, places: &[PathBuf], error: CheckpointError) -> CheckpointError {
    match whose(journal, places) {
        Some(path) => CheckpointError::Recovery {
            path,
            journal: journal.to_owned(),
            reason: with_causes(&error),
            way_out: Some(LET_IT_BE_READ),
        },
        None => error,
    }
}

/// The file whose name a journal bears.
fn whose(journal: &Path, places: &[PathBuf]) -> Option<PathBuf> {
    places.iter().find(|path| journal_of(path) == journal).cloned()
}

/// Refuses weights whose name a journal bears that cannot be read; any other such journal is somebody else's concern,
/// and anybody may lay one there.
fn refuse_closed(
    journal: &Path,
    places: &[PathBuf],
    reason: String,
    way_out: &'static str,
) -> Result<(), CheckpointError> {
    let Some(path) = whose(journal, places) else { return Ok(()) };
    Err(CheckpointError::Recovery { path, journal: journal.to_owned(), reason, way_out: Some(way_out) })
}

/// A file that may be one of a journal's, locked and open for writing.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    file: File,
    /// Whether it is the very file that the journal was made for, by what the system tells of it.
    is_the_same: bool,
}

impl Journal {
    /// Whether any of `weights`, which lie in `places`, is among its files, under the name that it had then or under
    /// another one, or has its own name: files and journals are renamed together, and copied then.
    fn is_about(&self, weights: &[PathBuf], places: &[PathBuf]) -> bool {
        let about: Vec<_> = weights.iter().filter_map(|path| self.files.about(path).ok()).collect();
        let mut numbered = self.header.files.iter().enumerate();
        self.bearer().is_some_and(|path| places.contains(&path))
            || numbered.any(|(index, file)| {
                places.contains(&self.target_path(index))
                    || about.iter().any(|about| file.is_described_by(about))
            })
    }

    /// The file whose name it bears: the first of its own, if it is of that size.
    fn bearer(&self) -> Option<PathBuf> {
        let name = self.path.file_name()?.as_bytes().strip_suffix(JOURNAL_SUFFIX.as_bytes())?;
        let path = folder_of(&self.path).join(OsStr::from_bytes(name));
        let size_bytes = self.header.files.first()?.size_bytes;
        self.files.about(&path).is_ok_and(|about| about.size_bytes == size_bytes).then_some(path)
    }

    /// For each of its files all that may be it: the very file first, wherever it is, then what has its name.
    ///
    /// Of `weights` one may be the very file under the name that it has now, whatever bears its old one.
    fn targets(&self, weights: &[PathBuf]) -> Result<Vec<Vec<Target>>, CheckpointError> {
        (0..self.header.files.len()).map(|index| self.targets_of(index, weights)).collect()
    }

    fn targets_of(&self, index: usize, weights: &[PathBuf]) -> Result<Vec<Target>, CheckpointError> {
        let (journaled, named) = (&self.header.files[index], self.target_path(index));
        let mut paths = Vec::from_iter(self.very_file(journaled, &named, weights)?);
        let mut known: Vec<_> = paths.iter().filter_map(|path| self.files.about(path).ok()).collect();
        let others = || self.header.files.iter().enumerate().filter(|(other, _)| *other != index);
        let is_free = |path: &PathBuf| others().all(|(other, _)| self.target_path(other) != *path);
        let bearer = self.bearer().filter(|path| index == 0 && is_free(path));
        for path in bearer.into_iter().chain([named.clone()]) {
            let Ok(path) = self.files.real_path(&path) else { continue };
            let fits = |about: &About| {
                (about.kind, about.size_bytes) == (Kind::File, journaled.size_bytes)
                    && !known.iter().any(|other| other.is_same_file(about))
                    && !others().any(|(_, other)| other.is_described_by(about))
            };
            if let Some(about) = self.files.about(&path).ok().filter(fits) {
                known.push(about);
                paths.push(path);
            }
        }
        if paths.is_empty() {
            paths.push(named.clone());
        }
        paths.into_iter().map(|path| self.target(journaled, path, &named)).collect()
    }

    fn target(
        &self,
        journaled: &JournaledFile,
        path: PathBuf,
        named: &Path,
    ) -> Result<Target, CheckpointError> {
        let file = self.files.open(&path, Access::ReadWrite).map_err(|error| {
            let action = format!("cannot open `{}`", path.display());
            match error.kind() {
                io::ErrorKind::NotFound => self.unfinished_until(PUT_FILE_BACK, format!("{action}: {error}")),
                _ => self.unfinished_as(Stuck::at(&action, &error)),
            }
        })?;
        self.lock(&file, &path)?;
        let about = file.about().map_err(|error| {
            self.unfinished_as(Stuck::at(&format!("cannot examine `{}`", path.display()), &error))
        })?;
        self.require_author(&path, &about)?;
        if about.size_bytes != journaled.size_bytes {
            let reason = format!(
                "`{}` has {} bytes, and had {} when the journal was written",
                path.display(),
                about.size_bytes,
                journaled.size_bytes
            );
            return Err(self.unfinished_until(PUT_FILE_BACK, reason));
        }
        // Where the system does not tell when a file was made, another one may have got its inode.
        let is_certain = path == named || journaled.created_ns.is_some();
        let is_the_same = journaled.is_described_by(&about) && is_certain;
        Ok(Target { path, file, is_the_same })
    }

    /// Locks a file of it, so that nobody works on that meanwhile.
    fn lock(&self, file: &File, path: &Path) -> Result<(), CheckpointError> {
        let name = path.display();
        match file.lock(Lock::Exclusive) {
            Ok(Locked::Held) => Ok(()),
            Ok(Locked::Busy) => Err(CheckpointError::Busy { path: path.to_owned() }),
            Ok(Locked::Unsupported) => {
                let reason =
                    format!("the file system of `{name}` has no locks, so nothing keeps others away");
                Err(self.unfinished_until(OPEN_WHERE_LOCKED, reason))
            }
            Err(error) => Err(self.unfinished_as(Stuck::at(&format!("cannot lock `{name}`"), &error))),
        }
    }

    /// Where a file of the journal lies now: under its own name, `named`, else as one of `weights`, else under any name
    /// beside the journal; none where it is gone.
    ///
    /// With the journal its old bytes would be gone, so nobody who cannot look for it takes the journal away.
    fn very_file(
        &self,
        journaled: &JournaledFile,
        named: &Path,
        weights: &[PathBuf],
    ) -> Result<Option<PathBuf>, CheckpointError> {
        let is_it = |about: About| about.kind == Kind::File && journaled.is_described_by(&about);
        if self.files.about_name(named).is_ok_and(is_it) {
            return Ok(Some(named.to_owned()));
        }
        let opened = weights.iter().find(|path| self.files.about(path).is_ok_and(is_it));
        if let Some(path) = opened.and_then(|path| self.files.real_path(path).ok()) {
            return Ok(Some(path));
        }
        let folder = folder_of(&self.path);
        let names = self.files.list(folder).map_err(|error| {
            let action = format!("cannot look for what was called `{}` then", journaled.name);
            self.unfinished_as(Stuck::at(&action, &error))
        })?;
        let mut beside = names.iter().map(|name| folder.join(name));
        Ok(beside.find(|path| self.files.about_name(path).is_ok_and(is_it)))
    }
}

impl Journal {
    /// Refuses the journal of somebody who could not have changed the target: it says which bytes go where, and we may
    /// be allowed what its author is not.
    fn require_author(&self, path: &Path, target: &About) -> Result<(), CheckpointError> {
        const ROOT: u32 = 0;
        let about = self.file.about();
        let author = about.map_err(|error| self.unfinished_as(Stuck::at("cannot examine it", &error)))?.owner;
        if [self.files.user(), ROOT, target.owner].contains(&author) {
            return Ok(());
        }
        let reason = format!("user {author} wrote it, who does not own `{}`", path.display());
        Err(self.unfinished_until(ASK_ITS_AUTHOR, reason))
    }
}

fn recover_one(
    files: &Files,
    path: &Path,
    weights: &[PathBuf],
    places: &[PathBuf],
) -> Result<Option<Recovered>, CheckpointError> {
    let journal = match open_journal(files, path, places)? {
        Found::Whole(journal) if journal.is_about(weights, places) => journal,
        Found::Whole(_) | Found::Nothing => return Ok(None),
        Found::Closed { reason, way_out } => {
            return refuse_closed(path, places, reason, way_out).map(|()| None);
        }
    };
    let targets = journal.targets(weights)?;
    // With the locks in hand, whoever was at it is gone; perhaps he has finished meanwhile, and another one begun.
    let is_named = files.is_named(path, &journal.file);
    if !is_named.map_err(|error| journal.unfinished_as(Stuck::at("cannot examine it", &error)))? {
        return Ok(None);
    }
    let sets = journal.sets(&targets)?;
    let held: Vec<Vec<&File>> = sets.iter().map(|set| handles(set)).collect();
    // Nobody knows what whoever was at it had been told.
    let outcome = journal.roll_back(&held, Goal::Either, Syncs::Doubted, Kept::Unknown)?.outcome;
    let mut files: Vec<_> = sets.iter().flatten().map(|target| target.path.clone()).collect();
    files.sort();
    files.dedup();
    Ok(Some(Recovered { journal: path.to_owned(), files, label: journal.header.label.clone(), outcome }))
}

fn handles<'a>(set: &[&'a Target]) -> Vec<&'a File> {
    set.iter().map(|target| &target.file).collect()
}

impl Journal {
    /// What is to be put right: the files of the journal, and again with each copy of one that stopped where it did.
    fn sets<'a>(&self, targets: &'a [Vec<Target>]) -> Result<Vec<Vec<&'a Target>>, CheckpointError> {
        let first: Vec<&Target> = targets.iter().filter_map(|found| found.first()).collect();
        self.allow_other_files(&first)?;
        let mut sets = vec![first.clone()];
        for (index, found) in targets.iter().enumerate() {
            for copy in found.iter().skip(1) {
                let mut set = first.clone();
                set[index] = copy;
                let is_in_step = self.is_in_step(&handles(&set), index);
                if is_in_step.map_err(|error| self.unfinished_as(Stuck::from(error)))? {
                    sets.push(set);
                }
            }
        }
        Ok(sets)
    }

    /// Somebody put other files under the names: fine if they are in one of the two states, or are the journal's files
    /// in all but their inodes; else nothing is touched.
    fn allow_other_files(&self, targets: &[&Target]) -> Result<(), CheckpointError> {
        let mut numbered = self.header.files.iter().zip(targets);
        let Some((file, _)) = numbered.find(|(_, target)| !target.is_the_same) else { return Ok(()) };
        let is_known = self.is_known(&handles(targets), |file| !targets[file].is_the_same);
        if is_known.map_err(|error| self.unfinished_as(Stuck::from(error)))? {
            return Ok(());
        }
        let way_out = "if this is a copy of the model, open the one that it was copied from, where the next mpatch \
                       command puts the old bytes back, and copy it again; if it is another model, move the journal \
                       to the file that it was written for: it holds the only old bytes";
        let reason = format!("it was written for another file that was called `{}` then", file.name);
        Err(self.unfinished_until(way_out, reason))
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::PAGE_BYTES;
    use super::super::journal::{Extent, Header};
    use super::super::keep::{Cover, Told};
    use super::*;
    use crate::digest::TensorDigest;

    pub(super) const TENSOR_BYTES: usize = 3 * PAGE_BYTES;

    /// Tensors one after the other, numbered from `first` on, a letter each: at the Start, at the End, Begun, X for
    /// other bytes, and = for one that is not to be changed.
    pub(super) fn tensors(first: u8, states: &str) -> Vec<u8> {
        let tensor = |(state, number): (u8, u8)| {
            let (old, new) = ([number; TENSOR_BYTES], [number + 100; TENSOR_BYTES]);
            match state {
                b'E' => new.to_vec(),
                b'B' => [&new[..TENSOR_BYTES / 2], &old[TENSOR_BYTES / 2..]].concat(),
                b'X' => vec![255; TENSOR_BYTES],
                _ => old.to_vec(),
            }
        };
        states.bytes().zip(first..).flat_map(tensor).collect()
    }

    /// The journal of a change that was to take files of such tensors from their start to their end, and has come so
    /// far; with a folder around it.
    pub(super) fn stopped(shards: &[(&str, &str)]) -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let journal = stopped_in(folder.path(), shards);
        (folder, journal)
    }

    fn stopped_in(folder: &Path, shards: &[(&str, &str)]) -> Journal {
        let files = Files::real();
        let path = |name: &str| folder.join(name);
        let (mut journaled, mut targets, mut first) = (Vec::new(), Vec::new(), 0);
        for (name, states) in shards {
            let old = tensors(first, &"S".repeat(states.len()));
            std::fs::write(path(name), &old).unwrap();
            let target = files.open(&path(name), Access::ReadWrite).unwrap();
            let about = target.about().unwrap();
            let extents = states.bytes().zip(first..).enumerate().map(|(index, (state, number))| Extent {
                tensor: format!("{number:03}"),
                offset: (index * TENSOR_BYTES) as u64,
                size_bytes: TENSOR_BYTES as u64,
                start: TensorDigest::of(&tensors(number, "S")),
                end: TensorDigest::of(&tensors(number, if state == b'=' { "S" } else { "E" })),
            });
            journaled.push(JournaledFile {
                name: (*name).to_owned(),
                device: about.device,
                inode: about.inode,
                created_ns: about.created_ns,
                size_bytes: about.size_bytes,
                extents: extents.collect(),
            });
            targets.push(target);
            first += states.len() as u8;
        }
        let header = Header { label: "change".to_owned(), files: journaled };
        let targets: Vec<&File> = targets.iter().collect();
        let journal = Journal::create(&files, &journal_of(&path(shards[0].0)), header, &targets).unwrap();
        let told = Told { progress: &|_| (), stop: &|| Ok(()) };
        journal.keep(&targets, &Cover::default(), &told).unwrap();
        first = 0;
        for ((_, states), target) in shards.iter().zip(targets) {
            target.write_all_at(&tensors(first, states), 0).unwrap();
            first += states.len() as u8;
        }
        journal
    }

    /// Two shards that stopped half-way, the second of them replaced by a fresh one.
    fn stopped_shards(states: &str) -> (tempfile::TempDir, Journal, PathBuf) {
        let (folder, journal) = stopped(&[("one.safetensors", states), ("two.safetensors", "S")]);
        let map =
            serde_json::json!({"000": "one.safetensors", "001": "one.safetensors", "002": "two.safetensors"});
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let second = folder.path().join("two.safetensors");
        replace(&second);
        (folder, journal, second)
    }

    /// Gives a file another inode, as a copy has.
    pub(super) fn replace(path: &Path) {
        let other = path.with_extension("other");
        std::fs::copy(path, &other).unwrap();
        std::fs::rename(other, path).unwrap();
    }

    #[track_caller]
    pub(super) fn goes_back(path: &Path, journal: &Path, expected: &[&Path]) {
        let [recovered] = &recover(path).unwrap()[..] else { panic!("one journal") };
        assert_eq!(recovered.outcome, Outcome::RolledBack);
        assert_eq!(recovered.files, expected);
        assert!(!journal.exists());
    }

    /// The way out of what cannot be recovered now, which changes nothing.
    #[track_caller]
    pub(super) fn waits(path: &Path) -> &'static str {
        let before = std::fs::read(path).ok();
        match recover(path.parent().unwrap()).unwrap_err() {
            CheckpointError::Recovery { journal, way_out: Some(way_out), .. } => {
                assert!(journal.exists() && std::fs::read(path).ok() == before);
                way_out
            }
            error => panic!("{error}"),
        }
    }

    #[test]
    fn a_copy_under_the_name_of_a_renamed_file_goes_back_with_it() {
        // A copy that has come to its end is a model of its own.
        for (copied, left) in [("EBS", "SSS"), ("EEE", "EEE"), ("XSS", "XSS")] {
            let (folder, journal) = stopped(&[("model.safetensors", "EBS")]);
            let path = folder.path().join("model.safetensors");
            let renamed = folder.path().join("model.safetensors.orig");
            std::fs::rename(&path, &renamed).unwrap();
            std::fs::write(&path, tensors(0, copied)).unwrap();
            let both = [path.as_path(), &renamed];
            goes_back(&path, &journal.path, if copied == "EBS" { &both } else { &both[1..] });
            assert!(std::fs::read(&renamed).unwrap() == tensors(0, "SSS"));
            assert!(std::fs::read(&path).unwrap() == tensors(0, left), "{copied}");
        }
    }

    #[test]
    fn shards_that_have_changed_names_are_each_put_right() {
        let (folder, journal) = stopped(&[("one.safetensors", "E"), ("two.safetensors", "B")]);
        let [one, two, other] =
            ["one.safetensors", "two.safetensors", "other"].map(|name| folder.path().join(name));
        for (from, to) in [(&one, &other), (&two, &one), (&other, &two)] {
            std::fs::rename(from, to).unwrap();
        }
        goes_back(&one, &journal.path, &[&one, &two]);
        assert!(std::fs::read(&two).unwrap() == tensors(0, "S"));
        assert!(std::fs::read(&one).unwrap() == tensors(1, "S"));
    }

    #[test]
    fn a_file_that_was_renamed_with_its_journal_and_copied_is_known_by_the_name_of_both() {
        let (folder, journal) = stopped(&[("model.safetensors", "EBS")]);
        let (path, first) =
            (folder.path().join("other.safetensors"), folder.path().join("model.safetensors"));
        std::fs::rename(&first, &path).unwrap();
        std::fs::rename(&journal.path, journal_of(&path)).unwrap();
        replace(&path);
        // Whatever has the name that the journal speaks of, and is opened by it.
        std::fs::write(&first, tensors(0, "SSS")).unwrap();
        goes_back(&first, &journal_of(&path), &[&path]);
        assert!(std::fs::read(&path).unwrap() == tensors(0, "SSS"));
    }

    #[test]
    fn a_journal_is_found_beside_the_link_that_a_moved_file_left() {
        for is_copied in [false, true] {
            let (folder, journal) = stopped(&[("model.safetensors", "EBS")]);
            let path = folder.path().join("model.safetensors");
            let moved = folder.path().join("elsewhere/model.safetensors");
            std::fs::create_dir(moved.parent().unwrap()).unwrap();
            std::fs::rename(&path, &moved).unwrap();
            std::os::unix::fs::symlink(&moved, &path).unwrap();
            if is_copied {
                replace(&moved);
            }
            goes_back(&path, &journal.path, &[&moved]);
            assert!(std::fs::read(&moved).unwrap() == tensors(0, "SSS"));
        }
    }

    #[test]
    fn only_files_that_are_not_the_journals_own_have_to_show_how_they_came_to_be() {
        // As a power cut leaves the first, and as no kill does.
        let (folder, journal, second) = stopped_shards("XB");
        let first = folder.path().join("one.safetensors");
        goes_back(folder.path(), &journal.path, &[&first, &second]);
        assert!(std::fs::read(&first).unwrap() == tensors(0, "SS"));
        // Of the other one that is asked.
        let (folder, _journal, second) = stopped_shards("EB");
        std::fs::write(&second, tensors(2, "X")).unwrap();
        assert!(waits(&second).starts_with("if this is a copy of the model"));
        drop(folder);
    }

    #[test]
    fn tensors_that_a_patch_leaves_as_they_are_do_not_say_how_far_it_has_come() {
        let (folder, journal) = stopped(&[("model.safetensors", "E=B=S")]);
        let path = folder.path().join("model.safetensors");
        replace(&path);
        goes_back(&path, &journal.path, &[&path]);
        assert!(std::fs::read(&path).unwrap() == tensors(0, "SSSSS"));
    }

    #[test]
    fn a_file_that_is_gone_or_has_another_size_is_to_be_put_back() {
        let (folder, journal, second) = stopped_shards("EB");
        let whole = std::fs::read(&second).unwrap();
        std::fs::write(&second, &whole[1..]).unwrap();
        assert_eq!(waits(&second), PUT_FILE_BACK);
        std::fs::remove_file(&second).unwrap();
        assert_eq!(waits(&second), PUT_FILE_BACK);
        std::fs::write(&second, whole).unwrap();
        goes_back(folder.path(), &journal.path, &[&folder.path().join("one.safetensors"), &second]);
    }

    #[test]
    fn what_was_put_back_is_told_before_another_change_that_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["one.safetensors", "two.safetensors"] {
            stopped_in(folder.path(), &[(name, "EBS")]);
        }
        let map = serde_json::json!({"000": "one.safetensors", "001": "two.safetensors"});
        let index = serde_json::json!({ "metadata": {}, "weight_map": map });
        std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let [one, two] = ["one.safetensors", "two.safetensors"].map(|name| folder.path().join(name));
        std::fs::write(&two, &tensors(0, "EBS")[4..]).unwrap();
        let mut told = Vec::new();
        let stuck = recover_each(folder.path(), |recovered| told.extend(recovered.files)).unwrap_err();
        assert!(matches!(&stuck, CheckpointError::Recovery { path, .. } if *path == two), "{stuck}");
        assert_eq!(told, [one]);
    }

    #[test]
    fn a_journal_of_which_blocks_are_damaged_changes_nothing() {
        let (folder, journal) = stopped(&[("model.safetensors", "EBS")]);
        let path = folder.path().join("model.safetensors");
        let (at, _) = journal.placed_blocks().next().unwrap();
        let mut bytes = std::fs::read(&journal.path).unwrap();
        bytes[at as usize] ^= 1;
        std::fs::write(&journal.path, bytes).unwrap();
        assert!(waits(&path).starts_with("it may be damaged, and hold the only old bytes"));
    }

    #[test]
    fn a_pipe_under_the_name_of_a_journal_keeps_nobody_waiting() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("model.mpatch-journal");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(matches!(Journal::open(&files, &path).unwrap(), Found::Nothing));
    }
}
