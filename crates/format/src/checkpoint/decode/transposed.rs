//! Integers stored with inputs as rows and outputs as columns: GPTQ and AWQ.

use std::ops::Range;

use super::packed::groups;
use super::{Decoding, Fetch, Rect};
use crate::error::{FormatError, Result};

/// Where each of a word's eight values lies in it, counted in values.
const AWQ_ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Scales and zero points of some groups: `[groups, rows]`.
struct Grid {
    scales: Vec<f32>,
    zeros: Vec<u8>,
    /// Rows, the outputs.
    width: usize,
}

impl Decoding<'_> {
    /// `(code - zero) * scale`, the difference exact.
    pub(super) fn gptq(
        &self,
        (bits, less_one): (u8, bool),
        group_size: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let [codes, _, _, indices @ ..] = &self.parts[..] else { return Ok(()) };
        let per_word = 32 / u64::from(bits);
        let index: Vec<u64> = match indices.first() {
            None => rect.cols.clone().map(|c| c / group_size).collect(),
            Some(part) => {
                let bytes = part.bytes(
                    0,
                    self.cols * 4,
                    (0..1, rect.cols.start * 4..rect.cols.end * 4),
                    fetch,
                )?;
                self.group_index(&bytes, group_size)?
            }
        };
        let first = index.iter().min().copied().unwrap_or_default();
        let last = index.iter().max().copied().unwrap_or_default();
        let order: [u32; 32] = std::array::from_fn(|i| i as u32);
        let offset = if less_one { u32::MAX / ((1 << bits) - 1) } else { 0 };
        let grid = self.grid((bits, &order, offset), first..last + 1, &rect.rows, fetch)?;
        let words = rect.cols.start / per_word..rect.cols.end.div_ceil(per_word);
        let place = (words, rect.rows.start * 4..rect.rows.end * 4);
        let bytes = codes.bytes(rect.matrix, self.rows * 4, place, fetch)?;
        let (packed, _) = bytes.as_chunks::<4>();
        let mask = (1_u32 << bits) - 1;
        for (r, row) in out.chunks_exact_mut(rect.width()).enumerate() {
            for (k, values) in row.chunks_mut(per_word as usize).enumerate() {
                let word = u32::from_le_bytes(packed[k * grid.width + r]);
                let at = k * per_word as usize;
                for (i, (value, group)) in values.iter_mut().zip(&index[at..]).enumerate() {
                    let code = word >> (i as u32 * u32::from(bits)) & mask;
                    *value = grid.value((group - first) as usize, r, code as u8);
                }
            }
        }
        Ok(())
    }

    /// `(code - zero) * scale`, the difference exact.
    pub(super) fn awq(
        &self,
        group_size: u64,
        rect: &Rect,
        out: &mut [f32],
        fetch: &mut Fetch<'_>,
    ) -> Result<()> {
        let codes = &self.parts[0];
        let groups = groups(&rect.cols, group_size);
        let first = groups.start;
        let grid = self.grid((4, &AWQ_ORDER, 0), groups, &rect.rows, fetch)?;
        let words = rect.rows.start / 8..rect.rows.end.div_ceil(8);
        let width = (words.end - words.start) as usize;
        let place = (rect.cols.clone(), words.start * 4..words.end * 4);
        let bytes = codes.bytes(rect.matrix, self.rows / 2, place, fetch)?;
        let (packed, _) = bytes.as_chunks::<4>();
        for (r, row) in (rect.rows.start..).zip(out.chunks_exact_mut(rect.width())) {
            let (word, shift) = ((r / 8 - words.start) as usize, AWQ_ORDER[(r % 8) as usize] * 4);
            for (c, value) in (rect.cols.start..).zip(row) {
                let at = (c - rect.cols.start) as usize * width + word;
                let code = u32::from_le_bytes(packed[at]) >> shift & 15;
                let (group, r) =
                    ((c / group_size - first) as usize, (r - rect.rows.start) as usize);
                *value = grid.value(group, r, code as u8);
            }
        }
        Ok(())
    }

    /// Scales and zero points of some groups and rows; `offset` is added to the words of zero
    /// points, in which `order` gives the place of each.
    fn grid(
        &self,
        (bits, order, offset): (u8, &[u32], u32),
        groups: Range<u64>,
        rows: &Range<u64>,
        fetch: &mut Fetch<'_>,
    ) -> Result<Grid> {
        let per_word = 32 / u64::from(bits);
        let words = rows.start / per_word..rows.end.div_ceil(per_word);
        let width = (words.end - words.start) as usize;
        let place = (groups.clone(), words.start * 4..words.end * 4);
        let row_len = self.rows.div_ceil(per_word) * 4;
        let bytes = self.parts[1].bytes(0, row_len, place, fetch)?;
        let scales = self.parts[2].floats(0, self.rows, (groups, rows.clone()), fetch)?;
        let (packed, _) = bytes.as_chunks::<4>();
        let mask = (1_u32 << bits) - 1;
        let mut zeros = Vec::with_capacity(scales.len());
        for packed in packed.chunks_exact(width.max(1)) {
            zeros.extend(rows.clone().map(|r| {
                let word = packed[(r / per_word - words.start) as usize];
                let place = order[(r % per_word) as usize] * u32::from(bits);
                (u32::from_le_bytes(word).wrapping_add(offset) >> place & mask) as u8
            }));
        }
        Ok(Grid { scales, zeros, width: (rows.end - rows.start) as usize })
    }

    /// The group of each column.
    fn group_index(&self, bytes: &[u8], group_size: u64) -> Result<Vec<u64>> {
        let groups = self.cols.div_ceil(group_size);
        let index = bytes.as_chunks::<4>().0.iter().map(|bytes| {
            let index = i32::from_le_bytes(*bytes);
            let known = u64::try_from(index).ok().filter(|index| *index < groups);
            known.ok_or_else(|| {
                let detail = format!("expected groups below {groups}, found {index}");
                FormatError::tensor(self.root, self.decoder.parts()[3], detail)
            })
        });
        index.collect()
    }
}

impl Grid {
    fn value(&self, group: usize, row: usize, code: u8) -> f32 {
        let at = group * self.width + row;
        f32::from(i16::from(code) - i16::from(self.zeros[at])) * self.scales[at]
    }
}
