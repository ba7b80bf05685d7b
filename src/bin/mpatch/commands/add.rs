//! `mpatch add`: a patch becomes the next state of the history.

use std::path::PathBuf;

use clap::Args;
use mpatch::sign::{Fingerprint, SshSig};
use mpatch::store::{CommitId, Store, StoreError};
use serde::Serialize;

use super::open_patches;
use crate::error::CommandError;
use crate::history::{CommitReport, LockArguments, StoreArguments, branch_of, message};
use crate::report::{Output, Page, Report};
use crate::trust::{Company, Lines, Permitted, TrustArguments, require_among, way_to_a_signature_beside};

/// Facts that are shown of each new commit.
const FACTS_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch add edits.mpatch\n  mpatch add capitals.mpatch rivers.mpatch\n  \
                  mpatch add edits.mpatch -m \"What changed in March\""
)]
pub struct AddArguments {
    /// Record these patches, each on top of the one before it
    #[arg(required = true)]
    patches: Vec<PathBuf>,
    /// Give the commit this title instead of the patch's own
    #[arg(short, long, value_name = "TITLE")]
    message: Option<String>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
    #[command(flatten)]
    trust: TrustArguments,
}

#[derive(Debug, Serialize)]
struct AddReport {
    branch: Option<String>,
    commits: Vec<CommitReport>,
    /// What `checkout` will ask for again.
    #[serde(skip)]
    trust: String,
}

/// Records the patches, all or none.
pub fn run(arguments: &AddArguments, output: &Output) -> Result<(), CommandError> {
    let patches = open_patches(&arguments.patches, &arguments.store)?;
    let store = arguments.store.open()?;
    let mut change = arguments.lock.change(&store)?;
    let mut lines = Lines::of_history(&store);
    let mut made = Vec::new();
    let mut titles = Vec::new();
    let mut judgements = Vec::new();
    for (patch, path) in patches.iter().zip(&arguments.patches) {
        let judged = require_among(patch, path, Company::None, &mut lines, &arguments.trust, output)?;
        let title = arguments.message.as_deref();
        let message = message(patch.manifest(), patch.id(), title, judged.notes());
        titles.push(message.title.clone());
        let patch = judged.with_those_beside(patch, output)?;
        made.push(change.add(&patch, message).map_err(|error| not_added(&store, &judged, error))?);
        judgements.push(judged);
    }
    change.finish(&format!("add {}", titles.join(", ")))?;
    judgements
        .iter()
        .try_for_each(Permitted::remember)
        .and_then(|()| report(&store, made, &judgements))
        .and_then(|report| output.report_done(&report))
        .map_err(CommandError::after_the_work)
}

/// Why a patch was not added; where it is there with fewer signatures, what its user can do with those that are new.
fn not_added(store: &Store, judged: &Permitted, error: StoreError) -> CommandError {
    let StoreError::Recorded { patch } = error else { return error.into() };
    let Ok(known) = store.patch(patch) else { return error.into() };
    let known = known.signatures().iter().filter_map(|signature| SshSig::parse(&signature.bytes).ok());
    let known: Vec<Fingerprint> = known.map(|signature| signature.key().fingerprint()).collect();
    let mut keys = judged.report.judgement.signatures.iter().filter_map(|found| found.key);
    match keys.find(|key| !known.contains(key)) {
        None => error.into(),
        Some(key) => CommandError::from(error).hint(format!(
            "it stays there as it is, without the signature of {key}: {} where `checkout` and `merge` ask",
            way_to_a_signature_beside(&patch.short())
        )),
    }
}

/// What was recorded.
fn report(store: &Store, made: Vec<CommitId>, judgements: &[Permitted]) -> Result<AddReport, CommandError> {
    let view = store.view()?;
    let commits = made.into_iter().map(|id| Ok(CommitReport::new(store.commit(id)?, &view)));
    let commits = commits.collect::<Result<_, CommandError>>()?;
    let trust = judgements.first().map(|judged| judged.report.words.clone()).unwrap_or_default();
    Ok(AddReport { branch: branch_of(&view).map(str::to_owned), commits, trust })
}

impl Report for AddReport {
    const SCHEMA: &'static str = "mpatch.add/1";

    fn write(&self, page: &mut Page) {
        for (index, commit) in self.commits.iter().enumerate() {
            if index > 0 {
                page.blank();
            }
            commit.write(page, self.branch.as_deref(), FACTS_SHOWN);
        }
    }

    fn next(&self) -> Option<String> {
        Some(format!("mpatch checkout HEAD -o MODEL{}", self.trust))
    }
}
