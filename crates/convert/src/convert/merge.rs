//! Puts the parts of a conversion together: the bundle that one run would have made, to the byte.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use shardwright_format::io::{INDEX_LIMIT, partial_path, read_required};
use shardwright_format::manifest::{FileEntry, FileKind, Hash, Manifest};
use shardwright_format::treehash::TreeHash;
use shardwright_format::writer::{self, BundleWriter};
use shardwright_format::{FormatError, GENERATOR, Refusal, Unit, mismatch, part};
use shardwright_runtime::thread_pool;

use super::ledger::{Closing, Fingerprint, LedgerEntry, Locked, PartLedger, PartRecord, Wording};
use super::one_part::{PLAN_FILE, PLANNED_MANIFEST_FILE};
use super::part::Share;
use super::source::HashedBlocks;
use super::{BUNDLE_DIR, LEDGER_FILE, finish, report};
use crate::error::{ConvertError, Result};
use crate::plan::{ConversionReport, Plan};

/// Bytes read at a time when a file is checked.
const BLOCK: usize = 1 << 20;

/// How parts are put together.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions<'a> {
    /// Files checked at once.
    pub threads: usize,
    /// Set to stop: nothing is kept.
    pub cancel: &'a AtomicBool,
}

/// What was put together.
#[derive(Clone, Debug, PartialEq)]
pub struct Merged {
    /// Parts.
    pub parts: usize,
    /// Files that the bundle shares with its parts.
    pub linked: usize,
    /// Files that were copied: the parts lie on another file system.
    pub copied: usize,
    /// What the conversion did.
    pub report: ConversionReport,
}

/// A finished part.
struct MadePart {
    path: PathBuf,
    record: PartRecord,
    fingerprint: Fingerprint,
    units: BTreeMap<Unit, LedgerEntry>,
    closing: Closing,
}

/// Makes the bundle `out` of all parts of a conversion, in any order. Every byte of them is read and held
/// against the hashes of their ledgers. `progress` is told the bytes checked, and of how many.
///
/// # Errors
/// Parts of different conversions or another version, one that is missing, given twice, unfinished or
/// damaged; an output that exists; a stop. Then nothing is left.
pub fn merge(
    parts: &[PathBuf],
    out: &Path,
    options: &MergeOptions<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<Merged> {
    if out.symlink_metadata().is_ok() {
        let detail = "already exists; remove it or choose another name".to_owned();
        return Err(ConvertError::Output { path: out.to_owned(), detail: detail.into() });
    }
    let mut parts = collect(parts, out)?;
    if parts.is_empty() {
        return Err(refuse(out, "no part is given"));
    }
    let (plan, expected) = read_plan(&parts)?;
    let sources = sources(&parts, &plan.manifest, &expected)?;
    let mut finished = BTreeMap::new();
    for part in &mut parts {
        finished.extend(part.claims(&plan)?);
    }
    let partial = partial_path(out);
    let ledger = take(&partial)?;
    let whole = Whole { parts: &parts, plan: &plan, sources, finished };
    let made = whole.assemble(&partial.join(BUNDLE_DIR), options, progress);
    let made = made.and_then(|merged| {
        writer::publish(&partial.join(BUNDLE_DIR), out)?;
        Ok(merged)
    });
    drop(ledger);
    let removed = super::remove(&partial);
    // The error that matters is the first.
    let made = made?;
    removed?;
    Ok(made)
}

/// All parts of a conversion, and what their ledgers say together.
struct Whole<'a> {
    parts: &'a [MadePart],
    plan: &'a Plan,
    /// Hashes of the checkpoint's files.
    sources: Vec<Hash>,
    finished: BTreeMap<Unit, LedgerEntry>,
}

impl Whole<'_> {
    /// Makes the bundle in the directory `bundle`.
    fn assemble(
        &self,
        bundle: &Path,
        options: &MergeOptions<'_>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Merged> {
        let (parts, plan) = (self.parts, self.plan);
        // Shard files come as links, which nothing opens for writing.
        let nothing = Manifest { files: Vec::new(), ..plan.manifest.clone() };
        let writer = BundleWriter::create(bundle, &nothing)?;
        let (linked, copied) = bring(parts, &plan.manifest, &writer)?;
        check(parts, &plan.manifest, (bundle, &self.finished), options, progress)?;
        let report = report(plan, &self.finished, None);
        let put: finish::PutFile<'_> = &|_, file| {
            let part = owner(parts, file);
            let unknown = || refuse(bundle, format!("no part has {}", file.path));
            Ok(part.ok_or_else(unknown)?.closing.files[&file.path])
        };
        finish::finish(plan, &self.sources, writer, &self.finished, &report, put)?;
        Ok(Merged { parts: parts.len(), linked, copied, report })
    }
}

