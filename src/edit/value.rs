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
//! Facts do not feel each other, so several run as one batch, and of each row only the tokens from the moved one on
//! ([`optimise`]). [`optimise_plainly`] runs one fact over whole rows, in the reference's own manner: the oracle.

use candle_core::{D, Tensor};

use super::contexts::Contexts;
use super::hyperparameters::Hyperparameters;
use super::lookup::{Located, locate};
use super::{EditError, FactPrompt};
use crate::model::{Batch, Model, Suffix, SuffixPass, gather, log_softmax};

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

/// Optimises the values of `facts` together, each as if it were alone; in their order.
///
/// # Errors
/// [`EditError::Template`] or [`EditError::Model`].
pub fn optimise(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    facts: &[FactPrompt],
) -> Result<Vec<Value>, EditError> {
    let rows = Rows::new(model, contexts, facts)?;
    let layer = hyperparameters.value_layer();
    let suffix = Suffix::from_places(&model.network, layer, &rows.batch(model)?, &rows.places())?;
    Task { model, hyperparameters, rows: &rows, suffix }.descend()
}

/// Optimises the value of one fact over whole rows.
///
/// # Errors
/// As [`optimise`].
pub fn optimise_plainly(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    fact: &FactPrompt,
) -> Result<Value, EditError> {
    let rows = Rows::new(model, contexts, std::slice::from_ref(fact))?;
    let layer = hyperparameters.value_layer();
    let suffix = Suffix::whole(&model.network, layer, &rows.batch(model)?, rows.places())?;
    let mut values = Task { model, hyperparameters, rows: &rows, suffix }.descend()?;
    Ok(values.remove(0))
}

/// The rows of several facts: for each its contexts, then the row of its subject's own continuation.
struct Rows {
    located: Vec<Located>,
    /// The target of each fact, in tokens.
    targets: Vec<Vec<u32>>,
}

impl Rows {
    fn new(model: &Model, contexts: &Contexts, facts: &[FactPrompt]) -> Result<Self, EditError> {
        let mut rows = Self { located: Vec::new(), targets: Vec::new() };
        for fact in facts {
            let target = model.tokenizer.encode(&fact.target)?;
            let Some((_, all_but_last)) = target.split_last() else {
                return Err(EditError::Template {
                    template: fact.target.clone(),
                    what: "has no tokens".to_owned(),
                });
            };
            let ending = model.tokenizer.decode(all_but_last)?;
            let templates =
                contexts.templates().map(|context| context.replacen("{}", &fact.prompt, 1) + &ending);
            for template in templates.chain([KL_TEMPLATE.to_owned()]) {
                let located = locate(&model.tokenizer, &template, &fact.subject)?;
                if located.ids.len() < target.len() {
                    let what = format!("is shorter than its target `{}`", fact.target);
                    return Err(EditError::Template { template: located.text, what });
                }
                rows.located.push(located);
            }
            rows.targets.push(target);
        }
        Ok(rows)
    }

    fn facts(&self) -> usize {
        self.targets.len()
    }

    fn per_fact(&self) -> usize {
        self.located.len() / self.facts().max(1)
    }

    fn batch(&self, model: &Model) -> Result<Batch, EditError> {
        let ids: Vec<_> = self.located.iter().map(|located| located.ids.clone()).collect();
        Ok(Batch::new(&ids, model.network.config().positions, model.network.device())?)
    }

    /// The subject's last token in each row.
    fn places(&self) -> Vec<(usize, usize)> {
        self.located.iter().enumerate().map(|(row, located)| (row, located.subject_last)).collect()
    }

    /// Where a fact's contexts predict its target: the last tokens of each row.
    fn predictions(&self, fact: usize) -> impl Iterator<Item = ((usize, usize), u32)> + '_ {
        let first = fact * self.per_fact();
        let target = &self.targets[fact];
        (first..first + self.per_fact() - 1).flat_map(move |row| {
            let start = self.located[row].ids.len() - target.len();
            target.iter().enumerate().map(move |(index, token)| ((row, start + index), *token))
        })
    }

    /// The place of a fact's subject in the row of its own continuation.
    fn continuation(&self, fact: usize) -> (usize, usize) {
        let row = (fact + 1) * self.per_fact() - 1;
        (row, self.located[row].subject_last)
    }
}

/// The descent of several facts.
struct Task<'a> {
    model: &'a Model,
    hyperparameters: &'a Hyperparameters,
    rows: &'a Rows,
    suffix: Suffix<'a>,
}

/// The losses of one forward pass, by fact, and their gradients with respect to block outputs.
struct Loss {
    nll: Vec<f32>,
    kl: Vec<f32>,
    /// `(layer, gradient [rows, tokens, width])`, each layer once.
    gradients: Vec<(usize, Tensor)>,
}

