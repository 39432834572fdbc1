//! Blocks whose codes share one scale, and the floats of 4 bits.

use super::grids::FLOATS;
use super::{pair, scale, take};
use crate::blocks::SIXTEEN;

/// Codes of 4 bits: the low halves of all bytes, then the high ones.
#[inline]
fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// [`nibbles`] with a fifth bit each.
#[inline]
fn fives(high: [u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let (high, low) = (u32::from_le_bytes(high), nibbles(low));
    std::array::from_fn(|i| low[i] | ((high >> i) as u8 & 1) << 4)
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let d = scale(&mut block);
    *out = nibbles(take(&mut block)).map(|q| d * f32::from(q.cast_signed() - 8));
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let (d, least) = (scale(&mut block), scale(&mut block));
    *out = nibbles(take(&mut block)).map(|q| d * f32::from(q) + least);
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let (d, high) = (scale(&mut block), *take(&mut block));
    *out = fives(high, take(&mut block)).map(|q| d * f32::from(q.cast_signed() - 16));
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let (d, least, high) = (scale(&mut block), scale(&mut block), *take(&mut block));
    *out = fives(high, take(&mut block)).map(|q| d * f32::from(q) + least);
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let d = scale(&mut block);
    let codes: &[u8; 32] = take(&mut block);
    *out = codes.map(|q| d * f32::from(q.cast_signed()));
}

pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let d = scale(&mut block);
    *out = nibbles(take(&mut block)).map(|q| d * f32::from(SIXTEEN[usize::from(q)]));
}

/// The scale of a block and codes of three values. They lie in base 3 as fractions of 256: multiplied by a power of 3,
/// whole numbers drop out above.
pub(super) fn tq1_0_codes(block: &[u8; 54]) -> ([f32; 1], [u8; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let mut block = &block[..];
    let (first, second): (&[u8; 32], &[u8; 16]) = (take(&mut block), take(&mut block));
    let (last, d) = (take::<4>(&mut block), scale(&mut block));
    // Value i of a part of n bytes is digit i / n of byte i % n.
    let digit = |part: &[u8], i: usize| {
        let fraction = part[i % part.len()].wrapping_mul(POWERS[i / part.len()]);
        ((u16::from(fraction) * 3) >> 8) as u8
    };
    let codes = std::array::from_fn(|i| match i {
        0..160 => digit(first, i),
        160..240 => digit(second, i - 160),
        _ => digit(last, i - 240),
    });
    ([d], codes)
}

/// The same of codes of two bits.
pub(super) fn tq2_0_codes(block: &[u8; 66]) -> ([f32; 1], [u8; 256]) {
    let mut block = &block[..];
    let (codes, d) = (take(&mut block), scale(&mut block));
    ([d], std::array::from_fn(|i| pair(codes, i)))
}

pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    ternary(tq1_0_codes(block), out);
}

pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    ternary(tq2_0_codes(block), out);
}

#[inline]
fn ternary(([d], codes): ([f32; 1], [u8; 256]), out: &mut [f32; 256]) {
    *out = codes.map(|q| d * f32::from(q.cast_signed() - 1));
}

/// Half of 2 to the power of `exponent - 127`; its floats are stored doubled.
const fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0..2 => 0x0020_0000 << exponent,
        _ => (exponent as u32 - 1) << 23,
    })
}

/// Half of the scale of a block, and its codes.
pub(super) fn mxfp4_codes(block: &[u8; 17]) -> ([f32; 1], [u8; 32]) {
    let mut block = &block[..];
    let d = half_power(take::<1>(&mut block)[0]);
    ([d], nibbles(take(&mut block)))
}

pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let ([d], codes) = mxfp4_codes(block);
    *out = codes.map(|q| d * f32::from(FLOATS[usize::from(q)]));
}

/// Half of a float with 4 bits of exponent and 3 of mantissa; what would be NaN is zero.
fn half_e4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    match (bits, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa * 2f32.powi(-10),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 8),
    }
}

/// Half of the scale of each sixteen of a block, and its codes.
pub(super) fn nvfp4_codes(block: &[u8; 36]) -> ([f32; 4], [u8; 64]) {
    let mut block = &block[..];
    let (scales, codes) = (take::<4>(&mut block), take::<32>(&mut block));
    // Low halves of a group's 8 bytes, then the high ones.
    let code = |i: usize| codes[i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15;
    (scales.map(half_e4m3), std::array::from_fn(code))
}

pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let (scales, codes) = nvfp4_codes(block);
    *out = std::array::from_fn(|i| scales[i / 16] * f32::from(FLOATS[usize::from(codes[i])]));
}
