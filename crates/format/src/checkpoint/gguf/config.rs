//! `config.json` from metadata.

use serde_json::{Map, Value as Json};

use super::facts::Facts;
use super::header::Value;
use super::rope::{self, Factors};
use super::table::Origin;
use crate::checkpoint::file_names::CONFIG_NAME;
use crate::refusal::Refusal;
use crate::turns;

/// Tokens that end a turn of a conversation, by what they are called where the metadata do not say.
/// Source: llama.cpp, `src/llama-vocab.cpp`.
const TURN_ENDS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"];
/// The kind of scaling that files may leave out.
const YARN: &str = "yarn";
/// The key of how positions are scaled.
const SCALING: &str = "rope_scaling";
/// Who else ends a text, beside `eos_token_id`.
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// The `config.json` of a file; `factors` are those of its rotary frequencies, by tensor.
///
/// # Errors
/// Metadata that are missing or that contradict each other.
pub(super) fn make(facts: &Facts<'_>, factors: &Factors) -> Result<Json, Refusal> {
    let mut config = unscaled(facts)?;
    if let Some(scaling) = rope::scaling(facts, &config, factors)? {
        config.insert(SCALING.to_owned(), scaling);
    }
    Ok(Json::Object(config))
}

/// The same of a file beside which `own` describes the model too: from there is taken what nobody can tell by the
/// file, and what converters came to write later than files of the architecture. All else that a configuration has
/// they have always written, so that a file without it says that there is none.
///
/// # Errors
/// As [`make`].
pub(super) fn make_beside(
    facts: &Facts<'_>,
    factors: &Factors,
    own: &Json,
) -> Result<Json, Refusal> {
    let mut config = unscaled(facts)?;
    let own = stated_scaling(own);
    let scaling = match rope::scaling(facts, &config, factors) {
        Ok(found) => completed(facts, found, own),
        Err(_) => own,
    };
    config.insert(SCALING.to_owned(), scaling);
    let origins = facts.table.config.0.iter();
    for (name, _) in origins.filter(|(_, origin)| came_later(facts, origin)) {
        config.remove(name);
    }
    Ok(Json::Object(config))
}

/// Whether the file is of before its metadatum was written that is 0 where there is nothing of the kind: windows of
/// Phi-3, by pull request 8627 of llama.cpp.
fn came_later(facts: &Facts<'_>, origin: &Origin) -> bool {
    match origin {
        Origin::Positive { positive } => !facts.metadata.contains_key(positive.as_str()),
        _ => false,
    }
}

/// How the file says that positions are scaled, with what it leaves out by `own`: YaRN, which the converters of
/// several architectures wrote late or for some models alone, and members of it. Linear scaling they have always
/// written, and the factors of llama3 and longrope are tensors.
fn completed(facts: &Facts<'_>, found: Option<Json>, own: Json) -> Json {
    if own["rope_type"] != YARN {
        return found.unwrap_or_default();
    }
    match found {
        None if !rope::is_stated(facts) => own,
        Some(Json::Object(mut members))
            if members.get("rope_type").is_some_and(|kind| kind == YARN) =>
        {
            for (member, value) in own.as_object().into_iter().flatten() {
                members.entry(member).or_insert_with(|| value.clone());
            }
            members.into()
        }
        found => found.unwrap_or_default(),
    }
}

/// A note of scaling that `config.json` adds to metadata that say nothing of it and `config` has.
pub(super) fn added_scaling(facts: &Facts<'_>, config: &Json) -> Option<String> {
    let added = !rope::is_stated(facts) && config[SCALING]["rope_type"] == YARN;
    added.then(|| {
        format!("{CONFIG_NAME} beside the file counts: `{SCALING}` {YARN}, of which the metadata say nothing")
    })
}

/// How a configuration says that positions are scaled, but for the base of their frequencies.
fn stated_scaling(own: &Json) -> Json {
    let inner = own.get("text_config").unwrap_or(own);
    let mut keys = [SCALING, "rope_parameters"].into_iter();
    let found = keys.find_map(|key| inner.get(key).filter(|found| found.is_object()));
    let mut found = found.cloned().unwrap_or_default();
    if let Some(members) = found.as_object_mut() {
        members.remove("rope_theta");
        if let Some(kind) = members.remove("type") {
            members.entry("rope_type").or_insert(kind);
        }
    }
    found
}

/// What the metadata say but for how positions are scaled.
fn unscaled(facts: &Facts<'_>) -> Result<Map<String, Json>, Refusal> {
    let mut config = Map::new();
    for (name, origin) in &facts.table.config.0 {
        let value = facts.value(origin)?;
        // What one value says of all layers, another member has.
        if !(value.is_null() && origin.is_by_layer()) {
            config.insert(name.clone(), value);
        }
    }
    end_turns(facts, &mut config);
    Ok(config)
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
