//! The key that signs: found, or made on first use; and what signing with it is.
//!
//! ```text
//! --key, MPATCH_KEY, git's user.signingkey ─┬─▶ a private key without passphrase: signs here
//! the key of mpatch's own, made if need be ─┘   everything else (passphrase, agent, hardware): ssh-keygen signs
//! ```

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use mpatch::digest::PatchId;
use mpatch::patch::manifest::Line;
use mpatch::patch::{Draft, Patch, PatchError, Signature, SignatureKind};
use mpatch::sign::allowed_signers::{AllowedSigners, OWN_PRINCIPAL, line_of, principal_of};
use mpatch::sign::key::{SEED_SIZE_BYTES, header_of_private};
use mpatch::sign::{Fingerprint, NAMESPACE, PrivateKey, PublicKey, SshSig, SshSigError, sshsig};
use serde::Serialize;
use tempfile::NamedTempFile;
use zeroize::Zeroizing;

use crate::error::{CommandError, ExitKind, State, both};
use crate::job::encoded;
use crate::places::{self, GitSettings, Origin};
use crate::report::{Page, shell_word};
use crate::trust::{LockedLines, TrustFiles};

/// The file of mpatch's own key among the user's settings.
const OWN_KEY: &str = "key";
/// Names the key where `--key` does not.
const VARIABLE: &str = "MPATCH_KEY";
/// Names it where neither does.
const GIT_SETTING: &str = "git's `user.signingkey`";

/// Which key signs.
#[derive(Debug, Args)]
pub struct KeyArguments {
    /// Sign with this key file; a public key's private half may be in an agent or on hardware [default: `MPATCH_KEY`,
    /// else git's `user.signingkey` for SSH, else a key that mpatch makes]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// Whether a new patch is signed, and with which key.
#[derive(Debug, Args)]
pub struct SigningArguments {
    /// Which key signs.
    #[command(flatten)]
    key: KeyArguments,
    /// Do not sign the patch
    #[arg(long, conflicts_with = "key")]
    no_sign: bool,
}

impl SigningArguments {
    /// The key, found before the work whose result it signs; none where nothing is to be signed.
    pub fn signer(&self) -> Result<Option<Signer>, CommandError> {
        if self.no_sign {
            return Ok(None);
        }
        let found = self.key.find();
        let signer = found.map_err(|error| match error.hint.clone() {
            // The key may have been named years ago, for something else.
            Some(hint) if self.key.key.is_none() => error.hint(format!("{hint}, or give `--no-sign`")),
            _ => error,
        })?;
        signer.check_not_revoked()?;
        Ok(Some(signer))
    }
}

/// Signs a new patch and writes it to `place`. If the key fails, the work is kept: the patch is written unsigned.
///
/// A member of a line takes its place there: it is remembered once it is written, and gets the next number if another
/// one has taken its own meanwhile, unless its user asked for that `sequence`.
pub fn write_signed(
    patch: &mut Patch,
    mut signer: Option<&mut Signer>,
    sequence: Option<u64>,
    place: &Path,
) -> Result<Option<SignatureReport>, CommandError> {
    let name = place.to_string_lossy();
    // Before the number, which is one of the key's.
    let kept = signer.as_mut().map_or(Ok(()), |signer| signer.keep());
    let signer = signer.map(|signer| &*signer);
    // From here on until the number is remembered no other mpatch can sign it.
    let numbered = signer.map(|signer| take_number(patch, signer, sequence)).transpose();
    let membership = numbered.map_err(|error| with_word_of_key(signer, error))?.flatten();
    let signed = signer.map_or(Ok(()), |signer| {
        kept?;
        *patch = signer.sign_into(patch.clone(), &name).map_err(|error| signer.with_word_of_key(error))?;
        Ok(())
    });
    let bytes = patch.to_bytes().map_err(|error| CommandError::patch(&name, &error))?;
    let written = mpatch::checkpoint::write_new(place, &bytes).map_err(CommandError::from);
    signed.map_err(|error: CommandError| match &written {
        Err(_) => error,
        Ok(()) => {
            let message = format!("wrote `{name}` without a signature: {}", error.message);
            let key = signer.map(Signer::words).unwrap_or_default();
            let hint = format!("`mpatch sign {}{key}` signs it", shell_word(place));
            CommandError { message, state: State::Applied, ..error }.hint(hint)
        }
    })?;
    let remembered = Membership::keep(membership, &written, patch.id());
    let settled = match written {
        Ok(()) => signer.map(Signer::settle).transpose(),
        Err(error) => Err(with_word_of_key(signer, error)),
    };
    both(settled, remembered).map(|(signature, ())| signature)
}

/// The number of a patch that is about to be signed; no other mpatch signs it while this lives.
pub struct Membership {
    lines: LockedLines,
    line: Line,
    key: Fingerprint,
}

impl Membership {
    /// Of a patch that has its number already; none where it belongs to no line. Refuses it where the key has signed
    /// another patch with that number.
    pub fn of(patch: &Patch, signer: &Signer) -> Result<Option<Self>, CommandError> {
        let Some(line) = patch.manifest().line.clone() else { return Ok(None) };
        let (lines, key) = (LockedLines::open()?, signer.public().fingerprint());
        lines.refuse_second(&line, key, patch.id())?;
        Ok(Some(Self { lines, line, key }))
    }

