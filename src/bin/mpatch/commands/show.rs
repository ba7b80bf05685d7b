//! `mpatch show`: what a patch says about itself, and what its bytes bear out.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::digest::{FileDigest, PatchId, TensorDigest, WeightsId};
use mpatch::patch::manifest::{
    About, Base, Fact, IntegersEntry, Line, Metric, Recipe, SectionKind, TensorBinding,
};
use mpatch::patch::{Manifest, Patch};
use mpatch::sign::{Judgement, SshSig};
use mpatch::tensor::Dtype;
use serde::Serialize;

use super::{names_a_file, open_patch, patch_word};
use crate::args::optional;
use crate::error::{CommandError, ExitKind};
use crate::history::{CommitReport, StoreArguments, branch_of, message, state_named};
use crate::report::{Output, Page, Report, count, row, size};
use crate::signers;
use crate::trust::TrustFiles;

/// How many facts are shown unless all are asked for.
const FACTS_SHOWN: usize = 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch show edits.mpatch\n  mpatch show edits.mpatch --all\n  mpatch show main~2\n  \
                  curl -s https://example.org/edits.mpatch | mpatch show - --json"
)]
pub struct ShowArguments {
    /// Show this patch, or else the state of this name, or the patch of this id, in the history; `-` reads a patch
    /// from standard input
    #[arg(value_name = "PATCH|REVISION")]
    patch: PathBuf,
    /// List every fact instead of the first 20
    #[arg(long)]
    all: bool,
    /// Print the manifest, byte for byte as it was signed, and nothing else
    #[arg(long, conflicts_with_all = ["all", "signature"])]
    manifest: bool,
    /// Print a signature as OpenSSH writes it, and nothing else; the first by default
    #[arg(long, value_name = "NUMBER", num_args = 0..=1, default_missing_value = "1", value_parser = optional::<usize>, conflicts_with = "all")]
    signature: Option<usize>,
    #[command(flatten)]
    store: StoreArguments,
}

#[derive(Debug, Serialize)]
struct ShowReport {
    patch: PathBuf,
    patch_id: PatchId,
    size_bytes: u64,
    /// The keys that claim to have signed, none of them judged here.
    signatures: Vec<String>,
    base: Base,
    bindings: Vec<BindingReport>,
    terms: Vec<TermReport>,
    sizes: Vec<SizeReport>,
    untrusted: Untrusted,
    #[serde(skip)]
    facts_shown: usize,
}

/// What the patch's maker says; no digest bears it out.
#[derive(Debug, Serialize)]
struct Untrusted {
    facts: Vec<Fact>,
    recipe: Recipe,
    measured: Vec<Metric>,
    line: Option<Line>,
    parents: Vec<PatchId>,
    supersedes: Vec<PatchId>,
    about: About,
    norm_ratios: Vec<NormRatio>,
}

/// How much a tensor changes, in relation to its norm.
#[derive(Debug, Serialize)]
struct NormRatio {
    weights: WeightsId,
    tensor: String,
    norm_ratio: f64,
}

/// A binding without what only its maker says.
#[derive(Debug, Serialize)]
struct BindingReport {
    weights: WeightsId,
    tensors: Vec<TensorReport>,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    dtype: Dtype,
    shape: [u64; 2],
    before: TensorDigest,
    after: TensorDigest,
    terms: Vec<u32>,
    undo: u32,
    correction: Option<u32>,
    /// Stands among what is untrusted.
    #[serde(skip)]
    norm_ratio: f64,
}

impl From<TensorBinding> for TensorReport {
    fn from(tensor: TensorBinding) -> Self {
        let TensorBinding { name, dtype, shape, before, after, norm_ratio, terms, undo, correction } = tensor;
        Self { name, dtype, shape, before, after, terms, undo, correction, norm_ratio }
    }
}

/// One term of the updates.
#[derive(Debug, Serialize)]
struct TermReport {
    rows: u64,
    columns: u64,
    bits: u8,
    /// None for a dense term.
    rank: Option<u64>,
}

/// What the sections of one kind take.
#[derive(Debug, Serialize)]
struct SizeReport {
    part: &'static str,
    sections: usize,
    stored_bytes: u64,
    decoded_bytes: u64,
}

