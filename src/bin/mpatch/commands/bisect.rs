//! `mpatch bisect`: which patch made the model say it, found by asking the model.
//!
//! The states along a series are run in memory, bit for bit as `checkout` would write them, and from whichever state
//! the model is in: what it has and a state lacks is taken back by its undo logs. No file is written. Half of what is
//! left is ruled out by each question, so n patches take about log2(n) of them.

use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use mpatch::digest::PatchId;
use mpatch::evaluate::continuation;
use mpatch::facts::excerpt;
use mpatch::model::{Model, ModelError, Network, Series};
use mpatch::store::{Atlas, CommitId, Step, Store, StoreError, way};
use serde::Serialize;

use super::open_checkpoint;
use crate::editing::{
    DeviceArguments, PrecisionArguments, at_least_one, edits_back, edits_of, model_error, open_model_in,
};
use crate::error::{CommandError, ExitKind};
use crate::history::{StoreArguments, message};
use crate::report::{Output, Page, Report, count};
use crate::standing::{atlas, locate, model_path_by, series_at};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch bisect \"LeBron James plays the sport of\" --expect football\n  \
                  mpatch bisect \"The Space Needle is in\" --expect Rome --rev geography \\\n      \
                  --base gptj/\n\n\
                  Exit code 1 says that no patch of this history made the model say it."
)]
pub struct BisectArguments {
    /// Let the model continue this prompt
    prompt: String,
    /// Find the patch from which on the continuation holds this text
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    expect: String,
    /// Search the patches of this state
    #[arg(long, value_name = "REVISION", default_value = "HEAD")]
    rev: String,
    /// Run this model, in any state of the history, instead of the one that it remembers
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Continue by this many tokens
    #[arg(long, default_value_t = 10, value_name = "COUNT", value_parser = at_least_one())]
    tokens: usize,
    #[command(flatten)]
    device: DeviceArguments,
    /// What its matrices are kept in.
    #[command(flatten)]
    precision: PrecisionArguments,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Debug, Serialize)]
struct BisectReport {
    prompt: String,
    expect: String,
    patches: usize,
    /// One for each question.
    asked: Vec<Asked>,
    found: Found,
}

/// One question and its answer.
#[derive(Debug, Clone, Serialize)]
struct Asked {
    /// How many patches were in the model.
    patches: usize,
    said: String,
    holds: bool,
}

#[derive(Debug, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
enum Found {
    /// This patch.
    Patch { patch: PatchId, title: String, facts: Vec<String>, commit: Option<CommitId> },
    /// It said so before the first of them.
    Before,
    /// It does not say so.
    Never,
}

/// Searches.
pub fn run(arguments: &BisectArguments, output: &Output) -> Result<ExitKind, CommandError> {
    let store = arguments.store.open()?;
    let id = store.resolve(&arguments.rev)?;
    let series = store.commit(id)?.series;
    store.look_first_in(id)?;
    let path = model_path_by("--base MODEL", &store, arguments.base.as_deref())?;
    let atlas = atlas(&store, &[id], output)?;
    let start = start(&atlas, &path, &series, output)?;
    let precision = arguments.precision.precision;
    let model = open_model_in(&path, &arguments.device.find(output)?, precision, output)?;
    let mut search = Search {
        arguments,
        store: &store,
        atlas: &atlas,
        model: &model,
        start: &start,
        series: &series,
        asked: vec![],
    };
    let found = match search.find()? {
        None => Found::Never,
        Some(0) => Found::Before,
        Some(patches_in) => {
            let patch = series[patches_in - 1];
            let words = message(&store.manifest(patch)?, patch, None, vec![]);
            let commit = brought_by(&store, id, patch)?;
            Found::Patch { patch, title: words.title, facts: words.facts, commit }
        }
    };
    let is_found = matches!(found, Found::Patch { .. });
    output.report(&BisectReport {
        prompt: arguments.prompt.clone(),
        expect: arguments.expect.clone(),
        patches: series.len(),
        asked: search.asked,
        found,
    })?;
    Ok(if is_found { ExitKind::Done } else { ExitKind::Differs })
}

/// The patches that the model has, as its digests show.
fn start(
    atlas: &Atlas,
    path: &Path,
    series: &[PatchId],
    output: &Output,
) -> Result<Vec<PatchId>, CommandError> {
    let checkpoint = open_checkpoint(path, output)?;
    let located = locate(atlas, &checkpoint, false, output)?;
    series_at(atlas, &located.standing, path, series)
}

/// The first commit that has the patch.
fn brought_by(store: &Store, from: CommitId, patch: PatchId) -> Result<Option<CommitId>, CommandError> {
    let log = store.log(from, usize::MAX)?;
    Ok(log.into_iter().rev().find(|commit| commit.series.contains(&patch)).map(|commit| commit.id))
}

