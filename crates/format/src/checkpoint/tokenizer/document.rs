//! `tokenizer.json`, as it is written.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

/// A token that is found in a text before it is cut.
#[derive(Clone, Debug, Serialize)]
pub(in crate::checkpoint) struct Added<'a> {
    pub(super) id: usize,
    pub(super) content: &'a str,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    /// Whether it is looked for in the normalized text.
    pub(super) normalized: bool,
    pub(super) special: bool,
}

impl<'a> Added<'a> {
    /// One that is found wherever a text has it.
    pub(super) const fn new(id: usize, content: &'a str, special: bool) -> Self {
        let (single_word, lstrip, rstrip, normalized) = (false, false, false, false);
        Self { id, content, single_word, lstrip, rstrip, normalized, special }
    }
}

/// `tokenizer.json`.
#[derive(Serialize)]
pub(in crate::checkpoint) struct Document<'a> {
    pub(super) version: &'static str,
    pub(super) truncation: Json,
    pub(super) padding: Json,
    pub(super) added_tokens: Vec<Added<'a>>,
    pub(super) normalizer: Json,
    pub(super) pre_tokenizer: Json,
    pub(super) post_processor: Json,
    pub(super) decoder: Json,
    pub(super) model: Model<'a>,
}

impl<'a> Document<'a> {
    pub(super) const fn new(added_tokens: Vec<Added<'a>>, model: Model<'a>) -> Self {
        Self {
            version: "1.0",
            truncation: Json::Null,
            padding: Json::Null,
            added_tokens,
            normalizer: Json::Null,
            pre_tokenizer: Json::Null,
            post_processor: Json::Null,
            decoder: Json::Null,
            model,
        }
    }

    /// The same with what is put around a text: see [`template`].
    pub(in crate::checkpoint) fn with_ends(self, template: Json) -> Self {
        Self { post_processor: template, ..self }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Model<'a> {
    Bpe(Box<Bpe<'a>>),
    Unigram(Unigram<'a>),
}

/// Pairs of tokens become one, the first of a list before all others.
#[derive(Serialize)]
pub(super) struct Bpe<'a> {
    pub(super) r#type: &'static str,
    pub(super) dropout: Json,
    pub(super) unk_token: Option<&'a str>,
    pub(super) continuing_subword_prefix: Json,
    pub(super) end_of_word_suffix: Json,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    #[serde(serialize_with = "as_object")]
    pub(super) vocab: Vec<(&'a str, usize)>,
    pub(super) merges: Vec<(&'a str, &'a str)>,
}

impl<'a> Bpe<'a> {
    pub(super) const fn new(vocab: Vec<(&'a str, usize)>, merges: Vec<(&'a str, &'a str)>) -> Self {
        Self {
            r#type: "BPE",
            dropout: Json::Null,
            unk_token: None,
            continuing_subword_prefix: Json::Null,
            end_of_word_suffix: Json::Null,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: false,
            vocab,
            merges,
        }
    }
}

/// The tokens whose scores add up to most.
#[derive(Serialize)]
pub(super) struct Unigram<'a> {
    pub(super) r#type: &'static str,
    unk_id: usize,
    vocab: Vec<(&'a str, f64)>,
    byte_fallback: bool,
}

impl<'a> Unigram<'a> {
    pub(super) const fn new(
        vocab: Vec<(&'a str, f64)>,
        unk_id: usize,
        byte_fallback: bool,
    ) -> Self {
        Self { r#type: "Unigram", unk_id, vocab, byte_fallback }
    }
}

/// Pairs as an object, in their order.
fn as_object<S: Serializer>(pairs: &[(&str, usize)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}

/// A part that puts one text in place of another.
pub(super) fn replace(from: &str, to: &str) -> Json {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// Bytes as letters: a part that is a splitter and a decoder.
pub(super) fn byte_level() -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

/// What is put around a text, if anything: the tokens before and after it.
pub(in crate::checkpoint) fn template(around: [Option<(usize, &str)>; 2]) -> Json {
    if around.iter().all(Option::is_none) {
        return Json::Null;
    }
    let special = |text: &str, of: u32| json!({"SpecialToken": {"id": text, "type_id": of}});
    let side = |name: &str, of: u32| {
        let [first, last] = around.map(|token| token.map(|(_, text)| special(text, of)));
        let own = json!({"Sequence": {"id": name, "type_id": of}});
        first
            .into_iter()
            .chain([own])
            .chain(last)
            .collect::<Vec<_>>()
    };
    let tokens = around
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})));
    let pair = [side("A", 0), side("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": side("A", 0),
        "pair": pair,
        "special_tokens": tokens.collect::<Map<_, _>>(),
    })
}
