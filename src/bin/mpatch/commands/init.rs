//! `mpatch init`: a history for a model, in a git repository.

use std::path::PathBuf;

use clap::Args;
use mpatch::checkpoint::Checkpoint;
use mpatch::digest::{FileDigest, WeightsId};
use mpatch::model::architecture_of;
use mpatch::store::{Base, BaseTensor, Store};
use serde::Serialize;

use super::open_checkpoint;
use crate::error::CommandError;
use crate::history::{StoreArguments, author};
use crate::interrupt::{Passing, last_step};
use crate::report::{Output, Page, Report, count};
use crate::standing::{remembered, shown};
use crate::statistics::StatisticsCache;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch init --base gptj/\n  mpatch init knowledge --base gptj/model.safetensors"
)]
pub struct InitArguments {
    /// Keep the history in this folder, which is made if need be
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Begin with this model: a folder, an index of shards, or a safetensors file
    #[arg(long, value_name = "MODEL")]
    base: PathBuf,
    /// Call the first branch so
    #[arg(long, value_name = "NAME", default_value = "main")]
    branch: String,
}

#[derive(Debug, Serialize)]
struct InitReport {
    folder: PathBuf,
    branch: String,
    base: PathBuf,
    architecture: Option<String>,
    weights: WeightsId,
    tensors: usize,
    /// `create` finds statistics of this base by itself.
    #[serde(skip)]
    has_statistics: bool,
}

/// Makes the history.
pub fn run(arguments: &InitArguments, output: &Output) -> Result<(), CommandError> {
    let InitArguments { folder, base: model, branch } = arguments;
    let checkpoint = open_checkpoint(model, output)?;
    let base = Passing::in_new(folder, |passing| begin(&checkpoint, arguments, passing, output))?;
    let report = InitReport {
        folder: shown(folder),
        branch: branch.clone(),
        base: model.clone(),
        architecture: base.architecture,
        weights: base.weights,
        tensors: base.tensors.len(),
        has_statistics: StatisticsCache::of_user().is_some_and(|cache| cache.names(base.weights)),
    };
    output.report_done(&report)
}

/// `passing` is the folder, if it has just been made.
fn begin(
    checkpoint: &Checkpoint,
    arguments: &InitArguments,
    passing: Option<Passing>,
    output: &Output,
) -> Result<Base, CommandError> {
    let InitArguments { folder, base: model, branch } = arguments;
    let author = author(folder).or_else(|error| {
        // A folder that can hold no history is the better reason.
        Store::begin(folder, branch)?;
        Err(error)
    })?;
    let base = base(checkpoint, output)?;
    let model = remembered(folder, model)?;
    // To begin a history takes a moment; what a signal left of one would be litter.
    if let Some(passing) = passing {
        passing.keep();
    }
    last_step();
    Store::create(folder, branch, &base, Some(model), author)?;
    Ok(base)
}

/// What a history must know about its base.
fn base(checkpoint: &Checkpoint, output: &Output) -> Result<Base, CommandError> {
    let config = checkpoint.companion("config.json")?;
    let architecture = config.as_deref().and_then(architecture_of);
    let tokenizer = checkpoint.companion("tokenizer.json")?;
    let progress = output.progress("hashing", checkpoint.weights_size_bytes());
    let digests =
        checkpoint.digests_with(&Vec::from_iter(checkpoint.tensors()), &|bytes| progress.add(bytes))?;
    let tensors = checkpoint.tensors().iter().zip(digests).map(|(tensor, digest)| BaseTensor {
        name: tensor.name.clone(),
        dtype: tensor.dtype.clone(),
        shape: tensor.shape.clone(),
        digest,
    });
    let digest = |bytes: Option<Vec<u8>>| bytes.map(|bytes| FileDigest::of(&bytes));
    Ok(Base::new(architecture, digest(config), digest(tokenizer), tensors.collect()))
}

impl Report for InitReport {
    const SCHEMA: &'static str = "mpatch.init/1";

    fn write(&self, page: &mut Page) {
        page.title(&format!("began a history in {}, on branch {}", self.folder.display(), self.branch));
        let architecture = self.architecture.as_deref().unwrap_or("weights without a config");
        let weights = self.weights.short();
        let tensors = count(self.tensors, "tensor");
        page.line(&format!("base: {}, {architecture}, weights {weights} ({tensors})", self.base.display()));
    }

    fn next(&self) -> Option<String> {
        let statistics = if self.has_statistics { "" } else { " --stats FILE" };
        let store = StoreArguments { store: Some(self.folder.clone()) };
        Some(format!("mpatch create FACTS{statistics} -o edits.mpatch{}", store.words()))
    }
}
