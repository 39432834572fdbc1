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
    fn what_is_not_finite_stays_so() {
        for backend in Backend::available() {
            let mut gate = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.0];
            silu_mul(backend, &mut gate, &[1.0; 4]);
            assert!(gate[..3].iter().all(|x| !x.is_finite()), "{backend:?}: {gate:?}");
            assert!((gate[3] - 0.731_058_6).abs() < 1e-6);
        }
    }
}
