//! Taking a checkpoint from one state to another, step by step, and the record that a history keeps of a step.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mpatch::checkpoint::{Checkpoint, Layout, PassingFolder, TakenAlong, copy};
use mpatch::digest::PatchId;
use mpatch::operation::{Answer, Direction};
use mpatch::patch::Patch;
use mpatch::store::{Change, Commit, CommitId, Location, Message, Step, Store, StoreError};
use serde::Serialize;

use crate::commands::{open_checkpoint, planned};
use crate::error::{CommandError, ExitKind};
use crate::history::{LOCK_TIMEOUT_SECONDS, author, in_words, message};
use crate::interrupt::{Work, doing, last_step};
use crate::places::folder_of;
use crate::report::{Output, shell_word};
use crate::standing::{atlas, locate, remembered, shown};
use crate::trust::{TrustArguments, TrustReport, require};

/// What became of a way that was gone.
#[derive(Debug, Default)]
pub struct Walked {
    /// How what no step touches came into the copy, where one was made.
    pub taken_along: TakenAlong,
    /// Who signed the patches that were applied on the way, in the order of the way.
    pub trust: Vec<StepTrust>,
}

/// Who signed a patch that was applied on the way, and what the user had to allow for it.
#[derive(Debug, Serialize)]
pub struct StepTrust {
    /// The patch.
    pub patch: PatchId,
    /// Its judgement.
    #[serde(flatten)]
    pub trust: TrustReport,
}

/// Takes a copy of `checkpoint` along the way, into the new `target`.
///
/// Each step is an operation with its own digests, compared before its result has a name. The first of several makes a
/// passing copy in the target's folder, which those before the last change where it lies. `before_last_step` is called
/// as [`Checkpoint::before_last_step`] says.
pub fn walk(
    store: &Store,
    checkpoint: Checkpoint,
    steps: &[Step],
    target: &Path,
    before_last_step: fn(),
    trust: &TrustArguments,
    output: &Output,
) -> Result<Walked, CommandError> {
    mpatch::checkpoint::check_output(&checkpoint, target)?;
    let trust = require_all(store, steps, trust, output)?;
    let _doing = doing(Work::Copying);
    let taken_along = take_all(store, checkpoint, steps, target, before_last_step, output)?;
    Ok(Walked { taken_along, trust })
}

/// All steps of a way whose patches are permitted.
fn take_all(
    store: &Store,
    checkpoint: Checkpoint,
    steps: &[Step],
    target: &Path,
    before_last_step: fn(),
    output: &Output,
) -> Result<TakenAlong, CommandError> {
    let Some((last, before)) = steps.split_last() else {
        let progress = output.progress("copying", checkpoint.weights_size_bytes());
        let checkpoint = checkpoint.before_last_step(before_last_step);
        return Ok(copy(&checkpoint, target, &|bytes| progress.add(bytes))?);
    };
    let passing = PassingFolder::create(folder_of(target))?;
    let ending = if checkpoint.layout() == Layout::File { ".safetensors" } else { "" };
    let mut current = checkpoint;
    let mut left: Option<PathBuf> = None;
    let mut along: Option<TakenAlong> = None;
    for (index, step) in before.iter().enumerate() {
        let place = passing.path().join(format!("step-{}{ending}", index + 1));
        let into = if left.is_some() { Place::HereOr(&place) } else { Place::New(&place) };
        let taken = take(store, &current, *step, into, output).map_err(CommandError::of_passing_copy)?;
        // Two that hold one file would be in each other's way.
        drop(current);
        let Some(taken) = taken else {
            current = open_checkpoint(left.as_deref().unwrap_or(&place), output)?;
            continue;
        };
        along = Some(after(along, taken));
        current = open_checkpoint(&place, output)?;
        // One copy at a time: the one before has been read for the last time.
        if let Some(old) = left.replace(place) {
            let removed =
                if old.is_dir() { std::fs::remove_dir_all(&old) } else { std::fs::remove_file(&old) };
            removed.map_err(|error| CommandError::io("remove", &old, &error))?;
        }
    }
    let current = current.before_last_step(before_last_step);
    let taken = take(store, &current, *last, Place::New(target), output)?;
    Ok(after(along, taken.unwrap_or_default()))
}

fn after(before: Option<TakenAlong>, taken: TakenAlong) -> TakenAlong {
    match before {
        Some(before) => before.and_then(taken),
        None => taken,
    }
}

