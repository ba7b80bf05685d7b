//! What `apply` and `revert` share: where the result goes, the plan as a report, and carrying it out.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::checkpoint::{Checkpoint, TakenAlong, check_output};
use mpatch::operation::{Answer, Direction, Plan, PlannedTensor, Written};
use mpatch::patch::Patch;
use mpatch::store::CommitId;
use serde::Serialize;

use super::{lasting_patch_word, open_checkpoint, open_patch, planned};
use crate::args::output_path;
use crate::error::{CommandError, State, both};
use crate::history::StoreArguments;
use crate::interrupt::{Work, doing, last_step};
use crate::report::{Output, Page, Report, count, shell_word, size};
use crate::trust::{Permitted, TrustReport};
use crate::walk::{Entry, Record, RecordReport, Recorded};

/// Where a result goes, whether it is to be written at all, and which history records it.
#[derive(Debug, Args)]
pub struct TargetArguments {
    /// Write the result here instead of beside the input; never over anything
    #[arg(short, long, value_name = "PATH", value_parser = output_path())]
    output: Option<PathBuf>,
    /// Change the checkpoint itself, with its old bytes in a journal meanwhile
    #[arg(long, conflicts_with = "output")]
    in_place: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    store: StoreArguments,
}

impl TargetArguments {
    /// Where the result goes, with `place` for the name of a copy that was not given.
    fn target(&self, place: impl FnOnce() -> Result<PathBuf, CommandError>) -> Result<Target, CommandError> {
        match &self.output {
            _ if self.in_place => Ok(Target::InPlace),
            Some(path) => Ok(Target::Copy(path.clone())),
            None => place().map(Target::Copy),
        }
    }
}

/// Where a result goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// Into a new file or folder; the name is free, in a folder that can be written to.
    Copy(PathBuf),
    /// Over the old bytes.
    InPlace,
}

/// A checkpoint, a patch and a place for the result, all of them looked at.
pub struct Change<'a> {
    /// The checkpoint that is read.
    pub checkpoint: Checkpoint,
    /// The patch.
    pub patch: Patch,
    /// Where the patch was read from.
    pub patch_path: PathBuf,
    arguments: &'a TargetArguments,
    target: Target,
    /// Who signed the patch; none where that does not matter, because nothing new comes in.
    pub trust: Option<Permitted>,
}

/// What `apply` and `revert` print.
#[derive(Debug, Serialize)]
pub struct ChangeReport {
    /// Which way the plan goes.
    #[serde(skip)]
    direction: Direction,
    dry_run: bool,
    in_place: bool,
    input: PathBuf,
    patch: PathBuf,
    output: PathBuf,
    /// Who signed the patch, and what the user had to allow; none for a revert.
    trust: Option<TrustReport>,
    plan: Plan,
    /// None for a dry run.
    written: Option<Written>,
    /// None where no history records it, which a warning gives the reason of.
    recorded: Option<RecordReport>,
}

impl<'a> Change<'a> {
    /// Opens everything, and refuses a result that could not be written; `place` names a copy that was given no name.
    pub fn open(
        checkpoint: &Path,
        patch_path: &Path,
        arguments: &'a TargetArguments,
        place: impl FnOnce() -> Result<PathBuf, CommandError>,
        output: &Output,
    ) -> Result<Self, CommandError> {
        let target = arguments.target(place)?;
        let patch = open_patch(patch_path, &arguments.store).map_err(|error| match patch_path.is_dir() {
            true => error.hint("this is a folder: the model comes first, and the patch second"),
            false => error,
        })?;
        let checkpoint = open_checkpoint(checkpoint, output)?.before_last_step(last_step);
        if let Target::Copy(path) = &target {
            check_output(&checkpoint, path)?;
        }
        Ok(Self { checkpoint, patch, patch_path: patch_path.to_owned(), arguments, target, trust: None })
    }

    /// The input as a sentence names it.
    pub fn input_name(&self) -> String {
        format!("`{}`", self.checkpoint.path().display())
    }

    /// The patch as a sentence names it.
    pub fn patch_name(&self) -> String {
        format!("`{}`", self.patch_path.display())
    }

    /// Where the result lies.
    fn result(&self) -> &Path {
        match &self.target {
            Target::Copy(path) => path,
            Target::InPlace => self.checkpoint.path(),
        }
    }

    /// How the patch goes in, or comes out, if it does.
    pub fn answer(&self, direction: Direction, output: &Output) -> Result<Answer, CommandError> {
        planned(&self.checkpoint, &self.patch, &self.patch_path.to_string_lossy(), direction, output)
    }

