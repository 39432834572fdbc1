//! What it takes to factor a Gram and to quantize 256 rows with it. The first argument is the number
//! of columns.
//!
//! An item is a fused multiply-add of the factorization, `cols³ / 6`, or a weight.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use shardwright_quant::{
    Affine, Backend, Encoding, Float, HessianFactor, Job, Method, Objective, PartsMut, Trellis,
    Zeros, quantize,
};

const ROWS: usize = 256;

fn main() {
    divan::main();
}

/// Inputs that are the more alike the nearer they are: `0.9^|i - j|`.
fn gram(cols: usize) -> Vec<f32> {
    let power = std::iter::successors(Some(1.0f32), |power| Some(0.9 * power));
    let powers: Vec<f32> = power.take(cols).collect();
    (0..cols * cols)
        .map(|at| powers[(at / cols).abs_diff(at % cols)])
        .collect()
}

fn weights(cols: usize) -> Vec<f32> {
    let mix = |i: u32| (i ^ i >> 15).wrapping_mul(0x85eb_ca6b);
    let value = |i: u32| mix(mix(i.wrapping_mul(0x9e37_79b9))) as f32 / 2f32.powi(31) - 1.0;
    (0..(ROWS * cols) as u32)
        .map(|i| value(i) + value(!i))
        .collect()
}

fn q2() -> Encoding {
    Encoding::Affine(Affine::new(2, 64, Float::F16).unwrap())
}

fn t2() -> Encoding {
    Encoding::Trellis(Trellis::new(2, 10).unwrap())
}

#[divan::bench(args = [1024, 4096], sample_count = 3, sample_size = 1)]
fn factor(bencher: Bencher<'_, '_>, cols: usize) {
    let gram = gram(cols);
    bencher
        .counter(ItemsCount::new(cols * cols * cols / 6))
        .bench_local(|| HessianFactor::new(black_box(&gram), cols, 0.01, q2()).unwrap());
}

fn rows(bencher: Bencher<'_, '_>, cols: usize, encoding: Encoding, method: Method) {
    let feedback = HessianFactor::new(&gram(cols), cols, 0.01, encoding).unwrap();
    let (x, objective) = (weights(cols), Objective::Hessian(&feedback));
    let mut bytes = vec![0; encoding.parts(ROWS as u64, cols as u64).unwrap().total() as usize];
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let out = PartsMut::split(encoding, ROWS, cols, &mut bytes).unwrap();
        let (backend, x) = (Backend::detect(), black_box(&x));
        quantize(&Job { backend, x, cols, encoding, method, zeros: Zeros::Float, objective }, out)
            .unwrap()
    });
}

#[divan::bench(args = [1024, 4096], sample_count = 3, sample_size = 1)]
fn affine_search(bencher: Bencher<'_, '_>, cols: usize) {
    rows(bencher, cols, q2(), Method::Search);
}

#[divan::bench(args = [1024, 4096], sample_count = 3, sample_size = 1)]
fn affine_feedback(bencher: Bencher<'_, '_>, cols: usize) {
    rows(bencher, cols, q2(), Method::Gptq);
}

#[divan::bench(args = [1024], sample_count = 1, sample_size = 1)]
fn trellis_feedback(bencher: Bencher<'_, '_>, cols: usize) {
    rows(bencher, cols, t2(), Method::Gptq);
}
