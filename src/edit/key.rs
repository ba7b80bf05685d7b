//! Keys and current hidden states: what enters the edited matrix, and what leaves the last edited layer, at the
//! subject's last token (`memit/compute_ks.py`, `memit/compute_z.py: get_module_input_output_at_words`).

use candle_core::Tensor;
use faer::Mat;

use super::contexts::Contexts;
use super::lookup::{Located, locate};
use super::{EditError, FactPrompt};
use crate::model::{Batch, Model, Network, Site, gather, in_halves, on_every_core};

/// Texts that go through the network together: on a CPU, by one core.
pub(crate) const ROWS_PER_BATCH: usize = 128;

/// The vector at `site` at the subject's last token of every text, `[texts, features]` f32 on the device.
///
/// What follows the subject does not reach it, so each text is read up to there.
pub(crate) fn read(network: &Network, texts: &[Located], site: Site) -> Result<Tensor, EditError> {
    let (Site::MlpOutputInput(layer) | Site::BlockOutput(layer)) = site;
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&index| texts[index].subject_last);
    let batches: Vec<&[usize]> = order.chunks(ROWS_PER_BATCH).collect();
    let read = |indices: &[usize]| {
        let located = || indices.iter().map(|&index| &texts[index]);
        let ids: Vec<_> = located().map(|located| located.ids[..=located.subject_last].to_vec()).collect();
        let batch = Batch::new(&ids, network.config().positions, network.device())?;
        let places: Vec<_> =
            located().enumerate().map(|(row, located)| (row, located.subject_last)).collect();
        let mut found = None;
        network.forward_to(&batch, layer, &mut |at, vectors| {
            if at == site {
                found = Some(gather(vectors, &places)?);
            }
            Ok(())
        })?;
        Ok(Vec::from_iter(found))
    };
    let parts = on_every_core(network.device(), &batches, |_, indices| {
        in_halves(indices, EditError::is_out_of_memory, &read)
    })?;
    let sorted = Tensor::cat(&parts.concat(), 0)?;
    let mut places = vec![0_u32; texts.len()];
    order.iter().enumerate().for_each(|(place, &index)| places[index] = place as u32);
    Ok(sorted.index_select(&Tensor::from_vec(places, texts.len(), network.device())?, 0)?)
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
            all.push(
                with_target(model, &template, fact).map_err(|error| error.of_fact(index, &fact.subject))?,
            );
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
        with_target(model, &fact.prompt, fact).map_err(|error| error.of_fact(index, &fact.subject))
    };
    facts.iter().enumerate().map(locate).collect()
}

fn with_target(model: &Model, template: &str, fact: &FactPrompt) -> Result<Located, EditError> {
    fitting(model, template, &fact.subject, model.tokenizer.encode(&fact.target)?.len())
}

/// `subject` in `template`, which the model's context has room for, and for `more` tokens behind it.
pub(super) fn fitting(
    model: &Model,
    template: &str,
    subject: &str,
    more: usize,
) -> Result<Located, EditError> {
    let located = locate(&model.tokenizer, template, subject)?;
    let tokens = located.ids.len() + more;
    let positions = model.network.config().positions;
    if tokens > positions {
        let and_target = if more > 0 { " with its target" } else { "" };
        let what = format!("has {tokens} tokens{and_target}, the model's context only {positions}");
        return Err(EditError::Template { template: located.text, what });
    }
    Ok(located)
}

/// Facts whose keys in every context are on the device together.
pub(crate) const FACTS_PER_BLOCK: usize = 1024;

/// The keys of all facts in `layer`, `[facts, inner]` f64 on the host.
///
/// # Errors
/// [`EditError::Model`].
pub(crate) fn keys(
    network: &Network,
    contexts: &Contexts,
    texts: &[Located],
    layer: usize,
) -> Result<Mat<f64>, EditError> {
    let (templates, inner) = (contexts.templates().count().max(1), network.config().inner);
    let mut keys = Mat::zeros(texts.len() / templates, inner);
    let mut row = 0;
    for texts in texts.chunks(FACTS_PER_BLOCK * templates) {
        let block: Vec<f32> = means(network, contexts, texts, layer)?.flatten_all()?.to_vec1()?;
        for key in block.chunks(inner) {
            key.iter().enumerate().for_each(|(column, entry)| keys[(row, column)] = f64::from(*entry));
            row += 1;
        }
    }
    Ok(keys)
}

/// The keys of some facts, `[facts, inner]` f32 on the device: the mean over groups of the mean within each group, so
/// that the plain prompt weighs as much as the five openings together.
fn means(
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
