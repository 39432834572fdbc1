//! Rows of activations, laid out as the products read them.

use std::sync::OnceLock;

use crate::encoding::Trellis;
use crate::kernel::{Backend, Kernel, LANES, PASSES, Simd, TILE_ROWS};
use crate::trellis::rotate::rotate;

/// As many rows are multiplied one by one, from the codes; for more, values are decoded once.
const FEW: usize = 2;

/// Activations `[n, cols]`, shared by all products with them.
///
/// Buffers are reused: [`Self::set`] allocates only when there are more values than ever before.
#[derive(Clone, Debug)]
pub struct Activations {
    backend: Backend,
    n: usize,
    cols: usize,
    /// Few rows: as they came.
    x: Vec<f32>,
    /// Few rows: in the order in which the backend decodes four bits, `[n, cols / 16, 16]`.
    arranged: Vec<f32>,
    /// Many rows: six side by side, in the order of passes, `[n / 6, 16, cols / 16]`; the last one again where none are left.
    strips: Vec<[f32; TILE_ROWS]>,
    /// In the basis of trellis codes, made when such a matrix comes.
    rotated: OnceLock<Rotated>,
}

/// Activations in the basis of trellis codes.
#[derive(Clone, Debug)]
pub struct Rotated {
    /// `[n, cols]`.
    rows: Vec<f32>,
    /// Many rows: six side by side, column by column, `[n / 6, cols]`.
    panels: Vec<[f32; TILE_ROWS]>,
}

impl Default for Activations {
    fn default() -> Self {
        Self::new()
    }
}

impl Activations {
    /// No rows.
    pub fn new() -> Self {
        Self {
            backend: Backend::Scalar,
            n: 0,
            cols: 0,
            x: Vec::new(),
            arranged: Vec::new(),
            strips: Vec::new(),
            rotated: OnceLock::new(),
        }
    }

    /// Takes a copy of `x`, rows of `cols` values, to be multiplied with the instructions of `backend`.
    ///
    /// # Panics
    /// When `x` is not whole rows.
    pub fn set(&mut self, backend: Backend, x: &[f32], cols: usize) {
        self.set_in_parts(backend, x, cols, 1)
            .into_iter()
            .for_each(Copying::run);
    }

    /// As [`Self::set`], where there are many rows in up to `parts` parts, each of which is still to be run.
    ///
    /// # Panics
    /// As [`Self::set`].
    pub fn set_in_parts<'a>(
        &'a mut self,
        backend: Backend,
        x: &'a [f32],
        cols: usize,
        parts: usize,
    ) -> Vec<Copying<'a>> {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} values in rows of {cols}", x.len());
        (self.backend, self.n, self.cols) = (backend, x.len() / cols, cols);
        self.x.clear();
        self.rotated = OnceLock::new();
        // Few rows meet codes where they lie, in the order of lanes that codes unpack to; many meet decoded panels,
        // in strips of rows that share each load.
        if self.is_few() {
            self.strips.clear();
            self.x.extend_from_slice(x);
            self.arranged.resize(x.len(), 0.0);
            backend.run(Arrange { x, cols, out: &mut self.arranged });
            return Vec::new();
        }
        let (len, strips) = (cols.next_multiple_of(LANES), self.n.div_ceil(TILE_ROWS));
        self.strips.resize(strips * len, [0.0; TILE_ROWS]);
        let share = strips.div_ceil(parts);
        let shares = self.strips.chunks_mut(share * len);
        let rows = x.chunks(share * TILE_ROWS * cols);
        let part = |(strips, x)| Copying { x, cols, strips };
        shares.zip(rows).map(part).collect()
    }

    /// Rows.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// The instructions that products use.
    pub const fn backend(&self) -> Backend {
        self.backend
    }

    /// Whether rows are multiplied one by one.
    pub(crate) const fn is_few(&self) -> bool {
        self.n <= FEW
    }

    /// Row `row` of few.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.x[row * self.cols..][..self.cols]
    }

    /// Row `row` of few, each whole line in the order of [`Simd::arrange`] for codes of four bits.
    pub(crate) fn arranged(&self, row: usize) -> &[f32] {
        &self.arranged[row * self.cols..][..self.cols]
    }

    /// Many rows, six side by side: `[n / 6, 16, cols / 16]`, each of sixteen columns in its pass.
    pub(crate) fn strips(&self) -> &[[f32; TILE_ROWS]] {
        &self.strips
    }

    /// The rows as they came.
    fn rows(&self) -> Vec<f32> {
        if self.is_few() {
            return self.x.clone();
        }
        let steps = self.cols.div_ceil(LANES);
        let mut rows = vec![0.0; self.n * self.cols];
        for (i, row) in rows.chunks_exact_mut(self.cols).enumerate() {
            let strip = &self.strips[i / TILE_ROWS * LANES * steps..][..LANES * steps];
            for (column, value) in row.iter_mut().enumerate() {
                *value = strip[PASSES[column % LANES] * steps + column / LANES][i % TILE_ROWS];
            }
        }
        rows
    }

    /// The rows in the basis of trellis codes.
    ///
    /// # Panics
    /// When rows of this length cannot be rotated; there are no such matrices.
    pub(crate) fn rotated(&self) -> &Rotated {
        self.rotated.get_or_init(|| {
            let (mut rows, cols) = (self.rows(), self.cols);
            self.backend.run(Rotate { x: &mut rows, cols });
            let panels = if self.is_few() { Vec::new() } else { panels(&rows, cols) };
            Rotated { rows, panels }
        })
    }
}

