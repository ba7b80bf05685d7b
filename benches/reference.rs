//! Ours beside the reference implementation, on a folder with the reference's recorded numbers; and what size costs.
//!
//! ```text
//! cargo bench --bench reference -- FOLDER [FOLDER ...]           the table of docs/memit.md
//! cargo bench --bench reference -- --sizes FOLDER               size against Score, by bits and rank
//! cargo bench --bench reference -- --statistics FOLDER          Score against the amount of text behind the statistics
//! cargo bench --bench reference -- --precision FOLDER           time and Score of matrices in f32 and bf16
//! ```
//!
//! A folder holds a model, `records.json`, and `reference/` as `fixtures/README.md` describes it. Each row is made
//! from the reference's own contexts and second moments, over the first facts of the records. Prints Markdown.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at what is missing"
)]

mod common;

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use common::{draft, fact, recorded_moments, terms};
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::statistics::{Amount, StatisticsFile, collect_part};
use mpatch::edit::{Edit, EditError, FactPrompt, memit};
use mpatch::evaluate::{Extent, Scores, evaluate};
use mpatch::factors::{BITS_DEFAULT, Integers, RankLimit, Term};
use mpatch::facts::{FactsFile, Record};
use mpatch::model::{Model, Precision, device};
use mpatch::patch::encode;

/// Ours beside the reference implementation, by default the table of docs/memit.md.
#[derive(Parser)]
struct Arguments {
    /// Size against Score instead, by bits and rank.
    #[arg(long, group = "table")]
    sizes: bool,
    /// Score against the amount of text behind the statistics instead.
    #[arg(long, group = "table")]
    statistics: bool,
    /// Time and Score of matrices in f32 and bf16 instead.
    #[arg(long, group = "table")]
    precision: bool,
    /// Models with `records.json` and `reference/`.
    #[arg(value_name = "FOLDER", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/world-gptj"))]
    folders: Vec<PathBuf>,
    /// What `cargo bench` adds by itself.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() {
    let arguments = Arguments::parse();
    for folder in &arguments.folders {
        let bench = Bench::open(folder, Precision::F32);
        match arguments {
            Arguments { sizes: true, .. } => bench.sizes(),
            Arguments { statistics: true, .. } => bench.amounts(),
            Arguments { precision: true, .. } => precisions(folder),
            _ => bench.beside_the_reference(),
        }
    }
}

/// A model folder with the reference's numbers, opened.
struct Bench {
    folder: PathBuf,
    model: Model,
    records: Vec<Record>,
    statistics: StatisticsFile,
    /// Kept for as long as the statistics file is open.
    _scratch: tempfile::TempDir,
}

impl Bench {
    fn open(folder: &Path, precision: Precision) -> Self {
        let model = Model::open_in(folder, &device(None).unwrap(), precision, &|_| ()).unwrap();
        let records = FactsFile::parse(&std::fs::read(folder.join("records.json")).unwrap()).unwrap().records;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("statistics.safetensors");
        recorded_moments(&model, &folder.join("reference/moments")).write(&path).unwrap();
        let statistics = StatisticsFile::open(&path).unwrap();
        Self { folder: folder.to_owned(), model, records, statistics, _scratch: scratch }
    }

