//! A mixture of experts: which rows go to which expert, what the experts make of them, and the sum
//! of it. One row or a whole text, the experts of one row or of all: the same functions.

use std::collections::BTreeSet;

use shardwright_format::Role;
use shardwright_format::model::{MoeSpec, SharedExpertSpec};
use shardwright_quant::{Backend, axpy};

use super::mlp::{self, Gated, Job};
use super::ops::{rms_norm_in_place, scale, sigmoid};
use super::router::Routes;
use super::{COPIES, Layer, Work};
use crate::error::Result;

/// Rows of several experts that are computed together at most, unless one token has more: below that
/// threads wait for each other.
const FEW_ROWS: usize = 16;

/// How many rows of different experts are computed together where a token has `picks`. The rows of one
/// expert always are.
pub fn rows_together(picks: usize) -> usize {
    picks.max(FEW_ROWS)
}

/// `f32` values that the buffers hold for `tokens` together, with the copies that products make of their
/// inputs.
pub fn buffer_len(spec: &MoeSpec, hidden: u64, tokens: u64) -> u64 {
    let (experts, picks) = (u64::from(spec.num_experts), u64::from(spec.num_experts_per_tok));
    let width = u64::from(spec.moe_intermediate_size);
    let shared = spec
        .shared_expert
        .as_ref()
        .map_or(0, |s| mlp::buffer_len(s.intermediate_size));
    let each = COPIES * tokens * (5 * experts + shared);
    let row = 4 * width + 3 * hidden;
    if tokens == 1 {
        return each + COPIES * picks * row;
    }
    // All rows of one expert, or few of some: of those every product has a copy of its own, and the largest stay.
    let few = rows_together(spec.num_experts_per_tok as usize) as u64;
    let kept = few * few.min(tokens) * hidden.max(width);
    each + COPIES * (tokens.max(few) * row + kept / 2) + (tokens - 1) * picks * hidden
}

/// A row that an expert is given.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Assignment {
    /// Which row.
    pub row: usize,
    /// What the expert's output is multiplied with; 0 for a row that the router did not send.
    pub weight: f32,
}

impl Assignment {
    /// 1 for a row that the router sent here, 0 for one that only makes up the number.
    fn picked(&self) -> f32 {
        if self.weight > 0.0 { 1.0 } else { 0.0 }
    }

    /// What its input is scaled by where weights are for inputs.
    fn on_input(&self) -> f32 {
        if self.weight > 0.0 { self.weight } else { 1.0 }
    }
}

/// The rows of one expert.
#[derive(Clone, Copy, Debug)]
pub struct ExpertBatch<'a> {
    /// Which expert.
    pub expert: u32,
    /// Ascending.
    pub rows: &'a [Assignment],
}

/// The rows of every expert.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertBatches {
    /// Per expert, its first assignment; one more at the end.
    starts: Vec<usize>,
    /// By expert, then by row.
    all: Vec<Assignment>,
}

impl ExpertBatches {
    /// Sorts picks by expert: counted, then placed, so that an expert's rows stay in order.
    pub fn new(routes: &Routes, experts: usize) -> Self {
        let mut starts = vec![0; experts + 1];
        for &expert in &routes.experts {
            starts[expert as usize + 1] += 1;
        }
        for i in 0..experts {
            starts[i + 1] += starts[i];
        }
        let mut next = starts.clone();
        let mut all = vec![Assignment::default(); routes.experts.len()];
        for (i, (&expert, &weight)) in routes.experts.iter().zip(&routes.weights).enumerate() {
            let place = &mut next[expert as usize];
            all[*place] = Assignment { row: i / routes.k, weight };
            *place += 1;
        }
        Self { starts, all }
    }

    /// Gives every expert at least `least` rows, as far as there are any: those with its highest
    /// `scores: [rows, experts]`, the lower row of equal ones, with weight 0.
    pub fn fill_up(&mut self, least: usize, scores: &[f32]) {
        let experts = self.starts.len() - 1;
        let (mut all, mut starts) = (Vec::with_capacity(self.all.len()), vec![0]);
        for expert in 0..experts {
            let mut batch = self.rows(expert as u32).to_vec();
            if batch.len() < least {
                let picked: BTreeSet<_> = batch.iter().map(|assigned| assigned.row).collect();
                let score = |row: &usize| scores[row * experts + expert];
                let mut others: Vec<usize> = (0..scores.len() / experts).collect();
                others.retain(|row| !picked.contains(row));
                // A stable sort: of rows with equal scores the lower one comes first.
                others.sort_by(|a, b| score(b).total_cmp(&score(a)));
                let others = others.into_iter().take(least - batch.len());
                batch.extend(others.map(|row| Assignment { row, weight: 0.0 }));
                // Rows ascend within an expert, whether picked or not: sums keep one order.
                batch.sort_by_key(|assigned| assigned.row);
            }
            all.extend(batch);
            starts.push(all.len());
        }
        *self = Self { starts, all };
    }

    /// Leaves only the rows of `experts`, ascending.
    pub fn retain(&mut self, experts: &[u32]) {
        let (mut all, mut starts) = (Vec::with_capacity(self.all.len()), vec![0]);
        for expert in 0..self.starts.len() as u32 - 1 {
            if experts.binary_search(&expert).is_ok() {
                all.extend_from_slice(self.rows(expert));
            }
            starts.push(all.len());
        }
        *self = Self { starts, all };
    }

