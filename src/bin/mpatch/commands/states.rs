//! `mpatch diff CHECKPOINT [REVISION]`: a checkpoint against the states that a history knows.
//!
//! Without a revision the question is which state the bytes are in, and, where they are in none, which one is nearest
//! and whose each tensor is. With one it is what lies between: patches to take back and to apply, and their facts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mpatch::diff::{FactsDiff, diff_facts, facts_after};
use mpatch::digest::{PatchId, TensorDigest};
use mpatch::patch::manifest::Fact;
use mpatch::store::state::{HalfWay, Known};
use mpatch::store::{Atlas, BaseTensor, CommitId, Location, Step, Store, View, way};
use serde::Serialize;

use super::diff::write_facts;
use super::open_checkpoint;
use crate::error::{CommandError, ExitKind};
use crate::history::CommitReport;
use crate::report::{Output, Page, Report, count, shell_word};
use crate::standing::{Commits, atlas, compared_words, digests, half_way_words, misfits};
use crate::walk::step_words;

/// Tensors that are shown one by one.
const TENSORS_SHOWN: usize = 40;

#[derive(Debug, Serialize)]
struct StatesReport {
    checkpoint: PathBuf,
    tensors_compared: usize,
    tensors: usize,
    /// The state that was asked for, by its name.
    revision: Option<String>,
    target: Option<StateReport>,
    /// The state that the checkpoint is in, if it is a known one.
    state: Option<StateReport>,
    /// Otherwise the known state that has most of its tensors, if any has one.
    nearest: Option<StateReport>,
    /// Where two neighbouring states explain the mixture.
    half_way: Option<HalfWay>,
    /// From the state that it is in to the one that was asked for.
    way: Option<WayReport>,
    /// Tensors that are not as in the state that was asked for, or else as in the nearest.
    different: Vec<TensorReport>,
}

/// A known state.
#[derive(Debug, Serialize)]
struct StateReport {
    /// The patches that lead to it, in order of application.
    series: Vec<PatchId>,
    /// How many facts they declare; of several about the same thing the last one counts.
    facts: usize,
    /// Commits with this state, those with names first.
    commits: Vec<CommitReport>,
}

/// What lies between two states.
#[derive(Debug, Serialize)]
struct WayReport {
    steps: Vec<Step>,
    facts: FactsDiff,
    #[serde(skip)]
    words: Vec<String>,
}

/// A tensor that is not as in the state that it was compared with.
#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    expected: TensorDigest,
    /// None where it is missing, or has another type or shape.
    found: Option<TensorDigest>,
    /// The known states that have it so, by what people call them.
    known_in: Vec<String>,
}

/// Compares digests, and reports.
pub fn run(
    store: &Store,
    path: &Path,
    revision: Option<(&str, CommitId)>,
    output: &Output,
) -> Result<ExitKind, CommandError> {
    let checkpoint = open_checkpoint(path, output)?;
    let asked_for: Vec<CommitId> = revision.iter().map(|(_, commit)| *commit).collect();
    let (atlas, view) = (atlas(store, &asked_for, output)?, store.view()?);
    let asked = revision.map(|(_, commit)| store.commit(commit)).transpose()?;
    let head = store.commit(store.head()?)?;
    let goal = asked.as_ref().map_or(head.series.as_slice(), |commit| &commit.series);
    let missing = misfits(atlas.base(), &checkpoint);
    let found = Found { digests: digests(&atlas, &checkpoint, false, output)?, missing };
    let standing = match found.missing.is_empty() {
        true => Some(atlas.locate(&found.digests)),
        false => None,
    };
    let known = |index: &usize| &atlas.known()[*index];
    let from_here = |known: &&Known| way(known.series(), goal).len();
    let here = match &standing {
        Some(Location::At(states)) => states.iter().map(known).min_by_key(from_here),
        _ => None,
    };
    let is_there = match (&asked, here) {
        (None, here) => here.is_some(),
        (Some(asked), Some(here)) => atlas.state_after(&asked.series) == Some(&here.state),
        (Some(_), None) => false,
    };
    let nearest = if here.is_none() { found.nearest(&atlas, goal) } else { None };
    let names = Names { store, view: &view, commits: Commits::of(store)? };
    let compared = match &asked {
        Some(asked) => atlas.known().iter().find(|known| known.series() == asked.series),
        None => nearest,
    };
    let half_way = match standing {
        Some(Location::HalfWay(half)) => Some(half),
        _ => None,
    };
    let between = here.filter(|_| asked.is_some()).map(|here| names.between(here.series(), goal));
    output.report(&StatesReport {
        checkpoint: path.to_owned(),
        tensors_compared: found.digests.len() + found.missing.len(),
        tensors: atlas.base().tensors.len(),
        revision: revision.map(|(name, _)| name.to_owned()),
        target: asked.as_ref().map(|asked| names.state(&asked.series)).transpose()?,
        state: here.map(|here| names.state(here.series())).transpose()?,
        nearest: nearest.map(|nearest| names.state(nearest.series())).transpose()?,
        half_way,
        way: between.transpose()?,
        different: match compared {
            Some(compared) if !is_there => found.different(&atlas, compared, &names)?,
            _ => Vec::new(),
        },
    })?;
    Ok(if is_there { ExitKind::Done } else { ExitKind::Differs })
}

