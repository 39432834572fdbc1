//! Sixteen lanes in four 128-bit registers.

use std::arch::aarch64::*;

use super::layout::{Layout, Windows};
use super::{Kernel, LANES, Simd};

/// Proof that the CPU has NEON.
#[derive(Clone, Copy)]
pub struct Neon(());

pub fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon")
}

pub fn run<K: Kernel>(kernel: K) -> K::Output {
    #[target_feature(enable = "neon")]
    fn inner<K: Kernel>(kernel: K) -> K::Output {
        kernel.run(Neon(()))
    }
    assert!(is_available(), "this CPU lacks NEON");
    // SAFETY: the CPU has the feature, asserted above.
    unsafe { inner(kernel) }
}

type F = [float32x4_t; 4];
type I = [uint32x4_t; 4];

/// An array of one expression for each register `i`.
macro_rules! each {
    (|$i:ident| $body:expr) => {
        [
            {
                let $i = 0;
                $body
            },
            {
                let $i = 1;
                $body
            },
            {
                let $i = 2;
                $body
            },
            {
                let $i = 3;
                $body
            },
        ]
    };
}

/// Methods that are one expression, done for every register.
macro_rules! ops {
    ($($name:ident($($arg:ident: $t:ty),*) -> $out:ty = |$i:ident| $body:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, $($arg: $t),*) -> $out {
            // SAFETY: `self` proves that the CPU has the instructions.
            unsafe { each!(|$i| $body) }
        })*
    };
}

impl Simd for Neon {
    type F = F;
    type I = I;

    /// The sums of six rows and one line, that line and a value are 29 of 32 registers.
    const LINES_AT_ONCE: usize = 1;

