//! How codes were chosen, in steps of their own grids: rounding puts a value at most half a step from its
//! source, a code that carries something else puts it farther.

use shardwright_quant::{Affine, Matrix, widen};

/// Distances of values from their sources, in steps of the group's grid. What lies outside of the grid
/// counts from its end: there is no nearer code.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Steps {
    weights: u64,
    /// Sum of the squared distances.
    sum_sq: f64,
    /// Values for which another code is nearer, beyond what decides a tie.
    farther: u64,
}

/// Mean squared distance of calibrated codes. Nearest codes have a twelfth, GPTQ's were measured to have up
/// to 0.13 (docs/FIDELITY.md); with a chosen low bit in each it is a third, with a random one 0.58.
const MAX_MEAN_SQ: f64 = 0.25;
/// Share of codes that need not be the nearest where nothing but the weights chose them; none was measured.
const MAX_FARTHER: f64 = 0.001;
/// Half a step, and what the rounding of a product and a sum may add.
const NEAREST: f32 = 0.51;

impl Steps {
    pub(super) fn merge(&mut self, other: Self) {
        self.weights += other.weights;
        self.sum_sq += other.sum_sq;
        self.farther += other.farther;
    }

    /// What is expected and what was found, in words, if codes were chosen by more than their sources.
    /// `calibrated` ones may be: an error in one column makes up for those before it.
    pub(super) fn beyond(&self, calibrated: bool) -> Option<(String, String)> {
        let weights = self.weights.max(1) as f64;
        let (mean, farther) = (self.sum_sq / weights, self.farther as f64 / weights);
        if calibrated {
            let expected = format!("a mean squared distance of at most {MAX_MEAN_SQ} steps");
            return (mean > MAX_MEAN_SQ).then(|| (expected, format!("{mean:.3}")));
        }
        let expected = "the nearest of their grids, as without calibration".to_owned();
        let found = format!("a nearer one for {:.2} %", 100.0 * farther);
        (farther > MAX_FARTHER).then_some((expected, found))
    }

    /// Measures the whole rows of `matrix`, whose values are `stored`, `[rows, cols]` as `source`.
    pub(super) fn measure(
        affine: Affine,
        matrix: &Matrix<'_>,
        source: &[f32],
        stored: &[f32],
    ) -> Self {
        let groups = stored.len() / affine.group_size();
        let (mut scales, mut biases) = (vec![0.0; groups], vec![0.0; groups]);
        widen(affine.scale_dtype(), matrix.scales(), &mut scales);
        widen(affine.scale_dtype(), matrix.biases(), &mut biases);
        let mut steps = Self::default();
        let values = source.chunks(affine.group_size());
        let values = values.zip(stored.chunks(affine.group_size()));
        for ((scale, bias), (source, stored)) in scales.iter().zip(&biases).zip(values) {
            steps.add_group(f32::from(affine.max_code()), (*scale, *bias), source, stored);
        }
        steps
    }

    fn add_group(&mut self, most: f32, (scale, bias): (f32, f32), source: &[f32], stored: &[f32]) {
        // One value is a group without a grid: it has no code to choose.
        let step = scale.abs();
        if !(step.is_normal() && bias.is_finite()) {
            return;
        }
        let end = scale.mul_add(most, bias);
        let (low, high) = (bias.min(end), bias.max(end));
        for (x, y) in source.iter().zip(stored) {
            let distance = (y - x.clamp(low, high)).abs() / step;
            self.sum_sq += f64::from(distance) * f64::from(distance);
            self.farther += u64::from(distance > NEAREST);
        }
        self.weights += source.len() as u64;
    }
}
