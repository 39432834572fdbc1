//! The product of a stored matrix with activations.
//!
//! A row of outputs has the same bits whatever rows go with it: one row reads codes where they lie,
//! many share values that are decoded once, and both add in one order.

use std::cell::RefCell;
use std::ops::Range;
use std::slice::ChunksExact;

use crate::activations::Activations;
use crate::encoding::{Affine, Encoding, Trellis};
use crate::float::{Bf16, F16, F32};
use crate::ggml::lines;
use crate::ggml::types::{WithType, with_type};
use crate::kernel::{
    Backend, Kernel, LANES, Lines, NOTHING, Outputs, PASSES, Simd, TILE_LINES, TILE_ROWS, Tile,
    Waiting,
};
use crate::matrix::Matrix;
use crate::minifloat::Element;
use crate::minifloat::lines::{Bytes, E2m1};
use crate::packed::{Floats, Grouped, Large, Minifloats, RowOutputs, Small};
use crate::rows::{RowReader, WithReader, with_reader};
use crate::trellis;

/// `out[t][i]` is the product of row `rows.start + i` of the matrix with row `t` of the activations.
///
/// For plain floats, affine codes and blocks it is [`dot`](fn@crate::dot) of the row's values, as
/// [`Matrix::dequantize`] gives them, with the activations. For trellis codes both are taken in the
/// rotated basis: the columns of a block of the rotation are added in order, each product fused, then
/// the blocks in order, and the sum is multiplied by the row's scale.
///
/// So a result depends on its row of the matrix and its row of activations alone: not on the other
/// rows, not on `rows`, not on the CPU.
///
/// # Panics
/// When `rows` leaves the matrix, or the shapes of `x` and `out` do not fit.
pub fn matmul(m: &Matrix<'_>, x: &Activations, rows: Range<usize>, out: Outputs<'_>) {
    assert!(rows.end <= m.rows(), "rows {rows:?} of {}", m.rows());
    assert_eq!(x.cols(), m.cols(), "activations of a matrix of {} columns", m.cols());
    assert_eq!((out.n(), out.width()), (x.n(), rows.len()), "outputs of rows {rows:?}");
    if rows.is_empty() {
        return;
    }
    match m.encoding() {
        Encoding::Trellis(trellis) => x.backend().run(OfTrellis { m, trellis, x, rows, out }),
        _ if x.is_few() => each_row(m, x, &rows, out),
        _ => many_rows(m, x, &rows, out),
    }
}

/// With trellis codes.
struct OfTrellis<'a> {
    m: &'a Matrix<'a>,
    trellis: Trellis,
    x: &'a Activations,
    rows: Range<usize>,
    out: Outputs<'a>,
}

impl Kernel for OfTrellis<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { m, trellis, x, rows, mut out } = self;
        if !x.is_few() {
            return trellis::matmul(s, m, trellis, x.rotated(), rows, out);
        }
        for i in 0..x.n() {
            let x = x.rotated().row(i, x.cols());
            trellis::matvec(s, m, trellis, x, rows.clone(), out.row(i));
        }
    }
}

/// Rows of a matrix in a register tile.
const TILE: usize = TILE_LINES * LANES;

/// Strips of activations that take each pass together, so that the matrix's columns of it stay in the first cache.
const STRIPS: usize = 4;

thread_local! {
    /// Decoded values, kept from one product to the next: clearing fresh memory takes longer than some
    /// products do.
    static PANEL: RefCell<Vec<Lines<TILE_LINES>>> = const { RefCell::new(Vec::new()) };

    /// Sums between passes, kept likewise.
    static WAITING: RefCell<Vec<Waiting>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that a thread keeps after products of many rows with matrices of up to `cols` columns.
pub const fn product_bytes(cols: usize) -> usize {
    LANES * pitch(cols) * size_of::<Lines<TILE_LINES>>() + STRIPS * size_of::<Waiting>()
}

/// Steps between the beginnings of passes in a panel: an odd number, so that the lines of a transposition lie in
/// different sets of the first cache.
const fn pitch(cols: usize) -> usize {
    cols.div_ceil(LANES) | 1
}

/// With many rows of activations: decodes the rows of a register tile and multiplies them with all of these, tile
/// after tile.
fn many_rows(m: &Matrix<'_>, x: &Activations, rows: &Range<usize>, mut out: Outputs<'_>) {
    let (backend, steps, pitch) = (x.backend(), m.cols().div_ceil(LANES), pitch(m.cols()));
    let (mut panel, mut waiting) = (PANEL.take(), WAITING.take());
    panel.resize(panel.len().max(LANES * pitch), Lines::ZERO);
    waiting.resize(STRIPS, NOTHING);
    for first in rows.clone().step_by(TILE) {
        let few = first..rows.end.min(first + TILE);
        let columns = first - rows.start..few.end - rows.start;
        with_reader(m.encoding(), Panel { backend, m, rows: few, out: &mut panel });
        for (block, x) in x.strips().chunks(STRIPS * LANES * steps).enumerate() {
            let strips = x.chunks_exact(LANES * steps);
            let count = strips.len();
            let lines = columns.len().div_ceil(LANES);
            let panel = &panel[..];
            backend.run(Passes { x: strips, panel, pitch, lines, waiting: &mut waiting });
            for (strip, [.., sums]) in (STRIPS * block..).zip(&waiting[..count]) {
                keep(sums, TILE_ROWS * strip, &columns, &mut out);
            }
        }
    }
    PANEL.set(panel);
    WAITING.set(waiting);
}

/// The values of up to 64 rows: pass after pass, a step for each of its columns, in lines of rows. Lanes without
/// a row hold what they held, and nobody takes the products with them.
struct Panel<'a> {
    backend: Backend,
    m: &'a Matrix<'a>,
    rows: Range<usize>,
    out: &'a mut [Lines<TILE_LINES>],
}

