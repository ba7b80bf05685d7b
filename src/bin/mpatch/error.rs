//! What a command fails with, and the one table of exit codes.

use std::io::ErrorKind::NotFound;
use std::path::{Component, Path};
use std::process::ExitCode;

use mpatch::bind::BindError;
pub use mpatch::causes::with_causes;
use mpatch::checkpoint::{Action, CheckpointError, Foreign, is_lfs_pointer};
use mpatch::factors::FactorError;
use mpatch::facts::{FactsError, FactsErrorKind};
use mpatch::operation::OperationError;
use mpatch::patch::PatchError;
use mpatch::tensor::Dtype;
use rustix::process::{Resource, getrlimit};

use crate::interrupt;
use crate::memory::WAY_OUT;
use crate::report::size;

/// How a command ended. The codes are part of the interface: a code is never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitKind {
    /// It did what was asked.
    Done,
    /// It did, and the answer is no: two things differ, a checkpoint is not at the head, no patch did it,
    /// or an edit fails the test that it is put to before it is written.
    Differs,
    /// The command line is wrong; clap's own code.
    Usage,
    /// A file is damaged or is not what it should be.
    Malformed,
    /// A signature does not fit the patch.
    BadSignature,
    /// Nobody who is trusted, now, has signed the patch.
    Untrusted,
    /// The patch, or the statistics, are for other weights.
    WrongBase,
    /// What is asked for is already so, or excludes itself.
    Conflict,
    /// An older patch passes for news, or one line tells two stories.
    Rollback,
    /// A change in place, or of a history, stopped half-way, and could not be taken back yet.
    Recovery,
    /// Another mpatch, or git, is at work on the same files.
    Busy,
    /// The system said no to reading or writing.
    Io,
    /// A documented limit is exceeded.
    LimitExceeded,
    /// The device cannot do it.
    Device,
    /// The weights do not do what the patch declares.
    ContentCheck,
    /// A later version made this file, or it needs a feature that this one lacks.
    Unsupported,
    /// mpatch itself is wrong.
    Bug,
    /// Its terminal was closed.
    HungUp,
    /// Its user stopped it.
    Interrupted,
    /// The system stopped it.
    Terminated,
    /// It had no more processor time, as a batch system or `ulimit -t` limits it.
    OutOfTime,
}

impl ExitKind {
    /// Every kind, in order of the codes.
    pub const ALL: [ExitKind; 21] = [
        ExitKind::Done,
        ExitKind::Differs,
        ExitKind::Usage,
        ExitKind::Malformed,
        ExitKind::BadSignature,
        ExitKind::Untrusted,
        ExitKind::WrongBase,
        ExitKind::Conflict,
        ExitKind::Rollback,
        ExitKind::Recovery,
        ExitKind::Busy,
        ExitKind::Io,
        ExitKind::LimitExceeded,
        ExitKind::Device,
        ExitKind::ContentCheck,
        ExitKind::Unsupported,
        ExitKind::Bug,
        ExitKind::HungUp,
        ExitKind::Interrupted,
        ExitKind::Terminated,
        ExitKind::OutOfTime,
    ];

    /// The process's exit code. No two kinds share one.
    pub const fn code(self) -> u8 {
        match self {
            ExitKind::Done => 0,
            ExitKind::Differs => 1,
            ExitKind::Usage => 2,
            ExitKind::Malformed => 3,
            ExitKind::BadSignature => 4,
            ExitKind::Untrusted => 5,
            ExitKind::WrongBase => 6,
            ExitKind::Conflict => 7,
            ExitKind::Rollback => 8,
            ExitKind::Recovery => 9,
            ExitKind::Busy => 10,
            ExitKind::Io => 11,
            ExitKind::LimitExceeded => 12,
            ExitKind::Device => 13,
            ExitKind::ContentCheck => 14,
            ExitKind::Unsupported => 15,
            ExitKind::Bug => 70,
            // 128 and the number of the signal, as shells have it.
            ExitKind::HungUp => 129,
            ExitKind::Interrupted => 130,
            ExitKind::Terminated => 143,
            ExitKind::OutOfTime => 152,
        }
    }

