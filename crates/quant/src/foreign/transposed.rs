//! Integers stored with inputs as rows and outputs as columns: GPTQ and AWQ.

use std::ops::Range;

use super::Rect;

/// Where each of a word's eight values lies in it in AWQ, counted in values.
pub const AWQ_ORDER: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// The same for words whose values are in order.
pub const WORD_ORDER: [u32; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = i as u32;
        i += 1;
    }
    order
};

/// Scales and zero points of some groups: `[groups, rows]`.
#[derive(Debug)]
pub struct Grid {
    scales: Vec<f32>,
    zeros: Vec<u8>,
    /// Rows, the outputs.
    width: usize,
}

impl Grid {
    /// From `scales` of `rows`, and the words that hold their zero points: `bits` each, one row of
    /// words per group, in which `order` gives the place of each. `add` is added to every word:
    /// ones in all places where zero points are stored less one.
    pub fn new(
        (bits, order, add): (u8, &[u32], u32),
        scales: Vec<f32>,
        words: &[u8],
        rows: &Range<u64>,
    ) -> Self {
        let per_word = 32 / u64::from(bits);
        let first = rows.start / per_word;
        let width = (rows.end.div_ceil(per_word) - first) as usize;
        let (packed, _) = words.as_chunks::<4>();
        let mask = (1_u32 << bits) - 1;
        let mut zeros = Vec::with_capacity(scales.len());
        for packed in packed.chunks_exact(width.max(1)) {
            zeros.extend(rows.clone().map(|r| {
                let word = packed[(r / per_word - first) as usize];
                let place = order[(r % per_word) as usize] * u32::from(bits);
                (u32::from_le_bytes(word).wrapping_add(add) >> place & mask) as u8
            }));
        }
        Self { scales, zeros, width: (rows.end - rows.start) as usize }
    }

    /// `(code - zero) * scale`, the difference exact.
    fn value(&self, group: usize, row: usize, code: u8) -> f32 {
        let at = group * self.width + row;
        f32::from(i16::from(code) - i16::from(self.zeros[at])) * self.scales[at]
    }
}

/// `bytes` hold, for each word of columns, one word per row. `groups` gives the group of each
/// column, counted from the grid's first.
pub fn gptq(bits: u8, bytes: &[u8], grid: &Grid, groups: &[usize], rect: &Rect, out: &mut [f32]) {
    let per_word = 32 / usize::from(bits);
    let (packed, _) = bytes.as_chunks::<4>();
    let mask = (1_u32 << bits) - 1;
    for (r, row) in out.chunks_exact_mut(rect.width()).enumerate() {
        for (k, values) in row.chunks_mut(per_word).enumerate() {
            let word = u32::from_le_bytes(packed[k * grid.width + r]);
            let groups = &groups[k * per_word..];
            for (i, (value, group)) in values.iter_mut().zip(groups).enumerate() {
                let code = word >> (i as u32 * u32::from(bits)) & mask;
                *value = grid.value(*group, r, code as u8);
            }
        }
    }
}

/// `bytes` hold, for each column, the words of eight rows that the rectangle touches.
pub fn awq(group_size: u64, bytes: &[u8], grid: &Grid, rect: &Rect, out: &mut [f32]) {
    let first = rect.rows.start / 8;
    let width = (rect.rows.end.div_ceil(8) - first) as usize;
    let first_group = rect.cols.start / group_size;
    let (packed, _) = bytes.as_chunks::<4>();
    for (r, row) in (rect.rows.start..).zip(out.chunks_exact_mut(rect.width())) {
        let (word, shift) = ((r / 8 - first) as usize, AWQ_ORDER[(r % 8) as usize] * 4);
        for (c, value) in (rect.cols.start..).zip(row) {
            let at = (c - rect.cols.start) as usize * width + word;
            let code = u32::from_le_bytes(packed[at]) >> shift & 15;
            let group = (c / group_size - first_group) as usize;
            *value = grid.value(group, (r - rect.rows.start) as usize, code as u8);
        }
    }
}
