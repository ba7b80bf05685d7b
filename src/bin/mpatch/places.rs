//! Where mpatch keeps what is the user's: keys and trust among the settings, lines of patches in the state.
//!
//! ```text
//! MPATCH_CONFIG_DIR, XDG_CONFIG_HOME/mpatch, ~/.config/mpatch       key  allowed_signers  revoked  policy.json
//!                                                                   accepted_projects
//! MPATCH_STATE_DIR,  XDG_STATE_HOME/mpatch,  ~/.local/state/mpatch  lines.json
//! MPATCH_CACHE_DIR,  XDG_CACHE_HOME/mpatch,  ~/.cache/mpatch        factors  statistics  values
//! .mpatch, from the working folder upwards                          allowed_signers  revoked  policy.json
//! ```
//!
//! A file here is replaced in one step, under the lock of its folder, or not at all. What is cached can be made again,
//! and is written elsewhere. A project may have come from anybody ([`Origin`]).

use std::ffi::OsString;
use std::fs::{DirBuilder, File, FileType, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mpatch::checkpoint::{self, CheckpointError};
use rustix::fs::OFlags;

use crate::error::{CommandError, ExitKind};
use crate::git::{self, Unanswered};
use crate::trust::{ALLOWED_SIGNERS, POLICY, REVOKED};

/// Files of keys and of state are small; what is larger is something else.
const SIZE_MAX_BYTES: u64 = mpatch::sign::allowed_signers::SIZE_MAX_BYTES as u64;
/// The project's own folder.
const PROJECT: &str = ".mpatch";
/// What it may hold.
const PROJECT_FILES: [&str; 3] = [ALLOWED_SIGNERS, REVOKED, POLICY];

/// Who says that a file lies where it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user, with an argument, a variable or a setting: links lead where they are meant to, and it may be a pipe
    /// that a shell hands over.
    User,
    /// Whoever made the project, or laid a file beside a patch: only a file will do, and none is changed through a
    /// link.
    Stranger,
}

/// A variable that is set to something, which need not be UTF-8: neither need paths.
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The user's name, as the system has it.
pub fn user() -> Option<String> {
    let name = variable("USER").or_else(|| variable("LOGNAME"))?;
    Some(name.to_string_lossy().into_owned())
}

/// The user's settings.
pub fn config_folder() -> Result<PathBuf, CommandError> {
    needed_folder("MPATCH_CONFIG_DIR", "XDG_CONFIG_HOME", ".config/mpatch")
}

/// What mpatch remembers for the user.
pub fn state_folder() -> Result<PathBuf, CommandError> {
    needed_folder("MPATCH_STATE_DIR", "XDG_STATE_HOME", ".local/state/mpatch")
}

/// What mpatch keeps of this user's runs, all of which can be made again; none where there is no place for it.
pub fn cache_folder() -> Option<PathBuf> {
    folder("MPATCH_CACHE_DIR", "XDG_CACHE_HOME", ".cache/mpatch")
}

fn needed_folder(own: &str, standard: &str, in_home: &str) -> Result<PathBuf, CommandError> {
    folder(own, standard, in_home).ok_or_else(|| {
        let message = format!("there is no place for files of yours: neither HOME nor {own} is set");
        CommandError::new(ExitKind::Io, message).hint(format!("set {own} to a folder"))
    })
}

fn folder(own: &str, standard: &str, in_home: &str) -> Option<PathBuf> {
    let set = |name| variable(name).map(PathBuf::from);
    set(own).or_else(|| Some(set(standard)?.join("mpatch"))).or_else(|| Some(set("HOME")?.join(in_home)))
}

/// The project's folder: the nearest `.mpatch` that holds something, from the working folder upwards.
pub fn project_folder() -> Option<PathBuf> {
    project_folders().into_iter().next()
}

/// Every `.mpatch` that holds something, the nearest first. One that holds nothing is no project's, as a `.git` without
/// a repository is none.
pub fn project_folders() -> Vec<PathBuf> {
    let here = PathBuf::from(PROJECT);
    // Without a working folder nothing lies above it.
    let working = std::env::current_dir().unwrap_or_default();
    let above = working.ancestors().skip(1).map(|folder| folder.join(PROJECT));
    std::iter::once(here).chain(above).filter(|folder| folder.is_dir() && holds_something(folder)).collect()
}

fn holds_something(folder: &Path) -> bool {
    // What may not be looked at is there, and says so when it is read.
    let is_there = |name| match folder.join(name).symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    PROJECT_FILES.into_iter().any(is_there)
}

/// A file that has to be there and is not, in the system's words.
pub fn missing(path: &Path) -> CommandError {
    let error = std::fs::metadata(path).err().unwrap_or_else(|| ErrorKind::NotFound.into());
    CommandError::io("read", path, &error)
}

