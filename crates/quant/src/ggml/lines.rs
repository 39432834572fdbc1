//! Blocks of codes as values, sixteen columns at a time, in whatever registers the CPU has: what
//! [`super::Ggml::decode`] gives, but for the sign of a zero. Blocks of points are in [`super::points`].
//!
//! `scale · code + bias` is rounded once. Where a decoder rounds a product and a sum, the product is exact: scales
//! have at most 19 bits and codes 5, or 8 beside 11.

use std::ops::Range;

use super::{scale, take};
use crate::blocks::SIXTEEN;
use crate::kernel::{LANES, Line, Simd};

/// A type whose blocks of 32 columns begin with their scale, in `BYTES`.
pub trait Small<const BYTES: usize> {
    /// Whether a code is a byte of its own.
    const WHOLE_BYTES: bool = false;

    /// The columns of a block whose scale is `d`.
    fn lines<S: Simd>(s: S, block: &[u8; BYTES], d: f32) -> [S::F; 2];
}

/// A type whose blocks of 256 columns are `BYTES`.
pub trait Large<const BYTES: usize> {
    /// What is made of a block before its lines.
    type Block<S: Simd>;

    /// Makes it.
    fn open<S: Simd>(s: S, block: &[u8; BYTES]) -> Self::Block<S>;

    /// Columns `16 · at..` of a block. They are made one line at a time as they are used: all at once would go through
    /// memory.
    fn line<S: Simd>(s: S, block: &Self::Block<S>, at: usize) -> S::F;
}

/// 4 bits about 8.
pub struct Q4_0;
/// 4 bits and a least value.
pub struct Q4_1;
/// 5 bits about 16.
pub struct Q5_0;
/// 5 bits and a least value.
pub struct Q5_1;
/// 8 bits with a sign.
pub struct Q8_0;
/// 4 bits for sixteen levels.
pub struct Iq4Nl;
/// 2 bits in groups of 16.
pub struct Q2K;
/// 3 bits about 4 in groups of 16.
pub struct Q3K;
/// 4 bits for sixteen levels in groups of 32.
pub struct Iq4Xs;
/// 4 bits in groups of 32.
pub struct Q4K;
/// 5 bits in groups of 32.
pub struct Q5K;
/// 6 bits about 32 in groups of 16.
pub struct Q6K;

/// The scales of up to sixteen blocks.
#[inline(always)]
pub fn scales<S: Simd, const BYTES: usize>(s: S, blocks: &[[u8; BYTES]]) -> Line {
    // Four halves in a register at a time: a vector read behind stores of two bytes each waits for all of them.
    let mut words = [0; 4];
    if let Some(blocks) = blocks.first_chunk::<LANES>() {
        words = gather(blocks);
    } else {
        for (i, block) in blocks.iter().enumerate() {
            words[i / 4] |= half_of(block) << (16 * (i % 4));
        }
    }
    let (mut halves, mut out) = ([0; 2 * LANES], [0.0; LANES]);
    for (bytes, word) in halves.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    s.store(s.load_f16(&halves), &mut out);
    out
}

/// The loop of [`scales`] over sixteen blocks: with a count that the compiler knows nothing of it goes through memory.
#[inline(always)]
fn gather<const BYTES: usize>(blocks: &[[u8; BYTES]; LANES]) -> [u64; 4] {
    let mut words = [0; 4];
    for i in 0..LANES {
        words[i / 4] |= half_of(&blocks[i]) << (16 * (i % 4));
    }
    words
}

/// The first two bytes of a block.
#[inline(always)]
const fn half_of<const BYTES: usize>(block: &[u8; BYTES]) -> u64 {
    u16::from_le_bytes([block[0], block[1]]) as u64
}

impl Small<18> for Q4_0 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 18], d: f32) -> [S::F; 2] {
        let grid = s.grid_about_eight(d);
        s.nibbles(take(&mut &block[2..]), grid, grid)
    }
}

impl Small<20> for Q4_1 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 20], d: f32) -> [S::F; 2] {
        let mut rest = &block[2..];
        let grid = s.grid::<4>(d, scale(&mut rest));
        s.nibbles(take(&mut rest), grid, grid)
    }
}

impl Small<22> for Q5_0 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 22], d: f32) -> [S::F; 2] {
        let [first, second] = fives(s, &block[2..]);
        let (d, middle) = (s.splat(d), s.splat(16.0));
        [s.mul(d, s.sub(first, middle)), s.mul(d, s.sub(second, middle))]
    }
}

impl Small<24> for Q5_1 {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 24], d: f32) -> [S::F; 2] {
        let mut rest = &block[2..];
        let (d, least) = (s.splat(d), s.splat(scale(&mut rest)));
        let [first, second] = fives(s, rest);
        [s.mul_add(d, first, least), s.mul_add(d, second, least)]
    }
}

