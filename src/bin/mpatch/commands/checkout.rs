//! `mpatch checkout`: the head goes to another state, and a copy of a checkpoint with it.

use std::path::PathBuf;

use clap::Args;
use mpatch::checkpoint::TakenAlong;
use mpatch::store::{Commit, CommitId, Head, Kind, Step, Store, StoreError, way};
use serde::Serialize;

use super::change::write_taken_along;
use super::{beside, open_checkpoint};
use crate::args::output_path;
use crate::error::{CommandError, with_causes};
use crate::history::{CommitReport, LockArguments, StoreArguments, branch_of, refusal_to_change};
use crate::interrupt::{Work, doing, last_step};
use crate::report::{Output, Page, Report, shell_word};
use crate::standing::{atlas, locate, model_path, remembered, series_at, shown};
use crate::trust::TrustArguments;
use crate::walk::{StepTrust, Walked, step_words, walk, walk_in_place};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch checkout geography\n  mpatch checkout HEAD -o gptj-edited\n  \
                  mpatch checkout v1 --onto gptj-edited/ -o gptj-v1\n  mpatch checkout main~2 -o old --dry-run\n\n\
                  A branch that only another history has is made here: `geography` of `origin/geography`.")]
pub struct CheckoutArguments {
    /// Go to this state: a branch, a tag, `main~2`, or the start of a commit's id
    revision: String,
    /// Take a copy of this checkpoint there, from whichever state it is in; with `-o` or `--in-place` alone, the one
    /// that the history remembers
    #[arg(long, value_name = "CHECKPOINT")]
    onto: Option<PathBuf>,
    /// Write the copy here; beside the checkpoint by default
    #[arg(short, long, value_name = "PATH", value_parser = output_path())]
    output: Option<PathBuf>,
    /// Change that checkpoint where it lies, under a journal, instead of a copy
    #[arg(long, conflicts_with = "output")]
    in_place: bool,
    /// Print the way, and go nowhere
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

#[derive(Debug, Serialize)]
struct CheckoutReport {
    dry_run: bool,
    revision: String,
    branch: Option<String>,
    /// The branch of another history that this one was made of.
    made_of: Option<String>,
    commit: CommitReport,
    /// None where only the head moves.
    checkpoint: Option<Moved>,
    /// Who signed the patches that were applied to it, and what the user had to allow for each.
    trust: Vec<StepTrust>,
    /// The history has its head there, and the checkpoint, if there is one, for its model.
    is_recorded: bool,
    /// What the suggested command has to allow again.
    #[serde(skip)]
    words: String,
}

/// A checkpoint on its way.
#[derive(Debug, Serialize)]
struct Moved {
    from: PathBuf,
    to: PathBuf,
    in_place: bool,
    way: Vec<Step>,
    /// Nothing where nothing was copied.
    #[serde(flatten)]
    taken_along: TakenAlong,
    #[serde(skip)]
    words: Vec<String>,
}

/// Goes there.
pub fn run(arguments: &CheckoutArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    // Git's other word for it.
    let name = if arguments.revision == "@" { "HEAD" } else { arguments.revision.as_str() };
    let (id, made_of) = match store.resolve(name) {
        Err(error @ StoreError::NoRevision { .. }) => elsewhere(&store, name)?.ok_or(error)?,
        found => (found?, None),
    };
    if made_of.is_some() {
        // Asked again when it is made; what is wrong with it is better said before weights are written.
        store.view()?.check_new(Kind::Branch, name)?;
    }
    let commit = store.commit(id)?;
    store.look_first_in(id)?;
    if made_of.is_some() || store.view()?.names(Kind::Branch).any(|(known, _)| known == name) {
        store.check_free(name)?;
    }
    let is_writable = arguments.dry_run || is_writable(arguments, &store, output)?;
    let _doing = doing(Work::Copying);
    let moved = match arguments.moves_weights() {
        true => Some(take_along(arguments, &store, &commit, output)?),
        false => None,
    };
    let (moved, trust) = moved.unzip();
    let view = store.view()?;
    let is_branch = made_of.is_some() || view.names(Kind::Branch).any(|(known, _)| known == name);
    let head = match name {
        "HEAD" => view.head.clone(),
        name if is_branch => Head::Branch(name.to_owned()),
        _ => Head::Detached(id),
    };
    let left = view.head_commit().filter(|_| matches!(view.head, Head::Detached(_)));
    let mut is_recorded = false;
    // The weights are where they should be already: from here on only names move.
    if !arguments.dry_run && is_writable {
        last_step();
        let named = move_names(arguments, &store, &head, (id, made_of.is_some()), moved.as_ref());
        let named = named.map_err(|error| if moved.is_some() { error.after_the_work() } else { error });
        match (named?, &moved) {
            (Named::Overtaken, Some(moved)) => output.warn(&overtaken(name, id, moved)),
            _ => is_recorded = true,
        }
        warn_of_nameless(&store, left, output).map_err(CommandError::after_the_work)?;
    }
    let made_of = made_of.filter(|_| is_writable);
    let at = if arguments.dry_run || !is_writable { Ok(commit) } else { here(&store) };
    let report = at.and_then(|commit| {
        let report = report(arguments, &store, commit, made_of, moved, trust.unwrap_or_default())?;
        Ok(CheckoutReport { is_recorded, ..report })
    });
    match arguments.dry_run {
        true => output.report(&report?),
        false => output.report_done(&report.map_err(CommandError::after_the_work)?),
    }
}

impl CheckoutArguments {
    /// A checkpoint goes along, and not the head alone.
    fn moves_weights(&self) -> bool {
        self.onto.is_some() || self.output.is_some() || self.in_place
    }
}

/// Whether the head can be moved once the weights are written. Where not, a copy of them can be made all the same, and
/// anything else is refused.
fn is_writable(arguments: &CheckoutArguments, store: &Store, output: &Output) -> Result<bool, CommandError> {
    let Some(refusal) = refusal_to_change(store)? else { return Ok(true) };
    let clone = format!(
        "`mpatch clone {} NEW` makes a history that you can write to",
        shell_word(shown(store.folder()))
    );
    if arguments.in_place || !arguments.moves_weights() {
        let hint = format!("{clone}; `-o MODEL` writes the weights without one");
        return Err(CommandError::from(refusal).hint(hint));
    }
    output.warn(&format!("the head stays, and so does the model: {}; {clone}", with_causes(&refusal)));
    Ok(false)
}

/// The state that the head is at.
fn here(store: &Store) -> Result<Commit, CommandError> {
    Ok(store.commit(store.head()?)?)
}

/// `commit` is where the head is now, or would be, or the state of the copy where it stays.
fn report(
    arguments: &CheckoutArguments,
    store: &Store,
    commit: Commit,
    made_of: Option<String>,
    checkpoint: Option<Moved>,
    trust: Vec<StepTrust>,
) -> Result<CheckoutReport, CommandError> {
    let view = store.view()?;
    Ok(CheckoutReport {
        trust,
        is_recorded: false,
        words: arguments.trust.words(),
        dry_run: arguments.dry_run,
        revision: arguments.revision.clone(),
        branch: branch_of(&view).map(str::to_owned),
        made_of,
        commit: CommitReport::new(commit, &view),
        checkpoint,
    })
}

/// Warns of a commit that the head has left and no name leads to.
fn warn_of_nameless(store: &Store, left: Option<CommitId>, output: &Output) -> Result<(), CommandError> {
    let view = store.view()?;
    let Some(left) = left.filter(|left| view.head_commit() != Some(*left)) else { return Ok(()) };
    if store.leading_to(&view, left)?.is_empty() {
        let id = left.short();
        output.warn(&format!(
            "no name leads to {id}, which the head has left: `mpatch branch NAME {id}` gives one"
        ));
    }
    Ok(())
}

/// Says that what the head was to go to has moved from the commit that was written, and what can be done.
fn overtaken(name: &str, written: CommitId, moved: &Moved) -> String {
    let (result, written) = (shell_word(&moved.to), written.short());
    let place = if moved.in_place { "--in-place" } else { "-o MODEL" };
    format!(
        "the head stays: another command has moved {name} from {written} meanwhile; `mpatch checkout {} --onto {result} {place}` takes the weights to it",
        shell_word(name)
    )
}

/// The state of the one branch that another history has by a name that nothing has here, and its name here.
fn elsewhere(store: &Store, name: &str) -> Result<Option<(CommitId, Option<String>)>, CommandError> {
    let view = store.view()?;
    let is_meant = |full: &&str| full.split_once('/').is_some_and(|(_, branch)| branch == name);
    let found: Vec<&str> = view.names(Kind::Remote).map(|(full, _)| full).filter(is_meant).collect();
    let [full] = found[..] else { return Ok(None) };
    Ok(Some((store.resolve(&format!("refs/remotes/{full}"))?, Some(full.to_owned()))))
}

/// What became of the head.
enum Named {
    /// It is where it was to go.
    There,
    /// It stays, since what it was to go to is no longer at the state that was written.
    Overtaken,
}

/// Moves the head to what is at `commit`, a branch that is made there where `is_new`.
fn move_names(
    arguments: &CheckoutArguments,
    store: &Store,
    head: &Head,
    (commit, is_new): (CommitId, bool),
    moved: Option<&Moved>,
) -> Result<Named, CommandError> {
    let mut change = arguments.lock.change(store)?;
    if is_new {
        change.name(Kind::Branch, &arguments.revision, commit)?;
    }
    // Weights take long to write, and nobody waits for that: what has gone on meanwhile is not what they are.
    let there = match head {
        Head::Branch(branch) => change.view().names(Kind::Branch).find(|(name, _)| name == branch),
        Head::Detached(at) => Some(("", *at)),
    };
    let is_overtaken = moved.is_some() && there.is_some_and(|(_, at)| at != commit);
    if !is_overtaken {
        change.switch(head.clone())?;
    }
    if let Some(moved) = moved {
        change.set_model(Some(remembered(store.folder(), &moved.to)?));
        change.set_with_weights();
    }
    let verb = if is_overtaken { "model" } else { "checkout" };
    change.finish(&format!("{verb} {}", arguments.revision))?;
    Ok(if is_overtaken { Named::Overtaken } else { Named::There })
}

/// Takes a copy of the checkpoint to the state of `target`, and tells who signed what was applied to it.
fn take_along(
    arguments: &CheckoutArguments,
    store: &Store,
    target: &Commit,
    output: &Output,
) -> Result<(Moved, Vec<StepTrust>), CommandError> {
    let from = model_path(store, arguments.onto.as_deref())?;
    let to = match &arguments.output {
        Some(path) => path.clone(),
        None if arguments.in_place => from.clone(),
        None => beside(&from, arguments.revision.replace('/', "-").as_ref())?,
    };
    if !arguments.dry_run {
        // Asked again when the names move; what is wrong with it is better said before weights are written.
        remembered(store.folder(), &to)?;
    }
    let checkpoint = open_checkpoint(&from, output)?;
    if !arguments.in_place {
        mpatch::checkpoint::check_output(&checkpoint, &to)?;
    }
    let atlas = atlas(store, &[target.id], output)?;
    let located = locate(&atlas, &checkpoint, false, output)?;
    let way = way(&series_at(&atlas, &located.standing, &from, &target.series)?, &target.series);
    let words = way.iter().map(|step| step_words(store, *step)).collect::<Result<_, _>>()?;
    let Walked { taken_along, trust } = match (arguments.dry_run, arguments.in_place) {
        (true, _) => Walked::default(),
        (false, false) => walk(store, checkpoint, &way, &to, last_step, &arguments.trust, output)?,
        (false, true) => {
            // Two that hold one file would be in each other's way.
            drop(checkpoint);
            walk_in_place(store, &from, &way, &arguments.trust, output)?
        }
    };
    Ok((Moved { from, to, in_place: arguments.in_place, way, taken_along, words }, trust))
}

impl Report for CheckoutReport {
    const SCHEMA: &'static str = "mpatch.checkout/1";

