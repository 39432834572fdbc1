//! The metadata of a tokenizer: see `checkpoint::gguf::tokenizer`, which reads them.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use super::header::Datum;
use crate::checkpoint::gguf::tokenizer::TEMPLATE;
use crate::checkpoint::tokenizer::{NamedToken, SPACE, Split, TokensBeside};
use crate::refusal::{Refusal, mismatch};

/// The expression by which GPT-2 cuts text.
const GPT2: &str =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/// `enum llama_token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;
/// Score of what no merge makes: below that of any that one does.
const NEVER: f32 = -1e6;

/// The tokens that a configuration has for the start and the ends of a text.
#[derive(Clone, Copy, Default)]
pub(super) struct Ends<'a> {
    pub(super) bos: Option<u32>,
    pub(super) eos: &'a [u32],
}

/// What is read of a tokenizer's files.
#[derive(Debug)]
pub struct Tokenizer {
    document: Document,
    config: Value,
    template: Option<String>,
}

/// `tokenizer.json`.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Bpe,
}

#[derive(Debug, Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Its kind of model.
#[derive(Deserialize)]
struct Named {
    model: Kind,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type", default)]
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Bpe {
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Two tokens that become one, in either form that there is.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair([String; 2]),
}

impl Merge {
    fn parts(&self) -> Option<(&str, &str)> {
        match self {
            Self::Text(text) => text.split_once(' '),
            Self::Pair([a, b]) => Some((a, b)),
        }
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and a template for conversations beside them.
    ///
    /// # Errors
    /// A tokenizer that is no byte-pair encoding.
    pub fn parse(
        document: &[u8],
        config: Option<&[u8]>,
        template: Option<String>,
    ) -> Result<Self, Refusal> {
        let wrong = |file: &str, e: &dyn std::fmt::Display| format!("{file}: {e}");
        // Of other kinds the rest has other forms.
        let named: Named =
            serde_json::from_slice(document).map_err(|e| wrong("tokenizer.json", &e))?;
        if let Some(kind) = named.model.kind.filter(|kind| kind != "BPE") {
            return Err(mismatch("a model of type BPE", kind).at("tokenizer.json"));
        }
        let document: Document =
            serde_json::from_slice(document).map_err(|e| wrong("tokenizer.json", &e))?;
        let config = config.map_or(Ok(Value::Null), serde_json::from_slice);
        let config: Value = config.map_err(|e| wrong("tokenizer_config.json", &e))?;
        let template = template.or_else(|| own_template(&config));
        Ok(Self { document, config, template })
    }

    /// The metadata, for a model whose embedding has a row for each token.
    pub(super) fn metadata(
        &self,
        rows: u32,
        ends: Ends<'_>,
    ) -> Result<Vec<(String, Datum)>, Refusal> {
        let (mut tokens, mut kinds) = self.tokens(rows)?;
        let model = &self.document.model;
        let mut all = if model.byte_fallback {
            let scores = self.scores(&tokens);
            for (text, kind) in tokens.iter_mut().zip(&kinds) {
                if *kind == USER_DEFINED {
                    *text = text.replace(SPACE, " ");
                }
            }
            vec![
                ("model", Datum::Text("llama".to_owned())),
                ("scores", Datum::F32s(scores)),
                ("add_space_prefix", Datum::Bool(mentions(&self.document.normalizer, "Prepend"))),
            ]
        } else {
            // A byte is never written as such.
            kinds
                .iter_mut()
                .filter(|k| [UNKNOWN, BYTE].contains(k))
                .for_each(|k| *k = NORMAL);
            let merges = model.merges.iter().filter_map(Merge::parts);
            let merges = merges.map(|(a, b)| format!("{a} {b}")).collect();
            vec![
                ("model", Datum::Text("gpt2".to_owned())),
                ("pre", Datum::Text(self.pre()?)),
                ("merges", Datum::Texts(merges)),
            ]
        };
        all.extend([("tokens", Datum::Texts(tokens)), ("token_type", Datum::I32s(kinds))]);
        self.special(ends, &mut all)?;
        let named = all
            .into_iter()
            .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value));
        let template = self.template.iter().cloned();
        let template = template.map(|text| (TEMPLATE.to_owned(), Datum::Text(text)));
        Ok(named.chain(template).collect())
    }

