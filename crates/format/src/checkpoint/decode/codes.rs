//! Codes as an encoding of ours has them, for sources whose codes mean the same.

use std::ops::Range;

use shardwright_quant::foreign::middle_biases;
use shardwright_quant::{Affine, Encoding};

use super::{Decoding, Fetch};
use crate::decoder::Decoder;
use crate::error::Result;

/// Parts of rows in an encoding of ours.
#[derive(Default)]
pub(in crate::checkpoint) struct CodeRows {
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl CodeRows {
    /// The matrix of the rows as it is stored.
    pub(in crate::checkpoint) fn into_bytes(self) -> Vec<u8> {
        [self.codes, self.scales, self.biases].concat()
    }
}

impl Decoding<'_> {
    /// Adds `count` rows, every `step`th from row `first` counted over all matrices, to `out`.
    pub(in crate::checkpoint) fn code_rows(
        &self,
        encoding: Encoding,
        (first, step, count): (u64, u64, u64),
        out: &mut CodeRows,
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let mut at = 0;
        while at < count {
            let row = first + at * step;
            let (matrix, row) = (row / self.rows, row % self.rows);
            let together = if step == 1 { (count - at).min(self.rows - row) } else { 1 };
            let rows = row..row + together;
            match (self.decoder, encoding) {
                (Decoder::Bundle { .. }, _) => {
                    let [codes, scales, biases] = self.bundle_rows(encoding, &rows, fetch)?;
                    out.codes.extend(codes);
                    out.scales.extend(scales);
                    out.biases.extend(biases);
                }
                (_, Encoding::Affine(affine)) => {
                    self.add_rows(affine, matrix, &rows, out, fetch)?;
                }
                // No other source has codes of ours: see [`Decoder::codes`].
                _ => {}
            }
            at += together;
        }
        Ok(())
    }

    /// Weight, scales and biases of `rows`, whole blocks of them, of a bundle's matrix.
    pub(super) fn bundle_rows(
        &self,
        encoding: Encoding,
        rows: &Range<u64>,
        fetch: &mut Fetch<'_>,
    ) -> Result<[Vec<u8>; 3]> {
        let parts = encoding.row_parts([self.rows, self.cols], rows);
        let parts = parts.map_err(|e| self.refuse(&e.to_string()))?;
        let mut read = |part: &Range<u64>| self.parts[0].bytes(0, 0, (0..1, part.clone()), fetch);
        Ok([read(&parts[0])?, read(&parts[1])?, read(&parts[2])?])
    }

    fn add_rows(
        &self,
        affine: Affine,
        matrix: u64,
        rows: &Range<u64>,
        out: &mut CodeRows,
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let code_len = self.cols / 8 * u64::from(affine.bits());
        let groups = self.cols / affine.group_size() as u64;
        let grid_len = groups * affine.scale_dtype().size() as u64;
        let mut read = |part: usize, len: u64| {
            self.parts[part].bytes(matrix, len, (rows.clone(), 0..len), fetch)
        };
        out.codes.extend(read(0, code_len)?);
        let scales = read(1, grid_len)?;
        let biases = match self.decoder {
            Decoder::Mlx { .. } => read(2, grid_len)?,
            _ => middle_biases(affine, &scales),
        };
        out.scales.extend(scales);
        out.biases.extend(biases);
        Ok(())
    }
}
