//! Rows of an architecture table about feed-forwards, and the flags that all rows share.

use serde::Deserialize;

use crate::model::{GateActivation, Scoring};

/// True, false, or what a parameter says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Flag {
    Fixed(bool),
    Parameter(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MlpRow {
    pub(super) bias: Flag,
    #[serde(default)]
    pub(super) activation: GateActivation,
    /// Parameter with its width, if not `intermediate_size`.
    pub(super) intermediate_size: Option<String>,
    /// How the width follows from that parameter, where it is not the width itself.
    pub(super) adjusted: Option<AdjustRow>,
    /// There is no gate.
    #[serde(default)]
    pub(super) ungated: bool,
    /// What goes into the down projection is normed.
    #[serde(default)]
    pub(super) inner_norm: bool,
}

/// A width of two thirds, times a multiplier that rounds it up to a multiple.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdjustRow {
    /// Whether it is so.
    pub(super) switch: Flag,
    /// Parameter with the multiplier; null leaves two thirds as they are.
    pub(super) multiplier: String,
    /// Parameter with what divides the width.
    pub(super) multiple_of: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoeRow {
    pub(super) layers: SparseLayers,
    pub(super) num_experts: String,
    pub(super) intermediate_size: String,
    pub(super) norm_topk_prob: Flag,
    pub(super) shared_expert: Option<SharedRow>,
    #[serde(default)]
    pub(super) scoring: Scoring,
    #[serde(default)]
    pub(super) router_bias: bool,
    #[serde(default)]
    pub(super) correction_bias: bool,
    pub(super) groups: Option<GroupsRow>,
    pub(super) routed_scaling_factor: Option<String>,
    #[serde(default)]
    pub(super) weights_on_input: bool,
    #[serde(default)]
    pub(super) expert_bias: bool,
    pub(super) clamped_swiglu: Option<ClampRow>,
}

/// Parameters of a limit to some groups of experts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GroupsRow {
    pub(super) groups: String,
    pub(super) picked: String,
    /// Groups count as their best expert, not as the sum of the best two.
    #[serde(default)]
    pub(super) by_best: bool,
    /// Parameter with the rule: `greedy` has no groups.
    pub(super) method: Option<String>,
}

/// Parameters of a clamped activation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClampRow {
    pub(super) limit: String,
    pub(super) alpha: String,
}

/// Which layers have experts.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SparseLayers {
    All,
    /// Every `decoder_sparse_step`-th but those in `mlp_only_layers`.
    SparseStep,
    /// From the number that a parameter gives.
    From(String),
    /// Those in `moe_layers`; every `interleave_moe_layer_step`-th where it is null.
    Interleaved,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedRow {
    pub(super) intermediate_size: String,
    /// Parameter with the number of shared experts, side by side as one.
    pub(super) count: Option<String>,
    pub(super) gated: bool,
}
