//! Rows of a [`Matrix`] as values, line by line.

use std::ops::Range;

use crate::blocks::Blocks;
use crate::encoding::{Affine, Encoding, Float};
use crate::float::{Bf16, F16, F32, Stored, Widen, padded};
use crate::ggml::Ggml;
use crate::ggml::lines::{self, Large, Small, scales};
use crate::kernel::{Backend, Kernel, LANES, Line, Simd};
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
                    decode_row(s, m, row, out.as_chunks_mut::<LANES>().0.iter_mut());
                }
            }
            Encoding::Trellis(t) => trellis::dequantize(s, m, t, rows, self.out),
            Encoding::Ggml(blocks) => {
                Ggml::from(blocks).decode(m.some_rows(m.weight(), rows), self.out);
            }
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

/// Writes the values of a row, sixteen columns at a time, to the `lines`, zeros after the last column. Trellis codes have no such lines: theirs run along the rows.
#[inline(always)]
pub fn decode_row<'a, S: Simd>(
    s: S,
    m: &Matrix<'_>,
    row: usize,
    lines: impl Iterator<Item = &'a mut Line>,
) {
    match m.encoding() {
        Encoding::F32 => float_row::<S, F32, _>(s, m, row, lines),
        Encoding::F16 => float_row::<S, F16, _>(s, m, row, lines),
        Encoding::Bf16 => float_row::<S, Bf16, _>(s, m, row, lines),
        Encoding::Affine(a) => match a.bits() {
            2 => affine_row::<S, 2, 8>(s, m, a, row, lines),
            3 => affine_row::<S, 3, 12>(s, m, a, row, lines),
            4 => affine_row::<S, 4, 16>(s, m, a, row, lines),
            6 => affine_row::<S, 6, 24>(s, m, a, row, lines),
            _ => affine_row::<S, 8, 32>(s, m, a, row, lines),
        },
        Encoding::Ggml(blocks) => match blocks {
            Blocks::Q4_0 => small_row::<S, lines::Q4_0, 18>(s, m, row, lines),
            Blocks::Q4_1 => small_row::<S, lines::Q4_1, 20>(s, m, row, lines),
            Blocks::Q5_0 => small_row::<S, lines::Q5_0, 22>(s, m, row, lines),
            Blocks::Q5_1 => small_row::<S, lines::Q5_1, 24>(s, m, row, lines),
            Blocks::Q8_0 => small_row::<S, lines::Q8_0, 34>(s, m, row, lines),
            Blocks::Q4K => large_row::<S, lines::Q4K, 144>(s, m, row, lines),
            Blocks::Q5K => large_row::<S, lines::Q5K, 176>(s, m, row, lines),
            Blocks::Q6K => large_row::<S, lines::Q6K, 210>(s, m, row, lines),
            _ => blocks_row(m, blocks, row, lines),
        },
        Encoding::Trellis(_) => {}
    }
}

/// Lines of the largest block.
pub const BLOCK_LINES: usize = 256 / LANES;

/// Decodes block `at` of a row; gives how many lines it has.
#[inline(always)]
pub fn decode_block(
    m: &Matrix<'_>,
    blocks: Blocks,
    (row, at): (usize, usize),
    out: &mut [Line; BLOCK_LINES],
) -> usize {
    let form = blocks.form();
    let block = &m.row(m.weight(), row)[at * form.bytes..][..form.bytes];
    Ggml::from(blocks).decode(block, &mut out.as_flattened_mut()[..form.values]);
    form.values / LANES
}

#[inline(always)]
fn blocks_row<'a>(
    m: &Matrix<'_>,
    blocks: Blocks,
    row: usize,
    mut lines: impl Iterator<Item = &'a mut Line>,
) {
    let mut values = [[0.0; LANES]; BLOCK_LINES];
    for at in 0..m.cols() / blocks.form().values {
        let count = decode_block(m, blocks, (row, at), &mut values);
        for (value, line) in values[..count].iter().zip(&mut lines) {
            *line = *value;
        }
    }
}

