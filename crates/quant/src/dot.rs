//! Dot products over sixteen lanes, and everything that reads rows of a [`Matrix`].

use std::ops::Range;

use crate::encoding::{Affine, Encoding, Float};
use crate::float::{Widen, padded};
use crate::kernel::{Backend, Kernel, LANES, Simd};
use crate::matrix::{Activation, Matrix};
use crate::trellis;

/// `Σ a[i] · b[i]`: lane `l` of sixteen adds columns `l, l + 16, …` with fused multiply-add, missing
/// columns count as zeros, and the lanes are added 16 to 8 to 4 to 2 to 1.
///
/// # Panics
/// When the lengths differ.
pub fn dot(backend: Backend, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    backend.run(Dot { a, b })
}

/// `y[i] = alpha · x[i] + y[i]`, rounded once.
///
/// # Panics
/// When the lengths differ.
pub fn axpy(backend: Backend, alpha: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of alpha * x + y");
    backend.run(Axpy { alpha, x, y });
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, a_rest) = self.a.as_chunks::<LANES>();
        let (b, b_rest) = self.b.as_chunks::<LANES>();
        let mut acc = s.splat(0.0);
        for (a, b) in a.iter().zip(b) {
            acc = s.mul_add(s.load(a), s.load(b), acc);
        }
        acc = s.mul_add(s.load(&padded(a_rest)), s.load(&padded(b_rest)), acc);
        s.sum(acc)
    }
}

struct Axpy<'a> {
    alpha: f32,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Axpy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (y, y_rest) = self.y.as_chunks_mut::<LANES>();
        for (x, y) in x.iter().zip(y) {
            s.store(s.mul_add(s.splat(self.alpha), s.load(x), s.load(y)), y);
        }
        for (x, y) in x_rest.iter().zip(y_rest) {
            *y = self.alpha.mul_add(*x, *y);
        }
    }
}

/// Sums of 32 columns of `x` each.
pub struct Prepare<'a> {
    pub x: &'a [f32],
    pub sums: &'a mut [f32],
}

impl Kernel for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (pairs, _) = self.x.as_chunks::<LANES>().0.as_chunks::<2>();
        for ([a, b], sum) in pairs.iter().zip(self.sums) {
            *sum = s.sum(s.add(s.load(a), s.load(b)));
        }
    }
}

/// Writes rows as `f32`.
pub struct Dequantize<'a> {
    pub matrix: &'a Matrix<'a>,
    pub rows: Range<usize>,
    pub out: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.matrix.encoding() {
            Encoding::F32 => self.floats(s, Float::F32),
            Encoding::F16 => self.floats(s, Float::F16),
            Encoding::Bf16 => self.floats(s, Float::Bf16),
            Encoding::Affine(a) => match a.bits() {
                2 => self.affine::<S, 2, 8>(s, a),
                3 => self.affine::<S, 3, 12>(s, a),
                4 => self.affine::<S, 4, 16>(s, a),
                6 => self.affine::<S, 6, 24>(s, a),
                _ => self.affine::<S, 8, 32>(s, a),
            },
            Encoding::Trellis(t) => trellis::dequantize(s, self.matrix, t, self.rows, self.out),
        }
    }
}

