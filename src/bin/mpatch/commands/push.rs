//! `mpatch push`: branches and tags go to another history, their large patches first.

use clap::Args;
use mpatch::store::{CommitId, Kind, Store, View};
use serde::Serialize;

use crate::error::{CommandError, ExitKind};
use crate::history::{LockArguments, StoreArguments, author, branch_of};
use crate::interrupt::last_step;
use crate::network::{self, REMOTE, shown_address};
use crate::report::{Output, Page, Report, shell_word};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch push\n  mpatch push --to ssh://host/srv/knowledge.git\n  mpatch push main v1\n\n\
                  The branch that another history is on is left to those who work there: they `mpatch pull`."
)]
pub struct PushArguments {
    /// Send these branches and tags instead of the current branch
    names: Vec<String>,
    /// Send them to this address instead of the remembered one; the first one given is remembered
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

#[derive(Debug, Serialize)]
struct PushReport {
    address: String,
    /// Those that were not there as they are here.
    sent: Vec<String>,
}

/// Sends them.
pub fn run(arguments: &PushArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let remembered = network::remembered(&store)?;
    let hint = "name one: `mpatch push --to ADDRESS`, e.g. an empty repository made by `git init --bare`";
    let address = network::other(arguments.to.as_deref(), remembered.as_deref(), hint)?;
    let view = store.view()?;
    let mut names: Vec<String> = match (arguments.names.is_empty(), branch_of(&view)) {
        (false, _) => arguments.names.clone(),
        (true, Some(branch)) => vec![branch.to_owned()],
        (true, None) => {
            return Err(
                CommandError::new(ExitKind::Usage, "the head is on no branch").hint("name what to send")
            );
        }
    };
    // Git refuses a name that is given twice.
    names.sort();
    names.dedup();
    let sent = names.iter().map(|name| target(&store, &view, name)).collect::<Result<Vec<_>, _>>()?;
    // Asked again when the names move; what is wrong with it is better said before anything is sent.
    author(store.folder())?;
    store.check_sound(&sent.iter().map(|(commit, _)| *commit).collect::<Vec<_>>())?;
    let incoming = store.incoming()?;
    // Nobody can say any more what the other history has, once it is being sent.
    last_step();
    let moved = network::push(&store, &incoming, &address, remembered.as_deref(), &sent)?;
    // The other history has it, whatever becomes of our word for that.
    let is_known = remembered.as_ref().is_none_or(|known| *known == address);
    let news: &[_] = if is_known { &sent } else { &[] };
    let is_sent = |target: &(CommitId, String)| moved.contains(&target.1);
    let of_sent = names.into_iter().zip(&sent).filter(|(_, target)| is_sent(target));
    let report =
        PushReport { address: shown_address(&address), sent: of_sent.map(|(name, _)| name).collect() };
    remember(arguments, &store, remembered.is_none().then_some(address.as_str()), news)
        .and_then(|()| output.report_done(&report))
        .map_err(CommandError::after_the_work)
}

/// The commit that is sent, and its full name there.
fn target(store: &Store, view: &View, name: &str) -> Result<(CommitId, String), CommandError> {
    let of_kind = |kind| view.names(kind).find(|(known, _)| *known == name).map(|(_, commit)| commit);
    match (of_kind(Kind::Branch), of_kind(Kind::Tag)) {
        (Some(commit), _) => Ok((commit, format!("refs/heads/{name}"))),
        (None, Some(commit)) => Ok((commit, format!("refs/tags/{name}"))),
        (None, None) => {
            store.resolve(name)?;
            let message = format!("`{name}` is no branch and no tag, and has no name to be sent under");
            Err(CommandError::new(ExitKind::Usage, message)
                .hint(format!("give it one: `mpatch branch NAME {}`", shell_word(name))))
        }
    }
}

/// Records the address, where it is to be remembered, and which branches are there now.
fn remember(
    arguments: &PushArguments,
    store: &Store,
    address: Option<&str>,
    sent: &[(CommitId, String)],
) -> Result<(), CommandError> {
    let mut change = arguments.lock.change(store)?;
    if let Some(address) = address {
        change.set_remote(REMOTE, address)?;
    }
    for (commit, full) in sent {
        if let Some(branch) = full.strip_prefix("refs/heads/") {
            change.sent(REMOTE, branch, *commit);
        }
    }
    Ok(change.finish("push")?)
}

impl Report for PushReport {
    const SCHEMA: &'static str = "mpatch.push/1";

    fn write(&self, page: &mut Page) {
        page.title(&match self.sent.is_empty() {
            true => format!("nothing to send: {} has all of it", self.address),
            false => format!("sent {} to {}", self.sent.join(", "), self.address),
        });
    }
}
