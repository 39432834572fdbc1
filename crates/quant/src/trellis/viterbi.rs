//! The choice of a stream: the best cyclic path through the trellis of one column of a tile.
//!
//! Row `i` is in state `s[i]`, and `s[i + 1] = s[i] >> bits | new << (state_bits - bits)`. The rows are
//! gone through from last to first, for then the states that can stand behind `s` are
//! `s >> bits | t << (state_bits - bits)`: those of a *group*, the `2^bits` states `s` that agree but
//! for their lowest bits, are the same. So a group has one best continuation `t`, its *choice*.
//!
//! A stream is cyclic, which the algorithm of Viterbi is not. As in QTIP (arXiv 2406.11235, section
//! 3.2), one run over the rows around the seam, last rows before first, finds the bits that both sides
//! of the seam share; a second run over all rows is bound to them.

use super::rotate::Line;
use super::stream::value;
use crate::encoding::Trellis;
use crate::kernel::{LANES, Simd};
use crate::pack::pack;

/// Rows on each side of the seam that the first run looks at, in lengths of a state: the paths of a
/// trellis have merged long before.
const REACH: usize = 6;

/// A column is short, and its seam weighs, up to this many lengths of a state. Then the seam is moved
/// on and the run repeated, bound to the path so far: no round makes it worse.
const SHORT: usize = 24;

/// Rows that the seam of a short column moves in a round, coprime to the rows.
const SHIFT: usize = 3;

/// Chooses streams. It owns the buffers, about `2^state_bits` · 12 bytes and, for 256 rows,
/// `2^(state_bits - bits)` · 256 bytes.
pub struct Encoder {
    trellis: Trellis,
    /// The value of each state.
    values: Vec<Line>,
    /// The least cost of the rows from here to the last, for each state of this row.
    costs: Vec<Line>,
    /// The same for the row before.
    next: Vec<Line>,
    /// The choice of every group, rows in the order of a run.
    choices: Vec<[u8; LANES]>,
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
        let lines = (1 << trellis.state_bits()) / LANES;
        let line = |i: usize| Line(std::array::from_fn(|l| value((LANES * i + l) as u32)));
        Self {
            trellis,
            values: (0..lines).map(line).collect(),
            costs: vec![Line([0.0; LANES]); lines],
            next: vec![Line([0.0; LANES]); lines],
            choices: Vec::new(),
            codes: Vec::new(),
        }
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
            2 => self.column::<S, 2, 4>(s, column, stream, values),
            3 => self.column::<S, 3, 8>(s, column, stream, values),
            _ => self.column::<S, 4, 16>(s, column, stream, values),
        }
    }

    #[inline(always)]
    fn column<S: Simd, const BITS: usize, const CODES: usize>(
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
        let start = self.run::<S, BITS, CODES>(s, column, &seam);
        let last = self.path::<BITS>(start).nth(reach - 1).unwrap_or(start);
        // From here on the path is closed: what is kept begins and ends with the same overlap.
        let mut run = RowSpan { first: 0, rows, overlap: Some(last >> BITS) };
        for round in 0..=SHORT * self.state_bits() / (rows * BITS) {
            if round > 0 {
                run.first = SHIFT * round % rows;
                run.overlap = Some(self.overlap::<BITS>(run.first));
            }
            let start = self.run::<S, BITS, CODES>(s, column, &run);
            self.keep::<BITS>(start, run.first, values);
        }
        pack(BITS as u8, &self.codes, stream);
    }

    /// Takes the path of the last run, over all rows from `first` on, for the column's.
    #[inline(always)]
    fn keep<const BITS: usize>(&mut self, start: usize, first: usize, values: &mut [f32]) {
        let mut codes = std::mem::take(&mut self.codes);
        codes.resize(values.len(), 0);
        let (before, after) = values.split_at_mut(first);
        let (codes_before, codes_after) = codes.split_at_mut(first);
        let values = after.iter_mut().chain(before);
        let rows = values.zip(codes_after.iter_mut().chain(codes_before));
        for (state, (value_of, code)) in self.path::<BITS>(start).zip(rows) {
            *code = (state % (1 << BITS)) as u8;
            *value_of = value(state as u32);
        }
        self.codes = codes;
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

    /// The states of the last run's rows from `start`, that of its first row. The number after the
    /// last row means nothing.
    #[inline(always)]
    fn path<const BITS: usize>(&self, start: usize) -> impl Iterator<Item = usize> {
        // Forward again: a state drops its lowest code and takes on its group's choice on top.
        let groups_log = self.state_bits() - BITS;
        let choices = self.choices.as_flattened().chunks_exact(1 << groups_log);
        choices.scan(start, move |next, choices| {
            let state = *next;
            let group = state >> BITS;
            *next = group | usize::from(choices[group]) << groups_log;
            Some(state)
        })
    }

    /// Goes through the rows of `run` from last to first; leaves the choices and returns the best
    /// state of its first row.
    #[inline(always)]
    fn run<S: Simd, const BITS: usize, const CODES: usize>(
        &mut self,
        s: S,
        column: Column<'_>,
        run: &RowSpan,
    ) -> usize {
        let groups = 1 << (self.state_bits() - BITS);
        self.begin::<CODES>(run.overlap);
        self.choices.resize(run.rows * groups / LANES, [0; LANES]);
        // `costs` is what the rows behind cost at best, for each state of the row in hand; after the
        // first row of the run it is the whole cost, so its least state begins the best path.
        let rows = self.choices.chunks_exact_mut(groups / LANES).enumerate();
        for (row, choices) in rows.rev() {
            let row = (run.first + row) % column.targets.len();
            let root = column.weights[row].sqrt();
            let line = [root, -root * column.targets[row]];
            step::<S, BITS, CODES>(s, &self.costs, &mut self.next, &self.values, choices, line);
            std::mem::swap(&mut self.costs, &mut self.next);
        }
        match run.overlap {
            None => best(s, &self.costs),
            Some(overlap) => self.best_of(overlap, groups),
        }
    }

    /// The costs behind the last row: any state may follow, or those that begin with the overlap.
    fn begin<const CODES: usize>(&mut self, overlap: Option<usize>) {
        let Some(overlap) = overlap else {
            self.costs.fill(Line([0.0; LANES]));
            return;
        };
        self.costs.fill(Line([f32::MAX; LANES]));
        let groups = self.costs.len() * LANES / CODES;
        for t in 0..CODES {
            let state = overlap + t * groups;
            self.costs[state / LANES].0[state % LANES] = 0.0;
        }
    }

    /// The best state that begins with `overlap`, the lowest of equals.
    fn best_of(&self, overlap: usize, groups: usize) -> usize {
        let cost = |state: usize| self.costs[state / LANES].0[state % LANES];
        let states = (overlap..self.costs.len() * LANES).step_by(groups);
        states.fold(overlap, |best, state| if cost(state) < cost(best) { state } else { best })
    }
}

