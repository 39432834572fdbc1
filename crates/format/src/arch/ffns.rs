//! The feed-forward of each layer.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Arch;
use super::config::{Config, MAX_COUNT, MAX_SIZE};
use super::ffn_rows::{AdjustRow, ClampRow, GroupsRow, MoeRow, SharedRow, SparseLayers};
use crate::error::{FormatError, Result};
use crate::model::{DenseSpec, Ffn, GateActivation, GroupLimit, MoeSpec, SharedExpertSpec};

impl Arch {
    /// The feed-forward of each layer.
    pub(super) fn ffns(&self, config: &Config<'_>, count: u32) -> Result<Vec<Ffn>> {
        let sparse = self.sparse_layers(config, count)?;
        let moe = if sparse.contains(&true) { self.moe(config)? } else { None };
        let dense = if sparse.contains(&false) { self.dense(config)? } else { None };
        let ffn = |sparse| {
            let (ffn, row) = if sparse { (&moe, "moe") } else { (&dense, "mlp") };
            ffn.clone()
                .ok_or_else(|| FormatError::file(&self.path, format!("expected `{row}`")))
        };
        sparse.into_iter().map(ffn).collect()
    }

    /// Whether each layer has experts.
    fn sparse_layers(&self, config: &Config<'_>, count: u32) -> Result<Vec<bool>> {
        let all = |sparse: &dyn Fn(u32) -> bool| (0..count).map(sparse).collect();
        Ok(match self.table.moe.as_ref().map(|row| &row.layers) {
            None => all(&|_| false),
            Some(SparseLayers::All) => all(&|_| true),
            Some(SparseLayers::From(name)) => {
                let first = config.size(name, 0..=u32::MAX)?;
                all(&|layer| layer >= first)
            }
            Some(SparseLayers::SparseStep) => {
                let step = config.size("decoder_sparse_step", 1..=u32::MAX)?;
                let dense = numbers(config, "mlp_only_layers")?.unwrap_or_default();
                all(&|layer| (layer + 1).is_multiple_of(step) && !dense.contains(&layer))
            }
            Some(SparseLayers::Interleaved) => {
                if let Some(sparse) = numbers(config, "moe_layers")? {
                    return Ok(all(&|layer| sparse.contains(&layer)));
                }
                let step = config.size("interleave_moe_layer_step", 1..=u32::MAX)?;
                all(&|layer| (layer + 1).is_multiple_of(step))
            }
        })
    }

    fn dense(&self, config: &Config<'_>) -> Result<Option<Ffn>> {
        let Some(row) = &self.table.mlp else { return Ok(None) };
        let width = row
            .intermediate_size
            .as_deref()
            .unwrap_or("intermediate_size");
        let mut intermediate_size = config.size(width, 1..=MAX_SIZE)?;
        if let Some(row) = &row.adjusted {
            intermediate_size = adjusted(config, row, intermediate_size)?;
        }
        Ok(Some(Ffn::Dense(DenseSpec {
            intermediate_size,
            bias: config.flag(&row.bias)?,
            activation: row.activation,
            ungated: row.ungated,
            inner_norm: row.inner_norm,
        })))
    }

    fn moe(&self, config: &Config<'_>) -> Result<Option<Ffn>> {
        let Some(row) = &self.table.moe else { return Ok(None) };
        let num_experts = config.size(&row.num_experts, 1..=MAX_COUNT)?;
        let scale = row.routed_scaling_factor.as_ref();
        let scale = scale.map_or(Ok(None), |name| config.optional_number(name))?;
        Ok(Some(Ffn::Moe(MoeSpec {
            num_experts,
            num_experts_per_tok: config.size("num_experts_per_tok", 1..=num_experts)?,
            moe_intermediate_size: config.size(&row.intermediate_size, 1..=MAX_SIZE)?,
            norm_topk_prob: config.flag(&row.norm_topk_prob)?,
            shared_expert: shared_expert(config, row)?,
            scoring: row.scoring,
            router_bias: row.router_bias,
            correction_bias: row.correction_bias,
            groups: row
                .groups
                .as_ref()
                .map_or(Ok(None), |row| groups(config, row, num_experts))?,
            routed_scaling_factor: scale.filter(|scale| *scale != 1.0),
            weights_on_input: row.weights_on_input,
            expert_bias: row.expert_bias,
            activation: activation(config, row.clamped_swiglu.as_ref())?,
        })))
    }
}

/// The width that follows from `size`, as Llama's first code computed it.
fn adjusted(config: &Config<'_>, row: &AdjustRow, size: u32) -> Result<u32> {
    if !config.flag(&row.switch)? {
        return Ok(size);
    }
    let two_thirds = 2 * u64::from(size) / 3;
    let Some(multiplier) = config.optional_number(&row.multiplier)? else {
        return Ok(two_thirds as u32);
    };
    let multiple = u64::from(config.size(&row.multiple_of, 1..=MAX_SIZE)?);
    let width = (f64::from(multiplier) * two_thirds as f64) as u64;
    let width = width.min(u64::from(MAX_SIZE)).next_multiple_of(multiple);
    Ok(u32::try_from(width).unwrap_or(u32::MAX))
}

/// A list of layers, or none when the parameter is null.
pub(super) fn numbers(config: &Config<'_>, name: &str) -> Result<Option<BTreeSet<u32>>> {
    let Some(list) = config.list(name)? else { return Ok(None) };
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok());
    let numbers = list.iter().map(number).collect::<Option<_>>();
    let refused = || config.refused(format!("`{name}`: expected a list of layer numbers"));
    numbers.ok_or_else(refused).map(Some)
}

fn shared_expert(config: &Config<'_>, row: &MoeRow) -> Result<Option<SharedExpertSpec>> {
    let Some(SharedRow { intermediate_size, count, gated }) = &row.shared_expert else {
        return Ok(None);
    };
    let count = count
        .as_ref()
        .map_or(Ok(Some(1)), |name| config.optional_size(name, 0..=MAX_COUNT))?;
    let Some(count) = count.filter(|count| *count > 0) else { return Ok(None) };
    let width = config.size(intermediate_size, 1..=MAX_SIZE / count)?;
    Ok(Some(SharedExpertSpec { intermediate_size: count * width, gated: *gated }))
}

/// A limit to some groups; none where all experts are in one or all groups are picked.
fn groups(config: &Config<'_>, row: &GroupsRow, experts: u32) -> Result<Option<GroupLimit>> {
    let method = row
        .method
        .as_ref()
        .map_or(Ok(None), |name| config.text(name))?;
    if method.as_deref() == Some("greedy") {
        return Ok(None);
    }
    let groups = config
        .optional_size(&row.groups, 1..=MAX_COUNT)?
        .unwrap_or(1);
    if !experts.is_multiple_of(groups) {
        let expected = format!("a divisor of the {experts} experts");
        return Err(config.unexpected(&row.groups, &expected, Some(&Value::from(groups))));
    }
    let picked = config
        .optional_size(&row.picked, 1..=groups)?
        .unwrap_or(groups);
    // Every pick lies in a picked group.
    config.size("num_experts_per_tok", 1..=experts / groups * picked)?;
    Ok((picked < groups).then_some(GroupLimit { groups, picked, by_best: row.by_best }))
}

fn activation(config: &Config<'_>, row: Option<&ClampRow>) -> Result<GateActivation> {
    let Some(row) = row else { return Ok(GateActivation::Silu) };
    let (limit, alpha) = (config.number(&row.limit)?, config.number(&row.alpha)?);
    Ok(GateActivation::ClampedSwiglu { limit, alpha })
}
