//! The manifest: what a bundle holds, how it is stored, and where it came from.
//!
//! `docs/FORMAT.md` is the normative text; the two change together.

mod calibration;
mod excerpt;
pub mod seal;
mod strict;
#[cfg(test)]
pub(crate) mod tests;
mod validate;
mod walk;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{FormatError, Result};
use crate::model::ModelSpec;
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::unit::{TensorEntry, Unit};
pub use calibration::{Calibration, LineHashes, MAX_CALIBRATION_LINES, SharedLines};
pub use excerpt::Excerpt;
use seal::{own_hash, seal};
pub use strict::MAX_DEPTH;
pub use walk::Shard;

/// First field of every manifest.
pub const FORMAT: &str = "shardwright-bundle";
/// The version this code reads and writes.
pub const VERSION: u32 = 1;
/// The manifest's name in the bundle; without it a directory is not a bundle.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of a signature of the manifest, which a bundle may have beside it.
pub const SIGNATURE_FILE: &str = "manifest.json.minisig";
/// The conversion report's name in the bundle.
pub const REPORT_FILE: &str = "report.json";
/// The bundle's directory of the files that hold experts.
pub const EXPERTS_DIR: &str = "experts";
/// Shards start on multiples of this unless the user says otherwise: the page of iOS and of
/// Android's larger setting, and a multiple of what direct I/O wants.
pub const DEFAULT_ALIGNMENT: u64 = 16 * 1024;
/// Smallest and largest alignment a bundle may have; it is a power of two between.
pub const ALIGNMENTS: std::ops::RangeInclusive<u64> = 4096..=1 << 20;
/// Dense files are cut between shards before they pass this size, in bytes, so that devices with
/// 32-bit buffer limits can map them.
pub const DENSE_FILE_LIMIT: u64 = 3_500_000_000;
/// Entries of a layer's experts at most: ways in which experts of one layer may be stored.
pub const MAX_EXPERT_ENTRIES: usize = 16;

/// A BLAKE3 hash, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Stands where the manifest's own hash will be.
    pub const ZERO: Self = Self([0; 32]);
}

impl From<blake3::Hash> for Hash {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> Self {
        blake3::Hash::from_bytes(hash.0).to_hex().to_string()
    }
}

impl TryFrom<String> for Hash {
    type Error = blake3::HexError;
    fn try_from(hex: String) -> Result<Self, Self::Error> {
        blake3::Hash::from_hex(hex).map(Self::from)
    }
}

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// What `manifest.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// BLAKE3 of the file with these 64 digits replaced by zeros. First, so that a reader finds it
    /// at a fixed place.
    pub blake3: Hash,
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// Program and version that wrote the bundle.
    pub generator: String,
    /// Every shard starts on a multiple of this.
    pub alignment: u64,
    /// The model.
    pub model: ModelSpec,
    /// The recipe that made the bundle, complete enough to make it again.
    pub recipe: serde_json::Value,
    /// The checkpoint that it was made from.
    pub checkpoint: CheckpointRecord,
    /// What it was calibrated with; none when the weights alone decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Every file of the bundle but the manifest, sorted by path.
    pub files: Vec<FileEntry>,
    /// Dense shards: embedding, layers in order, head; then parts besides the text model, where the
    /// bundle has any, in the order of [`Unit::EXTRAS`].
    pub dense: Vec<DenseShard>,
    /// Experts, layer after layer: one entry for all of a layer that are stored alike, by the first of them.
    pub experts: Vec<ExpertShards>,
}

/// The checkpoint that a bundle was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRecord {
    /// Its weight files, sorted by name; of an excerpt, those that hold its tensors.
    pub files: Vec<SourceFile>,
    /// Its tensors that are not in the bundle, and why; of an excerpt, among those of its layers,
    /// the embedding and the head.
    pub ignored: Vec<Ignored>,
    /// The layers that the bundle has, where not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<Excerpt>,
}

/// A weight file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its hash.
    pub blake3: Hash,
}

