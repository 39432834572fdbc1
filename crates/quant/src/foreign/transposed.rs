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

/// Codes of `bits` that fill whole 32-bit words, and those words: codes run on from word to word, the
/// lowest bits first, so that 32 codes of three bits lie in three.
pub const fn word_unit(bits: u8) -> (u64, u64) {
    let words = if 32 % bits == 0 { 1 } else { bits as u64 };
    (words * 32 / bits as u64, words)
}

/// Words of one unit as one number, the first lowest.
fn joined(words: impl Iterator<Item = [u8; 4]>) -> u128 {
    words
        .enumerate()
        .fold(0, |all, (at, word)| all | u128::from(u32::from_le_bytes(word)) << (32 * at))
}

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
    /// words per group, in which `order` gives the place of each. With `less_one` they are stored less
    /// one, and every whole unit of words has ones added in all places.
    pub fn new(
        (bits, order, less_one): (u8, &[u32], bool),
        scales: Vec<f32>,
        words: &[u8],
        rows: &Range<u64>,
    ) -> Self {
        let (codes, unit) = word_unit(bits);
        let (first, unit) = (rows.start / codes, unit as usize);
        let width = (rows.end.div_ceil(codes) - first) as usize * unit;
        let (packed, _) = words.as_chunks::<4>();
        let mask = (1_u128 << bits) - 1;
        let add = if less_one { ((1_u128 << (32 * unit)) - 1) / mask } else { 0 };
        let mut zeros = Vec::with_capacity(scales.len());
        for packed in packed.chunks_exact(width.max(1)) {
            zeros.extend(rows.clone().map(|r| {
                let at = (r / codes - first) as usize * unit;
                let word = joined(packed[at..at + unit].iter().copied());
                let place = order[(r % codes) as usize] * u32::from(bits);
                (word.wrapping_add(add) >> place & mask) as u8
            }));
        }
        Self { scales, zeros, width: (rows.end - rows.start) as usize }
    }

    /// `(code - zero) * scale`, the difference exact, of codes `[rows, cols]`; `groups` gives the group of each column,
    /// counted from the first.
    pub fn values(&self, codes: &[u8], groups: &[usize], out: &mut [f32]) {
        let rows = codes.chunks_exact(groups.len().max(1));
        for (row, (codes, out)) in rows
            .zip(out.chunks_exact_mut(groups.len().max(1)))
            .enumerate()
        {
            for ((code, group), value) in codes.iter().zip(groups).zip(out) {
                let at = group * self.width + row;
                *value = f32::from(i16::from(*code) - i16::from(self.zeros[at])) * self.scales[at];
            }
        }
    }

    /// Scales and zero points row by row, `[rows, groups]`.
    pub fn by_row(&self) -> (Vec<f32>, Vec<u8>) {
        let groups = self.scales.len() / self.width.max(1);
        let places =
            (0..self.width).flat_map(|row| (0..groups).map(move |group| group * self.width + row));
        (
            places.clone().map(|at| self.scales[at]).collect(),
            places.map(|at| self.zeros[at]).collect(),
        )
    }
}

/// The codes of a rectangle, row by row. `bytes` hold, for each word of columns, one word per row; the rectangle begins
/// with a whole unit of words: see [`word_unit`].
pub fn gptq(bits: u8, bytes: &[u8], rect: &Rect) -> Vec<u8> {
    let (unit, words) = word_unit(bits);
    let (unit, words) = (unit as usize, words as usize);
    let (packed, rows) = (bytes.as_chunks::<4>().0, (rect.rows.end - rect.rows.start) as usize);
    let (mask, mut codes) = ((1_u128 << bits) - 1, vec![0; rect.len()]);
    for (r, row) in codes.chunks_exact_mut(rect.width().max(1)).enumerate() {
        for (k, codes) in row.chunks_mut(unit).enumerate() {
            let places = k * words..(k + 1) * words;
            let word = joined(places.map(|at| packed[at * rows + r]));
            for (i, code) in codes.iter_mut().enumerate() {
                *code = (word >> (i as u32 * u32::from(bits)) & mask) as u8;
            }
        }
    }
    codes
}

/// The codes of a rectangle, row by row. `bytes` hold, for each column, the words of eight rows that the rectangle
/// touches.
pub fn awq(bytes: &[u8], rect: &Rect) -> Vec<u8> {
    let first = rect.rows.start / 8;
    let width = (rect.rows.end.div_ceil(8) - first) as usize;
    let (packed, _) = bytes.as_chunks::<4>();
    let mut codes = Vec::with_capacity(rect.len());
    for r in rect.rows.clone() {
        let (word, shift) = ((r / 8 - first) as usize, AWQ_ORDER[(r % 8) as usize] * 4);
        let words = packed.iter().skip(word).step_by(width).take(rect.width());
        codes.extend(words.map(|word| (u32::from_le_bytes(*word) >> shift & 15) as u8));
    }
    codes
}