fn refuse(path: &Path, detail: impl Into<Refusal>) -> ConvertError {
    ConvertError::Merge { path: path.to_owned(), detail: detail.into() }
}

/// Opens all parts, which must be those of one conversion; they come in their order.
fn collect(paths: &[PathBuf], out: &Path) -> Result<Vec<MadePart>> {
    let mut parts = BTreeMap::<u32, MadePart>::new();
    let mut count = 0;
    for path in paths {
        let part = MadePart::open(path)?;
        if let Some(other) = parts.values().next() {
            other.check_same(&part)?;
        }
        let number = part.record.part;
        count = number.count();
        if let Some(other) = parts.insert(number.index(), part) {
            return Err(refuse(path, number.twice(&other.path)));
        }
    }
    let present = parts.keys().copied().collect();
    part::check_all(&present, count).map_err(|missing| refuse(out, missing))?;
    Ok(parts.into_values().collect())
}

impl MadePart {
    fn open(path: &Path) -> Result<Self> {
        let ledger = path.join(LEDGER_FILE);
        if !path
            .join(BUNDLE_DIR)
            .symlink_metadata()
            .is_ok_and(|found| found.is_dir())
            || !ledger.is_file()
        {
            return Err(refuse(path, "is no part that `convert --part` made"));
        }
        let PartLedger { fingerprint, units, closing } = PartLedger::read(&ledger)?;
        let Some(record) = fingerprint.part.clone() else {
            return Err(refuse(path, "is a whole conversion that was not finished, no part"));
        };
        if let Some(detail) = fingerprint
            .by(GENERATOR)
            .difference(&fingerprint, &wording(""))
        {
            return Err(refuse(path, detail));
        }
        let unfinished = || refuse(path, format!("part {} is not finished", record.part));
        let closing = closing.ok_or_else(unfinished)?;
        Ok(Self { path: path.to_owned(), record, fingerprint, units, closing })
    }

    /// Refuses a part of another conversion, or of another number of parts.
    fn check_same(&self, other: &Self) -> Result<()> {
        let own = self.record.part;
        own.check_count(&self.path, other.record.part)
            .map_err(|detail| refuse(&other.path, detail))?;
        let place = format!("in {}", self.path.display());
        let expected = self.fingerprint.with_part(other.record.part);
        let difference = expected.difference(&other.fingerprint, &wording(&place));
        difference.map_or(Ok(()), |detail| Err(refuse(&other.path, detail)))
    }

    /// What the ledger says of each shard that is this part's to make; what it says of others' files is
    /// forgotten.
    fn claims(&mut self, plan: &Plan) -> Result<Vec<(Unit, LedgerEntry)>> {
        let share = Share::new(&plan.manifest, self.record.part);
        let files: BTreeSet<&str> = share
            .manifest
            .files
            .iter()
            .map(|f| f.path.as_str())
            .collect();
        writer::check_strangers(&self.path.join(BUNDLE_DIR), &share.manifest)?;
        let known = &mut self.closing.files;
        known.retain(|path, _| files.contains(path.as_str()));
        if let Some(path) = files
            .into_iter()
            .find(|path| !self.closing.files.contains_key(*path))
        {
            return Err(refuse(&self.path, format!("its ledger has no {path}")));
        }
        let claim = |unit: Unit| {
            let tensors = plan.planned(unit).map_or(0, |unit| unit.tensors.len());
            let entry = self.units.get(&unit);
            let entry = entry.filter(|entry| entry.stats.len() == tensors);
            let missing = || refuse(&self.path, format!("its ledger has no {unit}"));
            Ok((unit, entry.ok_or_else(missing)?.clone()))
        };
        share.units.into_iter().map(claim).collect()
    }
}

const fn wording(place: &str) -> Wording<'_> {
    Wording { done: "made", other: place, advice: "" }
}

/// A file of a part beside its bundle, which must be the one that the ledger speaks of.
fn read_book(part: &MadePart, name: &str, expected: Hash) -> Result<(PathBuf, Vec<u8>)> {
    let path = part.path.join(name);
    let bytes = read_required(&path, INDEX_LIMIT)?;
    finish::check_source(&path, Some(expected), blake3::hash(&bytes).into())?;
    Ok((path, bytes))
}

