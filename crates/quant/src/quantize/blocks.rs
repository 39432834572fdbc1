//! Blocks of codes, a group at a time, with feedback where the inputs are known.
//!
//! The scales of a block are chosen for its weights as the feedback has left them when its first column's turn
//! comes; the whole numbers that a group multiplies them with when the group's does, among those next to what its
//! own search finds. Both are rounded to storage before codes are chosen.

use std::ops::Range;

use super::QuantStats;
use super::group::{Overflow, PairSearch, choose};
use super::lanes::{Grid, Measure, Pair, Weighted, Weights, code, nearest, values};
use super::levels::{self, nearest_level};
use super::output::CHUNK;
use crate::blocks::{Blocks, Form};
use crate::encoding::{Float, Zeros};
use crate::error::QuantError;
use crate::feedback::{HessianFactor, Line, Rows, Sweep};
use crate::float::magnitude;
use crate::ggml::{Block, PointBlock};
use crate::kernel::{Backend, Kernel, LANES, Simd};

/// Groups of the block that has most.
const GROUPS: usize = 16;
/// Columns of the largest group.
const GROUP: usize = 32;
/// How far from the nearest whole number others are tried.
const BESIDE: i16 = 1;

/// [`super::quantize`] as a kernel. The weights are finite.
pub struct QuantizeBlocks<'a> {
    pub x: &'a [f32],
    pub cols: usize,
    pub blocks: Blocks,
    /// How the pair of a group is searched for: [`PairSearch::MinMax`] or [`PairSearch::Search`].
    pub search: PairSearch<'a>,
    /// What a squared error counts in each column; alike where nothing is known.
    pub costs: Option<Vec<f32>>,
    pub feedback: Option<&'a HessianFactor>,
    /// The points that the type has, one after the other.
    pub grid: Vec<f32>,
    pub out: &'a mut [u8],
}

/// A value for each of sixteen rows.
pub type Lanes = [f32; LANES];

/// Those whose points stand for `V` columns each; 0 where each column has a code. Each is a kernel of its own, for all
/// that one calls is compiled into one function, and the time that takes grows faster than what is in it.
struct OfPoints<'a, const V: usize>(QuantizeBlocks<'a>);

impl<const V: usize> Kernel for OfPoints<'_, V> {
    type Output = Result<QuantStats, QuantError>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let Self(mut blocks) = self;
        let mut stats = QuantStats::default();
        let (mut targets, mut errors) = (Rows::default(), Rows::default());
        let (x, cols) = (blocks.x, blocks.cols);
        for (chunk, x) in x.chunks(CHUNK * cols).enumerate() {
            errors.set(x, cols);
            targets.copy(&errors);
            let first = chunk * CHUNK;
            let rows = first..first + x.len() / cols;
            blocks.chunk::<S, V>(s, (&mut targets, &mut errors), rows, &mut stats)?;
        }
        Ok(stats)
    }
}

