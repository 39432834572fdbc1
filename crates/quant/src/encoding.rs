//! How a matrix is stored, and how many bytes that takes.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
pub use crate::dtype::Float;
use crate::minifloat::Minifloat;

/// Grouped affine codes: `w ≈ scale · q + bias`, one pair per `group_size` columns of a row.
///
/// The byte layout is that of MLX's affine mode: `docs/FORMAT.md`, section "Affine".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawAffine", into = "RawAffine")]
pub struct Affine {
    bits: u8,
    group_size: u16,
    scale_dtype: Float,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAffine {
    bits: u8,
    group_size: u16,
    scale_dtype: Float,
}

impl TryFrom<RawAffine> for Affine {
    type Error = EncodingError;
    fn try_from(raw: RawAffine) -> Result<Self, EncodingError> {
        Self::new(raw.bits, raw.group_size, raw.scale_dtype)
    }
}

impl From<Affine> for RawAffine {
    fn from(a: Affine) -> Self {
        Self { bits: a.bits, group_size: a.group_size, scale_dtype: a.scale_dtype }
    }
}

/// Why an encoding cannot exist or cannot hold a matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// A code width that no kernel reads.
    #[error("bits: expected 2, 3, 4, 6 or 8, found {0}")]
    Bits(u8),
    /// A group size that no kernel reads.
    #[error("group_size: expected 32, 64 or 128, found {0}")]
    GroupSize(u16),
    /// A code width that no trellis has.
    #[error("bits: expected 2, 3 or 4 in a trellis, found {0}")]
    TrellisBits(u8),
    /// A state width that no trellis has.
    #[error("state_bits: expected 10, 12, 14 or 16, found {0}")]
    StateBits(u8),
    /// Columns that cannot be rotated.
    #[error("a trellis needs columns in multiples of 16, found {0}")]
    Rotation(u64),
    /// Rows must be whole groups.
    #[error("group_size {group_size} does not divide {cols} columns")]
    Columns {
        /// The encoding's group size.
        group_size: u16,
        /// The matrix's columns.
        cols: u64,
    },
    /// The byte count does not fit in 64 bits.
    #[error("a {rows} x {cols} matrix is larger than any file")]
    Overflow {
        /// The matrix's rows.
        rows: u64,
        /// The matrix's columns.
        cols: u64,
    },
}

impl Affine {
    /// Code widths that exist.
    pub const BITS: [u8; 5] = [2, 3, 4, 6, 8];
    /// Group sizes that exist.
    pub const GROUP_SIZES: [u16; 3] = [32, 64, 128];

    /// An affine encoding.
    ///
    /// # Errors
    /// Names the field outside its set: [`Self::BITS`], [`Self::GROUP_SIZES`].
    pub fn new(bits: u8, group_size: u16, scale_dtype: Float) -> Result<Self, EncodingError> {
        if !Self::BITS.contains(&bits) {
            return Err(EncodingError::Bits(bits));
        }
        if !Self::GROUP_SIZES.contains(&group_size) {
            return Err(EncodingError::GroupSize(group_size));
        }
        Ok(Self { bits, group_size, scale_dtype })
    }

    /// Bits of one code.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Columns that share one scale and bias.
    pub const fn group_size(self) -> usize {
        self.group_size as usize
    }

    /// Storage type of scales and biases. [`Float::F32`] holds `-zero · scale` of any zero among the codes and any
    /// scale of 16 bits.
    pub const fn scale_dtype(self) -> Float {
        self.scale_dtype
    }

    /// The largest code, `2^bits - 1`.
    pub const fn max_code(self) -> u8 {
        u8::MAX >> (8 - self.bits)
    }

    /// The code `z` with `bias = -z · scale` exactly, if there is one: the middle for a group of zeros.
    pub fn zero_code(self, scale: f32, bias: f32) -> Option<u8> {
        if scale == 0.0 {
            return (bias == 0.0).then_some(self.max_code() / 2 + 1);
        }
        let (scale, below) = (f64::from(scale), f64::from(-bias));
        let zero = (below / scale).round();
        let held = zero * scale == below && (0.0..=f64::from(self.max_code())).contains(&zero);
        held.then_some(zero as u8)
    }
}

