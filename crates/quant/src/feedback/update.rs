//! `C += Aᵀ · B`, each element one chain of fused multiply-adds in the order of the rows.
//!
//! The order is what makes a result independent of the CPU, of blocks and of threads; the registers
//! are filled by taking several elements, never several parts of one sum.

use crate::kernel::{LANES, Simd};

/// Sixteen columns of a row.
pub type Line = [f32; LANES];

/// Columns of `A` that are taken together: as many sums of [`LANES`] columns of `B` as the registers
/// of every CPU hold.
const PANEL: usize = 6;

/// Rows of `A` and `B` that are taken together: a panel of `A` and a strip of `B` lie in the first
/// cache.
pub const DEPTH: usize = 256;

/// `A`, at most [`DEPTH`] rows, as panels: `PANEL` columns side by side, row after row.
#[derive(Default)]
pub struct Panels {
    values: Vec<[f32; PANEL]>,
    depth: usize,
    width: usize,
}

impl Panels {
    /// Takes `A = [depth, width]` with `at(row, column)`.
    #[inline(always)]
    pub fn set(&mut self, depth: usize, width: usize, at: impl Fn(usize, usize) -> f32) {
        (self.depth, self.width) = (depth, width);
        self.values.clear();
        for first in (0..width).step_by(PANEL) {
            let at = |row, i| if first + i < width { at(row, first + i) } else { 0.0 };
            let panel = (0..depth).map(|row| std::array::from_fn(|i| at(row, i)));
            self.values.extend(panel);
        }
    }

    /// `C += Aᵀ · B` for the sixteen columns `b = [depth, 16]`; row `i` of `C` is `c[i · step]`.
    #[inline(always)]
    pub fn add<S: Simd>(&self, s: S, b: &[Line], c: &mut [Line], step: usize) {
        assert_eq!(b.len(), self.depth, "rows of the factors");
        let panels = self.values.chunks_exact(self.depth.max(1));
        for (panel, first) in panels.zip((0..self.width).step_by(PANEL)) {
            let rows = PANEL.min(self.width - first);
            let mut sums = [s.splat(0.0); PANEL];
            for (i, sum) in sums[..rows].iter_mut().enumerate() {
                *sum = s.load(&c[(first + i) * step]);
            }
            sums = chains(s, panel, b, sums);
            for (i, sum) in sums[..rows].iter().enumerate() {
                s.store(*sum, &mut c[(first + i) * step]);
            }
        }
    }
}

/// `sums[i] += Σ a[m][i] · b[m]`.
#[inline(always)]
fn chains<S: Simd>(s: S, a: &[[f32; PANEL]], b: &[Line], mut sums: [S::F; PANEL]) -> [S::F; PANEL] {
    for (a, b) in a.iter().zip(b) {
        let b = s.load(b);
        for (sum, a) in sums.iter_mut().zip(a) {
            *sum = s.mul_add(s.splat(*a), b, *sum);
        }
    }
    sums
}