#[inline(always)]
fn small_row<'a, S: Simd, T: Small<BYTES>, const BYTES: usize>(
    s: S,
    m: &Matrix<'_>,
    row: usize,
    mut lines: impl Iterator<Item = &'a mut Line>,
) {
    // Sixteen blocks at a time: their scales are widened together.
    for blocks in m.row(m.weight(), row).as_chunks().0.chunks(LANES) {
        for (block, d) in blocks.iter().zip(scales(s, blocks)) {
            for (values, line) in T::lines(s, block, d).into_iter().zip(&mut lines) {
                s.store(values, line);
            }
        }
    }
}

#[inline(always)]
fn large_row<'a, S: Simd, T: Large<BYTES>, const BYTES: usize>(
    s: S,
    m: &Matrix<'_>,
    row: usize,
    mut lines: impl Iterator<Item = &'a mut Line>,
) {
    for block in m.row(m.weight(), row).as_chunks().0 {
        let block = T::open(s, block);
        for (at, line) in (0..LANES).zip(&mut lines) {
            s.store(T::line(s, &block, at), line);
        }
    }
}

#[inline(always)]
fn float_row<'a, S: Simd, T: Stored<SIZE>, const SIZE: usize>(
    s: S,
    m: &Matrix<'_>,
    row: usize,
    mut lines: impl Iterator<Item = &'a mut Line>,
) {
    let (values, rest) = m.row(m.weight(), row).as_chunks::<SIZE>();
    for (values, line) in values.iter().zip(&mut lines) {
        s.store(T::load(s, values), line);
    }
    if let (false, Some(line)) = (rest.is_empty(), lines.next()) {
        s.store(T::load(s, &padded(rest)), line);
    }
}

#[inline(always)]
fn affine_row<'a, S: Simd, const BITS: usize, const BLOCK: usize>(
    s: S,
    m: &Matrix<'_>,
    a: Affine,
    row: usize,
    lines: impl Iterator<Item = &'a mut Line>,
) {
    match a.group_size() {
        32 => grouped_row::<S, BITS, BLOCK, 1>(s, m, a, row, lines),
        64 => grouped_row::<S, BITS, BLOCK, 2>(s, m, a, row, lines),
        _ => grouped_row::<S, BITS, BLOCK, 4>(s, m, a, row, lines),
    }
}

/// Groups of `BLOCKS` times 32 columns: a count that the compiler knows.
#[inline(always)]
fn grouped_row<'a, S: Simd, const BITS: usize, const BLOCK: usize, const BLOCKS: usize>(
    s: S,
    m: &Matrix<'_>,
    a: Affine,
    row: usize,
    mut lines: impl Iterator<Item = &'a mut Line>,
) {
    let weight = m.row(m.weight(), row).as_chunks::<BLOCK>().0;
    let groups = weight.as_chunks::<BLOCKS>().0;
    // Sixteen groups at a time: their scales are widened together.
    for (i, sixteen) in groups.chunks(LANES).enumerate() {
        let first = row * groups.len() + LANES * i;
        let scale = sixteen_at(s, a.scale_dtype(), m.scales(), first);
        let bias = sixteen_at(s, a.scale_dtype(), m.biases(), first);
        for (g, group) in sixteen.iter().enumerate() {
            let grid = s.grid::<BITS>(scale[g], bias[g]);
            for block in group {
                let [first, second] = s.decode::<BITS, BLOCK>(block, grid);
                for values in [first, second] {
                    if let Some(line) = lines.next() {
                        s.store(s.natural::<BITS>(values), line);
                    }
                }
            }
        }
    }
}

/// Sixteen 16-bit values of `dtype` from the one with number `first` on; zeros after the end of `bytes`.
#[inline(always)]
pub fn sixteen_at<S: Simd>(s: S, dtype: Float, bytes: &[u8], first: usize) -> Line {
    let rest = &bytes[2 * first..];
    let last;
    let values = if let Some(values) = rest.first_chunk() {
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
