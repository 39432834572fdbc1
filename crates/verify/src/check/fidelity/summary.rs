//! Errors of many tensors, by role and by layer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardwright_format::weights::Weights;
use shardwright_format::{Role, Unit};
use shardwright_quant::QuantStats;

use super::compare::ValueComparison;
use super::{Fidelity, Slot};

/// How far all tensors of a role are from their sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoleFidelity {
    /// The role.
    pub role: Role,
    /// How they are stored.
    pub encoding: String,
    /// Tensors.
    pub tensors: u64,
    /// Their weights.
    pub weights: u64,
    /// Bytes they take as they are stored.
    pub bytes: u64,
    /// Root of all squared errors over all squared weights.
    pub rmse: f64,
    /// The same for the tensor farthest from its source.
    pub worst_rmse: f64,
    /// Signal to quantization noise over all of them, in dB; none when nothing was lost.
    pub sqnr_db: Option<f64>,
    /// The largest difference of one weight.
    pub max_abs_error: f32,
}

/// How far a tensor, or the experts of a layer together, are from the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorFidelity {
    /// The layer, if it is part of one.
    pub layer: Option<u32>,
    /// What it is for.
    pub role: Role,
    /// How it is stored.
    pub encoding: String,
    /// Tensors: 1, or the number of experts.
    pub tensors: u64,
    /// Weights.
    pub weights: u64,
    /// Root of all squared errors over all squared weights.
    pub rmse: f64,
    /// Signal to quantization noise, in dB; none when nothing was lost.
    pub sqnr_db: Option<f64>,
    /// The largest difference of one weight.
    pub max_abs_error: f32,
    /// The shard of the tensor farthest from its source.
    pub worst_shard: String,
    /// That tensor's relative RMSE.
    pub worst_rmse: f64,
}

/// Sums over some tensors.
#[derive(Clone, Default)]
struct Sums {
    tensors: u64,
    bytes: u64,
    errors: QuantStats,
    worst: Option<(f64, Unit)>,
}

impl Sums {
    fn add(&mut self, unit: Unit, bytes: u64, errors: &QuantStats) {
        self.tensors += 1;
        self.bytes += bytes;
        self.errors.merge(errors);
        let rmse = errors.relative_rmse();
        if self.worst.is_none_or(|(worst, _)| rmse > worst) {
            self.worst = Some((rmse, unit));
        }
    }

    fn sqnr_db(&self) -> Option<f64> {
        Some(self.errors.sqnr_db()).filter(|db| db.is_finite())
    }

    fn worst_rmse(&self) -> f64 {
        self.worst.map_or(0.0, |(rmse, _)| rmse)
    }
}

/// Collects comparisons in the order of the original.
#[derive(Default)]
pub(super) struct Summary {
    tensors: u64,
    exact: u64,
    quantized: QuantStats,
    roles: BTreeMap<(Role, String), Sums>,
    layers: BTreeMap<(Option<u32>, Role, String), Sums>,
    weights: u64,
}

impl Summary {
    pub(super) fn add(&mut self, weights: &Weights, slot: &Slot, compared: &ValueComparison) {
        let Slot { unit, entry } = slot;
        let errors = &compared.errors;
        // The encoding holds the shape: its matrix has just been read.
        let (label, bytes) = weights.stored_as(entry).unwrap_or_default();
        self.tensors += 1;
        self.weights += errors.weights;
        self.exact += u64::from(compared.is_exact());
        if weights.is_coded(entry) {
            self.quantized.merge(errors);
        }
        let layer = (unit.layer(), entry.role, label.clone());
        self.layers
            .entry(layer)
            .or_default()
            .add(*unit, bytes, errors);
        self.roles
            .entry((entry.role, label))
            .or_default()
            .add(*unit, bytes, errors);
    }

    pub(super) fn finish(self, into: &mut Fidelity) {
        (into.tensors, into.exact, into.weights) = (self.tensors, self.exact, self.weights);
        into.rmse = self.quantized.relative_rmse();
        into.roles = self
            .roles
            .into_iter()
            .map(|((role, encoding), sums)| role_fidelity(role, encoding, &sums))
            .collect();
        into.worst = self
            .layers
            .into_iter()
            .map(|(key, sums)| layer_fidelity(key, &sums))
            .collect();
        // Stable: ties stay in the order of layers.
        into.worst
            .sort_by(|a, b| b.worst_rmse.total_cmp(&a.worst_rmse));
    }
}

fn role_fidelity(role: Role, encoding: String, sums: &Sums) -> RoleFidelity {
    RoleFidelity {
        role,
        encoding,
        tensors: sums.tensors,
        weights: sums.errors.weights,
        bytes: sums.bytes,
        rmse: sums.errors.relative_rmse(),
        worst_rmse: sums.worst_rmse(),
        sqnr_db: sums.sqnr_db(),
        max_abs_error: sums.errors.max_abs_error,
    }
}

fn layer_fidelity(
    (layer, role, encoding): (Option<u32>, Role, String),
    sums: &Sums,
) -> TensorFidelity {
    TensorFidelity {
        layer,
        role,
        encoding,
        tensors: sums.tensors,
        weights: sums.errors.weights,
        rmse: sums.errors.relative_rmse(),
        sqnr_db: sums.sqnr_db(),
        max_abs_error: sums.errors.max_abs_error,
        worst_shard: sums
            .worst
            .map_or(String::new(), |(_, unit)| unit.to_string()),
        worst_rmse: sums.worst_rmse(),
    }
}
