//! Where a chat template stands, and the special tokens that it may name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use shardwright_format::checkpoint::{CHAT_TEMPLATE_NAME, TOKENIZER_CONFIG_NAME};
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::weights::Weights;
use shardwright_format::written_json;

use crate::error::{Result, RuntimeError};

/// The template in a file of a processor's.
const JSON: &str = "chat_template.json";
/// Special tokens in older checkpoints.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// The member with the template, or with several of them by name.
const MEMBER: &str = "chat_template";
/// The one of several that is for conversations without tools.
const DEFAULT: &str = "default";
/// What templates may print of a tokenizer.
pub(super) const TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A template and its surroundings.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) source: String,
    /// Special tokens by what the template calls them.
    pub(super) tokens: BTreeMap<String, String>,
}

/// The template of a model, if it has one.
pub(super) fn find(weights: &Weights) -> Result<Option<Found>> {
    let config = document(weights, TOKENIZER_CONFIG_NAME)?;
    let Some((name, source)) = source(weights, &config)? else { return Ok(None) };
    let tokens = tokens(&document(weights, SPECIAL_TOKENS)?)
        .chain(tokens(&config))
        .collect();
    Ok(Some(Found { path: weights.root().join(name), source, tokens }))
}

/// The file of its own counts before any other.
fn source(weights: &Weights, config: &Value) -> Result<Option<(&'static str, String)>> {
    if let Some(bytes) = weights.companion(CHAT_TEMPLATE_NAME, TOKENIZER_LIMIT)? {
        let text = String::from_utf8(bytes);
        let text = text.map_err(|e| refused(weights.root(), CHAT_TEMPLATE_NAME, e.to_string()))?;
        return Ok(Some((CHAT_TEMPLATE_NAME, text)));
    }
    for (name, document) in [(TOKENIZER_CONFIG_NAME, config), (JSON, &document(weights, JSON)?)] {
        let source = chosen(&document[MEMBER]);
        let source = source.map_err(|detail| refused(weights.root(), name, detail))?;
        if let Some(source) = source {
            return Ok(Some((name, source)));
        }
    }
    Ok(None)
}

/// A template, or the one of several, in a list or by name, that is for plain conversations.
fn chosen(member: &Value) -> Result<Option<String>, String> {
    let named: Vec<(Option<&str>, &Value)> = match member {
        Value::Null => return Ok(None),
        Value::String(text) => return Ok(Some(text.clone())),
        Value::Array(all) => all
            .iter()
            .map(|one| (one["name"].as_str(), &one["template"]))
            .collect(),
        Value::Object(all) => all
            .iter()
            .map(|(name, one)| (Some(name.as_str()), one))
            .collect(),
        _ => return Err(format!("`{MEMBER}`: expected a text or several by name")),
    };
    let only = if named.len() == 1 { named.first() } else { None };
    let one = named
        .iter()
        .find(|(name, _)| *name == Some(DEFAULT))
        .or(only);
    let text = one.and_then(|(_, one)| one.as_str());
    let text = text.ok_or_else(|| format!("`{MEMBER}`: expected one named `{DEFAULT}`"))?;
    Ok(Some(text.to_owned()))
}

fn document(weights: &Weights, name: &str) -> Result<Value> {
    let Some(bytes) = weights.companion(name, TOKENIZER_LIMIT)? else { return Ok(Value::Null) };
    written_json::parse(&bytes).map_err(|e| refused(weights.root(), name, e.to_string()))
}

fn refused(root: &Path, name: &str, detail: String) -> RuntimeError {
    RuntimeError::template(&root.join(name), detail)
}

/// A token is its text, or an object with it.
fn tokens(config: &Value) -> impl Iterator<Item = (String, String)> {
    TOKENS.into_iter().filter_map(|name| {
        let token = &config[name];
        let text = token.as_str().or_else(|| token["content"].as_str())?;
        Some((name.to_owned(), text.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use shardwright_testing::fixture;

    use super::*;

    #[test]
    fn one_of_several_templates_is_for_conversations() {
        let two =
            json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(chosen(&two), Ok(Some("d".to_owned())));
        assert_eq!(chosen(&json!([{"name": "rag", "template": "r"}])), Ok(Some("r".to_owned())));
        assert_eq!(chosen(&Value::Null), Ok(None));
        let neither = json!([{"name": "a", "template": "a"}, {"name": "b", "template": "b"}]);
        let error = chosen(&neither).unwrap_err();
        assert_eq!(error, "`chat_template`: expected one named `default`");
    }

    /// As transformers takes one of several.
    #[test]
    fn several_templates_may_be_a_list_or_an_object() {
        let json = std::fs::read(fixture("chat/python.json")).unwrap();
        let document: Value = serde_json::from_slice(&json).unwrap();
        for case in document["several"].as_array().unwrap() {
            let found = chosen(&case["templates"]).ok().flatten();
            assert_eq!(found.as_deref(), case["plain"].as_str(), "{case}");
        }
        assert_eq!(chosen(&json!({"rag": "r"})), Ok(Some("r".to_owned())));
        let error = chosen(&json!(7)).unwrap_err();
        assert_eq!(error, "`chat_template`: expected a text or several by name");
    }

    #[test]
    fn a_token_is_a_text_or_an_object() {
        let config = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null});
        let found: Vec<_> = tokens(&config).collect();
        let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        assert_eq!(found, [pair("bos_token", "<s>"), pair("eos_token", "</s>")]);
    }
}
