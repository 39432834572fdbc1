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

use super::ledger::{Blocks, Line, Rest};
use super::memory::{COPY_BLOCK, RECORD_LIMIT};
use super::sink::Sink;
use super::source::{Reader, Run, Source, without};
use super::unit::{UnitJob, Worker};
use crate::calibrate::objectives::Objectives;
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// What became of a unit.
pub enum Outcome {
    /// Converted in this run.
    Made(Line),
    /// Found as an earlier run left it.
    Kept(Line),
}

/// Where a unit lies in the bundle that is being made.
struct Place<'p> {
    file: usize,
    offset: u64,
    len: u64,
    tensors: &'p [TensorEntry],
    methods: &'p [Method],
}

/// One thread's work on shards.
pub struct Maker<'a> {
    plan: &'a Plan,
    writer: &'a BundleWriter,
    partial: &'a Path,
    worker: Worker<'a>,
    record: Vec<u8>,
    part: Vec<u8>,
}

impl<'a> Maker<'a> {
    /// Without objectives no unit is made, only confirmed.
    pub fn new(
        run: &super::Run<'a>,
        objectives: Option<&'a Objectives>,
        stop: &'a AtomicBool,
    ) -> Self {
        let super::Run { plan, writer, partial, source, .. } = *run;
        let worker = Worker::new(Reader::new(source), (objectives, run.pool), stop);
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
        claim: Option<&Line>,
        soon: Option<Unit>,
    ) -> Result<Option<Outcome>> {
        let place = self.place(unit)?;
        let job = UnitJob::new(unit, place.tensors, place.methods);
        if let Some(line) = claim {
            let runs: Vec<Run> = line.blocks.iter().map(Run::from).collect();
            self.check_source(&job, line, &runs)?;
            if self.confirm(&place, line)? {
                self.source().restore(&runs);
                return Ok(Some(Outcome::Kept(line.clone())));
            }
        }
        if self.worker.objectives.is_none() {
            return Ok(None);
        }
        if let Some(soon) = soon {
            let place = self.place(soon)?;
            self.worker
                .prefetch(&UnitJob::new(soon, place.tensors, place.methods))?;
        }
        let Some((stats, blake3)) = self.convert(&place, &job)? else { return Ok(None) };
        let runs = self.worker.reader.take_runs();
        let rest = self.rest(&job, &runs)?;
        let blocks = runs.into_iter().map(Blocks::from).collect();
        Ok(Some(Outcome::Made(Line { unit, blake3, stats, blocks, rest })))
    }

