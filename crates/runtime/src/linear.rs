//! Products of stored matrices with activations: one row through packed codes, many rows through
//! a GEMM on dequantized tiles. Neither depends on the number of threads.

use rayon::prelude::*;
use shardwright_quant::{Activation, Backend, Matrix, gemm, matvec};

/// Matrix rows that a task of [`matvecs`] aims at, as weights.
const WEIGHTS_PER_TASK: usize = 128 * 1024;

/// Below this many weights a second thread costs more than it brings.
const WEIGHTS_WORTH_A_THREAD: usize = 64 * 1024;

/// Matrix rows dequantized at a time. Fixed, so that results do not depend on anything else.
const TILE: usize = 128;

/// One matrix times one vector.
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub matrix: Matrix<'a>,
    /// `[cols]`.
    pub x: &'a Activation,
    /// `[rows]`.
    pub out: &'a mut [f32],
}

/// Computes all products, spread over the threads of the current pool.
pub fn matvecs<'a>(backend: Backend, products: impl IntoIterator<Item = Product<'a>>) {
    let mut tasks = Vec::new();
    let mut weights = 0;
    for Product { matrix, x, out } in products {
        weights += matrix.rows() * matrix.cols();
        let rows = (WEIGHTS_PER_TASK / matrix.cols())
            .next_multiple_of(4)
            .max(4);
        let parts = out.chunks_mut(rows).enumerate();
        tasks.extend(parts.map(|(i, out)| (matrix, x, i * rows, out)));
    }
    let run = |(matrix, x, first, out): (Matrix<'_>, &Activation, usize, &mut [f32])| {
        matvec(backend, &matrix, x, first..first + out.len(), out);
    };
    if weights < WEIGHTS_WORTH_A_THREAD {
        tasks.into_iter().for_each(run);
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(run);
    }
}

/// Buffers of [`Linear`]. They grow to the largest use and stay.
#[derive(Debug)]
pub struct Linear {
    /// Which instructions to use.
    pub backend: Backend,
    activation: Activation,
    tiles: Vec<f32>,
}

impl Linear {
    /// Empty buffers.
    pub fn new() -> Self {
        Self { backend: Backend::detect(), activation: Activation::new(), tiles: Vec::new() }
    }

    /// `out[i] = x · matrixᵢᵀ` for `x: [n, cols]`, `out[i]: [n, rowsᵢ]`.
    pub fn project<'a, const N: usize>(
        &mut self,
        x: &[f32],
        n: usize,
        products: [(Matrix<'a>, &'a mut Vec<f32>); N],
    ) {
        if n == 1 {
            self.activation.set(self.backend, x);
            let x = &self.activation;
            matvecs(
                self.backend,
                products.into_iter().map(|(matrix, out)| {
                    out.resize(matrix.rows(), 0.0);
                    Product { matrix, x, out }
                }),
            );
        } else {
            for (matrix, out) in products {
                out.resize(n * matrix.rows(), 0.0);
                self.matmul(x, n, &matrix, out);
            }
        }
    }

    /// `out = x · matrixᵀ` for `x: [n, cols]`, `out: [n, rows]`.
    pub fn matmul(&mut self, x: &[f32], n: usize, matrix: &Matrix<'_>, out: &mut [f32]) {
        let (rows, cols, backend) = (matrix.rows(), matrix.cols(), self.backend);
        self.tiles.resize(n * rows, 0.0);
        let tiles = self.tiles.par_chunks_mut(n * TILE).enumerate();
        tiles.for_each_init(Vec::new, |weights, (i, tile)| {
            let range = i * TILE..rows.min((i + 1) * TILE);
            weights.resize(range.len() * cols, 0.0);
            matrix.dequantize(backend, range, weights);
            gemm(x, weights, cols, tile);
        });
        let tiles = &self.tiles;
        out.par_chunks_mut(rows)
            .with_min_len(16)
            .enumerate()
            .for_each(|(row, out)| {
                for (i, out) in out.chunks_mut(TILE).enumerate() {
                    let start = i * TILE * n + row * out.len();
                    out.copy_from_slice(&tiles[start..start + out.len()]);
                }
            });
    }
}
