//! The model as a plain value: everything a runtime must know besides the weights.

use serde::{Deserialize, Serialize};

/// A decoder-only language model. Stored in the manifest, so that a runtime needs no other config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// From first to last.
    pub layers: Vec<LayerSpec>,
}

/// One pre-norm residual layer: `x += mixer(norm(x)); x += ffn(norm(x))`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Mixes positions.
    pub mixer: Mixer,
    /// Acts on each position alone.
    pub ffn: Ffn,
}

/// How a layer mixes positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Mixer {
    /// Grouped-query attention (multi-head when `kv_heads == heads`).
    Attention(AttentionSpec),
}

/// Options of grouped-query attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head, even.
    pub head_dim: u32,
    /// Rotary positions, rotate-half pairing.
    pub rope: RopeSpec,
    /// RMS norm of queries and keys before rotation.
    pub qk_norm: QkNorm,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the output projection.
    pub o_bias: bool,
    /// Position `i` sees `j` when `i - j < sliding_window`; every earlier one when absent.
    pub sliding_window: Option<u32>,
    /// q, k and v are clamped to `[-c, c]` after projection (and after the norm, where full).
    pub clip_qkv: Option<f32>,
}

/// Where queries and keys are normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Nowhere.
    None,
    /// Each head alone, weight `[head_dim]`.
    PerHead,
    /// Across all heads, weight `[heads * head_dim]`.
    Full,
}

/// Rotary position embedding: angle of pair `i` at position `p` is `p * frequency(i)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    /// Base of the frequencies `theta^(-2i/head_dim)`.
    pub theta: f32,
    /// Change of the frequencies for longer contexts.
    pub scaling: RopeScaling,
}

/// Change of rotary frequencies for longer contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// None.
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
}

/// What a layer does to each position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Ffn {
    /// `down(silu(gate(x)) * up(x))`.
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
}

/// Options of a mixture of experts with softmax routing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

impl LayerSpec {
    /// Routed experts of the layer; 0 when it is dense.
    pub fn num_experts(&self) -> u32 {
        match &self.ffn {
            Ffn::Moe(moe) => moe.num_experts,
            Ffn::Dense(_) => 0,
        }
    }
}
