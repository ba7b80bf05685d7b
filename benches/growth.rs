//! How time and memory grow with the number of facts, on the embedded model.
//!
//! ```text
//! cargo bench --bench growth                            10 to 3000 facts
//! cargo bench --bench growth -- --most 300              fewer
//! cargo bench --bench growth -- --plot docs/growth.svg  and the picture of them
//! cargo bench --bench growth -- --factor 16384          time and memory of one factorisation of that order
//! ```
//!
//! Each number of facts is a process of its own, so that its peak of memory is its own; time is that of the
//! processor, which a busy machine lengthens least. There are 1200 records; beyond them the targets are exchanged
//! among the records. Prints Markdown.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at what is missing"
)]

mod plot;
#[path = "../tests/resources/mod.rs"]
mod resources;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use faer::Mat;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::solve::Factor;
use mpatch::edit::statistics::{Amount, StatisticsFile, collect_part};
use mpatch::edit::{FactPrompt, memit};
use mpatch::facts::{FactsFile, Record};
use mpatch::model::{Model, device};
use plot::{Line, Panel, picture};
use resources::{memory_peak_bytes, processor_seconds};

const COUNTS: [usize; 6] = [10, 30, 100, 300, 1000, 3000];

/// How time and memory grow with the number of facts.
#[derive(Parser)]
struct Arguments {
    /// No more facts than these.
    #[arg(long, value_name = "FACTS", default_value_t = usize::MAX, hide_default_value = true)]
    most: usize,
    /// Writes the picture of it.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Time and memory of one factorisation of this order instead.
    #[arg(long, value_name = "ORDER")]
    factor: Option<usize>,
    /// What a process of its own does: so many facts, with the statistics in this file.
    #[arg(long, hide = true, requires = "statistics")]
    one: Option<usize>,
    #[arg(hide = true)]
    statistics: Option<PathBuf>,
    /// What `cargo bench` adds by itself.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() {
    let Arguments { most, plot, factor: order, one: facts, statistics, .. } = Arguments::parse();
    match (order, facts, statistics) {
        (Some(order), ..) => factor(order),
        (None, Some(facts), Some(statistics)) => one(facts, &statistics),
        _ => table(most, plot.as_deref()),
    }
}

fn table(most: usize, place: Option<&Path>) {
    let scratch = tempfile::tempdir().unwrap();
    let statistics = scratch.path().join("statistics.safetensors");
    make_statistics(&statistics);
    println!("| facts | CPU seconds | ms of CPU per fact | seconds | peak MB |\n|---|---|---|---|---|");
    let mut points = Vec::new();
    for facts in COUNTS.into_iter().filter(|facts| *facts <= most) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--one", &facts.to_string()])
            .arg(&statistics)
            .output()
            .unwrap();
        let said = String::from_utf8(child.stdout).unwrap();
        assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
        let figures: Vec<f64> = said.split_whitespace().map(|figure| figure.parse().unwrap()).collect();
        let [cpu, wall, megabytes] = figures[..] else { panic!("{said}") };
        println!("| {facts} | {cpu:.2} | {:.1} | {wall:.2} | {megabytes:.0} |", cpu * 1000.0 / facts as f64);
        points.push((facts as f64, cpu, megabytes));
    }
    if let Some(place) = place {
        std::fs::write(place, plot(&points)).unwrap();
        println!("\nwrote {}", place.display());
    }
}

fn world() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/world-gptj")
}

fn open() -> (Model, Hyperparameters) {
    let model = Model::open(&world(), &device(Some("cpu")).unwrap(), &|_| ()).unwrap();
    let hyperparameters =
        Hyperparameters::parse(&std::fs::read(world().join("memit.json")).unwrap()).unwrap();
    (model, hyperparameters)
}

fn make_statistics(place: &Path) {
    let (model, hyperparameters) = open();
    let base = model.checkpoint.weights_id().unwrap();
    let mut corpus = std::io::BufReader::new(std::fs::File::open(world().join("corpus.txt")).unwrap());
    let amount = Amount::enough(model.network.config().inner);
    let made =
        collect_part(&model, base, &hyperparameters.layers, &mut corpus, amount, None, &|_| ()).unwrap();
    made.write(place).unwrap();
}

/// Edits `facts` facts and prints CPU seconds, seconds and the peak of memory in MB.
fn one(facts: usize, statistics: &Path) {
    let (model, hyperparameters) = open();
    let contexts =
        Contexts::parse(&std::fs::read(world().join("reference/n100/contexts.json")).unwrap()).unwrap();
    let records = FactsFile::parse(&std::fs::read(world().join("records.json")).unwrap()).unwrap().records;
    let prompts: Vec<FactPrompt> = (0..facts).map(|index| varied(&records, index)).collect();
    let statistics = StatisticsFile::open(statistics).unwrap();
    let (cpu, started) = (processor_seconds(), Instant::now());
    memit(&model, &hyperparameters, &contexts, &prompts, &statistics, &|_| ()).unwrap();
    println!("{} {} {}", processor_seconds() - cpu, started.elapsed().as_secs_f64(), peak_megabytes());
}

/// A record; in each further round of them with the target of another.
fn varied(records: &[Record], index: usize) -> FactPrompt {
    let (round, place) = (index / records.len(), index % records.len());
    let (record, other) = (&records[place], &records[(place + 37 * round) % records.len()]);
    FactPrompt { target: other.request.target_new_spaced(), ..FactPrompt::from(&record.request) }
}

/// One factorisation of a matrix of this order, in its own place.
fn factor(order: usize) {
    let matrix = || {
        Ok(Mat::from_fn(order, order, |row, column| {
            if row == column { order as f64 } else { ((row + column) as f64 * 0.618).sin() }
        }))
    };
    let (cpu, started) = (processor_seconds(), Instant::now());
    Factor::of(&matrix, 1.0, 0).unwrap();
    let (cpu, wall) = (processor_seconds() - cpu, started.elapsed().as_secs_f64());
    println!("order {order}: {cpu:.1} CPU seconds, {wall:.1} seconds, peak {:.0} MB", peak_megabytes());
}

fn peak_megabytes() -> f64 {
    memory_peak_bytes("self").unwrap() as f64 / 1e6
}

/// Two panels over the number of facts: seconds and MB, each with the line through its first and last point.
fn plot(points: &[(f64, f64, f64)]) -> String {
    let panel = |title: &str, figure: fn(&(f64, f64, f64)) -> f64| {
        let points: Vec<(f64, f64)> = points.iter().map(|point| (point.0, figure(point))).collect();
        let most = points.iter().fold(1e-9, |most, point| point.1.max(most));
        let ends = points.first().into_iter().chain(points.last()).copied().collect();
        let straight = Line { name: "from the first to the last", colour: "#999", points: ends };
        let measured = Line { name: "measured", colour: "#1f6feb", points };
        Panel { title: title.to_owned(), across: "facts", lines: vec![measured, straight], most }
    };
    picture(&[panel("CPU seconds", |point| point.1), panel("peak MB", |point| point.2)])
}
