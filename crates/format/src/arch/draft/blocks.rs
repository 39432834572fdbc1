//! Options of the blocks: what the tensors show is set, what they do not show is marked.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{Marks, mark};
use crate::role::Role;

/// Roles that a checkpoint has, with the shape of the first tensor of each.
pub(super) type Seen = BTreeMap<Role, Vec<u64>>;

/// Flags that tensors decide: block, option, role.
const SHOWN: &[(&str, &str, Role)] = &[
    ("attention", "qkv_bias", Role::QBias),
    ("attention", "o_bias", Role::OBias),
    ("attention", "sinks", Role::Sinks),
    ("latent", "bias", Role::QABias),
    ("mlp", "bias", Role::GateBias),
    ("moe", "router_bias", Role::RouterBias),
    ("moe", "correction_bias", Role::CorrectionBias),
    ("moe", "expert_bias", Role::ExpertGateBias),
];
/// Options that neither tensors nor keys show, with the value that most models have.
const HIDDEN: &[(&str, &str)] = &[
    ("/norm_plus_one", "false"),
    ("/scaling", "{}"),
    ("/attention/softmax_dim", "null"),
    ("/attention/softmax_scale", "null"),
    ("/attention/rotary/pairing", "\"half\""),
    ("/attention/full_without_rope", "false"),
    ("/attention/without_rope", "null"),
    ("/attention/rotary/query_growth", "null"),
    ("/attention/rotary/fixed_alpha", "false"),
    ("/attention/temperature", "null"),
    ("/attention/score_cap", "null"),
    ("/attention/inner_norm", "false"),
    ("/latent/rotary/pairing", "\"half\""),
    ("/mlp/ungated", "false"),
    ("/mlp/inner_norm", "false"),
    ("/mlp/adjusted", "null"),
    ("/moe/weights_on_input", "false"),
    ("/moe/clamped_swiglu", "null"),
];

/// Those of them that any model may have otherwise, whatever the nearest table says: marked in every
/// draft, by block, place and usual value.
const OPEN: &[(&str, &str, &str)] = &[
    ("", "/output_norms", "false"),
    ("/attention", "/attention/rotary/pairing", "half"),
    ("/attention", "/attention/softmax_scale", "one over the root of head_dim"),
    ("/latent", "/latent/rotary/pairing", "half"),
];
/// Keys that name the activation.
const ACTIVATIONS: &[&str] = &["hidden_act", "hidden_activation"];

/// How many options that nothing shows a table has other than most models: between tables that are
/// equally near the one with fewest is the better guess.
pub(super) fn oddities(table: &Value) -> usize {
    let odd = |(path, usual): &&(&str, &str)| {
        table
            .pointer(path)
            .is_some_and(|value| value.to_string().as_str() != *usual)
    };
    HIDDEN.iter().filter(odd).count()
}

/// Sets what the tensors show.
pub(super) fn fit(table: &mut Value, config: &Map<String, Value>, seen: &Seen, marks: &mut Marks) {
    for (block, option, role) in SHOWN {
        let has = seen.contains_key(role);
        let Some(options) = table.get_mut(*block).and_then(Value::as_object_mut) else { continue };
        let by_key = options.get(*option).and_then(Value::as_str);
        let stated = by_key.is_some_and(|name| config.contains_key(name));
        let silent = !has && !options.contains_key(*option);
        if !stated && !silent {
            options.insert((*option).to_owned(), Value::from(has));
        }
    }
    norms(table, config, seen, marks);
    shared_expert(table, config, seen, marks);
}

/// The norm of queries and keys, where the table fixes it.
fn norms(table: &mut Value, config: &Map<String, Value>, seen: &Seen, marks: &mut Marks) {
    let fixed = table
        .pointer_mut("/attention/qk_norm")
        .filter(|kind| kind.is_string());
    let Some(kind) = fixed else { return };
    let found = match (seen.get(&Role::QNorm), config.get("head_dim").and_then(Value::as_u64)) {
        (None, _) if kind == "weightless" => return,
        (None, _) => "none",
        (Some(shape), Some(dim)) if shape[..] != [dim] => "full",
        // Without a stated width the trial tells.
        (Some(_), None) if kind != "none" => return,
        (Some(_), _) => "per_head",
    };
    if kind != found {
        *kind = Value::from(found);
        mark(marks, "attention.qk_norm", "guessed from the norms' shape");
    }
}