/// What the biases of affine codes may be: a restriction of how they are chosen, not of their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Zeros {
    /// Any number of the type of the scales.
    #[default]
    Float,
    /// `-zero · scale` with a code for `zero`; scales keep only as many bits as make that exact.
    Integer,
    /// The same with `zero = 2^(bits - 1)`, which any scale makes exact.
    Symmetric,
}

impl Zeros {
    /// The lower-case name of recipes and options: `float`, `integer`, `symmetric`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Integer => "integer",
            Self::Symmetric => "symmetric",
        }
    }

    /// What zeros are multiples of in a search, codes of `bits`: any code, and such as leave a scale
    /// nearly all its bits.
    pub const fn units(self, bits: u8) -> &'static [f32] {
        match (self, bits) {
            (Self::Float | Self::Symmetric, _) => &[1.0],
            (Self::Integer, 2 | 3) => &[1.0, 2.0],
            (Self::Integer, 4) => &[1.0, 4.0],
            (Self::Integer, 6) => &[1.0, 8.0],
            (Self::Integer, _) => &[1.0, 16.0],
        }
    }
}

/// Codes of a bit-shift trellis whose values are computed, in a rotated basis, one scale per row:
/// the manner of QTIP (arXiv 2406.11235) and EXL3.
///
/// The byte layout and the values are those of `docs/FORMAT.md`, section "Trellis".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawTrellis", into = "RawTrellis")]
pub struct Trellis {
    bits: u8,
    state_bits: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrellis {
    bits: u8,
    state_bits: u8,
}

impl TryFrom<RawTrellis> for Trellis {
    type Error = EncodingError;
    fn try_from(raw: RawTrellis) -> Result<Self, EncodingError> {
        Self::new(raw.bits, raw.state_bits)
    }
}

impl From<Trellis> for RawTrellis {
    fn from(t: Trellis) -> Self {
        Self { bits: t.bits, state_bits: t.state_bits }
    }
}

impl Trellis {
    /// Code widths that exist.
    pub const BITS: [u8; 3] = [2, 3, 4];
    /// State widths that exist: more are better and slower to make, as fast to read.
    pub const STATE_BITS: [u8; 4] = [10, 12, 14, 16];
    /// Rows that share one cyclic stream of codes per column, and so can only be read together.
    pub const TILE_ROWS: u64 = 256;
    /// The last tile of a matrix is filled up to whole multiples of this many rows.
    pub const ROW_STEP: u64 = 8;
    /// Columns that are rotated together: the largest power of two that divides the columns, at
    /// most this.
    pub const MAX_ROTATION: u64 = 256;
    /// Columns must be a multiple of this.
    pub const MIN_ROTATION: u64 = 16;

    /// A trellis encoding.
    ///
    /// # Errors
    /// Names the field outside its set: [`Self::BITS`], [`Self::STATE_BITS`].
    pub fn new(bits: u8, state_bits: u8) -> Result<Self, EncodingError> {
        if !Self::BITS.contains(&bits) {
            return Err(EncodingError::TrellisBits(bits));
        }
        if !Self::STATE_BITS.contains(&state_bits) {
            return Err(EncodingError::StateBits(state_bits));
        }
        Ok(Self { bits, state_bits })
    }

    /// Bits of one code.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Bits of a state, the window of codes that a value is computed from.
    pub const fn state_bits(self) -> u8 {
        self.state_bits
    }

    /// Bytes that a thread holds while it chooses the codes of a tile: a value for each state, and what each group of
    /// states costs for each row and behind the last.
    pub const fn search_bytes(self) -> u64 {
        let states = 4u64 << self.state_bits;
        states + (states >> self.bits) * (Self::TILE_ROWS + 1)
    }

