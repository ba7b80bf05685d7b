//! `mpatch tag`: names for states that stay.

use clap::Args;
use mpatch::store::Kind;

use super::names::{NamesArguments, run_names};
use crate::error::CommandError;
use crate::report::Output;

#[derive(Debug, Args)]
#[command(
    override_usage = "mpatch tag [OPTIONS] [NAME] [REVISION]\n       mpatch tag [OPTIONS] -d <NAME>...",
    after_help = "Examples:\n  mpatch tag\n  mpatch tag v1\n  mpatch tag v0 main~2\n  mpatch tag -d v0"
)]
pub struct TagArguments {
    /// What to do with which name.
    #[command(flatten)]
    names: NamesArguments,
}

/// Lists, makes or deletes.
pub fn run(arguments: &TagArguments, output: &Output) -> Result<(), CommandError> {
    run_names(Kind::Tag, &arguments.names, output)
}
