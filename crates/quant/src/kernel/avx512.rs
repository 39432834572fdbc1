//! Sixteen lanes in one 512-bit register.
//!
//! VBMI and VNNI came with Ice Lake and Zen 4; older CPUs with AVX-512 take the AVX2 backend.

use std::arch::x86_64::*;

use super::layout::Layout;
use super::{E2M1, Kernel, LANES, Simd, TILE_LINES, each_windows};

/// Proof that the CPU has AVX-512 F, BW, DQ, VL, VBMI and VNNI.
#[derive(Clone, Copy)]
pub struct Avx512(());

pub fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
}

pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
    fn inner<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Avx512(()))
    }
    assert!(is_available(), "this CPU lacks AVX-512");
    // SAFETY: the CPU has the features, asserted above.
    unsafe { inner(kernel) }
}

/// Methods that are one intrinsic on registers.
macro_rules! ops {
    ($($name:ident($($arg:ident: $t:ty),*) -> $out:ty = $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $t),*) -> $out {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe { $body }
        })*
    };
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;

    const LINES_AT_ONCE: usize = TILE_LINES;

    ops! {
        splat(v: f32) -> __m512 = _mm512_set1_ps(v);
        add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        select_less(a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 =
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x);
        splat_bits(v: u32) -> __m512i = _mm512_set1_epi32(v.cast_signed());
        floats(v: __m512i) -> __m512 = _mm512_cvtepi32_ps(v);
        to_bits(v: __m512) -> __m512i = _mm512_castps_si512(v);
        with_bits(v: __m512i) -> __m512 = _mm512_castsi512_ps(v);
        add_bits(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        sub_bits(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi32(a, b);
        mul_bits(a: __m512i, b: __m512i) -> __m512i = _mm512_mullo_epi32(a, b);
        add_byte_sums(sum: __m512i, v: __m512i) -> __m512i =
            _mm512_dpbusd_epi32(sum, v, _mm512_set1_epi8(1));
        and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        shl(a: __m512i, n: u32) -> __m512i =
            _mm512_sllv_epi32(a, _mm512_set1_epi32(n.cast_signed()));
        shr(a: __m512i, n: u32) -> __m512i =
            _mm512_srlv_epi32(a, _mm512_set1_epi32(n.cast_signed()));
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
    fn load(self, v: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves the instructions; the array is 64 readable bytes.
        unsafe { _mm512_loadu_ps(v.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        // SAFETY: `self` proves the instructions; the array is 64 writable bytes.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn load_bits(self, v: &[u32; LANES]) -> __m512i {
        // SAFETY: `self` proves the instructions; the array is 64 readable bytes.
        unsafe { _mm512_loadu_si512(v.as_ptr().cast()) }
    }

    #[inline(always)]
    fn windows<const BITS: usize>(self, [first, later]: [u64; 2]) -> __m512i {
        // The upper eight lanes of four bits begin at bit 32 and end within 64 more.
        let upper = if BITS == 4 { later } else { first };
        // SAFETY: `self` proves the instructions.
        let words = unsafe {
            _mm512_mask_set1_epi64(
                _mm512_set1_epi64(first.cast_signed()),
                0xf0,
                upper.cast_signed(),
            )
        };
        self.pick(&FirstBits::<BITS>::OF_LANES, words)
    }

    /// Of four bits, each word of eight bytes holds 13 windows. Lines that take two of each word, of those that begin
    /// with a line of rows and of those that begin in its middle, cost no more than their windows.
    #[inline(always)]
    fn four_windows<const BITS: usize>(self, codes: &[u8], behind: u64) -> [__m512i; 4] {
        if BITS != 4 {
            return each_windows::<Self, BITS>(self, codes, behind);
        }
        let codes = codes.first_chunk().unwrap_or(&[0; 32]);
        // SAFETY: `self` proves the instructions; the codes are 32 readable bytes.
        let words = unsafe {
            let lines = _mm256_loadu_si256(codes.as_ptr().cast());
            let behind = _mm256_set1_epi64x(behind.cast_signed());
            let middles = _mm256_alignr_epi32::<1>(behind, lines);
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(lines), middles)
        };
        let [a, b, c, d] = &FirstBits::<BITS>::OF_PAIRS;
        [self.pick(a, words), self.pick(b, words), self.pick(c, words), self.pick(d, words)]
    }

    /// Lanes `2 i` and `2 i + 1` of line `t` hold rows `2 t` and `2 t + 1` of line `i`, and from its middle on of line
    /// `i - 4`: a transposition of pairs within each half.
    #[inline(always)]
    fn natural_rows<const BITS: usize>(self, lines: [__m512; 4]) -> [__m512; 4] {
        if BITS != 4 {
            return lines;
        }
        // SAFETY: `self` proves the instructions.
        unsafe {
            let [a, b] = [_mm512_castps_pd(lines[0]), _mm512_castps_pd(lines[1])];
            let [c, d] = [_mm512_castps_pd(lines[2]), _mm512_castps_pd(lines[3])];
            let [ab, cd] = [_mm512_unpacklo_pd(a, b), _mm512_unpacklo_pd(c, d)];
            let [ab_odd, cd_odd] = [_mm512_unpackhi_pd(a, b), _mm512_unpackhi_pd(c, d)];
            let lower = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
            let upper = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
            [
                _mm512_castpd_ps(_mm512_permutex2var_pd(ab, lower, cd)),
                _mm512_castpd_ps(_mm512_permutex2var_pd(ab_odd, lower, cd_odd)),
                _mm512_castpd_ps(_mm512_permutex2var_pd(ab, upper, cd)),
                _mm512_castpd_ps(_mm512_permutex2var_pd(ab_odd, upper, cd_odd)),
            ]
        }
    }

    #[inline(always)]
    fn swap<const D: usize>(self, v: __m512) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match D {
                1 => _mm512_permute_ps::<0b10_11_00_01>(v),
                2 => _mm512_permute_ps::<0b01_00_11_10>(v),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(v, v),
                _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(v, v),
            }
        }
    }

    /// The lanes that stay keep what they have, the others are swapped in.
    #[inline(always)]
    fn exchange<const D: usize>(self, a: __m512, b: __m512) -> [__m512; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match D {
                1 => [
                    _mm512_mask_permute_ps::<0b10_11_00_01>(a, 0xaaaa, b),
                    _mm512_mask_permute_ps::<0b10_11_00_01>(b, 0x5555, a),
                ],
                2 => [
                    _mm512_mask_permute_ps::<0b01_00_11_10>(a, 0xcccc, b),
                    _mm512_mask_permute_ps::<0b01_00_11_10>(b, 0x3333, a),
                ],
                4 => [
                    _mm512_mask_shuffle_f32x4::<0b10_11_00_01>(a, 0xf0f0, b, b),
                    _mm512_mask_shuffle_f32x4::<0b10_11_00_01>(b, 0x0f0f, a, a),
                ],
                _ => [
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                ],
            }
        }
    }

    #[inline(always)]
    fn store_bits(self, v: __m512i, out: &mut [u32; LANES]) {
        // SAFETY: `self` proves the instructions; the array is 64 writable bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), v) }
    }

    #[inline(always)]
    fn repeat<const N: usize>(self, v: &[f32; N]) -> __m512 {
        // SAFETY: `self` proves the instructions; `N` floats are read of `N`.
        unsafe {
            match N {
                4 => _mm512_broadcast_f32x4(_mm_loadu_ps(v.as_ptr())),
                2 => _mm512_castpd_ps(_mm512_set1_pd(v.as_ptr().cast::<f64>().read_unaligned())),
                _ => _mm512_set1_ps(v[0]),
            }
        }
    }

    #[inline(always)]
    fn regroup<const N: usize>(self, v: __m512) -> __m512 {
        const FOUR: [u32; LANES] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
        const TWO: [u32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];
        match N {
            4 => self.permute(v, &FOUR),
            2 => self.permute(v, &TWO),
            _ => v,
        }
    }

    #[inline(always)]
    fn load_f32(self, v: &[u8; 64]) -> __m512 {
        // SAFETY: `self` proves the instructions; the array is 64 readable bytes.
        unsafe { _mm512_loadu_ps(v.as_ptr().cast()) }
    }

    #[inline(always)]
    fn load_f16(self, v: &[u8; 32]) -> __m512 {
        // SAFETY: `self` proves the instructions; the array is 32 readable bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(v.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u8; 32]) -> __m512 {
        // SAFETY: `self` proves the instructions; the array is 32 readable bytes.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(v.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    fn load_i8(self, v: &[u8; LANES]) -> __m512i {
        // SAFETY: `self` proves the instructions; the array is 16 readable bytes.
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(v.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load_bytes(self, first: &[u8; 32], second: &[u8; 32]) -> __m512i {
        // SAFETY: `self` proves the instructions; each array is 32 readable bytes.
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(first.as_ptr().cast()));
            _mm512_inserti64x4::<1>(first, _mm256_loadu_si256(second.as_ptr().cast()))
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: __m512i, first: &mut [u8; 32], second: &mut [u8; 32]) {
        // SAFETY: `self` proves the instructions; each array is 32 writable bytes.
        unsafe {
            _mm256_storeu_si256(first.as_mut_ptr().cast(), _mm512_castsi512_si256(v));
            _mm256_storeu_si256(second.as_mut_ptr().cast(), _mm512_extracti64x4_epi64::<1>(v));
        }
    }

    #[inline(always)]
    fn codes<const BITS: usize, const BLOCK: usize>(self, block: &[u8; BLOCK]) -> [__m512; 2] {
        let grid = self.grid::<BITS>(1.0, 0.0);
        let [a, b] = self.decode::<BITS, BLOCK>(block, grid);
        [self.natural::<BITS>(a), self.natural::<BITS>(b)]
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions; the table is 16 readable bytes.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, v)
        }
    }

    /// Up to four bits: the values of all codes, so that decoding is one permutation.
    #[inline(always)]
    fn grid<const BITS: usize>(self, scale: f32, bias: f32) -> [__m512; 2] {
        let (scale, bias) = (self.splat(scale), self.splat(bias));
        if Layout::<BITS>::WIDE {
            return [scale, bias];
        }
        [self.mul_add(scale, self.load(&Codes::<BITS>::VALUES), bias), bias]
    }

    /// A product of scale and code less 8 is that value too. What is added is a zero that is not negative, and no number
    /// where the scale is infinite, as the difference of two products is.
    #[inline(always)]
    fn grid_about_eight(self, scale: f32) -> [__m512; 2] {
        const ABOUT_EIGHT: [f32; LANES] = {
            let (mut values, mut l) = ([0.0; LANES], 0);
            while l < LANES {
                values[l] = l as f32 - 8.0;
                l += 1;
            }
            values
        };
        let scale = self.splat(scale);
        let zero = self.sub(scale, scale);
        [self.mul_add(scale, self.load(&ABOUT_EIGHT), zero), zero]
    }

    #[inline(always)]
    fn decode<const BITS: usize, const BLOCK: usize>(
        self,
        block: &[u8; BLOCK],
        grid: [__m512; 2],
    ) -> [__m512; 2] {
        [
            self.values::<BITS>(self.half::<BITS, BLOCK, 0>(block), grid),
            self.values::<BITS>(self.half::<BITS, BLOCK, 1>(block), grid),
        ]
    }

    /// A permutation sees the lowest four bits of each number.
    #[inline(always)]
    fn nibbles(self, bytes: &[u8; LANES], low: [__m512; 2], high: [__m512; 2]) -> [__m512; 2] {
        let bytes = self.load_i8(bytes);
        [self.values::<4>(bytes, low), self.values::<4>(self.shr(bytes, 4), high)]
    }

    /// E5M2 is the upper half of an `f16`. E4M3 has a bit less of exponent: moved by one bit it is one of a 256th.
    #[inline(always)]
    fn floats_of_bytes<const MANTISSA: u32>(self, bytes: &[u8; LANES]) -> __m512 {
        // SAFETY: `self` proves the instructions; the array is 16 readable bytes.
        unsafe {
            let words = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
            if MANTISSA != 3 {
                return _mm512_cvtph_ps(_mm256_slli_epi16::<8>(words));
            }
            // The sign is in bit 15 and, of the wider word, in bit 14.
            let halves = _mm256_slli_epi16::<7>(words);
            let halves = _mm256_and_si256(halves, _mm256_set1_epi16(0xbfff_u16.cast_signed()));
            let all = _mm256_set1_epi16(0x7f);
            let none = _mm256_cmpeq_epi16_mask(_mm256_and_si256(words, all), all);
            let halves = _mm256_mask_blend_epi16(none, halves, _mm256_set1_epi16(0x7e00));
            self.mul(_mm512_cvtph_ps(halves), self.splat(256.0))
        }
    }

    /// The values of all codes, so that decoding is one permutation.
    #[inline(always)]
    fn scaled_e2m1(self, codes: __m512i, scale: f32) -> __m512 {
        let values = self.mul(self.load(&E2M1), self.splat(scale));
        // SAFETY: `self` proves the instructions.
        unsafe { _mm512_permutexvar_ps(codes, values) }
    }

    /// Sixteen 4-bit codes are the halves of a 64-bit word: one shift per lane pair brings code `i` to
    /// lane `2 i` and code `8 + i` to lane `2 i + 1`.
    #[inline(always)]
    fn arrange<const BITS: usize>(self, v: __m512) -> __m512 {
        const TO: [u32; LANES] = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15];
        if BITS == 4 { self.permute(v, &TO) } else { v }
    }

    #[inline(always)]
    fn natural<const BITS: usize>(self, v: __m512) -> __m512 {
        const BACK: [u32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];
        if BITS == 4 { self.permute(v, &BACK) } else { v }
    }

    /// Each addition of [`Simd::sum`] is done for all four in one register.
    #[inline(always)]
    fn sum_four(self, v: [__m512; 4]) -> [f32; 4] {
        let mut out = [0.0; LANES];
        let four = self.quarters(v);
        // SAFETY: `self` proves the instructions.
        let sums = unsafe {
            let two = _mm512_add_ps(four, _mm512_permute_ps::<0b01_00_11_10>(four));
            _mm512_add_ps(two, _mm512_permute_ps::<0b10_11_00_01>(two))
        };
        self.store(sums, &mut out);
        [out[0], out[4], out[8], out[12]]
    }
}

