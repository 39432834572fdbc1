//! `tokenizer.json` and `tokenizer_config.json` from metadata.
//!
//! Sources: llama.cpp, `gguf-py/gguf/vocab.py` (what is written), `src/llama-vocab.cpp` (what is
//! assumed where metadata are absent); transformers, `convert_slow_tokenizer.py` (merges of a
//! vocabulary with scores). The documents are those that the tokenizers library reads.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

use super::header::{Array, Value};
use crate::refusal::{Refusal, mismatch};

/// What a space is in a vocabulary of `SentencePiece`.
pub(crate) const SPACE: &str = "\u{2581}";
/// The template for conversations.
pub(crate) const TEMPLATE: &str = "tokenizer.chat_template";
/// Longer tokens have no merges: they are whole phrases, found before any merge.
const LONGEST_MERGED: usize = 256;
/// Rows of text before a BPE: `configs/tokenizers.json`.
const SPLITS: &str = include_str!("../../../../../configs/tokenizers.json");
const REMEDY: &str = "put the model's tokenizer.json beside the file";

type Metadata<'a> = BTreeMap<&'a str, Value<'a>>;

/// Whether the metadata have a vocabulary.
pub(super) fn is_there(metadata: &Metadata<'_>) -> bool {
    let model = text(metadata, "model");
    model.is_some_and(|model| !matches!(model, "none" | "no_vocab"))
}

/// Whether the metadata have a template for conversations.
pub(super) fn has_template(metadata: &Metadata<'_>) -> bool {
    metadata.contains_key(TEMPLATE)
}

/// The `tokenizer.json` that the metadata describe.
///
/// # Errors
/// A kind of tokenizer or of splitting text that is not known, and metadata that are missing or
/// contradict each other.
pub(crate) fn tokenizer(metadata: &Metadata<'_>) -> Result<Vec<u8>, Refusal> {
    let vocabulary = Vocabulary::new(metadata)?;
    let document = match text(metadata, "model") {
        Some("gpt2") => {
            let split = Split::find(text(metadata, "pre"))?;
            vocabulary.bytewise(&split, &merges(metadata)?)
        }
        Some("llama") => vocabulary.scored(flag(metadata, "add_space_prefix", true)),
        found => {
            let found = found.unwrap_or("none");
            return Err(mismatch("gpt2 or llama", format_args!("{found}; {REMEDY}"))
                .at("metadatum `tokenizer.ggml.model`"));
        }
    };
    let document = Document { post_processor: template(vocabulary.around()), ..document? };
    serde_json::to_vec(&document).map_err(|e| e.to_string().into())
}

/// The `tokenizer_config.json` that the metadata describe.
///
/// # Errors
/// Metadata that are missing or contradict each other.
pub(crate) fn config(metadata: &Metadata<'_>) -> Result<Vec<u8>, Refusal> {
    let vocabulary = Vocabulary::new(metadata)?;
    let config = vocabulary.config(vocabulary.around().map(|token| token.is_some()));
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

fn texts<'a>(metadata: &Metadata<'a>, key: &str) -> Result<Vec<&'a str>, Refusal> {
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
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Split {
    /// What `tokenizer.ggml.pre` may be; the first is what is written.
    names: Vec<String>,
    /// Expressions whose matches become pieces, one after the other.
    splits: Vec<String>,
    /// Whether text is normalized, Unicode's form C.
    #[serde(default)]
    nfc: bool,
    /// Whether a piece that is a token is not cut.
    #[serde(default)]
    ignore_merges: bool,
    /// Whether a text begins with the token for it where the metadata do not say.
    #[serde(default)]
    add_bos: bool,
}

impl Split {
    /// What `tokenizer.ggml.pre` says of a tokenizer that cuts text by these expressions. Unicode's form
    /// decides only between names that differ in nothing else: llama.cpp knows none.
    pub(crate) fn name(splits: &[String], ignore_merges: bool, nfc: bool) -> Option<String> {
        let all: Vec<Self> = serde_json::from_str(SPLITS).expect("built-in tables are tested");
        let mut same = all
            .into_iter()
            .filter(|split| split.splits == splits && split.ignore_merges == ignore_merges);
        let first = same.next()?;
        let found = if first.nfc == nfc { None } else { same.find(|split| split.nfc == nfc) };
        found.unwrap_or(first).names.into_iter().next()
    }

