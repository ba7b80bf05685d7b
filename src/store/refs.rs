//! What the names of a store point to, as one value: a view.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use git2::{ErrorClass, ErrorCode, ObjectType, Oid, Reference, Repository};
use serde::{Serialize, Serializer};

use super::Store;
use super::damaged_names::damaged;
use super::error::StoreError;
use super::log::is_strange;
use super::operations::is_operation;

const HEADS: &str = "refs/heads/";
const TAGS: &str = "refs/tags/";
const REMOTES: &str = "refs/remotes/";
pub(super) const HEAD: &str = "HEAD";
/// Shorter starts of ids are all ambiguous to libgit2.
const ID_START_LENGTH_MIN: usize = 4;

/// The id of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(pub(super) Oid);

impl CommitId {
    /// The first 12 digits, for people.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl Serialize for CommitId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where the next commit goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// On this branch.
    Branch(String),
    /// On no branch, after this commit.
    Detached(CommitId),
}

impl Head {
    /// Makes it the head of a repository, whatever that has there.
    pub(super) fn install(&self, repository: &Repository) -> Result<(), StoreError> {
        let made = match self {
            Head::Branch(name) => {
                repository.reference_symbolic(HEAD, &format!("{HEADS}{name}"), true, "mpatch")
            }
            Head::Detached(commit) => repository.reference(HEAD, commit.0, true, "mpatch"),
        };
        made.map(drop).map_err(StoreError::git("move its refs"))
    }

    /// Where it is, in a sentence.
    pub(super) fn place(&self) -> String {
        match self {
            Head::Branch(name) => format!("on the branch `{name}`"),
            Head::Detached(commit) => format!("at {commit}"),
        }
    }

    pub(super) fn of(repository: &Repository) -> Result<Self, StoreError> {
        let head = repository.find_reference(HEAD).map_err(StoreError::git("read its refs"))?;
        match (head.symbolic_target(), head.target()) {
            (Ok(Some(name)), _) if name.starts_with(HEADS) => {
                Ok(Head::Branch(name[HEADS.len()..].to_owned()))
            }
            (_, Some(target)) => Ok(Head::Detached(CommitId(target))),
            _ => Err(StoreError::malformed(HEAD, "it names neither a branch nor a commit")),
        }
    }
}

/// What kind of name a commit has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Moves with its commits.
    Branch,
    /// Stays.
    Tag,
    /// A branch of another store, as it was when it was last asked.
    Remote,
}

impl Kind {
    pub(super) const ALL: [Kind; 3] = [Kind::Branch, Kind::Tag, Kind::Remote];

    pub(super) fn prefix(self) -> &'static str {
        match self {
            Kind::Branch => HEADS,
            Kind::Tag => TAGS,
            Kind::Remote => REMOTES,
        }
    }

    /// The full name of a ref, if git takes it.
    pub(super) fn full_name(self, name: &str) -> Result<String, StoreError> {
        let full = format!("{}{name}", self.prefix());
        // A name that begins with a dash reads as an option.
        if name.starts_with('-') || name == HEAD || !Reference::is_valid_name(&full) {
            return Err(self.refused(name));
        }
        Ok(full)
    }

    fn refused(self, name: &str) -> StoreError {
        StoreError::Name { name: name.to_owned(), kind: self }
    }

    pub(super) fn taken(self, name: &str, at: Oid) -> StoreError {
        let at = CommitId(at).short();
        StoreError::Taken { name: name.to_owned(), kind: self, at }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Kind::Branch => "branch",
            Kind::Tag => "tag",
            Kind::Remote => "remote branch",
        })
    }
}

/// All names of a store, where the next commit goes, and which model it is about.
#[derive(Debug, Clone)]
pub struct View {
    /// Full names of refs, and the objects they name.
    pub(super) refs: BTreeMap<String, Oid>,
    /// The commits that tag objects among those lead to; nothing of a view that an operation has recorded.
    pub(super) tagged: BTreeMap<Oid, Oid>,
    /// Where the next commit goes.
    pub head: Head,
    /// The checkpoint that commands take when none is given.
    pub model: Option<String>,
}

/// What tag objects lead to follows from the names.
impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        (&self.refs, &self.head, &self.model) == (&other.refs, &other.head, &other.model)
    }
}

impl Eq for View {}

