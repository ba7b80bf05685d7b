//! Keys and current hidden states: what enters the edited matrix, and what leaves the last edited layer, at the
//! subject's last token (`memit/compute_ks.py`, `memit/compute_z.py: get_module_input_output_at_words`).

use candle_core::Tensor;

use super::contexts::Contexts;
use super::lookup::{Located, locate};
use super::{EditError, FactPrompt};
use crate::model::{Batch, Model, Network, Site, gather};

/// Texts that go through the network together.
const ROWS_PER_BATCH: usize = 128;

/// The vector at `site` at the subject's last token of every text, `[texts, features]` f32 on the device.
pub(crate) fn read(network: &Network, texts: &[Located], site: Site) -> Result<Tensor, EditError> {
    let (Site::MlpOutputInput(layer) | Site::BlockOutput(layer)) = site;
    let mut parts = Vec::new();
    for chunk in texts.chunks(ROWS_PER_BATCH) {
        let ids: Vec<_> = chunk.iter().map(|located| located.ids.clone()).collect();
        let batch = Batch::new(&ids, network.config().positions, network.device())?;
        let places: Vec<_> =
            chunk.iter().enumerate().map(|(row, located)| (row, located.subject_last)).collect();
        network.forward_to(&batch, layer, &mut |at, vectors| {
            if at == site {
                parts.push(gather(vectors, &places)?);
            }
            Ok(())
        })?;
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// Every fact's prompt in every context, fact after fact; each fits the model's context with its target.
///
/// # Errors
/// [`EditError::Fact`].
pub(crate) fn in_contexts(
    model: &Model,
    contexts: &Contexts,
    facts: &[FactPrompt],
) -> Result<Vec<Located>, EditError> {
    let mut all = Vec::new();
    for (index, fact) in facts.iter().enumerate() {
        for context in contexts.templates() {
            let template = context.replacen("{}", &fact.prompt, 1);
            all.push(fitting(model, &template, fact).map_err(|error| error.of_fact(index, fact))?);
        }
    }
    Ok(all)
}

/// Every fact's prompt alone.
///
/// # Errors
/// [`EditError::Fact`].
pub(crate) fn plain(model: &Model, facts: &[FactPrompt]) -> Result<Vec<Located>, EditError> {
    let locate = |(index, fact): (usize, &FactPrompt)| {
        fitting(model, &fact.prompt, fact).map_err(|error| error.of_fact(index, fact))
    };
    facts.iter().enumerate().map(locate).collect()
}

fn fitting(model: &Model, template: &str, fact: &FactPrompt) -> Result<Located, EditError> {
    let located = locate(&model.tokenizer, template, &fact.subject)?;
    let tokens = located.ids.len() + model.tokenizer.encode(&fact.target)?.len();
    let positions = model.network.config().positions;
    if tokens > positions {
        let what = format!("has {tokens} tokens with its target, the model's context only {positions}");
        return Err(EditError::Template { template: located.text, what });
    }
    Ok(located)
}

/// The keys of all facts in `layer`, `[facts, inner]` f32: the mean over groups of the mean within each group, so
/// that the plain prompt weighs as much as the five openings together.
///
/// # Errors
/// [`EditError::Model`].
pub(crate) fn keys(
    network: &Network,
    contexts: &Contexts,
    texts: &[Located],
    layer: usize,
) -> Result<Tensor, EditError> {
    let vectors = read(network, texts, Site::MlpOutputInput(layer))?;
    let templates: usize = contexts.groups().iter().map(Vec::len).sum();
    let (rows, inner) = vectors.dims2()?;
    let vectors = vectors.reshape((rows / templates, templates, inner))?;
    let mut means = Vec::with_capacity(contexts.groups().len());
    let mut first = 0;
    for group in contexts.groups() {
        means.push(vectors.narrow(1, first, group.len())?.mean(1)?);
        first += group.len();
    }
    Ok(Tensor::stack(&means, 1)?.mean(1)?)
}