/// Prints what a patch holds, or a state of a history.
pub fn run(arguments: &ShowArguments, output: &Output) -> Result<(), CommandError> {
    // A file wins over a revision of the same name; what is asked of a patch is asked of the one that it brought.
    if !arguments.manifest
        && arguments.signature.is_none()
        && !names_a_file(&arguments.patch)
        && let Some(report) = revision(arguments, output)?
    {
        return output.report(&report);
    }
    let patch = open_patch(&arguments.patch, &arguments.store)?;
    if arguments.manifest {
        return output.raw(patch.manifest_bytes(), "a bare manifest");
    }
    if let Some(number) = arguments.signature {
        return output.raw(armour(&patch, number, &arguments.patch)?.as_bytes(), "a bare signature");
    }
    let facts_shown = if arguments.all { usize::MAX } else { FACTS_SHOWN };
    output.report(&report(arguments.patch.clone(), &patch, facts_shown))
}

/// Signature `number`, counted from 1, as `ssh-keygen -Y verify` reads it.
fn armour(patch: &Patch, number: usize, path: &Path) -> Result<String, CommandError> {
    let name = path.display();
    let signatures = patch.signatures();
    let Some(signature) = number.checked_sub(1).and_then(|index| signatures.get(index)) else {
        let found = count(signatures.len(), "signature");
        return Err(CommandError::new(
            ExitKind::Usage,
            format!("`{name}` has {found}, so there is no number {number}"),
        )
        .hint("count from 1"));
    };
    let read = SshSig::parse(&signature.bytes).map_err(|error| {
        CommandError::new(ExitKind::BadSignature, format!("`{name}`, signature {number}: {error}"))
            .hint("do not use this patch; fetch it again")
    })?;
    Ok(read.to_armour())
}

fn claimed_key(bytes: &[u8]) -> String {
    SshSig::parse(bytes).map_or_else(|error| error.to_string(), |read| read.key().fingerprint().to_string())
}

/// A state of the history, if it knows this name.
fn revision(arguments: &ShowArguments, output: &Output) -> Result<Option<RevisionReport>, CommandError> {
    let (Some(store), Some(name)) = (arguments.store.open_if_any(output)?, arguments.patch.to_str()) else {
        return Ok(None);
    };
    let Some(id) = state_named(&store, name)? else { return Ok(None) };
    let (view, commit) = (store.view()?, store.commit(id)?);
    let files = TrustFiles::load_with_a_word(output)?;
    let patches = commit.series.iter().map(|patch| {
        let words = message(&store.manifest(*patch)?, *patch, None, vec![]);
        let trust = signers::judgement(&store, id, *patch, &files)?;
        Ok(PatchInSeries { patch: *patch, title: words.title, facts: words.facts.len(), trust })
    });
    Ok(Some(RevisionReport {
        patches: patches.collect::<Result<_, CommandError>>()?,
        branch: branch_of(&view).map(str::to_owned),
        commit: CommitReport::new(commit, &view),
        facts_shown: if arguments.all { usize::MAX } else { FACTS_SHOWN },
    }))
}

#[derive(Debug, Serialize)]
struct RevisionReport {
    branch: Option<String>,
    commit: CommitReport,
    patches: Vec<PatchInSeries>,
    #[serde(skip)]
    facts_shown: usize,
}

#[derive(Debug, Serialize)]
struct PatchInSeries {
    patch: PatchId,
    title: String,
    facts: usize,
    /// What its signatures say; none where it is not here.
    trust: Option<Judgement>,
}

impl Report for RevisionReport {
    const SCHEMA: &'static str = "mpatch.show-revision/1";

    fn write(&self, page: &mut Page) {
        self.commit.write(page, self.branch.as_deref(), self.facts_shown);
        page.blank();
        let state = self.commit.state.as_deref().unwrap_or("not told");
        let parents: Vec<String> = self.commit.parents.iter().map(|parent| parent.short()).collect();
        page.table(&[
            row(["commit", &self.commit.id.to_string()]),
            row(["parents", &parents.join(" ")]),
            row(["weights", state]),
        ]);
        page.blank();
        match self.patches.is_empty() {
            true => page.title("the base, without patches"),
            false => page.title("patches, in order of application"),
        }
        let line = |entry: &PatchInSeries| {
            let signers = signers::in_words(entry.trust.as_ref());
            vec![entry.patch.short(), count(entry.facts, "fact"), signers, format!("│ {}", entry.title)]
        };
        page.table(&self.patches.iter().map(line).collect::<Vec<_>>());
    }
}

