//! Files that are given for weights and are something else.

use std::fmt;
use std::path::Path;

use super::disk::Files;
use super::header::{HEADER_SIZE_BYTES_MAX, HEADER_SIZE_FIELD_BYTES};
use super::{CheckpointError, is_file};

/// What a file is that is no safetensors file, by how it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// Pickled tensors, or an archive of such.
    PyTorch,
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
            Self::LfsPointer => "a pointer of git-lfs to one",
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
            (Self::LfsPointer, b"version "),
            (Self::Json, b"{"),
            (Self::Markup, b"<"),
            (Self::Patch, b"\x89MPATCH\n"),
        ];
        starts.into_iter().find_map(|(foreign, bytes)| start.starts_with(bytes).then_some(foreign))
    }
}

/// The file of a folder without safetensors that has the weights in PyTorch's own format, if there is one.
pub(super) fn pytorch_in(disk: &Files, folder: &Path) -> Result<Option<CheckpointError>, CheckpointError> {
    let mut names = disk.list(folder).map_err(CheckpointError::io(folder, "list"))?;
    // `training_args.bin` and the like hold no weights.
    names.sort_by_key(|name| !name.to_string_lossy().starts_with("pytorch_model"));
    for name in names {
        let path = folder.join(name);
        let is_pytorch =
            path.extension().is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|known| ending == *known));
        if is_pytorch && is_file(disk, &path)? {
            return Ok(Some(CheckpointError::Foreign { path, found: Foreign::PyTorch }));
        }
    }
    Ok(None)
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
            (b"GGUF\x03\0\0\x01", None),
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
            let found = pytorch_in(&Files::real(), folder.path()).unwrap()?;
            let CheckpointError::Foreign { path, found: Foreign::PyTorch } = found else { panic!("{found}") };
            Some(path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        std::fs::create_dir(folder.path().join("a.bin")).unwrap();
        for name in ["config.json", "bin", "x.gguf"] {
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
