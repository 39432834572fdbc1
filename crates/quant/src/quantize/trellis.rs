//! Trellis codes column by column, with feedback: LDLQ of `QuIP` (arXiv 2307.13304) with the trellis of
//! QTIP (arXiv 2406.11235) for the rows of a tile.
//!
//! All of it happens in the rotated basis. A tile is quantized for scales that its rows suggest; once
//! the codes stand, each scale is chosen anew, by least squares in what the outputs lose.

use half::bf16;

use super::output::CHUNK;
use super::{Objective, PartsMut, QuantStats, group};
use crate::encoding::{Encoding, Float, Trellis};
use crate::error::QuantError;
use crate::feedback::{BLOCK, HessianFactor, Line, Product, Rows, Sweep};
use crate::kernel::{Backend, Kernel, LANES, Simd};
use crate::matrix::Matrix;
use crate::trellis::rotate::rotate;
use crate::trellis::stream::stream_len;
use crate::trellis::viterbi::{Column, Encoder};

/// The scale that a row is coded with, over the root mean square of its weights: the values have a
/// standard deviation of 1.15 (see [`crate::trellis::stream::value`]), and 1.05 does better in the
/// outputs than 1.0.
const SCALE: f64 = 1.05;

/// Rows of a tile, as a length.
const TILE: usize = Trellis::TILE_ROWS as usize;

// Tiles are what feedback goes through together.
const _: () = assert!(TILE == CHUNK);

/// [`super::quantize`] as a kernel. The weights are finite.
pub struct QuantizeTrellis<'a> {
    pub backend: Backend,
    pub x: &'a [f32],
    pub cols: usize,
    pub trellis: Trellis,
    pub feedback: Option<&'a HessianFactor>,
    pub out: PartsMut<'a>,
}

/// What a tile is computed in, all of it rotated.
#[derive(Default)]
struct Work {
    weights: Rows,
    /// Weights and feedback; at the end, what of it is lost.
    targets: Rows,
    /// Weights less the values.
    errors: Rows,
    /// The weights times the factor.
    outputs: Rows,
    /// The scale that each row is coded with, of the filled-up tile.
    scales: Vec<f32>,
    /// What a squared error of a row, in units of its scale, counts.
    costs: Vec<f32>,
}

impl Kernel for QuantizeTrellis<'_> {
    type Output = Result<QuantStats, QuantError>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let (mut stats, mut work) = (QuantStats::default(), Work::default());
        let mut encoder = Encoder::new(self.trellis);
        let (x, cols) = (self.x, self.cols);
        for (tile, x) in x.chunks(TILE * cols).enumerate() {
            work.begin(x, cols);
            let stream = stream_len(self.trellis, x.len() / cols) * cols;
            let at = tile * stream_len(self.trellis, TILE) * cols;
            let streams = &mut self.out.weight[at..at + stream];
            encode(s, &mut encoder, self.feedback, &mut work, streams);
            work.refit(s, self.feedback);
            let scales = &mut self.out.scales[2 * tile * TILE..][..x.len() / cols * 2];
            work.store(scales, tile * TILE)?;
            work.count(self.feedback, &mut stats);
            self.compare(x, tile, at..at + stream, &mut stats);
        }
        Ok(stats)
    }
}

impl Work {
    /// Takes the rows of a tile.
    #[inline(always)]
    fn begin(&mut self, x: &[f32], cols: usize) {
        let mut rotated = x.to_vec();
        self.scales.clear();
        // A rotated row is nearly normal, so that its deviation alone says how far the values of the
        // trellis must reach; rows that only fill up a tile have scale and cost 0.
        for row in rotated.chunks_exact_mut(cols) {
            rotate(row, Trellis::rotation(cols));
            let sum: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            self.scales
                .push((SCALE * (sum / cols as f64).sqrt()) as f32);
        }
        let filled = self
            .scales
            .len()
            .next_multiple_of(Trellis::ROW_STEP as usize);
        self.scales.resize(filled, 0.0);
        let greatest = self.scales.iter().copied().fold(0.0, f32::max);
        let cost = |scale: &f32| {
            if greatest > 0.0 { (scale / greatest) * (scale / greatest) } else { 0.0 }
        };
        self.costs = self.scales.iter().map(cost).collect();
        self.weights.set(&rotated, cols);
        self.targets.copy(&self.weights);
        self.errors.copy(&self.weights);
    }

