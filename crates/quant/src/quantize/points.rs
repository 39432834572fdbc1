//! Blocks of points: four or eight columns at once take a point of a grid, and each a sign.
//!
//! With feedback `F` and costs `D` (see [`crate::feedback`]) the columns of a point cost `Σ D[k] · r[k]²`, where
//! `r[k] = e[k] + Σ F[j][k] · e[j]` over the errors `e` of all columns before `k`. Those before the point are known,
//! so there is a place `z` where all `r` are 0, and an error from there costs `eᵀ M e` with
//! `M = Bᵀ D B`, `B` the part of `F + I` within the point. Every point is tried in this measure; signs are rounded
//! one after the other first, and turned where that costs less.

use super::blocks::{Lanes, QuantizeBlocks, Strip, inverse};
use super::group::Overflow;
use super::lanes::{Measure, values};
use crate::blocks::Points;
use crate::encoding::Float;
use crate::feedback::Sweep;
use crate::float::magnitude;
use crate::ggml::PointBlock;
use crate::kernel::{LANES, Simd};

/// Columns of the largest group.
const GROUP: usize = 32;
/// The largest half of a group's number.
const MOST: f32 = 15.0;
/// Parts of the scale that covers a group, from which the search starts: points lie closer than their ends say.
const STARTS: [f32; 4] = [1.0, 0.86, 0.73, 0.6];
/// Rounds of nearest points and least squares from each start.
const ROUNDS: usize = 2;
/// Rounds of turned signs and points after the first.
const TURNS: usize = 2;

impl QuantizeBlocks<'_> {
    /// The points of a block of sixteen rows, in whose `blocks` they are left.
    #[inline(always)]
    pub(super) fn points<S: Simd, const V: usize>(
        &self,
        s: S,
        sweep: Option<&Sweep<'_>>,
        strip: &mut Strip<'_>,
        blocks: &mut [PointBlock; LANES],
        mut measured: impl FnMut(Measure<S::F>),
    ) -> Result<(), Overflow> {
        let Some(kind) = strip.form.points else { return Ok(()) };
        let grid = self.grid.as_chunks::<V>().0;
        let groups = strip.form.values / strip.form.group;
        let mut squares = Vec::new();
        let mut ideal = [[0.0; LANES]; 16];
        for (g, ideal) in ideal[..groups].iter_mut().enumerate() {
            let group =
                Group::new(s, grid, &strip.targets[strip.columns(g)], self.counted(strip, g));
            group.square(&mut squares);
            *ideal = group.ideal(s, &squares, kind.largest(), self.is_search());
        }
        set_scales(kind, &ideal[..groups], blocks)?;
        for (g, ideal) in ideal[..groups].iter().enumerate() {
            if let Some(sweep) = sweep.filter(|_| g > 0) {
                strip.take_in(s, sweep, g);
            }
            let group =
                Group::new(s, grid, &strip.targets[strip.columns(g)], self.counted(strip, g));
            group.square(&mut squares);
            let scale = group.fit(s, &squares, (kind, ideal), g, blocks);
            measured(self.round::<S, V>(s, sweep, strip, (kind, g, scale), blocks));
        }
        Ok(())
    }

    /// What errors count in group `g`; nothing where they count alike.
    fn counted(&self, strip: &Strip<'_>, g: usize) -> &[f32] {
        self.costs
            .as_ref()
            .map_or(&[], |costs| &costs[strip.columns(g)])
    }

    /// Rounds the columns of group `g` point after point.
    #[inline(always)]
    fn round<S: Simd, const V: usize>(
        &self,
        s: S,
        sweep: Option<&Sweep<'_>>,
        strip: &mut Strip<'_>,
        (kind, g, scale): (Points, usize, S::F),
        blocks: &mut [PointBlock; LANES],
    ) -> Measure<S::F> {
        let (grid, columns) = (self.grid.as_chunks::<V>().0, strip.columns(g));
        let (inverse, one) = (inverse(s, scale), s.splat(1.0));
        let (mut measured, mut product) = (Measure::none(s), one);
        for first in columns.clone().step_by(V) {
            let metric = self.metric::<V>(first);
            let mut z = [s.splat(0.0); V];
            let mut carried = [s.splat(0.0); V];
            for i in 0..V {
                let (k, weight) = (first + i, s.load(&strip.errors[first + i]));
                let target = match sweep {
                    Some(sweep) => {
                        sweep.inside(s, columns.start..first, k, strip.errors, &strip.targets[k])
                    }
                    None => s.load(&strip.targets[k]),
                };
                // What earlier columns ask of this one, less what they ask by way of the point's own.
                carried[i] = s.sub(target, weight);
                for j in 0..i {
                    carried[i] = s.mul_add(s.splat(-metric.feedback[i][j]), carried[j], carried[i]);
                }
                z[i] = s.mul(s.add(weight, carried[i]), inverse);
            }
            // The last signs of eight columns make the number of those that are set even.
            let closes = kind.even && (first + V).is_multiple_of(8);
            let chosen = metric.choose(s, grid, kind.levels, &z, closes.then_some(product));
            for i in 0..V {
                let value = s.mul(scale, chosen.values[i]);
                let weight = s.load(&strip.errors[first + i]);
                let error = s.sub(weight, value);
                measured.add(s, weight, error);
                s.store(error, &mut strip.errors[first + i]);
                product = s.mul(product, chosen.signs[i]);
            }
            if closes {
                product = one;
            }
            keep(s, &chosen, first - strip.start, blocks);
        }
        measured
    }

    /// The measure of the point that begins with column `first`.
    #[inline(always)]
    fn metric<const V: usize>(&self, first: usize) -> Metric<V> {
        let mut feedback = [[0.0; V]; V];
        let mut costs = [1.0; V];
        for (i, costs) in costs.iter_mut().enumerate() {
            match (self.feedback, &self.costs) {
                (Some(known), _) => {
                    let row = known.row(first + i);
                    feedback[i][..i].copy_from_slice(&row[first..]);
                    *costs = known.costs()[first + i];
                }
                (None, Some(known)) => *costs = known[first + i],
                (None, None) => {}
            }
        }
        Metric::new(feedback, costs)
    }
}

