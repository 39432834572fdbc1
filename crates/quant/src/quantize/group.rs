//! Sixteen groups at a time, one in each lane: no sum crosses lanes, so every backend agrees.

use std::ops::Range;

use super::lanes::{Extremes, Grid, Measure, Measured, Pair, Tile, Weighted, Weights};
use super::lanes::{extremes, measure, min_max, pack, values};
use super::{PartsMut, QuantStats, search, zeros};
use crate::encoding::{Affine, Float, Zeros};
use crate::error::QuantError;
use crate::float;
use crate::kernel::{Kernel, LANES, Simd};

/// The largest group size.
pub const MAX_GROUP: usize = 128;

/// How the pairs of groups are chosen, each group on its own.
#[derive(Clone, Copy)]
pub enum PairSearch<'a> {
    MinMax,
    Search,
    /// The search with the squared errors of column `k` weighted by value `k`: [`relative`] weights.
    Weighted(&'a [f32]),
}

/// [`super::quantize`] as a kernel, for affine codes without feedback.
pub struct QuantizeGroups<'a> {
    pub x: &'a [f32],
    pub cols: usize,
    pub affine: Affine,
    pub zeros: Zeros,
    pub choice: PairSearch<'a>,
    pub out: PartsMut<'a>,
}

/// The pair of each group as it is stored.
pub struct GroupPair<F> {
    pub pair: Pair<F>,
    pub measured: Measure<F>,
    /// 1 where the search beat min-max.
    pub improved: F,
    pub ends: Extremes<F>,
}

/// A group whose scale or bias is not finite once stored.
pub struct Overflow {
    /// Its lane.
    pub lane: usize,
    /// Its least weight, or its min-max scale before rounding.
    pub value: f32,
}

impl Kernel for QuantizeGroups<'_> {
    type Output = Result<QuantStats, QuantError>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Self::Output {
        let group = self.affine.group_size();
        let mut stats = QuantStats::default();
        let (mut tile, mut weights) = ([[0.0; LANES]; MAX_GROUP], [[0.0; LANES]; MAX_GROUP]);
        for (i, x) in self.x.chunks(LANES * group).enumerate() {
            let groups = i * LANES..i * LANES + x.len() / group;
            // tile[k][l]: weight k of group l. Lanes never meet, so a group's pair does not depend on its neighbours.
            transpose(x.chunks_exact(group), &mut tile[..group]);
            let mut counted = Weights(None);
            if let PairSearch::Weighted(all) = self.choice {
                let whole = groups
                    .clone()
                    .map(|g| &all[g * group % self.cols..][..group]);
                transpose(whole, &mut weights[..group]);
                counted = Weights(Some(&weights[..group]));
            }
            let x = Weighted { tile: &tile[..group], weights: counted };
            self.sixteen(s, groups, x, &mut stats)?;
        }
        Ok(stats)
    }
}

/// Spreads whole groups over the lanes of `tile`; lanes without a group become zero.
#[inline(always)]
fn transpose<'a>(groups: impl ExactSizeIterator<Item = &'a [f32]>, tile: &mut Tile) {
    if groups.len() < LANES {
        tile.fill([0.0; LANES]);
    }
    for (lane, x) in groups.enumerate() {
        for (row, &x) in tile.iter_mut().zip(x) {
            row[lane] = x;
        }
    }
}

/// `weights` over their mean in each group, so that no group's errors are too small to compare; 1
/// where all of a group are 0.
pub fn relative(weights: &[f32], group: usize) -> Vec<f32> {
    let mut all = Vec::with_capacity(weights.len());
    for weights in weights.chunks(group) {
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        let scale = group as f64 / sum;
        all.extend(
            weights
                .iter()
                .map(|w| if sum > 0.0 { (f64::from(*w) * scale) as f32 } else { 1.0 }),
        );
    }
    all
}

/// Chooses the pairs of the groups in `x`.
#[inline(always)]
pub fn choose<S: Simd>(
    s: S,
    grid: Grid,
    x: Weighted<'_>,
    choice: PairSearch<'_>,
) -> Result<GroupPair<S::F>, Overflow> {
    let tile = x.tile;
    let ends = extremes(s, tile);
    let (exact, base) = base(s, grid, x, ends);
    let pair = base.pair;
    // A weight that is not finite makes its lane NaN; a pair beyond its type's range became infinite when it
    // was rounded. Both are told apart only once something is wrong.
    let checked = [values(s, ends.nan_unless_finite), values(s, pair.scale), values(s, pair.bias)];
    if checked.as_flattened().iter().any(|v| !v.is_finite()) {
        return Err(Overflow::new(tile, grid.dtype, values(s, exact.scale), values(s, exact.bias)));
    }
    let (found, improved) = match choice {
        PairSearch::MinMax => (base, s.splat(0.0)),
        _ => search::search(s, grid, x, ends, base),
    };
    Ok(GroupPair { pair: found.pair, measured: found.measure, improved, ends })
}