    fn place(&self, unit: Unit) -> Result<Place<'a>> {
        let plan = self.plan;
        let missing = || ConvertError::Plan(format!("the plan has no {unit}"));
        let number = |file: &str| self.writer.file(file).ok_or_else(missing);
        if let Unit::Expert { layer, expert } = unit {
            let (at, shards) = plan.expert_shards(layer).ok_or_else(missing)?;
            let extent = shards.extent(expert).ok_or_else(missing)?;
            let (file, methods) = (number(&shards.file)?, &plan.expert_methods[at]);
            let tensors = &shards.tensors;
            return Ok(Place { file, offset: extent.offset, len: shards.len, tensors, methods });
        }
        let (at, shard) = plan.dense_shard(unit).ok_or_else(missing)?;
        let (file, methods) = (number(&shard.file)?, &plan.dense_methods[at]);
        Ok(Place { file, offset: shard.offset, len: shard.len, tensors: &shard.tensors, methods })
    }

    /// Converts a unit into its place; gives what its tensors lost and its hash.
    fn convert(
        &mut self,
        place: &Place<'_>,
        job: &UnitJob<'_>,
    ) -> Result<Option<(Vec<QuantStats>, Hash)>> {
        if place.len <= RECORD_LIMIT {
            self.record.clear();
            self.record.resize(place.len as usize, 0);
            let mut sink = Sink::Record(&mut self.record);
            let Some(stats) = self.worker.convert(job, &mut sink)? else { return Ok(None) };
            return Ok(Some((stats, self.store_record(place)?)));
        }
        let (writer, file, offset) = (self.writer, place.file, place.offset);
        let mut sink = Sink::Pieces { writer, file, offset, part: &mut self.part };
        let Some(stats) = self.worker.convert(job, &mut sink)? else { return Ok(None) };
        self.clear_gaps(place)?;
        Ok(Some((stats, self.hash_back(place)?)))
    }

    /// Writes the record and the padding after it.
    fn store_record(&mut self, place: &Place<'_>) -> Result<Hash> {
        let hash = blake3::hash(&self.record);
        let end = place.len.next_multiple_of(self.plan.manifest.alignment);
        self.record.resize(end as usize, 0);
        self.writer
            .write_at(place.file, place.offset, &self.record)?;
        self.writer.note(place.file, place.offset, &self.record);
        Ok(hash.into())
    }

    /// Makes the bytes between and after the tensors of a unit zero, whatever an interrupted run
    /// left there.
    fn clear_gaps(&self, place: &Place<'_>) -> Result<()> {
        let end = place.len.next_multiple_of(self.plan.manifest.alignment);
        let starts = place.tensors.iter().skip(1).map(|t| t.offset).chain([end]);
        for (tensor, next) in place.tensors.iter().zip(starts) {
            let last = tensor.offset + tensor.byte_len().unwrap_or_default();
            let zeros = vec![0; next.saturating_sub(last) as usize];
            self.writer
                .write_at(place.file, place.offset + last, &zeros)?;
        }
        Ok(())
    }

    /// The hash of a shard as it lies in the file, its blocks noted for the file's hash.
    fn hash_back(&mut self, place: &Place<'_>) -> Result<Hash> {
        let mut hasher = blake3::Hasher::new();
        let end = place.len.next_multiple_of(self.plan.manifest.alignment);
        for start in (0..end).step_by(COPY_BLOCK as usize) {
            let len = COPY_BLOCK.min(end - start);
            self.part.resize(len as usize, 0);
            self.writer
                .read_at(place.file, place.offset + start, &mut self.part)?;
            hasher.update(&self.part[..len.min(place.len.saturating_sub(start)) as usize]);
            self.writer
                .note(place.file, place.offset + start, &self.part);
        }
        Ok(hasher.finalize().into())
    }

    /// Whether the shard on disk is the one that the ledger speaks of.
    fn confirm(&mut self, place: &Place<'_>, line: &Line) -> Result<bool> {
        let plausible = line.stats.len() == place.tensors.len();
        Ok(plausible && self.hash_back(place)? == line.blake3)
    }

    /// Hashes of what the unit needs besides the blocks of `runs`, a file at a time.
    fn rest(&mut self, job: &UnitJob<'_>, runs: &[Run]) -> Result<Vec<Rest>> {
        let source = self.source();
        let mut extents = BTreeMap::<usize, Vec<Range<u64>>>::new();
        for (entry, view) in job.tensors.iter().zip(&job.views) {
            let found = view_extents(source.checkpoint, view, 0..entry.rows, entry.cols)?;
            for (file, range) in found {
                extents.entry(file).or_default().push(range);
            }
        }
        let rest = |(file, extents)| {
            let hashed = runs.iter().filter(|run| run.file == file);
            let hashed = hashed.filter_map(|run| source.extent_of(run)).collect();
            let ranges = without(extents, hashed);
            Ok(Rest { file, blake3: source.hash_ranges(file, &ranges, &mut self.part)? })
        };
        extents.into_iter().map(rest).collect()
    }

    /// Refuses a checkpoint with the same shapes and other weights than the ledger's: everything
    /// that the unit was made from is read and hashed again.
    fn check_source(&mut self, job: &UnitJob<'_>, line: &Line, runs: &[Run]) -> Result<()> {
        for run in runs {
            if !self.source().verify(run, &mut self.part)? {
                return Err(self.other_checkpoint(line, run.file));
            }
        }
        let found = self.rest(job, runs)?;
        let differs = found.iter().find(|rest| !line.rest.contains(rest));
        differs.map_or(Ok(()), |rest| Err(self.other_checkpoint(line, rest.file)))
    }

    fn other_checkpoint(&self, line: &Line, file: usize) -> ConvertError {
        let found = self.source().checkpoint.files().get(file);
        let name = found.map_or("?", |f| f.name.as_str());
        let detail = format!(
            "it was begun with another checkpoint: the weights of {} in `{name}` differ",
            line.unit
        );
        ConvertError::Resume { path: self.partial.to_owned(), detail }
    }
}