/// Magnitudes of a group of sixteen rows, and what is searched among.
struct Group<'a, S: Simd, const V: usize> {
    grid: &'a [[f32; V]],
    size: usize,
    x: [S::F; GROUP],
    weights: [f32; GROUP],
}

/// What a scale does to sixteen groups.
struct Tried<F> {
    cost: F,
    /// The scale that least squares find for the same points.
    next: F,
}

impl<'a, S: Simd, const V: usize> Group<'a, S, V> {
    #[inline(always)]
    fn new(s: S, grid: &'a [[f32; V]], tile: &[Lanes], costs: &[f32]) -> Self {
        let (mut x, mut weights) = ([s.splat(0.0); GROUP], [1.0; GROUP]);
        for (x, line) in x.iter_mut().zip(tile) {
            *x = magnitude(s, s.load(line));
        }
        weights[..costs.len()].copy_from_slice(costs);
        Self { grid, size: tile.len(), x, weights }
    }

    /// `Σ weight · value²` of each point in each place, `[places, points]`.
    #[inline(always)]
    fn square(&self, squares: &mut Vec<f32>) {
        squares.clear();
        for weights in self.weights[..self.size].as_chunks::<V>().0 {
            for point in self.grid {
                let mut sum = 0.0f32;
                for i in 0..V {
                    sum = (weights[i] * point[i]).mul_add(point[i], sum);
                }
                squares.push(sum);
            }
        }
    }

    /// Takes the nearest points, signs left aside.
    #[inline(always)]
    fn tried(&self, s: S, squares: &[f32], scale: S::F) -> Tried<S::F> {
        let (zero, inverse) = (s.splat(0.0), inverse(s, scale));
        let (mut cost, mut taken, mut along) = (zero, zero, zero);
        let places = squares.chunks_exact(self.grid.len());
        for (place, squares) in places.enumerate() {
            // Σ w (u - p)² = Σ w u² + Σ w p² - 2 Σ w u p
            let mut slope = [zero; V];
            for (i, slope) in slope.iter_mut().enumerate() {
                let (weight, x) = (self.weights[place * V + i], self.x[place * V + i]);
                let u = s.mul(x, inverse);
                let weighted = s.mul(s.splat(weight), u);
                cost = s.mul_add(weighted, u, cost);
                *slope = s.mul(s.splat(-2.0), weighted);
            }
            let (mut least, mut index) = (s.splat(f32::INFINITY), zero);
            for (at, (point, square)) in self.grid.iter().zip(squares).enumerate() {
                let mut sum = s.splat(*square);
                for i in 0..V {
                    sum = s.mul_add(slope[i], s.splat(point[i]), sum);
                }
                index = s.select_less(sum, least, s.splat(at as f32), index);
                least = s.min(sum, least);
            }
            let mut square = values(s, index);
            for value in &mut square {
                *value = squares[*value as usize];
            }
            let square = s.load(&square);
            cost = s.add(cost, least);
            taken = s.add(taken, square);
            along = s.add(along, s.sub(square, least));
        }
        let next = s.mul(scale, s.div(s.mul(along, s.splat(0.5)), taken));
        Tried { cost: s.mul(s.mul(scale, scale), cost), next }
    }

