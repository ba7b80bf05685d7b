//! Patches on a checkpoint of full size, beside `cp`, `b3sum` and plain reading and writing of the same bytes.
//!
//! `cargo bench --bench full_size -- --help` says how it is called.
//!
//! Each figure is the median over rounds in which the programs take turns, so that whatever else the machine does
//! meets them alike. Copies are made beside `FOLDER` unless `--scratch` names a place, and removed at once. Memory is
//! the most that a child process ever held (`VmHWM`). Prints Markdown.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark prints, and stops at what is missing"
)]

mod plot;
#[path = "../tests/resources/mod.rs"]
mod resources;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use mpatch::checkpoint::{Checkpoint, FileSource, TensorInfo};
use mpatch::factors::{Integers, Kernel, Update};
use mpatch::patch::Patch;
use plot::{Line, Panel, picture};
use resources::{memory_peak_bytes, processor_seconds_of_children};

const MPATCH: &str = env!("CARGO_BIN_EXE_mpatch");

/// The tables of docs/performance.md, of folders that the example `full_size` wrote.
#[derive(Parser)]
struct Arguments {
    /// How often each program takes its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where copies are made: two of a checkpoint have to fit; beside it by default.
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// Writes the plot of all the folders, the small ones first.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// The patches of these numbers of facts alone.
    #[arg(long, value_delimiter = ',')]
    facts: Option<Vec<usize>>,
    /// `verify` alone, which needs no room.
    #[arg(long)]
    checks_only: bool,
    #[arg(value_name = "FOLDER")]
    folders: Vec<PathBuf>,
    /// What `cargo bench` adds by itself.
    #[arg(long = "bench", hide = true)]
    _bench: bool,
}

fn main() {
    let arguments = &Arguments::parse();
    if arguments.folders.is_empty() {
        println!("name a folder that the example `full_size` wrote");
        return;
    }
    let mut points = Vec::new();
    for folder in &arguments.folders {
        points.extend(Bench::open(folder, arguments).run());
    }
    if let Some(path) = &arguments.plot {
        std::fs::write(path, plot(&points)).unwrap();
        println!("\nplot: {}", path.display());
    }
}

/// One checkpoint and its patches.
struct Bench<'a> {
    weights: PathBuf,
    size_bytes: u64,
    patches: Vec<(usize, PathBuf)>,
    scratch: PathBuf,
    arguments: &'a Arguments,
}

/// A change in place takes a second where a copy takes ten, and swings more.
const IN_PLACE_PER_COPY: usize = 3;

/// What changing a checkpoint in place took, beside rewriting the same bytes.
struct InPlace {
    rewritten: Vec<Cost>,
    applied: Vec<Cost>,
    reverted: Vec<Cost>,
}

impl InPlace {
    const fn new() -> Self {
        Self { rewritten: Vec::new(), applied: Vec::new(), reverted: Vec::new() }
    }
}

/// A row of the plot.
struct Point {
    size_bytes: u64,
    facts: usize,
    /// As many as [`LINES`].
    seconds: [f64; 3],
}

/// What the plot shows of each checkpoint and patch.
const LINES: [(&str, &str); 3] =
    [("mpatch apply", "#c0392b"), ("cp", "#2c3e50"), ("mpatch apply --in-place", "#2980b9")];

/// What a child process took.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    /// Of all its threads, in itself and in the system: what a busy machine does not change.
    processor_seconds: f64,
    peak_bytes: u64,
}

impl Cost {
    /// Of work in this process, whose processor time is not told apart.
    fn since(start: Instant) -> Self {
        Self { seconds: start.elapsed().as_secs_f64(), processor_seconds: 0.0, peak_bytes: 0 }
    }
}

