//! Everything a verification has to say.

pub mod allocation;
pub mod compare;
pub mod curve;
pub mod ladder;
pub mod reproduction;
pub mod thresholds;

use serde::{Deserialize, Serialize};
use shardwright_format::Manifest;
use shardwright_format::census::Census;
use shardwright_format::checkpoint::gguf::SUFFIX as GGUF_SUFFIX;
use shardwright_format::manifest::{FileKind, Hash};
use shardwright_format::weights::Weights;
use shardwright_format::{ModelSpec, TensorEntry};
use shardwright_quant::Float;
use shardwright_runtime::CacheTypes;

use crate::check::divergence::{CachePrice, Divergence};
use crate::check::fidelity::Fidelity;
use crate::check::finding::{Finding, Kind};
use crate::check::integrity::Integrity;
use crate::check::overlap::{CalibrationRecord, Overlap};
use crate::check::structure::{self, Structure};
use crate::report::allocation::{Allocation, allocation};
use crate::report::reproduction::Reproduction;
use crate::report::thresholds::Thresholds;

/// Everything a verification has to say of one candidate. Serializes to the JSON of `verify --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Holds, or something was found.
    pub verdict: Verdict,
    /// Name of the candidate's directory or file, or its path where another has the same.
    pub name: String,
    /// What the model is; none when it cannot be read.
    #[serde(default)]
    pub model: Option<ModelSummary>,
    /// What a bundle is besides; none of other models, and when its manifest is damaged.
    pub bundle: Option<BundleSummary>,
    /// Stored bits of all tensors of two and more dimensions over their weights.
    pub bits_per_weight: Option<f64>,
    /// Are a bundle's bytes those that were written?
    #[serde(default)]
    pub integrity: Option<Integrity>,
    /// What was checked of a model that is no bundle.
    #[serde(default)]
    pub structure: Option<Structure>,
    /// How far are the tensors from the original's? None without one.
    pub fidelity: Option<Fidelity>,
    /// The text; none without one.
    pub text: Option<TextRecord>,
    /// What the bundle was calibrated with; none when it was not, or its manifest is damaged.
    #[serde(default)]
    pub calibration: Option<CalibrationRecord>,
    /// Where the bytes are: per layer, role and encoding.
    #[serde(default)]
    pub allocation: Vec<Allocation>,
    /// How far do the predictions drift apart? None without a text.
    pub divergence: Option<Divergence>,
    /// What the types of the KV cache cost alone; none where they were not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CachePrice>,
    /// What making units again gave; none where that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduction: Option<Reproduction>,
    /// The limits that were asked for.
    pub thresholds: Thresholds,
    /// Everything that is wrong, from all checks.
    pub findings: Vec<Finding>,
    /// What makes the figures doubtful, though nothing is wrong with the candidate.
    #[serde(default)]
    pub warnings: Vec<Finding>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Whether a candidate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Nothing was found.
    Holds,
    /// Something was: see the findings.
    Found,
}

/// What a model is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// In what form it lies on disk.
    pub form: Form,
    /// The checkpoint's `model_type`.
    pub model_type: String,
    /// Layers.
    pub layers: u64,
    /// Weights of the text model.
    pub parameters: u64,
    /// Bytes of the files that hold its weights.
    pub weight_bytes: u64,
}

/// Forms of a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// A bundle of this program.
    Bundle,
    /// A directory of `config.json` and safetensors.
    Checkpoint,
    /// A GGUF file, or several that are one.
    Gguf,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bundle => "bundle",
            Self::Checkpoint => "checkpoint",
            Self::Gguf => "GGUF",
        })
    }
}

impl ModelSummary {
    /// What an opened model is.
    pub(crate) fn new(weights: &Weights, census: &Census) -> Self {
        if let Some(bundle) = weights.bundle() {
            return Self::of_bundle(bundle.manifest(), census);
        }
        let files = structure::files(weights);
        let gguf = files.iter().any(|f| f.path.ends_with(GGUF_SUFFIX));
        let form = if gguf { Form::Gguf } else { Form::Checkpoint };
        let bytes = files.iter().map(|f| f.bytes).sum();
        Self::with(form, weights.spec(), census, bytes)
    }