    /// A number that is signed is taken, if what came of the writing stands.
    pub fn keep<T>(
        membership: Option<Self>,
        written: &Result<T, CommandError>,
        patch: PatchId,
    ) -> Result<(), CommandError> {
        let stands = written.as_ref().map_or_else(|error| error.state == State::Applied, |_| true);
        let Some(Self { lines, line, key }) = membership.filter(|_| stands) else { return Ok(()) };
        lines.remember(&line, &[key], patch).map_err(CommandError::after_the_work)
    }
}

/// Gives the patch a number of its line that is still free; none where it belongs to no line.
fn take_number(
    patch: &mut Patch,
    signer: &Signer,
    sequence: Option<u64>,
) -> Result<Option<Membership>, CommandError> {
    let Some(planned) = patch.manifest().line.clone() else { return Ok(None) };
    let (lines, key) = (LockedLines::open()?, signer.public().fingerprint());
    let line = lines.place(&planned, key, sequence)?;
    if line != planned {
        let draft = patch.draft().map_err(|error| CommandError::patch("the new patch", &error))?;
        let draft = Draft { line: Some(line.clone()), ..draft };
        *patch = encoded(&draft, "the new patch")?;
    }
    Ok(Some(Membership { lines, line, key }))
}

/// Says with an error that comes after the signing that a new key of the signer's stays all the same.
pub fn with_word_of_key(signer: Option<&Signer>, error: CommandError) -> CommandError {
    match signer {
        Some(signer) => signer.with_word_of_key(error),
        None => error,
    }
}

/// A key, ready to sign.
#[derive(Debug)]
pub struct Signer {
    means: Means,
    public: PublicKey,
    /// Where it is to lie, if it is new.
    made: Option<PathBuf>,
    /// The file that `--key` named it by.
    named: Option<PathBuf>,
}

#[derive(Debug)]
enum Means {
    /// The secret is at hand.
    Here(Box<PrivateKey>),
    /// `ssh-keygen` has to be asked, with this file.
    Program(PathBuf, Secret),
    /// The same, with a file that lasts as long as this.
    Literal(NamedTempFile),
}

/// Where the secret half of a key is that does not sign here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secret {
    /// With an agent, or in a file that needs no passphrase, itself or beside the public half.
    Elsewhere,
    /// In its file, behind a passphrase.
    Locked,
    /// On hardware, whose file is there.
    OnHardware,
}

/// What a command tells of the signature it made.
#[derive(Debug, Serialize)]
pub struct SignatureReport {
    key: Fingerprint,
    algorithm: String,
    /// The key file, if the key was made just now.
    made: Option<String>,
    /// The file that trusts the key from now on, if none did.
    trusted_in: Option<String>,
    /// Whom the key stands for there.
    principal: Option<String>,
    /// The file that trusts it no more, because it was taken out of it.
    #[serde(skip)]
    left_out_of: Option<String>,
}

/// The key that is to sign, by what says so.
enum Chosen {
    /// A key file, and what names it.
    File(PathBuf, &'static str),
    /// A public key in words, among git's settings.
    Line(String),
    /// Nothing names one.
    Own(GitSettings),
}

impl KeyArguments {
    /// The key that is named, or the user's own; where there is none, a new one, which [`Signer::keep`] writes.
    pub fn find(&self) -> Result<Signer, CommandError> {
        let found = match self.choose()? {
            Chosen::File(path, named_by) => Signer::open(&path).map_err(|error| self.named(error, named_by)),
            Chosen::Line(line) => Signer::of_line(&line).map_err(|error| self.named(error, GIT_SETTING)),
            Chosen::Own(git) => Signer::own(&git),
        };
        Ok(Signer { named: self.key.clone(), ..found? })
    }

