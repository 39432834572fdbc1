//! Sums of outer products.

use std::ops::Range;

use crate::float::padded;
use crate::kernel::{Backend, Kernel, LANES, Lines, Simd, TILE_LINES, TILE_ROWS};

/// Rows that are taken together: their columns stay in the first cache.
const DEPTH: usize = 256;

/// Columns of a register tile.
const WIDTH: usize = TILE_LINES * LANES;

/// `sum[i][j] += Σ x[t][rows.start + i] · x[t][j]` over the rows `t` of `x: [n, cols]`, for the columns
/// `j` from `rows.start` on; `sum: [rows.len(), cols]` keeps what is before them.
///
/// Each element is one chain of fused multiply-adds in the order of the rows: it does not depend on the
/// CPU, on `rows`, or on how the rows of `x` are spread over calls.
///
/// # Panics
/// When `rows` leaves the columns, or the lengths do not fit.
pub fn add_outer_products(
    backend: Backend,
    x: &[f32],
    cols: usize,
    rows: Range<usize>,
    sum: &mut [f32],
) {
    assert!(cols > 0 && x.len().is_multiple_of(cols), "{} values in rows of {cols}", x.len());
    assert!(rows.end <= cols, "rows {rows:?} of {cols}");
    assert_eq!(sum.len(), rows.len() * cols, "sums of rows {rows:?}");
    backend.run(Outer { x, cols, rows, sum });
}

struct Outer<'a> {
    x: &'a [f32],
    cols: usize,
    rows: Range<usize>,
    sum: &'a mut [f32],
}

impl Kernel for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { x, cols, rows, sum } = self;
        let (mut left, mut right) = (Vec::new(), Vec::new());
        for x in x.chunks(DEPTH * cols) {
            let depth = x.len() / cols;
            left.clear();
            for first in rows.clone().step_by(TILE_ROWS) {
                let columns = first..rows.end.min(first + TILE_ROWS);
                left.extend(x.chunks_exact(cols).map(|x| padded(&x[columns.clone()])));
            }
            for first in (rows.start..cols).step_by(WIDTH) {
                let columns = first..cols.min(first + WIDTH);
                right.clear();
                right.extend(x.chunks_exact(cols).map(|x| lines(&x[columns.clone()])));
                let panels = left.chunks_exact(depth);
                for (panel, sum) in panels.zip(sum.chunks_mut(TILE_ROWS * cols)) {
                    add_tile(s, panel, &right, sum, cols, &columns);
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
    lines.0.as_flattened_mut()[..values.len()].copy_from_slice(values);
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
            let first = cols / 3;
            let chain = |i: usize, j: usize| {
                let rows = x.chunks(cols);
                rows.fold(0.5, |sum, x| x[i].mul_add(x[j], sum))
            };
            let expected: Vec<f32> = (first..cols)
                .flat_map(|i| (0..cols).map(move |j| (i, j)))
                .map(|(i, j)| if j < first { 0.5 } else { chain(i, j) })
                .collect();
            agree("outer products", |backend| {
                let mut sum = vec![0.5; (cols - first) * cols];
                let (before, after) = x.split_at(n / 2 * cols);
                add_outer_products(backend, before, cols, first..cols, &mut sum);
                add_outer_products(backend, after, cols, first..cols, &mut sum);
                assert!(sum == expected, "{n} x {cols} on {}", backend.name());
                sum
            });
        }
    }
}
