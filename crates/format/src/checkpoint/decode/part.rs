//! A stored tensor as the matrices that its bytes are.

use std::ops::Range;

use shardwright_quant::{f8_e4m3, f8_e8m0, widen};

use super::Fetch;
use crate::checkpoint::files::StoredTensor;
use crate::dtype::Dtype;
use crate::error::Result;

/// A stored tensor, one of the parts of a quantized one.
pub(super) struct Part<'a> {
    stored: &'a StoredTensor,
    /// Matrices in it; 1 for one that all matrices share.
    matrices: u64,
}

impl<'a> Part<'a> {
    /// The part of a tensor of so many matrices.
    pub(super) fn new(stored: &'a StoredTensor, matrices: u64) -> Self {
        let own = matrices > 0 && stored.len.is_multiple_of(matrices);
        Self { stored, matrices: if own { matrices } else { 1 } }
    }

    const fn matrix_len(&self) -> u64 {
        self.stored.len / self.matrices
    }

    /// File and bytes of some matrices.
    pub(super) fn extent(&self, matrices: &Range<u64>) -> (usize, Range<u64>) {
        let StoredTensor { file, offset, len, .. } = *self.stored;
        if self.matrices == 1 || matrices.end > self.matrices {
            return (file, offset..offset + len);
        }
        let len = self.matrix_len();
        (file, offset + matrices.start * len..offset + matrices.end * len)
    }

    /// Bytes `cols` of each of `rows`, which are `row_len` bytes long, of one matrix.
    pub(super) fn bytes(
        &self,
        matrix: u64,
        row_len: u64,
        (rows, cols): (Range<u64>, Range<u64>),
        fetch: &mut Fetch<'_>,
    ) -> Result<Vec<u8>> {
        let matrix = if self.matrices == 1 { 0 } else { matrix };
        let start = self.stored.offset + matrix * self.matrix_len() + cols.start;
        let width = (cols.end - cols.start) as usize;
        let mut bytes = vec![0; (rows.end - rows.start) as usize * width];
        if width as u64 == row_len {
            fetch(self.stored.file, start + rows.start * row_len, &mut bytes)?;
            return Ok(bytes);
        }
        for (row, out) in rows.zip(bytes.chunks_exact_mut(width.max(1))) {
            fetch(self.stored.file, start + row * row_len, out)?;
        }
        Ok(bytes)
    }

    /// Values `cols` of each of `rows`, which are `width` values wide, of one matrix of floats.
    pub(super) fn floats(
        &self,
        matrix: u64,
        width: u64,
        (rows, cols): (Range<u64>, Range<u64>),
        fetch: &mut Fetch<'_>,
    ) -> Result<Vec<f32>> {
        let size = self.stored.dtype.size() as u64;
        let cols = cols.start * size..cols.end * size;
        let bytes = self.bytes(matrix, width * size, (rows, cols), fetch)?;
        let Dtype::Float(dtype) = self.stored.dtype else {
            let byte = if self.stored.dtype == Dtype::F8E4m3 { f8_e4m3 } else { f8_e8m0 };
            return Ok(bytes.into_iter().map(byte).collect());
        };
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        widen(dtype, &bytes, &mut values);
        Ok(values)
    }
}
