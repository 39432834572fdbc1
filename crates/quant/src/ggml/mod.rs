//! Types of GGUF tensors and their values: blocks of codes with scales, as ggml stores them.
//!
//! Layouts and formulas: llama.cpp, `ggml/src/ggml-common.h` and `ggml/src/ggml-quants.c`
//! (`dequantize_row_*`); the order of operations is that of gguf-py, `gguf/quants.py`
//! (`dequantize_blocks`), whose values these are to the bit. Numbers are little-endian, scales `f16`.

mod blocks;
mod encode;
mod grids;
mod i_quants;
mod k_quants;
pub mod lines;
mod points;
mod store;
pub mod types;

use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
use crate::encoding::Float;
use crate::float::{half, widen};

pub use encode::Unheld;
pub use grids::points;
pub use store::{Block, PointBlock};

/// Type of a GGUF tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ggml {
    /// Plain.
    F32,
    /// Plain.
    F16,
    /// Plain.
    Bf16,
    /// 32 codes of 4 bits and a scale.
    #[serde(rename = "q4_0")]
    Q4_0,
    /// 32 codes of 4 bits, a scale and a least value.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// 32 codes of 5 bits and a scale.
    #[serde(rename = "q5_0")]
    Q5_0,
    /// 32 codes of 5 bits, a scale and a least value.
    #[serde(rename = "q5_1")]
    Q5_1,
    /// 32 codes of 8 bits and a scale.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 256 codes of 2 bits; scales and least values of 4 bits for every 16.
    #[serde(rename = "q2_k")]
    Q2K,
    /// 256 codes of 3 bits; scales of 6 bits for every 16.
    #[serde(rename = "q3_k")]
    Q3K,
    /// 256 codes of 4 bits; scales and least values of 6 bits for every 32.
    #[serde(rename = "q4_k")]
    Q4K,
    /// 256 codes of 5 bits; scales and least values of 6 bits for every 32.
    #[serde(rename = "q5_k")]
    Q5K,
    /// 256 codes of 6 bits; scales of 8 bits for every 16.
    #[serde(rename = "q6_k")]
    Q6K,
    /// 256 values in eights from a grid of 256, whose signs have even parity; scales of 4 bits for every 32.
    #[serde(rename = "iq2_xxs")]
    Iq2Xxs,
    /// 256 values in eights from a grid of 512, whose signs have even parity; scales of 4 bits for every 16.
    #[serde(rename = "iq2_xs")]
    Iq2Xs,
    /// 256 values in fours from a grid of 256, signs of even parity for every 8; scales of 4 bits for every 32.
    #[serde(rename = "iq3_xxs")]
    Iq3Xxs,
    /// 256 values in eights from a grid of 2048, moved by an eighth; scales of 3 bits for every 32.
    #[serde(rename = "iq1_s")]
    Iq1S,
    /// 32 codes of 4 bits into sixteen values, and a scale.
    #[serde(rename = "iq4_nl")]
    Iq4Nl,
    /// 256 values in fours from a grid of 512, with signs; scales of 4 bits for every 32.
    #[serde(rename = "iq3_s")]
    Iq3S,
    /// 256 values in eights from a grid of 1024, with signs; scales of 4 bits for every 16.
    #[serde(rename = "iq2_s")]
    Iq2S,
    /// 256 codes of 4 bits into sixteen values; scales of 6 bits for every 32.
    #[serde(rename = "iq4_xs")]
    Iq4Xs,
    /// 256 values in eights from the grid of `Iq1S`, moved by an eighth each; scales of 3 bits for every 16.
    #[serde(rename = "iq1_m")]
    Iq1M,
    /// 256 codes of three values, five in a byte, and a scale.
    #[serde(rename = "tq1_0")]
    Tq1_0,
    /// 256 codes of 2 bits for three values, and a scale.
    #[serde(rename = "tq2_0")]
    Tq2_0,
    /// 32 values of 4 bits and a power of two.
    #[serde(rename = "mxfp4")]
    Mxfp4,
    /// 64 values of 4 bits; scales of 8 bits, floats themselves, for every 16.
    #[serde(rename = "nvfp4")]
    Nvfp4,
}

