//! What comes from another store, kept apart until all of it has been checked.
//!
//! ```text
//! incoming (a repository of its own: no hooks, no configuration but ours; the store's objects lie behind it)
//!     git fetch  ->  pack  ->  every new commit, tree, patch and state checked  ->  pack moved in  ->  names move
//! ```
//!
//! `git` itself runs in the incoming repository only, so nothing in a store's own configuration can make it run
//! anything; and what a remote sends is in the store only once it has been found to be what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirEntry;
use std::path::{Path, PathBuf};

use git2::{Oid, Repository, RepositoryInitOptions};

use super::error::{StoreError, named};
use super::folder::entries;
use super::lfs::{self, Pointer};
use super::log::{is_strange, reachable};
use super::objects::{ObjectStore, Stored};
use super::refs::{CommitId, Kind, is_foreign, peeled};
use super::sound::Soundness;
use super::state::Paths;
use super::{Change, Store, passing_folder};
use crate::checkpoint::{PassingFolder, tell_of_last_step};
use crate::digest::PatchId;
use crate::patch::Patch;
use crate::patch::manifest::Binding;

/// What the other store's head is fetched as, where that is on no branch.
pub const THEIR_HEAD: &str = "refs/mpatch/head";

/// What the head of a passing repository is on: nothing that a remote sends, or `git lfs` would follow the
/// `.lfsconfig` on a branch of that name, and send what it finds, credentials too, to wherever that says.
const NOWHERE: &str = "refs/mpatch/none";

/// Where things from another store, or for one, pass through.
pub struct Incoming<'s> {
    store: &'s Store,
    repository: Repository,
    _folder: PassingFolder,
}

/// A repository for a while.
pub(super) struct Passing {
    pub(super) repository: Repository,
    pub(super) folder: PassingFolder,
}

/// What came and no name here leads to, and what is here of it all the same.
#[derive(Default)]
struct Arrivals {
    /// Of states that are new here.
    trees: Trees,
    /// Patches that the states here have, each with where it is kept.
    known: BTreeSet<(PatchId, Stored)>,
}

/// What came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// The other store's branches.
    pub branches: BTreeMap<String, CommitId>,
    /// Tags that are new here, and what they name: a commit, or a tag object that leads to one.
    pub tags: BTreeMap<String, CommitId>,
    /// Tags that name something else here, and were left as they are.
    pub tags_kept: Vec<String>,
    /// Names that have no room beside others here, and were left out: each with the one in its way.
    pub left_out: BTreeMap<String, String>,
    /// Commits that are new here.
    pub commits: usize,
    /// Where the other store's head is, if it was fetched.
    pub head: Option<CommitId>,
}