    fn find(name: Option<&str>) -> Result<Self, Refusal> {
        let all: Vec<Self> = serde_json::from_str(SPLITS).expect("built-in tables are tested");
        let known: BTreeSet<_> = all.iter().flat_map(|split| split.names.clone()).collect();
        let has = |split: &Self| split.names.iter().any(|known| Some(known.as_str()) == name);
        all.into_iter().find(has).ok_or_else(|| {
            let known: Vec<_> = known.into_iter().collect();
            let (known, found) = (known.join(", "), name.unwrap_or("none"));
            mismatch(format_args!("one of {known}"), format_args!("{found}; {REMEDY}"))
                .at("metadatum `tokenizer.ggml.pre`")
        })
    }
}

/// `enum llama_token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    const fn from_value(value: &Value<'_>) -> Self {
        match value {
            Value::Whole(2) => Self::Unknown,
            Value::Whole(3) => Self::Control,
            Value::Whole(4) => Self::UserDefined,
            Value::Whole(5) => Self::Unused,
            Value::Whole(6) => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// A token that is found in a text before it is cut.
#[derive(Serialize)]
struct Added<'a> {
    id: usize,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

/// Tokens and what is said of each.
struct Vocabulary<'a> {
    metadata: &'a Metadata<'a>,
    tokens: Vec<Cow<'a, str>>,
    kinds: Vec<Kind>,
}

impl<'a> Vocabulary<'a> {
    fn new(metadata: &'a Metadata<'a>) -> Result<Self, Refusal> {
        let mut tokens: Vec<_> = texts(metadata, "tokens")?
            .into_iter()
            .map(Cow::Borrowed)
            .collect();
        let kinds = list(metadata, "token_type").map(|list| list.numbers().collect::<Vec<_>>());
        let kinds: Vec<_> = match kinds {
            Some(kinds) if kinds.len() == tokens.len() => {
                kinds.iter().map(Kind::from_value).collect()
            }
            None => vec![Kind::Normal; tokens.len()],
            Some(kinds) => {
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
        Ok(Self { metadata, tokens, kinds })
    }

    /// The number and text of a token that the metadata name.
    fn named(&self, name: &str) -> Option<(usize, &str)> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(Value::Whole(id)) = self.metadata.get(key.as_str()) else { return None };
        let id = usize::try_from(*id).ok()?;
        Some((id, self.tokens.get(id)?))
    }

    /// The tokens before and after a text.
    fn around(&self) -> [Option<(usize, &str)>; 2] {
        let split = || Split::find(text(self.metadata, "pre"));
        let bos = text(self.metadata, "model") == Some("llama")
            || split().is_ok_and(|split| split.add_bos);
        let around = [
            flag(self.metadata, "add_bos_token", bos).then(|| self.named("bos")),
            flag(self.metadata, "add_eos_token", false).then(|| self.named("eos")),
        ];
        around.map(Option::flatten)
    }

    fn added(&self) -> Vec<Added<'_>> {
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        let found = |kind, content: &str| match kind {
            Kind::Unknown | Kind::Control => true,
            // What would be found in no text.
            Kind::UserDefined => content.chars().any(|c| !SPACE.contains(c)),
            Kind::Normal | Kind::Unused | Kind::Byte => false,
        };
        tokens
            .filter(|(_, (content, kind))| !content.is_empty() && found(**kind, content))
            .map(|(id, (content, kind))| Added {
                id,
                content,
                single_word: false,
                lstrip: false,
                rstrip: false,
                normalized: false,
                special: *kind != Kind::UserDefined,
            })
            .collect()
    }

    /// Tokens by text, the first of equal ones; those `without` left out.
    fn ids(&self, without: Option<Kind>) -> Vec<(&str, usize)> {
        let mut seen = BTreeSet::new();
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        tokens
            .map(|(id, (text, kind))| (text.as_ref(), id, *kind))
            .filter(|(text, _, kind)| Some(*kind) != without && seen.insert(*text))
            .map(|(text, id, _)| (text, id))
            .collect()
    }

