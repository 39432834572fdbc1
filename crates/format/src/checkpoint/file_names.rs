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
