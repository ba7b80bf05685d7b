//! Writing past the system's memory, which costs long files more time than the disk does.
//!
//! Only whole pages go that way: offsets, sizes and places in memory are multiples of [`PAGE_BYTES`]. Whatever a file
//! system has against it, the bytes then go the common way, and are to be synced in any case.

use std::io;
use std::path::Path;

use super::{Access, File, Files};

/// What all file systems that write directly take for a page, or a multiple of theirs.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A second, direct way into an open file, where there is one.
#[derive(Debug)]
pub(crate) struct DirectWay(Option<File>);

impl DirectWay {
    /// Into `file`, which was opened for writing and lies at `path`.
    pub(crate) fn open(files: &Files, file: &File, path: &Path) -> Self {
        let about = file.about().ok();
        let is_it = |other: &File| {
            about.is_some_and(|about| other.about().is_ok_and(|other| about.is_same_file(&other)))
        };
        Self(files.open(path, Access::Direct).ok().filter(is_it))
    }

    /// Whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// Writes all of `pages`, whole ones, at `offset` of its file, a multiple of [`PAGE_BYTES`], or fails.
    pub(crate) fn write_all_at(&self, file: &File, pages: &[u8], offset: u64) -> io::Result<()> {
        match &self.0 {
            Some(direct) if direct.write_all_at(pages, offset).is_ok() => Ok(()),
            // No direct way, or a fault that this will meet and name.
            _ => file.write_and_begin_sync_at(pages, offset),
        }
    }
}

/// Bytes that come one after the other, gathered so that they go out in whole pages.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    /// What waits for the rest of its page, and where it belongs.
    waiting: Vec<u8>,
    offset: u64,
    pages: Pages,
}

impl Gather {
    /// Takes `bytes` for `offset`, and writes what makes whole pages.
    pub(crate) fn write_at(
        &mut self,
        way: &DirectWay,
        file: &File,
        bytes: &[u8],
        offset: u64,
    ) -> io::Result<()> {
        if offset != self.offset + self.waiting.len() as u64 {
            self.finish(file)?;
            self.offset = offset;
        }
        let before = (self.offset % PAGE_BYTES as u64) as usize;
        let all = self.pages.of_size(before + self.waiting.len() + bytes.len());
        let (waited, new) = all[before..].split_at_mut(self.waiting.len());
        waited.copy_from_slice(&self.waiting);
        new.copy_from_slice(bytes);
        let written = write_whole_pages(way, file, all, before, self.offset)?;
        self.waiting.clear();
        self.waiting.extend_from_slice(&all[before + written..]);
        self.offset += written as u64;
        Ok(())
    }

    /// Writes what waits.
    pub(crate) fn finish(&mut self, file: &File) -> io::Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        file.write_all_at(&waiting, self.offset)
    }
}

/// Writes `bytes` from `before` on, which is the place of `offset` in its page, up to the end of the last whole page;
/// returns how many that were. What comes before the first whole page goes the common way, so that others may write
/// the rest of its page.
pub(crate) fn write_whole_pages(
    way: &DirectWay,
    file: &File,
    bytes: &[u8],
    before: usize,
    offset: u64,
) -> io::Result<usize> {
    let first = before.next_multiple_of(PAGE_BYTES);
    let last = bytes.len() / PAGE_BYTES * PAGE_BYTES;
    if first >= last {
        return Ok(0);
    }
    file.write_all_at(&bytes[before..first], offset)?;
    way.write_all_at(file, &bytes[first..last], offset + (first - before) as u64)?;
    Ok(last - before)
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
    use std::path::PathBuf;

    use super::super::Audience;
    use super::*;

    #[test]
    fn pages_begin_where_a_page_does_whatever_their_size() {
        let mut pages = Pages::default();
        for size in [1, PAGE_BYTES, 5 * PAGE_BYTES + 3, 2] {
            let found = pages.of_size(size);
            assert_eq!((found.len(), found.as_ptr() as usize % PAGE_BYTES), (size, 0));
        }
    }

    /// A new empty file, with its disk and folder.
    fn case() -> (tempfile::TempDir, Files, File, PathBuf) {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("file");
        let file = files.open(&path, Access::CreateNew(Audience::Owner)).unwrap();
        (folder, files, file, path)
    }

    #[test]
    fn both_ways_lead_into_the_same_file() {
        let (_folder, files, file, path) = case();
        let mut pages = Pages::default();
        for (number, way) in [DirectWay::open(&files, &file, &path), DirectWay(None)].iter().enumerate() {
            let bytes = pages.of_size(2 * PAGE_BYTES);
            bytes.fill(number as u8 + 1);
            way.write_all_at(&file, bytes, (number * PAGE_BYTES) as u64).unwrap();
        }
        let expected = [[1; PAGE_BYTES], [2; PAGE_BYTES], [2; PAGE_BYTES]].concat();
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn what_may_not_go_directly_goes_the_common_way() {
        let (_folder, files, file, path) = case();
        // No whole page, and not at the start of one.
        DirectWay::open(&files, &file, &path).write_all_at(&file, b"text", 3).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0text");
    }

    #[test]
    fn another_file_under_the_name_is_not_written() {
        let (folder, files, file, path) = case();
        std::fs::rename(&path, folder.path().join("other")).unwrap();
        std::fs::write(&path, b"").unwrap();
        assert!(!DirectWay::open(&files, &file, &path).is_there());
    }

    #[test]
    fn gathered_bytes_are_all_written_wherever_they_begin_and_end() {
        let bytes: Vec<u8> = (0..10 * PAGE_BYTES).map(|n| (n % 251) as u8).collect();
        // Where a piece begins and how long it is: most follow the one before, one does not.
        let pieces = [(5, 7), (12, PAGE_BYTES), (12 + PAGE_BYTES, 3 * PAGE_BYTES), (6 * PAGE_BYTES, 9)];
        let (_folder, files, file, path) = case();
        let way = DirectWay::open(&files, &file, &path);
        let mut gather = Gather::default();
        let mut expected = vec![0; 6 * PAGE_BYTES + 9];
        for (start, size) in pieces {
            let piece = &bytes[start..start + size];
            expected[start..start + size].copy_from_slice(piece);
            gather.write_at(&way, &file, piece, start as u64).unwrap();
        }
        gather.finish(&file).unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }
}
