//! The history of what a model knows: a git repository that stock git reads, checks, clones and sends.
//!
//! ```text
//! commit     a state of the model: its message lists the facts, its tree holds base, series and patches
//! branch     a line of such states; HEAD says where the next one goes
//! operation  every change of the names, so that each can be taken back
//! ```
//!
//! The log says what was done, never what is so: in which state a checkpoint is, its digests tell ([`Atlas`]).
//! The repository is bare: no files are checked out, so there is nothing that could differ from what is recorded.
//! Everything acknowledged is on the disk; one process at a time changes a store; nothing is repaired by deleting.
//! No hook, filter or transport of git is ever run from here.

pub mod base;
mod beside;
mod change;
mod damaged_names;
mod error;
mod folder;
pub mod fsck;
mod incoming;
mod lfs;
mod lock;
mod log;
mod message;
mod objects;
mod operations;
mod pack;
mod refs;
mod settings;
mod sound;
pub mod state;
mod tidy;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use git2::{ErrorCode, Oid, Repository, RepositoryInitOptions, RepositoryOpenFlags};

use self::folder::entries;
use self::objects::{ObjectStore, Snapshot, Stored};
use self::operations::Journal;
use crate::checkpoint::{PassingFolder, tell_of_last_step};
use crate::digest::PatchId;
use crate::patch::{Manifest, Patch};

pub use self::base::{Base, BaseTensor};
pub use self::beside::Beside;
pub use self::change::{Change, Replay};
pub use self::error::StoreError;
#[doc(hidden)] // For the command line, which says an error with its causes in the same words.
pub use self::incoming::{Incoming, Received, THEIR_HEAD};
pub use self::lfs::Pointer;
pub use self::log::Commit;
pub use self::message::{Message, is_invisible};
#[doc(hidden)]
pub use self::objects::series_of_bytes;
pub use self::operations::{Author, Deed, Operation};
pub use self::refs::{CommitId, Head, Kind, View};
pub use self::state::{Atlas, Location, Step, way};
pub use self::tidy::Tidied;

/// The version of stores that this program makes and reads.
pub const VERSION: i64 = 1;
/// Where the version stands in the repository's configuration.
const VERSION_KEY: &str = "mpatch.version";
/// The repository's folder, in the store's.
const GIT: &str = ".git";
/// In a mode: everybody may write.
const OTHERS_WRITE: u32 = 0o002;

/// An opened store.
pub struct Store {
    folder: PathBuf,
    repository: Repository,
    lfs: lfs::Objects,
    /// Where patches are that have been asked for, and those beside them.
    places: RefCell<BTreeMap<PatchId, Stored>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Store").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Store {
    /// Makes a store in `folder`, which must hold no repository yet, with a first commit: the base, and no patch.
    ///
    /// # Errors
    /// [`StoreError::Exists`], and what goes wrong with writing; after an error there is no store.
    pub fn create(
        folder: &Path,
        branch: &str,
        base: &Base,
        model: Option<String>,
        author: Author,
    ) -> Result<Self, StoreError> {
        let made = Self::begin(folder, branch)?;
        let mut change = made.change(Duration::ZERO, author)?;
        change.start(base)?;
        change.set_model(model);
        change.finish("init")?;
        made.settle(folder)
    }

    /// An empty store under a passing name in `folder`, to be filled and then settled; dropped before, it is gone, and
    /// where its process is killed, the next one that begins a store there takes it away.
    ///
    /// # Errors
    /// As [`Store::create`].
    pub fn begin(folder: &Path, branch: &str) -> Result<NewStore, StoreError> {
        settings::apply().map_err(StoreError::git("be set up"))?;
        let full = Kind::Branch.full_name(branch)?;
        refuse_repository(folder)?;
        let temporary = passing_folder(folder)?;
        let mut options = RepositoryInitOptions::new();
        options.bare(true).no_reinit(true).external_template(false).initial_head(&full);
        // Who takes the folder away, as a command that is told to stop does, is not to see it come again.
        options.mkpath(false);
        let failed = || StoreError::git("be made");
        let repository = Repository::init_opts(temporary.path(), &options).map_err(failed())?;
        let mut config = repository.config().map_err(failed())?;
        config.set_i64(VERSION_KEY, VERSION).map_err(failed())?;
        // For stock git, if it is used here: write through, check what comes in, never run hooks, sweep nothing.
        for (key, value) in
            [("core.fsync", "all"), ("transfer.fsckObjects", "true"), ("core.hooksPath", "/dev/null")]
        {
            config.set_str(key, value).map_err(failed())?;
        }
        config.set_i32("gc.auto", 0).map_err(failed())?;
        let lfs = lfs::Objects::of(repository.path());
        let store = Store { folder: folder.to_owned(), repository, lfs, places: RefCell::default() };
        Ok(NewStore { store, temporary })
    }

