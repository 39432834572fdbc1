//! Statistics in a file: what a text showed of a model's inputs, for later conversions.

use std::path::Path;

use shardwright_format::checkpoint::header;
use shardwright_format::io::{ReadFile, read_required};
use shardwright_format::manifest;
use shardwright_format::{FormatError, ModelSpec, Refusal, mismatch};
use shardwright_runtime::InputSite;

use super::imatrix::{self, Imatrix};
use super::moments::{Moments, StoredMoments};
use super::objectives::Objectives;
use super::statistics::InputKey;
use crate::error::Result;
use crate::plan::Known;

/// Larger importance matrices are refused unread; files of our own, of which a unit's part at a time is read, may
/// have any length.
const LIMIT: u64 = 64 << 30;
/// Key of the record among the file's metadata.
pub(super) const RECORD: &str = "shardwright.calibration";
/// What is said of a file of none of the kinds.
const NEITHER: &str = "expected statistics of `shardwright calibrate` (safetensors), or an \
    importance matrix of llama.cpp (GGUF, or the older imatrix.dat), found none of these";

/// What was observed before, as a file of statistics has it.
#[derive(Debug)]
pub struct SavedStatistics {
    /// By key.
    pub(crate) objectives: Objectives,
    /// What the manifest says of it.
    pub record: manifest::Calibration,
    /// What of the file is of no use: names that the model has no matrix for.
    pub ignored: Vec<String>,
}

/// `head`, `layers.3.mixer`, `layers.3.experts.7.expert_out`.
pub fn name(key: InputKey) -> String {
    let site = key.site.name();
    let layer = key
        .layer
        .map_or(String::new(), |layer| format!("layers.{layer}."));
    let expert = key
        .expert
        .map_or(String::new(), |expert| format!("experts.{expert}."));
    format!("{layer}{expert}{site}")
}

fn parse(name: &str) -> Option<InputKey> {
    let parts: Vec<_> = name.split('.').collect();
    let number = |text: &str| text.parse().ok();
    let (layer, expert, site) = match parts[..] {
        [site] => (None, None, site),
        ["layers", layer, site] => (Some(number(layer)?), None, site),
        ["layers", layer, "experts", expert, site] => {
            (Some(number(layer)?), Some(number(expert)?), site)
        }
        _ => return None,
    };
    let site = InputSite::ALL
        .into_iter()
        .find(|known| known.name() == site)?;
    Some(InputKey { layer, expert, site })
}

impl SavedStatistics {
    /// What a plan is told of it.
    pub fn known(&self) -> Known {
        let places = self.objectives.moments().places().into_keys().collect();
        Known { held_bytes: self.held_bytes(), products: self.has_products(), places }
    }

    /// Bytes of moments that are in memory as long as this is.
    fn held_bytes(&self) -> u64 {
        match self.objectives.moments() {
            moments @ Moments::Held(_) => moments.places().values().map(|cols| 4 * cols).sum(),
            Moments::Stored(_) => 0,
        }
    }

    /// Whether products of all pairs of inputs are among them, from which factors are made.
    fn has_products(&self) -> bool {
        match self.objectives.moments() {
            Moments::Held(_) => false,
            Moments::Stored(stored) => stored.has_products(),
        }
    }

    /// Opens what [`save_statistics`](super::save_statistics) wrote, of which moments stay in the file, or reads an
    /// importance matrix of llama.cpp.
    ///
    /// # Errors
    /// A file that cannot be read, is no file of statistics, or of another model.
    pub fn read(path: &Path, spec: &ModelSpec) -> Result<Self> {
        let file = ReadFile::open(path)?;
        if is_own(&file)? {
            return own(file, spec);
        }
        drop(file);
        Self::parse(path, &read_required(path, LIMIT)?, spec)
    }

    /// As [`Self::read`], of the bytes of the importance matrix at `path`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(path: &Path, bytes: &[u8], spec: &ModelSpec) -> Result<Self> {
        let refuse = |detail: Refusal| FormatError::file(path, detail);
        let read = match () {
            () if imatrix::is_gguf(bytes) => Imatrix::gguf(bytes),
            () if imatrix::is_older(bytes) => Imatrix::older(bytes),
            () => Err(NEITHER.into()),
        };
        let found = other(path, &read.map_err(refuse)?, spec)?;
        let hash = Some(blake3::hash(bytes).into());
        let record = manifest::Calibration { statistics_blake3: hash, ..found.record };
        Ok(Self { record, ..found })
    }
}

/// Whether a file begins as safetensors do: JSON after its length.
fn is_own(file: &ReadFile) -> Result<bool> {
    let mut first = [0; header::PREFIX_LEN as usize + 1];
    if file.len() < first.len() as u64 {
        return Ok(false);
    }
    file.read_at(0, &mut first)?;
    Ok(first.last() == Some(&b'{') && !imatrix::is_gguf(&first))
}

/// Of an importance matrix.
fn other(path: &Path, imatrix: &Imatrix<'_>, spec: &ModelSpec) -> Result<SavedStatistics> {
    let mapped = imatrix.map(path, spec)?;
    Ok(SavedStatistics {
        objectives: Objectives::from_moments(Moments::Held(mapped.inputs))
            .tied(spec.tie_word_embeddings),
        record: manifest::Calibration {
            tokens: imatrix.tokens,
            window: imatrix.window,
            ..manifest::Calibration::default()
        },
        ignored: mapped.ignored,
    })
}

/// Of a file of our own.
fn own(file: ReadFile, spec: &ModelSpec) -> Result<SavedStatistics> {
    let path = file.path().to_owned();
    let refuse = |detail: Refusal| FormatError::file(&path, detail);
    let (header, start) = header::read(&file)?;
    let record = header.metadata.iter().find(|(key, _)| key == RECORD);
    let (_, record) = record.ok_or_else(|| refuse(mismatch(format_args!("`{RECORD}`"), "none")))?;
    let record: manifest::Calibration =
        serde_json::from_str(record).map_err(|e| refuse(format!("{RECORD}: {e}").into()))?;
    let key = |name: &str| {
        let key = parse(name).ok_or("is no place of a model")?;
        let layer = key.layer.map_or(0, |layer| layer as usize);
        if layer < spec.layers.len() { Ok(key) } else { Err("the model has no such layer") }
    };
    let stored = StoredMoments::new(file, &header, start, key)?;
    let hash = Some(stored.check(&header, start)?.into());
    Ok(SavedStatistics {
        objectives: Objectives::from_moments(Moments::Stored(stored))
            .tied(spec.tie_word_embeddings),
        record: manifest::Calibration { statistics_blake3: hash, ..record },
        ignored: Vec::new(),
    })
}
