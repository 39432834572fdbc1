//! The arithmetic of sixteen groups, one in each lane.

use super::QuantStats;
use crate::encoding::{Affine, Float, Zeros};
use crate::float;
use crate::kernel::{LANES, Simd};

/// Column `j` of sixteen groups lies in row `j`.
pub type Tile = [[f32; LANES]];

/// `2^23`: added to and taken from a value in `0..=255`, it rounds half to even.
const ROUND: f32 = 8_388_608.0;

/// What all groups share.
#[derive(Clone, Copy)]
pub struct Grid {
    /// Bits of a code.
    pub bits: u8,
    /// The largest code.
    pub max_code: f32,
    /// How scales and biases are stored.
    pub dtype: Float,
    /// What biases may be.
    pub zeros: Zeros,
}

impl Grid {
    pub fn new(affine: Affine, zeros: Zeros) -> Self {
        let max_code = f32::from(affine.max_code());
        Self { bits: affine.bits(), max_code, dtype: affine.scale_dtype(), zeros }
    }
}

/// Scale and bias of each group.
#[derive(Clone, Copy)]
pub struct Pair<F> {
    pub scale: F,
    pub bias: F,
}

/// Least and greatest weight of each group.
#[derive(Clone, Copy)]
pub struct Extremes<F> {
    pub min: F,
    pub max: F,
    /// Zero for finite weights, else NaN.
    pub nan_unless_finite: F,
}

/// The error of each group as a reader sees it.
#[derive(Clone, Copy)]
pub struct Measure<F> {
    /// The squared error, weighted: what the choice of a pair lowers.
    pub cost: F,
    pub sum_sq_error: F,
    pub sum_sq: F,
    pub max_abs_error: F,
}

/// A pair and what it costs.
#[derive(Clone, Copy)]
pub struct Measured<F> {
    pub pair: Pair<F>,
    pub measure: Measure<F>,
}

impl<F: Copy> Measured<F> {
    /// `other` in the lanes where `cost` is below `limit`.
    #[inline(always)]
    pub fn replaced<S: Simd<F = F>>(self, s: S, other: Self, cost: F, limit: F) -> Self {
        let choose = |new, old| s.select_less(cost, limit, new, old);
        let (old, new) = (self.measure, other.measure);
        let pair = Pair {
            scale: choose(other.pair.scale, self.pair.scale),
            bias: choose(other.pair.bias, self.pair.bias),
        };
        let measure = Measure {
            cost: choose(new.cost, old.cost),
            sum_sq_error: choose(new.sum_sq_error, old.sum_sq_error),
            max_abs_error: choose(new.max_abs_error, old.max_abs_error),
            ..old
        };
        Self { pair, measure }
    }
}

/// Weights of sixteen groups and what their errors count.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    pub tile: &'a Tile,
    pub weights: Weights<'a>,
}

/// The lanes of `v`.
#[inline(always)]
pub fn values<S: Simd>(s: S, v: S::F) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    s.store(v, &mut out);
    out
}

#[inline(always)]
pub fn extremes<S: Simd>(s: S, tile: &Tile) -> Extremes<S::F> {
    let first = s.load(&tile[0]);
    let zero = s.splat(0.0);
    let mut e = Extremes { min: first, max: first, nan_unless_finite: zero };
    for x in tile {
        let x = s.load(x);
        e.min = s.min(x, e.min);
        e.max = s.max(x, e.max);
        e.nan_unless_finite = s.mul_add(x, zero, e.nan_unless_finite);
    }
    e
}

/// The min-max pair: the stored bias is the least weight, code `max_code` the greatest.
///
/// Rounding the bias can lift it above the whole group (a narrow group far from zero); then it is
/// lowered by at least one step, so that the scale need not be negative.
#[inline(always)]
pub fn min_max<S: Simd>(s: S, grid: Grid, e: Extremes<S::F>) -> Pair<S::F> {
    // Steps of the two types: relative to the value, and near zero.
    let (relative, absolute) = match grid.dtype {
        Float::F16 => (f32::EPSILON * 8192.0, f32::EPSILON / 2.0),
        _ => (f32::EPSILON * 65536.0, 0.0),
    };
    let nearest = float::round(s, grid.dtype, e.min);
    let step = s.mul_add(float::magnitude(s, e.min), s.splat(relative), s.splat(absolute));
    let lower = float::round(s, grid.dtype, s.sub(e.min, step));
    let lowered = s.select_less(e.min, nearest, lower, nearest);
    let bias = s.select_less(nearest, e.max, nearest, lowered);
    Pair { scale: s.div(s.sub(e.max, bias), s.splat(grid.max_code)), bias }
}

impl<F: Copy> Pair<F> {
    /// Both rounded to storage. A scale that is subnormal in `f32` counts as zero.
    #[inline(always)]
    pub fn stored<S: Simd<F = F>>(self, s: S, dtype: Float) -> Self {
        let scale = float::round(s, dtype, self.scale);
        let zero = s.splat(0.0);
        let scale = s.select_less(scale, s.splat(f32::MIN_POSITIVE), zero, scale);
        Self { scale, bias: float::round(s, dtype, self.bias) }
    }

