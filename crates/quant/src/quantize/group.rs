//! Sixteen groups at a time, one in each lane: no sum crosses lanes, so every backend agrees.

use std::ops::Range;

use super::lanes::{Extremes, Grid, Measure, Pair, Tile};
use super::lanes::{extremes, measure, min_max, pack, values};
use super::{Method, PartsMut, QuantError, QuantStats, search};
use crate::encoding::Affine;
use crate::float;
use crate::kernel::{Kernel, LANES, Simd};

/// The largest group size.
const MAX_GROUP: usize = 128;

/// [`super::quantize`] as a kernel.
pub struct Quantize<'a> {
    pub x: &'a [f32],
    pub cols: usize,
    pub affine: Affine,
    pub method: Method,
    pub out: PartsMut<'a>,
}

impl Kernel for Quantize<'_> {
    type Output = Result<QuantStats, QuantError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let group = self.affine.group_size();
        let mut stats = QuantStats::default();
        let mut tile = [[0.0; LANES]; MAX_GROUP];
        for (i, x) in self.x.chunks(LANES * group).enumerate() {
            transpose(x, &mut tile[..group]);
            let groups = i * LANES..i * LANES + x.len() / group;
            self.sixteen(s, groups, &tile[..group], &mut stats)?;
        }
        Ok(stats)
    }
}

/// Spreads whole groups over the lanes of `tile`; lanes without a group become zero.
#[inline(always)]
fn transpose(x: &[f32], tile: &mut Tile) {
    let group = tile.len();
    if x.len() < LANES * group {
        tile.fill([0.0; LANES]);
    }
    for (lane, x) in x.chunks_exact(group).enumerate() {
        for (row, &x) in tile.iter_mut().zip(x) {
            row[lane] = x;
        }
    }
}

impl Quantize<'_> {
    /// Quantizes `groups` of the matrix, whose weights are in `tile`.
    #[inline(always)]
    fn sixteen<S: Simd>(
        &mut self,
        s: S,
        groups: Range<usize>,
        tile: &Tile,
        stats: &mut QuantStats,
    ) -> Result<(), QuantError> {
        let grid = Grid::new(self.affine);
        let ends = extremes(s, tile);
        let exact = min_max(s, grid, ends);
        let base = exact.stored(s, grid.dtype);
        let checked =
            [values(s, ends.nan_unless_finite), values(s, base.scale), values(s, base.bias)];
        if checked.as_flattened().iter().any(|v| !v.is_finite()) {
            return Err(self.explain(groups, values(s, exact.scale), values(s, exact.bias)));
        }
        let before = measure(s, grid, tile, base);
        let (pair, measured, improved) = match self.method {
            Method::MinMax => (base, before, s.splat(0.0)),
            _ => search::search(s, grid, tile, ends, (base, before)),
        };
        self.write(s, groups.clone(), tile, pair);
        stats.groups += groups.len() as u64;
        stats.weights += (groups.len() * tile.len()) as u64;
        count(s, stats, groups.len(), ends, measured, improved);
        Ok(())
    }

    /// Stores codes, scales and biases of `groups`.
    #[inline(always)]
    fn write<S: Simd>(&mut self, s: S, groups: Range<usize>, tile: &Tile, pair: Pair<S::F>) {
        let mut words = [[0; LANES]; MAX_GROUP / 4];
        pack(s, Grid::new(self.affine), tile, pair, &mut words);
        let bytes = tile.len() / 8 * self.affine.bits() as usize;
        let weight = &mut self.out.weight[groups.start * bytes..groups.end * bytes];
        for (lane, weight) in weight.chunks_exact_mut(bytes).enumerate() {
            for (word, out) in words.iter().zip(weight.as_chunks_mut::<4>().0) {
                *out = word[lane].to_le_bytes();
            }
        }
        let dtype = self.affine.scale_dtype();
        let range = groups.start * 2..groups.end * 2;
        store_16(s, float::encode(s, dtype, pair.scale), &mut self.out.scales[range.clone()]);
        store_16(s, float::encode(s, dtype, pair.bias), &mut self.out.biases[range]);
    }

    /// Names the first weight of `groups` that is not finite, else the first group whose scale or
    /// bias overflows.
    #[cold]
    fn explain(&self, groups: Range<usize>, scale: [f32; LANES], bias: [f32; LANES]) -> QuantError {
        let group = self.affine.group_size();
        let place = |i: usize| ((i / self.cols) as u64, (i % self.cols) as u64);
        let first = groups.start * group;
        let weights = &self.x[first..groups.end * group];
        if let Some(i) = weights.iter().position(|x| !x.is_finite()) {
            let (row, col) = place(first + i);
            return QuantError::NotFinite { row, col, value: weights[i] };
        }
        let dtype = self.affine.scale_dtype();
        let overflows = |v: f32| !dtype.round(v).is_finite();
        let lane = (0..groups.len()).find(|&l| overflows(scale[l]) || overflows(bias[l]));
        let lane = lane.unwrap_or(0);
        let (row, col) = place(first + lane * group);
        let min = weights[lane * group..][..group]
            .iter()
            .copied()
            .fold(f32::INFINITY, f32::min);
        let value = if overflows(bias[lane]) { min } else { scale[lane] };
        QuantError::ScaleRange { row, col, value, dtype }
    }
}

/// Adds the first `count` lanes to `stats`, in order.
#[inline(always)]
fn count<S: Simd>(
    s: S,
    stats: &mut QuantStats,
    count: usize,
    ends: Extremes<S::F>,
    measured: Measure<S::F>,
    improved: S::F,
) {
    let [min, max, error, square, worst, improved] = [
        values(s, ends.min),
        values(s, ends.max),
        values(s, measured.sum_sq_error),
        values(s, measured.sum_sq),
        values(s, measured.max_abs_error),
        values(s, improved),
    ];
    for lane in 0..count {
        stats.sum_sq_error += f64::from(error[lane]);
        stats.sum_sq += f64::from(square[lane]);
        stats.max_abs_error = stats.max_abs_error.max(worst[lane]);
        stats.improved_groups += u64::from(improved[lane] != 0.0);
        stats.constant_groups += u64::from(min[lane] == max[lane]);
    }
}

/// Stores the low halves of the first `out.len() / 2` lanes.
#[inline(always)]
fn store_16<S: Simd>(s: S, bits: S::I, out: &mut [u8]) {
    let mut lanes = [0; LANES];
    s.store_bits(bits, &mut lanes);
    for (lane, out) in lanes.iter().zip(out.as_chunks_mut::<2>().0) {
        *out = (*lane as u16).to_le_bytes();
    }
}
