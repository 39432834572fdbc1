//! The Cholesky factorization from the last column to the first, in blocks.

use rayon::prelude::*;

use super::update::{DEPTH, Line, Panels};
use crate::kernel::{Backend, Kernel, LANES, Simd};

/// Rows that are factored together.
const BLOCK: usize = 128;

/// Rows of a block that one task takes what is below off: whole panels of [`Panels`].
const TASK: usize = 24;

/// Replaces the lower triangle of a symmetric `H`, `[cols, cols]`, by `Rᵀ` with `H = R · Rᵀ`, `R` upper
/// triangular. What is above the diagonal becomes meaningless. False when `H` is not positive
/// definite, as far as its rounding lets one say. `lines` are `[cols, cols / 16]`, `cols` a multiple of 16.
///
/// Nearly all of its time is spent in [`Subtract`], which is spread over the current pool; no sum depends on how.
pub fn factor(backend: Backend, lines: &mut [Line], cols: usize) -> bool {
    let (width, mut corner) = (cols / LANES, Corner::default());
    // Blocks of rows from the last to the first. When a block's turn comes, the rows below it hold
    // the factor already; what they explain is taken off, the corner is factored alone, and the
    // columns before the corner are solved with it.
    for start in (0..cols).step_by(BLOCK).rev() {
        let end = (start + BLOCK).min(cols);
        let (above, below) = lines.split_at_mut(end * width);
        let block = &mut above[start * width..];
        let floor = floor(block, width, start);
        let tasks = block.par_chunks_mut(TASK * width).enumerate();
        tasks.for_each(|(task, rows)| {
            backend.run(Subtract { rows, below: &*below, width, first: start + task * TASK });
        });
        if !backend.run(Finish { corner: &mut corner, block, width, start, floor: &floor }) {
            return false;
        }
    }
    true
}

/// Takes from `rows`, the first of which has number `first`, what the rows `below` explain:
/// `rows[k][j] -= Σ below[m][k] · below[m][j]`.
struct Subtract<'a> {
    rows: &'a mut [Line],
    below: &'a [Line],
    width: usize,
    first: usize,
}

impl Kernel for Subtract<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { rows: block, below, width, first } = self;
        let (rows, mut panels) = (block.len() / width, Panels::default());
        // A product of panels: sixteen columns of `below` at a time, and of those only the ones at or
        // before the diagonal, since nothing right of it is read again.
        let mut strip = [[0.0; LANES]; DEPTH];
        for below in below.chunks(DEPTH * width) {
            let depth = below.len() / width;
            let values = below.as_flattened();
            panels.set(depth, rows, |m, k| -values[m * width * LANES + first + k]);
            for at in 0..(first + rows).div_ceil(LANES) {
                for (line, row) in strip.iter_mut().zip(below.chunks_exact(width)) {
                    *line = row[at];
                }
                panels.add(s, &strip[..depth], &mut block[at..], width);
            }
        }
    }
}

/// The least pivot of each row of `block` that is more than rounding.
fn floor(block: &[Line], width: usize, start: usize) -> [f32; BLOCK] {
    let mut floor = [0.0; BLOCK];
    let rows = block.as_flattened().chunks_exact(width * LANES);
    for ((k, row), floor) in rows.enumerate().zip(&mut floor) {
        *floor = row[start + k] * f32::EPSILON;
    }
    floor
}

/// Factors the corner of a block from which all below is taken off, and solves the columns before it.
struct Finish<'a> {
    corner: &'a mut Corner,
    block: &'a mut [Line],
    width: usize,
    start: usize,
    floor: &'a [f32; BLOCK],
}

impl Kernel for Finish<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> bool {
        let Self { corner, block, width, start, floor } = self;
        if !corner.factor(block, width, start, floor) {
            return false;
        }
        for strip in 0..start / LANES {
            corner.solve(s, &mut block[strip..], width);
        }
        true
    }
}

/// The block on the diagonal.
#[derive(Default)]
struct Corner {
    rows: usize,
    /// `Rᵀ`, `[rows, rows]`.
    values: Vec<f32>,
    /// `-R`, `[rows, rows]`.
    negative: Vec<f32>,
}

impl Corner {
    /// Factors columns `start ..` of `block`.
    #[inline(always)]
    fn factor(
        &mut self,
        block: &mut [Line],
        width: usize,
        start: usize,
        floor: &[f32; BLOCK],
    ) -> bool {
        let rows = block.len() / width;
        self.rows = rows;
        self.values.clear();
        for row in block.as_flattened().chunks_exact(width * LANES) {
            self.values.extend(&row[start..start + rows]);
        }
        // Row `k` loses what the rows after it explain, each with the weight that its own factor
        // gives it; what is left on the diagonal is the pivot's square.
        for k in (0..rows).rev() {
            let (above, below) = self.values.split_at_mut((k + 1) * rows);
            let row = &mut above[k * rows..];
            for other in below.chunks_exact(rows) {
                let factor = -other[k];
                for (x, y) in row[..=k].iter_mut().zip(other) {
                    *x = factor.mul_add(*y, *x);
                }
            }
            // Not a number counts as too small.
            let enough = row[k] > floor[k] && row[k].is_finite();
            if !enough {
                return false;
            }
            let pivot = row[k].sqrt();
            row[..k].iter_mut().for_each(|x| *x /= pivot);
            row[k] = pivot;
        }
        self.keep(block, width, start);
        true
    }

    /// Stores the factor in `block`, and its transpose here.
    #[inline(always)]
    fn keep(&mut self, block: &mut [Line], width: usize, start: usize) {
        let rows = self.rows;
        let target = block.as_flattened_mut().chunks_exact_mut(width * LANES);
        for (row, target) in self.values.chunks_exact(rows).zip(target) {
            target[start..start + rows].copy_from_slice(row);
        }
        self.negative.clear();
        for k in 0..rows {
            self.negative
                .extend(self.values.iter().skip(k).step_by(rows).map(|x| -x));
        }
    }

    /// Solves for sixteen columns before the block: `x[k] = (x[k] - Σ R[k][m] · x[m]) / R[k][k]`, the
    /// last row first. Row `k` is `x[k · step]`.
    #[inline(always)]
    fn solve<S: Simd>(&self, s: S, x: &mut [Line], step: usize) {
        let rows = self.rows;
        // Back substitution: each row needs only those after it, which are solved already. A lane is
        // a column, so no sum crosses lanes.
        let mut solved = [[0.0; LANES]; BLOCK];
        for (k, factors) in self.negative.chunks_exact(rows).enumerate().rev() {
            let mut sum = s.load(&x[k * step]);
            for (factor, line) in factors[k + 1..].iter().zip(&solved[k + 1..]) {
                sum = s.mul_add(s.splat(*factor), s.load(line), sum);
            }
            let value = s.div(sum, s.splat(-factors[k]));
            s.store(value, &mut solved[k]);
            s.store(value, &mut x[k * step]);
        }
    }
}
