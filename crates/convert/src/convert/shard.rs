//! Makes one shard, or confirms that it was made before.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use shardwright_format::Unit;
use shardwright_format::checkpoint::view_extents;
use shardwright_format::manifest::Hash;
use shardwright_format::unit::TensorEntry;
use shardwright_format::writer::BundleWriter;
use shardwright_quant::{Method, QuantStats};

use super::ledger::{LedgerEntry, RestHash};
use super::memory::{COPY_BLOCK, RECORD_LIMIT};
use super::sink::Sink;
use super::source::{HashedBlocks, Reader, Source, without};
use super::unit::{TensorQuantizer, UnitTensors};
use crate::calibrate::objectives::Objectives;
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// What became of a unit.
pub enum ShardOutcome {
    /// Converted in this run.
    Made(LedgerEntry),
    /// Found as an earlier run left it.
    Kept(LedgerEntry),
}

/// Where a unit lies in the bundle that is being made.
struct ShardLocation<'p> {
    file: usize,
    offset: u64,
    len: u64,
    tensors: &'p [TensorEntry],
    methods: &'p [Method],
}

/// One thread's work on shards.
pub struct ShardWriter<'a> {
    plan: &'a Plan,
    writer: &'a BundleWriter,
    partial: &'a Path,
    worker: TensorQuantizer<'a>,
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
        let worker = TensorQuantizer::new(Reader::new(source), (objectives, run.pool), stop);
        Self { plan, writer, partial, worker, record: Vec::new(), part: Vec::new() }
    }

    const fn source(&self) -> &'a Source<'a> {
        self.worker.reader.source
    }

    /// Makes a unit, or confirms what the ledger claims of it. None when asked to stop. `soon` is
    /// what will be read after it.
    pub fn make(
        &mut self,
        unit: Unit,
        claim: Option<&LedgerEntry>,
        soon: Option<Unit>,
    ) -> Result<Option<ShardOutcome>> {
        let location = self.locate(unit)?;
        let job = UnitTensors::new(unit, location.tensors, location.methods);
        if let Some(entry) = claim {
            self.check_source(&job, entry)?;
            if self.confirm(&location, entry)? {
                self.source().restore(&entry.blocks);
                return Ok(Some(ShardOutcome::Kept(entry.clone())));
            }
        }
        if self.worker.objectives.is_none() {
            return Ok(None);
        }
        if let Some(soon) = soon {
            let location = self.locate(soon)?;
            self.worker
                .prefetch(&UnitTensors::new(soon, location.tensors, location.methods))?;
        }
        let Some((stats, blake3)) = self.convert(&location, &job)? else { return Ok(None) };
        let blocks = self.worker.reader.take_blocks();
        let rest = self.rest(&job, &blocks)?;
        Ok(Some(ShardOutcome::Made(LedgerEntry { unit, blake3, stats, blocks, rest })))
    }

    fn locate(&self, unit: Unit) -> Result<ShardLocation<'a>> {
        let plan = self.plan;
        let missing = || ConvertError::Plan(format!("the plan has no {unit}"));
        let number = |file: &str| self.writer.file(file).ok_or_else(missing);
        if let Unit::Expert { layer, expert } = unit {
            let (at, shards) = plan.expert_shards(layer).ok_or_else(missing)?;
            let extent = shards.extent(expert).ok_or_else(missing)?;
            let (file, methods) = (number(&shards.file)?, &plan.expert_methods[at]);
            let tensors = &shards.tensors;
            return Ok(ShardLocation {
                file,
                offset: extent.offset,
                len: shards.len,
                tensors,
                methods,
            });
        }
        let (at, shard) = plan.dense_shard(unit).ok_or_else(missing)?;
        let (file, methods) = (number(&shard.file)?, &plan.dense_methods[at]);
        Ok(ShardLocation {
            file,
            offset: shard.offset,
            len: shard.len,
            tensors: &shard.tensors,
            methods,
        })
    }

    /// Converts a unit into its place; gives what its tensors lost and its hash.
    fn convert(
        &mut self,
        location: &ShardLocation<'_>,
        job: &UnitTensors<'_>,
    ) -> Result<Option<(Vec<QuantStats>, Hash)>> {
        if location.len <= RECORD_LIMIT {
            self.record.clear();
            self.record.resize(location.len as usize, 0);
            let mut sink = Sink::Record(&mut self.record);
            let Some(stats) = self.worker.convert(job, &mut sink)? else { return Ok(None) };
            return Ok(Some((stats, self.store_record(location)?)));
        }
        let (writer, file, offset) = (self.writer, location.file, location.offset);
        let mut sink = Sink::Pieces { writer, file, offset, part: &mut self.part };
        let Some(stats) = self.worker.convert(job, &mut sink)? else { return Ok(None) };
        self.clear_gaps(location)?;
        Ok(Some((stats, self.hash_back(location)?)))
    }

    /// Writes the record and the padding after it.
    fn store_record(&mut self, location: &ShardLocation<'_>) -> Result<Hash> {
        let hash = blake3::hash(&self.record);
        let end = location.len.next_multiple_of(self.plan.manifest.alignment);
        self.record.resize(end as usize, 0);
        self.writer
            .write_at(location.file, location.offset, &self.record)?;
        self.writer
            .hash_written(location.file, location.offset, &self.record);
        Ok(hash.into())
    }

    /// Makes the bytes between and after the tensors of a unit zero, whatever an interrupted run
    /// left there.
    fn clear_gaps(&self, location: &ShardLocation<'_>) -> Result<()> {
        let end = location.len.next_multiple_of(self.plan.manifest.alignment);
        let starts = location
            .tensors
            .iter()
            .skip(1)
            .map(|t| t.offset)
            .chain([end]);
        for (tensor, next) in location.tensors.iter().zip(starts) {
            let last = tensor.offset + tensor.byte_len().unwrap_or_default();
            let zeros = vec![0; next.saturating_sub(last) as usize];
            self.writer
                .write_at(location.file, location.offset + last, &zeros)?;
        }
        Ok(())
    }

    /// The hash of a shard as it lies in the file, its blocks noted for the file's hash.
    fn hash_back(&mut self, location: &ShardLocation<'_>) -> Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        let end = location.len.next_multiple_of(self.plan.manifest.alignment);
        for start in (0..end).step_by(COPY_BLOCK as usize) {
            let len = COPY_BLOCK.min(end - start);
            self.part.resize(len as usize, 0);
            self.writer
                .read_at(location.file, location.offset + start, &mut self.part)?;
            hasher.update(&self.part[..len.min(location.len.saturating_sub(start)) as usize]);
            self.writer
                .hash_written(location.file, location.offset + start, &self.part);
        }
        Ok(hasher.finalize().into())
    }

    /// Whether the shard on disk is the one that the ledger speaks of.
    fn confirm(&mut self, location: &ShardLocation<'_>, entry: &LedgerEntry) -> Result<bool> {
        let plausible = entry.stats.len() == location.tensors.len();
        Ok(plausible && self.hash_back(location)? == entry.blake3)
    }

    /// Hashes of what the unit needs besides the blocks of `blocks`, a file at a time.
    fn rest(&mut self, job: &UnitTensors<'_>, blocks: &[HashedBlocks]) -> Result<Vec<RestHash>> {
        let source = self.source();
        let mut extents = BTreeMap::<usize, Vec<Range<u64>>>::new();
        for (entry, view) in job.tensors.iter().zip(&job.views) {
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
    fn check_source(&mut self, job: &UnitTensors<'_>, entry: &LedgerEntry) -> Result<()> {
        for run in &entry.blocks {
            if !self.source().verify(run, &mut self.part)? {
                return Err(self.other_checkpoint(entry, run.file));
            }
        }
        let found = self.rest(job, &entry.blocks)?;
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
        ConvertError::Resume { path: self.partial.to_owned(), detail }
    }
}
