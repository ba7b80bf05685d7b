//! `mpatch pull`: what another history has comes here, checked; and the current branch follows where it only went on.

use std::collections::BTreeMap;

use clap::Args;
use mpatch::store::{Change, CommitId, Store, StoreError};
use serde::Serialize;

use crate::arrivals::{ArrivalReport, judge_arrivals, write_arrivals};
use crate::error::CommandError;
use crate::history::{CommitReport, LockArguments, StoreArguments, branch_of, head_after_change};
use crate::network::{REMOTE, fetch, other, remembered, shown_address, tell_unsound};
use crate::report::{Output, Page, Report, count, shell_word};
use crate::trust::Lines;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch pull\n  mpatch pull --from ../knowledge\n\n\
                  What came is refused whole where a signature is bad, or a policy does not let a patch pass; what \
                  is unsigned, or signed by somebody unknown, is pointed out.")]
pub struct PullArguments {
    /// Fetch from this address instead of the remembered one; the first one given is remembered, and what comes from
    /// another one gets no names but its tags
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

#[derive(Debug, Serialize)]
struct PullReport {
    address: String,
    branch: Option<String>,
    commits: usize,
    branches: usize,
    tags: usize,
    /// Tags that name something else here, and were left as they are.
    tags_kept: Vec<String>,
    /// Names that have no room beside others here, and were left out: each with the one in its way.
    left_out: BTreeMap<String, String>,
    /// The branches of an address that is not the remembered one, which have no names here.
    unnamed: BTreeMap<String, CommitId>,
    went_forward: bool,
    /// Patches that are new here, and what their signatures say.
    patches: Vec<ArrivalReport>,
    head: CommitReport,
}

/// Fetches, checks and follows.
pub fn run(arguments: &PullArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    // Without it nothing would say which model this history is about.
    store.head()?;
    let remembered = remembered(&store)?;
    let hint = "name one: `mpatch pull --from ADDRESS`";
    let address = other(arguments.from.as_deref(), remembered.as_deref(), hint)?;
    let incoming = store.incoming()?;
    let unsound = fetch(&incoming, &address, false)?;
    let patches = judge_arrivals(&incoming, Lines::of_history(&store), output)?;
    let mut change = arguments.lock.change(&store)?;
    // What has a name under this one says where that history is, and no other.
    let is_known = remembered.as_ref().is_none_or(|known| *known == address);
    let received = incoming.receive(&mut change, is_known.then_some(REMOTE))?;
    let branch = branch_of(change.view()).map(str::to_owned);
    let theirs = branch.as_ref().and_then(|branch| received.branches.get(branch)).copied();
    let followed = follow(&store, &mut change, theirs, is_known)?;
    if remembered.is_none() {
        change.set_remote(REMOTE, &address)?;
    }
    change.finish("pull").inspect_err(|error| {
        // What is still to be done when the next change begins came from there.
        if remembered.is_none() && !matches!(error, StoreError::Pending { .. }) {
            store.forget_remote(REMOTE);
        }
    })?;
    let report = PullReport {
        address: shown_address(&address),
        branch,
        commits: received.commits,
        branches: received.branches.len(),
        tags: received.tags.len(),
        tags_kept: received.tags_kept,
        left_out: received.left_out,
        unnamed: if is_known { BTreeMap::new() } else { received.branches },
        went_forward: matches!(followed, Followed::Forward),
        patches,
        head: head_after_change(&store)?,
    };
    let current = report.branch.clone();
    output.report_done(&report)?;
    tell_unsound(unsound, current.as_deref(), &address, output).map_err(CommandError::after_the_work)?;
    match followed {
        Followed::Apart(error) => Err(error.after_the_work()),
        Followed::Forward | Followed::Not => Ok(()),
    }
}

/// What the current branch did about the one of its name that came.
enum Followed {
    /// It has all of that one, or there is none.
    Not,
    /// It went forward.
    Forward,
    /// Each has what the other one has not.
    Apart(CommandError),
}

/// Takes the current branch to `theirs` where that only went on; `is_known` says that the remote's branches have names
/// here.
fn follow(
    store: &Store,
    change: &mut Change<'_>,
    theirs: Option<CommitId>,
    is_known: bool,
) -> Result<Followed, CommandError> {
    let view = change.view();
    let (Some(branch), Some(ours), Some(theirs)) = (branch_of(view), view.head_commit(), theirs) else {
        return Ok(Followed::Not);
    };
    match store.ahead_behind(ours, theirs)? {
        (_, 0) => Ok(Followed::Not),
        (0, _) => {
            change.fast_forward(theirs);
            Ok(Followed::Forward)
        }
        (ahead, behind) => {
            let theirs = if is_known { format!("{REMOTE}/{branch}") } else { theirs.short() };
            let hint = format!("`mpatch merge {}` joins the two", shell_word(&theirs));
            let ours = branch.to_owned();
            let error = StoreError::Diverged { ours, theirs, ahead, behind };
            Ok(Followed::Apart(CommandError::from(error).hint(hint)))
        }
    }
}

impl Report for PullReport {
    const SCHEMA: &'static str = "mpatch.pull/1";

    fn write(&self, page: &mut Page) {
        let commits = count(self.commits, "new commit");
        page.title(&format!("fetched {commits} from {}, every patch checked", self.address));
        write_arrivals(&self.patches, page);
        for tag in &self.tags_kept {
            page.line(&format!("warning: the tag {tag} names something else there, and was left as it is"));
        }
        for (name, other) in &self.left_out {
            page.line(&format!("warning: {name} was left out: git has no room for it beside {other}"));
        }
        if !self.unnamed.is_empty() {
            page.hint("its branches, which have no names here; `mpatch branch NAME ID` gives one:");
            let row = |(name, commit): (&String, &CommitId)| vec![commit.short(), name.clone()];
            page.table(&self.unnamed.iter().map(row).collect::<Vec<_>>());
        }
        match (&self.branch, self.went_forward) {
            (Some(branch), true) => page.line(&format!("{branch} went forward")),
            (Some(branch), false) => page.line(&format!("{branch} stays where it is")),
            (None, _) => page.line("the head is on no branch, and stays"),
        }
        self.head.write(page, self.branch.as_deref(), 5);
    }

    fn next(&self) -> Option<String> {
        self.went_forward.then(|| "mpatch checkout HEAD -o MODEL".to_owned())
    }
}