/// The bytes of a small file that the user names, if it is there.
pub fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, CommandError> {
    read(path, Origin::User)
}

/// The bytes of a small file, if it is there.
pub fn read(path: &Path, origin: Origin) -> Result<Option<Vec<u8>>, CommandError> {
    let file = match open_of(path, origin) {
        Ok(file) => file,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidInput => {
            return Err(
                CommandError::io("open", path, &error).hint("put a file in its place, or move it away")
            );
        }
        Err(error) => return Err(CommandError::io("open", path, &error)),
    };
    let mut bytes = Vec::new();
    let limit = SIZE_MAX_BYTES + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| CommandError::io("read", path, &error))?;
    if bytes.len() as u64 == limit {
        let message = format!("`{}` is larger than {SIZE_MAX_BYTES} bytes", path.display());
        return Err(CommandError::new(ExitKind::LimitExceeded, message).hint("check the path"));
    }
    Ok(Some(bytes))
}

/// Whether the system says that there is no such file, nor can be one in the folder that `HOME` or another variable
/// names. What may not be looked at is there, and says so when it is read.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}

/// Opens a file, or a pipe that a shell hands over.
pub fn open(path: &Path) -> std::io::Result<File> {
    open_of(path, Origin::User)
}

fn open_of(path: &Path, origin: Origin) -> std::io::Result<File> {
    if origin == Origin::User && path.starts_with("/dev") {
        return File::open(path);
    }
    // Asked before opening, which some devices take for a command.
    let kind = std::fs::metadata(path)?.file_type();
    if let Some(what) = oddity(kind)
        && (origin == Origin::Stranger || kind.is_fifo())
    {
        return Err(std::io::Error::new(ErrorKind::InvalidInput, format!("it is {what}")));
    }
    // A terminal says nothing until somebody types, nor does what looks like a file in `/proc` until something happens.
    OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)
}

/// What something is that is neither a file nor a folder.
fn oddity(kind: FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() || kind.is_dir() => None,
        () if kind.is_symlink() => Some("a link"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

/// The text of a small file that the user names, if it is there.
pub fn read_text(path: &Path) -> Result<Option<String>, CommandError> {
    read_optional(path)?.map(|bytes| text_of(bytes, path)).transpose()
}

/// The bytes of the file at `path` as text.
pub fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String, CommandError> {
    String::from_utf8(bytes).map_err(|_| {
        let message = format!("`{}` is not text in UTF-8", path.display());
        CommandError::new(ExitKind::Malformed, message).hint("mend the file, or move it away")
    })
}

/// A file of the user's cannot be written; where these lie is for variables to say.
fn unwritable(action: &str, path: &Path, error: &std::io::Error) -> CommandError {
    let refused = CommandError::io(action, path, error);
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => refused.hint(
            "change its permissions, or set MPATCH_CONFIG_DIR and MPATCH_STATE_DIR to folders that you may write to",
        ),
        _ => refused,
    }
}

/// Finds out whether files can be written in a folder of the user's, which is made if need be.
pub fn check_writable(folder: &Path) -> Result<(), CommandError> {
    make_folder(folder)?;
    tempfile::tempfile_in(folder).map(drop).map_err(|error| unwritable("write to", folder, &error))
}

/// Makes a folder of the user's, which others cannot look into.
pub fn make_folder(folder: &Path) -> Result<(), CommandError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| unwritable("create", folder, &error))
}

/// Does `work` while no other mpatch changes files in `folder`, which is made if need be.
pub fn with_lock<T>(
    folder: &Path,
    origin: Origin,
    work: impl FnOnce() -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let _locked = lock(folder, origin)?;
    work()
}

/// Waits until no other mpatch changes files in `folder`, which is made if need be; none begins to while the answer
/// lives.
pub fn lock(folder: &Path, origin: Origin) -> Result<File, CommandError> {
    let path = folder.join(".lock");
    if origin == Origin::Stranger {
        check_leads_nowhere(folder)?;
        check_leads_nowhere(&path)?;
    }
    make_folder(folder)?;
    let failed = |error: std::io::Error| unwritable("lock", &path, &error);
    let follows = if origin == Origin::Stranger { OFlags::NOFOLLOW } else { OFlags::empty() };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    // A pipe would be waited for.
    options.custom_flags((OFlags::NONBLOCK | follows).bits() as i32);
    let file = options.open(&path).map_err(failed)?;
    file.lock().map_err(failed)?;
    Ok(file)
}

/// Refuses what is neither a file nor a folder: a link in somebody else's project may lead to any file of the user's.
fn check_leads_nowhere(path: &Path) -> Result<(), CommandError> {
    let kind = match path.symlink_metadata() {
        Ok(about) => about.file_type(),
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(CommandError::io("examine", path, &error)),
    };
    let Some(what) = oddity(kind) else { return Ok(()) };
    let message = format!("`{}` is {what}, through which nothing of a project is changed", path.display());
    Err(CommandError::new(ExitKind::Io, message)
        .hint("look at what it is; then move it away, or leave `--project` out to change your own settings"))
}

