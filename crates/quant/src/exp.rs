//! Exponentials and what is made of them, the same bits on every backend.

use crate::float::padded;
use crate::kernel::{Backend, Kernel, LANES, Simd};

/// `gate = gate / (1 + e^-gate) · up`, value by value: the activation of `SwiGLU` (arXiv 2002.05202), to
/// 4e-7 of its value. What is not finite stays so.
///
/// # Panics
/// When there are not as many values in `up`.
pub fn silu_mul(backend: Backend, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "values of gate and up");
    backend.run(SiluMul { gate, up });
}

struct SiluMul<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (lines, rest) = self.gate.as_chunks_mut::<LANES>();
        let (up_lines, up_rest) = self.up.as_chunks::<LANES>();
        for (gate, up) in lines.iter_mut().zip(up_lines) {
            let x = s.load(gate);
            s.store(s.mul(s.mul(x, sigmoid(s, x)), s.load(up)), gate);
        }
        if !rest.is_empty() {
            let mut line = padded(rest);
            let x = s.load(&line);
            s.store(s.mul(s.mul(x, sigmoid(s, x)), s.load(&padded(up_rest))), &mut line);
            rest.copy_from_slice(&line[..rest.len()]);
        }
    }
}

/// `1 / (1 + e^-x)`: of a negative `x` as `e^x / (1 + e^x)`, so that no power overflows.
#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let (zero, one) = (s.splat(0.0), s.splat(1.0));
    let power = exp(s, s.min(x, s.sub(zero, x)));
    s.div(s.select_less(x, zero, power, one), s.add(one, power))
}

/// `e^x` for `x` of at most 0, to 2e-7 of its value; 0 below -87.
///
/// With `n` the integer next to `x / ln 2`, `e^x = 2^n · e^r` for an `r` of at most `ln 2 / 2`: the
/// polynomial for `e^r` is that of Cephes' `expf`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    // Added to it, a number is rounded to an integer, whose low bits are those of n + 127.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let shifted = s.mul_add(x, s.splat(std::f32::consts::LOG2_E), s.splat(ROUND));
    let n = s.sub(shifted, s.splat(ROUND));
    let r = s.mul_add(n, s.splat(-LN_2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN_2_LOW), r);
    let mut p = s.splat(POLYNOMIAL[0]);
    for c in &POLYNOMIAL[1..] {
        p = s.mul_add(p, r, s.splat(*c));
    }
    let p = s.add(s.mul_add(s.mul(p, r), r, r), s.splat(1.0));
    let power = s.with_bits(s.shl(s.to_bits(shifted), 23));
    let value = s.mul(p, power);
    s.select_less(x, s.splat(-87.0), s.splat(0.0), value)
}

/// What a comparison of two softmaxes over one vocabulary needs, of logits `z` and `z'`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmaxes {
    /// The largest of each.
    pub most: [f64; 2],
    /// `Σ e^(z - max z)` of each.
    pub sums: [f64; 2],
    /// `Σ e^(z - max z) (z - z')`.
    pub shifted: f64,
}

impl Softmaxes {
    /// `ln Σ e^z` of each, which its logits are above their logarithms of probabilities.
    pub fn log_sums(&self) -> [f64; 2] {
        [0, 1].map(|i| self.most[i] + self.sums[i].ln())
    }

    /// The Kullback-Leibler divergence `Σ p (ln p - ln p')`, in nats, not below zero but by rounding:
    /// `Σ p (z - z')` less the difference of [`Self::log_sums`].
    pub fn divergence(&self) -> f64 {
        let [log_sum, other] = self.log_sums();
        self.shifted / self.sums[0] - log_sum + other
    }
}

/// Sums over logits `z` and `z'`, each exponential to 4e-16 of its value. Values that are not finite make sums
/// that are not.
///
/// # Panics
/// When there are not as many of both.
pub fn softmaxes(backend: Backend, z: &[f32], other: &[f32]) -> Softmaxes {
    assert_eq!(z.len(), other.len(), "logits of two models");
    backend.run(Compare { z, other })
}

struct Compare<'a> {
    z: &'a [f32],
    other: &'a [f32],
}

impl Kernel for Compare<'_> {
    type Output = Softmaxes;

    /// Every lane has its own sums, which are added at the end: the order is the same on every backend. Plain
    /// loops over sixteen `f64`, which the compiler turns into the backend's instructions.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> Softmaxes {
        let most = [largest(self.z), largest(self.other)].map(f64::from);
        let (mut sums, mut shifted) = ([[0.0; LANES]; 2], [0.0; LANES]);
        for (z, other) in self.z.chunks(LANES).zip(self.other.chunks(LANES)) {
            // Lanes beyond the end add e^-inf = 0, and 0 times a difference of zero.
            let (mut a, mut b) = ([f64::NEG_INFINITY; LANES], [f64::NEG_INFINITY; LANES]);
            let mut apart = [0.0; LANES];
            for l in 0..z.len() {
                (a[l], b[l]) = (f64::from(z[l]), f64::from(other[l]));
                apart[l] = a[l] - b[l];
            }
            for l in 0..LANES {
                let power = exp_f64(a[l] - most[0]);
                sums[0][l] += power;
                shifted[l] += power * apart[l];
                sums[1][l] += exp_f64(b[l] - most[1]);
            }
        }
        let total = |lanes: &[f64; LANES]| lanes.iter().sum::<f64>();
        Softmaxes { most, sums: [total(&sums[0]), total(&sums[1])], shifted: total(&shifted) }
    }
}

