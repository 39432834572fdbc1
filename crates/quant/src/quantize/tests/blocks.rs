//! What quantization to blocks promises.

use super::{gaussian, kinds};
use crate::blocks::Blocks;
use crate::encoding::{Affine, Encoding, Float, Zeros};
use crate::error::QuantError;
use crate::feedback::HessianFactor;
use crate::feedback::tests::gram;
use crate::quantize::{Job, Method, Objective, PartsMut, QuantStats, quantize};
use crate::{Backend, Matrix};

const COLS: usize = 512;

/// Bytes, values and statistics.
type Quantized = (Vec<u8>, Vec<f32>, QuantStats);

fn run(
    backend: Backend,
    x: &[f32],
    encoding: Encoding,
    method: Method,
    objective: Objective<'_>,
) -> Result<Quantized, QuantError> {
    let rows = x.len() / COLS;
    let total = encoding.parts(rows as u64, COLS as u64)?.total();
    let (mut bytes, mut values) = (vec![0; total as usize], vec![0.0; x.len()]);
    let out = PartsMut::split(encoding, rows, COLS, &mut bytes)?;
    let (cols, zeros) = (COLS, Zeros::Float);
    let stats = quantize(&Job { backend, x, cols, encoding, method, zeros, objective }, out)?;
    let matrix = Matrix::new(encoding, rows, COLS, &bytes).unwrap();
    matrix.dequantize(backend, 0..rows, &mut values);
    Ok((bytes, values, stats))
}

fn plain(x: &[f32], encoding: Encoding) -> Quantized {
    run(Backend::detect(), x, encoding, Method::Search, Objective::Weights).unwrap()
}

/// Whatever the weights, the statistics are those of what a reader decodes.
#[test]
fn statistics_are_what_a_reader_sees() {
    let mut x = kinds(COLS);
    x.truncate(x.len() / COLS * COLS);
    for blocks in Blocks::ALL {
        let (_, values, stats) = plain(&x, Encoding::Ggml(blocks));
        let errors = || x.iter().zip(&values).map(|(x, v)| x - v);
        assert!(values.iter().all(|v| v.is_finite()), "{blocks:?}");
        assert_eq!(stats.weights, x.len() as u64);
        assert_eq!(stats.max_abs_error, errors().fold(0.0, |most, e| e.abs().max(most)));
        let sum: f64 = errors().map(|e| f64::from(e) * f64::from(e)).sum();
        assert!((stats.sum_sq_error - sum).abs() <= 1e-4 * sum, "{blocks:?}");
    }
}

/// Beside affine codes of as many bits in groups of 32 with scales in half precision, whose grid no
/// whole numbers restrict.
#[test]
fn whole_numbers_for_scales_cost_little() {
    let x = gaussian(64 * COLS, 3);
    for (blocks, bits, at_most) in [
        (Blocks::Q4_0, 4, 1.3),
        (Blocks::Q4_1, 4, 1.001),
        (Blocks::Q8_0, 8, 1.25),
        (Blocks::Q2K, 2, 1.15),
        (Blocks::Q3K, 3, 1.5),
        (Blocks::Q4K, 4, 1.1),
        (Blocks::Q6K, 6, 1.5),
        (Blocks::Iq4Nl, 4, 1.15),
        (Blocks::Iq4Xs, 4, 1.2),
        (Blocks::Iq3S, 3, 1.5),
        (Blocks::Iq3Xxs, 3, 1.5),
        (Blocks::Iq2S, 2, 1.5),
        (Blocks::Iq2Xs, 2, 1.5),
        (Blocks::Iq2Xxs, 2, 1.5),
    ] {
        let affine = Encoding::Affine(Affine::new(bits, 32, Float::F16).unwrap());
        let ratio = plain(&x, Encoding::Ggml(blocks)).2.relative_rmse()
            / plain(&x, affine).2.relative_rmse();
        assert!(ratio < at_most, "{blocks:?}: {ratio}");
    }
}

#[test]
fn feedback_and_importance_lower_what_outputs_lose() {
    let gram = gram(COLS, 3 * COLS, 1);
    let x = gaussian(40 * COLS, 5);
    for blocks in Blocks::ALL {
        let encoding = Encoding::Ggml(blocks);
        let x = if blocks.form().points.is_some() { &x[..16 * COLS] } else { &x };
        let feedback = HessianFactor::new(&gram, COLS, 0.01, encoding).unwrap();
        let lost = |method| {
            let guide = Objective::Hessian(&feedback);
            run(Backend::detect(), x, encoding, method, guide)
                .unwrap()
                .2
                .output_error
        };
        let (search, importance) = (lost(Method::Search), lost(Method::Importance));
        assert!(importance < search, "{blocks:?}");
        let ratio = lost(Method::Gptq) / search;
        assert!(ratio < 0.5, "{blocks:?}: {ratio}");
    }
}

#[test]
fn every_backend_and_every_part_agrees() {
    let (gram, all) = (gram(COLS, 700, 3), gaussian(37 * COLS, 4));
    let moments: Vec<f32> = gram.iter().step_by(COLS + 1).copied().collect();
    for blocks in Blocks::ALL {
        let encoding = Encoding::Ggml(blocks);
        // Points are searched among hundreds, which takes its time without optimization.
        let x = if blocks.form().points.is_some() { &all[..6 * COLS] } else { &all };
        let feedback = HessianFactor::new(&gram, COLS, 0.01, encoding).unwrap();
        for (method, guide) in [
            (Method::MinMax, Objective::Weights),
            (Method::Importance, Objective::Diagonal(&moments)),
            (Method::Gptq, Objective::Hessian(&feedback)),
        ] {
            let run_on = |backend, x| run(backend, x, encoding, method, guide).unwrap();
            let expected = run_on(Backend::Scalar, x);
            for backend in Backend::available() {
                assert_eq!(run_on(backend, x), expected, "{blocks:?} {}", backend.name());
            }
            let parts = [&x[..5 * COLS], &x[5 * COLS..]];
            let parts = parts.map(|x| run_on(Backend::detect(), x).0);
            assert!(parts.concat() == expected.0, "{blocks:?} {method:?}");
        }
    }
}

#[test]
fn what_blocks_cannot_hold_is_refused() {
    let mut x = gaussian(3 * COLS, 6);
    let refused = |x: &[f32], blocks| {
        let (backend, objective) = (Backend::detect(), Objective::Weights);
        run(backend, x, Encoding::Ggml(blocks), Method::Search, objective)
            .unwrap_err()
            .to_string()
    };
    x[COLS + 3] = 3e9;
    for blocks in Blocks::ALL {
        assert!(refused(&x, blocks).starts_with("row 1, column 0: "), "{}", refused(&x, blocks));
    }
    x[COLS + 3] = f32::NAN;
    let nan = refused(&x, Blocks::Q4K);
    assert_eq!(nan, "row 1, column 3: expected a finite weight, found NaN");
    let columns = Encoding::Ggml(Blocks::Q6K)
        .parts(2, 576)
        .unwrap_err()
        .to_string();
    assert_eq!(columns, "group_size 256 does not divide 576 columns");
}