/// Codes of five bits: four bytes of fifth bits, the first column's lowest, and four bits of each code as in
/// [`Simd::nibbles`].
#[inline(always)]
fn fives<S: Simd>(s: S, mut rest: &[u8]) -> [S::F; 2] {
    let (fifth, low) = (u32::from_le_bytes(*take(&mut rest)), s.load_i8(take(&mut rest)));
    [five(s, low, fifth), five(s, s.shr(low, 4), fifth >> 16)]
}

/// The lowest four bits of each lane, and above them bit `l` of `fifth` for lane `l`.
#[inline(always)]
fn five<S: Simd>(s: S, low: S::I, fifth: u32) -> S::F {
    const OWN: [u32; LANES] = powers(false);
    const UP: [u32; LANES] = powers(true);
    // Lane `l` keeps bit `l`, which a product brings to bit 15, and a shift to bit 4.
    let own = s.and(s.splat_bits(fifth), s.load_bits(&OWN));
    let fifth = s.shr(s.mul_bits(own, s.load_bits(&UP)), 11);
    s.floats(s.or(s.and(low, s.splat_bits(15)), fifth))
}

/// Lane `l` is two to the power of `l`, or of what is left to the last lane.
pub(super) const fn powers(down: bool) -> [u32; LANES] {
    let (mut out, mut lane) = ([0; LANES], 0);
    while lane < LANES {
        out[lane] = 1 << if down { LANES - 1 - lane } else { lane };
        lane += 1;
    }
    out
}

impl Small<34> for Q8_0 {
    const WHOLE_BYTES: bool = true;

    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 34], d: f32) -> [S::F; 2] {
        let (mut codes, d) = (&block[2..], s.splat(d));
        let [first, second] = [take(&mut codes), take(&mut codes)];
        [s.mul(d, s.floats(s.load_i8(first))), s.mul(d, s.floats(s.load_i8(second)))]
    }
}

impl Small<18> for Iq4Nl {
    #[inline(always)]
    fn lines<S: Simd>(s: S, block: &[u8; 18], d: f32) -> [S::F; 2] {
        let codes = s.load_i8(take(&mut &block[2..]));
        let (lowest, scale) = (s.splat_bits(15), s.splat(d));
        // Levels above the least one, which fit a byte without a sign.
        let (level, byte, least) = (unsigned(), s.splat_bits(255), s.splat(-128.0 * d));
        let value = |codes| {
            let level = s.look_up(&level, s.and(codes, lowest));
            s.mul_add(scale, s.floats(s.and(level, byte)), least)
        };
        [value(codes), value(s.shr(codes, 4))]
    }
}

/// The sixteen levels, 128 added to each.
const fn unsigned() -> [u8; 16] {
    let (mut out, mut i) = ([0; 16], 0);
    while i < 16 {
        out[i] = SIXTEEN[i].cast_unsigned() ^ 128;
        i += 1;
    }
    out
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
    type Block<S: Simd> = [S::F; LANES];

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 144]) -> [S::F; LANES] {
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

    #[inline(always)]
    fn line<S: Simd>(_: S, block: &[S::F; LANES], at: usize) -> S::F {
        block[at]
    }
}

/// Codes of a block in bytes, and what they are multiplied with and added to, `GROUP` lines alike.
pub struct Codes<const GROUP: usize> {
    /// They go through memory, from which they are widened as they are read, line after line, so that few registers
    /// are taken at a time.
    bytes: [[u8; 2 * LANES]; 8],
    scales: Line,
    biases: Line,
}

impl<const GROUP: usize> Codes<GROUP> {
    /// Codes that are made for 64 columns at a time: `made[i]` are columns `32 · i..` of each half of the block.
    #[inline(always)]
    fn new<S: Simd>(s: S, made: [S::I; 4], scales: Line, biases: Line) -> Self {
        let mut bytes = [[0; 2 * LANES]; 8];
        let (first, second) = bytes.split_at_mut(4);
        for i in 0..4 {
            s.store_bytes(made[i], &mut first[i], &mut second[i]);
        }
        Self { bytes, scales, biases }
    }

    #[inline(always)]
    fn line<S: Simd>(&self, s: S, at: usize) -> S::F {
        self.line_from(s, at, at)
    }

    /// Line `at`, whose codes are where those of line `from` are otherwise.
    #[inline(always)]
    fn line_from<S: Simd>(&self, s: S, at: usize, from: usize) -> S::F {
        let codes = &self.bytes.as_flattened().as_chunks().0[from];
        let (scale, bias) = (s.splat(self.scales[at / GROUP]), s.splat(self.biases[at / GROUP]));
        s.mul_add(scale, s.floats(s.load_i8(codes)), bias)
    }
}

