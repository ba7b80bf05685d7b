//! `mpatch doctor`: is this machine fit for mpatch, does its device compute what it should, and how fast is it at best.
//!
//! Every line of the list has its evidence, and what to do where it does not hold. Only lines about the device decide
//! the exit code: a machine without git still makes patches.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use mpatch::doctor::{Ceilings, Comparison, Processor, ceilings, compare, processor};
use mpatch::model::{
    CudaVersions, Device, Gpu, Model, Precision, choose, cuda_versions, device_name, gpu_of, gpus,
};
use mpatch::sign::AllowedSigners;
use serde::Serialize;

use super::demo;
use crate::editing::{DeviceArguments, open_model_in};
use crate::error::{CommandError, ExitKind, with_causes};
use crate::interrupt::Passing;
use crate::keys;
use crate::memory::{Memory, memory};
use crate::report::{Output, Page, Report, count, size};
use crate::statistics::StatisticsCache;
use crate::trust::TrustFiles;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch doctor\n  mpatch doctor --device cuda:1\n  \
                        mpatch doctor --base gptj/ --checks-only --json")]
pub struct DoctorArguments {
    /// Compare devices on this model instead of the small one that comes with mpatch
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// The device to examine.
    #[command(flatten)]
    device: DeviceArguments,
    /// Leave out the measurements of speed
    #[arg(long)]
    checks_only: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Holds,
    /// Something will not work, and the rest will.
    Beware,
    Fails,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    outcome: Outcome,
    evidence: String,
    /// What to do about it.
    way_out: Option<String>,
    /// Whether the device is at fault; nothing else fails.
    of_device: bool,
}

impl Check {
    fn holds(what: impl Into<String>, evidence: impl Into<String>) -> Self {
        let (what, evidence) = (what.into(), evidence.into());
        Self { what, outcome: Outcome::Holds, evidence, way_out: None, of_device: false }
    }

    fn beware(what: impl Into<String>, evidence: impl Into<String>, way_out: &str) -> Self {
        Self { outcome: Outcome::Beware, way_out: Some(way_out.to_owned()), ..Self::holds(what, evidence) }
    }

    /// The device fails, and with it the command.
    fn fails(what: impl Into<String>, evidence: impl Into<String>, way_out: &str) -> Self {
        Self { outcome: Outcome::Fails, of_device: true, ..Self::beware(what, evidence, way_out) }
    }
}

/// A crate that is in this program.
#[derive(Debug, Serialize)]
struct Library {
    name: &'static str,
    version: &'static str,
}

/// What one device reached.
#[derive(Debug, Serialize)]
struct Measured {
    device: String,
    #[serde(flatten)]
    ceilings: Ceilings,
}

#[derive(Debug, Serialize)]
struct DoctorReport {
    mpatch: &'static str,
    architecture: &'static str,
    libraries: Vec<Library>,
    cuda: CudaVersions,
    processor: Processor,
    gpus: Vec<Gpu>,
    /// The device that a command would run on.
    device: Option<String>,
    checks: Vec<Check>,
    comparisons: Vec<Compared>,
    ceilings: Vec<Measured>,
}

/// A comparison, and the device that it is of.
#[derive(Debug, Serialize)]
struct Compared {
    device: String,
    holds: bool,
    #[serde(flatten)]
    comparison: Comparison,
}

/// Examines the machine.
pub fn run(arguments: &DoctorArguments, output: &Output) -> Result<(), CommandError> {
    let mut examination = Examination { checks: Vec::new(), comparisons: Vec::new(), ceilings: Vec::new() };
    let processor = processor();
    examination.processor(&processor);
    let device = examination.device(arguments.device.device.as_deref());
    let gpus = examination.gpus(device.as_ref());
    examination.integers();
    let (_passing, base) = match &arguments.base {
        Some(base) => (None, base.clone()),
        None => {
            let (passing, folder) = Passing::new()?;
            let model = folder.join("model");
            demo::unpack(&model)?;
            (Some(passing), model)
        }
    };
    let model = open_model_in(&base, &Device::Cpu, Precision::F32, output)?;
    examination.compare(&model, &model)?;
    let gpu = device.as_ref().filter(|device| !device.is_cpu());
    if let Some(gpu) = gpu {
        match open_model_in(&base, gpu, Precision::F32, output) {
            Ok(there) => examination.compare(&model, &there)?,
            Err(error) => {
                let hint =
                    error.hint.unwrap_or_else(|| "run on the processor with `--device cpu`".to_owned());
                examination.checks.push(Check::fails(device_name(gpu), error.message, &hint));
            }
        }
    }
    drop(model);
    if !arguments.checks_only {
        for device in std::iter::once(&Device::Cpu).chain(gpu) {
            examination.measure(device);
        }
    }
    examination.surroundings();
    let report = DoctorReport {
        mpatch: env!("CARGO_PKG_VERSION"),
        architecture: std::env::consts::ARCH,
        libraries: libraries(),
        cuda: cuda_versions(gpu),
        processor,
        gpus,
        device: device.as_ref().map(device_name),
        checks: examination.checks,
        comparisons: examination.comparisons,
        ceilings: examination.ceilings,
    };
    output.report(&report)?;
    report.verdict()
}