/// The plan of all parts, each of which must have it; and the hashes that the checkpoint's files must have, where
/// the plan knows them.
fn read_plan(parts: &[MadePart]) -> Result<(Plan, Vec<Option<Hash>>)> {
    let manifest = |part: &MadePart| read_book(part, PLANNED_MANIFEST_FILE, part.fingerprint.plan);
    let plan = |part: &MadePart| read_book(part, PLAN_FILE, part.record.plan);
    for part in &parts[1..] {
        manifest(part)?;
        plan(part)?;
    }
    let (path, bytes) = manifest(&parts[0])?;
    let manifest = Manifest::from_bytes(&path, &bytes)?;
    let (path, bytes) = plan(&parts[0])?;
    let plan = Plan::from_stored(&bytes, manifest);
    Ok(plan.map_err(|detail| FormatError::file(&path, detail))?)
}

/// The hash of every file of the checkpoint, from the blocks that the parts hashed.
fn sources(
    parts: &[MadePart],
    manifest: &Manifest,
    expected: &[Option<Hash>],
) -> Result<Vec<Hash>> {
    let first = &parts[0];
    let (block, files) = first.fingerprint.blocks();
    let files: Vec<_> = files.collect();
    let planned = manifest.checkpoint.files.iter();
    let planned: Vec<_> = planned
        .map(|file| (file.name.as_str(), file.size))
        .collect();
    if files != planned || !block.is_power_of_two() || block < blake3::CHUNK_LEN as u64 {
        return Err(refuse(&first.path, "its ledger and its plan are of different checkpoints"));
    }
    let hashes = files.iter().enumerate().map(|(at, (name, size))| {
        let found = source_hash(parts, at, (name, *size), block)?;
        finish::check_source(Path::new(name), expected.get(at).copied().flatten(), found)?;
        Ok(found)
    });
    hashes.collect()
}

/// The hash of one file of the checkpoint, of so many bytes.
fn source_hash(
    parts: &[MadePart],
    file: usize,
    (name, size): (&str, u64),
    block: u64,
) -> Result<Hash> {
    let runs = || {
        let runs = parts
            .iter()
            .flat_map(|part| part.closing.blocks.iter().map(move |run| (part, run)));
        runs.filter(|(_, run)| run.file == file)
    };
    let incomplete = || refuse(&parts[0].path, format!("no part answers for all of `{name}`"));
    // As many as the parts have, before a file's alleged size is believed.
    let given: usize = runs().map(|(_, run)| run.values.len()).sum();
    if size.div_ceil(block) > given as u64 {
        return Err(incomplete());
    }
    let mut tree = TreeHash::new(size, block);
    let mut single = None;
    for (part, HashedBlocks { first, values, .. }) in runs() {
        for (at, value) in values.iter().enumerate() {
            // A part may claim any place.
            let at = first.checked_add(at);
            let at = at
                .filter(|at| *at < tree.num_blocks())
                .ok_or_else(incomplete)?;
            let known = if tree.num_blocks() == 1 { single } else { tree.block(at) };
            if known.is_some_and(|known| known != value.0) {
                let detail = format!("it was made with another checkpoint: `{name}` differs");
                return Err(refuse(&part.path, detail));
            }
            single = Some(value.0);
            tree.restore(at, value.0);
        }
    }
    let whole =
        if tree.num_blocks() == 1 { single.map(Hash) } else { tree.finalize().map(Hash::from) };
    whole.ok_or_else(incomplete)
}

/// Takes the directory in which the bundle is put together, what an interrupted merge left there removed.
fn take(partial: &Path) -> Result<Locked> {
    if partial
        .symlink_metadata()
        .is_ok_and(|found| !found.is_dir())
    {
        let detail = mismatch("a directory", "a file or a link");
        return Err(ConvertError::Output { path: partial.to_owned(), detail });
    }
    std::fs::create_dir_all(partial).map_err(|e| FormatError::io(partial, e))?;
    let ledger = Locked::open(&partial.join(LEDGER_FILE))?;
    if !ledger.is_empty() {
        return Err(FormatError::Unfinished { path: partial.to_owned() }.into());
    }
    let bundle = partial.join(BUNDLE_DIR);
    match std::fs::remove_dir_all(&bundle) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(FormatError::io(&bundle, e).into())
        }
        _ => Ok(ledger),
    }
}

/// The part that has a file.
fn owner<'a>(parts: &'a [MadePart], file: &FileEntry) -> Option<&'a MadePart> {
    parts
        .iter()
        .find(|part| part.closing.files.contains_key(&file.path))
}

