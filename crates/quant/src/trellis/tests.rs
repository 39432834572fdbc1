//! The trellis against its definition, written plainly, and its encoder against every stream there is.

use std::ops::Range;

use half::bf16;
use proptest::prelude::*;

use super::rotate::{rotate, rotate_back, signs};
use super::stream::{decode, stream_len, value};
use super::viterbi::{Column, Encoder};
use crate::kernel::tests::{agree, noise, products};
use crate::kernel::{Kernel, Simd};
use crate::{Activations, Backend, Encoding, Matrix, Trellis};

fn trellises() -> impl Iterator<Item = Trellis> {
    let with = |bits| Trellis::STATE_BITS.map(|state_bits| Trellis::new(bits, state_bits).unwrap());
    Trellis::BITS.into_iter().flat_map(with)
}

/// Numbers of a normal distribution: a pair of uniform ones each, by Box and Muller.
fn normal(len: usize, seed: u32) -> Vec<f32> {
    let (a, b) = (noise(len, seed), noise(len, seed + 1_000_003));
    let one = |(a, b): (&f32, &f32)| {
        let radius = (-2.0 * f64::from(f32::midpoint(*a, 1.0)).max(1e-12).ln()).sqrt();
        (radius * (f64::from(*b) * std::f64::consts::PI).cos()) as f32
    };
    a.iter().zip(&b).map(one).collect()
}

fn decoded(trellis: Trellis, stream: &[u8], rows: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows];
    decode(trellis, stream, 0, &mut values);
    values
}

/// One column on a backend.
struct Encode<'a> {
    encoder: &'a mut Encoder,
    targets: &'a [f32],
    weights: &'a [f32],
    stream: &'a mut [u8],
    values: &'a mut [f32],
}

impl Kernel for Encode<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.encoder.encode(
            s,
            Column { targets: self.targets, weights: self.weights },
            self.stream,
            self.values,
        );
    }
}

/// The stream of a column, its values and its cost.
fn encoded(
    backend: Backend,
    encoder: &mut Encoder,
    trellis: Trellis,
    targets: &[f32],
    weights: &[f32],
) -> (Vec<u8>, Vec<f32>, f64) {
    let mut stream = vec![0; stream_len(trellis, targets.len())];
    let mut values = vec![0.0; targets.len()];
    let (out, into) = (&mut stream, &mut values);
    backend.run(Encode { encoder, targets, weights, stream: out, values: into });
    let cost = cost(targets, weights, &values);
    (stream, values, cost)
}

fn cost(targets: &[f32], weights: &[f32], values: &[f32]) -> f64 {
    let error = |((t, w), v): ((&f32, &f32), &f32)| f64::from(*w) * f64::from(t - v).powi(2);
    targets.iter().zip(weights).zip(values).map(error).sum()
}

#[test]
fn bytes_mean_these_values() {
    // Whoever changes them changes the format.
    let stream: Vec<u8> = (0..8).map(|i| (37 * i + 11) as u8).collect();
    let whole = |bits: u8, state_bits, len: usize| {
        let trellis = Trellis::new(bits, state_bits).unwrap();
        decoded(trellis, &stream[..len], 8 * len / bits as usize)
            .iter()
            .map(|v| (v * 128.0) as i32)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        whole(2, 10, 4),
        [78, -148, -10, 317, -73, -106, 268, -189, 31, -119, 138, -131, -120, -42, 91, 110]
    );
    assert_eq!(
        whole(3, 12, 6),
        [78, 32, -38, -157, -87, 61, 93, 49, 91, -243, 129, -35, 33, 72, -47, -76]
    );
    assert_eq!(
        whole(4, 14, 8),
        [160, -153, -60, -118, -87, 375, -52, -92, -17, 146, -298, -74, -263, -204, -226, -29]
    );
    assert_eq!(whole(4, 16, 4), [160, -215, -122, 14, -148, -4, 191, 91]);
}

