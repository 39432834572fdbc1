//! Are the bundle's bytes those that were written? Every byte is read once.

mod finite;
mod ranges;
mod scan;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use shardwright_format::bundle::read_manifest;
use shardwright_format::manifest::{FileKind, Hash, MANIFEST_FILE, line_ends};
use shardwright_format::pack::Packed;
use shardwright_format::{Bundle, FormatError, Manifest, Refusal, Unit};

use crate::check::finding::{Finding, Kind};
use crate::check::hashing::pool;
use crate::error::{Result, VerifyError};
use crate::monitor::{Meter, Monitor, Stage};
use scan::{FileMap, Scan, Scanner};

/// What a bundle's bytes were found to be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Integrity {
    /// The manifest's own hash; none when it is damaged.
    pub manifest: Option<Hash>,
    /// Every file of the manifest, in its order.
    pub files: Vec<FileCheck>,
    /// Bytes read.
    pub bytes: u64,
    /// Shards of all files.
    pub shards: u64,
    /// Everything that is wrong, in the order of files.
    pub findings: Vec<Finding>,
    /// What tools and repositories leave beside a bundle: no part of it, and no damage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<String>,
}

/// What one file was found to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileCheck {
    /// Path inside the bundle.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Size by the manifest, in bytes.
    pub size: u64,
    /// Shards it holds.
    pub shards: u64,
    /// Hash by the manifest.
    pub blake3: Hash,
    /// Nothing is wrong with it.
    pub sound: bool,
}

impl Integrity {
    /// Whether nothing is wrong.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether the weights are those that were written, whatever lies beside them.
    pub fn weights_hold(&self) -> bool {
        self.manifest.is_some()
            && self
                .files
                .iter()
                .all(|f| f.sound || f.kind != FileKind::Shards)
    }

    fn broken(why: Refusal) -> Self {
        let finding = Finding::refused(Kind::Manifest, MANIFEST_FILE, why);
        Self { findings: vec![finding], ..Self::default() }
    }
}

/// Checks the presence, size and hash of every file, the hash of every shard, that padding is
/// zero and every stored float finite, and that nothing else lies in the bundle. What the manifest alone can tell (ranges,
/// alignment, shapes) its own validator checks first.
///
/// A damaged manifest is a finding, and the only one: without it the rest means nothing.
///
/// # Errors
/// A directory without a manifest, and what the operating system refuses.
pub fn integrity(dir: &Path, threads: usize, monitor: &Monitor<'_>) -> Result<Integrity> {
    let manifest = match read_manifest(dir) {
        Ok(manifest) => manifest,
        Err(FormatError::File { detail, .. }) if Bundle::is_bundle(dir) => {
            return Ok(Integrity::broken(*detail));
        }
        Err(e) => return Err(e.into()),
    };
    let found = walk::walk(dir, &manifest)?;
    let maps = scan::file_maps(&manifest);
    let present: Vec<_> = maps
        .iter()
        .filter(|m| found.files.contains_key(&m.entry.path))
        .collect();
    let bytes = found.files.values().sum();
    let meter = Meter::new(monitor, Stage::Integrity, bytes);
    let scans = pool(threads)?.install(|| {
        present
            .par_iter()
            .map(|map| scan::scan(dir, map, &meter))
            .collect::<Result<Vec<_>>>()
    })?;
    let scans = present
        .iter()
        .map(|map| map.entry.path.as_str())
        .zip(scans)
        .collect();
    Ok(conclude(&manifest, &maps, &scans, found))
}

/// As [`integrity`], for a bundle that is packed in the file `path`, without unpacking it; gives
/// the manifest too, where it can be read.
///
/// The first damage is the only finding: what follows it cannot be told apart.
///
/// # Errors
/// What the operating system refuses.
pub fn packed_integrity(
    path: &Path,
    monitor: &Monitor<'_>,
) -> Result<(Option<Manifest>, Integrity)> {
    let damaged = |detail| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let finding = Finding::refused(Kind::Hash, &name, detail);
        Integrity { findings: vec![finding], ..Integrity::default() }
    };
    let packed = match Packed::open(path) {
        Err(FormatError::File { detail, .. }) => return Ok((None, damaged(*detail))),
        opened => opened?,
    };
    let manifest = packed.manifest().clone();
    let maps = scan::file_maps(&manifest);
    let meter = Meter::new(monitor, Stage::Integrity, manifest.files.iter().map(|f| f.size).sum());
    let (mut scans, mut scanner) = (HashMap::new(), None);
    let mut files = maps.iter();
    // Files come in the order of the manifest, which is that of their maps.
    let read = packed.each(|_, offset, bytes| {
        if offset == 0 {
            scans.extend(finished(scanner.take()));
            scanner = files.next().map(|map| (map, Scanner::new(map)));
        }
        if let Some((_, scanner)) = &mut scanner {
            scanner.update(offset, bytes);
        }
        meter.add(bytes.len() as u64)
    });
    match read {
        Err(VerifyError::Format(FormatError::File { detail, .. })) => {
            return Ok((None, damaged(*detail)));
        }
        read => read?,
    }
    scans.extend(finished(scanner));
    let found = conclude(&manifest, &maps, &scans, walk::Found::default());
    Ok((Some(manifest), found))
}

