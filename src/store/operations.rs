//! Every change of a store is an operation: all names before it, and all after. So each can be taken back.
//!
//! ```text
//! refs/mpatch/operations   o1 <- o2 <- o3             commits of their own, which `git log` does not show
//!                                       \ tree: before, after;  parents: o2, and what o3's names came to name
//! ```
//!
//! An operation is written first, then announced under `refs/mpatch/pending`, then the names move, and then it is
//! the last of `refs/mpatch/operations`. A process that dies in between leaves the announcement, and whoever changes
//! the store next finishes the work, or takes it back where it is impossible. Names that stock git moved meanwhile
//! become an operation as well.

use std::collections::BTreeSet;
use std::time::Duration;

use git2::{Commit as GitCommit, ErrorCode, Oid, Repository, Signature, Time};

use super::error::StoreError;
use super::lock::Lock;
use super::objects::{FILE, write_commit, written};
use super::refs::{CommitId, Moved, View, peeled};
use crate::checkpoint::tell_of_last_step;

const OPERATIONS: &str = "refs/mpatch/operations";
const PENDING: &str = "refs/mpatch/pending";
const BEFORE: &str = "before";
const AFTER: &str = "after";
/// The title of a move by others.
const OUTSIDE: &str = "names moved outside of mpatch";
/// What begins the line that says of an operation which other one it takes back.
const UNDOES: &str = "Undoes: ";
/// What begins the line that says of an operation which other one it does again.
const REDOES: &str = "Redoes: ";
/// The line that says of an operation that it was a move by others.
const BY_OTHERS: &str = "Outside: yes";
/// The line that says of an operation that weights were written with it.
const WITH_WEIGHTS: &str = "Weights: written";

/// Who does something, and when; the clock is the caller's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    /// A name.
    pub name: String,
    /// An address.
    pub email: String,
    /// Seconds since 1970, UTC.
    pub seconds: i64,
    /// How far the clock on the wall is ahead of UTC, in minutes.
    pub offset_minutes: i32,
}

impl Author {
    pub(super) fn signature(&self) -> Result<Signature<'static>, git2::Error> {
        Signature::new(&self.name, &self.email, &Time::new(self.seconds, self.offset_minutes))
    }
}

/// What an operation was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// A command's own work.
    Do {
        /// It wrote weights: a copy that is the model since, or where the model was.
        with_weights: bool,
    },
    /// The taking back of another operation.
    Undo(CommitId),
    /// Another operation, done again.
    Redo(CommitId),
    /// Names that were moved by others.
    Outside,
}

impl Deed {
    /// The message of an operation: its title, and a line that says its kind.
    fn message(self, title: &str) -> String {
        let line = match self {
            Self::Do { with_weights: false } => return format!("{title}\n"),
            Self::Do { with_weights: true } => WITH_WEIGHTS.to_owned(),
            Self::Undo(operation) => format!("{UNDOES}{operation}"),
            Self::Redo(operation) => format!("{REDOES}{operation}"),
            Self::Outside => BY_OTHERS.to_owned(),
        };
        format!("{title}\n\n{line}\n")
    }

