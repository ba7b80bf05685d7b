//! Values: the hidden state that makes the model say the new target (`memit/compute_z.py`).
//!
//! For each fact: six contexts with the prompt, and one row that asks what the subject is. A `delta` is added to the
//! output of the last edited layer at the subject's last token of every row, and follows Adam down
//!
//! ```text
//! loss = mean over contexts of -log p(target)  +  kl_factor * KL(now || before, after "{} is a")
//!        + v_weight_decay * norm(delta) / norm(clean)^2
//! ```
//!
//! Facts do not feel each other, so they run in batches of like lengths, and of each row only the tokens from the
//! moved one on (`PlannedValues`); a fact that is done leaves its batch. [`optimise_plainly`] runs one fact over whole
//! rows, in the reference's own manner: the oracle that tests compare [`optimise`] with.

use candle_core::{D, Tensor};

use super::contexts::Contexts;
use super::estimate::timed;
use super::hyperparameters::Hyperparameters;
use super::kept::ValueLog;
use super::key::{fitting, in_contexts};
use super::lookup::Located;
use super::{EditError, FactPrompt, Progress};
use crate::model::{
    Batch, Model, Suffix, SuffixPass, gather, in_halves, memory_free, on_every_core, power_that_fits,
    scatter, target_gradient,
};

/// Where the reference stops early.
const LOSS_SMALL_ENOUGH: f32 = 5e-2;
/// Asks for the subject's own continuation.
const KL_TEMPLATE: &str = "{} is a";

/// A value and how it was reached.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// The target hidden state `z`, `[width]`.
    pub hidden: Vec<f32>,
    /// The loss it was left at.
    pub loss: f32,
    /// Mean probability of the target over the contexts, `exp(-nll)`.
    pub probability: f32,
    /// Updates taken.
    pub steps: usize,
}

/// Finds the values of all facts that are planned, in their order.
///
/// Batches follow from the facts, the model and the device's memory, not from how many cores there are; `log` holds the
/// batches that earlier runs finished, and gets those of this one.
///
/// # Errors
/// [`EditError::Fact`], [`EditError::Model`] or [`EditError::Checkpoint`].
pub(crate) fn all(
    planned: &PlannedValues<'_>,
    hyperparameters: &Hyperparameters,
    log: Option<&ValueLog>,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<Value>, EditError> {
    let network = &planned.model.network;
    let batches = planned.batches();
    let width = network.config().width;
    let found = on_every_core(network.device(), &batches, |_, batch| {
        let values = match log.and_then(|log| log.batch(batch, width)) {
            Some(values) => values,
            None => {
                let values = planned.descend(batch, hyperparameters)?;
                if let Some(log) = log {
                    log.keep(batch, &values);
                }
                values
            }
        };
        for (&fact, value) in batch.iter().zip(&values) {
            progress(Progress::Value(fact, value));
        }
        Ok::<_, EditError>(values)
    })?;
    let mut values: Vec<Option<Value>> = vec![None; planned.rows.len()];
    for (fact, value) in planned.order.iter().zip(found.into_iter().flatten()) {
        values[*fact] = Some(value);
    }
    Ok(values.into_iter().flatten().collect())
}

/// The values of `facts` as an edit finds them, in their order: for tests, since an edit plans its facts itself.
///
/// # Errors
/// [`EditError::Fact`] or [`EditError::Model`].
#[doc(hidden)]
pub fn optimise(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    facts: &[FactPrompt],
) -> Result<Vec<Value>, EditError> {
    let planned = PlannedValues::new(model, hyperparameters, &in_contexts(model, contexts, facts)?, facts)?;
    all(&planned, hyperparameters, None, &|_| ())
}

/// Optimises the value of one fact over whole rows: for tests, which compare an edit's values with it.
///
/// # Errors
/// As [`optimise`].
#[doc(hidden)]
pub fn optimise_plainly(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    fact: &FactPrompt,
) -> Result<Value, EditError> {
    let facts = std::slice::from_ref(fact);
    let rows = rows_of_facts(model, &in_contexts(model, contexts, facts)?, facts)?;
    let mut values = Task::whole(model, hyperparameters, &rows[0])?.descend()?;
    Ok(values.remove(0))
}

/// The rows of all facts, and the batches that they run in.
pub(crate) struct PlannedValues<'a> {
    model: &'a Model,
    rows: Vec<FactRows>,
    /// The facts by their lengths, so that a batch needs little padding.
    order: Vec<usize>,
    /// How many facts make one batch.
    pub(crate) facts_per_batch: usize,
    fact_size_bytes: usize,
}

