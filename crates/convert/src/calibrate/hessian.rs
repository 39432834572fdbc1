//! Second moments of what goes into a matrix.

use rayon::prelude::*;
use shardwright_quant::{Backend, Columns, add_outer_products};

/// Rows of a Gram matrix that one task computes.
const TILE: usize = 48;
/// Rows that are mirrored together, spread over threads.
const BAND: usize = 512;
/// Values of a line of memory.
const LINE: usize = 16;
/// Added to the diagonal, as a share of its mean, where there are as many columns as rows: what
/// few rows happen to have in common says little about others. It falls with the number of rows.
const SHRINKAGE: f64 = 0.5;

/// `Σ ω² x xᵀ` over rows `x`, as they come.
#[derive(Clone, Debug)]
pub struct FullSum {
    cols: usize,
    /// `[cols, cols]`, of which each tile of rows is filled from its own first column on, or some before.
    sum: Vec<f32>,
    /// `Σ ω²`.
    weight: f64,
    /// `Σ ω⁴`: with [`Self::weight`], how many rows of equal weight tell as much.
    weight_sq: f64,
}

impl FullSum {
    /// Of rows of `cols` values, none yet.
    pub fn new(cols: usize) -> Self {
        Self::in_buffer(cols, vec![0.0; cols * cols])
    }

    /// The same in `sum`, `cols²` values, whatever it holds. The work is spread over the current pool.
    ///
    /// # Panics
    /// When it has another length.
    pub fn in_buffer(cols: usize, mut sum: Vec<f32>) -> Self {
        assert_eq!(sum.len(), cols * cols, "sums of {cols} inputs");
        sum.par_chunks_mut(TILE * cols.max(1))
            .for_each(|sums| sums.fill(0.0));
        Self { cols, sum, weight: 0.0, weight_sq: 0.0 }
    }

    /// Bytes in memory.
    pub const fn byte_len(cols: usize) -> usize {
        4 * cols * cols
    }

    /// Adds `rows: [n, cols]`, each times its weight `ω`, or all as they are when there are none; they are laid out in
    /// `columns`, which all sums may share. Depends neither on the number of threads nor on the CPU; the work is spread
    /// over the current pool.
    pub fn add(&mut self, rows: &[f32], weights: &[f32], columns: &mut Columns) {
        let cols = self.cols;
        for row in 0..rows.len() / cols {
            let square = f64::from(weights.get(row).copied().unwrap_or(1.0)).powi(2);
            self.weight += square;
            self.weight_sq += square * square;
        }
        columns.set(rows, cols, weights);
        let (backend, columns) = (Backend::detect(), &*columns);
        let tiles = self.sum.par_chunks_mut(TILE * cols).enumerate();
        tiles.for_each(|(tile, sum)| {
            let first = tile * TILE;
            add_outer_products(backend, columns, first..first + sum.len() / cols, sum);
        });
    }

    /// The mean, `[cols, cols]`, its diagonal raised by what [`SHRINKAGE`] says; none without rows. The work is spread
    /// over the current pool.
    pub fn into_mean(mut self) -> Option<Vec<f32>> {
        if self.weight == 0.0 {
            return None;
        }
        let (cols, scale) = (self.cols, (1.0 / self.weight) as f32);
        self.sum.par_iter_mut().for_each(|sum| *sum *= scale);
        mirror(&mut self.sum, cols);
        let trace: f64 = (0..cols).map(|i| f64::from(self.sum[i * (cols + 1)])).sum();
        // Mean of the diagonal, times columns per row.
        let raise = SHRINKAGE * trace * self.weight_sq / (self.weight * self.weight);
        for i in 0..cols {
            self.sum[i * (cols + 1)] += raise as f32;
        }
        Some(self.sum)
    }
}

/// Puts what is above the diagonal of `[cols, cols]` below it too, over the threads of the current pool.
fn mirror(sum: &mut [f32], cols: usize) {
    for first in (0..cols).step_by(BAND) {
        // Rows before the band hold what the band's have left of its own square.
        let (above, band) = sum.split_at_mut(first * cols);
        let band = &mut band[..BAND.min(cols - first) * cols];
        band.par_chunks_mut(LINE * cols)
            .enumerate()
            .for_each(|(at, rows)| {
                let own = first + at * LINE;
                let count = rows.len() / cols;
                for (col, above) in above.chunks_exact(cols).enumerate() {
                    // Neighbours in a row above are one line of memory: all of it is used while it is at hand.
                    for (row, value) in above[own..own + count].iter().enumerate() {
                        rows[row * cols + col] = *value;
                    }
                }
            });
        for row in 0..band.len() / cols {
            for col in 0..row {
                band[row * cols + first + col] = band[col * cols + first + row];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, ArrayView2, Axis, aview1};

    use super::*;

    #[test]
    fn what_is_above_the_diagonal_is_below_it_too() {
        for cols in [1, 37, 512, 1100] {
            let mut sum: Vec<f32> = (0..cols * cols).map(|at| at as f32).collect();
            mirror(&mut sum, cols);
            for (row, values) in sum.chunks_exact(cols).enumerate() {
                let expected = (0..cols).map(|col| (row.min(col) * cols + row.max(col)) as f32);
                assert!(values.iter().copied().eq(expected), "row {row} of {cols}");
            }
        }
    }

    #[test]
    fn the_mean_is_that_of_weighted_outer_products_with_a_raised_diagonal() {
        let cols = 160;
        let rows: Vec<f32> = (0..5 * cols)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
            .collect();
        let weights = [1.0, 0.5, 0.0, 2.0, 1.5];
        let mut gram = FullSum::in_buffer(cols, vec![7.0; cols * cols]);
        let mut columns = Columns::default();
        gram.add(&rows[..2 * cols], &weights[..2], &mut columns);
        gram.add(&rows[2 * cols..], &weights[2..], &mut columns);
        let mean = Array2::from_shape_vec((cols, cols), gram.into_mean().unwrap()).unwrap();
        let total: f32 = weights.iter().map(|w| w * w).sum();
        let x = ArrayView2::from_shape((5, cols), &rows).unwrap();
        let x = &x * &aview1(&weights).insert_axis(Axis(1));
        let mut expected = x.t().dot(&x) / total;
        let squares: f32 = weights.iter().map(|w| w.powi(4)).sum();
        let raise = SHRINKAGE as f32 * expected.diag().sum() * squares / (total * total);
        expected.diag_mut().mapv_inplace(|second| second + raise);
        for ((at, found), expected) in mean.indexed_iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-5 * expected.abs() + 1e-6,
                "{at:?}: {found} {expected}"
            );
        }
        assert!(FullSum::new(4).into_mean().is_none());
    }
}