    /// What the message of an operation says of its kind.
    fn of_message(message: &str) -> Self {
        let of = |key: &str| {
            let line = message.lines().find_map(|line| line.strip_prefix(key))?;
            Some(CommitId(line.parse().ok()?))
        };
        match (of(UNDOES), of(REDOES)) {
            (Some(operation), _) => Self::Undo(operation),
            (_, Some(operation)) => Self::Redo(operation),
            _ if message.lines().any(|line| line == BY_OTHERS) => Self::Outside,
            _ => Self::Do { with_weights: message.lines().any(|line| line == WITH_WEIGHTS) },
        }
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its id; all zeros for a move by others that the next change will record.
    pub id: CommitId,
    /// What it was, in a few words.
    pub title: String,
    /// Its kind.
    pub deed: Deed,
    /// When, in seconds since 1970; of a move by others that is not recorded, when the operation before it was.
    pub seconds: i64,
    /// The clock on the wall then, in minutes ahead of UTC.
    pub offset_minutes: i32,
    /// All names before it.
    pub before: View,
    /// All names after it.
    pub after: View,
}

impl Operation {
    /// The names are `now` what nobody has recorded, since the operation before.
    fn outside(before: &Operation, now: View) -> Self {
        Self {
            id: CommitId(Oid::ZERO_SHA1),
            title: OUTSIDE.to_owned(),
            deed: Deed::Outside,
            seconds: before.seconds,
            offset_minutes: before.offset_minutes,
            before: before.after.clone(),
            after: now,
        }
    }
}

/// Whether a command's own work wrote weights, as far as its title and the model tell: earlier versions recorded no
/// more of it.
fn seems_with_weights(title: &str, before: &View, after: &View) -> bool {
    let is_step = ["apply ", "revert ", "model "].iter().any(|verb| title.starts_with(verb));
    let is_moved = title.ends_with(" with its weights") || before.model != after.model;
    is_step || (title.starts_with("checkout ") && is_moved)
}

/// All operations that are recorded, the oldest first.
pub(super) fn list(repository: &Repository) -> Result<Vec<Operation>, StoreError> {
    let mut operations = Vec::new();
    let mut next = last_commit(repository, OPERATIONS)?;
    while let Some(commit) = next {
        operations.push(read(repository, &commit)?);
        // The first parent is the operation before; the first operation's parents are what it named.
        next = match commit.parent(0) {
            Ok(parent) if is_operation(&parent) => Some(parent),
            _ => None,
        };
    }
    operations.reverse();
    Ok(operations)
}

/// All operations as the next change will find them: with one that was announced and has not ended, or with one for
/// the names that others moved, which is not recorded yet.
pub(super) fn list_up_to_date(repository: &Repository) -> Result<Vec<Operation>, StoreError> {
    let mut operations = list(repository)?;
    let pending = last_commit(repository, PENDING)?;
    match (operations.last(), pending) {
        (Some(last), Some(pending)) if last.id.0 == pending.id() => {}
        // Which names others moved can be told once those of this one have.
        (_, Some(pending)) => operations.push(read(repository, &pending)?),
        (Some(last), None) => {
            let now = View::of(repository, last.after.model.clone())?;
            let outside = (last.after != now).then(|| Operation::outside(last, now));
            operations.extend(outside);
        }
        (None, None) => {}
    }
    Ok(operations)
}

/// All commits that operations keep because names led to them. Tag objects are kept by their names alone, and git may
/// have swept them away since.
pub(super) fn kept(repository: &Repository, operations: &[Operation]) -> BTreeSet<Oid> {
    let commits = operations.iter().filter_map(|operation| repository.find_commit(operation.id.0).ok());
    commits.flat_map(|commit| Vec::from_iter(commit.parent_ids())).collect()
}

/// Where the operations end, a name and an id a line, whether they can be read or not.
pub(super) fn ends(repository: &Repository) -> String {
    let ends = [OPERATIONS, PENDING].into_iter().filter_map(|name| {
        let target = repository.find_reference(name).ok()?.target()?;
        Some(format!("{name} {target}\n"))
    });
    ends.collect()
}

/// Takes the names of all operations away.
pub(super) fn forget(repository: &Repository) -> Result<(), StoreError> {
    for name in [OPERATIONS, PENDING] {
        if let Ok(mut reference) = repository.find_reference(name) {
            reference.delete().map_err(StoreError::git(format!("take `{name}` away")))?;
        }
    }
    Ok(())
}

/// The last operation.
pub(super) fn last(repository: &Repository) -> Result<Option<Operation>, StoreError> {
    last_commit(repository, OPERATIONS)?.map(|commit| read(repository, &commit)).transpose()
}

/// Whether a commit records a change of the names.
pub(super) fn is_operation(commit: &GitCommit<'_>) -> bool {
    commit.tree().is_ok_and(|tree| tree.get_name(BEFORE).is_some() && tree.get_name(AFTER).is_some())
}

fn last_commit<'r>(repository: &'r Repository, name: &str) -> Result<Option<GitCommit<'r>>, StoreError> {
    let failed = || StoreError::git(format!("read `{name}`"));
    match repository.find_reference(name) {
        Ok(reference) => Ok(Some(reference.peel_to_commit().map_err(failed())?)),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(_) => Err(StoreError::DamagedName { name: name.to_owned() }),
    }
}

fn read(repository: &Repository, commit: &GitCommit<'_>) -> Result<Operation, StoreError> {
    let refuse = |what: &str| StoreError::malformed(format!("operation {}", commit.id()), what);
    let view = |name: &str| {
        let tree = commit.tree().map_err(StoreError::git("read an operation"))?;
        let entry = tree.get_name(name).ok_or_else(|| refuse("it lacks its names"))?;
        let blob = repository.find_blob(entry.id()).map_err(StoreError::git("read an operation"))?;
        let text = std::str::from_utf8(blob.content()).ok();
        text.and_then(View::parse).ok_or_else(|| refuse("its names cannot be read"))
    };
    let message = commit.message().map_err(|_| refuse("its words are not UTF-8"))?;
    let time = commit.time();
    let title = message.lines().next().unwrap_or_default().to_owned();
    let (before, after) = (view(BEFORE)?, view(AFTER)?);
    let deed = match Deed::of_message(message) {
        Deed::Do { with_weights: false } => {
            Deed::Do { with_weights: seems_with_weights(&title, &before, &after) }
        }
        deed => deed,
    };
    Ok(Operation {
        id: CommitId(commit.id()),
        title,
        deed,
        seconds: time.seconds(),
        offset_minutes: time.offset_minutes(),
        before,
        after,
    })
}

