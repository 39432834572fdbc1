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
    /// `[heads * head_dim, hidden_size]`.
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
    /// `[hidden_size, heads * head_dim]`.
    OProj = "attention.o_proj",
    /// `[hidden_size]`.
    OBias = "attention.o_bias",
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
    /// `[hidden_size, intermediate_size]`.
    DownProj = "mlp.down_proj",
    /// `[hidden_size]`.
    DownBias = "mlp.down_bias",
    /// Scores of the experts, `[num_experts, hidden_size]`.
    Router = "router",
    /// `[moe_intermediate_size, hidden_size]`.
    ExpertGateProj = "expert.gate_proj",
    /// `[moe_intermediate_size, hidden_size]`.
    ExpertUpProj = "expert.up_proj",
    /// `[hidden_size, moe_intermediate_size]`.
    ExpertDownProj = "expert.down_proj",
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
}

impl Role {
    /// The role called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|role| role.name() == name)
    }

    /// Whether the tensor belongs to one routed expert.
    pub const fn is_expert(self) -> bool {
        matches!(self, Self::ExpertGateProj | Self::ExpertUpProj | Self::ExpertDownProj)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}
