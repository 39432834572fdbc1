//! Rows of a [`Matrix`] as values, line by line.

use std::marker::PhantomData;
use std::ops::Range;

use crate::dtype::ScaleType;
use crate::encoding::{Affine, Encoding, Float, Trellis};
use crate::float::{Bf16, E8m0, F16, F32, Stored, Widen, padded};
use crate::ggml::Ggml;
use crate::ggml::lines::{Large, Small, scales};
use crate::ggml::types::{WithType, with_type};
use crate::kernel::{Backend, Kernel, LANES, Line, Simd};
use crate::matrix::Matrix;
use crate::minifloat::lines::{Bytes, E2m1, Small as SmallFloats};
use crate::minifloat::{Element, Minifloat};
use crate::trellis;

impl Matrix<'_> {
    /// Writes the values of `rows`, row-major: `scale · q + bias` rounded once for affine codes.
    ///
    /// # Panics
    /// When `rows` leaves the matrix or `out` is not `rows.len() * cols` long.
    pub fn dequantize(&self, backend: Backend, rows: Range<usize>, out: &mut [f32]) {
        assert!(rows.end <= self.rows(), "rows {rows:?} of {}", self.rows());
        assert_eq!(out.len(), rows.len() * self.cols(), "values of rows {rows:?}");
        let encoding = self.encoding();
        match (encoding, encoding.float()) {
            (Encoding::Trellis(trellis), _) => {
                backend.run(TrellisValues { m: self, trellis, rows, out });
            }
            (Encoding::Ggml(blocks), _) => {
                Ggml::from(blocks).decode(self.some_rows(self.weight(), rows), out);
            }
            (_, Some(dtype)) => {
                let row = self.cols() * dtype.size();
                let bytes = &self.weight()[rows.start * row..rows.end * row];
                backend.run(Widen { dtype, bytes, out });
            }
            _ => with_reader(encoding, AffineValues { backend, m: self, rows, out }),
        }
    }
}

/// The values of affine codes.
struct AffineValues<'a> {
    backend: Backend,
    m: &'a Matrix<'a>,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl WithReader for AffineValues<'_> {
    fn with(self, reader: impl RowReader) {
        let Self { backend, m, rows, out } = self;
        backend.run(EachRow { reader, m, rows, out });
    }
}

/// Rows of whole lines, one after the other.
struct EachRow<'a, R> {
    reader: R,
    m: &'a Matrix<'a>,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl<R: RowReader> Kernel for EachRow<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { reader, m, rows, out } = self;
        for (row, out) in rows.zip(out.chunks_exact_mut(m.cols().max(1))) {
            reader.read(s, m, row, out.as_chunks_mut::<LANES>().0.iter_mut());
        }
    }
}

/// The values of trellis codes.
struct TrellisValues<'a> {
    m: &'a Matrix<'a>,
    trellis: Trellis,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for TrellisValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        trellis::dequantize(s, self.m, self.trellis, self.rows, self.out);
    }
}

/// How rows of an encoding are read.
pub trait RowReader {
    /// Writes the values of a row, sixteen columns at a time, to the `lines`, zeros after the last column.
    fn read<'a, S: Simd>(
        &self,
        s: S,
        m: &Matrix<'_>,
        row: usize,
        lines: impl Iterator<Item = &'a mut Line>,
    );
}

/// What is done with the reader of an encoding.
pub trait WithReader {
    /// Does it.
    fn with(self, reader: impl RowReader);
}

/// Does it with that of `encoding`; not with trellis codes, whose lines run along the rows. Whoever makes a kernel of
/// each reader keeps them apart: all that one kernel calls is compiled into one function, and the time that takes
/// grows faster than what is in it.
pub fn with_reader(encoding: Encoding, what: impl WithReader) {
    match encoding {
        Encoding::F32 => what.with(FloatRows::<F32, 64>(PhantomData)),
        Encoding::F16 => what.with(FloatRows::<F16, 32>(PhantomData)),
        Encoding::Bf16 => what.with(FloatRows::<Bf16, 32>(PhantomData)),
        Encoding::Affine(a) => match a.bits() {
            2 => what.with(AffineRows::<2, 8>(a)),
            3 => what.with(AffineRows::<3, 12>(a)),
            4 => what.with(AffineRows::<4, 16>(a)),
            6 => what.with(AffineRows::<6, 24>(a)),
            _ => what.with(AffineRows::<8, 32>(a)),
        },
        Encoding::Ggml(blocks) => with_type(blocks, OfBlocks(what)),
        Encoding::Minifloat(m) => match m.element() {
            Element::E2m1 => what.with(MinifloatRows::<E2m1, 16>(m, PhantomData)),
            Element::E4m3 => what.with(MinifloatRows::<Bytes<3>, 32>(m, PhantomData)),
            Element::E5m2 => what.with(MinifloatRows::<Bytes<2>, 32>(m, PhantomData)),
        },
        Encoding::Trellis(_) => {}
    }
}