    fn name(&self) -> String {
        self.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Numbers of facts that the reference recorded, ascending.
    fn recorded(&self) -> Vec<usize> {
        let entries = std::fs::read_dir(self.folder.join("reference")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        let mut counts: Vec<usize> =
            names.filter_map(|name| name.strip_prefix('n').and_then(|count| count.parse().ok())).collect();
        counts.sort_unstable();
        counts
    }

    fn edit(&self, facts: usize) -> Edit {
        self.edit_with(facts, &self.statistics).unwrap()
    }

    fn edit_with(&self, facts: usize, statistics: &StatisticsFile) -> Result<Edit, EditError> {
        let folder = self.folder.join(format!("reference/n{facts}"));
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let hyperparameters = Hyperparameters::parse(&read("hparams.json")).unwrap();
        let contexts = Contexts::parse(&read("contexts.json")).unwrap();
        let prompts: Vec<FactPrompt> =
            self.records[..facts].iter().map(|record| FactPrompt::from(&record.request)).collect();
        memit(&self.model, &hyperparameters, &contexts, &prompts, statistics, &|_| ())
    }

    /// Score of the edit as its integers say, rounded to the model's type.
    fn scores(&self, facts: usize, edit: &Edit, terms: &[Term]) -> Scores {
        let edits =
            edit.layers.iter().zip(terms).map(|(layer, term)| (layer.tensor.as_str(), vec![term.clone()]));
        let network = self.model.with_terms(edits).unwrap();
        let extent = Extent { generation: true, ngram_entropy_records: 0, seed: 0 };
        evaluate(&self.model, &network, &self.records[..facts], extent, &|_| ()).unwrap().scores
    }

    fn beside_the_reference(&self) {
        println!(
            "| {} | | Score | efficacy | paraphrase | neighborhood | rewrite accuracy | said freely | ms per fact |",
            self.name()
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for facts in self.recorded() {
            let file = self.folder.join(format!("reference/n{facts}/scores.json"));
            let recorded: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let after = |name: &str| recorded["after"][name].as_f64().unwrap();
            let seconds = recorded["seconds_per_fact"].as_f64().unwrap();
            println!(
                "| {facts} facts | reference | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | - | {:.0} |",
                after("score"),
                after("efficacy"),
                after("paraphrase"),
                after("neighborhood"),
                after("rewrite_accuracy"),
                seconds * 1000.0
            );
            let started = Instant::now();
            let edit = self.edit(facts);
            let terms = terms(&edit, BITS_DEFAULT, RankLimit::Full);
            let milliseconds = started.elapsed().as_secs_f64() * 1000.0 / facts as f64;
            let scores = self.scores(facts, &edit, &terms);
            let of = |value: Option<f64>| value.unwrap_or(f64::NAN);
            println!(
                "| | mpatch | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {milliseconds:.0} |",
                of(scores.score),
                of(scores.shares.efficacy),
                of(scores.shares.paraphrase),
                of(scores.shares.neighborhood),
                of(scores.shares.rewrite_accuracy),
                of(scores.generation)
            );
        }
    }

    /// Score by how much of the folder's `corpus.txt` the statistics were made from.
    fn amounts(&self) {
        let inner = self.model.network.config().inner as u64;
        let few = [1, 2, 5, 10, 50].map(|times| Amount::Tokens(times * inner));
        println!("| {} | facts | tokens | Score |\n|---|---|---|---|", self.name());
        let base = self.model.checkpoint.weights_id().unwrap();
        let facts = 100;
        for amount in few.into_iter().chain([Amount::All]) {
            let scratch = tempfile::tempdir().unwrap();
            let path = scratch.path().join("statistics.safetensors");
            let corpus = std::fs::File::open(self.folder.join("corpus.txt")).unwrap();
            let layers: Vec<usize> = self.statistics.counts().keys().copied().collect();
            let mut corpus = std::io::BufReader::new(corpus);
            let made = collect_part(&self.model, base, &layers, &mut corpus, amount, None, &|_| ()).unwrap();
            made.write(&path).unwrap();
            let statistics = StatisticsFile::open(&path).unwrap();
            let edit = self.edit_with(facts, &statistics).unwrap();
            let score = self.scores(facts, &edit, &terms(&edit, 16, RankLimit::Full)).score.unwrap();
            println!("| {amount} | {facts} | {} | {score:.2} |", statistics.counts()[&layers[0]]);
        }
    }

    fn sizes(&self) {
        let counts: Vec<usize> = self.recorded().into_iter().filter(|count| *count >= 100).collect();
        println!("| {} | rank | bits | bytes of the patch | relative error | Score | lost |", self.name());
        println!("|---|---|---|---|---|---|---|");
        for facts in counts {
            let edit = self.edit(facts);
            let wide = self.scores(facts, &edit, &terms(&edit, 16, RankLimit::Full)).score.unwrap();
            let full = [16, 10, 8, 7, 6, 5, 4, 3].map(|bits| (bits, RankLimit::Full));
            let cut = [0.05, 0.1, 0.2, 0.3].map(|error| (6, RankLimit::Tolerance(error)));
            for (bits, limit) in full.into_iter().chain(cut) {
                let terms = terms(&edit, bits, limit);
                let score = self.scores(facts, &edit, &terms).score.unwrap();
                let (error, bytes, rank) = (
                    relative_error(&edit, &terms),
                    self.patch_size_bytes(facts, &edit, &terms),
                    rank(&terms),
                );
                println!(
                    "| {facts} facts | {rank} | {bits} | {bytes} | {error:.4} | {score:.2} | {:.2} |",
                    wide - score
                );
            }
        }
    }
}

/// Time and Score of matrices in f32 and in bf16; both edits are measured on the exact weights.
fn precisions(folder: &Path) {
    let exact = Bench::open(folder, Precision::F32);
    println!("| {} | facts | ms per fact | Score |\n|---|---|---|---|", exact.name());
    let facts = 100;
    for precision in [Precision::F32, Precision::Bf16] {
        let bench = Bench::open(folder, precision);
        let started = Instant::now();
        let edit = bench.edit(facts);
        let milliseconds = started.elapsed().as_secs_f64() * 1000.0 / facts as f64;
        let score = exact.scores(facts, &edit, &terms(&edit, 16, RankLimit::Full)).score.unwrap();
        println!("| {} | {facts} | {milliseconds:.0} | {score:.2} |", precision.name());
    }
}

impl Bench {
    /// Size of the whole patch file, with its facts and its undo logs.
    fn patch_size_bytes(&self, facts: usize, edit: &Edit, terms: &[Term]) -> usize {
        let facts = self.records[..facts].iter().map(fact).collect();
        let draft = draft(&self.model, &self.statistics, &[], facts, edit, terms);
        encode(&draft).unwrap().len()
    }
}

/// Largest relative Frobenius error of a layer's integers against the edit.
fn relative_error(edit: &Edit, terms: &[Term]) -> f64 {
    let error = |(layer, term): (&mpatch::edit::LayerUpdate, &Term)| {
        let exact = layer.product();
        let update = mpatch::factors::Update::new(vec![term.clone()]).unwrap();
        let stored = update.delta_rows(0..update.rows()).unwrap();
        let difference: f64 = exact.iter().zip(&stored).map(|(one, other)| (one - other).powi(2)).sum();
        (difference / exact.iter().map(|entry| entry.powi(2)).sum::<f64>()).sqrt()
    };
    edit.layers.iter().zip(terms).map(error).fold(0.0, f64::max)
}

fn rank(terms: &[Term]) -> String {
    let of = |term: &Term| match term.integers() {
        Integers::LowRank { left, .. } => left.columns().to_string(),
        Integers::Dense(_) => "dense".to_owned(),
    };
    let mut ranks: Vec<String> = terms.iter().map(of).collect();
    ranks.dedup();
    ranks.join(", ")
}
