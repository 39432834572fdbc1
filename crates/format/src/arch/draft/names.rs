//! Roles guessed from names, for tensors that no built-in table knows.

use crate::arch::table::check_placeholders;
use crate::names::{EXPERT, in_layer};
use crate::role::Role;

/// Roles of weights by the last parts of their names, `.weight` left out.
const WEIGHTS: &[(Role, &[&str])] = &[
    (Role::EmbedTokens, &["embed_tokens", "wte", "tok_embeddings", "word_embeddings", "embed_in"]),
    (Role::LmHead, &["lm_head", "output", "embed_out", "head"]),
    (Role::FinalNorm, &["norm", "ln_f", "final_layernorm", "final_norm", "norm_f"]),
    (
        Role::InputNorm,
        &["input_layernorm", "attention_norm", "attn_norm", "ln_1", "norm1", "norm_1"],
    ),
    (
        Role::PostAttentionNorm,
        &["post_attention_layernorm", "ffn_norm", "mlp_norm", "ln_2", "norm2", "norm_2"],
    ),
    (Role::QProj, &["q_proj", "wq", "query", "to_q"]),
    (Role::KProj, &["k_proj", "wk", "key", "to_k"]),
    (Role::VProj, &["v_proj", "wv", "value", "to_v"]),
    (Role::OProj, &["o_proj", "wo", "out_proj", "dense", "to_out"]),
    (Role::QNorm, &["q_norm", "q_layernorm", "query_layernorm", "query_norm"]),
    (Role::KNorm, &["k_norm", "k_layernorm", "key_layernorm", "key_norm"]),
    (Role::Sinks, &["sinks", "sink"]),
    (Role::QAProj, &["q_a_proj", "wq_a"]),
    (Role::QANorm, &["q_a_layernorm", "q_a_norm"]),
    (Role::QBProj, &["q_b_proj", "wq_b"]),
    (Role::KvAProj, &["kv_a_proj_with_mqa", "kv_a_proj", "wkv_a"]),
    (Role::KvANorm, &["kv_a_layernorm", "kv_a_norm"]),
    (Role::KvBProj, &["kv_b_proj", "wkv_b"]),
    (Role::DeltaQkvz, &["in_proj_qkvz"]),
    (Role::DeltaBa, &["in_proj_ba"]),
    (Role::DeltaQkv, &["in_proj_qkv"]),
    (Role::DeltaZ, &["in_proj_z"]),
    (Role::DeltaB, &["in_proj_b"]),
    (Role::DeltaA, &["in_proj_a"]),
    (Role::ShortConvIn, &["conv.in_proj"]),
    (Role::ShortConv, &["conv.conv"]),
    (Role::ShortConvOut, &["conv.out_proj"]),
    (Role::MixerInnerNorm, &["attn_sub_norm"]),
    (Role::FfnInnerNorm, &["ffn_sub_norm"]),
    (Role::DeltaConv, &["linear_attn.conv1d"]),
    (Role::DeltaALog, &["linear_attn.A_log"]),
    (Role::DeltaDtBias, &["linear_attn.dt_bias"]),
    (Role::DeltaNorm, &["linear_attn.norm"]),
    (Role::DeltaOutProj, &["linear_attn.out_proj"]),
    (Role::SharedExpertGate, &["shared_expert_gate", "shared_experts_gate"]),
    (
        Role::Router,
        &["router", "mlp.gate", "block_sparse_moe.gate", "moe.gate", "router.layer", "wg"],
    ),
    (Role::CorrectionBias, &["e_score_correction_bias", "correction_bias", "expert_bias"]),
];
/// Parts of a gated feed-forward: gate, up, down.
const FEED_FORWARD: [&[&str]; 3] =
    [&["gate_proj", "w1", "wi_0"], &["up_proj", "w3", "wi_1"], &["down_proj", "w2"]];
/// The roles of those parts in each place, and those of their biases.
const DENSE: [Role; 6] =
    [Role::GateProj, Role::UpProj, Role::DownProj, Role::GateBias, Role::UpBias, Role::DownBias];
