//! Parts of a verification: each predicts some windows of the text; together they give the report of one run,
//! to the bit.
//!
//! A part's file holds what figures are summed up from, a score for each token and sums for 64 of them after each
//! layer, and what all parts must have in common: the models, the text, the windows, the options, and what
//! was found of each candidate alone. No other version reads it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardwright_format::checkpoint::CheckpointFile;
use shardwright_format::io::read_required;
use shardwright_format::manifest::seal::{own_hash, seal};
use shardwright_format::manifest::{Hash, SourceFile};
use shardwright_format::part::check_all;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, GENERATOR, Part, Refusal, mismatch};
use shardwright_runtime::CacheTypes;

use super::predict::Predictions;
use super::{Examined, VerifyRequest, concluded, examine};
use crate::check::divergence::EvalWindows;
use crate::check::hashing::{hash_file, pool};
use crate::error::{Result, VerifyError};
use crate::monitor::{Meter, Monitor, Stage};
use crate::report::ladder::Ladder;
use crate::report::thresholds::Thresholds;

/// Version of a part's file.
const VERSION: u32 = 1;
/// What a part's file begins with, up to its own hash.
const PREFIX: &str = "{\"blake3\":\"";
/// Largest file of a part: some seven million predicted tokens.
const LIMIT: u64 = 1 << 30;

/// A part's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartFile {
    blake3: Hash,
    /// [`VERSION`].
    verification: u32,
    generator: String,
    part: Part,
    inputs: Inputs,
    /// What was found of each candidate alone; the first part's has how far its values are, too.
    report: Ladder,
    /// None where no candidate is one that predicts.
    predictions: Option<Predictions>,
}

/// What was judged, by what, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs {
    original: Model,
    /// None of one that is not compared.
    candidates: Vec<Option<Model>>,
    windows: EvalWindows,
    cache: CacheTypes,
    thresholds: Thresholds,
    hash_checkpoint: bool,
    other_source: bool,
}

/// What tells a model from others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    /// See [`Weights::identity`].
    identity: Hash,
    /// The weight files of one that is no bundle, unless their hashes are not wanted.
    files: Vec<SourceFile>,
}

impl Model {
    fn new(weights: &Weights, request: &Hashing, monitor: &Monitor<'_>) -> Result<Self> {
        let files = weights.checkpoint().filter(|_| request.wanted);
        let files =
            files.map_or_else(Vec::new, |(checkpoint, _)| checkpoint.files().iter().collect());
        let meter =
            Meter::new(monitor, Stage::Checkpoint, files.iter().map(|f| f.file.len()).sum());
        let hash = |file: &&CheckpointFile| {
            let (blake3, size) = hash_file(&file.file.reopen_direct()?, &meter)?;
            Ok(SourceFile { name: file.name.clone(), size, blake3 })
        };
        let hash = || files.par_iter().map(hash).collect::<Result<Vec<_>>>();
        let files = pool(request.threads)?.install(hash)?;
        Ok(Self { identity: weights.identity()?, files })
    }
}

/// Whether weight files are hashed, and with how many threads.
struct Hashing {
    wanted: bool,
    threads: usize,
}

/// A part that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadePart {
    /// What its file holds.
    pub bytes: Vec<u8>,
    /// The windows that were read, from 0; none where no candidate predicts.
    pub windows: Range<usize>,
    /// Tokens that were predicted in them.
    pub tokens: usize,
}

/// Checks each candidate, and predicts a part's windows of the text. The first part compares values, too.
///
/// # Errors
/// What prevents a check from running; more parts than windows; figures that no file can hold.
pub fn verify_part(
    request: VerifyRequest<'_>,
    part: Part,
    monitor: &Monitor<'_>,
) -> Result<MadePart> {
    let hashing = Hashing { wanted: request.hash_checkpoint, threads: request.threads };
    let (windows, cache, thresholds) = (request.windows, request.cache, request.thresholds);
    let (hash_checkpoint, other_source) = (request.hash_checkpoint, request.other_source);
    let Examined { original, judged, predictions } = examine(request, Some(part), monitor)?;
    let nothing = || VerifyError::Invalid("--part: expected an original and a text".to_owned());
    let (original, weights) = original.ok_or_else(nothing)?;
    let model = |weights: &Weights| Model::new(weights, &hashing, monitor);
    let candidates = judged
        .iter()
        .map(|judged| judged.weights.as_ref().map(model).transpose());
    let inputs = Inputs {
        original: model(&weights)?,
        candidates: candidates.collect::<Result<_>>()?,
        windows,
        cache,
        thresholds,
        hash_checkpoint,
        other_source,
    };
    let shown = predictions.as_ref().map(|p| p.windows(part)).transpose()?;
    let (windows, tokens) = shown.unwrap_or_default();
    let reports = judged.into_iter().map(|judged| judged.report).collect();
    let file = PartFile {
        blake3: Hash::ZERO,
        verification: VERSION,
        generator: GENERATOR.to_owned(),
        part,
        inputs,
        report: Ladder { original: Some(original), text: None, candidates: reports },
        predictions,
    };
    let mut bytes = file.to_bytes();
    if bytes.starts_with(PREFIX.as_bytes()) {
        seal(&mut bytes, PREFIX);
    }
    // What is not finite has no form in JSON: better refused here than when all parts are made.
    PartFile::parse(&bytes)
        .map_err(|detail| VerifyError::Invalid(detail.at("--part").to_string()))?;
    if bytes.len() as u64 > LIMIT {
        let found = bytes.len();
        let message =
            format!("--part: expected at most {LIMIT} bytes, found {found}: make more parts");
        return Err(VerifyError::Invalid(message));
    }
    Ok(MadePart { bytes, windows, tokens })
}

