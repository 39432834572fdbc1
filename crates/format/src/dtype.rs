//! Types of values in checkpoint files.

use serde::{Deserialize, Serialize};
use shardwright_quant::Float;

use crate::refusal::{Refusal, mismatch};

/// The type of one value of a `.safetensors` file, little-endian.
///
/// Floats of 16 and 32 bits are weights as they are; of the others a [`Decoder`](crate::Decoder)
/// makes weights, or nothing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Dtype {
    /// A type that weights are read in.
    Float(Float),
    /// IEEE 754 binary64.
    F64,
    /// 8 bits: sign, 4 of exponent, 3 of mantissa; no infinities, two NaNs (OCP `E4M3`).
    F8E4m3,
    /// 8 bits: sign, 5 of exponent, 2 of mantissa, as IEEE 754 (OCP `E5M2`).
    F8E5m2,
    /// 8 bits of exponent alone: `2^(x - 127)`, 255 is NaN (OCP `E8M0`).
    F8E8m0,
    /// One byte, 0 or 1.
    Bool,
    /// 8 bits, unsigned.
    U8,
    /// 8 bits, signed.
    I8,
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    I16,
    /// 32 bits, unsigned.
    U32,
    /// 32 bits, signed.
    I32,
    /// 64 bits, unsigned.
    U64,
    /// 64 bits, signed.
    I64,
}

impl Dtype {
    /// Every type.
    pub const ALL: [Self; 16] = [
        Self::Float(Float::F32),
        Self::Float(Float::F16),
        Self::Float(Float::Bf16),
        Self::F64,
        Self::F8E4m3,
        Self::F8E5m2,
        Self::F8E8m0,
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::U64,
        Self::I64,
    ];

    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::Float(float) => float.size(),
            Self::F8E4m3 | Self::F8E5m2 | Self::F8E8m0 | Self::Bool | Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::F64 | Self::U64 | Self::I64 => 8,
        }
    }

    /// The format's name: `BF16`, `F8_E4M3`, …
    pub const fn label(self) -> &'static str {
        match self {
            Self::Float(Float::F32) => "F32",
            Self::Float(Float::F16) => "F16",
            Self::Float(Float::Bf16) => "BF16",
            Self::F64 => "F64",
            Self::F8E4m3 => "F8_E4M3",
            Self::F8E5m2 => "F8_E5M2",
            Self::F8E8m0 => "F8_E8M0",
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::U16 => "U16",
            Self::I16 => "I16",
            Self::U32 => "U32",
            Self::I32 => "I32",
            Self::U64 => "U64",
            Self::I64 => "I64",
        }
    }

    /// The type with that name in the format.
    pub fn parse(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.label() == label)
    }

    /// The type as one that weights are read in.
    pub const fn float(self) -> Option<Float> {
        match self {
            Self::Float(float) => Some(float),
            _ => None,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

impl From<Float> for Dtype {
    fn from(float: Float) -> Self {
        Self::Float(float)
    }
}

impl From<Dtype> for String {
    fn from(dtype: Dtype) -> Self {
        dtype.label().to_owned()
    }
}

impl TryFrom<String> for Dtype {
    type Error = Refusal;

    fn try_from(label: String) -> Result<Self, Refusal> {
        Self::parse(&label).ok_or_else(|| unknown(&label))
    }
}

/// What is said of a name that is no type's.
pub(crate) fn unknown(label: &str) -> Refusal {
    let known: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.label()).collect();
    mismatch(format_args!("one of {}", known.join(", ")), format_args!("`{label}`"))
        .at("unsupported dtype")
}
