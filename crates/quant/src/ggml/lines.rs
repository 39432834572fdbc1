//! Blocks of the commonest types as values, sixteen columns at a time, in whatever registers the CPU has: what
//! [`super::Ggml::decode`] gives, bit for bit.
//!
//! `scale · code + bias` is rounded once. Where a decoder rounds a product and a sum, the product is exact: scales
//! have at most 19 bits and codes 5, or 8 beside 11.

use half::f16;

use super::{scale, take};
use crate::kernel::{LANES, Line, Simd};

/// A type whose blocks of 32 columns begin with their scale, in `BYTES`.
pub trait Small<const BYTES: usize> {
    /// The columns of a block whose scale is `d`.
    fn lines<S: Simd>(s: S, block: &[u8; BYTES], d: f32) -> [S::F; 2];
}

/// A type whose blocks of 256 columns are `BYTES`.
pub trait Large<const BYTES: usize> {
    /// The columns of a block.
    fn lines<S: Simd>(s: S, block: &[u8; BYTES]) -> [S::F; LANES];
}

/// 4 bits about 8.
pub struct Q4_0;
/// 8 bits with a sign.
pub struct Q8_0;
/// 4 bits in groups of 32.
pub struct Q4K;
/// 5 bits in groups of 32.
pub struct Q5K;
/// 6 bits about 32 in groups of 16.
pub struct Q6K;

/// The scales of up to sixteen blocks.
#[inline(always)]
pub fn scales<S: Simd, const BYTES: usize>(s: S, blocks: &[[u8; BYTES]]) -> Line {
    let (mut halves, mut out) = ([0; 2 * LANES], [0.0; LANES]);
    for (half, block) in halves.as_chunks_mut::<2>().0.iter_mut().zip(blocks) {
        half.copy_from_slice(&block[..2]);
    }
    s.store(s.load_f16(&halves), &mut out);
    out
}

impl Small<18> for Q4_0 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 18], d: f32) -> [S::F; 2] {
        let grid = s.grid::<4>(d, -8.0 * d);
        s.nibbles(take(&mut &block[2..]), grid, grid)
    }
}

impl Small<34> for Q8_0 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 34], d: f32) -> [S::F; 2] {
        let (mut codes, d) = (&block[2..], s.splat(d));
        let [first, second] = [take(&mut codes), take(&mut codes)];
        [s.mul(d, s.floats(s.load_i8(first))), s.mul(d, s.floats(s.load_i8(second)))]
    }
}

/// Scales of the eight groups of a block, then their biases; takes what they are made of.
#[inline(always)]
fn sixes<S: Simd>(s: S, block: &mut &[u8]) -> Line {
    let (d, down) = (scale(block), scale(block));
    let words = [take(block), take(block), take(block)];
    let [first, second, third] = words.map(|bytes| u32::from_le_bytes(*bytes));
    // Four groups in a word, as in [`super::k_quants`].
    let high = |low: u32, above: u32| low & 0x0f0f_0f0f | (above >> 6 & 0x0303_0303) << 4;
    let six = 0x3f3f_3f3f;
    let parts = [first & six, high(third, first), second & six, high(third >> 4, second)];
    let mut numbers = [0; LANES];
    for (bytes, part) in numbers.as_chunks_mut::<4>().0.iter_mut().zip(parts) {
        *bytes = part.to_le_bytes();
    }
    let mut units = [d; LANES];
    units[8..].fill(-down);
    let mut out = [0.0; LANES];
    s.store(s.mul(s.load(&units), s.floats(s.load_i8(&numbers))), &mut out);
    out
}

impl Large<144> for Q4K {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 144]) -> [S::F; LANES] {
        let (mut rest, mut out) = (&block[..], [s.splat(0.0); LANES]);
        let groups = sixes(s, &mut rest);
        for pair in 0..4 {
            let low = s.grid::<4>(groups[2 * pair], groups[8 + 2 * pair]);
            let high = s.grid::<4>(groups[2 * pair + 1], groups[9 + 2 * pair]);
            for half in 0..2 {
                let [a, b] = s.nibbles(take(&mut rest), low, high);
                (out[4 * pair + half], out[4 * pair + 2 + half]) = (a, b);
            }
        }
        out
    }
}

impl Large<176> for Q5K {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 176]) -> [S::F; LANES] {
        let (mut rest, mut out) = (&block[..], [s.splat(0.0); LANES]);
        let groups = sixes(s, &mut rest);
        let highs = [s.load_i8(take(&mut rest)), s.load_i8(take(&mut rest))];
        let (fifteen, sixteen) = (s.splat_bits(15), s.splat_bits(16));
        for pair in 0..4 {
            for (half, high) in highs.into_iter().enumerate() {
                let low = s.load_i8(take(&mut rest));
                for above in 0..2 {
                    let group = 2 * pair + above;
                    let four = s.and(s.shr(low, 4 * above as u32), fifteen);
                    let fifth = s.and(s.shl(s.shr(high, group as u32), 4), sixteen);
                    let (scale, bias) = (s.splat(groups[group]), s.splat(groups[8 + group]));
                    out[2 * group + half] = s.mul_add(scale, s.floats(s.or(four, fifth)), bias);
                }
            }
        }
        out
    }
}

impl Large<210> for Q6K {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 210]) -> [S::F; LANES] {
        let (low, rest) = block.as_chunks::<LANES>().0.split_at(8);
        let (high, factors) = (&rest[..4], &rest[4]);
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        let mut groups = [0.0; LANES];
        s.store(s.mul(s.splat(d), s.floats(s.load_i8(factors))), &mut groups);
        let (fifteen, above, middle) = (s.splat_bits(15), s.splat_bits(48), s.splat_bits(32));
        let mut out = [s.splat(0.0); LANES];
        for (line, out) in out.iter_mut().enumerate() {
            // Of 128 columns four bits lie in 64 bytes, two bits in 32.
            let (half, at) = (line / 8, line % 8);
            let four = s.shr(s.load_i8(&low[4 * half + at % 4]), 4 * (at / 4) as u32);
            let two = s.shr(s.load_i8(&high[2 * half + at % 2]), 2 * (at / 2) as u32);
            let code = s.or(s.and(four, fifteen), s.and(s.shl(two, 4), above));
            *out = s.mul(s.splat(groups[line]), s.floats(s.sub_bits(code, middle)));
        }
        out
    }
}
