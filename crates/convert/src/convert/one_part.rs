//! Makes one part of a conversion: whole files of the bundle, and a ledger that says what they are.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::partial_path;
use shardwright_format::manifest::Hash;
use shardwright_format::writer::{self, BundleWriter};
use shardwright_format::{FormatError, Part};

use super::ledger::{Closing, Fingerprint, PartLedger};
use super::part::{Share, blocks};
use super::source::Source;
use super::{
    Calibration, ConvertOptions, LEDGER_FILE, Phase, Progress, Scope, check_free, check_room,
    finish, make_shards, refuse_output_inside_checkpoint,
};
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// Name in a part of what [`Plan::to_stored`] gives.
pub const PLAN_FILE: &str = "plan.json";
/// Name in a part of the planned manifest, every hash zero. Not a bundle's: a part is none.
pub const PLANNED_MANIFEST_FILE: &str = "planned-manifest.json";
/// What the ledger and the plan of a part may take besides its files.
const BOOKS_BYTES: u64 = 4 << 20;

/// What a part is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartReport {
    /// Its number, from 1.
    pub part: u32,
    /// How many there are.
    pub parts: u32,
    /// The files of the bundle that it has.
    pub files: Vec<String>,
    /// Shards in them.
    pub shards: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// Makes a part of the bundle `out` as planned, at [`Part::beside`]. All parts of a conversion, made anywhere,
/// are put together by [`merge`](super::merge()).
///
/// `progress` is called from this thread only.
///
/// # Errors
/// As [`convert`](super::convert()); a calibration by a text, which goes through the whole model.
pub fn convert_part(
    plan: &Plan,
    checkpoint: &Checkpoint,
    out: &Path,
    part: Part,
    options: &ConvertOptions<'_>,
    progress: &dyn Fn(Progress),
) -> Result<PartReport> {
    if matches!(options.calibration, Calibration::Text(_)) {
        let detail = "a part cannot be calibrated by a text, which goes through all layers";
        return Err(ConvertError::plan(detail));
    }
    let out = part.beside(out);
    let partial = partial_path(&out);
    if !checkpoint.is_single_file() {
        refuse_output_inside_checkpoint(checkpoint.root(), &out)?;
    }
    let share = Share::new(&plan.manifest, part);
    let mut source = Source::new(checkpoint, &options.buffers)?;
    let (own, bytes) = blocks(plan, &source, part)?;
    source.total = bytes;
    let expected = checkpoint.files().iter().map(|file| file.blake3);
    let stored = plan.to_stored(expected.collect());
    let fingerprint = Fingerprint::new(plan, checkpoint, source.block)?;
    let fingerprint = fingerprint.of_part(part, blake3::hash(&stored).into(), &source)?;
    if already_made(&out, options.resume, &fingerprint)? {
        progress(complete(&share, bytes));
        return Ok(report(&share, part));
    }
    check_room(share.bytes() + BOOKS_BYTES, &partial)?;
    check_free(&partial, options.resume)?;
    let units = share.units.clone();
    let scope = Scope { partial: &partial, manifest: &share.manifest, units, blocks: Some(&own) };
    let mut made = make_shards(plan, &source, &scope, &fingerprint, options, progress)?;
    let files = put_files(&share, &source, &made.writer)?;
    let manifest = plan.manifest.to_bytes();
    for (name, bytes) in [(PLAN_FILE, &stored), (PLANNED_MANIFEST_FILE, &manifest)] {
        std::fs::write(partial.join(name), bytes).map_err(|e| FormatError::io(&partial, e))?;
    }
    made.writer.seal(&share.manifest)?;
    made.ledger
        .close(&Closing { blake3: Hash::ZERO, files, blocks: source.hashed() })?;
    writer::sync_dir(&partial)?;
    writer::publish(&partial, &out)?;
    Ok(report(&share, part))
}

/// Refuses an output that exists, unless `resume` and it is this very part.
fn already_made(out: &Path, resume: bool, fingerprint: &Fingerprint) -> Result<bool> {
    if out.symlink_metadata().is_err() {
        return Ok(false);
    }
    let made = |found: PartLedger| found.closing.is_some() && found.fingerprint == *fingerprint;
    if resume && PartLedger::read(&out.join(LEDGER_FILE)).is_ok_and(made) {
        return Ok(true);
    }
    let detail = "already exists; remove it or choose another name".to_owned();
    Err(ConvertError::Output { path: out.to_owned(), detail: detail.into() })
}

fn complete(share: &Share, bytes: u64) -> Progress {
    let shards = share.units.len();
    Progress {
        phase: Phase::Complete,
        shards,
        total_shards: shards,
        source_bytes: 0,
        total_source_bytes: bytes,
    }
}

fn report(share: &Share, part: Part) -> PartReport {
    PartReport {
        part: part.index(),
        parts: part.count(),
        files: share
            .manifest
            .files
            .iter()
            .map(|file| file.path.clone())
            .collect(),
        shards: share.units.len(),
        bytes: share.bytes(),
    }
}

/// Makes the part's copies; gives the hash of each of its files.
fn put_files(
    share: &Share,
    source: &Source<'_>,
    writer: &BundleWriter,
) -> Result<BTreeMap<String, Hash>> {
    let files = share.manifest.files.iter();
    files
        .map(|file| Ok((file.path.clone(), finish::put(source, writer, file)?)))
        .collect()
}
