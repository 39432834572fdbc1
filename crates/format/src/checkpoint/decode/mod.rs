//! Makes the values of a quantized tensor as they are read, in 32-bit floats. What codes mean is
//! [`shardwright_quant::foreign`]; here is which bytes of which stored tensor it takes.

mod blocks;
mod codes;
mod own;
mod part;
mod schemes;

use std::ops::Range;
use std::path::Path;

use shardwright_quant::foreign::{NVFP4_GROUP, Rect};
use shardwright_quant::{Float, narrow};

use super::Checkpoint;
use super::files::TensorInfo;
use crate::decoder::Decoder;
use crate::error::{FormatError, Result};
use crate::refusal::{Refusal, mismatch};
pub(super) use codes::CodeRows;
use part::Part;
use schemes::Reading;

/// Reads bytes of a checkpoint file: its number, the first byte, what is to be filled.
pub type Fetch<'f> = dyn FnMut(usize, u64, &mut [u8]) -> Result<()> + 'f;

/// Most values decoded at a time, unless one row has more.
const PIECE: u64 = 512 << 10;

/// A quantized tensor and its stored parts.
pub(super) struct Decoding<'a> {
    decoder: &'a Decoder,
    /// The checkpoint's directory.
    root: &'a Path,
    /// In the order of [`Decoder::stored_names`].
    parts: Vec<Part<'a>>,
    /// The tensors that [`Decoder::Heads`] and [`Decoder::Grouped`] take rows from.
    heads: Vec<Decoding<'a>>,
    dtype: Float,
    rows: u64,
    cols: u64,
}

