//! `mpatch stack`: several patches as one, by adding their updates or by solving again for the facts of all.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::PatchId;
use mpatch::edit;
use mpatch::facts::{FactsFile, SCHEMA, Targets};
use mpatch::operation::touched;
use mpatch::patch::Patch;
use mpatch::patch::manifest::{Fact, Recipe};
use mpatch::stack::{AddOptions, Named, Overlap, Plan, Sides, Squash, Squashed, StackError, Stacked, plan};
use serde::Serialize;

use super::agreement::{Agreement, OVERLAP_ANGLE_DEGREES};
use super::create::{AboutArguments, CreateReport};
use super::{open_checkpoint, open_patches};
use crate::args::{optional, output_path};
use crate::editing::{
    DeviceArguments, PrecisionArguments, check_questions, given_or_remembered, open_model_in, read_facts,
    refuse_existing,
};
use crate::error::{CommandError, ExitKind, bind_error, with_causes};
use crate::history::StoreArguments;
use crate::job::{Prepared, RecipeArguments, TOOL, encoded, tolerance};
use crate::keys::{SignatureReport, Signer, SigningArguments, write_signed};
use crate::report::{Output, Page, Report, count, shell_word, size};
use crate::trust::{Company, Lines, TrustArguments, TrustReport, require_among};

#[derive(Debug, Args)]
#[command(
    after_help = "Without `--resolve` the updates are added: quick, and no model is run, but each was made as if it \
                  were alone.\nWith it the facts of all are written again at once, as `create` does: it takes as \
                  long, and keeps them better.\n\n\
                  Examples:\n  mpatch stack a.mpatch b.mpatch --base model.safetensors -o ab.mpatch\n  \
                  mpatch stack a.mpatch b.mpatch --base gptj/ --theirs --resolve \\\n      \
                  --stats gptj.stats.safetensors -o ab.mpatch\n  \
                  mpatch stack *.mpatch --base gptj/ --squash 0.05 -o all.mpatch",
    mut_args(|argument| match argument.get_id().as_str() {
        "hparams" | "layers" | "contexts" | "stats" | "corpus" | "seed" | "bits" | "rank" | "tolerance" | "device"
        | "precision" => argument.requires("resolve"),
        _ => argument,
    })
)]
pub struct StackArguments {
    /// Stack these patches, in this order; one made on top of another comes after it
    #[arg(required = true, value_name = "PATCHES")]
    patches: Vec<PathBuf>,
    /// Bind the result to this checkpoint, the one that the patches were made on; within a history, the one that it
    /// remembers by default
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// Write the stacked patch here
    #[arg(short, long, value_name = "PATCH", value_parser = output_path())]
    output: PathBuf,
    #[command(flatten)]
    sides: SideArguments,
    /// Add the whole update of a patch that lost only some of its facts: the weights then hold both sides
    #[arg(long, conflicts_with = "resolve")]
    keep_both_updates: bool,
    /// Recompress each tensor's update to one term, within this relative error; without a number, 0.05
    #[arg(long, value_name = "ERROR", num_args = 0..=1, default_missing_value = "0.05", value_parser = squash_error, conflicts_with = "resolve")]
    squash: Option<f64>,
    /// Leave out what extracted patches correct weight by weight: the result is then not exactly theirs
    #[arg(long, conflicts_with = "resolve")]
    drop_corrections: bool,
    /// Warn of patches whose keys come closer than this angle, in degrees
    #[arg(long, value_name = "DEGREES", default_value_t = OVERLAP_ANGLE_DEGREES, conflicts_with = "resolve")]
    overlap_angle: f64,
    /// Solve again for the facts of all instead of adding updates
    #[arg(long)]
    resolve: bool,
    #[command(flatten)]
    store: StoreArguments,
    /// What the patch says about itself.
    #[command(flatten)]
    about: AboutArguments,
    #[command(flatten)]
    signing: SigningArguments,
    /// How the facts are solved for; the patches' own recipe where they share one.
    #[command(flatten, next_help_heading = "Options of --resolve")]
    recipe: RecipeArguments,
    /// Where the model runs.
    #[command(flatten)]
    device: DeviceArguments,
    /// What its matrices are kept in.
    #[command(flatten)]
    precision: PrecisionArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

/// Reads an error that may be left out.
fn squash_error(text: &str) -> Result<f64, String> {
    optional::<f64>(text).and_then(|_| tolerance(text))
}

/// Who is right where facts contradict each other.
#[derive(Debug, Args)]
pub struct SideArguments {
    /// Where facts contradict each other, take what the earlier patch, or the current branch, says
    #[arg(long, conflicts_with_all = ["theirs", "choose"])]
    ours: bool,
    /// Where facts contradict each other, take what the later patch, or the other branch, says
    #[arg(long, conflicts_with = "choose")]
    theirs: bool,
    /// Where facts contradict each other, take what this facts file says
    #[arg(long, value_name = "FACTS")]
    choose: Option<PathBuf>,
}

impl SideArguments {
    /// As the library takes it, with the facts file read.
    pub fn sides(&self, output: &Output) -> Result<Sides, CommandError> {
        let Some(path) = &self.choose else {
            return Ok(match (self.ours, self.theirs) {
                (true, _) => Sides::Ours,
                (_, true) => Sides::Theirs,
                _ => Sides::Refuse,
            });
        };
        let facts = read_facts(path, None, output)?;
        let targets = facts.requests().map(|fact| (&*fact.prompt, &*fact.subject, &*fact.target_new));
        Ok(Sides::ByFact(Targets::of(targets)))
    }

