//! Whether files are what a journal was written for, asked of their bytes.

use std::io;

use super::super::blocks::{BlockHash, digest_of_blocks};
use super::super::disk::{File, PAGE_BYTES};
use super::super::journal::{Block, Extent, Journal};
use super::super::restore::{Position, position};

impl Journal {
    /// Whether those of the targets that are asked about, by their numbers, are all in one of the two states, or are
    /// what a kill leaves.
    pub(super) fn is_known(&self, targets: &[&File], is_asked: impl Fn(usize) -> bool) -> io::Result<bool> {
        Ok(position(&self.header, targets, &is_asked)? != Position::Between
            || self.is_half_way(targets, &is_asked)?)
    }

    /// Whether the target of this number, a copy of a file that is in hand as well, has to come to the same state.
    ///
    /// A copy of a whole model is a model of its own, and left as it is if it is in one of the two states.
    pub(super) fn is_in_step(&self, targets: &[&File], number: usize) -> io::Result<bool> {
        let is_asked = |file| file == number;
        match position(&self.header, targets, is_asked)? {
            Position::Between => self.is_half_way(targets, is_asked),
            Position::Start | Position::End => Ok(targets.len() > 1),
        }
    }

    /// Whether the targets that are asked about are what a kill leaves, asked of their bytes, for inodes change: where
    /// a folder was copied with its journal, restored from a backup, or lies on an overlay that was mounted again.
    ///
    /// The whole blocks of the journal have to give the tensors at their start. That says nothing about the bytes under
    /// them, which may be another model's and the only ones. So each tensor has to be at one of its two digests, which
    /// whoever has the patch can make again, but for the one that was being written, whose end is still as it was; in
    /// the order in which they are written all before that one are changed, and none behind it is.
    fn is_half_way(&self, targets: &[&File], is_asked: impl Fn(usize) -> bool) -> io::Result<bool> {
        let mut blocks = self.placed_blocks();
        let mut found = Vec::new();
        for (file, extent) in self.header.extents() {
            let placed: Vec<_> = blocks.by_ref().take(extent.block_count()).collect();
            if !is_asked(file) {
                continue;
            }
            let Some(stage) = self.stage(targets[file], extent, &placed)? else { return Ok(false) };
            // A tensor that is not changed says nothing about how far the change has come.
            if extent.start != extent.end {
                found.push((&extent.tensor, stage));
            }
        }
        if found.iter().all(|(_, stage)| *stage != Stage::Begun) {
            return Ok(true);
        }
        // Tensors are written in the order of their names, whichever files they are in.
        found.sort_unstable();
        let stages = found.iter().map(|(_, stage)| *stage);
        let begun = stages.clone().filter(|stage| *stage == Stage::Begun).count();
        Ok(begun == 1 && stages.is_sorted())
    }

    /// How far the change has come with a tensor whose old bytes are in these blocks; none if it is at no stage of it.
    fn stage(&self, target: &File, extent: &Extent, placed: &[(u64, Block)]) -> io::Result<Option<Stage>> {
        let (mut now, mut old) = (Vec::new(), Vec::new());
        // Of the last block that differs, the end of what does.
        let (mut first_other, mut end_of_other) = (None, 0);
        for &(at, block) in placed {
            let mut bytes = vec![0; block.size_bytes as usize];
            target.read_exact_at(&mut bytes, block.offset)?;
            now.push(BlockHash::of(block.tensor_offset, &bytes));
            let Some(old_bytes) = self.old_bytes(at, block)? else {
                old.push(BlockHash::of(block.tensor_offset, &bytes));
                continue;
            };
            old.push(BlockHash::of(block.tensor_offset, &old_bytes));
            let differs = |index: &usize| bytes[*index] != old_bytes[*index];
            let first = (0..bytes.len()).find(differs);
            if let (Some(first), Some(last)) = (first, (0..bytes.len()).rfind(differs)) {
                first_other = first_other.or(Some(block.tensor_offset + first as u64));
                end_of_other = block.tensor_offset + last as u64 + 1;
            }
        }
        let size_bytes = extent.size_bytes;
        let now = digest_of_blocks(size_bytes, &now);
        let is_begun = extent.start != extent.end
            && first_other.is_some_and(|first| first < PAGE_BYTES as u64)
            && size_bytes - end_of_other >= PAGE_BYTES as u64;
        Ok(if digest_of_blocks(size_bytes, &old) != extent.start {
            None
        } else if now == extent.end {
            Some(Stage::Written)
        } else if now == extent.start {
            Some(Stage::Waiting)
        } else {
            is_begun.then_some(Stage::Begun)
        })
    }
}