impl QuantizeBlocks<'_> {
    /// Chooses the codes.
    pub fn run(self, backend: Backend) -> Result<QuantStats, QuantError> {
        match self.blocks.form().points.map(|points| points.columns) {
            None => backend.run(OfPoints::<0>(self)),
            Some(4) => backend.run(OfPoints::<4>(self)),
            Some(_) => backend.run(OfPoints::<8>(self)),
        }
    }

    /// Quantizes `rows`, which are those of `targets` and `errors`.
    #[inline(always)]
    fn chunk<S: Simd, const V: usize>(
        &mut self,
        s: S,
        (targets, errors): (&mut Rows, &mut Rows),
        rows: Range<usize>,
        stats: &mut QuantStats,
    ) -> Result<(), QuantError> {
        let form = self.blocks.form();
        let mut sweep = self.feedback.map(Sweep::new);
        for start in (0..self.cols).step_by(form.values) {
            if let Some(sweep) = &mut sweep {
                sweep.before(s, &(start..start + form.values), errors, targets);
            }
            let strips = targets.strips_mut().zip(errors.strips_mut());
            for (i, (targets, errors)) in strips.enumerate() {
                let row = rows.start + LANES * i;
                let count = LANES.min(rows.end - row);
                let strip = Strip { form, start, targets, errors };
                self.strip::<S, V>(s, sweep.as_ref(), (row, count), strip, stats)?;
            }
        }
        Ok(())
    }

    /// Quantizes a block of `count` rows from `row` on.
    #[inline(always)]
    fn strip<S: Simd, const V: usize>(
        &mut self,
        s: S,
        sweep: Option<&Sweep<'_>>,
        (row, count): (usize, usize),
        mut strip: Strip<'_>,
        stats: &mut QuantStats,
    ) -> Result<(), QuantError> {
        let (form, start) = (strip.form, strip.start);
        let refuse = |overflow: Overflow| {
            let (row, col) = ((row + overflow.lane) as u64, start as u64);
            QuantError::ScaleRange { row, col, value: overflow.value, dtype: Float::F16 }
        };
        let (per_row, at) = (self.cols / form.values, start / form.values);
        let place = |lane: usize| {
            let first = ((row + lane) * per_row + at) * form.bytes;
            first..first + form.bytes
        };
        let measured = |measured: Measure<S::F>| measured.count(s, stats, count, form.group);
        if V > 0 {
            let mut blocks = [PointBlock::ZERO; LANES];
            self.points::<S, V>(s, sweep, &mut strip, &mut blocks, measured)
                .map_err(refuse)?;
            for (lane, block) in blocks[..count].iter().enumerate() {
                block.store(self.blocks, &mut self.out[place(lane)]);
            }
        } else {
            let mut blocks = [Block::ZERO; LANES];
            self.codes(s, sweep, &mut strip, (&mut blocks, count), measured)
                .map_err(refuse)?;
            for (lane, block) in blocks[..count].iter().enumerate() {
                block.store(self.blocks, &mut self.out[place(lane)]);
            }
        }
        Ok(())
    }

    /// The codes of a block of `count` rows, in whose `blocks` they are left.
    #[inline(always)]
    fn codes<S: Simd>(
        &self,
        s: S,
        sweep: Option<&Sweep<'_>>,
        strip: &mut Strip<'_>,
        (blocks, count): (&mut [Block; LANES], usize),
        mut measured: impl FnMut(Measure<S::F>),
    ) -> Result<(), Overflow> {
        let form = strip.form;
        let mut ideal = [([0.0; LANES], [0.0; LANES]); GROUPS];
        let groups = form.values / form.group;
        // First what each group would have for itself, which says what the block's scales are; then the groups.
        let before = if form.is_nested() { groups } else { 0 };
        for step in 0..before + groups {
            let (alone, g) = (step < before, step % groups);
            let fed = sweep.filter(|_| !alone && g > 0);
            if let Some(sweep) = fed {
                strip.take_in(s, sweep, g);
            }
            // One place for the search, which is long code on every backend.
            if alone || before == 0 || fed.is_some() {
                ideal[g] = self.ideal(s, strip, g)?;
            }
            if alone {
                continue;
            }
            if step == before {
                set_scales(form, &ideal[..groups], blocks, count)?;
            }
            let pair = self.fit(s, strip, g, &ideal[g], blocks);
            measured(strip.round(s, sweep, g, pair, blocks));
        }
        Ok(())
    }

    /// Scale and bias of group `g` that nothing but the group's own weights restrict.
    #[inline(always)]
    fn ideal<S: Simd>(
        &self,
        s: S,
        strip: &Strip<'_>,
        g: usize,
    ) -> Result<(Lanes, Lanes), Overflow> {
        let form = strip.form;
        let mut weights = [[0.0; LANES]; GROUP];
        let weights = self.weights(strip, g, &mut weights);
        let (mut least, mut scale, mut bias) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        // One side of a zero has a code more: which one, the sign of the scale says.
        let signs = if form.zero.is_some() { &[1.0, -1.0][..] } else { &[1.0] };
        for sign in signs {
            let mut tile = [[0.0; LANES]; GROUP];
            for (signed, line) in tile.iter_mut().zip(&strip.targets[strip.columns(g)]) {
                s.store(s.mul(s.splat(*sign), s.load(line)), signed);
            }
            let x = Weighted { tile: &tile[..form.group], weights };
            let (pair, cost) = self.alone(s, form, x)?;
            let (scales, biases, cost) =
                (values(s, pair.scale), values(s, pair.bias), values(s, cost));
            for lane in 0..LANES {
                if *sign > 0.0 || cost[lane] < least[lane] {
                    least[lane] = cost[lane];
                    (scale[lane], bias[lane]) = (sign * scales[lane], sign * biases[lane]);
                }
            }
        }
        if form.zero.is_none() && form.is_nested() {
            // Least values are subtracted.
            let most = f32::from(form.max_code());
            for (scale, bias) in scale.iter_mut().zip(&mut bias) {
                if *bias > 0.0 {
                    (*scale, *bias) = ((*scale * most + *bias) / most, 0.0);
                }
            }
        }
        Ok((scale, bias))
    }

    /// The pair of a group, its scale not below zero, and what it costs.
    #[inline(always)]
    fn alone<S: Simd>(
        &self,
        s: S,
        form: Form,
        x: Weighted<'_>,
    ) -> Result<(Pair<S::F>, S::F), Overflow> {
        let grid = grid(form);
        if let Some(levels) = form.levels {
            let found = levels::choose(s, levels, grid.dtype, x, self.is_search())?;
            return Ok((Pair { scale: found.scale, bias: s.splat(0.0) }, found.cost));
        }
        let found = choose(s, grid, x, self.search)?;
        Ok((found.pair, found.measured.cost))
    }

    /// Whether scales are searched for, not only made to cover their groups.
    pub const fn is_search(&self) -> bool {
        !matches!(self.search, PairSearch::MinMax)
    }

    /// What squared errors count in group `g`.
    #[inline(always)]
    fn weights<'t>(&self, strip: &Strip<'_>, g: usize, tile: &'t mut [Line; GROUP]) -> Weights<'t> {
        let Some(costs) = &self.costs else { return Weights(None) };
        for (line, cost) in tile.iter_mut().zip(&costs[strip.columns(g)]) {
            *line = [*cost; LANES];
        }
        Weights(Some(&tile[..strip.form.group]))
    }

    /// Chooses the whole numbers of group `g`: the best of those next to the `ideal` pair's, which is taken as it
    /// is where there are none.
    #[inline(always)]
    fn fit<S: Simd>(
        &self,
        s: S,
        strip: &Strip<'_>,
        g: usize,
        ideal: &(Lanes, Lanes),
        blocks: &mut [Block; LANES],
    ) -> Pair<S::F> {
        let form = strip.form;
        if !form.is_nested() {
            for (lane, block) in blocks.iter_mut().enumerate() {
                (block.scale, block.down) = (ideal.0[lane], -ideal.1[lane]);
            }
            return Pair { scale: s.load(&ideal.0), bias: s.load(&ideal.1) };
        }
        let mut weights = [[0.0; LANES]; GROUP];
        let weights = self.weights(strip, g, &mut weights);
        let tile = &strip.targets[strip.columns(g)];
        let mut least = [f32::INFINITY; LANES];
        let beside = if form.zero.is_some() { 0..=0 } else { -BESIDE..=BESIDE };
        let mut best = (ideal.0, ideal.1);
        for more in -BESIDE..=BESIDE {
            for lower in beside.clone() {
                let mut tried = [(0, 0); LANES];
                let mut pair = ([0.0; LANES], [0.0; LANES]);
                for lane in 0..LANES {
                    let block = &blocks[lane];
                    let factor = whole(ideal.0[lane], block.scale, more, form.factors);
                    let below = whole(-ideal.1[lane], block.down, lower, (0, form.factors.1));
                    tried[lane] = (factor, below as u8);
                    (pair.0[lane], pair.1[lane]) = decoded(form, block, tried[lane]);
                }
                let cost = values(s, cost(s, form, Weighted { tile, weights }, &pair));
                for lane in 0..LANES {
                    if cost[lane] < least[lane] {
                        least[lane] = cost[lane];
                        (blocks[lane].factors[g], blocks[lane].least[g]) = tried[lane];
                        (best.0[lane], best.1[lane]) = (pair.0[lane], pair.1[lane]);
                    }
                }
            }
        }
        Pair { scale: s.load(&best.0), bias: s.load(&best.1) }
    }
}