    /// Text and kind of every row of the embedding.
    fn tokens(&self, rows: u32) -> Result<(Vec<String>, Vec<i32>), Refusal> {
        let model = &self.document.model;
        let mut tokens: Vec<_> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut kinds = vec![UNUSED; rows as usize];
        let mut set = |id: u32, text: &str, kind: i32| {
            let at = tokens.get_mut(id as usize).ok_or_else(|| {
                mismatch(format_args!("tokens below {rows}"), format_args!("{id}: `{text}`"))
                    .at("tokenizer.json")
            })?;
            text.clone_into(at);
            kinds[id as usize] = kind;
            Ok::<_, Refusal>(())
        };
        for (text, id) in &model.vocab {
            let unknown = model.unk_token.as_ref() == Some(text);
            let kind = if is_byte(text) { BYTE } else { NORMAL };
            set(*id, text, if unknown { UNKNOWN } else { kind })?;
        }
        for added in &self.document.added_tokens {
            let unknown = model.byte_fallback && model.unk_token.as_ref() == Some(&added.content);
            let kind = if added.special { CONTROL } else { USER_DEFINED };
            set(added.id, &added.content, if unknown { UNKNOWN } else { kind })?;
        }
        Ok((tokens, kinds))
    }

    /// Scores in the order of merges: that by which a vocabulary was turned into merges.
    fn scores(&self, tokens: &[String]) -> Vec<f32> {
        let mut ranks = HashMap::new();
        for (a, b) in self.document.model.merges.iter().filter_map(Merge::parts) {
            let next = ranks.len();
            ranks.entry(format!("{a}{b}")).or_insert(next);
        }
        let score = |text: &String| ranks.get(text).map_or(NEVER, |rank| -(*rank as f32));
        tokens.iter().map(score).collect()
    }

    /// How text is cut.
    fn pre(&self) -> Result<String, Refusal> {
        let document = &self.document;
        let mut splits = Vec::new();
        expressions(&document.pre_tokenizer, &mut splits)?;
        let nfc = mentions(&document.normalizer, "NFC");
        Split::name(&splits, document.model.ignore_merges, nfc).ok_or_else(|| {
            mismatch(
                "a way of cutting text that configs/tokenizers.json has",
                format_args!("{splits:?}"),
            )
            .at("tokenizer.json")
        })
    }

    /// Tokens with a use of their own, and what is put around a text.
    fn special(&self, ends: Ends<'_>, all: &mut Vec<(&'static str, Datum)>) -> Result<(), Refusal> {
        let around = around(&self.document.post_processor)?;
        let [first, last] = around.clone().unwrap_or_default();
        let own = |key: &str| self.config.get(key).and_then(|token| self.id(token));
        let known = |token: &Option<String>| self.named(token.as_deref()?);
        let bos = known(&first).or_else(|| own("bos_token")).or(ends.bos);
        let ends = ends.eos;
        let eos = known(&last)
            .or_else(|| own("eos_token"))
            .or(ends.first().copied());
        let eot = ends.iter().copied().find(|id| Some(*id) != eos);
        for (key, id) in [
            ("bos_token_id", bos),
            ("eos_token_id", eos),
            ("eot_token_id", eot),
            ("padding_token_id", own("pad_token")),
            ("unknown_token_id", own("unk_token")),
        ] {
            all.extend(id.map(|id| (key, Datum::U32(id))));
        }
        let flag = |key: &str| {
            self.config
                .get(key)
                .and_then(Value::as_bool)
                .unwrap_or(false)
        };
        let (before, after) = match around {
            Some([first, last]) => (first.is_some(), last.is_some()),
            None => (flag("add_bos_token"), flag("add_eos_token")),
        };
        all.push(("add_bos_token", Datum::Bool(before)));
        all.push(("add_eos_token", Datum::Bool(after)));
        Ok(())
    }

    /// Adds the tokens that files beside the tokenizer name and it lacks, with the numbers that transformers gives them.
    #[must_use]
    pub fn with(mut self, beside: &TokensBeside) -> Self {
        let vocab = self.document.model.vocab.len() as u32;
        let added = self
            .document
            .added_tokens
            .iter()
            .map(|added| added.id.saturating_add(1));
        let mut next = added.max().unwrap_or(0).max(vocab);
        let known = self.document.added_tokens.iter();
        let mut known: HashSet<String> = known.map(|added| added.content.clone()).collect();
        for token in beside.numbered.iter().chain(&beside.named) {
            let NamedToken { content, special, .. } = token;
            if content.is_empty() || !known.insert(content.clone()) {
                continue;
            }
            let own = self.document.model.vocab.get(content).copied();
            let id = own.unwrap_or(next);
            next += u32::from(own.is_none());
            self.document.added_tokens.push(Added {
                id,
                content: content.clone(),
                special: *special,
            });
        }
        self
    }

    /// The number of a token of `tokenizer_config.json`, which is a text or has one.
    fn id(&self, token: &Value) -> Option<u32> {
        self.named(token.as_str().or_else(|| token.get("content")?.as_str())?)
    }

    fn named(&self, text: &str) -> Option<u32> {
        let added = self
            .document
            .added_tokens
            .iter()
            .find(|added| added.content == text);
        let added = added.map(|added| added.id);
        added.or_else(|| self.document.model.vocab.get(text).copied())
    }
}

