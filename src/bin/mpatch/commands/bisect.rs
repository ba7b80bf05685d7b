//! `mpatch bisect`: which patch made the model say it, found by asking the model.
//!
//! The states along a series are run in memory, bit for bit as `checkout` would write them; no file is written. Half
//! of what is left is ruled out by each question, so n patches take about log2(n) of them.

use std::path::PathBuf;

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::evaluate::continuation;
use mpatch::model::{Model, Network, TensorEdit};
use mpatch::patch::Patch;
use mpatch::store::{Atlas, CommitId, Standing, Store};
use serde::Serialize;

use super::open_checkpoint;
use crate::editing::{DeviceArguments, edits_of, excerpt, model_error, open_model};
use crate::error::{CommandError, ExitKind};
use crate::history::{StoreArguments, message};
use crate::report::{Output, Page, Report, count};
use crate::standing::{locate, model_path};

/// Arguments of `bisect`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch bisect \"LeBron James plays the sport of\" --expect football\n  \
                  mpatch bisect \"The Space Needle is in\" --expect Rome --rev geography --base gptj/\n\n\
                  Exit code 1 says that no patch of this history made the model say it."
)]
pub struct BisectArguments {
    /// Let the model continue this prompt
    prompt: String,
    /// Find the patch from which on the continuation holds this text
    #[arg(long, value_name = "TEXT")]
    expect: String,
    /// Search the patches of this state
    #[arg(long, value_name = "REVISION", default_value = "HEAD")]
    rev: String,
    /// Run this model, at the base or any earlier state, instead of the one that the history remembers
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Continue by this many tokens
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    tokens: usize,
    /// Where the arithmetic runs.
    #[command(flatten)]
    device: DeviceArguments,
    /// The history.
    #[command(flatten)]
    store: StoreArguments,
}

/// What `bisect` prints.
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
    let path = model_path(&store, arguments.base.as_deref())?;
    let atlas = store.atlas()?;
    let start = start(&atlas, &path, &series, output)?;
    let model = open_model(&path, &arguments.device.find(output)?, output)?;
    let patches = series.iter().map(|id| store.patch(*id)).collect::<Result<Vec<_>, _>>()?;
    let mut search = Search {
        arguments,
        atlas: &atlas,
        model: &model,
        series: &series,
        patches: &patches,
        start,
        asked: vec![],
    };
    let found = match search.find()? {
        None => Found::Never,
        Some(0) => Found::Before,
        Some(patches_in) if patches_in == start => Found::Before,
        Some(patches_in) => {
            let patch = &patches[patches_in - 1];
            let words = message(patch.manifest(), patch.id(), None, vec![]);
            let commit = brought_by(&store, id, patch.id())?;
            Found::Patch { patch: patch.id(), title: words.title, facts: words.facts, commit }
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

/// How many patches of the series the model has; it must be on the way to the series' end.
fn start(
    atlas: &Atlas,
    path: &std::path::Path,
    series: &[PatchId],
    output: &Output,
) -> Result<usize, CommandError> {
    let checkpoint = open_checkpoint(path, output)?;
    let located = locate(atlas, &checkpoint, false, output)?;
    if let Standing::At(found) = &located.standing {
        let on_the_way = found.iter().map(|&index| &atlas.known()[index].series);
        let on_the_way = on_the_way.filter(|known| series.starts_with(known)).map(Vec::len).min();
        if let Some(patches) = on_the_way {
            return Ok(patches);
        }
    }
    // What is wrong with it, or only that it is elsewhere.
    crate::standing::series_at(atlas, &located.standing, path, series)?;
    let message = format!("`{}` is in a state that does not lead to this one", path.display());
    Err(CommandError::new(ExitKind::WrongBase, message).hint("give the base itself with `--base MODEL`"))
}

/// The first commit that has the patch.
fn brought_by(store: &Store, from: CommitId, patch: PatchId) -> Result<Option<CommitId>, CommandError> {
    let log = store.log(from, usize::MAX)?;
    Ok(log.into_iter().rev().find(|commit| commit.series.contains(&patch)).map(|commit| commit.id))
}

struct Search<'a> {
    arguments: &'a BisectArguments,
    atlas: &'a Atlas,
    model: &'a Model,
    series: &'a [PatchId],
    patches: &'a [Patch],
    /// Patches that the model has as it lies on the disk.
    start: usize,
    asked: Vec<Asked>,
}

impl Search<'_> {
    /// The fewest patches found with which the model says it: with one fewer it does not.
    fn find(&mut self) -> Result<Option<usize>, CommandError> {
        let end = self.series.len();
        if !self.ask(end)? {
            return Ok(None);
        }
        if end == self.start || self.ask(self.start)? {
            return Ok(Some(self.start));
        }
        let (mut silent, mut saying) = (self.start, end);
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
            error => model_error(self.model.checkpoint.path(), error),
        })?;
        let holds = said.contains(expect.as_str());
        self.asked.push(Asked { patches, said, holds });
        Ok(holds)
    }

    /// The model with the first `patches` of the series in it.
    fn network(&self, patches: usize) -> Result<Network, CommandError> {
        let edits = (self.start..patches).map(|index| self.edits(index));
        let edits = edits.collect::<Result<Vec<_>, _>>()?;
        self.model.with_series(edits).map_err(|error| model_error(self.model.checkpoint.path(), error))
    }

    /// The terms of one patch, by the binding that its place in the series asks for.
    fn edits(&self, index: usize) -> Result<Vec<TensorEdit<'_>>, CommandError> {
        let patch = &self.patches[index];
        let bindings = &patch.manifest().bindings;
        let before = self.atlas.state_after(&self.series[..index]).cloned().unwrap_or_default();
        let misfit = |misfit| mpatch::store::StoreError::Misfit { patch: patch.id(), misfit };
        let binding = before.binding(self.atlas.base(), bindings).map_err(misfit)?;
        edits_of(patch, binding).map_err(|error| CommandError::patch(&patch.id().short(), &error))
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
        page.title(&format!("asked {} over {} patches", count(self.asked.len(), "time"), self.patches));
        page.table(&self.asked.iter().map(row).collect::<Vec<_>>());
        page.blank();
        match &self.found {
            Found::Patch { patch, title, facts, commit } => {
                page.title(&format!("patch {} made the model say it", patch.short()));
                if let Some(commit) = commit {
                    page.line(&format!("it came with commit {}", commit.short()));
                }
                page.quote(title);
                facts.iter().take(5).for_each(|fact| page.quote(&format!("  {fact}")));
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
