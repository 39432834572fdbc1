//! The least squared error among clipped ranges, each refined by least squares.

use super::lanes::{Extremes, Grid, Measure, Pair, Tile, code, measure, nearest};
use crate::kernel::Simd;

/// Where a search starts: how much of the range is cut off below and above.
type Start = (f32, f32);

/// Starts for 2 bits: both ends move.
const STARTS_2: &[Start] =
    &[(0.0, 0.0), (0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (0.1, 0.3), (0.3, 0.1)];
/// Starts for 3 bits.
const STARTS_3: &[Start] = &[(0.0, 0.0), (0.1, 0.1), (0.2, 0.2), (0.0, 0.2), (0.2, 0.0)];
/// Starts for 4 bits and more.
const STARTS: &[Start] = &[(0.0, 0.0), (0.05, 0.05), (0.1, 0.1), (0.0, 0.1), (0.1, 0.0)];

/// Rounds of codes and least squares from each start.
const ROUNDS: usize = 4;

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
    let starts = match grid.bits {
        2 => STARTS_2,
        3 => STARTS_3,
        _ => STARTS,
    };
    let range = s.sub(ends.max, ends.min);
    let sum_x = sum(s, tile, ends.min);
    let (mut best, mut least) = (base, before.sum_sq_error);
    for &(low, high) in starts {
        let bias = s.mul_add(range, s.splat(low), ends.min);
        let scale = s.mul(range, s.splat((1.0 - low - high) / grid.max_code));
        let mut pair = Pair { scale, bias }.stored(s, grid.dtype);
        for _ in 0..ROUNDS {
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
