//! Checking a store by reading all of it, and mending it by adding.
//!
//! Every git object is read and hashed, every commit's tree, every patch down to its last section, every Git LFS
//! object; every series is walked from the base and compared with what its commit claims. What is damaged is named.
//! Mending puts a whole object where a damaged or a missing one is; the damaged file is moved aside and kept. A
//! damaged pack hides whole copies of what is in it, so all that is whole leaves it before it is moved aside:
//!
//! ```text
//! pack: whole, damaged, whole  ->  loose: whole, whole (from a copy), whole; then the pack goes to `damaged/`
//! ```

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use git2::{ObjectType, Odb, Oid, Repository, RepositoryOpenFlags};
use serde::Serialize;

use super::error::{StoreError, named};
use super::folder::{entries, entries_if_there};
use super::log::{Targets, is_strange};
use super::objects::{Snapshot, Stored, bytes_of, written};
use super::operations;
use super::pack::{Pack, listed_in};
use super::refs::{self, CommitId, HEAD, View};
use super::state::Paths;
use super::{Store, lfs};
use crate::causes::with_causes;
use crate::digest::PatchId;
use crate::patch::Patch;
use crate::patch::manifest::Binding;

/// Where damaged files of git's are kept, in the repository's folder.
const DAMAGED: &str = "damaged";

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where.
    pub place: String,
    /// What is wrong.
    pub what: String,
}

/// What was read, and what is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// git objects.
    pub objects: usize,
    /// Commits that a name or an operation leads to.
    pub commits: usize,
    /// Patches, each counted once.
    pub patches: usize,
    /// Bytes of patches.
    pub patch_size_bytes: u64,
    /// What somebody else keeps in the same repository: it is no state of the model, and does no harm.
    pub foreign: Vec<Problem>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl Checked {
    fn problem(&mut self, place: impl Into<String>, error: &dyn std::error::Error) {
        self.problems.push(Problem { place: place.into(), what: with_causes(error) });
    }

    fn foreign(&mut self, place: impl Into<String>, what: &str) {
        self.foreign.push(Problem { place: place.into(), what: what.to_owned() });
    }
}

/// What the commits that have been read so far have in common.
#[derive(Default)]
struct Seen {
    places: BTreeSet<(PatchId, Stored)>,
    bindings: BTreeMap<PatchId, Vec<Binding>>,
    /// The states along their series, by the base that these begin at.
    paths: BTreeMap<Oid, Paths>,
}

impl Seen {
    /// The patches of a commit, with where they are kept, that no commit before it had there.
    fn new_patches(&mut self, snapshot: &Snapshot) -> Vec<(PatchId, Stored)> {
        let patches = snapshot.patches.iter().map(|(id, stored)| (*id, *stored));
        patches.filter(|place| self.places.insert(*place)).collect()
    }
}

/// All objects that a database lists, up to where it cannot.
fn listed(odb: &Odb<'_>) -> BTreeSet<Oid> {
    let mut found = BTreeSet::new();
    let _ = odb.foreach(|oid| {
        found.insert(*oid);
        true
    });
    found
}

