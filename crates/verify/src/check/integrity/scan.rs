//! One file, front to back: its hash, each shard's hash, every padding byte and every float in the
//! same pass.

use std::collections::BTreeMap;
use std::path::Path;

use shardwright_format::checkpoint::lfs_pointer;
use shardwright_format::manifest::{Extent, FileEntry, FileKind, Hash, without_returns};
use shardwright_format::{Manifest, TensorEntry, Unit};

use super::finite::{FloatRun, Floats, Wrong};
use super::ranges::overlap;
use crate::check::hashing::stream;
use crate::error::Result;
use crate::monitor::Meter;

/// What should lie where in a file.
pub(super) struct FileMap<'a> {
    pub(super) entry: &'a FileEntry,
    /// By offset, apart from each other.
    pub(super) shards: Vec<Shard>,
    /// Bytes that must be zero, by offset.
    pub(super) gaps: Vec<Gap>,
    /// Floats that must be finite, by offset.
    pub(super) floats: Vec<FloatRun>,
}

/// Bytes `start..end` are a shard.
pub(super) struct Shard {
    pub(super) unit: Unit,
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) blake3: Hash,
}

/// Bytes `start..end` belong to no shard or, inside one, to no tensor.
pub(super) struct Gap {
    pub(super) unit: Unit,
    inside: bool,
    start: u64,
    end: u64,
}

impl Gap {
    pub(super) const fn place(&self) -> &'static str {
        if self.inside { "padding between tensors" } else { "padding after the shard" }
    }
}

/// Bytes that show what a file is.
const FIRST: usize = 64;

/// What lies in a file.
pub(super) struct Scan {
    pub(super) len: u64,
    pub(super) blake3: Hash,
    /// What it is instead of the file itself, if Git LFS left that.
    pub(super) pointer: Option<String>,
    /// Its hash without any return, if it has some and is no file of shards.
    pub(super) without_returns: Option<Hash>,
    /// One per shard; none for one that the file's end cuts.
    pub(super) shards: Vec<Option<Hash>>,
    /// One per gap: the first byte that is not zero, its offset first.
    pub(super) gaps: Vec<Option<(u64, u8)>>,
    /// One per run of floats: the first that is not finite.
    pub(super) floats: Vec<Option<Wrong>>,
}

/// The map of every file of a valid manifest, in its order.
pub(super) fn file_maps(manifest: &Manifest) -> Vec<FileMap<'_>> {
    let mut by_file: BTreeMap<&str, FileMap<'_>> = manifest
        .files
        .iter()
        .map(|entry| (entry.path.as_str(), FileMap::new(entry)))
        .collect();
    for shard in manifest.shards() {
        let Some(map) = by_file.get_mut(shard.file) else { continue };
        map.add(shard.unit, shard.extent, shard.tensors);
    }
    let mut maps: Vec<_> = by_file.into_values().collect();
    maps.iter_mut().for_each(FileMap::finish);
    maps
}

impl<'a> FileMap<'a> {
    const fn new(entry: &'a FileEntry) -> Self {
        Self { entry, shards: Vec::new(), gaps: Vec::new(), floats: Vec::new() }
    }

    /// Adds a shard with its floats and the padding between its tensors.
    fn add(&mut self, unit: Unit, extent: Extent, tensors: &[TensorEntry]) {
        let Extent { offset: start, len, blake3 } = extent;
        self.shards
            .push(Shard { unit, start, end: start + len, blake3 });
        let runs = tensors
            .iter()
            .flat_map(|entry| FloatRun::from_entry(unit, extent.offset, entry));
        self.floats.extend(runs);
        let mut last = 0;
        for tensor in tensors {
            if tensor.offset > last {
                let (start, end) = (extent.offset + last, extent.offset + tensor.offset);
                self.gaps.push(Gap { unit, inside: true, start, end });
            }
            last = tensor.offset + tensor.byte_len().unwrap_or(0);
        }
    }

    /// Puts shards in order and finds the padding after each.
    fn finish(&mut self) {
        self.shards.sort_by_key(|s| s.start);
        for (i, shard) in self.shards.iter().enumerate() {
            let next = self.shards.get(i + 1).map_or(self.entry.size, |s| s.start);
            if next > shard.end {
                let (unit, start, end) = (shard.unit, shard.end, next);
                self.gaps.push(Gap { unit, inside: false, start, end });
            }
        }
        self.gaps.sort_by_key(|g| g.start);
        self.floats.sort_by_key(FloatRun::start);
    }
}

/// Reads a file of `dir` once.
pub(super) fn scan(dir: &Path, map: &FileMap<'_>, meter: &Meter<'_>) -> Result<Scan> {
    let mut scanner = Scanner::new(map);
    stream(&dir.join(&map.entry.path), meter, |offset, bytes| scanner.update(offset, bytes))?;
    Ok(scanner.finish())
}

