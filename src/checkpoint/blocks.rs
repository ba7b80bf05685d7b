//! A tensor's digest by way of hashes of its blocks, which several threads may take in any order.
//!
//! BLAKE3 is the root of a tree over the bytes; a block that begins at a multiple of its own size, a power of two, is
//! one of the tree's branches. So one pass gives both what each block is checked by and what `b3sum` prints.

use blake3::hazmat::{HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

use crate::digest::{DIGEST_SIZE_BYTES, TensorDigest};

/// Size of every block but a tensor's last.
pub(super) const BLOCK_BYTES: u64 = 1 << 20;

/// What a block hashes to, at its place in its tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockHash {
    /// The chaining value of its branch.
    pub(super) branch: [u8; DIGEST_SIZE_BYTES],
    /// For the first block: the digest, should there be no other.
    alone: Option<TensorDigest>,
}

impl BlockHash {
    /// Of `bytes`, at least one, that begin `offset` bytes into a tensor, a multiple of [`BLOCK_BYTES`].
    pub(super) fn of(offset: u64, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(offset).update(bytes);
        let alone = (offset == 0).then(|| TensorDigest::finish(&hasher));
        Self { branch: hasher.finalize_non_root(), alone }
    }
}

/// The digest of a tensor of `size_bytes`, from the hashes of all its blocks in their order.
pub(super) fn digest_of_blocks(size_bytes: u64, blocks: &[BlockHash]) -> TensorDigest {
    match blocks {
        [] => TensorDigest::of(&[]),
        [only] => only.alone.unwrap_or_else(|| TensorDigest::of(&[])),
        _ => {
            let (left, right) = halves(size_bytes, blocks);
            TensorDigest::from_bytes(*merge_subtrees_root(&left, &right, Mode::Hash).as_bytes())
        }
    }
}

/// The two branches of what has at least two blocks.
fn halves(size_bytes: u64, blocks: &[BlockHash]) -> ([u8; 32], [u8; 32]) {
    let left_bytes = left_subtree_len(size_bytes);
    let (left, right) = blocks.split_at((left_bytes / BLOCK_BYTES) as usize);
    (branch(left_bytes, left), branch(size_bytes - left_bytes, right))
}

fn branch(size_bytes: u64, blocks: &[BlockHash]) -> [u8; 32] {
    if let [only] = blocks {
        return only.branch;
    }
    let (left, right) = halves(size_bytes, blocks);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_blocks_is_the_plain_hash_of_all_bytes() {
        let block = BLOCK_BYTES as usize;
        let bytes: Vec<u8> = (0..7 * block + 5).map(|index| (index % 251) as u8).collect();
        for size in
            [0, 1, 1024, block - 1, block, block + 1, 2 * block, 3 * block, 4 * block + 1, bytes.len()]
        {
            let bytes = &bytes[..size];
            let blocks = bytes.chunks(block).enumerate();
            let hashes: Vec<_> =
                blocks.map(|(index, bytes)| BlockHash::of(index as u64 * BLOCK_BYTES, bytes)).collect();
            assert_eq!(digest_of_blocks(size as u64, &hashes), TensorDigest::of(bytes), "{size} bytes");
        }
    }
}
