//! The choice of a stream: the best cyclic path through the trellis of one column of a tile.
//!
//! Row `i` is in state `s[i]`, and `s[i + 1] = s[i] >> bits | new << (state_bits - bits)`. The rows are
//! gone through from last to first, for then the states that can stand behind `s` are
//! `s >> bits | t << (state_bits - bits)`: those of a *group*, the `2^bits` states `s` that agree but
//! for their lowest bits, are the same. So a group has one best continuation `t`, and what is kept of a row is the
//! least cost of what stands behind each group. The continuation itself is found again, for the groups on the best
//! path alone, when that is followed forward: far fewer than a row has.
//!
//! A stream is cyclic, which the algorithm of Viterbi is not. As in QTIP (arXiv 2406.11235, section
//! 3.2), one run over the rows around the seam, last rows before first, finds the bits that both sides
//! of the seam share; a second run over all rows is bound to them.

use super::rotate::Line;
use super::stream::value;
use crate::encoding::Trellis;
use crate::kernel::{LANES, Simd, transposed};
use crate::pack::pack;

/// Rows on each side of the seam that the first run looks at, in lengths of a state: the paths of a
/// trellis have merged long before.
const REACH: usize = 6;

/// A column is short, and its seam weighs, up to this many lengths of a state. Then the seam is moved
/// on and the run repeated, bound to the path so far: no round makes it worse.
const SHORT: usize = 24;

/// Rows that the seam of a short column moves in a round, coprime to the rows.
const SHIFT: usize = 3;

/// Continuations of a group that are compared in one go.
const TOGETHER: usize = 4;

/// Chooses streams. It owns the buffers, for 256 rows [`Trellis::search_bytes`] of them.
pub struct Encoder {
    trellis: Trellis,
    /// The value of each state `g + t · groups`: a few `t` that are compared [`TOGETHER`], of them
    /// sixteen groups at a time, lanes in the order of [`transposed`].
    values: Vec<Line>,
    /// For the rows of a run: the least cost of the rows from here to the last for each group of bits that the row
    /// before leaves to this one; then the same behind the last. It is used from the first cache line on.
    costs: Vec<f32>,
    /// The states of the best path of a run.
    states: Vec<u32>,
    /// The lowest bits of the states of the chosen path.
    codes: Vec<u8>,
}

/// What one column asks for: a target, in units of the row's scale, and the weight of its squared
/// error for each row. Rows that fill up a tile have weight 0.
#[derive(Clone, Copy)]
pub struct Column<'a> {
    pub targets: &'a [f32],
    pub weights: &'a [f32],
}

/// A stretch of rows, cyclic, and the bits that the rows around it prescribe.
struct RowSpan {
    first: usize,
    rows: usize,
    /// The lowest `state_bits - bits` bits of the first state, and the highest of the last.
    overlap: Option<usize>,
}

impl Encoder {
    /// An encoder of `trellis`.
    pub fn new(trellis: Trellis) -> Self {
        let (codes, states) = (1 << trellis.bits(), 1 << trellis.state_bits());
        let (mut values, groups) = (vec![Line::ZERO; states / LANES], states / codes);
        for state in 0..states {
            let (group, t) = (state % groups, state / groups);
            let line = (t / TOGETHER * (groups / LANES) + group / LANES) * TOGETHER + t % TOGETHER;
            values[line].0[transposed(codes, group % LANES)] = value(state as u32);
        }
        let (costs, states, codes) = (Vec::new(), Vec::new(), Vec::new());
        Self { trellis, values, costs, states, codes }
    }

    /// Writes the stream whose values come nearest to the column's targets, and its values: the sum
    /// of `weights[i] · (targets[i] - values[i])²` is the least that the two runs find.
    ///
    /// # Panics
    /// When the rows are none or not a multiple of 8, or `stream` is not their length.
    #[inline(always)]
    pub fn encode<S: Simd>(
        &mut self,
        s: S,
        column: Column<'_>,
        stream: &mut [u8],
        values: &mut [f32],
    ) {
        let rows = column.targets.len();
        assert_eq!(rows, column.weights.len(), "weights of the rows of a tile");
        assert_eq!(rows, values.len(), "values of the rows of a tile");
        match self.trellis.bits() {
            2 => self.column::<S, 2, 4, 4>(s, column, stream, values),
            3 => self.column::<S, 3, 8, 2>(s, column, stream, values),
            _ => self.column::<S, 4, 16, 1>(s, column, stream, values),
        }
    }

