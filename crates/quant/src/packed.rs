//! One row of activations through floats and codes where they lie.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ahead::{ROWS, ask};
use crate::encoding::Affine;
use crate::float::{Stored, padded};
use crate::ggml::lines::{self, scales};
use crate::kernel::{LANES, Line, Simd};
use crate::matrix::Matrix;
use crate::rows::sixteen_at;

/// Rows of a matrix that are multiplied with one row of activations.
pub trait PackedRows {
    /// The lanes of the sums of rows `row..row + R`.
    fn sums<S: Simd, const R: usize>(&self, s: S, row: usize) -> [S::F; R];
}

/// Plain floats, sixteen of them in `SIZE` bytes.
pub struct Floats<'a, T, const SIZE: usize> {
    m: &'a Matrix<'a>,
    x: &'a [f32],
    kind: PhantomData<T>,
}

/// Blocks of 32 columns.
pub struct Small<'a, T, const BYTES: usize> {
    m: &'a Matrix<'a>,
    x: &'a [[Line; 2]],
    kind: PhantomData<T>,
}

/// Blocks of 256 columns.
pub struct Large<'a, T, const BYTES: usize> {
    m: &'a Matrix<'a>,
    x: &'a [[Line; LANES]],
    kind: PhantomData<T>,
}

/// Affine codes in groups of `BLOCKS` times 32 columns, whose codes are `BLOCK` bytes each. Loops over a group have a
/// count that the compiler knows: ends of short loops took as long as what is in them.
pub struct Grouped<'a, const BITS: usize, const BLOCK: usize, const BLOCKS: usize> {
    m: &'a Matrix<'a>,
    a: Affine,
    /// In the backend's order for these bits.
    x: &'a [[[Line; 2]; BLOCKS]],
}

impl<'a, const BITS: usize, const BLOCK: usize, const BLOCKS: usize>
    Grouped<'a, BITS, BLOCK, BLOCKS>
{
    pub fn new(m: &'a Matrix<'a>, a: Affine, x: &'a [f32]) -> Self {
        Self { m, a, x: x.as_chunks().0.as_chunks().0.as_chunks().0 }
    }
}

impl<'a, T, const SIZE: usize> Floats<'a, T, SIZE> {
    pub const fn new(m: &'a Matrix<'a>, x: &'a [f32]) -> Self {
        Self { m, x, kind: PhantomData }
    }
}

impl<'a, T, const BYTES: usize> Small<'a, T, BYTES> {
    pub fn new(m: &'a Matrix<'a>, x: &'a [f32]) -> Self {
        Self { m, x: x.as_chunks().0.as_chunks().0, kind: PhantomData }
    }
}

impl<'a, T, const BYTES: usize> Large<'a, T, BYTES> {
    pub fn new(m: &'a Matrix<'a>, x: &'a [f32]) -> Self {
        Self { m, x: x.as_chunks().0.as_chunks().0, kind: PhantomData }
    }
}

impl<T: Stored<SIZE>, const SIZE: usize> PackedRows for Floats<'_, T, SIZE> {
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, s: S, row: usize) -> [S::F; R] {
        let (m, mut acc) = (self.m, [s.splat(0.0); R]);
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let rows: [_; R] = std::array::from_fn(|r| m.row(m.weight(), row + r).as_chunks::<SIZE>());
        // One length for all, so that a loop over one is within the others.
        let whole: [_; R] = std::array::from_fn(|r| &rows[r].0[..x.len()]);
        let at = row * m.cols() * SIZE / LANES;
        for (i, x) in x.iter().enumerate() {
            ask(s, m.weight(), at + i * R * SIZE, R * SIZE);
            let x = s.load(x);
            for r in 0..R {
                acc[r] = s.mul_add(T::load(s, &whole[r][i]), x, acc[r]);
            }
        }
        if !x_rest.is_empty() {
            let x = s.load(&padded(x_rest));
            for r in 0..R {
                acc[r] = s.mul_add(T::load(s, &padded(rows[r].1)), x, acc[r]);
            }
        }
        acc
    }
}