    /// Chooses the scale `a · s` of each row with the least `(w - a ŵ) H (w - a ŵ)ᵀ` for its values
    /// `ŵ = s · value`, in 16 bits, and brings errors and lost targets up to it.
    #[inline(always)]
    fn refit<S: Simd>(&mut self, s: S, feedback: Option<&HessianFactor>) {
        match feedback {
            Some(feedback) => Product { feedback, x: &self.weights, y: &mut self.outputs }.run(s),
            None => self.outputs.copy(&self.weights),
        }
        // With `y = w (F + I)` and `e` what is lost of it, the error is a weighted square in `a` per
        // row, least where its derivative is 0; rounding `a` to storage comes before its use.
        let costs = feedback.map(HessianFactor::costs);
        let lost = self.targets.strips_mut().zip(self.errors.strips_mut());
        let known = self.outputs.strips().zip(self.weights.strips());
        let scales = self.scales.chunks_mut(LANES);
        for ((lost, known), scales) in lost.zip(known).zip(scales) {
            let ratio = ratio(costs, known.0, lost.0);
            let mut exact = [0.0; LANES];
            for ((scale, ratio), exact) in scales.iter_mut().zip(ratio).zip(&mut exact) {
                let stored = Float::Bf16.round((f64::from(*scale) * ratio) as f32);
                *exact = if *scale > 0.0 { stored / *scale } else { 0.0 };
                *scale = stored;
            }
            rescale(&exact, known.0, lost.0);
            rescale(&exact, known.1, lost.1);
        }
    }

    /// Stores the scales of the tile whose first row is `first`.
    fn store(&self, out: &mut [u8], first: usize) -> Result<(), QuantError> {
        let scales = self.scales.iter().zip(out.as_chunks_mut::<2>().0);
        for (row, (scale, out)) in scales.enumerate() {
            if !scale.is_finite() {
                let (row, value, dtype) = ((first + row) as u64, *scale, Float::Bf16);
                return Err(QuantError::ScaleRange { row, col: 0, value, dtype });
            }
            *out = bf16::from_f32(*scale).to_le_bytes();
        }
        Ok(())
    }

    /// Adds what the outputs lose.
    fn count(&self, feedback: Option<&HessianFactor>, stats: &mut QuantStats) {
        let Some(feedback) = feedback else { return };
        stats.output_error += feedback.energy(&self.errors, &self.targets);
        stats.output += feedback.energy(&self.weights, &self.outputs);
    }
}

/// `Σ c y (y - e) / Σ c (y - e)²` for each row of a strip, at least 0; 1 where nothing is known.
#[inline(always)]
fn ratio(costs: Option<&[f32]>, outputs: &[Line], lost: &[Line]) -> [f64; LANES] {
    let (mut product, mut square) = ([0.0; LANES], [0.0; LANES]);
    for (k, (y, e)) in outputs.iter().zip(lost).enumerate() {
        let cost = costs.map_or(1.0, |costs| f64::from(costs[k]));
        for l in 0..LANES {
            let (y, value) = (f64::from(y[l]), f64::from(y[l] - e[l]));
            product[l] += cost * y * value;
            square[l] += cost * value * value;
        }
    }
    std::array::from_fn(|l| if square[l] > 0.0 { (product[l] / square[l]).max(0.0) } else { 1.0 })
}

/// What is lost of `whole` once the part that is not lost is multiplied by `ratio`.
#[inline(always)]
fn rescale(ratio: &Line, whole: &[Line], lost: &mut [Line]) {
    for (whole, lost) in whole.iter().zip(lost) {
        for l in 0..LANES {
            lost[l] = whole[l] - ratio[l] * (whole[l] - lost[l]);
        }
    }
}

