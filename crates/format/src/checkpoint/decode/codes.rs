//! Codes as an encoding of ours has them, for sources whose codes mean the same.

use std::ops::Range;

use shardwright_quant::foreign::{Rect, middle_biases};
use shardwright_quant::{Affine, Encoding, Parts};

use super::schemes::Reading;
use super::{Decoding, Fetch, PIECE};
use crate::decoder::Decoder;
use crate::error::Result;

/// Where the parts of rows in an encoding of ours go, as far as they are not filled.
pub(in crate::checkpoint) struct CodeRows<'o> {
    codes: Rest<'o>,
    scales: Rest<'o>,
    biases: Rest<'o>,
}

/// What is not filled yet.
struct Rest<'o>(&'o mut [u8]);

impl<'o> CodeRows<'o> {
    /// The parts of a matrix whose bytes are `out`.
    pub(in crate::checkpoint) fn new(parts: Parts, out: &'o mut [u8]) -> Self {
        let (codes, rest) = out.split_at_mut(parts.weight as usize);
        let (scales, biases) = rest.split_at_mut(parts.scales as usize);
        Self { codes: Rest(codes), scales: Rest(scales), biases: Rest(biases) }
    }
}

impl Rest<'_> {
    /// Fills its front.
    fn put(&mut self, bytes: &[u8]) {
        let (front, behind) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.0 = behind;
    }
}

impl Decoding<'_> {
    /// Fills `out` with `count` rows, every `step`th from row `first` counted over all matrices.
    pub(in crate::checkpoint) fn code_rows(
        &self,
        encoding: Encoding,
        (first, step, count): (u64, u64, u64),
        out: &mut CodeRows<'_>,
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        // Whole blocks of rows, of which a piece is held beside what it fills: a byte for each code, where a value has
        // four. Many rows share the reads of codes that are stored transposed.
        let block = encoding.row_block();
        let most = (4 * PIECE / self.cols.max(1))
            .next_multiple_of(block)
            .max(block);
        let mut at = 0;
        while at < count {
            let row = first + at * step;
            let (matrix, row) = (row / self.rows, row % self.rows);
            let together = if step == 1 { (count - at).min(self.rows - row).min(most) } else { 1 };
            let rows = row..row + together;
            match (self.decoder, encoding) {
                (Decoder::Bundle { .. }, _) => {
                    let [codes, scales, biases] = self.bundle_rows(encoding, &rows, fetch)?;
                    out.codes.put(&codes);
                    out.scales.put(&scales);
                    out.biases.put(&biases);
                }
                (decoder, Encoding::Affine(affine)) if decoder.has_affine(affine) => {
                    self.add_rows(affine, matrix, &rows, out, fetch)?;
                }
                (_, Encoding::Affine(_) | Encoding::Minifloat(_)) => {
                    let mut reading = Reading { tensor: self, matrix, fetch };
                    let [codes, scales, biases] = reading.own_codes(&rows)?.stored(encoding);
                    out.codes.put(&codes);
                    out.scales.put(&scales);
                    out.biases.put(&biases);
                }
                (_, Encoding::Ggml(blocks)) => {
                    let cols = 0..self.cols;
                    let rect = Rect { rows, cols };
                    out.codes
                        .put(&self.blocks(blocks.into(), matrix, &rect, fetch)?);
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
        let parts = parts.map_err(|e| self.refuse(e.to_string()))?;
        let mut read = |part: &Range<u64>| self.parts[0].bytes(0, 0, (0..1, part.clone()), fetch);
        Ok([read(&parts[0])?, read(&parts[1])?, read(&parts[2])?])
    }

    fn add_rows(
        &self,
        affine: Affine,
        matrix: u64,
        rows: &Range<u64>,
        out: &mut CodeRows<'_>,
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        if let Decoder::Ternary { .. } = self.decoder {
            return self.add_ternary(affine, rows, out, fetch);
        }
        let code_len = self.cols / 8 * u64::from(affine.bits());
        let groups = self.cols / affine.group_size() as u64;
        let grid_len = groups * affine.scale_dtype().size() as u64;
        let mut read = |part: usize, len: u64| {
            self.parts[part].bytes(matrix, len, (rows.clone(), 0..len), fetch)
        };
        out.codes.put(&read(0, code_len)?);
        let scales = read(1, grid_len)?;
        let biases = match self.decoder {
            Decoder::Mlx { .. } => read(2, grid_len)?,
            _ => middle_biases(affine, &scales),
        };
        out.scales.put(&scales);
        out.biases.put(&biases);
        Ok(())
    }

    /// Rows of values of 0, 1 and 2 of which one is taken before they are scaled.
    fn add_ternary(
        &self,
        affine: Affine,
        rows: &Range<u64>,
        out: &mut CodeRows<'_>,
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let rect = Rect { rows: rows.clone(), cols: 0..self.cols };
        let codes = self.ternary_codes(&rect, fetch)?;
        // Four codes of two bits to a byte, the first lowest: rows are of whole groups.
        let byte = |four: &[u8; 4]| four[0] | four[1] << 2 | four[2] << 4 | four[3] << 6;
        let bytes: Vec<u8> = codes.as_chunks::<4>().0.iter().map(byte).collect();
        out.codes.put(&bytes);
        let size = affine.scale_dtype().size() as u64;
        let mut scale = self.parts[1].bytes(0, size, (0..1, 0..size), fetch)?;
        let groups = codes.len() / affine.group_size();
        out.scales.put(&scale.repeat(groups));
        // The bias is the scale with the other sign, which every type keeps in its last bit.
        if let Some(last) = scale.last_mut() {
            *last ^= 0x80;
        }
        out.biases.put(&scale.repeat(groups));
        Ok(())
    }

    /// Codes of a rectangle of [`Decoder::Ternary`], one to a byte, row by row.
    pub(super) fn ternary_codes(&self, rect: &Rect, fetch: &mut Fetch<'_>) -> Result<Vec<u8>> {
        let quarter = (self.rows / 4).max(1);
        let mut codes = Vec::with_capacity(rect.len());
        for row in rect.rows.clone() {
            let (shift, at) = (2 * (row / quarter), row % quarter);
            let place = (at..at + 1, rect.cols.clone());
            let bytes = self.parts[0].bytes(0, self.cols, place, fetch)?;
            codes.extend(bytes.iter().map(|byte| byte >> shift & 3));
        }
        Ok(codes)
    }
}