    /// What the code means, for the help.
    pub const fn meaning(self) -> &'static str {
        match self {
            ExitKind::Done => "done",
            ExitKind::Differs => "done, and the answer is no: two differ, or an edit fails its own test",
            ExitKind::Usage => "the command line is wrong",
            ExitKind::Malformed => "a file is damaged, or is not what it should be",
            ExitKind::BadSignature => "a signature is bad: the patch or the signature was changed",
            ExitKind::Untrusted => {
                "unsigned, or signed by keys that are unknown, expired, revoked or too few"
            }
            ExitKind::WrongBase => "the patch, or the statistics, are for other weights",
            ExitKind::Conflict => "what is asked for is already so, or facts exclude each other",
            ExitKind::Rollback => "a newer patch of the line is known, or another one with its number",
            ExitKind::Recovery => "a change stopped half-way; the next command undoes it, or ends it",
            ExitKind::Busy => "another mpatch, or `git`, is at work on the same files",
            ExitKind::Io => "a file cannot be read or written",
            ExitKind::LimitExceeded => "a documented limit is exceeded",
            ExitKind::Device => "the device or its memory does not suffice",
            ExitKind::ContentCheck => "the weights do not do what the patch declares",
            ExitKind::Unsupported => "the file needs a newer mpatch, or a feature that this one lacks",
            ExitKind::Bug => "mpatch has a bug",
            ExitKind::HungUp => "the terminal was closed",
            ExitKind::Interrupted => "interrupted (Ctrl-C)",
            ExitKind::Terminated => "terminated",
            ExitKind::OutOfTime => "the limit of processor time was reached",
        }
    }
}

impl From<ExitKind> for ExitCode {
    fn from(kind: ExitKind) -> Self {
        ExitCode::from(kind.code())
    }
}

/// What a failed command leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Everything is as it was before.
    Unchanged,
    /// The result stands; only telling of it failed.
    Applied,
    /// Some of several steps stand, each of which leads to a state of its own.
    PartlyApplied,
    /// A checkpoint is half-way, and the next command that opens it puts the old bytes back, writes the new ones once
    /// more, or removes a journal that is all that is left of the change; or a history is, and the next one that
    /// changes it makes the change or takes it back.
    RecoveryPending,
}

impl State {
    /// The word in the last line of a failure.
    pub const fn name(self) -> &'static str {
        match self {
            State::Unchanged => "unchanged",
            State::Applied => "applied",
            State::PartlyApplied => "partly applied",
            State::RecoveryPending => "recovery pending",
        }
    }
}

/// What both gave; where both failed, one error says why of each.
pub fn both<A, B>(
    first: Result<A, CommandError>,
    second: Result<B, CommandError>,
) -> Result<(A, B), CommandError> {
    match (first, second) {
        (Err(error), Err(other)) => Err(error.and(other)),
        (first, second) => Ok((first?, second?)),
    }
}

/// Why a command failed: what is wrong, what to do, and what it left behind.
#[derive(Debug)]
pub struct CommandError {
    /// Which exit code it gets.
    pub kind: ExitKind,
    /// What is wrong, with its causes, outermost first.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What it leaves behind.
    pub state: State,
}

