//! Metadata from `config.json`: the members of a table, the other way round.

use std::f64::consts::TAU;

use serde_json::Value;

use super::Model;
use super::header::{ALIGNMENT, Datum};
use crate::arch::Arch;
use crate::checkpoint::gguf::rope::{ORIGINAL, expected};
use crate::checkpoint::gguf::table::{Origin, Table};
use crate::model::{AttentionSpec, Ffn, LayerSpec, ModelSpec, RopeScaling, RopeSpec};
use crate::refusal::{Refusal, mismatch};

/// What keys of numbers with a fraction end in; others are whole.
const FRACTIONS: [&str; 6] =
    ["epsilon", "freq_base", "freq_base_swa", "scale", "factor", "softcapping"];
/// Versions of the blocks: all that are written since 2022.
const QUANTIZATION_VERSION: u32 = 2;
/// Bounds of YaRN's ramp where metadata say none.
const YARN_BOUNDS: [f32; 2] = [32.0, 1.0];

/// Metadata by their keys, each once.
#[derive(Default)]
struct Metadata(Vec<(String, Datum)>);

impl Metadata {
    fn insert(&mut self, key: &str, value: Datum) {
        if self.0.iter().all(|(known, _)| known != key) {
            self.0.push((key.to_owned(), value));
        }
    }

    fn text(&mut self, key: &str, value: &str) {
        self.insert(key, Datum::Text(value.to_owned()));
    }
}

/// The metadata of a model, but for its tokenizer.
///
/// # Errors
/// A value that no metadatum can be.
pub(super) fn metadata(
    table: &Table,
    arch: &Arch,
    model: &Model<'_>,
) -> Result<Vec<(String, Datum)>, Refusal> {
    let mut all = Metadata::default();
    all.text("general.architecture", &table.architecture);
    all.text("general.type", "model");
    all.text("general.name", model.name);
    all.insert("general.alignment", Datum::U32(ALIGNMENT as u32));
    all.insert("general.quantization_version", Datum::U32(QUANTIZATION_VERSION));
    let of_config = OfConfig { table, arch, model };
    for (key, origin) in &table.config.0 {
        of_config.add(key, origin, &mut all)?;
    }
    // llama.cpp sizes the experts of some models by it, which a reader takes from another key.
    let (path, config) = model.config;
    let width = arch.stated(path, config, "intermediate_size");
    if let Some(width) = width.map_err(|e| e.to_string())? {
        let key = format!("{}.feed_forward_length", table.architecture);
        all.insert(&key, number(&key, &width)?);
    }
    let vocab_size = format!("{}.vocab_size", table.architecture);
    all.insert(&vocab_size, Datum::U32(model.spec.vocab_size));
    let shared = format!("{}.expert_shared_feed_forward_length", table.architecture);
    if let Some(width) = shared_width(model.spec).filter(|_| table.knows(&shared)) {
        all.insert(&shared, Datum::U32(width));
    }
    for (key, allowed) in &table.supported {
        // Of what is the same for all models llama.cpp asks for this alone.
        if let ([only], true) = (&allowed[..], key.ends_with(".expert_gating_func")) {
            all.insert(key, number(key, only)?);
        }
    }
    if let Some(rope) = ropes(model.spec)[0] {
        scaling(table, rope, &mut all)?;
        members(table, (rope, model.spec), &mut all);
    }
    Ok(all.0)
}

/// Where values come from.
struct OfConfig<'a> {
    table: &'a Table,
    arch: &'a Arch,
    model: &'a Model<'a>,
}

