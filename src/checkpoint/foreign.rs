//! Files that are given for weights and are something else.

use std::fmt;
use std::path::Path;

use super::disk::{Access, Files};
use super::header::{HEADER_SIZE_BYTES_MAX, HEADER_SIZE_FIELD_BYTES};
use super::{Action, CheckpointError, is_file};

/// What a file is that is no safetensors file, by how it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// Pickled tensors, or an archive of such.
    PyTorch,
    /// TensorFlow's or Keras's weights.
    Hdf5,
    /// What llama.cpp and its like run.
    Gguf,
    /// Weights of some other program, by the ending of their name.
    OtherWeights,
    /// What git-lfs leaves in the place of a file that it has not fetched.
    LfsPointer,
    /// JSON.
    Json,
    /// HTML or XML.
    Markup,
    /// A patch.
    Patch,
}

impl fmt::Display for Foreign {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::PyTorch => "a checkpoint in PyTorch's own format",
            Self::Hdf5 => "a file of HDF5, as TensorFlow writes weights",
            Self::Gguf => "a file of GGUF, as llama.cpp runs it",
            Self::OtherWeights => "a file of weights in another format",
            Self::LfsPointer => "a pointer of git-lfs to a file that is not here",
            Self::Json => "a file of JSON",
            Self::Markup => "a web page, or other markup",
            Self::Patch => "a patch",
        })
    }
}

impl Foreign {
    /// What a file that begins with `start` is. Where these bytes can be the size of a header, they are.
    pub(super) fn of(start: [u8; HEADER_SIZE_FIELD_BYTES as usize]) -> Option<Self> {
        if u64::from_le_bytes(start) <= HEADER_SIZE_BYTES_MAX {
            return None;
        }
        let starts = [
            (Self::PyTorch, &b"PK\x03\x04"[..]),
            // A pickle, and the number of its protocol.
            (Self::PyTorch, b"\x80\x02"),
            (Self::PyTorch, b"\x80\x03"),
            (Self::PyTorch, b"\x80\x04"),
            (Self::PyTorch, b"\x80\x05"),
            (Self::Hdf5, b"\x89HDF\r\n\x1a\n"),
            (Self::Gguf, b"GGUF"),
            (Self::LfsPointer, b"version "),
            (Self::Json, b"{"),
            (Self::Markup, b"<"),
            (Self::Patch, b"\x89MPATCH\n"),
        ];
        starts.into_iter().find_map(|(foreign, bytes)| start.starts_with(bytes).then_some(foreign))
    }
}

/// Whether a file that is no weights, of which these are the bytes, is what git-lfs leaves in its place.
pub fn is_lfs_pointer(bytes: &[u8]) -> bool {
    bytes.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Endings of files that hold weights in another form than safetensors, and what such a file most likely is.
const OTHER_WEIGHTS: [(&str, Foreign); 9] = [
    ("bin", Foreign::PyTorch),
    ("pt", Foreign::PyTorch),
    ("pth", Foreign::PyTorch),
    ("ckpt", Foreign::PyTorch),
    ("h5", Foreign::Hdf5),
    ("gguf", Foreign::Gguf),
    ("msgpack", Foreign::OtherWeights),
    ("onnx", Foreign::OtherWeights),
    ("ot", Foreign::OtherWeights),
];

/// What a file is by the ending of its name, if it is one of weights and not safetensors.
pub(super) fn by_ending(path: &Path) -> Option<Foreign> {
    let ending = path.extension()?;
    OTHER_WEIGHTS.into_iter().find_map(|(known, foreign)| (ending == known).then_some(foreign))
}

/// Why a folder without safetensors is no checkpoint, if it has weights in another form.
pub(super) fn refusal_of(disk: &Files, folder: &Path) -> Result<Option<CheckpointError>, CheckpointError> {
    let mut names = disk.list(folder).map_err(CheckpointError::io(folder, Action::List))?;
    // `training_args.bin` and the like hold no weights.
    names.sort_by_key(|name| {
        let name = name.to_string_lossy();
        (!name.starts_with(PYTORCH_NAME), !name.contains("model"))
    });
    for path in names.into_iter().map(|name| folder.join(name)) {
        let Some(by_ending) = by_ending(&path) else { continue };
        if !is_file(disk, &path)? {
            continue;
        }
        let file = disk.open(&path, Access::Read).map_err(CheckpointError::io(&path, Action::Open))?;
        let start = file.read_to_end(START_BYTES).map_err(CheckpointError::io(&path, Action::Read))?;
        if is_start_of_header(&start) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let reason =
                format!("`{name}` in it is a safetensors file under another name: give that file itself");
            return Ok(Some(CheckpointError::NotACheckpoint { path: folder.to_owned(), reason }));
        }
        let found = start.first_chunk().and_then(|start| Foreign::of(*start)).unwrap_or(by_ending);
        return Ok(Some(CheckpointError::Foreign { path, found }));
    }
    Ok(None)
}