/// What a checkpoint was found to hold.
struct Found<'a> {
    digests: BTreeMap<String, TensorDigest>,
    missing: Vec<&'a BaseTensor>,
}

impl Found<'_> {
    /// The known state that has most of the tensors; of several, the one from which the way to `goal` is shortest.
    fn nearest<'a>(&self, atlas: &'a Atlas, goal: &[PatchId]) -> Option<&'a Known> {
        let agreeing = |known: &Known| {
            let tensors = atlas.base().tensors.iter();
            tensors.filter(|tensor| self.is_as_in(known, tensor)).count()
        };
        let ranked = atlas.known().iter().map(|known| (agreeing(known), known));
        let some = ranked.filter(|(agreeing, _)| *agreeing > 0);
        let best = some
            .min_by_key(|(agreeing, known)| (std::cmp::Reverse(*agreeing), way(known.series(), goal).len()));
        best.map(|(_, known)| known)
    }

    fn is_as_in(&self, known: &Known, tensor: &BaseTensor) -> bool {
        self.digests.get(&tensor.name) == Some(&known.state.digest(tensor))
    }

    /// The tensors that are not as in `state`, and whose they are.
    fn different(
        &self,
        atlas: &Atlas,
        state: &Known,
        names: &Names<'_>,
    ) -> Result<Vec<TensorReport>, CommandError> {
        let is_missing = |tensor: &BaseTensor| self.missing.iter().any(|missing| missing.name == tensor.name);
        let is_different = |tensor: &&BaseTensor| {
            let compared = self.digests.contains_key(&tensor.name) || is_missing(tensor);
            compared && !self.is_as_in(state, tensor)
        };
        let different = atlas.base().tensors.iter().filter(is_different);
        let report = |tensor: &BaseTensor| {
            let known = atlas.known().iter().filter(|known| self.is_as_in(known, tensor));
            Ok(TensorReport {
                name: tensor.name.clone(),
                expected: state.state.digest(tensor),
                found: self.digests.get(&tensor.name).copied(),
                known_in: known.map(|known| names.of(known.series())).collect::<Result<_, _>>()?,
            })
        };
        different.map(report).collect()
    }
}

/// Words for states.
struct Names<'a> {
    store: &'a Store,
    view: &'a View,
    commits: Commits,
}

impl Names<'_> {
    fn state(&self, series: &[PatchId]) -> Result<StateReport, CommandError> {
        let commits = self.commits.with(self.store, self.view, series)?;
        Ok(StateReport { facts: self.facts(series)?.len(), series: series.to_vec(), commits })
    }

    /// What people call the state after `series`.
    fn of(&self, series: &[PatchId]) -> Result<String, CommandError> {
        Ok(words_for(series, &self.commits.with(self.store, self.view, series)?))
    }

    fn facts(&self, series: &[PatchId]) -> Result<Vec<Fact>, CommandError> {
        let manifests = series.iter().map(|id| self.store.manifest(*id)).collect::<Result<Vec<_>, _>>()?;
        Ok(facts_after(manifests.iter().map(|manifest| manifest.facts.as_slice())))
    }

    fn between(&self, from: &[PatchId], to: &[PatchId]) -> Result<WayReport, CommandError> {
        let steps = way(from, to);
        let words = steps.iter().map(|step| step_words(self.store, *step)).collect::<Result<_, _>>()?;
        Ok(WayReport { steps, facts: diff_facts(&self.facts(from)?, &self.facts(to)?), words })
    }
}

fn words_for(series: &[PatchId], commits: &[CommitReport]) -> String {
    match (series.last(), commits.first()) {
        (None, _) => "the base".to_owned(),
        (Some(_), Some(commit)) => commit.heading(None),
        (Some(last), None) => format!("the state after patch {}", last.short()),
    }
}

