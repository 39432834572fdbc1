//! Codes as the affine encoding has them, for sources whose codes mean the same.

use std::ops::Range;

use shardwright_quant::Affine;
use shardwright_quant::foreign::middle_biases;

use super::{Decoding, Fetch};
use crate::decoder::Decoder;
use crate::error::Result;

/// Parts of rows in the affine encoding.
#[derive(Default)]
pub(in crate::checkpoint) struct AffineRows {
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl AffineRows {
    /// The matrix of the rows as it is stored.
    pub(in crate::checkpoint) fn into_bytes(self) -> Vec<u8> {
        [self.codes, self.scales, self.biases].concat()
    }
}

impl Decoding<'_> {
    /// Adds `count` rows, every `step`th from row `first` counted over all matrices, to `out`.
    pub(in crate::checkpoint) fn affine_rows(
        &self,
        affine: Affine,
        (first, step, count): (u64, u64, u64),
        out: &mut AffineRows,
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let mut at = 0;
        while at < count {
            let row = first + at * step;
            let (matrix, row) = (row / self.rows, row % self.rows);
            let together = if step == 1 { (count - at).min(self.rows - row) } else { 1 };
            self.add_rows(affine, matrix, &(row..row + together), out, fetch)?;
            at += together;
        }
        Ok(())
    }

    fn add_rows(
        &self,
        affine: Affine,
        matrix: u64,
        rows: &Range<u64>,
        out: &mut AffineRows,
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