/// The template in `tokenizer_config.json`: one, or the one called default.
fn own_template(config: &Value) -> Option<String> {
    let template = config.get("chat_template")?;
    let named = |all: &Vec<Value>| {
        let default = all.iter().find(|one| one["name"] == "default")?;
        default.get("template")?.as_str().map(str::to_owned)
    };
    let text = template.as_str().map(str::to_owned);
    text.or_else(|| template.as_array().and_then(named))
}

/// Whether a token stands for one byte: `<0x0A>`.
fn is_byte(text: &str) -> bool {
    let digits = text
        .strip_prefix("<0x")
        .and_then(|text| text.strip_suffix('>'));
    digits.is_some_and(|d| d.len() == 2 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The parts of a component that may be a sequence of such.
fn parts<'a>(component: &'a Value, list: &str) -> Vec<&'a Value> {
    match component.get(list).and_then(Value::as_array) {
        Some(parts) => parts
            .iter()
            .flat_map(|part| self::parts(part, list))
            .collect(),
        None => vec![component],
    }
}

/// Whether a normalizer has a part of a type.
fn mentions(normalizer: &Value, kind: &str) -> bool {
    parts(normalizer, "normalizers")
        .iter()
        .any(|part| part["type"] == kind)
}

/// The expressions by which text is cut, one after the other.
fn expressions(component: &Value, out: &mut Vec<String>) -> Result<(), Refusal> {
    for part in parts(component, "pretokenizers") {
        let isolated = part["behavior"] == "Isolated" && part["invert"] != true;
        let expression = match (part["type"].as_str(), part["pattern"]["Regex"].as_str()) {
            (Some("Split"), Some(regex)) if isolated => Some(regex),
            (Some("Digits"), _) if part["individual_digits"] == true => Some("\\p{N}"),
            (Some("Digits"), _) => Some("\\p{N}+"),
            (Some("ByteLevel"), _) if part["add_prefix_space"] != true => {
                (part["use_regex"] != false).then_some(GPT2)
            }
            _ => {
                let expected = "expected expressions that isolate their matches";
                return Err(
                    format!("tokenizer.json: pre_tokenizer: {expected}, found {part}").into()
                );
            }
        };
        out.extend(expression.map(str::to_owned));
    }
    Ok(())
}

/// The tokens before and after a text, where a template says it.
fn around(processor: &Value) -> Result<Option<[Option<String>; 2]>, Refusal> {
    let all = parts(processor, "processors");
    let Some(template) = all
        .into_iter()
        .find(|part| part["type"] == "TemplateProcessing")
    else {
        return Ok(None);
    };
    let pieces = template["single"].as_array().map_or(&[][..], Vec::as_slice);
    let special = |piece: &Value| piece["SpecialToken"]["id"].as_str().map(str::to_owned);
    let at = pieces
        .iter()
        .position(|piece| piece.get("Sequence").is_some());
    let at = at.unwrap_or(pieces.len());
    let (before, after) = (&pieces[..at], pieces.get(at + 1..).unwrap_or_default());
    if before.len() > 1 || after.len() > 1 {
        let found = before.len().max(after.len());
        return Err(mismatch("one token before or after a text", found)
            .at("tokenizer.json: post_processor"));
    }
    Ok(Some([before.first().and_then(special), after.first().and_then(special)]))
}
