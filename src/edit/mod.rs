//! MEMIT (Meng et al. 2022, arXiv 2210.07229) on one page: [`memit`] is the algorithm, the files beside it its steps.
//!
//! `docs/memit.md` maps the paper's symbols to the names here and says where and why we differ from the reference.
//! This room knows neither patches nor history: it returns factors, in f64, layer by layer.

pub mod contexts;
pub mod hyperparameters;
pub mod import;
mod key;
pub mod lookup;
pub mod solve;
pub mod statistics;
pub mod value;

use candle_core::Tensor;
use faer::Mat;

use self::contexts::Contexts;
use self::hyperparameters::Hyperparameters;
use self::statistics::{LayerSum, StatisticsFile};
use self::value::Value;
use crate::checkpoint::CheckpointError;
use crate::model::{Model, ModelError, Network, Site, on_every_core};

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
    /// Hyperparameters that make no sense, or not for this model.
    #[error("hyperparameters: {what}")]
    Hyperparameters {
        /// What is wrong.
        what: String,
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
    #[error("fact {position}, `{subject}`: {source}")]
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
    /// A corpus that cannot be read.
    #[error("corpus, line {line}: {what}")]
    Corpus {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// No update can be solved for.
    #[error(
        "layer {layer}: lambda * C + K K^T is not positive definite, even with a ridge; check the statistics for NaN"
    )]
    Singular {
        /// The layer.
        layer: usize,
    },
}

impl From<candle_core::Error> for EditError {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(ModelError::Device(error))
    }
}

