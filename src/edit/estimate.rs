//! What an edit will take, told before it starts: a little is measured on the machine at hand, the rest is counted.

use std::time::Instant;

use faer::Mat;
use serde::Serialize;

use super::hyperparameters::Hyperparameters;
use super::solve::Factor;
use super::{EditError, Plan, key};
use crate::model::{Config, Device, Model, Site};

/// What an edit will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Batches of values.
    pub batches: usize,
    /// Facts in each, at most.
    pub facts_per_batch: usize,
    /// Time for all values if every fact takes all its steps; those that are done sooner leave sooner.
    pub values_seconds_max: f64,
    /// Time for the keys and the hidden states of all layers.
    pub keys_seconds: f64,
    /// Time to solve for the updates of all layers, with a factor made for each; less where those are kept from
    /// an earlier run.
    pub solve_seconds: f64,
    /// How much memory.
    #[serde(flatten)]
    pub memory: MemoryEstimate,
}

/// Most memory at one time, without the test of the finished edit and what the program takes at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum MemoryEstimate {
    /// Where the processor does all of it.
    Processor {
        /// All of it.
        memory_size_bytes: u64,
    },
    /// Where a GPU runs the model.
    Gpu {
        /// Of the GPU's: the weights, and values or keys and updates.
        device_memory_size_bytes: u64,
        /// Of the processor's, which solves.
        host_memory_size_bytes: u64,
    },
}

/// Order of the matrix that is factorised to learn how fast that goes.
const ORDER_MEASURED: usize = 768;

impl Plan<'_> {
    /// Measures the middle batch over its first steps, one forward pass for keys and one factorisation, and counts.
    ///
    /// # Errors
    /// As [`super::memit_with`].
    pub fn estimate(&self) -> Result<Estimate, EditError> {
        let Plan { model, hyperparameters, contexts, in_contexts, plain, values } = self;
        let config = model.network.config();
        let (batches, facts_per_batch) = (values.batches().len(), values.facts_per_batch);
        let cores = cores(model.network.device());

        let steps = |steps: usize| Hyperparameters { v_num_grad_steps: steps, ..(*hyperparameters).clone() };
        if !model.network.device().is_cpu() {
            // Kernels are compiled when they are first used.
            values.time_middle_batch(&steps(1))?;
        }
        let (first, third) = (values.time_middle_batch(&steps(1))?, values.time_middle_batch(&steps(3))?);
        let step = ((third - first) / 2.0).max(0.0);
        let batch = first + step * hyperparameters.v_num_grad_steps.saturating_sub(1) as f64;

        let last = hyperparameters.value_layer();
        let chunks = key::batches(config, model.network.device(), in_contexts);
        let middle = chunks.get(chunks.len() / 2).into_iter().flatten();
        let texts: Vec<_> = middle.map(|&index| in_contexts[index].clone()).collect();
        let chunk =
            timed(model.network.device(), || key::read(&model.network, &texts, Site::BlockOutput(last)))?;
        // Keys of each layer over all contexts up to that layer, and hidden states over the plain prompts up to the
        // last.
        let templates = contexts.templates().count().max(1);
        let depth = |layer: usize| (layer + 1) as f64 / (last + 1) as f64;
        let passes: f64 =
            hyperparameters.layers.iter().map(|layer| depth(*layer) + 1.0 / templates as f64).sum();

        let order = ORDER_MEASURED.min(config.inner);
        let known = Mat::from_fn(order, order, |row, column| if row == column { 2.0 } else { 1e-4 });
        let started = Instant::now();
        Factor::of(&|| Ok(known.clone()), 1.0, 0)?;
        let factorised = started.elapsed().as_secs_f64();
        let larger = solve_operations(config, plain.len()) / factor_operations(order);

        Ok(Estimate {
            batches,
            facts_per_batch,
            values_seconds_max: batch * batches.div_ceil(cores.min(batches).max(1)) as f64,
            keys_seconds: chunk * passes * chunks.len().div_ceil(cores) as f64,
            solve_seconds: factorised * larger * hyperparameters.layers.len() as f64,
            memory: self.memory_beside_weights().and_weights(weights_size_bytes(model)),
        })
    }

    /// What the edit takes in memory beside the weights, the larger of its two peaks: all cores at their values, or
    /// the last layer's keys and solve. Nothing is run.
    pub fn memory_beside_weights(&self) -> MemoryEstimate {
        let Plan { model, hyperparameters, in_contexts, plain, values, .. } = self;
        let (config, device) = (model.network.config(), model.network.device());
        let (width, inner, facts) = (config.width as u64, config.inner as u64, plain.len());
        let layers = hyperparameters.layers.len();
        let at_work = |batches: usize| cores(device).min(batches) as u64;
        let at_values = at_work(values.batches().len()) * values.batch_size_bytes() as u64;
        // Of a block of facts the keys in every context, in f32, twice, on the way to their means; and the batches.
        let templates = in_contexts.len() / facts.max(1);
        let batches = key::batches(config, device, in_contexts);
        let reading = 8 * inner * (templates * facts.min(key::FACTS_PER_BLOCK)) as u64
            + at_work(batches.len()) * key::batch_size_bytes(config, in_contexts, &batches);
        // Each layer done is one more matrix.
        let edited = layers as u64 * 4 * width * inner;
        match device.is_cpu() {
            true => MemoryEstimate::Processor {
                memory_size_bytes: at_values.max(edited + solve_size_bytes(config, layers, facts, reading)),
            },
            false => MemoryEstimate::Gpu {
                device_memory_size_bytes: at_values.max(edited + reading),
                host_memory_size_bytes: solve_size_bytes(config, layers, facts, 0),
            },
        }
    }
}

