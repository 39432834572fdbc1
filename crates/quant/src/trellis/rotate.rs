//! The rotation of the columns: a sign per column, then a Hadamard transform per block.

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

/// The inverse of [`rotate`]: `x ← D · H · x`.
#[inline(always)]
pub fn rotate_back(x: &mut [f32], block: usize) {
    hadamard(x, block);
    for (i, x) in x.iter_mut().enumerate() {
        *x *= sign(i);
    }
}

/// The orthonormal Hadamard transform of each block, in the order of Sylvester: distances 1, 2, 4, …,
/// each sum rounded once, then the scale `1/sqrt(block)`.
#[inline(always)]
fn hadamard(x: &mut [f32], block: usize) {
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
        x.iter_mut().for_each(|x| *x *= scale);
    }
}
