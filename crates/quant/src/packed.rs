//! One row of activations through floats and codes where they lie.

use std::marker::PhantomData;
use std::ops::Range;

use crate::ahead::{ROWS, ask};
use crate::encoding::Affine;
use crate::float::{Stored, padded};
use crate::ggml::lines::{self, scales};
use crate::kernel::{Backend, Kernel, LANES, Line, Simd};
use crate::matrix::Matrix;
use crate::minifloat::Minifloat;
use crate::minifloat::lines::Small as SmallFloats;
use crate::rows::{sixteen_at, sixteen_scales};

/// Rows of a matrix that are multiplied with one row of activations.
pub trait PackedRows {
    /// The lanes of the sums of [`ROWS`] rows from `row` on; for those behind the matrix the last one's.
    fn sums<S: Simd>(&self, s: S, row: usize) -> [S::F; ROWS];
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

/// Small floats, 32 of them in `BYTES`.
pub struct Minifloats<'a, T, const BYTES: usize> {
    m: &'a Matrix<'a>,
    minifloat: Minifloat,
    x: &'a [[Line; 2]],
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

impl<'a, T, const BYTES: usize> Minifloats<'a, T, BYTES> {
    pub fn new(m: &'a Matrix<'a>, minifloat: Minifloat, x: &'a [f32]) -> Self {
        Self { m, minifloat, x: x.as_chunks().0.as_chunks().0, kind: PhantomData }
    }
}

impl<T: Stored<SIZE>, const SIZE: usize> PackedRows for Floats<'_, T, SIZE> {
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, row: usize) -> [S::F; ROWS] {
        let (m, mut acc) = (self.m, [s.splat(0.0); ROWS]);
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let rows = some_rows(m, row).map(|row| m.row(m.weight(), row).as_chunks::<SIZE>());
        // One length for all, so that a loop over one is within the others.
        let whole = rows.map(|(whole, _)| &whole[..x.len()]);
        let at = row * m.cols() * SIZE / LANES;
        for (i, x) in x.iter().enumerate() {
            ask(s, true, m.weight(), at + i * ROWS * SIZE, ROWS * SIZE);
            let x = s.load(x);
            for r in 0..ROWS {
                acc[r] = s.mul_add(T::load(s, &whole[r][i]), x, acc[r]);
            }
        }
        if !x_rest.is_empty() {
            let x = s.load(&padded(x_rest));
            for r in 0..ROWS {
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
    fn sums<S: Simd>(&self, s: S, row: usize) -> [S::F; ROWS] {
        let (m, groups, mut acc) = (self.m, self.x.len(), [s.splat(0.0); ROWS]);
        let numbers = some_rows(m, row);
        let rows: [&[[[u8; BLOCK]; BLOCKS]]; ROWS] =
            numbers.map(|row| m.row(m.weight(), row).as_chunks().0.as_chunks().0);
        let (mut scale, mut bias) = ([[0.0; LANES]; ROWS], [[0.0; LANES]; ROWS]);
        let (start, bytes) = (row * groups * BLOCKS * BLOCK, ROWS * BLOCKS * BLOCK);
        // Sixteen groups at a time: their scales are widened together.
        for (i, x) in self.x.chunks(LANES).enumerate() {
            for r in 0..ROWS {
                let first = numbers[r] * groups + LANES * i;
                scale[r] = sixteen_at(s, self.a.scale_dtype(), m.scales(), first);
                bias[r] = sixteen_at(s, self.a.scale_dtype(), m.biases(), first);
            }
            for (g, x) in x.iter().enumerate() {
                let group = LANES * i + g;
                ask(s, BITS == 8, m.weight(), start + group * bytes, bytes);
                for r in 0..ROWS {
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
    fn sums<S: Simd>(&self, s: S, row: usize) -> [S::F; ROWS] {
        let (m, mut acc) = (self.m, [s.splat(0.0); ROWS]);
        let rows: [&[[u8; BYTES]]; ROWS] =
            some_rows(m, row).map(|row| m.row(m.weight(), row).as_chunks().0);
        let (mut scale, start) = ([[0.0; LANES]; ROWS], row * rows[0].len() * BYTES);
        // Sixteen blocks at a time: their scales are widened together.
        for (i, x) in self.x.chunks(LANES).enumerate() {
            let first = LANES * i;
            for r in 0..ROWS {
                scale[r] = scales(s, &rows[r][first..first + x.len()]);
            }
            for (b, x) in x.iter().enumerate() {
                let at = start + (first + b) * ROWS * BYTES;
                ask(s, T::WHOLE_BYTES, m.weight(), at, ROWS * BYTES);
                for r in 0..ROWS {
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
    fn sums<S: Simd>(&self, s: S, row: usize) -> [S::F; ROWS] {
        let (m, mut acc) = (self.m, [s.splat(0.0); ROWS]);
        let rows: [&[[u8; BYTES]]; ROWS] =
            some_rows(m, row).map(|row| m.row(m.weight(), row).as_chunks().0);
        let start = row * rows[0].len() * BYTES;
        for (at, x) in self.x.iter().enumerate() {
            ask(s, false, m.weight(), start + at * ROWS * BYTES, ROWS * BYTES);
            for r in 0..ROWS {
                let w = T::open(s, &rows[r][at]);
                for (line, x) in (0..LANES).zip(x) {
                    acc[r] = s.mul_add(T::line(s, &w, line), s.load(x), acc[r]);
                }
            }
        }
        acc
    }
}

impl<T: SmallFloats<BYTES>, const BYTES: usize> PackedRows for Minifloats<'_, T, BYTES> {
    #[inline(always)]
    fn sums<S: Simd>(&self, s: S, row: usize) -> [S::F; ROWS] {
        let (m, format, mut acc) = (self.m, self.minifloat, [s.splat(0.0); ROWS]);
        let (numbers, groups) = (some_rows(m, row), m.cols() / format.group_size());
        let rows: [&[[u8; BYTES]]; ROWS] = numbers.map(|row| m.row(m.weight(), row).as_chunks().0);
        let (mut scale, start) = ([[0.0; LANES]; ROWS], row * rows[0].len() * BYTES);
        let together = format.blocks_of_sixteen();
        // Sixteen groups at a time: their scales are widened together.
        for (i, x) in self.x.chunks(together).enumerate() {
            for r in 0..ROWS {
                let first = numbers[r] * groups + LANES * i;
                scale[r] = sixteen_scales(s, format.scale_dtype(), m.scales(), first);
            }
            for (b, x) in x.iter().enumerate() {
                let block = together * i + b;
                ask(s, BYTES == 32, m.weight(), start + block * ROWS * BYTES, ROWS * BYTES);
                for r in 0..ROWS {
                    let scales = format.scales_of(&scale[r], b);
                    let [w0, w1] = T::lines(s, &rows[r][block], scales);
                    acc[r] = s.mul_add(w0, s.load(&x[0]), acc[r]);
                    acc[r] = s.mul_add(w1, s.load(&x[1]), acc[r]);
                }
            }
        }
        acc
    }
}

/// [`ROWS`] rows from `row` on; for those behind the matrix its last one.
#[inline(always)]
fn some_rows(m: &Matrix<'_>, row: usize) -> [usize; ROWS] {
    [0, 1, 2, 3].map(|r| (row + r).min(m.rows() - 1))
}

/// Where products with one row of activations go: `out[i]` is that of row `rows.start + i`.
pub struct RowOutputs<'a> {
    pub backend: Backend,
    pub rows: Range<usize>,
    pub out: &'a mut [f32],
}

impl RowOutputs<'_> {
    /// Multiplies.
    pub fn packed(self, all: &impl PackedRows) {
        self.backend
            .run(Packed { rows: self.rows, out: self.out, all });
    }
}

struct Packed<'a, P> {
    rows: Range<usize>,
    out: &'a mut [f32],
    all: &'a P,
}

impl<P: PackedRows> Kernel for Packed<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (first, out) in self.rows.step_by(ROWS).zip(self.out.chunks_mut(ROWS)) {
            let sums = s.sum_four(self.all.sums(s, first));
            out.copy_from_slice(&sums[..out.len()]);
        }
    }
}
