//! MEMIT (Meng et al. 2022, arXiv 2210.07229) on one page: [`memit_with`], and the files beside it are its steps.
//!
//! `docs/memit.md` maps the paper's symbols to the names here and says where and why we differ from the reference.
//! This room knows neither patches nor history: it returns factors, in f64, layer by layer.

mod collect;
pub mod contexts;
mod drawn;
pub mod estimate;
pub mod hyperparameters;
pub mod import;
pub mod kept;
mod key;
pub mod key_span;
pub mod lookup;
pub mod solve;
pub mod statistics;
pub mod value;

use candle_core::Tensor;
use faer::{Mat, MatRef};

use self::contexts::Contexts;
use self::hyperparameters::Hyperparameters;
use self::kept::{Kept, ValueLog};
use self::lookup::Located;
use self::solve::{Factor, Sums};
use self::statistics::StatisticsFile;
use self::value::{PlannedValues, Value};
use crate::checkpoint::CheckpointError;
use crate::factors::Factors;
use crate::facts::Request;
use crate::model::{Model, ModelError, Network, Site};

/// What the recipe of a patch calls the way that it was made here.
pub const METHOD: &str = "memit";

/// Why an edit cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Layers that cannot be edited, or not in this model.
    #[error("hyperparameters: `layers` {what}")]
    Layers {
        /// What is wrong.
        what: String,
    },
    /// Hyperparameters that make no sense, or not for this model.
    #[error("hyperparameters: {what}")]
    Hyperparameters {
        /// What is wrong.
        what: String,
    },
    /// A loss that feels nothing of a value, because the prompt goes on behind its subject.
    #[error(
        "the prompt goes on behind its subject, and `v_loss_layer`, which is {loss_layer}, is not above the last edited layer, {value_layer}: the loss feels nothing of the value"
    )]
    LossLayer {
        /// The layer whose output the loss reads.
        loss_layer: usize,
        /// The layer whose output the value is put into.
        value_layer: usize,
    },
    /// Context templates that cannot be used.
    #[error("context templates: {what}")]
    Contexts {
        /// What is wrong.
        what: String,
    },
    /// A template or target that cannot be used.
    #[error("`{template}` {what}")]
    Template {
        /// The text.
        template: String,
        /// What is wrong with it.
        what: String,
    },
    /// A fact that cannot be edited in.
    #[error("fact {position}, `{subject}`")]
    Fact {
        /// Its place among the facts, from 1.
        position: usize,
        /// Its subject.
        subject: String,
        /// What is wrong.
        source: Box<EditError>,
    },
    /// Statistics that cannot be used.
    #[error("statistics: {what}")]
    Statistics {
        /// What is wrong.
        what: String,
    },
    /// Statistics that would count the same text twice.
    #[error("statistics: cannot be merged: {what}")]
    Repeated {
        /// Which files, and what both hold.
        what: String,
    },
    /// A corpus that cannot be read.
    #[error("corpus, line {line}: {what}")]
    Corpus {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The model's output is no number.
    #[error("{}", not_a_number(*steps))]
    NotANumber {
        /// Steps that a value had taken until then; 0 where it is not a value's doing.
        steps: usize,
    },
    /// No update can be solved for, which sums of keys give no reason for.
    #[error("layer {layer}: lambda * C + K K^T is not positive definite, even with a ridge")]
    Singular {
        /// The layer.
        layer: usize,
    },
}

fn not_a_number(steps: usize) -> String {
    match steps {
        0 => "the model's output is not a number; its weights hold NaN or infinities".to_owned(),
        _ => format!("the loss is not a number after step {steps} of the value"),
    }
}

impl From<candle_core::Error> for EditError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(ModelError::Device(error))
    }
}

impl EditError {
    /// Whether the device had too little memory: less at once may do.
    fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Model(error) if error.is_out_of_memory())
    }

    /// Says which fact it is about.
    fn of_fact(self, index: usize, subject: &str) -> Self {
        Self::Fact { position: index + 1, subject: subject.to_owned(), source: Box::new(self) }
    }
}

