//! Storage rounding: `f32` to 16 bits and back, in bulk and in lanes.

use crate::encoding::Float;
use crate::kernel::{Backend, Kernel, LANES, Simd};

/// Widens little-endian values of `dtype` to `f32`: exact.
///
/// # Panics
/// When `bytes` is not `out.len()` values long.
pub fn widen(dtype: Float, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.size(), "bytes of {} {}", out.len(), dtype.name());
    Backend::detect().run(Widen { dtype, bytes, out });
}

/// Rounds `x` to `dtype`, nearest with ties to even, little-endian. Too large becomes infinity.
///
/// # Panics
/// When `out` is not `x.len()` values long.
pub fn narrow(dtype: Float, x: &[f32], out: &mut [u8]) {
    assert_eq!(out.len(), x.len() * dtype.size(), "bytes of {} {}", x.len(), dtype.name());
    Backend::detect().run(Narrow { dtype, x, out });
}

/// One value in `f16`, widened. Inline, with no question asked of the CPU.
#[inline(always)]
pub fn half(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let size = (bits & 0x7fff) << 13;
    // The exponent's bias differs by 112; a multiplication moves subnormals too.
    let moved = f32::from_bits(size) * f32::from_bits(239 << 23);
    let infinite = f32::from_bits(size | 0x7f80_0000);
    let size = if bits & 0x7c00 == 0x7c00 { infinite } else { moved };
    f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
}

/// [`widen`] as a kernel.
pub struct Widen<'a> {
    pub dtype: Float,
    pub bytes: &'a [u8],
    pub out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.dtype {
            Float::F32 => widen_all::<S, F32, _>(s, self.bytes, self.out),
            Float::F16 => widen_all::<S, F16, _>(s, self.bytes, self.out),
            Float::Bf16 => widen_all::<S, Bf16, _>(s, self.bytes, self.out),
        }
    }
}

/// A stored type of floats, sixteen of them in `SIZE` bytes.
pub trait Stored<const SIZE: usize> {
    /// Sixteen values, widened.
    fn load<S: Simd>(s: S, v: &[u8; SIZE]) -> S::F;
}

/// `f32`, as a type.
pub struct F32;
/// `f16`, as a type.
pub struct F16;
/// `bf16`, as a type.
pub struct Bf16;
/// Powers of two in a byte, as a type.
pub struct E8m0;

impl Stored<64> for F32 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[u8; 64]) -> S::F {
        s.load_f32(v)
    }
}

impl Stored<32> for F16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[u8; 32]) -> S::F {
        s.load_f16(v)
    }
}

impl Stored<32> for Bf16 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[u8; 32]) -> S::F {
        s.load_bf16(v)
    }
}

impl Stored<16> for E8m0 {
    #[inline(always)]
    fn load<S: Simd>(s: S, v: &[u8; 16]) -> S::F {
        let exponents = s.and(s.load_i8(v), s.splat_bits(0xff));
        let powers = s.with_bits(s.shl(exponents, 23));
        // Exponent 0 gives no zero but half of the least normal number, 255 not infinity but no number.
        let least = s.splat(f32::from_bits(1 << 22));
        let powers = s.select_less(powers, least, least, powers);
        s.select_less(s.splat(f32::MAX), powers, s.splat(f32::NAN), powers)
    }
}

/// Widens sixteen values at a time.
#[inline(always)]
fn widen_all<S: Simd, T: Stored<SIZE>, const SIZE: usize>(s: S, bytes: &[u8], out: &mut [f32]) {
    let (blocks, rest) = bytes.as_chunks::<SIZE>();
    let (lanes, out_rest) = out.as_chunks_mut::<LANES>();
    for (block, lanes) in blocks.iter().zip(lanes) {
        s.store(T::load(s, block), lanes);
    }
    let mut last = [0.0; LANES];
    s.store(T::load(s, &padded(rest)), &mut last);
    out_rest.copy_from_slice(&last[..out_rest.len()]);
}

/// `part` (at most `N` values) followed by zeros.
#[inline(always)]
pub fn padded<T: Copy + Default, const N: usize>(part: &[T]) -> [T; N] {
    let mut all = [T::default(); N];
    all[..part.len()].copy_from_slice(part);
    all
}

/// [`narrow`] as a kernel.
pub struct Narrow<'a> {
    pub dtype: Float,
    pub x: &'a [f32],
    pub out: &'a mut [u8],
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.dtype {
            Float::F32 => narrow_all(s, self.dtype, (self.x, self.out), u32::to_le_bytes),
            _ => narrow_all(s, self.dtype, (self.x, self.out), |bits| (bits as u16).to_le_bytes()),
        }
    }
}

/// Rounds sixteen values at a time to `SIZE` bytes each.
#[inline(always)]
fn narrow_all<S: Simd, const SIZE: usize>(
    s: S,
    dtype: Float,
    (x, out): (&[f32], &mut [u8]),
    bytes: impl Fn(u32) -> [u8; SIZE],
) {
    let (x, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0; LANES];
    for (x, out) in x.iter().zip(out.chunks_mut(LANES * SIZE)) {
        s.store_bits(encode(s, dtype, s.load(x)), &mut lanes);
        let out = out.as_chunks_mut::<SIZE>().0;
        for (out, &lane) in out.iter_mut().zip(&lanes) {
            *out = bytes(lane);
        }
    }
    s.store_bits(encode(s, dtype, s.load(&padded(rest))), &mut lanes);
    let out = out[x.len() * LANES * SIZE..].as_chunks_mut::<SIZE>().0;
    for (out, &lane) in out.iter_mut().zip(&lanes) {
        *out = bytes(lane);
    }
}

