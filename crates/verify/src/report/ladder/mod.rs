//! Several candidates of one original: a row each.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shardwright_format::Role;

use crate::check::divergence::LayerDrift;
use crate::report::{ModelSummary, Report, TextRecord, Verdict};

/// Candidates and what they were judged by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ladder {
    /// What the candidates were compared with; none where each was checked alone.
    pub original: Option<Original>,
    /// The text; none without one.
    pub text: Option<TextRecord>,
    /// One report per candidate, in the order given.
    pub candidates: Vec<Report>,
}

/// The model that candidates were compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Original {
    /// Name of its directory or file.
    pub name: String,
    /// What it is.
    pub model: ModelSummary,
    /// Stored bits of all tensors of two and more dimensions over their weights.
    pub bits_per_weight: Option<f64>,
}

impl Ladder {
    /// Whether every candidate stands.
    pub fn verdict(&self) -> Verdict {
        let found = |report: &Report| report.verdict == Verdict::Found;
        if self.candidates.iter().any(found) { Verdict::Found } else { Verdict::Holds }
    }

    /// Relative RMSE of each role's weights, a row per role and an entry per candidate; encodings of one
    /// role together. None where a candidate was not compared or has none such.
    pub(crate) fn errors(&self) -> Vec<(Role, Vec<Option<f64>>)> {
        let mut rows = BTreeMap::<Role, Vec<(f64, f64)>>::new();
        for (at, report) in self.candidates.iter().enumerate() {
            for role in report.fidelity.iter().flat_map(|f| &f.roles) {
                let empty = || vec![(0.0, 0.0); self.candidates.len()];
                let (squares, weights) = &mut rows.entry(role.role).or_insert_with(empty)[at];
                *squares += role.rmse * role.rmse * role.weights as f64;
                *weights += role.weights as f64;
            }
        }
        let root =
            |(squares, weights): (f64, f64)| (weights > 0.0).then(|| (squares / weights).sqrt());
        let row = |(role, sums): (Role, Vec<_>)| (role, sums.into_iter().map(root).collect());
        rows.into_iter().map(row).collect()
    }

    /// Drift of the residual stream after each layer, an entry per candidate.
    pub(crate) fn drift(&self) -> Vec<(String, Vec<Option<f64>>)> {
        let layers = |report: &Report| report.divergence.as_ref().map(|d| d.layers.clone());
        let all: Vec<_> = self.candidates.iter().map(layers).collect();
        let Some(longest) = all.iter().flatten().max_by_key(|layers| layers.len()) else {
            return Vec::new();
        };
        let row = |(at, layer): (usize, &LayerDrift)| {
            let name = layer
                .layer
                .map_or("embedding".to_owned(), |l| format!("layer {l}"));
            let drift = |layers: &Option<Vec<LayerDrift>>| Some(layers.as_ref()?.get(at)?.rmse);
            (name, all.iter().map(drift).collect())
        };
        longest.iter().enumerate().map(row).collect()
    }
}
