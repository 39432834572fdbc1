//! What each scheme reads of which stored tensor.

use std::ops::Range;

use shardwright_quant::foreign::{
    self, AWQ_ORDER, Grid, MXFP4_GROUP, NVFP4_GROUP, PackedRows, Rect, WORD_ORDER, word_unit,
};
use shardwright_quant::{Backend, Encoding, Ggml, Matrix, f8_e4m3, f8_e5m2};

use super::blocks::Order;
use super::{Decoding, Fetch};
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::refusal::mismatch;

/// One matrix of a quantized tensor, being read.
pub(super) struct Reading<'r, 'a, 'f> {
    pub(super) tensor: &'r Decoding<'a>,
    pub(super) matrix: u64,
    pub(super) fetch: &'r mut Fetch<'f>,
}

impl Reading<'_, '_, '_> {
    /// Fills `out` with the values of a rectangle whose columns begin and end where codes can be
    /// read alone.
    pub(super) fn decode(&mut self, rect: &Rect, out: &mut [f32]) -> Result<()> {
        match *self.tensor.decoder {
            Decoder::Scaled { values, block, .. } => self.scaled(values, block, rect, out),
            Decoder::Mxfp4 { .. } => self.mxfp4(rect, out),
            Decoder::Nvfp4 { ref tensor_scale, divided, .. } => {
                self.nvfp4(tensor_scale.is_some(), divided, rect, out)
            }
            Decoder::Bundle { encoding, .. } => self.bundle(encoding, rect, out),
            // Their rows are those of others: see [`Decoding::heads`] and [`Decoding::grouped`].
            Decoder::Heads { .. } | Decoder::Grouped { .. } => Ok(()),
            Decoder::Packed { bits, group_size, ref zero_points, ref groups, .. } => {
                // Stored tensor 2 is the shape, which was read when the checkpoint was opened.
                let zeros = zero_points.is_some().then_some(3);
                let index = groups
                    .is_some()
                    .then_some(if zeros.is_some() { 4 } else { 3 });
                let order = self.packed_order(group_size, index, rect)?;
                self.packed(bits, group_size, (zeros, &order), rect, out)
            }
            Decoder::Mlx { bits, group_size, .. } => self.mlx(bits, group_size, rect, out),
            Decoder::Gptq { bits, group_size, zeros_stored_minus_one, .. } => {
                self.gptq(bits, group_size, zeros_stored_minus_one, rect, out)
            }
            Decoder::Ternary { divided, .. } => self.ternary(divided, rect, out),
            Decoder::Awq { group_size, .. } => self.awq(group_size, rect, out),
            Decoder::Tiled { kind, keys, heads, first, columns, log, .. } => {
                let order = Order { keys, heads, first };
                if columns {
                    self.tiled_columns(kind, order, rect, out)?;
                } else {
                    self.gguf(kind, rect, out)?;
                }
                if log {
                    for value in out {
                        *value = (-f64::from(*value)).ln() as f32;
                    }
                }
                Ok(())
            }
            Decoder::Gguf { kind, less_one, .. } => {
                self.gguf(kind, rect, out)?;
                if less_one {
                    for value in out {
                        *value -= 1.0;
                    }
                }
                Ok(())
            }
        }
    }

    /// Bytes `cols` of each of `rows` of stored tensor `at`; its rows are `row_len` bytes long.
    pub(super) fn bytes(
        &mut self,
        at: usize,
        row_len: u64,
        rows: &Range<u64>,
        cols: &Range<u64>,
    ) -> Result<Vec<u8>> {
        let place = (rows.clone(), cols.clone());
        self.tensor.parts[at].bytes(self.matrix, row_len, place, self.fetch)
    }

    /// Values `cols` of each of `rows` of stored tensor `at`, of floats; its rows are `width` values.
    pub(super) fn floats(
        &mut self,
        at: usize,
        width: u64,
        rows: &Range<u64>,
        cols: &Range<u64>,
    ) -> Result<Vec<f32>> {
        let place = (rows.clone(), cols.clone());
        self.tensor.parts[at].floats(self.matrix, width, place, self.fetch)
    }

    /// Whole rows; with them come those that can only be read together.
    fn bundle(&mut self, encoding: Encoding, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let (cols, total) = (self.tensor.cols as usize, self.tensor.rows);
        let rows = encoding.whole_rows(&rect.rows, total);
        let bytes = self
            .tensor
            .bundle_rows(encoding, &rows, self.fetch)?
            .concat();
        let count = (rows.end - rows.start) as usize;
        let matrix = Matrix::new(encoding, count, cols, &bytes);
        let matrix = matrix.map_err(|e| self.tensor.refuse(e.to_string()))?;
        let first = (rect.rows.start - rows.start) as usize;
        matrix.dequantize(Backend::detect(), first..first + out.len() / cols.max(1), out);
        Ok(())
    }

    fn scaled(
        &mut self,
        values: Dtype,
        block: [u64; 2],
        rect: &Rect,
        out: &mut [f32],
    ) -> Result<()> {
        let cols = self.tensor.cols;
        let bytes = self.bytes(0, cols, &rect.rows, &rect.cols)?;
        let scales = self.block_scales(block, rect)?;
        let value: fn(u8) -> f32 = match values {
            Dtype::F8E4m3 => f8_e4m3,
            Dtype::F8E5m2 => f8_e5m2,
            _ => |byte| f32::from(byte.cast_signed()),
        };
        foreign::scaled(value, &bytes, &scales, block, rect, out);
        Ok(())
    }

    /// Those of the blocks that a rectangle touches.
    pub(super) fn block_scales(&mut self, block: [u64; 2], rect: &Rect) -> Result<Vec<f32>> {
        let grid_rows = rect.rows.start / block[0]..rect.rows.end.div_ceil(block[0]);
        let grid_cols = rect.groups(block[1]);
        self.floats(1, self.tensor.cols.div_ceil(block[1]), &grid_rows, &grid_cols)
    }

    fn mxfp4(&mut self, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let cols = self.tensor.cols;
        let pairs = rect.cols.start / 2..rect.cols.end / 2;
        let bytes = self.bytes(0, cols / 2, &rect.rows, &pairs)?;
        let powers = self.mxfp4_scales(rect)?;
        foreign::fp4::<{ MXFP4_GROUP as usize }>(&bytes, &powers, out);
        Ok(())
    }

    /// The powers of two of a rectangle's groups.
    pub(super) fn mxfp4_scales(&mut self, rect: &Rect) -> Result<Vec<f32>> {
        let groups = self.tensor.cols / MXFP4_GROUP;
        self.floats(1, groups, &rect.rows, &rect.groups(MXFP4_GROUP))
    }

    fn nvfp4(
        &mut self,
        tensor_scale: bool,
        divided: bool,
        rect: &Rect,
        out: &mut [f32],
    ) -> Result<()> {
        let cols = self.tensor.cols;
        let pairs = rect.cols.start / 2..rect.cols.end / 2;
        let bytes = self.bytes(0, cols / 2, &rect.rows, &pairs)?;
        let scales = self.nvfp4_scales(tensor_scale, divided, rect)?;
        foreign::fp4::<{ NVFP4_GROUP as usize }>(&bytes, &scales, out);
        Ok(())
    }

    /// Scales are in `F8_E4M3` whatever type the checkpoint gives their bytes.
    pub(super) fn nvfp4_scales(
        &mut self,
        tensor_scale: bool,
        divided: bool,
        rect: &Rect,
    ) -> Result<Vec<f32>> {
        let groups = self.tensor.cols / NVFP4_GROUP;
        let scales = self.bytes(1, groups, &rect.rows, &rect.groups(NVFP4_GROUP))?;
        let whole = if tensor_scale { self.floats(2, 1, &(0..1), &(0..1))?[0] } else { 1.0 };
        let scales = scales.into_iter().map(f8_e4m3);
        let scale = |scale| if divided { scale / whole } else { scale * whole };
        Ok(scales.map(scale).collect())
    }

    /// The group of each column of a rectangle, where columns are in an order of their own.
    fn packed_order(
        &mut self,
        group_size: u64,
        index: Option<usize>,
        rect: &Rect,
    ) -> Result<Vec<u64>> {
        let Some(at) = index else { return Ok(Vec::new()) };
        let all = 0..self.tensor.cols;
        let groups = self.group_index(group_size, at, &all)?;
        // Modules that no order was found for keep the -1 with which each index begins.
        let Some(groups) = groups else { return Ok(Vec::new()) };
        Ok(groups[rect.cols.start as usize..rect.cols.end as usize].to_vec())
    }

    fn packed(
        &mut self,
        bits: u8,
        group_size: u64,
        (zeros, order): (Option<usize>, &[u64]),
        rect: &Rect,
        out: &mut [f32],
    ) -> Result<()> {
        let all = self.tensor.cols.div_ceil(group_size);
        let groups = spanned(order).unwrap_or_else(|| rect.groups(group_size));
        let codes = self.codes(bits, rect)?;
        let mut scales = self.floats(1, all, &rect.rows, &groups)?;
        let width = (groups.end - groups.start) as usize;
        let mut zeros = match zeros {
            Some(at) => Some(self.packed_zeros(bits, (at, all), &groups, rect)?),
            None => None,
        };
        let mut columns = group_size;
        if !order.is_empty() {
            // Each column becomes a group of its own, with what its group has.
            scales = by_column(&scales, width, order, groups.start);
            zeros = zeros.map(|zeros| by_column(&zeros, width, order, groups.start));
            columns = 1;
        }
        let codes = PackedRows { bytes: &codes, bits };
        foreign::symmetric(codes, columns, &scales, zeros.as_deref(), rect, out);
        Ok(())
    }

    /// Zero points of some of the groups of a rectangle's rows, `all` to a row, in stored tensor `at`.
    pub(super) fn packed_zeros(
        &mut self,
        bits: u8,
        (at, all): (usize, u64),
        groups: &Range<u64>,
        rect: &Rect,
    ) -> Result<Vec<u8>> {
        let per_word = 32 / u64::from(bits);
        let words = rect.rows.start / per_word..rect.rows.end.div_ceil(per_word);
        let bytes = self.bytes(at, all * 4, &words, &(groups.start * 4..groups.end * 4))?;
        let width = (groups.end - groups.start) as usize;
        Ok(foreign::zero_points(bits, &bytes, width, rect))
    }

    fn mlx(&mut self, bits: u8, group_size: u64, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let (codes, scales, biases) = self.mlx_parts(bits, group_size, rect)?;
        let codes = PackedRows { bytes: &codes, bits };
        foreign::affine(codes, group_size, &scales, &biases, rect, out);
        Ok(())
    }

    /// Words of codes, scales and biases of a rectangle.
    pub(super) fn mlx_parts(
        &mut self,
        bits: u8,
        group_size: u64,
        rect: &Rect,
    ) -> Result<(Vec<u8>, Vec<f32>, Vec<f32>)> {
        let (groups, all) = (rect.groups(group_size), self.tensor.cols.div_ceil(group_size));
        let codes = self.codes(bits, rect)?;
        let scales = self.floats(1, all, &rect.rows, &groups)?;
        let biases = self.floats(2, all, &rect.rows, &groups)?;
        Ok((codes, scales, biases))
    }

    fn ternary(&mut self, divided: bool, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let codes = self.tensor.ternary_codes(rect, self.fetch)?;
        let scale = self.floats(1, 1, &(0..1), &(0..1))?[0];
        for (out, code) in out.iter_mut().zip(codes) {
            let value = f32::from(code) - 1.0;
            *out = if divided { value / scale } else { value * scale };
        }
        Ok(())
    }

    /// The words along the columns that hold the codes of a rectangle.
    pub(super) fn codes(&mut self, bits: u8, rect: &Rect) -> Result<Vec<u8>> {
        let bits = u64::from(bits);
        let row_len = (self.tensor.cols * bits).div_ceil(32) * 4;
        let words = rect.cols.start * bits / 8..(rect.cols.end * bits).div_ceil(32) * 4;
        self.bytes(0, row_len, &rect.rows, &words)
    }

    fn gptq(
        &mut self,
        bits: u8,
        group_size: u64,
        zeros_stored_minus_one: bool,
        rect: &Rect,
        out: &mut [f32],
    ) -> Result<()> {
        let index = self.gptq_order(group_size, rect)?;
        let span = spanned(&index).unwrap_or_default();
        let first = span.start;
        let index: Vec<_> = index.iter().map(|group| (group - first) as usize).collect();
        let grid = self.gptq_grid(bits, zeros_stored_minus_one, &span, &rect.rows)?;
        grid.values(&self.gptq_codes(bits, rect)?, &index, out);
        Ok(())
    }

    pub(super) fn gptq_grid(
        &mut self,
        bits: u8,
        zeros_stored_minus_one: bool,
        groups: &Range<u64>,
        rows: &Range<u64>,
    ) -> Result<Grid> {
        self.grid((bits, &WORD_ORDER, zeros_stored_minus_one), groups, rows)
    }

    pub(super) fn gptq_codes(&mut self, bits: u8, rect: &Rect) -> Result<Vec<u8>> {
        let (codes, words) = word_unit(bits);
        let units = rect.groups(codes);
        let words = units.start * words..units.end * words;
        let columns = rect.rows.start * 4..rect.rows.end * 4;
        let bytes = self.bytes(0, self.tensor.rows * 4, &words, &columns)?;
        Ok(foreign::gptq(bits, &bytes, rect))
    }

    /// The group of each column of a rectangle.
    fn gptq_order(&mut self, group_size: u64, rect: &Rect) -> Result<Vec<u64>> {
        if self.tensor.parts.len() < 4 {
            return Ok(rect.cols.clone().map(|c| c / group_size).collect());
        }
        let index = self.group_index(group_size, 3, &rect.cols)?;
        index.ok_or_else(|| self.no_group(group_size, 3, -1))
    }

    /// The group of each of `cols` as stored tensor `at` gives it; none where one is -1.
    pub(super) fn group_index(
        &mut self,
        group_size: u64,
        at: usize,
        cols: &Range<u64>,
    ) -> Result<Option<Vec<u64>>> {
        let groups = self.tensor.cols.div_ceil(group_size);
        let bytes = cols.start * 4..cols.end * 4;
        let bytes = self.bytes(at, self.tensor.cols * 4, &(0..1), &bytes)?;
        let index = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .copied()
            .map(i32::from_le_bytes);
        if index.clone().any(|group| group == -1) {
            return Ok(None);
        }
        let index = index.map(|index| {
            let known = u64::try_from(index).ok().filter(|index| *index < groups);
            known.ok_or_else(|| self.no_group(group_size, at, index))
        });
        index.collect::<Result<_>>().map(Some)
    }

    /// The refusal of a column's group that the tensor does not have.
    fn no_group(&self, group_size: u64, at: usize, found: i32) -> FormatError {
        let groups = self.tensor.cols.div_ceil(group_size);
        let detail = mismatch(format_args!("groups below {groups}"), found);
        FormatError::tensor(self.tensor.root, self.tensor.decoder.stored_names()[at], detail)
    }

    fn awq(&mut self, group_size: u64, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let groups = rect.groups(group_size);
        let grid = self.awq_grid(&groups, &rect.rows)?;
        let cols = rect.cols.clone();
        let index: Vec<_> = cols
            .map(|col| (col / group_size - groups.start) as usize)
            .collect();
        grid.values(&self.awq_codes(rect)?, &index, out);
        Ok(())
    }

    pub(super) fn awq_grid(&mut self, groups: &Range<u64>, rows: &Range<u64>) -> Result<Grid> {
        self.grid((4, &AWQ_ORDER, false), groups, rows)
    }

    pub(super) fn awq_codes(&mut self, rect: &Rect) -> Result<Vec<u8>> {
        let words = rect.rows.start / 8 * 4..rect.rows.end.div_ceil(8) * 4;
        let bytes = self.bytes(0, self.tensor.rows / 2, &rect.cols, &words)?;
        Ok(foreign::awq(&bytes, rect))
    }

    /// Scales and zero points of some groups and rows: see [`Grid::new`].
    fn grid(
        &mut self,
        (bits, order, less_one): (u8, &[u32], bool),
        groups: &Range<u64>,
        rows: &Range<u64>,
    ) -> Result<Grid> {
        let (all_rows, (codes, words)) = (self.tensor.rows, word_unit(bits));
        let units = rows.start / codes..rows.end.div_ceil(codes);
        let len = words * 4;
        let place = units.start * len..units.end * len;
        let zeros = self.bytes(1, all_rows.div_ceil(codes) * len, groups, &place)?;
        let scales = self.floats(2, all_rows, groups, rows)?;
        Ok(Grid::new((bits, order, less_one), scales, &zeros, rows))
    }

    /// The values of whole blocks, of rows in the order of a checkpoint.
    fn gguf(&mut self, kind: Ggml, rect: &Rect, out: &mut [f32]) -> Result<()> {
        let bytes = self.tensor.blocks(kind, self.matrix, rect, self.fetch)?;
        kind.decode(&bytes, out);
        Ok(())
    }

    /// The values of whole rows of blocks, with the heads' columns in the order of a checkpoint.
    fn tiled_columns(
        &mut self,
        kind: Ggml,
        order: Order,
        rect: &Rect,
        out: &mut [f32],
    ) -> Result<()> {
        let tensor = self.tensor;
        self.gguf(kind, rect, out)?;
        let mut stored = vec![0.0; rect.width()];
        for row in out.chunks_exact_mut(rect.width()) {
            stored.copy_from_slice(row);
            for (col, value) in (0..).zip(row) {
                *value = stored[order.place(col, tensor.cols) as usize];
            }
        }
        Ok(())
    }
}

/// From the least group to the greatest; none of none.
fn spanned(groups: &[u64]) -> Option<Range<u64>> {
    Some(*groups.iter().min()?..*groups.iter().max()? + 1)
}

/// What each column's group has: `values` are `[rows, width]`, by groups from number `first` on.
fn by_column<T: Copy>(values: &[T], width: usize, order: &[u64], first: u64) -> Vec<T> {
    let rows = values.chunks_exact(width.max(1));
    rows.flat_map(|row| order.iter().map(|group| row[(group - first) as usize]))
        .collect()
}