/// Chooses the streams of a tile.
#[inline(always)]
fn encode<S: Simd>(
    s: S,
    encoder: &mut Encoder,
    feedback: Option<&HessianFactor>,
    work: &mut Work,
    streams: &mut [u8],
) {
    let cols = work.targets.cols();
    let mut sweep = feedback.map(Sweep::new);
    let mut column = ColumnWork::new(&work.scales);
    for (k, stream) in streams.chunks_exact_mut(streams.len() / cols).enumerate() {
        // Errors of earlier blocks reach a whole block at once, those of its own columns one by one:
        // what column `k` aims at holds the feedback of all columns before it.
        let start = k / BLOCK * BLOCK;
        if let Some(sweep) = &mut sweep {
            if k == start {
                let block = start..(start + BLOCK).min(cols);
                sweep.before(s, &block, &work.errors, &mut work.targets);
            }
            for (targets, errors) in work.targets.strips_mut().zip(work.errors.strips()) {
                let target = sweep.inside(s, start..k, k, errors, &targets[k]);
                s.store(target, &mut targets[k]);
            }
        }
        column.code(s, encoder, k, work, stream);
    }
}

/// One column of a tile.
struct ColumnWork {
    /// `1 / scale` of each row.
    inverse: Vec<f32>,
    targets: Vec<f32>,
    values: Vec<f32>,
}

impl ColumnWork {
    fn new(scales: &[f32]) -> Self {
        let inverse = |scale: &f32| if *scale > 0.0 { scale.recip() } else { 0.0 };
        let inverse: Vec<f32> = scales.iter().map(inverse).collect();
        let zeros = vec![0.0; inverse.len()];
        Self { inverse, targets: zeros.clone(), values: zeros }
    }

    /// Codes column `k`; targets and errors become what is lost of them.
    #[inline(always)]
    fn code<S: Simd>(
        &mut self,
        s: S,
        encoder: &mut Encoder,
        k: usize,
        work: &mut Work,
        stream: &mut [u8],
    ) {
        let rows = self
            .targets
            .chunks_mut(LANES)
            .zip(self.inverse.chunks(LANES));
        for ((targets, inverse), strip) in rows.zip(work.targets.strips()) {
            for ((target, inverse), value) in targets.iter_mut().zip(inverse).zip(&strip[k]) {
                *target = value * inverse;
            }
        }
        let column = Column { targets: &self.targets, weights: &work.costs };
        encoder.encode(s, column, stream, &mut self.values);
        let values = self.values.chunks(LANES).zip(work.scales.chunks(LANES));
        let strips = work.targets.strips_mut().zip(work.errors.strips_mut());
        for ((values, scales), (targets, errors)) in values.zip(strips) {
            for (l, (value, scale)) in values.iter().zip(scales).enumerate() {
                targets[k][l] -= value * scale;
                errors[k][l] -= value * scale;
            }
        }
    }
}

impl QuantizeTrellis<'_> {
    /// Adds what a reader of the tile sees of its weights.
    fn compare(
        &self,
        x: &[f32],
        tile: usize,
        streams: std::ops::Range<usize>,
        stats: &mut QuantStats,
    ) {
        let rows = x.len() / self.cols;
        let scales = &self.out.scales[2 * tile * TILE..][..2 * rows];
        let bytes = [&self.out.weight[streams], scales].concat();
        let encoding = Encoding::Trellis(self.trellis);
        let mut values = vec![0.0; x.len()];
        // The lengths were checked; codes of other lengths would have no values to compare.
        let Ok(matrix) = Matrix::new(encoding, rows, self.cols, &bytes) else { return };
        matrix.dequantize(self.backend, 0..rows, &mut values);
        stats.weights += x.len() as u64;
        stats.groups += rows as u64;
        for (x, values) in x
            .chunks_exact(self.cols)
            .zip(values.chunks_exact(self.cols))
        {
            stats.constant_groups += u64::from(x.iter().all(|v| *v == x[0]));
            for (x, value) in x.iter().zip(values) {
                let error = x - value;
                stats.sum_sq_error += f64::from(error) * f64::from(error);
                stats.sum_sq += f64::from(*x) * f64::from(*x);
                stats.max_abs_error = stats.max_abs_error.max(error.abs());
            }
        }
    }
}

/// Refuses weights that are not finite, and objectives that a rotation makes useless.
pub fn feedback<'a>(
    objective: Objective<'a>,
    x: &[f32],
    cols: usize,
) -> Result<Option<&'a HessianFactor>, QuantError> {
    if let Some(error) = group::not_finite(x, 0, cols) {
        return Err(error);
    }
    match objective {
        Objective::Weights => Ok(None),
        Objective::Hessian(feedback) => Ok(Some(feedback)),
        Objective::Diagonal(_) => Err(QuantError::NeedsInputs {
            method: "trellis",
            needs: "the factored Gram of the inputs",
        }),
    }
}
