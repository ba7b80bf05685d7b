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

mod words;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use faer::Mat;
use mpatch::edit::contexts::Contexts;
use mpatch::edit::hyperparameters::Hyperparameters;
use mpatch::edit::solve::Factor;
use mpatch::edit::statistics::{Amount, StatisticsFile, collect_part};
use mpatch::edit::{FactPrompt, memit};
use mpatch::facts::{FactsFile, Record};
use mpatch::model::{Model, device};
use words::Stopped;

const COUNTS: [usize; 6] = [10, 30, 100, 300, 1000, 3000];

const USAGE: &str = "\
usage: cargo bench --bench growth -- [--most FACTS] [--plot FILE]
       cargo bench --bench growth -- --factor ORDER";

/// What the words of the command line ask for.
#[derive(Debug)]
enum Work {
    Table { most: usize, plot: Option<PathBuf> },
    One { facts: usize, statistics: PathBuf },
    Factor { order: usize },
}

impl Work {
    fn read(words: impl IntoIterator<Item = String>) -> Result<Self, Stopped> {
        let mut words = words.into_iter();
        let (mut most, mut plot) = (usize::MAX, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--most" => most = words::parsed(&word, &mut words)?,
                "--plot" => plot = Some(words::value(&word, &mut words)?.into()),
                "--one" => {
                    let facts = words::parsed(&word, &mut words)?;
                    return Ok(Self::One { facts, statistics: words::value(&word, &mut words)?.into() });
                }
                "--factor" => return Ok(Self::Factor { order: words::parsed(&word, &mut words)? }),
                // What `cargo bench` adds by itself.
                "--bench" => {}
                _ => words::none(&word)?,
            }
        }
        Ok(Self::Table { most, plot })
    }
}

fn main() -> ExitCode {
    words::run(Work::read(std::env::args().skip(1)), USAGE, |work| match work {
        Work::Table { most, plot } => table(*most, plot.as_deref()),
        Work::One { facts, statistics } => one(*facts, statistics),
        Work::Factor { order } => factor(*order),
    })
}

fn table(most: usize, plot: Option<&Path>) {
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
    if let Some(place) = plot {
        std::fs::write(place, picture(&points)).unwrap();
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
    let (cpu, started) = (cpu_seconds(), Instant::now());
    memit(&model, &hyperparameters, &contexts, &prompts, &statistics, &|_| ()).unwrap();
    println!("{} {} {}", cpu_seconds() - cpu, started.elapsed().as_secs_f64(), peak_megabytes());
}

/// A record; in each further round of them with the target of another.
fn varied(records: &[Record], index: usize) -> FactPrompt {
    let (round, place) = (index / records.len(), index % records.len());
    let (record, other) = (&records[place], &records[(place + 37 * round) % records.len()]);
    FactPrompt {
        prompt: record.request.prompt.clone(),
        subject: record.request.subject.clone(),
        target: other.request.target_new_spaced(),
    }
}

/// One factorisation of a matrix of this order, in its own place.
fn factor(order: usize) {
    let matrix = || {
        Ok(Mat::from_fn(order, order, |row, column| {
            if row == column { order as f64 } else { ((row + column) as f64 * 0.618).sin() }
        }))
    };
    let (cpu, started) = (cpu_seconds(), Instant::now());
    Factor::of(&matrix, 1.0, 0).unwrap();
    let (cpu, wall) = (cpu_seconds() - cpu, started.elapsed().as_secs_f64());
    println!("order {order}: {cpu:.1} CPU seconds, {wall:.1} seconds, peak {:.0} MB", peak_megabytes());
}

/// Seconds that all threads of this process have run, by the system's count.
fn cpu_seconds() -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |field: usize| fields[field].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn peak_megabytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// Two panels over the number of facts: seconds and MB, each with the line through its first and last point.
fn picture(points: &[(f64, f64, f64)]) -> String {
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 300\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"760\" height=\"300\" fill=\"white\"/>\n",
    );
    panel(&mut svg, 60.0, "CPU seconds", points.iter().map(|(facts, cpu, _)| (*facts, *cpu)).collect());
    panel(&mut svg, 440.0, "peak MB", points.iter().map(|(facts, _, peak)| (*facts, *peak)).collect());
    svg.push_str("</svg>\n");
    svg
}

fn panel(svg: &mut String, left: f64, title: &str, points: Vec<(f64, f64)>) {
    const WIDTH: f64 = 290.0;
    const HEIGHT: f64 = 210.0;
    const TOP: f64 = 40.0;
    let largest =
        points.iter().fold((1.0_f64, 1e-9_f64), |most, point| (most.0.max(point.0), most.1.max(point.1)));
    let place = |(facts, figure): (f64, f64)| {
        (left + facts / largest.0 * WIDTH, TOP + HEIGHT - figure / largest.1 * HEIGHT)
    };
    let bottom = TOP + HEIGHT;
    writeln!(svg, "<text x=\"{left}\" y=\"24\">{title}</text>").unwrap();
    writeln!(svg, "<path d=\"M{left} {TOP} V{bottom} H{}\" fill=\"none\" stroke=\"black\"/>", left + WIDTH)
        .unwrap();
    for part in [0.5, 1.0] {
        let (x, y) = place((largest.0 * part, largest.1 * part));
        writeln!(
            svg,
            "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{:.0}</text>",
            bottom + 18.0,
            largest.0 * part
        )
        .unwrap();
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{:.0}</text>",
            left - 6.0,
            y + 4.0,
            largest.1 * part
        )
        .unwrap();
    }
    writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">facts</text>",
        left + WIDTH / 2.0,
        bottom + 36.0
    )
    .unwrap();
    if let (Some(first), Some(last)) = (points.first(), points.last()) {
        let ((x1, y1), (x2, y2)) = (place(*first), place(*last));
        writeln!(svg, "<path d=\"M{x1:.1} {y1:.1} L{x2:.1} {y2:.1}\" stroke=\"#999\" fill=\"none\"/>")
            .unwrap();
    }
    for point in &points {
        let (x, y) = place(*point);
        writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#1f6feb\"/>").unwrap();
    }
}