    /// What `refused` makes of `error`, where there may be a file that was to say who is right and does not.
    pub fn refused(&self, error: StackError, refused: fn(StackError) -> CommandError) -> CommandError {
        let file = self.choose.as_ref().filter(|_| matches!(error, StackError::Contradictions(_)));
        let refused = refused(error);
        match file {
            Some(file) => refused.hint(format!(
                "`{}` says nothing of this: add the fact that is to stand, with that prompt and subject",
                file.display()
            )),
            None => refused,
        }
    }
}

/// Stacks the patches and writes the result.
pub fn run(arguments: &StackArguments, output: &Output) -> Result<(), CommandError> {
    arguments.recipe.check()?;
    refuse_existing(&arguments.output)?;
    let patches = open_patches(&arguments.patches, &arguments.store)?;
    // The result carries the signature of whoever stacks, so what goes into it has to be trusted first.
    let (mut trust, mut lines) = (Vec::new(), Lines::default());
    let ids: Vec<PatchId> = patches.iter().map(Patch::id).collect();
    for (patch, path) in patches.iter().zip(&arguments.patches) {
        let company = Company::Patches(&ids);
        let judged = require_among(patch, path, company, &mut lines, &arguments.trust, output)?;
        trust.push(PatchTrust { patch: path.clone(), trust: judged.report });
    }
    let mut signer = arguments.signing.signer()?;
    let names: Vec<String> = arguments.patches.iter().map(|path| path.display().to_string()).collect();
    let named: Vec<Named<'_>> =
        names.iter().zip(&patches).map(|(name, patch)| Named { name, patch }).collect();
    let sides = arguments.sides.sides(output)?;
    let base = given_or_remembered(arguments.base.as_deref(), &arguments.store, output)?;
    let base = open_checkpoint(&base, output)?;
    let progress = output.progress("comparing", base.weights_size_bytes());
    let plan = plan(&base, &named, &sides, &|bytes| progress.add(bytes))
        .map_err(|error| arguments.sides.refused(error, stack_error))?;
    drop(progress);
    let made = if arguments.resolve {
        arguments.resolve(plan, base.path(), &named, signer.as_mut(), output)?
    } else {
        arguments.add(plan, &base, &named, signer.as_mut(), output)?
    };
    let report = StackReport { trust, ..made };
    output.report_done(&report)
}

impl StackArguments {
    fn add(
        &self,
        plan: Plan,
        base: &Checkpoint,
        named: &[Named<'_>],
        signer: Option<&mut Signer>,
        output: &Output,
    ) -> Result<StackReport, CommandError> {
        let options = AddOptions {
            tool: TOOL.to_owned(),
            keep_partly_lost: self.keep_both_updates,
            drop_corrections: self.drop_corrections,
            squash: self.squash.map(|tolerance| Squash { tolerance }),
            overlaps: true,
            about: self.about.about(),
        };
        let added = plan.added().map(|patch| named[patch.given].patch);
        let progress = output.progress("binding", touched_size_bytes(base, added));
        let stacked = plan.add(base, named, &options, &|bytes| progress.add(bytes)).map_err(stack_error)?;
        drop(progress);
        let mut patch = encoded(&stacked.draft, "the stacked patch")?;
        let signature = write_signed(&mut patch, signer, None, &self.output)?;
        let Stacked { plan, overlaps, squashed, .. } = stacked;
        Ok(StackReport { squashed, signature, ..self.report(plan, base.path(), overlaps, &patch) })
    }

    /// Writes the facts of all again, at once, on the base.
    fn resolve(
        &self,
        plan: Plan,
        base: &Path,
        named: &[Named<'_>],
        signer: Option<&mut Signer>,
        output: &Output,
    ) -> Result<StackReport, CommandError> {
        let facts = facts_file(&plan.facts)?;
        let recipes: Vec<&Recipe> =
            plan.added().map(|patch| &named[patch.given].patch.manifest().recipe).collect();
        let recorded = shared_recipe(&recipes);
        if recorded.is_none() {
            output.note("the patches were not made alike: hyperparameters and contexts as for `create`");
        }
        let precision = self.precision.precision;
        let model = open_model_in(base, &self.device.find(output)?, precision, output)?;
        check_questions(&model, &facts, Path::new("the patches' facts"))?;
        let prepared = Prepared::new(&model, &facts, &self.recipe, recorded, output)?;
        let mut job = prepared.job(&facts, &self.recipe, self.about.about());
        job.supersedes = plan.added().map(|patch| patch.id).collect();
        let (made, signature) =
            job.make(output, |made| write_signed(&mut made.patch, signer, None, &self.output))?;
        let patch = made.patch.clone();
        let created = made.report(&job, self.output.clone(), base.to_owned(), signature);
        Ok(StackReport { created: Some(created), ..self.report(plan, base, Vec::new(), &patch) })
    }

    /// What both ways have in common.
    fn report(&self, plan: Plan, base: &Path, overlaps: Vec<Overlap>, patch: &Patch) -> StackReport {
        let tensors = patch.manifest().bindings.iter().flat_map(|binding| &binding.tensors);
        StackReport {
            output: self.output.clone(),
            base: base.to_owned(),
            patch_id: patch.id(),
            size_bytes: patch.size_bytes(),
            facts: plan.facts.len(),
            is_reordered: plan.is_reordered(),
            agreement: Agreement::new(plan, overlaps, self.overlap_angle),
            trust: Vec::new(),
            tensors: tensors
                .map(|tensor| TensorReport {
                    name: tensor.name.clone(),
                    terms: tensor.terms.len(),
                    norm_ratio: tensor.norm_ratio,
                })
                .collect(),
            squashed: Vec::new(),
            signature: None,
            created: None,
        }
    }
}

/// Bytes of the tensors of `base` that any of `patches` touches.
pub fn touched_size_bytes<'p>(base: &Checkpoint, patches: impl Iterator<Item = &'p Patch>) -> u64 {
    touched(base, patches).iter().map(|tensor| tensor.size_bytes).sum()
}

/// The facts as a file would hold them, checked as one.
pub fn facts_file(facts: &[Fact]) -> Result<FactsFile, CommandError> {
    let fact = |fact: &Fact| {
        let mut object = serde_json::json!({
            "prompt": fact.prompt, "subject": fact.subject, "target_new": fact.target_new,
        });
        for (name, value) in [("id", &fact.id), ("target_old", &fact.target_old), ("note", &fact.note)] {
            if let Some(value) = value {
                object[name] = serde_json::Value::from(value.as_str());
            }
        }
        object
    };
    let facts: Vec<_> = facts.iter().map(fact).collect();
    let document = serde_json::json!({ "schema": SCHEMA, "facts": facts });
    FactsFile::parse(document.to_string().as_bytes())
        .map_err(|error| CommandError::facts("the patches' facts", &error))
}

/// The recipe that all patches were made by, if it is one that `create` can follow.
fn shared_recipe<'a>(recipes: &[&'a Recipe]) -> Option<&'a Recipe> {
    let first = *recipes.first()?;
    let alike = |other: &Recipe| {
        (&other.method, &other.hyperparameters, &other.contexts)
            == (&first.method, &first.hyperparameters, &first.contexts)
    };
    (first.method == edit::METHOD && recipes.iter().all(|recipe| alike(recipe))).then_some(first)
}

