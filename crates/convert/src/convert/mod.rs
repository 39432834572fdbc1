//! Carries out a plan: units in any order on many threads, the same bytes always.

mod calibrated;
mod finish;
mod ledger;
pub(crate) mod memory;
mod merge;
mod one_part;
mod part;
mod repack;
mod reproduce;
mod shard;
mod sink;
mod source;
mod unit;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use shardwright_format::bundle::read_manifest;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::{INDEX_LIMIT, clear, partial_path, read_required};
use shardwright_format::manifest::{Hash, Manifest, REPORT_FILE};
use shardwright_format::writer::{self, BundleWriter};
use shardwright_format::{FormatError, Unit, mismatch};
use shardwright_runtime::thread_pool;

use crate::calibrate::objectives::Objectives;
use crate::calibrate::streams::Streamed;
use crate::calibrate::{Corpus, SavedStatistics};
use crate::error::{ConvertError, Result};
use crate::plan::ConversionReport;
use crate::plan::Plan;
pub use ledger::is_held;
use ledger::{Fingerprint, Ledger, LedgerEntry, Locked};
pub use memory::Buffers;
pub use merge::{MergeOptions, Merged, merge};
pub use one_part::{PartReport, convert_part};
pub use reproduce::{ReproduceOptions, reproduce};
use shard::{ShardOutcome, ShardWriter};
use source::{BlockSet, Source};

/// Name of the ledger in the partial directory.
const LEDGER_FILE: &str = "ledger.jsonl";
/// Name of the bundle in the partial directory.
const BUNDLE_DIR: &str = "bundle";
/// Bytes written before they are put on disk while the conversion goes on.
const SYNC_BYTES: u64 = 128 << 20;
/// Finished units that may wait to be entered in the ledger.
const BACKLOG: usize = 256;
/// How often progress is told, at least.
const TICK: Duration = Duration::from_millis(200);

/// How a plan is carried out.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions<'a> {
    /// Threads that convert.
    pub threads: usize,
    /// Go on with what an interrupted conversion left.
    pub resume: bool,
    /// Set to stop: what is finished is kept for `resume`.
    pub cancel: &'a AtomicBool,
    /// What is known of the inputs of matrices, or how to learn it.
    pub calibration: Calibration<'a>,
    /// How much is read, computed and written at a time.
    pub buffers: Buffers,
}

/// What codes are chosen by, besides the weights.
#[derive(Clone, Copy, Debug, Default)]
pub enum Calibration<'a> {
    /// Nothing.
    #[default]
    None,
    /// What was observed before.
    Statistics(&'a SavedStatistics),
    /// A text that goes through the model as it is converted.
    Text(&'a Corpus),
}

/// What the conversion is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Making shards.
    Convert,
    /// Hashing what no shard needs, writing report and manifest.
    Finish,
    /// Nothing: with `resume`, the bundle was complete already.
    Complete,
}

/// How far the conversion is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Shards finished.
    pub shards: usize,
    /// Shards in all.
    pub total_shards: usize,
    /// Bytes of tensors read in this run.
    pub source_bytes: u64,
    /// Bytes of tensors to read in this run.
    pub total_source_bytes: u64,
}