impl View {
    /// The refs and the head of `repository`; `model` is not git's.
    pub(super) fn of(repository: &Repository, model: Option<String>) -> Result<Self, StoreError> {
        if let Some(name) = damaged(repository)?.into_iter().next() {
            return Err(StoreError::DamagedName { name });
        }
        let failed = || StoreError::git("read its refs");
        let (mut refs, mut tagged) = (BTreeMap::new(), BTreeMap::new());
        for reference in repository.references().map_err(failed())? {
            let reference = reference.map_err(failed())?;
            if let Some((name, target)) = named(&reference)
                && !is_foreign(repository, target)
            {
                refs.insert(name.to_owned(), target);
                let commit = Some(peeled(repository, target)).filter(|commit| *commit != target);
                tagged.extend(commit.map(|commit| (target, commit)));
            }
        }
        Ok(Self { refs, tagged, head: Head::of(repository)?, model })
    }

    /// The commit that the head stands on.
    pub fn head_commit(&self) -> Option<CommitId> {
        match &self.head {
            Head::Branch(name) => self.refs.get(&format!("{HEADS}{name}")).copied().map(CommitId),
            Head::Detached(commit) => Some(*commit),
        }
    }

    /// The commit that the head stands on, which is there.
    ///
    /// # Errors
    /// [`StoreError::LostHead`].
    pub(super) fn standing(&self, repository: &Repository) -> Result<CommitId, StoreError> {
        let is_missing = |commit: &CommitId| {
            let found = repository.find_object(commit.0, None);
            found.is_err_and(|error| error.code() == ErrorCode::NotFound)
        };
        // The commit of a branch that is missing is damage: the head leads to where it should.
        let is_lost = |commit: &CommitId| matches!(self.head, Head::Detached(_)) && is_missing(commit);
        let commit = self.head_commit().filter(|commit| !is_lost(commit));
        commit.ok_or_else(|| StoreError::LostHead { place: self.head.place() })
    }

    /// All names of one kind, in order, with what they name.
    pub fn names(&self, kind: Kind) -> impl Iterator<Item = (&str, CommitId)> {
        let prefix = kind.prefix();
        let named =
            self.refs.iter().filter_map(move |(name, target)| Some((name.strip_prefix(prefix)?, target)));
        named.map(|(name, target)| (name, CommitId(*target)))
    }

    /// The names of a commit: branches, tags, remote branches.
    pub fn names_of(&self, commit: CommitId) -> Vec<String> {
        let leads_there =
            |target: CommitId| target == commit || self.tagged.get(&target.0) == Some(&commit.0);
        let of_kind = |kind| self.names(kind).filter(|(_, target)| leads_there(*target));
        Kind::ALL.into_iter().flat_map(of_kind).map(|(name, _)| name.to_owned()).collect()
    }

