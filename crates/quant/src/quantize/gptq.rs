//! Affine codes column by column, with feedback: GPTQ (arXiv 2210.17323).
//!
//! Columns come in their natural order, in blocks of one group. The scale and bias of a group are
//! searched for its weights as the feedback has left them, each column weighted by what its error
//! costs (see [`HessianFactor`]); as everywhere, they are rounded to storage before codes are chosen.

use std::cell::RefCell;
use std::ops::Range;

use super::group::{GroupPair, MAX_GROUP, PairSearch, TileTarget, choose, relative};
use super::lanes::{Grid, Measure, Tile, Weighted, Weights, code, extremes, nearest};
use super::output::CHUNK;
use super::{PartsMut, QuantStats};
use crate::encoding::{Affine, Zeros};
use crate::error::QuantError;
use crate::feedback::{HessianFactor, Line, Product, Rows, Sweep};
use crate::kernel::{Kernel, LANES, Simd};

/// [`super::quantize`] as a kernel. The weights are finite.
pub struct Gptq<'a> {
    pub x: &'a [f32],
    pub cols: usize,
    pub affine: Affine,
    pub zeros: Zeros,
    pub feedback: &'a HessianFactor,
    pub out: PartsMut<'a>,
}

/// What a chunk of rows is computed in.
#[derive(Default)]
struct Work {
    weights: Rows,
    /// Weights and feedback; at the end, what of it is lost.
    targets: Rows,
    /// Weights less what a reader sees.
    errors: Rows,
    /// The weights times the factor.
    outputs: Rows,
}

/// Widest matrix after which a thread keeps what it worked in, four times 1 KiB for each column: clearing fresh
/// memory takes a share of the time that falls with the columns.
pub const KEPT_COLS: usize = 2048;

thread_local! {
    /// Kept from one matrix to the next.
    static WORK: RefCell<Work> = RefCell::default();
}

impl Kernel for Gptq<'_> {
    type Output = Result<QuantStats, QuantError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let (mut stats, mut work) = (QuantStats::default(), WORK.take());
        let (x, mut first) = (self.x, 0);
        for x in x.chunks(CHUNK * self.cols) {
            work.weights.set(x, self.cols);
            work.targets.copy(&work.weights);
            work.errors.copy(&work.weights);
            let rows = x.len() / self.cols;
            self.chunk(s, &mut work, first..first + rows, &mut stats)?;
            let Work { weights, targets, errors, outputs } = &mut work;
            stats.output_error += self.feedback.energy(errors, targets);
            Product { feedback: self.feedback, x: weights, y: outputs }.run(s);
            stats.output += self.feedback.energy(weights, outputs);
            first += rows;
        }
        if self.cols <= KEPT_COLS {
            WORK.set(work);
        }
        Ok(stats)
    }
}

impl Gptq<'_> {
    /// Quantizes `rows` of the matrix, which are those of `work`.
    #[inline(always)]
    fn chunk<S: Simd>(
        &mut self,
        s: S,
        work: &mut Work,
        rows: Range<usize>,
        stats: &mut QuantStats,
    ) -> Result<(), QuantError> {
        let (group, mut sweep) = (self.affine.group_size(), Sweep::new(self.feedback));
        let costs = relative(self.feedback.costs(), group);
        for start in (0..self.cols).step_by(group) {
            let block = start..start + group;
            sweep.before(s, &block, &work.errors, &mut work.targets);
            let mut weights = [[0.0; LANES]; MAX_GROUP];
            for (line, cost) in weights.iter_mut().zip(&costs[block.clone()]) {
                *line = [*cost; LANES];
            }
            let strips = work.targets.strips_mut().zip(work.errors.strips_mut());
            for (i, (targets, errors)) in strips.enumerate() {
                let row = rows.start + LANES * i;
                let (count, grid) = (LANES.min(rows.end - row), Grid::new(self.affine, self.zeros));
                let lanes = StripRows { start, grid, targets, errors };
                let strip = Strip { row, count, weights: &weights[..group], lanes };
                self.strip(s, &sweep, strip, stats)?;
            }
        }
        Ok(())
    }

    /// Quantizes one group of sixteen rows.
    #[inline(always)]
    fn strip<S: Simd>(
        &mut self,
        s: S,
        sweep: &Sweep<'_>,
        strip: Strip<'_>,
        stats: &mut QuantStats,
    ) -> Result<(), QuantError> {
        let (group, Strip { row, count, weights, lanes }) = (self.affine.group_size(), strip);
        let (start, block) = (lanes.start, lanes.start..lanes.start + group);
        let tile =
            Weighted { tile: &lanes.targets[block.clone()], weights: Weights(Some(weights)) };
        let chosen = choose(s, lanes.grid, tile, PairSearch::Search);
        let mut chosen = chosen.map_err(|overflow| {
            let (row, col) = ((row + overflow.lane) as u64, start as u64);
            let dtype = self.affine.scale_dtype();
            QuantError::ScaleRange { row, col, value: overflow.value, dtype }
        })?;
        // Still the weights: errors take their place below.
        chosen.ends = extremes(s, &lanes.errors[block]);
        let mut rounded = [[0.0; LANES]; MAX_GROUP];
        feed_back(s, sweep, lanes, &mut chosen, &mut rounded[..group]);
        let (first, step) = (row * (self.cols / group), self.cols / group);
        let first = first + start / group;
        let place = TileTarget { affine: self.affine, first, step, count };
        place.write(s, &mut self.out, &rounded[..group], chosen.pair);
        place.count(s, stats, &chosen);
        Ok(())
    }
}

/// Sixteen rows of a group.
struct Strip<'a> {
    /// The first row.
    row: usize,
    /// Lanes that hold a row.
    count: usize,
    /// What a squared error counts, `[group_size]`.
    weights: &'a Tile,
    lanes: StripRows<'a>,
}

/// All columns of sixteen rows, of which a group is rounded.
pub struct StripRows<'a> {
    /// The group's first column.
    pub start: usize,
    /// What the codes of a group share.
    pub grid: Grid,
    /// Weights with the feedback of earlier columns; behind the group, what is lost of them.
    pub targets: &'a mut [Line],
    /// Weights; behind the group, what is lost of them.
    pub errors: &'a mut [Line],
}

/// Rounds the columns `start ..` of sixteen rows one after the other to the grid of `chosen`, whose
/// errors it measures; `rounded` are the values whose nearest codes are stored.
#[inline(always)]
pub fn feed_back<S: Simd>(
    s: S,
    sweep: &Sweep<'_>,
    strip: StripRows<'_>,
    chosen: &mut GroupPair<S::F>,
    rounded: &mut Tile,
) {
    let StripRows { start, grid, targets, errors } = strip;
    let (pair, mut measured) = (chosen.pair, Measure::none(s));
    let inverse = pair.inverse(s);
    // A column aims at its weight plus what the errors before it cost there, `Σ F[j][k] · error[j]`.
    // What is stored is nearest to that; its error is measured from the weight itself and goes on to
    // the columns behind, so that the outputs lose least.
    for (k, rounded) in (start..).zip(rounded) {
        let target = sweep.inside(s, start..k, k, errors, &targets[k]);
        let q = code(s, nearest(s, grid, target, pair.bias, inverse));
        let value = s.mul_add(pair.scale, q, pair.bias);
        let weight = s.load(&errors[k]);
        let error = s.sub(weight, value);
        measured.add(s, weight, error);
        s.store(target, rounded);
        s.store(s.sub(target, value), &mut targets[k]);
        s.store(error, &mut errors[k]);
    }
    chosen.measured = measured;
}