/// Makes the bundle `out` as planned; gives what `report.json` says.
///
/// `progress` is called from this thread only.
///
/// # Errors
/// An output that exists or lies inside the checkpoint, a partial one that is another
/// conversion's or being written, no room, a weight that is not finite, a scale that is too large
/// for its type, a cancelled conversion, and what the operating system refuses.
pub fn convert(
    plan: &Plan,
    checkpoint: &Checkpoint,
    out: &Path,
    options: &ConvertOptions<'_>,
    progress: &dyn Fn(Progress),
) -> Result<ConversionReport> {
    let partial = partial_path(out);
    if !checkpoint.is_single_file() {
        refuse_output_inside_checkpoint(checkpoint.root(), out)?;
    }
    let source = Source::new(checkpoint, &options.buffers)?;
    let mut fingerprint = Fingerprint::new(plan, checkpoint, source.block)?;
    if let Some(report) = already_published(plan, out, &partial, options.resume, &fingerprint)? {
        let (shards, bytes) = (plan.manifest.shard_count(), source.total);
        progress(Progress {
            phase: Phase::Complete,
            shards,
            total_shards: shards,
            source_bytes: 0,
            total_source_bytes: bytes,
        });
        return Ok(report);
    }
    check_room(plan.cost.peak_disk, &partial)?;
    check_free(&partial, options.resume)?;
    // A text's way through the model makes every code depend on weights of other units.
    let whole = matches!(options.calibration, Calibration::Text(_));
    let whole = whole.then(|| source::hashes(checkpoint, options));
    fingerprint.contents = whole.transpose()?;
    let scope =
        Scope { partial: &partial, manifest: &plan.manifest, units: order(plan), blocks: None };
    let made = make_shards(plan, &source, &scope, &fingerprint, options, progress)?;
    fingerprint.check(&source)?;
    let report = report(plan, &made.finished, made.streamed);
    let sources = finish::source_hashes(&source)?;
    let put: finish::PutFile<'_> = &|writer, file| finish::put(&source, writer, file);
    finish::finish(plan, &sources, made.writer, &made.finished, &report, put)?;
    writer::publish(&partial.join(BUNDLE_DIR), out)?;
    remove(&partial)?;
    Ok(report)
}

/// Removes the directory of a conversion, its ledger last: whoever is killed between leaves what the next one knows
/// as its own.
fn remove(partial: &Path) -> Result<()> {
    clear(partial, LEDGER_FILE)?;
    Ok(std::fs::remove_dir_all(partial).map_err(|e| FormatError::io(partial, e))?)
}

/// What was lost, by the ledger's entries.
fn report(
    plan: &Plan,
    finished: &BTreeMap<Unit, LedgerEntry>,
    streamed: Option<Streamed>,
) -> ConversionReport {
    let stats = |unit| {
        finished
            .get(&unit)
            .map_or(&[][..], |entry| entry.stats.as_slice())
    };
    ConversionReport::new(plan, stats, streamed)
}

/// What a run makes: all of a plan, or a part of it.
struct Scope<'a> {
    /// The directory in which it is made.
    partial: &'a Path,
    /// Lists the files that are made.
    manifest: &'a Manifest,
    /// Shards, in the order in which they are taken.
    units: Vec<Unit>,
    /// Blocks of the checkpoint's files whose hashes are needed, if not all are.
    blocks: Option<&'a BlockSet>,
}

/// Shards that are made.
struct Made {
    writer: BundleWriter,
    /// Held until what is made has its name.
    ledger: Ledger,
    finished: BTreeMap<Unit, LedgerEntry>,
    streamed: Option<Streamed>,
}

/// Makes every shard of `scope`, or confirms it, and hashes what else of the checkpoint is to be hashed.
fn make_shards(
    plan: &Plan,
    source: &Source<'_>,
    scope: &Scope<'_>,
    fingerprint: &Fingerprint,
    options: &ConvertOptions<'_>,
    progress: &dyn Fn(Progress),
) -> Result<Made> {
    let partial = scope.partial;
    let (ledger, claims) = open_ledger(partial, fingerprint, scope.manifest)?;
    let writer = BundleWriter::create(&partial.join(BUNDLE_DIR), scope.manifest)?;
    // Threads that compute, besides those that each make a unit.
    let pool = thread_pool(options.threads)?;
    let mut run = Conversion {
        plan,
        source,
        writer: &writer,
        ledger,
        progress,
        partial,
        options,
        units: &scope.units,
        claims: &claims,
        finished: BTreeMap::new(),
        unsynced: 0,
        pool: &pool,
    };
    let streamed = run.convert()?;
    run.tell(Phase::Finish);
    source.hash_rest(options.threads, scope.blocks)?;
    let Conversion { ledger, finished, .. } = run;
    Ok(Made { writer, ledger, finished, streamed })
}