/// A shared expert, where the table and the tensors differ.
fn shared_expert(table: &mut Value, config: &Map<String, Value>, seen: &Seen, marks: &mut Marks) {
    let has = seen.contains_key(&Role::SharedUpProj);
    let gated = seen.contains_key(&Role::SharedExpertGate);
    let Some(moe) = table.get_mut("moe").and_then(Value::as_object_mut) else { return };
    if !has {
        moe.remove("shared_expert");
        return;
    }
    if let Some(shared) = moe.get_mut("shared_expert") {
        shared["gated"] = Value::from(gated);
        return;
    }
    let own = "shared_expert_intermediate_size";
    let width = if config.contains_key(own) {
        own.to_owned()
    } else {
        moe["intermediate_size"].as_str().unwrap_or(own).to_owned()
    };
    let mut row = json!({"intermediate_size": width, "gated": gated});
    if let Some(count) = ["n_shared_experts", "num_shared_experts"]
        .iter()
        .find(|k| config.contains_key(**k))
    {
        row["count"] = Value::from(*count);
        table["parameters"][*count] = json!({});
    }
    table["moe"]["shared_expert"] = row;
    if table["parameters"].get(&width).is_none() {
        table["parameters"][&width] = json!({});
    }
    mark(marks, "moe.shared_expert", "added for its tensors; check the parameters it names");
}

/// Marks what could be otherwise in any model: where norms stand, which halves rotate together, how
/// scores are scaled, what the activation is.
fn mark_open(table: &Value, nearest: &str, config: &Map<String, Value>, marks: &mut Marks) {
    for (block, path, usual) in OPEN {
        if table.pointer(block).is_some() {
            let found = table.pointer(path).map(Value::to_string);
            let found = found.as_deref().unwrap_or(usual);
            let why = format!("{found}, as in {nearest}; neither tensors nor config.json show it");
            mark(marks, path[1..].replace('/', "."), why);
        }
    }
    let checked =
        |key: &&&str| config.contains_key(**key) && table["supported"].get(**key).is_some();
    if ACTIVATIONS.iter().find(checked).is_none() {
        let why = format!("as in {nearest}; config.json does not say");
        mark(marks, "mlp.activation", why);
    }
}

/// Marks what nothing in a checkpoint shows.
pub(super) fn mark_hidden(
    table: &Value,
    nearest: &str,
    config: &Map<String, Value>,
    marks: &mut Marks,
) {
    for (path, usual) in HIDDEN {
        let found = table
            .pointer(path)
            .map(Value::to_string)
            .filter(|value| value != usual);
        if found.is_some() {
            let why = format!("as in {nearest}; neither tensors nor config.json show it");
            mark(marks, path[1..].replace('/', "."), why);
        }
    }
    mark_open(table, nearest, config, marks);
    let keys: BTreeSet<_> = config.keys().map(String::as_str).collect();
    if table.get("moe").is_some() {
        let scoring = table
            .pointer("/moe/scoring")
            .and_then(Value::as_str)
            .unwrap_or("softmax");
        if !keys.contains("scoring_func") {
            let why = format!("{scoring}, as in {nearest}; config.json does not say");
            mark(marks, "moe.scoring", why);
        }
        if table
            .pointer("/moe/norm_topk_prob")
            .is_some_and(Value::is_boolean)
        {
            mark(marks, "moe.norm_topk_prob", format!("as in {nearest}; nothing shows it"));
        }
    }
    let listed = table.pointer("/layer_kinds/list").and_then(Value::as_str);
    let kinds = table.get("layer_kinds").is_some();
    if kinds && !listed.is_some_and(|name| config.get(name).is_some_and(Value::is_array)) {
        mark(marks, "layer_kinds", format!("as in {nearest}; config.json lists no kinds"));
    }
    let rows = table["fused"].as_array().into_iter().flatten();
    if rows
        .clone()
        .any(|row| row.get("interleaved") == Some(&Value::Bool(true)))
    {
        mark(marks, "fused.interleaved", format!("as in {nearest}; shapes do not show it"));
    }
}
