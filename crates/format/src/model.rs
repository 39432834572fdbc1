//! The model as a plain value: everything a runtime must know besides the weights.

use serde::{Deserialize, Serialize};

/// A decoder-only language model. Stored in the manifest, so that a runtime needs no other config.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// The checkpoint's `model_type`.
    pub model_type: String,
    /// Rows of the embedding and the head.
    pub vocab_size: u32,
    /// Width of the residual stream.
    pub hidden_size: u32,
    /// The head's weights are the embedding's.
    pub tie_word_embeddings: bool,
    /// Added to the mean square inside every RMS norm.
    pub rms_norm_eps: f32,
    /// Positions the model was made for.
    pub max_position_embeddings: u32,
    /// Tokens that end generation.
    pub eos_token_ids: Vec<u32>,
    /// Token put before a text, where the tokenizer wants one.
    pub bos_token_id: Option<u32>,
    /// RMS norms multiply with `1 + weight` (but for a delta net's own).
    #[serde(default, skip_serializing_if = "is_false")]
    pub norm_plus_one: bool,
    /// Embeddings are multiplied with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_multiplier: Option<f32>,
    /// What a mixer or feed-forward gives is multiplied with this before it is added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_multiplier: Option<f32>,
    /// Logits are divided by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits_scaling: Option<f32>,
    /// Logits `l` become `c · tanh(l / c)` (arXiv 2408.00118).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logits_cap: Option<f32>,
    /// From first to last.
    pub layers: Vec<LayerSpec>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
const fn is_false(value: &bool) -> bool {
    !*value
}

/// One pre-norm residual layer: `x += mixer(norm(x)); x += ffn(norm(x))`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Mixes positions.
    pub mixer: Mixer,
    /// Acts on each position alone.
    pub ffn: Ffn,
    /// What the mixer gives is normed before it is added, and so is what the feed-forward gives.
    #[serde(default, skip_serializing_if = "is_false")]
    pub output_norms: bool,
    /// Mixer and feed-forward take the stream as it is; then there are output norms (`OLMo` 2, arXiv
    /// 2501.00656).
    #[serde(default, skip_serializing_if = "is_false")]
    pub no_input_norms: bool,
}

/// How a layer mixes positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mixer {
    /// Grouped-query attention (multi-head when `kv_heads == heads`).
    Attention(AttentionSpec),
    /// Multi-head latent attention.
    Latent(LatentSpec),
    /// Gated delta net: linear attention with a state of fixed size.
    DeltaNet(DeltaNetSpec),
    /// A gated short convolution, without attention.
    ShortConv(ShortConvSpec),
}

impl Mixer {
    /// The options of grouped-query attention, if it is that.
    pub const fn attention(&self) -> Option<&AttentionSpec> {
        match self {
            Self::Attention(spec) => Some(spec),
            Self::Latent(_) | Self::DeltaNet(_) | Self::ShortConv(_) => None,
        }
    }

    /// How it rotates by position, if it does.
    pub const fn rope(&self) -> Option<&RopeSpec> {
        match self {
            Self::Attention(spec) => spec.rope.as_ref(),
            Self::Latent(spec) => Some(&spec.rope),
            Self::DeltaNet(_) | Self::ShortConv(_) => None,
        }
    }
}

/// Options of grouped-query attention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head, even.
    pub head_dim: u32,
    /// Rotary positions; none in layers that know no positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope: Option<RopeSpec>,
    /// RMS norm of queries and keys.
    pub qk_norm: QkNorm,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub o_bias: bool,
    /// Position `i` sees `j` when `i - j < sliding_window`; every earlier one when absent.
    pub sliding_window: Option<u32>,
    /// q, k and v are clamped to `[-c, c]` after projection (and after the norm, where full).
    pub clip_qkv: Option<f32>,
    /// Position `i` sees `j` when `i / attention_chunk_size == j / attention_chunk_size`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_chunk_size: Option<u32>,
    /// Each head's softmax has a learned logit besides those of its keys.
    #[serde(default, skip_serializing_if = "is_false")]
    pub sinks: bool,
    /// `q_proj` gives `[query, gate]` per head; `sigmoid(gate)` scales the head's output.
    #[serde(default, skip_serializing_if = "is_false")]
    pub output_gate: bool,
    /// Scores are scaled by this before softmax; by `1 / sqrt(head_dim)` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub softmax_scale: Option<f32>,
    /// Scaled scores `s` become `c · tanh(s / c)` (arXiv 2408.00118).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_cap: Option<f32>,
    /// What the heads give is normed, all heads as one row, before the output projection.
    #[serde(default, skip_serializing_if = "is_false")]
    pub inner_norm: bool,
    /// Queries grow with their position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<TemperatureSpec>,
}