    /// The scale that the group would have for itself: the one that covers it or, with `search`, the best of those
    /// that least squares find from there.
    #[inline(always)]
    fn ideal(&self, s: S, squares: &[f32], largest: f32, search: bool) -> Lanes {
        let mut most = s.splat(0.0);
        for x in &self.x[..self.size] {
            most = s.max(*x, most);
        }
        let covering = s.div(most, s.splat(largest));
        if !search {
            return values(s, covering);
        }
        let (mut best, mut least) = (covering, s.splat(f32::INFINITY));
        for start in STARTS {
            let mut scale = s.mul(covering, s.splat(start));
            for _ in 0..ROUNDS {
                let tried = self.tried(s, squares, scale);
                best = s.select_less(tried.cost, least, scale, best);
                least = s.min(tried.cost, least);
                scale = tried.next;
            }
        }
        values(s, best)
    }

    /// Chooses the number of group `g`: the best of those next to what least squares make of the `ideal` scale.
    #[inline(always)]
    fn fit(
        &self,
        s: S,
        squares: &[f32],
        (kind, ideal): (Points, &Lanes),
        g: usize,
        blocks: &mut [PointBlock; LANES],
    ) -> S::F {
        let (mut ideal, mut best, mut least) = (*ideal, [0.0; LANES], [f32::INFINITY; LANES]);
        // What least squares make of the scale comes first; one place for the search, which is long code.
        for more in [None, Some(0.0), Some(-1.0), Some(1.0)] {
            let (mut halves, mut scales) = ([0; LANES], ideal);
            if let Some(more) = more {
                for (lane, block) in blocks.iter().enumerate() {
                    let unit = block.scale * kind.unit;
                    let exact = if unit > 0.0 { (ideal[lane] / unit - 1.0) / 2.0 } else { 0.0 };
                    let half = (exact.round_ties_even() + more).clamp(0.0, MOST);
                    (halves[lane], scales[lane]) = (half as u8, unit * half.mul_add(2.0, 1.0));
                }
            }
            let tried = self.tried(s, squares, s.load(&scales));
            if more.is_none() {
                ideal = values(s, tried.next);
                continue;
            }
            let costs = values(s, tried.cost);
            for (lane, block) in blocks.iter_mut().enumerate() {
                if costs[lane] < least[lane] {
                    (least[lane], best[lane]) = (costs[lane], scales[lane]);
                    block.halves[g] = halves[lane];
                }
            }
        }
        s.load(&best)
    }
}

/// Sets the scales of blocks so that the largest of their groups' have the largest number.
///
/// # Errors
/// A scale that half precision does not hold.
fn set_scales(
    kind: Points,
    ideal: &[Lanes],
    blocks: &mut [PointBlock; LANES],
) -> Result<(), Overflow> {
    for (lane, block) in blocks.iter_mut().enumerate() {
        let most = ideal
            .iter()
            .fold(0.0f32, |most, scales| most.max(scales[lane]));
        block.scale = Float::F16.round(most / (kind.unit * MOST.mul_add(2.0, 1.0)));
        if !block.scale.is_finite() {
            return Err(Overflow { lane, value: most });
        }
    }
    Ok(())
}

/// Puts what was chosen for the point that begins with column `column` into the blocks.
#[inline(always)]
fn keep<S: Simd, const V: usize>(
    s: S,
    chosen: &Chosen<S::F, V>,
    column: usize,
    blocks: &mut [PointBlock; LANES],
) {
    let index = values(s, chosen.index);
    for (block, index) in blocks.iter_mut().zip(index) {
        block.points[column / V] = index as u16;
    }
    for i in 0..V {
        let (byte, bit) = ((column + i) / 8, (column + i) % 8);
        for (block, sign) in blocks.iter_mut().zip(values(s, chosen.signs[i])) {
            block.signs[byte] |= u8::from(sign < 0.0) << bit;
        }
    }
}

/// What errors of `V` columns cost.
pub struct Metric<const V: usize> {
    /// `F[j][i]` of columns `j < i`, `[i][j]`.
    feedback: [[f32; V]; V],
    /// `M`, over the mean of its costs.
    products: [[f32; V]; V],
}