impl<const BITS: usize, const BLOCK: usize, const BLOCKS: usize> PackedRows
    for Grouped<'_, BITS, BLOCK, BLOCKS>
{
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, s: S, row: usize) -> [S::F; R] {
        let (m, groups, mut acc) = (self.m, self.x.len(), [s.splat(0.0); R]);
        let rows: [&[[[u8; BLOCK]; BLOCKS]]; R] =
            std::array::from_fn(|r| m.row(m.weight(), row + r).as_chunks().0.as_chunks().0);
        let (mut scale, mut bias) = ([[0.0; LANES]; R], [[0.0; LANES]; R]);
        let (start, bytes) = (row * groups * BLOCKS * BLOCK, R * BLOCKS * BLOCK);
        // Sixteen groups at a time: their scales are widened together.
        for (i, x) in self.x.chunks(LANES).enumerate() {
            for r in 0..R {
                let first = (row + r) * groups + LANES * i;
                scale[r] = sixteen_at(s, self.a.scale_dtype(), m.scales(), first);
                bias[r] = sixteen_at(s, self.a.scale_dtype(), m.biases(), first);
            }
            for (g, x) in x.iter().enumerate() {
                let group = LANES * i + g;
                ask(s, m.weight(), start + group * bytes, bytes);
                for r in 0..R {
                    let grid = s.grid::<BITS>(scale[r][g], bias[r][g]);
                    for (block, x) in rows[r][group].iter().zip(x) {
                        let [w0, w1] = s.decode::<BITS, BLOCK>(block, grid);
                        acc[r] = s.mul_add(w0, s.load(&x[0]), acc[r]);
                        acc[r] = s.mul_add(w1, s.load(&x[1]), acc[r]);
                    }
                }
            }
        }
        // No closure: compiled for any CPU, it would be called, and all sums spilled around the call.
        for acc in &mut acc {
            *acc = s.natural::<BITS>(*acc);
        }
        acc
    }
}

impl<T: lines::Small<BYTES>, const BYTES: usize> PackedRows for Small<'_, T, BYTES> {
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, s: S, row: usize) -> [S::F; R] {
        let (m, mut acc) = (self.m, [s.splat(0.0); R]);
        let rows: [&[[u8; BYTES]]; R] =
            std::array::from_fn(|r| m.row(m.weight(), row + r).as_chunks().0);
        let (mut scale, start) = ([[0.0; LANES]; R], row * rows[0].len() * BYTES);
        // Sixteen blocks at a time: their scales are widened together.
        for (i, x) in self.x.chunks(LANES).enumerate() {
            let first = LANES * i;
            for r in 0..R {
                scale[r] = scales(s, &rows[r][first..first + x.len()]);
            }
            for (b, x) in x.iter().enumerate() {
                ask(s, m.weight(), start + (first + b) * R * BYTES, R * BYTES);
                for r in 0..R {
                    let [w0, w1] = T::lines(s, &rows[r][first + b], scale[r][b]);
                    acc[r] = s.mul_add(w0, s.load(&x[0]), acc[r]);
                    acc[r] = s.mul_add(w1, s.load(&x[1]), acc[r]);
                }
            }
        }
        acc
    }
}

impl<T: lines::Large<BYTES>, const BYTES: usize> PackedRows for Large<'_, T, BYTES> {
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, s: S, row: usize) -> [S::F; R] {
        let (m, mut acc) = (self.m, [s.splat(0.0); R]);
        let rows: [&[[u8; BYTES]]; R] =
            std::array::from_fn(|r| m.row(m.weight(), row + r).as_chunks().0);
        let start = row * rows[0].len() * BYTES;
        for (at, x) in self.x.iter().enumerate() {
            ask(s, m.weight(), start + at * R * BYTES, R * BYTES);
            for r in 0..R {
                let w = T::lines(s, &rows[r][at]);
                for line in 0..LANES {
                    acc[r] = s.mul_add(w[line], s.load(&x[line]), acc[r]);
                }
            }
        }
        acc
    }
}

/// `out[i]` is the product of row `rows.start + i`.
#[inline(always)]
pub fn packed<S: Simd>(s: S, rows: Range<usize>, out: &mut [f32], all: &impl PackedRows) {
    let (blocks, rest) = out.as_chunks_mut::<ROWS>();
    let after = rows.start + ROWS * blocks.len();
    for (first, out) in rows.step_by(ROWS).zip(blocks) {
        *out = s.sum_four(all.sums::<S, ROWS>(s, first));
    }
    for (row, out) in (after..).zip(rest) {
        *out = s.sum(all.sums::<S, 1>(s, row)[0]);
    }
}