    ops! {
        splat(v: f32) -> F = |_i| vdupq_n_f32(v);
        add(a: F, b: F) -> F = |i| vaddq_f32(a[i], b[i]);
        sub(a: F, b: F) -> F = |i| vsubq_f32(a[i], b[i]);
        mul(a: F, b: F) -> F = |i| vmulq_f32(a[i], b[i]);
        div(a: F, b: F) -> F = |i| vdivq_f32(a[i], b[i]);
        mul_add(a: F, b: F, c: F) -> F = |i| vfmaq_f32(c[i], a[i], b[i]);
        // Not FMIN and FMAX: those order zeros and keep NaN.
        min(a: F, b: F) -> F = |i| vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]);
        max(a: F, b: F) -> F = |i| vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]);
        select_less(a: F, b: F, x: F, y: F) -> F =
            |i| vbslq_f32(vcltq_f32(a[i], b[i]), x[i], y[i]);
        splat_bits(v: u32) -> I = |_i| vdupq_n_u32(v);
        to_bits(v: F) -> I = |i| vreinterpretq_u32_f32(v[i]);
        with_bits(v: I) -> F = |i| vreinterpretq_f32_u32(v[i]);
        add_bits(a: I, b: I) -> I = |i| vaddq_u32(a[i], b[i]);
        sub_bits(a: I, b: I) -> I = |i| vsubq_u32(a[i], b[i]);
        mul_bits(a: I, b: I) -> I = |i| vmulq_u32(a[i], b[i]);
        add_byte_sums(sum: I, v: I) -> I =
            |i| vpadalq_u16(sum[i], vpaddlq_u8(vreinterpretq_u8_u32(v[i])));
        and(a: I, b: I) -> I = |i| vandq_u32(a[i], b[i]);
        or(a: I, b: I) -> I = |i| vorrq_u32(a[i], b[i]);
        shl(a: I, n: u32) -> I = |i| vshlq_u32(a[i], vdupq_n_s32(n.cast_signed()));
        shr(a: I, n: u32) -> I = |i| vshlq_u32(a[i], vdupq_n_s32(-n.cast_signed()));
    }

    #[inline(always)]
    fn load(self, v: &[f32; LANES]) -> F {
        // SAFETY: `self` proves the instructions; the four loads cover the array.
        unsafe { each!(|i| vld1q_f32(v.as_ptr().add(4 * i))) }
    }

    #[inline(always)]
    fn store(self, v: F, out: &mut [f32; LANES]) {
        // SAFETY: `self` proves the instructions; the four stores cover the array.
        unsafe { each!(|i| vst1q_f32(out.as_mut_ptr().add(4 * i), v[i])) };
    }

    #[inline(always)]
    fn load_bits(self, v: &[u32; LANES]) -> I {
        // SAFETY: `self` proves the instructions; the four loads cover the array.
        unsafe { each!(|i| vld1q_u32(v.as_ptr().add(4 * i))) }
    }

    #[inline(always)]
    fn windows<const BITS: usize>(self, [first, later]: [u64; 2]) -> I {
        let shuffle = &Windows::<BITS>::SHUFFLE;
        let shift = Layout::<BITS>::SHIFT[0].map(|n| -n.cast_signed());
        // SAFETY: `self` proves the instructions; the loads of the tables cover 64 bytes each.
        unsafe {
            let source = vreinterpretq_u8_u64(vcombine_u64(vcreate_u64(first), vcreate_u64(later)));
            each!(|i| {
                let words = vqtbl1q_u8(source, vld1q_u8(shuffle.as_ptr().add(16 * i)));
                vshlq_u32(vreinterpretq_u32_u8(words), vld1q_s32(shift.as_ptr().add(4 * i)))
            })
        }
    }

    #[inline(always)]
    fn swap<const D: usize>(self, v: F) -> F {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match D {
                1 => each!(|i| vrev64q_f32(v[i])),
                2 => each!(|i| vextq_f32::<2>(v[i], v[i])),
                4 => [v[1], v[0], v[3], v[2]],
                _ => [v[2], v[3], v[0], v[1]],
            }
        }
    }

    #[inline(always)]
    fn exchange<const D: usize>(self, a: F, b: F) -> [F; 2] {
        // SAFETY: `self` proves the instructions.
        unsafe {
            match D {
                1 => [each!(|i| vtrn1q_f32(a[i], b[i])), each!(|i| vtrn2q_f32(a[i], b[i]))],
                2 => [
                    each!(|i| vcombine_f32(vget_low_f32(a[i]), vget_low_f32(b[i]))),
                    each!(|i| vcombine_f32(vget_high_f32(a[i]), vget_high_f32(b[i]))),
                ],
                4 => [[a[0], b[0], a[2], b[2]], [a[1], b[1], a[3], b[3]]],
                _ => [[a[0], a[1], b[0], b[1]], [a[2], a[3], b[2], b[3]]],
            }
        }
    }

    #[inline(always)]
    fn store_bits(self, v: I, out: &mut [u32; LANES]) {
        // SAFETY: `self` proves the instructions; the four stores cover the array.
        unsafe { each!(|i| vst1q_u32(out.as_mut_ptr().add(4 * i), v[i])) };
    }

    #[inline(always)]
    fn repeat<const N: usize>(self, v: &[f32; N]) -> F {
        // SAFETY: `self` proves the instructions; `N` floats are read of `N`.
        let all = unsafe {
            match N {
                4 => vld1q_f32(v.as_ptr()),
                2 => {
                    let two = vld1_f32(v.as_ptr());
                    vcombine_f32(two, two)
                }
                _ => vdupq_n_f32(v[0]),
            }
        };
        [all; 4]
    }

    #[inline(always)]
    fn regroup<const N: usize>(self, v: F) -> F {
        // SAFETY: `self` proves the instructions; the load covers the array.
        unsafe {
            match N {
                4 => {
                    let mut lanes = [0.0; LANES];
                    self.store(v, &mut lanes);
                    let float32x4x4_t(a, b, c, d) = vld4q_f32(lanes.as_ptr());
                    [a, b, c, d]
                }
                2 => [
                    vuzp1q_f32(v[0], v[1]),
                    vuzp1q_f32(v[2], v[3]),
                    vuzp2q_f32(v[0], v[1]),
                    vuzp2q_f32(v[2], v[3]),
                ],
                _ => v,
            }
        }
    }

    #[inline(always)]
    fn load_f32(self, v: &[u8; 64]) -> F {
        // SAFETY: `self` proves the instructions; the four loads cover the array.
        unsafe { each!(|i| vreinterpretq_f32_u8(vld1q_u8(v.as_ptr().add(16 * i)))) }
    }

    #[inline(always)]
    fn load_f16(self, v: &[u8; 32]) -> F {
        let h = self.load_u16(v);
        let sign = self.shl(self.and(h, self.splat_bits(0x8000)), 16);
        let magnitude = self.shl(self.and(h, self.splat_bits(0x7fff)), 13);
        // The exponent's bias differs by 112; a multiplication moves subnormals too.
        let value = self.mul(self.with_bits(magnitude), self.splat(f32::from_bits(239 << 23)));
        // 65536 and more are infinity or NaN, which becomes quiet as in every hardware conversion.
        let infinite = self.or(magnitude, self.splat_bits(0x7f80_0000));
        let quiet = self.with_bits(self.or(infinite, self.splat_bits(0x0040_0000)));
        let mantissa = self.with_bits(self.and(magnitude, self.splat_bits(0x007f_ffff)));
        let infinite = self.with_bits(infinite);
        let special = self.select_less(self.splat(0.0), mantissa, quiet, infinite);
        let wide = self.select_less(value, self.splat(65536.0), value, special);
        self.with_bits(self.or(self.to_bits(wide), sign))
    }

    #[inline(always)]
    fn load_bf16(self, v: &[u8; 32]) -> F {
        self.with_bits(self.shl(self.load_u16(v), 16))
    }

    #[inline(always)]
    fn load_i8(self, v: &[u8; LANES]) -> I {
        // SAFETY: `self` proves the instructions; the array is 16 readable bytes.
        unsafe {
            let bytes = vld1q_s8(v.as_ptr().cast());
            let (lo, hi) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let words = [
                vmovl_s16(vget_low_s16(lo)),
                vmovl_high_s16(lo),
                vmovl_s16(vget_low_s16(hi)),
                vmovl_high_s16(hi),
            ];
            each!(|i| vreinterpretq_u32_s32(words[i]))
        }
    }

    #[inline(always)]
    fn load_bytes(self, first: &[u8; 32], second: &[u8; 32]) -> I {
        // SAFETY: `self` proves the instructions; two loads cover each array.
        unsafe {
            each!(|i| {
                let half: &[u8; 32] = if i < 2 { first } else { second };
                vreinterpretq_u32_u8(vld1q_u8(half.as_ptr().add(16 * (i % 2))))
            })
        }
    }

    #[inline(always)]
    fn store_bytes(self, v: I, first: &mut [u8; 32], second: &mut [u8; 32]) {
        // SAFETY: `self` proves the instructions; two stores cover each array.
        unsafe {
            vst1q_u8(first.as_mut_ptr(), vreinterpretq_u8_u32(v[0]));
            vst1q_u8(first.as_mut_ptr().add(16), vreinterpretq_u8_u32(v[1]));
            vst1q_u8(second.as_mut_ptr(), vreinterpretq_u8_u32(v[2]));
            vst1q_u8(second.as_mut_ptr().add(16), vreinterpretq_u8_u32(v[3]));
        }
    }

    #[inline(always)]
    fn look_up(self, table: &[u8; 16], v: I) -> I {
        // SAFETY: `self` proves the instructions; the table is 16 readable bytes.
        unsafe {
            let table = vld1q_u8(table.as_ptr());
            each!(|i| vreinterpretq_u32_u8(vqtbl1q_u8(table, vreinterpretq_u8_u32(v[i]))))
        }
    }

    #[inline(always)]
    fn codes<const BITS: usize, const BLOCK: usize>(self, block: &[u8; BLOCK]) -> [F; 2] {
        [self.half::<BITS, BLOCK, 0>(block), self.half::<BITS, BLOCK, 1>(block)]
    }
}

