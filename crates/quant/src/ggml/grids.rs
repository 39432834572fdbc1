//! What codes of a few bits stand for: llama.cpp, `ggml/src/ggml-common.h`, as gguf-py packs it.
//!
//! A grid's file has 16 bits for each point, little-endian: a point of eight values 2 bits for
//! each, one of four values 4 bits, from the lowest. `fixtures/make_gguf.py` writes the files.

use crate::blocks::{Blocks, THREE_S, THREE_XXS, TWO as LEVELS};

/// Floats with a sign, 2 bits of exponent and 1 of mantissa, doubled.
pub(super) const FLOATS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// What 2 bits of `IQ2` stand for; three are not used.
const TWO: [f32; 4] = [LEVELS[0], LEVELS[1], LEVELS[2], f32::NAN];
/// What 2 bits of `IQ1` stand for.
const ONE: [f32; 4] = [-1.0, 0.0, 1.0, f32::NAN];

static IQ2_XXS: &[u8; 512] = include_bytes!("grids/iq2_xxs.bin");
static IQ2_XS: &[u8; 1024] = include_bytes!("grids/iq2_xs.bin");
static IQ2_S: &[u8; 2048] = include_bytes!("grids/iq2_s.bin");
static IQ3_XXS: &[u8; 512] = include_bytes!("grids/iq3_xxs.bin");
static IQ3_S: &[u8; 1024] = include_bytes!("grids/iq3_s.bin");
static IQ1: &[u8; 4096] = include_bytes!("grids/iq1.bin");

/// Eight values of 2 bits each.
#[inline]
fn eight(grid: &[u8], point: usize, values: &[f32; 4]) -> [f32; 8] {
    let bits = u16::from_le_bytes([grid[2 * point], grid[2 * point + 1]]);
    std::array::from_fn(|i| values[usize::from(bits >> (2 * i) & 3)])
}

/// Four values of 4 bits each.
#[inline]
fn four(grid: &[u8], point: usize, values: &[f32; 8]) -> [f32; 4] {
    let bits = u16::from_le_bytes([grid[2 * point], grid[2 * point + 1]]);
    std::array::from_fn(|i| values[usize::from(bits >> (4 * i) & 7)])
}

/// A point of `IQ2_XXS`, of 256.
pub(super) fn iq2_xxs(point: u8) -> [f32; 8] {
    eight(IQ2_XXS, point.into(), &TWO)
}

/// A point of `IQ2_XS`: the lowest 9 bits.
pub(super) fn iq2_xs(point: u16) -> [f32; 8] {
    eight(IQ2_XS, (point & 511).into(), &TWO)
}

/// A point of `IQ2_S`: the lowest 10 bits.
pub(super) fn iq2_s(point: u16) -> [f32; 8] {
    eight(IQ2_S, (point & 1023).into(), &TWO)
}

/// A point of `IQ1_S` and `IQ1_M`: the lowest 11 bits.
pub(super) fn iq1(point: u16) -> [f32; 8] {
    eight(IQ1, (point & 2047).into(), &ONE)
}

/// A point of `IQ3_XXS`, of 256.
pub(super) fn iq3_xxs(point: u8) -> [f32; 4] {
    four(IQ3_XXS, point.into(), &THREE_XXS)
}

/// A point of `IQ3_S`: the lowest 9 bits.
pub(super) fn iq3_s(point: u16) -> [f32; 4] {
    four(IQ3_S, (point & 511).into(), &THREE_S)
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
