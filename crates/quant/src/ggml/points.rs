//! Blocks of points as values: as [`super::lines`].
//!
//! A point stands for four or eight columns, whose levels it has in bytes; signs are bits beside it. Levels times scales
//! have at most 24 bits, so that every product is exact.

use super::i_quants::{even, half_byte, signs_and_scale, word};
use super::lines::{Large, powers};
use super::{grids, scale, take};
use crate::kernel::{LANES, Line, Simd};

/// 256 points for every eight columns.
pub struct Iq2Xxs;
/// 512 points for every eight columns.
pub struct Iq2Xs;
/// 1024 points for every eight columns.
pub struct Iq2S;
/// 256 points for every four columns.
pub struct Iq3Xxs;
/// 512 points for every four columns.
pub struct Iq3S;

/// A block before its lines.
pub struct Points {
    /// Levels of all columns, bytes with a sign.
    levels: [u8; 256],
    /// Signs of each line, the first column's lowest: set where it is negative.
    signs: [u16; LANES],
    /// What each line is multiplied with.
    scales: Line,
}

impl Points {
    /// Of a block whose lines are multiplied with `d · unit` as many times as their numbers say, and half a time more.
    #[inline(always)]
    fn new<S: Simd>(
        s: S,
        (d, unit): (f32, f32),
        numbers: &[u8; LANES],
        (levels, signs): ([u8; 256], [u16; LANES]),
    ) -> Self {
        let mut scales = [0.0; LANES];
        let halves = s.add(s.floats(s.load_i8(numbers)), s.splat(0.5));
        s.store(s.mul(s.mul(s.splat(d), halves), s.splat(unit)), &mut scales);
        Self { levels, signs, scales }
    }

    #[inline(always)]
    fn line<S: Simd>(&self, s: S, at: usize) -> S::F {
        const OWN: [u32; LANES] = powers(false);
        const UP: [u32; LANES] = powers(true);
        // Lane `l` keeps bit `l`, which a product brings to bit 15, and a shift to the place of a sign.
        let own = s.and(s.splat_bits(self.signs[at].into()), s.load_bits(&OWN));
        let sign = s.shl(s.mul_bits(own, s.load_bits(&UP)), 16);
        let levels = s.floats(s.load_i8(&self.levels.as_chunks().0[at]));
        let value = s.mul(s.splat(self.scales[at]), levels);
        s.with_bits(s.add_bits(s.to_bits(value), sign))
    }
}

/// Signs and numbers of the two lines of each group, as `iq2_xxs` and `iq3_xxs` have them; takes those of one.
#[inline(always)]
fn group(g: usize, rest: &mut &[u8], signs: &mut [u16; LANES], numbers: &mut [u8; LANES]) {
    let (set, number) = signs_and_scale(*take(rest));
    for half in 0..2 {
        signs[2 * g + half] = word(&set, half);
        numbers[2 * g + half] = number;
    }
}

/// A number of four bits for each line.
#[inline(always)]
fn numbers(halves: &[u8; 8]) -> [u8; LANES] {
    let mut out = [0; LANES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = half_byte(halves, i);
    }
    out
}

impl Large<66> for Iq2Xxs {
    type Block<S: Simd> = Points;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 66]) -> Points {
        let mut rest = &block[..];
        let d = scale(&mut rest);
        let (mut levels, mut signs, mut numbers) = ([0; 256], [0; LANES], [0; LANES]);
        for g in 0..8 {
            let points = take::<4>(&mut rest);
            for (i, point) in points.iter().enumerate() {
                levels.as_chunks_mut().0[4 * g + i] = grids::IQ2_XXS[usize::from(*point)];
            }
            group(g, &mut rest, &mut signs, &mut numbers);
        }
        Points::new(s, (d, 0.25), &numbers, (levels, signs))
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Points, at: usize) -> S::F {
        block.line(s, at)
    }
}

impl Large<74> for Iq2Xs {
    type Block<S: Simd> = Points;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 74]) -> Points {
        let mut rest = &block[..];
        let (d, points) = (scale(&mut rest), take::<64>(&mut rest));
        let (mut levels, mut signs) = ([0; 256], [0; LANES]);
        for (at, signs) in signs.iter_mut().enumerate() {
            let [first, second] = [word(points, 2 * at), word(points, 2 * at + 1)];
            let level = |point: u16| grids::IQ2_XS[usize::from(point & 511)];
            levels.as_chunks_mut().0[2 * at] = level(first);
            levels.as_chunks_mut().0[2 * at + 1] = level(second);
            *signs = u16::from_le_bytes([first, second].map(|point| even((point >> 9) as u8)));
        }
        Points::new(s, (d, 0.25), &numbers(take(&mut rest)), (levels, signs))
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Points, at: usize) -> S::F {
        block.line(s, at)
    }
}

impl Large<82> for Iq2S {
    type Block<S: Simd> = Points;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 82]) -> Points {
        let mut rest = &block[..];
        let (d, low, set) = (scale(&mut rest), take::<32>(&mut rest), take::<32>(&mut rest));
        let high = take::<8>(&mut rest);
        let (mut levels, mut signs) = ([0; 256], [0; LANES]);
        for (i, levels) in levels.as_chunks_mut().0.iter_mut().enumerate() {
            let high = usize::from(high[i / 4] >> (i % 4 * 2) & 3);
            *levels = grids::IQ2_S[usize::from(low[i]) | high << 8];
        }
        for (i, signs) in signs.iter_mut().enumerate() {
            *signs = word(set, i);
        }
        Points::new(s, (d, 0.25), &numbers(take(&mut rest)), (levels, signs))
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Points, at: usize) -> S::F {
        block.line(s, at)
    }
}

impl Large<98> for Iq3Xxs {
    type Block<S: Simd> = Points;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 98]) -> Points {
        let mut rest = &block[..];
        let (d, points) = (scale(&mut rest), take::<64>(&mut rest));
        let (mut levels, mut signs, mut numbers) = ([0; 256], [0; LANES], [0; LANES]);
        for (levels, point) in levels.as_chunks_mut().0.iter_mut().zip(points) {
            *levels = grids::IQ3_XXS[usize::from(*point)];
        }
        for g in 0..8 {
            group(g, &mut rest, &mut signs, &mut numbers);
        }
        Points::new(s, (d, 0.5), &numbers, (levels, signs))
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Points, at: usize) -> S::F {
        block.line(s, at)
    }
}

impl Large<110> for Iq3S {
    type Block<S: Simd> = Points;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 110]) -> Points {
        let mut rest = &block[..];
        let (d, low, high) = (scale(&mut rest), take::<64>(&mut rest), take::<8>(&mut rest));
        let (set, pairs) = (take::<32>(&mut rest), take::<4>(&mut rest));
        let (mut levels, mut signs, mut numbers) = ([0; 256], [0; LANES], [0; LANES]);
        for (i, levels) in levels.as_chunks_mut().0.iter_mut().enumerate() {
            let high = usize::from(high[i / 8] >> (i % 8) & 1);
            *levels = grids::IQ3_S[usize::from(low[i]) | high << 8];
        }
        for (i, (signs, number)) in signs.iter_mut().zip(&mut numbers).enumerate() {
            (*signs, *number) = (word(set, i), half_byte(pairs, i / 2));
        }
        Points::new(s, (d, 2.0), &numbers, (levels, signs))
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Points, at: usize) -> S::F {
        block.line(s, at)
    }
}
