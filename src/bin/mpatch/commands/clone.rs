//! `mpatch clone`: a history copied from elsewhere, checked before it has a name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use mpatch::checkpoint::Checkpoint;
use mpatch::store::{Change, CommitId, Head, Received, Store};
use serde::Serialize;

use super::open_checkpoint;
use crate::arrivals::{ArrivalReport, judge_arrivals, write_arrivals};
use crate::error::{CommandError, ExitKind};
use crate::history::{CommitReport, author, head_after_change};
use crate::interrupt::Passing;
use crate::network::{REMOTE, TheirHead, address, fetch, shown_address, tell_unsound, their_head};
use crate::report::{Output, Page, Report, count, shell_word};
use crate::standing::{refuse_misfit, remembered, shown};
use crate::trust::Lines;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch clone https://example.org/knowledge.git --base gptj/\n  \
                  mpatch clone ../knowledge mine")]
pub struct CloneArguments {
    /// Copy the history at this address: a folder, or what `git clone` takes
    address: String,
    /// Keep it in this folder, which may be there already, as that of the model is; named like the address by default
    folder: Option<PathBuf>,
    /// Remember this model, in any of the history's states
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct CloneReport {
    folder: PathBuf,
    /// None where the other history's head is on none.
    branch: Option<String>,
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
    let base = match &arguments.base {
        Some(base) => Some((base.as_path(), open_checkpoint(base, output)?)),
        None => None,
    };
    let copied = Passing::in_new(&folder, |passing| copy(&address, &folder, passing, base, output))?;
    let Copied { store, branch, received, patches } = copied;
    let report = CloneReport {
        folder: shown(&folder),
        branch,
        branches: received.branches.len(),
        tags: received.tags.len(),
        commits: received.commits,
        patches,
        head: head_after_change(&store)?,
    };
    output.report_done(&report)
}

/// A history that has come whole.
struct Copied {
    store: Store,
    branch: Option<String>,
    received: Received,
    patches: Vec<ArrivalReport>,
}

/// `passing` is the folder, if it has just been made.
fn copy(
    address: &str,
    folder: &Path,
    passing: Option<Passing>,
    base: Option<(&Path, Checkpoint)>,
    output: &Output,
) -> Result<Copied, CommandError> {
    let made = Store::begin(folder, "main")?;
    let passing = passing.unwrap_or_else(|| Passing::begin(made.git_folder().to_owned()));
    let author = author(folder)?;
    let model = base.as_ref().map(|(path, _)| remembered(folder, path)).transpose()?;
    let incoming = made.incoming()?;
    let head = their_head(&incoming, address)?;
    let unsound = fetch(&incoming, address, head == TheirHead::Detached)?;
    let wanted = if let TheirHead::Branch(name) = &head { Some(name.as_str()) } else { None };
    tell_unsound(unsound, wanted, address, output)?;
    let patches = judge_arrivals(&incoming, Lines::default(), output)?;
    let mut change = made.change(Duration::ZERO, author)?;
    let received = incoming.receive(&mut change, Some(REMOTE))?;
    let branch = begin_at(&mut change, &received, head, address)?;
    change.set_remote(REMOTE, address)?;
    change.set_model(model);
    change.finish("clone")?;
    if let Some((path, checkpoint)) = &base {
        refuse_misfit(&made.base()?, checkpoint, path)?;
    }
    drop(incoming);
    passing.keep();
    Ok(Copied { store: made.settle(folder)?, branch, received, patches })
}

/// Puts the head where the other history's is: on its branch, or the one that is at the same state, or on none; on the
/// first one where the other head is nowhere. Tells which branch that is.
fn begin_at(
    change: &mut Change<'_>,
    received: &Received,
    head: TheirHead,
    address: &str,
) -> Result<Option<String>, CommandError> {
    let named = match head {
        TheirHead::Branch(name) => received.branches.get_key_value(&name),
        TheirHead::Detached | TheirHead::Unborn => None,
    };
    // What it is on a bundle does not say: of several, git guesses the usual one, too.
    let is_alike = |(_, commit): &(&String, &CommitId)| Some(**commit) == received.head;
    let usual =
        || ["main", "master"].iter().find_map(|name| received.branches.get_key_value(*name).filter(is_alike));
    let alike = || usual().or_else(|| received.branches.iter().find(is_alike));
    match (named.or_else(alike), received.head) {
        (None, Some(commit)) => {
            change.switch(Head::Detached(commit))?;
            Ok(None)
        }
        (found, _) => {
            let no_branch = || {
                let message = format!("`{}` has no branch", shown_address(address));
                let error = CommandError::new(ExitKind::Malformed, message);
                error.hint("it is no history of mpatch, or an empty one")
            };
            let found = found.or_else(|| received.branches.first_key_value());
            let (branch, commit) = found.ok_or_else(no_branch)?;
            change.adopt(branch, *commit)?;
            Ok(Some(branch.clone()))
        }
    }
}

/// `knowledge` of `https://example.org/knowledge.git`.
fn named_like(address: &str) -> Result<PathBuf, CommandError> {
    let address = shown_address(address);
    // A history's own repository is called like all others.
    let address_of_history = address.trim_end_matches('/');
    let address_of_history = address_of_history.strip_suffix("/.git").unwrap_or(address_of_history);
    let last = address_of_history.rsplit(['/', ':']).next().unwrap_or_default();
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
        if self.branch.is_none() {
            page.line("the head is on no branch, as it is there");
        }
        self.head.write(page, self.branch.as_deref(), 5);
    }

    fn next(&self) -> Option<String> {
        Some(format!("mpatch status MODEL --store {}", shell_word(&self.folder)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_called_like_what_it_is_of() {
        for address in
            ["/srv/know", "../know/", "host:know.git", "https://example.org/know.bundle", "../know/.git/"]
        {
            assert_eq!(named_like(address).ok(), Some(PathBuf::from("know")), "{address}");
        }
        assert!(named_like("..").is_err() && named_like("/.git").is_err());
    }
}
