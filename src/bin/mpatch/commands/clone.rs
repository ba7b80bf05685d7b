//! `mpatch clone`: a history copied from elsewhere, checked before it has a name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use mpatch::store::{Received, Store};
use serde::Serialize;

use crate::arrivals::{ArrivalReport, judge_arrivals, write_arrivals};
use crate::error::{CommandError, ExitKind};
use crate::history::{CommitReport, author};
use crate::interrupt::Passing;
use crate::network::{REMOTE, address, fetch, head_branch, shown_address};
use crate::report::{Output, Page, Report, count, shell_word};
use crate::standing::{remembered, shown};

/// Arguments of `clone`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch clone https://example.org/knowledge.git --base gptj/\n  \
                  mpatch clone ../knowledge mine")]
pub struct CloneArguments {
    /// Copy the history at this address: a folder, or what `git clone` takes
    address: String,
    /// Keep it in this new folder; named like the address by default
    folder: Option<PathBuf>,
    /// Remember this model, in any of the history's states
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
}

/// What `clone` prints.
#[derive(Debug, Serialize)]
struct CloneReport {
    folder: PathBuf,
    branch: String,
    branches: usize,
    tags: usize,
    commits: usize,
    /// What their signatures say.
    patches: Vec<ArrivalReport>,
    head: CommitReport,
}

/// Copies it.
pub fn run(arguments: &CloneArguments, output: &Output) -> Result<(), CommandError> {
    let address = address(&arguments.address)?;
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => named_like(&address)?,
    };
    let made_folder = !folder.is_dir();
    if made_folder {
        std::fs::create_dir(&folder).map_err(|error| CommandError::io("create", &folder, &error))?;
    }
    let passing = made_folder.then(|| Passing::begin(folder.clone()));
    let copied = copy(&address, &folder, passing, arguments.base.as_deref(), output);
    if copied.is_err() && made_folder {
        let _ = std::fs::remove_dir(&folder);
    }
    let Copied { store, branch, received, patches } = copied?;
    let view = store.view()?;
    let report = CloneReport {
        folder: shown(&folder),
        branch,
        branches: received.branches.len(),
        tags: received.tags.len(),
        commits: received.commits,
        patches,
        head: CommitReport::new(store.commit(store.head()?)?, &view),
    };
    output.report(&report).map_err(CommandError::after_the_work)
}

/// A history that has come whole.
struct Copied {
    store: Store,
    branch: String,
    received: Received,
    patches: Vec<ArrivalReport>,
}

/// `passing` is the folder, if it has just been made.
fn copy(
    address: &str,
    folder: &Path,
    passing: Option<Passing>,
    base: Option<&Path>,
    output: &Output,
) -> Result<Copied, CommandError> {
    let made = Store::begin(folder, "main")?;
    let passing = passing.unwrap_or_else(|| Passing::begin(made.git_folder().to_owned()));
    let author = author()?;
    let incoming = made.incoming()?;
    fetch(&incoming, address)?;
    let head = head_branch(&incoming, address)?;
    let patches = judge_arrivals(&incoming, output)?;
    let mut change = made.change(Duration::ZERO, author)?;
    let received = incoming.receive(&mut change, Some(REMOTE))?;
    let known = |name: &String| received.branches.contains_key(name);
    let branch = head.filter(known).or_else(|| received.branches.keys().next().cloned());
    let Some(branch) = branch else {
        return Err(CommandError::new(
            ExitKind::Malformed,
            format!("`{}` has no branch", shown_address(address)),
        )
        .hint("it is no history of mpatch, or an empty one"));
    };
    change.adopt(&branch, received.branches[&branch])?;
    change.set_remote(REMOTE, address)?;
    if let Some(base) = base {
        change.set_model(Some(remembered(folder, base)?));
    }
    change.finish("clone")?;
    drop(incoming);
    passing.keep();
    Ok(Copied { store: made.settle(folder)?, branch, received, patches })
}

/// `knowledge` of `https://example.org/knowledge.git`.
fn named_like(address: &str) -> Result<PathBuf, CommandError> {
    let address = shown_address(address);
    let last = address.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default();
    let name = [".git", ".bundle"].iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
    if name.is_empty() || name.starts_with('.') {
        return Err(CommandError::new(ExitKind::Usage, format!("`{address}` gives no name for a folder"))
            .hint("name one: `mpatch clone ADDRESS FOLDER`"));
    }
    Ok(PathBuf::from(name))
}

impl Report for CloneReport {
    const SCHEMA: &'static str = "mpatch.clone/1";

    fn write(&self, page: &mut Page) {
        let folder = self.folder.display();
        let (commits, tags) = (count(self.commits, "commit"), count(self.tags, "tag"));
        let branches = count(self.branches, "branch");
        page.title(&format!("cloned into {folder}: {commits}, {branches}, {tags}, every patch checked"));
        write_arrivals(&self.patches, page);
        self.head.write(page, Some(&self.branch), 5);
    }

    fn next(&self) -> Option<String> {
        Some(format!("mpatch status MODEL --store {}", shell_word(&self.folder)))
    }
}
