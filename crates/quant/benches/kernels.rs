//! Throughput of every kernel on every backend, from cache: `cargo bench -p shardwright-quant`.
//!
//! Quantization and dequantization count weights, products the multiplications. `Gitem` is 10^9 a
//! second of one core.

use std::hint::black_box;

use divan::counter::ItemsCount;
use divan::{Bencher, main as run};
use shardwright_quant::{
    Activations, Affine, Backend, Blocks, Columns, Element, Encoding, Float, Job, Matrix, Method,
    Minifloat, Objective, Outputs, PartsMut, ScaleType, Trellis, Zeros, add_outer_products, dot,
    matmul, narrow, quantize, widen,
};

const ROWS: usize = 256;
const COLS: usize = 2048;

fn main() {
    run();
}

fn backends() -> Vec<&'static str> {
    Backend::available()
        .into_iter()
        .map(Backend::name)
        .collect()
}

/// Each backend with each name of `what`.
fn cases(what: &[&'static str]) -> Vec<String> {
    let with = |b: &str| what.iter().map(|w| format!("{b} {w}")).collect::<Vec<_>>();
    backends().into_iter().flat_map(with).collect()
}

fn methods() -> Vec<String> {
    cases(&[
        "2 minmax", "4 minmax", "8 minmax", "2 search", "3 search", "4 search", "6 search",
        "8 search",
    ])
}

fn encodings() -> Vec<String> {
    let others = ["2", "3", "4", "6", "8", "t2", "t3", "t4", "e2m1", "e4m3", "f16", "bf16", "f32"];
    cases(&[&others[..], &Blocks::ALL.map(Blocks::name)].concat())
}

/// The backend and the rest of a case.
fn parse(case: &str) -> (Backend, &str) {
    let (name, rest) = case.split_once(' ').unwrap_or((case, ""));
    let find = |b: &Backend| b.name() == name;
    (
        Backend::available()
            .into_iter()
            .find(find)
            .unwrap_or(Backend::Scalar),
        rest,
    )
}

fn encoding(name: &str) -> Encoding {
    match name {
        "f32" => Encoding::F32,
        "f16" => Encoding::F16,
        "bf16" => Encoding::Bf16,
        "e2m1" => Encoding::Minifloat(Minifloat::MXFP4),
        "e4m3" => minifloat(Element::E4m3, 128),
        name if name.contains('_') => Encoding::Ggml(Blocks::from_name(name).unwrap()),
        name => match name.strip_prefix('t') {
            Some(bits) => trellis(bits, "14"),
            None => Encoding::Affine(affine(name)),
        },
    }
}

fn affine(bits: &str) -> Affine {
    Affine::new(bits.parse().unwrap(), 64, Float::Bf16).unwrap()
}

fn minifloat(element: Element, group_size: u16) -> Encoding {
    Encoding::Minifloat(Minifloat::new(element, group_size, ScaleType::F32).unwrap())
}

fn trellis(bits: &str, state_bits: &str) -> Encoding {
    Encoding::Trellis(Trellis::new(bits.parse().unwrap(), state_bits.parse().unwrap()).unwrap())
}

/// Numbers with the bell shape of trained weights.
fn weights(len: usize) -> Vec<f32> {
    let uniform = |i: usize, k: u32| {
        let mixed = (i as u32)
            .wrapping_mul(4)
            .wrapping_add(k)
            .wrapping_mul(0x9e37_79b9);
        (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b) as f32 / 2f32.powi(32) - 0.5
    };
    (0..len)
        .map(|i| (0..4).map(|k| uniform(i, k)).sum::<f32>() * 0.05)
        .collect()
}

/// A stored matrix of `weights`.
fn stored(encoding: Encoding) -> Vec<u8> {
    let x = weights(ROWS * COLS);
    let mut bytes = vec![0; encoding.parts(ROWS as u64, COLS as u64).unwrap().total() as usize];
    match encoding {
        Encoding::Affine(_) | Encoding::Ggml(_) => {
            let out = PartsMut::split(encoding, ROWS, COLS, &mut bytes).unwrap();
            let (backend, method, objective) =
                (Backend::detect(), Method::MinMax, Objective::Weights);
            let job = Job {
                backend,
                x: &x,
                cols: COLS,
                encoding,
                method,
                zeros: Zeros::Float,
                objective,
            };
            quantize(&job, out).unwrap();
        }
        // Any bytes are streams; two of them are a scale.
        Encoding::Trellis(_) => {
            let noise = x.iter().map(|x| (x * 5000.0) as i32 as u8);
            bytes.iter_mut().zip(noise).for_each(|(byte, x)| *byte = x);
            let scales = bytes.len() - 2 * ROWS;
            narrow(Float::Bf16, &x[..ROWS], &mut bytes[scales..]);
        }
        // Any bytes with a small exponent are floats, any floats scales.
        Encoding::Minifloat(m) => {
            let weight = encoding.parts(ROWS as u64, COLS as u64).unwrap().weight;
            let (codes, scales) = bytes.split_at_mut(weight as usize);
            let noise = x.iter().map(|x| (x * 5000.0) as i32 as u8 & 0xbf);
            codes.iter_mut().zip(noise).for_each(|(byte, x)| *byte = x);
            match m.scale_dtype().float() {
                Some(dtype) => narrow(dtype, &x[..scales.len() / dtype.size()], scales),
                None => scales.fill(127),
            }
        }
        _ => narrow(encoding.float().unwrap(), &x, &mut bytes),
    }
    bytes
}

#[divan::bench(args = methods())]
fn quantization(bencher: Bencher<'_, '_>, case: &str) {
    let (backend, rest) = parse(case);
    let (bits, method) = rest.split_once(' ').unwrap();
    let method = if method == "minmax" { Method::MinMax } else { Method::Search };
    let (a, x) = (affine(bits), weights(16 * COLS));
    let encoding = Encoding::Affine(a);
    let mut bytes = vec![0; encoding.parts(16, COLS as u64).unwrap().total() as usize];
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let out = PartsMut::split(encoding, 16, COLS, &mut bytes).unwrap();
        let (x, objective) = (black_box(&x), Objective::Weights);
        quantize(
            &Job { backend, x, cols: COLS, encoding, method, zeros: Zeros::Float, objective },
            out,
        )
        .unwrap()
    });
}

