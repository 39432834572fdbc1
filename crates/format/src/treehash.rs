//! BLAKE3 of a file whose blocks arrive in any order.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks in which every aligned power-of-two run of chunks is
//! a subtree of its own (BLAKE3 paper, section 2.1), so blocks can be hashed where they are read
//! and merged later. The result is the plain BLAKE3 hash of the file.

use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};

/// BLAKE3 of a file, collected block by block in any order.
#[derive(Clone, Debug)]
pub struct TreeHash {
    file_len: u64,
    block_len: u64,
    blocks: Vec<Option<ChainingValue>>,
    /// Set instead of `blocks` when the file is a single block, which is the root itself.
    whole: Option<blake3::Hash>,
}

impl TreeHash {
    /// For a file of `file_len` bytes in blocks of `block_len`, a power of two of at least 1024.
    ///
    /// # Panics
    /// If `block_len` is not such a number.
    pub fn new(file_len: u64, block_len: u64) -> Self {
        assert!(block_len.is_power_of_two() && block_len >= blake3::CHUNK_LEN as u64);
        let count = usize::try_from(file_len.div_ceil(block_len)).unwrap_or(usize::MAX);
        Self { file_len, block_len, blocks: vec![None; count], whole: None }
    }

    /// Number of blocks, the last one perhaps short. An empty file has none.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Byte range of a block.
    pub fn block_range(&self, block: usize) -> std::ops::Range<u64> {
        let start = block as u64 * self.block_len;
        start..(start + self.block_len).min(self.file_len)
    }

    /// Whether a block has been hashed.
    pub fn has(&self, block: usize) -> bool {
        self.blocks[block].is_some()
    }

    /// Hashes the whole blocks inside `bytes`, which lie at `offset` of the file.
    ///
    /// A block at the edge that `bytes` holds only in part is left for another call.
    pub fn update(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        let mut block = usize::try_from(offset.div_ceil(self.block_len)).unwrap_or(usize::MAX);
        while block < self.blocks.len() && self.block_range(block).end <= end {
            let range = self.block_range(block);
            let (from, to) = ((range.start - offset) as usize, (range.end - offset) as usize);
            self.insert(block, &bytes[from..to]);
            block += 1;
        }
    }

    fn insert(&mut self, block: usize, bytes: &[u8]) {
        if self.blocks.len() == 1 {
            self.whole = Some(blake3::hash(bytes));
        }
        self.blocks[block] = Some(chaining_value(bytes, self.block_range(block).start));
    }

    /// A block's chaining value, to be kept across a restart.
    pub fn block(&self, block: usize) -> Option<ChainingValue> {
        self.blocks[block]
    }

    /// Takes a chaining value kept from before. Single-block files are not kept: hash them again.
    pub fn restore(&mut self, block: usize, value: ChainingValue) {
        if self.blocks.len() > 1 {
            self.blocks[block] = Some(value);
        }
    }

    /// The file's BLAKE3 hash; `None` while blocks are missing.
    pub fn finalize(&self) -> Option<blake3::Hash> {
        match self.blocks.len() {
            0 => Some(blake3::hash(&[])),
            1 => self.whole,
            count => {
                let values: Option<Vec<_>> = self.blocks.iter().copied().collect();
                let values = values?;
                let left = left_subtree(count);
                let (a, b) = (merge(&values[..left]), merge(&values[left..]));
                Some(merge_subtrees_root(&a, &b, Mode::Hash))
            }
        }
    }
}

/// Chaining value of the block that starts at `offset` of its file.
pub fn chaining_value(bytes: &[u8], offset: u64) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// Blocks in the left subtree of `count > 1`: the largest power of two below `count`.
const fn left_subtree(count: usize) -> usize {
    1 << (usize::BITS - 1 - (count - 1).leading_zeros())
}

fn merge(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_subtree(values.len()));
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn paint(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    proptest! {
        #[test]
        fn any_order_of_ranges_gives_the_plain_hash(len in 0usize..20_000, cuts in prop::collection::vec(0usize..20_000, 0..8), reverse: bool) {
            let bytes = paint(len);
            let mut tree = TreeHash::new(len as u64, 2048);
            let mut ranges: Vec<_> = cuts.iter().map(|c| c.min(&len) / 2048 * 2048).collect();
            ranges.extend([0, len]);
            ranges.sort_unstable();
            let mut ranges: Vec<_> = ranges.windows(2).map(|w| w[0]..w[1]).collect();
            if reverse { ranges.reverse(); }
            for range in ranges {
                tree.update(range.start as u64, &bytes[range.clone()]);
            }
            prop_assert_eq!(tree.finalize(), Some(blake3::hash(&bytes)));
        }
    }

    #[test]
    fn a_missing_block_gives_no_hash() {
        let mut tree = TreeHash::new(5000, 1024);
        tree.update(0, &paint(4000));
        assert!(tree.has(2) && !tree.has(3));
        assert_eq!(tree.finalize(), None);
    }
}
