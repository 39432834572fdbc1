//! Makes the values of a quantized tensor as they are read, in 32-bit floats. What codes mean is
//! [`shardwright_quant::foreign`]; here is which bytes of which stored tensor it takes.

mod affine;
mod part;
mod schemes;

use std::ops::Range;
use std::path::Path;

use shardwright_quant::foreign::Rect;
use shardwright_quant::{Float, narrow};

use super::Checkpoint;
use super::files::TensorInfo;
use crate::decoder::Decoder;
use crate::error::{FormatError, Result};
pub(super) use affine::AffineRows;
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
            .stored_names()
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
    /// A tensor's shape as matrices: of a vector, values that are changed or in another order are
    /// rows.
    fn matrices(&self, shape: &[u64]) -> Vec<u64> {
        match (self, shape) {
            (Self::Gguf { heads: Some(_), .. } | Self::Gguf { less_one: true, .. }, [values]) => {
                vec![*values, 1]
            }
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