/// What is done with the reader of blocks.
struct OfBlocks<W>(W);

impl<W: WithReader> WithType for OfBlocks<W> {
    fn small<T: Small<BYTES>, const BYTES: usize>(self) {
        self.0.with(SmallRows::<T, BYTES>(PhantomData));
    }

    fn large<T: Large<BYTES>, const BYTES: usize>(self) {
        self.0.with(LargeRows::<T, BYTES>(PhantomData));
    }
}

/// Plain floats, sixteen of them in `SIZE` bytes.
struct FloatRows<T, const SIZE: usize>(PhantomData<T>);

/// Affine codes, 32 of them in `BLOCK` bytes.
struct AffineRows<const BITS: usize, const BLOCK: usize>(Affine);

/// Blocks of 32 columns.
struct SmallRows<T, const BYTES: usize>(PhantomData<T>);

/// Blocks of 256 columns.
struct LargeRows<T, const BYTES: usize>(PhantomData<T>);

/// Small floats, 32 of them in `BYTES`.
struct MinifloatRows<T, const BYTES: usize>(Minifloat, PhantomData<T>);

impl<T: SmallFloats<BYTES>, const BYTES: usize> RowReader for MinifloatRows<T, BYTES> {
    #[inline(always)]
    fn read<'a, S: Simd>(
        &self,
        s: S,
        m: &Matrix<'_>,
        row: usize,
        mut lines: impl Iterator<Item = &'a mut Line>,
    ) {
        let blocks = m.row(m.weight(), row).as_chunks().0;
        let first = row * (m.cols() / self.0.group_size());
        // Sixteen groups at a time: their scales are widened together.
        for (i, blocks) in blocks.chunks(self.0.blocks_of_sixteen()).enumerate() {
            let scales = sixteen_scales(s, self.0.scale_dtype(), m.scales(), first + LANES * i);
            for (b, block) in blocks.iter().enumerate() {
                let values = T::lines(s, block, self.0.scales_of(&scales, b));
                for (values, line) in values.into_iter().zip(&mut lines) {
                    s.store(values, line);
                }
            }
        }
    }
}

impl<T: Small<BYTES>, const BYTES: usize> RowReader for SmallRows<T, BYTES> {
    #[inline(always)]
    fn read<'a, S: Simd>(
        &self,
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
}

impl<T: Large<BYTES>, const BYTES: usize> RowReader for LargeRows<T, BYTES> {
    #[inline(always)]
    fn read<'a, S: Simd>(
        &self,
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
}

impl<T: Stored<SIZE>, const SIZE: usize> RowReader for FloatRows<T, SIZE> {
    #[inline(always)]
    fn read<'a, S: Simd>(
        &self,
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
}

impl<const BITS: usize, const BLOCK: usize> RowReader for AffineRows<BITS, BLOCK> {
    #[inline(always)]
    fn read<'a, S: Simd>(
        &self,
        s: S,
        m: &Matrix<'_>,
        row: usize,
        lines: impl Iterator<Item = &'a mut Line>,
    ) {
        let a = self.0;
        match a.group_size() {
            32 => grouped_row::<S, BITS, BLOCK, 1>(s, m, a, row, lines),
            64 => grouped_row::<S, BITS, BLOCK, 2>(s, m, a, row, lines),
            _ => grouped_row::<S, BITS, BLOCK, 4>(s, m, a, row, lines),
        }
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

/// Sixteen values of `dtype` from the one with number `first` on; zeros after the end of `bytes`.
#[inline(always)]
pub fn sixteen_at<S: Simd>(s: S, dtype: Float, bytes: &[u8], first: usize) -> Line {
    match dtype {
        Float::F32 => sixteen::<S, F32, 64>(s, bytes, first),
        Float::F16 => sixteen::<S, F16, 32>(s, bytes, first),
        Float::Bf16 => sixteen::<S, Bf16, 32>(s, bytes, first),
    }
}

/// As [`sixteen_at`], sixteen scales of small floats.
#[inline(always)]
pub fn sixteen_scales<S: Simd>(s: S, dtype: ScaleType, bytes: &[u8], first: usize) -> Line {
    match dtype.float() {
        Some(float) => sixteen_at(s, float, bytes, first),
        None => sixteen::<S, E8m0, 16>(s, bytes, first),
    }
}

/// As [`sixteen_at`], sixteen values in `SIZE` bytes.
#[inline(always)]
fn sixteen<S: Simd, T: Stored<SIZE>, const SIZE: usize>(s: S, bytes: &[u8], first: usize) -> Line {
    let rest = &bytes[SIZE / LANES * first..];
    let last;
    let values = if let Some(values) = rest.first_chunk() {
        values
    } else {
        last = padded(rest);
        &last
    };
    let mut out = [0.0; LANES];
    s.store(T::load(s, values), &mut out);
    out
}
