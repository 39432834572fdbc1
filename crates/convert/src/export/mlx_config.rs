//! `config.json` as mlx-lm reads it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use shardwright_format::ModelSpec;
use shardwright_format::model::Mixer;
use shardwright_quant::{Encoding, Minifloat};

use super::mlx_places::Family;

/// What the part of a configuration that is of text lies at, where there are others.
pub(super) const TEXT: &str = "text_config";

/// How MLX names codes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Codes {
    bits: u8,
    group_size: usize,
    mode: &'static str,
}

impl Codes {
    /// The name of those of an encoding; none of one that MLX does not have.
    pub(super) fn new(encoding: Encoding) -> Option<Self> {
        let (bits, group_size, mode) = match encoding {
            Encoding::Affine(a) => (a.bits(), a.group_size(), "affine"),
            Encoding::Minifloat(Minifloat::MXFP4) => (4, Minifloat::MXFP4.group_size(), "mxfp4"),
            Encoding::Minifloat(Minifloat::MXFP8) => (8, Minifloat::MXFP8.group_size(), "mxfp8"),
            _ => return None,
        };
        Some(Self { bits, group_size, mode })
    }

    fn members(self) -> [(String, Value); 3] {
        let Self { bits, group_size, mode } = self;
        [("bits", json!(bits)), ("group_size", json!(group_size)), ("mode", json!(mode))]
            .map(|(key, value)| (key.to_owned(), value))
    }
}

/// Modules in codes, and weights in each kind of these.
#[derive(Default)]
pub(super) struct Modules {
    of: BTreeMap<String, Codes>,
    weights: BTreeMap<Codes, u64>,
}

impl Modules {
    /// Adds `weights` of the module that has the tensor `name`.
    pub(super) fn add(&mut self, name: &str, codes: Codes, weights: u64) {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        self.of.insert(module.to_owned(), codes);
        *self.weights.entry(codes).or_default() += weights;
    }

    /// The object `quantization`: the codes of most weights, and the modules with others.
    fn quantization(&self) -> Option<Value> {
        let (most, _) = self.weights.iter().max_by_key(|(_, weights)| **weights)?;
        let mut object = Map::from_iter(most.members());
        for (module, other) in self.of.iter().filter(|(_, other)| *other != most) {
            object.insert(module.clone(), Value::Object(Map::from_iter(other.members())));
        }
        Some(Value::Object(object))
    }
}

/// Says in a configuration how modules are stored, and under older keys what newer versions of
/// transformers write otherwise and mlx-lm does not read; without the part that is of images.
pub(super) fn describe(config: &mut Value, spec: &ModelSpec, family: &Family, modules: &Modules) {
    let Value::Object(object) = config else { return };
    object.shift_remove("vision_config");
    match object.get_mut(TEXT) {
        Some(Value::Object(text)) => {
            complete(text, spec);
            let vocabulary = ("vocab_size", json!(spec.vocab_size));
            fill(object, [vocabulary]);
        }
        _ => complete(object, spec),
    }
    for (key, other) in &family.copies {
        if let Some(value) = object.get(other).cloned() {
            object.insert(key.clone(), value);
        }
    }
    if let Some(model_type) = &family.model_type {
        object.insert("model_type".to_owned(), json!(model_type));
    }
    if let Some(quantization) = modules.quantization() {
        object.insert("quantization".to_owned(), quantization.clone());
        object.insert("quantization_config".to_owned(), quantization);
    }
    object.sort_keys();
}

/// Adds what mlx-lm looks for and is not there.
fn complete(text: &mut Map<String, Value>, spec: &ModelSpec) {
    // Where both a model of text and its wrapper say so they need not agree; mlx-lm asks the former.
    text.insert("tie_word_embeddings".to_owned(), json!(spec.tie_word_embeddings));
    let mut added = Vec::new();
    let attention = spec.layers.iter().find_map(|layer| match &layer.mixer {
        Mixer::Attention(attention) => Some(attention),
        _ => None,
    });
    added.extend(attention.map(|attention| ("head_dim", json!(attention.head_dim))));
    added.extend(layer_types(spec).map(|kinds| ("layer_types", json!(kinds))));
    for (key, other) in [("num_experts", "num_local_experts"), ("num_local_experts", "num_experts")]
    {
        added.extend(text.get(other).map(|count| (key, count.clone())));
    }
    let rope = text.get("rope_parameters").cloned().unwrap_or_default();
    let kind = |kind: &str| rope.get(kind).filter(|rope| rope.is_object());
    let main = kind("full_attention").unwrap_or(&rope);
    for key in ["rope_theta", "partial_rotary_factor"] {
        added.extend(main.get(key).map(|value| (key, value.clone())));
    }
    let scaled = main.get("rope_type").and_then(Value::as_str);
    if scaled.is_some_and(|scaled| scaled != "default") {
        added.push(("rope_scaling", main.clone()));
    }
    added.push(("rope_scaling", Value::Null));
    added.push(("partial_rotary_factor", json!(1.0)));
    if spec.layers.iter().any(|layer| layer.num_experts() > 0) {
        let experts = spec.layers.iter().map(|layer| layer.num_experts() > 0);
        let dense = experts.clone().take_while(|experts| !experts).count();
        added.push(("is_moe_layer", json!(experts.collect::<Vec<_>>())));
        added.push(("first_k_dense_replace", json!(dense)));
    }
    let local = kind("sliding_attention").and_then(|rope| rope.get("rope_theta"));
    added.extend(local.map(|theta| ("rope_local_base_freq", theta.clone())));
    fill(text, added);
}

/// Sets members that are absent or null.
fn fill<'a>(object: &mut Map<String, Value>, members: impl IntoIterator<Item = (&'a str, Value)>) {
    for (key, value) in members {
        let found = object.entry(key).or_insert(Value::Null);
        if found.is_null() {
            *found = value;
        }
    }
}

/// The kind of each layer, where some have windows and some not, and there is nothing but attention.
fn layer_types(spec: &ModelSpec) -> Option<Vec<&'static str>> {
    let kind = |sliding| if sliding { "sliding_attention" } else { "full_attention" };
    let kinds = spec.layers.iter().map(|layer| {
        let attention = layer.mixer.attention()?;
        Some(kind(attention.sliding_window.is_some()))
    });
    let kinds: Option<Vec<_>> = kinds.collect();
    kinds.filter(|kinds| {
        [true, false]
            .iter()
            .all(|some| kinds.contains(&kind(*some)))
    })
}
