//! Products of stored matrices with activations, spread over threads. A row has the same bits whatever
//! rows go with it and whatever threads there are.

use rayon::prelude::*;
use shardwright_quant::{Activations, Backend, Copying, Encoding, Matrix, Outputs, matmul};

use crate::block::capture::{Captures, InputSite};
use crate::block::ops::threads_for;
use crate::threads::share_out;

/// Below this many multiplications a second thread costs more than it brings.
const WORTH_A_THREAD: usize = 64 * 1024;

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
    activations: Vec<Activations>,
}

impl Linear {
    /// Empty buffers.
    pub fn new() -> Self {
        Self { backend: Backend::detect(), captures: Captures::default(), activations: Vec::new() }
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

    /// Computes all products. Each thread of the current pool takes an equal share of the matrices'
    /// rows, in order.
    pub fn compute(&mut self, products: Vec<Product<'_>>) {
        let inputs = self.prepare(&products);
        let pieces: Vec<_> = products
            .into_iter()
            .zip(inputs)
            .filter(|(product, _)| !product.x.is_empty())
            .map(|(Product { matrix, out, .. }, input)| {
                let x = &self.activations[input];
                Piece { matrix, x, first: 0, out: Outputs::new(out, x.n()) }
            })
            .collect();
        let total: usize = pieces.iter().map(Piece::cost).sum();
        let threads = if total < WORTH_A_THREAD { 1 } else { rayon::current_num_threads() };
        let run = |pieces: Vec<Piece<'_>>| pieces.into_iter().for_each(Piece::run);
        if threads == 1 {
            run(pieces);
        } else {
            let shares = share(pieces, total.div_ceil(threads));
            share_out(shares, run);
        }
    }

    /// Prepares the input of every product; those that follow each other with the same one share
    /// it. Gives each product's place in `self.activations`.
    fn prepare(&mut self, products: &[Product<'_>]) -> Vec<usize> {
        let mut places: Vec<usize> = Vec::with_capacity(products.len());
        let mut used = 0;
        for (i, product) in products.iter().enumerate() {
            if i == 0 || !std::ptr::eq(products[i - 1].x, product.x) {
                if used == self.activations.len() {
                    self.activations.push(Activations::new());
                }
                set(&mut self.activations[used], self.backend, product);
                used += 1;
            }
            places.push(used - 1);
        }
        places
    }
}

/// Copies the input of a product, on several threads if that is worth it.
fn set(activations: &mut Activations, backend: Backend, product: &Product<'_>) {
    let (x, cols) = (product.x, product.matrix.cols());
    match threads_for(x.len()) {
        1 => activations.set(backend, x, cols),
        threads => {
            let parts = activations.set_in_parts(backend, x, cols, threads);
            parts.into_par_iter().with_max_len(1).for_each(Copying::run);
        }
    }
}

/// Rows of a matrix, and the outputs they give.
struct Piece<'a> {
    matrix: Matrix<'a>,
    x: &'a Activations,
    first: usize,
    /// `[n, rows]`.
    out: Outputs<'a>,
}

impl Piece<'_> {
    /// Multiplications.
    fn cost(&self) -> usize {
        self.row_cost() * self.out.width()
    }

    fn row_cost(&self) -> usize {
        self.matrix.cols() * self.x.n()
    }

    /// The first rows, which cost `room` or what the last step takes beyond it, and the others if any.
    fn cut(self, room: usize) -> (Self, Option<Self>) {
        // Rows that are decoded together.
        let step = if matches!(self.matrix.encoding(), Encoding::Trellis(_)) { 64 } else { 16 };
        let rows = room.div_ceil(self.row_cost()).next_multiple_of(step);
        if rows >= self.out.width() {
            return (self, None);
        }
        let Self { matrix, x, first, out } = self;
        let (now, later) = out.split_at(rows);
        let later = Self { matrix, x, first: first + rows, out: later };
        (Self { matrix, x, first, out: now }, Some(later))
    }

    fn run(self) {
        let rows = self.first..self.first + self.out.width();
        matmul(&self.matrix, self.x, rows, self.out);
    }
}

/// Cuts pieces, in order, into shares that cost about `size` each.
fn share(pieces: Vec<Piece<'_>>, size: usize) -> Vec<Vec<Piece<'_>>> {
    let (mut shares, mut share, mut room) = (Vec::new(), Vec::new(), size);
    for piece in pieces {
        let mut rest = Some(piece);
        while let Some(piece) = rest.take() {
            let (now, later) = piece.cut(room);
            room = room.saturating_sub(now.cost());
            share.push(now);
            if room == 0 {
                shares.push(std::mem::take(&mut share));
                room = size;
            }
            rest = later;
        }
    }
    shares.push(share);
    shares
}