fn report(path: PathBuf, patch: &Patch, facts_shown: usize) -> ShowReport {
    let manifest = patch.manifest().clone();
    let norm_ratio = |weights: WeightsId, tensor: &TensorBinding| NormRatio {
        weights,
        tensor: tensor.name.clone(),
        norm_ratio: tensor.norm_ratio,
    };
    let norm_ratios = manifest
        .bindings
        .iter()
        .flat_map(|binding| binding.tensors.iter().map(move |tensor| norm_ratio(binding.weights, tensor)));
    let norm_ratios = norm_ratios.collect();
    let bindings = manifest.bindings.into_iter().map(|binding| BindingReport {
        weights: binding.weights,
        tensors: binding.tensors.into_iter().map(TensorReport::from).collect(),
    });
    ShowReport {
        patch: path,
        patch_id: patch.id(),
        size_bytes: patch.size_bytes(),
        signatures: patch.signatures().iter().map(|signature| claimed_key(&signature.bytes)).collect(),
        terms: terms(patch.manifest()),
        sizes: sizes(patch.manifest(), patch.manifest_bytes().len() as u64),
        base: manifest.base,
        bindings: bindings.collect(),
        untrusted: Untrusted {
            facts: manifest.facts,
            recipe: manifest.recipe,
            measured: manifest.measured,
            line: manifest.line,
            parents: manifest.parents.clone(),
            supersedes: manifest.supersedes.clone(),
            about: manifest.about,
            norm_ratios,
        },
        facts_shown,
    }
}

fn terms(manifest: &Manifest) -> Vec<TermReport> {
    let term = |entry: &mpatch::patch::manifest::TermEntry| TermReport {
        rows: entry.rows,
        columns: entry.columns,
        bits: entry.bits,
        rank: match entry.integers {
            IntegersEntry::LowRank { rank, .. } => Some(rank),
            IntegersEntry::Dense { .. } => None,
        },
    };
    manifest.terms.iter().map(term).collect()
}

fn sizes(manifest: &Manifest, manifest_bytes: u64) -> Vec<SizeReport> {
    let kinds = [
        (SectionKind::Integers, "integers"),
        (SectionKind::Scales, "scales"),
        (SectionKind::Undo, "undo logs"),
        (SectionKind::Correction, "corrections"),
    ];
    let manifest_size = SizeReport {
        part: "manifest",
        sections: 1,
        stored_bytes: manifest_bytes,
        decoded_bytes: manifest_bytes,
    };
    let of_kind = |(kind, part)| {
        let sections = || manifest.sections.iter().filter(move |section| section.kind == kind);
        SizeReport {
            part,
            sections: sections().count(),
            stored_bytes: sections().map(|section| section.stored_size).sum(),
            decoded_bytes: sections().map(|section| section.decoded_size).sum(),
        }
    };
    let sizes = std::iter::once(manifest_size).chain(kinds.map(of_kind));
    sizes.filter(|size| size.sections > 0).collect()
}

impl Report for ShowReport {
    const SCHEMA: &'static str = "mpatch.show/1";

    fn write(&self, page: &mut Page) {
        let facts = count(self.untrusted.facts.len(), "fact");
        let name = self.patch.display();
        page.title(&format!("{name}: {facts} for {}, {}", self.base.architecture, size(self.size_bytes)));
        let mut rows = vec![row(["patch", &self.patch_id.to_string()])];
        rows.extend(
            self.signatures.iter().map(|key| row(["signature", &format!("by {key}, not judged here")])),
        );
        if self.signatures.is_empty() {
            rows.push(row(["signature", "none"]));
        }
        page.table(&rows);
        self.write_about(page);
        self.write_facts(page);
        self.write_base(page);
        self.write_recipe(page);
        self.write_tensors(page);
        self.write_sizes(page);
        self.write_measured(page);
    }

    fn next(&self) -> Option<String> {
        Some(format!("mpatch verify {} --base MODEL", patch_word(&self.patch)))
    }
}

