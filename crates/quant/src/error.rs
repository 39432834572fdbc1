//! Why weights cannot be quantized.

use crate::encoding::{Encoding, EncodingError, Float};

/// Why weights cannot be quantized.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuantError {
    /// A weight is infinite or not a number.
    #[error("row {row}, column {col}: expected a finite weight, found {value}")]
    NotFinite {
        /// Its row.
        row: u64,
        /// Its column.
        col: u64,
        /// The weight.
        value: f32,
    },
    /// A scale or bias is too large for its type.
    #[error(
        "row {row}, column {col}: {value} is too large for a scale or bias in {}; bf16 holds more",
        .dtype.name()
    )]
    ScaleRange {
        /// The group's row.
        row: u64,
        /// The group's first column.
        col: u64,
        /// The scale or bias before rounding.
        value: f32,
        /// Its type.
        dtype: Float,
    },
    /// The encoding cannot hold the shape.
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    /// A slice is too long or too short for the shape.
    #[error("{part}: expected {expected} bytes, found {found}")]
    Length {
        /// Which slice.
        part: &'static str,
        /// Bytes the shape asks for.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// Floats are stored as they are, and so are small floats and scales of 32 bits.
    #[error("{} holds values as a source has them: nothing to quantize", .0.label())]
    NoCodes(Encoding),
    /// The method needs to know more of the inputs.
    #[error("{method}: needs {needs} to guide it")]
    NeedsInputs {
        /// The method, or the encoding.
        method: &'static str,
        /// What is missing.
        needs: &'static str,
    },
    /// A moment of the inputs that no inputs have.
    #[error(
        "moment of inputs {row} and {col}: expected a finite number, not negative on the diagonal, \
         found {value}"
    )]
    Moment {
        /// The Gram's row.
        row: u64,
        /// The Gram's column.
        col: u64,
        /// The moment.
        value: f32,
    },
    /// A damping that is negative or not a number.
    #[error("damping: expected a finite number of at least 0, found {0}")]
    Damping(f32),
    /// A Gram that no damping made positive definite.
    #[error("the Gram of {cols} inputs is not positive definite, even with a damping of {damping}")]
    NotPositive {
        /// Inputs.
        cols: u64,
        /// The greatest damping tried.
        damping: f32,
    },
    /// A factored Gram is of one width and one basis.
    #[error(
        "a factored Gram of {found} inputs for {expected} columns of {}: a Gram is of one width and basis",
        .encoding.label()
    )]
    OtherHessian {
        /// Columns of the matrix.
        expected: u64,
        /// Inputs of the Gram.
        found: u64,
        /// The encoding of the matrix.
        encoding: Encoding,
    },
}

impl QuantError {
    /// The moment of two inputs that cannot be.
    pub(crate) const fn moment(row: usize, col: usize, value: f32) -> Self {
        Self::Moment { row: row as u64, col: col as u64, value }
    }
}
