//! `mpatch trust`: whose keys are believed here, shown by their fingerprints.

mod candidates;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use mpatch::digest::PatchId;
use mpatch::sign::allowed_signers::{AllowedSigners, Entry};
use mpatch::sign::line::Known;
use mpatch::sign::{Fingerprint, PublicKey, Unaccepted};
use serde::Serialize;

use candidates::{candidates, consent, keys_of};

use crate::error::{CommandError, ExitKind};
use crate::history::StoreArguments;
use crate::places::{self, Origin};
use crate::projects;
use crate::report::{Output, Page, Report, count};
use crate::trust::{self, ALLOWED_SIGNERS, PolicyReport, REVOKED, TrustFiles, parse_revoked};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mpatch trust list\n  \
                  mpatch trust add alice.pub --principal alice@example.org\n  \
                  mpatch trust add edits.mpatch --principal alice@example.org\n  \
                  mpatch trust project\n  \
                  mpatch trust revoke SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ")]
pub struct TrustCommandArguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Trust a key: a public key file, a line or file of allowed signers, or the signer of a patch
    Add(AddArguments),
    /// List the keys that are trusted, those that are revoked, the lines of patches that are known, and the policy
    List,
    /// Trust a key no longer, as if it had never been added
    Remove(ChangeArguments),
    /// Revoke a key: what it signed is refused from now on, whoever trusts it
    Revoke(ChangeArguments),
    /// Accept the keys that this project lists in its `.mpatch`, as they are now
    Project(ProjectArguments),
    /// Forget which patch of a line was the newest
    Forget {
        /// The line's name
        line: String,
    },
}

#[derive(Debug, Args)]
struct AddArguments {
    /// A file (public key, allowed signers or patch; `-` is standard input), a patch of the history, or a line of
    /// allowed signers itself
    what: String,
    /// Whom the key stands for, e.g. an address; the key's comment by default
    #[arg(long, value_name = "NAME")]
    principal: Option<String>,
    /// Trust this key alone, which is asked for where a patch is signed with several that are not trusted yet
    #[arg(long, value_name = "FINGERPRINT")]
    fingerprint: Option<Fingerprint>,
    /// Read one more signature of a patch from this file, beside those in the patch and in PATCH.sig
    #[arg(long, value_name = "FILE")]
    signature: Vec<PathBuf>,
    /// Trust the signer of a patch without being asked
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    store: StoreArguments,
    /// Where the key is written.
    #[command(flatten)]
    place: PlaceArguments,
}

#[derive(Debug, Args)]
struct ChangeArguments {
    /// The key: its fingerprint, whom it stands for, or a file of public keys or allowed signers, all of which are
    /// meant
    key: String,
    /// Where the key is written.
    #[command(flatten)]
    place: PlaceArguments,
}

#[derive(Debug, Args)]
struct ProjectArguments {
    /// Accept them no longer
    #[arg(long)]
    withdraw: bool,
}

#[derive(Debug, Args)]
struct PlaceArguments {
    /// Change the project's `.mpatch`, the nearest from here upwards or a new one here, instead of your own settings
    #[arg(long)]
    project: bool,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Deed {
    Add,
    List,
    Remove,
    Revoke,
    Project,
    Withdraw,
    Forget,
}

#[derive(Debug, Serialize)]
struct TrustListReport {
    action: Deed,
    /// The file that was changed.
    file: Option<String>,
    keys: Vec<KeyReport>,
    /// Revoked keys, where they are asked for.
    revoked: Vec<KeyReport>,
    /// Keys that the project lists and that do not count, where they are asked for.
    not_accepted: Vec<KeyReport>,
    /// Lines of patches, where they are asked for.
    lines: Vec<KnownLineReport>,
    /// What is asked beyond one trusted signature, where that is asked for and there is a policy.
    policy: Option<PolicyReport>,
    warnings: Vec<String>,
    #[serde(skip)]
    title: String,
}

/// What is remembered of a line of patches.
#[derive(Debug, Serialize)]
struct KnownLineReport {
    line: String,
    key: Fingerprint,
    /// The highest number seen.
    sequence: u64,
    /// Its patch.
    patch: PatchId,
}

/// One key of a file.
#[derive(Debug, Serialize)]
struct KeyReport {
    principals: String,
    key: Fingerprint,
    algorithm: String,
    file: String,
    /// Where it stands in the file, from 1.
    line: Option<usize>,
    /// What restricts it, in words.
    remarks: Vec<String>,
}

/// Lists or changes what is trusted.
pub fn run(arguments: &TrustCommandArguments, output: &Output) -> Result<(), CommandError> {
    let report = match &arguments.action {
        Action::Add(arguments) => add(arguments, output)?,
        Action::List => list()?,
        Action::Remove(arguments) => remove(arguments)?,
        Action::Revoke(arguments) => revoke(arguments)?,
        Action::Project(arguments) => project(arguments)?,
        Action::Forget { line } => forget(line)?,
    };
    match report.action {
        Deed::List => output.report(&report),
        _ => output.report_done(&report),
    }
}

impl PlaceArguments {
    fn file(&self, name: &str) -> Result<PathBuf, CommandError> {
        let folder = match self.project {
            true => places::project_folder().unwrap_or_else(|| PathBuf::from(".mpatch")),
            false => places::config_folder()?,
        };
        Ok(folder.join(name))
    }

