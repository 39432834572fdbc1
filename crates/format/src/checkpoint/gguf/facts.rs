//! What a GGUF file says of its model: metadata and shapes, looked up through a table.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::header::{Array, Value};
use super::table::{Origin, Table};
use crate::refusal::{Refusal, mismatch};

/// What to do about what nobody here knows.
pub(super) const CHECKPOINT: &str =
    "take the checkpoint for transformers that the file was made from";

/// What a file says, but for the values of its tensors.
pub(super) struct Facts<'a> {
    pub(super) table: &'a Table,
    pub(super) metadata: &'a BTreeMap<&'a str, Value<'a>>,
    /// Shapes, outermost dimension first.
    pub(super) shapes: &'a BTreeMap<String, Vec<u64>>,
}

impl Facts<'_> {
    /// Refuses metadata of the architecture that have no use: they may change what is computed.
    pub(super) fn check_known(&self) -> Result<(), Refusal> {
        let prefix = format!("{}.", self.table.architecture);
        for (key, value) in self.metadata {
            let Some(rest) = key.strip_prefix(&prefix) else { continue };
            if !self.table.knows(key) && !changes_nothing(rest, value) {
                let found =
                    single(value).map_or_else(|| "a list".to_owned(), |one| one.to_string());
                let detail = mismatch(
                    format_args!("one that {} lists", self.table.path),
                    format_args!("another, of {found}; {CHECKPOINT}"),
                );
                return Err(detail.at(format_args!("metadatum `{key}`")));
            }
        }
        for (key, allowed) in &self.table.supported {
            let Some(found) = self.get(key)? else { continue };
            if !allowed.contains(&found) {
                let allowed: Vec<_> = allowed.iter().map(Json::to_string).collect();
                let expected = allowed.join(" or ");
                let found = format_args!("{found}; {CHECKPOINT}");
                return Err(mismatch(expected, found).at(format_args!("metadatum `{key}`")));
            }
        }
        Ok(())
    }

    pub(super) fn value(&self, origin: &Origin) -> Result<Json, Refusal> {
        let has = |name: &String| self.shapes.contains_key(name);
        Ok(match origin {
            Origin::Keys { keys, default } => return self.agreed(keys, default.as_ref()),
            Origin::Less { key, less } => {
                let all = self.whole(key)?.ok_or_else(|| missing(key))?;
                let less = self.whole(less)?.unwrap_or_default();
                let left = all.checked_sub(less);
                left.ok_or_else(|| {
                    mismatch(format_args!("at least {less}"), all)
                        .at(format_args!("metadatum `{key}`"))
                })?
                .into()
            }
            Origin::Share { share, of, parts } => {
                let Some(part) = self.whole(share)? else { return Ok(Json::Null) };
                let whole = self.whole(of)?.filter(|whole| *whole > 0);
                let parts = parts
                    .as_ref()
                    .map(|key| self.whole(key)?.ok_or_else(|| missing(key)));
                let part = part as f64 * parts.transpose()?.unwrap_or(1) as f64;
                (part / whole.ok_or_else(|| missing(of))? as f64).into()
            }
            Origin::Positive { positive } => match self.whole(positive)? {
                Some(found) if found > 0 => found.into(),
                _ => Json::Null,
            },
            Origin::Layers { .. } => return self.layers(origin),
            Origin::Nonzero { nonzero } => return self.nonzero(nonzero),
            Origin::Value { value } => value.clone(),
            Origin::With { with } => has(with).into(),
            Origin::Without { without } => (!has(without)).into(),
            Origin::Choice { by, cases, absent, other } => {
                let chosen = match (self.get(by)?, absent) {
                    (Some(found), _) => cases.get(&found.to_string()),
                    (None, Some(absent)) => Some(&**absent),
                    (None, None) => None,
                };
                return self.value(chosen.unwrap_or(other));
            }
            Origin::RowsOf { rows_of } => {
                let rows = self.shapes.get(rows_of).and_then(|shape| shape.first());
                let rows =
                    rows.ok_or_else(|| mismatch(format_args!("tensor `{rows_of}`"), "none"))?;
                (*rows).into()
            }
        })
    }

    /// A metadatum that is one value; nothing for a list that is read layer by layer.
    pub(super) fn get(&self, key: &str) -> Result<Option<Json>, Refusal> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let value = match value {
            Value::Array(_) if self.table.tells_layers(key) => return Ok(None),
            Value::Array(array) => alike(key, array)?,
            value => *value,
        };
        let one = single(&value);
        one.map(Some).ok_or_else(|| {
            mismatch("one value", "a number that is not finite")
                .at(format_args!("metadatum `{key}`"))
        })
    }

    /// What a list says of every layer.
    fn layers(&self, origin: &Origin) -> Result<Json, Refusal> {
        let Origin::Layers { layers: key, kinds, other, absent } = origin else {
            return Ok(Json::Null);
        };
        let of = |what| self.whole(&format!("{}.{what}", self.table.architecture));
        let count = of("block_count")?.unwrap_or_default();
        // Layers that predict further tokens need no value.
        let own = count.saturating_sub(of("nextn_predict_layers")?.unwrap_or_default());
        let at = |detail: Refusal| detail.at(format_args!("metadatum `{key}`"));
        let array = match (self.metadata.get(key.as_str()), absent) {
            (Some(Value::Array(array)), _) => array,
            // A layer has tensors, of which a header has a bounded number.
            (None, Some(kind)) => {
                let layers = (0..own.min(self.shapes.len() as u64)).map(|_| kind.as_str());
                return Ok(layers.collect());
            }
            _ => return Ok(Json::Null),
        };
        if array.count != count && array.count != own {
            let expected = format_args!("a value for each of {count} layers");
            return Err(at(mismatch(expected, array.count)));
        }
        let name = |(layer, value): (usize, Value<'_>)| {
            let found = single(&value).map_or_else(|| "another".to_owned(), |v| v.to_string());
            let name = kinds.get(&found).or(other.as_ref());
            name.cloned().ok_or_else(|| {
                let known: Vec<_> = kinds.keys().map(String::as_str).collect();
                at(mismatch(known.join(" or "), format_args!("{found} in layer {layer}")))
            })
        };
        let layers = array.numbers().enumerate().take(own as usize);
        let names: Result<Vec<_>, _> = layers.map(name).collect();
        Ok(names?.into())
    }

    /// The value of all layers for which a list has not 0.
    fn nonzero(&self, key: &str) -> Result<Json, Refusal> {
        let Some(Value::Array(array)) = self.metadata.get(key) else {
            return self.get(key)?.ok_or_else(|| missing(key));
        };
        let values = array.numbers().enumerate();
        let mut values = values.filter(|(_, value)| *value != Value::Whole(0));
        let first = values.next().ok_or_else(|| missing(key))?;
        match values.find(|(_, value)| *value != first.1) {
            Some(other) => Err(unlike(key, first, other)),
            None => single(&first.1).ok_or_else(|| missing(key)),
        }
    }

    /// A metadatum that is a whole number.
    fn whole(&self, key: &str) -> Result<Option<u64>, Refusal> {
        let Some(found) = self.get(key)? else { return Ok(None) };
        let whole = found.as_u64();
        whole
            .map(Some)
            .ok_or_else(|| mismatch("a whole number", found).at(format_args!("metadatum `{key}`")))
    }

    /// The value of those of `keys` that are there.
    fn agreed(&self, keys: &[String], default: Option<&Json>) -> Result<Json, Refusal> {
        let mut first: Option<(&String, Json)> = None;
        for key in keys {
            let Some(found) = self.get(key)? else { continue };
            match &first {
                Some((other, expected)) if *expected != found => {
                    return Err(mismatch(format_args!("{expected} as in `{other}`"), found)
                        .at(format_args!("metadatum `{key}`")));
                }
                Some(_) => {}
                None => first = Some((key, found)),
            }
        }
        let value = first.map(|(_, value)| value).or_else(|| default.cloned());
        value.ok_or_else(|| missing(&keys.join("` or `")))
    }
}

