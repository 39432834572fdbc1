//! Sixteen lanes in two 256-bit registers.

use std::arch::x86_64::*;

use super::layout::{Layout, Windows};
use super::{Kernel, LANES, Simd};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub struct Avx2(());

pub fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx2(()))
    }
    assert!(is_available(), "this CPU lacks AVX2, FMA or F16C");
    // SAFETY: the CPU has the features, asserted above.
    unsafe { inner(kernel) }
}

type F = [__m256; 2];
type I = [__m256i; 2];

/// Methods that are one expression, done for register `i` = 0 and 1.
macro_rules! ops {
    ($($name:ident($($arg:ident: $t:ty),*) -> $out:ty = |$i:ident| $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $t),*) -> $out {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe { [{ let $i = 0; $body }, { let $i = 1; $body }] }
        })*
    };
}

impl Simd for Avx2 {
    type F = F;
    type I = I;

    /// Sixteen registers hold the sums of six rows and one line, that line and a value.
    const LINES_AT_ONCE: usize = 1;

    ops! {
        splat(v: f32) -> F = |_i| _mm256_set1_ps(v);
        add(a: F, b: F) -> F = |i| _mm256_add_ps(a[i], b[i]);
        sub(a: F, b: F) -> F = |i| _mm256_sub_ps(a[i], b[i]);
        mul(a: F, b: F) -> F = |i| _mm256_mul_ps(a[i], b[i]);
        div(a: F, b: F) -> F = |i| _mm256_div_ps(a[i], b[i]);
        mul_add(a: F, b: F, c: F) -> F = |i| _mm256_fmadd_ps(a[i], b[i], c[i]);
        min(a: F, b: F) -> F = |i| _mm256_min_ps(a[i], b[i]);
        max(a: F, b: F) -> F = |i| _mm256_max_ps(a[i], b[i]);
        select_less(a: F, b: F, x: F, y: F) -> F =
            |i| _mm256_blendv_ps(y[i], x[i], _mm256_cmp_ps::<_CMP_LT_OQ>(a[i], b[i]));
        splat_bits(v: u32) -> I = |_i| _mm256_set1_epi32(v.cast_signed());
        floats(v: I) -> F = |i| _mm256_cvtepi32_ps(v[i]);
        to_bits(v: F) -> I = |i| _mm256_castps_si256(v[i]);
        with_bits(v: I) -> F = |i| _mm256_castsi256_ps(v[i]);
        add_bits(a: I, b: I) -> I = |i| _mm256_add_epi32(a[i], b[i]);
        sub_bits(a: I, b: I) -> I = |i| _mm256_sub_epi32(a[i], b[i]);
        mul_bits(a: I, b: I) -> I = |i| _mm256_mullo_epi32(a[i], b[i]);
        add_byte_sums(sum: I, v: I) -> I = |i| {
            let pairs = _mm256_maddubs_epi16(v[i], _mm256_set1_epi8(1));
            _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        };
        and(a: I, b: I) -> I = |i| _mm256_and_si256(a[i], b[i]);
        or(a: I, b: I) -> I = |i| _mm256_or_si256(a[i], b[i]);
        shl(a: I, n: u32) -> I = |i| _mm256_sllv_epi32(a[i], _mm256_set1_epi32(n.cast_signed()));
        shr(a: I, n: u32) -> I = |i| _mm256_srlv_epi32(a[i], _mm256_set1_epi32(n.cast_signed()));
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: x86-64 has the instruction, and it reads nothing: any address will do.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn prefetch_second(self, at: *const u8) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> F {
        let (lo, hi) = v.split_at(8);
        // SAFETY: `self` proves the instructions; each half is 32 readable bytes.
        unsafe { [_mm256_loadu_ps(lo.as_ptr()), _mm256_loadu_ps(hi.as_ptr())] }
    }

    #[inline(always)]
    fn store(self, v: F, out: &mut [f32; LANES]) {
        let (lo, hi) = out.split_at_mut(8);
        // SAFETY: `self` proves the instructions; each half is 32 writable bytes.
        unsafe {
            _mm256_storeu_ps(lo.as_mut_ptr(), v[0]);
            _mm256_storeu_ps(hi.as_mut_ptr(), v[1]);
        }
    }

    #[inline(always)]
    fn load_bits(self, v: &[u32; LANES]) -> I {
        let (lo, hi) = v.split_at(8);
        // SAFETY: `self` proves the instructions; each half is 32 readable bytes.
        unsafe { [_mm256_loadu_si256(lo.as_ptr().cast()), _mm256_loadu_si256(hi.as_ptr().cast())] }
    }

    #[inline(always)]
    fn windows<const BITS: usize>(self, [first, later]: [u64; 2]) -> I {
        let (lo, hi) = Windows::<BITS>::SHUFFLE.split_at(32);
        let (lo_shift, hi_shift) = Layout::<BITS>::SHIFT[0].split_at(8);
        // SAFETY: `self` proves the instructions; the halves of the tables are 32 bytes each.
        unsafe {
            let source = if BITS == 4 {
                let both = _mm_set_epi64x(later.cast_signed(), first.cast_signed());
                _mm256_broadcastsi128_si256(both)
            } else {
                _mm256_set1_epi64x(first.cast_signed())
            };
            let lo = _mm256_shuffle_epi8(source, _mm256_loadu_si256(lo.as_ptr().cast()));
            let hi = _mm256_shuffle_epi8(source, _mm256_loadu_si256(hi.as_ptr().cast()));
            [
                _mm256_srlv_epi32(lo, _mm256_loadu_si256(lo_shift.as_ptr().cast())),
                _mm256_srlv_epi32(hi, _mm256_loadu_si256(hi_shift.as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn swap<const D: usize>(self, [a, b]: F) -> F {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match D {
                1 => [_mm256_permute_ps::<0b10_11_00_01>(a), _mm256_permute_ps::<0b10_11_00_01>(b)],
                2 => [_mm256_permute_ps::<0b01_00_11_10>(a), _mm256_permute_ps::<0b01_00_11_10>(b)],
                4 => [_mm256_permute2f128_ps::<1>(a, a), _mm256_permute2f128_ps::<1>(b, b)],
                _ => [b, a],
            }
        }
    }

    #[inline(always)]
    fn exchange<const D: usize>(self, a: F, b: F) -> [F; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match D {
                1 => [
                    [
                        _mm256_blend_ps::<0b1010_1010>(a[0], _mm256_moveldup_ps(b[0])),
                        _mm256_blend_ps::<0b1010_1010>(a[1], _mm256_moveldup_ps(b[1])),
                    ],
                    [
                        _mm256_blend_ps::<0b1010_1010>(_mm256_movehdup_ps(a[0]), b[0]),
                        _mm256_blend_ps::<0b1010_1010>(_mm256_movehdup_ps(a[1]), b[1]),
                    ],
                ],
                2 => [
                    [
                        _mm256_shuffle_ps::<0b01_00_01_00>(a[0], b[0]),
                        _mm256_shuffle_ps::<0b01_00_01_00>(a[1], b[1]),
                    ],
                    [
                        _mm256_shuffle_ps::<0b11_10_11_10>(a[0], b[0]),
                        _mm256_shuffle_ps::<0b11_10_11_10>(a[1], b[1]),
                    ],
                ],
                4 => [
                    [
                        _mm256_permute2f128_ps::<0x20>(a[0], b[0]),
                        _mm256_permute2f128_ps::<0x20>(a[1], b[1]),
                    ],
                    [
                        _mm256_permute2f128_ps::<0x31>(a[0], b[0]),
                        _mm256_permute2f128_ps::<0x31>(a[1], b[1]),
                    ],
                ],
                _ => [[a[0], b[0]], [a[1], b[1]]],
            }
        }
    }

    #[inline(always)]
    fn store_bits(self, v: I, out: &mut [u32; LANES]) {
        let (lo, hi) = out.split_at_mut(8);
        // SAFETY: `self` proves the instructions; each half is 32 writable bytes.
        unsafe {
            _mm256_storeu_si256(lo.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(hi.as_mut_ptr().cast(), v[1]);
        }
    }

    #[inline(always)]
    fn repeat<const N: usize>(self, v: &[f32; N]) -> F {
        // SAFETY: `self` proves the instructions; `N` floats are read of `N`.
        let half = unsafe {
            match N {
                4 => _mm256_broadcast_ps(&_mm_loadu_ps(v.as_ptr())),
                2 => _mm256_castpd_ps(_mm256_set1_pd(v.as_ptr().cast::<f64>().read_unaligned())),
                _ => _mm256_set1_ps(v[0]),
            }
        };
        [half, half]
    }

    #[inline(always)]
    fn regroup<const N: usize>(self, [lo, hi]: F) -> F {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match N {
                4 => {
                    // Each lane of four has one value of each of the four rows, in this order.
                    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                    [
                        _mm256_permutevar8x32_ps(_mm256_unpacklo_ps(lo, hi), order),
                        _mm256_permutevar8x32_ps(_mm256_unpackhi_ps(lo, hi), order),
                    ]
                }
                2 => {
                    let joined = |v| {
                        let v = _mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(v));
                        _mm256_castpd_ps(v)
                    };
                    [
                        joined(_mm256_shuffle_ps::<0b10_00_10_00>(lo, hi)),
                        joined(_mm256_shuffle_ps::<0b11_01_11_01>(lo, hi)),
                    ]
                }
                _ => [lo, hi],
            }
        }
    }

    #[inline(always)]
    fn load_f32(self, v: &[u8; 64]) -> F {
        let (lo, hi) = v.split_at(32);
        // SAFETY: `self` proves the instructions; each half is 32 readable bytes.
        unsafe { [_mm256_loadu_ps(lo.as_ptr().cast()), _mm256_loadu_ps(hi.as_ptr().cast())] }
    }

    #[inline(always)]
    fn load_f16(self, v: &[u8; 32]) -> F {
        let (lo, hi) = v.split_at(16);
        // SAFETY: `self` proves the instructions; each half is 16 readable bytes.
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(lo.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(hi.as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u8; 32]) -> F {
        let (lo, hi) = v.split_at(16);
        // SAFETY: `self` proves the instructions; each half is 16 readable bytes.
        unsafe {
            let lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(lo.as_ptr().cast()));
            let hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(hi.as_ptr().cast()));
            self.with_bits([_mm256_slli_epi32::<16>(lo), _mm256_slli_epi32::<16>(hi)])
        }
    }

    #[inline(always)]
    fn load_i8(self, v: &[u8; LANES]) -> I {
        let (lo, hi) = v.split_at(8);
        // SAFETY: `self` proves the instructions; each half is 8 readable bytes.
        unsafe {
            [
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(lo.as_ptr().cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(hi.as_ptr().cast())),
            ]
        }
    }

    #[inline(always)]
    fn load_bytes(self, first: &[u8; 32], second: &[u8; 32]) -> I {
        // SAFETY: `self` proves the instructions; each array is 32 readable bytes.
        unsafe {
            [_mm256_loadu_si256(first.as_ptr().cast()), _mm256_loadu_si256(second.as_ptr().cast())]
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: I, first: &mut [u8; 32], second: &mut [u8; 32]) {
        // SAFETY: `self` proves the instructions; each array is 32 writable bytes.
        unsafe {
            _mm256_storeu_si256(first.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(second.as_mut_ptr().cast(), v[1]);
        }
    }

    /// E5M2 is the upper half of an `f16`. E4M3 has a bit less of exponent: moved by one bit it is one of a 256th.
    #[inline(always)]
    fn floats_of_bytes<const MANTISSA: u32>(self, bytes: &[u8; LANES]) -> F {
        // SAFETY: `self` proves the instructions; the array is 16 readable bytes.
        unsafe {
            let words = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
            let (halves, unit) = if MANTISSA == 3 {
                // The sign is in bit 15 and, of the wider word, in bit 14.
                let halves = _mm256_slli_epi16::<7>(words);
                let halves = _mm256_and_si256(halves, _mm256_set1_epi16(0xbfff_u16.cast_signed()));
                let all = _mm256_set1_epi16(0x7f);
                let none = _mm256_cmpeq_epi16(_mm256_and_si256(words, all), all);
                // An exponent of all ones beside a fraction is not a number.
                let none = _mm256_and_si256(none, _mm256_set1_epi16(0x7c00));
                (_mm256_or_si256(halves, none), 256.0)
            } else {
                (_mm256_slli_epi16::<8>(words), 1.0)
            };
            let first = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let second = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            self.mul([first, second], self.splat(unit))
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: I) -> I {
        // SAFETY: `self` proves the instructions; the table is 16 readable bytes.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, v[0]), _mm256_shuffle_epi8(table, v[1])]
        }
    }

    #[inline(always)]
    fn codes<const BITS: usize, const BLOCK: usize>(self, block: &[u8; BLOCK]) -> [F; 2] {
        [self.half::<BITS, BLOCK, 0>(block), self.half::<BITS, BLOCK, 1>(block)]
    }
}

impl Avx2 {
    /// Sixteen codes of half `HALF`, as floats.
    #[inline(always)]
    fn half<const BITS: usize, const BLOCK: usize, const HALF: usize>(
        self,
        block: &[u8; BLOCK],
    ) -> F {
        let [a, b] =
            self.and(self.words::<BITS, BLOCK, HALF>(block), self.splat_bits((1 << BITS) - 1));
        // SAFETY: `self` proves the instructions.
        unsafe { [_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)] }
    }

    /// Sixteen words of half `HALF`, their lowest bits the codes.
    #[inline(always)]
    fn words<const BITS: usize, const BLOCK: usize, const HALF: usize>(
        self,
        block: &[u8; BLOCK],
    ) -> I {
        // Bytes of eight codes.
        let eight = |part: usize| -> &[u8] { &block[BITS * (2 * HALF + part)..][..BITS] };
        // SAFETY: `self` proves the instructions; slicing checks that the loads stay in the block.
        unsafe {
            match BITS {
                2 => {
                    let bytes: &[u8] = &block[4 * HALF..4 * HALF + 4];
                    let word = _mm256_set1_epi32(bytes.as_ptr().cast::<i32>().read_unaligned());
                    let shift = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
                    let low = _mm256_srlv_epi32(word, shift);
                    [low, _mm256_srlv_epi32(_mm256_srli_epi32::<16>(word), shift)]
                }
                4 => {
                    let shift = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
                    let [lo, hi] = [eight(0), eight(1)];
                    let lo = _mm256_set1_epi32(lo.as_ptr().cast::<i32>().read_unaligned());
                    let hi = _mm256_set1_epi32(hi.as_ptr().cast::<i32>().read_unaligned());
                    [_mm256_srlv_epi32(lo, shift), _mm256_srlv_epi32(hi, shift)]
                }
                8 => {
                    let [lo, hi] = [eight(0), eight(1)];
                    let lo = _mm256_cvtepu8_epi32(_mm_loadl_epi64(lo.as_ptr().cast()));
                    [lo, _mm256_cvtepu8_epi32(_mm_loadl_epi64(hi.as_ptr().cast()))]
                }
                _ => self.shuffled::<BITS, BLOCK, HALF>(block),
            }
        }
    }

    /// As [`Self::words`], for codes that cross bytes.
    #[inline(always)]
    fn shuffled<const BITS: usize, const BLOCK: usize, const HALF: usize>(
        self,
        block: &[u8; BLOCK],
    ) -> I {
        let at = Layout::<BITS>::OFFSET[HALF];
        // SAFETY: `self` proves the instructions; slicing checks that the loads stay in the block, and
        // the parts of the tables are 32 bytes each.
        unsafe {
            let source = if Layout::<BITS>::WIDE {
                let bytes: &[u8] = &block[at..at + 16];
                _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast()))
            } else {
                let bytes: &[u8] = &block[at..at + 8];
                _mm256_set1_epi64x(bytes.as_ptr().cast::<i64>().read_unaligned())
            };
            let mut words = [source; 2];
            for (part, words) in words.iter_mut().enumerate() {
                let shuffle = &Layout::<BITS>::SHUFFLE[HALF][32 * part..32 * part + 32];
                let shift = &Layout::<BITS>::SHIFT[HALF][8 * part..8 * part + 8];
                let shuffle = _mm256_loadu_si256(shuffle.as_ptr().cast());
                let shift = _mm256_loadu_si256(shift.as_ptr().cast());
                *words = _mm256_srlv_epi32(_mm256_shuffle_epi8(source, shuffle), shift);
            }
            words
        }
    }
}