    fn of_bundle(manifest: &Manifest, census: &Census) -> Self {
        Self::with(Form::Bundle, &manifest.model, census, shard_bytes(manifest))
    }

    fn with(form: Form, spec: &ModelSpec, census: &Census, weight_bytes: u64) -> Self {
        Self {
            form,
            model_type: spec.model_type.clone(),
            layers: spec.layers.len() as u64,
            parameters: census.text().weights,
            weight_bytes,
        }
    }
}

fn shard_bytes(manifest: &Manifest) -> u64 {
    let shards = manifest.files.iter().filter(|f| f.kind == FileKind::Shards);
    shards.map(|f| f.size).sum()
}

/// What a bundle is, by its manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleSummary {
    /// Program and version that wrote it.
    pub generator: String,
    /// The checkpoint's `model_type`.
    pub model_type: String,
    /// Layers.
    pub layers: u64,
    /// Weights of all tensors.
    pub parameters: u64,
    /// Bytes of all files but the manifest.
    pub bytes: u64,
    /// Every shard starts on a multiple of this.
    pub alignment: u64,
    /// Names the checkpoint: a hash over the hashes of its weight files, in their order.
    #[serde(default)]
    pub checkpoint_blake3: Option<Hash>,
}

impl BundleSummary {
    fn new(manifest: &Manifest, parameters: u64) -> Self {
        Self {
            generator: manifest.generator.clone(),
            model_type: manifest.model.model_type.clone(),
            layers: manifest.model.layers.len() as u64,
            parameters,
            bytes: manifest.files.iter().map(|f| f.size).sum(),
            alignment: manifest.alignment,
            checkpoint_blake3: Some(checkpoint_hash(manifest)),
        }
    }
}

fn checkpoint_hash(manifest: &Manifest) -> Hash {
    let mut hasher = blake3::Hasher::new();
    for file in &manifest.checkpoint.files {
        hasher.update(&file.blake3.0);
    }
    hasher.finalize().into()
}

/// The text that both models predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    /// Name of the file.
    pub name: String,
    /// Its hash.
    pub blake3: Hash,
    /// Its size in bytes.
    pub bytes: u64,
    /// Tokens of it that were read.
    pub tokens: u64,
    /// How the candidates kept keys and values, if not as computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheTypes>,
}