/// Sixteen rows, of which a block is rounded.
pub struct Strip<'a> {
    pub form: Form,
    /// The block's first column.
    pub start: usize,
    /// Weights with the feedback of earlier columns.
    pub targets: &'a mut [Line],
    /// Weights; behind the group, what is lost of them.
    pub errors: &'a mut [Line],
}

impl Strip<'_> {
    /// The columns of group `g`.
    pub const fn columns(&self, g: usize) -> Range<usize> {
        let first = self.start + g * self.form.group;
        first..first + self.form.group
    }

    /// Adds to the targets of group `g` what the block's groups before it cost there.
    #[inline(always)]
    pub fn take_in<S: Simd>(&mut self, s: S, sweep: &Sweep<'_>, g: usize) {
        let columns = self.columns(g);
        for k in columns.clone() {
            let before = self.start..columns.start;
            let target = sweep.inside(s, before, k, self.errors, &self.targets[k]);
            s.store(target, &mut self.targets[k]);
        }
    }

    /// Rounds the columns of group `g` one after the other to the grid of `pair`.
    #[inline(always)]
    fn round<S: Simd>(
        &mut self,
        s: S,
        sweep: Option<&Sweep<'_>>,
        g: usize,
        pair: Pair<S::F>,
        blocks: &mut [Block; LANES],
    ) -> Measure<S::F> {
        let (columns, mut measured) = (self.columns(g), Measure::none(s));
        let inverse = inverse(s, pair.scale);
        // As for affine codes: a column aims at its weight plus what the errors before it cost there, and
        // its own error is measured from the weight itself.
        for k in columns.clone() {
            let target = match sweep {
                Some(sweep) => sweep.inside(s, columns.start..k, k, self.errors, &self.targets[k]),
                None => s.load(&self.targets[k]),
            };
            let (q, value) = rounded(s, self.form, target, pair, inverse);
            let weight = s.load(&self.errors[k]);
            let error = s.sub(weight, value);
            measured.add(s, weight, error);
            s.store(error, &mut self.errors[k]);
            let codes = values(s, q);
            for (block, code) in blocks.iter_mut().zip(codes) {
                block.codes[k - self.start] = code as u8;
            }
        }
        measured
    }
}