/// Refuses an output that exists, unless `resume` and it is what this conversion would make: then
/// nothing is left to do but to remove the ledger of one killed before it could do so.
fn already_published(
    plan: &Plan,
    out: &Path,
    partial: &Path,
    resume: bool,
    fingerprint: &Fingerprint,
) -> Result<Option<ConversionReport>> {
    if out.symlink_metadata().is_err() {
        return Ok(None);
    }
    let ledger = partial.join(LEDGER_FILE);
    let ours = if !resume || partial.join(BUNDLE_DIR).exists() {
        false
    } else if ledger.exists() {
        let mut ledger = Locked::open(&ledger)?;
        let ours = ledger.is_of(fingerprint);
        if ours {
            remove(partial)?;
        }
        ours
    } else {
        // Killed between its two last steps, a conversion leaves an empty directory.
        let gone = remove_empty(partial) || partial.symlink_metadata().is_err();
        gone && is_made_of(plan, out)
    };
    if !ours {
        let detail = "already exists; remove it or choose another name".to_owned();
        return Err(ConvertError::Output { path: out.to_owned(), detail: detail.into() });
    }
    let path = out.join(REPORT_FILE);
    let bytes = read_required(&path, INDEX_LIMIT)?;
    let report = serde_json::from_slice(&bytes);
    Ok(Some(report.map_err(|e| FormatError::file(&path, e.to_string()))?))
}

/// Whether `dir` was an empty directory, which it is no longer.
fn remove_empty(dir: &Path) -> bool {
    std::fs::remove_dir(dir).is_ok()
}

/// Whether `out` is a bundle with all its files that this plan makes of a checkpoint with files
/// of the same names and sizes. Contents are for `verify` to check.
fn is_made_of(plan: &Plan, out: &Path) -> bool {
    let Ok(found) = read_manifest(out) else { return false };
    let sizes = found.files.iter().all(|file| {
        let data = out.join(&file.path).symlink_metadata();
        data.is_ok_and(|data| data.is_file() && data.len() == file.size)
    });
    sizes && outline(&found) == outline(&plan.manifest)
}

/// A manifest without what only a conversion tells: hashes.
fn outline(manifest: &Manifest) -> Manifest {
    let mut outline = manifest.clone();
    outline.blake3 = Hash::ZERO;
    outline
        .checkpoint
        .files
        .iter_mut()
        .for_each(|file| file.blake3 = Hash::ZERO);
    for file in &mut outline.files {
        file.blake3 = Hash::ZERO;
    }
    // What they are follows from model and recipe.
    outline.dense.clear();
    outline.experts.clear();
    outline
}

/// Refuses an output inside the checkpoint: the next conversion would copy it.
fn refuse_output_inside_checkpoint(checkpoint: &Path, out: &Path) -> Result<()> {
    let Ok(root) = checkpoint.canonicalize() else { return Ok(()) };
    // Directories on the way to the output need not exist yet.
    let parents = out.ancestors().skip(1);
    let mut parents = parents.map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let parent = parents.find_map(|parent| parent.canonicalize().ok());
    if !parent.is_some_and(|parent| parent.starts_with(&root)) {
        return Ok(());
    }
    let detail = format!(
        "lies inside the checkpoint {}, whose files a bundle copies; choose another place",
        checkpoint.display()
    );
    Err(ConvertError::Output { path: out.to_owned(), detail: detail.into() })
}

/// Refuses a file system without room for so many bytes, counting what a partial one has already.
fn check_room(needed: u64, partial: &Path) -> Result<()> {
    let parent = partial.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or_else(|| Path::new("."));
    let found = rustix::fs::statvfs(parent).map_err(|e| FormatError::io(parent, e.into()))?;
    let available = found
        .f_bavail
        .saturating_mul(found.f_frsize)
        .saturating_add(disk_usage(partial));
    if needed > available {
        let detail = mismatch(format_args!("{needed} bytes available"), available).at("no room");
        return Err(ConvertError::Output { path: parent.to_owned(), detail });
    }
    Ok(())
}

