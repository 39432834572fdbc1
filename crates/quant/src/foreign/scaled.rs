//! One byte per value times a scale per block (FP8, INT8), and four-bit floats with a power of two
//! per 32 of them (MXFP4).

use super::Rect;
use crate::float8::{f4_e2m1, f8_e8m0};

/// Values that share a power in MXFP4.
pub const MXFP4_GROUP: u64 = 32;

/// Value times scale, rounded once, in 32 bits. `value` says what a byte means; `block` is how many
/// rows and columns share a scale. `scales` are those of the blocks that `rect` touches.
pub fn scaled(
    value: impl Fn(u8) -> f32,
    bytes: &[u8],
    scales: &[f32],
    [block_rows, block_cols]: [u64; 2],
    rect: &Rect,
    out: &mut [f32],
) {
    let table: [f32; 256] = std::array::from_fn(|byte| value(byte as u8));
    let (first_row, first_col) = (rect.rows.start / block_rows, rect.cols.start / block_cols);
    let grid_width = (rect.cols.end.div_ceil(block_cols) - first_col) as usize;
    let rows = bytes
        .chunks_exact(rect.width())
        .zip(out.chunks_exact_mut(rect.width()));
    for (r, (bytes, out)) in (rect.rows.start..).zip(rows) {
        let scales = &scales[(r / block_rows - first_row) as usize * grid_width..];
        // Blocks are counted from the matrix's first column, `out` from the rectangle's.
        let mut at = 0;
        for (c, scale) in (first_col..).zip(&scales[..grid_width]) {
            let end = ((c + 1) * block_cols).min(rect.cols.end) - rect.cols.start;
            for i in at..end as usize {
                out[i] = table[usize::from(bytes[i])] * scale;
            }
            at = end as usize;
        }
    }
}

/// Value times power: exact. `bytes` hold 32 codes in 16 bytes, the low four bits of a byte the
/// first of its two; `powers` one byte for each 32.
pub fn mxfp4(bytes: &[u8], powers: &[u8], out: &mut [f32]) {
    let values: [f32; 16] = std::array::from_fn(|code| f4_e2m1(code as u8));
    let (groups, _) = out.as_chunks_mut::<{ MXFP4_GROUP as usize }>();
    let (blocks, _) = bytes.as_chunks::<{ MXFP4_GROUP as usize / 2 }>();
    for ((out, block), power) in groups.iter_mut().zip(blocks).zip(powers) {
        let power = f8_e8m0(*power);
        for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
            let codes = [byte & 15, byte >> 4];
            *pair = codes.map(|code| values[usize::from(code)] * power);
        }
    }
}
