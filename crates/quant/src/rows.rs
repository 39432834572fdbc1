//! Rows of a [`Matrix`] as values, line by line.

use std::ops::Range;

use crate::encoding::{Affine, Encoding, Float};
use crate::float::{Widen, padded};
use crate::kernel::{Backend, Kernel, LANES, Simd};
use crate::matrix::Matrix;
use crate::trellis;

impl Matrix<'_> {
    /// Writes the values of `rows`, row-major: `scale · q + bias` rounded once for affine codes.
    ///
    /// # Panics
    /// When `rows` leaves the matrix or `out` is not `rows.len() * cols` long.
    pub fn dequantize(&self, backend: Backend, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        assert_eq!(out.len(), rows.len() * self.cols(), "values of rows {rows:?}");
        backend.run(Dequantize { matrix: self, rows, out });
    }
}

struct Dequantize<'a> {
    matrix: &'a Matrix<'a>,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (m, rows, cols) = (self.matrix, self.rows, self.matrix.cols());
        match m.encoding() {
            Encoding::Affine(_) => {
                for (row, out) in rows.zip(self.out.chunks_exact_mut(cols.max(1))) {
                    let out = out.as_chunks_mut::<LANES>().0;
                    each_line(s, m, row, |i, line| s.store(line, &mut out[i]));
                }
            }
            Encoding::Trellis(t) => trellis::dequantize(s, m, t, rows, self.out),
            Encoding::F32 => widen(s, Float::F32, m, rows, self.out),
            Encoding::F16 => widen(s, Float::F16, m, rows, self.out),
            Encoding::Bf16 => widen(s, Float::Bf16, m, rows, self.out),
        }
    }
}

#[inline(always)]
fn widen<S: Simd>(s: S, dtype: Float, m: &Matrix<'_>, rows: Range<usize>, out: &mut [f32]) {
    let row = m.cols() * dtype.size();
    Widen { dtype, bytes: &m.weight()[rows.start * row..rows.end * row], out }.run(s);
}

/// Calls `take(i, values)` for every sixteen columns `16 i ..` of a row, zeros after the last column.
/// Trellis codes have no such lines: theirs run along the rows.
#[inline(always)]
pub fn each_line<S: Simd>(s: S, m: &Matrix<'_>, row: usize, take: impl FnMut(usize, S::F)) {
    match m.encoding() {
        Encoding::F32 => float_lines(s, m, row, S::load_f32, take),
        Encoding::F16 => float_lines(s, m, row, S::load_f16, take),
        Encoding::Bf16 => float_lines(s, m, row, S::load_bf16, take),
        Encoding::Affine(a) => match a.bits() {
            2 => affine_lines::<S, 2, 8>(s, m, a, row, take),
            3 => affine_lines::<S, 3, 12>(s, m, a, row, take),
            4 => affine_lines::<S, 4, 16>(s, m, a, row, take),
            6 => affine_lines::<S, 6, 24>(s, m, a, row, take),
            _ => affine_lines::<S, 8, 32>(s, m, a, row, take),
        },
        Encoding::Trellis(_) => {}
    }
}

#[inline(always)]
fn float_lines<S: Simd, const SIZE: usize>(
    s: S,
    m: &Matrix<'_>,
    row: usize,
    load: impl Fn(S, &[u8; SIZE]) -> S::F,
    mut take: impl FnMut(usize, S::F),
) {
    let (lines, rest) = m.row(m.weight(), row).as_chunks::<SIZE>();
    for (i, line) in lines.iter().enumerate() {
        take(i, load(s, line));
    }
    if !rest.is_empty() {
        take(lines.len(), load(s, &padded(rest)));
    }
}

#[inline(always)]
fn affine_lines<S: Simd, const BITS: usize, const BLOCK: usize>(
    s: S,
    m: &Matrix<'_>,
    a: Affine,
    row: usize,
    mut take: impl FnMut(usize, S::F),
) {
    let weight = m.row(m.weight(), row).as_chunks::<BLOCK>().0;
    let (scales, biases) = (m.row(m.scales(), row), m.row(m.biases(), row));
    let blocks = a.group_size() / 32;
    let mut line = 0;
    // Sixteen groups at a time: their scales are widened together.
    for (i, weight) in weight.chunks(LANES * blocks).enumerate() {
        let scale = sixteen_at(s, a.scale_dtype(), scales, i);
        let bias = sixteen_at(s, a.scale_dtype(), biases, i);
        for (g, weight) in weight.chunks(blocks).enumerate() {
            let grid = s.grid::<BITS>(scale[g], bias[g]);
            for block in weight {
                let [first, second] = s.decode::<BITS, BLOCK>(block, grid);
                take(line, s.natural::<BITS>(first));
                take(line + 1, s.natural::<BITS>(second));
                line += 2;
            }
        }
    }
}

/// Values `16 i .. 16 i + 16` of `bytes`, 16-bit values of `dtype`; zeros after the end.
#[inline(always)]
pub fn sixteen_at<S: Simd>(s: S, dtype: Float, bytes: &[u8], i: usize) -> [f32; LANES] {
    let (chunks, rest) = bytes.as_chunks::<32>();
    let last;
    let values = if let Some(values) = chunks.get(i) {
        values
    } else {
        last = padded(rest);
        &last
    };
    let mut out = [0.0; LANES];
    match dtype {
        Float::F16 => s.store(s.load_f16(values), &mut out),
        _ => s.store(s.load_bf16(values), &mut out),
    }
    out
}