impl From<Blocks> for Ggml {
    fn from(blocks: Blocks) -> Self {
        match blocks {
            Blocks::Q4_0 => Self::Q4_0,
            Blocks::Q4_1 => Self::Q4_1,
            Blocks::Q5_0 => Self::Q5_0,
            Blocks::Q5_1 => Self::Q5_1,
            Blocks::Q8_0 => Self::Q8_0,
            Blocks::Q2K => Self::Q2K,
            Blocks::Q3K => Self::Q3K,
            Blocks::Q4K => Self::Q4K,
            Blocks::Q5K => Self::Q5K,
            Blocks::Q6K => Self::Q6K,
            Blocks::Iq4Nl => Self::Iq4Nl,
            Blocks::Iq4Xs => Self::Iq4Xs,
            Blocks::Iq3S => Self::Iq3S,
            Blocks::Iq3Xxs => Self::Iq3Xxs,
            Blocks::Iq2S => Self::Iq2S,
            Blocks::Iq2Xs => Self::Iq2Xs,
            Blocks::Iq2Xxs => Self::Iq2Xxs,
        }
    }
}

/// What is fixed about a type.
struct Facts {
    /// Its number in a file, `enum ggml_type`.
    id: u32,
    name: &'static str,
    /// Values of a block.
    values: u64,
    /// Bytes of a block.
    bytes: u64,
}

impl Ggml {
    /// Every type, by its number in a file.
    pub const ALL: [Self; 26] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq2Xxs,
        Self::Iq2Xs,
        Self::Iq3Xxs,
        Self::Iq1S,
        Self::Iq4Nl,
        Self::Iq3S,
        Self::Iq2S,
        Self::Iq4Xs,
        Self::Iq1M,
        Self::Bf16,
        Self::Tq1_0,
        Self::Tq2_0,
        Self::Mxfp4,
        Self::Nvfp4,
    ];

    const fn facts(self) -> Facts {
        let (id, name, values, bytes) = match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 2 + 16),
            Self::Q4_1 => (3, "Q4_1", 32, 2 + 2 + 16),
            Self::Q5_0 => (6, "Q5_0", 32, 2 + 4 + 16),
            Self::Q5_1 => (7, "Q5_1", 32, 2 + 2 + 4 + 16),
            Self::Q8_0 => (8, "Q8_0", 32, 2 + 32),
            Self::Q2K => (10, "Q2_K", 256, 16 + 64 + 2 + 2),
            Self::Q3K => (11, "Q3_K", 256, 32 + 64 + 12 + 2),
            Self::Q4K => (12, "Q4_K", 256, 2 + 2 + 12 + 128),
            Self::Q5K => (13, "Q5_K", 256, 2 + 2 + 12 + 32 + 128),
            Self::Q6K => (14, "Q6_K", 256, 128 + 64 + 16 + 2),
            Self::Iq2Xxs => (16, "IQ2_XXS", 256, 2 + 64),
            Self::Iq2Xs => (17, "IQ2_XS", 256, 2 + 64 + 8),
            Self::Iq3Xxs => (18, "IQ3_XXS", 256, 2 + 64 + 32),
            Self::Iq1S => (19, "IQ1_S", 256, 2 + 32 + 16),
            Self::Iq4Nl => (20, "IQ4_NL", 32, 2 + 16),
            Self::Iq3S => (21, "IQ3_S", 256, 2 + 64 + 8 + 32 + 4),
            Self::Iq2S => (22, "IQ2_S", 256, 2 + 32 + 32 + 8 + 8),
            Self::Iq4Xs => (23, "IQ4_XS", 256, 2 + 2 + 4 + 128),
            Self::Iq1M => (29, "IQ1_M", 256, 32 + 16 + 8),
            Self::Bf16 => (30, "BF16", 1, 2),
            Self::Tq1_0 => (34, "TQ1_0", 256, 48 + 4 + 2),
            Self::Tq2_0 => (35, "TQ2_0", 256, 64 + 2),
            Self::Mxfp4 => (39, "MXFP4", 32, 1 + 16),
            Self::Nvfp4 => (40, "NVFP4", 64, 4 + 32),
        };
        Facts { id, name, values, bytes }
    }

    /// Its number in a file.
    pub const fn id(self) -> u32 {
        self.facts().id
    }

    /// The type with a number in a file, if its values are known here.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.facts().id == id)
    }

    /// Its name in ggml.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Values of a block; rows are whole blocks.
    pub const fn block_values(self) -> u64 {
        self.facts().values
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> u64 {
        self.facts().bytes
    }

    /// The same type among plain floats; none for blocks.
    pub const fn float(self) -> Option<Float> {
        match self {
            Self::F32 => Some(Float::F32),
            Self::F16 => Some(Float::F16),
            Self::Bf16 => Some(Float::Bf16),
            _ => None,
        }
    }

    /// The encoding of matrices in such blocks, where there is one.
    pub fn blocks(self) -> Option<Blocks> {
        Blocks::ALL
            .into_iter()
            .find(|blocks| Self::from(*blocks) == self)
    }

    /// The codes, one to a byte, and the scales of whole blocks: floats of `mxfp4` (32 columns to a scale) and `nvfp4`
    /// (16), one more than the values of `tq1_0` and `tq2_0` (256); nothing of other types.
    pub fn codes(self, bytes: &[u8]) -> (Vec<u8>, Vec<f32>) {
        match self {
            Self::Mxfp4 => each_codes(bytes, blocks::mxfp4_codes, 2.0),
            Self::Nvfp4 => each_codes(bytes, blocks::nvfp4_codes, 2.0),
            Self::Tq1_0 => each_codes(bytes, blocks::tq1_0_codes, 1.0),
            Self::Tq2_0 => each_codes(bytes, blocks::tq2_0_codes, 1.0),
            _ => (Vec::new(), Vec::new()),
        }
    }

    /// The values of whole blocks, each rounded as `f32` arithmetic rounds. Scales that are not
    /// finite give values that are not.
    ///
    /// # Panics
    /// When `out` is not whole blocks, or `bytes` not theirs.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let Facts { name, values, bytes: size, .. } = self.facts();
        let len = (out.len() as u64)
            .checked_div(values)
            .map(|blocks| blocks * size);
        assert!(
            (out.len() as u64).is_multiple_of(values) && len == Some(bytes.len() as u64),
            "{} bytes for {} values of {name}",
            bytes.len(),
            out.len()
        );
        match self {
            Self::F32 => widen(Float::F32, bytes, out),
            Self::F16 => widen(Float::F16, bytes, out),
            Self::Bf16 => widen(Float::Bf16, bytes, out),
            Self::Q4_0 => each(bytes, out, blocks::q4_0),
            Self::Q4_1 => each(bytes, out, blocks::q4_1),
            Self::Q5_0 => each(bytes, out, blocks::q5_0),
            Self::Q5_1 => each(bytes, out, blocks::q5_1),
            Self::Q8_0 => each(bytes, out, blocks::q8_0),
            Self::Q2K => each(bytes, out, k_quants::q2_k),
            Self::Q3K => each(bytes, out, k_quants::q3_k),
            Self::Q4K => each(bytes, out, k_quants::q4_k),
            Self::Q5K => each(bytes, out, k_quants::q5_k),
            Self::Q6K => each(bytes, out, k_quants::q6_k),
            Self::Iq2Xxs => each(bytes, out, i_quants::iq2_xxs),
            Self::Iq2Xs => each(bytes, out, i_quants::iq2_xs),
            Self::Iq3Xxs => each(bytes, out, i_quants::iq3_xxs),
            Self::Iq1S => each(bytes, out, i_quants::iq1_s),
            Self::Iq4Nl => each(bytes, out, blocks::iq4_nl),
            Self::Iq3S => each(bytes, out, i_quants::iq3_s),
            Self::Iq2S => each(bytes, out, i_quants::iq2_s),
            Self::Iq4Xs => each(bytes, out, i_quants::iq4_xs),
            Self::Iq1M => each(bytes, out, i_quants::iq1_m),
            Self::Tq1_0 => each(bytes, out, blocks::tq1_0),
            Self::Tq2_0 => each(bytes, out, blocks::tq2_0),
            Self::Mxfp4 => each(bytes, out, blocks::mxfp4),
            Self::Nvfp4 => each(bytes, out, blocks::nvfp4),
        }
    }
}

