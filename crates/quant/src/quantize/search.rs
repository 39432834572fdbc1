//! The least squared error among clipped ranges, each refined by least squares.

use super::lanes::{Extremes, Grid, Measured, Pair, Weighted, code, measure, nearest};
use super::zeros::{self, Moments};
use crate::encoding::Zeros;
use crate::kernel::Simd;

/// Where to start and how far to go.
struct SearchPlan {
    /// How much of the range is cut off below and above; less than nothing widens it.
    starts: &'static [(f32, f32)],
    /// Rounds of nearest codes and least squares from each start.
    rounds: usize,
}

/// Starts chosen greedily from a fine grid: each is the one that lowers the mean relative error of
/// trained and heavy-tailed groups of 64 most, given those before it.
///
/// Squared error over min-max, trained weights, group 64 and f16 scales, beside 900 starts of twelve
/// rounds in f64:
///
/// | bits          | 2    | 3    | 4    | 6    |
/// |---------------|------|------|------|------|
/// | these starts  | .502 | .726 | .812 | .826 |
/// | the fine grid | .501 | .721 | .809 | .817 |
const fn plan(bits: u8) -> SearchPlan {
    match bits {
        2 => SearchPlan { starts: &STARTS_2, rounds: 4 },
        3 => SearchPlan { starts: &STARTS_3, rounds: 4 },
        4 => SearchPlan { starts: &STARTS_4, rounds: 4 },
        5 | 6 => SearchPlan { starts: &STARTS_6, rounds: 2 },
        _ => SearchPlan { starts: &STARTS_8, rounds: 2 },
    }
}

/// The last two hold ternary groups, and those of two values, exactly: steps of half the range and
/// of all of it.
const STARTS_2: [(f32, f32); 10] = [
    (0.16, 0.16),
    (0.10, 0.24),
    (0.24, 0.10),
    (0.20, 0.14),
    (0.14, 0.20),
    (0.06, 0.30),
    (0.30, 0.06),
    (0.26, 0.22),
    (0.0, -0.5),
    (0.0, -2.0),
];

const STARTS_3: [(f32, f32); 8] = [
    (0.07, 0.07),
    (0.10, 0.025),
    (0.04, 0.10),
    (0.085, 0.055),
    (0.01, 0.115),
    (0.01, 0.04),
    (0.13, 0.01),
    (0.10, 0.115),
];

const STARTS_4: [(f32, f32); 8] = [
    (0.02, 0.03),
    (0.04, 0.0),
    (0.0, 0.04),
    (0.02, 0.01),
    (-0.04, 0.02),
    (-0.01, 0.0),
    (0.05, 0.03),
    (0.01, -0.02),
];

const STARTS_6: [(f32, f32); 16] = [
    (0.003, -0.015),
    (0.003, -0.003),
    (0.0, 0.006),
    (-0.015, -0.015),
    (-0.018, 0.003),
    (0.003, 0.003),
    (0.009, -0.003),
    (-0.012, -0.003),
    (-0.003, 0.009),
    (-0.018, -0.012),
    (-0.003, -0.003),
    (-0.015, -0.021),
    (-0.018, -0.003),
    (0.006, 0.0),
    (-0.003, 0.003),
    (-0.003, -0.012),
];

const STARTS_8: [(f32, f32); 16] = [
    (-0.004, 0.0),
    (0.0, -0.008),
    (-0.008, -0.004),
    (-0.008, -0.008),
    (0.001, -0.005),
    (0.001, 0.0),
    (-0.004, -0.007),
    (-0.008, 0.001),
    (-0.001, -0.003),
    (-0.001, 0.001),
    (-0.002, -0.008),
    (-0.006, -0.008),
    (0.002, -0.001),
    (-0.005, -0.001),
    (0.0, 0.001),
    (-0.003, -0.004),
];

/// What least squares needs to know about the codes of each group, all of it weighted.
struct Sums<F> {
    cost: F,
    q: F,
    qq: F,
    qx: F,
}

/// Weights, and what least squares needs of them beside the codes.
struct FitTarget<'a, F> {
    x: Weighted<'a>,
    /// What `x` is counted from.
    origin: F,
    /// The sum of the weights.
    count: F,
    /// `Σ (x - origin)`, weighted.
    sum_x: F,
}