/// A tensor of the checkpoint that is not in the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ignored {
    /// Its name.
    pub tensor: String,
    /// What it is for, if it is part of something else than the text model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Why it is left out.
    pub reason: String,
}

impl Ignored {
    /// What is left out, in lines: each tensor in its own, but those of a part besides the text model
    /// together.
    pub fn lines(ignored: &[Self]) -> Vec<String> {
        let mut parts = BTreeMap::<(Role, &str), usize>::new();
        let mut lines = Vec::new();
        for Self { tensor, role, reason } in ignored {
            match role {
                Some(role) => *parts.entry((*role, reason)).or_default() += 1,
                None => lines.push(format!("{tensor}: {reason}")),
            }
        }
        let line = |((role, reason), count)| format!("{role}: {count} tensors: {reason}");
        lines.extend(parts.into_iter().map(line));
        lines
    }
}

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Path inside the bundle, `/` between names.
    pub path: String,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Hash of the whole file, padding included.
    pub blake3: Hash,
}

/// What a file of the bundle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// Holds shards.
    Shards,
    /// Copied from the checkpoint as it was.
    Copy,
    /// What the conversion did: [`REPORT_FILE`] and nothing else.
    Report,
}

impl FileKind {
    /// Its name in the manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shards => "shards",
            Self::Copy => "copy",
            Self::Report => "report",
        }
    }
}

/// Bytes of a file that are one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Hash of those bytes.
    pub blake3: Hash,
}

/// A shard that is not an expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseShard {
    /// What it holds.
    pub unit: Unit,
    /// The file that it lies in.
    pub file: String,
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Hash of those bytes.
    pub blake3: Hash,
    /// In order of offset.
    pub tensors: Arc<[TensorEntry]>,
}

/// Experts of one layer that are stored alike, in a file of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertShards {
    /// The layer.
    pub layer: u32,
    /// Which of its experts these are, ascending; absent where they are all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<u32>>,
    /// The file.
    pub file: String,
    /// The expert at position `i` starts at `i * stride`.
    pub stride: u64,
    /// Bytes of one expert.
    pub len: u64,
    /// The tensors of every expert, in order of offset. Their source views carry the expert.
    pub tensors: Arc<[TensorEntry]>,
    /// Hash of each expert's bytes.
    pub blake3: Vec<Hash>,
}

impl ExpertShards {
    /// The experts, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        let all = self
            .experts
            .is_none()
            .then_some(0..self.blake3.len() as u32);
        let some = self.experts.iter().flatten().copied();
        all.into_iter().flatten().chain(some)
    }

    /// The unit that stands for all of them: the first.
    pub fn first(&self) -> Unit {
        Unit::Expert { layer: self.layer, expert: self.numbers().next().unwrap_or_default() }
    }

    /// Where an expert lies; `None` for one that is not among these.
    pub fn extent(&self, expert: u32) -> Option<Extent> {
        let position = match &self.experts {
            Some(experts) => experts.binary_search(&expert).ok()?,
            None => expert as usize,
        };
        let blake3 = *self.blake3.get(position)?;
        let offset = (position as u64).checked_mul(self.stride)?;
        Some(Extent { offset, len: self.len, blake3 })
    }
}

impl DenseShard {
    /// Where the shard lies.
    pub const fn extent(&self) -> Extent {
        Extent { offset: self.offset, len: self.len, blake3: self.blake3 }
    }
}

/// What a manifest starts with, up to its own hash.
const PREFIX: &str = "{\n  \"blake3\": \"";

impl Manifest {
    /// The shards of what is not the text model.
    pub fn extras(&self) -> &[DenseShard] {
        self.dense
            .get(self.model.layers.len() + 2..)
            .unwrap_or_default()
    }

    /// The entry that holds an expert, and where in its file.
    pub fn expert(&self, layer: u32, expert: u32) -> Option<(&ExpertShards, Extent)> {
        // A layer has few entries.
        let start = self.experts.partition_point(|shards| shards.layer < layer);
        let mut layers = self.experts[start..]
            .iter()
            .take_while(|shards| shards.layer == layer);
        layers.find_map(|shards| Some((shards, shards.extent(expert)?)))
    }

