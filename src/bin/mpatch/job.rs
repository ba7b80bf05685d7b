//! Making a patch: what it takes, from the options to the bytes; `create` makes one of a facts file, and
//! `stack --resolve` one of the facts of several patches.
//!
//! ```text
//! RecipeArguments -> Prepared (hyperparameters, contexts, statistics: all that can be missing) -> Job
//! Job -> values, keys, solve -> integers -> test of the integers -> Made (the patch, and what was found on the way)
//! ```

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use mpatch::bind::{BindError, bind, check_finite};
use mpatch::digest::{PatchId, WeightsId};
use mpatch::doctor::processor;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::estimate::Estimate;
use mpatch::edit::hyperparameters::{Hyperparameters, Source};
use mpatch::edit::kept::{Kept, ValueInputs, ValueLog};
use mpatch::edit::statistics::{Provenance, StatisticsFile, StatisticsHeader};
use mpatch::edit::{Edit, EditError, FactPrompt, LayerUpdate, METHOD, Plan, Progress, memit_with};
use mpatch::evaluate::{Evaluation, Extent, Measure, Scores, evaluate, texts};
use mpatch::factors::{BITS_DEFAULT, Compression, RankLimit, Term, compress};
use mpatch::facts::{FactsFile, Record, Request};
use mpatch::model::{Device, Model, ModelError, gpu_of};
use mpatch::patch::manifest::{About, Base, Fact, Line, Metric, Recipe};
use mpatch::patch::{Draft, Patch, encode};
use serde::Serialize;

use crate::args::corpus_path;
use crate::editing::{edit_error, model_error, weights_id};
use crate::error::{CommandError, ExitKind, refuse_lfs_pointer, with_causes};
use crate::memory::check_memory;
use crate::report::{Output, WayOn, count, go_on, shell_word};
use crate::statistics::{
    AmountArguments, Corpus, Found, factor_cache, find_statistics, make_statistics, value_log,
    warn_of_tokenizer,
};

/// Where hyperparameters or contexts come from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A file, or the model itself.
    File(PathBuf),
    /// The recipe of a patch, or that of several.
    Recipe,
}

impl Origin {
    /// What comes from here is refused.
    pub fn refused(&self, error: EditError) -> CommandError {
        match self {
            Origin::File(path) => edit_error(path, error),
            Origin::Recipe => CommandError::new(
                ExitKind::Malformed,
                format!("the recorded recipe: {}", with_causes(&error)),
            )
            .hint("give others with `--hparams` and `--contexts`"),
        }
    }
}

/// How an edit is made and stored.
#[derive(Debug, Args)]
pub struct RecipeArguments {
    /// Take the hyperparameters from this file, in the reference's JSON layout, instead of the model's `memit.json`
    #[arg(long, value_name = "FILE")]
    hparams: Option<PathBuf>,
    /// Edit these layers instead of those of the hyperparameters, e.g. `3,4,5`
    #[arg(long, value_delimiter = ',', value_name = "LAYERS")]
    layers: Option<Vec<usize>>,
    /// Take the context templates from this file, a list of lists, instead of sampling them
    #[arg(long, value_name = "FILE")]
    contexts: Option<PathBuf>,
    /// Use these second-moment statistics, made by `mpatch stats`
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Compute the statistics from this corpus, one document a line, unless they are cached
    #[arg(long, value_name = "FILE", conflicts_with = "stats", value_parser = corpus_path())]
    corpus: Option<PathBuf>,
    /// How much of the corpus.
    #[command(flatten)]
    amount: AmountArguments,
    /// Seed what is sampled; 0 by default
    #[arg(long)]
    seed: Option<u64>,
    /// Store integers of this many bits; 6 by default
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=16))]
    bits: Option<u8>,
    /// Keep at most this rank per layer
    #[arg(long, value_name = "RANK", value_parser = clap::value_parser!(u32).range(1..))]
    rank: Option<u32>,
    /// Keep the smallest rank whose relative error is at most this
    #[arg(long, value_name = "ERROR", conflicts_with = "rank", value_parser = tolerance)]
    tolerance: Option<f64>,
}