/// A fact as the algorithm takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactPrompt {
    /// The prompt, with `{}` where the subject goes.
    pub prompt: String,
    /// The subject.
    pub subject: String,
    /// What is to follow, with the space before it.
    pub target: String,
}

impl From<&Request> for FactPrompt {
    fn from(request: &Request) -> Self {
        Self {
            prompt: request.prompt.clone(),
            subject: request.subject.clone(),
            target: request.target_new_spaced(),
        }
    }
}

/// The update of one layer.
pub struct LayerUpdate {
    /// The layer.
    pub layer: usize,
    /// The checkpoint's name of the edited matrix.
    pub tensor: String,
    /// What is added to it, `[width, inner]`.
    pub delta: Delta,
    /// What the solve had to add to the diagonal; 0 as a rule.
    pub ridge: f64,
}

/// What is added to a matrix, as it was solved for.
pub enum Delta {
    /// `residuals * adjusted_keys^T`: for as many unknowns as there are facts.
    ByFacts {
        /// `(lambda * C + K K^T)^-1 K`, `[inner, facts]` f64.
        adjusted_keys: Mat<f64>,
        /// What is still missing of each value, divided by the layers still to come, `[width, facts]` f64.
        residuals: Mat<f64>,
    },
    /// All of it, `[width, inner]` f64: where facts outnumber the inner width.
    Whole(Mat<f64>),
}

/// An edit before it is rounded to integers.
pub struct Edit {
    /// One value per fact.
    pub values: Vec<Value>,
    /// One update per edited layer, ascending.
    pub layers: Vec<LayerUpdate>,
}

/// How far [`memit`] is.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// The value of one fact, by its index, is found; facts finish in any order.
    Value(usize, &'a Value),
    /// The update of one layer is solved.
    Layer(usize),
}

/// Finds the updates that make `facts` true: values first, on the unedited model, then layer by layer the closed
/// form, each layer seeing the edits of those before it. The model itself is not changed.
///
/// The same inputs on the same product of a device, with as much of its memory free, give the same edit: on a GPU the
/// batches, and with them the order of sums, follow from that.
///
/// # Errors
/// As for [`Plan::new`] and [`memit_with`].
pub fn memit(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    facts: &[FactPrompt],
    statistics: &StatisticsFile,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Edit, EditError> {
    let plan = Plan::new(model, hyperparameters, contexts, facts)?;
    memit_with(plan, statistics, Kept::default(), progress)
}

/// [`memit`] of what is planned, with what earlier runs kept: the same edit, bit for bit, and sooner.
///
/// # Errors
/// [`EditError::Statistics`] where the statistics are not of these layers, or hold sums that no keys have;
/// [`EditError::Checkpoint`] where they cannot be read; [`EditError::Singular`] where no update can be solved for;
/// [`EditError::Model`] where the model cannot be run, and [`EditError::NotANumber`] where it gives no number: a value
/// of which the loss is none is an [`EditError::Fact`].
pub fn memit_with(
    mut plan: Plan<'_>,
    statistics: &StatisticsFile,
    kept: Kept<'_>,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Edit, EditError> {
    if let Some(log) = kept.values {
        plan.resume(log);
    }
    let Plan { model, hyperparameters, contexts, in_contexts, plain, values } = plan;
    let values = value::all(&values, hyperparameters, kept.values, progress)?;
    let mut edited = model.network.clone();
    let mut layers = Vec::with_capacity(hyperparameters.layers.len());
    for (index, &layer) in hyperparameters.layers.iter().enumerate() {
        let step = Step {
            edited: &edited,
            layer,
            value_layer: hyperparameters.value_layer(),
            layers_left: (hyperparameters.layers.len() - index) as f64,
            weight: hyperparameters.mom2_update_weight,
            contexts,
            in_contexts: &in_contexts,
            plain: &plain,
            values: &values,
            statistics,
        };
        let update = match plain.len() <= model.network.config().inner {
            true => step.by_facts(kept)?,
            false => step.by_sums()?,
        };
        edited = update.overlay(&edited)?;
        layers.push(update);
        progress(Progress::Layer(layer));
    }
    Ok(Edit { values, layers })
}

/// Refuses a fact whose prompt alone does not fit: it takes nothing but the tokenizer.
///
/// # Errors
/// [`EditError::Fact`].
pub fn check_prompts(model: &Model, facts: &[FactPrompt]) -> Result<(), EditError> {
    key::plain(model, facts).map(drop)
}

/// An edit that the model takes, told by the tokens of its facts: all that an edit needs to know of them, and all that
/// can be wrong with them. Nothing has been run.
pub struct Plan<'a> {
    model: &'a Model,
    hyperparameters: &'a Hyperparameters,
    contexts: &'a Contexts,
    /// Every fact's prompt in every context, fact after fact.
    in_contexts: Vec<Located>,
    /// Every fact's prompt alone.
    plain: Vec<Located>,
    values: PlannedValues<'a>,
}