impl CommandError {
    /// A failure that left everything as it was.
    pub fn new(kind: ExitKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, state: State::Unchanged }
    }

    /// Adds what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Says that the result stands nevertheless.
    pub fn after_the_work(self) -> Self {
        Self { state: State::Applied, ..self }
    }

    /// Says that some of several steps were done, each of which leads to a state of its own.
    pub fn between_steps(self, path: &Path, done: usize, steps: usize) -> Self {
        // The step that failed may stand all the same.
        let done = done + usize::from(self.state == State::Applied);
        if done == 0 || done == steps || self.state == State::RecoveryPending {
            return self;
        }
        let message = format!("{}; {done} of {steps} steps to `{}` are done", self.message, path.display());
        Self { message, state: State::PartlyApplied, ..self }.hint("the same command goes on from there")
    }

    /// Of a copy that goes away with the command, whatever state it was left in.
    pub fn of_passing_copy(self) -> Self {
        match self.state {
            State::Unchanged => self,
            _ => Self { kind: ExitKind::Io, state: State::Unchanged, ..self }
                .hint("run the same command again"),
        }
    }

    /// Says what else is wrong.
    pub fn and(self, other: Self) -> Self {
        let hints = [&self.hint, &other.hint].map(|hint| hint.as_deref().unwrap_or_default());
        let hint = Some(hints.join("; ")).filter(|_| hints.iter().all(|hint| !hint.is_empty()));
        let message = format!("{}; {}", self.message, other.message);
        Self { message, hint: hint.or(self.hint).or(other.hint), ..self }
    }

    /// Says that old bytes are still to be put back.
    pub fn with_recovery_pending(self) -> Self {
        Self { kind: ExitKind::Recovery, state: State::RecoveryPending, ..self }.hint(
            "let no other program read it meanwhile; the next mpatch command that opens it puts the old bytes back",
        )
    }

    /// Says that a change of a history is still to be made or taken back.
    pub fn pending_in_history(self) -> Self {
        Self { state: State::RecoveryPending, ..self }
            .hint("see to what stood in its way; the next command that changes the history makes it, or takes it back")
    }

    /// A system call on `path` failed; `action` is a verb.
    pub fn io(action: &str, path: &Path, error: &std::io::Error) -> Self {
        Self::new(ExitKind::Io, format!("cannot {action} `{}`: {error}", path.display())).hint(io_hint(error))
    }

    /// A facts file called `name` is refused.
    pub fn facts(name: &str, error: &FactsError) -> Self {
        let kind = match error.kind() {
            FactsErrorKind::Malformed => ExitKind::Malformed,
            FactsErrorKind::Conflicting => ExitKind::Conflict,
            FactsErrorKind::LimitExceeded => ExitKind::LimitExceeded,
            FactsErrorKind::UnsupportedVersion => ExitKind::Unsupported,
        };
        Self::new(kind, format!("`{name}`: {error}")).hint(error.hint())
    }

    /// A patch called `name` is refused.
    pub fn patch(name: &str, error: &PatchError) -> Self {
        let (kind, hint) = match error {
            // What a file's first bytes show of a pointer.
            PatchError::NotAPatch { found } if found == "version " => (ExitKind::Malformed, LFS_HINT),
            PatchError::NotAPatch { .. } if name.ends_with(".safetensors") => (
                ExitKind::Malformed,
                "this is a file of weights, where a patch is asked for: `mpatch apply` and `mpatch revert` take the model first, others as `--base MODEL`",
            ),
            PatchError::NotAPatch { .. } => {
                (ExitKind::Malformed, "give the patch file, whose name usually ends in `.mpatch`")
            }
            PatchError::UnsupportedVersion { .. }
            | PatchError::UnsupportedFlags { .. }
            | PatchError::UnsupportedFeature { .. } => {
                (ExitKind::Unsupported, "update mpatch; `mpatch --version` tells which one this is")
            }
            PatchError::Limit { .. } => (ExitKind::LimitExceeded, "make several smaller patches instead"),
            PatchError::Read { kind: std::io::ErrorKind::OutOfMemory, .. } => (ExitKind::Device, WAY_OUT),
            PatchError::Read { .. } | PatchError::Write { .. } => {
                (ExitKind::Io, "try again once the system allows it")
            }
            _ => (
                ExitKind::Malformed,
                "fetch the patch again; if that one is refused too, ask whoever made it",
            ),
        };
        Self::new(kind, format!("`{name}`: {error}")).hint(hint)
    }

    /// An operation with the patch called `name` stopped; it left no output.
    pub fn operation(name: &str, error: OperationError) -> Self {
        match error {
            OperationError::Checkpoint(error) => error.into(),
            OperationError::Patch(error) => Self::patch(name, &error),
            OperationError::OtherState { .. } => Self::new(ExitKind::WrongBase, with_causes(&error))
                .hint("the file was changed meanwhile: wait until nobody writes to it, and try again"),
            OperationError::Pending { ref recovery, .. } => {
                let refused = Self::new(ExitKind::Recovery, with_causes(&error)).with_recovery_pending();
                match **recovery {
                    CheckpointError::Recovery { way_out: Some(way_out), .. } => refused.hint(way_out),
                    _ => refused,
                }
            }
            OperationError::OtherPatch { .. } => Self::new(ExitKind::Bug, with_causes(&error)),
            _ => Self::new(ExitKind::Malformed, format!("`{name}`: {}", with_causes(&error)))
                .hint("do not use this patch; `mpatch verify` tells more"),
        }
    }
}

