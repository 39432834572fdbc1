//! `config.json` from metadata.

use serde_json::{Map, Value as Json};

use super::facts::Facts;
use super::header::Value;
use super::rope::{self, Factors};
use crate::refusal::Refusal;
use crate::turns;

/// Tokens that end a turn of a conversation, by what they are called where the metadata do not say.
/// Source: llama.cpp, `src/llama-vocab.cpp`.
const TURN_ENDS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"];
/// Who else ends a text, beside `eos_token_id`.
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// The `config.json` of a file; `factors` are those of its rotary frequencies, by tensor.
///
/// # Errors
/// Metadata that are missing, that contradict each other or that no model of ours has.
pub(super) fn make(facts: &Facts<'_>, factors: &Factors) -> Result<Json, Refusal> {
    facts.check_known()?;
    let mut config = Map::new();
    for (name, origin) in &facts.table.config.0 {
        let value = facts.value(origin)?;
        // What one value says of all layers, another member has.
        if !(value.is_null() && origin.is_by_layer()) {
            config.insert(name.clone(), value);
        }
    }
    end_turns(facts, &mut config);
    if let Some(scaling) = rope::scaling(facts, &config, factors)? {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    Ok(Json::Object(config))
}

/// Adds the tokens that end a turn to those that end a text.
fn end_turns(facts: &Facts<'_>, config: &mut Map<String, Json>) {
    let Some(Json::Number(end)) = config.get("eos_token_id") else { return };
    let mut ends = vec![Json::Number(end.clone())];
    let named = ENDS.iter().filter_map(|key| match facts.metadata.get(key) {
        Some(Value::Whole(id)) => Some(Json::from(*id)),
        _ => None,
    });
    let mut named: Vec<_> = named.collect();
    let by_name = turn_ends(facts, named.is_empty());
    named.extend(by_name.into_iter().map(Json::from));
    for end in named {
        if !ends.contains(&end) {
            ends.push(end);
        }
    }
    if ends.len() > 1 {
        config.insert("eos_token_id".to_owned(), ends.into());
    }
}

/// The numbers of the tokens that are called like ends of a turn: all of a model whose turns have several
/// messages; of others the first, if `unsaid`.
fn turn_ends(facts: &Facts<'_>, unsaid: bool) -> Vec<u64> {
    let Some(Value::Array(tokens)) = facts.metadata.get("tokenizer.ggml.tokens") else {
        return Vec::new();
    };
    let tokens = tokens.texts().unwrap_or_default();
    let find = |name: &str| tokens.iter().position(|token| *token == name);
    let find = |name: &str| find(name).map(|id| id as u64);
    let several = turns::ends(find);
    if !several.is_empty() {
        return several;
    }
    // Beside the end of a turn of several messages, that of a message.
    let other = find("<|return|>").or_else(|| find("<|call|>")).is_some();
    let ends = TURN_ENDS
        .iter()
        .filter(|name| **name != "<|end|>" || !other);
    let first = ends.filter(|_| unsaid).find_map(|name| find(name));
    first.into_iter().collect()
}