impl Store {
    /// Reads everything there is.
    ///
    /// # Errors
    /// [`StoreError`] only where the store cannot be looked at; damage is in the answer.
    pub fn check(&self) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        let packs = self.packs()?;
        let mut in_packs: BTreeMap<Oid, &str> = BTreeMap::new();
        for pack in &packs {
            in_packs.extend(pack.objects.iter().map(|oid| (*oid, pack.name.as_str())));
            if let Some(problem) = &pack.problem {
                let what = format!("its index cannot be read, and nothing in it be found: {problem}");
                checked.problems.push(Problem { place: pack.name.clone(), what });
            }
        }
        let here = self.object_ids();
        checked.objects = here.len();
        for oid in &here {
            if let Err(error) = self.read_object(*oid) {
                let place = in_packs.get(oid).map_or_else(String::new, |pack| format!(" in {pack}"));
                checked.problem(format!("git object {oid}{place}"), &error);
            }
        }
        // Names that cannot be read are told with the commits.
        let (_, unread) = self.walk_named(|_| Ok(())).unwrap_or_default();
        let lost = self.lost_commit();
        for oid in unread.difference(&here).filter(|oid| Some(**oid) != lost) {
            let what = "it is missing, and a name leads to it".to_owned();
            checked.problems.push(Problem { place: format!("git object {oid}"), what });
        }
        let mut seen = Seen::default();
        for commit in self.commits_there(&mut checked) {
            checked.commits += 1;
            // One at a time: what the trees of a long history say does not fit in memory.
            self.check_commit(commit, &mut seen, &mut checked);
        }
        // Causes before what follows from them.
        let rank = |problem: &Problem| match problem.place.as_str() {
            place if place.starts_with("pack-") => 0,
            place if place.starts_with("git object ") => 1,
            _ => 2,
        };
        checked.problems.sort_by_cached_key(|problem| (rank(problem), problem.clone()));
        checked.problems.dedup();
        Ok(checked)
    }

    /// Reads what a commit's tree says, and those of its patches that have not been read yet.
    fn check_commit(&self, commit: Oid, seen: &mut Seen, checked: &mut Checked) {
        if is_strange(&self.repository, commit) {
            checked.foreign(format!("commit {commit}"), "it is no state of a model");
            return;
        }
        let found = self.snapshot(CommitId(commit)).and_then(|snapshot| {
            self.check_patches(&snapshot, seen, checked);
            self.false_claim(commit, &snapshot, seen)
        });
        let (what, is_of_content) = match found {
            Ok(None) => return,
            Ok(Some(what)) => (what, true),
            Err(error) => (with_causes(&error), error.is_of_content()),
        };
        // As far as damage lets anybody see.
        let view = View::of(&self.repository, None);
        let led = view.and_then(|view| self.led_to(&view, CommitId(commit)));
        let (names, is_led_to) = led.unwrap_or_else(|_| (Vec::new(), true));
        let place = format!("commit {commit}{}", named(&names));
        match is_of_content && !is_led_to {
            // Nobody can take it out of the list, and nobody comes to it but by `undo`.
            true => checked.foreign(
                place,
                &format!("only operations lead to it, and it holds no state that can be: {what}"),
            ),
            false => checked.problems.push(Problem { place, what }),
        }
    }

    fn read_object(&self, oid: Oid) -> Result<(), git2::Error> {
        self.repository.odb()?.read(oid).map(drop)
    }

    /// All objects that can be listed; a pack whose index cannot be read is named by itself.
    fn object_ids(&self) -> BTreeSet<Oid> {
        self.repository.odb().map(|odb| listed(&odb)).unwrap_or_default()
    }

    /// All commits that can be reached, past those that cannot be read.
    fn commits_there(&self, checked: &mut Checked) -> Vec<Oid> {
        let operations = operations::list(&self.repository);
        let operations =
            operations.map_err(|error| checked.problem("the operations", &error)).unwrap_or_default();
        let view = View::of(&self.repository, None);
        let view = view.map_err(|error| checked.problem("the names", &error)).ok();
        let mut now = view.as_ref().map(View::targets).unwrap_or_default();
        if let Some(Err(lost)) = view.map(|view| view.standing(&self.repository)) {
            checked.problem(HEAD, &lost);
            // Told once: nothing else need lead there.
            let lost = self.lost_commit();
            now.retain(|target| Some(*target) != lost);
        }
        for name in refs::foreign(&self.repository).unwrap_or_default() {
            checked.foreign(name, "it names no commit");
        }
        let Targets { commits: mut waiting, foreign, gone } =
            Targets::of(&self.repository, &operations, &now);
        for (oids, what) in [
            (foreign, "an operation has recorded its name, and it is no commit"),
            (gone, "an operation has recorded its name, which alone kept it, and it is gone"),
        ] {
            oids.iter().for_each(|oid| checked.foreign(format!("git object {oid}"), what));
        }
        let mut seen = BTreeSet::new();
        while let Some(oid) = waiting.pop() {
            if !seen.insert(oid) {
                continue;
            }
            let object = self.repository.find_object(oid, None);
            match object.and_then(|object| object.peel_to_commit()) {
                // Another one than that of a tag object, which may be the only way to it.
                Ok(commit) if commit.id() != oid => waiting.push(commit.id()),
                Ok(commit) => waiting.extend(commit.parent_ids()),
                Err(error) => {
                    checked.problem(format!("commit {oid}"), &error);
                    seen.remove(&oid);
                }
            }
        }
        seen.into_iter().filter(|oid| self.repository.find_commit(*oid).is_ok()).collect()
    }

    /// Reads those patches of a commit that have not been read yet.
    fn check_patches(&self, snapshot: &Snapshot, seen: &mut Seen, checked: &mut Checked) {
        for (id, stored) in seen.new_patches(snapshot) {
            checked.patches += 1;
            let patch = self.objects().read_patch(id, stored);
            checked.patch_size_bytes += patch.as_ref().map_or(0, |patch| patch.size_bytes());
            let problem = match self.objects().bindings(id, stored, patch.as_ref().ok()) {
                Ok(bindings) => {
                    seen.bindings.insert(id, bindings);
                    patch.err()
                }
                Err(error) => Some(patch.err().unwrap_or(error)),
            };
            if let Some(error) = problem {
                checked.problem(format!("patch {id}"), &error);
            }
        }
    }

    /// What a commit claims of its state and its series does not lead to.
    fn false_claim(
        &self,
        commit: Oid,
        snapshot: &Snapshot,
        seen: &mut Seen,
    ) -> Result<Option<String>, StoreError> {
        let Seen { bindings, paths, .. } = seen;
        let paths = match paths.entry(snapshot.base) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Paths::new(self.objects().read_base(snapshot.base)?)),
        };
        // What cannot be read has been named already.
        if !snapshot.series.iter().all(|id| bindings.contains_key(id)) {
            return Ok(None);
        }
        let state = paths.after(&snapshot.series, bindings)?.clone();
        self.objects().false_claim(commit, state.weights_id(paths.base()))
    }

    /// Puts whole copies of damaged and missing parts where they belong: from these patches, and from another git
    /// repository. What was mended is added to `mended`, before an error, too.
    ///
    /// # Errors
    /// What goes wrong with reading the sources, or with writing.
    pub fn mend(
        &self,
        patches: &[Copy<'_>],
        other: Option<&Path>,
        mended: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let sources = Sources::open(patches, other)?;
        self.mend_names(sources.other.as_ref(), mended)?;
        for pack in self.packs()? {
            self.mend_pack(&pack, &sources, mended)?;
        }
        // Opened anew, since packs that were seen stay open.
        let store = Store::open(self.folder())?;
        store.mend_objects(&sources, mended)?;
        store.mend_large(&sources, mended)?;
        if sources.other.is_some() && operations::list(&store.repository).is_err() {
            store.begin_operations_anew()?;
            mended.push(
                "the list of operations, which begins anew: what was done before cannot be undone".to_owned(),
            );
        }
        Ok(())
    }

    /// Mends what is damaged here and what is missing of all that a name leads to: nothing else of a source is wanted.
    fn mend_objects(&self, sources: &Sources<'_>, mended: &mut Vec<String>) -> Result<(), StoreError> {
        for oid in self.object_ids() {
            self.mend_object(oid, sources, mended)?;
        }
        let (reached, unread) = self.walk_named(|oid| self.mend_object(oid, sources, mended))?;
        if unread.is_empty() {
            self.set_aside_unreached(&reached, mended)?;
        }
        Ok(())
    }

    /// Every object that a name leads to, each visited before what it names is asked for, and those of them that cannot
    /// be asked.
    fn walk_named(
        &self,
        mut visit: impl FnMut(Oid) -> Result<(), StoreError>,
    ) -> Result<(BTreeSet<Oid>, BTreeSet<Oid>), StoreError> {
        let mut waiting = self.named_objects()?;
        let (mut reached, mut unread) = (BTreeSet::new(), BTreeSet::new());
        while let Some(oid) = waiting.pop() {
            if reached.insert(oid) {
                visit(oid)?;
                match self.spoken_of_by(oid) {
                    Ok(children) => waiting.extend(children),
                    Err(_) => _ = unread.insert(oid),
                }
            }
        }
        Ok((reached, unread))
    }

    fn mend_object(
        &self,
        oid: Oid,
        sources: &Sources<'_>,
        mended: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        if self.read_object(oid).is_err()
            && let Some((kind, data, name)) = sources.find(oid)?
        {
            self.put(oid, kind, &data, mended)?;
            mended.push(name);
        }
        Ok(())
    }

    /// What the names lead to, somebody else's and those of the operations, too.
    fn named_objects(&self) -> Result<Vec<Oid>, StoreError> {
        let failed = || StoreError::git("read its refs");
        let mut named = Vec::from_iter(self.repository.head().ok().and_then(|head| head.target()));
        for reference in self.repository.references().map_err(failed())? {
            named.extend(reference.map_err(failed())?.target());
        }
        Ok(named)
    }

    /// What an object names, of this repository.
    fn spoken_of_by(&self, oid: Oid) -> Result<Vec<Oid>, git2::Error> {
        let (_, kind) = self.repository.odb()?.read_header(oid)?;
        Ok(match kind {
            ObjectType::Commit => {
                let commit = self.repository.find_commit(oid)?;
                commit.parent_ids().chain([commit.tree_id()]).collect()
            }
            ObjectType::Tree => {
                let tree = self.repository.find_tree(oid)?;
                // A commit in a tree is one of another repository.
                let own = tree.iter().filter(|entry| entry.kind() != Some(ObjectType::Commit));
                own.map(|entry| entry.id()).collect()
            }
            ObjectType::Tag => vec![self.repository.find_tag(oid)?.target_id()],
            _ => Vec::new(),
        })
    }

    /// Moves damaged objects aside that nothing refers to, so that no copy of them need be anywhere.
    fn set_aside_unreached(
        &self,
        reached: &BTreeSet<Oid>,
        mended: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        for (oid, path) in self.loose()? {
            if !reached.contains(&oid) && self.read_object(oid).is_err() {
                self.keep_damaged(&path, mended)?;
                mended.push(format!("git object {oid}, which nothing refers to: moved to `.git/{DAMAGED}`"));
            }
        }
        self.refresh()
    }

    fn mend_large(&self, sources: &Sources<'_>, mended: &mut Vec<String>) -> Result<(), StoreError> {
        for (id, stored) in self.patches_there() {
            let Ok(Some(pointer)) = self.objects().pointer(id, stored) else { continue };
            if self.lfs.read(&pointer).is_ok() {
                continue;
            }
            if let Some(bytes) = sources.find_large(&pointer)? {
                self.lfs.write(&bytes)?;
                mended.push(format!("patch {id}"));
            }
        }
        Ok(())
    }

    /// Leaves the operations alone that cannot be read and that no source has, since clones do not carry them; where
    /// they ended is kept with what was damaged.
    fn begin_operations_anew(&self) -> Result<(), StoreError> {
        let folder = self.git_folder().join(DAMAGED);
        lfs::create_folder(&folder)?;
        let failed = || StoreError::io(&folder, "write to");
        let mut file =
            tempfile::Builder::new().prefix("operations.").tempfile_in(&folder).map_err(failed())?;
        let ends = operations::ends(&self.repository);
        file.write_all(ends.as_bytes()).map_err(failed())?;
        file.as_file().sync_all().map_err(failed())?;
        file.keep().map_err(|error| failed()(error.error))?;
        operations::forget(&self.repository)
    }

    /// Every patch with every place it is kept in, of all commits that can be read.
    fn patches_there(&self) -> Vec<(PatchId, Stored)> {
        let mut seen = Seen::default();
        let commits = self.commits_there(&mut Checked::default()).into_iter().map(CommitId);
        let snapshots = commits.filter_map(|commit| self.snapshot(commit).ok());
        snapshots.flat_map(|snapshot| seen.new_patches(&snapshot)).collect()
    }

    /// Moves a damaged pack aside, once all of it that is whole, here or in a source, lies beside it.
    ///
    /// Without anything that a source can add the pack stays, so that mending never makes less of a store.
    fn mend_pack(
        &self,
        pack: &Pack,
        sources: &Sources<'_>,
        mended: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        if pack.problem.is_none() && pack.objects.iter().all(|oid| self.read_object(*oid).is_ok()) {
            return Ok(());
        }
        let apart = pack.open(self)?;
        let is_whole = |oid: &Oid| apart.odb.read(*oid).is_ok();
        let (whole, damaged): (Vec<Oid>, Vec<Oid>) = pack.objects.iter().copied().partition(is_whole);
        let names = || StoreError::git(format!("read {}", pack.name));
        let mut added = Vec::new();
        // Not through the store's own database: that would find each object in the pack, and write nothing.
        let passing = self.passing_repository()?;
        let odb = passing.repository.odb().map_err(names())?;
        let unlisted = if pack.problem.is_some() { sources.listed() } else { BTreeSet::new() };
        for oid in damaged.iter().chain(unlisted.iter().filter(|oid| self.read_object(**oid).is_err())) {
            if let Some((kind, data, name)) = sources.find(*oid)? {
                odb.write(kind, &data).map_err(names())?;
                added.push(name);
            }
        }
        if added.is_empty() {
            return Ok(());
        }
        for oid in whole {
            let object = apart.odb.read(oid).map_err(names())?;
            odb.write(object.kind(), object.data()).map_err(names())?;
        }
        drop(odb);
        mended.append(&mut added);
        move_loose(passing.repository.path(), self.git_folder())?;
        // The index first: without it a pack is not seen.
        let path = self.git_folder().join("objects/pack").join(&pack.name);
        for path in [path.with_extension("idx"), path.with_extension("rev"), path] {
            if path.symlink_metadata().is_ok() {
                self.keep_damaged(&path, mended)?;
            }
        }
        Ok(())
    }

    /// Makes the store see what lies there now.
    fn refresh(&self) -> Result<(), StoreError> {
        let refreshed = self.repository.odb().and_then(|odb| odb.refresh());
        refreshed.map_err(StoreError::git("read its objects"))
    }

    fn loose_path(&self, oid: Oid) -> PathBuf {
        let name = oid.to_string();
        self.git_folder().join("objects").join(&name[..2]).join(&name[2..])
    }

    /// Writes an object whose loose file is damaged or missing.
    fn put(
        &self,
        oid: Oid,
        kind: ObjectType,
        data: &[u8],
        mended: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        let loose = self.loose_path(oid);
        let is_damaged = loose.symlink_metadata().is_ok();
        if is_damaged {
            self.keep_damaged(&loose, mended)?;
        }
        let written = self.write_object(oid, kind, data);
        if is_damaged && written.is_err() {
            mended.push(set_aside(&loose));
        }
        written
    }

    fn write_object(&self, oid: Oid, kind: ObjectType, data: &[u8]) -> Result<(), StoreError> {
        let failed = || StoreError::git(format!("write the object {oid}"));
        self.refresh()?;
        let odb = self.repository.odb().map_err(failed())?;
        let written = written("write an object", || odb.write(kind, data))?;
        if written != oid {
            return Err(StoreError::malformed(format!("git object {oid}"), format!("its copy is {written}")));
        }
        Ok(())
    }

    /// Moves a damaged file out of git's way, into a folder where nothing is deleted. `mended` tells of one that was
    /// moved before an error.
    pub(super) fn keep_damaged(&self, path: &Path, mended: &mut Vec<String>) -> Result<(), StoreError> {
        let folder = self.git_folder().join(DAMAGED);
        lfs::create_folder(&folder)?;
        let above = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = if above == "pack" { name.into_owned() } else { format!("{above}{name}") };
        let place = lfs::first_free(|number| folder.join(format!("{name}.{number}")));
        std::fs::rename(path, &place).map_err(StoreError::io(path, "move"))?;
        lfs::sync(&folder).inspect_err(|_| mended.push(set_aside(path)))
    }

    /// All packs, and what each of them lists.
    fn packs(&self) -> Result<Vec<Pack>, StoreError> {
        let folder = self.git_folder().join("objects/pack");
        let mut packs = Vec::new();
        for entry in entries_if_there(&folder)? {
            let path = entry.path();
            let index = path.with_extension("idx");
            // A pack without an index is one that is not there yet.
            if path.extension().is_none_or(|ending| ending != "pack") || index.symlink_metadata().is_err() {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = std::fs::read(&index).map_err(StoreError::io(&index, "read"))?;
            let (objects, problem) = match listed_in(&bytes) {
                Ok(objects) => (objects, None),
                Err(problem) => (BTreeSet::new(), Some(problem)),
            };
            packs.push(Pack { name, objects, problem });
        }
        packs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(packs)
    }
}

/// What is told of a damaged file that was moved, and has nothing in its place yet.
fn set_aside(path: &Path) -> String {
    format!("`{}`, which is damaged: moved to `.git/{DAMAGED}`", path.display())
}

/// Opens a copy of a patch, if it can be read; called each time that it is needed, so that no file stays open.
pub type Copy<'p> = Box<dyn Fn() -> Option<Patch> + 'p>;

/// Where whole copies come from.
struct Sources<'p> {
    patches: Vec<(&'p Copy<'p>, Oid, lfs::Pointer)>,
    other: Option<Repository>,
}

