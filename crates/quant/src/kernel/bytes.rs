//! Floats of 8 bits by arithmetic on their bits: what [`Simd::floats_of_bytes`] is where a CPU has no shorter way.

use super::{LANES, Simd};

/// Floats with `MANTISSA` bits behind the point: see [`Simd::floats_of_bytes`].
#[inline(always)]
pub fn floats_of_bytes<S: Simd, const MANTISSA: u32>(s: S, bytes: &[u8; LANES]) -> S::F {
    // The exponent that stands for none: 7 for E4M3, 15 for E5M2.
    let bias = const { (1 << (6 - MANTISSA)) - 1 };
    // Between the largest finite value and the next: E4M3 has only one pattern above it, E5M2 all of an exponent.
    let limit = if MANTISSA == 3 { 464.0 } else { 61440.0 };
    let codes = s.load_i8(bytes);
    let magnitude = s.shl(s.and(codes, s.splat_bits(0x7f)), 23 - MANTISSA);
    let value = s.with_bits(s.add_bits(magnitude, s.splat_bits((127 - bias) << 23)));
    // With exponent 0 there is no one before the point, and the exponent is that of the least normal value `n`:
    // `n · m` in place of `n / 2 · (1 + m)`.
    let least = s.with_bits(s.splat_bits((128 - bias) << 23));
    let value = s.select_less(value, least, s.sub(s.add(value, value), least), value);
    // Above the largest value, what an exponent of all ones means with the same fraction: infinite with none,
    // else not a number.
    let wide = s.with_bits(s.or(s.to_bits(value), s.splat_bits(0x7f80_0000)));
    let value = s.select_less(s.splat(limit), value, wide, value);
    // Bytes were widened with their sign, which is the highest bit.
    let sign = s.and(codes, s.splat_bits(1 << 31));
    s.with_bits(s.or(s.to_bits(value), sign))
}
