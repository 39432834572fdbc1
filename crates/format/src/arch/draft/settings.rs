//! How `config.json` fits the parameters of a table: keys by other names, values that nothing
//! states, keys that nothing reads.

use serde_json::{Map, Value};

use super::{Marks, mark};
use crate::arch::config::shown;

/// Objects of `config.json` that describe the text model inside another.
const WRAPPERS: &[&str] = &["text_config", "language_config", "llm_config"];
/// Other names of parameters.
const SYNONYMS: &[(&str, &[&str])] = &[
    ("hidden_size", &["n_embd", "d_model", "dim"]),
    ("num_hidden_layers", &["n_layer", "num_layers", "n_layers"]),
    ("num_attention_heads", &["n_head", "num_heads", "n_heads"]),
    ("num_key_value_heads", &["n_kv_heads", "num_kv_heads", "n_head_kv"]),
    ("head_dim", &["attention_head_dim", "kv_channels"]),
    ("intermediate_size", &["ffn_hidden_size", "n_inner", "d_ff", "ffn_dim"]),
    ("moe_intermediate_size", &["expert_ffn_hidden_size", "moe_ffn_hidden_size"]),
    ("num_experts", &["n_routed_experts", "num_local_experts", "moe_num_experts", "n_experts"]),
    ("num_experts_per_tok", &["moe_top_k", "moe_topk", "experts_per_token", "top_k_experts"]),
    ("rms_norm_eps", &["norm_eps", "layer_norm_eps", "layernorm_epsilon", "rms_norm_epsilon"]),
    ("rope_theta", &["rotary_emb_base", "rope_base", "rotary_base"]),
    ("max_position_embeddings", &["n_positions", "max_seq_len", "seq_length", "n_ctx"]),
];
/// Keys that say nothing of how the model computes.
const HARMLESS: &[&str] = &[
    "architectures",
    "attention_dropout",
    "attn_dropout",
    "auto_map",
    "dtype",
    "hidden_act",
    "id2label",
    "initializer_range",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pad_token_id",
    "problem_type",
    "quantization_config",
    "return_dict",
    "rope_parameters",
    "rope_scaling",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vision_config",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "image_token_id",
    "image_token_index",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "embd_pdrop",
    "resid_pdrop",
    "router_z_loss_coef",
];
/// Parameters whose absence changes no product of the model.
const OPTIONAL: &[&str] = &["bos_token_id", "eos_token_id", "max_position_embeddings"];
/// Members of the rope object that stand for parameters of the same name.
const ROPE_MEMBERS: &[&str] = &["rope_theta", "partial_rotary_factor"];

/// The key of the object that describes the text model, where there is one.
pub(super) fn wrapper(config: &Value) -> Option<&'static str> {
    let inside = |key: &&&str| config.get(**key).is_some_and(Value::is_object);
    WRAPPERS.iter().find(inside).copied()
}

/// `config.json` with the text model's object on top.
pub(super) fn flat(config: &Value) -> Map<String, Value> {
    let mut flat = config.as_object().cloned().unwrap_or_default();
    if let Some(key) = wrapper(config) {
        let inner = flat.remove(key);
        flat.extend(
            inner
                .and_then(|inner| inner.as_object().cloned())
                .into_iter()
                .flatten(),
        );
    }
    flat
}

/// Whether the rope object states a parameter.
fn in_rope(name: &str, config: &Map<String, Value>) -> bool {
    let member = |key| config.get(key).and_then(|object: &Value| object.get(name));
    let mut objects = ["rope_parameters", "rope_scaling"].into_iter();
    ROPE_MEMBERS.contains(&name) && objects.any(|key| member(key).is_some())
}