    /// Who says that there are files in that folder.
    fn origin(&self) -> Origin {
        if self.project { Origin::Stranger } else { Origin::User }
    }

    /// Changes the file of believed keys at `path`, which [`PlaceArguments::file`] gave.
    fn change_signers<T>(
        &self,
        path: &Path,
        change: impl FnOnce(&mut Vec<u8>) -> Result<T, CommandError>,
    ) -> Result<T, CommandError> {
        match self.project {
            true => projects::change_signers(path, change),
            false => places::change(path, self.origin(), change),
        }
    }

    /// Refuses to add to a project's keys that the user has not accepted: the new one would not count either.
    fn check_accepted(&self, path: &Path, held: &[u8]) -> Result<(), CommandError> {
        let folder = places::folder_of(path);
        if !self.project || projects::counts(folder, held)? {
            return Ok(());
        }
        let message = format!("`{}` lists keys that you have not accepted", path.display());
        Err(CommandError::new(ExitKind::Untrusted, message)
            .hint("`mpatch trust list` shows them, and `mpatch trust project` accepts them"))
    }
}

fn add(arguments: &AddArguments, output: &Output) -> Result<TrustListReport, CommandError> {
    let files = TrustFiles::load()?;
    let found = candidates(arguments, &files, output)?;
    for entry in &found.entries {
        if let Some(file) = files.revokes(&entry.key) {
            let message = format!("the key {} is revoked by `{file}`", entry.key.fingerprint());
            return Err(CommandError::new(ExitKind::Untrusted, message)
                .hint("take it out of that file first, if it was revoked by mistake"));
        }
    }
    if found.needs_consent {
        consent(&found, arguments.yes, output)?;
    }
    let path = arguments.place.file(ALLOWED_SIGNERS)?;
    let held = places::read(&path, arguments.place.origin())?.unwrap_or_default();
    arguments.place.check_accepted(&path, &held)?;
    found.new_in(&held, &path)?;
    arguments.place.change_signers(&path, |held| {
        let new = found.new_in(held, &path)?;
        places::add_lines(held, &new);
        Ok(())
    })?;
    let name = path.display().to_string();
    let keys = found.entries.iter().map(|entry| KeyReport { line: None, ..KeyReport::of(entry, &name) });
    Ok(TrustListReport {
        title: format!("{name} now trusts {}", count(found.entries.len(), "key")),
        keys: keys.collect(),
        file: Some(name),
        ..TrustListReport::new(Deed::Add)
    })
}

fn list() -> Result<TrustListReport, CommandError> {
    let files = TrustFiles::load()?;
    let of_file = |(name, signers): &(String, AllowedSigners)| {
        signers.entries.iter().map(|entry| KeyReport::of(entry, name)).collect::<Vec<_>>()
    };
    let mut keys: Vec<KeyReport> = files.sources().iter().flat_map(of_file).collect();
    for (key, report) in files.sources().iter().flat_map(|(_, signers)| &signers.entries).zip(&mut keys) {
        if let Some(file) = files.revokes(&key.key) {
            report.remarks.push(format!("revoked by {file}"));
        }
    }
    let revoked = files.revoked().iter().map(|(file, key)| KeyReport::of_key(key, file)).collect();
    let mut warnings = files.warnings().to_vec();
    // A damaged file of lines is no reason to be without the list of keys.
    let known = trust::known_lines().map_err(|error| warnings.push(error.message)).unwrap_or_default();
    Ok(TrustListReport {
        title: format!("{}, {} revoked", count(keys.len(), "key"), files.revoked().len()),
        keys,
        revoked,
        not_accepted: files.unaccepted().iter().flat_map(not_accepted).collect(),
        lines: known.iter().map(KnownLineReport::of).collect(),
        policy: files.policy(),
        warnings,
        ..TrustListReport::new(Deed::List)
    })
}

fn not_accepted(list: &Unaccepted) -> Vec<KeyReport> {
    list.signers.entries.iter().map(|entry| KeyReport::of(entry, &list.file)).collect()
}

/// Whether an entry is meant by `wanted`, a fingerprint or a principal, or is of one of `keys`.
fn is_meant(entry: &Entry, wanted: &str, keys: &BTreeSet<Fingerprint>) -> bool {
    let fingerprint = entry.key.fingerprint();
    keys.contains(&fingerprint) || entry.principals.as_str() == wanted || fingerprint.to_string() == wanted
}

fn remove(arguments: &ChangeArguments) -> Result<TrustListReport, CommandError> {
    let path = arguments.place.file(ALLOWED_SIGNERS)?;
    let wanted = arguments.key.as_str();
    let keys = keys_of(wanted)?.iter().map(PublicKey::fingerprint).collect();
    let name = path.display().to_string();
    let meant = |bytes: &[u8]| {
        let held = AllowedSigners::parse(bytes).entries.into_iter();
        let meant: Vec<Entry> = held.filter(|entry| is_meant(entry, wanted, &keys)).collect();
        if meant.is_empty() {
            let message = format!("`{name}` trusts no `{wanted}`");
            return Err(CommandError::new(ExitKind::Usage, message).hint(
                "`mpatch trust list` shows the keys and their files; `trust revoke` works whoever trusts a key",
            ));
        }
        Ok(meant)
    };
    // A folder is not made for a key that is not there.
    meant(&places::read(&path, arguments.place.origin())?.unwrap_or_default())?;
    let gone = arguments.place.change_signers(&path, |held| {
        let gone = meant(held)?;
        let lines: BTreeSet<usize> = gone.iter().map(|entry| entry.line).collect();
        // Among the user's own it stays as a comment, so that signing with the key does not put it back.
        let mut left = Vec::new();
        for (index, line) in held.split_inclusive(|byte| *byte == b'\n').enumerate() {
            match (lines.contains(&(index + 1)), arguments.place.project) {
                (false, _) => left.extend_from_slice(line),
                (true, false) => left.extend_from_slice(&[b"# ", line].concat()),
                (true, true) => {}
            }
        }
        *held = left;
        Ok(gone)
    })?;
    Ok(TrustListReport {
        title: format!("{name} no longer trusts {}", count(gone.len(), "key")),
        keys: gone.iter().map(|entry| KeyReport { line: None, ..KeyReport::of(entry, &name) }).collect(),
        file: Some(name),
        ..TrustListReport::new(Deed::Remove)
    })
}

fn revoke(arguments: &ChangeArguments) -> Result<TrustListReport, CommandError> {
    let files = TrustFiles::load()?;
    let wanted = arguments.key.as_str();
    let given = keys_of(wanted)?;
    let entries = files.sources().iter().flat_map(|(_, signers)| &signers.entries);
    let known = entries.filter(|entry| is_meant(entry, wanted, &BTreeSet::new())).map(|entry| &entry.key);
    let mut seen = BTreeSet::new();
    let meant = given.iter().chain(known).filter(|key| seen.insert(key.fingerprint()));
    let mut keys: Vec<PublicKey> = meant.cloned().collect();
    if keys.is_empty() {
        let message = format!("no key `{wanted}` is known here");
        return Err(CommandError::new(ExitKind::Usage, message).hint(
            "give the public key file: a fingerprint does not hold the key that must be written down",
        ));
    }
    let path = arguments.place.file(REVOKED)?;
    let name = path.display().to_string();
    // Another file that revokes a key as well may be gone tomorrow: a project's, or git's.
    places::change(&path, arguments.place.origin(), |held| {
        let revoked = parse_revoked(held.clone(), &path)?;
        keys.retain(|key| !revoked.contains(key));
        if keys.is_empty() {
            let message = format!("`{name}` revokes `{wanted}` already");
            return Err(CommandError::new(ExitKind::Conflict, message).hint("`mpatch trust list` shows it"));
        }
        places::add_lines(held, &keys.iter().map(PublicKey::line_with_comment).collect::<Vec<_>>());
        Ok(())
    })?;
    Ok(TrustListReport {
        title: format!("{name} now revokes {}", count(keys.len(), "key")),
        revoked: keys.iter().map(|key| KeyReport::of_key(key, &name)).collect(),
        file: Some(name),
        ..TrustListReport::new(Deed::Revoke)
    })
}

fn project(arguments: &ProjectArguments) -> Result<TrustListReport, CommandError> {
    let folder = places::project_folder().unwrap_or_else(|| PathBuf::from(".mpatch"));
    let path = folder.join(ALLOWED_SIGNERS);
    let name = path.display().to_string();
    if arguments.withdraw {
        projects::withdraw(&folder)?;
        return Ok(TrustListReport {
            title: format!("{name} is not accepted: it trusts nobody"),
            ..TrustListReport::new(Deed::Withdraw)
        });
    }
    let missing = || places::missing(&path).hint("`mpatch trust add KEY.pub --project` begins one");
    let bytes = places::read(&path, Origin::Stranger)?.ok_or_else(missing)?;
    projects::accept(&folder, &bytes)?;
    let signers = AllowedSigners::parse(&bytes);
    Ok(TrustListReport {
        title: format!("{name} is accepted as it is now: it trusts {}", count(signers.entries.len(), "key")),
        keys: signers.entries.iter().map(|entry| KeyReport::of(entry, &name)).collect(),
        warnings: signers.problems.iter().map(|problem| format!("`{name}`, {problem}; ignored")).collect(),
        file: Some(name),
        ..TrustListReport::new(Deed::Project)
    })
}

fn forget(line: &str) -> Result<TrustListReport, CommandError> {
    let forgotten = trust::forget(line)?;
    if forgotten == 0 {
        let message = format!("no patch of a line `{line}` is remembered");
        return Err(CommandError::new(ExitKind::Usage, message)
            .hint("`mpatch trust list` shows the lines that are remembered"));
    }
    Ok(TrustListReport {
        title: format!("forgot which patch of the line {line} was the newest"),
        ..TrustListReport::new(Deed::Forget)
    })
}

impl KnownLineReport {
    fn of((line, key, known): (&str, Fingerprint, Known)) -> Self {
        Self { line: line.to_owned(), key, sequence: known.sequence, patch: known.patch }
    }