    /// Columns of a `cols` wide matrix that are rotated together.
    pub const fn rotation(cols: usize) -> usize {
        let block = 1 << cols.trailing_zeros();
        if block < Self::MAX_ROTATION as usize { block } else { Self::MAX_ROTATION as usize }
    }
}

/// How one matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Encoding {
    /// 32-bit floats, row-major.
    #[serde(deserialize_with = "no_fields")]
    F32,
    /// 16-bit floats, row-major.
    #[serde(deserialize_with = "no_fields")]
    F16,
    /// bfloat16, row-major.
    #[serde(deserialize_with = "no_fields")]
    Bf16,
    /// Codes, then scales, then biases: see [`Affine`].
    Affine(Affine),
    /// Codes, then a scale per row: see [`Trellis`].
    Trellis(Trellis),
    /// Codes and scales block by block: see [`Blocks`].
    Ggml(Blocks),
    /// Floats of 4 or 8 bits, then scales: see [`Minifloat`].
    Minifloat(Minifloat),
}

/// Reads the rest of a tagged variant that has no fields; serde alone would read over any.
///
/// # Errors
/// A field.
pub fn no_fields<'de, D: serde::Deserializer<'de>>(rest: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Empty {}
    Empty::deserialize(rest).map(|Empty {}| ())
}

/// Byte lengths of the three parts of a stored matrix, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Values or packed codes, `[rows, row_bytes]`.
    pub weight: u64,
    /// Scales, `[rows, cols / group_size]`; 0 for plain floats.
    pub scales: u64,
    /// Biases, as long as `scales`.
    pub biases: u64,
}

impl Parts {
    /// All parts together.
    pub const fn total(self) -> u64 {
        self.weight + self.scales + self.biases
    }
}

impl From<Float> for Encoding {
    fn from(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::F16 => Self::F16,
            Float::Bf16 => Self::Bf16,
        }
    }
}