impl Store {
    /// An empty repository in the store's own folder, gone when it is dropped.
    pub(super) fn passing_repository(&self) -> Result<Passing, StoreError> {
        let folder = passing_folder(self.git_folder())?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).no_reinit(true).external_template(false).initial_head(NOWHERE);
        let repository = Repository::init_opts(folder.path(), &options);
        let repository = repository.map_err(StoreError::git("make a passing repository"))?;
        Ok(Passing { repository, folder })
    }

    /// An empty place for what comes in or goes out.
    ///
    /// # Errors
    /// What goes wrong with making it.
    pub fn incoming(&self) -> Result<Incoming<'_>, StoreError> {
        let failed = || StoreError::git("make room for what comes in");
        let git = self.git_folder();
        let Passing { repository, folder } = self.passing_repository()?;
        let objects = std::path::absolute(git.join("objects")).map_err(StoreError::io(git, "find"))?;
        let alternates = repository.path().join("objects/info/alternates");
        let Some(line) = objects.to_str().filter(|path| !path.contains('\n') && !path.starts_with('"'))
        else {
            return Err(StoreError::malformed(git.display().to_string(), "git cannot name this folder"));
        };
        std::fs::write(&alternates, format!("{line}\n")).map_err(StoreError::io(&alternates, "write"))?;
        // In this repository's own file: from the command line it would count for the other side's storage, too.
        let storage = std::path::absolute(self.lfs.folder()).map_err(StoreError::io(git, "find"))?;
        let Some(storage) = storage.to_str() else {
            return Err(StoreError::malformed(git.display().to_string(), "git cannot name this folder"));
        };
        let configured = repository.config().and_then(|mut config| config.set_str("lfs.storage", storage));
        configured.map_err(failed())?;
        // Opened anew, so that the alternates are read.
        let repository = Repository::open(folder.path()).map_err(failed())?;
        Ok(Incoming { store: self, repository, _folder: folder })
    }

    /// The address of the other store called `remote`, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn remote(&self, remote: &str) -> Result<Option<String>, StoreError> {
        let config = self.repository.config().and_then(|mut config| config.snapshot());
        let config = config.map_err(StoreError::git("read its configuration"))?;
        Ok(config.get_string(&format!("remote.{remote}.url")).ok())
    }

    /// Forgets the address of the other store called `remote`, after a change that came to nothing; where that is
    /// impossible it stays, and is all that stays.
    pub fn forget_remote(&self, remote: &str) {
        let Ok(mut config) = self.repository.config() else { return };
        ["url", "fetch"].iter().for_each(|key| _ = config.remove(&format!("remote.{remote}.{key}")));
    }

    /// Pointers of all large patches that the histories of `commits` have, whether the patches are here or not.
    ///
    /// # Errors
    /// What is wrong with a commit.
    pub fn large_patches(&self, commits: &[CommitId]) -> Result<Vec<Pointer>, StoreError> {
        let targets: Vec<Oid> = commits.iter().map(|commit| commit.0).collect();
        pointers(self.objects(), self.states(&targets)?)
    }
}

