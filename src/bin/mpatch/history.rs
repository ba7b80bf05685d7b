//! What the verbs of the history share: the store, who is at work, words for commits, and taking a checkpoint from one
//! state to another.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use clap::Args;
use mpatch::checkpoint::{Checkpoint, Layout, Output as Copy};
use mpatch::digest::PatchId;
use mpatch::operation::{Plan, survey_size_bytes};
use mpatch::patch::{Manifest, Patch};
use mpatch::store::{
    Author, Change, Commit, CommitId, Head, Message, Standing, Step, Store, StoreError, View,
};
use mpatch::{apply, revert};
use serde::Serialize;

use crate::commands::open_checkpoint;
use crate::commands::show::fact_line;
use crate::error::{CommandError, ExitKind, chain, io_hint};
use crate::interrupt::{Work, doing};
use crate::report::{Output, Page, escaped};
use crate::standing::{locate, remembered};
use crate::trust::{Judged, TrustArguments, require};

/// Which history, and how long to wait for it.
#[derive(Debug, Clone, Args)]
pub struct StoreArguments {
    /// Use the history in this folder, or the nearest above it
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    pub store: PathBuf,
    /// Wait this many seconds while another process changes the history
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub lock_timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1e6).contains(&value) => Ok(value),
        _ => Err("expected a number of seconds".to_owned()),
    }
}

impl StoreArguments {
    /// Opens the history.
    pub fn open(&self) -> Result<Store, CommandError> {
        Ok(Store::discover(&self.store)?)
    }

    /// Takes the right to change the history.
    pub fn change<'s>(&self, store: &'s Store) -> Result<Change<'s>, CommandError> {
        Ok(store.change(Duration::from_secs_f64(self.lock_timeout), author())?)
    }
}

