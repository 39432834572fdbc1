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

/// Why a model does without a tensor of this name, if it does; `bare` is one without numbers that can be
/// weights.
pub(super) fn reason(name: &str, bare: bool) -> Option<&'static str> {
    if ends(name, &BUFFERS) {
        return Some("a buffer that every program computes for itself");
    }
    (bare && ends(name, &STATES)).then_some("a state of Transformer Engine, no weights")
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
