//! What an interrupted conversion leaves behind: a line per finished unit.
//!
//! A line is a claim, not a fact: `--resume` reads each shard back and compares its hash, so a
//! line may reach the disk before or after the bytes that it speaks of. It reads back everything
//! that the shard was made from, too: names, sizes and times of a file do not tell that its bytes
//! are the same, and hashing is far cheaper than the search for codes.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use shardwright_format::checkpoint::Checkpoint;
use shardwright_format::io::read_required;
use shardwright_format::manifest::seal::own_hash;
use shardwright_format::manifest::{Calibration, Hash};
use shardwright_format::{FormatError, Part, Refusal, Unit, mismatch};
use shardwright_quant::QuantStats;

use super::source::{HashedBlocks, Source};
use crate::error::{ConvertError, Result};
use crate::plan::Plan;

/// Version of the ledger itself.
const LEDGER: u32 = 5;
/// What the last line of a part's ledger begins with, up to its own hash.
const CLOSING_PREFIX: &str = "{\"blake3\":\"";
/// Longest ledger that is read: that of a part of a checkpoint of 2 TB has some 200 MB.
const LEDGER_LIMIT: u64 = 4 << 30;

/// What must be the same for a conversion to go on. The first line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    ledger: u32,
    generator: String,
    recipe: serde_json::Value,
    alignment: u64,
    /// Bytes of a hashed block of the checkpoint files.
    source_block: u64,
    files: Vec<SourceHeader>,
    /// What codes are chosen by besides the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    calibration: Option<Calibration>,
    /// Hashes of all bytes of `files`, where the codes of one unit depend on the weights of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Vec<Hash>>,
    /// Hash of the planned manifest: the model and every file's size.
    pub plan: Hash,
    /// Which part of the conversion it is, where it is not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<PartRecord>,
}

/// A part of a conversion, and what all parts must have in common besides the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRecord {
    /// Which one.
    pub part: Part,
    /// Hash of the stored plan.
    pub plan: Hash,
    /// A hash per checkpoint file of some of its bytes: no part reads them all.
    sample: Vec<Hash>,
}

/// What is said of a ledger that does not fit.
pub struct Wording<'a> {
    /// What was done with it.
    pub done: &'a str,
    /// Where the other is.
    pub other: &'a str,
    /// What to do where calibrations differ.
    pub advice: &'a str,
}

/// Of a ledger that is not gone on with.
pub const RESUMED: Wording<'_> = Wording {
    done: "begun",
    other: "now",
    advice: "; give the same text or statistics, tokens and window, or remove it",
};

/// A checkpoint file as far as its header tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceHeader {
    name: String,
    size: u64,
    header: Hash,
    /// What pins its bytes, where it is read from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
}

impl Fingerprint {
    /// Of a plan and the checkpoint it was made from.
    pub fn new(plan: &Plan, checkpoint: &Checkpoint, source_block: u64) -> Result<Self> {
        let header = |f: &shardwright_format::checkpoint::CheckpointFile| {
            let mut bytes = vec![0; f.header_len as usize];
            f.file.read_at(0, &mut bytes)?;
            let header = blake3::hash(&bytes).into();
            let revision = f.file.revision().map(str::to_owned);
            Ok(SourceHeader { name: f.name.clone(), size: f.file.len(), header, revision })
        };
        let files: Result<Vec<_>> = checkpoint.files().iter().map(header).collect();
        Ok(Self {
            ledger: LEDGER,
            generator: plan.manifest.generator.clone(),
            recipe: plan.manifest.recipe.clone(),
            alignment: plan.manifest.alignment,
            source_block,
            files: files?,
            calibration: plan.manifest.calibration.clone(),
            contents: None,
            plan: blake3::hash(&plan.manifest.to_bytes()).into(),
            part: None,
        })
    }

