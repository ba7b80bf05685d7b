//! `mpatch add`: a patch becomes the next state of the history.

use std::path::PathBuf;

use clap::Args;
use mpatch::patch::{Patch, Signature};
use mpatch::store::{Change, CommitId, Message, Store, StoreError};
use serde::Serialize;

use super::open_patches;
use crate::error::CommandError;
use crate::history::{CommitReport, LockArguments, StoreArguments, branch_of, message};
use crate::report::{Output, Page, Report};
use crate::trust::{Company, Lines, Permitted, TrustArguments, United, is_news, require_among};

/// Facts that are shown of each new commit.
const FACTS_SHOWN: usize = 5;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mpatch add edits.mpatch\n  mpatch add capitals.mpatch rivers.mpatch\n  \
                  mpatch add edits.mpatch -m \"What changed in March\"\n  \
                  mpatch add HEAD --signature ben.sig"
)]
pub struct AddArguments {
    /// Record these patches, each on top of the one before it; of one that is recorded, signatures that are new
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
        made.push(record(&mut change, &patch, message, output)?);
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

/// Records a patch; of one that the history has, the signatures that are new.
fn record(
    change: &mut Change<'_>,
    patch: &Patch,
    message: Message,
    output: &Output,
) -> Result<CommitId, CommandError> {
    let Some(known) = change.recorded(patch.id())? else { return Ok(change.add(patch, message)?) };
    let name = patch.id().short();
    let is_news = |one: &&Signature| is_news(one, known.signatures(), patch.manifest_bytes());
    let news: Vec<Signature> = patch.signatures().iter().filter(is_news).cloned().collect();
    let united = United::of(patch.manifest_bytes(), known.signatures(), &news);
    if news.is_empty() || united.signatures == known.signatures() {
        return Err(StoreError::Recorded { patch: patch.id() }.into());
    }
    united.word_of_left_out(&name).iter().for_each(|word| output.warn(word));
    let signed = known.with_signatures(united.signatures);
    let signed = signed.map_err(|error| CommandError::patch(&name, &error))?;
    let title = format!("Sign {}", message.title);
    Ok(change.sign(&signed, &Message { title, notes: message.notes, ..Message::default() })?)
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
