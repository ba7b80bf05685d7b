//! Packs of git objects: what each of them lists, and a database of one alone.

use std::collections::BTreeSet;

use git2::{Odb, Oid};

use super::error::StoreError;
use super::objects::odb_alone;
use super::{Store, lfs, passing_folder};
use crate::checkpoint::PassingFolder;

/// A pack, by the name of its file.
pub(super) struct Pack {
    pub(super) name: String,
    /// What its index lists.
    pub(super) objects: BTreeSet<Oid>,
    /// Why its index cannot be read.
    pub(super) problem: Option<&'static str>,
}

/// A database of one pack alone, so that no other copy of an object answers for the one in it.
pub(super) struct Apart {
    pub(super) odb: Odb<'static>,
    _folder: PassingFolder,
}

/// The ids in a pack's index, version 2: magic, version, 256 running totals, then the ids in order.
pub(super) fn listed_in(index: &[u8]) -> Result<BTreeSet<Oid>, &'static str> {
    const START: &[u8] = b"\xfftOc\0\0\0\x02";
    const IDS_OFFSET: usize = 8 + 256 * 4;
    if !index.starts_with(START) {
        return Err("it is no index of version 2");
    }
    // Git writes numbers with the highest byte first.
    let total = |number: usize| {
        let bytes = index.get(8 + 4 * number..12 + 4 * number)?;
        Some(bytes.iter().fold(0_usize, |total, byte| total << 8 | usize::from(*byte)))
    };
    let totals: Option<Vec<usize>> = (0..256).map(total).collect();
    let totals = totals.ok_or("it is cut off")?;
    if !totals.is_sorted() {
        return Err("its totals do not rise");
    }
    let count = totals[255];
    let ids = index.get(IDS_OFFSET..IDS_OFFSET + 20 * count).ok_or("it is cut off")?;
    // Each id is followed by a checksum and an offset elsewhere, and all of it by two hashes.
    if index.len() < IDS_OFFSET + 28 * count + 40 {
        return Err("it is cut off");
    }
    ids.chunks_exact(20).map(|id| Oid::from_bytes(id).map_err(|_| "it has no ids")).collect()
}

impl Pack {
    pub(super) fn open(&self, store: &Store) -> Result<Apart, StoreError> {
        let git = store.git_folder();
        let folder = passing_folder(git)?;
        let objects = folder.path().join("objects");
        let (there, here) =
            (git.join("objects/pack").join(&self.name), objects.join("pack").join(&self.name));
        lfs::create_folder(&objects.join("pack"))?;
        for ending in ["pack", "idx"] {
            let (there, here) = (there.with_extension(ending), here.with_extension(ending));
            std::fs::hard_link(&there, &here).map_err(StoreError::io(&there, "link"))?;
        }
        Ok(Apart { odb: odb_alone(&objects, &format!("open {}", self.name))?, _folder: folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_lists_its_ids_where_it_is_whole_and_nothing_where_it_is_not() {
        let mut index = b"\xfftOc\0\0\0\x02".to_vec();
        let total = |first: u8| u8::from(first >= 0x10) + u8::from(first >= 0x20);
        (0..=255).for_each(|first| index.extend([0, 0, 0, total(first)]));
        index.extend([[0x10; 20], [0x20; 20]].concat());
        index.extend([0; 2 * 8 + 40]);
        let ids = [0x10, 0x20].map(|byte| Oid::from_bytes(&[byte; 20]).unwrap());
        assert_eq!(listed_in(&index), Ok(BTreeSet::from(ids)));
        for size in 8..index.len() {
            assert_eq!(listed_in(&index[..size]), Err("it is cut off"), "{size}");
        }
        let with = |at: usize, byte: u8| {
            let mut index = index.clone();
            index[at] = byte;
            listed_in(&index).unwrap_err()
        };
        assert_eq!(with(7, 1), "it is no index of version 2");
        assert_eq!(with(8 + 4 * 0x15 + 3, 3), "its totals do not rise");
    }
}
