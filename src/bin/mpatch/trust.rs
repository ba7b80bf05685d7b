//! Whether a patch may be used here: its signatures against the files of believed keys, its line against what is
//! remembered, and what the user allows nevertheless. Every verb that lets a patch touch something asks
//! [`require`].

mod files;
mod lines;
mod report;
mod united;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::patch::manifest::Line;
use mpatch::patch::{Patch, Signature, SignatureKind, Signed};
use mpatch::sign::line::Succession;
use mpatch::sign::policy::Rung;
use mpatch::sign::{Answer, Fingerprint, Judgement, Missing, Policy, SshSig, judge as judge_signatures};
use serde::Serialize;

use crate::error::{CommandError, ExitKind};
use crate::places::{self, Origin};
use crate::report::{Output, shell_word};

pub use files::{TrustFiles, parse_revoked};
pub use lines::{Lines, LockedLines, forget, known_lines, lines_to_change, new_place};
use lines::{Seen, remember, second_story};
use report::Behind;
pub use report::{LineReport, PolicyReport, TrustReport};
pub use united::{United, is_news};

/// The file of believed keys, in the user's settings and in a project's `.mpatch`.
pub const ALLOWED_SIGNERS: &str = "allowed_signers";
/// The file of keys that are believed no more.
pub const REVOKED: &str = "revoked";
/// The file of what is asked beyond one trusted signature.
pub const POLICY: &str = "policy.json";

/// What the user allows although a patch is not signed by a trusted key.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Trust")]
pub struct TrustArguments {
    /// Let a patch pass that nobody has signed
    #[arg(long)]
    pub allow_unsigned: bool,
    /// Let a patch pass whose signature is good, but of a key that nobody here trusts
    #[arg(long)]
    pub allow_unknown: bool,
    /// Let a patch pass whose key is trusted, but not at this time
    #[arg(long)]
    pub allow_expired: bool,
    /// Let a patch pass although a newer one of its line is known
    #[arg(long)]
    pub allow_rollback: bool,
    /// Read one more signature from this file, beside those in the patch and in PATCH.sig
    #[arg(long, value_name = "FILE")]
    pub signature: Vec<PathBuf>,
}

impl TrustArguments {
    /// The arguments as they were given, each with a blank before it.
    pub fn words(&self) -> String {
        let given = Allowance::ALL.into_iter().filter(|allowance| self.allows(*allowance));
        given.map(|allowance| format!(" {}", allowance.flag())).chain([self.signature_words()]).collect()
    }

    /// The arguments for one of several patches: the file of a signature counts for the patch that it signs, and says
    /// nothing of another. `idle` are the files that have signed none so far.
    pub fn for_one_of_several(&self, patch: &Patch, idle: &mut Vec<PathBuf>) -> Result<Self, CommandError> {
        let mut signature = Vec::new();
        for file in &self.signature {
            let bytes = binary(places::read_optional(file)?.ok_or_else(|| places::missing(file))?);
            if SshSig::parse(&bytes).is_ok_and(|found| found.verify(patch.manifest_bytes()).is_err()) {
                continue;
            }
            idle.retain(|other| other != file);
            signature.push(file.clone());
        }
        Ok(Self { signature, ..self.clone() })
    }

    fn allows(&self, allowance: Allowance) -> bool {
        match allowance {
            Allowance::Unsigned => self.allow_unsigned,
            Allowance::Unknown => self.allow_unknown,
            Allowance::Expired => self.allow_expired,
            Allowance::Rollback => self.allow_rollback,
        }
    }

    /// The files of signatures alone, in the same way.
    fn signature_words(&self) -> String {
        self.signature.iter().map(|file| format!(" --signature {}", shell_word(file))).collect()
    }
}

/// What lets a patch pass that is not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowance {
    /// Nobody has signed it, or nobody whose signature is judged.
    Unsigned,
    /// Its key is trusted by nobody here.
    Unknown,
    /// Its key is trusted, but not now.
    Expired,
    /// A newer one of its line is known.
    Rollback,
}

impl Allowance {
    const ALL: [Self; 4] = [Self::Unsigned, Self::Unknown, Self::Expired, Self::Rollback];