/// Points and signs of sixteen rows.
pub struct Chosen<F, const V: usize> {
    index: F,
    signs: [F; V],
    /// The levels with their signs.
    pub values: [F; V],
}

impl<const V: usize> Metric<V> {
    pub fn new(feedback: [[f32; V]; V], costs: [f32; V]) -> Self {
        let mean = costs.iter().sum::<f32>() / V as f32;
        let entry = |k: usize, i: usize| if i == k { 1.0 } else { feedback[k][i] };
        let mut products = [[0.0; V]; V];
        for (a, line) in products.iter_mut().enumerate() {
            for (b, product) in line.iter_mut().enumerate() {
                for (k, cost) in costs.iter().enumerate().skip(a.max(b)) {
                    *product += cost / mean * entry(k, a) * entry(k, b);
                }
            }
        }
        Self { feedback, products }
    }

    /// The point and the signs for `z`, which is counted in scales. The product of the signs is `product`, where one
    /// is asked for.
    #[inline(always)]
    pub fn choose<S: Simd>(
        &self,
        s: S,
        grid: &[[f32; V]],
        levels: &[f32],
        z: &[S::F; V],
        product: Option<S::F>,
    ) -> Chosen<S::F, V> {
        let mut signs = self.signs(s, levels, z);
        let mut found = (s.splat(0.0), [s.splat(0.0); V]);
        for round in 0..=TURNS {
            if round > 0 {
                self.turn(s, z, &found.1, &mut signs, product);
            }
            found = self.nearest(s, grid, z, &signs);
        }
        let (index, mut values) = found;
        for i in 0..V {
            values[i] = s.mul(values[i], signs[i]);
        }
        Chosen { index, signs, values }
    }

    /// The signs of columns that are rounded to levels one after the other, each with the feedback of those before.
    #[inline(always)]
    fn signs<S: Simd>(&self, s: S, levels: &[f32], z: &[S::F; V]) -> [S::F; V] {
        let (zero, one) = (s.splat(0.0), s.splat(1.0));
        let (mut errors, mut signs) = ([zero; V], [one; V]);
        for i in 0..V {
            let mut target = z[i];
            for (factor, error) in self.feedback[i][..i].iter().zip(&errors) {
                target = s.mul_add(s.splat(*factor), *error, target);
            }
            signs[i] = s.select_less(target, zero, s.splat(-1.0), one);
            let (size, mut level) = (magnitude(s, target), s.splat(levels[0]));
            for pair in levels.windows(2) {
                let middle = s.splat(f32::midpoint(pair[0], pair[1]));
                level = s.select_less(middle, size, s.splat(pair[1]), level);
            }
            errors[i] = s.sub(z[i], s.mul(signs[i], level));
        }
        signs
    }

    /// The point that costs least with these signs, and its levels.
    #[inline(always)]
    fn nearest<S: Simd>(
        &self,
        s: S,
        grid: &[[f32; V]],
        z: &[S::F; V],
        signs: &[S::F; V],
    ) -> (S::F, [S::F; V]) {
        // (z - p)ᵀ M (z - p) without what no point changes, the signs taken into M and z.
        let zero = s.splat(0.0);
        let (mut slope, mut curve) = ([zero; V], [[zero; V]; V]);
        for i in 0..V {
            for j in 0..V {
                let product = s.splat(self.products[i][j]);
                slope[i] = s.mul_add(product, z[j], slope[i]);
                let twice = s.mul(s.mul(signs[i], signs[j]), s.add(product, product));
                curve[i][j] = if i == j { product } else { twice };
            }
            slope[i] = s.mul(s.mul(s.splat(-2.0), signs[i]), slope[i]);
        }
        let (mut least, mut index) = (s.splat(f32::INFINITY), zero);
        for (at, point) in grid.iter().enumerate() {
            let mut cost = zero;
            for i in 0..V {
                let mut line = slope[i];
                for j in 0..=i {
                    line = s.mul_add(curve[i][j], s.splat(point[j]), line);
                }
                cost = s.mul_add(line, s.splat(point[i]), cost);
            }
            index = s.select_less(cost, least, s.splat(at as f32), index);
            least = s.min(cost, least);
        }
        let (mut tile, numbers) = ([[0.0; LANES]; V], values(s, index));
        for (lane, number) in numbers.into_iter().enumerate() {
            for (line, level) in tile.iter_mut().zip(grid[number as usize]) {
                line[lane] = level;
            }
        }
        let mut levels = [zero; V];
        for (levels, line) in levels.iter_mut().zip(&tile) {
            *levels = s.load(line);
        }
        (index, levels)
    }