const EXPERTS: [Role; 6] = [
    Role::ExpertGateProj,
    Role::ExpertUpProj,
    Role::ExpertDownProj,
    Role::ExpertGateBias,
    Role::ExpertUpBias,
    Role::ExpertDownBias,
];
const SHARED: [Role; 3] = [Role::SharedGateProj, Role::SharedUpProj, Role::SharedDownProj];
/// Biases beside the weights they belong to.
const BIASES: &[(Role, Role)] = &[
    (Role::QProj, Role::QBias),
    (Role::KProj, Role::KBias),
    (Role::VProj, Role::VBias),
    (Role::OProj, Role::OBias),
    (Role::QAProj, Role::QABias),
    (Role::KvAProj, Role::KvABias),
    (Role::Router, Role::RouterBias),
];
/// Tensors that hold several roles one after the other.
const QKV: &[&str] = &["qkv_proj", "query_key_value", "Wqkv", "c_attn"];
const GATE_UP: &[&str] = &["gate_up_proj", "gate_and_up_proj", "w13"];

/// What a name suggests.
pub(super) enum Guess {
    Role(Role),
    /// Several roles, or all experts at once.
    Fused(Vec<Role>),
}

/// What the name of a kind of tensors with `dims` dimensions suggests, if anything.
pub(super) fn guess(pattern: &str, dims: usize) -> Option<Guess> {
    let (stem, bias) = match pattern
        .strip_suffix(".bias")
        .or(pattern.strip_suffix("_bias"))
    {
        Some(stem) if !is_own_name(pattern) => (stem, true),
        _ => (pattern.strip_suffix(".weight").unwrap_or(pattern), false),
    };
    let stacked = stem.split('.').any(|part| part == "experts") && !stem.contains(EXPERT);
    if let Some(roles) = fused(stem, stacked, bias, dims) {
        return Some(Guess::Fused(roles));
    }
    let role = single(stem, bias)?;
    let fits = check_placeholders(pattern, role, role.is_expert()).is_ok();
    (fits && !stacked).then_some(Guess::Role(role))
}

/// Whether what ends in `bias` is a tensor of its own.
fn is_own_name(pattern: &str) -> bool {
    ends(pattern, &["e_score_correction_bias", "correction_bias", "expert_bias", "dt_bias"])
}

fn ends(stem: &str, names: &[&str]) -> bool {
    names.iter().any(|name| {
        stem.strip_suffix(*name)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    })
}

fn fused(stem: &str, stacked: bool, bias: bool, dims: usize) -> Option<Vec<Role>> {
    let expected = 2 + usize::from(stacked) - usize::from(bias);
    if dims != expected || !in_layer(stem) {
        return None;
    }
    let place = |roles: [Role; 6]| if bias { roles[3..].to_vec() } else { roles[..3].to_vec() };
    let parts = place(if stacked { EXPERTS } else { DENSE });
    if ends(stem, QKV) && !stacked {
        let (weights, biases) =
            ([Role::QProj, Role::KProj, Role::VProj], [Role::QBias, Role::KBias, Role::VBias]);
        return Some(if bias { biases } else { weights }.to_vec());
    }
    if ends(stem, GATE_UP) {
        return Some(parts[..2].to_vec());
    }
    let at = FEED_FORWARD.iter().position(|names| ends(stem, names));
    at.filter(|_| stacked).map(|at| vec![parts[at]])
}

fn single(stem: &str, bias: bool) -> Option<Role> {
    if let Some(at) = FEED_FORWARD.iter().position(|names| ends(stem, names)) {
        let shared = stem.split('.').any(|part| part.starts_with("shared"));
        return match (shared, stem.contains(EXPERT)) {
            (true, _) => (!bias).then(|| SHARED[at]),
            (false, true) => Some(EXPERTS[at + 3 * usize::from(bias)]),
            (false, false) => Some(DENSE[at + 3 * usize::from(bias)]),
        };
    }
    let fitting = WEIGHTS
        .iter()
        .flat_map(|(role, names)| names.iter().map(move |name| (role, name)));
    let role = fitting
        .filter(|(_, name)| ends(stem, &[name]))
        .max_by_key(|(_, name)| name.len())
        .map(|(role, _)| *role)?;
    if !bias {
        return Some(role);
    }
    BIASES
        .iter()
        .find(|(weight, _)| *weight == role)
        .map(|(_, bias)| *bias)
}
