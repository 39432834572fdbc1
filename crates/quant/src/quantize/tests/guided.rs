//! What quantization promises once it knows of the inputs.

use proptest::prelude::*;

use super::{gaussian, kinds};
use crate::encoding::{Affine, Encoding, Float, Trellis, Zeros};
use crate::error::QuantError;
use crate::feedback::HessianFactor;
use crate::feedback::tests::gram;
use crate::kernel::tests::noise;
use crate::quantize::{Job, Method, Objective, PartsMut, QuantStats, quantize};
use crate::{Backend, Matrix};

/// A quantized matrix, its values and what it cost.
#[derive(Debug, PartialEq)]
struct Quantized {
    stats: QuantStats,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn run_on(
    backend: Backend,
    x: &[f32],
    cols: usize,
    encoding: Encoding,
    method: Method,
    guide: Objective<'_>,
) -> Result<Quantized, QuantError> {
    let rows = x.len() / cols;
    let total = encoding.parts(rows as u64, cols as u64)?.total();
    let (mut bytes, mut values) = (vec![0; total as usize], vec![0.0; x.len()]);
    let out = PartsMut::split(encoding, rows, cols, &mut bytes)?;
    let zeros = Zeros::Float;
    let job = Job { backend, x, cols, encoding, method, zeros, objective: guide };
    let stats = quantize(&job, out)?;
    let matrix = Matrix::new(encoding, rows, cols, &bytes).unwrap();
    matrix.dequantize(backend, 0..rows, &mut values);
    Ok(Quantized { stats, bytes, values })
}

fn run(
    x: &[f32],
    cols: usize,
    encoding: Encoding,
    method: Method,
    guide: Objective<'_>,
) -> Quantized {
    run_on(Backend::detect(), x, cols, encoding, method, guide).unwrap()
}

fn affine(bits: u8) -> Encoding {
    Encoding::Affine(Affine::new(bits, 32, Float::F16).unwrap())
}

fn trellis(bits: u8) -> Encoding {
    Encoding::Trellis(Trellis::new(bits, 10).unwrap())
}

/// `Σ E H Eᵀ` of `e = x - values`.
fn lost(x: &[f32], values: &[f32], gram: &[f32], cols: usize) -> f64 {
    let error: Vec<f64> = x
        .iter()
        .zip(values)
        .map(|(x, v)| f64::from(*x) - f64::from(*v))
        .collect();
    let row = |e: &[f64]| -> f64 {
        let product = |h: &[f32]| h.iter().zip(e).map(|(h, e)| f64::from(*h) * e).sum::<f64>();
        gram.chunks_exact(cols)
            .zip(e)
            .map(|(h, e)| e * product(h))
            .sum()
    };
    error.chunks_exact(cols).map(row).sum()
}

fn weighted(x: &[f32], values: &[f32], moments: &[f32]) -> f64 {
    x.iter()
        .zip(values)
        .zip(moments.iter().cycle())
        .map(|((x, v), m)| (f64::from(*x) - f64::from(*v)).powi(2) * f64::from(*m))
        .sum()
}

fn diagonal(gram: &[f32], cols: usize) -> Vec<f32> {
    gram.iter().step_by(cols + 1).copied().collect()
}

/// What each way loses in the outputs over what the search loses, and that it says so.
fn ratios(
    encoding: Encoding,
    ways: &[(Method, Objective<'_>)],
    gram: &[f32],
    cols: usize,
) -> Vec<f64> {
    let x = gaussian(40 * cols, 5);
    let zeros = vec![0.0; x.len()];
    let base = run(&x, cols, encoding, Method::Search, Objective::Weights).values;
    let base = lost(&x, &base, gram, cols);
    ways.iter()
        .map(|&(method, guide)| {
            let Quantized { stats, values, .. } = run(&x, cols, encoding, method, guide);
            let found = lost(&x, &values, gram, cols);
            if let Objective::Hessian(_) = guide {
                let (error, output) =
                    (stats.output_error / found, stats.output / lost(&x, &zeros, gram, cols));
                assert!((error - 1.0).abs() < 1e-3, "{encoding:?} {method:?}: {error}");
                assert!((output - 1.0).abs() < 1e-3, "{encoding:?} {method:?}: {output}");
            }
            assert_eq!(stats.weights, x.len() as u64);
            let plain = lost(&x, &values, &[1.0], 1);
            assert!((stats.sum_sq_error / plain - 1.0).abs() < 1e-4, "{encoding:?} {method:?}");
            found / base
        })
        .collect()
}

#[test]
fn feedback_lowers_what_correlated_outputs_lose() {
    let cols = 320;
    let gram = gram(cols, 3 * cols, 1);
    for (bits, at_most) in [(2, 0.4), (3, 0.3), (4, 0.3), (8, 0.5)] {
        let encoding = affine(bits);
        let feedback = HessianFactor::new(&gram, cols, 0.01, encoding).unwrap();
        let guide = Objective::Hessian(&feedback);
        let ways =
            [Method::MinMax, Method::Search, Method::Importance, Method::Gptq].map(|m| (m, guide));
        let found = ratios(encoding, &ways, &gram, cols);
        assert_eq!(found[1], 1.0);
        assert!(found[2] < 1.0, "{bits} bits: importance {found:?}");
        assert!(found[3] < at_most, "{bits} bits: gptq {found:?}");
    }
    for bits in Trellis::BITS {
        let encoding = trellis(bits);
        let feedback = HessianFactor::new(&gram, cols, 0.01, encoding).unwrap();
        let ways = [Objective::Weights, Objective::Hessian(&feedback)].map(|g| (Method::Search, g));
        let found = ratios(encoding, &ways, &gram, cols);
        assert!(found[1] < 0.4, "{bits} bits: trellis {found:?}");
    }
}

#[test]
fn without_correlations_feedback_is_the_search() {
    let cols = 96;
    let x = gaussian(17 * cols, 2);
    let mut gram = vec![0.0; cols * cols];
    gram.iter_mut().step_by(cols + 1).for_each(|v| *v = 3.0);
    for bits in Affine::BITS {
        let feedback = HessianFactor::new(&gram, cols, 0.01, affine(bits)).unwrap();
        let guide = Objective::Hessian(&feedback);
        let found = run(&x, cols, affine(bits), Method::Gptq, guide);
        let base = run(&x, cols, affine(bits), Method::Search, Objective::Weights);
        assert_eq!(found.bytes, base.bytes);
        assert_eq!(found.stats.improved_groups, base.stats.improved_groups);
    }
    let feedback = HessianFactor::new(&gram, cols, 0.01, trellis(2)).unwrap();
    let base = run(&x, cols, trellis(2), Method::Gptq, Objective::Weights);
    assert_eq!(base.stats.output_error, 0.0);
    let found = run(&x, cols, trellis(2), Method::Gptq, Objective::Hessian(&feedback));
    // The rotation leaves rounding beside the diagonal.
    let ratio = found.stats.sum_sq_error / base.stats.sum_sq_error;
    assert!((ratio - 1.0).abs() < 0.02, "{ratio}");
}

#[test]
fn every_backend_and_every_chunk_agrees() {
    let cols = 160;
    let (gram, x) = (gram(cols, 200, 3), gaussian(290 * cols, 4));
    let moments = diagonal(&gram, cols);
    for encoding in [affine(2), affine(3), trellis(2), trellis(3)] {
        let feedback = HessianFactor::new(&gram, cols, 0.01, encoding).unwrap();
        let (importance, guide) = (Objective::Diagonal(&moments), Objective::Hessian(&feedback));
        let ways = match encoding {
            Encoding::Affine(_) => [(Method::Importance, importance), (Method::Gptq, guide)],
            _ => [(Method::Gptq, Objective::Weights), (Method::Gptq, guide)],
        };
        for (method, guide) in ways {
            let few = &x[..if encoding.row_block() == 1 { x.len() } else { 50 * cols }];
            let run_on = |backend| run_on(backend, few, cols, encoding, method, guide).unwrap();
            let expected = run_on(Backend::Scalar);
            for backend in Backend::available() {
                assert_eq!(run_on(backend), expected, "{encoding:?} {method:?} {}", backend.name());
            }
            let at = encoding.row_block() as usize * cols;
            let whole = run(&x, cols, encoding, method, guide).values;
            let parts = [&x[..at], &x[at..]].map(|x| run(x, cols, encoding, method, guide).values);
            assert!(whole == parts.concat(), "{encoding:?} {method:?}");
        }
    }
}

#[test]
fn a_dead_input_is_rounded_to_nearest() {
    let (cols, dead) = (64, 40);
    let x = gaussian(5 * cols, 6);
    let mut gram = gram(cols, 200, 7);
    for i in 0..cols {
        (gram[dead * cols + i], gram[i * cols + dead]) = (0.0, 0.0);
    }
    let feedback = HessianFactor::new(&gram, cols, 0.01, affine(3)).unwrap();
    let found = run(&x, cols, affine(3), Method::Gptq, Objective::Hessian(&feedback));
    for (x, values) in x.chunks(cols).zip(found.values.chunks(cols)) {
        // All values of the group are on its grid, most of them taken.
        let nearest = values[32..]
            .iter()
            .map(|v| (v - x[dead]).abs())
            .fold(f32::MAX, f32::min);
        assert_eq!((values[dead] - x[dead]).abs(), nearest);
    }
    let feedback = HessianFactor::new(&gram, cols, 0.01, trellis(2)).unwrap();
    let found = run(&x, cols, trellis(2), Method::Gptq, Objective::Hessian(&feedback));
    assert!(found.values.iter().all(|v| v.is_finite()));
}

#[test]
fn rows_of_zeros_cost_nothing_in_a_trellis() {
    let cols = 32;
    let mut x = gaussian(9 * cols, 8);
    x[3 * cols..4 * cols].fill(0.0);
    let found = run(&x, cols, trellis(2), Method::Gptq, Objective::Weights);
    assert_eq!(found.values[3 * cols..4 * cols], [0.0; 32]);
    assert!(found.stats.sqnr_db() > 8.0, "{:?}", found.stats);
    assert_eq!((found.stats.groups, found.stats.constant_groups), (9, 1));
    let zeros = run(&vec![0.0; 3 * cols], cols, trellis(2), Method::Gptq, Objective::Weights);
    assert_eq!(zeros.stats.sum_sq_error, 0.0);
}

#[test]
fn importance_is_never_worse_than_min_max_on_any_group() {
    for bits in Affine::BITS {
        for dtype in [Float::F16, Float::Bf16] {
            let encoding = Encoding::Affine(Affine::new(bits, 64, dtype).unwrap());
            let x = kinds(64);
            let kinds = [
                noise(64, 1).iter().map(|v| v * v).collect(),
                noise(64, 2).iter().map(|v| (v * 20.0).exp()).collect(),
                (0..64).map(|i| f32::from(i == 20)).collect(),
                vec![0.0; 64],
            ];
            for moments in kinds as [Vec<f32>; 4] {
                let guide = Objective::Diagonal(&moments);
                let base = run(&x, 64, encoding, Method::MinMax, guide);
                let found = run(&x, 64, encoding, Method::Importance, guide);
                let groups = base.values.chunks(64).zip(found.values.chunks(64));
                for (x, (base, found)) in x.chunks(64).zip(groups) {
                    let [base, found] = [base, found].map(|v| weighted(x, v, &moments));
                    assert!(found <= base, "{encoding:?}: {found} > {base}");
                }
                let told = weighted(&x, &found.values, &moments);
                assert!((found.stats.output_error - told).abs() <= 1e-4 * told);
            }
        }
    }
}

#[test]
fn the_scale_of_a_row_is_the_best_for_its_codes() {
    let cols = 256;
    let x = gaussian(16 * cols, 9);
    let found = run(&x, cols, trellis(2), Method::Gptq, Objective::Weights);
    for (x, values) in x.chunks(cols).zip(found.values.chunks(cols)) {
        let sum = |f: fn(f32, f32) -> f32| -> f64 {
            x.iter()
                .zip(values)
                .map(|(x, v)| f64::from(f(*x, *v)))
                .sum()
        };
        // Least squares, but for the rounding to bf16.
        let ratio = sum(|x, v| x * v) / sum(|_, v| v * v);
        assert!((ratio - 1.0).abs() < 0.004, "{ratio}");
    }
}

#[test]
fn importance_lowers_the_weighted_error() {
    let x = gaussian(64 * 200, 10);
    let moments: Vec<f32> = noise(64, 11).iter().map(|v| (v * 4.0).exp()).collect();
    for (bits, at_most) in [(2, 0.76), (3, 0.73), (4, 0.77)] {
        let encoding = Encoding::Affine(Affine::new(bits, 64, Float::F16).unwrap());
        let guide = Objective::Diagonal(&moments);
        let error = |method| run(&x, 64, encoding, method, guide).stats.output_error;
        let ratio = error(Method::Importance) / error(Method::Search);
        assert!(ratio < at_most, "{bits} bits: {ratio}");
    }
}

#[test]
fn a_guide_that_does_not_fit_is_refused() {
    let (cols, x) = (32, gaussian(32, 1));
    let gram = gram(cols, 100, 1);
    let feedback = HessianFactor::new(&gram, cols, 0.01, affine(2)).unwrap();
    let moments = diagonal(&gram, cols);
    let error = |x: &[f32], encoding, method, guide: Objective<'_>| {
        run_on(Backend::detect(), x, x.len(), encoding, method, guide)
            .unwrap_err()
            .to_string()
    };
    let (none, importance, guide) =
        (Objective::Weights, Objective::Diagonal(&moments), Objective::Hessian(&feedback));
    let gptq = "gptq: needs the factored Gram of the inputs to guide it";
    assert_eq!(error(&x, affine(2), Method::Gptq, none), gptq);
    assert_eq!(error(&x, affine(2), Method::Gptq, importance), gptq);
    assert!(error(&x, affine(2), Method::Importance, none).contains("second moments"));
    assert!(error(&x, trellis(2), Method::Gptq, importance).contains("Gram"));
    let other =
        "a factored Gram of 32 inputs for 32 columns of t2 s10: a Gram is of one width and basis";
    assert_eq!(error(&x, trellis(2), Method::Gptq, guide), other);
    assert!(error(&[0.0; 64], affine(2), Method::Gptq, guide).contains("of 32 inputs for 64"));
    assert!(error(&[0.0; 64], affine(2), Method::Search, importance).contains("importance"));
    let bad = vec![f32::NAN; 32];
    let nan = Objective::Diagonal(&bad);
    assert!(error(&x, affine(2), Method::Importance, nan).contains("finite number"));
    let mut x = x;
    x[7] = f32::INFINITY;
    for encoding in [affine(2), trellis(2)] {
        let feedback = HessianFactor::new(&gram, cols, 0.01, encoding).unwrap();
        let found = error(&x, encoding, Method::Gptq, Objective::Hessian(&feedback));
        assert_eq!(found, "row 0, column 7: expected a finite weight, found inf");
    }
    x[7] = 1e6;
    let feedback = HessianFactor::new(&gram, cols, 0.01, affine(2)).unwrap();
    let found = error(&x, affine(2), Method::Gptq, Objective::Hessian(&feedback));
    assert!(found.starts_with("row 0, column 0: 333"), "{found}");
    assert!(matches!(
        run_on(Backend::detect(), &x, cols, Encoding::F16, Method::Search, none),
        Err(QuantError::NoCodes(Encoding::F16))
    ));
}

proptest! {
    #[test]
    fn importance_is_never_worse_on_arbitrary_weights(
        x in prop::collection::vec(-100f32..100.0, 64),
        moments in prop::collection::vec(0f32..10.0, 32),
        bits in prop::sample::select(Affine::BITS.to_vec()),
    ) {
        let guide = Objective::Diagonal(&moments);
        let error = |method| weighted(&x, &run(&x, 32, affine(bits), method, guide).values, &moments);
        let (base, found) = (error(Method::MinMax), error(Method::Importance));
        prop_assert!(found <= base, "{found} {base}");
    }
}
