//! What benchmarks of editing share: the reference's own numbers, and edits as patches.

#[path = "../../tests/common/mod.rs"]
mod fixture;

use mpatch::bind::bind;
use mpatch::digest::FileDigest;
use mpatch::edit::statistics::StatisticsFile;
use mpatch::edit::{Edit, LayerUpdate};
use mpatch::factors::{Compression, RankLimit, Term, compress};
use mpatch::facts::Record;
use mpatch::model::Model;
use mpatch::patch::Draft;
use mpatch::patch::manifest::{Base, Fact, Recipe};

pub use fixture::recorded_moments;

/// The fact of a record, as a patch declares it.
pub fn fact(record: &Record) -> Fact {
    Fact {
        id: record.request.id.clone(),
        prompt: record.request.prompt.clone(),
        subject: record.request.subject.clone(),
        target_new: record.request.target_new.clone(),
        target_old: record.request.target_old.clone(),
        note: None,
    }
}

/// The layers of an edit as integers.
pub fn terms(edit: &Edit, bits: u8, limit: RankLimit) -> Vec<Term> {
    let term = |layer: &LayerUpdate| compress(&layer.factors(), &Compression { bits, limit }).unwrap();
    edit.layers.iter().map(term).collect()
}

/// The patch of an edit, bound to the model that it was made on.
pub fn draft(
    model: &Model,
    statistics: &StatisticsFile,
    contexts: &[Vec<String>],
    facts: Vec<Fact>,
    edit: &Edit,
    terms: &[Term],
) -> Draft {
    let layers = edit.layers.iter().enumerate();
    let edits: Vec<_> = layers.map(|(index, layer)| (layer.tensor.clone(), vec![index as u32])).collect();
    let weights = model.checkpoint.weights_id().unwrap();
    let binding = bind(&model.checkpoint, weights, &edits, terms, &|_| ()).unwrap();
    let base = Base {
        architecture: model.network.config().architecture.clone(),
        config: model.config_digest,
        tokenizer: model.tokenizer.digest(),
    };
    let recipe = Recipe {
        method: "memit".to_owned(),
        hyperparameters: String::new(),
        layers: edit.layers.iter().map(|layer| layer.layer as u32).collect(),
        contexts: contexts.to_vec(),
        seed: 0,
        statistics: statistics.digest(),
        facts: FileDigest::of(b""),
        tool: "benchmark".to_owned(),
        device: "cpu".to_owned(),
    };
    Draft { facts, ..Draft::new(base, recipe, terms.to_vec(), vec![binding]) }
}
