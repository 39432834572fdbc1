//! Spaces before a text as a class of transformers puts them, which makes its own steps in place of those that
//! `tokenizer.json` has.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use shardwright_format::checkpoint::SpaceBefore;
use tokenizers::{DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// What stands for a space in a vocabulary of `SentencePiece`.
pub(in crate::text) const SPACE: char = '\u{2581}';

/// Steps before and after a model.
pub(super) struct Steps {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: Option<PreTokenizerWrapper>,
    pub(super) decoder: Option<DecoderWrapper>,
}

impl Steps {
    /// The same with spaces where they are put by `space`, if they are steps of the kind that puts some: what a
    /// file for other classes has is left as it is.
    pub(super) fn with(self, space: SpaceBefore) -> Self {
        let cut = (json(self.normalizer.as_ref()), json(self.pre_tokenizer.as_ref()));
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let prepend = json!({"type": "Prepend", "prepend": SPACE});
        let prepends = json!({"type": "Sequence", "normalizers": [prepend, replace]}) == cut.0
            && cut.1.is_null();
        let metaspace = cut.1["type"] == "Metaspace" && cut.1["split"] == false;
        if !(prepends || metaspace && cut.0.is_null()) {
            return self;
        }
        Self {
            normalizer: if prepends { made(replace) } else { None },
            pre_tokenizer: made(pre_tokenizer(space)),
            decoder: if space == SpaceBefore::Nothing { made(decoder()) } else { self.decoder },
        }
    }
}

/// A step as it is written; null if there is none.
fn json<T: serde::Serialize>(step: Option<&T>) -> Value {
    serde_json::to_value(step).unwrap_or_default()
}

fn made<T: DeserializeOwned>(step: Value) -> Option<T> {
    serde_json::from_value(step).ok()
}

fn pre_tokenizer(space: SpaceBefore) -> Value {
    let scheme = match space {
        SpaceBefore::Nothing => "never",
        SpaceBefore::First => "first",
        SpaceBefore::Each => "always",
    };
    json!({"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": false})
}

/// What gives a text back to which no space was added.
fn decoder() -> Value {
    let spaces = json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "});
    json!({"type": "Sequence", "decoders": [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]})
}
