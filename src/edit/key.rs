//! Keys and current hidden states: what enters the edited matrix, and what leaves the last edited layer, at the
//! subject's last token (`memit/compute_ks.py`, `memit/compute_z.py: get_module_input_output_at_words`).

use candle_core::Tensor;
use faer::Mat;

use super::contexts::Contexts;
use super::lookup::{Located, locate};
use super::{EditError, FactPrompt};
use crate::model::{
    Batch, CORE_SIZE_BYTES, Config, Device, Model, Network, Site, gather, in_halves, on_every_core,
};

/// Most texts that go through the network together.
const ROWS_PER_BATCH_MAX: usize = 128;

/// The texts, by their indices, that go through the network together: on a CPU by one core, and as many as it may have
/// memory for.
pub(crate) fn batches(config: &Config, device: &Device, texts: &[Located]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&index| texts[index].subject_last);
    let mut batches = Vec::new();
    while !order.is_empty() {
        let fits = |rows: &usize| {
            let longest = &texts[order[rows - 1]];
            !device.is_cpu() || rows_size_bytes(config, *rows, longest) <= CORE_SIZE_BYTES
        };
        let rows = (1..=order.len().min(ROWS_PER_BATCH_MAX)).take_while(fits).count().max(1);
        batches.push(order.drain(..rows).collect());
    }
    batches
}

/// What the largest of the `batches` of `texts` takes in memory.
pub(crate) fn batch_size_bytes(config: &Config, texts: &[Located], batches: &[Vec<usize>]) -> u64 {
    let of_batch = |batch: &Vec<usize>| {
        batch.last().map_or(0, |&longest| rows_size_bytes(config, batch.len(), &texts[longest]))
    };
    batches.iter().map(of_batch).max().unwrap_or(0)
}

/// What so many rows take that are read as far as `longest` is: while a block is at work, three vectors of the MLP's
/// inner width for each token, seven of the model's, and what its heads see of the row, twice.
fn rows_size_bytes(config: &Config, rows: usize, longest: &Located) -> u64 {
    let tokens = longest.subject_last + 1;
    let token = 3 * config.inner + 7 * config.width + 2 * config.heads * tokens;
    (rows * tokens * token * size_of::<f32>()) as u64
}

/// The vector at `site` at the subject's last token of every text, `[texts, features]` f32 on the device.
///
/// What follows the subject does not reach it, so each text is read up to there.
pub(crate) fn read(network: &Network, texts: &[Located], site: Site) -> Result<Tensor, EditError> {
    let (Site::MlpOutputInput(layer) | Site::BlockOutput(layer)) = site;
    let batches = batches(network.config(), network.device(), texts);
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
    batches.iter().flatten().enumerate().for_each(|(place, &index)| places[index] = place as u32);
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
/// [`EditError::Model`]; [`EditError::NotANumber`] where a key is none.
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
        if !block.iter().all(|entry| entry.is_finite()) {
            return Err(EditError::NotANumber { steps: 0 });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_weights_that_hold_nan_are_refused() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let model = Model::open(&folder, &Device::Cpu, &|_| ()).expect("the fixture is a model");
        let weight = model.network.mlp_output(0).expect("a layer");
        let nan = (weight.ones_like().expect("ones") * f64::NAN).expect("numbers");
        let broken =
            model.network.with_tensor(&model.network.mlp_output_name(0), nan).expect("the same shape");
        let contexts = Contexts::new(vec![vec!["{}".to_owned()]]).expect("contexts");
        let [prompt, subject, target] = ["{} plays", "Ann", " chess"].map(str::to_owned);
        let texts = in_contexts(&model, &contexts, &[FactPrompt { prompt, subject, target }]).expect("texts");
        assert!(keys(&broken, &contexts, &texts, 0).is_ok(), "its own key does not feel it");
        let refused = keys(&broken, &contexts, &texts, 1).expect_err("no numbers").to_string();
        assert_eq!(refused, "the model's output is not a number; its weights hold NaN or infinities");
    }

    #[test]
    fn a_core_reads_as_many_texts_together_as_it_may_have_memory_for() {
        let texts = |counts: &[(usize, usize)]| -> Vec<Located> {
            let text = |tokens: usize| Located {
                text: String::new(),
                ids: vec![0; tokens],
                subject_last: tokens - 1,
            };
            counts.iter().flat_map(|&(count, tokens)| vec![text(tokens); count]).collect()
        };
        let config = |width: usize| {
            let text = format!(
                r#"{{"model_type": "gptj", "vocab_size": 50400, "n_embd": {width}, "n_layer": 28, "n_head": 16,
                "rotary_dim": 8}}"#
            );
            Config::parse(text.as_bytes()).expect("a config")
        };
        let (large, small) = (config(4096), config(128));
        let texts = texts(&[(1, 1000), (30, 40), (130, 10)]);
        let rows = |config: &Config| -> Vec<usize> {
            batches(config, &Device::Cpu, &texts).iter().map(Vec::len).collect()
        };
        // Of GPT-J's width some 850 tokens are 256 MiB, what pads the rows among them; one text is read at any length.
        assert_eq!(rows(&large), [85, 45, 21, 9, 1]);
        assert_eq!(rows(&small), [128, 32, 1]);
        let batches = batches(&large, &Device::Cpu, &texts);
        let most = batch_size_bytes(&large, &texts, &batches[..4]);
        assert!((CORE_SIZE_BYTES * 9 / 10..=CORE_SIZE_BYTES).contains(&most), "{most}");
        assert_eq!(batches.concat().len(), texts.len());
    }
}
