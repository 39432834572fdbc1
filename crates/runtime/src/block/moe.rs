//! A mixture of experts with softmax routing.

use shardwright_format::Role;
use shardwright_format::model::{MoeSpec, SharedExpertSpec};
use shardwright_quant::{Activation, axpy};

use super::mlp::{self, activate, gated};
use super::ops::{rms_norm, sigmoid, softmax};
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
    x: Activation,
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
    4 * experts + picks * (4 * u64::from(spec.moe_intermediate_size) + hidden) + shared
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
    let norm = layer.unit.vector(Role::PostAttentionNorm, layer.hidden)?;
    let Work { linear, normed, moe, record, .. } = work;
    rms_norm(linear.backend, x, &norm, layer.eps, normed);
    record.note(Site::Ffn, normed);
    let experts = spec.num_experts as usize;
    let router = layer.unit.matrix(Role::Router, experts, layer.hidden)?;
    linear.project(normed, x.len() / layer.hidden, [(router, &mut moe.scores)]);
    record.note_scores(&moe.scores);
    for scores in moe.scores.chunks_exact_mut(experts) {
        pick(spec, scores, routes);
    }
    Ok(())
}

/// The `k` largest probabilities, in order; of equal ones the lower expert. Consumes `scores`.
fn pick(spec: &MoeSpec, scores: &mut [f32], routes: &mut Routes) {
    softmax(scores);
    let start = routes.weights.len();
    for _ in 0..spec.num_experts_per_tok {
        let mut best = 0;
        for (expert, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = expert;
            }
        }
        routes.experts.push(best as u32);
        routes.weights.push(scores[best]);
        scores[best] = f32::NEG_INFINITY;
    }
    if spec.norm_topk_prob {
        let picked = &mut routes.weights[start..];
        let sum: f32 = picked.iter().sum();
        for weight in picked {
            *weight /= sum;
        }
    }
}

/// Computes some of one token's experts, `(pick, weights)`, into their places of the outputs that
/// [`combine`] sums. `work.normed` is the token.
pub fn experts(
    spec: &MoeSpec,
    hidden: usize,
    picked: &[(usize, UnitView<'_>)],
    work: &mut Work,
) -> Result<()> {
    let (k, width) = (spec.num_experts_per_tok as usize, spec.moe_intermediate_size as usize);
    let backend = work.linear.backend;
    let b = &mut work.moe;
    b.x.set(backend, &work.normed);
    b.gate.resize(k * width, 0.0);
    b.up.resize(k * width, 0.0);
    b.out.resize(k * hidden, 0.0);
    b.inner.resize_with(k, Activation::new);
    let mut products = Vec::with_capacity(2 * picked.len());
    for (outs, role) in [(&mut b.gate, Role::ExpertGateProj), (&mut b.up, Role::ExpertUpProj)] {
        for (unit, out) in places(picked, outs, width) {
            products.push(Product { matrix: unit.matrix(role, width, hidden)?, x: &b.x, out });
        }
    }
    matvecs(backend, products);
    for &(pick, _) in picked {
        let range = pick * width..(pick + 1) * width;
        activate(&mut b.gate[range.clone()], &b.up[range.clone()]);
        b.inner[pick].set(backend, &b.gate[range]);
    }
    let mut products = Vec::with_capacity(picked.len());
    for ((unit, out), &(pick, _)) in places(picked, &mut b.out, hidden).zip(picked) {
        let matrix = unit.matrix(Role::ExpertDownProj, hidden, width)?;
        products.push(Product { matrix, x: &b.inner[pick], out });
    }
    matvecs(backend, products);
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

/// `sum += Σ weight · expert`, in order of the picks.
pub fn combine(hidden: usize, weights: &[f32], sum: &mut [f32], work: &Work) {
    for (weight, out) in weights.iter().zip(work.moe.out.chunks_exact(hidden)) {
        axpy(work.linear.backend, *weight, out, sum);
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
    use super::*;

    fn spec(norm_topk_prob: bool) -> MoeSpec {
        MoeSpec {
            num_experts: 4,
            num_experts_per_tok: 2,
            moe_intermediate_size: 1,
            norm_topk_prob,
            shared_expert: None,
        }
    }

    #[test]
    fn equal_scores_pick_the_lower_expert() {
        let mut routes = Routes::default();
        pick(&spec(true), &mut [0.0, 2.0, 1.0, 2.0], &mut routes);
        pick(&spec(true), &mut [1.0; 4], &mut routes);
        assert_eq!(routes.experts, [1, 3, 0, 1]);
        assert_eq!(routes.weights, [0.5; 4]);
    }

    #[test]
    fn probabilities_stay_as_they_are_without_norm_topk_prob() {
        let mut routes = Routes::default();
        pick(&spec(false), &mut [0.0; 4], &mut routes);
        assert_eq!(routes.weights, [0.25; 2]);
    }
}
