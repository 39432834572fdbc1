//! One byte per value, times a scale per block: FP8 and INT8.

use shardwright_quant::{f8_e4m3, f8_e5m2};

use super::{Decoding, Fetch, Rect};
use crate::checkpoint::Dtype;
use crate::error::Result;

impl Decoding<'_> {
    /// Value times scale, rounded once, in 32 bits.
    pub(super) fn scaled(
        &self,
        values: Dtype,
        [block_rows, block_cols]: [u64; 2],
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [weight, scales] = &self.parts[..] else { return Ok(()) };
        let range = (rect.rows.clone(), rect.cols.clone());
        let bytes = weight.bytes(rect.matrix, self.cols, range, fetch)?;
        let grid_rows = rect.rows.start / block_rows..rect.rows.end.div_ceil(block_rows);
        let grid_cols = rect.cols.start / block_cols..rect.cols.end.div_ceil(block_cols);
        let grid_width = (grid_cols.end - grid_cols.start) as usize;
        let (grid_row, grid_col) = (grid_rows.start, grid_cols.start);
        let stride = self.cols.div_ceil(block_cols);
        let scales = scales.floats(rect.matrix, stride, (grid_rows, grid_cols), fetch)?;
        let table = table(values);
        let rows = bytes
            .chunks_exact(rect.width())
            .zip(out.chunks_exact_mut(rect.width()));
        for (r, (bytes, out)) in (rect.rows.start..).zip(rows) {
            let scales = &scales[(r / block_rows - grid_row) as usize * grid_width..];
            let mut at = 0;
            for (c, scale) in (grid_col..).zip(&scales[..grid_width]) {
                let end = ((c + 1) * block_cols).min(rect.cols.end) - rect.cols.start;
                for i in at..end as usize {
                    out[i] = table[usize::from(bytes[i])] * scale;
                }
                at = end as usize;
            }
        }
        Ok(())
    }
}

/// The value of every byte.
fn table(values: Dtype) -> [f32; 256] {
    std::array::from_fn(|byte| match values {
        Dtype::F8E4m3 => f8_e4m3(byte as u8),
        Dtype::F8E5m2 => f8_e5m2(byte as u8),
        _ => f32::from(byte as u8 as i8),
    })
}
