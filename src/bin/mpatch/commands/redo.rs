//! `mpatch redo`: what was undone last is done again.

use clap::Args;
use mpatch::store::Replay;

use super::undo::UndoReport;
use crate::error::CommandError;
use crate::history::{LockArguments, StoreArguments};
use crate::report::Output;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch redo")]
pub struct RedoArguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

/// Goes forward one change.
pub fn run(arguments: &RedoArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let redone = arguments.lock.change(&store)?.replay(Replay::Redo)?;
    UndoReport::new(Replay::Redo, &redone, &store, &arguments.store)
        .and_then(|report| output.report_done(&report))
        .map_err(CommandError::after_the_work)
}