#[test]
fn values_are_close_to_a_normal_distribution() {
    for state_bits in Trellis::STATE_BITS {
        let all: Vec<f64> = (0..1 << state_bits).map(|s| f64::from(value(s))).collect();
        let moment = |n| all.iter().map(|v| v.powi(n)).sum::<f64>() / all.len() as f64;
        assert!(moment(1).abs() < 0.02, "mean {}", moment(1));
        assert!((moment(2).sqrt() - 1.155).abs() < 0.02, "deviation {}", moment(2).sqrt());
        assert!((moment(4) / moment(2).powi(2) - 2.7).abs() < 0.1, "tails {}", moment(4));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_stream_holds_the_values_that_the_encoder_reports(
        trellis in prop::sample::select(trellises().filter(|t| t.state_bits() < 16).collect::<Vec<_>>()),
        steps in prop::sample::select(vec![1usize, 2, 3, 31, 32]),
        seed in 0u32..1000,
    ) {
        let rows = 8 * steps;
        let targets = normal(rows, seed);
        let weights: Vec<f32> = noise(rows, seed + 7).iter().map(|w| (w * 3.0).max(0.0)).collect();
        let mut encoder = Encoder::new(trellis);
        let mut outcome = None;
        for backend in Backend::available() {
            // The second time the buffers are used ones.
            for _ in 0..2 {
                let found = encoded(backend, &mut encoder, trellis, &targets, &weights);
                prop_assert_eq!(&found.1, &decoded(trellis, &found.0, rows));
                prop_assert_eq!(outcome.get_or_insert_with(|| found.clone()), &found);
            }
        }
    }
}

#[test]
fn states_as_long_as_the_stream_agree_too() {
    for bits in Trellis::BITS {
        let trellis = Trellis::new(bits, 16).unwrap();
        for rows in [8, 24] {
            let (targets, weights) = (normal(rows, 3), vec![1.0; rows]);
            agree("encode", |backend| {
                let mut encoder = Encoder::new(trellis);
                let found = encoded(backend, &mut encoder, trellis, &targets, &weights);
                assert_eq!(found.1, decoded(trellis, &found.0, rows));
                found
            });
        }
    }
}

#[test]
fn the_shortest_column_comes_near_the_best_of_all_streams() {
    let (mut found, mut least) = (0.0, 0.0);
    for (bits, state_bits) in [(2, 10), (2, 12), (2, 14), (2, 16)] {
        let trellis = Trellis::new(bits, state_bits).unwrap();
        let mut encoder = Encoder::new(trellis);
        for seed in 0..8 {
            let targets = normal(8, 50 * seed);
            let weights: Vec<f32> = noise(8, seed).iter().map(|w| w + 1.1).collect();
            let (.., cost) = encoded(Backend::detect(), &mut encoder, trellis, &targets, &weights);
            let best = best_of_all(trellis, &targets, &weights);
            assert!(cost >= best * 0.9999, "{trellis:?} {seed}: {cost} is below the least, {best}");
            (found, least) = (found + cost, least + best);
        }
    }
    // The seam is all of such a short column: longer ones come far closer.
    assert!(found < 5.0 * least, "{found} for {least}");
}

/// The least cost of all streams of 8 rows of 2 bits.
fn best_of_all(trellis: Trellis, targets: &[f32], weights: &[f32]) -> f64 {
    (0..=u16::MAX)
        .map(|stream| cost(targets, weights, &decoded(trellis, &stream.to_le_bytes(), 8)))
        .fold(f64::INFINITY, f64::min)
}

#[test]
fn no_path_through_the_same_seam_costs_less() {
    // Columns so long that the seam stays where it was found.
    for (bits, state_bits) in [(2, 10), (3, 12), (4, 12)] {
        let (trellis, rows) = (Trellis::new(bits, state_bits).unwrap(), 128);
        let targets = normal(rows, 11);
        let weights: Vec<f32> = noise(rows, 5).iter().map(|w| w.abs()).collect();
        let mut encoder = Encoder::new(trellis);
        let found = encoded(Backend::detect(), &mut encoder, trellis, &targets, &weights);
        let seam = u16::from_le_bytes([found.0[0], found.0[1]]) % (1 << (state_bits - bits));
        let least = least_through(trellis, seam.into(), &targets, &weights);
        assert!((found.2 - least).abs() < 1e-5 * least, "{trellis:?}: {} for {least}", found.2);
    }
}

/// The least cost of all streams whose first `state_bits - bits` bits are `seam`, state by state.
fn least_through(trellis: Trellis, seam: usize, targets: &[f32], weights: &[f32]) -> f64 {
    let states = 1 << trellis.state_bits();
    let groups = states >> trellis.bits();
    // What the rows so far cost, for each group of bits that the last of them leaves to the next.
    let mut costs = vec![f64::INFINITY; groups];
    costs[seam] = 0.0;
    for (target, weight) in targets.iter().zip(weights) {
        let mut next = vec![f64::INFINITY; groups];
        for state in 0..states {
            let error = f64::from(target - value(state as u32));
            let cost = costs[state % groups] + f64::from(*weight) * error * error;
            let group = &mut next[state >> trellis.bits()];
            *group = group.min(cost);
        }
        costs = next;
    }
    costs[seam]
}

#[test]
fn the_distortion_of_a_normal_source_is_what_is_known_of_such_trellises() {
    // Of a whole tile; no code of 2 bits is below 1/16, none of 3 below 1/64, none of 4 below 1/256.
    let known = [(2, 10, 0.0771), (2, 12, 0.0730), (3, 12, 0.0195), (4, 12, 0.0055)];
    for (bits, state_bits, known) in known {
        let trellis = Trellis::new(bits, state_bits).unwrap();
        let mut encoder = Encoder::new(trellis);
        let (rows, deviation) = (256, 1.155);
        let targets: Vec<f32> = normal(48 * rows, 9).iter().map(|x| x * deviation).collect();
        let total: f64 = targets
            .chunks_exact(rows)
            .map(|t| encoded(Backend::detect(), &mut encoder, trellis, t, &[1.0; 256]).2)
            .sum();
        let mse = total / f64::from(deviation).powi(2) / targets.len() as f64;
        assert!(mse < known * 1.03 && mse > 0.25f64.powi(bits.into()), "{trellis:?}: {mse}");
    }
}

#[test]
fn a_row_without_weight_costs_nothing() {
    let trellis = Trellis::new(2, 10).unwrap();
    let mut encoder = Encoder::new(trellis);
    let (targets, mut weights) = (normal(16, 1), vec![1.0; 16]);
    let (.., all) = encoded(Backend::detect(), &mut encoder, trellis, &targets, &weights);
    weights[9..].fill(0.0);
    let (.., some) = encoded(Backend::detect(), &mut encoder, trellis, &targets, &weights);
    assert!(some < 0.6 * all, "{some} of {all}");
}

/// A matrix of random streams and scales, as bytes.
fn stored(trellis: Trellis, rows: usize, cols: usize) -> Vec<u8> {
    let weight = Encoding::Trellis(trellis)
        .parts(rows as u64, cols as u64)
        .unwrap()
        .weight;
    let mut bytes: Vec<u8> = noise(weight as usize, 5)
        .iter()
        .map(|x| (x * 128.0) as i8 as u8)
        .collect();
    bytes.extend(
        noise(rows, 6)
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes()),
    );
    bytes
}

