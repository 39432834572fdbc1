//! Reads checkpoint bytes once: what a unit needs, and on the way the hashes of checkpoint files.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::{AlignedBuf, ReadFile};
use shardwright_format::manifest::Hash;
use shardwright_format::treehash::{TreeHash, chaining_value};
use shardwright_format::{FormatError, Refusal, Result as FormatResult, SourceView};

use super::ConvertOptions;
use super::memory::Buffers;
use crate::error::Result;

/// Bytes of each tensor by which checkpoints of the same shapes are told apart.
const SAMPLE_BYTES: u64 = 4096;

/// Hashes of all bytes of the checkpoint files, in their order, read apart from anything else.
pub fn hashes(checkpoint: &Checkpoint, options: &ConvertOptions<'_>) -> Result<Vec<Hash>> {
    let source = Source::new(checkpoint, &options.buffers)?;
    source.hash_rest(options.threads, None)?;
    source.finalize_all()
}

/// A checkpoint's bytes and the hashes of its files in the making.
pub struct Source<'a> {
    pub checkpoint: &'a Checkpoint,
    /// Opened once more, so that read-ahead here follows what is read here.
    files: Vec<ReadFile>,
    trees: Vec<Mutex<TreeHash>>,
    /// Bytes of a hashed block.
    pub block: u64,
    /// Bytes hashed or copied at a time.
    copy_block: u64,
    /// Bytes of all tensors, of those that are read if not all are.
    pub total: u64,
    /// Bytes of tensors read so far.
    pub bytes_read: AtomicU64,
}

/// Hashed blocks of one file that follow one another, as the ledger has them too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashedBlocks {
    /// The checkpoint file's number.
    pub file: usize,
    /// The first block's number.
    pub first: usize,
    /// Their chaining values; of a file of one block its hash.
    pub values: Vec<Hash>,
}

/// Which blocks of each file are meant.
pub type BlockSet = Vec<Vec<bool>>;

impl<'a> Source<'a> {
    /// Opens the checkpoint's files for hashing reads.
    pub fn new(checkpoint: &'a Checkpoint, buffers: &Buffers) -> Result<Self> {
        let file_bytes = checkpoint.files().iter().map(|f| f.file.len()).sum();
        let block = buffers.source_block(file_bytes);
        let files = checkpoint.files().iter();
        let files: FormatResult<Vec<_>> = files.map(|f| f.file.reopen()).collect();
        let trees = checkpoint.files().iter();
        let trees = trees
            .map(|f| Mutex::new(TreeHash::new(f.file.len(), block)))
            .collect();
        let total = checkpoint.stored().values().map(|stored| stored.len).sum();
        let (files, copy_block, bytes_read) = (files?, buffers.copy_block, AtomicU64::new(0));
        Ok(Self { checkpoint, files, trees, block, copy_block, total, bytes_read })
    }

    /// A refusal of a tensor's contents.
    pub fn refuse(&self, view: &SourceView, detail: Refusal) -> FormatError {
        let path = self.checkpoint.tensors().get(&view.tensor);
        let path = path.map_or(self.checkpoint.root(), |info| self.checkpoint.path_of(info));
        FormatError::tensor(path, &view.tensor, detail)
    }

    fn len(&self, file: usize) -> u64 {
        self.checkpoint.files()[file].file.len()
    }

    fn tree(&self, file: usize) -> MutexGuard<'_, TreeHash> {
        self.trees[file]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read_at(&self, file: usize, offset: u64, out: &mut [u8]) -> FormatResult<()> {
        self.files[file].read_at(offset, out)
    }

    /// Tells the system what will be read soon; a hint that may be ignored.
    pub fn prefetch(&self, file: usize, range: &Range<u64>) {
        self.files[file].will_need(range);
    }

    /// Hashes the blocks that start in `range` and lie in `bytes`, which start at `offset` of the
    /// file, and adds them to `blocks`.
    fn hash(&self, file: usize, range: &Range<u64>, bytes: &[u8], blocks: &mut Vec<HashedBlocks>) {
        if self.tree(file).num_blocks() < 2 {
            return;
        }
        for block in range.start.div_ceil(self.block)..range.end.div_ceil(self.block) {
            let start = block * self.block;
            let end = (start + self.block).min(self.len(file));
            let (from, to) = ((start - range.start) as usize, (end - range.start) as usize);
            let known = self.tree(file).block(block as usize);
            let value = known.unwrap_or_else(|| {
                let value = chaining_value(&bytes[from..to], start);
                self.tree(file).restore(block as usize, value);
                value
            });
            add(blocks, file, block as usize, Hash(value));
        }
    }

    /// Takes in blocks hashed before an interruption, which [`Self::verify`] found unchanged.
    pub fn restore(&self, blocks: &[HashedBlocks]) {
        for run in blocks {
            let mut tree = self.tree(run.file);
            for (block, value) in (run.first..).zip(&run.values) {
                tree.restore(block, value.0);
            }
        }
    }