impl From<CheckpointError> for CommandError {
    fn from(error: CheckpointError) -> Self {
        let (kind, hint) = match &error {
            CheckpointError::Io { path, action, source } => (
                ExitKind::Io,
                match action {
                    Action::Examine | Action::Open if source.kind() == NotFound && is_name_on_a_hub(path) => {
                        HUB_HINT
                    }
                    action if action.only_looks() => io_hint(source),
                    _ => output_hint(source),
                },
            ),
            CheckpointError::OutputExists { .. } => {
                (ExitKind::Io, "choose another name with `-o`, or move it away")
            }
            CheckpointError::NotACheckpoint { .. } => {
                (ExitKind::Malformed, "give a `.safetensors` file, an index of shards, or a model folder")
            }
            CheckpointError::Header { .. } => (ExitKind::Malformed, "fetch the checkpoint again"),
            CheckpointError::LfsPointer { .. } => (ExitKind::Malformed, LFS_HINT),
            CheckpointError::Foreign { found, .. } => (ExitKind::Malformed, foreign_hint(*found)),
            CheckpointError::MissingTensor { .. } => {
                (ExitKind::WrongBase, "`mpatch show` tells which model the patch is for")
            }
            CheckpointError::Output { .. } => (ExitKind::Usage, "choose another name with `-o`"),
            CheckpointError::InPlace { .. } => (ExitKind::Io, "leave `--in-place` out: a copy is as exact"),
            CheckpointError::Memory { .. } => (ExitKind::Device, WAY_OUT),
            CheckpointError::Space { path, needed_bytes, free_bytes, file_system, source } => {
                return no_room(path, *needed_bytes, *free_bytes, file_system, source);
            }
            CheckpointError::NotDurable { .. } => {
                let hint = "check it with `mpatch verify` before you rely on it";
                return Self::new(ExitKind::Io, with_causes(&error)).hint(hint).after_the_work();
            }
            CheckpointError::Busy { .. } => (ExitKind::Busy, "try again when that one has finished"),
            CheckpointError::Recovery { way_out, .. } => {
                let pending = Self::new(ExitKind::Recovery, with_causes(&error)).with_recovery_pending();
                return match way_out {
                    Some(way_out) => pending.hint(*way_out),
                    None => pending,
                };
            }
            CheckpointError::Stopped { .. } => {
                (interrupt::exit_kind(), "run the same command again to begin anew")
            }
            CheckpointError::Changed { .. } => (
                ExitKind::WrongBase,
                "the file was changed meanwhile: wait until nobody writes to it, and try again",
            ),
            CheckpointError::Limit { .. } => {
                (ExitKind::LimitExceeded, "this is no model's file: check the path")
            }
            _ => (ExitKind::Malformed, "fetch the checkpoint again, with its index and all its shards"),
        };
        Self::new(kind, with_causes(&error)).hint(hint)
    }
}

/// There is not enough room for a result.
fn no_room(path: &Path, needed: u64, free: u64, file_system: &Path, source: &std::io::Error) -> CommandError {
    let message = format!(
        "`{}` takes {}, and {} are free on the file system at `{}`",
        path.display(),
        size(needed),
        size(free),
        file_system.display()
    );
    match needed.checked_sub(free) {
        Some(missing @ 1..) => CommandError::new(ExitKind::Io, message)
            .hint(format!("free {} there, or choose another place with `-o`", size(missing))),
        // A quota, or room that is free only since the command gave up.
        _ => CommandError::new(ExitKind::Io, format!("{message}: {source}")).hint(output_hint(source)),
    }
}

/// What it means, and what to do, where terms that patches hold do not fit the weights that they are to be bound to.
pub fn bind_error(error: &BindError) -> (ExitKind, &'static str) {
    let hint = match error {
        // In the other types hardly anything overflows that fits.
        BindError::Factors { source: FactorError::Overflow { dtype: Dtype::F16, .. }, .. } => {
            "bind it to the model in BF16 or F32, which hold larger weights"
        }
        _ => "give a checkpoint of the model that the patch was made for",
    };
    (ExitKind::WrongBase, hint)
}

/// What to do where a model's name on a hub is given for its folder.
const HUB_HINT: &str = "check the path; mpatch fetches nothing: where that is a model on the hub, `hf download NAME --local-dir FOLDER` does";

/// Whether this can be the name of a model on a hub: two parts, and neither looks like a file.
fn is_name_on_a_hub(path: &Path) -> bool {
    let parts: Vec<Component<'_>> = path.components().collect();
    parts.len() == 2
        && parts.iter().all(|part| matches!(part, Component::Normal(_)))
        && path.extension().is_none_or(|ending| ending != "safetensors")
}