/// The definition: whole-numbered values `[rows, cols]` in the rotated basis, and the rows' scales.
fn plain(m: &Matrix<'_>, trellis: Trellis) -> (Vec<f32>, Vec<f32>) {
    let (rows, cols) = (m.rows(), m.cols());
    let mut values = vec![0.0; rows * cols];
    let mut tiles = m.weight();
    for start in (0..rows).step_by(256) {
        let height = 256.min(rows - start);
        let len = stream_len(trellis, height);
        let (tile, rest) = tiles.split_at(len * cols);
        tiles = rest;
        for (col, stream) in tile.chunks_exact(len).enumerate() {
            for (row, value) in decoded(trellis, stream, height).iter().enumerate() {
                values[(start + row) * cols + col] = value * 128.0;
            }
        }
    }
    let scale = |b: &[u8; 2]| bf16::from_le_bytes(*b).to_f32() / 128.0;
    (values, m.scales().as_chunks().0.iter().map(scale).collect())
}

/// Shapes around tiles, steps, lanes and blocks of the rotation.
const SHAPES: [(usize, usize); 9] =
    [(1, 16), (7, 32), (8, 48), (9, 64), (17, 128), (255, 16), (256, 80), (300, 256), (520, 768)];

#[test]
fn products_follow_the_definition() {
    for (trellis, (rows, cols)) in trellises().flat_map(|t| SHAPES.map(|shape| (t, shape))) {
        let bytes = stored(trellis, rows, cols);
        let m = Matrix::new(Encoding::Trellis(trellis), rows, cols, &bytes).unwrap();
        let (values, scales) = plain(&m, trellis);
        let n = 8;
        let (input, mut x) = (noise(n * cols, 4), Activations::new());
        x.set(Backend::Scalar, &input, cols);
        let block = Trellis::rotation(cols);
        let product = |t: usize, row: usize| {
            let (x, scale) = (x.rotated().row(t, cols), scales[row]);
            let blocks = values[row * cols..][..cols].chunks_exact(block);
            let blocks = blocks.zip(x.chunks_exact(block));
            let sum = |(v, x): (&[f32], &[f32])| {
                v.iter()
                    .zip(x)
                    .fold(0.0, |sum, (v, x): (&f32, &f32)| v.mul_add(*x, sum))
            };
            blocks.map(sum).fold(0.0, |a: f32, b: f32| a + b) * scale
        };
        let expected = |t: Range<usize>, rows: Range<usize>| -> Vec<f32> {
            t.flat_map(|t| rows.clone().map(move |row| (t, row)))
                .map(|(t, row)| product(t, row))
                .collect()
        };
        for backend in Backend::available() {
            for (count, part) in [1, n]
                .into_iter()
                .flat_map(|n| [(n, 0..rows), (n, rows / 3..rows - rows / 5)])
            {
                let out = products(backend, &m, &input[..count * cols], part.clone());
                let what = format!("{trellis:?} {count} x {part:?} of {rows} x {cols}");
                assert!(out == expected(0..count, part), "{what} on {}", backend.name());
            }
        }
    }
}

