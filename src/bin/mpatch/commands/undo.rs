//! `mpatch undo`: the history's names go back to where they were before the last change.

use clap::Args;
use mpatch::store::{CommitId, Deed, Operation, Replay, Store};
use serde::Serialize;

use crate::error::CommandError;
use crate::history::{LockArguments, StoreArguments, branch_of, date, time};
use crate::report::{Output, Page, Report, shell_word};
use crate::standing::shown;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch undo\n  mpatch undo --list\n\n\
                  Undoing again goes further back; `mpatch redo` goes forward. Files of weights stay as they are.")]
pub struct UndoArguments {
    /// List all changes, the newest first, and undo nothing
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

/// What `undo` and `redo` print.
#[derive(Debug, Serialize)]
pub struct UndoReport {
    verb: &'static str,
    operation: String,
    branch: Option<String>,
    head: Option<CommitId>,
    model: Option<String>,
    /// Names that cannot be put back: what they led to is there no more.
    lost: Vec<String>,
    /// The checkpoint that was the model until now, where it is another one again.
    left: Option<String>,
    /// What takes along the weights that stay as they are: only names are undone.
    take_along: Option<String>,
    /// What does again what was undone, or undoes it again.
    #[serde(skip)]
    other_way: &'static str,
}

#[derive(Debug, Serialize)]
struct OperationsReport {
    operations: Vec<OperationReport>,
}

#[derive(Debug, Serialize)]
struct OperationReport {
    id: CommitId,
    title: String,
    kind: &'static str,
    /// To the minute, as it is printed.
    date: String,
    /// The same to the second.
    time: String,
    head: Option<CommitId>,
}

/// Goes back one change.
pub fn run(arguments: &UndoArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    if arguments.list {
        let operations = store.operations()?;
        let operations = operations.iter().rev().map(OperationReport::new).collect();
        return output.report(&OperationsReport { operations });
    }
    let undone = arguments.lock.change(&store)?.replay(Replay::Undo)?;
    UndoReport::new(Replay::Undo, &undone, &store, &arguments.store)
        .and_then(|report| output.report_done(&report))
        .map_err(CommandError::after_the_work)
}

impl UndoReport {
    /// After `operation` was undone or done again.
    pub fn new(
        replay: Replay,
        operation: &Operation,
        store: &Store,
        arguments: &StoreArguments,
    ) -> Result<Self, CommandError> {
        let view = store.view()?;
        // As seen from here: what a history remembers of a path begins in its own folder.
        let seen = |model: &String| shown(&store.folder().join(model)).display().to_string();
        let left = left(operation).filter(|_| replay == Replay::Undo);
        let take_along = |model: &String| {
            format!("mpatch checkout HEAD --onto {} --in-place{}", shell_word(seen(model)), arguments.words())
        };
        let (verb, other_way, wanted) = match replay {
            Replay::Undo => ("undid", "mpatch redo", &operation.before),
            Replay::Redo => ("did again", "mpatch undo", &operation.after),
        };
        let lost = view.lacks(wanted).map(|(kind, name)| format!("{kind} {name}"));
        let lost = lost.collect();
        Ok(Self {
            verb,
            operation: operation.title.clone(),
            branch: branch_of(&view).map(str::to_owned),
            head: view.head_commit(),
            model: view.model.as_ref().map(seen),
            lost,
            left: left.map(seen),
            take_along: left.or(kept(operation)).map(take_along),
            other_way,
        })
    }
}

/// The model where weights were written with the operation.
fn written(operation: &Operation) -> Option<&String> {
    let is_written = matches!(operation.deed, Deed::Do { with_weights: true });
    operation.after.model.as_ref().filter(|_| is_written)
}

/// The model that kept its place while the head moved away from it.
fn kept(operation: &Operation) -> Option<&String> {
    let (before, after) = (&operation.before, &operation.after);
    let is_kept = before.model == after.model && before.head_commit() != after.head_commit();
    written(operation).filter(|_| is_kept)
}

/// The checkpoint that became the model: a copy, or one that was changed in place, which no name tells apart.
fn left(operation: &Operation) -> Option<&String> {
    written(operation).filter(|model| operation.before.model.as_ref() != Some(model))
}

impl OperationReport {
    fn new(operation: &Operation) -> Self {
        Self {
            id: operation.id,
            title: operation.title.clone(),
            kind: match operation.deed {
                Deed::Do { .. } => "do",
                Deed::Undo(_) => "undo",
                Deed::Redo(_) => "redo",
                Deed::Outside => "outside",
            },
            date: date(operation.seconds, operation.offset_minutes),
            time: time(operation.seconds, operation.offset_minutes),
            head: operation.after.head_commit(),
        }
    }
}

impl Report for UndoReport {
    const SCHEMA: &'static str = "mpatch.undo/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("{}: {}", self.verb, self.operation));
        let head = self.head.map_or_else(|| "nothing".to_owned(), |head| head.short());
        let place =
            self.branch.as_deref().map_or_else(|| "no branch".to_owned(), |name| format!("branch {name}"));
        page.line(&format!("on {place}, at {head}"));
        if let Some(model) = &self.model {
            page.line(&format!("the model is {model}"));
        }
        for name in &self.lost {
            page.line(&format!("warning: the {name} is not back: git has swept away what it named"));
        }
        match (&self.left, &self.take_along) {
            (Some(left), Some(command)) => {
                page.line(&format!("{left} stays as it is; `{command}` takes it along"))
            }
            (None, Some(_)) => {
                page.line("only names have moved: weights that were changed in place still are")
            }
            _ => {}
        }
    }

    fn next(&self) -> Option<String> {
        let take_along = self.take_along.clone().filter(|_| self.left.is_none());
        Some(take_along.unwrap_or_else(|| self.other_way.to_owned()))
    }
}

impl Report for OperationsReport {
    const SCHEMA: &'static str = "mpatch.operations/1";

    fn write(&self, page: &mut Page) {
        let row = |operation: &OperationReport| {
            let head = operation.head.map(|head| head.short()).unwrap_or_default();
            vec![operation.id.short(), operation.date.clone(), head, format!("│ {}", operation.title)]
        };
        page.table(&self.operations.iter().map(row).collect::<Vec<_>>());
    }
}
