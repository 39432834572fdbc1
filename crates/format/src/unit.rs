//! The separately readable pieces of a model.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::decoder::Decoder;
use crate::role::Role;
use shardwright_quant::{Encoding, EncodingError, Float};

/// One separately readable piece of a model; in a bundle, one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The token embedding.
    Embedding,
    /// The dense part of a layer: everything but its routed experts.
    Layer(u32),
    /// One routed expert of a layer.
    Expert {
        /// Layer, from 0.
        layer: u32,
        /// Expert, from 0.
        expert: u32,
    },
    /// The final norm, and the head unless it is tied to the embedding.
    Head,
    /// All tensors of [`Role::Vision`] that a bundle has.
    Vision,
    /// All tensors of [`Role::Mtp`] that a bundle has.
    Mtp,
    /// All tensors of [`Role::Indexer`] that a bundle has.
    Indexer,
}

impl Unit {
    /// What is not the text model, in the order of its shards.
    pub const EXTRAS: [Self; 3] = [Self::Vision, Self::Mtp, Self::Indexer];

    /// The layer that the unit is part of.
    pub const fn layer(self) -> Option<u32> {
        match self {
            Self::Layer(layer) | Self::Expert { layer, .. } => Some(layer),
            _ => None,
        }
    }

    /// The one role of all tensors of an extra; none for the text model's units.
    pub const fn extra_role(self) -> Option<Role> {
        match self {
            Self::Vision => Some(Role::Vision),
            Self::Mtp => Some(Role::Mtp),
            Self::Indexer => Some(Role::Indexer),
            Self::Embedding | Self::Layer(_) | Self::Expert { .. } | Self::Head => None,
        }
    }

    /// The extra that a role is of; none for the text model's roles.
    pub fn from_extra_role(role: Role) -> Option<Self> {
        Self::EXTRAS
            .into_iter()
            .find(|unit| unit.extra_role() == Some(role))
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::Expert { layer, expert } => write!(f, "layer {layer} expert {expert}"),
            Self::Head => f.write_str("head"),
            Self::Vision => f.write_str("vision"),
            Self::Mtp => f.write_str("mtp"),
            Self::Indexer => f.write_str("indexer"),
        }
    }
}

/// One matrix (`rows × cols`; a vector is one row) inside a unit's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// What it is for.
    pub role: Role,
    /// How it is stored.
    pub encoding: Encoding,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// First byte, from the start of the unit.
    pub offset: u64,
    /// Where its values came from.
    pub source: SourceView,
}

/// A `rows × cols` matrix inside one tensor of the checkpoint.
///
/// Element `(r, c)` is value `start + r * row_stride + c * col_stride` of the tensor. Inside the
/// tensors of an expert group, the name's `{expert}` stands for the expert's number, and expert
/// `e` starts at `start + e * expert_stride`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceView {
    /// Name in the checkpoint.
    pub tensor: String,
    /// Its type there.
    pub dtype: Float,
    /// Its shape there.
    pub shape: Vec<u64>,
    /// First value.
    pub start: u64,
    /// Values from one row to the next.
    pub row_stride: u64,
    /// Values from one column to the next: 1 unless the source is transposed.
    pub col_stride: u64,
    /// Values from one expert to the next; 0 when experts are tensors of their own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expert_stride: u64,
    /// How its values are made, if the checkpoint holds it quantized; `dtype` and `shape` are then
    /// those of the decoded tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder: Option<Decoder>,
    /// Where the bundle that it was read from had it from, if it was read from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Self>>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl SourceView {
    /// All of a tensor of plain floats, row after row of `cols` values.
    pub const fn whole(tensor: String, dtype: Float, shape: Vec<u64>, cols: u64) -> Self {
        let (start, expert_stride) = (0, 0);
        let (row_stride, col_stride) = (cols, 1);
        let (decoder, origin) = (None, None);
        Self { tensor, dtype, shape, start, row_stride, col_stride, expert_stride, decoder, origin }
    }

    /// The view of one expert: its name and start filled in. A start past all numbers, which no
    /// valid manifest has, becomes the last one: it lies in no tensor.
    #[must_use]
    pub fn of_expert(&self, expert: u32) -> Self {
        let named = |name: &str| name.replace("{expert}", &expert.to_string());
        Self {
            tensor: named(&self.tensor),
            decoder: self.decoder.as_ref().map(|decoder| decoder.renamed(named)),
            origin: self
                .origin
                .as_ref()
                .map(|origin| Box::new(origin.of_expert(expert))),
            start: u64::from(expert)
                .saturating_mul(self.expert_stride)
                .saturating_add(self.start),
            expert_stride: 0,
            ..self.clone()
        }
    }
}

