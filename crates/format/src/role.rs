//! What a tensor is for. One table gives every role its name; the order of the table is the order
//! of use inside a shard.

use serde::{Deserialize, Serialize};

macro_rules! roles {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What a tensor is for. The order of the variants is the order of tensors in a shard.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Role {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl Role {
            /// Every role, in order of use.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in recipes, manifests and reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

roles! {
    /// Token embedding, `[vocab_size, hidden_size]`; also the head when the two are tied.
    EmbedTokens = "embed_tokens",
    /// RMS norm before the mixer, `[hidden_size]`.
    InputNorm = "norm.input",
    /// Down to the latent of queries, `[q_lora_rank, hidden_size]`.
    QAProj = "attention.q_a_proj",
    /// `[q_lora_rank]`.
    QABias = "attention.q_a_bias",
    /// RMS norm of the latent of queries, `[q_lora_rank]`.
    QANorm = "norm.q_a",
    /// Up from it, `[heads * (qk_nope_head_dim + qk_rope_head_dim), q_lora_rank]`.
    QBProj = "attention.q_b_proj",
    /// Down to the latent of keys and values and the shared rotary key,
    /// `[kv_lora_rank + qk_rope_head_dim, hidden_size]`.
    KvAProj = "attention.kv_a_proj",
    /// `[kv_lora_rank + qk_rope_head_dim]`.
    KvABias = "attention.kv_a_bias",
    /// RMS norm of the latent of keys and values, `[kv_lora_rank]`.
    KvANorm = "norm.kv_a",
    /// Up from it, `[heads * (qk_nope_head_dim + v_head_dim), kv_lora_rank]`.
    KvBProj = "attention.kv_b_proj",
    /// `[heads * head_dim, hidden_size]`; twice the rows where it also gives the output gate.
    QProj = "attention.q_proj",
    /// `[heads * head_dim]`.
    QBias = "attention.q_bias",
    /// `[kv_heads * head_dim, hidden_size]`.
    KProj = "attention.k_proj",
    /// `[kv_heads * head_dim]`.
    KBias = "attention.k_bias",
    /// `[kv_heads * head_dim, hidden_size]`.
    VProj = "attention.v_proj",
    /// `[kv_heads * head_dim]`.
    VBias = "attention.v_bias",
    /// RMS norm of queries, `[head_dim]` or `[heads * head_dim]`.
    QNorm = "norm.q",
    /// RMS norm of keys, `[head_dim]` or `[kv_heads * head_dim]`.
    KNorm = "norm.k",
    /// What each head's softmax has besides its keys, `[heads]`.
    Sinks = "attention.sinks",
    /// RMS norm of what all heads give, `[heads * head_dim]`.
    MixerInnerNorm = "norm.mixer_inner",
    /// `[hidden_size, heads * head_dim]`.
    OProj = "attention.o_proj",
    /// `[hidden_size]`.
    OBias = "attention.o_bias",
    /// Queries, keys, values and gates of a delta net, grouped by key head, `[qkvz, hidden_size]`.
    DeltaQkvz = "delta_net.in_proj_qkvz",
    /// Write strengths and decays, grouped by key head, `[2 * value_heads, hidden_size]`.
    DeltaBa = "delta_net.in_proj_ba",
    /// Queries, keys and values one after the other, `[qkv, hidden_size]`.
    DeltaQkv = "delta_net.in_proj_qkv",
    /// Output gates, `[value_heads * value_head_dim, hidden_size]`.
    DeltaZ = "delta_net.in_proj_z",
    /// Write strengths, `[value_heads, hidden_size]`.
    DeltaB = "delta_net.in_proj_b",
    /// Decays, `[value_heads, hidden_size]`.
    DeltaA = "delta_net.in_proj_a",
    /// Depthwise causal convolution of queries, keys and values, `[qkv, conv_kernel]`.
    DeltaConv = "delta_net.conv1d",
    /// Logarithm of the decay's rate, `[value_heads]`.
    DeltaALog = "delta_net.a_log",
    /// Added to the decays before softplus, `[value_heads]`.
    DeltaDtBias = "delta_net.dt_bias",
    /// RMS norm of each head's output, `[value_head_dim]`.
    DeltaNorm = "norm.delta_net",
    /// `[hidden_size, value_heads * value_head_dim]`.
    DeltaOutProj = "delta_net.out_proj",
    /// Gates before and after a short convolution and its inputs, `[3 * hidden_size, hidden_size]`.
    ShortConvIn = "short_conv.in_proj",
    /// Depthwise causal convolution, `[hidden_size, conv_kernel]`.
    ShortConv = "short_conv.conv",
    /// `[hidden_size, hidden_size]`.
    ShortConvOut = "short_conv.out_proj",
    /// RMS norm of what the mixer gives, `[hidden_size]`.
    MixerOutNorm = "norm.mixer_out",
    /// RMS norm before the feed-forward, `[hidden_size]`.
    PostAttentionNorm = "norm.post_attention",
    /// `[intermediate_size, hidden_size]`.
    GateProj = "mlp.gate_proj",
    /// `[intermediate_size]`.
    GateBias = "mlp.gate_bias",
    /// `[intermediate_size, hidden_size]`.
    UpProj = "mlp.up_proj",
    /// `[intermediate_size]`.
    UpBias = "mlp.up_bias",
    /// RMS norm of what goes into the down projection, `[intermediate_size]`.
    FfnInnerNorm = "norm.ffn_inner",
    /// `[hidden_size, intermediate_size]`.
    DownProj = "mlp.down_proj",
    /// `[hidden_size]`.
    DownBias = "mlp.down_bias",
    /// RMS norm of what the feed-forward gives, `[hidden_size]`.
    FfnOutNorm = "norm.ffn_out",
    /// Scores of the experts, `[num_experts, hidden_size]`.
    Router = "router",
    /// Added to the scores, `[num_experts]`.
    RouterBias = "router.bias",
    /// Added to the scores for picking only, `[num_experts]`.
    CorrectionBias = "router.correction_bias",
    /// `[moe_intermediate_size, hidden_size]`.
    ExpertGateProj = "expert.gate_proj",
    /// `[moe_intermediate_size]`.
    ExpertGateBias = "expert.gate_bias",
    /// `[moe_intermediate_size, hidden_size]`.
    ExpertUpProj = "expert.up_proj",
    /// `[moe_intermediate_size]`.
    ExpertUpBias = "expert.up_bias",
    /// `[hidden_size, moe_intermediate_size]`.
    ExpertDownProj = "expert.down_proj",
    /// `[hidden_size]`.
    ExpertDownBias = "expert.down_bias",
    /// `[1, hidden_size]`: its sigmoid scales the shared expert's output.
    SharedExpertGate = "shared_expert_gate",
    /// `[shared_expert_intermediate_size, hidden_size]`.
    SharedGateProj = "shared_expert.gate_proj",
    /// `[shared_expert_intermediate_size, hidden_size]`.
    SharedUpProj = "shared_expert.up_proj",
    /// `[hidden_size, shared_expert_intermediate_size]`.
    SharedDownProj = "shared_expert.down_proj",
    /// RMS norm before the head, `[hidden_size]`.
    FinalNorm = "norm.final",
    /// `[vocab_size, hidden_size]`.
    LmHead = "lm_head",
    /// Any tensor of a vision tower or of what joins it to the text model.
    Vision = "vision",
    /// Any tensor of layers that predict further tokens.
    Mtp = "mtp",
    /// Any tensor that chooses which positions a sparse attention sees.
    Indexer = "indexer",
}

impl Role {
    /// The role called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == name)
    }

    /// Whether the tensor is part of something else than the text model.
    pub const fn is_extra(self) -> bool {
        matches!(self, Self::Vision | Self::Mtp | Self::Indexer)
    }

    /// Whether the tensor is a depthwise convolution, one row of taps for each channel.
    pub const fn is_convolution(self) -> bool {
        matches!(self, Self::DeltaConv | Self::ShortConv)
    }

    /// Whether the tensor belongs to one routed expert.
    pub const fn is_expert(self) -> bool {
        matches!(
            self,
            Self::ExpertGateProj
                | Self::ExpertGateBias
                | Self::ExpertUpProj
                | Self::ExpertUpBias
                | Self::ExpertDownProj
                | Self::ExpertDownBias
        )
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
