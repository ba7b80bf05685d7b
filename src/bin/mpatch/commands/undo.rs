//! `mpatch undo`: the history's names go back to where they were before the last change.

use clap::Args;
use mpatch::store::{Deed, Operation};
use serde::Serialize;

use crate::error::CommandError;
use crate::history::{StoreArguments, branch_of, date};
use crate::report::{Output, Page, Report};

/// Arguments of `undo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch undo\n  mpatch undo --list\n\n\
                  Undoing again goes further back; `mpatch redo` goes forward. Files of weights stay as they are.")]
pub struct UndoArguments {
    /// List all changes, the newest first, and undo nothing
    #[arg(long)]
    list: bool,
    /// The history.
    #[command(flatten)]
    store: StoreArguments,
}

/// What `undo` and `redo` print.
#[derive(Debug, Serialize)]
pub struct UndoReport {
    verb: &'static str,
    operation: String,
    branch: Option<String>,
    head: Option<String>,
    model: Option<String>,
}

/// What `undo --list` prints.
#[derive(Debug, Serialize)]
struct OperationsReport {
    operations: Vec<OperationReport>,
}

#[derive(Debug, Serialize)]
struct OperationReport {
    id: String,
    title: String,
    kind: &'static str,
    date: String,
    head: Option<String>,
}

/// Goes back one change.
pub fn run(arguments: &UndoArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    if arguments.list {
        let operations = store.operations()?;
        let operations = operations.iter().rev().map(OperationReport::new).collect();
        return output.report(&OperationsReport { operations });
    }
    let undone = arguments.store.change(&store)?.undo()?;
    let report = UndoReport::new("undid", &undone, &store.view()?);
    output.report(&report).map_err(CommandError::after_the_work)
}

impl UndoReport {
    /// After `operation` was undone or done again.
    pub fn new(verb: &'static str, operation: &Operation, view: &mpatch::store::View) -> Self {
        Self {
            verb,
            operation: operation.title.clone(),
            branch: branch_of(view).map(str::to_owned),
            head: view.head_commit().map(|commit| commit.to_string()),
            model: view.model.clone(),
        }
    }
}

impl OperationReport {
    fn new(operation: &Operation) -> Self {
        Self {
            id: operation.id.to_string(),
            title: operation.title.clone(),
            kind: match operation.deed {
                Deed::Do => "do",
                Deed::Undo(_) => "undo",
                Deed::Redo(_) => "redo",
                Deed::Outside => "outside",
            },
            date: date(operation.seconds, operation.offset_minutes),
            head: operation.after.head_commit().map(|commit| commit.to_string()),
        }
    }
}

impl Report for UndoReport {
    const SCHEMA: &'static str = "mpatch.undo/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("{}: {}", self.verb, self.operation));
        let head = self.head.as_deref().map_or("nothing", |head| &head[..12]);
        let place =
            self.branch.as_deref().map_or_else(|| "no branch".to_owned(), |name| format!("branch {name}"));
        page.line(&format!("on {place}, at {head}"));
        if let Some(model) = &self.model {
            page.line(&format!("the model is {model}"));
        }
    }

    fn next(&self) -> Option<String> {
        Some(if self.verb == "undid" { "mpatch redo" } else { "mpatch undo" }.to_owned())
    }
}

impl Report for OperationsReport {
    const SCHEMA: &'static str = "mpatch.operations/1";

    fn write(&self, page: &mut Page) {
        let row = |operation: &OperationReport| {
            let head = operation.head.as_deref().map_or("", |head| &head[..12]).to_owned();
            vec![
                operation.id[..12].to_owned(),
                operation.date.clone(),
                head,
                format!("│ {}", operation.title),
            ]
        };
        page.table(&self.operations.iter().map(row).collect::<Vec<_>>());
    }
}
