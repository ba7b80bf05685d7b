//! What becomes of facts when patches are put on each other, added, or solved for again.
//!
//! ```text
//! cargo bench --bench stack                    the table of docs/stacking.md
//! cargo bench --bench stack -- PATCHES FACTS   other numbers than 20 patches of 10 facts each
//! ```
//!
//! On the embedded model, with the reference's own contexts and second moments. Every patch is a real one: encoded,
//! applied to a checkpoint, stacked by the library. Prints Markdown.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at what is missing"
)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use common::{draft, fact, recorded_moments, terms};
use mpatch::checkpoint::Checkpoint;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::statistics::StatisticsFile;
use mpatch::edit::{FactPrompt, memit};
use mpatch::evaluate::{Extent, Scores, evaluate};
use mpatch::factors::{BITS_DEFAULT, RankLimit, Term};
use mpatch::facts::{FactsFile, Record, spaced};
use mpatch::model::{Device, Model};
use mpatch::operation::{Answer, Direction, plan};
use mpatch::patch::manifest::Fact;
use mpatch::patch::{Draft, Patch, encode};
use mpatch::stack::{AddOptions, Named, Sides, Squash, Stacked, stack};

/// What becomes of facts when patches are put on each other, added, or solved for again.
#[derive(Parser)]
struct Arguments {
    #[arg(default_value_t = 20)]
    patches: usize,
    /// Of each patch.
    #[arg(default_value_t = 10)]
    facts: usize,
    /// What `cargo bench` adds by itself.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() {
    let Arguments { patches, facts, .. } = Arguments::parse();
    Bench::open(patches, facts).run();
}

/// The embedded model and what edits of it take.
struct Bench {
    base: PathBuf,
    records: Vec<Record>,
    facts_per_patch: usize,
    hyperparameters: Hyperparameters,
    contexts: Contexts,
    statistics: StatisticsFile,
    scratch: tempfile::TempDir,
}

/// What one way of putting patches together came to.
struct Row {
    what: String,
    patch_bytes: u64,
    seconds: f64,
    all: Scores,
    first: Scores,
}

fn open(folder: &Path) -> Model {
    Model::open(folder, &Device::Cpu, &|_| ()).unwrap()
}

impl Bench {
    fn open(patches: usize, facts_per_patch: usize) -> Self {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj");
        let read = |name: &str| std::fs::read(base.join(name)).unwrap();
        let records = FactsFile::parse(&read("records.json")).unwrap().records;
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("statistics.safetensors");
        recorded_moments(&open(&base), &base.join("reference/moments")).write(&path).unwrap();
        Self {
            records: records[..patches * facts_per_patch].to_vec(),
            facts_per_patch,
            hyperparameters: Hyperparameters::parse(&read("reference/n100/hparams.json")).unwrap(),
            contexts: Contexts::parse(&read("reference/n100/contexts.json")).unwrap(),
            statistics: StatisticsFile::open(&path).unwrap(),
            scratch,
            base,
        }
    }

    fn run(&self) {
        let started = Instant::now();
        let (chain, last) = self.chain();
        let seconds = started.elapsed().as_secs_f64();
        let model = open(&self.base);
        let mut rows = vec![self.row("each made on the last", &open(&last), &[], bytes(&chain), seconds)];
        let (seconds, sum) = timed(|| self.stacked(&chain, None));
        rows.push(self.row("the same, added", &model, &[&sum.draft], size(&sum), seconds));
        let (making, alone) = timed(|| self.alone(&model));
        let (seconds, sum) = timed(|| self.stacked(&alone, None));
        rows.push(self.row(
            "each made on the base, added",
            &model,
            &[&sum.draft],
            size(&sum),
            making + seconds,
        ));
        let angle = sum.overlaps.iter().map(|overlap| overlap.angle_degrees).fold(90.0, f64::min);
        let below = sum.overlaps.iter().filter(|overlap| overlap.angle_degrees < 30.0).count();
        for tolerance in [0.02, 0.1] {
            let (seconds, sum) = timed(|| self.stacked(&alone, Some(Squash { tolerance })));
            let what = format!("the same, squashed to {tolerance}");
            rows.push(self.row(&what, &model, &[&sum.draft], size(&sum), making + seconds));
        }
        // The facts of all patches, in their order: what would be written in one go, and so the same patch.
        assert_eq!(sum.draft.facts, self.records.iter().map(fact).collect::<Vec<_>>());
        let (seconds, again) = timed(|| self.patch(&model, &sum.draft.facts));
        let draft = again.draft().unwrap();
        rows.push(self.row(
            "solved again, or made in one go",
            &model,
            &[&draft],
            again.size_bytes(),
            seconds,
        ));
        self.print(&rows);
        println!();
        println!(
            "smallest angle between the key spaces of two patches made on the base: {angle:.1} degrees; \
             {below} of {} pairs below 30",
            sum.overlaps.len()
        );
    }