    /// The flag by which the user allows it.
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Unsigned => "--allow-unsigned",
            Self::Unknown => "--allow-unknown",
            Self::Expired => "--allow-expired",
            Self::Rollback => "--allow-rollback",
        }
    }
}

/// The judgement of a patch, with what the user allowed.
#[derive(Debug)]
pub struct Judged {
    judged: Permitted,
    refusal: Option<CommandError>,
}

/// A patch that may be used here.
#[derive(Debug)]
pub struct Permitted {
    /// For the command's own report.
    pub report: TrustReport,
    patch: PatchId,
    line: Option<Line>,
    /// The keys whose word counts for the line.
    keys: Vec<Fingerprint>,
    /// Good signatures in files beside the patch, of keys that have not signed in it.
    beside: Vec<Signature>,
}

/// Judges `patch`, which was read from `path`, and refuses it unless it is trusted or the user allows it.
///
/// Call [`Permitted::remember`] once the patch has been used.
pub fn require(
    patch: &Patch,
    path: &Path,
    arguments: &TrustArguments,
    output: &Output,
) -> Result<Permitted, CommandError> {
    judge(patch, path, arguments, output)?.permit()
}

/// As [`require`], of a patch that is used together with others: those that were judged before it are known in `lines`.
pub fn require_among(
    patch: &Patch,
    path: &Path,
    company: Company<'_>,
    lines: &mut Lines<'_>,
    arguments: &TrustArguments,
    output: &Output,
) -> Result<Permitted, CommandError> {
    judge_among(patch, path, company, lines, arguments, output)?.permit()
}

/// Judges `patch`, which was read from `path`; the answer may be no, which [`Judged::permit`] tells.
pub fn judge(
    patch: &Patch,
    path: &Path,
    arguments: &TrustArguments,
    output: &Output,
) -> Result<Judged, CommandError> {
    judge_among(patch, path, Company::None, &mut Lines::default(), arguments, output)
}

fn judge_among(
    patch: &Patch,
    path: &Path,
    company: Company<'_>,
    lines: &mut Lines<'_>,
    arguments: &TrustArguments,
    output: &Output,
) -> Result<Judged, CommandError> {
    let files = TrustFiles::load_with_a_word(output)?;
    let signatures = signatures(patch, path, &arguments.signature, output)?;
    let case = Case {
        name: path.display().to_string(),
        word: super::commands::patch_word(path),
        is_file: super::commands::names_a_file(path),
        company,
        arguments,
        policy: &files.policy,
        asked_by: &files.policy_files,
    };
    let judged = judge_with(patch, &signatures, &case, &files, lines)?;
    if judged.refusal.is_none()
        && let Some(line) = &judged.judged.report.line
        && let Some(behind) = &line.behind
    {
        output.warn(&behind.in_words(&case.name, line));
    }
    Ok(judged)
}

/// Judges a patch that comes from another history: [`Judged::permit`] refuses what has been tampered with, and what a
/// policy never lets pass. All else is asked for again before it touches weights. What came with it and was judged
/// before is known in `lines`.
pub fn judge_arrival(
    patch: &Patch,
    files: &TrustFiles,
    lines: &mut Lines<'_>,
) -> Result<Judged, CommandError> {
    let arguments = TrustArguments {
        allow_unsigned: true,
        allow_unknown: true,
        allow_expired: true,
        allow_rollback: true,
        signature: Vec::new(),
    };
    let name = patch.id().short();
    let case = Case {
        word: name.clone(),
        name,
        is_file: false,
        company: Company::History,
        arguments: &arguments,
        policy: &files.policy,
        asked_by: &files.policy_files,
    };
    let mut judged = judge_with(patch, &with_places(patch.signatures()), &case, files, lines)?;
    // A key may be revoked long after it signed; that is no reason to be without the history.
    if judged.report().judgement.answer == Answer::Revoked && !files.policy.forbids_exceptions() {
        judged.refusal = None;
    }
    judged.judged.report.allowed.clear();
    Ok(judged)
}

