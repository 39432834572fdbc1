//! The factor against a direct one in f64, and Grams that have none.

use ndarray::{Array2, Axis, aview1, s};

use super::{HessianFactor, Product, Rows};
use crate::Backend;
use crate::encoding::{Affine, Encoding, Float, Trellis};
use crate::error::QuantError;
use crate::kernel::tests::noise;
use crate::trellis::rotate::rotate;

pub fn q2() -> Encoding {
    Encoding::Affine(Affine::new(2, 32, Float::F16).unwrap())
}

fn t2() -> Encoding {
    Encoding::Trellis(Trellis::new(2, 10).unwrap())
}

/// `[rows][cols]` in f64.
fn matrix(values: &[f32], cols: usize) -> Array2<f64> {
    let shape = (values.len() / cols, cols);
    Array2::from_shape_fn(shape, |(row, col)| values[row * cols + col].into())
}

/// The Gram of `count` inputs whose neighbours are alike, some of them much larger than the others.
pub fn gram(cols: usize, count: usize, seed: u32) -> Vec<f32> {
    let raw = matrix(&noise(count * (cols + 8), seed), cols + 8);
    let mut x = Array2::<f64>::zeros((count, cols));
    for (j, mut column) in x.columns_mut().into_iter().enumerate() {
        let size = if j.is_multiple_of(29) { 6.0 } else { 1.0 };
        column.assign(&(raw.slice(s![.., j..j + 8]).sum_axis(Axis(1)) * size));
    }
    let mean = x.t().dot(&x) / count as f64;
    mean.iter().map(|v| *v as f32).collect()
}

/// `F` and `D` of `h + added`, by columns from the last to the first in f64.
fn reference(h: &[f32], cols: usize, added: &[f32]) -> (Array2<f64>, Vec<f64>) {
    let mut h = matrix(h, cols);
    h.diag_mut()
        .zip_mut_with(&aview1(added), |h, added| *h += f64::from(*added));
    let mut costs = vec![0.0; cols];
    for k in (0..cols).rev() {
        costs[k] = h[[k, k]];
        let factors = h.slice(s![..k, k..=k]).to_owned() / costs[k];
        let explained = factors.dot(&factors.t()) * costs[k];
        h.slice_mut(s![..k, ..k])
            .zip_mut_with(&explained, |h, e| *h -= e);
        h.slice_mut(s![..k, k..=k]).assign(&factors);
    }
    (h, costs)
}

/// The Gram of rotated inputs: both its rows and its columns rotated.
fn rotated(gram: &[f32], cols: usize) -> Vec<f32> {
    let mut h = gram.to_vec();
    for _ in 0..2 {
        h.chunks_exact_mut(cols)
            .for_each(|row| rotate(row, Trellis::rotation(cols)));
        h = aview1(&h)
            .to_shape((cols, cols))
            .unwrap()
            .t()
            .iter()
            .copied()
            .collect();
    }
    h
}

#[test]
fn the_factor_is_that_of_a_direct_computation() {
    for (cols, encoding) in [(32, q2()), (288, q2()), (416, q2()), (16, t2()), (304, t2())] {
        let gram = gram(cols, 2 * cols, 1);
        let feedback = HessianFactor::new(&gram, cols, 0.01, encoding).unwrap();
        let h = if encoding == q2() { gram } else { rotated(&gram, cols) };
        let (factor, costs) = reference(&h, cols, &feedback.added);
        for k in 0..cols {
            let ratio = f64::from(feedback.costs[k]) / costs[k];
            assert!((ratio - 1.0).abs() < 1e-4, "cost {k} of {cols}: {ratio}");
            for (j, found) in feedback.row(k).iter().enumerate() {
                let expected = factor[[j, k]];
                assert!((f64::from(*found) - expected).abs() < 2e-4, "{j} {k}: {found} {expected}");
            }
        }
    }
}