/// What has been found so far.
struct Examination {
    checks: Vec<Check>,
    comparisons: Vec<Compared>,
    ceilings: Vec<Measured>,
}

impl Examination {
    fn processor(&mut self, processor: &Processor) {
        let evidence = format!(
            "{}, products by {} ({})",
            count(processor.threads, "thread"),
            processor.products,
            processor.extensions.join(" ")
        );
        self.checks.push(Check::holds("processor", evidence));
        if let Some(Memory { available_bytes, all_bytes, .. }) = memory() {
            let free = format!("{} free of {}", size(available_bytes), size(all_bytes));
            self.checks.push(Check::holds("memory", free));
        }
    }

    /// The device that `name` means, if it opens.
    fn device(&mut self, name: Option<&str>) -> Option<Device> {
        let (check, device) = match choose(name) {
            Ok(choice) => {
                let called = device_name(&choice.device);
                let evidence = match (gpu_of(&choice.device), &choice.reason) {
                    (Some(gpu), _) => format!("{called}: {}", described(&gpu)),
                    (None, Some(reason)) => format!("{called}: {reason}"),
                    (None, None) => called,
                };
                let wanted_more = choice.device.is_cpu() && choice.reason.is_some();
                let check = match wanted_more {
                    true => Check::beware("device", evidence, "see docs/cuda.md for what a GPU needs"),
                    false => Check::holds("device", evidence),
                };
                (check, Some(choice.device))
            }
            Err(error) => {
                let way_out = "leave `--device` out, or run on the processor with `--device cpu`";
                (Check::fails("device", with_causes(&error), way_out), None)
            }
        };
        self.checks.push(check);
        let versions = cuda_versions(device.as_ref());
        if let Some(kernels) = &versions.kernels {
            let or =
                |version: &Option<String>, none: &str| version.clone().unwrap_or_else(|| none.to_owned());
            let evidence = format!(
                "kernels for CUDA {kernels} and compute capability {} on, driver {}, cuBLAS {}",
                or(&versions.capability_min, "unknown"),
                or(&versions.driver, "not loaded"),
                or(&versions.cublas, "not loaded")
            );
            self.checks.push(Check::holds("CUDA", evidence));
        }
        device
    }

    /// All GPUs that can be asked; each but the device itself, which has its line, gets one.
    fn gpus(&mut self, device: Option<&Device>) -> Vec<Gpu> {
        let taken = device.map(device_name);
        let mut found = Vec::new();
        for (index, gpu) in gpus().unwrap_or_default().into_iter().enumerate() {
            let name = format!("cuda:{index}");
            let is_device = taken.as_ref() == Some(&name);
            match gpu {
                Ok(gpu) => {
                    if !is_device {
                        self.checks.push(Check::holds(name, described(&gpu)));
                    }
                    found.push(gpu);
                }
                Err(error) => {
                    self.checks.push(Check::beware(
                        name,
                        error,
                        "another program may hold it: name another GPU",
                    ));
                }
            }
        }
        found
    }

    /// The product that every patch rests on, beside its definition.
    fn integers(&mut self) {
        self.checks.push(match mpatch::factors::check_kernels() {
            Ok(()) => Check::holds("integer product", "equal to its definition, bit for bit"),
            Err(error) => Check::fails(
                "integer product",
                error.to_string(),
                "do not make or apply patches here: the processor, its memory or this build is at fault",
            ),
        });
    }

    /// Compares the device that `there` lies on with the processor.
    fn compare(&mut self, model: &Model, there: &Model) -> Result<(), CommandError> {
        let device = device_name(there.network.device());
        let comparisons = match compare(model, &there.network) {
            Ok(comparisons) => comparisons,
            Err(error) => {
                let way_out = "run on the processor with `--device cpu`";
                self.checks.push(Check::fails(device, error.to_string(), way_out));
                return Ok(());
            }
        };
        for comparison in comparisons {
            let what = format!("{device} {}", comparison.what);
            let evidence = match comparison.difference {
                0.0 => format!("equal to {}", comparison.against),
                difference => {
                    format!(
                        "within {difference:.1e} of {}, {:.0e} allowed",
                        comparison.against, comparison.limit
                    )
                }
            };
            self.checks.push(match comparison.holds() {
                true => Check::holds(what, evidence),
                false => Check::fails(
                    what,
                    format!("off by {:.1e} from {}", comparison.difference, comparison.against),
                    "do not use this device: compare with another driver, and report both outputs",
                ),
            });
            self.comparisons.push(Compared { device: device.clone(), holds: comparison.holds(), comparison });
        }
        Ok(())
    }

