//! Makes the values of a quantized tensor as they are read, in 32-bit floats.

mod affine;
mod gguf;
mod mxfp4;
mod packed;
mod part;
mod scaled;
mod transposed;

use std::ops::Range;
use std::path::Path;

use shardwright_quant::{Float, narrow};

use super::{Checkpoint, TensorInfo};
use crate::decoder::Decoder;
use crate::error::{FormatError, Result};
pub(super) use affine::AffineRows;
pub(super) use mxfp4::GROUP as MXFP4_GROUP;
use part::Part;

/// Reads bytes of a checkpoint file: its number, the first byte, what is to be filled.
pub type Fetch<'f> = dyn FnMut(usize, u64, &mut [u8]) -> Result<()> + 'f;

/// Most values decoded at a time, unless one row has more.
const PIECE: u64 = 512 << 10;

/// A quantized tensor and its stored parts.
pub(super) struct Decoding<'a> {
    decoder: &'a Decoder,
    /// The checkpoint's directory.
    root: &'a Path,
    /// In the order of [`Decoder::parts`].
    parts: Vec<Part<'a>>,
    dtype: Float,
    rows: u64,
    cols: u64,
}

/// Some columns of some rows of one matrix of a tensor.
struct Rect {
    matrix: u64,
    rows: Range<u64>,
    cols: Range<u64>,
}

impl Rect {
    const fn width(&self) -> usize {
        (self.cols.end - self.cols.start) as usize
    }

    const fn len(&self) -> usize {
        (self.rows.end - self.rows.start) as usize * self.width()
    }
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
        let shape = decoder.matrices(&info.shape);
        let [lead @ .., rows, cols] = &shape[..] else {
            let path = checkpoint.path_of(info);
            let detail = format!("expected a matrix to decode, found shape {:?}", info.shape);
            return Err(FormatError::tensor(path, decoder.main(), detail));
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
            .parts()
            .into_iter()
            .map(part)
            .collect::<Result<_>>()?;
        Ok(Self {
            decoder,
            root: checkpoint.root(),
            parts,
            dtype: info.dtype,
            rows: *rows,
            cols: *cols,
        })
    }

    /// Fills `out` with values from number `first` on, counted row-major over all matrices.
    pub(super) fn values(&self, first: u64, out: &mut [u8], fetch: &mut Fetch<'_>) -> Result<()> {
        let size = self.dtype.size();
        let end = first + (out.len() / size) as u64;
        let (mut at, mut rest) = (first, out);
        let mut values = Vec::new();
        while at < end {
            let rect = self.rect(at, end);
            values.clear();
            values.resize(rect.len(), 0.0);
            self.decode(&rect, &mut values, fetch)?;
            let (out, after) = rest.split_at_mut(rect.len() * size);
            narrow(self.dtype, &values, out);
            (at, rest) = (at + rect.len() as u64, after);
        }
        Ok(())
    }

    /// The most that can be decoded together from value `at`, before `end`: whole rows of one
    /// matrix, or a part of one row.
    fn rect(&self, at: u64, end: u64) -> Rect {
        let (row, col) = (at / self.cols, at % self.cols);
        let (matrix, row) = (row / self.rows, row % self.rows);
        let left = end - at;
        if col != 0 || left < self.cols {
            let cols = col..self.cols.min(col + left);
            return Rect { matrix, rows: row..row + 1, cols };
        }
        let most = (left / self.cols).min((PIECE / self.cols).max(1));
        Rect { matrix, rows: row..self.rows.min(row + most), cols: 0..self.cols }
    }

    /// Decodes a rectangle, with the columns around it that its codes can only be read with.
    fn decode(&self, rect: &Rect, out: &mut [f32], fetch: &mut Fetch<'_>) -> Result<()> {
        let unit = self.decoder.unit();
        let start = rect.cols.start / unit * unit;
        let end = rect.cols.end.next_multiple_of(unit).min(self.cols);
        if (start..end) == rect.cols {
            return self.decode_units(rect, out, fetch);
        }
        let wide = Rect { matrix: rect.matrix, rows: rect.rows.clone(), cols: start..end };
        let mut values = vec![0.0; wide.len()];
        self.decode_units(&wide, &mut values, fetch)?;
        let skip = (rect.cols.start - start) as usize;
        let rows = out.chunks_exact_mut(rect.width());
        for (out, row) in rows.zip(values.chunks_exact(wide.width())) {
            out.copy_from_slice(&row[skip..skip + out.len()]);
        }
        Ok(())
    }

    fn decode_units(&self, rect: &Rect, out: &mut [f32], fetch: &mut Fetch<'_>) -> Result<()> {
        match *self.decoder {
            Decoder::Scaled { values, block, .. } => self.scaled(values, block, rect, out, fetch),
            Decoder::Mxfp4 { .. } => self.mxfp4(rect, out, fetch),
            Decoder::Packed { bits, group_size, .. } => {
                self.packed(bits, group_size, rect, out, fetch)
            }
            Decoder::Mlx { bits, group_size, .. } => self.mlx(bits, group_size, rect, out, fetch),
            Decoder::Gptq { bits, group_size, less_one, .. } => {
                self.gptq((bits, less_one), group_size, rect, out, fetch)
            }
            Decoder::Awq { group_size, .. } => self.awq(group_size, rect, out, fetch),
            Decoder::Gguf { kind, heads, .. } => self.gguf(kind, heads, rect, out, fetch),
        }
    }

    /// Where the parts of the matrices that hold values `first..end` lie: file and bytes.
    pub(super) fn extents(&self, first: u64, end: u64) -> Vec<(usize, Range<u64>)> {
        let matrix = self.rows * self.cols;
        if first >= end || matrix == 0 {
            return Vec::new();
        }
        let matrices = first / matrix..(end - 1) / matrix + 1;
        let extents = self.parts.iter().map(|part| part.extent(&matrices));
        extents.collect()
    }
}

impl Decoder {
    /// A tensor's shape as matrices: of a vector, values that are in another order are rows.
    fn matrices(&self, shape: &[u64]) -> Vec<u64> {
        match (self, shape) {
            (Self::Gguf { heads: Some(_), .. }, [values]) => vec![*values, 1],
            _ => shape.to_vec(),
        }
    }

    /// Columns whose codes can only be read together: ranges of columns start at a multiple.
    const fn unit(&self) -> u64 {
        match self {
            Self::Scaled { .. } | Self::Awq { .. } => 1,
            // 32 codes of any width fill whole words.
            Self::Mxfp4 { .. } | Self::Packed { .. } | Self::Mlx { .. } | Self::Gptq { .. } => 32,
            Self::Gguf { kind, .. } => kind.block_values(),
        }
    }
}

#[cfg(test)]
mod tests;