impl Task<'_> {
    fn descend(&self) -> Result<Vec<Value>, EditError> {
        let clean: Vec<Vec<f32>> = self.suffix.clean()?.to_vec2()?;
        let per_fact = self.rows.per_fact();
        // A fact's first row is its plain prompt, whose hidden state the value replaces.
        let mut descents: Vec<Descent> =
            clean.iter().step_by(per_fact).map(|clean| Descent::new(clean, self.hyperparameters)).collect();
        let mut values: Vec<Option<Value>> = vec![None; descents.len()];
        let mut before: Option<Tensor> = None;
        for step in 0..self.hyperparameters.v_num_grad_steps {
            let pass = self.suffix.forward(&self.moves(&descents)?)?;
            let loss = self.loss(&pass, &mut before)?;
            for (fact, descent) in descents.iter().enumerate() {
                if values[fact].is_some() {
                    continue;
                }
                let total = loss.nll[fact] + loss.kl[fact] + descent.weight_decay();
                if total < LOSS_SMALL_ENOUGH || step + 1 == self.hyperparameters.v_num_grad_steps {
                    values[fact] = Some(descent.value(total, loss.nll[fact], step));
                }
            }
            if values.iter().all(Option::is_some) {
                break;
            }
            let direct =
                |layer| loss.gradients.iter().find(|(at, _)| *at == layer).map(|(_, part)| part.clone());
            let gradient: Vec<Vec<f32>> = pass.reverse(&direct)?.to_vec2()?;
            for (fact, rows) in
                gradient.chunks(per_fact).enumerate().filter(|(fact, _)| values[*fact].is_none())
            {
                descents[fact].step(&sum(rows));
            }
        }
        Ok(values.into_iter().flatten().collect())
    }

    /// Each row's move: the delta of its fact, `[rows, width]`.
    fn moves(&self, descents: &[Descent]) -> Result<Tensor, EditError> {
        let width = self.model.network.config().width;
        let moves: Vec<f32> =
            descents.iter().flat_map(|descent| descent.delta.repeat(self.rows.per_fact())).collect();
        Ok(Tensor::from_vec(
            moves,
            (descents.len() * self.rows.per_fact(), width),
            self.model.network.device(),
        )?)
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
        let places: Vec<_> =
            (0..self.rows.facts()).map(|fact| self.suffix.place(self.rows.continuation(fact))).collect();
        let hidden = gather(pass.output(network.config().layers - 1), &places)?;
        let now = log_softmax(&network.logits(&hidden)?)?;
        let before = before.get_or_insert_with(|| now.clone());
        let ratio = (&now - &*before)?;
        let probabilities = now.exp()?;
        let divergence = (&probabilities * &ratio)?.sum_keepdim(D::Minus1)?;
        let factor = self.hyperparameters.kl_factor;
        // d KL / d logits = p * (log p - log p_before - KL)
        let logits = ((probabilities * ratio.broadcast_sub(&divergence)?)? * factor)?;
        let gradient = self.scatter(pass, &places, &network.reverse_logits(&hidden, &logits)?)?;
        Ok(((divergence * factor)?.flatten_all()?.to_vec1()?, gradient))
    }

    /// By fact, the mean over contexts of the mean over target tokens of `-log p`, and the gradient.
    fn nll(&self, pass: &SuffixPass<'_>) -> Result<(Vec<f32>, Tensor), EditError> {
        let network = &self.model.network;
        let mut places = Vec::new();
        let mut targets = Vec::new();
        let mut shares = Vec::new();
        let mut ends = Vec::with_capacity(self.rows.facts());
        for fact in 0..self.rows.facts() {
            let first = places.len();
            for (place, token) in self.rows.predictions(fact) {
                places.push(self.suffix.place(place));
                targets.push(token);
            }
            // Every context has as many target tokens, so the mean of means is one mean.
            let count = places.len() - first;
            shares.resize(places.len(), 1.0 / count as f32);
            ends.push(first..places.len());
        }
        let count = places.len();
        let hidden = gather(pass.output(self.loss_layer()), &places)?;
        let log_probabilities = log_softmax(&network.logits(&hidden)?)?;
        let index = Tensor::from_vec(targets, (count, 1), network.device())?;
        let picked: Vec<f32> = log_probabilities.gather(&index, D::Minus1)?.flatten_all()?.to_vec1()?;
        let mean =
            |range: std::ops::Range<usize>| -picked[range.clone()].iter().sum::<f32>() / range.len() as f32;
        let nll = ends.into_iter().map(mean).collect();
        let shares = Tensor::from_vec(shares, (count, 1), network.device())?;
        let expected = log_probabilities.exp()?.broadcast_mul(&shares)?;
        let logits = expected.scatter_add(&index, &shares.neg()?, D::Minus1)?;
        Ok((nll, self.scatter(pass, &places, &network.reverse_logits(&hidden, &logits)?)?))
    }

    /// Puts gradients `[places, width]` where they belong in `[rows, tokens, width]`, zero elsewhere.
    fn scatter(
        &self,
        pass: &SuffixPass<'_>,
        places: &[(usize, usize)],
        gradient: &Tensor,
    ) -> Result<Tensor, EditError> {
        let (rows, tokens, width) = pass.output(self.loss_layer()).dims3()?;
        let flat: Vec<u32> = places.iter().map(|(row, token)| (row * tokens + token) as u32).collect();
        let index = Tensor::from_vec(flat, places.len(), gradient.device())?;
        let zeros = Tensor::zeros((rows * tokens, width), gradient.dtype(), gradient.device())?;
        Ok(zeros.index_add(&index, gradient, 0)?.reshape((rows, tokens, width))?)
    }
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