impl<'a> Bench<'a> {
    fn open(folder: &Path, arguments: &'a Arguments) -> Self {
        let weights = folder.join("model.safetensors");
        let size_bytes = std::fs::metadata(&weights).unwrap().len();
        let mut patches: Vec<(usize, PathBuf)> = std::fs::read_dir(folder.join("patches"))
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let facts = path.file_stem()?.to_str()?.strip_prefix("facts-")?.parse().ok()?;
                Some((facts, path))
            })
            .collect();
        patches.sort();
        if let Some(facts) = &arguments.facts {
            patches.retain(|(number, _)| facts.contains(number));
        }
        let scratch = arguments.scratch.clone().unwrap_or_else(|| folder.to_owned());
        Self { weights, size_bytes, patches, scratch, arguments }
    }

    fn run(&self) -> Vec<Point> {
        println!("\n## {} ({})\n", self.weights.display(), gigabytes(self.size_bytes));
        println!("| facts | program | seconds | processor seconds | against | ratio | peak memory |");
        println!("|---|---|---|---|---|---|---|");
        let mut points = Vec::new();
        for (facts, patch) in &self.patches {
            if !self.arguments.checks_only {
                points.push(self.changes(*facts, patch));
            }
            self.checks(*facts, patch);
        }
        if !self.arguments.checks_only {
            self.products();
        }
        points
    }

    /// Copies and changes in place.
    fn changes(&self, facts: usize, patch: &Path) -> Point {
        let (copied, edited, reverted) =
            (self.scratch.join("copied"), self.scratch.join("edited"), self.scratch.join("reverted"));
        // What a run that was ended left.
        [&copied, &edited, &reverted].into_iter().filter(|path| path.exists()).for_each(|path| remove(path));
        let (mut copies, mut synced, mut applied, mut taken_back) = (vec![], vec![], vec![], vec![]);
        let mut in_place = [const { InPlace::new() }; 2];
        for _ in 0..self.arguments.rounds {
            self.settle_from(&self.weights);
            let start = Instant::now();
            copies.push(child(Command::new("cp").arg(&self.weights).arg(&copied)));
            // What mpatch writes is on disk when it returns, so the copy that it is held to must get there as well.
            File::open(&copied).unwrap().sync_all().unwrap();
            synced.push(Cost::since(start));
            remove(&copied);
            self.settle_from(&self.weights);
            applied.push(mpatch(&["apply", "--allow-unsigned"], &[&self.weights, patch], Some(&edited)));
            // Both do not fit into memory, and the way back is to find its input there as the way there did.
            forget(&self.weights);
            if self.has_room() {
                self.settle_from(&edited);
                taken_back.push(mpatch(&["revert"], &[&edited, patch], Some(&reverted)));
                remove(&reverted);
            }
            for (cold, costs) in [true, false].into_iter().zip(&mut in_place) {
                let prepare = || {
                    if cold {
                        forget(&edited);
                    }
                };
                for _ in 0..IN_PLACE_PER_COPY {
                    prepare();
                    costs.rewritten.push(self.rewrite_touched(&edited, patch));
                    prepare();
                    costs.reverted.push(mpatch(&["revert", "--in-place"], &[&edited, patch], None));
                    prepare();
                    costs.applied.push(mpatch(
                        &["apply", "--in-place", "--allow-unsigned"],
                        &[&edited, patch],
                        None,
                    ));
                }
            }
            remove(&edited);
        }
        let (copy, sync, apply) = (median(&copies), median(&synced), median(&applied));
        row(facts, "`cp`", copy, "", None);
        row(facts, "`cp`, then sync", sync, "`cp`", Some(copy));
        row(facts, "`mpatch apply`", apply, "`cp`, then sync", Some(sync));
        row(facts, "`mpatch apply`", apply, "`cp`", Some(copy));
        if !taken_back.is_empty() {
            row(facts, "`mpatch revert`", median(&taken_back), "`mpatch apply`", Some(apply));
        }
        for (costs, state) in in_place.iter().zip(["from the disk", "in the system's memory"]) {
            let rewrite = median(&costs.rewritten);
            row(facts, &format!("read, write, sync of the touched tensors, {state}"), rewrite, "", None);
            for (verb, costs) in [("apply", &costs.applied), ("revert", &costs.reverted)] {
                let name = format!("`mpatch {verb} --in-place`, {state}");
                row(facts, &name, median(costs), "reading and writing", Some(rewrite));
            }
        }
        let in_memory = median(&in_place[1].applied);
        let seconds = [apply, copy, in_memory].map(|cost| cost.seconds);
        Point { size_bytes: self.size_bytes, facts, seconds }
    }

    /// Checks, of weights that memory holds as far as they fit.
    fn checks(&self, facts: usize, patch: &Path) {
        let (mut compared, mut computed, mut hashed) = (vec![], vec![], vec![]);
        let base = self.weights.to_str().unwrap();
        for _ in 0..self.arguments.rounds {
            read(&self.weights);
            hashed.push(hash([&self.weights, patch]));
            for (depth, costs) in [("--digests-only", &mut compared), ("--weights-only", &mut computed)] {
                read(&self.weights);
                costs.push(mpatch(&["verify", "--allow-unsigned", depth, "--base", base], &[patch], None));
            }
        }
        let hasher = hasher().1;
        let hash = median(&hashed);
        let twice = self.with_touched_again(hash, patch);
        row(facts, hasher, hash, "", None);
        row(facts, "`mpatch verify --digests-only --base`", median(&compared), hasher, Some(hash));
        let computed_twice =
            format!("{hasher}, of the touched tensors twice: computed from the row of it above");
        row(facts, &computed_twice, twice, "", None);
        let against = format!("{hasher}, twice as computed");
        row(facts, "`mpatch verify --weights-only --base`", median(&computed), &against, Some(twice));
    }

    /// Copies `source` and removes the copy, so that each program that makes one finds the memory and the disk alike.
    ///
    /// A virtual machine gives memory that lies free back to its host, and whoever fills it next waits for it: copying
    /// 12 GB has taken 17 to 50 seconds after a pause, and 10 to 14 right after another copy.
    fn settle_from(&self, source: &Path) {
        let copied = self.scratch.join("copied");
        child(Command::new("cp").arg(source).arg(&copied));
        File::open(&copied).unwrap().sync_all().unwrap();
        remove(&copied);
    }

    /// Whether another copy fits; without a third file, taking back to a copy is left out.
    fn has_room(&self) -> bool {
        let disk = rustix::fs::statvfs(&self.scratch).unwrap();
        disk.f_bavail * disk.f_frsize > self.size_bytes
    }

    fn touched(&self, patch: &Path) -> (Checkpoint, Vec<TensorInfo>) {
        let checkpoint = Checkpoint::open(&self.weights).unwrap();
        let patch = open_patch(patch);
        let tensors = &patch.manifest().bindings[0].tensors;
        let touched = tensors.iter().map(|tensor| checkpoint.tensor(&tensor.name).unwrap().clone()).collect();
        (checkpoint, touched)
    }

    /// Reads every touched tensor of `file`, writes it back, and waits for the disk.
    fn rewrite_touched(&self, file: &Path, patch: &Path) -> Cost {
        let (_, touched) = self.touched(patch);
        let start = Instant::now();
        let file = File::options().read(true).write(true).open(file).unwrap();
        let mut block = vec![0; 32 << 20];
        for tensor in touched {
            let mut offset = 0;
            while offset < tensor.size_bytes {
                let size = (block.len() as u64).min(tensor.size_bytes - offset) as usize;
                file.read_exact_at(&mut block[..size], tensor.offset + offset).unwrap();
                file.write_all_at(&block[..size], tensor.offset + offset).unwrap();
                offset += size as u64;
            }
        }
        file.sync_all().unwrap();
        Cost::since(start)
    }

    /// What hashing would take of all that `verify` has to where it computes: the checkpoint and the patch, which took
    /// `whole`, and the touched tensors once more in their other state.
    fn with_touched_again(&self, whole: Cost, patch: &Path) -> Cost {
        let (_, touched) = self.touched(patch);
        let again: u64 = touched.iter().map(|tensor| tensor.size_bytes).sum();
        let hashed = self.size_bytes + std::fs::metadata(patch).unwrap().len();
        let more = 1.0 + again as f64 / hashed as f64;
        Cost {
            seconds: whole.seconds * more,
            processor_seconds: whole.processor_seconds * more,
            peak_bytes: whole.peak_bytes,
        }
    }

    /// What the products alone come to, beside the machine's peak.
    fn products(&self) {
        println!("\n| facts | kernel | products per second, one thread | peak of its instruction | share |");
        println!("|---|---|---|---|---|");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for (facts, path) in &self.patches {
            let patch = open_patch(path);
            let term = patch.term(0).unwrap();
            let Integers::LowRank { left, .. } = term.integers() else { continue };
            let (rank, columns) = (left.columns() as f64, term.columns());
            for kernel in Kernel::ALL.into_iter().filter(|kernel| kernel.is_available()) {
                if kernel == Kernel::Plain {
                    continue;
                }
                let update = Update::of(kernel, [Ok(term.clone())], |error| error).unwrap();
                let rows = 0..256;
                let mut weights = vec![0; rows.len() * columns * 2];
                let mut best: f64 = 0.0;
                let mut peak: f64 = 0.0;
                // Taking turns, and the best of several: the machine may be busy.
                for _ in 0..5 {
                    let start = Instant::now();
                    pool.install(|| {
                        update.apply_rows(mpatch::tensor::Dtype::BF16, rows.clone(), &mut weights).unwrap()
                    });
                    let products = rank * (rows.len() * columns) as f64;
                    best = best.max(products / start.elapsed().as_secs_f64());
                    let start = Instant::now();
                    let Some(products) = kernel.multiply_in_registers(4_000_000) else { continue };
                    peak = peak.max(products as f64 / start.elapsed().as_secs_f64());
                }
                let share = if peak > 0.0 { format!("{:.2}", best / peak) } else { "-".to_owned() };
                println!("| {facts} | {kernel} | {:.1e} | {:.1e} | {share} |", best, peak);
            }
        }
    }
}

