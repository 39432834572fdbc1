//! How the values of a quantized tensor are made from what a checkpoint holds.

use serde::{Deserialize, Serialize};
use shardwright_quant::foreign::{MXFP4_GROUP, NVFP4_GROUP};
use shardwright_quant::{Affine, Element, Encoding, Float, Ggml, Minifloat, ScaleType};

use crate::dtype::Dtype;

/// A scheme, the stored tensors that it needs by name, and its parameters. What each value is:
/// `docs/FORMAT.md`, section "Decoders".
///
/// A decoded matrix has `rows × cols` values, the last two dimensions of its shape; dimensions
/// before them, if any, number the matrices, in the decoded tensor as in the stored ones. `groups`
/// is `cols / group_size`, rounded up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case", deny_unknown_fields)]
pub enum Decoder {
    /// One byte per value, times one scale per block of rows and columns.
    Scaled {
        /// Values, `[.., rows, cols]`.
        weight: String,
        /// Their type: `F8_E4M3`, `F8_E5M2` or `I8`.
        values: Dtype,
        /// Scales, `[.., rows / block[0], cols / block[1]]`, rounded up, or one scalar.
        scales: String,
        /// Rows and columns that share a scale; the last blocks may be cut.
        block: [u64; 2],
        /// Whether scales are powers of two, in `F8_E8M0`.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        powers: bool,
    },
    /// Four-bit floats in groups of 32 with a power of two: the microscaling format of gpt-oss.
    Mxfp4 {
        /// Pairs of values, `[.., rows, groups, 16]`.
        blocks: String,
        /// Powers, `[.., rows, groups]`.
        scales: String,
    },
    /// Four-bit floats in groups of 16 with a scale in `F8_E4M3`, as `ModelOpt`, compressed-tensors
    /// and MLX store NVFP4.
    Nvfp4 {
        /// Pairs of values, `[.., rows, cols / 2]` bytes.
        codes: String,
        /// Scales, `[.., rows, groups]`.
        scales: String,
        /// One number in 32 bits for the whole matrix; none means 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tensor_scale: Option<String>,
        /// Whether scales are divided by it, as in compressed-tensors, and not multiplied.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        divided: bool,
    },
    /// The rows of each head from two decoded tensors, as MLX keeps `kv_b_proj` of latent attention:
    /// first those of the keys, which are columns there, then those of the values.
    Heads {
        /// `[heads, cols, key_rows]`.
        keys: Box<Self>,
        /// `[heads, value_rows, cols]`.
        values: Box<Self>,
        /// Rows of a head from `keys`.
        key_rows: u64,
        /// Rows of a head from `values`.
        value_rows: u64,
    },
    /// The rows of each key head of a gated delta net from two decoded tensors, as llama.cpp keeps
    /// `in_proj_qkvz`: those of its queries, its keys and its values, then those of its gates.
    Grouped {
        /// The queries of all heads, then all keys, then all values: `[rows - gates, cols]`.
        mixed: Box<Self>,
        /// The gates of all heads.
        gates: Box<Self>,
        /// Rows of a head's queries, and of its keys.
        key_rows: u64,
        /// Rows of a head's values, and of its gates.
        value_rows: u64,
    },
    /// -1, 0 and 1 times one scale, four rows to a byte, as `BitNet` stores them.
    Ternary {
        /// Codes of the values plus one, `[rows / 4, cols]`: byte `[r, c]` holds rows `r`,
        /// `r + rows / 4` and so on, the first in its lowest bits.
        codes: String,
        /// One number.
        scale: String,
        /// Its type.
        scale_dtype: Float,
        /// Whether values are divided by it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        divided: bool,
    },
    /// `pack-quantized` of compressed-tensors: integers in 32-bit words along the columns.
    Packed {
        /// Codes, `[.., rows, words]`.
        codes: String,
        /// Scales, `[.., rows, groups]`.
        scales: String,
        /// Their type.
        scale_dtype: Float,
        /// Zero points packed along the rows, `[words, groups]`; none means the middle code.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zero_points: Option<String>,
        /// The decoded shape, as numbers.
        dims: String,
        /// The group of each column; none where `group_size` columns follow one another.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<String>,
        /// Bits of a code.
        bits: u8,
        /// Columns that share a scale.
        group_size: u64,
    },
    /// The affine mode of MLX.
    Mlx {
        /// Codes, `[.., rows, words]`.
        weight: String,
        /// Scales, `[.., rows, groups]`.
        scales: String,
        /// Biases, `[.., rows, groups]`.
        biases: String,
        /// Their type and that of the scales.
        scale_dtype: Float,
        /// Bits of a code.
        bits: u8,
        /// Columns that share a scale and a bias.
        group_size: u64,
    },
    /// GPTQ: integers in 32-bit words along the columns, stored transposed.
    Gptq {
        /// Codes, `[words, rows]`.
        codes: String,
        /// Zero points packed along the rows, `[groups, words]`.
        zero_points: String,
        /// Scales, `[groups, rows]`.
        scales: String,
        /// Their type.
        #[serde(default = "f16", skip_serializing_if = "is_f16")]
        scale_dtype: Float,
        /// The group of each column; none where `group_size` columns follow one another.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<String>,
        /// Bits of a code.
        bits: u8,
        /// Columns of a group.
        group_size: u64,
        /// Whether one was taken from each zero point when it was packed, as checkpoints of the
        /// format `gptq` have it and those of `gptq_v2` do not.
        #[serde(rename = "less_one")]
        zeros_stored_minus_one: bool,
    },
    /// AWQ: four-bit integers in 32-bit words along the rows, interleaved, stored transposed.
    Awq {
        /// Codes, `[cols, words]`.
        codes: String,
        /// Zero points, `[groups, words]`.
        zero_points: String,
        /// Scales, `[groups, rows]`.
        scales: String,
        /// Their type.
        #[serde(default = "f16", skip_serializing_if = "is_f16")]
        scale_dtype: Float,
        /// Columns of a group.
        group_size: u64,
    },
    /// Blocks of GGUF, or floats whose rows llama.cpp interleaves.
    Gguf {
        /// Values, `[.., rows, cols]`.
        tensor: String,
        /// Their type.
        kind: Ggml,
        /// Heads of `d` rows, row `2 * j + t` of which is row `t * d / 2 + j` of the matrix; none
        /// where rows are in order. A vector's values are its rows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        heads: Option<u64>,
        /// Whether every value is one too large: llama.cpp adds one to the norms of some models.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        less_one: bool,
    },
    /// Blocks or floats of GGUF, with the value heads of a gated delta net in another order: the first of
    /// every key head, then the second of each.
    Tiled {
        /// Values, `[rows, cols]`; a vector's are its rows.
        tensor: String,
        /// Their type.
        kind: Ggml,
        /// Key heads.
        keys: u64,
        /// Value heads, a multiple of the key heads.
        heads: u64,
        /// Rows or columns before those of the heads.
        first: u64,
        /// Whether columns are in that order, and not rows.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        columns: bool,
        /// Whether each value is the logarithm of what is stored with its sign changed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        log: bool,
    },
    /// A matrix of a bundle, in an encoding of ours.
    Bundle {
        /// Its bytes: `weight | scales | biases`.
        tensor: String,
        /// Their encoding.
        encoding: Encoding,
    },
}