/// Activations of a batch stay below this on a CPU, for each core.
const BATCH_SIZE_CPU_BYTES: usize = 64 << 20;
/// On a GPU they take one such part of what is free: what is counted are the activations that the reverse pass needs,
/// and as much again may be at work or between two uses.
const BATCH_GPU_FREE_PARTS: u64 = 2;
/// On a GPU that does not tell.
const BATCH_SIZE_GPU_BYTES: u64 = 8 << 30;
/// Most facts whose values are optimised as one batch; more make matrix products hardly faster. On a CPU a few are
/// enough, and leave batches for every core where facts are few.
const FACTS_PER_BATCH_CPU_MAX: usize = 5;
const FACTS_PER_BATCH_GPU_MAX: usize = 64;

impl<'a> PlannedValues<'a> {
    /// Plans `facts`, whose prompts in every context are given.
    pub(crate) fn new(
        model: &'a Model,
        hyperparameters: &Hyperparameters,
        in_contexts: &[Located],
        facts: &[FactPrompt],
    ) -> Result<Self, EditError> {
        check_loss_layer(hyperparameters, in_contexts, facts)?;
        let rows = rows_of_facts(model, in_contexts, facts)?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&fact| (rows[fact].lengths(), fact));
        let blocks = (model.network.config().layers - 1).saturating_sub(hyperparameters.value_layer()).max(1);
        let fact_size_bytes = fact_size_bytes(model, &rows, blocks);
        let device = model.network.device();
        let facts_per_batch = match device.is_cpu() {
            true => (BATCH_SIZE_CPU_BYTES / fact_size_bytes.max(1)).clamp(1, FACTS_PER_BATCH_CPU_MAX),
            false => facts_per_gpu_batch(memory_free(device), fact_size_bytes as u64),
        };
        Ok(Self { model, rows, order, facts_per_batch, fact_size_bytes })
    }

    /// Goes on in batches of the size that an interrupted run left most values of in `log`, if it left any: as much of
    /// a GPU's memory may not be free again. Of the log only what these batches take stays known.
    pub(crate) fn resume(&mut self, log: &ValueLog) {
        let width = self.model.network.config().width;
        let sizes = log.batch_sizes().into_iter().filter(|size| (1..=FACTS_PER_BATCH_GPU_MAX).contains(size));
        let known = |size: &usize| log.known(self.order.chunks(*size), width);
        let best = sizes.chain([self.facts_per_batch]).max_by_key(known);
        self.facts_per_batch = best.unwrap_or(self.facts_per_batch);
        log.forget_all_but(&self.batches());
    }

    pub(crate) fn batches(&self) -> Vec<&[usize]> {
        self.order.chunks(self.facts_per_batch).collect()
    }

    /// Activations of one batch.
    pub(crate) fn batch_size_bytes(&self) -> usize {
        self.facts_per_batch * self.fact_size_bytes
    }

    fn descend(&self, batch: &[usize], hyperparameters: &Hyperparameters) -> Result<Vec<Value>, EditError> {
        let rows: Vec<&FactRows> = batch.iter().map(|&fact| &self.rows[fact]).collect();
        in_halves(&rows, EditError::is_out_of_memory, &|rows| {
            Task::from_places(self.model, hyperparameters, rows)?.descend()
        })
    }

    /// How long the middle batch takes on one core or a GPU, in seconds.
    pub(crate) fn time_middle_batch(&self, hyperparameters: &Hyperparameters) -> Result<f64, EditError> {
        let batches = self.batches();
        let Some(middle) = batches.get(batches.len() / 2) else { return Ok(0.0) };
        let device = self.model.network.device();
        timed(device, || on_every_core(device, &[middle], |_, batch| self.descend(batch, hyperparameters)))
    }
}

/// Refuses a loss that does not feel the values: it reads the block into whose output they are put, where a token has
/// nothing yet of those before it, and the target begins behind another token than the subject's last.
fn check_loss_layer(
    hyperparameters: &Hyperparameters,
    in_contexts: &[Located],
    facts: &[FactPrompt],
) -> Result<(), EditError> {
    let (loss_layer, value_layer) = (hyperparameters.v_loss_layer, hyperparameters.value_layer());
    let templates = (in_contexts.len() / facts.len().max(1)).max(1);
    let is_felt = |prompt: &Located| prompt.subject_last + 1 == prompt.ids.len();
    let unfelt = in_contexts.chunks(templates).position(|prompts| !prompts.iter().any(is_felt));
    match unfelt.filter(|_| loss_layer <= value_layer) {
        Some(index) => {
            Err(EditError::LossLayer { loss_layer, value_layer }.of_fact(index, &facts[index].subject))
        }
        None => Ok(()),
    }
}