    /// Names that `wanted` has and this view has not, each with its kind.
    pub fn lacks<'v>(&'v self, wanted: &'v View) -> impl Iterator<Item = (Kind, &'v str)> {
        let of_kind = |kind| wanted.names(kind).map(move |(name, _)| (kind, name));
        let is_here = |kind: Kind, name: &str| self.refs.contains_key(&format!("{}{name}", kind.prefix()));
        Kind::ALL.into_iter().flat_map(of_kind).filter(move |(kind, name)| !is_here(*kind, name))
    }

    /// Says that nothing has this name, and which one of these kinds comes closest.
    pub(super) fn no_revision(&self, kinds: &[Kind], name: &str) -> StoreError {
        StoreError::NoRevision { revision: name.to_owned(), nearest: nearest(self, kinds, name) }
    }

    /// Everything that is named, each object once.
    pub(super) fn targets(&self) -> Vec<Oid> {
        let mut targets: Vec<Oid> = self.refs.values().copied().collect();
        targets.extend(self.head_commit().map(|commit| commit.0));
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// A name that cannot stand beside `full`: in a folder of refs a name is a file or a folder, never both.
    pub(super) fn clash(&self, full: &str) -> Option<&str> {
        let folder = format!("{full}/");
        let above = full.match_indices('/').map(|(end, _)| &full[..end]);
        let mut above = above.filter_map(|name| self.refs.get_key_value(name));
        let beneath = self.refs.range(folder.clone()..).next().filter(|(name, _)| name.starts_with(&folder));
        beneath.or_else(|| above.next()).map(|(name, _)| name.as_str())
    }

    /// Refuses a name that git would not take, that is taken, or that another one leaves no room for; with its full
    /// form.
    ///
    /// # Errors
    /// [`StoreError::Name`] or [`StoreError::Taken`].
    pub fn check_new(&self, kind: Kind, name: &str) -> Result<String, StoreError> {
        let full = kind.full_name(name)?;
        // It is the head wherever git reads a revision; what others have by this name can still come, and go.
        if name == "@" {
            return Err(kind.refused(name));
        }
        match self.refs.get(&full) {
            Some(at) => Err(kind.taken(name, *at)),
            None => self.check_room(&full).map(|()| full),
        }
    }

    /// Refuses a name that another one leaves no room for.
    pub(super) fn check_room(&self, full: &str) -> Result<(), StoreError> {
        let Some(other) = self.clash(full) else { return Ok(()) };
        let kind =
            Kind::ALL.into_iter().find(|kind| other.starts_with(kind.prefix())).unwrap_or(Kind::Branch);
        Err(kind.taken(other.strip_prefix(kind.prefix()).unwrap_or(other), self.refs[other]))
    }

    /// The view without what was named once and can be no more: a tag object of somebody else's that git has swept
    /// away.
    pub(super) fn without_lost(mut self, now: &View, repository: &Repository) -> Self {
        let is_there = |target: Oid| repository.find_object(target, None).is_ok();
        self.refs.retain(|name, target| now.refs.get(name) == Some(target) || is_there(*target));
        self
    }

    /// A line for each name.
    pub(super) fn text(&self) -> Result<String, serde_json::Error> {
        let mut text = match &self.head {
            Head::Branch(name) => format!("head {HEADS}{name}\n"),
            Head::Detached(commit) => format!("head {commit}\n"),
        };
        if let Some(model) = &self.model {
            // As JSON, since a path may hold a line feed.
            text.push_str(&format!("model {}\n", serde_json::to_string(model)?));
        }
        self.refs.iter().for_each(|(name, target)| text.push_str(&format!("{target} {name}\n")));
        Ok(text)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let (mut refs, mut head, mut model) = (BTreeMap::new(), None, None);
        for line in text.lines() {
            match line.split_once(' ')? {
                ("head", name) => {
                    head = Some(match name.strip_prefix(HEADS) {
                        Some(name) => Head::Branch(name.to_owned()),
                        None => Head::Detached(CommitId(name.parse().ok()?)),
                    });
                }
                ("model", path) => model = Some(serde_json::from_str(path).ok()?),
                (target, name) => {
                    refs.insert(name.to_owned(), target.parse().ok()?);
                }
            }
        }
        Some(Self { refs, tagged: BTreeMap::new(), head: head?, model })
    }

    /// Makes the repository's refs those of this view, where they were those of `before`.
    ///
    /// # Errors
    /// [`StoreError::Moved`] where one is as neither has it, unless such are left alone.
    pub(super) fn install(
        &self,
        before: &View,
        repository: &Repository,
        moved: Moved,
    ) -> Result<(), StoreError> {
        // First what goes: `a` may have to make room for `a/b`.
        let gone = before.refs.keys().filter(|name| !self.refs.contains_key(*name));
        let changed = self.refs.iter().filter(|(name, target)| before.refs.get(*name) != Some(*target));
        for name in gone.chain(changed.map(|(name, _)| name)) {
            let (known, target) = (before.refs.get(name).copied(), self.refs.get(name).copied());
            match move_name(repository, name, known, target) {
                Err(StoreError::Moved { .. }) if moved == Moved::LeftAlone => {}
                ended => ended?,
            }
        }
        // What is right already is not written again: going back must work where going on was refused.
        if self.head != before.head && Head::of(repository).ok().as_ref() != Some(&self.head) {
            match &self.head {
                Head::Branch(name) => repository.set_head(&format!("{HEADS}{name}")),
                Head::Detached(commit) => repository.set_head_detached(commit.0),
            }
            .map_err(StoreError::git("move its refs"))?;
        }
        Ok(())
    }
}

impl Store {
    /// Refuses a branch that git has checked out in a worktree: no head goes to one.
    ///
    /// # Errors
    /// [`StoreError::CheckedOut`] or [`StoreError::Git`].
    pub fn check_free(&self, branch: &str) -> Result<(), StoreError> {
        let worktrees = self.repository.worktrees().map_err(StoreError::git("list its worktrees"))?;
        for name in worktrees.iter().filter_map(|name| name.ok().flatten()) {
            let about = self.git_folder().join("worktrees").join(name);
            let said = |file: &str| std::fs::read_to_string(about.join(file)).unwrap_or_default();
            if said("HEAD").trim_end() == format!("ref: {HEADS}{branch}") {
                let folder = said("gitdir");
                let folder = folder.trim_end().trim_end_matches("/.git");
                let (branch, worktree) = (branch.to_owned(), folder.to_owned());
                return Err(StoreError::CheckedOut { branch, worktree });
            }
        }
        Ok(())
    }
}

