//! The part of `report.json` that a verifier shows: how a calibrated conversion went.

use serde::{Deserialize, Serialize};

/// How a calibrated conversion went: the field `calibration` of `report.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CalibrationReport {
    /// Tokens read.
    pub tokens: u64,
    /// Tokens of a window.
    pub window: u32,
    /// Of those, from the beginning, how many both models' predictions were compared on.
    pub predicted_tokens: u64,
    /// Mean Kullback-Leibler divergence of the bundle's predictions from the original's over the beginning of this
    /// very text, nats per token. Another text gives an honest figure.
    pub divergence: f64,
    /// What is done for experts that too few tokens reach, in words.
    pub rule: String,
    /// Per layer with experts, how many tokens reached each.
    pub coverage: Vec<LayerCoverage>,
    /// Per layer, what its quantized weights do to its output.
    pub layers: Vec<LayerOutput>,
}

/// How many tokens reached each expert of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerCoverage {
    /// The layer.
    pub layer: u32,
    /// Tokens of each expert.
    pub tokens: Vec<u64>,
    /// Experts that the rule was applied to, ascending.
    pub starved: Vec<u32>,
}

/// What the quantized weights of a layer do to its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerOutput {
    /// The layer.
    pub layer: u32,
    /// Root of the squared differences of the residual stream after the layer over its squares, the
    /// quantized stream against the original's, calibration tokens together: the first 8,192 of them, or 2,048 where
    /// the embedding is the head too.
    pub relative_output_error: f64,
}