/// One row: `next[s] = min over t of costs[s >> BITS | t << (state_bits - BITS)] + error(s)²`, where
/// `error = root · value - root · target`, `line` being the two factors.
///
/// The choice takes the place of a cost's lowest bits, so that one minimum finds both; of equal costs
/// the lowest choice is taken.
#[inline(always)]
fn step<S: Simd, const BITS: usize, const CODES: usize>(
    s: S,
    costs: &[Line],
    next: &mut [Line],
    values: &[Line],
    choices: &mut [[u8; LANES]],
    line: [f32; 2],
) {
    let groups = choices.len();
    let behind: [&[Line]; CODES] = std::array::from_fn(|t| &costs[t * groups..(t + 1) * groups]);
    let (root, target) = (s.splat(line[0]), s.splat(line[1]));
    let (code, rest) = (s.splat_bits(CODES as u32 - 1), s.splat_bits(!(CODES as u32 - 1)));
    let next = next.as_chunks_mut::<CODES>().0.iter_mut();
    let lines = next.zip(values.as_chunks::<CODES>().0).zip(choices);
    for (group, ((next, values), choices)) in lines.enumerate() {
        let mut least = s.splat(f32::INFINITY);
        // Costs are not negative, so their bits are ordered as they are, and rounding the lowest
        // ones away moves a cost by less than its own rounding.
        for (t, behind) in behind.iter().enumerate() {
            let cost = s.and(s.to_bits(s.load(&behind[group].0)), rest);
            least = s.min(s.with_bits(s.or(cost, s.splat_bits(t as u32))), least);
        }
        s.store_bytes(s.and(s.to_bits(least), code), choices);
        // The states of a group differ in their lowest bits alone: one continuation serves all.
        for part in 0..CODES {
            let error = s.mul_add(s.load(&values[part].0), root, target);
            let before = s.spread::<BITS>(least, part);
            s.store(s.mul_add(error, error, before), &mut next[part].0);
        }
    }
}

/// The state of least cost, the lowest of equals.
#[inline(always)]
fn best<S: Simd>(s: S, costs: &[Line]) -> usize {
    // States are below 2^16: exact as floats.
    let lanes: [f32; LANES] = std::array::from_fn(|l| l as f32);
    let mut state = s.load(&lanes);
    let (mut least, mut at) = (s.splat(f32::INFINITY), state);
    for line in costs {
        let cost = s.load(&line.0);
        at = s.select_less(cost, least, state, at);
        least = s.min(cost, least);
        state = s.add(state, s.splat(LANES as f32));
    }
    let (mut least_of, mut at_of) = ([0.0; LANES], [0.0; LANES]);
    s.store(least, &mut least_of);
    s.store(at, &mut at_of);
    let all = least_of.into_iter().zip(at_of);
    let (_, at) = all.fold((f32::INFINITY, f32::INFINITY), |a, b| if b < a { b } else { a });
    at as usize % (costs.len() * LANES)
}
