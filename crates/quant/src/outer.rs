//! Sums of outer products.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernel::{Backend, Kernel, LANES, Lines, Simd, TILE_LINES, TILE_ROWS};

/// Rows that are taken together: their columns stay in the first caches.
const DEPTH: usize = 256;

/// Columns of a register tile.
const WIDTH: usize = TILE_LINES * LANES;

/// Rows `[n, cols]` as sums of their outer products read them: 64 columns side by side.
///
/// The buffer is reused: [`Self::set`] allocates only when there are more values than ever before.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    n: usize,
    cols: usize,
    /// `[cols / 64, n]`, zeros after the last column.
    panels: Vec<Lines<TILE_LINES>>,
}

impl Columns {
    /// Takes a copy of `x`, rows of `cols` values, each row times its weight, or all as they are where `weights` is
    /// empty. The work is spread over the current pool.
    ///
    /// # Panics
    /// When `x` is not whole rows, or there are weights for another number of them.
    pub fn set(&mut self, x: &[f32], cols: usize, weights: &[f32]) {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} values in rows of {cols}", x.len());
        (self.n, self.cols) = (x.len() / cols, cols);
        assert!(weights.is_empty() || weights.len() == self.n, "{} weights", weights.len());
        self.panels
            .resize(cols.div_ceil(WIDTH) * self.n, Lines::ZERO);
        let panels = self.panels.par_chunks_mut(self.n.max(1)).enumerate();
        panels.for_each(|(at, panel)| {
            let columns = at * WIDTH..cols.min((at + 1) * WIDTH);
            for (out, row) in panel.iter_mut().zip(x.chunks_exact(cols)) {
                *out = lines(&row[columns.clone()]);
            }
            for (out, weight) in panel.iter_mut().zip(weights) {
                out.0
                    .as_flattened_mut()
                    .iter_mut()
                    .for_each(|x| *x *= weight);
            }
        });
    }

    /// Columns `64 · at` and those beside them, of some rows.
    fn panel(&self, at: usize, depth: &Range<usize>) -> &[Lines<TILE_LINES>] {
        &self.panels[at * self.n..][depth.clone()]
    }

    /// Adds to `out` six columns from `first` on, of some rows. What stands for columns after the last one is of no
    /// use: no sums are kept of it.
    #[inline(always)]
    fn strip(&self, first: usize, depth: &Range<usize>, out: &mut Vec<[f32; TILE_ROWS]>) {
        let (panel, at) = (self.panel(first / WIDTH, depth), first % WIDTH);
        if at + TILE_ROWS <= WIDTH {
            let six = |lines: &Lines<TILE_LINES>| {
                *lines.0.as_flattened()[at..]
                    .first_chunk()
                    .unwrap_or(&[0.0; TILE_ROWS])
            };
            return out.extend(panel.iter().map(six));
        }
        // They lie in two panels.
        let columns: [(&[Lines<TILE_LINES>], usize); TILE_ROWS] = std::array::from_fn(|i| {
            let column = (first + i).min(self.cols - 1);
            (self.panel(column / WIDTH, depth), column % WIDTH)
        });
        let six = |t: usize| columns.map(|(panel, at)| panel[t].0.as_flattened()[at]);
        out.extend((0..depth.len()).map(six));
    }
}

/// `sum[i][j] += Σ x[t][rows.start + i] · x[t][j]` over the rows `t` of `x: [n, cols]`, for the columns
/// `j` from `rows.start` on; `sum: [rows.len(), cols]`, what is before these columns is left as it is or summed too.
///
/// Each element is one chain of fused multiply-adds in the order of the rows: it does not depend on the
/// CPU, on `rows`, or on how the rows of `x` are spread over calls.
///
/// # Panics
/// When `rows` leaves the columns, or the lengths do not fit.
pub fn add_outer_products(backend: Backend, x: &Columns, rows: Range<usize>, sum: &mut [f32]) {
    assert!(rows.end <= x.cols, "rows {rows:?} of {}", x.cols);
    assert_eq!(sum.len(), rows.len() * x.cols, "sums of rows {rows:?}");
    backend.run(Outer { x, rows, sum });
}