fn pointers(objects: ObjectStore<'_>, commits: Vec<Oid>) -> Result<Vec<Pointer>, StoreError> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for (id, stored) in patches(objects, &trees(objects, commits)?)? {
        // Any number of ids may name one blob.
        if seen.insert(stored.blob) {
            found.extend(objects.pointer(id, stored)?);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The trees of `commits`, each with those that have it.
///
/// A small pack may hold many thousand commits, and large trees that differ in little: each tree is read once, and
/// one at a time.
type Trees = Vec<(Oid, Vec<CommitId>)>;

fn trees(objects: ObjectStore<'_>, commits: Vec<Oid>) -> Result<Trees, StoreError> {
    let (mut trees, mut places) = (Trees::new(), BTreeMap::new());
    for commit in commits {
        let found = objects.repository.find_commit(commit).map_err(StoreError::git("read a commit"))?;
        let place = *places.entry(found.tree_id()).or_insert(trees.len());
        if place == trees.len() {
            trees.push((found.tree_id(), Vec::new()));
        }
        trees[place].1.push(CommitId(commit));
    }
    Ok(trees)
}

/// Every patch with every place it is kept in.
fn patches(
    objects: ObjectStore<'_>,
    trees: &[(Oid, Vec<CommitId>)],
) -> Result<Vec<(PatchId, Stored)>, StoreError> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for (tree, _) in trees {
        let snapshot = match objects.read_tree(*tree) {
            // Here it is passed by, and what comes is refused for it where its states are checked.
            Err(error) if error.is_of_content() => continue,
            snapshot => snapshot?,
        };
        for (id, stored) in snapshot.patches {
            if seen.insert((id, stored)) {
                found.push((id, stored));
            }
        }
    }
    Ok(found)
}

impl Incoming<'_> {
    /// The repository that `git` is to run in.
    pub fn git_folder(&self) -> &Path {
        self.repository.path()
    }

    fn objects(&self) -> ObjectStore<'_> {
        ObjectStore { repository: &self.repository, lfs: &self.store.lfs }
    }

    /// Names of one kind that came and lead to states of the model: the state of a branch, and what a tag names,
    /// which may be an object with the words of whoever made it, and a signature.
    fn names(&self, kind: Kind) -> Result<BTreeMap<String, Oid>, StoreError> {
        let failed = || StoreError::git("read what came in");
        let mut names = BTreeMap::new();
        let pattern = format!("{}*", kind.prefix());
        for reference in self.repository.references_glob(&pattern).map_err(failed())? {
            let reference = reference.map_err(failed())?;
            // What is no state of a model is no concern of ours, there as little as here.
            if reference.target().is_some_and(|target| is_foreign(&self.repository, target)) {
                continue;
            }
            let commit = reference.peel_to_commit().map_err(failed())?;
            if is_strange(&self.repository, commit.id()) {
                continue;
            }
            let full = reference.name().map_err(failed())?;
            let name = full.strip_prefix(kind.prefix()).unwrap_or(full);
            // Checked again: what a remote calls its branches reaches terminals and paths.
            kind.full_name(name)?;
            let of_tag = reference.target().filter(|_| kind == Kind::Tag);
            names.insert(name.to_owned(), of_tag.unwrap_or(commit.id()));
        }
        Ok(names)
    }

    /// The state that the other store's head is at, if it was fetched.
    fn their_head(&self) -> Option<Oid> {
        let target = self.repository.refname_to_id(THEIR_HEAD).ok()?;
        Some(target).filter(|target| !is_strange(&self.repository, *target))
    }

    /// The patches that came and that nothing here leads to yet, one at a time, each checked.
    ///
    /// A patch with other signatures than the one here is a new one.
    ///
    /// # Errors
    /// What is wrong with a commit; and of each patch, what is wrong with it.
    pub fn new_patches(&self) -> Result<impl Iterator<Item = Result<Patch, StoreError>>, StoreError> {
        let Arrivals { trees, known } = self.arrivals()?;
        let came = patches(self.objects(), &trees)?;
        let new = came.into_iter().filter(move |place| !known.contains(place));
        Ok(new.map(|(id, stored)| self.objects().read_patch(id, stored)))
    }

    /// What came, without what is here: that is not read again, however long the history is.
    fn arrivals(&self) -> Result<Arrivals, StoreError> {
        let here = match self.store.view()?.head_commit() {
            None => Vec::new(),
            Some(_) => self.store.everything()?,
        };
        let here_too: BTreeSet<Oid> = here.iter().copied().collect();
        let mut came = self.commits()?;
        came.retain(|commit| !here_too.contains(commit));
        if came.is_empty() {
            return Ok(Arrivals::default());
        }
        let known = patches(self.store.objects(), &trees(self.store.objects(), here)?)?;
        Ok(Arrivals { trees: trees(self.objects(), came)?, known: known.into_iter().collect() })
    }

    /// Every state that a name there leads to, the newest first.
    fn commits(&self) -> Result<Vec<Oid>, StoreError> {
        let (branches, tags) = (self.names(Kind::Branch)?, self.names(Kind::Tag)?);
        let targets = branches.into_values().chain(tags.into_values()).chain(self.their_head());
        let targets: Vec<Oid> = targets.collect();
        let mut commits = reachable(&self.repository, &targets)?;
        commits.retain(|commit| !is_strange(&self.repository, *commit));
        Ok(commits)
    }

    /// Takes the names out of what came that lead to commits which hold no state that can be; each with why.
    ///
    /// # Errors
    /// [`StoreError::OtherBase`] where no branch is left, and one of them is about another model; what else is wrong
    /// with a commit.
    pub fn leave_out_unsound(&self) -> Result<Vec<StoreError>, StoreError> {
        let here: BTreeSet<Oid> = match self.store.view()?.head_commit() {
            None => BTreeSet::new(),
            Some(_) => self.store.everything()?.into_iter().collect(),
        };
        let base = if here.is_empty() { None } else { Some(self.store.base()?) };
        let mut soundness = Soundness::new(self.objects(), base);
        let failed = || StoreError::git("read what came in");
        let mut left_out = BTreeMap::<CommitId, (Vec<String>, StoreError)>::new();
        for kind in [Kind::Branch, Kind::Tag] {
            for (name, target) in self.names(kind)? {
                let mut came = reachable(&self.repository, &[target])?;
                came.retain(|commit| !here.contains(commit));
                let Some((commit, error)) = soundness.first_unsound(&came)? else { continue };
                let full = format!("{}{name}", kind.prefix());
                let mut reference = self.repository.find_reference(&full).map_err(failed())?;
                reference.delete().map_err(failed())?;
                left_out.entry(commit).or_insert((Vec::new(), error)).0.push(format!("{kind} `{name}`"));
            }
        }
        let is_all = self.names(Kind::Branch)?.is_empty();
        let told = |(commit, (names, source)): (CommitId, (Vec<String>, StoreError))| match source {
            StoreError::OtherBase { expected, found, .. } if is_all => {
                let what = format!("the commit {}{}", commit.short(), named(&names));
                Err(StoreError::OtherBase { what, expected, found })
            }
            source => Ok(StoreError::Unsound { commit, names, is_current: false, source: Box::new(source) }),
        };
        left_out.into_iter().map(told).collect()
    }

    /// Large patches of what came that are not here yet.
    ///
    /// # Errors
    /// What is wrong with a commit.
    pub fn missing(&self) -> Result<Vec<Pointer>, StoreError> {
        let mut found = pointers(self.objects(), self.commits()?)?;
        found.retain(|pointer| !self.store.lfs.has(pointer));
        Ok(found)
    }

    /// Checks everything that came: each commit, tree and patch, and that every series leads to what it claims. Of a
    /// patch that is known here this needs the bindings, and that it has not been lost.
    fn check(&self, with_base: bool) -> Result<usize, StoreError> {
        let objects = self.objects();
        let Arrivals { trees, known } = self.arrivals()?;
        let mut bindings = BTreeMap::new();
        for (id, stored) in patches(objects, &trees)? {
            let is_here = known.contains(&(id, stored))
                && objects.pointer(id, stored)?.is_none_or(|pointer| self.store.lfs.has(&pointer));
            let patch = if is_here { None } else { Some(objects.read_patch(id, stored)?) };
            bindings.insert(id, objects.bindings(id, stored, patch.as_ref())?);
        }
        self.check_states(&trees, with_base, &bindings)?;
        let odb = self.store.repository.odb().map_err(StoreError::git("open its objects"))?;
        Ok(trees.iter().flat_map(|(_, commits)| commits).filter(|commit| !odb.exists(commit.0)).count())
    }

    /// Every tree is about one base, the store's own where it has one, and its series leads to the
    /// state that its commits claim.
    fn check_states(
        &self,
        trees: &[(Oid, Vec<CommitId>)],
        with_base: bool,
        bindings: &BTreeMap<PatchId, Vec<Binding>>,
    ) -> Result<(), StoreError> {
        let objects = self.objects();
        let mut ours = if with_base { Some(Paths::new(self.store.base()?)) } else { None };
        let mut known = BTreeSet::new();
        for (tree, commits) in trees {
            let snapshot = objects.read_tree(*tree)?;
            if known.insert(snapshot.base) {
                let base = objects.read_base(snapshot.base)?;
                let ours = ours.get_or_insert_with(|| Paths::new(base.clone())).base();
                if *ours != base {
                    let what = commits.first().map(|commit| commit.short()).unwrap_or_default();
                    return Err(StoreError::other_base(format!("commit {what}"), ours, &base));
                }
            }
            let Some(ours) = &mut ours else { continue };
            let state = ours.after(&snapshot.series, bindings)?.clone().weights_id(ours.base());
            for commit in commits {
                if let Some(what) = objects.false_claim(commit.0, state)? {
                    return Err(StoreError::malformed(format!("commit {}", commit.short()), what));
                }
            }
        }
        Ok(())
    }

    /// Checks what came, moves it into the store, and gives it names: tags, and branches under `remote` where the other
    /// store has a name here. After an error nothing of it has one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn receive(&self, change: &mut Change<'_>, remote: Option<&str>) -> Result<Received, StoreError> {
        let (branches, tags) = (self.names(Kind::Branch)?, self.names(Kind::Tag)?);
        let has_base = change.view().head_commit().is_some();
        let commits = self.check(has_base)?;
        move_packs(self.repository.path(), self.store.git_folder())?;
        let odb = self.store.repository.odb().and_then(|odb| odb.refresh());
        odb.map_err(StoreError::git("read what came in"))?;
        let head = self.their_head().map(CommitId);
        let mut received = Received { commits, head, ..Received::default() };
        if let Some(remote) = remote {
            let prefix = format!("{}{remote}/", Kind::Remote.prefix());
            change.journal.after.refs.retain(|name, _| !name.starts_with(&prefix));
            for (name, commit) in &branches {
                received.name(change, format!("{prefix}{name}"), *commit);
            }
        }
        received.branches = branches.into_iter().map(|(name, commit)| (name, CommitId(commit))).collect();
        for (name, target) in tags {
            let full = format!("{}{name}", Kind::Tag.prefix());
            let commit = |target| peeled(&self.store.repository, target);
            match change.target(&full) {
                None => {
                    if received.name(change, full, target) {
                        received.tags.insert(name, CommitId(target));
                    }
                }
                Some(known) if commit(known) == commit(target) => {}
                Some(_) => received.tags_kept.push(name),
            }
        }
        Ok(received)
    }
}

