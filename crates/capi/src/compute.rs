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

#[cfg(test)]
mod tests {
    use shardwright_format::{Role, SourceView};
    use shardwright_quant::{Encoding, Float, Trellis, dot};
    use shardwright_testing::models::{Codes, TestBundle};

    use super::*;

    /// Every value and every product, whichever rows are asked for together: of floats, of codes whose rows can be
    /// read alone, and of a trellis, whose rows cannot.
    #[test]
    fn rows_have_the_same_values_however_they_are_asked_for() {
        for codes in [Codes::Plain, Codes::Affine(3), Codes::Trellis(2)] {
            let made = TestBundle::new("qwen3_moe", codes);
            let bundle = Bundle::open(made.root.path()).unwrap();
            for index in 0..bundle.len() {
                let last = bundle.describe(index).unwrap().count - 1;
                let tensor = bundle.tensor(index, last).unwrap();
                let (rows, cols) = (tensor.1.rows, tensor.1.cols as usize);
                let mut all = vec![0.0; rows as usize * cols];
                decode(&bundle, tensor, 0..rows, &mut all).unwrap();
                for wanted in [0..1, rows / 3..rows, rows - 1..rows] {
                    let part = &all[wanted.start as usize * cols..wanted.end as usize * cols];
                    let mut out = vec![0.0; part.len()];
                    decode(&bundle, tensor, wanted, &mut out).unwrap();
                    assert!(out == part, "{} of {}", tensor.1.role, tensor.0);
                }
                products(&bundle, tensor, &all);
            }
        }
    }

    fn products(bundle: &Bundle, tensor: (Unit, &TensorEntry), all: &[f32]) {
        let (rows, cols) = (tensor.1.rows as usize, tensor.1.cols as usize);
        let x: Vec<_> = (0..3 * cols).map(|i| (i % 7) as f32 - 3.0).collect();
        let mut out = vec![0.0; 3 * rows];
        multiply(bundle, tensor, &x, &mut out).unwrap();
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact(rows)) {
            let mut alone = vec![0.0; rows];
            multiply(bundle, tensor, x, &mut alone).unwrap();
            assert!(alone == out, "{} of {}", tensor.1.role, tensor.0);
            for (row, out) in all.chunks_exact(cols).zip(out).step_by(17) {
                let expected = dot(Backend::detect(), row, x);
                match tensor.1.encoding {
                    // Its product is taken in the rotated basis.
                    Encoding::Trellis(_) => assert!((expected - out).abs() < 1e-3),
                    _ => assert_eq!(expected.to_bits(), out.to_bits()),
                }
            }
        }
    }

    #[test]
    fn pieces_follow_each_other_and_end_where_rows_can_be_read() {
        let source = SourceView::whole("w".to_owned(), Float::Bf16, vec![3000, 4096], 4096);
        let trellis = Encoding::Trellis(Trellis::new(4, 10).unwrap());
        for (encoding, count) in [(Encoding::F32, 12), (trellis, 2), (Encoding::Bf16, 6)] {
            let entry = TensorEntry::new(Role::LmHead, [3000, 4096], encoding, source.clone());
            let found: Vec<_> = pieces(&entry, 10..3000).unwrap().collect();
            assert_eq!(found.len(), count);
            assert_eq!((found[0].start, found[count - 1].end), (10, 3000));
            for pair in found.windows(2) {
                assert_eq!(pair[0].end, pair[1].start);
                assert!(pair[0].end.is_multiple_of(encoding.row_block()));
            }
        }
    }
}
