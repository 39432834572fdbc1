//! How the values of a quantized tensor are made from what a checkpoint holds.

use serde::{Deserialize, Serialize};
use shardwright_quant::Ggml;

use crate::checkpoint::Dtype;

/// A scheme, the stored tensors that it needs by name, and its parameters. What each value is:
/// `docs/FORMAT.md`, section "Decoders".
///
/// A decoded matrix has `rows × cols` values, the last two dimensions of its shape; dimensions
/// before them, if any, number the matrices, in the decoded tensor as in the stored ones.
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
    },
}

impl Decoder {
    /// The stored tensor that holds the values or codes.
    pub fn main(&self) -> &str {
        match self {
            Self::Scaled { weight, .. } => weight,
            Self::Gguf { tensor, .. } => tensor,
        }
    }

    /// Every stored tensor that it needs, [`Self::main`] first.
    pub fn parts(&self) -> Vec<&str> {
        match self {
            Self::Scaled { weight, scales, .. } => vec![weight, scales],
            Self::Gguf { tensor, .. } => vec![tensor],
        }
    }

    /// The same with other names of stored tensors.
    #[must_use]
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        let mut renamed = self.clone();
        for name in renamed.names() {
            *name = rename(name);
        }
        renamed
    }

    fn names(&mut self) -> Vec<&mut String> {
        match self {
            Self::Scaled { weight, scales, .. } => vec![weight, scales],
            Self::Gguf { tensor, .. } => vec![tensor],
        }
    }

    /// A short label for tables: `f8_e4m3 128x128`.
    pub fn label(&self) -> String {
        match self {
            Self::Scaled { values, block: [rows, cols], .. } => {
                format!("{} {rows}x{cols}", values.label().to_lowercase())
            }
            Self::Gguf { kind, .. } => kind.name().to_lowercase(),
        }
    }
}