/// Operations that can be taken back, and those that can be done again; the next one of each stands last.
pub(super) fn stacks(operations: &[Operation]) -> (Vec<&Operation>, Vec<&Operation>) {
    let (mut done, mut undone): (Vec<&Operation>, Vec<&Operation>) = (Vec::new(), Vec::new());
    for operation in operations {
        match operation.deed {
            Deed::Undo(_) => undone.extend(done.pop()),
            Deed::Redo(_) => done.extend(undone.pop()),
            Deed::Do { .. } | Deed::Outside => {
                done.push(operation);
                undone.clear();
            }
        }
    }
    (done, undone)
}

/// The right to change a store, and what it will be when the change is finished.
///
/// Objects are written as they come; names move only in [`Change::finish`].
#[derive(Debug)]
pub(super) struct Journal {
    _lock: Lock,
    pub(super) author: Author,
    pub(super) before: View,
    pub(super) after: View,
}

impl Journal {
    /// Takes the lock, and brings the operations up to what is there.
    pub(super) fn open(
        repository: &Repository,
        patience: Duration,
        author: Author,
    ) -> Result<Self, StoreError> {
        let lock = Lock::take(repository.path(), patience)?;
        finish_pending(repository)?;
        let last = last(repository)?;
        let model = last.as_ref().and_then(|last| last.after.model.clone());
        let now = View::of(repository, model)?;
        if let Some(last) = last.filter(|last| last.after != now) {
            let message = Deed::Outside.message(OUTSIDE);
            let operation = write(repository, &author, &message, &last.after, &now)?;
            point(repository, OPERATIONS, operation)?;
        }
        Ok(Self { _lock: lock, author, before: now.clone(), after: now })
    }

    /// Moves the names, and records that they moved.
    pub(super) fn finish(self, repository: &Repository, title: &str, deed: Deed) -> Result<(), StoreError> {
        self.after.refs.keys().try_for_each(|name| self.after.check_room(name))?;
        tell_of_last_step();
        let operation = write(repository, &self.author, &deed.message(title), &self.before, &self.after)?;
        announce(repository, operation)?;
        carry_out(repository, operation, &self.before, &self.after)
    }
}

/// Announces an operation. One whose name is there, and was refused all the same, is announced no longer: its user is
/// told that nothing was done, and the next change must not do it.
fn announce(repository: &Repository, operation: Oid) -> Result<(), StoreError> {
    let Err(cause) = point(repository, PENDING, operation) else { return Ok(()) };
    match is_at(repository, PENDING, operation) && forget_pending(repository).is_err() {
        true => Err(StoreError::Pending { source: Box::new(cause) }),
        false => Err(cause),
    }
}

/// Moves the names as an announced operation says. Where that is impossible they go back, and it is announced no
/// longer: it would be in the way of everything after it.
fn carry_out(repository: &Repository, operation: Oid, before: &View, after: &View) -> Result<(), StoreError> {
    let moved = after.install(before, repository, Moved::Refused);
    let moved = moved.and_then(|()| point(repository, OPERATIONS, operation));
    let Err(cause) = moved else {
        // It is recorded: an announcement that stays is taken away by the next change.
        let _ = forget_pending(repository);
        return Ok(());
    };
    let taken_back = before
        .install(after, repository, Moved::LeftAlone)
        .and_then(|()| unrecord(repository, operation))
        .and_then(|()| forget_pending(repository));
    match taken_back {
        Ok(()) => Err(cause),
        Err(_) => Err(StoreError::Pending { source: Box::new(cause) }),
    }
}

/// Ends what a process began that died, or was refused, before it could.
fn finish_pending(repository: &Repository) -> Result<(), StoreError> {
    let Some(commit) = last_commit(repository, PENDING)? else { return Ok(()) };
    let last = last_commit(repository, OPERATIONS)?;
    if last.is_some_and(|last| last.id() == commit.id()) {
        // Its names have moved; others may have moved them on since.
        return forget_pending(repository);
    }
    let operation = read(repository, &commit)?;
    match carry_out(repository, commit.id(), &operation.before, &operation.after) {
        // Nobody was told that it was done, and the names are as they were before it.
        Err(_) if last_commit(repository, PENDING)?.is_none() => Ok(()),
        ended => ended,
    }
}

