//! Four-bit floats with a power of two per 32 of them.

use shardwright_quant::{f4_e2m1, f8_e8m0};

use super::{Decoding, Fetch, Rect};
use crate::error::Result;

/// Values that share a power.
pub(in crate::checkpoint) const GROUP: u64 = 32;

impl Decoding<'_> {
    /// Value times power: exact. The low four bits of a byte are the first of its two values.
    pub(super) fn mxfp4(&self, rect: &Rect, out: &mut [f32], fetch: &mut Fetch<'_>) -> Result<()> {
        let [blocks, scales, ..] = &self.parts[..] else { return Ok(()) };
        let groups = rect.cols.start / GROUP..rect.cols.end / GROUP;
        let rows = || rect.rows.clone();
        let columns = rect.cols.start / 2..rect.cols.end / 2;
        let bytes = blocks.bytes(rect.matrix, self.cols / 2, (rows(), columns), fetch)?;
        let scales = scales.bytes(rect.matrix, self.cols / GROUP, (rows(), groups), fetch)?;
        let values: [f32; 16] = std::array::from_fn(|code| f4_e2m1(code as u8));
        let (groups, _) = out.as_chunks_mut::<{ GROUP as usize }>();
        let (blocks, _) = bytes.as_chunks::<{ GROUP as usize / 2 }>();
        for ((out, block), scale) in groups.iter_mut().zip(blocks).zip(scales) {
            let scale = f8_e8m0(scale);
            for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(block) {
                let codes = [byte & 15, byte >> 4];
                *pair = codes.map(|code| values[usize::from(code)] * scale);
            }
        }
        Ok(())
    }
}
