//! Which experts a row goes to.

use shardwright_format::Role;
use shardwright_format::model::{GroupLimit, MoeSpec, Scoring};

use super::capture::InputSite;
use super::ops::{add_bias, rms_norm, sigmoid, softmax};
use super::{Layer, Work};
use crate::error::Result;

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

    /// What an error of each of `0..experts` counts for in the layer's output: it adds to a token's output by its
    /// weight there, and to the square of that by the weight's square.
    pub fn uses(&self, experts: u32) -> Vec<f64> {
        let mut used = vec![0.0; experts as usize];
        for (expert, weight) in self.experts.iter().zip(&self.weights) {
            used[*expert as usize] += f64::from(*weight).powi(2);
        }
        used
    }

    /// At most `limit` of the experts `0..experts`, those with most [`Self::uses`], ascending; of equal ones the lower.
    pub fn most_used(&self, experts: u32, limit: usize) -> Vec<u32> {
        let used = self.uses(experts);
        let mut most: Vec<u32> = (0..experts).collect();
        most.sort_by(|a, b| used[*b as usize].total_cmp(&used[*a as usize]));
        most.truncate(limit);
        most.sort_unstable();
        most
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
    let Work { linear, normed, scores, .. } = work;
    rms_norm(linear.backend, x, &norm, layer.eps, normed);
    let experts = spec.num_experts as usize;
    let router = layer.unit.matrix(Role::Router, experts, layer.hidden)?;
    linear.project(InputSite::Ffn, normed, [(router, &mut *scores)]);
    if spec.router_bias {
        add_bias(scores, &layer.unit.vector(Role::RouterBias, experts)?);
    }
    linear.captures.keep_scores(scores);
    let correction = || layer.unit.vector(Role::CorrectionBias, experts);
    let correction = spec.correction_bias.then(correction).transpose()?;
    for scores in scores.chunks_exact_mut(experts) {
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
    // A correction and the limit to groups decide who is picked, never with what weight.
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
/// its two best experts (DeepSeek-V3, arXiv 2412.19437), or as its best.
fn limit_groups(limit: GroupLimit, choice: &mut [f32]) {
    let size = choice.len() / limit.groups as usize;
    let best_two = |group: &[f32]| {
        let first = largest(group);
        if limit.by_best {
            return group[first];
        }
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
    fn groups_count_as_their_two_best_or_as_their_best() {
        let all = [0.9, 0.1, 0.6, 0.6, 0.0, 0.7];
        let left = |by_best| {
            let mut choice = all;
            limit_groups(GroupLimit { groups: 3, picked: 1, by_best }, &mut choice);
            choice
        };
        let shut = f32::NEG_INFINITY;
        assert_eq!(left(false), [shut, shut, 0.6, 0.6, shut, shut]);
        assert_eq!(left(true), [0.9, 0.1, shut, shut, shut, shut]);
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