    fn write(&self, page: &mut Page) {
        let place = match &self.branch {
            _ if !self.dry_run && !self.commit.is_head => {
                format!("the weights of {}, where the head is not", self.commit.id.short())
            }
            Some(branch) if !self.dry_run => format!("on branch {branch}, at {}", self.commit.id.short()),
            None if !self.dry_run => format!("at {}, on no branch", self.commit.id.short()),
            _ => format!("would go to {}", self.commit.id.short()),
        };
        page.title(&place);
        page.quote(&self.commit.title);
        if let Some(other) = &self.made_of {
            let made = if self.dry_run { "would make" } else { "made" };
            page.line(&format!("{made} the branch {} of {other}", self.revision));
        }
        let Some(moved) = &self.checkpoint else { return };
        let (from, to) = (moved.from.display(), moved.to.display());
        let wrote = match (self.dry_run, moved.in_place) {
            (true, false) => format!("would write {to} from {from}"),
            (false, false) => format!("wrote {to} from {from}"),
            (true, true) => format!("would change {to} in place"),
            (false, true) => format!("changed {to} in place"),
        };
        let steps = match moved.way.len() {
            0 => "it is in this state already".to_owned(),
            1 => "1 step".to_owned(),
            steps => format!("{steps} steps"),
        };
        page.line(&format!("{wrote}: {steps}"));
        moved.words.iter().for_each(|words| page.line(&format!("  {words}")));
        write_taken_along(&moved.taken_along, page);
        for StepTrust { patch, trust } in self.trust.iter().filter(|step| !step.trust.allowed.is_empty()) {
            page.line(&format!("{}: {}", patch.short(), trust.line()));
        }
    }

    fn next(&self) -> Option<String> {
        let (revision, trust) = (shell_word(&self.revision), &self.words);
        match (&self.checkpoint, self.dry_run) {
            (Some(moved), true) if moved.in_place => {
                let from = shell_word(&moved.from);
                Some(format!("mpatch checkout {revision} --onto {from} --in-place{trust}"))
            }
            (Some(moved), true) => Some(format!(
                "mpatch checkout {revision} --onto {} -o {}{trust}",
                shell_word(&moved.from),
                shell_word(&moved.to)
            )),
            (Some(moved), false) if !self.is_recorded => {
                Some(format!("mpatch status {}", shell_word(&moved.to)))
            }
            (Some(_), false) => Some("mpatch status".to_owned()),
            // From the new head, `HEAD~1` would be another state.
            (None, false) => Some(format!("mpatch checkout HEAD -o MODEL{trust}")),
            (None, true) => Some(format!("mpatch checkout {revision} -o MODEL{trust}")),
        }
    }
}
