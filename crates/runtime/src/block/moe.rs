//! A mixture of experts.

use shardwright_format::Role;
use shardwright_format::model::{GroupLimit, MoeSpec, Scoring, SharedExpertSpec};
use shardwright_quant::{Activation, axpy};

use super::mlp::{self, EXPERT_BIASES, activate, gated};
use super::ops::{add, add_bias, rms_norm, sigmoid, softmax};
use super::record::Site;
use super::{Layer, Work};
use crate::error::Result;
use crate::linear::{Product, matvecs};
use crate::view::UnitView;

/// Buffers of this mechanism, for `k` experts of one token.
#[derive(Debug, Default)]
pub struct Buffers {
    /// Router scores `[n, experts]`, or the shared expert's gate `[n, 1]`.
    scores: Vec<f32>,
    /// `[k, width]`.
    gate: Vec<f32>,
    /// `[k, width]`.
    up: Vec<f32>,
    /// `[k, hidden]`.
    out: Vec<f32>,
    /// The token, or one per pick where weights scale it.
    inputs: Vec<Activation>,
    /// One per pick.
    inner: Vec<Activation>,
}

/// `f32` values that [`Buffers`] hold for one token.
pub fn buffer_len(spec: &MoeSpec, hidden: u64) -> u64 {
    let (experts, picks) = (u64::from(spec.num_experts), u64::from(spec.num_experts_per_tok));
    let shared = spec
        .shared_expert
        .as_ref()
        .map_or(0, |s| mlp::buffer_len(s.intermediate_size));
    let scaled = if spec.weights_on_input { picks * hidden } else { hidden };
    5 * experts + picks * (4 * u64::from(spec.moe_intermediate_size) + hidden) + scaled + shared
}

/// Picks of some tokens: `[n, k]`, the likeliest expert first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Picks per token.
    pub k: usize,
    /// Which experts.
    pub experts: Vec<u32>,
    /// What their outputs are multiplied with.
    pub weights: Vec<f32>,
}

impl Routes {
    /// No tokens yet, `k` picks each.
    pub fn clear(&mut self, k: usize) {
        self.k = k;
        self.experts.clear();
        self.weights.clear();
    }
}

/// Leaves `norm(x)` in `work.normed` and appends each row's picks, for `x: [n, hidden]`.
pub fn route(
    layer: &Layer<'_>,
    spec: &MoeSpec,
    x: &[f32],
    work: &mut Work,
    routes: &mut Routes,
) -> Result<()> {
    let norm = layer.norm(Role::PostAttentionNorm, layer.hidden)?;
    let Work { linear, normed, moe, record, .. } = work;
    rms_norm(linear.backend, x, &norm, layer.eps, normed);
    record.note(Site::Ffn, normed);
    let experts = spec.num_experts as usize;
    let router = layer.unit.matrix(Role::Router, experts, layer.hidden)?;
    linear.project(normed, x.len() / layer.hidden, [(router, &mut moe.scores)]);
    if spec.router_bias {
        add_bias(&mut moe.scores, &layer.unit.vector(Role::RouterBias, experts)?);
    }
    record.note_scores(&moe.scores);
    let correction = || layer.unit.vector(Role::CorrectionBias, experts);
    let correction = spec.correction_bias.then(correction).transpose()?;
    for scores in moe.scores.chunks_exact_mut(experts) {
        pick(spec, scores, correction.as_deref().unwrap_or_default(), routes);
    }
    Ok(())
}

/// The experts with the `k` largest weights, corrected and limited to the best groups, in order; of
/// equal ones the lower expert. Makes weights of `scores`.
fn pick(spec: &MoeSpec, scores: &mut [f32], correction: &[f32], routes: &mut Routes) {
    match spec.scoring {
        Scoring::Softmax => softmax(scores),
        Scoring::Sigmoid => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
    }
    let mut choice = scores.to_vec();
    choice.iter_mut().zip(correction).for_each(|(c, b)| *c += b);
    if let Some(limit) = spec.groups {
        limit_groups(limit, &mut choice);
    }
    let start = routes.weights.len();
    for _ in 0..spec.num_experts_per_tok {
        let best = largest(&choice);
        routes.experts.push(best as u32);
        routes.weights.push(scores[best]);
        choice[best] = f32::NEG_INFINITY;
    }
    let picked = &mut routes.weights[start..];
    let sum: f32 = if spec.norm_topk_prob { picked.iter().sum() } else { 1.0 };
    let scale = spec.routed_scaling_factor.unwrap_or(1.0);
    for weight in picked {
        *weight = *weight / sum * scale;
    }
}

