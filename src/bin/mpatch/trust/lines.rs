//! What is remembered of lines of patches, in the user's state.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

use mpatch::digest::PatchId;
use mpatch::patch::Patch;
use mpatch::patch::manifest::Line;
use mpatch::sign::line::{Known, KnownLines, Succession};
use mpatch::sign::{Fingerprint, SshSig};
use mpatch::store::{Store, StoreError};

use crate::error::{CommandError, ExitKind};
use crate::places::{self, Origin};
use crate::report::quoted;

/// The file that it stands in.
const LINES: &str = "lines.json";

/// What is known of lines while several patches are judged: what is remembered and what a history has, read for the
/// first member of a line, and those that were judged already.
#[derive(Default)]
pub struct Lines<'s> {
    history: Option<&'s Store>,
    seen: Option<Seen>,
}

impl<'s> Lines<'s> {
    /// Of patches that are judged for this history, too.
    pub fn of_history(store: &'s Store) -> Self {
        Self { history: Some(store), seen: None }
    }

    pub(super) fn seen(&mut self) -> Result<&mut Seen, CommandError> {
        if self.seen.is_none() {
            let mut seen = Seen { newest: known_lines()?, numbers: BTreeMap::new() };
            for member in self.history.map(members).transpose()?.unwrap_or_default() {
                seen.record(&member.line, &member.keys, member.patch);
            }
            self.seen = Some(seen);
        }
        Ok(self.seen.get_or_insert_default())
    }
}

/// Members of lines: the newest of each, and every number that was seen, for of two patches with one number the second
/// may come after a newer one.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) newest: KnownLines,
    numbers: BTreeMap<(String, Fingerprint, u64), PatchId>,
}

impl Seen {
    pub(super) fn record(&mut self, line: &Line, keys: &[Fingerprint], patch: PatchId) {
        for key in keys {
            self.newest.record(line, *key, patch);
            self.numbers.entry((line.name.clone(), *key, line.sequence)).or_insert(patch);
        }
    }

    /// The worst that is known of the patch for some key; none if no key counts.
    pub(super) fn standing(&self, line: &Line, keys: &[Fingerprint], patch: PatchId) -> Option<Succession> {
        let with_number = |key: &Fingerprint| self.numbers.get(&(line.name.clone(), *key, line.sequence));
        let other = keys.iter().filter_map(with_number).find(|other| **other != patch);
        let conflict =
            |other: &PatchId| Succession::Conflicting(Known { sequence: line.sequence, patch: *other });
        other.map(conflict).or_else(|| standing(line, keys, patch, &self.newest))
    }
}

/// A patch of a history that belongs to a line, and whose word that is: of all keys that have signed it, for a line is
/// a name and a key, whoever is trusted.
struct Member {
    line: Line,
    keys: Vec<Fingerprint>,
    patch: PatchId,
}

/// The members of lines that a history has.
fn members(store: &Store) -> Result<Vec<Member>, CommandError> {
    let mut ids = BTreeSet::new();
    for commit in store.commits()? {
        ids.extend(commit?.series);
    }
    let mut members = Vec::new();
    for id in ids {
        if store.manifest(id)?.line.is_none() {
            continue;
        }
        let patch = match store.patch(id) {
            // What Git LFS has not brought here yet cannot be asked who signed it.
            Err(StoreError::Missing { .. }) => continue,
            found => found?,
        };
        if let Some(line) = patch.manifest().line.clone() {
            members.push(Member { line, keys: signers(&patch), patch: id });
        }
    }
    Ok(members)
}

/// The keys whose signatures in the patch are good.
fn signers(patch: &Patch) -> Vec<Fingerprint> {
    let read = patch.signatures().iter().filter_map(|signature| SshSig::parse(&signature.bytes).ok());
    let good = read.filter(|signature| signature.verify(patch.manifest_bytes()).is_ok());
    good.map(|signature| signature.key().fingerprint()).collect()
}

/// What is remembered of lines; no other mpatch changes it while this lives.
#[derive(Debug)]
pub struct LockedLines {
    known: KnownLines,
    folder: PathBuf,
    _lock: File,
}

impl LockedLines {
    /// Waits for whoever changes it.
    pub fn open() -> Result<Self, CommandError> {
        let folder = places::state_folder()?;
        let lock = places::lock(&folder, Origin::User)?;
        Ok(Self { known: known_lines()?, folder, _lock: lock })
    }

    /// The place of a patch that is made and not signed yet: `line`, unless it was taken while the patch was made, and
    /// then the next one. A number that the user `asked_for` is refused then.
    pub fn place(&self, line: &Line, key: Fingerprint, asked_for: Option<u64>) -> Result<Line, CommandError> {
        place_of_made(&self.known, line, key, asked_for)
    }

    /// Refuses `patch`, which `key` is to sign, where it has signed another one with that number.
    pub fn refuse_second(&self, line: &Line, key: Fingerprint, patch: PatchId) -> Result<(), CommandError> {
        let Succession::Conflicting(known) = self.known.standing(line, key, patch) else { return Ok(()) };
        let (Line { name, sequence }, next) = (line, self.known.next_sequence(&line.name, key));
        let message = format!(
            "{} cannot be number {sequence} of the line `{name}`, which {}",
            patch.short(),
            taken(known)
        );
        Err(CommandError::new(ExitKind::Rollback, message)
            .hint(format!("make the patch anew: the next number is {next}; {}", way_to_forget(name))))
    }

    /// Remembers `patch` as the newest of its line, for each of `keys`.
    pub fn remember(mut self, line: &Line, keys: &[Fingerprint], patch: PatchId) -> Result<(), CommandError> {
        if record(&mut self.known, line, keys, patch)? { self.write() } else { Ok(()) }
    }