    /// Turns signs where that lowers the cost; in pairs where their product is asked for, after the one that costs
    /// least where the product is another.
    #[inline(always)]
    fn turn<S: Simd>(
        &self,
        s: S,
        z: &[S::F; V],
        levels: &[S::F; V],
        signs: &mut [S::F; V],
        product: Option<S::F>,
    ) {
        let zero = s.splat(0.0);
        // What the cost rises with in each column, half of it.
        let mut slopes = [zero; V];
        for j in 0..V {
            let error = s.sub(z[j], s.mul(signs[j], levels[j]));
            for (slope, products) in slopes.iter_mut().zip(&self.products) {
                *slope = s.mul_add(s.splat(products[j]), error, *slope);
            }
        }
        let Some(wanted) = product else {
            for i in 0..V {
                let (step, change) = self.change(s, i, levels, signs, &slopes);
                let step = s.select_less(change, zero, step, zero);
                signs[i] = s.select_less(change, zero, s.sub(zero, signs[i]), signs[i]);
                self.add(s, i, step, &mut slopes);
            }
            return;
        };
        let mut wrong = wanted;
        for sign in &*signs {
            wrong = s.mul(wrong, *sign);
        }
        let (mut least, mut which) = (s.splat(f32::INFINITY), zero);
        for i in 0..V {
            let (_, change) = self.change(s, i, levels, signs, &slopes);
            which = s.select_less(change, least, s.splat(i as f32), which);
            least = s.min(change, least);
        }
        which = s.select_less(wrong, zero, which, s.splat(-1.0));
        self.turn_one(s, which, levels, signs, &mut slopes);
        self.turn_two(s, levels, signs, &mut slopes);
    }

    /// Turns the two signs that lower the cost most together.
    #[inline(always)]
    fn turn_two<S: Simd>(
        &self,
        s: S,
        levels: &[S::F; V],
        signs: &mut [S::F; V],
        slopes: &mut [S::F; V],
    ) {
        let (zero, none) = (s.splat(0.0), s.splat(-1.0));
        let (mut least, mut first, mut second) = (zero, none, none);
        for i in 0..V {
            let (step, change) = self.change(s, i, levels, signs, slopes);
            for j in 0..i {
                let (other, beside) = self.change(s, j, levels, signs, slopes);
                let both = s.mul(s.mul(step, other), s.splat(2.0 * self.products[i][j]));
                let change = s.add(s.add(change, beside), both);
                first = s.select_less(change, least, s.splat(i as f32), first);
                second = s.select_less(change, least, s.splat(j as f32), second);
                least = s.min(change, least);
            }
        }
        self.turn_one(s, first, levels, signs, slopes);
        self.turn_one(s, second, levels, signs, slopes);
    }

    /// Turns the sign of column `which` of each row; none of a row where that is below 0.
    #[inline(always)]
    fn turn_one<S: Simd>(
        &self,
        s: S,
        which: S::F,
        levels: &[S::F; V],
        signs: &mut [S::F; V],
        slopes: &mut [S::F; V],
    ) {
        let zero = s.splat(0.0);
        for i in 0..V {
            let distance = magnitude(s, s.sub(which, s.splat(i as f32)));
            let step = s.mul(s.splat(2.0), s.mul(signs[i], levels[i]));
            let step = s.select_less(distance, s.splat(0.5), step, zero);
            signs[i] = s.select_less(distance, s.splat(0.5), s.sub(zero, signs[i]), signs[i]);
            self.add(s, i, step, slopes);
        }
    }

    /// How far the error of column `i` moves when its sign is turned, and what that adds to the cost.
    #[inline(always)]
    fn change<S: Simd>(
        &self,
        s: S,
        i: usize,
        levels: &[S::F; V],
        signs: &[S::F; V],
        slopes: &[S::F; V],
    ) -> (S::F, S::F) {
        let two = s.splat(2.0);
        let step = s.mul(two, s.mul(signs[i], levels[i]));
        let slope = s.mul_add(s.splat(self.products[i][i]), step, s.mul(two, slopes[i]));
        (step, s.mul(step, slope))
    }

    /// Moves the error of column `i` by `step`.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, i: usize, step: S::F, slopes: &mut [S::F; V]) {
        for (slope, products) in slopes.iter_mut().zip(&self.products) {
            *slope = s.mul_add(s.splat(products[i]), step, *slope);
        }
    }
}
