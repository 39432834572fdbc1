//! What quantization cost.

use serde::{Deserialize, Serialize};

/// What quantization cost, summed over groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantStats {
    /// Weights quantized.
    pub weights: u64,
    /// Groups quantized.
    pub groups: u64,
    /// `Σ (w - ŵ)²`.
    pub sum_sq_error: f64,
    /// `Σ w²`.
    pub sum_sq: f64,
    /// The largest `|w - ŵ|`.
    pub max_abs_error: f32,
    /// Groups where search beat min-max.
    pub improved_groups: u64,
    /// Groups whose weights are all equal.
    pub constant_groups: u64,
    /// `Σ ΔW H ΔWᵀ`: the squared error of the outputs, mean over the inputs that the objective counted.
    /// `H` is their Gram without damping, or its diagonal alone. 0 without an objective.
    pub output_error: f64,
    /// `Σ W H Wᵀ`: the squared outputs, counted alike.
    pub output: f64,
}

impl QuantStats {
    /// Adds what another part of the same tensor cost.
    pub fn merge(&mut self, other: &Self) {
        self.weights += other.weights;
        self.groups += other.groups;
        self.sum_sq_error += other.sum_sq_error;
        self.sum_sq += other.sum_sq;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
        self.improved_groups += other.improved_groups;
        self.constant_groups += other.constant_groups;
        self.output_error += other.output_error;
        self.output += other.output;
    }

    /// Root of the squared error over the squared weights; 0 for an exact result.
    pub fn relative_rmse(&self) -> f64 {
        if self.sum_sq_error == 0.0 { 0.0 } else { (self.sum_sq_error / self.sum_sq).sqrt() }
    }

    /// Signal to quantization noise, `10 log10(Σ w² / Σ (w - ŵ)²)`; infinite for an exact result.
    pub fn sqnr_db(&self) -> f64 {
        -20.0 * self.relative_rmse().log10()
    }
}
