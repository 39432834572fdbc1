//! K-quants: blocks of 256 codes, whose groups have scales that are codes themselves.

use super::{pair, scale, take};

pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (scales, codes): (&[u8; 16], &[u8; 64]) = (take(&mut block), take(&mut block));
    let (d, least) = (scale(&mut block), scale(&mut block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (d, least) = (d * f32::from(scales[g] & 15), least * f32::from(scales[g] >> 4));
        *out = std::array::from_fn(|i| d * f32::from(pair(codes, g * 16 + i)) - least);
    }
}

pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (high, codes): (&[u8; 32], &[u8; 64]) = (take(&mut block), take(&mut block));
    let (scales, d) = (take::<12>(&mut block), scale(&mut block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[g % 8] >> (g / 8 * 4) & 15;
        let six = low | (scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
        let d = d * f32::from(six.cast_signed() - 32);
        *out = std::array::from_fn(|i| {
            let i = g * 16 + i;
            // A set bit takes nothing off.
            let off = 4 * (1 - (high[i % 32] >> (i / 32) & 1));
            d * f32::from(pair(codes, i).cast_signed() - off.cast_signed())
        });
    }
}

/// The 6-bit scale and least value of group `g` of 8.
#[inline]
const fn sixes(packed: &[u8; 12], g: usize) -> (u8, u8) {
    if g < 4 {
        return (packed[g] & 63, packed[g + 4] & 63);
    }
    let (scale, least, low) = (packed[g - 4], packed[g], packed[g + 4]);
    (low & 15 | scale >> 6 << 4, low >> 4 | least >> 6 << 4)
}

/// Code `i` among `[4, 2, 32]` codes of 4 bits: those of 64 values lie in 32 bytes.
#[inline]
const fn four(bytes: &[u8; 128], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, least) = (scale(&mut block), scale(&mut block));
    let (packed, codes) = (take(&mut block), take(&mut block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let six = sixes(packed, g);
        let (d, least) = (d * f32::from(six.0), least * f32::from(six.1));
        *out = std::array::from_fn(|i| d * f32::from(four(codes, g * 32 + i)) - least);
    }
}

pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, least) = (scale(&mut block), scale(&mut block));
    let packed = take(&mut block);
    let (high, codes): (&[u8; 32], _) = (take(&mut block), take(&mut block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let six = sixes(packed, g);
        let (d, least) = (d * f32::from(six.0), least * f32::from(six.1));
        *out = std::array::from_fn(|i| {
            let code = four(codes, g * 32 + i) | (high[i] >> g & 1) << 4;
            d * f32::from(code) - least
        });
    }
}

pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (low, high): (&[u8; 128], &[u8; 64]) = (take(&mut block), take(&mut block));
    let (scales, d) = (take::<16>(&mut block), scale(&mut block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = d * f32::from(scales[g].cast_signed());
        *out = std::array::from_fn(|i| {
            let i = g * 16 + i;
            let four = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            d * f32::from((four | pair(high, i) << 4).cast_signed() - 32)
        });
    }
}
