//! `mpatch export`: a patch as a LoRA adapter, for programs that load adapters beside a model.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use mpatch::adapter::{Adapter, AdapterError};
use mpatch::digest::PatchId;
use mpatch::tensor::Dtype;
use serde::Serialize;

use super::{named_after, open_patch};
use crate::args::output_path;
use crate::editing::refuse_existing;
use crate::error::{CommandError, ExitKind};
use crate::history::StoreArguments;
use crate::report::{Output, Page, Report, count, size};
use crate::trust::{TrustArguments, TrustReport, require};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch export edits.mpatch\n  \
                  mpatch export edits.mpatch -o adapter/ --base-model EleutherAI/gpt-j-6b\n  \
                  mpatch export edits.mpatch --dtype f16\n\n\
                  The result is a folder that PEFT loads: PeftModel.from_pretrained(model, \"adapter\").\n\
                  Its result is near the patch's, not its bytes; nothing checks that the base is the right one.")]
pub struct ExportArguments {
    /// Export this patch: a file, or the id or the revision of one in the history; `-` reads
    /// it from standard input
    patch: PathBuf,
    /// Write this new folder; `PATCH.adapter` by default
    #[arg(short, long, value_name = "FOLDER", value_parser = output_path())]
    output: Option<PathBuf>,
    /// Say that this is the base: a name on a hub, or a folder
    #[arg(long, value_name = "NAME")]
    base_model: Option<String>,
    /// Round the adapter's numbers to this type; the narrow ones take half the room
    #[arg(long, default_value = "f32", value_parser = dtypes())]
    dtype: Dtype,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    PossibleValuesParser::new(["f32", "f16", "bf16"])
        .try_map(|name| Dtype::from_name(&name.to_uppercase()).ok_or("no such type"))
}

#[derive(Debug, Serialize)]
struct ExportReport {
    patch: PathBuf,
    patch_id: PatchId,
    output: PathBuf,
    base_model: Option<String>,
    rank: u64,
    dtype: Dtype,
    size_bytes: u64,
    trust: TrustReport,
    modules: Vec<ModuleReport>,
}

#[derive(Debug, Serialize)]
struct ModuleReport {
    path: String,
    /// `[out, in]`.
    shape: [u64; 2],
    /// Of its own change; the adapter fills it up to the rank of all.
    rank: u64,
}

/// Writes the adapter.
pub fn run(arguments: &ExportArguments, output: &Output) -> Result<(), CommandError> {
    let patch = open_patch(&arguments.patch, &arguments.store)?;
    let place = arguments.place();
    refuse_existing(&place)?;
    let judged = require(&patch, &arguments.patch, &arguments.trust, output)?;
    let refused = |error| export_error(arguments, error);
    let adapter = Adapter::of(&patch, arguments.dtype).map_err(refused)?;
    let progress = output.progress("exporting", adapter.size_bytes());
    adapter.write(&place, arguments.base_model.as_deref(), &|bytes| progress.add(bytes)).map_err(refused)?;
    drop(progress);
    let modules = adapter.modules().iter().map(|module| ModuleReport {
        path: module.path.clone(),
        shape: module.shape,
        rank: module.rank,
    });
    let report = ExportReport {
        patch: arguments.patch.clone(),
        patch_id: patch.id(),
        output: place,
        base_model: arguments.base_model.clone(),
        rank: adapter.rank(),
        dtype: arguments.dtype,
        size_bytes: adapter.size_bytes(),
        trust: judged.report.clone(),
        modules: modules.collect(),
    };
    output.report_done(&report)
}

impl ExportArguments {
    fn place(&self) -> PathBuf {
        self.output.clone().unwrap_or_else(|| named_after(&self.patch, ".adapter"))
    }
}

fn export_error(arguments: &ExportArguments, error: AdapterError) -> CommandError {
    let patch = arguments.patch.display();
    let hint = match &error {
        AdapterError::TooLarge { dtype: Dtype::F16, .. } => "`--dtype bf16` and `--dtype f32` reach further",
        _ => "`mpatch apply` makes the edited checkpoint, which every program loads",
    };
    match error {
        AdapterError::Checkpoint(error) => error.into(),
        AdapterError::Patch(error) => CommandError::patch(&patch.to_string(), &error),
        other => CommandError::new(ExitKind::Unsupported, format!("`{patch}`: {other}")).hint(hint),
    }
}

impl Report for ExportReport {
    const SCHEMA: &'static str = "mpatch.export/1";

    fn write(&self, page: &mut Page) {
        let (modules, size) = (count(self.modules.len(), "module"), size(self.size_bytes));
        let (place, rank, dtype) = (self.output.display(), self.rank, self.dtype);
        page.title(&format!("wrote {place}: {modules}, rank {rank}, {size} of {dtype}"));
        let rows = self.modules.iter().map(|module| {
            let [rows, columns] = module.shape;
            vec![module.path.clone(), format!("{rows} x {columns}"), module.rank.to_string()]
        });
        page.table_under(["module", "shape", "rank"], rows);
        self.trust.write(page);
        page.line(&format!(
            "in Python: PeftModel.from_pretrained(model, {:?})",
            self.output.to_string_lossy()
        ));
        page.line("near the patch, not its bytes: whoever loads it adds it in the type that he computes in");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: ExportArguments,
    }

    #[test]
    fn who_asked_for_too_narrow_a_type_is_told_which_ones_reach_further() {
        let Line { arguments } = Line::parse_from(["export", "a.mpatch", "--dtype", "f16"]);
        assert_eq!(arguments.dtype, Dtype::F16);
        let hint = |dtype| {
            let (tensor, largest) = ("a".to_owned(), 65504.0);
            let error = AdapterError::TooLarge { tensor, row: 1, value: 1e9, dtype, largest };
            let error = export_error(&arguments, error);
            assert!(error.message.starts_with("`a.mpatch`: tensor `a`, row 1: 1e9 does not fit "));
            error.hint.expect("a hint")
        };
        assert!(hint(Dtype::F16).contains("`--dtype bf16`"));
        assert!(hint(Dtype::F32).contains("`mpatch apply`"));
    }
}