/// What to do where git-lfs has left a pointer in the place of a file.
const LFS_HINT: &str = "`git lfs pull`, in the folder that was cloned, fetches the file itself";

/// Refuses the bytes of a file that git-lfs has left a pointer of.
pub fn refuse_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<(), CommandError> {
    if !is_lfs_pointer(bytes) {
        return Ok(());
    }
    Err(CheckpointError::LfsPointer { path: path.to_owned() }.into())
}

/// What to do where a file is none of weights.
fn foreign_hint(found: Foreign) -> &'static str {
    match found {
        Foreign::PyTorch => {
            "load it with transformers, write it with `save_pretrained(FOLDER, safe_serialization=True)`, and give that folder"
        }
        Foreign::Hdf5 | Foreign::Gguf | Foreign::OtherWeights => {
            "fetch the model's `.safetensors` files, or make them: transformers' `save_pretrained(FOLDER, safe_serialization=True)` writes them"
        }
        Foreign::LfsPointer => LFS_HINT,
        Foreign::Json => "give the model's folder, or a `.safetensors` file in it",
        Foreign::Markup => "a download failed or asked for a login: fetch the `.safetensors` file itself",
        Foreign::Patch => "give the model first, or as `--base`: a folder, or a `.safetensors` file",
        _ => "give a `.safetensors` file, an index of shards, or a model folder",
    }
}

/// What to do when the system says no.
pub fn io_hint(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => "check the path",
        ErrorKind::AlreadyExists => "choose another name, or move it away",
        ErrorKind::IsADirectory => "this is a folder: give a file",
        ErrorKind::PermissionDenied => "change its permissions, or name another one",
        ErrorKind::ReadOnlyFilesystem => "nothing can be written there: name a place on another file system",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space, or name another place",
        ErrorKind::FileTooLarge if getrlimit(Resource::Fsize).current.is_some() => {
            "it is not the disk that is full: `ulimit -f` limits the size of files, and `ulimit -f unlimited` lifts that where the system allows it"
        }
        ErrorKind::FileTooLarge => "its file system takes no file of that size: name a place on another one",
        ErrorKind::InvalidFilename => "give a shorter name (that of a result with `-o`)",
        _ => "try again once the system allows it",
    }
}