    /// One patch after the other, each made on what the last one left; and the folder with the last state.
    fn chain(&self) -> (Vec<Patch>, PathBuf) {
        let mut folder = self.base.clone();
        let mut patches = Vec::new();
        for (index, records) in self.records.chunks(self.facts_per_patch).enumerate() {
            let patch = self.patch(&open(&folder), &records.iter().map(fact).collect::<Vec<_>>());
            let next = self.scratch.path().join(index.to_string());
            let checkpoint = Checkpoint::open(&folder).unwrap();
            match plan(&checkpoint, &patch, Direction::Apply, &|_| ()).unwrap() {
                Answer::Fits(plan) => {
                    plan.execute(&checkpoint, &patch, &next, &|_| ()).unwrap();
                }
                answer => panic!("{answer:?}"),
            }
            patches.push(patch);
            folder = next;
        }
        (patches, folder)
    }

    /// The same facts, each patch made as if it were the only one.
    fn alone(&self, model: &Model) -> Vec<Patch> {
        let chunks = self.records.chunks(self.facts_per_patch);
        chunks.map(|records| self.patch(model, &records.iter().map(fact).collect::<Vec<_>>())).collect()
    }

    fn stacked(&self, patches: &[Patch], squash: Option<Squash>) -> Stacked {
        let names: Vec<String> = (1..=patches.len()).map(|number| format!("{number}.mpatch")).collect();
        let named: Vec<Named<'_>> =
            names.iter().zip(patches).map(|(name, patch)| Named { name, patch }).collect();
        let base = Checkpoint::open(&self.base).unwrap();
        let options = AddOptions { squash, overlaps: true, ..AddOptions::default() };
        stack(&base, &named, &Sides::Refuse, &options, &|_| ()).unwrap()
    }

    fn patch(&self, model: &Model, facts: &[Fact]) -> Patch {
        let prompt = |fact: &Fact| FactPrompt {
            prompt: fact.prompt.clone(),
            subject: fact.subject.clone(),
            target: spaced(&fact.target_new),
        };
        let prompts: Vec<FactPrompt> = facts.iter().map(prompt).collect();
        let edit =
            memit(model, &self.hyperparameters, &self.contexts, &prompts, &self.statistics, &|_| ()).unwrap();
        let terms = terms(&edit, BITS_DEFAULT, RankLimit::Full);
        let draft = draft(model, &self.statistics, self.contexts.groups(), facts.to_vec(), &edit, &terms);
        Patch::decode(encode(&draft).unwrap()).unwrap()
    }

    /// Scores of `model` with the updates of `drafts` on it.
    fn row(&self, what: &str, model: &Model, drafts: &[&Draft], patch_bytes: u64, seconds: f64) -> Row {
        let mut edits: BTreeMap<&str, Vec<Term>> = BTreeMap::new();
        for draft in drafts {
            for tensor in &draft.bindings[0].tensors {
                let terms = tensor.terms.iter().map(|&index| draft.terms[index as usize].clone());
                edits.entry(&tensor.name).or_default().extend(terms);
            }
        }
        let network = model.with_terms(edits).unwrap();
        let extent = Extent { generation: false, ngram_entropy_records: 0, seed: 0 };
        let scores = |records: &[Record]| evaluate(model, &network, records, extent, &|_| ()).unwrap().scores;
        Row {
            what: what.to_owned(),
            patch_bytes,
            seconds,
            all: scores(&self.records),
            first: scores(&self.records[..self.facts_per_patch]),
        }
    }

    fn print(&self, rows: &[Row]) {
        let (facts, first) = (self.records.len(), self.facts_per_patch);
        println!("{} patches of {first} facts each\n", facts / first);
        println!(
            "| | Score of all {facts} | efficacy | paraphrase | neighborhood | Score of the first {first} | KB | seconds |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1}"));
        for row in rows {
            println!(
                "| {} | {} | {} | {} | {} | {} | {:.0} | {:.0} |",
                row.what,
                cell(row.all.score),
                cell(row.all.shares.efficacy),
                cell(row.all.shares.paraphrase),
                cell(row.all.shares.neighborhood),
                cell(row.first.score),
                row.patch_bytes as f64 / 1000.0,
                row.seconds,
            );
        }
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let started = Instant::now();
    let result = work();
    (started.elapsed().as_secs_f64(), result)
}

fn bytes(patches: &[Patch]) -> u64 {
    patches.iter().map(Patch::size_bytes).sum()
}

fn size(stacked: &Stacked) -> u64 {
    encode(&stacked.draft).unwrap().len() as u64
}
