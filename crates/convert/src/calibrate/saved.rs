//! Statistics in a file: what a text showed of a model's inputs, for later conversions.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};
use shardwright_format::io::read_required;
use shardwright_format::manifest;
use shardwright_format::{FormatError, ModelSpec};
use shardwright_runtime::Site;

use super::guides::Guides;
use super::observe::Observation;
use super::statistics::{Moments, Observed, Place};
use crate::error::Result;

/// Largest file of statistics that is read.
const LIMIT: u64 = 64 << 30;
/// Key of the record among the file's metadata.
const RECORD: &str = "shardwright.calibration";

/// What was observed before, as a file of statistics has it.
#[derive(Debug)]
pub struct SavedStatistics {
    /// By place.
    pub(crate) guides: Guides,
    /// What the manifest says of it.
    pub record: manifest::Calibration,
}

/// Names of the sites in files.
const SITES: [(Site, &str); 8] = [
    (Site::Mixer, "mixer"),
    (Site::MixerOut, "mixer_out"),
    (Site::Ffn, "ffn"),
    (Site::FfnOut, "ffn_out"),
    (Site::SharedOut, "shared_expert_out"),
    (Site::Expert, "expert"),
    (Site::ExpertOut, "expert_out"),
    (Site::Head, "head"),
];

/// `head`, `layers.3.mixer`, `layers.3.experts.7.expert_out`.
fn name(place: Place) -> String {
    let site = SITES
        .iter()
        .find(|(site, _)| *site == place.site)
        .map_or("", |(_, name)| *name);
    let layer = place
        .layer
        .map_or(String::new(), |layer| format!("layers.{layer}."));
    let expert = place
        .expert
        .map_or(String::new(), |expert| format!("experts.{expert}."));
    format!("{layer}{expert}{site}")
}

fn parse(name: &str) -> Option<Place> {
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
    let (site, _) = SITES.iter().find(|(_, known)| *known == site)?;
    Some(Place { layer, expert, site: *site })
}

/// Moments as they lie in a file: little-endian `f32`.
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

impl From<&Moments> for Stored {
    fn from(moments: &Moments) -> Self {
        let (shape, values) = match moments {
            Moments::Diagonal(values) => (vec![values.len()], values),
            Moments::Gram(values) => (vec![moments.cols(); 2], values),
        };
        Self { shape, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }
}

impl SavedStatistics {
    /// Reads what [`Observation::write`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read, is no file of statistics, or of another model.
    pub fn read(path: &Path, spec: &ModelSpec) -> Result<Self> {
        let bytes = read_required(path, LIMIT)?;
        let refuse = |detail: String| FormatError::file(path, detail);
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| refuse(e.to_string()))?;
        let record = header.metadata().as_ref().and_then(|m| m.get(RECORD));
        let record = record.ok_or_else(|| refuse(format!("expected `{RECORD}`, found none")))?;
        let record: manifest::Calibration =
            serde_json::from_str(record).map_err(|e| refuse(format!("{RECORD}: {e}")))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| refuse(e.to_string()))?;
        let mut observed = Observed::new();
        for (name, view) in tensors.iter() {
            let wrong = |detail: &str| FormatError::tensor(path, name, detail);
            let place = parse(name).ok_or_else(|| wrong("is no place of a model"))?;
            if place
                .layer
                .is_some_and(|layer| layer as usize >= spec.layers.len())
            {
                return Err(wrong("the model has no such layer").into());
            }
            let values = view
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b));
            let values: Vec<f32> = values.collect();
            if view.dtype() != Dtype::F32 || values.iter().any(|v| !v.is_finite()) {
                return Err(wrong("expected finite values of F32").into());
            }
            let moments = match *view.shape() {
                [_] => Moments::Diagonal(values),
                [rows, cols] if rows == cols => Moments::Gram(values),
                _ => return Err(wrong("expected a vector or a square matrix").into()),
            };
            observed.insert(place, moments);
        }
        let record = manifest::Calibration {
            statistics_blake3: Some(blake3::hash(&bytes).into()),
            ..record
        };
        Ok(Self { guides: Guides::new(observed), record })
    }
}

impl Observation {
    /// Writes the statistics to `path`, by way of a file beside it.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn write(&self, path: &Path, record: &manifest::Calibration) -> Result<()> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = Path::new(&partial);
        write(partial, &self.observed, record)?;
        Ok(std::fs::rename(partial, path).map_err(|e| FormatError::io(path, e))?)
    }
}

fn write(path: &Path, observed: &Observed, record: &manifest::Calibration) -> Result<()> {
    let tensors: BTreeMap<_, _> = observed
        .iter()
        .map(|(place, moments)| (name(*place), Stored::from(moments)))
        .collect();
    let record = serde_json::to_string(record);
    let record = record.map_err(|e| FormatError::file(path, e.to_string()))?;
    let metadata = HashMap::from([(RECORD.to_owned(), record)]);
    let written = safetensors::serialize_to_file(tensors, Some(metadata), path);
    Ok(written.map_err(|e| FormatError::file(path, e.to_string()))?)
}
