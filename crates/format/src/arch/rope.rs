//! Rotary positions: `rope_theta` with `rope_scaling` (transformers 4) or `rope_parameters`
//! (transformers 5), as `modeling_rope_utils` merges them. Where layers differ, transformers 5 has
//! one such object for each kind of layer, in one that is keyed by their names.

use serde_json::Value;

use super::config::Config;
use super::table::{AttentionRow, Kind, RotaryRow};
use crate::error::Result;
use crate::model::{RopeScaling, RopeSpec, TemperatureSpec};

/// Members that are understood; what else changes the rotation is refused.
const KNOWN: &[&str] =
    &["rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", ORIGINAL];
/// Members that YaRN has besides.
const YARN: &[&str] = &[
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "finetuned",
    "attn_factor",
];
/// Members that `longrope` has besides.
const LONGROPE: &[&str] =
    &["short_factor", "long_factor", "short_mscale", "long_mscale", "attention_factor"];
/// Members of `dynamic` with an `alpha`, of which transformers reads that alone.
const ALPHA: &[&str] = &["alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"];
/// Members that divide pairs among the axes of an image: for text all axes have the same position.
const AXES: &[&str] = &["mrope_section", "mrope_interleaved"];
const FACTOR: &str = "partial_rotary_factor";
const ORIGINAL: &str = "original_max_position_embeddings";

/// The object that describes the rotation and the key it lies at.
struct Rope<'a> {
    config: &'a Config<'a>,
    key: String,
    object: Option<&'a Value>,
    /// It was written for one kind of layers alone.
    own: bool,
}

/// Reads the rotary positions of heads of `head_dim` in layers of a kind. Sliding layers may have a
/// base of their own, and are not scaled then.
pub(super) fn of_kind(
    config: &Config<'_>,
    row: &AttentionRow,
    head_dim: u32,
    kind: Kind,
) -> Result<RopeSpec> {
    let rope = Rope::find(config, kind)?;
    let local = row.sliding_rope_theta.as_ref();
    let mut spec = rope.read(&row.rotary, head_dim)?;
    if let (Kind::Sliding, false, Some(name)) = (kind, rope.own, local) {
        (spec.theta, spec.scaling) = (config.number(name)?, RopeScaling::None);
    }
    Ok(spec)
}

/// Reads the rotary positions of heads of `head_dim`, the same in all layers.
pub(super) fn read(config: &Config<'_>, row: &RotaryRow, head_dim: u32) -> Result<RopeSpec> {
    Rope::find(config, Kind::Full)?.read(row, head_dim)
}
/// How queries grow with their position, where the rotation's object says so; a weight of 0 changes
/// nothing.
pub(super) fn query_growth(
    config: &Config<'_>,
    row: &RotaryRow,
) -> Result<Option<TemperatureSpec>> {
    let Some(member) = &row.query_growth else { return Ok(None) };
    let rope = Rope::find(config, Kind::Full)?;
    if rope
        .member(member)
        .is_none_or(|weight| weight.as_f64() == Some(0.0))
    {
        return Ok(None);
    }
    let (attn_scale, floor_scale) = (rope.number(member)?, rope.original()? as f32);
    Ok(Some(TemperatureSpec { floor_scale, attn_scale, from_zero: true }))
}

/// What a softmax over keys of YaRN is scaled by, squared, besides the heads' width: 1 unless the
/// configuration gives `mscale_all_dim` (DeepSeek-V3).
pub(super) fn softmax_mscale(config: &Config<'_>) -> Result<f64> {
    let rope = Rope::find(config, Kind::Full)?;
    if rope.kind().as_str() != Some("yarn") {
        return Ok(1.0);
    }
    let all = rope.weight("mscale_all_dim")?;
    all.map_or(Ok(1.0), |all| Ok(mscale(rope.factor()?, all)))
}

/// The growth of scores with a context that is `factor` times longer (YaRN, section 3.4).
fn mscale(factor: f32, weight: f32) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * f64::from(weight) * f64::from(factor).ln() + 1.0 }
}

impl<'a> Rope<'a> {
    fn find(config: &'a Config<'a>, kind: Kind) -> Result<Self> {
        let empty = |object: &Value| object.as_object().is_some_and(serde_json::Map::is_empty);
        let of = |key| Some((key, config.raw(key).filter(|object| !empty(object))?));
        let found = of("rope_scaling").or_else(|| of("rope_parameters"));
        let (key, object) = found.unzip();
        let key = key.unwrap_or("rope_parameters");
        let keyed =
            object.filter(|object| Kind::ALL.iter().any(|k| object.get(k.name()).is_some()));
        let Some(keyed) = keyed else {
            return Ok(Rope { config, key: key.to_owned(), object, own: false });
        };
        let members = keyed.as_object().into_iter().flatten();
        let stranger = members
            .map(|(name, _)| name)
            .find(|name| Kind::named(name).is_none());
        if let Some(name) = stranger {
            let found = Value::from(name.as_str());
            return Err(config.unexpected(key, "kinds of layers only", Some(&found)));
        }
        let own = keyed.get(kind.name()).filter(|own| own.is_object());
        let key = format!("{key}.{}", kind.name());
        if own.is_none() {
            return Err(config.unexpected(&key, "an object", keyed.get(kind.name())));
        }
        Ok(Rope { config, key, object: own, own: true })
    }