    #[inline(always)]
    fn column<S: Simd, const BITS: usize, const CODES: usize, const EACH: usize>(
        &mut self,
        s: S,
        column: Column<'_>,
        stream: &mut [u8],
        values: &mut [f32],
    ) {
        let rows = column.targets.len();
        // The seam lies in the middle of the first run: its ends are free, and too far from the seam
        // for that to change what the paths there agree on.
        let reach = (REACH * self.state_bits() / BITS).min(rows / 2);
        let seam = RowSpan { first: rows - reach, rows: 2 * reach, overlap: None };
        self.run::<S, BITS, CODES, EACH>(s, column, &seam);
        let last = self.states[reach - 1] as usize;
        // From here on the path is closed: what is kept begins and ends with the same overlap.
        let mut run = RowSpan { first: 0, rows, overlap: Some(last >> BITS) };
        for round in 0..=SHORT * self.state_bits() / (rows * BITS) {
            if round > 0 {
                run.first = SHIFT * round % rows;
                run.overlap = Some(self.overlap::<BITS>(run.first));
            }
            self.run::<S, BITS, CODES, EACH>(s, column, &run);
            self.keep::<BITS>(run.first, values);
        }
        pack(BITS as u8, &self.codes, stream);
    }

    /// Takes the path of the last run, over all rows from `first` on, for the column's.
    #[inline(always)]
    fn keep<const BITS: usize>(&mut self, first: usize, values: &mut [f32]) {
        self.codes.resize(values.len(), 0);
        let (before, after) = values.split_at_mut(first);
        let (codes_before, codes_after) = self.codes.split_at_mut(first);
        let values = after.iter_mut().chain(before);
        let rows = values.zip(codes_after.iter_mut().chain(codes_before));
        for (state, (value_of, code)) in self.states.iter().zip(rows) {
            *code = (state % (1 << BITS)) as u8;
            *value_of = value(*state);
        }
    }

    /// The bits that the states before and at row `first` of the column's path share.
    #[inline(always)]
    fn overlap<const BITS: usize>(&self, first: usize) -> usize {
        let shared = self.state_bits() - BITS;
        let codes = self.codes[first..].iter().chain(&self.codes);
        let bits = codes.zip((0..shared).step_by(BITS));
        bits.fold(0, |bits, (code, at)| bits | usize::from(*code) << at) % (1 << shared)
    }

    const fn state_bits(&self) -> usize {
        self.trellis.state_bits() as usize
    }

    /// Goes through the rows of `run` from last to first, then along the best path to the last; leaves its states.
    #[inline(always)]
    fn run<S: Simd, const BITS: usize, const CODES: usize, const EACH: usize>(
        &mut self,
        s: S,
        column: Column<'_>,
        run: &RowSpan,
    ) {
        let groups = self.values.len() / CODES * LANES;
        let (costs, values) = (room(&mut self.costs, (run.rows + 1) * groups), &self.values);
        let (costs, last) = costs.split_at_mut(run.rows * groups);
        // Behind the last row any state may follow, or those that begin with the overlap.
        last.fill(if run.overlap.is_some() { f32::MAX } else { 0.0 });
        if let Some(overlap) = run.overlap {
            last[overlap] = 0.0;
        }
        let mut behind = &*last;
        for (row, here) in costs.chunks_exact_mut(groups).enumerate().rev() {
            step::<S, EACH>(s, behind, here, values, column.line(run.first + row));
            behind = here;
        }
        let group = run.overlap.unwrap_or_else(|| best(s, behind));
        self.follow::<CODES>(column, run, group);
    }

    /// The best path of the last run, whose first state is of `group`.
    #[inline(always)]
    fn follow<const CODES: usize>(&mut self, column: Column<'_>, run: &RowSpan, mut group: usize) {
        let groups = self.values.len() / CODES * LANES;
        let (values, width) = (self.values.as_chunks::<TOGETHER>().0, groups / LANES);
        let costs = room(&mut self.costs, (run.rows + 1) * groups);
        self.states.clear();
        for (row, behind) in costs.chunks_exact(groups).skip(1).enumerate() {
            let lane = transposed(CODES, group % LANES);
            let (values, line) = (&values[group / LANES..], column.line(run.first + row));
            // The very numbers of which `step` kept the least; of equal ones the lowest continuation.
            let mut least = u64::MAX;
            // No closure: compiled for any CPU, it would call a function for each multiply-add.
            for t in 0..CODES {
                let behind = behind[group / CODES + t * (groups / CODES)];
                let cost = cost(values[t / TOGETHER * width][t % TOGETHER].0[lane], line, behind);
                least = least.min(u64::from(cost.to_bits()) << 32 | t as u64);
            }
            let state = (least as usize % CODES) * groups + group;
            self.states.push(state as u32);
            group = state / CODES;
        }
    }
}