impl Dequantize<'_> {
    #[inline(always)]
    fn floats<S: Simd>(self, s: S, dtype: Float) {
        let row = self.matrix.cols() * dtype.size();
        let bytes = &self.matrix.weight()[self.rows.start * row..self.rows.end * row];
        Widen { dtype, bytes, out: self.out }.run(s);
    }

    #[inline(always)]
    fn affine<S: Simd, const BITS: usize, const BLOCK: usize>(self, s: S, a: Affine) {
        let (groups, blocks) = (self.matrix.cols() / a.group_size(), a.group_size() / 32);
        // Groups are contiguous across rows: the rows are one list of groups.
        let groups = self.rows.start * groups..self.rows.end * groups;
        let (weight, _) = self.matrix.weight().as_chunks::<BLOCK>();
        let weight = &weight[groups.start * blocks..groups.end * blocks];
        let scales = &self.matrix.scales()[groups.start * 2..groups.end * 2];
        let biases = &self.matrix.biases()[groups.start * 2..groups.end * 2];
        let (out, _) = self.out.as_chunks_mut::<LANES>();
        let sixteen = weight
            .chunks(LANES * blocks)
            .zip(out.chunks_mut(2 * LANES * blocks));
        for (i, (weight, out)) in sixteen.enumerate() {
            let (mut scale, mut bias) = ([0.0; LANES], [0.0; LANES]);
            s.store(sixteen_at(s, a.scale_dtype(), scales, i), &mut scale);
            s.store(sixteen_at(s, a.scale_dtype(), biases, i), &mut bias);
            for (g, (weight, out)) in weight
                .chunks(blocks)
                .zip(out.chunks_mut(2 * blocks))
                .enumerate()
            {
                let (scale, bias) = (s.splat(scale[g]), s.splat(bias[g]));
                for (block, out) in weight.iter().zip(out.as_chunks_mut::<2>().0) {
                    let [q0, q1] = s.codes::<BITS, BLOCK>(block);
                    s.store(s.mul_add(scale, q0, bias), &mut out[0]);
                    s.store(s.mul_add(scale, q1, bias), &mut out[1]);
                }
            }
        }
    }
}

/// Values `16 i .. 16 i + 16` of `bytes`, 16-bit values of `dtype`; zeros after the end.
#[inline(always)]
fn sixteen_at<S: Simd>(s: S, dtype: Float, bytes: &[u8], i: usize) -> S::F {
    let (chunks, rest) = bytes.as_chunks::<32>();
    let last;
    let values = if let Some(values) = chunks.get(i) {
        values
    } else {
        last = padded(rest);
        &last
    };
    match dtype {
        Float::F16 => s.load_f16(values),
        _ => s.load_bf16(values),
    }
}

/// Rows that a product takes together: they share the loads of `x`, and their sums overlap.
const ROWS: usize = 4;

/// Dot products of rows and one vector.
pub struct MatVec<'a> {
    pub matrix: &'a Matrix<'a>,
    pub x: &'a Activation,
    pub rows: Range<usize>,
    pub out: &'a mut [f32],
}

impl Kernel for MatVec<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.matrix.encoding() {
            Encoding::F32 => self.floats(s, S::load_f32),
            Encoding::F16 => self.floats(s, S::load_f16),
            Encoding::Bf16 => self.floats(s, S::load_bf16),
            Encoding::Affine(a) => match a.bits() {
                2 => self.affine::<S, 2, 8>(s, a),
                3 => self.affine::<S, 3, 12>(s, a),
                4 => self.affine::<S, 4, 16>(s, a),
                6 => self.affine::<S, 6, 24>(s, a),
                _ => self.affine::<S, 8, 32>(s, a),
            },
            Encoding::Trellis(t) => {
                trellis::matvec(s, self.matrix, t, self.x.rotated(), self.rows, self.out);
            }
        }
    }
}

impl MatVec<'_> {
    #[inline(always)]
    fn floats<S: Simd, const SIZE: usize>(self, s: S, load: impl Fn(S, &[u8; SIZE]) -> S::F) {
        let (m, x, first) = (self.matrix, self.x.x(), self.rows.start);
        let (blocks, rest) = self.out.as_chunks_mut::<ROWS>();
        let after = first + ROWS * blocks.len();
        for (i, out) in blocks.iter_mut().enumerate() {
            *out = float_rows(s, m, x, first + ROWS * i, &load);
        }
        for (i, out) in rest.iter_mut().enumerate() {
            [*out] = float_rows(s, m, x, after + i, &load);
        }
    }

    #[inline(always)]
    fn affine<S: Simd, const BITS: usize, const BLOCK: usize>(self, s: S, a: Affine) {
        let (m, x, first) = (self.matrix, self.x, self.rows.start);
        let (blocks, rest) = self.out.as_chunks_mut::<ROWS>();
        let after = first + ROWS * blocks.len();
        for (i, out) in blocks.iter_mut().enumerate() {
            *out = affine_rows::<S, ROWS, BITS, BLOCK>(s, m, a, x, first + ROWS * i);
        }
        for (i, out) in rest.iter_mut().enumerate() {
            [*out] = affine_rows::<S, 1, BITS, BLOCK>(s, m, a, x, after + i);
        }
    }
}

