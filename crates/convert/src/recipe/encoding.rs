//! What a recipe asks for: an encoding whose open ends the source's type fills in.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use shardwright_format::{Refusal, mismatch};
use shardwright_quant::{Affine, Blocks, Encoding, Float, Trellis};

/// Group size where text names none.
const DEFAULT_GROUP_SIZE: u16 = 64;
/// State width of a trellis where text names none.
const DEFAULT_STATE_BITS: u8 = 12;
/// What recipes call [`EncodingSpec::LeaveOut`].
const LEAVE_OUT: &str = "leave_out";

/// How a recipe wants a tensor stored.
///
/// In text `keep`, `leave_out`, `f16`, `bf16`, `f32`, `q4`, `q4g32`, `q4g32:bf16`, `t3`, `t3s16`, `q4_k`; in recipes also
/// `{"bits": 4, "group_size": 32, "scale_dtype": "bf16"}` for affine codes and
/// `{"bits": 3, "state_bits": 16}` for those of a trellis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodingSpec {
    /// In the source's type.
    Keep,
    /// Not at all: only for what is not the text model.
    LeaveOut,
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
    /// In trellis codes.
    Trellis(Trellis),
    /// In blocks, as GGUF files have them.
    Ggml(Blocks),
}

impl EncodingSpec {
    /// Trellis codes, checked.
    fn trellis(bits: u8, state_bits: u8) -> Result<Self, Refusal> {
        let trellis = Trellis::new(bits, state_bits).map_err(|e| e.to_string())?;
        Ok(Self::Trellis(trellis))
    }

    /// Whether it is codes of some kind, which only matrices are stored in.
    pub const fn is_codes(self) -> bool {
        matches!(self, Self::Affine { .. } | Self::Trellis(_) | Self::Ggml(_))
    }

    /// Affine codes; without a type of scales that of the recipe, or of the source.
    ///
    /// # Errors
    /// Bits or a group that no affine codes have.
    pub fn affine(bits: u8, group_size: u16, scale_dtype: Option<Float>) -> Result<Self, Refusal> {
        let checked = Affine::new(bits, group_size, scale_dtype.unwrap_or(Float::F16));
        checked.map_err(|e| e.to_string())?;
        if scale_dtype == Some(Float::F32) {
            return Err(mismatch("f16 or bf16", "f32").at("scale_dtype"));
        }
        Ok(Self::Affine { bits, group_size, scale_dtype })
    }

    /// The encoding for a source of type `source`, where the recipe's own scale type is `scale`;
    /// none for what is left out.
    pub fn resolve(self, source: Float, scale: Option<Float>) -> Option<Encoding> {
        Some(match self {
            Self::LeaveOut => return None,
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
            Self::Trellis(trellis) => Encoding::Trellis(trellis),
            Self::Ggml(blocks) => Encoding::Ggml(blocks),
        })
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

impl fmt::Display for EncodingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::LeaveOut => f.write_str(LEAVE_OUT),
            Self::Float(float) => f.write_str(float.name()),
            Self::Affine { bits, group_size, scale_dtype: None } => {
                write!(f, "q{bits}g{group_size}")
            }
            Self::Affine { bits, group_size, scale_dtype: Some(dtype) } => {
                write!(f, "q{bits}g{group_size}:{}", dtype.name())
            }
            Self::Trellis(trellis) => write!(f, "t{}s{}", trellis.bits(), trellis.state_bits()),
            Self::Ggml(blocks) => f.write_str(blocks.name()),
        }
    }
}

impl FromStr for EncodingSpec {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        if text == "keep" {
            return Ok(Self::Keep);
        }
        if text == LEAVE_OUT {
            return Ok(Self::LeaveOut);
        }
        if let Some(float) = float(text) {
            return Ok(Self::Float(float));
        }
        if let Some(blocks) = Blocks::from_name(text) {
            return Ok(Self::Ggml(blocks));
        }
        let wrong = || {
            mismatch(
                "keep, f16, bf16, f32 or like q4g64, t3s12 or q4_k (leave_out for what is not the \
                 text model)",
                format_args!("`{text}`"),
            )
            .at("encoding")
        };
        let number = |text: &str| text.parse().map_err(|_| wrong());
        let byte = |text: &str| text.parse().map_err(|_| wrong());
        if let Some(codes) = text.strip_prefix('t') {
            let (bits, state) = codes.split_once('s').map_or((codes, None), split);
            return Self::trellis(byte(bits)?, state.map_or(Ok(DEFAULT_STATE_BITS), byte)?);
        }
        let (codes, dtype) = text.split_once(':').map_or((text, None), split);
        let dtype = dtype
            .map(|name| float(name).ok_or_else(wrong))
            .transpose()?;
        let codes = codes.strip_prefix('q').ok_or_else(wrong)?;
        let (bits, group) = codes.split_once('g').map_or((codes, None), split);
        Self::affine(byte(bits)?, group.map_or(Ok(DEFAULT_GROUP_SIZE), number)?, dtype)
    }
}