    /// The same of one part; `plan` is the stored plan's hash.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn of_part(self, part: Part, plan: Hash, source: &Source<'_>) -> Result<Self> {
        let record = PartRecord { part, plan, sample: source.sample()? };
        Ok(Self { part: Some(record), ..self })
    }

    /// The same of another program or version.
    pub fn by(&self, generator: &str) -> Self {
        Self { generator: generator.to_owned(), ..self.clone() }
    }

    /// The same of another part.
    pub fn with_part(&self, part: Part) -> Self {
        let record = self
            .part
            .clone()
            .map(|record| PartRecord { part, ..record });
        Self { part: record, ..self.clone() }
    }

    /// Bytes of a hashed block, and of each checkpoint file.
    pub fn blocks(&self) -> (u64, impl Iterator<Item = (&str, u64)>) {
        let files = self.files.iter();
        (self.source_block, files.map(|file| (file.name.as_str(), file.size)))
    }

    /// The first file whose bytes are not those of `contents`.
    fn changed(&self, own: &[Hash], contents: &[Hash]) -> Option<&SourceHeader> {
        let mut files = self.files.iter().zip(own.iter().zip(contents));
        files.find_map(|(file, (own, other))| (own != other).then_some(file))
    }

    /// Refuses files that are not, now that all is made, what they were when it began.
    ///
    /// # Errors
    /// The first that changed, if the conversion depends on them as a whole.
    pub fn check(&self, source: &Source<'_>) -> Result<()> {
        let Some(own) = &self.contents else { return Ok(()) };
        let Some(file) = self.changed(own, &source.finalize_all()?) else { return Ok(()) };
        let path = source.checkpoint.root().join(&file.name);
        let detail = "changed during the conversion, whose codes depend on all weights";
        Err(FormatError::file(&path, detail).into())
    }

    /// Reads the first line of a ledger, of this version and no other.
    fn parse(line: &[u8]) -> Result<Self, Refusal> {
        /// What the first line of every version has.
        #[derive(Deserialize)]
        struct Version {
            ledger: u32,
        }
        let unreadable =
            |e| Refusal::from(format!("the first line of its ledger cannot be read: {e}"));
        let Version { ledger } = serde_json::from_slice(line).map_err(unreadable)?;
        if ledger != LEDGER {
            return Err(mismatch(format_args!("a ledger of version {LEDGER}"), ledger));
        }
        serde_json::from_slice(line).map_err(unreadable)
    }

    /// What `other` has that differs, in words; none when nothing does.
    pub fn difference(&self, other: &Self, wording: &Wording<'_>) -> Option<String> {
        let Wording { done, other: there, advice } = wording;
        if self == other {
            return None;
        }
        let (was, is) = (&other.generator, &self.generator);
        if was != is {
            return Some(format!("it was {done} by {was}, this is {is}"));
        }
        if self.recipe != other.recipe {
            let name = |f: &Self| f.recipe["name"].as_str().unwrap_or("?").to_owned();
            let (was, is) = (name(other), name(self));
            return Some(format!("it was {done} with another recipe (`{was}`, {there} `{is}`)"));
        }
        if self.alignment != other.alignment {
            return Some(format!("it was {done} with another alignment"));
        }
        if self.calibration != other.calibration {
            return Some(format!("it was {done} with another calibration{advice}"));
        }
        if let Some(file) = self.other_file(other) {
            return Some(format!("it was {done} with another checkpoint: `{}` differs", file.name));
        }
        let part = |f: &Self| f.part.as_ref().map(|record| record.part);
        if let (Some(was), Some(is), true) = (part(other), part(self), part(self) != part(other)) {
            return Some(format!("it was {done} as part {was}, {there} {is}"));
        }
        Some(format!("it was {done} with another checkpoint"))
    }

    /// The first file that is not the same in `other`, as far as both know it.
    fn other_file(&self, other: &Self) -> Option<&SourceHeader> {
        let headers = self.files.iter().find(|file| !other.files.contains(file));
        let contents = || self.changed(self.contents.as_deref()?, other.contents.as_deref()?);
        let sample = |f: &Self| f.part.as_ref().map(|record| record.sample.clone());
        let sampled = || self.changed(&sample(self)?, &sample(other)?);
        headers.or_else(contents).or_else(sampled)
    }
}