/// Does `work` while no other mpatch that asks for the same replaces the file at `path`.
///
/// The folder itself is locked, so nothing is left in it. Where the file system has no such lock, the work is done
/// without.
pub fn with_folder_of<T>(
    path: &Path,
    work: impl FnOnce() -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let target = path.canonicalize().map_err(|error| CommandError::io("open", path, &error))?;
    let folder = File::open(folder_of(&target));
    // A folder may be written to and not read, too.
    let _locked = folder.and_then(|folder| folder.lock().map(|()| folder));
    work()
}

/// Adds lines to a file of keys, which is made if need be.
pub fn append(path: &Path, origin: Origin, lines: &[String]) -> Result<(), CommandError> {
    change(path, origin, |held| {
        add_lines(held, lines);
        Ok(())
    })
}

/// Puts lines at the end of a file's bytes.
pub fn add_lines(held: &mut Vec<u8>, lines: &[String]) {
    if !held.is_empty() && !held.ends_with(b"\n") {
        held.push(b'\n');
    }
    lines.iter().for_each(|line| {
        held.extend_from_slice(line.as_bytes());
        held.push(b'\n');
    });
}

/// Changes a file of keys, in one step, and answers with what `change` does; if it refuses, nothing is changed.
///
/// What the change rests on has to be read from the bytes that it is given: before the lock the file may have been
/// another one.
pub fn change<T>(
    path: &Path,
    origin: Origin,
    change: impl FnOnce(&mut Vec<u8>) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    with_lock(folder_of(path), origin, || {
        if origin == Origin::Stranger {
            check_leads_nowhere(path)?;
        }
        let mut held = read(path, origin)?.unwrap_or_default();
        let answer = change(&mut held)?;
        replace_own(path, &held)?;
        Ok(answer)
    })
}

/// Replaces a file of the user's, as [`replace`] does.
pub fn replace_own(path: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    replace(path, bytes, |error| unwritable("write", path, &error))
}

/// Replaces `path` by a file with `bytes`, in one step; it keeps its mode, and a link its target. `failed` says what
/// the system's no means.
pub fn replace(
    path: &Path,
    bytes: &[u8],
    failed: impl Fn(std::io::Error) -> CommandError,
) -> Result<(), CommandError> {
    checkpoint::replace(path, bytes).map_err(|error| match error {
        CheckpointError::Io { source, .. } => failed(source),
        CheckpointError::NotDurable { .. } => {
            CommandError::from(error).hint("look at it again after the next power cut")
        }
        error => error.into(),
    })
}

/// Writes a new file that only its owner can read; says whether it did, or there was one already.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<bool, CommandError> {
    match checkpoint::write_new_private(path, bytes) {
        Ok(()) => Ok(true),
        Err(CheckpointError::OutputExists { .. }) => Ok(false),
        Err(CheckpointError::Io { source, .. }) => Err(unwritable("write", path, &source)),
        Err(error) => Err(error.into()),
    }
}

/// The folder that a file is in, or will be.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What the user has told git about signing with SSH keys.
#[derive(Debug, Default)]
pub struct GitSettings {
    /// `user.signingkey`, when `gpg.format` is `ssh`: a path, or a public key itself.
    pub signing_key: Option<OsString>,
    /// `gpg.ssh.allowedSignersFile`.
    pub allowed_signers: Option<PathBuf>,
    /// `gpg.ssh.revocationFile`.
    pub revocations: Option<PathBuf>,
    /// `user.email`.
    pub email: Option<String>,
}

impl GitSettings {
    /// Asks git for the user's own settings. Those of the repository at hand are left out: whoever made it may have
    /// written them.
    pub fn read() -> Result<Self, CommandError> {
        let mut settings = Self::default();
        let mut is_ssh = false;
        for file in git_files() {
            for entry in ask_git(&file)?.split_terminator('\0') {
                let (name, value) = entry.split_once('\n').unwrap_or((entry, ""));
                // The last of several counts.
                match name {
                    "gpg.format" => is_ssh = value == "ssh",
                    "user.signingkey" => settings.signing_key = Some(value.into()),
                    "user.email" => settings.email = Some(value.to_owned()),
                    "gpg.ssh.allowedsignersfile" => settings.allowed_signers = Some(value.into()),
                    "gpg.ssh.revocationfile" => settings.revocations = Some(value.into()),
                    _ => {}
                }
            }
        }
        settings.signing_key = settings.signing_key.filter(|_| is_ssh);
        settings.check_revocations()?;
        Ok(settings)
    }

