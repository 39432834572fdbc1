//! Statistics in a file: what a text showed of a model's inputs, for later conversions.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};
use shardwright_format::io::{read_required, replace};
use shardwright_format::manifest;
use shardwright_format::{FormatError, ModelSpec, Refusal, Unit, mismatch};
use shardwright_runtime::InputSite;

use super::imatrix::{self, Imatrix};
use super::objectives::Objectives;
use super::observe::Observation;
use super::statistics::{Hessian, InputKey, InputStats};
use crate::error::Result;

/// Largest file of statistics that is read.
const LIMIT: u64 = 64 << 30;
/// Key of the record among the file's metadata.
const RECORD: &str = "shardwright.calibration";
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
    /// Experts that the text did not reach: converted as without statistics.
    pub unseen: Vec<Unit>,
}

/// `head`, `layers.3.mixer`, `layers.3.experts.7.expert_out`.
pub(super) fn name(key: InputKey) -> String {
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

/// Second moments as they lie in a file: little-endian `f32`.
struct Stored {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl From<&Hessian> for Stored {
    fn from(hessian: &Hessian) -> Self {
        let (shape, values) = match hessian {
            Hessian::Diagonal(values) => (vec![values.len()], values),
            Hessian::Full(values) => (vec![hessian.cols(); 2], values),
        };
        Self { shape, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
}

impl SavedStatistics {
    /// Bytes of the moments in memory.
    pub fn byte_len(&self) -> u64 {
        let values = |hessian: &Hessian| match hessian {
            Hessian::Diagonal(values) | Hessian::Full(values) => values.len() as u64,
        };
        self.objectives
            .inputs()
            .values()
            .map(|hessian| 4 * values(hessian))
            .sum()
    }

    /// Reads what [`Observation::write`] wrote, or an importance matrix of llama.cpp.
    ///
    /// # Errors
    /// A file that cannot be read, is no file of statistics, or of another model.
    pub fn read(path: &Path, spec: &ModelSpec) -> Result<Self> {
        Self::parse(path, &read_required(path, LIMIT)?, spec)
    }

    /// As [`Self::read`], of the bytes of the file at `path`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(path: &Path, bytes: &[u8], spec: &ModelSpec) -> Result<Self> {
        let refuse = |detail: Refusal| FormatError::file(path, detail);
        let found = match Kind::from_bytes(bytes).ok_or_else(|| refuse(NEITHER.into()))? {
            Kind::Own => own(path, bytes, spec)?,
            Kind::Gguf => other(path, &Imatrix::gguf(bytes).map_err(refuse)?, spec)?,
            Kind::Older => other(path, &Imatrix::older(bytes).map_err(refuse)?, spec)?,
        };
        let hash = Some(blake3::hash(bytes).into());
        let record = manifest::Calibration { statistics_blake3: hash, ..found.record };
        Ok(Self { record, ..found })
    }
}

/// Files of statistics.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Own,
    Gguf,
    Older,
}

impl Kind {
    /// By how a file begins.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // Of safetensors: JSON after its length.
        let own = bytes.get(8) == Some(&b'{');
        match () {
            () if imatrix::is_gguf(bytes) => Some(Self::Gguf),
            () if own => Some(Self::Own),
            () if imatrix::is_older(bytes) => Some(Self::Older),
            () => None,
        }
    }
}

/// Of an importance matrix.
fn other(path: &Path, imatrix: &Imatrix<'_>, spec: &ModelSpec) -> Result<SavedStatistics> {
    let mapped = imatrix.map(path, spec)?;
    Ok(SavedStatistics {
        objectives: Objectives::new(mapped.inputs).tied(spec.tie_word_embeddings),
        record: manifest::Calibration {
            tokens: imatrix.tokens,
            window: imatrix.window,
            ..manifest::Calibration::default()
        },
        ignored: mapped.ignored,
        unseen: mapped.unseen.into_iter().collect(),
    })
}

/// Of a file of our own.
fn own(path: &Path, bytes: &[u8], spec: &ModelSpec) -> Result<SavedStatistics> {
    let refuse = |detail: Refusal| FormatError::file(path, detail);
    let (_, header) =
        SafeTensors::read_metadata(bytes).map_err(|e| refuse(e.to_string().into()))?;
    let record = header.metadata().as_ref().and_then(|m| m.get(RECORD));
    let record = record.ok_or_else(|| refuse(mismatch(format_args!("`{RECORD}`"), "none")))?;
    let record: manifest::Calibration =
        serde_json::from_str(record).map_err(|e| refuse(format!("{RECORD}: {e}").into()))?;
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| refuse(e.to_string().into()))?;
    let mut inputs = InputStats::new();
    for (name, view) in tensors.iter() {
        let wrong = |detail: &str| FormatError::tensor(path, name, detail);
        let key = parse(name).ok_or_else(|| wrong("is no place of a model"))?;
        if key
            .layer
            .is_some_and(|layer| layer as usize >= spec.layers.len())
        {
            return Err(wrong("the model has no such layer").into());
        }
        inputs.insert(key, hessian(&view).map_err(wrong)?);
    }
    let (ignored, unseen) = (Vec::new(), Vec::new());
    Ok(SavedStatistics {
        objectives: Objectives::new(inputs).tied(spec.tie_word_embeddings),
        record,
        ignored,
        unseen,
    })
}

fn hessian(view: &TensorView<'_>) -> Result<Hessian, &'static str> {
    let values = view.data().as_chunks().0.iter();
    let values: Vec<f32> = values.map(|b| f32::from_le_bytes(*b)).collect();
    if view.dtype() != Dtype::F32 || values.iter().any(|v| !v.is_finite()) {
        return Err("expected finite values of F32");
    }
    match *view.shape() {
        [_] => Ok(Hessian::Diagonal(values)),
        [rows, cols] if rows == cols => Ok(Hessian::Full(values)),
        _ => Err("expected a vector or a square matrix"),
    }
}

impl Observation {
    /// Writes the statistics to `path`, by way of a file beside it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(&self, path: &Path, record: &manifest::Calibration) -> Result<()> {
        replace(path, |partial| write(partial, &self.inputs, record))
    }
}

fn write(path: &Path, inputs: &InputStats, record: &manifest::Calibration) -> Result<()> {
    let tensors: BTreeMap<_, _> = inputs
        .iter()
        .map(|(key, hessian)| (name(*key), Stored::from(hessian)))
        .collect();
    let record = serde_json::to_string(record);
    let record = record.map_err(|e| FormatError::file(path, e.to_string()))?;
    let metadata = HashMap::from([(RECORD.to_owned(), record)]);
    let written = safetensors::serialize_to_file(tensors, Some(metadata), path);
    Ok(written.map_err(|error| match error {
        SafeTensorError::IoError(source) => FormatError::io(path, source),
        other => FormatError::file(path, other.to_string()),
    })?)
}