    /// An expert's rows, ascending.
    fn rows(&self, expert: u32) -> &[Assignment] {
        &self.all[self.starts[expert as usize]..self.starts[expert as usize + 1]]
    }

    /// Experts that have rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = ExpertBatch<'_>> {
        let all = (0..self.starts.len() as u32 - 1)
            .map(|expert| ExpertBatch { expert, rows: self.rows(expert) });
        all.filter(|batch| !batch.rows.is_empty())
    }
}

/// What the routed experts of a layer have in common.
#[derive(Clone, Debug)]
pub struct Experts<'a> {
    spec: &'a MoeSpec,
    /// `[hidden]`.
    norm: Vec<f32>,
    eps: f32,
}

impl<'a> Experts<'a> {
    /// Those of `layer`.
    ///
    /// # Errors
    /// As [`Layer::norm`].
    pub fn new(layer: &Layer<'_>, spec: &'a MoeSpec) -> Result<Self> {
        let norm = layer.norm(Role::PostAttentionNorm, layer.hidden)?;
        Ok(Self { spec, norm, eps: layer.eps })
    }

    /// Values per row.
    pub const fn hidden(&self) -> usize {
        self.norm.len()
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.spec.num_experts as usize
    }

    /// Takes each job's rows of `x: [rows, hidden]` through its expert and leaves what comes out in
    /// `work.mlp.out`: first all rows of the first job, as `assigned` names them, then the next's.
    ///
    /// # Errors
    /// Weights that are not what the spec says.
    pub fn forward(
        &self,
        jobs: &[Job<'_>],
        assigned: &[Assignment],
        x: &[f32],
        work: &mut Work,
    ) -> Result<()> {
        let hidden = self.norm.len();
        let Work { linear, gathered, mlp, .. } = work;
        // A row that several experts picked is gathered, normed and multiplied once for each: the experts'
        // batches are then matrices like any others, and their products go to the threads together.
        gathered.clear();
        for assignment in assigned {
            gathered.extend_from_slice(&x[assignment.row * hidden..][..hidden]);
        }
        // Rows are normed here and not by the router: of a whole text they would take too much.
        rms_norm_in_place(linear.backend, gathered, &self.norm, self.eps);
        if self.spec.weights_on_input {
            for (assignment, x) in assigned.iter().zip(gathered.chunks_exact_mut(hidden)) {
                scale(x, assignment.on_input());
            }
        }
        Gated::expert(self.spec, hidden).forward(jobs, gathered, linear, mlp)
    }

    /// `sum[row] += weight · out` for one expert's rows `out`, in their order; the weight is one
    /// where the input had it. Experts must come in ascending order: then a row's sum does not
    /// depend on which rows and which experts were computed together.
    pub fn add(&self, backend: Backend, assigned: &[Assignment], out: &[f32], sum: &mut [f32]) {
        let hidden = self.norm.len();
        for (assignment, out) in assigned.iter().zip(out.chunks_exact(hidden)) {
            let on_input = self.spec.weights_on_input;
            let weight = if on_input { assignment.picked() } else { assignment.weight };
            axpy(backend, weight, out, &mut sum[assignment.row * hidden..][..hidden]);
        }
    }
}

/// `sum += sigmoid(shared_expert_gate · x) * shared(x)` for the rows `work.normed: [n, hidden]`.
pub fn shared(
    layer: &Layer<'_>,
    spec: &SharedExpertSpec,
    sum: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let hidden = layer.hidden;
    let Work { linear, normed, mlp, scores, .. } = work;
    let job = Job { unit: layer.unit, rows: normed.len() / hidden };
    Gated::shared(spec, hidden).forward(&[job], normed, linear, mlp)?;
    if spec.gated {
        let gate = layer.unit.matrix(Role::SharedExpertGate, 1, hidden)?;
        linear.project(None, normed, [(gate, &mut *scores)]);
    }
    let rows = sum
        .chunks_exact_mut(hidden)
        .zip(mlp.out.chunks_exact(hidden));
    for (row, (sum, out)) in rows.enumerate() {
        let weight = if spec.gated { sigmoid(scores[row]) } else { 1.0 };
        axpy(linear.backend, weight, out, sum);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_made_up_from_the_highest_scores_the_lower_row_first() {
        let routes = Routes { k: 1, experts: vec![1, 0, 1, 1], weights: vec![0.5; 4] };
        let mut batches = ExpertBatches::new(&routes, 2);
        assert_eq!(batches.rows(1).iter().map(|a| a.row).collect::<Vec<_>>(), [0, 2, 3]);
        // Scores of expert 0: rows 2 and 3 are equal, row 0 is lower.
        batches.fill_up(2, &[0.1, 0.9, 0.9, 0.1, 0.4, 0.6, 0.4, 0.6]);
        let filled = [Assignment { row: 1, weight: 0.5 }, Assignment { row: 2, weight: 0.0 }];
        assert_eq!(batches.rows(0), filled);
        assert_eq!(batches.rows(1).len(), 3);
        batches.retain(&[1]);
        assert_eq!((batches.rows(0).len(), batches.rows(1).len()), (0, 3));
    }
}