/// Takes a file's bytes in order.
pub(super) struct Scanner<'a> {
    whole: blake3::Hasher,
    first: Vec<u8>,
    /// Of what is no return, in files that people could read.
    lines: Option<blake3::Hasher>,
    shards: Shards<'a>,
    gaps: Gaps<'a>,
    floats: Floats<'a>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(map: &'a FileMap<'_>) -> Self {
        let dirt = vec![None; map.gaps.len()];
        Self {
            whole: blake3::Hasher::new(),
            first: Vec::new(),
            lines: (map.entry.kind != FileKind::Shards).then(blake3::Hasher::new),
            shards: Shards::new(&map.shards),
            gaps: Gaps { expected: &map.gaps, next: 0, dirt },
            floats: Floats::new(&map.floats),
        }
    }

    /// Takes the bytes from `offset` on; must not cut a float.
    pub(super) fn update(&mut self, offset: u64, bytes: &[u8]) {
        self.whole.update(bytes);
        if offset == 0 {
            self.first = bytes[..bytes.len().min(FIRST)].to_vec();
        }
        if let Some(lines) = &mut self.lines {
            lines.update(&without_returns(bytes));
        }
        self.floats.update(offset, bytes);
        self.shards.update(offset, bytes);
        self.gaps.update(offset, bytes);
    }

    pub(super) fn finish(self) -> Scan {
        let mut shards = self.shards.hashes;
        shards.resize(self.shards.expected.len(), None);
        let less = |lines: &blake3::Hasher| lines.count() < self.whole.count();
        Scan {
            without_returns: self.lines.filter(less).map(|lines| lines.finalize().into()),
            len: self.whole.count(),
            pointer: lfs_pointer(&self.first, self.whole.count()),
            blake3: self.whole.finalize().into(),
            shards,
            gaps: self.gaps.dirt,
            floats: self.floats.wrong,
        }
    }
}

/// Hashes of the shards that have passed whole.
struct Shards<'a> {
    expected: &'a [Shard],
    current: blake3::Hasher,
    hashes: Vec<Option<Hash>>,
}

impl<'a> Shards<'a> {
    fn new(shards: &'a [Shard]) -> Self {
        Self { expected: shards, current: blake3::Hasher::new(), hashes: Vec::new() }
    }

    fn update(&mut self, offset: u64, bytes: &[u8]) {
        let limit = offset + bytes.len() as u64;
        while let Some(shard) = self.expected.get(self.hashes.len()) {
            self.current
                .update(overlap(shard.start, shard.end, offset, bytes));
            if shard.end > limit {
                return;
            }
            self.hashes.push(Some(self.current.finalize().into()));
            self.current.reset();
        }
    }
}

/// The first byte of each gap that is not zero.
struct Gaps<'a> {
    expected: &'a [Gap],
    /// The first gap whose end has not passed.
    next: usize,
    dirt: Vec<Option<(u64, u8)>>,
}

impl Gaps<'_> {
    fn update(&mut self, offset: u64, bytes: &[u8]) {
        let limit = offset + bytes.len() as u64;
        while let Some(gap) = self.expected.get(self.next) {
            let part = overlap(gap.start, gap.end, offset, bytes);
            if let Some(at) = part.iter().position(|&b| b != 0) {
                let place = gap.start.max(offset) + at as u64;
                self.dirt[self.next].get_or_insert((place, part[at]));
            }
            if gap.end > limit {
                return;
            }
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Unit = Unit::Head;

    fn gap(start: u64, end: u64, inside: bool) -> Gap {
        Gap { unit: UNIT, inside, start, end }
    }

    /// Any cut of the file into blocks gives what one block gives.
    #[test]
    fn shards_and_gaps_may_cross_blocks() {
        let bytes: Vec<u8> = (0..100u8)
            .map(|i| if (40..50).contains(&i) { 0 } else { i + 1 })
            .collect();
        let hash = |range: std::ops::Range<usize>| Hash::from(blake3::hash(&bytes[range]));
        let shard = |start, end| Shard { unit: UNIT, start, end, blake3: Hash::ZERO };
        let list = [shard(0, 40), shard(50, 90), shard(90, 120)];
        let gaps = [gap(10, 12, true), gap(40, 50, false), gap(70, 75, true), gap(95, 110, false)];
        for block in 1..=100 {
            let mut shards = Shards::new(&list);
            let mut found = Gaps { expected: &gaps, next: 0, dirt: vec![None; gaps.len()] };
            for (i, bytes) in bytes.chunks(block).enumerate() {
                shards.update((i * block) as u64, bytes);
                found.update((i * block) as u64, bytes);
            }
            assert_eq!(shards.hashes, [Some(hash(0..40)), Some(hash(50..90))], "{block}");
            assert_eq!(
                found.dirt,
                [Some((10, 11)), None, Some((70, 71)), Some((95, 96))],
                "{block}"
            );
        }
    }

    #[test]
    fn padding_inside_a_shard_is_told_from_padding_after_it() {
        assert_eq!(gap(0, 1, true).place(), "padding between tensors");
        assert_eq!(gap(0, 1, false).place(), "padding after the shard");
    }
}