fn open_patch(path: &Path) -> Patch {
    Patch::open(Arc::new(FileSource::open(path).unwrap())).unwrap()
}

fn row(facts: usize, program: &str, cost: Cost, against: &str, other: Option<Cost>) {
    let ratio = other.map_or(String::new(), |other| format!("{:.2}", cost.seconds / other.seconds));
    let memory = if cost.peak_bytes > 0 { format!("{} MiB", cost.peak_bytes >> 20) } else { String::new() };
    let Cost { seconds, processor_seconds, .. } = cost;
    let processor = if processor_seconds > 0.0 { format!("{processor_seconds:.2}") } else { String::new() };
    println!("| {facts} | {program} | {seconds:.2} | {processor} | {against} | {ratio} | {memory} |");
    std::io::stdout().flush().unwrap();
}

fn median(costs: &[Cost]) -> Cost {
    let middle = |value: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        // Of an even number, the mean of the two in the middle.
        f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
    };
    Cost {
        seconds: middle(|cost| cost.seconds),
        processor_seconds: middle(|cost| cost.processor_seconds),
        peak_bytes: costs.iter().map(|cost| cost.peak_bytes).max().unwrap_or(0),
    }
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

fn mpatch(options: &[&str], paths: &[&Path], output: Option<&Path>) -> Cost {
    let mut command = Command::new(MPATCH);
    command.args(options).args(paths).arg("--quiet");
    if let Some(output) = output {
        command.arg("-o").arg(output);
    }
    child(&mut command)
}

