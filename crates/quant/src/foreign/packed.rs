//! Integers in 32-bit words along the columns: compressed-tensors and MLX.

use super::Rect;
use crate::encoding::Affine;
use crate::float::{narrow, widen};
use crate::pack::unpack;

/// Codes of a rectangle as they are stored, `bits` each in words that begin with the matrix's row;
/// the rectangle begins with a word.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// Bytes that hold the rectangle's columns, row after row.
    pub bytes: &'a [u8],
    /// Bits of a code.
    pub bits: u8,
}

impl PackedRows<'_> {
    /// The codes, a byte each.
    pub fn unpack(self, rect: &Rect) -> Vec<u8> {
        let held = self.bytes.len() / (rect.rows.end - rect.rows.start).max(1) as usize;
        let mut codes = Vec::with_capacity(rect.len());
        // Whole units of eight codes, at least as many as lie in the row's bytes.
        let units = held.div_ceil(usize::from(self.bits));
        let mut padded = vec![0; units * usize::from(self.bits)];
        let mut row_codes = vec![0; units * 8];
        for row in self.bytes.chunks_exact(held.max(1)) {
            padded[..held].copy_from_slice(row);
            unpack(self.bits, &padded, &mut row_codes);
            codes.extend_from_slice(&row_codes[..rect.width()]);
        }
        codes
    }

    /// Fills `out`; `of_group` gives, for a group's position in the rectangle, what its codes mean.
    fn each<V: Fn(u8) -> f32>(
        self,
        group_size: u64,
        rect: &Rect,
        out: &mut [f32],
        of_group: impl Fn(usize) -> V,
    ) {
        let codes = self.unpack(rect);
        let groups = rect.groups(group_size);
        let width = (groups.end - groups.start) as usize;
        let rows = out
            .chunks_exact_mut(rect.width())
            .zip(codes.chunks_exact(rect.width()));
        for (r, (out, codes)) in rows.enumerate() {
            for (g, run) in rect.runs(group_size) {
                let value = of_group(r * width + g);
                for (out, code) in out[run.clone()].iter_mut().zip(&codes[run]) {
                    *out = value(*code);
                }
            }
        }
    }
}

/// `(code - zero) * scale`, the difference exact; without `zeros` the middle code is zero. Scales
/// and zero points are those of the rectangle's rows and [`Rect::groups`].
pub fn symmetric(
    codes: PackedRows<'_>,
    group_size: u64,
    scales: &[f32],
    zeros: Option<&[u8]>,
    rect: &Rect,
    out: &mut [f32],
) {
    let middle = 1_u8 << (codes.bits - 1);
    codes.each(group_size, rect, out, |g| {
        let (scale, zero) = (scales[g], i16::from(zeros.map_or(middle, |zeros| zeros[g])));
        move |code| f32::from(i16::from(code) - zero) * scale
    });
}

/// `scale * code + bias`, rounded after the product and after the sum. Scales and biases are those
/// of the rectangle's rows and [`Rect::groups`].
pub fn affine(
    codes: PackedRows<'_>,
    group_size: u64,
    scales: &[f32],
    biases: &[f32],
    rect: &Rect,
    out: &mut [f32],
) {
    codes.each(group_size, rect, out, |g| {
        let (scale, bias) = (scales[g], biases[g]);
        move |code| scale * f32::from(code) + bias
    });
}

/// Zero points of the rectangle's rows and `width` groups, packed along the rows: `bytes` hold, for
/// each word of `32 / bits` rows that the rectangle touches, one word per group.
pub fn zero_points(bits: u8, bytes: &[u8], width: usize, rect: &Rect) -> Vec<u8> {
    let per_word = 32 / u64::from(bits);
    let first = rect.rows.start / per_word;
    let (packed, _) = bytes.as_chunks::<4>();
    let mask = (1_u32 << bits) - 1;
    let zero = |row: u64, g: usize| {
        let word = packed[(row / per_word - first) as usize * width + g];
        let shift = row % per_word * u64::from(bits);
        (u32::from_le_bytes(word) >> shift & mask) as u8
    };
    let rows = rect.rows.clone();
    rows.flat_map(|row| (0..width).map(move |g| zero(row, g)))
        .collect()
}

/// The biases of symmetric codes, whose middle one is zero: `-middle * scale`, rounded to the type
/// of scales.
pub fn middle_biases(affine: Affine, scales: &[u8]) -> Vec<u8> {
    let dtype = affine.scale_dtype();
    let mut values = vec![0.0; scales.len() / dtype.size()];
    widen(dtype, scales, &mut values);
    let middle = f32::from(affine.max_code() / 2 + 1);
    for value in &mut values {
        *value *= -middle;
    }
    let mut biases = vec![0; scales.len()];
    narrow(dtype, &values, &mut biases);
    biases
}
