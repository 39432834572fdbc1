//! Blocks of GGUF, in whose files heads may be in another order than in a checkpoint.

use shardwright_quant::Ggml;
use shardwright_quant::foreign::{self, Rect};

use super::{Decoding, Fetch};
use crate::decoder::Decoder;
use crate::error::Result;

impl Decoding<'_> {
    /// The blocks of a rectangle of whole ones, its rows in the order of a checkpoint.
    pub(super) fn blocks(
        &self,
        kind: Ggml,
        matrix: u64,
        rect: &Rect,
        fetch: &mut Fetch<'_>,
    ) -> Result<Vec<u8>> {
        let bytes_of = |values: u64| values / kind.block_values() * kind.block_bytes();
        let row_len = bytes_of(self.cols);
        let cols = bytes_of(rect.cols.start)..bytes_of(rect.cols.end);
        let mut read = |rows| self.parts[0].bytes(matrix, row_len, (rows, cols.clone()), fetch);
        if self.in_order() {
            return read(rect.rows.clone());
        }
        let places: Vec<u64> = rect.rows.clone().map(|row| self.stored_row(row)).collect();
        let first = places.iter().copied().min().unwrap_or_default();
        let end = places.iter().max().map_or(first, |last| last + 1);
        let mut bytes = Vec::with_capacity(places.len() * (cols.end - cols.start) as usize);
        if (end - first) as usize > places.len() {
            // Others lie between them.
            for place in places {
                bytes.extend(read(place..place + 1)?);
            }
            return Ok(bytes);
        }
        let stored = read(first..end)?;
        let width = stored.len() / places.len().max(1);
        for place in places {
            let start = (place - first) as usize * width;
            bytes.extend(&stored[start..start + width]);
        }
        Ok(bytes)
    }

    /// Whether rows are stored as they follow one another in a checkpoint.
    const fn in_order(&self) -> bool {
        match self.decoder {
            Decoder::Gguf { heads, .. } => heads.is_none(),
            Decoder::Tiled { columns, .. } => *columns,
            _ => true,
        }
    }

    /// Where a row of the checkpoint's order is stored.
    const fn stored_row(&self, row: u64) -> u64 {
        match *self.decoder {
            Decoder::Gguf { heads: Some(heads), .. } => {
                foreign::interleaved_row(row, self.rows / heads)
            }
            Decoder::Tiled { keys, heads, first, columns: false, .. } => {
                Order { keys, heads, first }.place(row, self.rows)
            }
            _ => row,
        }
    }
}

/// The heads of [`Decoder::Tiled`].
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) keys: u64,
    pub(super) heads: u64,
    pub(super) first: u64,
}

impl Order {
    /// Where a row or column of `all` is stored.
    pub(super) const fn place(self, at: u64, all: u64) -> u64 {
        let Self { keys, heads, first } = self;
        if at < first {
            return at;
        }
        first + foreign::tiled_row(at - first, (all - first) / heads, keys, heads / keys)
    }
}
