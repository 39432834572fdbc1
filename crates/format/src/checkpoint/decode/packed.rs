//! Integers in 32-bit words along the columns: compressed-tensors and MLX.

use std::ops::Range;

use shardwright_quant::unpack;

use super::part::Part;
use super::{Decoding, Fetch, Rect};
use crate::error::Result;

impl Decoding<'_> {
    /// `(code - zero) * scale`, the difference exact.
    pub(super) fn packed(
        &self,
        bits: u8,
        group_size: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [codes, scales, _, zeros @ ..] = &self.parts[..] else { return Ok(()) };
        let groups = groups(&rect.cols, group_size);
        let width = (groups.end - groups.start) as usize;
        let all = self.cols.div_ceil(group_size);
        let rows = || rect.rows.clone();
        let codes = self.codes(codes, bits, rect, fetch)?;
        let scales = scales.floats(rect.matrix, all, (rows(), groups.clone()), fetch)?;
        let zeros = match zeros.first() {
            None => vec![1 << (bits - 1); scales.len()],
            Some(part) => zero_points(part, (bits, all), (rows(), groups), fetch)?,
        };
        let values = out
            .chunks_exact_mut(rect.width())
            .zip(codes.chunks_exact(rect.width()));
        let grids = scales.chunks_exact(width).zip(zeros.chunks_exact(width));
        for ((out, codes), (scales, zeros)) in values.zip(grids) {
            for (g, run) in runs(&rect.cols, group_size) {
                let (scale, zero) = (scales[g], i16::from(zeros[g]));
                for (value, code) in out[run.clone()].iter_mut().zip(&codes[run]) {
                    *value = f32::from(i16::from(*code) - zero) * scale;
                }
            }
        }
        Ok(())
    }

    /// `scale * code + bias`, rounded after the product and after the sum.
    pub(super) fn mlx(
        &self,
        bits: u8,
        group_size: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [codes, scales, biases, ..] = &self.parts[..] else { return Ok(()) };
        let groups = groups(&rect.cols, group_size);
        let width = (groups.end - groups.start) as usize;
        let all = self.cols.div_ceil(group_size);
        let place = || (rect.rows.clone(), groups.clone());
        let codes = self.codes(codes, bits, rect, fetch)?;
        let scales = scales.floats(rect.matrix, all, place(), fetch)?;
        let biases = biases.floats(rect.matrix, all, place(), fetch)?;
        let values = out
            .chunks_exact_mut(rect.width())
            .zip(codes.chunks_exact(rect.width()));
        let grids = scales.chunks_exact(width).zip(biases.chunks_exact(width));
        for ((out, codes), (scales, biases)) in values.zip(grids) {
            for (g, run) in runs(&rect.cols, group_size) {
                let (scale, bias) = (scales[g], biases[g]);
                for (value, code) in out[run.clone()].iter_mut().zip(&codes[run]) {
                    *value = scale * f32::from(*code) + bias;
                }
            }
        }
        Ok(())
    }

    /// The codes of a rectangle, a byte each.
    fn codes(
        &self,
        part: &Part<'_>,
        bits: u8,
        rect: &Rect,
        fetch: &mut Fetch<'_>,
    ) -> Result<Vec<u8>> {
        let bits_wide = u64::from(bits);
        let row_len = (self.cols * bits_wide).div_ceil(32) * 4;
        let columns = rect.cols.start * bits_wide / 8..(rect.cols.end * bits_wide).div_ceil(32) * 4;
        let held = (columns.end - columns.start) as usize;
        let bytes = part.bytes(rect.matrix, row_len, (rect.rows.clone(), columns), fetch)?;
        let mut codes = Vec::with_capacity(rect.len());
        // Whole units of eight codes, at least as many as lie in the row's bytes.
        let units = held.div_ceil(usize::from(bits));
        let (mut padded, mut row_codes) = (vec![0; units * usize::from(bits)], vec![0; units * 8]);
        for row in bytes.chunks_exact(held.max(1)) {
            padded[..held].copy_from_slice(row);
            unpack(bits, &padded, &mut row_codes);
            codes.extend_from_slice(&row_codes[..rect.width()]);
        }
        Ok(codes)
    }
}

/// Zero points of `rows`, `[rows, groups]`, from words along the rows: `[words, groups]`.
fn zero_points(
    part: &Part<'_>,
    (bits, all): (u8, u64),
    (rows, groups): (Range<u64>, Range<u64>),
    fetch: &mut Fetch<'_>,
) -> Result<Vec<u8>> {
    let per_word = 32 / u64::from(bits);
    let words = rows.start / per_word..rows.end.div_ceil(per_word);
    let width = (groups.end - groups.start) as usize;
    let columns = groups.start * 4..groups.end * 4;
    let bytes = part.bytes(0, all * 4, (words.clone(), columns), fetch)?;
    let (packed, _) = bytes.as_chunks::<4>();
    let mask = (1_u32 << bits) - 1;
    let zero = |row: u64, g: usize| {
        let word = packed[(row / per_word - words.start) as usize * width + g];
        let shift = row % per_word * u64::from(bits);
        (u32::from_le_bytes(word) >> shift & mask) as u8
    };
    Ok(rows
        .flat_map(|row| (0..width).map(move |g| (row, g)))
        .map(|(row, g)| zero(row, g))
        .collect())
}

/// The groups that columns lie in.
pub(super) const fn groups(cols: &Range<u64>, group_size: u64) -> Range<u64> {
    cols.start / group_size..cols.end.div_ceil(group_size)
}

/// Each of [`groups`], counted from the first, with its columns, counted from the first.
fn runs(cols: &Range<u64>, group_size: u64) -> impl Iterator<Item = (usize, Range<usize>)> {
    let cols = cols.clone();
    let groups = groups(&cols, group_size);
    groups.enumerate().map(move |(at, group)| {
        let start = (group * group_size).max(cols.start) - cols.start;
        let end = ((group + 1) * group_size).min(cols.end) - cols.start;
        (at, start as usize..end as usize)
    })
}