    /// Carries the plan out, or only shows it.
    pub fn carry_out(&self, plan: Plan, output: &Output) -> Result<(), CommandError> {
        if self.target == Target::InPlace {
            plan.check_in_place(&self.checkpoint)?;
        }
        if self.arguments.dry_run {
            return output.report(&self.report(plan, None, None));
        }
        let store = self.arguments.store.open_if_any(output)?;
        let begun = |store| {
            Record::begin(store, &self.checkpoint, plan.direction, &self.patch, self.result(), output)
        };
        let record = store.map(begun).transpose()?.flatten();
        let work = match self.target {
            Target::Copy(_) => Work::Copying,
            Target::InPlace => Work::InPlace,
        };
        let _doing = doing(work);
        let written = match self.write(&plan, output) {
            Err(error) if error.state != State::Applied => return Err(error),
            written => written,
        };
        // What stands is recorded and remembered, whatever else is to be said of it.
        let recorded = record.map_or(Ok(None), |record| self.keep_record(record, output));
        let remembered = self.trust.as_ref().map_or(Ok(()), Permitted::remember);
        let kept = both(recorded, remembered.map_err(CommandError::after_the_work));
        let (written, (recorded, ())) = both(written, kept)?;
        output.report_done(&self.report(plan, Some(written), recorded))
    }

    fn report(&self, plan: Plan, written: Option<Written>, recorded: Option<RecordReport>) -> ChangeReport {
        ChangeReport {
            direction: plan.direction,
            dry_run: written.is_none(),
            in_place: self.target == Target::InPlace,
            input: self.checkpoint.path().to_owned(),
            patch: self.patch_path.clone(),
            output: self.result().to_owned(),
            trust: self.trust.as_ref().map(|judged| judged.report.clone()),
            plan,
            written,
            recorded,
        }
    }

    /// Has the history say what was done; none where it could not.
    fn keep_record(&self, record: Record, output: &Output) -> Result<Option<RecordReport>, CommandError> {
        let notes = self.trust.as_ref().map(Permitted::notes).unwrap_or_default();
        let entry = record.entry();
        let signed = self.trust.as_ref().map(|judged| judged.with_those_beside(&self.patch, output));
        let signed = signed.transpose().map_err(|error| self.unrecorded(entry, error))?;
        let patch = signed.as_deref().unwrap_or(&self.patch);
        let recorded = record.finish(patch, self.result(), notes, output);
        match recorded.map_err(|error| self.unrecorded(entry, error))? {
            Recorded::Done(report) => Ok(Some(report)),
            Recorded::Overtaken(began) => {
                output.warn(&self.overtaken(entry, began));
                Ok(None)
            }
        }
    }

    /// Says that the result stands, but not in the history, and how it comes there.
    fn unrecorded(&self, entry: Entry, error: CommandError) -> CommandError {
        let (result, patch) =
            (shell_word(self.result()), lasting_patch_word(&self.patch_path, self.patch.id()));
        let trust = self.trust.as_ref().map_or("", |judged| &judged.report.words);
        let hint = match (entry, &self.target) {
            (Entry::Patch, _) => format!("`mpatch add {patch}{trust}` records the patch"),
            (Entry::TakenBack, Target::Copy(_)) => format!("remove {result} and run this again to record it"),
            (Entry::TakenBack, Target::InPlace) => {
                format!("`mpatch apply {result} {patch} --in-place` and then this again record it")
            }
        };
        let message =
            format!("`{}` is as it was to be, but not recorded: {}", self.result().display(), error.message);
        let hint = match error.hint {
            Some(way_out) => format!("{way_out}; {hint}"),
            None => hint,
        };
        CommandError { message, hint: Some(hint), ..error }.after_the_work()
    }

    /// Says that the head has moved from the commit where this `began`, and what can be done.
    fn overtaken(&self, entry: Entry, began: CommitId) -> String {
        let (result, began) = (shell_word(self.result()), began.short());
        let patch = lasting_patch_word(&self.patch_path, self.patch.id());
        let trust = self.trust.as_ref().map_or("", |judged| &judged.report.words);
        let way_out = match entry {
            Entry::Patch => format!(
                "`mpatch branch NAME {began}`, `mpatch checkout NAME` and `mpatch add {patch}{trust}` record it on a branch of its own"
            ),
            Entry::TakenBack => {
                format!("`mpatch checkout HEAD --onto {result} -o MODEL` takes the weights to HEAD")
            }
        };
        format!("not recorded as a commit: another command has moved HEAD from {began} meanwhile; {way_out}")
    }