/// Bytes that the files under `dir` take on disk; 0 for what cannot be read.
fn disk_usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_usage(&entry.path()),
        Ok(data) => data.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Refuses what lies where the bundle is made, unless it is to be gone on with: nothing is, or an
/// empty directory.
fn check_free(partial: &Path, resume: bool) -> Result<()> {
    let Ok(found) = partial.symlink_metadata() else { return Ok(()) };
    if !found.is_dir() {
        let detail = mismatch("a directory", "a file or a link");
        return Err(ConvertError::Output { path: partial.to_owned(), detail });
    }
    if resume || remove_empty(partial) {
        return Ok(());
    }
    ledger::check_free(&partial.join(LEDGER_FILE))?;
    Err(FormatError::Unfinished { path: partial.to_owned() }.into())
}

/// A new ledger, or the one there is and the units that it claims.
fn open_ledger(
    partial: &Path,
    fingerprint: &Fingerprint,
    manifest: &Manifest,
) -> Result<(Ledger, BTreeMap<Unit, LedgerEntry>)> {
    let path = partial.join(LEDGER_FILE);
    std::fs::create_dir_all(partial).map_err(|e| FormatError::io(partial, e))?;
    let bundle = partial.join(BUNDLE_DIR);
    let clear = || match std::fs::remove_dir_all(&bundle) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(FormatError::io(&bundle, e).into())
        }
        _ => Ok(()),
    };
    let opened = Locked::open(&path)?.resume(fingerprint, clear)?;
    // Before anything is written through a link, or hours are spent beside what has no place here.
    writer::check_strangers(&bundle, manifest)?;
    Ok(opened)
}

/// What one run works with.
struct Conversion<'a> {
    plan: &'a Plan,
    source: &'a Source<'a>,
    writer: &'a BundleWriter,
    ledger: Ledger,
    progress: &'a dyn Fn(Progress),
    partial: &'a Path,
    options: &'a ConvertOptions<'a>,
    /// What is to be made, in the order in which it is taken.
    units: &'a [Unit],
    claims: &'a BTreeMap<Unit, LedgerEntry>,
    /// Units made or confirmed.
    finished: BTreeMap<Unit, LedgerEntry>,
    /// Bytes written since the last time that they were put on disk.
    unsynced: u64,
    /// Threads for what one unit computes.
    pool: &'a rayon::ThreadPool,
}