/// What the signatures come to of a patch that a history has: nothing is let pass by it, refused, or remembered.
pub fn judge_recorded(signed: &Signed, files: &TrustFiles) -> Result<Judgement, CommandError> {
    let signatures = with_places(&signed.signatures);
    Ok(judge_signatures(&signed.manifest_bytes, &signatures, &files.keyring, &files.policy, now()?))
}

fn judge_with(
    patch: &Patch,
    signatures: &[(String, Vec<u8>)],
    case: &Case<'_>,
    files: &TrustFiles,
    lines: &mut Lines<'_>,
) -> Result<Judged, CommandError> {
    let arguments = case.arguments;
    let now = now()?;
    let judgement = judge_signatures(patch.manifest_bytes(), signatures, &files.keyring, &files.policy, now);
    let keys = match judgement.answer {
        Answer::Unknown if arguments.allow_unknown => judgement.keys(Answer::Unknown),
        Answer::Expired if arguments.allow_expired => judgement.keys(Answer::Expired),
        _ => judgement.keys(Answer::Trusted),
    };
    let line = patch.manifest().line.clone();
    let mut none = Seen::default();
    let seen = if line.is_some() { lines.seen()? } else { &mut none };
    let standing = line.as_ref().and_then(|line| seen.standing(line, &keys, patch.id()));
    let known = &seen.newest;
    let (mut allowed, mut refusal) = case.of_signatures(&judgement);
    if refusal.is_none()
        && let Some(line) = &line
    {
        // Whoever takes a signature off a patch, or puts another in its place, must not get round what is known of
        // its line; a key that is known for the line by itself has that to be compared with.
        let is_stripped = judgement.answer != Answer::Trusted && known.is_known_beside(&line.name, &keys);
        match case.of_member(line, standing, is_stripped) {
            Ok(exception) => allowed.extend(exception),
            Err(error) => refusal = Some(error),
        }
    }
    let line_report = line.as_ref().map(|line| LineReport {
        name: line.name.clone(),
        sequence: line.sequence,
        standing: standing.map_or("not signed", Succession::name),
        problem: standing.and_then(report::problem_of_number),
        known: keys.iter().filter_map(|key| known.get(&line.name, *key)).map(|known| known.sequence).max(),
        behind: Behind::find(line, known, |key| {
            judgement.answer == Answer::Trusted && !keys.contains(&key) && files.keyring.trusts(key, now)
        }),
    });
    if let (Some(line), None) = (&line, &refusal) {
        // Whatever is judged after it is used after it.
        seen.record(line, &keys, patch.id());
    }
    let policy = files.policy();
    let report = TrustReport { judgement, line: line_report, policy, allowed, words: arguments.words() };
    let beside = signatures.iter().skip(patch.signatures().len());
    let beside = beside.map(|(_, bytes)| Signature { kind: SignatureKind::SshSig, bytes: bytes.clone() });
    let news = |one: &Signature| is_news(one, patch.signatures(), patch.manifest_bytes());
    let beside = beside.filter(news).collect();
    Ok(Judged { judged: Permitted { report, patch: patch.id(), line, keys, beside }, refusal })
}

/// Seconds since 1970. Before that no key would have expired.
fn now() -> Result<u64, CommandError> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map(|since| since.as_secs()).map_err(|_| {
        CommandError::new(ExitKind::Io, "the clock is before 1970: nobody can say which keys have expired")
            .hint("set the clock")
    })
}

/// Files in a sentence.
fn listed(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(" and ")
}

impl Judged {
    /// The patch, or why it must not be used.
    pub fn permit(self) -> Result<Permitted, CommandError> {
        self.refusal.map_or(Ok(self.judged), Err)
    }

    /// For the command's own report, whatever the answer.
    pub fn report(&self) -> &TrustReport {
        &self.judged.report
    }

    /// The patch may be used because it is trusted, and not because the user allows it nevertheless.
    pub fn holds(&self) -> bool {
        self.refusal.is_none()
            && self.report().judgement.answer == Answer::Trusted
            && self.report().allowed.is_empty()
    }
}

impl Permitted {
    /// What the user allowed, for a history's record.
    pub fn notes(&self) -> Vec<String> {
        self.report.allowed.iter().map(|what| what.flag().trim_start_matches('-').to_owned()).collect()
    }