    /// Every unit in order: those of the text model, then the parts besides it.
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        self.model
            .units()
            .chain(self.extras().iter().map(|shard| shard.unit))
    }

    /// The position in `dense` of a unit's shard; none for experts and for what the bundle does not
    /// have.
    pub fn dense_position(&self, unit: Unit) -> Option<usize> {
        let last = self.model.layers.len() + 1;
        let at = match unit {
            Unit::Embedding => 0,
            Unit::Layer(layer) => 1 + layer as usize,
            Unit::Head => last,
            Unit::Expert { .. } => return None,
            Unit::Vision | Unit::Mtp | Unit::Indexer => {
                last + 1 + self.extras().iter().position(|shard| shard.unit == unit)?
            }
        };
        self.dense
            .get(at)
            .filter(|shard| shard.unit == unit)
            .map(|_| at)
    }

    /// The bytes of `manifest.json`, the manifest's own hash filled in.
    ///
    /// The length does not depend on any hash, so a plan knows it before the first one.
    ///
    /// # Panics
    /// Never: a manifest always serializes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut manifest = self.clone();
        manifest.blake3 = Hash::ZERO;
        let mut bytes = serde_json::to_vec_pretty(&manifest).expect("a manifest serializes");
        bytes.push(b'\n');
        seal(&mut bytes, PREFIX);
        bytes
    }

    fn to_value(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Reads and validates the bytes of `manifest.json`.
    ///
    /// # Errors
    /// Bytes that are not a manifest, whose hash is not their own, or that contradict themselves:
    /// see [`Self::validate`].
    pub fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        Self::read(path, bytes).map_err(|e| {
            let written = without_returns(bytes);
            let only = written.len() < bytes.len() && Self::read(path, &written).is_ok();
            if only { FormatError::file(path, line_ends()) } else { e }
        })
    }

    fn read(path: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |detail: Refusal| FormatError::file(path, detail);
        let manifest: Self = match serde_json::from_slice(bytes) {
            Ok(manifest) => manifest,
            Err(e) => {
                return Err(refuse(wrong_kind(bytes).unwrap_or_else(|| e.to_string().into())));
            }
        };
        let found = own_hash(bytes, PREFIX)
            .ok_or_else(|| refuse("expected the field `blake3` first, as written".into()))?;
        if found != manifest.blake3 {
            let (expected, blake3) = (found, manifest.blake3);
            let damaged = mismatch(expected, blake3).at("manifest hash");
            return Err(refuse(wrong_kind(bytes).unwrap_or(damaged)));
        }
        strict::check(bytes, &manifest.to_value()).map_err(refuse)?;
        manifest.validate().map_err(refuse)?;
        Ok(manifest)
    }
}

/// What is wrong with a file in which nothing but the line ends changed.
pub fn line_ends() -> Refusal {
    let found = "CR LF, which git puts there on Windows: run `git config core.autocrlf false` and fetch the file again";
    mismatch("LF, as written", found).at("line ends")
}

/// Bytes without the returns that a tool may have put before line ends.
pub fn without_returns(bytes: &[u8]) -> Vec<u8> {
    bytes
        .iter()
        .copied()
        .filter(|byte| *byte != b'\r')
        .collect()
}

/// A better word than the parser's for a file that is no manifest of this version.
fn wrong_kind(bytes: &[u8]) -> Option<Refusal> {
    #[derive(Deserialize)]
    struct Kind {
        format: Option<String>,
        version: Option<u64>,
    }
    let kind: Kind = serde_json::from_slice(bytes).ok()?;
    match (kind.format.as_deref(), kind.version) {
        (Some(FORMAT), Some(version)) if version == u64::from(VERSION) => None,
        (Some(FORMAT), Some(version)) => Some(
            mismatch(VERSION, format_args!("{version}; use a newer shardwright")).at("version"),
        ),
        (Some(FORMAT), None) => Some(mismatch(VERSION, "none").at("version")),
        (found, _) => Some(mismatch(FORMAT, found.unwrap_or("none")).at("format")),
    }
}
