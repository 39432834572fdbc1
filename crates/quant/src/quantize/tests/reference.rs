//! Our feedback is that of an independent GPTQ: `fixtures/vectors/gptq.json`, whose `_comment` says
//! what each field holds.

use serde_json::Value;

use crate::Backend;
use crate::encoding::{Affine, Encoding, Float, Zeros};
use crate::feedback::{HessianFactor, Rows, Sweep};
use crate::kernel::{Kernel, LANES, Simd};
use crate::quantize::gptq::{StripRows, feed_back};
use crate::quantize::group::GroupPair;
use crate::quantize::lanes::{Extremes, Grid, Measure, Pair};

/// GPTQ with scales and biases that are given.
struct Given<'a> {
    feedback: &'a HessianFactor,
    affine: Affine,
    scales: &'a [f32],
    biases: &'a [f32],
    weights: Rows,
}

impl Kernel for Given<'_> {
    /// Errors of the weights, and what the feedback leaves of them in the outputs.
    type Output = (Rows, Rows);

    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let (group, mut targets) = (self.affine.group_size(), self.weights.clone());
        let (cols, mut sweep) = (targets.cols(), Sweep::new(self.feedback));
        for start in (0..cols).step_by(group) {
            sweep.before(s, &(start..start + group), &self.weights, &mut targets);
            let mut rounded = [[0.0; LANES]; 32];
            let mut chosen = self.chosen(s, start / group, cols / group);
            let strip = targets.strips_mut().zip(self.weights.strips_mut());
            for (targets, errors) in strip {
                let lanes = StripRows {
                    start,
                    grid: Grid::new(self.affine, Zeros::Float),
                    targets,
                    errors,
                };
                feed_back(s, &sweep, lanes, &mut chosen, &mut rounded);
            }
        }
        (self.weights, targets)
    }
}

impl Given<'_> {
    fn chosen<S: Simd>(&self, s: S, group: usize, groups: usize) -> GroupPair<S::F> {
        let row = |all: &[f32]| {
            let value = |l: usize| all.get(l * groups + group).copied().unwrap_or(0.0);
            s.load(&std::array::from_fn(value))
        };
        let (pair, zero) = (Pair { scale: row(self.scales), bias: row(self.biases) }, s.splat(0.0));
        let ends = Extremes { min: zero, max: zero, nan_unless_finite: zero };
        GroupPair { pair, measured: Measure::none(s), improved: zero, ends }
    }
}

fn numbers(value: &Value) -> Vec<f32> {
    let list = value.as_array().unwrap();
    list.iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

#[test]
fn feedback_is_that_of_gptq_through_the_inverse() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/vectors/gptq.json");
    let case: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let number = |name: &str| case[name].as_u64().unwrap() as usize;
    let (rows, cols, group) = (number("rows"), number("cols"), number("group_size"));
    let samples = number("samples") as f32;
    let gram: Vec<f32> = numbers(&case["gram_times_samples"])
        .iter()
        .map(|v| v / samples)
        .collect();
    let affine = Affine::new(number("bits") as u8, group as u16, Float::F16).unwrap();
    let damping = case["damping"].as_f64().unwrap() as f32;
    let feedback = HessianFactor::new(&gram, cols, damping, Encoding::Affine(affine)).unwrap();
    let [x, scales, biases, codes] =
        ["weight", "scales", "biases", "codes"].map(|name| numbers(&case[name]));
    let mut weights = Rows::default();
    weights.set(&x, cols);
    let given = Given { feedback: &feedback, affine, scales: &scales, biases: &biases, weights };
    let (errors, lost) = Backend::detect().run(given);
    let strip = errors.strips().next().unwrap();
    for row in 0..rows {
        for col in 0..cols {
            let at = row * (cols / group) + col / group;
            let value = scales[at].mul_add(codes[row * cols + col], biases[at]);
            assert_eq!(strip[col][row], x[row * cols + col] - value, "row {row}, column {col}");
        }
    }
    // Lanes without a row have no share in it.
    assert!(
        strip
            .iter()
            .all(|line| line[rows..].iter().all(|v| *v == 0.0))
    );
    let told = case["output_error"].as_f64().unwrap();
    let ratio = feedback.energy(&errors, &lost) / told;
    assert!((ratio - 1.0).abs() < 1e-4, "{ratio}");
}
