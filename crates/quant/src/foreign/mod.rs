//! Values of matrices that others quantized: arithmetic on bytes that somebody else has read. What
//! each scheme says: `docs/FORMAT.md`, section "Decoders"; the blocks of GGUF are in
//! [`Ggml`](crate::Ggml).
//!
//! A caller reads, of each stored tensor, the bytes for a [`Rect`] and hands them over packed, row
//! by row. Every function fills `out`, the values of the rectangle in rows.

mod codes;
mod packed;
mod scaled;
mod transposed;

use std::ops::Range;

pub use codes::{Codes, biases, by_row, neighbours, unpaired};
pub use packed::{PackedRows, affine, middle_biases, symmetric, zero_points};
pub use scaled::{MXFP4_GROUP, NVFP4_GROUP, fp4, scaled};
pub use transposed::{AWQ_ORDER, Grid, WORD_ORDER, awq, gptq, word_unit};

/// Some columns of some rows of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rect {
    /// Rows.
    pub rows: Range<u64>,
    /// Columns.
    pub cols: Range<u64>,
}

impl Rect {
    /// Columns in it.
    pub const fn width(&self) -> usize {
        (self.cols.end - self.cols.start) as usize
    }

    /// Values in it.
    pub const fn len(&self) -> usize {
        (self.rows.end - self.rows.start) as usize * self.width()
    }

    /// Whether it holds no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The groups of columns that its columns lie in.
    pub const fn groups(&self, group_size: u64) -> Range<u64> {
        self.cols.start / group_size..self.cols.end.div_ceil(group_size)
    }

    /// Each of [`Self::groups`], counted from the first, with its columns, counted from the first.
    fn runs(&self, group_size: u64) -> impl Iterator<Item = (usize, Range<usize>)> {
        let cols = self.cols.clone();
        self.groups(group_size).enumerate().map(move |(at, group)| {
            let start = (group * group_size).max(cols.start) - cols.start;
            let end = ((group + 1) * group_size).min(cols.end) - cols.start;
            (at, start as usize..end as usize)
        })
    }
}

/// Where llama.cpp puts a row of a head of `dim` rows: those of its two halves in turn
/// (`convert_hf_to_gguf.py`, `LlamaModel.permute`).
pub const fn interleaved_row(row: u64, dim: u64) -> u64 {
    let (head, row, half) = (row / dim, row % dim, dim / 2);
    head * dim + row % half * 2 + row / half
}

/// Where llama.cpp puts row `row` of heads of `dim` rows, of which `per_key` follow one another for each
/// of `keys` key heads: the first of every key head, then the second of each
/// (`convert_hf_to_gguf.py`, `_LinearAttentionVReorderBase`).
pub const fn tiled_row(row: u64, dim: u64, keys: u64, per_key: u64) -> u64 {
    let (head, row) = (row / dim, row % dim);
    (head % per_key * keys + head / per_key) * dim + row
}