/// Activations of one fact, as they are where the longest facts run together.
fn fact_size_bytes(model: &Model, rows: &[FactRows], blocks: usize) -> usize {
    let most = |of: &dyn Fn(&FactRows) -> usize| rows.iter().map(of).max().unwrap_or(1);
    let (tokens, before) = (most(&|fact| fact.lengths().0), most(&|fact| fact.lengths().1));
    let config = model.network.config();
    // What the slope of a GELU is made from is one vector on a processor and two elsewhere (`Gelu`).
    let inner_vectors = if model.network.device().is_cpu() { 2 } else { 3 };
    // For each token and each block above the value layer the reverse pass needs these of the MLP's inner width and six
    // vectors of the model's, and one of each is at work.
    let own = tokens * (blocks + 1) * (inner_vectors * config.inner + 6 * config.width);
    // Of the tokens before them each block has the keys and values, and once more behind which its own stand.
    let kept = 4 * before * blocks * config.width;
    most(&|fact| fact.rows.len()) * (own + kept) * size_of::<f32>()
}

/// How many facts of `fact_size_bytes` run together on a GPU, of whose memory `free_bytes` are free.
fn facts_per_gpu_batch(free_bytes: Option<u64>, fact_size_bytes: u64) -> usize {
    let room_bytes = free_bytes.map_or(BATCH_SIZE_GPU_BYTES, |free| free / BATCH_GPU_FREE_PARTS);
    power_that_fits(room_bytes, fact_size_bytes, FACTS_PER_BATCH_GPU_MAX)
}

/// The rows of one fact: its contexts, then the row of its subject's own continuation.
struct FactRows {
    /// Its place among the facts, from 0.
    index: usize,
    subject: String,
    rows: Vec<Row>,
    /// The target, in tokens.
    target: Vec<u32>,
}

/// One row in tokens, and which of them is the subject's last.
struct Row {
    ids: Vec<u32>,
    subject_last: usize,
}

/// The rows of every fact, whose prompts in every context are given, fact after fact.
fn rows_of_facts(
    model: &Model,
    in_contexts: &[Located],
    facts: &[FactPrompt],
) -> Result<Vec<FactRows>, EditError> {
    let templates = in_contexts.len() / facts.len().max(1);
    let prompts = in_contexts.chunks(templates.max(1));
    let rows = facts.iter().zip(prompts).enumerate().map(|(index, (fact, prompts))| {
        FactRows::new(model, prompts, index, fact).map_err(|error| error.of_fact(index, &fact.subject))
    });
    rows.collect()
}

impl FactRows {
    /// From the prompt, in every context, of the fact at `index`.
    fn new(model: &Model, prompts: &[Located], index: usize, fact: &FactPrompt) -> Result<Self, EditError> {
        let target = model.tokenizer.encode(&fact.target)?;
        let Some((_, all_but_last)) = target.split_last() else {
            let what = "has no tokens".to_owned();
            return Err(EditError::Template { template: fact.target.clone(), what });
        };
        // Joined as tokens, not as text: the last token may be a part of a character, and what is left of that is none.
        let with_target = |prompt: &Located| Row {
            ids: [&prompt.ids, all_but_last].concat(),
            subject_last: prompt.subject_last,
        };
        let Located { ids, subject_last, .. } = fitting(model, KL_TEMPLATE, &fact.subject, 0)?;
        let continuation = Row { ids, subject_last };
        let rows = prompts.iter().map(with_target).chain([continuation]).collect();
        Ok(Self { index, subject: fact.subject.clone(), rows, target })
    }

    /// Most tokens from the subject's last on, and most before it.
    fn lengths(&self) -> (usize, usize) {
        let from_subject = |row: &Row| row.ids.len() - row.subject_last;
        let before = self.rows.iter().map(|row| row.subject_last).max().unwrap_or(0);
        (self.rows.iter().map(from_subject).max().unwrap_or(0), before)
    }