/// Metadata of any architecture, by what follows its name, that change nothing where they are 0: parts that a model
/// has none of, and bounds and windows that are off. Source: llama.cpp, `gguf-py/gguf/constants.py` (names) and
/// `src/llama-model.cpp` (what 0 means).
const NONE_AT_ZERO: [&str; 36] = [
    "nextn_predict_layers",
    "leading_dense_block_count",
    "n_deepstack_layers",
    "embedding_length_out",
    "embedding_length_per_layer_input",
    "interleave_moe_layer_step",
    "moe_every_n_layers",
    "moe_latent_size",
    "expert_count",
    "expert_used_count",
    "expert_shared_count",
    "expert_group_count",
    "expert_group_used_count",
    "expert_gating_func",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_chunk_feed_forward_length",
    "expert_weights_scale",
    "expert_group_scale",
    "experts_per_group",
    "rescale_every_n_layers",
    "attention.sliding_window",
    "attention.shared_kv_layers",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attention.output_scale",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "router_logit_softcapping",
    "rope.scaling.yarn_log_multiplier",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
];
/// Those that change nothing where they are 1: factors, and one group of all.
const NONE_AT_ONE: [&str; 9] = [
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "expert_weights_scale",
    "expert_group_scale",
    "expert_group_count",
    "expert_group_used_count",
    "attention.output_scale",
    "rope.scaling.attn_factor",
];
/// Those that change nothing where they are false.
const NONE_IF_FALSE: [&str; 2] = ["use_parallel_residual", "swin_norm"];