/// Whole strips of activations that are still to be copied.
#[derive(Debug)]
pub struct Copying<'a> {
    /// `[n, cols]`.
    x: &'a [f32],
    cols: usize,
    /// `[n / 6, 16, cols / 16]`.
    strips: &'a mut [[f32; TILE_ROWS]],
}

impl Copying<'_> {
    /// Copies them: the last row again where a strip has no rows left, zeros after the last column.
    pub fn run(self) {
        let Self { x, cols, strips } = self;
        let steps = cols.div_ceil(LANES);
        let strips = strips.chunks_exact_mut(LANES * steps);
        for (strip, x) in strips.zip(x.chunks(TILE_ROWS * cols)) {
            let rows: [&[f32]; TILE_ROWS] = std::array::from_fn(|i| {
                let row = i.min(x.len() / cols - 1);
                &x[row * cols..][..cols]
            });
            for step in 0..steps {
                let first = LANES * step;
                for (lane, pass) in PASSES.into_iter().enumerate() {
                    let values = if first + lane < cols {
                        rows.map(|row| row[first + lane])
                    } else {
                        [0.0; TILE_ROWS]
                    };
                    strip[pass * steps + step] = values;
                }
            }
        }
    }
}

impl Rotated {
    /// Row `row`, of `cols` columns.
    pub(crate) fn row(&self, row: usize, cols: usize) -> &[f32] {
        &self.rows[row * cols..][..cols]
    }

    /// Many rows, six at a time.
    pub(crate) fn panels(&self, cols: usize) -> impl Iterator<Item = &[[f32; TILE_ROWS]]> {
        self.panels.chunks_exact(cols)
    }
}

/// Six rows side by side, zeros where none are left.
fn panels(rows: &[f32], cols: usize) -> Vec<[f32; TILE_ROWS]> {
    let panel = |rows: &[f32]| {
        let mut panel = vec![[0.0; TILE_ROWS]; cols];
        for (i, row) in rows.chunks_exact(cols).enumerate() {
            for (values, value) in panel.iter_mut().zip(row) {
                values[i] = *value;
            }
        }
        panel
    };
    rows.chunks(TILE_ROWS * cols).flat_map(panel).collect()
}

/// Copies rows, each whole line of sixteen in the order of [`Simd::arrange`].
struct Arrange<'a> {
    x: &'a [f32],
    cols: usize,
    out: &'a mut [f32],
}

impl Kernel for Arrange<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.x.chunks_exact(self.cols);
        for (x, out) in rows.zip(self.out.chunks_exact_mut(self.cols)) {
            let (x, out) = (x.as_chunks::<LANES>().0, out.as_chunks_mut::<LANES>().0);
            for (x, out) in x.iter().zip(out) {
                s.store(s.arrange::<4>(s.load(x)), out);
            }
        }
    }
}

/// Brings rows into the basis of trellis codes.
struct Rotate<'a> {
    x: &'a mut [f32],
    cols: usize,
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let block = Trellis::rotation(self.cols);
        for row in self.x.chunks_exact_mut(self.cols) {
            rotate(row, block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::noise;

    #[test]
    fn parts_copy_what_one_copies_over_whatever_was_there() {
        for (n, cols) in [(3, 16), (23, 37), (64, 40)] {
            let x = noise(n * cols, 1);
            let mut whole = Activations::new();
            whole.set(Backend::Scalar, &x, cols);
            assert_eq!(whole.rows(), x);
            for parts in [2, 3, 7, 100] {
                let mut split = Activations::new();
                split.set(Backend::Scalar, &noise(100 * cols, 2), cols);
                let copying = split.set_in_parts(Backend::Scalar, &x, cols, parts);
                assert!(copying.len() <= parts && copying.len() > usize::from(n > TILE_ROWS));
                copying.into_iter().rev().for_each(Copying::run);
                let pairs = split.strips.iter().zip(&whole.strips);
                assert_eq!(split.strips.len(), whole.strips.len());
                assert!(pairs.into_iter().all(|(a, b)| a == b), "{n} x {cols}, {parts} parts");
            }
        }
    }
}