/// Links every file of the parts into the bundle, or copies it; gives how many each.
fn bring(parts: &[MadePart], manifest: &Manifest, writer: &BundleWriter) -> Result<(usize, usize)> {
    let (mut linked, mut copied) = (0, 0);
    for file in manifest
        .files
        .iter()
        .filter(|file| file.kind != FileKind::Report)
    {
        let Some(part) = owner(parts, file) else { continue };
        let (from, to) =
            (part.path.join(BUNDLE_DIR).join(&file.path), writer.dir().join(&file.path));
        let found = from
            .symlink_metadata()
            .map_err(|e| FormatError::io(&from, e))?;
        if !found.is_file() || found.len() != file.size {
            let detail = mismatch(format_args!("a file of {} bytes", file.size), found.len());
            return Err(FormatError::file(&from, detail).into());
        }
        to.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .map_err(|e| FormatError::io(&to, e))?;
        // Another file system, or one without links.
        if std::fs::hard_link(&from, &to).is_ok() {
            linked += 1;
        } else {
            writer.copy(&from, &file.path)?;
            copied += 1;
        }
    }
    Ok((linked, copied))
}

/// Reads every file of the bundle in the making and holds it and its shards against the ledgers.
fn check(
    parts: &[MadePart],
    manifest: &Manifest,
    (bundle, finished): (&Path, &BTreeMap<Unit, LedgerEntry>),
    options: &MergeOptions<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<()> {
    let mut shards = BTreeMap::<&str, Vec<(u64, u64, Hash)>>::new();
    for shard in manifest.shards() {
        let hash = finished
            .get(&shard.unit)
            .map_or(Hash::ZERO, |entry| entry.blake3);
        let of = shards.entry(shard.file).or_default();
        of.push((shard.extent.offset, shard.extent.len, hash));
    }
    let files: Vec<_> = manifest
        .files
        .iter()
        .filter(|f| f.kind != FileKind::Report)
        .collect();
    let (pool, mut done) = (thread_pool(options.threads)?, 0);
    let total: u64 = files.iter().map(|file| file.size).sum();
    let nothing = Vec::new();
    for some in files.chunks(options.threads.max(1)) {
        let check = |file: &&FileEntry| {
            let Some(part) = owner(parts, file) else { return Ok(()) };
            let path = part.path.join(BUNDLE_DIR).join(&file.path);
            let of = shards.get(file.path.as_str()).unwrap_or(&nothing);
            let expected = part.closing.files[&file.path];
            check_file(&bundle.join(&file.path), &path, of, expected, options.cancel)
        };
        let checked: Vec<Result<()>> = pool.install(|| some.par_iter().map(check).collect());
        checked.into_iter().collect::<Result<()>>()?;
        done += some.iter().map(|file| file.size).sum::<u64>();
        progress(done, total);
    }
    Ok(())
}

/// Holds one file against its hash and its shards (first byte, bytes, hash; in order) against theirs;
/// `name` is what it is called in a message.
fn check_file(
    path: &Path,
    name: &Path,
    shards: &[(u64, u64, Hash)],
    expected: Hash,
    cancel: &AtomicBool,
) -> Result<()> {
    let mut file = File::open(path).map_err(|e| FormatError::io(path, e))?;
    let (mut whole, mut buf, mut at) = (blake3::Hasher::new(), vec![0; BLOCK], 0);
    let mut hashers = vec![blake3::Hasher::new(); shards.len()];
    let mut first = 0;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(ConvertError::Stopped);
        }
        let read = file.read(&mut buf).map_err(|e| FormatError::io(path, e))?;
        if read == 0 {
            break;
        }
        let end = at + read as u64;
        whole.update(&buf[..read]);
        // Shards that end before these bytes are done; those that begin behind them wait.
        while first < shards.len() && shards[first].0 + shards[first].1 <= at {
            first += 1;
        }
        let some = shards.iter().zip(&mut hashers).skip(first);
        for ((start, len, _), hasher) in some.take_while(|((start, ..), _)| *start < end) {
            let (from, to) = (at.max(*start), end.min(start + len));
            hasher.update(&buf[(from - at) as usize..(to - at) as usize]);
        }
        at = end;
    }
    finish::check_source(name, Some(expected), whole.finalize().into())?;
    let mut found = shards.iter().zip(&hashers);
    let differs = found.find(|((.., hash), hasher)| Hash::from(hasher.finalize()) != *hash);
    differs.map_or(Ok(()), |((start, ..), _)| {
        let detail = format!("the shard at byte {start} is not the one that the ledger names");
        Err(FormatError::file(name, detail).into())
    })
}
