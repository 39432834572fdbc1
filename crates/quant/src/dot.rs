//! The dot product, whose order of sums is that of every product.

use crate::float::padded;
use crate::kernel::{Backend, Kernel, LANES, Simd};

/// `Σ a[i] · b[i]`: lane `l` of sixteen adds columns `l, l + 16, …` with fused multiply-add, missing
/// columns count as zeros, and the lanes are added 16 to 8 to 4 to 2 to 1.
///
/// # Panics
/// When the lengths differ.
pub fn dot(backend: Backend, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths of a dot product");
    backend.run(Dot { a, b })
}

/// `y[i] = alpha · x[i] + y[i]`, rounded once.
///
/// # Panics
/// When the lengths differ.
pub fn axpy(backend: Backend, alpha: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "lengths of alpha * x + y");
    backend.run(Axpy { alpha, x, y });
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, a_rest) = self.a.as_chunks::<LANES>();
        let (b, b_rest) = self.b.as_chunks::<LANES>();
        let mut acc = s.splat(0.0);
        for (a, b) in a.iter().zip(b) {
            acc = s.mul_add(s.load(a), s.load(b), acc);
        }
        if !a_rest.is_empty() {
            acc = s.mul_add(s.load(&padded(a_rest)), s.load(&padded(b_rest)), acc);
        }
        s.sum(acc)
    }
}

struct Axpy<'a> {
    alpha: f32,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Axpy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        let (y, y_rest) = self.y.as_chunks_mut::<LANES>();
        for (x, y) in x.iter().zip(y) {
            s.store(s.mul_add(s.splat(self.alpha), s.load(x), s.load(y)), y);
        }
        for (x, y) in x_rest.iter().zip(y_rest) {
            *y = self.alpha.mul_add(*x, *y);
        }
    }
}
