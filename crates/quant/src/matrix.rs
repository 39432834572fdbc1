//! A stored matrix: its shape and the bytes of its parts.

use std::ops::Range;

use crate::encoding::{Encoding, EncodingError, Parts};

/// A `rows × cols` matrix as it is stored: weight, then scales, then biases, without padding.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    rows: usize,
    cols: usize,
    encoding: Encoding,
    weight: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
}

/// Why bytes are not the matrix that someone says they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// The encoding cannot hold such a matrix.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// Too many or too few bytes.
    #[error("a {rows} x {cols} matrix in {}: expected {expected} bytes, found {found}", .encoding.label())]
    Length {
        /// The matrix's rows.
        rows: usize,
        /// The matrix's columns.
        cols: usize,
        /// How it is stored.
        encoding: Encoding,
        /// Bytes such a matrix takes.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
}

impl<'a> Matrix<'a> {
    /// The matrix stored in `bytes`, all of which it takes.
    ///
    /// # Errors
    /// [`MatrixError::Encoding`] when the encoding cannot hold the shape, [`MatrixError::Length`]
    /// when `bytes` has another length than the shape asks for.
    pub fn new(
        encoding: Encoding,
        rows: usize,
        cols: usize,
        bytes: &'a [u8],
    ) -> Result<Self, MatrixError> {
        let parts = encoding.parts(rows as u64, cols as u64)?;
        let found = bytes.len() as u64;
        if parts.total() != found {
            let expected = parts.total();
            return Err(MatrixError::Length { rows, cols, encoding, expected, found });
        }
        let (weight, rest) = bytes.split_at(parts.weight as usize);
        let (scales, biases) = rest.split_at(parts.scales as usize);
        Ok(Self { rows, cols, encoding, weight, scales, biases })
    }

    /// Outputs.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// How the values are stored.
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Values or packed codes, `[rows, row_bytes]`.
    pub const fn weight(&self) -> &'a [u8] {
        self.weight
    }

    /// Scales, `[rows, cols / group_size]`; empty for plain floats.
    pub const fn scales(&self) -> &'a [u8] {
        self.scales
    }

    /// Biases, `[rows, cols / group_size]`; empty for plain floats.
    pub const fn biases(&self) -> &'a [u8] {
        self.biases
    }

    /// Bytes of all parts.
    pub const fn parts(&self) -> Parts {
        Parts {
            weight: self.weight.len() as u64,
            scales: self.scales.len() as u64,
            biases: self.biases.len() as u64,
        }
    }

    /// Row `row` of `part`, one of this matrix's parts.
    #[inline(always)]
    pub(crate) fn row(&self, part: &'a [u8], row: usize) -> &'a [u8] {
        self.some_rows(part, row..row + 1)
    }

    /// Rows `rows` of `part`, one after the other.
    #[inline(always)]
    pub(crate) fn some_rows(&self, part: &'a [u8], rows: Range<usize>) -> &'a [u8] {
        let len = part.len() / self.rows;
        &part[rows.start * len..rows.end * len]
    }
}