/// Queries at position `p` are scaled by `1 + attn_scale * ln(1 + floor((p + 1) / floor_scale))`
/// (arXiv 2501.19399); by the same of `p / floor_scale` where `from_zero`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemperatureSpec {
    /// Positions per step.
    pub floor_scale: f32,
    /// Weight of the logarithm.
    pub attn_scale: f32,
    /// Positions are counted from 0 in this, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub from_zero: bool,
}

/// Options of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values are
/// projections of one latent per position, which is all that is cached besides a rotary key that
/// all heads share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSpec {
    /// Heads.
    pub heads: u32,
    /// Width of the latent of queries; queries are projected directly when absent.
    pub q_lora_rank: Option<u32>,
    /// Width of the latent of keys and values.
    pub kv_lora_rank: u32,
    /// Width of a head's query and key without position.
    pub qk_nope_head_dim: u32,
    /// Width of a head's query with position, and of the shared key.
    pub qk_rope_head_dim: u32,
    /// Width of a head's value.
    pub v_head_dim: u32,
    /// Rotary positions.
    pub rope: RopeSpec,
    /// Scores are scaled by this before softmax.
    pub softmax_scale: f32,
    /// Biases on `q_a`, `kv_a` and `o`.
    pub bias: bool,
    /// Positions up to which a position sees all before it; beyond, an indexer picks that many of them
    /// (DeepSeek-V3.2, arXiv 2512.02556).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_topk: Option<u32>,
}

/// Options of a gated delta net (arXiv 2412.06464) behind a short convolution.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeltaNetSpec {
    /// Heads of queries and keys; divides `value_heads`.
    pub key_heads: u32,
    /// Heads of values.
    pub value_heads: u32,
    /// Width of a query and a key.
    pub key_head_dim: u32,
    /// Width of a value.
    pub value_head_dim: u32,
    /// Positions that the convolution sees.
    pub conv_kernel: u32,
    /// How its inputs are projected.
    pub projection: DeltaProjection,
}

/// Options of a gated short convolution: `out(c * conv(b * x))` with `[b, c, x] = in(h)`, each as wide
/// as the residual stream (LFM2, arXiv 2511.23404).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShortConvSpec {
    /// Positions that the convolution sees.
    pub conv_kernel: u32,
}

/// How the inputs of a delta net are projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeltaProjection {
    /// Two matrices whose rows are grouped by key head: `[query, key, values, gates]` and
    /// `[strengths, decays]`.
    Grouped,
    /// Matrices for queries, keys and values, for gates, for strengths and for decays.
    Split,
}

/// Where queries and keys are normed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Nowhere.
    #[default]
    None,
    /// Each head alone, weight `[head_dim]`.
    PerHead,
    /// Across all heads, weight `[heads * head_dim]`.
    Full,
    /// Each head alone after rotation, without weight, in layers with rotation.
    Weightless,
    /// Each head alone after rotation, weight `[head_dim]`.
    PerHeadRotated,
}

/// Rotary position embedding: angle of pair `i` at position `p` is `p * frequency(i)`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    /// Base of the frequencies `theta^(-2i/head_dim)`.
    pub theta: f32,
    /// Change of the frequencies for longer contexts.
    pub scaling: RopeScaling,
    /// The first values of a head that are rotated (it is `head_dim` in the formula); all when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_dim: Option<u32>,
    /// Which values are rotated together.
    #[serde(default, skip_serializing_if = "Pairing::is_half")]
    pub pairing: Pairing,
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// `i` and `i + rotary_dim / 2`.
    #[default]
    Half,
    /// `2i` and `2i + 1`.
    Interleaved,
}

impl Pairing {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    fn is_half(&self) -> bool {
        *self == Self::Half
    }
}

/// Change of rotary frequencies for longer contexts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// None.
    #[default]
    #[serde(deserialize_with = "shardwright_quant::encoding::no_fields")]
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor.
        factor: f32,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Divisor of the lowest frequencies.
        factor: f32,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length before scaling.
        original_max_position_embeddings: u32,
    },
    /// YaRN (arXiv 2309.00071): pairs of few turns divided by `factor`, those of many kept, a ramp
    /// over the pairs between.
    Yarn {
        /// Divisor of the lowest frequencies.
        factor: f32,
        /// Pairs with more turns in the original context are kept.
        beta_fast: f32,
        /// Pairs with fewer turns in the original context are divided.
        beta_slow: f32,
        /// Context length before scaling.
        original_max_position_embeddings: u32,
        /// Rotated values are scaled by this.
        attention_factor: f32,
        /// The ramp begins and ends at whole pairs.
        truncate: bool,
    },
    /// `LongRoPE` (arXiv 2402.13753): each pair's frequency divided by a factor of its own, by another
    /// at positions beyond the original context.
    Longrope {
        /// Of each pair, at positions within the original context.
        short_factor: Vec<f32>,
        /// Of each pair, beyond it.
        long_factor: Vec<f32>,
        /// Context length before scaling.
        original_max_position_embeddings: u32,
        /// Rotated values are scaled by this.
        attention_factor: f32,
    },
    /// The base grows with the sequence beyond the original context: up to there nothing changes, and
    /// beyond it this runtime does not go.
    Dynamic {
        /// Context length before scaling.
        original_max_position_embeddings: u32,
    },
}