    /// Bytes of the file that a run speaks of; none if the file has not that many.
    pub fn extent_of(&self, run: &HashedBlocks) -> Option<Range<u64>> {
        let blocks = self.trees.get(run.file).map(|_| self.tree(run.file))?;
        let end = run.first.checked_add(run.values.len())?;
        let start = u64::try_from(run.first).ok()?.checked_mul(self.block)?;
        let inside = run.first < end && end <= blocks.num_blocks();
        inside.then(|| start..blocks.block_range(end - 1).end)
    }

    /// Whether the blocks of a run are still what they were, each read and hashed again.
    /// Those of a pinned revision are: the ledger's first line names it.
    pub fn verify(&self, run: &HashedBlocks, buf: &mut Vec<u8>) -> Result<bool> {
        let Some(extent) = self.extent_of(run) else { return Ok(false) };
        if self.files[run.file].revision().is_some() {
            return Ok(true);
        }
        let block = self.block as usize;
        let step = self.copy_block.max(self.block);
        let mut expected = run.values.iter();
        for start in extent.clone().step_by(step as usize) {
            buf.resize(step.min(extent.end - start) as usize, 0);
            self.read_at(run.file, start, buf)?;
            let mut found = (start..).step_by(block).zip(buf.chunks(block));
            if !found.all(|(at, bytes)| expected.next() == Some(&Hash(chaining_value(bytes, at)))) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hash of some ranges of a file, one after the other; of a file of a pinned revision that revision's hash.
    pub fn hash_ranges(
        &self,
        file: usize,
        ranges: &[Range<u64>],
        buf: &mut Vec<u8>,
    ) -> Result<Hash> {
        if let Some(revision) = self.files[file].revision() {
            return Ok(blake3::hash(revision.as_bytes()).into());
        }
        let mut hasher = blake3::Hasher::new();
        for range in ranges {
            for start in (range.start..range.end).step_by(self.copy_block as usize) {
                buf.resize(self.copy_block.min(range.end - start) as usize, 0);
                self.read_at(file, start, buf)?;
                hasher.update(buf);
            }
        }
        Ok(hasher.finalize().into())
    }

    /// Blocks of a file.
    pub fn num_blocks(&self, file: usize) -> usize {
        self.tree(file).num_blocks()
    }

    /// A hash per file of the middle of every tensor in it: two checkpoints of the same names and shapes
    /// differ there. Of a file of a pinned revision that revision's hash.
    pub fn sample(&self) -> Result<Vec<Hash>> {
        let mut ranges = vec![Vec::new(); self.files.len()];
        for stored in self.checkpoint.stored().values() {
            let len = stored.len.min(SAMPLE_BYTES);
            let start = stored.offset + (stored.len - len) / 2;
            ranges[stored.file].push(start..start + len);
        }
        let (mut buf, files) = (Vec::new(), ranges.iter().enumerate());
        files
            .map(|(file, ranges)| self.hash_ranges(file, ranges, &mut buf))
            .collect()
    }

    /// Every block of every file that has been hashed.
    pub fn hashed(&self) -> Vec<HashedBlocks> {
        let mut found = Vec::new();
        for file in 0..self.trees.len() {
            let count = self.num_blocks(file);
            if count == 1 {
                let whole = self.tree(file).finalize();
                found.extend(whole.map(|hash| HashedBlocks {
                    file,
                    first: 0,
                    values: vec![hash.into()],
                }));
                continue;
            }
            for block in 0..count {
                if let Some(value) = self.tree(file).block(block) {
                    add(&mut found, file, block, Hash(value));
                }
            }
        }
        found
    }

    /// Every stretch of blocks that nobody hashed, of `wanted` if not of all, in pieces of
    /// [`Self::copy_block`] and less.
    fn unhashed(&self, wanted: Option<&BlockSet>) -> Vec<(usize, Range<u64>)> {
        let mut found: Vec<(usize, Range<u64>)> = Vec::new();
        for file in 0..self.trees.len() {
            let tree = self.tree(file);
            let wanted = |block: &usize| wanted.is_none_or(|set| set[file][*block]);
            let missing = |block: &usize| !tree.has(*block) && wanted(block);
            for block in (0..tree.num_blocks()).filter(missing) {
                let range = tree.block_range(block);
                match found.last_mut() {
                    Some((f, last))
                        if *f == file
                            && last.end == range.start
                            && range.end - last.start <= self.copy_block =>
                    {
                        last.end = range.end;
                    }
                    _ => found.push((file, range)),
                }
            }
        }
        found
    }

    /// Reads and hashes one of [`Self::unhashed`].
    fn hash_stretch(&self, file: usize, range: &Range<u64>, buf: &mut Vec<u8>) -> Result<()> {
        buf.resize((range.end - range.start) as usize, 0);
        self.read_at(file, range.start, buf)?;
        if self.tree(file).num_blocks() < 2 {
            self.tree(file).update(range.start, buf);
        } else {
            self.hash(file, range, buf, &mut Vec::new());
        }
        Ok(())
    }

    /// Hashes what no unit read, of `wanted` if not of all: headers, unused tensors, matrices gathered
    /// piecemeal.
    pub fn hash_rest(&self, threads: usize, wanted: Option<&BlockSet>) -> Result<()> {
        let rest = self.unhashed(wanted);
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buf = Vec::new();
            while let Some((file, range)) = rest.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.hash_stretch(*file, range, &mut buf)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|t| match t.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// The hash of each file, in their order.
    pub fn finalize_all(&self) -> Result<Vec<Hash>> {
        (0..self.files.len())
            .map(|file| self.finalize(file))
            .collect()
    }

    /// The hash of a file, every block of which has been hashed.
    pub fn finalize(&self, file: usize) -> Result<Hash> {
        let hash = self.tree(file).finalize();
        let path = self.checkpoint.files()[file].file.path();
        let hash = hash.ok_or_else(|| FormatError::file(path, "its hash is incomplete"))?;
        Ok(hash.into())
    }
}

fn add(blocks: &mut Vec<HashedBlocks>, file: usize, block: usize, value: Hash) {
    match blocks.last_mut() {
        Some(run) if run.file == file && run.first + run.values.len() == block => {
            run.values.push(value);
        }
        _ => blocks.push(HashedBlocks { file, first: block, values: vec![value] }),
    }
}

/// What no range of `holes` covers of the ranges in `of`: sorted, without overlaps.
pub fn without(mut of: Vec<Range<u64>>, mut holes: Vec<Range<u64>>) -> Vec<Range<u64>> {
    of.sort_by_key(|range| range.start);
    holes.sort_by_key(|range| range.start);
    let (mut left, mut done) = (Vec::new(), 0);
    for range in of {
        let mut at = range.start.max(done);
        for hole in holes.iter().filter(|h| h.end > range.start) {
            if hole.start >= range.end {
                break;
            }
            if at < hole.start {
                left.push(at..hole.start);
            }
            at = at.max(hole.end);
        }
        if at < range.end {
            left.push(at..range.end);
        }
        done = done.max(range.end);
    }
    left
}

/// One thread's reader: a window of a file, and the blocks hashed for the unit at hand.
pub struct Reader<'a> {
    pub source: &'a Source<'a>,
    file: usize,
    window: Range<u64>,
    bytes: AlignedBuf,
    /// Blocks hashed since [`Self::take_blocks`].
    blocks: Vec<HashedBlocks>,
}

impl<'a> Reader<'a> {
    pub fn new(source: &'a Source<'a>) -> Self {
        Self { source, file: 0, window: 0..0, bytes: AlignedBuf::default(), blocks: Vec::new() }
    }

    /// Blocks hashed for the unit that is complete.
    pub fn take_blocks(&mut self) -> Vec<HashedBlocks> {
        std::mem::take(&mut self.blocks)
    }

    /// The bytes of a range, hashed if they had not been.
    ///
    /// Reads on to the end of the block in which the range ends, so that each block is hashed by
    /// the one range that holds its first byte.
    pub fn read(&mut self, file: usize, range: Range<u64>) -> FormatResult<&[u8]> {
        let inside = self.window.start <= range.start && range.end <= self.window.end;
        if file != self.file || !inside {
            self.load(file, &range)?;
        }
        let from = (range.start - self.window.start) as usize;
        Ok(&self.bytes.as_slice()[from..from + (range.end - range.start) as usize])
    }

    /// Fills `out`; long pieces are hashed as by [`Self::read`], short ones are not worth reading on.
    pub fn fetch(&mut self, file: usize, offset: u64, out: &mut [u8]) -> FormatResult<()> {
        let len = out.len() as u64;
        if len < self.source.block / 4 {
            self.source.bytes_read.fetch_add(len, Ordering::Relaxed);
            return self.source.read_at(file, offset, out);
        }
        out.copy_from_slice(self.read(file, offset..offset + len)?);
        Ok(())
    }

    fn load(&mut self, file: usize, range: &Range<u64>) -> FormatResult<()> {
        let end = range
            .end
            .next_multiple_of(self.source.block)
            .min(self.source.len(file));
        self.window = 0..0;
        self.bytes.resize((end - range.start) as usize);
        self.source
            .read_at(file, range.start, self.bytes.as_mut_slice())?;
        self.source
            .hash(file, range, self.bytes.as_slice(), &mut self.blocks);
        (self.file, self.window) = (file, range.clone());
        self.source
            .bytes_read
            .fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::without;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<std::ops::Range<u64>>> {
        let range = (0u64..60, 0u64..20).prop_map(|(start, len)| start..start + len);
        proptest::collection::vec(range, 0..5)
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_no_hole_covers(of in ranges(), holes in ranges()) {
            let holds = |ranges: &[std::ops::Range<u64>], at| ranges.iter().any(|r| r.contains(&at));
            let expected: Vec<u64> =
                (0..80).filter(|at| holds(&of, *at) && !holds(&holes, *at)).collect();
            let left: Vec<u64> = without(of, holes).into_iter().flatten().collect();
            prop_assert_eq!(left, expected);
        }
    }
}
