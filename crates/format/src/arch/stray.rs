//! Tensors that no table has: which of them a model does without, and what is said of the others.

use std::path::Path;

/// What the names of buffers end in that older versions of transformers saved: positions, masks, and the
/// tables of rotary embeddings.
const BUFFERS: [&str; 9] = [
    "position_ids",
    "attention_mask",
    "causal_mask",
    "attn.bias",
    "attn.masked_bias",
    "inv_freq",
    "original_inv_freq",
    "cos_cached",
    "sin_cached",
];
/// Attention, in the names of its parts.
const ATTENTION: &str = "attn.";
/// What names of scales end in, after those of their attention, by which others keep keys and values in fewer bits:
/// vLLM's own, those of a projection's outputs, and `ModelOpt`'s. Source: vLLM, `maybe_remap_kv_scale_name`.
const OF_CACHE: [&str; 14] = [
    "k_scale",
    "v_scale",
    "kv_scale",
    "k_zero_point",
    "v_zero_point",
    "k_proj.k_scale",
    "v_proj.v_scale",
    "qkv_proj.k_scale",
    "qkv_proj.v_scale",
    "k_proj.output_scale",
    "v_proj.output_scale",
    "kv_proj.output_scale",
    "qkv_proj.output_scale",
    "q_proj.output_scale",
];
/// The same of queries and of what attention weighs by, which lie beside one of keys: alone they may be weights.
const BESIDE_CACHE: [&str; 2] = ["q_scale", "prob_scale"];
/// What the names of Transformer Engine's own states end in.
const STATES: [&str; 1] = ["_extra_state"];

/// How names of heads begin that predict no tokens, and what those are.
const OTHER_HEADS: [&str; 5] = ["score.", "classifier.", "v_head.", "value_head.", "reward_head."];
const OTHER_HEAD: &str = "the head of a classifier or a reward model, which predicts no tokens: take the \
                          model for causal language modelling";
/// Where built-in tables say that they lie.
const BUILTIN: &str = "configs/arch";
/// What to do about a tensor that a built-in table, or one's own, does not have.
const UNKNOWN: &str = "take the model that this one was made from, or name a table of its own with --arch, \
                       which `shardwright arch draft` starts";
const OWN: &str = "add one";

/// What can be said of a tensor's values without reading them.
#[derive(Clone, Copy)]
pub(super) enum Values {
    /// No numbers that can be weights.
    None,
    One,
    Many,
}

/// Why a model does without a tensor of this name, if it does, in a checkpoint that `has` some.
pub(super) fn reason(
    name: &str,
    values: Values,
    has: impl Fn(&str) -> bool,
) -> Option<&'static str> {
    match values {
        _ if ends(name, &BUFFERS) => Some("a buffer that every program computes for itself"),
        Values::None if ends(name, &STATES) => Some("a state of Transformer Engine, no weights"),
        Values::One if is_of_cache(name, has) => {
            Some("a scale of another program's quantized KV cache, no weights")
        }
        _ => None,
    }
}

/// Whether a name is that of a scale of a KV cache.
fn is_of_cache(name: &str, has: impl Fn(&str) -> bool) -> bool {
    let Some(at) = name.rfind(ATTENTION) else { return false };
    let (attention, part) = name.split_at(at + ATTENTION.len());
    let beside = BESIDE_CACHE.contains(&part);
    OF_CACHE.contains(&part) || beside && has(&format!("{attention}{}", OF_CACHE[0]))
}

/// Whether the last parts of a name are one of `endings`.
fn ends(name: &str, endings: &[&str]) -> bool {
    let end = |end: &&str| {
        let rest = name.strip_suffix(*end);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    endings.iter().any(end)
}

/// What is said of a tensor that the table at `path` does not have.
pub(super) fn refusal(path: &Path, name: &str) -> String {
    let next = match () {
        () if OTHER_HEADS.iter().any(|head| name.starts_with(head)) => OTHER_HEAD,
        () if path.starts_with(BUILTIN) => UNKNOWN,
        () => OWN,
    };
    format!("{} has no row for it: {next}", path.display())
}