/// Decodes block by block.
#[inline]
fn each<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let blocks = bytes.as_chunks().0;
    for (bytes, out) in blocks.iter().zip(out.as_chunks_mut().0) {
        block(bytes, out);
    }
}

/// The codes of all blocks, and their scales times `factor`.
fn each_codes<const BYTES: usize, const VALUES: usize, const SCALES: usize>(
    bytes: &[u8],
    block: impl Fn(&[u8; BYTES]) -> ([f32; SCALES], [u8; VALUES]),
    factor: f32,
) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for (some, block) in bytes.as_chunks().0.iter().map(block) {
        scales.extend(some.map(|scale| factor * scale));
        codes.extend(block);
    }
    (codes, scales)
}

/// The next `N` bytes of a block.
#[inline]
fn take<'a, const N: usize>(block: &mut &'a [u8]) -> &'a [u8; N] {
    let (taken, rest) = block
        .split_first_chunk()
        .expect("a block is as long as its parts");
    *block = rest;
    taken
}

#[inline]
fn scale(block: &mut &[u8]) -> f32 {
    half(*take(block))
}

/// Code `i` among `[2, 4, 32]` codes of 2 bits: those of 128 values lie in 32
/// bytes, 32 values in the lowest bits, the next 32 above them.
#[inline]
const fn pair(bytes: &[u8; 64], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}
