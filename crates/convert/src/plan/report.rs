//! What a conversion did: `report.json`.

use serde::{Deserialize, Serialize};
use shardwright_format::Role;
use shardwright_format::Unit;
use shardwright_format::manifest::{Excerpt, Ignored};
use shardwright_format::report::{CalibrationReport, LayerCoverage, LayerOutput};
use shardwright_quant::{Method, QuantStats};

use super::{
    FallbackUsed, OmittedExtra, Plan, PlannedTensor, Repacked, RuleMatch, SkippedFile, Summary,
    UnquantizedMatrix,
};
use crate::calibrate::streams::{RULE, Streamed, predicted};

/// What a conversion did. The same for every machine, thread count and interruption.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConversionReport {
    /// Program and version.
    pub generator: String,
    /// The recipe's name; the manifest has it in full.
    pub recipe: String,
    /// The layers that the bundle has of the checkpoint, where not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excerpt: Option<Excerpt>,
    /// Sizes, as planned.
    pub summary: Summary,
    /// Every rule and what it matched.
    pub rules: Vec<RuleMatch>,
    /// Tensors that could not be stored as wished.
    pub fallbacks: Vec<FallbackUsed>,
    /// Matrices that stay in 16 or 32 bits.
    pub leftovers: Vec<UnquantizedMatrix>,
    /// Tensors whose codes were taken over from the checkpoint; where one lost anything after all,
    /// because a bias had no exact value, its own entry says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repacked: Vec<Repacked>,
    /// Tensors of the checkpoint that are not in the bundle.
    pub ignored: Vec<Ignored>,
    /// Those of them that are parts besides the text model, counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<OmittedExtra>,
    /// Files of the checkpoint that are not in the bundle.
    pub skipped: Vec<SkippedFile>,
    /// Inputs that codes would have been chosen by, of which the statistics said nothing: those codes
    /// were chosen as without statistics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unguided: Vec<String>,
    /// What a text showed of the conversion; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<CalibrationReport>,
    /// What each tensor lost, experts apart.
    pub tensors: Vec<TensorReport>,
    /// What the experts lost, per layer and role.
    pub experts: Vec<ExpertReport>,
}

/// What one tensor lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorReport {
    /// The shard that it lies in.
    pub unit: Unit,
    /// What it is for.
    pub role: Role,
    /// Name in the checkpoint.
    pub tensor: String,
    /// How it is stored.
    pub encoding: String,
    /// How codes were chosen; none for plain floats.
    pub method: Option<Method>,
    /// Root of the squared error over the squared weights.
    pub relative_rmse: f64,
    /// Signal to noise in decibels; none for an exact copy.
    pub sqnr_db: Option<f64>,
    /// The largest error of a weight.
    pub max_abs_error: f32,
    /// Root of the squared error of the outputs over the squared outputs, where inputs are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
    /// Groups in all, those where search beat min-max, those of equal weights.
    pub groups: [u64; 3],
}

/// What the experts of a layer lost in one role.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertReport {
    /// The layer.
    pub layer: u32,
    /// Which of its experts, ascending; absent where they are all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Vec<u32>>,
    /// What they are for.
    pub role: Role,
    /// Name in the checkpoint; `{expert}` stands for each expert's number.
    pub tensor: String,
    /// How they are stored.
    pub encoding: String,
    /// How codes were chosen; none for plain floats.
    pub method: Option<Method>,
    /// Root of the squared error over the squared weights, these experts together.
    pub relative_rmse: f64,
    /// Signal to noise in decibels; none for exact copies.
    pub sqnr_db: Option<f64>,
    /// The largest error of a weight.
    pub max_abs_error: f32,
    /// Root of the squared error of the outputs over the squared outputs, where inputs are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
    /// Groups in all, those where search beat min-max, those of equal weights.
    pub groups: [u64; 3],
    /// The expert that lost most.
    pub worst_expert: u32,
    /// What it lost.
    pub worst_relative_rmse: f64,
}

/// The longest that serde writes a number: sign, seventeen digits, point, exponent.
const LONGEST: f64 = -1.797_693_134_862_315_7e-308;

