//! What `trust` is given: public keys, lines of allowed signers, and patches with their signatures.

use std::io::Read;
use std::path::Path;

use mpatch::patch::Patch;
use mpatch::sign::allowed_signers::{AllowedSigners, Entry, line_of, principal_of};
use mpatch::sign::{Fingerprint, PublicKey, SshSig, SshSigError};

use super::AddArguments;
use crate::commands::{is_stdin, open_patch_file, read_input, refuse_folder};
use crate::error::{CommandError, ExitKind};
use crate::places;
use crate::report::{Output, count};
use crate::trust::{self, TrustFiles};

/// How a patch begins.
const PATCH_MAGIC: &[u8] = &mpatch::patch::layout::MAGIC;
/// What can be trusted.
const WANTED: &str = "a public key file (`.pub`), lines of allowed signers, or a signed patch";

/// Keys that may become trusted, and the lines that make them so.
pub struct Candidates {
    lines: Vec<String>,
    /// The keys of the lines, in the same order.
    pub entries: Vec<Entry>,
    /// They come from a patch, and not from their owner.
    pub needs_consent: bool,
}

impl Candidates {
    fn new(lines: Vec<String>, needs_consent: bool, place: &str) -> Result<Self, CommandError> {
        let signers = AllowedSigners::parse(&lines.join("\n"));
        if let Some(problem) = signers.problems.first() {
            let message = format!("`{place}`, {problem}");
            return Err(CommandError::new(ExitKind::Malformed, message).hint(format!("give {WANTED}")));
        }
        if signers.entries.is_empty() {
            return Err(CommandError::new(ExitKind::Malformed, format!("`{place}` holds no key"))
                .hint(format!("give {WANTED}")));
        }
        Ok(Self { lines, entries: signers.entries, needs_consent })
    }

    /// Refuses keys none of whose signatures will ever be judged; some beside others are told.
    fn check_supported(&self, what: &str, output: &Output) -> Result<(), CommandError> {
        let unsupported = |entry: &Entry| {
            let error = entry.key.check_supported().err()?;
            Some(format!("`{what}`, {}: {error}", entry.key.fingerprint()))
        };
        let mut told: Vec<String> = self.entries.iter().filter_map(unsupported).collect();
        if told.len() < self.entries.len() {
            told.iter().for_each(|words| output.warn(words));
            return Ok(());
        }
        let Some(message) = told.pop() else { return Ok(()) };
        Err(CommandError::new(ExitKind::Unsupported, message)
            .hint("ask its owner for a key of another kind: `ssh-keygen -t ed25519` makes one"))
    }

    /// Those of the key `wanted` alone.
    fn only(mut self, wanted: Fingerprint, what: &str) -> Result<Self, CommandError> {
        let found = fingerprints(self.entries.iter().map(|entry| &entry.key));
        let both = self.entries.into_iter().zip(self.lines);
        (self.entries, self.lines) = both.filter(|(entry, _)| entry.key.fingerprint() == wanted).unzip();
        if self.entries.is_empty() { Err(other_keys(what, wanted, &found)) } else { Ok(self) }
    }

    /// The lines that say something which the file at `path`, which holds `bytes`, does not say yet, whatever the
    /// comments are.
    pub fn new_in(&self, bytes: &[u8], path: &Path) -> Result<Vec<String>, CommandError> {
        let mut held: Vec<Entry> = AllowedSigners::parse(bytes).entries;
        let mut new = Vec::new();
        for (entry, line) in self.entries.iter().zip(&self.lines) {
            if !held.iter().any(|held| held.says_the_same_as(entry)) {
                held.push(entry.clone());
                new.push(line.clone());
            }
        }
        if new.is_empty() {
            let message =
                format!("`{}` trusts {} already", path.display(), count(self.lines.len(), "such key"));
            return Err(CommandError::new(ExitKind::Conflict, message).hint("`mpatch trust list` shows them"));
        }
        Ok(new)
    }
}