/// The first of the largest values.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = i;
        }
    }
    best
}

/// Takes all experts but those of the best groups out of the choice; a group counts as the sum of
/// its two best experts (DeepSeek-V3, arXiv 2412.19437).
fn limit_groups(limit: GroupLimit, choice: &mut [f32]) {
    let size = choice.len() / limit.groups as usize;
    let best_two = |group: &[f32]| {
        let first = largest(group);
        let rest = group.iter().enumerate().filter(|(i, _)| *i != first);
        group[first] + rest.map(|(_, c)| *c).fold(f32::NEG_INFINITY, f32::max)
    };
    let mut groups: Vec<f32> = choice.chunks_exact(size).map(best_two).collect();
    let mut open = vec![false; groups.len()];
    for _ in 0..limit.picked {
        let best = largest(&groups);
        (open[best], groups[best]) = (true, f32::NEG_INFINITY);
    }
    for (group, _) in choice
        .chunks_exact_mut(size)
        .zip(open)
        .filter(|(_, open)| !open)
    {
        group.fill(f32::NEG_INFINITY);
    }
}

/// Computes some of one token's experts, `(pick, unit)`, into their places of the outputs that
/// [`combine`] sums. `work.normed` is the token, `weights` are those of its picks.
pub fn experts(
    spec: &MoeSpec,
    hidden: usize,
    weights: &[f32],
    picked: &[(usize, UnitView<'_>)],
    work: &mut Work,
) -> Result<()> {
    let (k, width) = (spec.num_experts_per_tok as usize, spec.moe_intermediate_size as usize);
    let backend = work.linear.backend;
    let b = &mut work.moe;
    b.inputs
        .resize_with(if spec.weights_on_input { k } else { 1 }, Activation::new);
    if spec.weights_on_input {
        for (input, weight) in b.inputs.iter_mut().zip(weights) {
            let scaled: Vec<f32> = work.normed.iter().map(|x| x * weight).collect();
            input.set(backend, &scaled);
        }
    } else {
        b.inputs[0].set(backend, &work.normed);
    }
    b.gate.resize(k * width, 0.0);
    b.up.resize(k * width, 0.0);
    b.out.resize(k * hidden, 0.0);
    b.inner.resize_with(k, Activation::new);
    let mut products = Vec::with_capacity(2 * picked.len());
    for (outs, role) in [(&mut b.gate, Role::ExpertGateProj), (&mut b.up, Role::ExpertUpProj)] {
        for ((unit, out), &(pick, _)) in places(picked, outs, width).zip(picked) {
            let x = b.inputs.get(pick).unwrap_or(&b.inputs[0]);
            products.push(Product { matrix: unit.matrix(role, width, hidden)?, x, out });
        }
    }
    matvecs(backend, products);
    let [gate_bias, up_bias, down_bias] = EXPERT_BIASES;
    for &(pick, unit) in picked {
        let range = pick * width..(pick + 1) * width;
        if spec.expert_bias {
            add(&mut b.gate[range.clone()], &unit.vector(gate_bias, width)?);
            add(&mut b.up[range.clone()], &unit.vector(up_bias, width)?);
        }
        activate(spec.activation, &mut b.gate[range.clone()], &b.up[range.clone()]);
        b.inner[pick].set(backend, &b.gate[range]);
    }
    let mut products = Vec::with_capacity(picked.len());
    for ((unit, out), &(pick, _)) in places(picked, &mut b.out, hidden).zip(picked) {
        let matrix = unit.matrix(Role::ExpertDownProj, hidden, width)?;
        products.push(Product { matrix, x: &b.inner[pick], out });
    }
    matvecs(backend, products);
    if spec.expert_bias {
        for (unit, out) in places(picked, &mut b.out, hidden) {
            add(out, &unit.vector(down_bias, hidden)?);
        }
    }
    Ok(())
}

/// Pairs each of `picked`, ascending, with its `width` values of `outs`.
fn places<'a, 'u>(
    picked: &'a [(usize, UnitView<'u>)],
    outs: &'a mut [f32],
    width: usize,
) -> impl Iterator<Item = (UnitView<'u>, &'a mut [f32])> {
    let mut picked = picked.iter().peekable();
    outs.chunks_mut(width)
        .enumerate()
        .filter_map(move |(i, out)| {
            let (_, unit) = picked.next_if(|(pick, _)| *pick == i)?;
            Some((*unit, out))
        })
}