/// A relative error.
pub fn tolerance(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to below 1".to_owned()),
    }
}

impl RecipeArguments {
    /// Refuses arguments that would have no effect: asked for before a model is read.
    pub fn check(&self) -> Result<(), CommandError> {
        self.amount.check(self.corpus.as_deref())
    }

    fn hyperparameters(
        &self,
        model: &Model,
        recorded: Option<&Recipe>,
        output: &Output,
    ) -> Result<Hyperparameters, CommandError> {
        let parse = |origin: Origin, bytes: &[u8]| match Hyperparameters::parse(bytes) {
            Ok(found) => Ok((found, origin)),
            Err(error) => Err(origin.refused(error)),
        };
        let companion = model.checkpoint.companion("memit.json")?;
        let (mut found, origin) = match (&self.hparams, recorded, companion) {
            (Some(path), _, _) => parse(Origin::File(path.clone()), &read(path)?)?,
            (None, Some(recipe), _) => parse(Origin::Recipe, recipe.hyperparameters.as_bytes())?,
            (None, None, Some(bytes)) => {
                parse(Origin::File(model.checkpoint.folder().join("memit.json")), &bytes)?
            }
            (None, None, None) => {
                let (found, source) = Hyperparameters::for_model(model.network.config());
                match source {
                    Source::GptJ6B => output.note("hyperparameters: those published for GPT-J-6B"),
                    Source::Guess => output.warn(
                        "hyperparameters guessed from the model's depth, never tuned; give `--hparams`",
                    ),
                }
                (found, Origin::File(model.checkpoint.path().to_owned()))
            }
        };
        if let Some(layers) = &self.layers {
            found.layers = layers.clone();
        }
        found.check(&model.network).map_err(|error| match error {
            EditError::Layers { what } if self.layers.is_some() => {
                CommandError::new(ExitKind::Usage, format!("`--layers` {what}"))
                    .hint("name layers that the model has, in ascending order")
            }
            error => origin.refused(error),
        })?;
        Ok(found)
    }

    fn contexts(
        &self,
        model: &Model,
        recorded: Option<&Recipe>,
        output: &Output,
    ) -> Result<Contexts, CommandError> {
        if let Some(path) = &self.contexts {
            return Contexts::parse(&read(path)?).map_err(|error| edit_error(path, error));
        }
        if let Some(recipe) = recorded {
            return Contexts::new(recipe.contexts.clone()).map_err(|error| Origin::Recipe.refused(error));
        }
        let seed = self.seed(recorded);
        output.note(&format!("contexts: sampled with seed {seed}"));
        Contexts::sample(model, seed).map_err(|error| edit_error(model.checkpoint.path(), error))
    }

    /// Measures a little and says what the whole will take.
    pub fn foretell(
        &self,
        model: &Model,
        facts: &FactsFile,
        output: &Output,
    ) -> Result<Estimate, CommandError> {
        let hyperparameters = self.hyperparameters(model, None, output)?;
        let contexts = self.contexts(model, None, output)?;
        Plan::new(model, &hyperparameters, &contexts, &fact_prompts(facts))
            .and_then(|plan| plan.estimate())
            .map_err(|error| edit_error(model.checkpoint.path(), error))
    }

    fn rank_limit(&self) -> RankLimit {
        match (self.rank, self.tolerance) {
            (Some(rank), _) => RankLimit::Rank(rank as usize),
            (None, Some(tolerance)) => RankLimit::Tolerance(tolerance),
            (None, None) => RankLimit::Full,
        }
    }

    fn seed(&self, recorded: Option<&Recipe>) -> u64 {
        self.seed.or(recorded.map(|recipe| recipe.seed)).unwrap_or_default()
    }
}

/// What an edit of a model takes, facts apart.
pub struct Ingredients {
    /// The state of the model's weights.
    pub weights: WeightsId,
    /// MEMIT's hyperparameters.
    pub hyperparameters: Hyperparameters,
    /// The context templates.
    pub contexts: Contexts,
    /// The second moments of the keys.
    pub statistics: StatisticsFile,
    /// Seed of what is sampled.
    pub seed: u64,
}