    fn write(&self) -> Result<(), CommandError> {
        let json =
            self.known.to_json().map_err(|error| CommandError::new(ExitKind::Bug, error.to_string()))?;
        places::replace_own(&self.folder.join(LINES), &json)
    }
}

fn place_of_made(
    lines: &KnownLines,
    line: &Line,
    key: Fingerprint,
    asked_for: Option<u64>,
) -> Result<Line, CommandError> {
    match new_place(lines, &line.name, key, Some(line.sequence)) {
        Err(_) if asked_for.is_none() => new_place(lines, &line.name, key, None),
        answer => answer,
    }
}

/// Remembers `patch` as the newest of its line, for each of `keys`.
pub fn remember(line: &Line, keys: &[Fingerprint], patch: PatchId) -> Result<(), CommandError> {
    LockedLines::open()?.remember(line, keys, patch)
}

/// As [`remember`], in memory; says whether it was news. Another patch may have got the number since this one was
/// judged.
fn record(
    known: &mut KnownLines,
    line: &Line,
    keys: &[Fingerprint],
    patch: PatchId,
) -> Result<bool, CommandError> {
    if let Some(Succession::Conflicting(other)) = standing(line, keys, patch, known) {
        return Err(second_story(&patch.short(), line, other));
    }
    Ok(keys.iter().filter(|key| known.record(line, **key, patch)).count() > 0)
}

/// The alarm of a patch called `name`.
pub fn second_story(name: &str, line: &Line, known: Known) -> CommandError {
    let Line { name: line, sequence } = line;
    let message = format!(
        "`{name}` is not the number {sequence} of the line `{line}` that is known, patch {}: its key has signed two patches with one number",
        known.patch.short()
    );
    CommandError::new(ExitKind::Rollback, message)
        .hint(format!("ask its maker which one counts, and why there are two; {}", way_to_forget(line)))
}

fn taken(known: Known) -> String {
    format!("is taken: its key has signed patch {}", known.patch.short())
}

fn way_to_forget(line: &str) -> String {
    format!(
        "`mpatch trust forget {}` forgets what is remembered of the line, not what a history has of it",
        quoted(line)
    )
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
        Succession::First | Succession::Newer | Succession::Same => return Ok(line),
        Succession::Conflicting(known) => taken(known),
        Succession::Older(known) => format!("is behind: its key has signed number {}", known.sequence),
        Succession::FarAhead => "is further ahead than any honest one".to_owned(),
    };
    let message = format!("number {} of the line `{name}` {problem}", line.sequence);
    Err(CommandError::new(ExitKind::Rollback, message)
        .hint(format!("leave `--sequence` out: the next number is {next}; {}", way_to_forget(name))))
}

/// Forgets a line; says how many keys had one of this name.
pub fn forget(name: &str) -> Result<usize, CommandError> {
    let mut lines = LockedLines::open()?;
    let forgotten = lines.known.forget(name);
    if forgotten > 0 {
        lines.write()?;
    }
    Ok(forgotten)
}

/// As [`known_lines`], for who will add to it after hours of work, with what the history at hand has: it may have been
/// made elsewhere.
pub fn lines_to_change(history: Option<&Store>) -> Result<KnownLines, CommandError> {
    places::check_writable(&places::state_folder()?)?;
    let mut known = known_lines()?;
    for member in history.map(members).transpose()?.unwrap_or_default() {
        member.keys.iter().for_each(|key| _ = known.record(&member.line, *key, member.patch));
    }
    Ok(known)
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
fn standing(line: &Line, keys: &[Fingerprint], patch: PatchId, known: &KnownLines) -> Option<Succession> {
    let severity = |standing: &Succession| match standing {
        Succession::Conflicting(_) => 5,
        Succession::FarAhead => 4,
        Succession::Older(_) => 3,
        Succession::First => 2,
        Succession::Newer => 1,
        Succession::Same => 0,
    };
    keys.iter().map(|key| known.standing(line, *key, patch)).max_by_key(severity)
}

#[cfg(test)]
mod tests {
    use mpatch::sign::PrivateKey;

    use super::*;

    #[test]
    fn a_second_story_is_refused_also_where_it_was_judged_before_the_first_was_known() {
        let keys = [1, 2].map(|seed| PrivateKey::from_seed(&[seed; 32], "").unwrap().public().fingerprint());
        let line = Line { name: "news".to_owned(), sequence: 4 };
        let (one, other) = (PatchId::derive(b"one"), PatchId::derive(b"other"));
        let mut known = KnownLines::default();
        assert!(record(&mut known, &line, &keys[..1], one).unwrap());
        assert!(!record(&mut known, &line, &keys[..1], one).unwrap());
        let refused = record(&mut known, &line, &keys, other).unwrap_err();
        assert_eq!(refused.kind, ExitKind::Rollback);
        assert!(refused.message.contains("has signed two patches with one number"), "{}", refused.message);
        assert_eq!(known.get("news", keys[1]), None);
        // Nor is a number signed twice that was free when the work began.
        let later = Line { sequence: 5, ..line.clone() };
        assert_eq!(place_of_made(&known, &line, keys[0], None).unwrap(), later);
        assert_eq!(place_of_made(&known, &later, keys[0], Some(5)).unwrap(), later);
        let refused = place_of_made(&known, &line, keys[0], Some(4)).unwrap_err();
        assert!(refused.message.contains("number 4 of the line `news` is taken"), "{}", refused.message);
    }
}
