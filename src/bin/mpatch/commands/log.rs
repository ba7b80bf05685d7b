//! `mpatch log`: the states of the history, the newest first, with their facts.

use clap::Args;
use serde::Serialize;

use crate::editing::at_least_one;
use crate::error::CommandError;
use crate::history::{CommitReport, StoreArguments, branch_of};
use crate::report::{Output, Page, Report};

/// Facts that are shown of each commit.
const FACTS_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch log\n  mpatch log geography -n 3\n  git log --oneline  # works too"
)]
pub struct LogArguments {
    /// Begin with this state: a branch, a tag, or the start of a commit's id
    #[arg(default_value = "HEAD")]
    revision: String,
    /// List at most this many; all by default
    #[arg(short = 'n', long, value_name = "COUNT", value_parser = at_least_one())]
    limit: Option<usize>,
    /// List every fact instead of the first 5 of each
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Debug, Serialize)]
struct LogReport {
    branch: Option<String>,
    commits: Vec<CommitReport>,
    #[serde(skip)]
    facts_shown: usize,
}

/// Prints the states.
pub fn run(arguments: &LogArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let from = store.resolve(&arguments.revision)?;
    let view = store.view()?;
    let commits = store.log(from, arguments.limit.unwrap_or(usize::MAX))?.into_iter();
    output.report(&LogReport {
        branch: branch_of(&view).map(str::to_owned),
        commits: commits.map(|commit| CommitReport::new(commit, &view)).collect(),
        facts_shown: if arguments.all { usize::MAX } else { FACTS_SHOWN },
    })
}

impl Report for LogReport {
    const SCHEMA: &'static str = "mpatch.log/1";

    fn write(&self, page: &mut Page) {
        for (index, commit) in self.commits.iter().enumerate() {
            if index > 0 {
                page.blank();
            }
            commit.write(page, self.branch.as_deref(), self.facts_shown);
        }
    }
}
