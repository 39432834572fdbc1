//! Puts the bundle together once every shard is made.

use std::collections::BTreeMap;

use shardwright_format::manifest::{Codec, FileKind, Hash, Manifest};
use shardwright_format::writer::BundleWriter;
use shardwright_format::{FormatError, Unit};

use super::ledger::Line;
use super::memory::COPY_BLOCK;
use super::source::Source;
use crate::error::{ConvertError, Result};
use crate::plan::{Plan, shard_files};
use crate::report::ConversionReport;

/// Fills in the manifest, writes report and copies, and the manifest last.
pub fn finish(
    plan: &Plan,
    source: &Source<'_>,
    mut writer: BundleWriter,
    lines: &BTreeMap<Unit, Line>,
    report: &ConversionReport,
) -> Result<()> {
    let mut manifest = plan.manifest.clone();
    fill_shards(&mut manifest, lines)?;
    if manifest.codec != Codec::None {
        close_gaps(&plan.manifest, &mut manifest, &mut writer)?;
    }
    for (at, file) in manifest.checkpoint.files.iter_mut().enumerate() {
        file.blake3 = source.finalize(at)?;
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

/// Copies a file of the checkpoint that must not have changed since it was planned.
fn copy(source: &Source<'_>, writer: &BundleWriter, path: &str, size: u64) -> Result<Hash> {
    if let Some(made) = source.checkpoint.made(path) {
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

/// Hash and stored length of every shard.
fn fill_shards(manifest: &mut Manifest, lines: &BTreeMap<Unit, Line>) -> Result<()> {
    let line = |unit: Unit| {
        lines
            .get(&unit)
            .ok_or_else(|| ConvertError::Plan(format!("{unit} was not converted")))
    };
    for shard in &mut manifest.dense {
        let line = line(shard.unit)?;
        (shard.blake3, shard.stored) = (line.blake3, line.stored);
    }
    for shards in &mut manifest.experts {
        let layer = shards.layer;
        for (hash, expert) in shards.blake3.iter_mut().zip(0u32..) {
            *hash = line(Unit::Expert { layer, expert })?.blake3;
        }
        for (stored, expert) in shards.stored.iter_mut().zip(0u32..) {
            *stored = line(Unit::Expert { layer, expert })?.stored;
        }
    }
    Ok(())
}

/// Moves compressed shards down to where they would lie if their lengths had been known, and
/// cuts the files. Every shard moves down or stays, so the one before is never in the way.
///
/// An interruption here leaves shards that `--resume` finds damaged and makes again.
fn close_gaps(
    planned: &Manifest,
    manifest: &mut Manifest,
    writer: &mut BundleWriter,
) -> Result<()> {
    let alignment = manifest.alignment;
    let mut end = 0;
    let mut last = String::new();
    for (shard, was) in manifest.dense.iter_mut().zip(&planned.dense) {
        if shard.file != last {
            (end, last) = (0, shard.file.clone());
        }
        shard.offset = end;
        shift(writer, &shard.file, [was.offset, end, shard.stored], alignment)?;
        end += shard.stored.next_multiple_of(alignment);
    }
    for (shards, was) in manifest.experts.iter_mut().zip(&planned.experts) {
        let longest = shards.stored.iter().copied().max().unwrap_or_default();
        shards.stride = longest.next_multiple_of(alignment);
        for (at, stored) in (0..).zip(&shards.stored) {
            let place = [at * was.stride, at * shards.stride, *stored];
            shift(writer, &shards.file, place, shards.stride)?;
        }
    }
    for file in shard_files(manifest)? {
        if let Some(at) = writer.file(&file.path) {
            writer.resize(at, file.size)?;
        }
        if let Some(entry) = manifest.files.iter_mut().find(|f| f.path == file.path) {
            entry.size = file.size;
        }
    }
    Ok(())
}

/// Moves `len` bytes of a file from one offset down to another, and makes what follows zero up to
/// a multiple of `step`.
fn shift(writer: &BundleWriter, path: &str, [from, to, len]: [u64; 3], step: u64) -> Result<()> {
    let Some(file) = writer.file(path) else { return Ok(()) };
    let mut buf = Vec::new();
    for start in (0..len).step_by(COPY_BLOCK as usize).filter(|_| from != to) {
        buf.resize(COPY_BLOCK.min(len - start) as usize, 0);
        writer.read_at(file, from + start, &mut buf)?;
        writer.write_at(file, to + start, &buf)?;
    }
    let padding = len.next_multiple_of(step) - len;
    buf.clear();
    buf.resize(padding as usize, 0);
    Ok(writer.write_at(file, to + len, &buf)?)
}
