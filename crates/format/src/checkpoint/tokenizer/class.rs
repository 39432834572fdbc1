//! Classes of transformers that read text in a way of their own, whatever the file with the vocabulary says.
//!
//! Source: transformers 5.24, `tokenization_utils_tokenizers.py` (`convert_to_native_format`), the classes, and
//! `tokenization_auto.py` (which class a model has).

/// Classes that take what users defined out of a text before anything else sees it, as transformers has them.
const BEFORE_ALL: [&str; 3] = [LLAMA, CODE_LLAMA, GEMMA];
/// Of those the one that reads a text as Llama's first code did only if its settings say so.
const LLAMA: &str = "LlamaTokenizer";
/// Of those the one that never does.
const CODE_LLAMA: &str = "CodeLlamaTokenizer";
/// Of those the one that puts no space before a text, whatever its file says.
pub(super) const GEMMA: &str = "GemmaTokenizer";
/// Models for which transformers reads the file by itself, whatever class their settings name.
const BY_FILE: [&str; 20] = [
    "ernie4_5",
    "ernie4_5_moe",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm4v_moe",
    "granite",
    "granitemoe",
    "granitemoehybrid",
    "granitemoeshared",
    "kimi_k25",
    "minimax_m2",
    "ministral",
    "ministral3",
    "mistral",
    "mistral3",
    "mixtral",
    "olmo2",
    "olmo3",
    "phi3",
];

/// Which parts of a text, cut at added tokens, get a space before them that do not begin with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceBefore {
    /// None.
    Nothing,
    /// The first.
    First,
    /// All.
    Each,
}

/// Whether it is one of the classes, for whatever model.
pub(super) fn is_own(class: &str) -> bool {
    BEFORE_ALL.contains(&class)
}

/// The class, if it is one of these and decides about text for models of this type.
pub(super) fn deciding<'c>(class: Option<&'c str>, model_type: &str) -> Option<&'c str> {
    class.filter(|class| is_own(class) && !BY_FILE.contains(&model_type))
}

/// Whether the class reads a text as Llama's first code did, with what its settings have as `legacy`.
pub(super) fn is_legacy(class: Option<&str>, stated: Option<bool>) -> bool {
    class != Some(CODE_LLAMA) && stated.unwrap_or(class != Some(LLAMA))
}

/// Where a class puts spaces that has no ear for what `tokenizer.json` says of them; `legacy` and
/// `add_prefix_space` as the settings have them.
pub(super) fn space_before(
    class: Option<&str>,
    legacy: Option<bool>,
    add_prefix_space: Option<bool>,
) -> Option<SpaceBefore> {
    class.filter(|class| *class != GEMMA)?;
    Some(match add_prefix_space {
        Some(false) => SpaceBefore::Nothing,
        _ if is_legacy(class, legacy) => SpaceBefore::Each,
        _ => SpaceBefore::First,
    })
}
