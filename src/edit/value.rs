//! Values: the hidden state that makes the model say the new target (`memit/compute_z.py`).
//!
//! One fact at a time: six contexts with the prompt, and one row that asks what the subject is. A `delta` is added
//! to the output of the last edited layer at the subject's last token of every row, and follows Adam down
//!
//! ```text
//! loss = mean over contexts of -log p(target)  +  kl_factor * KL(now || before, after "{} is a")
//!        + v_weight_decay * norm(delta) / norm(clean)^2
//! ```
//!
//! This is the plain path, in the reference's own order of steps; faster ones are held against it.

use candle_core::{D, Tensor};

use super::contexts::Contexts;
use super::hyperparameters::Hyperparameters;
use super::lookup::{Located, locate};
use super::{EditError, FactPrompt};
use crate::model::{Batch, Model, Site, Suffix, SuffixPass, gather, log_softmax};

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

/// Optimises the value of one fact.
///
/// # Errors
/// [`EditError::Template`] or [`EditError::Model`].
pub fn optimise(
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    fact: &FactPrompt,
) -> Result<Value, EditError> {
    let task = Task::new(model, hyperparameters, contexts, fact)?;
    let clean = task.clean()?;
    let mut descent = Descent::new(&clean, hyperparameters);
    let suffix = task.suffix()?;
    let mut before: Option<Tensor> = None;
    for step in 0.. {
        let delta = Tensor::from_slice(&descent.delta, descent.delta.len(), model.network.device())?;
        let pass = suffix.forward(&delta)?;
        let loss = task.loss(&pass, &mut before)?;
        let total = loss.nll + loss.kl + descent.weight_decay();
        if total < LOSS_SMALL_ENOUGH || step + 1 >= hyperparameters.v_num_grad_steps {
            let hidden = clean.iter().zip(&descent.delta).map(|(clean, delta)| clean + delta).collect();
            return Ok(Value { hidden, loss: total, probability: (-loss.nll).exp(), steps: step });
        }
        let gradient = pass
            .reverse(&|layer| loss.gradients.iter().find(|(at, _)| *at == layer).map(|(_, g)| g.clone()))?;
        descent.step(&gradient.to_vec1()?);
    }
    unreachable!("the loop returns at its last step")
}

/// The rows of one fact and where they are read.
struct Task<'a> {
    model: &'a Model,
    hyperparameters: &'a Hyperparameters,
    /// Clean output of the value layer, `[rows, tokens, width]`.
    hidden: Tensor,
    /// The subject's last token in each row.
    places: Vec<(usize, usize)>,
    target: Vec<u32>,
    /// Where the rewriting rows predict the target, row after row.
    predictions: Vec<(usize, usize)>,
}

/// The loss of one forward pass and its gradients with respect to block outputs.
struct Loss {
    nll: f32,
    kl: f32,
    /// `(layer, gradient [rows, tokens, width])`; a layer may stand twice.
    gradients: Vec<(usize, Tensor)>,
}

impl<'a> Task<'a> {
    fn new(
        model: &'a Model,
        hyperparameters: &'a Hyperparameters,
        contexts: &Contexts,
        fact: &FactPrompt,
    ) -> Result<Self, EditError> {
        let target = model.tokenizer.encode(&fact.target)?;
        let Some((_, all_but_last)) = target.split_last() else {
            return Err(EditError::Template {
                template: fact.target.clone(),
                what: "has no tokens".to_owned(),
            });
        };
        let ending = model.tokenizer.decode(all_but_last)?;
        let templates = contexts.templates().map(|context| context.replacen("{}", &fact.prompt, 1) + &ending);
        let rows: Vec<Located> = templates
            .chain([KL_TEMPLATE.to_owned()])
            .map(|template| locate(&model.tokenizer, &template, &fact.subject))
            .collect::<Result<_, _>>()?;
        let places: Vec<_> =
            rows.iter().enumerate().map(|(row, located)| (row, located.subject_last)).collect();
        let mut predictions = Vec::new();
        for (row, located) in rows.iter().enumerate().take(rows.len() - 1) {
            let Some(first) = located.ids.len().checked_sub(target.len()) else {
                let what = format!("is shorter than its target `{}`", fact.target);
                return Err(EditError::Template { template: located.text.clone(), what });
            };
            predictions.extend((first..located.ids.len()).map(|token| (row, token)));
        }
        let ids: Vec<_> = rows.into_iter().map(|located| located.ids).collect();
        let batch = Batch::new(&ids, model.network.config().positions, model.network.device())?;
        let layer = hyperparameters.value_layer();
        let hidden = model.network.forward_to(&batch, layer, &mut |_: Site, _: &Tensor| Ok(()))?;
        Ok(Self { model, hyperparameters, hidden, places, target, predictions })
    }

