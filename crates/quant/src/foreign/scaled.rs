//! One byte per value times a scale per block (FP8, INT8), and four-bit floats with a power of two
//! per 32 of them (MXFP4) or a scale per 16 (NVFP4).

use super::Rect;
use crate::float8::f4_e2m1;

/// Values that share a power in MXFP4.
pub const MXFP4_GROUP: u64 = 32;
/// Values that share a scale in NVFP4.
pub const NVFP4_GROUP: u64 = 16;

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

/// Four-bit floats times the scale of their group, rounded once, in 32 bits. `bytes` hold two codes each, the low four bits
/// the first; `out` is as many whole groups of `GROUP` values as there are `scales`.
pub fn fp4<const GROUP: usize>(bytes: &[u8], scales: &[f32], out: &mut [f32]) {
    let values: [f32; 16] = std::array::from_fn(|code| f4_e2m1(code as u8));
    let (groups, _) = out.as_chunks_mut::<GROUP>();
    for ((out, block), scale) in groups
        .iter_mut()
        .zip(bytes.chunks_exact(GROUP / 2))
        .zip(scales)
    {
        for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
            let codes = [byte & 15, byte >> 4];
            *pair = codes.map(|code| values[usize::from(code)] * scale);
        }
    }
}
