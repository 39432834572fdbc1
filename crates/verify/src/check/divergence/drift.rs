//! How far two residual streams have drifted apart.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Drift of the residual stream after one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerDrift {
    /// The layer; none for the embedding's output.
    pub layer: Option<u32>,
    /// Root of the squared differences over the squared values, all tokens together.
    pub rmse: f64,
    /// What the layer added to it: the difference from the layer before.
    pub increase: f64,
    /// Cosine of the two streams, averaged over tokens.
    pub cosine: f64,
}

/// Tokens summed up together. Part of the result: sums of floats depend on it.
const CHUNK: usize = 64;

impl LayerDrift {
    /// Compares two streams `[tokens, hidden]`; `before` is the drift of the layer before.
    pub(super) fn new(
        layer: Option<u32>,
        original: &[f32],
        candidate: &[f32],
        hidden: usize,
        before: f64,
    ) -> Self {
        let chunks = original
            .par_chunks(hidden * CHUNK)
            .zip(candidate.par_chunks(hidden * CHUNK));
        let sums: Vec<Sums> = chunks.map(|(x, y)| Sums::new(x, y, hidden)).collect();
        let total = sums.iter().fold(Sums::default(), Sums::plus);
        let tokens = (original.len() / hidden).max(1) as f64;
        let rmse = if total.error == 0.0 { 0.0 } else { (total.error / total.size).sqrt() };
        Self { layer, rmse, increase: rmse - before, cosine: total.cosine / tokens }
    }
}

#[derive(Default)]
struct Sums {
    error: f64,
    size: f64,
    cosine: f64,
}

impl Sums {
    fn new(original: &[f32], candidate: &[f32], hidden: usize) -> Self {
        let rows = original.chunks(hidden).zip(candidate.chunks(hidden));
        rows.fold(Self::default(), |sums, (x, y)| sums.plus(&Self::of_token(x, y)))
    }

    fn of_token(x: &[f32], y: &[f32]) -> Self {
        let (mut error, mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0, 0.0);
        for (&x, &y) in x.iter().zip(y) {
            let (x, y) = (f64::from(x), f64::from(y));
            error += (y - x) * (y - x);
            xx += x * x;
            yy += y * y;
            xy += x * y;
        }
        // Two equal streams have a cosine of one, zeros among them.
        let cosine = if error == 0.0 { 1.0 } else { xy / (xx * yy).sqrt().max(f64::MIN_POSITIVE) };
        Self { error, size: xx, cosine }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            error: self.error + other.error,
            size: self.size + other.size,
            cosine: self.cosine + other.cosine,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_streams_do_not_drift() {
        let stream = [1.0, -2.0, 0.0, 0.0];
        let drift = LayerDrift::new(Some(3), &stream, &stream, 2, 0.0);
        assert_eq!(drift, LayerDrift { layer: Some(3), rmse: 0.0, increase: 0.0, cosine: 1.0 });
    }

    #[test]
    fn drift_is_relative_to_the_original() {
        // Squares of the error: 0 + 16; of the original: 9 + 16; cosines: 1 and 0.
        let drift = LayerDrift::new(None, &[3.0, 0.0, 4.0, 0.0], &[3.0, 0.0, 4.0, 4.0], 2, 0.5);
        assert_eq!(drift.rmse, 0.8);
        assert!((drift.increase - 0.3).abs() < 1e-15);
        assert!(
            (drift.cosine - f64::midpoint(1.0, 0.5f64.sqrt())).abs() < 1e-15,
            "{}",
            drift.cosine
        );
    }
}