struct Outer<'a> {
    x: &'a Columns,
    rows: Range<usize>,
    sum: &'a mut [f32],
}

impl Kernel for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, rows, sum } = self;
        let mut left = Vec::new();
        for first in (0..x.n).step_by(DEPTH) {
            let depth = first..x.n.min(first + DEPTH);
            left.clear();
            for first in rows.clone().step_by(TILE_ROWS) {
                x.strip(first, &depth, &mut left);
            }
            for at in rows.start / WIDTH..x.cols.div_ceil(WIDTH) {
                let (right, columns) =
                    (x.panel(at, &depth), at * WIDTH..x.cols.min((at + 1) * WIDTH));
                let strips = left.chunks_exact(depth.len());
                for (strip, sum) in strips.zip(sum.chunks_mut(TILE_ROWS * x.cols)) {
                    add_tile(s, strip, right, sum, x.cols, &columns);
                }
            }
        }
    }
}

/// Adds a register tile to `columns` of up to six rows of sums.
#[inline(always)]
fn add_tile<S: Simd>(
    s: S,
    left: &[[f32; TILE_ROWS]],
    right: &[Lines<TILE_LINES>],
    sum: &mut [f32],
    cols: usize,
    columns: &Range<usize>,
) {
    let mut tile = [Lines::ZERO; TILE_ROWS];
    for (tile, sum) in tile.iter_mut().zip(sum.chunks_exact(cols)) {
        *tile = lines(&sum[columns.clone()]);
    }
    s.chains(left, right, &mut tile);
    for (tile, sum) in tile.iter().zip(sum.chunks_exact_mut(cols)) {
        sum[columns.clone()].copy_from_slice(&tile.0.as_flattened()[..columns.len()]);
    }
}

/// Up to 64 values, then zeros.
#[inline(always)]
fn lines(values: &[f32]) -> Lines<TILE_LINES> {
    let mut lines = Lines::ZERO;
    // Of a length that the compiler knows these are a few moves.
    match values.first_chunk::<WIDTH>() {
        Some(values) => lines.0.as_flattened_mut().copy_from_slice(values),
        None => lines.0.as_flattened_mut()[..values.len()].copy_from_slice(values),
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::{agree, noise};

    #[test]
    fn every_element_is_one_chain_whatever_is_split() {
        for (n, cols) in [(1, 1), (3, 7), (5, 64), (300, 70), (257, 150)] {
            let x = noise(n * cols, 1);
            let weights: Vec<f32> = (0..n).map(|t| 0.5 + (t % 3) as f32).collect();
            let first = cols / 3;
            let chain = |i: usize, j: usize| {
                let rows = x.chunks(cols).zip(&weights);
                rows.fold(0.5, |sum, (x, w)| (w * x[i]).mul_add(w * x[j], sum))
            };
            let expected: Vec<f32> = (first..cols)
                .flat_map(|i| (first..cols).map(move |j| (i, j)))
                .map(|(i, j)| chain(i, j))
                .collect();
            agree("outer products", |backend| {
                let mut sum = vec![0.5; (cols - first) * cols];
                // Over whatever was there.
                let mut columns = Columns::default();
                columns.set(&noise(7 * 200, 2), 200, &[]);
                for part in [0..n / 2, n / 2..n] {
                    let rows = &x[part.start * cols..part.end * cols];
                    columns.set(rows, cols, &weights[part]);
                    add_outer_products(backend, &columns, first..cols, &mut sum);
                }
                let rows = sum.chunks_exact(cols);
                let found: Vec<f32> = rows.flat_map(|row| &row[first..]).copied().collect();
                assert!(found == expected, "{n} x {cols} on {}", backend.name());
                found
            });
        }
    }

    #[test]
    fn no_weights_are_ones() {
        let (x, mut a, mut b) = (noise(5 * 70, 1), Columns::default(), Columns::default());
        a.set(&x, 70, &[]);
        b.set(&x, 70, &[1.0; 5]);
        let values =
            |columns: &Columns| columns.panels.iter().flat_map(|p| p.0).collect::<Vec<_>>();
        assert_eq!(values(&a), values(&b));
    }
}
