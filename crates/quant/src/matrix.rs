//! A stored matrix, and the vector it is multiplied with.

use std::ops::Range;

use crate::dot::{Dequantize, MatVec, Prepare};
use crate::encoding::{Encoding, EncodingError, Parts, Trellis};
use crate::kernel::{Backend, Kernel, LANES, Simd};
use crate::trellis::rotate::rotate;

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
        let len = part.len() / self.rows;
        &part[row * len..(row + 1) * len]
    }

    /// Writes the values of `rows`, row-major: `scale · q + bias` rounded once for affine codes.
    ///
    /// # Panics
    /// When `rows` leaves the matrix or `out` is not `rows.len() * cols` long.
    pub fn dequantize(&self, backend: Backend, rows: Range<usize>, out: &mut [f32]) {
        self.check(&rows, out.len(), self.cols);
        backend.run(Dequantize { matrix: self, rows, out });
    }

    fn check(&self, rows: &Range<usize>, out: usize, width: usize) {
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert_eq!(out, rows.len() * width, "outputs of rows {rows:?}");
    }
}

/// A vector of activations with its sums over groups of 32, 64 and 128, shared by all rows.
///
/// Buffers are reused: [`Self::set`] allocates only when a vector is longer than all before.
#[derive(Clone, Debug, Default)]
pub struct Activation {
    x: Vec<f32>,
    /// Sums over 32, 64 and 128 columns, each padded with zeros to whole lanes.
    sums: [Vec<f32>; 3],
    /// The vector in the basis of trellis codes; empty where its length cannot be rotated.
    rotated: Vec<f32>,
}

impl Activation {
    /// An empty vector.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a copy of `x` and sums its groups.
    ///
    /// The sum over 32 columns adds the two halves, then sixteen lanes as every dot product does;
    /// sums over 64 and 128 add two sums of half the size.
    pub fn set(&mut self, backend: Backend, x: &[f32]) {
        self.x.clear();
        self.x.extend_from_slice(x);
        for (sums, group) in self.sums.iter_mut().zip([32, 64, 128]) {
            sums.clear();
            sums.resize((x.len() / group).next_multiple_of(LANES), 0.0);
        }
        let [sums32, sums64, sums128] = &mut self.sums;
        backend.run(Prepare { x, sums: sums32 });
        add_pairs(&sums32[..x.len() / 32], sums64);
        add_pairs(&sums64[..x.len() / 64], sums128);
        self.rotated.clear();
        if x.len().is_multiple_of(Trellis::MIN_ROTATION as usize) && !x.is_empty() {
            self.rotated.extend_from_slice(x);
            backend.run(Rotate { x: &mut self.rotated });
        }
    }

    /// The vector in the basis of trellis codes.
    pub(crate) fn rotated(&self) -> &[f32] {
        &self.rotated
    }

    /// The vector.
    pub fn x(&self) -> &[f32] {
        &self.x
    }

    /// Sums over groups of `group_size`, followed by zeros up to a multiple of the lanes.
    pub(crate) fn sums(&self, group_size: usize) -> &[f32] {
        &self.sums[group_size.trailing_zeros() as usize - 5]
    }
}

/// Rotates a vector into the basis of trellis codes.
struct Rotate<'a> {
    x: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let block = Trellis::rotation(self.x.len());
        rotate(self.x, block);
    }
}

fn add_pairs(sums: &[f32], out: &mut [f32]) {
    for (pair, out) in sums.chunks_exact(2).zip(out) {
        *out = pair[0] + pair[1];
    }
}

/// `out[i]` is the dot product of row `rows.start + i` and `x`.
///
/// Plain floats: [`dot`](fn@crate::dot). Affine codes, with sixteen lanes `acc`, `d` and the sum over
/// lanes of `dot`:
///
/// ```text
/// acc[l] = Σ bias[g] · xsum[g]          over groups g = l, l + 16, …
/// for each group g in order:
///     d[l]   = Σ q[c] · x[c]            over its columns c = l, l + 16, …
///     acc[l] = scale[g] · d[l] + acc[l]
/// ```
///
/// Every `a · b + c` rounds once. A row's result does not depend on the other rows.
///
/// # Panics
/// When `rows` leaves the matrix, `x` is not `cols` long or `out` not `rows.len()`.
pub fn matvec(
    backend: Backend,
    m: &Matrix<'_>,
    x: &Activation,
    rows: Range<usize>,
    out: &mut [f32],
) {
    m.check(&rows, out.len(), 1);
    assert_eq!(x.x.len(), m.cols, "activations of a matrix of {} columns", m.cols);
    backend.run(MatVec { matrix: m, x, rows, out });
}