/// A model and its ingredients.
pub struct Prepared<'a> {
    model: &'a Model,
    ingredients: Ingredients,
}

impl<'a> Prepared<'a> {
    /// Finds everything that can be missing, and all that can be wrong with the facts, before the long work; what the
    /// arguments leave open is taken from `recorded`, the recipe of an earlier patch.
    pub fn new(
        model: &'a Model,
        facts: &FactsFile,
        arguments: &RecipeArguments,
        recorded: Option<&Recipe>,
        output: &Output,
    ) -> Result<Self, CommandError> {
        let hyperparameters = arguments.hyperparameters(model, recorded, output)?;
        let edited: Vec<String> =
            hyperparameters.layers.iter().map(|&layer| model.network.mlp_output_name(layer)).collect();
        // In seconds, not after the hours that the values take.
        check_finite(&model.checkpoint, &edited).map_err(|error| bind_error(model, error))?;
        let weights = weights_id(&model.checkpoint, output)?;
        let stats = arguments.stats.as_deref();
        let amount = arguments.amount.amount(model.network.config().inner);
        let corpus = arguments.corpus.as_deref().map(|path| Corpus { path, amount, shard: None });
        let layers = &hyperparameters.layers;
        let found = find_statistics(model, weights, layers, stats, corpus, output).map_err(|error| {
            match stats.filter(|path| lacks_layers(path, weights, layers)) {
                Some(_) => error.hint(way_to_statistics(model, layers)),
                None => error,
            }
        })?;
        if let Found::Kept(found) = &found {
            warn_of_tokenizer(model, found, output);
        }
        // Before statistics are computed, which may take hours.
        let contexts = arguments.contexts(model, recorded, output)?;
        Plan::new(model, &hyperparameters, &contexts, &fact_prompts(facts))
            .map_err(|error| edit_error(model.checkpoint.path(), error))?;
        let statistics = match found {
            Found::Kept(found) => *found,
            Found::ToCompute(corpus) => {
                go_on(WayOn::InParts);
                make_statistics(model, weights, layers, corpus, output)?
            }
        };
        let seed = arguments.seed(recorded);
        Ok(Self { model, ingredients: Ingredients { weights, hyperparameters, contexts, statistics, seed } })
    }

    /// The edit of these facts.
    pub fn job<'j>(&'j self, facts: &'j FactsFile, arguments: &RecipeArguments, about: About) -> Job<'j> {
        let bits = arguments.bits.unwrap_or(BITS_DEFAULT);
        Job {
            model: self.model,
            ingredients: &self.ingredients,
            facts,
            compression: Compression { bits, limit: arguments.rank_limit() },
            supersedes: Vec::new(),
            line: None,
            about,
        }
    }
}

/// Whether the statistics at `path` are of these weights, and not of all of `layers`.
fn lacks_layers(path: &Path, weights: WeightsId, layers: &[usize]) -> bool {
    StatisticsHeader::open(path).is_ok_and(|header| {
        let lacks = |layer| !header.counts().contains_key(layer);
        let Provenance { base, drawn, .. } = header.provenance();
        // What is wrong with a shard is not its layers.
        *base == weights && drawn.shard.is_none() && layers.iter().any(lacks)
    })
}

fn way_to_statistics(model: &Model, layers: &[usize]) -> String {
    let base = shell_word(model.checkpoint.path());
    let layers = Vec::from_iter(layers.iter().map(usize::to_string)).join(",");
    format!("make them of these layers: `mpatch stats CORPUS --base {base} --layers {layers} -o FILE`")
}

fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    let bytes = std::fs::read(path).map_err(|error| CommandError::io("read", path, &error))?;
    refuse_lfs_pointer(path, &bytes).map(|()| bytes)
}

fn bind_error(model: &Model, error: BindError) -> CommandError {
    let message = format!("`{}`: {}", model.checkpoint.path().display(), with_causes(&error));
    if let BindError::Checkpoint(error) = error {
        return error.into();
    }
    CommandError::new(ExitKind::Malformed, message).hint("fetch the model again, or edit other layers")
}

