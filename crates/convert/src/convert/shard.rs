//! Makes one shard, or confirms that it was made before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use shardwright_format::Unit;
use shardwright_format::checkpoint::view_extents;
use shardwright_format::manifest::Hash;
use shardwright_format::writer::BundleWriter;
use shardwright_quant::QuantStats;

use super::ledger::{LedgerEntry, RestHash};
use super::sink::Sink;
use super::source::{HashedBlocks, Reader, Source, without};
use super::unit::TensorQuantizer;
use crate::calibrate::objectives::Objectives;
use crate::error::{ConvertError, Result};
use crate::plan::{Plan, PlannedUnit};

/// What became of a unit.
pub enum ShardOutcome {
    /// Converted in this run.
    Made(LedgerEntry),
    /// Found as an earlier run left it.
    Kept(LedgerEntry),
}

/// A unit and the number of the file that its shard lies in.
struct Shard<'p> {
    file: usize,
    unit: PlannedUnit<'p>,
}

/// One thread's work on shards.
pub struct ShardWriter<'a> {
    plan: &'a Plan,
    writer: &'a BundleWriter,
    partial: &'a Path,
    quantizer: TensorQuantizer<'a>,
    record: Vec<u8>,
    part: Vec<u8>,
}

impl<'a> ShardWriter<'a> {
    /// Without objectives no unit is made, only confirmed.
    pub fn new(
        run: &super::Conversion<'a>,
        objectives: Option<&'a Objectives>,
        stop: &'a AtomicBool,
    ) -> Self {
        let super::Conversion { plan, writer, partial, source, .. } = *run;
        let (reader, buffers) = (Reader::new(source), run.options.buffers);
        let quantizer = TensorQuantizer::new(reader, objectives, run.pool, buffers, stop);
        Self { plan, writer, partial, quantizer, record: Vec::new(), part: Vec::new() }
    }

    const fn source(&self) -> &'a Source<'a> {
        self.quantizer.reader.source
    }

    /// Makes a unit, or confirms what the ledger claims of it. None when asked to stop. `soon` is
    /// what will be read after it.
    pub fn make(
        &mut self,
        unit: Unit,
        claim: Option<&LedgerEntry>,
        soon: Option<Unit>,
    ) -> Result<Option<ShardOutcome>> {
        let shard = self.planned(unit)?;
        if let Some(entry) = claim {
            self.check_source(&shard.unit, entry)?;
            if self.confirm(&shard, entry)? {
                self.source().restore(&entry.blocks);
                return Ok(Some(ShardOutcome::Kept(entry.clone())));
            }
        }
        if self.quantizer.objectives.is_none() {
            return Ok(None);
        }
        if let Some(soon) = soon {
            self.quantizer.prefetch(&self.planned(soon)?.unit)?;
        }
        let Some((stats, blake3)) = self.convert(&shard)? else { return Ok(None) };
        let blocks = self.quantizer.reader.take_blocks();
        let rest = self.rest(&shard.unit, &blocks)?;
        Ok(Some(ShardOutcome::Made(LedgerEntry { unit, blake3, stats, blocks, rest })))
    }