    /// Says of a key that cannot sign who named it, where that was not the command line.
    fn named(&self, error: CommandError, named_by: &str) -> CommandError {
        if self.key.is_some() {
            return error;
        }
        CommandError { message: format!("{}; {named_by} names this key", error.message), ..error }
    }

    fn choose(&self) -> Result<Chosen, CommandError> {
        if let Some(path) = &self.key {
            return Ok(Chosen::File(path.clone(), "`--key`"));
        }
        if let Some(path) = places::variable(VARIABLE) {
            return Ok(Chosen::File(path.into(), VARIABLE));
        }
        let git = GitSettings::read()?;
        Ok(match &git.signing_key {
            Some(key) => match key.to_str().and_then(literal) {
                Some(line) => Chosen::Line(line.to_owned()),
                None => Chosen::File(key.into(), GIT_SETTING),
            },
            None => Chosen::Own(git),
        })
    }
}

/// The key that would sign a new patch, and why this one.
#[derive(Debug)]
pub struct Prospect {
    /// The key; none where one would be made.
    pub key: Option<PublicKey>,
    /// Where it lies, or would.
    pub place: String,
    /// Why it is this one.
    pub reason: String,
}

/// The key that would sign if nothing named one on the command line; none is made.
pub fn prospect() -> Result<Prospect, CommandError> {
    let (signer, place, reason) = match (KeyArguments { key: None }).choose()? {
        Chosen::File(path, named_by) => {
            (Some(Signer::open(&path)?), path.display().to_string(), format!("{named_by} names it"))
        }
        Chosen::Line(line) => {
            (Some(Signer::of_line(&line)?), "the agent".to_owned(), format!("{GIT_SETTING} is this key"))
        }
        Chosen::Own(_) => {
            let path = places::config_folder()?.join(OWN_KEY);
            let is_there = path.symlink_metadata().is_ok();
            let signer = if is_there { Some(Signer::open(&path)?) } else { None };
            let reason = format!("neither {VARIABLE} nor {GIT_SETTING} names one");
            (signer, path.display().to_string(), reason)
        }
    };
    signer.as_ref().map_or(Ok(()), Signer::check_not_revoked)?;
    Ok(Prospect { key: signer.map(|signer| signer.public), place, reason })
}

/// The public key that git's `user.signingkey` is, where it is not a path.
fn literal(value: &str) -> Option<&str> {
    let line = value.strip_prefix("key::").unwrap_or(value);
    PublicKey::parse(line).is_ok().then_some(line)
}

impl Signer {
    /// Opens a key file, private or public.
    fn open(path: &Path) -> Result<Self, CommandError> {
        let text = Zeroizing::new(places::read_text(path)?.ok_or_else(|| places::missing(path))?);
        refuse_certificate(path, &text)?;
        if let Ok(public) = PublicKey::parse(&text) {
            check_private_half(path)?;
            return Self::new(Means::Program(path.to_owned(), Secret::Elsewhere), public, path);
        }
        let Ok(key) = PrivateKey::parse(&text) else { return Self::unread(path, &text) };
        check_mode(path)?;
        let public = key.public().clone();
        let means = match (key.signs_by_itself(), key.is_encrypted()) {
            (true, _) => Means::Here(Box::new(key)),
            (false, true) => Means::Program(path.to_owned(), Secret::Locked),
            (false, false) => Means::Program(path.to_owned(), Secret::OnHardware),
        };
        Self::new(means, public, path)
    }

    /// A private key in a form that only `ssh-keygen` reads, with its public half in its header, or beside it.
    fn unread(path: &Path, text: &str) -> Result<Self, CommandError> {
        let (public, is_encrypted) = match header_of_private(text) {
            Ok(header) => header,
            Err(_) => (Self::beside(path)?, true),
        };
        check_mode(path)?;
        let secret = if is_encrypted { Secret::Locked } else { Secret::Elsewhere };
        Self::new(Means::Program(path.to_owned(), secret), public, path)
    }

