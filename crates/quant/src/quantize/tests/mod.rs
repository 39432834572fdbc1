//! What quantization promises about every group.

mod blocks;
mod guided;
mod levels;
mod points;
mod reference;
mod zeros;

use proptest::prelude::*;

use super::{Job, Method, Objective, PartsMut, QuantStats, quantize};
use crate::Backend;
use crate::encoding::{Affine, Encoding, EncodingError, Float, Zeros};
use crate::error::QuantError;
use crate::kernel::tests::noise;
use crate::matrix::Matrix;

/// A quantized matrix and its values.
#[derive(Debug)]
struct Quantized {
    stats: QuantStats,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn run(x: &[f32], cols: usize, affine: Affine, method: Method) -> Result<Quantized, QuantError> {
    run_with(x, cols, affine, method, Zeros::Float)
}

fn run_with(
    x: &[f32],
    cols: usize,
    affine: Affine,
    method: Method,
    zeros: Zeros,
) -> Result<Quantized, QuantError> {
    let (rows, encoding) = (x.len() / cols, Encoding::Affine(affine));
    let total = encoding.parts(rows as u64, cols as u64)?.total();
    let (mut bytes, mut values) = (vec![0; total as usize], vec![0.0; x.len()]);
    let out = PartsMut::split(encoding, rows, cols, &mut bytes)?;
    let (backend, objective) = (Backend::detect(), Objective::Weights);
    let job = Job { backend, x, cols, encoding, method, zeros, objective };
    let stats = quantize(&job, out)?;
    let matrix = Matrix::new(encoding, rows, cols, &bytes).unwrap();
    matrix.dequantize(Backend::detect(), 0..rows, &mut values);
    Ok(Quantized { stats, bytes, values })
}

fn affine(bits: u8, group: u16, dtype: Float) -> Affine {
    Affine::new(bits, group, dtype).unwrap()
}

fn f16(bits: u8) -> Affine {
    affine(bits, 64, Float::F16)
}

fn sum_sq_error(x: &[f32], values: &[f32]) -> f64 {
    x.iter()
        .zip(values)
        .map(|(x, v)| (f64::from(*x) - f64::from(*v)).powi(2))
        .sum()
}

/// Bell-shaped numbers with a standard deviation of 1.
pub fn gaussian(len: usize, seed: u32) -> Vec<f32> {
    let parts: Vec<_> = (0..12).map(|i| noise(len, seed + 1000 * i)).collect();
    (0..len)
        .map(|i| parts.iter().map(|p| p[i]).sum::<f32>() / 2.0)
        .collect()
}

/// Groups that differ in every way weights do: bell-shaped, heavy-tailed, one outlier, few values,
/// constant, zeros of both signs, tiny, huge, far from zero.
pub fn kinds(group: usize) -> Vec<f32> {
    let plain = gaussian(4 * group, 1);
    let mut outlier = gaussian(group, 3);
    outlier[group / 2] = 40.0;
    let parts = [
        plain.clone(),
        plain.iter().map(|x| x.powi(5)).collect(),
        outlier,
        plain[..group].iter().map(|x| x.signum() * 0.25).collect(),
        plain[..group].iter().map(|x| x.round()).collect(),
        vec![0.0; group],
        plain.iter().map(|x| x * 0.0).collect(),
        plain.iter().map(|x| x.max(0.0) * x.signum()).collect(),
        vec![0.1; group],
        vec![-0.3; group],
        plain.iter().map(|x| x * 1e-6).collect(),
        plain.iter().map(|x| x * 3e-8).collect(),
        plain.iter().map(|x| x * 9000.0).collect(),
        plain.iter().map(|x| 10.0 + x * 0.01).collect(),
        plain.iter().map(|x| -500.0 - x * 0.001).collect(),
    ];
    parts.concat()
}

#[test]
fn search_is_never_worse_than_min_max_on_any_group() {
    for bits in Affine::BITS {
        for group in Affine::GROUP_SIZES {
            for dtype in [Float::F16, Float::Bf16] {
                let (affine, cols) = (affine(bits, group, dtype), group as usize);
                let x = kinds(cols);
                let base = run(&x, cols, affine, Method::MinMax).unwrap();
                let found = run(&x, cols, affine, Method::Search).unwrap();
                let groups = x.chunks(cols).zip(base.values.chunks(cols));
                for (i, ((x, base), found)) in groups.zip(found.values.chunks(cols)).enumerate() {
                    let (base, found) = (sum_sq_error(x, base), sum_sq_error(x, found));
                    assert!(found <= base, "{affine:?} group {i}: {found} > {base}");
                }
                assert!(found.stats.improved_groups > 8, "{affine:?}: {:?}", found.stats);
            }
        }
    }
}

#[test]
fn search_lowers_the_error_of_bell_shaped_weights() {
    let x = gaussian(64 * 500, 9);
    for (bits, at_most) in [(2, 0.56), (3, 0.77), (4, 0.84), (6, 0.86), (8, 0.86)] {
        let base = run(&x, 64, f16(bits), Method::MinMax).unwrap().stats;
        let found = run(&x, 64, f16(bits), Method::Search).unwrap().stats;
        let ratio = found.sum_sq_error / base.sum_sq_error;
        assert!(ratio < at_most, "{bits} bits: {ratio}");
    }
}

#[test]
fn ternary_weights_and_those_of_two_values_are_exact_in_two_bits() {
    for (dtype, step) in [(Float::F16, 0.0371_f32), (Float::Bf16, 0.0129)] {
        let step = dtype.round(step);
        let codes = noise(64 * 48, 11);
        let ternary: Vec<f32> = codes.iter().map(|c| (c * 1.499).round() * step).collect();
        let two: Vec<f32> = codes
            .iter()
            .map(|c| if *c < 0.0 { -step } else { 0.0 })
            .collect();
        for x in [ternary, two] {
            let found = run(&x, 64, affine(2, 64, dtype), Method::Search).unwrap();
            assert_eq!(found.values, x);
            assert_eq!(found.stats.sum_sq_error, 0.0);
        }
    }
}

#[test]
fn statistics_are_those_of_the_dequantized_weights() {
    for affine in [f16(2), f16(4), affine(3, 32, Float::Bf16), affine(8, 128, Float::F16)] {
        for method in [Method::MinMax, Method::Search] {
            let cols = 3 * affine.group_size();
            let x = gaussian(7 * cols, 5);
            let Quantized { stats, values, .. } = run(&x, cols, affine, method).unwrap();
            let error = sum_sq_error(&x, &values);
            let worst = x
                .iter()
                .zip(&values)
                .map(|(x, v)| (x - v).abs())
                .fold(0.0, f32::max);
            assert_eq!((stats.weights, stats.groups), (x.len() as u64, 21));
            assert!((stats.sum_sq_error / error - 1.0).abs() < 1e-5, "{affine:?} {method:?}");
            assert_eq!(stats.max_abs_error, worst, "{affine:?} {method:?}");
            assert_eq!(stats.improved_groups > 0, method == Method::Search);
        }
    }
}

#[test]
fn statistics_add_up() {
    let x = gaussian(64 * 40, 5);
    let whole = run(&x, 64, f16(4), Method::Search).unwrap().stats;
    let mut sum = run(&x[..64 * 16], 64, f16(4), Method::Search)
        .unwrap()
        .stats;
    sum.merge(
        &run(&x[64 * 16..], 64, f16(4), Method::Search)
            .unwrap()
            .stats,
    );
    assert_eq!(sum.groups, whole.groups);
    assert_eq!(sum.max_abs_error, whole.max_abs_error);
    assert!((sum.sqnr_db() - whole.sqnr_db()).abs() < 1e-9);
    assert_eq!(QuantStats::default().relative_rmse(), 0.0);
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (cols, affine) = (5 * 32, affine(3, 32, Float::Bf16));
    let x = gaussian(7 * cols, 6);
    let whole = run(&x, cols, affine, Method::Search).unwrap().values;
    for (row, whole) in x.chunks(cols).zip(whole.chunks(cols)) {
        assert_eq!(run(row, cols, affine, Method::Search).unwrap().values, whole);
    }
}

#[test]
fn a_constant_group_is_exact_when_its_value_is_storable() {
    for value in [0.0, 0.25, -3.0, 65504.0] {
        for method in [Method::MinMax, Method::Search] {
            let q = run(&[value; 64], 64, f16(4), method).unwrap();
            assert_eq!(q.values, [value; 64]);
            assert_eq!(q.bytes[..34], [0; 34], "codes and scale of {value}");
            assert_eq!(q.stats.constant_groups, 1);
        }
    }
}

#[test]
fn a_constant_group_uses_its_scale_for_what_the_bias_cannot_hold() {
    for value in [0.1, -0.3, 1.001] {
        let q = run(&[value; 64], 64, affine(4, 64, Float::Bf16), Method::MinMax).unwrap();
        let error = q.stats.max_abs_error;
        assert!(error <= value.abs() * 2f32.powi(-14), "{value}: {error}");
    }
}

#[test]
fn a_group_above_its_rounded_bias_is_not_flattened() {
    // bf16 stores 256 for every value in 255.5..=257.
    let x: Vec<f32> = (0..64).map(|i| 255.6 + i as f32 * 0.001).collect();
    let q = run(&x, 64, affine(4, 64, Float::Bf16), Method::Search).unwrap();
    assert!(q.stats.max_abs_error < 0.06, "{:?}", q.stats);
}

#[test]
fn a_group_of_f16_subnormals_keeps_its_order_of_magnitude() {
    let x: Vec<f32> = noise(64, 1).iter().map(|x| x * 2e-6).collect();
    let q = run(&x, 64, f16(4), Method::MinMax).unwrap();
    // Steps of 2^-24 for scale and bias.
    assert!(q.stats.max_abs_error < 1.6e-7 + 15.0 * 2f32.powi(-25), "{:?}", q.stats);
    assert!(
        run(&x, 64, affine(4, 64, Float::Bf16), Method::Search)
            .unwrap()
            .stats
            .sqnr_db()
            > 20.0
    );
}

#[test]
fn a_group_of_f32_subnormals_stays_finite() {
    let x: Vec<f32> = (0..64).map(|i| f32::from_bits(i * 1000)).collect();
    for method in [Method::MinMax, Method::Search] {
        let q = run(&x, 64, affine(4, 64, Float::Bf16), method).unwrap();
        assert!(q.values.iter().all(|v| (0.0..1e-39).contains(v)), "{:?}", q.values);
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for at in [0, 63, 64 + 17, 20 * 128 + 127] {
            let mut x = noise(21 * 128, 1);
            x[at] = value;
            let error = run(&x, 128, f16(4), Method::Search)
                .unwrap_err()
                .to_string();
            let expected = format!(
                "row {}, column {}: expected a finite weight, found {value}",
                at / 128,
                at % 128
            );
            assert_eq!(error, expected);
        }
    }
}

#[test]
fn a_bias_beyond_f16_is_named_and_fits_bf16() {
    let mut x = noise(64 * 20, 1);
    x[64 * 19 + 5] = -1e5;
    let error = run(&x, 128, f16(4), Method::MinMax).unwrap_err();
    let dtype = Float::F16;
    assert_eq!(error, QuantError::ScaleRange { row: 9, col: 64, value: -1e5, dtype });
    assert!(error.to_string().contains("bf16 holds more"), "{error}");
    run(&x, 128, affine(4, 64, Float::Bf16), Method::Search).unwrap();
}

#[test]
fn a_scale_beyond_f16_is_named() {
    let mut x = noise(64, 1);
    x[5] = 1e6;
    let error = run(&x, 64, f16(2), Method::Search).unwrap_err();
    assert!(
        matches!(error, QuantError::ScaleRange { row: 0, col: 0, value: 3e5.., .. }),
        "{error}"
    );
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let columns = EncodingError::Columns { group_size: 64, cols: 96 };
    assert_eq!(run(&[0.0; 96], 96, f16(4), Method::MinMax).unwrap_err(), columns.into());
    let (mut weight, mut scales, mut biases) = ([0; 32], [0; 2], [0; 4]);
    let out = PartsMut { weight: &mut weight, scales: &mut scales, biases: &mut biases };
    let (encoding, objective) = (Encoding::Affine(f16(4)), Objective::Weights);
    let (backend, method) = (Backend::Scalar, Method::MinMax);
    let zeros = Zeros::Float;
    let job = Job { backend, x: &[0.0; 64], cols: 64, encoding, method, zeros, objective };
    let error = quantize(&job, out);
    assert_eq!(error.unwrap_err().to_string(), "biases: expected 2 bytes, found 4");
    assert!(PartsMut::split(encoding, 2, 64, &mut [0; 71]).is_err());
    run(&[], 64, f16(4), Method::Search).unwrap();
}

proptest! {
    #[test]
    fn the_error_of_min_max_is_bounded(
        x in prop::collection::vec(-1000f32..1000.0, 32),
        exponent in -20i32..4,
        bits in prop::sample::select(Affine::BITS.to_vec()),
        dtype in prop::sample::select(vec![Float::F16, Float::Bf16]),
    ) {
        let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(exponent)).collect();
        let affine = affine(bits, 32, dtype);
        let q = run(&x, 32, affine, Method::MinMax).unwrap();
        let at = q.bytes.len() - 4;
        let mut pair = [0.0; 2];
        crate::widen(dtype, &q.bytes[at..], &mut pair);
        let [scale, bias] = pair;
        // Half a step, plus what the rounded ends leave out.
        let min = x.iter().copied().fold(f32::MAX, f32::min);
        let max = x.iter().copied().fold(f32::MIN, f32::max);
        let top = scale.mul_add(f32::from(affine.max_code()), bias);
        let ends = (bias - min).max(max - top).max(0.0);
        let bound = (scale / 2.0 + ends) * 1.0001 + max.abs().max(min.abs()) * f32::EPSILON;
        for (x, v) in x.iter().zip(&q.values) {
            prop_assert!((x - v).abs() <= bound, "{x} {v}: {bound}");
        }
    }

    #[test]
    fn search_is_never_worse_on_arbitrary_weights(
        x in prop::collection::vec(prop::num::f32::NORMAL, 64),
        bits in prop::sample::select(Affine::BITS.to_vec()),
    ) {
        let affine = affine(bits, 32, Float::Bf16);
        let error = |method| run(&x, 32, affine, method).map(|q| sum_sq_error(&x, &q.values));
        match (error(Method::MinMax), error(Method::Search)) {
            (Ok(base), Ok(found)) => prop_assert!(found <= base, "{found} {base}"),
            (base, found) => prop_assert_eq!(base.unwrap_err(), found.unwrap_err()),
        }
    }
}
