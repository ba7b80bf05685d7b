//! The whole way from facts to integers on one device: time by stage, peak memory, and the share of the device's own
//! ceiling that the values reach.
//!
//! `cargo run --release --features cuda --example gpu -- --help` says how it is called. Without a model the one of the
//! repository runs; facts and corpus are by default those of that model, which are built in and which any tokenizer
//! reads. Prints Markdown.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at what is missing"
)]

#[path = "../tests/resources/mod.rs"]
mod resources;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mpatch::doctor::{Ceilings, ceilings};
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::lookup::locate;
use mpatch::edit::statistics::{Amount, StatisticsFile, collect_part};
use mpatch::edit::{Edit, FactPrompt, Progress, memit};
use mpatch::evaluate::{Extent, Scores, evaluate};
use mpatch::factors::{BITS_DEFAULT, Compression, RankLimit, Term, compress};
use mpatch::facts::{FactsFile, Record};
use mpatch::model::{Device, Folder, Model, Precision, choose, device_name, gpu_of, memory_taken};

fn main() {
    let options = Options::parse();
    // What is missing is told before a model is loaded, which may take minutes.
    let inputs = Inputs::read(&options);
    let device = choose(options.device.as_deref()).unwrap().device;
    let memory = Memory::default();
    std::thread::scope(|scope| {
        scope.spawn(|| memory.watch(&device));
        // However the run ends, the watch ends with it.
        let _end = End(&memory.done);
        run(&options, inputs, &device, &memory);
    });
}

fn run(options: &Options, inputs: Inputs, device: &Device, memory: &Memory) {
    let Inputs { folder, hyperparameters, records, corpus } = inputs;
    let mut stages = Stages { rows: Vec::new(), memory };
    let best = ceilings(device).unwrap();
    let model = stages.time("load", || folder.load(device, options.precision, &|_| ()).unwrap());
    let weights = stages.time("hash the weights", || model.checkpoint.weights_id().unwrap());
    let amount = options.tokens.map_or_else(|| Amount::enough(model.network.config().inner), Amount::Tokens);
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("statistics.safetensors");
    let tokens = AtomicU64::new(0);
    stages.time("statistics", || {
        let told = |done: mpatch::edit::statistics::Collected| tokens.store(done.tokens, Ordering::Relaxed);
        let layers = &hyperparameters.layers;
        let mut corpus = Cursor::new(&corpus);
        let statistics = collect_part(&model, weights, layers, &mut corpus, amount, None, &told);
        statistics.unwrap().write(&path).unwrap();
    });
    let statistics = StatisticsFile::open(&path).unwrap();
    let contexts = stages.time("sample contexts", || Contexts::sample(&model, 0).unwrap());
    let facts: Vec<FactPrompt> = records.iter().map(|record| FactPrompt::from(&record.request)).collect();
    let edit = time_edit(&mut stages, &model, &hyperparameters, &contexts, &facts, &statistics);
    let terms = stages.time("integers", || terms(&edit));
    let scores = stages.time("evaluate", || scores(&model, &edit, &terms, &records));
    describe(options, device, &model, facts.len(), tokens.load(Ordering::Relaxed));
    stages.print();
    let work = Work::of(&model, &hyperparameters, &contexts, &facts, &edit);
    work.print(stages.seconds("values"), facts.len(), &best);
    println!(
        "\nefficacy {:.1} %, said freely {:.1} %",
        scores.shares.efficacy.unwrap_or(f64::NAN),
        scores.generation.unwrap_or(f64::NAN)
    );
}

/// The whole way from facts to integers on one device: time by stage, peak memory, and shares of the device's ceiling.
#[derive(Parser)]
struct Options {
    /// A model of any size, trained or not.
    #[arg(long, value_name = "FOLDER", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/world-gptj"))]
    base: PathBuf,
    /// By default those of the repository's model.
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// How many of the facts.
    #[arg(long, default_value_t = 10)]
    count: usize,
    /// By default that of the repository's model.
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// How many tokens of the corpus; by default as many as `create` takes.
    #[arg(long)]
    tokens: Option<u64>,
    /// Of matrices: f32, tf32 or bf16.
    #[arg(long, default_value = "f32")]
    precision: Precision,
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
}