    /// `1 / scale`, or 0 for a scale of 0: then every code is 0.
    #[inline(always)]
    pub fn inverse<S: Simd<F = F>>(self, s: S) -> F {
        let zero = s.splat(0.0);
        s.select_less(zero, self.scale, s.div(s.splat(1.0), self.scale), zero)
    }
}

/// `2^23` plus the code nearest to `x` on the grid of `bias` and `1 / inverse`.
#[inline(always)]
pub fn nearest<S: Simd>(s: S, grid: Grid, x: S::F, bias: S::F, inverse: S::F) -> S::F {
    let exact = s.mul(s.sub(x, bias), inverse);
    let clamped = s.min(s.max(exact, s.splat(0.0)), s.splat(grid.max_code));
    s.add(clamped, s.splat(ROUND))
}

/// The code that [`nearest`] found, as a float.
#[inline(always)]
pub fn code<S: Simd>(s: S, nearest: S::F) -> S::F {
    s.sub(nearest, s.splat(ROUND))
}

impl<F: Copy> Measure<F> {
    /// Adds the groups of `columns` columns in the first `count` lanes to `stats`, in order.
    #[inline(always)]
    pub fn count<S: Simd<F = F>>(
        &self,
        s: S,
        stats: &mut QuantStats,
        count: usize,
        columns: usize,
    ) {
        let [error, square, worst] =
            [values(s, self.sum_sq_error), values(s, self.sum_sq), values(s, self.max_abs_error)];
        stats.groups += count as u64;
        stats.weights += (count * columns) as u64;
        for lane in 0..count {
            stats.sum_sq_error += f64::from(error[lane]);
            stats.sum_sq += f64::from(square[lane]);
            stats.max_abs_error = stats.max_abs_error.max(worst[lane]);
        }
    }

    #[inline(always)]
    pub fn none<S: Simd<F = F>>(s: S) -> Self {
        let zero = s.splat(0.0);
        Self { cost: zero, sum_sq_error: zero, sum_sq: zero, max_abs_error: zero }
    }

    /// Adds a weight `x` that a reader sees `error` less of.
    #[inline(always)]
    pub fn add<S: Simd<F = F>>(&mut self, s: S, x: F, error: F) {
        self.sum_sq_error = s.mul_add(error, error, self.sum_sq_error);
        self.sum_sq = s.mul_add(x, x, self.sum_sq);
        self.max_abs_error = s.max(float::magnitude(s, error), self.max_abs_error);
    }
}

/// What a squared error counts in row `j` of a tile: 1 everywhere when nothing is known.
#[derive(Clone, Copy)]
pub struct Weights<'a>(pub Option<&'a Tile>);

impl Weights<'_> {
    /// `x`, weighted.
    #[inline(always)]
    pub fn weigh<S: Simd>(self, s: S, j: usize, x: S::F) -> S::F {
        match self.0 {
            Some(weights) => s.mul(s.load(&weights[j]), x),
            None => x,
        }
    }

    /// The sum over the `len` rows of a tile.
    #[inline(always)]
    pub fn sum<S: Simd>(self, s: S, len: usize) -> S::F {
        let add = |sum, weights| s.add(sum, s.load(weights));
        match self.0 {
            Some(weights) => weights[..len].iter().fold(s.splat(0.0), add),
            None => s.splat(len as f32),
        }
    }
}

/// The error of `pair`, with weights rebuilt exactly as dequantization does.
#[inline(always)]
pub fn measure<S: Simd>(
    s: S,
    grid: Grid,
    weighted: Weighted<'_>,
    pair: Pair<S::F>,
) -> Measure<S::F> {
    let Weighted { tile, weights } = weighted;
    let inverse = pair.inverse(s);
    let mut m = Measure::none(s);
    for (j, x) in tile.iter().enumerate() {
        let x = s.load(x);
        let q = code(s, nearest(s, grid, x, pair.bias, inverse));
        let error = s.sub(x, s.mul_add(pair.scale, q, pair.bias));
        m.cost = s.mul_add(weights.weigh(s, j, error), error, m.cost);
        m.add(s, x, error);
    }
    m
}

/// Each group's codes as a bit stream in words, the layout of [`crate::pack`].
#[inline(always)]
pub fn pack<S: Simd>(s: S, grid: Grid, tile: &Tile, pair: Pair<S::F>, words: &mut [[u32; LANES]]) {
    let inverse = pair.inverse(s);
    let (mut word, mut used, mut at) = (s.splat_bits(0), 0, 0);
    for x in tile {
        let code = s.to_bits(nearest(s, grid, s.load(x), pair.bias, inverse));
        let code = s.and(code, s.splat_bits(0xff));
        word = s.or(word, s.shl(code, used));
        used += u32::from(grid.bits);
        if used >= 32 {
            s.store_bits(word, &mut words[at]);
            at += 1;
            used -= 32;
            // The part of the code that did not fit; a shift by all its bits leaves nothing.
            word = s.shr(code, u32::from(grid.bits) - used);
        }
    }
}
