//! The least squared error among clipped ranges, each refined by least squares.

use super::lanes::{Extremes, Grid, Measure, Pair, Tile, code, measure, nearest};
use crate::kernel::Simd;

/// Where to start and how far to go.
struct Plan {
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
const fn plan(bits: u8) -> Plan {
    match bits {
        2 => Plan { starts: &STARTS_2, rounds: 4 },
        3 => Plan { starts: &STARTS_3, rounds: 4 },
        4 => Plan { starts: &STARTS_4, rounds: 4 },
        6 => Plan { starts: &STARTS_6, rounds: 2 },
        _ => Plan { starts: &STARTS_8, rounds: 2 },
    }
}

const STARTS_2: [(f32, f32); 8] = [
    (0.16, 0.16),
    (0.10, 0.24),
    (0.24, 0.10),
    (0.20, 0.14),
    (0.14, 0.20),
    (0.06, 0.30),
    (0.30, 0.06),
    (0.26, 0.22),
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

/// What least squares needs to know about the codes of each group.
struct Sums<F> {
    sum_sq_error: F,
    q: F,
    qq: F,
    qx: F,
}

/// The best pair of each group: `base`, the min-max pair, unless another is clearly better.
/// Also its error, and 1 in the lanes that improved.
#[inline(always)]
pub fn search<S: Simd>(
    s: S,
    grid: Grid,
    tile: &Tile,
    ends: Extremes<S::F>,
    (base, before): (Pair<S::F>, Measure<S::F>),
) -> (Pair<S::F>, Measure<S::F>, S::F) {
    let plan = plan(grid.bits);
    let range = s.sub(ends.max, ends.min);
    let sum_x = sum(s, tile, ends.min);
    let (mut best, mut least) = (base, before.sum_sq_error);
    for &(low, high) in plan.starts {
        let bias = s.mul_add(range, s.splat(low), ends.min);
        let scale = s.mul(range, s.splat((1.0 - low - high) / grid.max_code));
        let mut pair = Pair { scale, bias }.stored(s, grid.dtype);
        for _ in 0..plan.rounds {
            let sums = assign(s, grid, tile, ends.min, pair);
            let e = sums.sum_sq_error;
            best.scale = s.select_less(e, least, pair.scale, best.scale);
            best.bias = s.select_less(e, least, pair.bias, best.bias);
            least = s.min(e, least);
            pair = refit(s, grid, tile.len(), sum_x, &sums, ends.min);
        }
    }
    keep_better(s, grid, tile, (base, before), best)
}

/// `best` where it is clearly better than `base`, measured alike.
#[inline(always)]
fn keep_better<S: Simd>(
    s: S,
    grid: Grid,
    tile: &Tile,
    (base, before): (Pair<S::F>, Measure<S::F>),
    best: Pair<S::F>,
) -> (Pair<S::F>, Measure<S::F>, S::F) {
    let after = measure(s, grid, tile, best);
    // The margin covers the rounding of the sums: what is called better is better.
    let limit = s.mul(before.sum_sq_error, s.splat(1.0 - 1.0 / 4096.0));
    // Outside these bounds squares lose bits or overflow, and sums say nothing.
    let limit = s.select_less(limit, s.splat(1e-30), s.splat(0.0), limit);
    let error = after.sum_sq_error;
    let pair = Pair {
        scale: s.select_less(error, limit, best.scale, base.scale),
        bias: s.select_less(error, limit, best.bias, base.bias),
    };
    let max = s.select_less(error, limit, after.max_abs_error, before.max_abs_error);
    let measured = Measure {
        sum_sq_error: s.select_less(error, limit, error, before.sum_sq_error),
        max_abs_error: max,
        ..before
    };
    (pair, measured, s.select_less(error, limit, s.splat(1.0), s.splat(0.0)))
}

/// `Σ (x - origin)`.
#[inline(always)]
fn sum<S: Simd>(s: S, tile: &Tile, origin: S::F) -> S::F {
    let mut sum = s.splat(0.0);
    for x in tile {
        sum = s.add(sum, s.sub(s.load(x), origin));
    }
    sum
}

/// Gives each weight its nearest code and sums what [`refit`] needs, with `x` from `origin`.
#[inline(always)]
fn assign<S: Simd>(s: S, grid: Grid, tile: &Tile, origin: S::F, pair: Pair<S::F>) -> Sums<S::F> {
    let zero = s.splat(0.0);
    let inverse = pair.inverse(s);
    let down = s.sub(zero, pair.scale);
    let mut sums = Sums { sum_sq_error: zero, q: zero, qq: zero, qx: zero };
    for x in tile {
        let x = s.load(x);
        let q = code(s, nearest(s, grid, x, pair.bias, inverse));
        let error = s.mul_add(down, q, s.sub(x, pair.bias));
        sums.sum_sq_error = s.mul_add(error, error, sums.sum_sq_error);
        sums.q = s.add(sums.q, q);
        sums.qq = s.mul_add(q, q, sums.qq);
        sums.qx = s.mul_add(q, s.sub(x, origin), sums.qx);
    }
    sums
}

/// The pair with the least squared error for these codes: the scale is rounded to storage before
/// the bias is chosen for it.
#[inline(always)]
fn refit<S: Simd>(
    s: S,
    grid: Grid,
    group: usize,
    sum_x: S::F,
    sums: &Sums<S::F>,
    origin: S::F,
) -> Pair<S::F> {
    let count = s.splat(group as f32);
    let negative_q = s.sub(s.splat(0.0), sums.q);
    let covariance = s.mul_add(count, sums.qx, s.mul(negative_q, sum_x));
    let variance = s.mul_add(count, sums.qq, s.mul(negative_q, sums.q));
    let exact = Pair { scale: s.div(covariance, variance), bias: origin };
    let scale = exact.stored(s, grid.dtype).scale;
    let mean = s.div(s.mul_add(scale, negative_q, sum_x), count);
    Pair { scale, bias: s.add(mean, origin) }.stored(s, grid.dtype)
}