    /// Opens the store in `folder`.
    ///
    /// # Errors
    /// [`StoreError::NoStore`], [`StoreError::Version`] or [`StoreError::Owner`].
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        settings::apply().map_err(StoreError::git("be set up"))?;
        let no_store = || StoreError::NoStore { path: folder.to_owned(), copy: None };
        let none: [&Path; 0] = [];
        let opened = Repository::open_ext(folder, RepositoryOpenFlags::NO_SEARCH, none);
        let repository = opened.map_err(|error| match error.code() {
            ErrorCode::NotFound => match folder.join(GIT).join("HEAD").metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                    StoreError::io(&folder.join(GIT), "open")(error)
                }
                _ => without_head(folder).unwrap_or_else(no_store),
            },
            ErrorCode::Owner => StoreError::Owner { path: folder.to_owned() },
            // Of what is newer or broken, only a history is this program's business.
            _ if !lock::was_taken(folder) => no_store(),
            _ if error.message().starts_with("unsupported ") => {
                StoreError::Form { path: folder.to_owned(), source: error }
            }
            _ => StoreError::git("be opened")(error),
        })?;
        let config = repository.config().and_then(|mut config| config.snapshot());
        let config = config.map_err(StoreError::git("read its configuration"))?;
        match config.get_string(VERSION_KEY) {
            Ok(version) if version == VERSION.to_string() => {}
            Ok(found) => {
                return Err(StoreError::Version { path: folder.to_owned(), found, known: VERSION });
            }
            Err(_) => {
                let copy = is_copy(&repository).then(|| folder.to_owned());
                return Err(StoreError::NoStore { path: folder.to_owned(), copy });
            }
        }
        refuse_worktree(&repository, folder)?;
        refuse_others(&repository, folder)?;
        // libgit2 looks into it for packs only where it is there when the objects are first read, and so would miss
        // those that come later. What may only be read needs none.
        _ = std::fs::create_dir(repository.path().join("objects/pack"));
        let lfs = lfs::Objects::of(repository.path());
        Ok(Self { folder: folder.to_owned(), repository, lfs, places: RefCell::default() })
    }

    /// Opens the store that `from` lies in: its own, or that of the nearest folder above.
    ///
    /// # Errors
    /// As [`Store::open`]; a repository of something else is passed by. [`StoreError::Io`] where `from` is no folder: a
    /// slip must not lead to whatever lies above it.
    pub fn discover(from: &Path) -> Result<Self, StoreError> {
        // The dot is there in folders only.
        std::fs::metadata(from.join(".")).map_err(StoreError::io(from, "open"))?;
        // What lies above `..`, or above a link, its words do not say.
        let real = from.canonicalize().map_err(StoreError::io(from, "find"))?;
        let mut nearest = None;
        for folder in real.ancestors() {
            if folder.join(GIT).symlink_metadata().is_ok() {
                match Self::open(folder) {
                    Err(StoreError::NoStore { copy, .. }) => nearest = nearest.or(copy),
                    other => return other,
                }
            }
        }
        Err(StoreError::NoStore { path: from.to_owned(), copy: nearest })
    }

    /// The folder that the store is in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The repository's own folder.
    pub fn git_folder(&self) -> &Path {
        self.repository.path()
    }

    /// All names as they are now.
    ///
    /// # Errors
    /// [`StoreError::Git`] or [`StoreError::Malformed`].
    pub fn view(&self) -> Result<View, StoreError> {
        let last = operations::last(&self.repository)?;
        View::of(&self.repository, last.and_then(|last| last.after.model))
    }

    /// All operations, the oldest first; names that others have moved since are the last one.
    ///
    /// # Errors
    /// [`StoreError::Git`] or [`StoreError::Malformed`].
    pub fn operations(&self) -> Result<Vec<Operation>, StoreError> {
        operations::list_up_to_date(&self.repository)
    }

    /// The state that `revision` names: `HEAD`, a branch, tag or remote branch, `main~2`, the start of an id.
    ///
    /// # Errors
    /// [`StoreError::NoRevision`], or [`StoreError::NoState`] where it names a commit of something else.
    pub fn resolve(&self, revision: &str) -> Result<CommitId, StoreError> {
        refs::resolve(&self.repository, &self.view()?, revision)
    }

    /// The state that the head stands on.
    ///
    /// # Errors
    /// [`StoreError::LostHead`] where there is none, [`StoreError::NoState`] where git has put the head elsewhere.
    pub fn head(&self) -> Result<CommitId, StoreError> {
        let head = self.view()?.standing(&self.repository)?;
        refs::state_at(&self.repository, head.0, "HEAD")
    }

    /// Takes patches from the state `state` first from now on, and not from the head's: two states may have one patch
    /// with different signatures.
    ///
    /// # Errors
    /// What is wrong with the state.
    pub fn look_first_in(&self, state: CommitId) -> Result<(), StoreError> {
        let snapshot = self.snapshot(state).or_else(|error| self.unsound(state, error))?;
        self.places.borrow_mut().extend(snapshot.patches);
        Ok(())
    }

    /// The patch, checked: as the head's state has it, or else from wherever in the history it is.
    ///
    /// # Errors
    /// [`StoreError::NoRevision`] where no commit has it, or what is wrong with its bytes.
    pub fn patch(&self, id: PatchId) -> Result<Patch, StoreError> {
        self.objects().read_patch(id, self.stored(id)?)
    }

    /// The patch's manifest; a large patch need not be here for it.
    ///
    /// # Errors
    /// As [`Store::patch`].
    pub fn manifest(&self, id: PatchId) -> Result<Manifest, StoreError> {
        self.objects().read_manifest(id, self.stored(id)?)
    }

    /// The model that the store is about.
    ///
    /// # Errors
    /// What is wrong with the head's commit.
    pub fn base(&self) -> Result<Base, StoreError> {
        let head =
            self.repository.find_tree(self.tree(self.head()?)?).map_err(StoreError::git("read a tree"))?;
        self.objects().read_base(objects::base_of(&head)?)
    }

    /// Where a patch is that some commit has, the head's before all others.
    ///
    /// Whoever asks for one patch of a series asks for the others: what a tree says of them is kept, or a history
    /// would be read once for each. Objects stay where they are, so it stays true.
    fn stored(&self, id: PatchId) -> Result<Stored, StoreError> {
        if let Some(known) = self.places.borrow().get(&id) {
            return Ok(*known);
        }
        let head = self.view()?.head_commit().map(|head| head.0);
        for commit in head.into_iter().chain(self.everything()?) {
            let patches = match self.snapshot(CommitId(commit)) {
                Err(error) if error.is_of_content() => continue,
                snapshot => snapshot?.patches,
            };
            let found = patches.get(&id).copied();
            if found.is_some() || head == Some(commit) {
                let mut places = self.places.borrow_mut();
                patches.into_iter().for_each(|(id, stored)| _ = places.entry(id).or_insert(stored));
            }
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(self.view()?.no_revision(&[], &id.to_string()))
    }

    fn snapshot(&self, commit: CommitId) -> Result<Snapshot, StoreError> {
        self.objects().read_tree(self.tree(commit)?)
    }

    fn series(&self, commit: CommitId) -> Result<Vec<PatchId>, StoreError> {
        self.objects().read_series(self.tree(commit)?)
    }

    fn tree(&self, commit: CommitId) -> Result<Oid, StoreError> {
        let commit = self.repository.find_commit(commit.0);
        Ok(commit.map_err(StoreError::git("read a commit"))?.tree_id())
    }

    fn objects(&self) -> ObjectStore<'_> {
        ObjectStore { repository: &self.repository, lfs: &self.lfs }
    }

    /// Takes the right to change the store, waiting for `patience` at most.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when another process has it all that time.
    pub fn change(&self, patience: Duration, author: Author) -> Result<Change<'_>, StoreError> {
        let journal = Journal::open(&self.repository, patience, author)?;
        let signed_anew = BTreeMap::new();
        Ok(Change { journal, store: self, added: None, signed_anew, with_weights: false })
    }
}