/// A whole tensor of any rank as a matrix, `[rows, cols]`. A vector or a single value is one row;
/// three dimensions are matrices one under another, as of experts; more are a convolution, its
/// outputs by all else. None where rows or columns leave 64 bits.
pub fn whole_matrix(shape: &[u64]) -> Option<[u64; 2]> {
    let product = |dims: &[u64]| dims.iter().try_fold(1_u64, |n, dim| n.checked_mul(*dim));
    let (rows, cols) = match shape {
        [] | [_] => (&[][..], shape),
        [rows @ .., _] if shape.len() == 3 => (rows, &shape[2..]),
        [_, cols @ ..] => (&shape[..1], cols),
    };
    Some([product(rows)?, product(cols)?])
}

impl SourceView {
    /// The encoding that the source's own codes are in, if the view of `cols` columns is one of whole
    /// rows of codes.
    pub fn codes(&self, cols: u64) -> Option<Encoding> {
        self.codes_by(cols, Decoder::codes)
    }

    /// The same by what `codes` says of the decoder.
    pub(crate) fn codes_by(
        &self,
        cols: u64,
        codes: impl Fn(&Decoder, u64) -> Option<Encoding>,
    ) -> Option<Encoding> {
        let encoding = codes(self.decoder.as_ref()?, cols)?;
        let whole = cols > 0
            && self.col_stride == 1
            && self.shape.last() == Some(&cols)
            && encoding.parts(encoding.row_block(), cols).is_ok()
            && self.start.is_multiple_of(cols)
            && self.row_stride.is_multiple_of(cols);
        whole.then_some(encoding)
    }

    /// The 16- or 32-bit type that stands for the source's: that of its values, or the upper half
    /// of a binary32 for those decoded to 32 bits, of which few are its own.
    pub fn storage_dtype(&self) -> Float {
        let exact = self.decoder.as_ref().is_none_or(Decoder::is_plain);
        if exact { self.dtype } else { Float::Bf16 }
    }
}

impl TensorEntry {
    /// A tensor of `[rows, cols]` at the start of its unit: [`crate::layout`] places it.
    pub const fn new(
        role: Role,
        [rows, cols]: [u64; 2],
        encoding: Encoding,
        source: SourceView,
    ) -> Self {
        Self { role, encoding, rows, cols, offset: 0, source }
    }

    /// The tensor of one of the units that share it: an expert's source view filled in.
    #[must_use]
    pub fn in_unit(&self, unit: Unit) -> Self {
        match unit {
            Unit::Expert { expert, .. } => {
                Self { source: self.source.of_expert(expert), ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// Bytes it takes in the unit.
    ///
    /// # Errors
    /// When the encoding cannot hold the shape.
    pub fn byte_len(&self) -> Result<u64, EncodingError> {
        Ok(self.encoding.parts(self.rows, self.cols)?.total())
    }

    /// The fewest rows around `rows` that can be read alone: whole [`Encoding::row_block`]s, the
    /// last of which ends with the matrix.
    pub const fn readable(&self, rows: &Range<u64>) -> Range<u64> {
        self.encoding.whole_rows(rows, self.rows)
    }

    /// Bytes that reading any one row takes: those of the rows it can only be read with.
    ///
    /// # Errors
    /// When the encoding cannot hold the shape.
    pub fn row_len(&self) -> Result<u64, EncodingError> {
        let rows = self.encoding.row_block().min(self.rows);
        Ok(self.encoding.parts(rows, self.cols)?.total())
    }
}

/// The tensors of a unit and the bytes that hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitLayout {
    /// In order of their offsets.
    pub tensors: std::sync::Arc<[TensorEntry]>,
    /// Bytes of the unit.
    pub len: u64,
}

impl UnitLayout {
    /// The tensor with a role, if the unit has one.
    pub fn find(&self, role: Role) -> Option<&TensorEntry> {
        self.tensors.iter().find(|tensor| tensor.role == role)
    }
}