    fn row(&self) -> Vec<String> {
        vec![self.line.clone(), self.sequence.to_string(), self.patch.short(), self.key.to_string()]
    }
}

impl KeyReport {
    fn of(entry: &Entry, file: &str) -> Self {
        let mut remarks = Vec::new();
        if let Some(namespaces) = &entry.namespaces {
            remarks.push(format!("for {}", namespaces.as_str()));
        }
        if entry.is_authority {
            remarks.push("an authority for certificates, which are not judged".to_owned());
        }
        if entry.valid_after.is_some() || entry.valid_before.is_some() {
            remarks.push("for a time".to_owned());
        }
        if let Err(error) = entry.key.check_supported() {
            remarks.push(error.to_string());
        }
        let principals = entry.principals.as_str().to_owned();
        Self { principals, line: Some(entry.line), remarks, ..Self::of_key(&entry.key, file) }
    }

    fn of_key(key: &PublicKey, file: &str) -> Self {
        Self {
            principals: key.comment().to_owned(),
            key: key.fingerprint(),
            algorithm: key.algorithm(),
            file: file.to_owned(),
            line: None,
            remarks: Vec::new(),
        }
    }

    fn row(&self) -> Vec<String> {
        let place = match self.line {
            Some(line) => format!("{}:{line}", self.file),
            None => self.file.clone(),
        };
        vec![self.principals.clone(), self.key.to_string(), place, self.remarks.join("; ")]
    }
}

impl TrustListReport {
    fn new(action: Deed) -> Self {
        Self {
            action,
            file: None,
            keys: Vec::new(),
            revoked: Vec::new(),
            not_accepted: Vec::new(),
            lines: Vec::new(),
            policy: None,
            warnings: Vec::new(),
            title: String::new(),
        }
    }
}

impl Report for TrustListReport {
    const SCHEMA: &'static str = "mpatch.trust/1";