/// What to do when the system says no to a file that `-o` names.
pub fn output_hint(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "choose a place that you may write to with `-o`, or change its permissions"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "free some space, or choose another place with `-o`"
        }
        ErrorKind::Unsupported => "choose another place with `-o`",
        _ => io_hint(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use mpatch::digest::{PatchId, SectionDigest};
    use mpatch::patch::layout::Version;

    use super::*;

    #[test]
    fn every_exit_code_has_one_meaning() {
        let codes = ExitKind::ALL.map(ExitKind::code);
        assert!(codes.is_sorted_by(|one, next| one < next), "{codes:?}");
    }

    #[test]
    fn what_fails_between_steps_says_how_many_stand() {
        let failed = |state| CommandError { state, ..CommandError::new(ExitKind::Io, "no").hint("look") };
        let path = PathBuf::from("m");
        for (state, done, said, hint) in [
            (State::Unchanged, 0, "no", "look"),
            (State::Unchanged, 1, "no; 1 of 3 steps to `m` are done", "the same command goes on from there"),
            (State::Applied, 0, "no; 1 of 3 steps to `m` are done", "the same command goes on from there"),
            (State::Applied, 2, "no", "look"),
            (State::RecoveryPending, 1, "no", "look"),
        ] {
            let error = failed(state).between_steps(&path, done, 3);
            let expected = if said == "no" { state } else { State::PartlyApplied };
            assert_eq!(error.state, expected, "{said}");
            assert_eq!((error.message.as_str(), error.hint.as_deref()), (said, Some(hint)));
        }
        let both = failed(State::Applied).and(CommandError::new(ExitKind::Busy, "busy"));
        assert_eq!(
            (both.message.as_str(), both.hint.as_deref(), both.state),
            ("no; busy", Some("look"), State::Applied)
        );
    }

    #[test]
    fn errors_of_a_checkpoint_have_the_documented_codes_and_a_way_out() {
        let path = || PathBuf::from("model.safetensors");
        let text = || String::from("so it is");
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let recovery =
            |way_out| CheckpointError::Recovery { path: path(), journal: path(), reason: text(), way_out };
        for (error, code, state, hint) in [
            (
                CheckpointError::Io { path: path(), action: Action::Read, source: full() },
                11,
                "unchanged",
                "free some",
            ),
            (
                CheckpointError::NotACheckpoint { path: path(), reason: text() },
                3,
                "unchanged",
                "a model folder",
            ),
            (
                CheckpointError::Header { path: path(), reason: text() },
                3,
                "unchanged",
                "fetch the checkpoint",
            ),
            (CheckpointError::Index { path: path(), reason: text() }, 3, "unchanged", "all its shards"),
            (
                CheckpointError::NotInShard { index: path(), tensor: text(), shard: path() },
                3,
                "unchanged",
                "all its shards",
            ),
            (
                CheckpointError::InTwoShards { tensor: text(), first: path(), second: path() },
                3,
                "unchanged",
                "all its shards",
            ),
            (
                CheckpointError::Limit { path: path(), what: "size", limit: 1, found: 2 },
                12,
                "unchanged",
                "check",
            ),
            (
                CheckpointError::MissingTensor { path: path(), tensor: text(), nearest: None },
                6,
                "unchanged",
                "show",
            ),
            (CheckpointError::OutputExists { path: path() }, 11, "unchanged", "another name"),
            (
                CheckpointError::Space {
                    path: path(),
                    needed_bytes: 3_000_000,
                    free_bytes: 1_000_000,
                    file_system: path(),
                    source: full(),
                },
                11,
                "unchanged",
                "free 2.00 MB there, or choose another place with `-o`",
            ),
            (
                CheckpointError::Memory { path: path(), tensor: text(), needed_bytes: 1 },
                13,
                "unchanged",
                "`ulimit -v`",
            ),
            (CheckpointError::NotDurable { path: path(), source: full() }, 11, "applied", "`mpatch verify`"),
            (CheckpointError::Busy { path: path() }, 10, "unchanged", "when that one has finished"),
            (CheckpointError::InPlace { path: path(), reason: text() }, 11, "unchanged", "`--in-place`"),
            (
                CheckpointError::Changed { path: path(), tensor: text(), difference: text() },
                6,
                "unchanged",
                "nobody writes to it",
            ),
            (recovery(None), 9, "recovery pending", "the next mpatch command"),
            (recovery(Some("give it room")), 9, "recovery pending", "give it room"),
            (CheckpointError::Stopped { path: path() }, 130, "unchanged", "to begin anew"),
            (CheckpointError::Output { path: path(), reason: text() }, 2, "unchanged", "another name"),
        ] {
            let words = error.to_string();
            let refused = CommandError::from(error);
            assert_eq!((refused.kind.code(), refused.state.name()), (code, state), "{words}");
            assert!(refused.hint.is_some_and(|found| found.contains(hint)), "{words}");
        }
    }

    #[test]
    fn errors_of_a_patch_have_the_documented_codes() {
        let text = || String::from("so it is");
        let kind = std::io::ErrorKind::StorageFull;
        let id = PatchId::derive(b"");
        let section = SectionDigest::of(b"");
        for (error, code) in [
            (PatchError::NotAPatch { found: text() }, 3),
            (PatchError::Read { offset: 0, kind, problem: text() }, 11),
            (PatchError::Read { offset: 0, kind: std::io::ErrorKind::OutOfMemory, problem: text() }, 13),
            (PatchError::Write { kind, problem: text() }, 11),
            (PatchError::Truncated { expected: 64, found: 0 }, 3),
            (PatchError::Malformed { place: text(), what: text() }, 3),
            (PatchError::ManifestDigest { expected: id, found: id }, 3),
            (PatchError::Digest { section: 0, expected: section, found: section }, 3),
            (PatchError::UnsupportedVersion { found: Version { major: 9, minor: 0 } }, 15),
            (PatchError::UnsupportedFlags { found: 1 }, 15),
            (PatchError::UnsupportedFeature { place: text(), feature: text() }, 15),
            (PatchError::Limit { what: text(), limit: 1, found: 2 }, 12),
        ] {
            let refused = CommandError::patch("x", &error);
            assert_eq!((refused.kind.code(), refused.state), (code, State::Unchanged), "{error}");
            assert!(refused.hint.is_some(), "{error}");
        }
    }
}
