//! What is remembered of lines of patches, in the user's state.

use mpatch::digest::PatchId;
use mpatch::patch::manifest::Line;
use mpatch::sign::Fingerprint;
use mpatch::sign::line::{KnownLines, Standing};

use crate::error::{CommandError, ExitKind};
use crate::places::{self, Origin};
use crate::report::quoted;

/// The file that it stands in.
const LINES: &str = "lines.json";

/// Remembers `patch` as the newest of its line, for each of `keys`.
pub fn remember(line: &Line, keys: &[Fingerprint], patch: PatchId) -> Result<(), CommandError> {
    change_lines(|known| keys.iter().filter(|key| known.record(line, **key, patch)).count()).map(|_| ())
}

/// The place of a patch that is still to be made in the line `name` of `key`: the next one, or the one with the number
/// that is asked for. Refuses a number that the key has signed already, or gone past: to everybody who knows the line
/// it would be a second story, or a rollback.
pub fn new_place(
    lines: &KnownLines,
    name: &str,
    key: Fingerprint,
    sequence: Option<u64>,
) -> Result<Line, CommandError> {
    let next = lines.next_sequence(name, key);
    let line = Line { name: name.to_owned(), sequence: sequence.unwrap_or(next) };
    let problem = match lines.standing_of_new(&line, key) {
        Standing::First | Standing::Newer | Standing::Same => return Ok(line),
        Standing::Conflicting(known) => format!("is taken: its key has signed patch {}", known.patch.short()),
        Standing::Older(known) => format!("is behind: its key has signed number {}", known.sequence),
        Standing::FarAhead => "is further ahead than any honest one".to_owned(),
    };
    let message = format!("number {} of the line `{name}` {problem}", line.sequence);
    Err(CommandError::new(ExitKind::Rollback, message).hint(format!(
        "leave `--sequence` out: the next number is {next}; `mpatch trust forget {}` forgets the line",
        quoted(name)
    )))
}

/// Forgets a line; says how many keys had one of this name.
pub fn forget(name: &str) -> Result<usize, CommandError> {
    change_lines(|known| known.forget(name))
}

/// Changes what is remembered, if `change` says that it changed something.
fn change_lines(change: impl FnOnce(&mut KnownLines) -> usize) -> Result<usize, CommandError> {
    let folder = places::state_folder()?;
    places::with_lock(&folder, Origin::User, || {
        let mut known = known_lines()?;
        let changed = change(&mut known);
        if changed > 0 {
            let json =
                known.to_json().map_err(|error| CommandError::new(ExitKind::Bug, error.to_string()))?;
            places::replace_own(&folder.join(LINES), &json)?;
        }
        Ok(changed)
    })
}

/// What is remembered of lines.
pub fn known_lines() -> Result<KnownLines, CommandError> {
    let path = places::state_folder()?.join(LINES);
    let Some(json) = places::read_optional(&path)? else { return Ok(KnownLines::default()) };
    KnownLines::parse(&json).map_err(|error| {
        let message = format!("`{}`: {error}", path.display());
        CommandError::new(ExitKind::Malformed, message)
            .hint("move the file away to forget which patches were the newest")
    })
}

/// The worst that some key's knowledge says of the patch; none if no key counts.
pub fn standing(line: &Line, keys: &[Fingerprint], patch: PatchId, known: &KnownLines) -> Option<Standing> {
    let severity = |standing: &Standing| match standing {
        Standing::Conflicting(_) => 5,
        Standing::FarAhead => 4,
        Standing::Older(_) => 3,
        Standing::First => 2,
        Standing::Newer => 1,
        Standing::Same => 0,
    };
    keys.iter().map(|key| known.standing(line, *key, patch)).max_by_key(severity)
}