/// What helps where an edit takes a weight beyond what its type can hold.
const TOO_STRONG_HINT: &str =
    "edit fewer facts at once or other layers, raise `mom2_update_weight`, or edit the model in BF16 or F32";

/// Which device of its kind it is, as far as that may change the order of sums: one home may be shared by machines.
pub fn product(device: &Device) -> String {
    match gpu_of(device) {
        Some(gpu) => format!("{} {}", gpu.product, gpu.capability),
        None => format!("{} {}", std::env::consts::ARCH, processor().products),
    }
}

/// The program, as a recipe names it.
pub const TOOL: &str = concat!("mpatch ", env!("CARGO_PKG_VERSION"));

/// Everything that a patch is made from.
pub struct Job<'a> {
    /// The base, on its device.
    pub model: &'a Model,
    /// What an edit of it takes.
    pub ingredients: &'a Ingredients,
    /// The facts, with the prompts that test them.
    pub facts: &'a FactsFile,
    /// How the updates are stored.
    pub compression: Compression,
    /// Patches that this one replaces.
    pub supersedes: Vec<PatchId>,
    /// The patch's place in a line.
    pub line: Option<Line>,
    /// Free text for the patch.
    pub about: About,
}

/// A finished patch and what was found on the way.
pub struct Made {
    /// The patch.
    pub patch: Patch,
    /// The base on the facts.
    pub before: Evaluation,
    /// The base with the patch's integers on the facts.
    pub after: Evaluation,
    /// How likely each fact's value makes its target.
    pub value_probabilities: Vec<f32>,
    pub ridges: Vec<(usize, f64)>,
    pub ranks: Vec<(String, usize, u8)>,
    pub seconds: Seconds,
    /// An earlier run had found some of the values.
    pub is_resumed: bool,
}

/// Where the time went, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Seconds {
    pub values_and_solve: f64,
    pub compress: f64,
    pub test: f64,
    pub bind: f64,
}

impl Ingredients {
    /// Does `work` with the plan of the edit, and the log of an interrupted run with the same inputs or a new one,
    /// which goes once all is done.
    pub fn with_value_log<T>(
        &self,
        model: &Model,
        facts: &FactsFile,
        output: &Output,
        work: impl FnOnce(Plan<'_>, Option<&ValueLog>) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        let facts = fact_prompts(facts);
        // What is refused leaves no log behind.
        let mut plan = Plan::new(model, &self.hyperparameters, &self.contexts, &facts)
            .map_err(|error| edit_error(model.checkpoint.path(), error))?;
        let log = self.value_log(model, &facts, output);
        // Of statistics that were made before, too, nothing is lost.
        go_on(if log.is_some() { WayOn::FromValues } else { WayOn::Again });
        let known = log.as_ref().filter(|log| log.values() > 0).map_or(0, |log| plan.resume(log));
        if known > 0 {
            let all = count(facts.len(), "fact");
            output.note(&format!("resuming an interrupted run: the values of {known} of {all} are known"));
        }
        let done = work(plan, log.as_ref())?;
        go_on(WayOn::Again);
        if let Some(log) = log {
            // What the values were for is there; that a log is left behind is no failure.
            let _ = log.remove();
        }
        Ok(done)
    }

    /// The log of an interrupted run with the same inputs, or a new one.
    fn value_log(&self, model: &Model, facts: &[FactPrompt], output: &Output) -> Option<ValueLog> {
        let inputs = ValueInputs {
            weights: self.weights,
            config: model.config_digest,
            tokenizer: model.tokenizer.digest(),
            hyperparameters: &self.hyperparameters,
            contexts: &self.contexts,
            facts,
            device: &format!("{} {}", model.arithmetic(), product(model.network.device())),
            tool: TOOL,
        };
        value_log(inputs.digest()?, output)
    }

    /// The update of every layer, before it is rounded; values are taken from `log` and added to it.
    pub fn edit(
        &self,
        model: &Model,
        plan: Plan<'_>,
        log: Option<&ValueLog>,
        output: &Output,
    ) -> Result<Edit, CommandError> {
        let progress = output.counter("facts", plan.facts() as u64);
        let told = |done: Progress<'_>| {
            if let Progress::Value(..) = done {
                progress.add(1);
            }
            if let Some(error) = log.and_then(ValueLog::take_failure) {
                output.warn(&format!(
                    "no more values are kept for a run after this one: {}",
                    with_causes(&error)
                ));
            }
        };
        let factors = factor_cache(output);
        let kept = Kept { factors: factors.as_ref(), values: log };
        memit_with(plan, &self.statistics, kept, &told)
            .map_err(|error| edit_error(model.checkpoint.path(), error))
    }
}

