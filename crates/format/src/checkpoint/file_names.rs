//! What the files of a checkpoint are called.

/// The model's configuration.
pub const CONFIG_NAME: &str = "config.json";
/// The model's tokenizer, as the tokenizers library reads it.
pub const TOKENIZER_NAME: &str = "tokenizer.json";
/// What transformers reads beside it, a template for conversations among it.
pub const TOKENIZER_CONFIG_NAME: &str = "tokenizer_config.json";
/// A template for conversations as a file of its own.
pub const CHAT_TEMPLATE_NAME: &str = "chat_template.jinja";
/// The one file of a checkpoint that is not split.
pub const SINGLE_NAME: &str = "model.safetensors";
/// What the names of checkpoint files end in.
pub(super) const FILE_SUFFIX: &str = ".safetensors";
/// What the names of GGUF files end in.
pub(super) const GGUF_SUFFIX: &str = ".gguf";
/// How GGUF files begin.
pub const MAGIC: &[u8] = b"GGUF";

/// Whether a file is never the model: adapters, states of an optimizer, Mistral's own layout, and
/// what macOS keeps beside a file.
pub(super) fn is_other(name: &str) -> bool {
    let beginnings = ["adapter_", "adapters.", "optimizer", "consolidated", "._"];
    let begins = beginnings
        .iter()
        .any(|beginning| name.starts_with(beginning));
    // mlx-lm saves those of each hundredth step.
    begins || name.ends_with("_adapters.safetensors")
}
