//! `mpatch fsck`: all of a history is read and hashed, what is damaged is named, and mended from whole copies.

use std::path::{Path, PathBuf};

use clap::Args;
use mpatch::store::fsck::{Checked, Copy, Problem};
use serde::Serialize;

use super::open_patch_file;
use crate::error::{CommandError, ExitKind};
use crate::history::{LockArguments, StoreArguments};
use crate::network::{REMOTE, shown_address};
use crate::report::{Output, Page, Report, count, shell_word, size};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch fsck\n  mpatch fsck --repair backup/edits.mpatch\n  \
                  mpatch fsck --repair ../another-clone\n\n\
                  Mending adds whole copies of what is damaged or missing; damaged files are renamed and kept.")]
pub struct FsckArguments {
    /// Mend what is damaged from this: a patch file, a folder of them, or another copy of the history
    #[arg(long, value_name = "SOURCE")]
    repair: Vec<PathBuf>,
    #[command(flatten)]
    store: StoreArguments,
    #[command(flatten)]
    lock: LockArguments,
}

#[derive(Debug, Serialize)]
struct FsckReport {
    mended: Vec<String>,
    #[serde(flatten)]
    checked: Checked,
}

/// Where whole copies come from.
struct Source<'o> {
    patches: Vec<Copy<'o>>,
    /// Another copy of the history.
    history: Option<&'o Path>,
}

/// Mends, then reads everything.
pub fn run(arguments: &FsckArguments, output: &Output) -> Result<(), CommandError> {
    let mut mended = Vec::new();
    let checked = mend(arguments, &mut mended, output).and_then(|()| check(arguments));
    let checked = checked.map_err(|error| {
        // No report will hold it.
        mended.iter().for_each(|what| output.warn(&format!("mended: {what}")));
        error.after_mending(&mended)
    });
    let (checked, problem) = checked?;
    let told = output.report(&FsckReport { mended: mended.clone(), checked });
    told.and(problem.map_or(Ok(()), Err)).map_err(|error| error.after_mending(&mended))
}

impl CommandError {
    /// Says that what was mended stays so.
    fn after_mending(self, mended: &[String]) -> Self {
        if mended.is_empty() { self } else { self.after_the_work() }
    }
}

/// Mends from each source, all of which are looked at before.
fn mend(arguments: &FsckArguments, mended: &mut Vec<String>, output: &Output) -> Result<(), CommandError> {
    let store = arguments.store.open()?;
    let sources: Vec<Source<'_>> =
        arguments.repair.iter().map(|path| source(path, output)).collect::<Result<_, _>>()?;
    for Source { patches, history } in sources {
        // One process at a time, though no name moves; a store too damaged to be changed is mended without.
        let _change = match arguments.lock.change(&store) {
            Err(error) if ![ExitKind::Malformed, ExitKind::Recovery].contains(&error.kind) => {
                return Err(error);
            }
            change => change.ok(),
        };
        store.mend(&patches, history, mended)?;
    }
    Ok(())
}

fn source<'o>(path: &'o Path, output: &'o Output) -> Result<Source<'o>, CommandError> {
    let is_history = path.is_dir() && (path.join(".git").exists() || path.join("HEAD").exists());
    let patches = if is_history { Vec::new() } else { patches(path, output)? };
    Ok(Source { patches, history: is_history.then_some(path) })
}

/// Reads everything; with the error that tells of what is damaged.
fn check(arguments: &FsckArguments) -> Result<(Checked, Option<CommandError>), CommandError> {
    // Opened anew, since what was mended may lie elsewhere now.
    let store = arguments.store.open()?;
    let checked = store.check()?;
    let Some(first) = checked.problems.first() else { return Ok((checked, None)) };
    let problems = count(checked.problems.len(), "problem");
    let message = format!("the history is damaged, {problems}: {}: {}", first.place, first.what);
    let elsewhere = store.remote(REMOTE).ok().flatten().map_or_else(String::new, |address| {
        format!("; `mpatch clone {} COPY` makes one", shell_word(shown_address(&address)))
    });
    let hint = "`mpatch fsck --repair SOURCE` takes whole copies from patch files, or from another clone";
    let hint = match first.place == "HEAD" {
        true => "`mpatch undo` takes back what moved it, or its branch; `mpatch fsck --repair .` puts it where the last operation left it".to_owned(),
        false => format!("{hint}{elsewhere}"),
    };
    let error = CommandError::new(ExitKind::Malformed, message).hint(hint);
    Ok((checked, Some(error)))
}

/// A patch file, or all of a folder.
fn patches<'o>(source: &Path, output: &'o Output) -> Result<Vec<Copy<'o>>, CommandError> {
    if !source.is_dir() {
        let patch = open_patch_file(source)?;
        return Ok(vec![Box::new(move || Some(patch.clone()))]);
    }
    let failed = |error| CommandError::io("list", source, &error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(source).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "mpatch") {
            paths.push(path);
        }
    }
    paths.sort();
    // Of a folder of copies some may be damaged, too.
    let skipped = |error: CommandError| output.warn(&format!("skipped: {}", error.message));
    let copy = |path: PathBuf| -> Copy<'o> { Box::new(move || open_patch_file(&path).map_err(skipped).ok()) };
    Ok(paths.into_iter().map(copy).collect())
}

impl Report for FsckReport {
    const SCHEMA: &'static str = "mpatch.fsck/1";

    fn write(&self, page: &mut Page) {
        self.mended.iter().for_each(|what| page.line(&format!("mended: {what}")));
        let Checked { objects, commits, patches, patch_size_bytes, foreign, problems } = &self.checked;
        let read = format!(
            "read {}, {}, {} ({})",
            count(*objects, "git object"),
            count(*commits, "commit"),
            count(*patches, "patch"),
            size(*patch_size_bytes)
        );
        match problems.len() {
            0 => page.title(&format!("whole: {read}")),
            _ => page.title(&format!("damaged: {read}")),
        }
        let row = |problem: &Problem| vec![problem.place.clone(), problem.what.clone()];
        page.table(&problems.iter().map(row).collect::<Vec<_>>());
        if !foreign.is_empty() {
            page.line("foreign, and passed by:");
            page.table(&foreign.iter().map(row).collect::<Vec<_>>());
        }
    }
}