/// What is given to be trusted.
pub fn candidates(
    arguments: &AddArguments,
    files: &TrustFiles,
    output: &Output,
) -> Result<Candidates, CommandError> {
    let what = arguments.what.as_str();
    let path = Path::new(what);
    refuse_folder(path, WANTED)?;
    let bytes = match is_stdin(path) {
        true => Some(read_input(path)?),
        false => places::read_optional(path).or_else(|error| match error.kind {
            // Patches may be large; what decides is how it begins.
            ExitKind::LimitExceeded if is_patch(path) => Ok(Some(PATCH_MAGIC.to_vec())),
            ExitKind::LimitExceeded => Err(error.hint(format!("give {WANTED}"))),
            _ => Err(error),
        })?,
    };
    let patch = match &bytes {
        Some(bytes) if bytes.starts_with(PATCH_MAGIC) && is_stdin(path) => {
            Some(Patch::decode(bytes.clone()).map_err(|error| CommandError::patch(what, &error))?)
        }
        Some(bytes) if bytes.starts_with(PATCH_MAGIC) => Some(open_patch_file(path)?),
        Some(_) => None,
        None if what.contains(' ') => None,
        None => Some(arguments.store.recorded_patch(path)?.ok_or_else(|| places::missing(path))?),
    };
    if let Some(patch) = patch {
        let key = signer_of(&patch, path, arguments, files, output)?;
        // A signature carries no name: whoever trusts the key gives it one.
        let line = line_of(&principal_for(&key, arguments.principal.as_deref(), what)?, &key);
        return Candidates::new(vec![line], true, what);
    }
    if !arguments.signature.is_empty() {
        let message = format!("`{what}` is no patch, so `--signature` says nothing");
        return Err(CommandError::new(ExitKind::Usage, message).hint("leave it out, or give the patch"));
    }
    let text = bytes.map_or(what.into(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
    let lines = said_lines(&text).map(|(_, line)| key_line(line, arguments.principal.as_deref(), what));
    let found = Candidates::new(lines.collect::<Result<_, _>>()?, false, what)?;
    let found = match arguments.fingerprint {
        Some(wanted) => found.only(wanted, what)?,
        None => found,
    };
    found.check_supported(what, output)?;
    Ok(found)
}

/// Whether a file begins as a patch does.
fn is_patch(path: &Path) -> bool {
    let mut start = [0; PATCH_MAGIC.len()];
    places::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *PATCH_MAGIC
}

/// Lines that say something, numbered from 1.
fn said_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// The public keys that `text` is, or that are in the file of that name, in either form that `trust add` reads; none
/// if it is something else.
pub fn keys_of(text: &str) -> Result<Vec<PublicKey>, CommandError> {
    let path = Path::new(text);
    // Whom a key stands for may be the name of a folder, too.
    let bytes = if path.is_dir() { None } else { places::read_optional(path)? };
    let Some(bytes) = bytes else { return Ok(key_of(text).into_iter().collect()) };
    let content = String::from_utf8_lossy(&bytes);
    let (read, unread): (Vec<_>, Vec<_>) =
        said_lines(&content).map(|(line, text)| (line, key_of(text))).partition(|(_, key)| key.is_some());
    match (unread.first(), read.is_empty()) {
        (Some((line, _)), false) => {
            let message =
                format!("`{text}`, line {line}: neither a public key nor a line of allowed signers");
            Err(CommandError::new(ExitKind::Malformed, message).hint("mend the line, or take it out"))
        }
        _ => Ok(read.into_iter().filter_map(|(_, key)| key).collect()),
    }
}

fn key_of(line: &str) -> Option<PublicKey> {
    let of_entry = || AllowedSigners::parse(line).entries.into_iter().next().map(|entry| entry.key);
    PublicKey::parse(line).ok().or_else(of_entry)
}

/// A line of allowed signers as it is, or made of a public key.
fn key_line(text: &str, principal: Option<&str>, place: &str) -> Result<String, CommandError> {
    if let Ok(key) = PublicKey::parse(text) {
        return Ok(line_of(&principal_for(&key, principal, place)?, &key));
    }
    match (principal, AllowedSigners::parse(text).entries.first()) {
        (Some(_), Some(entry)) => {
            let message = format!(
                "`{place}` says itself whom the key {} stands for, `{}`: `--principal` does not change that",
                entry.key.fingerprint(),
                entry.principals.as_str()
            );
            Err(CommandError::new(ExitKind::Usage, message)
                .hint("give the public key alone, or leave `--principal` out to trust the line as it is"))
        }
        _ => Ok(text.to_owned()),
    }
}

fn principal_for(key: &PublicKey, given: Option<&str>, place: &str) -> Result<String, CommandError> {
    if let Some(name) = given {
        if principal_of(name).as_deref() == Some(name) {
            return Ok(name.to_owned());
        }
        let message = format!(
            "`{name}` is not the name of one principal: it has blanks, quotes or patterns in it, or is long"
        );
        return Err(CommandError::new(ExitKind::Usage, message).hint("give an address, for instance"));
    }
    principal_of(key.comment()).ok_or_else(|| {
        let message = format!("`{place}` does not say whom the key {} stands for", key.fingerprint());
        CommandError::new(ExitKind::Usage, message).hint("say so with `--principal NAME`")
    })
}

/// The one key that has signed a patch and is to be trusted; each signature that is judged must be good.
fn signer_of(
    patch: &Patch,
    path: &Path,
    arguments: &AddArguments,
    files: &TrustFiles,
    output: &Output,
) -> Result<PublicKey, CommandError> {
    let name = path.display();
    let mut keys: Vec<PublicKey> = Vec::new();
    let mut unjudged = None;
    for (place, bytes) in trust::signatures(patch, path, &arguments.signature, output)? {
        let good = SshSig::parse(&bytes)
            .and_then(|signature| signature.verify(patch.manifest_bytes()).map(|()| signature));
        let refused = |error| format!("`{name}`, {place}: {error}");
        match good {
            Ok(signature) if keys.contains(signature.key()) => {}
            Ok(signature) => keys.push(signature.key().clone()),
            // It speaks for nothing, and against nothing.
            Err(error @ SshSigError::Unsupported(_)) => unjudged = Some(refused(error)),
            Err(error) => {
                return Err(CommandError::new(ExitKind::BadSignature, refused(error))
                    .hint("do not trust this patch; fetch it again"));
            }
        }
    }
    if !keys.is_empty() {
        return chosen(keys, arguments.fingerprint, files, &arguments.what);
    }
    Err(match unjudged {
        Some(message) => {
            CommandError::new(ExitKind::Unsupported, message).hint("ask its maker for an Ed25519 signature")
        }
        None => {
            let message = format!("`{name}` is unsigned: there is no key to trust");
            CommandError::new(ExitKind::Untrusted, message).hint("ask its maker for the public key")
        }
    })
}

/// The key that is meant of those that signed one patch. Each must be compared by itself: a patch brings along
/// whatever signatures somebody put into it.
fn chosen(
    mut keys: Vec<PublicKey>,
    wanted: Option<Fingerprint>,
    files: &TrustFiles,
    what: &str,
) -> Result<PublicKey, CommandError> {
    let found = fingerprints(&keys);
    if let Some(wanted) = wanted {
        let meant = keys.into_iter().find(|key| key.fingerprint() == wanted);
        return meant.ok_or_else(|| other_keys(what, wanted, &found));
    }
    if keys.iter().any(|key| !files.knows(key)) {
        keys.retain(|key| !files.knows(key));
    }
    let found = fingerprints(&keys);
    let [key] = <[PublicKey; 1]>::try_from(keys).map_err(|_| {
        let message = format!("`{what}` is signed with several keys, {found}: which one is to be trusted?");
        CommandError::new(ExitKind::Usage, message)
            .hint("compare a fingerprint with the one that its owner gives you, and say `--fingerprint FINGERPRINT`")
    })?;
    Ok(key)
}

fn other_keys(what: &str, wanted: Fingerprint, found: &str) -> CommandError {
    let message = format!("`{what}` has no key {wanted}, but {found}");
    CommandError::new(ExitKind::Usage, message)
        .hint("trust none of them unless its owner gives you its fingerprint")
}

fn fingerprints<'k>(keys: impl IntoIterator<Item = &'k PublicKey>) -> String {
    let each: Vec<String> = keys.into_iter().map(|key| key.fingerprint().to_string()).collect();
    each.join(" and ")
}

/// Asks whether keys that come from a patch are to be trusted.
pub fn consent(found: &Candidates, is_given: bool, output: &Output) -> Result<(), CommandError> {
    if is_given {
        return Ok(());
    }
    let keys = fingerprints(found.entries.iter().map(|entry| &entry.key));
    match output.ask(&format!("Trust every patch that is signed with {keys}? [y/N] ")) {
        Some(true) => Ok(()),
        Some(false) => Err(CommandError::new(ExitKind::Untrusted, format!("{keys}: not trusted"))
            .hint("compare the fingerprint with the one that its owner gives you")),
        None => {
            let message = format!("nobody is here to be asked whether to trust {keys}");
            Err(CommandError::new(ExitKind::Untrusted, message)
                .hint("compare the fingerprint with its owner's, and say `--yes`"))
        }
    }
}