/// The min-max pair of each group, before it is rounded and as it is stored.
#[inline(always)]
fn base<S: Simd>(
    s: S,
    grid: Grid,
    x: Weighted<'_>,
    ends: Extremes<S::F>,
) -> (Pair<S::F>, Measured<S::F>) {
    if grid.zeros != Zeros::Float {
        return zeros::min_max(s, grid, x, ends);
    }
    let exact = min_max(s, grid, ends);
    let pair = exact.stored(s, grid.dtype);
    (exact, Measured { pair, measure: measure(s, grid, x, pair) })
}

impl QuantizeGroups<'_> {
    /// Quantizes `groups` of the matrix, whose weights are in `x`.
    #[inline(always)]
    fn sixteen<S: Simd>(
        &mut self,
        s: S,
        groups: Range<usize>,
        x: Weighted<'_>,
        stats: &mut QuantStats,
    ) -> Result<(), QuantError> {
        let chosen = match choose(s, Grid::new(self.affine, self.zeros), x, self.choice) {
            Ok(chosen) => chosen,
            Err(overflow) => return Err(self.explain(&groups, &overflow)),
        };
        let place =
            TileTarget { affine: self.affine, first: groups.start, step: 1, count: groups.len() };
        place.write(s, &mut self.out, x.tile, chosen.pair);
        place.count(s, stats, &chosen);
        Ok(())
    }

    /// Names the first weight of `groups` that is not finite, else the first group whose scale or
    /// bias overflows.
    #[cold]
    fn explain(&self, groups: &Range<usize>, overflow: &Overflow) -> QuantError {
        let group = self.affine.group_size();
        let first = groups.start * group;
        let weights = &self.x[first..groups.end * group];
        if let Some(error) = not_finite(weights, first, self.cols) {
            return error;
        }
        let at = first + overflow.lane * group;
        let (row, col) = ((at / self.cols) as u64, (at % self.cols) as u64);
        let dtype = self.affine.scale_dtype();
        QuantError::ScaleRange { row, col, value: overflow.value, dtype }
    }
}

/// The first of `weights` that is not finite, if any; they begin `first` weights after row 0.
pub fn not_finite(weights: &[f32], first: usize, cols: usize) -> Option<QuantError> {
    let i = weights.iter().position(|x| !x.is_finite())?;
    let (row, col) = (((first + i) / cols) as u64, ((first + i) % cols) as u64);
    Some(QuantError::NotFinite { row, col, value: weights[i] })
}

impl Overflow {
    /// The first lane of `tile` whose min-max scale or bias overflows.
    #[cold]
    fn new(tile: &Tile, dtype: Float, scale: [f32; LANES], bias: [f32; LANES]) -> Self {
        let overflows = |v: f32| !dtype.round(v).is_finite();
        let lane = (0..LANES).find(|&l| overflows(scale[l]) || overflows(bias[l]));
        let lane = lane.unwrap_or(0);
        let weights = tile.iter().map(|row| row[lane]);
        let min = weights.fold(f32::INFINITY, f32::min);
        Self { lane, value: if overflows(bias[lane]) { min } else { scale[lane] } }
    }
}

/// Where the groups of a tile are stored: lane `l` is group `first + step · l` of the matrix.
pub struct TileTarget {
    pub affine: Affine,
    pub first: usize,
    pub step: usize,
    /// Lanes that hold a group.
    pub count: usize,
}

impl TileTarget {
    /// Stores codes, scales and biases.
    #[inline(always)]
    pub fn write<S: Simd>(&self, s: S, out: &mut PartsMut<'_>, tile: &Tile, pair: Pair<S::F>) {
        let mut words = [[0; LANES]; MAX_GROUP / 4];
        pack(s, Grid::new(self.affine, Zeros::Float), tile, pair, &mut words);
        let bytes = tile.len() / 8 * self.affine.bits() as usize;
        let dtype = self.affine.scale_dtype();
        let (mut scales, mut biases) = ([0; LANES], [0; LANES]);
        s.store_bits(float::encode(s, dtype, pair.scale), &mut scales);
        s.store_bits(float::encode(s, dtype, pair.bias), &mut biases);
        // words[w][l] is word w of lane l's codes: each lane's words go to where its group lies.
        for lane in 0..self.count {
            let at = self.first + self.step * lane;
            let weight = &mut out.weight[at * bytes..(at + 1) * bytes];
            for (word, out) in words.iter().zip(weight.as_chunks_mut::<4>().0) {
                *out = word[lane].to_le_bytes();
            }
            out.scales[2 * at..2 * at + 2].copy_from_slice(&(scales[lane] as u16).to_le_bytes());
            out.biases[2 * at..2 * at + 2].copy_from_slice(&(biases[lane] as u16).to_le_bytes());
        }
    }

    /// Adds the groups to `stats`, in order.
    #[inline(always)]
    pub fn count<S: Simd>(&self, s: S, stats: &mut QuantStats, chosen: &GroupPair<S::F>) {
        let group = self.affine.group_size();
        chosen.measured.count(s, stats, self.count, group);
        let [min, max, improved] =
            [values(s, chosen.ends.min), values(s, chosen.ends.max), values(s, chosen.improved)];
        for lane in 0..self.count {
            stats.improved_groups += u64::from(improved[lane] != 0.0);
            stats.constant_groups += u64::from(min[lane] == max[lane]);
        }
    }
}