/// Puts the parts of a verification together, in whatever order they are given: the report of one run over
/// all windows.
///
/// # Errors
/// A part that is damaged, of another version or of another verification, one that is given twice, those
/// that are missing.
pub fn merge(paths: &[PathBuf]) -> Result<Ladder> {
    let mut parts = BTreeMap::<u32, (PathBuf, PartFile)>::new();
    let mut count = 0;
    for path in paths {
        let bytes = read_required(path, LIMIT)?;
        let file = PartFile::parse(&bytes).map_err(|detail| FormatError::file(path, detail))?;
        let refuse = |detail| VerifyError::Merge { path: path.clone(), detail };
        if let Some((other, first)) = parts.values().next() {
            first.check_same(other, &file).map_err(refuse)?;
        }
        let part = file.part;
        count = part.count();
        if let Some((other, _)) = parts.insert(part.index(), (path.clone(), file)) {
            return Err(refuse(part.twice(&other)));
        }
    }
    let last = paths.last().cloned().unwrap_or_default();
    let present = parts.keys().copied().collect();
    check_all(&present, count).map_err(|detail| VerifyError::Merge { path: last, detail })?;
    let mut parts = parts.into_values().map(|(_, file)| file);
    let nothing = || VerifyError::Invalid("--merge: no part is given".to_owned());
    let PartFile { report, mut predictions, .. } = parts.next().ok_or_else(nothing)?;
    for part in parts {
        if let (Some(all), Some(next)) = (&mut predictions, part.predictions) {
            all.append(next);
        }
    }
    Ok(concluded(report, predictions.as_ref()))
}

impl PartFile {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads what [`verify_part`] gives, and nothing else.
    fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let kind = "expected what `verify --part` writes";
        let found = own_hash(bytes, PREFIX).ok_or_else(|| Refusal::from(kind))?;
        // Another version's file is told before its members are.
        #[derive(Deserialize)]
        struct Kind {
            blake3: Hash,
            verification: u32,
            generator: String,
        }
        let kind: Kind = serde_json::from_slice(bytes).map_err(|e| format!("{kind}: {e}"))?;
        if kind.blake3 != found {
            return Err(mismatch(kind.blake3, found).at("damaged: hash"));
        }
        if kind.generator != GENERATOR || kind.verification != VERSION {
            return Err(mismatch(GENERATOR, kind.generator).at("it was made by another version"));
        }
        let file: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if file.to_bytes() != bytes {
            return Err("its values are not written as `verify --part` writes them".into());
        }
        file.check_whole()?;
        Ok(file)
    }

    /// Refuses a file that has not all that its part has, or more.
    fn check_whole(&self) -> Result<(), Refusal> {
        let layers = self
            .report
            .original
            .as_ref()
            .map_or(0, |original| original.model.layers);
        let candidates = self.report.candidates.len();
        let of_part = |p: &Predictions| p.are_of(self.part, candidates, layers as usize);
        let whole = self.report.original.is_some()
            && self.inputs.candidates.len() == candidates
            && self.predictions.as_ref().is_none_or(of_part);
        let detail = || format!("its figures are not those of part {}", self.part).into();
        if whole { Ok(()) } else { Err(detail()) }
    }

    /// Refuses a part of another verification, or of another number of parts, than this one at `path`.
    fn check_same(&self, path: &Path, other: &Self) -> Result<(), Refusal> {
        self.part.check_count(path, other.part)?;
        let found = difference(String::new(), &self.common(), &other.common());
        let Some((place, expected, found)) = found else { return Ok(()) };
        let expected = format!("{expected} as in {}", path.display());
        let of_another = "it is of another verification";
        Err(mismatch(expected, found).at(place).at(of_another))
    }

    /// What all parts have in common.
    fn common(&self) -> Value {
        let mut report = self.report.clone();
        report
            .candidates
            .iter_mut()
            .for_each(|report| report.fidelity = None);
        let text = self
            .predictions
            .as_ref()
            .map(|predictions| &predictions.asked);
        json!({ "inputs": self.inputs, "text": text, "report": report })
    }
}

/// The first place at which two values differ, and both.
fn difference(place: String, expected: &Value, found: &Value) -> Option<(String, Value, Value)> {
    let below =
        |name: &str| if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
    match (expected, found) {
        _ if expected == found => None,
        (Value::Object(a), Value::Object(b)) if a.keys().eq(b.keys()) => {
            let mut members = a.iter().zip(b.values());
            members.find_map(|((name, a), b)| difference(below(name), a, b))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut members = a.iter().zip(b).enumerate();
            members.find_map(|(at, (a, b))| difference(format!("{place}[{at}]"), a, b))
        }
        _ => Some((place, expected.clone(), found.clone())),
    }
}