impl Encoding {
    /// The plain float type, if the encoding is one.
    pub const fn float(self) -> Option<Float> {
        match self {
            Self::F32 => Some(Float::F32),
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::Bf16),
            Self::Affine(_) | Self::Trellis(_) | Self::Ggml(_) | Self::Minifloat(_) => None,
        }
    }

    /// Bytes of each part of a `rows × cols` matrix.
    ///
    /// # Errors
    /// [`EncodingError::Columns`] when groups do not divide a row, [`EncodingError::Overflow`]
    /// when the product leaves 64 bits.
    pub fn parts(self, rows: u64, cols: u64) -> Result<Parts, EncodingError> {
        let overflow = || EncodingError::Overflow { rows, cols };
        let weights = rows.checked_mul(cols).ok_or_else(overflow)?;
        // One bound for every later sum: no encoding takes more than 8 bytes per weight.
        weights.checked_mul(8).ok_or_else(overflow)?;
        match self {
            Self::Affine(a) => {
                if !cols.is_multiple_of(u64::from(a.group_size)) {
                    return Err(EncodingError::Columns { group_size: a.group_size, cols });
                }
                let scales = weights / u64::from(a.group_size) * a.scale_dtype.size() as u64;
                Ok(Parts { weight: weights / 8 * u64::from(a.bits), scales, biases: scales })
            }
            Self::Trellis(t) => {
                if cols == 0 || !cols.is_multiple_of(Trellis::MIN_ROTATION) {
                    return Err(EncodingError::Rotation(cols));
                }
                let filled = rows.checked_next_multiple_of(Trellis::ROW_STEP);
                let weights = filled.and_then(|rows| rows.checked_mul(cols));
                let weight = weights.ok_or_else(overflow)? / 8;
                let weight = weight.checked_mul(u64::from(t.bits)).ok_or_else(overflow)?;
                Ok(Parts { weight, scales: rows * 2, biases: 0 })
            }
            Self::Ggml(blocks) => {
                let form = blocks.form();
                if !cols.is_multiple_of(form.values as u64) {
                    let group_size = form.values as u16;
                    return Err(EncodingError::Columns { group_size, cols });
                }
                let weight = weights / form.values as u64 * form.bytes as u64;
                Ok(Parts { weight, scales: 0, biases: 0 })
            }
            Self::Minifloat(minifloat) => {
                let group_size = minifloat.columns_together();
                if !cols.is_multiple_of(u64::from(group_size)) {
                    return Err(EncodingError::Columns { group_size, cols });
                }
                let scales = weights / minifloat.group_size() as u64;
                let scales = scales * minifloat.scale_dtype().size() as u64;
                let weight = weights / 8 * u64::from(minifloat.element().bits());
                Ok(Parts { weight, scales, biases: 0 })
            }
            Self::F32 => Ok(Parts { weight: weights * 4, scales: 0, biases: 0 }),
            Self::F16 | Self::Bf16 => Ok(Parts { weight: weights * 2, scales: 0, biases: 0 }),
        }
    }

    /// Rows that can only be read together: a range of rows must start at a multiple of this, and
    /// end at one or with the matrix.
    pub const fn row_block(self) -> u64 {
        match self {
            Self::Trellis(_) => Trellis::TILE_ROWS,
            _ => 1,
        }
    }

    /// The fewest rows around `rows` of a matrix of `total` that can be read alone: whole
    /// [`Self::row_block`]s, the last of which ends with the matrix.
    pub const fn whole_rows(self, rows: &Range<u64>, total: u64) -> Range<u64> {
        let block = self.row_block();
        let end = rows.end.saturating_add(block - 1) / block * block;
        rows.start / block * block..if end < total { end } else { total }
    }

    /// Where weight, scales and biases of `rows`, [`Self::whole_rows`] of a matrix of `[total, cols]`,
    /// lie in its bytes.
    ///
    /// # Errors
    /// As [`Self::parts`].
    pub fn row_parts(
        self,
        [total, cols]: [u64; 2],
        rows: &Range<u64>,
    ) -> Result<[Range<u64>; 3], EncodingError> {
        let parts = |rows| self.parts(rows, cols);
        let (whole, before) = (parts(total)?, parts(rows.start)?);
        let wanted = parts(rows.end.saturating_sub(rows.start))?;
        let (scales, biases) = (whole.weight, whole.weight + whole.scales);
        let part = |start: u64, len: u64| start..start + len;
        Ok([
            part(before.weight, wanted.weight),
            part(scales + before.scales, wanted.scales),
            part(biases + before.biases, wanted.biases),
        ])
    }

    /// Bits of a code of one weight; none of floats.
    pub const fn code_bits(self) -> Option<u8> {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => None,
            Self::Affine(a) => Some(a.bits),
            Self::Trellis(t) => Some(t.bits),
            Self::Ggml(blocks) => Some(blocks.form().bits),
            Self::Minifloat(m) => Some(m.element().bits()),
        }
    }

    /// Bits per weight, scales and biases included, those of rows left out.
    pub fn bits_per_weight(self) -> f64 {
        match self {
            Self::F32 => 32.0,
            Self::F16 | Self::Bf16 => 16.0,
            Self::Affine(a) => {
                f64::from(a.bits) + 16.0 * a.scale_dtype.size() as f64 / f64::from(a.group_size)
            }
            Self::Trellis(t) => f64::from(t.bits),
            Self::Ggml(blocks) => {
                let form = blocks.form();
                8.0 * form.bytes as f64 / form.values as f64
            }
            Self::Minifloat(m) => {
                let scale = 8.0 * m.scale_dtype().size() as f64 / m.group_size() as f64;
                f64::from(m.element().bits()) + scale
            }
        }
    }

    /// A short label for tables: `f16`, `q4 g64 bf16`.
    pub fn label(self) -> String {
        match self {
            Self::F32 => "f32".to_owned(),
            Self::F16 => "f16".to_owned(),
            Self::Bf16 => "bf16".to_owned(),
            Self::Affine(a) => format!("q{} g{} {}", a.bits, a.group_size, a.scale_dtype.name()),
            Self::Trellis(t) => format!("t{} s{}", t.bits, t.state_bits),
            Self::Ggml(blocks) => blocks.name().to_owned(),
            Self::Minifloat(minifloat) => minifloat.label(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_means_nothing_is_refused() {
        let parse = |text: &str| serde_json::from_str::<Encoding>(text);
        assert_eq!(parse(r#"{"kind": "bf16"}"#).unwrap(), Encoding::Bf16);
        for kind in ["f32", "f16", "bf16"] {
            let error = parse(&format!(r#"{{"kind": "{kind}", "bits": 4}}"#)).unwrap_err();
            assert_eq!(error.to_string(), "unknown field `bits`, there are no fields");
        }
    }
}