/// A store without its name.
#[derive(Debug)]
pub struct NewStore {
    store: Store,
    temporary: PassingFolder,
}

impl std::ops::Deref for NewStore {
    type Target = Store;
    fn deref(&self) -> &Store {
        &self.store
    }
}

impl NewStore {
    /// Gives the store its name in `folder`, once all of it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Exists`] or [`StoreError::Io`]; the name is free again then.
    pub fn settle(self, folder: &Path) -> Result<Store, StoreError> {
        let NewStore { store, temporary } = self;
        drop(store);
        open_up(temporary.path())?;
        settle_below(temporary.path())?;
        let target = folder.join(GIT);
        refuse_repository(folder)?;
        tell_of_last_step();
        std::fs::rename(temporary.path(), &target).map_err(StoreError::io(&target, "create"))?;
        let settled = lfs::sync(folder).and_then(|()| Store::open(folder));
        if settled.is_err() && std::fs::rename(&target, temporary.path()).is_ok() {
            return settled;
        }
        temporary.keep();
        settled
    }
}

/// A history that lacks its head alone: git takes one that is on no branch for a name which can be deleted.
fn without_head(folder: &Path) -> Option<StoreError> {
    let git = folder.join(GIT);
    let is_lost = lock::was_taken(folder) && git.join("refs").is_dir() && !git.join("HEAD").exists();
    is_lost.then_some(StoreError::NoHead { path: git })
}