/// The parts of a text that has both.
const fn split<'a>((head, tail): (&'a str, &'a str)) -> (&'a str, Option<&'a str>) {
    (head, Some(tail))
}

fn float(name: &str) -> Option<Float> {
    [Float::F32, Float::F16, Float::Bf16]
        .into_iter()
        .find(|f| f.name() == name)
}

/// Fields of either kind of codes: a trellis has `state_bits`, affine codes a `group_size`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCodes {
    bits: u8,
    #[serde(default)]
    group_size: Option<u16>,
    #[serde(default)]
    scale_dtype: Option<Float>,
    #[serde(default)]
    state_bits: Option<u8>,
}

impl RawCodes {
    fn wanted(self) -> Result<EncodingSpec, Refusal> {
        match self {
            Self { bits, group_size: None, scale_dtype: None, state_bits: Some(state_bits) } => {
                EncodingSpec::trellis(bits, state_bits)
            }
            Self { bits, group_size: Some(group_size), scale_dtype, state_bits: None } => {
                EncodingSpec::affine(bits, group_size, scale_dtype)
            }
            Self { state_bits: Some(_), .. } => {
                Err("a trellis has bits and state_bits and no other field".into())
            }
            Self { .. } => {
                Err("missing field `group_size` (or `state_bits`, for a trellis)".into())
            }
        }
    }
}

impl Serialize for EncodingSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep | Self::LeaveOut | Self::Float(_) | Self::Ggml(_) => {
                serializer.collect_str(self)
            }
            Self::Affine { bits, group_size, scale_dtype } => {
                let fields = 2 + usize::from(scale_dtype.is_some());
                let mut map = serializer.serialize_struct("Affine", fields)?;
                map.serialize_field("bits", bits)?;
                map.serialize_field("group_size", group_size)?;
                match scale_dtype {
                    Some(dtype) => map.serialize_field("scale_dtype", dtype)?,
                    None => map.skip_field("scale_dtype")?,
                }
                map.end()
            }
            Self::Trellis(trellis) => trellis.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for EncodingSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;
        impl<'de> Visitor<'de> for TextOrMap {
            type Value = EncodingSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an encoding: keep, leave_out, f16, bf16, f32, q4g64, t3s12, q4_k, or its bits \
                     and group_size or state_bits",
                )
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<EncodingSpec, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<EncodingSpec, A::Error> {
                let raw = RawCodes::deserialize(MapAccessDeserializer::new(map))?;
                raw.wanted().map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(TextOrMap)
    }
}

/// What to try when codes cannot hold a matrix, as the group size does not divide its columns, or
/// they are not a multiple of 16 and cannot be rotated for a trellis. Blocks of 256 become blocks of 32 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Affine codes of the same bits and scales in groups of this many columns. Nothing to a trellis.
    Group(u16),
    /// Another encoding.
    Encoding(EncodingSpec),
}

impl Serialize for Fallback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Group(group) => serializer.serialize_u16(*group),
            Self::Encoding(wanted) => serializer.collect_str(wanted),
        }
    }
}

impl<'de> Deserialize<'de> for Fallback {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GroupOrName;
        impl Visitor<'_> for GroupOrName {
            type Value = Fallback;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a group size, or an encoding in text: keep, f16, q4g32")
            }

            fn visit_u64<E: serde::de::Error>(self, group: u64) -> Result<Fallback, E> {
                let known = Affine::GROUP_SIZES
                    .into_iter()
                    .find(|g| u64::from(*g) == group);
                known.map(Fallback::Group).ok_or_else(|| {
                    E::custom(mismatch("a group size of 32, 64 or 128", group).at("fallback"))
                })
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Fallback, E> {
                let wanted = text.parse().and_then(|wanted| match wanted {
                    EncodingSpec::LeaveOut => {
                        Err("what a rule wants stored is not left out".into())
                    }
                    wanted => Ok(Fallback::Encoding(wanted)),
                });
                wanted.map_err(|wrong: Refusal| E::custom(wrong.at("fallback")))
            }
        }
        deserializer.deserialize_any(GroupOrName)
    }
}
