//! `tokenizer.json` and `tokenizer_config.json` from metadata.
//!
//! Sources: llama.cpp, `gguf-py/gguf/vocab.py` (what is written), `src/llama-vocab.cpp` (what is
//! assumed where metadata are absent).

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value as Json};

use super::header::{Array, Value};
use crate::checkpoint::tokenizer::{
    Document, Kind, Prefix, SPACE, Split, Style, Vocabulary, template,
};
use crate::refusal::{Refusal, mismatch};

/// The template for conversations.
pub(crate) const TEMPLATE: &str = "tokenizer.chat_template";
const REMEDY: &str = "put the model's tokenizer.json beside the file";

type Metadata<'a> = BTreeMap<&'a str, Value<'a>>;

/// Whether the metadata have a vocabulary.
pub(in crate::checkpoint) fn is_there(metadata: &Metadata<'_>) -> bool {
    let model = text(metadata, "model");
    model.is_some_and(|model| !matches!(model, "none" | "no_vocab"))
}

/// Whether the metadata have a template for conversations.
pub(in crate::checkpoint) fn has_template(metadata: &Metadata<'_>) -> bool {
    metadata.contains_key(TEMPLATE)
}

/// The `tokenizer.json` that the metadata describe.
///
/// # Errors
/// A kind of tokenizer or of splitting text that is not known, and metadata that are missing or
/// contradict each other.
pub(crate) fn tokenizer(metadata: &Metadata<'_>) -> Result<Vec<u8>, Refusal> {
    let described = Described::new(metadata)?;
    let document = match text(metadata, "model") {
        Some("gpt2") => described.bytewise()?,
        Some("llama") => described.scored()?,
        Some("t5") => described.summed()?,
        found => {
            let found = found.unwrap_or("none");
            return Err(mismatch("gpt2, llama or t5", format_args!("{found}; {REMEDY}"))
                .at("metadatum `tokenizer.ggml.model`"));
        }
    };
    let document = document.with_ends(template(described.around()));
    serde_json::to_vec(&document).map_err(|e| e.to_string().into())
}

/// The `tokenizer_config.json` that the metadata describe.
///
/// # Errors
/// Metadata that are missing or contradict each other.
pub(crate) fn config(metadata: &Metadata<'_>) -> Result<Vec<u8>, Refusal> {
    let described = Described::new(metadata)?;
    let config = described.config(described.around().map(|token| token.is_some()));
    serde_json::to_vec_pretty(&config).map_err(|e| e.to_string().into())
}

fn text<'a>(metadata: &Metadata<'a>, key: &str) -> Option<&'a str> {
    match metadata.get(format!("tokenizer.ggml.{key}").as_str())? {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn flag(metadata: &Metadata<'_>, key: &str, default: bool) -> bool {
    match metadata.get(format!("tokenizer.ggml.{key}").as_str()) {
        Some(Value::Bool(value)) => *value,
        _ => default,
    }
}

/// A list among the metadata.
fn list<'a>(metadata: &Metadata<'a>, key: &str) -> Option<Array<'a>> {
    match metadata.get(format!("tokenizer.ggml.{key}").as_str())? {
        Value::Array(array) => Some(*array),
        _ => None,
    }
}

/// Pieces, or pairs of them, in their order.
///
/// # Errors
/// No list, or one of something else.
pub(super) fn texts<'a>(metadata: &Metadata<'a>, key: &str) -> Result<Vec<&'a str>, Refusal> {
    let wrong = |e: Refusal| e.at(format_args!("metadatum `tokenizer.ggml.{key}`"));
    let array = list(metadata, key).ok_or_else(|| wrong(mismatch("a list", "none")))?;
    array.texts().map_err(wrong)
}