/// How far a change has come with a tensor; in this order from the first tensor to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Written,
    Begun,
    Waiting,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::super::CheckpointError;
    use super::super::super::blocks::BLOCK_BYTES;
    use super::super::super::disk::{Access, Files, Lock, Locked};
    use super::super::super::journal::{Header, journal_of};
    use super::super::super::keep::{Cover, Told};
    use super::super::super::restore::Outcome;
    use super::super::recover;
    use super::super::tests::{TENSOR_BYTES, goes_back, replace, stopped, tensors, waits};
    use super::*;
    use crate::digest::TensorDigest;

    const MODEL: &str = "model.safetensors";

    /// Spoils the old bytes of the tensor of this number.
    fn damage(journal: &Journal, number: usize) {
        let (at, _) = journal.placed_blocks().nth(number).unwrap();
        let mut bytes = std::fs::read(&journal.path).unwrap();
        bytes[at as usize] ^= 1;
        std::fs::write(&journal.path, bytes).unwrap();
    }

    /// A journal about these files, which are at their start, with all old bytes.
    fn kept(paths: &[&Path], header: Header) -> Journal {
        let files = Files::real();
        let opened = paths.iter().map(|path| files.open(path, Access::ReadWrite).unwrap());
        let opened = opened.collect::<Vec<_>>();
        let targets = Vec::from_iter(&opened);
        let journal = Journal::create(&files, &journal_of(paths[0]), header, &targets).unwrap();
        journal.keep(&targets, &Cover::default(), &Told { progress: &|_| (), stop: &|| Ok(()) }).unwrap();
        journal
    }

    /// Whether a copy of a model of one tensor is taken for one that was killed, where `new` bytes are others.
    fn is_taken_for_begun(states: &str, new: std::ops::Range<usize>) -> bool {
        let (folder, journal) = stopped(&[(MODEL, states)]);
        let path = folder.path().join(MODEL);
        let mut bytes = tensors(0, "S");
        bytes[new.clone()].copy_from_slice(&tensors(0, "E")[new]);
        std::fs::write(&path, bytes).unwrap();
        replace(&path);
        if recover(&path).is_err() {
            assert!(waits(&path).starts_with("if this is a copy of the model"));
            return false;
        }
        assert!(std::fs::read(&path).unwrap() == tensors(0, "S") && !journal.path.exists());
        true
    }

    #[test]
    fn only_a_tensor_that_was_being_written_from_its_first_page_on_is_one_that_was_begun() {
        const PAGE: usize = PAGE_BYTES;
        assert_eq!(TENSOR_BYTES, 3 * PAGE);
        for new in [0..1, PAGE - 1..PAGE, 0..2 * PAGE, PAGE - 1..2 * PAGE] {
            assert!(is_taken_for_begun("B", new.clone()), "{new:?}");
        }
        for new in [PAGE..PAGE + 1, PAGE..2 * PAGE, 0..2 * PAGE + 1, 3 * PAGE - 1..3 * PAGE] {
            assert!(!is_taken_for_begun("B", new.clone()), "{new:?}");
        }
        // Nobody begins with what stays as it is.
        assert!(!is_taken_for_begun("=", 0..PAGE));
    }

    #[test]
    fn no_two_tensors_were_begun() {
        let (folder, _journal) = stopped(&[(MODEL, "EBBS")]);
        let path = folder.path().join(MODEL);
        replace(&path);
        assert!(waits(&path).starts_with("if this is a copy of the model"));
    }

    #[test]
    fn tensors_are_begun_in_the_order_of_their_names_whichever_files_they_are_in() {
        let (folder, first) = stopped(&[("one.safetensors", "S"), ("two.safetensors", "SS")]);
        let [one, two] = ["one.safetensors", "two.safetensors"].map(|name| folder.path().join(name));
        let mut header = first.header.clone();
        header.files.reverse();
        first.remove(Outcome::Untouched).unwrap();
        let journal = kept(&[&two, &one], header);
        std::fs::write(&one, tensors(0, "E")).unwrap();
        std::fs::write(&two, tensors(1, "BS")).unwrap();
        replace(&one);
        replace(&two);
        goes_back(&one, &journal.path, &[&one, &two]);
        assert!(std::fs::read(&two).unwrap() == tensors(1, "SS"));
    }

    #[test]
    fn a_tensor_may_have_been_begun_through_several_of_its_blocks() {
        let (folder, first) = stopped(&[(MODEL, "S")]);
        let path = folder.path().join(MODEL);
        first.remove(Outcome::Untouched).unwrap();
        let written = BLOCK_BYTES as usize + PAGE_BYTES;
        let [old, new] = [1, 2].map(|byte| vec![byte; written + PAGE_BYTES]);
        std::fs::write(&path, &old).unwrap();
        let mut header = first.header.clone();
        header.files[0].size_bytes = old.len() as u64;
        let extent = &mut header.files[0].extents[0];
        extent.size_bytes = old.len() as u64;
        [extent.start, extent.end] = [&old, &new].map(|bytes| TensorDigest::of(bytes));
        let journal = kept(&[&path], header);
        std::fs::write(&path, [&new[..written], &old[written..]].concat()).unwrap();
        replace(&path);
        goes_back(&path, &journal.path, &[&path]);
        assert!(std::fs::read(&path).unwrap() == old);
    }

    #[test]
    fn a_copy_of_all_new_bytes_needs_no_old_ones() {
        let (folder, journal) = stopped(&[(MODEL, "EEE")]);
        let path = folder.path().join(MODEL);
        damage(&journal, 0);
        replace(&path);
        let [recovered] = &recover(&path).unwrap()[..] else { panic!("one journal") };
        assert_eq!(recovered.outcome, Outcome::Finished);
        assert!(std::fs::read(&path).unwrap() == tensors(0, "EEE"));
    }

    #[test]
    fn a_file_of_the_journals_own_need_not_show_what_its_copy_has_to() {
        let (folder, journal) = stopped(&[("one.safetensors", "X"), ("two.safetensors", "B")]);
        let [one, two] = ["one.safetensors", "two.safetensors"].map(|name| folder.path().join(name));
        replace(&two);
        goes_back(&one, &journal.path, &[&one, &two]);
        // Nor where it has another name now.
        let (folder, journal) = stopped(&[(MODEL, "XB")]);
        let moved = folder.path().join("moved.safetensors");
        std::fs::rename(folder.path().join(MODEL), &moved).unwrap();
        goes_back(&moved, &journal.path, &[&moved]);
    }

    #[test]
    fn the_copy_of_one_shard_goes_where_the_others_go() {
        let (folder, journal) = stopped(&[("one.safetensors", "E"), ("two.safetensors", "B")]);
        let [one, two, orig] =
            ["one.safetensors", "two.safetensors", "two.orig"].map(|name| folder.path().join(name));
        std::fs::rename(&two, &orig).unwrap();
        std::fs::write(&two, tensors(1, "E")).unwrap();
        goes_back(&one, &journal.path, &[&one, &orig, &two]);
        assert!([two, orig].iter().all(|path| std::fs::read(path).unwrap() == tensors(1, "S")));
    }

    #[test]
    fn a_copy_goes_back_whatever_was_made_of_the_file_itself_and_nothing_where_it_cannot() {
        let (folder, journal) = stopped(&[(MODEL, "EBS")]);
        let (path, orig) = (folder.path().join(MODEL), folder.path().join("orig"));
        std::fs::rename(&path, &orig).unwrap();
        std::fs::write(&path, tensors(0, "EBS")).unwrap();
        std::fs::write(&orig, tensors(0, "SSS")).unwrap();
        goes_back(&path, &journal.path, &[&path, &orig]);
        assert!(std::fs::read(&path).unwrap() == tensors(0, "SSS"));
        let (folder, journal) = stopped(&[("one.safetensors", "E"), ("two.safetensors", "S")]);
        let [one, two] = ["one.safetensors", "two.safetensors"].map(|name| folder.path().join(name));
        std::fs::rename(&two, folder.path().join("orig")).unwrap();
        std::fs::write(&two, tensors(1, "E")).unwrap();
        damage(&journal, 1);
        let refused = recover(&one).unwrap_err().to_string();
        assert!(refused.contains("1 of its blocks are damaged"), "{refused}");
        assert!(std::fs::read(&one).unwrap() == tensors(0, "E"));
    }

    #[test]
    fn what_was_moved_elsewhere_is_found_by_any_link_that_leads_there() {
        let (folder, journal) = stopped(&[(MODEL, "EBS")]);
        let moved = folder.path().join("elsewhere/weights");
        std::fs::create_dir(moved.parent().unwrap()).unwrap();
        std::fs::rename(folder.path().join(MODEL), &moved).unwrap();
        let link = folder.path().join("link.safetensors");
        std::os::unix::fs::symlink(&moved, &link).unwrap();
        goes_back(&link, &journal.path, &[&moved]);
    }

    #[test]
    fn the_journal_of_another_model_in_one_folder_is_left_where_it_is() {
        let (folder, journal) = stopped(&[(MODEL, "EBS")]);
        let (path, other) = (folder.path().join(MODEL), folder.path().join("other.safetensors"));
        let untouched = |other: &Path, journal: &Path| {
            std::fs::write(other, tensors(7, "SS")).unwrap();
            assert_eq!(recover(other).unwrap(), []);
            assert!(journal.exists() && std::fs::read(other).unwrap() == tensors(7, "SS"));
        };
        untouched(&other, &journal.path);
        assert!(std::fs::read(&path).unwrap() == tensors(0, "EBS"));
        // Nor does it count that a model has the name of a journal, and not its size.
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&journal.path, journal_of(&other)).unwrap();
        untouched(&other, &journal_of(&other));
    }

    #[test]
    fn a_model_that_somebody_works_on_is_left_to_him() {
        let (folder, journal) = stopped(&[(MODEL, "EBS")]);
        let path = folder.path().join(MODEL);
        let held = Files::real().open(&path, Access::ReadWrite).unwrap();
        assert!(matches!(held.lock(Lock::Exclusive), Ok(Locked::Held)));
        assert!(matches!(recover(&path), Err(CheckpointError::Busy { .. })));
        assert!(std::fs::read(&path).unwrap() == tensors(0, "EBS"));
        drop(held);
        goes_back(&path, &journal.path, &[&path]);
    }
}