/// Each value's bits in `dtype`, in the low half of the lane for 16-bit types.
#[inline(always)]
pub fn encode<S: Simd>(s: S, dtype: Float, v: S::F) -> S::I {
    match dtype {
        Float::F32 => s.to_bits(v),
        Float::F16 => encode_f16(s, v),
        Float::Bf16 => s.shr(round_bf16(s, v), 16),
    }
}

/// Each value rounded to `dtype` and widened back.
#[inline(always)]
pub fn round<S: Simd>(s: S, dtype: Float, v: S::F) -> S::F {
    match dtype {
        Float::F32 => v,
        Float::F16 => round_f16(s, v),
        Float::Bf16 => s.with_bits(round_bf16(s, v)),
    }
}

/// The sixteen bits as a float with 16 zero bits below. NaN keeps its upper half, made quiet.
#[inline(always)]
fn round_bf16<S: Simd>(s: S, v: S::F) -> S::I {
    let bits = s.to_bits(v);
    let odd = s.and(s.shr(bits, 16), s.splat_bits(1));
    let rounded = s.add_bits(bits, s.add_bits(odd, s.splat_bits(0x7fff)));
    let nan = s.or(bits, s.splat_bits(0x0040_0000));
    // From small to large; NaN compares false everywhere and takes the last.
    let size = magnitude(s, v);
    let large = s.select_less(s.splat(f32::MAX), size, v, s.with_bits(nan));
    let all = s.select_less(size, s.splat(f32::INFINITY), s.with_bits(rounded), large);
    s.and(s.to_bits(all), s.splat_bits(0xffff_0000))
}

/// `|v|`.
#[inline(always)]
pub fn magnitude<S: Simd>(s: S, v: S::F) -> S::F {
    s.with_bits(s.and(s.to_bits(v), s.splat_bits(0x7fff_ffff)))
}

/// The largest `f32` below 65520, from where on values round to infinity in `f16`.
const F16_LIMIT: f32 = f32::from_bits(0x477f_efff);

/// The smallest normal `f16`, `2^-14`.
const F16_NORMAL: f32 = f32::from_bits(0x3880_0000);

/// Bits of `|v|` rounded to 11 significant bits: right for values that are normal in `f16`.
#[inline(always)]
fn round_11<S: Simd>(s: S, v: S::F) -> S::I {
    let bits = s.to_bits(magnitude(s, v));
    let odd = s.and(s.shr(bits, 13), s.splat_bits(1));
    s.add_bits(bits, s.add_bits(odd, s.splat_bits(0x0fff)))
}

#[inline(always)]
fn round_f16<S: Simd>(s: S, v: S::F) -> S::F {
    let sign = s.and(s.to_bits(v), s.splat_bits(0x8000_0000));
    let size = magnitude(s, v);
    let normal = s.with_bits(s.and(round_11(s, v), s.splat_bits(0xffff_e000)));
    // One unit of 0.5 is one unit of a subnormal: the addition rounds.
    let half = s.splat(0.5);
    let subnormal = s.sub(s.add(size, half), half);
    let finite = s.select_less(size, s.splat(F16_NORMAL), subnormal, normal);
    // NaN compares false and passes; the rest above the limit is infinite.
    let large = s.select_less(s.splat(F16_LIMIT), size, s.splat(f32::INFINITY), finite);
    s.with_bits(s.or(s.to_bits(large), sign))
}

#[inline(always)]
fn encode_f16<S: Simd>(s: S, v: S::F) -> S::I {
    let sign = s.and(s.shr(s.to_bits(v), 16), s.splat_bits(0x8000));
    let size = magnitude(s, v);
    let normal = s.sub_bits(s.shr(round_11(s, v), 13), s.splat_bits(112 << 10));
    let half = s.splat(0.5);
    let subnormal = s.sub_bits(s.to_bits(s.add(size, half)), s.to_bits(half));
    let payload = s.and(s.shr(s.to_bits(v), 13), s.splat_bits(0x03ff));
    let nan = s.or(payload, s.splat_bits(0x7e00));
    // From small to large; NaN compares false everywhere and takes the last.
    let (subnormal, normal) = (s.with_bits(subnormal), s.with_bits(normal));
    let (infinite, nan) = (s.with_bits(s.splat_bits(0x7c00)), s.with_bits(nan));
    let large = s.select_less(s.splat(F16_LIMIT), size, infinite, nan);
    let finite = s.select_less(size, s.splat(F16_LIMIT.next_up()), normal, large);
    let all = s.select_less(size, s.splat(F16_NORMAL), subnormal, finite);
    s.or(s.to_bits(all), sign)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn halves_are_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (half(bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan());
        }
    }
}