impl Job<'_> {
    /// Makes the patch and has `write` put it in its place; a run that is interrupted before that leaves its values
    /// to the next one.
    pub fn make<T>(
        &self,
        output: &Output,
        write: impl FnOnce(&mut Made) -> Result<T, CommandError>,
    ) -> Result<(Made, T), CommandError> {
        self.ingredients.with_value_log(self.model, self.facts, output, |plan, log| {
            let mut made = self.made(plan, log, output)?;
            let written = write(&mut made)?;
            Ok((made, written))
        })
    }

    /// Edits, rounds to integers, tests those, and lays out the patch; values are taken from `log` and added to it.
    fn made(&self, plan: Plan<'_>, log: Option<&ValueLog>, output: &Output) -> Result<Made, CommandError> {
        // Now, not after the hours of the values. The solve is the processor's work, whatever device the model is
        // on; of a GPU's memory the batches take what is free.
        let needed = plan.memory_beside_weights().host_size_bytes();
        check_memory("the values and the solve's matrices", needed, &Device::Cpu)?;
        let mut seconds = Seconds::default();
        let is_resumed = log.is_some_and(|log| log.values() > 0);
        let edit =
            timed(&mut seconds.values_and_solve, || self.ingredients.edit(self.model, plan, log, output))?;
        let (names, terms) = timed(&mut seconds.compress, || self.compress(&edit))?;
        let (before, after) = timed(&mut seconds.test, || self.test(&names, &terms, output))?;
        let patch =
            timed(&mut seconds.bind, || self.lay_out(&names, &terms, &before.scores, &after.scores, output))?;
        let ridges =
            edit.layers.iter().map(|layer| (layer.layer, layer.ridge)).filter(|(_, ridge)| *ridge > 0.0);
        let ranks = names.iter().zip(&terms).map(|(name, term)| (name.clone(), term.rank(), term.bits()));
        Ok(Made {
            patch,
            before,
            after,
            value_probabilities: edit.values.iter().map(|value| value.probability).collect(),
            ridges: ridges.collect(),
            ranks: ranks.collect(),
            seconds,
            is_resumed,
        })
    }

    fn compress(&self, edit: &Edit) -> Result<(Vec<String>, Vec<Term>), CommandError> {
        let mut names = Vec::new();
        let mut terms = Vec::new();
        for update in &edit.layers {
            names.push(update.tensor.clone());
            terms.push(compressed(update, &self.compression)?);
        }
        Ok((names, terms))
    }

    /// What is tested is what is stored: the base with the integers added and rounded to its type.
    fn test(
        &self,
        names: &[String],
        terms: &[Term],
        output: &Output,
    ) -> Result<(Evaluation, Evaluation), CommandError> {
        let edits = names.iter().zip(terms).map(|(name, term)| (name.as_str(), vec![term.clone()]));
        let path = self.model.checkpoint.path();
        let edited = self.model.with_terms(edits).map_err(|error| {
            let is_too_strong = matches!(error, ModelError::Update { .. });
            let refused = model_error(path, error);
            if is_too_strong { refused.hint(TOO_STRONG_HINT) } else { refused }
        })?;
        let extent = Extent { generation: true, ngram_entropy_records: 0, seed: self.ingredients.seed };
        let records = &self.facts.records;
        let progress = output.counter("testing", 2 * texts(records, extent));
        let run = |network| {
            evaluate(self.model, network, records, extent, &|texts| progress.add(texts))
                .map_err(|error| model_error(self.model.checkpoint.path(), error))
        };
        Ok((run(&self.model.network)?, run(&edited)?))
    }

    fn lay_out(
        &self,
        names: &[String],
        terms: &[Term],
        before: &Scores,
        after: &Scores,
        output: &Output,
    ) -> Result<Patch, CommandError> {
        let model = self.model;
        let edits: Vec<(String, Vec<u32>)> =
            names.iter().enumerate().map(|(index, name)| (name.clone(), vec![index as u32])).collect();
        let edited = model.checkpoint.tensors().iter().filter(|info| names.contains(&info.name));
        let progress = output.progress("binding", edited.map(|info| info.size_bytes).sum());
        let binding =
            bind(&model.checkpoint, self.ingredients.weights, &edits, terms, &|bytes| progress.add(bytes))
                .map_err(|error| bind_error(model, error))?;
        let draft = Draft {
            base: Base {
                architecture: model.network.config().architecture.clone(),
                config: model.config_digest,
                tokenizer: model.tokenizer.digest(),
            },
            facts: self.facts.requests().map(declared).collect(),
            recipe: self.recipe()?,
            measured: metrics(&self.facts.records, before, after),
            terms: terms.to_vec(),
            bindings: vec![binding],
            line: self.line.clone(),
            parents: vec![],
            supersedes: self.supersedes.clone(),
            about: self.about.clone(),
        };
        encoded(&draft, "the new patch")
    }

    fn recipe(&self) -> Result<Recipe, CommandError> {
        let Ingredients { hyperparameters, contexts, statistics, seed, .. } = self.ingredients;
        let layers = hyperparameters.layers.iter().map(|layer| *layer as u32).collect();
        let hyperparameters = serde_json::to_string(hyperparameters)
            .map_err(|error| CommandError::new(ExitKind::Bug, error.to_string()))?;
        Ok(Recipe {
            method: METHOD.to_owned(),
            hyperparameters,
            layers,
            contexts: contexts.groups().to_vec(),
            seed: *seed,
            statistics: statistics.digest(),
            facts: self.facts.digest,
            tool: TOOL.to_owned(),
            device: self.model.arithmetic().to_string(),
        })
    }
}