/// The history that the working folder lies in, where it lies in one that this user may trust.
pub fn here(output: &Output) -> Result<Option<Store>, CommandError> {
    match Store::discover(Path::new(".")) {
        Ok(store) => Ok(Some(store)),
        Err(StoreError::NoStore { .. }) => Ok(None),
        Err(error @ StoreError::Owner { .. }) => {
            output.note(&format!("warning: no record is kept: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        let (kind, hint) = match &error {
            StoreError::NoStore { .. } => {
                (ExitKind::Usage, "`mpatch init --base MODEL` begins a history, `mpatch clone` copies one")
            }
            StoreError::Exists { .. } => (ExitKind::Conflict, "choose an empty folder"),
            StoreError::Version { .. } => (ExitKind::Unsupported, "update mpatch"),
            StoreError::Owner { .. } => (
                ExitKind::Io,
                "clone it, or have its owner give it to you: its configuration is not to be trusted",
            ),
            StoreError::Busy { .. } => (ExitKind::Busy, "wait for it, or give a longer `--lock-timeout`"),
            StoreError::Io { source, .. } => (ExitKind::Io, io_hint(source)),
            StoreError::NoRevision { .. } => {
                (ExitKind::Usage, "`mpatch log`, `mpatch branch` and `mpatch tag` list what there is")
            }
            StoreError::Name { .. } => (ExitKind::Usage, "choose a plain name, e.g. `geography`"),
            StoreError::Taken { .. } => {
                (ExitKind::Conflict, "choose another name, or delete that one with `-d`")
            }
            StoreError::Current { .. } => (ExitKind::Conflict, "`mpatch checkout` another branch first"),
            StoreError::Recorded { .. } => (ExitKind::Conflict, "`mpatch log` tells which commit brought it"),
            StoreError::Misfit { .. } => (
                ExitKind::WrongBase,
                "make the patch on this state: `mpatch checkout HEAD -o MODEL` writes the weights to make it on",
            ),
            StoreError::Missing { .. } => (
                ExitKind::Malformed,
                "`mpatch pull` fetches it, `mpatch fsck --repair FILE` takes a copy of it",
            ),
            StoreError::Damaged { .. } | StoreError::Malformed { .. } | StoreError::Git { .. } => (
                ExitKind::Malformed,
                "`mpatch fsck` names all that is damaged, `mpatch fsck --repair SOURCE` mends it from whole copies",
            ),
            StoreError::Patch { .. } => (ExitKind::Malformed, "`mpatch fsck` tells more"),
            StoreError::NothingTo { .. } => (ExitKind::Conflict, "`mpatch undo --list` lists what was done"),
            StoreError::OtherBase { .. } => {
                (ExitKind::WrongBase, "a history is about one model: clone the other one")
            }
            StoreError::Diverged { .. } => (ExitKind::Conflict, "`mpatch merge` joins the two"),
            _ => (ExitKind::Malformed, "`mpatch fsck` tells more"),
        };
        CommandError::new(kind, chain(&error)).hint(hint)
    }
}

/// Who is at work, and when: git's own answer, else the user's name.
///
/// `SOURCE_DATE_EPOCH` and git's variables set the clock, so that a history can be made again.
pub fn author() -> Author {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let asked = Command::new("git").args(["var", "GIT_COMMITTER_IDENT"]).output();
    let asked = asked.ok().filter(|answer| answer.status.success());
    let asked = asked.and_then(|answer| parse_ident(&String::from_utf8_lossy(&answer.stdout)));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs() as i64);
    let mut author = asked.unwrap_or_else(|| {
        let name = variable("USER").unwrap_or_else(|| "mpatch".to_owned());
        Author { email: format!("{name}@localhost"), name, seconds: now, offset_minutes: 0 }
    });
    if let (None, Some(epoch)) = (variable("GIT_COMMITTER_DATE"), variable("SOURCE_DATE_EPOCH"))
        && let Ok(seconds) = epoch.parse()
    {
        (author.seconds, author.offset_minutes) = (seconds, 0);
    }
    author
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
    let local = seconds + i64::from(offset_minutes) * 60;
    let (days, rest) = (local.div_euclid(86_400), local.rem_euclid(86_400));
    // Days since 1970 as a date of the Gregorian calendar, counted in years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (sign, offset) = (if offset_minutes < 0 { '-' } else { '+' }, offset_minutes.abs());
    let (hours, minutes) = (rest / 3_600, rest / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02} {sign}{:02}{:02}",
        offset / 60,
        offset % 60
    )
}

// ------------------------------------------------------------------------------------------- words for commits --

/// Judges a patch before it enters a history, and says what the user had to allow: a note of its commit.
pub fn admit(
    patch: &Patch,
    path: &Path,
    trust: &TrustArguments,
    output: &Output,
) -> Result<(Judged, Vec<String>), CommandError> {
    let judged = require(patch, path, trust, output)?;
    let notes = judged.notes();
    Ok((judged, notes))
}

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
    pub date: String,
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
        page.line(&format!("{}, {}", self.date, self.author));
        page.quote(&self.title);
        // A patch of one fact is called by it.
        let facts: &[String] = if self.facts == [self.title.clone()] { &[] } else { &self.facts };
        for fact in facts.iter().take(facts_shown) {
            page.quote(&format!("  {fact}"));
        }
        let hidden = facts.len().saturating_sub(facts_shown);
        if hidden > 0 {
            page.line(&format!("  and {hidden} more; `mpatch show {}` lists them", self.id.short()));
        }
        for note in &self.notes {
            page.line(&format!("note: {note}"));
        }
    }
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

// ------------------------------------------------------------------------------------------ from state to state --