/// Patches that cannot be stacked, as a command's failure.
pub fn stack_error(error: StackError) -> CommandError {
    let refused = |kind, hint: &str| CommandError::new(kind, with_causes(&error)).hint(hint);
    match error {
        StackError::Checkpoint(error) => error.into(),
        StackError::Patch { name, source } => CommandError::patch(&name, &source),
        StackError::Bind(ref error) => {
            let (kind, hint) = bind_error(error);
            refused(kind, hint)
        }
        StackError::TooMany { .. } => refused(
            ExitKind::LimitExceeded,
            "stack some of them first, and then what that gives with the rest",
        ),
        StackError::Twice { .. } => refused(ExitKind::Conflict, "give each patch once"),
        StackError::Held { .. } => refused(ExitKind::Conflict, "leave out the patch that is held"),
        StackError::Shared { .. } => {
            refused(ExitKind::Conflict, "leave out one of them: added up, the update would count twice")
        }
        StackError::OtherBase { is_applied: true, .. } => {
            refused(ExitKind::WrongBase, "it is applied to this checkpoint already: give the base itself")
        }
        StackError::OtherBase { ref parents, .. } if !parents.is_empty() => {
            refused(ExitKind::WrongBase, "give the patch that it was made on top of, too")
        }
        StackError::OtherBase { .. } => refused(
            ExitKind::WrongBase,
            "give the base that it was made on, or bind it to this one with `mpatch rebase`",
        ),
        StackError::OtherModel { .. } => {
            refused(ExitKind::WrongBase, "only patches for one model can be stacked")
        }
        StackError::Contradictions(_) => refused(
            ExitKind::Conflict,
            "choose a side with `--ours`, `--theirs` or `--choose FACTS`; with `--resolve` only the chosen one is written",
        ),
        StackError::ChosenByNeither(_) => {
            refused(ExitKind::Conflict, "let the file of `--choose` say what one of the two says")
        }
        StackError::PartlyLost { .. } => refused(
            ExitKind::Conflict,
            "`--resolve` writes the chosen facts alone; `--keep-both-updates` adds everything nevertheless",
        ),
        StackError::Correction { .. } => refused(
            ExitKind::Conflict,
            "`--drop-corrections` adds its terms alone: nearly the same weights, not exactly",
        ),
        StackError::NothingLeft => refused(ExitKind::Conflict, "choose sides so that something is left"),
        _ => refused(ExitKind::Malformed, "`mpatch verify` tells what holds of each patch"),
    }
}

