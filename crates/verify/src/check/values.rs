//! Rows of a tensor as numbers, however they are stored.

use std::ops::Range;

use shardwright_format::io::AlignedBuf;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, TensorEntry, Unit};
use shardwright_quant::{Backend, Matrix};

use crate::error::Result;

/// Makes `out` the values of some rows, `[rows, cols]`, by the scalar definition of their encoding; `bytes`
/// are then those rows as the model gives them.
///
/// # Errors
/// What the operating system refuses, and rows that cannot be read alone.
pub(crate) fn read(
    weights: &Weights,
    (unit, entry): (Unit, &TensorEntry),
    rows: &Range<u64>,
    bytes: &mut AlignedBuf,
    out: &mut Vec<f32>,
) -> Result<()> {
    let (count, cols) = ((rows.end - rows.start) as usize, entry.cols as usize);
    weights.read_rows(unit, entry, rows.clone(), bytes)?;
    let matrix = Matrix::new(entry.encoding, count, cols, bytes.as_slice());
    let refuse = |e| FormatError::file(weights.root(), format!("{unit} {}: {e}", entry.role));
    out.resize(count * cols, 0.0);
    matrix
        .map_err(refuse)?
        .dequantize(Backend::Scalar, 0..count, out);
    Ok(())
}