/// Takes the checkpoint at `path` along the way where it lies; whatever stops it leaves one of the states on the way,
/// and its error says which.
pub fn walk_in_place(
    store: &Store,
    path: &Path,
    steps: &[Step],
    trust: &TrustArguments,
    output: &Output,
) -> Result<Walked, CommandError> {
    let trust = require_all(store, steps, trust, output)?;
    let _doing = doing(Work::InPlace);
    for (done, step) in steps.iter().enumerate() {
        let taken = open_checkpoint(path, output).and_then(|checkpoint| {
            let is_last = done + 1 == steps.len();
            let checkpoint = if is_last { checkpoint.before_last_step(last_step) } else { checkpoint };
            take(store, &checkpoint, *step, Place::Here, output).map(drop)
        });
        taken.map_err(|error| error.between_steps(path, done, steps.len()))?;
    }
    Ok(Walked { taken_along: TakenAlong::default(), trust })
}

/// Refuses a way that a patch leads along whose signature does not do; asked before the first step.
fn require_all(
    store: &Store,
    steps: &[Step],
    trust: &TrustArguments,
    output: &Output,
) -> Result<Vec<StepTrust>, CommandError> {
    // An old state is what was asked for, so an older patch of a line is no surprise here.
    let trust = TrustArguments { allow_rollback: true, ..trust.clone() };
    let (mut judged, mut idle) = (Vec::new(), trust.signature.clone());
    for step in steps {
        if let Step::Apply(id) = step {
            let patch = store.patch(*id)?;
            let of_patch = trust.for_one_of_several(&patch, &mut idle)?;
            judged.push((*id, require(&patch, Path::new(&id.short()), &of_patch, output)?));
        }
    }
    for file in &idle {
        output.warn(&format!("`{}` is the signature of no patch that is applied on the way", file.display()));
    }
    // Of all of them, once.
    if let Some((_, judged)) = judged.last() {
        judged.warn_of_rung(output);
    }
    Ok(judged.into_iter().map(|(patch, judged)| StepTrust { patch, trust: judged.report }).collect())
}