#[derive(Debug, Serialize)]
struct StackReport {
    output: PathBuf,
    base: PathBuf,
    patch_id: PatchId,
    size_bytes: u64,
    /// None for a patch that is not signed, and where `created` has it.
    signature: Option<SignatureReport>,
    facts: usize,
    is_reordered: bool,
    #[serde(flatten)]
    agreement: Agreement,
    /// In the order of the command line.
    trust: Vec<PatchTrust>,
    tensors: Vec<TensorReport>,
    squashed: Vec<Squashed>,
    /// What solving again came to; none where updates were added.
    created: Option<CreateReport>,
}

/// Who signed one of the patches, and what had to be allowed for it.
#[derive(Debug, Serialize)]
struct PatchTrust {
    patch: PathBuf,
    #[serde(flatten)]
    trust: TrustReport,
}

#[derive(Debug, Serialize)]
struct TensorReport {
    name: String,
    terms: usize,
    norm_ratio: f64,
}

impl Report for StackReport {
    const SCHEMA: &'static str = "mpatch.stack/1";

    fn write(&self, page: &mut Page) {
        if let Some(created) = &self.created {
            created.write(page);
            page.blank();
            page.line("solved again for the facts of these patches:");
        } else {
            let facts = count(self.facts, "fact");
            let output = self.output.display();
            page.title(&format!("wrote {output}: {facts}, {}", size(self.size_bytes)));
            page.line(&format!("patch {}", self.patch_id.short()));
            SignatureReport::write_of(self.signature.as_ref(), page);
        }
        self.write_patches(page);
        if self.created.is_none() {
            self.write_tensors(page);
        }
        self.agreement.write(self.created.is_none(), page);
        for PatchTrust { patch, trust } in self.trust.iter().filter(|one| !one.trust.allowed.is_empty()) {
            page.line(&format!("{}: {}", patch.display(), trust.line()));
        }
    }

    fn next(&self) -> Option<String> {
        if let Some(created) = &self.created {
            return created.next();
        }
        let (output, base) = (shell_word(&self.output), shell_word(&self.base));
        let words = SignatureReport::words_of(self.signature.as_ref());
        // What adding does to the facts has not been measured yet.
        Some(format!("mpatch verify {output} --base {base}{words}"))
    }
}

impl StackReport {
    fn write_patches(&self, page: &mut Page) {
        let rows = self.agreement.patches.iter().map(|patch| {
            let below: Vec<&str> =
                patch.on_top_of.iter().map(|&index| self.agreement.patches[index].name.as_str()).collect();
            let remark = match (patch.left_out, patch.lost, below.last()) {
                (true, _, _) => "left out: it lost all of them".to_owned(),
                (_, 1.., _) => format!("lost {} of them", patch.lost),
                (_, _, Some(below)) => format!("made on top of {below}"),
                _ => String::new(),
            };
            vec![patch.name.clone(), patch.id.short(), patch.facts.to_string(), remark]
        });
        page.table_under(["patch", "id", "facts", ""], rows);
        if self.is_reordered {
            page.line("in another order than given: a patch comes after those that it was made on top of");
        }
    }

    fn write_tensors(&self, page: &mut Page) {
        page.blank();
        let rows = self.tensors.iter().map(|tensor| {
            vec![tensor.name.clone(), tensor.terms.to_string(), format!("{:.2e}", tensor.norm_ratio)]
        });
        page.table_under(["tensor", "terms", "relative change"], rows);
        for squashed in &self.squashed {
            let Squashed { tensor, rank_before, rank_after, bits, error, .. } = squashed;
            let after = rank_after.map_or_else(|| "a dense term".to_owned(), |rank| format!("rank {rank}"));
            page.line(&format!(
                "{tensor}: rank {rank_before} recompressed to {after} of {bits} bits, relative error {error:.1e}"
            ));
        }
    }
}