/// Pairs of tokens that become one, the first before all others.
fn merges<'a>(metadata: &Metadata<'a>) -> Result<Vec<(&'a str, &'a str)>, Refusal> {
    let pair = |merge: &'a str| {
        let pair = merge.split_once(' ');
        pair.ok_or_else(|| {
            Refusal::from(format!("no pair: `{merge}`")).at("metadatum `tokenizer.ggml.merges`")
        })
    };
    texts(metadata, "merges")?.into_iter().map(pair).collect()
}

/// How text is cut before its bytes are merged.
fn split(metadata: &Metadata<'_>) -> Result<Split, Refusal> {
    let name = text(metadata, "pre");
    if name.is_none() {
        let detail = mismatch("one", format_args!("none: how text is cut is not known; {REMEDY}"));
        return Err(detail.at("metadatum `tokenizer.ggml.pre`"));
    }
    Split::find(name).map_err(|known| {
        let (known, found) = (known.join(", "), name.unwrap_or("none"));
        mismatch(format_args!("one of {known}"), format_args!("{found}; {REMEDY}"))
            .at("metadatum `tokenizer.ggml.pre`")
    })
}

/// The kind that a number of a list says.
const fn kind(value: &Value<'_>) -> Kind {
    match value {
        Value::Whole(number) => Kind::new(*number),
        _ => Kind::Normal,
    }
}

/// The kind of each token; none if the metadata do not say.
pub(super) fn kinds(metadata: &Metadata<'_>) -> Vec<Kind> {
    let kinds = list(metadata, "token_type");
    kinds.map_or_else(Vec::new, |list| list.numbers().map(|value| kind(&value)).collect())
}

/// The table of characters that are replaced, in base64.
fn charsmap(metadata: &Metadata<'_>) -> Option<String> {
    let byte = |value: Value<'_>| match value {
        Value::Whole(number) => number as u8,
        Value::Negative(number) => number as u8,
        _ => 0,
    };
    let bytes: Vec<u8> = list(metadata, "precompiled_charsmap")?
        .numbers()
        .map(byte)
        .collect();
    (!bytes.is_empty()).then(|| STANDARD.encode(bytes))
}

/// A vocabulary and what else the metadata say of it.
struct Described<'a> {
    metadata: &'a Metadata<'a>,
    vocabulary: Vocabulary<'a>,
}

impl<'a> Described<'a> {
    fn new(metadata: &'a Metadata<'a>) -> Result<Self, Refusal> {
        let mut tokens: Vec<_> = texts(metadata, "tokens")?
            .into_iter()
            .map(Cow::Borrowed)
            .collect();
        let stated = metadata.contains_key("tokenizer.ggml.token_type");
        let kinds = match kinds(metadata) {
            _ if !stated => vec![Kind::Normal; tokens.len()],
            kinds if kinds.len() == tokens.len() => kinds,
            kinds => {
                let (expected, found) = (tokens.len(), kinds.len());
                return Err(mismatch(format_args!("{expected} kinds"), found)
                    .at("metadatum `tokenizer.ggml.token_type`"));
            }
        };
        // Runs of spaces were written as such; they are tokens of a text whose spaces are others.
        for (token, kind) in tokens.iter_mut().zip(&kinds) {
            let spaces = !token.is_empty() && token.bytes().all(|byte| byte == b' ');
            if *kind == Kind::UserDefined && spaces {
                *token = Cow::Owned(token.replace(' ', SPACE));
            }
        }
        Ok(Self { metadata, vocabulary: Vocabulary { tokens, kinds } })
    }

