//! What the verbs of the history share: the store, who is at work, and words for commits.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use mpatch::calendar;
use mpatch::digest::PatchId;
use mpatch::patch::{Manifest, Patch, PatchError};
use mpatch::store::state::Misfit;
use mpatch::store::{Author, Change, Commit, CommitId, Head, Message, Store, StoreError, View};
use serde::Serialize;

use crate::commands::show::fact_line;
use crate::error::{CommandError, ExitKind, io_hint, with_causes};
use crate::git::{self, Unanswered};
use crate::places::{self, variable};
use crate::report::{Output, Page, escaped, shell_word};

/// How long a command waits for another one that changes the history, where nobody says otherwise.
pub const LOCK_TIMEOUT_SECONDS: f64 = 10.0;

/// Which history.
#[derive(Debug, Clone, Default, Args)]
pub struct StoreArguments {
    /// Use the history in or above this folder instead of the one here
    #[arg(long, value_name = "FOLDER")]
    pub store: Option<PathBuf>,
}

/// How long to wait for the right to change a history.
#[derive(Debug, Clone, Args)]
pub struct LockArguments {
    /// Wait this many seconds while another process changes the history
    #[arg(long, value_name = "SECONDS", default_value_t = LOCK_TIMEOUT_SECONDS, value_parser = seconds)]
    lock_timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1e6).contains(&value) => Ok(value),
        _ => Err("expected a number of seconds".to_owned()),
    }
}

impl LockArguments {
    /// Takes the right to change the history.
    pub fn change<'s>(&self, store: &'s Store) -> Result<Change<'s>, CommandError> {
        Ok(store.change(Duration::from_secs_f64(self.lock_timeout), author(store.folder())?)?)
    }
}

/// Why this user can write nothing into the history, if that is so: told before the work that is to be recorded.
pub fn refusal_to_change(store: &Store) -> Result<Option<StoreError>, CommandError> {
    match store.change(Duration::ZERO, author(store.folder())?) {
        // Another one that is at work now need not be once this is done.
        Ok(_) | Err(StoreError::Busy { .. }) => Ok(None),
        Err(error) if is_read_only(&error) => Ok(Some(error)),
        Err(error) => Err(error.into()),
    }
}

/// Whether the system lets this user write nothing into the history.
fn is_read_only(error: &StoreError) -> bool {
    let kinds = [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem];
    matches!(error, StoreError::Io { source, .. } if kinds.contains(&source.kind()))
}

/// Shorter starts of ids are taken for slips.
const ID_START_LENGTH_MIN: usize = 4;

impl StoreArguments {
    fn folder(&self) -> &Path {
        self.store.as_deref().unwrap_or(Path::new("."))
    }

    /// What names this history in a suggested command, with a blank before it; nothing where it is the one here.
    pub fn words(&self) -> String {
        match self.folder() == Path::new(".") {
            true => String::new(),
            false => format!(" --store {}", shell_word(self.folder())),
        }
    }

    /// Opens the history.
    pub fn open(&self) -> Result<Store, CommandError> {
        Ok(Store::discover(self.folder())?)
    }