/// The best pair of each group: `base`, the min-max pair, unless another is clearly better.
/// Also its error, and 1 in the lanes that improved.
#[inline(always)]
pub fn search<S: Simd>(
    s: S,
    grid: Grid,
    x: Weighted<'_>,
    ends: Extremes<S::F>,
    base: Measured<S::F>,
) -> (Measured<S::F>, S::F) {
    let plan = plan(grid.bits);
    let range = s.sub(ends.max, ends.min);
    let target = FitTarget::new(s, x, ends.min);
    let (mut best, mut least) = (base.pair, base.measure.cost);
    // From each start: nearest codes for the pair, the least-squares pair for the codes, and so on.
    // The error of neither step rises, up to the rounding of pairs to storage, so the best of all
    // rounds is kept, not the last.
    for &(low, high) in plan.starts {
        let bias = s.mul_add(range, s.splat(low), ends.min);
        let scale = s.mul(range, s.splat((1.0 - low - high) / grid.max_code));
        for &unit in grid.zeros.units(grid.bits) {
            let mut pair = zeros::start(s, grid, Pair { scale, bias }, unit);
            for _ in 0..plan.rounds {
                let sums = target.assign(s, grid, pair);
                let e = sums.cost;
                best.scale = s.select_less(e, least, pair.scale, best.scale);
                best.bias = s.select_less(e, least, pair.bias, best.bias);
                least = s.min(e, least);
                pair = target.refit(s, grid, &sums, unit);
            }
        }
    }
    keep_better(s, grid, x, base, best)
}

/// `best` where it is clearly better than `base`, measured alike.
#[inline(always)]
fn keep_better<S: Simd>(
    s: S,
    grid: Grid,
    x: Weighted<'_>,
    base: Measured<S::F>,
    best: Pair<S::F>,
) -> (Measured<S::F>, S::F) {
    let (before, after) = (base.measure, measure(s, grid, x, best));
    // The margin covers the rounding of the sums: what is called better is better.
    let limit = s.mul(before.cost, s.splat(1.0 - 1.0 / 4096.0));
    // Outside these bounds squares lose bits or overflow, and sums say nothing.
    let limit = s.select_less(limit, s.splat(1e-30), s.splat(0.0), limit);
    let found = base.replaced(s, Measured { pair: best, measure: after }, after.cost, limit);
    (found, s.select_less(after.cost, limit, s.splat(1.0), s.splat(0.0)))
}

impl<'a, F: Copy> FitTarget<'a, F> {
    #[inline(always)]
    fn new<S: Simd<F = F>>(s: S, x: Weighted<'a>, origin: F) -> Self {
        let mut sum_x = s.splat(0.0);
        for (j, value) in x.tile.iter().enumerate() {
            sum_x = s.add(sum_x, x.weights.weigh(s, j, s.sub(s.load(value), origin)));
        }
        Self { x, origin, count: x.weights.sum(s, x.tile.len()), sum_x }
    }

    /// The sums with weights counted from 0.
    #[inline(always)]
    fn moments<S: Simd<F = F>>(&self, s: S, sums: &Sums<F>) -> Moments<F> {
        let x = s.mul_add(self.origin, self.count, self.sum_x);
        let qx = s.mul_add(self.origin, sums.q, sums.qx);
        Moments { count: self.count, q: sums.q, qq: sums.qq, x, qx }
    }

    /// Gives each weight its nearest code and sums what [`Self::refit`] needs.
    #[inline(always)]
    fn assign<S: Simd<F = F>>(&self, s: S, grid: Grid, pair: Pair<F>) -> Sums<F> {
        let zero = s.splat(0.0);
        let inverse = pair.inverse(s);
        let down = s.sub(zero, pair.scale);
        let mut sums = Sums { cost: zero, q: zero, qq: zero, qx: zero };
        for (j, x) in self.x.tile.iter().enumerate() {
            let x = s.load(x);
            let q = code(s, nearest(s, grid, x, pair.bias, inverse));
            let error = s.mul_add(down, q, s.sub(x, pair.bias));
            let weighted = self.x.weights.weigh(s, j, q);
            sums.cost = s.mul_add(self.x.weights.weigh(s, j, error), error, sums.cost);
            sums.q = s.add(sums.q, weighted);
            sums.qq = s.mul_add(weighted, q, sums.qq);
            sums.qx = s.mul_add(weighted, s.sub(x, self.origin), sums.qx);
        }
        sums
    }

    /// The pair with the least squared error for these codes: the scale is rounded to storage before
    /// the bias is chosen for it.
    #[inline(always)]
    fn refit<S: Simd<F = F>>(&self, s: S, grid: Grid, sums: &Sums<F>, unit: f32) -> Pair<F> {
        let negative_q = s.sub(s.splat(0.0), sums.q);
        let covariance = s.mul_add(self.count, sums.qx, s.mul(negative_q, self.sum_x));
        let variance = s.mul_add(self.count, sums.qq, s.mul(negative_q, sums.q));
        let exact = Pair { scale: s.div(covariance, variance), bias: self.origin };
        if grid.zeros != Zeros::Float {
            let mean = s.div(s.mul_add(exact.scale, negative_q, self.sum_x), self.count);
            let free = Pair { bias: s.add(mean, self.origin), ..exact };
            return zeros::refit(s, grid, free, &self.moments(s, sums), unit);
        }
        let scale = exact.stored(s, grid.dtype).scale;
        let mean = s.div(s.mul_add(scale, negative_q, self.sum_x), self.count);
        Pair { scale, bias: s.add(mean, self.origin) }.stored(s, grid.dtype)
    }
}