/// What a layer does to each position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ffn {
    /// `down(activation(gate(x), up(x)))`.
    Dense(DenseSpec),
    /// The same, in experts picked by a router.
    Moe(MoeSpec),
}

/// Options of a dense feed-forward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseSpec {
    /// Width between up and down.
    pub intermediate_size: u32,
    /// Biases on gate, up and down.
    pub bias: bool,
    /// Between up and down.
    #[serde(default, skip_serializing_if = "GateActivation::is_silu")]
    pub activation: GateActivation,
    /// There is no gate: `down(activation(up(x)))`, with up in the place of the gate.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ungated: bool,
    /// What goes into the down projection is normed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub inner_norm: bool,
}

/// What a feed-forward does to gate and up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum GateActivation {
    /// `silu(gate) * up`.
    #[default]
    Silu,
    /// `gelu(gate) * up`, gelu by its tanh approximation (arXiv 1606.08415).
    GeluTanh,
    /// `max(gate, 0)² * up` (arXiv 2109.08668).
    Relu2,
    /// `(up + 1) * gate * sigmoid(alpha * gate)`, gate at most `limit`, up within `±limit`.
    ClampedSwiglu {
        /// Largest value.
        limit: f32,
        /// Steepness of the gate.
        alpha: f32,
    },
}

impl GateActivation {
    fn is_silu(&self) -> bool {
        *self == Self::Silu
    }
}

/// Options of a mixture of experts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSpec {
    /// Routed experts.
    pub num_experts: u32,
    /// Experts each token visits.
    pub num_experts_per_tok: u32,
    /// Width inside an expert.
    pub moe_intermediate_size: u32,
    /// The picked experts' probabilities are rescaled to sum to one.
    pub norm_topk_prob: bool,
    /// An expert that every token visits.
    pub shared_expert: Option<SharedExpertSpec>,
    /// How router scores become weights.
    #[serde(default, skip_serializing_if = "Scoring::is_softmax")]
    pub scoring: Scoring,
    /// A bias is added to the router's scores.
    #[serde(default, skip_serializing_if = "is_false")]
    pub router_bias: bool,
    /// Another is added to the weights for picking, not for use.
    #[serde(default, skip_serializing_if = "is_false")]
    pub correction_bias: bool,
    /// Experts are picked from the best groups only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<GroupLimit>,
    /// Weights are multiplied with this in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routed_scaling_factor: Option<f32>,
    /// Weights scale the experts' inputs, not their outputs.
    #[serde(default, skip_serializing_if = "is_false")]
    pub weights_on_input: bool,
    /// Biases on the experts' gate, up and down.
    #[serde(default, skip_serializing_if = "is_false")]
    pub expert_bias: bool,
    /// Inside the routed experts.
    #[serde(default, skip_serializing_if = "GateActivation::is_silu")]
    pub activation: GateActivation,
}

/// How router scores become weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// Probabilities over all experts.
    #[default]
    Softmax,
    /// Each score's own sigmoid.
    Sigmoid,
}

impl Scoring {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
    fn is_softmax(&self) -> bool {
        *self == Self::Softmax
    }
}

/// Experts lie in equal groups; a group counts as the sum of its two best experts, or as its best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupLimit {
    /// Groups of all experts.
    pub groups: u32,
    /// Groups that experts are picked from.
    pub picked: u32,
    /// A group counts as its best expert (DeepSeek-V2, arXiv 2405.04434).
    #[serde(default, skip_serializing_if = "is_false")]
    pub by_best: bool,
}

/// Options of a shared expert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpertSpec {
    /// Width inside it.
    pub intermediate_size: u32,
    /// Its output is scaled by `sigmoid(shared_expert_gate · x)`.
    pub gated: bool,
}

impl ModelSpec {
    /// Routed experts of all layers.
    pub fn num_experts(&self) -> u64 {
        let layers = self.layers.iter();
        layers.map(|layer| u64::from(layer.num_experts())).sum()
    }

    /// The first position that `LongRoPE` rotates by its long factors; none in other models.
    pub fn long_from(&self) -> Option<u32> {
        let ropes = self.layers.iter().filter_map(|layer| layer.mixer.rope());
        let long = ropes.filter_map(|rope| match rope.scaling {
            RopeScaling::Longrope { original_max_position_embeddings: first, .. } => Some(first),
            _ => None,
        });
        long.min()
    }
}

impl LayerSpec {
    /// Routed experts of the layer; 0 when it is dense.
    pub fn num_experts(&self) -> u32 {
        match &self.ffn {
            Ffn::Moe(moe) => moe.num_experts,
            Ffn::Dense(_) => 0,
        }
    }
}