/// The largest value; NaN is passed over.
#[inline(always)]
fn largest(z: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (lines, rest) = z.as_chunks::<LANES>();
    for line in lines {
        for (most, z) in most.iter_mut().zip(line) {
            *most = if z > most { *z } else { *most };
        }
    }
    most.iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// `e^x` for `x` of at most 0, to 4e-16 of its value; 0 below -708. As [`exp`], with the first terms of the
/// series of `e^r`: what is left out is less than 2e-16 of it.
#[inline(always)]
fn exp_f64(x: f64) -> f64 {
    const LN_2_HIGH: f64 = 0.693_147_180_369_123_8;
    const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    const ROUND: f64 = 6_755_399_441_055_744.0 + 1023.0;
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut p = 1.0 / FACTORIALS[0];
    for factorial in &FACTORIALS[1..] {
        p = p * r + 1.0 / factorial;
    }
    let value = (p * r + 1.0) * f64::from_bits(shifted.to_bits() << 52);
    // Written so that NaN goes on.
    if x < -708.0 { 0.0 } else { value }
}

/// From 13! down to 1!.
const FACTORIALS: [f64; 13] = [
    6_227_020_800.0,
    479_001_600.0,
    39_916_800.0,
    3_628_800.0,
    362_880.0,
    40_320.0,
    5_040.0,
    720.0,
    120.0,
    24.0,
    6.0,
    2.0,
    1.0,
];

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            s.store(exp(s, s.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn exponentials_are_as_close_as_stated_on_every_backend() {
        let mut worst = 0.0f64;
        for i in 0..200_000 {
            let x: [f32; LANES] =
                std::array::from_fn(|lane| -87.0 * (i * LANES + lane) as f32 / 3_200_000.0);
            let expected = Backend::Scalar.run(Exp(x));
            for backend in Backend::available() {
                assert_eq!(backend.run(Exp(x)), expected, "{backend:?}");
            }
            for (x, found) in x.iter().zip(expected) {
                let exact = f64::from(*x).exp();
                worst = worst.max((f64::from(found) / exact - 1.0).abs());
            }
        }
        assert!(worst < 2e-7, "{worst:e}");
        let ends = Backend::Scalar.run(Exp([f32::NEG_INFINITY; LANES]));
        assert_eq!((ends[0], Backend::Scalar.run(Exp([0.0; LANES]))[0]), (0.0, 1.0));
    }

    #[test]
    fn gates_are_as_close_as_stated_on_every_backend() {
        let gate: Vec<f32> = (-4000..4003).map(|i| i as f32 / 41.0).collect();
        let up: Vec<f32> = gate.iter().map(|x| 3.0 - x / 50.0).collect();
        let mut expected = gate.clone();
        silu_mul(Backend::Scalar, &mut expected, &up);
        for backend in Backend::available() {
            let mut found = gate.clone();
            silu_mul(backend, &mut found, &up);
            assert_eq!(found, expected, "{backend:?}");
        }
        for ((x, up), found) in gate.iter().zip(&up).zip(expected) {
            let x = f64::from(*x);
            let exact = x / (1.0 + (-x).exp()) * f64::from(*up);
            let error = (f64::from(found) - exact).abs();
            assert!(error <= 4e-7 * exact.abs() + 1e-35, "{x}: {found} for {exact}");
        }
    }

    #[test]
    fn softmaxes_are_those_of_the_system_s_exponentials_on_every_backend() {
        let noise = |seed: f64| move |i: usize| ((i as f64 * seed).sin() * 30.0) as f32;
        for len in [1, 15, 16, 17, 1000] {
            let z: Vec<f32> = (0..len).map(noise(1.7)).collect();
            let other: Vec<f32> = (0..len).map(noise(2.3)).collect();
            let most = |z: &[f32]| f64::from(z.iter().copied().fold(f32::MIN, f32::max));
            let power = |z: &[f32], i: usize| (f64::from(z[i]) - most(z)).exp();
            let apart = |i: usize| f64::from(z[i]) - f64::from(other[i]);
            let sums = [&z, &other].map(|z| (0..len).map(|i| power(z, i)).sum::<f64>());
            let shifted: f64 = (0..len).map(|i| power(&z, i) * apart(i)).sum();
            let expected = softmaxes(Backend::Scalar, &z, &other);
            for backend in Backend::available() {
                assert_eq!(softmaxes(backend, &z, &other), expected, "{backend:?}");
            }
            assert_eq!(expected.most, [most(&z), most(&other)]);
            for (found, exact) in expected.sums.iter().zip(sums) {
                assert!((found / exact - 1.0).abs() < 1e-15, "{found} for {exact}");
            }
            let off = (expected.shifted - shifted).abs() / shifted.abs().max(1.0);
            assert!(off < 1e-13, "{} for {shifted}", expected.shifted);
        }
    }

    #[test]
    fn exponentials_of_f64_are_as_close_as_stated() {
        let off = |x: f64| (exp_f64(x) / x.exp() - 1.0).abs();
        let worst = (0..400_000)
            .map(|i| off(-f64::from(i) / 600.0))
            .fold(0.0, f64::max);
        assert!(worst < 4e-16, "{worst:e}");
        assert_eq!([exp_f64(0.0), exp_f64(-709.0), exp_f64(f64::NEG_INFINITY)], [1.0, 0.0, 0.0]);
        assert!(exp_f64(f64::NAN).is_nan());
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for backend in Backend::available() {
            let mut gate = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
            silu_mul(backend, &mut gate, &[1.0; 4]);
            assert!(gate[..3].iter().all(|x| !x.is_finite()), "{backend:?}: {gate:?}");
            assert!((gate[3] - 0.731_058_6).abs() < 1e-6);
            let sums = |z| softmaxes(backend, &[1.0, z], &[1.0, 2.0]).sums[0];
            assert!(!sums(f32::NAN).is_finite() && !sums(f32::INFINITY).is_finite());
        }
    }
}