/// How long `work` takes on `device`, in seconds: a GPU goes on after the call.
pub(super) fn timed<R, E: From<EditError>>(
    device: &Device,
    work: impl FnOnce() -> Result<R, E>,
) -> Result<f64, E> {
    let wait = || device.synchronize().map_err(EditError::from);
    wait()?;
    let started = Instant::now();
    work()?;
    wait()?;
    Ok(started.elapsed().as_secs_f64())
}

/// Multiplications, each with its addition, to factorise a matrix of this order.
fn factor_operations(order: usize) -> f64 {
    (order as f64).powi(3) / 6.0
}

/// The same to solve for one layer and to form its update, as `solve` does.
fn solve_operations(config: &Config, facts: usize) -> f64 {
    let (width, inner, n) = (config.width as f64, config.inner as f64, facts as f64);
    if facts <= config.inner {
        // Two triangular solves, facts by facts, their factor and two solves with it, and the product of the update.
        let adjusted = inner * inner * n + inner * n * n + factor_operations(facts) + inner * n * n;
        return factor_operations(config.inner) + adjusted + width * inner * n;
    }
    // Two sums over the facts, two triangular solves, and a product with the identity.
    let sums = inner * inner * n + width * inner * n;
    factor_operations(config.inner) + sums + inner * inner * width + width * width * inner
}

/// How many batches are at work together.
fn cores(device: &Device) -> usize {
    if device.is_cpu() { rayon::current_num_threads() } else { 1 }
}

impl MemoryEstimate {
    fn and_weights(self, weights_size_bytes: u64) -> Self {
        let mut all = self;
        let (Self::Processor { memory_size_bytes: of_weights }
        | Self::Gpu { device_memory_size_bytes: of_weights, .. }) = &mut all;
        *of_weights += weights_size_bytes;
        all
    }

    /// What of it is the processor's memory.
    pub fn host_size_bytes(&self) -> u64 {
        let (Self::Processor { memory_size_bytes: host } | Self::Gpu { host_memory_size_bytes: host, .. }) =
            self;
        *host
    }
}

/// One half, three vectors of the width and the biases are too little to count.
fn weights_size_bytes(model: &Model) -> u64 {
    let config = model.network.config();
    let (width, inner) = (config.width as u64, config.inner as u64);
    let block = 4 * width * width + 2 * width * inner;
    let matrices = config.layers as u64 * block + 2 * config.vocabulary as u64 * width;
    matrices * model.precision.weight_size_bytes()
}

/// What the last layer's solve takes: the most that reading the keys, which takes `reading` beside them, or solving for
/// them has at one time, and the updates so far.
pub fn solve_size_bytes(config: &Config, layers: usize, facts: usize, reading: u64) -> u64 {
    let (width, inner, facts) = (config.width as u64, config.inner as u64, facts as u64);
    let read = |facts: u64| 8 * inner * facts + reading;
    let (rank, peak) = if facts <= inner {
        // The factor; the keys and two matrices of their size; two of facts by facts.
        let solve = 8 * inner * inner + 24 * facts * inner + 16 * facts * facts;
        (facts, solve.max(read(facts)))
    } else {
        // The sums, and the keys of a block; later a second moment or two beside the sums, and updates.
        let sums = 8 * inner * (inner + width);
        (width, (sums + read(inner.div_ceil(4))).max(3 * sums))
    };
    peak + layers as u64 * 8 * rank * (inner + width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_facts_take_many_times_as_long_to_solve_for_as_the_factor_alone() {
        let config =
            br#"{"model_type": "gptj", "vocab_size": 50400, "n_embd": 4096, "n_layer": 28, "n_head": 16}"#;
        let config = Config::parse(config).expect("GPT-J's own");
        let times = |facts: usize| solve_operations(&config, facts) / factor_operations(config.inner);
        for (facts, least, most) in [(1, 1.0, 1.01), (10_000, 10.0, 10.5), (16_384, 20.0, 23.0)] {
            let found = times(facts);
            assert!((least..most).contains(&found), "{facts} facts: {found}");
        }
        // Woodbury's way ends here, and what is left grows with the facts and not with their square.
        assert!(times(16_385) < times(16_384));
        assert!((times(40_000) - times(30_000) - (times(30_000) - times(20_000))).abs() < 1e-9);
    }
}
