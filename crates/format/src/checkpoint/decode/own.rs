//! Codes of whole rows one to a byte, with what gives them their values, of sources that store them in other ways than
//! encodings of ours do.

use std::ops::Range;

use shardwright_quant::Ggml;
use shardwright_quant::foreign::{self, Codes, MXFP4_GROUP, NVFP4_GROUP, PackedRows, Rect};

use super::schemes::Reading;
use super::{Decoding, Fetch};
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;

impl Decoding<'_> {
    /// Whether columns lie in the order of their groups, as far as an index gives these.
    pub(in crate::checkpoint) fn columns_in_order(&self, fetch: &mut Fetch<'_>) -> Result<bool> {
        let (group_size, at) = match *self.decoder {
            Decoder::Gptq { groups: Some(_), group_size, .. } => (group_size, 3),
            Decoder::Packed { groups: Some(_), group_size, ref zero_points, .. } => {
                (group_size, if zero_points.is_some() { 4 } else { 3 })
            }
            _ => return Ok(true),
        };
        let mut reading = Reading { tensor: self, matrix: 0, fetch };
        let groups = reading.group_index(group_size, at, &(0..self.cols))?;
        // An index of -1 says nothing, which is an error where groups are asked for.
        let Some(groups) = groups else {
            return Ok(!matches!(self.decoder, Decoder::Gptq { .. }));
        };
        Ok((0..)
            .zip(groups)
            .all(|(col, group): (u64, u64)| col / group_size == group))
    }
}

impl Reading<'_, '_, '_> {
    /// The codes of `rows`, columns in the order of their groups; none of a source that has others.
    pub(super) fn own_codes(&mut self, rows: &Range<u64>) -> Result<Codes> {
        let rect = &Rect { rows: rows.clone(), cols: 0..self.tensor.cols };
        match *self.tensor.decoder {
            Decoder::Scaled { values, block, .. } => self.scaled_codes(values, block, rect),
            Decoder::Mxfp4 { .. } => {
                let scales = self.mxfp4_scales(rect)?;
                self.pairs(scales, MXFP4_GROUP, rect)
            }
            Decoder::Nvfp4 { ref tensor_scale, divided, .. } => {
                let scales = self.nvfp4_scales(tensor_scale.is_some(), divided, rect)?;
                self.pairs(scales, NVFP4_GROUP, rect)
            }
            Decoder::Mlx { bits, group_size, .. } => self.mlx_codes(bits, group_size, rect),
            Decoder::Packed { bits, group_size, ref zero_points, .. } => {
                self.packed_codes(bits, group_size, zero_points.is_some(), rect)
            }
            Decoder::Gptq { bits, group_size, zeros_stored_minus_one, .. } => {
                let (groups, codes) = (rect.groups(group_size), self.gptq_codes(bits, rect)?);
                let grid = self.gptq_grid(bits, zeros_stored_minus_one, &groups, rows)?;
                Ok(self.with_zeros(codes, grid.by_row(), group_size))
            }
            Decoder::Awq { group_size, .. } => {
                let (groups, codes) = (rect.groups(group_size), self.awq_codes(rect)?);
                let grid = self.awq_grid(&groups, rows)?;
                Ok(self.with_zeros(codes, grid.by_row(), group_size))
            }
            Decoder::Gguf { kind, .. } | Decoder::Tiled { kind, .. } => {
                self.block_codes(kind, rect)
            }
            _ => Ok(Codes::default()),
        }
    }

    fn with_zeros(&self, codes: Vec<u8>, (scales, zeros): (Vec<f32>, Vec<u8>), size: u64) -> Codes {
        let biases = foreign::biases(&scales, &zeros);
        self.with_biases(codes, (scales, biases), size)
    }

    fn with_biases(
        &self,
        codes: Vec<u8>,
        (scales, biases): (Vec<f32>, Vec<f32>),
        size: u64,
    ) -> Codes {
        let cols = self.tensor.cols as usize;
        Codes { codes, cols, scales, biases, group_size: size as usize }
    }

    /// Floats of 8 bits; of whole numbers with a sign the codes are 128 more.
    fn scaled_codes(&mut self, values: Dtype, block: [u64; 2], rect: &Rect) -> Result<Codes> {
        let mut codes = self.bytes(0, self.tensor.cols, &rect.rows, &rect.cols)?;
        let scales = self.block_scales(block, rect)?;
        let width = self.tensor.cols.div_ceil(block[1]) as usize;
        let scales = foreign::by_row(&scales, width, block[0], rect.rows.clone());
        let mut zeros = Vec::new();
        if values == Dtype::I8 {
            for code in &mut codes {
                *code ^= 0x80;
            }
            zeros = vec![0x80; scales.len()];
        }
        Ok(self.with_zeros(codes, (scales, zeros), block[1]))
    }

    fn pairs(&mut self, scales: Vec<f32>, group_size: u64, rect: &Rect) -> Result<Codes> {
        let half = self.tensor.cols / 2;
        let codes = foreign::unpaired(&self.bytes(0, half, &rect.rows, &(0..half))?);
        Ok(self.with_biases(codes, (scales, Vec::new()), group_size))
    }

    fn mlx_codes(&mut self, bits: u8, group_size: u64, rect: &Rect) -> Result<Codes> {
        let (codes, scales, biases) = self.mlx_parts(bits, group_size, rect)?;
        let codes = PackedRows { bytes: &codes, bits }.unpack(rect);
        Ok(self.with_biases(codes, (scales, biases), group_size))
    }

    fn packed_codes(
        &mut self,
        bits: u8,
        group_size: u64,
        zero_points: bool,
        rect: &Rect,
    ) -> Result<Codes> {
        let (groups, all) = (rect.groups(group_size), self.tensor.cols.div_ceil(group_size));
        let bytes = self.codes(bits, rect)?;
        let codes = PackedRows { bytes: &bytes, bits }.unpack(rect);
        let scales = self.floats(1, all, &rect.rows, &groups)?;
        // Stored tensor 2 is the shape.
        let zeros = if zero_points {
            self.packed_zeros(bits, (3, all), &groups, rect)?
        } else {
            vec![1 << (bits - 1); scales.len()]
        };
        Ok(self.with_zeros(codes, (scales, zeros), group_size))
    }

    fn block_codes(&mut self, kind: Ggml, rect: &Rect) -> Result<Codes> {
        let blocks = self.tensor.blocks(kind, self.matrix, rect, self.fetch)?;
        let (codes, scales) = kind.codes(&blocks);
        let group_size = codes.len().checked_div(scales.len()).unwrap_or_default();
        let zeros = match kind {
            Ggml::Tq1_0 | Ggml::Tq2_0 => vec![1; scales.len()],
            _ => Vec::new(),
        };
        Ok(self.with_zeros(codes, (scales, zeros), group_size as u64))
    }
}