    fn planned(&self, unit: Unit) -> Result<Shard<'a>> {
        let missing = || ConvertError::plan(format!("the plan has no {unit}"));
        let unit = self.plan.planned(unit).ok_or_else(missing)?;
        let file = self.writer.file(unit.file).ok_or_else(missing)?;
        Ok(Shard { file, unit })
    }

    /// Converts a unit into its place; gives what its tensors lost and its hash.
    fn convert(&mut self, shard: &Shard<'_>) -> Result<Option<(Vec<QuantStats>, Hash)>> {
        if shard.unit.len <= self.quantizer.buffers.record_limit {
            self.record.clear();
            self.record.resize(shard.unit.len as usize, 0);
            let mut sink = Sink::Record(&mut self.record);
            let Some(stats) = self.quantizer.convert(&shard.unit, &mut sink)? else {
                return Ok(None);
            };
            return Ok(Some((stats, self.store_record(shard)?)));
        }
        let (writer, file, offset) = (self.writer, shard.file, shard.unit.offset);
        let mut sink = Sink::Pieces { writer, file, offset, part: &mut self.part };
        let Some(stats) = self.quantizer.convert(&shard.unit, &mut sink)? else { return Ok(None) };
        self.clear_gaps(shard)?;
        Ok(Some((stats, self.hash_back(shard)?)))
    }

    /// Writes the record and the padding after it.
    fn store_record(&mut self, shard: &Shard<'_>) -> Result<Hash> {
        let hash = blake3::hash(&self.record);
        let end = shard
            .unit
            .len
            .next_multiple_of(self.plan.manifest.alignment);
        self.record.resize(end as usize, 0);
        self.writer
            .write_at(shard.file, shard.unit.offset, &self.record)?;
        self.writer
            .hash_written(shard.file, shard.unit.offset, &self.record);
        Ok(hash.into())
    }

    /// Makes the bytes between and after the tensors of a unit zero, whatever an interrupted run
    /// left there.
    fn clear_gaps(&self, shard: &Shard<'_>) -> Result<()> {
        let end = shard
            .unit
            .len
            .next_multiple_of(self.plan.manifest.alignment);
        let tensors = shard.unit.tensors.iter().map(|t| t.entry);
        let starts = tensors.clone().skip(1).map(|t| t.offset).chain([end]);
        for (tensor, next) in tensors.zip(starts) {
            let last = tensor.offset + tensor.byte_len().unwrap_or_default();
            let zeros = vec![0; next.saturating_sub(last) as usize];
            self.writer
                .write_at(shard.file, shard.unit.offset + last, &zeros)?;
        }
        Ok(())
    }

    /// The hash of a shard as it lies in the file, its blocks noted for the file's hash.
    fn hash_back(&mut self, shard: &Shard<'_>) -> Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        let end = shard
            .unit
            .len
            .next_multiple_of(self.plan.manifest.alignment);
        let block = self.quantizer.buffers.copy_block;
        for start in (0..end).step_by(block as usize) {
            let len = block.min(end - start);
            self.part.resize(len as usize, 0);
            self.writer
                .read_at(shard.file, shard.unit.offset + start, &mut self.part)?;
            hasher.update(&self.part[..len.min(shard.unit.len.saturating_sub(start)) as usize]);
            self.writer
                .hash_written(shard.file, shard.unit.offset + start, &self.part);
        }
        Ok(hasher.finalize().into())
    }

    /// Whether the shard on disk is the one that the ledger speaks of.
    fn confirm(&mut self, shard: &Shard<'_>, entry: &LedgerEntry) -> Result<bool> {
        let plausible = entry.stats.len() == shard.unit.tensors.len();
        Ok(plausible && self.hash_back(shard)? == entry.blake3)
    }

    /// Hashes of what the unit needs besides the blocks of `blocks`, a file at a time.
    fn rest(&mut self, unit: &PlannedUnit<'_>, blocks: &[HashedBlocks]) -> Result<Vec<RestHash>> {
        let source = self.source();
        let mut extents = BTreeMap::<usize, Vec<Range<u64>>>::new();
        for tensor in &unit.tensors {
            let (entry, view) = (tensor.entry, &tensor.view);
            let found = view_extents(source.checkpoint, view, 0..entry.rows, entry.cols)?;
            for (file, range) in found {
                extents.entry(file).or_default().push(range);
            }
        }
        let rest = |(file, extents)| {
            let hashed = blocks.iter().filter(|run| run.file == file);
            let hashed = hashed.filter_map(|run| source.extent_of(run)).collect();
            let ranges = without(extents, hashed);
            Ok(RestHash { file, blake3: source.hash_ranges(file, &ranges, &mut self.part)? })
        };
        extents.into_iter().map(rest).collect()
    }

    /// Refuses a checkpoint with the same shapes and other weights than the ledger's: everything
    /// that the unit was made from is read and hashed again.
    fn check_source(&mut self, unit: &PlannedUnit<'_>, entry: &LedgerEntry) -> Result<()> {
        for run in &entry.blocks {
            if !self.source().verify(run, &mut self.part)? {
                return Err(self.other_checkpoint(entry, run.file));
            }
        }
        let found = self.rest(unit, &entry.blocks)?;
        let differs = found.iter().find(|rest| !entry.rest.contains(rest));
        differs.map_or(Ok(()), |rest| Err(self.other_checkpoint(entry, rest.file)))
    }

    fn other_checkpoint(&self, entry: &LedgerEntry, file: usize) -> ConvertError {
        let found = self.source().checkpoint.files().get(file);
        let name = found.map_or("?", |f| f.name.as_str());
        let detail = format!(
            "it was begun with another checkpoint: the weights of {} in `{name}` differ",
            entry.unit
        );
        ConvertError::Resume { path: self.partial.to_owned(), detail: detail.into() }
    }
}
