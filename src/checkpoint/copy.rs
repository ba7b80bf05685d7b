//! Copying contents: by sharing blocks, else from memory straight to the disk, else inside the system, else by hand.
//!
//! The straight way is the one of large files on local disks: a copy through the system's memory takes twice the time
//! of a copy past it, nearly all of it the processor's.

use std::ops::Range;
use std::path::Path;

use super::disk::{DirectWay, File, Files, PAGE_BYTES, Pages, write_whole_pages};
use super::journal::reserve;
use super::keep::Told;
use super::waiting::map_waiting;
use super::{Action, CheckpointError};

/// How much is copied at once, where the system does not copy by itself.
const PART_BYTES: u64 = 4 << 20;
/// How much the system copies at once, between two looks at whether to stop.
const SYSTEM_PART_BYTES: u64 = 64 << 20;

/// What is copied: exactly so many bytes from the start of an open file.
pub(super) struct Source<'a> {
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
    pub(super) size_bytes: u64,
}

/// An open file that is to hold a copy.
pub(super) struct Target<'a> {
    pub(super) disk: &'a Files,
    pub(super) file: &'a File,
    pub(super) path: &'a Path,
}

/// Makes `target` a file of the source's size that shares the source's blocks, or has room for what it holds; true if
/// it shares them, and so holds it.
pub(super) fn share_or_reserve(source: &Source<'_>, target: &Target<'_>) -> Result<bool, CheckpointError> {
    if share_contents(source, target.file) {
        return Ok(true);
    }
    target.file.set_size(0).map_err(CheckpointError::io(target.path, Action::Write))?;
    // A full disk is found here, before the work.
    reserve(target.disk, target.file, target.path, source.size_bytes)?;
    Ok(false)
}

/// Shares the source's blocks where the file system can; false where the copy must be made by hand.
pub(super) fn share_contents(source: &Source<'_>, target: &File) -> bool {
    // A source that changed its size since its header was read is for the reading and writing to notice.
    target.clone_from(source.file).is_ok()
        && target.about().is_ok_and(|about| about.size_bytes == source.size_bytes)
}

/// Copies `ranges` of the source to their places in `target`, without moving any file's position.
pub(super) fn copy_ranges(
    source: &Source<'_>,
    target: &Target<'_>,
    ranges: &[Range<u64>],
    told: &Told<'_>,
) -> Result<(), CheckpointError> {
    let way = DirectWay::open(target.disk, target.file, target.path);
    if !way.is_there() {
        return ranges.iter().try_for_each(|range| copy_in_the_system(source, target, range, told));
    }
    let copied = map_waiting(&parts(ranges), |pages, part| {
        (told.stop)()?;
        copy_part(source, target, &way, part, pages)?;
        (told.progress)(part.end - part.start);
        Ok(())
    });
    copied.map(drop)
}

/// Ranges cut at multiples of [`PART_BYTES`].
fn parts(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    for range in ranges {
        let mut start = range.start;
        while start < range.end {
            let end = range.end.min((start / PART_BYTES + 1) * PART_BYTES);
            parts.push(start..end);
            start = end;
        }
    }
    parts
}

/// Copies one part: its whole pages directly, and what is left at its ends the common way.
fn copy_part(
    source: &Source<'_>,
    target: &Target<'_>,
    way: &DirectWay,
    part: &Range<u64>,
    pages: &mut Pages,
) -> Result<(), CheckpointError> {
    let before = (part.start % PAGE_BYTES as u64) as usize;
    let bytes = pages.of_size(before + (part.end - part.start) as usize);
    let read = source.file.read_exact_at(&mut bytes[before..], part.start);
    read.map_err(CheckpointError::io(source.path, Action::Read))?;
    let written = write_whole_pages(way, target.file, bytes, before, part.start).and_then(|written| {
        target.file.write_all_at(&bytes[before + written..], part.start + written as u64)
    });
    written.map_err(CheckpointError::io(target.path, Action::Write))
}