    /// Opens the history that was named; or the one that the working folder lies in, where it lies in one that this
    /// user may trust.
    pub fn open_if_any(&self, output: &Output) -> Result<Option<Store>, CommandError> {
        match Store::discover(self.folder()) {
            Ok(store) => Ok(Some(store)),
            Err(StoreError::NoStore { .. }) if self.store.is_none() => Ok(None),
            Err(error @ (StoreError::Owner { .. } | StoreError::Worktree { .. })) if self.store.is_none() => {
                output.warn(&format!("no record is kept: {error}"));
                Ok(None)
            }
            Err(error @ StoreError::Io { .. }) if self.store.is_none() => {
                output.warn(&format!("no record is kept: {}", with_causes(&error)));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The patch that the history has by this name: the start of its id, or a revision, for the patch that its commit
    /// brought.
    pub fn recorded_patch(&self, name: &Path) -> Result<Option<Patch>, CommandError> {
        let store = match (Store::discover(self.folder()), &self.store) {
            (Ok(store), _) => store,
            // Without a history, or in one that is not to be trusted, a name is only that of a file.
            (Err(_), None) => return Ok(None),
            (Err(error), Some(_)) => return Err(error.into()),
        };
        let Some(name) = name.to_str() else { return Ok(None) };
        let mut known: BTreeSet<PatchId> = BTreeSet::new();
        // Not collected at once: a set is collected by way of a list of all, and most are in every series.
        for commit in store.commits()? {
            known.extend(commit?.series);
        }
        let is_meant = |id: &&PatchId| name.len() >= ID_START_LENGTH_MIN && id.to_string().starts_with(name);
        let id = match Vec::from_iter(known.iter().filter(is_meant))[..] {
            [] => match state_named(&store, name)? {
                Some(commit) => {
                    store.look_first_in(commit)?;
                    brought_by(&store, commit)?
                }
                None => return Ok(None),
            },
            [id] => *id,
            [..] => {
                let message = format!("`{name}` begins the ids of several patches");
                return Err(CommandError::new(ExitKind::Usage, message).hint("give more of the id"));
            }
        };
        Ok(Some(store.patch(id)?))
    }
}

/// The state that a history has by this name; none where it has none, and an error where it is that of something else.
pub fn state_named(store: &Store, name: &str) -> Result<Option<CommitId>, CommandError> {
    match store.resolve(name) {
        Ok(commit) => Ok(Some(commit)),
        Err(error @ (StoreError::NoState { .. } | StoreError::Ambiguous { .. })) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// The patch that a commit has and the state before it has not, or the one of which it brought signatures.
fn brought_by(store: &Store, id: CommitId) -> Result<PatchId, CommandError> {
    let commit = store.commit(id)?;
    let before = commit.parents.iter().find(|parent| store.is_state(**parent));
    let before = before.map(|parent| store.commit(*parent)).transpose()?;
    let is_new = |patch: &&PatchId| before.as_ref().is_none_or(|before| !before.series.contains(patch));
    let new = commit.series.last().filter(is_new).copied();
    let signed = match new {
        Some(_) => Vec::new(),
        None => store.signed_by(&commit)?,
    };
    new.or(<[PatchId; 1]>::try_from(signed).ok().map(|[id]| id)).ok_or_else(|| {
        let short = id.short();
        CommandError::new(ExitKind::Usage, format!("the commit {short} brought no patch"))
            .hint(format!("`mpatch show {short}` lists the patches of its state"))
    })
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        let failed = |kind| Self::new(kind, with_causes(&error));
        match &error {
            StoreError::NoStore { copy: Some(copy), .. } => failed(ExitKind::Usage)
                .hint(format!("`mpatch clone {} NEW` makes one of it", shell_word(copy))),
            StoreError::Owner { path } => failed(ExitKind::Io).hint(way_to_own(path)),
            StoreError::Worktree { main, .. } => failed(ExitKind::Usage)
                .hint(format!("give the history itself: `--store {}`", shell_word(main))),
            StoreError::Locked { lock, .. } => failed(ExitKind::Busy).hint(format!(
                "try again once it is gone; where no `git` runs, one that died left `{lock}`: remove it"
            )),
            StoreError::Form { path, .. } => failed(ExitKind::Unsupported).hint(format!(
                "where its names lie in reftables, `git -C {} refs migrate --ref-format=files` makes files of them",
                shell_word(path)
            )),
            StoreError::NoHead { path } => failed(ExitKind::Malformed).hint(format!(
                "`echo ref: refs/heads/main > {}` puts it on the branch main",
                shell_word(path.join("HEAD"))
            )),
            // The file is refused by the system, and not damaged.
            StoreError::Patch { patch, source: source @ (PatchError::Read { .. } | PatchError::Write { .. }) } => {
                Self::patch(&patch.short(), source)
            }
            StoreError::Unsound { source, is_current: true, .. } => failed(kind_and_hint(source).0).hint(
                "another program made it, as `git merge` joins lines and not states: `mpatch undo` moves the branch back, and `mpatch merge` joins branches",
            ),
            StoreError::Unsound { source, .. } => failed(kind_and_hint(source).0).hint(
                "another program made it, as `git merge` joins lines and not states: name another state, take the name of this one away with `mpatch branch -d`, and join branches with `mpatch merge`",
            ),
            StoreError::CheckedOut { worktree, .. } => failed(ExitKind::Conflict)
                .hint(format!("`git worktree remove {}` sets it free", shell_word(worktree))),
            error if error.is_of_configuration() => {
                failed(ExitKind::Malformed)
                    .hint("mend `.git/config` by hand: `git config --list` names the line that cannot be read")
            }
            StoreError::Pending { .. } => failed(ExitKind::Recovery).pending_in_history(),
            error => {
                let (kind, hint) = kind_and_hint(error);
                failed(kind).hint(hint)
            }
        }
    }
}

/// What to do about a history whose configuration libgit2 does not read, because others may have written it.
fn way_to_own(path: &Path) -> String {
    let git = path.join(".git");
    let git = std::path::absolute(if git.is_dir() { &git } else { path }).unwrap_or(git);
    format!(
        "its configuration is not to be trusted: clone it, once `git config --global --add safe.directory {}` lets git read it; or make it yours and nobody else's to write to (`chmod -R o-w .git`)",
        shell_word(git)
    )
}

/// The exit code of an error, and a hint that names nothing of the error's own.
fn kind_and_hint(error: &StoreError) -> (ExitKind, &'static str) {
    match error {
        StoreError::NoStore { .. } => {
            (ExitKind::Usage, "`mpatch init --base MODEL` begins a history, `mpatch clone` copies one")
        }
        StoreError::Exists { .. } => (ExitKind::Conflict, "choose another folder, in which no `.git` is"),
        StoreError::Version { .. } => (ExitKind::Unsupported, "update mpatch"),
        StoreError::Swept { .. } => {
            (ExitKind::Busy, "wait until git has ended its work on it, and try again")
        }
        StoreError::Busy { .. } => (ExitKind::Busy, "wait for it, or give a longer `--lock-timeout`"),
        StoreError::Moved { .. } => (ExitKind::Busy, "what it did stays: try again"),
        StoreError::Io { source, .. } => (ExitKind::Io, io_hint(source)),
        StoreError::System { .. } => {
            (ExitKind::Io, "free some space, or change the permissions, and try again")
        }
        StoreError::NoRevision { .. } => {
            (ExitKind::Usage, "`mpatch log`, `mpatch branch` and `mpatch tag` list what there is")
        }
        StoreError::Ambiguous { .. } => (ExitKind::Usage, "give more of the id"),
        StoreError::NoState { is_operation: true, .. } => {
            (ExitKind::Usage, "`mpatch undo` takes the last operation back, and again the one before it")
        }
        StoreError::NoState { .. } => (
            ExitKind::Usage,
            "name a state: `mpatch branch` and `mpatch tag` list names, `mpatch fsck` those that are foreign",
        ),
        StoreError::Name { .. } => (ExitKind::Usage, "choose a plain name, e.g. `geography`"),
        StoreError::Taken { .. } => (ExitKind::Conflict, "choose another name, or delete that one with `-d`"),
        StoreError::Current { .. } => (ExitKind::Conflict, "`mpatch checkout` another branch first"),
        StoreError::Recorded { .. } => (ExitKind::Conflict, "`mpatch log` tells which commit brought it"),
        StoreError::Present { .. } => (
            ExitKind::Conflict,
            "applied once more it would count twice: `mpatch revert MODEL PATCH` takes the one that is there back first, if it is to be replaced",
        ),
        StoreError::Misfit { misfit: Misfit::Present, .. } => (
            ExitKind::Conflict,
            "the base of this history has the patch: `mpatch revert MODEL PATCH -o BASE` makes one without it, which a history of its own can begin with",
        ),
        StoreError::Misfit { .. } => (
            ExitKind::WrongBase,
            "bind it to this state: `mpatch checkout HEAD -o MODEL` writes the weights, `mpatch rebase PATCH --base MODEL --after OTHER` binds it, with the patch that is in them",
        ),
        StoreError::Missing { .. } => {
            (ExitKind::Malformed, "`mpatch pull` fetches it, `mpatch fsck --repair FILE` takes a copy of it")
        }
        StoreError::Damaged { .. } | StoreError::Malformed { .. } | StoreError::Git { .. } => (
            ExitKind::Malformed,
            "`mpatch fsck` names all that is damaged, `mpatch fsck --repair SOURCE` mends it from whole copies",
        ),
        StoreError::DamagedName { .. } => (
            ExitKind::Malformed,
            "`mpatch fsck --repair .` puts it where the last operation left it, and keeps the damaged file",
        ),
        StoreError::LostHead { .. } => (
            ExitKind::Malformed,
            "`mpatch undo` takes back what moved it, or its branch; `mpatch fsck --repair .` puts it where the last operation left it",
        ),
        StoreError::Limit { .. } => (
            ExitKind::LimitExceeded,
            "`mpatch stack` makes one patch of several; a history of that can begin anew",
        ),
        StoreError::NothingTo { .. } => (ExitKind::Conflict, "`mpatch undo --list` lists what was done"),
        StoreError::OtherBase { .. } => {
            (ExitKind::WrongBase, "a history is about one model: clone the other one")
        }
        StoreError::Diverged { .. } => (ExitKind::Conflict, "`mpatch merge` joins the two"),
        _ => (ExitKind::Malformed, "`mpatch fsck` tells more"),
    }
}

/// The last second that a commit can be of: libgit2 writes 32 bits.
const SECONDS_MAX: i64 = u32::MAX as i64;

/// Who is at work in the history in `folder`, and when: git's own answer there, with the user's name where git knows
/// none.
///
/// `SOURCE_DATE_EPOCH` and git's variables set the clock, so that a history can be made again.
///
/// # Errors
/// What else git refuses (a date that it cannot read, a configuration that is broken), in its own words: another name
/// and another time than the ones asked for would be recorded for good. A time that no commit can have.
pub fn author(folder: &Path) -> Result<Author, CommandError> {
    let user = places::user().unwrap_or_else(|| "mpatch".to_owned());
    let email = format!("{user}@localhost");
    let mut author = match ident(folder, &user, &email)? {
        Some(author) => author,
        None => Author { name: user, email: String::new(), seconds: now(), offset_minutes: 0 },
    };
    // Git takes an empty address, and libgit2 does not.
    if author.email.is_empty() {
        author.email = email;
    }
    let mut said_by = "GIT_COMMITTER_DATE";
    if let (None, Some(epoch)) = (variable(said_by), variable("SOURCE_DATE_EPOCH")) {
        said_by = "SOURCE_DATE_EPOCH";
        // What is no number is none that a commit can have.
        (author.seconds, author.offset_minutes) =
            (epoch.to_str().and_then(|text| text.trim().parse().ok()).unwrap_or(i64::MIN), 0);
    }
    match author.seconds {
        0..=SECONDS_MAX => Ok(author),
        _ => {
            let value = variable(said_by).unwrap_or_default();
            let message = format!("`{}` is no time that a commit can have", value.display());
            let expected = format!("give `{said_by}` seconds from 0 to {SECONDS_MAX}, or leave it out");
            Err(CommandError::new(ExitKind::Usage, message).hint(expected))
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64)
}

/// Git's answer; none where there is no git.
///
/// What it lacks is given to it: an address, a name, or both. What it refuses then it refuses for another reason.
fn ident(folder: &Path, user: &str, email: &str) -> Result<Option<Author>, CommandError> {
    let (email, name) = (("GIT_COMMITTER_EMAIL", email), ("GIT_COMMITTER_NAME", user));
    let mut said = String::new();
    for given in [&[][..], &[email], &[name], &[email, name]] {
        let missing = given.iter().filter(|(name, _)| variable(name).is_none());
        let mut command = git::command(folder);
        match git::answer(command.envs(missing.copied()), ["var", "GIT_COMMITTER_IDENT"]) {
            Ok(answer) => match parse_ident(&answer) {
                Some(author) => return Ok(Some(author)),
                None => said = answer,
            },
            Err(Unanswered::Refused { said: words, .. }) => said = words,
            Err(Unanswered::NotFound | Unanswered::Failed(_)) => return Ok(None),
        }
    }
    let message = format!("git cannot say who is at work, and when: {}", git::on_one_line(said.trim()));
    Err(CommandError::new(ExitKind::Usage, message)
        .hint("`git var GIT_COMMITTER_IDENT` says the same: mend what it names"))
}

/// `Name <address> 1764028800 +0100`.
fn parse_ident(ident: &str) -> Option<Author> {
    let (name, rest) = ident.trim().rsplit_once(" <")?;
    let (email, when) = rest.rsplit_once("> ")?;
    let (seconds, zone) = when.split_once(' ')?;
    let zone: i32 = zone.parse().ok()?;
    let offset_minutes = zone / 100 * 60 + zone % 100;
    Some(Author {
        name: name.to_owned(),
        email: email.to_owned(),
        seconds: seconds.parse().ok()?,
        offset_minutes,
    })
}

/// `2026-11-24 21:05 +0100`.
pub fn date(seconds: i64, offset_minutes: i32) -> String {
    let (day, [hours, minutes, _]) = on_the_clock(seconds, offset_minutes);
    let [sign, offset_hours, offset_minutes] = offset_words(offset_minutes);
    format!("{day} {hours:02}:{minutes:02} {sign}{offset_hours}{offset_minutes}")
}

/// `2026-11-24T21:05:09+01:00`, as RFC 3339 has it.
pub fn time(seconds: i64, offset_minutes: i32) -> String {
    let (day, [hours, minutes, seconds]) = on_the_clock(seconds, offset_minutes);
    let [sign, offset_hours, offset_minutes] = offset_words(offset_minutes);
    format!("{day}T{hours:02}:{minutes:02}:{seconds:02}{sign}{offset_hours}:{offset_minutes}")
}

/// The day, and the hours, minutes and seconds, of a clock that goes so many minutes before that of Greenwich.
fn on_the_clock(seconds: i64, offset_minutes: i32) -> (String, [i64; 3]) {
    // Whoever makes a commit says when: it may be any number.
    let local = seconds.saturating_add(i64::from(offset_minutes) * 60);
    let (days, rest) = (local.div_euclid(86_400), local.rem_euclid(86_400));
    let (year, month, day) = calendar::date(days);
    (format!("{year:04}-{month:02}-{day:02}"), [rest / 3_600, rest / 60 % 60, rest % 60])
}

/// The sign, the hours and the minutes.
fn offset_words(offset_minutes: i32) -> [String; 3] {
    let (sign, offset) = (if offset_minutes < 0 { "-" } else { "+" }, offset_minutes.abs());
    [sign.to_owned(), format!("{:02}", offset / 60), format!("{:02}", offset % 60)]
}

// ------------------------------------------------------------------------------------------- words for commits --

/// The words of a commit that brings `manifest`'s patch: its title, or else its first fact; and all its facts.
pub fn message(manifest: &Manifest, id: PatchId, title: Option<&str>, notes: Vec<String>) -> Message {
    let facts: Vec<String> = manifest.facts.iter().map(|fact| escaped(&fact_line(fact))).collect();
    let title = match (title.or(manifest.about.title.as_deref()), facts.first()) {
        (Some(title), _) if !title.trim().is_empty() => escaped(title),
        (_, Some(fact)) if facts.len() == 1 => fact.clone(),
        (_, Some(fact)) => format!("{fact}, and {} more", facts.len() - 1),
        (_, None) => format!("Patch {}", id.short()),
    };
    Message { title, facts, notes, ..Message::default() }
}

/// A commit as reports show it.
#[derive(Debug, Clone, Serialize)]
pub struct CommitReport {
    pub id: CommitId,
    pub parents: Vec<CommitId>,
    /// Branches and tags that name it.
    pub names: Vec<String>,
    pub is_head: bool,
    pub title: String,
    pub facts: Vec<String>,
    /// Ids of the patches of its state, in order of application.
    pub series: Vec<PatchId>,
    /// The id of the weights that it claims.
    pub state: Option<String>,
    pub notes: Vec<String>,
    pub author: String,
    /// To the minute, as it is printed.
    pub date: String,
    /// The same to the second.
    pub time: String,
}

impl CommitReport {
    pub fn new(commit: Commit, view: &View) -> Self {
        Self {
            id: commit.id,
            parents: commit.parents,
            names: view.names_of(commit.id),
            is_head: view.head_commit() == Some(commit.id),
            title: commit.message.title,
            facts: commit.message.facts,
            series: commit.series,
            state: commit.state.map(|state| state.to_string()),
            notes: commit.message.notes,
            author: format!("{} <{}>", commit.author.name, commit.author.email),
            date: date(commit.author.seconds, commit.author.offset_minutes),
            time: time(commit.author.seconds, commit.author.offset_minutes),
        }
    }

    /// Its id and its names on one line.
    pub fn heading(&self, view: Option<&str>) -> String {
        let mut names = self.names.clone();
        if self.is_head {
            let head = view.map_or_else(|| "HEAD".to_owned(), |branch| format!("HEAD -> {branch}"));
            names.retain(|name| Some(name.as_str()) != view);
            names.insert(0, head);
        }
        match names.is_empty() {
            true => self.id.short(),
            false => format!("{} ({})", self.id.short(), names.join(", ")),
        }
    }

    /// The commit on a page, with at most `facts_shown` facts.
    pub fn write(&self, page: &mut Page, branch: Option<&str>, facts_shown: usize) {
        page.title(&self.heading(branch));
        page.quote(&format!("{}, {}", self.date, self.author));
        page.quote(&self.title);
        // A patch of one fact is called by it.
        let facts: &[String] = if self.facts == [self.title.clone()] { &[] } else { &self.facts };
        for fact in facts.iter().take(facts_shown) {
            page.quote(&format!("  {fact}"));
        }
        let way = format!("`mpatch show {} --all` lists them", self.id.short());
        page.and_more(facts.len(), facts_shown, &way);
        for note in &self.notes {
            page.quote(&format!("note: {note}"));
        }
    }
}

/// The state that the head is on, after a change: what cannot be told of it has been done.
pub fn head_after_change(store: &Store) -> Result<CommitReport, CommandError> {
    let told = || Ok(CommitReport::new(store.commit(store.head()?)?, &store.view()?));
    told().map_err(|error: StoreError| CommandError::from(error).after_the_work())
}

/// The branch that the head is on.
pub fn branch_of(view: &View) -> Option<&str> {
    match &view.head {
        Head::Branch(name) => Some(name),
        Head::Detached(_) => None,
    }
}

/// The short id and title of a commit, for a sentence.
pub fn in_words(commit: &Commit) -> String {
    format!("{} \"{}\"", commit.id.short(), commit.message.title)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0, 0), "1970-01-01 00:00 +0000");
        assert_eq!(date(951_782_400, 60), "2000-02-29 01:00 +0100");
        assert_eq!(date(-1, -90), "1969-12-31 22:29 -0130");
        assert_eq!(date(1_795_564_800, 0), "2026-11-25 00:00 +0000");
        assert_eq!(date(i64::MAX, 840), "292277026596-12-04 15:30 +1400");
        assert_eq!(date(i64::MIN, -840), "-292277022657-01-27 08:29 -1400");
    }

    #[test]
    fn times_are_those_of_the_internet() {
        assert_eq!(time(0, 0), "1970-01-01T00:00:00+00:00");
        assert_eq!(time(951_782_409, 60), "2000-02-29T01:00:09+01:00");
        assert_eq!(time(-1, -90), "1969-12-31T22:29:59-01:30");
    }

    #[test]
    fn git_says_who_is_at_work() {
        let author = parse_ident("A. B. <a@b.c> 1764028800 -0130\n").expect("git's own form");
        assert_eq!((author.name.as_str(), author.email.as_str()), ("A. B.", "a@b.c"));
        assert_eq!((author.seconds, author.offset_minutes), (1_764_028_800, -90));
        assert!(parse_ident("nobody").is_none());
    }
}
