//! The floating-point types that values and scales are stored in.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// A 16- or 32-bit floating-point type as it lies on disk, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

/// What the scales of small floats are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScaleType {
    /// [`Float::F32`].
    F32,
    /// [`Float::F16`].
    F16,
    /// [`Float::Bf16`].
    Bf16,
    /// Powers of two, a byte for the exponent: [`f8_e8m0`](crate::f8_e8m0).
    E8m0,
}

impl ScaleType {
    /// The plain type, if it is one.
    pub const fn float(self) -> Option<Float> {
        match self {
            Self::F32 => Some(Float::F32),
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::Bf16),
            Self::E8m0 => None,
        }
    }

    /// Bytes of one.
    pub const fn size(self) -> usize {
        match self.float() {
            Some(float) => float.size(),
            None => 1,
        }
    }

    /// The lower-case name used in manifests: `f32`, `f16`, `bf16`, `e8m0`.
    pub const fn name(self) -> &'static str {
        match self.float() {
            Some(float) => float.name(),
            None => "e8m0",
        }
    }
}

impl Float {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The lower-case name used in manifests and recipes: `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// `value` rounded to this type (nearest, ties to even) and widened back.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}