impl Avx512 {
    /// Of each word of eight bytes the bits from the places on that `at` names for each byte.
    #[inline(always)]
    fn pick(self, at: &[u8; 4 * LANES], words: __m512i) -> __m512i {
        // SAFETY: `self` proves the instructions; the table is 64 readable bytes.
        unsafe {
            let at = _mm512_loadu_si512(at.as_ptr().cast());
            _mm512_multishift_epi64_epi8(at, words)
        }
    }

    /// Four sums on the way: lanes `4 i..4 i + 4` are those of `v[i]` after the first two steps of
    /// [`Simd::sum`], which add what lies 8 and 4 lanes apart.
    #[inline(always)]
    fn quarters(self, [a, b, c, d]: [__m512; 4]) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            // The lower half of one and the upper of the other, and what is to be added to each: the order of
            // two summands changes nothing.
            let pair = |a, b| {
                let crossed = _mm512_shuffle_f32x4::<0b01_00_11_10>(a, b);
                _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), crossed)
            };
            let (ab, cd) = (pair(a, b), pair(c, d));
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd);
            _mm512_add_ps(low, _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd))
        }
    }

    #[inline(always)]
    fn permute(self, v: __m512, lanes: &[u32; LANES]) -> __m512 {
        // SAFETY: `self` proves the instructions; the table is 64 readable bytes.
        unsafe { _mm512_permutexvar_ps(_mm512_loadu_si512(lanes.as_ptr().cast()), v) }
    }

    /// Sixteen words of half `HALF`: codes, in their lowest bits up to 4 bits, else alone.
    #[inline(always)]
    fn half<const BITS: usize, const BLOCK: usize, const HALF: usize>(
        self,
        block: &[u8; BLOCK],
    ) -> __m512i {
        // SAFETY: `self` proves the instructions; slicing checks that the loads stay in the block.
        unsafe {
            match BITS {
                2 => {
                    let bytes: &[u8] = &block[4 * HALF..4 * HALF + 4];
                    let word = _mm512_set1_epi32(bytes.as_ptr().cast::<i32>().read_unaligned());
                    let shift = _mm512_setr_epi32(
                        0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
                    );
                    _mm512_srlv_epi32(word, shift)
                }
                4 => {
                    let bytes: &[u8] = &block[8 * HALF..8 * HALF + 8];
                    let word = _mm512_set1_epi64(bytes.as_ptr().cast::<i64>().read_unaligned());
                    let shift = _mm512_setr_epi64(0, 4, 8, 12, 16, 20, 24, 28);
                    _mm512_srlv_epi64(word, shift)
                }
                8 => {
                    let bytes: &[u8] = &block[16 * HALF..16 * HALF + 16];
                    _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().cast()))
                }
                _ => self.shuffled::<BITS, BLOCK, HALF>(block),
            }
        }
    }

    /// As [`Self::half`], for codes that cross bytes.
    #[inline(always)]
    fn shuffled<const BITS: usize, const BLOCK: usize, const HALF: usize>(
        self,
        block: &[u8; BLOCK],
    ) -> __m512i {
        let at = Layout::<BITS>::OFFSET[HALF];
        let (shuffle, shift) = (&Layout::<BITS>::SHUFFLE[HALF], &Layout::<BITS>::SHIFT[HALF]);
        // SAFETY: `self` proves the instructions; slicing checks that the loads stay in the block,
        // and the tables are 64 bytes each.
        unsafe {
            let source = if Layout::<BITS>::WIDE {
                let bytes: &[u8] = &block[at..at + 16];
                _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast()))
            } else {
                let bytes: &[u8] = &block[at..at + 8];
                _mm512_set1_epi64(bytes.as_ptr().cast::<i64>().read_unaligned())
            };
            let pairs = _mm512_shuffle_epi8(source, _mm512_loadu_si512(shuffle.as_ptr().cast()));
            let words = _mm512_srlv_epi32(pairs, _mm512_loadu_si512(shift.as_ptr().cast()));
            let mask = _mm512_set1_epi32((1 << BITS) - 1);
            if Layout::<BITS>::WIDE { _mm512_and_si512(words, mask) } else { words }
        }
    }

    /// The values of sixteen codes: a table of sixteen sees four bits and repeats those of fewer.
    #[inline(always)]
    fn values<const BITS: usize>(self, words: __m512i, [first, bias]: [__m512; 2]) -> __m512 {
        // SAFETY: `self` proves the instructions.
        unsafe {
            if Layout::<BITS>::WIDE {
                self.mul_add(first, _mm512_cvtepi32_ps(words), bias)
            } else {
                _mm512_permutexvar_ps(words, first)
            }
        }
    }
}

