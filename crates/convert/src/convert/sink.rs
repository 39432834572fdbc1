//! Where a unit's bytes go: a record in memory, or straight into a file when it is large.

use std::ops::Range;

use shardwright_format::unit::TensorEntry;
use shardwright_format::writer::BundleWriter;
use shardwright_quant::{Parts, PartsMut};

use crate::error::{ConvertError, Result};

/// Takes a unit's tensors in any order, some rows at a time.
pub enum Sink<'a> {
    /// The whole unit, zero where nothing was written.
    Record(&'a mut Vec<u8>),
    /// A file of the bundle, the unit from `offset` on; `part` is reused.
    Pieces { writer: &'a BundleWriter, file: usize, offset: u64, part: &'a mut Vec<u8> },
}

impl Sink<'_> {
    /// Lets `fill` write some rows of a tensor.
    pub fn rows<T>(
        &mut self,
        entry: &TensorEntry,
        rows: Range<u64>,
        fill: impl FnOnce(PartsMut<'_>) -> Result<T>,
    ) -> Result<T> {
        let parts = leading(entry, entry.rows)?;
        let (start, end) = (leading(entry, rows.start)?, leading(entry, rows.end)?);
        match self {
            Self::Record(bytes) => {
                let whole = &mut bytes[entry.offset as usize..][..parts.total() as usize];
                let (weight, rest) = whole.split_at_mut(parts.weight as usize);
                let (scales, biases) = rest.split_at_mut(parts.scales as usize);
                fill(PartsMut {
                    weight: &mut weight[start.weight as usize..end.weight as usize],
                    scales: &mut scales[start.scales as usize..end.scales as usize],
                    biases: &mut biases[start.biases as usize..end.biases as usize],
                })
            }
            Self::Pieces { writer, file, offset, part } => {
                part.resize((end.total() - start.total()) as usize, 0);
                let (weight, rest) = part.split_at_mut((end.weight - start.weight) as usize);
                let (scales, biases) = rest.split_at_mut((end.scales - start.scales) as usize);
                let value = fill(PartsMut { weight, scales, biases })?;
                let mut base = *offset + entry.offset;
                for (bytes, start, whole) in [
                    (weight, start.weight, parts.weight),
                    (scales, start.scales, parts.scales),
                    (biases, start.biases, parts.biases),
                ] {
                    if whole > 0 {
                        writer.write_at(*file, base + start, bytes)?;
                    }
                    base += whole;
                }
                Ok(value)
            }
        }
    }
}

/// What the first `rows` rows of a tensor take of each part.
fn leading(entry: &TensorEntry, rows: u64) -> Result<Parts> {
    let parts = entry.encoding.parts(rows, entry.cols);
    parts.map_err(|e| ConvertError::plan(format!("{}: {e}", entry.role)))
}