impl ConversionReport {
    /// The report of a finished conversion; `stats` gives what each tensor of a unit lost.
    pub(crate) fn new<'a>(
        plan: &Plan,
        stats: impl Fn(Unit) -> &'a [QuantStats],
        streamed: Option<Streamed>,
    ) -> Self {
        let dense = plan.manifest.dense.iter();
        let dense = dense.filter_map(|shard| plan.planned(shard.unit));
        let tensors = dense.flat_map(|unit| {
            let each = unit.tensors.into_iter().zip(stats(unit.unit));
            each.map(|(tensor, stats)| tensor_report(&tensor, stats))
        });
        let tensors = tensors.collect();
        let experts = plan.manifest.experts.iter().flat_map(|shards| {
            let layer = shards.layer;
            let units = shards.numbers();
            let units: Vec<_> = units
                .map(|expert| (expert, stats(Unit::Expert { layer, expert })))
                .collect();
            let planned = plan.planned(shards.first());
            let each = planned
                .into_iter()
                .flat_map(|unit| unit.tensors)
                .enumerate();
            each.map(|(at, tensor)| {
                let each = units
                    .iter()
                    .filter_map(|(expert, u)| Some((*expert, u.get(at)?)));
                expert_report(layer, shards.experts.clone(), &tensor, each)
            })
            .collect::<Vec<_>>()
        });
        let record = plan.manifest.calibration.as_ref();
        let calibration = record
            .zip(streamed)
            .map(|(record, seen)| CalibrationReport {
                tokens: record.tokens,
                window: record.window,
                predicted_tokens: predicted(record.tokens, u64::from(record.window)),
                divergence: seen.divergence,
                rule: if seen.coverage.is_empty() { String::new() } else { RULE.to_owned() },
                coverage: seen.coverage,
                layers: seen.layers,
            });
        Self { tensors, experts: experts.collect(), calibration, ..Self::frame(plan) }
    }

    /// The report without what tensors lost.
    fn frame(plan: &Plan) -> Self {
        Self {
            generator: plan.manifest.generator.clone(),
            recipe: plan.recipe.name.clone(),
            excerpt: plan.manifest.checkpoint.excerpt,
            summary: plan.summary.clone(),
            rules: plan.rules.clone(),
            fallbacks: plan.fallbacks.clone(),
            leftovers: plan.leftovers.clone(),
            repacked: plan.repacked.clone(),
            ignored: plan.ignored.clone(),
            left_out: plan.left_out.clone(),
            skipped: plan.skipped.clone(),
            unguided: plan.unguided.clone(),
            calibration: None,
            tensors: Vec::new(),
            experts: Vec::new(),
        }
    }

    /// Bytes of the file, whatever the conversion finds: every number as long as can be.
    pub(crate) fn padded_len(plan: &Plan) -> u64 {
        // As many as any unit has tensors; zipped, the rest is left.
        let tensors = plan.manifest.layouts().map(|(.., tensors)| tensors.len());
        let zeros = vec![ZERO; tensors.max().unwrap_or_default()];
        let mut report = Self::new(plan, |_| &zeros, longest_streamed(plan));
        report.summary.bundle_bytes = u64::MAX;
        for tensor in &mut report.tensors {
            tensor.method = longest_method(tensor.method, &tensor.encoding);
            tensor.relative_rmse = LONGEST;
            tensor.sqnr_db = Some(LONGEST);
            tensor.max_abs_error = f32::MIN;
            tensor.relative_output_error = Some(LONGEST);
            tensor.groups = [u64::MAX; 3];
        }
        for experts in &mut report.experts {
            experts.method = longest_method(experts.method, &experts.encoding);
            experts.relative_rmse = LONGEST;
            experts.sqnr_db = Some(LONGEST);
            experts.max_abs_error = f32::MIN;
            experts.relative_output_error = Some(LONGEST);
            experts.groups = [u64::MAX; 3];
            experts.worst_expert = u32::MAX;
            experts.worst_relative_rmse = LONGEST;
        }
        report.to_json().len() as u64
    }

    /// The file's bytes, filled up with spaces to `len`.
    pub(crate) fn to_padded(&self, len: u64) -> Vec<u8> {
        let mut bytes = self.to_json();
        bytes.pop();
        bytes.resize((len as usize).saturating_sub(1).max(bytes.len()), b' ');
        bytes.push(b'\n');
        bytes
    }

    fn to_json(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

const ZERO: QuantStats = QuantStats {
    weights: 0,
    groups: 0,
    sum_sq_error: 0.0,
    sum_sq: 0.0,
    max_abs_error: 0.0,
    improved_groups: 0,
    constant_groups: 0,
    output_error: 0.0,
    output: 0.0,
};

/// What a text can show at most, in digits.
fn longest_streamed(plan: &Plan) -> Option<Streamed> {
    let record = plan.manifest.calibration.as_ref()?;
    let model = &plan.manifest.model;
    let layers = 0..model.layers.len() as u32;
    let output = |layer| LayerOutput { layer, relative_output_error: LONGEST };
    let coverage = |(layer, experts): (u32, u32)| LayerCoverage {
        layer,
        tokens: vec![record.tokens * u64::from(experts); experts as usize],
        starved: (0..experts).collect(),
    };
    let counts = layers
        .clone()
        .map(|layer| (layer, model.layers[layer as usize].num_experts()));
    record.statistics_blake3.is_none().then(|| Streamed {
        layers: layers.map(output).collect(),
        divergence: LONGEST,
        coverage: counts
            .filter(|(_, experts)| *experts > 0)
            .map(coverage)
            .collect(),
    })
}

/// A method as long as any, where codes are taken over if they can be.
fn longest_method(method: Option<Method>, encoding: &str) -> Option<Method> {
    method.or_else(|| encoding.starts_with('q').then_some(Method::Importance))
}

fn output_error(stats: &QuantStats) -> Option<f64> {
    (stats.output > 0.0).then(|| (stats.output_error.max(0.0) / stats.output).sqrt())
}

/// None for plain floats and for codes that were taken over.
fn method_of(planned: &PlannedTensor<'_>, stats: &QuantStats) -> Option<Method> {
    let tensor = planned.entry;
    let copied =
        tensor.source.codes(tensor.cols) == Some(tensor.encoding) && stats.sum_sq_error == 0.0;
    (tensor.encoding.float().is_none() && !copied).then_some(planned.method)
}

fn sqnr(stats: &QuantStats) -> Option<f64> {
    Some(stats.sqnr_db()).filter(|db| db.is_finite())
}

const fn groups(stats: &QuantStats) -> [u64; 3] {
    [stats.groups, stats.improved_groups, stats.constant_groups]
}

fn tensor_report(planned: &PlannedTensor<'_>, stats: &QuantStats) -> TensorReport {
    let tensor = planned.entry;
    TensorReport {
        unit: planned.unit,
        role: tensor.role,
        tensor: tensor.source.tensor.clone(),
        encoding: tensor.encoding.label(),
        method: method_of(planned, stats),
        relative_rmse: stats.relative_rmse(),
        sqnr_db: sqnr(stats),
        max_abs_error: stats.max_abs_error,
        relative_output_error: output_error(stats),
        groups: groups(stats),
    }
}

fn expert_report<'a>(
    layer: u32,
    experts: Option<Vec<u32>>,
    planned: &PlannedTensor<'_>,
    each: impl Iterator<Item = (u32, &'a QuantStats)>,
) -> ExpertReport {
    let (tensor, mut all) = (planned.entry, ZERO);
    let mut worst = (0, 0.0);
    for (expert, stats) in each {
        all.merge(stats);
        let found = stats.relative_rmse();
        if found > worst.1 {
            worst = (expert, found);
        }
    }
    ExpertReport {
        layer,
        experts,
        role: tensor.role,
        tensor: tensor.source.tensor.clone(),
        encoding: tensor.encoding.label(),
        method: method_of(planned, &all),
        relative_rmse: all.relative_rmse(),
        sqnr_db: sqnr(&all),
        max_abs_error: all.max_abs_error,
        relative_output_error: output_error(&all),
        groups: groups(&all),
        worst_expert: worst.0,
        worst_relative_rmse: worst.1,
    }
}