/// The keys that a table reads.
fn read_keys(table: &Value) -> Vec<&str> {
    let parameters = table["parameters"].as_object().into_iter().flatten();
    let keys = parameters.flat_map(|(name, row)| {
        let keys = row.get("keys").and_then(Value::as_array);
        let named = keys.map(|keys| keys.iter().filter_map(Value::as_str).collect::<Vec<_>>());
        named.unwrap_or_else(|| vec![name.as_str()])
    });
    let supported = table["supported"].as_object().into_iter().flatten();
    keys.chain(supported.map(|(key, _)| key.as_str())).collect()
}

/// Keys with values that are neither nothing nor what changes nothing, and that `reads` has not.
pub(super) fn unread<'a>(
    config: &'a Map<String, Value>,
    reads: &dyn Fn(&str) -> bool,
) -> Vec<(&'a String, &'a Value)> {
    let idle = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64().is_some_and(|n| n == 0.0 || n == 1.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) => false,
    };
    let left = |(key, value): &(&String, &Value)| {
        !idle(value) && !HARMLESS.contains(&key.as_str()) && !reads(key)
    };
    config.iter().filter(left).collect()
}

/// Whether any of `tables` reads a key.
pub(super) fn is_read(tables: &[Value], key: &str) -> bool {
    let synonym = || {
        SYNONYMS
            .iter()
            .any(|(name, others)| *name == key || others.contains(&key))
    };
    tables.iter().any(|table| read_keys(table).contains(&key)) || synonym()
}

/// How many parameters `config.json` states, less those that only the table knows.
pub(super) fn agreement(table: &Value, config: &Map<String, Value>) -> i64 {
    let has = |key: &&str| config.contains_key(*key);
    let read = read_keys(table).into_iter().filter(has).count() as i64;
    let parameters = table["parameters"].as_object().into_iter().flatten();
    // What is off unless stated says nothing of which model this is.
    let assumed = parameters.filter(|(name, row)| {
        is_assumed(name, row, config) && row.get("default") != Some(&Value::Bool(false))
    });
    let assumed = assumed.count() as i64;
    2 * read - assumed
}

/// Whether only a table's default gives a parameter.
fn is_assumed(name: &str, row: &Value, config: &Map<String, Value>) -> bool {
    let own = [Value::from(name)];
    let keys = row
        .get("keys")
        .and_then(Value::as_array)
        .map_or(&own[..], Vec::as_slice);
    let stated = keys
        .iter()
        .filter_map(Value::as_str)
        .any(|key| config.contains_key(key));
    let default = row
        .get("default")
        .filter(|value| !value.is_null() && !value.is_string());
    !stated && default.is_some() && !OPTIONAL.contains(&name) && !in_rope(name, config)
}

/// Gives parameters the keys they have here, and marks what is assumed and what is not read.
pub(super) fn fit(
    table: &mut Value,
    nearest: &str,
    config: &Map<String, Value>,
    marks: &mut Marks,
) {
    let Some(parameters) = table["parameters"].as_object_mut() else { return };
    for (name, row) in parameters.iter_mut() {
        let synonyms = SYNONYMS.iter().find(|(known, _)| known == name);
        let stated = config.contains_key(name)
            || row
                .get("keys")
                .and_then(Value::as_array)
                .is_some_and(|keys| {
                    keys.iter()
                        .filter_map(Value::as_str)
                        .any(|k| config.contains_key(k))
                });
        let other =
            synonyms.and_then(|(_, keys)| keys.iter().find(|key| config.contains_key(**key)));
        if let (false, Some(key)) = (stated, other) {
            row["keys"] = Value::from(vec![*key]);
            mark(marks, format!("parameters.{name}"), format!("read from `{key}`, by its name"));
        } else if is_assumed(name, row, config) {
            let default = shown(row.get("default"));
            let why = format!("config.json does not say; {default} is the default of {nearest}");
            mark(marks, format!("parameters.{name}"), why);
        }
    }
    let keys = read_keys(table);
    for (key, value) in unread(config, &|key| keys.contains(&key)) {
        let why = format!("config.json has {}, which no row reads", shown(Some(value)));
        mark(marks, format!("config.{key}"), why);
    }
}