/// How the names of transformers' weights in PyTorch's format begin.
const PYTORCH_NAME: &str = "pytorch_model";

/// Weights in PyTorch's format, by their name, that lie in a folder, if any do.
pub(super) fn pytorch_in(disk: &Files, folder: &Path) -> Result<Option<String>, CheckpointError> {
    let names = disk.list(folder).map_err(CheckpointError::io(folder, Action::List))?;
    let names = names.into_iter().map(|name| name.to_string_lossy().into_owned());
    let is_pytorch = |name: &String| {
        name.starts_with(PYTORCH_NAME) && by_ending(Path::new(name)) == Some(Foreign::PyTorch)
    };
    Ok(names.into_iter().find(is_pytorch))
}

/// Enough of a file to tell a header by: its size, and the brace that it begins with.
const START_BYTES: u64 = HEADER_SIZE_FIELD_BYTES + 1;

fn is_start_of_header(start: &[u8]) -> bool {
    let Some((size, [b'{'])) = start.split_first_chunk() else { return false };
    u64::from_le_bytes(*size) <= HEADER_SIZE_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_how_it_begins_unless_that_is_the_size_of_a_header() {
        for (start, expected) in [
            (b"PK\x03\x04\0\0\x08\x08", Some(Foreign::PyTorch)),
            (b"\x80\x02\x8a\nl\xfc\x9cF", Some(Foreign::PyTorch)),
            (b"\x80\x03}q\0(X\x05", Some(Foreign::PyTorch)),
            (b"\x80\x04\x95\x1a\0\0\0\x01", Some(Foreign::PyTorch)),
            (b"\x80\x05\x95\x1a\0\0\0\x01", Some(Foreign::PyTorch)),
            (b"version ", Some(Foreign::LfsPointer)),
            (b"{\"a\": 1}", Some(Foreign::Json)),
            (b"<!DOCTYP", Some(Foreign::Markup)),
            (b"\x89MPATCH\n", Some(Foreign::Patch)),
            (b"GGUF\x03\0\0\x01", Some(Foreign::Gguf)),
            (b"\x89HDF\r\n\x1a\n", Some(Foreign::Hdf5)),
            // What may be a header is one, however it begins.
            (b"{\x01\0\0\0\0\0\0", None),
            (b"\x80\x02\0\0\0\0\0\0", None),
        ] {
            assert_eq!(Foreign::of(*start), expected, "{}", start.escape_ascii());
        }
    }

    #[test]
    fn of_files_in_pytorchs_format_the_one_with_the_weights_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let named = || {
            let found = refusal_of(&Files::real(), folder.path()).unwrap()?;
            let CheckpointError::Foreign { path, found: Foreign::PyTorch } = found else { panic!("{found}") };
            Some(path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        std::fs::create_dir(folder.path().join("a.bin")).unwrap();
        for name in ["config.json", "bin", "x.txt"] {
            std::fs::write(folder.path().join(name), "something").unwrap();
        }
        assert_eq!(named(), None);
        // Each goes before those that were there.
        for name in ["z.pth", "y.pt", "optimizer.bin", "pytorch_model.bin"] {
            std::fs::write(folder.path().join(name), "pickled").unwrap();
            assert_eq!(named().as_deref(), Some(name));
        }
    }
}