impl<'a> Decoding<'a> {
    /// Finds the parts of a tensor that `decoder` makes.
    ///
    /// # Errors
    /// A part that the checkpoint does not hold.
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        info: &'a TensorInfo,
        decoder: &'a Decoder,
    ) -> Result<Self> {
        let heads = decoder.heads(&info.shape);
        let heads = heads
            .into_iter()
            .map(|(shape, inner)| Self::within(checkpoint, &shape, Float::F32, inner));
        let heads = heads.collect::<Result<_>>()?;
        let found = Self::within(checkpoint, &info.shape, info.dtype, decoder)?;
        Ok(Self { heads, ..found })
    }

    /// As [`Self::new`], of a decoder that has no others inside.
    fn within(
        checkpoint: &'a Checkpoint,
        shape: &[u64],
        dtype: Float,
        decoder: &'a Decoder,
    ) -> Result<Self> {
        let matrices = decoder.matrices(shape);
        let [lead @ .., rows, cols] = &matrices[..] else {
            let detail = mismatch("a matrix to decode", format_args!("shape {shape:?}"));
            return Err(FormatError::tensor(checkpoint.root(), decoder.main(), detail));
        };
        let matrices = lead.iter().product();
        let part = |name: &str| {
            let stored = checkpoint.stored().get(name);
            let missing = "the checkpoint has no such tensor";
            let stored =
                stored.ok_or_else(|| FormatError::tensor(checkpoint.root(), name, missing))?;
            Ok(Part::new(stored, matrices))
        };
        let parts = decoder
            .stored_names()
            .into_iter()
            .map(part)
            .collect::<Result<_>>()?;
        Ok(Self {
            decoder,
            root: checkpoint.root(),
            parts,
            heads: Vec::new(),
            dtype,
            rows: *rows,
            cols: *cols,
        })
    }

    /// A refusal of the tensor.
    fn refuse(&self, detail: impl Into<Refusal>) -> FormatError {
        FormatError::tensor(self.root, self.decoder.main(), detail)
    }

    /// Fills `out` with values from number `first` on, counted row-major over all matrices.
    pub(super) fn values(&self, first: u64, out: &mut [u8], fetch: &mut Fetch<'_>) -> Result<()> {
        let size = self.dtype.size();
        let end = first + (out.len() / size) as u64;
        let (mut at, mut rest) = (first, out);
        let mut values = Vec::new();
        while at < end {
            let (matrix, rect) = self.rect(at, end);
            values.clear();
            values.resize(rect.len(), 0.0);
            self.decode(matrix, &rect, &mut values, fetch)?;
            let (out, after) = rest.split_at_mut(rect.len() * size);
            narrow(self.dtype, &values, out);
            (at, rest) = (at + rect.len() as u64, after);
        }
        Ok(())
    }

    /// The most that can be decoded together from value `at`, before `end`: the matrix, and whole
    /// rows of it or a part of one row.
    fn rect(&self, at: u64, end: u64) -> (u64, Rect) {
        let (row, col) = (at / self.cols, at % self.cols);
        let (matrix, row) = (row / self.rows, row % self.rows);
        let left = end - at;
        if col != 0 || left < self.cols {
            let cols = col..self.cols.min(col + left);
            return (matrix, Rect { rows: row..row + 1, cols });
        }
        let most = (left / self.cols).min((PIECE / self.cols).max(1));
        (matrix, Rect { rows: row..self.rows.min(row + most), cols: 0..self.cols })
    }

    /// Decodes a rectangle, with the columns around it that its codes can only be read with.
    fn decode(
        &self,
        matrix: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        if let Decoder::Heads { key_rows, value_rows, .. } = *self.decoder {
            return self.heads(key_rows, value_rows, rect, out, fetch);
        }
        if let Decoder::Grouped { key_rows, value_rows, .. } = *self.decoder {
            return self.grouped(key_rows, value_rows, rect, out, fetch);
        }
        let unit = self.decoder.unit();
        let start = rect.cols.start / unit * unit;
        let end = rect.cols.end.next_multiple_of(unit).min(self.cols);
        let mut reading = Reading { tensor: self, matrix, fetch };
        if (start..end) == rect.cols {
            return reading.decode(rect, out);
        }
        let wide = Rect { rows: rect.rows.clone(), cols: start..end };
        let mut values = vec![0.0; wide.len()];
        reading.decode(&wide, &mut values)?;
        let skip = (rect.cols.start - start) as usize;
        let rows = out.chunks_exact_mut(rect.width());
        for (out, row) in rows.zip(values.chunks_exact(wide.width())) {
            out.copy_from_slice(&row[skip..skip + out.len()]);
        }
        Ok(())
    }

    /// Rows of heads, each head's first from the columns of the keys, the others from the values.
    fn heads(
        &self,
        key_rows: u64,
        value_rows: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [keys, values] = &self.heads[..] else { return Ok(()) };
        let (mut row, mut rest) = (rect.rows.start, out);
        while row < rect.rows.end {
            let (head, at) = (row / (key_rows + value_rows), row % (key_rows + value_rows));
            let first = if at < key_rows { 0 } else { key_rows };
            let end = if at < key_rows { key_rows } else { key_rows + value_rows };
            let count = (end - at).min(rect.rows.end - row);
            let (rows, after) = rest.split_at_mut(count as usize * rect.width());
            let taken = at - first..at - first + count;
            if at < key_rows {
                let turned = Rect { rows: rect.cols.clone(), cols: taken };
                let mut block = vec![0.0; rows.len()];
                keys.decode(head, &turned, &mut block, fetch)?;
                for (r, row) in rows.chunks_exact_mut(rect.width()).enumerate() {
                    let column = block.iter().skip(r).step_by(count as usize);
                    row.iter_mut()
                        .zip(column)
                        .for_each(|(to, from)| *to = *from);
                }
            } else {
                values.decode(head, &Rect { rows: taken, cols: rect.cols.clone() }, rows, fetch)?;
            }
            (row, rest) = (row + count, after);
        }
        Ok(())
    }

    /// Rows of key heads, each head's queries, keys and values from where all of them are, then its gates.
    fn grouped(
        &self,
        key_rows: u64,
        value_rows: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [mixed, gates] = &self.heads[..] else { return Ok(()) };
        let own = 2 * (key_rows + value_rows);
        let keys = self.rows / own * key_rows;
        // Where in a head each part begins, which tensor has it, and the part's first row there.
        let parts = [
            (0, key_rows, mixed, 0),
            (key_rows, key_rows, mixed, keys),
            (2 * key_rows, value_rows, mixed, 2 * keys),
            (2 * key_rows + value_rows, value_rows, gates, 0),
        ];
        let (mut row, mut rest) = (rect.rows.start, out);
        while row < rect.rows.end {
            let (head, at) = (row / own, row % own);
            let part = parts
                .iter()
                .rfind(|(begin, len, ..)| *begin <= at && *len > 0);
            let Some((begin, len, source, first)) = part else { return Ok(()) };
            let count = (begin + len - at).min(rect.rows.end - row);
            let (rows, after) = rest.split_at_mut(count as usize * rect.width());
            let start = first + head * len + at - begin;
            let taken = Rect { rows: start..start + count, cols: rect.cols.clone() };
            source.decode(0, &taken, rows, fetch)?;
            (row, rest) = (row + count, after);
        }
        Ok(())
    }

    /// Where the parts of the matrices that hold values `first..end` lie: file and bytes.
    pub(super) fn extents(&self, first: u64, end: u64) -> Vec<(usize, Range<u64>)> {
        let matrix = self.rows * self.cols;
        if first >= end || matrix == 0 {
            return Vec::new();
        }
        let matrices = first / matrix..(end - 1) / matrix + 1;
        // Parts of heads are counted in other matrices, and taken whole.
        let whole = 0..if self.heads.is_empty() { 0 } else { u64::MAX };
        let matrices = if self.heads.is_empty() { &matrices } else { &whole };
        let extents = self.parts.iter().map(|part| part.extent(matrices));
        extents.collect()
    }
}

