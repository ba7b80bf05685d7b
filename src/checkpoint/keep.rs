//! Keeping old bytes in a journal while, behind that, new ones are written over them.
//!
//! ```text
//! keeper   old bytes 0..n into the journal  ->  fsync  ->  "kept up to n"  ->  the next ones
//! writer   new bytes computed  ->  waits until theirs are kept  ->  written
//! ```
//!
//! Disk and processor both have work this way. What a crash finds in the journal beyond the last fsync may be anything;
//! nothing was overwritten there.

use std::sync::{Condvar, Mutex, MutexGuard};

use super::blocks::{BlockHash, digest_of_blocks};
use super::disk::{DirectWay, File, Pages};
use super::journal::{Block, HASH_BYTES, Journal};
use super::restore::Kept;
use super::waiting::map_waiting;
use super::{Action, CheckpointError, Progress};

/// Blocks of the journal between two syncs.
const BLOCKS_PER_SYNC: usize = 64;

/// Whom long work tells bytes, and asks whether to stop.
pub(super) struct Told<'a> {
    pub(super) progress: Progress<'a>,
    pub(super) stop: &'a (dyn Fn() -> Result<(), CheckpointError> + Sync),
}

/// How many of the old bytes, in the journal's order, would outlast a power cut.
#[derive(Debug, Default)]
pub(super) struct Cover {
    state: Mutex<CoverState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct CoverState {
    size_bytes: u64,
    /// Nobody keeps any more.
    is_final: bool,
}

impl Cover {
    fn state(&self) -> MutexGuard<'_, CoverState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until so many bytes are kept; false if they never will be.
    pub(super) fn wait_for(&self, size_bytes: u64) -> bool {
        let waits = |state: &mut CoverState| state.size_bytes < size_bytes && !state.is_final;
        let state = self.changed.wait_while(self.state(), waits);
        state.unwrap_or_else(|poisoned| poisoned.into_inner()).size_bytes >= size_bytes
    }

    /// What is kept, when nobody keeps any more.
    pub(super) fn kept(&self) -> Kept {
        Kept::Bytes(self.state().size_bytes)
    }

    fn grow(&self, size_bytes: u64) {
        self.state().size_bytes += size_bytes;
        self.changed.notify_all();
    }
}

/// Whoever keeps; when he is gone, nobody waits for him.
struct Keeper<'a>(&'a Cover);

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        self.0.state().is_final = true;
        self.0.changed.notify_all();
    }
}

impl Journal {
    /// Puts the old bytes of all extents down, in their order, comparing them with their digests on the way.
    ///
    /// `sources` are the files of the header, in its order, locked by the caller. The first tensor that is not at its
    /// start ends it.
    pub(super) fn keep(
        &self,
        sources: &[&File],
        cover: &Cover,
        told: &Told<'_>,
    ) -> Result<(), CheckpointError> {
        let keeper = Keeper(cover);
        let way = DirectWay::open(&self.files, &self.file, &self.path);
        let work = Work { journal: self, way, sources, told };
        let mut extents = self.header.extents().peekable();
        let mut hashes = Vec::new();
        for blocks in Vec::from_iter(self.placed_blocks()).chunks(BLOCKS_PER_SYNC) {
            hashes.extend(map_waiting(blocks, |pages, (at, block)| work.keep_block(*block, *at, pages))?);
            while let Some((index, extent)) =
                extents.next_if(|(_, extent)| extent.block_count() <= hashes.len())
            {
                let of_extent: Vec<BlockHash> = hashes.drain(..extent.block_count()).collect();
                let found = digest_of_blocks(extent.size_bytes, &of_extent);
                if found != extent.start {
                    return Err(CheckpointError::changed(
                        self.target_path(index),
                        &extent.tensor,
                        extent.start,
                        found,
                    ));
                }
            }
            self.file.sync().map_err(CheckpointError::io(&self.path, Action::Sync))?;
            keeper.0.grow(blocks.iter().map(|(_, block)| block.size_bytes).sum());
        }
        Ok(())
    }
}

struct Work<'a> {
    journal: &'a Journal,
    way: DirectWay,
    sources: &'a [&'a File],
    told: &'a Told<'a>,
}