impl OfConfig<'_> {
    /// Adds the metadata that a key of `config.json` is read from.
    fn add(&self, key: &str, origin: &Origin, all: &mut Metadata) -> Result<(), Refusal> {
        let keys = match origin {
            Origin::Keys { keys, .. } => &keys[..],
            Origin::Less { key, .. } => std::slice::from_ref(key),
            Origin::Positive { positive } => std::slice::from_ref(positive),
            Origin::Share { share, .. } => std::slice::from_ref(share),
            Origin::Choice { other, .. } if matches!(**other, Origin::Share { .. }) => {
                return self.add(key, other, all);
            }
            Origin::Value { .. }
            | Origin::With { .. }
            | Origin::Without { .. }
            | Origin::Choice { .. }
            | Origin::Layers { .. }
            | Origin::RowsOf { .. } => return Ok(()),
            Origin::Nonzero { nonzero } => {
                all.insert(nonzero, Datum::I32s(kv_heads(self.model.spec)));
                return Ok(());
            }
        };
        let foreign = |key: &String| !key.starts_with(&format!("{}.", self.table.architecture));
        // A tokenizer says its own; drafting layers are not written.
        if keys
            .iter()
            .any(|key| foreign(key) || self.is_taken_off(key))
        {
            return Ok(());
        }
        let Some(value) = self.value(key, &keys[0])? else { return Ok(()) };
        for key in keys {
            all.insert(key, number(key, &value)?);
        }
        Ok(())
    }

    /// Whether a metadatum counts layers that are no part of the model.
    fn is_taken_off(&self, key: &str) -> bool {
        let mut origins = self.table.config.0.iter().map(|(_, origin)| origin);
        origins.any(|origin| matches!(origin, Origin::Less { less, .. } if less == key))
    }

    /// What a metadatum has for a key of `config.json`; rotations as the model has them, wherever the
    /// configuration says it.
    fn value(&self, key: &str, metadatum: &str) -> Result<Option<Value>, Refusal> {
        let [full, sliding] = ropes(self.model.spec);
        let theta = |rope: Option<&RopeSpec>| rope.map(|rope| Value::from(rope.theta));
        if metadatum.ends_with(".rope.freq_base") {
            return Ok(theta(full));
        }
        if metadatum.ends_with(".rope.freq_base_swa") {
            return Ok(theta(sliding));
        }
        if metadatum.ends_with(".sliding_window_pattern")
            && let Some(period) = period(self.model.spec)
        {
            return Ok(Some(period.into()));
        }
        if metadatum.ends_with(".rope.dimension_count") {
            let attention = attentions(self.model.spec).next();
            let rotated = full.and_then(|rope| rope.rotary_dim);
            return Ok(rotated.or(attention.map(|a| a.head_dim)).map(Value::from));
        }
        let (path, config) = self.model.config;
        self.arch
            .stated(path, config, key)
            .map_err(|e| e.to_string().into())
    }
}

/// A metadatum that is one value.
fn number(key: &str, value: &Value) -> Result<Datum, Refusal> {
    let fraction = FRACTIONS.iter().any(|end| key.ends_with(end));
    let whole = || {
        let float = value.as_f64().filter(|n| n.fract() == 0.0 && *n >= 0.0);
        let whole = value.as_u64().or(float.map(|n| n as u64));
        whole.and_then(|n| u32::try_from(n).ok())
    };
    let datum = match value {
        Value::Bool(value) => Some(Datum::Bool(*value)),
        Value::Number(_) if fraction => value.as_f64().map(|n| Datum::F32(n as f32)),
        Value::Number(_) => whole().map(Datum::U32),
        _ => None,
    };
    datum.ok_or_else(|| mismatch("one number", value).at(format_args!("metadatum `{key}`")))
}

fn attentions(spec: &ModelSpec) -> impl Iterator<Item = &AttentionSpec> {
    spec.layers
        .iter()
        .filter_map(|layer| layer.mixer.attention())
}

/// The width of the expert that every token visits, if there is one.
fn shared_width(spec: &ModelSpec) -> Option<u32> {
    let shared = |layer: &LayerSpec| match &layer.ffn {
        Ffn::Moe(moe) => moe
            .shared_expert
            .as_ref()
            .map(|shared| shared.intermediate_size),
        Ffn::Dense(_) => None,
    };
    spec.layers.iter().find_map(shared)
}

