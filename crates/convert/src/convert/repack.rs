//! Takes over the codes of a source that has them in the bundle's own encoding.

use std::ops::Range;

use shardwright_format::checkpoint::read_codes;
use shardwright_quant::{Backend, Matrix, PartsMut, QuantStats, widen};

use super::source::Reader;
use crate::error::Result;
use crate::plan::{PlannedTensor, takes_over};

/// Weights of this size, 2^111, and above have no codes: their groups' scales may reach 2^112, from where on a
/// reader's values could come out infinite.
pub const CODED_LIMIT: f32 = f32::from_bits((127 + 111) << 23);

/// Some rows in the encoding of their tensor, each value of which is the source's.
pub struct Copied {
    bytes: Vec<u8>,
    stats: QuantStats,
}

/// The rows of a view as its source's codes give them, if they are in the encoding of the tensor and
/// stand for the very values that were `decoded`.
pub fn copied(
    reader: &Reader<'_>,
    tensor: &PlannedTensor<'_>,
    rows: Range<u64>,
    decoded: &[u8],
) -> Result<Option<Copied>> {
    let (view, entry) = (&tensor.view, tensor.entry);
    if view.codes(entry.cols) != Some(entry.encoding) || !takes_over(tensor.zeros, view) {
        return Ok(None);
    }
    let checkpoint = reader.source.checkpoint;
    let (count, cols) = ((rows.end - rows.start) as usize, entry.cols as usize);
    let mut fetch = |file, offset, out: &mut [u8]| reader.source.read_at(file, offset, out);
    let bytes = read_codes(checkpoint, view, rows, entry.cols, &mut fetch)?;
    let Some(bytes) = bytes else { return Ok(None) };
    let Ok(matrix) = Matrix::new(entry.encoding, count, cols, &bytes) else { return Ok(None) };
    let (mut wanted, mut found) = (vec![0.0; count * cols], vec![0.0; count * cols]);
    widen(view.dtype, decoded, &mut wanted);
    matrix.dequantize(Backend::detect(), 0..count, &mut found);
    // Equal, not the same bits: a zero may change its sign. What is not finite equals nothing.
    let equal = wanted
        .iter()
        .zip(&found)
        .all(|(a, b)| a == b && a.abs() < CODED_LIMIT);
    let stats = QuantStats {
        weights: wanted.len() as u64,
        sum_sq: wanted.iter().map(|x| f64::from(*x) * f64::from(*x)).sum(),
        ..QuantStats::default()
    };
    Ok(equal.then_some(Copied { bytes, stats }))
}

impl Copied {
    /// Fills the parts of the rows; gives what they lost, nothing.
    pub fn fill(&self, out: &mut PartsMut<'_>) -> QuantStats {
        let (weight, rest) = self.bytes.split_at(out.weight.len());
        let (scales, biases) = rest.split_at(out.scales.len());
        out.weight.copy_from_slice(weight);
        out.scales.copy_from_slice(scales);
        out.biases.copy_from_slice(biases);
        self.stats
    }
}
