//! What a recipe asks for: an encoding whose open ends the source's type fills in.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use shardwright_quant::{Affine, Encoding, Float};

/// Group size where text names none.
const DEFAULT_GROUP_SIZE: u16 = 64;

/// How a recipe wants a tensor stored.
///
/// In text `keep`, `f16`, `bf16`, `f32`, `q4`, `q4g32`, `q4g32:bf16`; in recipes also
/// `{"bits": 4, "group_size": 32, "scale_dtype": "bf16"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// In the source's type.
    Keep,
    /// In a float type.
    Float(Float),
    /// In grouped affine codes.
    Affine {
        /// Bits of a code.
        bits: u8,
        /// Columns that share a scale.
        group_size: u16,
        /// Type of scales and biases.
        scale_dtype: Option<Float>,
    },
}

impl Wish {
    /// Affine codes, checked.
    fn affine(bits: u8, group_size: u16, scale_dtype: Option<Float>) -> Result<Self, String> {
        Affine::new(bits, group_size, scale_dtype.unwrap_or(Float::F16))
            .map_err(|e| e.to_string())?;
        Ok(Self::Affine { bits, group_size, scale_dtype })
    }

    /// The encoding for a source of type `source`, where the recipe's own scale type is `scale`.
    pub fn resolve(self, source: Float, scale: Option<Float>) -> Encoding {
        match self {
            Self::Keep => source.into(),
            Self::Float(float) => float.into(),
            Self::Affine { bits, group_size, scale_dtype } => {
                let dtype = scale_dtype.or(scale).unwrap_or(match source {
                    Float::Bf16 => Float::Bf16,
                    Float::F16 | Float::F32 => Float::F16,
                });
                // A wish is made only of checked parts, so the last arm is never taken.
                Affine::new(bits, group_size, dtype).map_or(source.into(), Encoding::Affine)
            }
        }
    }

    /// Affine codes of another group size.
    pub(crate) const fn with_group(self, group: u16) -> Self {
        match self {
            Self::Affine { bits, scale_dtype, .. } => {
                Self::Affine { bits, group_size: group, scale_dtype }
            }
            other => other,
        }
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Float(float) => f.write_str(float.name()),
            Self::Affine { bits, group_size, scale_dtype: None } => {
                write!(f, "q{bits}g{group_size}")
            }
            Self::Affine { bits, group_size, scale_dtype: Some(dtype) } => {
                write!(f, "q{bits}g{group_size}:{}", dtype.name())
            }
        }
    }
}

impl FromStr for Wish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "keep" {
            return Ok(Self::Keep);
        }
        if let Some(float) = float(text) {
            return Ok(Self::Float(float));
        }
        let wrong =
            || format!("encoding: expected keep, f16, bf16, f32 or like q4g64, found `{text}`");
        let (codes, dtype) = match text.split_once(':') {
            Some((codes, dtype)) => (codes, Some(float(dtype).ok_or_else(wrong)?)),
            None => (text, None),
        };
        let codes = codes.strip_prefix('q').ok_or_else(wrong)?;
        let (bits, group) = codes.split_once('g').unwrap_or((codes, ""));
        let bits = bits.parse().map_err(|_| wrong())?;
        let group = if codes.contains('g') {
            group.parse().map_err(|_| wrong())?
        } else {
            DEFAULT_GROUP_SIZE
        };
        Self::affine(bits, group, dtype)
    }
}

fn float(name: &str) -> Option<Float> {
    [Float::F32, Float::F16, Float::Bf16]
        .into_iter()
        .find(|f| f.name() == name)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAffine {
    bits: u8,
    group_size: u16,
    #[serde(default)]
    scale_dtype: Option<Float>,
}

impl Serialize for Wish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Affine { bits, group_size, scale_dtype } = self else {
            return serializer.collect_str(self);
        };
        let mut map =
            serializer.serialize_struct("Affine", 2 + usize::from(scale_dtype.is_some()))?;
        map.serialize_field("bits", bits)?;
        map.serialize_field("group_size", group_size)?;
        match scale_dtype {
            Some(dtype) => map.serialize_field("scale_dtype", dtype)?,
            None => map.skip_field("scale_dtype")?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Wish {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;
        impl<'de> Visitor<'de> for TextOrMap {
            type Value = Wish;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an encoding: keep, f16, bf16, f32, q4g64, or its bits and group_size")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Wish, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Wish, A::Error> {
                let raw = RawAffine::deserialize(MapAccessDeserializer::new(map))?;
                Wish::affine(raw.bits, raw.group_size, raw.scale_dtype).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(TextOrMap)
    }
}

/// What to try when the group size does not divide the columns: another group size with the same
/// bits, or a float type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The same bits in groups of this many columns.
    Group(u16),
    /// The source's type, or the named one.
    Plain(Wish),
}

impl Serialize for Fallback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Group(group) => serializer.serialize_u16(*group),
            Self::Plain(wish) => wish.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Fallback {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GroupOrName;
        impl Visitor<'_> for GroupOrName {
            type Value = Fallback;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a group size, or one of keep, f16, bf16, f32")
            }

            fn visit_u64<E: serde::de::Error>(self, group: u64) -> Result<Fallback, E> {
                let known = Affine::GROUP_SIZES
                    .into_iter()
                    .find(|g| u64::from(*g) == group);
                known.map(Fallback::Group).ok_or_else(|| {
                    E::custom(format!(
                        "fallback: expected a group size of 32, 64 or 128, found {group}"
                    ))
                })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Fallback, E> {
                match text.parse() {
                    Ok(wish @ (Wish::Keep | Wish::Float(_))) => Ok(Fallback::Plain(wish)),
                    _ => Err(E::custom(format!(
                        "fallback: expected a group size, keep, f16, bf16 or f32, found `{text}`"
                    ))),
                }
            }
        }
        deserializer.deserialize_any(GroupOrName)
    }
}