    fn write(&self, plan: &Plan, output: &Output) -> Result<Written, CommandError> {
        let what = match plan.direction {
            Direction::Apply => "applying",
            Direction::Revert => "reverting",
        };
        let size = match self.target {
            Target::Copy(_) => plan.copy_size_bytes,
            Target::InPlace => 2 * plan.tensor_size_bytes,
        };
        let progress = output.progress(what, size);
        let told = |bytes| progress.add(bytes);
        let written = match &self.target {
            Target::Copy(path) => plan.execute(&self.checkpoint, &self.patch, path, &told),
            Target::InPlace => plan.execute_in_place(&self.checkpoint, &self.patch, &told),
        };
        written.map_err(|error| CommandError::operation(&self.patch_path.to_string_lossy(), error))
    }
}

impl Report for ChangeReport {
    const SCHEMA: &'static str = "mpatch.change/1";

    fn write(&self, page: &mut Page) {
        let tensors = count(self.plan.tensors.len(), "tensor");
        let output = self.output.display();
        let size = size(if self.in_place { self.plan.tensor_size_bytes } else { self.plan.copy_size_bytes });
        let done =
            if self.in_place { format!("changed {output} in place") } else { format!("wrote {output}") };
        let outcome = match (&self.written, self.direction) {
            (None, _) if self.in_place => format!("would change {output} in place: {tensors}, {size}"),
            (None, _) => format!("would write {output}: {tensors}, {size}"),
            (Some(written), Direction::Apply) => {
                let weights = count(written.changed.unwrap_or_default() as usize, "weight");
                format!("{done}: {tensors} ({weights}) changed, as the patch promises")
            }
            (Some(_), Direction::Revert) => {
                format!("{done}: {tensors} changed back, byte for byte as before the patch")
            }
        };
        page.title(&outcome);
        let names = ["name", "dtype", "shape", "claimed relative change"];
        page.table_under(names, self.plan.tensors.iter().map(tensor_row));
        if let Some(trust) = &self.trust {
            trust.write(page);
        }
        if let Some(written) = &self.written {
            write_remarks(written, page);
        }
    }

    fn next(&self) -> Option<String> {
        let (input, patch) = (shell_word(&self.input), lasting_patch_word(&self.patch, self.plan.patch));
        let output = shell_word(&self.output);
        let place = if self.in_place { "--in-place".to_owned() } else { format!("-o {output}") };
        let trust = self.trust.as_ref().map_or("", |trust| &trust.words);
        match (self.direction, self.dry_run) {
            (Direction::Apply, true) => Some(format!("mpatch apply {input} {patch} {place}{trust}")),
            (Direction::Revert, true) => Some(format!("mpatch revert {input} {patch} {place}")),
            (Direction::Apply, false) => Some(format!("mpatch verify {patch} --base {output}{trust}")),
            (Direction::Revert, false) => {
                Some(format!("mpatch verify {patch} --base {output} --digests-only{trust}"))
            }
        }
    }
}

fn tensor_row(tensor: &PlannedTensor) -> Vec<String> {
    vec![
        tensor.name.clone(),
        tensor.dtype.to_string(),
        format!("{} x {}", tensor.shape[0], tensor.shape[1]),
        format!("{:.2e}", tensor.claimed_norm_ratio),
    ]
}

/// What a user would want to know and did not ask.
fn write_remarks(written: &Written, page: &mut Page) {
    if let Some(not_finite @ 1..) = written.not_finite {
        let weights = count(not_finite as usize, "weight");
        let (are, stay) = if not_finite == 1 { ("is", "stays") } else { ("are", "stay") };
        page.line(&format!("{weights} {are} NaN or infinite in the base, and {stay} so"));
    }
    write_taken_along(&written.taken_along, page);
}

/// What a user would want to know of how the rest came into a copy.
pub fn write_taken_along(TakenAlong { left_out, linked, copied }: &TakenAlong, page: &mut Page) {
    let lines = [
        (
            left_out,
            "not taken along, since they hold the weights unedited in another form, lead out of the folder or \
             nowhere, or are no files",
        ),
        (linked, "the original's own files under a second name, since this file system shares no blocks"),
        (
            copied,
            "copied, since they can be neither shared nor linked: they lie on another file system, or are another user's",
        ),
    ];
    for (files, what) in lines.into_iter().filter(|(files, _)| !files.is_empty()) {
        page.line(&format!("{what}: {}", files.join(", ")));
    }
}
