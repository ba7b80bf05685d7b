//! What the rungs V3 and V5 of `verify` begin with: the patch's own recipe, and all that it takes to follow it.

use std::path::{Path, PathBuf};

use mpatch::digest::WeightsId;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::statistics::StatisticsFile;
use mpatch::facts::FactsFile;
use mpatch::model::{Device, Model, Precision};
use mpatch::patch::Patch;
use mpatch::patch::manifest::Recipe;
use mpatch::verify::State;
use mpatch::{edit, extract, stack};
use serde::{Serialize, Serializer};

use super::stack::facts_file;
use crate::editing::{DeviceArguments, both_states, edit_error, open_model_in};
use crate::error::{CommandError, ExitKind};
use crate::job::{Ingredients, Origin};
use crate::report::Output;
use crate::statistics::{StatisticsCache, statistics_error};

/// Where a patch fits, and how it is read.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The patch's file.
    pub patch: &'a Path,
    /// The model.
    pub base: &'a Path,
    /// The state that it is in.
    pub state: State,
    /// The binding that it fits.
    pub binding: usize,
}

/// A patch's recipe, with what it is to be followed on.
pub struct Followed {
    /// The base: where the checkpoint holds the edited state, its network is taken back in memory.
    pub model: Model,
    /// The recipe's; the statistics are the very file that it names by its digest.
    pub ingredients: Ingredients,
    /// What the patch declares.
    pub facts: FactsFile,
}

/// Why a rung is not climbed, in words.
pub type Reason = String;

/// What came of a rung.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// Everything that was looked at is as the patch says.
    Holds,
    /// This is not.
    Fails(String),
    /// Nothing can be said.
    NotChecked(Reason),
}

impl Outcome {
    /// As people read it.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails(_) => "fails",
            Self::NotChecked(_) => "not checked",
        }
    }

    /// Why the rung does not hold.
    pub fn words(&self) -> Option<&String> {
        match self {
            Self::Holds => None,
            Self::Fails(words) | Self::NotChecked(words) => Some(words),
        }
    }

    /// Why nothing can be said.
    pub fn reason(&self) -> Option<&str> {
        if let Self::NotChecked(reason) = self { Some(reason) } else { None }
    }
}

impl From<Option<String>> for Outcome {
    /// Of what was looked at: what fails, if anything does.
    fn from(problem: Option<String>) -> Self {
        problem.map_or(Self::Holds, Self::Fails)
    }
}

impl Serialize for Outcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            not_checked: Option<&'a str>,
            problem: Option<&'a str>,
        }
        let problem = if let Self::Fails(problem) = self { Some(problem.as_str()) } else { None };
        Fields { not_checked: self.reason(), problem }.serialize(serializer)
    }
}

/// Opens the base and the statistics that the recipe of `patch` names; a reason where there is no recipe to follow.
///
/// `stats` names the file of statistics; without it they are looked for in the user's cache.
pub fn follow(
    patch: &Patch,
    place: Place<'_>,
    stats: Option<&Path>,
    device: &DeviceArguments,
    output: &Output,
) -> Result<Result<Followed, Reason>, CommandError> {
    let recipe = &patch.manifest().recipe;
    let binding = &patch.manifest().bindings[place.binding];
    if let Some(reason) = no_recipe(patch) {
        return Ok(Err(reason));
    }
    let device = device.find(output)?;
    let precision = precision(recipe, &device);
    let mut model = open_model_in(place.base, &device, precision, output)?;
    if place.state == State::Edited {
        model.network = both_states(&model, patch, place.patch, output)?.before;
    }
    let of_recipe = |error| {
        Origin::Recipe.refused(error).hint("the recipe cannot be followed: do not rely on this patch")
    };
    let hyperparameters = Hyperparameters::parse(recipe.hyperparameters.as_bytes()).map_err(of_recipe)?;
    hyperparameters.check(&model.network).map_err(of_recipe)?;
    let contexts = Contexts::new(recipe.contexts.clone()).map_err(of_recipe)?;
    let facts = facts_file(&patch.manifest().facts)?;
    let layers = &hyperparameters.layers;
    let statistics = statistics(&model, binding.weights, layers, recipe, stats, output)?;
    if statistics.provenance().base != binding.weights {
        let made_on = statistics.provenance().base.short();
        return Ok(Err(format!("it was made on other weights, {made_on}, and bound to these later")));
    }
    let (weights, seed) = (binding.weights, recipe.seed);
    let ingredients = Ingredients { weights, hyperparameters, contexts, statistics, seed };
    Ok(Ok(Followed { model, ingredients, facts }))
}