impl Conversion<'_> {
    /// Makes or confirms every unit; gives what was seen of a text on the way.
    fn convert(&mut self) -> Result<Option<Streamed>> {
        match self.options.calibration {
            Calibration::Text(corpus) => calibrated::convert(self, corpus).map(Some),
            Calibration::Statistics(statistics) => {
                self.make(self.units, &statistics.objectives).map(|()| None)
            }
            Calibration::None => self.make(self.units, &Objectives::default()).map(|()| None),
        }
    }

    /// Makes or confirms `units`, on all threads.
    fn make(&mut self, units: &[Unit], objectives: &Objectives) -> Result<()> {
        self.work(units, Some(objectives))?;
        if units.iter().any(|unit| !self.finished.contains_key(unit)) {
            return Err(self.cancelled());
        }
        Ok(())
    }

    /// Takes `units` through all threads. Without objectives none is made, only confirmed.
    fn work(&mut self, units: &[Unit], objectives: Option<&Objectives>) -> Result<()> {
        let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Shared { units, claims: self.claims, next: &next, stop: &stop };
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(BACKLOG);
            for _ in 0..self.options.threads.max(1) {
                let (sender, shared) = (sender.clone(), &shared);
                let shard_writer = ShardWriter::new(self, objectives, &stop);
                scope.spawn(move || work(shard_writer, shared, &sender));
            }
            drop(sender);
            let collected = self.collect(&receiver, &stop);
            // Whatever ended the loop, the others must not go on.
            stop.store(true, Ordering::Relaxed);
            collected
        })
    }

    /// Confirms those of `units` that the ledger claims; whether all of them are there.
    fn keep(&mut self, units: &[Unit]) -> Result<bool> {
        let claims = self.claims;
        let claimed = units.iter().filter(|unit| claims.contains_key(unit));
        let claimed: Vec<_> = claimed.copied().collect();
        self.work(&claimed, None)?;
        Ok(units.iter().all(|unit| self.finished.contains_key(unit)))
    }

    /// Puts on disk what there is, for `resume`.
    fn cancelled(&self) -> ConvertError {
        if let Err(error) = self.writer.sync() {
            return error.into();
        }
        if let Err(error) = self.ledger.sync() {
            return error;
        }
        let (done, total) = (self.finished.len(), self.units.len());
        ConvertError::Cancelled { done, total, path: self.partial.to_owned() }
    }

    /// Takes finished units until there are no more, or until told to stop.
    fn collect(
        &mut self,
        receiver: &Receiver<Result<ShardOutcome>>,
        stop: &AtomicBool,
    ) -> Result<()> {
        loop {
            if self.options.cancel.load(Ordering::Relaxed) {
                stop.store(true, Ordering::Relaxed);
            }
            let (entry, made) = match receiver.recv_timeout(TICK) {
                Ok(outcome) => match outcome? {
                    ShardOutcome::Made(entry) => (entry, true),
                    ShardOutcome::Kept(entry) => (entry, false),
                },
                Err(RecvTimeoutError::Timeout) => {
                    self.tell(Phase::Convert);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            if made {
                self.ledger.add(&entry)?;
                self.unsynced += self.plan.unit_len(entry.unit).unwrap_or_default();
            }
            if self.unsynced >= SYNC_BYTES {
                self.writer.sync()?;
                self.unsynced = 0;
            }
            self.finished
                .insert(entry.unit, LedgerEntry { blocks: Vec::new(), rest: Vec::new(), ..entry });
            self.tell(Phase::Convert);
        }
    }

    fn tell(&self, phase: Phase) {
        (self.progress)(Progress {
            phase,
            shards: self.finished.len(),
            total_shards: self.units.len(),
            // Transposed matrices that share a tensor are read once for each.
            source_bytes: self
                .source
                .bytes_read
                .load(Ordering::Relaxed)
                .min(self.source.total),
            total_source_bytes: self.source.total,
        });
    }
}

/// What the threads share.
struct Shared<'a> {
    units: &'a [Unit],
    claims: &'a BTreeMap<Unit, LedgerEntry>,
    next: &'a AtomicUsize,
    stop: &'a AtomicBool,
}

/// Large units first, so that no thread is left alone with one at the end.
fn order(plan: &Plan) -> Vec<Unit> {
    let ends = [Unit::Embedding, Unit::Head];
    let others = plan.units().filter(|unit| !ends.contains(unit));
    ends.into_iter().chain(others).collect()
}

/// One thread: takes units until there are none left.
fn work(
    mut shard_writer: ShardWriter<'_>,
    shared: &Shared<'_>,
    sender: &SyncSender<Result<ShardOutcome>>,
) {
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(unit) = shared
            .units
            .get(shared.next.fetch_add(1, Ordering::Relaxed))
        else {
            return;
        };
        let soon = shared.units.get(shared.next.load(Ordering::Relaxed));
        let outcome = shard_writer.make(*unit, shared.claims.get(unit), soon.copied());
        let failed = outcome.is_err();
        // Nothing to send: told to stop, which the loop sees, or only to confirm.
        let sent = outcome
            .transpose()
            .is_none_or(|outcome| sender.send(outcome).is_ok());
        if failed || !sent {
            return;
        }
    }
}