    /// The hidden state that the value replaces: row 0 is the plain prompt.
    fn clean(&self) -> Result<Vec<f32>, EditError> {
        Ok(gather(&self.hidden, &self.places[..1])?.squeeze(0)?.to_vec1()?)
    }

    fn suffix(&self) -> Result<Suffix<'a>, EditError> {
        let layer = self.hyperparameters.value_layer();
        Ok(Suffix::new(&self.model.network, layer, self.hidden.clone(), self.places.clone())?)
    }

    /// The loss without weight decay; `before` keeps the first pass's continuation of the subject.
    fn loss(&self, pass: &SuffixPass<'_>, before: &mut Option<Tensor>) -> Result<Loss, EditError> {
        let layers = self.model.network.config().layers;
        let (nll, nll_gradient) = self.nll(pass)?;
        let kl_place =
            *self.places.last().expect("the row of the subject's own continuation is always there");
        let hidden = gather(pass.output(layers - 1), &[kl_place])?;
        let now = log_softmax(&self.model.network.logits(&hidden)?)?;
        let before = before.get_or_insert_with(|| now.clone());
        let ratio = (&now - &*before)?;
        let weighted = (now.exp()? * &ratio)?;
        let divergence = weighted.sum_all()?.to_scalar::<f32>()?;
        let factor = self.hyperparameters.kl_factor;
        // d KL / d logits = p * (log p - log p_before - KL)
        let logits = ((now.exp()? * (ratio - f64::from(divergence))?)? * factor)?;
        let kl_gradient = self.model.network.reverse_logits(&hidden, &logits)?;
        let gradients = vec![
            (self.loss_layer(), self.scatter(pass, &self.predictions, &nll_gradient)?),
            (layers - 1, self.scatter(pass, &[kl_place], &kl_gradient)?),
        ];
        Ok(Loss { nll, kl: factor as f32 * divergence, gradients: merge(gradients)? })
    }

    fn loss_layer(&self) -> usize {
        self.hyperparameters.v_loss_layer.max(self.hyperparameters.value_layer())
    }

    /// Mean over rows of the mean over target tokens of `-log p`, and its gradient at the predicting places.
    fn nll(&self, pass: &SuffixPass<'_>) -> Result<(f32, Tensor), EditError> {
        let network = &self.model.network;
        let hidden = gather(pass.output(self.loss_layer()), &self.predictions)?;
        let log_probabilities = log_softmax(&network.logits(&hidden)?)?;
        let count = self.predictions.len();
        let targets: Vec<u32> = self.target.iter().copied().cycle().take(count).collect();
        let index = Tensor::from_vec(targets, (count, 1), network.device())?;
        let picked = log_probabilities.gather(&index, D::Minus1)?;
        let nll = -picked.mean_all()?.to_scalar::<f32>()?;
        let share = 1.0 / count as f64;
        let ones = Tensor::full(share as f32, (count, 1), network.device())?;
        let logits = (log_probabilities.exp()? * share)?.scatter_add(&index, &ones.neg()?, D::Minus1)?;
        Ok((nll, network.reverse_logits(&hidden, &logits)?))
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
        let zeros =
            gradient.zeros_like()?.narrow(0, 0, 1)?.broadcast_as((rows * tokens, width))?.contiguous()?;
        Ok(zeros.index_add(&index, gradient, 0)?.reshape((rows, tokens, width))?)
    }
}

/// Adds up the gradients of one layer.
fn merge(gradients: Vec<(usize, Tensor)>) -> Result<Vec<(usize, Tensor)>, EditError> {
    let mut merged: Vec<(usize, Tensor)> = Vec::new();
    for (layer, gradient) in gradients {
        match merged.iter_mut().find(|(at, _)| *at == layer) {
            Some((_, sum)) => *sum = (&*sum + gradient)?,
            None => merged.push((layer, gradient)),
        }
    }
    Ok(merged)
}

/// Adam on `delta`, then back onto the ball that the clean hidden state allows; f32 as in the reference.
struct Descent {
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