/// The first `len` of `costs` from a cache line's begin on; there are more where there are too few.
fn room(costs: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if costs.len() < len + LANES {
        costs.resize(len + LANES, 0.0);
    }
    let first = costs.as_ptr().align_offset(align_of::<Line>()).min(LANES);
    &mut costs[first..first + len]
}

impl Column<'_> {
    /// The factors `[root, -root · target]` of a row's error `root · value - root · target`; rows go round.
    #[inline(always)]
    fn line(&self, row: usize) -> [f32; 2] {
        let row = row % self.targets.len();
        let root = self.weights[row].sqrt();
        [root, -root * self.targets[row]]
    }
}

/// One row: the least over `t` of the cost of each group's state `g + t · groups`, with what is `behind` it.
#[inline(always)]
fn step<S: Simd, const EACH: usize>(
    s: S,
    behind: &[f32],
    costs: &mut [f32],
    values: &[Line],
    line: [f32; 2],
) {
    let costs = costs.as_chunks_mut().0;
    let width = costs.len();
    let line = [s.splat(line[0]), s.splat(line[1])];
    // What is behind a line of groups lies in a few values that neighbours share, for each `t` at another place. More
    // than a few such places at a time would not stay in registers.
    let behind = behind.as_chunks::<EACH>().0;
    for (part, values) in values.chunks_exact(TOGETHER * width).enumerate() {
        let behind = &behind[part * TOGETHER * width..];
        let [a, b, c, d] = std::array::from_fn(|t| behind[t * width..][..width].iter());
        let lines = a.zip(b).zip(c.zip(d)).zip(values.as_chunks::<TOGETHER>().0);
        for ((((a, b), (c, d)), values), costs) in lines.zip(&mut *costs) {
            let [i, j, k, l] = values;
            let first = s.min(costs_of(s, i, line, a), costs_of(s, j, line, b));
            let later = s.min(costs_of(s, k, line, c), costs_of(s, l, line, d));
            let least = s.regroup::<EACH>(s.min(first, later));
            s.store(if part == 0 { least } else { s.min(least, s.load(costs)) }, costs);
        }
    }
}

/// What sixteen states of these values cost, with what is behind them.
#[inline(always)]
fn costs_of<S: Simd, const EACH: usize>(
    s: S,
    values: &Line,
    [root, target]: [S::F; 2],
    behind: &[f32; EACH],
) -> S::F {
    let error = s.mul_add(s.load(&values.0), root, target);
    s.mul_add(error, error, s.repeat(behind))
}

/// [`costs_of`] one state.
#[inline(always)]
fn cost(value: f32, line: [f32; 2], behind: f32) -> f32 {
    let error = value.mul_add(line[0], line[1]);
    error.mul_add(error, behind)
}

/// The group of least cost, the lowest of equals.
#[inline(always)]
fn best<S: Simd>(s: S, costs: &[f32]) -> usize {
    // Groups are below 2^16: exact as floats.
    let lanes: [f32; LANES] = std::array::from_fn(|l| l as f32);
    let mut group = s.load(&lanes);
    let (mut least, mut at) = (s.splat(f32::INFINITY), group);
    for line in costs.as_chunks().0 {
        let cost = s.load(line);
        at = s.select_less(cost, least, group, at);
        least = s.min(cost, least);
        group = s.add(group, s.splat(LANES as f32));
    }
    let (mut least_of, mut at_of) = ([0.0; LANES], [0.0; LANES]);
    s.store(least, &mut least_of);
    s.store(at, &mut at_of);
    let all = least_of.into_iter().zip(at_of);
    let (_, at) = all.fold((f32::INFINITY, f32::INFINITY), |a, b| if b < a { b } else { a });
    at as usize % costs.len()
}
