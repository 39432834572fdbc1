//! Whether the `config.json` beside a GGUF file and the file's metadata describe the same model.
//!
//! A `config.json` of the same model adds what metadata have no place for, as windows of Mistral's or all tokens
//! that end a text, and so it counts. One of another model of the same sizes would be computed without a word:
//! files of several models lie in one directory. Which of both is the right one nobody here can know, so what
//! both say must be the same.

use std::path::Path;

use serde_json::Value;

use super::Arch;
use super::config::{self, shown};
use crate::checkpoint::gguf::rope::{ORIGINAL, expected};
use crate::checkpoint::{Checkpoint, Described};
use crate::error::{FormatError, Result};
use crate::model::{Mixer, ModelSpec, RopeScaling, RopeSpec};
use crate::refusal::mismatch;

/// Relative difference that rounding to the 32 bits of metadata, or to short decimals, explains.
const TOLERANCE: f64 = 1e-4;
/// The same of divisors, to which parameters were fitted.
const FITTED: f64 = 1e-3;
/// What to do about another model's.
const NEXT: &str =
    "take the config.json of its model, or remove this one: the GGUF file describes its model";
/// Keys that say the same thing together.
const TOGETHER: [&[&str]; 2] = [
    &["rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"],
    &[
        "layer_types",
        "sliding_window_pattern",
        "sliding_window_pattern_n",
        "full_attention_interval",
        "no_rope_layers",
        "no_rope_layer_interval",
        "full_attn_idxs",
    ],
];
const MODEL_TYPE: &str = "model_type";

/// What no value that is computed depends on: names, where texts end and how long they may be; and whether there is
/// a head, which the tensors say.
fn computed(spec: &ModelSpec) -> ModelSpec {
    ModelSpec {
        model_type: String::new(),
        eos_token_ids: Vec::new(),
        bos_token_id: None,
        max_position_embeddings: 0,
        tie_word_embeddings: false,
        ..spec.clone()
    }
}

