//! The rotation of the columns: a sign per column, then a Hadamard transform per block.

use crate::kernel::{LANES, Simd};

/// Multiplier of the sign hash (2³² over the golden ratio).
const SIGN: u32 = 0x9E37_79B9;

/// The sign of a column, from its number alone: the top bit of a product, spread by a shift.
#[inline(always)]
fn sign(col: usize) -> f32 {
    let h = (col as u32 + 1).wrapping_mul(SIGN);
    let h = (h ^ (h >> 15)).wrapping_mul(SIGN);
    if h >> 31 == 0 { 1.0 } else { -1.0 }
}

/// `x ← H · D · x` per block of `block` columns, with the orthonormal Hadamard matrix `H` and the
/// signs `D`, counted from column 0 of the row.
#[inline(always)]
pub fn rotate(x: &mut [f32], block: usize) {
    for (i, x) in x.iter_mut().enumerate() {
        *x *= sign(i);
    }
    hadamard(x, block);
}

/// Sixteen numbers in one line of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [f32; LANES]);

impl Line {
    /// Zeros.
    pub const ZERO: Self = Self([0.0; LANES]);
}

/// The signs of the columns from `first` on.
#[inline(always)]
pub fn signs<const N: usize>(first: usize) -> [Line; N] {
    let mut lines = [Line::ZERO; N];
    for (col, out) in (first..).zip(lines.iter_mut().flat_map(|line| &mut line.0)) {
        *out = sign(col);
    }
    lines
}

/// `out = factor · D · H · lines` for one block and its signs, with the Hadamard matrix of ones, so
/// that sums of whole numbers are exact. `lines` are overwritten.
#[inline(always)]
pub fn rotate_back<S: Simd>(
    s: S,
    lines: &mut [Line],
    signs: &[Line],
    factor: f32,
    out: &mut [f32],
) {
    // A Hadamard transform is log2(n) rounds of sums and differences. Distances 1, 2, 4 and 8 lie
    // within a line of sixteen lanes, larger ones between lines.
    for line in &mut *lines {
        let v = within::<S, 1>(s, s.load(&line.0));
        let v = within::<S, 4>(s, within::<S, 2>(s, v));
        s.store(within::<S, 8>(s, v), &mut line.0);
    }
    let mut half = 1;
    while half < lines.len() {
        for pair in lines.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                let (x, y) = (s.load(&a.0), s.load(&b.0));
                s.store(s.add(x, y), &mut a.0);
                s.store(s.sub(x, y), &mut b.0);
            }
        }
        half *= 2;
    }
    // `D` is its own inverse, and comes last on the way back.
    let factor = s.splat(factor);
    for ((line, sign), out) in lines.iter().zip(signs).zip(out.as_chunks_mut().0) {
        s.store(s.mul(s.mul(s.load(&line.0), factor), s.load(&sign.0)), out);
    }
}

/// Sums and differences of lanes `D` apart.
#[inline(always)]
fn within<S: Simd, const D: usize>(s: S, v: S::F) -> S::F {
    let mut signs = [1.0; LANES];
    for (l, sign) in signs.iter_mut().enumerate() {
        if l & D != 0 {
            *sign = -1.0;
        }
    }
    s.mul_add(v, s.load(&signs), s.swap::<D>(v))
}

/// The orthonormal Hadamard transform of each block, in the order of Sylvester: distances 1, 2, 4, …,
/// each sum rounded once, then the scale `1/sqrt(block)`.
#[inline(always)]
pub fn hadamard(x: &mut [f32], block: usize) {
    let scale = 1.0 / (block as f32).sqrt();
    for x in x.chunks_exact_mut(block) {
        let mut half = 1;
        while half < block {
            for pair in x.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        for x in x {
            *x *= scale;
        }
    }
}