/// Rows `row..row + R` of plain floats, sixteen of them in `SIZE` bytes.
#[inline(always)]
fn float_rows<S: Simd, const R: usize, const SIZE: usize>(
    s: S,
    m: &Matrix<'_>,
    x: &[f32],
    row: usize,
    load: &impl Fn(S, &[u8; SIZE]) -> S::F,
) -> [f32; R] {
    let rows: [_; R] = std::array::from_fn(|r| m.row(m.weight(), row + r).as_chunks::<SIZE>());
    let (x, x_rest) = x.as_chunks::<LANES>();
    let mut acc = [s.splat(0.0); R];
    for (i, x) in x.iter().enumerate() {
        let x = s.load(x);
        for r in 0..R {
            acc[r] = s.mul_add(load(s, &rows[r].0[i]), x, acc[r]);
        }
    }
    let x = s.load(&padded(x_rest));
    let mut sums = [0.0; R];
    for r in 0..R {
        sums[r] = s.sum(s.mul_add(load(s, &padded(rows[r].1)), x, acc[r]));
    }
    sums
}

/// Rows `row..row + R` of affine codes: the definition is [`crate::matvec`]'s.
#[inline(always)]
fn affine_rows<S: Simd, const R: usize, const BITS: usize, const BLOCK: usize>(
    s: S,
    m: &Matrix<'_>,
    a: Affine,
    x: &Activation,
    row: usize,
) -> [f32; R] {
    let weight: [_; R] = std::array::from_fn(|r| m.row(m.weight(), row + r).as_chunks::<BLOCK>().0);
    let scales: [_; R] = std::array::from_fn(|r| m.row(m.scales(), row + r));
    let biases: [_; R] = std::array::from_fn(|r| m.row(m.biases(), row + r));
    let (columns, _) = x.x().as_chunks::<LANES>().0.as_chunks::<2>();
    let blocks = a.group_size() / 32;
    let mut acc = [s.splat(0.0); R];
    let mut scale = [[0.0; LANES]; R];
    for (i, sums) in x
        .sums(a.group_size())
        .as_chunks::<LANES>()
        .0
        .iter()
        .enumerate()
    {
        let sums = s.load(sums);
        for r in 0..R {
            s.store(sixteen_at(s, a.scale_dtype(), scales[r], i), &mut scale[r]);
            acc[r] = s.mul_add(sixteen_at(s, a.scale_dtype(), biases[r], i), sums, acc[r]);
        }
        let columns = columns
            .chunks(blocks)
            .enumerate()
            .skip(LANES * i)
            .take(LANES);
        for (g, columns) in columns {
            let mut d = [s.splat(0.0); R];
            for (b, x) in columns.iter().enumerate() {
                let (x0, x1) = (s.load(&x[0]), s.load(&x[1]));
                for r in 0..R {
                    let [q0, q1] = s.codes::<BITS, BLOCK>(&weight[r][g * blocks + b]);
                    d[r] = s.mul_add(q1, x1, s.mul_add(q0, x0, d[r]));
                }
            }
            for r in 0..R {
                acc[r] = s.mul_add(s.splat(scale[r][g % LANES]), d[r], acc[r]);
            }
        }
    }
    let mut sums = [0.0; R];
    for r in 0..R {
        sums[r] = s.sum(acc[r]);
    }
    sums
}