impl<'a> Plan<'a> {
    /// Plans the edit of `facts`.
    ///
    /// # Errors
    /// [`EditError::Layers`] and [`EditError::Hyperparameters`]; [`EditError::Fact`] for a fact whose prompt or target
    /// cannot be used, in a context or alone; [`EditError::Model`] where the tokenizer fails.
    pub fn new(
        model: &'a Model,
        hyperparameters: &'a Hyperparameters,
        contexts: &'a Contexts,
        facts: &[FactPrompt],
    ) -> Result<Self, EditError> {
        hyperparameters.check(&model.network)?;
        let in_contexts = key::in_contexts(model, contexts, facts)?;
        let plain = key::plain(model, facts)?;
        let values = PlannedValues::new(model, hyperparameters, &in_contexts, facts)?;
        Ok(Self { model, hyperparameters, contexts, in_contexts, plain, values })
    }

    /// How many facts there are.
    pub fn facts(&self) -> usize {
        self.plain.len()
    }

    /// Goes on where an interrupted run stopped; how many values `log` holds for it. Others the log forgets.
    pub fn resume(&mut self, log: &ValueLog) -> usize {
        self.values.resume(log);
        log.values()
    }
}

/// What one layer is solved from.
struct Step<'a> {
    /// The network with the earlier layers' updates.
    edited: &'a Network,
    layer: usize,
    value_layer: usize,
    layers_left: f64,
    weight: f64,
    contexts: &'a Contexts,
    in_contexts: &'a [Located],
    plain: &'a [Located],
    values: &'a [Value],
    statistics: &'a StatisticsFile,
}

impl Step<'_> {
    /// Solves for as many unknowns as there are facts.
    fn by_facts(&self, kept: Kept<'_>) -> Result<LayerUpdate, EditError> {
        let (keys, residuals) = self.facts(0, self.plain.len())?;
        let factor = factor(self.statistics, kept, self.weight, self.layer, keys.ncols())?;
        let adjusted_keys = factor.adjust(keys.as_ref(), self.layer)?;
        let tensor = self.edited.mlp_output_name(self.layer);
        let delta = Delta::ByFacts { adjusted_keys, residuals };
        Ok(LayerUpdate { layer: self.layer, tensor, delta, ridge: factor.ridge })
    }

    /// Solves for the update as a whole; facts come in blocks, whose keys take a quarter of a second moment.
    fn by_sums(&self) -> Result<LayerUpdate, EditError> {
        let (width, inner) = (self.edited.config().width, self.edited.config().inner);
        let mut sums = Sums::new(width, inner);
        let block = inner.div_ceil(4);
        for first in (0..self.plain.len()).step_by(block) {
            let (keys, residuals) = self.facts(first, (first + block).min(self.plain.len()))?;
            sums.add(keys.as_ref(), residuals.as_ref());
        }
        let moment = || self.statistics.moment(self.layer);
        let (update, ridge) = sums.solve(&moment, self.weight, self.layer)?;
        let tensor = self.edited.mlp_output_name(self.layer);
        Ok(LayerUpdate { layer: self.layer, tensor, delta: Delta::Whole(update), ridge })
    }

    /// Keys `[facts, inner]` and residuals `[width, facts]` of the facts from `first` to before `end`.
    fn facts(&self, first: usize, end: usize) -> Result<(Mat<f64>, Mat<f64>), EditError> {
        let templates = self.contexts.templates().count();
        let in_contexts = &self.in_contexts[first * templates..end * templates];
        let keys = key::keys(self.edited, self.contexts, in_contexts, self.layer)?;
        let current = key::read(self.edited, &self.plain[first..end], Site::BlockOutput(self.value_layer))?;
        let residuals = residuals(&self.values[first..end], &current, self.layers_left)?;
        Ok((keys, residuals))
    }
}

