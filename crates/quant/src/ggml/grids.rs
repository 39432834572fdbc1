//! What codes of a few bits stand for: llama.cpp, `ggml/src/ggml-common.h`, as gguf-py packs it.
//!
//! A grid's file has 16 bits for each point, little-endian: a point of eight values 2 bits for
//! each, one of four values 4 bits, from the lowest. `fixtures/make_gguf.py` writes the files.

use crate::blocks::{Blocks, THREE_S, THREE_XXS, TWO as LEVELS};

/// Floats with a sign, 2 bits of exponent and 1 of mantissa, doubled.
pub(super) const FLOATS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// What 2 bits of `IQ2` stand for; three are not used.
const TWO: [f32; 4] = [LEVELS[0], LEVELS[1], LEVELS[2], 0.0];
/// What 2 bits of `IQ1` stand for.
const ONE: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];

/// Levels of the points of each type, bytes with a sign.
pub(super) static IQ2_XXS: [[u8; 8]; 256] = table(include_bytes!("grids/iq2_xxs.bin"), &TWO);
pub(super) static IQ2_XS: [[u8; 8]; 512] = table(include_bytes!("grids/iq2_xs.bin"), &TWO);
pub(super) static IQ2_S: [[u8; 8]; 1024] = table(include_bytes!("grids/iq2_s.bin"), &TWO);
pub(super) static IQ3_XXS: [[u8; 4]; 256] = table(include_bytes!("grids/iq3_xxs.bin"), &THREE_XXS);
pub(super) static IQ3_S: [[u8; 4]; 512] = table(include_bytes!("grids/iq3_s.bin"), &THREE_S);
static IQ1: [[u8; 8]; 2048] = table(include_bytes!("grids/iq1.bin"), &ONE);

/// Points of `COLUMNS` numbers that say which of `levels` it is, whole numbers with a sign.
const fn table<const COLUMNS: usize, const POINTS: usize>(
    grid: &[u8],
    levels: &[f32],
) -> [[u8; COLUMNS]; POINTS] {
    let (mut out, width) = ([[0; COLUMNS]; POINTS], 16 / COLUMNS);
    let mut at = 0;
    while at < POINTS * COLUMNS {
        let (point, column) = (at / COLUMNS, at % COLUMNS);
        let bits = u16::from_le_bytes([grid[2 * point], grid[2 * point + 1]]);
        let level = bits as usize >> (width * column) & (levels.len() - 1);
        out[point][column] = (levels[level] as i8).cast_unsigned();
        at += 1;
    }
    out
}

fn floats<const N: usize>(point: [u8; N]) -> [f32; N] {
    point.map(|level| f32::from(level.cast_signed()))
}

/// A point of `IQ2_XXS`, of 256.
pub(super) fn iq2_xxs(point: u8) -> [f32; 8] {
    floats(IQ2_XXS[usize::from(point)])
}

/// A point of `IQ2_XS`: the lowest 9 bits.
pub(super) fn iq2_xs(point: u16) -> [f32; 8] {
    floats(IQ2_XS[usize::from(point & 511)])
}

/// A point of `IQ2_S`: the lowest 10 bits.
pub(super) fn iq2_s(point: u16) -> [f32; 8] {
    floats(IQ2_S[usize::from(point & 1023)])
}

/// A point of `IQ1_S` and `IQ1_M`: the lowest 11 bits.
pub(super) fn iq1(point: u16) -> [f32; 8] {
    floats(IQ1[usize::from(point & 2047)])
}

/// A point of `IQ3_XXS`, of 256.
pub(super) fn iq3_xxs(point: u8) -> [f32; 4] {
    floats(IQ3_XXS[usize::from(point)])
}

/// A point of `IQ3_S`: the lowest 9 bits.
pub(super) fn iq3_s(point: u16) -> [f32; 4] {
    floats(IQ3_S[usize::from(point & 511)])
}

/// Every point of a type, `[points, columns]`; none of a type without.
pub fn points(blocks: Blocks) -> Vec<f32> {
    let eights = |count, point: fn(u16) -> [f32; 8]| (0..count).flat_map(point).collect();
    let fours = |count, point: fn(u16) -> [f32; 4]| (0..count).flat_map(point).collect();
    match blocks {
        Blocks::Iq2Xxs => eights(256, |point| iq2_xxs(point as u8)),
        Blocks::Iq2Xs => eights(512, iq2_xs),
        Blocks::Iq2S => eights(1024, iq2_s),
        Blocks::Iq3Xxs => fours(256, |point| iq3_xxs(point as u8)),
        Blocks::Iq3S => fours(512, iq3_s),
        _ => Vec::new(),
    }
}
