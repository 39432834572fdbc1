//! Codes that others stored, as encodings of ours hold them.

use std::ops::Range;

use crate::encoding::{Encoding, Float};
use crate::float::narrow;
use crate::kernel::LANES;
use crate::minifloat::Element;
use crate::pack::pack;

/// The codes of whole rows, and what gives them their values: `scale · (code - zero)`, or the float of a code times its
/// scale.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codes {
    /// One to a byte, `[rows, cols]`.
    pub codes: Vec<u8>,
    /// Columns of a row.
    pub cols: usize,
    /// `[rows, groups]`.
    pub scales: Vec<f32>,
    /// `[rows, groups]`; empty where codes are floats.
    pub zeros: Vec<u8>,
    /// Columns of a group, the last of a row perhaps fewer.
    pub group_size: usize,
}

impl Codes {
    /// Weight, scales and biases in `encoding`, codes as wide as these whose groups divide these.
    pub fn stored(&self, encoding: Encoding) -> [Vec<u8>; 3] {
        match encoding {
            Encoding::Affine(a) => {
                let mut weight = vec![0; self.codes.len() / 8 * usize::from(a.bits())];
                pack(a.bits(), &self.codes, &mut weight);
                let (scales, biases) = (self.scales(a.group_size()), self.biases(a.group_size()));
                [weight, bytes(a.scale_dtype(), &scales), bytes(a.scale_dtype(), &biases)]
            }
            Encoding::Minifloat(m) => {
                let weight = match m.element() {
                    Element::E2m1 => paired(&self.codes),
                    Element::E4m3 | Element::E5m2 => self.codes.clone(),
                };
                [weight, bytes(m.scale_dtype(), &self.scales(m.group_size())), Vec::new()]
            }
            _ => Default::default(),
        }
    }

    /// Rows of groups, and the group of these that each group of `size` columns lies in.
    fn places(&self, size: usize) -> (usize, impl Iterator<Item = usize> + Clone) {
        let group_size = self.group_size;
        let starts = (0..self.cols).step_by(size);
        (self.cols.div_ceil(group_size).max(1), starts.map(move |start| start / group_size))
    }

    /// Those of groups of `size` columns.
    fn scales(&self, size: usize) -> Vec<f32> {
        let (width, places) = self.places(size);
        let rows = self.scales.chunks_exact(width);
        rows.flat_map(|row| places.clone().map(|group| row[group]))
            .collect()
    }

    /// `-zero · scale` likewise, exact in 32 bits for scales of 16.
    fn biases(&self, size: usize) -> Vec<f32> {
        let (width, places) = self.places(size);
        let rows = self.scales.chunks_exact(width);
        let rows = rows.zip(self.zeros.chunks_exact(width));
        rows.flat_map(|(scales, zeros)| {
            let bias = |group: usize| -f32::from(zeros[group]) * scales[group];
            places.clone().map(bias)
        })
        .collect()
    }
}

fn bytes(dtype: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    narrow(dtype, values, &mut bytes);
    bytes
}

/// Codes of four bits as [`Minifloat`](crate::Minifloat) has them: of 32 the first half below the second.
fn paired(codes: &[u8]) -> Vec<u8> {
    let (blocks, mut out) = (codes.as_chunks::<{ 2 * LANES }>().0, Vec::new());
    for block in blocks {
        let (low, high) = block.split_at(LANES);
        out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
    }
    out
}

/// The codes of four bits in pairs, the first in the lower half of each byte.
pub fn unpaired(pairs: &[u8]) -> Vec<u8> {
    pairs
        .iter()
        .flat_map(|byte| [byte & 15, byte >> 4])
        .collect()
}

/// What the blocks of rows and columns that `rows` touch have, `[blocks, width]`, for each row.
pub fn by_row(scales: &[f32], width: usize, block_rows: u64, rows: Range<u64>) -> Vec<f32> {
    let first = rows.start / block_rows;
    let row = |row: u64| &scales[(row / block_rows - first) as usize * width..][..width];
    rows.flat_map(|r| row(r).iter().copied()).collect()
}
