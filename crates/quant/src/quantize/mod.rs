//! Grouped affine quantization: `f32` rows to codes, scales and biases.

mod group;
mod lanes;
mod search;
#[cfg(test)]
pub mod tests;

use serde::{Deserialize, Serialize};

use crate::encoding::{Affine, Encoding, EncodingError, Float};
use crate::kernel::Backend;

/// How the scale and bias of a group are chosen. Both round them to storage first, then choose the
/// nearest codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Bias at the least weight, the largest code at the greatest.
    MinMax,
    /// The least squared error among many clipped ranges, each refined by least squares.
    /// Never worse than [`Self::MinMax`] on any group.
    #[default]
    Search,
}

/// What quantization cost, summed over groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct QuantStats {
    /// Weights quantized.
    pub weights: u64,
    /// Groups quantized.
    pub groups: u64,
    /// `Σ (w - ŵ)²`.
    pub sum_sq_error: f64,
    /// `Σ w²`.
    pub sum_sq: f64,
    /// The largest `|w - ŵ|`.
    pub max_abs_error: f32,
    /// Groups where search beat min-max.
    pub improved_groups: u64,
    /// Groups whose weights are all equal.
    pub constant_groups: u64,
}

impl QuantStats {
    /// Adds what another part of the same tensor cost.
    pub fn merge(&mut self, other: &Self) {
        self.weights += other.weights;
        self.groups += other.groups;
        self.sum_sq_error += other.sum_sq_error;
        self.sum_sq += other.sum_sq;
        self.max_abs_error = self.max_abs_error.max(other.max_abs_error);
        self.improved_groups += other.improved_groups;
        self.constant_groups += other.constant_groups;
    }

    /// Root of the squared error over the squared weights; 0 for an exact result.
    pub fn relative_rmse(&self) -> f64 {
        if self.sum_sq_error == 0.0 { 0.0 } else { (self.sum_sq_error / self.sum_sq).sqrt() }
    }

    /// Signal to quantization noise, `10 log10(Σ w² / Σ (w - ŵ)²)`; infinite for an exact result.
    pub fn sqnr_db(&self) -> f64 {
        -20.0 * self.relative_rmse().log10()
    }
}

/// Where a quantized matrix goes.
#[derive(Debug)]
pub struct PartsMut<'a> {
    /// Packed codes, `[rows, cols * bits / 8]`.
    pub weight: &'a mut [u8],
    /// Scales, `[rows, cols / group_size]`.
    pub scales: &'a mut [u8],
    /// Biases, as long as `scales`.
    pub biases: &'a mut [u8],
}

impl<'a> PartsMut<'a> {
    /// Splits the bytes of a stored `rows × cols` matrix: weight, then scales, then biases.
    ///
    /// # Errors
    /// As [`quantize`]: groups that do not divide a row, or a length that is not the matrix's.
    pub fn split(
        affine: Affine,
        rows: usize,
        cols: usize,
        bytes: &'a mut [u8],
    ) -> Result<Self, QuantError> {
        let parts = Encoding::Affine(affine).parts(rows as u64, cols as u64)?;
        check("stored matrix", parts.total(), bytes.len())?;
        let (weight, rest) = bytes.split_at_mut(parts.weight as usize);
        let (scales, biases) = rest.split_at_mut(parts.scales as usize);
        Ok(Self { weight, scales, biases })
    }
}

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
}

fn check(part: &'static str, expected: u64, found: usize) -> Result<(), QuantError> {
    let found = found as u64;
    if expected == found { Ok(()) } else { Err(QuantError::Length { part, expected, found }) }
}

/// Quantizes `x`, whole rows of `cols` weights, into `out`.
///
/// Every bit of the result is the same for every backend, and a row's result does not depend on
/// the rows that are quantized with it.
///
/// # Errors
/// [`QuantError::NotFinite`] and [`QuantError::ScaleRange`] name the first offender, rows counted
/// from the start of `x`; the others say which slice does not fit the shape. After an error the
/// contents of `out` are unspecified.
pub fn quantize(
    backend: Backend,
    x: &[f32],
    cols: usize,
    affine: Affine,
    method: Method,
    out: PartsMut<'_>,
) -> Result<QuantStats, QuantError> {
    let rows = x.len().checked_div(cols).unwrap_or(0);
    check("weights", (rows * cols * 4) as u64, size_of_val(x))?;
    let parts = Encoding::Affine(affine).parts(rows as u64, cols as u64)?;
    check("codes", parts.weight, out.weight.len())?;
    check("scales", parts.scales, out.scales.len())?;
    check("biases", parts.biases, out.biases.len())?;
    backend.run(group::Quantize { x, cols, affine, method, out })
}