/// The lower halves of all bytes, or the upper ones.
#[inline(always)]
fn halves<S: Simd>(s: S, bytes: S::I, upper: bool) -> S::I {
    let bytes = if upper { s.shr(bytes, 4) } else { bytes };
    s.and(bytes, s.splat_bits(0x0f0f_0f0f))
}

/// Bits of 32 bytes: of the lower half of a byte in the first half of what is given, of the upper one in the second,
/// where they are moved to the same places.
#[inline(always)]
fn bits_of_halves<S: Simd>(s: S, bytes: &[u8; 32]) -> S::I {
    const LOWER: [u32; LANES] = mask(0..8);
    const UPPER: [u32; LANES] = mask(8..LANES);
    let bytes = s.load_bytes(bytes, bytes);
    s.or(s.and(bytes, s.load_bits(&LOWER)), s.and(s.shr(bytes, 4), s.load_bits(&UPPER)))
}

/// Codes of two bits: columns `32 · i..` of each half.
#[inline(always)]
fn twos<S: Simd>(s: S, bytes: S::I) -> [S::I; 4] {
    let (mut made, three) = ([bytes; 4], s.splat_bits(0x0303_0303));
    for i in 0..4 {
        made[i as usize] = s.and(s.shr(bytes, 2 * i), three);
    }
    made
}

/// Scales of codes about `zero`, `d` times the factors, and their biases. These are exact, so that a value is rounded
/// once as `scale · (code - zero)` is.
#[inline(always)]
fn about<S: Simd>(s: S, zero: f32, d: f32, factors: S::F) -> (Line, Line) {
    let (mut scales, mut biases) = ([0.0; LANES], [0.0; LANES]);
    let scale = s.mul(s.splat(d), factors);
    s.store(scale, &mut scales);
    s.store(s.mul(scale, s.splat(-zero)), &mut biases);
    (scales, biases)
}

impl Large<84> for Q2K {
    type Block<S: Simd> = Codes<1>;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 84]) -> Codes<1> {
        let mut rest = &block[..];
        let (numbers, fifteen) = (s.load_i8(take(&mut rest)), s.splat_bits(15));
        let codes = s.load_bytes(take(&mut rest), take(&mut rest));
        let (d, least) = (s.splat(scale(&mut rest)), s.splat(-scale(&mut rest)));
        let (mut scales, mut biases) = ([0.0; LANES], [0.0; LANES]);
        s.store(s.mul(d, s.floats(s.and(numbers, fifteen))), &mut scales);
        s.store(s.mul(least, s.floats(s.and(s.shr(numbers, 4), fifteen))), &mut biases);
        Codes::new(s, twos(s, codes), scales, biases)
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Codes<1>, at: usize) -> S::F {
        block.line(s, at)
    }
}

impl Large<110> for Q3K {
    type Block<S: Simd> = Codes<1>;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 110]) -> Codes<1> {
        let mut rest = &block[..];
        let high = bits_of_halves(s, take(&mut rest));
        let mut made = twos(s, s.load_bytes(take(&mut rest), take(&mut rest)));
        let words = [take(&mut rest), take(&mut rest), take(&mut rest)];
        let [first, second, above] = words.map(|bytes| u32::from_le_bytes(*bytes));
        // Four groups in a word, as in [`super::k_quants`].
        let (four, two) = (0x0f0f_0f0f, 0x0303_0303);
        let mut numbers = [0; LANES];
        for (i, bytes) in (0..4).zip(numbers.as_chunks_mut::<4>().0) {
            let low = if i % 2 == 0 { first } else { second } >> (i / 2 * 4) & four;
            *bytes = (low | (above >> (2 * i) & two) << 4).to_le_bytes();
        }
        let factors = s.sub(s.floats(s.load_i8(&numbers)), s.splat(32.0));
        let (scales, biases) = about(s, 4.0, scale(&mut rest), factors);
        let third = s.splat_bits(0x0404_0404);
        for (i, made) in (0..).zip(&mut made) {
            let bit = if i < 3 { s.shl(high, 2 - i) } else { s.shr(high, 1) };
            *made = s.or(*made, s.and(bit, third));
        }
        Codes::new(s, made, scales, biases)
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Codes<1>, at: usize) -> S::F {
        block.line(s, at)
    }
}