/// What becomes of names that other programs have moved while a change was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// They stop it: what they lead to would be lost.
    Refused,
    /// They stay as they are, so that all others can go back.
    LeftAlone,
}

/// Moves a name from what it was `known` to lead to, where it does not lead to `target` already; none is no name.
fn move_name(
    repository: &Repository,
    name: &str,
    known: Option<Oid>,
    target: Option<Oid>,
) -> Result<(), StoreError> {
    let moved = || StoreError::Moved { name: name.to_owned() };
    let now = repository.refname_to_id(name).ok();
    let done = match (known, target) {
        _ if now == target => return Ok(()),
        _ if now != known => return Err(moved()),
        (_, None) => repository.find_reference(name).and_then(|mut reference| match reference.target() {
            target if target == known => reference.delete(),
            _ => Err(git2::Error::new(ErrorCode::Modified, ErrorClass::Reference, "it has moved")),
        }),
        (Some(known), Some(target)) => {
            repository.reference_matching(name, target, true, known, "mpatch").map(drop)
        }
        (None, Some(target)) => repository.reference(name, target, false, "mpatch").map(drop),
    };
    done.map_err(|error| match (error.class(), error.code()) {
        (ErrorClass::Reference, ErrorCode::Modified | ErrorCode::Exists | ErrorCode::NotFound) => moved(),
        _ => StoreError::git("move its refs")(error),
    })
}

/// The name and target of a reference that can be in a view. Symbolic ones (`refs/remotes/origin/HEAD`) name what
/// others name already.
fn named<'r>(reference: &'r Reference<'_>) -> Option<(&'r str, Oid)> {
    let name =
        reference.name().ok().filter(|name| Kind::ALL.iter().any(|kind| name.starts_with(kind.prefix())))?;
    Some((name, reference.target()?))
}

/// The commit that a tag object leads to; anything else is what it is.
pub(super) fn peeled(repository: &Repository, target: Oid) -> Oid {
    let tag = repository.find_tag(target);
    tag.and_then(|tag| tag.into_object().peel_to_commit()).map_or(target, |commit| commit.id())
}

/// Whether what a name leads to is no commit but somebody else's tree or file; what is missing or damaged is not.
pub(super) fn is_foreign(repository: &Repository, target: Oid) -> bool {
    let found = repository.find_object(target, None);
    let Err(error) = found.and_then(|object| object.peel(ObjectType::Commit)) else { return false };
    matches!(error.code(), ErrorCode::Peel | ErrorCode::InvalidSpec)
}

/// Names that lead to no commit, and are in no view.
pub(super) fn foreign(repository: &Repository) -> Result<Vec<String>, StoreError> {
    let failed = || StoreError::git("read its refs");
    let mut names = Vec::new();
    for reference in repository.references().map_err(failed())? {
        let reference = reference.map_err(failed())?;
        let found = named(&reference).filter(|(_, target)| is_foreign(repository, *target));
        names.extend(found.map(|(name, _)| name.to_owned()));
    }
    Ok(names)
}

/// The state that `revision` names: `HEAD`, a branch, tag, remote branch, `main~2`, or the start of a commit's id.
pub(super) fn resolve(repository: &Repository, view: &View, revision: &str) -> Result<CommitId, StoreError> {
    // Of a branch and a tag of one name git takes the tag; the head would go to the one and the weights to the other.
    let end = revision.find(['~', '^', ':']).into_iter().chain(revision.find("@{")).min();
    let branch = format!("{HEADS}{}", &revision[..end.unwrap_or(revision.len())]);
    let full = match view.refs.contains_key(&branch) {
        true => format!("{HEADS}{revision}"),
        false => revision.to_owned(),
    };
    let read = |full: &str| repository.revparse_single(full)?.peel_to_commit();
    let (start, rest) = revision.split_at(end.unwrap_or(revision.len()));
    let found = match read(&full) {
        Err(error) if error.code() == ErrorCode::Ambiguous && start.len() >= ID_START_LENGTH_MIN => {
            match states_beginning(repository, start)?[..] {
                [] => Err(error),
                [id] => read(&format!("{id}{rest}")),
                [..] => return Err(StoreError::Ambiguous { revision: start.to_owned() }),
            }
        }
        found => found,
    };
    match found {
        Ok(commit) => state_at(repository, commit.id(), revision),
        Err(_) if [HEAD, "@"].contains(&start) => {
            view.standing(repository)?;
            Err(view.no_revision(&Kind::ALL, revision))
        }
        Err(_) => Err(view.no_revision(&Kind::ALL, revision)),
    }
}