/// `sum += Σ weight · expert`, in order of the picks; the weight is one where the input had it.
pub fn combine(spec: &MoeSpec, hidden: usize, weights: &[f32], sum: &mut [f32], work: &Work) {
    for (weight, out) in weights.iter().zip(work.moe.out.chunks_exact(hidden)) {
        let weight = if spec.weights_on_input { 1.0 } else { *weight };
        axpy(work.linear.backend, weight, out, sum);
    }
}

/// `sum += sigmoid(shared_expert_gate · x) * shared(x)` for the rows `work.normed: [n, hidden]`.
pub fn shared(
    layer: &Layer<'_>,
    spec: &SharedExpertSpec,
    sum: &mut [f32],
    work: &mut Work,
) -> Result<()> {
    let (unit, hidden) = (&layer.unit, layer.hidden);
    let Work { linear, normed, mlp, moe, record, .. } = work;
    let shape = (spec.intermediate_size as usize, hidden);
    gated(unit, mlp::SHARED, shape, normed, (linear, mlp, record))?;
    if spec.gated {
        let gate = unit.matrix(Role::SharedExpertGate, 1, hidden)?;
        linear.project(normed, normed.len() / hidden, [(gate, &mut moe.scores)]);
    }
    for (row, (sum, out)) in sum
        .chunks_exact_mut(hidden)
        .zip(mlp.out.chunks_exact(hidden))
        .enumerate()
    {
        let weight = if spec.gated { sigmoid(moe.scores[row]) } else { 1.0 };
        axpy(linear.backend, weight, out, sum);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use shardwright_format::model::GateActivation;

    use super::*;

    fn spec(norm_topk_prob: bool) -> MoeSpec {
        MoeSpec {
            num_experts: 4,
            num_experts_per_tok: 2,
            moe_intermediate_size: 1,
            norm_topk_prob,
            shared_expert: None,
            scoring: Scoring::Softmax,
            router_bias: false,
            correction_bias: false,
            groups: None,
            routed_scaling_factor: None,
            weights_on_input: false,
            expert_bias: false,
            activation: GateActivation::Silu,
        }
    }

    #[test]
    fn groups_count_as_their_two_best() {
        let mut choice = [0.9, 0.1, 0.6, 0.6, 0.0, 0.7];
        limit_groups(GroupLimit { groups: 3, picked: 1 }, &mut choice);
        let shut = f32::NEG_INFINITY;
        assert_eq!(choice, [shut, shut, 0.6, 0.6, shut, shut]);
    }

    #[test]
    fn a_correction_counts_for_picking_only() {
        let spec =
            MoeSpec { scoring: Scoring::Sigmoid, routed_scaling_factor: Some(2.0), ..spec(true) };
        let mut routes = Routes::default();
        pick(&spec, &mut [0.0; 4], &[0.0, 0.0, 1.0, 0.5], &mut routes);
        assert_eq!((routes.experts, routes.weights), (vec![2, 3], vec![1.0; 2]));
    }

    #[test]
    fn equal_scores_pick_the_lower_expert() {
        let mut routes = Routes::default();
        pick(&spec(true), &mut [0.0, 2.0, 1.0, 2.0], &[], &mut routes);
        pick(&spec(true), &mut [1.0; 4], &[], &mut routes);
        assert_eq!(routes.experts, [1, 3, 0, 1]);
        assert_eq!(routes.weights, [0.5; 4]);
    }

    #[test]
    fn probabilities_stay_as_they_are_without_norm_topk_prob() {
        let mut routes = Routes::default();
        pick(&spec(false), &mut [0.0; 4], &[], &mut routes);
        assert_eq!(routes.weights, [0.25; 2]);
    }
}