#[test]
fn rows_follow_the_definition() {
    for (trellis, (rows, cols)) in trellises().flat_map(|t| SHAPES.map(|shape| (t, shape))) {
        let bytes = stored(trellis, rows, cols);
        let m = Matrix::new(Encoding::Trellis(trellis), rows, cols, &bytes).unwrap();
        let (values, scales) = plain(&m, trellis);
        let block = Trellis::rotation(cols);
        let root = 1.0 / (block as f32).sqrt();
        let signs: [_; 48] = signs(0);
        let signs = signs.map(|line| line.0);
        let weight = |i: usize| {
            let (row, col) = (i / cols, i % cols);
            let first = col / block * block;
            let block = &values[row * cols + first..][..block];
            let sign = |k: usize| {
                if (k & (col - first)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
            };
            let sum: f32 = block.iter().enumerate().map(|(k, v)| sign(k) * v).sum();
            sum * (scales[row] * root) * signs.as_flattened()[col]
        };
        let expected: Vec<f32> = (0..rows * cols).map(weight).collect();
        for backend in Backend::available() {
            let part = rows / 3..rows - rows / 5;
            let mut out = vec![0.0; rows * cols];
            m.dequantize(backend, 0..rows, &mut out);
            assert!(out == expected, "{trellis:?} {rows} x {cols} on {}", backend.name());
            let within = part.start * cols..part.end * cols;
            m.dequantize(backend, part.clone(), &mut out[within]);
            assert!(out == expected, "{trellis:?} rows {part:?} on {}", backend.name());
        }
    }
}

#[test]
fn a_product_is_near_that_of_the_rows() {
    for trellis in trellises() {
        let (rows, cols) = (300, 768);
        let bytes = stored(trellis, rows, cols);
        let m = Matrix::new(Encoding::Trellis(trellis), rows, cols, &bytes).unwrap();
        let (input, mut weights) = (noise(cols, 4), vec![0.0; rows * cols]);
        m.dequantize(Backend::detect(), 0..rows, &mut weights);
        let out = products(Backend::detect(), &m, &input, 0..rows);
        for (row, out) in weights.chunks_exact(cols).zip(out) {
            let exact: f64 = row
                .iter()
                .zip(&input)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum();
            assert!((f64::from(out) - exact).abs() < 1e-4, "{trellis:?}: {out} {exact}");
        }
    }
}

/// Rotates `x` and back.
struct Return<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Return<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut x = self.0.to_vec();
        rotate(&mut x, self.0.len());
        let root = 1.0 / (x.len() as f32).sqrt();
        let mut lines: Vec<_> = signs::<1>(0).repeat(x.len() / 16);
        lines
            .iter_mut()
            .zip(x.as_chunks().0)
            .for_each(|(line, x)| line.0 = *x);
        let signs: [_; 16] = signs(0);
        rotate_back(s, &mut lines, &signs, root, self.1);
    }
}

#[test]
fn the_rotation_keeps_lengths_and_returns() {
    for block in [16, 32, 64, 128, 256] {
        let x = noise(block, 8);
        let mut rotated = x.clone();
        rotate(&mut rotated, block);
        let length = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        assert!((length(&rotated) / length(&x) - 1.0).abs() < 1e-6);
        assert!(rotated.iter().zip(&x).all(|(a, b)| (a - b).abs() > 1e-6), "{block} is moved");
        agree("there and back", |backend| {
            let mut back = vec![0.0; block];
            backend.run(Return(&x, &mut back));
            assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-6), "{block} returns");
            back
        });
    }
}
