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

/// Tokens of a window summed up together. Part of the result: sums of floats depend on it.
const CHUNK: usize = 64;

/// What the drift after one layer is summed up from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerSums {
    layer: Option<u32>,
    /// Of [`CHUNK`] tokens each, in their order; none lies in two windows, so that windows are summed up alike
    /// wherever they are computed.
    chunks: Vec<Sums>,
}

impl LayerSums {
    /// Of two streams `[tokens, hidden]` in windows of `window` tokens.
    pub(super) fn new(
        layer: Option<u32>,
        (original, candidate): (&[f32], &[f32]),
        hidden: usize,
        window: usize,
    ) -> Self {
        let windows = original
            .chunks(hidden * window)
            .zip(candidate.chunks(hidden * window));
        let size = hidden * CHUNK;
        let chunks: Vec<_> = windows
            .flat_map(|(x, y)| x.chunks(size).zip(y.chunks(size)))
            .collect();
        let sums = chunks.par_iter().map(|(x, y)| Sums::new(x, y, hidden));
        Self { layer, chunks: sums.collect() }
    }

    /// Whether these are of `tokens` tokens after the layer that the `at`th sums are of.
    pub(super) fn fits(&self, at: usize, (windows, window): (usize, usize)) -> bool {
        let layer = at.checked_sub(1).map(|layer| layer as u32);
        self.layer == layer && self.chunks.len() == windows * window.div_ceil(CHUNK)
    }

    /// Adds those of the windows that follow.
    pub(super) fn append(&mut self, next: Self) {
        self.chunks.extend(next.chunks);
    }
}

impl LayerDrift {
    /// Of the sums of `tokens` tokens; `before` is the drift of the layer before.
    pub(super) fn new(sums: &LayerSums, tokens: usize, before: f64) -> Self {
        let total = sums.chunks.iter().fold(Sums::default(), Sums::plus);
        let rmse = if total.error == 0.0 { 0.0 } else { (total.error / total.size).sqrt() };
        let cosine = total.cosine / tokens.max(1) as f64;
        Self { layer: sums.layer, rmse, increase: rmse - before, cosine }
    }
}

/// Sums over tokens: squares of the differences, squares of the original, cosines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "[f64; 3]", into = "[f64; 3]")]
struct Sums {
    error: f64,
    size: f64,
    cosine: f64,
}

impl From<[f64; 3]> for Sums {
    fn from([error, size, cosine]: [f64; 3]) -> Self {
        Self { error, size, cosine }
    }
}

impl From<Sums> for [f64; 3] {
    fn from(sums: Sums) -> Self {
        [sums.error, sums.size, sums.cosine]
    }
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
        let sums = LayerSums::new(Some(3), (&stream, &stream), 2, 2);
        let drift = LayerDrift::new(&sums, 2, 0.0);
        assert_eq!(drift, LayerDrift { layer: Some(3), rmse: 0.0, increase: 0.0, cosine: 1.0 });
    }

    #[test]
    fn drift_is_relative_to_the_original() {
        // Squares of the error: 0 + 16; of the original: 9 + 16; cosines: 1 and 0.
        let (original, candidate) = ([3.0, 0.0, 4.0, 0.0], [3.0, 0.0, 4.0, 4.0]);
        let sums = LayerSums::new(None, (&original, &candidate), 2, 2);
        let drift = LayerDrift::new(&sums, 2, 0.5);
        assert_eq!(drift.rmse, 0.8);
        assert!((drift.increase - 0.3).abs() < 1e-15);
        assert!(
            (drift.cosine - f64::midpoint(1.0, 0.5f64.sqrt())).abs() < 1e-15,
            "{}",
            drift.cosine
        );
    }

    #[test]
    fn windows_are_summed_up_alike_wherever_they_are_computed() {
        let stream = |by: u32| {
            (0..400)
                .map(|i| ((i * by) % 17) as f32 / 3.0)
                .collect::<Vec<_>>()
        };
        let (x, y) = (stream(5), stream(7));
        // Two windows of 100 tokens of 2 channels, of which none ends where 64 tokens do.
        let mut first = LayerSums::new(None, (&x[..200], &y[..200]), 2, 100);
        first.append(LayerSums::new(None, (&x[200..], &y[200..]), 2, 100));
        let whole = LayerSums::new(None, (&x, &y), 2, 100);
        assert_eq!(first, whole);
        assert!(whole.fits(0, (2, 100)) && !whole.fits(1, (2, 100)) && !whole.fits(0, (3, 100)));
    }
}