/// The states of the model whose ids begin so: most objects are no commits, and git does not ask what is meant.
fn states_beginning(repository: &Repository, start: &str) -> Result<Vec<Oid>, StoreError> {
    let failed = || StoreError::git("list its objects");
    let (start, mut alike) = (start.to_ascii_lowercase(), BTreeSet::new());
    let odb = repository.odb().map_err(failed())?;
    let listed = odb.foreach(|oid| {
        alike.extend(oid.to_string().starts_with(&start).then_some(*oid));
        true
    });
    listed.map_err(failed())?;
    alike.retain(|oid| repository.find_commit(*oid).is_ok() && !is_strange(repository, *oid));
    Ok(alike.into_iter().collect())
}

/// The commit, which `revision` names, if it is a state of the model, or cannot be read.
pub(super) fn state_at(repository: &Repository, commit: Oid, revision: &str) -> Result<CommitId, StoreError> {
    if !is_strange(repository, commit) {
        return Ok(CommitId(commit));
    }
    let is_operation = repository.find_commit(commit).is_ok_and(|commit| is_operation(&commit));
    Err(StoreError::NoState { revision: revision.to_owned(), is_operation })
}

/// The name of one of these kinds that begins most like `revision`; a remote branch may be meant by what the other
/// store calls it.
fn nearest(view: &View, kinds: &[Kind], revision: &str) -> Option<String> {
    let likeness = |kind: Kind, name: &str| {
        let tail = name.split_once('/').filter(|_| kind == Kind::Remote).map_or(name, |(_, tail)| tail);
        let alike = |name: &str| (shared_start(name, revision), Reverse(name.len()));
        alike(name).max(alike(tail))
    };
    let names = kinds.iter().flat_map(|kind| view.names(*kind).map(move |(name, _)| (*kind, name)));
    let names = names.map(|(kind, name)| (likeness(kind, name), name));
    let near = names.filter(|((shared, _), _)| shared * 2 >= revision.len().max(2));
    near.max_by_key(|(likeness, _)| *likeness).map(|(_, name)| name.to_owned())
}

fn shared_start(one: &str, other: &str) -> usize {
    one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_survives_its_own_text() {
        let oid = |digit: &str| digit.repeat(40).parse::<Oid>().unwrap();
        let refs =
            BTreeMap::from([("refs/heads/main".to_owned(), oid("1")), ("refs/tags/v1".to_owned(), oid("2"))]);
        let head = Head::Branch("main".to_owned());
        let view = View { refs, tagged: BTreeMap::new(), head, model: Some("a\nb".to_owned()) };
        assert_eq!(View::parse(&view.text().unwrap()), Some(view.clone()));
        assert_eq!(view.head_commit(), Some(CommitId(oid("1"))));
        let detached = View { head: Head::Detached(CommitId(oid("2"))), model: None, ..view };
        assert_eq!(View::parse(&detached.text().unwrap()), Some(detached));
        assert_eq!(View::parse("nonsense"), None);
    }

    #[test]
    fn a_name_is_a_file_or_a_folder() {
        let named = ["refs/heads/a/b", "refs/tags/a", "refs/tags/a.b"];
        let refs = named.map(|name| (name.to_owned(), Oid::ZERO_SHA1)).into();
        let head = Head::Branch("main".to_owned());
        let view = View { refs, tagged: BTreeMap::new(), head, model: None };
        for (name, clash) in [
            ("refs/heads/a", Some("refs/heads/a/b")),
            ("refs/heads/a/b/c", Some("refs/heads/a/b")),
            ("refs/heads/a/bc", None),
            ("refs/tags/a/b", Some("refs/tags/a")),
            ("refs/tags/a", None),
        ] {
            assert_eq!(view.clash(name), clash, "{name}");
        }
    }

    #[test]
    fn names_that_git_or_a_shell_would_misread_are_refused() {
        for name in ["", "-d", "a b", "a..b", "HEAD", "x.lock", "a\u{7}b", "~"] {
            assert!(Kind::Branch.full_name(name).is_err(), "{name:?}");
        }
        assert_eq!(Kind::Tag.full_name("v1.0").unwrap(), "refs/tags/v1.0");
    }
}