/// Where the result of a step goes.
#[derive(Debug, Clone, Copy)]
enum Place<'a> {
    /// Where the checkpoint lies.
    Here,
    /// Into a copy.
    New(&'a Path),
    /// Where the checkpoint lies; into a copy where that must not be changed, such as a shard that is linked.
    HereOr(&'a Path),
}

/// One step; answers how the rest came into a copy, where one was made.
fn take(
    store: &Store,
    checkpoint: &Checkpoint,
    step: Step,
    place: Place<'_>,
    output: &Output,
) -> Result<Option<TakenAlong>, CommandError> {
    let (direction, id) = match step {
        Step::Apply(id) => (Direction::Apply, id),
        Step::Revert(id) => (Direction::Revert, id),
    };
    let patch = store.patch(id)?;
    let plan = match planned(checkpoint, &patch, &id.short(), direction, output)? {
        Answer::Fits(plan) => Ok(plan),
        Answer::Elsewhere(mismatch) => Err(mismatch.to_string()),
        Answer::Done { .. } => Err(match direction {
            Direction::Apply => "it is applied already".to_owned(),
            Direction::Revert => "it is not applied".to_owned(),
        }),
    };
    let plan = plan.map_err(|why| {
        let message =
            format!("patch {} does not fit `{}` any more: {why}", id.short(), checkpoint.path().display());
        CommandError::new(ExitKind::WrongBase, message).hint("wait until nobody writes to it, and try again")
    })?;
    let copy = match place {
        Place::Here => None,
        Place::New(copy) => Some(copy),
        Place::HereOr(copy) => plan.check_in_place(checkpoint).is_err().then_some(copy),
    };
    let written = match copy {
        Some(place) => {
            let progress = output.progress("writing", plan.copy_size_bytes);
            plan.execute(checkpoint, &patch, place, &|bytes| progress.add(bytes))
        }
        None => {
            let progress = output.progress("writing", 2 * plan.tensor_size_bytes);
            plan.execute_in_place(checkpoint, &patch, &|bytes| progress.add(bytes))
        }
    };
    written
        .map(|written| copy.map(|_| written.taken_along))
        .map_err(|error| CommandError::operation(&id.short(), error))
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
/// result is the model from now on. Anything else is not recorded and leaves the model where it is, and the user is
/// told.
pub struct Record {
    store: Store,
    head: Commit,
    entry: Entry,
}

/// What is recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A commit that brings the patch.
    Patch,
    /// A commit that takes the last patch back.
    TakenBack,
}

/// What a history says of what was done.
#[derive(Debug, Serialize)]
pub struct RecordReport {
    /// The commit that was made.
    pub commit: CommitId,
    /// Where the weights are, which are the history's model from now on.
    pub model: PathBuf,
}

/// What became of a record.
#[derive(Debug)]
pub enum Recorded {
    /// The history says what was done.
    Done(RecordReport),
    /// Another command has moved the head from the commit where the work began. No commit was made, for it would stand
    /// on another state than that of the weights.
    Overtaken(CommitId),
}

impl Record {
    /// Looks where `checkpoint` stands in the history, if that knows it, and whether it can be written and takes the
    /// patch, with `target` as the place of the result.
    pub fn begin(
        store: Store,
        checkpoint: &Checkpoint,
        direction: Direction,
        patch: &Patch,
        target: &Path,
        output: &Output,
    ) -> Result<Option<Self>, CommandError> {
        let atlas = atlas(&store, &[], output)?;
        let head = store.commit(store.head()?)?;
        let entry = match &locate(&atlas, checkpoint, false, output)?.standing {
            Location::At(found) => {
                let state = found.first().map(|&index| &atlas.known()[index].state);
                match direction {
                    _ if state != atlas.state_after(&head.series) => {
                        Err("these weights are not in the state of HEAD")
                    }
                    Direction::Apply if head.series.contains(&patch.id()) => {
                        Err("HEAD has this patch already")
                    }
                    Direction::Apply => Ok(Entry::Patch),
                    Direction::Revert if head.series.last() == Some(&patch.id()) => Ok(Entry::TakenBack),
                    Direction::Revert => Err("this patch is not the last one of HEAD"),
                }
            }
            _ => Err("these weights are in no state that the history knows"),
        };
        let entry = match entry {
            Ok(entry) => entry,
            Err(why) => {
                let model = store.view()?.model.map(|model| shown(&store.folder().join(model)));
                let stays = model.map(|model| format!("; its model stays {}", shell_word(model)));
                output.warn(&format!("not recorded in the history: {why}{}", stays.unwrap_or_default()));
                return Ok(None);
            }
        };
        if entry == Entry::Patch {
            store.check_addition(head.id, patch)?;
        }
        remembered(store.folder(), target)?;
        // Not held during the work, which may take longer than anybody waits.
        drop(change(&store)?);
        Ok(Some(Self { store, head, entry }))
    }

    /// What will be recorded.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// Records that the patch was applied, or taken out, and that the result lies at `target`.
    pub fn finish(
        self,
        patch: &Patch,
        target: &Path,
        notes: Vec<String>,
        output: &Output,
    ) -> Result<Recorded, CommandError> {
        let Self { store, head, entry } = self;
        let mut change = change(&store)?;
        let manifest = patch.manifest();
        if change.view().head_commit() != Some(head.id) {
            return Ok(Recorded::Overtaken(head.id));
        }
        let (verb, commit) = match entry {
            Entry::Patch => ("apply", change.add(patch, message(manifest, patch.id(), None, notes))?),
            Entry::TakenBack => {
                let title = format!("Revert \"{}\"", message(manifest, patch.id(), None, vec![]).title);
                ("revert", change.take_back_last(Message { title, ..Message::default() })?)
            }
        };
        let model = remembered(store.folder(), target)?;
        let moved = change.view().model.as_ref() != Some(&model);
        change.set_model(Some(model));
        change.set_with_weights();
        change.finish(&format!("{verb} {}", patch.id().short()))?;
        output.note(&format!("recorded as {}", in_words(&store.commit(commit)?)));
        if moved {
            output.note(&format!("the history's model is now {}", shell_word(target)));
        }
        Ok(Recorded::Done(RecordReport { commit, model: target.to_owned() }))
    }
}

/// Takes the right to change the history, for commands that do so by the way.
fn change(store: &Store) -> Result<Change<'_>, CommandError> {
    store.change(Duration::from_secs_f64(LOCK_TIMEOUT_SECONDS), author(store.folder())?).map_err(|error| {
        let hint = match &error {
            StoreError::Busy { .. } => "wait for it, and run this again",
            StoreError::Io { .. } | StoreError::System { .. } => {
                "see that the history can be written; a command that is run outside of its folder keeps no record"
            }
            _ => return error.into(),
        };
        CommandError::from(error).hint(hint)
    })
}