    /// Without its list nobody knows which keys are revoked, so it has to be found from everywhere.
    fn check_revocations(&self) -> Result<(), CommandError> {
        let Some(path) = &self.revocations else { return Ok(()) };
        let refused = if path.is_relative() {
            let message = format!("git's revoked keys `{}` are not an absolute path", path.display());
            CommandError::new(ExitKind::Malformed, message)
        } else if path.symlink_metadata().is_err() {
            missing(path)
        } else {
            return Ok(());
        };
        Err(refused
            .hint("git's `gpg.ssh.revocationFile` names it: give the full path of a file that is there"))
    }
}

/// The files of the user's own git settings, in the order in which git reads them; the later one counts.
fn git_files() -> Vec<PathBuf> {
    let home = variable("HOME").map(PathBuf::from);
    let files = match std::env::var_os("GIT_CONFIG_GLOBAL") {
        Some(file) => vec![file.into()],
        None => {
            let folder = variable("XDG_CONFIG_HOME").map(PathBuf::from);
            let folder = folder.or_else(|| Some(home.as_ref()?.join(".config")));
            let files =
                [folder.map(|folder| folder.join("git/config")), home.map(|home| home.join(".gitconfig"))];
            files.into_iter().flatten().collect()
        }
    };
    let is_there = |file: &PathBuf| file.symlink_metadata().map_or_else(|error| !is_absent(&error), |_| true);
    files.into_iter().filter(is_there).collect()
}

/// What a file of git's says of signing. What git cannot read may revoke a key, so it is an error.
fn ask_git(file: &Path) -> Result<String, CommandError> {
    let failed = |error| CommandError::io("read", file, &error);
    // Git takes what it may not read for empty.
    if open(file).and_then(|file| file.metadata()).map_err(failed)?.is_dir() {
        return Err(failed(ErrorKind::IsADirectory.into()));
    }
    let absolute = std::path::absolute(file).map_err(failed)?;
    let ask = |folder: &Path, of_paths: &[&str], names: &str| {
        let mut command = git::command(folder);
        // It is this file alone that is asked about.
        command.env_remove("GIT_CONFIG_COUNT").env_remove("GIT_CONFIG_PARAMETERS");
        command.args(["config", "--includes", "--null"]).args(of_paths).arg("--file").arg(&absolute);
        match git::answer(&mut command, ["--get-regexp", names]) {
            Ok(answer) => Ok(answer),
            // Nothing of this is set.
            Err(Unanswered::Refused { code: Some(1), .. }) => Ok(String::new()),
            Err(Unanswered::Refused { said, .. }) => {
                let said = git::on_one_line(&said);
                let message = format!("git cannot read its settings in `{}`: {said}", file.display());
                Err(CommandError::new(ExitKind::Malformed, message)
                    .hint("mend them: they may say which keys are revoked"))
            }
            Err(Unanswered::NotFound) => without_git(file).map(|()| String::new()),
            Err(Unanswered::Failed(error)) => Err(Unanswered::failed(&error)),
        }
    };
    // What is included on a condition may hang on the repository at hand. Nothing else does, so one that is broken
    // stops nothing else.
    let nowhere = Path::new("/");
    let is_conditional =
        word_in(file, &["include"])?.is_some() && !ask(nowhere, &[], r"^includeif\.")?.is_empty();
    let folder = if is_conditional { folder_at_hand() } else { nowhere.to_owned() };
    let paths = r"^(user\.signingkey|gpg\.ssh\.(allowedsignersfile|revocationfile))$";
    Ok(ask(&folder, &[], r"^(gpg\.format|user\.email)$")? + &ask(&folder, &["--type=path"], paths)?)
}

/// The working folder; git runs in none that is deleted.
fn folder_at_hand() -> PathBuf {
    std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"))
}

/// The first of these words that a file of git's says; git takes them in any case, and whole.
fn word_in(file: &Path, words: &[&'static str]) -> Result<Option<&'static str>, CommandError> {
    let text = read_optional(file)?.unwrap_or_default().to_ascii_lowercase();
    let text = String::from_utf8_lossy(&text);
    Ok(words.iter().copied().find(|word| text.contains(word)))
}

/// What can be said of a file of git's where git is not there to read it: nothing, if it cannot revoke a key.
fn without_git(file: &Path) -> Result<(), CommandError> {
    // An included file may be anything.
    let Some(word) = word_in(file, &["revocationfile", "include"])? else { return Ok(()) };
    let message = format!(
        "`{}` says `{word}`, so it may name revoked keys, and `git`, which reads it, is not found",
        file.display()
    );
    Err(CommandError::new(ExitKind::Io, message).hint(
        "put git on the PATH; or list the revoked keys in `revoked` among your settings, and set GIT_CONFIG_GLOBAL to an empty file",
    ))
}