/// Takes a copy of `checkpoint` along the way, into the new `target`.
///
/// Each step is an operation with its own digests, compared before its result has a name; steps before the last are
/// temporary copies in the target's folder.
pub fn walk(
    store: &Store,
    checkpoint: Checkpoint,
    steps: &[Step],
    target: &Path,
    trust: &TrustArguments,
    output: &Output,
) -> Result<(), CommandError> {
    mpatch::checkpoint::check_output(&checkpoint, target)?;
    let Some((last, before)) = steps.split_last() else {
        let progress = output.progress("copying", checkpoint.weights_size_bytes());
        Copy::create(&checkpoint, target, [], &|bytes| progress.add(bytes))?.commit()?;
        return Ok(());
    };
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let passing = tempfile::Builder::new().prefix(".mpatch-").tempdir_in(folder);
    let passing = passing.map_err(|error| CommandError::io("write to", folder, &error))?;
    let ending = if checkpoint.layout() == Layout::File { ".safetensors" } else { "" };
    let mut current = checkpoint;
    let mut left: Option<PathBuf> = None;
    for (index, step) in before.iter().enumerate() {
        let place = passing.path().join(format!("step-{}{ending}", index + 1));
        take(store, &current, *step, Some(&place), trust, output)?;
        current = open_checkpoint(&place, output)?;
        // One copy at a time: the one before has been read for the last time.
        if let Some(old) = left.replace(place) {
            let removed =
                if old.is_dir() { std::fs::remove_dir_all(&old) } else { std::fs::remove_file(&old) };
            removed.map_err(|error| CommandError::io("remove", &old, &error))?;
        }
    }
    take(store, &current, *last, Some(target), trust, output)
}

/// Takes the checkpoint at `path` along the way where it lies; whatever stops it leaves one of the states on the way.
pub fn walk_in_place(
    store: &Store,
    path: &Path,
    steps: &[Step],
    trust: &TrustArguments,
    output: &Output,
) -> Result<(), CommandError> {
    steps.iter().try_for_each(|step| take(store, &open_checkpoint(path, output)?, *step, None, trust, output))
}

/// One step, into a new place, or where the checkpoint lies.
fn take(
    store: &Store,
    checkpoint: &Checkpoint,
    step: Step,
    place: Option<&Path>,
    trust: &TrustArguments,
    output: &Output,
) -> Result<(), CommandError> {
    let (Step::Apply(id) | Step::Revert(id)) = step;
    let patch = store.patch(id)?;
    let failed = |error| CommandError::operation(&id.short(), error);
    if let Step::Apply(_) = step {
        // An old state is what was asked for, so an older patch of a line is no surprise here.
        let trust = TrustArguments { allow_rollback: true, ..trust.clone() };
        require(&patch, Path::new(&id.short()), &trust, output)?;
    }
    let progress = output.progress("comparing", survey_size_bytes(checkpoint, &patch));
    let told = |bytes| progress.add(bytes);
    let plan: Result<Plan, _> = match step {
        Step::Apply(_) => match apply::plan_with(checkpoint, &patch, &told).map_err(failed)? {
            apply::Answer::Applies(plan) => Ok(plan),
            apply::Answer::WrongBase(mismatch) => Err(mismatch.to_string()),
            apply::Answer::AlreadyApplied { .. } => Err("it is applied already".to_owned()),
        },
        Step::Revert(_) => match revert::plan_with(checkpoint, &patch, &told).map_err(failed)? {
            revert::Answer::Reverts(plan) => Ok(plan),
            revert::Answer::UnknownState(mismatch) => Err(mismatch.to_string()),
            revert::Answer::AlreadyBase { .. } => Err("it is not applied".to_owned()),
        },
    };
    drop(progress);
    let plan = plan.map_err(|why| {
        let message =
            format!("patch {} does not fit `{}` any more: {why}", id.short(), checkpoint.path().display());
        CommandError::new(ExitKind::WrongBase, message).hint("wait until nobody writes to it, and try again")
    })?;
    let written = match place {
        Some(place) => {
            let progress = output.progress("writing", plan.work_size_bytes());
            plan.execute(checkpoint, &patch, place, &|bytes| progress.add(bytes))
        }
        None => {
            plan.check_in_place(checkpoint)?;
            let _doing = doing(Work::InPlace);
            let progress = output.progress("writing", plan.in_place_work_size_bytes());
            plan.execute_in_place(checkpoint, &patch, &|bytes| progress.add(bytes))
        }
    };
    written.map(|_| ()).map_err(failed)
}

