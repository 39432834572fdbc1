//! Rows of a matrix in trellis codes: as values, and times a vector.

use std::ops::Range;

use half::bf16;

use super::rotate::rotate_back;
use super::stream::{decode, stream_len};
use crate::encoding::Trellis;
use crate::matrix::Matrix;

/// Rows of a tile, as a length.
const TILE: usize = Trellis::TILE_ROWS as usize;

/// A part of a tile: where its streams begin, one after the other for each column.
struct Part<'a> {
    streams: &'a [u8],
    /// Bytes of one column's stream.
    stream: usize,
    /// Rows within the tile.
    rows: Range<usize>,
    /// The first of them in the matrix.
    first: usize,
}

/// The tiles that `rows` touch, in order.
fn parts<'a>(
    m: &Matrix<'a>,
    trellis: Trellis,
    rows: Range<usize>,
) -> impl Iterator<Item = Part<'a>> {
    let (cols, all, weight) = (m.cols(), m.rows(), m.weight());
    (rows.start / TILE..rows.end.div_ceil(TILE)).map(move |tile| {
        let start = tile * TILE;
        let stream = stream_len(trellis, TILE.min(all - start));
        // Tiles before this one are whole: each column takes TILE * bits / 8 bytes.
        let offset = tile * stream_len(trellis, TILE) * cols;
        let first = rows.start.max(start);
        Part {
            streams: &weight[offset..offset + stream * cols],
            stream,
            rows: first - start..rows.end.min(start + TILE) - start,
            first,
        }
    })
}

/// The scale of a row, `bf16`.
#[inline(always)]
fn scale(m: &Matrix<'_>, row: usize) -> f32 {
    let bytes = m.scales();
    bf16::from_le_bytes([bytes[2 * row], bytes[2 * row + 1]]).to_f32()
}

/// The values of `rows`, row-major: `D · H · (scale · value)`.
#[inline(always)]
pub fn dequantize(m: &Matrix<'_>, trellis: Trellis, rows: Range<usize>, out: &mut [f32]) {
    let cols = m.cols();
    let mut out = out;
    let mut column = [0.0; TILE];
    for part in parts(m, trellis, rows) {
        let (tile, rest) = out.split_at_mut(part.rows.len() * cols);
        out = rest;
        let column = &mut column[..part.rows.len()];
        for (col, stream) in part.streams.chunks_exact(part.stream).enumerate() {
            decode(trellis, stream, part.rows.start, column);
            for (row, value) in column.iter().enumerate() {
                tile[row * cols + col] = *value;
            }
        }
        for (row, values) in tile.chunks_exact_mut(cols).enumerate() {
            let scale = scale(m, part.first + row);
            values.iter_mut().for_each(|v| *v *= scale);
            rotate_back(values, Trellis::rotation(cols));
        }
    }
}

/// `out[i] = scale · Σ value · x` for rotated `x`: columns in order within a block of the rotation,
/// then blocks in order.
#[inline(always)]
pub fn matvec(m: &Matrix<'_>, trellis: Trellis, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
    let block = Trellis::rotation(m.cols());
    let mut out = out;
    let (mut column, mut sums) = ([0.0; TILE], [0.0; TILE]);
    for part in parts(m, trellis, rows) {
        let (tile, rest) = out.split_at_mut(part.rows.len());
        out = rest;
        let (column, sums) = (&mut column[..tile.len()], &mut sums[..tile.len()]);
        tile.fill(0.0);
        for (x, streams) in x
            .chunks_exact(block)
            .zip(part.streams.chunks_exact(block * part.stream))
        {
            sums.fill(0.0);
            for (x, stream) in x.iter().zip(streams.chunks_exact(part.stream)) {
                decode(trellis, stream, part.rows.start, column);
                for (sum, value) in sums.iter_mut().zip(&*column) {
                    *sum = value.mul_add(*x, *sum);
                }
            }
            tile.iter_mut()
                .zip(&*sums)
                .for_each(|(out, sum)| *out += sum);
        }
        for (row, out) in tile.iter_mut().enumerate() {
            *out *= scale(m, part.first + row);
        }
    }
}
