//! Rotary positions: `rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters`
//! (transformers 5), as `modeling_rope_utils` merges them.

use serde_json::Value;

use super::config::Config;
use super::table::RotaryRow;
use crate::error::Result;
use crate::model::{RopeScaling, RopeSpec};

/// Members that are understood; what else changes the rotation is refused.
const KNOWN: &[&str] =
    &["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", ORIGINAL];
/// Members that YaRN has besides.
const YARN: &[&str] =
    &["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate"];
/// Members that divide pairs among the axes of an image: for text all axes have the same position.
const AXES: &[&str] = &["mrope_section", "mrope_interleaved"];
const FACTOR: &str = "partial_rotary_factor";
const ORIGINAL: &str = "original_max_position_embeddings";

/// The object that describes the rotation and the key it lies at.
struct Rope<'a> {
    config: &'a Config<'a>,
    key: &'static str,
    object: Option<&'a Value>,
}

/// Reads the rotary positions of heads of `head_dim`.
pub(super) fn read(config: &Config<'_>, row: &RotaryRow, head_dim: u32) -> Result<RopeSpec> {
    let rope = Rope::find(config);
    rope.check_members(row)?;
    let theta = match rope.member("rope_theta") {
        Some(theta) => config.positive(&rope.path("rope_theta"), Some(theta))?,
        None => config.number("rope_theta")?,
    };
    let width = rope.width(row, head_dim)?;
    Ok(RopeSpec {
        theta,
        scaling: rope.scaling()?,
        rotary_dim: width.filter(|width| *width != head_dim),
        pairing: row.pairing,
    })
}

/// What a softmax over keys of YaRN is scaled by, squared, besides the heads' width: 1 unless the
/// configuration gives `mscale_all_dim` (DeepSeek-V3).
pub(super) fn softmax_mscale(config: &Config<'_>) -> Result<f64> {
    let rope = Rope::find(config);
    if rope.kind().as_str() != Some("yarn") {
        return Ok(1.0);
    }
    let all = rope.optional("mscale_all_dim")?;
    all.map_or(Ok(1.0), |all| Ok(mscale(rope.factor()?, all)))
}

/// The growth of scores with a context that is `factor` times longer (YaRN, section 3.4).
fn mscale(factor: f32, weight: f32) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * f64::from(weight) * f64::from(factor).ln() + 1.0 }
}

impl<'a> Rope<'a> {
    fn find(config: &'a Config<'a>) -> Self {
        let empty = |object: &Value| object.as_object().is_some_and(serde_json::Map::is_empty);
        let of = |key| Some((key, config.raw(key).filter(|object| !empty(object))?));
        let found = of("rope_scaling").or_else(|| of("rope_parameters"));
        let (key, object) = found.unzip();
        Rope { config, key: key.unwrap_or("rope_parameters"), object }
    }

    fn path(&self, member: &str) -> String {
        format!("{}.{member}", self.key)
    }

    fn member(&self, member: &str) -> Option<&Value> {
        self.object?.get(member).filter(|value| !value.is_null())
    }

    fn kind(&self) -> Value {
        let found = self.member("rope_type").or_else(|| self.member("type"));
        found.cloned().unwrap_or_else(|| Value::from("default"))
    }

    fn check_members(&self, row: &RotaryRow) -> Result<()> {
        let Some(object) = self.object else { return Ok(()) };
        let Some(members) = object.as_object() else {
            let found = Some(object);
            return Err(self.config.unexpected(self.key, "an object or null", found));
        };
        let whole = |value: &Value| value.is_null() || value.as_f64() == Some(1.0);
        let yarn = if self.kind().as_str() == Some("yarn") { YARN } else { &[] };
        let axes = if row.axes { AXES } else { &[] };
        for (member, value) in members {
            let partial = member == FACTOR && (row.factor.is_some() || whole(value));
            let known = [KNOWN, yarn, axes]
                .iter()
                .any(|k| k.contains(&member.as_str()));
            if !partial && !known {
                let expected = format!("only {}", [KNOWN, yarn, axes].concat().join(", "));
                let found = Value::String(member.clone());
                return Err(self.config.unexpected(self.key, &expected, Some(&found)));
            }
        }
        Ok(())
    }

