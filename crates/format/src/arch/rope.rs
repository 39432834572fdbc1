//! Rotary positions: `rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters`
//! (transformers 5), as `modeling_rope_utils` merges them.

use serde_json::Value;

use super::config::Config;
use crate::error::Result;
use crate::model::{RopeScaling, RopeSpec};

/// Members that are understood; what else changes the rotation is refused.
const KNOWN: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
];

/// The object that describes the rotation and the key it lies at.
struct Rope<'a> {
    config: &'a Config<'a>,
    key: &'static str,
    object: Option<&'a Value>,
}

/// Reads the rotary positions of every layer.
pub(super) fn read(config: &Config<'_>, max_positions: u32) -> Result<RopeSpec> {
    let empty = |object: &Value| object.as_object().is_some_and(serde_json::Map::is_empty);
    let of = |key| Some((key, config.raw(key).filter(|object| !empty(object))?));
    let (key, object) = of("rope_scaling").or_else(|| of("rope_parameters")).unzip();
    let rope = Rope { config, key: key.unwrap_or("rope_parameters"), object };
    rope.check_members()?;
    let theta = match rope.member("rope_theta") {
        Some(theta) => config.positive(&rope.path("rope_theta"), Some(theta))?,
        None => config.number("rope_theta")?,
    };
    Ok(RopeSpec { theta, scaling: rope.scaling(max_positions)? })
}

impl Rope<'_> {
    fn path(&self, member: &str) -> String {
        format!("{}.{member}", self.key)
    }

    fn member(&self, member: &str) -> Option<&Value> {
        self.object?.get(member).filter(|value| !value.is_null())
    }

    fn check_members(&self) -> Result<()> {
        let Some(object) = self.object else { return Ok(()) };
        let Some(members) = object.as_object() else {
            return Err(self
                .config
                .unexpected(self.key, "an object or null", Some(object)));
        };
        let whole = |value: &Value| value.is_null() || value.as_f64() == Some(1.0);
        for (member, value) in members {
            let harmless = member == "partial_rotary_factor" && whole(value);
            if !harmless && !KNOWN.contains(&member.as_str()) {
                let expected = format!("only {}", KNOWN.join(", "));
                let found = Value::String(member.clone());
                return Err(self.config.unexpected(self.key, &expected, Some(&found)));
            }
        }
        Ok(())
    }

    fn scaling(&self, max_positions: u32) -> Result<RopeScaling> {
        let default = Value::from("default");
        let member = if self.member("rope_type").is_some() { "rope_type" } else { "type" };
        let kind = self.member(member).unwrap_or(&default);
        match kind.as_str() {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.number("factor")? }),
            Some("llama3") => self.llama3(max_positions),
            _ => {
                let expected = "`default`, `linear` or `llama3`";
                Err(self
                    .config
                    .unexpected(&self.path(member), expected, Some(kind)))
            }
        }
    }

    fn llama3(&self, max_positions: u32) -> Result<RopeScaling> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let (low_freq_factor, high_freq_factor) =
            (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        if low_freq_factor >= high_freq_factor {
            let expected = format!("below high_freq_factor {high_freq_factor}");
            let found = self.member("low_freq_factor");
            return Err(self
                .config
                .unexpected(&self.path("low_freq_factor"), &expected, found));
        }
        // A key beside the object wins over the member inside it.
        let original = match self.config.raw(ORIGINAL).or_else(|| self.member(ORIGINAL)) {
            Some(value) => self
                .config
                .whole(&self.path(ORIGINAL), Some(value), 1..=u32::MAX)?,
            None => max_positions,
        };
        Ok(RopeScaling::Llama3 {
            factor: self.number("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        })
    }

    fn number(&self, member: &str) -> Result<f32> {
        self.config
            .positive(&self.path(member), self.member(member))
    }
}