    fn measure(&mut self, device: &Device) {
        match ceilings(device) {
            Ok(ceilings) => self.ceilings.push(Measured { device: device_name(device), ceilings }),
            // Others may hold the memory: that says nothing against the device.
            Err(error) => self.checks.push(Check::beware(
                format!("{} speed", device_name(device)),
                error.to_string(),
                "measure when nobody else uses the device, or give `--checks-only`",
            )),
        }
    }

    /// What lies around mpatch on this machine: folders, keys and programs, each a line of its own.
    fn surroundings(&mut self) {
        self.checks.push(cache());
        self.checks.push(signing_key());
        self.checks.push(trust());
        self.checks.push(program("git", &["--version"], "a history needs it to fetch and push: install git"));
        let lfs = "a history keeps patches above a megabyte with it: install git-lfs";
        self.checks.push(program("git", &["lfs", "version"], lfs));
    }
}

/// A GPU in a line.
fn described(gpu: &Gpu) -> String {
    let (free, all) = (size(gpu.free_bytes), size(gpu.memory_bytes));
    format!("{}, compute capability {}, {free} free of {all}", gpu.product, gpu.capability)
}

/// Where statistics are kept: can it be written to, and what is free.
fn cache() -> Check {
    let Some(cache) = StatisticsCache::of_user() else {
        return Check::beware("cache", "neither HOME nor MPATCH_CACHE_DIR is set", "set MPATCH_CACHE_DIR");
    };
    let folder = cache.folder();
    let there = match place_to_write(folder) {
        Ok(there) => there,
        Err(error) => {
            let evidence = format!("{} cannot be written to: {error}", folder.display());
            return Check::beware("cache", evidence, "name another folder in MPATCH_CACHE_DIR");
        }
    };
    match mpatch::checkpoint::free_space_bytes(there) {
        Ok(free) => Check::holds("cache", format!("{}, {} free", folder.display(), size(free))),
        Err(error) => Check::beware("cache", error.to_string(), "name another folder in MPATCH_CACHE_DIR"),
    }
}

/// The folder, or where it would be made when it is first needed; an error where nothing can be written there.
fn place_to_write(folder: &Path) -> std::io::Result<&Path> {
    let is_there = |folder: &&Path| !folder.as_os_str().is_empty() && folder.symlink_metadata().is_ok();
    let there = folder.ancestors().find(is_there).unwrap_or(Path::new("."));
    tempfile::tempfile_in(there)?;
    Ok(there)
}

/// Which key would sign a new patch, and why; asking makes none.
fn signing_key() -> Check {
    const WHAT: &str = "signing key";
    let prospect = match keys::prospect() {
        Ok(prospect) => prospect,
        Err(error) => {
            return Check::beware(WHAT, error.message, error.hint.as_deref().unwrap_or(NAME_A_KEY));
        }
    };
    let keys::Prospect { key, place, reason } = prospect;
    let folder = Path::new(&place).parent().unwrap_or(Path::new("."));
    if let (None, Err(error)) = (&key, place_to_write(folder)) {
        let evidence = format!("none yet, and {place} cannot be made: {error}");
        return Check::beware(WHAT, evidence, "name a key in MPATCH_KEY, or a folder in MPATCH_CONFIG_DIR");
    }
    Check::holds(
        WHAT,
        match key {
            Some(key) => format!("{} ({}), {place}: {reason}", key.fingerprint(), key.algorithm()),
            None => format!("none yet, the first patch that is signed makes {place}: {reason}"),
        },
    )
}

const NAME_A_KEY: &str = "name a key in MPATCH_KEY, or let mpatch make one";

/// Where lists of believed keys were found, and what they come to.
fn trust() -> Check {
    const WHAT: &str = "trust";
    let files = match TrustFiles::load() {
        Ok(files) => files,
        Err(error) => return Check::beware(WHAT, error.message, error.hint.as_deref().unwrap_or(MEND_LISTS)),
    };
    if let Some(warning) = files.warnings().first() {
        return Check::beware(WHAT, warning, MEND_LISTS);
    }
    let list = |(name, signers): &(String, AllowedSigners)| {
        format!("{} in {name}", count(signers.entries.len(), "key"))
    };
    let mut lists: Vec<String> = files.sources().iter().map(list).collect();
    lists.extend(
        files.unaccepted().iter().map(|list| {
            format!("{} in {}, {}", count(list.signers.entries.len(), "key"), list.file, list.lack)
        }),
    );
    if lists.is_empty() {
        lists.push(
            "no list of believed keys: `mpatch trust add KEY.pub --principal NAME` begins one".to_owned(),
        );
    }
    if !files.revoked().is_empty() {
        lists.push(count(files.revoked().len(), "revoked key"));
    }
    lists.extend(files.policy().map(|policy| format!("policy: {}", policy.in_words())));
    Check::holds(WHAT, lists.join(", "))
}

