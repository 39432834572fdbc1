//! Codes that others stored, as encodings of ours hold them.

use std::ops::Range;

use crate::dtype::ScaleType;
use crate::encoding::{Encoding, Float};
use crate::float::narrow;
use crate::float8::to_e8m0;
use crate::kernel::LANES;
use crate::minifloat::Element;
use crate::pack::pack;

/// The codes of whole rows, and what gives them their values: `scale · code + bias`, or the float of a code times its
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
    pub biases: Vec<f32>,
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
                let parts = [&self.scales, &self.biases];
                let [scales, biases] = parts.map(|of| self.by_groups(of, a.group_size()));
                [weight, bytes(a.scale_dtype(), &scales), bytes(a.scale_dtype(), &biases)]
            }
            Encoding::Minifloat(m) => {
                let weight = match m.element() {
                    Element::E2m1 => paired(&self.codes),
                    Element::E4m3 | Element::E5m2 => self.codes.clone(),
                };
                let scales = self.by_groups(&self.scales, m.group_size());
                [weight, scale_bytes(m.scale_dtype(), &scales), Vec::new()]
            }
            _ => Default::default(),
        }
    }

    /// Those of groups of `size` columns, of which each lies in one of these.
    fn by_groups(&self, values: &[f32], size: usize) -> Vec<f32> {
        let (group_size, starts) = (self.group_size, (0..self.cols).step_by(size));
        let rows = values.chunks_exact(self.cols.div_ceil(group_size).max(1));
        rows.flat_map(|row| starts.clone().map(|start| row[start / group_size]))
            .collect()
    }
}

/// The biases of codes about `zeros`: `-zero · scale`, exact in 32 bits for scales of 16.
pub fn biases(scales: &[f32], zeros: &[u8]) -> Vec<f32> {
    let pairs = scales.iter().zip(zeros);
    pairs
        .map(|(scale, zero)| -f32::from(*zero) * scale)
        .collect()
}

fn bytes(dtype: Float, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * dtype.size()];
    narrow(dtype, values, &mut bytes);
    bytes
}

/// Scales of small floats, which are powers of two where the type has no others.
fn scale_bytes(dtype: ScaleType, scales: &[f32]) -> Vec<u8> {
    match dtype.float() {
        Some(float) => bytes(float, scales),
        None => scales.iter().map(|scale| to_e8m0(*scale)).collect(),
    }
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

/// Codes of four bits that lie as [`Minifloat`](crate::Minifloat) has them in pairs of neighbours, the first in the
/// lower half of each byte, as words of MLX have them.
pub fn neighbours(blocks: &[u8]) -> Vec<u8> {
    let pair = |pair: &[u8], shift: u32| (pair[0] >> shift & 15) | (pair[1] >> shift & 15) << 4;
    let mut out = Vec::with_capacity(blocks.len());
    for block in blocks.as_chunks::<LANES>().0 {
        out.extend(block.chunks(2).map(|of| pair(of, 0)));
        out.extend(block.chunks(2).map(|of| pair(of, 4)));
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