/// All that is read from files.
struct Inputs {
    folder: Folder,
    hyperparameters: Hyperparameters,
    records: Vec<Record>,
    corpus: Vec<u8>,
}

impl Inputs {
    fn read(options: &Options) -> Self {
        let file = |path: &Path| {
            std::fs::read(path).unwrap_or_else(|error| panic!("cannot read `{}`: {error}", path.display()))
        };
        // The program may run where the repository is not.
        let file_or =
            |path: &Option<PathBuf>, built_in: &[u8]| path.as_deref().map_or_else(|| built_in.to_vec(), file);
        let facts = file_or(&options.facts, include_bytes!("../fixtures/world-gptj/records.json"));
        let mut records = FactsFile::parse(&facts).unwrap().records;
        records.truncate(options.count);
        let folder = Folder::open(&options.base).unwrap();
        let hyperparameters = match std::fs::read(options.base.join("memit.json")) {
            Ok(bytes) => Hyperparameters::parse(&bytes).unwrap(),
            Err(_) => Hyperparameters::for_model(&folder.config).0,
        };
        let corpus = file_or(&options.corpus, include_bytes!("../fixtures/world-gptj/corpus.txt"));
        Self { folder, hyperparameters, records, corpus }
    }
}

/// Times the values apart from the layers, which follow them.
fn time_edit(
    stages: &mut Stages<'_>,
    model: &Model,
    hyperparameters: &Hyperparameters,
    contexts: &Contexts,
    facts: &[FactPrompt],
    statistics: &StatisticsFile,
) -> Edit {
    let begun = Instant::now();
    let marks = Mutex::new((0.0, Vec::new()));
    let told = |progress: Progress<'_>| {
        let mut marks = marks.lock().unwrap();
        match progress {
            Progress::Value(..) => marks.0 = begun.elapsed().as_secs_f64(),
            Progress::Layer(layer) => marks.1.push((layer, begun.elapsed().as_secs_f64())),
        }
    };
    let edit = memit(model, hyperparameters, contexts, facts, statistics, &told).unwrap();
    let (values, layers) = marks.into_inner().unwrap();
    stages.push("values", values);
    let mut before = values;
    for (layer, at) in layers {
        stages.push(&format!("layer {layer}: keys, solve, overlay"), at - before);
        before = at;
    }
    edit
}

fn terms(edit: &Edit) -> Vec<Term> {
    let how = Compression { bits: BITS_DEFAULT, limit: RankLimit::Full };
    let term = |layer: &mpatch::edit::LayerUpdate| compress(&layer.factors(), &how).unwrap();
    edit.layers.iter().map(term).collect()
}

fn scores(model: &Model, edit: &Edit, terms: &[Term], records: &[Record]) -> Scores {
    let edits =
        edit.layers.iter().zip(terms).map(|(layer, term)| (layer.tensor.as_str(), vec![term.clone()]));
    let network = model.with_terms(edits).unwrap();
    let extent = Extent { generation: true, ngram_entropy_records: 0, seed: 0 };
    evaluate(model, &network, records, extent, &|_| ()).unwrap().scores
}

/// The floating-point operations that the values cannot do without, on the tokens that are not padding.
struct Work {
    operations: f64,
    steps: usize,
}

