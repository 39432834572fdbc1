//! Every backend against the scalar one: results are equal, not close.

use std::ops::Range;

use crate::blocks::Blocks;
use crate::encoding::{Affine, Encoding, Float, Zeros};
use crate::float::{Narrow, Widen};
use crate::quantize::tests::kinds;
use crate::quantize::{Job, Method, Objective, PartsMut, QuantStats, quantize};
use crate::{
    Activations, Backend, Element, Matrix, Minifloat, Outputs, ScaleType, axpy, dot, matmul,
};

/// Lengths around the lanes, the registers and the groups.
const LENGTHS: [usize; 17] = [0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129];

/// A repeatable sequence in -1..1 whose period, a prime, hides no swap of lanes.
pub fn noise(len: usize, seed: u32) -> Vec<f32> {
    let value = |i: usize| {
        let mixed = (i as u32 % 99_991)
            .wrapping_add(seed)
            .wrapping_mul(0x9e37_79b9);
        let mixed = (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b);
        (mixed ^ mixed >> 13) as f32 / 2f32.powi(31) - 1.0
    };
    (0..len).map(value).collect()
}

/// Runs `f` on every backend and expects what the scalar one returns.
pub fn agree<T: PartialEq + std::fmt::Debug>(what: &str, f: impl Fn(Backend) -> T) {
    let expected = f(Backend::Scalar);
    for backend in Backend::available() {
        assert_eq!(f(backend), expected, "{what} on {}", backend.name());
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Every 16-bit pattern, and `f32` patterns spread over all exponents with ties.
fn hard_floats() -> Vec<f32> {
    let edges =
        [65504.0, 65519.0, 65519.996, 65520.0, 65536.0, 3.39e38, f32::MAX, 1e-45, 6e-8, 3e-8];
    let spread =
        (0..1u32 << 16).flat_map(|hi| [0u32, 1, 0x7fff, 0x8000, 0x8001].map(|lo| hi << 16 | lo));
    let ties = (0..1u32 << 16).map(|hi| hi << 16 | 0x1000);
    let patterns = spread.chain(ties).map(f32::from_bits);
    edges
        .iter()
        .flat_map(|&e| [e, -e])
        .chain(patterns)
        .collect()
}

#[test]
fn widen_agrees_on_every_pattern() {
    for dtype in [Float::F32, Float::F16, Float::Bf16] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let count = bytes.len() / dtype.size();
        for len in LENGTHS.into_iter().chain([count]) {
            agree(dtype.name(), |backend| {
                let mut out = vec![0.0; len];
                backend.run(Widen { dtype, bytes: &bytes[..len * dtype.size()], out: &mut out });
                bits(&out)
            });
        }
    }
}

#[test]
fn narrow_agrees_and_rounds_as_half_does() {
    let x = hard_floats();
    for dtype in [Float::F32, Float::F16, Float::Bf16] {
        let narrow = |backend: Backend| {
            let mut out = vec![0; x.len() * dtype.size()];
            backend.run(Narrow { dtype, x: &x, out: &mut out });
            out
        };
        agree(dtype.name(), narrow);
        let expected: Vec<u8> = match dtype {
            Float::F32 => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Float::F16 => x
                .iter()
                .flat_map(|&x| half::f16::from_f32(x).to_le_bytes())
                .collect(),
            Float::Bf16 => x
                .iter()
                .flat_map(|&x| half::bf16::from_f32(x).to_le_bytes())
                .collect(),
        };
        assert!(narrow(Backend::Scalar) == expected, "{}", dtype.name());
    }
}

#[test]
fn dot_and_axpy_agree_on_every_length() {
    for len in LENGTHS.into_iter().chain([1000]) {
        let (a, b) = (noise(len, 1), noise(len, 2));
        agree("dot", |backend| dot(backend, &a, &b).to_bits());
        agree("axpy", |backend| {
            let mut y = b.clone();
            axpy(backend, 0.7, &a, &mut y);
            bits(&y)
        });
    }
}

/// A matrix of `encoding` made of noise, as bytes.
fn stored(encoding: Encoding, rows: usize, cols: usize) -> Vec<u8> {
    let x = noise(rows * cols, 3);
    let mut bytes = vec![0; encoding.parts(rows as u64, cols as u64).unwrap().total() as usize];
    match encoding {
        // Those of 16 bits, widened.
        Encoding::Affine(a) if a.scale_dtype() == Float::F32 => {
            let short = Affine::new(a.bits(), a.group_size() as u16, Float::F16).unwrap();
            let short = stored(Encoding::Affine(short), rows, cols);
            let weight = encoding.parts(rows as u64, cols as u64).unwrap().weight as usize;
            let mut scales = vec![0.0; (short.len() - weight) / 2];
            crate::widen(Float::F16, &short[weight..], &mut scales);
            bytes[..weight].copy_from_slice(&short[..weight]);
            crate::narrow(Float::F32, &scales, &mut bytes[weight..]);
        }
        Encoding::Affine(_) | Encoding::Ggml(_) => {
            let out = PartsMut::split(encoding, rows, cols, &mut bytes).unwrap();
            let (method, objective) = (Method::MinMax, Objective::Weights);
            let backend = Backend::Scalar;
            let zeros = Zeros::Float;
            quantize(&Job { backend, x: &x, cols, encoding, method, zeros, objective }, out)
                .unwrap();
        }
        // Any bytes are streams, any floats scales.
        Encoding::Trellis(_) => {
            let weight = encoding.parts(rows as u64, cols as u64).unwrap().weight as usize;
            let (streams, scales) = bytes.split_at_mut(weight);
            let noise = noise(streams.len(), 5);
            streams
                .iter_mut()
                .zip(noise)
                .for_each(|(byte, x)| *byte = (x * 128.0) as i8 as u8);
            crate::narrow(Float::Bf16, &x[..rows], scales);
        }
        // Any bytes that are numbers, any floats scales.
        Encoding::Minifloat(minifloat) => {
            let weight = encoding.parts(rows as u64, cols as u64).unwrap().weight as usize;
            let (codes, scales) = bytes.split_at_mut(weight);
            let whole = noise(codes.len(), 5).into_iter();
            let whole = whole.map(|x| ((x * 128.0) as i8 as u8) & 0xbf);
            codes.iter_mut().zip(whole).for_each(|(byte, x)| *byte = x);
            match minifloat.scale_dtype().float() {
                Some(dtype) => crate::narrow(dtype, &x[..scales.len() / dtype.size()], scales),
                // Any bytes are powers; those about 1 have finite products.
                None => (112..144)
                    .cycle()
                    .zip(scales)
                    .for_each(|(power, scale)| *scale = power),
            }
        }
        Encoding::F32 => crate::narrow(Float::F32, &x, &mut bytes),
        Encoding::F16 => crate::narrow(Float::F16, &x, &mut bytes),
        Encoding::Bf16 => crate::narrow(Float::Bf16, &x, &mut bytes),
    }
    bytes
}

fn affines() -> impl Iterator<Item = Affine> {
    Affine::BITS.into_iter().flat_map(|bits| {
        Affine::GROUP_SIZES.into_iter().flat_map(move |group| {
            [Float::F32, Float::F16, Float::Bf16]
                .map(|dtype| Affine::new(bits, group, dtype).unwrap())
        })
    })
}

/// Products of `n` rows of activations with `rows`.
pub fn products(backend: Backend, m: &Matrix<'_>, x: &[f32], rows: Range<usize>) -> Vec<f32> {
    let n = x.len() / m.cols();
    let (mut activations, mut out) = (Activations::new(), vec![0.0; n * rows.len()]);
    activations.set(backend, x, m.cols());
    matmul(m, &activations, rows, Outputs::new(&mut out, n));
    out
}

/// Products with one row and with many are the dot products of the matrix's rows, as they are decoded,
/// whatever rows of either go together.
fn check_matrix(encoding: Encoding, rows: usize, cols: usize) {
    let bytes = stored(encoding, rows, cols);
    let m = Matrix::new(encoding, rows, cols, &bytes).unwrap();
    let what = format!("{} of {rows} x {cols}", encoding.label());
    agree(&what, |backend| {
        let mut values = vec![0.0; rows * cols];
        m.dequantize(backend, 0..rows, &mut values);
        for n in [1, 2, 3, 9, 29] {
            let x = noise(n * cols, 4);
            let part = rows / 3..rows;
            let expected: Vec<f32> = x
                .chunks(cols)
                .flat_map(|x| {
                    values
                        .chunks(cols)
                        .skip(part.start)
                        .map(|w| dot(backend, w, x))
                })
                .collect();
            let found = products(backend, &m, &x, part);
            assert_eq!(bits(&found), bits(&expected), "{what}, {n} rows on {}", backend.name());
        }
        bits(&values)
    });
}

#[test]
fn products_of_plain_floats_agree_on_every_width() {
    for encoding in [Encoding::F32, Encoding::F16, Encoding::Bf16] {
        for cols in LENGTHS.into_iter().filter(|cols| *cols > 0) {
            check_matrix(encoding, 22, cols);
        }
        // More than a register tile either way, and the last of both in part.
        for rows in [110, 127, 150, 190] {
            check_matrix(encoding, rows, 200);
        }
    }
}

#[test]
fn products_of_codes_agree_on_every_encoding() {
    for affine in affines() {
        for groups in [1, 2, 3, 15, 16, 17, 33] {
            check_matrix(Encoding::Affine(affine), 9, groups * affine.group_size());
        }
    }
}

#[test]
fn products_of_blocks_agree_on_every_type() {
    for blocks in Blocks::ALL {
        for count in [1, 2, 5] {
            check_matrix(Encoding::Ggml(blocks), 9, count * blocks.form().values);
        }
    }
}

#[test]
fn products_of_small_floats_agree_on_every_encoding() {
    for element in [Element::E2m1, Element::E4m3, Element::E5m2] {
        for group in Minifloat::GROUP_SIZES {
            for dtype in [ScaleType::F32, ScaleType::Bf16, ScaleType::E8m0] {
                let minifloat = Minifloat::new(element, group, dtype).unwrap();
                for groups in [2, 4, 16, 34] {
                    check_matrix(Encoding::Minifloat(minifloat), 9, groups * usize::from(group));
                }
            }
        }
    }
}

#[test]
fn a_product_is_near_the_sum_in_f64() {
    for affine in affines() {
        let (rows, cols) = (5, 3 * 128);
        let bytes = stored(Encoding::Affine(affine), rows, cols);
        let m = Matrix::new(Encoding::Affine(affine), rows, cols, &bytes).unwrap();
        let (input, mut values) = (noise(cols, 4), vec![0.0; rows * cols]);
        m.dequantize(Backend::Scalar, 0..rows, &mut values);
        let out = products(Backend::Scalar, &m, &input, 0..rows);
        for (row, out) in values.chunks_exact(cols).zip(out) {
            let exact: f64 = row
                .iter()
                .zip(&input)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            assert!((f64::from(out) - exact).abs() < 1e-4, "{affine:?}: {out} {exact}");
        }
    }
}

/// Codes, scales, biases and statistics of `x`.
fn quantized(
    backend: Backend,
    x: &[f32],
    affine: Affine,
    (method, zeros): (Method, Zeros),
) -> (Vec<u8>, QuantStats) {
    let encoding = Encoding::Affine(affine);
    let cols = affine.group_size();
    let rows = x.len() / cols;
    let mut bytes = vec![0; encoding.parts(rows as u64, cols as u64).unwrap().total() as usize];
    let out = PartsMut::split(encoding, rows, cols, &mut bytes).unwrap();
    let objective = Objective::Weights;
    let job = Job { backend, x, cols, encoding, method, zeros, objective };
    let stats = quantize(&job, out).unwrap();
    (bytes, stats)
}

#[test]
fn quantization_agrees_on_every_encoding() {
    for affine in affines().filter(|affine| affine.scale_dtype() != Float::F32) {
        for how in [
            (Method::MinMax, Zeros::Float),
            (Method::Search, Zeros::Float),
            (Method::MinMax, Zeros::Integer),
            (Method::Search, Zeros::Integer),
            (Method::Search, Zeros::Symmetric),
        ] {
            let x = kinds(affine.group_size());
            for groups in [1, 15, 16, 17, x.len() / affine.group_size()] {
                let x = &x[x.len() - groups * affine.group_size()..];
                agree("quantize", |backend| quantized(backend, x, affine, how));
            }
        }
    }
}