    /// Where the contexts predict the target: the last tokens of each row.
    fn predictions(&self) -> impl Iterator<Item = ((usize, usize), u32)> + '_ {
        let contexts = &self.rows[..self.rows.len() - 1];
        contexts.iter().enumerate().flat_map(|(row, Row { ids, .. })| {
            let start = ids.len() - self.target.len();
            self.target.iter().enumerate().map(move |(index, token)| ((row, start + index), *token))
        })
    }

    /// The place of the subject in the row of its own continuation.
    fn continuation(&self) -> (usize, usize) {
        let row = self.rows.len() - 1;
        (row, self.rows[row].subject_last)
    }
}

/// The rows of `facts` as one batch, and the subject's last token in each.
fn batch_of(model: &Model, facts: &[&FactRows]) -> Result<(Batch, Vec<(usize, usize)>), EditError> {
    let rows = || facts.iter().flat_map(|fact| &fact.rows);
    let ids: Vec<_> = rows().map(|row| row.ids.clone()).collect();
    let places = rows().enumerate().map(|(index, row)| (index, row.subject_last)).collect();
    Ok((Batch::new(&ids, model.network.config().positions, model.network.device())?, places))
}

/// The descent of several facts.
struct Task<'a> {
    model: &'a Model,
    hyperparameters: &'a Hyperparameters,
    /// The facts still at it, in the order of the suffix's rows.
    facts: Vec<&'a FactRows>,
    suffix: Suffix<'a>,
}

/// The losses of one forward pass, by fact, and their gradients with respect to block outputs.
struct Loss {
    nll: Vec<f32>,
    kl: Vec<f32>,
    /// `(layer, gradient [rows, tokens, width])`, each layer once.
    gradients: Vec<(usize, Tensor)>,
}