/// Refuses a repository whose names and configuration are those of another one.
fn refuse_worktree(repository: &Repository, folder: &Path) -> Result<(), StoreError> {
    let common = repository.commondir();
    if common == repository.path() {
        return Ok(());
    }
    let above = common.parent().filter(|_| common.ends_with(GIT));
    Err(StoreError::Worktree { path: folder.to_owned(), main: above.unwrap_or(common).to_owned() })
}

/// Whether the repository is one that git itself copied from a history: the state is there, and what mpatch sets is
/// not.
fn is_copy(repository: &Repository) -> bool {
    let tree = repository.head().and_then(|head| head.peel_to_tree());
    let Ok(tree) = tree else { return false };
    let Ok(base) = objects::base_of(&tree) else { return false };
    let lfs = lfs::Objects::of(repository.path());
    ObjectStore { repository, lfs: &lfs }.read_base(base).is_ok()
}

/// Refuses a repository whose configuration another user can have written; whose its folder is, libgit2 has asked.
fn refuse_others(repository: &Repository, folder: &Path) -> Result<(), StoreError> {
    let git = repository.path();
    let about = |path: &Path| std::fs::metadata(path).map_err(StoreError::io(path, "examine"));
    let owner = about(git)?.uid();
    for path in [git.to_owned(), git.join("config")] {
        let about = about(&path)?;
        if ![owner, 0].contains(&about.uid()) || about.mode() & OTHERS_WRITE != 0 {
            return Err(StoreError::Owner { path: folder.to_owned() });
        }
    }
    Ok(())
}

/// Gives a repository's folder the rights of those in it, which are as the umask has them: what has a passing name is
/// its user's alone, and a history is read by whom the umask lets in, as git's own are.
fn open_up(git: &Path) -> Result<(), StoreError> {
    let inside = git.join("objects");
    let rights = std::fs::metadata(&inside).map_err(StoreError::io(&inside, "examine"))?.permissions();
    std::fs::set_permissions(git, rights).map_err(StoreError::io(git, "change the permissions of"))
}

/// Takes the right to write to a file or folder from those who are neither its owner nor of its group.
fn keep_from_others(path: &Path) -> Result<(), StoreError> {
    let mode = std::fs::metadata(path).map_err(StoreError::io(path, "examine"))?.mode();
    if mode & OTHERS_WRITE == 0 {
        return Ok(());
    }
    let kept = Permissions::from_mode(mode & !OTHERS_WRITE);
    std::fs::set_permissions(path, kept).map_err(StoreError::io(path, "change the permissions of"))
}

/// Refuses a folder with a repository in it.
fn refuse_repository(folder: &Path) -> Result<(), StoreError> {
    match Store::open(folder) {
        Ok(_) => Err(StoreError::Exists { path: folder.to_owned(), what: "a history of mpatch" }),
        Err(error @ StoreError::NoStore { copy: Some(_), .. }) => Err(error),
        Err(StoreError::NoStore { .. }) if folder.join(GIT).symlink_metadata().is_err() => Ok(()),
        Err(StoreError::NoStore { .. }) => {
            Err(StoreError::Exists { path: folder.to_owned(), what: "a git repository of something else" })
        }
        Err(other) => Err(other),
    }
}

/// A folder under a passing name, gone when it is dropped; it takes those of processes that are gone away.
fn passing_folder(above: &Path) -> Result<PassingFolder, StoreError> {
    PassingFolder::make(above).map_err(StoreError::io(above, "write to"))
}

/// Writes every file and folder below `folder` through to the disk, after it is no longer everybody's to write,
/// whatever the umask says: [`refuse_others`] would never let anybody in.
fn settle_below(folder: &Path) -> Result<(), StoreError> {
    for entry in entries(folder)? {
        let kind = entry.file_type().map_err(StoreError::io(folder, "list"))?;
        if kind.is_dir() {
            settle_below(&entry.path())?;
        } else if kind.is_file() {
            keep_from_others(&entry.path())?;
            lfs::sync(&entry.path())?;
        }
    }
    keep_from_others(folder)?;
    lfs::sync(folder)
}