/// The keys of `facts` in `layer`, `[facts, inner]` f64, which sees the updates `before` it: for tests, since an edit
/// does not keep them.
#[doc(hidden)]
pub fn keys_after(
    model: &Model,
    contexts: &Contexts,
    facts: &[FactPrompt],
    before: &[LayerUpdate],
    layer: usize,
) -> Result<Mat<f64>, EditError> {
    let in_contexts = key::in_contexts(model, contexts, facts)?;
    let mut edited = model.network.clone();
    for update in before {
        edited = update.overlay(&edited)?;
    }
    key::keys(&edited, contexts, &in_contexts, layer)
}

/// The factor of `weight * C` of one layer: the one kept, or a new one.
fn factor(
    statistics: &StatisticsFile,
    kept: Kept<'_>,
    weight: f64,
    layer: usize,
    inner: usize,
) -> Result<Factor, EditError> {
    let make = || Factor::of(&|| statistics.moment(layer), weight, layer);
    match kept.factors {
        Some(factors) => factors.find_or(statistics.digest(), layer, weight, inner, make),
        None => make(),
    }
}

/// `(value - current hidden state) / layers still to come`, `[width, facts]`.
fn residuals(values: &[Value], current: &Tensor, layers_left: f64) -> Result<Mat<f64>, EditError> {
    let current: Vec<Vec<f32>> = current.to_vec2()?;
    let width = current.first().map_or(0, Vec::len);
    Ok(Mat::from_fn(width, values.len(), |feature, fact| {
        f64::from(values[fact].hidden[feature] - current[fact][feature]) / layers_left
    }))
}

impl LayerUpdate {
    /// What is added, `[width, inner]`, row-major f64.
    pub fn product(&self) -> Vec<f64> {
        match &self.delta {
            Delta::ByFacts { adjusted_keys, residuals } => {
                row_major((residuals * adjusted_keys.transpose()).as_ref())
            }
            Delta::Whole(update) => row_major(update.as_ref()),
        }
    }

    /// What is added as factors, of which a patch makes its integers; of all of it the left one is the identity.
    pub fn factors(&self) -> Factors {
        let identity;
        let (left, right) = match &self.delta {
            Delta::ByFacts { adjusted_keys, residuals } => (residuals.as_ref(), adjusted_keys.transpose()),
            Delta::Whole(update) => {
                identity = Mat::identity(update.nrows(), update.nrows());
                (identity.as_ref(), update.as_ref())
            }
        };
        Factors {
            left: row_major(left),
            right: row_major(right),
            rows: left.nrows(),
            rank: left.ncols(),
            columns: right.ncols(),
        }
    }

    /// `network` with this update added to its matrix.
    fn overlay(&self, network: &Network) -> Result<Network, EditError> {
        add(network, self.layer, &self.product())
    }
}

/// `network` with `update`, `[width, inner]` row-major, added to the matrix of `layer`, in f32 as in the reference.
fn add(network: &Network, layer: usize, update: &[f64]) -> Result<Network, EditError> {
    let base = network.mlp_output(layer)?.to_dtype(candle_core::DType::F32)?;
    let update: Vec<f32> = update.iter().map(|entry| *entry as f32).collect();
    let update = Tensor::from_vec(update, base.dims(), base.device())?;
    Ok(network.with_tensor(&network.mlp_output_name(layer), (base + update)?)?)
}

fn row_major(matrix: MatRef<'_, f64>) -> Vec<f64> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    (0..rows).flat_map(|row| (0..columns).map(move |column| matrix[(row, column)])).collect()
}