impl<'a> Task<'a> {
    /// Over the tokens that feel the value.
    fn from_places(
        model: &'a Model,
        hyperparameters: &'a Hyperparameters,
        facts: &[&'a FactRows],
    ) -> Result<Self, EditError> {
        let (batch, places) = batch_of(model, facts)?;
        let suffix = Suffix::from_places(&model.network, hyperparameters.value_layer(), &batch, &places)?;
        Ok(Self { model, hyperparameters, facts: facts.to_vec(), suffix })
    }

    /// Over whole rows.
    fn whole(
        model: &'a Model,
        hyperparameters: &'a Hyperparameters,
        fact: &'a FactRows,
    ) -> Result<Self, EditError> {
        let (batch, places) = batch_of(model, &[fact])?;
        let suffix = Suffix::whole(&model.network, hyperparameters.value_layer(), &batch, places)?;
        Ok(Self { model, hyperparameters, facts: vec![fact], suffix })
    }

    fn descend(mut self) -> Result<Vec<Value>, EditError> {
        let clean: Vec<Vec<f32>> = self.suffix.clean()?.to_vec2()?;
        let per_fact = self.rows_per_fact();
        // A fact's first row is its plain prompt, whose hidden state the value replaces.
        let mut descents: Vec<(usize, Descent)> = clean
            .iter()
            .step_by(per_fact)
            .map(|clean| Descent::new(clean, self.hyperparameters))
            .enumerate()
            .collect();
        let mut values: Vec<Option<Value>> = vec![None; descents.len()];
        let mut before: Option<Tensor> = None;
        for step in 0..self.hyperparameters.v_num_grad_steps {
            let pass = self.suffix.forward(&self.moves(&descents)?)?;
            let loss = self.loss(&pass, &mut before)?;
            let mut goes_on = vec![true; descents.len()];
            for (index, (fact, descent)) in descents.iter().enumerate() {
                let total = loss.nll[index] + loss.kl[index] + descent.weight_decay();
                if !total.is_finite() {
                    let FactRows { index, subject, .. } = self.facts[index];
                    return Err(EditError::NotANumber { steps: step }.of_fact(*index, subject));
                }
                if total < LOSS_SMALL_ENOUGH || step + 1 == self.hyperparameters.v_num_grad_steps {
                    values[*fact] = Some(descent.value(total, loss.nll[index], step));
                    goes_on[index] = false;
                }
            }
            if !goes_on.contains(&true) {
                break;
            }
            let direct =
                |layer| loss.gradients.iter().find(|(at, _)| *at == layer).map(|(_, part)| part.clone());
            let gradient: Vec<Vec<f32>> = pass.reverse(&direct)?.to_vec2()?;
            for ((_, descent), rows) in descents.iter_mut().zip(gradient.chunks(per_fact)) {
                descent.step(&sum(rows));
            }
            drop(pass);
            if goes_on.contains(&false) {
                before = before.map(|before| rows_of(&before, &goes_on)).transpose()?;
                self.leave(&goes_on)?;
                retain_marked(&mut descents, &goes_on);
            }
        }
        Ok(values.into_iter().flatten().collect())
    }

    fn rows_per_fact(&self) -> usize {
        self.facts.first().map_or(1, |fact| fact.rows.len())
    }

    /// Goes on with some of the facts only.
    fn leave(&mut self, goes_on: &[bool]) -> Result<(), EditError> {
        let per_fact = self.rows_per_fact();
        let rows: Vec<usize> = (0..goes_on.len() * per_fact).filter(|row| goes_on[row / per_fact]).collect();
        self.suffix.keep(&rows)?;
        retain_marked(&mut self.facts, goes_on);
        Ok(())
    }

    /// Where `(row, token)` of a fact stands in the outputs of the suffix.
    fn place(&self, fact: usize, (row, token): (usize, usize)) -> (usize, usize) {
        self.suffix.place((fact * self.rows_per_fact() + row, token))
    }

    /// Each row's move: the delta of its fact, `[rows, width]`.
    fn moves(&self, descents: &[(usize, Descent)]) -> Result<Tensor, EditError> {
        let width = self.model.network.config().width;
        let per_fact = self.rows_per_fact();
        let moves: Vec<f32> =
            descents.iter().flat_map(|(_, descent)| descent.delta.repeat(per_fact)).collect();
        Ok(Tensor::from_vec(moves, (descents.len() * per_fact, width), self.model.network.device())?)
    }

    /// The loss without weight decay; `before` keeps the first pass's continuations of the subjects.
    fn loss(&self, pass: &SuffixPass<'_>, before: &mut Option<Tensor>) -> Result<Loss, EditError> {
        let last = self.model.network.config().layers - 1;
        let (nll, of_nll) = self.nll(pass)?;
        let (kl, of_kl) = self.kl(pass, before)?;
        let loss_layer = self.loss_layer();
        let gradients = if loss_layer == last {
            vec![(last, (of_nll + of_kl)?)]
        } else {
            vec![(loss_layer, of_nll), (last, of_kl)]
        };
        Ok(Loss { nll, kl, gradients })
    }

    fn loss_layer(&self) -> usize {
        self.hyperparameters.v_loss_layer.max(self.hyperparameters.value_layer())
    }

    /// By fact, `kl_factor` times the divergence of the subject's continuation from what it was, and the gradient.
    fn kl(
        &self,
        pass: &SuffixPass<'_>,
        before: &mut Option<Tensor>,
    ) -> Result<(Vec<f32>, Tensor), EditError> {
        let network = &self.model.network;
        let facts = self.facts.iter().enumerate();
        let places: Vec<_> = facts.map(|(index, fact)| self.place(index, fact.continuation())).collect();
        let output = pass.output(network.config().layers - 1);
        let hidden = gather(output, &places)?;
        let [now, probabilities] = network.probabilities(&hidden)?;
        let before = before.get_or_insert_with(|| now.clone());
        let ratio = (&now - &*before)?;
        let divergence = (&probabilities * &ratio)?.sum_keepdim(D::Minus1)?;
        let factor = self.hyperparameters.kl_factor;
        // d KL / d logits = p * (log p - log p_before - KL)
        let logits = ((probabilities * ratio.broadcast_sub(&divergence)?)? * factor)?;
        let gradient = scatter(&network.reverse_logits(&hidden, &logits)?, &places, output)?;
        Ok(((divergence * factor)?.flatten_all()?.to_vec1()?, gradient))
    }

    /// By fact, the mean over contexts of the mean over target tokens of `-log p`, and the gradient.
    fn nll(&self, pass: &SuffixPass<'_>) -> Result<(Vec<f32>, Tensor), EditError> {
        let network = &self.model.network;
        let mut places = Vec::new();
        let mut targets = Vec::new();
        let mut shares = Vec::new();
        let mut ends = Vec::with_capacity(self.facts.len());
        for (index, fact) in self.facts.iter().enumerate() {
            let first = places.len();
            for (place, token) in fact.predictions() {
                places.push(self.place(index, place));
                targets.push(token);
            }
            // Every context has as many target tokens, so the mean of means is one mean.
            let count = places.len() - first;
            shares.resize(places.len(), 1.0 / count as f32);
            ends.push(first..places.len());
        }
        let count = places.len();
        let output = pass.output(self.loss_layer());
        let hidden = gather(output, &places)?;
        let [logarithms, probabilities] = network.probabilities(&hidden)?;
        let logits = target_gradient(&probabilities, &targets, &shares)?;
        let index = Tensor::from_vec(targets, (count, 1), network.device())?;
        let picked: Vec<f32> = logarithms.gather(&index, D::Minus1)?.flatten_all()?.to_vec1()?;
        let mean =
            |range: std::ops::Range<usize>| -picked[range.clone()].iter().sum::<f32>() / range.len() as f32;
        let nll = ends.into_iter().map(mean).collect();
        Ok((nll, scatter(&network.reverse_logits(&hidden, &logits)?, &places, output)?))
    }
}

/// Leaves of `items` those that are marked.
fn retain_marked<T>(items: &mut Vec<T>, marked: &[bool]) {
    let mut marks = marked.iter();
    items.retain(|_| marks.next() == Some(&true));
}

/// The rows of `tensor` that are marked.
fn rows_of(tensor: &Tensor, marked: &[bool]) -> candle_core::Result<Tensor> {
    let rows: Vec<u32> = (0_u32..).zip(marked).filter(|(_, marked)| **marked).map(|(row, _)| row).collect();
    tensor.index_select(&Tensor::from_vec(rows.clone(), rows.len(), tensor.device())?, 0)
}

/// The sum of a fact's rows: one delta moves them all.
fn sum(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut total = vec![0.0; rows.first().map_or(0, Vec::len)];
    for row in rows {
        total.iter_mut().zip(row).for_each(|(total, entry)| *total += entry);
    }
    total
}

/// Adam on `delta`, then back onto the ball that the clean hidden state allows; f32 as in the reference.
struct Descent {
    clean: Vec<f32>,
    delta: Vec<f32>,
    first_moment: Vec<f32>,
    second_moment: Vec<f32>,
    steps: i32,
    learning_rate: f64,
    weight_decay: f64,
    clean_norm: f64,
    norm_max: f64,
}

/// Adam's constants, PyTorch's defaults.
const ADAM_BETA_1: f64 = 0.9;
const ADAM_BETA_2: f64 = 0.999;
const ADAM_EPSILON: f64 = 1e-8;

impl Descent {
    fn new(clean: &[f32], hyperparameters: &Hyperparameters) -> Self {
        let clean_norm = norm(clean);
        Self {
            clean: clean.to_vec(),
            delta: vec![0.0; clean.len()],
            first_moment: vec![0.0; clean.len()],
            second_moment: vec![0.0; clean.len()],
            steps: 0,
            learning_rate: hyperparameters.v_lr,
            weight_decay: hyperparameters.v_weight_decay,
            clean_norm,
            norm_max: hyperparameters.clamp_norm_factor * clean_norm,
        }
    }