    fn write(&self, page: &mut Page) {
        page.title(&self.title);
        page.table(&self.keys.iter().map(KeyReport::row).collect::<Vec<_>>());
        if !self.revoked.is_empty() {
            page.line("revoked:");
            let row = |key: &KeyReport| vec![key.key.to_string(), key.file.clone(), key.principals.clone()];
            page.table(&self.revoked.iter().map(row).collect::<Vec<_>>());
        }
        if !self.not_accepted.is_empty() {
            page.line("not accepted, so nobody trusts them; `mpatch trust project` accepts them:");
            page.table(&self.not_accepted.iter().map(KeyReport::row).collect::<Vec<_>>());
        }
        if !self.lines.is_empty() {
            page.line("lines of patches, by the newest that is known:");
            page.table(&self.lines.iter().map(KnownLineReport::row).collect::<Vec<_>>());
        }
        if let Some(policy) = &self.policy {
            page.line(&format!("policy: {}", policy.in_words()));
        }
        for warning in &self.warnings {
            page.line(&format!("warning: {warning}"));
        }
    }

    fn next(&self) -> Option<String> {
        match self.action {
            Deed::List if self.keys.is_empty() => {
                Some("mpatch trust add KEY.pub --principal NAME".to_owned())
            }
            Deed::List | Deed::Withdraw | Deed::Forget => None,
            Deed::Add | Deed::Remove | Deed::Revoke | Deed::Project => Some("mpatch trust list".to_owned()),
        }
    }
}