impl Report {
    pub(crate) fn new(name: String, thresholds: Thresholds) -> Self {
        Self {
            verdict: Verdict::Holds,
            name,
            model: None,
            bundle: None,
            bits_per_weight: None,
            integrity: None,
            structure: None,
            fidelity: None,
            text: None,
            calibration: None,
            allocation: Vec::new(),
            divergence: None,
            cache: None,
            reproduction: None,
            thresholds,
            findings: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Says what a bundle is, by its manifest.
    pub(crate) fn describe_bundle(&mut self, manifest: &Manifest) {
        let census = manifest.census();
        self.bundle = Some(BundleSummary::new(manifest, census.text().weights));
        let excerpt = manifest.checkpoint.excerpt;
        self.notes
            .extend(excerpt.map(|excerpt| excerpt.to_string()));
        let wide = |t: &TensorEntry| t.encoding.float() == Some(Float::F32) && t.rows > 1;
        let dense = manifest.dense.iter().flat_map(|s| s.tensors.iter());
        let count = dense.filter(|t| wide(t)).count();
        if count > 0 {
            self.notes
                .push(format!("{count} matrices are stored in f32"));
        }
        self.describe(ModelSummary::of_bundle(manifest, &census), &census);
    }

    /// Says what the candidate is.
    pub(crate) fn describe(&mut self, model: ModelSummary, census: &Census) {
        self.model = Some(model);
        self.bits_per_weight = Some(census.bits_per_weight());
        self.allocation = allocation(census);
    }

    /// Takes in what became of a signature: something to say, or a finding.
    pub(crate) fn signed(&mut self, signed: Result<Option<String>, Finding>) {
        match signed {
            Ok(note) => self.notes.extend(note),
            Err(finding) => self.findings.push(finding),
        }
    }

    /// Says what a bundle was calibrated with.
    pub(crate) fn overlap(&mut self, overlap: Overlap) {
        self.calibration = Some(overlap.record);
        self.warnings.extend(overlap.warning);
        self.notes.extend(overlap.note);
    }

    /// Gathers the findings of all checks and decides.
    pub(crate) fn conclude(mut self) -> Self {
        let mut findings = Vec::new();
        if let Some(integrity) = &mut self.integrity {
            findings.append(&mut integrity.findings);
            if !integrity.beside.is_empty() {
                let beside = integrity.beside.join(", ");
                self.notes
                    .push(format!("beside the bundle, and no part of it: {beside}"));
            }
        }
        if let Some(structure) = &mut self.structure {
            findings.append(&mut structure.findings);
        }
        if let Some(fidelity) = &mut self.fidelity {
            findings.append(&mut fidelity.findings);
            self.notes.append(&mut fidelity.notes);
        }
        findings.append(&mut self.findings);
        findings.extend(
            self.bits_per_weight
                .and_then(|bits| self.thresholds.size_findings(bits)),
        );
        if let Some(divergence) = &self.divergence {
            findings.extend(self.thresholds.findings(divergence));
            self.warnings.extend(overfit(divergence));
            self.notes.extend(remarks(divergence));
        }
        self.verdict = if findings.is_empty() { Verdict::Holds } else { Verdict::Found };
        self.findings = findings;
        self
    }
}

/// A bundle that beats its original on a text was fitted to text of its kind, or was lucky.
fn overfit(d: &Divergence) -> Option<Finding> {
    let (ratio, error) = (d.ln_ppl_ratio, d.ln_ppl_ratio_se);
    let why = if -ratio > 2.0 * error {
        "more than chance explains: has the bundle been fitted to this text?"
    } else {
        "within what chance explains"
    };
    let found = format!("ln ratio {ratio:.6} ± {error:.6}, {why}");
    let finding = Finding::new(Kind::Overfit, "perplexity below the original's");
    (ratio < 0.0).then_some(Finding { found: Some(found), ..finding })
}

/// What the figures themselves do not say.
fn remarks(d: &Divergence) -> Vec<String> {
    let mut notes = Vec::new();
    if d.tokens < 1000 {
        notes.push(format!("{} tokens are few: mind the standard errors", d.tokens));
    }
    let floor = d.noise_floor.filter(|floor| d.kld_mean < floor.kld_mean);
    if let Some(floor) = floor {
        notes.push(format!(
            "the mean KLD lies below {:.2e}, what 16-bit hidden states alone do to the original",
            floor.kld_mean
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_than_the_original_is_doubted() {
        let warning = |ln_ppl_ratio, ln_ppl_ratio_se| {
            let d = Divergence { ln_ppl_ratio, ln_ppl_ratio_se, ..Divergence::default() };
            overfit(&d).map(|finding| finding.to_string())
        };
        let start = "perplexity below the original's: found ln ratio -0.010000 ± ";
        let chance = warning(-0.01, 0.006).unwrap();
        assert_eq!(chance, format!("{start}0.006000, within what chance explains"));
        let fitted = warning(-0.01, 0.001).unwrap();
        assert!(fitted.starts_with(start) && fitted.contains("fitted to this text?"), "{fitted}");
        assert_eq!(warning(0.0, 0.001), None);
    }

    #[test]
    fn a_divergence_below_the_floor_is_remarked() {
        let floor = crate::NoiseFloor { kld_mean: 0.002, ..crate::NoiseFloor::default() };
        let noise_floor = Some(floor);
        let d =
            |kld_mean| Divergence { tokens: 5000, kld_mean, noise_floor, ..Divergence::default() };
        assert!(remarks(&d(0.001))[0].starts_with("the mean KLD lies below 2.00e-3"));
        assert!(remarks(&d(0.003)).is_empty());
    }
}