impl Arch {
    /// Refuses a `config.json`, which gives `spec`, that contradicts the metadata of the GGUF file beside it.
    pub(super) fn check_described(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<()> {
        let Some(described) = checkpoint.described() else { return Ok(()) };
        let (path, object) = (checkpoint.config_path(), checkpoint.config());
        let spec = computed(spec);
        let gguf = checkpoint
            .files()
            .first()
            .map_or(path, |file| file.file.path());
        let stated = self.of_metadata(gguf, &described.config)?;
        if same(&stated, &spec) {
            return Ok(());
        }
        let members = described.config.as_object().into_iter().flatten();
        for (key, _) in members.filter(|(key, _)| *key != MODEL_TYPE) {
            let changed = self.with_stated(object, &described.config, key);
            let other = self.spec_of(path, &changed).map(|other| computed(&other));
            if !other.is_ok_and(|other| same(&other, &spec)) {
                return Err(self.contradicted(checkpoint, described, key));
            }
        }
        self.check_kind(checkpoint, described)?;
        let windows = described.config.get("sliding_window").is_none();
        if windows && same(&without_windows(stated), &without_windows(spec)) {
            return Ok(());
        }
        let detail =
            format!("it describes another model than the metadata of {}: {NEXT}", file(checkpoint));
        Err(FormatError::file(path, detail))
    }

    /// Refuses another `model_type` than files of this architecture are made from.
    fn check_kind(&self, checkpoint: &Checkpoint, described: &Described) -> Result<()> {
        let stated = described.config[MODEL_TYPE].as_str();
        let also = described.also.iter().map(String::as_str);
        let own = |name: &str| {
            Self::builtin(name).is_some_and(|arch| arch.model_type() == self.model_type())
        };
        if stated.into_iter().chain(also).any(own) {
            return Ok(());
        }
        Err(self.contradicted(checkpoint, described, MODEL_TYPE))
    }

    /// The model that the metadata describe.
    fn of_metadata(&self, path: &Path, stated: &Value) -> Result<ModelSpec> {
        let own = stated[MODEL_TYPE].as_str().and_then(Self::builtin);
        let spec = own.as_ref().unwrap_or(self).spec_of(path, stated)?;
        Ok(computed(&spec))
    }

    /// A configuration with what the metadata state by `key`, and by those that belong to it.
    fn with_stated(&self, object: &Value, stated: &Value, key: &str) -> Value {
        let inner = self.table.config.as_deref();
        let inner = inner.filter(|inner| object[*inner].is_object());
        let group = TOGETHER.iter().find(|group| group.contains(&key));
        let mut changed = object.clone();
        for key in group.map_or(&[key][..], |group| group) {
            remove(&mut changed, key);
            let place = match inner {
                Some(inner) => &mut changed[inner],
                None => &mut changed,
            };
            remove(place, key);
            if let Some(value) = stated.get(*key) {
                place[*key] = value.clone();
            }
        }
        changed
    }

    /// The refusal of what `config.json` says by `key`.
    fn contradicted(
        &self,
        checkpoint: &Checkpoint,
        described: &Described,
        key: &str,
    ) -> FormatError {
        let (path, object) = (checkpoint.config_path(), checkpoint.config());
        let stated = |key: &str| described.config.get(key);
        let inner = self
            .table
            .config
            .as_ref()
            .and_then(|inner| object.get(inner));
        let raw = |key: &str| {
            inner
                .and_then(|inner| inner.get(key))
                .or_else(|| object.get(key))
        };
        let rotation = ["rope_scaling", "rope_parameters"]
            .iter()
            .find_map(|key| raw(key).filter(|rotation| rotation.is_object()));
        let theta = rotation
            .and_then(|rotation| rotation.get("rope_theta"))
            .or_else(|| raw("rope_theta"));
        let near_theta =
            |found: &Value| stated("rope_theta").and_then(Value::as_f64) == found.as_f64();
        let (key, found) = match key {
            "rope_theta" | "rope_scaling" if theta.is_some_and(|theta| !near_theta(theta)) => {
                ("rope_theta", theta.cloned())
            }
            "rope_theta" | "rope_scaling" => ("rope_scaling", rotation.cloned()),
            key => (key, config::stated(self, path, object, key).ok().flatten()),
        };
        let expected = format!("{} as in {}", shown(stated(key)), file(checkpoint));
        let found = format!("{}; {NEXT}", shown(found.as_ref()));
        FormatError::file(path, mismatch(expected, found).at(format_args!("`{key}`")))
    }
}

/// The name of the GGUF file.
fn file(checkpoint: &Checkpoint) -> &str {
    checkpoint.files().first().map_or("", |file| &file.name)
}

fn remove(object: &mut Value, key: &str) {
    if let Some(members) = object.as_object_mut() {
        members.remove(key);
    }
}

/// A model whose layers see all positions: llama.cpp has no place for windows of some architectures.
fn without_windows(mut spec: ModelSpec) -> ModelSpec {
    for layer in &mut spec.layers {
        if let Mixer::Attention(attention) = &mut layer.mixer {
            attention.sliding_window = None;
        }
    }
    spec
}

/// Whether two models compute the same, up to rounding.
fn same(a: &ModelSpec, b: &ModelSpec) -> bool {
    let frequencies = a.layers.len() == b.layers.len()
        && a.layers
            .iter()
            .zip(&b.layers)
            .all(|(a, b)| same_bounds(&a.mixer, &b.mixer));
    let value = |spec: &ModelSpec| {
        let mut spec = spec.clone();
        if frequencies {
            spec.layers
                .iter_mut()
                .for_each(|layer| forget_bounds(&mut layer.mixer));
        }
        serde_json::to_value(spec).unwrap_or_default()
    };
    near(&value(a), &value(b))
}

/// Whether both scale positions as Llama 3 does and divide every frequency alike: a file has the divisors, of which
/// the parameters are known up to a ratio. True where neither does.
fn same_bounds(a: &Mixer, b: &Mixer) -> bool {
    match (a.attention(), b.attention()) {
        (Some(a), Some(b)) => match (&a.rope, &b.rope) {
            (Some(x), Some(y)) => {
                let (x, y) = (divisors(x, a.head_dim), divisors(y, b.head_dim));
                x.len() == y.len()
                    && x.iter()
                        .zip(&y)
                        .all(|(x, y)| (x - y).abs() <= FITTED * x.abs())
            }
            _ => true,
        },
        _ => true,
    }
}

/// What Llama 3's scaling divides each frequency by; nothing for another one.
fn divisors(rope: &RopeSpec, head_dim: u32) -> Vec<f64> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    } = rope.scaling
    else {
        return Vec::new();
    };
    let share = ORIGINAL / f64::from(original_max_position_embeddings.max(1));
    let bounds = [low_freq_factor, high_freq_factor].map(|bound| f64::from(bound) * share);
    let width = rope.rotary_dim.unwrap_or(head_dim);
    let frequency = |i: u32| {
        f64::from(rope.theta).powf(-2.0 * f64::from(i) / f64::from(width)) / std::f64::consts::TAU
    };
    (0..width / 2)
        .map(|i| expected(frequency(i), f64::from(factor), bounds))
        .collect()
}

fn forget_bounds(mixer: &mut Mixer) {
    if let Mixer::Attention(attention) = mixer
        && let Some(rope) = &mut attention.rope
        && matches!(rope.scaling, RopeScaling::Llama3 { .. })
    {
        rope.scaling = RopeScaling::None;
    }
}

/// Whether two values are the same, numbers that are no whole ones up to rounding.
fn near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| near(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| near(a, b))
        }
        (Value::Number(x), Value::Number(y)) if x.is_f64() || y.is_f64() => {
            let (x, y) = (x.as_f64().unwrap_or(f64::NAN), y.as_f64().unwrap_or(f64::NAN));
            (x - y).abs() <= TOLERANCE * x.abs()
        }
        _ => a == b,
    }
}