impl Neon {
    /// Sixteen little-endian `u16`, widened.
    #[inline(always)]
    fn load_u16(self, v: &[u8; 32]) -> I {
        // SAFETY: `self` proves the instructions; the two loads cover the array.
        unsafe {
            let lo = vreinterpretq_u16_u8(vld1q_u8(v.as_ptr()));
            let hi = vreinterpretq_u16_u8(vld1q_u8(v.as_ptr().add(16)));
            [
                vmovl_u16(vget_low_u16(lo)),
                vmovl_high_u16(lo),
                vmovl_u16(vget_low_u16(hi)),
                vmovl_high_u16(hi),
            ]
        }
    }

    /// Sixteen codes of half `HALF`, as floats.
    #[inline(always)]
    fn half<const BITS: usize, const BLOCK: usize, const HALF: usize>(
        self,
        block: &[u8; BLOCK],
    ) -> F {
        let at = Layout::<BITS>::OFFSET[HALF];
        let shuffle = Layout::<BITS>::SHUFFLE[HALF];
        let shift = Layout::<BITS>::SHIFT[HALF].map(|n| -n.cast_signed());
        // SAFETY: `self` proves the instructions; slicing checks that the loads stay in the block,
        // and the loads of the tables cover 64 bytes each.
        unsafe {
            let source = if Layout::<BITS>::WIDE {
                let bytes: &[u8] = &block[at..at + 16];
                vld1q_u8(bytes.as_ptr())
            } else {
                let bytes: &[u8] = &block[at..at + 8];
                vcombine_u8(vld1_u8(bytes.as_ptr()), vld1_u8(bytes.as_ptr()))
            };
            let mask = vdupq_n_u32((1 << BITS) - 1);
            each!(|i| {
                let pairs = vqtbl1q_u8(source, vld1q_u8(shuffle.as_ptr().add(16 * i)));
                let shift = vld1q_s32(shift.as_ptr().add(4 * i));
                vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_u8(pairs), shift), mask))
            })
        }
    }
}