    /// The patch with the signatures that lie in files beside it: whoever has it from a history has no such files.
    pub fn with_those_beside<'p>(
        &self,
        patch: &'p Patch,
        output: &Output,
    ) -> Result<Cow<'p, Patch>, CommandError> {
        if self.beside.is_empty() {
            return Ok(Cow::Borrowed(patch));
        }
        let name = patch.id().short();
        let united = United::of(patch.manifest_bytes(), patch.signatures(), &self.beside);
        united.word_of_left_out(&name).iter().for_each(|word| output.warn(word));
        let signed = patch.clone().with_signatures(united.signatures);
        signed.map(Cow::Owned).map_err(|error| CommandError::patch(&name, &error))
    }

    /// What the policies ask `verify` for, and the files that do.
    pub fn minimal_rung(&self) -> (Rung, String) {
        let policy = self.report.policy.as_ref();
        policy.map_or_else(Default::default, |asked| (asked.policy.minimal_rung, listed(&asked.files)))
    }

    /// Says where a policy asks for a rung that only `verify` climbs.
    pub fn warn_of_rung(&self, output: &Output) {
        let (rung, files) = self.minimal_rung();
        if rung > Rung::V1 {
            output.warn(&format!(
                "the policy in {files} asks for {rung}, which only `mpatch verify` looks at: run it first"
            ));
        }
    }

    /// Remembers the patch as the newest of its line, if it is; to be called once it has been used.
    pub fn remember(&self) -> Result<(), CommandError> {
        match &self.line {
            Some(line) if !self.keys.is_empty() => remember(line, &self.keys, self.patch),
            _ => Ok(()),
        }
    }
}

/// The patch's own signatures, those of `PATCH.sig`, and those of `files`, each with the name of its place.
pub fn signatures(
    patch: &Patch,
    path: &Path,
    files: &[PathBuf],
    output: &Output,
) -> Result<Vec<(String, Vec<u8>)>, CommandError> {
    let mut all = with_places(patch.signatures());
    let beside = detached_path(path);
    // Beside standard input, or a patch of the history, lies nothing.
    let is_file = super::commands::names_a_file(path) && !super::commands::is_stdin(path);
    let found = if is_file { places::read(&beside, Origin::Stranger)? } else { None };
    match found {
        Some(bytes) if SshSig::is_begun_by(&bytes) => all.push((beside.display().to_string(), binary(bytes))),
        // Other programs give their signatures the same name.
        Some(_) => {
            let name = beside.display();
            output.warn(&format!("`{name}` is not an SSH signature, and is left out"));
        }
        None => {}
    }
    for file in files {
        let bytes = places::read_optional(file)?.ok_or_else(|| places::missing(file))?;
        all.push((file.display().to_string(), binary(bytes)));
    }
    Ok(all)
}

/// The signatures that are in a patch.
fn with_places(inside: &[Signature]) -> Vec<(String, Vec<u8>)> {
    let inside = inside.iter().enumerate();
    inside.map(|(index, signature)| (format!("signature {}", index + 1), signature.bytes.clone())).collect()
}

/// A patch of a history gets a signature more by a commit. `word` names the patch.
pub fn way_to_a_signature_beside(word: &str) -> String {
    format!(
        "`mpatch sign {word} --key FILE --detached -o NAME.sig` writes a signature, and `mpatch add {word} --signature NAME.sig` records it"
    )
}

/// Where the signature of a patch stands that is not in it.
pub fn detached_path(patch: &Path) -> PathBuf {
    let mut name = patch.as_os_str().to_owned();
    name.push(".sig");
    PathBuf::from(name)
}

/// A signature file's contents in binary form; what is no armour is judged as it is.
fn binary(bytes: Vec<u8>) -> Vec<u8> {
    let armour = std::str::from_utf8(&bytes).ok().and_then(|text| SshSig::dearmour(text).ok());
    armour.unwrap_or(bytes)
}

/// What a patch is used together with: beside the newer one of its line an older one is none that is served again.
#[derive(Debug, Clone, Copy)]
pub enum Company<'a> {
    /// Nothing.
    None,
    /// These patches.
    Patches(&'a [PatchId]),
    /// A history's: it holds old patches, too.
    History,
}