/// The states and codes of a trellis, each with the fastest backend and the one before.
fn trellises() -> Vec<String> {
    let backends: Vec<_> = backends().into_iter().rev().take(2).collect();
    let with = |s: u8| Trellis::BITS.map(|bits| format!("{bits} {s}"));
    let all = Trellis::STATE_BITS.into_iter().flat_map(with);
    all.flat_map(|t| backends.iter().map(move |b| format!("{b} {t}")))
        .collect()
}

/// A tile of trellis codes, without feedback: the time is that of the encoder.
#[divan::bench(args = trellises(), sample_count = 5, sample_size = 1)]
fn trellis_codes(bencher: Bencher<'_, '_>, case: &str) {
    let (backend, rest) = parse(case);
    let (bits, state_bits) = rest.split_once(' ').unwrap();
    let (encoding, cols) = (trellis(bits, state_bits), 32);
    let x = weights(ROWS * cols);
    let mut bytes = vec![0; encoding.parts(ROWS as u64, cols as u64).unwrap().total() as usize];
    let (method, objective) = (Method::Search, Objective::Weights);
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let out = PartsMut::split(encoding, ROWS, cols, &mut bytes).unwrap();
        quantize(
            &Job {
                backend,
                x: black_box(&x),
                cols,
                encoding,
                method,
                zeros: Zeros::Float,
                objective,
            },
            out,
        )
        .unwrap()
    });
}

#[divan::bench(args = encodings())]
fn dequantization(bencher: Bencher<'_, '_>, case: &str) {
    let (backend, name) = parse(case);
    let bytes = stored(encoding(name));
    let m = Matrix::new(encoding(name), ROWS, COLS, &bytes).unwrap();
    let mut out = vec![0.0; 16 * COLS];
    bencher
        .counter(ItemsCount::new(out.len()))
        .bench_local(|| m.dequantize(backend, 0..16, black_box(&mut out)));
}