/// What the pairs of a form's groups are searched on.
fn grid(form: Form) -> Grid {
    let zeros = if form.zero.is_some() { Zeros::Symmetric } else { Zeros::Float };
    let dtype = if form.is_nested() { Float::F32 } else { Float::F16 };
    Grid { bits: form.bits, max_code: f32::from(form.max_code()), dtype, zeros }
}

/// The code nearest to `x`, and its value.
#[inline(always)]
fn rounded<S: Simd>(s: S, form: Form, x: S::F, pair: Pair<S::F>, inverse: S::F) -> (S::F, S::F) {
    if let Some(levels) = form.levels {
        let (code, level) = nearest_level(s, levels, s.mul(x, inverse));
        return (code, s.mul(pair.scale, level));
    }
    let q = code(s, nearest(s, grid(form), x, pair.bias, inverse));
    (q, s.mul_add(pair.scale, q, pair.bias))
}

/// `1 / scale`, of either sign; 0 for a scale of 0.
#[inline(always)]
pub fn inverse<S: Simd>(s: S, scale: S::F) -> S::F {
    let zero = s.splat(0.0);
    let tiny = s.splat(f32::MIN_POSITIVE);
    s.select_less(magnitude(s, scale), tiny, zero, s.div(s.splat(1.0), scale))
}

/// The weighted squared error of sixteen groups.
#[inline(always)]
fn cost<S: Simd>(s: S, form: Form, x: Weighted<'_>, (scale, bias): &(Lanes, Lanes)) -> S::F {
    let pair = Pair { scale: s.load(scale), bias: s.load(bias) };
    let (inverse, mut cost) = (inverse(s, pair.scale), s.splat(0.0));
    for (j, value) in x.tile.iter().enumerate() {
        let value = s.load(value);
        let error = s.sub(value, rounded(s, form, value, pair, inverse).1);
        cost = s.mul_add(x.weights.weigh(s, j, error), error, cost);
    }
    cost
}

/// `more` beside the whole number nearest to `value / unit`, as far as there is one.
fn whole(value: f32, unit: f32, more: i16, (least, most): (i16, i16)) -> i16 {
    let exact = if unit == 0.0 { 0.0 } else { value / unit };
    let nearest = exact.round_ties_even() + f32::from(more);
    nearest.clamp(f32::from(least), f32::from(most)) as i16
}

/// Scale and bias of a group, as a reader computes them; both exact.
fn decoded(form: Form, block: &Block, (factor, least): (i16, u8)) -> (f32, f32) {
    let scale = block.scale * f32::from(factor);
    match form.zero {
        Some(zero) => (scale, -scale * f32::from(zero)),
        None => (scale, -block.down * f32::from(least)),
    }
}

/// Sets the scales of blocks so that the largest of their groups' have the largest number.
///
/// # Errors
/// A scale that half precision does not hold.
fn set_scales(
    form: Form,
    ideal: &[(Lanes, Lanes)],
    blocks: &mut [Block; LANES],
    count: usize,
) -> Result<(), Overflow> {
    let most = f32::from(form.factors.1);
    for (lane, block) in blocks.iter_mut().enumerate().filter(|_| form.is_nested()) {
        let scale = ideal
            .iter()
            .fold(0.0f32, |most, (scale, _)| most.max(scale[lane].abs()));
        let down = ideal
            .iter()
            .fold(0.0f32, |most, (_, bias)| most.max(-bias[lane]));
        block.scale = Float::F16.round(scale / most);
        block.down = if form.zero.is_some() { 0.0 } else { Float::F16.round(down / most) };
        if lane < count && !(block.scale.is_finite() && block.down.is_finite()) {
            return Err(Overflow { lane, value: scale.max(down) });
        }
    }
    Ok(())
}
