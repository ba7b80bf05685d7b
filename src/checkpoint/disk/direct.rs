//! Writing past the system's memory, which costs long files more time than the disk does.
//!
//! Only whole pages go that way: offsets, sizes and places in memory are multiples of [`PAGE_BYTES`]. Whatever a file
//! system has against it, the bytes then go the common way, and are to be synced in any case.

use std::io;
use std::path::Path;

use super::{Access, File, Files};

/// What all file systems that write directly take for a page, or a multiple of theirs.
pub(crate) const PAGE_BYTES: usize = 4096;

/// An open file with a second, direct way into it, where there is one.
#[derive(Debug)]
pub(crate) struct DirectFile<'a> {
    file: &'a File,
    direct: Option<File>,
}

impl<'a> DirectFile<'a> {
    /// Of `file`, which was opened for writing and lies at `path`.
    pub(crate) fn new(files: &Files, file: &'a File, path: &Path) -> Self {
        let is_it = |other: &File| matches!((file.about(), other.about()), (Ok(known), Ok(opened)) if known.is_same_file(&opened));
        Self { file, direct: files.open(path, Access::Direct).ok().filter(is_it) }
    }

    /// Whether there is a direct way.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Writes all of `pages`, whole ones, at `offset`, a multiple of [`PAGE_BYTES`], or fails.
    pub(crate) fn write_all_at(&self, pages: &[u8], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) if direct.write_all_at(pages, offset).is_ok() => Ok(()),
            // No direct way, or a fault that this will meet and name.
            _ => self.file.write_and_begin_sync_at(pages, offset),
        }
    }
}

/// Memory that begins where a page does.
#[derive(Debug, Default)]
pub(crate) struct Pages(Vec<u8>);

impl Pages {
    /// So many bytes of it, which hold anything.
    pub(crate) fn of_size(&mut self, size: usize) -> &mut [u8] {
        if self.0.len() < size + PAGE_BYTES {
            self.0.resize(size + PAGE_BYTES, 0);
        }
        let start = self.0.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        &mut self.0[start..start + size]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_where_a_page_does_whatever_their_size() {
        let mut pages = Pages::default();
        for size in [1, PAGE_BYTES, 5 * PAGE_BYTES + 3, 2] {
            let found = pages.of_size(size);
            assert_eq!((found.len(), found.as_ptr() as usize % PAGE_BYTES), (size, 0));
        }
    }

    #[test]
    fn both_ways_lead_into_the_same_file() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("file");
        let file = files.open(&path, Access::CreateNew).unwrap();
        let mut pages = Pages::default();
        for (number, direct) in
            [DirectFile::new(&files, &file, &path), DirectFile { file: &file, direct: None }]
                .iter()
                .enumerate()
        {
            let bytes = pages.of_size(2 * PAGE_BYTES);
            bytes.fill(number as u8 + 1);
            direct.write_all_at(bytes, (number * PAGE_BYTES) as u64).unwrap();
        }
        let expected = [[1; PAGE_BYTES], [2; PAGE_BYTES], [2; PAGE_BYTES]].concat();
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn what_may_not_go_directly_goes_the_common_way() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("file");
        let file = files.open(&path, Access::CreateNew).unwrap();
        // No whole page, and not at the start of one.
        DirectFile::new(&files, &file, &path).write_all_at(b"text", 3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0text");
    }

    #[test]
    fn another_file_under_the_name_is_not_written() {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let [path, other] = ["file", "other"].map(|name| folder.path().join(name));
        let file = files.open(&path, Access::CreateNew).unwrap();
        std::fs::rename(&path, &other).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert!(!DirectFile::new(&files, &file, &path).is_direct());
    }
}