/// A step in words.
pub fn step_words(store: &Store, step: Step) -> Result<String, CommandError> {
    let (verb, id) = match step {
        Step::Apply(id) => ("apply ", id),
        Step::Revert(id) => ("revert", id),
    };
    let manifest = store.manifest(id)?;
    Ok(format!("{verb} {}  {}", id.short(), message(&manifest, id, None, vec![]).title))
}

/// The record that a history keeps of `apply` and `revert`; it is begun before the weights change, for in place they
/// are not afterwards what they were.
///
/// A patch that came on top of the head's state, or the last one that was taken out of it, becomes a commit; and the
/// result is the model from now on. What does not begin in the head's state is not recorded, and the user is told.
pub struct Record {
    store: Store,
    head: Commit,
    start: Start,
}

/// Where the weights stood.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Start {
    AtHead,
    Known,
    Unknown,
}

impl Record {
    /// Looks where `checkpoint` stands in the history of the working folder, if there is one.
    pub fn begin(checkpoint: &Checkpoint, output: &Output) -> Result<Option<Self>, CommandError> {
        let Some(store) = here(output)? else { return Ok(None) };
        let atlas = store.atlas()?;
        let head = store.commit(store.head()?)?;
        let start = match &locate(&atlas, checkpoint, false, output)?.standing {
            Standing::At(found) => {
                let state = found.first().map(|&index| &atlas.known()[index].state);
                if state == atlas.state_after(&head.series) { Start::AtHead } else { Start::Known }
            }
            _ => Start::Unknown,
        };
        Ok(Some(Self { store, head, start }))
    }

    /// Records that `plan` was carried out, and that its result lies at `target`.
    pub fn finish(
        self,
        plan: &Plan,
        patch: &Patch,
        target: &Path,
        notes: Vec<String>,
        output: &Output,
    ) -> Result<(), CommandError> {
        use mpatch::operation::Direction;
        let Self { store, head, start } = self;
        if start == Start::Unknown {
            output.note("not recorded: these weights are in no state that the history here knows");
            return Ok(());
        }
        let arguments = StoreArguments { store: store.folder().to_owned(), lock_timeout: 10.0 };
        let mut change = arguments.change(&store)?;
        let (at_head, manifest) = (start == Start::AtHead, patch.manifest());
        let verb = match plan.direction {
            Direction::Apply if at_head && !head.series.contains(&patch.id()) => {
                change.add(patch, message(manifest, patch.id(), None, notes))?;
                "apply"
            }
            Direction::Revert if at_head && head.series.last() == Some(&patch.id()) => {
                let title = format!("Revert \"{}\"", message(manifest, patch.id(), None, vec![]).title);
                change.take_back_last(Message { title, ..Message::default() })?;
                "revert"
            }
            _ => {
                output.note("not recorded as a commit: these weights were not in the state of HEAD");
                "model"
            }
        };
        change.set_model(Some(remembered(store.folder(), target)?));
        let commit = change.view().head_commit();
        change.finish(&format!("{verb} {}", patch.id().short()))?;
        if let Some(commit) = commit.filter(|commit| *commit != head.id) {
            output.note(&format!("recorded as {}", in_words(&store.commit(commit)?)));
        }
        Ok(())
    }
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
    }

    #[test]
    fn git_says_who_is_at_work() {
        let author = parse_ident("A. B. <a@b.c> 1764028800 -0130\n").expect("git's own form");
        assert_eq!((author.name.as_str(), author.email.as_str()), ("A. B.", "a@b.c"));
        assert_eq!((author.seconds, author.offset_minutes), (1_764_028_800, -90));
        assert!(parse_ident("nobody").is_none());
    }
}