    /// The public half beside a private key.
    fn beside(path: &Path) -> Result<PublicKey, CommandError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".pub");
        let public = places::read_text(Path::new(&name))?.and_then(|text| PublicKey::parse(&text).ok());
        public.ok_or_else(|| {
            let message = format!("`{}` is no key that OpenSSH reads", path.display());
            let hint = format!("`ssh-keygen -p -f {}` writes older formats anew", shell_word(path));
            CommandError::new(ExitKind::Malformed, message).hint(hint)
        })
    }

    /// A public key in words, whose private half the agent has.
    fn of_line(line: &str) -> Result<Self, CommandError> {
        let failed = |error: std::io::Error| CommandError::io("write in", &std::env::temp_dir(), &error);
        let public = PublicKey::parse(line).map_err(|error| {
            CommandError::new(ExitKind::Malformed, error.to_string())
                .hint("mend that setting, or name a key with `--key`")
        })?;
        let mut file = NamedTempFile::new().map_err(failed)?;
        writeln!(file, "{line}").and_then(|()| file.flush()).map_err(failed)?;
        Self::new(Means::Literal(file), public, Path::new("user.signingkey"))
    }

    fn new(means: Means, public: PublicKey, path: &Path) -> Result<Self, CommandError> {
        public.check_supported().map_err(|error| {
            CommandError::new(ExitKind::Unsupported, format!("`{}`: {error}", path.display()))
                .hint("`ssh-keygen -t ed25519` makes one: name it, or another one, with `--key`")
        })?;
        Ok(Self { means, public, made: None, named: None })
    }

    /// The key among the user's settings.
    fn own(git: &GitSettings) -> Result<Self, CommandError> {
        let folder = places::config_folder()?;
        let path = folder.join(OWN_KEY);
        if path.symlink_metadata().is_ok() {
            return Self::open(&path);
        }
        places::check_writable(&folder)?;
        let user = git.email.clone().or_else(places::user);
        let comment = user.as_deref().and_then(principal_of).unwrap_or_else(|| "me".to_owned());
        let key = new_key(&comment)?;
        Ok(Self {
            public: key.public().clone(),
            means: Means::Here(Box::new(key)),
            made: Some(path),
            named: None,
        })
    }

    /// Writes a new key to where it is to lie: once the work is done that it signs, so that work which fails leaves no
    /// key behind, and before anything is signed with it. Where another mpatch has made one meanwhile, that is the key
    /// of both.
    pub fn keep(&mut self) -> Result<(), CommandError> {
        let (Some(path), Means::Here(key)) = (&self.made, &self.means) else { return Ok(()) };
        if !places::write_private(path, private_text(key)?.as_bytes())? {
            *self = Self::open(&path.clone())?;
            return Ok(());
        }
        let public_line = self.public.line_with_comment() + "\n";
        let written = places::write_private(&path.with_extension("pub"), public_line.as_bytes());
        written.map(drop).map_err(|error| self.with_word_of_key(error))
    }

    /// Says with an error that comes after a new key was written that a new key stays all the same.
    pub fn with_word_of_key(&self, error: CommandError) -> CommandError {
        let Some(path) = &self.made else { return error };
        let path = path.display();
        let message =
            format!("{}; the key `{path}` was made, and signs your patches from now on", error.message);
        CommandError { message, ..error }
    }

    /// What names this key again in a suggested command, with a blank before it.
    fn words(&self) -> String {
        self.named.as_ref().map_or_else(String::new, |path| format!(" --key {}", shell_word(path)))
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs the manifest of `patch`.
    pub fn sign(&self, patch: &Patch) -> Result<SshSig, CommandError> {
        let manifest = patch.manifest_bytes();
        let failed = |error: SshSigError| {
            let message = format!("the key {}: {error}", self.public.fingerprint());
            CommandError::new(ExitKind::Malformed, message).hint("choose another key with `--key`")
        };
        let signature = match &self.means {
            Means::Here(key) => return sshsig::sign(key, manifest).map_err(failed),
            Means::Program(path, secret) => {
                sign_with_program(path, &format!("`{}`", path.display()), *secret, manifest)?
            }
            Means::Literal(file) => {
                let name = format!("{GIT_SETTING}, the key {}", self.public.fingerprint());
                sign_with_program(file.path(), &name, Secret::Elsewhere, manifest)?
            }
        };
        let signature = SshSig::from_armour(&signature).map_err(failed)?;
        if signature.key() != &self.public {
            let found = signature.key().fingerprint();
            let message = format!("`ssh-keygen` signed with {found}, not with {}", self.public.fingerprint());
            return Err(CommandError::new(ExitKind::Malformed, message).hint("choose the key with `--key`"));
        }
        signature.verify(manifest).map_err(failed)?;
        Ok(signature)
    }

    /// Puts a signature into `patch`.
    pub fn sign_into(&self, patch: Patch, name: &str) -> Result<Patch, CommandError> {
        let signature = self.sign(&patch)?;
        with_signature(patch, &signature, name)
    }

    /// Sees to it that patches signed with this key are trusted here, and tells what was done: once what it signed is
    /// written, so that work which fails makes nobody trusted, and that stands after an error.
    pub fn settle(&self) -> Result<SignatureReport, CommandError> {
        let settled = self.trust().map_err(|error| match error.state {
            State::Applied => error,
            _ => {
                let key = self.public.fingerprint();
                let message = format!(
                    "{}; what the key {key} signed stands, and it is not trusted here yet",
                    error.message
                );
                CommandError { message, ..error }
                    .hint("see to that; then `mpatch trust add` with the patch trusts its key")
            }
        });
        settled.map_err(|error| self.with_word_of_key(error).after_the_work())
    }

    fn trust(&self) -> Result<SignatureReport, CommandError> {
        let files = TrustFiles::load()?;
        let mut report = SignatureReport {
            key: self.public.fingerprint(),
            algorithm: self.public.algorithm(),
            made: self.made.as_ref().map(|path| path.display().to_string()),
            trusted_in: None,
            principal: None,
            left_out_of: None,
        };
        if files.knows(&self.public) {
            return Ok(report);
        }
        let path = places::config_folder()?.join(crate::trust::ALLOWED_SIGNERS);
        let name = path.display().to_string();
        // Whoever has taken it out does not want it back.
        if places::read_optional(&path)?.is_some_and(|held| is_commented_out(&held, &self.public)) {
            report.left_out_of = Some(name);
            return Ok(report);
        }
        places::append(&path, Origin::User, &[line_of(OWN_PRINCIPAL, &self.public)])?;
        report.trusted_in = Some(name);
        report.principal = Some(OWN_PRINCIPAL.to_owned());
        Ok(report)
    }

    /// Refuses a key that is revoked, before any work is done with it.
    pub fn check_not_revoked(&self) -> Result<(), CommandError> {
        match TrustFiles::load()?.revokes(&self.public) {
            None => Ok(()),
            Some(file) => {
                let message = format!("the key {} is revoked by `{file}`", self.public.fingerprint());
                Err(CommandError::new(ExitKind::Untrusted, message).hint("choose another key with `--key`"))
            }
        }
    }
}

