//! What an error in one column costs the others: the Gram of the inputs, factored.

use crate::encoding::{Encoding, Trellis};
use crate::quantize::QuantError;

/// The factored Gram of the inputs of a matrix.
#[derive(Clone, Debug)]
pub struct Feedback {
    cols: usize,
    /// Columns rotated together, 1 for the basis of the weights.
    rotation: usize,
}

impl Feedback {
    /// Factors `gram`, `[cols, cols]`, the mean of `x xᵀ` over inputs `x`, for matrices that are
    /// stored in `encoding`.
    ///
    /// # Errors
    /// [`QuantError::Gram`] names a moment that is not finite, or negative on the diagonal.
    pub fn new(
        gram: &[f32],
        cols: usize,
        damping: f32,
        encoding: Encoding,
    ) -> Result<Self, QuantError> {
        check(gram, cols, damping)?;
        Ok(Self { cols, rotation: rotation(cols, encoding) })
    }

    /// Whether this was factored for `cols` columns in the basis of `encoding`.
    pub(crate) fn check(&self, cols: usize, encoding: Encoding) -> Result<(), QuantError> {
        if self.cols == cols && self.rotation == rotation(cols, encoding) {
            return Ok(());
        }
        let (expected, found) = (cols as u64, self.cols as u64);
        Err(QuantError::OtherGram { expected, found, encoding })
    }
}

/// Columns that `encoding` rotates together.
const fn rotation(cols: usize, encoding: Encoding) -> usize {
    match encoding {
        Encoding::Trellis(_) => Trellis::rotation(cols),
        _ => 1,
    }
}

fn check(gram: &[f32], cols: usize, damping: f32) -> Result<(), QuantError> {
    let expected = (cols as u64).saturating_mul(cols as u64).saturating_mul(4);
    let found = size_of_val(gram) as u64;
    if expected != found {
        return Err(QuantError::Length { part: "gram", expected, found });
    }
    if !(damping.is_finite() && damping >= 0.0) {
        return Err(QuantError::Damping(damping));
    }
    for (row, moments) in gram.chunks_exact(cols.max(1)).enumerate() {
        if let Some(col) = moments.iter().position(|v| !v.is_finite()) {
            return Err(QuantError::gram(row, col, moments[col]));
        }
        if moments[row] < 0.0 {
            return Err(QuantError::gram(row, row, moments[row]));
        }
    }
    Ok(())
}