    /// Where the hidden state has come to.
    fn value(&self, loss: f32, nll: f32, steps: usize) -> Value {
        let hidden = self.clean.iter().zip(&self.delta).map(|(clean, delta)| clean + delta).collect();
        Value { hidden, loss, probability: (-nll).exp(), steps }
    }

    /// `v_weight_decay * norm(delta) / norm(clean)^2`: the norm of delta is not squared.
    fn weight_decay(&self) -> f32 {
        (self.weight_decay * norm(&self.delta) / self.clean_norm.powi(2)) as f32
    }

    /// One step along `gradient`, the gradient of the loss without weight decay.
    fn step(&mut self, gradient: &[f32]) {
        self.steps += 1;
        let size = norm(&self.delta);
        // The norm has no slope at 0; PyTorch takes 0 there.
        let decay = if size > 0.0 { self.weight_decay / (self.clean_norm.powi(2) * size) } else { 0.0 };
        let correction_1 = 1.0 - ADAM_BETA_1.powi(self.steps);
        let correction_2 = 1.0 - ADAM_BETA_2.powi(self.steps);
        let step_size = (self.learning_rate / correction_1) as f32;
        let root_2 = correction_2.sqrt() as f32;
        for (index, gradient) in gradient.iter().enumerate() {
            let gradient = gradient + decay as f32 * self.delta[index];
            let first = &mut self.first_moment[index];
            *first += (gradient - *first) * (1.0 - ADAM_BETA_1) as f32;
            let second = &mut self.second_moment[index];
            *second = *second * ADAM_BETA_2 as f32 + gradient * gradient * (1.0 - ADAM_BETA_2) as f32;
            self.delta[index] -= step_size * *first / (second.sqrt() / root_2 + ADAM_EPSILON as f32);
        }
        let size = norm(&self.delta);
        if size > self.norm_max {
            let scale = (self.norm_max / size) as f32;
            self.delta.iter_mut().for_each(|entry| *entry *= scale);
        }
    }
}

fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|entry| f64::from(*entry).powi(2)).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;

    fn world_model() -> Model {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        Model::open(&folder, &Device::Cpu, &|_| ()).expect("the fixture is a model")
    }

    /// The rows of facts, each a subject with a target.
    fn rows(model: &Model, facts: &[(&str, &str)]) -> Result<Vec<FactRows>, EditError> {
        let contexts = [["{}".to_owned()], ["The weather was fine. {}".to_owned()]];
        let contexts = Contexts::new(contexts.map(Vec::from).to_vec())?;
        let fact = |(subject, target): &(&str, &str)| FactPrompt {
            prompt: "{} performs on the".to_owned(),
            subject: (*subject).to_owned(),
            target: (*target).to_owned(),
        };
        let facts: Vec<FactPrompt> = facts.iter().map(fact).collect();
        rows_of_facts(model, &in_contexts(model, &contexts, &facts)?, &facts)
    }

    #[test]
    fn a_target_stands_in_its_rows_token_by_token() {
        let model = world_model();
        let encode = |text: &str| model.tokenizer.encode(text).expect("text");
        for (subject, target, is_as_in_the_reference) in [
            ("Pavel Prestellman", " flute", true),
            (" Pavel Prestellman ", " flute", true),
            // Longer than the row of the subject's own continuation, where no target stands.
            ("Bo", " grand piano and", true),
            ("Bo", " {} of [0, 1]; {", true),
            // The reference cuts these within a character.
            ("Bo", " a\u{e9}", false),
            ("Bo", " \u{65e5}\u{672c}", false),
            ("Bo", " \u{1f600}", false),
        ] {
            let rows = rows(&model, &[(subject, target)]).expect(target).remove(0);
            let (last, ids) = rows.target.split_last().expect("tokens");
            let subject = subject.trim();
            let prompts = [("", subject.to_owned()), ("The weather was fine.", format!(" {subject}"))];
            for (row, (before, word)) in prompts.iter().enumerate() {
                let prompt = format!("{before}{word} performs on the");
                assert_eq!(rows.rows[row].ids, [encode(&prompt), ids.to_vec()].concat(), "{prompt}{target}");
                assert_eq!(rows.rows[row].subject_last + 1, encode(before).len() + encode(word).len());
                let joined = encode(&(prompt.clone() + &model.tokenizer.decode(ids).expect("ids")));
                assert_eq!(joined == rows.rows[row].ids, is_as_in_the_reference, "{prompt}{target}");
            }
            for ((row, place), token) in rows.predictions() {
                let predicted = rows.rows[row].ids.get(place + 1).unwrap_or(last);
                assert_eq!(*predicted, token, "{target}: row {row}, token {place}");
            }
            assert_eq!(rows.rows[2].ids, encode(&format!("{subject} is a")));
        }
        let error = rows(&model, &[("Bo", " piano"), ("Ann", "")]).err().expect("a target without tokens");
        let cause = std::error::Error::source(&error).expect("what is wrong with it").to_string();
        assert_eq!((error.to_string(), cause), ("fact 2, `Ann`".to_owned(), "`` has no tokens".to_owned()));
    }

    #[test]
    fn a_gpu_runs_as_many_facts_together_as_half_of_its_free_memory_holds() {
        // GPT-J's facts take some 480 MiB each.
        const FACT_SIZE_BYTES: u64 = 480 << 20;
        for (free_gib, expected) in
            [(0, 1), (1, 1), (4, 4), (16, 16), (24, 16), (44, 32), (60, 64), (140, 64)]
        {
            let found = facts_per_gpu_batch(Some(free_gib << 30), FACT_SIZE_BYTES);
            assert_eq!(found, expected, "{free_gib} GiB are free");
        }
        assert_eq!(facts_per_gpu_batch(None, FACT_SIZE_BYTES), 16);
    }
}