impl Large<136> for Iq4Xs {
    type Block<S: Simd> = Codes<2>;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 136]) -> Codes<2> {
        let mut rest = &block[..];
        let (d, above) = (scale(&mut rest), u16::from_le_bytes(*take(&mut rest)));
        let low = u32::from_le_bytes(*take(&mut rest));
        // Numbers of 6 bits, a group in a byte: halves of bytes, and two bits each, spread by halves of what is left.
        let low = spread(
            u64::from(low),
            [(16, 0xffff_0000_ffff), (8, 0x00ff_00ff_00ff_00ff), (4, 0x0f0f_0f0f_0f0f_0f0f)],
        );
        let above = spread(
            u64::from(above),
            [(24, 0xff_0000_00ff), (12, 0x000f_000f_000f_000f), (6, 0x0303_0303_0303_0303)],
        );
        let mut numbers = [0; LANES];
        numbers[..8].copy_from_slice(&(low | above << 4).to_le_bytes());
        let factors = s.sub(s.floats(s.load_i8(&numbers)), s.splat(32.0));
        let mut scales = [0.0; LANES];
        s.store(s.mul(s.splat(d), factors), &mut scales);
        let codes: [&[u8; 32]; 4] =
            [take(&mut rest), take(&mut rest), take(&mut rest), take(&mut rest)];
        let level = SIXTEEN.map(i8::cast_unsigned);
        let mut made = [s.splat_bits(0); 4];
        for (i, made) in made.iter_mut().enumerate() {
            let two = s.load_bytes(codes[i / 2], codes[2 + i / 2]);
            *made = s.look_up(&level, halves(s, two, i % 2 == 1));
        }
        Codes::new(s, made, scales, [0.0; LANES])
    }

    /// Two groups share 32 bytes, whose lower halves are the first line of each: the lowest bits of a line's number
    /// change places.
    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Codes<2>, at: usize) -> S::F {
        block.line_from(s, at, at & !3 | (at & 1) << 1 | at >> 1 & 1)
    }
}

/// Moves the upper half of what is in a number up, then those of both halves, and so on: shifts, and what stays.
const fn spread(mut bits: u64, steps: [(u32, u64); 3]) -> u64 {
    let mut i = 0;
    while i < steps.len() {
        bits = (bits | bits << steps[i].0) & steps[i].1;
        i += 1;
    }
    bits
}

impl Large<176> for Q5K {
    type Block<S: Simd> = Codes<2>;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 176]) -> Codes<2> {
        let mut rest = &block[..];
        let groups = sixes(s, &mut rest);
        // Bit `g` of a byte belongs to group `g`. Groups 0 to 3 go with 4 to 7.
        let high = bits_of_halves(s, take(&mut rest));
        let low: [&[u8; 32]; 4] =
            [take(&mut rest), take(&mut rest), take(&mut rest), take(&mut rest)];
        let (mut made, fifth) = ([high; 4], s.splat_bits(0x1010_1010));
        for at in 0..4 {
            let low = s.load_bytes(low[at / 2], low[2 + at / 2]);
            let four = halves(s, low, at % 2 == 1);
            made[at] = s.or(four, s.and(s.shl(high, 4 - at as u32), fifth));
        }
        let mut biases = [0.0; LANES];
        biases[..8].copy_from_slice(&groups[8..]);
        Codes::new(s, made, groups, biases)
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Codes<2>, at: usize) -> S::F {
        block.line(s, at)
    }
}

/// The lower four bits of the bytes of some lanes.
const fn mask(lanes: Range<usize>) -> [u32; LANES] {
    let (mut mask, mut lane) = ([0; LANES], lanes.start);
    while lane < lanes.end {
        mask[lane] = 0x0f0f_0f0f;
        lane += 1;
    }
    mask
}

impl Large<210> for Q6K {
    type Block<S: Simd> = Codes<1>;

    #[inline(always)]
    fn open<S: Simd>(s: S, block: &[u8; 210]) -> Codes<1> {
        let mut rest = &block[..];
        // Of 128 columns four bits lie in 64 bytes, two bits in 32: both halves of a block are done together.
        let low: [&[u8; 32]; 4] =
            [take(&mut rest), take(&mut rest), take(&mut rest), take(&mut rest)];
        let high = s.load_bytes(take(&mut rest), take(&mut rest));
        let factors = s.floats(s.load_i8(take(&mut rest)));
        let (scales, biases) = about(s, 32.0, scale(&mut rest), factors);
        let (mut made, above) = ([high; 4], s.splat_bits(0x3030_3030));
        for at in 0..4 {
            let low = s.load_bytes(low[at % 2], low[2 + at % 2]);
            let four = halves(s, low, at / 2 == 1);
            let two = match at {
                0 => s.shl(high, 4),
                1 => s.shl(high, 2),
                2 => high,
                _ => s.shr(high, 2),
            };
            made[at] = s.or(four, s.and(two, above));
        }
        Codes::new(s, made, scales, biases)
    }

    #[inline(always)]
    fn line<S: Simd>(s: S, block: &Codes<1>, at: usize) -> S::F {
        block.line(s, at)
    }
}