fn finished<'a>(scanner: Option<(&FileMap<'a>, Scanner<'_>)>) -> Option<(&'a str, Scan)> {
    scanner.map(|(map, scanner)| (map.entry.path.as_str(), scanner.finish()))
}

fn conclude(
    manifest: &Manifest,
    maps: &[FileMap<'_>],
    scans: &HashMap<&str, Scan>,
    found: walk::Found,
) -> Integrity {
    let names = Names::new(maps);
    let mut result = Integrity { manifest: Some(manifest.blake3), ..Integrity::default() };
    for map in maps {
        let entry = map.entry;
        let path = entry.path.as_str();
        let findings = match scans.get(path) {
            Some(scan) => judge(map, scan, &names),
            None if found.strange.contains(path) => Vec::new(),
            None => {
                let expected = format!("a file of {} bytes", entry.size);
                vec![Finding::file(Kind::Missing, path, "missing").expected(expected, "none")]
            }
        };
        result.files.push(FileCheck {
            path: path.to_owned(),
            kind: entry.kind,
            size: entry.size,
            shards: map.shards.len() as u64,
            blake3: entry.blake3,
            sound: findings.is_empty() && scans.contains_key(path),
        });
        result.shards += map.shards.len() as u64;
        result.bytes += scans.get(path).map_or(0, |scan| scan.len);
        result.findings.extend(findings);
    }
    result.findings.extend(found.findings);
    result.beside = found.beside;
    result
}

/// What hash belongs to what: to name bytes that lie in the wrong place.
struct Names<'a> {
    files: HashMap<Hash, &'a str>,
    shards: HashMap<Hash, Unit>,
}

impl<'a> Names<'a> {
    fn new(maps: &[FileMap<'a>]) -> Self {
        Self {
            files: maps
                .iter()
                .map(|m| (m.entry.blake3, m.entry.path.as_str()))
                .collect(),
            shards: maps
                .iter()
                .flat_map(|m| &m.shards)
                .map(|s| (s.blake3, s.unit))
                .collect(),
        }
    }
}

fn judge(map: &FileMap<'_>, scan: &Scan, names: &Names<'_>) -> Vec<Finding> {
    let entry = map.entry;
    let finding = |kind, what: &str| Finding::file(kind, &entry.path, what);
    if let Some(pointer) = scan
        .pointer
        .as_ref()
        .filter(|_| scan.blake3 != entry.blake3)
    {
        let expected = format!("{} bytes", entry.size);
        return vec![finding(Kind::Size, "contents").expected(expected, pointer)];
    }
    if scan.blake3 != entry.blake3
        && let Some(other) = names.files.get(&scan.blake3)
    {
        let found = format!("those of {other}");
        return vec![finding(Kind::Hash, "bytes").expected("its own", found)];
    }
    if scan.without_returns == Some(entry.blake3) {
        return vec![Finding::refused(Kind::Hash, &entry.path, line_ends())];
    }
    let mut findings = Vec::new();
    if scan.len != entry.size {
        let size = finding(Kind::Size, "size").expected(format!("{} bytes", entry.size), scan.len);
        findings.push(size);
    }
    for (shard, found) in map.shards.iter().zip(&scan.shards) {
        let what = match found {
            None => finding(Kind::Size, "range").expected(
                format!("bytes {} to {}", shard.start, shard.end),
                format!("the file's end at {}", scan.len),
            ),
            Some(hash) if *hash == shard.blake3 => continue,
            Some(hash) => match names.shards.get(hash) {
                Some(other) => {
                    finding(Kind::Hash, "bytes").expected("its own", format!("those of {other}"))
                }
                None => finding(Kind::Hash, "BLAKE3").expected(shard.blake3, hash),
            },
        };
        findings.push(what.shard(shard.unit));
    }
    for (gap, dirt) in map.gaps.iter().zip(&scan.gaps) {
        if let Some((offset, byte)) = dirt {
            let found = format!("{byte} at byte {offset}");
            let what = finding(Kind::Padding, gap.place()).expected("zeros", found);
            findings.push(what.shard(gap.unit));
        }
    }
    if findings.is_empty() && scan.blake3 != entry.blake3 {
        findings.push(finding(Kind::Hash, "BLAKE3").expected(entry.blake3, scan.blake3));
    }
    findings.extend(floats(map, scan));
    findings
}

/// Floats that are not finite; those of damaged shards mean nothing.
fn floats(map: &FileMap<'_>, scan: &Scan) -> Vec<Finding> {
    let damaged: BTreeSet<_> = map
        .shards
        .iter()
        .zip(&scan.shards)
        .filter(|(shard, found)| **found != Some(shard.blake3))
        .map(|(shard, _)| shard.unit)
        .collect();
    let runs = map.floats.iter().zip(&scan.floats);
    runs.filter(|(run, _)| !damaged.contains(&run.unit))
        .filter_map(|(run, wrong)| Some(run.finding(&map.entry.path, (*wrong)?)))
        .collect()
}
