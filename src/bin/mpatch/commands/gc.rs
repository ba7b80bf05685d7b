//! `mpatch gc`: a history made small, with nothing of it lost, nor of what else lies in the repository.

use clap::Args;
use mpatch::store::Tidied;

use crate::error::CommandError;
use crate::history::{LockArguments, StoreArguments};
use crate::report::{Output, Page, Report, count, size};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch gc\n\n\
                  Whatever can be undone stays, and every Git LFS object that is no patch, or that any git object \
                  points to.")]
pub struct GcArguments {
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

/// Packs and removes.
pub fn run(arguments: &GcArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let tidied = arguments.lock.change(&store)?.tidy()?;
    output.report_done(&tidied)
}

impl Report for Tidied {
    const SCHEMA: &'static str = "mpatch.gc/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("packed {}", count(self.packed, "git object")));
        if self.removed > 0 {
            let what = count(self.removed, "large patch");
            page.line(&format!("removed {what} that nothing refers to ({})", size(self.removed_size_bytes)));
        }
    }
}
