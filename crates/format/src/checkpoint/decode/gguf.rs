//! Blocks of GGUF, and rows that llama.cpp interleaves.

use shardwright_quant::Ggml;

use super::{Decoding, Fetch, Rect};
use crate::error::Result;

impl Decoding<'_> {
    /// The values of whole blocks; with `heads`, of rows in the order of a checkpoint.
    pub(super) fn gguf(
        &self,
        kind: Ggml,
        heads: Option<u64>,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [part] = &self.parts[..] else { return Ok(()) };
        let bytes_of = |values: u64| values / kind.block_values() * kind.block_bytes();
        let row_len = bytes_of(self.cols);
        let cols = bytes_of(rect.cols.start)..bytes_of(rect.cols.end);
        let Some(heads) = heads else {
            let bytes = part.bytes(rect.matrix, row_len, (rect.rows.clone(), cols), fetch)?;
            kind.decode(&bytes, out);
            return Ok(());
        };
        for (row, out) in rect.rows.clone().zip(out.chunks_exact_mut(rect.width())) {
            let at = interleaved(row, self.rows / heads);
            let bytes = part.bytes(rect.matrix, row_len, (at..at + 1, cols.clone()), fetch)?;
            kind.decode(&bytes, out);
        }
        Ok(())
    }
}

/// Where llama.cpp puts a row of a head of `dim` rows: those of its two halves in turn
/// (`convert_hf_to_gguf.py`, `LlamaModel.permute`).
const fn interleaved(row: u64, dim: u64) -> u64 {
    let (head, row, half) = (row / dim, row % dim, dim / 2);
    head * dim + row % half * 2 + row / half
}