/// A finished unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerEntry {
    /// The unit.
    pub unit: Unit,
    /// Hash of its bytes.
    pub blake3: Hash,
    /// What each tensor lost.
    pub stats: Vec<QuantStats>,
    /// Blocks of checkpoint files hashed while it was made.
    pub blocks: Vec<HashedBlocks>,
    /// Hashes of what it was made from besides those blocks.
    pub rest: Vec<RestHash>,
}

/// What a unit needs of a checkpoint file and no hashed block holds: ends of tensors, small ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestHash {
    /// The checkpoint file's number.
    pub file: usize,
    /// Hash of those bytes.
    pub blake3: Hash,
}

/// The last line of a part's ledger, once all of it is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closing {
    /// Hash of the lines before it, and of the hash of this line with these digits as zeros.
    pub blake3: Hash,
    /// Hash of each file of the part, by its path in the bundle.
    pub files: BTreeMap<String, Hash>,
    /// Every block of the checkpoint's files that was hashed.
    pub blocks: Vec<HashedBlocks>,
}

/// The ledger of a part.
pub struct PartLedger {
    /// What it was made of.
    pub fingerprint: Fingerprint,
    /// Its units.
    pub units: BTreeMap<Unit, LedgerEntry>,
    /// What ends it; none if it is not finished.
    pub closing: Option<Closing>,
}

impl PartLedger {
    /// Reads the ledger at `path`.
    ///
    /// # Errors
    /// A file that cannot be read, or is no ledger of this version.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_required(path, LEDGER_LIMIT)?;
        let refuse = |detail: Refusal| FormatError::file(path, detail);
        let first = line_end(&text).ok_or_else(|| refuse("its first line is cut".into()))?;
        let fingerprint = Fingerprint::parse(&text[..first]).map_err(refuse)?;
        let (units, end) = lines(&text, first);
        let (lines, last) = text.split_at(end);
        // Without a last line the part is not finished; a whole line that is neither was damaged.
        let closing = first_line::<Closing>(last);
        let sealed = |(closing, len): &(Closing, usize)| {
            *len == last.len() && seal_of(lines, last) == Some(closing.blake3)
        };
        if line_end(last).is_some() && !closing.as_ref().is_some_and(sealed) {
            let damaged = "damaged: its lines are not those that were written";
            return Err(refuse(damaged.into()).into());
        }
        Ok(Self { fingerprint, units, closing: closing.map(|(closing, _)| closing) })
    }
}

/// The ledger's file, open for more lines.
pub struct Ledger {
    path: PathBuf,
    file: File,
}

/// A ledger that may be written: no other conversion holds it.
pub struct Locked {
    path: PathBuf,
    file: File,
}

impl Locked {
    /// Takes the ledger at `path` for as long as the value lives, made if there is none.
    ///
    /// # Errors
    /// A ledger that another conversion holds.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(|e| FormatError::io(path, e))?;
        // One that was removed since is that of a conversion that ended just now.
        if is_held(&file).map_err(|e| FormatError::io(path, e))? || !is_at(&file, path) {
            return Err(busy(path));
        }
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes on with the ledger; gives the units that it claims to be finished, or none when it was
    /// cut in its first line, before anything was converted: then `clear` is called and it begins
    /// anew.
    ///
    /// # Errors
    /// A ledger of another conversion, or of another version.
    pub fn resume(
        mut self,
        fingerprint: &Fingerprint,
        clear: impl FnOnce() -> Result<()>,
    ) -> Result<(Ledger, BTreeMap<Unit, LedgerEntry>)> {
        let io = |e| FormatError::io(&self.path, e);
        let mut text = Vec::new();
        self.file.read_to_end(&mut text).map_err(io)?;
        let refuse = |detail| {
            let path = self.path.parent().unwrap_or(&self.path).to_owned();
            ConvertError::Resume { path, detail }
        };
        let Some(rest) = line_end(&text) else {
            clear()?;
            self.file.set_len(0).map_err(io)?;
            let mut ledger = Ledger { path: self.path, file: self.file };
            ledger.append(fingerprint)?;
            ledger.sync()?;
            return Ok((ledger, BTreeMap::new()));
        };
        let found = Fingerprint::parse(&text[..rest]).map_err(refuse)?;
        fingerprint
            .difference(&found, &RESUMED)
            .map_or(Ok(()), |detail| Err(refuse(detail.into())))?;
        let (lines, valid) = lines(&text, rest);
        // A line cut short by the interruption would make the next one unreadable.
        self.file.set_len(valid as u64).map_err(io)?;
        Ok((Ledger { path: self.path, file: self.file }, lines))
    }

