//! Whether files are what a journal was written for, asked of their bytes.

use std::io;

use super::super::blocks::{BlockHash, digest_of_blocks};
use super::super::disk::{File, PAGE_BYTES};
use super::super::journal::{Block, Extent, Journal};
use super::super::restore::{Standing, standing};

impl Journal {
    /// Whether those of the targets that are asked about, by their numbers, are all in one of the two states, or are
    /// what a kill leaves.
    pub(super) fn is_known(&self, targets: &[&File], is_asked: impl Fn(usize) -> bool) -> io::Result<bool> {
        Ok(standing(&self.header, targets, &is_asked)? != Standing::Between
            || self.is_half_way(targets, &is_asked)?)
    }

    /// Whether the target of this number, a copy of a file that is in hand as well, has to come to the same state.
    ///
    /// A copy of a whole model is a model of its own, and left as it is if it is in one of the two states.
    pub(super) fn is_in_step(&self, targets: &[&File], number: usize) -> io::Result<bool> {
        let is_asked = |file| file == number;
        match standing(&self.header, targets, is_asked)? {
            Standing::Between => self.is_half_way(targets, is_asked),
            Standing::Start | Standing::End => Ok(targets.len() > 1),
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
