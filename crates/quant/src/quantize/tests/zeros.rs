//! What restricted biases promise.

use super::{affine, gaussian, kinds, run_with, sum_sq_error};
use crate::encoding::{Affine, Encoding, Float, Zeros};
use crate::feedback::HessianFactor;
use crate::feedback::tests::gram;
use crate::quantize::{Job, Method, Objective, PartsMut, quantize};
use crate::{Backend, widen};

/// Scale and bias of every group.
fn pairs(affine: Affine, rows: usize, cols: usize, bytes: &[u8]) -> Vec<[f32; 2]> {
    let encoding = Encoding::Affine(affine);
    let parts = encoding.parts(rows as u64, cols as u64).unwrap();
    let (weight, scales) = (parts.weight as usize, parts.scales as usize);
    let mut all = vec![0.0; scales];
    widen(affine.scale_dtype(), &bytes[weight..], &mut all);
    let (scales, biases) = all.split_at(scales / 2);
    scales.iter().zip(biases).map(|(s, b)| [*s, *b]).collect()
}

/// Asserts that each bias is that of a zero that is allowed, in any order of operations.
fn assert_allowed(affine: Affine, zeros: Zeros, pairs: &[[f32; 2]]) {
    let codes = 0..=affine.max_code();
    for [scale, bias] in pairs {
        let middle = 1_u8 << (affine.bits() - 1);
        let zero = |zero: &u8| {
            (zeros == Zeros::Integer || *zero == middle)
                && f64::from(*bias) == -f64::from(*scale) * f64::from(*zero)
        };
        assert!(codes.clone().any(|z| zero(&z)), "{affine:?} {zeros:?}: {scale} {bias}");
    }
}

#[test]
fn biases_are_codes_times_the_scale_exactly_and_the_search_is_never_worse() {
    for bits in Affine::BITS {
        for group in Affine::GROUP_SIZES {
            for (dtype, zeros) in [
                (Float::F16, Zeros::Integer),
                (Float::Bf16, Zeros::Integer),
                (Float::F16, Zeros::Symmetric),
                (Float::Bf16, Zeros::Symmetric),
            ] {
                let (affine, cols) = (affine(bits, group, dtype), group as usize);
                let x = kinds(cols);
                let [base, found] = [Method::MinMax, Method::Search].map(|method| {
                    let found = run_with(&x, cols, affine, method, zeros).unwrap();
                    let all = pairs(affine, x.len() / cols, cols, &found.bytes);
                    assert_allowed(affine, zeros, &all);
                    found.values
                });
                let groups = x
                    .chunks(cols)
                    .zip(base.chunks(cols))
                    .zip(found.chunks(cols));
                for (i, ((x, base), found)) in groups.enumerate() {
                    let (base, found) = (sum_sq_error(x, base), sum_sq_error(x, found));
                    assert!(found <= base, "{affine:?} {zeros:?} group {i}: {found} > {base}");
                }
            }
        }
    }
}

/// On bell-shaped weights the price is small where there are many codes, and it is never a gain.
#[test]
fn integer_zeros_cost_little() {
    let x = gaussian(64 * 500, 9);
    let error = |bits, dtype, method, zeros| {
        let found = run_with(&x, 64, affine(bits, 64, dtype), method, zeros);
        found.unwrap().stats.sum_sq_error
    };
    for (bits, dtype, integer, symmetric) in
        [(2, Float::F16, 1.3, 1.6), (3, Float::F16, 1.2, 1.4), (4, Float::F16, 1.2, 1.45)]
    {
        let float = error(bits, dtype, Method::Search, Zeros::Float);
        for (zeros, most) in [(Zeros::Integer, integer), (Zeros::Symmetric, symmetric)] {
            let ratio = error(bits, dtype, Method::Search, zeros) / float;
            assert!((0.99..most).contains(&ratio), "{bits} {dtype:?} {zeros:?}: {ratio}");
        }
    }
}

#[test]
fn feedback_keeps_to_integer_zeros_on_every_backend() {
    let cols = 160;
    let (gram, x) = (gram(cols, 200, 3), gaussian(40 * cols, 4));
    for (bits, zeros) in [(2, Zeros::Integer), (4, Zeros::Integer), (3, Zeros::Symmetric)] {
        let affine = affine(bits, 32, Float::F16);
        let encoding = Encoding::Affine(affine);
        let feedback = HessianFactor::new(&gram, cols, 0.01, encoding).unwrap();
        let (method, objective) = (Method::Gptq, Objective::Hessian(&feedback));
        let made = |backend| {
            let total = encoding.parts(40, cols as u64).unwrap().total();
            let mut bytes = vec![0; total as usize];
            let out = PartsMut::split(encoding, 40, cols, &mut bytes).unwrap();
            let job = Job { backend, x: &x, cols, encoding, method, zeros, objective };
            quantize(&job, out).unwrap();
            bytes
        };
        let bytes = made(Backend::Scalar);
        assert_allowed(affine, zeros, &pairs(affine, 40, cols, &bytes));
        for backend in Backend::available() {
            assert_eq!(made(backend), bytes, "{}", backend.name());
        }
    }
}
