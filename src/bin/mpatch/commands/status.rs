//! `mpatch status`: which state a checkpoint is in, by its digests, and how that lies to the history's head.

use std::path::PathBuf;

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::store::state::{HalfWay, Stranger};
use mpatch::store::{Atlas, Commit, Kind, Location, Step, Store, View, way};
use serde::Serialize;

use super::open_checkpoint;
use crate::error::{CommandError, ExitKind};
use crate::history::{CommitReport, StoreArguments, branch_of};
use crate::report::{Output, Page, Report, count, shell_word};
use crate::standing::{
    Commits, atlas, compared_words, half_way_words, locate, model_path_by, stranger_words, unrecorded_words,
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch status\n  mpatch status gptj-edited/\n  mpatch status --all --json\n\n\
                  Exit code 1 says that the checkpoint is not in the state of HEAD."
)]
pub struct StatusArguments {
    /// Look at this checkpoint instead of the one that the history remembers
    checkpoint: Option<PathBuf>,
    /// Hash every tensor, not only those that patches touch
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Debug, Serialize)]
struct StatusReport {
    branch: Option<String>,
    head: CommitReport,
    checkpoint: PathBuf,
    tensors_compared: usize,
    tensors: usize,
    state: StateReport,
    remotes: Vec<RemoteReport>,
}

/// The state that a checkpoint is in.
#[derive(Debug, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
enum StateReport {
    /// The state of the head.
    Head,
    /// Another known state.
    Known {
        /// The patches that lead to it.
        series: Vec<PatchId>,
        /// A commit with this state, unless it lies within a commit's series.
        commit: Option<Box<CommitReport>>,
        /// The way from there to the head.
        way: Vec<Step>,
    },
    /// Between two states.
    HalfWay(HalfWay),
    /// Nothing that is known.
    Unknown(Stranger),
}

#[derive(Debug, Serialize)]
struct RemoteReport {
    name: String,
    ahead: usize,
    behind: usize,
}

/// Compares digests, and reports.
pub fn run(arguments: &StatusArguments, output: &Output) -> Result<ExitKind, CommandError> {
    let store = arguments.store.open()?;
    let path = model_path_by("mpatch status MODEL", &store, arguments.checkpoint.as_deref())?;
    let checkpoint = open_checkpoint(&path, output)?;
    let (atlas, view) = (atlas(&store, &[store.head()?], output)?, store.view()?);
    let head = store.commit(store.head()?)?;
    let located = locate(&atlas, &checkpoint, arguments.all, output)?;
    let state = state(&store, &atlas, &view, &head, located.standing)?;
    let is_head = matches!(state, StateReport::Head);
    output.report(&StatusReport {
        branch: branch_of(&view).map(str::to_owned),
        remotes: remotes(&store, &view)?,
        head: CommitReport::new(head, &view),
        checkpoint: path,
        tensors_compared: located.compared,
        tensors: atlas.base().tensors.len(),
        state,
    })?;
    Ok(if is_head { ExitKind::Done } else { ExitKind::Differs })
}

fn state(
    store: &Store,
    atlas: &Atlas,
    view: &View,
    head: &Commit,
    standing: Location,
) -> Result<StateReport, CommandError> {
    let found = match standing {
        Location::HalfWay(half) => return Ok(StateReport::HalfWay(half)),
        Location::Unknown(stranger) => return Ok(StateReport::Unknown(stranger)),
        Location::At(found) => found,
    };
    let series: Vec<&[PatchId]> = found.iter().map(|&index| atlas.known()[index].series()).collect();
    if series.contains(&head.series.as_slice()) {
        return Ok(StateReport::Head);
    }
    // Of several histories of one state, the one that the head's has most of.
    let nearest = series.into_iter().min_by_key(|series| way(series, &head.series).len());
    let series = nearest.unwrap_or_default().to_vec();
    let commits = Commits::of(store)?.with(store, view, &series)?;
    let commit = commits.into_iter().next().map(Box::new);
    Ok(StateReport::Known { way: way(&series, &head.series), series, commit })
}

/// How the current branch lies to the same branch elsewhere.
fn remotes(store: &Store, view: &View) -> Result<Vec<RemoteReport>, CommandError> {
    let (Some(branch), Some(head)) = (branch_of(view), view.head_commit()) else { return Ok(Vec::new()) };
    let of_branch = |name: &str| name.split_once('/').is_some_and(|(_, there)| there == branch);
    let same = view.names(Kind::Remote).filter(|(name, _)| of_branch(name));
    same.map(|(name, commit)| {
        let (ahead, behind) = store.ahead_behind(head, commit)?;
        Ok(RemoteReport { name: name.to_owned(), ahead, behind })
    })
    .collect()
}

impl Report for StatusReport {
    const SCHEMA: &'static str = "mpatch.status/1";

    fn write(&self, page: &mut Page) {
        let place = match &self.branch {
            Some(branch) => format!("on branch {branch}"),
            None => "on no branch".to_owned(),
        };
        let patches = count(self.head.series.len(), "patch");
        page.line(&format!("{place}, at {} ({patches})", self.head.id.short()));
        page.quote(&self.head.title);
        let name = self.checkpoint.display();
        match &self.state {
            StateReport::Head => page.title(&format!("{name} is in the state of HEAD")),
            StateReport::Known { series, commit, way } => {
                self.write_known(page, series, commit.as_deref(), way)
            }
            StateReport::HalfWay(half) => {
                page.title(&format!("{name} is half-way between two states"));
                page.line(&half_way_words(half));
            }
            StateReport::Unknown(stranger) => {
                page.title(&format!("{name} is in no state that this history knows"));
                page.line(&stranger_words(stranger));
                if let Some(unrecorded) = unrecorded_words(stranger, &self.checkpoint) {
                    page.line(&unrecorded);
                }
            }
        }
        let compared = compared_words(self.tensors_compared, self.tensors);
        let is_partial = (1..self.tensors).contains(&self.tensors_compared);
        page.line(&if is_partial { compared + "; `--all` compares the others" } else { compared });
        for remote in &self.remotes {
            let RemoteReport { name, ahead, behind } = remote;
            page.line(&format!("{} ahead of {name}, {behind} behind", count(*ahead, "commit")));
        }
    }

    fn next(&self) -> Option<String> {
        let checkpoint = shell_word(&self.checkpoint);
        match &self.state {
            StateReport::Head => Some("mpatch log".to_owned()),
            StateReport::Known { .. } => Some(format!("mpatch checkout HEAD --onto {checkpoint} -o MODEL")),
            StateReport::HalfWay(_) | StateReport::Unknown(_) => None,
        }
    }
}

impl StatusReport {
    fn write_known(&self, page: &mut Page, series: &[PatchId], commit: Option<&CommitReport>, way: &[Step]) {
        let name = self.checkpoint.display();
        match (series.is_empty(), commit) {
            (true, _) => page.title(&format!("{name} is the base")),
            (false, Some(commit)) => {
                page.title(&format!("{name} is in the state of {}", commit.heading(None)));
                page.quote(&commit.title);
            }
            (false, None) => {
                let last = series.last().map(PatchId::short).unwrap_or_default();
                page.title(&format!("{name} is in the state after patch {last}"));
            }
        }
        let applies = way.iter().filter(|step| matches!(step, Step::Apply(_))).count();
        let reverts = way.len() - applies;
        page.line(&format!("to HEAD: {reverts} to revert, {applies} to apply"));
    }
}