const MEND_LISTS: &str = "`mpatch trust list` shows all lists and what is wrong with them";

/// The first line that a program says of itself.
fn program(name: &str, arguments: &[&str], way_out: &str) -> Check {
    let what =
        if arguments[0].starts_with('-') { name.to_owned() } else { format!("{name}-{}", arguments[0]) };
    let said = Command::new(name).args(arguments).stdin(std::process::Stdio::null()).output();
    match said {
        Ok(said) if said.status.success() => {
            let text = String::from_utf8_lossy(&said.stdout);
            Check::holds(what, text.lines().next().unwrap_or_default())
        }
        _ => Check::beware(what, "not found", way_out),
    }
}

/// The crates whose arithmetic and formats matter, with their versions in this program.
fn libraries() -> Vec<Library> {
    const LOCK: &str = include_str!("../../../../Cargo.lock");
    const NAMES: [&str; 7] = ["candle-core", "cudarc", "faer", "gemm", "tokenizers", "safetensors", "blake3"];
    let version = |name: &'static str| {
        let (_, rest) = LOCK.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        let (version, _) = rest.split_once('"')?;
        Some(Library { name, version })
    };
    let built_in = |name: &&str| *name != "cudarc" || cuda_versions(None).kernels.is_some();
    NAMES.into_iter().filter(built_in).filter_map(version).collect()
}

impl DoctorReport {
    /// Fails where a check of the device does.
    fn verdict(&self) -> Result<(), CommandError> {
        let mut failed = self.checks.iter().filter(|check| check.outcome == Outcome::Fails);
        let Some(first) = failed.next() else { return Ok(()) };
        let others = match failed.count() {
            0 => String::new(),
            others => format!(", and {}", count(others, "other check")),
        };
        let message = format!("{} fails: {}{others}", first.what, first.evidence);
        let error = CommandError::new(ExitKind::Device, message);
        Err(match &first.way_out {
            Some(way_out) => error.hint(way_out.clone()),
            None => error,
        })
    }
}

impl Report for DoctorReport {
    const SCHEMA: &'static str = "mpatch.doctor/1";

    fn write(&self, page: &mut Page) {
        let libraries = self.libraries.iter().map(|library| format!("{} {}", library.name, library.version));
        page.title(&format!("mpatch {} on {}", self.mpatch, self.architecture));
        page.line(&format!("  with {}", libraries.collect::<Vec<_>>().join(", ")));
        page.blank();
        let row = |check: &Check| {
            let outcome = match check.outcome {
                Outcome::Holds => "ok",
                Outcome::Beware => "beware",
                Outcome::Fails => "FAILS",
            };
            // As wide as the widest, so that lines stand where they stood before.
            vec![format!("{outcome:<6}"), check.what.clone(), check.evidence.clone()]
        };
        page.table(&self.checks.iter().map(row).collect::<Vec<_>>());
        for check in &self.checks {
            if let Some(way_out) = &check.way_out {
                page.line(&format!("{}: {way_out}", check.what));
            }
        }
        if self.ceilings.is_empty() {
            return;
        }
        page.blank();
        page.title("At best");
        page.table(&self.ceilings.iter().flat_map(Measured::rows).collect::<Vec<_>>());
    }

    fn next(&self) -> Option<String> {
        self.verdict().is_ok().then(|| "mpatch demo".to_owned())
    }
}

impl Measured {
    fn rows(&self) -> Vec<Vec<String>> {
        let giga = |per_second: f64, unit: &str| match per_second {
            large if large >= 1e12 => format!("{:.1} T{unit}/s", large / 1e12),
            small => format!("{:.1} G{unit}/s", small / 1e9),
        };
        let ceilings = &self.ceilings;
        let figures = [
            ("f32 products", Some(giga(ceilings.f32_product_per_second, "FLOP"))),
            ("f64 products", ceilings.f64_product_per_second.map(|figure| giga(figure, "FLOP"))),
            ("memory, read and written", Some(giga(ceilings.memory_bytes_per_second, "B"))),
            ("BLAKE3 on one core", ceilings.hash_bytes_per_second.map(|figure| giga(figure, "B"))),
        ];
        let row = |(what, figure): (&str, Option<String>)| {
            Some(vec![self.device.clone(), what.to_owned(), figure?])
        };
        figures.into_iter().filter_map(row).collect()
    }
}