impl Work<'_> {
    /// Copies a block to `at` in the journal, with its hash behind it.
    fn keep_block(&self, block: Block, at: u64, pages: &mut Pages) -> Result<BlockHash, CheckpointError> {
        (self.told.stop)()?;
        let pages = pages.of_size(block.journaled_size_bytes() as usize);
        let (bytes, rest) = pages.split_at_mut(block.size_bytes as usize);
        let source_path = self.journal.target_path(block.file);
        let read = self.sources[block.file].read_exact_at(bytes, block.offset);
        read.map_err(CheckpointError::io(&source_path, Action::Read))?;
        let hash = BlockHash::of(block.tensor_offset, bytes);
        let (end, padding) = rest.split_at_mut(HASH_BYTES as usize);
        end.copy_from_slice(&self.journal.check(at, &hash));
        padding.fill(0);
        let written = self.way.write_all_at(&self.journal.file, pages, at);
        written.map_err(CheckpointError::io(&self.journal.path, Action::Write))?;
        (self.told.progress)(block.size_bytes);
        Ok(hash)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::super::blocks::BLOCK_BYTES;
    use super::super::disk::{Access, Files};
    use super::super::journal::{Extent, Found, Header, JournaledFile};
    use super::super::restore::{Goal, Outcome, Syncs};
    use super::*;
    use crate::digest::TensorDigest;

    const SIZE_BYTES: usize = 100;

    /// A file, in a folder of its own, that holds one byte again and again, open for writing.
    fn file_of(byte: u8) -> (tempfile::TempDir, Files, PathBuf, File) {
        let (folder, files) = (tempfile::tempdir().unwrap(), Files::real());
        let path = folder.path().join("model");
        std::fs::write(&path, [byte; SIZE_BYTES]).unwrap();
        let target = files.open(&path, Access::ReadWrite).unwrap();
        (folder, files, path, target)
    }

    /// A journal, under its name, about one tensor that fills a file.
    fn journal(files: &Files, folder: &Path, target: &File, states: [u8; 2]) -> Journal {
        journal_of(files, folder, &[target], states)
    }

    /// The same of several such files.
    fn journal_of(files: &Files, folder: &Path, targets: &[&File], [start, end]: [u8; 2]) -> Journal {
        let digest = |byte| TensorDigest::of(&[byte; SIZE_BYTES]);
        let file = journaled("model", &[(0, SIZE_BYTES as u64)], digest(start), digest(end));
        created(files, folder, vec![file; targets.len()], targets)
    }

    /// A file of [`SIZE_BYTES`] in a header, and where its tensors lie.
    fn journaled(
        name: &str,
        extents: &[(u64, u64)],
        start: TensorDigest,
        end: TensorDigest,
    ) -> JournaledFile {
        let extent =
            |&(offset, size_bytes)| Extent { tensor: "tensor".to_owned(), offset, size_bytes, start, end };
        JournaledFile {
            name: name.to_owned(),
            device: 0,
            inode: 0,
            created_ns: None,
            size_bytes: SIZE_BYTES as u64,
            extents: extents.iter().map(extent).collect(),
        }
    }

    fn created(files: &Files, folder: &Path, named: Vec<JournaledFile>, targets: &[&File]) -> Journal {
        let header = Header { label: "same".to_owned(), files: named };
        Journal::create(files, &folder.join("journal"), header, targets).unwrap()
    }

    #[test]
    fn a_header_that_leads_out_of_its_folder_or_its_file_is_none() {
        let (folder, files, _, target) = file_of(1);
        let is_whole = |name: &str, extents: &[(u64, u64)]| {
            let digest = TensorDigest::of(&[]);
            let file = journaled(name, extents, digest, digest);
            let made = created(&files, folder.path(), vec![file], &[&target]);
            let found = Journal::open(&files, &made.path).unwrap();
            std::fs::remove_file(&made.path).unwrap();
            matches!(found, Found::Whole(_))
        };
        let halves: &[(u64, u64)] = &[(50, 50), (0, 50)];
        assert!(is_whole("model", halves));
        for name in ["../victim", "a/b", "..", ".", ""] {
            assert!(!is_whole(name, halves), "{name}");
        }
        for extents in [&[][..], &[(50, 50), (0, 51)], &[(0, 101)], &[(u64::MAX, 1)]] {
            assert!(!is_whole("model", extents), "{extents:?}");
        }
    }

    #[test]
    fn old_bytes_are_those_of_one_place_only() {
        let (folder, files, path, target) = file_of(1);
        let (_other_folder, _, other_path, other) = file_of(1);
        let targets = [&target, &other];
        let made = journal_of(&files, folder.path(), &targets, [1, 2]);
        let told = Told { progress: &|_| (), stop: &|| Ok(()) };
        made.keep(&targets, &Cover::default(), &told).unwrap();
        let pages: Vec<(u64, Vec<u8>)> = made
            .placed_blocks()
            .map(|(at, block)| {
                let mut page = vec![0; block.journaled_size_bytes() as usize];
                made.file.read_exact_at(&mut page, at).unwrap();
                (at, page)
            })
            .collect();
        for ((at, _), (_, page)) in pages.iter().zip(pages.iter().rev()) {
            made.file.write_all_at(page, *at).unwrap();
        }
        targets.iter().for_each(|target| target.write_all_at(&[9; SIZE_BYTES], 0).unwrap());
        let found = made
            .roll_back(&[targets.to_vec()], Goal::Either, Syncs::AllWell, Kept::Unknown)
            .unwrap_err()
            .to_string();
        assert!(found.contains("2 of its blocks are damaged"), "{found}");
        for path in [path, other_path] {
            assert_eq!(std::fs::read(path).unwrap(), [9; SIZE_BYTES]);
        }
    }

    #[test]
    fn a_block_that_was_kept_and_is_lost_is_told_where_the_rest_of_its_tensor_was_not_kept() {
        let (folder, files, path, target) = file_of(1);
        let size_bytes = BLOCK_BYTES + 1;
        std::fs::write(path, vec![1; size_bytes as usize]).unwrap();
        let digest = |byte| TensorDigest::of(&vec![byte; size_bytes as usize]);
        let mut file = journaled("model", &[(0, size_bytes)], digest(1), digest(2));
        file.size_bytes = size_bytes;
        let made = created(&files, folder.path(), vec![file], &[&target]);
        target.write_all_at(&[2], 0).unwrap();
        let lost = made
            .roll_back(&[vec![&target]], Goal::Either, Syncs::AllWell, Kept::Bytes(BLOCK_BYTES))
            .unwrap_err();
        assert!(lost.to_string().contains("2 of its blocks are damaged"), "{lost}");
    }

    #[test]
    fn blocks_of_an_earlier_journal_are_not_put_back() {
        let (folder, files, path, target) = file_of(1);
        let told = Told { progress: &|_| (), stop: &|| Ok(()) };
        let earlier = journal(&files, folder.path(), &target, [1, 2]);
        earlier.keep(&[&target], &Cover::default(), &told).unwrap();
        let (at, block) = earlier.placed_blocks().next().unwrap();
        let mut left = vec![0; block.journaled_size_bytes() as usize];
        earlier.file.read_exact_at(&mut left, at).unwrap();
        target.write_all_at(&[9; SIZE_BYTES], 0).unwrap();
        assert_eq!(
            earlier.roll_back(&[vec![&target]], Goal::Either, Syncs::AllWell, Kept::Unknown).unwrap().outcome,
            Outcome::RolledBack
        );
        assert_eq!(std::fs::read(&path).unwrap(), [1; SIZE_BYTES]);
        // Of the next one nothing was kept, and a crash left the blocks of the earlier one in its place.
        target.write_all_at(&[2; SIZE_BYTES], 0).unwrap();
        let next = journal(&files, folder.path(), &target, [2, 3]);
        assert_eq!(next.placed_blocks().next().unwrap().0, at);
        next.file.write_all_at(&left, at).unwrap();
        // As after a sync that failed: all that the journal has is put back.
        target.write_all_at(&[9; SIZE_BYTES], 0).unwrap();
        let found = next
            .roll_back(&[vec![&target]], Goal::Either, Syncs::AllWell, Kept::Unknown)
            .unwrap_err()
            .to_string();
        assert!(found.contains("1 of its blocks are damaged"), "{found}");
        assert_eq!(std::fs::read(&path).unwrap(), [9; SIZE_BYTES]);
    }

    #[test]
    fn what_another_program_writes_meanwhile_is_no_reason_to_keep_the_journal() {
        let (folder, files, path, target) = file_of(7);
        let told = Told { progress: &|_| (), stop: &|| Ok(()) };
        // The first change was surveyed when there were ones.
        let made = || journal(&files, folder.path(), &target, [1, 2]);
        let kept_then = |journal: &Journal, kept| {
            let cover = Cover::default();
            let error = journal.keep(&[&target], &cover, &told).unwrap_err();
            assert!(matches!(error, CheckpointError::Changed { .. }), "{error}");
            assert_eq!(cover.kept(), Kept::Bytes(0));
            journal.roll_back(&[vec![&target]], Goal::Either, Syncs::AllWell, kept)
        };
        let refused = kept_then(&made(), Kept::Unknown).unwrap_err();
        assert!(matches!(refused, CheckpointError::Recovery { .. }), "{refused}");
        std::fs::remove_file(folder.path().join("journal")).unwrap();
        assert_eq!(kept_then(&made(), Kept::Bytes(0)).unwrap().outcome, Outcome::RolledBack);
        assert_eq!(std::fs::read(&path).unwrap(), [7; SIZE_BYTES]);
        assert!(!folder.path().join("journal").exists());
    }

    #[test]
    fn a_journal_may_be_read_by_those_who_may_read_all_that_it_holds() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, files, path, target) = file_of(1);
        let (_other_folder, _, other_path, other) = file_of(1);
        let cases = [
            ([0o600, 0o600], 0o600),
            ([0o664, 0o664], 0o664),
            ([0o755, 0o755], 0o644),
            // In either order, and where neither is the narrower one.
            ([0o664, 0o640], 0o640),
            ([0o640, 0o664], 0o640),
            ([0o640, 0o604], 0o600),
        ];
        for (modes, expected) in cases {
            for (path, mode) in [&path, &other_path].into_iter().zip(modes) {
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            let made = journal_of(&files, folder.path(), &[&target, &other], [1, 2]);
            assert_eq!(made.file.about().unwrap().mode, expected, "{modes:?} in decimal");
            made.remove(Outcome::Untouched).unwrap();
        }
    }

    #[test]
    fn whoever_waits_for_a_keeper_hears_that_he_is_gone() {
        let cover = Cover::default();
        std::thread::scope(|scope| {
            let near = scope.spawn(|| cover.wait_for(10));
            let far = scope.spawn(|| cover.wait_for(11));
            let keeper = Keeper(&cover);
            cover.grow(4);
            cover.grow(6);
            assert!(near.join().unwrap());
            drop(keeper);
            assert!(!far.join().unwrap());
        });
        assert!(cover.wait_for(10) && !cover.wait_for(11));
    }
}