    /// Values of a head that are rotated, if not all.
    fn width(&self, row: &RotaryRow, head_dim: u32) -> Result<Option<u32>> {
        if let Some(name) = &row.dim
            && let Some(dim) = self.config.optional_size(name, 1..=head_dim)?
        {
            return Ok(Some(dim));
        }
        let Some(name) = &row.factor else { return Ok(None) };
        let factor = match self.member(FACTOR) {
            Some(found) => self.config.positive(&self.path(FACTOR), Some(found))?,
            None => self.config.number(name)?,
        };
        // Rounds towards zero, as transformers does.
        Ok(Some((f64::from(head_dim) * f64::from(factor)) as u32))
    }

    fn scaling(&self) -> Result<RopeScaling> {
        let kind = self.kind();
        match kind.as_str() {
            Some("default") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.number("factor")? }),
            Some("llama3") => self.llama3(),
            Some("yarn") => self.yarn(),
            _ => {
                let member = if self.member("rope_type").is_some() { "rope_type" } else { "type" };
                let expected = "`default`, `linear`, `llama3` or `yarn`";
                Err(self
                    .config
                    .unexpected(&self.path(member), expected, Some(&kind)))
            }
        }
    }

    fn llama3(&self) -> Result<RopeScaling> {
        let (low_freq_factor, high_freq_factor) =
            (self.number("low_freq_factor")?, self.number("high_freq_factor")?);
        if low_freq_factor > high_freq_factor {
            let expected = format!("at most high_freq_factor {high_freq_factor}");
            let found = self.member("low_freq_factor");
            return Err(self
                .config
                .unexpected(&self.path("low_freq_factor"), &expected, found));
        }
        Ok(RopeScaling::Llama3 {
            factor: self.number("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: self.original()?,
        })
    }

    fn yarn(&self) -> Result<RopeScaling> {
        let factor = self.factor()?;
        let attention_factor = match (
            self.optional("attention_factor")?,
            self.optional("mscale")?,
            self.optional("mscale_all_dim")?,
        ) {
            (Some(stated), _, _) => stated,
            (None, Some(own), Some(all)) => (mscale(factor, own) / mscale(factor, all)) as f32,
            _ => mscale(factor, 1.0) as f32,
        };
        let truncate = self.member("truncate").unwrap_or(&Value::Bool(true));
        let flag = truncate.as_bool().ok_or_else(|| {
            let path = self.path("truncate");
            self.config
                .unexpected(&path, "true or false", Some(truncate))
        })?;
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.optional("beta_slow")?.unwrap_or(1.0),
            original_max_position_embeddings: self.original()?,
            attention_factor,
            truncate: flag,
        })
    }

    /// A key beside the object wins over the member inside it; without either, nothing was scaled
    /// before.
    fn original(&self) -> Result<u32> {
        match self.config.raw(ORIGINAL).or_else(|| self.member(ORIGINAL)) {
            Some(value) => self
                .config
                .whole(&self.path(ORIGINAL), Some(value), 1..=u32::MAX),
            None => self.config.size("max_position_embeddings", 1..=u32::MAX),
        }
    }

    /// YaRN's factor, or the growth of the context where it is null.
    fn factor(&self) -> Result<f32> {
        if let Some(stated) = self.optional("factor")? {
            return Ok(stated);
        }
        let now = self.config.size("max_position_embeddings", 1..=u32::MAX)?;
        Ok(now as f32 / self.original()? as f32)
    }

    fn number(&self, member: &str) -> Result<f32> {
        self.config
            .positive(&self.path(member), self.member(member))
    }

    fn optional(&self, member: &str) -> Result<Option<f32>> {
        let found = self.member(member);
        found.map(|_| self.number(member)).transpose()
    }
}
