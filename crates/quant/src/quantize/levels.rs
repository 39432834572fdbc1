//! Scales for codes whose levels are not evenly spaced: the value of a code is `scale · level`.

use super::group::Overflow;
use super::lanes::{Pair, Weighted, extremes, values};
use crate::encoding::Float;
use crate::kernel::{LANES, Simd};

/// Sixteen levels, ascending, the first below zero and the last above.
pub type Levels = [i8; 16];

/// Parts of the scale that covers a group, from which the search starts. Levels lie closest about zero, so that a
/// smaller scale cuts a few large weights and is finer for all others.
const STARTS: [f32; 7] = [1.05, 0.98, 0.92, 0.86, 0.79, 0.71, 0.62];
/// Rounds of nearest levels and least squares from each start.
const ROUNDS: usize = 2;

/// The scale of each group and what it costs.
pub struct Scaled<F> {
    pub scale: F,
    pub cost: F,
}

/// Code and level nearest to `x`, which is counted in scales; the lower of two that are as near.
#[inline(always)]
pub fn nearest_level<S: Simd>(s: S, levels: &Levels, x: S::F) -> (S::F, S::F) {
    let (mut code, mut level) = (s.splat(0.0), s.splat(f32::from(levels[0])));
    for (at, pair) in levels.windows(2).enumerate() {
        let [low, high] = [f32::from(pair[0]), f32::from(pair[1])];
        let middle = s.splat(f32::midpoint(low, high));
        code = s.select_less(middle, x, s.splat((at + 1) as f32), code);
        level = s.select_less(middle, x, s.splat(high), level);
    }
    (code, level)
}

/// Chooses a scale for each group, none below zero: the one that covers it or, with `search`, the best of those that
/// least squares find from there.
///
/// # Errors
/// A weight that is not finite, a scale that `dtype` does not hold.
#[inline(always)]
pub fn choose<S: Simd>(
    s: S,
    levels: &Levels,
    dtype: Float,
    x: Weighted<'_>,
    search: bool,
) -> Result<Scaled<S::F>, Overflow> {
    let (zero, ends) = (s.splat(0.0), extremes(s, x.tile));
    let below = s.div(ends.min, s.splat(f32::from(levels[0])));
    let above = s.div(ends.max, s.splat(f32::from(levels[15])));
    let covering = s.max(s.max(below, above), zero);
    let stored = |scale| Pair { scale, bias: zero }.stored(s, dtype).scale;
    let mut best = Scaled { scale: stored(covering), cost: zero };
    let finite = [values(s, best.scale), values(s, ends.nan_unless_finite)];
    if let Some(at) = finite.as_flattened().iter().position(|v| !v.is_finite()) {
        let lane = at % LANES;
        return Err(Overflow { lane, value: values(s, covering)[lane] });
    }
    best.cost = fit(s, levels, x, best.scale).0;
    for start in STARTS.iter().take(if search { STARTS.len() } else { 0 }) {
        let mut scale = stored(s.mul(covering, s.splat(*start)));
        for round in 0..=ROUNDS {
            let (cost, free) = fit(s, levels, x, scale);
            best.scale = s.select_less(cost, best.cost, scale, best.scale);
            best.cost = s.min(cost, best.cost);
            if round < ROUNDS {
                scale = stored(free);
            }
        }
    }
    Ok(best)
}

/// The squared error of a scale, weighted, and the scale that is best for the levels nearest under it.
#[inline(always)]
fn fit<S: Simd>(s: S, levels: &Levels, x: Weighted<'_>, scale: S::F) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    let inverse = Pair { scale, bias: zero }.inverse(s);
    let (mut cost, mut with_x, mut squares) = (zero, zero, zero);
    for (j, value) in x.tile.iter().enumerate() {
        let value = s.load(value);
        let (_, level) = nearest_level(s, levels, s.mul(value, inverse));
        let error = s.sub(value, s.mul(scale, level));
        let weighted = x.weights.weigh(s, j, level);
        cost = s.mul_add(x.weights.weigh(s, j, error), error, cost);
        with_x = s.mul_add(weighted, value, with_x);
        squares = s.mul_add(weighted, level, squares);
    }
    let free = s.div(with_x, squares);
    // No level is zero, so only weights without any cost have no squares: what follows is no number then.
    (cost, s.select_less(zero, free, free, zero))
}