impl StateReport {
    fn words(&self) -> String {
        let name = words_for(&self.series, &self.commits);
        if self.series.is_empty() || self.commits.is_empty() { name } else { format!("the state of {name}") }
    }

    /// The words after "it is".
    fn standing(&self) -> String {
        if self.series.is_empty() { self.words() } else { format!("in {}", self.words()) }
    }

    /// The commits with this state, and what it says.
    fn write(&self, page: &mut Page) {
        self.commits.iter().take(1).for_each(|commit| page.quote(&commit.title));
        if !self.series.is_empty() {
            let patches = count(self.series.len(), "patch");
            page.line(&format!("{} of {patches}", count(self.facts, "fact")));
        }
        for commit in self.commits.iter().skip(1) {
            page.line(&format!("also the state of {}", commit.heading(None)));
        }
    }
}

impl Report for StatesReport {
    const SCHEMA: &'static str = "mpatch.diff.states/1";

    fn write(&self, page: &mut Page) {
        let name = self.checkpoint.display();
        match (&self.revision, &self.state) {
            (Some(revision), Some(state)) if self.different.is_empty() => {
                page.title(&format!("{name} is in the state of {revision}"));
                state.write(page);
            }
            (Some(revision), Some(state)) => {
                page.title(&format!("{name} is not in the state of {revision}: it is {}", state.standing()));
                state.write(page);
            }
            (Some(revision), None) => page.title(&format!(
                "{name} is not in the state of {revision}, nor in any that this history knows"
            )),
            (None, Some(state)) => {
                page.title(&format!("{name} is {}", state.standing()));
                state.write(page);
            }
            (None, None) => {
                page.title(&format!("{name} is in no state that this history knows"));
            }
        }
        if let Some(half) = &self.half_way {
            page.line(&format!("half-way between two states: {}", half_way_words(half)));
        }
        match &self.nearest {
            Some(nearest) => page.line(&format!("the nearest known state: {}", nearest.words())),
            None if self.state.is_none() => page.line("no tensor is as in any known state"),
            None => {}
        }
        page.line(&compared_words(self.tensors_compared, self.tensors));
        if let Some(way) = &self.way {
            way.write(page);
        } else {
            self.write_tensors(page);
        }
    }

    fn next(&self) -> Option<String> {
        let checkpoint = shell_word(&self.checkpoint);
        match (&self.revision, &self.state) {
            (Some(revision), Some(_)) if !self.different.is_empty() => {
                Some(format!("mpatch checkout {} --onto {checkpoint} -o MODEL", shell_word(revision)))
            }
            (_, Some(state)) => Some(format!("mpatch show {}", state.commits.first()?.id.short())),
            (_, None) => None,
        }
    }
}

impl StatesReport {
    fn write_tensors(&self, page: &mut Page) {
        if self.different.is_empty() {
            return;
        }
        let there = match (&self.revision, &self.nearest) {
            (Some(revision), _) => revision.clone(),
            (None, _) => "the nearest state".to_owned(),
        };
        page.blank();
        page.title(&format!(
            "{} not as in {there}, of {}",
            count(self.different.len(), "tensor"),
            self.tensors_compared
        ));
        let rows = self.different.iter().take(TENSORS_SHOWN).map(|tensor| {
            let digest = tensor.found.map_or_else(|| "-".to_owned(), |found| found.short());
            vec![tensor.name.clone(), digest, tensor.words()]
        });
        page.table(&rows.collect::<Vec<_>>());
        page.and_more(self.different.len(), TENSORS_SHOWN, "`--json` lists all");
    }
}

impl TensorReport {
    fn words(&self) -> String {
        match (&self.found, self.known_in.as_slice()) {
            (None, _) => "missing, or of another type or shape".to_owned(),
            (Some(_), []) => "as in no known state".to_owned(),
            (Some(_), [known]) => format!("as in {known}"),
            (Some(_), [known, others @ ..]) => {
                format!("as in {known}, and {}", count(others.len(), "other state"))
            }
        }
    }
}

impl WayReport {
    fn write(&self, page: &mut Page) {
        if self.steps.is_empty() {
            return;
        }
        page.blank();
        let applies = self.steps.iter().filter(|step| matches!(step, Step::Apply(_))).count();
        page.title(&format!("between them: {} to revert, {applies} to apply", self.steps.len() - applies));
        self.words.iter().for_each(|words| page.line(&format!("  {words}")));
        let FactsDiff { added, removed, changed, .. } = &self.facts;
        page.line(&format!(
            "facts: {} to add, {} to take back, {} to change",
            added.len(),
            removed.len(),
            changed.len()
        ));
        write_facts(page, removed, added, changed);
    }
}
