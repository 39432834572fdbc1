//! Types of GGUF tensors and their values: blocks of codes with scales, as ggml stores them.
//!
//! Layouts and formulas: llama.cpp, `ggml/src/ggml-common.h` and `ggml/src/ggml-quants.c`
//! (`dequantize_row_*`); the order of operations is that of gguf-py, `gguf/quants.py`
//! (`dequantize_blocks`), whose values these are to the bit. Numbers are little-endian, scales `f16`.

use half::f16;
use serde::{Deserialize, Serialize};

use crate::encoding::Float;
use crate::float::widen;

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
    pub const ALL: [Self; 13] = [
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
        Self::Bf16,
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
            Self::Bf16 => (30, "BF16", 1, 2),
        };
        Facts { id, name, values, bytes }
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
            Self::Q4_0 => each(bytes, out, q4_0),
            Self::Q4_1 => each(bytes, out, q4_1),
            Self::Q5_0 => each(bytes, out, q5_0),
            Self::Q5_1 => each(bytes, out, q5_1),
            Self::Q8_0 => each(bytes, out, q8_0),
            Self::Q2K => each(bytes, out, q2_k),
            Self::Q3K => each(bytes, out, q3_k),
            Self::Q4K => each(bytes, out, q4_k),
            Self::Q5K => each(bytes, out, q5_k),
            Self::Q6K => each(bytes, out, q6_k),
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
    f16::from_le_bytes(*take(block)).to_f32()
}

/// Codes of 4 bits: the low halves of all bytes, then the high ones.
#[inline]
fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// [`nibbles`] with a fifth bit each.
#[inline]
fn fives(high: [u8; 4], low: &[u8; 16]) -> [u8; 32] {
    let (high, low) = (u32::from_le_bytes(high), nibbles(low));
    std::array::from_fn(|i| low[i] | ((high >> i) as u8 & 1) << 4)
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let d = scale(&mut block);
    *out = nibbles(take(&mut block)).map(|q| d * f32::from(q.cast_signed() - 8));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let (d, least) = (scale(&mut block), scale(&mut block));
    *out = nibbles(take(&mut block)).map(|q| d * f32::from(q) + least);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let (d, high) = (scale(&mut block), *take(&mut block));
    *out = fives(high, take(&mut block)).map(|q| d * f32::from(q.cast_signed() - 16));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let (d, least, high) = (scale(&mut block), scale(&mut block), *take(&mut block));
    *out = fives(high, take(&mut block)).map(|q| d * f32::from(q) + least);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let mut block = &block[..];
    let d = scale(&mut block);
    let codes: &[u8; 32] = take(&mut block);
    *out = codes.map(|q| d * f32::from(q.cast_signed()));
}

/// Bits `shift..` of code `i` among `[2, 4, 32]` codes of 2 bits: those of 128 values lie in 32
/// bytes, 32 values in the lowest bits, the next 32 above them.
#[inline]
const fn pair(bytes: &[u8; 64], i: usize) -> u8 {
    bytes[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3
}

fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (scales, codes): (&[u8; 16], &[u8; 64]) = (take(&mut block), take(&mut block));
    let (d, least) = (scale(&mut block), scale(&mut block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (d, least) = (d * f32::from(scales[g] & 15), least * f32::from(scales[g] >> 4));
        *out = std::array::from_fn(|i| d * f32::from(pair(codes, g * 16 + i)) - least);
    }
}

fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (high, codes): (&[u8; 32], &[u8; 64]) = (take(&mut block), take(&mut block));
    let (scales, d) = (take::<12>(&mut block), scale(&mut block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[g % 8] >> (g / 8 * 4) & 15;
        let six = low | (scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
        let d = d * f32::from(six.cast_signed() - 32);
        *out = std::array::from_fn(|i| {
            let i = g * 16 + i;
            // A set bit takes nothing off.
            let off = 4 * (1 - (high[i % 32] >> (i / 32) & 1));
            d * f32::from(pair(codes, i).cast_signed() - off.cast_signed())
        });
    }
}

/// The 6-bit scale and least value of group `g` of 8.
#[inline]
const fn sixes(packed: &[u8; 12], g: usize) -> (u8, u8) {
    if g < 4 {
        return (packed[g] & 63, packed[g + 4] & 63);
    }
    let (scale, least, low) = (packed[g - 4], packed[g], packed[g + 4]);
    (low & 15 | scale >> 6 << 4, low >> 4 | least >> 6 << 4)
}

/// Code `i` among `[4, 2, 32]` codes of 4 bits: those of 64 values lie in 32 bytes.
#[inline]
const fn four(bytes: &[u8; 128], i: usize) -> u8 {
    bytes[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, least) = (scale(&mut block), scale(&mut block));
    let (packed, codes) = (take(&mut block), take(&mut block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let six = sixes(packed, g);
        let (d, least) = (d * f32::from(six.0), least * f32::from(six.1));
        *out = std::array::from_fn(|i| d * f32::from(four(codes, g * 32 + i)) - least);
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (d, least) = (scale(&mut block), scale(&mut block));
    let packed = take(&mut block);
    let (high, codes): (&[u8; 32], _) = (take(&mut block), take(&mut block));
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let six = sixes(packed, g);
        let (d, least) = (d * f32::from(six.0), least * f32::from(six.1));
        *out = std::array::from_fn(|i| {
            let code = four(codes, g * 32 + i) | (high[i] >> g & 1) << 4;
            d * f32::from(code) - least
        });
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let mut block = &block[..];
    let (low, high): (&[u8; 128], &[u8; 64]) = (take(&mut block), take(&mut block));
    let (scales, d) = (take::<16>(&mut block), scale(&mut block));
    for (g, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = d * f32::from(scales[g].cast_signed());
        *out = std::array::from_fn(|i| {
            let i = g * 16 + i;
            let four = low[i / 128 * 64 + i % 64] >> (i / 64 % 2 * 4) & 15;
            d * f32::from((four | pair(high, i) << 4).cast_signed() - 32)
        });
    }
}