    /// Whether nothing has been entered in it.
    pub fn is_empty(&self) -> bool {
        self.file.metadata().is_ok_and(|data| data.len() == 0)
    }

    /// Whether the ledger is of this conversion.
    pub fn is_of(&mut self, fingerprint: &Fingerprint) -> bool {
        let mut text = Vec::new();
        let read = self.file.read_to_end(&mut text);
        read.is_ok()
            && first_line::<Fingerprint>(&text).is_some_and(|(found, _)| found == *fingerprint)
    }
}

/// Refuses a ledger that another conversion holds; there need not be one.
///
/// # Errors
/// As it says.
pub fn check_free(path: &Path) -> Result<()> {
    match File::open(path).and_then(|file| is_held(&file)) {
        Ok(true) => Err(busy(path)),
        Ok(false) | Err(_) => Ok(()),
    }
}

fn busy(path: &Path) -> ConvertError {
    let path = path.parent().unwrap_or(path).to_owned();
    ConvertError::Output { path, detail: "another conversion is writing it".into() }
}

/// Takes the file's lock; whether somebody else has it. File systems without locks have none.
///
/// # Errors
/// What the operating system refuses.
pub fn is_held(file: &File) -> std::io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOSYS | Errno::NOTSUP) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(e.into()),
    }
}

/// Whether `path` still names the open file.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |data: std::fs::Metadata| (data.dev(), data.ino());
    let (open, named) = (file.metadata().map(id), path.metadata().map(id));
    open.ok().is_some_and(|open| named.ok() == Some(open))
}

impl Ledger {
    /// Adds a finished unit.
    pub fn add(&mut self, line: &LedgerEntry) -> Result<()> {
        self.append(line)
    }

    /// Adds the last line of a part, its hash that of all lines, and puts all on disk.
    pub fn close(&mut self, closing: &Closing) -> Result<()> {
        let lines = read_required(&self.path, LEDGER_LIMIT)?;
        let unsealed = self.line(&Closing { blake3: Hash::ZERO, ..closing.clone() })?;
        let blake3 = seal_of(&lines, &unsealed).unwrap_or(Hash::ZERO);
        self.append(&Closing { blake3, ..closing.clone() })?;
        self.sync()
    }

    fn line<T: Serialize>(&self, value: &T) -> Result<Vec<u8>> {
        let mut text =
            serde_json::to_vec(value).map_err(|e| FormatError::file(&self.path, e.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }

    fn append<T: Serialize>(&mut self, value: &T) -> Result<()> {
        let text = self.line(value)?;
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

/// The hash that the last line of a part's ledger has; none of a line that does not begin with it.
fn seal_of(lines: &[u8], last: &[u8]) -> Option<Hash> {
    let own = own_hash(last, CLOSING_PREFIX)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(lines).update(&own.0);
    Some(hasher.finalize().into())
}

/// Where the first line ends, if it is whole.
fn line_end(text: &[u8]) -> Option<usize> {
    Some(text.iter().position(|b| *b == b'\n')? + 1)
}

/// The value in the first whole line, and where the next begins.
fn first_line<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Option<(T, usize)> {
    let end = line_end(text)?;
    Some((serde_json::from_slice(&text[..end]).ok()?, end))
}

/// The units in whole lines from byte `at`, and where the last of those ends.
fn lines(text: &[u8], mut at: usize) -> (BTreeMap<Unit, LedgerEntry>, usize) {
    let mut units = BTreeMap::new();
    while let Some((line, len)) = first_line::<LedgerEntry>(&text[at..]) {
        units.insert(line.unit, line);
        at += len;
    }
    (units, at)
}
