//! Every tensor of a model, some rows at a time.

use std::ops::Range;

use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Unit};
use shardwright_quant::{Backend, Float, Matrix, MatrixError, narrow};

use super::ExportOptions;
use crate::error::Result;

/// Rows of a tensor, as the model stores them.
pub(super) struct Rows<'a> {
    pub(super) unit: Unit,
    pub(super) entry: &'a TensorEntry,
    /// Which rows of the tensor.
    pub(super) range: Range<u64>,
    /// A matrix that has them from `first` on.
    matrix: Matrix<'a>,
    first: u64,
}

impl Rows<'_> {
    /// A matrix as the model stores it, and where the rows are in it.
    pub(super) fn stored(&self) -> (&Matrix<'_>, Range<usize>) {
        let count = (self.range.end - self.range.start) as usize;
        (&self.matrix, self.first as usize..self.first as usize + count)
    }

    /// Their values, row-major.
    pub(super) fn values(&self) -> Vec<f32> {
        let (first, count) = (self.first as usize, (self.range.end - self.range.start) as usize);
        let mut values = vec![0.0; count * self.matrix.cols()];
        self.matrix
            .dequantize(Backend::detect(), first..first + count, &mut values);
        values
    }
}

impl<'a> Rows<'a> {
    /// Their bytes: values or codes, and for codes scales and biases.
    pub(super) fn parts(&self) -> [&'a [u8]; 3] {
        let (matrix, rows) = (&self.matrix, self.matrix.rows().max(1) as u64);
        let (first, count) = (self.first, self.range.end - self.range.start);
        [matrix.weight(), matrix.scales(), matrix.biases()].map(|part| {
            let row = part.len() as u64 / rows;
            &part[(first * row) as usize..((first + count) * row) as usize]
        })
    }
}

/// Calls `each` with the rows of every tensor of `units`, in order. Memory is one unit of at most
/// `whole_limit` bytes, or a tile.
///
/// # Errors
/// What reading refuses, and what `each` does.
pub(super) fn each_rows(
    weights: &Weights,
    units: impl Iterator<Item = Unit>,
    options: &ExportOptions,
    each: &mut dyn FnMut(&Rows<'_>) -> Result<()>,
) -> Result<()> {
    let mut buf = AlignedBuf::default();
    for unit in units {
        let layout = weights.layout(unit)?;
        let whole = layout.len <= options.whole_limit;
        if whole {
            weights.read(unit, &mut buf)?;
        }
        for entry in layout.tensors.iter() {
            let block = entry.encoding.row_block();
            let step = (options.tile / entry.cols.max(1) / block).max(1) * block;
            for start in (0..entry.rows).step_by(step as usize) {
                let rows = start..(start + step).min(entry.rows);
                each(&read(weights, (unit, entry), rows, whole, &mut buf)?)?;
            }
        }
    }
    Ok(())
}

/// `rows`, which can be read alone: from the unit in `buf` where it is `whole`, else from the files.
fn read<'a>(
    weights: &Weights,
    (unit, entry): (Unit, &'a TensorEntry),
    rows: Range<u64>,
    whole: bool,
    buf: &'a mut AlignedBuf,
) -> Result<Rows<'a>> {
    let refuse =
        |e: MatrixError| FormatError::file(weights.root(), format!("{unit} {}: {e}", entry.role));
    let count = if whole { entry.rows } else { rows.end - rows.start };
    let (first, bytes) = if whole {
        let len = entry.byte_len().map_err(|e| refuse(e.into()))?;
        (rows.start, &buf.as_slice()[entry.offset as usize..][..len as usize])
    } else {
        weights.read_rows(unit, entry, rows.clone(), buf)?;
        (0, buf.as_slice())
    };
    let matrix = Matrix::new(entry.encoding, count as usize, entry.cols as usize, bytes);
    Ok(Rows { unit, entry, range: rows, matrix: matrix.map_err(refuse)?, first })
}

/// Values in `dtype`, little-endian.
pub(super) fn narrowed(dtype: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    narrow(dtype, values, &mut bytes);
    bytes
}
