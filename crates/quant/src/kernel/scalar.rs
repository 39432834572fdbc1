//! The definition: sixteen lanes as an array.

use half::f16;

use super::{LANES, Simd, TILE_LINES, transposed};

/// Plain Rust; needs nothing of the CPU.
#[derive(Clone, Copy)]
pub struct Scalar;

/// What `f` says of each lane. A plain loop: what [`std::array::from_fn`] is made of is compiled anew in every kernel.
#[inline(always)]
fn lanes<T: Copy + Default>(f: impl Fn(usize) -> T) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    for (l, out) in out.iter_mut().enumerate() {
        *out = f(l);
    }
    out
}

#[inline(always)]
fn map<A: Copy, B: Copy + Default>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    lanes(|l| f(a[l]))
}

#[inline(always)]
fn zip<A: Copy + Default>(a: [A; LANES], b: [A; LANES], f: impl Fn(A, A) -> A) -> [A; LANES] {
    lanes(|l| f(a[l], b[l]))
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [u32; LANES];

    const LINES_AT_ONCE: usize = TILE_LINES;

    #[inline(always)]
    fn splat(self, v: f32) -> Self::F {
        [v; LANES]
    }

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> Self::F {
        *v
    }

    #[inline(always)]
    fn store(self, v: Self::F, out: &mut [f32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn load_f32(self, v: &[u8; 64]) -> Self::F {
        lanes(|l| f32::from_le_bytes(v.as_chunks().0[l]))
    }

    #[inline(always)]
    fn load_f16(self, v: &[u8; 32]) -> Self::F {
        lanes(|l| f16::from_le_bytes([v[2 * l], v[2 * l + 1]]).to_f32())
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u8; 32]) -> Self::F {
        lanes(|l| f32::from_le_bytes([0, 0, v[2 * l], v[2 * l + 1]]))
    }

    #[inline(always)]
    fn load_i8(self, v: &[u8; LANES]) -> Self::I {
        map(*v, |v| i32::from(v.cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn load_bytes(self, first: &[u8; 32], second: &[u8; 32]) -> Self::I {
        let word = |half: &[u8; 32], at: usize| u32::from_le_bytes(half.as_chunks().0[at]);
        lanes(|l| word(if l < 8 { first } else { second }, l % 8))
    }

    #[inline(always)]
    fn store_bytes(self, v: Self::I, first: &mut [u8; 32], second: &mut [u8; 32]) {
        let [first, second] = [first, second].map(|bytes| bytes.as_chunks_mut().0);
        for (bytes, v) in first.iter_mut().chain(second).zip(v) {
            *bytes = v.to_le_bytes();
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: Self::I) -> Self::I {
        let byte = |byte: u8| table[usize::from(byte & 15)];
        map(v, |v| u32::from_le_bytes(v.to_le_bytes().map(byte)))
    }

    #[inline(always)]
    fn codes<const BITS: usize, const BLOCK: usize>(self, block: &[u8; BLOCK]) -> [Self::F; 2] {
        let code = |i: usize| {
            let bit = BITS * i;
            let next = block.get(bit / 8 + 1).copied().unwrap_or(0);
            let pair = u16::from_le_bytes([block[bit / 8], next]);
            f32::from(pair >> (bit % 8) & ((1 << BITS) - 1))
        };
        [lanes(code), lanes(|l| code(LANES + l))]
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn mul_add(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        lanes(|l| a[l].mul_add(b[l], c[l]))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        lanes(|l| if a[l] < b[l] { x[l] } else { y[l] })
    }

    #[inline(always)]
    fn swap<const D: usize>(self, v: Self::F) -> Self::F {
        lanes(|l| v[l ^ D])
    }

    #[inline(always)]
    fn exchange<const D: usize>(self, a: Self::F, b: Self::F) -> [Self::F; 2] {
        [
            lanes(|l| if l & D == 0 { a[l] } else { b[l ^ D] }),
            lanes(|l| if l & D == 0 { a[l ^ D] } else { b[l] }),
        ]
    }

    #[inline(always)]
    fn splat_bits(self, v: u32) -> Self::I {
        [v; LANES]
    }

    #[inline(always)]
    fn load_bits(self, v: &[u32; LANES]) -> Self::I {
        *v
    }

    #[inline(always)]
    fn windows<const BITS: usize>(self, [first, later]: [u64; 2]) -> Self::I {
        let all = u128::from(first) | u128::from(later) << 32;
        lanes(|l| (all >> (BITS * l)) as u32)
    }

    #[inline(always)]
    fn store_bits(self, v: Self::I, out: &mut [u32; LANES]) {
        *out = v;
    }

    #[inline(always)]
    fn repeat<const N: usize>(self, v: &[f32; N]) -> Self::F {
        lanes(|l| v[l % N])
    }

    #[inline(always)]
    fn regroup<const N: usize>(self, v: Self::F) -> Self::F {
        lanes(|l| v[transposed(LANES / N, l)])
    }

    #[inline(always)]
    fn to_bits(self, v: Self::F) -> Self::I {
        map(v, f32::to_bits)
    }

    #[inline(always)]
    fn with_bits(self, v: Self::I) -> Self::F {
        map(v, f32::from_bits)
    }

    #[inline(always)]
    fn add_bits(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_add)
    }

    #[inline(always)]
    fn sub_bits(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_sub)
    }

    #[inline(always)]
    fn mul_bits(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, u32::wrapping_mul)
    }

    #[inline(always)]
    fn add_byte_sums(self, sum: Self::I, v: Self::I) -> Self::I {
        zip(sum, v, |sum, v| {
            v.to_le_bytes()
                .into_iter()
                .map(u32::from)
                .fold(sum, u32::wrapping_add)
        })
    }

    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a & b)
    }

    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn shl(self, a: Self::I, n: u32) -> Self::I {
        map(a, |a| a << n)
    }

    #[inline(always)]
    fn shr(self, a: Self::I, n: u32) -> Self::I {
        map(a, |a| a >> n)
    }
}
