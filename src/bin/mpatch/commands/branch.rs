//! `mpatch branch`: names for states that move with their commits.

use clap::Args;
use mpatch::store::Kind;

use super::names::{NamesArguments, run_names};
use crate::error::CommandError;
use crate::report::Output;

#[derive(Debug, Args)]
#[command(
    override_usage = "mpatch branch [OPTIONS] [NAME] [REVISION]\n       mpatch branch [OPTIONS] -d <NAME>...",
    after_help = "Examples:\n  mpatch branch\n  mpatch branch geography\n  mpatch branch old main~2\n  mpatch branch -d old\n\n\
                  `origin/NAME` is a branch of the history that this one was cloned from or pulls from, as it was \
                  then; `mpatch checkout NAME` makes one of it here."
)]
pub struct BranchArguments {
    /// What to do with which name.
    #[command(flatten)]
    names: NamesArguments,
}

/// Lists, makes or deletes.
pub fn run(arguments: &BranchArguments, output: &Output) -> Result<(), CommandError> {
    run_names(Kind::Branch, &arguments.names, output)
}
