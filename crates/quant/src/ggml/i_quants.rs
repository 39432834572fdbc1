//! I-quants: eights or fours of values from a grid, with signs and scales beside them.

use half::f16;

use super::{grids, scale, take};
use crate::blocks::SIXTEEN;

/// Number `i` of some little-endian ones of 16 bits.
#[inline]
pub(super) const fn word(bytes: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]])
}

/// Seven signs and an eighth, which makes those that are set an even number.
#[inline]
pub(super) fn even(signs: u8) -> u8 {
    EVEN[usize::from(signs & 127)]
}

static EVEN: [u8; 128] = {
    let (mut out, mut signs) = ([0; 128], 0_u8);
    while signs < 128 {
        out[signs as usize] = signs | (signs.count_ones() as u8 & 1) << 7;
        signs += 1;
    }
    out
};

/// Half a byte: the lower one of even `i`.
#[inline]
pub(super) const fn half_byte(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

/// Values of a grid times a scale, negative where the bit of a sign is set.
#[inline]
fn signed(d: f32, grid: [f32; 8], signs: u8) -> [f32; 8] {
    std::array::from_fn(|i| d * grid[i] * if signs >> i & 1 == 0 { 1.0 } else { -1.0 })
}

/// Two points of four values as eight.
#[inline]
fn joined([a, b]: [[f32; 4]; 2]) -> [f32; 8] {
    std::array::from_fn(|i| if i < 4 { a[i] } else { b[i - 4] })
}

/// A scale of 4 bits: an odd number of halves, of `unit` each.
#[inline]
fn odd_halves(d: f32, code: u8, unit: f32) -> f32 {
    d * (0.5 + f32::from(code)) * unit
}

/// Four signs of 7 bits and a scale of 4 in one number.
#[inline]
pub(super) fn signs_and_scale(bytes: [u8; 4]) -> ([u8; 4], u8) {
    let bits = u32::from_le_bytes(bytes);
    (std::array::from_fn(|i| even((bits >> (7 * i)) as u8)), (bits >> 28) as u8)
}

pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let d = scale(&mut block);
    for out in out.as_chunks_mut::<32>().0 {
        let points = take::<4>(&mut block);
        let (signs, code) = signs_and_scale(*take(&mut block));
        let d = odd_halves(d, code, 0.25);
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            *out = signed(d, grids::iq2_xxs(points[i]), signs[i]);
        }
    }
}

pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, points, scales) = (scale(&mut block), take::<64>(&mut block), take::<8>(&mut block));
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let (d, point) = (odd_halves(d, half_byte(scales, i / 2), 0.25), word(points, i));
        *out = signed(d, grids::iq2_xs(point), even((point >> 9) as u8));
    }
}

pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, low, signs) = (scale(&mut block), take::<32>(&mut block), take::<32>(&mut block));
    let (high, scales) = (take::<8>(&mut block), take::<8>(&mut block));
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let d = odd_halves(d, half_byte(scales, i / 2), 0.25);
        let high = u16::from(high[i / 4] >> (i % 4 * 2) & 3);
        *out = signed(d, grids::iq2_s(u16::from(low[i]) | high << 8), signs[i]);
    }
}

pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, points) = (scale(&mut block), take::<64>(&mut block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (signs, code) = signs_and_scale(*take(&mut block));
        let d = odd_halves(d, code, 0.5);
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let point = |half| grids::iq3_xxs(points[g * 8 + i * 2 + half]);
            *out = signed(d, joined([point(0), point(1)]), signs[i]);
        }
    }
}

pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, low, high) = (scale(&mut block), take::<64>(&mut block), take::<8>(&mut block));
    let (signs, scales) = (take::<32>(&mut block), take::<4>(&mut block));
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        let d = d * f32::from(1 + 2 * half_byte(scales, i / 4));
        let point = |half: usize| {
            let high = u16::from(high[i / 4] >> (i % 4 * 2 + half) & 1);
            grids::iq3_s(u16::from(low[i * 2 + half]) | high << 8)
        };
        *out = signed(d, joined([point(0), point(1)]), signs[i]);
    }
}

/// What the values of `IQ1` are moved by, down where a bit is set.
#[inline]
const fn delta(down: bool) -> f32 {
    if down { -0.125 } else { 0.125 }
}

/// An odd number of scales, from 3 bits.
#[inline]
fn odd(d: f32, code: u16) -> f32 {
    d * f32::from(2 * (code & 7) + 1)
}

pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, low, rest) = (scale(&mut block), take::<32>(&mut block), take::<16>(&mut block));
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        // Of 32 values: 3 high bits of four points, a scale, and which way they are moved.
        let rest = word(rest, i / 4);
        let (d, delta) = (odd(d, rest >> 12), delta(rest >> 15 == 1));
        let high = rest >> (i % 4 * 3) & 7;
        *out = grids::iq1(u16::from(low[i]) | high << 8).map(|value| d * (value + delta));
    }
}

pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (low, rest) = (take::<32>(&mut block), take::<16>(&mut block));
    let scales = take::<8>(&mut block);
    // The f16 lies in the highest 4 bits of four words, of which the rest are scales.
    let part = |i| word(scales, i) >> 12 << (4 * i);
    let d = f16::from_bits(part(0) | part(1) | part(2) | part(3)).to_f32();
    for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
        // Of a point: 3 high bits, and which way it is moved.
        let high = u16::from(half_byte(rest, i));
        let d = odd(d, word(scales, i / 8) >> (i / 2 % 4 * 3));
        let delta = delta(high & 8 != 0);
        *out = grids::iq1(u16::from(low[i]) | (high & 7) << 8).map(|value| d * (value + delta));
    }
}

pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, high) = (scale(&mut block), u16::from_le_bytes(*take(&mut block)));
    let (low, codes) = (take::<4>(&mut block), take::<128>(&mut block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let six = half_byte(low, g) | ((high >> (2 * g)) as u8 & 3) << 4;
        let d = d * f32::from(six.cast_signed() - 32);
        *out = std::array::from_fn(|i| {
            let code = codes[g * 16 + i % 16] >> (i / 16 * 4) & 15;
            d * f32::from(SIXTEEN[usize::from(code)])
        });
    }
}