/// The heads of keys and values of every layer, 0 where it has no attention.
fn kv_heads(spec: &ModelSpec) -> Vec<i32> {
    let heads = |attention: &AttentionSpec| attention.kv_heads.cast_signed();
    let layers = spec.layers.iter();
    layers
        .map(|layer| layer.mixer.attention().map_or(0, heads))
        .collect()
}

/// Which layer of as many sees all positions, the last of them, by the first that does. Whether the others
/// follow shows when what was written is read back.
fn period(spec: &ModelSpec) -> Option<u64> {
    let first = attentions(spec).position(|a| a.sliding_window.is_none())?;
    Some(first as u64 + 1)
}

/// The rotation of layers that see all positions, or of any, and of those that see some.
fn ropes(spec: &ModelSpec) -> [Option<&RopeSpec>; 2] {
    let find = |sliding: bool| {
        let mut layers = attentions(spec).filter(|a| a.sliding_window.is_some() == sliding);
        layers.find_map(|attention| attention.rope.as_ref())
    };
    [find(false).or_else(|| find(true)), find(true)]
}

/// Adds what is said of scaled positions, but for factors, which are a tensor.
fn scaling(table: &Table, rope: &RopeSpec, all: &mut Metadata) -> Result<(), Refusal> {
    let row = &table.rope;
    let refused = |kind: &str| {
        Err(mismatch(format_args!("one that {} has", table.path), kind).at("rope_scaling"))
    };
    match rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Llama3 { .. } if row.factors.is_some() => {}
        RopeScaling::Llama3 { .. } => return refused("llama3"),
        RopeScaling::Longrope { .. } => return refused("longrope"),
        RopeScaling::Dynamic { .. } => return refused("dynamic"),
        RopeScaling::Linear { factor } => {
            all.text(&row.scaling_type, "linear");
            all.insert(&row.factor, Datum::F32(factor));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings: original,
            ..
        } => {
            all.text(&row.scaling_type, "yarn");
            all.insert(&row.factor, Datum::F32(factor));
            all.insert(&row.original, Datum::U32(original));
            for (at, bound) in [beta_fast, beta_slow].into_iter().enumerate() {
                if bound != YARN_BOUNDS[at] {
                    all.insert(&row.yarn_bound(at), Datum::F32(bound));
                }
            }
        }
    }
    Ok(())
}

/// Adds what more is said of YaRN: the weights of its attention where they cancel, and how queries grow.
fn members(table: &Table, (rope, spec): (&RopeSpec, &ModelSpec), all: &mut Metadata) {
    let growth = attentions(spec).find_map(|attention| attention.temperature.as_ref());
    let cancel = matches!(rope.scaling, RopeScaling::Yarn { attention_factor, .. } if attention_factor == 1.0);
    for (member, key) in &table.rope.members {
        let value = match member.as_str() {
            "mscale_all_dim" => cancel.then_some(1.0),
            _ => growth.map(|growth| growth.attn_scale),
        };
        if let Some(value) = value {
            all.insert(key, Datum::F32(value));
        }
    }
}

/// What divides the rotary frequencies of llama3 scaling, pair by pair; none of any other.
pub(super) fn rope_factors(spec: &ModelSpec) -> Option<Vec<f32>> {
    let rope = ropes(spec)[0]?;
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor: low,
        high_freq_factor: high,
        original_max_position_embeddings: original,
    } = rope.scaling
    else {
        return None;
    };
    let dim = rope
        .rotary_dim
        .or_else(|| attentions(spec).next().map(|a| a.head_dim))?;
    // Frequencies count in turns within the original context, whatever its length.
    let stretch = f64::from(original) / ORIGINAL / TAU;
    let factors = (0..dim / 2).map(|i| {
        let frequency = f64::from(rope.theta).powf(-2.0 * f64::from(i) / f64::from(dim));
        let bounds = [f64::from(low), f64::from(high)];
        expected(frequency * stretch, f64::from(factor), bounds) as f32
    });
    Some(factors.collect())
}
