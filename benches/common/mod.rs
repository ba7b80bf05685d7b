//! What benchmarks of editing share: the reference's own numbers, and edits as patches.

use std::collections::BTreeMap;
use std::path::Path;

use mpatch::bind::bind;
use mpatch::digest::FileDigest;
use mpatch::edit::statistics::{Drawn, Provenance, Statistics, StatisticsFile};
use mpatch::edit::{Edit, LayerUpdate, import};
use mpatch::factors::{Compression, RankLimit, Term, compress};
use mpatch::facts::Record;
use mpatch::model::Model;
use mpatch::patch::Draft;
use mpatch::patch::manifest::{Base, Fact, Recipe};

/// The reference's own second moments, `reference/moments/*.npz`.
pub fn recorded_statistics(model: &Model, folder: &Path) -> Statistics {
    let mut layers = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let layer = import::layer_of_name(&path.file_name().unwrap().to_string_lossy()).unwrap();
        layers.insert(layer, import::read_npz(std::fs::File::open(path).unwrap()).unwrap().sum);
    }
    let provenance = Provenance {
        base: model.checkpoint.weights_id().unwrap(),
        tokenizer: model.tokenizer.digest(),
        corpora: vec![FileDigest::of(b"the reference's own")],
        drawn: Drawn::default(),
    };
    Statistics { layers, inner: model.network.config().inner, provenance }
}

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
    let term = |layer: &LayerUpdate| {
        let (left, right) = layer.factors();
        let (rows, columns) = (layer.residuals.nrows(), layer.adjusted_keys.nrows());
        compress(&left, &right, rows, layer.residuals.ncols(), columns, &Compression { bits, limit }).unwrap()
    };
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