/// Whether a list of keys has the line of this one as a comment.
fn is_commented_out(held: &[u8], key: &PublicKey) -> bool {
    let comments =
        held.split(|byte| *byte == b'\n').filter_map(|line| line.trim_ascii_start().strip_prefix(b"#"));
    let lines = comments.collect::<Vec<_>>().join(&b'\n');
    AllowedSigners::parse(&lines).entries.iter().any(|entry| entry.key == *key)
}

/// Puts a signature beside those that are in `patch`.
pub fn with_signature(patch: Patch, signature: &SshSig, name: &str) -> Result<Patch, CommandError> {
    let mut signatures = patch.signatures().to_vec();
    signatures.push(Signature { kind: SignatureKind::SshSig, bytes: signature.bytes().to_vec() });
    patch.with_signatures(signatures).map_err(|error| match (CommandError::patch(name, &error), error) {
        (refused, PatchError::Limit { .. }) => refused
            .hint("`mpatch sign --detached` writes it to a file of its own, and takes no room in the patch"),
        (refused, _) => refused,
    })
}

/// Makes an Ed25519 key of the system's random numbers.
pub fn new_key(comment: &str) -> Result<PrivateKey, CommandError> {
    let mut seed = Zeroizing::new([0; SEED_SIZE_BYTES]);
    getrandom::fill(&mut *seed).map_err(|error| {
        CommandError::new(ExitKind::Io, format!("the system gives no random numbers: {error}"))
            .hint("name a key of yours with `--key`")
    })?;
    PrivateKey::from_seed(&seed, comment).map_err(|error| CommandError::new(ExitKind::Bug, error.to_string()))
}

/// The text of a private key's file.
pub fn private_text(key: &PrivateKey) -> Result<Zeroizing<String>, CommandError> {
    key.to_openssh().map_err(|error| CommandError::new(ExitKind::Bug, error.to_string()))
}

impl SignatureReport {
    /// The lines that people read, of a signature or of its absence.
    pub fn write_of(signature: Option<&Self>, page: &mut Page) {
        match signature {
            Some(signature) => signature.write(page),
            None => page.line("not signed"),
        }
    }