impl<'p> Sources<'p> {
    fn open(patches: &'p [Copy<'p>], other: Option<&Path>) -> Result<Self, StoreError> {
        let none: [&Path; 0] = [];
        let other = other.map(|path| Repository::open_ext(path, RepositoryOpenFlags::empty(), none));
        let other = other.transpose().map_err(StoreError::git("open the other repository"))?;
        let named = patches.iter().filter_map(|copy| Some((copy, copy()?))).map(|(copy, patch)| {
            let bytes = bytes_of(&patch)?;
            let blob = Oid::hash_object(ObjectType::Blob, &bytes).map_err(StoreError::git("hash a blob"))?;
            Ok((copy, blob, lfs::Pointer::to(&bytes)))
        });
        Ok(Self { patches: named.collect::<Result<_, StoreError>>()?, other })
    }

    fn theirs(&self) -> Option<Odb<'_>> {
        self.other.as_ref()?.odb().ok()
    }

    /// All objects of the other repository.
    fn listed(&self) -> BTreeSet<Oid> {
        self.theirs().map(|odb| listed(&odb)).unwrap_or_default()
    }

    /// A whole copy of an object, and what to call it.
    fn find(&self, oid: Oid) -> Result<Option<(ObjectType, Vec<u8>, String)>, StoreError> {
        let copies = self.patches.iter().filter(|(_, blob, _)| *blob == oid);
        if let Some(patch) = copies.filter_map(|(copy, ..)| copy()).next() {
            let name = format!("patch {}", patch.id());
            return Ok(Some((ObjectType::Blob, bytes_of(&patch)?.into_owned(), name)));
        }
        let theirs = self.theirs();
        let found = theirs.as_ref().and_then(|odb| odb.read(oid).ok());
        Ok(found.map(|object| (object.kind(), object.data().to_vec(), format!("git object {oid}"))))
    }

    fn find_large(&self, pointer: &lfs::Pointer) -> Result<Option<Vec<u8>>, StoreError> {
        let copies = self.patches.iter().filter(|(_, _, known)| known == pointer);
        if let Some(patch) = copies.filter_map(|(copy, ..)| copy()).next() {
            return Ok(Some(bytes_of(&patch)?.into_owned()));
        }
        let theirs = self.other.as_ref().map(|other| lfs::Objects::of(other.path()));
        Ok(theirs.and_then(|theirs| theirs.read(pointer).ok()))
    }
}

/// Moves the loose objects of one repository into another; those that are there already stay.
fn move_loose(from: &Path, to: &Path) -> Result<(), StoreError> {
    let (from, to) = (from.join("objects"), to.join("objects"));
    for folder in entries(&from)? {
        let folder = folder.path();
        let Some(name) = folder.file_name().filter(|name| name.len() == 2) else { continue };
        let target = to.join(name);
        lfs::create_folder(&target)?;
        for file in entries(&folder)? {
            let file = file.path();
            let Some(name) = file.file_name() else { continue };
            if target.join(name).symlink_metadata().is_err() {
                std::fs::rename(&file, target.join(name)).map_err(StoreError::io(&file, "move"))?;
            }
        }
        lfs::sync(&target)?;
    }
    Ok(())
}
