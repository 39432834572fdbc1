//! Pairs whose bias is a whole number of steps: `bias = -zero · scale`, exactly as stored, with `zero`
//! among the codes. GPTQ, AWQ, compressed-tensors and GGUF's symmetric types decode `scale · (code - zero)`.

use super::lanes::{Extremes, Grid, Measured, Pair, Weighted, measure, values};
use crate::encoding::{Float, Zeros};
use crate::float;
use crate::kernel::{LANES, Simd};

impl Grid {
    /// The code for zero nearest to `exact`, a multiple of `unit`; 0 for what is no number.
    fn zero(self, exact: f32, unit: f32) -> f32 {
        if self.zeros == Zeros::Symmetric {
            return f32::from(1_u8 << (self.bits - 1));
        }
        let zero = (exact / unit).round_ties_even() * unit;
        if zero > 0.0 { zero.min(self.max_code) } else { 0.0 }
    }

    /// How many of the 24 bits of a scale must be zero so that its product with `zero` is exact in the
    /// stored type: a product has as many bits as both factors, and powers of two add none.
    fn cleared(self, zero: f32) -> u32 {
        let precision = if self.dtype == Float::F16 { 11 } else { 8 };
        let zero = zero as u32;
        let odd = zero.checked_shr(zero.trailing_zeros()).unwrap_or(0);
        let bits = u32::BITS - odd.leading_zeros();
        24 - precision + if bits > 1 { bits } else { 0 }
    }

    /// The pairs of `scale` and `zero` of each lane, stored: scales are rounded to nearest, or to the
    /// next above where a range must not be cut.
    #[inline(always)]
    fn whole<S: Simd>(self, s: S, mut scale: Lanes, zero: Lanes, above: bool) -> Pair<S::F> {
        for (scale, zero) in scale.iter_mut().zip(zero) {
            let mask = (1 << self.cleared(zero)) - 1;
            let carry = if above { mask } else { mask / 2 + 1 };
            let rounded = f32::from_bits((scale.to_bits() + carry) & !mask);
            *scale = if *scale > 0.0 && *scale < f32::MAX { rounded } else { *scale };
        }
        let (scale, none) = (float::round(s, self.dtype, s.load(&scale)), s.splat(0.0));
        let scale = s.select_less(scale, s.splat(f32::MIN_POSITIVE), none, scale);
        // The product is exact, and zero has no sign.
        Pair { scale, bias: s.sub(none, s.mul(s.load(&zero), scale)) }
    }
}

/// A value for each of sixteen groups.
type Lanes = [f32; LANES];

/// Scales and zeros of grids that cover `low ..= high` and zero.
#[inline(always)]
fn covering(grid: Grid, low: Lanes, high: Lanes, unit: f32) -> [Lanes; 2] {
    let (mut scales, mut zeros) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let (low, high) = (low[lane], high[lane]);
        let zero = grid.zero(-low * grid.max_code / (high - low), unit);
        // A side without codes cannot be covered.
        let below = if zero > 0.0 { -low / zero } else { 0.0 };
        let left = grid.max_code - zero;
        let above = if left > 0.0 { high / left } else { 0.0 };
        (scales[lane], zeros[lane]) = (below.max(above), zero);
    }
    [scales, zeros]
}

/// The pair of a start of the search.
#[inline(always)]
pub fn start<S: Simd>(s: S, grid: Grid, exact: Pair<S::F>, unit: f32) -> Pair<S::F> {
    if grid.zeros == Zeros::Float {
        return exact.stored(s, grid.dtype);
    }
    let high = s.mul_add(exact.scale, s.splat(grid.max_code), exact.bias);
    let [scale, zero] = covering(grid, values(s, exact.bias), values(s, high), unit);
    grid.whole(s, scale, zero, false)
}

/// The min-max pair: the grid over the range of a group and zero that errs least, of those whose zero
/// is a multiple of 1, 2, 4 and so on. Also before it is rounded, with multiples of 1.
#[inline(always)]
pub fn min_max<S: Simd>(
    s: S,
    grid: Grid,
    x: Weighted<'_>,
    ends: Extremes<S::F>,
) -> (Pair<S::F>, Measured<S::F>) {
    let [low, high] = [values(s, ends.min), values(s, ends.max)];
    let [scale, zero] = covering(grid, low, high, 1.0);
    let exact = s.load(&scale);
    let exact = Pair { scale: exact, bias: s.sub(s.splat(0.0), s.mul(s.load(&zero), exact)) };
    let pair = grid.whole(s, scale, zero, true);
    let mut best = Measured { pair, measure: measure(s, grid, x, pair) };
    let powers = if grid.zeros == Zeros::Integer { grid.bits } else { 1 };
    for power in 1..powers {
        let [scale, zero] = covering(grid, low, high, f32::from(1_u8 << power));
        let pair = grid.whole(s, scale, zero, true);
        let found = Measured { pair, measure: measure(s, grid, x, pair) };
        best = best.replaced(s, found, found.measure.cost, best.measure.cost);
    }
    (exact, best)
}

/// What least squares needs of weights and codes, all of it weighted: see [`refit`].
pub struct Moments<F> {
    /// The sum of the weights.
    pub count: F,
    /// `Σ q` and `Σ q²`.
    pub q: F,
    pub qq: F,
    /// `Σ x` and `Σ q x`.
    pub x: F,
    pub qx: F,
}

/// The pair with the least squared error for these codes, near the `exact` one with any bias: its zero
/// is rounded, then the scale is chosen for it, `Σ x (q - z) / Σ (q - z)²`.
#[inline(always)]
pub fn refit<S: Simd>(
    s: S,
    grid: Grid,
    exact: Pair<S::F>,
    sums: &Moments<S::F>,
    unit: f32,
) -> Pair<S::F> {
    let mut zero = values(s, s.div(s.sub(s.splat(0.0), exact.bias), exact.scale));
    for zero in &mut zero {
        *zero = grid.zero(*zero, unit);
    }
    let down = s.sub(s.splat(0.0), s.load(&zero));
    let covariance = s.mul_add(down, sums.x, sums.qx);
    let twice = s.mul_add(down, sums.count, s.add(sums.q, sums.q));
    let variance = s.mul_add(down, twice, sums.qq);
    let mut scale = values(s, s.div(covariance, variance));
    for scale in &mut scale {
        // Codes that are all zero say nothing of the scale; a reader takes none below zero.
        *scale = if *scale > 0.0 { *scale } else { 0.0 };
    }
    grid.whole(s, scale, zero, false)
}
