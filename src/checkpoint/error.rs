//! What can be wrong with a checkpoint; every error carries the path it is about.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::foreign::Foreign;
use crate::digest::TensorDigest;

/// A checkpoint that cannot be read, or an output that cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system said no.
    #[error("cannot {action} `{path}`")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done to it.
        action: Action,
        /// The system's own words.
        source: io::Error,
    },
    /// A folder without weights in it, or with more than one candidate.
    #[error("`{path}` is not a checkpoint: {reason}")]
    NotACheckpoint {
        /// The path that was given.
        path: PathBuf,
        /// What is missing or ambiguous.
        reason: String,
    },
    /// A file that breaks the safetensors format.
    #[error("`{path}` is not a valid safetensors file: {reason}")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the numbers.
        reason: String,
    },
    /// A file of another kind.
    #[error("`{path}` is not a safetensors file, but {found}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Foreign,
    },
    /// A file beside the weights that git-lfs has not fetched.
    #[error("`{path}` is a pointer of git-lfs to a file that is not here")]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// An index that cannot be followed.
    #[error("`{path}` is not a valid index of shards: {reason}")]
    Index {
        /// The index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index places a tensor in a shard that does not have it.
    #[error("`{index}` places tensor `{tensor}` in `{shard}`, which does not hold it")]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard it should be in.
        shard: PathBuf,
    },
    /// Two shards hold a tensor of the same name.
    #[error("tensor `{tensor}` stands in two shards: `{first}` and `{second}`")]
    InTwoShards {
        /// The tensor.
        tensor: String,
        /// The shard read first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// More of something than mpatch reads.
    #[error("`{path}` has {what} of {found}, at most {limit} are read")]
    Limit {
        /// The file.
        path: PathBuf,
        /// What is counted.
        what: &'static str,
        /// The documented limit.
        limit: u64,
        /// How much there is.
        found: u64,
    },
    /// No tensor of that name.
    #[error("`{path}` holds no tensor `{tensor}`{}", nearest_hint(.nearest.as_deref()))]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
        /// The name that comes closest, where one does.
        nearest: Option<String>,
    },
    /// The place for the output is taken.
    #[error("`{path}` exists already and is not replaced")]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The system gives no memory for a tensor, or for a block of it.
    #[error("there is no memory for {needed_bytes} bytes of tensor `{tensor}` of `{path}`")]
    Memory {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its size.
        needed_bytes: u64,
    },
    /// There is not enough room.
    #[error(
        "`{path}` takes {needed_bytes} bytes, and {free_bytes} are free on the file system at `{file_system}`"
    )]
    Space {
        /// The file or folder that was to be written.
        path: PathBuf,
        /// What it takes there.
        needed_bytes: u64,
        /// What the file system has left without it.
        free_bytes: u64,
        /// The file system's topmost folder.
        file_system: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// The file has its name, but the system could not say that it lasts.
    #[error("`{path}` is complete, but the system cannot say that it would survive a power cut")]
    NotDurable {
        /// The file.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// Somebody else is at work on it.
    #[error("`{path}` is in use by another mpatch")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// A file that must not be changed where it lies.
    #[error("cannot change `{path}` in place: {reason}")]
    InPlace {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A tensor holds something else than it did a moment ago, or than was just written to it.
    #[error("tensor `{tensor}` of `{path}` {difference}")]
    Changed {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it hashes to, and what was expected.
        difference: String,
    },
    /// A change in place has not come to its end; its journal holds the old bytes.
    #[error("a change of `{path}` has not come to its end, and `{journal}` holds the old bytes: {reason}")]
    Recovery {
        /// The file.
        path: PathBuf,
        /// The journal.
        journal: PathBuf,
        /// Why the journal is still there.
        reason: String,
        /// What there is to do first; none where the next command that opens it puts them back.
        way_out: Option<&'static str>,
    },
    /// Whoever opened the checkpoint asked to stop.
    #[error("stopped on request, while working on `{path}`")]
    Stopped {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The output would land in a place that makes no sense for it.
    #[error("cannot write the output to `{path}`: {reason}")]
    Output {
        /// The output.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// What was being done to a file or folder when the system said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the verb that it is shown as")]
pub enum Action {
    AskFileSystem,
    Create,
    CreateFolder,
    CreateTemporary,
    Cut,
    Examine,
    List,
    Lock,
    Open,
    OpenForWriting,
    PutInPlace,
    Read,
    Remove,
    ReserveRoom,
    SetMode,
    Sync,
    SyncFolder,
    Write,
    WriteTo,
}

impl Action {
    /// Whether nothing was to be changed by it.
    pub const fn only_looks(self) -> bool {
        use Action::{AskFileSystem, Examine, List, Lock, Open, Read};
        matches!(self, AskFileSystem | Examine | List | Lock | Open | Read)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Action::AskFileSystem => "ask the file system of",
            Action::Create => "create",
            Action::CreateFolder => "create a folder in",
            Action::CreateTemporary => "create a temporary file for",
            Action::Cut => "cut",
            Action::Examine => "examine",
            Action::List => "list",
            Action::Lock => "lock",
            Action::Open => "open",
            Action::OpenForWriting => "open for writing",
            Action::PutInPlace => "put in place",
            Action::Read => "read",
            Action::Remove => "remove",
            Action::ReserveRoom => "reserve room for",
            Action::SetMode => "set the mode of",
            Action::Sync => "sync",
            Action::SyncFolder => "sync the folder of",
            Action::Write => "write",
            Action::WriteTo => "write to",
        })
    }
}

impl CheckpointError {
    /// A tensor that does not hash to what it should.
    pub(crate) fn changed(path: PathBuf, tensor: &str, expected: TensorDigest, found: TensorDigest) -> Self {
        let difference = format!("hashes to {found}, {expected} was expected");
        CheckpointError::Changed { path, tensor: tensor.to_owned(), difference }
    }

    /// Wraps a system error with the path and what was being done to it, for `map_err`.
    pub(crate) fn io(path: &Path, action: Action) -> impl FnOnce(io::Error) -> Self {
        move |source| CheckpointError::Io { path: path.to_owned(), action, source }
    }

    /// What a user calls it: `target`, where a fault was met in the `temporary` that was to get its name.
    pub(crate) fn by_its_name(self, temporary: &Path, target: &Path) -> Self {
        match self {
            CheckpointError::Io { path, action, source } if path.starts_with(temporary) => {
                CheckpointError::Io { path: target.to_owned(), action, source }
            }
            // What is in a temporary goes with it, whether it would have lasted or not.
            CheckpointError::NotDurable { path, source } if path.starts_with(temporary) => {
                CheckpointError::Io { path: target.to_owned(), action: Action::Sync, source }
            }
            CheckpointError::Space { path, needed_bytes, free_bytes, file_system, source }
                if path.starts_with(temporary) =>
            {
                let path = target.to_owned();
                CheckpointError::Space { path, needed_bytes, free_bytes, file_system, source }
            }
            error => error,
        }
    }
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; the nearest name is `{name}`"))
}