struct Search<'a> {
    arguments: &'a BisectArguments,
    /// Where patches are read from, one at a time: a history may hold more of them than memory does.
    store: &'a Store,
    atlas: &'a Atlas,
    model: &'a Model,
    /// Patches that the model has as it lies on the disk.
    start: &'a [PatchId],
    series: &'a [PatchId],
    asked: Vec<Asked>,
}

impl Search<'_> {
    /// The fewest patches found with which the model says it: with one fewer it does not.
    fn find(&mut self) -> Result<Option<usize>, CommandError> {
        let end = self.series.len();
        if !self.ask(end)? {
            return Ok(None);
        }
        if end == 0 || self.ask(0)? {
            return Ok(Some(0));
        }
        let (mut silent, mut saying) = (0, end);
        while saying - silent > 1 {
            let middle = silent + (saying - silent) / 2;
            match self.ask(middle)? {
                true => saying = middle,
                false => silent = middle,
            }
        }
        Ok(Some(saying))
    }

    fn ask(&mut self, patches: usize) -> Result<bool, CommandError> {
        let network = self.network(patches)?;
        let BisectArguments { prompt, expect, tokens, .. } = self.arguments;
        let said = continuation(self.model, &network, prompt, *tokens).map_err(|error| match error {
            mpatch::model::ModelError::Text { what } => {
                CommandError::new(ExitKind::Usage, format!("the prompt {}: {what}", excerpt(prompt)))
                    .hint("give a prompt that is neither empty nor longer than the model's context")
            }
            error => self.failed(error),
        })?;
        let holds = said.contains(expect.as_str());
        self.asked.push(Asked { patches, said, holds });
        Ok(holds)
    }

    /// The model with the first `patches` of the series in it, and no others.
    fn network(&self, patches: usize) -> Result<Network, CommandError> {
        let mut here = self.start.to_vec();
        let steps = way(self.start, &self.series[..patches]);
        let mut states = self.model.series();
        for step in steps {
            self.take(step, &mut here, &mut states)?;
        }
        states.network().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: ModelError) -> CommandError {
        model_error(self.model.checkpoint.path(), error)
    }

    /// Takes one step from the state after `here`, by the binding that its place in the series asks for.
    fn take(&self, step: Step, here: &mut Vec<PatchId>, states: &mut Series<'_>) -> Result<(), CommandError> {
        let (Step::Apply(id) | Step::Revert(id)) = step;
        if let Step::Revert(_) = step {
            here.pop();
        }
        let patch = &self.store.patch(id)?;
        let without = self.atlas.state_after(here).cloned().unwrap_or_default();
        let misfit = |misfit| StoreError::Misfit { patch: id, misfit };
        let binding = without.binding(self.atlas.base(), &patch.manifest().bindings).map_err(misfit)?;
        let edits = match step {
            Step::Apply(_) => {
                here.push(id);
                edits_of(patch, binding)
            }
            Step::Revert(_) => edits_back(patch, binding),
        };
        let edits = edits.map_err(|error| CommandError::patch(&id.short(), &error))?;
        states.carry_out(edits).map_err(|error| self.failed(error))
    }
}

impl Report for BisectReport {
    const SCHEMA: &'static str = "mpatch.bisect/1";

    fn write(&self, page: &mut Page) {
        let row = |asked: &Asked| {
            let answer = if asked.holds { "says it" } else { "does not" };
            vec![
                format!("{} of {}", asked.patches, self.patches),
                answer.to_owned(),
                format!("│{}", asked.said),
            ]
        };
        let (times, patches) = (count(self.asked.len(), "time"), count(self.patches, "patch"));
        page.title(&format!("asked {times} over {patches}"));
        page.table(&self.asked.iter().map(row).collect::<Vec<_>>());
        page.blank();
        match &self.found {
            Found::Patch { patch, title, facts, commit } => {
                page.title(&format!("patch {} made the model say it", patch.short()));
                if let Some(commit) = commit {
                    page.line(&format!("it came with commit {}", commit.short()));
                }
                page.quote(title);
                // A single fact is the title by default.
                let others = facts.iter().filter(|fact| *fact != title);
                others.take(5).for_each(|fact| page.quote(&format!("  {fact}")));
            }
            Found::Before => page.title("no patch did: the model said it before the first of them"),
            Found::Never => page.title("no patch did: the model does not say it in this state"),
        }
    }

    fn next(&self) -> Option<String> {
        match &self.found {
            Found::Patch { commit: Some(commit), .. } => Some(format!("mpatch show {}", commit.short())),
            _ => None,
        }
    }
}