/// The type of scales where a decoder names none.
const fn f16() -> Float {
    Float::F16
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_f16(dtype: &Float) -> bool {
    *dtype == Float::F16
}

/// The names in a decoder, borrowed as it is, the main one first; the optional ones apart.
macro_rules! names {
    ($decoder:expr, $borrow:ident) => {
        match $decoder {
            Decoder::Scaled { weight, scales, .. } => (vec![weight, scales], [None, None]),
            Decoder::Mxfp4 { blocks, scales } => (vec![blocks, scales], [None, None]),
            Decoder::Packed { codes, scales, zero_points, dims, groups, .. } => {
                (vec![codes, scales, dims], [zero_points.$borrow(), groups.$borrow()])
            }
            Decoder::Mlx { weight, scales, biases, .. } => {
                (vec![weight, scales, biases], [None, None])
            }
            Decoder::Gptq { codes, zero_points, scales, groups, .. } => {
                (vec![codes, zero_points, scales], [groups.$borrow(), None])
            }
            Decoder::Awq { codes, zero_points, scales, .. } => {
                (vec![codes, zero_points, scales], [None, None])
            }
            Decoder::Gguf { tensor, .. }
            | Decoder::Tiled { tensor, .. }
            | Decoder::Bundle { tensor, .. } => (vec![tensor], [None, None]),
            Decoder::Ternary { codes, scale, .. } => (vec![codes, scale], [None, None]),
            Decoder::Nvfp4 { codes, scales, tensor_scale, .. } => {
                (vec![codes, scales], [tensor_scale.$borrow(), None])
            }
            Decoder::Heads { .. } | Decoder::Grouped { .. } => (Vec::new(), [None, None]),
        }
    };
}

/// The largest of `sizes` that divides rows of `cols`, and groups of `own` columns where a row is not one.
fn group(sizes: &[u16], cols: u64, own: u64) -> Option<u16> {
    let divides = |size: &&u16| {
        let size = u64::from(**size);
        cols.is_multiple_of(size) && (own >= cols || own.is_multiple_of(size))
    };
    sizes.iter().filter(divides).max().copied()
}

fn affine(bits: u8, cols: u64, own: u64, scale_dtype: Float) -> Option<Encoding> {
    let affine = Affine::new(bits, group(&Affine::GROUP_SIZES, cols, own)?, scale_dtype);
    affine.ok().map(Encoding::Affine)
}

fn minifloat(element: Element, cols: u64, own: u64, scale_dtype: ScaleType) -> Option<Encoding> {
    let size = group(&Minifloat::GROUP_SIZES, cols, own)?;
    let minifloat = Minifloat::new(element, size, scale_dtype);
    minifloat.map(Encoding::Minifloat)
}

/// Bytes with a scale for each `own` columns.
fn scaled(values: Dtype, cols: u64, own: u64, powers: bool) -> Option<Encoding> {
    let scale_dtype = if powers { ScaleType::E8m0 } else { ScaleType::F32 };
    match values {
        Dtype::F8E4m3 => minifloat(Element::E4m3, cols, own, scale_dtype),
        Dtype::F8E5m2 => minifloat(Element::E5m2, cols, own, scale_dtype),
        Dtype::I8 => affine(8, cols, own, Float::F32),
        _ => None,
    }
}

/// Blocks of GGUF.
fn blocks(kind: Ggml) -> Option<Encoding> {
    let own = kind.blocks().map(Encoding::Ggml);
    own.or_else(|| match kind {
        Ggml::Mxfp4 => minifloat(Element::E2m1, kind.block_values(), MXFP4_GROUP, ScaleType::E8m0),
        // A scale of 4 bits behind the point.
        Ggml::Nvfp4 => minifloat(Element::E2m1, kind.block_values(), NVFP4_GROUP, ScaleType::Bf16),
        Ggml::Tq1_0 | Ggml::Tq2_0 => {
            affine(2, kind.block_values(), kind.block_values(), Float::F16)
        }
        _ => None,
    })
}

impl Decoder {
    /// The stored tensor that holds the values or codes.
    pub fn main(&self) -> &str {
        self.stored_names()[0]
    }

    /// Every stored tensor that it needs, [`Self::main`] first.
    pub fn stored_names(&self) -> Vec<&str> {
        if let Self::Heads { keys: a, values: b, .. } | Self::Grouped { mixed: a, gates: b, .. } =
            self
        {
            return [a.stored_names(), b.stored_names()].concat();
        }
        let (names, optional) = names!(self, as_ref);
        names
            .into_iter()
            .chain(optional.into_iter().flatten())
            .map(String::as_str)
            .collect()
    }

    /// The same with other names of stored tensors.
    #[must_use]
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        let mut renamed = self.clone();
        renamed.rename(&rename);
        renamed
    }

    fn rename(&mut self, rename: &impl Fn(&str) -> String) {
        if let Self::Heads { keys: a, values: b, .. } | Self::Grouped { mixed: a, gates: b, .. } =
            self
        {
            a.rename(rename);
            b.rename(rename);
        }
        let (names, optional) = names!(self, as_mut);
        for name in names.into_iter().chain(optional.into_iter().flatten()) {
            *name = rename(name);
        }
    }

    /// A tensor of plain floats as it is; `less_one` where every value is one too large.
    pub const fn plain(tensor: String, dtype: Float, less_one: bool) -> Self {
        let kind = match dtype {
            Float::F32 => Ggml::F32,
            Float::F16 => Ggml::F16,
            Float::Bf16 => Ggml::Bf16,
        };
        Self::Gguf { tensor, kind, heads: None, less_one }
    }

    /// Whether it only puts floats in order, or changes each alone.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Gguf { kind, .. } | Self::Tiled { kind, .. } => kind.float().is_some(),
            Self::Bundle { encoding, .. } => encoding.float().is_some(),
            Self::Heads { keys: a, values: b, .. } | Self::Grouped { mixed: a, gates: b, .. } => {
                a.is_plain() && b.is_plain()
            }
            _ => false,
        }
    }

    /// The encoding in codes in which those of rows of `cols` mean the same, if there is one: affine with
    /// 16-bit scales, of symmetric codes or with biases; that of a bundle; blocks of GGUF; two bits for
    /// ternary ones, six for five; floats of 4 and 8 bits; affine with 32-bit scales for whole numbers with other zeros.
    pub fn codes(&self, cols: u64) -> Option<Encoding> {
        match *self {
            Self::Bundle { encoding, .. } => Some(encoding).filter(|own| own.float().is_none()),
            Self::Gguf { kind, less_one: false, .. }
            | Self::Tiled { kind, columns: false, log: false, .. } => blocks(kind),
            // One scale for a whole tensor is that of groups as large as there are.
            Self::Ternary { scale_dtype, divided: false, .. } => affine(2, cols, cols, scale_dtype),
            Self::Scaled { values, block, powers, .. } => scaled(values, cols, block[1], powers),
            Self::Mxfp4 { .. } => minifloat(Element::E2m1, cols, MXFP4_GROUP, ScaleType::E8m0),
            Self::Nvfp4 { .. } => minifloat(Element::E2m1, cols, NVFP4_GROUP, ScaleType::F32),
            _ => self.own_affine().or_else(|| self.wide_affine(cols)),
        }
    }

    /// As [`Self::codes`], where those surely give each value: biases of symmetric codes are made of their scales, and
    /// those of scales in f16 may leave its range.
    pub fn sure_codes(&self, cols: u64) -> Option<Encoding> {
        match *self {
            Self::Packed { zero_points: None, scale_dtype: Float::F16, .. } => {
                self.wide_affine(cols)
            }
            _ => self.codes(cols),
        }
    }

    /// The same without the order of columns that an index gives, where there is one.
    pub(crate) fn without_order(&self) -> Option<Self> {
        let (Self::Gptq { groups: Some(_), .. } | Self::Packed { groups: Some(_), .. }) = self
        else {
            return None;
        };
        let mut ordered = self.clone();
        if let Self::Gptq { groups, .. } | Self::Packed { groups, .. } = &mut ordered {
            *groups = None;
        }
        Some(ordered)
    }

    /// Whether codes, scales and biases of `affine` are stored, but for biases that scales tell.
    pub(crate) fn has_affine(&self, affine: Affine) -> bool {
        match self {
            Self::Ternary { .. } => true,
            Self::Mlx { bits: 5, .. } => false,
            _ => self.own_affine() == Some(Encoding::Affine(affine)),
        }
    }

    /// Affine codes in groups and with scales as the source has them, those of 5 bits in 6.
    fn own_affine(&self) -> Option<Encoding> {
        match *self {
            // MLX rounds a product and a sum, which are exact with scales of 16 bits alone.
            Self::Mlx { scale_dtype: Float::F32, .. } => None,
            Self::Mlx { bits: 5, group_size, scale_dtype, .. } => {
                let affine = Affine::new(6, u16::try_from(group_size).ok()?, scale_dtype);
                affine.ok().map(Encoding::Affine)
            }
            Self::Packed {
                zero_points: None, groups: None, bits, group_size, scale_dtype, ..
            }
            | Self::Mlx { bits, group_size, scale_dtype, .. } => {
                let affine = Affine::new(bits, u16::try_from(group_size).ok()?, scale_dtype);
                affine.ok().map(Encoding::Affine)
            }
            _ => None,
        }
    }

    /// Affine codes in groups that divide the source's, with scales and biases in 32 bits: `-zero · scale` of codes of
    /// up to 8 bits and a scale of 16 is exact there, and with a power of two for zero of any scale.
    fn wide_affine(&self, cols: u64) -> Option<Encoding> {
        let (bits, group_size, exact) = match *self {
            Self::Packed {
                groups: None, bits, group_size, scale_dtype, ref zero_points, ..
            } => (bits, group_size, zero_points.is_none() || scale_dtype != Float::F32),
            Self::Gptq { groups: None, bits, group_size, scale_dtype, .. } => {
                (bits, group_size, scale_dtype != Float::F32)
            }
            Self::Awq { group_size, scale_dtype, .. } => (4, group_size, scale_dtype != Float::F32),
            _ => return None,
        };
        exact
            .then(|| affine(bits, cols, group_size, Float::F32))
            .flatten()
    }

    /// A short label for tables: `f8_e4m3 128x128`, `int4 g32`.
    pub fn label(&self) -> String {
        match self {
            Self::Scaled { values, block: [rows, cols], .. } => {
                format!("{} {rows}x{cols}", values.label().to_lowercase())
            }
            Self::Mxfp4 { .. } => "mxfp4".to_owned(),
            Self::Nvfp4 { .. } => "nvfp4".to_owned(),
            Self::Heads { keys: inner, .. } | Self::Grouped { mixed: inner, .. } => {
                format!("{} by head", inner.label())
            }
            Self::Packed { zero_points, groups, bits, group_size, .. } => {
                let zero = if zero_points.is_some() { " asymmetric" } else { "" };
                let order = if groups.is_some() { " ordered" } else { "" };
                format!("int{bits} g{group_size}{zero}{order}")
            }
            Self::Mlx { bits, group_size, .. } => format!("mlx q{bits} g{group_size}"),
            Self::Gptq { bits, group_size, groups, .. } => {
                let order = if groups.is_some() { " ordered" } else { "" };
                format!("gptq int{bits} g{group_size}{order}")
            }
            Self::Awq { group_size, .. } => format!("awq int4 g{group_size}"),
            Self::Gguf { kind, .. } | Self::Tiled { kind, .. } => kind.name().to_lowercase(),
            Self::Bundle { encoding, .. } => encoding.label(),
            Self::Ternary { .. } => "ternary".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scale of 10000 in f16 has no bias of eight times its size in f16.
    #[test]
    fn symmetric_codes_with_scales_in_f16_have_biases_of_32_bits() {
        let part = |name: &str| name.to_owned();
        let sure = |scale_dtype, zero_points| {
            let decoder = Decoder::Packed {
                codes: part("codes"),
                scales: part("scales"),
                scale_dtype,
                zero_points,
                dims: part("dims"),
                groups: None,
                bits: 4,
                group_size: 32,
            };
            decoder.sure_codes(64).map(Encoding::label)
        };
        let found = |label: &str| Some(label.to_owned());
        assert_eq!(sure(Float::Bf16, None), found("q4 g32 bf16"));
        assert_eq!(sure(Float::F16, None), found("q4 g32 f32"));
        assert_eq!(sure(Float::F32, None), found("q4 g32 f32"));
        assert_eq!(sure(Float::F16, Some(part("zeros"))), found("q4 g32 f32"));
        // Products with zeros that are no power of two would be rounded.
        assert_eq!(sure(Float::F32, Some(part("zeros"))), None);
    }
}
