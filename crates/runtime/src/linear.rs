//! Products of stored matrices with activations: one row through packed codes, many rows through
//! a GEMM on dequantized tiles, or each as if it were alone. None depends on the number of threads.

use rayon::prelude::*;
use shardwright_quant::{Activation, Backend, Matrix, gemm, matvec};

use crate::block::capture::{Captures, InputSite};
use crate::error::{Result, RuntimeError};

/// Weights that a task of one-row products aims at.
const WEIGHTS_PER_TASK: usize = 128 * 1024;

/// Below this many weights a second thread costs more than it brings.
const WEIGHTS_WORTH_A_THREAD: usize = 64 * 1024;

/// Matrix rows dequantized at a time. Fixed, so that results do not depend on anything else.
const TILE: usize = 128;

/// Rows times one matrix: `out = x · matrixᵀ`.
pub struct Product<'a> {
    /// `[rows, cols]`.
    pub matrix: Matrix<'a>,
    /// `[n, cols]`.
    pub x: &'a [f32],
    /// `[n, rows]`.
    pub out: &'a mut [f32],
}

/// What multiplies. Its buffers grow to the largest use and stay.
#[derive(Debug)]
pub struct Linear {
    /// Which instructions to use.
    pub backend: Backend,
    /// Inputs of matrices, where someone asks for them.
    pub captures: Captures,
    /// Many rows give what each would give alone, to the bit.
    pub row_by_row: bool,
    activations: Vec<Activation>,
    tiles: Vec<f32>,
}

impl Linear {
    /// Empty buffers.
    pub fn new() -> Self {
        Self {
            backend: Backend::detect(),
            captures: Captures::default(),
            row_by_row: false,
            activations: Vec::new(),
            tiles: Vec::new(),
        }
    }

    /// `outs[i] = x · matrixᵢᵀ` for `x: [n, cols]`, `outs[i]: [n, rowsᵢ]`, which grow as needed.
    /// `x` is kept as the input of `site` where someone asks for it.
    pub fn project<'a, const N: usize>(
        &mut self,
        site: impl Into<Option<InputSite>>,
        x: &'a [f32],
        products: [(Matrix<'a>, &'a mut Vec<f32>); N],
    ) {
        let cols = products.first().map_or(1, |(matrix, _)| matrix.cols());
        if let Some(site) = site.into() {
            self.captures.keep(site, cols, x);
        }
        let sized = products.into_iter().map(|(matrix, out)| {
            out.resize(x.len() / cols * matrix.rows(), 0.0);
            Product { matrix, x, out }
        });
        self.compute(sized.collect());
    }

    /// Computes all products, spread over the threads of the current pool.
    pub fn compute(&mut self, products: Vec<Product<'_>>) {
        let one_row = |product: &Product<'_>| product.x.len() == product.matrix.cols();
        let (single, many): (Vec<_>, Vec<_>) = products.into_iter().partition(one_row);
        self.one_row(single);
        for product in many {
            self.many_rows(product);
        }
    }

    /// Products of one row each, all of them spread over the threads together.
    fn one_row(&mut self, products: Vec<Product<'_>>) {
        let inputs = self.prepare(&products);
        let (backend, activations) = (self.backend, &self.activations);
        let (mut tasks, mut weights) = (Vec::new(), 0);
        for (Product { matrix, out, .. }, input) in products.into_iter().zip(inputs) {
            weights += matrix.rows() * matrix.cols();
            let rows = WEIGHTS_PER_TASK / matrix.cols();
            let rows = rows.next_multiple_of(4).max(4);
            let slices = out.chunks_mut(rows).enumerate();
            tasks.extend(slices.map(|(i, out)| (matrix, &activations[input], i * rows, out)));
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

    /// Prepares the input of every product; those that follow each other with the same one share
    /// it. Gives each product's place in `self.activations`.
    fn prepare(&mut self, products: &[Product<'_>]) -> Vec<usize> {
        let mut places: Vec<usize> = Vec::with_capacity(products.len());
        let mut used = 0;
        for (i, product) in products.iter().enumerate() {
            if i == 0 || !std::ptr::eq(products[i - 1].x, product.x) {
                self.set_activation(used, product.x);
                used += 1;
            }
            places.push(used - 1);
        }
        places
    }

    /// Prepares one row.
    fn set_activation(&mut self, place: usize, x: &[f32]) {
        if place == self.activations.len() {
            self.activations.push(Activation::new());
        }
        self.activations[place].set(self.backend, x);
    }

    fn many_rows(&mut self, Product { matrix, x, out }: Product<'_>) {
        let (rows, cols, backend) = (matrix.rows(), matrix.cols(), self.backend);
        let n = x.len() / cols;
        if self.row_by_row {
            for (place, x) in x.chunks_exact(cols).enumerate() {
                self.set_activation(place, x);
            }
        }
        // By tile first, so that each thread writes one piece: [tile][n][rows of the tile].
        self.tiles.resize(n * rows, 0.0);
        let tiles = self.tiles.par_chunks_mut(n * TILE).enumerate();
        let (row_by_row, activations) = (self.row_by_row, &self.activations[..]);
        tiles.for_each_init(Vec::new, |weights, (i, tile)| {
            let range = i * TILE..rows.min((i + 1) * TILE);
            if row_by_row {
                // The tile's codes stay near while all rows pass.
                for (x, out) in activations.iter().zip(tile.chunks_exact_mut(range.len())) {
                    matvec(backend, &matrix, x, range.clone(), out);
                }
                return;
            }
            weights.resize(range.len() * cols, 0.0);
            matrix.dequantize(backend, range, weights);
            gemm(x, weights, cols, tile);
        });
        // Then by row. The last tile may be narrower; its pieces lie closer together.
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

/// Threads that compute.
///
/// # Errors
/// When the operating system has no more of them.
pub fn thread_pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .thread_name(|i| format!("compute-{i}"))
        .build()
        .map_err(|e| RuntimeError::Threads(e.to_string()))
}