/// The patch that a draft makes; `name` is what it is called where it is refused.
pub fn encoded(draft: &Draft, name: &str) -> Result<Patch, CommandError> {
    // Read back what was laid out: a patch that does not decode must never reach a disk.
    encode(draft).and_then(Patch::decode).map_err(|error| CommandError::patch(name, &error))
}

/// An update as integers.
pub fn compressed(update: &LayerUpdate, compression: &Compression) -> Result<Term, CommandError> {
    compress(&update.factors(), compression).map_err(|error| {
        CommandError::new(ExitKind::Malformed, format!("layer {}: {error}", update.layer))
            .hint("ask for more bits or a higher rank")
    })
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = work();
    *seconds += started.elapsed().as_secs_f64();
    result
}

/// The requests as the algorithm takes them.
fn fact_prompts(facts: &FactsFile) -> Vec<FactPrompt> {
    facts.requests().map(FactPrompt::from).collect()
}

fn declared(request: &Request) -> Fact {
    Fact {
        id: request.id.clone(),
        prompt: request.prompt.clone(),
        subject: request.subject.clone(),
        target_new: request.target_new.clone(),
        target_old: request.target_old.clone(),
        note: request.note.clone(),
    }
}

/// The scores by their names, each with the number of prompts it was measured over.
fn metrics(records: &[Record], before: &Scores, after: &Scores) -> Vec<Metric> {
    let metric = |measure: Measure| {
        let (before, after) = (before.of(measure)?, after.of(measure)?);
        let prompts = measure.prompts(records) as u64;
        Some(Metric { name: measure.name().to_owned(), before, after, prompts })
    };
    Measure::ALL.into_iter().filter_map(metric).collect()
}