/// Why there is no recipe of `create` to follow.
pub fn no_recipe(patch: &Patch) -> Option<Reason> {
    let tensors = || patch.manifest().bindings.iter().flat_map(|binding| &binding.tensors);
    let reason = match patch.manifest().recipe.method.as_str() {
        extract::METHOD => "it was extracted from two checkpoints",
        stack::METHOD => "patches were added to make it",
        edit::METHOD if patch.manifest().facts.is_empty() => "it declares no facts",
        edit::METHOD if tensors().any(|tensor| tensor.terms.len() != 1) => "its tensors have several terms",
        edit::METHOD if tensors().any(|tensor| tensor.correction.is_some()) => "its result has a correction",
        edit::METHOD => return None,
        _ => "`create` did not make it",
    };
    Some(format!("{reason}, so there is no recipe to follow"))
}

/// What the recipe's matrices were multiplied in, where this device can.
fn precision(recipe: &Recipe, device: &Device) -> Precision {
    let named = recipe.device.split_once(' ').and_then(|(_, name)| name.parse().ok());
    named.filter(|precision| *precision != Precision::Tf32 || device.is_cuda()).unwrap_or_default()
}

/// What helps where the recipe's statistics are not at hand.
const STATISTICS_HINT: &str = "give the file that the patch was made with: `--stats FILE`";

/// The statistics that the recipe names, whichever weights they are of.
fn statistics(
    model: &Model,
    weights: WeightsId,
    layers: &[usize],
    recipe: &Recipe,
    given: Option<&Path>,
    output: &Output,
) -> Result<StatisticsFile, CommandError> {
    let (path, file) = match given {
        Some(path) => (path.to_owned(), given_statistics(path, recipe)?),
        None => cached_statistics(weights, recipe, output)?,
    };
    if file.provenance().base == weights {
        file.check(weights, model.network.config().inner, layers)
            .map_err(|error| edit_error(&path, error))?;
    }
    Ok(file)
}

fn given_statistics(path: &Path, recipe: &Recipe) -> Result<StatisticsFile, CommandError> {
    let file = StatisticsFile::open(path).map_err(|error| statistics_error(path, error))?;
    if file.digest() == recipe.statistics {
        return Ok(file);
    }
    let (found, expected) = (file.digest().short(), recipe.statistics.short());
    let message = format!("`{}`: statistics {found}, the patch was made with {expected}", path.display());
    Err(CommandError::new(ExitKind::WrongBase, message).hint(STATISTICS_HINT))
}

/// The cached file whose digest the recipe names; those of other weights count as well, because a patch may have been
/// bound to these later.
fn cached_statistics(
    weights: WeightsId,
    recipe: &Recipe,
    output: &Output,
) -> Result<(PathBuf, StatisticsFile), CommandError> {
    let mut others = Vec::new();
    for (path, file) in StatisticsCache::needed()?.files(weights) {
        if file.digest() == recipe.statistics {
            output.note(&format!("statistics: {} (cached)", path.display()));
            return Ok((path, file));
        }
        if file.provenance().base == weights {
            others.push(format!("`{}` ({})", path.display(), file.digest().short()));
        }
    }
    let wanted = format!("the patch was made with statistics {}", recipe.statistics.short());
    let (kind, found) = match others.as_slice() {
        [] => (ExitKind::Usage, "no statistics of this model are cached".to_owned()),
        others => (ExitKind::WrongBase, format!("cached of this model are {}", others.join(" and "))),
    };
    let message = format!("{wanted}, {found}");
    Err(CommandError::new(kind, message).hint(STATISTICS_HINT))
}
