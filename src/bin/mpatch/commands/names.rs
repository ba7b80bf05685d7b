//! What `branch` and `tag` share: listing, making and deleting names.

use clap::Args;
use mpatch::store::{CommitId, Kind, Store};
use serde::Serialize;

use crate::error::CommandError;
use crate::history::{LockArguments, StoreArguments, branch_of};
use crate::report::{Output, Page, Report, shell_word};

/// What to do with which name.
#[derive(Debug, Args)]
pub struct NamesArguments {
    /// Make this name; without one, list what there is
    name: Option<String>,
    /// Give it to this state; HEAD by default
    revision: Option<String>,
    /// With `-d`, more names
    #[arg(requires = "delete", hide = true)]
    more: Vec<String>,
    /// Delete the name, or several; the states stay, and `mpatch undo` brings them back
    #[arg(short, long, requires = "name")]
    delete: bool,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

/// What `branch` and `tag` print.
#[derive(Debug, Serialize)]
struct NamesReport {
    kind: Kind,
    made: Option<String>,
    deleted: Vec<String>,
    names: Vec<NameReport>,
    /// Branches of the other history, as they were when it was last asked; with branches only.
    remotes: Vec<NameReport>,
}

#[derive(Debug, Serialize)]
struct NameReport {
    name: String,
    is_current: bool,
    commit: CommitId,
    title: String,
}

/// Lists, makes or deletes names of one kind.
pub fn run_names(kind: Kind, arguments: &NamesArguments, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let (mut made, mut deleted) = (None, Vec::new());
    if let Some(name) = &arguments.name {
        if arguments.delete {
            let mut change = arguments.lock.change(&store)?;
            deleted = [name].into_iter().chain(&arguments.revision).chain(&arguments.more).cloned().collect();
            for name in &deleted {
                change.forget(kind, name)?;
            }
            change.finish(&format!("delete {kind} {}", deleted.join(" ")))?;
        } else {
            let commit = store.resolve(arguments.revision.as_deref().unwrap_or("HEAD"))?;
            let mut change = arguments.lock.change(&store)?;
            change.name(kind, name, commit)?;
            change.finish(&format!("{kind} {name}"))?;
            made = Some(name.clone());
        }
    }
    let changed = made.is_some() || !deleted.is_empty();
    let report = report(kind, made, deleted, &store);
    match changed {
        true => output.report_done(&report.map_err(CommandError::after_the_work)?),
        false => output.report(&report?),
    }
}

/// What there is now.
fn report(
    kind: Kind,
    made: Option<String>,
    deleted: Vec<String>,
    store: &Store,
) -> Result<NamesReport, CommandError> {
    let view = store.view()?;
    let current = if kind == Kind::Branch { branch_of(&view) } else { None };
    let line = |(name, target): (&str, CommitId)| {
        let (commit, message) = store.named(target)?;
        let is_current = current == Some(name);
        Ok(NameReport { name: name.to_owned(), is_current, commit, title: message.title })
    };
    let listed = |kind| view.names(kind).map(line).collect::<Result<Vec<_>, CommandError>>();
    let remotes = if kind == Kind::Branch { listed(Kind::Remote)? } else { Vec::new() };
    Ok(NamesReport { kind, made, deleted, names: listed(kind)?, remotes })
}

impl Report for NamesReport {
    const SCHEMA: &'static str = "mpatch.names/1";

    fn write(&self, page: &mut Page) {
        let Self { kind, .. } = self;
        if let Some(name) = &self.made {
            page.title(&format!("made the {kind} {name}"));
        }
        for name in &self.deleted {
            page.title(&format!("deleted the {kind} {name}; its states stay"));
        }
        if self.names.is_empty() {
            page.line(&format!("there is no {kind}"));
        }
        let row = |name: &NameReport| {
            let mark = if name.is_current { "*" } else { " " };
            vec![format!("{mark} {}", name.name), name.commit.short(), format!("│ {}", name.title)]
        };
        page.table(&self.names.iter().chain(&self.remotes).map(row).collect::<Vec<_>>());
    }

    fn next(&self) -> Option<String> {
        match &self.made {
            Some(name) if self.kind == Kind::Branch => Some(format!("mpatch checkout {}", shell_word(name))),
            None if !self.deleted.is_empty() => Some("mpatch undo".to_owned()),
            _ => None,
        }
    }
}