impl Work {
    /// Each step is a forward and a reverse pass through the blocks above the value layer, over the tokens from the
    /// moved one on, and through the head at the tokens that predict; the last step of a fact has no reverse pass.
    fn of(
        model: &Model,
        hyperparameters: &Hyperparameters,
        contexts: &Contexts,
        facts: &[FactPrompt],
        edit: &Edit,
    ) -> Self {
        let config = model.network.config();
        let (width, inner) = (config.width as f64, config.inner as f64);
        let blocks = (config.layers - 1 - hyperparameters.value_layer()) as f64;
        let block = 2.0 * (4.0 * width * width + 2.0 * width * inner);
        let head = 2.0 * width * config.vocabulary as f64;
        let of_fact = |(fact, steps): (&FactPrompt, usize)| {
            let target = model.tokenizer.encode(&fact.target).unwrap();
            let ending = model.tokenizer.decode(&target[..target.len() - 1]).unwrap();
            let after_subject = |template: &str| {
                let located = locate(&model.tokenizer, template, &fact.subject).unwrap();
                (located.ids.len() - located.subject_last) as f64
            };
            let rows = contexts.templates().map(|context| context.replacen("{}", &fact.prompt, 1) + &ending);
            let tokens = rows.map(|row| after_subject(&row)).sum::<f64>() + after_subject("{} is a");
            let predicted = (contexts.templates().count() * target.len() + 1) as f64;
            let pass = tokens * blocks * block + predicted * head;
            pass * (2 * steps + 1) as f64
        };
        let steps = edit.values.iter().map(|value| value.steps);
        let operations = facts.iter().zip(steps.clone()).map(of_fact).sum();
        Self { operations, steps: steps.sum() }
    }

    fn print(&self, seconds: f64, facts: usize, best: &Ceilings) {
        let speed = self.operations / seconds;
        println!(
            "\nvalues: {:.3} s per fact, {:.1} steps per fact, {:.2} TFLOP/s on tokens that are not padding",
            seconds / facts as f64,
            self.steps as f64 / facts as f64,
            speed / 1e12
        );
        println!(
            "ceilings: {:.2} TFLOP/s in f32 products, {:.0} GB/s of memory; the values reach {:.0} % of the products'",
            best.f32_product_per_second / 1e12,
            best.memory_bytes_per_second / 1e9,
            100.0 * speed / best.f32_product_per_second
        );
    }
}

fn describe(options: &Options, device: &Device, model: &Model, facts: usize, tokens: u64) {
    let config = model.network.config();
    println!(
        "{} on {} in {}: {} layers, {} wide; {facts} facts, statistics over {tokens} tokens\n",
        options.base.file_name().map(|name| name.to_string_lossy()).unwrap_or_default(),
        gpu_of(device).map_or_else(|| device_name(device), |gpu| gpu.product),
        options.precision.name(),
        config.layers,
        config.width
    );
}

/// Rows of the table: a stage, its seconds, and the most memory taken in it.
struct Stages<'a> {
    rows: Vec<(String, f64, Option<u64>)>,
    memory: &'a Memory,
}

impl Stages<'_> {
    fn time<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        eprintln!("{what} ...");
        self.memory.peak.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        let result = work();
        self.push(what, begun.elapsed().as_secs_f64());
        result
    }

    fn push(&mut self, what: &str, seconds: f64) {
        let peak = Some(self.memory.peak.load(Ordering::Relaxed)).filter(|peak| *peak > 0);
        self.rows.push((what.to_owned(), seconds, peak));
    }

    fn seconds(&self, what: &str) -> f64 {
        self.rows.iter().filter(|row| row.0 == what).map(|row| row.1).sum()
    }

    fn print(&self) {
        let giga = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
        println!("| stage | seconds | device memory |\n|---|---|---|");
        for (what, seconds, peak) in &self.rows {
            println!("| {what} | {seconds:.3} | {} |", peak.map_or("-".to_owned(), giga));
        }
        let total: f64 = self.rows.iter().map(|row| row.1).sum();
        println!("| all | {total:.3} | |");
        if let Some(host) = resources::memory_peak_bytes("self") {
            println!("\npeak memory on the host: {}", giga(host));
        }
    }
}

/// The most that is taken of the device's memory, looked at twenty times a second.
#[derive(Default)]
struct Memory {
    peak: AtomicU64,
    done: AtomicBool,
}

impl Memory {
    fn watch(&self, device: &Device) {
        while !self.done.load(Ordering::Relaxed) {
            let Some((taken, _)) = memory_taken(device) else { return };
            self.peak.fetch_max(taken, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