#[test]
fn every_backend_factors_alike() {
    for (cols, encoding) in [(160, q2()), (288, t2())] {
        let gram = gram(cols, cols, 2);
        // In memory that was used before.
        let buffer = || vec![f32::NAN; cols * cols / 2];
        let factor = |backend| {
            HessianFactor::new_on(backend, buffer(), &gram, cols, 0.01, encoding).unwrap()
        };
        let expected = factor(Backend::Scalar);
        let x = noise(37 * cols, 3);
        for backend in Backend::available() {
            let found = factor(backend);
            assert_eq!(found.costs, expected.costs, "{}", backend.name());
            for k in 0..cols {
                assert_eq!(found.row(k), expected.row(k), "{} row {k}", backend.name());
            }
            let product = |backend: Backend| {
                let (mut rows, mut y) = (Rows::default(), Rows::default());
                rows.set(&x, cols);
                backend.run(Product { feedback: &expected, x: &rows, y: &mut y });
                y
            };
            assert_eq!(product(backend), product(Backend::Scalar), "{}", backend.name());
        }
    }
}

#[test]
fn the_energy_is_that_of_the_gram_without_damping() {
    let cols = 160;
    let (gram, x) = (gram(cols, 3 * cols, 4), noise(21 * cols, 5));
    let feedback = HessianFactor::new(&gram, cols, 0.1, q2()).unwrap();
    let (mut rows, mut y) = (Rows::default(), Rows::default());
    rows.set(&x, cols);
    Backend::detect().run(Product { feedback: &feedback, x: &rows, y: &mut y });
    let x = matrix(&x, cols);
    let exact = (x.dot(&matrix(&gram, cols)) * &x).sum();
    let ratio = feedback.energy(&rows, &y) / exact;
    assert!((ratio - 1.0).abs() < 1e-4, "{ratio}");
}

#[test]
fn an_input_that_was_always_zero_neither_gives_nor_takes() {
    let cols = 64;
    let mut gram = gram(cols, 200, 6);
    for i in 0..cols {
        // Rounding may leave something beside a diagonal of 0.
        (gram[5 * cols + i], gram[i * cols + 5]) = (1e-9, 1e-9);
    }
    gram[5 * cols + 5] = 0.0;
    for damping in [0.0, 0.01] {
        let feedback = HessianFactor::new(&gram, cols, damping, q2()).unwrap();
        assert!(feedback.row(5).iter().all(|v| *v == 0.0));
        assert!((6..cols).all(|k| feedback.row(k)[5] == 0.0));
        assert!(feedback.costs[5] > 0.0);
    }
    let nothing = HessianFactor::new(&vec![0.0; cols * cols], cols, 0.01, q2()).unwrap();
    assert_eq!(nothing.costs, [1.0; 64]);
}

#[test]
fn a_singular_gram_is_damped() {
    let cols = 128;
    let gram = gram(cols, 10, 7);
    for damping in [0.0, 1e-9, 0.01] {
        let feedback = HessianFactor::new(&gram, cols, damping, q2()).unwrap();
        assert!(feedback.costs.iter().all(|v| v.is_finite() && *v > 0.0));
        assert!(feedback.added[0] > 0.0);
    }
}

#[test]
fn what_is_no_gram_is_refused() {
    let cols = 32;
    let good = gram(cols, 100, 8);
    let new = |gram: &[f32], damping| HessianFactor::new(gram, cols, damping, q2()).map(|_| ());
    let with = |at: usize, value| {
        let mut gram = good.clone();
        gram[at] = value;
        new(&gram, 0.01).unwrap_err().to_string()
    };
    let expected = "moment of inputs 1 and 3: expected a finite number, not negative on the \
                    diagonal, found NaN";
    assert_eq!(with(cols + 3, f32::NAN), expected);
    assert!(with(2 * cols + 2, -1.0).contains("inputs 2 and 2"));
    assert_eq!(new(&good, -0.1), Err(QuantError::Damping(-0.1)));
    assert!(matches!(new(&good[1..], 0.1), Err(QuantError::Length { part: "gram", .. })));
    // Correlations above 1: no damping of at most 100 times the mean makes up for a million.
    let mut wild = good.clone();
    for i in 0..cols {
        for j in 0..i {
            (wild[i * cols + j], wild[j * cols + i]) = (1e6, 1e6);
        }
    }
    assert!(matches!(new(&wild, 0.01), Err(QuantError::NotPositive { cols: 32, .. })));
    assert!(HessianFactor::new(&good, cols, 0.01, Encoding::F16).is_err());
    assert!(HessianFactor::new(&good[..24 * 24], 24, 0.01, q2()).is_err());
}