    /// The number and text of a token that the metadata name.
    fn named(&self, name: &str) -> Option<(usize, &str)> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(Value::Whole(id)) = self.metadata.get(key.as_str()) else { return None };
        let id = usize::try_from(*id).ok()?;
        Some((id, self.vocabulary.tokens.get(id)?))
    }

    /// The tokens before and after a text.
    fn around(&self) -> [Option<(usize, &str)>; 2] {
        let model = text(self.metadata, "model");
        let eos = model == Some("t5");
        let bos = model == Some("llama") || split(self.metadata).is_ok_and(|split| split.add_bos);
        let around = [
            flag(self.metadata, "add_bos_token", bos).then(|| self.named("bos")),
            flag(self.metadata, "add_eos_token", eos).then(|| self.named("eos")),
        ];
        around.map(Option::flatten)
    }

    /// Bytes as letters, and merges in their order.
    fn bytewise(&self) -> Result<Document<'_>, Refusal> {
        let (split, merges) = (split(self.metadata)?, merges(self.metadata)?);
        let made = self
            .vocabulary
            .bytewise(&split, merges, self.vocabulary.added());
        made.map_err(|(a, b)| {
            mismatch("tokens", format_args!("`{a} {b}`")).at("metadatum `tokenizer.ggml.merges`")
        })
    }

    /// A score for each token.
    fn scores(&self) -> Result<Vec<f32>, Refusal> {
        let scores: Vec<f32> = match list(self.metadata, "scores") {
            Some(list) => list.numbers().map(|value| value.as_f32()).collect(),
            None => Vec::new(),
        };
        let expected = self.vocabulary.tokens.len();
        if scores.len() != expected {
            return Err(mismatch(format_args!("{expected} scores"), scores.len())
                .at("metadatum `tokenizer.ggml.scores`"));
        }
        Ok(scores)
    }

    /// The number and text of the token for what has none.
    fn unknown(&self) -> Option<(usize, &str)> {
        let named = self.named("unknown");
        named.or_else(|| self.vocabulary.first(Kind::Unknown))
    }

    /// Which parts of a text begin with a space of the tokenizer's.
    fn prefix(&self) -> Prefix {
        let space_first = flag(self.metadata, "add_space_prefix", true);
        if space_first { Prefix::Each } else { Prefix::Never }
    }

    /// The tokens whose scores add up to most, of a text in which a table may replace characters.
    fn summed(&self) -> Result<Document<'_>, Refusal> {
        let at = |e: Refusal, key: &str| e.at(format_args!("metadatum `tokenizer.ggml.{key}`"));
        let scores = self.scores()?;
        if let Some(strange) = scores.iter().find(|score| !score.is_finite()) {
            return Err(at(mismatch("numbers", strange), "scores"));
        }
        let (unknown, _) = self
            .unknown()
            .ok_or_else(|| at(mismatch("a token for what has none", "none"), "unknown_token_id"))?;
        let style = Style {
            charsmap: charsmap(self.metadata),
            trims: flag(self.metadata, "remove_extra_whitespaces", false),
            byte_fallback: self.vocabulary.kinds.contains(&Kind::Byte),
            ..Style::plain(self.prefix())
        };
        let added = self.vocabulary.added();
        Ok(self.vocabulary.summing(&scores, &style, unknown, added))
    }

    /// Characters, bytes where there is no token for one, and merges by the scores of their tokens.
    fn scored(&self) -> Result<Document<'_>, Refusal> {
        let scores = self.scores()?;
        let style = Style::plain(self.prefix());
        let unknown = self.unknown().map(|(_, text)| text);
        Ok(self
            .vocabulary
            .merging(&scores, &style, unknown, self.vocabulary.added()))
    }

    /// `tokenizer_config.json`; `around`: whether a text begins and ends with a token.
    fn config(&self, around: [bool; 2]) -> Json {
        let mut config = Map::new();
        for (name, key) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")]
        {
            if let Some((_, text)) = self.named(key) {
                config.insert(format!("{name}_token"), text.into());
            }
        }
        config.insert("add_bos_token".to_owned(), around[0].into());
        config.insert("add_eos_token".to_owned(), around[1].into());
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        if let Some(Value::Text(template)) = self.metadata.get(TEMPLATE) {
            config.insert("chat_template".to_owned(), (*template).into());
        }
        Json::Object(config)
    }
}
