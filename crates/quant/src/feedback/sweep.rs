//! Rows of a matrix, sixteen side by side, and the feedback between their columns.

use std::ops::Range;

use super::HessianFactor;
use super::update::{DEPTH, Line, Panels};
use crate::kernel::{Kernel, LANES, Simd};

/// Rows of `cols` values as strips of sixteen rows, `[rows / 16, cols, 16]`: a row is a lane. Lanes
/// without a row are 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    cols: usize,
    lines: Vec<Line>,
}

impl Rows {
    /// Takes `x`, whole rows of `cols` values.
    pub fn set(&mut self, x: &[f32], cols: usize) {
        self.cols = cols;
        self.lines.clear();
        self.lines
            .resize(x.len().div_ceil(LANES * cols) * cols, [0.0; LANES]);
        let strips = self.lines.chunks_exact_mut(cols);
        for (strip, x) in strips.zip(x.chunks(LANES * cols)) {
            for (lane, row) in x.chunks_exact(cols).enumerate() {
                for (line, value) in strip.iter_mut().zip(row) {
                    line[lane] = *value;
                }
            }
        }
    }

    /// Takes the shape of `other` and its values.
    pub fn copy(&mut self, other: &Self) {
        self.cols = other.cols;
        self.lines.clone_from(&other.lines);
    }

    /// Columns.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Sixteen rows each.
    pub fn strips(&self) -> std::slice::ChunksExact<'_, Line> {
        self.lines.chunks_exact(self.cols)
    }

    /// Sixteen rows each.
    pub fn strips_mut(&mut self) -> std::slice::ChunksExactMut<'_, Line> {
        self.lines.chunks_exact_mut(self.cols)
    }

    /// `Σ weights[k] · value²` over all rows and columns `k`.
    pub fn weighted_squares(&self, weights: &[f32]) -> f64 {
        let mut sums = [0.0; LANES];
        for strip in self.strips() {
            for (line, weight) in strip.iter().zip(weights) {
                let weight = f64::from(*weight);
                for (sum, value) in sums.iter_mut().zip(line) {
                    *sum += weight * f64::from(*value) * f64::from(*value);
                }
            }
        }
        sums.iter().sum()
    }
}

/// Feedback in blocks of columns: what lies before a block is added by [`Self::before`], what lies
/// inside it by [`Self::inside`].
pub struct Sweep<'a> {
    feedback: &'a HessianFactor,
    panels: Panels,
}

impl<'a> Sweep<'a> {
    pub fn new(feedback: &'a HessianFactor) -> Self {
        Self { feedback, panels: Panels::default() }
    }

    /// `targets[k] += Σ F[j][k] · errors[j]` for `k` in `block` and all `j` before it.
    #[inline(always)]
    pub fn before<S: Simd>(
        &mut self,
        s: S,
        block: &Range<usize>,
        errors: &Rows,
        targets: &mut Rows,
    ) {
        // `targets[:, block] += errors[:, ..start] · F[..start, block]`, in panels of DEPTH rows of `F`
        // that all strips share while they lie in the cache. Each sum runs over ascending columns.
        for first in (0..block.start).step_by(DEPTH) {
            let depth = DEPTH.min(block.start - first);
            let feedback = self.feedback;
            self.panels
                .set(depth, block.len(), |j, k| feedback.row(block.start + k)[first + j]);
            for (errors, targets) in errors.strips().zip(targets.strips_mut()) {
                let errors = &errors[first..first + depth];
                self.panels.add(s, errors, &mut targets[block.clone()], 1);
            }
        }
    }

    /// `target + Σ F[j][k] · errors[j]` for `columns` of one strip, none of them behind `k`.
    #[inline(always)]
    pub fn inside<S: Simd>(
        &self,
        s: S,
        columns: Range<usize>,
        k: usize,
        errors: &[Line],
        target: &Line,
    ) -> S::F {
        let mut sum = s.load(target);
        for (factor, line) in self.feedback.row(k)[columns.clone()]
            .iter()
            .zip(&errors[columns])
        {
            sum = s.mul_add(s.splat(*factor), s.load(line), sum);
        }
        sum
    }
}

/// Columns of a block where nothing else asks for a size.
pub const BLOCK: usize = 128;

/// `y = x · (F + I)`.
pub struct Product<'a> {
    pub feedback: &'a HessianFactor,
    pub x: &'a Rows,
    pub y: &'a mut Rows,
}

impl Kernel for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // The same sweep with the weights in place of errors: `x · F`, then `+ x` by the copy.
        let mut sweep = Sweep::new(self.feedback);
        self.y.copy(self.x);
        for start in (0..self.feedback.cols).step_by(BLOCK) {
            let block = start..(start + BLOCK).min(self.feedback.cols);
            sweep.before(s, &block, self.x, self.y);
            for (x, y) in self.x.strips().zip(self.y.strips_mut()) {
                for k in block.clone() {
                    let sum = sweep.inside(s, start..k, k, x, &y[k]);
                    s.store(sum, &mut y[k]);
                }
            }
        }
    }
}
