//! `mpatch log`: the states of the history, the newest first, with their facts.

use clap::Args;
use mpatch::store::{Commit, Store};
use serde::Serialize;

use crate::editing::at_least_one;
use crate::error::CommandError;
use crate::history::{CommitReport, StoreArguments, branch_of};
use crate::report::{Output, Page, Report};
use crate::signers::SignedPatch;
use crate::trust::TrustFiles;

/// Facts that are shown of each commit.
const FACTS_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch log\n  mpatch log geography -n 3\n  mpatch log --show-signature\n  \
                  git log --oneline  # works too"
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
    /// Tell of each patch who signed it, as the keys that are trusted now say
    #[arg(long)]
    show_signature: bool,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Debug, Serialize)]
struct LogReport {
    branch: Option<String>,
    commits: Vec<Entry>,
    #[serde(skip)]
    facts_shown: usize,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    commit: CommitReport,
    /// The patches that it brought, and who signed them; none unless it is asked for.
    patches: Option<Vec<SignedPatch>>,
}

/// Prints the states.
pub fn run(arguments: &LogArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let from = store.resolve(&arguments.revision)?;
    let view = store.view()?;
    let commits = store.log(from, arguments.limit.unwrap_or(usize::MAX))?.into_iter();
    // To read the patches takes longer than to read the commits.
    let files = arguments.show_signature.then(|| TrustFiles::load_with_a_word(output)).transpose()?;
    let entry = |commit: Commit| {
        let patches = files.as_ref().map(|files| signed_patches(&store, &commit, files)).transpose()?;
        Ok(Entry { commit: CommitReport::new(commit, &view), patches })
    };
    output.report(&LogReport {
        branch: branch_of(&view).map(str::to_owned),
        commits: commits.map(entry).collect::<Result<_, CommandError>>()?,
        facts_shown: if arguments.all { usize::MAX } else { FACTS_SHOWN },
    })
}

/// The patches that a commit brought, and who signed them.
fn signed_patches(
    store: &Store,
    commit: &Commit,
    files: &TrustFiles,
) -> Result<Vec<SignedPatch>, CommandError> {
    let patches = store.brought_by(commit)?.into_iter();
    patches.map(|patch| SignedPatch::of(store, commit.id, patch, files)).collect()
}

impl Report for LogReport {
    const SCHEMA: &'static str = "mpatch.log/1";

    fn write(&self, page: &mut Page) {
        for (index, Entry { commit, patches }) in self.commits.iter().enumerate() {
            if index > 0 {
                page.blank();
            }
            commit.write(page, self.branch.as_deref(), self.facts_shown);
            page.table(&patches.iter().flatten().map(SignedPatch::row).collect::<Vec<_>>());
        }
    }
}