/// A product with `n` rows: an item is a multiplication with a weight.
fn multiply(bencher: Bencher<'_, '_>, case: &str, n: usize) {
    let (backend, name) = parse(case);
    let bytes = stored(encoding(name));
    let m = Matrix::new(encoding(name), ROWS, COLS, &bytes).unwrap();
    let (mut x, mut out) = (Activations::new(), vec![0.0; n * ROWS]);
    x.set(backend, &weights(n * COLS), COLS);
    bencher
        .counter(ItemsCount::new(n * ROWS * COLS))
        .bench_local(|| matmul(black_box(&m), &x, 0..ROWS, Outputs::new(&mut out, n)));
}

#[divan::bench(args = encodings())]
fn product(bencher: Bencher<'_, '_>, case: &str) {
    multiply(bencher, case, 1);
}

#[divan::bench(args = encodings(), sample_count = 20)]
fn products_of_64_rows(bencher: Bencher<'_, '_>, case: &str) {
    multiply(bencher, case, 64);
}

/// A prompt's product in BF16: rows and columns of the matrix.
#[divan::bench(args = ["1536 576", "576 1536", "2048 2048"], sample_count = 20)]
fn products_of_2048_rows(bencher: Bencher<'_, '_>, shape: &str) {
    let (rows, cols) = shape.split_once(' ').unwrap();
    let (rows, cols, n) = (rows.parse().unwrap(), cols.parse().unwrap(), 2048);
    let mut bytes = vec![0; 2 * rows * cols];
    narrow(Float::Bf16, &weights(rows * cols), &mut bytes);
    let m = Matrix::new(Encoding::Bf16, rows, cols, &bytes).unwrap();
    let (mut x, mut out) = (Activations::new(), vec![0.0; n * rows]);
    x.set(Backend::detect(), &weights(n * cols), cols);
    bencher
        .counter(ItemsCount::new(n * rows * cols))
        .bench_local(|| matmul(black_box(&m), &x, 0..rows, Outputs::new(&mut out, n)));
}

/// The Gram matrix of 512 rows of 576 columns: an item is a fused multiply-add.
#[divan::bench(args = backends(), sample_count = 20)]
fn outer_products(bencher: Bencher<'_, '_>, case: &str) {
    let ((backend, _), (n, cols)) = (parse(case), (512, 576));
    let (mut x, mut sum) = (Columns::default(), vec![0.0; cols * cols]);
    x.set(&weights(n * cols), cols, &[]);
    bencher
        .counter(ItemsCount::new(n * cols * cols))
        .bench_local(|| add_outer_products(backend, black_box(&x), 0..cols, &mut sum));
}

#[divan::bench(args = backends())]
fn attention_score(bencher: Bencher<'_, '_>, case: &str) {
    let (backend, _) = parse(case);
    let (a, b) = (weights(128), weights(128));
    bencher
        .counter(ItemsCount::new(a.len()))
        .bench_local(|| dot(backend, black_box(&a), black_box(&b)));
}

#[divan::bench(args = ["f32", "f16", "bf16"])]
fn widening(bencher: Bencher<'_, '_>, name: &str) {
    let bytes = stored(encoding(name));
    let mut out = vec![0.0; ROWS * COLS];
    let dtype = encoding(name).float().unwrap();
    bencher
        .counter(ItemsCount::new(out.len()))
        .bench_local(|| widen(dtype, black_box(&bytes), black_box(&mut out)));
}

#[divan::bench(args = ["f32", "f16", "bf16"])]
fn narrowing(bencher: Bencher<'_, '_>, name: &str) {
    let x = weights(ROWS * COLS);
    let dtype = encoding(name).float().unwrap();
    let mut bytes = vec![0; x.len() * dtype.size()];
    bencher
        .counter(ItemsCount::new(x.len()))
        .bench_local(|| narrow(dtype, black_box(&x), black_box(&mut bytes)));
}
