//! Values of tensors, and products with them, read from a bundle a bounded piece at a time.

use std::ops::Range;

use shardwright_format::io::AlignedBuf;
use shardwright_format::{TensorEntry, Unit};
use shardwright_quant::{Activations, Backend, Matrix, Outputs, matmul};

use crate::bundle::Bundle;
use crate::status::Failure;

/// Bytes of a tensor that are in memory at once, about: at least the rows that can only be read together.
const PIECE: u64 = 4 << 20;

/// Writes the values of `count` rows from `first` on, row-major: those that the runtime computes with.
///
/// # Errors
/// A tensor or rows that do not exist, an `out` of another length than theirs, what cannot be read.
pub fn decode(
    bundle: &Bundle,
    (unit, entry): (Unit, &TensorEntry),
    rows: Range<u64>,
    out: &mut [f32],
) -> Result<(), Failure> {
    let cols = entry.cols as usize;
    for piece in pieces(entry, rows.clone())? {
        let read = entry.readable(&piece);
        let mut buf = AlignedBuf::default();
        let matrix = read_rows(bundle, unit, entry, read.clone(), &mut buf)?;
        // Of rows that can only be read with others, those that were asked for.
        let within = (piece.start - read.start) as usize..(piece.end - read.start) as usize;
        let at = (piece.start - rows.start) as usize * cols;
        let out = &mut out[at..][..within.len() * cols];
        matrix.dequantize(Backend::detect(), within, out);
    }
    Ok(())
}

/// `out = x · tensorᵀ` for `x: [n, cols]`, `out: [n, rows]`: the runtime's product, with its order of sums.
///
/// # Errors
/// What cannot be read.
pub fn multiply(
    bundle: &Bundle,
    (unit, entry): (Unit, &TensorEntry),
    x: &[f32],
    out: &mut [f32],
) -> Result<(), Failure> {
    let mut input = Activations::new();
    input.set(Backend::detect(), x, entry.cols as usize);
    let mut rest = Outputs::new(out, input.n());
    let mut buf = AlignedBuf::default();
    for piece in pieces(entry, 0..entry.rows)? {
        let matrix = read_rows(bundle, unit, entry, piece, &mut buf)?;
        // An output depends on its row alone, so that pieces change no bit.
        let (now, later) = rest.split_at(matrix.rows());
        matmul(&matrix, &input, 0..matrix.rows(), now);
        rest = later;
    }
    Ok(())
}

/// The matrix that some rows of a tensor are by themselves.
fn read_rows<'b>(
    bundle: &Bundle,
    unit: Unit,
    entry: &TensorEntry,
    rows: Range<u64>,
    buf: &'b mut AlignedBuf,
) -> Result<Matrix<'b>, Failure> {
    let count = (rows.end - rows.start) as usize;
    bundle.weights().read_rows(unit, entry, rows, buf)?;
    Ok(Matrix::new(entry.encoding, count, entry.cols as usize, buf.as_slice())?)
}

/// Rows cut where they can be read apart, into pieces of about [`PIECE`] bytes.
fn pieces(
    entry: &TensorEntry,
    rows: Range<u64>,
) -> Result<impl Iterator<Item = Range<u64>>, Failure> {
    let block = entry.encoding.row_block();
    let step = (PIECE / entry.row_len()?.max(1)).max(1) * block;
    let mut next = rows.start;
    Ok(std::iter::from_fn(move || {
        let start = next;
        next = rows.end.min((start / step + 1) * step);
        (start < rows.end).then_some(start..next)
    }))
}
