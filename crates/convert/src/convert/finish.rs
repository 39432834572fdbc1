//! Puts the bundle together once every shard is made.

use std::collections::BTreeMap;
use std::path::Path;

use shardwright_format::manifest::{FileEntry, FileKind, Hash, Manifest};
use shardwright_format::writer::BundleWriter;
use shardwright_format::{FormatError, Unit, mismatch};

use super::ledger::LedgerEntry;
use super::source::Source;
use crate::error::{ConvertError, Result};
use crate::plan::ConversionReport;
use crate::plan::Plan;

/// Sees to it that a file other than the report is in the bundle; gives its hash.
pub type PutFile<'a> = &'a dyn Fn(&BundleWriter, &FileEntry) -> Result<Hash>;

/// Fills in the manifest, the hashes of the checkpoint's files in it, puts every file, writes the report,
/// and the manifest last.
pub fn finish(
    plan: &Plan,
    sources: &[Hash],
    writer: BundleWriter,
    finished: &BTreeMap<Unit, LedgerEntry>,
    report: &ConversionReport,
    put: PutFile<'_>,
) -> Result<()> {
    let mut manifest = plan.manifest.clone();
    fill_shards(&mut manifest, finished)?;
    for (file, hash) in manifest.checkpoint.files.iter_mut().zip(sources) {
        file.blake3 = *hash;
    }
    for file in &mut manifest.files {
        file.blake3 = match file.kind {
            FileKind::Report => writer.put(&file.path, &report.to_padded(file.size))?,
            FileKind::Shards | FileKind::Copy => put(&writer, file)?,
        };
    }
    Ok(writer.finish(&manifest)?)
}

/// Hashes of the checkpoint's files, each the one that the bundle that it belongs to says, if it does.
pub fn source_hashes(source: &Source<'_>) -> Result<Vec<Hash>> {
    let found = source.finalize_all()?;
    for (file, found) in source.checkpoint.files().iter().zip(&found) {
        check_source(file.file.path(), file.blake3, *found)?;
    }
    Ok(found)
}

/// Refuses a file that is not what the bundle that it belongs to says.
pub fn check_source(path: &Path, expected: Option<Hash>, found: Hash) -> Result<()> {
    match expected.filter(|expected| *expected != found) {
        None => Ok(()),
        Some(expected) => {
            let detail = mismatch(format_args!("hash {expected}"), found).at("damaged");
            Err(FormatError::file(path, detail).into())
        }
    }
}

/// Gives the hash of a shard file that is made, or copies a file of the checkpoint.
pub fn put(source: &Source<'_>, writer: &BundleWriter, file: &FileEntry) -> Result<Hash> {
    match writer
        .file(&file.path)
        .filter(|_| file.kind == FileKind::Shards)
    {
        Some(at) => Ok(writer.hash(at)?),
        None => copy(source, writer, &file.path, file.size),
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
    let detail = mismatch(format_args!("{size} bytes"), found).at("changed during the conversion");
    Err(FormatError::file(&from, detail).into())
}

/// The hash of every shard.
fn fill_shards(manifest: &mut Manifest, finished: &BTreeMap<Unit, LedgerEntry>) -> Result<()> {
    let entry = |unit: Unit| {
        finished
            .get(&unit)
            .ok_or_else(|| ConvertError::plan(format!("{unit} was not converted")))
    };
    for shard in &mut manifest.dense {
        shard.blake3 = entry(shard.unit)?.blake3;
    }
    for shards in &mut manifest.experts {
        let (layer, numbers) = (shards.layer, shards.numbers().collect::<Vec<_>>());
        for (hash, expert) in shards.blake3.iter_mut().zip(numbers) {
            *hash = entry(Unit::Expert { layer, expert })?.blake3;
        }
    }
    Ok(())
}