impl ShowReport {
    fn write_about(&self, page: &mut Page) {
        let about = &self.untrusted.about;
        let line = self.untrusted.line.as_ref().map(|line| format!("{} {}", line.name, line.sequence));
        let texts = [
            ("title", &about.title),
            ("author", &about.author),
            ("licence", &about.licence),
            ("line", &line),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                page.quote(&format!("{name}: {text}"));
            }
        }
    }

    fn write_facts(&self, page: &mut Page) {
        // One that was made of two checkpoints has none.
        if self.untrusted.facts.is_empty() {
            return;
        }
        page.blank();
        page.title("facts");
        for fact in self.untrusted.facts.iter().take(self.facts_shown) {
            page.quote(&fact_line(fact));
        }
        page.and_more(self.untrusted.facts.len(), self.facts_shown, "`--all` lists them");
    }

    fn write_base(&self, page: &mut Page) {
        page.blank();
        page.title("base");
        let mut rows = vec![
            row(["architecture", &self.base.architecture]),
            row(["config", &digest_in_words(self.base.config)]),
            row(["tokenizer", &digest_in_words(self.base.tokenizer)]),
        ];
        for binding in &self.bindings {
            let dtypes = dtypes(binding);
            rows.push(row(["weights", &format!("{} ({dtypes})", binding.weights.short())]));
        }
        page.table(&rows);
    }

    fn write_recipe(&self, page: &mut Page) {
        let recipe = &self.untrusted.recipe;
        let layers: Vec<String> = recipe.layers.iter().map(u32::to_string).collect();
        let contexts: usize = recipe.contexts.iter().map(Vec::len).sum();
        page.blank();
        page.title("recipe");
        let layers = if layers.is_empty() { "no layers" } else { &format!("layers {}", layers.join(" ")) };
        page.quote(&format!("{}, {layers}, seed {}", recipe.method, recipe.seed));
        page.quote(&format!("made by {} on {}", recipe.tool, recipe.device));
        page.quote(&format!(
            "{}, statistics {}, facts {}",
            count(contexts, "context template"),
            digest_in_words(recipe.statistics),
            digest_in_words(recipe.facts)
        ));
    }

    fn write_tensors(&self, page: &mut Page) {
        for binding in &self.bindings {
            page.blank();
            page.title(&format!("tensors changed, from weights {}", binding.weights.short()));
            let names = ["name", "dtype", "shape", "update", "claimed relative change"];
            page.table_under(names, binding.tensors.iter().map(|tensor| self.tensor_row(tensor)));
        }
    }

    fn tensor_row(&self, tensor: &TensorReport) -> Vec<String> {
        let update = tensor.terms.iter().filter_map(|&index| self.terms.get(index as usize));
        let update = update.map(|term| match term.rank {
            Some(rank) => format!("rank {rank}, {} bits", term.bits),
            None => format!("dense, {} bits", term.bits),
        });
        vec![
            tensor.name.clone(),
            tensor.dtype.to_string(),
            format!("{} x {}", tensor.shape[0], tensor.shape[1]),
            update.collect::<Vec<_>>().join(" + "),
            format!("{:.2e}", tensor.norm_ratio),
        ]
    }

    fn write_sizes(&self, page: &mut Page) {
        page.blank();
        page.title("sizes");
        let rows = self.sizes.iter().map(|part| {
            let unpacked = if part.decoded_bytes == part.stored_bytes {
                String::new()
            } else {
                format!("{} unpacked", size(part.decoded_bytes))
            };
            vec![part.part.to_owned(), size(part.stored_bytes), unpacked]
        });
        page.table(&rows.collect::<Vec<_>>());
    }

    fn write_measured(&self, page: &mut Page) {
        if self.untrusted.measured.is_empty() {
            return;
        }
        page.blank();
        page.title("measured by its maker");
        let rows = self.untrusted.measured.iter().map(|metric| {
            vec![
                metric.name.clone(),
                format!("{:.2}", metric.before),
                format!("{:.2}", metric.after),
                metric.prompts.to_string(),
            ]
        });
        page.table_under(["measure", "before", "after", "prompts"], rows);
    }
}

/// The digest of what there is; that of nothing stands for a file that there was none of.
fn digest_in_words(digest: FileDigest) -> String {
    if digest.is_of_nothing() { "none".to_owned() } else { digest.short() }
}

/// A fact on one line: the filled prompt, the new target and what it takes the place of.
pub fn fact_line(fact: &Fact) -> String {
    let text = fact.prompt.replacen(mpatch::facts::PLACEHOLDER, &fact.subject, 1);
    let old = fact.target_old.as_ref().map(|old| format!(" (was {old})")).unwrap_or_default();
    let note = fact.note.as_ref().map(|note| format!(" [{note}]")).unwrap_or_default();
    format!("{text} -> {}{old}{note}", fact.target_new)
}

fn dtypes(binding: &BindingReport) -> String {
    let mut dtypes: Vec<&str> = binding.tensors.iter().map(|tensor| tensor.dtype.name()).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    dtypes.join(", ")
}