    fn read(&self, row: &RotaryRow, head_dim: u32) -> Result<RopeSpec> {
        self.check_members(row)?;
        let theta = match self.member("rope_theta") {
            Some(theta) => self
                .config
                .positive(&self.path("rope_theta"), Some(theta))?,
            None => self.config.number("rope_theta")?,
        };
        let width = self.width(row, head_dim)?;
        let stretched = row.fixed_alpha && self.kind().as_str() == Some("dynamic");
        let (theta, scaling) = if stretched {
            (self.stretched(theta, width.unwrap_or(head_dim))?, RopeScaling::None)
        } else {
            (theta, self.scaling()?)
        };
        Ok(RopeSpec {
            theta,
            scaling,
            rotary_dim: width.filter(|width| *width != head_dim),
            pairing: row.pairing,
        })
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
            return Err(self
                .config
                .unexpected(&self.key, "an object or null", found));
        };
        let whole = |value: &Value| value.is_null() || value.as_f64() == Some(1.0);
        let own = match self.kind().as_str() {
            Some("yarn") => YARN,
            Some("longrope") => LONGROPE,
            Some("dynamic") if row.fixed_alpha => ALPHA,
            _ => &[],
        };
        let axes = if row.axes { AXES } else { &[] };
        for (member, value) in members {
            let partial = member == FACTOR && (row.factor.is_some() || whole(value));
            let growth = row.query_growth.as_ref() == Some(member);
            let known = [KNOWN, own, axes]
                .iter()
                .any(|k| k.contains(&member.as_str()));
            if !partial && !growth && !known {
                let expected = format!("only {}", [KNOWN, own, axes].concat().join(", "));
                let found = Value::String(member.clone());
                return Err(self.config.unexpected(&self.key, &expected, Some(&found)));
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
            // For text all axes of `mrope` have the same position.
            Some("default" | "mrope") => Ok(RopeScaling::None),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.number("factor")? }),
            Some("llama3") => self.llama3(),
            Some("yarn") => self.yarn(),
            Some("longrope") => self.longrope(),
            Some("dynamic") => self.dynamic(),
            _ => {
                let member = if self.member("rope_type").is_some() { "rope_type" } else { "type" };
                let expected = "`default`, `linear`, `llama3`, `yarn`, `longrope` or `dynamic`";
                Err(self
                    .config
                    .unexpected(&self.path(member), expected, Some(&kind)))
            }
        }
    }

    /// Its original context is that of the configuration, whatever the rotation's object says in transformers;
    /// the lesser of both is exact for either.
    fn dynamic(&self) -> Result<RopeScaling> {
        let most = self.config.size("max_position_embeddings", 1..=u32::MAX)?;
        Ok(RopeScaling::Dynamic { original_max_position_embeddings: self.original()?.min(most) })
    }

    /// The base that `alpha` raises for heads of `width` rotated values (NTK-aware scaling, as
    /// Hunyuan's own code has it).
    fn stretched(&self, theta: f32, width: u32) -> Result<f32> {
        let (alpha, width) = (f64::from(self.number("alpha")?), f64::from(width));
        Ok((f64::from(theta) * alpha.powf(width / (width - 2.0))) as f32)
    }

    /// Without a stated factor the growth of the context gives what rotated values are scaled by:
    /// `sqrt(1 + ln(growth) / ln(original))`.
    fn longrope(&self) -> Result<RopeScaling> {
        let original = self.original()?;
        let growth = f64::from(self.factor()?);
        let own =
            if growth <= 1.0 { 1.0 } else { (1.0 + growth.ln() / f64::from(original).ln()).sqrt() };
        Ok(RopeScaling::Longrope {
            short_factor: self.factors("short_factor")?,
            long_factor: self.factors("long_factor")?,
            original_max_position_embeddings: original,
            attention_factor: self.optional("attention_factor")?.unwrap_or(own as f32),
        })
    }

    /// A list of factors, one for each pair.
    fn factors(&self, member: &str) -> Result<Vec<f32>> {
        let (path, found) = (self.path(member), self.member(member));
        let Some(list) = found.and_then(Value::as_array) else {
            return Err(self.config.unexpected(&path, "a list of factors", found));
        };
        list.iter()
            .map(|factor| self.config.positive(&path, Some(factor)))
            .collect()
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
            self.weight("mscale")?,
            self.weight("mscale_all_dim")?,
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

    /// How many times longer the context is, or the growth of the context where it is null.
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

    /// A weight of YaRN's; 0 counts as none, as transformers reads it.
    fn weight(&self, member: &str) -> Result<Option<f32>> {
        let zero = self
            .member(member)
            .is_some_and(|weight| weight.as_f64() == Some(0.0));
        if zero { Ok(None) } else { self.optional(member) }
    }

    fn optional(&self, member: &str) -> Result<Option<f32>> {
        let found = self.member(member);
        found.map(|_| self.number(member)).transpose()
    }
}