    /// Bytes as letters, and merges in their order.
    fn bytewise<'b>(
        &'b self,
        split: &Split,
        merges: &[(&'b str, &'b str)],
    ) -> Result<Document<'b>, Refusal> {
        // What fills a vocabulary up to the rows of a matrix is no token.
        let ids = self.ids(Some(Kind::Unused));
        let known: BTreeSet<_> = ids.iter().map(|(text, _)| *text).collect();
        let strange = |(a, b): &&(&str, &str)| {
            ![*a, *b, &format!("{a}{b}")]
                .iter()
                .all(|text| known.contains(text))
        };
        if let Some((a, b)) = merges.iter().find(strange) {
            return Err(mismatch("tokens", format_args!("`{a} {b}`"))
                .at("metadatum `tokenizer.ggml.merges`"));
        }
        let pieces = split.splits.iter().map(|expression| {
            json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
                   "invert": false})
        });
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                           "use_regex": false});
        let pieces: Vec<_> = pieces.chain([bytes.clone()]).collect();
        let model =
            Model { ignore_merges: split.ignore_merges, ..Model::new(ids, merges.to_vec()) };
        Ok(Document {
            normalizer: if split.nfc { json!({"type": "NFC"}) } else { Json::Null },
            pre_tokenizer: json!({"type": "Sequence", "pretokenizers": pieces}),
            decoder: bytes,
            ..Document::new(self.added(), model)
        })
    }

    /// Characters, bytes where there is no token for one, and merges by the scores of their tokens.
    fn scored(&self, space_first: bool) -> Result<Document<'_>, Refusal> {
        let scores: Vec<f32> = match list(self.metadata, "scores") {
            Some(list) => list.numbers().map(|value| value.as_f32()).collect(),
            None => Vec::new(),
        };
        if scores.len() != self.tokens.len() {
            let (expected, found) = (self.tokens.len(), scores.len());
            return Err(mismatch(format_args!("{expected} scores"), found)
                .at("metadatum `tokenizer.ggml.scores`"));
        }
        let unknown = self.kinds.iter().position(|kind| *kind == Kind::Unknown);
        let unknown = unknown.map(|id| (id, self.tokens[id].as_ref()));
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let prepend = space_first.then(|| json!({"type": "Prepend", "prepend": SPACE}));
        let normalizers: Vec<_> = prepend.into_iter().chain([replace(" ", SPACE)]).collect();
        let strip =
            space_first.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        let decoders =
            [replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
        let decoders: Vec<_> = decoders.into_iter().chain(strip).collect();
        let ids = self.ids(None);
        let merges = self.merged(&ids, &scores);
        let unk_token = self.named("unknown").or(unknown).map(|(_, text)| text);
        let model =
            Model { unk_token, fuse_unk: true, byte_fallback: true, ..Model::new(ids, merges) };
        Ok(Document {
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            ..Document::new(self.added(), model)
        })
    }

    /// Every pair of tokens that makes another: the best score of the whole first, equal ones by
    /// number, then the longest first part. What users defined has no score of its own and keeps
    /// its place among the numbers.
    fn merged(&self, ids: &[(&str, usize)], scores: &[f32]) -> Vec<(&str, &str)> {
        let known: HashMap<_, _> = ids.iter().copied().collect();
        let mut last = f32::INFINITY;
        let own = self.kinds.iter().zip(scores).map(|(kind, score)| {
            last = if *kind == Kind::Normal { *score } else { last };
            if *kind == Kind::UserDefined { last } else { *score }
        });
        let scores: Vec<f32> = own.collect();
        let mut order: Vec<usize> = ids
            .iter()
            .filter(|(text, _)| text.len() <= LONGEST_MERGED)
            .map(|(_, id)| *id)
            .collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        let mut merges = Vec::new();
        for id in order {
            let whole = self.tokens[id].as_ref();
            let cuts = whole
                .char_indices()
                .skip(1)
                .map(|(at, _)| whole.split_at(at));
            let pairs = cuts.filter(|(a, b)| known.contains_key(a) && known.contains_key(b));
            let first = merges.len();
            merges.extend(pairs);
            merges[first..].reverse();
        }
        merges
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

/// What is put around a text, if anything: the tokens before and after it.
fn template(around: [Option<(usize, &str)>; 2]) -> Json {
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

/// `tokenizer.json`.
#[derive(Serialize)]
struct Document<'a> {
    version: &'static str,
    truncation: Json,
    padding: Json,
    added_tokens: Vec<Added<'a>>,
    normalizer: Json,
    pre_tokenizer: Json,
    post_processor: Json,
    decoder: Json,
    model: Model<'a>,
}

impl<'a> Document<'a> {
    const fn new(added_tokens: Vec<Added<'a>>, model: Model<'a>) -> Self {
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
}

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    dropout: Json,
    unk_token: Option<&'a str>,
    continuing_subword_prefix: Json,
    end_of_word_suffix: Json,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_object")]
    vocab: Vec<(&'a str, usize)>,
    merges: Vec<(&'a str, &'a str)>,
}

impl<'a> Model<'a> {
    const fn new(vocab: Vec<(&'a str, usize)>, merges: Vec<(&'a str, &'a str)>) -> Self {
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

/// Pairs as an object, in their order.
fn as_object<S: Serializer>(pairs: &[(&str, usize)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}