impl Decoder {
    /// A tensor's shape as matrices: of a vector, values that are changed or in another order are
    /// rows.
    fn matrices(&self, shape: &[u64]) -> Vec<u64> {
        match (self, shape) {
            (Self::Gguf { heads: Some(_), .. } | Self::Gguf { less_one: true, .. }, [values]) => {
                vec![*values, 1]
            }
            (Self::Tiled { .. }, [values]) => vec![*values, 1],
            // Channels of a convolution.
            (Self::Tiled { .. }, [channels, 1, taps]) => vec![*channels, *taps],
            (Self::Bundle { .. }, [values]) => vec![1, *values],
            _ => shape.to_vec(),
        }
    }

    /// The decoders inside, each with the shape of its tensor, for a tensor of this shape.
    fn heads(&self, shape: &[u64]) -> Vec<(Vec<u64>, &Self)> {
        let [rows, cols] = *shape else { return Vec::new() };
        match self {
            Self::Heads { keys, values, key_rows, value_rows } => {
                let heads = rows / (key_rows + value_rows).max(1);
                vec![(vec![heads, cols, *key_rows], keys), (vec![heads, *value_rows, cols], values)]
            }
            Self::Grouped { mixed, gates, key_rows, value_rows } => {
                let heads = rows / (2 * (key_rows + value_rows)).max(1);
                let own = heads * value_rows;
                vec![(vec![rows - own, cols], mixed), (vec![own, cols], gates)]
            }
            _ => Vec::new(),
        }
    }

    /// Columns whose codes can only be read together: ranges of columns start at a multiple.
    const fn unit(&self) -> u64 {
        match self {
            Self::Scaled { .. }
            | Self::Awq { .. }
            | Self::Heads { .. }
            | Self::Grouped { .. }
            | Self::Ternary { .. } => 1,
            Self::Nvfp4 { .. } => NVFP4_GROUP,
            // 32 codes of any width fill whole words.
            Self::Mxfp4 { .. } | Self::Packed { .. } | Self::Mlx { .. } | Self::Gptq { .. } => 32,
            // Whole rows.
            Self::Bundle { .. } | Self::Tiled { columns: true, .. } => u64::MAX,
            Self::Gguf { kind, .. } | Self::Tiled { kind, .. } => kind.block_values(),
        }
    }
}

#[cfg(test)]
mod tests;
