//! Where tensors lie inside a unit: pure, checked arithmetic.

use shardwright_quant::{Encoding, EncodingError};

use crate::role::Role;
use crate::unit::{SourceView, TensorEntry, UnitLayout};

/// Tensors of a dense unit start on multiples of this, so that they can be used where they lie.
pub const TENSOR_ALIGNMENT: u64 = 64;

/// A tensor that has no place yet.
#[derive(Clone, Debug)]
pub struct Unplaced {
    /// What it is for.
    pub role: Role,
    /// How it will be stored.
    pub encoding: Encoding,
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Where its values come from.
    pub source: SourceView,
}

/// Places the tensors of a dense unit in the given order, each on a [`TENSOR_ALIGNMENT`] boundary.
///
/// # Errors
/// When an encoding cannot hold a shape.
pub fn place_dense(tensors: Vec<Unplaced>) -> Result<UnitLayout, EncodingError> {
    place(tensors, TENSOR_ALIGNMENT)
}

/// Places the tensors of an expert in the given order without gaps: the record is one read, and
/// with 4 bits, group 64 and bf16 scales it is the record of the flash-moe engines.
///
/// # Errors
/// When an encoding cannot hold a shape.
pub fn place_expert(tensors: Vec<Unplaced>) -> Result<UnitLayout, EncodingError> {
    place(tensors, 1)
}

fn place(tensors: Vec<Unplaced>, alignment: u64) -> Result<UnitLayout, EncodingError> {
    let mut len = 0u64;
    let mut placed = Vec::with_capacity(tensors.len());
    for Unplaced { role, encoding, rows, cols, source } in tensors {
        let overflow = || EncodingError::Overflow { rows, cols };
        let offset = len
            .checked_next_multiple_of(alignment)
            .ok_or_else(overflow)?;
        len = offset
            .checked_add(encoding.parts(rows, cols)?.total())
            .ok_or_else(overflow)?;
        placed.push(TensorEntry { role, encoding, rows, cols, offset, source });
    }
    Ok(UnitLayout { tensors: placed.into(), len })
}