    /// What a suggested command that will judge the patch has to say where it has no signature.
    pub fn words_of(signature: Option<&Self>) -> &'static str {
        if signature.is_none() { " --allow-unsigned" } else { "" }
    }

    /// Whether the signing changed something among the user's settings.
    pub fn is_news(&self) -> bool {
        self.made.is_some() || self.trusted_in.is_some()
    }

    /// The lines that people read.
    pub fn write(&self, page: &mut Page) {
        page.line(&format!("signed with the key {}", self.key));
        if let Some(path) = &self.made {
            page.line(&format!("made that key: {path}; it signs your patches from now on, keep it safe"));
        }
        if let (Some(path), Some(principal)) = (&self.trusted_in, &self.principal) {
            page.line(&format!("{path} now trusts it, as {principal}"));
        }
        if let Some(path) = &self.left_out_of {
            page.line(&format!("{path} does not trust it: it was taken out there"));
        }
    }
}

/// A certificate speaks for a key, and signs nothing that is judged here.
fn refuse_certificate(path: &Path, text: &str) -> Result<(), CommandError> {
    let algorithm = text.split_whitespace().next().unwrap_or_default();
    if !algorithm.ends_with("-cert-v01@openssh.com") {
        return Ok(());
    }
    let name = path.to_string_lossy();
    let hint = match name.strip_suffix("-cert.pub") {
        Some(key) => format!("name its key, `{}`", shell_word(format!("{key}.pub"))),
        None => "name its key".to_owned(),
    };
    let message = format!("`{name}` is a certificate, whose signatures are not judged");
    Err(CommandError::new(ExitKind::Unsupported, message).hint(format!("{hint}, with `--key`")))
}

/// As [`check_mode`], of the secret that lies beside a public key, if one does: `ssh-keygen` would refuse it, too, but
/// after the work.
fn check_private_half(public: &Path) -> Result<(), CommandError> {
    let private = public.with_extension("");
    let is_there = public.extension().is_some_and(|ending| ending == "pub") && private.is_file();
    if is_there { check_mode(&private) } else { Ok(()) }
}

/// A secret of this user's that others can read is none. Whose file is another one's, as a secret that is mounted into
/// a container, cannot choose who reads it.
fn check_mode(path: &Path) -> Result<(), CommandError> {
    let metadata = std::fs::metadata(path).map_err(|error| CommandError::io("read", path, &error))?;
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 == 0 || metadata.uid() != rustix::process::getuid().as_raw() {
        return Ok(());
    }
    let message =
        format!("`{}` is a private key that others can read: mode {mode:04o}, expected 0600", path.display());
    Err(CommandError::new(ExitKind::Io, message).hint(format!("`chmod 600 {}`", shell_word(path))))
}

/// Has `ssh-keygen` sign with the file `key`, which people know as `name`; it asks for passphrases and touches on the
/// terminal by itself.
fn sign_with_program(
    key: &Path,
    name: &str,
    secret: Secret,
    manifest: &[u8],
) -> Result<String, CommandError> {
    let failed = |error: std::io::Error| {
        CommandError::new(ExitKind::Io, format!("cannot run `ssh-keygen`: {error}"))
            .hint("install OpenSSH, or choose a key without passphrase with `--key`")
    };
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"]).arg(key);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut input = child.stdin.take();
    // It may give up before it has read everything; its exit code tells.
    let fed = input.as_mut().map_or(Ok(()), |input| input.write_all(manifest));
    drop(input);
    let output = child.wait_with_output().map_err(failed)?;
    let armour = String::from_utf8(output.stdout).unwrap_or_default();
    if output.status.success() && fed.is_ok() && !armour.is_empty() {
        return Ok(armour);
    }
    let message = format!("`ssh-keygen` did not sign with {name}");
    Err(CommandError::new(ExitKind::Io, message).hint(secret.hint(key)))
}

impl Secret {
    /// What `ssh-keygen` needs to sign with `key`.
    fn hint(self, key: &Path) -> String {
        let agent = "`ssh-add -l` lists the keys that the agent has";
        match self {
            Secret::Locked => format!(
                "its passphrase is asked for on a terminal; where there is none, `ssh-add {}` first",
                shell_word(key)
            ),
            Secret::OnHardware => {
                "plug in the hardware that the key is on, and touch it when it asks".to_owned()
            }
            Secret::Elsewhere if key.extension().is_some_and(|ending| ending == "pub") => format!(
                "{agent}; without one, `{}` has to lie beside it, also of a key on hardware",
                key.with_extension("").display()
            ),
            Secret::Elsewhere => agent.to_owned(),
        }
    }
}