impl Company<'_> {
    fn has(self, newer: PatchId) -> bool {
        match self {
            Company::None => false,
            Company::Patches(patches) => patches.contains(&newer),
            Company::History => true,
        }
    }
}

/// What a refusal needs to know.
struct Case<'a> {
    name: String,
    /// The patch as a word of a suggested command.
    word: String,
    /// It lies in a file, which signatures can be added to.
    is_file: bool,
    company: Company<'a>,
    arguments: &'a TrustArguments,
    policy: &'a Policy,
    /// The files of that policy.
    asked_by: &'a [String],
}

impl Case<'_> {
    /// What had to be allowed because of the signatures, or why the patch is refused.
    fn of_signatures(&self, judgement: &Judgement) -> (Vec<Allowance>, Option<CommandError>) {
        if judgement.answer == Answer::Trusted {
            return (Vec::new(), None);
        }
        let (refusal, allowed) = self.refusal(judgement);
        match (allowed, self.policy.forbids_exceptions()) {
            (Some(allowance), false) => (vec![allowance], None),
            (Some(_), true) => {
                let message = format!("{}; the policy allows no exceptions", refusal.message);
                let hint = format!("the policy is in {}", listed(self.asked_by));
                (Vec::new(), Some(CommandError { message, ..refusal }.hint(hint)))
            }
            (None, _) => (Vec::new(), Some(refusal)),
        }
    }

    /// Why a patch is refused that is not trusted, and what its user has allowed that lets it pass, if anything.
    fn refusal(&self, judgement: &Judgement) -> (CommandError, Option<Allowance>) {
        let refuse = |kind, what: &str, hint: &str| {
            let reason = judgement.reason.as_deref().unwrap_or_default();
            CommandError::new(kind, format!("`{}` {what}: {reason}", self.name)).hint(hint)
        };
        let allowed = |what: Allowance| self.arguments.allows(what).then_some(what);
        match judgement.answer {
            Answer::Bad => {
                let hint = "do not use this patch: somebody has changed it or its signature; fetch it again";
                (refuse(ExitKind::BadSignature, "has a bad signature", hint), None)
            }
            Answer::Revoked => {
                let hint = "ask its maker for a patch that is signed with another key";
                (refuse(ExitKind::Untrusted, "is signed with a revoked key", hint), None)
            }
            Answer::Insufficient => {
                let hint = self.way_to_enough(&judgement.missing);
                (refuse(ExitKind::Untrusted, "lacks signatures", &hint), None)
            }
            Answer::Unknown => {
                let (what, hint) = self.of_unknown_keys(&judgement.keys(Answer::Unknown));
                (refuse(ExitKind::Untrusted, &what, &hint), allowed(Allowance::Unknown))
            }
            Answer::Expired => {
                let or = self.or(Allowance::Expired);
                let hint = format!("ask its maker for a patch that is signed with a valid key{or}");
                let refusal = refuse(ExitKind::Untrusted, "is signed with an expired key", &hint);
                (refusal, allowed(Allowance::Expired))
            }
            Answer::Unsupported => {
                let hint = format!("ask its maker for an Ed25519 signature{}", self.or(Allowance::Unsigned));
                let refusal = refuse(ExitKind::Unsupported, "has a signature that is not judged", &hint);
                (refusal, allowed(Allowance::Unsigned))
            }
            _ => {
                let hint = self.way_to_a_signature();
                (refuse(ExitKind::Untrusted, "is unsigned", &hint), allowed(Allowance::Unsigned))
            }
        }
    }

    /// What is wrong with a patch that these unknown keys signed, and what to do about it.
    fn of_unknown_keys(&self, keys: &[Fingerprint]) -> (String, String) {
        let (what, which, compared) = match keys {
            [key] => (format!("the unknown key {key}"), "", "the key's fingerprint"),
            // Which one its reader believes is for its reader to say.
            _ => {
                let keys: Vec<String> = keys.iter().map(Fingerprint::to_string).collect();
                let keys = format!("the unknown keys {}", keys.join(" and "));
                (keys, " --fingerprint FINGERPRINT", "each key's fingerprint")
            }
        };
        let (word, files) = (&self.word, self.arguments.signature_words());
        let hint = format!(
            "compare {compared} with its owner's, then `mpatch trust add {word}{files}{which} --principal NAME`{}",
            self.or(Allowance::Unknown)
        );
        (format!("is signed with {what}"), hint)
    }

    /// The flag as another way out, unless the policy takes it away.
    fn or(&self, allowance: Allowance) -> String {
        if self.policy.forbids_exceptions() { String::new() } else { format!("; or `{}`", allowance.flag()) }
    }

    /// What to do about a patch that nobody has signed. One of a history is allowed, or gets a signature by a commit.
    fn way_to_a_signature(&self) -> String {
        match (self.is_file, self.policy.forbids_exceptions()) {
            (true, _) => {
                format!(
                    "`mpatch sign {}` signs a patch of your own{}",
                    self.word,
                    self.or(Allowance::Unsigned)
                )
            }
            (false, false) => "`--allow-unsigned` lets it pass".to_owned(),
            (false, true) => way_to_a_signature_beside(&self.word),
        }
    }

    /// Whose signature would do for the policy.
    fn way_to_enough(&self, missing: &Missing) -> String {
        let Missing { keys, principals, .. } = missing;
        let asked_by = listed(self.asked_by);
        // Whoever is asked for by name signs with a key that counts, too.
        let others = keys.saturating_sub(principals.len());
        let mut who: Vec<String> = principals.iter().map(|principal| format!("by `{principal}`")).collect();
        if others > 0 {
            let keys = if others == 1 { "key" } else { "keys" };
            who.push(format!("with {others} more trusted {keys}"));
        }
        let way = match self.is_file {
            true => format!("`mpatch sign {} --key FILE` adds a signature", self.word),
            false => way_to_a_signature_beside(&self.word),
        };
        format!("have it signed {}, as the policy in {asked_by} asks: {way}", who.join(" and "))
    }

    /// What had to be allowed of a member of a line, or why the patch is refused.
    fn of_member(
        &self,
        line: &Line,
        standing: Option<Succession>,
        is_stripped: bool,
    ) -> Result<Option<Allowance>, CommandError> {
        let exception = standing.map_or(Ok(None), |standing| self.of_line(line, standing))?;
        match exception {
            None if is_stripped => self.of_stripped_line(line),
            exception => Ok(exception),
        }
    }

    /// The same, because of its number.
    fn of_line(&self, line: &Line, standing: Succession) -> Result<Option<Allowance>, CommandError> {
        let Line { name: line_name, sequence } = line;
        let refuse = |what: String, hint: String| {
            Err(CommandError::new(ExitKind::Rollback, format!("`{}` {what}", self.name)).hint(hint))
        };
        match standing {
            Succession::First | Succession::Newer | Succession::Same => Ok(None),
            Succession::Older(known) if self.company.has(known.patch) => Ok(None),
            Succession::Older(_) if self.arguments.allow_rollback => Ok(Some(Allowance::Rollback)),
            Succession::Older(known) => refuse(
                format!(
                    "is number {sequence} of the line `{line_name}`, whose number {} is known: this is a rollback",
                    known.sequence
                ),
                "get the newest patch of the line; or `--allow-rollback`".to_owned(),
            ),
            Succession::Conflicting(known) => Err(second_story(&self.name, line, known)),
            Succession::FarAhead => refuse(
                format!(
                    "claims number {sequence} of the line `{line_name}`: no honest number is so far ahead"
                ),
                "ask its maker for a patch with the next number".to_owned(),
            ),
        }
    }

    fn of_stripped_line(&self, line: &Line) -> Result<Option<Allowance>, CommandError> {
        if self.arguments.allow_rollback {
            return Ok(Some(Allowance::Rollback));
        }
        let message = format!(
            "`{}` is not signed by a trusted key, but its line `{}` is known of another key: somebody may have taken the signature off, or put another in its place",
            self.name, line.name
        );
        Err(CommandError::new(ExitKind::Rollback, message).hint("fetch it again; or `--allow-rollback`"))
    }
}
