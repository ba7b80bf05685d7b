//! The projects whose keys the user has accepted.
//!
//! Whatever a repository or an archive brings along belongs to the user once it is unpacked, so neither the place of a
//! project's `.mpatch/allowed_signers` nor its owner says who wrote it. Its keys count once the user has accepted the
//! file, and until it changes. What is accepted stands among the user's settings, in lines that `b3sum --check` reads:
//!
//! ```text
//! <BLAKE3 of the file>  /where/the/project/lies/.mpatch/allowed_signers
//! ```

use std::path::Path;
use std::sync::OnceLock;

use mpatch::digest::FileDigest;
use mpatch::sign::AllowedSigners;

use crate::error::{CommandError, ExitKind};
use crate::places::{self, Origin};
use crate::trust::ALLOWED_SIGNERS;

/// The file of what is accepted, among the user's settings.
const ACCEPTED: &str = "accepted_projects";

/// A line of the accepted file that holds for this process only.
static OF_THIS_PROCESS: OnceLock<String> = OnceLock::new();

/// Whether the keys that a project lists count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// The user has accepted the file as it is.
    Given,
    /// The user has accepted what the file held before.
    Outdated,
    /// The user has not accepted it.
    Missing,
}

impl Acceptance {
    /// Why the keys do not count, in words that go on after the file's name; none if they do.
    pub fn lack(self) -> Option<&'static str> {
        match self {
            Acceptance::Given => None,
            Acceptance::Outdated => Some("which has changed since you accepted it: `mpatch trust project`"),
            Acceptance::Missing => Some("which you have not accepted: `mpatch trust project`"),
        }
    }
}

/// Whether the user has accepted the believed keys of the project's `folder`, where they are `bytes`.
pub fn acceptance(folder: &Path, bytes: &[u8]) -> Result<Acceptance, CommandError> {
    let Some(place) = place(folder) else { return Ok(Acceptance::Missing) };
    let accepted = accepted()?;
    if accepted.contains(&line(bytes, &place)) {
        return Ok(Acceptance::Given);
    }
    Ok(match accepted.iter().any(|line| is_of(line, &place)) {
        true => Acceptance::Outdated,
        false => Acceptance::Missing,
    })
}

/// Whether the user has accepted the believed keys of the project's `folder`, as they are now or were before.
pub fn is_accepted(folder: &Path) -> Result<bool, CommandError> {
    let Some(place) = place(folder) else { return Ok(false) };
    Ok(accepted()?.iter().any(|line| is_of(line, &place)))
}

/// A line for each file that the user has accepted.
fn accepted() -> Result<Vec<String>, CommandError> {
    // Without a place for the user's files there is nothing that they have accepted.
    let held = match places::config_folder() {
        Ok(settings) => places::read_text(&settings.join(ACCEPTED))?.unwrap_or_default(),
        Err(_) => String::new(),
    };
    let lines = held.lines().chain(OF_THIS_PROCESS.get().map(String::as_str));
    Ok(lines.map(str::to_owned).collect())
}

/// Accepts the believed keys of the project's `folder`, which are `bytes`, until they change.
pub fn accept(folder: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    let place = named_place(folder)?;
    change_accepted(|lines| {
        lines.retain(|line| !is_of(line, &place));
        lines.push(line(bytes, &place));
    })
}

/// Accepts them for as long as this process runs, which leaves nothing among the user's settings.
pub fn accept_for_now(folder: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    let place = named_place(folder)?;
    OF_THIS_PROCESS.get_or_init(|| line(bytes, &place));
    Ok(())
}

/// Accepts the project's believed keys no longer.
pub fn withdraw(folder: &Path) -> Result<(), CommandError> {
    let place = named_place(folder)?;
    change_accepted(|lines| lines.retain(|line| !is_of(line, &place)))
}

/// Changes a project's file of believed keys. It is accepted with the change, unless it held keys before that the user
/// has not accepted: whoever adds a key does not vouch for those that a stranger wrote beside it.
pub fn change_signers<T>(
    path: &Path,
    change: impl FnOnce(&mut Vec<u8>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let folder = places::folder_of(path);
    let (counted, answer, bytes) = places::change(path, Origin::Stranger, |bytes| {
        let counted = counts(folder, bytes);
        let answer = change(bytes)?;
        Ok((counted, answer, bytes.clone()))
    })?;
    if counted? {
        accept(folder, &bytes).map_err(CommandError::after_the_work)?;
    }
    Ok(answer)
}

/// Nothing in the project's file waits for the user's word.
pub fn counts(folder: &Path, bytes: &[u8]) -> Result<bool, CommandError> {
    let holds_none = AllowedSigners::parse(bytes) == AllowedSigners::default();
    Ok(holds_none || acceptance(folder, bytes)? == Acceptance::Given)
}

fn change_accepted(change: impl FnOnce(&mut Vec<String>)) -> Result<(), CommandError> {
    let path = places::config_folder()?.join(ACCEPTED);
    places::change(&path, Origin::User, |held| {
        let text = places::text_of(std::mem::take(held), &path)?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        change(&mut lines);
        places::add_lines(held, &lines);
        Ok(())
    })
}

fn line(bytes: &[u8], place: &str) -> String {
    format!("{}  {place}", FileDigest::of(bytes))
}

fn is_of(line: &str, place: &str) -> bool {
    line.split_once("  ").is_some_and(|(_, known)| known == place)
}

/// Where the project's file lies; none where a line of text cannot say so.
fn place(folder: &Path) -> Option<String> {
    let project = folder.parent().filter(|project| !project.as_os_str().is_empty());
    // The way to the project is resolved, and none within it: a link in a stranger's project must not lead to one that
    // is accepted.
    let project = project.unwrap_or(Path::new(".")).canonicalize().ok()?;
    let path = project.join(folder.file_name()?).join(ALLOWED_SIGNERS);
    path.to_str().filter(|path| !path.contains(['\n', '\r'])).map(str::to_owned)
}

fn named_place(folder: &Path) -> Result<String, CommandError> {
    place(folder).ok_or_else(|| {
        let message = format!("the way to `{}` cannot be written down in a line", folder.display());
        CommandError::new(ExitKind::Io, message).hint("give its folders names in UTF-8, without line breaks")
    })
}