/// Takes an operation off the list whose name is there, and was refused all the same.
fn unrecord(repository: &Repository, operation: Oid) -> Result<(), StoreError> {
    if !is_at(repository, OPERATIONS, operation) {
        return Ok(());
    }
    let failed = || StoreError::git("take an operation off its list");
    let commit = repository.find_commit(operation).map_err(failed())?;
    match commit.parent(0) {
        Ok(before) if is_operation(&before) => point(repository, OPERATIONS, before.id()),
        _ => repository.find_reference(OPERATIONS).and_then(|mut first| first.delete()).map_err(failed()),
    }
}

fn is_at(repository: &Repository, name: &str, operation: Oid) -> bool {
    repository.refname_to_id(name).is_ok_and(|target| target == operation)
}

fn forget_pending(repository: &Repository) -> Result<(), StoreError> {
    let mut pending = repository.find_reference(PENDING).map_err(StoreError::git("read its refs"))?;
    pending.delete().map_err(StoreError::git("end an operation"))
}

fn point(repository: &Repository, name: &str, operation: Oid) -> Result<(), StoreError> {
    let moved = repository.reference(name, operation, true, "mpatch");
    moved.map(drop).map_err(StoreError::git(format!("move `{name}`")))
}

/// Writes an operation's commit. What its names name become parents, so that nothing it names is ever swept away.
fn write(
    repository: &Repository,
    author: &Author,
    message: &str,
    before: &View,
    after: &View,
) -> Result<Oid, StoreError> {
    let failed = || StoreError::git("write an operation");
    let last = last_commit(repository, OPERATIONS)?;
    let mut tree = repository.treebuilder(None).map_err(failed())?;
    for (name, view) in [(BEFORE, before), (AFTER, after)] {
        let text = view.text().map_err(|error| StoreError::malformed("an operation", error.to_string()))?;
        let blob = written("write an operation", || repository.blob(text.as_bytes()))?;
        tree.insert(name, blob, FILE).map_err(failed())?;
    }
    let tree = written("write an operation", || tree.write())?;
    let tree = repository.find_tree(tree).map_err(failed())?;
    let kept = match &last {
        Some(last) => read(repository, last)?.after.targets(),
        None => Vec::new(),
    };
    let named = [before, after].into_iter().flat_map(View::targets);
    let new = named.filter(|target| !kept.contains(target));
    // A tag object is kept by its own name alone, and the commit that it leads to by the operation.
    let new: BTreeSet<Oid> = new.map(|target| peeled(repository, target)).collect();
    let new: Vec<GitCommit<'_>> =
        new.into_iter().filter_map(|target| repository.find_commit(target).ok()).collect();
    let parents: Vec<&GitCommit<'_>> = last.iter().chain(&new).collect();
    write_commit(repository, author, message, &tree, &parents)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::refs::Head;
    use super::*;

    fn operation(number: u8, deed: Deed) -> Operation {
        let id = |number: u8| CommitId(format!("{number:040x}").parse().unwrap());
        let (refs, tagged) = (BTreeMap::new(), BTreeMap::new());
        let view = View { refs, tagged, head: Head::Branch("main".to_owned()), model: None };
        let deed = match deed {
            Deed::Undo(_) => Deed::Undo(id(0)),
            Deed::Redo(_) => Deed::Redo(id(0)),
            deed => deed,
        };
        let (before, after) = (view.clone(), view);
        Operation {
            id: id(number),
            title: number.to_string(),
            deed,
            seconds: 0,
            offset_minutes: 0,
            before,
            after,
        }
    }

    const DO: Deed = Deed::Do { with_weights: false };

    #[test]
    fn undo_walks_back_and_redo_forward_until_something_new_is_done() {
        let any = CommitId(Oid::ZERO_SHA1);
        let (undo, redo) = (Deed::Undo(any), Deed::Redo(any));
        let titles = |deeds: &[Deed]| {
            let operations: Vec<Operation> =
                deeds.iter().enumerate().map(|(index, deed)| operation(index as u8, *deed)).collect();
            let (done, undone) = stacks(&operations);
            let titles = |stack: Vec<&Operation>| stack.iter().map(|o| o.title.clone()).collect::<Vec<_>>();
            (titles(done).join(" "), titles(undone).join(" "))
        };
        let said = |done: &str, undone: &str| (done.to_owned(), undone.to_owned());
        assert_eq!(titles(&[DO, DO]), said("0 1", ""));
        assert_eq!(titles(&[DO, DO, undo, undo]), said("", "1 0"));
        assert_eq!(titles(&[DO, DO, undo, undo, redo]), said("0", "1"));
        assert_eq!(titles(&[DO, DO, undo, DO]), said("0 3", ""));
    }
}