/// Whether a metadatum, by what follows the architecture in its key, says of any model what is so without it.
fn changes_nothing(key: &str, value: &Value<'_>) -> bool {
    let number = value.as_f32();
    match key {
        // Of norms that subtract a mean, which no model here has.
        "attention.layer_norm_epsilon" | "attention.group_norm_epsilon" => true,
        "attention.causal" => *value == Value::Bool(true),
        "pooling_type" => number == 0.0,
        key => {
            number == 0.0 && NONE_AT_ZERO.contains(&key)
                || number == 1.0 && NONE_AT_ONE.contains(&key)
                || *value == Value::Bool(false) && NONE_IF_FALSE.contains(&key)
        }
    }
}

fn missing(key: &str) -> Refusal {
    mismatch("one", "none").at(format_args!("metadatum `{key}`"))
}

/// The value that a list has for every layer.
fn alike(key: &str, array: &Array<'_>) -> Result<Value<'static>, Refusal> {
    let mut values = array.numbers().enumerate();
    let first = values.next().ok_or_else(|| {
        let found = format!("a list of {} that is not", array.count);
        mismatch("the same number for every layer", found).at(format_args!("metadatum `{key}`"))
    })?;
    match values.find(|(_, value)| *value != first.1) {
        Some(other) => Err(unlike(key, first, other)),
        None => Ok(first.1),
    }
}

/// Two layers, by their numbers, for which a list has unlike values that must be alike.
fn unlike(key: &str, one: (usize, Value<'_>), other: (usize, Value<'_>)) -> Refusal {
    let shown = |value| single(&value).map_or_else(|| "another".to_owned(), |v| v.to_string());
    let found =
        format!("{} in layer {} and {} in layer {}", shown(one.1), one.0, shown(other.1), other.0);
    mismatch("the same number for every layer", found).at(format_args!("metadatum `{key}`"))
}

/// A value that is one; none of a number that is not finite.
fn single(value: &Value<'_>) -> Option<Json> {
    let number = match *value {
        Value::Array(_) => return None,
        Value::Whole(number) => return Some(number.into()),
        Value::Negative(number) => return Some(number.into()),
        Value::Bool(value) => return Some(value.into()),
        Value::Text(text) => return Some(text.into()),
        // The shortest decimal that is this number in 32 bits.
        Value::F32(number) => number.to_string().parse().unwrap_or(f64::NAN),
        Value::F64(number) => number,
    };
    serde_json::Number::from_f64(number).map(Json::from)
}