impl WithReader for Panel<'_> {
    fn with(self, reader: impl RowReader) {
        let Self { backend, m, rows, out } = self;
        backend.run(Decode { reader, m, rows, panel: out });
    }
}

/// With what reads them.
struct Decode<'a, R> {
    reader: R,
    m: &'a Matrix<'a>,
    rows: Range<usize>,
    panel: &'a mut [Lines<TILE_LINES>],
}

impl<R: RowReader> Kernel for Decode<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { reader, m, rows, panel } = self;
        let (steps, pitch) = (m.cols().div_ceil(LANES), pitch(m.cols()));
        for (line, first) in rows.clone().step_by(LANES).enumerate() {
            let sixteen = first..rows.end.min(first + LANES);
            for (i, row) in sixteen.enumerate() {
                let lines = panel[i * pitch..][..steps].iter_mut();
                reader.read(s, m, row, lines.map(|lines| &mut lines.0[line]));
            }
            // Sixteen columns of sixteen rows lie where sixteen passes of them belong.
            for step in 0..steps {
                let mut values = [s.splat(0.0); LANES];
                for (row, values) in values.iter_mut().enumerate() {
                    *values = s.load(&panel[row * pitch + step].0[line]);
                }
                s.transpose(&mut values);
                for (values, pass) in values.into_iter().zip(PASSES) {
                    s.store(values, &mut panel[pass * pitch + step].0[line]);
                }
            }
        }
    }
}

/// All passes of some strips of activations over a panel.
struct Passes<'a> {
    x: ChunksExact<'a, [f32; TILE_ROWS]>,
    panel: &'a [Lines<TILE_LINES>],
    pitch: usize,
    /// Lines of the panel that hold rows.
    lines: usize,
    waiting: &'a mut [Waiting],
}

impl Kernel for Passes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, panel, pitch, lines, waiting } = self;
        for pass in 0..LANES {
            for (x, waiting) in x.clone().zip(&mut *waiting) {
                let steps = x.len() / LANES;
                let (x, w) = (&x[pass * steps..][..steps], &panel[pass * pitch..][..steps]);
                s.pass(x, w, (pass, lines), waiting);
            }
        }
    }
}

/// Stores the sums of a tile in `columns` of the outputs from row `row` on, as far as these go.
fn keep(sums: &Tile, row: usize, columns: &Range<usize>, out: &mut Outputs<'_>) {
    for (row, sums) in (row..out.n()).zip(sums) {
        let out = &mut out.row(row)[columns.clone()];
        // A count that is known at compile time is a few moves, any other a call.
        match out.first_chunk_mut::<TILE>() {
            Some(out) => out.copy_from_slice(sums.0.as_flattened()),
            None => out.copy_from_slice(&sums.0.as_flattened()[..out.len()]),
        }
    }
}

/// With a few rows of activations, one after the other, as they came or arranged for four bits. Each encoding is a
/// kernel of its own, for all that one calls is compiled into one function, and the time that takes grows faster than
/// what is in it.
fn each_row(m: &Matrix<'_>, x: &Activations, rows: &Range<usize>, mut out: Outputs<'_>) {
    for i in 0..x.n() {
        let (backend, x, arranged) = (x.backend(), x.row(i), x.arranged(i));
        let to = RowOutputs { backend, rows: rows.clone(), out: out.row(i) };
        match m.encoding() {
            Encoding::F32 => to.packed(&Floats::<F32, 64>::new(m, x)),
            Encoding::F16 => to.packed(&Floats::<F16, 32>::new(m, x)),
            Encoding::Bf16 => to.packed(&Floats::<Bf16, 32>::new(m, x)),
            Encoding::Affine(a) => match a.bits() {
                2 => affine::<2, 8>(m, a, x, to),
                3 => affine::<3, 12>(m, a, x, to),
                4 => affine::<4, 16>(m, a, arranged, to),
                6 => affine::<6, 24>(m, a, x, to),
                _ => affine::<8, 32>(m, a, x, to),
            },
            Encoding::Ggml(blocks) => with_type(blocks, OfBlocks { m, x, to }),
            Encoding::Minifloat(f) => match f.element() {
                Element::E2m1 => to.packed(&Minifloats::<E2m1, 16>::new(m, f, x)),
                Element::E4m3 => to.packed(&Minifloats::<Bytes<3>, 32>::new(m, f, x)),
                Element::E5m2 => to.packed(&Minifloats::<Bytes<2>, 32>::new(m, f, x)),
            },
            Encoding::Trellis(_) => {}
        }
    }
}

fn affine<const BITS: usize, const BLOCK: usize>(
    m: &Matrix<'_>,
    a: Affine,
    x: &[f32],
    to: RowOutputs<'_>,
) {
    match a.group_size() {
        32 => to.packed(&Grouped::<BITS, BLOCK, 1>::new(m, a, x)),
        64 => to.packed(&Grouped::<BITS, BLOCK, 2>::new(m, a, x)),
        _ => to.packed(&Grouped::<BITS, BLOCK, 4>::new(m, a, x)),
    }
}

/// Blocks of a type.
struct OfBlocks<'a> {
    m: &'a Matrix<'a>,
    x: &'a [f32],
    to: RowOutputs<'a>,
}

impl WithType for OfBlocks<'_> {
    fn small<T: lines::Small<BYTES>, const BYTES: usize>(self) {
        self.to.packed(&Small::<T, BYTES>::new(self.m, self.x));
    }

    fn large<T: lines::Large<BYTES>, const BYTES: usize>(self) {
        self.to.packed(&Large::<T, BYTES>::new(self.m, self.x));
    }
}