/// Has the system forget what it keeps of a file, so that the next to read it reads the disk.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Has the system keep as much of a file as it has room for.
fn read(path: &Path) {
    std::io::copy(&mut File::open(path).unwrap(), &mut std::io::sink()).unwrap();
}

/// Runs a program to its end, looking at its memory all the while.
fn child(command: &mut Command) -> Cost {
    let (start, used_before) = (Instant::now(), processor_seconds_of_children());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut peak_bytes = 0;
    loop {
        peak_bytes = memory_peak_bytes(child.id()).map_or(peak_bytes, |peak| peak.max(peak_bytes));
        if let Some(outcome) = child.try_wait().unwrap() {
            assert!(outcome.success(), "{command:?}: {outcome}");
            let processor_seconds = processor_seconds_of_children() - used_before;
            return Cost { processor_seconds, peak_bytes, ..Cost::since(start) };
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `b3sum` where there is one, else its crate on the bytes as this process reads them.
fn hasher() -> (Option<PathBuf>, &'static str) {
    let named = std::env::var_os("B3SUM").map(PathBuf::from);
    let found = named.or_else(|| {
        let paths = std::env::var_os("PATH")?;
        std::env::split_paths(&paths).map(|path| path.join("b3sum")).find(|path| path.is_file())
    });
    if found.is_some() { (found, "`b3sum`") } else { (None, "BLAKE3 on all threads") }
}

/// The weights and the patch: what `verify` has to hash.
fn hash(paths: [&Path; 2]) -> Cost {
    if let Some(program) = hasher().0 {
        return child(Command::new(program).args(paths));
    }
    let start = Instant::now();
    let mut block = vec![0; 32 << 20];
    for path in paths {
        let (mut file, mut hasher) = (File::open(path).unwrap(), blake3::Hasher::new());
        loop {
            let read = file.read(&mut block).unwrap();
            if read == 0 {
                break;
            }
            hasher.update_rayon(&block[..read]);
        }
        std::hint::black_box(hasher.finalize());
    }
    Cost::since(start)
}

// ------------------------------------------------------------------------------------------------------- the plot --

/// Time against size for one number of facts, and against the number of facts for one size.
fn plot(points: &[Point]) -> String {
    let largest = points.iter().map(|point| point.size_bytes).max().unwrap_or(1);
    let middle = points.iter().map(|point| point.facts).filter(|facts| *facts <= 100).max().unwrap_or(1);
    let most = points.iter().flat_map(|point| point.seconds).fold(0.0, f64::max) * 1.1;
    let lines = |shown: &dyn Fn(&Point) -> bool, across: fn(&Point) -> f64| {
        let mut points: Vec<&Point> = points.iter().filter(|point| shown(point)).collect();
        points.sort_by(|one, other| across(one).total_cmp(&across(other)));
        let line = |(index, (name, colour))| {
            let points = points.iter().map(|point| (across(point), point.seconds[index])).collect();
            Line { name, colour, points }
        };
        LINES.into_iter().enumerate().map(line).collect()
    };
    picture(&[
        Panel {
            title: format!("seconds against the checkpoint's size, {middle} facts"),
            across: "GB",
            lines: lines(&|point| point.facts == middle, |point| point.size_bytes as f64 / 1e9),
            most,
        },
        Panel {
            title: format!("seconds against the number of facts, {}", gigabytes(largest)),
            across: "facts",
            lines: lines(&|point| point.size_bytes == largest, |point| point.facts as f64),
            most,
        },
    ])
}