impl Received {
    /// Gives a commit, or a tag object, a name that is new here, where there is room for it.
    fn name(&mut self, change: &mut Change<'_>, full: String, target: Oid) -> bool {
        let after = &mut change.journal.after;
        let Some(other) = after.clash(&full).map(str::to_owned) else {
            after.refs.insert(full, target);
            return true;
        };
        self.left_out.insert(full, other);
        false
    }
}

impl Change<'_> {
    /// Remembers the address of another store.
    ///
    /// # Errors
    /// [`StoreError::Git`].
    pub fn set_remote(&mut self, remote: &str, address: &str) -> Result<(), StoreError> {
        let failed = || StoreError::git("write its configuration");
        tell_of_last_step();
        let mut config = self.store.repository.config().map_err(failed())?;
        config.set_str(&format!("remote.{remote}.url"), address).map_err(failed())?;
        let fetch = format!("+{}*:{}{remote}/*", Kind::Branch.prefix(), Kind::Remote.prefix());
        config.set_str(&format!("remote.{remote}.fetch"), &fetch).map_err(failed())
    }

    /// Remembers that the other store's branch is here. A name in its way is that of a branch which is there no more,
    /// or the other store could not have this one.
    pub fn sent(&mut self, remote: &str, branch: &str, commit: CommitId) {
        let full = format!("{}{remote}/{branch}", Kind::Remote.prefix());
        let after = &mut self.journal.after;
        while let Some(stale) = after.clash(&full).map(str::to_owned) {
            after.refs.remove(&stale);
        }
        after.refs.insert(full, commit.0);
    }

    /// A branch of this store at a commit that has just come.
    ///
    /// # Errors
    /// [`StoreError::Name`] for a name that git would not take.
    pub fn adopt(&mut self, branch: &str, commit: CommitId) -> Result<(), StoreError> {
        let full = Kind::Branch.full_name(branch)?;
        self.journal.after.refs.insert(full, commit.0);
        self.journal.after.head = super::Head::Branch(branch.to_owned());
        Ok(())
    }
}

/// Moves the packs of one repository into another, each with its index last, since that is what makes it seen.
pub(super) fn move_packs(from: &Path, to: &Path) -> Result<(), StoreError> {
    let (from, to) = (from.join("objects/pack"), to.join("objects/pack"));
    lfs::create_folder(&to)?;
    let mut files: Vec<PathBuf> = entries(&from)?.iter().map(DirEntry::path).collect();
    files.sort_by_key(|path| path.extension().is_some_and(|ending| ending == "idx"));
    for file in files {
        let Some(name) = file.file_name() else { continue };
        lfs::sync(&file)?;
        std::fs::rename(&file, to.join(name)).map_err(StoreError::io(&file, "move"))?;
    }
    lfs::sync(&to)
}
