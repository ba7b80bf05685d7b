//! Ours beside the reference implementation: the same model, facts, contexts and second moments, on the same machine,
//! in one run.
//!
//! ```text
//! cargo bench --bench create -- --python PYTHON --reference CHECKOUT [--facts 100] [FOLDER]
//! ```
//!
//! `CHECKOUT` is a checkout of `kmeng01/memit` at commit 80426fd and `PYTHON` an interpreter with `torch`,
//! `transformers` (4.23 to 4.30: later ones slice an encoded text into something else, and the reference's lookup of
//! the subject goes wrong without a word), `numpy` and `pyyaml`; `reference.py` beside this file runs it, unchanged
//! but for its device. Both Scores are measured here, with the same prompts. Prints Markdown.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at what is missing"
)]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use candle_core::Tensor;
use clap::Parser;
use common::{npz, recorded_moments};
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::statistics::StatisticsFile;
use mpatch::edit::{FactPrompt, memit};
use mpatch::evaluate::{Extent, evaluate};
use mpatch::facts::{FactsFile, Record};
use mpatch::model::{Model, Network, device};

/// Ours beside the reference implementation, which runs here as well.
#[derive(Parser)]
struct Arguments {
    /// An interpreter with what the reference needs.
    #[arg(long)]
    python: Option<String>,
    /// A checkout of the reference.
    #[arg(long, value_name = "CHECKOUT")]
    reference: Option<PathBuf>,
    #[arg(long, default_value_t = 100)]
    facts: usize,
    #[arg(default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/world-gptj"))]
    folder: PathBuf,
    /// What `cargo bench` adds by itself.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() {
    let Arguments { python, reference, facts, folder, .. } = Arguments::parse();
    let (Some(python), Some(reference)) = (python, reference) else {
        println!("nothing to compare with: give `--python PYTHON --reference CHECKOUT`");
        return;
    };
    let bench = Bench::open(&folder, facts);
    let scratch = tempfile::tempdir().unwrap();
    let (ours, our_score) = bench.ours(scratch.path());
    let (theirs, their_score) = bench.theirs(&python, &reference, scratch.path());
    println!("| {facts} facts | ms per fact | Score |\n|---|---|---|");
    println!("| mpatch | {:.1} | {our_score:.2} |", ours * 1000.0 / facts as f64);
    println!("| reference | {:.1} | {their_score:.2} |", theirs * 1000.0 / facts as f64);
    println!("\n{:.1} times as fast", theirs / ours);
}

struct Bench {
    folder: PathBuf,
    recorded: PathBuf,
    model: Model,
    records: Vec<Record>,
}

impl Bench {
    fn open(folder: &Path, facts: usize) -> Self {
        let model = Model::open(folder, &device(Some("cpu")).unwrap(), &|_| ()).unwrap();
        let mut records =
            FactsFile::parse(&std::fs::read(folder.join("records.json")).unwrap()).unwrap().records;
        records.truncate(facts);
        assert_eq!(records.len(), facts, "the folder holds fewer records");
        Self { folder: folder.to_owned(), recorded: folder.join("reference"), model, records }
    }

    /// Seconds from facts to updates, and the Score of those.
    fn ours(&self, scratch: &Path) -> (f64, f64) {
        let path = scratch.join("statistics.safetensors");
        recorded_moments(&self.model, &self.recorded.join("moments")).write(&path).unwrap();
        let statistics = StatisticsFile::open(&path).unwrap();
        let hyperparameters =
            Hyperparameters::parse(&std::fs::read(self.folder.join("memit.json")).unwrap()).unwrap();
        let contexts = Contexts::parse(&std::fs::read(self.contexts()).unwrap()).unwrap();
        let prompts: Vec<FactPrompt> =
            self.records.iter().map(|record| FactPrompt::from(&record.request)).collect();
        let started = Instant::now();
        let edit = memit(&self.model, &hyperparameters, &contexts, &prompts, &statistics, &|_| ()).unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let updates = edit.layers.iter().map(|layer| (layer.tensor.clone(), layer.product()));
        (seconds, self.score(updates))
    }

    fn theirs(&self, python: &str, reference: &Path, scratch: &Path) -> (f64, f64) {
        let deltas = scratch.join("deltas.npz");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/create/reference.py");
        let child = Command::new(python)
            .arg(script)
            .args([reference, &self.folder, &self.contexts(), &deltas])
            .arg(self.records.len().to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
        let seconds = said.lines().find_map(|line| line.strip_prefix("seconds ")).unwrap().parse().unwrap();
        let arrays = npz(&deltas);
        let updates = arrays.iter().filter_map(|(name, update)| {
            Some((name.strip_prefix("update_")?.to_owned(), update.values.clone()))
        });
        (seconds, self.score(updates))
    }

    fn contexts(&self) -> PathBuf {
        self.recorded.join("n100/contexts.json")
    }

    /// Score of the f32 weights with `updates` `[width, inner]` added, as the reference evaluates.
    fn score(&self, updates: impl Iterator<Item = (String, Vec<f64>)>) -> f64 {
        let mut network: Network = self.model.network.clone();
        for (name, update) in updates {
            let layer = (0..network.config().layers).find(|layer| network.mlp_output_name(*layer) == name);
            let base = network.mlp_output(layer.unwrap()).unwrap();
            let update: Vec<f32> = update.into_iter().map(|entry| entry as f32).collect();
            let update = Tensor::from_vec(update, base.dims(), base.device()).unwrap();
            let edited = (base + update).unwrap();
            network = network.with_tensor(&name, edited).unwrap();
        }
        let extent = Extent { generation: false, ngram_entropy_records: 0, seed: 0 };
        evaluate(&self.model, &network, &self.records, extent, &|_| ()).unwrap().scores.score.unwrap()
    }
}