impl EditError {
    /// Says which fact it is about.
    fn of_fact(self, index: usize, fact: &FactPrompt) -> Self {
        Self::Fact { position: index + 1, subject: fact.subject.clone(), source: Box::new(self) }
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

/// The update of one layer: `residuals * adjusted_keys^T`, `[width, inner]`.
pub struct LayerUpdate {
    /// The layer.
    pub layer: usize,
    /// The checkpoint's name of the edited matrix.
    pub tensor: String,
    /// The keys, `[facts, inner]` f64.
    pub keys: Mat<f64>,
    /// `(lambda * C + K K^T)^-1 K`, `[inner, facts]` f64.
    pub adjusted_keys: Mat<f64>,
    /// What is still missing of each value, divided by the layers still to come, `[width, facts]` f64.
    pub residuals: Mat<f64>,
    /// What the solve had to add to the diagonal; 0 as a rule.
    pub ridge: f64,
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
/// The same inputs on the same kind of device give the same edit.
///
/// # Errors
/// Any [`EditError`].
pub fn memit(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    facts: &[FactPrompt],
    statistics: &StatisticsFile,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Edit, EditError> {
    hyperparameters.check(&model.network)?;
    let in_contexts = key::in_contexts(model, contexts, facts)?;
    let plain = key::plain(model, facts)?;
    let values = values(model, hyperparameters, contexts, facts, progress)?;
    let mut edited = model.network.clone();
    let mut layers = Vec::with_capacity(hyperparameters.layers.len());
    for (index, &layer) in hyperparameters.layers.iter().enumerate() {
        let keys = matrix(&key::keys(&edited, contexts, &in_contexts, layer)?)?;
        let current = key::read(&edited, &plain, Site::BlockOutput(hyperparameters.value_layer()))?;
        let layers_left = (hyperparameters.layers.len() - index) as f64;
        let residuals = residuals(&values, &current, layers_left)?;
        let moment = moment(&statistics.layer(layer)?);
        let adjusted = solve::adjust(keys.as_ref(), moment, hyperparameters.mom2_update_weight, layer)?;
        let update = LayerUpdate {
            layer,
            tensor: edited.mlp_output_name(layer),
            keys,
            adjusted_keys: adjusted.keys,
            residuals,
            ridge: adjusted.ridge,
        };
        edited = update.overlay(&edited)?;
        layers.push(update);
        progress(Progress::Layer(layer));
    }
    Ok(Edit { values, layers })
}

/// Most facts whose values are optimised as one batch; more make matrix products hardly faster. On a CPU a few are
/// enough, and leave batches for every core where facts are few.
const FACTS_PER_BATCH_CPU_MAX: usize = 5;
const FACTS_PER_BATCH_GPU_MAX: usize = 64;
/// Activations of a batch stay below this: on a CPU for each core.
const BATCH_SIZE_CPU_BYTES: usize = 64 << 20;
const BATCH_SIZE_GPU_BYTES: usize = 8 << 30;
/// Tokens from a moved hidden state to the end of its row, as a rule at most.
const TOKENS_AFTER_SUBJECT: usize = 8;

/// How many facts fit one batch: for each token and each block above the value layer, three vectors of the MLP's
/// inner width and five of the model's are kept for the reverse pass.
fn facts_per_batch(model: &Model, hyperparameters: &Hyperparameters, contexts: &Contexts) -> usize {
    let config = model.network.config();
    let blocks = (config.layers - 1).saturating_sub(hyperparameters.value_layer()).max(1);
    let tokens = (contexts.templates().count() + 1) * TOKENS_AFTER_SUBJECT;
    let fact_size_bytes = tokens * blocks * (3 * config.inner + 5 * config.width) * size_of::<f32>();
    let on_cpu = model.network.device().is_cpu();
    let (limit_bytes, most) = match on_cpu {
        true => (BATCH_SIZE_CPU_BYTES, FACTS_PER_BATCH_CPU_MAX),
        false => (BATCH_SIZE_GPU_BYTES, FACTS_PER_BATCH_GPU_MAX),
    };
    (limit_bytes / fact_size_bytes).clamp(1, most)
}

/// Values are independent of each other: what runs beside a fact does not change it.
fn values(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    facts: &[FactPrompt],
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<Value>, EditError> {
    // Not by the number of cores: the same facts in the same batches give the same bits on any of them.
    let size = facts_per_batch(model, hyperparameters, contexts);
    let batches: Vec<&[FactPrompt]> = facts.chunks(size).collect();
    let values = on_every_core(model.network.device(), &batches, |batch, facts| {
        let values = value::optimise(model, hyperparameters, contexts, facts)?;
        for (index, value) in values.iter().enumerate() {
            progress(Progress::Value(batch * size + index, value));
        }
        Ok::<_, EditError>(values)
    })?;
    Ok(values.into_iter().flatten().collect())
}

/// `(value - current hidden state) / layers still to come`, `[width, facts]`.
fn residuals(values: &[Value], current: &Tensor, layers_left: f64) -> Result<Mat<f64>, EditError> {
    let current: Vec<Vec<f32>> = current.to_vec2()?;
    let width = current.first().map_or(0, Vec::len);
    Ok(Mat::from_fn(width, values.len(), |feature, fact| {
        f64::from(values[fact].hidden[feature] - current[fact][feature]) / layers_left
    }))
}

/// `sum / count`, `[inner, inner]`; divided in f32 as the reference does.
fn moment(sum: &LayerSum) -> Mat<f64> {
    let inner = sum.sum.len().isqrt();
    let count = sum.count as f32;
    Mat::from_fn(inner, inner, |row, column| f64::from(sum.sum[row * inner + column] / count))
}

/// A matrix on the device, in f64 on the host.
fn matrix(tensor: &Tensor) -> Result<Mat<f64>, EditError> {
    let (rows, columns) = tensor.dims2()?;
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    Ok(Mat::from_fn(rows, columns, |row, column| f64::from(values[row * columns + column])))
}

impl LayerUpdate {
    /// `residuals * adjusted_keys^T`, `[width, inner]`, row-major f64.
    pub fn product(&self) -> Vec<f64> {
        row_major(&(&self.residuals * self.adjusted_keys.transpose()))
    }

    /// The factors as a patch takes them: left `[width, facts]` and right `[facts, inner]`, row-major.
    pub fn factors(&self) -> (Vec<f64>, Vec<f64>) {
        (row_major(&self.residuals), row_major(&self.adjusted_keys.transpose().to_owned()))
    }

    /// `network` with this update added to its matrix, in f32 as in the reference.
    fn overlay(&self, network: &Network) -> Result<Network, EditError> {
        let base = network.mlp_output(self.layer)?;
        let update: Vec<f32> = self.product().into_iter().map(|entry| entry as f32).collect();
        let update = Tensor::from_vec(update, base.dims(), base.device())?;
        Ok(network.with_tensor(&self.tensor, (base + update)?)?)
    }
}

fn row_major(matrix: &Mat<f64>) -> Vec<f64> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    (0..rows).flat_map(|row| (0..columns).map(move |column| matrix[(row, column)])).collect()
}
