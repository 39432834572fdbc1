//! What a stream of codes means.

use crate::encoding::Trellis;

/// Multiplier of the values.
pub const MULTIPLIER: u32 = 0x8E9E_37D1;

/// The mean of the sums of four bytes that stand for values.
pub const CENTER: f32 = 510.0;

/// The value of 1 in such a sum.
pub const UNIT: f32 = 1.0 / 128.0;

/// The value of a state before the row's scale: the sum of the four bytes of a product, centred, in
/// steps of 1/128. It is close to a Gaussian of standard deviation 1.15.
#[inline(always)]
pub const fn value(state: u32) -> f32 {
    let h = state.wrapping_mul(MULTIPLIER);
    let pairs = (h & 0x00ff_00ff) + ((h >> 8) & 0x00ff_00ff);
    let sum = (pairs & 0xffff) + (pairs >> 16);
    (sum as f32 - CENTER) * UNIT
}

/// Bytes of the stream of one column in a tile of `rows` rows, filled up to whole steps.
pub const fn stream_len(trellis: Trellis, rows: usize) -> usize {
    rows.div_ceil(Trellis::ROW_STEP as usize) * trellis.bits() as usize
}

/// The values of the rows `first ..` of one column: the definition that tests hold readers to.
///
/// Row `i`'s state is the `state_bits` wide window that starts at bit `bits · i` of the cyclic,
/// little-endian stream.
#[cfg(test)]
pub fn decode(trellis: Trellis, stream: &[u8], first: usize, out: &mut [f32]) {
    let (bits, mask) = (trellis.bits() as usize, (1u32 << trellis.state_bits()) - 1);
    for (row, out) in (first..).zip(out) {
        let at = row * bits;
        let mut window = 0;
        for byte in 0..4 {
            window |= u32::from(stream[(at / 8 + byte) % stream.len()]) << (8 * byte);
        }
        *out = value((window >> (at % 8)) & mask);
    }
}
