//! Puts the bundle together once every shard is made.

use std::collections::BTreeMap;

use shardwright_format::manifest::{FileKind, Hash, Manifest};
use shardwright_format::writer::BundleWriter;
use shardwright_format::{FormatError, Unit};

use super::ledger::LedgerEntry;
use super::source::Source;
use crate::error::{ConvertError, Result};
use crate::plan::ConversionReport;
use crate::plan::Plan;

/// Fills in the manifest, writes report and copies, and the manifest last.
pub fn finish(
    plan: &Plan,
    source: &Source<'_>,
    writer: BundleWriter,
    finished: &BTreeMap<Unit, LedgerEntry>,
    report: &ConversionReport,
) -> Result<()> {
    let mut manifest = plan.manifest.clone();
    fill_shards(&mut manifest, finished)?;
    for (at, file) in manifest.checkpoint.files.iter_mut().enumerate() {
        file.blake3 = source.finalize(at)?;
        check_source(source, at, file.blake3)?;
    }
    let mut shard_file = 0;
    for file in &mut manifest.files {
        file.blake3 = match file.kind {
            FileKind::Shards => {
                shard_file += 1;
                writer.hash(shard_file - 1)?
            }
            FileKind::Report => writer.put(&file.path, &report.to_padded(file.size))?,
            FileKind::Copy => copy(source, &writer, &file.path, file.size)?,
        };
    }
    Ok(writer.finish(&manifest)?)
}

/// Refuses a file that is not what the bundle that it belongs to says.
fn check_source(source: &Source<'_>, at: usize, found: Hash) -> Result<()> {
    let file = &source.checkpoint.files()[at];
    match file.blake3.filter(|expected| *expected != found) {
        None => Ok(()),
        Some(expected) => {
            let detail = format!("damaged: expected hash {expected}, found {found}");
            Err(FormatError::file(file.file.path(), detail).into())
        }
    }
}

/// Copies a file of the checkpoint that must not have changed since it was planned.
fn copy(source: &Source<'_>, writer: &BundleWriter, path: &str, size: u64) -> Result<Hash> {
    if let Some(made) = source.checkpoint.synthesized(path)? {
        return Ok(writer.put(path, made)?);
    }
    let from = source.checkpoint.root().join(path);
    let (found, hash) = writer.copy(&from, path)?;
    if found == size {
        return Ok(hash);
    }
    let detail = format!("changed during the conversion: expected {size} bytes, found {found}");
    Err(FormatError::file(&from, detail).into())
}

/// The hash of every shard.
fn fill_shards(manifest: &mut Manifest, finished: &BTreeMap<Unit, LedgerEntry>) -> Result<()> {
    let entry = |unit: Unit| {
        finished
            .get(&unit)
            .ok_or_else(|| ConvertError::Plan(format!("{unit} was not converted")))
    };
    for shard in &mut manifest.dense {
        shard.blake3 = entry(shard.unit)?.blake3;
    }
    for shards in &mut manifest.experts {
        let layer = shards.layer;
        for (hash, expert) in shards.blake3.iter_mut().zip(0u32..) {
            *hash = entry(Unit::Expert { layer, expert })?.blake3;
        }
    }
    Ok(())
}