/// Where a window's bytes begin in the eight bytes that hold it: byte `4 l + i` is byte `i` of the window of lane `l`.
struct FirstBits<const BITS: usize>;

impl<const BITS: usize> FirstBits<BITS> {
    /// That of lane `l` begins at bit `BITS · l`; of four bits the upper lanes count from bit 32.
    const OF_LANES: [u8; 4 * LANES] = Self::table(LANES, 0);

    /// Those of lanes `l` and `l + 1`, `l` even, begin at bits `BITS · 2 t` and `BITS · (2 t + 1)`.
    const OF_PAIRS: [[u8; 4 * LANES]; 4] =
        [Self::table(2, 0), Self::table(2, 2), Self::table(2, 4), Self::table(2, 6)];

    /// For lanes that count rows from `first` on and begin again after `count`.
    const fn table(count: usize, first: usize) -> [u8; 4 * LANES] {
        let mut table = [0; 4 * LANES];
        let mut i = 0;
        while i < 4 * LANES {
            let start = BITS * (first + i / 4 % count) % if BITS == 4 { 32 } else { 64 };
            table[i] = (start + 8 * (i % 2)) as u8;
            i += 1;
        }
        table
    }
}

/// The values of codes of `BITS` bits, up to four.
struct Codes<const BITS: usize>;

impl<const BITS: usize> Codes<BITS> {
    /// Lane `l` is the code in the lowest bits of `l`.
    const VALUES: [f32; LANES] = {
        let mut values = [0.0; LANES];
        let mut l = 0;
        while l < LANES {
            values[l] = (l % (1 << BITS)) as f32;
            l += 1;
        }
        values
    };
}