/// Copies a range inside the system, or by reading and writing where that is not supported.
fn copy_in_the_system(
    source: &Source<'_>,
    target: &Target<'_>,
    range: &Range<u64>,
    told: &Told<'_>,
) -> Result<(), CheckpointError> {
    let mut offset = range.start;
    let mut system_copies = true;
    let mut block = Vec::new();
    while offset < range.end {
        (told.stop)()?;
        let left = range.end - offset;
        let copied = if system_copies {
            let copied = target.file.copy_from(source.file, offset, SYSTEM_PART_BYTES.min(left));
            // Not supported here, or a fault that reading and writing will meet and name.
            let copied = copied.unwrap_or(0);
            system_copies = copied > 0;
            copied
        } else {
            block.resize(PART_BYTES.min(left) as usize, 0);
            let read = source.file.read_exact_at(&mut block, offset);
            read.map_err(CheckpointError::io(source.path, Action::Read))?;
            let written = target.file.write_all_at(&block, offset);
            written.map_err(CheckpointError::io(target.path, Action::Write))?;
            block.len() as u64
        };
        offset += copied;
        (told.progress)(copied);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::disk::{Access, Audience};
    use super::*;

    const SIZE_BYTES: u64 = 2 * PART_BYTES + 7;

    struct Case {
        folder: tempfile::TempDir,
        disk: Files,
        bytes: Vec<u8>,
        source_path: PathBuf,
        source: File,
    }

    impl Case {
        fn new() -> Self {
            let (folder, disk) = (tempfile::tempdir().unwrap(), Files::real());
            let bytes: Vec<u8> = (0..SIZE_BYTES).map(|n| (n % 251) as u8).collect();
            let source_path = folder.path().join("source");
            std::fs::write(&source_path, &bytes).unwrap();
            let source = disk.open(&source_path, Access::Read).unwrap();
            Self { folder, disk, bytes, source_path, source }
        }

        fn source(&self) -> Source<'_> {
            Source { file: &self.source, path: &self.source_path, size_bytes: SIZE_BYTES }
        }

        /// What `copy` leaves in a new file of zeros, and how many bytes it told.
        fn copied(
            &self,
            copy: impl Fn(&Target<'_>, &Told<'_>) -> Result<(), CheckpointError>,
        ) -> Result<(Vec<u8>, u64), CheckpointError> {
            let path = self.folder.path().join("copy");
            _ = std::fs::remove_file(&path);
            let file = self.disk.open(&path, Access::CreateNew(Audience::Owner)).unwrap();
            file.set_size(SIZE_BYTES).unwrap();
            let told = AtomicU64::new(0);
            let progress = |bytes| _ = told.fetch_add(bytes, Ordering::Relaxed);
            copy(
                &Target { disk: &self.disk, file: &file, path: &path },
                &Told { progress: &progress, stop: &|| Ok(()) },
            )?;
            Ok((std::fs::read(&path).unwrap(), told.into_inner()))
        }
    }

    #[test]
    fn ranges_are_copied_to_the_byte_and_nothing_else_whichever_way() {
        let case = Case::new();
        let page = PAGE_BYTES as u64;
        let whole = 0..SIZE_BYTES;
        for ranges in [
            vec![whole],
            vec![],
            vec![1..2, 5..5, page - 1..page + 1, 3 * page..5 * page, 6 * page + 9..SIZE_BYTES],
            vec![100..PART_BYTES + 100, 2 * PART_BYTES - 1..SIZE_BYTES],
        ] {
            let mut expected = vec![0; SIZE_BYTES as usize];
            for range in &ranges {
                let range = range.start as usize..range.end as usize;
                expected[range.clone()].copy_from_slice(&case.bytes[range]);
            }
            let size: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            let source = case.source();
            let (found, told) =
                case.copied(|target, told| copy_ranges(&source, target, &ranges, told)).unwrap();
            assert!(found == expected && told == size, "{ranges:?}");
            let in_the_system = |target: &Target<'_>, told: &Told<'_>| {
                ranges.iter().try_for_each(|range| copy_in_the_system(&source, target, range, told))
            };
            let (found, told) = case.copied(in_the_system).unwrap();
            assert!(found == expected && told == size, "{ranges:?}, in the system");
        }
    }

    #[test]
    fn a_source_that_ends_early_is_an_error_whichever_way() {
        let case = Case::new();
        let source = case.source();
        let range = PART_BYTES..SIZE_BYTES + 1;
        let by_parts =
            case.copied(|target, told| copy_ranges(&source, target, std::slice::from_ref(&range), told));
        let in_the_system = case.copied(|target, told| copy_in_the_system(&source, target, &range, told));
        for copied in [by_parts, in_the_system] {
            let found = copied.unwrap_err().to_string();
            assert!(found.starts_with(&format!("cannot read `{}`", case.source_path.display())), "{found}");
        }
    }
}
