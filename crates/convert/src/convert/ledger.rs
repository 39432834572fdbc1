//! What an interrupted conversion leaves behind: a line per finished unit.
//!
//! A line is a claim, not a fact: `--resume` reads each shard back and compares its hash, so a
//! line may reach the disk before or after the bytes that it speaks of. It reads back everything
//! that the shard was made from, too: names, sizes and times of a file do not tell that its bytes
//! are the same, and hashing is far cheaper than the search for codes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::manifest::{Codec, Hash};
use shardwright_format::{FormatError, Unit};
use shardwright_quant::QuantStats;

use super::source::Run;
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// Version of the ledger itself.
const LEDGER: u32 = 2;

/// What must be the same for a conversion to go on. The first line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    ledger: u32,
    generator: String,
    recipe: serde_json::Value,
    alignment: u64,
    codec: Codec,
    /// Bytes of a hashed block of the checkpoint files.
    source_block: u64,
    files: Vec<SourceHeader>,
    /// Hash of the planned manifest: the model and every file's size.
    plan: Hash,
}

/// A checkpoint file as far as its header tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceHeader {
    name: String,
    size: u64,
    header: Hash,
}

impl Fingerprint {
    /// Of a plan and the checkpoint it was made from.
    pub fn new(plan: &Plan, checkpoint: &Checkpoint, source_block: u64) -> Result<Self> {
        let header = |f: &shardwright_format::checkpoint::CheckpointFile| {
            let mut bytes = vec![0; f.header_len as usize];
            f.file.read_at(0, &mut bytes)?;
            let header = blake3::hash(&bytes).into();
            Ok(SourceHeader { name: f.name.clone(), size: f.file.len(), header })
        };
        let files: Result<Vec<_>> = checkpoint.files().iter().map(header).collect();
        Ok(Self {
            ledger: LEDGER,
            generator: plan.manifest.generator.clone(),
            recipe: plan.manifest.recipe.clone(),
            alignment: plan.manifest.alignment,
            codec: plan.manifest.codec,
            source_block,
            files: files?,
            plan: blake3::hash(&plan.manifest.to_bytes()).into(),
        })
    }

    /// What `other` has that differs, in words; none when nothing does.
    fn difference(&self, other: &Self) -> Option<String> {
        if self == other {
            return None;
        }
        let (was, is) = (&other.generator, &self.generator);
        if was != is {
            return Some(format!("it was begun by {was}, this is {is}"));
        }
        if self.recipe != other.recipe {
            let name = |f: &Self| f.recipe["name"].as_str().unwrap_or("?").to_owned();
            let (was, is) = (name(other), name(self));
            return Some(format!("it was begun with another recipe (`{was}`, now `{is}`)"));
        }
        if (self.alignment, self.codec) != (other.alignment, other.codec) {
            return Some("it was begun with another alignment or codec".to_owned());
        }
        let differs = self.files.iter().find(|file| !other.files.contains(file));
        if let Some(file) = differs {
            return Some(format!("it was begun with another checkpoint: `{}` differs", file.name));
        }
        Some("it was begun with another checkpoint".to_owned())
    }
}

/// A finished unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The unit.
    pub unit: Unit,
    /// Bytes it takes in the file.
    pub stored: u64,
    /// Hash of those bytes.
    pub blake3: Hash,
    /// What each tensor lost.
    pub stats: Vec<QuantStats>,
    /// Blocks of checkpoint files hashed while it was made.
    pub blocks: Vec<Blocks>,
    /// Hashes of what it was made from besides those blocks.
    pub rest: Vec<Rest>,
}

/// What a unit needs of a checkpoint file and no hashed block holds: ends of tensors, small ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// The checkpoint file's number.
    pub file: usize,
    /// Hash of those bytes.
    pub blake3: Hash,
}

/// [`Run`] as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    file: usize,
    first: usize,
    values: Vec<Hash>,
}

impl From<Run> for Blocks {
    fn from(run: Run) -> Self {
        let values = run.values.into_iter().map(Hash).collect();
        Self { file: run.file, first: run.first, values }
    }
}

impl From<&Blocks> for Run {
    fn from(blocks: &Blocks) -> Self {
        let values = blocks.values.iter().map(|hash| hash.0).collect();
        Self { file: blocks.file, first: blocks.first, values }
    }
}

/// The ledger's file, open for more lines.
pub struct Ledger {
    path: PathBuf,
    file: File,
}

impl Ledger {
    /// Begins a ledger.
    pub fn create(path: &Path, fingerprint: &Fingerprint) -> Result<Self> {
        let file = File::create(path).map_err(|e| FormatError::io(path, e))?;
        let mut ledger = Self { path: path.to_owned(), file };
        ledger.append(fingerprint)?;
        ledger.sync()?;
        Ok(ledger)
    }

    /// Goes on with a ledger; gives the units that it claims to be finished.
    ///
    /// # Errors
    /// A ledger of another conversion.
    pub fn resume(path: &Path, fingerprint: &Fingerprint) -> Result<(Self, BTreeMap<Unit, Line>)> {
        let io = |e| FormatError::io(path, e);
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(io(e).into()),
        };
        let Some((found, rest)) = first_line::<Fingerprint>(&text) else {
            // Killed before its first line was whole: nothing was converted yet.
            return Ok((Self::create(path, fingerprint)?, BTreeMap::new()));
        };
        if let Some(detail) = fingerprint.difference(&found) {
            let path = path.parent().unwrap_or(path).to_owned();
            return Err(ConvertError::Resume { path, detail });
        }
        let (lines, valid) = lines(&text, rest);
        let file = OpenOptions::new().append(true).open(path).map_err(io)?;
        // A line cut short by the interruption would make the next one unreadable.
        file.set_len(valid as u64).map_err(io)?;
        Ok((Self { path: path.to_owned(), file }, lines))
    }

    /// Adds a finished unit.
    pub fn add(&mut self, line: &Line) -> Result<()> {
        self.append(line)
    }

    fn append<T: Serialize>(&mut self, value: &T) -> Result<()> {
        let mut text =
            serde_json::to_vec(value).map_err(|e| FormatError::file(&self.path, e.to_string()))?;
        text.push(b'\n');
        self.file
            .write_all(&text)
            .map_err(|e| FormatError::io(&self.path, e))?;
        Ok(())
    }

    /// Puts the lines on disk.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| FormatError::io(&self.path, e))?;
        Ok(())
    }
}

/// Whether the ledger at `path` is of this conversion.
pub fn is_same(path: &Path, fingerprint: &Fingerprint) -> bool {
    let text = std::fs::read(path).unwrap_or_default();
    first_line::<Fingerprint>(&text).is_some_and(|(found, _)| found == *fingerprint)
}

/// The value in the first whole line, and where the next begins.
fn first_line<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Option<(T, usize)> {
    let end = text.iter().position(|b| *b == b'\n')?;
    Some((serde_json::from_slice(&text[..end]).ok()?, end + 1))
}

/// The units in whole lines from byte `at`, and where the last of those ends.
fn lines(text: &[u8], mut at: usize) -> (BTreeMap<Unit, Line>, usize) {
    let mut units = BTreeMap::new();
    while let Some((line, len)) = first_line::<Line>(&text[at..]) {
        units.insert(line.unit, line);
        at += len;
    }
    (units, at)
}
